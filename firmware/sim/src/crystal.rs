//! The wearable's crystal: its milliseconds are not quite milliseconds.
//!
//! A 32 kHz crystal is off by a constant of up to ±40 ppm and follows the temperature by a little: here a slow wave of
//! at most half a ppm, well below the 5 ppm that the gateway allows between two time syncs.

use std::f64::consts::TAU;

use crate::noise::Noise;

/// The constant part a seed may draw, in ppm.
pub const MAX_DRIFT_PPM: f64 = 40.0;
const MAX_WANDER_PPM: f64 = 0.5;

/// Maps true time to ticks and back, for one boot.
#[derive(Debug, Clone)]
pub struct Crystal {
    boot_utc_us: i64,
    drift: f64,
    wander: f64,
    period_us: f64,
    phase: f64,
}

impl Crystal {
    /// The crystal of a seed, started at a true time. `drift_ppm` overrides the seed's.
    pub fn new(seed: u64, drift_ppm: Option<f64>, boot_utc_us: i64) -> Self {
        let mut noise = Noise::new(seed, "crystal");
        let drawn = noise.between(-MAX_DRIFT_PPM, MAX_DRIFT_PPM);
        Self {
            boot_utc_us,
            drift: drift_ppm.unwrap_or(drawn) * 1e-6,
            wander: noise.between(0.1, MAX_WANDER_PPM) * 1e-6,
            period_us: noise.between(1.5, 4.0) * 3.6e9,
            phase: noise.between(0.0, TAU),
        }
    }

    /// The same crystal after a reset.
    pub fn reset(&mut self, boot_utc_us: i64) {
        self.boot_utc_us = boot_utc_us;
    }

    /// The true time of tick 0.
    pub fn boot_utc_us(&self) -> i64 {
        self.boot_utc_us
    }

    fn own_us(&self, true_us: f64) -> f64 {
        // The integral of 1 + drift + wander * sin(angle), from the boot on. The wave is tied to absolute time, so that
        // it goes on over a reset.
        let turn = TAU / self.period_us;
        let angle = |us: f64| (self.phase + turn * us) % TAU;
        let start = self.boot_utc_us as f64 % self.period_us;
        let wave = (angle(start).cos() - angle(start + true_us).cos()) / turn;
        true_us * (1.0 + self.drift) + self.wander * wave
    }

    /// Ticks at a true time; 0 before the boot.
    pub fn ticks_at(&self, utc_us: i64) -> u64 {
        (self.own_us((utc_us - self.boot_utc_us).max(0) as f64) / 1_000.0) as u64
    }

    /// The true time at which a tick begins.
    pub fn utc_us_of(&self, ticks: u64) -> i64 {
        let wanted = ticks as f64 * 1_000.0;
        let mut true_us = wanted / (1.0 + self.drift);
        for _ in 0..3 {
            // The rate differs from 1 by 4e-5: each round gains more than four digits.
            true_us += wanted - self.own_us(true_us);
        }
        self.boot_utc_us + true_us.round() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_begins_when_its_true_time_comes(seed: u64, ticks in 0u64..1_000_000_000, boot in 0i64..2_000_000_000) {
            let crystal = Crystal::new(seed, None, boot * 1_000_000);
            let begins = crystal.utc_us_of(ticks);
            prop_assert_eq!(crystal.ticks_at(begins + 2), ticks);
            prop_assert!(ticks == 0 || crystal.ticks_at(begins - 2) == ticks - 1);
        }

        #[test]
        fn the_rate_stays_within_two_ppm_of_its_constant(seed: u64, at in 0i64..86_400) {
            let crystal = Crystal::new(seed, Some(17.0), 1_700_000_000_000_000);
            let here = 1_700_000_000_000_000 + at * 1_000_000;
            let span = 600_000_000i64;
            let own = crystal.own_us((here + span - crystal.boot_utc_us()) as f64)
                - crystal.own_us((here - crystal.boot_utc_us()) as f64);
            let ppm = (own / span as f64 - 1.0) * 1e6;
            prop_assert!((ppm - 17.0).abs() < 2.0, "{}", ppm);
        }
    }
}
