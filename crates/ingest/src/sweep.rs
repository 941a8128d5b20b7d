//! Housekeeping that no batch brings about: gaps that have become final, partitions, the quarantine's limits.
//!
//! The promise: each step stands alone, is a bounded slice, and takes what it looks at in turn. One that fails, for whatever
//! is there of one clinic, keeps no other from being done. What a gateway says of itself may be any number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_store::{Client, Pool};
use uuid::Uuid;

use crate::error::Remedy;
use crate::gaps::{self, Asked, LetGo};
use crate::plan::Key;
use crate::{Error, Work, quarantine, timestamp};

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

/// What goes of one clinic: `$2` things or `$3` bytes too many, the oldest first. What another clinic's gateway brought tells
/// nothing: that one's word is not believed.
fn excessive(of_a_clinic: bool) -> String {
    let whose = if of_a_clinic { "tenant_id = $1" } else { "tenant_id IS NULL AND $1::uuid IS NOT NULL" };
    format!(
        "SELECT {LEAVES}
         FROM (
           SELECT id FROM (
             SELECT id, row_number() OVER w AS place, sum(octet_length(payload)) OVER w - octet_length(payload) AS before
             FROM (SELECT id, received_at, payload FROM quarantine WHERE {whose} ORDER BY received_at LIMIT {SLICE}) oldest
             WINDOW w AS (ORDER BY received_at, id)) ranked
           WHERE place <= $2 OR before < $3) old
         JOIN quarantine q ON q.id = old.id"
    )
}

/// What goes for its age.
fn old() -> String {
    format!(
        "SELECT {LEAVES} FROM (SELECT id FROM quarantine WHERE received_at < $1 ORDER BY received_at LIMIT {SLICE}) old
         JOIN quarantine q ON q.id = old.id"
    )
}

/// Quarantined things that expire in a transaction.
const SLICE: i64 = 5_000;
/// What leaves, and what is needed to say whose its number may be.
const LEAVES: &str = "
    q.id, (SELECT id FROM hardware h WHERE h.hardware_id = q.hardware_id), q.epoch, q.received_at,
      CASE WHEN q.what = 'frame' AND q.replayed_at IS NULL AND q.reason <> 'foreign_gateway' THEN q.seq END,
      q.fit, q.tenant_id";

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
        out.step("thinning the quarantine by age", expire_aged(pool, ago(policy.quarantine_age), now).await);
    let excess = out.step("measuring the quarantine", excess(pool, policy).await);
    for one in excess {
        out.expired += out.step("thinning a clinic's quarantine", expire_of(pool, &one, now).await);
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

/// How much more a clinic has in quarantine than it may.
struct Excess {
    clinic: Uuid,
    items: i64,
    bytes: i64,
}

async fn excess(pool: &Pool, policy: &Policy) -> Result<Vec<Excess>, Error> {
    let limits: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&policy.quarantine_rows, &policy.quarantine_bytes];
    let rows = pool
        .get()
        .await?
        .query("SELECT clinic, items, bytes FROM ts.quarantine_excess($1, $2)", &limits)
        .await?;
    Ok(rows.iter().map(|row| Excess { clinic: row.get(0), items: row.get(1), bytes: row.get(2) }).collect())
}

async fn expire_of(pool: &Pool, excess: &Excess, now: Timestamp) -> Result<u64, Error> {
    let mut client = pool.get().await?;
    let sql = excessive(!excess.clinic.is_nil());
    let rows = client.query(&sql, &[&excess.clinic, &excess.items, &excess.bytes]).await?;
    expire(&mut client, &rows, now).await
}

async fn expire_aged(pool: &Pool, before: Timestamp, now: Timestamp) -> Result<u64, Error> {
    let mut client = pool.get().await?;
    let rows = client.query(&old(), &[&before]).await?;
    expire(&mut client, &rows, now).await
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

/// A frame that left the quarantine.
struct Gone {
    key: Key,
    seq: u64,
    received: Timestamp,
    named: bool,
    clinic: Uuid,
}

/// One whose name is believed as far as its clinic can speak of it.
fn gone(row: &tokio_postgres::Row) -> Option<Gone> {
    Some(Gone {
        key: Key { hardware: row.get::<_, Option<Uuid>>(1)?, epoch: row.get::<_, Option<i64>>(2)? },
        seq: row.get::<_, Option<i64>>(4)?.unsigned_abs(),
        received: row.get(3),
        named: quarantine::is_named(row.get(5)),
        clinic: row.get::<_, Option<Uuid>>(6)?,
    })
}

/// Takes things out of the quarantine; gives how many. Frames leave a gap `expired`. Which numbers are a clinic's is asked here: a
/// frame that was refused for its time was never asked whose it is, and any clinic may have any frame refused. It is asked
/// before, so many epochs at a time: however many there are and however often their device was given on, no statement takes long.
async fn expire(client: &mut Client, rows: &[tokio_postgres::Row], now: Timestamp) -> Result<u64, Error> {
    let mut asked = Asked::new();
    for one in rows.iter().filter_map(gone) {
        gaps::ask(&mut asked, (one.key, one.clinic), one.received);
    }
    let asked: Vec<_> = asked.iter().collect();
    let mut its = BTreeMap::new();
    for part in asked.chunks(gaps::ASKED) {
        let tx = client.transaction().await?;
        its.extend(gaps::may_be_its(&tx, part.iter().copied()).await?);
        tx.commit().await?;
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let tx = client.transaction().await?;
    let left = tx
        .query(&format!("DELETE FROM quarantine q WHERE q.id = ANY($1) RETURNING {LEAVES}"), &[&ids])
        .await?;
    let mut told = LetGo::new("expired");
    for one in left.iter().filter_map(gone) {
        if its.get(&(one.key, one.clinic)).is_some_and(|seqs| seqs.contains(one.seq)) {
            let received_us = one.received.as_microsecond();
            told.add(one.key, one.seq, (received_us, received_us), one.named);
        }
    }
    told.tell(&tx, now).await?;
    tx.commit().await?;
    Ok(left.len() as u64)
}
