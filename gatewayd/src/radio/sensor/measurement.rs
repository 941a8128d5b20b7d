//! What other makers' sensors send, read by their specifications and bounded by them.
//!
//! | service | characteristic | specification |
//! |---|---|---|
//! | Heart Rate 0x180D | Heart Rate Measurement 0x2A37 | HRS 1.0, 3.1 |
//! | Health Thermometer 0x1809 | Temperature Measurement 0x2A1C | HTS 1.0, 3.1; IEEE 11073-20601 FLOAT |
//! | Pulse Oximeter 0x1822 | PLX Continuous 0x2A5F and Spot-Check 0x2A5E | PLXS 1.0.1, 3.1 and 3.2; IEEE 11073-20601 SFLOAT |
//!
//! A value that says of itself that it is none (NaN, "not at this resolution", the reserved ones, infinities) is none.
//! One that no such sensor can mean is refused with the whole measurement: it is better missing than wrong.

use crate::radio::SensorKind;

/// A heart beats between these, in beats a minute; 0 is a sensor without contact.
const HEART_RATE: std::ops::RangeInclusive<u16> = 1..=300;
/// RR intervals of 1/1024 s that a heart can have: 0.2 to 4 s.
const RR_INTERVAL: std::ops::RangeInclusive<u16> = 205..=4096;
/// What a thermometer for people can mean, °C.
const TEMPERATURE: std::ops::RangeInclusive<f64> = 10.0..=50.0;
/// Saturation, %.
const SPO2: std::ops::RangeInclusive<f64> = 1.0..=100.0;

/// One measurement, in the units of the channels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measurement {
    /// Beats a minute.
    pub heart_rate: Option<f64>,
    /// The intervals between the last beats in ms, oldest first.
    pub rr_intervals_ms: Vec<f64>,
    /// °C.
    pub temperature: Option<f64>,
    /// %.
    pub spo2: Option<f64>,
}

/// The bytes are no measurement of this service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMeasurement {
    /// Shorter or longer than its flags say.
    #[error("its length is not what its flags say")]
    Length,
    /// A value that such a sensor cannot mean.
    #[error("a value is out of what the sensor can mean")]
    Range,
}

impl Measurement {
    /// Reads a notified value.
    pub fn read(kind: SensorKind, bytes: &[u8]) -> Result<Self, BadMeasurement> {
        let mut reader = Reader(bytes);
        match kind {
            SensorKind::HeartRate => heart_rate(&mut reader),
            SensorKind::HealthThermometer => temperature(&mut reader),
            SensorKind::PulseOximeter => oximetry(&mut reader),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadMeasurement> {
        let (head, rest) = self.0.split_first_chunk().ok_or(BadMeasurement::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, BadMeasurement> {
        self.take().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, BadMeasurement> {
        self.take().map(u16::from_le_bytes)
    }
}

fn heart_rate(reader: &mut Reader<'_>) -> Result<Measurement, BadMeasurement> {
    let flags = reader.u8()?;
    let wide = flags & 1 != 0;
    // Bit 2: the sensor can tell contact; bit 1: there is some.
    let no_contact = flags & 0b110 == 0b100;
    let rate = if wide { reader.u16()? } else { u16::from(reader.u8()?) };
    if flags & 0b1000 != 0 {
        // Energy expended, kJ: not a channel of ours.
        reader.u16()?;
    }
    let mut measurement = Measurement::default();
    if flags & 0b1_0000 != 0 {
        while !reader.0.is_empty() {
            let interval = reader.u16()?;
            if !RR_INTERVAL.contains(&interval) {
                return Err(BadMeasurement::Range);
            }
            measurement.rr_intervals_ms.push(f64::from(interval) * 1000.0 / 1024.0);
        }
    } else if !reader.0.is_empty() {
        return Err(BadMeasurement::Length);
    }
    if no_contact || rate == 0 {
        return Ok(Measurement::default());
    }
    if !HEART_RATE.contains(&rate) {
        return Err(BadMeasurement::Range);
    }
    measurement.heart_rate = Some(f64::from(rate));
    Ok(measurement)
}

fn temperature(reader: &mut Reader<'_>) -> Result<Measurement, BadMeasurement> {
    let flags = reader.u8()?;
    let value = float(u32::from_le_bytes(reader.take()?));
    if flags & 0b10 != 0 {
        // Its own time stamp; ours is kept in its place.
        reader.take::<7>()?;
    }
    if flags & 0b100 != 0 {
        // Where on the body.
        reader.u8()?;
    }
    if !reader.0.is_empty() {
        return Err(BadMeasurement::Length);
    }
    let celsius = value.map(|value| if flags & 1 != 0 { (value - 32.0) / 1.8 } else { value });
    Ok(Measurement { temperature: within(celsius, &TEMPERATURE)?, ..Measurement::default() })
}

fn oximetry(reader: &mut Reader<'_>) -> Result<Measurement, BadMeasurement> {
    // Both forms begin alike; what follows the normal pair is optional and not a channel of ours.
    let _flags = reader.u8()?;
    let spo2 = sfloat(reader.u16()?);
    let pulse = sfloat(reader.u16()?);
    if reader.0.len() > 20 {
        return Err(BadMeasurement::Length);
    }
    let beats = f64::from(*HEART_RATE.start())..=f64::from(*HEART_RATE.end());
    Ok(Measurement {
        spo2: within(spo2, &SPO2)?,
        heart_rate: within(pulse, &beats)?,
        ..Measurement::default()
    })
}

fn within(value: Option<f64>, range: &std::ops::RangeInclusive<f64>) -> Result<Option<f64>, BadMeasurement> {
    match value {
        Some(value) if !range.contains(&value) => Err(BadMeasurement::Range),
        value => Ok(value),
    }
}

/// IEEE 11073-20601 FLOAT: 8 bits of exponent (upper), 24 of mantissa, to the base 10.
fn float(bits: u32) -> Option<f64> {
    let mantissa = bits & 0x00ff_ffff;
    // +INF, NaN, NRes, reserved, -INF.
    if (0x007f_fffe..=0x0080_0002).contains(&mantissa) {
        return None;
    }
    let signed = ((mantissa << 8) as i32) >> 8;
    Some(scaled(signed, (bits >> 24) as u8 as i8))
}

/// IEEE 11073-20601 SFLOAT: 4 bits of exponent (upper), 12 of mantissa, to the base 10.
fn sfloat(bits: u16) -> Option<f64> {
    let mantissa = bits & 0x0fff;
    if (0x07fe..=0x0802).contains(&mantissa) {
        return None;
    }
    let signed = i32::from(((mantissa << 4) as i16) >> 4);
    Some(scaled(signed, ((bits >> 8) as u8 as i8) >> 4))
}

fn scaled(mantissa: i32, exponent: i8) -> f64 {
    let (mantissa, power) = (f64::from(mantissa), 10_f64.powi(i32::from(exponent).abs()));
    // Divided: a tenth has no exact form, ten has.
    if exponent < 0 { mantissa / power } else { mantissa * power }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(kind: SensorKind, bytes: &[u8]) -> Result<Measurement, BadMeasurement> {
        Measurement::read(kind, bytes)
    }

    #[test]
    fn a_heart_rate_is_read_in_all_its_forms() {
        let plain = read(SensorKind::HeartRate, &[0, 60]).unwrap();
        assert_eq!(plain.heart_rate, Some(60.0));
        let wide = read(SensorKind::HeartRate, &[0b1, 0x2c, 0x01]).unwrap();
        assert_eq!(wide.heart_rate, Some(300.0));
        // Contact, energy, and two intervals of 1 s and 0.5 s.
        let full = read(SensorKind::HeartRate, &[0b1_1110, 72, 9, 0, 0x00, 0x04, 0x00, 0x02]).unwrap();
        assert_eq!(full.heart_rate, Some(72.0));
        assert_eq!(full.rr_intervals_ms, [1000.0, 500.0]);
    }

    #[test]
    fn a_heart_rate_without_contact_is_none() {
        assert!(read(SensorKind::HeartRate, &[0b100, 72]).unwrap().is_empty());
        assert!(read(SensorKind::HeartRate, &[0, 0]).unwrap().is_empty());
    }

    #[test]
    fn a_heart_rate_cut_short_too_long_or_impossible_is_refused() {
        for bytes in [&[][..], &[0], &[1, 60], &[0, 60, 1], &[0b1_0000, 60, 1], &[0b1000, 60, 1]] {
            assert_eq!(read(SensorKind::HeartRate, bytes), Err(BadMeasurement::Length), "{bytes:?}");
        }
        for bytes in [&[1, 0x2d, 0x01][..], &[0b1_0000, 60, 1, 0]] {
            assert_eq!(read(SensorKind::HeartRate, bytes), Err(BadMeasurement::Range), "{bytes:?}");
        }
    }

    #[test]
    fn a_temperature_is_read_in_celsius_and_fahrenheit_with_time_and_place() {
        // 36.6: mantissa 366, exponent -1.
        let celsius = read(SensorKind::HealthThermometer, &[0, 0x6e, 0x01, 0x00, 0xff]).unwrap();
        assert!((celsius.temperature.unwrap() - 36.6).abs() < 1e-9);
        // 98.60 °F: mantissa 9860, exponent -2; then a time stamp and a place.
        let bytes = [0b111, 0x84, 0x26, 0x00, 0xfe, 0xea, 0x07, 1, 2, 3, 4, 5, 2];
        let fahrenheit = read(SensorKind::HealthThermometer, &bytes).unwrap();
        assert!((fahrenheit.temperature.unwrap() - 37.0).abs() < 1e-9);
    }

    #[test]
    fn a_temperature_that_is_none_is_none_and_an_impossible_one_is_refused() {
        // NaN is the mantissa 0x7FFFFF.
        assert!(read(SensorKind::HealthThermometer, &[0, 0xff, 0xff, 0x7f, 0]).unwrap().is_empty());
        assert_eq!(
            read(SensorKind::HealthThermometer, &[0, 0x6e, 0x01, 0x00, 0x00]),
            Err(BadMeasurement::Range)
        );
        assert_eq!(read(SensorKind::HealthThermometer, &[0b10, 0, 0, 0, 0]), Err(BadMeasurement::Length));
    }

    #[test]
    fn an_oximeter_gives_saturation_and_pulse() {
        let plain = read(SensorKind::PulseOximeter, &[0, 97, 0, 64, 0]).unwrap();
        assert_eq!((plain.spo2, plain.heart_rate), (Some(97.0), Some(64.0)));
        // 97.5 is 975 with exponent -1; the pulse is NaN.
        let finer = read(SensorKind::PulseOximeter, &[0, 0xcf, 0xf3, 0xff, 0x07]).unwrap();
        assert_eq!((finer.spo2, finer.heart_rate), (Some(97.5), None));
        assert_eq!(read(SensorKind::PulseOximeter, &[0, 101, 0, 64, 0]), Err(BadMeasurement::Range));
        assert_eq!(read(SensorKind::PulseOximeter, &[0, 97, 0, 64]), Err(BadMeasurement::Length));
    }

    #[test]
    fn a_negative_mantissa_and_exponent_come_out_right() {
        assert_eq!(sfloat(0xffff), Some(-0.1));
        assert_eq!(float(0xfffe_ffff_u32), Some(-6_553.7));
        assert_eq!([0x07ff, 0x0800, 0x07fe, 0x0802, 0x0801].map(sfloat), [None; 5]);
    }

    proptest! {
        #[test]
        fn whatever_a_sensor_sends_gives_possible_values_or_an_error(
            kind in prop_oneof![
                Just(SensorKind::HeartRate), Just(SensorKind::HealthThermometer), Just(SensorKind::PulseOximeter),
            ],
            bytes in proptest::collection::vec(any::<u8>(), 0..512),
        ) {
            if let Ok(measurement) = Measurement::read(kind, &bytes) {
                let fine = |value: Option<f64>, range: std::ops::RangeInclusive<f64>| {
                    value.is_none_or(|value| range.contains(&value))
                };
                prop_assert!(fine(measurement.heart_rate, 1.0..=300.0));
                prop_assert!(fine(measurement.temperature, TEMPERATURE));
                prop_assert!(fine(measurement.spo2, SPO2));
                prop_assert!(measurement.rr_intervals_ms.len() <= bytes.len() / 2);
                prop_assert!(measurement.rr_intervals_ms.iter().all(|ms| (200.0..=4000.0).contains(ms)));
            }
        }

        #[test]
        fn every_heart_rate_that_fits_comes_back(rate in 1_u16..=300, intervals in proptest::collection::vec(205_u16..=4096, 0..9)) {
            let mut bytes = vec![0b1_0001];
            bytes.extend(rate.to_le_bytes());
            bytes.extend(intervals.iter().flat_map(|one| one.to_le_bytes()));
            let measurement = Measurement::read(SensorKind::HeartRate, &bytes).unwrap();
            prop_assert_eq!(measurement.heart_rate, Some(f64::from(rate)));
            prop_assert_eq!(measurement.rr_intervals_ms.len(), intervals.len());
        }
    }
}
