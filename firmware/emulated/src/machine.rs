//! The emulated processor: its way to the outside, its stack.
//!
//! **Why `unsafe`.** Semihosting is an instruction, and the paint on the stack is memory by hand.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::panic::PanicInfo;

const PAINT: u32 = 0xa5a5_a5a5;
const WRITE0: usize = 0x04;
const TIME: usize = 0x11;
const COMMAND_LINE: usize = 0x15;
const EXIT_EXTENDED: usize = 0x20;
const APPLICATION_EXIT: usize = 0x20026;

fn semihosting(operation: usize, argument: *const usize) -> usize {
    let mut result = operation;
    // SAFETY: the emulator answers this breakpoint; the argument is what the operation asks for.
    unsafe {
        core::arch::asm!("bkpt 0xab", inout("r0") result, in("r1") argument, options(nostack));
    }
    result
}

/// Seconds since 1970, as the host counts them.
pub fn utc_s() -> u32 {
    semihosting(TIME, core::ptr::null()) as u32
}

/// What the emulator was given for this program: its name, and words.
pub fn command_line(into: &mut [u8; 256]) -> Option<&str> {
    let block = [into.as_mut_ptr() as usize, into.len()];
    let failed = semihosting(COMMAND_LINE, block.as_ptr()) != 0;
    let end = into.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(&into[..end]).ok().filter(|_| !failed)
}

/// Ends the emulator.
pub fn leave(status: usize) -> ! {
    let reason = [APPLICATION_EXIT, status];
    semihosting(EXIT_EXTENDED, reason.as_ptr());
    loop {
        cortex_m::asm::wfi();
    }
}

/// The emulator's log.
pub struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // Text ends with a zero there.
        for part in text.as_bytes().chunks(127) {
            let mut ended = [0; 128];
            ended[..part.len()].copy_from_slice(part);
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
pub fn paint() {
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

/// Bytes of it that were used since [`paint`].
pub fn stack_used() -> usize {
    let mut at = (&raw const _stack_end).cast::<u32>();
    let top = &raw const _stack_start;
    // SAFETY: all of it is memory, and was written.
    while at < top && unsafe { at.read_volatile() } == PAINT {
        at = at.wrapping_add(1);
    }
    top as usize - at as usize
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Out, "{info}");
    leave(1)
}
