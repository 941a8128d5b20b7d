//! Beats that are none, or not where they should be: Lipponen and Tarvainen (2019), with the constants of their paper.
//!
//! A beat is judged by the difference of its interval from the one before (dRR) and from the median around it (mRR), both
//! by thresholds that follow the recording: 5.2 times the quartile deviation of 91 beats. Correction is tried again until
//! it finds no fewer artefacts than before. NeuroKit2's `signal_fixpeaks(method="Kubios")` reads the paper the same way.

/// Slope and intercept of the lines that part ectopic beats from others.
const C1: f64 = 0.13;
const C2: f64 = 0.17;
/// Of normally distributed beats so many quartile deviations hold 99.95 %.
const ALPHA: f64 = 5.2;
const THRESHOLD_WINDOW: usize = 91;
const MEDIAN_WINDOW: usize = 11;

/// Artefacts by their kind: places in the list of beats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Artefacts {
    /// A beat too early and the next as if nothing had been.
    pub ectopic: Vec<usize>,
    /// Before this one a beat was missed.
    pub missed: Vec<usize>,
    /// This one was seen though there was none.
    pub extra: Vec<usize>,
    /// Its interval is too long or too short.
    pub long_or_short: Vec<usize>,
}

impl Artefacts {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.ectopic.len() + self.missed.len() + self.extra.len() + self.long_or_short.len()
    }
}

/// Beats after correction.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrected {
    /// Their times, ms.
    pub peaks: Vec<f64>,
    /// What was found in the pass that found the fewest.
    pub found: Artefacts,
}

/// Corrects beats, given by their ascending times in ms. Fewer than a window of the median stay as they are.
pub fn correct(peaks: &[f64]) -> Corrected {
    if peaks.len() < MEDIAN_WINDOW {
        return Corrected { peaks: peaks.to_vec(), found: Artefacts::default() };
    }
    let mut found = find(peaks);
    let mut corrected = apply(&found, peaks);
    loop {
        let again = find(&corrected);
        if again.count() >= found.count() {
            return Corrected { peaks: corrected, found };
        }
        corrected = apply(&again, &corrected);
        found = again;
    }
}

/// Finds artefacts.
pub fn find(peaks: &[f64]) -> Artefacts {
    let rr = differences_in_seconds(peaks);
    let mut steps = differences(&rr);
    let step_threshold = thresholds(&steps);
    normalise(&mut steps, &step_threshold);
    let (beside, after) = subspaces(&steps);
    let medians: Vec<f64> = (0..rr.len()).map(|at| quantile(around(&rr, at, MEDIAN_WINDOW), 0.5)).collect();
    let mut deviations: Vec<f64> = rr
        .iter()
        .zip(&medians)
        .map(|(rr, median)| rr - median)
        .map(|deviation| if deviation < 0.0 { 2.0 * deviation } else { deviation })
        .collect();
    let threshold = thresholds(&deviations);
    normalise(&mut deviations, &threshold);

    let mut found = Artefacts::default();
    let mut at = 0;
    while at + 2 < rr.len() {
        let step = steps[at];
        // Not a number where the threshold is zero: that is no artefact.
        if step.is_nan() || step.abs() <= 1.0 {
            at += 1;
            continue;
        }
        if (step > 1.0 && beside[at] < -C1 * step - C2) || (step < -1.0 && beside[at] > -C1 * step + C2) {
            found.ectopic.push(at);
            at += 1;
            continue;
        }
        let judged = if steps[at + 1].abs() < steps[at + 2].abs() { 2 } else { 1 };
        for one in at..at + judged {
            let long = steps[one] > 1.0 && after[one] < -1.0;
            let short = steps[one] < -1.0 && after[one] > 1.0;
            let far = deviations[one].abs() > 3.0;
            if !long && !short && !far {
                continue;
            }
            let is_two = (rr[one] / 2.0 - medians[one]).abs() < threshold[one];
            let is_half = (rr[one] + rr[one + 1] - medians[one]).abs() < threshold[one];
            if short && is_half {
                found.extra.push(one);
            } else if long && is_two {
                found.missed.push(one);
            } else {
                found.long_or_short.push(one);
            }
        }
        at += judged;
    }
    found
}

/// Intervals in seconds, one for each beat; the first, which has none, gets their mean.
fn differences_in_seconds(peaks: &[f64]) -> Vec<f64> {
    let seconds: Vec<f64> = peaks.iter().map(|peak| peak / 1_000.0).collect();
    differences(&seconds)
}

fn differences(values: &[f64]) -> Vec<f64> {
    let mut all = vec![0.0];
    all.extend(values.windows(2).map(|pair| pair[1] - pair[0]));
    all[0] = all[1..].iter().sum::<f64>() / (all.len() - 1).max(1) as f64;
    all
}

/// The part of `values` in a window around a place; shorter at the ends.
fn around(values: &[f64], at: usize, window: usize) -> &[f64] {
    &values[at.saturating_sub(window / 2)..(at + window / 2 + 1).min(values.len())]
}

/// With linear interpolation between the two nearest.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

fn thresholds(values: &[f64]) -> Vec<f64> {
    let sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
    (0..sizes.len())
        .map(|at| {
            let window = around(&sizes, at, THRESHOLD_WINDOW);
            ALPHA * (quantile(window, 0.75) - quantile(window, 0.25)) / 2.0
        })
        .collect()
}

fn normalise(values: &mut [f64], thresholds: &[f64]) {
    for (value, threshold) in values.iter_mut().zip(thresholds) {
        *value = if *threshold == 0.0 { f64::NAN } else { *value / threshold };
    }
}

/// Of each difference: the larger of its neighbours in its own direction (S12), and the smaller of the next two against it
/// (S22). At the ends the list is reflected.
fn subspaces(steps: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = steps.len() as isize;
    let at = |place: isize| {
        let place = place.abs();
        steps[if place < n { place } else { 2 * (n - 1) - place } as usize]
    };
    (0..n)
        .map(|place| {
            let (before, next, second) = (at(place - 1), at(place + 1), at(place + 2));
            let step = at(place);
            let beside = if step > 0.0 {
                before.max(next)
            } else if step < 0.0 {
                before.min(next)
            } else {
                0.0
            };
            let after = if step >= 0.0 {
                next.min(second)
            } else if step < 0.0 {
                next.max(second)
            } else {
                0.0
            };
            (beside, after)
        })
        .unzip()
}

fn apply(found: &Artefacts, peaks: &[f64]) -> Vec<f64> {
    let mut peaks = peaks.to_vec();
    let Artefacts { mut ectopic, mut missed, extra, mut long_or_short } = found.clone();
    for place in extra.iter().rev() {
        peaks.remove(*place);
    }
    for later in [&mut missed, &mut ectopic, &mut long_or_short] {
        shift(later, &extra, -1);
    }
    let between: Vec<(usize, f64)> = missed
        .iter()
        .filter(|&&place| place > 1 && place < peaks.len())
        .map(|&place| (place, f64::midpoint(peaks[place - 1], peaks[place])))
        .collect();
    for (place, peak) in between.into_iter().rev() {
        peaks.insert(place, peak);
    }
    for later in [&mut ectopic, &mut long_or_short] {
        shift(later, &missed, 1);
    }
    move_to_the_middle(&ectopic, &mut peaks);
    move_to_the_middle(&long_or_short, &mut peaks);
    peaks
}

/// Places after one that came or went are others now.
fn shift(places: &mut Vec<usize>, sources: &[usize], by: isize) {
    for source in sources {
        for place in places.iter_mut().filter(|place| **place > *source) {
            *place = place.saturating_add_signed(by);
        }
    }
    places.sort_unstable();
    places.dedup();
}

fn move_to_the_middle(places: &[usize], peaks: &mut [f64]) {
    let middles: Vec<(usize, f64)> = places
        .iter()
        .filter(|&&place| place > 1 && place + 1 < peaks.len())
        .map(|&place| (place, f64::midpoint(peaks[place - 1], peaks[place + 1])))
        .collect();
    for (place, peak) in middles {
        peaks[place] = peak;
    }
    peaks.sort_unstable_by(f64::total_cmp);
}
