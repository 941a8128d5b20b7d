//! What the wearable's sensors see: the body (or a recording), with sensor noise and dropouts, on the sampling plan's
//! grid of the crystal's ticks.

use kinara_firmware_app::plan::Plan;
use kinara_protocol::channel::{
    self, ACCELERATION, ACTIVITY_COUNTS, AMBIENT_TEMPERATURE, BATTERY, ChannelId, EDA, HEART_RATE, PPG,
    RR_INTERVAL, SKIN_TEMPERATURE, SPO2,
};
use kinara_protocol::frame::Ticks;

use crate::battery::Battery;
use crate::body::Body;
use crate::crystal::Crystal;
use crate::noise::Noise;
use crate::replay::Player;

/// How often the optical sensor loses contact at rest, per second.
const DROPOUTS_AT_REST: f64 = 1.0 / 1_200.0;
/// And how much more often when running.
const DROPOUTS_MOVING: f64 = 1.0 / 120.0;

/// What the application is told, in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// A sample.
    Sample {
        /// Of what.
        channel: ChannelId,
        /// When, by the crystal.
        ticks: Ticks,
        /// In steps of the channel.
        values: [i32; 3],
        /// How many of the values count.
        components: u8,
    },
    /// The wearable was put on or taken off.
    Worn {
        /// When.
        ticks: Ticks,
        /// On or off.
        on: bool,
    },
}

impl Happening {
    /// When it happens.
    pub fn ticks(&self) -> Ticks {
        match *self {
            Self::Sample { ticks, .. } | Self::Worn { ticks, .. } => ticks,
        }
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Signals {
    body: Body,
    player: Option<Player>,
    battery: Battery,
    noise: Noise,
    contact_lost_until_us: i64,
    told_worn: Option<bool>,
}

impl Signals {
    /// Sensors on a body; a recording takes the place of the signals it holds.
    pub fn new(seed: u64, body: Body, player: Option<Player>) -> Self {
        Self {
            body,
            player,
            battery: Battery::new(seed),
            noise: Noise::new(seed, "sensors"),
            contact_lost_until_us: i64::MIN,
            told_worn: None,
        }
    }

    /// The body, for commands.
    pub fn body(&mut self) -> &mut Body {
        &mut self.body
    }

    /// Battery level in percent.
    pub fn battery_percent(&self, utc_us: i64) -> i32 {
        self.battery.percent(utc_us).round() as i32
    }

    /// The wearable has reset: it does not know whether it is worn.
    pub fn reset(&mut self) {
        self.told_worn = None;
    }

    /// Appends what happens in `from..until`.
    pub fn produce(
        &mut self,
        plan: Plan,
        crystal: &Crystal,
        from: Ticks,
        until: Ticks,
        out: &mut Vec<Happening>,
    ) {
        plan.for_each_due(from, until, |channel, ticks| {
            self.advance(crystal, ticks, out);
            self.measure(channel, ticks, crystal.utc_us_of(ticks.0), out);
        });
        if let Some(last) = until.0.checked_sub(1).filter(|&last| last >= from.0) {
            self.advance(crystal, Ticks(last), out);
        }
    }

    /// Brings the body to `ticks` and tells of beats and wear up to then.
    fn advance(&mut self, crystal: &Crystal, ticks: Ticks, out: &mut Vec<Happening>) {
        let end_us = crystal.utc_us_of(ticks.0 + 1) - 1;
        while self.body.now_us() < end_us {
            self.body.step();
            let moving = DROPOUTS_MOVING * self.body.intensity();
            if self.noise.happens(DROPOUTS_AT_REST + moving, crate::body::STEP_S) {
                let lost_us = self.noise.between(3e6, 12e6) as i64;
                self.contact_lost_until_us = self.body.now_us() + lost_us;
            }
        }
        let worn = self.body.is_worn();
        self.beats(crystal, ticks, end_us, out);
        if self.told_worn != Some(worn) {
            self.told_worn = Some(worn);
            out.push(Happening::Worn { ticks, on: worn });
        }
    }

    fn beats(&mut self, crystal: &Crystal, until: Ticks, end_us: i64, out: &mut Vec<Happening>) {
        let contact = self.body.is_worn() && end_us >= self.contact_lost_until_us;
        loop {
            // The simulated heart goes on under a recording, so that its beats do not pile up.
            let simulated = self.body.take_beat(end_us);
            let beat = match &mut self.player {
                Some(player) if player.has_beats() => {
                    if simulated.is_some() {
                        continue;
                    }
                    player.take_beat(end_us)
                }
                _ => simulated,
            };
            let Some(beat) = beat else { return };
            if contact && beat.utc_us >= crystal.boot_utc_us() {
                let value = steps(RR_INTERVAL, beat.rr_ms);
                // Rounding must not carry it over the samples that follow.
                let ticks = Ticks(crystal.ticks_at(beat.utc_us)).min(until);
                push(out, RR_INTERVAL, ticks, &[value]);
            }
        }
    }

    fn measure(&mut self, channel: ChannelId, ticks: Ticks, utc_us: i64, out: &mut Vec<Happening>) {
        let worn = self.body.is_worn();
        let contact = worn && utc_us >= self.contact_lost_until_us;
        let moving = self.body.intensity();
        let player = self.player.as_mut();
        let value = match channel {
            HEART_RATE if contact => {
                let rate =
                    player.and_then(|player| player.heart_rate()).unwrap_or_else(|| self.body.heart_rate());
                rate + 0.2 * self.noise.normal()
            }
            SKIN_TEMPERATURE if worn => self.body.skin_temperature() + 0.01 * self.noise.normal(),
            AMBIENT_TEMPERATURE => self.body.ambient_temperature() + 0.02 * self.noise.normal(),
            EDA if worn => match player.and_then(|player| player.conductance(utc_us)) {
                Some(recorded) => recorded,
                None => (self.body.conductance() + (0.002 + 0.02 * moving) * self.noise.normal()).max(0.0),
            },
            SPO2 if contact => (self.body.oxygen_saturation() + 0.2 * self.noise.normal()).min(100.0),
            ACTIVITY_COUNTS => {
                let simulated = self.body.take_counts();
                f64::from(player.and_then(|player| player.take_counts(utc_us)).unwrap_or(simulated))
            }
            BATTERY => self.battery.percent(utc_us),
            PPG if contact => 60_000.0 + 9_000.0 * self.body.pulse(utc_us) + 40.0 * self.noise.normal(),
            ACCELERATION => {
                let values = self.body.acceleration(utc_us).map(|g| steps(ACCELERATION, g));
                push(out, channel, ticks, &values);
                return;
            }
            // Without skin under the sensor there is nothing to measure.
            _ => return,
        };
        push(out, channel, ticks, &[steps(channel, value)]);
    }
}

fn steps(channel: ChannelId, value: f64) -> i32 {
    channel::by_id(channel).expect("the plan's channels are registered").quantise(value)
}

fn push(out: &mut Vec<Happening>, channel: ChannelId, ticks: Ticks, values: &[i32]) {
    let mut three = [0; 3];
    three[..values.len()].copy_from_slice(values);
    out.push(Happening::Sample { channel, ticks, values: three, components: values.len() as u8 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::BodySettings;

    const START_US: i64 = 1_760_000_000_000_000;

    fn signals(seed: u64) -> (Signals, Crystal) {
        let settings =
            BodySettings { seed, utc_offset_min: 0, hot_flash_every_us: None, watched_from_us: START_US };
        (Signals::new(seed, Body::new(&settings, START_US), None), Crystal::new(seed, None, START_US))
    }

    fn produced(seed: u64, plan: Plan, cuts: &[u64]) -> Vec<Happening> {
        let (mut signals, crystal) = signals(seed);
        let mut out = Vec::new();
        for pair in cuts.windows(2) {
            signals.produce(plan, &crystal, Ticks(pair[0]), Ticks(pair[1]), &mut out);
        }
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_samples_and_they_come_in_the_order_of_time() {
        let cuts: Vec<u64> = (0..=1_200).map(|step| step * 250).collect();
        let plan = Plan { ppg: true, acceleration: true, ..Plan::REFERENCE };
        let samples = produced(11, plan, &cuts);
        assert_eq!(samples, produced(11, plan, &cuts));
        assert_ne!(samples, produced(12, plan, &cuts));
        assert!(samples.windows(2).all(|pair| pair[0].ticks() <= pair[1].ticks()));
    }

    #[test]
    fn the_reference_plan_gives_about_eight_samples_a_second() {
        let cuts: Vec<u64> = (0..=2_400).map(|step| step * 250).collect();
        let count = produced(4, Plan::default(), &cuts).len() as f64 / 600.0;
        assert!((7.0..9.5).contains(&count), "{count} a second");
    }

    #[test]
    fn off_the_body_only_the_air_the_battery_and_motion_are_measured() {
        let (mut signals, crystal) = signals(2);
        signals.body().set_worn(false);
        let mut out = Vec::new();
        signals.produce(Plan::default(), &crystal, Ticks(0), Ticks(60_000), &mut out);
        assert!(out.contains(&Happening::Worn { ticks: Ticks(0), on: false }));
        let allowed = [AMBIENT_TEMPERATURE, BATTERY, ACTIVITY_COUNTS];
        assert!(out.iter().all(|happening| match happening {
            Happening::Sample { channel, .. } => allowed.contains(channel),
            Happening::Worn { .. } => true,
        }));
    }
}
