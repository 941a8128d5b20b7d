//! A TMP117's register into hundredths of a degree.
//!
//! 7.8125 m°C a step, two's complement (TMP117 data sheet SNOS D82, 7.6.1); before its first conversion it holds 8000h.

/// Before the first conversion, and after a reset.
const NOT_CONVERTED: i16 = i16::MIN;
/// What the part measures, hundredths of a degree: −55 to 150 °C. Anything else is a broken wire.
const MEASURES: core::ops::RangeInclusive<i32> = -5_500..=15_000;

/// Hundredths of a degree Celsius, rounded; nothing where the part has not measured.
pub fn centidegrees(register: i16) -> Option<i32> {
    if register == NOT_CONVERTED {
        return None;
    }
    // 0.78125 hundredths a step: 25/32.
    let value = (i32::from(register) * 25 + 16) >> 5;
    MEASURES.contains(&value).then_some(value)
}
