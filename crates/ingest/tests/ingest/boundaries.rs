//! Boundaries that are told late: what is stored follows them.

use crate::support::desk::*;
use crate::support::*;
use kinara_ingest::boundary::{self, Edge, Gift, NOBODY, Word};
use kinara_ingest::timestamp;
use kinara_ingest::upkeep::{self, Bounds, Done};
use kinara_protocol::envelope::{Paired, decision::What};
use uuid::Uuid;

const OTHERS: Uuid = Uuid::from_u128(0x2001);

async fn keep(world: &World) -> Done {
    let done = upkeep::keep(&world.writer(), &world.pool, world.clock.as_ref(), &Bounds::default()).await;
    world.days_are_known().await;
    done.unwrap()
}

/// Readings by wearer: nobody's, the patient's, the second wearer's.
async fn stored(world: &World) -> [i64; 3] {
    let mut out = [0; 3];
    for (count, user) in out.iter_mut().zip([NOBODY, PATIENT, SECOND_USER]) {
        *count = world.number(&format!("SELECT count(*) FROM ts.readings WHERE user_id = '{user}'")).await;
    }
    out
}

async fn open_moves(world: &World) -> i64 {
    world.number("SELECT count(*) FROM moves WHERE settled_at IS NULL").await
}

async fn refusals(world: &World) -> String {
    world
        .text(
            "SELECT coalesce(string_agg(reason, ' ' ORDER BY reason), 'none') FROM quarantine
             WHERE what = 'decision' AND replayed_at IS NULL",
        )
        .await
}

fn of_new(gateway: Uuid, range: std::ops::Range<u32>) -> kinara_ingest::Batch {
    let columns = columns_of(NEW, &seconds(range));
    kinara_ingest::batch::from_envelope(envelope_of(gateway, 0, vec![columns])).unwrap()
}

#[tokio::test]
async fn what_is_stored_after_a_device_was_taken_back_is_nobodys_until_somebody_is_said_to_have_had_it() {
    for named in [true, false] {
        let world = world().await;
        let desk = Desk::known(&world, GATEWAY, 1).await;
        let at = |seq| named.then(|| boundary(seq));
        desk.says(&world, &desk.takes_in(0, at(0))).await;
        world.write(&[of_new(SECOND_GATEWAY, 0..40)]).await;
        assert_eq!(stored(&world).await, [0, 200, 0]);
        // The box tells three days late that it was taken back at 20, and later still that the second had it from 30 on.
        world.clock.advance_us(3 * 86_400_000_000);
        desk.says(&world, &[desk.decide(20, unassigned(NEW, at(20)))]).await;
        assert_eq!(keep(&world).await.moved, 100);
        assert_eq!(stored(&world).await, [100, 100, 0]);
        let second = desk.decide(30, assigned(NEW, SECOND_USER, Some(SECOND_USER), at(30)));
        desk.says(&world, &[second]).await;
        keep(&world).await;
        assert_eq!(stored(&world).await, [50, 100, 50]);
        world.clock.advance_us(120_000_000);
        keep(&world).await;
        keep(&world).await;
        assert_eq!((stored(&world).await, open_moves(&world).await), ([50, 100, 50], 0));
        let seen = "SELECT count(*) FROM ts.stale WHERE user_id = '00000000-0000-0000-0000-000000000000'";
        assert_eq!(world.number(seen).await, 0, "nobody has no aggregates");
    }
}

#[tokio::test]
async fn the_order_in_which_late_boundaries_are_told_changes_nothing() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let world = world().await;
        let desk = Desk::known(&world, GATEWAY, 1).await;
        desk.says(&world, &desk.takes_in(0, Some(boundary(0)))).await;
        world.write(&[of_new(SECOND_GATEWAY, 0..40)]).await;
        let late = [
            desk.decide(10, assigned(NEW, SECOND_USER, Some(SECOND_USER), Some(boundary(10)))),
            desk.decide(20, assigned(NEW, PATIENT, Some(CONSENT), Some(boundary(20)))),
            desk.decide(30, unassigned(NEW, Some(boundary(30)))),
        ];
        for which in order {
            desk.says(&world, &[late[which].clone()]).await;
            keep(&world).await;
            // What an earlier one was refused for may be there now.
            world.clock.advance_us(3_600_000_000);
        }
        for _ in 0..4 {
            keep(&world).await;
            world.clock.advance_us(3_600_000_000);
        }
        assert_eq!(refusals(&world).await, "none", "{order:?}");
        assert_eq!(open_moves(&world).await, 0, "{order:?}");
        let intervals = world
            .text(
                "SELECT string_agg(from_seq || '-' || coalesce(to_seq::text, ''), ' ' ORDER BY from_seq)
                 FROM device_assignments WHERE from_seq IS NOT NULL",
            )
            .await;
        assert_eq!(
            (intervals.as_str(), stored(&world).await),
            ("0-10 10-20 20-30", [50, 100, 50]),
            "{order:?}"
        );
    }
}

#[tokio::test]
async fn a_box_does_not_take_a_device_from_a_time_of_which_another_clinic_has_frames() {
    let world = world().await;
    let theirs = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
    let ours = Desk::known(&world, GATEWAY, 1).await;
    world.write(&[batch_of(GATEWAY, &seconds(0..100))]).await;
    // Taken back at 50, told late: what is stored after it is nobody's, of the first clinic.
    ours.says(&world, &[ours.decide(50, unassigned(HARDWARE, Some(boundary(50))))]).await;
    let decisions = |second: i64| {
        [
            theirs.decide(second - 2, added(OTHERS)),
            theirs.decide(second - 1, consents(CONSENT, OTHERS)),
            theirs.decide(second, assigned(HARDWARE, OTHERS, Some(CONSENT), Some(boundary(second as u32)))),
        ]
    };
    for _ in 0..2 {
        theirs.says(&world, &decisions(60)).await;
        assert_eq!(refusals(&world).await.split(' ').next_back(), Some("stored_elsewhere"));
        keep(&world).await;
    }
    assert_eq!(world.number("SELECT count(*) FROM device_assignments WHERE valid_to IS NULL").await, 0);
    theirs.says(&world, &decisions(100)).await;
    assert_eq!(world.number("SELECT count(*) FROM device_assignments WHERE valid_to IS NULL").await, 1);
    world.write(&[batch_of(FOREIGN_GATEWAY, &seconds(100..110))]).await;
    let by_clinic = "SELECT string_agg(n::text, ' ') FROM (SELECT count(*) n FROM ts.readings GROUP BY tenant_id ORDER BY tenant_id) c";
    assert_eq!(world.text(by_clinic).await, "500 50");
}

#[tokio::test]
async fn one_move_that_fails_stops_no_other_one_nor_what_is_behind_it() {
    let world = world().await;
    world.write(&[batch_of(GATEWAY, &seconds(0..10))]).await;
    let (third, fourth) = (Uuid::from_u128(0x33), Uuid::from_u128(0x34));
    world
        .run(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON ts.readings FOR EACH ROW WHEN (OLD.user_id = '{USER}') EXECUTE FUNCTION refuse();
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT time, tenant_id, '{SECOND_USER}', device_id, type, idx, epoch + 1, seq, value FROM ts.readings;
             {DAYS};
             INSERT INTO moves (tenant_id, from_user, to_user, asked_at)
               SELECT '{TENANT}', '{USER}', '{third}', to_timestamp({0} - n) FROM generate_series(1, 9) n;
             INSERT INTO moves (tenant_id, from_user, to_user, asked_at) VALUES
               ('{TENANT}', '{SECOND_USER}', '{fourth}', to_timestamp({0})), ('{TENANT}', '{third}', '{fourth}', to_timestamp({0}));
             INSERT INTO introductions (tenant_id, hardware_id, from_gateway, to_gateway, secret, expires_at)
               VALUES ('{TENANT}', '{NEW}', '{GATEWAY}', '{SECOND_GATEWAY}', substring(sha256('k') for 16), to_timestamp({0}))",
            NOW_US / 1_000_000 - 600
        ))
        .await;
    let mut done = Done::default();
    for _ in 0..8 {
        let now = keep(&world).await;
        done.moved += now.moved;
        done.failed += now.failed;
        done.expired += now.expired;
        world.clock.advance_us(5_000_000);
    }
    assert!(done.failed >= 9, "{done:?}");
    assert_eq!((done.moved, done.expired), (50, 1));
    let told = "SELECT count(*) FROM moves WHERE failed LIKE '%not this one%' AND settled_at IS NULL";
    assert_eq!(world.number(told).await, 9);
    // The one that would pass on what the failing ones bring waits for them; the other one is over.
    let over = "SELECT string_agg(right(from_user::text, 2), ' ') FROM moves WHERE settled_at IS NOT NULL";
    assert_eq!(world.text(over).await, "32");
    world.run("DROP TRIGGER refuse ON ts.readings").await;
    for _ in 0..8 {
        keep(&world).await;
        world.clock.advance_us(5_000_000);
    }
    assert_eq!(open_moves(&world).await, 0);
    let all = format!("SELECT count(*) FROM ts.readings WHERE user_id = '{fourth}'");
    assert_eq!(world.number(&all).await, 100);
}

#[tokio::test]
async fn a_clinic_that_has_a_device_now_has_the_former_ones_boxes_taken_off_it() {
    let world = world().await;
    let ours = Desk::known(&world, GATEWAY, 1).await;
    let theirs = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
    ours.says(&world, &[ours.decide(1, paired("label")), ours.decide(2, unassigned(HARDWARE, None))]).await;
    world.run(&format!("UPDATE bonds SET hardware_id = '{HARDWARE}'")).await;
    let decisions = [
        theirs.decide(5, added(OTHERS)),
        theirs.decide(6, consents(CONSENT, OTHERS)),
        theirs.decide(7, assigned(HARDWARE, OTHERS, Some(CONSENT), None)),
    ];
    theirs.says(&world, &decisions).await;
    let told = "SELECT string_agg(tenant_id || ' ' || gateway_id || ' ' || encode(adapter, 'hex'), ',')
      FROM revocations WHERE settled_at IS NULL AND expires_at > to_timestamp(";
    let told = format!("{told}{})", NOW_US / 1_000_000 + 86_400);
    assert_eq!(world.text(&told).await, format!("{TENANT} {GATEWAY} 010203040506"));
}

fn pairs() -> What {
    What::Paired(Paired { hardware_id: HARDWARE.into(), how: "label".into(), bond: ADAPTER.to_vec() })
}

/// Bonds that stand and are not to be taken off, and those that are, by clinic.
async fn bonds(world: &World) -> String {
    world
        .text(
            "SELECT coalesce(string_agg(right(b.tenant_id::text, 1) || CASE WHEN r.id IS NULL THEN ' stands' ELSE ' is taken off' END,
               ', ' ORDER BY b.tenant_id), 'none')
             FROM bonds b LEFT JOIN revocations r ON r.bond_id = b.id AND r.settled_at IS NULL WHERE b.ended_at IS NULL",
        )
        .await
}

#[tokio::test]
async fn a_bond_that_a_former_clinics_box_makes_is_taken_off_whenever_it_was_made_and_is_told() {
    // Before the clinic's own end, between both clinics' times, and long after the hand-over; with a bond from before and without.
    for (second, had_one) in [(3, true), (6, true), (3_700, true), (3, false), (3_700, false)] {
        let world = world().await;
        let ours = Desk::known(&world, GATEWAY, 1).await;
        let theirs = Desk::known(&world, FOREIGN_GATEWAY, 2).await;
        if had_one {
            ours.says(&world, &[ours.decide(1, pairs())]).await;
        }
        ours.says(&world, &[ours.decide(5, unassigned(HARDWARE, None))]).await;
        let decisions = [
            theirs.decide(5, added(OTHERS)),
            theirs.decide(6, consents(CONSENT, OTHERS)),
            theirs.decide(6, pairs()),
            theirs.decide(7, assigned(HARDWARE, OTHERS, Some(CONSENT), None)),
        ];
        theirs.says(&world, &decisions).await;
        world.clock.advance_us(200_000_000);
        assert_eq!(ours.says(&world, &[ours.decide(second, pairs())]).await.stored, 1);
        assert_eq!(bonds(&world).await, "1 is taken off, 2 stands", "{second} {had_one}");
        assert_eq!(world.number("SELECT count(*) FROM revocations WHERE settled_at IS NULL").await, 1);
    }
}

#[tokio::test]
async fn a_box_that_was_to_be_taken_off_and_pairs_again_is_wanted_and_one_that_had_paired_before_is_not() {
    for (second, expected) in [(9, "1 is taken off"), (11, "1 stands")] {
        let world = world().await;
        let desk = Desk::known(&world, GATEWAY, 1).await;
        desk.says(&world, &[desk.decide(1, pairs())]).await;
        world
            .run(&format!(
                "INSERT INTO revocations (tenant_id, bond_id, hardware_id, gateway_id, adapter, asked_at, expires_at)
                 SELECT tenant_id, id, hardware_id, gateway_id, adapter, to_timestamp({}), to_timestamp({}) FROM bonds",
                BOOT_US / 1_000_000 + 10,
                NOW_US / 1_000_000 + 86_400
            ))
            .await;
        desk.says(&world, &[desk.decide(second, pairs())]).await;
        assert_eq!(bonds(&world).await, expected, "{second}");
    }
}

#[tokio::test]
async fn who_has_had_a_device_for_longer_than_was_said_gets_what_was_put_aside_since() {
    let mut world = world().await;
    world.run("DELETE FROM device_assignments").await;
    let columns = columns_of(HARDWARE, &seconds(0..40));
    let batch = kinara_ingest::batch::from_envelope(envelope_of(GATEWAY, 0, vec![columns])).unwrap();
    world.write(&[batch]).await;
    for (second, taken) in [(20, 20), (5, 15)] {
        let gift = Gift {
            hardware_id: HARDWARE,
            hardware: HARDWARE_ROW,
            tenant: TENANT,
            user: USER,
            device: DEVICE,
            consent: Some(USER),
            from: Edge { at: timestamp(BOOT_US + second * 1_000_000), frame: None },
            word: Word::Operator { take_stored: false },
        };
        let tx = world.admin.transaction().await.unwrap();
        boundary::give(&tx, &gift, timestamp(NOW_US)).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        // What was said last is looked at once it has stood for a moment.
        world.run("UPDATE replays SET asked_at = asked_at - interval '1 second'").await;
        assert_eq!(keep(&world).await.taken, taken);
    }
    assert_eq!(world.number("SELECT count(*) FROM device_assignments").await, 1);
    assert_eq!(
        world.quarantine().await,
        "no_assignment 0, no_assignment 1, no_assignment 2, no_assignment 3, no_assignment 4"
    );
}

#[tokio::test]
async fn a_move_goes_through_days_with_another_device_a_slice_at_a_time_and_is_over_after_a_whole_pass() {
    let world = world().await;
    let other = Uuid::from_u128(0x52);
    // Eight days with another device, then one with the device of which a move is asked.
    let day = |n: i64| (NOW_US - (20 - n) * 86_400_000_000) / 1_000_000;
    world
        .run(&format!(
            "SELECT ts.ensure_partitions(to_timestamp({0}), to_timestamp({1}));
             INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               SELECT to_timestamp({0} + d * 86400), '{TENANT}', '{USER}', CASE WHEN d = 8 THEN '{DEVICE}'::uuid ELSE '{other}' END,
                 1, 0, 1, d, 70 FROM generate_series(0, 8) d;
             {DAYS};
             INSERT INTO moves (tenant_id, from_user, to_user, device_id, from_time, asked_at)
               VALUES ('{TENANT}', '{USER}', '{SECOND_USER}', '{DEVICE}', to_timestamp({0}), to_timestamp({2}))",
            day(0),
            day(10),
            NOW_US / 1_000_000 - 30
        ))
        .await;
    // Five days, and four; then a pass that finds nothing more.
    for moved in [-1, 1, -1, 0] {
        assert_eq!(world.number("SELECT ts.move(id, 1) FROM moves").await, moved);
    }
    // A writer that had begun before brings one more, behind what the next pass has looked through.
    keep(&world).await;
    world
        .run(&format!(
            "INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
               VALUES (to_timestamp({}), '{TENANT}', '{USER}', '{DEVICE}', 1, 0, 1, 99, 70)",
            day(0)
        ))
        .await;
    let mut moved = 0;
    for _ in 0..6 {
        world.clock.advance_us(40_000_000);
        moved += keep(&world).await.moved;
    }
    assert_eq!((moved, open_moves(&world).await), (1, 0));
    let theirs =
        format!("SELECT count(*) FROM ts.readings WHERE user_id = '{USER}' AND device_id = '{DEVICE}'");
    assert_eq!(world.number(&theirs).await, 0);
}
