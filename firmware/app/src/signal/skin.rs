//! Skin conductance by a constant voltage, with ranges that follow it.
//!
//! 0.5 V across the electrodes (Fowles et al., "Publication recommendations for electrodermal measurements",
//! Psychophysiology 18, 1981); a transimpedance amplifier whose feedback resistor is one of [`RANGES_KOHM`] turns the
//! current into a voltage, which the SAADC reads with 12 bits over 3.6 V. So conductance is
//! `volts / (feedback · 0.5 V)`; in nanosiemens: `2 · µV / kΩ`.
//!
//! The range goes up before the amplifier saturates and down when the next finer one would be less than half used; in
//! between nothing changes, so that a value at a border does not switch to and fro. After a change the amplifier
//! settles: those samples are not told.

/// Feedback resistors, kΩ, from the finest range (up to 3.6 µS) to the coarsest (up to 72 µS).
pub const RANGES_KOHM: [u32; 3] = [2_000, 400, 100];
/// The converter's full scale, counts and microvolts.
pub const FULL_SCALE: u16 = 4_095;
const FULL_SCALE_UV: u64 = 3_600_000;
/// Above this part of the full scale the range goes up, percent.
const HIGH: u32 = 90;
/// Below this part of the next finer one it goes down, percent.
const LOW: u32 = 50;
/// Samples that are not told after a change: 0.5 s at 4 Hz.
const SETTLING: u8 = 2;
/// Less than this is no skin, nanosiemens.
const OPEN_NS: u32 = 20;

/// What a sample says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conductance {
    /// Nanosiemens: the steps of the channel `eda` (0.001 µS).
    Nanosiemens(i32),
    /// The range has just changed.
    Settling,
    /// Nothing touches the electrodes, or one of them.
    Open,
    /// More than the coarsest range measures: water, or a short.
    Saturated,
}

/// The range in use.
#[derive(Debug, Clone, Default)]
pub struct Skin {
    range: usize,
    settling: u8,
}

impl Skin {
    /// The feedback resistor to be switched in, as a place in [`RANGES_KOHM`].
    pub fn range(&self) -> usize {
        self.range
    }

    /// Takes a conversion that was made in [`range`](Self::range). Changes the range where that is due.
    pub fn sample(&mut self, counts: u16) -> Conductance {
        if self.settling > 0 {
            self.settling -= 1;
            return Conductance::Settling;
        }
        let counts = u32::from(counts.min(FULL_SCALE));
        let full = u32::from(FULL_SCALE);
        if counts * 100 > full * HIGH {
            if self.range + 1 == RANGES_KOHM.len() {
                return if counts == full { Conductance::Saturated } else { self.told(counts) };
            }
            return self.change(self.range + 1);
        }
        if let Some(finer) = self.range.checked_sub(1) {
            let there = counts * RANGES_KOHM[finer] / RANGES_KOHM[self.range];
            if there * 100 < full * LOW {
                let told = self.told(counts);
                self.change(finer);
                return told;
            }
        }
        self.told(counts)
    }

    fn change(&mut self, range: usize) -> Conductance {
        (self.range, self.settling) = (range, SETTLING);
        Conductance::Settling
    }

    fn told(&self, counts: u32) -> Conductance {
        let microvolts = u64::from(counts) * FULL_SCALE_UV / u64::from(FULL_SCALE);
        let kohm = u64::from(RANGES_KOHM[self.range]);
        let nanosiemens = ((2 * microvolts + kohm / 2) / kohm) as u32;
        if nanosiemens < OPEN_NS { Conductance::Open } else { Conductance::Nanosiemens(nanosiemens as i32) }
    }
}
