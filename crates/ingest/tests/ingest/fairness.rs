//! Housekeeping goes on: whatever fails or is slow for one clinic, or for one step, is left out and told of.

use std::time::Duration;

use crate::housekeeping::event_batch;
use crate::support::*;
use jiff::Timestamp;
use kinara_ingest::Counts;
use kinara_ingest::retention::{Retention, forget};
use kinara_ingest::rollup::{Slice, round};
use kinara_ingest::sweep::{Policy, sweep};
use kinara_ingest::timestamp;
use kinara_protocol::envelope::Event;
use kinara_store::{Pool, connect};
use uuid::Uuid;

/// The bridge's connections with other limits.
pub(crate) fn hasty(world: &World, statement: Duration) -> Pool {
    let limits = kinara_store::Limits { statement, ..kinara_store::Limits::default() };
    connect(&world.server.url("bridge", "bridge", "test_0"), "test", &limits).unwrap()
}

/// A reading in each of so many hours of a clinic, and their notes.
async fn hours(world: &World, tenant: Uuid, many: i64) {
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(now() - interval '3 days', now());
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT date_bin('1 hour', now(), 'epoch') - make_interval(hours => h), '{tenant}', '{USER}', '{DEVICE}', 1, 0, 1, h, 70
               FROM generate_series(1, {many}) h;
             INSERT INTO ts.stale SELECT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings
               WHERE tenant_id = '{tenant}'"
        ))
        .await;
}

/// Every minute of a clinic takes so long.
async fn slow(world: &World, tenant: Uuid, seconds: f64) {
    world
        .run(&format!(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON ts.readings_minute FOR EACH ROW WHEN (NEW.tenant_id = '{tenant}')
               EXECUTE FUNCTION slow()"
        ))
        .await;
}

async fn minutes_of(world: &World, tenant: Uuid) -> i64 {
    world.number(&format!("SELECT count(*) FROM ts.readings_minute WHERE tenant_id = '{tenant}'")).await
}

#[tokio::test]
async fn a_clinic_whose_hours_cannot_be_done_in_time_is_left_out_and_the_next_one_is_done() {
    let world = world().await;
    // The first in order, and nothing of it ends in time.
    hours(&world, TENANT, 6).await;
    hours(&world, OTHER_TENANT, 6).await;
    slow(&world, TENANT, 30.0).await;
    let pool = hasty(&world, Duration::from_secs(2));
    let done = round(&pool, timestamp(NOW_US), &Slice { hours: 2, ..Slice::default() }).await.unwrap();
    assert_eq!((done.hours, done.skipped.as_slice()), (6, [TENANT].as_slice()));
    assert_eq!((minutes_of(&world, OTHER_TENANT).await, minutes_of(&world, TENANT).await), (6, 0));
    assert_eq!(world.number("SELECT count(*) FROM ts.stale").await, 6, "its notes stay");
}

#[tokio::test]
async fn a_slice_that_takes_too_long_is_halved_until_it_does_not() {
    let world = world().await;
    hours(&world, TENANT, 8).await;
    slow(&world, TENANT, 0.5).await;
    let pool = hasty(&world, Duration::from_secs(3));
    let done = round(&pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!((done.hours, done.skipped.len()), (8, 0));
    assert_eq!(minutes_of(&world, TENANT).await, 8);
}

#[tokio::test]
async fn an_events_writer_does_not_wait_for_a_roll_up_of_its_clinic() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at)
               VALUES ('{TENANT}', 'fast', 'warning', 1, 60, 1, 'epoch');
             INSERT INTO alert_rules (tenant_id, name, severity, event_type, created_at)
               VALUES ('{TENANT}', 'flash', 'info', 'hot_flash', 'epoch')"
        ))
        .await;
    hours(&world, TENANT, 2).await;
    // A roll-up that goes on and on.
    world.run("BEGIN; SELECT ts.roll_up(1000, '-infinity')").await;
    assert!(world.number("SELECT count(*) FROM ts.alert_notes").await > 0);
    let pool = hasty(&world, Duration::from_secs(5));
    let client = pool.get().await.unwrap();
    client
        .execute(
            "INSERT INTO event_keys (hardware, kind, producer, epoch, grid, tenant_id, user_id, device_id, time)
             VALUES ($1, 'hot_flash', 'p', 1, 1, $2, $3, $4, now())",
            &[&HARDWARE_ROW, &TENANT, &USER, &DEVICE],
        )
        .await
        .expect("the event is written while the roll-up goes on");
    world.run("COMMIT").await;
    // What the roll-up passed on is looked at all the same.
    let jobs = "SELECT count(*) FROM jobs._private_jobs WHERE key = 'evaluate_alerts:' || $$tenant$$";
    world.run("DELETE FROM jobs._private_jobs").await;
    round(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(world.number(&jobs.replace("tenant", &TENANT.to_string())).await, 1);
}

#[tokio::test]
async fn a_round_ends_however_fast_notes_come_and_rules_look_at_what_it_did_while_it_goes_on() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at)
               VALUES ('{TENANT}', 'fast', 'warning', 1, 60, 1, 'epoch')"
        ))
        .await;
    hours(&world, TENANT, 4).await;
    // Whatever is recomputed is stale again at once.
    world
        .run(
            "CREATE FUNCTION renew() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               INSERT INTO ts.stale VALUES (NEW.tenant_id, NEW.user_id, NEW.type, NEW.bucket); RETURN NULL; END $$;
             CREATE TRIGGER renew AFTER INSERT ON ts.readings_hourly FOR EACH ROW EXECUTE FUNCTION renew();
             DELETE FROM jobs._private_jobs",
        )
        .await;
    let slice = Slice { hours: 2, laps: 3, ..Slice::default() };
    let done = tokio::time::timeout(Duration::from_mins(1), round(&world.pool, timestamp(NOW_US), &slice));
    let done = done.await.expect("a round ends").unwrap();
    assert_eq!((done.hours, done.unfinished), (6, true));
    let looks = "SELECT count(*) FROM jobs._private_jobs WHERE key LIKE 'evaluate_alerts:%'";
    assert_eq!(world.number(looks).await, 1);
    world.run("DELETE FROM jobs._private_jobs").await;
    let pool = world.pool.clone();
    let slice = Slice { laps: u32::MAX, ..slice };
    let going = tokio::spawn(async move { round(&pool, timestamp(NOW_US), &slice).await });
    let queued = async {
        while world.number(looks).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), queued).await.expect("queued while the round goes on");
    assert!(!going.is_finished());
    going.abort();
}

#[tokio::test]
async fn a_clinic_whose_looks_cannot_be_queued_keeps_no_others_from_being_queued() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO ts.alert_notes (tenant_id, user_id, hour)
               VALUES ('{TENANT}', '{USER}', now()), ('{OTHER_TENANT}', '{USER}', now());
             DELETE FROM jobs._private_jobs;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON jobs._private_jobs FOR EACH ROW
               WHEN (NEW.key = 'evaluate_alerts:{TENANT}') EXECUTE FUNCTION refuse()"
        ))
        .await;
    let done = round(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(done.failed, 1);
    assert_eq!(
        world.text("SELECT string_agg(key, ' ') FROM jobs._private_jobs").await,
        format!("evaluate_alerts:{OTHER_TENANT}")
    );
}

/// A gap of the test's device and one of another, before it in turn, that cannot be settled in time; both are lost.
async fn two_lost_gaps(world: &World) {
    let other = Uuid::from_u128(0x40);
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{other}', 'kinara:00000000000000c3');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{other}', '{TENANT}', '{SECOND_USER}', '{DEVICE}', '2025-01-01');
             INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, updated_at)
               VALUES ('{other}', 99, '{{[0,1)}}', 'late', '2026-01-01', '2026-01-01', 'epoch');
             UPDATE gaps SET looked_at = '2025-01-01' WHERE hardware <> '{other}';
             INSERT INTO gateway_buffers (gateway_id, buffer, store_id, broke_at)
               VALUES ('{GATEWAY}', 2, 2, to_timestamp({}));
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE UPDATE ON gaps FOR EACH ROW
               WHEN (NEW.hardware = '{other}' AND NEW.reason <> 'late') EXECUTE FUNCTION slow()",
            NOW_US / 1_000_000 + 1
        ))
        .await;
    world.clock.advance_us(120_000_000);
}

#[tokio::test]
async fn a_wearable_whose_gaps_cannot_be_settled_in_time_keeps_no_other_from_being_settled() {
    let world = world().await;
    two_lost_gaps(&world).await;
    let pool = hasty(&world, Duration::from_secs(1));
    let swept = sweep(&pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.lost, swept.failed), (1, 1));
}

#[tokio::test]
async fn a_slice_of_gaps_that_cannot_be_settled_is_followed_by_the_next_one() {
    let world = world().await;
    two_lost_gaps(&world).await;
    let pool = hasty(&world, Duration::from_secs(1));
    let policy = Policy { gaps: 1, ..Policy::default() };
    let first = sweep(&pool, world.clock.as_ref(), &policy).await.unwrap();
    assert_eq!((first.lost, first.failed), (0, 1));
    world.clock.advance_us(5_000_000);
    assert_eq!(sweep(&pool, world.clock.as_ref(), &policy).await.unwrap().lost, 1);
}

#[tokio::test]
async fn whatever_numbers_a_gateway_says_of_itself_gaps_are_settled() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    let most = u64::MAX;
    world
        .run(&format!(
            "UPDATE gateways SET last_seen_at = to_timestamp({}), state = '{{\"online\": true, \"parked_batches\": {most},
               \"devices\": [{{\"hardware_id\": \"{HARDWARE}\", \"connected\": true, \"buffered_frames\": {most},
                 \"backlog_frames\": {most}}}]}}' WHERE id = '{GATEWAY}'",
            NOW_US / 1_000_000 + 120
        ))
        .await;
    world.clock.advance_us(120_000_000);
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.lost, swept.failed), (0, 0), "it says that it holds something");
    // Another life of it lost its database.
    world
        .run(&format!(
            "INSERT INTO gateway_buffers (gateway_id, buffer, store_id, broke_at)
               VALUES ('{GATEWAY}', 2, 2, to_timestamp({}))",
            NOW_US / 1_000_000 + 1
        ))
        .await;
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.lost, swept.failed), (1, 0));
}

#[tokio::test]
async fn readings_of_any_uncertainty_are_marked() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world
        .run(&format!(
            "INSERT INTO frame_times VALUES
               ('{HARDWARE_ROW}', {0}, '{{[0,2)}}', 0, -9223372036854775808, 0, 9223372036854775807, 0, true),
               ('{HARDWARE_ROW}', {0}, '{{[2,3)}}', 0, 9223372036854775807, 0, 9223372036854775807, 0, true);
             INSERT INTO ts.unmarked VALUES ('{HARDWARE_ROW}', {0})",
            EPOCH.0 as i64
        ))
        .await;
    assert_eq!(world.number("SELECT ts.mark_uncertain()").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM ts.readings WHERE quality > 0").await, 0);
}

#[tokio::test]
async fn a_step_of_the_sweep_that_fails_keeps_no_other_from_being_done() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    world.run("DELETE FROM device_assignments").await;
    world.write(&[batch_of(GATEWAY, &seconds(10..14))]).await;
    world.run("ALTER TABLE gateway_buffers RENAME TO elsewhere").await;
    world.clock.advance_us(120_000_000);
    let policy = Policy { quarantine_rows: 1, ..Policy::default() };
    let swept = sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap();
    assert_eq!((swept.failed, swept.expired), (1, 3));
}

#[tokio::test]
async fn open_gaps_are_looked_at_in_turn_however_many_there_are() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    // Gaps of which nobody knows anything, before the one that can be settled.
    world
        .run(&format!(
            "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, updated_at)
               SELECT '{HARDWARE_ROW}', 99, int8multirange(int8range(g, g + 1)), 'late', '2020-01-01', '2020-01-01', 'epoch'
               FROM generate_series(1, 5) g;
             INSERT INTO gateway_buffers (gateway_id, buffer, store_id, broke_at)
               VALUES ('{GATEWAY}', 2, 2, to_timestamp({}))",
            NOW_US / 1_000_000 + 1
        ))
        .await;
    world.clock.advance_us(120_000_000);
    let policy = Policy { gaps: 2, ..Policy::default() };
    let mut lost = 0;
    for _ in 0..4 {
        world.clock.advance_us(5_000_000);
        lost += sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap().lost;
    }
    assert_eq!(lost, 1);
    assert!(world.gaps().await.contains("gateway_lost {[3,5)}"), "{}", world.gaps().await);
}

#[tokio::test]
async fn a_clinics_quarantine_is_bounded_in_bytes_and_anothers_is_left_alone() {
    let world = world().await;
    let put = |tenant: &str, name: &str, many: i32| {
        format!(
            "INSERT INTO quarantine (tenant_id, what, reason, payload, digest, received_at)
               SELECT {tenant}, 'payload', 'r', decode(repeat('00', 1000), 'hex'), ('{name}' || g)::bytea,
                 to_timestamp({} + g) FROM generate_series(1, {many}) g",
            NOW_US / 1_000_000 - 1_000
        )
    };
    world.run(&put(&format!("'{TENANT}'"), "a", 10)).await;
    world.run(&put(&format!("'{OTHER_TENANT}'"), "b", 2)).await;
    world.run(&put("NULL", "c", 5)).await;
    let policy = Policy { quarantine_bytes: 3_500, ..Policy::default() };
    let swept = sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap();
    assert_eq!((swept.expired, swept.failed), (7 + 2, 0));
    let left =
        "SELECT string_agg(coalesce(tenant_id::text, '-') || ' ' || n, ', ' ORDER BY tenant_id NULLS LAST)
        FROM (SELECT tenant_id, count(*) AS n FROM quarantine GROUP BY 1) q";
    assert_eq!(world.text(left).await, format!("{TENANT} 3, {OTHER_TENANT} 2, - 3"));
    assert_eq!(sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap().expired, 0);
}

#[tokio::test]
async fn what_grows_has_an_end_and_what_still_counts_stays() {
    let world = world().await;
    world.run("UPDATE users SET time_zone = 'UTC'").await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    world
        .run(&format!(
            "INSERT INTO audit_log (tenant_id, actor, action, at) SELECT '{TENANT}', 'a', 'b', t FROM
               (VALUES (now() - interval '3700 days'), (now() - interval '300 days'), (now())) v(t);
             INSERT INTO alerts (tenant_id, kind, user_id, title, severity, from_time, to_time, raised_at)
               SELECT '{TENANT}', 'event', '{USER}', 't', 'info', t, t, t FROM
               (VALUES (now() - interval '1900 days'), (now())) v(t);
             INSERT INTO gaps (hardware, epoch, seqs, reason, withdrawn_at, updated_at)
               SELECT '{HARDWARE_ROW}', 7, '{{[0,1)}}', 'late', t, now() FROM
               (VALUES (now() - interval '100 days'), (now())) v(t);
             INSERT INTO ledger (hardware, epoch, updated_at) VALUES ('{HARDWARE_ROW}', 8, now() - interval '800 days');
             INSERT INTO frame_times VALUES ('{HARDWARE_ROW}', 8, '{{[0,1)}}', 0, 1, 0, 0, 0, false);
             INSERT INTO ingest_requests (tenant_id, digest, items, refused, told, received_at)
               SELECT '{TENANT}', '', 1, 0, '[]', t FROM (VALUES (now() - interval '100 days'), (now())) v(t)"
        ))
        .await;
    world.run("UPDATE ledger SET updated_at = now() WHERE epoch <> 8").await;
    let (gone, failed) = forget(&world.pool, Timestamp::now(), &Retention::default()).await;
    assert_eq!((gone, failed), (5, 0));
    for (sql, left) in [
        ("SELECT count(*) FROM audit_log", 2),
        ("SELECT count(*) FROM alerts", 1),
        ("SELECT count(*) FROM gaps", 2),
        ("SELECT count(*) FROM frame_times", 1),
        ("SELECT count(*) FROM ingest_requests", 1),
    ] {
        assert_eq!(world.number(sql).await, left, "{sql}");
    }
    // Nobody has the audit of this year forgotten.
    let hasty = Retention { audit_days: 0, ..Retention::default() };
    forget(&world.pool, Timestamp::now(), &hasty).await;
    assert_eq!(world.number("SELECT count(*) FROM audit_log").await, 2);
}

#[tokio::test]
async fn what_is_done_goes_in_its_time_and_what_is_open_or_still_needed_stays() {
    let world = world().await;
    let (open, first) = (Uuid::from_u128(0x71), Uuid::from_u128(0x72));
    world
        .run(&format!(
            "CREATE TEMPORARY TABLE times AS SELECT * FROM (VALUES (now() - interval '800 days'), (now() - interval '400 days'),
               (now() - interval '300 days'), (NULL)) v(t);
             INSERT INTO event_keys (hardware, kind, producer, epoch, grid, tenant_id, user_id, device_id, time)
               SELECT '{HARDWARE_ROW}', 'hot_flash', 'p', 1, extract(epoch FROM t), '{TENANT}', '{USER}', '{DEVICE}', t
               FROM times WHERE t IS NOT NULL;
             INSERT INTO bonds (id, tenant_id, gateway_id, hardware_id, adapter, how, since)
               VALUES ('{TENANT}', '{TENANT}', '{GATEWAY}', '{HARDWARE}', '\\x000000000001', 'label', now());
             INSERT INTO introductions (tenant_id, hardware_id, from_gateway, to_gateway, secret, state, expires_at, settled_at)
               SELECT '{TENANT}', '{HARDWARE}', '{GATEWAY}', '{SECOND_GATEWAY}',
                 CASE WHEN t IS NULL THEN decode(repeat('00', 16), 'hex') END, CASE WHEN t IS NULL THEN 'open' ELSE 'done' END,
                 now(), t FROM times;
             INSERT INTO revocations (tenant_id, bond_id, hardware_id, gateway_id, adapter, expires_at, settled_at)
               SELECT '{TENANT}', '{TENANT}', '{HARDWARE}', '{GATEWAY}', '\\x000000000001', now(), t FROM times;
             INSERT INTO moves (tenant_id, from_user, to_user, settled_at) SELECT '{TENANT}', '{SECOND_USER}', '{USER}', t FROM times;
             -- It passes on what this one brought, and has not looked through since.
             INSERT INTO moves (id, tenant_id, from_user, to_user, settled_at)
               VALUES ('{first}', '{TENANT}', '{USER}', '{SECOND_USER}', now() - interval '500 days');
             UPDATE moves SET id = '{open}', pass_at = now() - interval '501 days', failed = 'again and again'
               WHERE settled_at IS NULL"
        ))
        .await;
    let now = Timestamp::now();
    assert_eq!(forget(&world.pool, now, &Retention::default()).await, (1 + 2 + 2 + 2, 0));
    for (table, left) in [("event_keys", 2), ("introductions", 2), ("revocations", 2), ("moves", 3)] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, left, "{table}");
    }
    let needed = format!("SELECT count(*) FROM moves WHERE id IN ('{open}', '{first}')");
    assert_eq!(world.number(&needed).await, 2);
    world.run(&format!("UPDATE moves SET pass_at = now(), settled_at = now() WHERE id = '{open}'")).await;
    assert_eq!(forget(&world.pool, now, &Retention::default()).await, (1, 0));
    assert_eq!(world.number(&needed).await, 1);
}

#[tokio::test]
async fn an_event_whose_key_is_forgotten_is_not_taken_again() {
    let world = world().await;
    world.run("UPDATE device_assignments SET valid_from = '2020-01-01'").await;
    let long_ago = NOW_US - Retention::default().frame_times_days * 86_400_000_000;
    let event = Event {
        hardware_id: HARDWARE.to_owned(),
        kind: "hot_flash".to_owned(),
        producer: "rule:sternal/1".to_owned(),
        epoch: EPOCH.0,
        grid_ms: 30_000,
        onset_utc_us: long_ago,
        ..Event::default()
    };
    let batch = event_batch(GATEWAY, vec![event], Vec::new());
    let taken = world.writer().write_events(&batch).await.unwrap();
    assert_eq!(counts(vec![taken]), [Counts { expired: 1, ..Counts::default() }]);
}

#[tokio::test]
async fn old_words_about_intervals_go_and_the_one_that_was_in_force_stays() {
    let world = world().await;
    let later = Uuid::from_u128(0x49);
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{later}', 'kinara:00000000000000c3');
             INSERT INTO device_intervals SELECT h, c, now() - make_interval(days => d), m FROM
               (VALUES ('{HARDWARE_ROW}'::uuid), ('{later}')) w(h), (VALUES
               -- Another one after it, a boot after it, and the one that counts yet; of the second channel, too.
               (1, 2500, 2000), (1, 2400, 3000), (0, 2300, 0), (1, 2200, 4000), (1, 2100, 5000),
               (3, 2450, 7000), (0, 2050, 0), (3, 2000, 8000), (1, 1950, 6000), (0, 1000, 0), (1, 900, 9000)) v(c, d, m);
             INSERT INTO ledger (hardware, epoch, updated_at) VALUES ('{HARDWARE_ROW}', 8, now() - interval '800 days'),
               ('{HARDWARE_ROW}', 9, now());
             INSERT INTO wear SELECT '{HARDWARE_ROW}', e, now() - interval '800 days', true FROM generate_series(8, 9) e"
        ))
        .await;
    let now = Timestamp::now();
    let (gone, failed) = forget(&world.pool, now, &Retention::default()).await;
    assert_eq!((gone, failed), (2 * 6 + 1, 0));
    let left = "SELECT string_agg(channel || ' ' || interval_ms, ', ' ORDER BY from_time) FROM device_intervals WHERE hardware = ";
    for of in [HARDWARE_ROW, later] {
        let left = world.text(&format!("{left} '{of}'")).await;
        assert_eq!(left, "0 0, 3 8000, 1 6000, 0 0, 1 9000");
    }
    // What holds at any time since then is what held.
    let spans = format!(
        "SELECT string_agg(interval_ms::text, ' ' ORDER BY from_time) FROM interval_spans('{later}', '{TENANT}', 1::int2,
           now() - interval '1827 days', now())"
    );
    assert_eq!(world.text(&spans).await, "6000 9000");
    assert_eq!(world.number("SELECT count(*) FROM wear").await, 1);
    assert_eq!(forget(&world.pool, now, &Retention::default()).await, (0, 0));
}
