//! The application on this board, and the radio's view of it.

use core::cell::{Cell, RefCell};

use embassy_executor::Spawner;
use embassy_futures::join::join;
use embassy_nrf::gpio::{Input, Output};
use embassy_nrf::mode::Async;
use embassy_nrf::rng::Rng;
use embassy_nrf::twim::Twim;
use embassy_nrf::wdt::WatchdogHandle;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Instant, Ticker, Timer};
use kinara_firmware_app::acquisition::{Acquisition, Level};
use kinara_firmware_app::app::{App, DeviceIdentity, Recovered, Settings};
use kinara_firmware_app::factory;
use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_firmware_app::restarts;
#[cfg(feature = "external")]
use kinara_firmware_app::update::{Ask, Updater};
use kinara_firmware_ble::controls::{Command, Controls};
use kinara_firmware_ble::pairing::{Pairing, Proof};
use kinara_firmware_ble::radio::{self, Radio, Resources};
use kinara_firmware_ble::service::Nameplate;
use kinara_firmware_ble::startup::Privacy;
use kinara_firmware_unit::{Platform, now};
#[cfg(feature = "external")]
use kinara_protocol::control::Outcome;
use kinara_protocol::frame::ResetReason;
use kinara_protocol::label::LabelSecret;
use nrf_sdc::SoftdeviceController;
use rand_core::RngCore;
use static_cell::StaticCell;

use crate::board::{self, Board};
use crate::flash::{Chip, Memories, Region};
#[cfg(feature = "external")]
use crate::install;
use crate::key::Random;
use crate::sensors::{self, Sensors};
use crate::vault::BoardVault;
use crate::version::{VERSION, VERSION_TEXT};
use crate::{controller, fault};

/// How often the application's own timers are looked at.
const STEP: Duration = Duration::from_millis(250);
/// A private address serves for a quarter of an hour, as the standard recommends.
const ADDRESS_LIFE: Duration = Duration::from_secs(900);
/// A reset that was asked for waits until its reply has gone.
const RESET_PAUSE: Duration = Duration::from_millis(500);
/// Flashes of the lamp that show which wearable it is, and how long each is.
const FLASHES: u32 = 10;
const FLASH: Duration = Duration::from_millis(150);
/// A button that is held so long while the wearable starts erases everything of its wearer.
const FACTORY_RESET: Duration = Duration::from_secs(10);
/// A button's contacts settle.
const BOUNCE: Duration = Duration::from_millis(30);
/// The watchdog is fed so often, if all loops have turned.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// What blocks a wearable is its sensors' bus, so after the watchdog measuring waits longer each time, at most so long.
const BUS_PAUSE: Duration = Duration::from_secs(10);

/// What of the board the application reaches.
struct Panel {
    #[cfg(feature = "external")]
    updater: RefCell<Updater<Region>>,
    show: Signal<NoopRawMutex, ()>,
    reset_at: Cell<Option<Instant>>,
    turned: Cell<[bool; 2]>,
}

type Unit = kinara_firmware_unit::Unit<Region, Panel>;

/// The places of [`Panel::turned`].
const MEASURES: usize = 0;
const STEPS: usize = 1;

type Bonds = Pairing<Memories, Random>;

/// Starts everything, what hands over readings before what takes them. On a board that takes updates it stays until this
/// image has proved itself.
pub async fn run(board: Board, spawner: Spawner) {
    static FLASH_CHIP: StaticCell<RefCell<Chip>> = StaticCell::new();
    static BUS: StaticCell<RefCell<Twim<'static>>> = StaticCell::new();
    static NOISE: StaticCell<Rng<'static, Async>> = StaticCell::new();
    static CONTROLS: StaticCell<Controls> = StaticCell::new();
    static UNIT: StaticCell<Unit> = StaticCell::new();
    static RESOURCES: StaticCell<Resources> = StaticCell::new();
    #[cfg(feature = "external")]
    let mut qspi = board.qspi;
    let Board { i2c, converter, ranges, led, motor, button, mut rng, mut nvmc, mut watchdog, radio, .. } =
        board;
    let mut random = Random::from_noise(&mut rng);
    let (reason, faults) = fault::count_start();
    let pause = Duration::from_millis(restarts::pause_ms(faults));
    let erases = is_held(&button, FACTORY_RESET, || watchdog.pet()).await;
    if restarts::pauses_first(reason) && !erases {
        rest(pause, || watchdog.pet()).await;
    }
    let mut vault = BoardVault {
        nvmc: nvmc.reborrow(),
        rng: &mut rng,
        watchdog: &mut watchdog,
        #[cfg(feature = "external")]
        qspi: &mut qspi,
    };
    let key = factory::key_of(&mut vault, erases).expect("the flash answers");
    #[cfg(feature = "external")]
    let chip = Chip::new(qspi, key);
    #[cfg(not(feature = "external"))]
    let layer = controller::start_layer(radio.mpsl, spawner);
    #[cfg(not(feature = "external"))]
    let chip = Chip::new(layer, nvmc, key);
    let flash = &*FLASH_CHIP.init(RefCell::new(chip));
    #[cfg(feature = "external")]
    let updater = {
        let mut updater = install::updater(Region::slot(flash));
        install::take_over(&mut updater, nvmc.reborrow(), &mut watchdog);
        updater
    };
    #[cfg(feature = "external")]
    let layer = controller::start_layer(radio.mpsl, spawner);
    let entropy = [random.next_u32(), random.next_u32()];
    let panel = Panel {
        #[cfg(feature = "external")]
        updater: RefCell::new(updater),
        show: Signal::new(),
        reset_at: Cell::new(None),
        turned: Cell::new([false; 2]),
    };
    let app = start_app(boot(flash, reason, entropy));
    app.borrow_mut().remember_starts(fault::starts());
    let unit = &*UNIT.init(Unit::new(app, start_acquisition(), panel));
    // Without a label nobody can know the passkey: such a board measures, and pairs with nobody.
    let secret = board::label_secret().unwrap_or_else(|| {
        let mut drawn = [0; 10];
        random.fill_bytes(&mut drawn);
        drawn
    });
    let pairing = start_pairing(flash, random, secret);
    let controls = &*CONTROLS.init(Controls::new());
    let controller = controller::start(radio.sdc, NOISE.init(rng), layer);
    // A task each: futures that are joined are made on the stack, and it would have to be as large as all of them.
    let radio = air(unit, pairing, controls, controller, RESOURCES.init(Resources::new()));
    spawner.spawn(radio.expect("spawned once"));
    // What blocks a wearable is its sensors' bus: meanwhile it can be reached.
    // Not for long: if something else does, measuring is all that is left.
    let waits = if reason == ResetReason::Watchdog { pause.min(BUS_PAUSE) } else { Duration::MIN };
    let sensors = Sensors::new(BUS.init(RefCell::new(i2c)), converter, ranges);
    spawner.spawn(measure(unit, sensors, waits).expect("spawned once"));
    spawner.spawn(step(unit, controls).expect("spawned once"));
    spawner.spawn(serve_person(unit, controls, button, led, motor).expect("spawned once"));
    spawner.spawn(feed(unit, watchdog).expect("spawned once"));
    #[cfg(feature = "external")]
    install::prove(layer, nvmc).await;
}

#[inline(never)]
fn start_pairing(flash: &'static RefCell<Chip>, random: Random, secret: [u8; 10]) -> &'static RefCell<Bonds> {
    static PAIRING: StaticCell<RefCell<Bonds>> = StaticCell::new();
    let proof = Proof::Label(LabelSecret::from_bytes(secret));
    let pairing = Pairing::open(Memories::new(flash), random, proof, Instant::now());
    PAIRING.init(RefCell::new(pairing.unwrap_or_else(|_| panic!("the radio's memory cannot be read"))))
}

/// Not inlined, nor what comes before and after it: their stack is not to be [`run`]'s, which lasts.
#[inline(never)]
fn boot(flash: &'static RefCell<Chip>, reason: ResetReason, entropy: [u32; 2]) -> Recovered<Region> {
    let settings = Settings {
        identity: DeviceIdentity { factory_id: board::factory_id(), firmware: VERSION },
        plan: Plan::default(),
        frame_age: FrameAge::default(),
    };
    let booted = Recovered::boot(Region::frames(flash), settings, reason, entropy, now(), &mut ());
    booted.unwrap_or_else(|_| panic!("the flash answers"))
}

#[inline(never)]
fn start_app(recovered: Recovered<Region>) -> &'static RefCell<App<Region>> {
    static APP: StaticCell<RefCell<App<Region>>> = StaticCell::new();
    APP.init_with(|| RefCell::new(App::new(recovered)))
}

#[inline(never)]
fn start_acquisition() -> &'static RefCell<Acquisition> {
    static ACQUISITION: StaticCell<RefCell<Acquisition>> = StaticCell::new();
    ACQUISITION.init_with(|| RefCell::new(Acquisition::new()))
}

async fn is_held(button: &Input<'static>, long: Duration, mut alive: impl FnMut()) -> bool {
    let until = Instant::now() + long;
    while button.is_low() {
        if Instant::now() >= until {
            return true;
        }
        alive();
        Timer::after(BOUNCE).await;
    }
    false
}

/// Waits; `alive` is called often enough for a watchdog.
async fn rest(pause: Duration, mut alive: impl FnMut()) {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        alive();
        Timer::after(HEARTBEAT.min(until.saturating_duration_since(Instant::now()))).await;
    }
}

/// The radio. A controller that fails has no life but a restart.
#[embassy_executor::task]
async fn air(
    unit: &'static Unit,
    pairing: &'static RefCell<Bonds>,
    controls: &'static Controls,
    controller: SoftdeviceController<'static>,
    resources: &'static mut Resources,
) {
    let mut serial = heapless::String::<16>::new();
    let mut name = heapless::String::<8>::new();
    for place in (0..16).rev() {
        let digit = (board::factory_id() >> (4 * place)) as u32 & 0xf;
        let digit = char::from_digit(digit, 16).expect("four bits are a digit");
        serial.push(digit).expect("sixteen digits");
    }
    name.push_str("K-").and_then(|()| name.push_str(&serial[12..])).expect("six characters");
    let settings = radio::Settings {
        nameplate: Nameplate { name: &name, serial: &serial, firmware: VERSION_TEXT },
        privacy: Privacy::Controller,
        address_life: ADDRESS_LIFE,
    };
    let radio = Radio { wearable: unit, pairing, controls, settings: &settings };
    let Err(_) = radio::run(controller, resources, &radio).await;
    panic!("the controller failed");
}

/// Takes readings and makes samples of them, after so long.
#[embassy_executor::task]
async fn measure(unit: &'static Unit, mut sensors: Sensors, waits: Duration) {
    rest(waits, || unit.platform.has_turned(MEASURES)).await;
    let began = Instant::now();
    let mut is_healthy = false;
    let mut turns = Ticker::every(sensors::EVERY);
    loop {
        turns.next().await;
        fault::look_at_supply();
        let told = sensors.turn(unit.acquisition).await;
        let mut acquisition = unit.acquisition.borrow_mut();
        let mut app = unit.app.borrow_mut();
        for (sensor, news) in told {
            app.tell_of(sensor, news, now(), &mut ()).expect("the flash answers");
        }
        if sensors.second_is_over() {
            let worn = acquisition.second(now());
            app.set_worn(worn, now(), &mut ()).expect("the flash answers");
        }
        acquisition.due(now(), |channel, at, value| {
            app.sample(channel, at, &[value], &mut ()).expect("the flash answers");
        });
        if acquisition.level() == Level::Stopped {
            acquisition.rest(|channel, at, value| {
                app.sample(channel, at, &[value], &mut ()).expect("the flash answers");
            });
            app.shut_down(&mut ()).expect("the flash answers");
            sensors.stop();
            board::power_off();
        }
        unit.platform.has_turned(MEASURES);
        if !is_healthy && began.elapsed() >= Duration::from_millis(restarts::HEALTHY_MS) {
            is_healthy = true;
            fault::is_healthy();
        }
    }
}

/// The application's timers, and what it asks for.
#[embassy_executor::task]
async fn step(unit: &'static Unit, controls: &'static Controls) {
    let mut turns = Ticker::every(STEP);
    loop {
        turns.next().await;
        unit.app.borrow_mut().step(now(), &mut ()).expect("the flash answers");
        unit.take_effects();
        if unit.platform.reset_at.get().is_some_and(|at| Instant::now() >= at) {
            unit.app.borrow_mut().shut_down(&mut ()).expect("the flash answers");
            cortex_m::peripheral::SCB::sys_reset();
        }
        controls.ring();
        unit.platform.has_turned(STEPS);
    }
}

/// The button, the lamp and the motor.
#[embassy_executor::task]
async fn serve_person(
    unit: &'static Unit,
    controls: &'static Controls,
    mut button: Input<'static>,
    mut led: Output<'static>,
    mut motor: Output<'static>,
) {
    let pressed = async {
        loop {
            button.wait_for_falling_edge().await;
            Timer::after(BOUNCE).await;
            if button.is_low() {
                controls.give(Command::PressButton);
            }
        }
    };
    let shown = async {
        loop {
            unit.platform.show.wait().await;
            motor.set_high();
            for _ in 0..FLASHES {
                led.set_low();
                Timer::after(FLASH).await;
                led.set_high();
                motor.set_low();
                Timer::after(FLASH).await;
            }
        }
    };
    join(pressed, shown).await;
}

/// Feeds the watchdog while all loops turn.
#[embassy_executor::task]
async fn feed(unit: &'static Unit, mut watchdog: WatchdogHandle) {
    let mut turns = Ticker::every(HEARTBEAT);
    loop {
        watchdog.pet();
        turns.next().await;
        while unit.platform.turned.get() != [true; 2] {
            Timer::after(STEP).await;
        }
        unit.platform.turned.set([false; 2]);
    }
}

impl Panel {
    fn has_turned(&self, which: usize) {
        let mut turned = self.turned.get();
        turned[which] = true;
        self.turned.set(turned);
    }
}

impl Platform for Panel {
    fn identify(&self) {
        self.show.signal(());
    }

    fn reset_soon(&self) {
        self.reset_at.set(Some(Instant::now() + RESET_PAUSE));
    }

    #[cfg(feature = "external")]
    fn update(&self, ask: &Ask) -> (Outcome, bool) {
        self.updater.borrow_mut().answer(ask)
    }
}
