//! What a clinic's pages cost where they ask for the newest, whoever's.

use kinara_cloud_api::resources::{alerts, decisions, events, gaps};
use serde_json::Value;
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::common::{Cloud, get, token};

/// What a clinic had each quarter of an hour of two years, but for what was never dealt with long ago.
fn history(cloud: &Cloud) -> String {
    let (tenant, user, device) = (cloud.here.id, cloud.here.wearer, cloud.here.device);
    let gateway = cloud.here.gateway;
    format!(
        "CREATE TEMPORARY TABLE times AS SELECT g, now() - make_interval(mins => 15 * g) AS t FROM generate_series(1, 70000) g;
         SELECT ts.ensure_partitions(now() - interval '10 days', now());
         INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, key)
           SELECT now() - make_interval(secs => g * 10), '{tenant}', '{user}', '{device}', 'hot_flash', g::text::bytea FROM times;
         INSERT INTO alerts (tenant_id, kind, user_id, title, severity, from_time, to_time, raised_at, acknowledged_at)
           SELECT '{tenant}', 'event', '{user}', 't', 'info', t, t, t, CASE WHEN g < 69900 THEN t END FROM times;
         INSERT INTO decisions (gateway_id, id, tenant_id, kind, at, uncertainty_us, actor_kind, actor_name, payload, signature,
             key, received_at, settled_at)
           SELECT '{gateway}', gen_random_uuid(), '{tenant}', 'paired', t, 0, 'staff', 's', '', '', '', t, t FROM times;
         INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time)
           SELECT h.id, g, '{{[5,9)}}', 'quota', t, t + interval '10 minutes' FROM times, hardware h JOIN devices d USING (hardware_id)
           WHERE d.id = '{device}';
         ANALYZE"
    )
}

#[tokio::test]
async fn the_newest_of_a_clinic_are_read_without_the_rest_of_the_period() {
    let cloud = Cloud::start().await;
    let (admin, connection) = tokio_postgres::connect(&cloud.admin_url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    admin.batch_execute(&history(&cloud)).await.unwrap();
    // Rows, and blocks the second time: the first one learns what there is.
    let asked = async |sql: &str, values: &[&str], clinic: Uuid| {
        let sql = values
            .iter()
            .enumerate()
            .fold(sql.to_owned(), |sql, (place, value)| sql.replace(&format!("${}", place + 1), value));
        let name = format!("SELECT set_config('kinara.tenant', '{clinic}', true)");
        let begin = format!("BEGIN; SET LOCAL jit = off; {name}; SET LOCAL ROLE kinara_app");
        admin.batch_execute(&begin).await.unwrap();
        let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}");
        admin.query_one(&explain, &[]).await.unwrap();
        let plan = admin.query_one(&explain, &[]).await.unwrap().get::<_, Value>(0);
        admin.batch_execute("ROLLBACK").await.unwrap();
        let number = |of: &str| plan[0]["Plan"][of].as_f64().unwrap() as i64;
        (number("Actual Rows"), number("Shared Hit Blocks") + number("Shared Read Blocks"))
    };
    let (nobody, ten_days) = ("NULL::uuid", "now() - interval '10 days'");
    for (name, sql, values, rows) in [
        ("events", events::OF_CLINIC, &[ten_days, "now()", "100"][..], 100),
        ("alerts", alerts::NEWEST, &[nobody, "false", "100"], 100),
        ("open alerts", alerts::NEWEST, &[nobody, "true", "100"], 100),
        ("decisions", decisions::NEWEST, &["NULL::text", nobody, "100"], 100),
        ("gaps", gaps::WITHIN, &[nobody, "now() - interval '1 day'", "now()", "1000"], 96),
    ] {
        let (found, blocks) = asked(sql, values, cloud.here.id).await;
        println!("{name:12} {blocks}");
        // All of them lie in a thousand blocks and more.
        assert!(found == rows && blocks < 400, "{name}: {found} rows of {rows}, {blocks} blocks");
        assert_eq!(asked(sql, values, cloud.there.id).await.0, 0, "{name}: another clinic's");
    }
}

#[tokio::test]
async fn the_gaps_of_a_clinic_are_those_that_touch_the_period_and_its_own() {
    let cloud = Cloud::start().await;
    let app = cloud.app();
    let router = kinara_cloud_api::routes::router(&app);
    cloud.sql(
        "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, withdrawn_at)
           SELECT h.id, n, int8multirange(int8range(0, n)), 'quota', f::timestamptz, t::timestamptz, w::timestamptz
           FROM hardware h, (VALUES
             (1, '2026-03-01 10:00Z', '2026-03-01 10:05Z', NULL), (2, '2026-03-01 11:00Z', '2026-03-05 00:00Z', NULL),
             (3, NULL, '2026-03-01 12:30Z', NULL), (4, '2026-03-01 12:40Z', NULL, NULL),
             (5, '2026-03-01 12:50Z', '2026-03-01 12:55Z', '2026-03-02Z'), (6, '2026-03-01 14:00Z', '2026-03-01 14:05Z', NULL),
             (7, NULL, NULL, NULL)) v(n, f, t, w)",
    );
    let clinician = token(&app, "clinician", "here").await;
    for of in [String::new(), format!("&user_id={}", cloud.here.wearer)] {
        let path = format!("/api/v1/gaps?from=2026-03-01T12:00:00Z&to=2026-03-01T13:00:00Z{of}");
        let answer = get(&router, &path, &clinician).await.json();
        let items = answer["items"].as_array().unwrap();
        assert!(items.iter().all(|gap| gap["user_id"] == cloud.here.wearer.to_string()), "{items:?}");
        let mut frames: Vec<Option<i64>> = items.iter().map(|gap| gap["frames"].as_i64()).collect();
        frames.sort_unstable();
        assert_eq!(frames, [Some(2), Some(3), Some(4), Some(7)]);
    }
}
