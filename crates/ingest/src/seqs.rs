//! Sets of frame numbers as sorted, disjoint ranges: the arithmetic of the ledger, beside PostgreSQL's own multiranges
//! and in their notation.

use std::fmt;

/// A set of seqs. Ranges are half-open, sorted, and neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeqSet(Vec<(u64, u64)>);

impl SeqSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// `start..end`, empty where `end` is not above `start`.
    pub fn range(start: u64, end: u64) -> Self {
        Self(if start < end { vec![(start, end)] } else { Vec::new() })
    }

    /// Adds one seq.
    pub fn insert(&mut self, seq: u64) {
        self.insert_range(seq, seq + 1);
    }

    /// Adds `start..end`.
    pub fn insert_range(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // Frames come mostly in order: the range grows at its end.
        match self.0.last_mut() {
            None => return self.0.push((start, end)),
            Some(last) if start > last.1 => return self.0.push((start, end)),
            Some(last) if start >= last.0 => {
                last.1 = last.1.max(end);
                return;
            }
            Some(_) => {}
        }
        let from = self.0.partition_point(|range| range.1 < start);
        let to = self.0.partition_point(|range| range.0 <= end);
        let mut merged = (start, end);
        for range in &self.0[from..to] {
            merged = (merged.0.min(range.0), merged.1.max(range.1));
        }
        self.0.splice(from..to, [merged]);
    }

    /// Whether `seq` is in the set.
    pub fn contains(&self, seq: u64) -> bool {
        self.range_of(seq).is_some()
    }

    /// The range that `seq` is in.
    pub fn range_of(&self, seq: u64) -> Option<(u64, u64)> {
        let at = self.0.partition_point(|range| range.1 <= seq);
        self.0.get(at).copied().filter(|range| range.0 <= seq)
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        for &(start, end) in &other.0 {
            self.insert_range(start, end);
        }
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        // What lies before the first range is not gone through: a hole is looked for in an epoch of a hundred thousand.
        let first = self.first().map_or(0, |first| other.0.partition_point(|cut| cut.1 <= first));
        let mut cuts = other.0[first..].iter().peekable();
        for &(mut start, end) in &self.0 {
            while cuts.next_if(|cut| cut.1 <= start).is_some() {}
            let mut ahead = cuts.clone();
            while let Some(cut) = ahead.next_if(|cut| cut.0 < end) {
                if start < cut.0 {
                    out.push((start, cut.0));
                }
                start = start.max(cut.1);
            }
            if start < end {
                out.push((start, end));
            }
        }
        Self(out)
    }

    /// The blocks of so many numbers that it reaches into, by their numbers.
    #[must_use]
    pub fn blocks(&self, size: u64) -> Self {
        let mut out = Self::new();
        for &(start, end) in &self.0 {
            out.insert_range(start / size, (end - 1) / size + 1);
        }
        out
    }

    /// What lies in each of these blocks, in order.
    pub fn split(&self, size: u64) -> Vec<(u64, Self)> {
        let mut out: Vec<(u64, Self)> = Vec::new();
        for &(mut start, end) in &self.0 {
            while start < end {
                let block = start / size;
                let upto = end.min((block + 1) * size);
                match out.last_mut() {
                    Some((last, set)) if *last == block => set.insert_range(start, upto),
                    _ => out.push((block, Self::range(start, upto))),
                }
                start = upto;
            }
        }
        out
    }

    /// The ranges in order.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many seqs.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// The lowest seq.
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|range| range.0)
    }

    /// The highest seq.
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|range| range.1 - 1)
    }

    /// Reads PostgreSQL's text of an int8multirange of finite ranges.
    pub fn parse(text: &str) -> Option<Self> {
        let mut out = Self::new();
        let inner = text.strip_prefix('{')?.strip_suffix('}')?;
        for range in inner.split("),").filter(|range| !range.is_empty()) {
            let (start, end) = range.strip_prefix('[')?.trim_end_matches(')').split_once(',')?;
            out.insert_range(start.parse().ok()?, end.parse().ok()?);
        }
        Some(out)
    }

    /// Start and length in turns, each start as the distance from the end before it: the envelope's notation.
    pub fn from_distances(pairs: &[u32]) -> Option<Self> {
        let mut out = Self::new();
        let mut end = 0u64;
        for pair in pairs.chunks(2) {
            let &[distance, len] = pair else { return None };
            let start = end + u64::from(distance);
            end = start + u64::from(len);
            if end > 1 << 32 {
                return None;
            }
            out.insert_range(start, end);
        }
        Some(out)
    }
}

impl fmt::Display for SeqSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (start, end)) in self.0.iter().enumerate() {
            write!(f, "{}[{start},{end})", if index > 0 { "," } else { "" })?;
        }
        f.write_str("}")
    }
}

impl FromIterator<(u64, u64)> for SeqSet {
    /// Of ranges in any order: what they cost is not the square of how many they are.
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut ranges: Vec<(u64, u64)> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut out = Self::new();
        for (start, end) in ranges {
            out.insert_range(start, end);
        }
        out
    }
}

impl FromIterator<u64> for SeqSet {
    fn from_iter<I: IntoIterator<Item = u64>>(seqs: I) -> Self {
        let mut out = Self::new();
        for seq in seqs {
            out.insert(seq);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn seqs() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(0u64..80, 0..50)
    }

    proptest! {
        #[test]
        fn it_is_a_set(a in proptest::collection::vec(0u64..80, 0..50), b in seqs()) {
            let (x, y): (SeqSet, SeqSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            let model: BTreeSet<u64> = a.into_iter().collect();
            let items = |set: &SeqSet| set.ranges().iter().flat_map(|r| r.0..r.1).collect::<BTreeSet<u64>>();
            prop_assert_eq!(items(&x), model.clone());
            prop_assert_eq!(x.count(), model.len() as u64);
            let mut sum = x.clone();
            sum.add(&y);
            prop_assert_eq!(items(&sum), model.union(&b).copied().collect::<BTreeSet<u64>>());
            prop_assert_eq!(items(&x.minus(&y)), model.difference(&b).copied().collect::<BTreeSet<u64>>());
            let backwards: SeqSet = y.ranges().iter().rev().chain(x.ranges()).copied().collect();
            prop_assert_eq!(&backwards, &sum);
            let rest = x.minus(&y);
            for set in [&x, &sum, &rest] {
                prop_assert!(set.ranges().windows(2).all(|pair| pair[0].1 < pair[1].0));
                prop_assert_eq!(SeqSet::parse(&set.to_string()), Some(set.clone()));
            }
            for seq in 0..80 {
                prop_assert_eq!(x.contains(seq), model.contains(&seq));
            }
            let mut whole = SeqSet::new();
            for (block, set) in x.split(7) {
                prop_assert!(x.blocks(7).contains(block) && !set.is_empty());
                prop_assert!(items(&set).iter().all(|seq| seq / 7 == block));
                whole.add(&set);
            }
            prop_assert_eq!(whole, x.clone());
            prop_assert_eq!(x.split(7).len() as u64, x.blocks(7).count());
        }
    }

    #[test]
    fn distances_that_leave_32_bits_are_refused() {
        assert_eq!(SeqSet::from_distances(&[5, 2, 1, 1]).unwrap().to_string(), "{[5,7),[8,9)}");
        assert_eq!(SeqSet::from_distances(&[u32::MAX, u32::MAX]), None);
        assert_eq!(SeqSet::from_distances(&[1]), None);
    }
}
