//! Whether it is worn: skin throws light back, is warmer than the air, and is never quite still.
//!
//! Worn needs the light of skin for three seconds; not worn needs its absence for five, or, with a table below that
//! reflects like skin, neither warmth nor motion for five minutes: a turned wrist changes nothing.

/// The least infrared level of skin, counts of 2^18 at the reference LED current.
pub const SKIN_LEVEL: i32 = 30_000;
/// The least difference between skin and air, hundredths of a degree.
const WARMER: i32 = 50;
/// Seconds until it is worn, until it is not, and until a still and cold thing is not.
const ON_S: u16 = 3;
const OFF_S: u16 = 5;
const STILL_S: u16 = 300;

/// What a second showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Second {
    /// The mean infrared level, counts.
    pub light: i32,
    /// Skin minus ambient temperature, hundredths of a degree, where both are known.
    pub warmer: Option<i32>,
    /// The arm moved.
    pub moved: bool,
}

/// What is remembered.
#[derive(Debug, Clone, Default)]
pub struct Wear {
    worn: bool,
    other: u16,
    still: u16,
}

impl Wear {
    /// Takes what a second showed; whether it is worn now.
    pub fn second(&mut self, seen: Second) -> bool {
        let lifeless = !seen.moved && seen.warmer.is_some_and(|warmer| warmer < WARMER);
        self.still = if lifeless { self.still.saturating_add(1) } else { 0 };
        let looks_worn = seen.light >= SKIN_LEVEL && self.still < STILL_S;
        self.other = if looks_worn == self.worn { 0 } else { self.other + 1 };
        let needed = if self.worn && seen.light >= SKIN_LEVEL {
            1
        } else if self.worn {
            OFF_S
        } else {
            ON_S
        };
        if self.other >= needed {
            (self.worn, self.other) = (looks_worn, 0);
        }
        self.worn
    }
}
