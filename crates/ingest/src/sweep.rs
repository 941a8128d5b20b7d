//! Housekeeping that no batch brings about: gaps that have become final, partitions, the quarantine's limits.

use std::time::Duration;

use kinara_clock::Clock;
use kinara_store::Pool;

use crate::{Error, timestamp};

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
/// device lost its database after the gap began, or nobody can hold the frames any more: every gateway of that clinic
/// that is not retired reported lately that it has nothing left of this device, and one of them has a link to it with
/// nothing left to fetch. (A retired gateway holds nothing, so retiring the last holder settles its gaps.)
const SETTLE: &str = "
    UPDATE gaps g SET reason = 'gateway_lost', updated_at = $1
    WHERE g.reason = 'late' AND g.withdrawn_at IS NULL AND g.updated_at < $2 AND EXISTS (
      SELECT FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id
      WHERE a.hardware_id = g.hardware AND (
        EXISTS (SELECT FROM gateway_buffers b JOIN gateways w ON w.id = b.gateway_id
                WHERE w.tenant_id = a.tenant_id AND b.broke_at >= coalesce(g.from_time, '-infinity')
                  AND b.broke_at >= a.valid_from)
        OR (NOT EXISTS (
              SELECT FROM gateways w WHERE w.tenant_id = a.tenant_id AND w.retired_at IS NULL AND (
                w.last_seen_at IS NULL OR w.last_seen_at < $3 OR NOT coalesce((w.state->>'online')::bool, false)
                OR coalesce((w.state->>'parked_batches')::int8, 0) > 0
                OR EXISTS (SELECT FROM jsonb_array_elements(w.state->'devices') d
                           WHERE d->>'hardware_id' = h.hardware_id AND (d->>'buffered_frames')::int8 > 0)))
            AND EXISTS (
              SELECT FROM gateways w, jsonb_array_elements(w.state->'devices') d
              WHERE w.tenant_id = a.tenant_id AND w.retired_at IS NULL AND d->>'hardware_id' = h.hardware_id
                AND (d->>'connected')::bool AND (d->>'backlog_frames')::int8 = 0))))";

const EXPIRE: &str = "
    WITH old AS (
      SELECT id FROM quarantine WHERE received_at < $1
      UNION ALL
      SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY tenant_id ORDER BY received_at DESC) AS n
                      FROM quarantine) ranked WHERE n > $2
      LIMIT 5000),
    gone AS (DELETE FROM quarantine q USING old WHERE q.id = old.id
             RETURNING q.what, q.hardware_id, q.epoch, q.seq, q.replayed_at, q.received_at),
    told AS (
      INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, created_at, updated_at)
      SELECT h.id, gone.epoch, range_agg(int8range(gone.seq, gone.seq + 1)) - coalesce((array_agg(l.seqs))[1], '{}'), 'expired',
        min(gone.received_at), max(gone.received_at), $3, $3
      FROM gone JOIN hardware h ON h.hardware_id = gone.hardware_id
        LEFT JOIN ledger l ON l.hardware = h.id AND l.epoch = gone.epoch
      WHERE gone.what = 'frame' AND gone.seq IS NOT NULL AND gone.replayed_at IS NULL
      GROUP BY h.id, gone.epoch)
    SELECT count(*) FROM gone";

/// Does what is due.
pub async fn sweep(pool: &Pool, clock: &dyn Clock, policy: &Policy) -> Result<Swept, Error> {
    let now_us = clock.utc_us();
    let now = timestamp(now_us);
    let ago = |duration: Duration| timestamp(now_us - duration.as_micros() as i64);
    let client = pool.get().await?;
    client
        .query_one("SELECT ts.ensure_partitions($1, $2)", &[&now, &timestamp(now_us + 7 * 86_400_000_000)])
        .await?;
    client.query_one("SELECT ts.drop_expired()", &[]).await?;
    // One chunk a sweep: its lock is short, and closed chunks are rare.
    client.query_one("SELECT ts.compress_closed()", &[]).await?;
    let lost = client.execute(SETTLE, &[&now, &ago(policy.late_grace), &ago(policy.gateway_word)]).await?;
    let expired: i64 =
        client.query_one(EXPIRE, &[&ago(policy.quarantine_age), &policy.quarantine_rows, &now]).await?.get(0);
    Ok(Swept { lost, expired: expired as u64 })
}
