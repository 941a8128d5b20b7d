//! Aggregates are what their readings make them.

use crate::support::*;
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::{Batch, batch, timestamp};
use kinara_protocol::columns;
use kinara_protocol::envelope::Fit;
use kinara_protocol::frame::{Epoch, FrameRef};
use uuid::Uuid;

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// Frames of one second each from this moment on, of an epoch of their own.
fn at(from_us: i64, seconds: u32) -> Batch {
    let boot = (from_us / 1_000_000 % i64::from(u32::MAX)) as u32;
    let epoch = Epoch::new(0xaa, boot);
    let frames: Vec<Vec<u8>> = (0..seconds)
        .map(|seq| {
            frame_with(epoch, seq, u64::from(seq) * 1_000, 600 + (boot.wrapping_add(seq * 7) % 400) as i32)
        })
        .collect();
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let fit = Fit { ref_utc_us: from_us, ..fit() };
    let columns = stamped(columns::encode(HARDWARE, epoch, refs).unwrap(), fit);
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
}

async fn open() -> World {
    let world = world().await;
    world.run("UPDATE device_assignments SET valid_from = '2024-01-01'; UPDATE consents SET given_at = '2024-01-01'").await;
    world
}

async fn rolled(world: &World) -> u64 {
    roll_up(&world.pool, timestamp(NOW_US), &Slice { hours: 3, ..Slice::default() }).await.unwrap()
}

/// How many aggregates differ from what the readings make of them, by level.
async fn wrong(world: &World) -> [i64; 4] {
    let mut wrong = [0; 4];
    for (place, (table, bucket, key)) in [
        ("readings_minute", "date_bin('1 minute', time, 'epoch')", "bucket"),
        ("readings_15min", "date_bin('15 minutes', time, 'epoch')", "bucket"),
        ("readings_hourly", "date_bin('1 hour', time, 'epoch')", "bucket"),
        ("readings_daily", "(time AT TIME ZONE ts.zone_at(user_id, time))::date", "day"),
    ]
    .into_iter()
    .enumerate()
    {
        let sql = format!(
            "SELECT count(*) FROM (
               SELECT tenant_id, user_id, type, {bucket} AS {key}, count(*) AS n, avg(value) AS a, min(value) AS low,
                 max(value) AS high, coalesce(stddev_samp(value), 0) AS s
               FROM ts.readings WHERE quality > 0 GROUP BY 1, 2, 3, 4) truth
             FULL JOIN ts.{table} r USING (tenant_id, user_id, type, {key})
             WHERE r.count IS DISTINCT FROM n OR abs(r.mean - a) > 1e-9 * abs(a) OR r.min <> low OR r.max <> high
               OR abs(coalesce(sqrt(r.m2 / nullif(r.count - 1, 0)), 0) - s) > 1e-6 * (1 + s)"
        );
        wrong[place] = world.number(&sql).await;
    }
    wrong
}

async fn days(world: &World) -> String {
    world
        .text("SELECT string_agg(day || ' ' || to_char(bucket AT TIME ZONE 'UTC', 'DD HH24:MI') || ' ' || count, ', ' ORDER BY day)
               FROM ts.readings_daily WHERE type = 1")
        .await
}

#[tokio::test]
async fn late_doubled_and_replayed_readings_come_out_like_those_in_time() {
    let world = open().await;
    world.write(&[at(NOW_US - 2 * HOUR_US, 700), at(NOW_US - DAY_US - 1_000_000, 90)]).await;
    assert!(rolled(&world).await > 0);
    assert_eq!(wrong(&world).await, [0; 4]);
    // Thirty days late, in one hour with what was there, and the same again.
    let late = [at(NOW_US - 30 * DAY_US, 400), at(NOW_US - 2 * HOUR_US + 701_000_000, 50)];
    world.write(&late).await;
    world.write(&late).await;
    assert_ne!(wrong(&world).await, [0; 4]);
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(world.number("SELECT count(*) FROM ts.stale").await, 0);
    assert_eq!(rolled(&world).await, 0);
    assert!(world.number("SELECT sum(count) FROM ts.readings_hourly").await == world.readings().await);
}

#[tokio::test]
async fn a_day_is_the_wearers_own_in_kolkata_and_across_a_change_to_summer_time() {
    let world = open().await;
    world
        .run(&format!("UPDATE user_time_zones SET time_zone = 'Asia/Kolkata' WHERE user_id = '{USER}'"))
        .await;
    // Midnight in Kolkata is 18:30 UTC.
    let midnight = NOW_US - 5 * HOUR_US - HOUR_US / 2;
    world.write(&[at(midnight - 60_000_000, 120)]).await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(days(&world).await, "2026-01-01 31 18:30 60, 2026-01-02 01 18:30 60");

    let world = open().await;
    world
        .run(&format!("UPDATE user_time_zones SET time_zone = 'Europe/Berlin' WHERE user_id = '{USER}'"))
        .await;
    // 30 March 2025 has 23 hours in Berlin: from 23:00 UTC the day before to 22:00.
    let change: jiff::Timestamp = "2025-03-30T00:00:00Z".parse().unwrap();
    let change = change.as_microsecond();
    world.write(&[at(change - HOUR_US - 30_000_000, 60), at(change + 22 * HOUR_US - 30_000_000, 60)]).await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(days(&world).await, "2025-03-29 28 23:00 30, 2025-03-30 29 23:00 60, 2025-03-31 30 22:00 30");
}

#[tokio::test]
async fn a_travellers_days_follow_the_journey_and_its_correction() {
    let world = open().await;
    let noon = NOW_US - DAY_US + 12 * HOUR_US;
    world.write(&[at(noon - 20 * HOUR_US, 30), at(noon, 30), at(noon + 5 * HOUR_US, 30)]).await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    let before = days(&world).await;
    // It turns out that they were in Auckland from noon on.
    world
        .run(&format!(
            "INSERT INTO user_time_zones VALUES ('{TENANT}', '{USER}', to_timestamp({}), 'Pacific/Auckland')",
            noon / 1_000_000
        ))
        .await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_ne!(days(&world).await, before);
    // And that they were not.
    world
        .run(&format!(
            "DELETE FROM user_time_zones WHERE time_zone = 'Pacific/Auckland' AND user_id = '{USER}'"
        ))
        .await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(days(&world).await, before);
    // A change of the wearer's row counts from now on.
    world.run(&format!("UPDATE users SET time_zone = 'Asia/Tokyo' WHERE id = '{USER}'")).await;
    assert_eq!(world.number("SELECT count(*) FROM user_time_zones WHERE time_zone = 'Asia/Tokyo'").await, 1);
}

#[tokio::test]
async fn what_outlives_its_readings_stays_as_it_is() {
    let world = open().await;
    world.write(&[at(NOW_US - 700 * DAY_US, 100), at(NOW_US - HOUR_US, 100)]).await;
    rolled(&world).await;
    let all = "SELECT md5(string_agg(r::text, ',' ORDER BY r::text)) FROM ts.readings_hourly r";
    let before = world.text(all).await;
    let daily = days(&world).await;
    world
        .run(&format!(
            "DELETE FROM ts.readings WHERE time < to_timestamp({})",
            (NOW_US - 10 * DAY_US) / 1_000_000
        ))
        .await;
    // A note that comes too late, and a change of the zone there and back.
    let old = timestamp(NOW_US - 700 * DAY_US);
    world
        .admin
        .execute(
            "INSERT INTO ts.stale SELECT tenant_id, user_id, type, date_bin('1 hour', $1, 'epoch') FROM ts.readings_hourly",
            &[&old],
        )
        .await
        .unwrap();
    for zone in ["Asia/Kolkata", "UTC"] {
        world.run(&format!("UPDATE user_time_zones SET time_zone = '{zone}' WHERE user_id = '{USER}'")).await;
    }
    let slice = Slice { raw_days: 30, ..Slice::default() };
    roll_up(&world.pool, timestamp(NOW_US), &slice).await.unwrap();
    assert_eq!(world.text(all).await, before);
    assert_eq!(days(&world).await, daily);
}

#[tokio::test]
async fn readings_that_move_to_another_wearer_take_their_aggregates_along() {
    let world = open().await;
    world.write(&[at(NOW_US - 3 * HOUR_US, 200)]).await;
    rolled(&world).await;
    let id = Uuid::from_u128(0x77);
    world
        .run(&format!(
            "INSERT INTO moves (id, tenant_id, from_user, to_user) VALUES ('{id}', '{TENANT}', '{USER}', '{SECOND_USER}')"
        ))
        .await;
    assert_eq!(world.number(&format!("SELECT ts.move('{id}', 2)")).await, world.readings().await);
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(
        world.number(&format!("SELECT count(*) FROM ts.readings_hourly WHERE user_id = '{USER}'")).await,
        0
    );
}

#[tokio::test]
async fn a_zone_that_is_none_is_refused_and_a_clinic_moves_nobodys_days() {
    let world = open().await;
    let wrong = format!("UPDATE users SET time_zone = 'Mars/Olympus' WHERE id = '{USER}'");
    assert_eq!(world.admin.batch_execute(&wrong).await.unwrap_err().code().unwrap().code(), "23514");
    world.run("CREATE ROLE api LOGIN PASSWORD 'api' IN ROLE kinara_app").await;
    world.run(&format!("SET ROLE api; SELECT set_config('kinara.tenant', '{OTHER_TENANT}', false)")).await;
    let foreign =
        format!("INSERT INTO user_time_zones VALUES ('{OTHER_TENANT}', '{USER}', now(), 'Asia/Tokyo')");
    assert_eq!(world.admin.batch_execute(&foreign).await.unwrap_err().code().unwrap().code(), "42501");
}

#[tokio::test]
async fn a_note_is_as_durable_as_its_readings() {
    let world = open().await;
    world.write(&[at(NOW_US - HOUR_US, 10)]).await;
    // A roll-up that is cut short leaves its notes.
    world.run("BEGIN; SELECT ts.roll_up(1000, '-infinity'); ROLLBACK").await;
    assert_eq!(wrong(&world).await.iter().filter(|wrong| **wrong > 0).count(), 4);
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
}

#[tokio::test]
async fn a_day_tells_its_quietest_quarter_and_the_minutes_that_the_wearable_was_worn() {
    let world = open().await;
    let quarter = NOW_US - 2 * HOUR_US;
    world.write(&[at(quarter, 600), at(quarter + 900_000_000, 600), at(quarter + 1_800_000_000, 200)]).await;
    // On a table it is not worn, whatever it measures there: the last quarter is the lowest, and does not count.
    world.run("UPDATE ts.readings SET value = 40 WHERE type = 1 AND epoch = (SELECT max(epoch) FROM ts.readings)").await;
    rolled(&world).await;
    let days = "FROM wearer_days WHERE day = '2026-01-01'";
    world.run(&format!("SET kinara.tenant = '{TENANT}'")).await;
    let quietest: f64 =
        world.admin.query_one(&format!("SELECT resting_heart_rate {days}"), &[]).await.unwrap().get(0);
    let truth: f64 = world
        .admin
        .query_one(
            "SELECT min(a) FROM (SELECT avg(value) AS a FROM ts.readings WHERE type = 1
               GROUP BY date_bin('15 minutes', time, 'epoch') HAVING count(*) >= 300) q",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!((quietest - truth).abs() < 1e-9 && quietest > 41.0, "{quietest} {truth}");
    assert_eq!(world.number(&format!("SELECT worn_minutes {days}")).await, 10 + 10 + 4);
}

#[tokio::test]
async fn a_day_measured_each_two_minutes_tells_as_many_worn_minutes_and_its_quietest_quarter() {
    let world = open().await;
    // An hour: heart rates of 60 to 89.
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(to_timestamp({0}), to_timestamp({0} + 86400));
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT to_timestamp({0} + n * 120), '{TENANT}', '{USER}', '{DEVICE}', 1, 0, 1, n, 60 + n FROM generate_series(0, 29) n;
             INSERT INTO ts.stale VALUES ('{TENANT}', '{USER}', 1, to_timestamp({0}))",
            (NOW_US - 6 * HOUR_US) / 1_000_000
        ))
        .await;
    rolled(&world).await;
    world.run(&format!("SET kinara.tenant = '{TENANT}'")).await;
    let day =
        "SELECT worn_minutes || ' ' || coalesce(round(resting_heart_rate)::text, 'none') FROM wearer_days";
    assert_eq!(world.text(day).await, "30 none", "by the registry's interval most of it is missing");
    world
        .run(&format!(
            "INSERT INTO device_intervals SELECT a.hardware_id, 1, to_timestamp({}), 120000
             FROM device_assignments a WHERE a.device_id = '{DEVICE}' LIMIT 1",
            (NOW_US - 7 * HOUR_US) / 1_000_000
        ))
        .await;
    assert_eq!(world.text(day).await, "60 64");
}

#[tokio::test]
async fn frames_whose_time_is_not_known_are_in_no_aggregate() {
    let world = open().await;
    let uncertain = |from_us: i64, known: bool| {
        let frames =
            [frame_with(Epoch::new(0xab, 3), 0, 0, 700), frame_with(Epoch::new(0xab, 3), 1, 1_000, 710)];
        let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
        let fit = Fit { ref_utc_us: from_us, time_uncertain: !known, ..fit() };
        let columns = stamped(columns::encode(HARDWARE, Epoch::new(0xab, 3), refs).unwrap(), fit);
        batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
    };
    world.write(&[uncertain(NOW_US - 6 * HOUR_US, false)]).await;
    rolled(&world).await;
    assert!(world.readings().await > 0);
    let kept = "SELECT count(*) FROM ts.readings_minute";
    assert_eq!(world.number(kept).await, 0);
    // Those that were written before this was so are put right.
    world
        .run(
            "UPDATE ts.readings SET quality = 1;
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings;
             INSERT INTO ts.unmarked SELECT DISTINCT hardware, epoch FROM frame_times WHERE time_uncertain",
        )
        .await;
    rolled(&world).await;
    assert!(world.number(kept).await > 0);
    assert_eq!(world.number("SELECT ts.mark_uncertain()").await, 1);
    assert_eq!(world.number("SELECT ts.mark_uncertain()").await, 0);
    rolled(&world).await;
    assert_eq!(world.number(kept).await, 0);
    assert_eq!(wrong(&world).await, [0; 4]);
}

/// The day's worn minutes and first moment, as the clinic is told.
async fn told_day(world: &World, day: &str) -> String {
    world.run(&format!("SET kinara.tenant = '{TENANT}'")).await;
    world
        .text(&format!(
            "SELECT to_char(bucket AT TIME ZONE 'UTC', 'DD HH24:MI') || ' ' || worn_minutes FROM wearer_days WHERE day = '{day}'"
        ))
        .await
}

/// A heart rate each minute.
async fn each_minute(world: &World, from: &str, to: &str) {
    world
        .run(&format!(
            "SELECT ts.ensure_partitions('{from}', '{to}');
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT t, '{TENANT}', '{USER}', '{DEVICE}', 1, 0, 1, 1, 70 FROM generate_series('{from}'::timestamptz, '{to}', '1 minute') t;
             INSERT INTO ts.stale SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM ts.readings"
        ))
        .await;
    rolled(world).await;
    assert_eq!(wrong(world).await, [0; 4]);
}

async fn lives_in(world: &World, zone: &str) {
    world.run(&format!("UPDATE user_time_zones SET time_zone = '{zone}' WHERE user_id = '{USER}'")).await;
}

#[tokio::test]
async fn a_day_of_travel_is_as_long_as_it_was() {
    let world = open().await;
    lives_in(&world, "Asia/Tokyo").await;
    // At noon of 10 March in Tokyo they arrive in Los Angeles, where it is the evening of the 9th.
    world
        .run(&format!(
            "INSERT INTO user_time_zones VALUES ('{TENANT}', '{USER}', '2025-05-10T03:00Z', 'America/Los_Angeles')"
        ))
        .await;
    each_minute(&world, "2025-05-08T00:00Z", "2025-05-12T00:00Z").await;
    // 9 May: a day in Tokyo, and the evening of it again; 10 May: twelve hours in Tokyo, and all of it in Los Angeles.
    assert_eq!(told_day(&world, "2025-05-09").await, format!("08 15:00 {}", 24 * 60 + 4 * 60));
    assert_eq!(told_day(&world, "2025-05-10").await, format!("09 15:00 {}", 12 * 60 + 24 * 60));
}

#[tokio::test]
async fn a_day_whose_midnight_comes_twice_begins_with_the_first_one() {
    let world = open().await;
    lives_in(&world, "America/Havana").await;
    each_minute(&world, "2025-11-01T00:00Z", "2025-11-04T00:00Z").await;
    assert_eq!(told_day(&world, "2025-11-02").await, "02 04:00 1500");
}

#[tokio::test]
async fn a_change_across_the_date_line_makes_the_days_two_away_anew() {
    let world = open().await;
    lives_in(&world, "Etc/GMT+12").await;
    each_minute(&world, "2025-11-01T11:00Z", "2025-11-01T11:50Z").await;
    assert_eq!(days(&world).await, "2025-10-31 31 12:00 51");
    lives_in(&world, "Pacific/Kiritimati").await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(days(&world).await, "2025-11-02 01 10:00 51");
}

#[tokio::test]
async fn who_changes_a_zone_waits_for_the_roll_up_that_has_read_the_former_one() {
    let world = open().await;
    world.write(&[at(NOW_US - HOUR_US, 10)]).await;
    let url = world.server.superuser_url("test_0");
    let (other, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    other.batch_execute("BEGIN").await.unwrap();
    other.batch_execute("SELECT ts.roll_up(1000, '-infinity')").await.unwrap();
    world.run("SET lock_timeout = '300ms'").await;
    let change = format!("UPDATE user_time_zones SET time_zone = 'Asia/Tokyo' WHERE user_id = '{USER}'");
    let refused = world.admin.batch_execute(&change).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "55P03");
    other.batch_execute("COMMIT").await.unwrap();
    world.run(&change).await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
}

#[tokio::test]
async fn a_zone_is_stored_by_the_name_that_it_has_now() {
    let world = open().await;
    world
        .run(&format!(
            "UPDATE users SET time_zone = 'Asia/Calcutta' WHERE id = '{USER}';
             UPDATE tenants SET time_zone = 'US/Pacific' WHERE id = '{TENANT}'"
        ))
        .await;
    assert_eq!(world.text(&format!("SELECT time_zone FROM users WHERE id = '{USER}'")).await, "Asia/Kolkata");
    assert_eq!(
        world.text(&format!("SELECT time_zone FROM tenants WHERE id = '{TENANT}'")).await,
        "America/Los_Angeles"
    );
    let named = "SELECT string_agg(time_zone, ' ' ORDER BY from_time) FROM user_time_zones WHERE user_id =";
    assert_eq!(world.text(&format!("{named} '{USER}'")).await, "UTC Asia/Kolkata");
    // Every name that another one stands for is known here, and so is that one.
    assert_eq!(world.number("SELECT count(*) FROM ts.zone_links WHERE NOT ts.is_zone(name)").await, 0);
}

#[tokio::test]
async fn a_zone_that_the_database_has_forgotten_stops_nobody_and_is_told() {
    let world = open().await;
    // As a database does whose time zones have lost a name.
    world
        .run(&format!(
            "ALTER TABLE user_time_zones DROP CONSTRAINT user_time_zones_time_zone_check;
             UPDATE user_time_zones SET time_zone = 'Asia/Calcuttax' WHERE user_id = '{USER}'"
        ))
        .await;
    world.write(&[at(NOW_US - 2 * HOUR_US, 700)]).await;
    let round =
        kinara_ingest::rollup::round(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    assert_eq!((round.unknown_zones, round.skipped), (vec!["Asia/Calcuttax".to_owned()], vec![]));
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(days(&world).await, "2026-01-01 01 00:00 700");
    assert_eq!(told_day(&world, "2026-01-01").await, "01 00:00 12");
    // It is known again: the days are made by it.
    world
        .run(
            "ALTER TABLE user_time_zones DISABLE TRIGGER days_stale;
             UPDATE user_time_zones SET time_zone = 'Asia/Tokyo' WHERE time_zone = 'Asia/Calcuttax';
             UPDATE ts.unknown_zones SET time_zone = 'Asia/Tokyo';
             ALTER TABLE user_time_zones ENABLE TRIGGER days_stale",
        )
        .await;
    rolled(&world).await;
    assert_eq!(wrong(&world).await, [0; 4]);
    assert_eq!(days(&world).await, "2026-01-02 01 15:00 700");
}
