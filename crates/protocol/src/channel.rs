//! The channel registry: every quantity a wearable can report, by number.
//!
//! A value travels as an `i32` count of the channel's [`step`](Channel::step). Numbers are never reused. A number
//! that is not in this registry passes through all programs untouched, by number.

/// A channel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u16);

/// Whether a channel's samples become rows or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// At most 4 Hz; a row per sample.
    Scalar,
    /// Blocks of samples with their own table, retention and the lowest priority.
    Waveform,
}

/// How samples follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// At a fixed interval; a block stores the interval once.
    Regular,
    /// When it happens (a heart beat); a block stores each sample's own ticks.
    PerBeat,
}

/// One entry of the registry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channel {
    /// Its number on the wire.
    pub id: ChannelId,
    /// Its name in the database and the API.
    pub name: &'static str,
    /// The unit of `value * step`.
    pub unit: &'static str,
    /// The value of one count, in `unit`.
    pub step: f64,
    /// Values in one sample.
    pub components: u8,
    /// Rows or blocks.
    pub shape: Shape,
    /// Fixed interval or per event.
    pub timing: Timing,
    /// The physically possible range in `unit`, inclusive. Outside it a value is kept, with quality 0 and a flag.
    pub range: (f64, f64),
    /// Seconds that one sample stands for: the reference plan's interval; of beats, the longest there is, rounded up.
    pub interval_s: u16,
}

impl Channel {
    /// A measured value as a count of steps, rounded to the nearest and saturated.
    pub fn quantise(&self, value: f64) -> i32 {
        let steps = value / self.step;
        // `as` saturates; `round` is not in `core`.
        (if steps < 0.0 { steps - 0.5 } else { steps + 0.5 }) as i32
    }

    /// A count of steps in the channel's unit. Steps are 1, a tenth, a hundredth, …: dividing gives the decimal itself, 64.8
    /// and not 64.80000000000001.
    pub fn value(&self, count: i32) -> f64 {
        f64::from(count) / (1.0 / self.step)
    }

    /// Whether `value`, in the channel's unit, is physically possible.
    pub fn in_range(&self, value: f64) -> bool {
        self.range.0 <= value && value <= self.range.1
    }

    /// Whether means of minutes are kept of it: of what becomes rows.
    pub fn has_minute_means(&self) -> bool {
        matches!(self.shape, Shape::Scalar)
    }

    /// [`minutes_apart_s`] at the reference plan's interval.
    pub fn minutes_apart_s(&self) -> u32 {
        minutes_apart_s(u32::from(self.interval_s))
    }
}

/// How far apart the minutes of two successive samples begin at most, seconds, by their interval: a minute, or, of what comes
/// more seldom, its interval and a minute, since a sample falls anywhere in its minute.
pub fn minutes_apart_s(interval_s: u32) -> u32 {
    if interval_s < 60 { 60 } else { interval_s.div_ceil(60).saturating_mul(60).saturating_add(60) }
}

/// Heart rate, 0.1 bpm.
pub const HEART_RATE: ChannelId = ChannelId(1);
/// Interval between two successive beats, 1 ms.
pub const RR_INTERVAL: ChannelId = ChannelId(2);
/// Skin temperature, 0.01 °C.
pub const SKIN_TEMPERATURE: ChannelId = ChannelId(3);
/// Ambient temperature beside the skin, 0.01 °C.
pub const AMBIENT_TEMPERATURE: ChannelId = ChannelId(4);
/// Electrodermal activity (skin conductance), 0.001 µS.
pub const EDA: ChannelId = ChannelId(5);
/// Peripheral oxygen saturation, 0.1 %.
pub const SPO2: ChannelId = ChannelId(6);
/// Activity counts in the last epoch of 30 s.
pub const ACTIVITY_COUNTS: ChannelId = ChannelId(7);
/// Steps since the count before.
pub const STEPS: ChannelId = ChannelId(8);
/// Battery, 1 %.
pub const BATTERY: ChannelId = ChannelId(9);
/// Photoplethysmogram, raw counts.
pub const PPG: ChannelId = ChannelId(64);
/// Acceleration x, y, z, 0.001 g.
pub const ACCELERATION: ChannelId = ChannelId(65);

const fn scalar(
    id: ChannelId,
    name: &'static str,
    unit: &'static str,
    step: f64,
    timing: Timing,
    range: (f64, f64),
    interval_s: u16,
) -> Channel {
    Channel { id, name, unit, step, components: 1, shape: Shape::Scalar, timing, range, interval_s }
}

/// Every channel there is, in the order of their numbers.
pub const REGISTRY: &[Channel] = &[
    scalar(HEART_RATE, "heart_rate", "bpm", 0.1, Timing::Regular, (20.0, 250.0), 1),
    scalar(RR_INTERVAL, "rr_interval", "ms", 1.0, Timing::PerBeat, (240.0, 3000.0), 3),
    scalar(SKIN_TEMPERATURE, "skin_temperature", "°C", 0.01, Timing::Regular, (15.0, 45.0), 1),
    scalar(AMBIENT_TEMPERATURE, "ambient_temperature", "°C", 0.01, Timing::Regular, (-30.0, 60.0), 1),
    scalar(EDA, "eda", "µS", 0.001, Timing::Regular, (0.0, 100.0), 1),
    scalar(SPO2, "spo2", "%", 0.1, Timing::Regular, (50.0, 100.0), 60),
    scalar(ACTIVITY_COUNTS, "activity_counts", "counts", 1.0, Timing::Regular, (0.0, 1_000_000.0), 30),
    scalar(STEPS, "steps", "steps", 1.0, Timing::Regular, (0.0, 10_000.0), 30),
    scalar(BATTERY, "battery", "%", 1.0, Timing::Regular, (0.0, 100.0), 300),
    Channel {
        id: PPG,
        name: "ppg",
        unit: "counts",
        step: 1.0,
        components: 1,
        shape: Shape::Waveform,
        timing: Timing::Regular,
        range: (0.0, 262_143.0),
        interval_s: 1,
    },
    Channel {
        id: ACCELERATION,
        name: "acceleration",
        unit: "g",
        step: 0.001,
        components: 3,
        shape: Shape::Waveform,
        timing: Timing::Regular,
        range: (-16.0, 16.0),
        interval_s: 1,
    },
];

/// The registry's entry of a number.
pub fn by_id(id: ChannelId) -> Option<&'static Channel> {
    REGISTRY.iter().find(|channel| channel.id == id)
}

/// The registry's entry of a name.
pub fn by_name(name: &str) -> Option<&'static Channel> {
    REGISTRY.iter().find(|channel| channel.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_in_order() {
        assert!(REGISTRY.windows(2).all(|pair| pair[0].id < pair[1].id && pair[0].name != pair[1].name));
    }

    #[test]
    fn quantising_rounds_to_the_nearest_step_on_both_sides_of_zero() {
        let ambient = by_id(AMBIENT_TEMPERATURE).unwrap();
        assert_eq!(ambient.quantise(21.237), 2124);
        assert_eq!(ambient.quantise(-0.016), -2);
        assert_eq!(ambient.quantise(f64::MAX), i32::MAX);
        assert!((ambient.value(2124) - 21.24).abs() < 1e-9);
    }
}
