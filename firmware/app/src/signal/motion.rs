//! How much the arm moves, and steps.
//!
//! **Activity** is ENMO, the Euclidean norm minus one g, negative values taken for zero (van Hees et al., "Separating
//! Movement and Gravity Components in an Acceleration Signal", PLoS ONE 8(4) 2013), summed over 30 s: one count is one
//! mg·s. **Steps** are crossings of a threshold in the middle between the last two seconds' extremes, 0.25 to 2 s apart,
//! counted once four came in a row (N. Zhao, "Full-Featured Pedometer Design Realized with 3-Axis Digital
//! Accelerometer", Analog Dialogue 44-06, 2010).

/// Samples a second: the LSM6DSO's lowest rate that holds a step's shape.
pub const RATE_HZ: u32 = 26;
/// One g of a LSM6DSO at ±4 g (0.122 mg a step), counts.
pub const ONE_G: i32 = 8_197;
/// The time that an activity count is of, samples.
const EPOCH: u32 = 30 * RATE_HZ;
/// The mean deviation over half a second from which on the arm is taken for moving: 40 mg.
const MOVING: u32 = ONE_G as u32 * 40 / 1_000;
/// The extremes are those of so many samples.
const EXTREMES: u32 = 2 * RATE_HZ;
/// A step lifts the body: less between the extremes is no walk (150 mg).
const SWING: i32 = ONE_G * 150 / 1_000;
/// Between two steps, samples.
const STEP: core::ops::RangeInclusive<u32> = RATE_HZ / 4..=2 * RATE_HZ;
/// Steps in a row that make a walk.
const WALK: u32 = 4;

/// What a sample gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// The arm moves.
    pub moving: bool,
    /// Steps that are known by this sample.
    pub steps: u32,
    /// Thirty seconds are over: their activity, mg·s.
    pub activity: Option<u32>,
}

/// What is remembered.
#[derive(Debug, Clone, Default)]
pub struct Motion {
    smooth: i32,
    began: bool,
    /// Running mean of |norm − 1 g|, 1/16 counts, over 13 samples or so.
    deviation: u32,
    excess: u64,
    in_epoch: u32,
    high: i32,
    low: i32,
    middle: i32,
    swing: i32,
    in_extremes: u32,
    above: bool,
    since: u32,
    row: u32,
}

impl Motion {
    /// Takes a sample, counts along the three axes.
    pub fn sample(&mut self, axes: [i16; 3]) -> Moved {
        let squares: u32 = axes.iter().map(|axis| i32::from(*axis).pow(2) as u32).sum();
        let norm = squares.isqrt() as i32;
        let deviation = norm.abs_diff(ONE_G);
        self.deviation = self.deviation - self.deviation / 8 + deviation * 2;
        self.excess += u64::from((norm - ONE_G).max(0) as u32);
        self.in_epoch += 1;
        let activity = (self.in_epoch == EPOCH).then(|| {
            self.in_epoch = 0;
            let excess = core::mem::take(&mut self.excess);
            (excess * 1_000 / (ONE_G as u64 * u64::from(RATE_HZ))) as u32
        });
        Moved { moving: self.deviation / 16 > MOVING, steps: self.step(norm), activity }
    }

    fn step(&mut self, norm: i32) -> u32 {
        if !self.began {
            (self.smooth, self.high, self.low, self.middle) = (norm, norm, norm, norm);
            self.began = true;
        }
        // 26 Hz · ln 2 / 2π: about 3 Hz.
        self.smooth += (norm - self.smooth) / 2;
        (self.high, self.low) = (self.high.max(self.smooth), self.low.min(self.smooth));
        self.in_extremes += 1;
        if self.in_extremes == EXTREMES {
            (self.middle, self.swing) = (i32::midpoint(self.high, self.low), self.high - self.low);
            (self.high, self.low, self.in_extremes) = (self.smooth, self.smooth, 0);
        }
        self.since = self.since.saturating_add(1);
        let was_above = core::mem::replace(&mut self.above, self.smooth > self.middle);
        if !was_above || self.above || self.swing < SWING {
            return 0;
        }
        let since = core::mem::take(&mut self.since);
        if since < *STEP.start() {
            // A part of the step before.
            self.since = since;
            return 0;
        }
        self.row = if STEP.contains(&since) { self.row + 1 } else { 1 };
        match self.row {
            ..WALK => 0,
            WALK => WALK,
            _ => 1,
        }
    }
}
