//! An image that has come over the air and was verified: to where the bootloader looks for it, verified there again, and
//! confirmed once it has proved itself.
//!
//! The image waits in external flash, which anybody can write who has the board. So its signature, board, version and
//! digest are judged over the copy in the chip's own flash, and only then the bootloader is told. The copy into the chip's own flash is made at a start, before the radio's: a page
//! that is erased stops the processor for 85 ms, which a link does not survive. A loss of power in the middle begins the
//! copy anew. The bootloader swaps the two images, and swaps them back at the next start unless the new one was
//! confirmed: after [`HEALTHY`] in which all loops have turned.

use core::cell::RefCell;

use embassy_boot_nrf::{AlignedBuffer, BlockingFirmwareUpdater, FirmwareState, FirmwareUpdaterConfig};
use embassy_nrf::Peri;
use embassy_nrf::nvmc::Nvmc;
use embassy_nrf::peripherals::NVMC;
use embassy_nrf::wdt::WatchdogHandle;
use embassy_sync::blocking_mutex::Mutex as BlockingMutex;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::mutex::Mutex;
use embassy_time::{Duration, Timer};
use embedded_storage::nor_flash::NorFlash;
use kinara_firmware_app::flash::PAGE;
use kinara_firmware_app::update::install::{Installed, Target};
use kinara_firmware_app::update::{Accepts, Updater};
use kinara_protocol::image::Board;
use nrf_sdc::mpsl::{self, MultiprotocolServiceLayer};

use crate::flash::Region;
use crate::version::VERSION;

/// How long a new image has to be healthy before it stays.
const HEALTHY: Duration = Duration::from_secs(60);

/// The maker's public key, 64 hexadecimal digits in `KINARA_MAKER` when this is built. Without, nobody can sign: no image
/// verifies by a key of zeros.
const MAKER: [u8; 32] = match option_env!("KINARA_MAKER") {
    Some(text) => unhex(text),
    None => [0; 32],
};

const fn unhex(text: &str) -> [u8; 32] {
    let bytes = text.as_bytes();
    assert!(bytes.len() == 64, "KINARA_MAKER has 64 hexadecimal digits");
    let mut key = [0; 32];
    let mut at = 0;
    while at < 64 {
        let digit = match bytes[at] {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            _ => panic!("KINARA_MAKER has lower-case hexadecimal digits"),
        };
        key[at / 2] = key[at / 2] << 4 | digit;
        at += 1;
    }
    key
}

/// Where an image comes in, and which are taken.
pub fn updater(slot: Region) -> Updater<Region> {
    Updater::new(slot, Accepts { board: Board::NRF52840, version: VERSION, maker: MAKER })
}

/// The chip's own flash did not do it.
struct Failed;

/// Where the bootloader looks for a new image.
struct Partition<'a, D: NorFlash, S: NorFlash> {
    updater: BlockingFirmwareUpdater<'a, D, S>,
    watchdog: &'a mut WatchdogHandle,
}

impl<D: NorFlash, S: NorFlash> Target for Partition<'_, D, S> {
    type Error = Failed;

    fn write(&mut self, at: u32, page: &[u8; PAGE as usize]) -> Result<(), Failed> {
        self.watchdog.pet();
        self.updater.write_firmware(at as usize, page).map_err(|_| Failed)
    }

    fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), Failed> {
        self.updater.read_dfu(at, into).map_err(|_| Failed)
    }
}

/// Copies an image that waits to where the bootloader looks for it, judges it there, and restarts. Returns where none waits
/// or it is not what this board takes: what runs goes on.
pub fn take_over(updater: &mut Updater<Region>, nvmc: Peri<'_, NVMC>, watchdog: &mut WatchdogHandle) {
    let flash = BlockingMutex::<NoopRawMutex, _>::new(RefCell::new(Nvmc::new(nvmc)));
    let mut aligned = AlignedBuffer([0; 4]);
    let config = FirmwareUpdaterConfig::from_linkerfile_blocking(&flash, &flash);
    let mut target = Partition { updater: BlockingFirmwareUpdater::new(config, &mut aligned.0), watchdog };
    // Left in the slot after a loss of power here, it is no newer than what then runs, and is forgotten.
    if let Ok(Installed::Ready(_)) = updater.install(&mut target)
        && target.updater.mark_updated().is_ok()
        && updater.clear().is_ok()
    {
        cortex_m::peripheral::SCB::sys_reset();
    }
}

/// Confirms this image after [`HEALTHY`]; where it was confirmed before, that changes nothing.
pub async fn prove(layer: &'static MultiprotocolServiceLayer<'static>, nvmc: Peri<'static, NVMC>) {
    Timer::after(HEALTHY).await;
    // Within time slots of the radio.
    let flash = Mutex::<NoopRawMutex, _>::new(mpsl::Flash::take(layer, nvmc));
    let mut aligned = AlignedBuffer([0; 4]);
    let config = FirmwareUpdaterConfig::from_linkerfile(&flash, &flash);
    let confirmed = FirmwareState::from_config(config, &mut aligned.0).mark_booted().await;
    // Else it goes back at the next start, and the gateway sees the old version.
    confirmed.expect("the chip's own flash can be written");
}
