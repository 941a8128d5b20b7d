//! This device's key, and its random numbers.
//!
//! **Promise.** The key is drawn on the first start and at each factory reset, lies in a page of the chip's own flash, and
//! leaves it for nobody: what is in the other flash is worth nothing without this chip, and the chip's port is closed in
//! production. Nonces begin anew with a factory reset; so no two images are ever enciphered by the same key and nonce
//! (`kinara_firmware_app::factory`). All of it happens before the controller starts: a page that is erased stops the
//! processor for 85 ms.

use aes::Aes128;
use aes::cipher::{KeyIvInit, StreamCipher};
use embassy_nrf::Peri;
use embassy_nrf::mode::Async;
use embassy_nrf::nvmc::Nvmc;
use embassy_nrf::peripherals::NVMC;
use embassy_nrf::rng::Rng;
use embedded_storage::nor_flash::{NorFlash, ReadNorFlash};
use rand_core::{CryptoRng, RngCore};

/// The page `KEY` of the memory map.
const PAGE: u32 = if cfg!(feature = "external") { 0x000f_8000 } else { 0x0005_0000 };
const PAGE_BYTES: u32 = 4_096;
const MAGIC: [u8; 4] = *b"KEY1";

/// Bytes of a key.
pub type Key = [u8; 16];

/// The key stream of a nonce, over bytes.
pub fn encipher(key: &Key, nonce: &[u8; 12], bytes: &mut [u8]) {
    let mut start = [0; 16];
    start[..12].copy_from_slice(nonce);
    ctr::Ctr32BE::<Aes128>::new(key.into(), &start.into()).apply_keystream(bytes);
}

/// The device's key, if there is a whole one.
pub fn kept(nvmc: Peri<'_, NVMC>) -> Option<Key> {
    let mut image = [0; 20];
    Nvmc::new(nvmc).read(PAGE, &mut image).ok()?;
    let (magic, key) = image.split_at(MAGIC.len());
    if magic == MAGIC { key.try_into().ok() } else { None }
}

/// No key any more: what was enciphered by it, whoever has copied it, stays closed.
pub fn forget(nvmc: Peri<'_, NVMC>) {
    let mut flash = Nvmc::new(nvmc);
    // The magic first: a page whose erasure is cut holds no key.
    flash.write(PAGE, &[0; MAGIC.len()]).expect("the page is one of this chip's");
    flash.erase(PAGE, PAGE + PAGE_BYTES).expect("the page is one of this chip's");
}

/// Draws a key and keeps it.
pub fn draw(nvmc: Peri<'_, NVMC>, rng: &mut Rng<'_, Async>) -> Key {
    let mut flash = Nvmc::new(nvmc);
    let mut image = [0; 20];
    let mut key = [0; 16];
    rng.blocking_fill_bytes(&mut key);
    image[..4].copy_from_slice(&MAGIC);
    image[4..].copy_from_slice(&key);
    flash.erase(PAGE, PAGE + PAGE_BYTES).expect("the page is one of this chip's");
    // The magic last: a key that was cut is none, and nothing was enciphered by it yet.
    flash.write(PAGE + 4, &image[4..]).expect("the page was erased");
    flash.write(PAGE, &image[..4]).expect("the page was erased");
    key
}

/// Random numbers: AES-128 in counter mode, its key and its start from the chip's noise.
pub struct Random(ctr::Ctr64BE<Aes128>);

impl Random {
    /// Draws a key.
    pub fn from_noise(rng: &mut Rng<'_, Async>) -> Self {
        let (mut key, mut start) = ([0; 16], [0; 16]);
        rng.blocking_fill_bytes(&mut key);
        rng.blocking_fill_bytes(&mut start);
        Self(ctr::Ctr64BE::new(&key.into(), &start.into()))
    }
}

impl RngCore for Random {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        into.fill(0);
        self.0.apply_keystream(into);
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(into);
        Ok(())
    }
}

impl CryptoRng for Random {}
