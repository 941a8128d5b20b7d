//! What people decide at boxes, as the clinic sees it and acts on it.

use crate::common::{Cloud, Tenant, call, get, now, request, token};
use axum::Router;
use axum::http::Method;
use kinara_cloud_api::{auth::password, routes};
use serde_json::{Value, json};
use uuid::Uuid;

const PATIENT: Uuid = Uuid::from_u128(0x1001);
const CONSENT: Uuid = Uuid::from_u128(0x1002);

async fn post(router: &Router, path: &str, token: &str, body: Value) -> crate::common::Answer {
    call(router, request(Method::POST, path, Some(token), Some(body))).await
}

/// A provisional wearer with a consent, to whom the clinic's device was given at a box.
fn taken_in(cloud: &Cloud, of: &Tenant) {
    let (tenant, gateway, device) = (of.id, of.gateway, of.device);
    cloud.sql(&format!(
        "INSERT INTO users (id, tenant_id, display_name, provisional, added_by_gateway)
           VALUES ('{PATIENT}', '{tenant}', 'Bed 4', true, '{gateway}');
         INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{CONSENT}', '{tenant}', '{PATIENT}', 'v1');
         UPDATE device_assignments SET valid_to = '2026-02-01' WHERE device_id = '{device}';
         INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
           SELECT hardware_id, tenant_id, '{PATIENT}', device_id, '{CONSENT}', '2026-02-01'
           FROM device_assignments WHERE device_id = '{device}';
         UPDATE devices SET user_id = '{PATIENT}' WHERE id = '{device}'"
    ));
}

#[tokio::test]
async fn a_provisional_wearer_is_confirmed_once_under_a_number_that_nobody_else_has() {
    let cloud = Cloud::start().await;
    taken_in(&cloud, &cloud.here);
    let app = cloud.app();
    let (router, token) = (routes::router(&app), token(&app, "clinician", "here").await);
    let path = format!("/api/v1/users/{PATIENT}/confirm");
    let listed = get(&router, "/api/v1/users", &token).await.json();
    let patient =
        listed["items"].as_array().unwrap().iter().find(|user| user["id"] == json!(PATIENT)).unwrap();
    assert_eq!(
        (&patient["provisional"], &patient["added_by_gateway"]),
        (&json!(true), &json!(cloud.here.gateway))
    );
    assert!(post(&router, &path, &token, json!({ "external_id": "w1" })).await.is_problem(409));
    assert!(post(&router, &path, &token, json!({ "display_name": "x".repeat(300) })).await.is_problem(422));
    for _ in 0..2 {
        let body = json!({ "external_id": " w9 ", "display_name": "Asha" });
        let answer = post(&router, &path, &token, body).await.json();
        assert_eq!(answer["provisional"], false);
        assert_eq!((&answer["external_id"], &answer["display_name"]), (&json!("w9"), &json!("Asha")));
    }
    let merge = format!("/api/v1/users/{PATIENT}/merge");
    let refused = post(&router, &merge, &token, json!({ "into": cloud.here.wearer })).await;
    assert!(refused.is_problem(422), "{refused:?}");
    assert_eq!(cloud.sql("SELECT count(*) FROM audit_log WHERE action = 'wearer.confirm'"), "1");
}

#[tokio::test]
async fn a_wearer_who_is_being_erased_is_not_confirmed_and_gets_no_rule() {
    let cloud = Cloud::start().await;
    taken_in(&cloud, &cloud.here);
    cloud.sql(&format!(
        "INSERT INTO tombstones (tenant_id, user_id) VALUES ('{}', '{PATIENT}')",
        cloud.here.id
    ));
    let app = cloud.app();
    let (router, token) = (routes::router(&app), token(&app, "admin", "here").await);
    let path = format!("/api/v1/users/{PATIENT}/confirm");
    assert!(post(&router, &path, &token, json!({ "external_id": "w9" })).await.is_problem(409));
    let rule = json!({ "name": "Flash", "severity": "info", "event_type": "hot_flash", "user_id": PATIENT });
    assert!(post(&router, "/api/v1/alert-rules", &token, rule).await.is_problem(409));
}

#[tokio::test]
async fn a_wearer_who_was_known_already_keeps_all_that_was_measured_under_the_other_name() {
    let cloud = Cloud::start().await;
    taken_in(&cloud, &cloud.here);
    let time = now();
    let here = cloud.here.clone();
    let patient = Tenant { wearer: PATIENT, ..here.clone() };
    cloud.readings(&patient, 1, time, &[(0, 70.0), (1, 71.0), (90_000, 72.0)][..2]);
    cloud.event(&patient, time);
    let app = cloud.app();
    let (router, token) = (routes::router(&app), token(&app, "admin", "here").await);
    let path = format!("/api/v1/users/{PATIENT}/merge");
    let rule =
        json!({ "name": "Flash", "severity": "critical", "event_type": "hot_flash", "user_id": PATIENT });
    assert_eq!(
        post(&router, "/api/v1/alert-rules", &token, rule.clone()).await.json()["user_id"],
        json!(PATIENT)
    );
    assert!(post(&router, &path, &token, json!({ "into": PATIENT })).await.is_problem(422));
    assert!(post(&router, &path, &token, json!({ "into": cloud.there.wearer })).await.is_problem(404));
    for _ in 0..2 {
        let answer = post(&router, &path, &token, json!({ "into": here.wearer })).await;
        assert_eq!(answer.json()["devices"], json!([here.device]), "{answer:?}");
    }
    // A rule about them is one about whom they are.
    assert_eq!(
        get(&router, "/api/v1/alert-rules", &token).await.json()["items"][0]["user_id"],
        json!(here.wearer)
    );
    let late = post(&router, "/api/v1/alert-rules", &token, rule.clone()).await;
    assert!(late.is_problem(422) && late.text.contains("merged"), "{late:?}");
    // What comes from now on is theirs at once,
    let of = |table: &str| {
        cloud.sql(&format!(
            "SELECT count(*) FROM {table} WHERE tenant_id = '{}' AND user_id = '{PATIENT}'",
            here.id
        ))
    };
    assert_eq!(of("device_assignments") + &of("consents") + &of("devices"), "000");
    let listed = get(&router, "/api/v1/users", &token).await;
    assert!(!listed.text.contains(&format!("\"id\":\"{PATIENT}\"")));
    // and what is stored moves when the bridge comes to it.
    assert_eq!(of("ts.readings"), "2");
    assert_eq!(cloud.sql("SELECT ts.move(id, 3) FROM moves"), "3");
    assert_eq!(of("ts.readings") + &of("ts.events"), "00");
    assert_eq!(cloud.sql("SELECT ts.move(id, 3) FROM moves"), "0");
    assert_eq!(cloud.sql("SELECT count(*) FROM audit_log WHERE action = 'wearer.merge'"), "1");
    let back =
        post(&router, &format!("/api/v1/users/{}/merge", here.wearer), &token, json!({ "into": PATIENT }))
            .await;
    assert!(back.is_problem(422));
}

#[tokio::test]
async fn a_pin_is_its_members_own_and_never_comes_back() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let (clinician, admin) = (token(&app, "clinician", "here").await, token(&app, "admin", "here").await);
    let put = |pin: &str| {
        let body = json!({ "pin": pin, "box_name": "Sister Mary" });
        request(Method::PUT, "/api/v1/staff/me/pin", Some(&clinician), Some(body))
    };
    assert!(call(&router, put("123456")).await.is_problem(422));
    let set = call(&router, put("407193")).await;
    assert_eq!(set.json()["box_name"], "Sister Mary");
    assert!(!set.text.contains("argon2"));
    let verifier = cloud.sql("SELECT verifier FROM staff_pins");
    assert!(password::verify("407193", &verifier) && !password::verify("407194", &verifier));
    assert_eq!(cloud.sql("SELECT name FROM box_staff"), "Sister Mary");
    let listed = get(&router, "/api/v1/staff", &admin).await;
    assert!(!listed.text.contains("argon2"));
    let members = listed.json();
    let members = members["items"].as_array().unwrap();
    assert_eq!(members.iter().filter(|member| member["pin_set_at"].is_string()).count(), 1);
    let id = set.json()["id"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        let gone = request(Method::DELETE, &format!("/api/v1/staff/{id}/pin"), Some(&admin), None);
        assert_eq!(call(&router, gone).await.json()["pin_set_at"], json!(null));
    }
    assert_eq!(cloud.sql("SELECT count(*) FROM box_staff"), "0");
    let audit = "SELECT string_agg(action, ' ' ORDER BY at) FROM audit_log WHERE action LIKE 'staff.%'";
    assert_eq!(cloud.sql(audit), "staff.pin staff.pin.remove");
}

#[tokio::test]
async fn a_consent_text_is_never_changed_and_the_newest_of_a_language_is_the_one_shown() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let (router, token) = (routes::router(&app), token(&app, "admin", "here").await);
    let add = |version: &str, language: &str, text: &str| {
        let body = json!({ "version": version, "language": language, "text": text });
        request(Method::POST, "/api/v1/consent-texts", Some(&token), Some(body))
    };
    for (version, language, text) in [("1", "EN", "x"), ("", "en", "x"), ("1", "en", " "), ("1", "en", "a\0")]
    {
        assert!(
            call(&router, add(version, language, text)).await.is_problem(422),
            "{version} {language} {text}"
        );
    }
    for _ in 0..2 {
        assert_eq!(call(&router, add("1", "en", "I agree.")).await.json()["current"], true);
    }
    assert!(call(&router, add("1", "en", "I agree to more.")).await.is_problem(409));
    call(&router, add("1", "hi", "मैं सहमत हूँ।")).await.json();
    call(&router, add("2", "en", "I agree to more.")).await.json();
    let listed = get(&router, "/api/v1/consent-texts", &token).await.json();
    let current: Vec<String> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|text| text["current"] == true)
        .map(|text| format!("{}{}", text["language"], text["version"]))
        .collect();
    assert_eq!(current, ["\"en\"\"2\"", "\"hi\"\"1\""]);
}

#[tokio::test]
async fn a_device_is_introduced_by_a_gateway_that_knows_it_and_a_gateway_is_taken_off_once() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let (router, token) = (routes::router(&app), token(&app, "clinician", "here").await);
    let (device, first) = (cloud.here.device, cloud.here.gateway);
    let (second, bond) = (Uuid::from_u128(0x77), Uuid::from_u128(0x78));
    cloud.sql(&format!(
        "INSERT INTO gateways (id, tenant_id, name) VALUES ('{second}', '{}', 'B')",
        cloud.here.id
    ));
    let path = format!("/api/v1/devices/{device}/introductions");
    let introduce = |to: Uuid| post(&router, &path, &token, json!({ "gateway_id": to }));
    let nobody = introduce(second).await;
    assert!(nobody.is_problem(422) && nobody.text.contains("Pair it at a box"), "{nobody:?}");
    cloud.sql(&format!(
        "INSERT INTO bonds (id, tenant_id, gateway_id, hardware_id, adapter, how, since)
         SELECT '{bond}', tenant_id, '{first}', hardware_id, '\\xaabbccddeeff', 'label', now() FROM devices WHERE id = '{device}'"
    ));
    assert!(introduce(cloud.there.gateway).await.is_problem(404));
    assert!(introduce(first).await.is_problem(422));
    let made = introduce(second).await.json();
    assert_eq!((&made["from_gateway"], &made["state"]), (&json!(first), &json!("open")));
    assert_eq!(introduce(second).await.json()["id"], made["id"], "one at a time");
    assert_eq!(
        cloud.sql(
            "SELECT octet_length(secret) || ' ' || justify_hours(expires_at - asked_at) FROM introductions"
        ),
        "16 1 day"
    );
    assert!(!get(&router, &format!("/api/v1/devices/{device}/bonds"), &token).await.text.contains("secret"));
    for _ in 0..2 {
        let revoked = post(&router, &format!("/api/v1/bonds/{bond}/revoke"), &token, json!({})).await.json();
        assert_eq!(revoked["adapter"], "AA:BB:CC:DD:EE:FF");
        assert!(revoked["revoked_at"].is_string());
    }
    let known = get(&router, &format!("/api/v1/devices/{device}/bonds"), &token).await.json();
    assert!(known["bonds"][0]["revoked_at"].is_string());
    assert_eq!(known["introductions"].as_array().unwrap().len(), 1);
    assert_eq!(cloud.sql("SELECT count(*) FROM revocations"), "1");
    let audit = "SELECT string_agg(action, ' ' ORDER BY at) FROM audit_log WHERE actor LIKE 'member:%'
      AND action IN ('device.introduce', 'bond.revoke')";
    assert_eq!(cloud.sql(audit), "device.introduce bond.revoke");
    let sensor = format!("UPDATE devices SET hardware_id = 'bt:AA:BB:CC:DD:EE:FF' WHERE id = '{device}'");
    cloud.sql(&sensor);
    assert!(introduce(second).await.is_problem(422));
}

#[tokio::test]
async fn what_was_decided_at_the_boxes_is_listed_with_who_decided_and_what_was_refused() {
    let cloud = Cloud::start().await;
    let gateway = cloud.here.gateway;
    cloud.sql(&format!(
        "INSERT INTO decisions (gateway_id, id, tenant_id, kind, at, uncertainty_us, actor_kind, actor_name, hardware_id,
           payload, signature, key, received_at, settled_at, refused)
         SELECT '{gateway}', gen_random_uuid(), '{}', kind, at::timestamptz, 0, 'staff', 'Mary', hardware, '', '', '', now(), now(), refused
         FROM (VALUES ('paired', '2026-03-01', 'kinara:0000000000000001', NULL),
                      ('assigned', '2026-03-02', 'kinara:0000000000000009', 'assigned_elsewhere')) v(kind, at, hardware, refused)",
        cloud.here.id
    ));
    let app = cloud.app();
    let (router, token) = (routes::router(&app), token(&app, "clinician", "here").await);
    let all = get(&router, "/api/v1/decisions", &token).await.json();
    assert_eq!(
        (&all["items"][0]["kind"], &all["items"][0]["refused"]),
        (&json!("assigned"), &json!("assigned_elsewhere"))
    );
    let path = format!("/api/v1/decisions?device_id={}", cloud.here.device);
    let one = get(&router, &path, &token).await.json();
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    assert_eq!(one["items"][0]["actor_name"], "Mary");
    assert!(get(&router, "/api/v1/decisions?limit=0", &token).await.is_problem(422));
    // A box that signs with a key that nobody trusted: the people of the clinic are told what to do.
    cloud.sql(&format!(
        "INSERT INTO gateway_keys (gateway_id, tenant_id, key, trusted_at) VALUES
           ('{gateway}', '{0}', sha256('a'), now()), ('{gateway}', '{0}', sha256('b'), NULL)",
        cloud.here.id
    ));
    let notes = get(&router, "/api/v1/gateways", &token).await.json()["items"][0]["notes"].to_string();
    assert!(notes.contains("new key"), "{notes}");
    let id = gateway.to_string();
    let trust = ["gateway", "trust-key", "--tenant", "here", "--id", &id];
    assert_eq!(cloud.admin(&trust).await.unwrap()["changed"], true);
    assert_eq!(cloud.admin(&trust).await.unwrap()["changed"], false);
    let trusted =
        "SELECT encode(key, 'hex') = encode(sha256('b'), 'hex') FROM gateway_keys WHERE ended_at IS NULL";
    assert_eq!(cloud.sql(trusted), "t");
}
