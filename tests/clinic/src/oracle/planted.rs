//! Violations planted in clean evidence: each must be found, and nothing else.

use uuid::Uuid;

use super::check::{check, step};
use super::evidence::{Allowance, Assignment, Boundary, Evidence, FrameTime, Gap, Reading, Wearable};
use super::log::{Anchor, Sample, Value, WearableLog};
use super::verdict::{Allowed, Kind, Verdict};

const EPOCH: u64 = 0x00ab_cdef_0000_0001;
const ORIGIN_US: i64 = 1_790_000_000_000_000;
const PER_FRAME: u64 = 20;
const TENANT: Uuid = Uuid::from_u128(1);
const USER: Uuid = Uuid::from_u128(2);
const OTHER: Uuid = Uuid::from_u128(3);
const DEVICE: Uuid = Uuid::from_u128(4);

/// A hundred seconds of heart rate and EDA of one wearable whose crystal is 20 ppm fast, all stored.
fn clean() -> Evidence {
    let mut log = WearableLog { boots: vec![(EPOCH, ORIGIN_US)], ..WearableLog::default() };
    let mut readings = Vec::new();
    let fit = FrameTime {
        wearable: 0,
        epoch: EPOCH,
        seqs: vec![(0, 99)],
        ref_ticks: 50_000,
        ref_utc_us: ORIGIN_US + 49_999_000,
        rate_ppb: -20_000,
        uncertainty_us: 3_000,
        growth_ppb: 5_000,
        time_uncertain: false,
    };
    for second in 0..100_u64 {
        for (place, channel) in [(0, 1), (1, 5)] {
            let ticks = second * 1000 + place * 7;
            let value = 700 + second as i32 + i32::from(channel);
            let utc_us = ORIGIN_US + (ticks as f64 * 1000.0 * (1.0 - 20e-6)) as i64;
            log.samples.push(Sample { epoch: EPOCH, channel, ticks, value: Value::from(value), utc_us });
            let from_ref = (ticks as f64 - fit.ref_ticks as f64) * 1000.0 * (1.0 - 20e-6);
            let (seq, index) = ((second / PER_FRAME + 1) as u32, (second % PER_FRAME) * 2 + place);
            readings.push(Reading {
                wearable: 0,
                device: DEVICE,
                tenant: TENANT,
                user: USER,
                epoch: EPOCH,
                seq,
                index,
                channel,
                time_us: fit.ref_utc_us + from_ref as i64,
                offset_ticks: 0,
                value: [f64::from(value) * step(channel), 0.0, 0.0, 0.0],
                components: 1,
            });
        }
    }
    for frame in 0..5_u64 {
        let (first, last) = (frame * PER_FRAME * 1000, (frame + 1) * PER_FRAME * 1000 - 993);
        log.frames.insert((EPOCH, frame as u32 + 1), (first, last));
    }
    log.anchors = vec![Anchor { epoch: EPOCH, ticks: 0 }, Anchor { epoch: EPOCH, ticks: 99_999 }];
    let plan = vec![Assignment { from: Boundary::Start, tenant: TENANT, user: USER }];
    let hardware = "kinara:00000000000000aa".to_owned();
    let wearable = Wearable {
        hardware,
        log,
        plan,
        allowances: vec![],
        sync_bound_us: 20_000,
        scenario: "planted".to_owned(),
        fresh_from_us: None,
    };
    Evidence {
        wearables: vec![wearable],
        readings,
        frame_times: vec![fit],
        gaps: vec![],
        ..Evidence::default()
    }
}

fn only(verdict: &Verdict, kind: Kind, count: u64) {
    let kinds: Vec<_> = verdict.findings.keys().collect();
    assert_eq!(kinds, [&kind], "{verdict}");
    assert_eq!(verdict.of(kind), count, "{verdict}");
}

fn second_of(sample: &Sample) -> i64 {
    (sample.utc_us - ORIGIN_US + 500_000) / 1_000_000
}

/// Takes the readings of these frames out of the database.
fn lose_frames(evidence: &mut Evidence, seqs: std::ops::RangeInclusive<u32>) {
    evidence.readings.retain(|row| !seqs.contains(&row.seq));
}

fn gap(reason: &str, seqs: Option<(u32, u32)>, ticks: Option<(u64, u64)>) -> Gap {
    Gap { wearable: 0, epoch: EPOCH, seqs: seqs.map(|range| vec![range]), ticks, reason: reason.to_owned() }
}

#[test]
fn clean_evidence_passes() {
    let verdict = check(&clean());
    assert!(verdict.passed(), "{verdict}");
    assert_eq!((verdict.produced, verdict.stored, verdict.frames), (200, 200, 5));
}

#[test]
fn a_run_in_which_nothing_was_produced_proves_nothing() {
    let verdict = check(&Evidence::default());
    only(&verdict, Kind::Nothing, 1);
    let mut evidence = clean();
    let mut silent = evidence.wearables[0].clone();
    silent.hardware = "kinara:00000000000000bb".to_owned();
    silent.log = WearableLog::default();
    evidence.wearables.push(silent);
    let verdict = check(&evidence);
    only(&verdict, Kind::Nothing, 1);
    assert!(verdict.findings[&Kind::Nothing][0].contains("bb produced nothing"), "{verdict}");
}

#[test]
fn a_run_in_which_all_was_lost_with_leave_proves_nothing() {
    let mut evidence = clean();
    evidence.wearables[0].allowances =
        vec![Allowance::GatewayLost { from_us: 0, to_us: i64::MAX, epoch: EPOCH, seq: 99 }];
    lose_frames(&mut evidence, 1..=5);
    evidence.gaps.push(gap("gateway_lost", Some((0, 5)), None));
    only(&check(&evidence), Kind::Nothing, 1);
}

#[test]
fn after_the_faults_a_fresh_reading_must_come_through() {
    let mut evidence = clean();
    evidence.wearables[0].fresh_from_us = Some(ORIGIN_US + 80_000_000);
    assert!(check(&evidence).passed());
    evidence.wearables[0].fresh_from_us = Some(ORIGIN_US + 100_000_000);
    let verdict = check(&evidence);
    only(&verdict, Kind::Stuck, 1);
    assert!(verdict.findings[&Kind::Stuck][0].starts_with("planted: "), "{verdict}");
    let mut evidence = clean();
    evidence.wearables[0].fresh_from_us = Some(ORIGIN_US + 80_000_000);
    evidence.wearables[0].allowances =
        vec![Allowance::Reset { at_us: ORIGIN_US + 100_000_000, frame_age_us: 20_500_000 }];
    lose_frames(&mut evidence, 5..=5);
    evidence.gaps.push(gap("reset", None, Some((79_008, u64::MAX))));
    only(&check(&evidence), Kind::Stuck, 1);
}

#[test]
fn a_missing_reading_is_lost() {
    let mut evidence = clean();
    evidence.readings.remove(17);
    only(&check(&evidence), Kind::Lost, 1);
}

#[test]
fn a_gap_of_the_product_does_not_excuse_a_loss_that_the_fault_log_does_not_know() {
    let mut evidence = clean();
    lose_frames(&mut evidence, 2..=2);
    evidence.gaps.push(gap("overflow", Some((2, 2)), None));
    only(&check(&evidence), Kind::Lost, 40);
}

#[test]
fn a_row_stored_twice_is_a_double() {
    let mut evidence = clean();
    evidence.readings.push(evidence.readings[3]);
    only(&check(&evidence), Kind::Double, 1);
}

#[test]
fn a_sample_stored_under_another_key_is_a_double() {
    let mut evidence = clean();
    let mut again = evidence.readings[3];
    again.index += 100;
    evidence.readings.push(again);
    only(&check(&evidence), Kind::Double, 1);
}

#[test]
fn a_frame_stored_again_for_another_wearer_is_a_double() {
    let mut evidence = clean();
    let again: Vec<_> = evidence.readings.iter().filter(|row| row.seq == 2).copied().collect();
    evidence.readings.extend(again.iter().map(|row| Reading { user: OTHER, device: OTHER, ..*row }));
    only(&check(&evidence), Kind::Double, 40);
}

#[test]
fn a_reading_of_somebody_else_is_found() {
    let mut evidence = clean();
    evidence.readings[9].user = OTHER;
    only(&check(&evidence), Kind::WrongWearer, 1);
    let mut evidence = clean();
    evidence.readings[9].tenant = OTHER;
    only(&check(&evidence), Kind::WrongTenant, 1);
}

#[test]
fn a_hand_over_is_judged_by_its_frame() {
    let mut evidence = clean();
    let from = Boundary::Frame { epoch: EPOCH, seq: 3 };
    evidence.wearables[0].plan.push(Assignment { from, tenant: TENANT, user: OTHER });
    only(&check(&evidence), Kind::WrongWearer, 120);
    for row in evidence.readings.iter_mut().filter(|row| row.seq >= 3) {
        row.user = OTHER;
    }
    assert!(check(&evidence).passed());
}

#[test]
fn a_hand_over_is_judged_by_its_time() {
    let mut evidence = clean();
    let from = Boundary::Time(ORIGIN_US + 39_990_000);
    evidence.wearables[0].plan.push(Assignment { from, tenant: TENANT, user: OTHER });
    for row in evidence.readings.iter_mut().filter(|row| row.seq >= 3) {
        row.user = OTHER;
    }
    assert!(check(&evidence).passed());
    evidence.readings[0].user = OTHER;
    only(&check(&evidence), Kind::WrongWearer, 1);
}

#[test]
fn a_wrong_value_is_found() {
    let mut evidence = clean();
    evidence.readings[5].value[0] += step(evidence.readings[5].channel);
    only(&check(&evidence), Kind::WrongValue, 1);
}

#[test]
fn a_row_that_nobody_produced_is_found() {
    let mut evidence = clean();
    let mut row = evidence.readings[0];
    (row.time_us, row.index) = (row.time_us + 450_000, 99);
    evidence.readings.push(row);
    only(&check(&evidence), Kind::Invented, 1);
    let mut evidence = clean();
    evidence.strangers.insert(("kinara:00000000000000ff".to_owned(), TENANT), 3);
    only(&check(&evidence), Kind::Invented, 3);
}

#[test]
fn a_shifted_fit_is_a_wrong_time_in_every_frame() {
    let mut evidence = clean();
    evidence.frame_times[0].ref_utc_us += 1_000_000;
    for row in &mut evidence.readings {
        row.time_us += 1_000_000;
    }
    only(&check(&evidence), Kind::WrongTime, 5);
}

#[test]
fn an_uncertainty_beyond_the_bound_is_no_excuse() {
    let mut evidence = clean();
    evidence.frame_times[0].uncertainty_us = 2_000_000;
    only(&check(&evidence), Kind::WrongTime, 5);
}

#[test]
fn outside_the_anchors_the_bound_grows_by_45_ppm() {
    let mut evidence = clean();
    evidence.wearables[0].log.anchors.truncate(1);
    evidence.frame_times[0].uncertainty_us = 20_000;
    evidence.frame_times[0].growth_ppb = 0;
    assert!(check(&evidence).passed());
    evidence.frame_times[0].uncertainty_us = 20_000 + 3_700;
    // By 80 s after the anchor 3.6 ms are allowed: the four frames before that state too much.
    only(&check(&evidence), Kind::WrongTime, 5);
}

#[test]
fn an_uncertain_time_must_hold_the_truth_and_may_be_wide() {
    let mut evidence = clean();
    evidence.frame_times[0].time_uncertain = true;
    evidence.frame_times[0].uncertainty_us = 3_600_000_000;
    assert!(check(&evidence).passed());
    evidence.frame_times[0].uncertainty_us = 10;
    evidence.frame_times[0].growth_ppb = 0;
    evidence.frame_times[0].ref_utc_us += 20_000;
    for row in &mut evidence.readings {
        row.time_us += 20_000;
    }
    only(&check(&evidence), Kind::WrongTime, 5);
}

#[test]
fn a_frame_without_a_fit_and_one_with_two_are_wrong_times() {
    let mut evidence = clean();
    evidence.frame_times[0].seqs = vec![(0, 1), (3, 99)];
    let verdict = check(&evidence);
    assert_eq!(verdict.of(Kind::WrongTime), 40, "{verdict}");
    let mut evidence = clean();
    evidence.frame_times.push(evidence.frame_times[0].clone());
    assert_eq!(check(&evidence).of(Kind::WrongTime), 200);
}

#[test]
fn a_gap_over_stored_readings_is_found() {
    let mut evidence = clean();
    evidence.gaps.push(gap("overflow", Some((4, 4)), None));
    only(&check(&evidence), Kind::GapOverStored, 40);
    let mut evidence = clean();
    evidence.gaps.push(gap("reset", None, Some((99_000, 200_000))));
    only(&check(&evidence), Kind::GapOverStored, 1);
}

#[test]
fn a_reset_costs_one_frame_age_at_the_end_and_no_more() {
    let mut evidence = clean();
    let at_us = ORIGIN_US + 100_000_000;
    evidence.wearables[0].allowances = vec![Allowance::Reset { at_us, frame_age_us: 20_500_000 }];
    lose_frames(&mut evidence, 5..=5);
    evidence.gaps.push(gap("reset", None, Some((79_008, u64::MAX))));
    let verdict = check(&evidence);
    assert!(verdict.passed(), "{verdict}");
    assert_eq!(verdict.gaps, Allowed { reset: 40, ..Allowed::default() });

    lose_frames(&mut evidence, 4..=4);
    evidence.gaps[0].ticks = Some((59_008, u64::MAX));
    only(&check(&evidence), Kind::Lost, 40);
}

#[test]
fn a_hole_before_stored_readings_is_not_a_reset() {
    let mut evidence = clean();
    let at_us = ORIGIN_US + 100_000_000;
    evidence.wearables[0].allowances = vec![Allowance::Reset { at_us, frame_age_us: 20_500_000 }];
    evidence.readings.retain(|row| !(row.seq == 5 && row.index < 10));
    only(&check(&evidence), Kind::Lost, 10);
}

#[test]
fn an_allowed_loss_without_its_gap_is_found() {
    let mut evidence = clean();
    let at_us = ORIGIN_US + 100_000_000;
    evidence.wearables[0].allowances = vec![Allowance::Reset { at_us, frame_age_us: 20_500_000 }];
    lose_frames(&mut evidence, 5..=5);
    only(&check(&evidence), Kind::LossWithoutGap, 40);
    evidence.gaps.push(gap("overflow", Some((5, 5)), None));
    only(&check(&evidence), Kind::LossWithoutGap, 40);
}

#[test]
fn an_overflow_costs_the_oldest_and_never_what_the_ring_holds() {
    let mut evidence = clean();
    let (from_us, to_us) = (ORIGIN_US, ORIGIN_US + 100_000_000);
    evidence.wearables[0].allowances = vec![Allowance::Overflow { from_us, to_us, keeps: 120 }];
    lose_frames(&mut evidence, 1..=2);
    evidence.gaps.push(gap("overflow", Some((0, 2)), None));
    let verdict = check(&evidence);
    assert!(verdict.passed(), "{verdict}");
    assert_eq!(verdict.gaps.overflow, 80);

    lose_frames(&mut evidence, 3..=3);
    evidence.gaps[0].seqs = Some(vec![(0, 3)]);
    only(&check(&evidence), Kind::Lost, 40);
}

#[test]
fn a_full_disk_costs_waveforms_only() {
    let mut evidence = clean();
    let (from_us, to_us) = (ORIGIN_US, ORIGIN_US + 100_000_000);
    evidence.wearables[0].allowances = vec![Allowance::Quota { from_us, to_us }];
    lose_frames(&mut evidence, 2..=2);
    evidence.gaps.push(gap("quota", Some((2, 2)), None));
    only(&check(&evidence), Kind::Lost, 40);
    for sample in &mut evidence.wearables[0].log.samples {
        sample.channel += 63;
    }
    for row in &mut evidence.readings {
        row.channel += 63;
        row.value[0] = f64::from((row.value[0] / step(row.channel - 63)).round() as i32) * step(row.channel);
    }
    let verdict = check(&evidence);
    assert!(verdict.passed(), "{verdict}");
    assert_eq!(verdict.gaps.quota, 40);
}

#[test]
fn an_erasure_costs_exactly_what_was_hers_and_leaves_nothing_of_it() {
    let mut evidence = clean();
    let from = Boundary::Frame { epoch: EPOCH, seq: 3 };
    evidence.wearables[0].plan.push(Assignment { from, tenant: TENANT, user: OTHER });
    for row in evidence.readings.iter_mut().filter(|row| row.seq >= 3) {
        row.user = OTHER;
    }
    evidence.wearables[0].allowances = vec![Allowance::Erased { user: USER }];
    only(&check(&evidence), Kind::NotErased, 80);
    lose_frames(&mut evidence, 1..=2);
    let verdict = check(&evidence);
    assert!(verdict.passed(), "{verdict}");
    assert_eq!(verdict.gaps.erased, 80);
    // The next wearer's are not hers.
    lose_frames(&mut evidence, 3..=3);
    only(&check(&evidence), Kind::Lost, 40);
}

#[test]
fn a_lost_gateway_costs_what_it_had_acknowledged_and_no_more() {
    let mut evidence = clean();
    let lost = |seq| Allowance::GatewayLost {
        from_us: ORIGIN_US,
        to_us: ORIGIN_US + 100_000_000,
        epoch: EPOCH,
        seq,
    };
    evidence.wearables[0].allowances = vec![lost(4)];
    lose_frames(&mut evidence, 2..=3);
    evidence.gaps.push(gap("gateway_lost", Some((2, 3)), None));
    let verdict = check(&evidence);
    assert!(verdict.passed(), "{verdict}");
    assert_eq!(verdict.gaps.gateway_lost, 80);

    evidence.wearables[0].allowances = vec![lost(3)];
    only(&check(&evidence), Kind::Lost, 40);
}

#[test]
fn every_produced_sample_is_in_exactly_one_account() {
    let mut evidence = clean();
    let at_us = ORIGIN_US + 100_000_000;
    evidence.wearables[0].allowances = vec![Allowance::Reset { at_us, frame_age_us: 5_500_000 }];
    lose_frames(&mut evidence, 5..=5);
    evidence.readings.push(evidence.readings[0]);
    let verdict = check(&evidence);
    assert_eq!(verdict.produced, verdict.stored + verdict.gaps.reset + verdict.lost);
    let late = evidence.wearables[0].log.samples.iter().filter(|sample| second_of(sample) >= 95).count();
    assert_eq!(verdict.gaps.reset, late as u64);
}

#[test]
fn a_log_that_names_one_sample_twice_is_no_evidence() {
    let mut evidence = clean();
    let again = evidence.wearables[0].log.samples[0];
    evidence.wearables[0].log.samples.push(again);
    assert_eq!(check(&evidence).of(Kind::BadLog), 1);
}
