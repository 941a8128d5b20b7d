//! The heart: a rate that follows activity and the time of day, and beats that vary around it.
//!
//! - The circadian wave of the resting rate is about ±4 bpm with its low point at the end of the night (Kräuchi and
//!   Wirz-Justice 1994, Am J Physiol 267:R819).
//! - Successive intervals vary with breathing (respiratory sinus arrhythmia, 0.15 to 0.4 Hz) and with the blood
//!   pressure's Mayer waves (around 0.1 Hz; Julien 2006, Cardiovasc Res 70:12), both shrinking with effort; bands and
//!   sizes as in the Task Force's standards (1996, Circulation 93:1043).

use std::collections::VecDeque;
use std::f64::consts::TAU;

use super::STEP_S;
use super::activity::Activity;
use crate::noise::{Noise, Wander, relax};

/// One beat: when, and how long after the one before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beat {
    /// True time.
    pub utc_us: i64,
    /// Interval to the beat before, ms.
    pub rr_ms: f64,
}

/// Beats kept for those who ask late; a step has at most two.
const MAX_BEATS: usize = 64;
/// Intervals averaged for the rate.
const RATE_BEATS: usize = 6;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Heart {
    noise: Noise,
    resting_bpm: f64,
    drive_bpm: f64,
    breath: f64,
    mayer: f64,
    rsa_ms: f64,
    lf_ms: f64,
    breath_rate: Wander,
    mayer_rate: Wander,
    slow: Wander,
    next_us: i64,
    last_us: i64,
    last_rr_ms: f64,
    beats: VecDeque<Beat>,
    recent: VecDeque<f64>,
}

impl Heart {
    pub(super) fn new(seed: u64, start_us: i64) -> Self {
        let mut noise = Noise::new(seed, "heart");
        let resting_bpm = noise.between(58.0, 74.0);
        let rr_ms = 60_000.0 / resting_bpm;
        Self {
            resting_bpm,
            drive_bpm: resting_bpm,
            breath: noise.between(0.0, TAU),
            mayer: noise.between(0.0, TAU),
            rsa_ms: noise.between(18.0, 42.0),
            lf_ms: noise.between(14.0, 30.0),
            breath_rate: Wander::new(0.02, 60.0, STEP_S),
            mayer_rate: Wander::new(0.006, 90.0, STEP_S),
            slow: Wander::new(1.5, 180.0, STEP_S),
            next_us: start_us + (rr_ms * 1e3) as i64,
            last_us: start_us,
            last_rr_ms: rr_ms,
            beats: VecDeque::new(),
            recent: VecDeque::from([rr_ms]),
            noise,
        }
    }

    pub(super) fn step(&mut self, now_us: i64, activity: &Activity, flash_bpm: f64) {
        let intensity = activity.intensity();
        let asleep = if activity.is_asleep() { -6.0 } else { 0.0 };
        let target = self.resting_bpm
            + 4.0 * activity.circadian()
            + asleep
            + 85.0 * intensity.powf(1.2)
            + self.slow.step(&mut self.noise);
        let tau = if target > self.drive_bpm { 12.0 } else { 25.0 };
        relax(&mut self.drive_bpm, target, tau, STEP_S);
        let breathing = 0.24 + 0.12 * intensity + self.breath_rate.step(&mut self.noise);
        let mayer = 0.1 + self.mayer_rate.step(&mut self.noise);
        self.breath = (self.breath + TAU * breathing * STEP_S) % TAU;
        self.mayer = (self.mayer + TAU * mayer * STEP_S) % TAU;
        while self.next_us <= now_us {
            let beat = Beat { utc_us: self.next_us, rr_ms: (self.next_us - self.last_us) as f64 / 1e3 };
            self.last_us = self.next_us;
            self.last_rr_ms = beat.rr_ms;
            if self.beats.len() == MAX_BEATS {
                self.beats.pop_front();
            }
            self.beats.push_back(beat);
            self.recent.push_back(beat.rr_ms);
            if self.recent.len() > RATE_BEATS {
                self.recent.pop_front();
            }
            // Variability shrinks with effort and grows in sleep.
            let calm = (1.0 - intensity).clamp(0.08, 1.0) * if activity.is_asleep() { 1.25 } else { 1.0 };
            let rr_ms = 60_000.0 / (self.drive_bpm + flash_bpm)
                + calm * (self.rsa_ms * self.breath.sin() + self.lf_ms * self.mayer.sin())
                + 3.0 * self.noise.normal();
            self.next_us += (rr_ms.clamp(290.0, 2_000.0) * 1e3) as i64;
        }
    }

    pub(super) fn take_beat(&mut self, until_us: i64) -> Option<Beat> {
        self.beats.pop_front_if(|beat| beat.utc_us <= until_us)
    }

    pub(super) fn rate_bpm(&self) -> f64 {
        60_000.0 * self.recent.len() as f64 / self.recent.iter().sum::<f64>()
    }

    /// A pulse wave with its dicrotic notch, as two Gaussian waves over the beat (Rubins 2008, Med Biol Eng Comput
    /// 46:1271).
    pub(super) fn pulse(&self, utc_us: i64) -> f64 {
        let phase = ((utc_us - self.last_us) as f64 / 1e3 / self.last_rr_ms).rem_euclid(1.0);
        let wave = |centre: f64, width: f64| (-((phase - centre) / width).powi(2)).exp();
        wave(0.25, 0.11) + 0.4 * wave(0.55, 0.13)
    }
}
