//! The count: what wearables numbered, what is accounted for, and what is there.
//!
//! Two identities, which the write keeps in every commit, are computed from the outside, every night:
//!
//! - **frames**: of every epoch, the numbers up to the highest one that was ever heard of (the wearable's own counter, as
//!   its gateways passed it on), and those of which a gateway says that the bridge acknowledged them, are each in the
//!   ledger, in a gap, or in quarantine; none is in the ledger and in a gap. What a gateway says is of its own: it finds
//!   what a database that was restored from a backup does not know of.
//! - **readings**: of every clinic and hour, the rows that are there are as many as transactions noted that they wrote.
//!
//! A difference is an alert: it is logged as an error, counted in a metric, and raised as an alert of the clinic whose it
//! is, until it is gone.

use std::time::Duration;

use jiff::Timestamp;
use kinara_protocol::frame::Epoch;
use kinara_store::Pool;
use uuid::Uuid;

use crate::{Error, Work};

/// Epochs with a difference that are told.
const TOLD: i64 = 1000;

/// An epoch whose numbers do not add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unaccounted {
    /// The device.
    pub hardware: Uuid,
    /// Its epoch.
    pub epoch: i64,
    /// Numbers that are nowhere.
    pub nowhere: String,
    /// Numbers that are stored and in a gap.
    pub twice: String,
    /// Numbers that are nowhere although a gateway was told that they are here, and has them no more.
    pub acknowledged: String,
    /// Whose frames they are; `None`: it cannot be said.
    pub tenant: Option<Uuid>,
}

/// What a comparison found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// Epochs whose numbers do not add up, the first thousand.
    pub frames: Vec<Unaccounted>,
    /// Hours of a clinic whose rows are not what was written.
    pub hours: u64,
    /// Days that were compared.
    pub days: u64,
}

/// What changed lately, and what there is an alert about: each difference with the clinic whose frames they are, by name and
/// time. What a gateway says was acknowledged to it is its own clinic's. What may be of two clinics is told to neither.
const FRAMES: &str = "
    WITH gone AS (
      SELECT hardware, epoch, range_agg(seqs) AS seqs FROM gaps WHERE withdrawn_at IS NULL AND seqs IS NOT NULL
      GROUP BY 1, 2),
    aside AS (
      SELECT h.id AS hardware, q.epoch, range_agg(int8range(q.seq, q.seq, '[]')) AS seqs
      FROM quarantine q JOIN hardware h ON h.hardware_id = q.hardware_id
      WHERE q.what = 'frame' AND q.seq IS NOT NULL AND q.epoch IS NOT NULL GROUP BY 1, 2),
    delivered AS (
      SELECT d.hardware, d.epoch, g.tenant_id AS clinic, range_agg(d.seqs) AS seqs, max(d.told_at) AS told_at
      FROM gateway_delivered d JOIN gateways g ON g.id = d.gateway_id GROUP BY 1, 2, 3),
    holders AS (
      SELECT DISTINCT ON (a.hardware_id) a.hardware_id AS hardware, a.tenant_id AS clinic FROM device_assignments a
      ORDER BY a.hardware_id, a.valid_from DESC),
    both_of_them AS (
      SELECT hardware, epoch, coalesce(l.seqs, '{}') AS seqs, coalesce(l.highest, -1) AS highest,
        coalesce(l.named, false) AS named, coalesce(d.seqs, '{}') AS delivered,
        coalesce(d.of_holder, '{}') AS of_holder, d.another, greatest(l.updated_at, d.told_at) AS changed_at
      FROM ledger l FULL JOIN (
        SELECT d.hardware, d.epoch, range_agg(d.seqs) AS seqs, max(d.told_at) AS told_at,
          range_agg(d.seqs) FILTER (WHERE d.clinic = h.clinic) AS of_holder,
          (array_agg(d.clinic ORDER BY d.clinic) FILTER (WHERE d.clinic IS DISTINCT FROM h.clinic))[1] AS another
        FROM delivered d LEFT JOIN holders h ON h.hardware = d.hardware GROUP BY 1, 2) d USING (hardware, epoch)),
    told AS (
      SELECT b.hardware, b.epoch, i.seqs + x.seqs + coalesce(g.seqs, '{}') + coalesce(q.seqs, '{}') AS accounted,
        -- What came over HTTP has names and no count.
        CASE WHEN b.named THEN '{}'::int8multirange
          ELSE int8multirange(int8range(0, b.highest + 1)) - i.seqs - coalesce(g.seqs, '{}') - coalesce(q.seqs, '{}')
        END AS nowhere,
        (i.seqs + x.seqs) * coalesce(g.seqs, '{}') AS twice,
        b.delivered - i.seqs - x.seqs - coalesce(g.seqs, '{}') - coalesce(q.seqs, '{}') AS acknowledged,
        EXISTS (SELECT FROM alerts a JOIN hardware h ON h.id = b.hardware WHERE a.kind = 'frames'
          AND a.withdrawn_at IS NULL AND a.subject = h.hardware_id || ' ' || lpad(to_hex(b.epoch), 16, '0')) AS alerted,
        b.of_holder, b.another, b.changed_at
      FROM both_of_them b LEFT JOIN gone g ON g.hardware = b.hardware AND g.epoch = b.epoch
        LEFT JOIN aside q ON q.hardware = b.hardware AND q.epoch = b.epoch
        -- What is in. Names are in parts, of which those count that somebody else speaks of.
        CROSS JOIN LATERAL (
          SELECT CASE WHEN b.named AND NOT isempty(b.delivered + coalesce(g.seqs, '{}')) THEN b.seqs + coalesce((
            SELECT range_agg(f.seqs) FROM named_frames f WHERE f.hardware = b.hardware AND f.epoch = b.epoch
              AND f.seqs && (b.delivered + coalesce(g.seqs, '{}'))), '{}') ELSE b.seqs END AS seqs OFFSET 0) i
        -- And beside it, of clinics whose numbers another one used.
        CROSS JOIN LATERAL (
          SELECT CASE WHEN isempty(b.delivered + coalesce(g.seqs, '{}')) THEN '{}' ELSE coalesce((
            SELECT range_agg(f.seqs) FROM ledger_claims c JOIN named_frames f ON f.hardware = c.hardware AND f.epoch = c.alias
            WHERE c.hardware = b.hardware AND c.epoch = b.epoch AND f.seqs && (b.delivered + coalesce(g.seqs, '{}'))), '{}')
          END AS seqs OFFSET 0) x),
    -- So many are told. Of each clinic some, and of each of its devices: what one says hides no other's loss. What only another
    -- clinic's gateways say of a device takes no place of the clinic that has it.
    ranked AS (
      SELECT t.*, o.clinic, row_number() OVER (PARTITION BY t.hardware, o.clinic ORDER BY NOT t.alerted, t.epoch) AS of_device
      FROM told t LEFT JOIN holders h ON h.hardware = t.hardware
      CROSS JOIN LATERAL (
        SELECT CASE WHEN isempty(t.nowhere) AND isempty(t.twice) AND isempty(t.acknowledged * t.of_holder) THEN t.another
          ELSE h.clinic END AS clinic) o
      WHERE (t.changed_at >= $1 OR t.alerted)
        AND NOT (isempty(t.nowhere) AND isempty(t.twice) AND isempty(t.acknowledged))),
    wrong AS MATERIALIZED (
      SELECT w.* FROM (
        SELECT r.*, row_number() OVER (PARTITION BY r.clinic ORDER BY r.of_device, NOT r.alerted, r.hardware) AS place
        FROM ranked r) w
      ORDER BY w.place, NOT w.alerted, w.hardware, w.epoch LIMIT $2),
    certain AS MATERIALIZED (
      SELECT w.hardware, w.epoch, c.clinic, c.certain FROM wrong w CROSS JOIN LATERAL ts.numbers_of(w.hardware, w.epoch, NULL) c),
    shared AS (
      SELECT w.hardware, w.epoch, coalesce(c.clinic, d.clinic) AS clinic, w.nowhere * coalesce(c.certain, '{}') AS nowhere,
        w.twice * coalesce(c.certain, '{}') AS twice, coalesce(d.seqs - w.accounted, '{}') AS acknowledged
      FROM wrong w JOIN (certain c FULL JOIN delivered d USING (hardware, epoch, clinic)) USING (hardware, epoch)
      UNION ALL
      SELECT w.hardware, w.epoch, NULL, w.nowhere - sure.seqs, w.twice - sure.seqs, '{}'
      FROM wrong w CROSS JOIN LATERAL (SELECT coalesce(range_agg(c.certain), '{}') AS seqs FROM certain c
        WHERE c.hardware = w.hardware AND c.epoch = w.epoch) sure)
    SELECT hardware, epoch, nowhere::text, twice::text, acknowledged::text, clinic FROM shared
    WHERE NOT (isempty(nowhere) AND isempty(twice) AND isempty(acknowledged)) ORDER BY 1, 2, 6";

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Readings are kept from here on.
    pub raw_from: Timestamp,
    /// From here on everything is compared, before only what changed since it was last compared.
    pub again_from: Timestamp,
    /// Bounds each statement: counting a day's rows takes longer than a writer would wait.
    pub patience: Duration,
}

/// Compares the epochs and the days of a span.
pub fn reconcile<'a>(pool: &'a Pool, span: &'a Span) -> Work<'a, Result<Found, Error>> {
    Box::pin(compare(pool, span))
}

async fn compare(pool: &Pool, span: &Span) -> Result<Found, Error> {
    let mut client = pool.get().await?;
    let mut out = Found::default();
    let timeout = format!("SET LOCAL statement_timeout = {}", span.patience.as_millis());
    let tx = client.transaction().await?;
    tx.batch_execute(&timeout).await?;
    let rows = tx.query(FRAMES, &[&span.again_from, &TOLD]).await?;
    out.frames = rows
        .iter()
        .map(|row| Unaccounted {
            hardware: row.get(0),
            epoch: row.get(1),
            nowhere: row.get(2),
            twice: row.get(3),
            acknowledged: row.get(4),
            tenant: row.get(5),
        })
        .collect();
    let told: serde_json::Value = out
        .frames
        .iter()
        .map(|one| {
            serde_json::json!({
                "tenant": one.tenant, "hardware": one.hardware, "epoch": Epoch(one.epoch as u64).to_string(),
                "detail": { "nowhere": one.nowhere, "twice": one.twice, "acknowledged": one.acknowledged },
            })
        })
        .collect();
    tx.execute("SELECT ts.alert_frames($1)", &[&told]).await?;
    tx.commit().await?;
    client.query_one("SELECT ts.add_up_written()", &[]).await?;
    // The database's clock, as in what it is compared with.
    let began: Timestamp = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    loop {
        let tx = client.transaction().await?;
        tx.batch_execute(&timeout).await?;
        let wrong: Option<i64> = tx
            .query_one("SELECT ts.reconcile($1, $2, $3)", &[&span.raw_from, &span.again_from, &began])
            .await?
            .get(0);
        tx.commit().await?;
        if wrong.is_none() {
            break;
        }
        out.days += 1;
    }
    client.execute("SELECT ts.alert_differences()", &[]).await?;
    let differ: i64 = client.query_one("SELECT count(*) FROM differences", &[]).await?.get(0);
    out.hours = differ.unsigned_abs();
    Ok(out)
}
