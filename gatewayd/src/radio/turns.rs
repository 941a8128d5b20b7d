//! One adapter: what it hears, who is due for a link, and whose turn is over.
//!
//! Where more wearables are near than links can be held, everybody gets a turn. Who waits longest comes first, and who
//! holds much comes up to twice as soon, never more: a wearable with days in its flash keeps nobody else out. A turn
//! ends by its time; one whose wearable has handed over everything ends after a quarter of it, as soon as others wait.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::Rng;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::manager::Manager;
use super::window::Chosen;
use super::{AdapterId, Offer, RadioError, Sighting};
use crate::hardware::HardwareId;
use crate::status::Link as LinkState;

/// How often candidates are looked through.
const TICK: Duration = Duration::from_millis(200);
/// An advertisement counts for this long.
const SIGHTING: Duration = Duration::from_secs(3);
/// A link that stood this long and then was lost is made again at once, without waiting to hear the wearable first.
const STOOD: Duration = Duration::from_secs(2);
/// A link that lasted this long has been good: the next failure starts with a short pause again.
const GOOD_LINK: Duration = Duration::from_secs(10);
/// One that does not know us any more is tried this seldom: a person has to act, but may have done so at its side.
const STALE_PAUSE: Duration = Duration::from_mins(10);
/// So long a nearer gateway has to take a wearable that was let go for its weak link.
const WEAK_PAUSE: Duration = Duration::from_secs(15);
/// So many frames on a wearable let its wait count double.
const MUCH: f64 = 600.0;
/// The part of a turn after which a wearable that holds nothing gives its link to who waits.
const CAUGHT_UP: u32 = 4;
/// How long the adapter may take to open or close itself for pairing, and the pause after it did not.
const PAIRABLE: Duration = Duration::from_secs(5);

/// What an adapter remembers of a device.
#[derive(Default)]
struct Peer {
    sighting: Option<(Sighting, Instant)>,
    /// Its link was lost a moment ago: it is probably still there.
    lost: bool,
    failures: u32,
    not_before: Option<Instant>,
    served: Option<Instant>,
}

/// How a link ended. A pairing that failed before anybody knew with whom has no device.
pub(super) struct Ended {
    pub(super) hardware: Option<HardwareId>,
    pub(super) result: Result<(), RadioError>,
    pub(super) lasted: Duration,
}

/// The state of one adapter's loop.
struct Turns<'a> {
    manager: &'a Arc<Manager>,
    adapter: &'a AdapterId,
    peers: HashMap<HardwareId, Peer>,
    sessions: JoinSet<Ended>,
    connecting: Arc<Semaphore>,
    cancel: &'a CancellationToken,
    pairable: Option<bool>,
    /// It could not be set: not tried again before this.
    pairable_again: Option<Instant>,
}

impl Manager {
    /// Serves on one adapter until it fails or `cancel`.
    pub(super) async fn serve(self: &Arc<Self>, adapter: &AdapterId, cancel: &CancellationToken) {
        let mut sightings = match self.radio.scan(adapter).await {
            Ok(sightings) => sightings,
            Err(error) => {
                tracing::warn!(%adapter, %error, "cannot scan");
                return;
            }
        };
        // One pairing at a time, whatever the number of adapters.
        let (sender, mut chosen) = mpsc::channel(1);
        self.window.join(adapter, sender);
        let mut turns = Turns {
            manager: self,
            adapter,
            peers: HashMap::new(),
            sessions: JoinSet::new(),
            connecting: Arc::new(Semaphore::new(self.settings.connecting)),
            cancel,
            pairable: None,
            pairable_again: None,
        };
        turns.run(&mut sightings, &mut chosen).await;
        self.window.leave(adapter);
        for held in self.links.of(adapter) {
            held.cancel.cancel();
        }
        while let Some(ended) = turns.sessions.join_next().await {
            if let Ok(ended) = ended {
                turns.ended(ended);
            }
        }
    }
}

impl Turns<'_> {
    async fn run(&mut self, sightings: &mut mpsc::Receiver<Sighting>, chosen: &mut mpsc::Receiver<Chosen>) {
        let mut tick = tokio::time::interval(TICK);
        let pulse = self.manager.context.board.vitals().pulse(format!("radio {}", self.adapter));
        loop {
            pulse.beat();
            tokio::select! {
                () = self.cancel.cancelled() => return,
                sighting = sightings.recv() => {
                    let Some(sighting) = sighting else { return };
                    self.see(sighting);
                    continue;
                }
                Some(chosen) = chosen.recv() => {
                    // The adapter has to take part before the pairing begins.
                    self.follow_window().await;
                    let (manager, adapter) = (self.manager.clone(), self.adapter.clone());
                    let cancel = self.cancel.clone();
                    self.sessions.spawn(async move { manager.pair_chosen(&adapter, chosen, &cancel).await });
                }
                Some(ended) = self.sessions.join_next() => {
                    if let Ok(ended) = ended {
                        self.ended(ended);
                    }
                }
                _ = tick.tick() => {
                    self.manager.window.look_after();
                    self.follow_window().await;
                }
            }
            self.start_due();
        }
    }

    /// The adapter takes part in pairings while the window is open, and only then.
    async fn follow_window(&mut self) {
        let open = self.manager.window.is_open();
        if self.pairable == Some(open) || self.pairable_again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let set = self.manager.radio.pairable(self.adapter, open);
        match tokio::time::timeout(PAIRABLE, set).await.unwrap_or(Err(RadioError::Timeout("pairable"))) {
            Ok(()) => (self.pairable, self.pairable_again) = (Some(open), None),
            Err(error) => {
                self.pairable_again = Some(Instant::now() + PAIRABLE);
                tracing::warn!(adapter = %self.adapter, %error, open, "cannot open or close for pairing");
            }
        }
    }

    fn see(&mut self, sighting: Sighting) {
        let manager = self.manager;
        let Some(hardware) = manager.whose(&sighting) else {
            manager.window.note(self.adapter, &sighting);
            return;
        };
        manager.context.board.device(&hardware, |device| {
            device.rssi_dbm = Some(sighting.rssi_dbm);
            if !sighting.name.is_empty() {
                device.name.clone_from(&sighting.name);
            }
        });
        let peer = self.peers.entry(hardware).or_default();
        (peer.sighting, peer.lost) = (Some((sighting, Instant::now())), false);
    }

    /// Connects to whoever is due, as far as there are links; ends a turn when there are none.
    fn start_due(&mut self) {
        let manager = self.manager;
        let now = Instant::now();
        let board = manager.context.board.now();
        let behind = |hardware: &HardwareId| board.devices.get(hardware).map_or(0, |it| it.behind_frames);
        let mut due: Vec<(f64, HardwareId, Sighting, bool)> = self
            .peers
            .iter()
            .filter(|(hardware, peer)| {
                peer.not_before.is_none_or(|at| at <= now) && !manager.links.is_taken(hardware)
            })
            .filter_map(|(hardware, peer)| {
                let (sighting, seen) = peer.sighting.as_ref()?;
                let wanted = sighting.connectable
                    && seen.elapsed() < SIGHTING
                    && manager.can_serve(self.adapter, hardware, sighting);
                let waited = peer.served.map(|served| now - served);
                let need = need(waited, behind(hardware));
                wanted.then(|| (need, hardware.clone(), sighting.clone(), peer.lost))
            })
            .collect();
        due.sort_by(|(one, ..), (other, ..)| other.total_cmp(one));
        for (_, hardware, sighting, lost) in due {
            let held = manager.links.of(self.adapter);
            if held.len() >= manager.slots(self.adapter) {
                let ending = held.iter().any(|link| link.cancel.is_cancelled());
                let turn = |hardware: &HardwareId| {
                    let live = board.devices.get(hardware).is_some_and(|it| it.link == LinkState::Live);
                    if live { manager.settings.turn / CAUGHT_UP } else { manager.settings.turn }
                };
                let over = held.iter().filter(|link| link.since.elapsed() >= turn(&link.hardware));
                if let Some(longest) = over.min_by_key(|link| link.since)
                    && !ending
                {
                    longest.cancel.cancel();
                }
                return;
            }
            let Some(claim) = manager.links.claim(&hardware, self.adapter, self.cancel) else { continue };
            let (manager, adapter, connecting) =
                (manager.clone(), self.adapter.clone(), self.connecting.clone());
            self.sessions.spawn(async move {
                let attempt = Box::pin(manager.attempt(&adapter, claim, &sighting, lost, &connecting));
                let result = unless_it_panics(attempt).await;
                Ended { hardware: Some(hardware), result, lasted: now.elapsed() }
            });
        }
    }

    fn ended(&mut self, ended: Ended) {
        let Some(hardware) = ended.hardware else { return };
        let (settings, result) = (&self.manager.settings, &ended.result);
        let peer = self.peers.entry(hardware.clone()).or_default();
        let board = self.manager.context.board.now();
        let stood = ended.lasted >= STOOD
            && board.devices.get(&hardware).is_some_and(|device| device.link.connected());
        peer.served = Some(Instant::now());
        peer.lost = stood && matches!(result, Err(RadioError::Gone(_)));
        peer.sighting = peer.sighting.take().filter(|_| peer.lost).map(|(seen, _)| (seen, Instant::now()));
        let good = ended.lasted >= GOOD_LINK || result.is_ok();
        peer.failures = if good { 0 } else { peer.failures.saturating_add(1) };
        let most = match result {
            Err(RadioError::StaleBond) => STALE_PAUSE,
            Err(RadioError::Weak) => WEAK_PAUSE,
            _ => settings.backoff.saturating_mul(1 << peer.failures.min(16)).min(settings.backoff_most),
        };
        let pause = if peer.lost { Duration::ZERO } else { most.mul_f64(rand::rng().random_range(0.5..1.0)) };
        peer.not_before = Some(Instant::now() + pause);
        match result {
            Ok(()) => tracing::info!(%hardware, "link closed"),
            Err(error) => tracing::info!(%hardware, %error, retry_in = ?pause, "link ended"),
        }
        if self.manager.labels.contains_key(&hardware) || self.manager.devices.get(&hardware).is_some() {
            self.manager.context.board.device(&hardware, |device| {
                device.link = LinkState::Away;
                device.trouble = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            });
        } else {
            // Forgotten while it was connected, or never let in.
            self.manager.context.board.remove_device(&hardware);
        }
    }
}

/// A session that panics has failed as others do: its wearable is told of in `status`, and is tried again after a pause that
/// doubles, not at once and for ever.
async fn unless_it_panics(attempt: impl Future<Output = Result<(), RadioError>>) -> Result<(), RadioError> {
    AssertUnwindSafe(attempt)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(RadioError::Nonsense("a fault of this program ended the link".to_owned())))
}

/// How much a wearable is in need of a link: the seconds that it waited since its last one, for ever without one;
/// up to twice that by the frames that it holds.
fn need(waited: Option<Duration>, behind_frames: u64) -> f64 {
    let waited = waited.map_or(f64::INFINITY, |waited| waited.as_secs_f64());
    waited * (1.0 + (behind_frames as f64 / MUCH).min(1.0))
}

impl Manager {
    /// Which of the devices to be served this is: by its bond, by an introduction, or by a configured label.
    fn whose(&self, sighting: &Sighting) -> Option<HardwareId> {
        if let Some(hardware) = &sighting.hardware {
            let ours = self.labels.contains_key(hardware) || self.devices.bonded(hardware).is_some();
            return ours.then(|| hardware.clone());
        }
        match &sighting.offer {
            Some(Offer::Introduction { .. }) => {
                self.introduction(sighting).map(|introduction| introduction.hardware)
            }
            Some(Offer::Label { .. }) => self.labelled(&sighting.name),
            _ => None,
        }
    }

    /// The one wearable with a configured label, and without a bond that is known to serve, that shows this name in its
    /// window: `K-` and the last four digits of its factory id. Its label's secret then proves who it is.
    fn labelled(&self, name: &str) -> Option<HardwareId> {
        let digits = name.strip_prefix("K-")?.to_ascii_lowercase();
        let mut fitting = self.labels.keys().filter(|hardware| {
            digits.len() == 4
                && hardware.as_str().ends_with(&digits)
                && self.devices.bonded(hardware).is_none_or(|bonded| bonded.stale)
        });
        let only = fitting.next()?.clone();
        fitting.next().is_none().then_some(only)
    }

    /// Whether this adapter can do something for it now.
    fn can_serve(&self, adapter: &AdapterId, hardware: &HardwareId, sighting: &Sighting) -> bool {
        if let Some(bonded) = self.devices.bonded(hardware) {
            let address = self.adapters.get(adapter).map(|adapter| adapter.address);
            return bonded.adapter.is_none() || bonded.adapter == address;
        }
        let in_window = matches!(sighting.offer, Some(Offer::Label { .. }));
        (in_window && self.labels.contains_key(hardware)) || self.introduction(sighting).is_some()
    }

    /// Links that an adapter may hold.
    pub(super) fn slots(&self, adapter: &AdapterId) -> usize {
        let learnt = self.adapters.get(adapter).map_or(usize::MAX, |adapter| adapter.slots);
        learnt.min(self.settings.slots).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_that_panics_has_failed_like_any_other() {
        let broken = async { panic!("what it sent was not thought of") };
        assert!(matches!(unless_it_panics(broken).await, Err(RadioError::Nonsense(_))));
        assert_eq!(unless_it_panics(async { Err(RadioError::TooFar) }).await, Err(RadioError::TooFar));
    }

    #[test]
    fn who_was_never_served_comes_before_everybody() {
        assert!(need(None, 0) > need(Some(Duration::from_hours(24)), 1_000_000));
    }

    #[test]
    fn who_holds_much_comes_sooner_and_keeps_nobody_out() {
        let minute = Duration::from_mins(1);
        assert!(need(Some(minute), 600) > need(Some(minute), 10));
        assert!(
            need(Some(minute), u64::MAX) <= need(Some(minute * 2), 0),
            "twice the wait outweighs any backlog"
        );
    }
}
