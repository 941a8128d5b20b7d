//! What a boot finds in the log's pages: which is the oldest, which the newest, where the next frame goes.
//!
//! A page whose header is damaged hides nothing, wherever it lies: its records say where it belongs.

use super::layout::{Identity, PAGE_HEADER, Position};
use super::{Ring, RingError};
use crate::flash::{Flash, PAGE};

impl<F: Flash> Ring<F> {
    pub(super) fn recover(&mut self) -> Result<(), RingError<F::Error>> {
        let mut newest = None;
        for page in 0..self.log_pages {
            let header = self.header_of(page)?;
            let found = self.serial_of(&header, page);
            newest = newest.max(found);
            if found.is_none() && header != [0xff; PAGE_HEADER as usize] {
                self.scrubs = Some(0);
            }
        }
        let Some(head) = self.newest_page(newest)? else {
            self.make_blank(0)?;
            self.start_page(0)?;
            return self.prepare_spare();
        };
        self.tail = self.oldest_page(head)?;
        self.head = self.end_of_page(head)?.0;
        self.last = self.newest_frame(head)?;
        let has_header = self.serial_in(head % self.log_pages)? == Some(head);
        if !has_header || !self.is_blank(head % self.log_pages, self.head.offset)? {
            // A write was cut here, or its header is damaged. Its words cannot be written again, so the page is left as it is.
            self.head.offset = PAGE;
        }
        if self.state.acknowledged > self.head {
            // Cannot be: what is acknowledged was stored. Better to offer too much than to hide a frame.
            self.state.acknowledged = Position::start_of(self.tail);
        }
        self.prepare_spare()
    }

    /// The newest page of this log: the one whose good header has the highest serial, or one behind it whose header is damaged.
    /// Of that its records say what it is: they are of this log, and younger than all the others. (A page that was being
    /// erased there has older ones.)
    fn newest_page(&mut self, known: Option<u32>) -> Result<Option<u32>, RingError<F::Error>> {
        let mut newest = known;
        loop {
            let (next, last) = match newest {
                Some(serial) => (serial + 1, self.newest_frame(serial)?),
                None => (0, None),
            };
            let first = match self.serial_in(next % self.log_pages)? {
                // It is one of those that were counted.
                Some(_) => None,
                None => self.first_frame(next)?,
            };
            if first.is_none_or(|first| last.is_some_and(|last| first <= last)) {
                return Ok(newest);
            }
            newest = Some(next);
        }
    }

    /// The oldest page of this log. Pages are followed back from the head, and one whose header is damaged ends nothing: those
    /// behind it hold frames that nobody may have, and it is of this log itself where its first record says so. (The
    /// place of the spare is one of them: a page that was being erased there has lost its header to zeros.)
    fn oldest_page(&mut self, head: u32) -> Result<u32, RingError<F::Error>> {
        let mut tail = head;
        for serial in ((head + 1).saturating_sub(self.log_pages)..head).rev() {
            if self.serial_in(serial % self.log_pages)? == Some(serial)
                || self.lost_its_header(serial, tail)?
            {
                tail = serial;
            }
        }
        Ok(tail)
    }

    /// Whether a page without a good header begins with a frame of this log, older than those of a younger page.
    fn lost_its_header(&mut self, serial: u32, younger: u32) -> Result<bool, RingError<F::Error>> {
        let first_younger = self.entry_in_page(Position::start_of(younger))?.map(|entry| entry.id);
        let first = self.first_frame(serial)?;
        Ok(first.is_some_and(|id| first_younger.is_none_or(|younger| id < younger)))
    }

    /// The frame of this log that a page begins with, whatever its header is; none of a page that was being erased.
    fn first_frame(&mut self, serial: u32) -> Result<Option<Identity>, RingError<F::Error>> {
        if self.header_of(serial % self.log_pages)? == [0; PAGE_HEADER as usize] {
            return Ok(None);
        }
        let first = self.entry_in_page(Position::start_of(serial))?.map(|entry| entry.id);
        Ok(first.filter(|id| id.epoch.log_id() == self.state.log_id))
    }

    /// The newest frame of the log that ends with this page. (The page after it, which may be the oldest, is left out.)
    fn newest_frame(&mut self, newest: u32) -> Result<Option<Identity>, RingError<F::Error>> {
        for serial in ((newest + 2).saturating_sub(self.log_pages)..=newest).rev() {
            let last = self.end_of_page(serial)?.1;
            if let Some(id) = last.filter(|id| id.epoch.log_id() == self.state.log_id) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Where a page's records end, and the last of them.
    fn end_of_page(&mut self, serial: u32) -> Result<(Position, Option<Identity>), RingError<F::Error>> {
        let (mut end, mut last) = (Position::start_of(serial), None);
        while let Some(entry) = self.entry_in_page(end)? {
            (end, last) = (entry.end, Some(entry.id));
        }
        Ok((end, last))
    }
}
