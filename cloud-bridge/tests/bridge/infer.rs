//! What comes over HTTP is looked at as a box would.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::*;
use kinara_cloud_bridge::infer::{Inference, Settings};
use kinara_cloud_bridge::metrics::Metrics;
use kinara_ingest::items::{Form, pack, read};
use kinara_ingest::requests::take;
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::timestamp;
use uuid::Uuid;

/// 20 minutes: rest, and one hot flash after the published course, ten minutes in.
const SECONDS: u32 = 1_200;
const FLASH: f64 = 600.0;

fn course(t: f64, delay: f64, length: f64) -> f64 {
    let onset = FLASH + delay;
    let x = ((t - onset) / length).clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x) * (-((t - onset - length).max(0.0)) / 180.0).exp()
}

/// The readings of some seconds, as a clinic's program sends them.
fn items(seconds: std::ops::Range<u32>) -> String {
    let mut out = Vec::new();
    for second in seconds {
        let mut item = |place: u32, ms: u32, kind: &str, value: f64| {
            let time = (BOOT_US / 1_000) + i64::from(second) * 1_000 + i64::from(ms);
            out.push(format!(
                r#"{{"source":"{HARDWARE}","epoch":7,"seq":{},"time":{time},"type":"{kind}","value":{value:.3}}}"#,
                second * 8 + place
            ));
        };
        let t = f64::from(second);
        for quarter in 0..4 {
            let t = t + f64::from(quarter) / 4.0;
            item(quarter, quarter * 250, "eda", 3.0 + 0.05 * (t / 7.0).sin() + 4.5 * course(t, 0.0, 45.0));
        }
        let rate = 66.0 + 1.5 * (t / 11.0).sin() + 10.0 * course(t, 0.0, 40.0);
        item(4, 0, "heart_rate", rate);
        item(5, 0, "skin_temperature", 33.2 + 0.8 * course(t, 5.0, 80.0));
        item(6, 0, "rr_interval", 60_000.0 / rate + 20.0 * (t * 1.6).sin());
        item(7, 0, "activity_counts", 12.0);
    }
    out.join("\n")
}

fn with_model() -> Settings {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("KINARA_ONNXRUNTIME").map(PathBuf::from);
    let library = given.unwrap_or_else(|| root.join(".kinara/onnxruntime/libonnxruntime.so"));
    assert!(
        library.is_file(),
        "no ONNX Runtime at {}: run ./kinara test, which fetches it",
        library.display()
    );
    Settings { onnxruntime: Some(library), model: Some(root.join("models/hot_flash")), ..Settings::default() }
}

/// Sends some seconds, and has them written and rolled up.
async fn send(world: &World, seconds: std::ops::Range<u32>) {
    let request = read(items(seconds).as_bytes(), Form::JsonLines, None).unwrap();
    assert_eq!(request.refused, 0, "{:?}", request.told);
    let id: Uuid = world
        .admin
        .query_one(
            "INSERT INTO ingest_requests (tenant_id, digest, items, refused, told, payload)
             VALUES ($1, '', 1, 0, '[]', $2) RETURNING id",
            &[&TENANT, &pack(&request.batches)],
        )
        .await
        .unwrap()
        .get(0);
    take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
}

async fn look(world: &World, inference: &Inference) -> u64 {
    look_for(world, inference, Duration::MAX).await
}

async fn look_for(world: &World, inference: &Inference, turn: Duration) -> u64 {
    let metrics = Metrics::default();
    inference.look(&world.pool, &world.writer(), &metrics, TENANT, timestamp(0), turn).await.unwrap()
}

/// Producers of the events there are, with their onsets in seconds after the first reading.
async fn events(world: &World) -> Vec<(String, i64)> {
    world
        .admin
        .query(
            "SELECT data->>'producer', (extract(epoch FROM time) - $1::float8)::int8 FROM ts.events
             WHERE user_id = $2 AND event_type = 'hot_flash' ORDER BY 1",
            &[&((BOOT_US / 1_000_000) as f64), &USER],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[tokio::test]
async fn a_hot_flash_in_what_came_over_http_is_found_once_by_each_producer() {
    let world = world().await;
    let inference = Inference::open(&with_model());
    // Out of order: its end, then its beginning, then all of it again, as a clinic's program may.
    for seconds in [620..SECONDS, 0..500, 400..SECONDS, 0..SECONDS] {
        send(&world, seconds).await;
        look(&world, &inference).await;
    }
    let found = events(&world).await;
    let producers: Vec<&str> =
        found.iter().map(|(producer, _)| producer.split('/').next().unwrap()).collect();
    assert_eq!(producers, ["model:hot_flash", "rule:sternal"], "{found:?}");
    for (producer, onset) in &found {
        assert!((590..680).contains(onset), "{producer} at {onset}");
    }
    assert_eq!(world.number("SELECT count(*) FROM ts.inference_notes").await, 0);
    let jobs = "SELECT count(*) FROM jobs._private_jobs j JOIN jobs._private_tasks t ON t.id = j.task_id
                WHERE t.identifier = 'infer'";
    assert_eq!(world.number(jobs).await, 1, "one job for the clinic, and it names no wearer");
}

#[tokio::test]
async fn the_rule_looks_alone_where_there_is_no_model_and_says_where_it_can_say_nothing() {
    let world = world().await;
    let inference = Inference::open(&Settings::default());
    send(&world, 0..SECONDS).await;
    assert_eq!(look(&world, &inference).await, 1);
    assert_eq!(events(&world).await.len(), 1);
    // Noted again: the same, and nothing new.
    world
        .run("INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, bucket FROM ts.readings_hourly")
        .await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert!(world.number("SELECT count(*) FROM ts.inference_notes").await > 0);
    assert_eq!(look(&world, &inference).await, 0);
    assert_eq!(events(&world).await.len(), 1);
}

#[tokio::test]
async fn what_a_gateway_has_looked_at_is_not_looked_at_again() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..120))]).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(world.number("SELECT count(*) FROM ts.inference_notes").await, 0);
    // Of a wearer who has both, what came over HTTP alone: here, too little for anything to be said.
    send(&world, 200..230).await;
    assert!(world.number("SELECT count(*) FROM ts.inference_notes").await > 0);
    assert_eq!(
        world.text("SELECT min(cardinality(types)) FROM ts.take_inference_notes('00000000-0000-0000-0000-000000000001', 9, '-infinity', '1 minute', '1 hour')").await,
        "240"
    );
}

#[tokio::test]
async fn without_consent_nothing_is_said() {
    let world = world().await;
    send(&world, 0..SECONDS).await;
    world.run(&format!("UPDATE consents SET withdrawn_at = to_timestamp({})", BOOT_US / 1_000_000)).await;
    assert_eq!(look(&world, &Inference::open(&Settings::default())).await, 0);
    assert_eq!(events(&world).await, []);
}

#[tokio::test]
async fn a_clinic_whose_turn_is_over_leaves_the_rest_of_its_hours_for_its_next_one() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO ts.inference_notes (tenant_id, user_id, hour)
               SELECT '{TENANT}', '{USER}', date_bin('1 hour', now(), 'epoch') - make_interval(hours => h)
               FROM generate_series(1, 60) h"
        ))
        .await;
    let inference = Inference::open(&Settings::default());
    let mut left = Vec::new();
    for _ in 0..3 {
        assert_eq!(look_for(&world, &inference, Duration::ZERO).await, 0);
        left.push(world.number("SELECT count(*) FROM ts.inference_notes").await);
    }
    assert_eq!(left, [36, 12, 0]);
}
