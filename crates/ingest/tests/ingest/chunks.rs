//! Large chunks of TimescaleDB: what is compressed moves, gets late rows, is erased, and is compressed again.

use std::time::{Duration, Instant};

use crate::support::*;
use kinara_ingest::erase::erase;
use kinara_ingest::sweep;
use kinara_ingest::upkeep::{self, Bounds, Done};
use kinara_test_postgres::PREPARED;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// Readings of the large chunk; the long test takes five million.
fn rows() -> i64 {
    std::env::var("KINARA_CHUNK_ROWS").map_or(1_200_000, |text| text.parse().unwrap())
}

/// The chunk's day: the tests' present is its end.
const DAY_S: i64 = NOW_US / 1_000_000 - 86_400;
/// What a statement of the bridge may take, but for compression.
const STATEMENT: Duration = Duration::from_secs(30);
/// What compressing a chunk may take.
const PATIENCE: Duration = Duration::from_mins(15);
/// How long somebody else's statement may wait for a lock.
const NOTICED: &str = "SET lock_timeout = '3s'";
/// Rows that are compressed together.
const BATCH: i64 = 1_000;
/// Of so many kinds is what each wearer has.
const KINDS: i64 = 2;
const THIRD: Uuid = Uuid::from_u128(0x33);
const FOURTH: Uuid = Uuid::from_u128(0x34);
/// Nothing is theirs at first.
const FIFTH: Uuid = Uuid::from_u128(0x35);

/// `None`: the storage is another.
async fn on_chunks() -> Option<World> {
    let world = world().await;
    if world.text("SELECT kind FROM ts.storage").await == "timescale" {
        return Some(world);
    }
    eprintln!("SKIPPED: this server has no TimescaleDB, and so no chunks");
    None
}

async fn somebody(world: &World) -> Client {
    let (client, connection) =
        tokio_postgres::connect(&world.server.superuser_url(PREPARED), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Readings over a day, `each` of each wearer, the first of whom has the device that batches come from.
async fn fill(world: &World, from_s: i64, wearers: &[Uuid], each: i64) {
    for (place, wearer) in (0u128..).zip(wearers) {
        let device = Uuid::from_u128(DEVICE.as_u128() + place);
        world
            .run(&format!(
                "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
                   SELECT to_timestamp({from_s} + s * 86400.0 / {each}), '{TENANT}', '{wearer}', '{device}', 1 + s % {KINDS}, 0,
                     {place} + 1, s, 60 + s % 40
                   FROM generate_series(0, {each} - 1) s"
            ))
            .await;
    }
}

/// How many readings these wearers have, and a word that no other readings have.
async fn all_of(world: &World, wearers: &[Uuid]) -> String {
    world
        .text(&format!(
            "SELECT count(*) || ' ' || coalesce(sum(hash_record_extended(
               ROW(time, tenant_id, device_id, type, idx, epoch, seq, value, quality), 0)), 0)
             FROM ts.readings WHERE user_id = ANY('{{{}}}')",
            wearers.iter().map(Uuid::to_string).collect::<Vec<_>>().join(",")
        ))
        .await
}

async fn readings_of(world: &World, wearer: Uuid) -> i64 {
    world.number(&format!("SELECT count(*) FROM ts.readings WHERE user_id = '{wearer}'")).await
}

/// How many of a wearer's readings are compressed, in all chunks together.
async fn compressed_of(world: &World, wearer: Uuid) -> i64 {
    let chunks = "
        SELECT format('%I.%I', k.schema_name, k.table_name) FROM _timescaledb_catalog.chunk c
        JOIN _timescaledb_catalog.chunk k ON k.id = c.compressed_chunk_id
        JOIN _timescaledb_catalog.hypertable h ON h.id = c.hypertable_id AND h.table_name = 'readings'";
    let mut sum = 0;
    for row in world.admin.query(chunks, &[]).await.unwrap() {
        let chunk: String = row.get(0);
        sum += world
            .number(&format!(
                "SELECT coalesce(sum(_ts_meta_count), 0) FROM {chunk} WHERE user_id = '{wearer}'"
            ))
            .await;
    }
    sum
}

async fn compressed(world: &World, wearers: &[Uuid]) -> Vec<i64> {
    let mut out = Vec::new();
    for wearer in wearers {
        out.push(compressed_of(world, *wearer).await);
    }
    out
}

/// Says how long a step took, and that no statement of the bridge may take so long.
fn within(step: &str, began: Instant) {
    let took = began.elapsed();
    println!("{step}: {} ms", took.as_millis());
    assert!(took < STATEMENT, "{step} took {took:?}");
}

async fn compress(world: &World, passed: &mut i32) -> Result<u64, kinara_ingest::Error> {
    sweep::compress(&world.pool, PATIENCE, passed).await
}

/// Compresses what there is, and asserts that all these wearers' readings are.
async fn compress_all(world: &World, step: &str, wearers: &[Uuid]) {
    let began = Instant::now();
    assert_eq!(compress(world, &mut 0).await.unwrap(), 1, "{step}");
    within(step, began);
    for wearer in wearers {
        assert_eq!(compressed_of(world, *wearer).await, readings_of(world, *wearer).await, "{step} {wearer}");
    }
    assert_eq!(compress(world, &mut 0).await.unwrap(), 0, "{step}, once was enough");
}

async fn keep(world: &World) -> Done {
    upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), &Bounds::default()).await.unwrap()
}

#[tokio::test]
async fn of_a_large_chunk_no_more_is_decompressed_than_what_moves_or_is_erased_and_nobody_elses_readings_change()
 {
    let Some(world) = on_chunks().await else { return };
    let everybody = [USER, SECOND_USER, THIRD, FOURTH, FIFTH];
    let others = [SECOND_USER, THIRD, FOURTH];
    let each = rows() / 4;
    // As a server might choose that plans a statement once: nothing may depend on it that it does not.
    world.run("ALTER ROLE bridge SET plan_cache_mode = force_generic_plan").await;
    fill(&world, DAY_S, &everybody[..4], each).await;
    let theirs = all_of(&world, &others).await;
    let both = all_of(&world, &[USER, FIFTH]).await;
    // In no time there is none, and it has its turn again.
    assert_eq!(sweep::compress(&world.pool, Duration::from_millis(20), &mut 0).await.unwrap(), 0);
    assert_eq!(compressed(&world, &everybody).await, [0; 5]);
    compress_all(&world, "compressing", &everybody).await;

    world
        .run(&format!(
            "INSERT INTO moves (tenant_id, from_user, to_user, device_id, from_time, asked_at)
               VALUES ('{TENANT}', '{USER}', '{FIFTH}', '{DEVICE}', to_timestamp({DAY_S} + 43200), to_timestamp({DAY_S}))"
        ))
        .await;
    let began = Instant::now();
    let done = keep(&world).await;
    within("moving half a day", began);
    assert_eq!((done.moved as i64, done.failed), (each - each / 2, 0));
    assert_eq!(readings_of(&world, FIFTH).await, each - each / 2);
    let left = compressed(&world, &everybody).await;
    assert!(left[0] + done.moved as i64 + KINDS * BATCH >= each, "{left:?}");
    assert_eq!(left[1..4], [each; 3], "what is of others stays as it was");
    keep(&world).await;
    assert_eq!(world.number("SELECT count(*) FROM moves WHERE settled_at IS NULL").await, 0);
    assert_eq!(all_of(&world, &[USER, FIFTH]).await, both);
    compress_all(&world, "compressing after the move", &everybody).await;
    assert_eq!(all_of(&world, &[USER, FIFTH]).await, both);

    let before = compressed(&world, &everybody).await;
    let late = || batch_of(GATEWAY, &seconds(0..60));
    let began = Instant::now();
    let counts = world.write(&[late(), late()]).await;
    within("writing late rows", began);
    assert_eq!(
        counts.iter().map(|counts| (counts.stored, counts.duplicate)).collect::<Vec<_>>(),
        [(60, 0), (0, 60)]
    );
    assert_eq!(compressed(&world, &everybody).await, before);
    assert_eq!(readings_of(&world, USER).await, each / 2 + 300);
    let both = all_of(&world, &[USER, FIFTH]).await;
    compress_all(&world, "compressing late rows", &everybody).await;
    assert_eq!((all_of(&world, &[USER, FIFTH]).await, all_of(&world, &others).await), (both.clone(), theirs));

    let staying = [USER, THIRD, FOURTH, FIFTH];
    let theirs = all_of(&world, &staying).await;
    let before = compressed(&world, &staying).await;
    world
        .run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{SECOND_USER}')"))
        .await;
    let began = Instant::now();
    assert!(erase(&world.pool, TENANT, SECOND_USER).await.unwrap() as i64 >= each);
    within("erasing one wearer", began);
    assert_eq!((readings_of(&world, SECOND_USER).await, compressed_of(&world, SECOND_USER).await), (0, 0));
    assert_eq!(compressed(&world, &staying).await, before);
    // There is nothing left that is not compressed, but the chunk says that there may be.
    assert!(compress(&world, &mut 0).await.unwrap() <= 1);
    assert_eq!((all_of(&world, &staying).await, compressed(&world, &staying).await), (theirs, before));
}

#[tokio::test]
async fn a_chunk_that_is_not_compressed_for_now_stops_no_other_and_has_its_turn_again() {
    let Some(world) = on_chunks().await else { return };
    let days: Vec<i64> = (0..5).map(|day| DAY_S - day * 86_400).rev().collect();
    for day in &days {
        fill(&world, *day, &[USER], 100).await;
    }
    // Somebody writes into the four oldest, and does not come to an end.
    let writer = somebody(&world).await;
    writer.batch_execute("BEGIN").await.unwrap();
    let write = |day: &i64| {
        format!(
            "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               VALUES (to_timestamp({day}), '{TENANT}', '{SECOND_USER}', '{DEVICE}', 1, 0, 9, 1, 60)"
        )
    };
    for day in &days[..4] {
        writer.batch_execute(&write(day)).await.unwrap();
    }
    let other = somebody(&world).await;
    other.batch_execute(NOTICED).await.unwrap();
    let mut passed = 0;
    let round = async {
        assert!(compress(&world, &mut passed).await.is_err(), "four in a round are too many");
        assert_eq!(compressed_of(&world, USER).await, 0);
        // The next goes on behind them.
        assert_eq!(compress(&world, &mut passed).await.unwrap(), 1);
    };
    let beside = async {
        for _ in 0..6 {
            other.batch_execute(&write(&days[0])).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let began = Instant::now();
    tokio::join!(round, beside);
    within("two rounds with four chunks in use", began);
    assert_eq!((passed, compressed_of(&world, USER).await), (0, 100));
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(compress(&world, &mut passed).await.unwrap(), 4);
    assert_eq!((compressed_of(&world, USER).await, compressed_of(&world, SECOND_USER).await), (500, 10));
}

#[tokio::test]
async fn somebody_who_reads_a_day_on_keeps_neither_its_compression_waiting_nor_anybody_else() {
    let Some(world) = on_chunks().await else { return };
    fill(&world, DAY_S, &[USER], 10_000).await;
    let count = format!("SELECT count(*) FROM ts.readings WHERE user_id = '{USER}'");
    let reader = somebody(&world).await;
    reader.batch_execute(&format!("BEGIN; {count}")).await.unwrap();
    let other = somebody(&world).await;
    other.batch_execute(NOTICED).await.unwrap();
    let mut passed = 0;
    let compressing = compress(&world, &mut passed);
    let reading = async {
        loop {
            assert_eq!(other.query_one(&count, &[]).await.unwrap().get::<_, i64>(0), 10_000);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        result = compressing => assert_eq!(result.unwrap(), 1),
        () = reading => {}
    }
    assert_eq!(compressed_of(&world, USER).await, 10_000);
    assert_eq!(reader.query_one(&count, &[]).await.unwrap().get::<_, i64>(0), 10_000);
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(readings_of(&world, USER).await, 10_000);
}
