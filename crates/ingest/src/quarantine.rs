//! What is refused is kept: each frame with its reason and all that an ordinary write needs to take it later.
//!
//! The promise: a refused frame is in the same commit as its batch's good ones, once for each reason however often it
//! is sent again; it is not in the ledger, so that replay is the ordinary write.

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_protocol::envelope::Fit;
use kinara_store::{Pool, Transaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::batch::{batch_of_frame, cleaned};
use crate::write::Outcome;
use crate::{Error, Writer};

/// Something refused.
#[derive(Debug)]
pub struct Refused<'a> {
    /// `frame`, `event` or `payload`.
    pub what: &'static str,
    /// The clinic whose gateway brought it.
    pub tenant: Option<Uuid>,
    /// Who brought it.
    pub gateway: Uuid,
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
                &item.tenant.map(|_| item.gateway),
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
    /// Frames taken now (or found to be in already).
    pub taken: u64,
    /// Frames still refused.
    pub refused: u64,
}

const WAITING: &str = "
    SELECT id, gateway_id, hardware_id, payload, fit FROM quarantine
    WHERE what = 'frame' AND replayed_at IS NULL AND gateway_id IS NOT NULL AND hardware_id IS NOT NULL AND id > $1
      AND ($2::text IS NULL OR reason = $2)
    ORDER BY id LIMIT 500";

/// Sends quarantined frames through the ordinary write again, all or those of one reason.
pub async fn replay(
    writer: &Writer,
    pool: &Pool,
    clock: &dyn Clock,
    reason: Option<&str>,
) -> Result<Replayed, Error> {
    let mut out = Replayed::default();
    let mut after = Uuid::nil();
    loop {
        let client = pool.get().await?;
        let rows = client.query(WAITING, &[&after, &reason]).await?;
        let Some(last) = rows.last() else { return Ok(out) };
        after = last.get(0);
        let mut taken = Vec::new();
        for row in &rows {
            let fit = row
                .get::<_, Option<serde_json::Value>>(4)
                .and_then(|fit| serde_json::from_value::<StoredFit>(fit).ok())
                .map(|fit| Fit {
                    ref_ticks: fit.ref_ticks,
                    ref_utc_us: fit.ref_utc_us,
                    rate_ppb: fit.rate_ppb,
                    uncertainty_us: fit.uncertainty_us,
                    growth_ppb: fit.growth_ppb,
                    time_uncertain: fit.time_uncertain,
                });
            let done = match batch_of_frame(row.get(1), row.get(2), row.get(3), fit) {
                Ok(batch) => match writer.write(&[batch]).await?.pop() {
                    Some(Outcome::Done(counts)) => counts.quarantined == 0,
                    _ => false,
                },
                Err(_) => false,
            };
            if done {
                out.taken += 1;
                taken.push(row.get::<_, Uuid>(0));
            } else {
                out.refused += 1;
            }
        }
        let now = crate::timestamp(clock.utc_us());
        client.execute("UPDATE quarantine SET replayed_at = $2 WHERE id = ANY($1)", &[&taken, &now]).await?;
    }
}
