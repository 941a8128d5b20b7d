//! Beats in a photoplethysmogram.
//!
//! The two event-related moving averages of Elgendi et al., "Systolic Peak Detection in Acceleration
//! Photoplethysmograms Measured from Emergency Responders in Tropical Conditions", PLoS ONE 8(10) 2013: the signal is
//! band-passed, clipped at zero and squared; where its average over a systole (111 ms) is above its average over a beat
//! (667 ms) and an offset, there is a systole, whose highest point is the beat. A parabola through that point and its
//! neighbours places it between the samples: intervals are good to about a millisecond and not to ten.
//!
//! What differs from the paper, so that it fits a stream: the offset is a part of a running mean in the place of the whole
//! recording's, and the filter has one pole at each end (0.5 and 8 Hz). A beat is told [`LATENCY`] samples after it.

/// Samples of the photoplethysmogram a second.
pub const RATE_HZ: u32 = 100;
/// Half of the window that is as long as a systole, and half of the one that is as long as a beat.
const HALF_SYSTOLE: usize = 5;
const HALF_BEAT: usize = 33;
const SYSTOLE: u64 = 2 * HALF_SYSTOLE as u64 + 1;
const BEAT: u64 = 2 * HALF_BEAT as u64 + 1;
/// What is kept: a beat's window, and a neighbour for the parabola.
const KEPT: usize = 128;
/// How long after its highest point a beat is told, samples: half a beat's window and the rest of the systole.
pub const LATENCY: usize = HALF_BEAT + 30;
/// A systole is at least so long, samples (the paper's 111 ms).
const SHORTEST: u32 = 11;
/// And beats are at least so far apart: 250 ms, 240 a minute.
const REFRACTORY: u64 = 25 << FRACTION;
/// The offset: one fiftieth (the paper's β = 2 %) of the running mean of the squared signal, which has 2.56 s of memory.
const OFFSET_OF: u64 = 50;
const MEAN_SHIFT: u32 = 8;
/// The high pass subtracts a mean with 32 samples of memory: 0.5 Hz.
const HIGH_PASS_SHIFT: u32 = 5;
/// The low pass goes 13/32 of the way with each sample: 8.3 Hz.
const LOW_PASS: (i64, u32) = (13, 5);
/// Bits behind the point of the filtered signal, and those dropped before squaring.
const POINT: u32 = 8;
const DROPPED: u32 = 4;
/// Bits behind the point of a beat's place.
pub const FRACTION: u32 = 8;
/// The largest count a converter of 18 bits gives; higher ones are taken for it.
pub const FULL_SCALE: i32 = (1 << 18) - 1;

/// A beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Where its systolic peak is: samples since the start, in 1/256.
    pub at: u64,
    /// How high it is above the mean, counts.
    pub height: i32,
}

/// Finds beats, sample by sample: about 60 additions and six multiplications each.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// The mean that is subtracted, and the filtered signal; [`POINT`] bits behind the point.
    mean: Option<i64>,
    low: i64,
    /// The last filtered samples, the newest at `count - 1`.
    kept: [i32; KEPT],
    count: u64,
    sum_systole: u64,
    sum_beat: u64,
    running: u64,
    /// The systole that is open: how long it is, where its highest point is.
    open: u32,
    peak: (u64, i32),
    last: Option<u64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            mean: None,
            low: 0,
            kept: [0; KEPT],
            count: 0,
            sum_systole: 0,
            sum_beat: 0,
            running: 0,
            open: 0,
            peak: (0, 0),
            last: None,
        }
    }
}

impl Pulse {
    /// Takes a sample, counts from 0 to 2^18 − 1 that grow with the blood in the tissue (a MAX30102's infrared channel
    /// falls with it: negate it first). The beat that is known by it, if any.
    pub fn sample(&mut self, counts: i32) -> Option<Beat> {
        let value = i64::from(counts.clamp(-FULL_SCALE, FULL_SCALE)) << POINT;
        let mean = self.mean.get_or_insert(value);
        *mean += (value - *mean) >> HIGH_PASS_SHIFT;
        self.low += ((value - *mean - self.low) * LOW_PASS.0) >> LOW_PASS.1;
        self.keep(self.low as i32);
        // The place that is looked at has half of a beat's window after it.
        let centre = self.count.checked_sub(HALF_BEAT as u64 + 1)?;
        self.follow(centre)
    }

    fn at(&self, place: u64) -> i32 {
        self.kept[(place % KEPT as u64) as usize]
    }

    fn keep(&mut self, value: i32) {
        self.kept[(self.count % KEPT as u64) as usize] = value;
        self.count += 1;
        let (count, half) = (self.count, HALF_BEAT as u64);
        let newest = squared(value);
        self.running = self.running - (self.running >> MEAN_SHIFT) + (newest >> MEAN_SHIFT);
        self.sum_beat += newest;
        if let Some(gone) = count.checked_sub(BEAT + 1) {
            self.sum_beat -= squared(self.at(gone));
        }
        // The systole's window is in the middle of the beat's.
        if let Some(come) = count.checked_sub(1 + half - HALF_SYSTOLE as u64) {
            self.sum_systole += squared(self.at(come));
            if let Some(gone) = come.checked_sub(SYSTOLE) {
                self.sum_systole -= squared(self.at(gone));
            }
        }
    }

    fn follow(&mut self, centre: u64) -> Option<Beat> {
        // The averages are compared by their sums.
        let offset = self.running / OFFSET_OF * SYSTOLE * BEAT;
        if self.sum_systole * BEAT > self.sum_beat * SYSTOLE + offset {
            let value = self.at(centre);
            if self.open == 0 || value > self.peak.1 {
                self.peak = (centre, value);
            }
            self.open += 1;
            return None;
        }
        let long = core::mem::take(&mut self.open);
        if long < SHORTEST || centre - self.peak.0 >= KEPT as u64 - HALF_BEAT as u64 - 2 {
            return None;
        }
        let (place, height) = self.peak;
        let at = ((place << FRACTION) as i64 + self.between(place)).max(0) as u64;
        if self.last.is_some_and(|last| at < last + REFRACTORY) {
            return None;
        }
        self.last = Some(at);
        Some(Beat { at, height: height >> POINT })
    }

    /// Where between the samples the parabola through three of them is highest, in 1/256 of a sample.
    fn between(&self, place: u64) -> i64 {
        let Some(before) = place.checked_sub(1) else { return 0 };
        let [left, middle, right] = [before, place, place + 1].map(|place| i64::from(self.at(place)));
        let bend = left - 2 * middle + right;
        if bend >= 0 {
            return 0;
        }
        let half = 1 << (FRACTION - 1);
        (((left - right) << FRACTION) / (2 * bend)).clamp(-half, half)
    }
}

/// The square of what is above zero.
fn squared(value: i32) -> u64 {
    let above = (value.max(0) >> DROPPED) as u64;
    above * above
}
