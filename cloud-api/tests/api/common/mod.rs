//! Two clinics on a real PostgreSQL, and the service over them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use clap::Parser;
use http_body_util::BodyExt as _;
use kinara_clock::{Clock, SystemClock};
use kinara_cloud_api::admin::{self, Admin};
use kinara_cloud_api::config::Config;
use kinara_cloud_api::{App, routes};
use kinara_test_postgres::{Options, PREPARED, Postgres};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use uuid::Uuid;

pub const PASSWORD: &str = "correct horse battery";

/// One clinic: its ids, and what logs in.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: Uuid,
    pub slug: &'static str,
    pub wearer: Uuid,
    pub device: Uuid,
    pub gateway: Uuid,
}

pub struct Cloud {
    pub postgres: Postgres,
    pub database: String,
    pub folder: tempfile::TempDir,
    pub here: Tenant,
    pub there: Tenant,
}

#[derive(Parser)]
struct AdminLine {
    #[command(flatten)]
    admin: Admin,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn is_problem(&self, status: u16) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
        self.status == status
            && kind.as_deref() == Some("application/problem+json")
            && self.json()["status"] == status
            && self.json()["type"].as_str().is_some_and(|kind| kind.starts_with("urn:kinara:problem:"))
            && self.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty())
    }

    pub fn cookie(&self) -> Option<String> {
        Some(self.headers.get(header::SET_COOKIE)?.to_str().unwrap().split(';').next().unwrap().to_owned())
    }
}

impl Cloud {
    /// Two clinics, each with a member of every role, a wearer with a device, and a gateway.
    pub async fn start() -> Self {
        let migrated = async |url: String| kinara_store::migrate(&url).await.map(drop);
        let key = kinara_store::migrate::digest();
        let postgres = Postgres::prepared(Options::fast(), &key, migrated).await.unwrap();
        let database = PREPARED.to_owned();
        let migrated = kinara_store::migrate(&postgres.superuser_url(&database)).await.unwrap();
        assert_eq!(migrated.applied, 0);
        postgres.psql(&database, "CREATE ROLE api LOGIN PASSWORD 'api' IN ROLE kinara_app").unwrap();
        let nobody = Tenant {
            id: Uuid::nil(),
            slug: "",
            wearer: Uuid::nil(),
            device: Uuid::nil(),
            gateway: Uuid::nil(),
        };
        let folder = tempfile::tempdir().unwrap();
        let mut cloud = Self { postgres, database, folder, here: nobody.clone(), there: nobody };
        cloud.here = cloud.tenant("here", 1).await;
        cloud.there = cloud.tenant("there", 2).await;
        cloud
    }

    async fn tenant(&self, slug: &'static str, number: u64) -> Tenant {
        let made = self.admin(&["tenant", "add", "--name", slug, "--slug", slug]).await.unwrap();
        let id = id(&made);
        let hash = kinara_cloud_api::auth::password::hash(PASSWORD).unwrap();
        for role in ["admin", "clinician", "viewer"] {
            self.sql(&format!(
                "INSERT INTO members (tenant_id, email, role, password_hash)
                 VALUES ('{id}', '{role}@{slug}.example', '{role}', '{hash}')"
            ));
        }
        let wearer = ["wearer", "add", "--tenant", slug, "--external-id", "w1", "--name", "Wearer One"];
        let wearer = [&wearer[..], &["--consent-version", "v1"]].concat();
        let wearer = self::id(&self.admin(&wearer).await.unwrap());
        let gateway = Uuid::from_u128(u128::from(number));
        let name = gateway.to_string();
        self.admin(&["gateway", "add", "--tenant", slug, "--id", &name, "--name", "A"]).await.unwrap();
        let hardware = format!("kinara:{number:016x}");
        let assign = ["assign", "--tenant", slug, "--hardware", &hardware, "--wearer", "w1"];
        let assign = [&assign[..], &["--from", "2026-01-01T00:00:00Z"]].concat();
        let assigned = self.admin(&assign).await.unwrap();
        let device = assigned["device_id"].as_str().unwrap().parse().unwrap();
        Tenant { id, slug, wearer, device, gateway }
    }

    pub fn admin_url(&self) -> String {
        self.postgres.superuser_url(&self.database)
    }

    pub async fn admin(&self, args: &[&str]) -> Result<Value, String> {
        let url = self.admin_url();
        let line = [&["admin", "--admin-url", &url][..], args].concat();
        let line = AdminLine::try_parse_from(line).map_err(|error| error.to_string())?;
        admin::run(&line.admin).await.map_err(|error| error.to_string())
    }

    pub fn sql(&self, sql: &str) -> String {
        self.postgres.psql(&self.database, sql).unwrap().trim().to_owned()
    }

    pub fn config(&self, more: &str) -> Config {
        Config::parse(&self.config_text(more)).unwrap()
    }

    pub fn config_text(&self, more: &str) -> String {
        let key = self.folder.path().join("jwt.key");
        format!(
            "listen = \"127.0.0.1:0\"\njwt_secret_file = {:?}\n{more}\n[database]\nurl = {:?}\n",
            key.display().to_string(),
            self.postgres.url("api", "api", &self.database)
        )
    }

    pub fn app(&self) -> App {
        self.app_with("", Arc::new(SystemClock))
    }

    pub fn app_with(&self, more: &str, clock: Arc<dyn Clock>) -> App {
        App::new(self.config(more), clock).unwrap()
    }

    /// Readings of one type at these seconds after `from`, values as given.
    pub fn readings(&self, tenant: &Tenant, kind: i16, from: jiff::Timestamp, values: &[(i64, f64)]) {
        let to = from + jiff::SignedDuration::from_hours(24);
        self.sql(&format!("SELECT ts.ensure_partitions('{from}', '{to}')"));
        let rows: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(seq, (second, value))| {
                let time = from + jiff::SignedDuration::from_secs(*second);
                format!(
                    "('{time}', '{}', '{}', '{}', {kind}, 0, 7, {seq}, {value})",
                    tenant.id, tenant.wearer, tenant.device
                )
            })
            .collect();
        // An argument of a program is no longer than 128 KiB.
        for rows in rows.chunks(500) {
            self.sql(&format!(
                "INSERT INTO ts.readings
                   (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value) VALUES {}",
                rows.join(",")
            ));
        }
        self.days();
    }

    /// As writers note them.
    fn days(&self) {
        self.sql(
            "INSERT INTO ts.days SELECT DISTINCT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date
               FROM (SELECT tenant_id, user_id, time FROM ts.readings UNION ALL SELECT tenant_id, user_id, time FROM ts.events) r",
        );
    }

    pub fn event(&self, tenant: &Tenant, time: jiff::Timestamp) {
        let to = time + jiff::SignedDuration::from_hours(1);
        self.sql(&format!("SELECT ts.ensure_partitions('{time}', '{to}')"));
        self.sql(&format!(
            "INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, severity, confidence, key)
             VALUES ('{time}', '{}', '{}', '{}', 'hot_flash', 'info', 0.9, 'k')",
            tenant.id, tenant.wearer, tenant.device
        ));
        self.days();
    }
}

pub fn id(made: &Value) -> Uuid {
    made["id"].as_str().unwrap().parse().unwrap()
}

pub async fn call(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

pub fn request(method: Method, path: &str, token: Option<&str>, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    match body {
        Some(body) => {
            request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string()))
        }
        None => request.body(Body::empty()),
    }
    .unwrap()
}

pub async fn get(router: &Router, path: &str, token: &str) -> Answer {
    call(router, request(Method::GET, path, Some(token), None)).await
}

pub async fn log_in(router: &Router, email: &str, password: &str) -> Answer {
    let body = json!({ "email": email, "password": password });
    call(router, request(Method::POST, "/api/v1/auth/login", None, Some(body))).await
}

/// The access token of a member.
pub async fn token(app: &App, role: &str, slug: &str) -> String {
    let answer = log_in(&routes::router(app), &format!("{role}@{slug}.example"), PASSWORD).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(SystemClock.utc_us()).unwrap()
}
