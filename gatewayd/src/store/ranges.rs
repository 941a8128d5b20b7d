//! Sets of sequence numbers, as few ranges: what of an epoch has been received.

/// A set of `u32` kept as sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeqSet {
    ranges: Vec<(u32, u32)>,
}

impl SeqSet {
    /// Adds one number; false when it was there already.
    pub fn insert(&mut self, seq: u32) -> bool {
        // Nearly always the next number after the last range.
        if let Some(last) = self.ranges.last_mut()
            && last.1.checked_add(1) == Some(seq)
        {
            last.1 = seq;
            return true;
        }
        let at = self.ranges.partition_point(|range| range.1 < seq);
        if self.ranges.get(at).is_some_and(|range| range.0 <= seq) {
            return false;
        }
        let joins_left = at > 0 && self.ranges[at - 1].1.checked_add(1) == Some(seq);
        let joins_right = self.ranges.get(at).is_some_and(|range| seq.checked_add(1) == Some(range.0));
        match (joins_left, joins_right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = seq,
            (false, true) => self.ranges[at].0 = seq,
            (false, false) => self.ranges.insert(at, (seq, seq)),
        }
        true
    }

    /// Adds all numbers from `first` to `last`.
    pub fn insert_range(&mut self, first: u32, last: u32) {
        if first > last {
            return;
        }
        // Ranges that overlap or touch it become one with it.
        let from = self.ranges.partition_point(|range| range.1 < first.saturating_sub(1));
        let to = self.ranges.partition_point(|range| range.0 <= last.saturating_add(1));
        let (mut first, mut last) = (first, last);
        for range in &self.ranges[from..to] {
            (first, last) = (first.min(range.0), last.max(range.1));
        }
        self.ranges.splice(from..to, [(first, last)]);
    }

    /// Whether a number is in the set.
    pub fn contains(&self, seq: u32) -> bool {
        let at = self.ranges.partition_point(|range| range.1 < seq);
        self.ranges.get(at).is_some_and(|range| range.0 <= seq)
    }

    /// The first number from `seq` on that is not in the set; `None` when all up to the largest are.
    pub fn first_missing_from(&self, seq: u32) -> Option<u32> {
        let at = self.ranges.partition_point(|range| range.1 < seq);
        match self.ranges.get(at) {
            Some(range) if range.0 <= seq => range.1.checked_add(1),
            _ => Some(seq),
        }
    }

    /// The numbers from `first` to `last` that are in the set; bounds outside of `u32` bound nothing.
    #[must_use]
    pub fn within(&self, first: i64, last: i64) -> Self {
        let clip = |number: u32| i64::from(number).clamp(first, last) as u32;
        let overlaps = |range: &&(u32, u32)| i64::from(range.0) <= last && i64::from(range.1) >= first;
        let ranges = self.ranges.iter().filter(overlaps).map(|range| (clip(range.0), clip(range.1)));
        Self { ranges: if first <= last { ranges.collect() } else { Vec::new() } }
    }

    /// The set without the numbers from `first` to `last`.
    #[must_use]
    pub fn without(&self, first: i64, last: i64) -> Self {
        if first > last {
            return self.clone();
        }
        let mut left = self.within(i64::MIN, first.saturating_sub(1));
        left.ranges.extend(self.within(last.saturating_add(1), i64::MAX).ranges);
        left
    }

    /// The set without the numbers of another.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let cut = |set: Self, (first, last): &(u32, u32)| set.without(i64::from(*first), i64::from(*last));
        other.ranges.iter().fold(self.clone(), cut)
    }

    /// Adds the numbers of another.
    pub fn join(&mut self, other: &Self) {
        for (first, last) in &other.ranges {
            self.insert_range(*first, *last);
        }
    }

    /// No more than so many ranges, the ones with the highest numbers.
    #[must_use]
    pub fn newest(mut self, most: usize) -> Self {
        self.ranges.drain(..self.ranges.len().saturating_sub(most));
        self
    }

    /// Start and length in turns, each start as the distance from the end before it: as the envelopes have it. The full
    /// range of `u32` does not fit, and is told without its last number.
    pub fn distances(&self) -> Vec<u32> {
        let mut end = 0;
        let mut out = Vec::with_capacity(self.ranges.len() * 2);
        for &(first, last) in &self.ranges {
            out.extend([first - end, (last - first).saturating_add(1)]);
            end = last.saturating_add(1);
        }
        out
    }

    /// Reads [`distances`](Self::distances) back; numbers that are no such set give `None`.
    pub fn from_distances(distances: &[u32]) -> Option<Self> {
        let (pairs, rest) = distances.as_chunks::<2>();
        let (mut ranges, mut end) = (Vec::with_capacity(pairs.len()), 0u32);
        for &[distance, length] in pairs {
            let first = end.checked_add(distance)?;
            end = first.checked_add(length)?;
            ranges.push((first, end.checked_sub(1).filter(|last| *last >= first)?));
        }
        rest.is_empty().then_some(Self { ranges })
    }

    /// How many numbers there are.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, sorted.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    /// Whether all of `0..end` is in the set.
    pub fn holds_all_below(&self, end: u32) -> bool {
        end == 0 || self.ranges.first().is_some_and(|range| range.0 == 0 && range.1 >= end - 1)
    }

    /// Eight bytes a range.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.ranges.len() * 8);
        for (first, last) in &self.ranges {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&last.to_le_bytes());
        }
        out
    }

    /// Reads [`to_bytes`](Self::to_bytes) back; bytes that are no such set give `None`.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (chunks, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return None;
        }
        let mut ranges: Vec<(u32, u32)> = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let number =
                |half: &[u8]| half.iter().rev().fold(0u32, |number, &byte| number << 8 | u32::from(byte));
            let (first, last) = chunk.split_at(4);
            let range = (number(first), number(last));
            let follows = ranges.last().is_none_or(|last| last.1 < u32::MAX && last.1 + 1 < range.0);
            if range.0 > range.1 || !follows {
                return None;
            }
            ranges.push(range);
        }
        Some(Self { ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn distances_start_from_the_end_before() {
        let mut set = SeqSet::default();
        set.insert_range(5, 6);
        set.insert_range(8, 8);
        assert_eq!(set.distances(), [5, 2, 1, 1]);
        assert_eq!(set.newest(1).distances(), [8, 1]);
    }

    proptest! {
        #[test]
        fn the_set_of_ranges_agrees_with_a_plain_set(seqs in prop::collection::vec(0u32..200, 0..300)) {
            let mut set = SeqSet::default();
            let mut plain = BTreeSet::new();
            for seq in seqs {
                prop_assert_eq!(set.insert(seq), plain.insert(seq));
            }
            for seq in 0..210 {
                prop_assert_eq!(set.contains(seq), plain.contains(&seq));
                let missing = (seq..1_000).find(|s| !plain.contains(s));
                prop_assert_eq!(set.first_missing_from(seq), missing);
                prop_assert_eq!(set.holds_all_below(seq), (0..seq).all(|s| plain.contains(&s)));
            }
            prop_assert_eq!(SeqSet::from_bytes(&set.to_bytes()), Some(set));
        }
    }

    proptest! {
        #[test]
        fn a_range_put_in_at_once_is_as_its_numbers_one_by_one(
            ranges in prop::collection::vec((0u32..200, 0u32..20), 0..20),
        ) {
            let (mut at_once, mut single) = (SeqSet::default(), SeqSet::default());
            for (first, more) in ranges {
                at_once.insert_range(first, first + more);
                for seq in first..=first + more {
                    single.insert(seq);
                }
            }
            prop_assert_eq!(at_once, single);
        }
    }

    #[test]
    fn what_lies_within_bounds_is_cut_at_them() {
        let mut set = SeqSet::default();
        for (first, last) in [(0, 3), (6, 6), (9, u32::MAX)] {
            set.insert_range(first, last);
        }
        assert_eq!(set.within(2, 10).ranges(), [(2, 3), (6, 6), (9, 10)]);
        assert_eq!(set.within(7, 8).ranges(), []);
        assert_eq!(set.within(10, 2).ranges(), []);
        assert_eq!(set.within(i64::MIN, i64::MAX), set);
        assert_eq!(set.without(2, 10).ranges(), [(0, 1), (11, u32::MAX)]);
        assert_eq!(set.without(7, 8), set);
        assert_eq!(set.without(i64::MIN, i64::MAX).ranges(), []);
    }

    #[test]
    fn bytes_that_are_no_set_are_refused() {
        assert_eq!(SeqSet::from_bytes(&[1]), None);
        assert_eq!(SeqSet::from_bytes(&[5, 0, 0, 0, 4, 0, 0, 0]), None);
        let mut top = SeqSet::default();
        assert!(top.insert(u32::MAX) && top.insert(u32::MAX - 1));
        assert_eq!(top.first_missing_from(u32::MAX), None);
    }
}
