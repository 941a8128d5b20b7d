//! The gateway's part of a batch's trace: the span that everything about it stands under, from the seal to the
//! acknowledgement, and one for each time it was published.
//!
//! It follows what is on the way and nothing else, so it is as bounded as the window. What was on the way when a
//! connection broke is told by the publish that follows it.

use std::collections::HashMap;
use std::sync::Arc;

use kinara_clock::Clock;
use kinara_protocol::envelope::{self, Batch, EventBatch};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_traces::{BatchId, KeyValue, PROPERTY, Span, SpanKind, Traces};
use tokio::sync::watch;

use crate::align::source::Known;
use crate::store::{Kind, Name, Sealed};

#[derive(Debug)]
struct Way {
    id: BatchId,
    sealed_us: i64,
    published_us: i64,
    bytes: usize,
    attempt: i64,
}

/// What came of a publish.
#[derive(Debug)]
pub enum Answer<'a> {
    /// It is in the cloud.
    Done,
    /// It never will be: why.
    Refused(&'a str),
    /// It is to come again: why.
    Later(&'a str),
}

/// Follows the batches of one connection.
#[derive(Debug)]
pub struct Follower {
    traces: Option<Arc<Traces>>,
    gateway: GatewayId,
    clock: Arc<dyn Clock>,
    known: watch::Receiver<Option<Known>>,
    ways: HashMap<Name, Way>,
}

impl Follower {
    /// Follows nothing yet; and nothing ever without a collector.
    pub fn new(
        traces: Option<Arc<Traces>>,
        gateway: GatewayId,
        clock: Arc<dyn Clock>,
        known: watch::Receiver<Option<Known>>,
    ) -> Self {
        Self { traces, gateway, clock, known, ways: HashMap::new() }
    }

    fn now_us(&self) -> i64 {
        let known = *self.known.borrow();
        known.map_or_else(|| self.clock.utc_us(), |known| known.utc_us(self.clock.boottime_us()))
    }

    /// A batch is published. Gives the user property that says so to the bridge, where it is followed.
    pub fn published(&mut self, sealed: &Sealed) -> Option<(String, String)> {
        let traces = self.traces.clone()?;
        let name = sealed.name;
        let id = BatchId::of(self.gateway.0, name.buffer, name.sequence, name.kind == Kind::Event);
        if !traces.follows(&id) {
            return None;
        }
        let now_us = self.now_us();
        let before = self.ways.remove(&name);
        if let Some(way) = &before {
            self.tell_publish(&traces, name, way, Some("no answer in time"));
        }
        let sealed_us =
            before.as_ref().map_or_else(|| sealed_at(sealed).unwrap_or(now_us), |way| way.sealed_us);
        let attempt = before.map_or(1, |way| way.attempt + 1);
        let bytes = sealed.payload.len();
        self.ways.insert(name, Way { id, sealed_us, published_us: now_us, bytes, attempt });
        Some((PROPERTY.to_owned(), id.traceparent()))
    }

    /// The bridge has answered.
    pub fn answered(&mut self, name: Name, answer: &Answer<'_>) {
        let (Some(traces), Some(way)) = (self.traces.clone(), self.ways.remove(&name)) else { return };
        let error = match answer {
            Answer::Done => None,
            Answer::Refused(reason) | Answer::Later(reason) => Some(*reason),
        };
        self.tell_publish(&traces, name, &way, error);
        if matches!(answer, Answer::Later(_)) {
            return;
        }
        let span = Span {
            name: "batch",
            kind: SpanKind::Internal,
            from_us: way.sealed_us,
            to_us: self.now_us(),
            attributes: self.attributes(name),
            error: error.map(str::to_owned),
        };
        traces.batch(&way.id, span);
    }

    fn tell_publish(&self, traces: &Traces, name: Name, way: &Way, error: Option<&str>) {
        let leaf = if name.kind == Kind::Event { Leaf::Event } else { Leaf::Batch };
        let mut attributes = self.attributes(name);
        attributes.extend([
            KeyValue::new("messaging.system", "mqtt"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", topic::of(self.gateway, leaf)),
            KeyValue::new("messaging.message.body.size", way.bytes as i64),
            KeyValue::new("kinara.attempt", way.attempt),
        ]);
        let span = Span {
            name: "publish",
            kind: SpanKind::Producer,
            from_us: way.published_us,
            to_us: self.now_us(),
            attributes,
            error: error.map(str::to_owned),
        };
        traces.span(way.id.parent(), span);
    }

    fn attributes(&self, name: Name) -> Vec<KeyValue> {
        vec![
            KeyValue::new("kinara.gateway.id", self.gateway.0.to_string()),
            KeyValue::new("kinara.batch", format!("{}/{}", name.buffer, name.sequence)),
        ]
    }
}

/// When it was sealed. The store keeps no column for it: only who traces wants to know.
fn sealed_at(sealed: &Sealed) -> Option<i64> {
    let at = match sealed.name.kind {
        Kind::Batch => envelope::open::<Batch>(&sealed.payload).ok()?.sealed_at_us,
        Kind::Event => envelope::open::<EventBatch>(&sealed.payload).ok()?.sealed_at_us,
    };
    (at > 0).then_some(at)
}
