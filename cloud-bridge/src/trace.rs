//! The bridge's part of a batch's trace: told when the batch has its answer, from moments noted on the way.

use std::sync::Arc;
use std::time::Instant;

use kinara_clock::Clock;
use kinara_ingest::stages::Passage;
use kinara_ingest::{Name, Outcome};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_traces::{BatchId, KeyValue, Span, SpanKind, Traces};

use crate::queue::Item;

/// Tells traces, where a collector is configured.
#[derive(Debug, Clone)]
pub struct Tracer {
    traces: Option<Arc<Traces>>,
    clock: Arc<dyn Clock>,
}

/// What is known of a followed batch on its way.
#[derive(Debug)]
pub struct Way {
    id: BatchId,
    name: Name,
    event: bool,
    /// Whether the gateway tells the span that all others stand under.
    rooted: bool,
    bytes: usize,
    arrived: Instant,
    taken: Instant,
    decoded: Instant,
    sealed_at_us: i64,
    readings: usize,
    frames: u64,
}

/// What came of a batch, as a trace says it.
#[derive(Debug)]
pub enum Told<'a> {
    /// The writer's answer.
    Answered(&'a Outcome),
    /// No answer, or not the one that was hoped for: why.
    Failed(String),
}

impl Tracer {
    /// One that tells to these, or not at all.
    pub fn new(traces: Option<Arc<Traces>>, clock: Arc<dyn Clock>) -> Self {
        Self { traces, clock }
    }

    /// A batch was taken out of the queue. None where it is not followed.
    pub fn taken(&self, item: &Item, taken: Instant) -> Option<Way> {
        let traces = self.traces.as_ref()?;
        let name = item.name.filter(|name| name.gateway == item.gateway)?;
        let id = BatchId::of(name.gateway, name.buffer, name.sequence, item.event);
        traces.follows(&id).then(|| Way {
            id,
            name,
            event: item.event,
            rooted: item.traceparent.as_ref().is_some_and(|said| id.is_told_by(said)),
            bytes: item.payload.len(),
            arrived: item.arrived,
            taken,
            decoded: taken,
            sealed_at_us: 0,
            readings: 0,
            frames: 0,
        })
    }

    /// Tells how a batch went. `began` is when its transaction did, and `together` how many batches were in it.
    pub fn tell(&self, way: &Way, told: &Told<'_>, transaction: Option<(Instant, &Passage, usize)>) {
        let Some(traces) = &self.traces else { return };
        let (now, now_us) = (Instant::now(), self.clock.utc_us());
        let at = |moment: Instant| now_us - now.saturating_duration_since(moment).as_micros() as i64;
        let error = match told {
            Told::Answered(Outcome::Done(_)) => None,
            Told::Answered(Outcome::RetryAfter { reason, .. }) | Told::Failed(reason) => Some(reason.clone()),
        };
        if !way.rooted {
            let sealed = if way.sealed_at_us > 0 { way.sealed_at_us } else { at(way.arrived) };
            let from_us = sealed.min(at(way.arrived));
            let attributes = way.attributes();
            let kind = SpanKind::Internal;
            traces.batch(
                &way.id,
                Span { name: "batch", kind, from_us, to_us: now_us, attributes, error: error.clone() },
            );
        }
        let mut attributes = way.attributes();
        attributes.extend(way.message());
        if let Told::Answered(Outcome::Done(counts)) = told {
            for (what, count) in [
                ("kinara.stored", counts.stored),
                ("kinara.duplicate", counts.duplicate),
                ("kinara.quarantined", counts.quarantined),
                ("kinara.discarded", counts.discarded),
                ("kinara.expired", counts.expired),
            ] {
                attributes.push(KeyValue::new(what, count as i64));
            }
        }
        let received = traces.span(
            way.id.parent(),
            Span {
                name: "receive",
                kind: SpanKind::Consumer,
                from_us: at(way.arrived),
                to_us: now_us,
                attributes,
                error,
            },
        );
        traces.span(received, Span::inside("queue", at(way.arrived), at(way.taken)));
        traces.span(received, Span::inside("decode", at(way.taken), at(way.decoded)));
        let Some((began, passage, together)) = transaction else { return };
        traces.span(received, Span::inside("gather", at(way.decoded), at(began)));
        let from = passage.0.first().map_or(began, |(_, from, _)| *from);
        let to = passage.0.last().map_or(now, |(_, _, to)| *to);
        let mut span = Span::inside("transaction", at(from), at(to));
        span.attributes.push(KeyValue::new("db.system.name", "postgresql"));
        span.attributes.push(KeyValue::new("kinara.batches", together as i64));
        let written = traces.span(received, span);
        for (stage, from, to) in &passage.0 {
            traces.span(written, Span::inside(stage.name(), at(*from), at(*to)));
        }
    }
}

impl Way {
    /// It was decoded just now.
    pub fn decoded(&mut self, batch: &kinara_ingest::Batch) {
        self.decoded = Instant::now();
        self.sealed_at_us = batch.sealed_at_us;
        self.readings = batch.readings();
        self.frames = batch.frames();
    }

    fn attributes(&self) -> Vec<KeyValue> {
        vec![
            KeyValue::new("kinara.gateway.id", self.name.gateway.to_string()),
            KeyValue::new("kinara.batch", format!("{}/{}", self.name.buffer, self.name.sequence)),
            KeyValue::new("kinara.frames", self.frames as i64),
            KeyValue::new("kinara.readings", self.readings as i64),
        ]
    }

    fn message(&self) -> Vec<KeyValue> {
        let leaf = if self.event { Leaf::Event } else { Leaf::Batch };
        vec![
            KeyValue::new("messaging.system", "mqtt"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", topic::of(GatewayId(self.name.gateway), leaf)),
            KeyValue::new("messaging.message.body.size", self.bytes as i64),
        ]
    }
}
