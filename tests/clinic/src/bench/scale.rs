//! Whether a reading costs the same from one gateway or a thousand, into a small table or a large one.
//!
//! The batches are those of `bench ingest`, as sealed online; here they go straight into the bridge's own writer, in groups
//! as the bridge makes them, decoding included. For a thousand gateways each batch is given to another one, with wearables
//! of its own: ten thousand devices in place of two hundred, in as many batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kinara_clock::SystemClock;
use kinara_ingest::stages::Stage;
use kinara_ingest::{Batch, Limits, Outcome, Writer};
use kinara_protocol::columns;
use kinara_protocol::envelope;
use kinara_protocol::frame::{self, CRC_LEN, Epoch, FrameRef, MAX_FRAME};
use uuid::Uuid;

use super::ingest::Prepared;
use super::median;
use crate::{Clinic, ClinicError, Result};

const MANY: usize = 1_000;
const ROUNDS: usize = 3;
/// As the bridge's own `limits.readings_per_transaction`.
const READINGS: usize = 20_000;
/// The table that a large one is compared with.
const SMALL: i64 = 1_000_000;
/// Where a frame's number lies in it: behind version, kind, length and epoch.
const SEQ: usize = 12;
const ROLE: &str = "bench_writer";

/// How much more a reading costs: (from a thousand gateways, in a table of `rows`).
pub async fn costs(clinic: &Clinic, sealed: &[Vec<Prepared>], rows: i64) -> Result<(f64, f64)> {
    clinic.database.login_role(ROLE, ROLE, "kinara_ingest")?;
    let url = clinic.database.url(ROLE, ROLE);
    let pool = kinara_store::connect(&url, "kinara-bench", &kinara_store::Limits::default())
        .map_err(|error| ClinicError::Database(error.to_string()))?;
    let writer = Writer::new(pool, Arc::new(SystemClock), Limits::default());
    register(clinic)?;
    // In turns, as they come: a batch of each gateway, then the next of each.
    let longest = sealed.iter().map(Vec::len).max().unwrap_or(0);
    let (mut one, mut many, mut bases) = (Vec::new(), Vec::new(), Bases::new());
    for place in 0..longest {
        for (number, own) in sealed.iter().enumerate() {
            let Some(batch) = own.get(place) else { continue };
            one.push(given_to(batch, clinic.gateways[0].id, None)?);
            // Some batches in a row are one gateway's.
            let copy = place * (MANY / sealed.len()) / own.len() * sealed.len() + number;
            many.push(given_to(batch, gateway(copy), Some((copy, &mut bases)))?);
        }
    }
    let (mut of_one, mut of_many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (payloads, rates) in [(&one, &mut of_one), (&many, &mut of_many)] {
            super::ingest::empty(clinic)?;
            rates.push(write(&writer, payloads).await.map_err(|error| refused(clinic, error))?);
        }
    }
    let (of_one, of_many) = (median(of_one), median(of_many));
    eprintln!("one gateway: {of_one:.0} readings/s; {MANY} gateways: {of_many:.0}");
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (size, rates) in [(SMALL, &mut small), (rows, &mut large)] {
        fill(clinic, size)?;
        for _ in 0..ROUNDS {
            clinic
                .database
                .sql("TRUNCATE ledger, ledger_claims, frame_times, gaps, ts.stale, ts.written; CHECKPOINT")?;
            rates.push(write(&writer, &one).await?);
        }
    }
    let (small, large) = (median(small), median(large));
    eprintln!("a table of {SMALL} rows: {small:.0} readings/s; of {rows}: {large:.0}");
    Ok((of_one / of_many, small / large))
}

/// What a batch was refused for, as the database has it.
fn refused(clinic: &Clinic, error: ClinicError) -> ClinicError {
    let reasons = clinic.database.sql("SELECT DISTINCT reason, left(detail, 200) FROM quarantine LIMIT 5");
    ClinicError::Answer {
        who: "the writer".to_owned(),
        what: format!("{error}; {}", reasons.unwrap_or_default()),
    }
}

fn gateway(number: usize) -> Uuid {
    Uuid::from_u128(0xbe_0000_0000 + number as u128)
}

/// A thousand gateways, with ten wearables each, which are all the first wearer's.
fn register(clinic: &Clinic) -> Result<()> {
    let ids: Vec<String> = (0..MANY).map(|number| format!("('{}'::uuid)", gateway(number))).collect();
    clinic.database.sql(&format!(
        "INSERT INTO gateways (id, tenant_id, name) SELECT v.id, t.id, v.id::text
           FROM (VALUES {}) v(id), (SELECT id FROM tenants LIMIT 1) t;
         CREATE TEMP TABLE own AS SELECT gen_random_uuid() AS id, gen_random_uuid() AS device, left(h.hardware_id, -12) || lpad(to_hex(g + 1), 8, '0') || right(h.hardware_id, 4) AS name
           FROM hardware h, generate_series(0, {MANY} - 1) g
           WHERE (('x' || right(h.hardware_id, 4))::bit(16)::int - 48640) / 10 = g % 20;
         INSERT INTO hardware (id, hardware_id) SELECT id, name FROM own;
         INSERT INTO devices (id, tenant_id, hardware_id) SELECT o.device, t.id, o.name
           FROM own o, (SELECT id FROM tenants LIMIT 1) t;
         INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
           SELECT o.id, a.tenant_id, a.user_id, o.device, a.consent_id, a.valid_from
           FROM own o, (SELECT * FROM device_assignments LIMIT 1) a;
         ANALYZE",
        ids.join(", ")
    ))?;
    Ok(())
}

/// The first number that a copy of a wearable brings: it counts from there, and no hole is before it.
type Bases = HashMap<(usize, String), u32>;

fn given_to(batch: &Prepared, gateway: Uuid, copy: Option<(usize, &mut Bases)>) -> Result<Bytes> {
    let trouble = |error: envelope::EnvelopeError| ClinicError::Answer {
        who: "the bench's own batch".to_owned(),
        what: error.to_string(),
    };
    let mut opened: envelope::Batch = envelope::open(&batch.payload).map_err(trouble)?;
    if let Some(name) = &mut opened.name {
        name.gateway = gateway.as_bytes().to_vec();
    }
    if let Some((copy, bases)) = copy {
        for device in &mut opened.devices {
            // Boot and sync come first of all, and are numbered before the samples.
            let first =
                if device.other_frames.is_empty() { device.seq_ranges.first().copied() } else { Some(0) };
            let base = *bases.entry((copy, device.hardware_id.clone())).or_insert(first.unwrap_or(0));
            let renumbered = renumbered(device, copied(&device.hardware_id, copy), base);
            *device = renumbered.map_err(|error| ClinicError::Answer {
                who: "the bench's own frames".to_owned(),
                what: error,
            })?;
        }
    }
    Ok(Bytes::from(envelope::seal(&opened)))
}

/// The same frames with numbers that count from `base`, each with a CRC of its own, as another wearable's.
fn renumbered(
    device: &envelope::DeviceFrames,
    hardware: String,
    base: u32,
) -> std::result::Result<envelope::DeviceFrames, String> {
    let decoded = columns::decode(device).map_err(|error| error.to_string())?;
    let mut frames: Vec<Vec<u8>> = device.other_frames.clone();
    for frame in decoded.frames() {
        let mut buffer = [0; MAX_FRAME];
        let len = decoded.rebuild(frame, &mut buffer).map_err(|error| error.to_string())?;
        frames.push(buffer[..len].to_vec());
    }
    for bytes in &mut frames {
        let header = FrameRef::parse(bytes).map_err(|error| error.to_string())?.header();
        bytes[SEQ..SEQ + 4].copy_from_slice(&header.seq.saturating_sub(base).to_le_bytes());
        let body = bytes.len() - CRC_LEN;
        let crc = frame::checksum(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_le_bytes());
    }
    let mut parsed: Vec<FrameRef<'_>> =
        frames.iter().filter_map(|bytes| FrameRef::parse(bytes).ok()).collect();
    parsed.sort_by_key(|frame| frame.header().seq);
    let made = columns::encode(&hardware, Epoch(device.epoch), parsed).map_err(|error| error.to_string())?;
    Ok(envelope::DeviceFrames { fits: device.fits.clone(), fit_of: device.fit_of.clone(), ..made })
}

/// A wearable's id with a copy's number in it; as [`register`] has it.
fn copied(hardware: &str, copy: usize) -> String {
    let (maker, number) = hardware.split_at(hardware.len().saturating_sub(12));
    format!("{maker}{:08x}{}", copy + 1, &number[number.len().saturating_sub(4)..])
}

/// Readings a second.
async fn write(writer: &Writer, payloads: &[Bytes]) -> Result<f64> {
    let trouble = |what: String| ClinicError::Answer { who: "the writer".to_owned(), what };
    let before = Stage::ALL.map(|stage| writer.stages.seconds(stage));
    let began = Instant::now();
    let mut readings = 0;
    let mut group: Vec<Batch> = Vec::new();
    for (place, payload) in payloads.iter().enumerate() {
        let decoding = Instant::now();
        let decoded = kinara_ingest::decode(payload);
        writer.stages.passed(Stage::Decode, decoding);
        group.push(decoded.map_err(|error| trouble(error.to_string()))?);
        let waiting: usize = group.iter().map(Batch::readings).sum();
        if waiting < READINGS && place + 1 < payloads.len() {
            continue;
        }
        for outcome in writer.write(&group).await.map_err(|error| trouble(error.to_string()))? {
            match outcome {
                Outcome::Done(counts) if counts.duplicate + counts.quarantined + counts.discarded == 0 => {}
                other => return Err(trouble(format!("{other:?}"))),
            }
        }
        readings += waiting;
        group.clear();
    }
    let seconds = began.elapsed().as_secs_f64();
    let shares: Vec<String> = Stage::ALL
        .iter()
        .zip(before)
        .map(|(stage, before)| format!("{} {:.2}", stage.name(), writer.stages.seconds(*stage) - before))
        .collect();
    eprintln!("{:.0} readings/s, seconds: {}", readings as f64 / seconds, shares.join(", "));
    Ok(readings as f64 / seconds)
}

/// As many rows as that, of other wearers at the same times, in the same partitions.
fn fill(clinic: &Clinic, rows: i64) -> Result<()> {
    let there = clinic.database.sql("SELECT count(*) FROM ts.readings")?;
    let there: i64 = there.trim().parse().map_err(|_| ClinicError::Database(there))?;
    let missing = (rows - there).max(0);
    eprintln!("{missing} rows more");
    clinic.database.sql(&format!(
        "INSERT INTO ts.readings SELECT r.time, r.tenant_id, u.id, r.device_id, r.type, r.idx, r.epoch, r.seq, r.value, r.quality
           FROM (SELECT * FROM ts.readings LIMIT {SMALL}) r,
             (SELECT gen_random_uuid() AS id FROM generate_series(1, 2 + {missing} / {SMALL})) u LIMIT {missing};
         ANALYZE ts.readings"
    ))?;
    Ok(())
}
