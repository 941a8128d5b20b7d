//! Motion: acceleration, and the activity counts that an actigraph makes of it.
//!
//! Counts integrate the deviation of acceleration from gravity over an epoch (proportional integration; Ancoli-Israel et
//! al. 2003, Sleep 26:342). Walking swings the trunk at about 1.8 steps a second.

use std::f64::consts::TAU;

use super::STEP_S;
use super::activity::Activity;
use crate::noise::{Noise, Wander};

/// Counts per second at full effort.
const FULL_COUNTS: f64 = 40.0;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Motion {
    noise: Noise,
    sway: Noise,
    pitch: Wander,
    roll: Wander,
    counts: f64,
}

impl Motion {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            noise: Noise::new(seed, "motion"),
            sway: Noise::new(seed, "sway"),
            pitch: Wander::new(0.35, 120.0, STEP_S),
            roll: Wander::new(0.25, 120.0, STEP_S),
            counts: 0.0,
        }
    }

    pub(super) fn step(&mut self, activity: &Activity, worn: bool) {
        self.pitch.step(&mut self.noise);
        self.roll.step(&mut self.noise);
        let jerk = (1.0 + 0.5 * self.noise.normal()).max(0.0);
        if worn {
            self.counts += FULL_COUNTS * activity.intensity() * jerk * STEP_S;
        }
    }

    pub(super) fn take_counts(&mut self) -> u32 {
        let whole = self.counts.floor();
        self.counts -= whole;
        whole as u32
    }

    pub(super) fn acceleration(&mut self, utc_us: i64, intensity: f64) -> [f64; 3] {
        let t = (utc_us % 3_600_000_000) as f64 / 1e6;
        let stride = TAU * 1.8 * t;
        let (pitch, roll) = (self.pitch.value(), self.roll.value());
        let mut shake = || 0.004 * self.sway.normal();
        [
            pitch.sin() + 0.25 * intensity * (stride * 0.5).sin() + shake(),
            -pitch.cos() * roll.cos() + 0.45 * intensity * stride.sin() + shake(),
            roll.sin() + 0.2 * intensity * (stride + 0.8).sin() + shake(),
        ]
    }
}
