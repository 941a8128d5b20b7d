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

use crate::batch::{Batch, Sender, batch_of_frame, cleaned};
use crate::events::Events;
use crate::ledger::is_name;
use crate::write::Outcome;
use crate::{Error, Work, Writer};

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

impl From<&Fit> for StoredFit {
    fn from(fit: &Fit) -> Self {
        Self {
            ref_ticks: fit.ref_ticks,
            ref_utc_us: fit.ref_utc_us,
            rate_ppb: fit.rate_ppb,
            uncertainty_us: fit.uncertainty_us,
            growth_ppb: fit.growth_ppb,
            time_uncertain: fit.time_uncertain,
        }
    }
}

/// In the order of their digests: two bridges that put the same things aside do not wait for each other in a circle.
const INSERT: &str = "
    INSERT INTO quarantine (tenant_id, gateway_id, what, hardware_id, epoch, seq, reason, detail, payload, digest, fit,
      received_at)
    SELECT n.*, $12 FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int8[], $6::int8[], $7::text[],
      $8::text[], $9::bytea[], $10::bytea[], $11::jsonb[])
      AS n (tenant, gateway, what, hardware, epoch, seq, reason, detail, payload, digest, fit)
    ORDER BY n.digest ON CONFLICT DO NOTHING";
/// Things in one statement, and bytes of them: a connection keeps room for the largest that it sent, twice.
const ROWS: usize = 1_000;
const BYTES: usize = 1024 * 1024;

#[derive(Default)]
struct Columns<'a> {
    tenants: Vec<Option<Uuid>>,
    gateways: Vec<Option<Uuid>>,
    what: Vec<&'a str>,
    hardware: Vec<String>,
    epochs: Vec<i64>,
    seqs: Vec<Option<i64>>,
    reasons: Vec<&'a str>,
    details: Vec<String>,
    payloads: Vec<&'a [u8]>,
    digests: Vec<Vec<u8>>,
    fits: Vec<Option<serde_json::Value>>,
    bytes: usize,
}

impl<'a> Columns<'a> {
    fn push(&mut self, item: &'a Refused<'_>) {
        self.tenants.push(item.tenant);
        self.gateways.push(item.tenant.and(item.gateway));
        self.what.push(item.what);
        self.hardware.push(cleaned(item.hardware_id));
        self.epochs.push(item.epoch as i64);
        self.seqs.push(item.seq.map(i64::from));
        self.reasons.push(item.reason);
        // What is refused must not be refused here, too: a text with a NUL in it would be.
        self.details.push(item.detail.replace('\0', ""));
        self.payloads.push(&item.payload);
        self.digests.push(Sha256::digest(&item.payload).to_vec());
        self.fits.push(item.fit.map(|fit| serde_json::json!(StoredFit::from(fit))));
        self.bytes += item.payload.len();
    }

    async fn insert(self, tx: &Transaction<'_>, now: Timestamp) -> Result<(), Error> {
        let statement = tx.prepare_cached(INSERT).await?;
        tx.execute(
            &statement,
            &[
                &self.tenants,
                &self.gateways,
                &self.what,
                &self.hardware,
                &self.epochs,
                &self.seqs,
                &self.reasons,
                &self.details,
                &self.payloads,
                &self.digests,
                &self.fits,
                &now,
            ],
        )
        .await?;
        Ok(())
    }
}

/// Keeps what was refused.
pub(crate) async fn keep(tx: &Transaction<'_>, refused: &[Refused<'_>], now: Timestamp) -> Result<(), Error> {
    let mut columns = Columns::default();
    for item in refused {
        if columns.what.len() == ROWS || columns.bytes > BYTES {
            std::mem::take(&mut columns).insert(tx, now).await?;
        }
        columns.push(item);
    }
    if columns.what.is_empty() { Ok(()) } else { columns.insert(tx, now).await }
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

/// What a gateway brought that was retired since is its clinic's.
const WAITING: &str = "
    SELECT id, (SELECT g.id FROM gateways g WHERE g.id = gateway_id AND g.retired_at IS NULL) AS gateway, hardware_id, payload, fit, what,
      tenant_id FROM quarantine
    WHERE what IN ('frame', 'event') AND replayed_at IS NULL AND tenant_id IS NOT NULL AND hardware_id IS NOT NULL
      AND id > $1 AND ($2::text IS NULL OR hardware_id = $2) AND (cardinality($3::text[]) = 0 OR reason = ANY($3))
    ORDER BY id LIMIT $4";

/// Sends quarantined frames and events through the ordinary write again.
pub fn replay<'a>(
    writer: &'a Writer,
    pool: &'a Pool,
    clock: &'a dyn Clock,
    which: Which<'a>,
) -> Work<'a, Result<Replayed, Error>> {
    Box::pin(replay_all(writer, pool, clock, which))
}

async fn replay_all(
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
            let outcome = writer.write_events(&Events::of_one(sender_of(row), event)).await?;
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
    read_fit(row.get(4))
}

/// A frame that was put aside, read again; `None`: it cannot be.
pub(crate) fn batch_of(hardware_id: &str, payload: &[u8], fit: Option<serde_json::Value>) -> Option<Batch> {
    batch_of_frame(Sender::Clinic(Uuid::nil()), hardware_id, payload, read_fit(fit)).ok()
}

/// Whether the number of something refused is a name and no count, by the fit that it was kept with.
pub(crate) fn is_named(fit: Option<serde_json::Value>) -> bool {
    read_fit(fit).as_ref().is_some_and(is_name)
}

fn read_fit(fit: Option<serde_json::Value>) -> Option<Fit> {
    let fit: StoredFit = serde_json::from_value(fit?).ok()?;
    Some(Fit {
        ref_ticks: fit.ref_ticks,
        ref_utc_us: fit.ref_utc_us,
        rate_ppb: fit.rate_ppb,
        uncertainty_us: fit.uncertainty_us,
        growth_ppb: fit.growth_ppb,
        time_uncertain: fit.time_uncertain,
    })
}
