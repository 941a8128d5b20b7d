//! What a sender claims costs what was checked of it, on a real PostgreSQL: the frame that is at fault is put aside with
//! all that is left of it, and its neighbours are written.

use std::time::{Duration, Instant};

use crate::support::*;
use kinara_ingest::{Batch, Counts, Limits, Outcome, Unreadable, Writer, batch, decode_until, events};
use kinara_protocol::channel::{AMBIENT_TEMPERATURE, ChannelId, HEART_RATE};
use kinara_protocol::envelope::{self, DeviceFrames, Event, EventBatch, Gap, Series};
use kinara_protocol::frame::Epoch;
use kinara_store::connect;
use prost::Message as _;

/// Far more than any of this takes, and far less than its square would.
const LINEAR: Duration = Duration::from_mins(2);

fn quarantined(n: u64) -> Counts {
    Counts { quarantined: n, ..Counts::default() }
}

fn one_device(columns: DeviceFrames) -> Batch {
    batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
}

/// Counts the statements that write readings, and refuses some of them.
const REFUSING: &str = "
    CREATE SEQUENCE copies;
    CREATE FUNCTION count_copy() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
      $$ BEGIN PERFORM nextval('public.copies'); RETURN NULL; END $$;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'no such time' USING ERRCODE = '22008'; END $$;
    CREATE TRIGGER count_copy BEFORE INSERT ON ts.readings FOR EACH STATEMENT EXECUTE FUNCTION count_copy();
    CREATE TRIGGER refuse BEFORE INSERT ON ts.readings FOR EACH ROW WHEN (REFUSED) EXECUTE FUNCTION refuse();";

#[tokio::test]
async fn thousands_of_frames_of_nobody_are_put_aside_in_one_go_each_as_it_came() {
    let world = world().await;
    let frames: Vec<Vec<u8>> = (0..8_000).map(|seq| frame_of(EPOCH, seq, HEART_RATE, &[700])).collect();
    let batch = one_device(columns_of("bt:nobody", &frames));
    let began = Instant::now();
    assert_eq!(world.write(&[batch]).await, [quarantined(8_000)]);
    assert!(began.elapsed() < LINEAR);
    let whole = "SELECT count(*) FROM quarantine WHERE what = 'frame' AND reason = 'no_assignment' AND length(payload) > 26";
    assert_eq!(world.number(whole).await, 8_000);
    let kept: Vec<u8> =
        world.admin.query_one("SELECT payload FROM quarantine WHERE seq = 4711", &[]).await.unwrap().get(0);
    assert_eq!(kept, frames[4711]);
}

#[tokio::test]
async fn frames_that_cannot_be_built_again_are_each_kept_and_their_neighbours_are_written() {
    let world = world().await;
    let mut columns = columns_of(HARDWARE, &seconds(0..3_000));
    for crc in columns.crcs.iter_mut().skip(1).step_by(3) {
        *crc = 0;
    }
    let batch = one_device(columns);
    let counts = [Counts { stored: 2_000, quarantined: 1_000, ..Counts::default() }];
    assert_eq!(world.write(std::slice::from_ref(&batch)).await, counts);
    // Sent again, they are still so many.
    world.write(&[batch]).await;
    let kept = "SELECT count(DISTINCT seq) FROM quarantine WHERE what = 'payload' AND reason = 'damaged' AND length(payload) > 26";
    assert_eq!(
        (world.number(kept).await, world.number("SELECT count(*) FROM quarantine").await),
        (1_000, 1_000)
    );
    assert_eq!(world.readings().await, 2_000 * 5);
    assert_eq!(world.number("SELECT count(*) FROM ts.readings WHERE seq % 3 = 1").await, 0);
}

#[tokio::test]
async fn a_frame_of_a_million_samples_is_none() {
    let began = Instant::now();
    let world = world().await;
    let mut columns = columns_of(HARDWARE, &[frame_of(EPOCH, 0, AMBIENT_TEMPERATURE, &[2_400])]);
    columns.series[0].counts[0] = 400_000;
    columns.series[0].intervals = vec![1, 1];
    columns.series[0].values.extend(vec![0; 399_999]);
    let sealed = envelope::seal(&envelope_of(GATEWAY, 0, vec![columns]));
    assert!(sealed.len() < 400);
    let late = decode_until(&sealed, began);
    assert!(matches!(late, Err(Unreadable::TooLong)), "nobody works on it longer than it may take");
    let batch = decode_until(&sealed, Instant::now() + LINEAR).unwrap();
    assert_eq!(world.write(&[batch]).await, [quarantined(1)]);
    assert_eq!((world.readings().await, world.ledger().await), (0, "empty".to_owned()));
}

#[tokio::test]
async fn samples_of_an_event_and_a_frame_without_samples_are_put_aside_and_the_others_written() {
    let world = world().await;
    let mut columns = columns_of(HARDWARE, &seconds(0..10));
    columns.kinds = vec![0x40, 5, 0x01, 1, 0x40, 4];
    assert_eq!(
        world.write(&[one_device(columns)]).await,
        [Counts { stored: 9, quarantined: 1, ..Counts::default() }]
    );
    // By hand: the last frame has no block at all.
    let mut columns = columns_of(HARDWARE, &seconds(10..20));
    columns.seq_ranges[1] += 1;
    columns.kinds[1] += 1;
    columns.ticks.push(0);
    columns.crcs.push(7);
    columns.fit_of[1] += 1;
    columns.block_order.extend([0]);
    for series in &mut columns.series {
        series.counts.push(0);
    }
    // The single 0 repeats the list before it; an empty list is only possible first.
    assert_eq!(world.write(&[one_device(columns)]).await, [quarantined(11)]);
    let empty = DeviceFrames {
        hardware_id: HARDWARE.to_owned(),
        epoch: EPOCH.0,
        seq_ranges: vec![30, 1],
        kinds: vec![0x40, 1],
        ticks: vec![30_000],
        crcs: vec![7],
        block_order: vec![0],
        ..DeviceFrames::default()
    };
    assert_eq!(world.write(&[one_device(stamped(empty, fit()))]).await, [quarantined(1)]);
}

#[tokio::test]
async fn one_frame_that_the_database_refuses_costs_its_neighbours_a_dozen_transactions() {
    let world = world().await;
    world.run(&REFUSING.replace("REFUSED", "NEW.seq = 1234")).await;
    let batch = batch_of(GATEWAY, &seconds(0..3_000));
    let other = batch_of(SECOND_GATEWAY, &seconds(3_000..3_010));
    let counts = world.write(&[batch, other]).await;
    assert_eq!(counts[0], Counts { stored: 2_999, quarantined: 1, ..Counts::default() });
    assert_eq!(counts[1], Counts { stored: 10, ..Counts::default() });
    assert_eq!(world.quarantine().await, "database 1234");
    let copies = world.number("SELECT last_value FROM copies").await;
    assert!(copies < 40, "{copies}");
}

#[tokio::test]
async fn however_many_frames_the_database_refuses_so_many_transactions_are_made_and_all_are_accounted_for() {
    let world = world().await;
    world.run(&REFUSING.replace("REFUSED", "NEW.seq % 2 = 1")).await;
    let counts = world.write(&[batch_of(GATEWAY, &seconds(0..2_000))]).await[0];
    assert_eq!(counts.stored + counts.quarantined, 2_000);
    assert!(counts.stored > 0 && counts.quarantined >= 1_000, "{counts:?}");
    assert_eq!(world.readings().await, 5 * counts.stored as i64);
    assert_eq!(world.number("SELECT count(*) FROM quarantine").await, counts.quarantined as i64);
    let copies = world.number("SELECT last_value FROM copies").await;
    assert!(copies < 2 * i64::from(Limits::default().halvings) + 10, "{copies}");
}

#[tokio::test]
async fn channels_are_named_for_what_is_written_and_a_few_for_each_clinic() {
    let world = world().await;
    let known = world.number("SELECT count(*) FROM channels").await;
    let of = |hardware: &str, channels: std::ops::Range<u16>| {
        let one = |channel: u16| frame_of(EPOCH, u32::from(channel), ChannelId(channel), &[5]);
        one_device(columns_of(hardware, &channels.map(one).collect::<Vec<_>>()))
    };
    // Of a device that is nobody's.
    assert_eq!(world.write(&[of("bt:nobody", 1_000..1_200)]).await, [quarantined(200)]);
    // Columns without a sample, as many as a message may have.
    let mut empty = columns_of(HARDWARE, &seconds(0..1));
    empty.series.extend((2_000..2_200).map(|channel| Series {
        channel,
        components: 1,
        counts: vec![0],
        ..Series::default()
    }));
    assert_eq!(world.write(&[one_device(empty)]).await[0].stored, 1);
    assert_eq!(world.number("SELECT count(*) FROM channels").await, known);
    // Of the clinic's own: so many.
    let most = Limits::default().foreign_channels;
    let counts = world.write(&[of(HARDWARE, 3_000..3_100)]).await;
    assert_eq!(counts, [Counts { stored: most as u64, quarantined: 100 - most as u64, ..Counts::default() }]);
    assert_eq!(world.number("SELECT count(*) FROM channels").await, known + most);
    assert_eq!(world.number("SELECT count(*) FROM quarantine WHERE reason = 'channel'").await, 100 - most);
    let unseen =
        "SELECT count(*) FROM ts.readings r WHERE NOT EXISTS (SELECT FROM channels c WHERE c.type = r.type)";
    assert_eq!(world.number(unseen).await, 0);
    // By another writer, later: no more. What is named is written.
    let counts = world.write(&[of(HARDWARE, 4_000..4_010)]).await;
    assert_eq!(counts, [quarantined(10)]);
    let again = one_device(columns_of(HARDWARE, &[frame_of(EPOCH, 50_000, ChannelId(3_000), &[5])]));
    assert_eq!(world.write(&[again]).await[0].stored, 1);
}

#[tokio::test]
async fn the_times_of_frames_of_nobody_make_no_partitions() {
    let world = world().await;
    let partitions = "SELECT count(*) FROM pg_class WHERE relname LIKE 'readings%' AND relkind IN ('r', 'p')";
    let before = world.number(partitions).await;
    let mut columns = columns_of("bt:nobody", &seconds(0..20));
    columns.fits = (0..20)
        .map(|day| envelope::Fit { ref_utc_us: BOOT_US - day * 20 * 86_400_000_000, ..fit() })
        .collect();
    columns.fit_of = (0..20).flat_map(|fit| [fit, 1]).collect();
    assert_eq!(world.write(&[one_device(columns)]).await, [quarantined(20)]);
    assert_eq!(world.number(partitions).await, before);
}

#[tokio::test]
async fn a_batch_that_waits_for_a_lock_in_vain_is_sent_back_by_itself() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..1))]).await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{USER}', 'bt:2');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{USER}', '{TENANT}', 'bt:2');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{USER}', '{TENANT}', '{USER}', '{USER}', '{USER}', '2025-01-01')"
        ))
        .await;
    world.run(&format!("BEGIN; SELECT FROM ledger WHERE hardware = '{HARDWARE_ROW}' FOR UPDATE")).await;
    let limits = kinara_store::Limits { lock: Duration::from_millis(200), ..kinara_store::Limits::default() };
    let pool = connect(&world.server.url("bridge", "bridge", "test_0"), "test", &limits).unwrap();
    let writer = Writer::new(pool, world.clock.clone(), Limits { tries: 2, ..Limits::default() });
    let free = batch::from_envelope(envelope_of(SECOND_GATEWAY, 0, vec![columns_of("bt:2", &seconds(0..5))]))
        .unwrap();
    let outcomes = writer.write(&[batch_of(GATEWAY, &seconds(1..2)), free]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::RetryAfter { .. }), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Done(Counts { stored: 5, .. })), "{outcomes:?}");
    world.run("ROLLBACK").await;
}

#[tokio::test]
async fn a_large_batch_is_the_same_in_pieces() {
    let world = world().await;
    let mut columns = columns_of(HARDWARE, &seconds(0..2_000));
    columns.crcs[777] ^= 1;
    let pieces: Vec<Batch> = one_device(columns).pieces(1_000, usize::MAX).collect();
    assert!(pieces.len() >= 12 && pieces.iter().all(|piece| piece.readings() <= 1_000), "{}", pieces.len());
    let mut total = (0, 0);
    for piece in pieces {
        let counts = world.write(&[piece]).await[0];
        total = (total.0 + counts.stored, total.1 + counts.quarantined);
    }
    assert_eq!(total, (1_999, 1));
    assert_eq!((world.readings().await, world.quarantine().await), (9_995, "damaged 777".to_owned()));
}

fn sealed_events(derived: Vec<Event>, gaps: Vec<Gap>) -> events::Events {
    let name = Some(kinara_ingest::Name { gateway: GATEWAY, buffer: 7, sequence: 1 }.into());
    let batch =
        EventBatch { version: 1, name, sealed_at_us: 0, events: derived, gaps, decisions: Vec::new() };
    events::decode(&envelope::seal(&batch)).unwrap()
}

fn event(tick: u64) -> Event {
    Event {
        hardware_id: HARDWARE.to_owned(),
        kind: "hot_flash".to_owned(),
        producer: "rule:sternal/1".to_owned(),
        epoch: EPOCH.0,
        onset_ticks: tick,
        grid_ms: 1,
        onset_utc_us: BOOT_US + tick as i64 * 1_000,
        data_json: "{}".to_owned(),
        ..Event::default()
    }
}

fn gap(epoch: Epoch, seqs: [u32; 2]) -> Gap {
    Gap {
        hardware_id: HARDWARE.to_owned(),
        epoch: epoch.0,
        seq_ranges: seqs.to_vec(),
        reason: "quota".to_owned(),
        from_utc_us: BOOT_US,
        to_utc_us: BOOT_US + 1_000_000,
    }
}

#[tokio::test]
async fn a_gap_that_the_database_refuses_is_kept_and_the_others_and_the_events_are_written() {
    let world = world().await;
    world
        .run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE EXCEPTION 'no such gap' USING ERRCODE = '22000'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON gaps FOR EACH ROW WHEN (NEW.seqs @> 100::int8) EXECUTE FUNCTION refuse()",
        )
        .await;
    let bad = gap(Epoch::new(0xaa, 2), [100, 3]);
    let gaps = vec![gap(EPOCH, [5, 2]), bad.clone()];
    let events = sealed_events((0..40).map(|n| event(n * 1_000)).collect(), gaps);
    let outcome = world.writer().write_events(&events).await.unwrap();
    assert_eq!(outcome, Outcome::Done(Counts { stored: 40, quarantined: 1, ..Counts::default() }));
    assert!(world.gaps().await.contains("quota {[5,7)}"));
    let row = world
        .admin
        .query_one("SELECT what, payload FROM quarantine WHERE reason = 'gap'", &[])
        .await
        .unwrap();
    let kept = Gap::decode(row.get::<_, &[u8]>(1)).unwrap();
    assert_eq!((row.get::<_, &str>(0), kept), ("payload", bad));
}

#[tokio::test]
async fn an_event_whose_data_are_no_object_is_put_aside_and_not_emptied() {
    let world = world().await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
    let derived = vec![
        event(0),
        Event { data_json: "7".to_owned(), ..event(1_000) },
        Event { data_json: deep, ..event(2_000) },
        Event { data_json: String::new(), ..event(3_000) },
    ];
    let outcome = world.writer().write_events(&sealed_events(derived, Vec::new())).await.unwrap();
    assert_eq!(outcome, Outcome::Done(Counts { stored: 2, quarantined: 2, ..Counts::default() }));
}
