//! Times as the API writes and reads them: UTC, in milliseconds.

use jiff::Timestamp;
use kinara_protocol::entry;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};

/// An instant: RFC 3339 in UTC with milliseconds. Read from that, or from milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UtcMs(pub Timestamp);

impl UtcMs {
    /// From microseconds since 1970.
    pub fn from_us(us: i64) -> Option<Self> {
        Timestamp::from_microsecond(us).ok().map(Self)
    }

    /// Milliseconds since 1970.
    pub fn ms(self) -> i64 {
        self.0.as_millisecond()
    }

    fn parse(text: &str) -> Result<Self, BadTime> {
        match entry::plain_digits(text.trim()).parse::<i64>() {
            Ok(ms) => Self::from_millis(ms),
            // An address says ` ` for a `+` that was not escaped.
            Err(_) => entry::with_plus(text.trim()).parse().map_err(|_| BadTime::None).and_then(Self::within),
        }
    }

    fn from_millis(ms: i64) -> Result<Self, BadTime> {
        let timestamp = Timestamp::from_millisecond(entry::millis(ms)?).map_err(|_| BadTime::Far)?;
        Self::within(timestamp)
    }

    /// What PostgreSQL cannot hold, and what no clinic can mean, is no time here.
    fn within(time: Timestamp) -> Result<Self, BadTime> {
        if YEARS.contains(&time.as_second()) { Ok(Self(time)) } else { Err(BadTime::Far) }
    }
}

/// From the beginning of 1900 to that of 2200, in seconds since 1970.
const YEARS: std::ops::Range<i64> = -2_208_988_800..7_258_118_400;

/// Why a time is none.
#[derive(Debug, thiserror::Error)]
enum BadTime {
    #[error("not a time: give RFC 3339 with its offset, or milliseconds since 1970")]
    None,
    #[error("a time outside the years 1900 to 2199")]
    Far,
    #[error(transparent)]
    Unit(#[from] entry::OtherUnit),
}

impl Serialize for UtcMs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Ms(i64),
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for UtcMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match Form::deserialize(deserializer) {
            Ok(Form::Ms(ms)) => Self::from_millis(ms),
            Ok(Form::Float(ms)) if ms.fract() == 0.0 && ms.abs() < 1e15 => Self::from_millis(ms as i64),
            Ok(Form::Text(text)) => Self::parse(&text),
            Ok(Form::Float(_)) | Err(_) => Err(BadTime::None),
        };
        parsed.map_err(D::Error::custom)
    }
}

impl utoipa::PartialSchema for UtcMs {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("UTC with milliseconds"))
            .into()
    }
}

impl utoipa::ToSchema for UtcMs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_milliseconds_and_read_in_both_forms() {
        let time: UtcMs = serde_json::from_str("\"2026-11-23T13:45:00.1234Z\"").unwrap();
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-11-23T13:45:00.123Z\"");
        let same: UtcMs = serde_json::from_str("1795441500123").unwrap();
        assert_eq!(same.ms(), time.ms());
        assert_eq!(UtcMs::parse("1795441500123").unwrap(), same);
        assert_eq!(serde_json::from_str::<UtcMs>("1795441500123.0").unwrap(), same);
        assert!(serde_json::from_str::<UtcMs>("\"yesterday\"").is_err());
    }

    #[test]
    fn a_time_that_is_none_says_why() {
        let far = ["99999999999999", "-377705023201000", "0001-01-01T00:00:00Z", "9998-12-31T00:00:00Z"];
        for text in far {
            assert!(UtcMs::parse(text).unwrap_err().to_string().contains("1900"), "{text}");
        }
        assert!(serde_json::from_str::<UtcMs>("-377705023201000").unwrap_err().to_string().contains("1900"));
        assert!(UtcMs::parse("1795441500").unwrap_err().to_string().contains("seconds"));
        assert!(UtcMs::parse("1795441500123456").unwrap_err().to_string().contains("microseconds"));
    }

    #[test]
    fn an_offset_whose_plus_became_a_space_is_read() {
        let time = UtcMs::parse("2026-11-28T12:00:00 05:30").unwrap();
        assert_eq!(time, UtcMs::parse("2026-11-28T06:30:00Z").unwrap());
    }
}
