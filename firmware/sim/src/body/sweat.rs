//! Electrodermal activity: a tonic level, spontaneous responses on it, and what a hot flash adds.
//!
//! Tonic level 2 to 6 µS at the chest with a wander over minutes; spontaneous skin conductance responses 1 to 4 a minute
//! at rest, more with arousal, of 0.05 to 0.5 µS (Boucsein 2012, Electrodermal Activity, 2nd ed.; Dawson, Schell and
//! Filion 2007). A response is the difference of two exponentials (Alexander et al. 2005, J Neurosci Methods 146:116).

use super::STEP_S;
use super::activity::Activity;
use crate::noise::{Noise, Wander};

const RISE_S: f64 = 0.75;
const DECAY_S: f64 = 3.2;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Sweat {
    noise: Noise,
    tonic_us: f64,
    wander: Wander,
    decaying: f64,
    rising: f64,
    conductance_us: f64,
}

impl Sweat {
    pub(super) fn new(seed: u64) -> Self {
        let mut noise = Noise::new(seed, "sweat");
        let tonic_us = noise.between(2.2, 5.5);
        Self {
            tonic_us,
            wander: Wander::new(0.25, 400.0, STEP_S),
            decaying: 0.0,
            rising: 0.0,
            conductance_us: tonic_us,
            noise,
        }
    }

    pub(super) fn step(&mut self, activity: &Activity, flash_us: f64) {
        let per_minute = if activity.is_asleep() { 0.6 } else { 2.0 + 6.0 * activity.intensity() };
        if self.noise.happens(per_minute / 60.0, STEP_S) {
            let size = (0.12 * (0.7 * self.noise.normal()).exp()).min(0.6);
            // The peak of exp(-t/3.2) - exp(-t/0.75) is 0.56.
            self.decaying += size / 0.56;
            self.rising += size / 0.56;
        }
        self.decaying *= (-STEP_S / DECAY_S).exp();
        self.rising *= (-STEP_S / RISE_S).exp();
        let level = self.tonic_us * (1.0 + 0.12 * activity.circadian() + 0.25 * activity.intensity());
        self.conductance_us =
            (level + self.wander.step(&mut self.noise) + self.decaying - self.rising + flash_us).max(0.2);
    }

    pub(super) fn conductance_us(&self) -> f64 {
        self.conductance_us
    }
}
