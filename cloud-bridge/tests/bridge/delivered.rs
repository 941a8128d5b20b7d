//! What gateways say was acknowledged to them is theirs alone: whose frames they were decides who hears of a loss.

use std::sync::Arc;
use std::time::Duration;

use crate::support::*;
use kinara_cloud_bridge::state::{Message, Register};
use kinara_ingest::reconcile::{Span, reconcile};
use kinara_ingest::timestamp;
use kinara_protocol::envelope::{Delivered, DeviceState, ENVELOPE_VERSION, State};
use uuid::Uuid;

/// The second clinic's wearer, who has the device from 100 seconds after the boot on.
const OTHERS: Uuid = Uuid::from_u128(0x2001);

/// What a gateway says of an epoch of a device, so many seconds after the boot.
async fn says(
    world: &World,
    second: i64,
    gateway: Uuid,
    hardware: &str,
    epoch: u64,
    seqs: std::ops::Range<u32>,
) {
    let clock = Arc::new(kinara_clock::ManualClock::new(BOOT_US + second * 1_000_000, 0));
    let device = DeviceState {
        hardware_id: hardware.to_owned(),
        delivered: Some(Delivered { epoch, seq_ranges: vec![seqs.start, seqs.end - seqs.start] }),
        ..DeviceState::default()
    };
    let state = State { version: ENVELOPE_VERSION, online: true, devices: vec![device], ..State::default() };
    let register = Register::new(world.pool.clone(), clock);
    register.note(&Message { gateway, retained: false, state }).await.unwrap();
}

async fn told(world: &World) -> String {
    world
        .text(
            "SELECT coalesce(string_agg(gateway_id::text || ' ' || epoch || ' ' || seqs, ', ' ORDER BY gateway_id, epoch), 'nothing')
             FROM gateway_delivered",
        )
        .await
}

/// Who is alerted after the night, and about which numbers.
async fn alerts(world: &World) -> String {
    let span = Span { raw_from: timestamp(0), again_from: timestamp(0), patience: Duration::from_mins(1) };
    reconcile(&world.pool, &span).await.unwrap();
    world
        .text(
            "SELECT coalesce(string_agg(coalesce(right(tenant_id::text, 1), 'nobody') || ' ' || (data ->> 'nowhere') || ' '
               || (data ->> 'acknowledged'), ', ' ORDER BY tenant_id, subject), 'none')
             FROM alerts WHERE kind = 'frames' AND withdrawn_at IS NULL",
        )
        .await
}

/// The device goes to the second clinic at 100, at a frame that is named or not.
async fn given_on(named: Option<u32>) -> World {
    let world = world().await;
    let at = BOOT_US / 1_000_000 + 100;
    let frame = named.map_or("NULL, NULL".to_owned(), |seq| format!("{}, {seq}", EPOCH.0 as i64));
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{OTHERS}', 'v1');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{HARDWARE}');
             UPDATE device_assignments SET valid_to = to_timestamp({at}), (to_epoch, to_seq) = ROW({frame});
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from, from_epoch, from_seq)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{OTHERS}', '{OTHERS}', '{OTHERS}', to_timestamp({at}), {frame})"
        ))
        .await;
    world
}

#[tokio::test]
async fn a_gateway_speaks_of_frames_of_its_clinics_time_alone_and_its_losses_are_told_to_its_clinic() {
    let world = given_on(None).await;
    world.write(&[batch_of(GATEWAY, &seconds(0..50)), batch_of(FOREIGN_GATEWAY, &seconds(120..130))]).await;
    // The former clinic's gateway, of what is the second's: numbers after that one's first, and an epoch of now.
    says(&world, 500, GATEWAY, HARDWARE, EPOCH.0, 200..400).await;
    says(&world, 500, GATEWAY, HARDWARE, 99, 0..3).await;
    assert_eq!((told(&world).await, alerts(&world).await), ("nothing".to_owned(), "none".to_owned()));
    // What it was told while the device was its clinic's, and what of its own it says later.
    says(&world, 60, GATEWAY, HARDWARE, 98, 0..3).await;
    says(&world, 500, GATEWAY, HARDWARE, EPOCH.0, 0..400).await;
    assert_eq!(told(&world).await, format!("{GATEWAY} 98 {{[0,3)}}, {GATEWAY} {} {{[0,120)}}", EPOCH.0));
    // The second clinic's own.
    says(&world, 500, FOREIGN_GATEWAY, HARDWARE, 97, 0..7).await;
    assert_eq!(alerts(&world).await, "1 {} {[0,3)}, 2 {} {[0,7)}");
}

#[tokio::test]
async fn a_device_that_a_clinic_has_paired_and_never_had_is_none_that_it_speaks_of() {
    let world = given_on(Some(100)).await;
    world
        .run(&format!(
            "INSERT INTO hardware (hardware_id) VALUES ('kinara:00000000000000b2');
             INSERT INTO devices (tenant_id, hardware_id) VALUES ('{OTHER_TENANT}', 'kinara:00000000000000b2')"
        ))
        .await;
    says(&world, 500, FOREIGN_GATEWAY, "kinara:00000000000000b2", 9, 0..3).await;
    assert_eq!(told(&world).await, "nothing");
}

#[tokio::test]
async fn numbers_that_are_nowhere_are_told_to_the_clinic_whose_they_are_or_to_none() {
    for (named, expected) in
        [(Some(100), "1 {[60,70)} {}, 2 {[110,120)} {}"), (None, "nobody {[60,70),[110,120)} {}")]
    {
        let world = given_on(named).await;
        world
            .write(&[batch_of(GATEWAY, &seconds(0..60)), batch_of(FOREIGN_GATEWAY, &seconds(120..130))])
            .await;
        world.run("UPDATE gaps SET seqs = seqs - '{[60,70),[110,120)}'").await;
        assert_eq!(alerts(&world).await, expected);
        world.run("UPDATE gaps SET seqs = '{[60,120)}'").await;
        assert_eq!(alerts(&world).await, "none");
    }
}

fn online(devices: Vec<DeviceState>) -> State {
    State { version: ENVELOPE_VERSION, online: true, devices, ..State::default() }
}

fn register(world: &World) -> Register {
    Register::new(world.pool.clone(), world.clock.clone())
}

#[tokio::test]
async fn a_gateway_that_draws_a_life_and_an_epoch_for_each_of_its_words_fills_no_table() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO gateway_buffers (gateway_id, buffer, store_id, first_seen_at)
               SELECT '{GATEWAY}', g, 1, 'epoch' FROM generate_series(1, 1200) g;
             INSERT INTO device_firmware SELECT '{DEVICE}', '{TENANT}', g, '1', 'epoch' FROM generate_series(1, 1200) g;
             INSERT INTO gateway_delivered SELECT '{GATEWAY}', '{HARDWARE_ROW}', g, '{{[0,1)}}', 'epoch' FROM generate_series(1, 200) g"
        ))
        .await;
    let device = DeviceState {
        hardware_id: HARDWARE.to_owned(),
        connected: true,
        epoch: 7_000,
        firmware: "2".to_owned(),
        delivered: Some(Delivered { epoch: 7_000, seq_ranges: vec![0, 1] }),
        ..DeviceState::default()
    };
    let state = State { buffer: 9_000, store_id: 1, ..online(vec![device]) };
    register(&world).note(&Message { gateway: GATEWAY, retained: false, state }).await.unwrap();
    for (table, newest, most) in [
        ("gateway_buffers", "buffer = 9000", 1_000),
        ("device_firmware", "epoch = 7000", 1_000),
        ("gateway_delivered", "epoch = 7000", 64),
    ] {
        let count = world.number(&format!("SELECT count(*) FROM {table}")).await;
        let is_there = world.number(&format!("SELECT count(*) FROM {table} WHERE {newest}")).await;
        assert_eq!((count, is_there), (most, 1), "{table}");
    }
}

#[tokio::test]
async fn a_gateway_whose_word_of_what_was_acknowledged_takes_long_is_heard_and_holds_up_no_other() {
    let world = world().await;
    world
        .run(
            "CREATE OR REPLACE FUNCTION ts.numbers_of(which uuid, of_epoch int8, told_at timestamptz)
               RETURNS TABLE (clinic uuid, possible int8multirange, certain int8multirange)
               LANGUAGE sql VOLATILE SECURITY DEFINER AS $$ SELECT NULL::uuid, '{}'::int8multirange, '{}'::int8multirange FROM pg_sleep(60) $$",
        )
        .await;
    let register = register(&world);
    let device = DeviceState {
        hardware_id: HARDWARE.to_owned(),
        delivered: Some(Delivered { epoch: 1, seq_ranges: vec![0, 1] }),
        ..DeviceState::default()
    };
    let began = std::time::Instant::now();
    for frames in [1, 2, 3] {
        let state = State { buffered_frames: frames, ..online(vec![device.clone()]) };
        register.note(&Message { gateway: GATEWAY, retained: false, state }).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let said = format!("SELECT state ->> 'buffered_frames' FROM gateways WHERE id = '{GATEWAY}'");
    assert_eq!(world.text(&said).await, "3");
}

#[tokio::test]
async fn a_device_that_was_seen_in_the_future_is_seen_again_now() {
    let world = world().await;
    let seen_at = |last_seen_us: i64| {
        let device = DeviceState {
            hardware_id: HARDWARE.to_owned(),
            last_seen_us,
            connected: true,
            ..DeviceState::default()
        };
        Message { gateway: GATEWAY, retained: false, state: online(vec![device]) }
    };
    let register = register(&world);
    for us in [i64::MAX, NOW_US + 1_000_000, NOW_US - 1_000_000] {
        register.note(&seen_at(us)).await.unwrap();
    }
    let seen = format!("SELECT extract(epoch FROM last_seen_at)::int8 - {} FROM devices", NOW_US / 1_000_000);
    assert_eq!(world.number(&seen).await, 0);
}
