//! The time: the system timer runs free at 25 MHz and counts, a timer of the board rings once in a millisecond.
//!
//! **Why `unsafe`.** The timer's registers, and its interrupt, by hand.
#![allow(unsafe_code)]

use core::cell::RefCell;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::Waker;

use cortex_m::peripheral::syst::SystClkSource;
use cortex_m::peripheral::{SCB, SYST};
use cortex_m_rt::exception;
use critical_section::Mutex;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;

const CLOCK_HZ: u32 = 25_000_000;
const RELOAD: u32 = 0x00ff_ffff;
/// CMSDK APB timer 0: control, value, reload, interrupt.
const TIMER: *mut u32 = 0x4000_0000 as *mut u32;
/// Its place among the interrupts.
pub const TIMER_INTERRUPT: usize = 8;

struct Timers {
    wraps: AtomicU32,
    queue: Mutex<RefCell<Queue>>,
}

embassy_time_driver::time_driver_impl!(static DRIVER: Timers = Timers {
    wraps: AtomicU32::new(0),
    queue: Mutex::new(RefCell::new(Queue::new())),
});

impl Driver for Timers {
    fn now(&self) -> u64 {
        loop {
            let wraps = self.wraps.load(Ordering::Relaxed);
            let left = SYST::get_current();
            // A wrap whose interrupt has not been served yet.
            let unserved = SCB::is_pendst_pending() && left > RELOAD / 2;
            if wraps == self.wraps.load(Ordering::Relaxed) {
                let wraps = u64::from(wraps) + u64::from(unserved);
                return (wraps * u64::from(RELOAD + 1) + u64::from(RELOAD - left)) * 1_000
                    / u64::from(CLOCK_HZ);
            }
        }
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        critical_section::with(|section| {
            self.queue.borrow_ref_mut(section).schedule_wake(at, waker);
        });
    }
}

#[exception]
fn SysTick() {
    DRIVER.wraps.fetch_add(1, Ordering::Relaxed);
}

/// The board's timer has rung.
pub unsafe extern "C" fn rung() {
    // SAFETY: the register that ends the interrupt.
    unsafe { TIMER.add(3).write_volatile(1) };
    critical_section::with(|section| {
        DRIVER.queue.borrow_ref_mut(section).next_expiration(DRIVER.now());
    });
}

/// Starts both.
pub fn start(mut timer: SYST) {
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(RELOAD);
    timer.clear_current();
    timer.enable_interrupt();
    timer.enable_counter();
    // SAFETY: the timer is nobody else's; enabled, with its interrupt.
    unsafe {
        TIMER.add(2).write_volatile(CLOCK_HZ / 1_000 - 1);
        TIMER.write_volatile(0b1001);
    }
}
