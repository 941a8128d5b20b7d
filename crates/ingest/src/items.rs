//! What comes over HTTP, made into what a gateway would have sealed.
//!
//! A clinic's own programs send readings one by one: source, time, type, value. Each becomes a frame of one sample,
//! whose ticks are milliseconds of UTC, so that everything behind it (ledger, assignments, consent, quarantine, replay)
//! is the gateways' own. A reading that cannot be one is refused by its place, with the reason; the others are taken.
//!
//! Identity: a reading carries `(source, epoch, seq)`, or the request has a key and its readings are counted in an epoch
//! that was drawn for it. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kinara_protocol::channel::{self, Channel, Shape};
use kinara_protocol::columns;
use kinara_protocol::entry;
use kinara_protocol::envelope::{self, DeviceFrames, ENVELOPE_VERSION, Fit};
use kinara_protocol::frame::{Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};
use kinara_protocol::hardware::HardwareId;
use kinara_protocol::limits::{DEVICES, REQUEST_READING, REQUEST_READINGS, REQUEST_SOURCES};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::units;

/// Readings in one batch: a transaction of the usual size.
const BATCH: usize = 5_000;
/// Refusals that are told of one request.
const TOLD: usize = 1_000;
/// The longest refusal, in characters.
const DETAIL: usize = 500;
/// How far a client's clock may be off where it does not say, µs.
const UNCERTAINTY_US: u64 = 1_000_000;
/// The most that a client may say of its clock: a day, ms.
const MOST_UNCERTAIN_MS: u64 = 86_400_000;

/// How readings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A JSON array of readings, or an object with one as `readings`.
    Json,
    /// A reading a line.
    JsonLines,
    /// A batch as gateways seal it, plain Protobuf.
    Protobuf,
}

/// Why nothing of a request can be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON of this shape.
    #[error("the body is not a JSON array of readings, nor an object with one as `readings`: {0}")]
    Json(#[source] serde_json::Error),
    /// Not Protobuf of this shape.
    #[error("the body is not a batch in Protobuf: {0}")]
    Protobuf(#[source] envelope::EnvelopeError),
    /// Another version.
    #[error("envelope version {0} is not read here")]
    Version(u32),
    /// More than one request may have.
    #[error("there are more than {0} {1} in the body; send it in parts")]
    TooMany(usize, &'static str),
    /// Neither a key nor an identity.
    #[error(
        "reading {0} has no epoch and seq, and the request no Idempotency-Key: one of them is needed, so that a \
             request that is sent twice is not counted twice"
    )]
    Nameless(usize),
    /// Empty.
    #[error("there is no reading in the body")]
    Empty,
}

/// A reading that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Which of its fields.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

/// A request, read.
#[derive(Debug, Default)]
pub struct Request {
    /// What is to be written.
    pub batches: Vec<envelope::Batch>,
    /// Readings in the request (frames, of a Protobuf batch).
    pub items: usize,
    /// Of these, refused.
    pub refused: usize,
    /// The first thousand refusals.
    pub told: Vec<Refused>,
}

/// A reading as it is sent, each field still as it was written: so a refusal can name the field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default)]
    epoch: Option<&'a RawValue>,
    #[serde(borrow, default)]
    seq: Option<&'a RawValue>,
    #[serde(borrow, default)]
    time: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    unit: Option<&'a RawValue>,
    /// How far `time` may be from the truth.
    #[serde(borrow, default)]
    uncertainty_ms: Option<&'a RawValue>,
}

/// Which field is wrong, and how.
type Wrong = (&'static str, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped<'a> {
    #[serde(borrow)]
    readings: Readings<'a>,
}

/// Readings as they stand in the body, no more of them than a request may have.
struct Readings<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Readings<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counted;
        impl<'de> Visitor<'de> for Counted {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of readings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    if all.len() == REQUEST_READINGS {
                        return Err(A::Error::custom(format!("more than {REQUEST_READINGS} readings")));
                    }
                    all.push(item);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_seq(Counted).map(Self)
    }
}

/// A reading that can be one.
struct Reading {
    source: String,
    epoch: Option<Epoch>,
    seq: Option<u32>,
    utc_ms: u64,
    channel: &'static Channel,
    counts: Vec<i32>,
    uncertainty_us: u64,
}

/// Reads a request. `drawn`: the epoch in which readings without an identity are counted, where the request has a key.
pub fn read(body: &[u8], form: Form, drawn: Option<Epoch>) -> Result<Request, Unreadable> {
    if form == Form::Protobuf {
        return protobuf(body);
    }
    // Excel, PowerShell and .NET write a byte order mark in front of UTF-8.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let items = raw(body, form)?;
    if items.is_empty() {
        return Err(Unreadable::Empty);
    }
    let mut out = Request { items: items.len(), ..Request::default() };
    let mut groups: BTreeMap<Group, Vec<(u32, Reading)>> = BTreeMap::new();
    let mut counted: BTreeMap<String, u32> = BTreeMap::new();
    for (index, item) in items.into_iter().enumerate() {
        let reading = match item.map_err(|error| ("reading", error)).and_then(reading) {
            Ok(reading) => reading,
            Err((field, detail)) => {
                out.refuse(index, field, &detail);
                continue;
            }
        };
        let (epoch, seq) = match (reading.epoch, reading.seq, drawn) {
            (Some(epoch), Some(seq), _) => (epoch, seq),
            (None, None, Some(drawn)) => {
                let next = counted.entry(reading.source.clone()).or_default();
                *next += 1;
                (drawn, *next - 1)
            }
            (None, None, None) => return Err(Unreadable::Nameless(index)),
            (None, Some(_), _) | (Some(_), None, _) => {
                out.refuse(index, "epoch", "epoch and seq come together, or not at all");
                continue;
            }
        };
        let group =
            Group { source: reading.source.clone(), epoch: epoch.0, uncertainty_us: reading.uncertainty_us };
        groups.entry(group).or_default().push((seq, reading));
        if groups.len() > REQUEST_SOURCES {
            return Err(Unreadable::TooMany(REQUEST_SOURCES, "sources and epochs"));
        }
    }
    out.batches = seal(groups);
    Ok(out)
}

/// What goes into one set of columns.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    source: String,
    epoch: u64,
    uncertainty_us: u64,
}

impl Request {
    fn refuse(&mut self, index: usize, field: &'static str, detail: &str) {
        self.refused += 1;
        if self.told.len() < TOLD {
            // It repeats what was sent, and is kept in the database, which takes no NUL.
            let detail = entry::without_controls(detail).chars().take(DETAIL).collect();
            self.told.push(Refused { index, field, detail });
        }
    }
}

fn raw(body: &[u8], form: Form) -> Result<Vec<Result<&RawValue, String>>, Unreadable> {
    if form == Form::JsonLines {
        let lines = body.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        if lines.clone().nth(REQUEST_READINGS).is_some() {
            return Err(Unreadable::TooMany(REQUEST_READINGS, "readings"));
        }
        return Ok(lines.map(|line| serde_json::from_slice(line).map_err(|error| not_one(&error))).collect());
    }
    let wrapped = body.trim_ascii_start().first() == Some(&b'{');
    let items = if wrapped {
        serde_json::from_slice::<Wrapped<'_>>(body).map(|wrapped| wrapped.readings)
    } else {
        serde_json::from_slice(body)
    };
    let Readings(items) = items.map_err(Unreadable::Json)?;
    Ok(items.into_iter().map(Ok).collect())
}

fn reading(raw: &RawValue) -> Result<Reading, Wrong> {
    if raw.get().len() > REQUEST_READING {
        return Err(("reading", format!("a reading has at most {REQUEST_READING} bytes")));
    }
    let item: Item<'_> = serde_json::from_str(raw.get()).map_err(|error| ("reading", not_one(&error)))?;
    let source = text(needed(item.source, "source")?, "source")?;
    let source = HardwareId::parse(&source).map_err(|bad| ("source", bad.to_string()))?;
    let kind = text(needed(item.kind, "type")?, "type")?;
    let channel = channel::by_name(&kind).ok_or_else(|| {
        let known: Vec<&str> = channel::REGISTRY.iter().map(|channel| channel.name).collect();
        ("type", format!("there is no type {kind:?}; there are {}", known.join(", ")))
    })?;
    let unit = item.unit.map(|raw| text(raw, "unit")).transpose()?;
    let uncertainty_us = match item.uncertainty_ms {
        None => UNCERTAINTY_US,
        Some(raw) => match u64::try_from(whole(raw, "uncertainty_ms")?) {
            Ok(millis) if millis <= MOST_UNCERTAIN_MS => millis * 1_000,
            _ => return Err(("uncertainty_ms", "0 to a day, in milliseconds, is needed".to_owned())),
        },
    };
    Ok(Reading {
        source: source.to_string(),
        epoch: item.epoch.map(epoch).transpose()?,
        seq: item.seq.map(seq).transpose()?,
        utc_ms: time(needed(item.time, "time")?)?,
        channel,
        counts: counts(channel, needed(item.value, "value")?, unit.as_deref())?,
        uncertainty_us,
    })
}

/// The reader's own words, without the place in a text that the sender does not see.
fn not_one(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words).to_owned()
}

fn needed<'a>(raw: Option<&'a RawValue>, field: &'static str) -> Result<&'a RawValue, Wrong> {
    raw.ok_or_else(|| (field, format!("{field} is missing or null")))
}

fn text<'a>(raw: &'a RawValue, field: &'static str) -> Result<Cow<'a, str>, Wrong> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw.get())
        .map(|text| text.0)
        .map_err(|_| (field, format!("{field} must be a text, not {}", shown(raw))))
}

/// What was sent in place of what is wanted, so much of it that its sender knows it again.
fn shown(raw: &RawValue) -> String {
    raw.get().chars().take(40).collect()
}

/// A whole number, also one that its program writes with a fraction of nothing: `5.0`.
fn whole(raw: &RawValue, field: &'static str) -> Result<i128, Wrong> {
    /// Up to here a number with a fraction is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = raw.get();
    if let Ok(whole) = number.parse::<i128>() {
        return Ok(whole);
    }
    match serde_json::from_str::<f64>(number) {
        Ok(float) if float.fract() == 0.0 && float.abs() <= EXACT => Ok(float as i128),
        _ if number.starts_with('"') => {
            Err((field, format!("{field} must be a number without quotes, not {}", shown(raw))))
        }
        _ => Err((field, format!("{field} must be a whole number, not {}", shown(raw)))),
    }
}

/// 64 bits do not fit into a JSON number of every program: text of 16 hexadecimal digits is taken, too.
fn epoch(raw: &RawValue) -> Result<Epoch, Wrong> {
    let hex = |hex: &str| (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten();
    let number = match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => hex(&text),
        Err(_) => whole(raw, "epoch").ok().and_then(|number| u64::try_from(number).ok()),
    };
    let wanted =
        || ("epoch", format!("a number, or a text of 16 hexadecimal digits, is needed, not {}", shown(raw)));
    number.map(Epoch).ok_or_else(wanted)
}

fn seq(raw: &RawValue) -> Result<u32, Wrong> {
    u32::try_from(whole(raw, "seq")?).map_err(|_| ("seq", format!("0 to {} is needed", u32::MAX)))
}

/// Milliseconds since 1970. Frames have 48 bits for it; whether the time is sane is asked of every frame.
fn time(raw: &RawValue) -> Result<u64, Wrong> {
    const WANTED: &str = "RFC 3339 with its offset, or milliseconds since 1970 as a number, is needed";
    let wrong = || ("time", WANTED.to_owned());
    let millis = if let Ok(text) = serde_json::from_str::<String>(raw.get()) {
        text.trim().parse::<jiff::Timestamp>().map_err(|_| wrong())?.as_millisecond()
    } else {
        let number = whole(raw, "time").map_err(|_| fraction(raw).unwrap_or_else(wrong))?;
        let number = i64::try_from(number).map_err(|_| wrong())?;
        entry::millis(number).map_err(|other| ("time", other.to_string()))?
    };
    u64::try_from(millis)
        .ok()
        .filter(|millis| *millis < 1 << 47)
        .ok_or_else(|| ("time", "a time from 1970 to 6429 is needed".to_owned()))
}

/// A number with a fraction that says in what it is counted.
fn fraction(raw: &RawValue) -> Option<Wrong> {
    let number: f64 = serde_json::from_str(raw.get()).ok()?;
    let detail = match entry::millis(number as i64) {
        Err(other) => other.to_string(),
        Ok(_) => format!("milliseconds come without a fraction, not as {}", shown(raw)),
    };
    Some(("time", detail))
}

/// The values of one sample in steps of their channel.
fn counts(channel: &'static Channel, raw: &RawValue, unit: Option<&str>) -> Result<Vec<i32>, Wrong> {
    let values = match serde_json::from_str::<f64>(raw.get()) {
        Ok(value) => vec![value],
        Err(_) => {
            serde_json::from_str::<Vec<f64>>(raw.get()).map_err(|_| ("value", no_value(channel, raw)))?
        }
    };
    if values.len() != usize::from(channel.components) {
        return Err(("value", format!("{} has {} components", channel.name, channel.components)));
    }
    values.into_iter().map(|value| count(channel, value, unit)).collect()
}

fn no_value(channel: &Channel, raw: &RawValue) -> String {
    match channel.components {
        1 => format!(
            "{} is a number, with a point and without quotes, such as 36.6; not {}",
            channel.name,
            shown(raw)
        ),
        many => format!("{} is {many} numbers in brackets, not {}", channel.name, shown(raw)),
    }
}

fn count(channel: &Channel, value: f64, unit: Option<&str>) -> Result<i32, Wrong> {
    let value = match unit {
        None => value,
        Some(unit) => units::to_canonical(channel, value, unit).ok_or_else(|| {
            let accepted = units::accepted(channel).join(", ");
            ("unit", format!("{} does not come in {unit:?}; it comes in {accepted}", channel.name))
        })?,
    };
    if !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&(value / channel.step)) {
        return Err(("value", format!("{value} {} is no {}", channel.unit, channel.name)));
    }
    Ok(channel.quantise(value))
}

fn seal(groups: BTreeMap<Group, Vec<(u32, Reading)>>) -> Vec<envelope::Batch> {
    let mut batches: Vec<envelope::Batch> = Vec::new();
    let mut room = 0;
    for (group, mut readings) in groups {
        readings.sort_by_key(|(seq, _)| *seq);
        let mut rest = readings.as_slice();
        while !rest.is_empty() {
            let is_full = batches.last().is_none_or(|batch| batch.devices.len() == DEVICES);
            if room == 0 || is_full {
                batches.push(empty());
                room = BATCH;
            }
            // Columns hold a number once; the same one again goes into columns of its own, and the ledger decides.
            let run = rest.windows(2).position(|pair| pair[0].0 == pair[1].0).map_or(rest.len(), |at| at + 1);
            let (now, later) = rest.split_at(run.min(room));
            room -= now.len();
            rest = later;
            let batch = batches.last_mut().expect("one was pushed");
            batch.devices.push(frames(&group, now));
        }
    }
    batches
}

fn empty() -> envelope::Batch {
    let name = envelope::Name { gateway: Uuid::nil().as_bytes().to_vec(), buffer: 0, sequence: 0 };
    envelope::Batch { version: ENVELOPE_VERSION, name: Some(name), sealed_at_us: 0, devices: Vec::new() }
}

fn frames(group: &Group, readings: &[(u32, Reading)]) -> DeviceFrames {
    let epoch = Epoch(group.epoch);
    let mut builder = FrameBuilder::new();
    let encoded: Vec<Vec<u8>> = readings
        .iter()
        .map(|(seq, reading)| {
            let ticks = Ticks(reading.utc_ms);
            let kind = if reading.channel.shape == Shape::Waveform { Kind::Waveform } else { Kind::Scalar };
            builder.begin(kind, epoch, ticks);
            builder.push(reading.channel.id, ticks, &reading.counts).expect("one sample fits into a frame");
            let mut out = [0; MAX_FRAME];
            let len = builder.finish(*seq, &mut out);
            out[..len].to_vec()
        })
        .collect();
    let refs = encoded.iter().map(|bytes| FrameRef::parse(bytes).expect("a frame that was just built"));
    let mut columns = columns::encode(&group.source, epoch, refs).expect("one epoch, in order");
    columns.fits = vec![Fit { uncertainty_us: group.uncertainty_us, ..Fit::default() }];
    columns.fit_of = vec![0, readings.len() as u32];
    columns
}

fn protobuf(body: &[u8]) -> Result<Request, Unreadable> {
    let batch: envelope::Batch = envelope::decode(body).map_err(Unreadable::Protobuf)?;
    if batch.version == 0 || batch.version > ENVELOPE_VERSION {
        return Err(Unreadable::Version(batch.version));
    }
    let items = batch.devices.iter().map(|part| part.ticks.len() + part.other_frames.len()).sum();
    if items == 0 {
        return Err(Unreadable::Empty);
    }
    // Whatever it calls itself: it is the clinic's, not a gateway's.
    Ok(Request {
        batches: vec![envelope::Batch { name: empty().name, ..batch }],
        items,
        ..Request::default()
    })
}

/// Batches one after another, compressed: what is kept until it is written.
pub fn pack(batches: &[envelope::Batch]) -> Vec<u8> {
    use prost::Message as _;
    let mut plain = Vec::new();
    for batch in batches {
        batch.encode_length_delimited(&mut plain).expect("a Vec grows");
    }
    zstd::bulk::compress(&plain, 3).expect("zstd into memory does not fail")
}

/// The way back. `None`: this was not packed here.
pub fn unpack(packed: &[u8], most: usize) -> Option<Vec<envelope::Batch>> {
    let plain = zstd::bulk::decompress(packed, most).ok()?;
    let mut rest = plain.as_slice();
    let mut out = Vec::new();
    while !rest.is_empty() {
        let len = prost::decode_length_delimiter(&mut rest).ok()?;
        let (batch, more) = rest.split_at_checked(len)?;
        out.push(envelope::decode(batch).ok()?);
        rest = more;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::from_envelope;

    const KEY: Option<Epoch> = Some(Epoch(7));

    fn json(body: &str, drawn: Option<Epoch>) -> Request {
        read(body.as_bytes(), Form::Json, drawn).unwrap()
    }

    fn samples(request: Request) -> Vec<(i64, f64, i16)> {
        request
            .batches
            .into_iter()
            .flat_map(|batch| from_envelope(batch).unwrap().devices)
            .flat_map(|device| device.samples)
            .map(|sample| (sample.utc_us, sample.value, sample.kind))
            .collect()
    }

    #[test]
    fn readings_come_out_in_utc_and_in_their_channels_unit() {
        let body = r#"[
            {"source":"bt:00:00:00:00:00:01","time":"2026-01-02T05:30:00.250+05:30","type":"skin_temperature","value":98.6,"unit":"°F"},
            {"source":"bt:00:00:00:00:00:01","time":1767312001000,"type":"heart_rate","value":71.26}]"#;
        let request = json(body, KEY);
        assert_eq!((request.items, request.refused), (2, 0));
        let unpacked = unpack(&pack(&request.batches), 1 << 20).unwrap();
        assert_eq!(unpacked, request.batches);
        assert_eq!(samples(request), [(1_767_312_000_250_000, 37.0, 3), (1_767_312_001_000_000, 71.3, 1)]);
    }

    #[test]
    fn a_reading_that_is_none_is_refused_by_its_place_and_the_others_are_taken() {
        let good = r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":2}"#;
        let bad = [
            (r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"mood","value":2}"#, "type"),
            (
                r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":2,"unit":"g"}"#,
                "unit",
            ),
            (r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":1e300}"#, "value"),
            (
                r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"acceleration","value":[1,2]}"#,
                "value",
            ),
            (r#"{"source":"bt:00:00:00:00:00:01","time":"yesterday","type":"eda","value":2}"#, "time"),
            (r#"{"source":"bt:00:00:00:00:00:01","time":-5,"type":"eda","value":2}"#, "time"),
            (r#"{"source":"x:1","time":1767312000000,"type":"eda","value":2}"#, "source"),
            (r#"{"source":"","time":1767312000000,"type":"eda","value":2}"#, "source"),
            (
                r#"{"source":"bt:00:00:00:00:00:01","seq":1,"time":1767312000000,"type":"eda","value":2}"#,
                "epoch",
            ),
            (
                r#"{"source":"bt:00:00:00:00:00:01","epoch":"12","seq":1,"time":1767312000000,"type":"eda","value":2}"#,
                "epoch",
            ),
            (
                r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":2,"colour":1}"#,
                "reading",
            ),
            ("7", "reading"),
        ];
        for (bad, field) in bad {
            let request = json(&format!("[{good},{bad},{good}]"), KEY);
            assert_eq!((request.items, request.refused), (3, 1), "{bad}");
            assert_eq!((request.told[0].index, request.told[0].field), (1, field), "{:?}", request.told[0]);
            assert_eq!(samples(request).len(), 2);
        }
        let lines = format!("{good}\n\nnonsense\r\n{good}\n");
        let request = read(lines.as_bytes(), Form::JsonLines, KEY).unwrap();
        assert_eq!((request.items, request.refused, request.told[0].index), (3, 1, 1));
    }

    fn told(reading: &str) -> (&'static str, String) {
        let request = json(&format!("[{reading}]"), KEY);
        let told = request.told.into_iter().next().unwrap_or_else(|| panic!("taken: {reading}"));
        (told.field, told.detail)
    }

    #[test]
    fn a_refusal_names_the_field_and_what_is_wanted() {
        let with = |field: &str, value: &str| {
            let mut fields = vec![
                ("source", r#""bt:00:00:00:00:00:01""#),
                ("time", "1795936080124"),
                ("type", r#""heart_rate""#),
                ("value", "72"),
            ];
            fields.retain(|(name, _)| *name != field);
            fields.push((field, value));
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", fields.join(","))
        };
        for (field, value, says) in [
            ("value", r#""72""#, "without quotes"),
            ("value", r#""36,6""#, "with a point"),
            ("value", "null", "null"),
            ("value", "[72,73]", "1 components"),
            ("time", "1795936080", "seconds"),
            ("time", "1795936080.5", "seconds"),
            ("time", "1795936080123000", "microseconds"),
            ("time", "1795936080123000000", "nanoseconds"),
            ("time", "1795936080123.5", "without a fraction"),
            ("time", r#""1795936080123""#, "as a number"),
            ("time", r#""28.11.2026""#, "RFC 3339"),
            ("time", r#""1912-06-23T00:00:00Z""#, "1970"),
            ("time", "null", "missing"),
            ("source", r#""bt:hello world""#, "AA:BB:CC:DD:EE:FF"),
            ("source", "7", "a text"),
            ("unit", r#""g""#, "bpm, /min"),
            ("unit", "7", "a text"),
            ("seq", "-1", "0 to"),
            ("seq", r#""1""#, "without quotes"),
            ("epoch", "1.5", "16 hexadecimal"),
            ("uncertainty_ms", "90000000", "a day"),
        ] {
            let (named, detail) = told(&with(field, value));
            assert!(named == field && detail.contains(says), "{field} {value}: {named}: {detail}");
        }
        let (field, detail) = told(r#"{"source":"bt:00:00:00:00:00:01","time":1795936080124,"type":"eda"}"#);
        assert_eq!((field, detail.as_str()), ("value", "value is missing or null"));
    }

    #[test]
    fn whole_numbers_with_a_fraction_of_nothing_are_whole_and_capitals_of_an_address_do_not_matter() {
        let body = r#"[{"source":"bt:c0:ff:ee:00:00:aa","epoch":7.0,"seq":3.0,"time":1795936080123.0,"type":"heart_rate",
            "value":72,"unit":null,"uncertainty_ms":5.0}]"#;
        let request = json(body, None);
        let part = &request.batches[0].devices[0];
        assert_eq!((part.hardware_id.as_str(), part.epoch), ("bt:C0:FF:EE:00:00:AA", 7));
        assert_eq!(part.fits[0].uncertainty_us, 5_000);
        assert_eq!(samples(request), [(1_795_936_080_123_000, 72.0, 1)]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let good = r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":2}"#;
        for (body, form) in
            [(format!("\u{feff}[{good}]"), Form::Json), (format!("\u{feff}{good}\n"), Form::JsonLines)]
        {
            let request = read(body.as_bytes(), form, KEY).unwrap();
            assert_eq!((request.items, request.refused), (1, 0));
        }
    }

    #[test]
    fn a_refusal_holds_no_control_character_of_what_it_repeats() {
        let good = r#""source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":2"#;
        for bad in [
            format!(r#"{{{good},"col\u0000our":1}}"#),
            r#"{"source":"bt:\u0000\u001b[1m","time":1767312000000,"type":"eda","value":2}"#.to_owned(),
            r#"{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"e\u0000da","value":2}"#
                .to_owned(),
        ] {
            let (_, detail) = told(&bad);
            assert!(!detail.chars().any(entry::is_control), "{detail:?}");
        }
    }

    #[test]
    fn without_a_key_every_reading_has_a_name_of_its_own() {
        let nameless = r#"[{"source":"bt:00:00:00:00:00:01","time":1767312000000,"type":"eda","value":2}]"#;
        assert!(matches!(read(nameless.as_bytes(), Form::Json, None), Err(Unreadable::Nameless(0))));
        let named = r#"{"readings":[
            {"source":"bt:00:00:00:00:00:01","epoch":"00000000000000ff","seq":9,"time":1767312000000,"type":"eda","value":2},
            {"source":"bt:00:00:00:00:00:01","epoch":255,"seq":8,"time":1767311999000,"type":"eda","value":2},
            {"source":"bt:00:00:00:00:00:01","epoch":255,"seq":9,"time":1767312000000,"type":"eda","value":3}]}"#;
        let request = json(named, None);
        // Out of order, and one number twice: nothing is lost before the ledger has seen it.
        let frames: Vec<(u64, Vec<u32>)> = request.batches[0]
            .devices
            .iter()
            .map(|part| (part.epoch, columns::decode(part).unwrap().frames().iter().map(|f| f.seq).collect()))
            .collect();
        assert_eq!(frames, [(255, vec![8, 9]), (255, vec![9])]);
    }

    #[test]
    fn a_request_of_more_readings_or_sources_than_it_may_have_is_refused_in_every_form() {
        use prost::Message as _;
        let zeros = |n: usize| vec!["0"; n];
        let array = format!("[{}]", zeros(REQUEST_READINGS + 1).join(","));
        assert!(matches!(read(array.as_bytes(), Form::Json, KEY), Err(Unreadable::Json(_))));
        let wrapped = format!("{{\"readings\":{array}}}");
        assert!(matches!(read(wrapped.as_bytes(), Form::Json, KEY), Err(Unreadable::Json(_))));
        let lines = zeros(REQUEST_READINGS + 1).join("\n");
        assert!(matches!(read(lines.as_bytes(), Form::JsonLines, KEY), Err(Unreadable::TooMany(..))));
        let one = |n: usize| {
            format!(r#"{{"source":"kinara:{n:016x}","time":1767312000000,"type":"eda","value":2}}"#)
        };
        let sources: Vec<String> = (0..=REQUEST_SOURCES).map(one).collect();
        assert!(matches!(
            read(sources.join("\n").as_bytes(), Form::JsonLines, KEY),
            Err(Unreadable::TooMany(..))
        ));
        let devices = vec![DeviceFrames { ticks: vec![0], ..DeviceFrames::default() }; DEVICES + 1];
        let batch = envelope::Batch { devices, ..empty() }.encode_to_vec();
        assert!(matches!(read(&batch, Form::Protobuf, KEY), Err(Unreadable::Protobuf(_))));
    }

    #[test]
    fn many_sources_are_unpacked_again_and_a_reading_of_megabytes_is_refused_by_its_place() {
        let one = |n: usize| {
            format!(r#"{{"source":"kinara:{n:016x}","time":1767312000000,"type":"eda","value":2}}"#)
        };
        let mut lines: Vec<String> = (0..3_000).map(one).collect();
        let values = vec!["0"; 100_000].join(",");
        lines.push(format!(
            r#"{{"source":"kinara:00000000000000a1","time":1767312000000,"type":"eda","value":[{values}]}}"#
        ));
        lines.push(format!(
            r#"{{"source":"kinara:00000000000000a1","time":1767312000000,"type":"m\u0000{}","value":2}}"#,
            "y".repeat(3_000)
        ));
        let request = read(lines.join("\n").as_bytes(), Form::JsonLines, KEY).unwrap();
        assert_eq!((request.items, request.refused), (3_002, 2));
        assert!(request.told.iter().all(|one| one.detail.len() <= 4 * DETAIL && !one.detail.contains('\0')));
        assert_eq!(unpack(&pack(&request.batches), 1 << 24).unwrap(), request.batches);
    }

    #[test]
    fn a_large_request_becomes_batches_of_the_usual_size() {
        let one = |n: u32| {
            format!(r#"{{"source":"bt:00:00:00:00:00:0{}","time":{},"type":"eda","value":2}}"#, n % 3, n + 1)
        };
        let body: Vec<String> = (0..12_345).map(one).collect();
        let request = read(body.join("\n").as_bytes(), Form::JsonLines, KEY).unwrap();
        assert_eq!(request.batches.len(), 3);
        assert_eq!(samples(request).len(), 12_345);
    }

    #[test]
    fn a_body_that_is_no_request_says_so() {
        for body in ["", "{", "[1,", "{\"rows\":[]}", "7", "null"] {
            assert!(matches!(read(body.as_bytes(), Form::Json, KEY), Err(Unreadable::Json(_))), "{body}");
        }
        assert!(matches!(read(b"[]", Form::Json, KEY), Err(Unreadable::Empty)));
        assert!(matches!(read(b"\n", Form::JsonLines, KEY), Err(Unreadable::Empty)));
        assert!(matches!(read(b"\xff", Form::Protobuf, KEY), Err(Unreadable::Protobuf(_))));
        assert!(matches!(read(b"", Form::Protobuf, KEY), Err(Unreadable::Version(0))));
    }
}
