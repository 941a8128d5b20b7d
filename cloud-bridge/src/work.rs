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
use crate::reading::{self, Decode, Read};
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
    /// How a batch's payload is read.
    pub decode: Decode,
}

/// Transactions' worth of large batches that one writer has in hand: more than one batch, and not many.
const IN_HAND: usize = 20;

/// Decisions in a turn.
const DECISIONS: usize = 16;

/// Devices of a batch in a turn: all that is known of who wore each of them is looked up.
const DEVICES: usize = 128;

/// A batch that is written in pieces.
struct Large {
    to: Addressee,
    way: Option<Way>,
    pieces: Pieces,
    counts: Counts,
}

/// What of a batch is not written yet.
enum Pieces {
    Frames(kinara_ingest::Pieces),
    Events(VecDeque<Events>),
}

/// What is written in a turn.
enum Piece {
    Frames(Batch),
    Events(Events),
}

impl Pieces {
    fn len(&self) -> usize {
        match self {
            Self::Frames(pieces) => pieces.len(),
            Self::Events(pieces) => pieces.len(),
        }
    }

    fn next(&mut self) -> Option<Piece> {
        match self {
            Self::Frames(pieces) => pieces.next().map(Piece::Frames),
            Self::Events(pieces) => pieces.pop_front().map(Piece::Events),
        }
    }
}

/// What a writer has taken out of the queue and not finished.
#[derive(Default)]
struct Hand {
    large: VecDeque<Large>,
    /// Not read yet: the time to gather was over, or it is not read together with what came before it.
    unread: VecDeque<Item>,
}

impl Hand {
    fn is_of(&self, gateway: &Uuid) -> bool {
        self.large.iter().any(|one| one.to.name.gateway == *gateway)
            || self.unread.iter().any(|item| item.gateway == *gateway)
    }
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

impl Group {
    /// Work that it makes, in readings.
    fn work(&self) -> usize {
        self.readings.max(self.weight / 2)
    }
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
            let full = group.work() >= self.limits.readings_per_transaction;
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
        let (items, other) = reading::together(first, || self.next_of(hand));
        let workplace = self.clone();
        let room = self.limits.readings_per_transaction.saturating_sub(group.work());
        let read_some =
            move || reading::read_some(items, until, room, |item| workplace.read(item), Read::work);
        let read = off_thread(read_some).await;
        // Without an answer they come again.
        let (read, left) = read.unwrap_or_default();
        for one in left.into_iter().chain(other).rev() {
            hand.unread.push_front(one);
        }
        for one in read {
            self.gathered(one, group, &mut hand.large);
        }
    }

    /// Reads one within its time.
    fn read(&self, item: Item) -> Read {
        let began = std::time::Instant::now();
        let way = self.tracer.taken(&item, began);
        let read = Read::of(item, way, self.decode, began + Duration::from_secs(self.limits.decode_s));
        self.writer.stages.passed(Stage::Decode, began);
        read
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
        let pieces = batch.pieces(self.limits.readings_per_transaction, DEVICES);
        if pieces.len() > 1 {
            let pieces = Pieces::Frames(pieces);
            return self.take_in_hand(&item, Large { to, way, pieces, counts: Counts::default() }, large);
        }
        group.ways.push(way);
        group.readings += readings;
        group.weight += weight;
        group.to.push(to);
        group.batches.extend(pieces);
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
        let Some(piece) = large.pieces.next() else { return false };
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
                if large.pieces.len() > 0 {
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
        let pieces = Pieces::Events(events.pieces(DECISIONS).into());
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kinara_clock::ManualClock;
    use kinara_ingest::Name;
    use kinara_protocol::envelope::{self, DeviceFrames, ENVELOPE_VERSION};

    use super::*;

    const GATEWAY: Uuid = Uuid::from_u128(0x11);
    const HOUR: Duration = Duration::from_hours(1);

    fn item(sequence: u64, payload: Vec<u8>) -> Item {
        let name = Some(Name { gateway: GATEWAY, buffer: 7, sequence });
        let payload = Bytes::from(payload);
        let arrived = std::time::Instant::now();
        Item { gateway: GATEWAY, name, event: false, payload, arrived, traceparent: None }
    }

    fn small(sequence: u64) -> Item {
        let batch = envelope::Batch {
            version: ENVELOPE_VERSION,
            name: Some(Name { gateway: GATEWAY, buffer: 7, sequence }.into()),
            sealed_at_us: 0,
            devices: vec![DeviceFrames::default()],
        };
        item(sequence, envelope::seal(&batch))
    }

    /// A writer whose queue holds these; no database and no broker is asked for anything here.
    fn workplace(decode: Decode, decode_s: u64, items: impl Iterator<Item = Item>) -> Workplace {
        let clock = Arc::new(ManualClock::new(0, 0));
        let metrics = Arc::new(Metrics::default());
        let pool = kinara_store::connect(
            "postgres://nobody@localhost/none",
            "test",
            &kinara_store::Limits::default(),
        );
        let queue = Queue::new(1 << 30, 100, 1);
        for item in items {
            assert!(queue.push(Some(GATEWAY), item).is_empty());
        }
        Workplace {
            id: WriterId(0),
            writer: Arc::new(Writer::new(pool.unwrap(), clock.clone(), kinara_ingest::Limits::default())),
            queue,
            publisher: Publisher::new(metrics.clone()),
            metrics,
            clock: clock.clone(),
            limits: Limits { decode_s, ..Limits::default() },
            tracer: Tracer::new(None, clock),
            decode,
        }
    }

    /// What one turn of reading gives: which are to be written, in their order, and which are not read yet.
    async fn gather(workplace: &Workplace, hand: &mut Hand, within: Duration) -> (Vec<u64>, Vec<u64>) {
        let mut group =
            Group { batches: Vec::new(), to: Vec::new(), ways: Vec::new(), readings: 0, weight: 0 };
        let first = workplace.next_of(hand).unwrap();
        workplace.gather(first, Instant::now() + within, &mut group, hand).await;
        assert_eq!(
            group.batches.iter().map(|batch| batch.name).collect::<Vec<_>>(),
            group.to.iter().map(|to| to.name).collect::<Vec<_>>(),
            "each batch is answered by its own name"
        );
        let unread = hand.unread.iter().filter_map(|item| item.name).map(|name| name.sequence);
        (group.to.iter().map(|to| to.name.sequence).collect(), unread.collect())
    }

    fn sequences(from: u64, to: u64) -> Vec<u64> {
        (from..to).collect()
    }

    fn refused_and_put_off(workplace: &Workplace) -> (u64, u64) {
        let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        (count(&workplace.metrics.refused_total), count(&workplace.metrics.retry_after_total))
    }

    fn panics_at_the_seventh(payload: &[u8], limit: std::time::Instant) -> Result<Batch, Unreadable> {
        let batch = kinara_ingest::decode_until(payload, limit)?;
        assert_ne!(batch.name.sequence, 7, "the reader's fault");
        Ok(batch)
    }

    #[expect(clippy::disallowed_methods, reason = "on a thread that is for waiting")]
    fn is_slow_at_the_seventh(payload: &[u8], limit: std::time::Instant) -> Result<Batch, Unreadable> {
        if kinara_ingest::decode_until(payload, limit)?.name.sequence == 7 {
            std::thread::sleep(Duration::from_millis(1_100));
        }
        kinara_ingest::decode_until(payload, limit)
    }

    #[tokio::test]
    async fn one_at_which_the_reader_panics_is_refused_alone_and_the_fifteen_others_keep_their_order() {
        let workplace = workplace(panics_at_the_seventh, 10, (0..16).map(small));
        let mut hand = Hand::default();
        let others = [sequences(0, 7), sequences(8, 16)].concat();
        assert_eq!(gather(&workplace, &mut hand, HOUR).await, (others, Vec::new()));
        assert_eq!(refused_and_put_off(&workplace), (1, 0));
    }

    #[tokio::test]
    async fn one_that_takes_longer_than_it_may_is_put_off_alone_since_each_has_a_time_of_its_own() {
        let workplace = workplace(is_slow_at_the_seventh, 1, (0..16).map(small));
        let mut hand = Hand::default();
        let others = [sequences(0, 7), sequences(8, 16)].concat();
        assert_eq!(gather(&workplace, &mut hand, HOUR).await, (others, Vec::new()));
        assert_eq!(refused_and_put_off(&workplace), (0, 1));
    }

    #[tokio::test]
    async fn what_is_behind_a_slow_one_when_the_time_is_over_comes_next_in_its_order_and_nobody_else_takes_it()
     {
        let workplace = workplace(is_slow_at_the_seventh, 60, (0..20).map(small));
        let mut hand = Hand::default();
        let first = gather(&workplace, &mut hand, Duration::from_secs(1)).await;
        assert_eq!(first, (sequences(0, 8), sequences(8, 16)));
        assert!(hand.is_of(&GATEWAY));
        workplace.queue.release(workplace.id, |gateway| hand.is_of(gateway));
        assert!(workplace.queue.pop(WriterId(1)).is_none(), "the gateway is still this writer's");
        assert_eq!(gather(&workplace, &mut hand, HOUR).await, (sequences(8, 20), Vec::new()));
        assert_eq!(refused_and_put_off(&workplace), (0, 0));
    }

    #[tokio::test]
    async fn with_no_time_left_one_is_read_all_the_same_and_none_is_lost() {
        let workplace = workplace(kinara_ingest::decode_until, 60, (0..16).map(small));
        let mut hand = Hand::default();
        for sequence in 0..16 {
            let left = sequences(sequence + 1, 16);
            assert_eq!(gather(&workplace, &mut hand, Duration::ZERO).await, (vec![sequence], left));
        }
        assert!(workplace.queue.pop(workplace.id).is_none());
    }

    #[tokio::test]
    async fn a_large_one_waits_in_its_place_and_is_read_by_itself() {
        let large = item(2, vec![0; 100_000]);
        let items = [small(0), small(1), large, small(3), small(4)];
        let workplace = workplace(kinara_ingest::decode_until, 60, items.into_iter());
        let mut hand = Hand::default();
        assert_eq!(gather(&workplace, &mut hand, HOUR).await, (vec![0, 1], vec![2]));
        assert_eq!(gather(&workplace, &mut hand, HOUR).await, (vec![], vec![]));
        assert_eq!(refused_and_put_off(&workplace), (1, 0), "it is no batch");
        assert_eq!(gather(&workplace, &mut hand, HOUR).await, (vec![3, 4], vec![]));
    }
}
