//! Housekeeping that no batch brings about: gaps that have become final, partitions, the quarantine's limits.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_store::{Pool, Transaction};
use uuid::Uuid;

use crate::gaps::{self, Candidate, Findings};
use crate::plan::Key;
use crate::seqs::SeqSet;
use crate::{Error, ledger, timestamp};

/// When things are done.
#[derive(Debug, Clone)]
pub struct Policy {
    /// A gap that did not shrink for so long, and that nobody can fill any more, is lost.
    pub late_grace: Duration,
    /// A gateway's word is believed for so long.
    pub gateway_word: Duration,
    /// Quarantined things are kept so long,
    pub quarantine_age: Duration,
    /// and so many of them for each tenant.
    pub quarantine_rows: i64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            late_grace: Duration::from_mins(1),
            gateway_word: Duration::from_mins(1),
            quarantine_age: Duration::from_hours(90 * 24),
            quarantine_rows: 200_000,
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
}

/// A gap that is `late` becomes `gateway_lost` when it stands still and either a gateway of a clinic that held the
/// device in the gap's time lost its database after the gap began, or nobody can hold the frames any more: every
/// gateway of every such clinic that is not retired reported lately that it has nothing left of this device, and one of
/// a clinic that held it then or has held it since has a link to it with nothing left to fetch. (A retired gateway holds
/// nothing, so retiring the last holder settles its gaps.)
const SETTLE: &str = "
    WITH held AS NOT MATERIALIZED (
      SELECT g.id AS gap, h.hardware_id, a.tenant_id, a.valid_from
      FROM gaps g JOIN hardware h ON h.id = g.hardware JOIN device_assignments a ON a.hardware_id = g.hardware
      WHERE g.reason = 'late' AND g.withdrawn_at IS NULL AND g.updated_at < $2
        AND tstzrange(a.valid_from, a.valid_to) &&
          tstzrange(least(g.from_time, g.to_time), greatest(g.from_time, g.to_time), '[]'))
    UPDATE gaps g SET reason = 'gateway_lost', updated_at = $1
    WHERE g.reason = 'late' AND g.withdrawn_at IS NULL AND g.updated_at < $2 AND (
      EXISTS (SELECT FROM held a JOIN gateways w ON w.tenant_id = a.tenant_id
                JOIN gateway_buffers b ON b.gateway_id = w.id
              WHERE a.gap = g.id AND b.broke_at >= coalesce(g.from_time, '-infinity') AND b.broke_at >= a.valid_from)
      OR (NOT EXISTS (
            SELECT FROM held a JOIN gateways w ON w.tenant_id = a.tenant_id
            WHERE a.gap = g.id AND w.retired_at IS NULL AND (
              w.last_seen_at IS NULL OR w.last_seen_at < $3 OR NOT coalesce((w.state->>'online')::bool, false)
              OR coalesce((w.state->>'parked_batches')::int8, 0) > 0
              OR EXISTS (SELECT FROM jsonb_array_elements(w.state->'devices') d
                         WHERE d->>'hardware_id' = a.hardware_id AND (d->>'buffered_frames')::int8 > 0)))
          AND EXISTS (
            SELECT FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id
              JOIN gateways w ON w.tenant_id = a.tenant_id
              CROSS JOIN LATERAL jsonb_array_elements(w.state->'devices') d
            WHERE a.hardware_id = g.hardware
              AND tstzrange(a.valid_from, a.valid_to) && tstzrange(least(g.from_time, g.to_time), NULL)
              AND w.retired_at IS NULL AND w.last_seen_at >= $3 AND d->>'hardware_id' = h.hardware_id
              AND (d->>'connected')::bool AND (d->>'backlog_frames')::int8 = 0)))";

/// What goes. What another clinic's gateway brought tells nothing: that one's word is not believed.
const EXPIRE: &str = "
    WITH old AS (
      SELECT id FROM quarantine WHERE received_at < $1
      UNION ALL
      SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY tenant_id ORDER BY received_at DESC) AS n
                      FROM quarantine) ranked WHERE n > $2
      LIMIT 5000)
    DELETE FROM quarantine q USING old WHERE q.id = old.id
    RETURNING (SELECT id FROM hardware h WHERE h.hardware_id = q.hardware_id), q.epoch, q.received_at,
      CASE WHEN q.what = 'frame' AND q.replayed_at IS NULL AND q.reason <> 'foreign_gateway' THEN q.seq END";

/// Does what is due.
pub async fn sweep(pool: &Pool, clock: &dyn Clock, policy: &Policy) -> Result<Swept, Error> {
    let now_us = clock.utc_us();
    let now = timestamp(now_us);
    let ago = |duration: Duration| timestamp(now_us - duration.as_micros() as i64);
    let mut client = pool.get().await?;
    client
        .query_one("SELECT ts.ensure_partitions($1, $2)", &[&now, &timestamp(now_us + 7 * 86_400_000_000)])
        .await?;
    client.query_one("SELECT ts.drop_expired()", &[]).await?;
    // One chunk a sweep: its lock is short, and closed chunks are rare.
    client.query_one("SELECT ts.compress_closed()", &[]).await?;
    let lost = client.execute(SETTLE, &[&now, &ago(policy.late_grace), &ago(policy.gateway_word)]).await?;
    let tx = client.transaction().await?;
    let expired = expire(&tx, ago(policy.quarantine_age), policy.quarantine_rows, now).await?;
    tx.commit().await?;
    Ok(Swept { lost, expired })
}

/// Chooses the length of the chunks that are made from here on, so that what is not compressed fits in a quarter of the
/// database's memory (bytes; by itself it knows what its cache may take). Gives the length where it is another one now.
pub async fn fit_chunks(pool: &Pool, memory: Option<u64>) -> Result<Option<String>, Error> {
    let memory = memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    Ok(pool.get().await?.query_one("SELECT ts.fit_chunks($1)::text", &[&memory]).await?.get(0))
}

/// Frames that leave the quarantine leave a gap `expired`. Their numbers count as heard of, so that such a frame that
/// comes after all is taken out of its gap, and so that a number below them which was never seen is `late`.
async fn expire(
    tx: &Transaction<'_>,
    before: Timestamp,
    most_rows: i64,
    now: Timestamp,
) -> Result<u64, Error> {
    let rows = tx.query(EXPIRE, &[&before, &most_rows]).await?;
    let mut told: BTreeMap<Key, Candidate> = BTreeMap::new();
    for row in &rows {
        let (Some(hardware), Some(epoch), Some(seq)) =
            (row.get::<_, Option<Uuid>>(0), row.get::<_, Option<i64>>(1), row.get::<_, Option<i64>>(3))
        else {
            continue;
        };
        let key = Key { hardware, epoch };
        let received_us = Some(row.get::<_, Timestamp>(2).as_microsecond());
        let gap = told.entry(key).or_insert_with(|| Candidate {
            key,
            reason: "expired",
            seqs: SeqSet::default(),
            from_us: received_us,
            to_us: received_us,
            gateway: None,
        });
        gap.seqs.insert(seq as u64);
        (gap.from_us, gap.to_us) = (gap.from_us.min(received_us), gap.to_us.max(received_us));
    }
    let mut entries = ledger::lock(tx, told.keys().copied()).await?;
    for (key, gap) in &told {
        entries.entry(*key).or_default().heard.add(&gap.seqs);
    }
    ledger::update(tx, &entries, now).await?;
    let mut findings = Findings { candidates: told.into_values().collect(), ..Findings::default() };
    findings.skipped(&entries);
    gaps::record(tx, findings, &entries, now).await?;
    Ok(rows.len() as u64)
}
