//! Times as the API writes and reads them: UTC, in milliseconds.

use jiff::Timestamp;
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

    fn parse(text: &str) -> Option<Self> {
        let timestamp = match text.parse::<i64>() {
            Ok(ms) => Timestamp::from_millisecond(ms).ok()?,
            Err(_) => text.parse().ok()?,
        };
        // What PostgreSQL cannot hold is not a time here.
        let years =
            (Timestamp::from_second(-2_208_988_800).ok()?, Timestamp::from_second(7_258_118_400).ok()?);
        (timestamp > years.0 && timestamp < years.1).then_some(Self(timestamp))
    }
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
    Text(String),
}

impl<'de> Deserialize<'de> for UtcMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match Form::deserialize(deserializer) {
            Ok(Form::Ms(ms)) => Timestamp::from_millisecond(ms).ok().map(Self),
            Ok(Form::Text(text)) => Self::parse(&text),
            Err(_) => None,
        };
        parsed.ok_or_else(|| D::Error::custom("not a time: give RFC 3339, or milliseconds since 1970"))
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
        assert_eq!(UtcMs::parse("1795441500123"), Some(same));
        assert!(serde_json::from_str::<UtcMs>("\"yesterday\"").is_err());
        assert_eq!(UtcMs::parse("99999999999999"), None);
    }
}
