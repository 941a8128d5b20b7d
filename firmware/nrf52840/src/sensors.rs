//! Raw readings of the four sensors on the bus, the electrodes and the battery.
//!
//! The MAX30102 has a driver on crates.io. Those for the LSM6DSO and the TMP117 that are there turn counts into floats
//! and know no queue in the sensor; the few registers that are needed are here, by the data sheets' names.

use core::cell::RefCell;

use embassy_nrf::gpio::Output;
use embassy_nrf::saadc::Saadc;
use embassy_nrf::twim::{self, Twim};
use embassy_time::{Duration, Instant};
use embedded_hal::i2c::I2c;
use embedded_hal_bus::i2c::RefCellDevice;
use kinara_firmware_app::acquisition::{Acquisition, percent_of};
use kinara_firmware_app::presence::{News, Presence};
use kinara_protocol::frame::{Sensor, Ticks};
use max3010x::{Led, LedPulseWidth, Max3010x, SamplingRate, TimeSlot, marker};

type Bus = RefCellDevice<'static, Twim<'static>>;
type BusError = twim::Error;
type Light = Max3010x<Bus, marker::ic::Max30102, marker::mode::MultiLed>;

/// How often readings are taken: the MAX30102's queue holds 320 ms of them.
pub const EVERY: Duration = Duration::from_millis(250);
const TURNS_A_SECOND: u64 = 4;
/// The battery, in turns: five minutes.
const BATTERY_TURNS: u64 = 300 * TURNS_A_SECOND;
/// The infrared LED's current: 6.2 mA, in steps of 0.2 mA.
const LED_CURRENT: u8 = 31;

/// Addresses on the bus.
const SKIN: u8 = 0x48;
const AMBIENT: u8 = 0x49;
const MOTION: u8 = 0x6b;

/// The sensors on the bus that answer or do not; the places of [`Sensors::presence`].
const ON_THE_BUS: [Sensor; 3] = [Sensor::LIGHT, Sensor::MOTION, Sensor::TEMPERATURE];
const OF_LIGHT: usize = 0;
const OF_MOTION: usize = 1;
const OF_TEMPERATURE: usize = 2;

/// What is to be told of them after a turn.
pub type Told = heapless::Vec<(Sensor, News), { ON_THE_BUS.len() }>;

/// A sensor that did not answer; its readings are missing, the others go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silent;

impl From<BusError> for Silent {
    fn from(_: BusError) -> Self {
        Self
    }
}

impl From<max3010x::Error<BusError>> for Silent {
    fn from(_: max3010x::Error<BusError>) -> Self {
        Self
    }
}

/// All of them.
pub struct Sensors {
    shared: &'static RefCell<Twim<'static>>,
    bus: Bus,
    /// While it is set up.
    light: Option<Light>,
    lit: bool,
    presence: [Presence; ON_THE_BUS.len()],
    converter: Saadc<'static, 2>,
    ranges: [Output<'static>; 2],
    turn: u64,
}

impl Sensors {
    /// All of them, none asked yet: each is set up when its turn comes, and one that does not answer is absent until it does.
    pub fn new(
        bus: &'static RefCell<Twim<'static>>,
        converter: Saadc<'static, 2>,
        ranges: [Output<'static>; 2],
    ) -> Self {
        Self {
            shared: bus,
            bus: RefCellDevice::new(bus),
            light: None,
            lit: true,
            presence: [const { Presence::new() }; ON_THE_BUS.len()],
            converter,
            ranges,
            turn: 0,
        }
    }

    fn start_light(&mut self) -> Result<(), Silent> {
        let mut light = Max3010x::new_max30102(RefCellDevice::new(self.shared));
        light.reset()?;
        let mut light = light.into_multi_led().map_err(|_| Silent)?;
        light.set_sampling_rate(SamplingRate::Sps100)?;
        light.set_pulse_width(LedPulseWidth::Pw411)?;
        light.set_pulse_amplitude(Led::Led2, LED_CURRENT)?;
        light.set_led_time_slots([
            TimeSlot::Led2,
            TimeSlot::Disabled,
            TimeSlot::Disabled,
            TimeSlot::Disabled,
        ])?;
        light.enable_fifo_rollover()?;
        light.clear_fifo()?;
        (self.light, self.lit) = (Some(light), true);
        Ok(())
    }

    /// 26 Hz at ±4 g in low power, into its queue.
    fn start_motion(&mut self) -> Result<(), Silent> {
        const CTRL1_XL: u8 = 0x10;
        const CTRL6_C: u8 = 0x15;
        const FIFO_CTRL3: u8 = 0x09;
        const FIFO_CTRL4: u8 = 0x0a;
        for (register, value) in [
            (CTRL6_C, 0b0001_0000),    // XL_HM_MODE: no high performance
            (CTRL1_XL, 0b0010_1000),   // ODR 26 Hz, ±4 g
            (FIFO_CTRL3, 0b0000_0010), // accelerometer at 26 Hz, no gyroscope
            (FIFO_CTRL4, 0b0000_0110), // continuous
        ] {
            self.bus.write(MOTION, &[register, value])?;
        }
        Ok(())
    }

    /// Takes what has come since the last turn. Call it each [`EVERY`].
    pub async fn turn(&mut self, acquisition: &RefCell<Acquisition>) -> Told {
        let now = Instant::now();
        let at = Ticks(now.as_millis());
        let mut told = Told::new();
        // A sensor that is silent leaves a gap, which is told; the watchdog is for loops.
        told.extend(self.ask(OF_LIGHT, at, acquisition));
        told.extend(self.ask(OF_MOTION, at, acquisition));
        let mut counts = [0; 2];
        self.converter.sample(&mut counts).await;
        let range = acquisition.borrow_mut().conductance(at, counts[0].max(0).cast_unsigned());
        for (bit, pin) in self.ranges.iter_mut().enumerate() {
            pin.set_level((range >> bit & 1 == 1).into());
        }
        if self.turn.is_multiple_of(TURNS_A_SECOND) {
            told.extend(self.ask(OF_TEMPERATURE, at, acquisition));
        }
        if self.turn.is_multiple_of(BATTERY_TURNS) {
            let millivolts = u32::from(counts[1].max(0).cast_unsigned()) * crate::board::BATTERY_UV / 1_000;
            acquisition.borrow_mut().battery(at, percent_of(millivolts));
        }
        self.turn += 1;
        told
    }

    /// Whether a second has passed with the last turn.
    pub fn second_is_over(&self) -> bool {
        self.turn.is_multiple_of(TURNS_A_SECOND)
    }

    /// Everything that draws current, off.
    pub fn stop(&mut self) {
        const CTRL1_XL: u8 = 0x10;
        const TMP117_CONFIGURATION: u8 = 0x01;
        // MOD = 01: shutdown.
        const SHUTDOWN: [u8; 2] = [0b0000_0100, 0];
        // Whoever does not answer is off already.
        self.darken();
        let _ = self.bus.write(MOTION, &[CTRL1_XL, 0]);
        for sensor in [SKIN, AMBIENT] {
            let _ = self.bus.write(sensor, &[TMP117_CONFIGURATION, SHUTDOWN[0], SHUTDOWN[1]]);
        }
    }

    /// Asks one of them, if it is due; gives what is to be told of it.
    fn ask(&mut self, place: usize, at: Ticks, acquisition: &RefCell<Acquisition>) -> Option<(Sensor, News)> {
        if !self.presence[place].is_due(at) {
            return None;
        }
        let answer = match place {
            OF_LIGHT if !acquisition.borrow().wants_light(at) => {
                self.darken();
                return None;
            }
            OF_LIGHT => self.light(at, acquisition),
            OF_MOTION => self.motion(at, acquisition),
            _ => self.temperatures(at, acquisition),
        };
        let news = self.presence[place].asked(at, answer.is_ok())?;
        Some((ON_THE_BUS[place], news))
    }

    fn darken(&mut self) {
        if let Some(light) = self.light.as_mut().filter(|_| self.lit) {
            // If it does not answer, that shows when it is wanted again.
            let _ = light.shutdown();
        }
        self.lit = false;
    }

    fn light(&mut self, at: Ticks, acquisition: &RefCell<Acquisition>) -> Result<(), Silent> {
        /// As many as the sensor's queue holds.
        const QUEUE: usize = 32;
        const SAMPLE_MS: u64 = 10;
        if !self.presence[OF_LIGHT].is_set_up() {
            self.start_light()?;
        }
        let Some(light) = &mut self.light else { return Err(Silent) };
        if !self.lit {
            light.wake_up()?;
            light.clear_fifo()?;
            self.lit = true;
        }
        let mut counts = [0; QUEUE];
        let read = usize::from(light.read_fifo(&mut counts)?);
        let mut acquisition = acquisition.borrow_mut();
        for (place, infrared) in counts[..read].iter().enumerate() {
            let before = (read - 1 - place) as u64 * SAMPLE_MS;
            acquisition.light(Ticks(at.0.saturating_sub(before)), *infrared);
        }
        Ok(())
    }

    fn motion(&mut self, at: Ticks, acquisition: &RefCell<Acquisition>) -> Result<(), Silent> {
        const FIFO_STATUS1: u8 = 0x3a;
        const FIFO_DATA_OUT_TAG: u8 = 0x78;
        /// The tag of an acceleration, in the upper five bits.
        const ACCELERATION: u8 = 0x02;
        /// More than come in a turn: the rest comes with the next.
        const MOST: u16 = 16;
        const SAMPLE_MS: u64 = 1_000 / 26;
        if !self.presence[OF_MOTION].is_set_up() {
            self.start_motion()?;
        }
        let mut status = [0; 2];
        self.bus.write_read(MOTION, &[FIFO_STATUS1], &mut status)?;
        let waiting = (u16::from_le_bytes(status) & 0x3ff).min(MOST);
        for place in 0..waiting {
            let mut entry = [0; 7];
            self.bus.write_read(MOTION, &[FIFO_DATA_OUT_TAG], &mut entry)?;
            if entry[0] >> 3 != ACCELERATION {
                continue;
            }
            let axes = [1, 3, 5].map(|low| i16::from_le_bytes([entry[low], entry[low + 1]]));
            let before = u64::from(waiting - 1 - place) * SAMPLE_MS;
            acquisition.borrow_mut().acceleration(Ticks(at.0.saturating_sub(before)), axes);
        }
        Ok(())
    }

    /// They measure once a second by themselves, as they do after power-on.
    fn temperatures(&mut self, at: Ticks, acquisition: &RefCell<Acquisition>) -> Result<(), Silent> {
        const TEMP_RESULT: u8 = 0x00;
        let mut read = |sensor| -> Result<i16, Silent> {
            let mut register = [0; 2];
            self.bus.write_read(sensor, &[TEMP_RESULT], &mut register)?;
            Ok(i16::from_be_bytes(register))
        };
        let (skin, ambient) = (read(SKIN)?, read(AMBIENT)?);
        acquisition.borrow_mut().temperatures(at, skin, ambient);
        Ok(())
    }
}
