//! Intervals between beats, and the heart rate of the last ten seconds.
//!
//! The rate is that of the mean interval after those are left out that differ from the mean by more than 30 % (and by at
//! least 300 ms): van Gent et al., "HeartPy: A novel heart rate algorithm for the analysis of noisy signals",
//! Transportation Research Part F 66, 2019. It is told only when most intervals agree, and never while the arm moves:
//! a moving wrist makes beats of its own, often steadier than the heart's.

use super::pulse::{Beat, FRACTION, RATE_HZ};

/// The window that the heart rate is of, milliseconds.
pub const WINDOW_MS: u64 = 10_000;
/// Intervals in it at most: 240 beats a minute.
const MOST: usize = 40;
/// Fewer intervals say nothing.
const FEWEST: usize = 4;
/// Intervals that hearts have, milliseconds.
const POSSIBLE_MS: core::ops::RangeInclusive<u32> = 250..=2_000;
/// How much an interval may differ from the mean: 30 %, and 300 ms in any case.
const DIFFERS_PERCENT: u32 = 30;
const DIFFERS_MS: u32 = 300;
/// A heart's interval differs by no more than so much from the one before, percent; noise's does (Malik et al., "Heart
/// rate variability in relation to prognosis after myocardial infarction", European Heart Journal 10, 1989).
const STEADY_PERCENT: u32 = 20;
/// The quality from which on a rate is told, percent.
pub const GOOD: u8 = 60;

/// An interval between two beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// When the second beat was, milliseconds since the start.
    pub at_ms: u64,
    /// How long it is.
    pub length_ms: u32,
}

/// A heart rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tenths of beats a minute: the steps of the channel `heart_rate`.
    pub tenths: i32,
    /// How far to trust it, percent: the part of the window that is covered by intervals like the one before.
    pub quality: u8,
}

/// The intervals of the last ten seconds.
#[derive(Debug, Clone)]
pub struct Rhythm {
    last: Option<u64>,
    intervals: [Interval; MOST],
    count: usize,
    moved_ms: Option<u64>,
}

impl Default for Rhythm {
    fn default() -> Self {
        let none = Interval { at_ms: 0, length_ms: 0 };
        Self { last: None, intervals: [none; MOST], count: 0, moved_ms: None }
    }
}

impl Rhythm {
    /// Takes a beat; the interval that it ends, where that can be a heart's and the arm was still throughout.
    pub fn beat(&mut self, beat: Beat) -> Option<Interval> {
        let before = self.last.replace(beat.at)?;
        let length_ms = u32::try_from(milliseconds(beat.at - before)).ok()?;
        let at_ms = milliseconds(beat.at);
        if !POSSIBLE_MS.contains(&length_ms) || self.moved_within(at_ms, u64::from(length_ms)) {
            return None;
        }
        let interval = Interval { at_ms, length_ms };
        if self.count == MOST {
            self.intervals.copy_within(1.., 0);
            self.count -= 1;
        }
        self.intervals[self.count] = interval;
        self.count += 1;
        Some(interval)
    }

    /// The arm moves at this moment.
    pub fn moves(&mut self, at_ms: u64) {
        self.moved_ms = Some(at_ms);
    }

    fn moved_within(&self, now_ms: u64, lately_ms: u64) -> bool {
        self.moved_ms.is_some_and(|moved| moved + lately_ms >= now_ms)
    }

    /// The rate of the window that ends now, with its quality; nothing, where too little is known.
    pub fn judged(&self, now_ms: u64) -> Option<Rate> {
        let from = now_ms.saturating_sub(WINDOW_MS);
        let inside = |it: &&Interval| it.at_ms >= from + u64::from(it.length_ms) && it.at_ms <= now_ms;
        let recent = || self.intervals[..self.count].iter().filter(inside);
        let count = recent().count();
        if count < FEWEST {
            return None;
        }
        let sum: u32 = recent().map(|interval| interval.length_ms).sum();
        let mean = sum / count as u32;
        let room = (mean * DIFFERS_PERCENT / 100).max(DIFFERS_MS);
        let agreeing = || recent().filter(|interval| interval.length_ms.abs_diff(mean) <= room);
        let kept = agreeing().count() as u32;
        let covered: u32 = agreeing().map(|interval| interval.length_ms).sum();
        let mut before = None;
        let steady = recent().filter(|interval| {
            let last = before.replace(interval.length_ms).unwrap_or(interval.length_ms);
            interval.length_ms.abs_diff(last) * 100 <= last * STEADY_PERCENT
        });
        let steady: u32 = steady.map(|interval| interval.length_ms).sum();
        if kept < FEWEST as u32 {
            return None;
        }
        // The window's ends cut an interval each: nine tenths covered is all of it.
        let whole = WINDOW_MS.min(now_ms.max(1)) as u32 * 9 / 10;
        let quality = (steady.min(whole) * 100 / whole.max(1)) as u8;
        let tenths = (600_000 * kept + covered / 2) / covered;
        Some(Rate { tenths: tenths as i32, quality })
    }

    /// The rate to be told now: one that can be trusted, while the arm is still.
    pub fn rate(&self, now_ms: u64) -> Option<Rate> {
        self.judged(now_ms).filter(|rate| rate.quality >= GOOD && !self.moved_within(now_ms, 1_000))
    }
}

/// Places of beats are in 1/256 of a sample; rounded.
fn milliseconds(at: u64) -> u64 {
    let per_sample = u64::from(1_000 / RATE_HZ);
    (at * per_sample + (1 << (FRACTION - 1))) >> FRACTION
}
