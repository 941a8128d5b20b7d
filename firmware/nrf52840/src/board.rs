//! Which pin is what. The wiring is that of the nRF52840-DK, or of the nRF52-DK (nRF52832), with breakout boards
//! (docs/guide-firmware.md has the table).

use embassy_nrf::gpio::{AnyPin, Input, Level, Output, OutputDrive, Pull};
use embassy_nrf::mode::Async;
use embassy_nrf::peripherals::{RNG, TWISPI0};
#[cfg(feature = "external")]
use embassy_nrf::qspi::{self, Qspi};
use embassy_nrf::rng::Rng;
use embassy_nrf::saadc::{self, ChannelConfig, Saadc};
use embassy_nrf::twim::{self, Twim};
use embassy_nrf::wdt::{self, Watchdog, WatchdogHandle};
use embassy_nrf::{Peri, bind_interrupts, config, peripherals, rng};
use nrf_sdc::mpsl;
use static_cell::StaticCell;

bind_interrupts!(pub struct Irqs {
    RNG => rng::InterruptHandler<RNG>;
    SAADC => saadc::InterruptHandler;
    TWISPI0 => twim::InterruptHandler<TWISPI0>;
    EGU0_SWI0 => mpsl::LowPrioInterruptHandler;
    CLOCK_POWER => mpsl::ClockInterruptHandler;
    RADIO => mpsl::HighPrioInterruptHandler;
    TIMER0 => mpsl::HighPrioInterruptHandler;
    RTC0 => mpsl::HighPrioInterruptHandler;
});

#[cfg(feature = "external")]
bind_interrupts!(struct FlashIrqs {
    QSPI => qspi::InterruptHandler<peripherals::QSPI>;
});

/// A loop that has not turned for so long is stuck, seconds.
const WATCHDOG_S: u32 = 8;
/// Cycles of the low-frequency clock a second.
const LOW_FREQUENCY: u32 = 32_768;
/// Microvolts of the cell for a count: gain 1/6 of a reference of 0.6 V, 12 bits. The nRF52840 takes a fifth of its supply at
/// VDDH, an nRF52832 half of the cell by two resistors.
pub const BATTERY_UV: u32 = 3_600_000 * if cfg!(feature = "nrf52832") { 2 } else { 5 } / 4_096;
/// Bytes of the MX25R6435F.
#[cfg(feature = "external")]
pub const EXTERNAL_FLASH: u32 = 8 << 20;

/// The peripherals, each with its pins.
pub struct Board {
    #[cfg(feature = "external")]
    pub qspi: Qspi<'static>,
    /// MAX30102, both TMP117, LSM6DSO.
    pub i2c: Twim<'static>,
    /// Electrodes, and the battery.
    pub converter: Saadc<'static, 2>,
    /// Which feedback resistor is switched in: two bits of a place in `skin::RANGES_KOHM`.
    pub ranges: [Output<'static>; 2],
    /// Active low.
    pub led: Output<'static>,
    /// The haptic motor's driver.
    pub motor: Output<'static>,
    /// Active low.
    pub button: Input<'static>,
    pub rng: Rng<'static, Async>,
    /// The chip's own flash.
    pub nvmc: Peri<'static, peripherals::NVMC>,
    pub watchdog: WatchdogHandle,
    pub radio: RadioParts,
}

/// What the controller needs for itself.
pub struct RadioParts {
    pub mpsl: mpsl::Peripherals<'static>,
    pub sdc: nrf_sdc::Peripherals<'static>,
}

impl Board {
    /// Takes the peripherals. Once.
    pub fn take() -> Self {
        static COPIES: StaticCell<[u8; 64]> = StaticCell::new();
        let mut settings = config::Config::default();
        settings.hfclk_source = config::HfclkSource::ExternalXtal;
        settings.lfclk_source = config::LfclkSource::ExternalXtal;
        settings.dcdc.reg1 = true;
        // Priorities 0, 1 and 4 are the controller's.
        settings.gpiote_interrupt_priority = embassy_nrf::interrupt::Priority::P5;
        settings.time_interrupt_priority = embassy_nrf::interrupt::Priority::P5;
        if cfg!(feature = "locked") {
            // Whoever opens the case reads neither the key nor the frames: the port opens by erasing everything.
            settings.debug = config::Debug::Disallowed;
        }
        let p = embassy_nrf::init(settings);
        #[cfg(feature = "external")]
        let qspi = {
            let mut flash = qspi::Config::default();
            flash.capacity = EXTERNAL_FLASH;
            // MX25R6435F: 10 µs into deep power down, 35 µs out of it; in units of 16 µs.
            flash.deep_power_down = Some(qspi::DeepPowerDownConfig { enter_time: 1, exit_time: 3 });
            Qspi::new(p.QSPI, FlashIrqs, p.P0_19, p.P0_17, p.P0_20, p.P0_21, p.P0_22, p.P0_23, flash)
        };
        let mut bus = twim::Config::default();
        bus.frequency = twim::Frequency::K400;
        #[cfg(feature = "nrf52840")]
        let (battery, ranges, led, motor, button) =
            (saadc::VddhDiv5Input, [p.P1_01.into(), p.P1_02.into()], p.P0_13, p.P1_03, p.P0_11);
        #[cfg(feature = "nrf52832")]
        let (battery, ranges, led, motor, button) =
            (p.P0_03, [p.P0_28.into(), p.P0_29.into()], p.P0_17, p.P0_30, p.P0_13);
        let battery = ChannelConfig::single_ended(battery);
        let electrodes = ChannelConfig::single_ended(p.P0_02);
        Self {
            #[cfg(feature = "external")]
            qspi,
            i2c: Twim::new(p.TWISPI0, Irqs, p.P0_26, p.P0_27, bus, COPIES.init([0; 64])),
            converter: Saadc::new(p.SAADC, Irqs, saadc::Config::default(), [electrodes, battery]),
            ranges: ranges
                .map(|pin: Peri<'static, AnyPin>| Output::new(pin, Level::Low, OutputDrive::Standard)),
            led: Output::new(led, Level::High, OutputDrive::Standard),
            motor: Output::new(motor, Level::Low, OutputDrive::Standard),
            button: Input::new(button, Pull::Up),
            rng: Rng::new(p.RNG, Irqs),
            nvmc: p.NVMC,
            watchdog: watchdog(p.WDT),
            radio: RadioParts {
                mpsl: mpsl::Peripherals::new(p.RTC0, p.TIMER0, p.TEMP, p.PPI_CH19, p.PPI_CH30, p.PPI_CH31),
                sdc: nrf_sdc::Peripherals::new(
                    p.PPI_CH17, p.PPI_CH18, p.PPI_CH20, p.PPI_CH21, p.PPI_CH22, p.PPI_CH23, p.PPI_CH24,
                    p.PPI_CH25, p.PPI_CH26, p.PPI_CH27, p.PPI_CH28, p.PPI_CH29,
                ),
            },
        }
    }
}

/// The bootloader has started it with the same settings; it runs through the swap of images and through sleep.
fn watchdog(wdt: Peri<'static, peripherals::WDT>) -> WatchdogHandle {
    let mut settings = wdt::Config::default();
    settings.timeout_ticks = WATCHDOG_S * LOW_FREQUENCY;
    settings.action_during_sleep = wdt::SleepConfig::Run;
    settings.action_during_debug_halt = wdt::HaltConfig::Pause;
    let Ok((_, [handle])) = Watchdog::try_new(wdt, settings) else {
        // It was started by another bootloader.
        panic!("the watchdog runs with other settings");
    };
    handle
}

/// Words 0 to 2 of the chip's customer registers: the 10 bytes of the label's secret, written in production. None on a
/// chip that has no label.
pub fn label_secret() -> Option<[u8; 10]> {
    let words: [u32; 3] = core::array::from_fn(|place| embassy_nrf::pac::UICR.customer(place).read());
    if words == [u32::MAX; 3] {
        return None;
    }
    let mut secret = [0; 10];
    for (place, byte) in secret.iter_mut().enumerate() {
        *byte = words[place / 4].to_le_bytes()[place % 4];
    }
    Some(secret)
}

/// The 64-bit number that the maker of the chip gave it.
pub fn factory_id() -> u64 {
    let ficr = embassy_nrf::pac::FICR;
    u64::from(ficr.deviceid(0).read()) | u64::from(ficr.deviceid(1).read()) << 32
}

/// Off, until the button or the charger.
pub fn power_off() -> ! {
    embassy_nrf::pac::POWER.systemoff().write(|off| off.set_systemoff(true));
    loop {
        cortex_m::asm::wfe();
    }
}
