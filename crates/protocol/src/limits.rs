//! How much one message may hold.
//!
//! A sender's claims are bounded here and nowhere else. [`envelope::open`](crate::envelope::open) looks at the tags of a
//! message before anything is decoded and refuses what is above one of these numbers, so a decoder allocates by these
//! numbers, whatever a few hundred compressed bytes claim. They are generous: an honest gateway stays far below.

use crate::frame::{HEADER_LEN, MAX_FRAME};

/// The largest sealed message.
pub const MAX_SEALED: usize = 256 * 1024;
/// The largest message after decompression.
pub const MAX_OPENED: usize = 4 * 1024 * 1024;
/// The largest of those that gateways send often and nobody keeps (states, live values), after decompression.
pub const MAX_OPENED_SMALL: usize = 1024 * 1024;

/// Bytes of frames, as received from wearables, in one batch: gateways seal at most 384 KiB of them.
const FRAME_BYTES: usize = 512 * 1024;
/// Frames in one batch.
pub const FRAMES: usize = FRAME_BYTES / (HEADER_LEN + 10);
/// Values (samples times components) in one batch. Each takes a byte of its frame at least.
pub const VALUES: usize = FRAME_BYTES;
/// Blocks in one batch. Each takes five bytes of its frame at least: channel, flags, count, offset and a value.
pub const BLOCKS: usize = FRAME_BYTES / 5;
/// Numbers in all columns of one batch together.
pub const NUMBERS: usize = 4 * VALUES;
/// Devices, each epoch of one counted, in one batch.
pub const DEVICES: usize = 1024;
/// Series (channel and shape) of one device in one batch.
pub const SERIES: usize = 256;
/// Series in one batch.
pub const ALL_SERIES: usize = 16 * 1024;
/// Bytes of a frame that travels as it was received.
pub const FRAME: usize = MAX_FRAME;

/// Events in one event batch; gaps and decisions likewise. Gateways seal at most 200 of all together.
pub const EVENTS: usize = 256;
/// Bytes of the data of one event.
pub const EVENT_DATA: usize = 16 * 1024;
/// Numbers of the ranges in one gap.
pub const GAP_NUMBERS: usize = 32 * 1024;
/// Numbers of the ranges in all gaps of an event batch, or in all devices of a state.
pub const RANGE_NUMBERS: usize = 256 * 1024;

/// Devices in one state or live message.
pub const STATE_DEVICES: usize = 1024;
/// Numbers of the ranges that a state tells of one device.
pub const DELIVERED_NUMBERS: usize = 2048;
/// Things a person should know in one state.
pub const NOTES: usize = 256;
/// Adapters in one state.
pub const ADAPTERS: usize = 64;
/// Newest values of one device in a live message.
pub const LIVE_VALUES: usize = 256;
/// Newest values in a live message.
pub const ALL_LIVE_VALUES: usize = 16 * 1024;

/// Bytes of a text: a name, an id, a reason, a sentence for a person.
pub const TEXT: usize = 1024;
/// Bytes of a text that a wearer reads before consenting.
pub const LONG_TEXT: usize = 1024 * 1024;
/// Wearers, staff, introductions or revocations in one configuration.
pub const ROSTER: usize = 16 * 1024;

/// Readings in one request over HTTP. One takes some 57 bytes at least, and a request has 5 MB.
pub const REQUEST_READINGS: usize = 100_000;
/// Sources (each epoch and uncertainty of one counted) in one request over HTTP.
pub const REQUEST_SOURCES: usize = 10_000;
/// Bytes of one reading in a request over HTTP.
pub const REQUEST_READING: usize = 4096;

/// A text's beginning that is within [`TEXT`].
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT)]
}
