//! Hears every batch that gateways publish, and publishes them again in the gateways' names.
//!
//! It listens with the bridge's certificate (outside of the shared subscription, so it takes nothing away) and
//! publishes with each gateway's own, for that is all that the broker's access list lets through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
        for gateway in &stage.clinic.gateways {
            let identity = stage.clinic.gateway_identity(&gateway.name, gateway.id)?;
            let (client, events) = connect(&format!("oracle-again-{}", gateway.name), port, &identity)?;
            runtime.spawn(keep_going(events));
            writers.insert(gateway.id.to_string(), client);
        }
        Ok(Self { heard, writers })
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

async fn keep_going(mut events: EventLoop) {
    loop {
        if events.poll().await.is_err() {
            tokio::time::sleep(RECONNECT).await;
        }
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
