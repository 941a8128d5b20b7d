//! The writers: each takes what waits, as much as one transaction may hold, writes it and answers.
//!
//! The promise: a batch is answered `done` only after the commit that holds it. With the database away nothing is held
//! on to: everything is sent back with a time to come again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_ingest::stages::{Passage, Stage};
use kinara_ingest::{Batch, Writer, events};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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

struct Group {
    batches: Vec<Batch>,
    to: Vec<Addressee>,
    /// Of those that are followed.
    ways: Vec<Option<Way>>,
    readings: usize,
}

impl Workplace {
    /// Works until told to stop; what it has begun it finishes.
    pub async fn work(self, stop: CancellationToken) {
        let mut failures = 0u32;
        loop {
            let first = tokio::select! {
                item = self.queue.next(self.id) => item,
                () = stop.cancelled() => return,
            };
            let mut group = Group { batches: Vec::new(), to: Vec::new(), ways: Vec::new(), readings: 0 };
            let until = Instant::now() + Duration::from_millis(self.limits.gather_ms);
            let mut next = Some(first);
            while let Some(item) = next {
                if item.event {
                    self.write_events(&item, &mut failures).await;
                } else {
                    self.gather(item, &mut group);
                }
                let full = group.readings >= self.limits.readings_per_transaction;
                next = if full || Instant::now() >= until { None } else { self.queue.pop(self.id) };
            }
            if !group.batches.is_empty() {
                self.write(group, &mut failures).await;
            }
            self.queue.release(self.id);
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

    fn gather(&self, item: Item, group: &mut Group) {
        let began = std::time::Instant::now();
        let mut way = self.tracer.taken(&item, began);
        let decoded = kinara_ingest::decode(&item.payload);
        self.writer.stages.passed(Stage::Decode, began);
        match decoded {
            Ok(batch) if batch.name.gateway == item.gateway => {
                if let Some(way) = &mut way {
                    way.decoded(&batch);
                }
                group.ways.push(way);
                group.readings += batch.readings();
                group.to.push(Addressee::new(batch.name, false, &item.payload));
                group.batches.push(batch);
            }
            Ok(_) => self.refuse(&item, way.as_ref(), "the batch names another gateway".to_owned()),
            Err(error) => self.refuse(&item, way.as_ref(), error.to_string()),
        }
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

    async fn write_events(&self, item: &Item, failures: &mut u32) {
        let way = self.tracer.taken(item, std::time::Instant::now());
        let events = match events::decode(&item.payload) {
            Ok(events) if events.name.gateway == item.gateway => events,
            Ok(_) => {
                return self.refuse(item, way.as_ref(), "the event batch names another gateway".to_owned());
            }
            Err(error) => return self.refuse(item, way.as_ref(), error.to_string()),
        };
        let (began, passage) = (std::time::Instant::now(), Passage::default());
        let tell = |told: Told<'_>| {
            if let Some(way) = &way {
                self.tracer.tell(way, &told, Some((began, &passage, 1)));
            }
        };
        let to = Addressee::new(events.name, true, &item.payload);
        match self.writer.write_events(&events).await {
            Ok(outcome) => {
                self.succeeded(failures);
                tell(Told::Answered(&outcome));
                if let kinara_ingest::Outcome::Done(counts) = &outcome {
                    self.metrics.outcome(counts);
                }
                self.answer(&to, outcome.into());
            }
            Err(error) => {
                let seconds = self.failed(&error, failures);
                tell(Told::Failed(error.to_string()));
                self.answer(&to, Answer::RetryAfter(seconds, "the database is not there".to_owned()));
            }
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
