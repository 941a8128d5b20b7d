//! Events, and what the bridge does on its own account.

use std::time::Duration;

use crate::hostile::{given_on, of_1970};
use crate::support::*;
use kinara_ingest::sweep::{Policy, fit_chunks, sweep};
use kinara_ingest::{Counts, Name, Outcome, events};
use kinara_protocol::envelope::{self, ENVELOPE_VERSION, Event, EventBatch, Gap};
use kinara_protocol::frame::checksum;
use uuid::Uuid;

fn event(onset_s: u64) -> Event {
    Event {
        hardware_id: HARDWARE.to_owned(),
        kind: "hot_flash".to_owned(),
        producer: "rule:sternal/1".to_owned(),
        epoch: EPOCH.0,
        onset_ticks: onset_s * 1_000,
        grid_ms: 30_000,
        onset_utc_us: BOOT_US + onset_s as i64 * 1_000_000,
        uncertainty_us: 5_000,
        severity: "info".to_owned(),
        confidence: 0.5,
        data_json: r#"{"eda_rise":2.5}"#.to_owned(),
        onset_seq: onset_s as u32,
    }
}

pub(crate) fn event_batch(gateway: Uuid, events: Vec<Event>, gaps: Vec<Gap>) -> events::Events {
    let batch = EventBatch {
        version: ENVELOPE_VERSION,
        name: Some(Name { gateway, buffer: 7, sequence: 0 }.into()),
        sealed_at_us: NOW_US,
        events,
        gaps,
        decisions: Vec::new(),
    };
    events::decode(&envelope::seal(&batch)).unwrap()
}

async fn write(world: &World, events: &events::Events) -> Counts {
    match world.writer().write_events(events).await.unwrap() {
        Outcome::Done(counts) => counts,
        other @ Outcome::RetryAfter { .. } => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_event_is_in_once_whoever_repeats_it() {
    let world = world().await;
    let batch = event_batch(GATEWAY, vec![event(60), event(61), event(100)], Vec::new());
    let counts = write(&world, &batch).await;
    assert_eq!(counts, Counts { stored: 2, duplicate: 1, ..Counts::default() });
    let counts = write(&world, &event_batch(SECOND_GATEWAY, vec![event(100)], Vec::new())).await;
    assert_eq!(counts, Counts { duplicate: 1, ..Counts::default() });
    let counts = write(&world, &event_batch(FOREIGN_GATEWAY, vec![event(300)], Vec::new())).await;
    assert_eq!(counts, Counts { quarantined: 1, ..Counts::default() });
    assert_eq!(world.number("SELECT count(*) FROM ts.events").await, 2);
    let first = world.text("SELECT data->>'eda_rise' || ' ' || event_type || ' ' || user_id FROM ts.events ORDER BY time LIMIT 1").await;
    assert_eq!(first, format!("2.5 hot_flash {USER}"));
}

#[tokio::test]
async fn an_event_in_doubt_between_wearers_of_others_is_refused_as_another_clinics() {
    let world = world().await;
    world
        .run(&format!(
            "UPDATE device_assignments SET valid_to = to_timestamp({0});
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from, first_epoch, first_seq)
               VALUES ('{HARDWARE_ROW}', '{TENANT}', '{SECOND_USER}', '{DEVICE}', to_timestamp({0}), {1}, 150)",
            BOOT_US / 1_000_000 + 100,
            EPOCH.0
        ))
        .await;
    let unsure = Event { uncertainty_us: 3_600_000_000, ..event(60) };
    // By its name the second wearer's, by its time the first's.
    let out_of_order = Event { onset_seq: 200, ..event(90) };
    for (gateway, reasons) in
        [(FOREIGN_GATEWAY, "foreign_gateway 60, foreign_gateway 200"), (GATEWAY, "order 200, unsure 60")]
    {
        world.run("DELETE FROM quarantine").await;
        let counts =
            write(&world, &event_batch(gateway, vec![unsure.clone(), out_of_order.clone()], Vec::new()))
                .await;
        assert_eq!(counts, Counts { quarantined: 2, ..Counts::default() });
        assert_eq!(world.quarantine().await, reasons);
    }
}

#[tokio::test]
async fn an_event_with_data_that_the_database_refuses_is_put_aside_alone() {
    let world = world().await;
    let mut bad = event(60);
    bad.data_json = r#"{"a":"\u0000"}"#.to_owned();
    let counts = write(&world, &event_batch(GATEWAY, vec![bad, event(100)], Vec::new())).await;
    assert_eq!(counts, Counts { stored: 1, quarantined: 1, ..Counts::default() });
}

#[tokio::test]
async fn an_event_whose_texts_the_database_has_no_room_for_is_malformed() {
    let world = world().await;
    let bad = |change: fn(&mut Event)| {
        let mut event = event(60);
        change(&mut event);
        event
    };
    let events = vec![
        bad(|event| event.kind = "hot\0flash".to_owned()),
        bad(|event| event.producer = "\0".to_owned()),
        bad(|event| event.severity = "x".repeat(21)),
        bad(|event| event.hardware_id = "kinara:\0a1".to_owned()),
        bad(|event| event.data_json = "{".to_owned()),
        event(100),
    ];
    let counts = write(&world, &event_batch(GATEWAY, events, Vec::new())).await;
    assert_eq!(counts, Counts { stored: 1, quarantined: 5, ..Counts::default() });
    assert_eq!(world.number("SELECT count(*) FROM quarantine WHERE reason = 'malformed'").await, 5);
}

#[tokio::test]
async fn a_gateways_quota_gap_is_recorded_less_what_is_stored() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..5))]).await;
    let gap = Gap {
        hardware_id: HARDWARE.to_owned(),
        epoch: EPOCH.0,
        seq_ranges: vec![3, 5],
        reason: "quota".to_owned(),
        from_utc_us: BOOT_US + 3_000_000,
        to_utc_us: BOOT_US + 8_000_000,
    };
    for _ in 0..2 {
        write(&world, &event_batch(GATEWAY, Vec::new(), vec![gap.clone()])).await;
        assert_eq!(world.gaps().await, "quota {[5,8)}");
    }
    world.write(&[batch_of(SECOND_GATEWAY, &seconds(6..10))]).await;
    assert_eq!(world.gaps().await, "quota {[5,6)}");
}

#[tokio::test]
async fn what_a_gateway_says_it_lost_is_lost_until_it_comes() {
    let world = world().await;
    let gap = Gap {
        hardware_id: HARDWARE.to_owned(),
        epoch: EPOCH.0,
        seq_ranges: vec![0, 5],
        reason: "gateway_lost".to_owned(),
        ..Gap::default()
    };
    write(&world, &event_batch(GATEWAY, Vec::new(), vec![gap])).await;
    assert_eq!(world.gaps().await, "gateway_lost {[0,5)}");
    world.write(&[batch_of(GATEWAY, &seconds(3..6))]).await;
    assert_eq!(world.gaps().await, "gateway_lost {[0,3)}");
}

#[tokio::test]
async fn a_clinic_that_held_a_device_once_cannot_tell_of_gaps_after_it() {
    let world = world().await;
    let second = |s: i64| (BOOT_US + s * 1_000_000) / 1_000_000;
    world
        .run(&format!(
            "UPDATE device_assignments SET valid_to = to_timestamp({0});
             INSERT INTO users (id, tenant_id) VALUES ('{FOREIGN_GATEWAY}', '{OTHER_TENANT}');
             INSERT INTO devices (id, tenant_id, hardware_id)
               VALUES ('{FOREIGN_GATEWAY}', '{OTHER_TENANT}', '{HARDWARE}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{FOREIGN_GATEWAY}', '{FOREIGN_GATEWAY}', to_timestamp({0}))",
            second(10)
        ))
        .await;
    let gap = |seq: u32, times: Option<(i64, i64)>| Gap {
        hardware_id: HARDWARE.to_owned(),
        epoch: EPOCH.0,
        seq_ranges: vec![seq, 2],
        reason: "quota".to_owned(),
        from_utc_us: times.map_or(0, |(from, _)| BOOT_US + from * 1_000_000),
        to_utc_us: times.map_or(0, |(_, to)| BOOT_US + to * 1_000_000),
    };
    let told = vec![gap(12, Some((12, 14))), gap(9, Some((9, 11))), gap(20, None)];
    write(&world, &event_batch(GATEWAY, Vec::new(), told)).await;
    assert_eq!(world.gaps().await, "none");
    write(&world, &event_batch(FOREIGN_GATEWAY, Vec::new(), vec![gap(3, Some((3, 5)))])).await;
    assert_eq!(world.gaps().await, "none");
    write(&world, &event_batch(GATEWAY, Vec::new(), vec![gap(3, Some((3, 5)))])).await;
    assert!(world.gaps().await.contains("quota {[3,5)}"), "{}", world.gaps().await);
}

async fn settle(world: &World) -> u64 {
    let policy = Policy { late_grace: Duration::from_secs(10), ..Policy::default() };
    sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap().lost
}

#[tokio::test]
async fn a_hole_is_late_while_somebody_may_hold_it_and_lost_when_nobody_does() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world.write(&[batch_of(GATEWAY, &seconds(5..6))]).await;
    let say = |gateway: Uuid, buffered: u64, connected: bool| {
        format!(
            "UPDATE gateways SET last_seen_at = to_timestamp({}), state = jsonb_build_object('online', true,
               'parked_batches', 0, 'devices', jsonb_build_array(jsonb_build_object('hardware_id', '{HARDWARE}',
               'buffered_frames', {buffered}, 'backlog_frames', 0, 'connected', {connected})))
             WHERE id = '{gateway}'",
            NOW_US / 1_000_000 + 20
        )
    };
    world.clock.advance_us(20_000_000);
    world.run(&say(GATEWAY, 0, true)).await;
    // The second gateway has never been heard of.
    assert_eq!(settle(&world).await, 0);
    world.run(&say(SECOND_GATEWAY, 4, false)).await;
    assert_eq!(settle(&world).await, 0);
    world.run(&say(SECOND_GATEWAY, 0, false)).await;
    assert_eq!(settle(&world).await, 1);
    assert_eq!(world.gaps().await, "gateway_lost {[3,5)}");
    // Not final against data.
    world.write(&[batch_of(SECOND_GATEWAY, &seconds(3..4))]).await;
    assert_eq!(world.gaps().await, "gateway_lost {[4,5)}");
}

#[tokio::test]
async fn a_gateway_that_lost_its_database_settles_the_holes_it_left() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world
        .run(&format!(
            "INSERT INTO gateway_buffers (gateway_id, buffer, store_id, broke_at)
             VALUES ('{GATEWAY}', 2, 2, to_timestamp({}))",
            NOW_US / 1_000_000
        ))
        .await;
    world.write(&[batch_of(GATEWAY, &seconds(5..6))]).await;
    assert_eq!(settle(&world).await, 0);
    world.clock.advance_us(11_000_000);
    assert_eq!(settle(&world).await, 1);
    assert_eq!(world.gaps().await, "gateway_lost {[3,5)}");
}

#[tokio::test]
async fn a_quarantine_beyond_its_limits_leaves_gaps() {
    let world = world().await;
    world.run("DELETE FROM device_assignments").await;
    world.write(&[batch_of(GATEWAY, &seconds(0..4))]).await;
    assert_eq!(world.number("SELECT count(*) FROM quarantine").await, 4);
    let policy = Policy { quarantine_rows: 1, ..Policy::default() };
    let swept = sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap();
    assert_eq!(swept.expired, 3);
    world.clock.advance_us(100 * 86_400_000_000);
    let swept = sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap();
    assert_eq!(swept.expired, 1);
    let lost = "SELECT sum(upper(s) - lower(s)) FROM gaps, unnest(seqs) s WHERE reason = 'expired'";
    assert_eq!(world.number(lost).await, 4);
    assert_eq!(world.number("SELECT max(highest) FROM ledger").await, 3);
}

#[tokio::test]
async fn a_number_never_seen_below_one_that_expires_is_late() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    // Of 3 and 4 nobody has heard anything, 7 is in quarantine still when 5, 6 and 8 expire.
    let valid_to = |to: &str| format!("UPDATE device_assignments SET valid_to = {to}");
    world.run(&valid_to(&format!("to_timestamp({})", BOOT_US / 1_000_000 + 5))).await;
    world.write(&[batch_of(GATEWAY, &seconds(5..9))]).await;
    world.run(&valid_to("NULL")).await;
    world.run("UPDATE quarantine SET received_at = received_at - interval '100 days' WHERE seq <> 7").await;
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.expired, world.gaps().await.as_str()), (3, "expired {[5,7),[8,9)}, late {[3,5)}"));
    // Those that come after all are taken out of theirs.
    world.write(&[batch_of(GATEWAY, &seconds(3..6))]).await;
    assert_eq!(world.gaps().await, "expired {[6,7),[8,9)}");
}

#[tokio::test]
async fn a_hole_of_a_device_that_has_moved_on_is_settled_by_a_link_of_its_new_clinic() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world.write(&[batch_of(GATEWAY, &seconds(5..6))]).await;
    world.clock.advance_us(20_000_000);
    let now = NOW_US / 1_000_000 + 20;
    let state = |connected: bool| {
        format!(
            "jsonb_build_object('online', true, 'parked_batches', 0, 'devices', jsonb_build_array(jsonb_build_object(
               'hardware_id', '{HARDWARE}', 'buffered_frames', 0, 'backlog_frames', 0, 'connected', {connected})))"
        )
    };
    world
        .run(&format!(
            "UPDATE gateways SET last_seen_at = to_timestamp({now}), state = {} WHERE tenant_id = '{TENANT}';
             UPDATE gateways SET last_seen_at = to_timestamp({now}), state = {} WHERE id = '{FOREIGN_GATEWAY}'",
            state(false),
            state(true)
        ))
        .await;
    // A link of a clinic that never held the device is nobody's word.
    assert_eq!(settle(&world).await, 0);
    world
        .run(&format!(
            "UPDATE device_assignments SET valid_to = to_timestamp({now} - 10);
             INSERT INTO devices (id, tenant_id, hardware_id)
               VALUES ('{FOREIGN_GATEWAY}', '{OTHER_TENANT}', '{HARDWARE}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{FOREIGN_GATEWAY}', '{FOREIGN_GATEWAY}',
                 to_timestamp({now} - 5))"
        ))
        .await;
    assert_eq!(settle(&world).await, 1);
    assert_eq!(world.gaps().await, "gateway_lost {[3,5)}");
}

#[tokio::test]
async fn what_another_clinics_gateway_brought_leaves_no_gap_when_it_expires() {
    let world = world().await;
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(0..4))]).await;
    world.clock.advance_us(100 * 86_400_000_000);
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!(swept.expired, 4);
    assert_eq!(world.gaps().await, "none");
    assert_eq!(world.ledger().await, "empty");
}

/// A frame that is whole and that nobody can read.
fn undecodable(seq: u32) -> Vec<u8> {
    let mut frame = frame(EPOCH, seq);
    frame[1] = 0x41;
    let end = frame.len() - 4;
    let crc = checksum(&frame[..end]);
    frame[end..].copy_from_slice(&crc.to_le_bytes());
    frame
}

#[tokio::test]
async fn a_frame_that_expires_is_missing_in_the_time_in_which_it_was_measured_whoever_has_the_device_when_it_comes()
 {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..5))]).await;
    given_on(&world).await;
    // The first clinic's box drains an hour later: of two frames it is known when they were, of the third it is not.
    let aside = world.write(&[batch_of(GATEWAY, &[undecodable(5), undecodable(6)]), of_1970(7..8)]).await;
    assert_eq!(aside.iter().map(|counts| counts.quarantined).sum::<u64>(), 3);
    world.clock.advance_us(100 * 86_400_000_000);
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.expired, swept.failed), (3, 0));
    let told = format!(
        "SELECT coalesce(string_agg(reason || ' ' || frames || ' from ' || extract(epoch FROM from_time)::int8 - {0} || ' to '
           || extract(epoch FROM to_time)::int8 - {0}, ', '), 'nothing') FROM wearer_gaps",
        BOOT_US / 1_000_000
    );
    for (tenant, expected) in [(TENANT, "expired 3 from 5 to 10"), (OTHER_TENANT, "nothing")] {
        world.run(&format!("SET kinara.tenant = '{tenant}'")).await;
        assert_eq!(world.text(&told).await, expected);
    }
}

#[tokio::test]
async fn a_clinic_that_did_not_hold_the_device_at_the_time_settles_nothing() {
    let world = world().await;
    // The other clinic held the device long before, and one of its gateways lost its database since.
    world
        .run(&format!(
            "INSERT INTO devices (id, tenant_id, hardware_id)
               VALUES ('{FOREIGN_GATEWAY}', '{OTHER_TENANT}', '{HARDWARE}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from, valid_to)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{FOREIGN_GATEWAY}', '{FOREIGN_GATEWAY}', '2025-01-01',
                 '2025-02-01');
             INSERT INTO gateway_buffers (gateway_id, buffer, store_id, broke_at)
               VALUES ('{FOREIGN_GATEWAY}', 2, 2, to_timestamp({}))",
            NOW_US / 1_000_000
        ))
        .await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world.write(&[batch_of(GATEWAY, &seconds(5..6))]).await;
    world.clock.advance_us(11_000_000);
    assert_eq!(settle(&world).await, 0);
    assert_eq!(world.gaps().await, "late {[3,5)}");
}

#[tokio::test]
async fn chunks_are_as_long_as_a_quarter_of_the_memory_holds() {
    const GIB: u64 = 1 << 30;
    let world = world().await;
    let fitted = async |gib| fit_chunks(&world.pool, Some(gib * GIB)).await.unwrap();
    assert_eq!(fitted(1).await, None, "nothing is known of what is to come");
    // Eighty million readings a day: 20 GB with their index.
    world
        .run(&format!(
            "INSERT INTO ts.written_hours (tenant_id, hour, readings, changed_at)
               SELECT '{TENANT}', date_bin('1 day', now(), 'epoch') - make_interval(hours => h), 80000000 / 24, now()
               FROM generate_series(1, 168) h"
        ))
        .await;
    let timescale = world.text("SELECT kind FROM ts.storage").await == "timescale";
    for (gib, length) in
        [(256, "1 day"), (128, "12:00:00"), (90, "03:00:00"), (16, "01:00:00"), (1024, "7 days")]
    {
        // A day is how long they are at first.
        let expected = (timescale && length != "1 day").then(|| length.to_owned());
        assert_eq!(fitted(gib).await, expected, "{gib} GiB");
        assert_eq!(fitted(gib).await, None, "and they stay so");
    }
    if timescale {
        let length = "SELECT time_interval::text FROM timescaledb_information.dimensions
                      WHERE hypertable_schema = 'ts' AND hypertable_name = 'readings'";
        assert_eq!(world.text(length).await, "7 days");
    }
}

#[tokio::test]
async fn a_sweep_leaves_partitions_to_the_login_that_may_detach_them() {
    let world = world().await;
    if world.text("SELECT kind FROM ts.storage").await != "plain" {
        return;
    }
    world.run("SELECT ts.ensure_partitions(now() - interval '800 days', now() - interval '800 days')").await;
    let expired = "SELECT count(*) FROM ts.expired_partitions()";
    for drops_partitions in [false, true] {
        let policy = Policy { drops_partitions, ..Policy::default() };
        assert_eq!(sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap().failed, 0);
        assert_eq!(world.number(expired).await == 0, drops_partitions);
    }
}
