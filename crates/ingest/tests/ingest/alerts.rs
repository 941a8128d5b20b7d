//! Alerts by a clinic's rules, over the database's notes.

use std::time::Duration;

use crate::erased::hot_flash;
use crate::fairness::hasty;
use crate::support::*;
use kinara_ingest::alerts::{Evaluated, evaluate};
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::{Name, Outcome, events, timestamp};
use kinara_protocol::channel::{BATTERY, HEART_RATE};
use kinara_protocol::envelope::{self, ENVELOPE_VERSION, Event, EventBatch};
use kinara_protocol::frame::{DeviceEventKind, Epoch};
use uuid::Uuid;

const RULE: Uuid = Uuid::from_u128(0x61);
/// A turn in which all that is noted is looked at.
const ALL_OF_IT: Duration = Duration::MAX;
/// The wearer of the second clinic.
const OTHERS: Uuid = Uuid::from_u128(0x2001);

/// One frame a minute, from minutes after the boot on: heart rates in steps of 0.1 bpm.
async fn minutes(world: &World, rates: impl IntoIterator<Item = (u32, i32)>) {
    let frames: Vec<Vec<u8>> = rates
        .into_iter()
        .map(|(minute, rate)| frame_with(EPOCH, minute, u64::from(minute) * 60_000, rate))
        .collect();
    world.write(&[batch_of(GATEWAY, &frames)]).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
}

async fn look(world: &World) -> Evaluated {
    evaluate(&world.pool, TENANT, timestamp(0), ALL_OF_IT).await.unwrap()
}

/// Alerts: whose, title, and from which to which minute after the boot.
async fn alerts(world: &World) -> String {
    let minute =
        |column: &str| format!("round((extract(epoch FROM {column}) - {}) / 60)", BOOT_US / 1_000_000);
    world
        .text(&format!(
            "SELECT coalesce(string_agg(CASE user_id WHEN '{USER}' THEN 'first' ELSE 'second' END || ' ' || title || ' '
               || {} || '-' || {}, ', ' ORDER BY user_id, from_time), 'none')
             FROM alerts WHERE withdrawn_at IS NULL",
            minute("from_time"),
            minute("to_time"),
        ))
        .await
}

async fn fast(world: &World) {
    world
        .run(&format!(
            "INSERT INTO alert_rules (id, tenant_id, name, severity, type, above, minutes, created_at)
               VALUES ('{RULE}', '{TENANT}', 'fast', 'warning', 1, 120, 3, 'epoch');
             INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at)
               VALUES ('{OTHER_TENANT}', 'foreign', 'warning', 1, 0, 1, 'epoch')"
        ))
        .await;
}

async fn jobs(world: &World) -> String {
    world
        .text(
            "SELECT coalesce(string_agg(payload->>'tenant', ' '), 'none') FROM jobs._private_jobs j
               JOIN jobs._private_tasks t ON t.id = j.task_id WHERE t.identifier = 'evaluate_alerts'",
        )
        .await
}

#[tokio::test]
async fn readings_above_a_bound_for_so_many_minutes_are_one_alert_however_late_and_often_they_come() {
    let world = world().await;
    minutes(&world, [(1, 700)]).await;
    assert_eq!(jobs(&world).await, "none", "without a rule there is nothing to look at");
    fast(&world).await;

    minutes(&world, [(2, 1300), (3, 1300), (5, 1300)]).await;
    assert_eq!(jobs(&world).await, TENANT.to_string());
    assert_eq!(look(&world).await, Evaluated::default());
    assert_eq!(alerts(&world).await, "none");

    minutes(&world, [(4, 1300)]).await;
    assert_eq!(look(&world).await.raised, 1);
    assert_eq!(alerts(&world).await, "first fast 2-6");

    // Later minutes, more than ten after: another one; then the ones between them, late: one, which is the first.
    minutes(&world, (20..24).map(|minute| (minute, 1300))).await;
    assert_eq!(look(&world).await.raised, 1);
    assert_eq!(alerts(&world).await, "first fast 2-6, first fast 20-24");
    world
        .run(
            "UPDATE alerts SET acknowledged_at = now() WHERE from_time = (SELECT min(from_time) FROM alerts)",
        )
        .await;
    minutes(&world, (10..14).map(|minute| (minute, 1300))).await;
    assert_eq!(look(&world).await, Evaluated { raised: 0, stretched: 1, withdrawn: 1 });
    assert_eq!(alerts(&world).await, "first fast 2-24");
    assert_eq!(
        world
            .number("SELECT count(*) FROM alerts WHERE withdrawn_at IS NULL AND acknowledged_at IS NOT NULL")
            .await,
        1
    );

    // Again, and noted again: nothing changes.
    minutes(&world, (2..24).map(|minute| (minute, 1300))).await;
    world.run("INSERT INTO ts.stale SELECT tenant_id, user_id, type, bucket FROM ts.readings_hourly").await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(look(&world).await, Evaluated::default());
    assert_eq!(world.number("SELECT count(*) FROM ts.alert_notes").await, 0);
}

#[tokio::test]
async fn an_alert_goes_along_with_readings_that_are_another_wearers() {
    let world = world().await;
    fast(&world).await;
    minutes(&world, (2..8).map(|minute| (minute, 1300))).await;
    look(&world).await;
    assert_eq!(alerts(&world).await, "first fast 2-8");
    world
        .run(&format!(
            "INSERT INTO moves (tenant_id, from_user, to_user) VALUES ('{TENANT}', '{USER}', '{SECOND_USER}')"
        ))
        .await;
    world.run("SELECT ts.move(id, 10) FROM moves").await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(look(&world).await, Evaluated { raised: 1, stretched: 0, withdrawn: 1 });
    assert_eq!(alerts(&world).await, "second fast 2-8");
}

#[tokio::test]
async fn an_alert_of_an_event_goes_along_with_it_on_whichever_day_of_a_move_that_is() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, event_type, created_at)
               VALUES ('{TENANT}', 'flash', 'info', 'hot_flash', 'epoch');
             INSERT INTO moves (tenant_id, from_user, to_user) VALUES ('{TENANT}', '{USER}', '{SECOND_USER}')"
        ))
        .await;
    // The second one is of the next day (UTC).
    world.clock.advance_us(3_600_000_000);
    for second in [0, 3_720] {
        world.writer().write_events(&hot_flash(second, GATEWAY)).await.unwrap();
    }
    look(&world).await;
    assert_eq!(alerts(&world).await, "first flash 0-0, first flash 62-62");
    let each = Evaluated { raised: 1, stretched: 0, withdrawn: 1 };
    for (moved, evaluated, then) in [
        (1, each, "first flash 62-62, second flash 0-0"),
        (1, each, "second flash 0-0, second flash 62-62"),
        (0, Evaluated::default(), "second flash 0-0, second flash 62-62"),
    ] {
        assert_eq!(world.number("SELECT ts.move(id, 1) FROM moves").await, moved);
        assert_eq!(look(&world).await, evaluated);
        assert_eq!(alerts(&world).await, then);
    }
}

#[tokio::test]
async fn an_event_that_comes_on_a_day_that_a_move_has_gone_by_takes_its_alert_along_in_the_next_pass() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, event_type, created_at)
               VALUES ('{TENANT}', 'flash', 'info', 'hot_flash', 'epoch');
             INSERT INTO moves (tenant_id, from_user, to_user) VALUES ('{TENANT}', '{USER}', '{SECOND_USER}')"
        ))
        .await;
    world.clock.advance_us(3_600_000_000);
    let come = async |second| world.writer().write_events(&hot_flash(second, GATEWAY)).await.unwrap();
    come(0).await;
    come(3_720).await;
    let (goes_on, of_first) =
        ("SELECT ts.move(id, 1) FROM moves", "SELECT count(*) FROM event_keys WHERE user_id = ");
    assert_eq!(world.number(goes_on).await, 1);
    come(1_200).await;
    // With the last day the pass is at its end.
    assert_eq!(world.number(goes_on).await, 1);
    assert_eq!(world.number(&format!("{of_first}'{USER}'")).await, 1, "its event is there");
    look(&world).await;
    assert_eq!(alerts(&world).await, "first flash 20-20, second flash 0-0, second flash 62-62");
    assert_eq!(world.number(goes_on).await, 1);
    look(&world).await;
    assert_eq!(alerts(&world).await, "second flash 0-0, second flash 20-20, second flash 62-62");
}

#[tokio::test]
async fn a_long_alert_is_withdrawn_over_its_whole_span_when_its_readings_are_another_wearers() {
    let world = world().await;
    fast(&world).await;
    // Longer than any one look: a minute's reading for ten hours.
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(to_timestamp({0}), to_timestamp({0} + 36000));
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT to_timestamp({0} + n * 60 + 30), '{TENANT}', '{USER}', '{DEVICE}', 1, 0, 1, n, 130 FROM generate_series(0, 599) n;
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings",
            BOOT_US / 1_000_000 - 36_000
        ))
        .await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    look(&world).await;
    assert_eq!(alerts(&world).await, "first fast -600-0");
    // The middle becomes the second wearer's; only one hour of it is noted.
    let part = |from: i64, to: i64| {
        format!(
            "UPDATE ts.readings SET user_id = '{SECOND_USER}' WHERE seq >= {from} AND seq < {to};
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, u, type, date_bin('1 hour', time, 'epoch')
               FROM ts.readings CROSS JOIN unnest(ARRAY['{USER}', '{SECOND_USER}']::uuid[]) u"
        )
    };
    let note_one = format!(
        "DELETE FROM ts.alert_notes;
         INSERT INTO ts.alert_notes VALUES ('{TENANT}', '{USER}', 1, to_timestamp({0})), ('{TENANT}', '{SECOND_USER}', 1, to_timestamp({0}))",
        BOOT_US / 1_000_000 - 18_000
    );
    world.run(&part(200, 400)).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    world.run(&note_one).await;
    look(&world).await;
    assert!(
        alerts(&world).await.starts_with("first fast -600--400, first fast -200-0, second fast"),
        "{}",
        alerts(&world).await
    );
    world.run(&part(0, 600)).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    look(&world).await;
    assert_eq!(alerts(&world).await, "second fast -600-0");
}

#[tokio::test]
async fn readings_that_are_kept_no_more_take_no_alert_along_and_an_erased_wearer_does() {
    let world = world().await;
    fast(&world).await;
    minutes(&world, (2..8).map(|minute| (minute, 1300))).await;
    look(&world).await;
    world.run("DELETE FROM ts.readings_minute; INSERT INTO ts.alert_notes SELECT tenant_id, user_id, type, bucket FROM ts.readings_hourly").await;
    let of_now = evaluate(&world.pool, TENANT, timestamp(NOW_US), ALL_OF_IT).await.unwrap();
    assert_eq!(of_now, Evaluated::default());
    assert_eq!(alerts(&world).await, "first fast 2-8");
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    kinara_ingest::erase::erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!(world.number("SELECT count(*) FROM alerts").await, 0);
    world
        .run(&format!(
            "INSERT INTO ts.alert_notes VALUES ('{TENANT}', '{USER}', 1, to_timestamp({}))",
            BOOT_US / 1_000_000
        ))
        .await;
    assert_eq!(look(&world).await, Evaluated::default());
    assert_eq!(world.number("SELECT count(*) FROM ts.alert_notes").await, 0);
}

#[tokio::test]
async fn an_episode_that_several_producers_report_is_one_alert() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, event_type, least_confidence, created_at) VALUES
               ('{TENANT}', 'flash', 'info', 'hot_flash', 0.5, 'epoch'),
               ('{TENANT}', 'of another', 'info', 'hot_flash', NULL, 'epoch'),
               ('{OTHER_TENANT}', 'foreign', 'info', 'hot_flash', NULL, 'epoch');
             UPDATE alert_rules SET user_id = '{SECOND_USER}' WHERE name = 'of another'"
        ))
        .await;
    let event = |minute: u64, producer: &str, confidence: f32| Event {
        hardware_id: HARDWARE.to_owned(),
        kind: "hot_flash".to_owned(),
        producer: producer.to_owned(),
        epoch: EPOCH.0,
        onset_ticks: minute * 60_000,
        grid_ms: 60_000,
        onset_utc_us: BOOT_US + minute as i64 * 60_000_000,
        uncertainty_us: 5_000,
        severity: "info".to_owned(),
        confidence,
        onset_seq: minute as u32,
        ..Event::default()
    };
    for (sequence, events) in [
        vec![event(5, "rule:sternal/1", 0.7), event(30, "rule:sternal/1", 0.3)],
        vec![event(9, "model:hot_flash/1.0.0", 0.6), event(40, "model:hot_flash/1.0.0", 0.9)],
        vec![event(9, "model:hot_flash/1.0.0", 0.6)],
    ]
    .into_iter()
    .enumerate()
    {
        let batch = EventBatch {
            version: ENVELOPE_VERSION,
            name: Some(Name { gateway: GATEWAY, buffer: 7, sequence: sequence as u64 }.into()),
            sealed_at_us: NOW_US,
            events,
            ..EventBatch::default()
        };
        let batch = events::decode(&envelope::seal(&batch)).unwrap();
        assert!(matches!(world.writer().write_events(&batch).await.unwrap(), Outcome::Done(_)));
        look(&world).await;
    }
    assert_eq!(jobs(&world).await, TENANT.to_string());
    assert_eq!(alerts(&world).await, "first flash 5-9, first flash 40-40");
}

/// A battery's level every five minutes, as wearables send it.
async fn battery(world: &World, levels: &[i32]) {
    let frames: Vec<Vec<u8>> = levels
        .iter()
        .enumerate()
        .map(|(nth, percent)| frame_of(EPOCH, nth as u32 * 300, BATTERY, &[*percent]))
        .collect();
    world.write(&[batch_of(GATEWAY, &frames)]).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
}

#[tokio::test]
async fn a_rule_of_the_battery_fires_though_it_comes_every_five_minutes() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, type, below, minutes, created_at)
               VALUES ('{TENANT}', 'empty', 'warning', 9, 20, 5, 'epoch')"
        ))
        .await;
    battery(&world, &[21, 20, 19, 18, 17]).await;
    assert_eq!(look(&world).await.raised, 1);
    assert_eq!(alerts(&world).await, "first empty 10-21");
}

#[tokio::test]
async fn a_wearables_word_that_its_battery_is_low_is_an_event_once_and_raises_the_rules_alert() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, event_type, created_at)
               VALUES ('{TENANT}', 'charge it', 'warning', 'battery_low', 'epoch')"
        ))
        .await;
    let low = device_event(EPOCH, 7, 600_000, DeviceEventKind::BatteryLow(9));
    for gateway in [GATEWAY, SECOND_GATEWAY] {
        world.write(&[batch_of(gateway, std::slice::from_ref(&low))]).await;
    }
    let event = "SELECT count(*) || ' ' || min(user_id::text) || ' ' || min(data->>'percent') FROM ts.events
        WHERE event_type = 'battery_low'";
    assert_eq!(world.text(event).await, format!("1 {USER} 9"));
    assert_eq!(look(&world).await.raised, 1);
    assert_eq!(alerts(&world).await, "first charge it 10-10");
}

#[tokio::test]
async fn an_alert_of_an_event_that_is_another_clinics_now_is_withdrawn_where_that_clinic_has_no_rule_of_its_kind()
 {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, event_type, created_at)
               VALUES ('{TENANT}', 'charge it', 'warning', 'battery_low', 'epoch');
             INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{HARDWARE}')"
        ))
        .await;
    let low = device_event(EPOCH, 7, 600_000, DeviceEventKind::BatteryLow(9));
    world.write(&[batch_of(GATEWAY, &[low])]).await;
    look(&world).await;
    assert_eq!(alerts(&world).await, "first charge it 10-10");
    world.run("DELETE FROM jobs._private_jobs").await;
    world
        .run(&format!(
            "INSERT INTO moves (tenant_id, from_user, to_user, device_id, from_time, to_tenant, to_device)
               VALUES ('{TENANT}', '{USER}', '{OTHERS}', '{DEVICE}', to_timestamp({}), '{OTHER_TENANT}', '{OTHERS}')",
            BOOT_US / 1_000_000
        ))
        .await;
    world.run("SELECT ts.move(id, 10) FROM moves").await;
    assert_eq!(jobs(&world).await, TENANT.to_string());
    assert_eq!(look(&world).await, Evaluated { raised: 0, stretched: 0, withdrawn: 1 });
    assert_eq!(alerts(&world).await, "none");
}

#[tokio::test]
async fn a_rule_of_a_wearer_who_was_merged_holds_for_whom_they_turned_out_to_be() {
    let world = world().await;
    fast(&world).await;
    world.run(&format!("UPDATE alert_rules SET user_id = '{USER}' WHERE id = '{RULE}'")).await;
    minutes(&world, (2..8).map(|minute| (minute, 1300))).await;
    look(&world).await;
    assert_eq!(alerts(&world).await, "first fast 2-8");
    world
        .run(&format!(
            "UPDATE users SET provisional = true, merged_into = '{SECOND_USER}', merged_at = now() WHERE id = '{USER}';
             UPDATE device_assignments SET user_id = '{SECOND_USER}';
             UPDATE consents SET user_id = '{SECOND_USER}';
             INSERT INTO moves (tenant_id, from_user, to_user) VALUES ('{TENANT}', '{USER}', '{SECOND_USER}')"
        ))
        .await;
    world.run("SELECT ts.move(id, 10) FROM moves").await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(look(&world).await, Evaluated { raised: 1, stretched: 0, withdrawn: 1 });
    assert_eq!(alerts(&world).await, "second fast 2-8");
    minutes(&world, (30..34).map(|minute| (minute, 1300))).await;
    look(&world).await;
    assert_eq!(alerts(&world).await, "second fast 2-8, second fast 30-34");
}

/// What the wearable says of its heart rate's interval, at this minute.
async fn says_every(world: &World, minute: u32, every_ms: u32) {
    let kind = DeviceEventKind::Interval { channel: HEART_RATE, every_ms };
    let said = device_event(EPOCH, minute, u64::from(minute) * 60_000, kind);
    for gateway in [GATEWAY, SECOND_GATEWAY] {
        world.write(&[batch_of(gateway, std::slice::from_ref(&said))]).await;
    }
}

#[tokio::test]
async fn what_is_no_break_is_known_by_the_interval_that_was_in_force_then() {
    let world = world().await;
    fast(&world).await;
    // By the registry's interval a minute without a reading is a break: every other minute is never three without one.
    minutes(&world, [(1, 1300), (3, 1300), (5, 1300), (7, 1300)]).await;
    assert_eq!(look(&world).await, Evaluated::default());

    says_every(&world, 20, 120_000).await;
    minutes(&world, [(21, 1300), (23, 1300), (25, 1300), (27, 700)]).await;
    assert_eq!(look(&world).await.raised, 1);
    assert_eq!(alerts(&world).await, "first fast 21-26");

    // Back at the registry's, a break is one again.
    says_every(&world, 40, 1_000).await;
    minutes(&world, [(42, 1300), (44, 1300), (46, 1300)]).await;
    assert_eq!(look(&world).await, Evaluated::default());
    assert_eq!(alerts(&world).await, "first fast 21-26");
    let said =
        "SELECT string_agg(channel || ' ' || interval_ms, ', ' ORDER BY from_time) FROM device_intervals";
    assert_eq!(world.text(said).await, "1 120000, 1 1000", "once, whoever brings it");
}

#[tokio::test]
async fn an_interval_that_comes_later_than_its_readings_has_the_rules_look_again_at_what_it_changes() {
    let world = world().await;
    fast(&world).await;
    minutes(&world, [(21, 1300), (23, 1300), (25, 1300), (27, 700)]).await;
    assert_eq!(look(&world).await, Evaluated::default());
    let looks = "SELECT count(*) FROM ts.interval_looks";
    // Said before them, and brought after.
    says_every(&world, 10, 120_000).await;
    assert_eq!(world.number(looks).await, 1, "once, of the clinic that has a rule about it");
    world.run("DELETE FROM jobs._private_jobs").await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!((world.number(looks).await, jobs(&world).await), (0, TENANT.to_string()));
    assert_eq!(look(&world).await.raised, 1);
    assert_eq!(alerts(&world).await, "first fast 21-26");

    // A boot between the two: what was said before it does not hold any more.
    world.write(&[batch_of(GATEWAY, &[boot_at(Epoch::new(0xaa, 2), 15)])]).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!(look(&world).await.withdrawn, 1);
    assert_eq!(alerts(&world).await, "none");
    // The same again changes nothing, and nobody looks.
    says_every(&world, 12, 120_000).await;
    says_every(&world, 13, 120_000).await;
    world.write(&[batch_of(GATEWAY, &[boot_at(Epoch::new(0xaa, 3), 16)])]).await;
    assert_eq!(world.number(looks).await, 0);
}

#[tokio::test]
async fn what_an_interval_changes_is_looked_at_so_many_hours_at_a_time_until_all_of_it_was() {
    let world = world().await;
    fast(&world).await;
    world
        .run(&format!(
            "INSERT INTO ts.readings_hourly SELECT '{TENANT}', '{USER}', 1, to_timestamp({0}) + make_interval(hours => h), 1, 70, 0, 70, 70
               FROM generate_series(0, 2499) h;
             INSERT INTO ts.interval_looks (tenant_id, hardware, channel, from_time, to_time)
               VALUES ('{TENANT}', '{HARDWARE_ROW}', 1, to_timestamp({0} + 1800), 'infinity')",
            BOOT_US / 1_000_000
        ))
        .await;
    let notes = "SELECT count(DISTINCT hour) FROM ts.alert_notes";
    let mut counts = Vec::new();
    for _ in 0..3 {
        world.run(&format!("SELECT ts.queue_looks('{TENANT}')")).await;
        counts.push(world.number(notes).await);
    }
    assert_eq!(counts, [1_000, 1_999, 2_500]);
    assert_eq!(world.number("SELECT count(*) FROM ts.interval_looks").await, 0);
}

#[tokio::test]
async fn however_many_words_of_an_interval_come_one_look_of_the_channel_waits() {
    let world = world().await;
    fast(&world).await;
    let every = |minute: u32, every_ms: u32| {
        let kind = DeviceEventKind::Interval { channel: HEART_RATE, every_ms };
        device_event(EPOCH, minute, u64::from(minute) * 60_000, kind)
    };
    let looks = "SELECT count(*) FROM ts.interval_looks";
    // In one batch, in which each changes what was in force.
    let words: Vec<Vec<u8>> = (10..20).map(|minute| every(minute, 60_000 + minute % 2 * 60_000)).collect();
    world.write(&[batch_of(GATEWAY, &words)]).await;
    assert_eq!(world.number(looks).await, 1);
    // In batches of their own, until the roll-up comes.
    for minute in [5, 30, 40] {
        world.write(&[batch_of(GATEWAY, &[every(minute, minute * 1_000)])]).await;
    }
    assert_eq!(world.number(looks).await, 4);
    world.run(&format!("SELECT ts.spread_looks('{TENANT}', 0)")).await;
    let waits = format!(
        "SELECT string_agg(round((extract(epoch FROM from_time) - {}) / 60) || ' ' || to_time, ', ') FROM ts.interval_looks",
        BOOT_US / 1_000_000
    );
    assert_eq!(world.text(&waits).await, "5 infinity");
}

/// Notes of so many hours of the wearer.
async fn noted(world: &World, hours: i64) {
    world
        .run(&format!(
            "INSERT INTO ts.alert_notes (tenant_id, user_id, type, hour)
               SELECT '{TENANT}', '{USER}', 1, date_bin('1 hour', to_timestamp({}), 'epoch') - make_interval(hours => h)
               FROM generate_series(0, {hours} - 1) h",
            BOOT_US / 1_000_000
        ))
        .await;
}

const NOTED: &str = "SELECT count(*) FROM ts.alert_notes";

#[tokio::test]
async fn a_clinic_whose_turn_is_over_leaves_the_rest_of_its_notes_for_its_next_one() {
    let world = world().await;
    fast(&world).await;
    minutes(&world, (2..8).map(|minute| (minute, 1300))).await;
    noted(&world, 40).await;
    let turn = async || evaluate(&world.pool, TENANT, timestamp(0), Duration::ZERO).await.unwrap();
    let (mut left, mut raised) = (Vec::new(), 0);
    while world.number(NOTED).await > 0 {
        raised += turn().await.raised;
        left.push(world.number(NOTED).await);
        world.run(&format!("SELECT ts.queue_looks('{TENANT}')")).await;
        assert_eq!(jobs(&world).await, TENANT.to_string());
    }
    assert_eq!((left, raised), (vec![25, 9, 0], 1));
}

#[tokio::test]
async fn what_is_not_looked_at_in_time_is_looked_at_in_smaller_parts() {
    let world = world().await;
    fast(&world).await;
    minutes(&world, (2..8).map(|minute| (minute, 1300))).await;
    noted(&world, 15).await;
    world
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN OLD; END $$;
             CREATE TRIGGER slow BEFORE DELETE ON ts.alert_notes FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let pool = hasty(&world, Duration::from_secs(2));
    let done = evaluate(&pool, TENANT, timestamp(0), ALL_OF_IT).await.unwrap();
    assert_eq!((done.raised, world.number(NOTED).await), (1, 0));
}

/// A boot, so many minutes after the first one.
fn boot_at(epoch: Epoch, minute: u64) -> Vec<u8> {
    use kinara_protocol::frame::{BootAnchor, MAX_FRAME, ResetReason, Ticks, encode_boot_anchor};
    let mut out = [0; MAX_FRAME];
    let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
    let len = encode_boot_anchor(epoch, 0, Ticks(minute * 60_000), &anchor, &mut out);
    out[..len].to_vec()
}
