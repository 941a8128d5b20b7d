//! The pairing window: opened by a person, for one device that the person chooses.
//!
//! The promise: nothing is paired but what was chosen in an open window; it closes by its time, by a person, with the
//! pairing, and after three wrong codes. Whoever watches sees what is near, what is being paired, and why it did not
//! work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kinara_clock::Clock;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{AdapterId, Offer, PasskeyProvider, RadioError, Sighting};
use crate::devices::How;
use crate::hardware::HardwareId;

/// What has not been heard for this long is not near any more.
const NEAR: Duration = Duration::from_secs(10);
/// Watchers hear at most this often what is near.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Wrong codes that close the window.
const WRONG_CODES: u8 = 3;
/// Devices that are shown at once; further ones would help nobody to choose.
const MOST_NEARBY: usize = 64;
/// How long a person may take to type the number that a wearable shows. The Security Manager gives up after 30 s
/// (Core 5.4, volume 3, part H, 3.4).
const TYPING: Duration = Duration::from_secs(28);

/// Something near that can be paired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nearby {
    /// By which it is chosen, while the window is open.
    pub key: String,
    /// The name it advertises.
    pub name: String,
    /// Signal strength.
    pub rssi_dbm: i16,
    /// How it can be paired.
    pub offer: Offer,
    /// Milliseconds since it was last heard.
    pub seen_ms_ago: u64,
    /// The adapter that hears it best.
    pub adapter: AdapterId,
}

/// Where the pairing window stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Window {
    /// Nothing can be paired.
    Closed {
        /// Why it closed, when no person closed it.
        why: Option<Why>,
    },
    /// Somebody looks for a device.
    Open {
        /// Boot time at which it closes, microseconds.
        until_boot_us: i64,
        /// What is near, nearest first.
        nearby: Vec<Nearby>,
        /// Codes that were not right; the third one closes the window.
        wrong_codes: u8,
    },
    /// A device is being paired.
    Pairing {
        /// Which.
        key: String,
        /// It shows a number that has to be typed now.
        wants_passkey: bool,
    },
    /// It is paired; the window has closed.
    Paired {
        /// Which it is.
        hardware: HardwareId,
    },
    /// The last attempt failed; the window stays open until its time, unless `why` closed it.
    Failed {
        /// Why.
        why: Why,
    },
}

/// Why a pairing did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It could not be reached.
    TooFar,
    /// The code is another wearable's, or has a typing error.
    WrongCode,
    /// Three wrong codes closed the window.
    TooManyWrongCodes,
    /// The adapter holds as many links as it can.
    OutOfSlots,
    /// The wearable's window, or ours, is closed.
    WindowClosed,
    /// One side has forgotten the bond.
    StaleBond,
    /// It did not prove what it is.
    NotAuthenticated,
    /// It offers a pairing number that was used before.
    NonceSpent,
    /// It says that it is a device that somebody wears.
    Replaces,
    /// Somebody took too long.
    Timeout,
    /// Nobody typed the number, or a person went back.
    GivenUp,
    /// The bond could not be kept, so none was made.
    NotKept,
    /// Anything else of the radio.
    Radio(String),
}

impl Why {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooFar => "too_far",
            Self::WrongCode => "wrong_code",
            Self::TooManyWrongCodes => "too_many_wrong_codes",
            Self::OutOfSlots => "out_of_slots",
            Self::WindowClosed => "window_closed",
            Self::StaleBond => "stale_bond",
            Self::NotAuthenticated => "not_authenticated",
            Self::NonceSpent => "nonce_spent",
            Self::Replaces => "replaces",
            Self::Timeout => "timeout",
            Self::GivenUp => "given_up",
            Self::NotKept => "not_kept",
            Self::Radio(_) => "radio",
        }
    }

    /// What happened, in a sentence.
    pub fn text(&self) -> String {
        match self {
            Self::TooFar => "The wearable is too far away.",
            Self::WrongCode => "The code is not this wearable's.",
            Self::TooManyWrongCodes => "Three wrong codes have closed the pairing window.",
            Self::OutOfSlots => "This box holds as many wearables at once as it can.",
            Self::WindowClosed => "The pairing window is closed.",
            Self::StaleBond => "The wearable and this box no longer know each other.",
            Self::NotAuthenticated => "The device did not prove that it is the wearable it says it is.",
            Self::NonceSpent => "The device offers a pairing number that was used before.",
            Self::Replaces => "The device says that it is one that somebody wears.",
            Self::Timeout => "The wearable did not answer in time.",
            Self::GivenUp => "Nobody typed the number that the wearable shows.",
            Self::NotKept => "This box cannot save a pairing now.",
            Self::Radio(text) => return format!("Bluetooth failed: {text}."),
        }
        .to_owned()
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::TooFar => "Bring it within two metres of the box and try again.",
            Self::WrongCode => "Compare the 16 characters on its label and choose the device again.",
            Self::TooManyWrongCodes => {
                "Check that the label belongs to this wearable, then open the window again."
            }
            Self::OutOfSlots => "Forget a wearable that is no longer used, or put up another box.",
            Self::WindowClosed => "Press the wearable's button, open the window here, and try again.",
            Self::StaleBond => "Choose \"forget\" for this wearable, then pair it again.",
            Self::NotAuthenticated => {
                "It was not paired. If it is really yours, bring only this one near and try again; \
                 otherwise tell the clinic's administrator."
            }
            Self::NonceSpent => "Press the wearable's button again, and choose it again.",
            Self::Replaces => {
                "It was not paired. If it was reset, or replaces that one, take that one back from its wearer first, \
                 then pair it."
            }
            Self::Timeout => "Bring it nearer, press its button again, and try again.",
            Self::GivenUp => "Start again and type the six digits within half a minute.",
            Self::NotKept => "Nothing was paired. Its disk may be full: run `kinaractl doctor` on the box.",
            Self::Radio(_) => "Try again; if it stays, run `kinaractl doctor` on the box.",
        }
    }
}

impl From<&RadioError> for Why {
    fn from(error: &RadioError) -> Self {
        match error {
            RadioError::WrongCode => Self::WrongCode,
            RadioError::TooFar | RadioError::Weak | RadioError::Gone(_) => Self::TooFar,
            RadioError::OutOfSlots(_) => Self::OutOfSlots,
            RadioError::WindowClosed => Self::WindowClosed,
            RadioError::NotAuthenticated(_) => Self::NotAuthenticated,
            RadioError::StaleBond => Self::StaleBond,
            RadioError::Timeout(_) => Self::Timeout,
            RadioError::NonceSpent => Self::NonceSpent,
            RadioError::Replaces(_) => Self::Replaces,
            RadioError::NotKept(_) => Self::NotKept,
            RadioError::Refused(_)
            | RadioError::Busy(_)
            | RadioError::Pausing
            | RadioError::Adapter(_)
            | RadioError::Nonsense(_) => Self::Radio(error.to_string()),
        }
    }
}

/// What is to be paired, for the adapter that hears it.
#[derive(Debug)]
pub struct Chosen {
    /// What was heard of it last.
    pub sighting: Sighting,
    /// How.
    pub how: How,
    /// The passkey, or none for [`How::JustWorks`].
    pub passkey: Option<Passkey>,
    /// A person went back, or the window closed.
    pub cancel: CancellationToken,
    /// How it ended.
    pub reply: oneshot::Sender<Outcome>,
}

/// Who was paired, and the address of the adapter that it knows this box by.
pub type Outcome = Result<(HardwareId, [u8; 6]), RadioError>;

/// Where the passkey of a pairing comes from.
#[derive(Debug)]
pub enum Passkey {
    /// It is known.
    Known(u32),
    /// A person types it, when it is asked for.
    Typed(PairingWindow),
}

impl Passkey {
    /// For the transport.
    pub fn provider(self) -> PasskeyProvider {
        Box::new(move || -> BoxFuture<'static, Option<u32>> {
            match self {
                Self::Known(passkey) => Box::pin(std::future::ready(Some(passkey))),
                Self::Typed(window) => Box::pin(async move {
                    let typed = window.ask_passkey()?;
                    tokio::time::timeout(TYPING, typed).await.ok()?.ok()
                }),
            }
        })
    }
}

/// Why nothing was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBegun {
    /// No window is open.
    NotOpen,
    /// Another pairing is under way.
    Busy,
    /// It has not been heard lately.
    NotNear,
}

#[derive(Debug)]
struct Heard {
    sighting: Sighting,
    adapter: AdapterId,
    at_boot_us: i64,
}

#[derive(Debug)]
struct Pairing {
    key: String,
    cancel: CancellationToken,
    passkey: Option<oneshot::Sender<u32>>,
}

#[derive(Debug, Default)]
struct State {
    open_until_us: Option<i64>,
    wrong_codes: u8,
    heard: HashMap<String, Heard>,
    pairing: Option<Pairing>,
    told_us: i64,
    adapters: HashMap<AdapterId, mpsc::Sender<Chosen>>,
}

/// The window itself; cheap to clone.
#[derive(Debug, Clone)]
pub struct PairingWindow {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
    shown: Arc<watch::Sender<Window>>,
}

impl PairingWindow {
    /// A closed one.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let shown = Arc::new(watch::channel(Window::Closed { why: None }).0);
        Self { clock, state: Arc::default(), shown }
    }

    /// Where it stands.
    pub fn watch(&self) -> watch::Receiver<Window> {
        self.shown.subscribe()
    }

    /// Opens it, or lets an open one last from now on. What was near before counts no more.
    pub fn open(&self, lasts: Duration) -> Result<(), NotBegun> {
        let mut state = self.lock();
        if state.pairing.is_some() {
            return Err(NotBegun::Busy);
        }
        let now = self.clock.boottime_us();
        if state.open_until_us.is_none() {
            state.heard.clear();
            state.wrong_codes = 0;
        }
        state.open_until_us = Some(now + lasts.as_micros() as i64);
        self.tell(&mut state, now);
        Ok(())
    }

    /// Closes it and ends the pairing that is under way.
    pub fn close(&self, why: Option<Why>) {
        let mut state = self.lock();
        if state.open_until_us.take().is_none() && state.pairing.is_none() {
            return;
        }
        if let Some(pairing) = state.pairing.take() {
            pairing.cancel.cancel();
        }
        state.heard.clear();
        self.shown.send_replace(Window::Closed { why });
    }

    /// Whether anything may be paired now.
    pub fn is_open(&self) -> bool {
        let now = self.clock.boottime_us();
        let state = self.lock();
        state.open_until_us.is_some_and(|until| now < until) || state.pairing.is_some()
    }

    /// An adapter that pairs what is chosen among what it hears.
    pub fn join(&self, adapter: &AdapterId, chosen: mpsc::Sender<Chosen>) {
        self.lock().adapters.insert(adapter.clone(), chosen);
    }

    /// The adapter has gone, and with it what it heard.
    pub fn leave(&self, adapter: &AdapterId) {
        let mut state = self.lock();
        state.adapters.remove(adapter);
        state.heard.retain(|_, heard| heard.adapter != *adapter);
    }

    /// Something that can be paired was heard.
    pub fn note(&self, adapter: &AdapterId, sighting: &Sighting) {
        let mut state = self.lock();
        if state.open_until_us.is_none() || sighting.offer.is_none() {
            return;
        }
        let now = self.clock.boottime_us();
        let key = key_of(sighting);
        if let Some(known) = state.heard.get(&key) {
            let fresh = now - known.at_boot_us < TELL_EVERY.as_micros() as i64;
            // Two adapters hear it: the nearer one pairs.
            if known.adapter != *adapter && fresh && known.sighting.rssi_dbm >= sighting.rssi_dbm {
                return;
            }
        } else if state.heard.len() >= MOST_NEARBY {
            return;
        }
        let heard = Heard { sighting: sighting.clone(), adapter: adapter.clone(), at_boot_us: now };
        state.heard.insert(key, heard);
        self.tell_seldom(&mut state, now);
    }

    /// Closes it when its time has come, and tells watchers what is near.
    pub fn look_after(&self) {
        let mut state = self.lock();
        let now = self.clock.boottime_us();
        let Some(until) = state.open_until_us else { return };
        if now >= until && state.pairing.is_none() {
            state.open_until_us = None;
            state.heard.clear();
            self.shown.send_replace(Window::Closed { why: Some(Why::Timeout) });
            return;
        }
        state.heard.retain(|_, heard| now - heard.at_boot_us < NEAR.as_micros() as i64);
        self.tell_seldom(&mut state, now);
    }

    /// What is chosen by this key, as it was heard last.
    pub fn offer(&self, key: &str) -> Result<Sighting, NotBegun> {
        let state = self.lock();
        if state.open_until_us.is_none_or(|until| self.clock.boottime_us() >= until) {
            return Err(NotBegun::NotOpen);
        }
        state.heard.get(key).map(|heard| heard.sighting.clone()).ok_or(NotBegun::NotNear)
    }

    /// Begins to pair what was chosen; the adapter that hears it best does it.
    pub fn begin(
        &self,
        key: &str,
        how: How,
        passkey: impl FnOnce(&Sighting) -> Option<Passkey>,
    ) -> Result<oneshot::Receiver<Outcome>, NotBegun> {
        let sighting = self.offer(key)?;
        let passkey = passkey(&sighting);
        let mut state = self.lock();
        if state.pairing.is_some() {
            return Err(NotBegun::Busy);
        }
        let adapter = state.heard.get(key).map(|heard| heard.adapter.clone()).ok_or(NotBegun::NotNear)?;
        let cancel = CancellationToken::new();
        let (reply, answer) = oneshot::channel();
        let chosen = Chosen { sighting, how, passkey, cancel: cancel.clone(), reply };
        let sender = state.adapters.get(&adapter).ok_or(NotBegun::NotNear)?;
        // One place for one pairing at a time: it is free, or the adapter is on its way out.
        sender.try_send(chosen).map_err(|_| NotBegun::NotNear)?;
        state.pairing = Some(Pairing { key: key.to_owned(), cancel, passkey: None });
        self.shown.send_replace(Window::Pairing { key: key.to_owned(), wants_passkey: false });
        Ok(answer)
    }

    /// The pairing has ended. With success the window closes; a failure leaves it open, up to the third wrong code.
    pub fn ended(&self, result: &Result<HardwareId, Why>) {
        let mut state = self.lock();
        if state.pairing.take().is_none() {
            // The window was closed meanwhile, and has said so.
            return;
        }
        match result {
            Ok(hardware) => {
                state.open_until_us = None;
                state.heard.clear();
                self.shown.send_replace(Window::Paired { hardware: hardware.clone() });
            }
            Err(why) => {
                state.wrong_codes += u8::from(*why == Why::WrongCode);
                let now = self.clock.boottime_us();
                let closes = if state.wrong_codes >= WRONG_CODES {
                    Some(Why::TooManyWrongCodes)
                } else {
                    let over = state.open_until_us.is_none_or(|until| now >= until);
                    over.then(|| why.clone())
                };
                if let Some(why) = closes {
                    state.open_until_us = None;
                    state.heard.clear();
                    self.shown.send_replace(Window::Closed { why: Some(why) });
                } else {
                    // Its nonce has changed: what was heard before the attempt is of no use.
                    state.heard.clear();
                    state.told_us = now;
                    self.shown.send_replace(Window::Failed { why: why.clone() });
                }
            }
        }
    }

    /// The number that the wearable shows; false when none is asked for.
    pub fn type_passkey(&self, passkey: u32) -> bool {
        let mut state = self.lock();
        let Some(pairing) = &mut state.pairing else { return false };
        let Some(asked) = pairing.passkey.take() else { return false };
        let key = pairing.key.clone();
        self.shown.send_replace(Window::Pairing { key, wants_passkey: false });
        asked.send(passkey).is_ok()
    }

    fn ask_passkey(&self) -> Option<oneshot::Receiver<u32>> {
        let mut state = self.lock();
        let pairing = state.pairing.as_mut()?;
        let (sender, typed) = oneshot::channel();
        pairing.passkey = Some(sender);
        let key = pairing.key.clone();
        self.shown.send_replace(Window::Pairing { key, wants_passkey: true });
        Some(typed)
    }

    fn tell_seldom(&self, state: &mut State, now: i64) {
        if now - state.told_us >= TELL_EVERY.as_micros() as i64 {
            self.tell(state, now);
        }
    }

    /// Shows what is near. A failure stays until there is something to choose again.
    fn tell(&self, state: &mut State, now: i64) {
        let Some(until_boot_us) = state.open_until_us.filter(|_| state.pairing.is_none()) else { return };
        state.told_us = now;
        if state.heard.is_empty() && matches!(*self.shown.borrow(), Window::Failed { .. }) {
            return;
        }
        let mut nearby: Vec<Nearby> = state
            .heard
            .iter()
            .filter_map(|(key, heard)| {
                Some(Nearby {
                    key: key.clone(),
                    name: heard.sighting.name.clone(),
                    rssi_dbm: heard.sighting.rssi_dbm,
                    offer: heard.sighting.offer.clone()?,
                    seen_ms_ago: (now - heard.at_boot_us).unsigned_abs() / 1_000,
                    adapter: heard.adapter.clone(),
                })
            })
            .collect();
        nearby.sort_by(|a, b| b.rssi_dbm.cmp(&a.rssi_dbm).then_with(|| a.key.cmp(&b.key)));
        self.shown.send_replace(Window::Open { until_boot_us, nearby, wrong_codes: state.wrong_codes });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By what a device is chosen: its address, unreadable, since on the virtual air it is a path.
fn key_of(sighting: &Sighting) -> String {
    hex::encode(&Sha256::digest(sighting.address.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_clock::ManualClock;

    const MINUTE: Duration = Duration::from_mins(1);

    struct Bench {
        clock: Arc<ManualClock>,
        window: PairingWindow,
        chosen: mpsc::Receiver<Chosen>,
    }

    impl Bench {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(0, 1_000_000_000));
            let window = PairingWindow::new(clock.clone());
            let (sender, chosen) = mpsc::channel(1);
            window.join(&hci(0), sender);
            Self { clock, window, chosen }
        }

        fn shown(&self) -> Window {
            self.window.watch().borrow().clone()
        }

        fn attempt(&mut self, why: &Result<HardwareId, Why>) {
            self.window.note(&hci(0), &sighting(-50));
            let key = key_of(&sighting(-50));
            let _answer = self.window.begin(&key, How::Label, |_| Some(Passkey::Known(1))).unwrap();
            self.chosen.try_recv().unwrap();
            self.window.ended(why);
        }
    }

    fn hci(number: u8) -> AdapterId {
        AdapterId(format!("hci{number}"))
    }

    fn sighting(rssi_dbm: i16) -> Sighting {
        Sighting {
            address: "C0:00:00:00:00:01".to_owned(),
            hardware: None,
            name: "K-0001".to_owned(),
            rssi_dbm,
            offer: Some(Offer::Label { nonce: vec![1; 8] }),
            connectable: true,
        }
    }

    #[test]
    fn nothing_can_be_chosen_outside_an_open_window() {
        let bench = Bench::new();
        let key = key_of(&sighting(-50));
        bench.window.note(&hci(0), &sighting(-50));
        assert_eq!(bench.window.offer(&key), Err(NotBegun::NotOpen));
        bench.window.open(MINUTE).unwrap();
        assert_eq!(bench.window.offer(&key), Err(NotBegun::NotNear), "heard before the window");
        bench.window.note(&hci(0), &sighting(-50));
        assert!(bench.window.offer(&key).is_ok());
        bench.clock.advance_us(MINUTE.as_micros() as i64);
        assert_eq!(bench.window.offer(&key), Err(NotBegun::NotOpen));
        bench.window.look_after();
        assert_eq!(bench.shown(), Window::Closed { why: Some(Why::Timeout) });
    }

    #[test]
    fn three_wrong_codes_close_the_window_and_other_failures_do_not() {
        let mut bench = Bench::new();
        bench.window.open(MINUTE).unwrap();
        bench.attempt(&Err(Why::TooFar));
        for _ in 0..2 {
            bench.attempt(&Err(Why::WrongCode));
            assert_eq!(bench.shown(), Window::Failed { why: Why::WrongCode });
            assert!(bench.window.is_open());
        }
        bench.attempt(&Err(Why::WrongCode));
        assert_eq!(bench.shown(), Window::Closed { why: Some(Why::TooManyWrongCodes) });
        assert!(!bench.window.is_open());
        bench.window.open(MINUTE).unwrap();
        bench.attempt(&Err(Why::WrongCode));
        assert!(bench.window.is_open(), "a new window counts anew");
    }

    #[test]
    fn a_pairing_closes_the_window_behind_it() {
        let mut bench = Bench::new();
        bench.window.open(MINUTE).unwrap();
        bench.attempt(&Ok(HardwareId::kinara(1)));
        assert_eq!(bench.shown(), Window::Paired { hardware: HardwareId::kinara(1) });
        assert!(!bench.window.is_open());
    }

    #[test]
    fn one_device_at_a_time_is_paired_and_closing_the_window_ends_it() {
        let mut bench = Bench::new();
        bench.window.open(MINUTE).unwrap();
        bench.window.note(&hci(0), &sighting(-50));
        let key = key_of(&sighting(-50));
        let begin = |bench: &Bench| bench.window.begin(&key, How::Label, |_| Some(Passkey::Known(1)));
        let _answer = begin(&bench).unwrap();
        assert_eq!(begin(&bench).unwrap_err(), NotBegun::Busy);
        assert_eq!(bench.window.open(MINUTE), Err(NotBegun::Busy));
        bench.window.close(None);
        assert!(bench.chosen.try_recv().unwrap().cancel.is_cancelled());
        bench.window.ended(&Err(Why::GivenUp));
        assert_eq!(bench.shown(), Window::Closed { why: None });
    }

    #[test]
    fn the_adapter_that_hears_a_device_best_pairs_it() {
        let bench = Bench::new();
        bench.window.join(&hci(1), mpsc::channel(1).0);
        bench.window.open(MINUTE).unwrap();
        bench.window.note(&hci(0), &sighting(-40));
        bench.window.note(&hci(1), &sighting(-70));
        bench.clock.advance_us(600_000);
        bench.window.look_after();
        let Window::Open { nearby, .. } = bench.shown() else { panic!("{:?}", bench.shown()) };
        assert_eq!((nearby.len(), &nearby[0].adapter, nearby[0].rssi_dbm), (1, &hci(0), -40));
        bench.clock.advance_us(10_000_000);
        bench.window.look_after();
        let Window::Open { nearby, .. } = bench.shown() else { panic!("{:?}", bench.shown()) };
        assert!(nearby.is_empty(), "what is not heard is not near");
    }

    #[tokio::test]
    async fn a_displays_number_is_asked_for_when_the_transport_wants_it() {
        let bench = Bench::new();
        bench.window.open(MINUTE).unwrap();
        bench.window.note(&hci(0), &sighting(-50));
        let key = key_of(&sighting(-50));
        assert!(!bench.window.type_passkey(1), "nobody asks");
        let typed = Passkey::Typed(bench.window.clone());
        let _answer = bench.window.begin(&key, How::Display, |_| Some(Passkey::Known(0))).unwrap();
        let asking = tokio::spawn(typed.provider()());
        while bench.shown() != (Window::Pairing { key: key.clone(), wants_passkey: true }) {
            tokio::task::yield_now().await;
        }
        assert!(bench.window.type_passkey(123_456));
        assert_eq!(asking.await.unwrap(), Some(123_456));
        assert!(!bench.window.type_passkey(123_456), "once");
    }
}
