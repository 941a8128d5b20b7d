//! Housekeeping that no batch brings about: gaps that have become final, partitions, the quarantine's limits.
//!
//! The promise: each step stands alone, is a bounded slice, and takes what it looks at in turn. One that fails, for whatever
//! is there of one clinic, keeps no other from being done. What a gateway says of itself may be any number.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_store::Pool;
use uuid::Uuid;

use crate::error::Remedy;
use crate::{Error, Work, expire, timestamp};

/// When things are done.
#[derive(Debug, Clone)]
pub struct Policy {
    /// A gap that did not shrink for so long, and that nobody can fill any more, is lost.
    pub late_grace: Duration,
    /// A gateway's word is believed for so long.
    pub gateway_word: Duration,
    /// Open gaps that are looked at in a sweep.
    pub gaps: i32,
    /// Partitions are dropped here, as well as it goes without owning them.
    pub drops_partitions: bool,
    /// Quarantined things are kept so long,
    pub quarantine_age: Duration,
    /// and so many of them for each tenant,
    pub quarantine_rows: i64,
    /// with so many bytes.
    pub quarantine_bytes: i64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            late_grace: Duration::from_mins(1),
            gateway_word: Duration::from_mins(1),
            gaps: 2_000,
            drops_partitions: true,
            quarantine_age: Duration::from_hours(90 * 24),
            quarantine_rows: 200_000,
            quarantine_bytes: 1 << 30,
        }
    }
}

/// What a sweep did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Gaps that are lost now.
    pub lost: u64,
    /// Quarantined things that expired.
    pub expired: u64,
    /// Steps that failed; each is tried again in the next sweep.
    pub failed: u64,
}

/// A slice of open gaps that stood still, some of each wearable: from here on the next wearables have their turn.
const STANDING: &str = "SELECT id, hardware FROM ts.gaps_to_look_at($1, $2, $3)";

/// Open gaps of one wearable in a sweep.
const OF_ONE: i32 = 50;

/// Open gaps in a statement.
const TOGETHER: usize = 250;

/// Where a wearable has more than these, the next ones' turn comes.
const LOOKED_AT: &str = "UPDATE gaps SET looked_at = $2 WHERE id = ANY($1) AND reason = 'late'";

/// A gap that is `late` becomes `gateway_lost` when it stands still and either a gateway of a clinic that held the
/// device in the gap's time lost its database after the gap began, or nobody can hold the frames any more: every
/// gateway of every such clinic that is not retired reported lately that it has nothing left of this device, and one of
/// a clinic that held it then or has held it since has a link to it with nothing left to fetch. (A retired gateway holds
/// nothing, so retiring the last holder settles its gaps.)
const SETTLE: &str = "
    WITH held AS NOT MATERIALIZED (
      SELECT g.id AS gap, h.hardware_id, a.tenant_id, a.valid_from
      FROM gaps g JOIN hardware h ON h.id = g.hardware JOIN device_assignments a ON a.hardware_id = g.hardware
      WHERE g.id = ANY($2)
        AND tstzrange(a.valid_from, a.valid_to) &&
          tstzrange(least(g.from_time, g.to_time), greatest(g.from_time, g.to_time), '[]'))
    UPDATE gaps g SET reason = 'gateway_lost', updated_at = $1
    WHERE g.id = ANY($2) AND g.reason = 'late' AND g.withdrawn_at IS NULL AND (
      EXISTS (SELECT FROM held a JOIN gateways w ON w.tenant_id = a.tenant_id
                JOIN gateway_buffers b ON b.gateway_id = w.id
              WHERE a.gap = g.id AND b.broke_at >= coalesce(g.from_time, '-infinity') AND b.broke_at >= a.valid_from)
      OR (NOT EXISTS (
            SELECT FROM held a JOIN gateways w ON w.tenant_id = a.tenant_id
            WHERE a.gap = g.id AND w.retired_at IS NULL AND (
              w.last_seen_at IS NULL OR w.last_seen_at < $3 OR NOT coalesce((w.state->>'online')::bool, false)
              OR coalesce((w.state->>'parked_batches')::numeric, 0) > 0
              OR EXISTS (SELECT FROM jsonb_array_elements(w.state->'devices') d
                         WHERE d->>'hardware_id' = a.hardware_id AND (d->>'buffered_frames')::numeric > 0)))
          AND EXISTS (
            SELECT FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id
              JOIN gateways w ON w.tenant_id = a.tenant_id
              CROSS JOIN LATERAL jsonb_array_elements(w.state->'devices') d
            WHERE a.hardware_id = g.hardware
              AND tstzrange(a.valid_from, a.valid_to) && tstzrange(least(g.from_time, g.to_time), NULL)
              AND w.retired_at IS NULL AND w.last_seen_at >= $3 AND d->>'hardware_id' = h.hardware_id
              AND (d->>'connected')::bool AND (d->>'backlog_frames')::numeric = 0)))";

/// Does what is due.
pub fn sweep<'a>(pool: &'a Pool, clock: &'a dyn Clock, policy: &'a Policy) -> Work<'a, Result<Swept, Error>> {
    Box::pin(all_steps(pool, clock, policy))
}

async fn all_steps(pool: &Pool, clock: &dyn Clock, policy: &Policy) -> Result<Swept, Error> {
    let now_us = clock.utc_us();
    let now = timestamp(now_us);
    let ago = |duration: Duration| timestamp(now_us - duration.as_micros() as i64);
    let mut out = Swept::default();
    // A database that is away fails no step.
    drop(pool.get().await?);
    out.step("making partitions", make_partitions(pool, now).await);
    if policy.drops_partitions {
        out.step("dropping expired partitions", drop_partitions(pool).await);
    }
    out.expired +=
        out.step("thinning the quarantine by age", expire::aged(pool, ago(policy.quarantine_age), now).await);
    let excess = out.step("measuring the quarantine", expire::excess(pool, policy).await);
    for one in excess {
        out.expired += out.step("thinning a clinic's quarantine", expire::of_clinic(pool, &one, now).await);
    }
    // Last, since it may take long.
    let standing =
        Standing { since: ago(policy.late_grace), word: ago(policy.gateway_word), most: policy.gaps };
    let (lost, left_out) = out.step("settling gaps", settle(pool, now, &standing).await);
    out.lost = lost;
    out.failed += left_out;
    Ok(out)
}

impl Swept {
    /// What a step gave, or nothing where it failed.
    fn step<T: Default>(&mut self, what: &str, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| {
            self.failed += 1;
            tracing::warn!(%error, "{what} failed; it is tried again");
            T::default()
        })
    }
}

async fn make_partitions(pool: &Pool, now: Timestamp) -> Result<(), Error> {
    let until = timestamp(now.as_microsecond() + 7 * 86_400_000_000);
    pool.get().await?.query_one("SELECT ts.ensure_partitions($1, $2)", &[&now, &until]).await?;
    Ok(())
}

/// One at a time, each in a transaction of its own.
async fn drop_partitions(pool: &Pool) -> Result<(), Error> {
    let client = pool.get().await?;
    while client.query_one("SELECT ts.drop_expired()", &[]).await?.get::<_, i32>(0) > 0 {}
    Ok(())
}

/// Which open gaps are looked at, and by whose word.
struct Standing {
    since: Timestamp,
    word: Timestamp,
    most: i32,
}

/// An open gap, and of which wearable.
#[derive(Clone, Copy)]
struct Open {
    id: Uuid,
    hardware: Uuid,
}

/// Looks at a slice of open gaps; gives how many are lost now, and how many wearables were left out, since not even one gap of
/// theirs was looked at in time.
async fn settle(pool: &Pool, now: Timestamp, standing: &Standing) -> Result<(u64, u64), Error> {
    let client = pool.get().await?;
    let of_one = OF_ONE.min(standing.most);
    let mut gaps: Vec<Open> = client
        .query(STANDING, &[&standing.since, &standing.most, &of_one])
        .await?
        .iter()
        .map(|row| Open { id: row.get(0), hardware: row.get(1) })
        .collect();
    gaps.sort_unstable_by_key(|gap| (gap.hardware, gap.id));
    let crowded = gaps.chunk_by(|one, next| one.hardware == next.hardware);
    let crowded = crowded.filter(|of_one_wearable| of_one_wearable.len() as i64 >= i64::from(of_one));
    let ids: Vec<Uuid> = crowded.flatten().map(|gap| gap.id).collect();
    if !ids.is_empty() {
        // First, and by itself: whatever becomes of these, the next ones have their turn.
        client.execute(LOOKED_AT, &[&ids, &now]).await?;
    }
    let mut open: Vec<&[Open]> = gaps.chunks(TOGETHER).collect();
    let mut left_out: BTreeSet<Uuid> = BTreeSet::new();
    let mut lost = 0;
    while let Some(part) = open.pop() {
        let ids: Vec<Uuid> =
            part.iter().filter(|gap| !left_out.contains(&gap.hardware)).map(|gap| gap.id).collect();
        if ids.is_empty() {
            continue;
        }
        match client.execute(SETTLE, &[&now, &ids, &standing.word]).await.map_err(Error::from) {
            Ok(settled) => lost += settled,
            Err(error) if error.remedy() == Remedy::Later => return Err(error),
            Err(error) if part.len() > 1 => {
                tracing::info!(gaps = part.len(), %error, "gaps were not looked at in time; half of them are");
                let (first, second) = part.split_at(part.len() / 2);
                open.extend([second, first]);
            }
            Err(error) => {
                for Open { hardware, .. } in part {
                    tracing::warn!(%hardware, %error, "a wearable's gaps stay open for now");
                    left_out.insert(*hardware);
                }
            }
        }
    }
    Ok((lost, left_out.len() as u64))
}

/// Compresses chunks that are closed, or that got late rows since; gives how many. Each may take `patience`: longer than any
/// statement of the ordinary kind. One that fails is passed over. So many were, of the oldest; where too many fail, the next round
/// goes on behind them, and the one after its end begins anew.
pub async fn compress(pool: &Pool, patience: Duration, passed: &mut i32) -> Result<u64, Error> {
    const FAILURES: i32 = 3;
    let mut client = pool.get().await?;
    let timeout = format!("SET LOCAL statement_timeout = {}", patience.as_millis());
    let (mut compressed, mut failures) = (0, 0);
    loop {
        let tx = client.transaction().await?;
        tx.batch_execute(&timeout).await?;
        match tx.query_one("SELECT ts.compress_closed($1)", &[passed]).await {
            Ok(row) if row.get::<_, i32>(0) == 0 => {
                *passed = 0;
                return Ok(compressed);
            }
            Ok(_) => {
                tx.commit().await?;
                compressed += 1;
            }
            Err(error) if failures < FAILURES && error.code().is_some() => {
                tx.rollback().await?;
                *passed += 1;
                failures += 1;
                tracing::warn!(error = %kinara_store::explain(&error), "a chunk could not be compressed; the next one is");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Chooses the length of the chunks that are made from here on, so that what is not compressed fits in a quarter of the
/// database's memory (bytes; by itself it knows what its cache may take). Gives the length where it is another one now.
pub async fn fit_chunks(pool: &Pool, memory: Option<u64>) -> Result<Option<String>, Error> {
    let memory = memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    Ok(pool.get().await?.query_one("SELECT ts.fit_chunks($1)::text", &[&memory]).await?.get(0))
}
