//! The application on this board, and the radio's view of it.

use core::cell::{Cell, RefCell};

use embassy_executor::Spawner;
use embassy_futures::join::{join, join5};
use embassy_nrf::gpio::{Input, Output};
use embassy_nrf::mode::Async;
use embassy_nrf::rng::Rng;
use embassy_nrf::twim::Twim;
use embassy_nrf::wdt::WatchdogHandle;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Instant, Ticker, Timer};
use kinara_firmware_app::acquisition::{Acquisition, Level};
use kinara_firmware_app::app::{App, DeviceIdentity, Effect, Settings};
use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_firmware_app::queue::Queue;
use kinara_firmware_app::update::Updater;
use kinara_firmware_ble::controls::{Command, Controls};
use kinara_firmware_ble::memory::Peer;
use kinara_firmware_ble::pairing::{Pairing, Proof};
use kinara_firmware_ble::radio::{self, Radio, Resources};
use kinara_firmware_ble::service::Nameplate;
use kinara_firmware_ble::startup::Privacy;
use kinara_firmware_ble::{BondRequest, Happening, Wearable};
use kinara_protocol::control::Outcome;
use kinara_protocol::frame::{MAX_FRAME, Ticks};
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::label::LabelSecret;
use kinara_protocol::status::Status;
use kinara_protocol::vitals::Vitals;
use nrf_sdc::SoftdeviceController;
use rand_core::RngCore;
use static_cell::StaticCell;

use crate::board::{self, Board};
use crate::flash::{External, Memories, Region};
use crate::key::{self, Random};
use crate::sensors::{self, Sensors};
use crate::{controller, fault, install};

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

/// The application, as the loops and the radio share it.
struct Unit {
    app: RefCell<App<Region>>,
    acquisition: RefCell<Acquisition>,
    updater: RefCell<Updater<Region>>,
    requests: RefCell<Queue<BondRequest, 4>>,
    show: Signal<NoopRawMutex, ()>,
    reset_at: Cell<Option<Instant>>,
    turned: Cell<[bool; 2]>,
}

/// The places of [`Unit::turned`].
const MEASURES: usize = 0;
const STEPS: usize = 1;

fn now() -> Ticks {
    Ticks(Instant::now().as_millis())
}

/// Runs for ever.
pub async fn run(board: Board, spawner: Spawner) -> ! {
    static FLASH_CHIP: StaticCell<RefCell<External>> = StaticCell::new();
    static BUS: StaticCell<RefCell<Twim<'static>>> = StaticCell::new();
    static NOISE: StaticCell<Rng<'static, Async>> = StaticCell::new();
    static UNIT: StaticCell<Unit> = StaticCell::new();
    static RESOURCES: StaticCell<Resources> = StaticCell::new();
    let Board { qspi, i2c, converter, ranges, led, motor, button, mut rng, mut nvmc, mut watchdog, radio } =
        board;
    let reason = fault::reason();
    let key = key::of_device(nvmc.reborrow(), &mut rng);
    let mut random = Random::from_noise(&mut rng);
    let flash = &*FLASH_CHIP.init(RefCell::new(External::new(qspi, key)));
    if is_held(&button, FACTORY_RESET).await {
        flash.borrow_mut().erase_all(|| watchdog.pet()).expect("the flash chip answers");
    }
    let mut updater = install::updater(Region::slot(flash));
    install::take_over(&mut updater, nvmc.reborrow(), &mut watchdog);
    let settings = Settings {
        identity: DeviceIdentity { factory_id: board::factory_id(), firmware: install::VERSION },
        plan: Plan::default(),
        frame_age: FrameAge::default(),
    };
    let entropy = [random.next_u32(), random.next_u32()];
    let app = App::boot(Region::frames(flash), settings, reason, entropy, now(), &mut ());
    let unit = &*UNIT.init(Unit {
        app: RefCell::new(app.expect("the flash chip answers")),
        acquisition: RefCell::new(Acquisition::new()),
        updater: RefCell::new(updater),
        requests: RefCell::new(Queue::new()),
        show: Signal::new(),
        reset_at: Cell::new(None),
        turned: Cell::new([false; 2]),
    });
    // Without a label nobody can know the passkey: such a board measures, and pairs with nobody.
    let secret = board::label_secret().unwrap_or_else(|| {
        let mut drawn = [0; 10];
        random.fill_bytes(&mut drawn);
        drawn
    });
    let proof = Proof::Label(LabelSecret::from_bytes(secret));
    let pairing = Pairing::open(Memories::new(flash), random, proof, Instant::now());
    let pairing = RefCell::new(pairing.unwrap_or_else(|_| panic!("the radio's memory cannot be read")));
    let controls = Controls::new();
    let sensors = Sensors::start(BUS.init(RefCell::new(i2c)), converter, ranges).expect("the sensors answer");
    let (controller, layer) = controller::start(radio, NOISE.init(rng), spawner);
    let loops = join5(
        air(unit, &pairing, &controls, controller, RESOURCES.init(Resources::new())),
        measure(unit, sensors),
        step(unit, &controls),
        serve_person(unit, &controls, button, led, motor),
        feed(unit, watchdog),
    );
    join(loops, install::prove(layer, nvmc)).await;
    unreachable!("the loops do not end")
}

async fn is_held(button: &Input<'static>, long: Duration) -> bool {
    let until = Instant::now() + long;
    while button.is_low() {
        if Instant::now() >= until {
            return true;
        }
        Timer::after(BOUNCE).await;
    }
    false
}

/// The radio. A controller that fails has no life but a restart.
async fn air(
    unit: &'static Unit,
    pairing: &RefCell<Pairing<Memories, Random>>,
    controls: &Controls,
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
        nameplate: Nameplate { name: &name, serial: &serial, firmware: install::VERSION_TEXT },
        privacy: Privacy::Controller,
        address_life: ADDRESS_LIFE,
    };
    let radio = Radio { wearable: unit, pairing, controls, settings: &settings };
    let Err(_) = radio::run(controller, resources, &radio).await;
    panic!("the controller failed");
}

/// Takes readings and makes samples of them.
async fn measure(unit: &Unit, mut sensors: Sensors) {
    let mut turns = Ticker::every(sensors::EVERY);
    loop {
        turns.next().await;
        sensors.turn(&unit.acquisition).await;
        let mut acquisition = unit.acquisition.borrow_mut();
        let mut app = unit.app.borrow_mut();
        if sensors.second_is_over() {
            let worn = acquisition.second(now());
            app.set_worn(worn, now(), &mut ()).expect("the flash chip answers");
        }
        acquisition.due(now(), |channel, at, value| {
            app.sample(channel, at, &[value], &mut ()).expect("the flash chip answers");
        });
        if acquisition.level() == Level::Stopped {
            acquisition.rest(|channel, at, value| {
                app.sample(channel, at, &[value], &mut ()).expect("the flash chip answers");
            });
            app.shut_down(&mut ()).expect("the flash chip answers");
            sensors.stop();
            board::power_off();
        }
        unit.has_turned(MEASURES);
    }
}

/// The application's timers, and what it asks for.
async fn step(unit: &Unit, controls: &Controls) {
    let mut turns = Ticker::every(STEP);
    loop {
        turns.next().await;
        unit.app.borrow_mut().step(now(), &mut ()).expect("the flash chip answers");
        unit.take_effects();
        if unit.reset_at.get().is_some_and(|at| Instant::now() >= at) {
            unit.app.borrow_mut().shut_down(&mut ()).expect("the flash chip answers");
            cortex_m::peripheral::SCB::sys_reset();
        }
        controls.ring();
        unit.has_turned(STEPS);
    }
}

/// The button, the lamp and the motor.
async fn serve_person(
    unit: &Unit,
    controls: &Controls,
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
            unit.show.wait().await;
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
async fn feed(unit: &Unit, mut watchdog: WatchdogHandle) {
    let mut turns = Ticker::every(HEARTBEAT);
    loop {
        watchdog.pet();
        turns.next().await;
        while unit.turned.get() != [true; 2] {
            Timer::after(STEP).await;
        }
        unit.turned.set([false; 2]);
    }
}

impl Unit {
    fn has_turned(&self, which: usize) {
        let mut turned = self.turned.get();
        turned[which] = true;
        self.turned.set(turned);
    }

    fn take_effects(&self) {
        loop {
            let effect = self.app.borrow_mut().take_effect();
            let Some(effect) = effect else { return };
            let request = match effect {
                Effect::Identify => {
                    self.show.signal(());
                    continue;
                }
                Effect::Reset => {
                    self.reset_at.set(Some(Instant::now() + RESET_PAUSE));
                    continue;
                }
                Effect::Update { request, ask } => {
                    let (outcome, installs) = self.updater.borrow_mut().answer(&ask);
                    self.app.borrow_mut().reply(request, outcome);
                    if installs {
                        self.reset_at.set(Some(Instant::now() + RESET_PAUSE));
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

impl Wearable for Unit {
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

    fn happened(&self, _: Happening) {}
}
