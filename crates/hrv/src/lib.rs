//! Heart rate variability of a window, from RR intervals. Pure: numbers in, numbers out; intervals and times in milliseconds.
//!
//! Names and definitions are those of the Task Force (1996, Heart rate variability: standards of measurement, physiological
//! interpretation, and clinical use; Eur Heart J 17:354). Beats that were missed, seen twice or came out of turn are
//! corrected first, by Lipponen and Tarvainen (2019, J Med Eng Technol 43:173).
//!
//! - [`artefacts`]: finds such beats and corrects them.
//! - [`time_domain`]: SDNN, RMSSD, pNN50.
//! - [`frequency`]: power in LF and HF.

pub mod artefacts;
pub mod frequency;
pub mod time_domain;

use frequency::Bands;
use time_domain::TimeDomain;

/// Two beats follow each other if the interval between them is this near to their times' difference.
const SUCCESSIVE_MS: f64 = 250.0;
/// No heart beats faster or slower, ms.
const POSSIBLE_MS: std::ops::RangeInclusive<f64> = 200.0..=3_000.0;
/// A stretch with fewer intervals than the median filter's window says nothing about what is usual in it.
const SHORTEST_RUN: usize = 11;
/// A window of five minutes with less than half of it in beats is not one.
const LEAST_COVERED_MS: f64 = 150_000.0;

/// An interval, at the time of the beat that ends it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// When, ms from anywhere.
    pub at_ms: f64,
    /// How long, ms.
    pub rr_ms: f64,
}

/// A window's heart rate variability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hrv {
    /// After correction.
    pub time: TimeDomain,
    /// Of the longest stretch without a hole; none if that is shorter than two minutes (Task Force, p. 364).
    pub bands: Option<Bands>,
    /// Intervals that went in.
    pub intervals: usize,
    /// Beats that were corrected.
    pub corrected: usize,
    /// How much of the window is covered by intervals, ms.
    pub covered_ms: f64,
}

/// Of the intervals of five minutes, in the order of their times. None if too little of it is there, of intervals that a
/// heart can have.
pub fn of_window(intervals: &[Interval]) -> Option<Hrv> {
    let intervals: Vec<Interval> =
        intervals.iter().copied().filter(|interval| POSSIBLE_MS.contains(&interval.rr_ms)).collect();
    let covered_ms: f64 = intervals.iter().map(|interval| interval.rr_ms).sum();
    if covered_ms < LEAST_COVERED_MS {
        return None;
    }
    let mut corrected = 0;
    let runs: Vec<Vec<f64>> = runs(&intervals)
        .into_iter()
        .map(|run| {
            let corrected_run = artefacts::correct(&run);
            corrected += corrected_run.found.count();
            corrected_run.peaks.windows(2).map(|pair| pair[1] - pair[0]).collect()
        })
        .collect();
    let time = time_domain::of(&runs)?;
    let longest = runs.iter().max_by(|a, b| length(a).total_cmp(&length(b)))?;
    Some(Hrv { time, bands: frequency::of(longest), intervals: intervals.len(), corrected, covered_ms })
}

fn length(run: &[f64]) -> f64 {
    run.iter().sum()
}

/// The beats of each stretch without a hole.
fn runs(intervals: &[Interval]) -> Vec<Vec<f64>> {
    let mut runs: Vec<Vec<f64>> = Vec::new();
    for interval in intervals {
        match runs.last_mut().and_then(|run| Some((run.last().copied()?, run))) {
            Some((last, run)) if (interval.at_ms - last - interval.rr_ms).abs() <= SUCCESSIVE_MS => {
                run.push(last + interval.rr_ms);
            }
            _ => runs.push(vec![interval.at_ms - interval.rr_ms, interval.at_ms]),
        }
    }
    runs.retain(|run| run.len() > SHORTEST_RUN);
    runs
}
