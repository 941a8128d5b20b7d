//! Aggregates by minute, quarter of an hour, hour and local day.
//!
//! The promise: once no note is left, every aggregate is what its readings make it, whatever order they came in, however
//! often, and whoever they were moved to. A write notes in its own transaction which hours it made stale; the
//! database recomputes these whole ([`roll_up`]), a bounded slice at a time, clinic by clinic in turn. A clinic whose slice
//! does not come to its end in time is given smaller ones, and at last is left out of the round and told of: no clinic
//! waits for another. A round has an end, however fast notes come, and what rules and models have to look at is queued while
//! it goes on.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kinara_store::{Pool, Transaction};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Remedy;
use crate::plan::Taken;
use crate::write::DAY_US;
use crate::{Error, Limits, Work, timestamp};

const HOUR_US: i64 = 3_600_000_000;

/// What is derived at once.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Hours of one wearer and type in a transaction: some hundred thousand readings, which take seconds.
    pub hours: i32,
    /// Readings are kept so long. What is older is not recomputed: it may be gone in part.
    pub raw_days: i64,
    /// Such slices of each clinic in a round: then others have their turn, whatever is left.
    pub laps: u32,
    /// Expired rows of each kind that are deleted in a transaction.
    pub expired: i32,
}

impl Default for Slice {
    fn default() -> Self {
        Self { hours: 50, raw_days: Limits::default().retention_days, laps: 20, expired: 10_000 }
    }
}

impl Slice {
    pub(crate) fn raw_from(&self, now: Timestamp) -> Timestamp {
        timestamp(now.as_microsecond() - self.raw_days * DAY_US)
    }
}

/// Notes the days that these frames' waveforms are in. Those of readings the database knows by their hours.
async fn note_waves(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut days: BTreeSet<(Uuid, Uuid, i64)> = BTreeSet::new();
    for taken in new {
        let (tenant, user) = (taken.assignment.tenant, taken.assignment.user);
        let waves = &taken.device.waves[taken.frame.waves.start as usize..taken.frame.waves.end as usize];
        days.extend(waves.iter().map(|wave| (tenant, user, wave.utc_us.div_euclid(DAY_US))));
    }
    if days.is_empty() {
        return Ok(());
    }
    let tenants: Vec<Uuid> = days.iter().map(|(tenant, ..)| *tenant).collect();
    let users: Vec<Uuid> = days.iter().map(|(_, user, _)| *user).collect();
    let days: Vec<i64> = days.iter().map(|(.., day)| *day).collect();
    let statement = tx
        .prepare_cached(
            "SELECT ts.keep_days($1, $2, ARRAY(
               SELECT 'epoch'::date + n.day::int FROM unnest($3::int8[]) WITH ORDINALITY n(day, place) ORDER BY n.place))",
        )
        .await?;
    tx.execute(&statement, &[&tenants, &users, &days]).await?;
    Ok(())
}

/// Days, from today, that may have waveforms: they are kept for 31, a chunk of them goes some days later, and clocks go wrong.
const DAYS_OF_WAVES: std::ops::RangeInclusive<i64> = -40..=2;

/// Notes the days of waveforms that have no row: a bridge of an older release may be running, and notes none. A day in a
/// transaction; gives how many wearers' days there are.
pub async fn note_days_of_waves(pool: &Pool, now: Timestamp) -> Result<u64, Error> {
    let today = now.as_microsecond().div_euclid(DAY_US);
    let client = pool.get().await?;
    let statement =
        client.prepare_cached("SELECT ts.keep_days_of_waveforms('epoch'::date + $1::int8::int)").await?;
    let mut there = 0;
    for day in DAYS_OF_WAVES {
        there += client.query_one(&statement, &[&(today + day)]).await?.get::<_, i64>(0).unsigned_abs();
    }
    Ok(there)
}

/// Notes the hours that these frames' readings are in, and how many readings of a clinic that are.
pub(crate) async fn note(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    note_waves(tx, new).await?;
    let mut stale: BTreeSet<(Uuid, Uuid, i16, i64)> = BTreeSet::new();
    let mut written: BTreeMap<(Uuid, i64), i64> = BTreeMap::new();
    let mut last = None;
    let mut count = 0;
    for taken in new {
        let (tenant, user) = (taken.assignment.tenant, taken.assignment.user);
        for sample in
            &taken.device.samples[taken.frame.samples.start as usize..taken.frame.samples.end as usize]
        {
            let hour = (tenant, user, sample.kind, sample.utc_us.div_euclid(HOUR_US));
            // A frame's samples of one kind stand together.
            if last != Some(hour) {
                if let Some((tenant, _, _, before)) = last.replace(hour) {
                    *written.entry((tenant, before)).or_default() += std::mem::take(&mut count);
                }
                stale.insert(hour);
            }
            count += 1;
        }
    }
    if let Some((tenant, _, _, hour)) = last {
        *written.entry((tenant, hour)).or_default() += count;
    }
    if stale.is_empty() {
        return Ok(());
    }
    let (mut tenants, mut users, mut types, mut hours) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (tenant, user, kind, hour) in stale {
        tenants.push(tenant);
        users.push(user);
        types.push(kind);
        hours.push(timestamp(hour * HOUR_US));
    }
    let statement = tx
        .prepare_cached(
            "WITH counted AS (
               INSERT INTO ts.written (tenant_id, hour, readings)
               SELECT * FROM unnest($5::uuid[], $6::timestamptz[], $7::int8[]))
             INSERT INTO ts.stale (tenant_id, user_id, type, hour)
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int2[], $4::timestamptz[])",
        )
        .await?;
    let clinics: Vec<Uuid> = written.keys().map(|(tenant, _)| *tenant).collect();
    let clock_hours: Vec<Timestamp> = written.keys().map(|(_, hour)| timestamp(hour * HOUR_US)).collect();
    let counts: Vec<i64> = written.into_values().collect();
    tx.execute(&statement, &[&tenants, &users, &types, &hours, &clinics, &clock_hours, &counts]).await?;
    Ok(())
}

/// What a round did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Round {
    /// Hours that were recomputed.
    pub hours: u64,
    /// Clinics that were left out, since their smallest slice failed.
    pub skipped: Vec<Uuid>,
    /// Something is left for the next round.
    pub unfinished: bool,
    /// Names of time zones that the database does not know; UTC stands in for them.
    pub unknown_zones: Vec<String>,
    /// Other steps that failed.
    pub failed: u64,
}

/// A clinic's turn.
struct Turn {
    clinic: Uuid,
    /// Hours of its next slice.
    hours: i32,
}

/// Recomputes all that is stale and gives how many hours that were; see [`round`].
pub async fn roll_up(pool: &Pool, now: Timestamp, slice: &Slice) -> Result<u64, Error> {
    let mut hours = 0;
    loop {
        let done = round(pool, now, slice).await?;
        hours += done.hours;
        if !done.unfinished {
            return Ok(hours);
        }
    }
}

/// Recomputes what is stale, some slices of each clinic in turn, and does what belongs to it. One step that fails keeps no
/// other from being done. What another bridge recomputes is left to it.
pub fn round<'a>(pool: &'a Pool, now: Timestamp, slice: &'a Slice) -> Work<'a, Result<Round, Error>> {
    Box::pin(one_round(pool, now, slice))
}

async fn one_round(pool: &Pool, now: Timestamp, slice: &Slice) -> Result<Round, Error> {
    let mut out = Round::default();
    match unknown_zones(pool).await {
        Ok(zones) => out.unknown_zones = zones,
        Err(error) => failed(&mut out, "looking at the time zones", &error),
    }
    let clinics = {
        let client = pool.get().await?;
        client.query("SELECT ts.stale_clinics()", &[]).await?
    };
    let mut turns: Vec<Turn> =
        clinics.iter().map(|row| Turn { clinic: row.get(0), hours: slice.hours }).collect();
    let raw_from = slice.raw_from(now);
    for _ in 0..slice.laps {
        let mut again = Vec::new();
        for turn in turns {
            again.extend(take_turn(pool, raw_from, turn, &mut out).await);
        }
        turns = again;
        queue_looks(pool, &mut out).await;
        if turns.is_empty() {
            break;
        }
    }
    out.unfinished = !turns.is_empty();
    for (what, sql) in [
        ("adding up what was written", "SELECT ts.add_up_written()"),
        ("deleting expired aggregates", "SELECT ts.drop_expired_rollups($1)"),
    ] {
        let expired: [&(dyn ToSql + Sync); 1] = [&slice.expired];
        let values = if sql.contains("$1") { &expired[..] } else { &[] };
        if let Err(error) = call(pool, sql, values).await {
            failed(&mut out, what, &error);
        }
    }
    Ok(out)
}

async fn call(pool: &Pool, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<(), Error> {
    pool.get().await?.query_one(sql, values).await?;
    Ok(())
}

fn failed(out: &mut Round, what: &str, error: &Error) {
    out.failed += 1;
    tracing::warn!(%error, "{what} failed; it is tried again");
}

/// A slice of a clinic; gives its next turn, where there is one in this round.
async fn take_turn(pool: &Pool, raw_from: Timestamp, turn: Turn, out: &mut Round) -> Option<Turn> {
    let Turn { clinic, hours } = turn;
    match slice_of(pool, raw_from, &turn).await {
        Ok(done) => {
            out.hours += done;
            // Less than it might have been: what is left came meanwhile, and is the next round's.
            (done >= u64::from(hours.unsigned_abs())).then_some(turn)
        }
        Err(error) if hours > 1 && error.remedy() != Remedy::Later => {
            tracing::info!(%clinic, hours, %error, "a slice of aggregates did not come to its end; half of it is tried");
            Some(Turn { hours: hours / 2, ..turn })
        }
        Err(error) => {
            tracing::warn!(%clinic, %error, "a clinic's aggregates stay stale for now; the others are done");
            out.skipped.push(clinic);
            None
        }
    }
}

async fn slice_of(pool: &Pool, raw_from: Timestamp, turn: &Turn) -> Result<u64, Error> {
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT ts.roll_up($1, $2, $3)").await?;
    let hours: i64 = client.query_one(&statement, &[&turn.hours, &raw_from, &turn.clinic]).await?.get(0);
    Ok(hours.unsigned_abs())
}

/// Names of time zones that the database does not know. What is made by one that it knows again is stale from here on.
async fn unknown_zones(pool: &Pool) -> Result<Vec<String>, Error> {
    let client = pool.get().await?;
    let rows = client.query("SELECT zone, wearers FROM ts.check_zones()", &[]).await?;
    for row in &rows {
        let (zone, wearers): (&str, i64) = (row.get(0), row.get(1));
        tracing::warn!(zone, wearers, "the database knows no time zone of this name; days are made by UTC");
    }
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Queues jobs for what was passed on to rules and models, each clinic's by itself.
async fn queue_looks(pool: &Pool, out: &mut Round) {
    const WHAT: &str = "queueing what rules and models have to look at";
    let clinics = match clinics_to_look_at(pool).await {
        Ok(clinics) => clinics,
        Err(error) => return failed(out, WHAT, &error),
    };
    for clinic in clinics {
        if let Err(error) = call(pool, "SELECT ts.queue_looks($1)", &[&clinic]).await {
            tracing::warn!(%clinic, "a clinic's rules and models look later");
            failed(out, WHAT, &error);
        }
    }
}

async fn clinics_to_look_at(pool: &Pool) -> Result<Vec<Uuid>, Error> {
    let rows = pool.get().await?.query("SELECT ts.clinics_to_look_at()", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
