//! The writers: each takes what waits, as much as one transaction may hold, writes it and answers.
//!
//! The promise: a batch is answered `done` only after the commit that holds it. With the database away nothing is held
//! on to: everything is sent back with a time to come again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_ingest::stages::Stage;
use kinara_ingest::{Batch, Writer, events};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Addressee, Answer};
use crate::config::Limits;
use crate::link::Publisher;
use crate::metrics::Metrics;
use crate::queue::{Item, Queue};

/// The longest that a gateway is sent away for, in seconds, while the database is down.
const LONGEST_RETRY_S: u32 = 60;

/// What a writer works with.
#[derive(Debug, Clone)]
pub struct Workplace {
    /// The pipeline's last stage.
    pub writer: Arc<Writer>,
    /// What waits for this writer.
    pub queue: Queue,
    /// Where answers go.
    pub publisher: Publisher,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Bounds.
    pub limits: Limits,
}

struct Group {
    batches: Vec<Batch>,
    to: Vec<Addressee>,
    readings: usize,
}

impl Workplace {
    /// Works until told to stop; what it has begun it finishes.
    pub async fn work(self, stop: CancellationToken) {
        let mut failures = 0u32;
        loop {
            let first = tokio::select! {
                item = self.queue.next() => item,
                () = stop.cancelled() => return,
            };
            let mut group = Group { batches: Vec::new(), to: Vec::new(), readings: 0 };
            let until = Instant::now() + Duration::from_millis(self.limits.gather_ms);
            let mut next = Some(first);
            while let Some(item) = next {
                if item.event {
                    self.write_events(&item, &mut failures).await;
                } else {
                    self.gather(item, &mut group);
                }
                let full = group.readings >= self.limits.readings_per_transaction;
                next = if full || Instant::now() >= until { None } else { self.queue.pop() };
            }
            if !group.batches.is_empty() {
                self.write(group, &mut failures).await;
            }
        }
    }

    fn answer(&self, to: &Addressee, answer: Answer) {
        answer::send(&self.publisher, &self.metrics, self.clock.as_ref(), to, answer);
    }

    /// What cannot be read is answered by the name in its properties; without one nobody can be answered.
    fn refuse(&self, item: &Item, reason: String) {
        tracing::warn!(gateway = %item.gateway, reason, event = item.event, "a payload cannot be read");
        match Addressee::by_properties(item) {
            Some(to) => self.answer(&to, Answer::Refused(reason)),
            None => Metrics::count(&self.metrics.refused_total),
        }
    }

    fn gather(&self, item: Item, group: &mut Group) {
        let began = std::time::Instant::now();
        let decoded = kinara_ingest::decode(&item.payload);
        self.writer.stages.passed(Stage::Decode, began);
        match decoded {
            Ok(batch) if batch.name.gateway == item.gateway => {
                group.readings += batch.readings();
                group.to.push(Addressee::new(batch.name, false, &item.payload));
                group.batches.push(batch);
            }
            Ok(_) => self.refuse(&item, "the batch names another gateway".to_owned()),
            Err(error) => self.refuse(&item, error.to_string()),
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
        match self.writer.write(&group.batches).await {
            Ok(outcomes) => {
                self.succeeded(failures);
                self.metrics.readings_total.fetch_add(group.readings as u64, Ordering::Relaxed);
                for (to, outcome) in group.to.iter().zip(outcomes) {
                    if let kinara_ingest::Outcome::Done(counts) = &outcome {
                        self.metrics.outcome(counts);
                    }
                    self.answer(to, outcome.into());
                }
            }
            Err(error) => {
                let seconds = self.failed(&error, failures);
                for to in &group.to {
                    self.answer(to, Answer::RetryAfter(seconds, "the database is not there".to_owned()));
                }
            }
        }
    }

    async fn write_events(&self, item: &Item, failures: &mut u32) {
        let events = match events::decode(&item.payload) {
            Ok(events) if events.name.gateway == item.gateway => events,
            Ok(_) => return self.refuse(item, "the event batch names another gateway".to_owned()),
            Err(error) => return self.refuse(item, error.to_string()),
        };
        let to = Addressee::new(events.name, true, &item.payload);
        match self.writer.write_events(&events).await {
            Ok(outcome) => {
                self.succeeded(failures);
                if let kinara_ingest::Outcome::Done(counts) = &outcome {
                    self.metrics.outcome(counts);
                }
                self.answer(&to, outcome.into());
            }
            Err(error) => {
                let seconds = self.failed(&error, failures);
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
