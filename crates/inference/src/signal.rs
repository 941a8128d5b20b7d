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

    /// What a channel of the registry is; `None`: features are not computed from it. By number: the registry is the
    /// protocol's, which this crate needs for nothing else (a test holds the two against each other).
    pub fn of_channel(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::HeartRate),
            2 => Some(Self::RrInterval),
            3 => Some(Self::SkinTemperature),
            5 => Some(Self::Eda),
            7 => Some(Self::Activity),
            _ => None,
        }
    }

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

#[cfg(test)]
mod tests {
    use kinara_protocol::channel::{ACTIVITY_COUNTS, EDA, HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE, SPO2};

    use super::*;

    #[test]
    fn signals_are_the_registrys_channels() {
        let of = |channel: kinara_protocol::channel::ChannelId| Signal::of_channel(channel.0);
        assert_eq!(of(EDA), Some(Signal::Eda));
        assert_eq!(of(HEART_RATE), Some(Signal::HeartRate));
        assert_eq!(of(RR_INTERVAL), Some(Signal::RrInterval));
        assert_eq!(of(SKIN_TEMPERATURE), Some(Signal::SkinTemperature));
        assert_eq!(of(ACTIVITY_COUNTS), Some(Signal::Activity));
        assert_eq!(of(SPO2), None);
    }
}
