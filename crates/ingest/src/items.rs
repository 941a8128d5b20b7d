//! What comes over HTTP, made into what a gateway would have sealed.
//!
//! A clinic's own programs send readings one by one: source, time, type, value. Each becomes a frame of one sample,
//! whose ticks are milliseconds of UTC, so that everything behind it (ledger, assignments, consent, quarantine, replay)
//! is the gateways' own. A reading that cannot be one is refused by its place, with the reason; the others are taken.
//!
//! Identity: a reading carries `(source, epoch, seq)`, or the request has a key and its readings are counted in an epoch
//! that was drawn for it. Pure.

use std::collections::BTreeMap;

use kinara_protocol::channel::{self, Channel, Shape};
use kinara_protocol::columns;
use kinara_protocol::envelope::{self, DeviceFrames, ENVELOPE_VERSION, Fit};
use kinara_protocol::frame::{Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::batch::is_hardware_id;
use crate::units;

/// Readings in one batch: a transaction of the usual size.
const BATCH: usize = 5_000;
/// Refusals that are told of one request.
const TOLD: usize = 1_000;
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
    Protobuf(#[source] prost::DecodeError),
    /// Another version.
    #[error("envelope version {0} is not read here")]
    Version(u32),
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow)]
    source: std::borrow::Cow<'a, str>,
    #[serde(default)]
    epoch: Option<Number>,
    #[serde(default)]
    seq: Option<u32>,
    time: Time<'a>,
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    value: Values,
    #[serde(borrow, default)]
    unit: Option<std::borrow::Cow<'a, str>>,
    /// How far `time` may be from the truth.
    #[serde(default)]
    uncertainty_ms: Option<u64>,
}

/// 64 bits do not fit into a JSON number of every program: text of 16 hexadecimal digits is taken, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Hex(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Time<'a> {
    Millis(i64),
    #[serde(borrow)]
    Text(std::borrow::Cow<'a, str>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(f64),
    Several(Vec<f64>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped<'a> {
    #[serde(borrow)]
    readings: Vec<&'a RawValue>,
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
                out.refuse(index, field, detail);
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
                out.refuse(index, "epoch", "epoch and seq come together, or not at all".to_owned());
                continue;
            }
        };
        let group =
            Group { source: reading.source.clone(), epoch: epoch.0, uncertainty_us: reading.uncertainty_us };
        groups.entry(group).or_default().push((seq, reading));
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
    fn refuse(&mut self, index: usize, field: &'static str, detail: String) {
        self.refused += 1;
        if self.told.len() < TOLD {
            self.told.push(Refused { index, field, detail });
        }
    }
}

fn raw(body: &[u8], form: Form) -> Result<Vec<Result<&RawValue, String>>, Unreadable> {
    if form == Form::JsonLines {
        let lines = body.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        return Ok(lines
            .map(|line| serde_json::from_slice(line).map_err(|error| error.to_string()))
            .collect());
    }
    let wrapped = body.trim_ascii_start().first() == Some(&b'{');
    let items = if wrapped {
        serde_json::from_slice::<Wrapped<'_>>(body).map(|wrapped| wrapped.readings)
    } else {
        serde_json::from_slice(body)
    };
    Ok(items.map_err(Unreadable::Json)?.into_iter().map(Ok).collect())
}

fn reading(raw: &RawValue) -> Result<Reading, (&'static str, String)> {
    let item: Item<'_> = serde_json::from_str(raw.get()).map_err(|error| ("reading", error.to_string()))?;
    if !is_hardware_id(&item.source) {
        return Err(("source", "a hardware id of 1 to 255 printable ASCII characters is needed".to_owned()));
    }
    let Some(channel) = channel::by_name(&item.kind) else {
        let known: Vec<&str> = channel::REGISTRY.iter().map(|channel| channel.name).collect();
        return Err(("type", format!("there is no type {:?}; there are {}", item.kind, known.join(", "))));
    };
    let values = match item.value {
        Values::One(value) => vec![value],
        Values::Several(values) => values,
    };
    if values.len() != usize::from(channel.components) {
        return Err(("value", format!("{} has {} components", channel.name, channel.components)));
    }
    let mut counts = Vec::with_capacity(values.len());
    for value in values {
        let value = match &item.unit {
            None => value,
            Some(unit) => units::to_canonical(channel, value, unit).ok_or_else(|| {
                let accepted = units::accepted(channel).join(", ");
                ("unit", format!("{} does not come in {unit:?}; it comes in {accepted}", channel.name))
            })?,
        };
        let steps = value / channel.step;
        if !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&steps) {
            return Err(("value", format!("{value} {} is no {}", channel.unit, channel.name)));
        }
        counts.push(channel.quantise(value));
    }
    let utc_ms = match item.time {
        Time::Millis(millis) => millis,
        Time::Text(text) => text
            .parse::<jiff::Timestamp>()
            .map_err(|_| {
                ("time", "RFC 3339 with its offset, or milliseconds since 1970, is needed".to_owned())
            })?
            .as_millisecond(),
    };
    // Frames have 48 bits for it; whether the time is sane is asked of every frame.
    let utc_ms = u64::try_from(utc_ms)
        .ok()
        .filter(|millis| *millis < 1 << 47)
        .ok_or_else(|| ("time", "a time after 1970 is needed".to_owned()))?;
    let epoch = match item.epoch {
        None => None,
        Some(Number::Plain(number)) => Some(Epoch(number)),
        Some(Number::Hex(text)) => Some(Epoch(
            u64::from_str_radix(&text, 16)
                .ok()
                .filter(|_| text.len() == 16)
                .ok_or_else(|| ("epoch", "a number, or 16 hexadecimal digits, is needed".to_owned()))?,
        )),
    };
    let uncertainty_us = match item.uncertainty_ms {
        None => UNCERTAINTY_US,
        Some(millis) if millis <= MOST_UNCERTAIN_MS => millis * 1_000,
        Some(_) => return Err(("uncertainty_ms", "at most a day".to_owned())),
    };
    Ok(Reading {
        source: item.source.into_owned(),
        epoch,
        seq: item.seq,
        utc_ms,
        channel,
        counts,
        uncertainty_us,
    })
}

fn seal(groups: BTreeMap<Group, Vec<(u32, Reading)>>) -> Vec<envelope::Batch> {
    let mut batches: Vec<envelope::Batch> = Vec::new();
    let mut room = 0;
    for (group, mut readings) in groups {
        readings.sort_by_key(|(seq, _)| *seq);
        let mut rest = readings.as_slice();
        while !rest.is_empty() {
            if room == 0 {
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
    use prost::Message as _;
    let batch = envelope::Batch::decode(body).map_err(Unreadable::Protobuf)?;
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
    use prost::Message as _;
    let plain = zstd::bulk::decompress(packed, most).ok()?;
    let mut rest = plain.as_slice();
    let mut out = Vec::new();
    while !rest.is_empty() {
        out.push(envelope::Batch::decode_length_delimited(&mut rest).ok()?);
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
            {"source":"x:1","time":"2026-01-02T05:30:00.250+05:30","type":"skin_temperature","value":98.6,"unit":"°F"},
            {"source":"x:1","time":1767312001000,"type":"heart_rate","value":71.26}]"#;
        let request = json(body, KEY);
        assert_eq!((request.items, request.refused), (2, 0));
        let unpacked = unpack(&pack(&request.batches), 1 << 20).unwrap();
        assert_eq!(unpacked, request.batches);
        assert_eq!(samples(request), [(1_767_312_000_250_000, 37.0, 3), (1_767_312_001_000_000, 71.3, 1)]);
    }

    #[test]
    fn a_reading_that_is_none_is_refused_by_its_place_and_the_others_are_taken() {
        let good = r#"{"source":"x:1","time":1767312000000,"type":"eda","value":2}"#;
        let bad = [
            (r#"{"source":"x:1","time":1767312000000,"type":"mood","value":2}"#, "type"),
            (r#"{"source":"x:1","time":1767312000000,"type":"eda","value":2,"unit":"g"}"#, "unit"),
            (r#"{"source":"x:1","time":1767312000000,"type":"eda","value":1e300}"#, "value"),
            (r#"{"source":"x:1","time":1767312000000,"type":"acceleration","value":[1,2]}"#, "value"),
            (r#"{"source":"x:1","time":"yesterday","type":"eda","value":2}"#, "time"),
            (r#"{"source":"x:1","time":-5,"type":"eda","value":2}"#, "time"),
            (r#"{"source":"","time":1767312000000,"type":"eda","value":2}"#, "source"),
            (r#"{"source":"x:1","seq":1,"time":1767312000000,"type":"eda","value":2}"#, "epoch"),
            (r#"{"source":"x:1","epoch":"12","seq":1,"time":1767312000000,"type":"eda","value":2}"#, "epoch"),
            (r#"{"source":"x:1","time":1767312000000,"type":"eda","value":2,"colour":1}"#, "reading"),
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

    #[test]
    fn without_a_key_every_reading_has_a_name_of_its_own() {
        let nameless = r#"[{"source":"x:1","time":1767312000000,"type":"eda","value":2}]"#;
        assert!(matches!(read(nameless.as_bytes(), Form::Json, None), Err(Unreadable::Nameless(0))));
        let named = r#"{"readings":[
            {"source":"x:1","epoch":"00000000000000ff","seq":9,"time":1767312000000,"type":"eda","value":2},
            {"source":"x:1","epoch":255,"seq":8,"time":1767311999000,"type":"eda","value":2},
            {"source":"x:1","epoch":255,"seq":9,"time":1767312000000,"type":"eda","value":3}]}"#;
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
    fn a_large_request_becomes_batches_of_the_usual_size() {
        let one = |n: u32| format!(r#"{{"source":"x:{}","time":{},"type":"eda","value":2}}"#, n % 3, n + 1);
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
