//! A clinic or two in a database of their own, and batches for it.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

pub mod desk;

use std::sync::Arc;

use kinara_clock::ManualClock;
use kinara_ingest::{Batch, Counts, Limits, Name, Outcome, Writer, batch};
use kinara_protocol::channel::{ACCELERATION, ChannelId, EDA, HEART_RATE};
use kinara_protocol::columns;
use kinara_protocol::envelope::{self, DeviceFrames, ENVELOPE_VERSION, Fit};
use kinara_protocol::frame::{
    BootAnchor, DeviceEvent, DeviceEventKind, Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, PreviousBoot,
    ResetReason, SyncAnchor, Ticks, encode_boot_anchor, encode_device_event,
};
use kinara_store::{Pool, connect, migrate};
use kinara_test_postgres::{Options, PREPARED, Postgres};
use tokio_postgres::NoTls;
use uuid::Uuid;

/// The tests' present: 2026-01-02 00:00 UTC.
pub const NOW_US: i64 = 1_767_312_000_000_000;
/// When tick 0 of every epoch was.
pub const BOOT_US: i64 = NOW_US - 3_600_000_000;
pub const EPOCH: Epoch = Epoch::new(0xaa, 1);
pub const HARDWARE: &str = "kinara:00000000000000a1";
pub const TENANT: Uuid = Uuid::from_u128(0x1);
pub const OTHER_TENANT: Uuid = Uuid::from_u128(0x2);
pub const GATEWAY: Uuid = Uuid::from_u128(0x11);
pub const SECOND_GATEWAY: Uuid = Uuid::from_u128(0x12);
pub const FOREIGN_GATEWAY: Uuid = Uuid::from_u128(0x21);
pub const USER: Uuid = Uuid::from_u128(0x31);
pub const SECOND_USER: Uuid = Uuid::from_u128(0x32);
pub const HARDWARE_ROW: Uuid = Uuid::from_u128(0x41);
pub const DEVICE: Uuid = Uuid::from_u128(0x51);
/// On which days there are readings, as writers note it: for readings that a test puts there itself.
pub const DAYS: &str = "INSERT INTO ts.days SELECT DISTINCT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date FROM ts.readings";

pub struct World {
    pub admin: tokio_postgres::Client,
    pub pool: Pool,
    pub clock: Arc<ManualClock>,
    pub server: Postgres,
}

/// Two clinics; the first has two gateways, two wearers and a device that is the first wearer's from its boot on.
pub async fn world() -> World {
    world_on(Options::fast()).await
}

pub async fn world_on(options: Options) -> World {
    let migrated = async |url: String| migrate(&url).await.map(drop);
    let server = Postgres::prepared(options, &migrate::digest(), migrated).await.unwrap();
    let url = server.superuser_url(PREPARED);
    assert_eq!(migrate(&url).await.unwrap().applied, 0);
    let (admin, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    admin
        .batch_execute(&format!(
            "CREATE ROLE bridge LOGIN PASSWORD 'bridge' IN ROLE kinara_ingest;
             INSERT INTO tenants (id, name, slug) VALUES ('{TENANT}', 'One', 'one'), ('{OTHER_TENANT}', 'Two', 'two');
             INSERT INTO gateways (id, tenant_id, name) VALUES ('{GATEWAY}', '{TENANT}', 'A'),
               ('{SECOND_GATEWAY}', '{TENANT}', 'B'), ('{FOREIGN_GATEWAY}', '{OTHER_TENANT}', 'C');
             INSERT INTO users (id, tenant_id) VALUES ('{USER}', '{TENANT}'), ('{SECOND_USER}', '{TENANT}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES
               ('{USER}', '{TENANT}', '{USER}', 'v1'), ('{SECOND_USER}', '{TENANT}', '{SECOND_USER}', 'v1');
             INSERT INTO hardware (id, hardware_id) VALUES ('{HARDWARE_ROW}', '{HARDWARE}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{DEVICE}', '{TENANT}', '{HARDWARE}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{TENANT}', '{USER}', '{DEVICE}', '{USER}', to_timestamp({}));",
            BOOT_US / 1_000_000 - 86_400,
        ))
        .await
        .unwrap();
    let pool =
        connect(&server.url("bridge", "bridge", PREPARED), "test", &kinara_store::Limits::default()).unwrap();
    World { admin, pool, clock: Arc::new(ManualClock::new(NOW_US, 0)), server }
}

impl World {
    pub fn writer(&self) -> Writer {
        Writer::new(self.pool.clone(), self.clock.clone(), Limits::default())
    }

    pub async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    /// The single number that a query gives.
    pub async fn number(&self, sql: &str) -> i64 {
        self.admin.query_one(&format!("SELECT ({sql})::int8"), &[]).await.unwrap().get(0)
    }

    /// The single text that a query gives.
    pub async fn text(&self, sql: &str) -> String {
        self.admin.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap().get(0)
    }

    pub async fn readings(&self) -> i64 {
        self.number("SELECT count(*) FROM ts.readings").await
    }

    /// What moves and erasures go by: no day of anybody's readings, waveforms and events is without its row.
    pub async fn days_are_known(&self) {
        let missing = self
            .text(
                "SELECT coalesce(string_agg(there::text, ' '), 'none') FROM (
                   SELECT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date FROM ts.readings
                   UNION SELECT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date FROM ts.waveforms
                   UNION SELECT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date FROM ts.events
                   EXCEPT SELECT tenant_id, user_id, day FROM ts.days) there",
            )
            .await;
        assert_eq!(missing, "none", "days without a row in ts.days");
    }

    pub async fn ledger(&self) -> String {
        self.text(
            "SELECT coalesce(string_agg(seqs::text, ' ' ORDER BY epoch), 'empty')
             FROM (SELECT epoch, range_agg(seqs) AS seqs FROM frames_in GROUP BY hardware, epoch) f",
        )
        .await
    }

    /// Open gaps: reason and seqs.
    pub async fn gaps(&self) -> String {
        self.text(
            "SELECT coalesce(string_agg(reason || ' ' || coalesce(seqs::text, '-'), ', ' ORDER BY reason, seqs::text), 'none')
             FROM gaps WHERE withdrawn_at IS NULL",
        )
        .await
    }

    pub async fn quarantine(&self) -> String {
        self.text(
            "SELECT coalesce(string_agg(reason || ' ' || coalesce(seq::text, '-'), ', ' ORDER BY reason, seq), 'none')
             FROM quarantine WHERE replayed_at IS NULL",
        )
        .await
    }

    pub async fn write(&self, batches: &[Batch]) -> Vec<Counts> {
        counts(self.writer().write(batches).await.unwrap())
    }
}

pub fn counts(outcomes: Vec<Outcome>) -> Vec<Counts> {
    outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::Done(counts) => counts,
            other @ Outcome::RetryAfter { .. } => panic!("{other:?}"),
        })
        .collect()
}

/// A frame of one second, from `seq` seconds after boot: heart rate and four EDA samples.
pub fn frame(epoch: Epoch, seq: u32) -> Vec<u8> {
    frame_with(epoch, seq, u64::from(seq) * 1_000, 700 + seq as i32 % 50)
}

pub fn frame_with(epoch: Epoch, seq: u32, ticks: u64, heart_rate: i32) -> Vec<u8> {
    let mut builder = FrameBuilder::new();
    builder.begin(Kind::Scalar, epoch, Ticks(ticks));
    builder.push(HEART_RATE, Ticks(ticks), &[heart_rate]).unwrap();
    for step in 0..4 {
        builder.push(EDA, Ticks(ticks + step * 250), &[2_000 + step as i32]).unwrap();
    }
    finish(&mut builder, seq)
}

pub fn frame_of(epoch: Epoch, seq: u32, channel: ChannelId, values: &[i32]) -> Vec<u8> {
    let mut builder = FrameBuilder::new();
    let ticks = Ticks(u64::from(seq) * 1_000);
    let kind = if channel == ACCELERATION { Kind::Waveform } else { Kind::Scalar };
    builder.begin(kind, epoch, ticks);
    builder.push(channel, ticks, values).unwrap();
    finish(&mut builder, seq)
}

fn finish(builder: &mut FrameBuilder, seq: u32) -> Vec<u8> {
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(seq, &mut out);
    out[..len].to_vec()
}

pub fn boot(epoch: Epoch, previous: Option<(Epoch, u32, u64)>) -> Vec<u8> {
    let anchor = BootAnchor {
        reason: ResetReason::PowerOn,
        previous: previous.map(|(epoch, next_seq, last)| PreviousBoot {
            epoch,
            next_seq,
            last_ticks: Ticks(last),
            last_sync: Some(SyncAnchor { ticks: Ticks(0), utc_us: BOOT_US, uncertainty_us: 1_000 }),
        }),
    };
    let mut out = [0; MAX_FRAME];
    let len = encode_boot_anchor(epoch, 0, Ticks(0), &anchor, &mut out);
    out[..len].to_vec()
}

pub fn device_event(epoch: Epoch, seq: u32, ticks: u64, kind: DeviceEventKind) -> Vec<u8> {
    let mut out = [0; MAX_FRAME];
    let len = encode_device_event(epoch, seq, &DeviceEvent { ticks: Ticks(ticks), kind }, &mut out);
    out[..len].to_vec()
}

pub fn overflow(epoch: Epoch, seq: u32, of: Epoch, first_seq: u32, last_seq: u32) -> Vec<u8> {
    let event = DeviceEvent {
        ticks: Ticks(u64::from(seq) * 1_000),
        kind: DeviceEventKind::Overflow { epoch: of, first_seq, last_seq },
    };
    let mut out = [0; MAX_FRAME];
    let len = encode_device_event(epoch, seq, &event, &mut out);
    out[..len].to_vec()
}

pub fn fit() -> Fit {
    Fit {
        ref_ticks: 0,
        ref_utc_us: BOOT_US,
        rate_ppb: 0,
        uncertainty_us: 5_000,
        growth_ppb: 5_000,
        time_uncertain: false,
    }
}

pub fn stamped(mut columns: DeviceFrames, fit: Fit) -> DeviceFrames {
    let total = columns.ticks.len() + columns.other_frames.len();
    columns.fits = vec![fit];
    columns.fit_of = vec![0, total as u32];
    columns
}

pub fn envelope_of(gateway: Uuid, sequence: u64, devices: Vec<DeviceFrames>) -> envelope::Batch {
    envelope::Batch {
        version: ENVELOPE_VERSION,
        name: Some(Name { gateway, buffer: 7, sequence }.into()),
        sealed_at_us: NOW_US,
        devices,
    }
}

pub fn columns_of(hardware: &str, frames: &[Vec<u8>]) -> DeviceFrames {
    let refs: Vec<FrameRef<'_>> = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap()).collect();
    let epoch = refs[0].header().epoch;
    stamped(columns::encode(hardware, epoch, refs).unwrap(), fit())
}

pub fn batch_of(gateway: Uuid, frames: &[Vec<u8>]) -> Batch {
    batch::from_envelope(envelope_of(gateway, 0, vec![columns_of(HARDWARE, frames)])).unwrap()
}

pub fn seconds(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|seq| frame(EPOCH, seq)).collect()
}

/// The epoch of readings over HTTP, whose numbers are names.
pub const NAMES: Epoch = Epoch::new(0, 9);

/// Frames as they are made of readings over HTTP: their ticks are milliseconds of UTC. A number says when, within the hour.
pub fn over_http(seqs: &[u32]) -> Batch {
    over_http_of(NAMES, seqs)
}

pub fn over_http_of(epoch: Epoch, seqs: &[u32]) -> Batch {
    over_http_within(epoch, seqs, fit().uncertainty_us)
}

/// The same, by a clock that may be wrong by so much.
pub fn over_http_within(epoch: Epoch, seqs: &[u32], uncertainty_us: u64) -> Batch {
    let began_ms = (BOOT_US / 1_000).unsigned_abs();
    let frames: Vec<Vec<u8>> = seqs
        .iter()
        .map(|seq| frame_with(epoch, *seq, began_ms + u64::from(*seq % 3_600) * 1_000, 700))
        .collect();
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let fit = Fit { ref_ticks: 0, ref_utc_us: 0, growth_ppb: 0, uncertainty_us, ..fit() };
    let columns = stamped(columns::encode(HARDWARE, epoch, refs).unwrap(), fit);
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
}
