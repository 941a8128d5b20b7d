//! Measurements that bring a time of the sensor's own clock.
//!
//! The promise: such a measurement is stored at its own time or not at all, and never twice. A sensor's clock has no zone
//! and is often wrong, so it is believed only once it is known how far it is off:
//!
//! - two measurements came as far apart as their stamps are, and not in one burst: both were new when they came; or
//! - a stamp is now, in this machine's time zone or in UTC.
//!
//! What was measured later than it came, or longer ago than sensors keep anything, was not measured then: it is of a time
//! when the sensor's clock was another, and is left out.
//!
//! Until then measurements wait; at the end of the connection those that still wait are left out, and it is said.
//! A sensor sends what it kept again at the next connection, so a measurement's identity is made of what it says: its
//! epoch is a digest, and a second copy is the frame that is known already.

use bytes::Bytes;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use kinara_protocol::frame::Epoch;
use sha2::{Digest, Sha256};

use super::{Measurement, Numbering};
use crate::hardware::HardwareId;
use crate::radio::SensorReport;
use crate::store::OwnSync;

/// A stamp that differs by no more from the time of its arrival is of now.
const NOW_US: i64 = 120_000_000;
/// Two measurements that came at least so far apart did not come in one burst out of a memory.
const APART_US: i64 = 5_000_000;
/// How well two intervals agree that are the same one: stamps have whole seconds, and a report its own delay.
const AGREE_US: i64 = 2_000_000;
/// Nothing is kept in a sensor for longer, microseconds (a year).
const KEPT_MOST_US: i64 = 366 * 86_400_000_000;
/// Measurements that wait for the clock to be known; a sensor keeps some dozens.
const MOST_WAITING: usize = 256;

/// A measurement with its stamp, as it came.
#[derive(Debug, Clone)]
struct Stamped {
    report: SensorReport,
    measurement: Measurement,
    /// The stamp as if it were UTC, microseconds.
    stamp_us: i64,
    arrived_boot_us: i64,
}

impl Stamped {
    /// Whether it was measured later than it came.
    fn is_future(&self, offset: Offset) -> bool {
        self.ahead_us(offset) > NOW_US
    }

    /// Whether it was measured so long ago that its sensor's clock was another then: as before it was set.
    fn is_ancient(&self, offset: Offset) -> bool {
        self.ahead_us(offset) < -KEPT_MOST_US
    }

    fn ahead_us(&self, offset: Offset) -> i64 {
        self.stamp_us + offset.boot_minus_stamp_us - self.arrived_boot_us
    }
}

/// A frame of a stamped measurement and what places it.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its epoch's only sync.
    pub sync: OwnSync,
    /// Its frames, at tick 0.
    pub frames: Vec<Bytes>,
    /// Whether it was measured just now.
    pub is_new: bool,
}

/// How far a sensor's clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offset {
    /// Boot time minus stamp, microseconds.
    boot_minus_stamp_us: i64,
    uncertainty_us: u64,
}

/// The clock of one sensor, during one connection.
#[derive(Debug)]
pub struct SensorClock {
    zone: TimeZone,
    offset: Option<Offset>,
    waiting: Vec<Stamped>,
    dropped: usize,
    in_the_future: usize,
}

impl SensorClock {
    /// A clock of which nothing is known. `zone` is where the box stands.
    pub fn new(zone: TimeZone) -> Self {
        Self { zone, offset: None, waiting: Vec::new(), dropped: 0, in_the_future: 0 }
    }

    /// Takes a stamped measurement; gives all that can be placed now. `utc_minus_boot_us`: this box's clock, if known.
    pub fn take(
        &mut self,
        hardware: &HardwareId,
        report: SensorReport,
        measurement: Measurement,
        (arrived_boot_us, utc_minus_boot_us): (i64, Option<i64>),
    ) -> Vec<Placed> {
        let Some(stamp) = measurement.stamp else { return Vec::new() };
        let new = Stamped { report, measurement, stamp_us: as_utc_us(stamp), arrived_boot_us };
        // Its clock has been set, or this is a value of a time when it was wrong: what comes next shows which.
        self.offset = self.offset.filter(|offset| !new.is_future(*offset) && !new.is_ancient(*offset));
        self.learn(&new, stamp, utc_minus_boot_us);
        self.waiting.push(new);
        let Some(offset) = self.offset else {
            let over = self.waiting.len().saturating_sub(MOST_WAITING);
            self.waiting.drain(..over);
            self.dropped += over;
            return Vec::new();
        };
        let (future, past): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|stamped| stamped.is_future(offset));
        self.in_the_future += future.len();
        let (ancient, past): (Vec<_>, Vec<_>) =
            past.into_iter().partition(|stamped| stamped.is_ancient(offset));
        self.dropped += ancient.len();
        past.iter().map(|stamped| place(hardware, stamped, offset)).collect()
    }

    /// How many were measured later than they came, since the last call.
    pub fn in_the_future(&mut self) -> usize {
        std::mem::take(&mut self.in_the_future)
    }

    /// How many could not be placed; the connection is over.
    pub fn unplaced(&mut self) -> usize {
        std::mem::take(&mut self.waiting).len() + std::mem::take(&mut self.dropped)
    }

    fn learn(&mut self, new: &Stamped, stamp: DateTime, utc_minus_boot_us: Option<i64>) {
        let paced = self.waiting.iter().any(|earlier| {
            let arrived = new.arrived_boot_us - earlier.arrived_boot_us;
            arrived >= APART_US && (arrived - (new.stamp_us - earlier.stamp_us)).abs() <= AGREE_US
        });
        if paced {
            self.offset = Some(offset_of(new, AGREE_US));
            return;
        }
        let Some(utc_minus_boot_us) = utc_minus_boot_us.filter(|_| self.offset.is_none()) else { return };
        let now_us = new.arrived_boot_us + utc_minus_boot_us;
        let is_now = |zone: &TimeZone| {
            // In the hour that comes twice a stamp means either.
            let either = zone.to_ambiguous_zoned(stamp);
            [either.clone().earlier(), either.later()].into_iter().flatten().any(|at| {
                let at_us = at.timestamp().as_microsecond();
                (at_us - now_us).abs() <= NOW_US
            })
        };
        if is_now(&self.zone) || is_now(&TimeZone::UTC) {
            self.offset = Some(offset_of(new, NOW_US));
        }
    }
}

fn offset_of(new: &Stamped, uncertainty_us: i64) -> Offset {
    Offset {
        boot_minus_stamp_us: new.arrived_boot_us - new.stamp_us,
        uncertainty_us: uncertainty_us.unsigned_abs(),
    }
}

fn place(hardware: &HardwareId, stamped: &Stamped, offset: Offset) -> Placed {
    let epoch = identity(hardware, stamped);
    let mut numbering = Numbering::new(epoch);
    numbering.take(0, &stamped.measurement);
    let boot_us = stamped.stamp_us + offset.boot_minus_stamp_us;
    let sync = OwnSync { epoch, ticks: 0, boot_us, uncertainty_us: offset.uncertainty_us };
    let is_new = (stamped.arrived_boot_us - boot_us).abs() <= AGREE_US;
    Placed { sync, frames: numbering.close(), is_new }
}

fn identity(hardware: &HardwareId, stamped: &Stamped) -> Epoch {
    let Measurement { heart_rate, temperature, spo2, .. } = &stamped.measurement;
    let text = format!(
        "kinara stamped measurement\n{hardware}\n{:?}\n{}\n{heart_rate:?} {temperature:?} {spo2:?}",
        stamped.report, stamped.stamp_us
    );
    let digest = Sha256::digest(text.as_bytes());
    let (first, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    Epoch(u64::from_be_bytes(*first))
}

fn as_utc_us(stamp: DateTime) -> i64 {
    // Years of two bytes fit jiff's range only up to 9999; `Measurement::read` has refused the others.
    stamp.to_zoned(TimeZone::UTC).map_or(0, |at| at.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    const NOW: i64 = 1_795_939_200_000_000; // 2026-11-29T08:00:00Z

    fn at(stamp: DateTime) -> Measurement {
        Measurement { temperature: Some(39.4), stamp: Some(stamp), ..Measurement::default() }
    }

    fn hardware() -> HardwareId {
        HardwareId::parse("bt:C0:FF:EE:00:00:04").unwrap()
    }

    fn take(clock: &mut SensorClock, stamp: DateTime, boot_s: i64) -> Vec<Placed> {
        let utc = Some(NOW - 1_000_000_000);
        clock.take(&hardware(), SensorReport::Temperature, at(stamp), (boot_s * 1_000_000, utc))
    }

    fn india() -> SensorClock {
        SensorClock::new(TimeZone::fixed(jiff::tz::Offset::from_seconds(19_800).unwrap()))
    }

    #[test]
    fn a_fever_of_last_night_is_not_one_of_this_morning() {
        let mut clock = india();
        // It arrives at 13:30 of the clinic's time and says 03:10.
        assert!(take(&mut clock, date(2026, 11, 29).at(3, 10, 0, 0), 1_000).is_empty());
        assert_eq!(clock.unplaced(), 1, "nobody has shown that this clock is right");
    }

    #[test]
    fn a_stored_value_gets_its_own_time_once_a_new_one_shows_how_far_the_clock_is_off() {
        let mut clock = india();
        assert!(take(&mut clock, date(2026, 11, 29).at(3, 10, 0, 0), 1_000).is_empty());
        let placed = take(&mut clock, date(2026, 11, 29).at(13, 30, 20, 0), 1_002);
        assert_eq!(placed.len(), 2);
        assert_eq!((placed[0].is_new, placed[1].is_new), (false, true));
        let between = placed[1].sync.boot_us - placed[0].sync.boot_us;
        assert_eq!(between, (10 * 3600 + 20 * 60 + 20) * 1_000_000);
        assert_eq!(clock.unplaced(), 0);
    }

    #[test]
    fn a_clock_that_was_never_set_is_learnt_from_two_values_that_were_paced() {
        let mut clock = india();
        assert!(take(&mut clock, date(2000, 1, 1).at(0, 5, 0, 0), 1_000).is_empty());
        let placed = take(&mut clock, date(2000, 1, 1).at(0, 5, 30, 0), 1_030);
        assert_eq!(placed.len(), 2);
        assert_eq!(placed[0].sync.boot_us, 1_000_000_000);
        // In one burst they prove nothing.
        let mut burst = india();
        assert!(take(&mut burst, date(2000, 1, 1).at(0, 5, 0, 0), 1_000).is_empty());
        assert!(take(&mut burst, date(2000, 1, 1).at(0, 5, 1, 0), 1_001).is_empty());
        assert_eq!(burst.unplaced(), 2);
    }

    #[test]
    fn a_single_value_is_of_now_in_either_pass_of_the_hour_that_comes_twice() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let stamp = date(2026, 10, 25).at(2, 30, 0, 0);
        let first = berlin.to_ambiguous_zoned(stamp).earlier().unwrap().timestamp().as_microsecond();
        for (pass, hours, taken) in [("first", 0, 1), ("second", 1, 1), ("none", 3, 0)] {
            let mut clock = SensorClock::new(berlin.clone());
            let now = first + hours * 3_600_000_000;
            let came = (1_000_000_000, Some(now - 1_000_000_000));
            let placed = clock.take(&hardware(), SensorReport::Temperature, at(stamp), came);
            assert_eq!((placed.len(), clock.unplaced()), (taken, 1 - taken), "{pass}");
        }
    }

    #[test]
    fn a_value_that_says_it_was_measured_next_year_is_left_out_and_the_others_are_taken() {
        let mut clock = india();
        // Out of a memory that was written while the sensor's clock was wrong.
        assert!(take(&mut clock, date(2027, 11, 29).at(13, 30, 0, 0), 1_000).is_empty());
        let placed = take(&mut clock, date(2026, 11, 29).at(13, 30, 20, 0), 1_002);
        assert_eq!(placed.len(), 1);
        assert_eq!((clock.in_the_future(), clock.unplaced()), (1, 0));
        assert!(take(&mut clock, date(2099, 1, 1).at(0, 0, 0, 0), 1_003).is_empty());
        assert_eq!(take(&mut clock, date(2026, 11, 29).at(13, 30, 25, 0), 1_007).len(), 1);
        assert_eq!((clock.in_the_future(), clock.unplaced()), (1, 0));
    }

    #[test]
    fn a_value_of_the_time_before_a_sensors_clock_was_set_is_not_one_of_the_year_2000() {
        let mut clock = india();
        assert_eq!(take(&mut clock, date(2026, 11, 29).at(13, 30, 0, 0), 1_000).len(), 1);
        assert!(take(&mut clock, date(2000, 1, 1).at(0, 5, 0, 0), 1_001).is_empty());
        // One of last night follows it out of the memory, then one of now.
        assert!(take(&mut clock, date(2026, 11, 29).at(3, 10, 0, 0), 1_002).is_empty());
        let placed = take(&mut clock, date(2026, 11, 29).at(13, 30, 4, 0), 1_004);
        assert_eq!(placed.len(), 2);
        assert_eq!(clock.unplaced(), 1);
    }

    #[test]
    fn a_clock_that_is_set_forward_under_way_is_learnt_anew() {
        let mut clock = india();
        assert!(take(&mut clock, date(2000, 1, 1).at(0, 5, 0, 0), 1_000).is_empty());
        assert_eq!(take(&mut clock, date(2000, 1, 1).at(0, 5, 30, 0), 1_030).len(), 2);
        // Somebody sets it.
        let placed = take(&mut clock, date(2026, 11, 29).at(13, 31, 0, 0), 1_060);
        assert_eq!((placed.len(), placed[0].sync.boot_us), (1, 1_060_000_000));
        assert_eq!(clock.in_the_future(), 0);
    }

    #[test]
    fn what_a_sensor_sends_again_is_the_same_frame() {
        let stamp = date(2026, 11, 29).at(13, 30, 0, 0);
        let first = take(&mut india(), stamp, 1_000);
        let mut later = india();
        assert!(take(&mut later, stamp, 90_000).is_empty());
        let again = take(&mut later, date(2026, 11, 30).at(14, 13, 20, 0), 90_000);
        assert_eq!((first[0].sync.epoch, &first[0].frames), (again[0].sync.epoch, &again[0].frames));
    }

    #[test]
    fn more_than_a_sensor_keeps_does_not_grow_without_end() {
        let mut clock = india();
        for minute in 0..1_000_i64 {
            let stamp = date(2001, 1, 1).at(0, 0, 0, 0) + jiff::SignedDuration::from_mins(minute);
            assert!(take(&mut clock, stamp, 1_000).is_empty());
        }
        assert_eq!((clock.waiting.len(), clock.unplaced()), (MOST_WAITING, 1_000));
    }
}
