//! The time before which nothing is believed, and how far ahead of it one source alone is believed.
//!
//! The promise: no single wrong word keeps a box out of time for good. The floor rises only to times that were
//! confirmed, never further than [`STEP_US`] in one boot beyond what has passed on the machine's own counter, and sinks
//! again when a source that proved who it is says so. The floor before the last leap is kept: by it certificates
//! are judged while the time is not known.

use super::source::BUILD_DATE_US;

const DAY_US: i64 = 86_400_000_000;
/// How far beyond the last time that was sure a single source is believed, and the floor may rise in one boot.
pub const STEP_US: i64 = 366 * DAY_US;
/// How much later than it left off a box may come back without this being a leap: a night, not a holiday.
const LEAP_US: i64 = DAY_US;
/// How long the time has to be confirmed after a leap before the floor in front of it is forgotten.
const SETTLED_US: i64 = 3 * DAY_US;
/// The floor rises by no less: each rise is a write.
const RISE_US: i64 = 30_000_000;

/// What is kept over restarts. All of it in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Before this no time is believed.
    pub at_us: i64,
    /// The floor before its last leap, until the time after it has settled.
    pub former_us: i64,
    /// For how long the time has been confirmed since the last leap.
    pub settled_us: i64,
    /// The floor at the beginning of this boot.
    pub base_us: i64,
    /// `CLOCK_BOOTTIME` of that.
    pub base_boot_us: i64,
    /// `CLOCK_BOOTTIME` when the floor was last confirmed, or since the daemon runs.
    seen_boot_us: i64,
}

impl Floor {
    /// That of a box that has never been sure of any time.
    pub fn new(boot_us: i64) -> Self {
        let at_us = BUILD_DATE_US;
        Self {
            at_us,
            former_us: at_us,
            settled_us: 0,
            base_us: at_us,
            base_boot_us: boot_us,
            seen_boot_us: boot_us,
        }
    }

    /// As it was kept: floor, former floor, settled time, and, if this boot has left one already, its base.
    pub fn kept(kept: [i64; 3], base: Option<(i64, i64)>, boot_us: i64) -> Self {
        let [at_us, former_us, settled_us] = kept;
        let at_us = at_us.max(BUILD_DATE_US);
        let (base_us, base_boot_us) =
            base.map_or((at_us, boot_us), |(us, at)| (us.clamp(BUILD_DATE_US, at_us), at.min(boot_us)));
        Self {
            at_us,
            former_us: former_us.clamp(BUILD_DATE_US, at_us),
            settled_us: settled_us.max(0),
            base_us,
            base_boot_us,
            seen_boot_us: boot_us,
        }
    }

    /// What a version before this one kept: nobody knows by whom it was confirmed. A time that lies too far ahead is not
    /// taken over, and certificates are not judged by it.
    pub fn unconfirmed(last_utc_us: i64, boot_us: i64) -> Self {
        let fresh = Self::new(boot_us);
        if last_utc_us > fresh.ceiling_us(boot_us) {
            return fresh;
        }
        Self { at_us: last_utc_us.max(BUILD_DATE_US), ..fresh }
    }

    /// The latest time that a single source is believed.
    pub fn ceiling_us(&self, boot_us: i64) -> i64 {
        self.base_us + (boot_us - self.base_boot_us).max(0) + STEP_US
    }

    /// A time was confirmed: it is `utc_us` at the earliest. True when this is to be kept.
    pub fn confirm(&mut self, utc_us: i64, boot_us: i64) -> bool {
        let to = utc_us.min(self.ceiling_us(boot_us));
        if to - self.at_us < RISE_US {
            return false;
        }
        let passed = (boot_us - self.seen_boot_us).max(0);
        if to - self.at_us > passed + LEAP_US {
            // A second leap before the first has settled does not hide what was there before both.
            self.settled_us = 0;
        } else {
            self.settled_us = (self.settled_us + passed).min(SETTLED_US);
        }
        self.at_us = to;
        self.seen_boot_us = boot_us;
        if self.settled_us >= SETTLED_US {
            self.former_us = to;
        }
        true
    }

    /// Somebody who is believed says that it is earlier.
    pub fn lower(&mut self, utc_us: i64, boot_us: i64) {
        let at_us = utc_us.max(BUILD_DATE_US);
        *self = Self {
            at_us,
            former_us: self.former_us.min(at_us),
            settled_us: 0,
            base_us: self.base_us.min(at_us),
            seen_boot_us: boot_us,
            ..*self
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    #[test]
    fn one_boot_raises_the_floor_by_no_more_than_what_passed_and_a_step_however_often_it_is_asked() {
        let mut floor = Floor::new(0);
        for second in (30..=90_000i64).step_by(30) {
            floor.confirm(4_070_908_800_000_000, second * 1_000_000);
        }
        assert_eq!(floor.at_us, BUILD_DATE_US + STEP_US + 90_000_000_000);
        // Nor does a daemon that starts anew in the same boot begin from there.
        let kept = Floor::kept(
            [floor.at_us, floor.former_us, floor.settled_us],
            Some((floor.base_us, floor.base_boot_us)),
            100_000_000_000,
        );
        assert_eq!(kept.ceiling_us(100_000_000_000), BUILD_DATE_US + STEP_US + 100_000_000_000);
    }

    #[test]
    fn the_floor_before_a_leap_is_kept_until_the_time_after_it_has_settled() {
        let mut floor = Floor::new(0);
        let leap = BUILD_DATE_US + 200 * DAY_US;
        assert!(floor.confirm(leap, HOUR_US));
        assert_eq!((floor.at_us, floor.former_us), (leap, BUILD_DATE_US));
        // Another one soon after it hides nothing.
        let second = leap + 100 * DAY_US;
        assert!(floor.confirm(second, 2 * HOUR_US));
        assert_eq!(floor.former_us, BUILD_DATE_US);
        for hour in 1..=72 {
            floor.confirm(second + hour * HOUR_US, (2 + hour) * HOUR_US);
        }
        assert_eq!(floor.former_us, second + 72 * HOUR_US);
        floor.lower(leap, 80 * HOUR_US);
        assert_eq!((floor.at_us, floor.former_us), (leap, leap));
    }

    #[test]
    fn a_floor_that_an_older_version_kept_is_no_word_on_certificates_and_nothing_at_all_when_it_is_far_ahead()
    {
        let poisoned = Floor::unconfirmed(4_070_908_800_000_000, 5);
        assert_eq!(poisoned, Floor::new(5));
        let plausible = Floor::unconfirmed(BUILD_DATE_US + 20 * DAY_US, 5);
        assert_eq!((plausible.at_us, plausible.former_us), (BUILD_DATE_US + 20 * DAY_US, BUILD_DATE_US));
        assert_eq!(plausible.ceiling_us(5), Floor::new(5).ceiling_us(5));
    }

    proptest! {
        #[test]
        fn the_former_floor_is_never_above_the_floor_nor_that_above_the_ceiling(
            steps in prop::collection::vec((any::<bool>(), -400i64..800, 0i64..100), 1..60),
        ) {
            let mut floor = Floor::new(0);
            let mut boot = 0;
            for (lower, days, hours) in steps {
                boot += hours * HOUR_US;
                let utc = floor.at_us + days * DAY_US;
                if lower && utc < floor.at_us {
                    floor.lower(utc, boot);
                } else {
                    floor.confirm(utc, boot);
                }
                prop_assert!(floor.former_us <= floor.at_us && floor.former_us >= BUILD_DATE_US);
                prop_assert!(floor.at_us <= floor.ceiling_us(boot));
                let kept = Floor::kept(
                    [floor.at_us, floor.former_us, floor.settled_us],
                    Some((floor.base_us, floor.base_boot_us)),
                    boot,
                );
                prop_assert_eq!(kept.ceiling_us(boot), floor.ceiling_us(boot));
            }
        }
    }
}
