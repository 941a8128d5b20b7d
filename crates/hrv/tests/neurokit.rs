//! Beside NeuroKit2, on a real recording of 299 s (BioSPPy's, tests/recordings/biosppy); `golden.py` made `golden.json`.

#![allow(clippy::unwrap_used)]

use kinara_hrv::artefacts::{correct, find};
use kinara_hrv::{Interval, frequency, of_window, time_domain};
use serde_json::Value;

/// Between a quadratic spline there and a cubic one here.
const FREQUENCY_TOLERANCE: f64 = 0.03;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn recorded() -> Vec<f64> {
    include_str!("../../../tests/recordings/biosppy/rri.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
        .collect()
}

#[track_caller]
fn near(ours: f64, theirs: &Value, relative: f64) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= relative * theirs.abs(), "{ours} beside {theirs}");
}

#[test]
fn the_time_domain_of_the_recording_is_neurokits_to_a_millionth() {
    let golden = golden();
    let time = time_domain::of(&[recorded()]).unwrap();
    near(time.mean_nn_ms, &golden["mean_nn"], 1e-6);
    near(time.sdnn_ms, &golden["sdnn"], 1e-6);
    near(time.rmssd_ms, &golden["rmssd"], 1e-6);
    near(time.pnn50, &golden["pnn50"], 1e-6);
}

#[test]
fn the_frequency_domain_is_neurokits_within_what_is_stated() {
    let golden = golden();
    let bands = frequency::of(&recorded()).unwrap();
    near(bands.lf_ms2, &golden["lf"], FREQUENCY_TOLERANCE);
    near(bands.hf_ms2, &golden["hf"], FREQUENCY_TOLERANCE);
    near(bands.lf_over_hf(), &golden["lf_hf"], FREQUENCY_TOLERANCE);
}

#[test]
fn planted_artefacts_are_found_and_corrected_as_neurokit_does() {
    let golden = golden();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|one| one.as_f64().unwrap()).collect()
    };
    let planted = numbers(&golden["planted"]);
    let found = find(&planted);
    for (ours, kind) in [
        (&found.ectopic, "ectopic"),
        (&found.missed, "missed"),
        (&found.extra, "extra"),
        (&found.long_or_short, "longshort"),
    ] {
        let ours: Vec<f64> = ours.iter().map(|place| *place as f64).collect();
        assert_eq!(ours, numbers(&golden["found"][kind]), "{kind}");
    }
    assert_eq!((found.missed.len(), found.extra.len()), (3, 2), "all that was planted: {found:?}");
    let (ours, theirs) = (correct(&planted).peaks, numbers(&golden["corrected"]));
    assert_eq!(ours.len(), theirs.len());
    // Theirs are cut to whole milliseconds in each pass.
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() <= 2.0, "{ours} beside {theirs}");
    }
}

fn intervals(rr: &[f64]) -> Vec<Interval> {
    let mut at_ms = 0.0;
    rr.iter()
        .map(|&rr_ms| {
            at_ms += rr_ms;
            Interval { at_ms, rr_ms }
        })
        .collect()
}

#[test]
fn a_hole_is_no_difference_and_too_little_is_no_window() {
    let whole = intervals(&recorded());
    let hrv = of_window(&whole).unwrap();
    assert_eq!(hrv.intervals, 480);
    assert!(hrv.bands.is_some());
    // A minute without contact.
    let holed: Vec<Interval> =
        whole.iter().copied().filter(|one| !(100_000.0..160_000.0).contains(&one.at_ms)).collect();
    let with_hole = of_window(&holed).unwrap();
    assert!((with_hole.time.rmssd_ms - hrv.time.rmssd_ms).abs() < 0.2 * hrv.time.rmssd_ms, "{with_hole:?}");
    assert!(with_hole.covered_ms < hrv.covered_ms - 55_000.0);
    assert!(of_window(&whole[..200]).is_none());
    assert!(of_window(&[]).is_none());
}

#[test]
fn what_no_heart_does_breaks_nothing() {
    for rr in [vec![1_000.0; 200], vec![0.0; 400], vec![f64::MAX / 1e300; 300], [300.0, 2_000.0].repeat(100)]
    {
        let hrv = of_window(&intervals(&rr));
        assert!(
            hrv.is_none_or(|hrv| hrv.time.sdnn_ms.is_finite() && hrv.time.rmssd_ms.is_finite()),
            "{hrv:?}"
        );
    }
}
