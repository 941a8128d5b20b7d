//! The bridge on a real Mosquitto and a real PostgreSQL, spoken to as gateways speak.

use std::path::Path;
use std::time::Duration;

use crate::ground::*;
use crate::support::*;
use kinara_cloud_bridge::config::Config;
use kinara_protocol::envelope::{
    self, DeviceState, ENVELOPE_VERSION, Live, LiveDevice, LiveValue, State, TenantLive, ack, command,
};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_test_postgres::Options;
use rumqttc::v5::Event;
use rumqttc::v5::mqttbytes::v5::Packet;
use uuid::Uuid;

#[tokio::test]
async fn a_batch_is_acknowledged_by_name_and_digest_after_its_commit() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "").await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let first = payload(GATEWAY, 3, 0..5);
    gateway.publish(Leaf::Batch, first.clone(), Some((7, 3)));
    let ack = gateway.ack().await;
    assert_eq!(done(&ack), (5, 0));
    assert_eq!(world.readings().await, 25);
    assert_eq!(ack.sha256, envelope::digest(&first));
    let name = ack.name.unwrap();
    assert_eq!((name.buffer, name.sequence, name.gateway), (7, 3, GATEWAY.as_bytes().to_vec()));
    assert!(!ack.event);
    // Again: the same answer, and nothing twice.
    gateway.publish(Leaf::Batch, first, Some((7, 3)));
    assert_eq!(done(&gateway.ack().await), (0, 5));
    assert_eq!(world.readings().await, 25);
    // What cannot be read is refused by the name in its properties.
    gateway.publish(Leaf::Batch, b"not a batch".to_vec(), Some((7, 4)));
    let ack = gateway.ack().await;
    assert!(matches!(ack.outcome, Some(ack::Outcome::Refused(_))));
    assert_eq!(ack.name.unwrap().sequence, 4);
    // Nor may a gateway speak for another.
    gateway.publish(Leaf::Batch, payload(SECOND_GATEWAY, 0, 0..1), Some((7, 5)));
    assert!(matches!(gateway.ack().await.outcome, Some(ack::Outcome::Refused(_))));
    bridge.stop().await;
}

#[tokio::test]
async fn batches_are_taken_while_a_step_beside_a_migration_waits_for_a_dump() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    world
        .run("DROP INDEX quarantine_age; DELETE FROM kinara.online_steps WHERE name = 'quarantine_age'")
        .await;
    let admin_url = world.server.superuser_url("test_0");
    let (dump, connection) = tokio_postgres::connect(&admin_url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM quarantine")
        .await
        .unwrap();
    let admin = format!("admin_url = '{admin_url}'\n");
    let bridge = Bridge::start_with(&world, &certificates, &broker, &admin, "").await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..5), Some((7, 0)));
    assert_eq!(done(&gateway.ack().await), (5, 0));
    let steps = "SELECT count(*) FROM kinara.online_steps WHERE name = 'quarantine_age'";
    assert_eq!(world.number(steps).await, 0);
    dump.batch_execute("COMMIT").await.unwrap();
    until("the step is done", async || world.number(steps).await == 1).await;
    bridge.stop().await;
}

#[tokio::test]
async fn with_the_database_away_batches_are_sent_back_for_later() {
    // A durable server: this one crashes.
    let (mut world, certificates, broker) = ground(Options::new()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "").await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    world.server.kill();
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..5), Some((7, 0)));
    let ack = gateway.ack().await;
    let Some(ack::Outcome::RetryAfter(retry)) = ack.outcome else { panic!("{ack:?}") };
    assert!((1..=60).contains(&retry.seconds));
    world.server.restart().unwrap();
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..5), Some((7, 0)));
    assert_eq!(done(&gateway.ack().await), (5, 0));
    bridge.stop().await;
}

#[tokio::test]
async fn a_gateway_learns_the_time_and_what_it_should_be_and_its_state_is_kept() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[jobs]\nconfig_s = 1\n").await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let config = gateway.next(&topic::of(GatewayId(GATEWAY), Leaf::Config)).await;
    let config: envelope::Config = envelope::open(&config.payload).unwrap();
    assert_eq!(config.roster.len(), 2);
    assert_eq!(config.roster[0].hardware_id, HARDWARE);
    assert!(config.roster[0].consent_given && config.config_version > 0);
    // Who wears nothing now is known as well: somebody at the box may give them a device.
    assert_eq!((config.roster[1].hardware_id.as_str(), config.roster[1].consent_given), ("", true));
    for (buffer, previous_buffer, store_id) in [(1, 0, 5), (2, 1, 5), (3, 2, 6), (4, 1, 6)] {
        let state = State {
            version: ENVELOPE_VERSION,
            online: true,
            software: "0.1.0".to_owned(),
            buffer,
            previous_buffer,
            store_id,
            buffered_frames: 42,
            time_request: 99,
            devices: vec![envelope::DeviceState {
                hardware_id: HARDWARE.to_owned(),
                connected: true,
                rssi_dbm: -60,
                battery_percent: 87,
                worn: 1,
                firmware: "1.2.3".to_owned(),
                epoch: EPOCH.0 + (buffer - 1) / 2,
                delivered: Some(envelope::Delivered {
                    epoch: EPOCH.0 + (buffer - 1) / 2,
                    seq_ranges: vec![0, buffer as u32],
                }),
                ..Default::default()
            }],
            ..State::default()
        };
        gateway.publish(Leaf::State, envelope::seal(&state), None);
        let time = loop {
            let command = gateway.next(&topic::of(GatewayId(GATEWAY), Leaf::Command)).await;
            let command: envelope::Command = envelope::open(&command.payload).unwrap();
            match command.command {
                Some(command::Command::Time(time)) => break time,
                Some(command::Command::Resend(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((time.nonce, time.utc_us), (99, NOW_US));
        // The next one would push it out as long as it waits.
        let written = format!("SELECT count(*) FROM gateway_buffers WHERE buffer = {buffer}");
        until("a state was not written", async || world.number(&written).await == 1).await;
    }
    // Two states told of each of two epochs.
    let runs = "SELECT string_agg(epoch::text || ' ' || firmware, ', ' ORDER BY epoch) FROM device_firmware";
    assert_eq!(world.text(runs).await, format!("{} 1.2.3, {} 1.2.3", EPOCH.0, EPOCH.0 + 1));
    // What was acknowledged is noted once an hour.
    let delivered =
        "SELECT string_agg(epoch::text || ' ' || seqs, ', ' ORDER BY epoch) FROM gateway_delivered";
    assert_eq!(world.text(delivered).await, format!("{} {{[0,1)}}, {} {{[0,3)}}", EPOCH.0, EPOCH.0 + 1));
    // The third has another database, the fourth forgot what came after the first.
    let broken = "SELECT string_agg(buffer::text, ' ' ORDER BY buffer) FROM gateway_buffers WHERE broke_at IS NOT NULL";
    assert_eq!(world.text(broken).await, "3 4");
    let state =
        world.text(&format!("SELECT state->>'buffered_frames' FROM gateways WHERE id = '{GATEWAY}'")).await;
    assert_eq!(state, "42");
    let device = "SELECT battery_percent || ' ' || worn || ' ' || firmware_version || ' ' || (link->>'rssi_dbm') FROM devices";
    assert_eq!(world.text(device).await, "87 true 1.2.3 -60");
    bridge.stop().await;
}

#[tokio::test]
async fn live_values_reach_their_own_clinic_and_no_other() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[limits]\nlive_cache_s = 0\n").await;
    let topics = [topic::tenant_live(TENANT), topic::tenant_live(OTHER_TENANT)];
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &topics).await;
    let foreign = Gateway::connect(&certificates, &broker, FOREIGN_GATEWAY, &[]).await;
    let mut foreign = foreign;
    let live = |seq| {
        envelope::seal(&Live {
            version: ENVELOPE_VERSION,
            devices: vec![LiveDevice {
                hardware_id: HARDWARE.to_owned(),
                epoch: EPOCH.0,
                values: vec![LiveValue { channel: 1, value: vec![700], utc_us: NOW_US, seq, index: 0 }],
            }],
        })
    };
    // Another clinic's gateway claims the device first: stopped.
    foreign.publish(Leaf::Live, live(1), None);
    while !matches!(foreign.events.poll().await.unwrap(), Event::Incoming(Packet::PubAck(_))) {}
    gateway.publish(Leaf::Live, live(2), None);
    let shown: TenantLive = envelope::open(&gateway.next(&topics[0]).await.payload).unwrap();
    let device = &shown.devices[0];
    assert_eq!(device.user_id, USER.as_bytes());
    assert_eq!(device.live.as_ref().unwrap().values[0].seq, 2);
    // Consent withdrawn: nothing more is shown.
    world.run(&format!("UPDATE consents SET withdrawn_at = to_timestamp({})", NOW_US / 1_000_000 - 1)).await;
    gateway.publish(Leaf::Live, live(3), None);
    gateway.publish(Leaf::Batch, payload(GATEWAY, 0, 0..1), Some((7, 0)));
    gateway.ack().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.run("UPDATE consents SET withdrawn_at = NULL").await;
    gateway.publish(Leaf::Live, live(4), None);
    let shown: TenantLive = envelope::open(&gateway.next(&topics[0]).await.payload).unwrap();
    assert_eq!(shown.devices[0].live.as_ref().unwrap().values[0].seq, 4);
    assert!(!gateway.kept.iter().any(|publish| publish.topic == topics[1].as_bytes()));
    bridge.stop().await;
}

#[tokio::test]
async fn a_box_is_told_all_of_its_clinic_at_once_and_a_version_is_a_content() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let often = "[jobs]\nconfig_s = 1\n";
    let bridge = Bridge::start(&world, &certificates, &broker, often).await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let topic = topic::of(GatewayId(GATEWAY), Leaf::Config);
    let first: envelope::Config = envelope::open(&gateway.next(&topic).await.payload).unwrap();
    assert_eq!(first.clinic_name, "One");
    // Another bridge, the same content: the same version.
    bridge.stop().await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[jobs]\nconfig_s = 3600\n").await;
    let again: envelope::Config = envelope::open(&gateway.next(&topic).await.payload).unwrap();
    assert_eq!(again, first);
    // What people change reaches the box without waiting for the next look.
    let member = |role: &str, id: u32| {
        format!(
            "INSERT INTO members (id, tenant_id, email, role, password_hash)
               VALUES ('{0}', '{TENANT}', '{id}@one.example', '{role}', 'x');
             INSERT INTO staff_pins (member_id, tenant_id, name, verifier, set_at)
               VALUES ('{0}', '{TENANT}', 'Staff {id}', '$argon2id$v=19$m=1,t=1,p=1$x$y', now());",
            Uuid::from_u128(id.into())
        )
    };
    let second = NOW_US / 1_000_000;
    world
        .run(&format!(
            "BEGIN;
             {} {}
             INSERT INTO users (id, tenant_id, display_name, external_id, provisional)
               VALUES ('{FOREIGN_GATEWAY}', '{TENANT}', 'New', 'n7', true);
             INSERT INTO consent_texts (tenant_id, version, language, text, sha256, created_at) VALUES
               ('{TENANT}', '1', 'en', 'Old', '', to_timestamp({second})), ('{TENANT}', '2', 'en', 'New', '', to_timestamp({second} + 1)),
               ('{TENANT}', '1', 'hi', 'Hindi', '', to_timestamp({second})), ('{OTHER_TENANT}', '9', 'en', 'Theirs', '', now());
             INSERT INTO bonds (id, tenant_id, gateway_id, hardware_id, adapter, how, since)
               VALUES ('{GATEWAY}', '{TENANT}', '{GATEWAY}', '{HARDWARE}', '\\x010203040506', 'label', now());
             INSERT INTO introductions (tenant_id, hardware_id, from_gateway, to_gateway, secret, expires_at)
               VALUES ('{TENANT}', '{HARDWARE}', '{GATEWAY}', '{SECOND_GATEWAY}', substring(sha256('k') for 16), to_timestamp({second} + 60));
             INSERT INTO revocations (tenant_id, bond_id, hardware_id, gateway_id, adapter, expires_at)
               VALUES ('{TENANT}', '{GATEWAY}', '{HARDWARE}', '{GATEWAY}', '\\x010203040506', to_timestamp({second} + 60));
             COMMIT;",
            member("clinician", 71),
            member("viewer", 72),
        ))
        .await;
    let told: envelope::Config = envelope::open(&gateway.next(&topic).await.payload).unwrap();
    assert!(told.config_version > first.config_version);
    let texts: Vec<&str> = told.consent_texts.iter().map(|text| text.text.as_str()).collect();
    assert_eq!(texts, ["New", "Hindi"]);
    // A viewer may do nothing at a box.
    assert_eq!(told.staff.iter().map(|staff| staff.name.as_str()).collect::<Vec<_>>(), ["Staff 71"]);
    let new = told.roster.iter().find(|entry| entry.provisional).unwrap();
    assert_eq!((new.display_name.as_str(), new.external_id.as_str()), ("New", "n7"));
    assert!(told.introductions[0].admits && told.introductions[0].secret.len() == 16);
    assert_eq!(told.revocations[0].bond, [1, 2, 3, 4, 5, 6]);
    let second_topic = topic::of(GatewayId(SECOND_GATEWAY), Leaf::Config);
    let mut other =
        Gateway::connect(&certificates, &broker, SECOND_GATEWAY, std::slice::from_ref(&second_topic)).await;
    let heard = loop {
        // What the broker kept may be from before.
        let heard: envelope::Config = envelope::open(&other.next(&second_topic).await.payload).unwrap();
        if !heard.introductions.is_empty() {
            break heard;
        }
    };
    assert!(!heard.introductions[0].admits && heard.revocations.is_empty());
    assert_eq!(heard.introductions[0].secret, told.introductions[0].secret);
    // One that is retired is told nothing any more, and what the broker kept for it and of it is gone.
    let said = topic::of(GatewayId(SECOND_GATEWAY), Leaf::State);
    let state = State { version: ENVELOPE_VERSION, online: true, ..State::default() };
    other
        .client
        .try_publish(said.clone(), rumqttc::v5::mqttbytes::QoS::AtLeastOnce, true, envelope::seal(&state))
        .unwrap();
    other.sent().await;
    let mut late =
        Gateway::connect(&certificates, &broker, FOREIGN_GATEWAY, std::slice::from_ref(&said)).await;
    assert!(!late.next(&said).await.payload.is_empty());
    world.run(&format!("UPDATE gateways SET retired_at = now() WHERE id = '{SECOND_GATEWAY}'")).await;
    while !other.next(&second_topic).await.payload.is_empty() {}
    while !late.next(&said).await.payload.is_empty() {}
    bridge.stop().await;
}

#[tokio::test]
async fn decisions_are_taken_over_the_broker_once_the_box_has_said_its_key() {
    use kinara_protocol::envelope::{Actor, Decision, EventBatch, WearerAdded, decision::What};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let (world, certificates, broker) = ground(Options::fast()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[jobs]\nupkeep_s = 1\n").await;
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &[]).await;
    let key = Ed25519KeyPair::from_seed_unchecked(&[5; 32]).unwrap();
    let mut decision = Decision {
        id: Uuid::from_u128(0x91).as_bytes().to_vec(),
        at_utc_us: NOW_US,
        actor: Some(Actor { kind: "staff".into(), name: "N".into(), member_id: Vec::new() }),
        what: Some(What::WearerAdded(WearerAdded {
            user_id: Uuid::from_u128(0x92).as_bytes().to_vec(),
            display_name: "Patient".into(),
        })),
        ..Decision::default()
    };
    decision.signature = key.sign(&decision.signed_bytes(GATEWAY)).as_ref().to_vec();
    let batch = EventBatch {
        version: ENVELOPE_VERSION,
        name: Some(kinara_ingest::Name { gateway: GATEWAY, buffer: 7, sequence: 0 }.into()),
        sealed_at_us: NOW_US,
        decisions: vec![decision],
        ..EventBatch::default()
    };
    // The state comes after the decision: it waits, and the batch is acknowledged all the same.
    gateway.publish(Leaf::Event, envelope::seal(&batch), Some((7, 0)));
    assert!(matches!(gateway.ack().await.outcome, Some(ack::Outcome::Done(done)) if done.quarantined == 1));
    let state = State {
        version: ENVELOPE_VERSION,
        online: true,
        signing_key: key.public_key().as_ref().to_vec(),
        adapters: vec![envelope::AdapterState {
            name: "hci0".into(),
            address: vec![0xaa, 1, 2, 3, 4, 5],
            slots: 8,
            links: 1,
        }],
        ..State::default()
    };
    gateway.publish(Leaf::State, envelope::seal(&state), None);
    let taken = async {
        while world.number("SELECT count(*) FROM users WHERE provisional").await < 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = taken => {}
        // Nothing is sent while nobody looks after the connection.
        _ = gateway.next("nowhere") => unreachable!("nothing is published there"),
    }
    let adapter = format!("SELECT state->'adapters'->0->>'address' FROM gateways WHERE id = '{GATEWAY}'");
    assert_eq!(world.text(&adapter).await, "AA:01:02:03:04:05");
    bridge.stop().await;
}

/// The text of `/metrics`.
#[tokio::test]
async fn the_nights_work_is_done_by_the_schedule_and_a_night_that_was_slept_through_is_made_up_for() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    world.write(&[batch_of(GATEWAY, &seconds(0..60))]).await;
    world
        .run(
            "DELETE FROM ts.readings WHERE seq = 7;
             INSERT INTO jobs._private_known_crontabs (identifier, known_since, last_execution)
               VALUES ('nightly', now() - interval '1 day', now() - interval '2 hours')",
        )
        .await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[jobs]\nnightly = '0 * * * *'\n").await;
    let alerts = "SELECT count(*) FROM alerts WHERE kind = 'rows' AND withdrawn_at IS NULL";
    until("the missing reading is no alert", async || world.number(alerts).await == 1).await;
    until("the night's work is not done", async || {
        world.number("SELECT count(*) FROM jobs._private_jobs").await == 0
    })
    .await;
    assert!(figures(&certificates).await.contains("\nkinara_bridge_differing_hours 1\n"));
    bridge.stop().await;
}

#[tokio::test]
async fn what_came_over_http_is_written_by_a_job_and_a_job_that_cannot_be_done_waits_for_an_operator() {
    // A durable server: this one crashes.
    let (mut world, certificates, broker) = ground(Options::new()).await;
    let bridge = Bridge::start(&world, &certificates, &broker, "[jobs]\npoll_s = 1\nsweep_s = 1\n").await;
    let now_ms = NOW_US / 1_000;
    let item = |seq: u32| {
        format!(r#"[{{"source":"{HARDWARE}","epoch":9,"seq":{seq},"time":{now_ms},"type":"eda","value":2}}]"#)
    };
    request(&world, Some(&item(0))).await;
    let waiting = "SELECT count(*) FROM ingest_requests WHERE finished_at IS NULL";
    until("the request was not written", async || world.number(waiting).await == 0).await;
    assert_eq!(
        (world.readings().await, world.number("SELECT count(*) FROM jobs._private_jobs").await),
        (1, 0)
    );

    // One that has used up its attempts is dead: counted, and not tried again.
    world.run("ALTER TABLE ingest_requests DISABLE TRIGGER take").await;
    let bad = request(&world, None).await;
    world.run("ALTER TABLE ingest_requests ENABLE TRIGGER take").await;
    world
        .run(&format!(
            "SELECT jobs.add_job('take_request', json_build_object('id', '{bad}'), max_attempts => 1,
               queue_name => 'tenant:{TENANT}')"
        ))
        .await;
    until("the dead job is not counted", async || {
        figures(&certificates).await.contains("\nkinara_bridge_jobs_dead 1\n")
    })
    .await;
    // It takes no place of its clinic's others, until it is revived.
    let given_up = "SELECT count(*) FROM ingest_requests WHERE given_up";
    until("the dead request counts as waiting", async || world.number(given_up).await == 1).await;
    let error = world.text("SELECT last_error FROM jobs._private_jobs").await;
    assert!(error.contains("cannot be read"), "{error}");
    // Its clinic's queue goes on without it.
    request(&world, Some(&item(1))).await;
    until("a dead job stops its clinic", async || world.readings().await == 2).await;
    // An operator mends it and says so.
    let good =
        kinara_ingest::items::read(item(3).as_bytes(), kinara_ingest::items::Form::Json, None).unwrap();
    let good = kinara_ingest::items::pack(&good.batches);
    world
        .admin
        .execute("UPDATE ingest_requests SET payload = $2 WHERE id = $1", &[&bad, &good])
        .await
        .unwrap();
    let text = format!(
        "[database]\nurl = '{}'\n[broker]\n{}",
        world.server.url("bridge", "bridge", "test_0"),
        certificates.section("bridge", broker.port)
    );
    let config = Config::parse(&text, Path::new("bridge.toml")).unwrap();
    let queue = kinara_cloud_bridge::jobs::Queue::new(&config).unwrap();
    assert_eq!(queue.revive().await.unwrap(), 1);
    until("the revived job was not done", async || world.readings().await == 3).await;
    until("no job is dead", async || queue.count().await.unwrap() == (0, 0)).await;

    // The database goes and comes back: the queue is worked on again.
    world.server.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.server.restart().unwrap();
    let (admin, connection) =
        tokio_postgres::connect(&world.server.superuser_url("test_0"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    world.admin = admin;
    request(&world, Some(&item(4))).await;
    until("the queue was left alone", async || world.number(waiting).await == 0).await;

    // The night: what is missing is found, and what was erased stays so.
    world
        .run(&format!(
            "DELETE FROM ts.readings WHERE seq = 1; INSERT INTO tombstones (tenant_id, user_id) VALUES ('{TENANT}', '{USER}')"
        ))
        .await;
    until("nobody was erased", async || world.readings().await == 0).await;
    world.run("SELECT jobs.add_job('nightly', '{}'::json)").await;
    until("the difference is not shown", async || {
        figures(&certificates).await.contains("\nkinara_bridge_differing_hours 1\n")
    })
    .await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_sensor_whose_gateway_writes_its_address_in_small_letters_is_shown_and_linked() {
    let (world, certificates, broker) = ground(Options::fast()).await;
    let (row, sensor) = (Uuid::from_u128(0x77), "bt:C0:00:00:00:00:01");
    world
        .run(&format!(
            "INSERT INTO hardware (id, hardware_id) VALUES ('{row}', '{sensor}');
             INSERT INTO devices (id, tenant_id, hardware_id) VALUES ('{row}', '{TENANT}', '{sensor}');
             INSERT INTO device_assignments (hardware_id, tenant_id, user_id, device_id, consent_id, valid_from)
               VALUES ('{row}', '{TENANT}', '{USER}', '{row}', '{USER}', to_timestamp({}))",
            BOOT_US / 1_000_000
        ))
        .await;
    let bridge = Bridge::start(&world, &certificates, &broker, "").await;
    let topics = [topic::tenant_live(TENANT)];
    let mut gateway = Gateway::connect(&certificates, &broker, GATEWAY, &topics).await;
    let hardware_id = sensor.to_lowercase();
    let value = LiveValue { channel: 1, value: vec![700], utc_us: NOW_US, seq: 1, index: 0 };
    let live = LiveDevice { hardware_id: hardware_id.clone(), epoch: EPOCH.0, values: vec![value] };
    gateway.publish(
        Leaf::Live,
        envelope::seal(&Live { version: ENVELOPE_VERSION, devices: vec![live] }),
        None,
    );
    let shown: TenantLive = envelope::open(&gateway.next(&topics[0]).await.payload).unwrap();
    assert_eq!(shown.devices[0].device_id, row.as_bytes());
    let state = State {
        version: ENVELOPE_VERSION,
        online: true,
        devices: vec![DeviceState {
            hardware_id,
            connected: true,
            buffered_frames: 7,
            ..DeviceState::default()
        }],
        ..State::default()
    };
    let mut second = Gateway::connect(&certificates, &broker, SECOND_GATEWAY, &[]).await;
    second.publish(Leaf::State, envelope::seal(&state), None);
    second.sent().await;
    until("the sensor has no link", async || {
        world.number("SELECT count(*) FROM devices WHERE (link->>'connected')::bool").await == 1
    })
    .await;
    // As gaps are settled by it.
    let held = format!(
        "SELECT count(*) FROM gateways, jsonb_array_elements(state->'devices') d WHERE d->>'hardware_id' = '{sensor}'"
    );
    assert_eq!(world.number(&held).await, 1);
    bridge.stop().await;
}
