//! Readings over HTTP.

use std::io::Write as _;
use std::sync::Arc;

use crate::common::{Answer, Cloud, call};
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use kinara_clock::SystemClock;
use kinara_cloud_api::access::Access;
use kinara_cloud_api::routes;
use kinara_ingest::{Limits, Writer, requests};
use serde_json::{Value, json};
use uuid::Uuid;

pub async fn key(cloud: &Cloud, tenant: &str) -> String {
    let args = ["api-key", "add", "--tenant", tenant, "--name", "lab", "--scope", "ingest"];
    cloud.admin(&args).await.unwrap()["key"].as_str().unwrap().to_owned()
}

pub fn reading(source: &str, seq: u32) -> Value {
    json!({ "source": source, "epoch": "00000000000000aa", "seq": seq, "time": jiff::Timestamp::now().to_string(),
        "type": "skin_temperature", "value": 97.7, "unit": "°F" })
}

const HERE: &str = "kinara:0000000000000001";
const THERE: &str = "kinara:0000000000000002";

pub async fn post(router: &Router, key: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = Request::builder().method(Method::POST).uri("/ingest").header("x-api-key", key);
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    call(router, request.body(body.into()).unwrap()).await
}

async fn ask(router: &Router, key: &str, receipt: &Value) -> Answer {
    let path = format!("/ingest/{}", receipt.as_str().unwrap());
    call(router, Request::get(path).header("x-api-key", key).body(Body::empty()).unwrap()).await
}

/// What the bridge's job does.
pub async fn written(cloud: &Cloud) {
    cloud.sql(
        "DO $$ BEGIN CREATE ROLE bridge LOGIN PASSWORD 'bridge' IN ROLE kinara_ingest;
         EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    );
    let url = cloud.postgres.url("bridge", "bridge", &cloud.database);
    let pool = kinara_store::connect(&url, "test", &kinara_store::Limits::default()).unwrap();
    let clock = Arc::new(SystemClock);
    let writer = Writer::new(pool.clone(), clock.clone(), Limits::default());
    let waiting = cloud
        .sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM ingest_requests WHERE finished_at IS NULL");
    for id in waiting.split_whitespace() {
        requests::take(&writer, &pool, clock.as_ref(), id.parse().unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn readings_are_accepted_written_once_and_their_receipt_says_so() {
    let cloud = Cloud::start().await;
    let router = routes::router(&cloud.app());
    let key = key(&cloud, "here").await;
    let body = json!([reading(HERE, 0), reading(HERE, 1), { "source": HERE, "mood": 3 }, reading(THERE, 0)]);
    let answer = post(&router, &key, &[], body.to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let receipt = answer.json();
    assert_eq!(
        (&receipt["items"], &receipt["refused"], &receipt["errors"][0]["index"]),
        (&json!(4), &json!(1), &json!(2))
    );
    assert_eq!(answer.headers["location"], format!("/ingest/{}", receipt["receipt"].as_str().unwrap()));
    assert_eq!(ask(&router, &key, &receipt["receipt"]).await.json()["status"], "accepted");
    written(&cloud).await;
    let told = ask(&router, &key, &receipt["receipt"]).await.json();
    assert_eq!((&told["status"], &told["outcome"]["stored"]), (&json!("done"), &json!(2)), "{told}");
    assert_eq!(
        told["outcome"]["aside"],
        json!([{ "source": THERE, "epoch": "00000000000000aa", "seq": 0, "reason": "no_assignment" }])
    );
    assert_eq!(cloud.sql("SELECT count(*) || ' ' || min(value) FROM ts.readings"), "2 36.5");
    // The same again, by name.
    post(&router, &key, &[], body.to_string()).await;
    written(&cloud).await;
    assert_eq!(cloud.sql("SELECT count(*) FROM ts.readings"), "2");
    assert_eq!(cloud.sql("SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL"), "1");
}

#[tokio::test]
async fn a_key_that_comes_again_gives_the_first_receipt_and_another_body_is_refused() {
    let cloud = Cloud::start().await;
    let router = routes::router(&cloud.app());
    let key = key(&cloud, "here").await;
    let now = jiff::Timestamp::now().as_millisecond();
    let body = |value: f64| {
        json!([{ "source": HERE, "time": now, "type": "heart_rate", "value": value }]).to_string()
    };
    let answer = post(&router, &key, &[], body(70.0)).await;
    assert!(answer.is_problem(400) && answer.text.contains("Idempotency-Key"), "{answer:?}");
    let named = [("idempotency-key", "7f3a")];
    let first = post(&router, &key, &named, body(70.0)).await.json();
    let again = post(&router, &key, &named, body(70.0)).await;
    assert_eq!((again.status.as_u16(), &again.json()["receipt"]), (202, &first["receipt"]));
    assert!(post(&router, &key, &named, body(71.0)).await.is_problem(422));
    // Another clinic's key of the same name is its own.
    let theirs = self::key(&cloud, "there").await;
    assert_ne!(post(&router, &theirs, &named, body(71.0)).await.json()["receipt"], first["receipt"]);
    written(&cloud).await;
    assert_eq!(cloud.sql("SELECT count(*) FROM ts.readings"), "1");
    let told = ask(&router, &key, &first["receipt"]).await.json();
    assert_eq!(told["outcome"]["stored"], 1, "{told}");
}

#[tokio::test]
async fn who_has_no_key_gets_nowhere_and_a_clinic_sees_its_own_receipts() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let (here, there) = (key(&cloud, "here").await, key(&cloud, "there").await);
    let receipt =
        post(&router, &here, &[], json!([reading(HERE, 0)]).to_string()).await.json()["receipt"].clone();
    assert_eq!(ask(&router, &here, &receipt).await.status, 200);
    assert!(ask(&router, &there, &receipt).await.is_problem(404));
    assert!(ask(&router, &here, &json!(Uuid::nil())).await.is_problem(404));
    assert!(ask(&router, &here, &json!("x")).await.is_problem(404));
    let mut guarded = 0;
    for route in routes::routes() {
        let Access::Key(scope) = route.access else { continue };
        guarded += 1;
        let path = route.path.replace("{id}", receipt.as_str().unwrap());
        let ask = async |key: Option<&str>| {
            let mut request = Request::builder().method(route.method.clone()).uri(&path);
            if let Some(key) = key {
                request = request.header("x-api-key", key);
            }
            call(&router, request.body(Body::empty()).unwrap()).await
        };
        for wrong in [None, Some("nonsense"), Some("")] {
            assert!(ask(wrong).await.is_problem(401), "{path} {wrong:?}");
        }
        // A member's token is no key.
        let token = crate::common::token(&app, "admin", "here").await;
        assert!(ask(Some(&token)).await.is_problem(401), "{path}");
        cloud.sql("UPDATE api_keys SET scopes = '{other}' WHERE tenant_id = (SELECT id FROM tenants WHERE slug = 'there')");
        let answer = ask(Some(&there)).await;
        assert!(answer.is_problem(403) && answer.text.contains(scope.as_str()), "{path}: {answer:?}");
    }
    assert_eq!(guarded, 2);
    let revoke = ["api-key", "revoke", "--tenant", "here", "--name", "lab"];
    assert_eq!(cloud.admin(&revoke).await.unwrap()["changed"], true);
    assert_eq!(cloud.admin(&revoke).await.unwrap()["changed"], false);
    assert!(ask(&router, &here, &receipt).await.is_problem(401));
    // What is kept is no key.
    assert_eq!(cloud.sql(&format!("SELECT count(*) FROM api_keys WHERE key_hash = '{here}'")), "0");
}

#[tokio::test]
async fn packed_bodies_are_unpacked_and_every_form_is_read() {
    let cloud = Cloud::start().await;
    let router = routes::router(&cloud.app());
    let key = key(&cloud, "here").await;
    let lines = format!("{}\n{}\n", reading(HERE, 0), reading(HERE, 1));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(lines.as_bytes()).unwrap();
    let ndjson = ("content-type", "application/x-ndjson");
    let answer = post(&router, &key, &[ndjson, ("content-encoding", "gzip")], gzip.finish().unwrap()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["items"]), (202, &json!(2)), "{answer:?}");
    let zstd =
        zstd::bulk::compress(json!({ "readings": [reading(HERE, 2)] }).to_string().as_bytes(), 3).unwrap();
    let answer = post(&router, &key, &[("content-encoding", "zstd")], zstd).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    // A batch in Protobuf, as gateways seal it.
    let line = reading(HERE, 3).to_string();
    let batch =
        kinara_ingest::items::read(line.as_bytes(), kinara_ingest::items::Form::JsonLines, None).unwrap();
    let bytes = prost::Message::encode_to_vec(&batch.batches[0]);
    let answer = post(&router, &key, &[("content-type", "application/x-protobuf")], bytes).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    written(&cloud).await;
    assert_eq!(cloud.sql("SELECT string_agg(seq::text, ' ' ORDER BY seq) FROM ts.readings"), "0 1 2 3");

    assert!(post(&router, &key, &[("content-encoding", "br")], "x").await.is_problem(415));
    assert!(post(&router, &key, &[("content-type", "text/csv")], "x").await.is_problem(415));
    assert!(post(&router, &key, &[("content-encoding", "gzip")], "no gzip").await.is_problem(400));
    assert!(post(&router, &key, &[], "{").await.is_problem(400));
    assert!(post(&router, &key, &[], "[{}]").await.is_problem(422));
}

#[tokio::test]
async fn what_is_too_large_or_too_much_is_refused_before_it_is_kept() {
    let cloud = Cloud::start().await;
    let app = cloud.app_with("[ingest]\nwaiting_requests = 2", Arc::new(SystemClock));
    let router = routes::router(&app);
    let (here, there) = (key(&cloud, "here").await, key(&cloud, "there").await);
    let large = vec![b' '; 5_000_001];
    assert!(post(&router, &here, &[], large.clone()).await.is_problem(413));
    // A few kilobytes that become many megabytes.
    let bomb = zstd::bulk::compress(&vec![b' '; 200_000_000], 3).unwrap();
    assert!(bomb.len() < 50_000);
    assert!(post(&router, &here, &[("content-encoding", "zstd")], bomb).await.is_problem(413));
    for seq in 0..2 {
        assert_eq!(post(&router, &here, &[], json!([reading(HERE, seq)]).to_string()).await.status, 202);
    }
    let answer = post(&router, &here, &[], json!([reading(HERE, 2)]).to_string()).await;
    assert!(answer.is_problem(429) && answer.headers.contains_key("retry-after"), "{answer:?}");
    // A clinic that floods delays itself alone.
    assert_eq!(post(&router, &there, &[], json!([reading(THERE, 0)]).to_string()).await.status, 202);
    written(&cloud).await;
    assert_eq!(post(&router, &here, &[], json!([reading(HERE, 2)]).to_string()).await.status, 202);
}
