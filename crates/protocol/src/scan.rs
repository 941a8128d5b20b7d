//! What a message would make its decoder allocate, found by its tags before it is decoded.
//!
//! A [`Shape`] names the fields of a message that take memory by what the sender wrote: repeated ones, texts, messages.
//! `scan` walks over the bytes once, without allocating, and refuses what is above the [limits](crate::limits). It
//! sees what the decoder will see: packed and single numbers are counted together, a message that may be there once is
//! refused twice (the decoder would join the two), and groups, which nobody sends, are refused.

use crate::envelope::{
    Ack, Batch, Command, CommandResult, Config, DeviceFrames, EnvelopeError, EventBatch, Live, State,
    TenantLive,
};
use crate::frame::MAX_COMPONENTS;
use crate::limits::{
    ADAPTERS, ALL_LIVE_VALUES, ALL_SERIES, BLOCKS, DELIVERED_NUMBERS, DEVICES, EVENT_DATA, EVENTS, FRAME,
    FRAMES, GAP_NUMBERS, LIVE_VALUES, LONG_TEXT, MAX_OPENED, MAX_OPENED_SMALL, NOTES, NUMBERS, RANGE_NUMBERS,
    ROSTER, SERIES, STATE_DEVICES, TEXT, VALUES,
};

/// A message that has a shape, and may be opened.
pub trait Shaped {
    /// Its shape.
    const SHAPE: &'static Shape;
    /// The largest that is opened, in bytes.
    const OPENED: usize;
}

/// The fields of a message that take memory.
#[derive(Debug)]
pub struct Shape(&'static [Field]);

#[derive(Debug)]
struct Field {
    number: u32,
    name: &'static str,
    holds: Holds,
}

#[derive(Debug, Clone, Copy)]
enum Holds {
    /// A text or bytes, at most so long.
    Text(usize),
    /// So many of them, each at most so long, counted among a kind of which the whole message may have so many.
    Texts(usize, usize, Total),
    /// Numbers of variable length, at most so many.
    Varints(usize, Total),
    /// Numbers of four bytes, at most so many.
    Words(usize, Total),
    /// A message.
    One(&'static Shape),
    /// At most so many messages.
    Many(&'static Shape, usize, Total),
}

/// What is counted over the whole message, wherever in it it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Total {
    Frames,
    Fits,
    Values,
    Blocks,
    Series,
    Ranges,
    LiveValues,
    /// Everything else that is repeated.
    Numbers,
}

const TOTALS: [usize; 8] =
    [FRAMES, FRAMES, VALUES, BLOCKS, ALL_SERIES, RANGE_NUMBERS, ALL_LIVE_VALUES, NUMBERS];
/// More than any shape has.
const MOST_FIELDS: usize = 16;

const fn field(number: u32, name: &'static str, holds: Holds) -> Field {
    Field { number, name, holds }
}

const fn text(number: u32, name: &'static str) -> Field {
    field(number, name, Holds::Text(TEXT))
}

const fn numbers(number: u32, name: &'static str) -> Field {
    field(number, name, Holds::Varints(NUMBERS, Total::Numbers))
}

static NAME: Shape = Shape(&[text(1, "name.gateway")]);
static NOTHING: Shape = Shape(&[]);
static BATCH: Shape = Shape(&[
    field(2, "name", Holds::One(&NAME)),
    field(4, "devices", Holds::Many(&DEVICE_FRAMES, DEVICES, Total::Numbers)),
]);
static DEVICE_FRAMES: Shape = Shape(&[
    text(1, "hardware_id"),
    numbers(3, "seq_ranges"),
    numbers(4, "kinds"),
    field(5, "frames", Holds::Varints(FRAMES, Total::Frames)),
    field(6, "crcs", Holds::Words(FRAMES, Total::Numbers)),
    field(7, "series", Holds::Many(&ONE_SERIES, SERIES, Total::Series)),
    numbers(8, "block_order"),
    field(9, "other_frames", Holds::Texts(FRAMES, FRAME, Total::Frames)),
    field(10, "fits", Holds::Many(&NOTHING, FRAMES, Total::Fits)),
    numbers(11, "fit_of"),
]);
static ONE_SERIES: Shape = Shape(&[
    numbers(4, "counts"),
    // One a block.
    field(5, "offsets", Holds::Varints(BLOCKS, Total::Blocks)),
    numbers(6, "intervals"),
    numbers(7, "tick_deltas"),
    field(8, "values", Holds::Varints(VALUES, Total::Values)),
]);

static EVENT_BATCH: Shape = Shape(&[
    field(2, "name", Holds::One(&NAME)),
    field(4, "events", Holds::Many(&EVENT, EVENTS, Total::Numbers)),
    field(5, "gaps", Holds::Many(&GAP, EVENTS, Total::Numbers)),
    field(6, "decisions", Holds::Many(&DECISION, EVENTS, Total::Numbers)),
]);
static EVENT: Shape = Shape(&[
    text(1, "hardware_id"),
    text(2, "kind"),
    text(3, "producer"),
    text(9, "severity"),
    field(11, "data_json", Holds::Text(EVENT_DATA)),
]);
static GAP: Shape = Shape(&[
    text(1, "hardware_id"),
    field(3, "seq_ranges", Holds::Varints(GAP_NUMBERS, Total::Ranges)),
    text(4, "reason"),
]);
static DECISION: Shape = Shape(&[
    text(1, "id"),
    field(4, "actor", Holds::One(&THREE_TEXTS)),
    field(10, "wearer_added", Holds::One(&TWO_TEXTS)),
    field(11, "consent_recorded", Holds::One(&CONSENT_RECORDED)),
    field(12, "consent_withdrawn", Holds::One(&ONE_TEXT)),
    field(13, "assigned", Holds::One(&ASSIGNED)),
    field(14, "unassigned", Holds::One(&UNASSIGNED)),
    field(15, "paired", Holds::One(&THREE_TEXTS)),
    field(16, "forgotten", Holds::One(&ONE_TEXT)),
    text(30, "signature"),
]);
static ONE_TEXT: Shape = Shape(&[text(1, "text")]);
static TWO_TEXTS: Shape = Shape(&[text(1, "text"), text(2, "text")]);
/// `Actor`, `Paired`, `Staff`, `Introduction`.
static THREE_TEXTS: Shape = Shape(&[text(1, "text"), text(2, "text"), text(3, "text")]);
static CONSENT_RECORDED: Shape = Shape(&[
    text(1, "consent_id"),
    text(2, "user_id"),
    text(3, "version"),
    text(4, "language"),
    text(5, "text_sha256"),
    text(6, "asked_by"),
]);
static ASSIGNED: Shape = Shape(&[
    text(1, "hardware_id"),
    text(2, "user_id"),
    text(3, "consent_id"),
    field(4, "from", Holds::One(&NOTHING)),
    text(5, "device_name"),
]);
static UNASSIGNED: Shape = Shape(&[text(1, "hardware_id"), field(2, "to", Holds::One(&NOTHING))]);

static LIVE: Shape = Shape(&[field(2, "devices", Holds::Many(&LIVE_DEVICE, STATE_DEVICES, Total::Numbers))]);
static LIVE_DEVICE: Shape = Shape(&[
    text(1, "hardware_id"),
    field(3, "values", Holds::Many(&LIVE_VALUE, LIVE_VALUES, Total::LiveValues)),
]);
static LIVE_VALUE: Shape = Shape(&[field(2, "value", Holds::Varints(MAX_COMPONENTS, Total::Numbers))]);
static TENANT_LIVE: Shape =
    Shape(&[field(2, "devices", Holds::Many(&TENANT_LIVE_DEVICE, STATE_DEVICES, Total::Numbers))]);
static TENANT_LIVE_DEVICE: Shape =
    Shape(&[text(1, "device_id"), text(2, "user_id"), field(3, "live", Holds::One(&LIVE_DEVICE))]);

static STATE: Shape = Shape(&[
    text(3, "software"),
    text(11, "clock_source"),
    field(14, "devices", Holds::Many(&DEVICE_STATE, STATE_DEVICES, Total::Numbers)),
    text(17, "level"),
    field(20, "notes", Holds::Texts(NOTES, TEXT, Total::Numbers)),
    text(21, "signing_key"),
    field(22, "adapters", Holds::Many(&ADAPTER, ADAPTERS, Total::Numbers)),
]);
static ADAPTER: Shape = Shape(&[text(1, "name"), text(2, "address")]);
static DEVICE_STATE: Shape = Shape(&[
    text(1, "hardware_id"),
    text(9, "firmware"),
    text(10, "problem"),
    field(12, "delivered", Holds::One(&DELIVERED)),
]);
static DELIVERED: Shape = Shape(&[field(2, "seq_ranges", Holds::Varints(DELIVERED_NUMBERS, Total::Ranges))]);

static ACK: Shape = Shape(&[
    field(2, "name", Holds::One(&NAME)),
    text(3, "sha256"),
    field(5, "done", Holds::One(&NOTHING)),
    field(6, "refused", Holds::One(&ONE_TEXT)),
    field(7, "retry_after", Holds::One(&RETRY_AFTER)),
]);
static RETRY_AFTER: Shape = Shape(&[text(2, "reason")]);
static COMMAND: Shape = Shape(&[
    field(3, "time", Holds::One(&NOTHING)),
    field(4, "live", Holds::One(&NOTHING)),
    field(5, "identify", Holds::One(&ONE_TEXT)),
    field(6, "resend", Holds::One(&NOTHING)),
]);
static COMMAND_RESULT: Shape = Shape(&[text(4, "detail")]);
static CONFIG: Shape = Shape(&[
    field(4, "roster", Holds::Many(&ROSTER_ENTRY, ROSTER, Total::Numbers)),
    field(5, "staff", Holds::Many(&THREE_TEXTS, ROSTER, Total::Numbers)),
    field(6, "consent_texts", Holds::Many(&CONSENT_TEXT, ROSTER, Total::Numbers)),
    field(7, "introductions", Holds::Many(&THREE_TEXTS, ROSTER, Total::Numbers)),
    field(8, "revocations", Holds::Many(&TWO_TEXTS, ROSTER, Total::Numbers)),
    text(9, "clinic_name"),
]);
static ROSTER_ENTRY: Shape = Shape(&[
    text(1, "user_id"),
    text(2, "display_name"),
    text(3, "hardware_id"),
    text(4, "consent_version"),
    text(7, "external_id"),
    text(8, "consent_id"),
]);
static CONSENT_TEXT: Shape =
    Shape(&[text(1, "version"), text(2, "language"), field(3, "text", Holds::Text(LONG_TEXT))]);

macro_rules! shaped {
    ($($message:ty: $shape:ident, $opened:ident;)*) => {$(
        impl Shaped for $message {
            const SHAPE: &'static Shape = &$shape;
            const OPENED: usize = $opened;
        }
    )*};
}

shaped! {
    Batch: BATCH, MAX_OPENED;
    DeviceFrames: DEVICE_FRAMES, MAX_OPENED;
    EventBatch: EVENT_BATCH, MAX_OPENED;
    Live: LIVE, MAX_OPENED_SMALL;
    TenantLive: TENANT_LIVE, MAX_OPENED_SMALL;
    State: STATE, MAX_OPENED_SMALL;
    Ack: ACK, MAX_OPENED_SMALL;
    Command: COMMAND, MAX_OPENED_SMALL;
    CommandResult: COMMAND_RESULT, MAX_OPENED_SMALL;
    Config: CONFIG, MAX_OPENED;
}

/// Whether a plain message stays within the limits of its shape.
pub(crate) fn scan(shape: &Shape, bytes: &[u8]) -> Result<(), EnvelopeError> {
    Scan { left: TOTALS }.message(shape, bytes)
}

struct Scan {
    /// What of each total is left.
    left: [usize; TOTALS.len()],
}

impl Scan {
    fn message(&mut self, shape: &Shape, mut bytes: &[u8]) -> Result<(), EnvelopeError> {
        let mut counts = [0usize; MOST_FIELDS];
        while !bytes.is_empty() {
            let (number, value) = next(&mut bytes).ok_or(EnvelopeError::Tags)?;
            if let Some(index) = shape.0.iter().position(|field| field.number == number) {
                self.field(&shape.0[index], &mut counts[index], value)?;
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, count: &mut usize, value: Value<'_>) -> Result<(), EnvelopeError> {
        let excess = |most| EnvelopeError::Limit { field: field.name, most };
        let (items, most, total) = match (field.holds, value) {
            (Holds::Text(most), Value::Bytes(bytes)) if bytes.len() > most => return Err(excess(most)),
            (Holds::Text(_), Value::Bytes(_)) => return Ok(()),
            (Holds::Texts(_, longest, _), Value::Bytes(bytes)) if bytes.len() > longest => {
                return Err(excess(longest));
            }
            (Holds::Texts(most, _, total), Value::Bytes(_)) => (1, most, total),
            (Holds::Varints(most, total), Value::Varint) | (Holds::Words(most, total), Value::Word) => {
                (1, most, total)
            }
            (Holds::Varints(most, total), Value::Bytes(bytes)) => {
                (bytes.iter().filter(|byte| **byte < 0x80).count(), most, total)
            }
            (Holds::Words(most, total), Value::Bytes(bytes)) => (bytes.len().div_ceil(4), most, total),
            (Holds::One(shape), Value::Bytes(bytes)) => {
                self.message(shape, bytes)?;
                (1, 1, Total::Numbers)
            }
            (Holds::Many(shape, most, total), Value::Bytes(bytes)) => {
                self.message(shape, bytes)?;
                (1, most, total)
            }
            _ => return Err(EnvelopeError::Tags),
        };
        *count += items;
        let left = &mut self.left[total as usize];
        if *count > most || items > *left {
            return Err(excess(most.min(TOTALS[total as usize])));
        }
        *left -= items;
        Ok(())
    }
}

/// A field's value, as far as it matters here.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Varint,
    Word,
    Long,
    Bytes(&'a [u8]),
}

/// The next field. `None`: this is not Protobuf, or a group.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let key = u32::try_from(varint(bytes)?).ok()?;
    let value = match key & 7 {
        0 => {
            varint(bytes)?;
            Value::Varint
        }
        1 => {
            take(bytes, 8)?;
            Value::Long
        }
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            Value::Bytes(take(bytes, len)?)
        }
        5 => {
            take(bytes, 4)?;
            Value::Word
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(len)?;
    *bytes = tail;
    Some(head)
}

/// A varint of at most ten bytes, overlong ones too: the decoder takes them.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some(value);
        }
    }
    None
}
