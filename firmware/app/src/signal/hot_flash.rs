//! The sternal skin conductance rule for hot flashes, on the device: what the gateway's `rule:sternal/1` says of a
//! window of a minute (its sources stand there, in `kinara-inference`), with the same numbers, in integers.
//!
//! A hot flash is a rise of at least 2 µS within 30 s at the sternum. The rule says nothing of a minute with too little
//! signal, without contact, or in which the wearer moves; after an onset it is silent for 20 minutes. It holds for
//! the sternum only, and finds a part of the flashes that women report: it is no diagnosis.
//!
//! Memory: one sum and count a second for about a minute, and the last activity counts.

use kinara_protocol::frame::Ticks;

/// A window, seconds.
pub const WINDOW_S: usize = 60;
/// Seconds that are kept: a window, the one that is being filled, and some in which nobody has asked yet.
const KEPT_S: usize = 64;
/// A rise counts within so many seconds, and when it ends in the window's last so many.
const WITHIN_S: usize = 30;
/// Seconds of the window that have to be there.
const MIN_PRESENT: usize = WINDOW_S * 4 / 5;
/// The longest hole, seconds.
const MAX_HOLE: usize = 5;
/// Conductances in thousandths of a nanosiemens, which is what means of whole nanosiemens are kept in.
const RISE: i64 = 2_000_000;
const CONTACT: i64 = 50_000;
const CEILING: i64 = 60_000_000;
const JUMP: i64 = 10_000_000;
/// Activity counts a minute.
const MOTION_LIMIT: i64 = 2_020;
/// Activity counts come twice a minute: those that a window can hold, and one.
const ACTIVITIES: usize = 3;
/// No new onset for so long after one, ms.
const REFRACTORY_MS: u64 = 1_200_000;

/// What the rule says of the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Too little signal.
    NotEnoughSignal,
    /// The wearer moves.
    Motion,
    /// The electrodes have no contact, or jump.
    NoContact,
    /// Nothing of the kind.
    Quiet,
    /// The criterion is met.
    HotFlash {
        /// When the rise begins.
        onset: Ticks,
        /// How much it is, nanosiemens.
        rise_ns: u32,
        /// Whether it is the first that is said of this episode.
        new: bool,
    },
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    /// Seconds of the device's ticks.
    at: u64,
    sum: i64,
    count: u32,
}

/// The rule, and what it remembers.
#[derive(Debug, Clone)]
pub struct SternalRule {
    seconds: [Second; KEPT_S],
    activities: [Option<(Ticks, i32)>; ACTIVITIES],
    newest_activity: usize,
    onset: Option<Ticks>,
}

impl SternalRule {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self {
            seconds: [Second { at: 0, sum: 0, count: 0 }; KEPT_S],
            activities: [None; ACTIVITIES],
            newest_activity: 0,
            onset: None,
        }
    }

    /// A sample of the channel `eda`, nanosiemens.
    pub fn eda(&mut self, ticks: Ticks, nanosiemens: i32) {
        let at = ticks.0 / 1_000;
        let cell = &mut self.seconds[(at % KEPT_S as u64) as usize];
        if cell.at != at || cell.count == 0 {
            *cell = Second { at, sum: 0, count: 0 };
        }
        cell.sum += i64::from(nanosiemens);
        cell.count += 1;
    }

    /// A sample of the channel `activity_counts`: counts of half a minute.
    pub fn activity(&mut self, ticks: Ticks, counts: i32) {
        self.newest_activity = (self.newest_activity + 1) % ACTIVITIES;
        self.activities[self.newest_activity] = Some((ticks, counts));
    }

    /// What the last whole minute says.
    pub fn judge(&mut self, now: Ticks) -> Judgement {
        let end = now.0 / 1_000;
        let Some(start) = end.checked_sub(WINDOW_S as u64) else { return Judgement::NotEnoughSignal };
        let means = self.means(start);
        if means.iter().flatten().count() < MIN_PRESENT || longest_hole(&means) > MAX_HOLE {
            return Judgement::NotEnoughSignal;
        }
        let mut last: Option<i64> = None;
        for mean in means.iter().flatten().copied() {
            let jumps = last.is_some_and(|last| (mean - last).abs() > JUMP);
            if !(CONTACT..=CEILING).contains(&mean) || jumps {
                return Judgement::NoContact;
            }
            last = Some(mean);
        }
        if self.moves(start, end) {
            return Judgement::Motion;
        }
        match greatest_rise(&means) {
            Some((from, rise)) if rise >= RISE => self.flash(Ticks((start + from as u64) * 1_000), rise),
            _ => Judgement::Quiet,
        }
    }

    fn flash(&mut self, onset: Ticks, rise: i64) -> Judgement {
        let window = WINDOW_S as u64 * 1_000;
        let known =
            self.onset.is_some_and(|known| onset.0 + window >= known.0 && onset.0 < known.0 + REFRACTORY_MS);
        if !known {
            self.onset = Some(onset);
        }
        Judgement::HotFlash { onset, rise_ns: (rise / 1_000) as u32, new: !known }
    }

    fn means(&self, start: u64) -> [Option<i64>; WINDOW_S] {
        core::array::from_fn(|place| {
            let at = start + place as u64;
            let cell = &self.seconds[(at % KEPT_S as u64) as usize];
            (cell.at == at && cell.count > 0).then(|| cell.sum * 1_000 / i64::from(cell.count))
        })
    }

    fn moves(&self, start: u64, end: u64) -> bool {
        let within = self
            .activities
            .iter()
            .flatten()
            .filter(|(ticks, _)| (start * 1_000..end * 1_000).contains(&ticks.0));
        let (sum, count) =
            within.fold((0i64, 0i64), |(sum, count), (_, counts)| (sum + i64::from(*counts), count + 1));
        count > 0 && sum * 2 >= MOTION_LIMIT * count
    }
}

impl Default for SternalRule {
    fn default() -> Self {
        Self::new()
    }
}

fn longest_hole(means: &[Option<i64>]) -> usize {
    means.split(Option::is_some).map(<[_]>::len).max().unwrap_or(0)
}

/// The greatest rise that ends in the last [`WITHIN_S`] seconds, and the second that it begins at. Of equal ones the
/// earliest end, and the latest beginning.
fn greatest_rise(means: &[Option<i64>; WINDOW_S]) -> Option<(usize, i64)> {
    let mut best: Option<(usize, i64)> = None;
    for to in WINDOW_S - WITHIN_S..WINDOW_S {
        let Some(high) = means[to] else { continue };
        let lows = (to.saturating_sub(WITHIN_S)..=to).filter_map(|from| Some((from, means[from]?)));
        let Some((from, low)) = lows.min_by_key(|&(from, low)| (low, core::cmp::Reverse(from))) else {
            continue;
        };
        if best.is_none_or(|(_, rise)| high - low > rise) {
            best = Some((from, high - low));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four samples a second from 0 on, of this conductance in nanosiemens.
    fn minute(eda: impl Fn(u64) -> i32) -> SternalRule {
        let mut rule = SternalRule::new();
        for ticks in (0..60_000).step_by(250) {
            rule.eda(Ticks(ticks), eda(ticks));
        }
        rule
    }

    /// A rise by `by` from second 35 to 50.
    fn ramp(by: i32) -> impl Fn(u64) -> i32 {
        move |ticks| 3_000 + by * (ticks.clamp(35_000, 50_000) as i32 - 35_000) / 15_000
    }

    const NOW: Ticks = Ticks(60_000);

    #[test]
    fn a_rise_of_two_microsiemens_is_a_hot_flash_and_a_smaller_one_is_not() {
        let Judgement::HotFlash { onset, rise_ns, new } = minute(ramp(2_100)).judge(NOW) else {
            panic!("not seen")
        };
        assert!(
            new && (34_000..=35_000).contains(&onset.0) && (2_000..=2_100).contains(&rise_ns),
            "{onset:?} {rise_ns}"
        );
        assert_eq!(minute(ramp(1_900)).judge(NOW), Judgement::Quiet);
    }

    #[test]
    fn an_episode_is_new_once_and_the_next_one_after_twenty_minutes() {
        let mut rule = SternalRule::new();
        let mut onsets = 0;
        // The same rise every ten minutes for an hour.
        for ticks in (0..3_600_000).step_by(250) {
            rule.eda(Ticks(ticks), ramp(2_500)(ticks % 600_000));
            if ticks % 1_000 == 0 && matches!(rule.judge(Ticks(ticks)), Judgement::HotFlash { new: true, .. })
            {
                onsets += 1;
            }
        }
        assert_eq!(onsets, 3);
    }

    #[test]
    fn it_says_nothing_without_contact_in_motion_or_with_holes() {
        assert_eq!(minute(|_| 20).judge(NOW), Judgement::NoContact);
        assert_eq!(
            minute(|ticks| if ticks < 40_000 { 3_000 } else { 20_000 }).judge(NOW),
            Judgement::NoContact
        );
        let mut rule = minute(ramp(2_500));
        rule.activity(Ticks(30_000), 1_500);
        assert_eq!(rule.judge(NOW), Judgement::Motion);
        assert_eq!(minute(ramp(2_500)).judge(Ticks(66_000)), Judgement::NotEnoughSignal);
        assert_eq!(SternalRule::new().judge(Ticks(5_000)), Judgement::NotEnoughSignal);
    }
}
