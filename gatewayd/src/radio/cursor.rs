//! How far a wearable's log has come, without a hole: what may be acknowledged.
//!
//! The log is ordered by epoch, then seq. Within an epoch the next frame is seq + 1; from one epoch to the next the
//! bridge is the boot anchor (seq 0), which says where the epoch before it ended. An acknowledgement is cumulative, so
//! it may go no further than the frames that lie before the first hole.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use kinara_protocol::frame::{BootAnchor, Epoch, Seq};

use crate::store::SeqSet;

/// A place in the log: the next frame that is not there yet.
#[derive(Debug, Clone)]
pub struct Cursor {
    epoch: Epoch,
    seq: Seq,
    held: HashMap<Epoch, SeqSet>,
    /// For an epoch: where it ends, and which follows.
    ends: HashMap<Epoch, (Seq, Epoch)>,
    last: Option<(Epoch, Seq)>,
}

impl Cursor {
    /// A cursor at the oldest frame that the wearable holds.
    pub fn new((epoch, seq): (Epoch, Seq)) -> Self {
        Self { epoch, seq, held: HashMap::new(), ends: HashMap::new(), last: None }
    }

    /// A cursor at the first of these frames, which comes to `then` when it has them all; none where none lies before it.
    pub fn through(wanted: &BTreeMap<Epoch, SeqSet>, then: (Epoch, Seq)) -> Option<Self> {
        // What lies behind `then` comes with the rest of the log, of which nothing may be taken as held.
        let wanted = &before(wanted, then);
        let (first, seqs) = wanted.iter().find(|(_, seqs)| !seqs.is_empty())?;
        let mut cursor = Self::new((*first, seqs.ranges().first()?.0));
        for (epoch, seqs) in wanted {
            let Some((_, last)) = seqs.ranges().last() else { continue };
            let next =
                wanted.range((Bound::Excluded(*epoch), Bound::Unbounded)).next().map(|(epoch, _)| *epoch);
            if *epoch != then.0 {
                cursor.ends.insert(*epoch, (last.saturating_add(1), next.unwrap_or(then.0)));
            }
            cursor.held.insert(*epoch, all_before(last.saturating_add(1)).minus(seqs));
        }
        let seqs = wanted.get(&then.0).cloned().unwrap_or_default();
        cursor.held.insert(then.0, all_before(then.1).minus(&seqs));
        cursor.advance();
        Some(cursor)
    }

    /// Takes a frame, and goes on as far as there is no hole.
    pub fn take(&mut self, epoch: Epoch, seq: Seq, boot: Option<&BootAnchor>) {
        if let Some(previous) = boot.and_then(|boot| boot.previous) {
            // An end that is known stands: what lies between it and the anchor's is not waited for.
            self.ends.entry(previous.epoch).or_insert((previous.next_seq, epoch));
        }
        if epoch == self.epoch && seq < self.seq {
            return;
        }
        self.held.entry(epoch).or_default().insert(seq);
        self.advance();
    }

    /// Takes it that these frames will never come: the wearable itself says that it lost them.
    pub fn lost(&mut self, epoch: Epoch, first: Seq, last: Seq) {
        if self.covers(epoch, last) {
            return;
        }
        self.held.entry(epoch).or_default().insert_range(first, last);
        self.advance();
    }

    /// The first hole: where it begins, and what follows it; no further than `limit`. None where that has been reached.
    pub fn hole_before(&self, limit: (Epoch, Seq)) -> Option<((Epoch, Seq), (Epoch, Seq))> {
        let from = self.next();
        let in_epoch = self.held.get(&from.0).and_then(|held| first_from(held, from.1));
        let next_epoch = || {
            let later = self.held.iter().filter(|(epoch, _)| **epoch > from.0);
            later.filter_map(|(epoch, held)| Some((*epoch, first_from(held, 0)?))).min()
        };
        let to = in_epoch
            .map(|seq| (from.0, seq))
            .or_else(|| self.ends.get(&from.0).map(|(_, next)| (*next, 0)))
            .or_else(next_epoch)
            .map_or(limit, |to| to.min(limit));
        (from < limit).then_some((from, to))
    }

    /// The first hole, as far as it is one frame: the wearable has said of no other that it does not hold it. All of the
    /// hole where it ends in a later epoch and nobody knows how far this one went.
    pub fn one_before(&self, limit: (Epoch, Seq)) -> Option<((Epoch, Seq), (Epoch, Seq))> {
        let (from, to) = self.hole_before(limit)?;
        let ends_here = from.0 == to.0 || self.ends.contains_key(&from.0);
        let next = from.1.checked_add(1).filter(|_| ends_here);
        Some((from, next.map_or(to, |next| (from.0, next))))
    }

    /// Takes it that the next frame will never come.
    pub fn pass(&mut self) {
        let (epoch, seq) = self.next();
        self.held.entry(epoch).or_default().insert(seq);
        self.advance();
    }

    /// Takes it that what lies from one place up to another will never come.
    pub fn gone(&mut self, from: (Epoch, Seq), to: (Epoch, Seq)) {
        let mut first = from.1;
        if from.0 < to.0 {
            self.ends.insert(from.0, (from.1, to.0));
            first = 0;
        }
        if let Some(last) = to.1.checked_sub(1) {
            self.held.entry(to.0).or_default().insert_range(first, last);
        }
        self.advance();
    }

    fn advance(&mut self) {
        loop {
            if let Some(held) = self.held.get(&self.epoch) {
                // All 2³² frames of an epoch: the next one is in another.
                let next = held.first_missing_from(self.seq).unwrap_or(Seq::MAX);
                if next > self.seq {
                    self.last = Some((self.epoch, next - 1));
                    self.seq = next;
                }
            }
            match self.ends.get(&self.epoch) {
                Some(&(end, next)) if self.seq >= end => {
                    self.held.remove(&self.epoch);
                    self.ends.remove(&self.epoch);
                    (self.epoch, self.seq) = (next, 0);
                }
                _ => return,
            }
        }
    }

    /// The next frame that is not there.
    pub fn next(&self) -> (Epoch, Seq) {
        (self.epoch, self.seq)
    }

    /// The last frame before the first hole; none before the first frame.
    pub fn last(&self) -> Option<(Epoch, Seq)> {
        self.last
    }

    /// Whether everything up to and with this frame is there. Frames of epochs that are not known to follow are not.
    pub fn covers(&self, epoch: Epoch, seq: Seq) -> bool {
        if epoch == self.epoch { seq < self.seq } else { self.is_before_cursor(epoch) }
    }

    fn is_before_cursor(&self, epoch: Epoch) -> bool {
        epoch.log_id() == self.epoch.log_id() && epoch < self.epoch
    }

    /// The wearable's oldest frame is further on: what lay between is gone. True when the cursor moved.
    pub fn skip_to(&mut self, oldest: (Epoch, Seq)) -> bool {
        let (epoch, seq) = oldest;
        let further = if epoch == self.epoch { seq > self.seq } else { !self.is_before_cursor(epoch) };
        if further {
            (self.epoch, self.seq) = oldest;
            self.advance();
        }
        further
    }
}

fn first_from(seqs: &SeqSet, seq: Seq) -> Option<Seq> {
    seqs.within(i64::from(seq), i64::MAX).ranges().first().map(|range| range.0)
}

/// What of these frames lies before a place.
fn before(frames: &BTreeMap<Epoch, SeqSet>, (epoch, seq): (Epoch, Seq)) -> BTreeMap<Epoch, SeqSet> {
    let cut = |(of, seqs): (&Epoch, &SeqSet)| {
        let seqs = if *of == epoch { seqs.within(0, i64::from(seq) - 1) } else { seqs.clone() };
        (!seqs.is_empty()).then_some((*of, seqs))
    };
    frames.range(..=epoch).filter_map(cut).collect()
}

fn all_before(end: Seq) -> SeqSet {
    let mut seqs = SeqSet::default();
    if let Some(last) = end.checked_sub(1) {
        seqs.insert_range(0, last);
    }
    seqs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use kinara_protocol::frame::{PreviousBoot, ResetReason, Ticks};
    use proptest::prelude::*;

    fn boot_after(epoch: Epoch, next_seq: Seq) -> BootAnchor {
        let previous = PreviousBoot { epoch, next_seq, last_ticks: Ticks(0), last_sync: None };
        BootAnchor { reason: ResetReason::PowerOn, previous: Some(previous) }
    }

    #[test]
    fn a_frame_that_is_refused_is_passed_alone_and_an_epoch_without_an_end_whole() {
        let (first, third) = (Epoch::new(1, 1), Epoch::new(1, 3));
        let mut seqs = SeqSet::default();
        seqs.insert_range(5, 7);
        let wanted = BTreeMap::from([(first, seqs)]);
        let mut cursor = Cursor::through(&wanted, (third, 40)).unwrap();
        let limit = (third, 40);
        assert_eq!(cursor.one_before(limit), Some(((first, 5), (first, 6))));
        cursor.gone((first, 5), (first, 6));
        cursor.pass();
        assert_eq!(cursor.one_before(limit), Some(((first, 7), (first, 8))));
        cursor.pass();
        assert_eq!((cursor.next(), cursor.one_before(limit)), (limit, None));
        // Nobody knows how far the first epoch went.
        let cursor = Cursor::new((first, 5));
        assert_eq!(cursor.one_before(limit), Some(((first, 5), limit)));
        assert_eq!(cursor.one_before((first, 9)), Some(((first, 5), (first, 6))));
    }

    #[test]
    fn a_cursor_through_lost_frames_stops_at_each_and_ends_where_the_log_goes_on() {
        let (first, third) = (Epoch::new(1, 1), Epoch::new(1, 3));
        let seqs = |ranges: &[(u32, u32)]| {
            let mut seqs = SeqSet::default();
            for (first, last) in ranges {
                seqs.insert_range(*first, *last);
            }
            seqs
        };
        let wanted = BTreeMap::from([(first, seqs(&[(5, 6), (9, 9)])), (third, seqs(&[(2, 2)]))]);
        let mut cursor = Cursor::through(&wanted, (third, 40)).unwrap();
        let mut passed = Vec::new();
        while cursor.next() < (third, 40) {
            let (epoch, seq) = cursor.next();
            passed.push((epoch, seq));
            cursor.take(epoch, seq, None);
        }
        assert_eq!(passed, [(first, 5), (first, 6), (first, 9), (third, 2)]);
        assert_eq!(cursor.next(), (third, 40));
        assert!(Cursor::through(&BTreeMap::new(), (third, 40)).is_none());
    }

    #[test]
    fn frames_that_are_wanted_behind_the_oldest_make_nothing_before_them_held() {
        let [second, third, fourth] = [2, 3, 4].map(|boot| Epoch::new(1, boot));
        let (mut lost, mut live) = (SeqSet::default(), SeqSet::default());
        lost.insert(5);
        live.insert_range(100, 120);
        let wanted = BTreeMap::from([(second, lost), (fourth, live.clone())]);
        let mut cursor = Cursor::through(&wanted, (third, 40)).unwrap();
        cursor.take(second, 5, None);
        assert_eq!(cursor.last(), Some((third, 39)));
        assert_eq!(cursor.next(), (third, 40));
        assert!(Cursor::through(&BTreeMap::from([(fourth, live)]), (third, 40)).is_none());
    }

    #[test]
    fn a_hole_that_is_gone_ends_where_the_next_frame_is_there_and_never_behind_the_oldest() {
        let [first, second, third] = [1, 2, 3].map(|boot| Epoch::new(1, boot));
        let oldest = (third, 10);
        let mut cursor = Cursor::new((first, 5));
        // The end of the first epoch is not known, for the anchor of the second has not come.
        for (epoch, seq) in [(first, 7), (second, 1), (second, 2)] {
            cursor.take(epoch, seq, None);
        }
        let mut holes = Vec::new();
        while let Some((from, to)) = cursor.hole_before(oldest) {
            holes.push((from, to));
            cursor.gone(from, to);
        }
        let expected = [((first, 5), (first, 7)), ((first, 8), (second, 1)), ((second, 3), (third, 10))];
        assert_eq!(holes, expected);
        assert_eq!((cursor.next(), cursor.last()), (oldest, Some((third, 9))));
        // What is to come after the oldest is waited for.
        cursor.take(third, 11, None);
        assert_eq!(cursor.next(), oldest);
    }

    #[test]
    fn a_cursor_that_lags_behind_passes_what_is_gone_when_it_comes_there() {
        let [first, second] = [1, 2].map(|boot| Epoch::new(1, boot));
        let mut cursor = Cursor::new((first, 0));
        cursor.gone((first, 3), (second, 2));
        assert_eq!(cursor.next(), (first, 0));
        // The anchor tells of more frames of the first epoch: those are the ones that are gone.
        cursor.take(second, 2, Some(&boot_after(first, 9)));
        for seq in [1, 2, 0] {
            cursor.take(first, seq, None);
        }
        assert_eq!(cursor.next(), (second, 3));
    }

    /// The places of a log whose boots are so long, each with the boot anchor that is there.
    fn log_of(lengths: &[u32]) -> Vec<(Epoch, Seq, Option<BootAnchor>)> {
        let of_boot = |(boot, &length): (usize, &u32)| {
            let epoch = Epoch::new(3, boot as u32);
            let before = boot.checked_sub(1).map(|b| boot_after(Epoch::new(3, b as u32), lengths[b]));
            (0..length).map(move |seq| (epoch, seq, if seq == 0 { before } else { None })).collect::<Vec<_>>()
        };
        lengths.iter().enumerate().flat_map(of_boot).collect()
    }

    proptest! {
        #[test]
        fn whatever_is_wanted_nothing_is_acknowledged_that_was_neither_held_nor_received(
            lengths in prop::collection::vec(1u32..12, 1..6),
            oldest in any::<prop::sample::Index>(),
            wanted in prop::collection::btree_set(0usize..60, 1..12),
            arriving in prop::collection::vec(0usize..60, 0..80),
        ) {
            let log = log_of(&lengths);
            let oldest = oldest.index(log.len());
            let mut lost: BTreeMap<Epoch, SeqSet> = BTreeMap::new();
            for &(epoch, seq, _) in wanted.iter().filter_map(|at| log.get(*at)) {
                lost.entry(epoch).or_default().insert(seq);
            }
            let mut here: BTreeSet<usize> = (0..oldest).filter(|at| !wanted.contains(at)).collect();
            let Some(mut cursor) = Cursor::through(&lost, (log[oldest].0, log[oldest].1)) else {
                prop_assert!(wanted.iter().all(|at| *at >= oldest));
                return Ok(());
            };
            for at in arriving {
                let Some((epoch, seq, boot)) = log.get(at) else { continue };
                cursor.take(*epoch, *seq, boot.as_ref());
                here.insert(at);
                let whole = (0..log.len()).take_while(|at| here.contains(at)).count();
                if let Some(last) = cursor.last() {
                    let acknowledged = log.iter().filter(|(epoch, seq, _)| (*epoch, *seq) <= last).count();
                    prop_assert!(acknowledged <= whole, "{last:?} of {acknowledged}, {whole} are there");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_the_order_nothing_behind_a_hole_is_acknowledged(
            lengths in prop::collection::vec(1u32..12, 1..5),
            start in 0u32..12,
            order in any::<prop::sample::Index>().prop_flat_map(|_| prop::collection::vec(any::<u32>(), 60)),
            lost in prop::collection::btree_set(0usize..60, 0..4),
        ) {
            let log = log_of(&lengths);
            let first = start.min(lengths[0] - 1) as usize;
            let offered: Vec<usize> = (first..log.len()).collect();
            let mut shuffled = offered.clone();
            shuffled.sort_by_key(|&at| order[at % 60].wrapping_mul(at as u32 + 1));
            let mut cursor = Cursor::new((log[first].0, log[first].1));
            let mut there = BTreeSet::new();
            for at in shuffled {
                if lost.contains(&at) {
                    continue;
                }
                let (epoch, seq, boot) = &log[at];
                cursor.take(*epoch, *seq, boot.as_ref());
                there.insert(at);
                let acknowledged = offered.iter().take_while(|at| there.contains(at)).last();
                let expected = acknowledged.map(|&at| (log[at].0, log[at].1));
                prop_assert_eq!(cursor.last(), expected);
            }
        }
    }

    #[test]
    fn a_frame_that_the_wearable_says_it_lost_is_waited_for_no_longer() {
        let epoch = Epoch::new(1, 1);
        let mut cursor = Cursor::new((epoch, 10));
        for seq in [10, 12, 13] {
            cursor.take(epoch, seq, None);
        }
        assert_eq!(cursor.last(), Some((epoch, 10)));
        cursor.lost(epoch, 11, 11);
        assert_eq!(cursor.last(), Some((epoch, 13)));
        // Said again, it changes nothing; and a loss further on does not hide the hole before it.
        cursor.lost(epoch, 11, 11);
        cursor.lost(epoch, 16, Seq::MAX);
        assert_eq!(cursor.next(), (epoch, 14));
    }

    #[test]
    fn a_ring_that_overwrote_frames_moves_the_cursor_on_and_never_back() {
        let epoch = Epoch::new(1, 1);
        let mut cursor = Cursor::new((epoch, 10));
        cursor.take(epoch, 15, None);
        assert!(!cursor.covers(epoch, 15));
        assert!(!cursor.skip_to((epoch, 9)));
        assert!(cursor.skip_to((epoch, 15)));
        assert_eq!(cursor.last(), Some((epoch, 15)));
        assert!(cursor.skip_to((Epoch::new(2, 0), 0)));
        assert!(!cursor.covers(epoch, 20) && cursor.next() == (Epoch::new(2, 0), 0));
    }
}
