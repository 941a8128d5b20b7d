//! What is on the way to the bridge, and when to send it again.

use std::collections::HashMap;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::Settings;
use crate::store::{Kind, Name};

/// Event batches on the way at once.
const EVENT_WINDOW: usize = 4;
/// What was published more recently than this is not published again on a bridge's request.
const RESEND_AGE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
struct Flight {
    sha256: [u8; 32],
    bytes: usize,
    sent: Instant,
    deadline: Instant,
}

/// The batches on the way on one connection.
#[derive(Debug)]
pub struct Window {
    flights: HashMap<Name, Flight>,
    /// How often each was published on this connection.
    attempts: HashMap<Name, u32>,
    paused_until: Option<Instant>,
    batches: usize,
    bytes: usize,
    timeout: Duration,
    timeout_most: Duration,
}

impl Window {
    /// An empty window.
    pub fn new(settings: &Settings) -> Self {
        Self {
            flights: HashMap::new(),
            attempts: HashMap::new(),
            paused_until: None,
            batches: settings.window_batches,
            bytes: settings.window_bytes,
            timeout: settings.ack_timeout,
            timeout_most: settings.ack_timeout_most,
        }
    }

    /// How many batches and bytes of this kind may be published now.
    pub fn room(&self, kind: Kind, now: Instant) -> (usize, usize) {
        if self.paused_until.is_some_and(|until| until > now) {
            return (0, 0);
        }
        let of_kind = self.flights.iter().filter(|(name, _)| name.kind == kind);
        let (count, bytes) =
            of_kind.fold((0, 0), |(count, bytes), (_, flight)| (count + 1, bytes + flight.bytes));
        let most = if kind == Kind::Event { EVENT_WINDOW } else { self.batches };
        let room = self.bytes.saturating_sub(bytes);
        (if room == 0 { 0 } else { most.saturating_sub(count) }, room)
    }

    /// The names on the way.
    pub fn names(&self) -> Vec<Name> {
        self.flights.keys().copied().collect()
    }

    /// A batch has been published. True when it was not the first time on this connection.
    pub fn published(&mut self, name: Name, sha256: [u8; 32], bytes: usize, now: Instant) -> bool {
        let attempts = self.attempts.entry(name).or_default();
        let timeout = self.timeout.saturating_mul(1 << (*attempts).min(16)).min(self.timeout_most);
        *attempts += 1;
        let jittered = timeout.mul_f64(rand::rng().random_range(0.8..1.2));
        let again = *attempts > 1;
        self.flights.insert(name, Flight { sha256, bytes, sent: now, deadline: now + jittered });
        again
    }

    /// The bridge has acknowledged (or refused) it; false when another content was on the way under this name.
    pub fn answered(&mut self, name: Name, sha256: &[u8; 32]) -> bool {
        if self.flights.get(&name).is_some_and(|flight| flight.sha256 != *sha256) {
            return false;
        }
        self.flights.remove(&name);
        self.attempts.remove(&name);
        true
    }

    /// The bridge asks for a pause: nothing is published meanwhile, and this one again afterwards.
    pub fn pause(&mut self, name: Name, pause: Duration, now: Instant) {
        self.flights.remove(&name);
        let jittered = pause.mul_f64(rand::rng().random_range(1.0..1.25));
        self.paused_until = Some(now + jittered);
    }

    /// Takes what has not been answered in time off the way, so that it is published again. Gives how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.flights.len();
        self.flights.retain(|_, flight| flight.deadline > now);
        before - self.flights.len()
    }

    /// A bridge has just subscribed: takes off the way what was published long enough before that it may have reached
    /// nobody. A command that comes twice (from two bridges) finds the second time nothing that old. Gives how many.
    pub fn resend(&mut self, now: Instant) -> usize {
        let before = self.flights.len();
        self.flights.retain(|_, flight| flight.sent + RESEND_AGE > now);
        before - self.flights.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        Window {
            flights: HashMap::new(),
            attempts: HashMap::new(),
            paused_until: None,
            batches: 2,
            bytes: 100,
            timeout: Duration::from_secs(30),
            timeout_most: Duration::from_mins(10),
        }
    }

    fn name(sequence: u64) -> Name {
        Name { kind: Kind::Batch, buffer: 1, sequence }
    }

    #[test]
    fn a_batch_without_an_answer_goes_out_again_after_a_growing_time() {
        let mut window = window();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for attempt in 0..7 {
            assert_eq!(window.published(name(1), [0; 32], 10, now), attempt > 0);
            let start = now;
            while window.expire(now) == 0 {
                now += Duration::from_secs(1);
            }
            waits.push((now - start).as_secs());
        }
        assert!((24..=37).contains(&waits[0]) && (480..=721).contains(&waits[6]), "{waits:?}");
    }

    #[test]
    fn the_window_is_bounded_in_number_and_bytes_and_a_pause_closes_it() {
        let mut window = window();
        let now = Instant::now();
        assert_eq!(window.room(Kind::Batch, now), (2, 100));
        window.published(name(1), [1; 32], 60, now);
        assert_eq!(window.room(Kind::Batch, now), (1, 40));
        window.published(name(2), [2; 32], 60, now);
        assert_eq!(window.room(Kind::Batch, now).0, 0);
        assert!(!window.answered(name(1), &[9; 32]));
        assert!(window.answered(name(1), &[1; 32]));
        window.pause(name(2), Duration::from_secs(5), now);
        assert_eq!(window.room(Kind::Batch, now).0, 0);
        assert_eq!(window.room(Kind::Batch, now + Duration::from_secs(7)), (2, 100));
    }

    #[test]
    fn a_bridge_that_has_just_subscribed_gets_what_went_before_and_only_once() {
        let (mut window, start) = (window(), Instant::now());
        window.published(name(1), [1; 32], 10, start);
        let later = start + Duration::from_secs(2);
        window.published(name(2), [2; 32], 10, later);
        assert_eq!(window.resend(later), 1);
        assert_eq!(window.names(), [name(2)]);
        assert!(window.published(name(1), [1; 32], 10, later));
        assert_eq!(window.resend(later + Duration::from_millis(100)), 0);
    }
}
