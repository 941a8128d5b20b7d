//! One who asks for much keeps nobody else waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Method;
use kinara_clock::SystemClock;
use kinara_cloud_api::{Service, routes};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::{Cloud, PASSWORD, call, get, log_in, now, request, token};
use crate::ingest::{key, post, reading, written};

#[tokio::test]
async fn a_viewer_who_asks_for_much_at_once_keeps_no_other_clinic_and_no_colleague_waiting() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let (viewer, colleague, other) = (
        token(&app, "viewer", "here").await,
        token(&app, "clinician", "here").await,
        token(&app, "viewer", "there").await,
    );
    // Whoever asks for this clinic's gaps waits for the lock.
    let lock = {
        let cloud = cloud.admin_url();
        let (client, connection) = tokio_postgres::connect(&cloud, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN; LOCK TABLE gaps IN ACCESS EXCLUSIVE MODE").await.unwrap();
        client
    };
    let many: Vec<_> = (0..40)
        .map(|_| {
            let (router, viewer) = (router.clone(), viewer.clone());
            tokio::spawn(async move { get(&router, "/api/v1/gaps", &viewer).await.status.as_u16() })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (who, token) in [("another clinic", &other), ("a colleague", &colleague)] {
        assert_eq!(get(&router, "/api/v1/users", token).await.status, 200, "{who}");
    }
    lock.batch_execute("COMMIT").await.unwrap();
    let mut answers = Vec::new();
    for one in many {
        answers.push(one.await.unwrap());
    }
    assert!(answers.iter().all(|status| [200, 429].contains(status)), "{answers:?}");
    assert!(answers.contains(&200));
}

#[tokio::test]
async fn one_address_leaves_connections_to_the_others() {
    let cloud = Cloud::start().await;
    let config = cloud.config("[limits]\nconnections_per_address = 4");
    let service = Service::start(config, Arc::new(SystemClock)).await.unwrap();
    let mut half_open = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n").await;
        half_open.push(stream);
    }
    let mut refused = 0;
    for stream in &mut half_open {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
        refused += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(refused, 16, "four are held open, the others are closed at once");
    drop(half_open);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    service.stop().await;
}

#[tokio::test]
async fn of_very_many_readings_the_kept_minutes_are_drawn() {
    let cloud = Cloud::start().await;
    let app = cloud.app_with("[limits]\nraw_readings = 100", Arc::new(SystemClock));
    let router = routes::router(&app);
    let viewer = token(&app, "viewer", "here").await;
    let from = jiff::Timestamp::from_second(now().as_second() / 60 * 60 - 3_600).unwrap();
    let values: Vec<(i64, f64)> = (0..600).map(|n| (n, 60.0 + (n % 10) as f64)).collect();
    cloud.readings(&cloud.here, 1, from, &values);
    cloud.sql(
        "INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings",
    );
    cloud.sql("SELECT ts.roll_up(1000, '-infinity')");
    let ask = async |minutes: i64| {
        let to = from + jiff::SignedDuration::from_mins(minutes);
        let path = format!(
            "/api/v1/readings?user_id={}&reading_type=heart_rate&from={from}&to={to}",
            cloud.here.wearer
        );
        get(&router, &path, &viewer).await.json()
    };
    let few = ask(1).await;
    assert_eq!((&few["resolution"], few["points"].as_array().unwrap().len()), (&json!("raw"), 60));
    let many = ask(10).await;
    assert_eq!((&many["resolution"], many["points"].as_array().unwrap().len()), (&json!("kept"), 10));
    assert_eq!((&many["points"][0][2], &many["points"][0][3]), (&json!(60.0), &json!(69.0)));
}

#[tokio::test]
async fn a_request_that_was_accepted_is_accepted_again_however_much_waits() {
    let cloud = Cloud::start().await;
    let app = cloud.app_with("[ingest]\nwaiting_requests = 1", Arc::new(SystemClock));
    let router = routes::router(&app);
    let key = key(&cloud, "here").await;
    let now = now().as_millisecond();
    let body =
        json!([{ "source": "kinara:0000000000000001", "time": now, "type": "heart_rate", "value": 70 }]);
    let named = [("idempotency-key", "once")];
    let first = post(&router, &key, &named, body.to_string()).await;
    assert_eq!(first.status, 202);
    let other = json!([reading("kinara:0000000000000001", 1)]).to_string();
    assert!(post(&router, &key, &[], other).await.is_problem(429), "the clinic's limit is reached");
    let again = post(&router, &key, &named, body.to_string()).await;
    assert_eq!((again.status.as_u16(), &again.json()["receipt"]), (202, &first.json()["receipt"]));
    written(&cloud).await;
    assert_eq!(cloud.sql("SELECT count(*) FROM ts.readings"), "1");
}

#[tokio::test]
async fn however_many_unknown_keys_are_tried_a_member_who_is_in_is_not_kept_out() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let member = token(&app, "viewer", "here").await;
    // Whoever asks for a key waits for the lock.
    let (lock, connection) =
        tokio_postgres::connect(&cloud.admin_url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    lock.batch_execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for n in 0..40 {
        let router = router.clone();
        tokio::spawn(async move {
            let mut knock = request(Method::GET, "/ingest/00000000-0000-0000-0000-000000000000", None, None);
            knock.headers_mut().insert("x-api-key", format!("unknown{n}").parse().unwrap());
            call(&router, knock).await
        });
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%api_key_lookup%'";
    let deadline = Instant::now() + Duration::from_secs(20);
    while cloud.sql(waiting) != "4" {
        assert!(Instant::now() < deadline, "nobody knocks");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(get(&router, "/api/v1/users", &member).await.status, 200);
}

#[tokio::test]
async fn a_member_whose_sessions_wait_for_each_other_keeps_nobody_from_logging_in() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let cookie = log_in(&router, "viewer@here.example", PASSWORD).await.cookie().unwrap();
    let (lock, connection) =
        tokio_postgres::connect(&cloud.admin_url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    lock.batch_execute("BEGIN; SELECT FROM members WHERE email = 'viewer@here.example' FOR UPDATE")
        .await
        .unwrap();
    for _ in 0..10 {
        let (router, cookie) = (router.clone(), cookie.clone());
        tokio::spawn(async move {
            let mut again = request(Method::POST, "/api/v1/auth/refresh", None, None);
            again.headers_mut().insert("cookie", cookie.parse().unwrap());
            call(&router, again).await
        });
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM members%'";
    let deadline = Instant::now() + Duration::from_secs(20);
    while cloud.sql(waiting).parse::<u32>().unwrap() < 3 {
        assert!(Instant::now() < deadline, "nobody waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(log_in(&router, "viewer@there.example", PASSWORD).await.status, 200);
    lock.batch_execute("COMMIT").await.unwrap();
}
