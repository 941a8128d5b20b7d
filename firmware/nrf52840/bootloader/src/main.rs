//! Starts the image that is confirmed; swaps in a new one that was marked, and swaps it out again where it restarts
//! without having been confirmed. The swap survives a loss of power at any point (embassy-boot). The watchdog runs from
//! here on, with the settings that the wearable has: an image that hangs is a restart, and so goes back.
//!
//! It checks no signature: the program marks an image as new only after it has verified the copy where this looks, in the
//! chip's own flash, which nobody else writes.
//!
//! **Why `unsafe`.** The jump into the image, and the fault handler, which is none in any other sense.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::cell::RefCell;
use core::panic::PanicInfo;

use cortex_m_rt::{entry, exception};
use embassy_boot_nrf::{BootLoader, BootLoaderConfig, WatchdogFlash};
use embassy_nrf::nvmc::Nvmc;
use embassy_nrf::wdt;
use embassy_sync::blocking_mutex::Mutex;

/// As the wearable's board has it.
const WATCHDOG_S: u32 = 8;
const LOW_FREQUENCY: u32 = 32_768;

#[entry]
fn main() -> ! {
    let p = embassy_nrf::init(embassy_nrf::config::Config::default());
    let mut settings = wdt::Config::default();
    settings.timeout_ticks = WATCHDOG_S * LOW_FREQUENCY;
    settings.action_during_sleep = wdt::SleepConfig::Run;
    settings.action_during_debug_halt = wdt::HaltConfig::Pause;
    let flash = Mutex::new(RefCell::new(WatchdogFlash::start(Nvmc::new(p.NVMC), p.WDT, settings)));
    let config = BootLoaderConfig::from_linkerfile_blocking(&flash, &flash, &flash);
    let active = config.active.offset();
    let bootloader: BootLoader = BootLoader::prepare(config);
    // SAFETY: the image lies where the memory map has it; nothing of this program is used any more.
    unsafe { bootloader.load(active) }
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    cortex_m::peripheral::SCB::sys_reset()
}

#[exception]
unsafe fn HardFault(_: &cortex_m_rt::ExceptionFrame) -> ! {
    cortex_m::peripheral::SCB::sys_reset()
}
