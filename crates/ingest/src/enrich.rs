//! What is derived of readings: heart rate variability of five-minute windows.
//!
//! The promise: a window is what its intervals make it, however late they came. The database passes on the hours whose
//! intervals changed; their windows are computed anew and replaced in the transaction that takes the note.

use jiff::Timestamp;
use kinara_hrv::{Hrv, Interval, of_window};
use kinara_store::Pool;
use uuid::Uuid;

use crate::rollup::Slice;
use crate::{Error, timestamp};

const WINDOW_US: i64 = 300_000_000;

struct Hour {
    tenant: Uuid,
    user: Uuid,
    from: Timestamp,
    /// With the time of the beat that ends each, µs of UTC: floating numbers would put some into the window before.
    intervals: Vec<(i64, Interval)>,
}

/// Computes what is stale, slice by slice, and gives how many windows there are of it.
pub async fn enrich(pool: &Pool, now: Timestamp, slice: &Slice) -> Result<u64, Error> {
    let raw_from = slice.raw_from(now);
    let mut client = pool.get().await?;
    let mut total = 0;
    loop {
        let tx = client.transaction().await?;
        let take = tx.prepare_cached("SELECT * FROM ts.take_hrv($1, $2)").await?;
        let hours: Vec<Hour> = tx.query(&take, &[&slice.hours, &raw_from]).await?.iter().map(hour).collect();
        if hours.is_empty() {
            // Notes of hours that are too old are gone with this.
            tx.commit().await?;
            break;
        }
        let computed = tokio::task::spawn_blocking(move || {
            hours.into_iter().map(|hour| (windows(&hour), hour)).collect::<Vec<_>>()
        });
        for (windows, hour) in computed.await.expect("arithmetic does not panic, and is not aborted") {
            put(&tx, &hour, &windows).await?;
            total += windows.len() as u64;
        }
        tx.commit().await?;
    }
    client.query_one("SELECT ts.drop_expired_hrv($1)", &[&slice.expired]).await?;
    Ok(total)
}

fn hour(row: &tokio_postgres::Row) -> Hour {
    let (times, values): (Vec<Timestamp>, Vec<f64>) = (row.get("times"), row.get("intervals"));
    let intervals = times
        .iter()
        .zip(values)
        .map(|(time, rr_ms)| {
            let us = time.as_microsecond();
            (us, Interval { at_ms: us as f64 / 1_000.0, rr_ms })
        })
        .collect();
    Hour { tenant: row.get("tenant_id"), user: row.get("user_id"), from: row.get("hour"), intervals }
}

fn windows(hour: &Hour) -> Vec<(Timestamp, Hrv)> {
    let bucket = |(us, _): &(i64, Interval)| us.div_euclid(WINDOW_US);
    hour.intervals
        .chunk_by(|a, b| bucket(a) == bucket(b))
        .filter_map(|window| {
            let intervals: Vec<Interval> = window.iter().map(|(_, interval)| *interval).collect();
            Some((timestamp(bucket(window.first()?) * WINDOW_US), of_window(&intervals)?))
        })
        .collect()
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
