//! How far a sample is to be believed, from 0 to 1.
//!
//! | what | factor |
//! |---|---|
//! | outside what is physically possible ([`channel::Channel::range`]) | 0 |
//! | measured on skin while the wearable is not worn | 0 |
//! | changes faster than a body or its sensor can | 0.5 |
//! | of light or skin conductance, in half a minute of moderate (vigorous) motion | 0.8 (0.5) |
//!
//! Factors multiply. The radio link has none: a frame that was damaged on its way fails its checksum and is asked for
//! again, so what is stored is what was measured, however bad the link. Samples of quality 0 stay out of aggregates.

use kinara_protocol::channel::{
    self, ACTIVITY_COUNTS, ChannelId, EDA, HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE, SPO2,
};

use crate::batch::Sample;

/// Most that a value changes in a second, in the channel's unit. EDA: Kleckner et al. 2018, IEEE Trans. Biomed. Eng.
/// 65(7). The others are generous: what comes above is the sensor's doing. Intervals between beats have a correction of
/// their own (crates/hrv).
const FASTEST: [(ChannelId, f64); 4] =
    [(HEART_RATE, 30.0), (SKIN_TEMPERATURE, 1.0), (EDA, 10.0), (SPO2, 5.0)];
/// Two samples further apart say nothing about each other, µs.
const APART_US: i64 = 10_000_000;
const TOO_FAST: f32 = 0.5;

/// What motion disturbs.
const BY_MOTION: [ChannelId; 4] = [HEART_RATE, RR_INTERVAL, EDA, SPO2];
/// How long an activity sample counts, up to its own time, µs.
const ACTIVITY_US: i64 = 30_000_000;
/// Counts in 30 s from which on motion is moderate, and vigorous: half of Freedson et al. 1998 (counts a minute).
const MOTION: [(f64, f32); 2] = [(2_862.5, 0.5), (976.0, 0.8)];

/// What is measured on skin, and means nothing off it.
const ON_SKIN: [ChannelId; 5] = [HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE, EDA, SPO2];

/// Scalars have numbers below this.
const SCALARS: usize = 16;

fn is_in(set: &[ChannelId], kind: i16) -> bool {
    set.iter().any(|id| id.0 as i16 == kind)
}

/// Whether a channel's samples mean nothing while the wearable is not worn.
pub(crate) fn is_on_skin(kind: i16) -> bool {
    is_in(&ON_SKIN, kind)
}

/// Judges a device's samples, those of each channel in the order of time, by what is known of them alone.
pub(crate) fn judge(samples: &mut [Sample]) {
    let mut fastest = [f64::INFINITY; SCALARS];
    for (id, rate) in FASTEST {
        fastest[usize::from(id.0)] = rate;
    }
    let mut last: [Option<(i64, f64)>; SCALARS] = [None; SCALARS];
    let mut active: Vec<(i64, f32)> = Vec::new();
    for sample in samples.iter_mut() {
        let Some(place) = usize::try_from(sample.kind).ok().filter(|&kind| kind < SCALARS) else { continue };
        if sample.quality > 0.0
            && let Some((before_us, before)) = last[place].replace((sample.utc_us, sample.value))
        {
            let elapsed_us = sample.utc_us - before_us;
            let most = fastest[place] * (elapsed_us as f64 / 1e6).max(1.0);
            if (0..=APART_US).contains(&elapsed_us) && (sample.value - before).abs() > most {
                sample.quality *= TOO_FAST;
            }
        }
        if sample.kind == ACTIVITY_COUNTS.0 as i16
            && let Some(&(_, factor)) = MOTION.iter().find(|(counts, _)| sample.value >= *counts)
        {
            active.push((sample.utc_us, factor));
        }
    }
    if active.is_empty() {
        return;
    }
    // By their ends: of those that end after a sample, the first one is the only one to ask.
    active.sort_by_key(|(until_us, _)| *until_us);
    for sample in samples.iter_mut().filter(|sample| is_in(&BY_MOTION, sample.kind)) {
        let next = active.partition_point(|(until_us, _)| *until_us <= sample.utc_us);
        if let Some((until_us, factor)) = active.get(next)
            && until_us.saturating_sub(ACTIVITY_US) <= sample.utc_us
        {
            sample.quality *= factor;
        }
    }
}

/// The range's part in the quality of a value of a channel.
pub(crate) fn of_range(known: Option<&'static channel::Channel>) -> impl Fn(f64) -> f32 {
    let (low, high) = known.map_or((f64::NEG_INFINITY, f64::INFINITY), |channel| channel.range);
    move |value| if low <= value && value <= high { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: ChannelId, second: i64, value: f64) -> Sample {
        Sample { utc_us: second * 1_000_000, value, quality: 1.0, kind: kind.0 as i16, index: 0 }
    }

    fn qualities(mut samples: Vec<Sample>) -> Vec<f32> {
        judge(&mut samples);
        samples.iter().map(|sample| sample.quality).collect()
    }

    #[test]
    fn a_jump_that_no_heart_makes_is_believed_by_half_and_what_follows_it_wholly() {
        let jump =
            [70.0, 71.0, 120.0, 121.0].iter().zip(0..).map(|(&v, s)| sample(HEART_RATE, s, v)).collect();
        assert_eq!(qualities(jump), [1.0, 1.0, 0.5, 1.0]);
        // The same difference over five seconds is a person who stands up.
        assert_eq!(qualities(vec![sample(HEART_RATE, 0, 70.0), sample(HEART_RATE, 5, 120.0)]), [1.0, 1.0]);
        // After a hole nothing is said.
        assert_eq!(qualities(vec![sample(HEART_RATE, 0, 70.0), sample(HEART_RATE, 60, 190.0)]), [1.0, 1.0]);
    }

    #[test]
    fn an_impossible_value_does_not_make_its_successor_doubtful() {
        let mut samples =
            vec![sample(EDA, 0, 2.0), sample(EDA, 1, 900.0), sample(EDA, 2, 2.1), sample(EDA, 3, 30.0)];
        samples[1].quality = 0.0;
        assert_eq!(qualities(samples), [1.0, 0.0, 1.0, 0.5]);
    }

    #[test]
    fn motion_disturbs_light_and_conductance_for_its_half_minute_and_not_temperature() {
        let samples = vec![
            sample(HEART_RATE, 0, 70.0),
            sample(HEART_RATE, 40, 90.0),
            sample(SKIN_TEMPERATURE, 40, 34.0),
            sample(EDA, 59, 2.0),
            sample(ACTIVITY_COUNTS, 60, 1_000.0),
            sample(HEART_RATE, 80, 150.0),
            sample(ACTIVITY_COUNTS, 90, 3_000.0),
            sample(HEART_RATE, 90, 150.0),
        ];
        assert_eq!(qualities(samples), [1.0, 0.8, 1.0, 0.8, 1.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn as_many_samples_of_motion_as_of_anything_else_take_their_sum_and_not_their_product() {
        // By the product 4·10^10 comparisons, minutes; by the sum some milliseconds.
        const MANY: i64 = 200_000;
        let mut samples: Vec<Sample> = (0..MANY).map(|_| sample(ACTIVITY_COUNTS, 0, 3_000.0)).collect();
        samples.extend((0..MANY).map(|_| sample(HEART_RATE, 100, 70.0)));
        let began = std::time::Instant::now();
        assert_eq!(qualities(samples), vec![1.0; 2 * MANY as usize]);
        assert!(began.elapsed().as_secs() < 20);
    }
}
