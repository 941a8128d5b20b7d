//! One clinic that does whatever its certificate and its boxes let it: what it costs is its own, and nothing that it says is
//! believed of another's.

use std::time::{Duration, Instant};

use crate::fairness::hasty;
use crate::support::desk::{Desk, added, assigned, paired};
use crate::support::*;
use jiff::Timestamp;
use kinara_ingest::reconcile::{Span, reconcile};
use kinara_ingest::rollup::{Slice, roll_up};
use kinara_ingest::sweep::{Policy, sweep};
use kinara_ingest::upkeep::{self, Bounds, Done};
use kinara_ingest::{Batch, Counts, batch, timestamp};
use kinara_protocol::channel::HEART_RATE;
use kinara_protocol::envelope::Fit;
use kinara_protocol::frame::{DeviceEventKind, Epoch, checksum};
use uuid::Uuid;

/// Far more than any of this takes, and far less than a statement for each of its words would.
const AT_ONCE: Duration = Duration::from_secs(20);
/// The wearer of the second clinic.
const OTHERS: Uuid = Uuid::from_u128(0x2001);

/// A frame that holds as many such events as there is room for, a millisecond after each other.
fn crowded(seq: u32, kinds: impl Fn(u32) -> DeviceEventKind) -> Vec<u8> {
    const HEAD: usize = 22;
    let ticks = u64::from(seq) * 1_000;
    let mut frame = device_event(EPOCH, seq, ticks, kinds(0));
    frame.truncate(frame.len() - 4);
    for more in 1..100u32 {
        let one = device_event(EPOCH, seq, ticks, kinds(more));
        // Behind the header: when, as a varint, and the event.
        let event = &one[HEAD + 1..one.len() - 4];
        if frame.len() + event.len() + 5 > 244 {
            break;
        }
        frame.push(more as u8);
        frame.extend(event);
    }
    let len = frame.len() + 4;
    frame[2..4].copy_from_slice(&(len as u16).to_le_bytes());
    frame.extend(checksum(&frame).to_le_bytes());
    frame
}

fn stored(stored: u64) -> Counts {
    Counts { stored, ..Counts::default() }
}

/// The device goes to the second clinic, ten seconds after its boot.
pub(crate) async fn given_on(world: &World) {
    let at = BOOT_US / 1_000_000 + 10;
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{OTHERS}', 'v1');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{HARDWARE}');
             UPDATE device_assignments SET valid_to = to_timestamp({at}), (to_epoch, to_seq) = ({0}, 10);
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from, from_epoch, from_seq)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{OTHERS}', '{OTHERS}', '{OTHERS}', to_timestamp({at}), {0}, 10)",
            EPOCH.0 as i64
        ))
        .await;
}

#[tokio::test]
async fn a_hundred_thousand_words_of_a_battery_in_one_batch_are_written_in_pieces_and_not_one_by_one() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO alert_rules (tenant_id, name, severity, event_type, created_at)
               VALUES ('{TENANT}', 'charge it', 'warning', 'battery_low', 'epoch')"
        ))
        .await;
    let frames: Vec<Vec<u8>> =
        (0..2_000).map(|seq| crowded(seq, |_| DeviceEventKind::BatteryLow(9))).collect();
    let pieces = batch_of(GATEWAY, &frames).pieces(20_000, usize::MAX);
    assert!(pieces.len() >= 4, "{} pieces", pieces.len());
    let began = Instant::now();
    let mut written = 0;
    for piece in pieces {
        written += world.write(&[piece]).await[0].stored;
    }
    assert_eq!(written, 2_000);
    assert!(began.elapsed() < 4 * AT_ONCE, "{:?}", began.elapsed());
    let events = world.number("SELECT count(*) FROM ts.events").await;
    assert!(events > 80_000, "{events}");
    assert_eq!(world.number("SELECT count(DISTINCT key) FROM ts.events").await, events);
    // Noted once an hour and transaction, and not for each.
    assert!(world.number("SELECT count(*) FROM ts.alert_notes").await < 10);
}

#[tokio::test]
async fn every_second_number_of_an_epoch_is_missing_and_each_batch_costs_what_the_first_one_did() {
    let world = world().await;
    let other = |batch: u32| -> Batch {
        let seqs = (batch * 16_000..(batch + 1) * 16_000).step_by(2);
        let frames: Vec<Vec<u8>> =
            seqs.map(|seq| device_event(EPOCH, seq, u64::from(seq), DeviceEventKind::Worn)).collect();
        batch_of(GATEWAY, &frames)
    };
    let began = Instant::now();
    for n in 0..4 {
        assert_eq!(world.write(&[other(n)]).await, [stored(8_000)]);
    }
    assert!(began.elapsed() < 3 * AT_ONCE, "{:?}", began.elapsed());
    let missing = "SELECT sum(upper(s) - lower(s)) FROM gaps, unnest(seqs) s WHERE reason = 'late' AND withdrawn_at IS NULL";
    assert_eq!(world.number(missing).await, 31_999);
}

/// How the clock was of a gateway that thinks it is 1970.
fn in_1970() -> Fit {
    Fit { ref_utc_us: 0, ref_ticks: 5, ..fit() }
}

/// Frames that are refused for their time, numbered as the sender likes.
pub(crate) fn of_1970(numbers: std::ops::Range<u32>) -> Batch {
    of_1970_in(EPOCH, numbers)
}

fn of_1970_in(epoch: Epoch, numbers: std::ops::Range<u32>) -> Batch {
    let frames: Vec<Vec<u8>> = numbers.map(|seq| frame(epoch, seq)).collect();
    let columns = stamped(columns_of(HARDWARE, &frames), in_1970());
    batch::from_envelope(envelope_of(GATEWAY, 9, vec![columns])).unwrap()
}

#[tokio::test]
async fn what_a_former_clinic_has_refused_says_nothing_of_the_numbers_of_the_next_one_when_it_expires() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..10))]).await;
    given_on(&world).await;
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(10..20))]).await;
    assert_eq!(world.write(&[of_1970(5_000_000..5_000_004)]).await[0].quarantined, 4);
    let policy = Policy { quarantine_rows: 1, ..Policy::default() };
    let swept = sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap();
    assert_eq!((swept.expired, swept.failed), (3, 0));
    assert_eq!(world.gaps().await, "none");
    assert_eq!(world.number("SELECT max(highest) FROM ledger").await, 19);
}

#[tokio::test]
async fn what_a_former_clinic_has_refused_hides_none_of_the_next_ones_losses() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..10))]).await;
    given_on(&world).await;
    world.write(&[of_1970(8..15)]).await;
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(10..12))]).await;
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(15..16))]).await;
    assert_eq!(world.gaps().await, "late {[12,15)}");
}

#[tokio::test]
async fn an_epoch_that_was_refused_whole_while_a_former_clinic_had_the_device_leaves_a_gap_when_it_expires() {
    const DAY_US: i64 = 86_400_000_000;
    let world = world().await;
    assert_eq!(world.write(&[of_1970_in(Epoch::new(0xbb, 1), 0..4)]).await[0].quarantined, 4);
    given_on(&world).await;
    // A day after they came; what comes later of such an epoch is not the former clinic's.
    let given = NOW_US / 1_000_000 + 86_400;
    for (tenant, edge) in [(OTHER_TENANT, "valid_from"), (TENANT, "valid_to")] {
        let sql = format!(
            "UPDATE device_assignments SET {edge} = to_timestamp({given}) WHERE tenant_id = '{tenant}'"
        );
        world.run(&sql).await;
    }
    world.clock.advance_us(2 * DAY_US);
    assert_eq!(world.write(&[of_1970_in(Epoch::new(0xbc, 1), 0..4)]).await[0].quarantined, 4);
    world.clock.advance_us(100 * DAY_US);
    let swept = sweep(&world.pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.expired, swept.failed), (8, 0));
    assert_eq!(world.gaps().await, "expired {[0,4)}");
    assert_eq!(world.number("SELECT epoch FROM gaps").await, Epoch::new(0xbb, 1).0 as i64);
}

/// A device that was the first clinic's, and was given on a thousand times by the second one.
const RESTLESS: &str = "kinara:00000000000000e1";

async fn given_on_a_thousand_times(world: &World) {
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO consents (id, tenant_id, user_id, version) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{OTHERS}', 'v1');
             INSERT INTO hardware (id, hardware_id) VALUES ('{OTHERS}', '{RESTLESS}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{RESTLESS}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from, valid_to)
               VALUES ('{OTHERS}', '{TENANT}', '{USER}', '{DEVICE}', '2024-01-01', '2024-02-01');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from, valid_to)
               SELECT '{OTHERS}', '{OTHER_TENANT}', '{OTHERS}', '{OTHERS}', '{OTHERS}', t.at,
                 CASE WHEN g < 1000 THEN t.at + interval '1 hour' END
               FROM generate_series(1, 1000) g, LATERAL (SELECT '2025-01-01'::timestamptz + make_interval(hours => g) AS at) t"
        ))
        .await;
}

#[tokio::test]
async fn a_clinic_that_has_a_frame_refused_of_each_of_many_epochs_keeps_no_other_clinics_batch_waiting() {
    const EPOCHS: u32 = 512;
    let world = world().await;
    given_on_a_thousand_times(&world).await;
    // Of each the frames 0 and 2 are good, and 1 is of 1970.
    let epoch = |boot: u32| {
        let epoch = Epoch::new(0xbb, boot);
        let mut columns = columns_of(RESTLESS, &[0, 1, 2].map(|seq| frame(epoch, seq)));
        columns.fits.push(in_1970());
        columns.fit_of = vec![0, 1, 1, 1, 0, 1];
        columns
    };
    let hostile = envelope_of(FOREIGN_GATEWAY, 0, (0..EPOCHS).map(epoch).collect());
    let began = Instant::now();
    let counts =
        world.write(&[batch::from_envelope(hostile).unwrap(), batch_of(GATEWAY, &seconds(0..10))]).await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let refused = Counts { stored: 2 * u64::from(EPOCHS), quarantined: EPOCHS.into(), ..Counts::default() };
    assert_eq!(counts, [refused, stored(10)]);
    // So many are asked about; the others are known to be missing.
    let late = "SELECT count(*) FROM gaps WHERE reason = 'late' AND withdrawn_at IS NULL";
    assert_eq!(world.number(late).await, i64::from(EPOCHS) - 64);
}

#[tokio::test]
async fn what_a_clinic_had_refused_of_however_many_epochs_expires_and_so_does_what_others_had() {
    const EPOCHS: u64 = 2_000;
    let world = world().await;
    given_on_a_thousand_times(&world).await;
    world
        .run(&format!(
            "INSERT INTO quarantine (tenant_id, what, hardware_id, epoch, seq, reason, payload, digest, received_at)
               SELECT '{OTHER_TENANT}'::uuid, 'frame', '{RESTLESS}', g, 0, 'timestamp', 'x'::bytea, sha256(g::text::bytea), '2025-06-01'::timestamptz
               FROM generate_series(1, {EPOCHS}) g
               UNION ALL
               SELECT '{TENANT}', 'frame', '{HARDWARE}', 1, 0, 'timestamp', 'x', sha256('x'), '2025-06-02'"
        ))
        .await;
    let pool = hasty(&world, Duration::from_secs(3));
    let swept = sweep(&pool, world.clock.as_ref(), &Policy::default()).await.unwrap();
    assert_eq!((swept.expired, swept.failed), (EPOCHS + 1, 0));
    let gaps = "SELECT count(*) FROM gaps WHERE reason = 'expired' AND seqs = '{[0,1)}'";
    assert_eq!(world.number(gaps).await.unsigned_abs(), EPOCHS + 1);
}

#[tokio::test]
async fn what_a_former_clinic_says_of_an_interval_holds_for_nobody_of_the_next_one() {
    let world = world().await;
    given_on(&world).await;
    world
        .run(
            "INSERT INTO alert_rules (tenant_id, name, severity, type, above, minutes, created_at)
               SELECT id, 'fast', 'warning', 1, 120, 3, 'epoch' FROM tenants",
        )
        .await;
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(10..130))]).await;
    roll_up(&world.pool, timestamp(NOW_US), &Slice::default()).await.unwrap();
    // A second before the end, in a log of its own; and under a number from before the boundary, at any time.
    let daily = DeviceEventKind::Interval { channel: HEART_RATE, every_ms: 86_400_000 };
    let before = device_event(Epoch::new(0xbb, 1), 0, 9_000, daily);
    let named = device_event(EPOCH, 5, 60_000, daily);
    let counts = world.write(&[batch_of(GATEWAY, &[before]), batch_of(GATEWAY, &[named])]).await;
    assert_eq!(counts, [stored(1), stored(1)]);
    let looks = |tenant: Uuid| format!("SELECT count(*) FROM ts.interval_looks WHERE tenant_id = '{tenant}'");
    assert_eq!((world.number(&looks(TENANT)).await, world.number(&looks(OTHER_TENANT)).await), (1, 0));
    let until = BOOT_US / 1_000_000 + 3_000;
    let spans = async |tenant: Uuid, wearer: Uuid| {
        world.run(&format!("SET kinara.tenant = '{tenant}'")).await;
        let ends =
            format!("coalesce(round(extract(epoch FROM to_time) - {})::text, 'open')", BOOT_US / 1_000_000);
        let spans = format!(
            "wearer_interval_spans('{wearer}', 1::int2, to_timestamp({until} - 3000), to_timestamp({until}))"
        );
        world
            .text(&format!(
                "SELECT coalesce(string_agg({ends}, ' ' ORDER BY from_time), 'none') FROM {spans}"
            ))
            .await
    };
    assert_eq!(spans(TENANT, USER).await, "10 10", "until the end of its own time");
    assert_eq!(spans(OTHER_TENANT, OTHERS).await, "none");
    let worn = "SELECT worn_minutes FROM wearer_days";
    assert_eq!(world.number(worn).await, 3);
    // What it says itself holds, and was not in force before.
    world.write(&[batch_of(FOREIGN_GATEWAY, &[device_event(EPOCH, 130, 130_000, daily)])]).await;
    assert_eq!((spans(OTHER_TENANT, OTHERS).await.as_str(), world.number(worn).await), ("open", 3));
    assert_eq!(world.number(&looks(OTHER_TENANT)).await, 1);
}

#[tokio::test]
async fn however_many_holes_one_wearable_has_anothers_are_settled_in_the_next_sweeps() {
    let world = world().await;
    // Of the first device in order, new ones all the time; of the second one that can be settled.
    let hostile = Uuid::from_u128(0x40);
    world.write(&[batch_of(GATEWAY, &seconds(0..3)), batch_of(GATEWAY, &seconds(5..6))]).await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{hostile}', 'kinara:00000000000000c3');
             UPDATE gaps SET looked_at = to_timestamp({0});
             INSERT INTO gateway_buffers (gateway_id, buffer, store_id, broke_at)
               VALUES ('{GATEWAY}', 2, 2, to_timestamp({0} + 1))",
            NOW_US / 1_000_000
        ))
        .await;
    let policy = Policy { gaps: 100, ..Policy::default() };
    world.clock.advance_us(120_000_000);
    let mut lost = 0;
    for _ in 0..3 {
        world
            .run(&format!(
                "INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, created_at, updated_at)
                   SELECT '{hostile}', 1, int8multirange(int8range(g, g + 1)), 'late', '2020-01-01', '2020-01-01', 'epoch', 'epoch'
                   FROM generate_series(1, 500) g"
            ))
            .await;
        world.clock.advance_us(5_000_000);
        let swept = sweep(&world.pool, world.clock.as_ref(), &policy).await.unwrap();
        assert_eq!(swept.failed, 0);
        lost += swept.lost;
    }
    assert_eq!((lost, world.gaps().await.contains("gateway_lost {[3,5)}")), (1, true));
}

#[tokio::test]
async fn a_clinic_whose_numbers_never_add_up_hides_no_other_clinics_loss() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(g), 12, '0'))::uuid,
                 'kinara:' || lpad(to_hex(g), 16, '0') FROM generate_series(1, 30) g;
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               SELECT h.id, '{TENANT}', '{USER}', '{DEVICE}', '2025-01-01' FROM hardware h WHERE h.id <> '{HARDWARE_ROW}';
             INSERT INTO gateway_delivered SELECT '{GATEWAY}', h.id, e, '{{[0,9)}}', now()
               FROM hardware h, generate_series(1, 100) e WHERE h.id <> '{HARDWARE_ROW}';
             DELETE FROM device_assignments WHERE hardware_id = '{HARDWARE_ROW}';
             INSERT INTO users (id, tenant_id) VALUES ('{OTHERS}', '{OTHER_TENANT}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{OTHERS}', '{OTHER_TENANT}', '{HARDWARE}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{OTHERS}', '{OTHERS}', '2025-01-01');
             INSERT INTO ledger (hardware, epoch, seqs, highest, updated_at)
               VALUES ('{HARDWARE_ROW}', 7, '{{[0,5)}}', 9, now())"
        ))
        .await;
    let span = Span { raw_from: timestamp(0), again_from: timestamp(0), patience: Duration::from_mins(1) };
    // And again, when a thousand alerts stand.
    for _ in 0..2 {
        let found = reconcile(&world.pool, &span).await.unwrap();
        assert_eq!(found.frames.len(), 1_000);
        let told = "SELECT string_agg(data ->> 'nowhere', ' ') FROM alerts WHERE kind = 'frames' AND withdrawn_at IS NULL
            AND tenant_id = '$tenant'";
        assert_eq!(world.text(&told.replace("$tenant", &OTHER_TENANT.to_string())).await, "{[5,10)}");
    }
}

#[tokio::test]
async fn what_a_former_clinics_gateways_claim_of_a_device_hides_no_loss_of_the_clinic_that_has_it() {
    let world = world().await;
    given_on(&world).await;
    world
        .run(&format!(
            "INSERT INTO gateway_delivered SELECT '{GATEWAY}', '{HARDWARE_ROW}', e, '{{[0,9)}}', now() FROM generate_series(1, 2000) e;
             INSERT INTO ledger (hardware, epoch, seqs, highest, highest_time, updated_at)
               VALUES ('{HARDWARE_ROW}', 1000000, '{{[0,5)}}', 9, to_timestamp({}), now())",
            NOW_US / 1_000_000
        ))
        .await;
    let span = Span { raw_from: timestamp(0), again_from: timestamp(0), patience: Duration::from_mins(1) };
    let found = reconcile(&world.pool, &span).await.unwrap();
    assert_eq!(found.frames.len(), 1_000);
    let told: Vec<&str> = found
        .frames
        .iter()
        .filter(|one| one.tenant == Some(OTHER_TENANT))
        .map(|one| one.nowhere.as_str())
        .collect();
    assert_eq!(told, ["{[5,10)}"]);
}

async fn keep(world: &World, bounds: &Bounds) -> Done {
    upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), bounds).await.unwrap()
}

#[tokio::test]
async fn a_clinic_that_decides_what_can_never_be_carried_out_keeps_no_others_decision_waiting() {
    let world = world().await;
    let hostile = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
    let nobody = Uuid::from_u128(0x5001);
    let vain: Vec<_> = (0..20).map(|n| hostile.decide(n, assigned(HARDWARE, nobody, None, None))).collect();
    assert_eq!(hostile.says(&world, &vain).await.quarantined, 20);
    // The first clinic's box is known only now.
    let desk = Desk::new(GATEWAY, 1);
    desk.says(&world, &[desk.decide(30, added(OTHERS))]).await;
    desk.says_its_key(&world).await;
    let done = keep(&world, &Bounds { decisions: 2, ..Bounds::default() }).await;
    assert_eq!(done.decisions, 1);
}

#[tokio::test]
async fn a_clinic_with_a_hundred_moves_and_marks_keeps_no_others_waiting() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..3))]).await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) SELECT ('00000000-0000-0000-0001-' || lpad(g::text, 12, '0'))::uuid,
                 'bt:' || g FROM generate_series(1, 100) g;
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from)
               SELECT h.id, '{OTHER_TENANT}', '{OTHERS}', '{DEVICE}', '2025-01-01' FROM hardware h WHERE h.hardware_id LIKE 'bt:%';
             UPDATE replays SET asked_at = '2020-01-01', looked_at = NULL;
             DELETE FROM replays WHERE hardware = '{HARDWARE_ROW}';
             INSERT INTO replays (hardware, asked_at) VALUES ('{HARDWARE_ROW}', '2025-01-01');
             INSERT INTO moves (tenant_id, from_user, to_user, asked_at)
               SELECT '{OTHER_TENANT}', '{OTHERS}', gen_random_uuid(), '2020-01-01' FROM generate_series(1, 100);
             INSERT INTO moves (tenant_id, from_user, to_user, asked_at, tried_at)
               VALUES ('{TENANT}', '{USER}', '{SECOND_USER}', '2025-01-01', '2025-01-01')"
        ))
        .await;
    let done = keep(&world, &Bounds { moves: 2, pages: 2, ..Bounds::default() }).await;
    assert!(done.moved > 0 && done.failed == 0, "{done:?}");
    let waits =
        format!("SELECT count(*) FROM replays WHERE hardware = '{HARDWARE_ROW}' AND looked_at IS NULL");
    assert_eq!(world.number(&waits).await, 0);
}

#[tokio::test]
async fn boxes_add_so_many_wearers_and_devices_to_a_clinic_and_no_more() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    world
        .run(&format!(
            "INSERT INTO users (id, tenant_id, provisional) SELECT gen_random_uuid(), '{TENANT}', true FROM generate_series(1, 4999);
             INSERT INTO devices (tenant_id, hardware_id) SELECT '{TENANT}', 'bt:' || g FROM generate_series(1, 19998) g"
        ))
        .await;
    let (first, second) = (Uuid::from_u128(0x6001), Uuid::from_u128(0x6002));
    assert_eq!(desk.says(&world, &[desk.decide(1, added(first))]).await, stored(1));
    assert_eq!(desk.says(&world, &[desk.decide(2, added(second))]).await.quarantined, 1);
    // One that is there is theirs all the same, and one that somebody confirms makes room for the one that was refused.
    assert_eq!(desk.says(&world, &[desk.decide(3, added(first))]).await, stored(1));
    let is_there = format!("SELECT count(*) FROM users WHERE id = '{second}'");
    assert_eq!((keep(&world, &Bounds::default()).await.decisions, world.number(&is_there).await), (0, 0));
    world.run(&format!("UPDATE users SET provisional = false WHERE id = '{first}'")).await;
    assert_eq!((keep(&world, &Bounds::default()).await.decisions, world.number(&is_there).await), (1, 1));
    assert_eq!(desk.says(&world, &[desk.decide(5, paired("label"))]).await, stored(1));
    let another = desk.decide(6, assigned("kinara:00000000000000d4", USER, Some(USER), None));
    assert_eq!(desk.says(&world, &[another]).await.quarantined, 1);
    assert_eq!(
        desk.says(&world, &[desk.decide(7, assigned(HARDWARE, USER, Some(USER), None))]).await,
        stored(1)
    );
    let refused = "SELECT string_agg(DISTINCT reason, ' ') FROM quarantine WHERE what = 'decision'";
    assert_eq!(world.text(refused).await, "too_many");
}

#[tokio::test]
async fn a_sample_from_ahead_does_not_keep_a_device_from_being_seen() {
    let world = world().await;
    let writer = world.writer();
    let ahead =
        stamped(columns_of(HARDWARE, &seconds(0..1)), Fit { ref_utc_us: NOW_US + 80_000_000_000, ..fit() });
    writer.write(&[batch::from_envelope(envelope_of(GATEWAY, 0, vec![ahead])).unwrap()]).await.unwrap();
    world.clock.advance_us(60_000_000);
    let frames = [frame_with(Epoch::new(0xaa, 2), 0, 3_655_000, 700)];
    writer.write(&[batch_of(GATEWAY, &frames)]).await.unwrap();
    let seen: Timestamp =
        world.admin.query_one("SELECT last_seen_at FROM devices", &[]).await.unwrap().get(0);
    assert_eq!(seen, timestamp(BOOT_US + 3_655_750_000));
}
