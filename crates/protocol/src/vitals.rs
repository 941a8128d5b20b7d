//! The newest values of a wearable as the standard services of Bluetooth have them, for whoever knows no other: Heart Rate
//! (Heart Rate Service 1.0, 3.1) and Health Thermometer (Health Thermometer Service 1.0, 3.1).

/// Intervals that one measurement carries.
pub const MAX_INTERVALS: usize = 4;
/// Bytes of the longest heart rate measurement.
pub const MAX_HEART_RATE: usize = 2 + 2 * MAX_INTERVALS;
/// Bytes of a temperature measurement.
pub const TEMPERATURE_LEN: usize = 6;

/// What was measured last. Taken, the intervals are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vitals {
    /// Tenths of beats a minute.
    pub heart_rate: Option<i32>,
    /// Milliseconds between beats, oldest first; the first [`count`](Self::count) of them.
    pub intervals: [u16; MAX_INTERVALS],
    /// How many there are.
    pub count: usize,
    /// Hundredths of a degree Celsius, of the skin.
    pub skin: Option<i32>,
}

impl Vitals {
    /// An interval more; the oldest gives way.
    pub fn interval(&mut self, ms: u16) {
        if self.count == MAX_INTERVALS {
            self.intervals.rotate_left(1);
            self.count -= 1;
        }
        self.intervals[self.count] = ms;
        self.count += 1;
    }

    /// A Heart Rate Measurement: bytes and their number. None without a heart rate.
    pub fn heart_rate_measurement(&self) -> Option<([u8; MAX_HEART_RATE], usize)> {
        /// The sensor knows whether it has contact, and has.
        const CONTACT: u8 = 0b0000_0110;
        /// Intervals follow, in 1/1024 s.
        const INTERVALS: u8 = 0b0001_0000;
        let beats = (self.heart_rate? + 5) / 10;
        let mut bytes = [0; MAX_HEART_RATE];
        bytes[0] = CONTACT | if self.count > 0 { INTERVALS } else { 0 };
        bytes[1] = beats.clamp(0, 255) as u8;
        for (place, ms) in self.intervals[..self.count].iter().enumerate() {
            let parts = (u32::from(*ms) * 1_024 + 500) / 1_000;
            bytes[2 + 2 * place..][..2].copy_from_slice(&(parts as u16).to_le_bytes());
        }
        Some((bytes, 2 + 2 * self.count))
    }

    /// A Temperature Measurement in degrees Celsius, of the body's surface. None without a temperature.
    pub fn temperature_measurement(&self) -> Option<[u8; TEMPERATURE_LEN]> {
        /// The type follows.
        const TYPED: u8 = 0b0000_0100;
        /// Body (general).
        const BODY: u8 = 2;
        /// Exponent of an IEEE 11073 FLOAT: hundredths.
        const HUNDREDTHS: u8 = 0xfe;
        let [low, middle, high, _] = self.skin?.to_le_bytes();
        Some([TYPED, low, middle, high, HUNDREDTHS, BODY])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_those_of_the_services() {
        let mut vitals = Vitals { heart_rate: Some(723), skin: Some(3_312), ..Vitals::default() };
        assert_eq!(vitals.heart_rate_measurement(), Some(([6, 72, 0, 0, 0, 0, 0, 0, 0, 0], 2)));
        for ms in [1_000, 830, 840, 850, 860] {
            vitals.interval(ms);
        }
        let (bytes, length) = vitals.heart_rate_measurement().unwrap();
        // 830 ms are 850/1024 s; the first one had to give way.
        assert_eq!((&bytes[..4], length), ([0x16, 72, 0x52, 0x03].as_slice(), 10));
        assert_eq!(vitals.temperature_measurement(), Some([4, 0xf0, 0x0c, 0, 0xfe, 2]));
        assert_eq!(Vitals::default().heart_rate_measurement(), None);
        let cold = Vitals { skin: Some(-150), ..Vitals::default() };
        assert_eq!(cold.temperature_measurement(), Some([4, 0x6a, 0xff, 0xff, 0xfe, 2]));
    }
}
