//! Questions of a page: a month of one wearer by the hour, a day of raw readings; and what a reading takes on the disk.
//!
//! Four wearers, a month of heart rate once a second each, as rows (they are not what is measured here: `bench ingest` sends
//! them the whole way). The questions are the API's own, asked as its role through the tenant's views, 2,000 points at most;
//! the first three askings do not count, the median of nine does. On TimescaleDB the closed chunks are compressed before.
//!
//! A slice of the roll-up is measured twice: in the table of the first three days, and in that of the whole month, ten times
//! as large. Statistics are fresh each time.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use kinara_cloud_api::resources::readings::{SERIES, series_of};
use serde_json::{Value, json};
use tokio_postgres::NoTls;
use uuid::Uuid;

use super::{median, rounded};
use crate::clinic::Options;
use crate::{Clinic, ClinicError, Result};

const WEARERS: usize = 4;
const DAYS: i64 = 30;
/// Days of the table that is a tenth of the whole.
const FIRST_DAYS: i64 = DAYS / 10;
/// Times that a slice is rolled up, of which the median counts.
const SLICES: usize = 9;
const POINTS: f64 = 2_000.0;
const WARMING: usize = 3;
const ASKED: usize = 9;
/// Hours in a roll-up, as the bridge takes them.
const HOURS: i32 = 50;
const ROLE: &str = "bench_reader";

/// Of what holds readings: partitions and chunks alike hang below the table that has their name.
const SIZE: &str = "SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_inherits i
    WHERE i.inhparent = 'ts.readings'::regclass";

/// Of the chunks that are compressed: the newest is not yet, and one hot chunk of thirty would double the figure.
const COMPRESSED: &str = "SELECT sum(s.total_bytes) FROM public.chunks_detailed_size('ts.readings') s
    JOIN timescaledb_information.chunks c USING (chunk_schema, chunk_name) WHERE c.is_compressed";
const IN_COMPRESSED: &str = "SELECT count(*) FROM ts.readings WHERE time < (
    SELECT max(range_end) FROM timescaledb_information.chunks
    WHERE hypertable_schema = 'ts' AND hypertable_name = 'readings' AND is_compressed)";

/// `./kinara bench query`.
pub fn run() -> Result<Value> {
    let mut clinic = Clinic::start(Options::for_test("bench-query"))?;
    let tenant = clinic.add_tenant("Bench", "bench", "Europe/Berlin")?;
    let wearers = (0..WEARERS)
        .map(|number| clinic.add_wearer(&tenant, &format!("W-{number}"), &format!("Wearer {number}")))
        .collect::<Result<Vec<_>>>()?;
    clinic.database.login_role(ROLE, ROLE, "kinara_app")?;
    let (admin, reader) = (clinic.database.admin_url(), clinic.database.url(ROLE, ROLE));
    let users: Vec<Uuid> = wearers.iter().map(|wearer| wearer.id).collect();
    let runtime = tokio::runtime::Runtime::new().map_err(ClinicError::file("the harness's runtime"))?;
    runtime
        .block_on(measure(&admin, &reader, tenant.id, &users))
        .map_err(|error| ClinicError::Answer { who: "database".to_owned(), what: error.to_string() })
}

async fn measure(
    admin: &str,
    reader: &str,
    tenant: Uuid,
    users: &[Uuid],
) -> std::result::Result<Value, tokio_postgres::Error> {
    let (admin, connection) = tokio_postgres::connect(admin, NoTls).await?;
    tokio::spawn(connection);
    let number = async |sql: &str| -> std::result::Result<i64, tokio_postgres::Error> {
        admin.query_one(&format!("SELECT ({sql})::int8"), &[]).await?.try_get(0)
    };
    let end = Timestamp::from_second(Timestamp::now().as_second() / 86_400 * 86_400).unwrap_or_default();
    let begin = end - SignedDuration::from_hours(24 * DAYS);
    admin.query_one("SELECT ts.ensure_partitions($1, $2)", &[&begin, &end]).await?;
    load(&admin, tenant, users, begin, 0..FIRST_DAYS).await?;
    let small = slice(&admin, tenant).await?;
    load(&admin, tenant, users, begin, FIRST_DAYS..DAYS).await?;
    let large = slice(&admin, tenant).await?;
    eprintln!("a slice of the roll-up: {small:.3} s in {FIRST_DAYS} days, {large:.3} s in {DAYS}");
    let began = Instant::now();
    let mut hours = 0;
    loop {
        let taken: i64 =
            admin.query_one("SELECT ts.roll_up($1, '-infinity')", &[&HOURS]).await?.try_get(0)?;
        hours += taken;
        if taken < i64::from(HOURS) {
            break;
        }
    }
    let roll_up_s = began.elapsed().as_secs_f64();
    let readings = number("SELECT count(*) FROM ts.readings").await?;
    admin.batch_execute("VACUUM ANALYZE").await?;
    let hot = number(SIZE).await? as f64 / readings as f64;
    let mut chunks = 0;
    while number("SELECT ts.compress_closed()").await? > 0 {
        chunks += 1;
    }
    let compressed = if chunks > 0 {
        admin.batch_execute("VACUUM ANALYZE").await?;
        let size = number(COMPRESSED).await?;
        Some(rounded(size as f64 / number(IN_COMPRESSED).await? as f64))
    } else {
        None
    };
    let month = asked(reader, tenant, users[0], &series_of("readings_hourly"), begin, end).await?;
    let day_begin = begin + SignedDuration::from_hours(24 * 10);
    let day = asked(reader, tenant, users[0], SERIES, day_begin, day_begin + SignedDuration::from_hours(24))
        .await?;
    Ok(json!({
        "month_hourly_ms": rounded(month),
        "day_raw_ms": rounded(day),
        "bytes_per_reading_hot": rounded(hot),
        "bytes_per_reading_compressed": compressed,
        "storage": if chunks > 0 { "timescale" } else { "plain" },
        "readings": readings,
        "roll_up_cost_10x_rows": rounded(large / small),
        "roll_up_hours_per_s": rounded(hours as f64 / roll_up_s),
        "roll_up_readings_per_s": rounded(readings as f64 / roll_up_s),
    }))
}

/// Each wearer's heart rate of these days, its notes, and statistics of it.
async fn load(
    admin: &tokio_postgres::Client,
    tenant: Uuid,
    users: &[Uuid],
    begin: Timestamp,
    days: std::ops::Range<i64>,
) -> std::result::Result<(), tokio_postgres::Error> {
    let (first, behind) = ((days.start * 86_400) as i32, (days.end * 86_400) as i32);
    for (place, user) in users.iter().enumerate() {
        // A slow rhythm, a faster one, and noise, in the channel's steps of a tenth.
        admin
            .execute(
                "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
                 SELECT $1::timestamptz + make_interval(secs => s), $2, $3, $3, 1, 0, 1, s,
                   round((70 + 12 * sin(s / 13751.0 + $4::float8) + 4 * sin(s / 40.0) + 3 * (random() - 0.5))::numeric, 1)
                 FROM generate_series($5::int4, $6::int4 - 1) s",
                &[&begin, &tenant, user, &(place as f64), &first, &behind],
            )
            .await?;
        eprintln!("wearer {} of {}: day {} of {DAYS}", place + 1, users.len(), days.end);
    }
    admin
        .execute(
            "INSERT INTO ts.stale (tenant_id, user_id, type, hour)
             SELECT $1, u, 1, $2::timestamptz + make_interval(hours => h)
             FROM unnest($3::uuid[]) u, generate_series($4::int4, $5::int4 - 1) h",
            &[&tenant, &begin, &users, &(first / 3_600), &(behind / 3_600)],
        )
        .await?;
    admin.batch_execute("VACUUM ANALYZE").await
}

/// Seconds that a slice of the roll-up takes; it stays to be done.
async fn slice(
    admin: &tokio_postgres::Client,
    tenant: Uuid,
) -> std::result::Result<f64, tokio_postgres::Error> {
    let mut took = Vec::new();
    for round in 0..WARMING + SLICES {
        admin.batch_execute("BEGIN").await?;
        let began = Instant::now();
        admin.query_one("SELECT ts.roll_up($1, '-infinity', $2)", &[&HOURS, &tenant]).await?;
        let elapsed = began.elapsed().as_secs_f64();
        admin.batch_execute("ROLLBACK").await?;
        if round >= WARMING {
            took.push(elapsed);
        }
    }
    Ok(median(took))
}

/// Milliseconds from asking to the last row.
async fn asked(
    reader: &str,
    tenant: Uuid,
    user: Uuid,
    sql: &str,
    from: Timestamp,
    to: Timestamp,
) -> std::result::Result<f64, tokio_postgres::Error> {
    let (mut client, connection) = tokio_postgres::connect(reader, NoTls).await?;
    tokio::spawn(connection);
    let width = (to.duration_since(from).as_secs_f64() * 1e6 / POINTS).ceil() / 1e6;
    let mut took = Vec::new();
    for round in 0..WARMING + ASKED {
        let transaction = client.transaction().await?;
        transaction.execute("SELECT set_config('kinara.tenant', $1, true)", &[&tenant.to_string()]).await?;
        let began = Instant::now();
        let rows = transaction.query(sql, &[&user, &"heart_rate", &from, &to, &width]).await?;
        let elapsed = began.elapsed().as_secs_f64() * 1e3;
        assert!(!rows.is_empty(), "the wearer has readings");
        if round >= WARMING {
            took.push(elapsed);
        }
    }
    Ok(median(took))
}
