//! Reading a page's records where bits have flipped.
//!
//! **Promise.** One damaged record hides no other one, and costs at most itself: under its own number, so that it can
//! be named. An identity is believed where it follows the one before it or where the frame's CRC holds for it. Else
//! it is taken from the records beside it; if the frame's CRC holds with that one, only its identity was damaged, and the
//! frame is whole.
//!
//! A damaged commit word costs nothing where the frame behind it is whole, for a frame knows its own length. Behind one
//! that is not, the page is searched word by word for the next whole frame of this log. A blank one ends the page: what
//! lies behind it was cut while it was written.

use kinara_protocol::frame::{FrameRef, MAX_FRAME};

use super::layout::{
    Entry, Identity, PEEK_LEN, Position, frame_len, is_blank_word, parse_identity, parse_record, record_len,
};
use super::{Ring, RingError};
use crate::flash::{Flash, PAGE, WORD};

/// A record as the flash has it.
#[derive(Debug, Clone, Copy)]
struct Record {
    at: Position,
    len: u16,
    /// What it says of itself.
    id: Identity,
    /// Whether that is to be believed.
    believed: bool,
}

impl Record {
    fn end(&self) -> Position {
        let offset = self.at.offset + record_len(usize::from(self.len));
        Position { serial: self.at.serial, offset }
    }
}

/// The records that were read or written last, so that who goes through the log, or looks again, need not check the CRC of
/// each. Several do so side by side: what is sent, what is acknowledged, what is stored.
#[derive(Debug, Default)]
pub(super) struct Lately {
    entries: [Option<Entry>; 1],
    next: usize,
}

impl Lately {
    /// Which frame is at a place, if it is one of these, or of the same boot as the one before it.
    fn expected(&self, at: Position) -> Option<Identity> {
        let known = self.entries.iter().flatten().find(|entry| entry.at == at || entry.end == at)?;
        Some(if known.at == at { known.id } else { after(known.id) })
    }

    pub(super) fn remember(&mut self, entry: &Entry) {
        let known = |other: &Option<Entry>| other.is_some_and(|it| it.at == entry.at || it.end == entry.at);
        let place = self.entries.iter().position(known).unwrap_or_else(|| {
            self.next = (self.next + 1) % self.entries.len();
            self.next
        });
        self.entries[place] = Some(*entry);
    }
}

impl<F: Flash> Ring<F> {
    /// The first frame at or after a place in its page.
    pub(super) fn entry_in_page(&mut self, at: Position) -> Result<Option<Entry>, RingError<F::Error>> {
        let expected = self.lately.expected(at);
        let mut from = at;
        while let Some(record) = self.record_in_page(from, expected)? {
            from = record.end();
            let id = if record.believed { Some(record.id) } else { self.identity_beside(&record)? };
            if let Some(id) = id {
                let entry = Entry { at: record.at, end: from, id, len: record.len };
                self.lately.remember(&entry);
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The first record at or after a place in its page. Of a frame of another log the page is not searched further.
    fn record_in_page(
        &mut self,
        from: Position,
        expected: Option<Identity>,
    ) -> Result<Option<Record>, RingError<F::Error>> {
        let mut at = from;
        while PAGE.saturating_sub(at.offset) >= PEEK_LEN as u32 {
            let mut peek = [0; PEEK_LEN];
            let (address, room) = (self.address(at), PAGE - at.offset);
            self.flash.read(address, &mut peek)?;
            let (is_blank, searches) = (is_blank_word(&peek), at != from);
            if is_blank && !searches {
                return Ok(None);
            }
            let committed = parse_record(&peek, room).filter(|_| !searches);
            let id = parse_identity(&peek);
            if let Some(len) = committed {
                let believed = expected == Some(id) || self.is_whole(at, len, id)?;
                let is_ours = !believed || self.is_of_this_log(id);
                return Ok(is_ours.then_some(Record { at, len, id, believed }));
            }
            if !is_blank
                && self.is_of_this_log(id)
                && let Some(len) = frame_len(&peek, room)
                && self.is_whole(at, len, id)?
            {
                return Ok(Some(Record { at, len, id, believed: true }));
            }
            at.offset += WORD as u32;
        }
        Ok(None)
    }

    /// The identity of a record that cannot be believed, by those beside it; none where nothing tells it.
    fn identity_beside(&mut self, record: &Record) -> Result<Option<Identity>, RingError<F::Error>> {
        // What is next goes first: between two boots only that one tells.
        let beside = [self.by_the_next(record)?, self.by_the_one_before(record)?];
        for id in beside.into_iter().flatten() {
            if self.is_whole(record.at, record.len, id)? {
                return Ok(Some(id));
            }
        }
        if beside.contains(&Some(record.id)) {
            return Ok(Some(record.id));
        }
        let alone = Some(record.id).filter(|id| self.is_of_this_log(*id) && id.epoch <= self.epoch());
        Ok(beside[0].or(beside[1]).or(alone))
    }

    fn by_the_next(&mut self, record: &Record) -> Result<Option<Identity>, RingError<F::Error>> {
        let (mut at, mut behind) = (record.end(), 1);
        while let Some(next) = self.record_in_page(at, None)? {
            if next.believed {
                let seq = next.id.seq.checked_sub(behind);
                return Ok(seq.map(|seq| Identity { epoch: next.id.epoch, seq }));
            }
            (at, behind) = (next.end(), behind + 1);
        }
        Ok(None)
    }

    fn by_the_one_before(&mut self, record: &Record) -> Result<Option<Identity>, RingError<F::Error>> {
        let serial = record.at.serial;
        let page_before = serial.checked_sub(1).filter(|before| *before >= self.tail);
        let mut next = None;
        for serial in page_before.into_iter().chain([serial]) {
            let mut at = Position::start_of(serial);
            while let Some(before) = self.record_in_page(at, None)?.filter(|before| before.at < record.at) {
                next = if before.believed { Some(after(before.id)) } else { next.map(after) };
                at = before.end();
            }
        }
        Ok(next)
    }

    fn is_of_this_log(&self, id: Identity) -> bool {
        id.epoch.log_id() == self.state.log_id
    }

    /// Whether the frame of a record is whole if this is its identity. Not inlined: its frame is on the stack only here.
    #[inline(never)]
    fn is_whole(&mut self, at: Position, len: u16, id: Identity) -> Result<bool, RingError<F::Error>> {
        let mut bytes = [0; MAX_FRAME];
        let entry = Entry { at, end: at, id, len };
        Ok(FrameRef::parse(self.read(&entry, &mut bytes)?).is_ok())
    }
}

fn after(id: Identity) -> Identity {
    Identity { seq: id.seq.saturating_add(1), ..id }
}
