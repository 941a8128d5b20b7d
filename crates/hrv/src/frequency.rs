//! The frequency domain: Welch's periodogram of the intervals, resampled at even times.
//!
//! A hundred times a second by a natural cubic spline, the mean removed, segments of half the stretch that overlap by half, under
//! Hann's window, padded with zeros to twice their length: as NeuroKit2 does it (there the spline is quadratic), so that
//! numbers can be compared. Of a stretch with an odd half the last segment does not fit and is left out, there as here.

use std::f64::consts::TAU;

/// Samples a second.
const RATE_HZ: f64 = 100.0;
/// The shortest stretch in which LF can be told (Task Force, p. 364).
const SHORTEST_MS: f64 = 120_000.0;
const LF_HZ: (f64, f64) = (0.04, 0.15);
const HF_HZ: (f64, f64) = (0.15, 0.4);

/// Power in two bands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bands {
    /// 0.04 to 0.15 Hz, ms².
    pub lf_ms2: f64,
    /// 0.15 to 0.4 Hz, ms².
    pub hf_ms2: f64,
}

impl Bands {
    /// LF over HF; not finite where there is no power in HF.
    pub fn lf_over_hf(&self) -> f64 {
        self.lf_ms2 / self.hf_ms2
    }
}

/// Of a stretch of intervals; none if it is shorter than two minutes.
pub fn of(intervals: &[f64]) -> Option<Bands> {
    if intervals.iter().sum::<f64>() < SHORTEST_MS {
        return None;
    }
    let mut samples = resample(intervals);
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    for value in &mut samples {
        *value -= mean;
    }
    let length = samples.len() / 2;
    let window: Vec<f64> = (0..length).map(|n| 0.5 - 0.5 * (TAU * n as f64 / length as f64).cos()).collect();
    let energy: f64 = window.iter().map(|weight| weight * weight).sum();
    let segments: Vec<Vec<f64>> = samples
        .windows(length)
        .step_by(length - length / 2)
        .map(|segment| segment.iter().zip(&window).map(|(value, weight)| value * weight).collect())
        .collect();
    let width_hz = RATE_HZ / (2 * length) as f64;
    let density = |hz: f64| {
        let power: f64 = segments.iter().map(|segment| squared_spectrum(segment, hz)).sum();
        2.0 * power / segments.len() as f64 / (RATE_HZ * energy)
    };
    let band = |(from, to): (f64, f64)| {
        let (first, end) = ((from / width_hz).ceil() as usize, (to / width_hz).ceil() as usize);
        let densities: Vec<f64> = (first..end).map(|bin| density(bin as f64 * width_hz)).collect();
        densities.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]) * width_hz).sum()
    };
    Some(Bands { lf_ms2: band(LF_HZ), hf_ms2: band(HF_HZ) })
}

/// Of one frequency, by Goertzel's recurrence (1958, Amer Math Monthly 65:34).
fn squared_spectrum(segment: &[f64], hz: f64) -> f64 {
    let twice = 2.0 * (TAU * hz / RATE_HZ).cos();
    let (mut last, mut before) = (0.0, 0.0);
    for value in segment {
        (last, before) = (value + twice * last - before, last);
    }
    last * last + before * before - twice * last * before
}

/// At even times from the first interval's end until the last one's is reached.
fn resample(intervals: &[f64]) -> Vec<f64> {
    let mut at = 0.0;
    let times: Vec<f64> = intervals
        .iter()
        .map(|interval| {
            at += interval / 1_000.0;
            at
        })
        .collect();
    let curvatures = natural_spline(&times, intervals);
    let last = times.len() - 1;
    let count = ((times[last] - times[0]) * RATE_HZ).ceil() as usize + 1;
    let mut knot = 0;
    (0..count)
        .map(|n| {
            let t = times[0] + n as f64 / RATE_HZ;
            while knot + 2 < times.len() && times[knot + 1] < t {
                knot += 1;
            }
            let h = times[knot + 1] - times[knot];
            let (left, right) = ((times[knot + 1] - t) / h, (t - times[knot]) / h);
            left * intervals[knot]
                + right * intervals[knot + 1]
                + ((left.powi(3) - left) * curvatures[knot] + (right.powi(3) - right) * curvatures[knot + 1])
                    * h
                    * h
                    / 6.0
        })
        .collect()
}

/// Second derivatives at the knots, zero at both ends: the tridiagonal system, solved forwards and back.
fn natural_spline(x: &[f64], y: &[f64]) -> Vec<f64> {
    let n = x.len();
    let (mut factor, mut right) = (vec![0.0; n], vec![0.0; n]);
    for i in 1..n - 1 {
        let share = (x[i] - x[i - 1]) / (x[i + 1] - x[i - 1]);
        let pivot = share * factor[i - 1] + 2.0;
        factor[i] = (share - 1.0) / pivot;
        let slopes = (y[i + 1] - y[i]) / (x[i + 1] - x[i]) - (y[i] - y[i - 1]) / (x[i] - x[i - 1]);
        right[i] = (6.0 * slopes / (x[i + 1] - x[i - 1]) - share * right[i - 1]) / pivot;
    }
    let mut curvatures = vec![0.0; n];
    for i in (1..n - 1).rev() {
        curvatures[i] = factor[i] * curvatures[i + 1] + right[i];
    }
    curvatures
}
