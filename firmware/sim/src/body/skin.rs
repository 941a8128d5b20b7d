//! Temperatures: the skin under the wearable and the air beside it.
//!
//! Skin of the trunk lies between 32 and 35 °C, warmer in the evening and in sleep, when the body gives off heat
//! (Kräuchi and Wirz-Justice 1994, Am J Physiol 267:R819), cooler when sweat evaporates. Off the skin the sensor goes
//! to the air's temperature within minutes.

use super::STEP_S;
use super::activity::Activity;
use crate::noise::{Noise, Wander, relax};

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Skin {
    noise: Noise,
    base_c: f64,
    room_c: f64,
    trunk_wander: Wander,
    room_wander: Wander,
    trunk_c: f64,
    ambient_c: f64,
}

impl Skin {
    pub(super) fn new(seed: u64) -> Self {
        let mut noise = Noise::new(seed, "skin");
        let base_c = noise.between(32.8, 34.2);
        let room_c = noise.between(21.0, 25.0);
        Self {
            noise,
            base_c,
            room_c,
            trunk_wander: Wander::new(0.2, 900.0, STEP_S),
            room_wander: Wander::new(0.5, 1_800.0, STEP_S),
            trunk_c: base_c,
            ambient_c: room_c + 2.5,
        }
    }

    pub(super) fn step(&mut self, activity: &Activity, flash_c: f64, worn: bool) {
        let room = self.room_c + self.room_wander.step(&mut self.noise);
        let wander = self.trunk_wander.step(&mut self.noise);
        let asleep = if activity.is_asleep() { 0.5 } else { 0.0 };
        let body = self.base_c + asleep - 0.9 * activity.intensity() + wander + flash_c;
        // Worn, the air beside the skin is warmed by it.
        let (skin, air, tau) = if worn { (body, room + 2.5, 20.0) } else { (room, room, 150.0) };
        relax(&mut self.trunk_c, skin, tau, STEP_S);
        relax(&mut self.ambient_c, air, 150.0, STEP_S);
    }

    pub(super) fn skin_c(&self) -> f64 {
        self.trunk_c
    }

    pub(super) fn ambient_c(&self) -> f64 {
        self.ambient_c
    }
}
