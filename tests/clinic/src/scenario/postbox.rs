//! Hears every batch that gateways publish, and publishes them again in the gateways' names.
//!
//! It listens with the bridge's certificate (outside of the shared subscription, so it takes nothing away) and
//! publishes with each gateway's own, for that is all that the broker's access list lets through. With the same it hears
//! the acknowledgements: which of them say that a frame was in already.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kinara_protocol::envelope::{self, Ack, ack::Outcome};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop};

use super::Stage;
use super::mqtt::connect;
use crate::Result;

/// How many batches are remembered; older ones give way.
const REMEMBERED: usize = 400;
/// How many are published again at a time.
const AT_A_TIME: usize = 40;
const RECONNECT: Duration = Duration::from_millis(400);

/// See the module.
pub struct Postbox {
    heard: Arc<Mutex<Vec<Publish>>>,
    writers: HashMap<String, AsyncClient>,
    duplicates: Arc<AtomicU64>,
}

impl Postbox {
    /// Begins to listen; gateways that are added later are heard but not spoken for.
    pub fn open(stage: &Stage) -> Result<Self> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let runtime = stage.runtime();
        let bridge = stage.clinic.authority.client("bridge", "bridge")?;
        let port = stage.clinic.broker.port();
        let (ear, events) = connect("oracle-ear", port, &bridge)?;
        runtime.spawn(listen(ear, events, Arc::clone(&heard)));
        let mut writers = HashMap::new();
        let duplicates = Arc::<AtomicU64>::default();
        for gateway in &stage.clinic.gateways {
            let identity = stage.clinic.gateway_identity(&gateway.name, gateway.id)?;
            let (client, events) = connect(&format!("oracle-again-{}", gateway.name), port, &identity)?;
            let acks = topic::of(GatewayId(gateway.id), Leaf::Ack);
            runtime.spawn(hear_acks(client.clone(), events, acks, Arc::clone(&duplicates)));
            writers.insert(gateway.id.to_string(), client);
        }
        Ok(Self { heard, writers, duplicates })
    }

    /// Frames that bridges have said, since this began to listen, to be in already.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// Publishes some of what was heard again, in another order. Returns how many.
    pub fn publish_again(&self, rng: &mut StdRng) -> usize {
        let mut some = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        some.shuffle(rng);
        some.truncate(rng.random_range(1..=AT_A_TIME));
        let mut count = 0;
        for publish in some {
            let topic = String::from_utf8_lossy(&publish.topic).into_owned();
            let Some(writer) = topic.split('/').nth(3).and_then(|gateway| self.writers.get(gateway)) else {
                continue;
            };
            let user_properties =
                publish.properties.as_ref().map(|all| all.user_properties.clone()).unwrap_or_default();
            let properties = PublishProperties { user_properties, ..PublishProperties::default() };
            // A full queue (the broker is away) is as good a fault as any.
            if writer
                .try_publish_with_properties(
                    topic,
                    QoS::AtLeastOnce,
                    false,
                    publish.payload.clone(),
                    properties,
                )
                .is_ok()
            {
                count += 1;
            }
        }
        count
    }
}

async fn hear_acks(client: AsyncClient, mut events: EventLoop, acks: String, duplicates: Arc<AtomicU64>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // Not awaited: the loop that would send it is this one. Where batches wait before it, it waits too.
                let _ = client.try_subscribe(acks.clone(), QoS::AtMostOnce);
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                duplicates.fetch_add(duplicates_of(&publish.payload), Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}

fn duplicates_of(payload: &[u8]) -> u64 {
    match envelope::open::<Ack>(payload) {
        Ok(Ack { event: false, outcome: Some(Outcome::Done(done)), .. }) => done.duplicate,
        _ => 0,
    }
}

async fn listen(client: AsyncClient, mut events: EventLoop, heard: Arc<Mutex<Vec<Publish>>>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // Not awaited: the loop that would send it is this one. It fits: the queue is empty now.
                let _ = client.try_subscribe("kinara/v1/gw/+/batch", QoS::AtMostOnce);
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if heard.len() >= REMEMBERED {
                    heard.remove(0);
                }
                heard.push(publish);
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}
