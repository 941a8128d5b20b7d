//! Who may use which route, for every route there is.

use std::collections::BTreeSet;

use crate::common::{Cloud, call, log_in, now, request, token};
use axum::http::Method;
use kinara_cloud_api::access::{Access, Role, lowest_role};
use kinara_cloud_api::operator::Description;
use kinara_cloud_api::routes;
use serde_json::{Value, json};
use utoipa::OpenApi as _;
use uuid::Uuid;

const MEMBER: u128 = 0x100;
const NEW: u128 = 0x200;
const KNOWN: u128 = 0x300;
const OTHER_GATEWAY: u128 = 0x400;
const BOND: u128 = 0x500;
const RULE: u128 = 0x600;
const ALERT: u128 = 0x700;

/// A row that each clinic has.
fn own(of: &crate::common::Tenant, what: u128) -> Uuid {
    Uuid::from_u128(what + of.gateway.as_u128())
}

/// What boxes bring into a clinic.
fn furnish(cloud: &Cloud, of: &crate::common::Tenant) {
    let (tenant, gateway) = (of.id, of.gateway);
    cloud.sql(&format!(
        "INSERT INTO members (id, tenant_id, email, role, password_hash)
           VALUES ('{}', '{tenant}', 'm@{}.example', 'viewer', 'x');
         INSERT INTO users (id, tenant_id, display_name, provisional, added_by_gateway) VALUES
           ('{}', '{tenant}', 'New', true, '{gateway}'), ('{}', '{tenant}', 'Known', true, '{gateway}');
         INSERT INTO gateways (id, tenant_id, name) VALUES ('{}', '{tenant}', 'B');
         INSERT INTO bonds (id, tenant_id, gateway_id, hardware_id, adapter, how, since)
           SELECT '{}', '{tenant}', '{gateway}', hardware_id, '\\x010203040506', 'label', now()
           FROM devices WHERE id = '{}';
         INSERT INTO alert_rules (id, tenant_id, name, severity, event_type) VALUES ('{}', '{tenant}', 'r', 'info', 'x');
         INSERT INTO alerts (id, tenant_id, kind, rule_id, user_id, title, severity, from_time, to_time)
           VALUES ('{}', '{tenant}', 'event', '{}', '{}', 'r', 'info', now(), now());",
        own(of, MEMBER),
        of.slug,
        own(of, NEW),
        own(of, KNOWN),
        own(of, OTHER_GATEWAY),
        own(of, BOND),
        of.device,
        own(of, RULE),
        own(of, ALERT),
        own(of, RULE),
        of.wearer,
    ));
    // A session of each member, under one id.
    cloud.sql(&format!(
        "INSERT INTO sessions (tenant_id, member_id, family, token_hash, expires_at)
         SELECT tenant_id, id, '{}', sha256(id::text::bytea), now() + interval '1 day' FROM members
         WHERE tenant_id = '{tenant}'",
        own(of, MEMBER)
    ));
}

/// How each guarded route is asked for something of the clinic whose ids these are. A route that is missing here fails
/// the tests.
fn asked(
    method: &Method,
    path: &str,
    of: &crate::common::Tenant,
    time: jiff::Timestamp,
) -> (String, Option<Value>) {
    let user = of.wearer;
    match path {
        "/api/v1/users"
        | "/api/v1/devices"
        | "/api/v1/gateways"
        | "/api/v1/staff"
        | "/api/v1/staff/me"
        | "/api/v1/staff/me/sessions"
        | "/api/v1/alerts"
        | "/api/v1/reading-types" => (path.to_owned(), None),
        "/api/v1/alerts/{id}/acknowledge" => (format!("/api/v1/alerts/{}/acknowledge", own(of, ALERT)), None),
        "/api/v1/alert-rules" => {
            let rule =
                json!({ "name": "Flash", "severity": "info", "event_type": "hot_flash", "user_id": user });
            (path.to_owned(), (method == Method::POST).then_some(rule))
        }
        "/api/v1/alert-rules/{id}" => (format!("/api/v1/alert-rules/{}", own(of, RULE)), None),
        "/api/v1/staff/me/sessions/{id}" => (format!("/api/v1/staff/me/sessions/{}", own(of, MEMBER)), None),
        "/api/v1/staff/me/password" => (
            path.to_owned(),
            Some(
                json!({ "current_password": crate::common::PASSWORD, "new_password": crate::common::PASSWORD }),
            ),
        ),
        "/api/v1/staff/me/pin" => (path.to_owned(), Some(json!({ "pin": "407193" }))),
        "/api/v1/staff/{id}/pin" => (format!("/api/v1/staff/{}/pin", own(of, MEMBER)), None),
        "/api/v1/consent-texts" => {
            let text = json!({ "version": "1", "language": "en", "text": "I agree." });
            (path.to_owned(), (method == Method::POST).then_some(text))
        }
        "/api/v1/users/{id}/confirm" => {
            (format!("/api/v1/users/{}/confirm", own(of, NEW)), Some(json!({ "display_name": "New" })))
        }
        "/api/v1/users/{id}/merge" => {
            (format!("/api/v1/users/{}/merge", own(of, KNOWN)), Some(json!({ "into": user })))
        }
        "/api/v1/devices/{id}/bonds" => (format!("/api/v1/devices/{}/bonds", of.device), None),
        "/api/v1/devices/{id}/firmware" => (format!("/api/v1/devices/{}/firmware", of.device), None),
        "/api/v1/devices/{id}/introductions" => (
            format!("/api/v1/devices/{}/introductions", of.device),
            Some(json!({ "gateway_id": own(of, OTHER_GATEWAY) })),
        ),
        "/api/v1/bonds/{id}/revoke" => (format!("/api/v1/bonds/{}/revoke", own(of, BOND)), None),
        "/api/v1/decisions" => (format!("{path}?device_id={}&user_id={user}", of.device), None),
        "/api/v1/users/{id}" => (format!("/api/v1/users/{user}"), None),
        "/api/v1/coverage" | "/api/v1/readings" => {
            (format!("{path}?user_id={user}&reading_type=heart_rate"), None)
        }
        "/api/v1/readings/latest" | "/api/v1/hrv" | "/api/v1/days" | "/api/v1/events" | "/api/v1/gaps" => {
            (format!("{path}?user_id={user}"), None)
        }
        "/api/v1/events/acknowledge" => {
            (path.to_owned(), Some(json!({ "time": time, "user_id": user, "event_type": "hot_flash" })))
        }
        other => panic!("say here how {other} is asked for another clinic's things"),
    }
}

#[tokio::test]
async fn nobody_gets_in_without_a_token_too_low_a_role_is_refused_and_another_clinics_things_are_not_there() {
    let cloud = Cloud::start().await;
    let time = now();
    cloud.event(&cloud.here, time);
    cloud.event(&cloud.there, time);
    furnish(&cloud, &cloud.here);
    furnish(&cloud, &cloud.there);
    let app = cloud.app();
    let router = routes::router(&app);
    let mut guarded = 0;
    for route in routes::routes() {
        let Access::Member(action, resource) = route.access else { continue };
        guarded += 1;
        let (path, body) = asked(&route.method, route.path, &cloud.here, time);
        let ask = |path: &str, token: Option<&str>, body: &Option<Value>| {
            request(route.method.clone(), path, token, body.clone())
        };
        for wrong in [None, Some("nonsense"), Some("a.b.c")] {
            let answer = call(&router, ask(&path, wrong, &body)).await;
            assert!(answer.is_problem(401), "{path}: {answer:?}");
            assert!(answer.headers.contains_key("www-authenticate"));
        }
        for role in [Role::Viewer, Role::Clinician, Role::Admin] {
            let token = token(&app, role.as_str(), "here").await;
            let answer = call(&router, ask(&path, Some(&token), &body)).await;
            if role < lowest_role(action, resource) {
                assert!(answer.is_problem(403), "{path} as {role:?}: {answer:?}");
                continue;
            }
            assert_eq!(answer.status, 200, "{path} as {role:?}: {answer:?}");
            // Another clinic's: not there; and where nothing is named, nothing of it is shown.
            let (foreign, foreign_body) = asked(&route.method, route.path, &cloud.there, time);
            let answer = call(&router, ask(&foreign, Some(&token), &foreign_body)).await;
            if foreign == route.path && foreign_body == body {
                assert_eq!(answer.status, 200);
                for theirs in [cloud.there.wearer, cloud.there.device, cloud.there.gateway] {
                    assert!(!answer.text.contains(&theirs.to_string()), "{path}: {answer:?}");
                }
            } else {
                assert!(answer.is_problem(404), "{foreign}: {answer:?}");
            }
        }
    }
    assert!(guarded >= 26);
    assert_eq!(cloud.sql("SELECT count(*) FROM ts.events WHERE acknowledged_at IS NOT NULL"), "1");
}

#[test]
fn routes_without_a_login_are_these_and_no_more() {
    let public: BTreeSet<&str> = routes::routes()
        .iter()
        .filter(|route| !matches!(route.access, Access::Member(..) | Access::Key(..)))
        .map(|route| route.path)
        .collect();
    let expected = [
        "/api/v1/auth/login",
        "/api/v1/auth/logout",
        "/api/v1/auth/refresh",
        "/api/v1/live",
        "/healthz",
        "/metrics",
        "/openapi.json",
    ];
    assert_eq!(public, BTreeSet::from(expected));
}

#[test]
fn every_route_is_described_and_everything_described_is_a_route() {
    let description = serde_json::to_value(Description::openapi()).unwrap();
    let described: BTreeSet<(String, String)> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let routed: BTreeSet<(String, String)> =
        routes::routes().iter().map(|route| (route.method.to_string(), route.path.to_owned())).collect();
    assert_eq!(described, routed);
    for route in routes::routes() {
        let operation = &description["paths"][route.path][route.method.as_str().to_lowercase()];
        let public = operation["security"] == json!([{}]);
        assert_eq!(public, !matches!(route.access, Access::Member(..) | Access::Key(..)), "{}", route.path);
        let by_key = operation["security"][0].get("api_key").is_some();
        assert_eq!(by_key, matches!(route.access, Access::Key(..)), "{}", route.path);
    }
}

#[tokio::test]
async fn a_question_that_names_no_tenant_sees_nothing() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let (mut client, connection) =
        tokio_postgres::connect(&cloud.postgres.url("api", "api", &cloud.database), tokio_postgres::NoTls)
            .await
            .unwrap();
    tokio::spawn(connection);
    for table in ["tenants", "members", "users", "devices", "gateways", "sessions", "audit_log", "readings"] {
        let count: i64 =
            client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0);
        assert_eq!(count, 0, "{table}");
    }
    // And the tenant's name ends with its transaction: a connection that is used again carries none.
    let transaction = client.transaction().await.unwrap();
    transaction
        .execute("SELECT set_config('kinara.tenant', $1, true)", &[&cloud.here.id.to_string()])
        .await
        .unwrap();
    let seen: i64 = transaction.query_one("SELECT count(*) FROM users", &[]).await.unwrap().get(0);
    assert_eq!(seen, 1);
    transaction.commit().await.unwrap();
    let seen: i64 = client.query_one("SELECT count(*) FROM users", &[]).await.unwrap().get(0);
    assert_eq!(seen, 0);
    drop(app);
}

#[tokio::test]
async fn one_clinics_login_sees_its_own_wearers_and_devices_only() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    for (mine, theirs) in [(&cloud.here, &cloud.there), (&cloud.there, &cloud.here)] {
        let login =
            log_in(&router, &format!("viewer@{}.example", mine.slug), crate::common::PASSWORD).await.json();
        assert_eq!(login["tenant"]["slug"], mine.slug);
        assert_eq!(login["member"]["role"], "viewer");
        let token = login["access_token"].as_str().unwrap();
        let users = call(&router, request(Method::GET, "/api/v1/users", Some(token), None)).await.json();
        assert_eq!(
            users["items"],
            json!([{ "id": mine.wearer, "external_id": "w1", "display_name": "Wearer One", "time_zone": "UTC",
                "devices": [mine.device], "provisional": false, "added_by_gateway": null, "merged_into": null }])
        );
        let devices = crate::common::get(&router, "/api/v1/devices", token).await;
        assert_eq!(devices.json()["items"][0]["id"], json!(mine.device));
        assert!(!devices.text.contains(&theirs.device.to_string()));
    }
}
