//! Publishes prepared batches as their gateways would: each over its own TLS connection with its own certificate, a
//! window of batches ahead of the bridge's acknowledgements.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kinara_protocol::envelope::{
    self, Ack, PROPERTY_BUFFER, PROPERTY_GATEWAY, PROPERTY_SEQUENCE, ack::Outcome,
};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop};

use super::ingest::Prepared;
use crate::scenario::mqtt::connect;
use crate::{Clinic, ClinicError, Result};

/// Batches ahead of their acknowledgements, as the gateway's uplink.
const WINDOW: usize = 16;
/// Nothing for so long: something is wrong.
const PATIENCE: Duration = Duration::from_mins(1);

struct Writer<'a> {
    client: AsyncClient,
    events: EventLoop,
    gateway: GatewayId,
    batches: &'a [Prepared],
}

/// What publishing took.
#[derive(Debug, Default)]
pub struct Published {
    /// From the first publish to the last acknowledgement.
    pub seconds: f64,
    /// Of each batch, from its publish to its acknowledgement, which follows its commit.
    pub waits: Vec<f64>,
}

/// Publishes everything and waits for the bridge's word on each: as fast as it goes, or each gateway's batches spread evenly
/// over `pace`.
pub async fn publish(
    clinic: &Clinic,
    prepared: &[Vec<Prepared>],
    pace: Option<Duration>,
) -> Result<Published> {
    let mut writers = Vec::new();
    for (number, batches) in prepared.iter().enumerate() {
        let gateway = &clinic.gateways[number];
        let identity = clinic.gateway_identity(&gateway.name, gateway.id)?;
        let (client, mut events) = connect(&gateway.id.to_string(), clinic.broker.port(), &identity)?;
        let gateway = GatewayId(gateway.id);
        let subscribed = client.try_subscribe(topic::of(gateway, Leaf::Ack), QoS::AtLeastOnce);
        subscribed.map_err(|error| trouble(&error))?;
        // Connecting is not what is measured.
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::SubAck(_))) => break,
                Ok(_) => {}
                Err(error) => return Err(trouble(&error)),
            }
        }
        writers.push(Writer { client, events, gateway, batches });
    }
    let began = Instant::now();
    let gateways = writers.len().max(1) as u32;
    let runs = writers.into_iter().zip(0u32..).map(|(writer, number)| {
        let every = pace.map(|pace| pace / writer.batches.len().max(1) as u32);
        // Not all at the same moment.
        writer.run(every, every.unwrap_or_default() * number / gateways)
    });
    let waits = futures_util::future::try_join_all(runs).await?.concat();
    Ok(Published { seconds: began.elapsed().as_secs_f64(), waits })
}

impl Writer<'_> {
    async fn run(mut self, every: Option<Duration>, later: Duration) -> Result<Vec<f64>> {
        let mut open: HashMap<u64, (&Prepared, Instant)> = HashMap::new();
        let mut rest = self.batches.iter().peekable();
        let mut waits = Vec::with_capacity(self.batches.len());
        let mut due = Instant::now() + later;
        while waits.len() < self.batches.len() {
            let now = Instant::now();
            while (every.is_some() || open.len() < WINDOW)
                && (every.is_none() || due <= now)
                && let Some(batch) = rest.next()
            {
                self.send(batch)?;
                open.insert(batch.sequence, (batch, Instant::now()));
                due += every.unwrap_or_default();
            }
            // Where it is paced, the next one's time ends the wait.
            let patience = match every {
                Some(_) if rest.peek().is_some() => due.saturating_duration_since(Instant::now()),
                _ => PATIENCE,
            };
            let event = match tokio::time::timeout(patience, self.events.poll()).await {
                Ok(event) => event,
                Err(_) if patience < PATIENCE => continue,
                Err(_) => return Err(trouble(&"the bridge has not acknowledged anything for a minute")),
            };
            let Event::Incoming(Packet::Publish(publish)) = event.map_err(|error| trouble(&error))? else {
                continue;
            };
            let ack: Ack = envelope::open(&publish.payload).map_err(|error| trouble(&error))?;
            let sequence = ack.name.as_ref().map_or(u64::MAX, |name| name.sequence);
            match ack.outcome {
                Some(Outcome::Done(_)) => {
                    waits.extend(open.remove(&sequence).map(|(_, sent)| sent.elapsed().as_secs_f64()));
                }
                Some(Outcome::RetryAfter(retry)) => {
                    tokio::time::sleep(Duration::from_secs(u64::from(retry.seconds))).await;
                    if let Some((batch, _)) = open.get(&sequence) {
                        self.send(batch)?;
                    }
                }
                other => return Err(trouble(&format!("the bridge answered {other:?}"))),
            }
        }
        // Whether it is told good-bye changes nothing for the broker.
        let _ = self.client.try_disconnect();
        Ok(waits)
    }

    fn send(&self, batch: &Prepared) -> Result<()> {
        let property = |name: &str, value: String| (name.to_owned(), value);
        let properties = PublishProperties {
            user_properties: vec![
                property(PROPERTY_GATEWAY, self.gateway.to_string()),
                property(PROPERTY_BUFFER, batch.buffer.to_string()),
                property(PROPERTY_SEQUENCE, batch.sequence.to_string()),
            ],
            ..PublishProperties::default()
        };
        let topic = topic::of(self.gateway, Leaf::Batch);
        self.client
            .try_publish_with_properties(topic, QoS::AtLeastOnce, false, batch.payload.clone(), properties)
            .map_err(|error| trouble(&error))
    }
}

fn trouble(error: &impl ToString) -> ClinicError {
    ClinicError::Answer { who: "the publisher".to_owned(), what: error.to_string() }
}
