//! Answers to gateways.

use bytes::Bytes;
use kinara_clock::Clock;
use kinara_ingest::{Counts, Name, Outcome};
use kinara_protocol::envelope::{self, Ack, Done, ENVELOPE_VERSION, Refused, RetryAfter, ack};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use rumqttc::v5::mqttbytes::QoS;

use crate::link::Publisher;
use crate::metrics::Metrics;
use crate::queue::Item;

/// What an acknowledgement repeats.
#[derive(Debug, Clone, Copy)]
pub struct Addressee {
    /// The batch.
    pub name: Name,
    /// Of its payload as published.
    pub sha256: [u8; 32],
    /// An event batch.
    pub event: bool,
}

/// What a bridge says to a batch.
#[derive(Debug)]
pub enum Answer {
    /// It is committed.
    Done(Counts),
    /// It cannot be read.
    Refused(String),
    /// Not now.
    RetryAfter(u32, String),
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done(counts) => Self::Done(counts),
            Outcome::RetryAfter { seconds, reason } => Self::RetryAfter(seconds, reason),
        }
    }
}

impl Addressee {
    /// Of an item whose name is known.
    pub fn new(name: Name, event: bool, payload: &Bytes) -> Self {
        Self { name, event, sha256: envelope::digest(payload) }
    }

    /// Of an item by its user properties.
    pub fn by_properties(item: &Item) -> Option<Self> {
        let name = item.name.filter(|name| name.gateway == item.gateway)?;
        Some(Self::new(name, item.event, &item.payload))
    }
}

/// Publishes an answer. Lost, it costs a repetition.
pub fn send(publisher: &Publisher, metrics: &Metrics, clock: &dyn Clock, to: &Addressee, answer: Answer) {
    let outcome = match answer {
        Answer::Done(counts) => ack::Outcome::Done(Done {
            stored: counts.stored,
            duplicate: counts.duplicate,
            quarantined: counts.quarantined,
            discarded: counts.discarded,
            expired: counts.expired,
        }),
        Answer::Refused(reason) => {
            Metrics::count(&metrics.refused_total);
            ack::Outcome::Refused(Refused { reason })
        }
        Answer::RetryAfter(seconds, reason) => {
            Metrics::count(&metrics.retry_after_total);
            ack::Outcome::RetryAfter(RetryAfter { seconds, reason })
        }
    };
    let ack = Ack {
        version: ENVELOPE_VERSION,
        name: Some(to.name.into()),
        sha256: to.sha256.to_vec(),
        event: to.event,
        outcome: Some(outcome),
        bridge_utc_us: clock.utc_us(),
    };
    let topic = topic::of(GatewayId(to.name.gateway), Leaf::Ack);
    if publisher.publish(topic, QoS::AtMostOnce, false, envelope::seal(&ack), None) {
        Metrics::count(&metrics.acks_total);
    }
}
