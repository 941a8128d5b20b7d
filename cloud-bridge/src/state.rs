//! What gateways say of themselves.
//!
//! A state becomes the gateway's row, its devices' links, and a link in the chain of the lives of its daemon. A life
//! that does not continue the newest one known (its database is another, or forgot that life) means that what that
//! one held is gone: the time of the break is kept, and the gaps it left are settled by it. The key by which the gateway
//! signs what people decide at it is trusted when it is its first; another waits for an operator.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kinara_clock::Clock;
use kinara_ingest::seqs::SeqSet;
use kinara_ingest::{identify, timestamp, upkeep};
use kinara_protocol::envelope::{self, Command, DeviceState, ENVELOPE_VERSION, State, Time, command};
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

/// The largest number that the database's own have room for.
const MOST: u64 = i64::MAX.unsigned_abs();

/// Leaves out what the database would refuse, and with it all else: devices whose ids are none, and control characters. Numbers
/// beyond what it counts with become the largest of those. A device's id is written as everybody writes it.
pub fn tidy(state: &mut State) {
    state.devices.retain_mut(|device| identify(&mut device.hardware_id));
    let texts = [&mut state.software, &mut state.clock_source, &mut state.level];
    let of_devices = state.devices.iter_mut().flat_map(|device| [&mut device.firmware, &mut device.problem]);
    let names = state.adapters.iter_mut().map(|adapter| &mut adapter.name);
    for text in texts.into_iter().chain(&mut state.notes).chain(of_devices).chain(names) {
        text.retain(|letter| !letter.is_control());
    }
    let numbers = [
        &mut state.buffered_frames,
        &mut state.buffered_batches,
        &mut state.buffered_bytes,
        &mut state.parked_batches,
        &mut state.disk_free_bytes,
        &mut state.clock_uncertainty_us,
    ];
    let of_devices =
        state.devices.iter_mut().flat_map(|device| [&mut device.buffered_frames, &mut device.backlog_frames]);
    for number in numbers.into_iter().chain(of_devices) {
        *number = MOST.min(*number);
    }
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
    pool: Pool,
    /// Time.
    clock: Arc<dyn Clock>,
    /// Gateways whose word of what was acknowledged took too long, until when nothing is asked of it.
    resting: Arc<Mutex<HashMap<Uuid, Instant>>>,
}

/// How long a gateway's word of what was acknowledged to it may be worked on, in milliseconds,
const DELIVERED_MS: u64 = 2_000;
/// how long it is left alone when that was not enough,
const REST: Duration = Duration::from_mins(10);
/// and how many gateways are remembered for it.
const MOST_RESTING: usize = 10_000;
/// Lives of a gateway's daemon that are kept.
const LIVES: i32 = 1_000;
/// Epochs of a device of which it is kept which firmware it ran,
const FIRMWARE_EPOCHS: i32 = 1_000;
/// and what each gateway says was acknowledged to it.
const DELIVERED_EPOCHS: i32 = 64;

impl Register {
    /// On these connections.
    pub fn new(pool: Pool, clock: Arc<dyn Clock>) -> Self {
        Self { pool, clock, resting: Arc::default() }
    }

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
                     WHERE id = $1 AND retired_at IS NULL RETURNING tenant_id",
                )
                .await?;
            tx.query_opt(&statement, &[&gateway, &json(state), &seen]).await?
        } else {
            // A last will knows nothing but this; what the gateway said last stays.
            let statement = tx
                .prepare_cached(
                    "UPDATE gateways SET state = state || '{\"online\": false}' WHERE id = $1 AND retired_at IS NULL
                     RETURNING tenant_id",
                )
                .await?;
            tx.query_opt(&statement, &[&gateway]).await?
        };
        let Some(row) = row else {
            tracing::warn!(%gateway, "a state from a gateway that is not enrolled, or retired");
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
        if state.online
            && let Err(error) = self.note_delivered(&mut client, gateway, tenant, state, now).await
        {
            tracing::warn!(%error, %gateway, "what was acknowledged to this gateway is not noted for now");
        }
        Ok(())
    }

    /// By itself, and in little time: what a gateway says of its epochs may take long to be held against what there is, and
    /// the others' states wait.
    async fn note_delivered(
        &self,
        client: &mut kinara_store::Client,
        gateway: Uuid,
        tenant: Uuid,
        state: &State,
        now: jiff::Timestamp,
    ) -> Result<(), kinara_ingest::Error> {
        if !state.devices.iter().any(|device| device.delivered.is_some()) || self.rests(gateway) {
            return Ok(());
        }
        let tx = client.transaction().await?;
        tx.batch_execute(&format!("SET LOCAL statement_timeout = {DELIVERED_MS}")).await?;
        match delivered(&tx, gateway, tenant, state, now).await {
            Ok(()) => Ok(tx.commit().await?),
            Err(error) => {
                self.let_rest(gateway);
                Err(error)
            }
        }
    }

    fn rests(&self, gateway: Uuid) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(&gateway).is_some_and(|until| *until > Instant::now())
    }

    fn let_rest(&self, gateway: Uuid) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if resting.len() >= MOST_RESTING {
            resting.retain(|_, until| *until > now);
        }
        if resting.len() < MOST_RESTING {
            resting.insert(gateway, now + REST);
        }
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
    tx.execute("SELECT ts.thin_lives($1, $2)", &[&gateway, &LIVES]).await?;
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
    let devices = devices_of(state);
    let column = Columns::of(gateway, &devices, now);
    let statement = tx.prepare_cached(LINKS).await?;
    tx.execute(
        &statement,
        &[
            &tenant,
            &gateway.to_string(),
            &column.hardware,
            &column.link,
            &column.seen,
            &column.battery,
            &column.worn,
            &column.firmware,
            &column.speaks,
        ],
    )
    .await?;
    let statement = tx.prepare_cached(FIRMWARE).await?;
    let rows = tx
        .query(
            &statement,
            &[&tenant, &now, &column.hardware, &column.epoch, &column.firmware, &column.speaks],
        )
        .await?;
    let noted: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    if !noted.is_empty() {
        tx.execute("SELECT ts.thin_firmware($1, $2)", &[&noted, &FIRMWARE_EPOCHS]).await?;
    }
    Ok(())
}

/// Each device that a state speaks of, once.
fn devices_of(state: &State) -> Vec<&DeviceState> {
    let mut devices: Vec<&DeviceState> = state.devices.iter().collect();
    devices.sort_by(|a, b| a.hardware_id.cmp(&b.hardware_id));
    devices.dedup_by(|a, b| a.hardware_id == b.hardware_id);
    devices
}

/// In the order of their names, so that two bridges with states of the same devices do not wait in a circle.
const LINKS: &str = "
    WITH locked AS (
      SELECT id FROM devices WHERE tenant_id = $1 AND hardware_id = ANY($3) ORDER BY hardware_id FOR NO KEY UPDATE)
    UPDATE devices d SET link = n.link,
      last_seen_at = greatest(d.last_seen_at, n.seen),
      battery_percent = coalesce(n.battery, d.battery_percent),
      worn = coalesce(n.worn, d.worn),
      firmware_version = coalesce(nullif(n.firmware, ''), d.firmware_version)
    FROM locked, unnest($3::text[], $4::jsonb[], $5::timestamptz[], $6::int2[], $7::bool[], $8::text[], $9::bool[])
      AS n (hardware_id, link, seen, battery, worn, firmware, speaks)
    WHERE d.id = locked.id AND d.hardware_id = n.hardware_id
      AND (n.speaks OR d.link IS NULL OR d.link->>'gateway_id' = $2 OR NOT (d.link->>'connected')::bool)";

const FIRMWARE: &str = "
    INSERT INTO device_firmware (device_id, tenant_id, epoch, firmware, told_at)
    SELECT d.id, d.tenant_id, n.epoch, n.firmware, $2
    FROM unnest($3::text[], $4::int8[], $5::text[], $6::bool[]) AS n (hardware_id, epoch, firmware, speaks)
      JOIN devices d ON d.tenant_id = $1 AND d.hardware_id = n.hardware_id
    WHERE n.speaks AND n.epoch <> 0 AND n.firmware <> ''
      AND NOT EXISTS (SELECT FROM device_firmware f WHERE f.device_id = d.id AND f.epoch = n.epoch)
    ORDER BY 1 ON CONFLICT DO NOTHING RETURNING device_id";

/// Only frames of times in which the gateway's clinic had the device: of what it says, the numbers that boundaries and times
/// leave to it. What is known of no such epoch is of now. Once an hour is enough for a comparison that is made once a day, and a
/// write for every state is not worth it.
const DELIVERED: &str = "
    INSERT INTO gateway_delivered AS g (gateway_id, hardware, epoch, seqs, told_at)
    SELECT $1, t.hardware, t.epoch, t.seqs, $3
    FROM (
      SELECT h.id AS hardware, n.epoch, n.seqs::int8multirange * c.possible AS seqs
      FROM unnest($4::text[], $5::int8[], $6::text[]) AS n (hardware_id, epoch, seqs)
        JOIN hardware h ON h.hardware_id = n.hardware_id
        JOIN LATERAL ts.numbers_of(h.id, n.epoch, $3) c ON c.clinic = $2
      WHERE NOT EXISTS (SELECT FROM gateway_delivered o WHERE o.gateway_id = $1 AND o.hardware = h.id
        AND o.epoch = n.epoch AND o.told_at > $3::timestamptz - interval '1 hour')) t
    WHERE NOT isempty(t.seqs) AND NOT EXISTS (SELECT FROM gateway_delivered o WHERE o.gateway_id = $1
      AND o.hardware = t.hardware AND o.epoch = t.epoch AND o.seqs @> t.seqs)
    ORDER BY 2, 3
    ON CONFLICT (gateway_id, hardware, epoch) DO UPDATE SET seqs = g.seqs + excluded.seqs, told_at = excluded.told_at
    RETURNING hardware";

/// Takes note of what a gateway says was acknowledged to it.
async fn delivered(
    tx: &Transaction<'_>,
    gateway: Uuid,
    tenant: Uuid,
    state: &State,
    now: jiff::Timestamp,
) -> Result<(), kinara_ingest::Error> {
    let (mut hardware, mut epochs, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    for device in devices_of(state) {
        let Some(delivered) = &device.delivered else { continue };
        let Some(set) = SeqSet::from_distances(&delivered.seq_ranges).filter(|set| !set.is_empty()) else {
            continue;
        };
        hardware.push(device.hardware_id.as_str());
        epochs.push(delivered.epoch as i64);
        seqs.push(set.to_string());
    }
    if hardware.is_empty() {
        return Ok(());
    }
    let statement = tx.prepare_cached(DELIVERED).await?;
    let rows = tx.query(&statement, &[&gateway, &tenant, &now, &hardware, &epochs, &seqs]).await?;
    let noted: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    if !noted.is_empty() {
        tx.execute("SELECT ts.thin_delivered($1, $2, $3)", &[&gateway, &noted, &DELIVERED_EPOCHS]).await?;
    }
    Ok(())
}

/// What devices say, by column.
#[derive(Default)]
struct Columns<'a> {
    hardware: Vec<&'a str>,
    link: Vec<Value>,
    seen: Vec<Option<jiff::Timestamp>>,
    battery: Vec<Option<i16>>,
    worn: Vec<Option<bool>>,
    firmware: Vec<&'a str>,
    speaks: Vec<bool>,
    epoch: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(gateway: Uuid, devices: &[&'a DeviceState], now: jiff::Timestamp) -> Self {
        let mut out = Self::default();
        for device in devices {
            out.hardware.push(&device.hardware_id);
            out.link.push(json!({
                "gateway_id": gateway,
                "connected": device.connected,
                "rssi_dbm": (device.rssi_dbm != 0).then_some(device.rssi_dbm),
                "buffered_frames": device.buffered_frames,
                "backlog_frames": device.backlog_frames,
                "problem": (!device.problem.is_empty()).then_some(&device.problem),
            }));
            // A clock that is ahead would hide all that is seen of the device until it was then.
            out.seen.push((device.last_seen_us > 0).then(|| timestamp(device.last_seen_us).min(now)));
            out.battery.push((device.battery_percent <= 100).then_some(device.battery_percent as i16));
            out.worn.push(match device.worn {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            });
            out.firmware.push(&device.firmware[..device.firmware.floor_char_boundary(50)]);
            out.speaks.push(device.connected);
            out.epoch.push(device.epoch as i64);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_would_refuse_is_left_out_and_the_rest_stays() {
        let device = |id: &str| DeviceState {
            hardware_id: id.to_owned(),
            problem: "lost\0".to_owned(),
            ..DeviceState::default()
        };
        let mut state = State {
            devices: vec![device("kinara:1"), device("\0"), device(&"x".repeat(256)), device("")],
            notes: vec!["disk\0 full".to_owned()],
            ..State::default()
        };
        tidy(&mut state);
        let ids: Vec<&str> = state.devices.iter().map(|device| device.hardware_id.as_str()).collect();
        assert_eq!((ids, state.notes[0].as_str()), (vec!["kinara:1"], "disk full"));
        assert_eq!(state.devices[0].problem, "lost");
    }

    #[test]
    fn a_device_is_known_however_its_gateway_writes_its_name() {
        let device = |id: &str| DeviceState { hardware_id: id.to_owned(), ..DeviceState::default() };
        let mut state = State {
            devices: vec![device("bt:c0:00:00:00:00:01"), device("KINARA:00000000000000A1")],
            ..State::default()
        };
        tidy(&mut state);
        let ids: Vec<&str> = state.devices.iter().map(|device| device.hardware_id.as_str()).collect();
        assert_eq!(ids, ["bt:C0:00:00:00:00:01", "kinara:00000000000000a1"]);
    }

    #[test]
    fn numbers_beyond_those_that_the_database_counts_with_become_the_largest_of_them() {
        let device = DeviceState {
            hardware_id: "kinara:1".to_owned(),
            buffered_frames: u64::MAX,
            backlog_frames: u64::MAX,
            ..DeviceState::default()
        };
        let mut state = State {
            devices: vec![device],
            parked_batches: u64::MAX,
            buffered_frames: u64::MAX,
            buffered_bytes: 7,
            ..State::default()
        };
        tidy(&mut state);
        let device = &state.devices[0];
        for number in
            [state.parked_batches, state.buffered_frames, device.buffered_frames, device.backlog_frames]
        {
            assert!(i64::try_from(number).is_ok_and(|number| number == i64::MAX));
        }
        assert_eq!(state.buffered_bytes, 7);
    }
}
