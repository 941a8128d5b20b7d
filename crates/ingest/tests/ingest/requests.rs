//! What came over HTTP goes the gateways' way.

use crate::support::*;
use kinara_ingest::erase::erase;
use kinara_ingest::items::{Form, pack, read, unpack};
use kinara_ingest::quarantine::{self, Which};
use kinara_ingest::requests::{forget, take};
use kinara_ingest::{batch, timestamp};
use kinara_protocol::envelope::Fit;
use uuid::Uuid;

const SECOND: i64 = 1_000;

/// A wearer of the other clinic, and its row for the device.
const THEIRS: Uuid = Uuid::from_u128(0x2001);

fn item(source: &str, seq: u32, at_ms: i64) -> String {
    let value = 70.0 + f64::from(seq);
    format!(
        r#"{{"source":"{source}","epoch":7,"seq":{seq},"time":{at_ms},"type":"heart_rate","value":{value}}}"#
    )
}

/// As the API puts it into the database.
async fn accepted(world: &World, tenant: Uuid, items: &[String]) -> Uuid {
    let request = read(items.join("\n").as_bytes(), Form::JsonLines, None).unwrap();
    let payload = pack(&request.batches);
    let (items, refused) = (request.items as i32, request.refused as i32);
    world
        .admin
        .query_one(
            "INSERT INTO ingest_requests (tenant_id, digest, items, refused, told, payload)
             VALUES ($1, '', $2, $3, '[]', $4) RETURNING id",
            &[&tenant, &items, &refused, &payload],
        )
        .await
        .unwrap()
        .get(0)
}

async fn outcome(world: &World, id: Uuid) -> serde_json::Value {
    let row =
        world.admin.query_one("SELECT outcome FROM ingest_requests WHERE id = $1", &[&id]).await.unwrap();
    row.get(0)
}

/// The device goes from the first wearer to the second, 5.5 s after its boot; the second's frames begin with 50.
fn handed_over_within_the_clinic() -> String {
    format!(
        "UPDATE device_assignments SET valid_to = to_timestamp({0} + 5.5);
         INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from,
             first_epoch, first_seq)
           VALUES ('{HARDWARE_ROW}', '{TENANT}', '{SECOND_USER}', '{DEVICE}', '{SECOND_USER}', to_timestamp({0} + 5.5),
             {1}, 50)",
        BOOT_US / 1_000_000,
        EPOCH.0
    )
}

#[tokio::test]
async fn a_request_is_written_once_however_often_it_is_taken_or_sent() {
    let world = world().await;
    let now_ms = NOW_US / 1_000;
    let items: Vec<String> =
        (0..50).map(|seq| item(HARDWARE, seq, now_ms + i64::from(seq) * SECOND)).collect();
    let first = accepted(&world, TENANT, &items).await;
    let second = accepted(&world, TENANT, &items).await;
    // Each has a job, in its clinic's own queue, which names it and nothing else.
    assert_eq!(
        world.number("SELECT count(*) FROM jobs._private_jobs j JOIN jobs._private_job_queues q ON q.id = j.job_queue_id
                      WHERE q.queue_name = 'tenant:00000000-0000-0000-0000-000000000001'").await,
        2
    );
    let writer = world.writer();
    for _ in 0..2 {
        take(&writer, &world.pool, world.clock.as_ref(), first).await.unwrap();
    }
    take(&writer, &world.pool, world.clock.as_ref(), second).await.unwrap();
    assert_eq!(world.readings().await, 50);
    assert_eq!(
        world
            .number("SELECT count(*) FROM ts.readings WHERE user_id = '00000000-0000-0000-0000-000000000031'")
            .await,
        50
    );
    assert_eq!(world.text("SELECT min(value) || ' ' || max(value) FROM ts.readings").await, "70 119");
    assert_eq!(world.ledger().await, "{[0,50)}");
    assert_eq!(
        (
            outcome(&world, first).await["stored"].as_u64(),
            outcome(&world, second).await["duplicate"].as_u64()
        ),
        (Some(50), Some(50))
    );
    assert_eq!(world.number("SELECT count(*) FROM ingest_requests WHERE payload IS NOT NULL").await, 0);
    // What is finished is forgotten with its key when its time has come.
    assert_eq!(forget(&world.pool, timestamp(0)).await.unwrap(), 0);
    assert_eq!(forget(&world.pool, "2100-01-01T00:00:00Z".parse().unwrap()).await.unwrap(), 2);
}

#[tokio::test]
async fn another_clinics_device_is_refused_like_one_of_nobody_and_marks_nothing() {
    let world = world().await;
    let now_ms = NOW_US / 1_000;
    let stranger = "bt:00:11:22:33:44:55";
    let id = accepted(&world, OTHER_TENANT, &[item(HARDWARE, 3, now_ms), item(stranger, 4, now_ms)]).await;
    take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
    assert_eq!((world.readings().await, world.ledger().await), (0, "empty".to_owned()));
    let told = outcome(&world, id).await;
    assert_eq!(told["quarantined"], 2);
    let aside = told["aside"].as_array().unwrap();
    let reasons: Vec<(&str, &str)> =
        aside.iter().map(|one| (one["source"].as_str().unwrap(), one["reason"].as_str().unwrap())).collect();
    // One word for both: who asks does not learn that another clinic has it.
    assert_eq!(reasons, [(stranger, "no_assignment"), (HARDWARE, "no_assignment")]);
    // The clinic's own request of the same name is not in its way.
    let id = accepted(&world, TENANT, &[item(HARDWARE, 3, now_ms)]).await;
    take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
    assert_eq!(outcome(&world, id).await["stored"], 1);
}

#[tokio::test]
async fn a_key_does_not_learn_from_what_is_in_doubt_that_others_had_a_device() {
    let world = world().await;
    world.run(&handed_over_within_the_clinic()).await;
    let now_ms = NOW_US / 1_000;
    let doubtful = |source: &str| {
        let certain = item(source, 3, now_ms);
        certain.replace(r#""type""#, r#""uncertainty_ms":86400000,"type""#)
    };
    let stranger = "bt:00:11:22:33:44:55";
    let told = async |tenant: Uuid| {
        let id = accepted(&world, tenant, &[doubtful(HARDWARE), doubtful(stranger)]).await;
        take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
        let aside = outcome(&world, id).await["aside"].as_array().unwrap().clone();
        let reason = |one: &serde_json::Value| one["reason"].as_str().unwrap().to_owned();
        aside.iter().map(reason).collect::<Vec<String>>()
    };
    assert_eq!(told(OTHER_TENANT).await, ["no_assignment", "no_assignment"]);
    // To the clinic itself the doubt is told.
    assert_eq!(told(TENANT).await, ["no_assignment", "unsure"]);
}

#[tokio::test]
async fn the_clinic_that_has_a_device_is_not_told_what_the_clinic_before_had_of_it() {
    let world = world().await;
    let given_s = NOW_US / 1_000_000 - 3_600;
    // The clinic before got it at a box, which knows the number, or by an operator's word.
    let before = |from: &str| {
        format!(
            "DELETE FROM quarantine; DELETE FROM device_assignments WHERE tenant_id = '{OTHER_TENANT}';
             UPDATE device_assignments SET valid_from = to_timestamp({given_s});
             INSERT INTO users (id, tenant_id) VALUES ('{THEIRS}', '{OTHER_TENANT}') ON CONFLICT DO NOTHING;
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{THEIRS}', '{OTHER_TENANT}', '{HARDWARE}')
               ON CONFLICT DO NOTHING;
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, valid_from, valid_to, from_epoch, from_seq)
               VALUES ('{HARDWARE_ROW}', '{OTHER_TENANT}', '{THEIRS}', '{THEIRS}', '2025-01-01', to_timestamp({given_s}), {from})"
        )
    };
    let uncertain = |seq: u32, at_s: i64| {
        item(HARDWARE, seq, at_s * 1_000).replace(r#""type""#, r#""uncertainty_ms":60000,"type""#)
    };
    // Long after, named before the other clinic's beginning; and around the boundary, by a clock that may be wrong.
    let items = [item(HARDWARE, 3, NOW_US / 1_000), uncertain(60, given_s + 5), uncertain(61, given_s - 5)];
    for (from, kept, stored) in
        [("7, 50", "order 3, unsure 60, unsure 61", 0), ("NULL, NULL", "unsure 60, unsure 61", 1)]
    {
        world.run(&before(from)).await;
        let id = accepted(&world, TENANT, &items).await;
        take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
        let told = outcome(&world, id).await;
        assert_eq!(world.quarantine().await, kept);
        assert_eq!(told["stored"], stored);
        let aside = told["aside"].as_array().unwrap();
        assert!(aside.iter().all(|one| one["reason"] == "no_assignment"), "{told}");
    }
}

#[tokio::test]
async fn a_frame_in_doubt_between_wearers_of_others_is_refused_as_another_clinics() {
    let world = world().await;
    world.run(&handed_over_within_the_clinic()).await;
    let batch = |gateway: Uuid, bytes: &[u8], uncertainty_us: u64| {
        let columns = columns_of(HARDWARE, &[bytes.to_vec()]);
        let columns = stamped(columns, Fit { uncertainty_us, ..fit() });
        batch::from_envelope(envelope_of(gateway, 0, vec![columns])).unwrap()
    };
    // Across the boundary, near it by a clock that may be wrong, and named after a frame of the second wearer.
    let doubts = [
        (frame(EPOCH, 5), 5_000),
        (frame(EPOCH, 3), 3_600_000_000),
        (frame_with(EPOCH, 60, 1_000, 700), 5_000),
    ];
    for (gateway, reasons) in [
        (FOREIGN_GATEWAY, "foreign_gateway 3, foreign_gateway 5, foreign_gateway 60"),
        (GATEWAY, "order 60, straddle 5, unsure 3"),
    ] {
        world.run("DELETE FROM quarantine").await;
        for (bytes, uncertainty_us) in &doubts {
            world.write(&[batch(gateway, bytes, *uncertainty_us)]).await;
        }
        assert_eq!((world.quarantine().await.as_str(), world.readings().await), (reasons, 0));
    }
}

#[tokio::test]
async fn what_was_refused_is_replayed_as_the_clinics_own_once_the_device_is_known() {
    let world = world().await;
    let stranger = "bt:00:11:22:33:44:55";
    let id = accepted(&world, TENANT, &[item(stranger, 0, NOW_US / 1_000)]).await;
    take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
    assert_eq!(world.quarantine().await, "no_assignment 0");
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{USER}', '{stranger}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{USER}', '{TENANT}', '{stranger}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{USER}', '{TENANT}', '{USER}', '{USER}', '{USER}', '2025-01-01')"
        ))
        .await;
    let writer = world.writer();
    let replayed =
        quarantine::replay(&writer, &world.pool, world.clock.as_ref(), Which::default()).await.unwrap();
    assert_eq!((replayed.taken, world.readings().await, world.quarantine().await), (1, 1, "none".to_owned()));
}

#[tokio::test]
async fn without_consent_nothing_is_kept_and_a_gap_says_so() {
    let world = world().await;
    world.run("UPDATE consents SET withdrawn_at = '2025-12-01'").await;
    let id = accepted(&world, TENANT, &[item(HARDWARE, 0, NOW_US / 1_000)]).await;
    take(&world.writer(), &world.pool, world.clock.as_ref(), id).await.unwrap();
    assert_eq!(outcome(&world, id).await["discarded"], 1);
    assert_eq!((world.readings().await, world.gaps().await), (0, "no_consent {[0,1)}".to_owned()));
}

#[tokio::test]
async fn an_erased_persons_readings_go_out_of_requests_that_wait_or_are_dead_and_the_others_stay() {
    let world = world().await;
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{SECOND_USER}', 'bt:C0:00:00:00:00:02');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{SECOND_USER}', '{TENANT}', 'bt:C0:00:00:00:00:02');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{SECOND_USER}', '{TENANT}', '{SECOND_USER}', '{SECOND_USER}', '{SECOND_USER}', to_timestamp({0}));
             UPDATE device_assignments SET valid_to = to_timestamp({0} + 100) WHERE hardware_id = '{HARDWARE_ROW}';
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{HARDWARE_ROW}', '{TENANT}', '{SECOND_USER}', '{DEVICE}', '{SECOND_USER}', to_timestamp({0} + 100))",
            BOOT_US / 1_000_000
        ))
        .await;
    let at = |seq: u32| BOOT_US / 1_000 + i64::from(seq) * SECOND;
    // The first wearer's until the hand-over; beyond it, and on the other device, the second's.
    let items: Vec<String> = [10, 20, 98, 150, 160]
        .map(|seq| item(HARDWARE, seq, at(seq)))
        .into_iter()
        .chain([30, 40].map(|seq| item("bt:C0:00:00:00:00:02", seq, at(seq))))
        .collect();
    let (waits, dead) = (accepted(&world, TENANT, &items).await, accepted(&world, TENANT, &items[..3]).await);
    let foreign = accepted(&world, OTHER_TENANT, &[item("bt:C0:00:00:00:00:09", 1, at(1))]).await;
    world
        .run(&format!(
            "UPDATE ingest_requests SET given_up = true WHERE id = '{dead}';
             INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')"
        ))
        .await;
    let held = async |id: Uuid| -> Vec<String> {
        let sql = "SELECT payload FROM ingest_requests WHERE id = $1";
        let packed: Vec<u8> = world.admin.query_one(sql, &[&id]).await.unwrap().get(0);
        let devices = unpack(&packed, 1 << 20).unwrap().into_iter().flat_map(|batch| batch.devices);
        devices.map(|device| format!("{} {}", device.hardware_id, device.ticks.len())).collect()
    };
    let before = held(foreign).await;
    assert_eq!(held(dead).await, [format!("{HARDWARE} 3")]);
    assert!(erase(&world.pool, TENANT, USER).await.unwrap() >= 6);
    assert_eq!(held(waits).await, ["bt:C0:00:00:00:00:02 2".to_owned(), format!("{HARDWARE} 2")]);
    assert!(held(dead).await.is_empty());
    assert_eq!(held(foreign).await, before);
    assert!(world.gaps().await.contains("erased {[10,11),[20,21),[98,99)}"), "{}", world.gaps().await);
    // What is left is written as it would have been.
    let counts = take(&world.writer(), &world.pool, world.clock.as_ref(), waits).await.unwrap();
    assert_eq!((counts.stored, counts.quarantined), (4, 0));
    assert_eq!(
        world.text("SELECT string_agg(seq::text, ' ' ORDER BY seq) FROM ts.readings").await,
        "30 40 150 160"
    );
}
