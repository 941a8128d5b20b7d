//! Shares: what one clinic, one member, or one address may have of what all of them need.
//!
//! The promise: who asks for much waits behind their own questions, and in front of nobody else's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
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

/// Of the turns that clinics have together, this part is only for those that have none.
const KEPT_PART: usize = 4;

/// Turns of clinics, so many in all. Each has no more than an equal part (of what there is, divided by the clinics that have one or
/// wait and one more), the last of them are for clinics that have none, and whoever has fewest is the next: however slow the
/// questions of however many are, one more finds room.
#[derive(Debug)]
struct Clinics {
    in_all: usize,
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    of: HashMap<Uuid, usize>,
    all: usize,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    clinic: Uuid,
    answer: oneshot::Sender<OfClinic>,
}

/// A clinic's turn.
#[derive(Debug)]
struct OfClinic {
    clinics: Arc<Clinics>,
    clinic: Uuid,
}

impl Taken {
    fn own(&self, clinic: Uuid) -> usize {
        self.of.get(&clinic).copied().unwrap_or(0)
    }

    /// Whoever may have a turn now, with it.
    fn give(&mut self, in_all: usize, most: usize) -> Vec<Waiting> {
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        let asking: HashSet<Uuid> =
            self.waiting.iter().map(|waiting| waiting.clinic).chain(self.of.keys().copied()).collect();
        let part = in_all.div_ceil(asking.len() + 1).clamp(1, most);
        let mut given = Vec::new();
        while self.all < in_all {
            let has_more = in_all - self.all > in_all / KEPT_PART;
            let next = (self.waiting.iter().enumerate())
                .map(|(place, waiting)| (self.own(waiting.clinic), place))
                .filter(|(own, _)| *own == 0 || (*own < part && has_more))
                .min();
            let Some(waiting) = next.and_then(|(_, place)| self.waiting.remove(place)) else { break };
            *self.of.entry(waiting.clinic).or_default() += 1;
            self.all += 1;
            given.push(waiting);
        }
        given
    }

    fn give_back(&mut self, clinic: Uuid) {
        self.all -= 1;
        if let Some(own) = self.of.get_mut(&clinic) {
            *own -= 1;
            if *own == 0 {
                self.of.remove(&clinic);
            }
        }
    }
}

impl Clinics {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is taken, and tells whoever has a turn by it.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Taken)) {
        let given = {
            let mut taken = self.lock();
            change(&mut taken);
            taken.give(self.in_all, self.most)
        };
        for Waiting { clinic, answer } in given {
            // Whoever waits no more gives it back at once.
            drop(answer.send(OfClinic { clinics: Arc::clone(self), clinic }));
        }
    }

    async fn take(self: &Arc<Self>, clinic: Uuid) -> Option<OfClinic> {
        let (answer, turn) = oneshot::channel();
        self.change(|taken| taken.waiting.push_back(Waiting { clinic, answer }));
        turn.await.ok()
    }
}

impl Drop for OfClinic {
    fn drop(&mut self) {
        self.clinics.change(|taken| taken.give_back(self.clinic));
    }
}

/// Turns at the database: of each clinic, and of each of its members.
#[derive(Debug)]
pub struct Turns {
    clinics: Arc<Clinics>,
    members: Each,
    patience: Duration,
}

/// A turn, given back when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _member: Option<OwnedSemaphorePermit>,
    _clinic: OfClinic,
}

impl Turns {
    /// So many in all, and of them of a clinic and of a member, for which is waited so long.
    pub fn new(in_all: usize, of_clinic: usize, of_member: usize, patience: Duration) -> Self {
        let clinics = Clinics { in_all: in_all.max(1), most: of_clinic.max(1), taken: Mutex::default() };
        Self { clinics: Arc::new(clinics), members: Each::new(of_member), patience }
    }

    /// A turn of a clinic's own, and of its member's.
    pub async fn take(&self, clinic: Uuid, member: Option<Uuid>) -> Result<Turn, Problem> {
        let both = async {
            // The member's first: who asks for much holds none of the clinic's while waiting.
            let of_member = match member {
                Some(member) => Some(self.members.of(member).acquire_owned().await.ok()?),
                None => None,
            };
            let of_clinic = self.clinics.take(clinic).await?;
            Some(Turn { _member: of_member, _clinic: of_clinic })
        };
        let turn = tokio::time::timeout(self.patience, both).await.ok().flatten();
        turn.ok_or_else(|| self.refusal(clinic))
    }

    fn refusal(&self, clinic: Uuid) -> Problem {
        if self.clinics.lock().own(clinic) == 0 {
            return Problem::unavailable(
                "Many questions are being answered just now. Ask again in a moment.",
            );
        }
        Problem::too_many("Other questions of yours are being answered. Ask again in a moment.", 2)
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
        let turns = Turns::new(16, 3, 2, Duration::from_millis(50));
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

    #[tokio::test]
    async fn however_many_clinics_have_slow_questions_one_more_finds_room() {
        let turns = Turns::new(12, 5, 3, Duration::from_millis(20));
        let mut held = Vec::new();
        for clinic in 0..4 {
            for _ in 0..5 {
                held.extend(turns.take(Uuid::from_u128(clinic), None).await.ok());
            }
        }
        assert!(held.len() >= 9, "most of what there is, is used: {}", held.len());
        assert!(turns.take(Uuid::from_u128(4), None).await.is_ok());
        // When there is really no room, whoever asks is not told that it is by questions of theirs.
        for clinic in 4..12 {
            held.extend(turns.take(Uuid::from_u128(clinic), None).await.ok());
        }
        assert_eq!(held.len(), 12);
        assert_eq!(turns.take(Uuid::from_u128(99), None).await.unwrap_err().status(), 503);
        drop(held);
        assert!(turns.take(Uuid::from_u128(99), None).await.is_ok());
        let taken = turns.clinics.lock();
        assert!(taken.of.is_empty() && taken.all == 0);
    }

    #[tokio::test]
    async fn a_turn_that_comes_free_is_for_whoever_has_fewest() {
        let turns = Arc::new(Turns::new(8, 8, 8, Duration::from_secs(20)));
        let (greedy, modest) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut held = Vec::new();
        for clinic in [greedy, greedy, greedy, greedy, modest, Uuid::from_u128(3), Uuid::from_u128(4)] {
            held.push(turns.take(clinic, None).await.unwrap());
        }
        let ask = |clinic: Uuid| {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { turns.take(clinic, None).await })
        };
        let first = ask(greedy);
        tokio::task::yield_now().await;
        let second = ask(modest);
        tokio::task::yield_now().await;
        // Two of the greedy clinic's come free: it has as many as an equal part still.
        held.drain(..2);
        second.await.unwrap().unwrap();
        assert!(!first.is_finished());
        drop(held);
        first.await.unwrap().unwrap();
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
