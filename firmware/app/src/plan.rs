//! The sampling plan: what is measured how often.

use kinara_protocol::channel::{
    ACCELERATION, ACTIVITY_COUNTS, AMBIENT_TEMPERATURE, BATTERY, ChannelId, EDA, HEART_RATE, PPG,
    SKIN_TEMPERATURE, SPO2,
};
use kinara_protocol::frame::Ticks;
use kinara_protocol::intervals::{CHANGEABLE, Intervals};

/// A channel that is measured at a fixed interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regular {
    /// Which.
    pub channel: ChannelId,
    /// Milliseconds from one sample to the next.
    pub every_ms: u32,
}

const fn every(channel: ChannelId, every_ms: u32) -> Regular {
    Regular { channel, every_ms }
}

/// The reference plan's channels of fixed interval. `rr_interval` comes with each heart beat beside them.
pub const REFERENCE: [Regular; 7] = [
    every(HEART_RATE, 1_000),
    every(SKIN_TEMPERATURE, 1_000),
    every(AMBIENT_TEMPERATURE, 1_000),
    every(EDA, 250),
    every(ACTIVITY_COUNTS, 30_000),
    every(SPO2, 60_000),
    every(BATTERY, 300_000),
];

/// The waveforms there are; both are off in the reference plan.
pub const WAVEFORMS: [Regular; 2] = [every(PPG, 40), every(ACCELERATION, 40)];

/// What is measured: always the reference plan's channels, and the waveforms that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// Photoplethysmogram at 25 Hz.
    pub ppg: bool,
    /// Acceleration at 25 Hz.
    pub acceleration: bool,
    /// The intervals that are not the reference plan's.
    pub intervals: Intervals,
}

impl Plan {
    /// The reference plan.
    pub const REFERENCE: Self = Self { ppg: false, acceleration: false, intervals: Intervals::REFERENCE };

    /// The channels of fixed interval.
    pub fn regular(&self) -> impl Iterator<Item = Regular> + Clone + use<> {
        let Self { ppg, acceleration, intervals } = *self;
        let scalars = REFERENCE.into_iter().map(move |entry| match intervals.of(entry.channel) {
            Some(seconds) => every(entry.channel, u32::from(seconds) * 1_000),
            None => entry,
        });
        let waveforms = WAVEFORMS.into_iter().filter(move |entry| {
            (entry.channel == PPG && ppg) || (entry.channel == ACCELERATION && acceleration)
        });
        scalars.chain(waveforms)
    }

    /// Calls `take` for each sample that falls into `from..until`, in the order of time. A sample falls on each
    /// multiple of its channel's interval.
    pub fn for_each_due(&self, from: Ticks, until: Ticks, mut take: impl FnMut(ChannelId, Ticks)) {
        let mut at = from.0;
        loop {
            let next = self.regular().map(|entry| at.next_multiple_of(u64::from(entry.every_ms))).min();
            let Some(next) = next.filter(|&next| next < until.0) else { return };
            for entry in self.regular().filter(|entry| next.is_multiple_of(u64::from(entry.every_ms))) {
                take(entry.channel, Ticks(next));
            }
            at = next + 1;
        }
    }
}

/// Lets one sample through in each interval of a channel that was given another one. A board's sensors may give more.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thinning {
    /// The last interval that a sample was taken in, counted from 1 at the boot; by the place in [`CHANGEABLE`].
    taken: [u32; CHANGEABLE.len()],
}

impl Thinning {
    /// Whether this sample is the first one of its interval.
    pub fn takes(&mut self, plan: &Plan, channel: ChannelId, ticks: Ticks) -> bool {
        let place = CHANGEABLE.iter().position(|bounds| bounds.channel == channel);
        let Some((place, seconds)) = place.zip(plan.intervals.of(channel)) else { return true };
        let interval = (ticks.0 / (u64::from(seconds) * 1_000)) as u32 + 1;
        core::mem::replace(&mut self.taken[place], interval) != interval
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_reference_plan_takes_the_published_number_of_samples_in_five_minutes() {
        let mut counts = [0u32; 16];
        Plan::default()
            .for_each_due(Ticks(0), Ticks(300_000), |channel, _| counts[usize::from(channel.0)] += 1);
        assert_eq!(counts[usize::from(HEART_RATE.0)], 300);
        assert_eq!(counts[usize::from(EDA.0)], 1_200);
        assert_eq!(counts[usize::from(ACTIVITY_COUNTS.0)], 10);
        assert_eq!(counts[usize::from(SPO2.0)], 5);
        assert_eq!(counts[usize::from(BATTERY.0)], 1);
    }

    #[test]
    fn a_channel_with_another_interval_is_due_then_and_the_others_as_before() {
        let intervals = Intervals::REFERENCE.with(HEART_RATE, 60).unwrap().with(EDA, 10).unwrap();
        let plan = Plan { intervals, ..Plan::default() };
        let mut counts = [0u32; 16];
        plan.for_each_due(Ticks(0), Ticks(300_000), |channel, _| counts[usize::from(channel.0)] += 1);
        let of = |channel: ChannelId| counts[usize::from(channel.0)];
        assert_eq!((of(HEART_RATE), of(EDA), of(SKIN_TEMPERATURE), of(BATTERY)), (5, 30, 300, 1));
    }

    #[test]
    fn of_what_a_sensor_gives_one_sample_in_each_interval_is_taken() {
        let plan = Plan { intervals: Intervals::REFERENCE.with(HEART_RATE, 60).unwrap(), ..Plan::default() };
        let mut thinning = Thinning::default();
        // Once a second, a third of a second late, and after five minutes.
        let mut times = (0..180).map(|second| second * 1_000 + 333).chain([300_000]);
        let taken: Vec<u64> =
            times.by_ref().filter(|ticks| thinning.takes(&plan, HEART_RATE, Ticks(*ticks))).collect();
        assert_eq!(taken, [333, 60_333, 120_333, 300_000]);
        assert!((0..9).all(|second| thinning.takes(&plan, EDA, Ticks(second * 250))));
    }

    proptest! {
        #[test]
        fn however_time_is_cut_into_steps_the_samples_are_the_same(
            steps in proptest::collection::vec(1u64..5_000, 1..40), ppg: bool, acceleration: bool,
        ) {
            let plan = Plan { ppg, acceleration, ..Plan::default() };
            let end = steps.iter().sum();
            let mut whole = Vec::new();
            plan.for_each_due(Ticks(0), Ticks(end), |channel, ticks| whole.push((channel, ticks)));
            let mut cut = Vec::new();
            let mut from = 0;
            for step in steps {
                plan.for_each_due(Ticks(from), Ticks(from + step), |channel, ticks| cut.push((channel, ticks)));
                from += step;
            }
            prop_assert!(whole.windows(2).all(|pair| pair[0].1 <= pair[1].1));
            prop_assert_eq!(whole, cut);
        }
    }
}
