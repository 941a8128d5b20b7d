//! Wear and non-wear: now and then the wearable comes off for a shower or a charge.

use super::{STEP_S, STEP_US};
use crate::noise::Noise;

/// Times a day it comes off.
const BREAKS_PER_DAY: f64 = 3.0;
/// Half an hour in which people watch: it stays on.
const WATCHED_US: i64 = 1_800_000_000;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Wear {
    noise: Noise,
    watched_from_us: i64,
    off_until_us: i64,
    command: Option<bool>,
    worn: bool,
}

impl Wear {
    pub(super) fn new(seed: u64, start_us: i64, watched_from_us: i64) -> Self {
        Self {
            noise: Noise::new(seed, "wear"),
            watched_from_us,
            off_until_us: start_us - STEP_US,
            command: None,
            worn: true,
        }
    }

    pub(super) fn command(&mut self, worn: bool) {
        self.command = Some(worn);
        self.worn = worn;
    }

    pub(super) fn step(&mut self, now_us: i64) {
        let starts = self.noise.happens(BREAKS_PER_DAY / 86_400.0, STEP_S);
        let length_us = self.noise.between(600e6, 2_400e6) as i64;
        let watched = self.watched_from_us..self.watched_from_us + WATCHED_US;
        if starts && now_us > self.off_until_us && !watched.contains(&now_us) {
            self.off_until_us = now_us + length_us;
            if now_us < watched.start {
                self.off_until_us = self.off_until_us.min(watched.start);
            }
        }
        self.worn = self.command.unwrap_or(now_us > self.off_until_us);
    }

    pub(super) fn is_worn(&self) -> bool {
        self.worn
    }
}
