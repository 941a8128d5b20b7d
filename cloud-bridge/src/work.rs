//! The writers: each takes what waits, as much as one transaction may hold, writes it and answers.
//!
//! The promise: a batch is answered `done` only after the commit that holds it. With the database away nothing is held
//! on to: everything is sent back with a time to come again.
//!
//! Payloads are read on threads of their own, each within a time: what takes a second to unpack holds up nobody else. Small
//! batches are read some at once, for on a busy machine each change of threads waits for a processor. A
//! batch of more than one transaction's worth, or of more than some decisions (each is a transaction of its own), is written in
//! pieces, and between two of them whoever else waits has a turn; it is answered after its last piece, and what was written of
//! one that is not finished is known when it comes again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_ingest::events::{self, Events};
use kinara_ingest::stages::{Passage, Stage};
use kinara_ingest::{Batch, Counts, Outcome, Unreadable, Writer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::answer::{self, Addressee, Answer};
use crate::config::Limits;
use crate::link::Publisher;
use crate::metrics::Metrics;
use crate::queue::{Item, Queue, WriterId};
use crate::trace::{Told, Tracer, Way};

/// The longest that a gateway is sent away for, in seconds, while the database is down.
const LONGEST_RETRY_S: u32 = 60;

/// What a writer works with.
#[derive(Debug, Clone)]
pub struct Workplace {
    /// Which writer this is.
    pub id: WriterId,
    /// The pipeline's last stage.
    pub writer: Arc<Writer>,
    /// What waits for the writers.
    pub queue: Queue,
    /// Where answers go.
    pub publisher: Publisher,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Bounds.
    pub limits: Limits,
    /// Where traces go.
    pub tracer: Tracer,
}

/// Transactions' worth of large batches that one writer has in hand: more than one batch, and not many.
const IN_HAND: usize = 20;

/// Batches that are read at once, and payload bytes after which no more are added to them.
const TOGETHER: usize = 16;
const TOGETHER_BYTES: usize = 64 * 1024;

/// Decisions in a turn.
const DECISIONS: usize = 16;

/// A batch that is written in pieces.
struct Large {
    to: Addressee,
    way: Option<Way>,
    pieces: VecDeque<Piece>,
    counts: Counts,
}

/// What is written in a turn.
enum Piece {
    Frames(Batch),
    Events(Events),
}

/// What a writer has taken out of the queue and not finished.
#[derive(Default)]
struct Hand {
    large: VecDeque<Large>,
    /// Not read yet: the time to gather was over.
    unread: VecDeque<Item>,
}

impl Hand {
    fn is_of(&self, gateway: &Uuid) -> bool {
        self.large.iter().any(|one| one.to.name.gateway == *gateway)
            || self.unread.iter().any(|item| item.gateway == *gateway)
    }
}

/// A payload that was read, or why not; `None`: the reader panicked, which is the payload's doing.
struct Read {
    item: Item,
    way: Option<Way>,
    batch: Option<Result<Batch, Unreadable>>,
}

struct Group {
    batches: Vec<Batch>,
    to: Vec<Addressee>,
    /// Of those that are followed.
    ways: Vec<Option<Way>>,
    readings: usize,
    /// Frames that hold no readings are work, too.
    weight: usize,
}

impl Workplace {
    /// Works until told to stop; the transaction that it has begun it finishes.
    pub async fn work(self, stop: CancellationToken) {
        let _hold = self.queue.hold(self.id);
        let mut failures = 0u32;
        let mut hand = Hand::default();
        while !stop.is_cancelled() {
            let mut next = self.next_of(&mut hand);
            if next.is_none() && hand.large.is_empty() {
                next = tokio::select! {
                    item = self.queue.next(self.id) => Some(item),
                    () = stop.cancelled() => return,
                };
            }
            self.take_group(next, &mut hand, &mut failures).await;
            if let Some(mut one) = hand.large.pop_front()
                && self.write_piece(&mut one, &mut failures).await
            {
                hand.large.push_back(one);
            }
            self.queue.release(self.id, |gateway| hand.is_of(gateway));
        }
    }

    fn next_of(&self, hand: &mut Hand) -> Option<Item> {
        hand.unread.pop_front().or_else(|| self.queue.pop(self.id))
    }

    /// Gathers what waits, as much as one transaction may hold, and writes it.
    async fn take_group(&self, first: Option<Item>, hand: &mut Hand, failures: &mut u32) {
        let mut group =
            Group { batches: Vec::new(), to: Vec::new(), ways: Vec::new(), readings: 0, weight: 0 };
        let until = Instant::now() + Duration::from_millis(self.limits.gather_ms);
        let mut next = first;
        while let Some(item) = next {
            if item.event {
                self.take_events(item, &mut hand.large, failures).await;
            } else {
                self.gather(item, until, &mut group, hand).await;
            }
            let full = group.readings.max(group.weight / 2) >= self.limits.readings_per_transaction;
            next = if full || Instant::now() >= until { None } else { self.next_of(hand) };
        }
        if !group.batches.is_empty() {
            self.write(group, failures).await;
        }
    }

    fn answer(&self, to: &Addressee, answer: Answer) {
        answer::send(&self.publisher, &self.metrics, self.clock.as_ref(), to, answer);
    }

    /// What cannot be read is answered by the name in its properties; without one nobody can be answered.
    fn refuse(&self, item: &Item, way: Option<&Way>, reason: String) {
        tracing::warn!(gateway = %item.gateway, reason, event = item.event, "a payload cannot be read");
        if let Some(way) = way {
            self.tracer.tell(way, &Told::Failed(reason.clone()), None);
        }
        match Addressee::by_properties(item) {
            Some(to) => self.answer(&to, Answer::Refused(reason)),
            None => Metrics::count(&self.metrics.refused_total),
        }
    }

    /// Reads a batch, and small ones behind it along with it, as long as there is time.
    async fn gather(&self, first: Item, until: Instant, group: &mut Group, hand: &mut Hand) {
        let mut bytes = first.payload.len();
        let mut items = VecDeque::from([first]);
        while items.len() < TOGETHER && bytes < TOGETHER_BYTES {
            match self.next_of(hand) {
                Some(item) if item.event => {
                    hand.unread.push_front(item);
                    break;
                }
                Some(item) => {
                    bytes += item.payload.len();
                    items.push_back(item);
                }
                None => break,
            }
        }
        let workplace = self.clone();
        // Without an answer they come again.
        let Some((read, left)) = off_thread(move || workplace.read_some(items, until)).await else { return };
        for one in left.into_iter().rev() {
            hand.unread.push_front(one);
        }
        for one in read {
            self.gathered(one, group, &mut hand.large);
        }
    }

    /// Reads one, and the others until the time is over; gives also what is left.
    fn read_some(&self, mut items: VecDeque<Item>, until: Instant) -> (Vec<Read>, VecDeque<Item>) {
        let mut read = Vec::with_capacity(items.len());
        while read.is_empty() || Instant::now() < until {
            let Some(item) = items.pop_front() else { break };
            let began = std::time::Instant::now();
            let way = self.tracer.taken(&item, began);
            let limit = began + Duration::from_secs(self.limits.decode_s);
            let decode = || kinara_ingest::decode_until(&item.payload, limit);
            let batch = std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)).ok();
            self.writer.stages.passed(Stage::Decode, began);
            read.push(Read { item, way, batch });
        }
        (read, items)
    }

    fn gathered(&self, read: Read, group: &mut Group, large: &mut VecDeque<Large>) {
        let Read { item, mut way, batch } = read;
        let batch = match batch {
            Some(Ok(batch)) if batch.name.gateway == item.gateway => batch,
            Some(Ok(_)) => {
                return self.refuse(&item, way.as_ref(), "the batch names another gateway".to_owned());
            }
            Some(Err(Unreadable::TooLong)) => return self.put_off(&item, LONGEST_RETRY_S),
            Some(Err(error)) => return self.refuse(&item, way.as_ref(), error.to_string()),
            None => return self.refuse(&item, way.as_ref(), "the batch cannot be read".to_owned()),
        };
        if let Some(way) = &mut way {
            way.decoded(&batch);
        }
        let to = Addressee::new(batch.name, false, &item.payload);
        let (readings, weight) = (batch.readings(), batch.weight());
        let mut pieces = batch.pieces(self.limits.readings_per_transaction);
        if pieces.len() > 1 {
            let pieces = pieces.into_iter().map(Piece::Frames).collect();
            return self.take_in_hand(&item, Large { to, way, pieces, counts: Counts::default() }, large);
        }
        group.ways.push(way);
        group.readings += readings;
        group.weight += weight;
        group.to.push(to);
        group.batches.append(&mut pieces);
    }

    /// Has a batch written in pieces, where there is room for it.
    fn take_in_hand(&self, item: &Item, one: Large, large: &mut VecDeque<Large>) {
        let in_hand: usize = large.iter().map(|other| other.pieces.len()).sum();
        if in_hand > 0 && in_hand + one.pieces.len() > IN_HAND {
            return self.put_off(item, self.limits.retry_after_s);
        }
        large.push_back(one);
    }

    /// Not now: there is nothing wrong with it.
    fn put_off(&self, item: &Item, seconds: u32) {
        if let Some(to) = Addressee::by_properties(item) {
            self.answer(&to, Answer::RetryAfter(seconds, "the bridge has enough to do".to_owned()));
        }
    }

    /// Writes the next piece of a large batch; whether there is more of it.
    async fn write_piece(&self, large: &mut Large, failures: &mut u32) -> bool {
        let Some(piece) = large.pieces.pop_front() else { return false };
        let (began, mut passage) = (std::time::Instant::now(), Passage::default());
        let tell = |told: Told<'_>, passage: &Passage| {
            if let Some(way) = &large.way {
                self.tracer.tell(way, &told, Some((began, passage, 1)));
            }
        };
        let written = match &piece {
            Piece::Frames(batch) => {
                let outcomes = self.writer.write_watched(std::slice::from_ref(batch), &mut passage).await;
                outcomes.map(|mut outcomes| outcomes.pop())
            }
            Piece::Events(events) => self.writer.write_events(events).await.map(Some),
        };
        let outcome = match written {
            Ok(outcome) => outcome,
            Err(error) => {
                let seconds = self.failed(&error, failures);
                tell(Told::Failed(error.to_string()), &passage);
                let reason = "the database is not there".to_owned();
                self.answer(&large.to, Answer::RetryAfter(seconds, reason));
                return false;
            }
        };
        self.succeeded(failures);
        if let Piece::Frames(batch) = &piece {
            self.metrics.readings_total.fetch_add(batch.readings() as u64, Ordering::Relaxed);
        }
        let outcome = match outcome {
            Some(Outcome::Done(counts)) => {
                self.metrics.outcome(&counts);
                large.counts.add(counts);
                if !large.pieces.is_empty() {
                    return true;
                }
                Outcome::Done(large.counts)
            }
            Some(retry) => retry,
            None => return false,
        };
        tell(Told::Answered(&outcome), &passage);
        self.answer(&large.to, outcome.into());
        false
    }

    async fn write(&self, group: Group, failures: &mut u32) {
        #[cfg(feature = "sabotage")]
        if kinara_ingest::sabotage::Sabotage::from_env()
            == Some(kinara_ingest::sabotage::Sabotage::AckBeforeCommit)
        {
            for (to, batch) in group.to.iter().zip(&group.batches) {
                let counts = kinara_ingest::Counts { stored: batch.frames(), ..Default::default() };
                self.answer(to, Answer::Done(counts));
            }
            if let Err(error) = self.writer.write(&group.batches).await {
                tracing::warn!(%error, "sabotaged: acknowledged and not written");
            }
            return;
        }
        let (began, mut passage) = (std::time::Instant::now(), Passage::default());
        let tell = |way: &Option<Way>, told: Told<'_>, passage: &Passage| {
            if let Some(way) = way {
                self.tracer.tell(way, &told, Some((began, passage, group.batches.len())));
            }
        };
        match self.writer.write_watched(&group.batches, &mut passage).await {
            Ok(outcomes) => {
                self.succeeded(failures);
                self.metrics.readings_total.fetch_add(group.readings as u64, Ordering::Relaxed);
                for ((to, way), outcome) in group.to.iter().zip(&group.ways).zip(outcomes) {
                    tell(way, Told::Answered(&outcome), &passage);
                    if let kinara_ingest::Outcome::Done(counts) = &outcome {
                        self.metrics.outcome(counts);
                    }
                    self.answer(to, outcome.into());
                }
            }
            Err(error) => {
                let seconds = self.failed(&error, failures);
                for (to, way) in group.to.iter().zip(&group.ways) {
                    tell(way, Told::Failed(error.to_string()), &passage);
                    self.answer(to, Answer::RetryAfter(seconds, "the database is not there".to_owned()));
                }
            }
        }
    }

    /// Writes an event batch, or has it written in pieces where many decisions are in it.
    async fn take_events(&self, item: Item, large: &mut VecDeque<Large>, failures: &mut u32) {
        let way = self.tracer.taken(&item, std::time::Instant::now());
        let payload = item.payload.clone();
        let events = match off_thread(move || events::decode(&payload)).await {
            Some(Ok(events)) if events.name.gateway == item.gateway => events,
            Some(Ok(_)) => {
                return self.refuse(&item, way.as_ref(), "the event batch names another gateway".to_owned());
            }
            Some(Err(error)) => return self.refuse(&item, way.as_ref(), error.to_string()),
            None => return self.refuse(&item, way.as_ref(), "the event batch cannot be read".to_owned()),
        };
        let to = Addressee::new(events.name, true, &item.payload);
        let pieces: VecDeque<Piece> = events.pieces(DECISIONS).into_iter().map(Piece::Events).collect();
        let mut one = Large { to, way, pieces, counts: Counts::default() };
        if one.pieces.len() > 1 {
            self.take_in_hand(&item, one, large);
        } else {
            self.write_piece(&mut one, failures).await;
        }
    }

    fn succeeded(&self, failures: &mut u32) {
        if *failures > 0 {
            tracing::info!("the database is back");
        }
        *failures = 0;
        self.metrics.database.store(true, Ordering::Relaxed);
        Metrics::count(&self.metrics.transactions_total);
    }

    fn failed(&self, error: &kinara_ingest::Error, failures: &mut u32) -> u32 {
        tracing::warn!(%error, "nothing was written; the gateways are to come again later");
        *failures = failures.saturating_add(1);
        self.metrics.database.store(false, Ordering::Relaxed);
        Metrics::count(&self.metrics.transactions_failed_total);
        1u32.checked_shl((*failures).min(6)).unwrap_or(LONGEST_RETRY_S).min(LONGEST_RETRY_S)
    }
}

/// Reads on a thread that nobody waits for. `None`: it panicked there, which is the payload's doing.
async fn off_thread<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(read).await.ok()
}
