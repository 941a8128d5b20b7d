//! What one sender does is its own affair: what it claims is refused, what it floods is its own, and the others are answered.

use std::time::Duration;

use crate::ground::*;
use crate::support::*;
use kinara_protocol::envelope::{self, ENVELOPE_VERSION, Live, LiveDevice, State, ack};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_test_postgres::Options;
use prost::Message as _;
use rumqttc::v5::mqttbytes::QoS;
use uuid::Uuid;

/// Hundreds of bytes that unpack to half a million devices.
fn amplified() -> Vec<u8> {
    let mut plain = State { version: ENVELOPE_VERSION, online: true, ..State::default() }.encode_to_vec();
    plain.extend([0x72, 0x00].repeat(500_000));
    envelope_compressed(&plain)
}

fn envelope_compressed(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 3).unwrap()
}

fn figure(figures: &str, name: &str) -> u64 {
    let line = figures.lines().find_map(|line| line.strip_prefix(&format!("kinara_bridge_{name} "))).unwrap();
    line.parse().unwrap()
}

#[tokio::test]
async fn a_state_that_nobody_can_read_is_emptied_at_the_broker_and_the_others_are_kept() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let state = topic::of(GatewayId(GATEWAY), Leaf::State);
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    // Before there is a bridge: the broker keeps it for every bridge to come.
    gateway.client.try_publish(state.clone(), QoS::AtLeastOnce, true, amplified()).unwrap();
    gateway.sent().await;
    let mut other =
        Gateway::connect(&certificates, &broker, FOREIGN_GATEWAY, std::slice::from_ref(&state)).await;
    assert!(!other.next(&state).await.payload.is_empty());
    let bridge = Bridge::start(&world, &certificates, &broker, "").await;
    assert!(other.next(&state).await.payload.is_empty());
    let good = State { version: ENVELOPE_VERSION, online: true, buffered_frames: 42, ..State::default() };
    other.publish(Leaf::State, envelope::seal(&good), None);
    other.sent().await;
    until("the other's state was not kept", async || {
        world.number("SELECT count(*) FROM gateways WHERE state->>'buffered_frames' = '42'").await == 1
    })
    .await;
    assert_eq!(figure(&figures(&certificates).await, "states_refused_total"), 1);
    // Whoever subscribes now finds nothing.
    let mut late =
        Gateway::connect(&certificates, &broker, SECOND_GATEWAY, std::slice::from_ref(&state)).await;
    gateway.publish(Leaf::State, envelope::seal(&good), None);
    gateway.sent().await;
    assert!(!late.next(&state).await.payload.is_empty());
    bridge.stop().await;
}

#[tokio::test]
async fn live_messages_with_ids_of_megabytes_are_refused_and_the_gateways_own_values_still_shown() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "").await;
    let topics = [topic::tenant_live(TENANT)];
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &topics).await;
    let live = |id: &str| {
        let device = LiveDevice { hardware_id: id.to_owned(), epoch: EPOCH.0, ..LiveDevice::default() };
        envelope::seal(&Live { version: ENVELOPE_VERSION, devices: vec![device] })
    };
    for n in 0..5 {
        gateway.publish(Leaf::Live, live(&format!("{n}{}", "x".repeat(900_000))), None);
    }
    gateway.publish(Leaf::Live, live(HARDWARE), None);
    gateway.next(&topics[0]).await;
    assert!(figure(&figures(&certificates).await, "live_refused_total") >= 5);
    bridge.stop().await;
}

#[tokio::test]
async fn a_large_batch_is_written_in_pieces_and_answered_once_and_others_are_answered_meanwhile() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let limits = "[limits]\nwriters = 1\nreadings_per_transaction = 500\n";
    let bridge = Bridge::start(&world, &certificates, &broker, limits).await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let mut other = Gateway::connect(&certificates, &broker, FOREIGN_GATEWAY, &[]).await;
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..2_000), Some((7, 0)));
    gateway.sent().await;
    for sequence in 0..3 {
        let columns = columns_of("bt:nobody", &seconds(sequence * 5..sequence * 5 + 5));
        let sealed = envelope::seal(&envelope_of(FOREIGN_GATEWAY, u64::from(sequence), vec![columns]));
        other.publish(Leaf::Batch, sealed, Some((7, u64::from(sequence))));
        assert!(matches!(other.ack().await.outcome, Some(ack::Outcome::Done(_))));
    }
    assert_eq!(done(&gateway.ack().await), (2_000, 0));
    assert_eq!(world.readings().await, 10_000);
    // Pieces of 500 readings and frames.
    assert!(figure(&figures(&certificates).await, "transactions_total") > 20);
    bridge.stop().await;
}

#[tokio::test]
async fn many_decisions_are_taken_in_turns_and_answered_once_and_others_are_answered_meanwhile() {
    use kinara_protocol::envelope::{Decision, EventBatch};
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[limits]\nwriters = 1\n").await;
    // Whatever is put aside takes a while.
    world
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON quarantine FOR EACH ROW WHEN (NEW.what = 'decision') EXECUTE FUNCTION slow()",
        )
        .await;
    let mut hostile = Gateway::connect(&certificates, &broker, FOREIGN_GATEWAY, &[]).await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let decision =
        |n: u32| Decision { id: Uuid::from_u128(n.into()).as_bytes().to_vec(), ..Decision::default() };
    let batch = EventBatch {
        version: ENVELOPE_VERSION,
        name: Some(kinara_ingest::Name { gateway: FOREIGN_GATEWAY, buffer: 7, sequence: 0 }.into()),
        sealed_at_us: NOW_US,
        decisions: (0..256).map(decision).collect(),
        ..EventBatch::default()
    };
    hostile.publish(Leaf::Event, envelope::seal(&batch), Some((7, 0)));
    hostile.sent().await;
    let aside = "SELECT count(*) FROM quarantine WHERE what = 'decision'";
    until("decisions are taken", async || world.number(aside).await > 0).await;
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..5), Some((7, 0)));
    assert_eq!(done(&gateway.ack().await), (5, 0));
    assert!(world.number(aside).await < 128, "they had been taken before the batch beside them");
    let Some(ack::Outcome::Done(done)) = hostile.ack().await.outcome else { panic!("not done") };
    assert_eq!((done.quarantined, world.number(aside).await), (256, 256));
    bridge.stop().await;
}

#[tokio::test]
async fn what_a_hostile_gateway_sends_is_answered_and_a_neighbours_batch_beside_it_is_written() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "").await;
    let mut hostile = Gateway::connect(&certificates, &broker, FOREIGN_GATEWAY, &[]).await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let one = |seq: u32| {
        columns_of("bt:nobody", &[frame_of(EPOCH, seq, kinara_protocol::channel::HEART_RATE, &[700])])
    };
    let sealed = |sequence: u64, columns: envelope::DeviceFrames| {
        envelope::seal(&envelope_of(FOREIGN_GATEWAY, sequence, vec![columns]))
    };
    // A frame of 400,000 samples; too many of them; thousands of frames with no CRC that is right.
    for (sequence, samples) in [(0, 400_000), (1, 3_000_000)] {
        let mut columns = one(0);
        columns.series[0].counts[0] = samples;
        columns.series[0].intervals = vec![0, 1];
        columns.series[0].values.resize(samples as usize, 0);
        hostile.publish(Leaf::Batch, sealed(sequence, columns), Some((7, sequence)));
        hostile.sent().await;
    }
    let mut columns = columns_of("bt:nobody", &seconds(0..4_000));
    columns.crcs.fill(0);
    hostile.publish(Leaf::Batch, sealed(2, columns), Some((7, 2)));
    hostile.sent().await;
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..5), Some((7, 0)));
    assert_eq!(done(&gateway.ack().await), (5, 0));
    let mut answers = [0, 0];
    for _ in 0..3 {
        match hostile.ack().await.outcome.unwrap() {
            ack::Outcome::Done(done) => {
                assert_eq!(done.stored, 0);
                answers[0] += done.quarantined;
            }
            ack::Outcome::Refused(_) => answers[1] += 1,
            ack::Outcome::RetryAfter(retry) => panic!("{retry:?}"),
        }
    }
    assert_eq!(answers, [4_001, 1]);
    assert_eq!(world.number("SELECT count(*) FROM quarantine WHERE length(payload) > 26").await, 4_001);
    bridge.stop().await;
}

#[tokio::test]
async fn a_job_whose_bridge_died_of_it_was_an_attempt_and_is_dead_after_its_last() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let now_ms = NOW_US / 1_000;
    let item =
        format!(r#"[{{"source":"{HARDWARE}","epoch":9,"seq":1,"time":{now_ms},"type":"eda","value":2}}]"#);
    request(&world, Some(&item)).await;
    // As a bridge leaves it that dies of its last attempt.
    world
        .run(
            "UPDATE jobs._private_jobs SET attempts = max_attempts, locked_by = 'died',
               locked_at = now() - interval '10 minutes';
             UPDATE jobs._private_job_queues SET locked_by = 'died', locked_at = now() - interval '10 minutes'",
        )
        .await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[jobs]\npoll_s = 1\nsweep_s = 1\n").await;
    until("the job is not dead", async || {
        figures(&certificates).await.contains("\nkinara_bridge_jobs_dead 1\n")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.readings().await, 0);
    let dead = "SELECT count(*) FROM jobs._private_jobs WHERE attempts = max_attempts AND locked_at IS NULL";
    assert_eq!(world.number(dead).await, 1);
    bridge.stop().await;
}

#[tokio::test]
async fn a_clinic_that_asks_one_thing_is_not_behind_the_hundredth_of_others() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let third = Uuid::from_u128(0x3);
    world.run(&format!("INSERT INTO tenants (id, name, slug) VALUES ('{third}', 'Three', 'three')")).await;
    let insert = |tenant: Uuid| {
        format!(
            "INSERT INTO ingest_requests (tenant_id, digest, items, refused, told) VALUES ('{tenant}', '', 1, 0, '[]');"
        )
    };
    for tenant in [TENANT, OTHER_TENANT] {
        for _ in 0..50 {
            world.run(&insert(tenant)).await;
        }
    }
    world.run(&insert(third)).await;
    let place = format!(
        "SELECT place FROM (SELECT row_number() OVER (ORDER BY priority, run_at, id) AS place, payload->>'tenant' AS tenant
           FROM jobs._private_jobs) j WHERE tenant = '{third}'"
    );
    assert!(world.number(&place).await <= 3);
    // Each clinic's own stay in their order.
    let order = "SELECT count(*) FROM (SELECT id, lag(id) OVER (PARTITION BY payload->>'tenant' ORDER BY priority, run_at, id) AS before
                   FROM jobs._private_jobs) j WHERE before > id";
    assert_eq!(world.number(order).await, 0);
    drop((certificates, broker));
}
