//! Logging in, staying logged in, logging out.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Answer, Cloud, PASSWORD, call, get, log_in, request};
use axum::body::Body;
use axum::http::{Method, Request, header};
use kinara_clock::{Clock as _, ManualClock, SystemClock};
use kinara_cloud_api::{App, routes};
use serde_json::json;

async fn with_cookie(router: &axum::Router, path: &str, cookie: &str) -> Answer {
    let request = Request::builder().method(Method::POST).uri(path).header(header::COOKIE, cookie);
    call(router, request.body(Body::empty()).unwrap()).await
}

async fn refresh(router: &axum::Router, cookie: &str) -> Answer {
    with_cookie(router, "/api/v1/auth/refresh", cookie).await
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_second_use_ends_the_session() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let first = log_in(&router, "admin@here.example", PASSWORD).await;
    let other = log_in(&router, "admin@here.example", PASSWORD).await;
    let first = first.cookie().unwrap();
    let second = refresh(&router, &first).await;
    assert_eq!(second.status, 200, "{second:?}");
    let token = second.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(get(&router, "/api/v1/users", &token).await.status, 200);
    let third = refresh(&router, &second.cookie().unwrap()).await;
    assert_eq!(third.status, 200);

    let stolen = refresh(&router, &first).await;
    assert!(stolen.is_problem(401), "{stolen:?}");
    let family = refresh(&router, &third.cookie().unwrap()).await;
    assert!(family.is_problem(401), "the whole session is over: {family:?}");
    assert_eq!(family.cookie().unwrap(), "kinara_refresh=", "and the cookie is taken away");
    assert_eq!(refresh(&router, &other.cookie().unwrap()).await.status, 200, "another session lives on");
    assert_eq!(cloud.sql("SELECT count(*) FROM audit_log WHERE action = 'session.reuse'"), "1");
    // Nothing in the database is a token.
    let value = first.split('=').nth(1).unwrap();
    let hit = format!("SELECT count(*) FROM sessions WHERE encode(token_hash, 'hex') = '{value}'");
    assert_eq!(cloud.sql(&hit), "0");
}

#[tokio::test]
async fn two_refreshes_at_the_same_time_do_not_both_succeed() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let cookie = log_in(&router, "admin@here.example", PASSWORD).await.cookie().unwrap();
    let (a, b) = tokio::join!(refresh(&router, &cookie), refresh(&router, &cookie));
    let mut statuses = [a.status.as_u16(), b.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
}

#[tokio::test]
async fn the_cookie_is_kept_from_scripts_and_other_sites_and_needs_tls_where_there_is_tls() {
    let cloud = Cloud::start().await;
    for (more, secure) in [("", false), ("public_url = \"https://kinara.example\"", true)] {
        let app = cloud.app_with(more, Arc::new(SystemClock));
        let router = routes::router(&app);
        let answer = log_in(&router, "admin@here.example", PASSWORD).await;
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
        for part in ["HttpOnly", "SameSite=Strict", "Path=/api/v1/auth", "Max-Age=43200"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        assert_eq!(cookie.contains("; Secure"), secure);
        assert_eq!(answer.headers.contains_key(header::STRICT_TRANSPORT_SECURITY), secure);
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        let value = answer.cookie().unwrap();
        for path in ["/api/v1/auth/refresh", "/api/v1/auth/logout"] {
            let request = Request::builder()
                .method(Method::POST)
                .uri(path)
                .header(header::COOKIE, &value)
                .header("sec-fetch-site", "cross-site");
            let answer = call(&router, request.body(Body::empty()).unwrap()).await;
            assert!(answer.is_problem(403), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn logging_out_ends_the_session() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let cookie = log_in(&router, "viewer@here.example", PASSWORD).await.cookie().unwrap();
    let out = with_cookie(&router, "/api/v1/auth/logout", &cookie).await;
    assert_eq!((out.status.as_u16(), out.cookie().unwrap().as_str()), (204, "kinara_refresh="));
    assert!(refresh(&router, &cookie).await.is_problem(401));
    assert!(refresh(&router, "kinara_refresh=00").await.is_problem(401));
    assert_eq!(with_cookie(&router, "/api/v1/auth/logout", "x=y").await.status, 204);
    let actions =
        cloud.sql("SELECT string_agg(action, ',' ORDER BY at) FROM audit_log WHERE action !~ '^admin'");
    assert_eq!(actions, "login,logout");
}

#[tokio::test]
async fn an_unknown_address_and_a_wrong_password_get_the_same_answer_and_too_many_must_wait() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let wrong = log_in(&router, "admin@here.example", "wrong password").await;
    let unknown = log_in(&router, "nobody@here.example", "wrong password").await;
    assert!(wrong.is_problem(401) && unknown.is_problem(401));
    assert_eq!(wrong.text, unknown.text);
    for _ in 0..4 {
        assert!(log_in(&router, "admin@here.example", "wrong password").await.is_problem(401));
    }
    let limited = log_in(&router, "ADMIN@here.example", PASSWORD).await;
    assert!(limited.is_problem(429), "{limited:?}");
    let wait: u64 = limited.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait));
    assert_eq!(
        log_in(&router, "viewer@here.example", PASSWORD).await.status,
        200,
        "others are not locked out"
    );
}

#[tokio::test]
async fn a_session_ends_when_it_is_idle_and_in_any_case_after_its_time() {
    let cloud = Cloud::start().await;
    let clock = Arc::new(ManualClock::new(SystemClock.utc_us(), 0));
    let app = cloud.app_with("", clock.clone());
    let router = routes::router(&app);
    let hours = |hours: i64| hours * 3_600_000_000;
    let login = log_in(&router, "viewer@here.example", PASSWORD).await;
    let token = login.json()["access_token"].as_str().unwrap().to_owned();
    let idle = log_in(&router, "viewer@here.example", PASSWORD).await.cookie().unwrap();
    clock.advance_us(hours(1) / 4);
    assert!(
        get(&router, "/api/v1/users", &token).await.is_problem(401),
        "an access token is good for 15 minutes"
    );
    let mut cookie = login.cookie().unwrap();
    let mut refreshes = 0;
    loop {
        clock.advance_us(hours(11));
        let answer = refresh(&router, &cookie).await;
        if answer.status != 200 {
            break;
        }
        cookie = answer.cookie().unwrap();
        refreshes += 1;
    }
    assert_eq!(refreshes, 15, "15 times 11 hours are just under 7 days");
    assert!(refresh(&router, &idle).await.is_problem(401));
}

#[tokio::test]
async fn a_member_who_was_disabled_or_whose_password_was_changed_is_out() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let viewer = log_in(&router, "viewer@here.example", PASSWORD).await.cookie().unwrap();
    cloud.sql("UPDATE members SET disabled_at = now() WHERE email = 'viewer@here.example'");
    assert!(refresh(&router, &viewer).await.is_problem(401));
    assert!(log_in(&router, "viewer@here.example", PASSWORD).await.is_problem(401));
    let clinician = log_in(&router, "clinician@here.example", PASSWORD).await.cookie().unwrap();
    let change =
        ["member", "add", "--tenant", "here", "--email", "clinician@here.example", "--role", "viewer"];
    assert_eq!(cloud.admin(&change).await.unwrap()["changed"], true);
    assert!(refresh(&router, &clinician).await.is_problem(401));
}

#[tokio::test]
async fn an_access_token_ends_with_its_session_and_has_its_members_role_of_now() {
    let cloud = Cloud::start().await;
    let clock = Arc::new(ManualClock::new(SystemClock.utc_us(), 0));
    let app = cloud.app_with("", clock.clone());
    let router = routes::router(&app);
    let login = async |email: &str| {
        let answer = log_in(&router, email, PASSWORD).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        (answer.json()["access_token"].as_str().unwrap().to_owned(), answer.cookie().unwrap())
    };
    // What was said is believed for some seconds, and no longer.
    let seconds = || clock.advance_us(6_000_000);

    let (token, cookie) = login("viewer@here.example").await;
    assert_eq!(get(&router, "/api/v1/users", &token).await.status, 200);
    with_cookie(&router, "/api/v1/auth/logout", &cookie).await;
    assert!(get(&router, "/api/v1/users", &token).await.is_problem(401), "who logs out is out at once");

    let (token, _) = login("viewer@here.example").await;
    assert_eq!(get(&router, "/api/v1/users", &token).await.status, 200);
    let disable = ["member", "disable", "--tenant", "here", "--email", "viewer@here.example"];
    assert_eq!(cloud.admin(&disable).await.unwrap()["changed"], true);
    assert_eq!(cloud.admin(&disable).await.unwrap()["changed"], false);
    seconds();
    assert!(get(&router, "/api/v1/users", &token).await.is_problem(401));
    assert!(log_in(&router, "viewer@here.example", PASSWORD).await.is_problem(401));
    let enable = ["member", "enable", "--tenant", "here", "--email", "Viewer@here.example"];
    assert_eq!(cloud.admin(&enable).await.unwrap()["changed"], true);
    assert!(get(&router, "/api/v1/users", &token).await.is_problem(401), "the old session stays over");
    login("viewer@here.example").await;
    let foreign = ["member", "disable", "--tenant", "there", "--email", "viewer@here.example"];
    cloud.admin(&foreign).await.unwrap_err();

    let (token, _) = login("admin@here.example").await;
    assert_eq!(get(&router, "/api/v1/staff", &token).await.status, 200);
    cloud.sql("UPDATE members SET role = 'viewer' WHERE email = 'admin@here.example'");
    seconds();
    assert!(get(&router, "/api/v1/staff", &token).await.is_problem(403));
    assert_eq!(get(&router, "/api/v1/users", &token).await.status, 200);
}

#[tokio::test]
async fn a_member_changes_their_own_password_and_ends_their_other_sessions() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = routes::router(&app);
    let login = async |password: &str| log_in(&router, "viewer@here.example", password).await;
    let token = |answer: &Answer| answer.json()["access_token"].as_str().unwrap().to_owned();
    let (here, other, third) =
        (token(&login(PASSWORD).await), token(&login(PASSWORD).await), token(&login(PASSWORD).await));
    let sessions = get(&router, "/api/v1/staff/me/sessions", &here).await.json();
    let list = sessions["items"].as_array().unwrap();
    assert_eq!((list.len(), list.iter().filter(|one| one["own"] == true).count()), (3, 1));
    let mine = get(&router, "/api/v1/staff/me/sessions", &third).await.json();
    let third_id =
        mine["items"].as_array().unwrap().iter().find(|one| one["own"] == true).unwrap()["id"].clone();
    let path = format!("/api/v1/staff/me/sessions/{}", third_id.as_str().unwrap());
    assert_eq!(call(&router, request(Method::DELETE, &path, Some(&here), None)).await.status, 200);
    assert!(get(&router, "/api/v1/users", &third).await.is_problem(401));

    let change = |current: &str, new: &str| {
        let body = json!({ "current_password": current, "new_password": new });
        request(Method::PUT, "/api/v1/staff/me/password", Some(&here), Some(body))
    };
    assert!(call(&router, change("another password", "a whole new one")).await.is_problem(422));
    assert!(call(&router, change(PASSWORD, "short")).await.is_problem(422));
    assert_eq!(call(&router, change(PASSWORD, "a whole new one")).await.status, 200);
    assert_eq!(get(&router, "/api/v1/users", &here).await.status, 200);
    assert!(get(&router, "/api/v1/users", &other).await.is_problem(401));
    assert!(login(PASSWORD).await.is_problem(401));
    assert_eq!(login("a whole new one").await.status, 200);
}

#[tokio::test]
async fn a_change_of_password_that_nobody_had_time_for_is_no_failure_and_holds_up_nobody() {
    let cloud = Cloud::start().await;
    let login = log_in(&routes::router(&cloud.app()), "viewer@here.example", PASSWORD).await.json();
    let token = login["access_token"].as_str().unwrap();
    let mut config = cloud.config("");
    // It is never anybody's turn, and one failure is too many.
    (config.login.checks_at_once, config.login.failures_per_account) = (0, 1);
    let router = routes::router(&App::new(config, Arc::new(SystemClock)).unwrap());
    let mine = "SELECT count(*) FROM (
        SELECT FROM members WHERE email = 'viewer@here.example' FOR UPDATE NOWAIT) m";
    let held =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'api' AND state = 'idle in transaction'";
    for _ in 0..2 {
        let body = json!({ "current_password": PASSWORD, "new_password": "a whole new one" });
        let change = request(Method::PUT, "/api/v1/staff/me/password", Some(token), Some(body));
        let meanwhile = async {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert_eq!(cloud.sql(mine), "1");
            }
            cloud.sql(held)
        };
        let (answer, held) = tokio::join!(call(&router, change), meanwhile);
        assert!(answer.is_problem(503), "{answer:?}");
        assert_eq!(held, "0");
    }
}
