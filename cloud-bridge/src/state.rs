//! What gateways say of themselves.
//!
//! A state becomes the gateway's row, its devices' links, and a link in the chain of the lives of its daemon. A life
//! that does not continue the newest one known (its database is another, or forgot that life) means that what that
//! one held is gone: the time of the break is kept, and the gaps it left are settled by it. The key by which the gateway
//! signs what people decide at it is trusted when it is its first; another waits for an operator.

use std::sync::Arc;

use kinara_clock::Clock;
use kinara_ingest::{timestamp, upkeep};
use kinara_protocol::envelope::{self, Command, ENVELOPE_VERSION, State, Time, command};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_store::{Pool, Transaction};
use rumqttc::v5::mqttbytes::QoS;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::link::Publisher;

/// Seconds for which an answer to a time request is worth delivering.
const TIME_EXPIRY_S: u32 = 10;

/// Bytes of an Ed25519 public key.
const SIGNING_KEY: usize = 32;

/// A state as published.
#[derive(Debug)]
pub struct Message {
    /// Whose.
    pub gateway: Uuid,
    /// It was kept by the broker, and is as old as may be.
    pub retained: bool,
    /// What it says.
    pub state: State,
}

/// Answers a request for the time. First thing, for it measures the way.
pub fn answer_time(publisher: &Publisher, clock: &dyn Clock, gateway: Uuid, nonce: u64) {
    let command = Command {
        version: ENVELOPE_VERSION,
        id: nonce,
        command: Some(command::Command::Time(Time { nonce, utc_us: clock.utc_us() })),
    };
    let topic = topic::of(GatewayId(gateway), Leaf::Command);
    publisher.publish(topic, QoS::AtMostOnce, false, envelope::seal(&command), Some(TIME_EXPIRY_S));
}

/// A Bluetooth address as people write it.
fn address(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

fn json(state: &State) -> Value {
    let devices: Vec<Value> = state
        .devices
        .iter()
        .map(|device| {
            json!({
                "hardware_id": device.hardware_id, "connected": device.connected, "rssi_dbm": device.rssi_dbm,
                "battery_percent": device.battery_percent, "worn": device.worn,
                "buffered_frames": device.buffered_frames, "backlog_frames": device.backlog_frames,
                "last_seen_us": device.last_seen_us, "firmware": device.firmware, "problem": device.problem,
            })
        })
        .collect();
    let adapters: Vec<Value> = state
        .adapters
        .iter()
        .map(|adapter| {
            json!({
                "name": adapter.name, "address": address(&adapter.address), "slots": adapter.slots,
                "links": adapter.links,
            })
        })
        .collect();
    json!({
        "online": state.online, "software": state.software,
        "buffer": format!("{:016x}", state.buffer), "previous_buffer": format!("{:016x}", state.previous_buffer),
        "store_id": format!("{:016x}", state.store_id),
        "buffered_frames": state.buffered_frames, "buffered_batches": state.buffered_batches,
        "buffered_bytes": state.buffered_bytes, "oldest_utc_us": state.oldest_utc_us,
        "clock_source": state.clock_source, "clock_uncertainty_us": state.clock_uncertainty_us,
        "parked_batches": state.parked_batches, "disk_free_bytes": state.disk_free_bytes, "level": state.level,
        "sent_at_us": state.sent_at_us, "config_version": state.config_version, "notes": state.notes,
        "devices": devices, "adapters": adapters,
    })
}

/// Writes states.
#[derive(Debug, Clone)]
pub struct Register {
    /// Connections.
    pub pool: Pool,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Register {
    /// Takes note of a state.
    pub async fn note(&self, message: &Message) -> Result<(), kinara_ingest::Error> {
        let now = timestamp(self.clock.utc_us());
        let (gateway, state) = (message.gateway, &message.state);
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = if state.online {
            let seen = (!message.retained).then_some(now);
            let statement = tx
                .prepare_cached(
                    "UPDATE gateways SET state = $2, last_seen_at = greatest(last_seen_at, $3)
                     WHERE id = $1 RETURNING tenant_id",
                )
                .await?;
            tx.query_opt(&statement, &[&gateway, &json(state), &seen]).await?
        } else {
            // A last will knows nothing but this; what the gateway said last stays.
            let statement = tx
                .prepare_cached(
                    "UPDATE gateways SET state = state || '{\"online\": false}' WHERE id = $1 RETURNING tenant_id",
                )
                .await?;
            tx.query_opt(&statement, &[&gateway]).await?
        };
        let Some(row) = row else {
            tracing::warn!(%gateway, "a state from a gateway that is not enrolled");
            return Ok(());
        };
        let tenant: Uuid = row.get(0);
        if state.online && state.buffer != 0 {
            chain(&tx, gateway, state, now).await?;
        }
        if state.online && state.signing_key.len() == SIGNING_KEY {
            let waits = upkeep::note_key(&tx, gateway, &state.signing_key, now).await?;
            if waits && !message.retained {
                tracing::warn!(%gateway, "this gateway signs with a new key, which no operator has trusted yet");
            }
        }
        links(&tx, gateway, tenant, state, now).await?;
        let payload = json!({ "tenant": tenant, "gateway": gateway }).to_string();
        tx.execute("SELECT pg_notify('kinara_state', $1)", &[&payload]).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Puts this life of the daemon into the chain.
async fn chain(
    tx: &Transaction<'_>,
    gateway: Uuid,
    state: &State,
    now: jiff::Timestamp,
) -> Result<(), kinara_ingest::Error> {
    let buffer = state.buffer as i64;
    let seen = tx
        .execute(
            "UPDATE gateway_buffers SET last_seen_at = $3 WHERE gateway_id = $1 AND buffer = $2",
            &[&gateway, &buffer, &now],
        )
        .await?;
    if seen > 0 {
        return Ok(());
    }
    let previous = (state.previous_buffer != 0).then_some(state.previous_buffer as i64);
    // Nobody before: the first life. Else it breaks the chain if it has another database, remembers no life, or
    // remembers one that has a successor already.
    let broken: bool = tx
        .query_one(
            "SELECT EXISTS (SELECT FROM gateway_buffers WHERE gateway_id = $1) AND (
               $2::int8 IS NULL
               OR $3 <> (SELECT store_id FROM gateway_buffers WHERE gateway_id = $1
                         ORDER BY first_seen_at DESC, buffer LIMIT 1)
               OR EXISTS (SELECT FROM gateway_buffers WHERE gateway_id = $1 AND previous = $2))",
            &[&gateway, &previous, &(state.store_id as i64)],
        )
        .await?
        .get(0);
    if broken {
        tracing::warn!(%gateway, "this gateway's database is not the one it had: what that held is lost");
    }
    tx.execute(
        "INSERT INTO gateway_buffers (gateway_id, buffer, previous, store_id, first_seen_at, last_seen_at, broke_at)
         VALUES ($1, $2, $3, $4, $5, $5, $6) ON CONFLICT DO NOTHING",
        &[&gateway, &buffer, &previous, &(state.store_id as i64), &now, &broken.then_some(now)],
    )
    .await?;
    Ok(())
}

/// Writes the links of the devices that a gateway speaks of. One that has the link speaks for the device; another's
/// word on a device that it does not hold changes nothing that the holder said.
async fn links(
    tx: &Transaction<'_>,
    gateway: Uuid,
    tenant: Uuid,
    state: &State,
    now: jiff::Timestamp,
) -> Result<(), kinara_ingest::Error> {
    if !state.online {
        tx.execute(
            "UPDATE devices SET link = link || '{\"connected\": false}'
             WHERE tenant_id = $1 AND link->>'gateway_id' = $2::text",
            &[&tenant, &gateway.to_string()],
        )
        .await?;
        return Ok(());
    }
    let statement = tx
        .prepare_cached(
            "UPDATE devices SET link = $3,
               last_seen_at = greatest(last_seen_at, $4),
               battery_percent = coalesce($5, battery_percent),
               worn = coalesce($6, worn),
               firmware_version = coalesce(nullif($7, ''), firmware_version)
             WHERE tenant_id = $1 AND hardware_id = $2
               AND ($8 OR link IS NULL OR link->>'gateway_id' = $9::text OR NOT (link->>'connected')::bool)",
        )
        .await?;
    let runs = tx
        .prepare_cached(
            "INSERT INTO device_firmware (device_id, tenant_id, epoch, firmware, told_at)
             SELECT d.id, d.tenant_id, $3, $4, $5 FROM devices d
             WHERE d.tenant_id = $1 AND d.hardware_id = $2
               AND NOT EXISTS (SELECT FROM device_firmware f WHERE f.device_id = d.id AND f.epoch = $3)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    let mut devices: Vec<_> = state.devices.iter().collect();
    devices.sort_by(|a, b| a.hardware_id.cmp(&b.hardware_id));
    for device in devices {
        let link = json!({
            "gateway_id": gateway,
            "connected": device.connected,
            "rssi_dbm": (device.rssi_dbm != 0).then_some(device.rssi_dbm),
            "buffered_frames": device.buffered_frames,
            "backlog_frames": device.backlog_frames,
            "problem": (!device.problem.is_empty()).then_some(&device.problem),
        });
        let seen = (device.last_seen_us > 0).then(|| timestamp(device.last_seen_us));
        let battery = (device.battery_percent <= 100).then_some(device.battery_percent as i16);
        let worn = match device.worn {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        };
        let firmware = device.firmware.get(..device.firmware.len().min(50)).unwrap_or("");
        let speaks = device.connected;
        tx.execute(
            &statement,
            &[
                &tenant,
                &device.hardware_id,
                &link,
                &seen,
                &battery,
                &worn,
                &firmware,
                &speaks,
                &gateway.to_string(),
            ],
        )
        .await?;
        if speaks && device.epoch != 0 && !firmware.is_empty() {
            let epoch = device.epoch as i64;
            tx.execute(&runs, &[&tenant, &device.hardware_id, &epoch, &firmware, &now]).await?;
        }
    }
    Ok(())
}
