//! What a statement costs is a matter of what it asks for, and not of what else there is.
//!
//! The bridge's housekeeping, the write's look-ups and the pages' questions are each asked of a slice that stays the same,
//! while the rest of the tables grows tenfold: with statistics of before, and with fresh ones. Counted are blocks, those of
//! nested statements and of planning included. `KINARA_PLAN_ROWS` (1,000,000) is what the readings grow to, and
//! `KINARA_PLAN_DAYS` (6) how many days these are of then; the long test takes ten million of three hundred days.

#![allow(clippy::unwrap_used)]

use kinara_cloud_api::resources::coverage::GAPS;
use kinara_cloud_api::resources::readings::{SERIES, series_of};
use kinara_cloud_api::resources::{alerts, days, decisions, events, gaps};
use kinara_store::migrate;
use kinara_test_postgres::{Options, Postgres};
use serde_json::Value;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

const TENANT: Uuid = Uuid::from_u128(1);
/// Who is asked about.
const WEARER: Uuid = Uuid::from_u128(0x31);
const DEVICE: Uuid = Uuid::from_u128(0x51);
/// Hours of two channels, a reading each four seconds: the wearer's slice. It is a small part of its day from the beginning.
const HOURS: i64 = 2;
/// Days of the others' readings before they grow.
const DAYS_BEFORE: i64 = 6;
/// An index gets a level more, a list's page splits otherwise: blocks that are no growth.
const SLACK: i64 = 24;
/// The same for twenty keys whose rows are locked: each is looked up twice, so a level more counts twice for each.
const SLACK_OF_THE_LOCK: i64 = 40;
/// For twenty keys of each of which four things are looked up.
const SLACK_OF_NUMBERS: i64 = 80;

struct World {
    admin: Client,
    _server: Postgres,
}

async fn world() -> World {
    let server = Postgres::temporary_with(
        Options::new()
            .setting("fsync", "off")
            .setting("synchronous_commit", "off")
            .setting("full_page_writes", "off")
            .setting("shared_buffers", "256MB")
            // Statistics are made when the test says so.
            .setting("autovacuum", "off"),
    )
    .unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let (admin, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    World { admin, _server: server }
}

fn number(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

impl World {
    async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap_or_else(|error| {
            panic!("{sql}: {}", kinara_store::explain(&error));
        });
    }

    /// The wearer with a slice of everything, and as many others as there may ever be.
    async fn furnish(&self, days: i64, others: i64) {
        self.run(&format!(
            "INSERT INTO tenants (id, name, slug) VALUES ('{TENANT}', 'One', 'one');
             INSERT INTO users (id, tenant_id) VALUES ('{WEARER}', '{TENANT}');
             INSERT INTO gateways (id, tenant_id, name) VALUES ('{TENANT}', '{TENANT}', 'A');
             INSERT INTO users (id, tenant_id) SELECT {OTHER}, '{TENANT}' FROM generate_series(1, {others}) g;
             INSERT INTO hardware (id, hardware_id) VALUES ('{WEARER}', 'kinara:w');
             INSERT INTO hardware (id, hardware_id) SELECT {OTHER}, 'kinara:' || g FROM generate_series(1, {others}) g;
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{DEVICE}', '{TENANT}', 'kinara:w');
             INSERT INTO devices (id, tenant_id, hardware_id) SELECT {OTHER}, '{TENANT}', 'kinara:' || g
               FROM generate_series(1, {others}) g;
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{WEARER}', '{TENANT}', '{WEARER}', '{DEVICE}', now() - interval '1000 days');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               SELECT {OTHER}, '{TENANT}', {OTHER}, {OTHER}, now() - interval '1000 days' FROM generate_series(1, {others}) g;
             INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at)
               VALUES ('{TENANT}', 'fast', 'warning', 1, 100, 3, 'epoch');
             SELECT ts.ensure_partitions(now() - make_interval(days => {days}), now());
             SELECT ts.ensure_partitions(now() - interval '720 days', now() - interval '720 days');
             INSERT INTO ts.readings SELECT {SINCE} + make_interval(secs => s), '{TENANT}', '{WEARER}', '{DEVICE}', c, 0, 1, s,
                 CASE c WHEN 1 THEN 60 + s % 40 ELSE 900 + s % 50 END
               FROM generate_series(0, {HOURS} * 3600 - 1, 4) s, generate_series(1, 2) c;
             -- A channel that has been silent for two years.
             INSERT INTO ts.readings SELECT now() - interval '720 days', '{TENANT}', '{WEARER}', '{DEVICE}', 5, 0, 1, s, 1
               FROM generate_series(1, 100) s;
             -- A wearable that lies on a table.
             INSERT INTO ts.readings SELECT now() - make_interval(secs => s), '{TENANT}', '{WEARER}', '{DEVICE}', 3, 0, 2, s, 1, 0
               FROM generate_series(1, 20000) s;
             INSERT INTO ts.waveforms (time, tenant_id, user_id, device_id, type, idx, epoch, seq, scale, components, data)
               SELECT {SINCE} + make_interval(secs => s), '{TENANT}', '{WEARER}', '{DEVICE}', 64, 0, 1, s, 1, 1, ''
               FROM generate_series(1, 100) s;
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings
               WHERE type IN (1, 2);
             SELECT ts.roll_up(1000, '-infinity');
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings
               WHERE type IN (1, 2);
             INSERT INTO ts.hrv SELECT '{TENANT}', '{WEARER}', {SINCE} + make_interval(mins => 5 * s), 300, 0, 3e5, 900, 40, 30, 5
               FROM generate_series(0, 12 * {HOURS} - 1) s;
             INSERT INTO ledger (hardware, epoch, highest, named) SELECT '{WEARER}', e, 9999, true FROM generate_series(1, 20) e;
             INSERT INTO named_frames SELECT '{WEARER}', e, p, int8multirange(int8range(1024 * p, 1024 * p + 9))
               FROM generate_series(1, 20) e, generate_series(0, 9) p;
             INSERT INTO named_frame_times SELECT hardware, epoch, part, 0, 0, 0, false, seqs, now(), now() FROM named_frames;
             INSERT INTO ledger_claims (hardware, epoch, tenant_id, seqs, alias)
               SELECT '{WEARER}', e, t, '{{[5,9)}}', 1000 + e FROM generate_series(1, 20) e, (VALUES ('{TENANT}'::uuid), ('{DEVICE}')) v(t);
             INSERT INTO frame_times SELECT '{WEARER}', e, '{{[0,1000)}}', 0, 5, 0, 0, 0, false FROM generate_series(1, 20) e;
             INSERT INTO event_keys (hardware, kind, producer, epoch, grid, tenant_id, user_id, device_id, time)
               SELECT '{WEARER}', 'k', 'p', e, 1, '{TENANT}', '{WEARER}', '{DEVICE}', {SINCE} FROM generate_series(1, 20) e;
             INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, updated_at)
               SELECT '{WEARER}', e, '{{[5,9)}}', 'late', {SINCE}, {SINCE}, '2000-01-01' FROM generate_series(1, 20) e;
             INSERT INTO device_intervals SELECT '{WEARER}', 1, {SINCE} + make_interval(mins => s), 60000 + s % 2
               FROM generate_series(0, 100) s;
             INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, key)
               SELECT {SINCE} + make_interval(mins => s), '{TENANT}', '{WEARER}', '{DEVICE}', 'hot_flash', s::text::bytea
               FROM generate_series(0, 100) s;
             INSERT INTO ts.days SELECT DISTINCT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date FROM (
               SELECT tenant_id, user_id, time FROM ts.readings UNION ALL SELECT tenant_id, user_id, time FROM ts.waveforms
               UNION ALL SELECT tenant_id, user_id, time FROM ts.events) r;
             INSERT INTO decisions (gateway_id, id, tenant_id, kind, at, uncertainty_us, actor_kind, actor_name, user_id, payload,
                 signature, key, received_at, settled_at)
               SELECT '{TENANT}', gen_random_uuid(), '{TENANT}', 'assigned', {SINCE}, 0, 'member', 'm', '{WEARER}', '', '', '',
                 {SINCE}, {SINCE} FROM generate_series(1, 20);
             INSERT INTO alerts (tenant_id, kind, user_id, title, severity, from_time, to_time)
               SELECT '{TENANT}', 'event', '{WEARER}', 't', 'info', {SINCE}, {SINCE} FROM generate_series(1, 20);
             INSERT INTO ts.written_hours SELECT '{TENANT}', {SINCE} + make_interval(hours => h), 1, now()
               FROM generate_series(0, {HOURS} - 1) h",
        ))
        .await;
    }

    /// The others' part of so many readings, of these days.
    async fn grow(&self, others: std::ops::RangeInclusive<i64>, rows: i64, days: i64) {
        let (first, last) = (others.start(), others.end());
        let each = rows / (last - first + 1);
        let over = format!(
            "FROM generate_series({first}, {last}) g, generate_series(0, {each} - 1) s,
               LATERAL (SELECT now() - make_interval(secs => (s + 0.5) * {days} * 86400.0 / {each}) AS at) t"
        );
        let tenth = over.replace(&format!("{each} - 1"), &format!("{each} / 10"));
        self.run(&format!(
            "INSERT INTO ts.readings SELECT t.at, '{TENANT}', {OTHER}, {OTHER}, 1, 0, 1, s, 70 {over};
             INSERT INTO ts.readings_minute SELECT '{TENANT}', {OTHER}, 1, t.at, 60, 70, 1, 60, 80 {over};
             INSERT INTO ts.readings_15min SELECT '{TENANT}', {OTHER}, 1, t.at, 60, 70, 1, 60, 80 {tenth};
             INSERT INTO ts.readings_hourly SELECT '{TENANT}', {OTHER}, 1, t.at, 60, 70, 1, 60, 80 {tenth};
             INSERT INTO ts.readings_daily SELECT '{TENANT}', {OTHER}, 1, t.at, 60, 70, 1, 60, 80, '2020-01-01'::date + s {tenth};
             INSERT INTO ts.hrv SELECT '{TENANT}', {OTHER}, t.at, 300, 0, 3e5, 900, 40, 30, 5 {tenth};
             INSERT INTO ts.events SELECT t.at, '{TENANT}', {OTHER}, {OTHER}, 'hot_flash', NULL, NULL, '{{}}', NULL, 'k' {tenth};
             INSERT INTO ledger (hardware, epoch, seqs, highest) SELECT {OTHER}, s, '{{[0,1000)}}', 999 {tenth};
             INSERT INTO ledger_claims (hardware, epoch, tenant_id) SELECT {OTHER}, s, '{TENANT}' {tenth};
             INSERT INTO frame_times SELECT {OTHER}, s, '{{[0,1000)}}', 0, 5, 0, 0, 0, false {tenth};
             -- Another source, and this one: what it used before grows as well.
             INSERT INTO named_frames SELECT {OTHER}, 0, s, '{{}}' {tenth};
             INSERT INTO named_frames SELECT '{WEARER}', 1 + g % 20, 100000 * g + s, '{{}}' {tenth};
             INSERT INTO named_frame_times SELECT {OTHER}, 0, s, 0, 0, 0, false, '{{}}', t.at, t.at {tenth};
             INSERT INTO named_frame_times SELECT '{WEARER}', 1 + g % 20, 100000 * g + s, 0, 0, 0, false, '{{}}', now(), now() {tenth};
             INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time)
               SELECT {OTHER}, s, '{{[5,9)}}', 'quota', t.at, t.at {tenth};
             INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, updated_at, looked_at)
               SELECT {OTHER}, s, '{{[5,9)}}', 'late', t.at, t.at, now() - interval '1 day', now() {tenth};
             -- What the wearer's device lost before and after the slice.
             INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time)
               SELECT '{WEARER}', 1000 + g, int8multirange(int8range(s * 4, s * 4 + 1)), 'quota', v.at, v.at
               FROM (SELECT g, s, CASE WHEN s % 2 = 0 THEN now() - make_interval(secs => s) ELSE {SINCE} - make_interval(secs => s) END
                 AS at {tenth} WHERE s % 500 < 2) v;
             INSERT INTO ts.days SELECT '{TENANT}', {OTHER}, d::date
               FROM generate_series({first}, {last}) g, generate_series(now() - interval '{days} days', now(), '1 day') d;
             INSERT INTO introductions (tenant_id, hardware_id, from_gateway, to_gateway, state, settled_at, expires_at)
               SELECT '{TENANT}', 'kinara:' || g, '{TENANT}', '{TENANT}', 'done', now(), now() {tenth};
             INSERT INTO quarantine (tenant_id, what, hardware_id, epoch, seq, reason, payload, digest)
               SELECT '{TENANT}', 'frame', 'kinara:' || g, 1, s, 'unsure', 'x', sha256((g || ' ' || s)::bytea) {tenth};
             INSERT INTO alerts (tenant_id, kind, user_id, title, severity, from_time, to_time)
               SELECT '{TENANT}', 'event', {OTHER}, 't', 'info', t.at, t.at {tenth};
             INSERT INTO device_intervals SELECT {OTHER}, 1, t.at, 60000 + s % 2 {tenth} ON CONFLICT DO NOTHING;
             INSERT INTO ts.written_hours SELECT '{TENANT}', t.at, 1, now(), now() {tenth} ON CONFLICT DO NOTHING;
             INSERT INTO audit_log (tenant_id, actor, action, target, detail)
               SELECT '{TENANT}', 'm', 'users.update', 'user:' || {OTHER}, jsonb_build_object('user_id', {OTHER}) {tenth};
             INSERT INTO decisions (gateway_id, id, tenant_id, kind, at, uncertainty_us, actor_kind, actor_name, user_id, payload,
                 signature, key, received_at, settled_at)
               SELECT '{TENANT}', gen_random_uuid(), '{TENANT}', 'assigned', t.at, 0, 'member', 'm', {OTHER}, uuid_send({OTHER}),
                 '', '', t.at, t.at {tenth};
             INSERT INTO moves (tenant_id, from_user, to_user, settled_at) SELECT '{TENANT}', {OTHER}, '{TENANT}', now() {tenth}"
        ))
        .await;
        // What looks at each event would take as long as all of the rest.
        self.run(&format!(
            "SET session_replication_role = replica;
             INSERT INTO event_keys (hardware, kind, producer, epoch, grid, tenant_id, user_id, device_id, time)
               SELECT {OTHER}, 'k', 'p', 1, s, '{TENANT}', {OTHER}, {OTHER}, t.at {tenth};
             RESET session_replication_role"
        ))
        .await;
    }

    /// Blocks that a statement touches the second time: the first one learns what there is.
    async fn blocks(&self, question: &Question) -> i64 {
        let mut blocks = 0;
        for _ in 0..2 {
            let role = if question.page { "SET LOCAL ROLE kinara_app" } else { "" };
            self.run(&format!(
                "BEGIN; SET LOCAL jit = off; SELECT set_config('kinara.tenant', '{TENANT}', true); {}; {role}",
                question.before
            ))
            .await;
            let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}", question.sql);
            let row = self.admin.query_one(&explain, &[]).await.unwrap_or_else(|error| {
                panic!("{}: {}", question.name, kinara_store::explain(&error));
            });
            let plan: Value = row.get(0);
            let touched = |of: &Value| {
                ["Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks"]
                    .iter()
                    .filter_map(|kind| of[kind].as_i64())
                    .sum::<i64>()
            };
            blocks = touched(&plan[0]["Plan"]) + touched(&plan[0]["Planning"]);
            self.run("ROLLBACK").await;
        }
        blocks
    }

    async fn all(&self, questions: &[Question]) -> Vec<i64> {
        let mut out = Vec::new();
        for question in questions {
            out.push(self.blocks(question).await);
        }
        out
    }
}

/// Another wearer, their hardware and device, by number.
const OTHER: &str = "('00000000-0000-0000-0001-' || lpad(to_hex(g), 12, '0'))::uuid";
/// Where the wearer's slice begins.
const SINCE: &str = "(date_bin('1 day', now(), 'epoch') - interval '3 days')";

struct Question {
    name: &'static str,
    /// What has to be there.
    before: String,
    sql: String,
    /// Asked by a page, as its role.
    page: bool,
}

/// A list as the write gives it.
const KEYS: &str = "unnest(array_fill('00000000-0000-0000-0000-000000000031'::uuid, ARRAY[20]), ARRAY(SELECT generate_series(1, 20)::int8))";

fn questions() -> Vec<Question> {
    let (until, ask) = (format!("({SINCE} + interval '{HOURS} hours')"), Uuid::nil());
    let filled = |sql: &str| {
        sql.replace("$1", &format!("'{WEARER}'"))
            .replace("$2", "'heart_rate'")
            .replace("$3", SINCE)
            .replace("$4", &until)
            .replace("$5", "60")
    };
    let own = |name, before: String, sql: String| Question { name, before, sql, page: false };
    let page = |name, sql: String| Question { name, before: "SELECT".to_owned(), sql, page: true };
    let none = || "SELECT".to_owned();
    let of = |from: &str, to: &str| {
        format!(
            "INSERT INTO moves (id, tenant_id, from_user, to_user) VALUES ('{ask}', '{TENANT}', '{from}', '{to}')"
        )
    };
    let newest = |sql: &str, first: &str, second: &str| {
        sql.replace("$1", first).replace("$2", second).replace("$3", "20")
    };
    let stone = format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{WEARER}')");
    let erase = |days: i32| format!("SELECT ts.erase('{TENANT}', '{WEARER}', {days})");
    vec![
        own("clinics that wait", none(), "SELECT ts.stale_clinics()".into()),
        own("expired aggregates", none(), "SELECT ts.drop_expired_rollups(10000)".into()),
        own("expired windows", none(), "SELECT ts.drop_expired_hrv(10000)".into()),
        own("HRV", format!("INSERT INTO ts.stale_hrv SELECT '{TENANT}', '{WEARER}', {SINCE} + make_interval(hours => h)
            FROM generate_series(0, {HOURS} - 1) h"), "SELECT * FROM ts.take_hrv(50, '-infinity')".into()),
        own("alerts", format!("INSERT INTO ts.alert_notes SELECT '{TENANT}', '{WEARER}', t, {SINCE} + make_interval(hours => h)
            FROM generate_series(0, {HOURS} - 1) h, (VALUES (1), (NULL)) v(t)"),
            format!("SELECT * FROM ts.take_alert_notes('{TENANT}', 500, '-infinity', 600)")),
        own("inference", format!("INSERT INTO ts.inference_notes SELECT '{TENANT}', '{WEARER}', {SINCE} + make_interval(hours => h)
            FROM generate_series(0, {HOURS} - 1) h"),
            format!("SELECT * FROM ts.take_inference_notes('{TENANT}', 50, '-infinity', '10 min', '10 min')")),
        own("move", of(&WEARER.to_string(), "00000000-0000-0000-0001-000000000001"),
            format!("SELECT ts.move('{ask}', 1)")),
        own("erasure of a day", stone.clone(), erase(1)),
        own("the end of an erasure", format!("{stone}; {}", erase(1000)), erase(1)),
        own("whether something is stored of a device", none(), format!("SELECT ts.stored_within('{TENANT}', '{WEARER}', '{TENANT}',
            now() - interval '1000 days', NULL, NULL, NULL, NULL, NULL)")),
        own("gaps' turn", none(), "SELECT * FROM ts.gaps_to_look_at(now() - interval '1 hour', 20, 20)".into()),
        own("the quarantine's limits", none(), "SELECT * FROM ts.quarantine_excess(1000000, 1000000000)".into()),
        own("the quarantine's age", none(), "SELECT id FROM quarantine WHERE received_at < now() - interval '90 days'
            ORDER BY received_at LIMIT 5000".into()),
        own("the ledger's lock", none(), format!("SELECT l.hardware, l.epoch, CASE WHEN l.named THEN '{{}}' ELSE l.seqs::text END, l.highest, l.highest_time,
              l.stretches, l.named, l.tenant
            FROM ledger l JOIN {KEYS} k(hardware, epoch) ON l.hardware = k.hardware AND l.epoch = k.epoch
            ORDER BY l.hardware, l.epoch FOR UPDATE OF l")),
        own("the parts of a batch's names", none(), format!("SELECT k.hardware, k.epoch, f.seqs::text
            FROM (SELECT hardware, epoch, 4 AS first, 5 AS last FROM {KEYS} k(hardware, epoch)) k
            CROSS JOIN LATERAL (
              SELECT f.seqs FROM named_frames f WHERE f.hardware = k.hardware AND f.epoch = k.epoch
                AND f.part BETWEEN k.first AND k.last OFFSET 0) f")),
        own("a batch's names", none(), format!("INSERT INTO named_frames AS f (hardware, epoch, part, seqs)
            SELECT hardware, epoch, 4, '{{[4100,4101)}}' FROM {KEYS} k(hardware, epoch)
            ON CONFLICT (hardware, epoch, part) DO UPDATE SET seqs = f.seqs + excluded.seqs")),
        own("how the times of a batch's names came about", none(), format!("
            INSERT INTO named_frame_times AS f (hardware, epoch, part, seqs, rate_ppb, uncertainty_us, growth_ppb, time_uncertain,
              created_at, updated_at)
            SELECT hardware, epoch, 4, '{{[4100,4101)}}', 0, 0, 0, false, now(), now() FROM {KEYS} k(hardware, epoch)
            ON CONFLICT (hardware, epoch, part, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
            DO UPDATE SET seqs = f.seqs + excluded.seqs, updated_at = excluded.updated_at")),
        own("what other clinics have of a batch's epochs", none(), format!("SELECT c.hardware, c.epoch, c.tenant_id, c.seqs::text,
              c.stretches, c.alias
            FROM {KEYS} k(hardware, epoch)
            CROSS JOIN LATERAL (
              SELECT * FROM ledger_claims c WHERE c.hardware = k.hardware AND c.epoch = k.epoch OFFSET 0) c")),
        own("what a batch adds to it", none(), format!("INSERT INTO ledger_claims AS c (hardware, epoch, tenant_id, seqs, stretches)
            SELECT hardware, epoch, '{TENANT}', '{{[9,10)}}', '' FROM {KEYS} n(hardware, epoch)
            ON CONFLICT (hardware, epoch, tenant_id) DO UPDATE SET seqs = c.seqs + excluded.seqs, stretches = excluded.stretches")),
        own("epochs beside a batch's that are known", none(), format!("SELECT c.hardware, c.epoch, c.tenant_id, c.alias
            FROM {KEYS} k(hardware, epoch)
            CROSS JOIN LATERAL (
              SELECT * FROM ledger_claims c WHERE c.hardware = k.hardware AND c.epoch = k.epoch AND c.tenant_id = '{TENANT}'
                AND c.alias IS NOT NULL OFFSET 0) c")),
        own("epochs beside a batch's", none(), format!("INSERT INTO ledger_claims AS c (hardware, epoch, tenant_id, alias)
            SELECT hardware, epoch, '{TENANT}', 7 FROM {KEYS} n(hardware, epoch)
            ON CONFLICT (hardware, epoch, tenant_id) DO UPDATE SET alias = coalesce(c.alias, excluded.alias)
            RETURNING hardware, epoch, tenant_id, alias")),
        own("fits of numbers that another clinic has", none(), format!("SELECT f.epoch, f.seqs::text, f.ref_ticks, f.ref_utc_us, f.rate_ppb
            FROM (SELECT hardware, epoch, '{{[5,9)}}' AS seqs FROM {KEYS} k(hardware, epoch)) k
            CROSS JOIN LATERAL (
              SELECT f.epoch, f.seqs * k.seqs::int8multirange AS seqs, f.ref_ticks, f.ref_utc_us, f.rate_ppb
              FROM frame_times f WHERE f.hardware = k.hardware AND f.epoch = k.epoch AND f.seqs && k.seqs::int8multirange OFFSET 0) f")),
        own("fits of names that another clinic has", none(), format!("SELECT f.epoch, f.seqs::text, f.rate_ppb
            FROM (SELECT hardware, epoch, 4 AS first, 5 AS last FROM {KEYS} k(hardware, epoch)) k
            CROSS JOIN LATERAL (
              SELECT f.epoch, f.seqs, f.rate_ppb FROM named_frame_times f
              WHERE f.hardware = k.hardware AND f.epoch = k.epoch AND f.part BETWEEN k.first AND k.last OFFSET 0) f")),
        own("whether frames are there", none(), format!("SELECT * FROM ts.found('{WEARER}', 1, ARRAY(SELECT n::int4 FROM generate_series(0, 99) n),
            ARRAY(SELECT 4 * n::int8 FROM generate_series(0, 99) n), array_fill(1::int2, ARRAY[100]), array_fill(0::int2, ARRAY[100]),
            ARRAY(SELECT {SINCE} + make_interval(secs => 4 * n) FROM generate_series(0, 99) n), array_fill(70::float8, ARRAY[100]),
            array_fill(NULL::bytea, ARRAY[100]))")),
        own("events that another clinic told", none(), format!("SELECT k.place, e.time
            FROM {KEYS} WITH ORDINALITY k(hardware, epoch, place)
            CROSS JOIN LATERAL (
              SELECT e.time FROM event_keys e WHERE e.hardware = k.hardware AND e.kind = 'k' AND e.producer = 'p'
                AND e.epoch = k.epoch AND e.grid = 1 AND e.tenant_id <> '{DEVICE}' OFFSET 0) e")),
        own("open gaps of a batch", none(), format!("SELECT k.hardware, k.epoch, g.reason, g.seqs::text
            FROM (SELECT DISTINCT * FROM {KEYS}) k(hardware, epoch) CROSS JOIN LATERAL (
              SELECT g.reason, g.seqs FROM gaps g WHERE g.hardware = k.hardware AND g.epoch = k.epoch
                AND g.withdrawn_at IS NULL AND g.seqs && int8range(0, 1000) OFFSET 0) g")),
        own("a batch's frames in quarantine", none(), format!("SELECT k.hardware, k.epoch, q.seq
            FROM (SELECT DISTINCT * FROM {KEYS}) k(hardware, epoch) CROSS JOIN LATERAL (
              SELECT q.seq FROM quarantine q WHERE q.hardware_id = (SELECT h.hardware_id FROM hardware h WHERE h.id = k.hardware)
                AND q.epoch = k.epoch AND q.what = 'frame' AND q.seq IS NOT NULL AND q.reason <> 'foreign_gateway' OFFSET 0) q")),
        own("whose refused numbers may be", none(), format!("SELECT k.*, c.possible FROM {KEYS} k(hardware, epoch)
            CROSS JOIN LATERAL ts.numbers_of(k.hardware, k.epoch, now()) c WHERE c.clinic = '{TENANT}'")),
        own("rules that look again", "INSERT INTO device_intervals VALUES ('00000000-0000-0000-0000-000000000031', 1, now(), 5000)".into(),
            format!("SELECT ts.note_intervals(ARRAY['{WEARER}'::uuid], ARRAY[1::int2], ARRAY[now()], ARRAY[5000])")),
        own("notes of what changed", format!("INSERT INTO ts.interval_looks (tenant_id, hardware, channel, from_time, to_time)
            VALUES ('{TENANT}', '{WEARER}', 1, {SINCE}, {until})"), format!("SELECT ts.spread_looks('{TENANT}', 1000)")),
        own("old intervals", none(), "SELECT forget_intervals(now() - interval '1827 days', 100)".into()),
        own("old days", none(), "SELECT forget_days(now() - interval '1858 days', 100)".into()),
        own("old words of being worn", none(), "SELECT forget_wear(now() - interval '762 days', 10)".into()),
        own("old event keys", none(), "SELECT forget_event_keys(now() - interval '762 days', 100)".into()),
        own("old moves", none(), "SELECT forget_moves(now() - interval '365 days', 100)".into()),
        own("old introductions", none(), "SELECT forget_asked(now() - interval '365 days', 100)".into()),
        own("old audit", none(), "SELECT forget_audit(now() - interval '3653 days', 100)".into()),
        own("old alerts", none(), "SELECT forget_alerts(now() - interval '1827 days', 100)".into()),
        own("old gaps", none(), "SELECT forget_gaps(now() - interval '90 days', '1999-01-01', 100)".into()),
        own("old frame times", none(), "SELECT forget_frame_times(now() - interval '762 days', 10)".into()),
        own("old frame times of names", none(), "SELECT forget_named_frame_times(now() - interval '762 days', 100)".into()),
        page("series", filled(SERIES)),
        page("series of minutes", filled(&series_of("readings_minute"))),
        page("series of hours", filled(&series_of("readings_hourly"))),
        page("newest", format!("SELECT * FROM latest_of('{WEARER}')")),
        page("days", days::WITHIN.replace("$1", &format!("'{WEARER}'")).replace("$2", &format!("({SINCE} - interval '1 day')"))
            .replace("$3", "now()").replace("$4", "400")),
        page("intervals in force", format!("SELECT * FROM wearer_interval_spans('{WEARER}', 1::int2, {SINCE}, {until})")),
        page("coverage's gaps", GAPS.replace("$1", &format!("'{WEARER}'")).replace("$2", SINCE).replace("$3", &until)),
        page("HRV's page", format!("SELECT * FROM hrv WHERE user_id = '{WEARER}' AND bucket >= {SINCE} AND bucket < {until}
            ORDER BY bucket LIMIT 5000")),
        page("gaps' page", gaps::WITHIN.replace("$1", &format!("'{WEARER}'")).replace("$2", SINCE).replace("$3", &until)
            .replace("$4", "1000")),
        page("newest events", events::OF_CLINIC.replace("$1", SINCE).replace("$2", &until).replace("$3", "20")),
        page("newest alerts", newest(alerts::NEWEST, "NULL", "false")),
        page("newest alerts of a wearer", newest(alerts::NEWEST, &format!("'{WEARER}'"), "true")),
        page("newest decisions", newest(decisions::NEWEST, "NULL", "NULL")),
        page("newest decisions about a wearer", newest(decisions::NEWEST, "NULL", &format!("'{WEARER}'"))),
        page("events' page", format!("SELECT * FROM events WHERE user_id = '{WEARER}' AND time >= {SINCE} AND time <= {until}
            ORDER BY time DESC LIMIT 1000")),
        page("alerts' page", format!("SELECT * FROM alerts WHERE withdrawn_at IS NULL AND user_id = '{WEARER}'
            ORDER BY raised_at DESC, id LIMIT 200")),
        // Last: what it wrote is undone and lies about dead, and those above read the same tables.
        own("roll-up", none(), "SELECT ts.roll_up(50, '-infinity')".into()),
    ]
}

#[tokio::test]
async fn no_statement_touches_more_blocks_because_the_tables_around_its_slice_grew_tenfold() {
    let (rows, days) = (number("KINARA_PLAN_ROWS", 1_000_000), number("KINARA_PLAN_DAYS", DAYS_BEFORE));
    let (few, many) = (20, 200);
    let world = world().await;
    world.furnish(days, many).await;
    world.grow(1..=few, rows / 10, DAYS_BEFORE).await;
    world.run("VACUUM ANALYZE").await;
    let questions = questions();
    let before = world.all(&questions).await;
    // What the questions wrote was undone. Its dead rows go, also out of indexes, which VACUUM leaves alone where few rows of a
    // table are dead. The statistics stay those of before.
    world.run("VACUUM (INDEX_CLEANUP ON)").await;
    world.grow(few + 1..=many, rows - rows / 10, days).await;
    let stale = world.all(&questions).await;
    world.run("VACUUM (INDEX_CLEANUP ON, ANALYZE)").await;
    let fresh = world.all(&questions).await;
    let mut grown = Vec::new();
    for (place, question) in questions.iter().enumerate() {
        let (before, stale, fresh) = (before[place], stale[place], fresh[place]);
        println!("{:32} {before:8} {stale:8} {fresh:8}", question.name);
        let slack = match question.name {
            "the ledger's lock" => SLACK_OF_THE_LOCK,
            "whose refused numbers may be" => SLACK_OF_NUMBERS,
            _ => SLACK,
        };
        if stale.max(fresh) > before + (before / 4).max(slack) {
            grown.push(format!(
                "{}: {before} blocks, then {stale}, with fresh statistics {fresh}",
                question.name
            ));
        }
    }
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}
