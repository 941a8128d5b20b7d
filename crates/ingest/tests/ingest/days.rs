//! On which days a wearer has something (`ts.days`): whoever writes it, moves it, or had it before there was such a table.

use crate::erased::hot_flash;
use crate::support::*;
use kinara_ingest::boundary::NOBODY;
use kinara_ingest::erase::erase;
use kinara_ingest::rollup::note_days_of_waves;
use kinara_ingest::timestamp;
use kinara_protocol::channel::ACCELERATION;
use kinara_store::migrate;
use kinara_test_postgres::PREPARED;
use uuid::Uuid;

fn waves(seq: u32) -> kinara_ingest::Batch {
    batch_of(GATEWAY, &[frame_of(EPOCH, seq, ACCELERATION, &[1, 2, 3])])
}

async fn days_of(world: &World, user: Uuid) -> i64 {
    world.number(&format!("SELECT count(DISTINCT day) FROM ts.days WHERE user_id = '{user}'")).await
}

async fn rows_of(world: &World, user: Uuid) -> i64 {
    world
        .number(&format!(
            "(SELECT count(*) FROM ts.readings WHERE user_id = '{user}')
             + (SELECT count(*) FROM ts.waveforms WHERE user_id = '{user}')
             + (SELECT count(*) FROM ts.events WHERE user_id = '{user}')"
        ))
        .await
}

async fn ask_for_move(world: &World, from: Uuid, to: Uuid) {
    world
        .run(&format!(
            "DELETE FROM moves; INSERT INTO moves (tenant_id, from_user, to_user) VALUES ('{TENANT}', '{from}', '{to}')"
        ))
        .await;
}

/// Moves day by day, to the end of a pass.
async fn go_through(world: &World) -> i64 {
    let mut moved = 0;
    loop {
        match world.number("SELECT ts.move(id, 1) FROM moves").await {
            0 => return moved,
            rows => moved += rows.max(0),
        }
    }
}

#[tokio::test]
async fn a_day_of_which_there_are_waveforms_or_events_alone_is_known() {
    let world = world().await;
    world.write(&[waves(0)]).await;
    assert_eq!((world.readings().await, days_of(&world, USER).await), (0, 1));
    world.days_are_known().await;
    // On the next day (UTC).
    world.clock.advance_us(3_600_000_000);
    world.writer().write_events(&hot_flash(3_700, GATEWAY)).await.unwrap();
    assert_eq!((rows_of(&world, USER).await, days_of(&world, USER).await), (2, 2));
    world.days_are_known().await;
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!(rows_of(&world, USER).await, 0);
}

#[tokio::test]
async fn what_becomes_nobodys_and_then_somebodys_is_found_each_time() {
    let world = world().await;
    world.clock.advance_us(3_600_000_000);
    world.write(&[batch_of(GATEWAY, &seconds(3_590..3_610)), waves(3_700)]).await;
    world.writer().write_events(&hot_flash(10, GATEWAY)).await.unwrap();
    let all = rows_of(&world, USER).await;
    assert_eq!(all, 102);
    for (from, to) in [(USER, NOBODY), (NOBODY, SECOND_USER), (SECOND_USER, USER), (USER, SECOND_USER)] {
        ask_for_move(&world, from, to).await;
        assert_eq!(go_through(&world).await, all, "{from} {to}");
        world.days_are_known().await;
        assert_eq!((rows_of(&world, from).await, rows_of(&world, to).await), (0, all), "{from} {to}");
        let keys = format!("SELECT count(*) FROM event_keys WHERE user_id = '{to}'");
        assert_eq!(world.number(&keys).await, 1, "{from} {to}");
    }
}

#[tokio::test]
async fn days_from_before_are_filled_in_after_a_fill_was_cut_short_and_are_found_meanwhile() {
    let world = world().await;
    let day = |n: i64| (NOW_US - (20 - n) * 86_400_000_000) / 1_000_000;
    let columns = "tenant_id, user_id, device_id, type, idx, epoch, seq";
    let whose = format!("'{TENANT}', '{USER}', '{DEVICE}', 1, 0, 1, d");
    // As a release left it that knew no days: three of readings, then of waveforms, then of events.
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(to_timestamp({0}), to_timestamp({1}));
             INSERT INTO ts.readings (time, {columns}, value)
               SELECT to_timestamp({0} + d * 86400), {whose}, 70 FROM generate_series(0, 2) d;
             INSERT INTO ts.waveforms (time, {columns}, scale, components, data)
               SELECT to_timestamp({0} + d * 86400), {whose}, 1, 1, '\\x00' FROM generate_series(3, 5) d;
             INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, key)
               SELECT to_timestamp({0} + d * 86400), '{TENANT}', '{USER}', '{DEVICE}', 'hot_flash', sha256(d::text::bytea)
               FROM generate_series(6, 8) d;
             DELETE FROM ts.days;
             DELETE FROM ts.walks WHERE walk = 'days known';
             DELETE FROM kinara.online_steps WHERE name = 'days_filled'",
            day(0),
            day(10),
        ))
        .await;
    // A slice that is cut short leaves nothing; then some are done.
    world.run("BEGIN; SELECT ts.fill_days(); ROLLBACK").await;
    assert_eq!(days_of(&world, USER).await, 0);
    while days_of(&world, USER).await < 2 {
        assert_eq!(world.number("SELECT ts.fill_days()").await, 1);
    }
    // Meanwhile somebody writes, and what is there is found whether its day has a row or not.
    world.write(&[batch_of(GATEWAY, &seconds(0..2)), waves(2)]).await;
    ask_for_move(&world, USER, SECOND_USER).await;
    assert_eq!(go_through(&world).await, 20);
    assert_eq!(migrate::beside(&world.server.superuser_url(PREPARED)).await.unwrap(), 1);
    world.days_are_known().await;
    assert_eq!(world.number("SELECT count(*) FROM ts.walks WHERE walk = 'days known'").await, 1);
    assert_eq!(days_of(&world, SECOND_USER).await, 10);
    assert_eq!(world.number("SELECT ts.fill_days()").await, 0);
    ask_for_move(&world, SECOND_USER, USER).await;
    assert_eq!(go_through(&world).await, 20);
}

#[tokio::test]
async fn waveforms_of_a_bridge_that_notes_no_days_are_noted_within_a_night() {
    let world = world().await;
    world.write(&[waves(0), waves(1)]).await;
    // As an older release writes them; and a day that is nearly over.
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(to_timestamp({0}), to_timestamp({0}));
             INSERT INTO ts.waveforms
               SELECT to_timestamp({0}), tenant_id, '{SECOND_USER}', device_id, type, idx, epoch, seq, interval_ms, ticks, scale,
                 components, data, quality FROM ts.waveforms;
             DELETE FROM ts.days",
            NOW_US / 1_000_000 - 31 * 86_400
        ))
        .await;
    for _ in 0..2 {
        assert_eq!(note_days_of_waves(&world.pool, timestamp(NOW_US)).await.unwrap(), 2);
        world.days_are_known().await;
    }
    assert_eq!(world.number("SELECT count(*) FROM ts.days").await, 2, "no day twice");
    ask_for_move(&world, USER, SECOND_USER).await;
    assert_eq!(go_through(&world).await, 2);
}
