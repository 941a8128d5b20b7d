//! One episode, one event: what follows an onset within the refractory time belongs to it.

use std::collections::VecDeque;

/// How many onsets are remembered; more than fit in a refractory time are not possible.
const REMEMBERED: usize = 8;

/// The onsets that one producer has reported for one device.
#[derive(Debug, Clone)]
pub struct Refractory {
    period: u64,
    overlap: u64,
    onsets: VecDeque<(u64, u64)>,
}

impl Refractory {
    /// No event for `period` ticks after an onset. An onset up to `overlap` ticks *before* a reported one is the same
    /// episode too, seen late, when a backlog is joined to what came before it.
    pub fn new(period: u64, overlap: u64) -> Self {
        Self { period, overlap, onsets: VecDeque::new() }
    }

    /// Whether this onset begins a new episode; if so it is remembered.
    pub fn admit(&mut self, epoch: u64, onset: u64) -> bool {
        let known = self.onsets.iter().any(|&(e, o)| {
            e == epoch && onset >= o.saturating_sub(self.overlap) && onset < o.saturating_add(self.period)
        });
        if !known {
            self.remember(epoch, onset);
        }
        !known
    }

    /// Remembers an onset reported earlier, by a former run of the program.
    pub fn remember(&mut self, epoch: u64, onset: u64) {
        if self.onsets.len() == REMEMBERED {
            self.onsets.pop_front();
        }
        self.onsets.push_back((epoch, onset));
    }

    /// The remembered onsets as (epoch, tick), oldest first.
    pub fn onsets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.onsets.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_onset_within_the_refractory_time_is_the_same_episode_and_one_after_it_is_not() {
        let mut refractory = Refractory::new(1_200_000, 60_000);
        assert!(refractory.admit(1, 100_000));
        assert!(!refractory.admit(1, 100_000));
        assert!(!refractory.admit(1, 1_299_999));
        assert!(!refractory.admit(1, 40_000), "seen late, just before");
        assert!(refractory.admit(1, 1_300_000));
        assert!(refractory.admit(2, 100_000), "another epoch has other ticks");
        assert!(refractory.admit(1, 1_000), "long before, from a backlog");
    }

    #[test]
    fn what_a_former_run_reported_is_not_reported_again() {
        let mut before = Refractory::new(1_000, 100);
        assert!(before.admit(7, 5_000));
        let mut after = Refractory::new(1_000, 100);
        before.onsets().for_each(|(epoch, onset)| after.remember(epoch, onset));
        assert!(!after.admit(7, 5_500));
    }
}
