//! No clinic sees another: proved for every table and view there is, by walking the catalogue.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kinara_store::{Limits, Pool, connect, migrate, pool, with_tenant};
use kinara_test_postgres::{Options, PREPARED, Postgres};
use tokio_postgres::NoTls;
use uuid::Uuid;

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);

struct World {
    server: Postgres,
    admin: tokio_postgres::Client,
    app: Pool,
    ingest: Pool,
}

async fn world() -> World {
    let migrated = async |url: String| migrate(&url).await.map(drop);
    let server = Postgres::prepared(Options::fast(), &migrate::digest(), migrated).await.unwrap();
    let url = server.superuser_url(PREPARED);
    let (admin, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    admin
        .batch_execute(
            "CREATE ROLE api LOGIN PASSWORD 'api' IN ROLE kinara_app;
             CREATE ROLE bridge LOGIN PASSWORD 'bridge' IN ROLE kinara_ingest",
        )
        .await
        .unwrap();
    let pool = |role: &str| connect(&server.url(role, role, PREPARED), "test", &Limits::default()).unwrap();
    let (app, ingest) = (pool("api"), pool("bridge"));
    World { server, admin, app, ingest }
}

/// Two clinics with one row of everything each.
async fn furnish(admin: &tokio_postgres::Client) {
    for (n, tenant) in [(1, ONE), (2, TWO)] {
        let sql = format!(
            "INSERT INTO tenants (id, name, slug) VALUES ('{tenant}', 'T{n}', 't{n}');
             INSERT INTO members (id, tenant_id, email, role, password_hash)
               VALUES ('{tenant}', '{tenant}', 'm{n}@example.org', 'admin', 'x');
             INSERT INTO sessions (id, tenant_id, member_id, family, token_hash, expires_at)
               VALUES ('{tenant}', '{tenant}', '{tenant}', '{tenant}', 't{n}', now() + interval '1 day');
             INSERT INTO api_keys (id, tenant_id, key_hash) VALUES ('{tenant}', '{tenant}', 'k{n}');
             INSERT INTO users (id, tenant_id, external_id) VALUES ('{tenant}', '{tenant}', 'u{n}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{tenant}', '{tenant}', '{tenant}', 'v1');
             INSERT INTO audit_log (id, tenant_id, actor, action) VALUES ('{tenant}', '{tenant}', 'a', 'b');
             INSERT INTO hardware (id, hardware_id) VALUES ('{tenant}', 'kinara:{n}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{tenant}', '{tenant}', 'kinara:{n}');
             INSERT INTO gateways (id, tenant_id, name) VALUES ('{tenant}', '{tenant}', 'g{n}');
             INSERT INTO gateway_buffers (gateway_id, buffer, store_id) VALUES ('{tenant}', 1, 1);
             INSERT INTO device_assignments (id, hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{tenant}', '{tenant}', '{tenant}', '{tenant}', '{tenant}', now() - interval '1 hour');
             INSERT INTO gateway_keys (gateway_id, tenant_id, key) VALUES ('{tenant}', '{tenant}', sha256('{n}'));
             INSERT INTO decisions (gateway_id, id, tenant_id, kind, at, uncertainty_us, actor_kind, actor_name,
                 payload, signature, key, received_at, settled_at)
               VALUES ('{tenant}', '{tenant}', '{tenant}', 'paired', now(), 0, 'staff', 'S{n}', '', '', '', now(), now());
             INSERT INTO staff_pins (member_id, tenant_id, name, verifier, set_at)
               VALUES ('{tenant}', '{tenant}', 'S{n}', '$argon2id$v=19$x', now());
             INSERT INTO consent_texts (tenant_id, version, language, text, sha256)
               VALUES ('{tenant}', 'v1', 'en', 'I agree', '');
             INSERT INTO bonds (id, tenant_id, gateway_id, hardware_id, adapter, how, since)
               VALUES ('{tenant}', '{tenant}', '{tenant}', 'kinara:{n}', '\\x00000000000{n}', 'label', now());
             INSERT INTO introductions (id, tenant_id, hardware_id, from_gateway, to_gateway, secret, expires_at)
               VALUES ('{tenant}', '{tenant}', 'kinara:{n}', '{tenant}', '{tenant}',
                 '\\x000102030405060708090a0b0c0d0e0f', now());
             INSERT INTO revocations (id, tenant_id, bond_id, hardware_id, gateway_id, adapter, expires_at)
               VALUES ('{tenant}', '{tenant}', '{tenant}', 'kinara:{n}', '{tenant}', '\\x00000000000{n}', now());
             INSERT INTO gateway_configs (gateway_id, tenant_id, version, digest) VALUES ('{tenant}', '{tenant}', 1, '');
             INSERT INTO moves (tenant_id, from_user, to_user) VALUES ('{tenant}', '{tenant}', gen_random_uuid());
             INSERT INTO tombstones (tenant_id, user_id) VALUES ('{tenant}', '{tenant}');
             INSERT INTO ingest_requests (id, tenant_id, digest, items, refused, told)
               VALUES ('{tenant}', '{tenant}', '', 1, 0, '[]');
             INSERT INTO differences (tenant_id, hour, written, present) VALUES ('{tenant}', now(), 1, 2);
             INSERT INTO alert_rules (id, tenant_id, name, severity, event_type)
               VALUES ('{tenant}', '{tenant}', 'r', 'info', 'hot_flash');
             INSERT INTO alerts (tenant_id, kind, user_id, title, severity, from_time, to_time)
               VALUES ('{tenant}', 'event', '{tenant}', 't', 'info', now(), now());
             INSERT INTO gateway_delivered VALUES ('{tenant}', '{tenant}', 1, '{{[0,1)}}', now());
             INSERT INTO wear VALUES ('{tenant}', 1, now(), true);
             INSERT INTO device_intervals VALUES ('{tenant}', 1, now(), 60000);
             INSERT INTO ledger (hardware, epoch) VALUES ('{tenant}', 1);
             INSERT INTO ledger_claims (hardware, epoch, tenant_id) VALUES ('{tenant}', 1, '{tenant}');
             INSERT INTO frame_times VALUES ('{tenant}', 1, '{{[0,1)}}', 0, 0, 0, 0, 0, false);
             INSERT INTO named_frames VALUES ('{tenant}', 1, 0, '{{[0,1)}}');
             INSERT INTO named_frame_times VALUES ('{tenant}', 1, 0, 0, 0, 0, false, '{{[0,1)}}', now(), now());
             INSERT INTO event_keys VALUES ('{tenant}', 'k', 'p', 1, 1, '{tenant}', '{tenant}', '{tenant}', now());
             INSERT INTO device_firmware VALUES ('{tenant}', '{tenant}', 1, '1.0.0', now());
             INSERT INTO gaps (id, hardware, epoch, seqs, reason, from_time, to_time)
               VALUES ('{tenant}', '{tenant}', 1, '{{[5,9)}}', 'overflow', now() - interval '2 hours', now());
             INSERT INTO quarantine (id, tenant_id, what, reason, payload, digest)
               VALUES ('{tenant}', '{tenant}', 'payload', 'r', '', 'd{n}');
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               VALUES (now(), '{tenant}', '{tenant}', '{tenant}', 1, 0, 1, 0, {n});
             INSERT INTO ts.readings_minute VALUES ('{tenant}', '{tenant}', 1, now(), 1, {n}, 0, {n}, {n});
             INSERT INTO ts.readings_15min VALUES ('{tenant}', '{tenant}', 1, now(), 1, {n}, 0, {n}, {n});
             INSERT INTO ts.readings_hourly VALUES ('{tenant}', '{tenant}', 1, now(), 1, {n}, 0, {n}, {n});
             INSERT INTO ts.readings_daily VALUES ('{tenant}', '{tenant}', 1, now(), 1, {n}, 0, {n}, {n}, now());
             INSERT INTO ts.inference_notes VALUES ('{tenant}', '{tenant}', now());
             INSERT INTO ts.alert_notes VALUES ('{tenant}', '{tenant}', 1, now());
             INSERT INTO ts.hrv VALUES ('{tenant}', '{tenant}', now(), 400, 0, 3e5, 750, 50, 40, 10, 900, 800);
             INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, key)
               VALUES (now(), '{tenant}', '{tenant}', '{tenant}', 'hot_flash', 'k');
             INSERT INTO ts.waveforms (time, tenant_id, user_id, device_id, type, idx, epoch, seq, scale, components, data)
               VALUES (now(), '{tenant}', '{tenant}', '{tenant}', 64, 0, 1, 1, 1, 1, '');"
        );
        admin.batch_execute(&sql).await.unwrap();
    }
    admin.batch_execute("INSERT INTO model_versions (name, version) VALUES ('m', '1')").await.unwrap();
}

/// Every table, partition, hypertable chunk, view and materialised view outside the system's own schemas.
async fn relations(admin: &tokio_postgres::Client) -> Vec<(String, String, bool, bool)> {
    admin
        .query(
            "SELECT n.nspname, c.relname, c.relkind IN ('v', 'm'), c.relrowsecurity AND c.relforcerowsecurity
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
               AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
             ORDER BY 1, 2",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect()
}

/// What holds nothing of any tenant.
const EVERYBODYS: [&str; 3] = ["channels", "model_versions", "migrations"];

#[tokio::test]
async fn every_table_and_view_shows_the_application_its_own_tenant_or_nothing() {
    let world = world().await;
    furnish(&world.admin).await;
    let relations = relations(&world.admin).await;
    assert!(relations.len() > 30, "the walk found too little: {relations:?}");
    let mut readable = 0;
    for (schema, name, is_view, forced) in &relations {
        let relation = format!("{schema}.{name}");
        if !is_view && schema == "public" {
            assert!(forced, "{relation} has no forced row-level security");
        }
        for (setting, expected) in [(Some(ONE), 1), (Some(Uuid::from_u128(9)), 0), (None, 0)] {
            let mut client = world.app.get().await.unwrap();
            let transaction = match setting {
                Some(tenant) => with_tenant(&mut client, tenant).await.unwrap(),
                None => client.transaction().await.unwrap(),
            };
            match transaction.query(&format!("SELECT to_jsonb(t)::text FROM {relation} t"), &[]).await {
                Ok(rows) if EVERYBODYS.contains(&name.as_str()) => assert!(!rows.is_empty()),
                Ok(rows) => {
                    readable += 1;
                    assert_eq!(rows.len(), expected, "{relation} under {setting:?}");
                    for row in rows {
                        let text: &str = row.get(0);
                        assert!(text.contains(&ONE.to_string()), "{relation}: {text}");
                        assert!(!text.contains(&TWO.to_string()), "{relation}: {text}");
                    }
                }
                Err(error) => {
                    assert_eq!(
                        error.code().unwrap().code(),
                        "42501",
                        "{relation}: {}",
                        kinara_store::explain(&error)
                    );
                    // What the application may not read it may not write either.
                    for right in ["INSERT", "UPDATE", "DELETE", "TRUNCATE"] {
                        let sql =
                            format!("SELECT has_table_privilege('kinara_app', '{relation}', '{right}')");
                        let granted: bool = world.admin.query_one(&sql, &[]).await.unwrap().get(0);
                        assert!(!granted, "{relation}: {right}");
                    }
                }
            }
        }
    }
    assert!(readable > 40, "too little was readable for the test to mean anything: {readable}");
}

#[tokio::test]
async fn a_connection_that_is_old_is_let_go_unless_it_is_in_use_and_the_next_one_is_another() {
    let world = world().await;
    let pid = async |client: &kinara_store::Client| -> i32 {
        client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
    };
    let used = world.app.get().await.unwrap();
    let first = pid(&world.app.get().await.unwrap()).await;
    assert_eq!(pool::let_go(&world.app, Duration::from_hours(1)), 0);
    assert_eq!(pid(&world.app.get().await.unwrap()).await, first);
    assert_eq!(pool::let_go(&world.app, Duration::ZERO), 1);
    assert_ne!(pid(&world.app.get().await.unwrap()).await, first);
    pid(&used).await;
}

#[tokio::test]
async fn a_gap_without_a_time_is_the_present_wearers_and_names_no_other_clinics_gateway() {
    let world = world().await;
    furnish(&world.admin).await;
    // The first clinic's device has gone to the second.
    world
        .admin
        .batch_execute(&format!(
            "UPDATE device_assignments SET valid_to = now() - interval '10 minutes' WHERE hardware_id = '{ONE}';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{ONE}', '{TWO}', '{TWO}', '{TWO}', now() - interval '10 minutes');
             DELETE FROM gaps;
             INSERT INTO gaps (hardware, epoch, seqs, reason, gateway_id)
               VALUES ('{ONE}', 1, '{{[20,30)}}', 'quota', '{ONE}')"
        ))
        .await
        .unwrap();
    let mut app = world.app.get().await.unwrap();
    for (tenant, expected) in [(ONE, 0), (TWO, 1)] {
        let transaction = with_tenant(&mut app, tenant).await.unwrap();
        let rows = transaction.query("SELECT gateway_id FROM wearer_gaps", &[]).await.unwrap();
        assert_eq!(rows.len(), expected, "{tenant}");
        assert!(rows.iter().all(|row| row.get::<_, Option<Uuid>>(0).is_none()));
    }
}

#[tokio::test]
async fn a_gap_that_is_cut_at_a_boundary_tells_neither_clinic_how_many_frames_the_other_lacks() {
    let world = world().await;
    furnish(&world.admin).await;
    world
        .admin
        .batch_execute(&format!(
            "UPDATE device_assignments SET valid_to = now() - interval '30 minutes' WHERE hardware_id = '{ONE}';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{ONE}', '{TWO}', '{TWO}', '{TWO}', now() - interval '30 minutes');
             DELETE FROM gaps;
             INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time) VALUES
               ('{ONE}', 1, '{{[0,10)}}', 'quota', now() - interval '50 minutes', now() - interval '40 minutes'),
               ('{ONE}', 1, '{{[100,100000)}}', 'overflow', now() - interval '31 minutes', now() - interval '5 minutes'),
               ('{ONE}', 1, '{{[200000,200020)}}', 'late', now() - interval '4 minutes', now()),
               ('{ONE}', 2, '{{[0,5)}}', 'gateway_lost', NULL, now() - interval '20 minutes'),
               ('{ONE}', 2, '{{[5,7)}}', 'expired', now() - interval '31 minutes', NULL)"
        ))
        .await
        .unwrap();
    let told = async |tenant: Uuid| {
        let mut app = world.app.get().await.unwrap();
        let transaction = with_tenant(&mut app, tenant).await.unwrap();
        let sql = "SELECT reason, frames FROM wearer_gaps ORDER BY reason";
        let rows = transaction.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, Option<i64>)>>()
    };
    let expected = |gaps: &[(&str, Option<i64>)]| {
        gaps.iter().map(|(reason, frames)| ((*reason).to_owned(), *frames)).collect::<Vec<_>>()
    };
    assert_eq!(told(ONE).await, expected(&[("expired", None), ("overflow", None), ("quota", Some(10))]));
    assert_eq!(told(TWO).await, expected(&[("gateway_lost", None), ("late", Some(20)), ("overflow", None)]));
}

#[tokio::test]
async fn the_application_writes_nothing_into_another_tenant() {
    let world = world().await;
    furnish(&world.admin).await;
    for statement in [
        "INSERT INTO users (tenant_id, external_id) VALUES ('00000000-0000-0000-0000-000000000002', 'z')",
        "INSERT INTO devices (tenant_id) VALUES ('00000000-0000-0000-0000-000000000002')",
        "UPDATE users SET tenant_id = '00000000-0000-0000-0000-000000000002'",
        "INSERT INTO events (time, tenant_id, event_type) VALUES (now(), '00000000-0000-0000-0000-000000000002', 'x')",
    ] {
        let mut client = world.app.get().await.unwrap();
        let transaction = with_tenant(&mut client, ONE).await.unwrap();
        let error = transaction.execute(statement, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{statement}");
    }
    let mut client = world.app.get().await.unwrap();
    let transaction = with_tenant(&mut client, ONE).await.unwrap();
    for (statement, touched) in [
        ("UPDATE users SET email = 'x' WHERE id = '00000000-0000-0000-0000-000000000002'", 0),
        ("DELETE FROM members WHERE id = '00000000-0000-0000-0000-000000000002'", 0),
        ("UPDATE events SET acknowledged_at = now()", 1),
    ] {
        assert_eq!(transaction.execute(statement, &[]).await.unwrap(), touched, "{statement}");
    }
}

#[tokio::test]
async fn the_bridge_writes_readings_and_reads_none_and_sees_no_secrets() {
    let world = world().await;
    furnish(&world.admin).await;
    let client = world.ingest.get().await.unwrap();
    client
        .execute(
            "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
             VALUES (now(), $1, $1, $1, 1, 0, 1, 9, 1)",
            &[&ONE],
        )
        .await
        .unwrap();
    for relation in [
        "ts.readings",
        "ts.events",
        "ts.waveforms",
        "members",
        "sessions",
        "api_keys",
        "audit_log",
        "staff_pins",
        "readings",
        "events",
    ] {
        let error = client.query(&format!("SELECT 1 FROM {relation}"), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{relation}");
    }
    // Of a wearer it sees what a roster carries.
    for column in ["email", "profile"] {
        assert!(client.query(&format!("SELECT {column} FROM users"), &[]).await.is_err(), "users.{column}");
    }
    for relation in
        ["ledger", "ledger_claims", "gaps", "quarantine", "frame_times", "named_frames", "named_frame_times"]
    {
        let rows = client.query(&format!("SELECT 1 FROM {relation}"), &[]).await.unwrap();
        assert_eq!(rows.len(), 2, "{relation}");
    }
}

#[tokio::test]
async fn a_login_is_looked_up_without_a_tenant_and_nothing_else_is() {
    let world = world().await;
    furnish(&world.admin).await;
    let client = world.app.get().await.unwrap();
    let row = client.query_one("SELECT tenant_id FROM login_lookup('M2@example.org')", &[]).await.unwrap();
    assert_eq!(row.get::<_, Uuid>(0), TWO);
    assert!(client.query("SELECT * FROM login_lookup('nobody@example.org')", &[]).await.unwrap().is_empty());
    assert!(client.query("SELECT * FROM members", &[]).await.unwrap().is_empty());
    assert_eq!(client.query("SELECT * FROM session_lookup('t1')", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_late_day_finds_its_place_is_compressed_and_an_expired_one_is_dropped() {
    let world = world().await;
    furnish(&world.admin).await;
    let client = world.ingest.get().await.unwrap();
    let number = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i32>(0);
    number("SELECT ts.ensure_partitions(now() - interval '400 days', now() - interval '400 days')").await;
    for (table, columns, values) in
        [("readings", "value", "1"), ("waveforms", "scale, components, data", "1, 1, '\\x00000000'")]
    {
        let sql = format!(
            "INSERT INTO ts.{table} (time, tenant_id, user_id, device_id, type, idx, epoch, seq, {columns})
             VALUES (now() - interval '400 days', '{ONE}', '{ONE}', '{ONE}', 1, 0, 1, 99, {values})"
        );
        client.execute(&sql, &[]).await.unwrap();
    }
    assert_eq!(number("SELECT ts.drop_expired()").await, 1, "waveforms live a month, readings two years");
    let timescale = world.admin.query_one("SELECT kind FROM ts.storage", &[]).await.unwrap();
    let compressed = i32::from(timescale.get::<_, &str>(0) == "timescale");
    assert_eq!(number("SELECT ts.compress_closed()").await, compressed);
    assert_eq!(number("SELECT ts.compress_closed()").await, 0);
    let mut app = world.app.get().await.unwrap();
    let old = "SELECT count(*) FROM readings WHERE time < now() - interval '300 days'";
    for (tenant, expected) in [(ONE, 1i64), (TWO, 0)] {
        let transaction = with_tenant(&mut app, tenant).await.unwrap();
        assert_eq!(transaction.query_one(old, &[]).await.unwrap().get::<_, i64>(0), expected);
    }
}

#[tokio::test]
async fn migrating_at_once_from_many_programs_applies_each_migration_once() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    let other = server.fresh_database().unwrap();
    let runs: Vec<_> = [&url, &other, &url, &other, &url]
        .map(|url| {
            let url = url.clone();
            tokio::spawn(async move { migrate(&url).await.unwrap().applied })
        })
        .into_iter()
        .collect();
    let mut applied = 0;
    for run in runs {
        applied += run.await.unwrap();
    }
    let rows = ["test_0", "test_1"].map(|database| {
        let text = server.psql(database, "SELECT count(*) FROM kinara.migrations").unwrap();
        text.trim().parse::<usize>().unwrap()
    });
    assert!(rows[0] > 0 && rows[0] == rows[1]);
    assert_eq!(applied, rows[0] + rows[1], "each once in each database");
    server.psql("test_0", "UPDATE kinara.migrations SET checksum = 'x' WHERE version = 3").unwrap();
    assert!(matches!(migrate(&url).await, Err(kinara_store::Error::Changed(name)) if name == "0003_ledger"));
    server.psql("test_1", "INSERT INTO kinara.migrations VALUES (99, 'n', 'plain', 'x')").unwrap();
    assert!(matches!(migrate(&other).await, Err(kinara_store::Error::Newer { found: 99, .. })));
}

#[tokio::test]
async fn a_device_is_never_assigned_twice_at_one_time_in_the_whole_system() {
    let world = world().await;
    furnish(&world.admin).await;
    let error = world
        .admin
        .execute(
            "INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
             VALUES ($1, $2, $2, $2, now() - interval '1 minute')",
            &[&ONE, &TWO],
        )
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23P01");
    drop(world.server);
}
