//! Epochs whose numbers are names, in parts.
//!
//! The promise: a write reads and changes the parts of its frames' numbers, however many its source has used before. A wearable
//! counts, so that what is in of it is a range or a few, in the ledger's row; a name may be any number, and what is in of such
//! an epoch is as many ranges as frames. A part is a row of [`PART`] numbers, whose size has a bound. All of it is read and
//! written under the lock of the ledger's row, as what that row holds itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kinara_store::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::Error;
use crate::ledger::{Entry, FitKey};
use crate::plan::Key;
use crate::seqs::SeqSet;

/// Numbers in a part: the database's `ts.parts_of` has the same. At most half of them stand alone: 512 ranges of 21 bytes.
const PART: u64 = 1_024;

/// What the parts of the numbers asked about hold. Key by key: a join was planned as a scan of all of it when statistics were
/// of before.
const PARTS: &str = "
    SELECT k.hardware, k.epoch, f.seqs::text
    FROM unnest($1::uuid[], $2::int8[], $3::int4[], $4::int4[]) k(hardware, epoch, first, last)
    CROSS JOIN LATERAL (
      SELECT f.seqs FROM named_frames f WHERE f.hardware = k.hardware AND f.epoch = k.epoch
        AND f.part BETWEEN k.first AND k.last OFFSET 0) f";
/// What is not in parts yet, since an older release wrote it.
const WHOLE: &str = "
    SELECT k.hardware, k.epoch, (l.seqs * k.seqs::int8multirange)::text
    FROM unnest($1::uuid[], $2::int8[], $3::text[]) k(hardware, epoch, seqs)
    CROSS JOIN LATERAL (
      SELECT l.seqs FROM ledger l WHERE l.hardware = k.hardware AND l.epoch = k.epoch OFFSET 0) l
    WHERE l.seqs && k.seqs::int8multirange";
const ADD: &str = "
    INSERT INTO named_frames AS f (hardware, epoch, part, seqs)
    SELECT hardware, epoch, part, seqs::int8multirange
    FROM unnest($1::uuid[], $2::int8[], $3::int4[], $4::text[]) n(hardware, epoch, part, seqs)
    ON CONFLICT (hardware, epoch, part) DO UPDATE SET seqs = f.seqs + excluded.seqs";
const ADD_TIMES: &str = "
    INSERT INTO named_frame_times AS f (hardware, epoch, part, seqs, rate_ppb, uncertainty_us, growth_ppb, time_uncertain,
      created_at, updated_at)
    SELECT hardware, epoch, part, seqs::int8multirange, rate_ppb, uncertainty_us, growth_ppb, uncertain, $9, $9
    FROM unnest($1::uuid[], $2::int8[], $3::int4[], $4::text[], $5::int4[], $6::int8[], $7::int8[], $8::bool[])
      n(hardware, epoch, part, seqs, rate_ppb, uncertainty_us, growth_ppb, uncertain)
    ON CONFLICT (hardware, epoch, part, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
    DO UPDATE SET seqs = f.seqs + excluded.seqs, updated_at = excluded.updated_at";

/// Numbers of one epoch in one part.
struct Piece<T> {
    key: Key,
    part: i32,
    seqs: String,
    of: T,
}

impl<T: Copy> Piece<T> {
    fn cut(key: &Key, seqs: &SeqSet, of: T) -> impl Iterator<Item = Self> {
        let parts = seqs.split(PART).into_iter();
        parts.map(move |(part, seqs)| Self { key: *key, part: number(part), seqs: seqs.to_string(), of })
    }
}

/// Numbers have 32 bits, and so their parts' have fewer.
fn number(part: u64) -> i32 {
    i32::try_from(part).unwrap_or(i32::MAX)
}

/// Runs of parts, each of an epoch.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    pub hardware: Vec<Uuid>,
    pub epochs: Vec<i64>,
    pub first: Vec<i32>,
    pub last: Vec<i32>,
}

/// The parts that these numbers lie in.
pub(crate) fn blocks(asked: &BTreeMap<Key, SeqSet>) -> Blocks {
    let mut out = Blocks::default();
    for (key, seqs) in asked {
        for &(from, to) in seqs.blocks(PART).ranges() {
            out.hardware.push(key.hardware);
            out.epochs.push(key.epoch);
            out.first.push(number(from));
            out.last.push(number(to - 1));
        }
    }
    out
}

/// Adds to the entries of names what is in of the numbers `asked` about: whoever goes by what is in has to ask before.
pub(crate) async fn look_up(
    tx: &Transaction<'_>,
    entries: &mut BTreeMap<Key, Entry>,
    asked: impl FnOnce() -> BTreeMap<Key, SeqSet>,
) -> Result<(), Error> {
    if !entries.values().any(|entry| entry.named) {
        return Ok(());
    }
    let mut asked = asked();
    asked.retain(|key, seqs| !seqs.is_empty() && entries.get(key).is_some_and(|entry| entry.named));
    let Blocks { hardware, epochs, first, last } = blocks(&asked);
    let keys: (Vec<Uuid>, Vec<i64>) = asked.keys().map(|key| (key.hardware, key.epoch)).unzip();
    let sets: Vec<String> = asked.values().map(SeqSet::to_string).collect();
    let (parts, whole) = (tx.prepare_cached(PARTS).await?, tx.prepare_cached(WHOLE).await?);
    let in_parts: [&(dyn ToSql + Sync); 4] = [&hardware, &epochs, &first, &last];
    let in_whole: [&(dyn ToSql + Sync); 3] = [&keys.0, &keys.1, &sets];
    let (parts, whole) = futures_util::try_join!(tx.query(&parts, &in_parts), tx.query(&whole, &in_whole))?;
    for row in parts.iter().chain(&whole) {
        let text: &str = row.get(2);
        let seqs = SeqSet::parse(text).ok_or_else(|| Error::Foreign(format!("the seqs {text} of a part")))?;
        entries.entry(Key { hardware: row.get(0), epoch: row.get(1) }).or_default().seqs.add(&seqs);
    }
    Ok(())
}

/// Writes what the transaction added to epochs of names, and how the times of it came about.
pub(crate) async fn write(
    tx: &Transaction<'_>,
    entries: &BTreeMap<Key, Entry>,
    now: Timestamp,
) -> Result<(), Error> {
    let named = || entries.iter().filter(|(_, entry)| !entry.is_counted());
    let frames: Vec<Piece<()>> = named().flat_map(|(key, entry)| Piece::cut(key, &entry.new, ())).collect();
    let fits = named().flat_map(|(key, entry)| entry.fits.iter().map(move |(fit, seqs)| (key, *fit, seqs)));
    let times: Vec<Piece<FitKey>> = fits
        .filter(|(_, fit, _)| fit.is_name())
        .flat_map(|(key, fit, seqs)| Piece::cut(key, seqs, fit))
        .collect();
    if frames.is_empty() {
        return Ok(());
    }
    let (add, add_times) = (tx.prepare_cached(ADD).await?, tx.prepare_cached(ADD_TIMES).await?);
    let of_frames = columns(&frames);
    let of_times = columns(&times);
    let rates: Vec<i32> = times.iter().map(|piece| piece.of.rate_ppb).collect();
    let uncertainties: Vec<i64> = times.iter().map(|piece| piece.of.uncertainty_us).collect();
    let growths: Vec<i64> = times.iter().map(|piece| piece.of.growth_ppb).collect();
    let uncertain: Vec<bool> = times.iter().map(|piece| piece.of.time_uncertain).collect();
    let new: [&(dyn ToSql + Sync); 4] = [&of_frames.0, &of_frames.1, &of_frames.2, &of_frames.3];
    let new_times: [&(dyn ToSql + Sync); 9] = [
        &of_times.0,
        &of_times.1,
        &of_times.2,
        &of_times.3,
        &rates,
        &uncertainties,
        &growths,
        &uncertain,
        &now,
    ];
    futures_util::try_join!(tx.execute(&add, &new), tx.execute(&add_times, &new_times))?;
    Ok(())
}

fn columns<T>(pieces: &[Piece<T>]) -> (Vec<Uuid>, Vec<i64>, Vec<i32>, Vec<&str>) {
    (
        pieces.iter().map(|piece| piece.key.hardware).collect(),
        pieces.iter().map(|piece| piece.key.epoch).collect(),
        pieces.iter().map(|piece| piece.part).collect(),
        pieces.iter().map(|piece| piece.seqs.as_str()).collect(),
    )
}
