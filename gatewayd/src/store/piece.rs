//! Frames of one device, epoch and class as one row: as they came while they are few, by columns when they are many.

use kinara_protocol::columns;
use kinara_protocol::envelope::{self, DeviceFrames};
use kinara_protocol::frame::{Class, Epoch, FrameRef, MAX_FRAME};

use super::damage::Damage;

/// From this many frames on, columns and compression are worth their overhead.
pub const COLUMNS_FROM: usize = 24;
/// The most frame bytes in one row, so that any row fits into a batch.
pub const MAX_BYTES: usize = 32 * 1024;

/// Frames one after the other; each says its own length.
pub const FORM_RAW: i64 = 0;
/// Sealed `DeviceFrames`.
pub const FORM_COLUMNS: i64 = 1;

/// The number of a class in the database.
pub fn class_number(class: Class) -> i64 {
    match class {
        Class::Event => 0,
        Class::Scalar => 1,
        Class::Waveform => 2,
    }
}

/// Encodes frames that are in the order of their seqs.
pub fn encode(frames: &[FrameRef<'_>]) -> (i64, Vec<u8>) {
    if frames.len() >= COLUMNS_FROM
        && let Ok(columns) = columns::encode("", frames[0].header().epoch, frames.iter().copied())
    {
        return (FORM_COLUMNS, envelope::seal(&columns));
    }
    let mut raw = Vec::with_capacity(frames.iter().map(|frame| frame.bytes().len()).sum());
    for frame in frames {
        raw.extend_from_slice(frame.bytes());
    }
    (FORM_RAW, raw)
}

/// All frames of a row, one after the other, in the order of their seqs where they were so encoded.
pub fn decode(form: i64, body: &[u8]) -> Result<Vec<u8>, Damage> {
    if form == FORM_RAW {
        return Ok(body.to_vec());
    }
    let broken = |what: String| Damage(format!("a stored block of frames: {what}"));
    let frames: DeviceFrames = envelope::open(body).map_err(|error| broken(error.to_string()))?;
    let decoded = columns::decode(&frames).map_err(|error| broken(error.to_string()))?;
    let mut out = Vec::new();
    let mut buffer = [0; MAX_FRAME];
    for frame in decoded.frames() {
        let len = decoded.rebuild(frame, &mut buffer).map_err(|error| broken(error.to_string()))?;
        out.extend_from_slice(&buffer[..len]);
    }
    for other in decoded.others() {
        out.extend_from_slice(other.bytes);
    }
    Ok(out)
}

/// Walks over frames that lie one after the other.
pub fn frames(bytes: &[u8]) -> Result<Vec<FrameRef<'_>>, Damage> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(&[_, _, low, high]) = rest.first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([low, high]));
        let parsed = rest.get(..len).and_then(|bytes| FrameRef::parse(bytes).ok());
        out.push(parsed.ok_or_else(|| Damage("a stored frame's CRC".to_owned()))?);
        rest = &rest[len..];
    }
    if rest.is_empty() { Ok(out) } else { Err(Damage("a torn row of frames".to_owned())) }
}

/// The last tick that a frame's samples reach.
pub fn last_ticks(frame: &FrameRef<'_>) -> u64 {
    use kinara_protocol::frame::Body;
    let base = frame.header().ticks.0;
    match frame.body() {
        Ok(Body::Samples(samples)) => samples
            .blocks()
            .filter_map(|block| block.samples().last().map(|sample| sample.ticks.0))
            .max()
            .unwrap_or(base)
            .max(base),
        Ok(Body::DeviceEvents(events)) => {
            events.iter().map(|event| event.ticks.0).max().unwrap_or(base).max(base)
        }
        _ => base,
    }
}

/// A 64-bit epoch in SQLite's signed integers, bit for bit.
pub fn epoch_to_sql(epoch: Epoch) -> i64 {
    epoch.0 as i64
}
