//! The emulated processor: its timer, its way to the outside, its stack.
#![allow(unsafe_code)]
// The array is a static; the macro that makes it hides that.
#![allow(clippy::large_stack_arrays)]

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::{entry, exception};

use crate::day::{self, Cost, Meter};

/// The timer's clock is 25 MHz, an instruction takes a nanosecond.
const INSTRUCTIONS_A_TICK: u64 = 40;
const RELOAD: u32 = 0x00ff_ffff;
const PAINT: u32 = 0xa5a5_a5a5;
const WRITE0: usize = 0x04;
const EXIT_EXTENDED: usize = 0x20;
const APPLICATION_EXIT: usize = 0x20026;

static WRAPS: AtomicU32 = AtomicU32::new(0);

#[exception]
fn SysTick() {
    WRAPS.fetch_add(1, Ordering::Relaxed);
}

struct Timer;

impl Meter for Timer {
    fn instructions(&self) -> u64 {
        loop {
            let wraps = WRAPS.load(Ordering::Relaxed);
            let left = SYST::get_current();
            if wraps == WRAPS.load(Ordering::Relaxed) {
                let ticks = u64::from(wraps) * u64::from(RELOAD + 1) + u64::from(RELOAD - left);
                return ticks * INSTRUCTIONS_A_TICK;
            }
        }
    }
}

fn semihosting(operation: usize, argument: *const usize) {
    // SAFETY: the emulator answers this breakpoint; the argument is what the operation asks for.
    unsafe {
        core::arch::asm!("bkpt 0xab", inout("r0") operation => _, in("r1") argument, options(nostack));
    }
}

fn leave(status: usize) -> ! {
    let reason = [APPLICATION_EXIT, status];
    semihosting(EXIT_EXTENDED, reason.as_ptr());
    loop {
        cortex_m::asm::wfi();
    }
}

struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            let ended = [byte, 0];
            semihosting(WRITE0, ended.as_ptr().cast());
        }
        Ok(())
    }
}

unsafe extern "C" {
    static mut _stack_end: u32;
    static _stack_start: u32;
}

/// Paints what is free of the stack, from its end up to a little below where it is now.
fn paint() {
    let here = cortex_m::register::msp::read() as usize - 512;
    let mut at = &raw mut _stack_end;
    while (at as usize) < here {
        // SAFETY: between the end of the program's memory and the stack in use lies nothing.
        unsafe {
            at.write_volatile(PAINT);
            at = at.add(1);
        }
    }
}

fn stack_used() -> usize {
    let mut at = (&raw const _stack_end).cast::<u32>();
    let top = &raw const _stack_start;
    // SAFETY: all of it is memory, and was written.
    while at < top && unsafe { at.read_volatile() } == PAINT {
        at = at.wrapping_add(1);
    }
    top as usize - at as usize
}

#[entry]
fn main() -> ! {
    let Some(mut parts) = cortex_m::Peripherals::take() else { leave(2) };
    parts.SYST.set_clock_source(SystClkSource::Core);
    parts.SYST.set_reload(RELOAD);
    parts.SYST.clear_current();
    parts.SYST.enable_interrupt();
    parts.SYST.enable_counter();
    paint();
    let Some(flash) = cortex_m::singleton!(: [u8; day::FLASH] = [0; day::FLASH]) else { leave(3) };
    let outcome = day::live(flash, &Timer);
    // An error there has nowhere to go.
    let _ = writeln!(
        Out,
        "samples {} frames {} sum {:08x} heart_rate {} intervals {}",
        outcome.samples, outcome.frames, outcome.sum, outcome.heart_rate, outcome.intervals
    );
    for (name, Cost { calls, total, most }) in [
        ("light", outcome.light),
        ("acceleration", outcome.acceleration),
        ("store", outcome.store),
        ("step", outcome.step),
        ("send", outcome.send),
    ] {
        let _ = writeln!(Out, "cost {name} {} {most} {calls}", total / calls.max(1));
    }
    let _ = writeln!(Out, "stack {}", stack_used());
    leave(0)
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Out, "{info}");
    leave(1)
}
