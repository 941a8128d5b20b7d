//! Where everything of a wearer lies, enciphered by the device's key: in the flash chip on the board ([`external`]), or, on a
//! board without one, in the processor's own flash ([`internal`]).
//!
//! | pages of the chip | or of the own flash | what |
//! |---|---|---|
//! | 0, 1 | 0, 1 | what the radio remembers, one image in each; the newer whole one counts |
//! | 2 … 122 | | an update: its record, and room for an image of 480 KiB |
//! | 123 … | 2 … | the ring of frames |

#[cfg(feature = "external")]
mod external;
#[cfg(not(feature = "external"))]
mod internal;

use core::cell::RefCell;

use kinara_firmware_app::flash::{Flash, Nonce, PAGE};
use kinara_firmware_ble::memory::{MAX_IMAGE, Storage};
use kinara_protocol::frame::checksum;

#[cfg(feature = "external")]
use self::external as place;
#[cfg(not(feature = "external"))]
use self::internal as place;
use crate::key::encipher;

pub use place::{Chip, Error, erase_all};

/// Pages of what the radio remembers.
const MEMORY_PAGES: u32 = 2;
/// The ring's first page.
const RING: u32 = MEMORY_PAGES + place::SLOT_PAGES;
const WORD: usize = 4;

/// Some pages of the chip.
pub struct Region {
    chip: &'static RefCell<Chip>,
    first: u32,
    pages: u32,
    /// Whether it holds something of a wearer.
    secret: bool,
}

impl Region {
    /// The ring of frames.
    pub fn frames(chip: &'static RefCell<Chip>) -> Self {
        Self { chip, first: RING, pages: place::PAGES - RING, secret: true }
    }

    /// Where an update comes in.
    #[cfg(feature = "external")]
    pub fn slot(chip: &'static RefCell<Chip>) -> Self {
        Self { chip, first: MEMORY_PAGES, pages: place::SLOT_PAGES, secret: false }
    }
}

impl Flash for Region {
    type Error = Error;

    fn pages(&self) -> u32 {
        self.pages
    }

    fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), Error> {
        self.chip.borrow_mut().read(self.first * PAGE + address, into)
    }

    fn write(&mut self, address: u32, words: &[u8]) -> Result<(), Error> {
        self.chip.borrow_mut().write(self.first * PAGE + address, words)
    }

    fn erase(&mut self, page: u32) -> Result<(), Error> {
        self.chip.borrow_mut().erase(self.first + page)
    }

    fn encipher(&mut self, nonce: &Nonce, bytes: &mut [u8]) {
        if self.secret {
            encipher(&self.chip.borrow().key, nonce, bytes);
        }
    }
}

/// Before an image: magic, its number, its length, and a checksum of all.
const HEADER: usize = 16;
const MAGIC: u32 = u32::from_le_bytes(*b"KBND");

/// What the radio remembers: the image with the higher number. The page that holds the other one is written next.
pub struct Memories {
    flash: &'static RefCell<Chip>,
    number: u32,
}

impl Memories {
    /// Of this chip.
    pub fn new(flash: &'static RefCell<Chip>) -> Self {
        Self { flash, number: 0 }
    }

    fn image(&self, page: u32, into: &mut [u8; MAX_IMAGE]) -> Result<Option<(u32, usize)>, Error> {
        let mut flash = self.flash.borrow_mut();
        let mut header = [0; HEADER];
        flash.read(page * PAGE, &mut header)?;
        let [magic, number, length, sum] = [0, 4, 8, 12]
            .map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
        let Some(image) = into.get_mut(..length as usize).filter(|_| magic == MAGIC) else { return Ok(None) };
        flash.read(page * PAGE + HEADER as u32, image)?;
        if checksum(image) ^ number ^ length != sum {
            return Ok(None);
        }
        encipher(&flash.key, &nonce(number), image);
        Ok(Some((number, length as usize)))
    }
}

/// Frames' nonces begin with an epoch, and the first boot of a log is 1: those of images begin with the boot 0.
fn nonce(number: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&number.to_le_bytes());
    nonce
}

impl Storage for Memories {
    type Error = Error;

    fn load(&mut self, into: &mut [u8; MAX_IMAGE]) -> Result<usize, Error> {
        let mut other = [0; MAX_IMAGE];
        let first = self.image(0, into)?;
        let second = self.image(1, &mut other)?;
        let newest = match (first, second) {
            (first, Some(second)) if first.is_none_or(|first| second.0 > first.0) => {
                into.copy_from_slice(&other);
                Some(second)
            }
            (first, _) => first,
        };
        let (number, length) = newest.unwrap_or_default();
        self.number = number;
        Ok(length)
    }

    fn save(&mut self, image: &[u8]) -> Result<(), Error> {
        let number = self.number + 1;
        let mut enciphered = [0xff; MAX_IMAGE];
        let length = image.len();
        enciphered[..length].copy_from_slice(image);
        let mut flash = self.flash.borrow_mut();
        encipher(&flash.key, &nonce(number), &mut enciphered[..length]);
        let sum = checksum(&enciphered[..length]) ^ number ^ length as u32;
        let page = number % 2;
        flash.erase(page)?;
        flash.write(page * PAGE + HEADER as u32, &enciphered[..length])?;
        let mut header = [0; HEADER];
        for (place, word) in [MAGIC, number, length as u32, sum].into_iter().enumerate() {
            header[place * WORD..][..WORD].copy_from_slice(&word.to_le_bytes());
        }
        // The header last: an image that was cut is none, and the other page has the one before.
        flash.write(page * PAGE, &header)?;
        self.number = number;
        Ok(())
    }
}
