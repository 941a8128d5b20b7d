//! The host's clocks, straight from the kernel: the bed measures real programs in real time.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Seconds of CLOCK_MONOTONIC: the clock of the air's events.
pub fn monotonic() -> f64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    tv_sec as f64 + tv_nsec as f64 * 1e-9
}

/// Microseconds since 1970.
pub fn utc_us() -> i64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Realtime);
    tv_sec * 1_000_000 + tv_nsec / 1000
}
