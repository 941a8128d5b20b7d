//! The journal: the few numbers that outlive a reset beside the frames themselves.
//!
//! **Promise.** [`Journal::write`] returns once the new state is what [`Journal::open`] will find. Power lost before
//! that leaves the state before it. A state is never found that was not written whole.
//!
//! Each record holds the whole state with a serial and a CRC-32C. Records follow each other over
//! [`JOURNAL_PAGES`] pages; the newest whole record counts. A page is erased only when the newest record lies in the
//! page before it.

use kinara_protocol::frame::{SyncAnchor, Ticks, checksum};

use super::layout::{JOURNAL_PAGES, Position};
use crate::flash::{Flash, PAGE};

const RECORD: usize = 52;
const SLOTS: u32 = PAGE / RECORD as u32;
const MARK: u32 = u32::from_le_bytes(*b"KJ01");

/// What the journal keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Drawn at random when the log was formatted.
    pub log_id: u32,
    /// The boot counter: the number of the boot that runs, or ran last.
    pub boot: u32,
    /// Everything before this place is acknowledged.
    pub acknowledged: Position,
    /// The newest time sync and the boot it belongs to.
    pub sync: Option<(u32, SyncAnchor)>,
}

impl State {
    fn encode(&self, serial: u32) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        let (sync_boot, sync) = self.sync.unwrap_or((
            // Boots count from 1.
            0,
            SyncAnchor { ticks: Ticks(0), utc_us: 0, uncertainty_us: 0 },
        ));
        out[0..4].copy_from_slice(&MARK.to_le_bytes());
        out[4..8].copy_from_slice(&serial.to_le_bytes());
        out[8..12].copy_from_slice(&self.log_id.to_le_bytes());
        out[12..16].copy_from_slice(&self.boot.to_le_bytes());
        out[16..20].copy_from_slice(&self.acknowledged.serial.to_le_bytes());
        out[20..24].copy_from_slice(&self.acknowledged.offset.to_le_bytes());
        out[24..28].copy_from_slice(&sync_boot.to_le_bytes());
        out[28..36].copy_from_slice(&sync.ticks.0.to_le_bytes());
        out[36..44].copy_from_slice(&sync.utc_us.to_le_bytes());
        out[44..48].copy_from_slice(&sync.uncertainty_us.to_le_bytes());
        let crc = checksum(&out[..48]);
        out[48..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<(u32, Self)> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MARK || u32_at(48) != checksum(&bytes[..48]) {
            return None;
        }
        let sync =
            SyncAnchor { ticks: Ticks(u64_at(28)), utc_us: u64_at(36) as i64, uncertainty_us: u32_at(44) };
        let state = Self {
            log_id: u32_at(8),
            boot: u32_at(12),
            acknowledged: Position { serial: u32_at(16), offset: u32_at(20) },
            sync: match u32_at(24) {
                0 => None,
                boot => Some((boot, sync)),
            },
        };
        Some((u32_at(4), state))
    }
}

/// Where the journal stands.
#[derive(Debug)]
pub struct Journal {
    serial: u32,
    page: u32,
    slot: u32,
}

impl Journal {
    /// Finds the newest state.
    pub fn open<F: Flash>(flash: &mut F) -> Result<(Self, Option<State>), F::Error> {
        let mut newest: Option<(u32, State)> = None;
        // Nothing found: the first write erases page 0, whatever it holds.
        let mut journal = Self { serial: 0, page: JOURNAL_PAGES - 1, slot: SLOTS };
        for page in 0..JOURNAL_PAGES {
            for slot in 0..SLOTS {
                let mut bytes = [0; RECORD];
                flash.read(page * PAGE + slot * RECORD as u32, &mut bytes)?;
                let Some((serial, state)) = State::decode(&bytes) else { continue };
                if newest.is_none_or(|(best, _)| serial > best) {
                    newest = Some((serial, state));
                    journal = Self { serial: serial + 1, page, slot: slot + 1 };
                }
            }
        }
        Ok((journal, newest.map(|(_, state)| state)))
    }

    /// Makes `state` the one that counts.
    pub fn write<F: Flash>(&mut self, flash: &mut F, state: &State) -> Result<(), F::Error> {
        loop {
            if self.slot == SLOTS {
                let next = (self.page + 1) % JOURNAL_PAGES;
                flash.erase(next)?;
                self.page = next;
                self.slot = 0;
            }
            let address = self.page * PAGE + self.slot * RECORD as u32;
            self.slot += 1;
            // A slot that a cut write has touched is left alone: words are written once.
            let mut bytes = [0; RECORD];
            flash.read(address, &mut bytes)?;
            if bytes.iter().all(|&byte| byte == 0xff) {
                flash.write(address, &state.encode(self.serial))?;
                self.serial += 1;
                return Ok(());
            }
        }
    }
}
