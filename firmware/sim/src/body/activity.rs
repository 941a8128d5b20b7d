//! What the wearer does: sleep by the clock, bouts of rest, chores, walking and exercise by day.
//!
//! Sleep is placed by a circadian phase of the wearer's own (Borbély's two-process model, reduced to its timing:
//! Borbély 1982, Human Neurobiology 1:195). Bout lengths are exponential, with means as adults' accelerometry shows
//! them: minutes for walking, tens of minutes for sitting (Chastin and Granat 2010, Gait & Posture 31:82).

use std::f64::consts::TAU;

use super::STEP_S;
use crate::noise::{Noise, relax};

const DAY_S: f64 = 86_400.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bout {
    Asleep,
    Sitting,
    Chores,
    Walking,
    Exercise,
}

impl Bout {
    const fn intensity(self) -> f64 {
        match self {
            Self::Asleep => 0.0,
            Self::Sitting => 0.05,
            Self::Chores => 0.22,
            Self::Walking => 0.5,
            Self::Exercise => 0.9,
        }
    }

    const fn mean_s(self) -> f64 {
        match self {
            Self::Asleep => 3_600.0,
            Self::Sitting => 900.0,
            Self::Chores => 240.0,
            Self::Walking => 180.0,
            Self::Exercise => 600.0,
        }
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Activity {
    noise: Noise,
    offset_s: f64,
    bed_s: f64,
    rise_s: f64,
    bout: Bout,
    left_s: f64,
    intensity: f64,
    local_s: f64,
}

impl Activity {
    pub(super) fn new(seed: u64, utc_offset_min: i32, start_us: i64) -> Self {
        let mut noise = Noise::new(seed, "activity");
        let bed_s = noise.between(22.0, 24.0) * 3_600.0;
        let rise_s = noise.between(6.0, 7.5) * 3_600.0;
        let mut activity = Self {
            noise,
            offset_s: f64::from(utc_offset_min) * 60.0,
            bed_s,
            rise_s,
            bout: Bout::Sitting,
            left_s: 300.0,
            intensity: Bout::Sitting.intensity(),
            local_s: 0.0,
        };
        activity.set_time(start_us);
        if activity.is_night() {
            activity.bout = Bout::Asleep;
            activity.intensity = 0.0;
        }
        activity
    }

    fn set_time(&mut self, utc_us: i64) {
        self.local_s = (utc_us as f64 / 1e6 + self.offset_s).rem_euclid(DAY_S);
    }

    fn is_night(&self) -> bool {
        self.local_s >= self.bed_s || self.local_s < self.rise_s
    }

    pub(super) fn step(&mut self, utc_us: i64) {
        self.set_time(utc_us);
        self.left_s -= STEP_S;
        let overslept = self.bout == Bout::Asleep && !self.is_night();
        if self.left_s <= 0.0 || overslept {
            self.bout = self.next_bout();
            self.left_s = -self.bout.mean_s() * (1.0 - self.noise.unit()).ln();
        }
        relax(&mut self.intensity, self.bout.intensity(), 12.0, STEP_S);
    }

    fn next_bout(&mut self) -> Bout {
        let draw = self.noise.unit();
        if self.is_night() {
            // Short awakenings are part of every night.
            return if self.bout == Bout::Asleep && draw < 0.5 { Bout::Chores } else { Bout::Asleep };
        }
        match draw {
            d if d < 0.5 => Bout::Sitting,
            d if d < 0.78 => Bout::Chores,
            d if d < 0.97 => Bout::Walking,
            _ => Bout::Exercise,
        }
    }

    /// 0 asleep, 1 running.
    pub fn intensity(&self) -> f64 {
        self.intensity
    }

    /// Whether the wearer sleeps.
    pub fn is_asleep(&self) -> bool {
        self.bout == Bout::Asleep
    }

    /// The circadian wave: 1 in the late afternoon, −1 at four in the morning.
    pub fn circadian(&self) -> f64 {
        -(TAU * (self.local_s / DAY_S - 4.0 / 24.0)).cos()
    }
}
