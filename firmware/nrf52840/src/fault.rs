//! Why it started: what the chip remembers, and what a fault left behind in memory that outlives a reset.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::panic::PanicInfo;

use embassy_nrf::pac::POWER;
use embassy_nrf::pac::power::regs::Resetreas;
use kinara_protocol::frame::{ResetReason, checksum};

/// Bytes of the place in the program where it failed.
const PLACE: usize = 96;
const MAGIC: u32 = u32::from_le_bytes(*b"FLT1");

#[repr(C)]
struct Kept {
    magic: u32,
    sum: u32,
    line: u32,
    length: u32,
    file: [u8; PLACE],
}

struct Memory(UnsafeCell<core::mem::MaybeUninit<Kept>>);

// SAFETY: it is written with interrupts off by a program that has failed, and read once by the next one at its start.
unsafe impl Sync for Memory {}

// Not touched by the start-up code.
#[unsafe(link_section = ".uninit.kept")]
static KEPT: Memory = Memory(UnsafeCell::new(core::mem::MaybeUninit::uninit()));

fn sum(line: u32, file: &[u8; PLACE]) -> u32 {
    checksum(file) ^ line
}

/// Why it started. Forgets it.
pub fn reason() -> ResetReason {
    let reasons = POWER.resetreas().read();
    // A bit is cleared by a one.
    POWER.resetreas().write_value(Resetreas(u32::MAX));
    if failed() || reasons.lockup() {
        ResetReason::Fault
    } else if reasons.dog() {
        ResetReason::Watchdog
    } else if reasons.sreq() {
        ResetReason::Requested
    } else {
        // Power, the reset pin, or the end of System OFF. A supply that sagged below the chip's threshold looks the
        // same: it has no register of its own.
        ResetReason::PowerOn
    }
}

fn failed() -> bool {
    let place = KEPT.0.get().cast::<Kept>();
    // SAFETY: all of it are integers, so any bytes are a value; nobody else uses it.
    unsafe {
        let kept = place.read_volatile();
        (&raw mut (*place).magic).write_volatile(0);
        kept.magic == MAGIC && kept.sum == sum(kept.line, &kept.file)
    }
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    cortex_m::interrupt::disable();
    let mut file = [0; PLACE];
    let (mut line, mut length) = (0, 0);
    if let Some(place) = info.location() {
        let name = place.file().as_bytes();
        // The end of a path says more than its beginning.
        let name = &name[name.len().saturating_sub(PLACE)..];
        file[..name.len()].copy_from_slice(name);
        (line, length) = (place.line(), name.len() as u32);
    }
    let kept = Kept { magic: MAGIC, sum: sum(line, &file), line, length, file };
    // SAFETY: nothing runs any more but this.
    unsafe { KEPT.0.get().cast::<Kept>().write_volatile(kept) };
    cortex_m::peripheral::SCB::sys_reset()
}

#[cortex_m_rt::exception]
unsafe fn HardFault(_: &cortex_m_rt::ExceptionFrame) -> ! {
    panic!("hard fault")
}
