//! Whether the loops that the gateway cannot do without still turn.
//!
//! The promise: a loop that has a [`Pulse`] and does not beat it is found silent, and so is one that died of a panic. Only
//! a loop that ended in order is no longer missed. What is found is for the watchdog: nothing here mends anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The loops of one daemon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Vitals {
    last: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Vitals {
    /// A loop says that it has begun to turn.
    pub fn pulse(&self, name: impl Into<String>) -> Pulse {
        let name = name.into();
        // Known before it does anything: a loop that hangs in its first turn is missed as well.
        self.with(|last| last.insert(name.clone(), Instant::now()));
        Pulse { vitals: self.clone(), name }
    }

    /// The loops that have not turned for this long, by name.
    pub fn silent_for(&self, limit: Duration) -> Vec<String> {
        self.with(|last| {
            let silent = last.iter().filter(|(_, at)| at.elapsed() > limit);
            silent.map(|(name, _)| name.clone()).collect()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Instant>) -> T) -> T {
        work(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A loop's pulse, which it beats once a turn and drops when it ends.
#[derive(Debug)]
pub struct Pulse {
    vitals: Vitals,
    name: String,
}

impl Pulse {
    /// The loop has come round.
    pub fn beat(&self) {
        crate::sabotage::stall(&self.name);
        self.vitals.with(|last| match last.get_mut(&self.name) {
            Some(at) => *at = Instant::now(),
            // Another pulse of this name has ended since.
            None => {
                last.insert(self.name.clone(), Instant::now());
            }
        });
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // One that panics has not ended in order: it stays, and will be missed.
        if !std::thread::panicking() {
            self.vitals.with(|last| last.remove(&self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the passing of time is what is tested")]
    fn a_loop_that_does_not_turn_is_found_and_one_that_ended_in_order_is_not() {
        let vitals = Vitals::default();
        let (turning, hung, ended) =
            (vitals.pulse("radio"), vitals.pulse("store"), vitals.pulse("radio hci0"));
        std::thread::sleep(Duration::from_millis(30));
        turning.beat();
        drop(ended);
        assert_eq!(vitals.silent_for(Duration::from_millis(20)), ["store"]);
        hung.beat();
        assert!(vitals.silent_for(Duration::from_millis(20)).is_empty());
    }

    #[test]
    fn a_loop_that_died_of_a_panic_stays_missed() {
        let vitals = Vitals::default();
        let theirs = vitals.clone();
        let died = std::thread::spawn(move || {
            let _pulse = theirs.pulse("store");
            panic!("as planned");
        });
        assert!(died.join().is_err());
        assert_eq!(vitals.silent_for(Duration::ZERO), ["store"]);
    }
}
