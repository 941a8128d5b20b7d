//! What other makers' sensors send, read by their specifications and bounded by them.
//!
//! | service | characteristic | specification |
//! |---|---|---|
//! | Heart Rate 0x180D | Heart Rate Measurement 0x2A37 | HRS 1.0, 3.1 |
//! | Health Thermometer 0x1809 | Temperature Measurement 0x2A1C | HTS 1.0, 3.1; IEEE 11073-20601 FLOAT |
//! | Pulse Oximeter 0x1822 | PLX Continuous 0x2A5F and Spot-Check 0x2A5E | PLXS 1.0.1, 3.1 and 3.2; IEEE 11073-20601 SFLOAT |
//!
//! The promise: what is good in a packet is taken, and what is not is left out by itself, counted, with its reason. A value
//! that says of itself that it is none (NaN, "not at this resolution", reserved, infinite) is none. A value whose status
//! word says not to use it is never taken. A value with a time stamp comes with it: it may be of last night.

use jiff::civil::DateTime;

use crate::radio::SensorReport;

/// A heart beats between these, in beats a minute; 0 is a sensor without contact.
const HEART_RATE: std::ops::RangeInclusive<f64> = 1.0..=300.0;
/// RR intervals of 1/1024 s that a heart can have: 0.2 to 4 s.
const RR_INTERVAL: std::ops::RangeInclusive<u16> = 205..=4096;
/// What a thermometer for people can mean, °C.
const TEMPERATURE: std::ops::RangeInclusive<f64> = 10.0..=50.0;
/// Saturation, %.
const SPO2: std::ops::RangeInclusive<f64> = 1.0..=100.0;

/// Bits of the PLX Measurement Status (PLXS 3.1.5) that forbid the values: demonstration, testing, calibration, not
/// available, questionable, invalid.
const UNUSABLE_MEASUREMENT: u16 = 0b1111_1100_0000_0000;
/// The bit of the same word for a value out of the sensor's memory.
const FROM_MEMORY: u16 = 1 << 9;
/// Bits of the PLX Device and Sensor Status (PLXS 3.1.6) that forbid the values: malfunction, irregular, inadequate or poor
/// signal, erratic, not pulsatile, questionable pulse, interference, off the user, unknown, displaced, broken, disconnected.
const UNUSABLE_SENSOR: u32 = 0b1111_1101_1101_1110;

/// One measurement, in the units of the channels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measurement {
    /// Beats a minute.
    pub heart_rate: Option<f64>,
    /// The intervals between the last beats, oldest first.
    pub rr_intervals: Vec<RrInterval>,
    /// °C.
    pub temperature: Option<f64>,
    /// %.
    pub spo2: Option<f64>,
    /// When it was measured by the sensor's own clock, in its local time; without one it is of now.
    pub stamp: Option<DateTime>,
    /// What was not taken.
    pub left_out: Vec<LeftOut>,
}

/// A time between two beats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RrInterval {
    /// Milliseconds.
    pub ms: f64,
    /// Whether a heart can have it. One that it cannot have still took its time, which places those before it.
    pub taken: bool,
}

/// Why something in a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// Too short for what it must hold.
    #[error("a packet was cut short")]
    Short,
    /// Bytes that no flag tells of.
    #[error("a packet had bytes that its flags do not tell of")]
    Trailing,
    /// A value that such a sensor cannot mean.
    #[error("a value was out of what the sensor can mean")]
    Range,
    /// An interval between beats that no heart has.
    #[error("an interval between two beats was too short or too long")]
    Interval,
    /// Its status says that the value is not to be used.
    #[error("the sensor itself said that its value is not to be used")]
    Status,
    /// Its time stamp is no time, or it is from memory and has none.
    #[error("a value from the sensor's memory had no usable time")]
    Time,
    /// It has a time stamp, and the sensor's clock is not known to be right.
    #[error("the sensor's clock does not agree with this box's; set the sensor's date and time")]
    Clock,
    /// Its time stamp is later than its arrival.
    #[error("a value's time was in the future by the sensor's own clock; set the sensor's date and time")]
    Future,
    /// More in a second than a body has to tell.
    #[error("the sensor sent more values in a second than are taken")]
    TooMany,
    /// The store did not take it for too long.
    #[error("the box could not keep the values; look at its disk")]
    Store,
}

impl Measurement {
    /// Reads a notified value.
    pub fn read(report: SensorReport, bytes: &[u8]) -> Self {
        let mut reader = Reader(bytes);
        let read = match report {
            SensorReport::HeartRate => heart_rate(&mut reader),
            SensorReport::Temperature => temperature(&mut reader),
            SensorReport::OximetryContinuous => continuous(&mut reader),
            SensorReport::OximetrySpotCheck => spot_check(&mut reader),
        };
        read.unwrap_or_else(Self::nothing)
    }

    fn nothing(why: LeftOut) -> Self {
        Self { left_out: vec![why], ..Self::default() }
    }

    /// Whether there is no value in it.
    pub fn is_empty(&self) -> bool {
        self.heart_rate.is_none()
            && self.temperature.is_none()
            && self.spo2.is_none()
            && !self.rr_intervals.iter().any(|interval| interval.taken)
    }

    /// Takes a value that is within its range; leaves any other out.
    fn within(&mut self, value: Option<f64>, range: &std::ops::RangeInclusive<f64>) -> Option<f64> {
        let fits = value.filter(|value| range.contains(value));
        if value.is_some() && fits.is_none() {
            self.left_out.push(LeftOut::Range);
        }
        fits
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], LeftOut> {
        let (head, rest) = self.0.split_first_chunk().ok_or(LeftOut::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, LeftOut> {
        self.take().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, LeftOut> {
        self.take().map(u16::from_le_bytes)
    }

    fn u24(&mut self) -> Result<u32, LeftOut> {
        self.take().map(|[low, middle, high]| u32::from_le_bytes([low, middle, high, 0]))
    }

    /// Date Time 0x2A08: year, month, day, hours, minutes, seconds; a year, month or day of 0 is "not known".
    fn date_time(&mut self) -> Result<Option<DateTime>, LeftOut> {
        let year = self.u16()?;
        let [month, day, hour, minute, second] =
            self.take::<5>()?.map(|byte| i8::try_from(byte).unwrap_or(-1));
        if year == 0 || month == 0 || day == 0 {
            return Ok(None);
        }
        let year = i16::try_from(year).map_err(|_| LeftOut::Time)?;
        DateTime::new(year, month, day, hour, minute, second, 0).map(Some).map_err(|_| LeftOut::Time)
    }

    /// What is behind the last field: some sensors fill their packets up with zeros.
    fn trailing(&self) -> Option<LeftOut> {
        self.0.iter().any(|byte| *byte != 0).then_some(LeftOut::Trailing)
    }
}

fn heart_rate(reader: &mut Reader<'_>) -> Result<Measurement, LeftOut> {
    let flags = reader.u8()?;
    // Bit 2: the sensor can tell contact; bit 1: there is some.
    let no_contact = flags & 0b110 == 0b100;
    let rate = if flags & 1 != 0 { reader.u16()? } else { u16::from(reader.u8()?) };
    if no_contact {
        return Ok(Measurement::default());
    }
    let mut measurement = Measurement::default();
    // Energy expended, kJ, is not a channel of ours; where it is missing, no interval can follow it.
    if flags & 0b1000 != 0 && reader.u16().is_err() {
        measurement.left_out.push(LeftOut::Short);
        reader.0 = &[];
    }
    if flags & 0b1_0000 != 0 {
        intervals(reader, &mut measurement);
    } else {
        measurement.left_out.extend(reader.trailing());
    }
    if rate == 0 {
        return Ok(Measurement { left_out: measurement.left_out, ..Measurement::default() });
    }
    measurement.heart_rate = measurement.within(Some(f64::from(rate)), &HEART_RATE);
    Ok(measurement)
}

fn intervals(reader: &mut Reader<'_>, measurement: &mut Measurement) {
    while let Ok(units) = reader.u16() {
        // No time at all is no interval: the packet is filled up.
        if units == 0 {
            continue;
        }
        let taken = RR_INTERVAL.contains(&units);
        if !taken {
            measurement.left_out.push(LeftOut::Interval);
        }
        measurement.rr_intervals.push(RrInterval { ms: f64::from(units) * 1000.0 / 1024.0, taken });
    }
    measurement.left_out.extend(reader.trailing());
}

fn temperature(reader: &mut Reader<'_>) -> Result<Measurement, LeftOut> {
    let flags = reader.u8()?;
    let value = float(u32::from_le_bytes(reader.take()?));
    // A time stamp that is cut short may be of last night: the value is not taken for one of now.
    let stamp = if flags & 0b10 != 0 { reader.date_time()? } else { None };
    // Where on the body; it says nothing of the value.
    let place = if flags & 0b100 != 0 { reader.u8().err() } else { None };
    let mut measurement = Measurement { stamp, ..Measurement::default() };
    measurement.left_out.extend(place.or_else(|| reader.trailing()));
    let celsius = value.map(|value| if flags & 1 != 0 { (value - 32.0) / 1.8 } else { value });
    measurement.temperature = measurement.within(celsius, &TEMPERATURE);
    Ok(measurement)
}

fn continuous(reader: &mut Reader<'_>) -> Result<Measurement, LeftOut> {
    let flags = reader.u8()?;
    let (spo2, pulse) = (reader.u16()?, reader.u16()?);
    // The fast and the slow averages of the same pair.
    for _average in 0..(flags & 0b11).count_ones() {
        reader.take::<4>()?;
    }
    let measured = if flags & 0b100 != 0 { reader.u16()? } else { 0 };
    let sensor = if flags & 0b1000 != 0 { reader.u24()? } else { 0 };
    let amplitude = if flags & 0b1_0000 != 0 { reader.u16().err() } else { None };
    // Without a time stamp a value out of the memory cannot be placed.
    if measured & FROM_MEMORY != 0 {
        return Err(LeftOut::Time);
    }
    let left_out = amplitude.or_else(|| reader.trailing());
    oximetry((spo2, pulse), (measured, sensor), None, left_out)
}

fn spot_check(reader: &mut Reader<'_>) -> Result<Measurement, LeftOut> {
    let flags = reader.u8()?;
    let (spo2, pulse) = (reader.u16()?, reader.u16()?);
    let stamp = if flags & 0b1 != 0 { reader.date_time()? } else { None };
    let measured = if flags & 0b10 != 0 { reader.u16()? } else { 0 };
    let sensor = if flags & 0b100 != 0 { reader.u24()? } else { 0 };
    let amplitude = if flags & 0b1000 != 0 { reader.u16().err() } else { None };
    // Bit 4: the sensor's clock was never set.
    let stamp = stamp.filter(|_| flags & 0b1_0000 == 0);
    if measured & FROM_MEMORY != 0 && stamp.is_none() {
        return Err(LeftOut::Time);
    }
    let left_out = amplitude.or_else(|| reader.trailing());
    oximetry((spo2, pulse), (measured, sensor), stamp, left_out)
}

fn oximetry(
    (spo2, pulse): (u16, u16),
    (measured, sensor): (u16, u32),
    stamp: Option<DateTime>,
    left_out: Option<LeftOut>,
) -> Result<Measurement, LeftOut> {
    if measured & UNUSABLE_MEASUREMENT != 0 || sensor & UNUSABLE_SENSOR != 0 {
        return Err(LeftOut::Status);
    }
    let mut measurement = Measurement { stamp, ..Measurement::default() };
    measurement.left_out.extend(left_out);
    measurement.spo2 = measurement.within(sfloat(spo2), &SPO2);
    measurement.heart_rate = measurement.within(sfloat(pulse), &HEART_RATE);
    Ok(measurement)
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

    fn heart(bytes: &[u8]) -> Measurement {
        Measurement::read(SensorReport::HeartRate, bytes)
    }

    fn thermometer(bytes: &[u8]) -> Measurement {
        Measurement::read(SensorReport::Temperature, bytes)
    }

    fn taken_ms(measurement: &Measurement) -> Vec<f64> {
        measurement
            .rr_intervals
            .iter()
            .filter(|interval| interval.taken)
            .map(|interval| interval.ms)
            .collect()
    }

    #[test]
    fn a_heart_rate_is_read_in_all_its_forms() {
        assert_eq!(heart(&[0, 60]).heart_rate, Some(60.0));
        assert_eq!(heart(&[0b1, 0x2c, 0x01]).heart_rate, Some(300.0));
        // Contact, energy, and two intervals of 1 s and 0.5 s.
        let full = heart(&[0b1_1110, 72, 9, 0, 0x00, 0x04, 0x00, 0x02]);
        assert_eq!(full.heart_rate, Some(72.0));
        assert_eq!(taken_ms(&full), [1000.0, 500.0]);
        assert!(full.left_out.is_empty());
    }

    #[test]
    fn a_heart_rate_without_contact_is_none() {
        assert!(heart(&[0b100, 72]).is_empty());
        assert!(heart(&[0, 0]).is_empty());
    }

    /// A packet, the rate in it, the intervals in it, and what is left out.
    type Odd = (&'static [u8], f64, &'static [f64], &'static [LeftOut]);

    #[test]
    fn one_odd_field_costs_itself_and_not_the_heart_rate_beside_it() {
        let cases: [Odd; 8] = [
            (&[0x10, 61, 0x9a, 0x00], 61.0, &[], &[LeftOut::Interval]),
            (&[0x10, 62, 0x00, 0x04, 0x00, 0x00], 62.0, &[1000.0], &[]),
            (&[0x10, 63, 0xd0, 0x14], 63.0, &[], &[LeftOut::Interval]),
            (&[0x10, 64, 0x00, 0x04, 0x35], 64.0, &[1000.0], &[LeftOut::Trailing]),
            (&[0x00, 65, 0x00, 0x04], 65.0, &[], &[LeftOut::Trailing]),
            (&[0x00, 66, 0, 0, 0, 0], 66.0, &[], &[]),
            (&[0x08, 71], 71.0, &[], &[LeftOut::Short]),
            (&[0x18, 72, 1], 72.0, &[], &[LeftOut::Short]),
        ];
        for (bytes, rate, intervals, left_out) in cases {
            let read = heart(bytes);
            assert_eq!(read.heart_rate, Some(rate), "{bytes:x?}");
            assert_eq!(taken_ms(&read), intervals, "{bytes:x?}");
            assert_eq!(read.left_out, left_out, "{bytes:x?}");
        }
        let fast = heart(&[0x11, 0x2d, 0x01, 0x00, 0x04]);
        assert_eq!((fast.heart_rate, fast.left_out.as_slice()), (None, &[LeftOut::Range][..]));
        assert_eq!(taken_ms(&fast), [1000.0]);
    }

    #[test]
    fn a_packet_too_short_for_its_value_holds_none_and_is_counted() {
        for bytes in [&[][..], &[0], &[1, 60]] {
            let read = heart(bytes);
            assert!(read.is_empty() && read.left_out == [LeftOut::Short], "{bytes:?}");
        }
        assert_eq!(thermometer(&[0b10, 0x6e, 0x01, 0x00, 0xff, 0xea]).left_out, [LeftOut::Short]);
    }

    #[test]
    fn a_temperature_is_read_in_celsius_and_fahrenheit_with_time_and_place() {
        // 36.6: mantissa 366, exponent -1.
        let celsius = thermometer(&[0, 0x6e, 0x01, 0x00, 0xff]);
        assert!((celsius.temperature.unwrap() - 36.6).abs() < 1e-9);
        assert_eq!(celsius.stamp, None);
        // 98.60 °F: mantissa 9860, exponent -2; then a time stamp and a place.
        let bytes = [0b111, 0x84, 0x26, 0x00, 0xfe, 0xea, 0x07, 1, 2, 3, 4, 5, 2];
        let fahrenheit = thermometer(&bytes);
        assert!((fahrenheit.temperature.unwrap() - 37.0).abs() < 1e-9);
        assert_eq!(fahrenheit.stamp, Some(jiff::civil::date(2026, 1, 2).at(3, 4, 5, 0)));
        // Filled up to 13 bytes.
        let padded = thermometer(&[0, 0x6e, 0x01, 0x00, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(padded.temperature.is_some() && padded.left_out.is_empty());
    }

    #[test]
    fn a_temperature_whose_time_is_no_time_is_left_out_and_one_of_unknown_time_is_of_now() {
        let with = |month| thermometer(&[0b10, 0x6e, 0x01, 0x00, 0xff, 0xea, 0x07, month, 2, 3, 4, 5]);
        assert_eq!(with(13).left_out, [LeftOut::Time]);
        assert!(with(13).is_empty());
        assert_eq!((with(0).stamp, with(0).temperature.is_some()), (None, true));
    }

    #[test]
    fn a_temperature_that_is_none_is_none_and_an_impossible_one_is_left_out() {
        // NaN is the mantissa 0x7FFFFF.
        assert_eq!(thermometer(&[0, 0xff, 0xff, 0x7f, 0]), Measurement::default());
        let hot = thermometer(&[0, 0x6e, 0x01, 0x00, 0x00]);
        assert!(hot.is_empty() && hot.left_out == [LeftOut::Range]);
    }

    #[test]
    fn an_oximeter_gives_saturation_and_pulse_each_by_itself() {
        let read = |bytes: &[u8]| Measurement::read(SensorReport::OximetryContinuous, bytes);
        let plain = read(&[0, 97, 0, 64, 0]);
        assert_eq!((plain.spo2, plain.heart_rate), (Some(97.0), Some(64.0)));
        // 97.5 is 975 with exponent -1; the pulse is NaN.
        let finer = read(&[0, 0xcf, 0xf3, 0xff, 0x07]);
        assert_eq!((finer.spo2, finer.heart_rate), (Some(97.5), None));
        let no_pulse = read(&[0, 92, 0, 0, 0]);
        assert_eq!((no_pulse.spo2, no_pulse.left_out.as_slice()), (Some(92.0), &[LeftOut::Range][..]));
        let over = read(&[0, 101, 0, 64, 0]);
        assert_eq!((over.spo2, over.heart_rate), (None, Some(64.0)));
        assert_eq!(read(&[0, 97, 0, 64]).left_out, [LeftOut::Short]);
    }

    #[test]
    fn what_an_oximeter_says_not_to_use_is_not_used() {
        // Demonstration, testing, calibration, unavailable, questionable, invalid.
        for bit in 10..16 {
            let [low, high] = (1_u16 << bit).to_le_bytes();
            let continuous =
                Measurement::read(SensorReport::OximetryContinuous, &[0b100, 96, 0, 63, 0, low, high]);
            let spot = Measurement::read(SensorReport::OximetrySpotCheck, &[0b10, 96, 0, 63, 0, low, high]);
            assert!(continuous.is_empty() && continuous.left_out == [LeftOut::Status], "bit {bit}");
            assert!(spot.is_empty() && spot.left_out == [LeftOut::Status], "bit {bit}");
        }
        // Unconnected and malfunctioning; poor signal; and one with a status that forbids nothing.
        let with = |sensor: [u8; 3]| {
            let [low, middle, high] = sensor;
            Measurement::read(SensorReport::OximetryContinuous, &[0b1000, 94, 0, 61, 0, low, middle, high])
        };
        assert!(with([0x00, 0x48, 0x00]).is_empty());
        assert!(with([0x10, 0x00, 0x00]).is_empty());
        assert_eq!(with([0x01, 0x02, 0x00]).spo2, Some(94.0));
        // A status that is promised and cut short may have forbidden it.
        let cut = Measurement::read(SensorReport::OximetrySpotCheck, &[0x04, 96, 0, 63, 0, 0, 4]);
        assert!(cut.is_empty() && cut.left_out == [LeftOut::Short]);
    }

    #[test]
    fn a_spot_check_out_of_the_memory_has_its_own_time_or_is_left_out() {
        let bytes = [0x03, 0x5d, 0, 0x3c, 0, 0xea, 0x07, 0x0b, 0x1c, 3, 0, 0, 0x00, 0x02];
        let stored = Measurement::read(SensorReport::OximetrySpotCheck, &bytes);
        assert_eq!(stored.stamp, Some(jiff::civil::date(2026, 11, 28).at(3, 0, 0, 0)));
        assert_eq!(stored.spo2, Some(93.0));
        let mut clock_not_set = bytes;
        clock_not_set[0] |= 0b1_0000;
        let unplaced = Measurement::read(SensorReport::OximetrySpotCheck, &clock_not_set);
        assert!(unplaced.is_empty() && unplaced.left_out == [LeftOut::Time]);
    }

    #[test]
    fn a_negative_mantissa_and_exponent_come_out_right() {
        assert_eq!(sfloat(0xffff), Some(-0.1));
        assert_eq!(float(0xfffe_ffff_u32), Some(-6_553.7));
        assert_eq!([0x07ff, 0x0800, 0x07fe, 0x0802, 0x0801].map(sfloat), [None; 5]);
    }

    proptest! {
        #[test]
        fn whatever_a_sensor_sends_gives_possible_values_or_says_what_it_left_out(
            report in prop_oneof![
                Just(SensorReport::HeartRate), Just(SensorReport::Temperature),
                Just(SensorReport::OximetryContinuous), Just(SensorReport::OximetrySpotCheck),
            ],
            bytes in proptest::collection::vec(any::<u8>(), 0..512),
        ) {
            let measurement = Measurement::read(report, &bytes);
            let fine = |value: Option<f64>, range: std::ops::RangeInclusive<f64>| {
                value.is_none_or(|value| range.contains(&value))
            };
            prop_assert!(fine(measurement.heart_rate, HEART_RATE));
            prop_assert!(fine(measurement.temperature, TEMPERATURE));
            prop_assert!(fine(measurement.spo2, SPO2));
            prop_assert!(measurement.rr_intervals.len() <= bytes.len() / 2);
            prop_assert!(taken_ms(&measurement).iter().all(|ms| (200.0..=4000.0).contains(ms)));
        }

        #[test]
        fn every_heart_rate_that_fits_comes_back(rate in 1_u16..=300, intervals in proptest::collection::vec(205_u16..=4096, 0..9)) {
            let mut bytes = vec![0b1_0001];
            bytes.extend(rate.to_le_bytes());
            bytes.extend(intervals.iter().flat_map(|one| one.to_le_bytes()));
            let measurement = heart(&bytes);
            prop_assert_eq!(measurement.heart_rate, Some(f64::from(rate)));
            prop_assert_eq!(taken_ms(&measurement).len(), intervals.len());
        }
    }
}
