//! What came over HTTP, written.
//!
//! The promise: a request that was accepted is on disk before its sender is told so, and is written by the ordinary write,
//! however often that is tried; its payload goes in the transaction that keeps what became of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_protocol::frame::Epoch;
use kinara_store::Pool;
use serde::Serialize;
use uuid::Uuid;

use crate::batch::{self, Batch};
use crate::write::{Counts, Outcome, Writer};
use crate::{Error, Work, items, timestamp};

/// The largest request, unpacked: what the API takes is smaller.
pub(crate) const UNPACKED: usize = 64 * 1024 * 1024;
/// Refused readings that are named in an outcome.
const NAMED: i64 = 1_000;
/// Requests that are forgotten at once.
const FORGOTTEN: i32 = 10_000;

/// Why a request is not written yet.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
    /// It holds what was not packed here.
    #[error("the payload of request {0} cannot be read")]
    Payload(Uuid),
    /// Another time.
    #[error("request {0} has to wait: {1}")]
    Later(Uuid, String),
}

impl From<kinara_store::PoolError> for RequestError {
    fn from(error: kinara_store::PoolError) -> Self {
        Self::Database(error.into())
    }
}

impl From<tokio_postgres::Error> for RequestError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// What became of a request.
#[derive(Debug, Serialize)]
struct Told {
    stored: u64,
    duplicate: u64,
    quarantined: u64,
    discarded: u64,
    expired: u64,
    /// The readings that were put aside.
    aside: Vec<Aside>,
}

#[derive(Debug, Serialize)]
struct Aside {
    source: String,
    epoch: String,
    seq: i64,
    reason: String,
}

/// Writes a request; nothing where that is done already.
pub fn take<'a>(
    writer: &'a Writer,
    pool: &'a Pool,
    clock: &'a dyn Clock,
    id: Uuid,
) -> Work<'a, Result<Counts, RequestError>> {
    Box::pin(take_one(writer, pool, clock, id))
}

async fn take_one(writer: &Writer, pool: &Pool, clock: &dyn Clock, id: Uuid) -> Result<Counts, RequestError> {
    let client = pool.get().await?;
    let row = client
        .query_opt(
            "SELECT tenant_id, payload, received_at FROM ingest_requests WHERE id = $1 AND finished_at IS NULL",
            &[&id],
        )
        .await?;
    // Writing takes a connection of its own.
    drop(client);
    let Some(row) = row else { return Ok(Counts::default()) };
    let (tenant, received_at): (Uuid, Timestamp) = (row.get(0), row.get(2));
    let packed: Vec<u8> = row.get::<_, Option<Vec<u8>>>(1).unwrap_or_default();
    let most = writer.limits.piece;
    // Off the threads that everybody shares: it may be a second's work.
    let read = tokio::task::spawn_blocking(move || unpack(&packed, tenant, most));
    let batches = read.await.ok().flatten().ok_or(RequestError::Payload(id))?;
    let mut total = Counts::default();
    for batch in &batches {
        for outcome in writer.write(std::slice::from_ref(batch)).await? {
            match outcome {
                Outcome::Done(counts) => total.add(counts),
                Outcome::RetryAfter { reason, .. } => return Err(RequestError::Later(id, reason)),
            }
        }
    }
    let client = pool.get().await?;
    let aside =
        if total.quarantined > 0 { aside(&client, tenant, &batches, received_at).await? } else { Vec::new() };
    let told = Told {
        stored: total.stored,
        duplicate: total.duplicate,
        quarantined: total.quarantined,
        discarded: total.discarded,
        expired: total.expired,
        aside,
    };
    client
        .execute(
            "UPDATE ingest_requests SET payload = NULL, finished_at = $2, outcome = $3
             WHERE id = $1 AND finished_at IS NULL",
            &[&id, &timestamp(clock.utc_us()), &serde_json::json!(told)],
        )
        .await?;
    Ok(total)
}

/// Reads a request, in pieces that are each written by themselves.
fn unpack(packed: &[u8], tenant: Uuid, most: usize) -> Option<Vec<Batch>> {
    let mut pieces = Vec::new();
    for batch in items::unpack(packed, UNPACKED)? {
        pieces.extend(batch::from_envelope(batch).ok()?.of_clinic(tenant).pieces(most, usize::MAX));
    }
    Some(pieces)
}

async fn aside(
    client: &kinara_store::Client,
    tenant: Uuid,
    batches: &[Batch],
    received_at: Timestamp,
) -> Result<Vec<Aside>, Error> {
    let mut of: BTreeMap<(&str, i64), Vec<i64>> = BTreeMap::new();
    for device in batches.iter().flat_map(|batch| &batch.devices) {
        let seqs = device.frames.iter().map(|frame| i64::from(frame.seq));
        of.entry((&device.hardware_id, device.epoch.0 as i64)).or_default().extend(seqs);
    }
    let mut out = Vec::new();
    for ((source, epoch), seqs) in of {
        let room = NAMED - out.len() as i64;
        let rows = client
            .query(
                // Whether another clinic has a device, or had it, is not told to whoever names it.
                "SELECT DISTINCT seq, CASE WHEN reason = 'foreign_gateway' THEN 'no_assignment'
                   WHEN reason IN ('unsure', 'straddle', 'order') THEN coalesce(nullif(detail, ''), 'no_assignment') ELSE reason END
                 FROM quarantine WHERE hardware_id = $1 AND epoch = $2 AND seq = ANY($3)
                   AND tenant_id = $4 AND (received_at >= $5 OR replayed_at IS NULL) ORDER BY seq LIMIT $6",
                &[&source, &epoch, &seqs, &tenant, &received_at, &room],
            )
            .await?;
        out.extend(rows.iter().map(|row| Aside {
            source: source.to_owned(),
            epoch: Epoch(epoch as u64).to_string(),
            seq: row.get(0),
            reason: row.get(1),
        }));
    }
    Ok(out)
}

/// Takes note of which requests nobody takes any more: their jobs are dead, and they no longer count as waiting. One whose
/// job was revived counts again.
pub async fn note_given_up(pool: &Pool, dead: &[Uuid]) -> Result<(), Error> {
    let client = pool.get().await?;
    client
        .execute(
            "UPDATE ingest_requests SET given_up = NOT given_up
             WHERE finished_at IS NULL AND given_up <> (id = ANY($1))",
            &[&dead],
        )
        .await?;
    Ok(())
}

/// Forgets requests, and with them their keys, that were finished and came before a time; gives how many.
pub async fn forget(pool: &Pool, before: Timestamp) -> Result<u64, Error> {
    let client = pool.get().await?;
    let mut total = 0;
    loop {
        let gone: i64 =
            client.query_one("SELECT forget_requests($1, $2)", &[&before, &FORGOTTEN]).await?.get(0);
        total += gone.unsigned_abs();
        if gone < i64::from(FORGOTTEN) {
            return Ok(total);
        }
    }
}
