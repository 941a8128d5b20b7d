//! The writer alone against what PostgreSQL takes at all: pre-encoded binary COPY of 10,000 rows a transaction into the
//! same table. `cargo bench -p kinara-ingest`; fsync on. Prints one JSON line.

#![allow(clippy::unwrap_used, clippy::wildcard_imports, missing_docs)]

#[path = "../tests/ingest/support/mod.rs"]
mod support;

use std::time::Instant;

use futures_util::SinkExt as _;
use kinara_ingest::copy::{ReadingTemplate, Rows};
use kinara_ingest::{Batch, batch};
use kinara_protocol::envelope;
use kinara_test_postgres::Options;
use support::*;

const GATEWAYS: u32 = 20;
const ROUNDS: u32 = 60;
/// Seconds of readings in a batch, and wearables on a gateway.
const BATCH_S: u32 = 5;
const DEVICES: u32 = 20;

async fn copy_rows(world: &World, transactions: usize) -> f64 {
    let mut rows = Rows::new();
    let mut template = ReadingTemplate::new(TENANT, USER, DEVICE, 5);
    for n in 0..10_000u32 {
        template.set_seq(n);
        rows.reading(&mut template, NOW_US - i64::from(n) * 250_000, 1 + (n % 5) as i16, 0, 1.5, 1.0);
    }
    let chunks = rows.finish();
    let client = world.pool.get().await.unwrap();
    let begun = Instant::now();
    for _ in 0..transactions {
        let sink = client.copy_in("COPY ts.readings FROM STDIN (FORMAT binary)").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        for chunk in &chunks {
            sink.feed(chunk.clone()).await.unwrap();
        }
        sink.as_mut().finish().await.unwrap();
    }
    (transactions * 10_000) as f64 / begun.elapsed().as_secs_f64()
}

fn payloads(round: u32) -> Vec<Vec<u8>> {
    (0..GATEWAYS)
        .map(|gateway| {
            let devices = (0..DEVICES)
                .map(|n| {
                    let name = format!("bt:{}", gateway * DEVICES + n);
                    columns_of(&name, &seconds(round * BATCH_S..(round + 1) * BATCH_S))
                })
                .collect();
            envelope::seal(&envelope_of(GATEWAY, u64::from(round * GATEWAYS + gateway), devices))
        })
        .collect()
}

#[tokio::main]
async fn main() {
    let options = Options::new()
        .setting("shared_buffers", "1GB")
        .setting("max_wal_size", "8GB")
        .setting("checkpoint_timeout", "30min");
    let world = world_on(options).await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id)
               SELECT ('00000000-0000-0000-0001-' || lpad(n::text, 12, '0'))::uuid, 'bt:' || n
               FROM generate_series(0, {}) n;
             INSERT INTO devices (id, tenant_id, hardware_id)
               SELECT id, '{TENANT}', hardware_id FROM hardware WHERE hardware_id LIKE 'bt:%';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               SELECT id, '{TENANT}', '{USER}', id, '{USER}', to_timestamp({})
               FROM hardware WHERE hardware_id LIKE 'bt:%';
             SELECT ts.ensure_partitions('2026-01-01', '2026-01-02'); ANALYZE",
            GATEWAYS * DEVICES,
            BOOT_US / 1_000_000
        ))
        .await;
    let all: Vec<Vec<Vec<u8>>> = (0..ROUNDS).map(payloads).collect();
    let (mut copied, mut written) = (Vec::new(), Vec::new());
    for third in all.chunks(ROUNDS as usize / 3) {
        copied.push(copy_rows(&world, 40).await);
        let before = world.number("SELECT count(*) FROM ts.readings").await;
        let begun = Instant::now();
        // Two writers, as in the bridge; each takes half of the gateways.
        let halves = [0, 1].map(|half| {
            let writer = world.writer();
            let mine: Vec<Vec<u8>> = third
                .iter()
                .flatten()
                .enumerate()
                .filter(|(n, _)| n % 2 == half)
                .map(|(_, p)| p.clone())
                .collect();
            tokio::spawn(async move {
                let mut group: Vec<Batch> = Vec::new();
                for payload in mine {
                    group.push(batch::decode(&payload).unwrap());
                    if group.iter().map(Batch::readings).sum::<usize>() >= 20_000 {
                        counts(writer.write(&group).await.unwrap());
                        group.clear();
                    }
                }
                counts(writer.write(&group).await.unwrap());
            })
        });
        for half in halves {
            half.await.unwrap();
        }
        let took = begun.elapsed().as_secs_f64();
        let rows = world.number("SELECT count(*) FROM ts.readings").await - before;
        written.push(rows as f64 / took);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (copied, written) = (median(&mut copied), median(&mut written));
    println!(
        "{{\"readings_per_s\":{written:.0},\"copy_rows_per_s\":{copied:.0},\"ratio_to_copy\":{:.2}}}",
        written / copied
    );
}
