//! The simulated body. Seeded: the same seed, start and commands give the same signals.
//!
//! It lives on a grid of [`STEP_US`] of true time. Each organ is a module with the sources of its model:
//! [`activity`] drives [`heart`], [`sweat`] (electrodermal activity), [`skin`] (temperatures) and [`motion`];
//! [`hot_flash`] disturbs them; [`wear`] says whether there is skin under the sensors.

pub mod activity;
pub mod heart;
pub mod hot_flash;
pub mod motion;
pub mod skin;
pub mod sweat;
pub mod wear;

use crate::noise::{Noise, Wander};

use self::activity::Activity;
pub use self::heart::Beat;
use self::heart::Heart;
use self::hot_flash::HotFlashes;
use self::motion::Motion;
use self::skin::Skin;
use self::sweat::Sweat;
use self::wear::Wear;

/// The body's step in µs.
pub const STEP_US: i64 = 250_000;
/// The same in seconds.
pub const STEP_S: f64 = 0.25;

/// What a body is asked to be.
#[derive(Debug, Clone)]
pub struct BodySettings {
    /// Everything random comes from it.
    pub seed: u64,
    /// The wearer's offset from UTC, for day and night.
    pub utc_offset_min: i32,
    /// Mean time between hot flashes; none without.
    pub hot_flash_every_us: Option<i64>,
    /// When people begin to watch: the wearable stays on for half an hour from here.
    pub watched_from_us: i64,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Body {
    now_us: i64,
    activity: Activity,
    heart: Heart,
    sweat: Sweat,
    skin: Skin,
    motion: Motion,
    hot_flashes: HotFlashes,
    wear: Wear,
    oxygen: Wander,
    oxygen_base: f64,
    noise: Noise,
}

impl Body {
    /// A body that starts at a true time.
    pub fn new(settings: &BodySettings, start_us: i64) -> Self {
        let seed = settings.seed;
        let mut noise = Noise::new(seed, "body");
        let oxygen_base = noise.between(96.3, 98.2);
        Self {
            now_us: start_us,
            activity: Activity::new(seed, settings.utc_offset_min, start_us),
            heart: Heart::new(seed, start_us),
            sweat: Sweat::new(seed),
            skin: Skin::new(seed),
            motion: Motion::new(seed),
            hot_flashes: HotFlashes::new(seed, settings.hot_flash_every_us, settings.watched_from_us),
            wear: Wear::new(seed, start_us, settings.watched_from_us),
            oxygen: Wander::new(0.5, 120.0, STEP_S),
            oxygen_base,
            noise,
        }
    }

    /// The true time the body has reached.
    pub fn now_us(&self) -> i64 {
        self.now_us
    }

    /// Goes one step on.
    pub fn step(&mut self) {
        self.now_us += STEP_US;
        self.activity.step(self.now_us);
        self.hot_flashes.step(self.now_us);
        let flash = self.hot_flashes.response(self.now_us);
        self.wear.step(self.now_us);
        self.heart.step(self.now_us, &self.activity, flash.heart_rate_bpm);
        self.sweat.step(&self.activity, flash.conductance_us);
        self.skin.step(&self.activity, flash.skin_temperature_c, self.wear.is_worn());
        self.motion.step(&self.activity, self.wear.is_worn());
        self.oxygen.step(&mut self.noise);
    }

    /// A hot flash begins now.
    pub fn start_hot_flash(&mut self) {
        self.hot_flashes.start(self.now_us);
    }

    /// The wearable is put on or taken off by command, until the next command.
    pub fn set_worn(&mut self, worn: bool) {
        self.wear.command(worn);
    }

    /// Whether the wearable is worn.
    pub fn is_worn(&self) -> bool {
        self.wear.is_worn()
    }

    /// How much the wearer moves: 0 asleep, 1 running.
    pub fn intensity(&self) -> f64 {
        self.activity.intensity()
    }

    /// The next heart beat up to a true time, once.
    pub fn take_beat(&mut self, until_us: i64) -> Option<Beat> {
        self.heart.take_beat(until_us)
    }

    /// Mean heart rate over the last beats, bpm.
    pub fn heart_rate(&self) -> f64 {
        self.heart.rate_bpm()
    }

    /// Skin conductance, µS.
    pub fn conductance(&self) -> f64 {
        self.sweat.conductance_us()
    }

    /// Skin temperature under the wearable, °C.
    pub fn skin_temperature(&self) -> f64 {
        self.skin.skin_c()
    }

    /// Air beside the wearable, °C.
    pub fn ambient_temperature(&self) -> f64 {
        self.skin.ambient_c()
    }

    /// Oxygen saturation, %.
    pub fn oxygen_saturation(&self) -> f64 {
        (self.oxygen_base + self.oxygen.value() - 0.6 * self.activity.intensity()).min(100.0)
    }

    /// Activity counts since the last call.
    pub fn take_counts(&mut self) -> u32 {
        self.motion.take_counts()
    }

    /// Acceleration in g at a true time within the current step.
    pub fn acceleration(&mut self, utc_us: i64) -> [f64; 3] {
        self.motion.acceleration(utc_us, self.activity.intensity())
    }

    /// The pulse wave at a true time, 0 to 1.
    pub fn pulse(&self, utc_us: i64) -> f64 {
        self.heart.pulse(utc_us)
    }
}

#[cfg(test)]
mod tests;
