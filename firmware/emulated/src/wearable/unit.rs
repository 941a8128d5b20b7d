//! The application and its radio, with a recorded body.

use core::cell::RefCell;
use core::fmt::Write;

use bt_hci::controller::ExternalController;
use bt_hci_serial::SerialTransport;
use embassy_executor::Spawner;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_time::{Duration, Instant, Ticker};
use kinara_emulated::day::{self, Memory, PULSE};
use kinara_emulated::machine::{self, Out};
use kinara_firmware_app::acquisition::Acquisition;
use kinara_firmware_app::app::{App, DeviceIdentity, Recovered, Settings};
use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_firmware_app::signal::motion::ONE_G;
use kinara_firmware_ble::Happening;
use kinara_firmware_ble::controls::{Command, Controls};
use kinara_firmware_ble::memory::{MAX_IMAGE, Storage};
use kinara_firmware_ble::pairing::{Pairing, Proof};
use kinara_firmware_ble::radio::{self, Radio, Resources};
use kinara_firmware_ble::service::Nameplate;
use kinara_firmware_ble::startup::Privacy;
use kinara_firmware_unit::{Platform, now};
use kinara_protocol::frame::{ResetReason, Ticks};
use kinara_protocol::label::LabelSecret;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use static_cell::{ConstStaticCell, StaticCell};

use crate::serial::{Receiver, Sender};

const VERSION: [u8; 3] = [0, 1, 0];
const STEP: Duration = Duration::from_millis(250);
/// Frames are to come while a test waits.
const FRAME_AGE: FrameAge = FrameAge { live_ms: 1_000, stored_ms: 5_000 };
const ADDRESS_LIFE: Duration = Duration::from_secs(900);
/// Commands to the controller that are under way.
const SLOTS: usize = 8;

type Controller = ExternalController<SerialTransport<NoopRawMutex, Receiver, Sender>, SLOTS>;
type Unit = kinara_firmware_unit::Unit<Memory<'static>, Log>;
type Bonds = Pairing<Remembered, ChaCha12Rng>;

/// Tells what happens; there is nobody to blink at, and a reset ends the emulator.
struct Log;

impl Platform for Log {
    fn identify(&self) {
        let _ = writeln!(Out, "blinks");
    }

    fn reset_soon(&self) {
        machine::leave(0);
    }

    fn happened(&self, happening: Happening) {
        let told = match happening {
            Happening::Connected(_) => "link",
            Happening::Paired(_) => "paired",
            _ => return,
        };
        let _ = writeln!(Out, "{told}");
    }
}

/// What the radio remembers, for as long as the emulator runs.
struct Remembered {
    image: [u8; MAX_IMAGE],
    length: usize,
}

impl Storage for Remembered {
    type Error = core::convert::Infallible;

    fn load(&mut self, into: &mut [u8; MAX_IMAGE]) -> Result<usize, Self::Error> {
        *into = self.image;
        Ok(self.length)
    }

    fn save(&mut self, image: &[u8]) -> Result<(), Self::Error> {
        self.image[..image.len()].copy_from_slice(image);
        self.length = image.len();
        Ok(())
    }
}

/// Starts everything.
pub fn run(spawner: Spawner) {
    static UNIT: StaticCell<Unit> = StaticCell::new();
    static CONTROLS: StaticCell<Controls> = StaticCell::new();
    static RESOURCES: StaticCell<Resources> = StaticCell::new();
    let mut line = [0; 256];
    let mut words = machine::command_line(&mut line).unwrap_or_default().split(' ').skip(1);
    let factory_id = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
    let label: Option<LabelSecret> = words.next().and_then(|word| word.parse().ok());
    let (Some(factory_id), Some(label)) = (factory_id, label) else {
        panic!("the command line has a factory id and a label");
    };
    let mut random = ChaCha12Rng::seed_from_u64(factory_id ^ u64::from(machine::utc_s()));
    let unit = &*UNIT.init(Unit::new(start_app(factory_id, &mut random), start_acquisition(), Log));
    let pairing = start_pairing(random, label);
    let controls = &*CONTROLS.init(Controls::new());
    let radio = air(unit, pairing, controls, factory_id, RESOURCES.init(Resources::new()));
    spawner.spawn(radio.expect("spawned once"));
    spawner.spawn(measure(unit, controls).expect("spawned once"));
    // Somebody unpacks it, and presses its button.
    controls.give(Command::PressButton);
}

/// Not inlined, nor the next two: their stack is not to be that of whoever calls them, as on the board.
#[inline(never)]
fn start_app(factory_id: u64, random: &mut ChaCha12Rng) -> &'static RefCell<App<Memory<'static>>> {
    static FLASH: ConstStaticCell<[u8; day::FLASH]> = ConstStaticCell::new([0xff; day::FLASH]);
    static APP: StaticCell<RefCell<App<Memory<'static>>>> = StaticCell::new();
    let settings = Settings {
        identity: DeviceIdentity { factory_id, firmware: VERSION },
        plan: Plan::default(),
        frame_age: FRAME_AGE,
    };
    let entropy = [random.next_u32(), random.next_u32()];
    let flash = Memory(FLASH.take());
    let recovered = Recovered::boot(flash, settings, ResetReason::PowerOn, entropy, Ticks(0), &mut ());
    let recovered = recovered.unwrap_or_else(|_| panic!("memory answers"));
    APP.init_with(|| RefCell::new(App::new(recovered)))
}

#[inline(never)]
fn start_acquisition() -> &'static RefCell<Acquisition> {
    static ACQUISITION: StaticCell<RefCell<Acquisition>> = StaticCell::new();
    ACQUISITION.init_with(|| RefCell::new(Acquisition::new()))
}

#[inline(never)]
fn start_pairing(random: ChaCha12Rng, label: LabelSecret) -> &'static RefCell<Bonds> {
    static PAIRING: StaticCell<RefCell<Bonds>> = StaticCell::new();
    let memory = Remembered { image: [0; MAX_IMAGE], length: 0 };
    let pairing = Pairing::open(memory, random, Proof::Label(label), Instant::now());
    PAIRING.init(RefCell::new(pairing.unwrap_or_else(|_| panic!("nothing is remembered yet"))))
}

#[embassy_executor::task]
async fn air(
    unit: &'static Unit,
    pairing: &'static RefCell<Bonds>,
    controls: &'static Controls,
    factory_id: u64,
    resources: &'static mut Resources,
) {
    let (mut serial, mut name) = (heapless::String::<16>::new(), heapless::String::<8>::new());
    let _ = write!(serial, "{factory_id:016x}").and_then(|()| write!(name, "K-{:04x}", factory_id & 0xffff));
    let settings = radio::Settings {
        nameplate: Nameplate { name: &name, serial: &serial, firmware: "0.1.0" },
        privacy: Privacy::Controller,
        address_life: ADDRESS_LIFE,
    };
    let controller: Controller = ExternalController::new(SerialTransport::new(Receiver, Sender));
    let radio = Radio { wearable: unit, pairing, controls, settings: &settings };
    let Err(_) = radio::run(controller, resources, &radio).await;
    panic!("the controller failed");
}

/// Takes readings of a body that is a recording, and makes samples of them.
#[embassy_executor::task]
async fn measure(unit: &'static Unit, controls: &'static Controls) {
    let mut turns = Ticker::every(STEP);
    let mut pulse = PULSE.lines().skip(1).filter_map(|line| line.parse::<u32>().ok()).cycle();
    let mut measured_ms = 0;
    loop {
        turns.next().await;
        let at = now();
        let epoch = unit.app.borrow().epoch();
        let mut acquisition = unit.acquisition.borrow_mut();
        let mut app = unit.app.borrow_mut();
        while measured_ms + 10 <= at.0 {
            measured_ms += 10;
            if let Some(counts) = pulse.next() {
                acquisition.light(Ticks(measured_ms), 150_000 - 16 * counts);
            }
            if measured_ms % 40 == 0 {
                acquisition.acceleration(Ticks(measured_ms), [0, 0, ONE_G as i16]);
            }
            if measured_ms % 1_000 == 0 {
                acquisition.conductance(Ticks(measured_ms), 1_400);
                acquisition.temperatures(Ticks(measured_ms), 33 * 128, 24 * 128);
                let worn = acquisition.second(Ticks(measured_ms));
                app.set_worn(worn, at, &mut ()).expect("memory answers");
                let _ = writeln!(Out, "stack {}", machine::stack_used());
            }
        }
        acquisition.due(at, |channel, at, value| {
            let _ = writeln!(Out, "P {epoch} {} {} {value}", channel.0, at.0);
            app.sample(channel, at, &[value], &mut ()).expect("memory answers");
        });
        app.step(at, &mut ()).expect("memory answers");
        drop(app);
        unit.take_effects();
        controls.ring();
    }
}
