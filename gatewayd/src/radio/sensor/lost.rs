//! Numbers of a connection that will never be frames and have no gap yet.

use std::collections::BTreeMap;

use kinara_protocol::frame::Seq;

/// Runs of numbers that follow each other, by the first of each: the number after its last, and the latest ticks in it.
/// Between two runs there is a frame that waits, so there are no more of them than of those.
#[derive(Debug, Default)]
pub struct Lost(BTreeMap<Seq, (Seq, u64)>);

impl Lost {
    /// Whether all have their gap.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Another one.
    pub fn add(&mut self, seq: Seq, ticks: u64) {
        let (mut first, mut next, mut latest) = (seq, seq.saturating_add(1), ticks);
        if let Some((end, ticks)) = self.0.remove(&next) {
            (next, latest) = (end, latest.max(ticks));
        }
        let before = self.0.range(..seq).next_back().map(|(first, run)| (*first, *run));
        if let Some((begin, (end, ticks))) = before
            && end >= seq
        {
            (first, next, latest) = (begin, next.max(end), latest.max(ticks));
        }
        self.0.insert(first, (next, latest));
    }

    /// The first run: its first number, the one after its last, and its latest ticks.
    pub fn first(&self) -> Option<(Seq, Seq, u64)> {
        self.0.first_key_value().map(|(first, (next, ticks))| (*first, *next, *ticks))
    }

    /// It has its gap.
    pub fn remove_first(&mut self) {
        self.0.pop_first();
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.iter().map(|(first, (next, _))| (next - first) as usize).sum()
    }

    #[cfg(test)]
    pub fn runs(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_a_sensor_lost_are_given_up_run_by_run() {
        let mut lost = Lost::default();
        for (seq, ticks) in [(6, 60), (3, 30), (4, 40), (9, 90), (8, 95)] {
            lost.add(seq, ticks);
        }
        let mut runs = Vec::new();
        while let Some(run) = lost.first() {
            lost.remove_first();
            runs.push(run);
        }
        assert_eq!(runs, [(3, 5, 40), (6, 7, 60), (8, 10, 95)]);
        for (seq, ticks) in [(5, 1), (7, 2), (6, 3)] {
            lost.add(seq, ticks);
        }
        assert_eq!(lost.first(), Some((5, 8, 3)));
    }
}
