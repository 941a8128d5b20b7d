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

/// Publishes everything and waits for the bridge's word on each. Gives the seconds from the first publish.
pub async fn publish(clinic: &Clinic, prepared: &[Vec<Prepared>]) -> Result<f64> {
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
    futures_util::future::try_join_all(writers.into_iter().map(Writer::run)).await?;
    Ok(began.elapsed().as_secs_f64())
}

impl Writer<'_> {
    async fn run(mut self) -> Result<()> {
        let mut open: HashMap<u64, &Prepared> = HashMap::new();
        let mut rest = self.batches.iter();
        let mut done = 0;
        while done < self.batches.len() {
            while open.len() < WINDOW
                && let Some(batch) = rest.next()
            {
                self.send(batch)?;
                open.insert(batch.sequence, batch);
            }
            let event = tokio::time::timeout(PATIENCE, self.events.poll()).await;
            let event =
                event.map_err(|_| trouble(&"the bridge has not acknowledged anything for a minute"))?;
            let Event::Incoming(Packet::Publish(publish)) = event.map_err(|error| trouble(&error))? else {
                continue;
            };
            let ack: Ack = envelope::open(&publish.payload).map_err(|error| trouble(&error))?;
            let sequence = ack.name.as_ref().map_or(u64::MAX, |name| name.sequence);
            match ack.outcome {
                Some(Outcome::Done(_)) => done += usize::from(open.remove(&sequence).is_some()),
                Some(Outcome::RetryAfter(retry)) => {
                    tokio::time::sleep(Duration::from_secs(u64::from(retry.seconds))).await;
                    if let Some(batch) = open.get(&sequence) {
                        self.send(batch)?;
                    }
                }
                other => return Err(trouble(&format!("the bridge answered {other:?}"))),
            }
        }
        // Whether it is told good-bye changes nothing for the broker.
        let _ = self.client.try_disconnect();
        Ok(())
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
