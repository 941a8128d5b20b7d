//! The epochs of one wearable in their order, and what is known of the time of each.
//!
//! An epoch with an anchor is stamped by its own fit. An epoch without one lies between its neighbours: it began
//! after the last sample of the one before, and ended before the one after began. That interval becomes its
//! uncertainty, and the stamp says `time_uncertain`. Whether an anchor may still come is known from the boot anchor
//! of the next epoch, which carries the last sync of the one before it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use kinara_protocol::frame::{BootAnchor, Epoch, SyncAnchor};

use super::fit::{Anchor, Believed, MOST_ANCHORS, OUTSIDE_PPB, believable, fit};
use super::source::BUILD_DATE_US;
use crate::pipeline::Fit;

/// Our clock may be so far behind that of the gateway that an anchor came from.
const BEHIND_US: i64 = 3_600_000_000;

/// What is known about one epoch's time.
#[derive(Debug, Clone, Default)]
pub struct EpochTime {
    anchors: BTreeMap<u64, Anchor>,
    /// Found out when it is asked for: many anchors may come at once.
    believed: OnceLock<Believed>,
    boot: Option<BootAnchor>,
    /// The last tick seen in a frame.
    last_ticks: u64,
}

impl EpochTime {
    fn put(&mut self, anchor: Anchor) {
        self.anchors.insert(anchor.ticks, anchor);
        while self.anchors.len() > MOST_ANCHORS {
            self.anchors.pop_first();
        }
        self.believed = OnceLock::new();
    }

    fn believed(&self) -> &Believed {
        self.believed.get_or_init(|| believable(&self.anchors.values().copied().collect::<Vec<_>>()))
    }
}

/// The epochs of one wearable.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    epochs: BTreeMap<u64, EpochTime>,
    /// From an epoch to the one that followed it.
    after: BTreeMap<u64, u64>,
}

/// What can be said of a frame's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// This.
    Known(Fit),
    /// Nothing yet: an anchor may still come.
    Wait,
}

/// UTC in microseconds that a moment lies at or after, or at or before.
type Bound = Option<i64>;

impl Timeline {
    /// Learns an anchor. False when it was known already.
    pub fn sync(&mut self, epoch: Epoch, anchor: Anchor) -> bool {
        let time = self.epochs.entry(epoch.0).or_default();
        match time.anchors.get(&anchor.ticks) {
            Some(known) if known.uncertainty_us <= anchor.uncertainty_us => return false,
            _ => time.put(anchor),
        }
        true
    }

    /// Puts an anchor in the place of the one at its ticks: the clock that made that one has been set since.
    pub fn correct(&mut self, epoch: Epoch, anchor: Anchor) {
        self.epochs.entry(epoch.0).or_default().put(anchor);
    }

    /// Forgets anchors of after a moment: none was made later than now, so whoever made it had another time. Gives how many.
    pub fn forget_after(&mut self, utc_us: i64) -> usize {
        let mut forgotten = 0;
        for time in self.epochs.values_mut() {
            let before = time.anchors.len();
            time.anchors.retain(|_, anchor| anchor.utc_us <= utc_us);
            if time.anchors.len() < before {
                forgotten += before - time.anchors.len();
                time.believed = OnceLock::new();
            }
        }
        forgotten
    }

    /// Learns how an epoch began.
    pub fn boot(&mut self, epoch: Epoch, boot: BootAnchor) {
        if let Some(previous) = boot.previous {
            self.after.insert(previous.epoch.0, epoch.0);
            let time = self.epochs.entry(previous.epoch.0).or_default();
            time.last_ticks = time.last_ticks.max(previous.last_ticks.0);
            if let Some(sync) = previous.last_sync {
                self.sync(previous.epoch, anchor_of(&sync));
            }
        }
        self.epochs.entry(epoch.0).or_default().boot = Some(boot);
    }

    /// Learns that an epoch reached a tick.
    pub fn reached(&mut self, epoch: Epoch, ticks: u64) {
        let time = self.epochs.entry(epoch.0).or_default();
        time.last_ticks = time.last_ticks.max(ticks);
    }

    /// Forgets an epoch of which nothing is left that could be stamped.
    pub fn forget(&mut self, epoch: Epoch) {
        self.epochs.remove(&epoch.0);
        self.after.remove(&epoch.0);
    }

    /// The stamp of samples from `first` to `last`. `now_us` is UTC now; `patient` is false when the frame has
    /// waited for an anchor for as long as the configuration allows.
    pub fn stamp(&self, epoch: Epoch, first: u64, last: u64, now_us: i64, patient: bool) -> Stamp {
        let time = self.epochs.get(&epoch.0);
        if let Some(fit) = time.and_then(|time| fit(time.believed(), first, last)) {
            return Stamp::Known(fit);
        }
        // The next epoch's boot anchor came and brought no sync: none will come.
        let final_word = self.after.contains_key(&epoch.0);
        if !final_word && patient {
            return Stamp::Wait;
        }
        let last_ticks = time.map_or(last, |time| time.last_ticks.max(last));
        let later = match self.begin_of_next(epoch.0, 0) {
            Next::Known(bound) => bound.min(now_us),
            Next::Undecided if patient => return Stamp::Wait,
            Next::Undecided | Next::None => now_us,
        }
        .max(BUILD_DATE_US);
        // One that ended long after now has its time from a clock that was ahead. (A little after: ours may be behind.)
        let possible_us = later.max(now_us).saturating_add(BEHIND_US);
        let ended = self.end_of_previous(epoch.0, 0).filter(|ended_us| *ended_us <= possible_us);
        let earlier = ended.unwrap_or(BUILD_DATE_US.min(later));
        Stamp::Known(between(earlier, later, last_ticks))
    }

    /// When the epoch after this one began.
    fn begin_of_next(&self, epoch: u64, depth: u32) -> Next {
        let Some(&next) = self.after.get(&epoch) else {
            // Not the very next, but a later boot of the same log bounds it too.
            let log_end = epoch | 0xffff_ffff;
            let begun = (epoch < log_end)
                .then(|| self.epochs.range(epoch + 1..=log_end).find_map(|(_, time)| begin_of(time)))
                .flatten();
            return begun.map_or(Next::None, Next::Known);
        };
        let Some(time) = self.epochs.get(&next) else { return Next::Undecided };
        if let Some(begin) = begin_of(time) {
            return Next::Known(begin);
        }
        if depth > 1_000 {
            return Next::None;
        }
        match self.begin_of_next(next, depth + 1) {
            // It lasted at least as long as its own ticks say.
            Next::Known(bound) => Next::Known(bound.saturating_sub(duration_us(time.last_ticks, false))),
            Next::Undecided | Next::None => Next::Undecided,
        }
    }

    /// When the epoch before this one ended.
    fn end_of_previous(&self, epoch: u64, depth: u32) -> Bound {
        let previous = self.epochs.get(&epoch)?.boot?.previous?;
        if let Some(time) = self.epochs.get(&previous.epoch.0)
            && let Some(fit) = fit(time.believed(), previous.last_ticks.0, previous.last_ticks.0)
        {
            let ticks = previous.last_ticks.0;
            return Some(fit.utc_us(ticks) - fit.uncertainty_at(ticks) as i64);
        }
        if depth > 1_000 {
            return None;
        }
        let before = self.end_of_previous(previous.epoch.0, depth + 1)?;
        Some(before.saturating_add(duration_us(previous.last_ticks.0, false)))
    }
}

enum Next {
    /// At the latest then.
    Known(i64),
    /// There is one, and its own time is still open.
    Undecided,
    /// None is known.
    None,
}

fn anchor_of(sync: &SyncAnchor) -> Anchor {
    Anchor { ticks: sync.ticks.0, utc_us: sync.utc_us, uncertainty_us: u64::from(sync.uncertainty_us) }
}

/// When an epoch with anchors began, at the latest.
fn begin_of(time: &EpochTime) -> Option<i64> {
    let fit = fit(time.believed(), 0, 0)?;
    Some(fit.utc_us(0) + fit.uncertainty_at(0) as i64)
}

/// How long `ticks` last at most or at least, in microseconds.
fn duration_us(ticks: u64, at_most: bool) -> i64 {
    let us = i128::from(ticks) * 1000;
    let slack = us * i128::from(OUTSIDE_PPB) / 1_000_000_000;
    (if at_most { us + slack } else { us - slack }) as i64
}

/// An epoch of `last_ticks` somewhere between two moments. Where they contradict each other either may be right.
fn between(earlier: i64, later: i64, last_ticks: u64) -> Fit {
    let contradiction_us = earlier.saturating_sub(later).max(0) as u64;
    let room = (later - earlier - duration_us(last_ticks, false)).max(0);
    Fit {
        ref_ticks: 0,
        ref_utc_us: earlier + room / 2,
        rate_ppb: 0,
        uncertainty_us: contradiction_us.saturating_add(room as u64 / 2 + 1_000),
        growth_ppb: OUTSIDE_PPB,
        time_uncertain: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fit::LATEST_US;
    use super::*;
    use kinara_protocol::frame::{PreviousBoot, ResetReason, Ticks};
    use proptest::prelude::*;

    const START: i64 = 1_800_000_000_000_000;

    fn boot_after(epoch: Epoch, last_ticks: u64, last_sync: Option<SyncAnchor>) -> BootAnchor {
        BootAnchor {
            reason: ResetReason::PowerOn,
            previous: Some(PreviousBoot { epoch, next_seq: 5, last_ticks: Ticks(last_ticks), last_sync }),
        }
    }

    #[test]
    fn an_epoch_whose_anchor_may_still_come_waits() {
        let mut line = Timeline::default();
        let epoch = Epoch::new(1, 1);
        line.boot(epoch, BootAnchor { reason: ResetReason::PowerOn, previous: None });
        assert_eq!(line.stamp(epoch, 0, 10, START, true), Stamp::Wait);
        line.sync(epoch, Anchor { ticks: 100, utc_us: START, uncertainty_us: 5 });
        assert!(matches!(line.stamp(epoch, 0, 10, START, true), Stamp::Known(fit) if !fit.time_uncertain));
    }

    #[test]
    fn ten_thousand_syncs_that_contradict_each_other_cost_a_moment() {
        let mut line = Timeline::default();
        let epoch = Epoch::new(1, 1);
        let began = std::time::Instant::now();
        for number in 0..10_000u64 {
            // By as many clocks, each days away from the ones beside it.
            let days = (number * 37 % 101) as i64 * 86_400_000_000;
            let utc_us = START + number as i64 * 1_000_000 + days;
            line.sync(epoch, Anchor { ticks: number * 1_000, utc_us, uncertainty_us: 5 });
            if number % 500 == 0 {
                assert!(matches!(line.stamp(epoch, 0, 10, START, true), Stamp::Known(_)));
            }
        }
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    #[test]
    fn the_next_boot_brings_the_last_sync_of_the_epoch_before() {
        let mut line = Timeline::default();
        let (old, new) = (Epoch::new(1, 1), Epoch::new(1, 2));
        let sync = SyncAnchor { ticks: Ticks(1_000), utc_us: START, uncertainty_us: 3_000 };
        line.boot(new, boot_after(old, 60_000, Some(sync)));
        let Stamp::Known(fit) = line.stamp(old, 2_000, 3_000, START, true) else { panic!("should be known") };
        assert!(!fit.time_uncertain);
        assert_eq!(fit.utc_us(2_000), START + 1_000_000);
    }

    proptest! {
        #[test]
        fn the_truth_of_an_epoch_without_anchors_lies_inside_its_interval(
            drift in -38_000i64..38_000,
            lengths in prop::collection::vec(1_000u64..5_000_000, 4),
            pauses in prop::collection::vec(1_000i64..50_000_000, 4),
            at in 0.0f64..1.0,
            which in 1usize..3,
        ) {
            // Four boots; the first and the last are synchronised, the two between are not.
            let scale = |ticks: u64| (ticks * 1000) as i64 + (ticks as i128 * 1000 * i128::from(drift) / 1_000_000_000) as i64;
            let mut line = Timeline::default();
            let mut begins = Vec::new();
            let mut now = START;
            for boot in 0..4 {
                begins.push(now);
                let epoch = Epoch::new(9, boot as u32);
                let previous = (boot > 0).then(|| PreviousBoot {
                    epoch: Epoch::new(9, boot as u32 - 1),
                    next_seq: 1,
                    last_ticks: Ticks(lengths[boot - 1]),
                    last_sync: (boot == 1).then(|| SyncAnchor {
                        ticks: Ticks(500), utc_us: START + scale(500), uncertainty_us: 2_000,
                    }),
                });
                line.boot(epoch, BootAnchor { reason: ResetReason::Fault, previous });
                now += scale(lengths[boot]) + pauses[boot];
            }
            let asked = Epoch::new(9, which as u32);
            prop_assert_eq!(line.stamp(asked, 0, 1, now, true), Stamp::Wait);
            line.sync(Epoch::new(9, 3), Anchor { ticks: 700, utc_us: begins[3] + scale(700), uncertainty_us: 2_000 });
            let Stamp::Known(fit) = line.stamp(asked, 0, 1, now, true) else { panic!("should be known") };
            prop_assert!(fit.time_uncertain);
            let ticks = (lengths[which] as f64 * at) as u64;
            let truth = begins[which] + scale(ticks);
            prop_assert!(fit.utc_us(ticks).abs_diff(truth) <= fit.uncertainty_at(ticks));
        }
    }

    #[test]
    fn an_epoch_without_anchors_is_not_of_the_future_because_the_one_before_it_is() {
        let mut line = Timeline::default();
        let (old, new) = (Epoch::new(1, 1), Epoch::new(1, 2));
        let far_us = START + 73 * 365 * 86_400_000_000;
        line.sync(old, Anchor { ticks: 0, utc_us: far_us, uncertainty_us: 5 });
        line.boot(new, boot_after(old, 60_000, None));
        let Stamp::Known(fit) = line.stamp(new, 0, 1_000, START, false) else { panic!("should be known") };
        assert!(fit.time_uncertain && fit.utc_us(0) <= START);
    }

    #[test]
    fn an_epoch_behind_one_that_ended_a_little_after_now_has_both_times_within_its_uncertainty() {
        let mut line = Timeline::default();
        let (old, new) = (Epoch::new(1, 1), Epoch::new(1, 2));
        // By the clock of another gateway, which is half an hour ahead of ours.
        let ahead_us = 1_800_000_000;
        line.sync(old, Anchor { ticks: 60_000, utc_us: START + ahead_us, uncertainty_us: 5 });
        line.boot(new, boot_after(old, 60_000, None));
        let Stamp::Known(fit) = line.stamp(new, 0, 1_000, START, false) else { panic!("should be known") };
        assert!(fit.time_uncertain);
        for truth_us in [START, START + ahead_us] {
            assert!(fit.utc_us(0).abs_diff(truth_us) <= fit.uncertainty_at(0), "{truth_us}: {fit:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_log_says_of_its_time_a_frame_gets_one_that_can_be_computed_with(
            boots in prop::collection::vec(
                (prop_oneof![Just((1u64 << 48) - 1), 0u64..1 << 48], prop::option::of((0u64..1 << 48, prop_oneof![any::<i64>(), START..2 * START]))),
                1..80,
            ),
        ) {
            let mut line = Timeline::default();
            for (number, (last_ticks, sync)) in boots.iter().enumerate() {
                let sync = sync.map(|(ticks, utc_us)| SyncAnchor { ticks: Ticks(ticks), utc_us, uncertainty_us: 9 });
                let number = number as u32;
                line.boot(Epoch::new(9, number + 1), boot_after(Epoch::new(9, number), *last_ticks, sync));
            }
            for number in 0..=boots.len() as u32 {
                let Stamp::Known(fit) = line.stamp(Epoch::new(9, number), 0, 1_000, START, false) else {
                    panic!("should be known")
                };
                let _ = (fit.utc_us(1_000), fit.uncertainty_at(1_000));
                let latest_us = if fit.time_uncertain { START + BEHIND_US } else { LATEST_US };
                prop_assert!(fit.ref_utc_us <= latest_us, "{fit:?}");
            }
        }
    }

    #[test]
    fn an_impatient_frame_of_an_epoch_that_other_gateways_drained_lies_before_now() {
        let mut line = Timeline::default();
        let epoch = Epoch::new(1, 4);
        line.reached(epoch, 90_000);
        assert_eq!(line.stamp(epoch, 0, 1_000, START, true), Stamp::Wait);
        let Stamp::Known(fit) = line.stamp(epoch, 0, 1_000, START, false) else { panic!("should be known") };
        assert!(fit.time_uncertain);
        let end = fit.utc_us(90_000) + fit.uncertainty_at(90_000) as i64;
        assert!(end >= START - 1_000_000);
    }
}
