//! From the sensors' raw readings to samples in the order of their ticks, and how much is measured at all.
//!
//! **Promise.** Samples leave in the order of their ticks, although a beat is known half a second after it was: they
//! wait for [`HOLD_MS`], and what is known later than that is let go. Nobody's heart is not told: without skin under the
//! light there is no heart rate and no interval.
//!
//! A board gives readings as it gets them ([`Acquisition::light`] and its neighbours), asks once a second whether it is
//! worn ([`Acquisition::second`]), and takes what is due ([`Acquisition::due`]). What is measured follows the battery
//! ([`Level`]).

use kinara_protocol::channel::{
    ACTIVITY_COUNTS, AMBIENT_TEMPERATURE, BATTERY, ChannelId, EDA, HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE,
    STEPS,
};
use kinara_protocol::frame::Ticks;

use crate::signal::motion::Motion;
use crate::signal::pulse::{FULL_SCALE, Pulse, RATE_HZ};
use crate::signal::rhythm::Rhythm;
use crate::signal::skin::{Conductance, Skin};
use crate::signal::temperature::centidegrees;
use crate::signal::wear::{Second, Wear};

/// How long a sample waits for an older one that is not known yet: a beat's latency (0.55 s), and a late reading.
pub const HOLD_MS: u64 = 1_000;
/// Samples that wait: 12 a second of the reference plan, and the beats.
const WAITING: usize = 48;
/// A sample of light, ms.
const LIGHT_MS: u64 = 1_000 / RATE_HZ as u64;
/// Light that is so far from where it was expected has begun anew, ms.
const BREAK_MS: u64 = 500;
/// What summaries are of, ms.
const SUMMARY_MS: u64 = 60_000;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing: what is held is saved, and the wearable waits for its charger.
    Stopped,
    /// A mean a minute, and no intervals.
    Summaries,
    /// The whole plan.
    Full,
}

impl Level {
    /// From here down summaries only, and from here down nothing, percent.
    pub const SUMMARIES_PERCENT: i32 = 10;
    /// See [`SUMMARIES_PERCENT`](Self::SUMMARIES_PERCENT).
    pub const STOP_PERCENT: i32 = 3;
    /// So much more it has to be for the level to rise, percent: a battery recovers when less is asked of it.
    const RECOVERED: i32 = 4;

    /// The level at a battery's charge, after this one.
    #[must_use]
    pub fn at(self, percent: i32) -> Self {
        let level = |percent| {
            if percent <= Self::STOP_PERCENT {
                Self::Stopped
            } else if percent <= Self::SUMMARIES_PERCENT {
                Self::Summaries
            } else {
                Self::Full
            }
        };
        if level(percent) < self { level(percent) } else { self.max(level(percent - Self::RECOVERED)) }
    }
}

/// A charge by the voltage of a lithium-polymer cell at a low load, percent: the typical curve, between whose points a
/// straight line runs. A board with a gauge of its own asks that.
pub fn percent_of(millivolts: u32) -> i32 {
    const CURVE: [(u32, i32); 11] = [
        (3_300, 0),
        (3_500, 3),
        (3_690, 10),
        (3_740, 20),
        (3_770, 30),
        (3_790, 40),
        (3_820, 50),
        (3_870, 60),
        (3_980, 80),
        (4_060, 90),
        (4_180, 100),
    ];
    let Some(above) = CURVE.iter().position(|(point, _)| millivolts <= *point) else { return 100 };
    let Some(below) = above.checked_sub(1) else { return 0 };
    let ((low, from), (high, to)) = (CURVE[below], CURVE[above]);
    from + (millivolts - low) as i32 * (to - from) / (high - low) as i32
}

/// A mean in the making.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    sum: i64,
    count: i64,
}

impl Sum {
    fn add(&mut self, value: i32) {
        self.sum += i64::from(value);
        self.count += 1;
    }

    fn take(&mut self) -> Option<i32> {
        let Self { sum, count } = core::mem::take(self);
        (count > 0).then(|| ((2 * sum + count) / (2 * count)) as i32)
    }
}

/// The channels that summaries are made of.
const SUMMED: [ChannelId; 4] = [HEART_RATE, SKIN_TEMPERATURE, AMBIENT_TEMPERATURE, EDA];

/// Where the light's samples are in time: the sensor counts by its own clock.
#[derive(Debug, Clone, Copy, Default)]
struct Light {
    count: u64,
    /// Ticks of sample 0, in 1/16 ms, drawn slowly after the sensor's clock.
    origin: i64,
}

impl Light {
    fn own_ms(self) -> u64 {
        self.count * LIGHT_MS
    }

    fn ticks(self, own_ms: u64) -> Ticks {
        Ticks(((self.origin >> 4) + own_ms as i64).max(0) as u64)
    }

    /// Takes the time of the next sample; false: it has begun anew.
    fn next(&mut self, at: Ticks) -> bool {
        let goes_on = self.count > 0 && self.ticks(self.own_ms()).0.abs_diff(at.0) < BREAK_MS;
        if goes_on {
            let error = (at.0 as i64 - self.own_ms() as i64) * 16 - self.origin;
            self.origin += error / 32;
            self.count += 1;
        } else {
            *self = Self { count: 1, origin: at.0 as i64 * 16 };
        }
        goes_on
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    channel: ChannelId,
    at: Ticks,
    value: i32,
}

/// See the module.
#[derive(Debug)]
pub struct Acquisition {
    level: Level,
    light: Light,
    pulse: Pulse,
    rhythm: Rhythm,
    skin: Skin,
    motion: Motion,
    wear: Wear,
    worn: bool,
    steps: u32,
    brightness: Sum,
    moved: bool,
    warmth: Option<(i32, i32)>,
    sums: [Sum; SUMMED.len()],
    summary: u64,
    waiting: heapless::Vec<Sample, WAITING>,
    /// Nothing older leaves any more.
    passed: Ticks,
}

impl Acquisition {
    /// Nothing was read yet.
    pub fn new() -> Self {
        Self {
            level: Level::Full,
            light: Light::default(),
            pulse: Pulse::default(),
            rhythm: Rhythm::default(),
            skin: Skin::default(),
            motion: Motion::default(),
            wear: Wear::default(),
            worn: false,
            steps: 0,
            brightness: Sum::default(),
            moved: false,
            warmth: None,
            sums: [Sum::default(); SUMMED.len()],
            summary: 0,
            waiting: heapless::Vec::new(),
            passed: Ticks(0),
        }
    }

    /// How much is measured.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether the light is needed now: not on a table, and not for summaries but in one of three minutes.
    pub fn wants_light(&self, now: Ticks) -> bool {
        match self.level {
            Level::Stopped => false,
            Level::Summaries => (now.0 / SUMMARY_MS).is_multiple_of(3),
            Level::Full => true,
        }
    }

    /// A sample of infrared light, counts of 2^18 that fall with the blood in the tissue, 100 a second.
    pub fn light(&mut self, at: Ticks, infrared: u32) {
        if !self.light.next(at) {
            self.pulse = Pulse::default();
            self.rhythm = Rhythm::default();
        }
        let infrared = infrared.min(FULL_SCALE as u32) as i32;
        self.brightness.add(infrared);
        let Some(beat) = self.pulse.sample(FULL_SCALE - infrared) else { return };
        let Some(interval) = self.rhythm.beat(beat) else { return };
        if self.worn && self.level == Level::Full {
            self.wait(RR_INTERVAL, self.light.ticks(interval.at_ms), interval.length_ms as i32);
        }
    }

    /// A sample of acceleration, counts along the three axes, 26 a second.
    pub fn acceleration(&mut self, at: Ticks, axes: [i16; 3]) {
        let moved = self.motion.sample(axes);
        self.steps += moved.steps;
        if moved.moving {
            self.moved = true;
            self.rhythm.moves(self.light.own_ms());
        }
        if let Some(activity) = moved.activity
            && self.level > Level::Stopped
        {
            self.wait(ACTIVITY_COUNTS, at, activity as i32);
            let steps = core::mem::take(&mut self.steps);
            self.wait(STEPS, at, steps as i32);
        }
    }

    /// Both temperatures, as their registers have them, once a second.
    pub fn temperatures(&mut self, at: Ticks, skin: i16, ambient: i16) {
        let (skin, ambient) = (centidegrees(skin), centidegrees(ambient));
        self.warmth = skin.zip(ambient);
        for (channel, value) in [(SKIN_TEMPERATURE, skin), (AMBIENT_TEMPERATURE, ambient)] {
            if let Some(value) = value {
                self.tell(channel, at, value);
            }
        }
    }

    /// A conversion of the electrodes, four a second, made in the range that was returned last; the range for the next.
    pub fn conductance(&mut self, at: Ticks, counts: u16) -> usize {
        if let Conductance::Nanosiemens(value) = self.skin.sample(counts) {
            self.tell(EDA, at, value);
        }
        self.skin.range()
    }

    /// The battery. Its charge, percent.
    pub fn battery(&mut self, at: Ticks, percent: i32) {
        self.level = self.level.at(percent);
        self.wait(BATTERY, at, percent);
    }

    /// A second is over. Whether it is worn now.
    pub fn second(&mut self, at: Ticks) -> bool {
        let light = self.brightness.take();
        let moved = core::mem::take(&mut self.moved);
        let warmer = self.warmth.map(|(skin, ambient)| skin - ambient);
        // Without light nothing is known of a wrist: what was so stays so.
        if let Some(light) = light {
            self.worn = self.wear.second(Second { light, warmer, moved });
        }
        if self.worn
            && light.is_some()
            && let Some(rate) = self.rhythm.rate(self.light.own_ms())
        {
            self.tell(HEART_RATE, at, rate.tenths);
        }
        let summary = at.0 / SUMMARY_MS;
        if summary != self.summary {
            self.summary = summary;
            for (place, channel) in SUMMED.into_iter().enumerate() {
                if let Some(mean) = self.sums[place].take()
                    && self.level == Level::Summaries
                {
                    self.wait(channel, at, mean);
                }
            }
        }
        self.worn
    }

    /// Takes what no older sample can precede any more.
    pub fn due(&mut self, now: Ticks, mut take: impl FnMut(ChannelId, Ticks, i32)) {
        self.passed = self.passed.max(Ticks(now.0.saturating_sub(HOLD_MS)));
        let due = self.waiting.partition_point(|sample| sample.at <= self.passed);
        for sample in &self.waiting[..due] {
            take(sample.channel, sample.at, sample.value);
        }
        self.waiting.drain(..due);
    }

    /// Takes all that waits: the board is about to be switched off.
    pub fn rest(&mut self, take: impl FnMut(ChannelId, Ticks, i32)) {
        self.due(Ticks(u64::MAX), take);
    }

    fn tell(&mut self, channel: ChannelId, at: Ticks, value: i32) {
        match self.level {
            Level::Full => self.wait(channel, at, value),
            Level::Summaries => {
                if let Some(place) = SUMMED.iter().position(|summed| *summed == channel) {
                    self.sums[place].add(value);
                }
            }
            Level::Stopped => {}
        }
    }

    fn wait(&mut self, channel: ChannelId, at: Ticks, value: i32) {
        if at < self.passed {
            return;
        }
        if self.waiting.is_full() {
            // Nobody has taken them for seconds.
            self.waiting.remove(0);
        }
        let place = self.waiting.partition_point(|sample| sample.at <= at);
        self.waiting.insert(place, Sample { channel, at, value }).expect("a place was made");
    }
}

impl Default for Acquisition {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::signal::motion::ONE_G;

    /// A wrist for so many seconds: a heart of 75 beats a minute by a sensor whose clock is off by this many parts in a
    /// thousand, warm skin, 2 µS. All samples that left.
    fn wrist(seconds: u64, clock: i64, percent: i32) -> Vec<(ChannelId, Ticks, i32)> {
        let mut acquisition = Acquisition::new();
        acquisition.battery(Ticks(0), percent);
        let mut told = Vec::new();
        let mut light = 0u64;
        for ms in 0..seconds * 1_000 {
            let at = Ticks(ms);
            while light * 10 * (1_000 + clock) as u64 / 1_000 <= ms {
                let phase = (light % 80) as f64 / 80.0;
                let wave = (-((phase - 0.3) / 0.1).powi(2)).exp();
                if acquisition.wants_light(at) {
                    acquisition.light(at, (120_000.0 - 1_500.0 * wave) as u32);
                }
                light += 1;
            }
            if ms.is_multiple_of(38) {
                acquisition.acceleration(at, [0, 0, ONE_G as i16]);
            }
            if ms.is_multiple_of(250) {
                acquisition.conductance(at, 2_275);
            }
            if ms.is_multiple_of(1_000) {
                acquisition.temperatures(at, 33 * 128, 24 * 128);
                acquisition.second(at);
                acquisition.due(at, |channel, at, value| told.push((channel, at, value)));
            }
        }
        acquisition.rest(|channel, at, value| told.push((channel, at, value)));
        told
    }

    fn of(told: &[(ChannelId, Ticks, i32)], wanted: ChannelId) -> Vec<i32> {
        told.iter().filter(|(channel, ..)| *channel == wanted).map(|(.., value)| *value).collect()
    }

    #[test]
    fn samples_leave_in_the_order_of_their_ticks_though_beats_are_known_late() {
        let told = wrist(120, 0, 80);
        assert!(told.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        let intervals = of(&told, RR_INTERVAL);
        assert!(
            intervals.len() > 100 && intervals.iter().all(|length| (795..=805).contains(length)),
            "{intervals:?}"
        );
        let rates = of(&told, HEART_RATE);
        assert!(rates.len() > 90 && rates.iter().all(|rate| (748..=752).contains(rate)), "{rates:?}");
        assert_eq!(of(&told, SKIN_TEMPERATURE), [3_300; 120]);
        assert!(of(&told, EDA).iter().all(|value| (1_900..2_100).contains(value)));
    }

    #[test]
    fn a_sensor_with_a_clock_of_its_own_stays_in_step_with_the_ticks() {
        for clock in [-20, 20] {
            let told = wrist(600, clock, 80);
            assert!(told.windows(2).all(|pair| pair[0].1 <= pair[1].1));
            let last = told.iter().rev().find(|(channel, ..)| *channel == RR_INTERVAL).unwrap().1;
            assert!((598_000..600_000).contains(&last.0), "{last:?}");
        }
    }

    #[test]
    fn a_low_battery_leaves_means_and_an_empty_one_nothing() {
        let told = wrist(360, 0, 10);
        assert_eq!(of(&told, SKIN_TEMPERATURE), [3_300; 5]);
        assert_eq!(of(&told, RR_INTERVAL).len(), 0);
        let rates = of(&told, HEART_RATE);
        assert!(rates.len() >= 2 && rates.iter().all(|rate| (745..=755).contains(rate)), "{rates:?}");
        assert_eq!(wrist(120, 0, 3).iter().filter(|(channel, ..)| *channel != BATTERY).count(), 0);
    }

    #[test]
    fn a_level_rises_only_when_the_battery_has_recovered() {
        use Level::{Full, Stopped, Summaries};
        let mut level = Level::Full;
        let mut levels = Vec::new();
        for percent in [50, 11, 10, 12, 14, 15, 3, 5, 7, 8, 14, 15] {
            level = level.at(percent);
            levels.push(level);
        }
        assert_eq!(
            levels,
            [
                Full, Full, Summaries, Summaries, Summaries, Full, Stopped, Stopped, Stopped, Summaries,
                Summaries, Full
            ]
        );
    }

    proptest! {
        #[test]
        fn more_voltage_is_never_less_charge(low in 2_500u32..4_500, more in 0u32..500) {
            let (less, charge) = (percent_of(low), percent_of(low + more));
            prop_assert!(less <= charge && (0..=100).contains(&less));
        }

        #[test]
        fn whatever_readings_come_in_samples_leave_in_order(
            readings in proptest::collection::vec((0u8..6, 0u64..3_000, any::<i16>()), 1..400),
        ) {
            let mut acquisition = Acquisition::new();
            let (mut now, mut last) = (0, 0);
            for (kind, passes, value) in readings {
                now += passes;
                let at = Ticks(now);
                match kind {
                    0 => acquisition.light(at, u32::from(value.unsigned_abs()) * 8),
                    1 => acquisition.acceleration(at, [value, 0, 0]),
                    2 => acquisition.temperatures(at, value, value),
                    3 => { acquisition.conductance(at, value.unsigned_abs()); }
                    4 => acquisition.battery(at, i32::from(value).rem_euclid(101)),
                    _ => { acquisition.second(at); }
                }
                acquisition.due(at, |_, at, _| {
                    assert!(at.0 >= last);
                    last = at.0;
                });
            }
        }
    }
}
