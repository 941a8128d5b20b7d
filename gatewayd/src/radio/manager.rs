//! Whom to serve: every wearable that is bound to this gateway, each adapter with as many links as it can hold, and
//! everybody in turn when there are more wearables than links.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kinara_protocol::label::LabelSecret;
use rand::Rng;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::session::{self, Context};
use super::{AdapterId, Agreement, Bonds, Offer, Radio, RadioError, Sighting};
use crate::hardware::HardwareId;
use crate::status::Link as LinkState;

/// How often candidates are looked through.
const TICK: Duration = Duration::from_millis(200);
/// An advertisement counts for this long.
const SIGHTING: Duration = Duration::from_secs(3);
/// A link that lasted this long has been good: the next failure starts with a short pause again.
const GOOD_LINK: Duration = Duration::from_secs(10);

/// How links are given out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Links that an adapter holds at once.
    pub slots: usize,
    /// Connections that an adapter makes at once.
    pub connecting: usize,
    /// How long a wearable keeps its link while others wait for one.
    pub turn: Duration,
    /// The first pause after a failure.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_most: Duration,
    /// How often the adapters are listed.
    pub adapters_every: Duration,
}

/// Serves wearables on all adapters.
pub struct Manager {
    /// The transport.
    pub radio: Arc<dyn Radio>,
    /// Keys.
    pub bonds: Arc<Bonds>,
    /// The wearables bound to this gateway, with the secrets on their labels.
    pub wearables: HashMap<HardwareId, LabelSecret>,
    /// What sessions need.
    pub context: Context,
    /// How links are given out.
    pub settings: Settings,
}

/// What one adapter remembers of a wearable.
#[derive(Default)]
struct Peer {
    sighting: Option<(Sighting, Instant)>,
    failures: u32,
    not_before: Option<Instant>,
    served: Option<Instant>,
}

struct Active {
    cancel: CancellationToken,
    since: Instant,
}

impl Manager {
    /// Runs until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let manager = Arc::new(self);
        for hardware in manager.wearables.keys() {
            manager.context.board.device(hardware, |_| {});
        }
        let taken: Arc<Mutex<HashSet<HardwareId>>> = Arc::default();
        let mut adapters: JoinSet<AdapterId> = JoinSet::new();
        let mut running: HashSet<AdapterId> = HashSet::new();
        let pulse = manager.context.board.vitals().pulse("radio");
        loop {
            pulse.beat();
            match manager.radio.adapters().await {
                Ok(found) => {
                    let none = found.is_empty() && running.is_empty();
                    manager.context.board.alert(
                        "radio",
                        none.then(|| "There is no Bluetooth adapter; plug one in.".to_owned()),
                    );
                    for adapter in
                        found.into_iter().filter(|adapter| adapter.powered).map(|adapter| adapter.id)
                    {
                        if running.insert(adapter.clone()) {
                            let (manager, cancel, taken) = (manager.clone(), cancel.clone(), taken.clone());
                            adapters.spawn(async move {
                                manager.serve(&adapter, &taken, &cancel).await;
                                adapter
                            });
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the adapters cannot be listed");
                    manager.context.board.alert("radio", Some(error.to_string()));
                }
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(manager.settings.adapters_every) => {}
                Some(ended) = adapters.join_next() => {
                    if let Ok(adapter) = ended {
                        running.remove(&adapter);
                    }
                    tokio::time::sleep(manager.settings.backoff).await;
                }
            }
        }
        while adapters.join_next().await.is_some() {}
    }

    /// Serves on one adapter until it fails or `cancel`.
    async fn serve(
        self: &Arc<Self>,
        adapter: &AdapterId,
        taken: &Arc<Mutex<HashSet<HardwareId>>>,
        cancel: &CancellationToken,
    ) {
        let mut sightings = match self.radio.scan(adapter).await {
            Ok(sightings) => sightings,
            Err(error) => {
                tracing::warn!(adapter = adapter.0, %error, "cannot scan");
                return;
            }
        };
        let connecting = Arc::new(Semaphore::new(self.settings.connecting));
        let mut peers: HashMap<HardwareId, Peer> = HashMap::new();
        let mut active: HashMap<HardwareId, Active> = HashMap::new();
        let mut sessions: JoinSet<(HardwareId, Result<(), RadioError>)> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        let pulse = self.context.board.vitals().pulse(format!("radio {adapter}"));
        loop {
            pulse.beat();
            tokio::select! {
                () = cancel.cancelled() => break,
                sighting = sightings.recv() => {
                    let Some(sighting) = sighting else { break };
                    self.see(&mut peers, sighting);
                    continue;
                }
                Some(ended) = sessions.join_next() => {
                    let Ok((hardware, result)) = ended else { continue };
                    lock(taken).remove(&hardware);
                    let lasted = active.remove(&hardware).map_or(Duration::ZERO, |active| active.since.elapsed());
                    self.ended(peers.entry(hardware.clone()).or_default(), &hardware, &result, lasted);
                }
                _ = tick.tick() => {}
            }
            self.start_due(adapter, &mut peers, &mut active, taken, &connecting, &mut sessions, cancel);
        }
        for link in active.values() {
            link.cancel.cancel();
        }
        while let Some(ended) = sessions.join_next().await {
            if let Ok((hardware, _)) = ended {
                lock(taken).remove(&hardware);
            }
        }
    }

    fn see(&self, peers: &mut HashMap<HardwareId, Peer>, sighting: Sighting) {
        // One that has no binding here is somebody else's.
        let Some(hardware) = sighting.hardware.clone().filter(|known| self.wearables.contains_key(known))
        else {
            return;
        };
        self.context.board.device(&hardware, |device| {
            device.rssi_dbm = Some(sighting.rssi_dbm);
            if !sighting.name.is_empty() {
                device.name.clone_from(&sighting.name);
            }
        });
        peers.entry(hardware).or_default().sighting = Some((sighting, Instant::now()));
    }

    #[allow(clippy::too_many_arguments, reason = "the state of one adapter's loop, which lives on its stack")]
    fn start_due(
        self: &Arc<Self>,
        adapter: &AdapterId,
        peers: &mut HashMap<HardwareId, Peer>,
        active: &mut HashMap<HardwareId, Active>,
        taken: &Arc<Mutex<HashSet<HardwareId>>>,
        connecting: &Arc<Semaphore>,
        sessions: &mut JoinSet<(HardwareId, Result<(), RadioError>)>,
        cancel: &CancellationToken,
    ) {
        let now = Instant::now();
        let mut due: Vec<(Option<Instant>, HardwareId, Sighting)> = peers
            .iter()
            .filter(|(hardware, peer)| {
                !active.contains_key(*hardware)
                    && !lock(taken).contains(*hardware)
                    && peer.not_before.is_none_or(|at| at <= now)
            })
            .filter_map(|(hardware, peer)| {
                let (sighting, seen) = peer.sighting.as_ref()?;
                let wanted = sighting.connectable
                    && (self.bonds.get(hardware).is_some() || nonce(sighting).is_some())
                    && seen.elapsed() < SIGHTING;
                wanted.then(|| (peer.served, hardware.clone(), sighting.clone()))
            })
            .collect();
        // Who was served longest ago, or never, comes first.
        due.sort_by_key(|(served, ..)| *served);
        for (_, hardware, sighting) in due {
            if active.len() >= self.settings.slots {
                self.make_room(active);
                return;
            }
            lock(taken).insert(hardware.clone());
            let stop = cancel.child_token();
            active.insert(hardware.clone(), Active { cancel: stop.clone(), since: now });
            let (manager, adapter, connecting) = (self.clone(), adapter.clone(), connecting.clone());
            sessions.spawn(async move {
                let result = manager.attempt(&adapter, &hardware, &sighting, &connecting, &stop).await;
                (hardware, result)
            });
        }
    }

    /// Ends the turn of whoever has had a link for longest, if it was a full one.
    fn make_room(&self, active: &HashMap<HardwareId, Active>) {
        if active.values().any(|link| link.cancel.is_cancelled()) {
            return;
        }
        if let Some(longest) = active.values().min_by_key(|link| link.since)
            && longest.since.elapsed() >= self.settings.turn
        {
            longest.cancel.cancel();
        }
    }

    async fn attempt(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        sighting: &Sighting,
        connecting: &Semaphore,
        cancel: &CancellationToken,
    ) -> Result<(), RadioError> {
        let connection = {
            let Ok(_permit) = connecting.acquire().await else { return Ok(()) };
            if cancel.is_cancelled() {
                return Ok(());
            }
            let bond = match self.bonds.get(hardware) {
                Some(bond) => bond,
                None => self.pair(adapter, hardware, sighting).await?,
            };
            self.context.board.device(hardware, |device| device.link = LinkState::Connecting);
            match self.radio.connect(adapter, sighting, &bond).await {
                Ok(connection) => connection,
                Err(error @ (RadioError::Refused(_) | RadioError::StaleBond))
                    if nonce(sighting).is_some() =>
                {
                    // It has been reset and somebody opened its window: pair again at the next sighting.
                    tracing::info!(%hardware, %error, "the wearable does not know us any more");
                    self.forget(hardware);
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        };
        session::run(&self.context, hardware.clone(), connection, cancel).await
    }

    async fn pair(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        sighting: &Sighting,
    ) -> Result<super::Bond, RadioError> {
        let (Some(nonce), Some(secret)) = (nonce(sighting), self.wearables.get(hardware)) else {
            return Err(RadioError::WindowClosed);
        };
        let passkey = secret.passkey(nonce);
        let provider = Box::new(move || -> BoxFuture<'static, Option<u32>> {
            Box::pin(std::future::ready(Some(passkey)))
        });
        self.context.board.device(hardware, |device| device.link = LinkState::Pairing);
        let bond = self.radio.pair(adapter, sighting, Agreement::Passkey(provider)).await?;
        tracing::info!(%hardware, "paired");
        self.bonds
            .put(hardware, bond.clone())
            .map_err(|error| RadioError::Adapter(format!("bonds: {error}")))?;
        Ok(bond)
    }

    fn forget(&self, hardware: &HardwareId) {
        if let Err(error) = self.bonds.remove(hardware) {
            tracing::warn!(%hardware, %error, "the bond stays in the file");
        }
    }

    fn ended(
        &self,
        peer: &mut Peer,
        hardware: &HardwareId,
        result: &Result<(), RadioError>,
        lasted: Duration,
    ) {
        peer.served = Some(Instant::now());
        peer.sighting = None;
        peer.failures =
            if lasted >= GOOD_LINK || result.is_ok() { 0 } else { peer.failures.saturating_add(1) };
        let most = self.settings.backoff_most;
        let pause = self.settings.backoff.saturating_mul(1 << peer.failures.min(16)).min(most);
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        peer.not_before = Some(Instant::now() + jittered);
        match result {
            Ok(()) => tracing::info!(%hardware, "link closed"),
            Err(error) => tracing::info!(%hardware, %error, retry_in = ?jittered, "link ended"),
        }
        self.context.board.device(hardware, |device| {
            device.link = LinkState::Away;
            device.trouble = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        });
    }
}

/// The nonce of its pairing window, while it is open.
fn nonce(sighting: &Sighting) -> Option<&[u8]> {
    match &sighting.offer {
        Some(Offer::Label { nonce }) => Some(nonce),
        _ => None,
    }
}

fn lock(taken: &Mutex<HashSet<HardwareId>>) -> std::sync::MutexGuard<'_, HashSet<HardwareId>> {
    taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
