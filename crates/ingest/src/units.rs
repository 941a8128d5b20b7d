//! Units: what others measure in, in the channel's own.
//!
//! A gateway's frames are in their channels' units already; people who send readings over HTTP have theirs.

use kinara_protocol::channel::Channel;

/// Standard gravity, m/s² (ISO 80000-3).
const STANDARD_GRAVITY: f64 = 9.806_65;

/// A unit as it may be written, the channel's unit, and what a value is times and plus.
const UNITS: &[(&[&str], &str, f64, f64)] = &[
    (&["°C", "C", "degC", "Cel"], "°C", 1.0, 0.0),
    (&["°F", "F", "degF", "[degF]"], "°C", 5.0 / 9.0, -160.0 / 9.0),
    (&["K"], "°C", 1.0, -273.15),
    (&["g"], "g", 1.0, 0.0),
    (&["m/s²", "m/s2", "m/s^2", "m.s-2"], "g", 1.0 / STANDARD_GRAVITY, 0.0),
    (&["bpm", "/min", "1/min", "{beats}/min"], "bpm", 1.0, 0.0),
    (&["ms"], "ms", 1.0, 0.0),
    (&["s"], "ms", 1_000.0, 0.0),
    // Both the micro sign and the Greek letter.
    (&["µS", "\u{3bc}S", "uS"], "µS", 1.0, 0.0),
    (&["nS"], "µS", 0.001, 0.0),
    (&["S"], "µS", 1_000_000.0, 0.0),
    (&["%"], "%", 1.0, 0.0),
];

/// A value in the channel's unit. `None`: this unit measures something else.
pub fn to_canonical(channel: &Channel, value: f64, unit: &str) -> Option<f64> {
    if unit == channel.unit {
        return Some(value);
    }
    let (_, _, factor, offset) =
        UNITS.iter().find(|(names, of, ..)| *of == channel.unit && names.contains(&unit))?;
    Some(value * factor + offset)
}

/// The names a channel's values may come under.
pub fn accepted(channel: &Channel) -> Vec<&'static str> {
    let mut names: Vec<&str> = UNITS
        .iter()
        .filter(|(_, of, ..)| *of == channel.unit)
        .filter_map(|(names, ..)| names.first().copied())
        .collect();
    if names.is_empty() {
        names.push(channel.unit);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_protocol::channel::{ACCELERATION, EDA, RR_INTERVAL, SKIN_TEMPERATURE, STEPS, by_id};

    #[test]
    fn temperatures_accelerations_and_times_come_out_in_the_channels_unit() {
        for (id, value, unit, expected) in [
            (SKIN_TEMPERATURE, 98.6, "°F", 37.0),
            (SKIN_TEMPERATURE, 310.15, "K", 37.0),
            (SKIN_TEMPERATURE, 36.6, "°C", 36.6),
            (ACCELERATION, -9.806_65, "m/s²", -1.0),
            (RR_INTERVAL, 0.8, "s", 800.0),
            (EDA, 2_500.0, "nS", 2.5),
            (STEPS, 12.0, "steps", 12.0),
        ] {
            let channel = by_id(id).unwrap();
            let got = to_canonical(channel, value, unit).unwrap();
            assert!((got - expected).abs() < 1e-9, "{value} {unit}: {got}");
        }
    }

    #[test]
    fn a_unit_of_something_else_is_not_taken() {
        assert_eq!(to_canonical(by_id(SKIN_TEMPERATURE).unwrap(), 1.0, "g"), None);
        assert_eq!(to_canonical(by_id(STEPS).unwrap(), 1.0, "%"), None);
        assert_eq!(accepted(by_id(SKIN_TEMPERATURE).unwrap()), ["°C", "°F", "K"]);
    }
}
