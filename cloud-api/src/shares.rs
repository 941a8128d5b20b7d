//! Shares: what one clinic, one member, or one address may have of what all of them need.
//!
//! The promise: who asks for much waits behind their own questions, and in front of nobody else's.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::problem::Problem;

/// Semaphores kept that nobody holds.
const IDLE: usize = 1_000;

/// So many at once, of each.
#[derive(Debug)]
struct Each {
    most: usize,
    of: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
}

impl Each {
    fn new(most: usize) -> Self {
        Self { most, of: Mutex::default() }
    }

    fn of(&self, whose: Uuid) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() > IDLE {
            of.retain(|_, held| Arc::strong_count(held) > 1 || held.available_permits() < self.most);
        }
        Arc::clone(of.entry(whose).or_insert_with(|| Arc::new(Semaphore::new(self.most))))
    }
}

/// Turns at the database: of each clinic, and of each of its members.
#[derive(Debug)]
pub struct Turns {
    clinics: Each,
    members: Each,
    patience: Duration,
}

/// A turn, given back when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _member: Option<OwnedSemaphorePermit>,
    _clinic: OwnedSemaphorePermit,
}

impl Turns {
    /// So many of a clinic and of a member, for which is waited so long.
    pub fn new(of_clinic: usize, of_member: usize, patience: Duration) -> Self {
        Self { clinics: Each::new(of_clinic), members: Each::new(of_member), patience }
    }

    /// A turn of a clinic's own, and of its member's.
    pub async fn take(&self, clinic: Uuid, member: Option<Uuid>) -> Result<Turn, Problem> {
        let both = async {
            // The member's first: who asks for much holds none of the clinic's while waiting.
            let of_member = match member {
                Some(member) => Some(self.members.of(member).acquire_owned().await.ok()?),
                None => None,
            };
            let of_clinic = self.clinics.of(clinic).acquire_owned().await.ok()?;
            Some(Turn { _member: of_member, _clinic: of_clinic })
        };
        tokio::time::timeout(self.patience, both).await.ok().flatten().ok_or_else(|| {
            Problem::too_many("Other questions of yours are being answered. Ask again in a moment.", 2)
        })
    }
}

/// How many there are, by whose they are.
#[derive(Debug)]
pub struct Counted<K> {
    most: usize,
    of: Mutex<HashMap<K, usize>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct One<K: Eq + Hash + Copy> {
    counted: Arc<Counted<K>>,
    whose: K,
}

impl<K: Eq + Hash + Copy> Counted<K> {
    /// At most so many of each.
    pub fn new(most: usize) -> Self {
        Self { most, of: Mutex::new(HashMap::new()) }
    }

    /// One more, if there may be.
    pub fn one(self: &Arc<Self>, whose: K) -> Option<One<K>> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of.entry(whose).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(One { counted: Arc::clone(self), whose })
    }
}

impl<K: Eq + Hash + Copy> Drop for One<K> {
    fn drop(&mut self) {
        let mut of = self.counted.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                of.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_who_asks_for_much_leaves_turns_to_colleagues_and_a_clinic_to_others() {
        let turns = Turns::new(3, 2, Duration::from_millis(50));
        let (greedy, colleague, clinic, other) =
            (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3), Uuid::from_u128(4));
        let held = [
            turns.take(clinic, Some(greedy)).await.unwrap(),
            turns.take(clinic, Some(greedy)).await.unwrap(),
        ];
        assert_eq!(turns.take(clinic, Some(greedy)).await.unwrap_err().status(), 429);
        let third = turns.take(clinic, Some(colleague)).await.unwrap();
        assert!(turns.take(clinic, Some(colleague)).await.is_err(), "the clinic has its share");
        assert!(turns.take(other, None).await.is_ok());
        drop((held, third));
        assert!(turns.take(clinic, Some(greedy)).await.is_ok());
    }

    #[test]
    fn of_each_there_are_so_many_and_no_more() {
        let counted = Arc::new(Counted::new(2));
        let held = [counted.one(7), counted.one(7)];
        assert!(held.iter().all(Option::is_some) && counted.one(7).is_none() && counted.one(8).is_some());
        drop(held);
        assert!(counted.one(7).is_some());
    }
}
