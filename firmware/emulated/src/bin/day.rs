//! A hundred seconds of a wearable's life ([`day`]), the same on a PC and on an emulated Cortex-M4F: what comes of it must
//! be the same to the bit, and what it costs on the processor is counted.
//!
//! On the processor (QEMU's mps2-an386, `-icount shift=0`: an instruction is a nanosecond of its clock) the system timer
//! counts; it ticks once in 40 instructions.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
use kinara_emulated::day;

#[cfg(target_os = "none")]
mod processor {
    // The array is a static; the macro that makes it hides that.
    #![allow(clippy::large_stack_arrays)]

    use core::fmt::Write;
    use core::sync::atomic::{AtomicU32, Ordering};

    use cortex_m::peripheral::SYST;
    use cortex_m::peripheral::syst::SystClkSource;
    use cortex_m_rt::{entry, exception};
    use kinara_emulated::day::{self, Cost, Meter};
    use kinara_emulated::machine::{Out, leave, paint, stack_used};

    /// The timer's clock is 25 MHz, an instruction takes a nanosecond.
    const INSTRUCTIONS_A_TICK: u64 = 40;
    const RELOAD: u32 = 0x00ff_ffff;

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
}

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
