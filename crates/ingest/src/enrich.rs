//! What is derived of readings: heart rate variability of five-minute windows.
//!
//! The promise: a window is what its intervals make it, however late they came. The database passes on the hours whose
//! intervals changed; their windows are computed anew and replaced in the transaction that takes the note. Who wears two
//! devices has two rhythms of one heart, each seen with its own errors: of each window the better covered one is kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kinara_hrv::{Hrv, Interval, of_window};
use kinara_store::Pool;
use uuid::Uuid;

use crate::error::Remedy;
use crate::rollup::Slice;
use crate::{Error, Work, timestamp};

const WINDOW_US: i64 = 300_000_000;

struct Hour {
    tenant: Uuid,
    user: Uuid,
    from: Timestamp,
    /// Of each device, with the time of the beat that ends each, µs of UTC: floating numbers would put some into the
    /// window before.
    devices: Vec<Vec<(i64, Interval)>>,
}

/// Computes what is stale, some slices of it, and gives how many windows there are of it. A slice that does not come to its
/// end in time is halved; which hours are in it is drawn by lot, so that those of one wearer keep no others from being done.
pub fn enrich<'a>(pool: &'a Pool, now: Timestamp, slice: &'a Slice) -> Work<'a, Result<u64, Error>> {
    Box::pin(some_slices(pool, now, slice))
}

async fn some_slices(pool: &Pool, now: Timestamp, slice: &Slice) -> Result<u64, Error> {
    let raw_from = slice.raw_from(now);
    let mut hours = slice.hours;
    let mut total = 0;
    for _ in 0..slice.laps {
        match slice_of(pool, hours, raw_from).await {
            Ok(None) => break,
            Ok(Some(windows)) => total += windows,
            Err(error) if hours > 1 && error.remedy() != Remedy::Later => {
                tracing::info!(hours, %error, "a slice of windows did not come to its end; half of it is tried");
                hours /= 2;
            }
            Err(error) => return Err(error),
        }
    }
    pool.get().await?.query_one("SELECT ts.drop_expired_hrv($1)", &[&slice.expired]).await?;
    Ok(total)
}

/// So many hours; `None`: there are none.
async fn slice_of(pool: &Pool, most: i32, raw_from: Timestamp) -> Result<Option<u64>, Error> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    let take = tx.prepare_cached("SELECT * FROM ts.take_hrv($1, $2)").await?;
    let hours = hours(&tx.query(&take, &[&most, &raw_from]).await?);
    if hours.is_empty() {
        // Notes of hours that are too old are gone with this.
        tx.commit().await?;
        return Ok(None);
    }
    let computed = tokio::task::spawn_blocking(move || {
        hours.into_iter().map(|hour| (windows(&hour), hour)).collect::<Vec<_>>()
    });
    let mut total = 0;
    for (windows, hour) in computed.await.expect("arithmetic does not panic, and is not aborted") {
        put(&tx, &hour, &windows).await?;
        total += windows.len() as u64;
    }
    tx.commit().await?;
    Ok(Some(total))
}

/// The rows of an hour stand together, one for each device.
fn hours(rows: &[tokio_postgres::Row]) -> Vec<Hour> {
    let mut out: Vec<Hour> = Vec::new();
    for row in rows {
        let (tenant, user, from) = (row.get("tenant_id"), row.get("user_id"), row.get("hour"));
        match out.last_mut() {
            Some(last) if (last.tenant, last.user, last.from) == (tenant, user, from) => {
                last.devices.push(intervals(row));
            }
            _ => out.push(Hour { tenant, user, from, devices: vec![intervals(row)] }),
        }
    }
    out
}

fn intervals(row: &tokio_postgres::Row) -> Vec<(i64, Interval)> {
    let (times, values): (Vec<Timestamp>, Vec<f64>) = (row.get("times"), row.get("intervals"));
    times
        .iter()
        .zip(values)
        .map(|(time, rr_ms)| {
            let us = time.as_microsecond();
            (us, Interval { at_ms: us as f64 / 1_000.0, rr_ms })
        })
        .collect()
}

fn windows(hour: &Hour) -> Vec<(Timestamp, Hrv)> {
    let mut best: BTreeMap<i64, Hrv> = BTreeMap::new();
    for (bucket, hrv) in hour.devices.iter().flat_map(|device| windows_of(device)) {
        if best.get(&bucket).is_none_or(|other| hrv.covered_ms > other.covered_ms) {
            best.insert(bucket, hrv);
        }
    }
    best.into_iter().map(|(bucket, hrv)| (timestamp(bucket * WINDOW_US), hrv)).collect()
}

/// The windows of one device's intervals.
fn windows_of(intervals: &[(i64, Interval)]) -> impl Iterator<Item = (i64, Hrv)> {
    let bucket = |(us, _): &(i64, Interval)| us.div_euclid(WINDOW_US);
    intervals.chunk_by(move |a, b| bucket(a) == bucket(b)).filter_map(move |window| {
        let intervals: Vec<Interval> = window.iter().map(|(_, interval)| *interval).collect();
        Some((bucket(window.first()?), of_window(&intervals)?))
    })
}

async fn put(
    tx: &kinara_store::Transaction<'_>,
    hour: &Hour,
    windows: &[(Timestamp, Hrv)],
) -> Result<(), Error> {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let of = |value: fn(&Hrv) -> f64| windows.iter().map(|(_, hrv)| value(hrv)).collect::<Vec<f64>>();
    let band = |value: fn(&kinara_hrv::frequency::Bands) -> f64| {
        windows.iter().map(|(_, hrv)| hrv.bands.as_ref().map(value)).collect::<Vec<Option<f64>>>()
    };
    let buckets: Vec<Timestamp> = windows.iter().map(|(bucket, _)| *bucket).collect();
    let intervals: Vec<i32> = windows.iter().map(|(_, hrv)| count(hrv.intervals)).collect();
    let corrected: Vec<i32> = windows.iter().map(|(_, hrv)| count(hrv.corrected)).collect();
    let statement = tx
        .prepare_cached("SELECT ts.put_hrv($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)")
        .await?;
    tx.execute(
        &statement,
        &[
            &hour.tenant,
            &hour.user,
            &hour.from,
            &buckets,
            &intervals,
            &corrected,
            &of(|hrv| hrv.covered_ms),
            &of(|hrv| hrv.time.mean_nn_ms),
            &of(|hrv| hrv.time.sdnn_ms),
            &of(|hrv| hrv.time.rmssd_ms),
            &of(|hrv| hrv.time.pnn50),
            &band(|bands| bands.lf_ms2),
            &band(|bands| bands.hf_ms2),
        ],
    )
    .await?;
    Ok(())
}
