//! The flash ring: the wearable's log of frames.
//!
//! **Promise.** When [`Ring::append`] has returned, the frame is in flash, and it stays there, whole and in its place,
//! through any loss of power, until it is acknowledged or until the ring is full and its page is the oldest. A page
//! with frames that nobody has acknowledged is erased only by [`Ring::reclaim`], after
//! [`Ring::for_each_lost`] has named what goes. An acknowledgement covers everything before it in the log's order; it
//! may be forgotten by a reset (then frames are offered again, which is harmless), but it is never invented. The
//! boot counter rises before a boot's first frame is stored, so no identity is ever given twice, and a log that is
//! formatted gets a new random id, so that identities do not repeat across formatting either.
//!
//! Frames that are acknowledged stay readable until their page is needed, so a gateway that lost its copy can still
//! ask for them. Of a log that was formatted nothing stays: its pages are erased one by one ([`Ring::scrub`]), and a
//! boot that finds one left goes on with it.
//!
//! How: `layout.rs` says what the bytes are. The page after the head is kept erased (the *spare*). When the head page
//! is full, the spare becomes the head, and the page after it, the oldest, has to go; the caller gets its say
//! while the new head page has room for the story. Power may fail between any two flash operations: a frame without
//! its length word is not there (the rest of that page is then left unused), a page whose header is not whole is
//! not there unless its records say that it is of this log, and a page that was being erased lost its header first.

#[cfg(test)]
mod damage_tests;
mod journal;
mod layout;
#[cfg(test)]
mod power_tests;
mod records;
mod recovery;

use kinara_protocol::frame::{Epoch, MAX_FRAME, Seq, SyncAnchor};

use self::journal::Journal;
pub use self::journal::State;
pub use self::layout::{Entry, Identity, JOURNAL_PAGES, MIN_LOG_PAGES, Position};
use self::layout::{
    IDENTITY_LEN, PAGE_HEADER, RECORD_HEADER, commit_word, page_header, parse_page_header, put_identity,
    record_len,
};
use self::records::Lately;
use crate::flash::{Flash, PAGE};

/// Why the ring could not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError<E> {
    /// The flash failed.
    #[error("the flash failed: {0:?}")]
    Flash(E),
    /// Fewer pages than the journal and the smallest log need.
    #[error("the flash has {0} pages; the log needs at least {min}", min = JOURNAL_PAGES + MIN_LOG_PAGES)]
    TooSmall(u32),
    /// The oldest page has to be reclaimed first.
    #[error("the log has no spare page: reclaim the oldest first")]
    NoSpare,
    /// Longer than a frame can be.
    #[error("{0} bytes are not a frame")]
    NotAFrame(usize),
}

impl<E> From<E> for RingError<E> {
    fn from(error: E) -> Self {
        Self::Flash(error)
    }
}

/// An acknowledgement that the ring did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeverStored;

/// The log. See the module's text.
#[derive(Debug)]
pub struct Ring<F> {
    flash: F,
    journal: Journal,
    state: State,
    /// As the journal has it; `state.acknowledged` may be ahead.
    durable: Position,
    log_pages: u32,
    tail: u32,
    head: Position,
    spare_ready: bool,
    last: Option<Identity>,
    unacknowledged: u32,
    lately: Lately,
    /// The page that is looked at next for what an earlier log has left; none where nothing is left.
    scrubs: Option<u32>,
}

impl<F: Flash> Ring<F> {
    /// Recovers the log, or formats the flash if it holds none, and counts this boot. The flag says whether it was
    /// formatted. `new_log_id` is used only then.
    pub fn open(mut flash: F, new_log_id: u32) -> Result<(Self, bool), RingError<F::Error>> {
        if flash.pages() < JOURNAL_PAGES + MIN_LOG_PAGES {
            return Err(RingError::TooSmall(flash.pages()));
        }
        let log_pages = flash.pages() - JOURNAL_PAGES;
        let (mut journal, found) = Journal::open(&mut flash)?;
        let formatted = found.is_none();
        let mut state = found.unwrap_or(State {
            log_id: new_log_id,
            boot: 0,
            acknowledged: Position::start_of(0),
            sync: None,
        });
        state.boot += 1;
        journal.write(&mut flash, &state)?;
        let mut ring = Self {
            flash,
            journal,
            durable: state.acknowledged,
            state,
            log_pages,
            tail: 0,
            head: Position::start_of(0),
            spare_ready: true,
            last: None,
            unacknowledged: 0,
            lately: Lately::default(),
            scrubs: None,
        };
        ring.recover()?;
        ring.unacknowledged = ring.count_from(ring.state.acknowledged, ring.head)?;
        Ok((ring, formatted))
    }

    /// This boot's epoch.
    pub fn epoch(&self) -> Epoch {
        Epoch::new(self.state.log_id, self.state.boot)
    }

    /// Frames stored and not acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.unacknowledged
    }

    /// The newest frame in flash.
    pub fn last(&self) -> Option<Identity> {
        self.last
    }

    /// The newest time sync of any boot that the journal knows: the boot's number, and the sync.
    pub fn last_sync(&self) -> Option<(u32, SyncAnchor)> {
        self.state.sync
    }

    /// Remembers a time sync of this boot.
    pub fn remember_sync(&mut self, sync: SyncAnchor) -> Result<(), RingError<F::Error>> {
        self.state.sync = Some((self.state.boot, sync));
        self.persist()
    }

    /// Whether a frame of `len` bytes needs a new page.
    pub fn must_turn(&self, len: usize) -> bool {
        self.head.offset + record_len(len) > PAGE
    }

    /// Whether the page after the head is erased. If not, the oldest page waits to be reclaimed.
    pub fn spare_ready(&self) -> bool {
        self.spare_ready
    }

    /// Stores a frame.
    pub fn append(&mut self, id: Identity, frame: &[u8]) -> Result<Position, RingError<F::Error>> {
        if frame.len() > MAX_FRAME {
            return Err(RingError::NotAFrame(frame.len()));
        }
        if self.must_turn(frame.len()) {
            if !self.spare_ready {
                return Err(RingError::NoSpare);
            }
            self.start_page(self.head.serial + 1)?;
            self.prepare_spare()?;
        }
        let mut padded = [0xff; MAX_FRAME.next_multiple_of(4)];
        padded[..frame.len()].copy_from_slice(frame);
        self.encipher(id, &mut padded[..frame.len()]);
        let at = self.head;
        let address = self.address(at);
        let body = &padded[..frame.len().next_multiple_of(4)];
        // Should the write fail half way, the words after `at` are spent: nothing more goes into this page.
        self.head.offset = PAGE;
        self.flash.write(address + RECORD_HEADER, body)?;
        self.flash.write(address, &commit_word(frame.len() as u16))?;
        self.head.offset = at.offset + record_len(frame.len());
        self.lately.remember(&Entry { at, end: self.head, id, len: frame.len() as u16 });
        self.last = Some(id);
        self.unacknowledged += 1;
        Ok(at)
    }

    /// Calls `name` for each range of unacknowledged frames in the page that has to go: epoch, first and last seq.
    pub fn for_each_lost(
        &mut self,
        mut name: impl FnMut(Epoch, Seq, Seq),
    ) -> Result<(), RingError<F::Error>> {
        if self.spare_ready {
            return Ok(());
        }
        let mut at = Position::start_of(self.tail).max(self.state.acknowledged);
        let mut range: Option<(Epoch, Seq, Seq)> = None;
        while at.serial == self.tail
            && let Some(entry) = self.entry_in_page(at)?
        {
            at = entry.end;
            range = match range {
                Some((epoch, first, _)) if epoch == entry.id.epoch => Some((epoch, first, entry.id.seq)),
                done => {
                    if let Some((epoch, first, last)) = done {
                        name(epoch, first, last);
                    }
                    Some((entry.id.epoch, entry.id.seq, entry.id.seq))
                }
            };
        }
        if let Some((epoch, first, last)) = range {
            name(epoch, first, last);
        }
        Ok(())
    }

    /// Erases the oldest page if the head needs it as its spare.
    pub fn reclaim(&mut self) -> Result<(), RingError<F::Error>> {
        if self.spare_ready {
            return Ok(());
        }
        let page = self.tail % self.log_pages;
        let end = Position::start_of(self.tail + 1);
        let lost = self.count_from(self.state.acknowledged, end)?;
        // Flash that has lost bits since may count otherwise.
        self.unacknowledged = self.unacknowledged.saturating_sub(lost);
        self.tail += 1;
        self.state.acknowledged = self.state.acknowledged.max(Position::start_of(self.tail));
        self.make_blank(page)?;
        self.spare_ready = true;
        Ok(())
    }

    /// The first frame at or after a place; `None` at the head. A place that is gone counts as the oldest there is.
    pub fn entry_at(&mut self, at: Position) -> Result<Option<Entry>, RingError<F::Error>> {
        let mut at = at.max(Position::start_of(self.tail));
        while at.serial <= self.head.serial {
            if let Some(entry) = self.entry_in_page(at)? {
                return Ok(Some(entry));
            }
            at = Position::start_of(at.serial + 1);
        }
        Ok(None)
    }

    /// Copies a frame out, with the identity that is believed of it; gives its bytes.
    pub fn read<'b>(
        &mut self,
        entry: &Entry,
        into: &'b mut [u8; MAX_FRAME],
    ) -> Result<&'b [u8], RingError<F::Error>> {
        let bytes = &mut into[..usize::from(entry.len)];
        let address = self.address(entry.at) + RECORD_HEADER;
        self.flash.read(address, bytes)?;
        put_identity(bytes, entry.id);
        self.encipher(entry.id, bytes);
        Ok(bytes)
    }

    /// A key stream over what is behind a frame's identity, which stays readable: recovery goes by it. An identity is
    /// never given twice, not even to a frame that a reset has cut, so neither is the stream.
    fn encipher(&mut self, id: Identity, frame: &mut [u8]) {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&id.epoch.0.to_le_bytes());
        nonce[8..].copy_from_slice(&id.seq.to_le_bytes());
        if let Some(body) = frame.get_mut(IDENTITY_LEN..) {
            self.flash.encipher(&nonce, body);
        }
    }

    /// The place before which everything is acknowledged.
    pub fn acknowledged(&self) -> Position {
        self.state.acknowledged
    }

    /// The place of the oldest frame that is still in flash.
    pub fn oldest(&self) -> Position {
        Position::start_of(self.tail)
    }

    /// The first page that may hold recent frames: at most `pages` pages back from the head.
    pub fn recent(&self, pages: u32) -> Position {
        Position::start_of(self.head.serial.saturating_sub(pages).max(self.tail))
    }

    /// The first frame that nobody has acknowledged.
    pub fn first_unacknowledged(&mut self) -> Result<Option<Entry>, RingError<F::Error>> {
        self.entry_at(self.state.acknowledged)
    }

    /// Takes an acknowledgement of everything up to `id`; `passed` is called with the place of each frame that is newly
    /// acknowledged. An older one changes nothing.
    pub fn acknowledge(
        &mut self,
        id: Identity,
        mut passed: impl FnMut(Position),
    ) -> Result<Result<(), NeverStored>, RingError<F::Error>> {
        if id.epoch.log_id() != self.state.log_id || self.last.is_none_or(|last| id > last) {
            return Ok(Err(NeverStored));
        }
        while let Some(entry) = self.entry_at(self.state.acknowledged)? {
            if entry.id > id {
                break;
            }
            passed(entry.at);
            self.state.acknowledged = entry.end;
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
        }
        Ok(Ok(()))
    }

    /// The place of the first frame with this identity or a later one.
    pub fn seek(&mut self, id: Identity) -> Result<Position, RingError<F::Error>> {
        let mut from = Position::start_of(self.tail);
        for serial in self.tail + 1..=self.head.serial {
            match self.entry_in_page(Position::start_of(serial))? {
                Some(entry) if entry.id <= id => from = entry.at,
                Some(_) => break,
                None => {}
            }
        }
        while let Some(entry) = self.entry_at(from)? {
            if entry.id >= id {
                return Ok(entry.at);
            }
            from = entry.end;
        }
        Ok(self.head)
    }

    /// Frames from one place to another.
    pub fn count_from(&mut self, mut at: Position, until: Position) -> Result<u32, RingError<F::Error>> {
        let mut count = 0;
        while let Some(entry) = self.entry_at(at)?.filter(|entry| entry.at < until) {
            count += 1;
            at = entry.end;
        }
        Ok(count)
    }

    /// Where the next frame goes, or its page ends.
    pub fn head(&self) -> Position {
        self.head
    }

    /// Makes the acknowledged place survive a reset.
    pub fn persist_acknowledged(&mut self) -> Result<(), RingError<F::Error>> {
        if self.durable == self.state.acknowledged { Ok(()) } else { self.persist() }
    }

    /// Forgets all frames and starts a log with a new id. It takes effect with one journal record; the caller resets the
    /// wearable afterwards, which starts the new log's first boot.
    pub fn format(&mut self, new_log_id: u32) -> Result<(), RingError<F::Error>> {
        // The old id again would bring the old pages and identities back.
        let log_id = if new_log_id == self.state.log_id { !new_log_id } else { new_log_id };
        self.state = State { log_id, boot: 0, acknowledged: Position::start_of(0), sync: None };
        self.persist()
    }

    /// Erases the next page of an earlier log, if there is one: a formatted log is another wearer's, or nobody's, to read.
    /// Looks at one page a call; tells whether it erased, which takes a while.
    pub fn scrub(&mut self) -> Result<bool, RingError<F::Error>> {
        let Some(page) = self.scrubs else { return Ok(false) };
        self.scrubs = (page + 1 < self.log_pages).then_some(page + 1);
        // A page of this log has its serial, or lost it and lies between tail and head; its spare is blank.
        let lies_within = (self.tail..=self.head.serial).any(|serial| serial % self.log_pages == page);
        if lies_within || self.is_blank(page, 0)? {
            return Ok(false);
        }
        self.make_blank(page)?;
        Ok(true)
    }

    /// The flash, for whoever needs it after the ring.
    pub fn into_flash(self) -> F {
        self.flash
    }

    fn persist(&mut self) -> Result<(), RingError<F::Error>> {
        self.journal.write(&mut self.flash, &self.state)?;
        self.durable = self.state.acknowledged;
        Ok(())
    }

    fn address(&self, at: Position) -> u32 {
        page_address(at.serial % self.log_pages) + at.offset
    }

    fn serial_in(&mut self, page: u32) -> Result<Option<u32>, RingError<F::Error>> {
        let header = self.header_of(page)?;
        Ok(self.serial_of(&header, page))
    }

    fn header_of(&mut self, page: u32) -> Result<[u8; PAGE_HEADER as usize], RingError<F::Error>> {
        let mut header = [0; PAGE_HEADER as usize];
        self.flash.read(page_address(page), &mut header)?;
        Ok(header)
    }

    fn serial_of(&self, header: &[u8; PAGE_HEADER as usize], page: u32) -> Option<u32> {
        parse_page_header(header, self.state.log_id).filter(|serial| serial % self.log_pages == page)
    }

    fn start_page(&mut self, serial: u32) -> Result<(), RingError<F::Error>> {
        let address = page_address(serial % self.log_pages);
        self.flash.write(address, &page_header(self.state.log_id, serial))?;
        self.head = Position::start_of(serial);
        Ok(())
    }

    /// Looks at the page after the head: the oldest of this log has to be reclaimed; anything else is erased now.
    fn prepare_spare(&mut self) -> Result<(), RingError<F::Error>> {
        self.spare_ready = self.head.serial + 1 < self.tail + self.log_pages;
        if self.spare_ready {
            self.make_blank((self.head.serial + 1) % self.log_pages)?;
        }
        Ok(())
    }

    fn is_blank(&mut self, page: u32, from: u32) -> Result<bool, RingError<F::Error>> {
        let address = page_address(page);
        let mut offset = from;
        let mut bytes = [0; 256];
        while offset < PAGE {
            let chunk = &mut bytes[..(PAGE - offset).min(256) as usize];
            self.flash.read(address + offset, chunk)?;
            if chunk.iter().any(|&byte| byte != 0xff) {
                return Ok(false);
            }
            offset += chunk.len() as u32;
        }
        Ok(true)
    }

    /// Erases a page unless it is blank. Its header goes first, so that a cut erasure leaves no page of the log.
    fn make_blank(&mut self, page: u32) -> Result<(), RingError<F::Error>> {
        if self.is_blank(page, 0)? {
            return Ok(());
        }
        let address = page_address(page);
        self.flash.write(address, &[0; PAGE_HEADER as usize])?;
        self.flash.erase(JOURNAL_PAGES + page)?;
        Ok(())
    }
}

const fn page_address(page: u32) -> u32 {
    (JOURNAL_PAGES + page) * PAGE
}
