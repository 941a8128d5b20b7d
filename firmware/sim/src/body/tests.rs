use super::*;
use proptest::prelude::*;

const START_US: i64 = 1_760_000_000_000_000;
const NOON_US: i64 = 1_759_982_400_000_000 + 43_200_000_000;

fn settings(seed: u64) -> BodySettings {
    BodySettings { seed, utc_offset_min: 0, hot_flash_every_us: None, watched_from_us: START_US }
}

fn minutes(body: &mut Body, minutes: u32) {
    for _ in 0..minutes * 240 {
        body.step();
    }
}

fn signature(body: &mut Body) -> Vec<u64> {
    let mut seen = Vec::new();
    for _ in 0..4_000 {
        body.step();
        let now = body.now_us();
        while let Some(beat) = body.take_beat(now) {
            seen.extend([beat.utc_us as u64, beat.rr_ms.to_bits()]);
        }
        let values = [
            body.heart_rate(),
            body.conductance(),
            body.skin_temperature(),
            body.ambient_temperature(),
            body.oxygen_saturation(),
            body.acceleration(now)[1],
        ];
        seen.extend(values.map(f64::to_bits));
        seen.push(u64::from(body.take_counts()));
    }
    seen
}

#[test]
fn the_same_seed_gives_the_same_signals_and_another_seed_others() {
    let first = signature(&mut Body::new(&settings(5), START_US));
    assert_eq!(first, signature(&mut Body::new(&settings(5), START_US)));
    assert_ne!(first, signature(&mut Body::new(&settings(6), START_US)));
}

#[test]
fn a_hot_flash_raises_conductance_by_two_microsiemens_in_thirty_seconds_and_falls_back_over_minutes() {
    for seed in 0..20 {
        let mut body = Body::new(&settings(seed), NOON_US);
        minutes(&mut body, 5);
        let mut calm = body.clone();
        let before = body.conductance();
        body.start_hot_flash();
        let mut highest: f64 = 0.0;
        for _ in 0..120 {
            body.step();
            calm.step();
            highest = highest.max(body.conductance() - calm.conductance());
        }
        assert!(highest >= 2.0, "seed {seed}: {highest} above {before}");
        let mut warmer: f64 = 0.0;
        let mut faster: f64 = 0.0;
        for _ in 0..5 * 240 {
            body.step();
            calm.step();
            warmer = warmer.max(body.skin_temperature() - calm.skin_temperature());
            faster = faster.max(body.heart_rate() - calm.heart_rate());
        }
        assert!((0.4..1.6).contains(&warmer), "seed {seed}: {warmer} K");
        assert!((4.0..40.0).contains(&faster), "seed {seed}: {faster} bpm");
        minutes(&mut body, 15);
        minutes(&mut calm, 15);
        assert!(body.conductance() - calm.conductance() < 0.5, "seed {seed}: it is over");
    }
}

#[test]
fn without_a_hot_flash_conductance_does_not_rise_like_one() {
    for seed in 0..8 {
        let mut body = Body::new(&settings(seed), NOON_US);
        let mut window = std::collections::VecDeque::new();
        for _ in 0..2 * 3_600 * 4 {
            body.step();
            window.push_back(body.conductance());
            if window.len() > 120 {
                let oldest = window.pop_front().expect("it holds 121");
                assert!(body.conductance() - oldest < 2.0, "seed {seed}");
            }
        }
    }
}

#[test]
fn the_heart_is_slower_at_night_than_by_day() {
    let mean = |body: &mut Body| {
        let mut sum = 0.0;
        for _ in 0..2 * 3_600 * 4 {
            body.step();
            sum += body.heart_rate();
        }
        sum / (2.0 * 3_600.0 * 4.0)
    };
    for seed in 0..6 {
        let night = mean(&mut Body::new(&settings(seed), NOON_US - 10 * 3_600_000_000));
        let day = mean(&mut Body::new(&settings(seed), NOON_US + 4 * 3_600_000_000));
        assert!(night + 4.0 < day, "seed {seed}: {night} at night, {day} by day");
    }
}

#[test]
fn beats_vary_with_breathing_and_with_mayer_waves_at_rest() {
    let mut body = Body::new(&settings(3), NOON_US - 9 * 3_600_000_000);
    let mut intervals = Vec::new();
    for _ in 0..1_200 {
        body.step();
        while let Some(beat) = body.take_beat(body.now_us()) {
            intervals.push(beat.rr_ms);
        }
    }
    let squares: f64 = intervals.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum();
    let rmssd = (squares / (intervals.len() - 1) as f64).sqrt();
    assert!((12.0..120.0).contains(&rmssd), "{rmssd} ms");
}

#[test]
fn it_comes_off_a_few_times_a_day_but_not_while_people_watch() {
    let mut off = 0u64;
    for seed in 0..10 {
        let mut body = Body::new(&settings(seed), START_US);
        for step in 0..86_400 * 4 {
            body.step();
            if !body.is_worn() {
                off += 1;
                assert!(step > 30 * 240, "seed {seed}");
            }
        }
    }
    let hours_a_day = off as f64 / 4.0 / 3_600.0 / 10.0;
    assert!((0.2..4.0).contains(&hours_a_day), "{hours_a_day}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_signal_stays_physically_possible(seed: u64, hour in 0i64..24, flashes: bool) {
        let settings = BodySettings {
            hot_flash_every_us: flashes.then_some(300_000_000),
            ..settings(seed)
        };
        let mut body = Body::new(&settings, START_US + hour * 3_600_000_000);
        for _ in 0..3_600 * 4 {
            body.step();
            prop_assert!((35.0..220.0).contains(&body.heart_rate()), "{} bpm", body.heart_rate());
            prop_assert!((0.1..40.0).contains(&body.conductance()));
            prop_assert!((15.0..40.0).contains(&body.skin_temperature()));
            prop_assert!((85.0..=100.0).contains(&body.oxygen_saturation()));
            while let Some(beat) = body.take_beat(body.now_us()) {
                prop_assert!((280.0..2_010.0).contains(&beat.rr_ms));
            }
        }
    }
}
