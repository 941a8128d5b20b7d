//! The signals that windows are made of.

/// A signal that features are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Electrodermal activity (skin conductance), µS.
    Eda,
    /// Heart rate, beats per minute.
    HeartRate,
    /// Interval between two beats, ms, stamped at the later beat.
    RrInterval,
    /// Skin temperature, °C.
    SkinTemperature,
    /// Activity counts over the 30 s before the sample.
    Activity,
}

impl Signal {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 5] =
        [Self::Eda, Self::HeartRate, Self::RrInterval, Self::SkinTemperature, Self::Activity];

    /// Position in [`Signal::ALL`].
    pub fn index(self) -> usize {
        match self {
            Self::Eda => 0,
            Self::HeartRate => 1,
            Self::RrInterval => 2,
            Self::SkinTemperature => 3,
            Self::Activity => 4,
        }
    }
}

/// One value of a signal at a tick (milliseconds since the wearable's boot).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When, in the device's ticks.
    pub ticks: u64,
    /// The value, in the signal's unit.
    pub value: f32,
}
