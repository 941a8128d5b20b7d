//! Devices that many have worn, one after the other: what is looked up of them at once is bounded, and all that they bring is
//! written.

use crate::support::*;
use kinara_ingest::directory::Directory;
use kinara_ingest::erase::erase;
use kinara_ingest::events;
use kinara_ingest::sweep::{Policy, sweep};
use kinara_ingest::{Batch, Counts, Error, Limits, Outcome, Writer, batch, timestamp};
use kinara_protocol::envelope::{self, Event, EventBatch};
use kinara_protocol::frame::Epoch;
use uuid::Uuid;

/// Devices of the second wearer, each with so many assignments of which the last one goes on.
const DEVICES: usize = 30;
const ASSIGNMENTS: i64 = 40;

fn name(device: usize) -> String {
    format!("kinara:{device:016x}")
}

async fn worn_by_many() -> World {
    let world = world().await;
    let names: Vec<String> = (0..DEVICES).map(name).collect();
    let sql = format!(
        "INSERT INTO hardware (hardware_id) SELECT unnest($1::text[]);
         INSERT INTO devices (tenant_id, hardware_id) SELECT '{TENANT}', unnest($1::text[]);
         INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from, valid_to)
           SELECT h.id, '{TENANT}', '{USER}', d.id, '{USER}', to_timestamp({BOOT_US} / 1000000 - 86400 + n * 60),
             CASE WHEN n < {ASSIGNMENTS} THEN to_timestamp({BOOT_US} / 1000000 - 86400 + (n + 1) * 60) END
           FROM hardware h JOIN devices d USING (hardware_id), generate_series(1, {ASSIGNMENTS}) n
           WHERE h.hardware_id = ANY($1);"
    );
    for statement in sql.split_inclusive(';') {
        if statement.contains("$1") {
            world.admin.execute(statement.trim_end_matches(';'), &[&names]).await.unwrap();
        }
    }
    world
}

fn looks_at(world: &World, assignments: i64) -> Writer {
    let limits = Limits { assignments, halvings: 0, ..Limits::default() };
    Writer::new(world.pool.clone(), world.clock.clone(), limits)
}

/// Five frames of each of these devices.
fn batch_of_devices(gateway: Uuid, devices: std::ops::Range<usize>, first: u32) -> Batch {
    let columns = devices.map(|device| columns_of(&name(device), &seconds(first..first + 5))).collect();
    batch::from_envelope(envelope_of(gateway, u64::from(first), columns)).unwrap()
}

fn stored(n: u64) -> Outcome {
    Outcome::Done(Counts { stored: n, ..Counts::default() })
}

/// Transactions that wrote into the ledger.
async fn transactions(world: &World) -> i64 {
    world.number("SELECT count(DISTINCT xmin::text) FROM ledger").await
}

#[tokio::test]
async fn a_batch_of_devices_that_many_have_worn_is_written_in_parts_and_nothing_of_it_is_put_aside() {
    let world = worn_by_many().await;
    let writer = looks_at(&world, 5 * ASSIGNMENTS);
    let outcomes = writer.write(&[batch_of_devices(GATEWAY, 0..DEVICES, 0)]).await.unwrap();
    assert_eq!(outcomes, [stored(5 * DEVICES as u64)]);
    let parts = transactions(&world).await;
    assert!(parts >= DEVICES as i64 / 5, "{parts} transactions");
    assert_eq!(world.number("SELECT count(*) FROM quarantine").await, 0);
    // One device alone is looked at whole, and few devices at once.
    let writer = looks_at(&world, ASSIGNMENTS - 1);
    let outcomes = writer.write(&[batch_of_devices(GATEWAY, 3..4, 5)]).await.unwrap();
    assert_eq!(outcomes, [stored(5)]);
    let before = transactions(&world).await;
    let outcomes =
        looks_at(&world, 20_000).write(&[batch_of_devices(GATEWAY, 0..DEVICES, 10)]).await.unwrap();
    assert_eq!((outcomes, before > 1), (vec![stored(5 * DEVICES as u64)], true));
    assert_eq!(transactions(&world).await, 1);
}

#[tokio::test]
async fn a_second_batch_of_such_devices_comes_again_and_the_others_of_its_group_are_written() {
    let world = worn_by_many().await;
    let writer = looks_at(&world, 5 * ASSIGNMENTS);
    let group = [
        batch_of_devices(GATEWAY, 0..DEVICES, 0),
        batch_of_devices(GATEWAY, 0..DEVICES, 5),
        batch_of_devices(SECOND_GATEWAY, 1..3, 10),
    ];
    let outcomes = writer.write(&group).await.unwrap();
    assert_eq!((&outcomes[0], &outcomes[2]), (&stored(5 * DEVICES as u64), &stored(10)));
    assert!(matches!(outcomes[1], Outcome::RetryAfter { seconds: 5, .. }), "{outcomes:?}");
    assert_eq!(writer.write(&group[1..2]).await.unwrap(), [stored(5 * DEVICES as u64)]);
}

#[tokio::test]
async fn events_of_devices_that_many_have_worn_are_written_in_parts() {
    let world = worn_by_many().await;
    let events = (0..DEVICES).map(|device| Event {
        hardware_id: name(device),
        kind: "hot_flash".to_owned(),
        producer: "test/1".to_owned(),
        epoch: EPOCH.0,
        onset_utc_us: BOOT_US,
        ..Event::default()
    });
    let name = Some(kinara_ingest::Name { gateway: GATEWAY, buffer: 7, sequence: 1 }.into());
    let batch = EventBatch { version: 1, name, events: events.collect(), ..EventBatch::default() };
    let events = events::decode(&envelope::seal(&batch)).unwrap();
    let outcome = looks_at(&world, 5 * ASSIGNMENTS).write_events(&events).await.unwrap();
    assert_eq!(outcome, stored(DEVICES as u64));
    let parts = world.number("SELECT count(DISTINCT xmin::text) FROM event_keys").await;
    assert!(parts >= DEVICES as i64 / 5, "{parts} transactions");
}

#[tokio::test]
async fn of_who_wears_a_device_now_nobody_else_is_looked_up() {
    let world = worn_by_many().await;
    let names: Vec<String> = (0..DEVICES).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = world.pool.get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    let now = Directory::at(&tx, GATEWAY, &names, timestamp(NOW_US)).await.unwrap();
    assert!(names.iter().all(|name| now.hardware(name).unwrap().assignments.len() == 1));
    // All of them are looked up where there are no more than may be.
    let all = DEVICES as i64 * ASSIGNMENTS;
    assert!(matches!(Directory::load(&tx, &[], &names, all - 1).await, Err(Error::TooWide)));
    let known = Directory::load(&tx, &[], &names, all).await.unwrap();
    let assignments = &known.hardware(names[7]).unwrap().assignments;
    assert_eq!(assignments.len() as i64, ASSIGNMENTS);
    assert!(assignments.is_sorted_by_key(|one| one.from.time_us));
}

#[tokio::test]
async fn a_batch_of_many_devices_is_written_in_turns_of_some_of_them() {
    let columns = (0..300).map(|device| columns_of(&name(device), &seconds(0..2))).collect();
    let whole = batch::from_envelope(envelope_of(GATEWAY, 0, columns)).unwrap();
    let frames: Vec<u64> = whole.pieces(20_000, 128).map(|piece| piece.frames()).collect();
    assert_eq!(frames, [256, 256, 88]);
}

/// An epoch of which every second number from a thousand on is in, so often.
async fn scatter(world: &World, epoch: Epoch, ranges: u32) {
    world
        .run(&format!(
            "INSERT INTO ledger (hardware, epoch, seqs, highest, tenant)
             SELECT '{HARDWARE_ROW}', {}, range_agg(int8range(n * 2 + 1000, n * 2 + 1001)), max(n) * 2 + 1000, '{TENANT}'
             FROM generate_series(0, {ranges} - 1) n",
            epoch.0
        ))
        .await;
}

const SCATTERED: u32 = 32_768;

#[tokio::test]
async fn an_epoch_of_which_every_second_number_is_missing_takes_what_fills_it_and_no_more_that_stands_alone()
{
    let world = world().await;
    scatter(&world, EPOCH, SCATTERED).await;
    let ranges = "SELECT count(*) FROM ledger, unnest(seqs)";
    // One that lies between two, one beside another, two that stand alone.
    let frames: Vec<Vec<u8>> = [5, 501, 1_001, 1_002 + 2 * SCATTERED].map(|seq| frame(EPOCH, seq)).into();
    let counts = Counts { stored: 1, quarantined: 3, ..Counts::default() };
    assert_eq!(world.write(&[batch_of(GATEWAY, &frames)]).await, [counts]);
    assert_eq!(world.number(ranges).await, i64::from(SCATTERED) - 1);
    let aside = "SELECT string_agg(seq::text, ' ' ORDER BY seq) FROM quarantine WHERE reason = 'scattered' AND what = 'frame'";
    assert_eq!(world.text(aside).await, format!("5 501 {}", 1_002 + 2 * SCATTERED));
    // Now there is room for one, and what goes on from it is not one more.
    let counts = Counts { stored: 1, duplicate: 1, quarantined: 1, ..Counts::default() };
    let frames: Vec<Vec<u8>> = [5, 501, 1_001].map(|seq| frame(EPOCH, seq)).into();
    assert_eq!(world.write(&[batch_of(GATEWAY, &frames)]).await, [counts]);
    let on: Vec<Vec<u8>> = (6..400).map(|seq| frame(EPOCH, seq)).collect();
    assert_eq!(world.write(&[batch_of(GATEWAY, &on)]).await, [Counts { stored: 394, ..Counts::default() }]);
    assert_eq!(world.number(ranges).await, i64::from(SCATTERED));
    assert!(world.gaps().await.starts_with("late "), "what is missing is missed");
}

#[tokio::test]
async fn epochs_of_many_ranges_are_not_all_read_at_once_and_all_of_their_frames_are_written() {
    let world = world().await;
    let epochs: Vec<Epoch> = (1..=10).map(|boot| Epoch::new(77, boot)).collect();
    for epoch in &epochs {
        scatter(&world, *epoch, 30_000).await;
    }
    let before = world.text("SELECT max(xmin::text::int8) FROM ledger").await;
    let columns = epochs.iter().map(|epoch| columns_of(HARDWARE, &[frame(*epoch, 1_001)])).collect();
    let batch = batch::from_envelope(envelope_of(GATEWAY, 0, columns)).unwrap();
    assert_eq!(world.write(&[batch]).await, [Counts { stored: 10, ..Counts::default() }]);
    let parts = format!("SELECT count(DISTINCT xmin::text) FROM ledger WHERE xmin::text::int8 > {before}");
    assert!(world.number(&parts).await > 1);
}

#[tokio::test]
async fn what_was_refused_of_epochs_of_many_ranges_expires_and_goes_with_its_wearer() {
    let world = world().await;
    let epochs: Vec<Epoch> = (1..=20).map(|boot| Epoch::new(77, boot)).collect();
    let refuse = async |epochs: &[Epoch]| {
        let columns = epochs.iter().map(|epoch| columns_of(HARDWARE, &[frame(*epoch, 5)])).collect();
        let batch = batch::from_envelope(envelope_of(GATEWAY, epochs[0].0, columns)).unwrap();
        let aside = Counts { quarantined: epochs.len() as u64, ..Counts::default() };
        assert_eq!(world.write(&[batch]).await, [aside]);
    };
    for epoch in &epochs {
        scatter(&world, *epoch, SCATTERED).await;
    }
    refuse(&epochs[..10]).await;
    let there = "SELECT count(*) FROM quarantine";
    let told =
        |reason: &str| format!("SELECT count(*) FROM gaps WHERE reason = '{reason}' AND seqs @> 5::int8");
    assert_eq!(world.number(there).await, 10);
    world.run("UPDATE quarantine SET received_at = received_at - interval '91 days'").await;
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.expired, world.number(there).await), (10, 0));
    assert_eq!(world.number(&told("expired")).await, 10);
    refuse(&epochs[10..]).await;
    assert_eq!(world.number(there).await, 10);
    world.run(&format!("INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')")).await;
    erase(&world.pool, TENANT, USER).await.unwrap();
    assert_eq!(world.number(there).await, 0);
    assert_eq!(world.number(&told("erased")).await, 10);
}
