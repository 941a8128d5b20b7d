//! What people and programs enter: the same at every door, and refused in words.

use axum::extract::ConnectInfo;
use axum::http::{Method, header};
use kinara_cloud_api::routes;
use serde_json::{Value, json};

use crate::common::{Cloud, call, get, id, request, token};
use crate::ingest::{key, post, reading, written};

#[tokio::test]
async fn a_sensor_is_one_device_however_its_address_is_typed() {
    let cloud = Cloud::start().await;
    let router = routes::router(&cloud.app());
    let assign = async |hardware: &str, wearer: &str| {
        let args = ["assign", "--tenant", "here", "--hardware", hardware, "--wearer", wearer, "--from"];
        cloud.admin(&[&args[..], &["2026-01-01T00:00:00Z"]].concat()).await
    };
    let add = ["wearer", "add", "--tenant", "here", "--external-id", "w2", "--name", "Two"];
    cloud.admin(&add).await.unwrap();
    let first = assign("bt:c0:ff:ee:00:00:aa", "w1").await.unwrap();
    let again = assign("bt:C0:FF:EE:00:00:AA", "w1").await.unwrap();
    assert_eq!((id(&first), &again["changed"]), (id(&again), &json!(false)));
    assert!(assign("bt:C0:ff:EE:00:00:AA", "w2").await.unwrap_err().contains("somebody's"));
    for wrong in ["bt:hello world", "bt:C0-FF-EE-00-00-AA", "bt:", "kinara:1"] {
        assert!(assign(wrong, "w1").await.unwrap_err().contains("AA:BB:CC:DD:EE:FF"), "{wrong}");
    }
    let key = key(&cloud, "here").await;
    let body = json!([reading("bt:C0:FF:EE:00:00:AA", 0), reading("bt:c0:ff:ee:00:00:aa", 1)]);
    assert_eq!(post(&router, &key, &[], body.to_string()).await.status, 202);
    // As gateways seal it, but in small letters.
    let line = reading("bt:c0:ff:ee:00:00:aa", 2).to_string();
    let form = kinara_ingest::items::Form::JsonLines;
    let mut batch = kinara_ingest::items::read(line.as_bytes(), form, None).unwrap().batches.remove(0);
    batch.devices[0].hardware_id = "bt:c0:ff:ee:00:00:aa".to_owned();
    let bytes = prost::Message::encode_to_vec(&batch);
    let sent = post(&router, &key, &[("content-type", "application/x-protobuf")], bytes).await;
    assert_eq!(sent.status, 202, "{sent:?}");
    written(&cloud).await;
    assert_eq!(cloud.sql("SELECT count(*) FROM ts.readings"), "3");
    assert_eq!(cloud.sql("SELECT count(*) FROM quarantine"), "0");
}

#[tokio::test]
async fn a_wearers_name_and_number_are_the_same_by_command_and_by_api() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let add = async |number: &str, name: &str| {
        cloud.admin(&["wearer", "add", "--tenant", "here", "--external-id", number, "--name", name]).await
    };
    for (number, name) in [
        ("", "x"),
        ("  ", "x"),
        ("\u{200b}", "x"),
        ("E1", ""),
        ("E1", " "),
        ("E1", "a\nb"),
        ("E1", "\u{feff}"),
    ] {
        add(number, name).await.unwrap_err();
    }
    let long = "x".repeat(256);
    assert!(add("E1", &long).await.unwrap_err().contains("256 characters"));
    add("E1", &long[..255]).await.unwrap();
    let made = add("V12", "Asha").await.unwrap();
    for same in [" V12", "V12\u{200b}", "V१२"] {
        assert_eq!(id(&add(same, "Asha").await.unwrap()), id(&made), "{same}");
    }

    let router = routes::router(&app);
    let clinician = token(&app, "clinician", "here").await;
    cloud.sql(&format!(
        "INSERT INTO users (id, tenant_id, display_name, provisional) VALUES ('{}', '{}', 'New', true)",
        uuid::Uuid::from_u128(7),
        cloud.here.id
    ));
    let path = format!("/api/v1/users/{}/confirm", uuid::Uuid::from_u128(7));
    let confirm =
        async |body: Value| call(&router, request(Method::POST, &path, Some(&clinician), Some(body))).await;
    assert!(confirm(json!({ "external_id": " V१२" })).await.is_problem(409));
    assert!(confirm(json!({ "display_name": "a\u{1b}b" })).await.is_problem(422));
    assert!(confirm(json!({ "external_id": long })).await.is_problem(422));
    let user = confirm(json!({ "display_name": " Asha  Rao ", "external_id": "V १३" })).await.json();
    assert_eq!((&user["display_name"], &user["external_id"]), (&json!("Asha Rao"), &json!("V 13")));
}

#[tokio::test]
async fn a_consents_version_and_a_members_address_are_the_same_at_every_door() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let consents = async |version: &str| {
        let wearer = ["wearer", "add", "--tenant", "here", "--external-id", "w1", "--name", "Wearer One"];
        let made = cloud.admin(&[&wearer[..], &["--consent-version", version]].concat()).await?;
        Ok::<_, String>(made["consent_id"].clone())
    };
    for wrong in ["", " ", "\u{200b}", "a\nb", "a\u{1b}[31mb", "x".repeat(51).as_str()] {
        consents(wrong).await.unwrap_err();
    }
    let first = consents("2026-1").await.unwrap();
    for same in [" 2026-1", "2026-1\u{200b}", "२०२६-1"] {
        assert_eq!(consents(same).await.unwrap(), first, "{same:?}");
    }
    let clinician = token(&app, "admin", "here").await;
    let text = async |version: &str| {
        let body = json!({ "version": version, "language": "en", "text": "I agree." });
        call(&router, request(Method::POST, "/api/v1/consent-texts", Some(&clinician), Some(body))).await
    };
    assert!(text("a\nb").await.is_problem(422));
    assert_eq!(text("२०२६-1").await.json()["version"], "2026-1");

    let member = async |email: &str, verb: &str| {
        let more: &[&str] = if verb == "add" { &["--role", "viewer"] } else { &[] };
        let args = ["member", verb, "--tenant", "here", "--email", email];
        cloud.admin(&[&args[..], more].concat()).await
    };
    for wrong in ["", " @", "@here.example", "viewer@", "view er@here.example", "a\nb@here.example", "a@b@c"]
    {
        assert!(member(wrong, "add").await.unwrap_err().contains("nurse@clinic.example"), "{wrong:?}");
    }
    for same in [" viewer@here.example ", "\u{feff}Viewer@here.example", "viewer@\u{200b}here.example"] {
        assert_eq!(member(same, "add").await.unwrap()["changed"], false, "{same:?}");
        assert_eq!(member(same, "enable").await.unwrap()["changed"], false, "{same:?}");
        assert_eq!(
            crate::common::log_in(&router, same, crate::common::PASSWORD).await.status,
            200,
            "{same:?}"
        );
    }
    // Whom a release before took with what cannot be seen in an address gets in with it, and can be shut out.
    let unseen = "viewer@\u{200b}here.example";
    cloud.sql(&format!("UPDATE members SET email = '{unseen}' WHERE email = 'viewer@here.example'"));
    let log_in = async || crate::common::log_in(&router, unseen, crate::common::PASSWORD).await.status;
    assert_eq!(log_in().await, 200);
    assert_eq!(member(unseen, "disable").await.unwrap()["changed"], true);
    assert_eq!(log_in().await, 401);
    assert_eq!(member(unseen, "enable").await.unwrap()["changed"], true);
    // And as what is no address at all.
    cloud.sql(&format!("UPDATE members SET email = 'viewer@here.example' WHERE email = '{unseen}'"));
    cloud.sql("UPDATE members SET email = 'x y' WHERE email = 'viewer@here.example'");
    assert_eq!(member(" X y", "disable").await.unwrap()["changed"], true);
}

#[tokio::test]
async fn the_name_of_a_key_that_was_taken_back_makes_a_new_key() {
    let cloud = Cloud::start().await;
    let router = routes::router(&cloud.app());
    let first = key(&cloud, "here").await;
    let add = ["api-key", "add", "--tenant", "here", "--name", "lab", "--scope", "ingest"];
    let revoke = ["api-key", "revoke", "--tenant", "here", "--name", "lab"];
    let again = cloud.admin(&add).await.unwrap();
    assert!(again["changed"] == false && again["key"].is_null(), "{again}");
    cloud.admin(&revoke).await.unwrap();
    let second = key(&cloud, "here").await;
    let body = json!([reading("kinara:0000000000000001", 0)]).to_string();
    assert!(post(&router, &first, &[], body.clone()).await.is_problem(401));
    assert_eq!(post(&router, &second, &[], body).await.status, 202);
    assert_eq!(cloud.admin(&revoke).await.unwrap()["changed"], true);
    for days in ["0", "-1", "x"] {
        cloud.admin(&[&add[..], &["--days", days]].concat()).await.unwrap_err();
    }
    assert!(cloud.admin(&[&add[..], &["--days", "1"]].concat()).await.unwrap()["key"].is_string());
}

#[tokio::test]
async fn what_the_database_cannot_hold_is_refused_and_stops_nothing_else() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let clinician = token(&app, "clinician", "here").await;
    let user = cloud.here.wearer;
    for path in [
        format!("/api/v1/readings?user_id={user}&reading_type=heart%00rate"),
        format!("/api/v1/readings?user_id={user}&reading_type=%00"),
        format!("/api/v1/coverage?user_id={user}&reading_type=%00"),
        format!("/api/v1/events?user_id={user}&from=-377705023201000"),
        format!("/api/v1/events?user_id={user}&from=0001-01-01T00:00:00Z"),
        format!("/api/v1/days?user_id={user}&from=9999-01-01T00:00:00Z"),
        "/api/v1/users?x=%00".to_owned(),
    ] {
        let answer = get(&router, &path, &clinician).await;
        let unread = path.starts_with("/api/v1/users");
        assert!(answer.is_problem(422) || (unread && answer.status == 200), "{path}: {answer:?}");
    }
    let acknowledge = |time: Value, kind: &str| {
        let body = json!({ "time": time, "user_id": user, "event_type": kind });
        request(Method::POST, "/api/v1/events/acknowledge", Some(&clinician), Some(body))
    };
    assert!(call(&router, acknowledge(json!(1_795_936_080_123_i64), "hot\u{0}flash")).await.is_problem(422));
    assert!(call(&router, acknowledge(json!(-377_705_023_201_000_i64), "hot_flash")).await.is_problem(422));
    let login = json!({ "email": "a\u{0}@x.example", "password": "correct horse battery" });
    assert!(
        call(&router, request(Method::POST, "/api/v1/auth/login", None, Some(login))).await.is_problem(422)
    );

    let key = key(&cloud, "here").await;
    let mut bad = reading("kinara:0000000000000001", 0);
    bad["col\u{0}our"] = json!(1);
    let body = json!([bad, reading("kinara:0000000000000001", 1)]);
    let answer = post(&router, &key, &[], body.to_string()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["refused"]), (202, &json!(1)), "{answer:?}");
}

#[tokio::test]
async fn a_byte_order_mark_a_lost_plus_and_other_spellings_are_understood() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let clinician = token(&app, "clinician", "here").await;
    let mut marked = request(
        Method::POST,
        "/api/v1/alert-rules",
        Some(&clinician),
        Some(
            json!({ "name": "Fast", "severity": "info", "reading_type": "heart_rate", "above": 120, "minutes": 5.0 }),
        ),
    );
    let body = std::mem::replace(marked.body_mut(), axum::body::Body::empty());
    let body = axum::body::to_bytes(body, 4096).await.unwrap();
    *marked.body_mut() = axum::body::Body::from([b"\xef\xbb\xbf", body.as_ref()].concat());
    let answer = call(&router, marked).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["minutes"]), (200, &json!(5)), "{answer:?}");

    let user = cloud.here.wearer;
    let series = format!("/api/v1/readings?user_id={user}&reading_type=heart_rate");
    let ask = async |more: &str| get(&router, &format!("{series}{more}"), &clinician).await;
    assert_eq!(ask("&from=2026-11-28T12:00:00+05:30&to=2026-11-28T13:00:00+05:30").await.status, 200);
    assert_eq!(ask("&from=2026-11-28T12:00:00%2B05:30&to=2026-11-28T13:00:00%2B05:30").await.status, 200);
    let seconds = ask("&from=1795936080&to=1795939680").await;
    assert!(seconds.is_problem(422) && seconds.text.contains("seconds"), "{seconds:?}");
    for open in ["1", "True", "true", "yes"] {
        assert_eq!(get(&router, &format!("/api/v1/alerts?open={open}"), &clinician).await.status, 200);
    }
    assert!(get(&router, "/api/v1/alerts?open=maybe", &clinician).await.is_problem(422));
    let wrong = get(&router, "/api/v1/readings?user_id=7&reading_type=heart_rate", &clinician).await;
    assert!(
        wrong.is_problem(422) && wrong.text.contains("user_id") && !wrong.text.contains("eserialize"),
        "{wrong:?}"
    );

    let pin = |pin: &str| {
        request(Method::PUT, "/api/v1/staff/me/pin", Some(&clinician), Some(json!({ "pin": pin })))
    };
    assert!(call(&router, pin("१२३४५६")).await.is_problem(422), "the first that anybody would try");
    assert_eq!(call(&router, pin("२७४९१३")).await.status, 200);

    for (method, path) in [(Method::POST, "/ingest/"), (Method::POST, "/Ingest"), (Method::GET, "/ingest/")] {
        let answer = call(&router, request(method, path, None, None)).await;
        assert!(answer.is_problem(404) && answer.text.contains("POST /ingest"), "{path}: {answer:?}");
    }
    let keyless = call(&router, request(Method::POST, "/ingest", None, Some(json!([])))).await;
    let challenge = keyless.headers[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert!(keyless.is_problem(401) && challenge.contains("X-API-Key"), "{keyless:?}");
}

#[tokio::test]
async fn a_rule_that_could_never_fire_is_refused_with_the_range() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let clinician = token(&app, "clinician", "here").await;
    let make = async |rule: Value| {
        let mut rule = rule;
        rule["name"] = json!("A rule");
        rule["severity"] = json!("critical");
        call(&router, request(Method::POST, "/api/v1/alert-rules", Some(&clinician), Some(rule))).await
    };
    for (kind, side, bound, range) in [
        ("skin_temperature", "above", 385.0, "15 to 45 °C"),
        ("skin_temperature", "above", 100.4, "15 to 45 °C"),
        ("spo2", "below", 0.9, "50 to 100 %"),
        ("heart_rate", "below", -5.0, "20 to 250 bpm"),
        ("heart_rate", "above", 1e300, "20 to 250 bpm"),
        ("heart_rate", "above", 250.0, "20 to 250 bpm"),
        ("battery", "below", 0.0, "0 to 100 %"),
        ("ppg", "above", 1.0, "heart_rate"),
        ("acceleration", "above", 1.0, "heart_rate"),
        ("heart\u{0}rate", "above", 100.0, "U+0000"),
    ] {
        let answer = make(json!({ "reading_type": kind, side: bound, "minutes": 5 })).await;
        assert!(answer.is_problem(422) && answer.text.contains(range), "{kind} {side} {bound}: {answer:?}");
    }
    for wrong in [
        json!({ "event_type": "hot_flush" }),
        json!({ "event_type": "battery_low", "least_confidence": 0.5 }),
    ] {
        assert!(make(wrong.clone()).await.is_problem(422), "{wrong}");
    }
    for good in [
        json!({ "reading_type": "skin_temperature", "above": 38.5, "minutes": 5 }),
        json!({ "reading_type": "battery", "below": 20, "minutes": 5 }),
        json!({ "event_type": "battery_low" }),
        json!({ "event_type": "hot_flash", "least_confidence": 0.5 }),
    ] {
        let answer = make(good.clone()).await;
        assert_eq!(answer.status, 200, "{good}: {answer:?}");
    }
    for name in ["\u{200b}\u{200d}", "a\nb", "a\u{1b}[31mb", " x", "x".repeat(101).as_str()] {
        let rule = json!({ "name": name, "severity": "info", "event_type": "hot_flash" });
        let answer =
            call(&router, request(Method::POST, "/api/v1/alert-rules", Some(&clinician), Some(rule))).await;
        assert!(answer.is_problem(422), "{name:?}: {answer:?}");
    }
    let types = get(&router, "/api/v1/reading-types", &clinician).await.json();
    let battery = types["items"].as_array().unwrap().iter().find(|one| one["name"] == "battery").unwrap();
    assert_eq!((&battery["interval_s"], &battery["minute_means"]), (&json!(300), &json!(true)));
}

#[tokio::test]
async fn behind_a_proxy_that_writes_ports_a_stranger_locks_nobody_else_out() {
    let cloud = Cloud::start().await;
    let app =
        cloud.app_with("trusted_proxies = [\"127.0.0.0/8\"]", std::sync::Arc::new(kinara_clock::SystemClock));
    let router = routes::router(&app);
    let log_in = async |from: &str, email: &str, password: &str| {
        let body = json!({ "email": email, "password": password });
        let mut request = request(Method::POST, "/api/v1/auth/login", None, Some(body));
        let peer: std::net::SocketAddr = "127.0.0.1:5000".parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        request.headers_mut().insert("x-forwarded-for", from.parse().unwrap());
        call(&router, request).await.status.as_u16()
    };
    let mut limited = 0;
    for n in 0..31 {
        let from = format!("198.51.100.7:{}", 40_000 + n);
        limited += u16::from(log_in(&from, &format!("x{n}@y.example"), "wrong password").await == 429);
    }
    assert!(limited > 0, "the stranger is stopped");
    assert_eq!(log_in("203.0.113.99:51000", "clinician@here.example", crate::common::PASSWORD).await, 200);
}
