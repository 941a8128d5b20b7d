//! A database that is large and in use: migrations run beside, days go, and programs know whose schema it is.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kinara_store::{Error, Limits, connect, migrate, partitions};
use kinara_test_postgres::{Options, PREPARED, Postgres};
use tokio_postgres::{Client, NoTls};

/// Rows of the table that a step is about; the long test takes ten million.
fn rows() -> i64 {
    std::env::var("KINARA_MIGRATE_ROWS").map_or(1_000_000, |text| text.parse().unwrap())
}

/// How long a writer may wait on a machine that does all this at once. As long as an index is made would be longer only on
/// a larger table: what counts is that it goes on at all.
const PATIENCE: Duration = Duration::from_secs(20);

async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(&format!("SELECT ({sql})::int8"), &[]).await.unwrap().get(0)
}

/// Whether the storage is TimescaleDB's.
async fn is_in_chunks(client: &Client) -> bool {
    number(client, "SELECT count(*) FROM ts.storage WHERE kind = 'timescale'").await > 0
}

/// Somebody who writes a minute and reads one, again and again: how often, and how long it took at most, in ms.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    rounds: AtomicU64,
    longest_ms: AtomicU64,
}

async fn traffic(url: String, seen: Arc<Traffic>) {
    let client = client(&url).await;
    let mut place = 0;
    while !seen.stop.load(Ordering::Relaxed) {
        place += 1;
        let began = Instant::now();
        let sql = format!(
            "INSERT INTO ts.readings_minute VALUES (gen_random_uuid(), gen_random_uuid(), 2, '2030-01-01', 1, {place}, 0, 1, 1);
             SELECT * FROM ts.readings_minute WHERE tenant_id = gen_random_uuid() LIMIT 1"
        );
        client.batch_execute(&sql).await.unwrap();
        let took = u64::try_from(began.elapsed().as_millis()).unwrap();
        seen.longest_ms.fetch_max(took, Ordering::Relaxed);
        seen.rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_step_beside_lets_a_writer_and_a_reader_go_on_and_is_resumed_when_it_was_killed() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    admin
        .batch_execute(&format!(
            "DROP INDEX ts.readings_minute_bucket;
             DELETE FROM kinara.online_steps WHERE name = 'readings_minute_bucket';
             INSERT INTO ts.readings_minute SELECT '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', 1,
               '2020-01-01'::timestamptz + make_interval(mins => g), 1, 1, 0, 1, 1 FROM generate_series(1, {}) g",
            rows()
        ))
        .await
        .unwrap();
    let seen = Arc::new(Traffic::default());
    let going = tokio::spawn(traffic(url.clone(), seen.clone()));
    // Killed while it makes the index.
    let migrating = tokio::spawn({
        let url = url.clone();
        async move { migrate(&url).await }
    });
    let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_progress_create_index";
    while number(&admin, killed).await == 0 {
        assert!(!migrating.is_finished(), "it was done before it could be killed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(migrating.await.unwrap().is_err());
    let valid = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('ts.readings_minute_bucket') AND indisvalid";
    assert_eq!(number(&admin, valid).await, 0);
    // And resumed.
    let before = seen.rounds.load(Ordering::Relaxed);
    migrate(&url).await.unwrap();
    assert_eq!(number(&admin, valid).await, 1);
    let meanwhile = seen.rounds.load(Ordering::Relaxed) - before;
    seen.stop.store(true, Ordering::Relaxed);
    going.await.unwrap();
    assert!(meanwhile > 0, "nothing was written while the index was made");
    let longest = Duration::from_millis(seen.longest_ms.load(Ordering::Relaxed));
    assert!(longest < PATIENCE, "a writer waited {longest:?}");
    assert_eq!(number(&admin, "SELECT count(*) FROM ts.readings_minute WHERE type = 1").await, rows());
    assert_eq!(migrate(&url).await.unwrap().applied, 0);
}

#[tokio::test]
async fn an_index_of_what_lies_in_parts_is_made_part_by_part_while_somebody_writes_and_goes_on_where_it_was_cut_short()
 {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    if is_in_chunks(&admin).await {
        return;
    }
    // One part has its index and does not belong yet, one was being made, and a part that comes then has its own.
    admin
        .batch_execute(
            "DROP INDEX ts.events_clinic;
             CREATE INDEX events_clinic ON ONLY ts.events (tenant_id, time DESC);
             DELETE FROM kinara.online_steps WHERE name = 'events_clinic';
             SELECT ts.ensure_partitions(now() - interval '9 days', now() - interval '9 days');
             CREATE TABLE parts AS SELECT c.relname::text AS part, row_number() OVER (ORDER BY c.relname) AS place
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'ts.events'::regclass;
             DO $$ DECLARE p text; BEGIN
               FOR p IN SELECT part FROM parts WHERE place IN (3, 5) LOOP
                 EXECUTE format('CREATE INDEX events_clinic_%s ON ts.%s (tenant_id, time DESC)', p, p);
               END LOOP;
               UPDATE pg_index SET indisvalid = false
                 WHERE indexrelid = to_regclass('ts.events_clinic_' || (SELECT part FROM parts WHERE place = 5));
             END $$",
        )
        .await
        .unwrap();
    // Somebody's transaction that has written an event is waited for, and others pass.
    let event = "INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, key)
                 VALUES (now(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'hot_flash', '')";
    let writer = client(&url).await;
    writer.batch_execute(&format!("BEGIN; {event}")).await.unwrap();
    let beside = tokio::spawn({
        let url = url.clone();
        async move { migrate::beside(&url).await }
    });
    let other = client(&url).await;
    other.batch_execute("SET lock_timeout = '3s'").await.unwrap();
    for _ in 0..10 {
        other.batch_execute(event).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!beside.is_finished(), "it did not wait");
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(beside.await.unwrap().unwrap(), 1);
    let of_parts = "SELECT count(*) FROM pg_inherits p JOIN pg_index x ON x.indexrelid = p.inhrelid
                    WHERE p.inhparent = 'ts.events_clinic'::regclass AND x.indisvalid";
    let parts = number(&admin, "SELECT count(*) FROM parts").await;
    assert_eq!(number(&admin, of_parts).await, parts);
    let whole =
        "SELECT count(*) FROM pg_index WHERE indexrelid = 'ts.events_clinic'::regclass AND indisvalid";
    assert_eq!(number(&admin, whole).await, 1);
    assert_eq!(migrate::beside(&url).await.unwrap(), 0);
}

/// A server, its database's URL and a superuser there; `None`: the storage is another.
async fn on_chunks() -> Option<(Postgres, String, Client)> {
    let migrated = async |url: String| migrate(&url).await.map(drop);
    let server = Postgres::prepared(Options::fast(), &migrate::digest(), migrated).await.unwrap();
    let url = server.superuser_url(PREPARED);
    let admin = client(&url).await;
    if is_in_chunks(&admin).await {
        return Some((server, url, admin));
    }
    eprintln!("SKIPPED: this server has no TimescaleDB, and so no chunks");
    None
}

/// An event of so many days ago.
fn event(days: i32) -> String {
    format!(
        "INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, key)
           VALUES (now() - make_interval(days => {days}), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'hot_flash', '')"
    )
}

#[tokio::test]
async fn an_index_of_chunks_lets_others_pass_a_writer_that_does_not_end_and_is_made_anew_where_it_was_cut_short()
 {
    let Some((_server, url, admin)) = on_chunks().await else { return };
    for days in [0, 100, 200] {
        admin.batch_execute(&event(days)).await.unwrap();
    }
    // Cut short: it is there, and not of every chunk.
    admin
        .batch_execute(
            "DELETE FROM kinara.online_steps WHERE name = 'events_clinic';
             UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ts.events_clinic'::regclass;
             DO $$ BEGIN EXECUTE (SELECT format('DROP INDEX %I.%I', schemaname, indexname) FROM pg_indexes
               WHERE indexname LIKE '%chunk_events_clinic' LIMIT 1); END $$",
        )
        .await
        .unwrap();
    let of_chunks = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%chunk_events_clinic'";
    assert_eq!(number(&admin, of_chunks).await, 2);
    let writer = client(&url).await;
    writer.batch_execute(&format!("BEGIN; {}", event(0))).await.unwrap();
    let beside = tokio::spawn({
        let url = url.clone();
        async move { migrate::beside(&url).await }
    });
    let other = client(&url).await;
    other.batch_execute("SET lock_timeout = '3s'").await.unwrap();
    for place in 0..20 {
        other.batch_execute(&event(100 * (place % 3))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!beside.is_finished(), "it did not wait");
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(beside.await.unwrap().unwrap(), 1);
    assert_eq!(number(&admin, of_chunks).await, 3);
    let whole =
        "SELECT count(*) FROM pg_index WHERE indexrelid = 'ts.events_clinic'::regclass AND indisvalid";
    assert_eq!(number(&admin, whole).await, 1);
    assert_eq!(migrate::beside(&url).await.unwrap(), 0);
}

#[tokio::test]
async fn a_chunk_that_somebody_reads_goes_later_and_keeps_no_other_from_going() {
    let Some((_server, url, admin)) = on_chunks().await else { return };
    admin
        .batch_execute(
            "INSERT INTO ts.readings SELECT now() - make_interval(days => d), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),
               1, 0, 1, 1, 1 FROM unnest(ARRAY[0, 700, 800, 801, 802]) d;
             INSERT INTO ts.waveforms (time, tenant_id, user_id, device_id, type, idx, epoch, seq, scale, components, data)
               SELECT now() - make_interval(days => d), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 0, 1, 1, 1, 1, ''
               FROM unnest(ARRAY[0, 60]) d",
        )
        .await
        .unwrap();
    let chunks = "SELECT count(*) FROM timescaledb_information.chunks";
    assert_eq!(number(&admin, chunks).await, 7);
    let read: String = admin
        .query_one(
            "SELECT format('%I.%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks
             WHERE range_end < now() ORDER BY range_end LIMIT 1",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let reader = client(&url).await;
    reader.batch_execute(&format!("BEGIN; SELECT count(*) FROM {read}")).await.unwrap();
    let began = Instant::now();
    while number(&admin, chunks).await > 4 {
        assert!(began.elapsed() < PATIENCE, "the others did not go");
        partitions::drop_expired(&url).await.unwrap();
    }
    assert_eq!(partitions::drop_expired(&url).await.unwrap(), 0, "it is read");
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(partitions::drop_expired(&url).await.unwrap(), 1);
    assert_eq!(number(&admin, "SELECT count(*) FROM ts.readings").await, 2);
    assert_eq!(number(&admin, "SELECT count(*) FROM ts.waveforms").await, 1);
}

#[tokio::test]
async fn the_schema_is_there_while_a_dump_goes_on_and_the_steps_beside_wait_for_it() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    admin
        .batch_execute(
            "DROP INDEX quarantine_age; DELETE FROM kinara.online_steps WHERE name = 'quarantine_age'",
        )
        .await
        .unwrap();
    let dump = client(&url).await;
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM quarantine")
        .await
        .unwrap();
    let beside = tokio::spawn({
        let url = url.clone();
        async move { migrate::beside(&url).await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'";
    while number(&admin, waiting).await == 0 {
        assert!(!beside.is_finished(), "it did not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Another program starts meanwhile.
    let began = Instant::now();
    assert_eq!(migrate::schema(&url).await.unwrap().applied, 0);
    assert!(began.elapsed() < PATIENCE && !beside.is_finished());
    dump.batch_execute("COMMIT").await.unwrap();
    assert_eq!(beside.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn what_was_there_before_the_migration_is_counted_and_named_beside() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    let hardware = "00000000-0000-0000-0000-000000000001";
    // As the former release left it: two epochs over HTTP, and a wearable's, one time of which is not known.
    admin
        .batch_execute(&format!(
            "INSERT INTO quarantine (what, reason, payload, digest, counted)
               SELECT 'payload', 'r', '123', sha256(g::text::bytea), false FROM generate_series(1, 12000) g;
             INSERT INTO hardware (id, hardware_id) VALUES ('{hardware}', 'kinara:0000000000000001');
             INSERT INTO ledger (hardware, epoch, seqs, highest) SELECT '{hardware}', e, '{{[9,10)}}', 9 FROM generate_series(-1, 1) e;
             INSERT INTO frame_times VALUES ('{hardware}', -1, '{{[9,10)}}', 0, 0, 0, 1, 0, false),
               ('{hardware}', 0, '{{[9,10)}}', 0, 0, 0, 1, 0, false), ('{hardware}', 1, '{{[9,10)}}', 5, 0, 0, 1, 0, true);
             INSERT INTO gaps (hardware, epoch, seqs, reason) SELECT '{hardware}', e, '{{[0,9)}}', 'late' FROM generate_series(-1, 1) e;
             DELETE FROM kinara.online_steps WHERE name IN ('quarantine_counted', 'epochs_noted', 'uncertain_readings')"
        ))
        .await
        .unwrap();
    // Somebody writes and deletes before it is counted.
    admin
        .batch_execute(
            "INSERT INTO quarantine (what, reason, payload, digest) VALUES ('payload', 'r', '12345', 'new');
             DELETE FROM quarantine WHERE digest = sha256('7')",
        )
        .await
        .unwrap();
    assert_eq!(migrate::beside(&url).await.unwrap(), 3);
    let size = "SELECT items FROM ts.quarantine_excess(0, 0)";
    assert_eq!(number(&admin, size).await, 12_000);
    let bytes = "SELECT bytes FROM ts.quarantine_excess(0, 0)";
    assert_eq!(number(&admin, bytes).await, 11_999 * 3 + 5);
    admin.batch_execute("DELETE FROM quarantine WHERE digest <> 'new'").await.unwrap();
    assert_eq!(number(&admin, size).await, 1);
    assert_eq!(number(&admin, "SELECT count(*) FROM ledger WHERE named AND epoch < 1").await, 2);
    assert_eq!(number(&admin, "SELECT count(*) FROM ledger WHERE named").await, 2);
    assert_eq!(number(&admin, "SELECT sum(epoch) FROM gaps WHERE withdrawn_at IS NULL").await, 1);
}

#[tokio::test]
async fn what_an_older_release_wrote_of_names_is_brought_into_parts_beside_however_long_a_row_is() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    let hardware = "00000000-0000-0000-0000-000000000001";
    // A reading a minute, of two uncertainties, then one a second; a request with a key; a wearable, and its frame among names.
    admin
        .batch_execute(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{hardware}', 'kinara:0000000000000001');
             INSERT INTO frame_times SELECT '{hardware}', 1, range_agg(int8range(60 * g, 60 * g + 1)), 0, 0, 0, g % 2, 0, false
               FROM generate_series(1, 100000) g GROUP BY g % 2;
             INSERT INTO frame_times VALUES ('{hardware}', 1, '{{[4284000000,4294967296)}}', 0, 0, 0, 9, 0, false),
               ('{hardware}', 1, '{{[3,5)}}', 77, 1, 0, 9, 0, false), ('{hardware}', 2, '{{[0,9)}}', 0, 0, 0, 9, 0, false),
               ('{hardware}', 3, '{{[0,9)}}', 77, 1, 0, 9, 0, false);
             INSERT INTO ledger (hardware, epoch, seqs, highest, named)
               SELECT hardware, epoch, range_agg(seqs), 9, epoch < 3 FROM frame_times GROUP BY 1, 2;
             CREATE TABLE before AS SELECT * FROM frame_fits;
             DELETE FROM kinara.online_steps WHERE name = 'named_in_parts'"
        ))
        .await
        .unwrap();
    let sum = "SELECT sum(upper(r) - lower(r)) FROM";
    let held = number(&admin, &format!("{sum} ledger, unnest(seqs) r")).await;
    // A step takes a slice, and one that is cut short takes nothing.
    admin.batch_execute("BEGIN; SELECT ts.part_named(); ROLLBACK").await.unwrap();
    assert_eq!(number(&admin, "SELECT count(*) FROM named_frames").await, 0);
    admin.batch_execute("SELECT ts.part_named(1000)").await.unwrap();
    let part = "SELECT count(*) FROM named_frames";
    assert!((1..=1_000).contains(&number(&admin, part).await), "no more than was asked for");
    let moved = number(&admin, &format!("{sum} named_frames, unnest(seqs) r")).await;
    assert!((500..2_000).contains(&moved), "{moved}");
    assert_eq!(migrate::beside(&url).await.unwrap(), 1);
    // All of it is there once, in its part, and nothing else has changed.
    assert_eq!(number(&admin, &format!("{sum} frames_in, unnest(seqs) r")).await, held);
    let own = "SELECT count(*) FROM ledger WHERE named AND NOT isempty(seqs)";
    assert_eq!(number(&admin, own).await, 0);
    let strays = "SELECT (SELECT count(*) FROM named_frames, unnest(seqs) r WHERE lower(r) / 1024 <> part OR (upper(r) - 1) / 1024 <> part)
      + (SELECT count(*) FROM named_frame_times, unnest(seqs) r WHERE lower(r) / 1024 <> part OR (upper(r) - 1) / 1024 <> part)";
    assert_eq!(number(&admin, strays).await, 0);
    let fits = |of: &str| {
        format!(
            "SELECT hardware, epoch, ref_ticks, ref_utc_us, uncertainty_us, range_agg(seqs) FROM {of} GROUP BY 1, 2, 3, 4, 5"
        )
    };
    let differ = format!(
        "SELECT count(*) FROM (({0} EXCEPT {1}) UNION ALL ({1} EXCEPT {0})) d",
        fits("before"),
        fits("frame_fits")
    );
    assert_eq!(number(&admin, &differ).await, 0);
    assert_eq!(number(&admin, "SELECT count(*) FROM frame_times").await, 2, "those that are no names'");
}

#[tokio::test]
async fn an_index_that_a_former_release_made_goes_though_its_step_is_done() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    // As the release before left it: that made it in a step of the index's name.
    admin
        .batch_execute(
            "CREATE INDEX gaps_ends ON gaps (hardware, to_time) WHERE withdrawn_at IS NULL;
             INSERT INTO kinara.online_steps (name) VALUES ('gaps_ends');
             DELETE FROM kinara.online_steps WHERE name = 'gaps_ends_gone'",
        )
        .await
        .unwrap();
    assert_eq!(migrate::beside(&url).await.unwrap(), 1);
    assert_eq!(number(&admin, "SELECT count(to_regclass('gaps_ends'))").await, 0);
    assert_eq!(migrate::beside(&url).await.unwrap(), 0);
}

/// A day whose time is over, with a reading in it and somebody who reads it.
struct OldDay {
    url: String,
    admin: Client,
    reader: Client,
    _server: Postgres,
}

/// `None`: the storage is another.
async fn old_day() -> Option<OldDay> {
    let migrated = async |url: String| migrate(&url).await.map(drop);
    let server = Postgres::prepared(Options::fast(), &migrate::digest(), migrated).await.unwrap();
    let url = server.superuser_url(PREPARED);
    let admin = client(&url).await;
    if is_in_chunks(&admin).await {
        return None;
    }
    admin
        .batch_execute(
            "SELECT ts.ensure_partitions(now() - interval '800 days', now() - interval '800 days');
             INSERT INTO ts.readings SELECT now() - interval '800 days', gen_random_uuid(), gen_random_uuid(),
               gen_random_uuid(), 1, 0, 1, 1, 1",
        )
        .await
        .unwrap();
    let reader = client(&url).await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM ts.readings").await.unwrap();
    Some(OldDay { url, admin, reader, _server: server })
}

const OLD: &str = "SELECT count(*) FROM ts.expired_partitions() WHERE base = 'readings'";

#[tokio::test]
async fn a_day_goes_without_anybodys_waiting_and_one_that_is_read_goes_later() {
    let Some(OldDay { url, admin, reader, _server }) = old_day().await else { return };
    let dropping = tokio::spawn({
        let url = url.clone();
        async move { partitions::drop_expired(&url).await.unwrap() }
    });
    while number(&admin, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending").await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nobody stands behind it, and it is waited for longer than anybody behind it would notice.
    let writer = client(&url).await;
    writer.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
    for _ in 0..10 {
        writer
            .batch_execute(
                "INSERT INTO ts.readings SELECT now(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 0, 1, 1, 1;
                 SELECT ts.ensure_partitions(now() - interval '20 days', now() - interval '20 days')",
            )
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(number(&admin, OLD).await, 1);
    reader.batch_execute("COMMIT").await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, dropping).await.unwrap().unwrap() >= 1, "once was enough");
    assert_eq!(number(&admin, OLD).await, 0);
    assert_eq!(partitions::drop_expired(&url).await.unwrap(), 0);
}

#[tokio::test]
async fn a_day_whose_detachment_was_cut_short_is_finished_the_next_time() {
    let Some(OldDay { url, admin, reader, _server }) = old_day().await else { return };
    let dropping = tokio::spawn({
        let url = url.clone();
        async move { partitions::drop_expired(&url).await }
    });
    let pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending";
    while number(&admin, pending).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'kinara-partitions'";
    assert_eq!(number(&admin, kill).await, 1);
    assert!(dropping.await.unwrap().is_err());
    assert_eq!((number(&admin, pending).await, number(&admin, OLD).await), (1, 1));
    reader.batch_execute("COMMIT").await.unwrap();
    assert!(partitions::drop_expired(&url).await.unwrap() >= 1);
    assert_eq!(number(&admin, OLD).await, 0);
}

#[tokio::test]
async fn a_bridge_that_may_own_nothing_drops_a_day_that_nobody_reads_and_holds_nobody_up() {
    let Some(OldDay { admin, reader, _server, .. }) = old_day().await else { return };
    let drops = "SELECT ts.drop_expired()";
    let began = Instant::now();
    while number(&admin, drops).await > 0 {}
    assert!(began.elapsed() < PATIENCE, "it gave up waiting for the reader");
    assert_eq!(number(&admin, OLD).await, 1);
    reader.batch_execute("COMMIT").await.unwrap();
    while number(&admin, drops).await > 0 {}
    assert_eq!(number(&admin, OLD).await, 0);
}

#[tokio::test]
async fn a_program_says_that_the_schema_is_another_releases() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    let pool = |url: &str| connect(url, "test", &Limits::default()).unwrap();
    assert!(matches!(migrate::check(&pool(&url)).await, Err(Error::Older { found: 0, .. })));
    migrate(&url).await.unwrap();
    let admin = client(&url).await;
    admin.batch_execute("CREATE ROLE bridge LOGIN PASSWORD 'bridge' IN ROLE kinara_ingest").await.unwrap();
    let bridge = pool(&server.url("bridge", "bridge", "test_0"));
    migrate::check(&bridge).await.unwrap();
    admin.batch_execute("INSERT INTO kinara.migrations VALUES (9999, 'n', 'plain', 'x')").await.unwrap();
    assert!(matches!(migrate::check(&bridge).await, Err(Error::Newer { found: 9999, .. })));
    admin.batch_execute("DELETE FROM kinara.migrations WHERE version > 3").await.unwrap();
    assert!(matches!(migrate::check(&bridge).await, Err(Error::Older { found: 3, .. })));
}
