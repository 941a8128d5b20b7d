//! Nonces from which a passkey was computed, and how often the box tries by itself.
//!
//! The promise: of one nonce a passkey is given once. LE Secure Connections tell the other side some two bits of a passkey in
//! each attempt (design, "Pairing and bonds"), so a stranger who offers the same nonce again and again would learn it
//! bit by bit. A wearable draws a new one for every attempt; who offers an old one is no wearable. Pairings that nobody
//! asked for (a label of the configuration) pause after a wrong code, twice as long each time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hardware::HardwareId;

/// Nonces that are remembered. At one attempt in some seconds this is hours of attempts, and each costs a code.
const REMEMBERED: usize = 4_096;
/// The pause after the first wrong code of a pairing that nobody asked for, microseconds.
const FIRST_PAUSE_US: i64 = 10_000_000;
/// The longest one, microseconds.
const LONGEST_PAUSE_US: i64 = 3_600_000_000;

/// What was tried since the daemon started.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    spent: VecDeque<Vec<u8>>,
    pauses: HashMap<HardwareId, Pause>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Pause {
    failures: u32,
    until_us: i64,
}

impl Nonces {
    /// Whether this passkey was computed from this nonce before (both, one after the other).
    pub fn is_spent(&self, nonce: &[u8]) -> bool {
        self.lock().spent.iter().any(|spent| spent == nonce)
    }

    /// A passkey of it is about to be told.
    pub fn spend(&self, nonce: &[u8]) {
        let mut inner = self.lock();
        if inner.spent.len() == REMEMBERED {
            inner.spent.pop_front();
        }
        inner.spent.push_back(nonce.to_vec());
    }

    /// Whether a pairing that nobody asked for has to wait. `now_us` is boot time.
    pub fn pauses(&self, hardware: &HardwareId, now_us: i64) -> bool {
        self.lock().pauses.get(hardware).is_some_and(|pause| pause.until_us > now_us)
    }

    /// Such a pairing ended with a wrong code; `jitter` is from 0 to 1.
    pub fn wrong_code(&self, hardware: &HardwareId, now_us: i64, jitter: f64) {
        let mut inner = self.lock();
        let pause = inner.pauses.entry(hardware.clone()).or_default();
        let full = (FIRST_PAUSE_US << pause.failures.min(20)).min(LONGEST_PAUSE_US);
        pause.failures = pause.failures.saturating_add(1);
        pause.until_us = now_us + full - (full as f64 * jitter / 4.0) as i64;
    }

    /// Such a pairing came about.
    pub fn paired(&self, hardware: &HardwareId) {
        self.lock().pauses.remove(hardware);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_serves_once_and_the_memory_is_bounded() {
        let nonces = Nonces::default();
        assert!(!nonces.is_spent(&[1]));
        nonces.spend(&[1]);
        assert!(nonces.is_spent(&[1]) && !nonces.is_spent(&[2]));
        for n in 0..REMEMBERED as u64 {
            nonces.spend(&n.to_be_bytes());
        }
        assert_eq!(nonces.lock().spent.len(), REMEMBERED);
    }

    #[test]
    fn a_wrong_code_makes_the_box_wait_longer_each_time_and_a_right_one_forgets_it() {
        let (nonces, hardware) = (Nonces::default(), HardwareId::kinara(1));
        let mut attempts = 0;
        for second in 0..86_400 {
            let now_us = second * 1_000_000;
            if !nonces.pauses(&hardware, now_us) {
                attempts += 1;
                nonces.wrong_code(&hardware, now_us, 0.5);
            }
        }
        assert!((30..45).contains(&attempts), "{attempts} in a day");
        assert!(!nonces.pauses(&HardwareId::kinara(2), 0), "another one does not wait");
        nonces.paired(&hardware);
        assert!(!nonces.pauses(&hardware, 0));
    }
}
