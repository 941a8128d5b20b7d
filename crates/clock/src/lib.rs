//! The clock port.
//!
//! Nothing in Kinara asks the operating system for the time behind its caller's back: a [`Clock`] is handed in.
//! Four implementations: the machine's own ([`SystemClock`]), one that runs N times as fast from a given
//! origin so that several programs agree on one scaled time ([`ScaledClock`]), one that starts wrong and is set after a
//! while, as on a machine without a battery-backed clock ([`UnsetClock`]), and one that tests move by hand
//! ([`ManualClock`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// UTC and monotonic time, both in microseconds.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Microseconds since 1970-01-01T00:00:00Z, as far as this clock knows. It may jump.
    fn utc_us(&self) -> i64;
    /// Microseconds since boot, suspend included (`CLOCK_BOOTTIME`). It never jumps within one boot.
    fn boottime_us(&self) -> i64;
    /// How many of this clock's seconds pass in one second of the machine: timers divide by it.
    fn rate(&self) -> f64 {
        1.0
    }
}

fn gettime_us(id: ClockId) -> i64 {
    let now = clock_gettime(id);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn utc_us(&self) -> i64 {
        gettime_us(ClockId::Realtime)
    }

    fn boottime_us(&self) -> i64 {
        gettime_us(ClockId::Boottime)
    }
}

/// A clock that shows `origin` when the machine shows `origin`, and runs at `rate` from there.
/// All programs that are given the same origin and rate agree.
#[derive(Debug, Clone, Copy)]
pub struct ScaledClock {
    origin_us: i64,
    rate: f64,
    boot_origin_us: i64,
}

impl ScaledClock {
    /// `origin_us`: UTC microseconds at which scaled and real time are equal. `rate`: scaled seconds per second.
    pub fn new(origin_us: i64, rate: f64) -> Self {
        let behind = SystemClock.utc_us() - origin_us;
        Self { origin_us, rate, boot_origin_us: SystemClock.boottime_us() - behind }
    }
}

impl Clock for ScaledClock {
    fn utc_us(&self) -> i64 {
        self.origin_us + ((SystemClock.utc_us() - self.origin_us) as f64 * self.rate) as i64
    }

    fn boottime_us(&self) -> i64 {
        let elapsed = SystemClock.boottime_us() - self.boot_origin_us;
        self.boot_origin_us + (elapsed as f64 * self.rate) as i64
    }

    fn rate(&self) -> f64 {
        self.rate
    }
}

/// A clock that nobody has set yet: UTC runs from a given time when the program starts, until it jumps to the
/// machine's after a while. The monotonic clock is the machine's own.
#[derive(Debug, Clone, Copy)]
pub struct UnsetClock {
    shown_at_start: i64,
    began_at: i64,
    runs_wrong_for: i64,
}

impl UnsetClock {
    /// Shows `shown_at_start` now, and the right time in `runs_wrong_for` from now on.
    pub fn new(shown_at_start: i64, runs_wrong_for: i64) -> Self {
        Self { shown_at_start, began_at: SystemClock.boottime_us(), runs_wrong_for }
    }
}

impl Clock for UnsetClock {
    fn utc_us(&self) -> i64 {
        let running = SystemClock.boottime_us() - self.began_at;
        if running < self.runs_wrong_for { self.shown_at_start + running } else { SystemClock.utc_us() }
    }

    fn boottime_us(&self) -> i64 {
        SystemClock.boottime_us()
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug, Default)]
pub struct ManualClock {
    utc_us: AtomicI64,
    boottime_us: AtomicI64,
}

impl ManualClock {
    /// A clock that shows these two times.
    pub fn new(utc_us: i64, boottime_us: i64) -> Self {
        Self { utc_us: AtomicI64::new(utc_us), boottime_us: AtomicI64::new(boottime_us) }
    }

    /// Lets `us` microseconds pass on both clocks.
    pub fn advance_us(&self, us: i64) {
        self.utc_us.fetch_add(us, Ordering::SeqCst);
        self.boottime_us.fetch_add(us, Ordering::SeqCst);
    }

    /// Sets UTC alone, as a synchronisation (or a mistake) does.
    pub fn jump_utc_to(&self, utc_us: i64) {
        self.utc_us.store(utc_us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn utc_us(&self) -> i64 {
        self.utc_us.load(Ordering::SeqCst)
    }

    fn boottime_us(&self) -> i64 {
        self.boottime_us.load(Ordering::SeqCst)
    }
}

/// `KINARA_CLOCK` was not `origin_unix_us:rate`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("KINARA_CLOCK is {0:?}; it should be ORIGIN_UNIX_MICROSECONDS:RATE, for example 1700000000000000:10")]
pub struct BadScale(String);

/// The clock that the environment asks for: `KINARA_CLOCK=origin_unix_us:rate`, or, for a clock that starts wrong,
/// `KINARA_CLOCK=unset:starts_at_unix_us:set_after_seconds`; else the machine's own.
pub fn from_env() -> Result<Arc<dyn Clock>, BadScale> {
    let Ok(text) = std::env::var("KINARA_CLOCK") else { return Ok(Arc::new(SystemClock)) };
    match text.strip_prefix("unset:") {
        Some(unset) => {
            parse_unset(unset).map(|clock| Arc::new(clock) as Arc<dyn Clock>).ok_or(BadScale(text))
        }
        None => parse_scale(&text).map(|clock| Arc::new(clock) as Arc<dyn Clock>),
    }
}

fn parse_unset(text: &str) -> Option<UnsetClock> {
    let (starts_at_us, set_after_s) = text.split_once(':')?;
    let set_after_us = set_after_s.parse::<i64>().ok()?.checked_mul(1_000_000)?;
    Some(UnsetClock::new(starts_at_us.parse().ok()?, set_after_us))
}

fn parse_scale(text: &str) -> Result<ScaledClock, BadScale> {
    let bad = || BadScale(text.to_owned());
    let (origin, rate) = text.split_once(':').ok_or_else(bad)?;
    let origin = origin.parse().map_err(|_| bad())?;
    let rate: f64 = rate.parse().map_err(|_| bad())?;
    if !(rate.is_finite() && rate > 0.0) {
        return Err(bad());
    }
    Ok(ScaledClock::new(origin, rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_scaled_clocks_of_one_origin_agree() {
        let origin = SystemClock.utc_us() - 5_000_000;
        let (a, b) = (ScaledClock::new(origin, 50.0), ScaledClock::new(origin, 50.0));
        assert!((a.utc_us() - b.utc_us()).abs() < 5_000_000);
        assert!(a.utc_us() - origin >= 250_000_000);
    }

    #[test]
    fn a_scale_that_is_not_positive_is_refused() {
        for text in ["", "1", "1:0", "1:-3", "x:1", "1:nan"] {
            assert!(parse_scale(text).is_err(), "{text}");
        }
        assert!(parse_scale("1700000000000000:10").is_ok());
    }

    #[test]
    fn an_unset_clock_shows_another_time_until_it_is_set() {
        let unset = parse_unset("0:3600").unwrap();
        assert!((0..60_000_000).contains(&unset.utc_us()));
        assert!((SystemClock.boottime_us() - unset.boottime_us()).abs() < 60_000_000);
        let set = parse_unset("0:0").unwrap();
        assert!((SystemClock.utc_us() - set.utc_us()).abs() < 60_000_000);
        assert!(parse_unset("0").is_none() && parse_unset("x:1").is_none());
    }

    #[test]
    fn a_manual_clock_jumps_only_in_utc() {
        let clock = ManualClock::new(0, 10);
        clock.jump_utc_to(1_000);
        clock.advance_us(5);
        assert_eq!((clock.utc_us(), clock.boottime_us()), (1_005, 15));
    }
}
