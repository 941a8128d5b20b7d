//! What the ring's bytes in flash look like.
//!
//! The first [`JOURNAL_PAGES`] pages are the journal (see [`super::journal`]); the rest is the log. The log is one
//! endless sequence of pages with serial numbers from 0; page *serial* lies in the flash page *serial* modulo the
//! number of log pages. A page starts with a header (magic, log id, serial, CRC-32C), then come records:
//!
//! | bytes | what |
//! |---|---|
//! | 2 | length of the frame |
//! | 2 | the same, inverted |
//! | length | the frame, padded to a word with `0xff` |
//!
//! The frame is written first and the word with its length last: a record is there when that word is. What is done
//! where a bit of it has flipped stands in [`super::records`].

use kinara_protocol::frame::{Epoch, MAX_FRAME, Seq, checksum};

/// Pages kept for the journal. Four of them share the wear of its small records.
pub const JOURNAL_PAGES: u32 = 4;
/// The fewest pages the log works with: the head, a spare, and one to lose.
pub const MIN_LOG_PAGES: u32 = 3;
/// Bytes of a log page's header.
pub const PAGE_HEADER: u32 = 16;
/// Bytes before a record's frame.
pub const RECORD_HEADER: u32 = 4;
/// Bytes of a frame, from its first, that hold its identity for all versions: version, kind, length, epoch, seq.
pub const IDENTITY_LEN: usize = 16;
/// What one read at a record's start takes in.
pub const PEEK_LEN: usize = RECORD_HEADER as usize + IDENTITY_LEN;

const MAGIC: u32 = u32::from_le_bytes(*b"KLOG");

/// A frame's identity within one wearable. In one log, order by identity is the log's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The boot that made it.
    pub epoch: Epoch,
    /// Its number in that boot.
    pub seq: Seq,
}

/// A place in the endless log: a page's serial and the offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub(super) serial: u32,
    pub(super) offset: u32,
}

impl Position {
    pub(super) const fn start_of(serial: u32) -> Self {
        Self { serial, offset: PAGE_HEADER }
    }
}

/// A frame in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where it starts.
    pub at: Position,
    /// Where the next one may start.
    pub end: Position,
    /// Which frame it is.
    pub id: Identity,
    /// Its length in bytes.
    pub len: u16,
}

/// Bytes that a frame of `len` bytes takes in the log.
pub const fn record_len(len: usize) -> u32 {
    RECORD_HEADER + (len as u32).next_multiple_of(4)
}

pub fn page_header(log_id: u32, serial: u32) -> [u8; PAGE_HEADER as usize] {
    let mut header = [0; PAGE_HEADER as usize];
    header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&log_id.to_le_bytes());
    header[8..12].copy_from_slice(&serial.to_le_bytes());
    let crc = checksum(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The serial in a page header, if it is one of this log.
pub fn parse_page_header(header: &[u8; PAGE_HEADER as usize], log_id: u32) -> Option<u32> {
    let serial = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    (*header == page_header(log_id, serial)).then_some(serial)
}

pub const fn commit_word(len: u16) -> [u8; RECORD_HEADER as usize] {
    let [a, b] = len.to_le_bytes();
    [a, b, !a, !b]
}

/// Length of the frame from a record's first bytes, if its commit word is whole.
pub fn parse_record(peek: &[u8; PEEK_LEN], room: u32) -> Option<u16> {
    let len = u16::from_le_bytes([peek[0], peek[1]]);
    (peek[..4] == commit_word(len) && is_length(len, room)).then_some(len)
}

/// Length of the frame from a record's first bytes, as the frame says it.
pub fn frame_len(peek: &[u8; PEEK_LEN], room: u32) -> Option<u16> {
    let len = u16::from_le_bytes([peek[6], peek[7]]);
    is_length(len, room).then_some(len)
}

/// What a record's first bytes say who its frame is.
pub fn parse_identity(peek: &[u8; PEEK_LEN]) -> Identity {
    let frame = &peek[RECORD_HEADER as usize..];
    let mut epoch = [0; 8];
    epoch.copy_from_slice(&frame[4..12]);
    let mut seq = [0; 4];
    seq.copy_from_slice(&frame[12..16]);
    Identity { epoch: Epoch(u64::from_le_bytes(epoch)), seq: u32::from_le_bytes(seq) }
}

/// Writes a frame's identity where [`parse_identity`] reads it.
pub fn put_identity(frame: &mut [u8], id: Identity) {
    if let Some(place) = frame.get_mut(4..IDENTITY_LEN) {
        place[..8].copy_from_slice(&id.epoch.0.to_le_bytes());
        place[8..].copy_from_slice(&id.seq.to_le_bytes());
    }
}

/// Whether nothing has been written at a record's first word.
pub fn is_blank_word(peek: &[u8; PEEK_LEN]) -> bool {
    peek[..RECORD_HEADER as usize] == [0xff; RECORD_HEADER as usize]
}

fn is_length(len: u16, room: u32) -> bool {
    (IDENTITY_LEN..=MAX_FRAME).contains(&usize::from(len)) && record_len(usize::from(len)) <= room
}
