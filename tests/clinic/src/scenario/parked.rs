//! A bridge that is older than a gateway, and the newer one that takes its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kinara_protocol::envelope::{self, Ack, Batch, ENVELOPE_VERSION, Refused, ack::Outcome};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use tokio::task::AbortHandle;

use super::Stage;
use super::mqtt::connect;
use super::sights::number;
use crate::Result;
use crate::oracle::witness::Witness;
use crate::process::pause;

/// How often at most the gateway tries again what a bridge could not read.
const PAUSE_S: f64 = 2.0;
const FOR_A_BATCH: Duration = Duration::from_secs(20);
const RECONNECT: Duration = Duration::from_millis(400);

/// Answers one gateway's batches as a bridge of a former version does: it cannot read them. Gone with this.
struct OldBridge {
    task: AbortHandle,
    refused: Arc<AtomicU64>,
}

impl OldBridge {
    fn open(stage: &Stage, gateway: usize) -> Result<Self> {
        let identity = stage.clinic.authority.client("bridge", "bridge")?;
        let (client, events) = connect("oracle-old-bridge", stage.clinic.broker.port(), &identity)?;
        let refused = Arc::<AtomicU64>::default();
        let gateway = GatewayId(stage.clinic.gateways[gateway].id);
        let task = stage.runtime().spawn(refuse(client, events, gateway, Arc::clone(&refused)));
        Ok(Self { task: task.abort_handle(), refused })
    }

    fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed) > 0
    }
}

impl Drop for OldBridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn refuse(client: AsyncClient, mut events: EventLoop, gateway: GatewayId, refused: Arc<AtomicU64>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // Not awaited: the loop that would send it is this one.
                let _ = client.try_subscribe(topic::of(gateway, Leaf::Batch), QoS::AtLeastOnce);
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let Some(answer) = refusal(&publish.payload) else { continue };
                let to = topic::of(gateway, Leaf::Ack);
                if client.try_publish(to, QoS::AtLeastOnce, false, envelope::seal(&answer)).is_ok() {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}

fn refusal(payload: &[u8]) -> Option<Ack> {
    let batch: Batch = envelope::open(payload).ok()?;
    Some(Ack {
        version: ENVELOPE_VERSION,
        name: batch.name,
        sha256: envelope::digest(payload).to_vec(),
        event: false,
        outcome: Some(Outcome::Refused(Refused { reason: "a version that is not known here".to_owned() })),
        bridge_utc_us: 0,
    })
}

/// What the bridge cannot read is parked. A newer one that comes in its place gets it, without a restart of the gateway.
pub fn parked(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway(0, "parked", &format!("[uplink]\nparked_pause_s = {PAUSE_S}\n"))?;
    stage.wearable(0, &[gateway], &["--prefill", "10m"])?;
    let at = stage.moment(1.5, 2.5);
    stage.at(at, "the bridge is of a former version", move |stage| {
        stage.clinic.bridges.iter_mut().for_each(crate::process::Process::kill);
        let old = OldBridge::open(stage, gateway)?;
        stage.clinic.gateways[gateway].process().spawn()?;
        stage.await_sight_for(FOR_A_BATCH, Witness::BatchParked, &mut |stage| {
            let parked = number(&stage.gateway_metrics(gateway), "kinara_gateway_parked_batches");
            old.has_refused() && parked.unwrap_or(0.0) > 0.0
        });
        // The gateway has tried once on this connection.
        pause(Duration::from_secs_f64(PAUSE_S));
        drop(old);
        for bridge in &mut stage.clinic.bridges {
            bridge.spawn()?;
        }
        Ok(())
    });
    stage.at(at + 6.0, "the newer bridge has had it", |_| Ok(()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_batch_as_it_was_published() {
        let name = envelope::Name { gateway: vec![7; 16], buffer: 1, sequence: 2 };
        let batch = Batch { version: ENVELOPE_VERSION, name: Some(name.clone()), ..Batch::default() };
        let payload = envelope::seal(&batch);
        let refusal = refusal(&payload).unwrap();
        assert_eq!((refusal.name, refusal.sha256), (Some(name), envelope::digest(&payload).to_vec()));
        assert!(super::refusal(b"no batch").is_none());
    }
}
