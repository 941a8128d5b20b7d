//! The application behind the radio, as the tasks of a wearable without an operating system share it: one thread, cells.
//! The same on the board and on the emulated processor.

#![no_std]

use core::cell::RefCell;

use embassy_time::Instant;
use kinara_firmware_app::acquisition::Acquisition;
use kinara_firmware_app::app::{App, Effect};
use kinara_firmware_app::flash::Flash;
use kinara_firmware_app::queue::Queue;
use kinara_firmware_app::update::Ask;
use kinara_firmware_ble::memory::Peer;
use kinara_firmware_ble::{BondRequest, Happening, Wearable};
use kinara_protocol::control::{Outcome, Refusal};
use kinara_protocol::frame::{MAX_FRAME, Ticks};
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::status::Status;
use kinara_protocol::vitals::Vitals;

/// What a board does for the application.
pub trait Platform {
    /// Shows a person which wearable this is.
    fn identify(&self);

    /// Resets, once a reply has had the time to go out.
    fn reset_soon(&self);

    /// Answers about an update, and tells whether a reset installs it. A board that takes none does not know the
    /// operation.
    fn update(&self, ask: &Ask) -> (Outcome, bool) {
        let _ = ask;
        (Outcome::Refused(Refusal::UnknownOperation), false)
    }

    /// Something happened on the air.
    fn happened(&self, happening: Happening) {
        let _ = happening;
    }
}

/// See the module's text. Its large parts live in places of their own.
pub struct Unit<F: 'static, P> {
    /// The application.
    pub app: &'static RefCell<App<F>>,
    /// What becomes of readings.
    pub acquisition: &'static RefCell<Acquisition>,
    /// The board.
    pub platform: P,
    requests: RefCell<Queue<BondRequest, 4>>,
}

/// The wearable's ticks: milliseconds since its start.
pub fn now() -> Ticks {
    Ticks(Instant::now().as_millis())
}

impl<F: Flash, P: Platform> Unit<F, P> {
    /// Puts them together.
    pub fn new(
        app: &'static RefCell<App<F>>,
        acquisition: &'static RefCell<Acquisition>,
        platform: P,
    ) -> Self {
        Self { app, acquisition, platform, requests: RefCell::new(Queue::new()) }
    }

    /// Does what the application asks for. Call it after whatever may have made it ask.
    pub fn take_effects(&self) {
        loop {
            let effect = self.app.borrow_mut().take_effect();
            let Some(effect) = effect else { return };
            let request = match effect {
                Effect::Identify => {
                    self.platform.identify();
                    continue;
                }
                Effect::Reset => {
                    self.platform.reset_soon();
                    continue;
                }
                Effect::Update { request, ask } => {
                    let (outcome, installs) = self.platform.update(&ask);
                    self.app.borrow_mut().reply(request, outcome);
                    if installs {
                        self.platform.reset_soon();
                    }
                    continue;
                }
                Effect::Admit { request, secret, lives_s } => BondRequest::Admit { request, secret, lives_s },
                Effect::Revoke { request, bond } => BondRequest::Revoke { request, bond },
            };
            // The application holds as many effects as fit here.
            let _ = self.requests.borrow_mut().push(request);
        }
    }
}

impl<F: Flash, P: Platform> Wearable for Unit<F, P> {
    fn connected(&self, _: Peer) {
        self.app.borrow_mut().connected();
    }

    fn disconnected(&self) {
        // Flash that fails shows with the next step, which does not go on without it.
        let _ = self.app.borrow_mut().disconnected();
    }

    fn subscribe(&self, characteristic: Characteristic, on: bool) {
        self.app.borrow_mut().subscribe(characteristic, on);
    }

    fn takes_requests(&self) -> bool {
        self.app.borrow().takes_requests()
    }

    fn write(&self, request: &[u8]) {
        self.app.borrow_mut().write(request, now(), &mut ());
        self.take_effects();
    }

    fn take_bond_request(&self) -> Option<BondRequest> {
        self.requests.borrow_mut().pop()
    }

    fn reply(&self, request: u16, outcome: Outcome) {
        self.app.borrow_mut().reply(request, outcome);
    }

    fn outgoing(&self, into: &mut [u8; MAX_FRAME]) -> Option<(Characteristic, usize)> {
        self.app.borrow_mut().outgoing(now(), into, &mut ()).ok().flatten()
    }

    fn status(&self) -> Option<Status> {
        self.app.borrow_mut().status(now()).ok()
    }

    fn vitals(&self) -> Vitals {
        self.app.borrow_mut().take_vitals()
    }

    /// It has no display: it is not asked.
    fn show_passkey(&self, _: Option<u32>) {}

    fn happened(&self, happening: Happening) {
        self.platform.happened(happening);
    }
}
