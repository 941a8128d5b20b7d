//! Which clinics' changes are looked at just now.
//!
//! The promise: rules and models of one clinic take one worker, one after the other, each for a turn ([`TURN`]); what is left
//! then is queued again, behind what the other clinics wait for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

/// How long one look takes about; a transaction that was begun is ended.
pub const TURN: Duration = Duration::from_secs(5);

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A clinic's rules.
    Rules,
    /// What finds events in readings.
    Models,
}

/// The clinics that are looked at, and what came for each of them meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Looks(Arc<Mutex<HashMap<Uuid, Option<Kind>>>>);

/// A look, which ends when it is dropped.
#[derive(Debug)]
pub struct Looking {
    looks: Looks,
    clinic: Uuid,
}

impl Looks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Option<Kind>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a look. `None`: the clinic has one already, and whoever looks will do this one next.
    pub fn begin(&self, clinic: Uuid, kind: Kind) -> Option<Looking> {
        let mut looks = self.lock();
        if let Some(next) = looks.get_mut(&clinic) {
            *next = Some(kind);
            return None;
        }
        looks.insert(clinic, None);
        Some(Looking { looks: self.clone(), clinic })
    }
}

impl Looking {
    /// What came meanwhile.
    pub fn next(&self) -> Option<Kind> {
        self.looks.lock().get_mut(&self.clinic)?.take()
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.looks.lock().remove(&self.clinic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLINIC: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    #[test]
    fn a_clinics_rules_and_models_take_one_worker_and_other_clinics_have_theirs() {
        let looks = Looks::default();
        let rules = looks.begin(CLINIC, Kind::Rules).unwrap();
        assert_eq!(rules.next(), None);
        assert!(looks.begin(CLINIC, Kind::Models).is_none());
        let other = looks.begin(OTHER, Kind::Models).unwrap();
        assert_eq!((rules.next(), rules.next(), other.next()), (Some(Kind::Models), None, None));
        drop(rules);
        assert!(looks.begin(CLINIC, Kind::Models).is_some());
        assert!(looks.begin(OTHER, Kind::Rules).is_none(), "another clinic's still goes on");
    }
}
