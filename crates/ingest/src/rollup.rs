//! Aggregates by minute, quarter of an hour, hour and local day.
//!
//! The promise: once no note is left, every aggregate is what its readings make it, whatever order they came in, however
//! often, and whoever they were moved to. A write notes in its own transaction which hours it made stale; the
//! database recomputes these whole ([`roll_up`]), a bounded slice at a time, one bridge at a time.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kinara_store::{Pool, Transaction};
use uuid::Uuid;

use crate::plan::Taken;
use crate::{Error, timestamp};

const HOUR_US: i64 = 3_600_000_000;

/// What a slice holds itself to.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Notes in a transaction.
    pub notes: i32,
    /// Readings are kept so long. What is older is not recomputed: it may be gone in part.
    pub raw_days: i64,
    /// Expired rows of each kind that are deleted in a transaction.
    pub expired: i32,
}

impl Default for Slice {
    fn default() -> Self {
        Self { notes: 2_000, raw_days: 730, expired: 10_000 }
    }
}

/// Notes the hours that these frames' readings are in.
pub(crate) async fn note(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut stale: BTreeSet<(Uuid, Uuid, i16, i64)> = BTreeSet::new();
    for taken in new {
        let (tenant, user) = (taken.assignment.tenant, taken.assignment.user);
        for sample in
            &taken.device.samples[taken.frame.samples.start as usize..taken.frame.samples.end as usize]
        {
            stale.insert((tenant, user, sample.kind, sample.utc_us.div_euclid(HOUR_US)));
        }
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
            "INSERT INTO ts.stale (tenant_id, user_id, type, hour)
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int2[], $4::timestamptz[])",
        )
        .await?;
    tx.execute(&statement, &[&tenants, &users, &types, &hours]).await?;
    Ok(())
}

/// Recomputes what is stale, slice by slice, and gives how many notes there were. Nothing while another bridge does it.
pub async fn roll_up(pool: &Pool, now: Timestamp, slice: &Slice) -> Result<u64, Error> {
    let raw_from = timestamp(now.as_microsecond() - slice.raw_days * 24 * HOUR_US);
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT ts.roll_up($1, $2)").await?;
    let mut total = 0;
    loop {
        let notes: i64 = client.query_one(&statement, &[&slice.notes, &raw_from]).await?.get(0);
        total += notes.unsigned_abs();
        if notes < i64::from(slice.notes) {
            break;
        }
    }
    let statement = client.prepare_cached("SELECT ts.drop_expired_rollups($1)").await?;
    client.query_one(&statement, &[&slice.expired]).await?;
    Ok(total)
}
