//! What a wearable says of itself and people may want to be alerted of: that its battery is low.
//!
//! The promise: such a word is an event like those that are derived from readings. It is the wearer's whose the frame
//! is, written in the frame's own transaction, once. One of which nobody knows when it was is none.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kinara_protocol::event::BATTERY_LOW;
use kinara_protocol::frame::{DeviceEventKind, Epoch};
use kinara_store::Transaction;
use serde_json::Value;
use uuid::Uuid;

use crate::batch::Content;
use crate::claims::{self, Part};
use crate::plan::{Key, Taken};
use crate::told::{self, Word};
use crate::{Error, timestamp};

/// Who says so.
const PRODUCER: &str = "device";
/// How grave it is: somebody has to charge it today.
const SEVERITY: &str = "warning";

/// A wearable's word.
#[derive(Debug, Clone, Copy)]
struct Said<'a> {
    taken: &'a Taken<'a>,
    percent: u8,
}

/// Words by epoch, tick and clinic: in the order of keys, so that two bridges do not wait for each other in a circle.
type Words<'a> = BTreeMap<Name, Said<'a>>;
type Name = (Key, u64, Uuid);

/// However many a frame holds, these are all statements: gives which keys are new.
const KEYS: &str = "
    INSERT INTO event_keys (hardware, kind, producer, epoch, grid, tenant_id, user_id, device_id, time)
    SELECT hardware, $8, $9, epoch, grid, tenant, wearer, device, time
    FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[], $7::timestamptz[])
      n(hardware, epoch, grid, tenant, wearer, device, time)
    ON CONFLICT DO NOTHING RETURNING hardware, epoch, grid, tenant_id";
const EVENTS: &str = "
    INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, severity, data, key)
    SELECT time, tenant, wearer, device, $7, $8, data, key
    FROM unnest($1::timestamptz[], $2::uuid[], $3::uuid[], $4::uuid[], $5::jsonb[], $6::bytea[])
      n(time, tenant, wearer, device, data, key)";
const NOTIFY: &str = "SELECT pg_notify('kinara_event', p) FROM unnest($1::text[]) p";

/// Writes the events of frames that are written now.
pub(crate) async fn write(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut words: Words<'_> = new.iter().flat_map(said).collect();
    if words.is_empty() {
        return Ok(());
    }
    let mut new = keep_keys(tx, &words, &BTreeMap::new()).await?;
    if new.len() < words.len() {
        let others: Words<'_> = of_other_events(tx, &words, &new).await?;
        if !others.is_empty() {
            let parts = others.keys().map(|(key, _, clinic)| (*key, *clinic)).collect();
            let epochs = claims::beside(tx, &parts).await?;
            new.append(&mut keep_keys(tx, &others, &epochs).await?);
        }
    }
    words.retain(|name, _| new.contains(name));
    write_events(tx, &words).await
}

/// Words whose keys another clinic has, for other events.
async fn of_other_events<'a>(
    tx: &Transaction<'_>,
    words: &Words<'a>,
    new: &BTreeSet<Name>,
) -> Result<Words<'a>, Error> {
    let known: Vec<(&Name, &Said<'a>)> = words.iter().filter(|(name, _)| !new.contains(name)).collect();
    let word = |(name, said): &(&Name, &Said<'a>)| Word {
        hardware: name.0.hardware,
        kind: BATTERY_LOW.name,
        producer: PRODUCER,
        epoch: name.0.epoch,
        grid: name.1.cast_signed(),
        clinic: name.2,
        time_us: said.taken.frame.first_us,
        uncertainty_us: said.taken.frame.uncertainty_us,
    };
    let asked: Vec<Word<'_>> = known.iter().map(word).collect();
    let others = told::others(tx, &asked).await?;
    Ok(others.into_iter().map(|place| (*known[place].0, *known[place].1)).collect())
}

fn said<'a>(taken: &'a Taken<'a>) -> Vec<(Name, Said<'a>)> {
    let Content::Events(events) = &taken.frame.content else { return Vec::new() };
    // Nobody knows when it was: as with readings, nothing is derived of it, and nobody is alerted.
    if taken.time_uncertain {
        return Vec::new();
    }
    let low = events.iter().filter_map(|event| match event.kind {
        DeviceEventKind::BatteryLow(percent) => {
            Some(((taken.key, event.ticks.0, taken.assignment.tenant), Said { taken, percent }))
        }
        _ => None,
    });
    low.collect()
}

/// The frame's time is its event's.
fn time(said: &Said<'_>) -> Timestamp {
    timestamp(said.taken.frame.first_us)
}

/// Which of the words nobody has written yet. `beside`: the epochs under which their keys are kept, where these are others.
async fn keep_keys(
    tx: &Transaction<'_>,
    words: &Words<'_>,
    beside: &BTreeMap<Part, i64>,
) -> Result<BTreeSet<Name>, Error> {
    let kept = |(key, ticks, clinic): &Name| {
        let epoch = beside.get(&(*key, *clinic)).copied().unwrap_or(key.epoch);
        (Key { epoch, ..*key }, *ticks, *clinic)
    };
    let names: BTreeMap<Name, Name> = words.keys().map(|name| (kept(name), *name)).collect();
    let of = |get: fn(&Taken<'_>) -> Uuid| words.values().map(|said| get(said.taken)).collect::<Vec<Uuid>>();
    let hardware: Vec<Uuid> = words.keys().map(|(key, ..)| key.hardware).collect();
    let epochs: Vec<i64> = words.keys().map(|name| kept(name).0.epoch).collect();
    let grids: Vec<i64> = words.keys().map(|(_, ticks, _)| ticks.cast_signed()).collect();
    let tenants = of(|taken| taken.assignment.tenant);
    let wearers = of(|taken| taken.assignment.user);
    let devices = of(|taken| taken.assignment.device);
    let times: Vec<Timestamp> = words.values().map(time).collect();
    let statement = tx.prepare_cached(KEYS).await?;
    let rows = tx
        .query(
            &statement,
            &[&hardware, &epochs, &grids, &tenants, &wearers, &devices, &times, &BATTERY_LOW.name, &PRODUCER],
        )
        .await?;
    let written = |row: &tokio_postgres::Row| {
        let key = Key { hardware: row.get(0), epoch: row.get(1) };
        names.get(&(key, row.get::<_, i64>(2).cast_unsigned(), row.get(3))).copied()
    };
    Ok(rows.iter().filter_map(written).collect())
}

async fn write_events(tx: &Transaction<'_>, words: &Words<'_>) -> Result<(), Error> {
    let of = |get: fn(&Taken<'_>) -> Uuid| words.values().map(|said| get(said.taken)).collect::<Vec<Uuid>>();
    let times: Vec<Timestamp> = words.values().map(time).collect();
    let tenants = of(|taken| taken.assignment.tenant);
    let wearers = of(|taken| taken.assignment.user);
    let devices = of(|taken| taken.assignment.device);
    let kind = BATTERY_LOW.name;
    let data: Vec<Value> = words
        .values()
        .map(|said| serde_json::json!({ "producer": PRODUCER, "percent": said.percent }))
        .collect();
    let name = |(key, ticks, _): &Name| {
        format!("{kind}/{PRODUCER}/{}/{ticks}", Epoch(key.epoch as u64)).into_bytes()
    };
    let keys: Vec<Vec<u8>> = words.keys().map(name).collect();
    let statement = tx.prepare_cached(EVENTS).await?;
    tx.execute(&statement, &[&times, &tenants, &wearers, &devices, &data, &keys, &kind, &SEVERITY]).await?;
    let notices: Vec<String> = words.values().map(|said| notice(said, kind)).collect();
    let statement = tx.prepare_cached(NOTIFY).await?;
    tx.query(&statement, &[&notices]).await?;
    Ok(())
}

fn notice(said: &Said<'_>, kind: &str) -> String {
    let of = said.taken.assignment;
    serde_json::json!({
        "tenant": of.tenant, "user": of.user, "device": of.device, "time": time(said).to_string(), "event_type": kind,
    })
    .to_string()
}
