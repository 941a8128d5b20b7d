//! Frames that are not kept leave gaps: what one of them costs does not grow with how many its epoch has already.

use crate::support::*;
use kinara_ingest::{Batch, Counts, Writer};
use kinara_store::{Pool, connect};
use kinara_test_postgres::{Options, PREPARED};

/// Numbers of which every fourth was not kept, each told by a write of its own.
const STEP: u32 = 4;
/// Blocks that come with more levels of indexes.
const LEVELS: i64 = 24;

/// Where nothing writes but the test, and statistics are made when it says so.
async fn quiet() -> World {
    let options = Options::fast().setting("autovacuum", "off");
    world_on(options).await
}

/// An epoch of which every fourth number was not kept, from the first to this one.
async fn grow(world: &World, from: u32, to: u32) {
    world
        .run(&format!(
            "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, created_at, updated_at)
               SELECT '{HARDWARE_ROW}', {epoch}, int8multirange(int8range(n * {STEP}, n * {STEP} + 1)), 'no_consent', t, t, t, t
               FROM generate_series({from}, {to} - 1) n, LATERAL (SELECT to_timestamp({BOOT_US} / 1e6 + n * {STEP}) AS t) t;
             INSERT INTO ledger AS l (hardware, epoch, highest) VALUES ('{HARDWARE_ROW}', {epoch}, ({to} - 1) * {STEP})
               ON CONFLICT (hardware, epoch) DO UPDATE SET highest = excluded.highest",
            epoch = EPOCH.0 as i64,
        ))
        .await;
}

/// One connection, so that what it counted can be told.
struct Line {
    pool: Pool,
    writer: Writer,
}

impl Line {
    fn of(world: &World) -> Self {
        let limits = kinara_store::Limits { connections: 1, ..kinara_store::Limits::default() };
        let pool = connect(&world.server.url("bridge", "bridge", PREPARED), "test", &limits).unwrap();
        let writer = Writer::new(pool.clone(), world.clock.clone(), kinara_ingest::Limits::default());
        Self { pool, writer }
    }

    /// Blocks of the table of gaps and of its indexes that were touched so far.
    async fn touched(&self, world: &World) -> i64 {
        let client = self.pool.get().await.unwrap();
        client.batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
        world
            .number(
                "SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
                 FROM pg_statio_all_tables WHERE relid = 'gaps'::regclass",
            )
            .await
    }

    /// What the costliest of these writes touches. The first one of a kind learns what there is.
    async fn costliest(&self, world: &World, batches: &[Batch], expected: Counts) -> i64 {
        let mut most = 0;
        for (place, batch) in batches.iter().enumerate() {
            let before = self.touched(world).await;
            assert_eq!(counts(self.writer.write(std::slice::from_ref(batch)).await.unwrap()), [expected]);
            let touched = self.touched(world).await - before;
            if place > 0 {
                most = most.max(touched);
            }
        }
        most
    }
}

/// Frames of one batch each.
fn each(seqs: impl Iterator<Item = u32>) -> Vec<Batch> {
    seqs.map(|seq| batch_of(GATEWAY, &[frame(EPOCH, seq)])).collect()
}

/// What a frame costs that is not kept: above all numbers heard of, between others at their beginning and in their middle,
/// and one that was told of before; and one that is kept after all.
async fn costs(world: &World, stretches: u32, round: u32) -> [(&'static str, i64); 5] {
    const EACH: u32 = 8;
    let consent = |given: &str| format!("UPDATE device_assignments SET consent_id = {given}");
    let discarded = Counts { discarded: 1, ..Counts::default() };
    // What made the table grow is counted before anything is measured: a server tells it up to a minute later.
    world.run("SELECT pg_stat_force_next_flush()").await;
    let line = Line::of(world);
    let (top, middle) = ((stretches + round * EACH) * STEP, stretches / 2 * STEP);
    let between = |from: u32| each((0..EACH).map(move |n| from + n * STEP + 1 + round));
    world.run(&consent("NULL")).await;
    let above = line.costliest(world, &each((0..EACH).map(|n| top + n * STEP)), discarded).await;
    let first = line.costliest(world, &between(0), discarded).await;
    let among = line.costliest(world, &between(middle), discarded).await;
    let again = line.costliest(world, &between(middle), discarded).await;
    world.run(&consent(&format!("'{USER}'"))).await;
    let stored = Counts { stored: 1, ..Counts::default() };
    let kept = line
        .costliest(world, &each((0..EACH).map(|n| middle + (n + round * EACH + 20) * STEP)), stored)
        .await;
    [("above", above), ("first", first), ("among", among), ("again", again), ("kept", kept)]
}

#[tokio::test]
async fn a_frame_that_is_not_kept_touches_no_more_gaps_because_its_epoch_has_ten_thousand_of_them() {
    let world = quiet().await;
    let (few, many) = (100, 10_000);
    grow(&world, 0, few).await;
    world.run("VACUUM ANALYZE").await;
    let before = costs(&world, few, 0).await;
    grow(&world, few + 100, many).await;
    let stale = costs(&world, many, 1).await;
    world.run("VACUUM ANALYZE").await;
    let fresh = costs(&world, many, 2).await;
    let mut grown = Vec::new();
    for ((which, before), (stale, fresh)) in
        before.into_iter().zip(stale.into_iter().zip(fresh).map(|(stale, fresh)| (stale.1, fresh.1)))
    {
        println!("{which:8} {before:6} {stale:6} {fresh:6}");
        if stale.max(fresh) > before + LEVELS {
            grown.push(format!("{which}: {before} blocks, then {stale}, with fresh statistics {fresh}"));
        }
    }
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}
