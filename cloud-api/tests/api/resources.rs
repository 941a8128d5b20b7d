//! What is shown, and how it is refused.

use crate::common::{Cloud, call, get, now, request, token};
use axum::body::Body;
use axum::http::{Method, Request, header};
use kinara_cloud_api::routes;
use serde_json::{Value, json};

#[tokio::test]
async fn the_newest_reading_is_one_that_a_body_can_have_and_not_of_tomorrow_however_long_ago() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let token = token(&app, "viewer", "here").await;
    let ago = |minutes| now() - jiff::SignedDuration::from_mins(minutes);
    cloud.readings(&cloud.here, 1, ago(180), &[(0, 61.0), (1, 62.0)]);
    cloud.sql(
        "INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings;
         SELECT ts.roll_up(1000, '-infinity')",
    );
    let newest = async || {
        let path = format!("/api/v1/readings/latest?user_id={}", cloud.here.wearer);
        let items = get(&router, &path, &token).await.json()["items"].clone();
        assert_eq!(items.as_array().unwrap().len(), 1, "{items}");
        (items[0]["value"].as_f64().unwrap(), items[0]["quality"].as_f64().unwrap())
    };
    // An impossible value since, and one of tomorrow.
    cloud.readings(&cloud.here, 1, ago(10), &[(0, 900.0)]);
    cloud.sql("UPDATE ts.readings SET quality = 0 WHERE value = 900");
    cloud.readings(&cloud.here, 1, ago(-23 * 60), &[(0, 70.0)]);
    assert_eq!(newest().await, (62.0, 1.0));
    // More impossible ones than are looked through.
    let many: Vec<(i64, f64)> = (0..2_000).map(|second| (second, 900.0)).collect();
    cloud.readings(&cloud.here, 1, ago(60), &many);
    cloud.sql("UPDATE ts.readings SET quality = 0 WHERE value = 900");
    assert_eq!(newest().await, (62.0, 1.0));
    cloud.readings(&cloud.here, 1, ago(1), &[(0, 64.0)]);
    cloud.sql("UPDATE ts.readings SET quality = 0.5 WHERE value = 64");
    assert_eq!(newest().await, (64.0, 0.5));
}

#[tokio::test]
async fn readings_are_drawn_down_to_as_many_points_as_asked_for_with_their_extremes_from_the_index() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let token = token(&app, "viewer", "here").await;
    let from: jiff::Timestamp = now() - jiff::SignedDuration::from_hours(3);
    let from = jiff::Timestamp::from_second(from.as_second()).unwrap();
    let mut values: Vec<(i64, f64)> = (0..7200).map(|n| (n, 60.0 + (n % 10) as f64)).collect();
    values[3333].1 = 180.0;
    cloud.readings(&cloud.here, 1, from, &values);
    cloud.readings(&cloud.there, 1, from, &[(0, 1.0)]);
    cloud.sql("UPDATE ts.readings SET quality = 0, value = 900 WHERE seq = 5");
    cloud.sql("ANALYZE");
    let user = cloud.here.wearer;
    let ask = |from: String, to: i64, points: u32| {
        format!("/api/v1/readings?user_id={user}&reading_type=heart_rate&from={from}&to={to}&points={points}")
    };
    let start = from.as_millisecond();
    let answer = get(&router, &ask(start.to_string(), start + 7_200_000, 500), &token).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let series = answer.json();
    assert_eq!((&series["reading_type"], &series["unit"]), (&json!("heart_rate"), &json!("bpm")));
    let points: Vec<(i64, f64, f64, f64)> = serde_json::from_value(series["points"].clone()).unwrap();
    assert!(points.len() <= 500 && points.len() > 450, "{}", points.len());
    assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(points.iter().all(|(_, mean, low, high)| low <= mean && mean <= high));
    let highest = points.iter().map(|point| point.3).fold(0.0, f64::max);
    assert!(
        (highest - 180.0).abs() < 1e-9,
        "the one peak is still there, the impossible value is not: {highest}"
    );

    // Few enough to show each; RFC 3339 is understood as well.
    let answer = get(&router, &ask(from.to_string(), start + 100_000, 2000), &token).await;
    let points: Vec<(i64, f64, f64, f64)> = serde_json::from_value(answer.json()["points"].clone()).unwrap();
    assert_eq!(points.len(), 99);
    assert_eq!(points[1], (start + 1000, 61.0, 61.0, 61.0));

    // The same from what is kept of them; of another clinic's wearer nothing.
    cloud.sql(
        "INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings",
    );
    cloud.sql("SELECT ts.roll_up(1000, '-infinity')");
    for (resolution, least, most) in [("minute", 120, 121), ("15min", 8, 9), ("hour", 2, 3), ("day", 1, 2)] {
        let path = ask((start - 86_400_000).to_string(), start + 8_000_000, 2000);
        let answer = get(&router, &format!("{path}&resolution={resolution}"), &token).await;
        let points: Vec<(i64, f64, f64, f64)> =
            serde_json::from_value(answer.json()["points"].clone()).unwrap();
        assert!((least..=most).contains(&points.len()), "{resolution}: {points:?}");
        let highest = points.iter().map(|point| point.3).fold(0.0, f64::max);
        assert!((highest - 180.0).abs() < 1e-9, "{resolution}: {highest}");
        let foreign = path.replace(&user.to_string(), &cloud.there.wearer.to_string());
        assert_eq!(get(&router, &format!("{foreign}&resolution={resolution}"), &token).await.status, 404);
    }
    let path = ask((start - 90 * 86_400_000).to_string(), start, 100);
    assert_eq!(get(&router, &format!("{path}&resolution=raw"), &token).await.status, 422);
    assert_eq!(get(&router, &format!("{path}&resolution=hour"), &token).await.status, 200);
    assert_eq!(get(&router, &format!("{path}&resolution=fortnight"), &token).await.status, 422);

    // One page opens with an answer from the index, not from reading everything.
    let (mut client, connection) =
        tokio_postgres::connect(&cloud.postgres.url("api", "api", &cloud.database), tokio_postgres::NoTls)
            .await
            .unwrap();
    tokio::spawn(connection);
    let transaction = client.transaction().await.unwrap();
    transaction
        .batch_execute(&format!("SELECT set_config('kinara.tenant', '{}', true)", cloud.here.id))
        .await
        .unwrap();
    for question in [
        format!(
            "SELECT min(time), avg(value) FROM readings WHERE user_id = '{user}' AND reading_type = 'heart_rate'
               AND time >= '{from}' AND time < '{}' AND quality > 0
             GROUP BY date_bin('10 s', time, '{from}')",
            from + jiff::SignedDuration::from_secs(60)
        ),
        format!("SELECT * FROM latest_readings WHERE user_id = '{user}'"),
    ] {
        let plan = transaction.query(&format!("EXPLAIN {question}"), &[]).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("Index") && plan.contains("user_id"), "{plan}");
        assert!(!plan.contains("Seq Scan on readings"), "{plan}");
    }

    let latest = get(&router, &format!("/api/v1/readings/latest?user_id={user}"), &token).await.json();
    let latest = &latest["items"];
    assert_eq!(latest.as_array().unwrap().len(), 1);
    assert_eq!(latest[0]["key"], "0000000000000007:7199:0");
    assert_eq!(latest[0]["time_ms"], start + 7_199_000);
    assert_eq!(latest[0]["device_id"], json!(cloud.here.device));

    let ask = |rest: &str| format!("/api/v1/readings?user_id={user}&{rest}");
    for (path, status) in [
        (ask("reading_type=mood"), 404),
        (ask("reading_type=eda&from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z"), 422),
        (ask("reading_type=eda&from=2026-01-01T00:00:00Z&to=2026-03-01T00:00:00Z"), 422),
        (ask("reading_type=eda&points=0"), 422),
        (ask("reading_type=eda&points=99999999"), 422),
        (ask("reading_type=eda&from=yesterday"), 422),
        ("/api/v1/readings?reading_type=eda".into(), 422),
        ("/api/v1/readings?user_id=7&reading_type=eda".into(), 422),
    ] {
        let answer = get(&router, &path, &token).await;
        assert!(answer.is_problem(status), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn an_event_is_acknowledged_once_by_whom_the_audit_log_says() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let clinician = token(&app, "clinician", "here").await;
    let time = now();
    cloud.event(&cloud.here, time);
    cloud.event(&cloud.there, time);
    let listed = get(&router, "/api/v1/events", &clinician).await.json();
    let event = &listed["items"][0];
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(event["user_id"], json!(cloud.here.wearer));
    assert_eq!(event["acknowledged_at"], Value::Null);
    let shown = event["time"].as_str().unwrap();
    assert_eq!(shown.len(), "2026-01-01T00:00:00.000Z".len(), "milliseconds, though microseconds are stored");
    let acknowledge = |shown: &str| {
        let body = json!({ "time": shown, "user_id": cloud.here.wearer, "event_type": "hot_flash" });
        request(Method::POST, "/api/v1/events/acknowledge", Some(&clinician), Some(body))
    };
    let first = call(&router, acknowledge(shown)).await.json();
    let second = call(&router, acknowledge(shown)).await.json();
    assert!(first["acknowledged_at"].is_string());
    assert_eq!(first, second);
    assert!(call(&router, acknowledge("2026-01-01T00:00:00Z")).await.is_problem(404));
    let audit = cloud.sql(
        "SELECT a.tenant_id = m.tenant_id, count(*) FROM audit_log a JOIN members m ON a.actor = 'member:' || m.id
         WHERE a.action = 'event.acknowledge' AND m.email = 'clinician@here.example' GROUP BY 1",
    );
    assert_eq!(audit, "t|1");
    // What she had and when is in the detail, which goes when she is erased.
    let user = cloud.here.wearer;
    let told = cloud.sql(
        "SELECT target, detail ->> 'user_id', detail ->> 'event_type', detail ->> 'time' FROM audit_log
         WHERE action = 'event.acknowledge'",
    );
    assert_eq!(told, format!("event:{user}|{user}|hot_flash|{shown}"));
    assert_eq!(cloud.sql("SELECT count(*) FROM ts.events WHERE acknowledged_at IS NOT NULL"), "1");
}

#[tokio::test]
async fn a_rule_is_checked_made_and_ended_and_its_alert_acknowledged_once() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let clinician = token(&app, "clinician", "here").await;
    let good = json!({ "name": "Fast heart", "severity": "warning", "reading_type": "heart_rate", "above": 120.0,
        "minutes": 5 });
    let make =
        |rule: &Value| request(Method::POST, "/api/v1/alert-rules", Some(&clinician), Some(rule.clone()));
    for (field, value) in [
        ("name", json!(" ")),
        ("name", json!("x".repeat(101))),
        ("severity", json!("grave")),
        ("reading_type", json!("mood")),
        ("reading_type", Value::Null),
        ("below", json!(40.0)),
        ("above", Value::Null),
        ("minutes", json!(0)),
        ("minutes", json!(721)),
        ("minutes", Value::Null),
        ("event_type", json!("hot_flash")),
        ("least_confidence", json!(0.5)),
        ("colour", json!("red")),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let answer = call(&router, make(&bad)).await;
        assert!(answer.is_problem(422), "{bad}: {answer:?}");
    }
    let rule = call(&router, make(&good)).await.json();
    assert_eq!(
        (&rule["reading_type"], &rule["above"], &rule["event_type"]),
        (&json!("heart_rate"), &json!(120.0), &Value::Null)
    );
    let rules = get(&router, "/api/v1/alert-rules", &clinician).await.json();
    assert_eq!(rules["items"].as_array().unwrap(), std::slice::from_ref(&rule));

    // Six minutes that are fast: the database passes them on to the rule.
    let from = now() + jiff::SignedDuration::from_mins(2);
    let values: Vec<(i64, f64)> = (0..360).map(|n| (n, 130.0)).collect();
    cloud.readings(&cloud.here, 1, from, &values);
    cloud.sql(
        "INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings",
    );
    cloud.sql("SELECT ts.roll_up(1000, '-infinity')");
    assert_eq!(
        cloud.sql("SELECT count(*) > 0 FROM ts.alert_notes n JOIN alert_rules r USING (tenant_id, type)"),
        "t"
    );
    let user = cloud.here.wearer;
    cloud.sql(&format!(
        "SELECT ts.put_alert(NULL, '{}', '{user}', '{from}', '{}')",
        rule["id"].as_str().unwrap(),
        from + jiff::SignedDuration::from_mins(6)
    ));
    let listed = get(&router, "/api/v1/alerts?open=true", &clinician).await.json();
    let alert = &listed["items"][0];
    assert_eq!((&alert["title"], &alert["user_id"]), (&json!("Fast heart"), &json!(user)));
    assert_eq!(
        alert["data"],
        json!({ "reading_type": "heart_rate", "unit": "bpm", "above": 120, "minutes": 5 })
    );
    let path = format!("/api/v1/alerts/{}/acknowledge", alert["id"].as_str().unwrap());
    let first = call(&router, request(Method::POST, &path, Some(&clinician), None)).await.json();
    let second = call(&router, request(Method::POST, &path, Some(&clinician), None)).await.json();
    assert!(first["acknowledged_at"].is_string());
    assert_eq!(first, second);
    assert_eq!(get(&router, "/api/v1/alerts?open=true", &clinician).await.json()["items"], json!([]));
    let foreign = get(&router, &format!("/api/v1/alerts?user_id={}", cloud.there.wearer), &clinician).await;
    assert!(foreign.is_problem(404));

    let path = format!("/api/v1/alert-rules/{}", rule["id"].as_str().unwrap());
    let ended = call(&router, request(Method::DELETE, &path, Some(&clinician), None)).await.json();
    assert!(ended["ended_at"].is_string());
    assert_eq!(call(&router, request(Method::DELETE, &path, Some(&clinician), None)).await.json(), ended);
    assert_eq!(get(&router, "/api/v1/alert-rules", &clinician).await.json()["items"], json!([]));
    // What it raised stays.
    let kept = get(&router, &format!("/api/v1/alerts?user_id={user}"), &clinician).await.json();
    assert_eq!(kept["items"][0]["rule_id"], rule["id"]);
    assert_eq!(
        cloud.sql("SELECT string_agg(action, ' ' ORDER BY at) FROM audit_log WHERE action LIKE 'alert%'"),
        "alert_rule.add alert.acknowledge alert_rule.end"
    );
}

#[tokio::test]
async fn gateways_devices_and_gaps_are_shown_as_they_were_last_reported() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let token = token(&app, "viewer", "here").await;
    let gateway = cloud.here.gateway;
    let none = get(&router, "/api/v1/gateways", &token).await.json();
    assert_eq!(none["items"][0]["buffer"], Value::Null);
    assert_eq!(none["items"][0]["online"], false);
    cloud.sql(&format!(
        "UPDATE gateways SET last_seen_at = '2026-11-23T13:45:00.123456Z', state = '{{\"online\": true,
           \"software\": \"0.1.0\", \"buffered_frames\": 7, \"buffered_batches\": 2, \"buffered_bytes\": 4096,
           \"oldest_utc_us\": 1795441500123000, \"clock_source\": \"kernel\", \"clock_uncertainty_us\": 1500}}'
         WHERE id = '{gateway}'"
    ));
    let known = get(&router, "/api/v1/gateways", &token).await.json();
    assert_eq!(
        known["items"][0],
        json!({ "id": gateway, "name": "A", "last_seen_at": "2026-11-23T13:45:00.123Z", "online": true,
            "buffer": { "frames": 7, "batches": 2, "bytes": 4096, "oldest_at": "2026-11-23T13:45:00.123Z" },
            "clock": { "source": "kernel", "uncertainty_ms": 1.5 }, "version": "0.1.0", "level": null, "notes": [],
            "adapters": [] })
    );
    cloud.sql(&format!(
        "UPDATE devices SET battery_percent = 81, worn = true, last_seen_at = '2026-11-23T13:45:00Z',
           link = '{{\"gateway_id\": \"{gateway}\", \"connected\": true, \"rssi_dbm\": -60, \"buffered_frames\": 3}}'
         WHERE id = '{}'",
        cloud.here.device
    ));
    let device = get(&router, "/api/v1/devices", &token).await.json()["items"][0].clone();
    assert_eq!((&device["battery_percent"], &device["worn"]), (&json!(81), &json!(true)));
    assert_eq!((&device["link"]["rssi_dbm"], &device["link"]["gateway_id"]), (&json!(-60), &json!(gateway)));
    assert_eq!(device["hardware_id"], "kinara:0000000000000001");

    let time = now();
    cloud.sql(&format!(
        "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time)
         SELECT id, 1, '{{[3,5)}}', 'overflow', timestamptz '{time}' - interval '1 minute', '{time}' FROM hardware"
    ));
    let gaps = get(&router, "/api/v1/gaps", &token).await.json();
    assert_eq!(gaps["items"].as_array().unwrap().len(), 1, "{gaps}");
    let gap = &gaps["items"][0];
    assert_eq!((&gap["reason"], &gap["frames"]), (&json!("overflow"), &json!(2)));
    assert_eq!(gap["user_id"], json!(cloud.here.wearer));
}

#[tokio::test]
async fn every_refusal_is_a_problem_and_every_answer_is_guarded_by_headers() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let token = token(&app, "clinician", "here").await;
    let post = |kind: &str, body: String| {
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/events/acknowledge")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .unwrap()
    };
    let plain = |method, path: &str| request(method, path, None, None);
    for (request, status) in [
        (plain(Method::GET, "/api/v1/nothing"), 404),
        (plain(Method::GET, "/api"), 404),
        (plain(Method::GET, "/assets/none.js"), 404),
        (plain(Method::DELETE, "/api/v1/users"), 405),
        (plain(Method::POST, "/"), 405),
        (plain(Method::GET, "/api/v1/live"), 400),
        (plain(Method::GET, "/metrics"), 403),
        (request(Method::GET, "/api/v1/users/7", Some(&token), None), 404),
        (post("text/plain", "{}".into()), 415),
        (post("application/json", "{".into()), 400),
        (post("application/json", "{}".into()), 422),
        (post("application/json", format!("{{\"time\":\"{}\"}}", "x".repeat(70_000))), 413),
    ] {
        let asked = format!("{} {}", request.method(), request.uri());
        let answer = call(&router, request).await;
        assert!(answer.is_problem(status), "{asked}: {answer:?}");
        assert_eq!(answer.headers.contains_key(header::ALLOW), status == 405, "{asked}: {answer:?}");
        assert_eq!(answer.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    }
    let page = call(&router, plain(Method::GET, "/wearers/7")).await;
    assert_eq!(page.status, 200, "the dashboard's own addresses get the page");
    assert!(page.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    assert_eq!(page.headers[header::CACHE_CONTROL], "no-cache");
    let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"));
    let mut again = plain(Method::GET, "/");
    again.headers_mut().insert(header::IF_NONE_MATCH, page.headers[header::ETAG].clone());
    let again = call(&router, again).await;
    assert_eq!((again.status.as_u16(), again.text.len()), (304, 0));
    let described = call(&router, plain(Method::GET, "/openapi.json")).await.json();
    assert!(described["paths"]["/api/v1/readings"]["get"].is_object());
}

#[tokio::test]
async fn every_second_of_a_period_is_accounted_for() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let token = token(&app, "viewer", "here").await;
    let from = jiff::Timestamp::from_second(now().as_second() - 600).unwrap();
    let values: Vec<(i64, f64)> = (0..60).map(|n| (n, 70.0)).collect();
    cloud.readings(&cloud.here, 1, from, &values);
    let at = |seconds: i64| (from + jiff::SignedDuration::from_secs(seconds)).to_string();
    cloud.sql(&format!(
        "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time)
           SELECT h.id, 1, '{{[60,70)}}', 'overflow', '{}', '{}' FROM hardware h WHERE hardware_id = 'kinara:0000000000000001';
         INSERT INTO wear SELECT h.id, 1, t::timestamptz, w FROM hardware h,
           (VALUES ('{}', false), ('{}', true)) v(t, w) WHERE hardware_id = 'kinara:0000000000000001'",
        at(60),
        at(80),
        at(75),
        at(90)
    ));
    let ask = |seconds: i64| {
        let (user, to) = (cloud.here.wearer, at(seconds));
        format!("/api/v1/coverage?user_id={user}&reading_type=heart_rate&from={}&to={to}", at(0))
    };
    let told = get(&router, &ask(100), &token).await.json();
    let start = from.as_millisecond();
    let runs: Vec<(i64, &str)> = told["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| ((run["to_ms"].as_i64().unwrap() - start) / 1_000, run["state"].as_str().unwrap()))
        .collect();
    assert_eq!(runs, [(60, "received"), (75, "lost"), (90, "worn_off"), (100, "out_of_range")]);
    assert_eq!((&told["received"], &told["runs"][1]["reason"]), (&json!(0.6), &json!("overflow")));
    assert!(get(&router, &ask(90_000), &token).await.is_problem(422));
}

#[tokio::test]
async fn a_wearable_whose_interval_changed_at_noon_has_missed_nothing_before_and_after_and_in_between() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let token = token(&app, "viewer", "here").await;
    // Each second for ten minutes, each two minutes for ten, and each second again.
    let from = jiff::Timestamp::from_second(now().as_second() - 3_600).unwrap();
    let seconds: Vec<i64> = (1..=600).chain((720..=1_200).step_by(120)).chain(1_201..1_800).collect();
    let values: Vec<(i64, f64)> = seconds.iter().map(|second| (*second, 70.0)).collect();
    cloud.readings(&cloud.here, 1, from, &values);
    let at = |second: i64| from + jiff::SignedDuration::from_secs(second);
    let coverage = async |first: i64, last: i64| {
        let (user, from, to) = (cloud.here.wearer, at(first), at(last));
        let path = format!("/api/v1/coverage?user_id={user}&reading_type=heart_rate&from={from}&to={to}");
        get(&router, &path, &token).await.json()
    };
    let unknown = coverage(600, 1_200).await;
    assert!(unknown["received"].as_f64().unwrap() < 0.02, "{unknown}");

    cloud.sql(&format!(
        "INSERT INTO device_intervals SELECT h.id, 1, v.at::timestamptz, v.every FROM hardware h,
           (VALUES ('{}', 120000), ('{}', 1000)) v(at, every) WHERE hardware_id = 'kinara:0000000000000001'",
        at(600),
        at(1_200)
    ));
    for (first, last, interval_s) in [(1, 599, 1), (600, 1_199, 120), (1_201, 1_799, 1), (1, 1_799, 1)] {
        let told = coverage(first, last).await;
        assert_eq!(
            (&told["received"], &told["interval_s"]),
            (&json!(1.0), &json!(interval_s)),
            "{first}-{last}: {told}"
        );
    }
    // Half of them were not taken: what is missing is missing at the new interval too.
    cloud.sql(&format!("DELETE FROM ts.readings WHERE time IN ('{}', '{}')", at(840), at(960)));
    let told = coverage(600, 1_200).await;
    assert_eq!(told["runs"].as_array().unwrap().len(), 3, "{told}");
    assert!((told["received"].as_f64().unwrap() - 0.6).abs() < 0.01, "{told}");
}
