//! The judgement: what was produced and what is stored are the same set.

use std::collections::{HashMap, HashSet};

use super::evidence::{Evidence, FrameTime, Reading, Wearable, within};
use super::log::Sample;
use super::losses::{self, FIRST_WAVEFORM};
use super::timing::{Anchors, Times};
use super::verdict::{Kind, Verdict};

/// Steps of the channels, the oracle's own copy: number, step.
const STEPS: &[(u16, f64)] = &[
    (1, 0.1),
    (2, 1.0),
    (3, 0.01),
    (4, 0.01),
    (5, 0.001),
    (6, 0.1),
    (7, 1.0),
    (8, 1.0),
    (9, 1.0),
    (64, 1.0),
    (65, 0.001),
];

/// A channel's step. An unknown channel passes through with 1.
pub fn step(channel: u16) -> f64 {
    STEPS.iter().find(|(known, _)| *known == channel).map_or(1.0, |(_, step)| *step)
}

/// Judges one clinic.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    for ((hardware, _), rows) in &evidence.strangers {
        for _ in 0..*rows {
            verdict.find(Kind::Invented, || format!("{rows} rows of {hardware}, which is not of this run"));
        }
    }
    let mut times = Times::default();
    for index in 0..evidence.wearables.len() {
        check_wearable(evidence, index, &mut times, &mut verdict);
    }
    times.settle(&mut verdict);
    if verdict.stored == 0 {
        verdict.find(Kind::Nothing, || "no reading of any wearable is stored".to_owned());
    }
    verdict
}

fn check_wearable(evidence: &Evidence, index: usize, times: &mut Times, verdict: &mut Verdict) {
    let wearable = &evidence.wearables[index];
    let samples = &wearable.log.samples;
    verdict.produced += samples.len() as u64;
    if samples.is_empty() {
        let Wearable { hardware, scenario, .. } = wearable;
        verdict.find(Kind::Nothing, || format!("{scenario}: {hardware} produced nothing"));
    }
    let mut produced = HashMap::with_capacity(samples.len());
    for (position, sample) in samples.iter().enumerate() {
        if produced.insert((sample.epoch, sample.channel, sample.ticks), position).is_some() {
            verdict.find(Kind::BadLog, || format!("{} produced {sample:?} twice", wearable.hardware));
        }
    }
    let mut fits: HashMap<u64, Vec<&FrameTime>> = HashMap::new();
    for fit in evidence.frame_times.iter().filter(|fit| fit.wearable == index) {
        fits.entry(fit.epoch).or_default().push(fit);
    }
    let gaps: Vec<_> = evidence.gaps.iter().filter(|gap| gap.wearable == index).collect();
    let anchors = Anchors::of(wearable);
    let mut stored = vec![false; samples.len()];
    let mut keys = HashSet::new();
    for row in evidence.readings.iter().filter(|row| row.wearable == index) {
        let told = || told(wearable, row);
        let new_key = keys.insert((row.device, row.epoch, row.seq, row.channel >= FIRST_WAVEFORM, row.index));
        let mut covering =
            fits.get(&row.epoch).into_iter().flatten().filter(|fit| within(&fit.seqs, row.seq));
        let Some(fit) = covering.next() else {
            verdict.find(Kind::WrongTime, || {
                format!("{}: no frame_times row says how its time came about", told())
            });
            continue;
        };
        if covering.next().is_some() {
            verdict.find(Kind::WrongTime, || format!("{}: two frame_times rows claim its frame", told()));
        }
        let ticks = fit.ticks(row.time_us).map(|first| first + row.offset_ticks);
        let position = ticks.and_then(|ticks| produced.get(&(row.epoch, row.channel, ticks)).copied());
        let Some(position) = position else {
            verdict.find(Kind::Invented, || format!("{} at tick {ticks:?}", told()));
            continue;
        };
        let sample = &samples[position];
        if std::mem::replace(&mut stored[position], true) || !new_key {
            verdict.find(Kind::Double, told);
            continue;
        }
        if let Some((first, last)) = wearable.log.frames.get(&(row.epoch, row.seq))
            && !(*first..=*last).contains(&sample.ticks)
        {
            verdict.find(Kind::Invented, || format!("{}: its frame spans ticks {first} to {last}", told()));
        }
        if !same_value(row, sample) {
            verdict.find(Kind::WrongValue, || format!("{}, produced {:?}", told(), sample.value.parts()));
        }
        match wearable.wearer_at(sample.utc_us, (row.epoch, row.seq)) {
            Some(plan) => {
                if plan.tenant != row.tenant {
                    verdict
                        .find(Kind::WrongTenant, || format!("{}, should be tenant {}", told(), plan.tenant));
                }
                if plan.user != row.user {
                    verdict.find(Kind::WrongWearer, || format!("{}, should be wearer {}", told(), plan.user));
                }
            }
            None => verdict.find(Kind::WrongWearer, || format!("{}: nobody wore it then", told())),
        }
        if wearable.erased() == Some(row.user) {
            verdict.find(Kind::NotErased, told);
        }
        let frame = (index, row.epoch, row.seq);
        let time_us = fit.later_us(row.time_us, row.offset_ticks);
        times.judge((wearable, &anchors), frame, (time_us, fit), sample, verdict);
        for gap in gaps.iter().filter(|gap| gap.epoch == row.epoch) {
            if gap.denies(row.seq, sample.ticks) {
                verdict.find(Kind::GapOverStored, || format!("{} under a gap: {}", told(), gap.reason));
            }
        }
    }
    verdict.stored += stored.iter().filter(|stored| **stored).count() as u64;
    check_fresh(wearable, &stored, verdict);
    losses::judge(evidence, index, &stored, verdict);
}

/// Something that was produced after all faults must have come through.
fn check_fresh(wearable: &Wearable, stored: &[bool], verdict: &mut Verdict) {
    let Some(from_us) = wearable.fresh_from_us else { return };
    let mut fresh = wearable.log.samples.iter().zip(stored).filter(|(sample, _)| sample.utc_us >= from_us);
    if !fresh.any(|(_, stored)| *stored) {
        let Wearable { hardware, scenario, .. } = wearable;
        verdict.find(Kind::Stuck, || {
            format!("{scenario}: no reading that {hardware} took after the faults is stored")
        });
    }
}

fn same_value(row: &Reading, sample: &Sample) -> bool {
    let step = step(row.channel);
    let parts = sample.value.parts();
    parts.len() == usize::from(row.components)
        && parts
            .iter()
            .zip(row.value)
            .all(|(part, value)| (value - f64::from(*part) * step).abs() < step * 1e-4)
}

fn told(wearable: &Wearable, row: &Reading) -> String {
    let Reading { epoch, seq, index, channel, time_us, .. } = row;
    let value = &row.value[..usize::from(row.components)];
    format!(
        "{} epoch {epoch:016x} seq {seq} index {index} channel {channel} at {time_us} value {value:?} tenant {} wearer {}",
        wearable.hardware, row.tenant, row.user
    )
}
