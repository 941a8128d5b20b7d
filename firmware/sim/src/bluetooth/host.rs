//! The simulated wearable as the radio sees it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinara_clock::Clock;
use kinara_firmware_app::app::Effect;
use kinara_firmware_ble::controls::{Command, Controls};
use kinara_firmware_ble::memory::Peer;
use kinara_firmware_ble::pairing::MAX_ATTEMPTS;
use kinara_firmware_ble::{BondRequest, Happening};
use kinara_protocol::control::Outcome;
use kinara_protocol::frame::{MAX_FRAME, ResetReason};
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::status::Status;
use kinara_protocol::vitals::Vitals;
use serde_json::{Value, json};

use crate::commands;
use crate::wearable::{Wearable, WearableError};

/// A reset that a gateway asked for waits so long for its reply to be confirmed.
const RESET_PAUSE: Duration = Duration::from_millis(500);
/// How long nobody presses the button after the attempts to pair have been used up.
const BUTTON_PAUSE: Duration = Duration::from_mins(2);

/// See the module's text.
pub struct Host<'a> {
    wearable: RefCell<Wearable>,
    clock: Arc<dyn Clock>,
    controls: &'a Controls,
    has_display: bool,
    requests: RefCell<VecDeque<BondRequest>>,
    /// Advertising; not before there is a controller, and not while anybody is connected.
    is_waiting: Cell<bool>,
    gateway: Cell<Option<Peer>>,
    passkey: Cell<Option<u32>>,
    stalled_until: Cell<Option<Instant>>,
    reset_at: Cell<Option<Instant>>,
    failed_attempts: Cell<u8>,
    paused_until: Cell<Option<Instant>>,
    /// What the flash or the log refused while the radio asked; the next step ends the program with it.
    failure: RefCell<Option<WearableError>>,
}

/// An address as it is written for people.
pub fn written(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02X}")).join(":")
}

impl<'a> Host<'a> {
    /// A wearable that nobody is connected to.
    pub fn new(wearable: Wearable, clock: Arc<dyn Clock>, controls: &'a Controls, has_display: bool) -> Self {
        Self {
            wearable: RefCell::new(wearable),
            clock,
            controls,
            has_display,
            requests: RefCell::default(),
            is_waiting: Cell::new(false),
            gateway: Cell::new(None),
            passkey: Cell::new(None),
            stalled_until: Cell::new(None),
            reset_at: Cell::new(None),
            failed_attempts: Cell::new(0),
            paused_until: Cell::new(None),
            failure: RefCell::new(None),
        }
    }

    /// The factory id in hexadecimal.
    pub fn serial(&self) -> String {
        format!("{:016x}", self.wearable.borrow().factory_id())
    }

    /// The firmware's version, as the radio started with it.
    pub fn firmware(&self) -> String {
        self.wearable.borrow().firmware().map(|part| part.to_string()).join(".")
    }

    /// The running epoch.
    pub fn epoch(&self) -> String {
        self.wearable.borrow_mut().app().epoch().to_string()
    }

    /// Samples produced.
    pub fn produced(&self) -> u64 {
        self.wearable.borrow().produced()
    }

    /// The true time of the next step.
    pub fn next_step_us(&self) -> i64 {
        self.wearable.borrow().next_step_us()
    }

    /// Whether it advertises, and nobody is connected.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.get()
    }

    /// Whether a gateway has the link.
    pub fn is_linked(&self) -> bool {
        self.gateway.get().is_some()
    }

    /// Whether nobody presses the button at present.
    pub fn is_paused(&self) -> bool {
        self.paused_until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Measures and stores up to now, and does what is due.
    pub fn step(&self) -> Result<(), WearableError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let utc_us = self.clock.utc_us();
        let mut wearable = self.wearable.borrow_mut();
        if utc_us >= wearable.next_step_us() {
            wearable.run_to(utc_us)?;
        }
        wearable.flush()?;
        let failing = wearable.prove_firmware()?;
        drop(wearable);
        self.take_effects();
        let now = Instant::now();
        let asked = self.reset_at.get().is_some_and(|at| now >= at);
        if let Some(reason) = failing.or_else(|| asked.then_some(ResetReason::Requested)) {
            self.controls.give(Command::DropLink);
            self.reset_for(reason)?;
        }
        Ok(())
    }

    /// Resets: what is not in flash is gone.
    pub fn reset(&self) -> Result<(), WearableError> {
        self.reset_for(ResetReason::Requested)
    }

    fn reset_for(&self, reason: ResetReason) -> Result<(), WearableError> {
        self.reset_at.set(None);
        let mut wearable = self.wearable.borrow_mut();
        wearable.reset_for(self.clock.utc_us(), reason)?;
        eprintln!("reset; epoch {}", wearable.app().epoch());
        Ok(())
    }

    /// The program is about to end.
    pub fn shut_down(&self) -> Result<(), WearableError> {
        self.wearable.borrow_mut().shut_down()
    }

    /// Nothing goes either way for so long.
    pub fn stall(&self, lasts: Duration) {
        self.stalled_until.set(Some(Instant::now() + lasts));
    }

    /// The controller is gone.
    pub fn radio_lost(&self) {
        self.is_waiting.set(false);
    }

    /// See [`commands::obey_about_body`].
    pub fn obey_about_body(&self, command: &Value) -> Result<Option<Value>, WearableError> {
        commands::obey_about_body(&mut self.wearable.borrow_mut(), command, self.clock.utc_us())
    }

    /// See [`commands::report`]; and what the radio is at.
    pub fn report(&self) -> Result<Value, WearableError> {
        let mut report = commands::report(&mut self.wearable.borrow_mut(), self.clock.utc_us())?;
        report["linked"] = self.gateway.get().map(|gateway| written(gateway.address)).into();
        report["passkey"] = self.passkey.get().map(|passkey| format!("{passkey:06}")).into();
        Ok(report)
    }

    fn is_stalled(&self) -> bool {
        self.stalled_until.get().is_some_and(|until| Instant::now() < until)
    }

    fn take_effects(&self) {
        loop {
            let effect = self.wearable.borrow_mut().app().take_effect();
            let Some(effect) = effect else { return };
            match effect {
                Effect::Identify => eprintln!("blinks"),
                Effect::Reset => self.reset_at.set(Some(Instant::now() + RESET_PAUSE)),
                Effect::Admit { request, secret, lives_s } => {
                    self.requests.borrow_mut().push_back(BondRequest::Admit { request, secret, lives_s });
                }
                Effect::Revoke { request, bond } => {
                    self.requests.borrow_mut().push_back(BondRequest::Revoke { request, bond });
                }
                Effect::Update { request, ask } => {
                    let mut wearable = self.wearable.borrow_mut();
                    let (outcome, installs) = wearable.update(&ask);
                    wearable.app().reply(request, outcome);
                    if installs {
                        // What is measured until then is as much as a frame on its way may lose.
                        self.keep(wearable.shut_down());
                        self.reset_at.set(Some(Instant::now() + RESET_PAUSE));
                    }
                }
            }
        }
    }

    /// Keeps the first error for the next step; the radio has no use for it.
    fn keep<T>(&self, result: Result<T, impl Into<WearableError>>) -> Option<T> {
        result.map_err(|error| *self.failure.borrow_mut() = Some(error.into())).ok()
    }
}

impl kinara_firmware_ble::Wearable for Host<'_> {
    fn connected(&self, gateway: Peer) {
        self.gateway.set(Some(gateway));
        self.failed_attempts.set(0);
        self.wearable.borrow_mut().app().connected();
    }

    fn disconnected(&self) {
        self.gateway.set(None);
        let disconnected = self.wearable.borrow_mut().app().disconnected();
        self.keep(disconnected);
    }

    fn subscribe(&self, characteristic: Characteristic, on: bool) {
        self.wearable.borrow_mut().app().subscribe(characteristic, on);
    }

    fn takes_requests(&self) -> bool {
        !self.is_stalled() && self.wearable.borrow_mut().app().takes_requests()
    }

    fn write(&self, request: &[u8]) {
        let mut wearable = self.wearable.borrow_mut();
        let ticks = wearable.ticks(self.clock.utc_us());
        let (app, oracle) = wearable.app_and_oracle();
        app.write(request, ticks, oracle);
        drop(wearable);
        self.take_effects();
    }

    fn take_bond_request(&self) -> Option<BondRequest> {
        self.requests.borrow_mut().pop_front()
    }

    fn reply(&self, request: u16, outcome: Outcome) {
        self.wearable.borrow_mut().app().reply(request, outcome);
    }

    fn outgoing(&self, into: &mut [u8; MAX_FRAME]) -> Option<(Characteristic, usize)> {
        if self.is_stalled() {
            return None;
        }
        let mut wearable = self.wearable.borrow_mut();
        let ticks = wearable.ticks(self.clock.utc_us());
        let (app, oracle) = wearable.app_and_oracle();
        let outgoing = app.outgoing(ticks, into, oracle);
        self.keep(outgoing)?
    }

    fn status(&self) -> Option<Status> {
        let mut wearable = self.wearable.borrow_mut();
        let ticks = wearable.ticks(self.clock.utc_us());
        let status = wearable.app().status(ticks);
        self.keep(status)
    }

    fn vitals(&self) -> Vitals {
        self.wearable.borrow_mut().app().take_vitals()
    }

    fn show_passkey(&self, passkey: Option<u32>) {
        if self.has_display {
            self.passkey.set(passkey);
            println!("{}", json!({"passkey": passkey.map(|passkey| format!("{passkey:06}"))}));
        }
    }

    fn happened(&self, happening: Happening) {
        match happening {
            Happening::AttemptFailed => {
                self.failed_attempts.set(self.failed_attempts.get() + 1);
                if self.failed_attempts.get() >= MAX_ATTEMPTS {
                    self.failed_attempts.set(0);
                    self.paused_until.set(Some(Instant::now() + BUTTON_PAUSE));
                }
                eprintln!("radio: an attempt to pair failed");
            }
            Happening::Advertises { in_window } => {
                self.is_waiting.set(true);
                eprintln!("radio: advertises{}", if in_window { " in a window" } else { "" });
            }
            Happening::Connected(peer) => {
                self.is_waiting.set(false);
                eprintln!("radio: {} connected", written(peer.address));
            }
            Happening::Paired(peer) => eprintln!("radio: {} paired", written(peer.address)),
            Happening::NotStored => eprintln!("radio: a bond could not be stored, and does not count"),
            Happening::TurnedAway => eprintln!("radio: the link is ended from here"),
            Happening::Disconnected => eprintln!("radio: disconnected"),
        }
    }
}
