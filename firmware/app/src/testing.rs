//! Flash in memory, strict about what NOR flash can do, with a power supply that fails on request.

use std::vec;
use std::vec::Vec;

use kinara_protocol::frame::checksum;

use crate::flash::{Flash, Nonce, PAGE, WORD};

/// The power is gone: nothing happens any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerLost;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct RamFlash {
    pub bytes: Vec<u8>,
    /// Operations (a word written, a page erased) until the power fails.
    pub left: u64,
    /// Operations done.
    pub done: u64,
}

impl RamFlash {
    pub fn new(pages: u32) -> Self {
        Self { bytes: vec![0xff; (pages * PAGE) as usize], left: u64::MAX, done: 0 }
    }

    fn operation(&mut self) -> Result<(), PowerLost> {
        if self.left == 0 {
            return Err(PowerLost);
        }
        self.left -= 1;
        self.done += 1;
        Ok(())
    }
}

impl Flash for RamFlash {
    type Error = PowerLost;

    fn pages(&self) -> u32 {
        self.bytes.len() as u32 / PAGE
    }

    fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), PowerLost> {
        into.copy_from_slice(&self.bytes[address as usize..][..into.len()]);
        Ok(())
    }

    fn write(&mut self, address: u32, words: &[u8]) -> Result<(), PowerLost> {
        assert!(
            (address as usize).is_multiple_of(WORD) && words.len().is_multiple_of(WORD),
            "whole words only"
        );
        for (index, word) in words.chunks(WORD).enumerate() {
            self.operation()?;
            let at = address as usize + index * WORD;
            let cells = &mut self.bytes[at..at + WORD];
            assert!(
                cells.iter().all(|&cell| cell == 0xff) || word.iter().all(|&byte| byte == 0),
                "a word is written once, or cleared"
            );
            cells.copy_from_slice(word);
        }
        Ok(())
    }

    /// Not a cipher, but as good as one here: who reads without the nonce reads something else.
    fn encipher(&mut self, nonce: &Nonce, bytes: &mut [u8]) {
        let mut state = checksum(nonce);
        for byte in bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte ^= (state >> 24) as u8;
        }
    }

    fn erase(&mut self, page: u32) -> Result<(), PowerLost> {
        let start = (page * PAGE) as usize;
        // Two operations, so that the power can fail in between: an erasure cut short leaves part of the page.
        self.operation()?;
        self.bytes[start + 1024..start + PAGE as usize].fill(0xff);
        self.operation()?;
        self.bytes[start..start + PAGE as usize].fill(0xff);
        Ok(())
    }
}
