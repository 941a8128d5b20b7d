//! The ledger: which frames are in, by device and epoch. Of epochs whose numbers are names, its row is the lock and knows the
//! highest number; which frames are in lies in parts ([`crate::parts`]).
//!
//! The promise: the transaction that writes a frame's readings writes its number here, under a lock on the row taken
//! in the order of keys, so that two transactions never both find a frame missing and never wait for each other in a
//! circle.

use std::collections::{BTreeMap, HashMap};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use kinara_protocol::envelope::Fit;
use kinara_store::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::claims::Claim;
use crate::order::Order;
use crate::plan::{Heard, Key};
use crate::seqs::SeqSet;
use crate::{Error, timestamp};

/// Ranges that are in of an epoch whose numbers count, at most. All of them are read and written with each of its frames. A
/// wearable's are one, or as many as boxes that have taken some of its log each and are not through with it.
const RANGES: usize = 32_768;
/// Ranges of all epochs of a transaction together; those of one epoch are read in any case.
const RANGES_AT_ONCE: usize = 8 * RANGES;

/// A locked row, and what the transaction adds to it.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// Frames that were in before; where numbers are names, of those that were asked about ([`crate::parts::look_up`]).
    pub seqs: SeqSet,
    /// The highest number heard of before; -1: none.
    pub highest: i64,
    pub highest_us: Option<i64>,
    /// Frames that this transaction writes.
    pub new: SeqSet,
    /// Frames that this transaction heard of and does not write.
    pub heard: SeqSet,
    pub frames: HashMap<u32, NewFrame>,
    pub fits: BTreeMap<FitKey, SeqSet>,
    /// The ends of what is in, in time.
    pub order: Order,
    pub ended: Option<Ended>,
    /// Its numbers are names, and no count ([`is_name`]), as was known before.
    pub named: bool,
    /// The same, as this transaction hears.
    pub named_now: bool,
    /// Whose its frames are.
    pub owner: Owner,
    /// The owner, where this transaction says so.
    pub owned_now: Option<Uuid>,
    /// What other clinics have in it, where somebody asked ([`crate::claims`]).
    pub claims: BTreeMap<Uuid, Claim>,
    /// Numbers asked about of which a row beside this one has a frame, what this transaction writes there included.
    pub beside: SeqSet,
}

/// Whose the frames of an epoch are, but for those that others claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A release wrote here that did not keep it.
    Unknown,
    /// Nothing was stored yet.
    #[default]
    Nobody,
    /// The clinic of the first frame that was stored.
    Clinic(Uuid),
}

impl From<Option<Uuid>> for Owner {
    fn from(column: Option<Uuid>) -> Self {
        match column {
            None => Self::Unknown,
            Some(nobody) if nobody.is_nil() => Self::Nobody,
            Some(clinic) => Self::Clinic(clinic),
        }
    }
}

/// Whether the number of a frame that was stamped so is a name and no count: readings over HTTP are, whose ticks are UTC
/// themselves, and nothing else. What else asks for it asks the ledger.
pub(crate) const fn is_name(fit: &Fit) -> bool {
    fit.ref_ticks == 0 && fit.ref_utc_us == 0
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct NewFrame {
    pub crc: u32,
    pub first_us: i64,
    pub last_us: i64,
    /// Its time contradicts what is stored: it says nothing of when others were.
    pub contradicted: bool,
}

/// What the next boot said about this epoch's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub end_seq: u32,
    pub end_ticks: i64,
    pub next_epoch: i64,
    pub boot_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FitKey {
    ref_ticks: i64,
    ref_utc_us: i64,
    pub rate_ppb: i32,
    pub uncertainty_us: i64,
    pub growth_ppb: i64,
    pub time_uncertain: bool,
}

impl From<&Fit> for FitKey {
    fn from(fit: &Fit) -> Self {
        Self {
            ref_ticks: fit.ref_ticks as i64,
            ref_utc_us: fit.ref_utc_us,
            rate_ppb: fit.rate_ppb,
            uncertainty_us: i64::try_from(fit.uncertainty_us).unwrap_or(i64::MAX),
            growth_ppb: i64::from(fit.growth_ppb),
            time_uncertain: fit.time_uncertain,
        }
    }
}

impl FitKey {
    /// As [`is_name`].
    pub const fn is_name(&self) -> bool {
        self.ref_ticks == 0 && self.ref_utc_us == 0
    }

    /// The same fit, of a frame that contradicts its neighbours by so much. Rounded up to a power of two: frames of one
    /// clock share a row.
    pub fn contradicted(self, by_us: u64) -> Self {
        let by_us = i64::try_from(by_us.checked_next_power_of_two().unwrap_or(u64::MAX)).unwrap_or(i64::MAX);
        Self { uncertainty_us: self.uncertainty_us.saturating_add(by_us), time_uncertain: true, ..self }
    }
}

impl Entry {
    /// Notes what is heard of it. Where a wearable's frames are stored, a name changes nothing: they stay counted.
    pub fn hear(&mut self, heard: &Heard) {
        self.heard.add(&heard.seqs);
        self.named_now |= heard.named && self.seqs.is_empty();
    }

    /// Whether a number that is not used is missing.
    pub fn is_counted(&self) -> bool {
        !self.named && !self.named_now
    }

    /// Whether a number would be one more range where there are as many as may be.
    pub fn is_full_for(&self, seq: u64) -> bool {
        let touches =
            |set: &SeqSet| set.contains(seq + 1) || seq.checked_sub(1).is_some_and(|seq| set.contains(seq));
        self.is_counted()
            && self.seqs.ranges().len() + self.new.ranges().len() >= RANGES
            && !touches(&self.seqs)
            && !touches(&self.new)
    }

    /// Whether it is known only now that its numbers are names.
    pub fn is_newly_named(&self) -> bool {
        self.named_now && !self.named
    }

    /// A clinic is about to store a frame: the first one has the epoch. `alone`: no other clinic ever had the device, so that whatever
    /// is in is its own, whoever wrote it.
    pub fn take_possession(&mut self, clinic: Uuid, alone: bool) {
        let is_free = match self.owner {
            Owner::Clinic(_) => false,
            Owner::Nobody => alone || self.seqs.is_empty(),
            Owner::Unknown => alone,
        };
        if is_free {
            self.owner = Owner::Clinic(clinic);
            self.owned_now = Some(clinic);
        }
    }

    /// The highest number heard of, this transaction included.
    pub fn highest_now(&self) -> i64 {
        let high = |set: &SeqSet| set.last().map_or(-1, |seq| seq as i64);
        let ended = self.ended.map_or(-1, |ended| i64::from(ended.end_seq) - 1);
        self.highest.max(high(&self.new)).max(high(&self.heard)).max(ended)
    }
}

const INSERT: &str = "
    INSERT INTO ledger (hardware, epoch) SELECT * FROM unnest($1::uuid[], $2::int8[]) ON CONFLICT DO NOTHING";
const LOCK: &str = "
    SELECT l.hardware, l.epoch, CASE WHEN l.named THEN '{}' ELSE l.seqs::text END, l.highest, l.highest_time, l.stretches,
      l.named, l.tenant
    FROM ledger l JOIN unnest($1::uuid[], $2::int8[]) k(hardware, epoch)
      ON l.hardware = k.hardware AND l.epoch = k.epoch
    ORDER BY l.hardware, l.epoch FOR UPDATE OF l";
// A value that is not computed again is not written again, where it lies outside of the row.
const UPDATE: &str = "
    UPDATE ledger l SET seqs = CASE n.seqs WHEN '{}' THEN l.seqs ELSE l.seqs + n.seqs::int8multirange END,
      highest = greatest(l.highest, n.highest),
      highest_time = CASE WHEN n.highest > l.highest THEN coalesce(n.highest_time, l.highest_time)
        ELSE l.highest_time END,
      end_seq = coalesce(n.end_seq, l.end_seq), end_ticks = coalesce(n.end_ticks, l.end_ticks),
      next_epoch = coalesce(n.next_epoch, l.next_epoch), named = l.named OR n.named, updated_at = $10,
      stretches = n.stretches, tenant = coalesce(n.tenant, l.tenant)
    FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::int8[], $5::timestamptz[], $6::int8[], $7::int8[], $8::int8[],
      $9::bool[], $11::bytea[], $12::uuid[])
      n(hardware, epoch, seqs, highest, highest_time, end_seq, end_ticks, next_epoch, named, stretches, tenant)
    WHERE l.hardware = n.hardware AND l.epoch = n.epoch";
const FRAME_TIMES: &str = "
    INSERT INTO frame_times (hardware, epoch, seqs, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb,
      time_uncertain)
    SELECT hardware, epoch, seqs::int8multirange, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, uncertain
    FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::int8[], $5::int8[], $6::int4[], $7::int8[], $8::int8[],
      $9::bool[]) n(hardware, epoch, seqs, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, uncertain)
    ON CONFLICT (hardware, epoch, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
    DO UPDATE SET seqs = frame_times.seqs + excluded.seqs";

/// Makes the missing rows and locks all, in order.
pub(crate) async fn lock(
    tx: &Transaction<'_>,
    keys: impl Iterator<Item = Key>,
) -> Result<BTreeMap<Key, Entry>, Error> {
    let (hardware, epochs): (Vec<Uuid>, Vec<i64>) = keys.map(|key| (key.hardware, key.epoch)).unzip();
    let mut entries = BTreeMap::new();
    if hardware.is_empty() {
        return Ok(entries);
    }
    let (insert, lock) = (tx.prepare_cached(INSERT).await?, tx.prepare_cached(LOCK).await?);
    // Sent together; the server runs them in this order.
    let keys: [&(dyn ToSql + Sync); 2] = [&hardware, &epochs];
    let (_, rows) = futures_util::try_join!(tx.execute(&insert, &keys), tx.query_raw(&lock, keys))?;
    // Row by row: each may be as long as its sender made it.
    let mut rows = std::pin::pin!(rows);
    let mut ranges = 0;
    while let Some(row) = rows.try_next().await? {
        let text: &str = row.get(2);
        let entry = Entry {
            seqs: SeqSet::parse(text)
                .ok_or_else(|| Error::Foreign(format!("the seqs {text} in the ledger")))?,
            highest: row.get(3),
            highest_us: row.get::<_, Option<Timestamp>>(4).map(Timestamp::as_microsecond),
            order: Order::from_bytes(row.get(5))
                .ok_or_else(|| Error::Foreign("the stretches of an epoch in the ledger".to_owned()))?,
            named: row.get(6),
            owner: row.get::<_, Option<Uuid>>(7).into(),
            ..Entry::default()
        };
        ranges += entry.seqs.ranges().len();
        entries.insert(Key { hardware: row.get(0), epoch: row.get(1) }, entry);
        if entries.len() > 1 && ranges > RANGES_AT_ONCE {
            return Err(Error::TooWide);
        }
    }
    Ok(entries)
}

/// Writes what the transaction added.
pub(crate) async fn update(
    tx: &Transaction<'_>,
    entries: &BTreeMap<Key, Entry>,
    now: Timestamp,
) -> Result<(), Error> {
    let changed: Vec<(&Key, &Entry)> = entries
        .iter()
        .filter(|(_, entry)| {
            !entry.new.is_empty()
                || entry.ended.is_some()
                || entry.highest_now() > entry.highest
                || entry.is_newly_named()
        })
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let column = |get: fn(&Key) -> i64| changed.iter().map(|(key, _)| get(key)).collect::<Vec<i64>>();
    let hardware: Vec<Uuid> = changed.iter().map(|(key, _)| key.hardware).collect();
    let counted = |entry: &Entry| if entry.is_counted() { entry.new.to_string() } else { "{}".to_owned() };
    let seqs: Vec<String> = changed.iter().map(|(_, entry)| counted(entry)).collect();
    let highest: Vec<i64> = changed.iter().map(|(_, entry)| entry.highest_now()).collect();
    let times: Vec<Option<Timestamp>> = changed
        .iter()
        .map(|(_, entry)| {
            // Whatever else is heard of: an earlier frame does not say when the highest one was.
            let believed = entry
                .frames
                .iter()
                .filter(|(seq, frame)| !frame.contradicted && i64::from(**seq) > entry.highest);
            Some(timestamp(believed.max_by_key(|(seq, _)| **seq)?.1.last_us))
        })
        .collect();
    let ended = |get: fn(&Ended) -> i64| {
        changed.iter().map(|(_, entry)| entry.ended.as_ref().map(get)).collect::<Vec<Option<i64>>>()
    };
    let named: Vec<bool> = changed.iter().map(|(_, entry)| entry.named_now).collect();
    let stretches: Vec<Vec<u8>> = changed.iter().map(|(_, entry)| entry.order.to_bytes()).collect();
    let owners: Vec<Option<Uuid>> = changed.iter().map(|(_, entry)| entry.owned_now).collect();
    let statement = tx.prepare_cached(UPDATE).await?;
    tx.execute(
        &statement,
        &[
            &hardware,
            &column(|key| key.epoch),
            &seqs,
            &highest,
            &times,
            &ended(|ended| i64::from(ended.end_seq)),
            &ended(|ended| ended.end_ticks),
            &ended(|ended| ended.next_epoch),
            &named,
            &now,
            &stretches,
            &owners,
        ],
    )
    .await?;
    Ok(())
}

/// Writes how the new frames' times came about, but for names.
pub(crate) async fn frame_times(tx: &Transaction<'_>, entries: &BTreeMap<Key, Entry>) -> Result<(), Error> {
    let fits: Vec<(&Key, &FitKey, &SeqSet)> = entries
        .iter()
        .flat_map(|(key, entry)| {
            let here = move |fit: &FitKey| entry.is_counted() || !fit.is_name();
            entry.fits.iter().filter(move |(fit, _)| here(fit)).map(move |(fit, seqs)| (key, fit, seqs))
        })
        .collect();
    if fits.is_empty() {
        return Ok(());
    }
    let hardware: Vec<Uuid> = fits.iter().map(|(key, ..)| key.hardware).collect();
    let epochs: Vec<i64> = fits.iter().map(|(key, ..)| key.epoch).collect();
    let seqs: Vec<String> = fits.iter().map(|(_, _, seqs)| seqs.to_string()).collect();
    let column = |get: fn(&FitKey) -> i64| fits.iter().map(|(_, fit, _)| get(fit)).collect::<Vec<i64>>();
    let rates: Vec<i32> = fits.iter().map(|(_, fit, _)| fit.rate_ppb).collect();
    let uncertain: Vec<bool> = fits.iter().map(|(_, fit, _)| fit.time_uncertain).collect();
    let statement = tx.prepare_cached(FRAME_TIMES).await?;
    tx.execute(
        &statement,
        &[
            &hardware,
            &epochs,
            &seqs,
            &column(|fit| fit.ref_ticks),
            &column(|fit| fit.ref_utc_us),
            &rates,
            &column(|fit| fit.uncertainty_us),
            &column(|fit| fit.growth_ppb),
            &uncertain,
        ],
    )
    .await?;
    Ok(())
}
