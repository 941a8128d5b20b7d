//! How many links an adapter holds: what the configuration allows, lowered when the controller refuses.
//!
//! No controller tells its limit; it is met. After a refusal the limit is what was held then; after `relearn` one
//! more is tried, so that a refusal that had another reason does not cost a slot for ever.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// The budget of one adapter.
#[derive(Debug)]
pub struct Slots {
    configured: usize,
    relearn: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    learnt: Option<(usize, Instant)>,
}

/// A link's place; given back when dropped.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

impl Slots {
    /// A budget of `configured` links, at least one.
    pub fn new(configured: usize, relearn: Duration) -> Arc<Self> {
        Arc::new(Self { configured: configured.max(1), relearn, state: Mutex::default() })
    }

    /// Links that can be held now.
    pub fn limit(&self, now: Instant) -> usize {
        self.limit_of(&self.lock(), now)
    }

    fn limit_of(&self, state: &State, now: Instant) -> usize {
        let Some((learnt, at)) = state.learnt else { return self.configured };
        let again = ((now - at).as_secs_f64() / self.relearn.as_secs_f64().max(1.0)) as usize;
        (learnt + again).min(self.configured)
    }

    /// A place for a link; none when all are taken.
    pub fn take(self: &Arc<Self>, now: Instant) -> Option<Slot> {
        let mut state = self.lock();
        if state.held >= self.limit_of(&state, now) {
            return None;
        }
        state.held += 1;
        Some(Slot(self.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Slot {
    /// The controller refused this link for want of room: the others are what it holds. Gives the new limit.
    pub fn refused(self, now: Instant) -> usize {
        let mut state = self.0.lock();
        let learnt = state.held.saturating_sub(1).max(1);
        state.learnt = Some((learnt, now));
        learnt
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lock().held -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEARN: Duration = Duration::from_mins(10);

    #[test]
    fn a_refusal_lowers_the_budget_to_what_was_held_and_time_raises_it_again() {
        let (slots, now) = (Slots::new(8, RELEARN), Instant::now());
        let held: Vec<Slot> = (0..4).filter_map(|_| slots.take(now)).collect();
        assert_eq!(slots.take(now).unwrap().refused(now), 4);
        assert_eq!(slots.limit(now), 4);
        assert!(slots.take(now).is_none());
        assert_eq!(slots.limit(now + RELEARN), 5);
        assert_eq!(slots.limit(now + RELEARN * 10), 8, "never above the configuration");
        drop(held);
        assert!(slots.take(now).is_some());
    }

    #[test]
    fn one_link_is_always_tried() {
        let (slots, now) = (Slots::new(0, RELEARN), Instant::now());
        assert_eq!(slots.take(now).unwrap().refused(now), 1);
        assert!(slots.take(now).is_some());
    }
}
