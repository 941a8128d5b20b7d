//! This board's key and what it enciphers, for the start and for a factory reset.

use embassy_nrf::Peri;
use embassy_nrf::mode::Async;
use embassy_nrf::peripherals::NVMC;
#[cfg(feature = "external")]
use embassy_nrf::qspi::Qspi;
use embassy_nrf::rng::Rng;
use embassy_nrf::wdt::WatchdogHandle;
use kinara_firmware_app::factory::Vault;

use crate::flash::{Error, erase_all};
use crate::key::{self, Key};

/// See the module's text. Used before the controller starts.
pub struct BoardVault<'a> {
    /// For the key, and for what lies in the processor's own flash.
    pub nvmc: Peri<'a, NVMC>,
    /// For a new key.
    pub rng: &'a mut Rng<'static, Async>,
    /// Is fed while pages are erased.
    pub watchdog: &'a mut WatchdogHandle,
    /// The flash chip.
    #[cfg(feature = "external")]
    pub qspi: &'a mut Qspi<'static>,
}

impl Vault for BoardVault<'_> {
    type Key = Key;
    type Error = Error;

    fn key(&mut self) -> Option<Key> {
        key::kept(self.nvmc.reborrow())
    }

    fn forget_key(&mut self) {
        key::forget(self.nvmc.reborrow());
    }

    #[cfg(feature = "external")]
    fn erase_all(&mut self) -> Result<(), Error> {
        erase_all(self.qspi, || self.watchdog.pet())
    }

    #[cfg(not(feature = "external"))]
    fn erase_all(&mut self) -> Result<(), Error> {
        erase_all(self.nvmc.reborrow(), || self.watchdog.pet());
        Ok(())
    }

    fn draw_key(&mut self) -> Key {
        key::draw(self.nvmc.reborrow(), self.rng)
    }
}
