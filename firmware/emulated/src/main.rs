//! A hundred seconds of a wearable's life ([`day`]), the same on a PC and on an emulated Cortex-M4F: what comes of it must
//! be the same to the bit, and what it costs on the processor is counted.
//!
//! On the processor (QEMU's mps2-an386, `-icount shift=0`: an instruction is a nanosecond of its clock) the system timer counts;
//! it ticks once in 40 instructions. **Why `unsafe`.** Semihosting is an instruction, and the paint on the stack is memory by
//! hand; `processor` has both.

#![cfg_attr(target_os = "none", no_std, no_main)]

mod day;

#[cfg(target_os = "none")]
mod processor;

#[cfg(not(target_os = "none"))]
fn main() {
    struct None;
    impl day::Meter for None {
        fn instructions(&self) -> u64 {
            0
        }
    }
    let mut flash = vec![0; day::FLASH];
    let outcome = day::live(&mut flash, &None);
    println!(
        "samples {} frames {} sum {:08x} heart_rate {} intervals {}",
        outcome.samples, outcome.frames, outcome.sum, outcome.heart_rate, outcome.intervals
    );
}
