//! Aggregates by minute, quarter of an hour, hour and local day.
//!
//! The promise: once no note is left, every aggregate is what its readings make it, whatever order they came in, however
//! often, and whoever they were moved to. A write notes in its own transaction which hours it made stale; the
//! database recomputes these whole ([`roll_up`]), a bounded slice at a time, one bridge at a time.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kinara_store::{Pool, Transaction};
use uuid::Uuid;

use crate::plan::Taken;
use crate::write::DAY_US;
use crate::{Error, Limits, timestamp};

const HOUR_US: i64 = 3_600_000_000;

/// What is derived at once.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Hours of one wearer and type in a transaction: some hundred thousand readings, which take seconds.
    pub hours: i32,
    /// Readings are kept so long. What is older is not recomputed: it may be gone in part.
    pub raw_days: i64,
    /// Expired rows of each kind that are deleted in a transaction.
    pub expired: i32,
}

impl Default for Slice {
    fn default() -> Self {
        Self { hours: 50, raw_days: Limits::default().retention_days, expired: 10_000 }
    }
}

impl Slice {
    pub(crate) fn raw_from(&self, now: Timestamp) -> Timestamp {
        timestamp(now.as_microsecond() - self.raw_days * DAY_US)
    }
}

/// Notes the hours that these frames' readings are in, and how many readings of a clinic that are.
pub(crate) async fn note(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut stale: BTreeSet<(Uuid, Uuid, i16, i64)> = BTreeSet::new();
    let mut written: BTreeMap<(Uuid, i64), i64> = BTreeMap::new();
    let mut last = None;
    let mut count = 0;
    for taken in new {
        let (tenant, user) = (taken.assignment.tenant, taken.assignment.user);
        for sample in
            &taken.device.samples[taken.frame.samples.start as usize..taken.frame.samples.end as usize]
        {
            let hour = (tenant, user, sample.kind, sample.utc_us.div_euclid(HOUR_US));
            // A frame's samples of one kind stand together.
            if last != Some(hour) {
                if let Some((tenant, _, _, before)) = last.replace(hour) {
                    *written.entry((tenant, before)).or_default() += std::mem::take(&mut count);
                }
                stale.insert(hour);
            }
            count += 1;
        }
    }
    if let Some((tenant, _, _, hour)) = last {
        *written.entry((tenant, hour)).or_default() += count;
    }
    if stale.is_empty() {
        return Ok(());
    }
    let (mut tenants, mut users, mut types, mut hours) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (tenant, user, kind, hour) in stale {
        tenants.push(tenant);
        users.push(user);
        types.push(kind);
        hours.push(timestamp(hour * HOUR_US));
    }
    let statement = tx
        .prepare_cached(
            "WITH counted AS (
               INSERT INTO ts.written (tenant_id, hour, readings)
               SELECT * FROM unnest($5::uuid[], $6::timestamptz[], $7::int8[]))
             INSERT INTO ts.stale (tenant_id, user_id, type, hour)
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int2[], $4::timestamptz[])",
        )
        .await?;
    let clinics: Vec<Uuid> = written.keys().map(|(tenant, _)| *tenant).collect();
    let clock_hours: Vec<Timestamp> = written.keys().map(|(_, hour)| timestamp(hour * HOUR_US)).collect();
    let counts: Vec<i64> = written.into_values().collect();
    tx.execute(&statement, &[&tenants, &users, &types, &hours, &clinics, &clock_hours, &counts]).await?;
    Ok(())
}

/// Recomputes what is stale, slice by slice, and gives how many hours that were. Nothing while another bridge does it.
pub async fn roll_up(pool: &Pool, now: Timestamp, slice: &Slice) -> Result<u64, Error> {
    let raw_from = slice.raw_from(now);
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT ts.roll_up($1, $2)").await?;
    let mut total = 0;
    loop {
        let hours: i64 = client.query_one(&statement, &[&slice.hours, &raw_from]).await?.get(0);
        total += hours.unsigned_abs();
        if hours < i64::from(slice.hours) {
            break;
        }
    }
    client.query_one("SELECT ts.add_up_written()", &[]).await?;
    let statement = client.prepare_cached("SELECT ts.drop_expired_rollups($1)").await?;
    client.query_one(&statement, &[&slice.expired]).await?;
    Ok(total)
}
