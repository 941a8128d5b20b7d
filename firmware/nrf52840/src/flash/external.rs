//! The flash chip on the board. Calls block: a word takes microseconds, a page 0.25 s at the worst to erase (MX25R6435F,
//! low-power mode), which comes once in 20 minutes of the reference plan. The controller runs in interrupts meanwhile.

pub use embassy_nrf::qspi::Error;

use embassy_nrf::qspi::Qspi;
use kinara_firmware_app::flash::PAGE;

use super::WORD;
use crate::board::EXTERNAL_FLASH;
use crate::key::Key;

/// Pages for an update: its record, and room for an image of 480 KiB.
pub const SLOT_PAGES: u32 = 121;
/// All pages.
pub const PAGES: u32 = EXTERNAL_FLASH / PAGE;
/// The transfer unit; the peripheral copies whole words between word addresses.
const CHUNK: usize = 256;

#[repr(C, align(4))]
struct Words([u8; CHUNK]);

/// Everything of a wearer goes, and the bonds: factory reset, and the first start. It takes minutes where there is much;
/// `alive` is called for each page. (On release from a wearer the log is formatted, which erases its frames page by page.)
pub fn erase_all(qspi: &mut Qspi<'static>, mut alive: impl FnMut()) -> Result<(), Error> {
    for page in 0..PAGES {
        alive();
        if !is_blank(qspi, page)? {
            qspi.blocking_erase(page * PAGE)?;
        }
    }
    Ok(())
}

fn is_blank(qspi: &mut Qspi<'static>, page: u32) -> Result<bool, Error> {
    let mut words = Words([0; CHUNK]);
    for chunk in 0..PAGE / CHUNK as u32 {
        qspi.blocking_read(page * PAGE + chunk * CHUNK as u32, &mut words.0)?;
        if words.0.iter().any(|&byte| byte != 0xff) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The chip, and the key.
pub struct Chip {
    qspi: Qspi<'static>,
    pub(super) key: Key,
}

impl Chip {
    /// A chip whose contents are of this key.
    pub fn new(qspi: Qspi<'static>, key: Key) -> Self {
        Self { qspi, key }
    }

    pub(super) fn read(&mut self, mut address: u32, mut into: &mut [u8]) -> Result<(), Error> {
        while !into.is_empty() {
            let skipped = (address as usize) % WORD;
            let taken = into.len().min(CHUNK - skipped);
            let mut words = Words([0; CHUNK]);
            let whole = (skipped + taken).next_multiple_of(WORD);
            self.qspi.blocking_read(address - skipped as u32, &mut words.0[..whole])?;
            let (head, rest) = into.split_at_mut(taken);
            head.copy_from_slice(&words.0[skipped..skipped + taken]);
            into = rest;
            address += taken as u32;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, address: u32, bytes: &[u8]) -> Result<(), Error> {
        for (place, chunk) in bytes.chunks(CHUNK).enumerate() {
            let mut words = Words([0xff; CHUNK]);
            words.0[..chunk.len()].copy_from_slice(chunk);
            let whole = chunk.len().next_multiple_of(WORD);
            self.qspi.blocking_write(address + (place * CHUNK) as u32, &words.0[..whole])?;
        }
        Ok(())
    }

    pub(super) fn erase(&mut self, page: u32) -> Result<(), Error> {
        self.qspi.blocking_erase(page * PAGE)
    }
}
