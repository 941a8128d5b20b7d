//! Is it the same frame? A number that another clinic has is either the same frame, which two clinics' boxes stamped on two sides of
//! a boundary, or another frame, whose number somebody used before it was made.
//!
//! The promise: it is the same where each of its samples is stored, at the time that the fit of the stored frame gives this one's
//! ticks, with this number, place and value. Whoever makes a frame up would have to know, before they are measured, all of its values
//! and its ticks to the millisecond. Where nothing is left to compare with (a person was erased; it is too old) it is the same only
//! where its time, by the stored fit, is before the boundary and near what its own box says: of made-up numbers that costs
//! [`NEAR_US`] at most. A frame without samples is never the same: what it says does no harm a second time.

use std::collections::{BTreeMap, HashMap};

use kinara_protocol::columns::{self, Decoded};
use kinara_protocol::envelope::Fit;
use kinara_store::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::assign::Assignment;
use crate::batch::{self, At, DeviceBatch};
use crate::claims::Doubt;
use crate::directory::Directory;
use crate::ledger::is_name;
use crate::parts::{self, Blocks};
use crate::plan::{Key, NOT_BEFORE_US, Taken, Window};
use crate::seqs::SeqSet;
use crate::write::DAY_US;
use crate::{Error, timestamp};

/// Samples that are looked for at once, about.
const SAMPLES: usize = 2_000;
/// A rate under which ticks are told apart by their times: half of what it should be.
const SLOWEST_PPB: i32 = -500_000_000;
/// How far two clinics' clocks are apart, at most, where nothing else tells. Two that keep to what they say of themselves never put one
/// frame on two sides of a boundary.
const NEAR_US: u64 = 10_000_000;
/// Waveforms may be gone when they are older.
const WAVES_DAYS: i64 = 30;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is the same.
    Same,
    /// It is another one.
    Another,
    /// It holds nothing that would say so.
    Unproven,
}

const FITS: &str = "
    SELECT f.epoch, f.seqs::text, f.ref_ticks, f.ref_utc_us, f.rate_ppb, f.uncertainty_us, f.growth_ppb
    FROM unnest($1::uuid[], $2::int8[], $3::text[]) k(hardware, epoch, seqs)
    CROSS JOIN LATERAL (
      SELECT f.epoch, f.seqs * k.seqs::int8multirange AS seqs, f.ref_ticks, f.ref_utc_us, f.rate_ppb, f.uncertainty_us, f.growth_ppb
      FROM frame_times f WHERE f.hardware = k.hardware AND f.epoch = k.epoch AND f.seqs && k.seqs::int8multirange OFFSET 0) f";
const NAMED_FITS: &str = "
    SELECT f.epoch, f.seqs::text, 0::int8, 0::int8, f.rate_ppb, f.uncertainty_us, f.growth_ppb
    FROM unnest($1::uuid[], $2::int8[], $3::int4[], $4::int4[]) k(hardware, epoch, first, last)
    CROSS JOIN LATERAL (
      SELECT f.epoch, f.seqs, f.rate_ppb, f.uncertainty_us, f.growth_ppb FROM named_frame_times f
      WHERE f.hardware = k.hardware AND f.epoch = k.epoch AND f.part BETWEEN k.first AND k.last OFFSET 0) f";
const FOUND: &str = "SELECT probe, there FROM ts.found($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// Cuts them where about so many samples are together.
pub(crate) fn slices<'d, 'a>(mut doubts: &'d [Doubt<'a>]) -> Vec<&'d [Doubt<'a>]> {
    let mut out = Vec::new();
    while !doubts.is_empty() {
        let mut samples = 0;
        let fits = doubts.iter().take_while(|doubt| {
            let before = samples;
            samples += 1 + weight(&doubt.taken);
            before < SAMPLES
        });
        let (slice, rest) = doubts.split_at(fits.count().max(1));
        out.push(slice);
        doubts = rest;
    }
    out
}

fn weight(taken: &Taken<'_>) -> usize {
    taken.frame.samples.len() + taken.frame.waves.len()
}

/// Columns that a transaction has decoded, by where their device's batch lies: once for all frames that are looked at.
pub(crate) type Columns<'a> = HashMap<usize, Decoded<'a>>;

/// Looks at frames of one epoch and clinic; gives what was found of each.
pub(crate) async fn look<'a>(
    tx: &Transaction<'_>,
    directory: &Directory,
    window: Window,
    doubts: &[Doubt<'a>],
    columns: &mut Columns<'a>,
) -> Result<Vec<Found>, Error> {
    let Some(first) = doubts.first() else { return Ok(Vec::new()) };
    let fits = fits(tx, doubts).await?;
    let probes = Probes::of(doubts, &fits, window, columns);
    let found = probes.ask(tx, first.taken.key).await?;
    let assignments = directory.hardware(&first.taken.device.hardware_id);
    let assignments = assignments.map_or(&[][..], |hardware| hardware.assignments.as_slice());
    let verdict = |(doubt, fits): (&Doubt<'_>, &Vec<Fit>)| {
        let whole = weight(&doubt.taken);
        if whole == 0 {
            return Found::Unproven;
        }
        let is_there = found.get(&doubt.index).is_some_and(|there| *there >= whole);
        let is_same = is_there || fits.iter().any(|fit| may_be_gone(&doubt.taken, fit, assignments, window));
        if is_same { Found::Same } else { Found::Another }
    };
    Ok(doubts.iter().zip(&fits).map(verdict).collect())
}

/// Whether the other clinic's frame may be this one though nothing of it is there any more.
fn may_be_gone(taken: &Taken<'_>, fit: &Fit, assignments: &[Assignment], window: Window) -> bool {
    let their_us = fit.utc_us(taken.frame.ticks.0);
    if fit.rate_ppb < SLOWEST_PPB || their_us.abs_diff(taken.frame.first_us) > NEAR_US {
        return false;
    }
    let theirs = |one: &&Assignment| {
        one.tenant != taken.assignment.tenant
            && one.from.time_us <= their_us
            && one.to.is_none_or(|to| their_us < to.time_us)
    };
    let is_old = their_us < window.oldest_us
        || (!taken.frame.waves.is_empty() && their_us < window.newest_us - (WAVES_DAYS + 1) * DAY_US);
    assignments.iter().filter(theirs).any(|one| one.erased || is_old)
}

/// How the times of the other clinics' frames of these numbers came about, of each.
async fn fits(tx: &Transaction<'_>, doubts: &[Doubt<'_>]) -> Result<Vec<Vec<Fit>>, Error> {
    let mut asked: BTreeMap<Key, SeqSet> = BTreeMap::new();
    for doubt in doubts {
        for row in &doubt.rows {
            asked.entry(*row).or_default().insert(doubt.seq());
        }
    }
    let hardware: Vec<Uuid> = asked.keys().map(|key| key.hardware).collect();
    let epochs: Vec<i64> = asked.keys().map(|key| key.epoch).collect();
    let seqs: Vec<String> = asked.values().map(SeqSet::to_string).collect();
    let Blocks { hardware: of, epochs: named, first, last } = parts::blocks(&asked);
    let (counted, names) = (tx.prepare_cached(FITS).await?, tx.prepare_cached(NAMED_FITS).await?);
    let of_counted: [&(dyn ToSql + Sync); 3] = [&hardware, &epochs, &seqs];
    let of_names: [&(dyn ToSql + Sync); 4] = [&of, &named, &first, &last];
    let (counted, names) =
        futures_util::try_join!(tx.query(&counted, &of_counted), tx.query(&names, &of_names))?;
    let mut known: Vec<(i64, SeqSet, Fit)> = Vec::with_capacity(counted.len() + names.len());
    for row in counted.iter().chain(&names) {
        let text: &str = row.get(1);
        let seqs = SeqSet::parse(text).ok_or_else(|| Error::Foreign(format!("the seqs {text} of a fit")))?;
        known.push((row.get(0), seqs, fit(row)));
    }
    let of = |doubt: &Doubt<'_>| {
        let is_named = doubt.taken.device.fit(doubt.taken.frame).is_some_and(is_name);
        known
            .iter()
            .filter(|(epoch, seqs, fit)| {
                is_name(fit) == is_named
                    && doubt.rows.iter().any(|row| row.epoch == *epoch)
                    && seqs.contains(doubt.seq())
            })
            .map(|(.., fit)| *fit)
            .collect()
    };
    Ok(doubts.iter().map(of).collect())
}

fn fit(row: &tokio_postgres::Row) -> Fit {
    Fit {
        ref_ticks: row.get::<_, i64>(2).cast_unsigned(),
        ref_utc_us: row.get(3),
        rate_ppb: row.get(4),
        uncertainty_us: row.get::<_, i64>(5).unsigned_abs(),
        growth_ppb: u32::try_from(row.get::<_, i64>(6)).unwrap_or(u32::MAX),
        time_uncertain: false,
    }
}

/// Samples that are looked for: of each frame under each fit.
#[derive(Default)]
struct Probes {
    /// Whose they are, by number.
    of: Vec<usize>,
    numbers: Vec<i32>,
    seqs: Vec<i64>,
    types: Vec<i16>,
    places: Vec<i16>,
    times: Vec<jiff::Timestamp>,
    values: Vec<Option<f64>>,
    waves: Vec<Option<Vec<u8>>>,
}

impl Probes {
    fn of<'a>(doubts: &[Doubt<'a>], fits: &[Vec<Fit>], window: Window, decoded: &mut Columns<'a>) -> Self {
        let mut out = Self::default();
        for (doubt, fits) in doubts.iter().zip(fits) {
            let taken = &doubt.taken;
            let At::Samples(at) = taken.frame.at else { continue };
            let known = decoded.entry(std::ptr::from_ref(taken.device).addr()).or_insert_with(|| {
                columns::decode(&taken.device.columns).expect("these columns were decoded before")
            });
            for fit in fits.iter().filter(|fit| fit.rate_ppb >= SLOWEST_PPB) {
                // As the frame would have come out of the batch, had its box stamped it so.
                let mut alone = known.alone(&known.frames()[at as usize]);
                (alone.fits, alone.fit_of) = (vec![*fit], vec![0, 1]);
                if let Ok(frame) = batch::device(alone) {
                    out.add(doubt, &frame, window);
                }
            }
        }
        out
    }

    fn add(&mut self, doubt: &Doubt<'_>, stamped: &DeviceBatch, window: Window) {
        let probe = i32::try_from(self.of.len()).unwrap_or(i32::MAX);
        self.of.push(doubt.index);
        let samples =
            stamped.samples.iter().map(|one| (one.kind, one.index, one.utc_us, Some(one.value), None));
        let waves =
            stamped.waves.iter().map(|one| (one.kind, one.index, one.utc_us, None, Some(one.data.clone())));
        for (kind, place, utc_us, value, wave) in samples.chain(waves) {
            // There is nothing of other times.
            if !(NOT_BEFORE_US..=window.newest_us).contains(&utc_us) {
                continue;
            }
            self.numbers.push(probe);
            self.seqs.push(i64::from(doubt.taken.frame.seq));
            self.types.push(kind);
            self.places.push(place);
            self.times.push(timestamp(utc_us));
            self.values.push(value);
            self.waves.push(wave);
        }
    }

    /// How many of a frame's samples are there, under the fit under which most are.
    async fn ask(&self, tx: &Transaction<'_>, key: Key) -> Result<HashMap<usize, usize>, Error> {
        let mut out: HashMap<usize, usize> = HashMap::new();
        if self.numbers.is_empty() {
            return Ok(out);
        }
        let statement = tx.prepare_cached(FOUND).await?;
        let values: [&(dyn ToSql + Sync); 9] = [
            &key.hardware,
            &key.epoch,
            &self.numbers,
            &self.seqs,
            &self.types,
            &self.places,
            &self.times,
            &self.values,
            &self.waves,
        ];
        // A frame may lie in two days.
        let mut of_probes: HashMap<i32, usize> = HashMap::new();
        for row in tx.query(&statement, &values).await? {
            *of_probes.entry(row.get(0)).or_default() +=
                usize::try_from(row.get::<_, i64>(1)).unwrap_or_default();
        }
        for (probe, there) in of_probes {
            let Some(index) = self.of.get(probe.unsigned_abs() as usize) else { continue };
            let most = out.entry(*index).or_default();
            *most = there.max(*most);
        }
        Ok(out)
    }
}
