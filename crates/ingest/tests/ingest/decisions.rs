//! What people decided at a box.

use crate::support::desk::*;
use crate::support::*;
use kinara_ingest::Counts;
use kinara_ingest::upkeep::{self, Bounds, Done};
use kinara_protocol::envelope::{Event, Forgotten, Paired, WearerAdded, decision::What};
use uuid::Uuid;

fn batch_from(gateway: Uuid, range: std::ops::Range<u32>) -> kinara_ingest::Batch {
    let columns = columns_of(NEW, &seconds(range));
    kinara_ingest::batch::from_envelope(envelope_of(gateway, 0, vec![columns])).unwrap()
}

async fn keep(world: &World) -> Done {
    upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), &Bounds::default()).await.unwrap()
}

async fn refusals(world: &World) -> String {
    world
        .text(
            "SELECT coalesce(string_agg(reason, ' ' ORDER BY reason), 'none') FROM quarantine
             WHERE what = 'decision' AND replayed_at IS NULL",
        )
        .await
}

async fn readings_of(world: &World, user: Uuid) -> i64 {
    world.number(&format!("SELECT count(*) FROM ts.readings WHERE user_id = '{user}'")).await
}

#[tokio::test]
async fn a_patient_taken_in_at_a_box_has_readings_at_once() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    let decisions = desk.takes_in(10, Some(boundary(10)));
    let event = Event {
        hardware_id: NEW.into(),
        kind: "hot_flash".into(),
        producer: "rule:sternal/1".into(),
        epoch: EPOCH.0,
        onset_ticks: 20_000,
        grid_ms: 30_000,
        onset_utc_us: BOOT_US + 20_000_000,
        uncertainty_us: 5_000,
        confidence: 0.5,
        data_json: "{}".into(),
        onset_seq: 20,
        ..Event::default()
    };
    // The event is of the wearer whom the decisions beside it name.
    assert_eq!(desk.says_with(&world, &decisions, vec![event]).await, stored(4));
    let counts = world.write(&[batch_from(GATEWAY, 0..30)]).await;
    assert_eq!(counts, [Counts { stored: 20, quarantined: 10, ..Counts::default() }]);
    assert_eq!(readings_of(&world, PATIENT).await, 100);
    let user =
        "SELECT provisional || ' ' || display_name || ' ' || added_by_gateway FROM users WHERE provisional";
    assert_eq!(world.text(user).await, format!("true New Patient {GATEWAY}"));
    let consent =
        format!("SELECT version || ' ' || (detail->>'asked_by') FROM consents WHERE id = '{CONSENT}'");
    assert_eq!(world.text(&consent).await, "2026-1 Nurse");
    assert_eq!(
        world.text("SELECT user_id FROM devices WHERE hardware_id LIKE '%b2'").await,
        PATIENT.to_string()
    );
    // Once, however often it comes.
    assert_eq!(desk.says(&world, &decisions).await, Counts { duplicate: 3, ..Counts::default() });
    assert_eq!(world.number("SELECT count(*) FROM decisions WHERE refused IS NULL").await, 3);
    let kept =
        "SELECT count(*) FROM decisions WHERE octet_length(signature) = 64 AND octet_length(payload) > 50";
    assert_eq!(world.number(kept).await, 3);
}

#[tokio::test]
async fn a_device_that_is_given_after_many_others_does_not_wait_for_their_turns_to_end() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    let counts = world.write(&[batch_from(GATEWAY, 10..40)]).await;
    assert_eq!(counts, [Counts { quarantined: 30, ..Counts::default() }]);
    world
        .run(
            "INSERT INTO hardware (id, hardware_id)
               SELECT gen_random_uuid(), 'kinara:' || lpad(to_hex(4096 + n), 16, '0') FROM generate_series(1, 40) n;
             INSERT INTO replays (hardware, asked_at)
               SELECT id, clock_timestamp() - interval '10 seconds' FROM hardware WHERE hardware_id LIKE 'kinara:00000000000010%'",
        )
        .await;
    desk.says(&world, &desk.takes_in(10, Some(boundary(10)))).await;
    let mut taken = 0;
    for _round in 0..11 {
        taken += keep(&world).await.taken;
    }
    assert!(world.number("SELECT count(*) FROM replays").await > 30, "the others' marks are there still");
    assert!(taken >= 29, "{taken} of 30 after everybody's first turn");
}

#[tokio::test]
async fn a_decision_counts_only_under_the_key_that_is_trusted_for_its_box() {
    let world = world().await;
    let desk = Desk::new(GATEWAY, 1);
    let decisions = desk.takes_in(10, None);
    let three = Counts { quarantined: 3, ..Counts::default() };
    // Before the box has said its key nothing is known of it; nothing is lost either.
    assert_eq!(desk.says(&world, &decisions).await, three);
    assert_eq!(refusals(&world).await, "no_key no_key no_key");
    assert!(!desk.says_its_key(&world).await, "the first key is trusted");
    assert_eq!(keep(&world).await.decisions, 3);
    assert_eq!(refusals(&world).await, "none");
    // Another box's decisions under this one's name, and its own after they were changed.
    let stranger = Desk::new(GATEWAY, 2);
    let mut changed = desk.decide(20, withdrawn(PATIENT));
    changed.at_utc_us += 1;
    let forged = stranger.decide(21, unassigned(NEW, None));
    let stolen = Desk::new(SECOND_GATEWAY, 1).decide(22, unassigned(NEW, None));
    assert_eq!(desk.says(&world, &[changed, forged.clone(), stolen]).await, three);
    assert_eq!(refusals(&world).await, "signature signature signature");
    // A new key of the same box waits for an operator.
    assert!(stranger.says_its_key(&world).await);
    let waiting = stranger.decide(23, unassigned(NEW, None));
    assert_eq!(stranger.says(&world, &[waiting]).await, Counts { quarantined: 1, ..Counts::default() });
    assert_eq!(keep(&world).await.decisions, 0);
    world
        .run(
            "UPDATE gateway_keys SET ended_at = now() WHERE trusted_at IS NOT NULL;
             UPDATE gateway_keys SET trusted_at = now() WHERE ended_at IS NULL",
        )
        .await;
    world.clock.advance_us(60_000_000);
    assert_eq!(keep(&world).await.decisions, 1);
    assert_eq!(world.number("SELECT count(*) FROM device_assignments WHERE valid_to IS NULL").await, 1);
    assert_eq!(desk.says(&world, &[desk.decide(30, added(SECOND_USER))]).await.quarantined, 1);
}

#[tokio::test]
async fn a_decision_touches_its_own_clinic_and_an_overlap_stands_in_nobodys_way() {
    let world = world().await;
    let ours = Desk::known(&world, GATEWAY, 1).await;
    let theirs = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
    let others = Uuid::from_u128(0x2001);
    // The device of the first clinic, wearers and consents of the first clinic: none of it is the second's.
    let decisions = [
        theirs.decide(1, added(others)),
        theirs.decide(2, assigned(HARDWARE, others, None, None)),
        theirs.decide(3, unassigned(HARDWARE, None)),
        theirs.decide(4, assigned(NEW, USER, None, None)),
        theirs.decide(5, assigned(NEW, others, Some(USER), None)),
        theirs.decide(6, withdrawn(USER)),
        theirs.decide(7, consents(USER, others)),
        theirs.decide(8, added(USER)),
        theirs.decide(9, assigned(NEW, others, None, Some(boundary(9)))),
    ];
    let counts = theirs.says(&world, &decisions).await;
    assert_eq!(counts, Counts { stored: 2, quarantined: 7, ..Counts::default() });
    assert_eq!(
        refusals(&world).await,
        "assigned_elsewhere assigned_elsewhere unknown_consent unknown_consent unknown_wearer unknown_wearer unknown_wearer"
    );
    let kept = format!(
        "SELECT count(*) FROM device_assignments WHERE user_id = '{USER}' AND valid_to IS NULL AND tenant_id = '{TENANT}'"
    );
    assert_eq!(world.number(&kept).await, 1);
    assert_eq!(world.number("SELECT count(*) FROM consents WHERE withdrawn_at IS NOT NULL").await, 0);
    // And it is not taken from them either, at any time they hold it.
    let late = ours.takes_in(500, Some(boundary(500)));
    assert_eq!(ours.says(&world, &late).await, Counts { stored: 2, quarantined: 1, ..Counts::default() });
    // Before they had it is another matter; it ends where theirs begins.
    let before = ours.decide(5, assigned(NEW, PATIENT, Some(CONSENT), Some(boundary(5))));
    assert_eq!(ours.says(&world, &[before]).await, stored(1));
    let intervals =
        "SELECT string_agg(from_seq || '-' || coalesce(to_seq::text, ''), ' ' ORDER BY valid_from)
      FROM device_assignments WHERE from_seq IS NOT NULL";
    assert_eq!(world.text(intervals).await, "5-9 9-");
}

#[tokio::test]
async fn a_box_that_was_offline_for_days_is_heard_and_its_frames_are_taken_by_themselves() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    // Another gateway of the clinic brought the frames long before.
    let counts = world.write(&[batch_from(SECOND_GATEWAY, 0..30)]).await;
    assert_eq!(counts, [Counts { quarantined: 30, ..Counts::default() }]);
    world.clock.advance_us(3 * 86_400_000_000);
    // The first decision of the three comes last: the others wait for it.
    let [wearer, consent, assignment] = desk.takes_in(10, Some(boundary(10)));
    assert_eq!(desk.says(&world, &[assignment, consent]).await.quarantined, 2);
    assert_eq!(keep(&world).await, Done::default());
    assert_eq!(desk.says(&world, &[wearer]).await, stored(1));
    world.clock.advance_us(3_600_000_000);
    let done = keep(&world).await;
    assert_eq!((done.decisions, done.taken), (2, 20));
    assert_eq!(readings_of(&world, PATIENT).await, 100);
    assert_eq!(world.ledger().await, "{[10,30)}");
    // What was made before the wearer had it stays put aside, and nothing is taken twice.
    assert_eq!(keep(&world).await.taken, 0);
    assert_eq!(
        world.number("SELECT count(*) FROM quarantine WHERE what = 'frame' AND replayed_at IS NULL").await,
        10
    );
    assert_eq!(
        world.number("SELECT count(*) FROM replays").await,
        2,
        "the marks stay until what had begun is over"
    );
    world.run("UPDATE replays SET asked_at = asked_at - interval '2 minutes'").await;
    keep(&world).await;
    assert_eq!(world.number("SELECT count(*) FROM replays").await, 0);
}

#[tokio::test]
async fn a_hand_over_that_comes_late_takes_what_is_stored_with_it() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    assert_eq!(desk.says(&world, &desk.takes_in(0, Some(boundary(0)))).await, stored(3));
    world.write(&[batch_from(SECOND_GATEWAY, 0..30)]).await;
    assert_eq!(readings_of(&world, PATIENT).await, 150);
    // It was given on at frame 20, and after that taken back.
    let second = desk.decide(20, assigned(NEW, SECOND_USER, Some(SECOND_USER), Some(boundary(20))));
    assert_eq!(
        desk.says(&world, &[second, desk.decide(40, unassigned(NEW, Some(boundary(40))))]).await,
        stored(2)
    );
    assert_eq!(keep(&world).await.moved, 50);
    assert_eq!((readings_of(&world, PATIENT).await, readings_of(&world, SECOND_USER).await), (100, 50));
    world.write(&[batch_from(GATEWAY, 30..50)]).await;
    assert_eq!(readings_of(&world, SECOND_USER).await, 100);
    world.clock.advance_us(120_000_000);
    keep(&world).await;
    assert_eq!(world.number("SELECT count(*) FROM moves WHERE settled_at IS NULL").await, 0);
    let holder = "SELECT count(*) FROM devices WHERE hardware_id LIKE '%b2' AND user_id IS NOT NULL";
    assert_eq!(world.number(holder).await, 0);
}

#[tokio::test]
async fn what_was_decided_at_once_and_had_to_wait_is_carried_out_in_its_order() {
    let world = world().await;
    let desk = Desk::new(GATEWAY, 1);
    let [wearer, consent, assignment] = desk.takes_in(10, Some(boundary(10)));
    // Given on in one go: taken back and given to the second at the same time, whatever the ids.
    let given_on = [
        desk.decide(20, assigned(NEW, SECOND_USER, Some(SECOND_USER), Some(boundary(20)))),
        desk.decide(20, unassigned(NEW, Some(boundary(20)))),
    ];
    desk.says(&world, &given_on).await;
    desk.says(&world, &[assignment, consent, wearer]).await;
    assert!(!desk.says_its_key(&world).await);
    assert_eq!(keep(&world).await.decisions, 5);
    let held = "SELECT string_agg(from_seq || '-' || coalesce(to_seq::text, ''), ' ' ORDER BY from_seq)
      FROM device_assignments WHERE from_seq IS NOT NULL";
    assert_eq!(world.text(held).await, "10-20 20-");
}

#[tokio::test]
async fn a_box_that_does_not_know_the_time_is_taken_at_its_frames_word() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    desk.says(&world, &desk.takes_in(10, Some(boundary(10)))).await;
    let mut lost = desk.decide(-86_400 * 300, unassigned(NEW, Some(boundary(20))));
    lost.uncertainty_us = 300_000_000_000_000;
    lost.signature = desk.key.sign(&lost.signed_bytes(GATEWAY)).as_ref().to_vec();
    assert_eq!(desk.says(&world, &[lost]).await, stored(1));
    let counts = world.write(&[batch_from(GATEWAY, 10..30)]).await;
    assert_eq!(counts, [Counts { stored: 10, quarantined: 10, ..Counts::default() }]);
}

#[tokio::test]
async fn what_is_measured_after_a_consent_was_withdrawn_is_not_stored() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    desk.says(&world, &desk.takes_in(0, Some(boundary(0)))).await;
    desk.says(&world, &[desk.decide(10, withdrawn(PATIENT))]).await;
    let counts = world.write(&[batch_from(GATEWAY, 0..20)]).await;
    assert_eq!(counts, [Counts { stored: 10, discarded: 10, ..Counts::default() }]);
    assert_eq!(world.gaps().await, "no_consent {[10,20)}");
    // Given anew, for what comes from then on.
    let again = Uuid::from_u128(0x1003);
    let decisions = [
        desk.decide(24, consents(again, PATIENT)),
        desk.decide(25, assigned(NEW, PATIENT, Some(again), Some(boundary(25)))),
    ];
    assert_eq!(desk.says(&world, &decisions).await, stored(2));
    let counts = world.write(&[batch_from(GATEWAY, 20..30)]).await;
    assert_eq!(counts, [Counts { stored: 5, discarded: 5, ..Counts::default() }]);
}

#[tokio::test]
async fn a_box_of_the_clinic_before_cannot_name_frames_of_the_clinic_after() {
    let world = world().await;
    let theirs = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
    let others = Uuid::from_u128(0x2001);
    // Handed over by time alone: no box had a link.
    world
        .run(&format!("UPDATE device_assignments SET valid_to = to_timestamp({})", BOOT_US / 1_000_000 + 100))
        .await;
    let decisions = [
        theirs.decide(199, added(others)),
        theirs.decide(199, consents(CONSENT, others)),
        theirs.decide(200, assigned(HARDWARE, others, Some(CONSENT), None)),
    ];
    assert_eq!(theirs.says(&world, &decisions).await, stored(3));
    world.write(&[batch_of(GATEWAY, &seconds(50..60)), batch_of(FOREIGN_GATEWAY, &seconds(210..215))]).await;
    assert_eq!(world.ledger().await, "{[50,60),[210,215)}");
    // Numbers that the second clinic's frames will have, with times at which the first still had the device.
    let forged: Vec<Vec<u8>> =
        (215..220).map(|seq| frame_with(EPOCH, seq, u64::from(seq - 150) * 1_000, 700)).collect();
    let counts = world.write(&[batch_of(GATEWAY, &forged)]).await;
    assert_eq!(counts, [Counts { quarantined: 5, ..Counts::default() }]);
    assert_eq!(world.quarantine().await, "order 215, order 216, order 217, order 218, order 219");
    let counts = world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(205..220))]).await;
    assert_eq!(counts[0].stored, 10);
    assert_eq!(readings_of(&world, others).await, 75);
}

#[tokio::test]
async fn bonds_introductions_and_revocations_follow_what_boxes_say() {
    let world = world().await;
    let first = Desk::known(&world, GATEWAY, 1).await;
    let second = Desk::known(&world, SECOND_GATEWAY, 2).await;
    assert_eq!(first.says(&world, &[first.decide(1, paired("label"))]).await, stored(1));
    let expires = NOW_US / 1_000_000 + 86_400;
    world
        .run(&format!(
            "INSERT INTO introductions (tenant_id, hardware_id, from_gateway, to_gateway, secret, asked_at, expires_at)
             VALUES ('{TENANT}', '{NEW}', '{GATEWAY}', '{SECOND_GATEWAY}', substring(sha256('k') for 16), to_timestamp({0}), to_timestamp({expires}))",
            BOOT_US / 1_000_000
        ))
        .await;
    assert_eq!(second.says(&world, &[second.decide(5, paired("introduction"))]).await, stored(1));
    assert_eq!(world.text("SELECT state || ' ' || (secret IS NULL) FROM introductions").await, "done true");
    assert_eq!(world.number("SELECT count(*) FROM bonds WHERE ended_at IS NULL").await, 2);
    world
        .run(&format!(
            "INSERT INTO revocations (tenant_id, bond_id, hardware_id, gateway_id, adapter, asked_at, expires_at)
             SELECT tenant_id, id, hardware_id, gateway_id, adapter, to_timestamp({}), to_timestamp({expires}) FROM bonds",
            BOOT_US / 1_000_000 + 6
        ))
        .await;
    // One box forgets: the wearable has still to be told, by the other one. That one is paired anew: it is wanted.
    let forgotten = What::Forgotten(Forgotten { hardware_id: NEW.into() });
    assert_eq!(first.says(&world, &[first.decide(10, forgotten)]).await, stored(1));
    assert_eq!(second.says(&world, &[second.decide(10, paired("display"))]).await, stored(1));
    let open = "SELECT string_agg(gateway_id::text, ',') FROM revocations WHERE settled_at IS NULL";
    assert_eq!(world.text(open).await, GATEWAY.to_string());
    let left =
        "SELECT string_agg(how || ' ' || encode(adapter, 'hex'), ',') FROM bonds WHERE ended_at IS NULL";
    assert_eq!(world.text(left).await, "display 010203040506");
    assert_eq!(first.says(&world, &[first.decide(20, paired("label"))]).await, stored(1));
    assert_eq!(world.number("SELECT count(*) FROM revocations WHERE settled_at IS NULL").await, 0);
}

#[tokio::test]
async fn a_retired_gateway_is_not_heard_and_what_it_brought_before_is_its_clinics() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    world.write(&[batch_from(GATEWAY, 0..5)]).await;
    let waiting = desk.decide(-5, assigned(NEW, PATIENT, None, None));
    assert_eq!(desk.says(&world, std::slice::from_ref(&waiting)).await.quarantined, 1);
    world.run(&format!("UPDATE gateways SET retired_at = now() WHERE id = '{GATEWAY}'")).await;
    // Nobody may take its batches, nor what it signed, now or before.
    let outcomes = world.writer().write(&[batch_from(GATEWAY, 5..10)]).await.unwrap();
    assert!(matches!(outcomes[..], [kinara_ingest::Outcome::RetryAfter { .. }]), "{outcomes:?}");
    assert!(desk.is_sent_away(&world, &[desk.decide(0, added(PATIENT))]).await);
    let other = Desk::known(&world, SECOND_GATEWAY, 2).await;
    other.says(&world, &other.takes_in(0, None)).await;
    world.clock.advance_us(3_600_000_000);
    let done = keep(&world).await;
    assert_eq!((done.decisions, done.taken), (0, 5), "its frames of before are the clinic's");
    assert_eq!(refusals(&world).await, "unknown_wearer");
}

#[tokio::test]
async fn a_decision_that_cannot_be_understood_is_kept_for_a_person() {
    let world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    let mut empty = desk.decide(1, added(PATIENT));
    empty.what = None;
    empty.signature = desk.key.sign(&empty.signed_bytes(GATEWAY)).as_ref().to_vec();
    let future = desk.decide(90 * 86_400, added(PATIENT));
    let odd = [
        desk.decide(1, What::WearerAdded(WearerAdded { user_id: vec![1], display_name: "x".into() })),
        desk.decide(
            2,
            What::WearerAdded(WearerAdded { user_id: bytes(PATIENT), display_name: "a\0b".into() }),
        ),
        desk.decide(3, unassigned("", None)),
        desk.decide(4, What::Paired(Paired { hardware_id: NEW.into(), how: "label".into(), bond: vec![1] })),
        empty,
        future,
    ];
    assert_eq!(desk.says(&world, &odd).await, Counts { quarantined: 6, ..Counts::default() });
    assert_eq!(refusals(&world).await, "malformed malformed malformed malformed malformed timestamp");
    assert_eq!(world.number("SELECT count(*) FROM decisions").await, 0);
}

/// The bridge's connections with a second for each statement.
fn hasty(world: &World) -> kinara_store::Pool {
    let statement = std::time::Duration::from_secs(1);
    let limits = kinara_store::Limits { statement, ..kinara_store::Limits::default() };
    kinara_store::connect(&world.server.url("bridge", "bridge", "test_0"), "test", &limits).unwrap()
}

#[tokio::test]
async fn a_decision_that_takes_too_long_is_put_aside_and_those_behind_it_are_taken() {
    let mut world = world().await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    world
        .run(&format!(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.id = '{PATIENT}') EXECUTE FUNCTION slow()"
        ))
        .await;
    world.pool = hasty(&world);
    let began = std::time::Instant::now();
    let others = Uuid::from_u128(0x3001);
    let counts = desk.says(&world, &[desk.decide(1, added(PATIENT)), desk.decide(2, added(others))]).await;
    assert_eq!(counts, Counts { stored: 1, quarantined: 1, ..Counts::default() });
    assert!(began.elapsed().as_secs() < 4, "a writer is held up for one statement's time");
    assert_eq!(refusals(&world).await, "busy");
    world.run("DROP TRIGGER slow ON users").await;
    assert_eq!(keep(&world).await.decisions, 1);
    assert_eq!(refusals(&world).await, "none");
}

#[tokio::test]
async fn a_decision_that_fails_again_and_again_keeps_no_others_from_being_tried() {
    let world = world().await;
    let desk = Desk::new(GATEWAY, 1);
    let others = Uuid::from_u128(0x3001);
    desk.says(&world, &[desk.decide(1, added(PATIENT)), desk.decide(2, added(others))]).await;
    assert!(!desk.says_its_key(&world).await);
    world
        .run(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.id = '{PATIENT}') EXECUTE FUNCTION refuse()"
        ))
        .await;
    let done = keep(&world).await;
    assert_eq!((done.decisions, done.failed), (1, 1));
    assert_eq!(refusals(&world).await, "no_key");
    let tried = "SELECT count(*) FROM quarantine WHERE what = 'decision' AND tried_at IS NULL";
    assert_eq!(world.number(tried).await, 0, "those that nobody tried come first");
}

#[tokio::test]
async fn a_device_whose_frames_cannot_be_written_keeps_no_others_frames_waiting() {
    let world = world().await;
    world.run("UPDATE device_assignments SET valid_from = '2027-01-01'").await;
    world.write(&[batch_of(GATEWAY, &seconds(0..10))]).await;
    world.write(&[batch_from(GATEWAY, 0..10)]).await;
    let desk = Desk::known(&world, GATEWAY, 1).await;
    world.run("UPDATE device_assignments SET valid_from = '2025-01-01'").await;
    desk.says(&world, &desk.takes_in(0, Some(boundary(0)))).await;
    world
        .run(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON ts.readings FOR EACH ROW WHEN (NEW.user_id = '{USER}')
               EXECUTE FUNCTION refuse();
             UPDATE replays SET asked_at = asked_at - interval '1 second' WHERE hardware = '{HARDWARE_ROW}'"
        ))
        .await;
    let done = keep(&world).await;
    assert_eq!((done.taken, done.failed), (10, 1));
    assert_eq!(world.number("SELECT count(*) FROM replays WHERE looked_at IS NULL").await, 0);
    world.run("DROP TRIGGER refuse ON ts.readings").await;
    assert_eq!(keep(&world).await.taken, 10);
}
