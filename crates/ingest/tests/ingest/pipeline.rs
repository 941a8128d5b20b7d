//! The pipeline on a real PostgreSQL: what is written, what is refused, and what is said about what is missing.

use crate::support::*;
use kinara_ingest::quarantine::Which;
use kinara_ingest::{Counts, Limits, Outcome, Writer, batch, quarantine};
use kinara_protocol::channel::{ACCELERATION, ChannelId, EDA, HEART_RATE, SPO2};
use kinara_protocol::envelope::Fit;
use kinara_protocol::frame::{
    BootAnchor, DeviceEvent, DeviceEventKind, Epoch, FrameBuilder, Kind, MAX_FRAME, ResetReason, Ticks,
    encode_boot_anchor, encode_device_event,
};
use kinara_test_postgres::Options;
use uuid::Uuid;

fn stored(n: u64) -> Counts {
    Counts { stored: n, ..Counts::default() }
}

#[tokio::test]
async fn a_batch_is_written_once_however_often_it_comes() {
    let world = world().await;
    let batch = batch_of(GATEWAY, &seconds(0..10));
    assert_eq!(world.write(std::slice::from_ref(&batch)).await, [stored(10)]);
    let again = Counts { duplicate: 10, ..Counts::default() };
    assert_eq!(world.write(&[batch]).await, [again]);
    // Twice in one transaction.
    let twice = [batch_of(GATEWAY, &seconds(10..12)), batch_of(SECOND_GATEWAY, &seconds(10..12))];
    assert_eq!(world.write(&twice).await, [stored(2), Counts { duplicate: 2, ..Counts::default() }]);
    assert_eq!(world.readings().await, 60);
    assert_eq!(world.ledger().await, "{[0,12)}");
    let row = world
        .text(
            "SELECT to_jsonb(r) - 'tenant_id' FROM ts.readings r
             WHERE seq = 3 AND type = 5 AND idx = 2",
        )
        .await;
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    assert_eq!(row["time"], "2026-01-01T23:00:03.25+00:00");
    assert_eq!(row["value"], 2.001);
    assert_eq!(row["user_id"], USER.to_string());
    assert_eq!(row["device_id"], DEVICE.to_string());
    assert_eq!(row["epoch"], EPOCH.0);
    assert_eq!(world.text("SELECT seqs FROM frame_times").await, "{[0,12)}");
    assert_eq!(world.gaps().await, "none");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_roaming_wearers_overlap_is_written_once() {
    let world = world().await;
    assert_eq!(world.write(&[batch_of(GATEWAY, &seconds(0..8))]).await, [stored(8)]);
    let counts = world.write(&[batch_of(SECOND_GATEWAY, &seconds(5..12))]).await;
    assert_eq!(counts, [Counts { stored: 4, duplicate: 3, ..Counts::default() }]);
    assert_eq!(world.readings().await, 60);
    world.days_are_known().await;
}

#[tokio::test]
async fn samples_of_an_epoch_are_never_reordered_and_what_contradicts_the_order_is_kept_as_uncertain() {
    let world = world().await;
    let stamped_by = |gateway: Uuid, frames: std::ops::Range<u32>, off_us: i64| {
        let columns = columns_of(HARDWARE, &seconds(frames));
        let fit = Fit { ref_utc_us: BOOT_US + off_us, ..fit() };
        batch::from_envelope(envelope_of(gateway, 0, vec![stamped(columns, fit)])).unwrap()
    };
    assert_eq!(world.write(&[stamped_by(GATEWAY, 0..10, 0)]).await, [stored(10)]);
    // The second box's clock is behind: its first frames would come before what the first one brought.
    let behind = stamped_by(SECOND_GATEWAY, 10..16, -3_500_000);
    assert_eq!(world.write(std::slice::from_ref(&behind)).await, [stored(6)]);
    // A third word, ahead, on what was missing before both.
    assert_eq!(world.write(&[stamped_by(GATEWAY, 20..22, 0)]).await, [stored(2)]);
    assert_eq!(world.write(&[stamped_by(SECOND_GATEWAY, 16..20, 7_000_000)]).await, [stored(4)]);
    assert_eq!(world.readings().await, 22 * 5, "nothing is lost");
    let uncertain = "SELECT string_agg(DISTINCT seq::text, ' ') FROM ts.readings WHERE quality = 0";
    assert_eq!(world.text(uncertain).await, "10 11 12 13 16 17 18 19");
    let marked = "SELECT range_agg(r) FROM frame_times, unnest(seqs) r WHERE time_uncertain";
    assert_eq!(world.text(marked).await, "{[10,14),[16,20)}");
    let reordered =
        "SELECT count(*) FROM (SELECT time, lag(time) OVER (PARTITION BY type ORDER BY seq, idx) AS before
        FROM ts.readings WHERE quality > 0) r WHERE time < before";
    assert_eq!(world.number(reordered).await, 0);
    // The first copy decides: sent again, nothing changes.
    let again = Counts { duplicate: 6, ..Counts::default() };
    assert_eq!(world.write(&[behind]).await, [again]);
    assert_eq!(world.text(marked).await, "{[10,14),[16,20)}");
    world.days_are_known().await;
}

#[tokio::test]
async fn when_the_highest_frame_was_is_said_by_no_time_that_is_not_believed_and_by_no_earlier_frame() {
    let world = world().await;
    let highest = format!(
        "SELECT highest || ' ' || round(extract(epoch FROM highest_time) - {}) FROM ledger",
        BOOT_US / 1_000_000
    );
    let stamped_by = |frames: std::ops::Range<u32>, off_us: i64| {
        let fit = Fit { ref_utc_us: BOOT_US + off_us, ..fit() };
        let columns = stamped(columns_of(HARDWARE, &seconds(frames)), fit);
        batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap()
    };
    world.write(&[stamped_by(0..10, 0)]).await;
    assert_eq!(world.text(&highest).await, "9 10");
    // An hour behind: its times contradict what is stored.
    world.write(&[stamped_by(10..12, -3_000_000_000)]).await;
    assert_eq!(world.text(&highest).await, "11 10");
    // A refused frame is the highest, and an earlier one is taken with it.
    world.write(&[stamped_by(20..30, 3_500_000)]).await;
    assert_eq!(world.text(&highest).await, "29 33");
    // Nor does such a time say when a gap ended.
    world.write(&[stamped_by(32..33, -3_000_000_000)]).await;
    assert_eq!(world.text(&highest).await, "32 33");
    let ends = format!(
        "SELECT string_agg(seqs || ' ' || coalesce(round(extract(epoch FROM to_time) - {})::text, '-'), ', ' ORDER BY seqs)
         FROM gaps",
        BOOT_US / 1_000_000
    );
    assert_eq!(world.text(&ends).await, "{[12,20)} 24, {[30,32)} -");
    let undecodable = {
        let mut frame = frame(EPOCH, 40);
        frame[1] = 0x41;
        let end = frame.len() - 4;
        let crc = kinara_protocol::frame::checksum(&frame[..end]);
        frame[end..].copy_from_slice(&crc.to_le_bytes());
        frame
    };
    let late = stamped_by(14..15, 0);
    let counts = world.write(&[batch_of(GATEWAY, &[undecodable]), late]).await;
    assert_eq!((counts[0].quarantined, counts[1].stored), (1, 1));
    assert_eq!(world.text(&highest).await, "40 33");
    world.days_are_known().await;
}

#[tokio::test]
async fn two_bridges_in_parallel_write_once_and_never_wait_in_a_circle() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id)
               SELECT ('00000000-0000-0000-0001-' || lpad(n::text, 12, '0'))::uuid, 'bt:' || n FROM generate_series(1, 8) n;
             INSERT INTO devices (id, tenant_id, hardware_id)
               SELECT id, '{TENANT}', hardware_id FROM hardware WHERE hardware_id LIKE 'bt:%';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               SELECT id, '{TENANT}', '{USER}', id, '{USER}', to_timestamp({})
               FROM hardware WHERE hardware_id LIKE 'bt:%'",
            BOOT_US / 1_000_000
        ))
        .await;
    // Each bridge gets every frame, the devices in another order.
    let batches = |gateway: Uuid, reverse: bool| {
        let mut out = Vec::new();
        for round in 0..20u32 {
            let mut devices: Vec<_> =
                (1..=8).map(|n| columns_of(&format!("bt:{n}"), &seconds(round * 5..round * 5 + 5))).collect();
            if reverse {
                devices.reverse();
            }
            out.push(batch::from_envelope(envelope_of(gateway, u64::from(round), devices)).unwrap());
        }
        out
    };
    let (one, two) = (world.writer(), world.writer());
    let write = |writer: Writer, all: Vec<kinara_ingest::Batch>| async move {
        let mut sum = 0;
        for group in all.chunks(3) {
            sum += counts(writer.write(group).await.unwrap()).iter().map(|counts| counts.stored).sum::<u64>();
        }
        sum
    };
    let (one, two) = tokio::join!(
        tokio::spawn(write(one, batches(GATEWAY, false))),
        tokio::spawn(write(two, batches(SECOND_GATEWAY, true)))
    );
    assert_eq!(one.unwrap() + two.unwrap(), 8 * 100);
    assert_eq!(world.readings().await, 8 * 100 * 5);
    let distinct = "SELECT count(*) FROM (SELECT DISTINCT device_id, epoch, seq, idx FROM ts.readings) r";
    assert_eq!(world.number(distinct).await, 8 * 100 * 5);
    assert_eq!(world.number("SELECT deadlocks FROM pg_stat_database WHERE datname = 'test_0'").await, 0);
    assert_eq!(world.gaps().await, "none");
    world.days_are_known().await;
}

#[tokio::test]
async fn what_is_taken_without_consent_is_discarded_with_a_gap() {
    let world = world().await;
    world.run(&format!("UPDATE consents SET withdrawn_at = to_timestamp({})", BOOT_US / 1_000_000 + 5)).await;
    let batch = batch_of(GATEWAY, &seconds(0..8));
    let counts = world.write(std::slice::from_ref(&batch)).await;
    assert_eq!(counts, [Counts { stored: 5, discarded: 3, ..Counts::default() }]);
    assert_eq!(world.readings().await, 25);
    assert_eq!(world.gaps().await, "no_consent {[5,8)}");
    assert_eq!(world.quarantine().await, "none");
    // Again: nothing changes.
    let counts = world.write(&[batch]).await;
    assert_eq!(counts, [Counts { duplicate: 5, discarded: 3, ..Counts::default() }]);
    assert_eq!(world.gaps().await, "no_consent {[5,8)}");
    // The gap is not final against data.
    world.run("UPDATE consents SET withdrawn_at = NULL").await;
    assert_eq!(world.write(&[batch_of(GATEWAY, &seconds(5..7))]).await, [stored(2)]);
    assert_eq!(world.gaps().await, "no_consent {[7,8)}");
    world.days_are_known().await;
}

#[tokio::test]
async fn another_clinics_gateway_cannot_mark_frames_as_received() {
    let world = world().await;
    let foreign = world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(0..3))]).await;
    assert_eq!(foreign, [Counts { quarantined: 3, ..Counts::default() }]);
    assert_eq!(world.ledger().await, "empty");
    assert_eq!(world.quarantine().await, "foreign_gateway 0, foreign_gateway 1, foreign_gateway 2");
    assert_eq!(world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await, [stored(3)]);
    // Nor can it make us believe in frames that do not exist.
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(1_000..1_001))]).await;
    assert_eq!(world.gaps().await, "none");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_frame_across_a_hand_over_known_as_a_time_is_quarantined_and_one_known_by_name_is_not() {
    let world = world().await;
    let half = "2026-01-01T23:00:05.5Z";
    world
        .run(&format!(
            "UPDATE device_assignments SET valid_to = '{half}';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
             VALUES ('{HARDWARE_ROW}', '{TENANT}', '{SECOND_USER}', '{DEVICE}', '{SECOND_USER}', '{half}')"
        ))
        .await;
    let counts = world.write(&[batch_of(GATEWAY, &seconds(0..10))]).await;
    assert_eq!(counts, [Counts { stored: 9, quarantined: 1, ..Counts::default() }]);
    assert_eq!(world.quarantine().await, "straddle 5");
    let of = |user: Uuid| format!("SELECT count(*) FROM ts.readings WHERE user_id = '{user}'");
    assert_eq!(world.number(&of(USER)).await, 25);
    assert_eq!(world.number(&of(SECOND_USER)).await, 20);
    // A quarantined frame is no gap, and no hole that anybody waits for.
    assert_eq!(world.gaps().await, "none");
    // The operator learns the frame: now it decides, and the quarantined frame is taken.
    world
        .run(&format!(
            "UPDATE device_assignments SET to_epoch = {0}, to_seq = 6 WHERE user_id = '{USER}';
             UPDATE device_assignments SET from_epoch = {0}, from_seq = 6 WHERE user_id = '{SECOND_USER}'",
            EPOCH.0
        ))
        .await;
    let writer = world.writer();
    let replayed = quarantine::replay(
        &writer,
        &world.pool,
        world.clock.as_ref(),
        Which { reasons: &["straddle"], ..Which::default() },
    )
    .await
    .unwrap();
    assert_eq!(replayed, quarantine::Replayed { taken: 1, refused: 0 });
    assert_eq!(world.number(&of(USER)).await, 30);
    assert_eq!(world.quarantine().await, "none");
    assert_eq!(world.ledger().await, "{[0,10)}");
    world.days_are_known().await;
}

#[tokio::test]
async fn two_frames_of_one_name_with_different_contents_are_a_collision() {
    let world = world().await;
    let other = frame_with(EPOCH, 1, 1_000, 999);
    let batches = [batch_of(GATEWAY, &seconds(0..3)), batch_of(SECOND_GATEWAY, &[other])];
    let counts = world.write(&batches).await;
    assert_eq!(counts, [stored(3), Counts { quarantined: 1, ..Counts::default() }]);
    assert_eq!(world.quarantine().await, "collision 1");
    assert_eq!(world.readings().await, 15);
    world.days_are_known().await;
}

#[tokio::test]
async fn frames_of_nobody_and_of_an_impossible_time_are_put_aside_once() {
    let world = world().await;
    let stray = columns_of("kinara:ffffffffffffffff", &seconds(0..1));
    let mut early = columns_of(HARDWARE, &seconds(1..2));
    early.fits[0].ref_utc_us = 0;
    let mut late = columns_of(HARDWARE, &seconds(2..3));
    late.fits[0].ref_utc_us = NOW_US + 2 * 86_400_000_000;
    let mut nameless = columns_of(HARDWARE, &seconds(3..4));
    nameless.fits.clear();
    nameless.fit_of.clear();
    let mut torn = columns_of(HARDWARE, &seconds(4..6));
    torn.crcs.pop();
    let batch =
        batch::from_envelope(envelope_of(GATEWAY, 0, vec![stray, early, late, nameless, torn])).unwrap();
    for _ in 0..2 {
        let counts = world.write(std::slice::from_ref(&batch)).await;
        assert_eq!(counts, [Counts { quarantined: 6, ..Counts::default() }]);
        assert_eq!(
            world.quarantine().await,
            "columns -, no_assignment 0, no_time 3, timestamp 1, timestamp 2"
        );
    }
    assert_eq!(world.readings().await, 0);
    assert_eq!(world.ledger().await, "empty");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_frame_of_a_later_version_is_kept_for_a_later_program() {
    let world = world().await;
    let mut frame = frame(EPOCH, 4);
    frame[0] = 9;
    let crc = kinara_protocol::frame::checksum(&frame[..frame.len() - 4]);
    let end = frame.len() - 4;
    frame[end..].copy_from_slice(&crc.to_le_bytes());
    let batch = batch_of(GATEWAY, &[frame.clone()]);
    let counts = world.write(&[batch]).await;
    assert_eq!(counts, [Counts { quarantined: 1, ..Counts::default() }]);
    assert_eq!(world.quarantine().await, "undecodable 4");
    let kept = world.text("SELECT encode(payload, 'hex') FROM quarantine").await;
    assert_eq!(kept, hex::encode(frame));
    let writer = world.writer();
    let replayed =
        quarantine::replay(&writer, &world.pool, world.clock.as_ref(), Which::default()).await.unwrap();
    assert_eq!(replayed, quarantine::Replayed { taken: 0, refused: 1 });
    world.days_are_known().await;
}

#[tokio::test]
async fn a_skipped_number_is_late_until_it_comes() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world.write(&[batch_of(GATEWAY, &seconds(7..9))]).await;
    assert_eq!(world.gaps().await, "late {[3,7)}");
    let span = "SELECT to_char(from_time, 'SS.MS') || ' ' || to_char(to_time, 'SS.MS') FROM gaps";
    assert_eq!(world.text(span).await, "02.750 07.000");
    world.write(&[batch_of(SECOND_GATEWAY, &seconds(4..5))]).await;
    assert_eq!(world.gaps().await, "late {[3,4),[5,7)}");
    world.write(&[batch_of(GATEWAY, &seconds(3..9))]).await;
    assert_eq!(world.gaps().await, "none");
    assert_eq!(world.ledger().await, "{[0,9)}");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_reboot_leaves_its_gap_and_says_where_the_epoch_before_ended() {
    let world = world().await;
    let mut frames = vec![boot(EPOCH, None)];
    frames.extend(seconds(1..5));
    world.write(&[batch_of(GATEWAY, &frames)]).await;
    let next = Epoch(EPOCH.0 + 1);
    let mut columns = columns_of(HARDWARE, &[boot(next, Some((EPOCH, 7, 6_800)))]);
    columns.fits[0].ref_utc_us = BOOT_US + 10_000_000;
    let batch = batch::from_envelope(envelope_of(GATEWAY, 1, vec![columns])).unwrap();
    world.write(std::slice::from_ref(&batch)).await;
    assert_eq!(world.gaps().await, "late {[5,7)}, reset -");
    let reset = "SELECT from_ticks || ' ' || to_char(from_time, 'SS.MS') || ' ' || to_char(to_time, 'SS.MS')
                 FROM gaps WHERE reason = 'reset'";
    assert_eq!(world.text(reset).await, "6800 06.800 10.000");
    world.write(&[batch]).await;
    world.write(&[batch_of(GATEWAY, &seconds(5..7))]).await;
    assert_eq!(world.gaps().await, "reset -");
    world.days_are_known().await;
}

#[tokio::test]
async fn an_overflow_explains_a_hole_before_or_after_it_was_seen() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world.write(&[batch_of(GATEWAY, &seconds(10..11))]).await;
    assert_eq!(world.gaps().await, "late {[3,10)}");
    // It names what is stored, too: that is no gap.
    world.write(&[batch_of(GATEWAY, &[overflow(EPOCH, 11, EPOCH, 2, 8)])]).await;
    assert_eq!(world.gaps().await, "late {[9,10)}, overflow {[3,9)}");
    // A later overflow names numbers that nobody has heard of yet.
    world.write(&[batch_of(GATEWAY, &[overflow(EPOCH, 30, EPOCH, 12, 29)])]).await;
    assert_eq!(world.gaps().await, "late {[9,10)}, overflow {[12,30)}, overflow {[3,9)}");
    // Another gateway had some of them after all.
    world.write(&[batch_of(SECOND_GATEWAY, &seconds(3..10))]).await;
    world.write(&[batch_of(SECOND_GATEWAY, &seconds(12..13))]).await;
    assert_eq!(world.gaps().await, "overflow {[13,30)}");
    let overlaps = "SELECT count(*) FROM gaps g JOIN ledger l USING (hardware, epoch)
                    WHERE g.withdrawn_at IS NULL AND g.seqs && l.seqs";
    assert_eq!(world.number(overlaps).await, 0);
    world.days_are_known().await;
}

#[tokio::test]
async fn an_erased_wearer_does_not_come_back_with_a_late_batch() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..2))]).await;
    world
        .run(&format!(
            "INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}');
             DELETE FROM users WHERE id = '{USER}'; DELETE FROM ts.readings"
        ))
        .await;
    let counts = world.write(&[batch_of(GATEWAY, &seconds(0..4))]).await;
    assert_eq!(counts, [Counts { discarded: 4, ..Counts::default() }]);
    assert_eq!(world.readings().await, 0);
    assert_eq!(world.gaps().await, "erased {[2,4)}");
    world.days_are_known().await;
}

#[tokio::test]
async fn what_is_older_than_the_retention_is_acknowledged_and_counted() {
    let world = world().await;
    world.run("UPDATE device_assignments SET valid_from = '2020-01-01'").await;
    let mut columns = columns_of(HARDWARE, &seconds(0..2));
    columns.fits[0].ref_utc_us = NOW_US - 800 * 86_400_000_000;
    let batch = batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap();
    assert_eq!(world.write(&[batch]).await, [Counts { expired: 2, ..Counts::default() }]);
    assert_eq!(world.gaps().await, "expired {[0,2)}");
    // A year late is not too late, and finds its partition.
    let mut columns = columns_of(HARDWARE, &seconds(2..4));
    columns.fits[0].ref_utc_us = NOW_US - 365 * 86_400_000_000;
    let batch = batch::from_envelope(envelope_of(GATEWAY, 1, vec![columns])).unwrap();
    assert_eq!(world.write(&[batch]).await, [stored(2)]);
    world.days_are_known().await;
}

#[tokio::test]
async fn a_gateway_that_is_not_enrolled_is_to_come_again() {
    let world = world().await;
    let outcomes = world.writer().write(&[batch_of(Uuid::from_u128(99), &seconds(0..1))]).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::RetryAfter { seconds: 300, .. }]));
    assert_eq!(world.ledger().await, "empty");
    world.days_are_known().await;
}

#[tokio::test]
async fn values_out_of_range_unknown_channels_and_waveforms_are_kept() {
    let world = world().await;
    let frames = [
        frame_of(EPOCH, 0, HEART_RATE, &[9_999]),
        frame_of(EPOCH, 1, ChannelId(777), &[-5]),
        frame_of(EPOCH, 2, ACCELERATION, &[1, -2, 1_000]),
    ];
    let columns: Vec<_> =
        frames.iter().map(|frame| columns_of(HARDWARE, std::slice::from_ref(frame))).collect();
    let batch = batch::from_envelope(envelope_of(GATEWAY, 0, columns)).unwrap();
    assert_eq!(world.write(&[batch]).await, [stored(3)]);
    let rows = "SELECT string_agg(c.name || ' ' || r.value || ' ' || r.quality, ', ' ORDER BY r.seq)
                FROM ts.readings r JOIN channels c USING (type)";
    assert_eq!(world.text(rows).await, "heart_rate 999.9 0, channel_777 -5 1");
    let wave = "SELECT encode(data, 'hex') || ' ' || scale || ' ' || components FROM ts.waveforms";
    assert_eq!(world.text(wave).await, "01000000feffffffe8030000 0.001 3");
    world.days_are_known().await;
}

#[tokio::test]
async fn one_bad_frame_stops_neither_its_batch_nor_the_others() {
    let world = world().await;
    // A fault that only the database sees.
    world.run("ALTER TABLE ts.readings ADD CONSTRAINT no_seven CHECK (seq <> 7) NOT VALID").await;
    let limits = Limits { tries: 1, ..Limits::default() };
    let writer = Writer::new(world.pool.clone(), world.clock.clone(), limits);
    let batches = [batch_of(GATEWAY, &seconds(0..3)), batch_of(SECOND_GATEWAY, &seconds(3..10))];
    // A check violation is what a partition dropped meanwhile looks like: tried again, then the frame's own fault.
    let outcomes = counts(writer.write(&batches).await.unwrap());
    assert_eq!(outcomes, [stored(3), Counts { stored: 6, quarantined: 1, ..Counts::default() }]);
    world.run("TRUNCATE ledger, frame_times, quarantine, gaps, ts.readings").await;
    world
        .run(&format!(
            "ALTER TABLE ts.readings DROP CONSTRAINT no_seven;
             CREATE UNIQUE INDEX one_seven ON ts.readings (time, seq, idx, type) WHERE seq = 7;
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT to_timestamp(1767308407), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 0, 1, 7, 0;
             {DAYS}"
        ))
        .await;
    let counts = counts(world.writer().write(&batches).await.unwrap());
    assert_eq!(counts, [stored(3), Counts { stored: 6, quarantined: 1, ..Counts::default() }]);
    assert_eq!(world.quarantine().await, "database 7");
    assert_eq!(world.ledger().await, "{[0,7),[8,10)}");
    world.run("DROP INDEX ts.one_seven").await;
    let writer = world.writer();
    let replayed =
        quarantine::replay(&writer, &world.pool, world.clock.as_ref(), Which::default()).await.unwrap();
    assert_eq!(replayed.taken, 1);
    assert_eq!(world.ledger().await, "{[0,10)}");
    assert_eq!(world.gaps().await, "none");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_device_whose_name_the_database_refuses_stops_nobody_else() {
    let world = world().await;
    let strange = columns_of("kinara:\0\u{7}a1", &seconds(0..2));
    let batches = [
        batch::from_envelope(envelope_of(GATEWAY, 0, vec![strange])).unwrap(),
        batch_of(SECOND_GATEWAY, &seconds(0..3)),
    ];
    assert_eq!(world.write(&batches).await, [Counts { quarantined: 2, ..Counts::default() }, stored(3)]);
    assert_eq!(world.text("SELECT reason || ' ' || hardware_id FROM quarantine").await, "columns kinara:a1");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_batch_that_can_be_neither_written_nor_put_aside_is_alone_in_waiting() {
    let world = world().await;
    world
        .run(
            "ALTER TABLE ts.readings ADD CONSTRAINT no_one CHECK (seq <> 1) NOT VALID;
             ALTER TABLE quarantine ADD CONSTRAINT nothing CHECK (reason <> 'database') NOT VALID",
        )
        .await;
    let next = Epoch(EPOCH.0 + 1);
    let batches = [
        batch_of(GATEWAY, &seconds(2..4)),
        batch_of(GATEWAY, &seconds(0..2)),
        batch_of(SECOND_GATEWAY, &[frame(next, 0)]),
    ];
    let outcomes = world.writer().write(&batches).await.unwrap();
    assert!(
        matches!(
            &outcomes[..],
            [Outcome::Done(first), Outcome::RetryAfter { seconds: 3_600, .. }, Outcome::Done(last)]
                if *first == stored(2) && *last == stored(1)
        ),
        "{outcomes:?}"
    );
    world.days_are_known().await;
}

#[tokio::test]
async fn a_frame_that_claims_more_than_a_day_is_put_aside() {
    let world = world().await;
    let mut builder = FrameBuilder::new();
    builder.begin(Kind::Scalar, EPOCH, Ticks(0));
    builder.push(HEART_RATE, Ticks(0), &[700]).unwrap();
    builder.push(HEART_RATE, Ticks(3 * 86_400_000), &[700]).unwrap();
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(0, &mut out);
    let mut columns = columns_of(HARDWARE, &[out[..len].to_vec()]);
    columns.fits[0].ref_utc_us = NOW_US - 4 * 86_400_000_000;
    world.run("UPDATE device_assignments SET valid_from = '2025-01-01'").await;
    let batch = batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap();
    let counts = world.write(&[batch, batch_of(GATEWAY, &seconds(1..2))]).await;
    assert_eq!(counts, [Counts { quarantined: 1, ..Counts::default() }, stored(1)]);
    assert_eq!(world.quarantine().await, "timestamp 0");
    world.days_are_known().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_an_error_and_not_an_answer() {
    // A durable server: this one crashes.
    let mut world = world_on(Options::new()).await;
    let writer = world.writer();
    let batch = [batch_of(GATEWAY, &seconds(0..3))];
    world.server.kill();
    writer.write(&batch).await.unwrap_err();
    world.server.restart().unwrap();
    let counts = counts(writer.write(&batch).await.unwrap());
    assert_eq!(counts, [stored(3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_with_the_same_twenty_wearables_on_two_bridges_never_lock_each_other_out() {
    const WEARABLES: u128 = 20;
    let world = world().await;
    let hardware = |n: u128| format!("kinara:{:016x}", 0x1000 + n);
    for n in 0..WEARABLES {
        let id = Uuid::from_u128(0x9000 + n);
        let name = hardware(n);
        world
            .run(&format!(
                "INSERT INTO hardware (id, hardware_id) VALUES ('{id}', '{name}');
                 INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{id}', '{TENANT}', '{name}');
                 INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
                   VALUES ('{id}', '{TENANT}', '{USER}', '{id}', '{USER}', '2025-01-01')"
            ))
            .await;
    }
    // Each gateway has heard most of every wearable's frames, and seals them in its own order.
    let sealed = |gateway: Uuid, round: u32| {
        let mut order: Vec<u128> = (0..WEARABLES).collect();
        if gateway == SECOND_GATEWAY {
            order.reverse();
        }
        order.rotate_left(round as usize % WEARABLES as usize);
        let from = round * 5;
        let devices = order.iter().map(|&n| columns_of(&hardware(n), &seconds(from..from + 8))).collect();
        batch::from_envelope(envelope_of(gateway, u64::from(round), devices)).unwrap()
    };
    let before =
        world.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await;
    let bridge = async |gateway: Uuid| {
        let writer = world.writer();
        let mut total = Counts::default();
        for round in 0..30 {
            for counts in counts(writer.write(&[sealed(gateway, round)]).await.unwrap()) {
                total.stored += counts.stored;
                total.duplicate += counts.duplicate;
            }
        }
        total
    };
    let (one, two) = tokio::join!(bridge(GATEWAY), bridge(SECOND_GATEWAY));
    let frames = WEARABLES as u64 * (29 * 5 + 8);
    assert_eq!(one.stored + two.stored, frames);
    assert_eq!(one.stored + two.stored + one.duplicate + two.duplicate, 2 * 30 * WEARABLES as u64 * 8);
    assert_eq!(world.readings().await as u64, frames * 5);
    assert_eq!(
        world.number("SELECT count(*) FROM (SELECT 1 FROM ts.readings GROUP BY device_id, epoch, seq, idx HAVING count(*) > 1) d").await,
        0
    );
    // The statistics come a moment later; the log is at once.
    world.run("SELECT pg_stat_clear_snapshot(), pg_sleep(1)").await;
    let after =
        world.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await;
    assert_eq!(after, before);
    world.days_are_known().await;
}

#[tokio::test]
async fn what_is_measured_off_the_skin_has_no_quality_whichever_batch_said_so() {
    let world = world().await;
    let said = |seq: u32, kind: DeviceEventKind| {
        let event = DeviceEvent { ticks: Ticks(u64::from(seq) * 1_000), kind };
        let mut out = [0; MAX_FRAME];
        let len = encode_device_event(EPOCH, seq, &event, &mut out);
        out[..len].to_vec()
    };
    world.write(&[batch_of(GATEWAY, &seconds(0..2))]).await;
    world.write(&[batch_of(GATEWAY, &[said(2, DeviceEventKind::NotWorn)])]).await;
    world.write(&[batch_of(GATEWAY, &seconds(3..5))]).await;
    let mut frames = vec![frame(EPOCH, 5), said(6, DeviceEventKind::Worn)];
    frames.extend(seconds(7..9));
    frames.push(frame_of(EPOCH, 9, kinara_protocol::channel::AMBIENT_TEMPERATURE, &[2_100]));
    world.write(&[batch_of(GATEWAY, &frames)]).await;
    assert_eq!(
        world.text("SELECT string_agg(DISTINCT seq::text, ' ' ORDER BY seq::text) FROM ts.readings WHERE quality = 0").await,
        "3 4 5"
    );
    assert_eq!(world.number("SELECT count(*) FROM ts.readings WHERE quality = 1").await, 4 * 5 + 1);
    world.days_are_known().await;
}

#[tokio::test]
async fn a_word_between_frames_that_come_again_and_new_ones_counts_for_the_new_ones() {
    for (first, second, off_skin) in [
        (DeviceEventKind::NotWorn, DeviceEventKind::Worn, "1"),
        (DeviceEventKind::Worn, DeviceEventKind::NotWorn, "3 4 5"),
    ] {
        let world = world().await;
        let said = |seq: u32, kind| device_event(EPOCH, seq, u64::from(seq) * 1_000, kind);
        let again = || batch_of(GATEWAY, &[frame(EPOCH, 1), said(2, second), frame(EPOCH, 3)]);
        world.write(&[batch_of(GATEWAY, &[said(0, first)])]).await;
        world.write(&[again()]).await;
        // Its acknowledgement was lost: it comes once more, in one group with what follows.
        world.write(&[again(), batch_of(GATEWAY, &seconds(4..6))]).await;
        assert_eq!(
            world
                .text("SELECT string_agg(DISTINCT seq::text, ' ' ORDER BY seq::text) FROM ts.readings WHERE quality = 0")
                .await,
            off_skin
        );
        assert_eq!(world.number("SELECT count(DISTINCT seq) FROM ts.readings").await, 4);
    }
}

#[tokio::test]
async fn an_interval_that_a_wearable_told_of_holds_until_its_next_word_or_its_next_boot() {
    let world = world().await;
    let said = |seq: u32, channel: ChannelId, every_ms: u32| {
        let kind = DeviceEventKind::Interval { channel, every_ms };
        device_event(EPOCH, seq, u64::from(seq) * 1_000, kind)
    };
    let next = Epoch(EPOCH.0 + 1);
    world.write(&[batch_of(GATEWAY, &[said(10, HEART_RATE, 60_000), said(11, EDA, 10_000)])]).await;
    // A number of milliseconds that none has, and a channel that means all of them, are not believed.
    world.write(&[batch_of(GATEWAY, &[said(12, SPO2, 0), said(13, ChannelId(0), 5_000)])]).await;
    world.write(&[batch_of(GATEWAY, &[said(20, HEART_RATE, 5_000)])]).await;
    // A boot half a minute after.
    let mut out = [0; MAX_FRAME];
    let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
    let len = encode_boot_anchor(next, 0, Ticks(30_000), &anchor, &mut out);
    world.write(&[batch_of(GATEWAY, &[out[..len].to_vec()])]).await;
    let second = |column: &str| format!("(extract(epoch FROM {column})::int8 - {})", BOOT_US / 1_000_000);
    let spans = format!(
        "SELECT string_agg(channel || ' ' || interval_ms || ' ' || {} || '-' || {}, ', ' ORDER BY channel, from_time)
         FROM device_interval_spans",
        second("from_time"),
        second("to_time")
    );
    assert_eq!(world.text(&spans).await, "1 60000 10-20, 1 5000 20-30, 5 10000 11-30");
    world.days_are_known().await;
}
