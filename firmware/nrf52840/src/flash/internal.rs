//! The processor's own flash, above the program. It is written in time slots that the radio leaves free: a write waits some
//! milliseconds for one; a page is erased in pieces of 10 ms by an nRF52840 and by an nRF52832 at one go, for which a link
//! has to spare 85 ms: less than its supervision timeout by two orders of magnitude.
//!
//! **Why `unsafe`.** The slots are driven by what the layer below the controller does at low priority, and its caller
//! waits here: [`complete`] drives it by hand.
#![allow(unsafe_code)]

pub use nrf_sdc::mpsl::FlashError as Error;

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use embassy_nrf::Peri;
use embassy_nrf::nvmc::{FLASH_SIZE, Nvmc};
use embassy_nrf::peripherals::NVMC;
use embedded_storage::nor_flash::NorFlash;
use kinara_firmware_app::flash::PAGE;
use nrf_sdc::mpsl::{self, MultiprotocolServiceLayer};

use super::WORD;
use crate::key::Key;

/// No room for a second image: this firmware takes no update over the air.
pub const SLOT_PAGES: u32 = 0;
/// Where it begins: `RADIO` in the memory map, and after it `LOG`, to the end.
const FIRST: u32 = 0x0005_1000;
/// All pages.
pub const PAGES: u32 = (FLASH_SIZE as u32 - FIRST) / PAGE;
/// How much of it is copied at a time, to whole words.
const CHUNK: usize = 256;

/// Everything of a wearer goes, and the bonds: factory reset, and the first start. Called before the layer starts; `alive` is
/// called for each page.
pub fn erase_all(nvmc: Peri<'_, NVMC>, mut alive: impl FnMut()) {
    let mut flash = Nvmc::new(nvmc);
    for page in 0..PAGES {
        alive();
        let from = FIRST + page * PAGE;
        flash.erase(from, from + PAGE).expect("the page is one of this chip's");
    }
}

/// The flash, and the key.
pub struct Chip {
    flash: mpsl::Flash<'static>,
    pub(super) key: Key,
}

impl Chip {
    /// Flash whose contents are of this key.
    pub fn new(
        layer: &'static MultiprotocolServiceLayer<'static>,
        nvmc: Peri<'static, NVMC>,
        key: Key,
    ) -> Self {
        Self { flash: mpsl::Flash::take(layer, nvmc), key }
    }

    pub(super) fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), Error> {
        self.flash.read(FIRST + address, into)
    }

    pub(super) fn write(&mut self, address: u32, bytes: &[u8]) -> Result<(), Error> {
        for (place, chunk) in bytes.chunks(CHUNK).enumerate() {
            let mut words = [0xff; CHUNK];
            words[..chunk.len()].copy_from_slice(chunk);
            let whole = chunk.len().next_multiple_of(WORD);
            complete(self.flash.write(FIRST + address + (place * CHUNK) as u32, &words[..whole]))?;
        }
        Ok(())
    }

    pub(super) fn erase(&mut self, page: u32) -> Result<(), Error> {
        let from = FIRST + page * PAGE;
        complete(self.flash.erase(from, from + PAGE))
    }
}

/// Waits for the end of what happens in time slots. Called from tasks only, as everything is that calls the controller.
fn complete<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
        // SAFETY: the layer runs (a `Flash` borrows it), and it is called from the one context that all its other
        // calls come from: the executor's, in which nothing else runs until this returns.
        unsafe { mpsl::raw::mpsl_low_priority_process() };
    }
}
