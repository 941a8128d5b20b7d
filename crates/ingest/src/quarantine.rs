//! What is refused is kept: each frame with its reason and all that an ordinary write needs to take it later.
//!
//! The promise: a refused frame is in the same commit as its batch's good ones, once for each reason however often it
//! is sent again; it is not in the ledger, so that replay is the ordinary write.

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_protocol::envelope::{Event, Fit};
use kinara_store::{Pool, Transaction};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::batch::{Sender, batch_of_frame, cleaned};
use crate::events::Events;
use crate::write::Outcome;
use crate::{Error, Writer};

/// Something refused.
#[derive(Debug)]
pub struct Refused<'a> {
    /// `frame`, `event`, `decision` or `payload`.
    pub what: &'static str,
    /// The clinic whose gateway brought it.
    pub tenant: Option<Uuid>,
    /// The gateway that brought it; none: the clinic itself.
    pub gateway: Option<Uuid>,
    /// Which device it says it is of.
    pub hardware_id: &'a str,
    /// Its epoch.
    pub epoch: u64,
    /// Its number.
    pub seq: Option<u32>,
    /// Why, in a word.
    pub reason: &'a str,
    /// Why, for a person.
    pub detail: String,
    /// The thing itself.
    pub payload: Vec<u8>,
    /// How the gateway stamped it.
    pub fit: Option<&'a Fit>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredFit {
    ref_ticks: u64,
    ref_utc_us: i64,
    rate_ppb: i32,
    uncertainty_us: u64,
    growth_ppb: u32,
    time_uncertain: bool,
}

const INSERT: &str = "
    INSERT INTO quarantine (tenant_id, gateway_id, what, hardware_id, epoch, seq, reason, detail, payload, digest, fit,
      received_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING";

/// Keeps what was refused.
pub(crate) async fn keep(tx: &Transaction<'_>, refused: &[Refused<'_>], now: Timestamp) -> Result<(), Error> {
    let statement = tx.prepare_cached(INSERT).await?;
    // What is refused must not be refused here, too: a text with a NUL in it would be.
    for item in refused {
        let fit = item.fit.map(|fit| {
            serde_json::json!(StoredFit {
                ref_ticks: fit.ref_ticks,
                ref_utc_us: fit.ref_utc_us,
                rate_ppb: fit.rate_ppb,
                uncertainty_us: fit.uncertainty_us,
                growth_ppb: fit.growth_ppb,
                time_uncertain: fit.time_uncertain,
            })
        });
        let digest = Sha256::digest(&item.payload);
        tx.execute(
            &statement,
            &[
                &item.tenant,
                &item.tenant.and(item.gateway),
                &item.what,
                &cleaned(item.hardware_id),
                &(item.epoch as i64),
                &item.seq.map(i64::from),
                &item.reason,
                &item.detail.replace('\0', ""),
                &item.payload,
                &digest.as_slice(),
                &fit,
                &now,
            ],
        )
        .await?;
    }
    Ok(())
}

/// What a replay did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Frames and events taken now (or found to be in already).
    pub taken: u64,
    /// Those still refused.
    pub refused: u64,
}

/// Which quarantined frames and events are sent again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which<'a> {
    /// Only of this device.
    pub hardware_id: Option<&'a str>,
    /// Only those refused for one of these reasons; none: for any.
    pub reasons: &'a [&'a str],
}

/// Things read, and written in one transaction, at a time.
const PAGE: i64 = 500;

const WAITING: &str = "
    SELECT id, gateway_id, hardware_id, payload, fit, what, tenant_id FROM quarantine
    WHERE what IN ('frame', 'event') AND replayed_at IS NULL AND tenant_id IS NOT NULL AND hardware_id IS NOT NULL
      AND (what = 'frame' OR gateway_id IS NOT NULL)
      AND id > $1 AND ($2::text IS NULL OR hardware_id = $2) AND (cardinality($3::text[]) = 0 OR reason = ANY($3))
    ORDER BY id LIMIT $4";

/// Sends quarantined frames and events through the ordinary write again.
pub async fn replay(
    writer: &Writer,
    pool: &Pool,
    clock: &dyn Clock,
    which: Which<'_>,
) -> Result<Replayed, Error> {
    let mut out = Replayed::default();
    let mut after = Uuid::nil();
    while let Some((next, replayed)) = replay_page(writer, pool, clock, which, after).await? {
        after = next;
        out.taken += replayed.taken;
        out.refused += replayed.refused;
    }
    Ok(out)
}

/// One page of a replay, of what comes after an id: gives the page's last id. `None`: there is nothing more.
pub(crate) async fn replay_page(
    writer: &Writer,
    pool: &Pool,
    clock: &dyn Clock,
    which: Which<'_>,
    after: Uuid,
) -> Result<Option<(Uuid, Replayed)>, Error> {
    let client = pool.get().await?;
    let rows = client.query(WAITING, &[&after, &which.hardware_id, &which.reasons, &PAGE]).await?;
    // Writing takes connections of its own.
    drop(client);
    let Some(last) = rows.last() else { return Ok(None) };
    let mut taken: Vec<Uuid> = Vec::new();
    let (mut batches, mut of) = (Vec::new(), Vec::new());
    for row in &rows {
        if row.get::<_, &str>(5) == "event" {
            let Ok(event) = Event::decode(row.get::<_, &[u8]>(3)) else { continue };
            let outcome = writer.write_events(&Events::of_one(row.get(1), event)).await?;
            if is_taken(&outcome) {
                taken.push(row.get(0));
            }
        } else if let Ok(batch) = batch_of_frame(sender_of(row), row.get(2), row.get(3), fit_of(row)) {
            batches.push(batch);
            of.push(row.get::<_, Uuid>(0));
        }
    }
    let outcomes = writer.write(&batches).await?;
    taken.extend(of.iter().zip(&outcomes).filter(|(_, outcome)| is_taken(outcome)).map(|(id, _)| *id));
    let client = pool.get().await?;
    let now = crate::timestamp(clock.utc_us());
    client.execute("UPDATE quarantine SET replayed_at = $2 WHERE id = ANY($1)", &[&taken, &now]).await?;
    let replayed =
        Replayed { taken: taken.len() as u64, refused: rows.len().saturating_sub(taken.len()) as u64 };
    Ok(Some((last.get(0), replayed)))
}

fn is_taken(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done(counts) if counts.quarantined == 0)
}

fn sender_of(row: &tokio_postgres::Row) -> Sender {
    row.get::<_, Option<Uuid>>(1).map_or_else(|| Sender::Clinic(row.get(6)), Sender::Gateway)
}

fn fit_of(row: &tokio_postgres::Row) -> Option<Fit> {
    let fit: StoredFit = serde_json::from_value(row.get::<_, Option<serde_json::Value>>(4)?).ok()?;
    Some(Fit {
        ref_ticks: fit.ref_ticks,
        ref_utc_us: fit.ref_utc_us,
        rate_ppb: fit.rate_ppb,
        uncertainty_us: fit.uncertainty_us,
        growth_ppb: fit.growth_ppb,
        time_uncertain: fit.time_uncertain,
    })
}
