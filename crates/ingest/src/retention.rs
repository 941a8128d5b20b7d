//! What grows and has an end: the audit log, gaps, alerts, how times came about, how often and whether wearables measured on skin,
//! which events are in, requests that were never written, and what was asked of boxes and of the roll-up and is done.
//! Readings, events and aggregates have theirs by their own storage.

use jiff::Timestamp;
use kinara_store::Pool;

use crate::write::DAY_US;
use crate::{Error, Work, timestamp};

/// Rows that are deleted, or looked at, in a transaction.
const SLICE: i32 = 10_000;

/// How long each is kept, in days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Lines of the audit log. The database keeps each for a year, whatever is asked.
    pub audit_days: i64,
    /// Gaps that hold, alerts, and how often wearables measured: as long as aggregates.
    pub derived_days: i64,
    /// Gaps that were withdrawn: their frames came.
    pub withdrawn_days: i64,
    /// How frames' times came about, whether wearables were worn, and which events are in: a while longer than readings are kept.
    pub frame_times_days: i64,
    /// On which days a wearer had something: a while longer than events are kept. They go a chunk of up to thirty days at a time,
    /// and a chunk's time counts from its end.
    pub days_days: i64,
    /// Requests over HTTP that were never written, since their job died and nobody revived it.
    pub dead_requests_days: i64,
    /// Moves of readings, introductions and revocations that are done, or whose time was over.
    pub done_days: i64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            audit_days: 3_653,
            derived_days: 1_827,
            withdrawn_days: 90,
            frame_times_days: 762,
            days_days: 1_920,
            dead_requests_days: 90,
            done_days: 365,
        }
    }
}

/// Deletes what is older, slice by slice; gives how many rows went, and how many kinds could not be done.
pub fn forget<'a>(pool: &'a Pool, now: Timestamp, keep: &'a Retention) -> Work<'a, (u64, u64)> {
    Box::pin(forget_all(pool, now, keep))
}

async fn forget_all(pool: &Pool, now: Timestamp, keep: &Retention) -> (u64, u64) {
    let ago = |days: i64| timestamp(now.as_microsecond() - days * DAY_US);
    let derived = ago(keep.derived_days);
    let kinds: [(&str, &str, Vec<Timestamp>); 12] = [
        ("the audit log", "SELECT forget_audit($1, $2)", vec![ago(keep.audit_days)]),
        ("alerts", "SELECT forget_alerts($1, $2)", vec![derived]),
        ("gaps", "SELECT forget_gaps($1, $2, $3)", vec![ago(keep.withdrawn_days), derived]),
        ("frame times", "SELECT forget_frame_times($1, $2)", vec![ago(keep.frame_times_days)]),
        ("frame times of names", "SELECT forget_named_frame_times($1, $2)", vec![ago(keep.frame_times_days)]),
        // What days tell is counted by them for as long as days are kept.
        ("intervals", "SELECT forget_intervals($1, $2)", vec![derived]),
        ("being worn", "SELECT forget_wear($1, $2)", vec![ago(keep.frame_times_days)]),
        ("event keys", "SELECT forget_event_keys($1, $2)", vec![ago(keep.frame_times_days)]),
        ("days", "SELECT forget_days($1, $2)", vec![ago(keep.days_days)]),
        ("moves", "SELECT forget_moves($1, $2)", vec![ago(keep.done_days)]),
        ("introductions and revocations", "SELECT forget_asked($1, $2)", vec![ago(keep.done_days)]),
        ("dead requests", "SELECT forget_dead_requests($1, $2)", vec![ago(keep.dead_requests_days)]),
    ];
    let (mut gone, mut failed) = (0, 0);
    for (what, sql, before) in &kinds {
        match slices(pool, sql, before).await {
            Ok(rows) => gone += rows,
            Err(error) => {
                failed += 1;
                tracing::warn!(%error, "{what} could not be shortened; it is tried again");
            }
        }
    }
    (gone, failed)
}

async fn slices(pool: &Pool, sql: &str, before: &[Timestamp]) -> Result<u64, Error> {
    let client = pool.get().await?;
    let mut values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = Vec::new();
    for time in before {
        values.push(time);
    }
    values.push(&SLICE);
    let mut total = 0;
    loop {
        let gone: Option<i64> = client.query_one(sql, &values).await?.get(0);
        let Some(gone) = gone else { return Ok(total) };
        total += gone.unsigned_abs();
    }
}
