//! What is on the way to the bridge, how much may be, and when to send it again.
//!
//! It begins with one batch and grows with the bridge's acknowledgements, up to what the line carries in the time that
//! an answer takes. The time for an answer counts from the moment at which the broker has the batch: before that it
//! is the line that is waited for, and sending again would only make it longer.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::Settings;
use crate::store::{Kind, Name};

/// Event batches on the way at once.
const EVENT_WINDOW: usize = 4;
/// What the broker has had for less than this is not published again on a bridge's request.
const RESEND_AGE: Duration = Duration::from_millis(500);
/// Beyond the time that an answer takes, so much of the line's work may be on the way.
const AHEAD: Duration = Duration::from_secs(10);
/// Smaller batches say nothing about the line.
const MEASURED: usize = 4 * 1024;

#[derive(Debug, Clone, Copy)]
struct Flight {
    sha256: [u8; 32],
    bytes: usize,
    sent: Instant,
    /// When the broker had it.
    accepted: Option<Instant>,
    /// How long it took to leave.
    took: Option<Duration>,
    deadline: Option<Instant>,
}

/// The batches on the way on one connection.
#[derive(Debug)]
pub struct Window {
    flights: HashMap<Name, Flight>,
    /// How often each was published on this connection.
    attempts: HashMap<Name, u32>,
    /// Batches that the broker does not take.
    too_big: HashSet<Name>,
    paused_until: Option<Instant>,
    batches: usize,
    bytes: usize,
    timeout: Duration,
    timeout_most: Duration,
    /// The bridge has answered for a batch.
    answered: bool,
    /// Batches that may be on the way, by what was acknowledged so far.
    earned: usize,
    /// Measured, bytes a second.
    goodput: Option<f64>,
    /// The quickest answer to a batch.
    quickest: Duration,
    last_accepted: Option<Instant>,
}

impl Window {
    /// An empty window.
    pub fn new(settings: &Settings) -> Self {
        Self::of(
            settings.window_batches,
            settings.window_bytes,
            settings.ack_timeout,
            settings.ack_timeout_most,
        )
    }

    fn of(batches: usize, bytes: usize, timeout: Duration, timeout_most: Duration) -> Self {
        Self {
            flights: HashMap::new(),
            attempts: HashMap::new(),
            too_big: HashSet::new(),
            paused_until: None,
            batches,
            bytes,
            timeout,
            timeout_most,
            answered: false,
            earned: 1,
            goodput: None,
            quickest: Duration::MAX,
            last_accepted: None,
        }
    }

    /// How many batches and bytes of this kind may be published now. One batch may be larger than the bytes say.
    pub fn room(&self, kind: Kind, now: Instant) -> (usize, usize) {
        if self.paused_until.is_some_and(|until| until > now) {
            return (0, 0);
        }
        let of_kind = self.flights.iter().filter(|(name, _)| name.kind == kind);
        let (count, bytes) =
            of_kind.fold((0, 0), |(count, bytes), (_, flight)| (count + 1, bytes + flight.bytes));
        let most = if kind == Kind::Event { EVENT_WINDOW } else { self.batches.min(self.earned) };
        let room = self.carried().saturating_sub(bytes);
        (if room == 0 { 0 } else { most.saturating_sub(count) }, room)
    }

    /// Bytes that the line carries until an answer is back.
    fn carried(&self) -> usize {
        let Some(goodput) = self.goodput else { return self.bytes };
        let seconds = (self.quickest.min(self.timeout_most) + AHEAD).as_secs_f64();
        ((goodput * seconds) as usize).min(self.bytes)
    }

    /// The names that are not to be published now.
    pub fn names(&self) -> Vec<Name> {
        self.flights.keys().chain(&self.too_big).copied().collect()
    }

    /// What the line was measured to carry, bytes a second.
    pub fn goodput(&self) -> Option<f64> {
        self.goodput
    }

    /// Whether a batch is on the way, and none was ever answered.
    pub fn is_barren(&self) -> bool {
        !self.answered && self.flights.keys().any(|name| name.kind == Kind::Batch)
    }

    /// A batch is larger than the broker takes: it stays here while this connection lasts.
    pub fn too_big(&mut self, name: Name) {
        self.flights.remove(&name);
        self.too_big.insert(name);
    }

    /// How many batches are left out for their size.
    pub fn left_out(&self) -> usize {
        self.too_big.len()
    }

    /// A batch has been published. True when it was not the first time on this connection.
    pub fn published(&mut self, name: Name, sha256: [u8; 32], bytes: usize, now: Instant) -> bool {
        let attempts = self.attempts.entry(name).or_default();
        *attempts += 1;
        let again = *attempts > 1;
        let flight = Flight { sha256, bytes, sent: now, accepted: None, took: None, deadline: None };
        self.flights.insert(name, flight);
        again
    }

    /// A batch has left for the broker. Its answer may take long, but not for ever.
    pub fn left(&mut self, name: Name, took: Duration, now: Instant) {
        if let Some(flight) = self.flights.get_mut(&name) {
            flight.took = Some(took);
            flight.deadline.get_or_insert(now + self.timeout_most.max(self.timeout));
        }
    }

    /// The broker has it: from now on the bridge has its time to answer.
    pub fn accepted(&mut self, name: Name, now: Instant) {
        let attempts = self.attempts.get(&name).copied().unwrap_or(1);
        let Some(flight) = self.flights.get_mut(&name) else { return };
        let timeout = self.timeout.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        let timeout = timeout.min(self.timeout_most).mul_f64(rand::rng().random_range(0.8..1.2));
        flight.deadline = Some(now + timeout);
        flight.accepted = Some(now);
        let since = self.last_accepted.map_or(flight.sent, |last| last.max(flight.sent));
        self.last_accepted = Some(now);
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if flight.bytes >= MEASURED && seconds > 0.0 {
            let measured = flight.bytes as f64 / seconds;
            self.goodput = Some(self.goodput.map_or(measured, |before| f64::midpoint(before, measured)));
        }
    }

    /// The bridge has acknowledged (or refused) it: how long it took to leave. Nothing when another content was on
    /// the way under this name.
    pub fn answered(&mut self, name: Name, sha256: &[u8; 32], now: Instant) -> Option<Duration> {
        if self.flights.get(&name).is_some_and(|flight| flight.sha256 != *sha256) {
            return None;
        }
        self.attempts.remove(&name);
        let Some(flight) = self.flights.remove(&name) else { return Some(Duration::ZERO) };
        self.answered |= name.kind == Kind::Batch;
        self.quickest = self.quickest.min(now.saturating_duration_since(flight.sent));
        if name.kind == Kind::Batch {
            self.earned = (self.earned + 1).min(self.batches);
        }
        Some(flight.took.unwrap_or_default())
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
        self.flights.retain(|_, flight| flight.deadline.is_none_or(|deadline| deadline > now));
        before - self.flights.len()
    }

    /// A bridge has just subscribed: takes off the way what the broker had long enough before that it may have reached
    /// nobody. A command that comes twice (from two bridges) finds the second time nothing that old. Gives how many.
    pub fn resend(&mut self, now: Instant) -> usize {
        let before = self.flights.len();
        self.flights.retain(|_, flight| flight.accepted.is_none_or(|at| at + RESEND_AGE > now));
        before - self.flights.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: [u8; 32] = [1; 32];

    fn window() -> Window {
        Window::of(16, 4 << 20, Duration::from_secs(30), Duration::from_mins(10))
    }

    fn name(sequence: u64) -> Name {
        Name { kind: Kind::Batch, buffer: 1, sequence }
    }

    /// Publishes it, and the bridge has it after `took`.
    fn through(window: &mut Window, sequence: u64, bytes: usize, now: &mut Instant, took: Duration) {
        window.published(name(sequence), SHA, bytes, *now);
        *now += took;
        window.left(name(sequence), took, *now);
        window.accepted(name(sequence), *now);
        assert_eq!(window.answered(name(sequence), &SHA, *now), Some(took));
    }

    #[test]
    fn a_batch_without_an_answer_goes_out_again_after_a_growing_time_that_begins_when_the_broker_has_it() {
        let mut window = window();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for attempt in 0..7 {
            assert_eq!(window.published(name(1), [0; 32], 10, now), attempt > 0);
            now += Duration::from_mins(5);
            assert_eq!(window.expire(now), 0, "it has not even left");
            window.left(name(1), Duration::from_mins(5), now);
            window.accepted(name(1), now);
            let start = now;
            while window.expire(now) == 0 {
                now += Duration::from_secs(1);
            }
            waits.push((now - start).as_secs());
        }
        assert!((24..=37).contains(&waits[0]) && (480..=721).contains(&waits[6]), "{waits:?}");
    }

    #[test]
    fn one_batch_goes_first_and_acknowledgements_let_more_go() {
        let mut window = window();
        let mut now = Instant::now();
        assert_eq!(window.room(Kind::Batch, now).0, 1);
        window.published(name(0), SHA, 100_000, now);
        assert_eq!(window.room(Kind::Batch, now).0, 0);
        assert!(window.is_barren());
        now += Duration::from_millis(100);
        window.accepted(name(0), now);
        window.answered(name(0), &SHA, now);
        assert!(!window.is_barren());
        assert_eq!(window.room(Kind::Batch, now).0, 2);
        for sequence in 1..30 {
            through(&mut window, sequence, 100_000, &mut now, Duration::from_millis(100));
        }
        assert_eq!(window.room(Kind::Batch, now).0, 16);
    }

    #[test]
    fn on_a_slow_line_no_more_is_on_the_way_than_it_carries_in_the_time_of_an_answer() {
        let mut window = window();
        let mut now = Instant::now();
        for sequence in 0..10 {
            through(&mut window, sequence, 40_000, &mut now, Duration::from_secs(20));
        }
        let (_, bytes) = window.room(Kind::Batch, now);
        assert!((50_000..70_000).contains(&bytes), "2 kB/s for 30 s: {bytes}");
        window.published(name(20), SHA, 40_000, now);
        window.published(name(21), SHA, 40_000, now);
        assert_eq!(window.room(Kind::Batch, now).0, 0);
    }

    #[test]
    fn a_long_way_does_not_keep_the_window_small() {
        let mut window = window();
        let mut now = Instant::now();
        let mut sequence = 0;
        for _ in 0..12 {
            // As much as may be is on the way at once and is all there 16 s later.
            let mut flying = Vec::new();
            while window.room(Kind::Batch, now).0 > 0 {
                window.published(name(sequence), SHA, 100_000, now);
                flying.push(sequence);
                sequence += 1;
            }
            now += Duration::from_secs(16);
            for sequence in flying {
                now += Duration::from_millis(10);
                window.accepted(name(sequence), now);
                window.answered(name(sequence), &SHA, now);
            }
        }
        assert!(window.room(Kind::Batch, now).0 >= 8, "{:?}", window.room(Kind::Batch, now));
    }

    #[test]
    fn a_pause_closes_the_window_and_another_content_answers_nothing() {
        let mut window = window();
        let now = Instant::now();
        window.published(name(1), SHA, 60, now);
        assert_eq!(window.answered(name(1), &[9; 32], now), None);
        window.pause(name(1), Duration::from_secs(5), now);
        assert_eq!(window.room(Kind::Batch, now).0, 0);
        assert_eq!(window.room(Kind::Batch, now + Duration::from_secs(7)).0, 1);
    }

    #[test]
    fn what_the_broker_does_not_take_is_left_out_and_the_next_one_goes() {
        let mut window = window();
        let now = Instant::now();
        window.too_big(name(1));
        assert_eq!((window.names(), window.room(Kind::Batch, now).0), (vec![name(1)], 1));
    }

    #[test]
    fn a_bridge_that_has_just_subscribed_gets_what_the_broker_had_before_and_only_once() {
        let (mut window, start) = (window(), Instant::now());
        for sequence in 1..=3 {
            window.published(name(sequence), SHA, 10, start);
        }
        window.accepted(name(1), start);
        let later = start + Duration::from_secs(2);
        window.accepted(name(2), later);
        assert_eq!(window.resend(later), 1);
        assert!(window.published(name(1), SHA, 10, later));
        assert_eq!(window.resend(later + Duration::from_millis(100)), 0);
    }
}
