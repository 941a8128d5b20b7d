//! Events that somebody told already: whether it is this event, or another one, whose key another clinic used before.
//!
//! The promise: as with frames ([`crate::claims`]), a clinic cannot occupy keys of a device's events for the clinic after it. A
//! key that another clinic has is this event's only where both tell the same time, as near as they are certain: the two sides of a
//! boundary. Otherwise it is kept under the epoch beside.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kinara_store::Transaction;
use uuid::Uuid;

use crate::plan::Key;
use crate::{Error, claims};

/// How far two boxes' words about one event are apart, beside what each is uncertain by.
const NEAR_US: u64 = 1_000_000;
/// An uncertainty that is believed.
const MOST_UNCERTAIN_US: u64 = 60_000_000;

/// What an event is known by, and what is said of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Word<'a> {
    pub hardware: Uuid,
    pub kind: &'a str,
    pub producer: &'a str,
    pub epoch: i64,
    pub grid: i64,
    /// Who says so, and when it was.
    pub clinic: Uuid,
    pub time_us: i64,
    pub uncertainty_us: u64,
}

const OTHERS: &str = "
    SELECT k.place, e.time
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int8[], $5::int8[], $6::uuid[])
      WITH ORDINALITY k(hardware, kind, producer, epoch, grid, clinic, place)
    CROSS JOIN LATERAL (
      SELECT e.time FROM event_keys e WHERE e.hardware = k.hardware AND e.kind = k.kind AND e.producer = k.producer
        AND e.epoch = k.epoch AND e.grid = k.grid AND e.tenant_id <> k.clinic OFFSET 0) e";

/// Which of these words, whose keys are there already, are about other events: their places.
pub(crate) async fn others(tx: &Transaction<'_>, words: &[Word<'_>]) -> Result<BTreeSet<usize>, Error> {
    if words.is_empty() {
        return Ok(BTreeSet::new());
    }
    let hardware: Vec<Uuid> = words.iter().map(|word| word.hardware).collect();
    let kinds: Vec<&str> = words.iter().map(|word| word.kind).collect();
    let producers: Vec<&str> = words.iter().map(|word| word.producer).collect();
    let epochs: Vec<i64> = words.iter().map(|word| word.epoch).collect();
    let grids: Vec<i64> = words.iter().map(|word| word.grid).collect();
    let clinics: Vec<Uuid> = words.iter().map(|word| word.clinic).collect();
    let statement = tx.prepare_cached(OTHERS).await?;
    let rows = tx.query(&statement, &[&hardware, &kinds, &producers, &epochs, &grids, &clinics]).await?;
    let is_far = |row: &tokio_postgres::Row| {
        let place = usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1)?;
        let word = words.get(place)?;
        let apart_us = row.get::<_, Timestamp>(1).as_microsecond().abs_diff(word.time_us);
        (apart_us > word.uncertainty_us.min(MOST_UNCERTAIN_US) + NEAR_US).then_some(place)
    };
    Ok(rows.iter().filter_map(is_far).collect())
}

/// The epoch under which an event is kept whose key is there already, for another event of another clinic; `None`: it is this one.
pub(crate) async fn beside(tx: &Transaction<'_>, word: &Word<'_>) -> Result<Option<i64>, Error> {
    if others(tx, std::slice::from_ref(word)).await?.is_empty() {
        return Ok(None);
    }
    let part = (Key { hardware: word.hardware, epoch: word.epoch }, word.clinic);
    let epochs = claims::beside(tx, &BTreeSet::from([part])).await?;
    Ok(epochs.into_values().next())
}
