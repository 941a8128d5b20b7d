use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::motion::{Motion, ONE_G};
use super::pulse::{self, Beat, Pulse};
use super::rhythm::Rhythm;
use super::skin::{Conductance, FULL_SCALE, RANGES_KOHM, Skin};
use super::temperature::centidegrees;
use super::wear::{SKIN_LEVEL, Second, Wear};

fn recording(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/recordings").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A small generator of noise, so that a test is the same everywhere.
struct Noise(u64);

impl Noise {
    /// Between −1 and 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A MAX30102's infrared counts of a heart: each beat a systolic wave and a dicrotic one, upon breath and noise. The
/// places of the systolic peaks beside them, seconds.
fn heart(seconds: f64, interval: impl Fn(f64) -> f64, noise: f64) -> (Vec<i32>, Vec<f64>) {
    let mut peaks = Vec::new();
    let mut at = 0.4;
    while at < seconds {
        peaks.push(at);
        at += interval(at);
    }
    let mut random = Noise(7);
    let count = (seconds * f64::from(pulse::RATE_HZ)) as usize;
    let counts = (0..count).map(|sample| {
        let time = sample as f64 / f64::from(pulse::RATE_HZ);
        let wave: f64 = peaks
            .iter()
            .map(|peak| time - peak)
            .filter(|since| (-0.5..1.0).contains(since))
            .map(|since| (-(since / 0.09).powi(2)).exp() + 0.35 * (-((since - 0.3) / 0.11).powi(2)).exp())
            .sum();
        let breath = (core::f64::consts::TAU * time / 4.3).sin();
        (90_000.0 + 1_200.0 * wave + 500.0 * breath + noise * random.next()) as i32
    });
    (counts.collect(), peaks)
}

fn beats(counts: &[i32]) -> Vec<Beat> {
    let mut pulse = Pulse::default();
    counts.iter().filter_map(|count| pulse.sample(*count)).collect()
}

#[test]
fn the_heart_rate_is_heartpys_in_the_windows_that_heartpy_accepts_whole() {
    let text = recording("heartpy/ppg.txt");
    let mut lines = text.lines();
    let rate: f64 = lines.next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let counts: Vec<i32> = lines.map(|line| line.parse().unwrap()).collect();
    let reference = recording("heartpy/reference.txt");
    let windows: Vec<(usize, f64)> = reference
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[2] == "0").then(|| (fields[0].parse().unwrap(), fields[1].parse().unwrap()))
        })
        .collect();
    assert!(windows.len() >= 50, "{} windows", windows.len());
    let (mut pulse, mut rhythm, mut taken) = (Pulse::default(), Rhythm::default(), 0);
    let (mut within, mut far) = (0, Vec::new());
    for (window, wanted) in &windows {
        // The recording's clock is not the sensor's: a second of it has 100.42 samples, one of ours 100.
        let end = ((window + 1) as f64 * 10.0 * rate) as usize;
        for count in &counts[taken..(end + pulse::LATENCY).min(counts.len())] {
            if let Some(beat) = pulse.sample(*count) {
                rhythm.beat(beat);
            }
        }
        taken = (end + pulse::LATENCY).min(counts.len());
        let found = rhythm.judged(end as u64 * 10).map(|it| f64::from(it.tenths) / 10.0 * rate / 100.0);
        match found {
            Some(found) if (found - wanted).abs() <= 2.0 => within += 1,
            _ => far.push((*window, *wanted, found)),
        }
    }
    let share = f64::from(within) / windows.len() as f64;
    std::println!("{within} of {} windows within 2 beats a minute; not: {far:?}", windows.len());
    assert!(share >= 0.95, "{:.1} %: {far:?}", share * 100.0);
}

#[test]
fn beats_are_placed_to_six_milliseconds_and_none_is_missed_or_invented() {
    // A heart that goes from 60 to 150 a minute and back, with the arrhythmia of breathing.
    let interval = |at: f64| 60.0 / (105.0 - 45.0 * (at / 20.0).cos()) + 0.02 * (at / 0.7).sin();
    let (counts, peaks) = heart(120.0, interval, 25.0);
    let found: Vec<f64> = beats(&counts).iter().map(|beat| beat.at as f64 / 25_600.0).collect();
    let inside = |at: &&f64| (3.0..118.0).contains(*at);
    let wanted: Vec<f64> = peaks.iter().filter(inside).copied().collect();
    let found: Vec<f64> = found.iter().filter(inside).copied().collect();
    assert_eq!(found.len(), wanted.len());
    // The filter delays all beats alike; what counts is how far they differ.
    let delays: Vec<f64> = found.iter().zip(&wanted).map(|(found, wanted)| found - wanted).collect();
    let mean = delays.iter().sum::<f64>() / delays.len() as f64;
    let square = delays.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>() / delays.len() as f64;
    assert!(square.sqrt() < 0.006, "{:.4} s", square.sqrt());
    assert!(mean.abs() < 0.06, "{mean:.3} s");
}

#[test]
fn while_the_arm_moves_no_heart_rate_is_told() {
    let (mut counts, _) = heart(60.0, |_| 0.8, 25.0);
    // A walk from the 20th to the 40th second shakes the sensor twice a second, harder than the heart does.
    for (sample, count) in counts.iter_mut().enumerate().skip(2_000).take(2_000) {
        *count += (6_000.0 * (sample as f64 / 50.0 * core::f64::consts::TAU).sin()) as i32;
    }
    let (mut pulse, mut rhythm) = (Pulse::default(), Rhythm::default());
    let (mut told, mut believed_shaking) = (Vec::new(), 0);
    for (sample, count) in counts.iter().enumerate() {
        let now_ms = sample as u64 * 10;
        if (2_000..4_000).contains(&sample) {
            rhythm.moves(now_ms);
        }
        if let Some(beat) = pulse.sample(*count) {
            rhythm.beat(beat);
        }
        if now_ms.is_multiple_of(1_000)
            && let Some(rate) = rhythm.rate(now_ms)
        {
            told.push((now_ms, rate.tenths));
            believed_shaking += usize::from((22_000..40_000).contains(&now_ms));
        }
    }
    assert_eq!(believed_shaking, 0);
    assert!(told.len() > 20, "{} seconds with a heart rate", told.len());
    assert!(told.iter().all(|(_, tenths)| (735..=765).contains(tenths)), "{told:?}");
}

#[test]
fn a_lying_sensor_has_no_heart_rate() {
    let mut random = Noise(1);
    let counts: Vec<i32> = (0..6_000).map(|_| 5_000 + (400.0 * random.next()) as i32).collect();
    let mut rhythm = Rhythm::default();
    let mut told = 0;
    let mut pulse = Pulse::default();
    for (sample, count) in counts.iter().enumerate() {
        if let Some(beat) = pulse.sample(*count) {
            rhythm.beat(beat);
        }
        told += usize::from(
            sample % 100 == 0 && rhythm.rate(sample as u64 * 10).is_some_and(|it| it.quality >= 90),
        );
    }
    assert!(told <= 6, "noise was believed in {told} of 60 seconds");
}

#[test]
fn the_same_counts_give_the_same_beats_on_every_processor() {
    let text = recording("heartpy/ppg.txt");
    let counts: Vec<i32> = text.lines().skip(1).take(20_000).map(|line| line.parse().unwrap()).collect();
    // FNV-1a over all beats: a change of the algorithm changes it, a change of the processor must not.
    let digest = beats(&counts).iter().fold(0xcbf2_9ce4_8422_2325u64, |digest, beat| {
        (digest ^ beat.at ^ ((beat.height as u64) << 40)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(digest, GOLDEN, "{digest:#018x}");
}

const GOLDEN: u64 = 0x13e1_dabb_1563_a550;

#[test]
fn a_register_of_a_tmp117_becomes_hundredths_of_a_degree() {
    for (register, wanted) in [(0x0c80, 2_500), (0x1000, 3_200), (-0x0c80, -2_500), (1, 1), (0, 0)] {
        assert_eq!(centidegrees(register), Some(wanted), "{register:#06x}");
    }
    assert_eq!(centidegrees(i16::MIN), None, "not converted yet");
    assert_eq!(centidegrees(i16::MAX), None, "256 °C is a broken wire");
}

/// What the converter reads of a conductance in the range in use.
fn converted(skin: &Skin, nanosiemens: f64) -> u16 {
    let microvolts = nanosiemens * f64::from(RANGES_KOHM[skin.range()]) / 2.0;
    (microvolts / 3_600_000.0 * f64::from(FULL_SCALE)).round().min(f64::from(FULL_SCALE)) as u16
}

#[test]
fn conductance_is_right_to_half_a_percent_in_every_range_and_settles_after_a_change() {
    let mut skin = Skin::default();
    let mut ranges = Vec::new();
    for step in 0..2_000 {
        // From 0.3 to 30 µS and back, as sweat comes and goes.
        let nanosiemens =
            300.0 * 100f64.powf((1.0 - (f64::from(step) / 1_000.0 * core::f64::consts::PI).cos()) / 2.0);
        let range = skin.range();
        match skin.sample(converted(&skin, nanosiemens)) {
            Conductance::Nanosiemens(told) => {
                let step_ns = 2.0 * 3_600_000.0 / 4_095.0 / f64::from(RANGES_KOHM[range]);
                let off = (f64::from(told) - nanosiemens).abs();
                assert!(off <= nanosiemens * 0.005 + step_ns, "{told} for {nanosiemens:.1}");
            }
            Conductance::Settling => {}
            other => panic!("{other:?} at {nanosiemens:.1} nS"),
        }
        if ranges.last() != Some(&skin.range()) {
            ranges.push(skin.range());
        }
    }
    assert_eq!(ranges, [0, 1, 2, 1, 0], "each border is crossed once each way");
    assert_eq!(skin.sample(3), Conductance::Open);
}

#[test]
fn a_short_is_told_as_saturated_and_not_as_a_value() {
    let mut skin = Skin::default();
    let last = (0..20).map(|_| skin.sample(FULL_SCALE)).last();
    assert_eq!(last, Some(Conductance::Saturated));
}

/// An arm at `time` seconds that swings twice a second by this many g.
fn arm(time: f64, swing: f64) -> [i16; 3] {
    let g = f64::from(ONE_G) * (1.0 + swing * (core::f64::consts::TAU * 2.0 * time).sin());
    [0.6, 0.0, 0.8].map(|share: f64| (g * share) as i16)
}

#[test]
fn steps_of_a_walk_are_counted_and_a_still_arm_has_none() {
    let mut motion = Motion::default();
    let (mut steps, mut moving, mut activity) = ([0; 3], [0; 3], Vec::new());
    // Still, walking at two steps a second, still: 60 s each.
    for sample in 0..26 * 180u32 {
        let time = f64::from(sample) / 26.0;
        let part = (time / 60.0) as usize;
        let moved = motion.sample(arm(time, if part == 1 { 0.35 } else { 0.002 }));
        steps[part] += moved.steps;
        moving[part] += u32::from(moved.moving);
        activity.extend(moved.activity);
    }
    assert_eq!((steps[0], moving[0]), (0, 0));
    assert!((114..=120).contains(&steps[1]), "{} of 120 steps", steps[1]);
    assert!(steps[2] <= 4 && moving[2] < 26, "{steps:?} {moving:?}");
    assert!(moving[1] > 26 * 57, "{moving:?}");
    // ENMO of a sine: its positive half, swing / π on average.
    let wanted = 350.0 / core::f64::consts::PI * 30.0;
    assert_eq!(activity.len(), 6);
    assert!(
        activity[0] < 30 && (f64::from(activity[3]) - wanted).abs() < wanted * 0.05,
        "{activity:?}, {wanted:.0}"
    );
}

#[test]
fn it_is_worn_while_light_comes_back_and_not_on_a_table() {
    let mut wear = Wear::default();
    let skin = Second { light: SKIN_LEVEL + 1, warmer: Some(600), moved: true };
    let air = Second { light: 2_000, warmer: Some(0), moved: false };
    let table = Second { light: SKIN_LEVEL + 1, warmer: Some(10), moved: false };
    assert_eq!([skin; 3].map(|seen| wear.second(seen)), [false, false, true]);
    assert!([air; 4].iter().all(|seen| wear.second(*seen)), "a turned wrist changes nothing");
    assert!(wear.second(skin) && [air; 5].map(|seen| wear.second(seen))[4..] == [false]);
    assert!([skin; 3].map(|seen| wear.second(seen))[2]);
    let on_table = (0..400).position(|_| !wear.second(table));
    assert_eq!(on_table, Some(299), "a warm and still table is one after five minutes");
}

proptest! {
    #[test]
    fn whatever_a_sensor_says_nothing_overflows_and_beats_come_in_order(
        counts in proptest::collection::vec(any::<i32>(), 0..3_000),
        axes in proptest::collection::vec(any::<[i16; 3]>(), 0..3_000),
        conversions in proptest::collection::vec(any::<u16>(), 0..500),
    ) {
        let (mut pulse, mut rhythm, mut last) = (Pulse::default(), Rhythm::default(), 0);
        for (sample, count) in counts.iter().enumerate() {
            if let Some(beat) = pulse.sample(*count) {
                prop_assert!(beat.at >= last + 6_400 || last == 0);
                prop_assert!(beat.at <= (sample as u64) << pulse::FRACTION);
                last = beat.at;
                rhythm.beat(beat);
            }
            if let Some(rate) = rhythm.judged(sample as u64 * 10) {
                prop_assert!((300..=2_400).contains(&rate.tenths) && rate.quality <= 100);
            }
        }
        let mut motion = Motion::default();
        let steps: u32 = axes.iter().map(|axes| motion.sample(*axes).steps).sum();
        prop_assert!(steps as usize <= axes.len() / 6 + 4);
        let mut skin = Skin::default();
        for conversion in conversions {
            if let Conductance::Nanosiemens(value) = skin.sample(conversion) {
                prop_assert!((20..=72_000).contains(&value));
            }
        }
    }

    #[test]
    fn every_register_gives_a_temperature_that_the_part_measures(register: i16) {
        if let Some(value) = centidegrees(register) {
            prop_assert!((-5_500..=15_000).contains(&value));
            prop_assert!((f64::from(value) - f64::from(register) * 0.781_25).abs() <= 0.5);
        }
    }
}
