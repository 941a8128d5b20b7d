//! What is said on MQTT, as types: `state` from the board, names and answers from the wire.

use kinara_protocol::envelope::{self, Ack, AdapterState, Delivered, DeviceState, ENVELOPE_VERSION, State};
use kinara_protocol::limits;
use rumqttc::v5::mqttbytes::v5::PublishProperties;

use super::Context;
use crate::devices::parse_address;
use crate::status::{Adapter, Admission, ClockSource, Snapshot};
use crate::store::{Kind, Name};

/// The MQTT user properties that name a batch even when its payload cannot be read.
pub fn properties(gateway: &str, name: &Name) -> PublishProperties {
    let property = |key: &str, value: String| (key.to_owned(), value);
    PublishProperties {
        user_properties: vec![
            property(envelope::PROPERTY_GATEWAY, gateway.to_owned()),
            property(envelope::PROPERTY_BUFFER, name.buffer.to_string()),
            property(envelope::PROPERTY_SEQUENCE, name.sequence.to_string()),
        ],
        ..PublishProperties::default()
    }
}

/// The name and digest in an acknowledgement, if it is one of ours.
pub fn name_of(ack: &Ack, gateway: uuid::Uuid) -> Option<(Name, [u8; 32])> {
    let name = ack.name.as_ref()?;
    if name.gateway != gateway.as_bytes() {
        return None;
    }
    let kind = if ack.event { Kind::Event } else { Kind::Batch };
    let sha256 = ack.sha256.as_slice().try_into().ok()?;
    Some((Name { kind, buffer: name.buffer, sequence: name.sequence }, sha256))
}

/// What the broker tells the others when we vanish.
pub fn last_will() -> Vec<u8> {
    envelope::seal(&State {
        version: ENVELOPE_VERSION,
        online: false,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        ..State::default()
    })
}

/// Identity of this run: buffer, the one before it, store.
pub type Identity = (u64, u64, u64);

/// `state`, from the board.
pub fn state(
    context: &Context,
    snapshot: &Snapshot,
    (buffer, previous_buffer, store_id): Identity,
    time_request: u64,
    config_version: u64,
) -> State {
    let clock_source = match snapshot.clock.source {
        ClockSource::TrustSystem => "trusted",
        other => other.as_str(),
    };
    let level = match snapshot.buffer.admission {
        Admission::Everything => "ok",
        Admission::NoWaveforms => "soft_limit",
        Admission::EventsOnly => "hard_limit",
    };
    let known = *context.known.borrow();
    let boot_us = context.clock.boottime_us();
    let devices = snapshot.devices.iter().map(|(hardware, device)| DeviceState {
        hardware_id: hardware.to_string(),
        connected: device.link.connected(),
        rssi_dbm: i32::from(device.rssi_dbm.unwrap_or(0)),
        battery_percent: device.battery_percent.map_or(255, u32::from),
        worn: match device.worn {
            None => 0,
            Some(true) => 1,
            Some(false) => 2,
        },
        buffered_frames: device.buffered_frames,
        backlog_frames: device.behind_frames,
        last_seen_us: device.last_frame_us,
        firmware: device.firmware.clone(),
        problem: limits::cut(&device.problem()).to_owned(),
        epoch: device.epoch.map_or(0, |epoch| epoch.0),
        delivered: device
            .delivered
            .as_ref()
            .map(|(epoch, seqs)| Delivered { epoch: epoch.0, seq_ranges: seqs.distances() }),
    });
    State {
        version: ENVELOPE_VERSION,
        online: true,
        software: snapshot.version.clone(),
        buffer,
        previous_buffer,
        store_id,
        buffered_frames: snapshot.devices.values().map(|device| device.buffered_frames).sum(),
        buffered_batches: snapshot.buffer.batches,
        buffered_bytes: snapshot.buffer.bytes,
        oldest_utc_us: snapshot.buffer.oldest_us,
        clock_source: clock_source.to_owned(),
        clock_uncertainty_us: snapshot.clock.uncertainty_us,
        parked_batches: snapshot.buffer.parked,
        devices: devices.collect(),
        time_request,
        disk_free_bytes: snapshot.buffer.disk_free_bytes,
        level: level.to_owned(),
        sent_at_us: known.map_or_else(|| context.clock.utc_us(), |known| known.utc_us(boot_us)),
        config_version,
        notes: snapshot
            .alerts
            .values()
            .take(limits::NOTES)
            .map(|note| limits::cut(note).to_owned())
            .collect(),
        signing_key: context.decisions.kept_key().map(Vec::from).unwrap_or_default(),
        adapters: snapshot.adapters.iter().map(adapter_state).collect(),
    }
}

/// `state` in full, and then shorter and shorter, for brokers that take small packets only: last it still says who is
/// there, how much waits, and asks for the time.
pub const SHORTER: [fn(&mut State); 4] = [
    |_| {},
    |state| state.devices.iter_mut().for_each(|device| device.delivered = None),
    |state| state.notes.clear(),
    |state| {
        state.devices.clear();
        state.adapters.clear();
    },
];

fn adapter_state((name, adapter): (&String, &Adapter)) -> AdapterState {
    AdapterState {
        name: name.clone(),
        address: parse_address(&adapter.address).map(|address| address.to_vec()).unwrap_or_default(),
        slots: u32::try_from(adapter.slots).unwrap_or(u32::MAX),
        links: u32::try_from(adapter.links).unwrap_or(u32::MAX),
    }
}
