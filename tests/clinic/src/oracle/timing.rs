//! Judges stored times against the true ones.
//!
//! A time's error must not exceed the uncertainty that its own frame states, for at least 99.9 % of frames; and that
//! statement may not be an excuse: it is at most the sync's (20 ms on the virtual radio) + 5 ppm of the distance
//! between the two anchors around it, + 45 ppm of the distance to the nearest one outside them. A fit that was bent, so
//! that it does not reach back before what was sealed by the one before it, may state for a while what the two may
//! differ by. The times of an epoch without any anchor are intervals; the truth must lie inside, always.

use std::collections::HashMap;

use super::evidence::{FrameTime, Wearable};
use super::log::Sample;
use super::verdict::{Kind, Verdict};

/// Frames outside their stated uncertainty: one in this many is within the promise.
const ONE_IN: u64 = 1000;
/// Times are stored in whole microseconds.
const ROUNDING_US: f64 = 1.0;
const INSIDE: f64 = 5e-6;
const OUTSIDE: f64 = 45e-6;
/// The time in which a bent fit loses all but a third of what it is bent by.
const CATCH_UP_MS: f64 = 600_000.0;

/// One frame's worst sample.
#[derive(Debug, Clone)]
struct Worst {
    excess_us: f64,
    text: String,
}

/// Anchors' ticks by epoch, of one wearable.
#[derive(Debug, Default)]
pub struct Anchors(HashMap<u64, Vec<u64>>);

impl Anchors {
    /// Of this wearable's log.
    pub fn of(wearable: &Wearable) -> Self {
        let mut by_epoch: HashMap<u64, Vec<u64>> = HashMap::new();
        for anchor in &wearable.log.anchors {
            by_epoch.entry(anchor.epoch).or_default().push(anchor.ticks);
        }
        for ticks in by_epoch.values_mut() {
            ticks.sort_unstable();
        }
        Self(by_epoch)
    }

    /// The largest uncertainty that a time at this tick may state.
    fn bound_us(&self, wearable: &Wearable, stated: &FrameTime, ticks: u64) -> f64 {
        let sync = wearable.sync_bound_us as f64;
        let Some(anchors) = self.0.get(&stated.epoch) else {
            return sync + OUTSIDE * 1000.0 * ticks.abs_diff(stated.ref_ticks) as f64;
        };
        let after = anchors.partition_point(|anchor| *anchor < ticks);
        let before = after.checked_sub(1).map(|index| anchors[index]);
        let ms = match (before, anchors.get(after)) {
            // A frame that was stored live, between two anchors, knew only the first of them.
            (Some(before), Some(after)) => {
                (INSIDE * (after - before) as f64).max(OUTSIDE * (ticks - before) as f64)
            }
            (Some(before), None) => OUTSIDE * (ticks - before) as f64,
            (None, Some(after)) => OUTSIDE * (after - ticks) as f64,
            (None, None) => 0.0,
        };
        sync + ms * 1000.0 + bent_us(anchors, before, ticks, sync)
    }
}

/// What a fit after an anchor may be bent by: what the fit of the anchor before it had come to, less what has gone since.
fn bent_us(anchors: &[u64], before: Option<u64>, ticks: u64, sync: f64) -> f64 {
    let Some(at) = before.and_then(|before| anchors.binary_search(&before).ok()).filter(|at| *at > 0) else {
        return 0.0;
    };
    let apart_us = OUTSIDE * 1000.0 * (anchors[at] - anchors[at - 1]) as f64;
    let gone = (-((ticks - anchors[at]) as f64) / CATCH_UP_MS).exp();
    (2.0 * sync + apart_us) * gone
}

/// Times of a whole clinic.
#[derive(Debug, Default)]
pub struct Times {
    /// (wearable, epoch, seq) → whether and how it was outside.
    frames: HashMap<(usize, u64, u32), Option<Worst>>,
}

impl Times {
    /// Judges one stored reading's time.
    pub fn judge(
        &mut self,
        (wearable, anchors): (&Wearable, &Anchors),
        frame: (usize, u64, u32),
        (time_us, stated): (i64, &FrameTime),
        sample: &Sample,
        verdict: &mut Verdict,
    ) {
        let is_new = !self.frames.contains_key(&frame);
        let worst = self.frames.entry(frame).or_default();
        let error = (time_us - sample.utc_us).abs() as f64;
        let uncertainty = stated.uncertainty_us(sample.ticks);
        let told = || {
            format!(
                "{} epoch {:016x} seq {} ticks {}: {:+.3} ms wrong, ±{:.3} ms stated{}",
                wearable.hardware,
                frame.1,
                frame.2,
                sample.ticks,
                (time_us - sample.utc_us) as f64 / 1e3,
                uncertainty / 1e3,
                if stated.time_uncertain { " (uncertain)" } else { "" }
            )
        };
        let excess_us = error - uncertainty - ROUNDING_US;
        if stated.time_uncertain {
            if excess_us > 0.0 && worst.is_none() {
                verdict.find(Kind::WrongTime, told);
                *worst = Some(Worst { excess_us: f64::NEG_INFINITY, text: String::new() });
            }
            return;
        }
        if excess_us > 0.0 && worst.as_ref().is_none_or(|worst| worst.excess_us < excess_us) {
            *worst = Some(Worst { excess_us, text: told() });
        }
        let bound = anchors.bound_us(wearable, stated, sample.ticks);
        if is_new && uncertainty > bound + ROUNDING_US {
            verdict.find(Kind::WrongTime, || format!("{}, at most ±{:.3} ms may be", told(), bound / 1e3));
        }
    }

    /// Settles the share of frames outside: within 0.1 % it is kept, beyond each of them is a violation.
    pub fn settle(self, verdict: &mut Verdict) {
        let outside: Vec<Worst> =
            self.frames.values().flatten().filter(|worst| worst.excess_us > 0.0).cloned().collect();
        verdict.frames += self.frames.len() as u64;
        verdict.frames_outside += outside.len() as u64;
        if outside.len() as u64 * ONE_IN > self.frames.len() as u64 {
            for worst in outside {
                verdict.find(Kind::WrongTime, || worst.text);
            }
        }
    }
}
