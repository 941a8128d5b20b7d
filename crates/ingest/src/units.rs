//! Units: what others measure in, in the channel's own.
//!
//! A gateway's frames are in their channels' units already; people who send readings over HTTP have theirs.

use kinara_protocol::channel::Channel;
use kinara_protocol::entry;

/// Standard gravity, m/s² (ISO 80000-3).
const STANDARD_GRAVITY: f64 = 9.806_65;

/// How a unit may be written (UCUM, Apple HealthKit, Open mHealth, people), the channel's unit, and what a value is times
/// and plus. In small letters, as [`folded`] gives them: no two units of one channel differ by capitals alone.
const UNITS: &[(&[&str], &str, f64, f64)] = &[
    (&["°c", "c", "degc", "cel", "celsius"], "°C", 1.0, 0.0),
    (&["°f", "f", "degf", "[degf]", "fahrenheit"], "°C", 5.0 / 9.0, -160.0 / 9.0),
    (&["k", "kelvin"], "°C", 1.0, -273.15),
    (&["g"], "g", 1.0, 0.0),
    (&["mg"], "g", 0.001, 0.0),
    (&["m/s2", "m/s^2", "m.s-2"], "g", 1.0 / STANDARD_GRAVITY, 0.0),
    (&["bpm", "/min", "1/min", "{beats}/min", "beats/min", "beat/min", "count/min"], "bpm", 1.0, 0.0),
    (&["count/s", "hz", "1/s", "/s"], "bpm", 60.0, 0.0),
    (&["ms", "msec"], "ms", 1.0, 0.0),
    (&["s", "sec"], "ms", 1_000.0, 0.0),
    (&["µs", "us", "mcs"], "µS", 1.0, 0.0),
    (&["ns"], "µS", 0.001, 0.0),
    (&["s"], "µS", 1_000_000.0, 0.0),
    (&["%", "percent"], "%", 1.0, 0.0),
    (&["counts", "count"], "counts", 1.0, 0.0),
    (&["steps", "step", "count"], "steps", 1.0, 0.0),
];

/// A unit without spaces and capitals, with the signs that look alike as one.
fn folded(unit: &str) -> String {
    let mut out = String::with_capacity(unit.len());
    for c in unit.chars().filter(|c| !entry::is_blank(*c)) {
        match c {
            '℃' => out.push_str("°c"),
            '℉' => out.push_str("°f"),
            // The ordinal indicator, the ring above and the ring operator, which keyboards offer in place of the degree.
            'º' | '\u{2da}' | '\u{2218}' => out.push('°'),
            // The Greek letter for the micro sign.
            '\u{3bc}' => out.push('µ'),
            '²' => out.push('2'),
            '％' => out.push('%'),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// A value in the channel's unit. `None`: this unit measures something else.
pub fn to_canonical(channel: &Channel, value: f64, unit: &str) -> Option<f64> {
    if unit == channel.unit {
        return Some(value);
    }
    let unit = folded(unit);
    let (_, _, factor, offset) =
        UNITS.iter().find(|(names, of, ..)| *of == channel.unit && names.contains(&unit.as_str()))?;
    Some(value * factor + offset)
}

/// All names that a channel's values may come under, its own unit first. Capitals and spaces do not matter.
pub fn accepted(channel: &Channel) -> Vec<&'static str> {
    let others = UNITS.iter().filter(|(_, of, ..)| *of == channel.unit).flat_map(|(names, ..)| names.iter());
    let own = folded(channel.unit);
    std::iter::once(channel.unit).chain(others.copied().filter(|name| *name != own)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_protocol::channel::{
        self, ACCELERATION, EDA, HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE, STEPS, by_id,
    };

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
            (STEPS, 12.0, "count", 12.0),
            (HEART_RATE, 72.0, "count/min", 72.0),
            (HEART_RATE, 72.0, "beats/min", 72.0),
            (HEART_RATE, 72.0, " BPM", 72.0),
            (HEART_RATE, 1.2, "count/s", 72.0),
            (SKIN_TEMPERATURE, 36.6, "℃", 36.6),
            (SKIN_TEMPERATURE, 36.6, "ºC", 36.6),
            (SKIN_TEMPERATURE, 36.6, "°C ", 36.6),
            (SKIN_TEMPERATURE, 97.88, "℉", 36.6),
            (EDA, 2.0, "\u{3bc}S", 2.0),
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
        assert_eq!(accepted(by_id(HEART_RATE).unwrap())[..4], ["bpm", "/min", "1/min", "{beats}/min"]);
    }

    #[test]
    fn every_unit_that_is_listed_is_taken_and_means_one_thing() {
        for channel in channel::REGISTRY {
            let names = accepted(channel);
            for name in &names {
                assert!(to_canonical(channel, 1.0, name).is_some(), "{} {name}", channel.name);
            }
            let distinct: std::collections::BTreeSet<&&str> = names.iter().collect();
            assert_eq!(distinct.len(), names.len(), "{}", channel.name);
        }
    }
}
