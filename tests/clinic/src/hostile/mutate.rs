//! Mutations that know what they change: fields of envelopes, values of JSON, lines of NDJSON.
//!
//! What comes out is mostly a message that every decoder reads and no honest sender sends. The harness's chance alone
//! decides, so a seed gives the same messages again.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::Value as Json;

use super::shape::Shape;
use super::wire::put_varint;

/// Numbers at which something changes.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    127,
    128,
    255,
    65_535,
    65_536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];
/// Larger than this nothing is made: the doors stop more anyway.
const MOST: usize = 3 << 20;

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    number: u32,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(u64),
    Eight([u8; 8]),
    Four([u8; 4]),
    Bytes(Vec<u8>),
    List(Vec<u64>),
    Message(Vec<Field>),
}

/// Reads a message by its shape; what the shape does not know stays bytes. `None`: it is no message.
pub fn parse(mut bytes: &[u8], shape: &[(u32, Shape)]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).ok()?;
        let known = shape.iter().find(|(known, _)| *known == number).map(|(_, shape)| *shape);
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut bytes)?),
            1 => Value::Eight(take(&mut bytes)?),
            5 => Value::Four(take(&mut bytes)?),
            2 => {
                let len = usize::try_from(take_varint(&mut bytes)?).ok()?;
                let body = bytes.split_off(..len)?;
                match known {
                    Some(Shape::Message(inner)) => Value::Message(parse(body, inner)?),
                    Some(Shape::List) => Value::List(take_list(body)?),
                    _ => Value::Bytes(body.to_vec()),
                }
            }
            _ => return None,
        };
        fields.push(Field { number, value });
    }
    Some(fields)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.try_into().ok()
}

fn take_list(mut body: &[u8]) -> Option<Vec<u64>> {
    let mut list = Vec::new();
    while !body.is_empty() {
        list.push(take_varint(&mut body)?);
    }
    Some(list)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Writes a message.
pub fn write(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for Field { number, value } in fields {
        let wire_type = match value {
            Value::Number(_) => 0,
            Value::Eight(_) => 1,
            Value::Four(_) => 5,
            Value::Bytes(_) | Value::List(_) | Value::Message(_) => 2,
        };
        put_varint(&mut out, u64::from(*number) << 3 | wire_type);
        match value {
            Value::Number(number) => put_varint(&mut out, *number),
            Value::Eight(bytes) => out.extend_from_slice(bytes),
            Value::Four(bytes) => out.extend_from_slice(bytes),
            Value::Bytes(bytes) => put_bytes(&mut out, bytes),
            Value::List(list) => {
                let mut body = Vec::new();
                for number in list {
                    put_varint(&mut body, *number);
                }
                put_bytes(&mut out, &body);
            }
            Value::Message(fields) => put_bytes(&mut out, &write(fields)),
        }
    }
    out
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What an attacker knows of others, and puts where a name belongs.
#[derive(Debug, Clone, Default)]
pub struct Names(pub Vec<Vec<u8>>);

/// Changes one to three things of a message.
pub fn mutate(plain: &[u8], shape: &[(u32, Shape)], names: &Names, rng: &mut StdRng) -> Vec<u8> {
    let Some(mut fields) = parse(plain, shape) else { return plain.to_vec() };
    for _ in 0..rng.random_range(1..=3) {
        change(&mut fields, names, rng);
    }
    let mut out = write(&fields);
    if out.len() > MOST {
        return plain.to_vec();
    }
    if rng.random_ratio(1, 12) {
        out.truncate(rng.random_range(0..=out.len()));
    }
    out
}

/// Goes down to some field and changes it, or the list of fields that it is in.
fn change(fields: &mut Vec<Field>, names: &Names, rng: &mut StdRng) {
    if fields.is_empty() {
        fields.push(Field { number: rng.random_range(1..40), value: Value::Number(edge(rng)) });
        return;
    }
    let place = rng.random_range(0..fields.len());
    if let Value::Message(inner) = &mut fields[place].value
        && rng.random_ratio(3, 4)
    {
        change(inner, names, rng);
        return;
    }
    match rng.random_range(0..8) {
        0 => drop(fields.remove(place)),
        1 => repeat(fields, place, rng),
        2 => {
            let other = rng.random_range(0..fields.len());
            fields.swap(place, other);
        }
        3 => fields[place].number = rng.random_range(1..40),
        _ => change_value(&mut fields[place].value, names, rng),
    }
}

fn repeat(fields: &mut Vec<Field>, place: usize, rng: &mut StdRng) {
    const TIMES: [usize; 4] = [1, 10, 1_000, 20_000];
    let size = write(&fields[place..=place]).len().max(1);
    let times = TIMES.choose(rng).copied().unwrap_or(1).min(MOST / size / 2);
    let again = fields[place].clone();
    fields.splice(place..place, std::iter::repeat_n(again, times));
}

fn edge(rng: &mut StdRng) -> u64 {
    EDGES.choose(rng).copied().unwrap_or(0)
}

fn change_value(value: &mut Value, names: &Names, rng: &mut StdRng) {
    match value {
        Value::Number(number) => {
            *number = match rng.random_range(0..3) {
                0 => number.wrapping_add(1),
                1 => number.wrapping_sub(1),
                _ => edge(rng),
            };
        }
        Value::Eight(bytes) => *bytes = edge(rng).to_le_bytes(),
        Value::Four(bytes) => {
            *bytes = [f32::NAN, f32::INFINITY, -1.0, 0.0].choose(rng).copied().unwrap_or(0.0).to_le_bytes();
        }
        Value::Bytes(bytes) => change_bytes(bytes, names, rng),
        Value::List(list) => change_list(list, rng),
        // It is replaced by what has no place there.
        Value::Message(_) => *value = Value::Number(edge(rng)),
    }
}

fn change_bytes(bytes: &mut Vec<u8>, names: &Names, rng: &mut StdRng) {
    match rng.random_range(0..7) {
        0 => bytes.clear(),
        1 => bytes.push(0),
        2 => bytes.extend_from_slice(&[0xff, 0xfe, 0xc0]),
        3 => bytes.resize([1_000, 100_000, 1_000_000].choose(rng).copied().unwrap_or(1), b'x'),
        4 if !bytes.is_empty() => {
            let place = rng.random_range(0..bytes.len());
            bytes[place] ^= 1 << rng.random_range(0..8);
        }
        _ => {
            if let Some(name) = names.0.choose(rng) {
                bytes.clone_from(name);
            }
        }
    }
}

fn change_list(list: &mut Vec<u64>, rng: &mut StdRng) {
    match rng.random_range(0..5) {
        0 => list.clear(),
        1 => drop(list.pop()),
        2 => list.push(edge(rng)),
        3 if !list.is_empty() => {
            let place = rng.random_range(0..list.len());
            list[place] = edge(rng);
        }
        _ => {
            let again = list.last().copied().unwrap_or(0);
            list.resize(list.len() + [10, 1_000, 300_000].choose(rng).copied().unwrap_or(1), again);
        }
    }
}

/// Changes one thing somewhere in a value, and returns it as text: some of it no parser would write.
pub fn mutate_json(value: &Json, names: &Names, rng: &mut StdRng) -> Vec<u8> {
    // Stands for what has no JSON value of its own.
    const MARK: &str = "here be text";
    let mut value = value.clone();
    let mut text = match rng.random_range(0..10) {
        0..=4 => {
            let put = json_edge(names, rng);
            *somewhere(&mut value, rng) = put;
            value.to_string()
        }
        5 | 6 => {
            *somewhere(&mut value, rng) = Json::from(MARK);
            let raw: &[&str] =
                &["1e999", "-0", "NaN", "00", "18446744073709551616", "\"\\ud800\"", "{", "\"\\u0000\""];
            value.to_string().replace(&format!("\"{MARK}\""), raw.choose(rng).copied().unwrap_or("0"))
        }
        7 => {
            let depth = [10, 1_000, 100_000].choose(rng).copied().unwrap_or(1);
            format!("{}{}", "[".repeat(depth), "]".repeat(depth))
        }
        8 => format!("\u{feff}{value}"),
        _ => value.to_string().replacen('{', "{\"source\":\"bt:00:00:00:00:00:00\",\"seq\":1,", 1),
    }
    .into_bytes();
    if rng.random_ratio(1, 12) {
        text.truncate(rng.random_range(0..=text.len()));
    }
    text
}

fn somewhere<'a>(value: &'a mut Json, rng: &mut StdRng) -> &'a mut Json {
    let inside = match value {
        Json::Array(items) => items.len(),
        Json::Object(fields) => fields.len(),
        _ => 0,
    };
    if inside == 0 || rng.random_ratio(1, 6) {
        return value;
    }
    let place = rng.random_range(0..inside);
    match value {
        Json::Array(items) => somewhere(&mut items[place], rng),
        Json::Object(fields) => somewhere(fields.values_mut().nth(place).expect("there are so many"), rng),
        _ => unreachable!("only lists and objects have something inside"),
    }
}

fn json_edge(names: &Names, rng: &mut StdRng) -> Json {
    match rng.random_range(0..9) {
        0 => Json::Null,
        1 => Json::from(edge(rng)),
        2 => Json::from(-1.7e308),
        3 => Json::from("\0"),
        4 => Json::from("x".repeat([100, 10_000, 1_000_000].choose(rng).copied().unwrap_or(1))),
        5 => Json::Array(vec![Json::from(1); 10_000]),
        6 => Json::from(true),
        7 => Json::from("9999-12-31T23:59:60+23:59"),
        _ => names.0.choose(rng).map_or(Json::Null, |name| String::from_utf8_lossy(name).into_owned().into()),
    }
}

/// Lines of JSON, some mutated, with ends as somebody's program might write them.
pub fn mutate_lines(items: &[Json], names: &Names, rng: &mut StdRng) -> Vec<u8> {
    let mut out = Vec::new();
    if rng.random_ratio(1, 8) {
        out.extend_from_slice("\u{feff}".as_bytes());
    }
    for item in items {
        let line = if rng.random_ratio(1, 2) {
            mutate_json(item, names, rng)
        } else {
            item.to_string().into_bytes()
        };
        out.extend_from_slice(&line);
        out.extend_from_slice([&b"\n"[..], b"\r\n", b"\n\n", b" \n"].choose(rng).copied().unwrap_or(b"\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::shape;
    use super::*;
    use kinara_protocol::envelope::{Batch, DeviceFrames, Name, Series};
    use prost::Message as _;
    use rand::SeedableRng;

    fn batch() -> Vec<u8> {
        let series =
            Series { channel: 1, components: 1, counts: vec![2], values: vec![700, -3], ..Series::default() };
        let device = DeviceFrames {
            hardware_id: "kinara:00000000000000aa".to_owned(),
            epoch: 7,
            seq_ranges: vec![5, 1],
            crcs: vec![0xdead_beef],
            series: vec![series],
            ..DeviceFrames::default()
        };
        let name = Some(Name { gateway: vec![1; 16], buffer: 3, sequence: 4 });
        Batch { version: 1, name, sealed_at_us: 99, devices: vec![device] }.encode_to_vec()
    }

    #[test]
    fn a_message_is_taken_apart_and_put_together_without_a_change() {
        let plain = batch();
        let fields = parse(&plain, shape::BATCH).unwrap();
        assert_eq!(write(&fields), plain);
        assert!(parse(&plain[..plain.len() - 1], shape::BATCH).is_none());
    }

    #[test]
    fn mutations_differ_follow_from_the_seed_and_mostly_stay_readable() {
        let plain = batch();
        let names = Names(vec![b"kinara:00000000000000bb".to_vec()]);
        let all = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..400).map(|_| mutate(&plain, shape::BATCH, &names, &mut rng)).collect::<Vec<_>>()
        };
        let made = all(1);
        assert_eq!(made, all(1));
        assert_ne!(made, all(2));
        let readable = made.iter().filter(|bytes| Batch::decode(bytes.as_slice()).is_ok()).count();
        assert!((100..400).contains(&readable), "{readable}");
        assert!(made.iter().any(|bytes| bytes.windows(23).any(|window| window == names.0[0])));
        let distinct: std::collections::HashSet<_> = made.iter().collect();
        assert!(distinct.len() > 200, "{}", distinct.len());
    }

    #[test]
    fn json_is_mutated_to_what_parsers_read_and_to_what_they_do_not() {
        let value = serde_json::json!({"source": "bt:x", "seq": 3, "value": 1.5});
        let mut rng = StdRng::seed_from_u64(3);
        let made: Vec<_> = (0..200).map(|_| mutate_json(&value, &Names::default(), &mut rng)).collect();
        let readable = made.iter().filter(|text| serde_json::from_slice::<Json>(text).is_ok()).count();
        assert!((40..190).contains(&readable), "{readable}");
    }
}
