//! Bad lines and odd brokers: a real Mosquitto behind a line that is slow, silent or cut, and whatever else may answer
//! at a broker's address.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kinara_gatewayd::desk::Actor;
use kinara_gatewayd::status::Snapshot;
use kinara_protocol::envelope::{self, Command, ENVELOPE_VERSION, Resend, command};
use kinara_protocol::topic::{self, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};

use super::air::{Wearable, air};
use super::bridge::{Bridge, Mood};
use super::broker::Broker;
use super::frames::GATEWAY;
use super::line::{Daemon, all_there, until};
use super::proxy::{FAST, Proxy};

/// Seconds in place of minutes.
const HASTE: &str = "ack_timeout_s = 2\nack_timeout_max_s = 20\nseal_after_s = 0.3\nbackoff_ms = 300\nkeep_alive_s = 5\n\
                     silence_s = 2\nconnect_timeout_s = 2\nstate_every_s = 1\n";

fn is_empty(now: &Snapshot) -> bool {
    (now.buffer.frames, now.buffer.batches) == (0, 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_takes_far_longer_than_the_keep_alive_gets_through_on_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let line = Proxy::start(broker.port).unwrap();
    line.shut(true);
    let wearable = Wearable::start(&air(dir.path()), 1, 0);
    let daemon = Daemon::start_on(dir.path(), line.port(), &[1], HASTE, "").await;
    wearable.produce_waveforms(800);
    until("the box holds the backlog", || wearable.is_drained()).await;
    line.rate(5_000);
    line.shut(false);
    until("it is connected", || daemon.board.now().uplink.connected).await;
    let began = Instant::now();
    until("the backlog is through", || all_there(&bridge, &wearable) && is_empty(&daemon.board.now())).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(8), "the line was not slow: {took:?}, {} bytes", line.up());
    assert_eq!(line.connections(), 1);
    {
        let seen = bridge.lock();
        assert!(seen.batches.values().all(|times| *times == 1), "{:?}", seen.batches);
        assert!(seen.states.iter().all(|state| state.online), "the broker was told that the box had gone");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_nothing_passes_is_given_up_and_the_next_one_drains() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let line = Proxy::start(broker.port).unwrap();
    let wearable = Wearable::start(&air(dir.path()), 1, 30);
    let daemon = Daemon::start_on(dir.path(), line.port(), &[1], HASTE, "").await;
    until("the first part is through", || all_there(&bridge, &wearable)).await;
    line.silent(true);
    wearable.produce_waveforms(300);
    until("it is noticed", || !daemon.board.now().uplink.connected).await;
    let trouble = daemon.board.now().uplink.trouble;
    assert!(trouble.starts_with("nothing has gone out or come in for "), "{trouble}");
    line.silent(false);
    until("the rest is through", || all_there(&bridge, &wearable) && is_empty(&daemon.board.now())).await;
    assert_eq!(bridge.lock().doubles, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_cut_in_every_batch_makes_batches_smaller_until_they_get_through() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let line = Proxy::start(broker.port).unwrap();
    line.rate(4_000);
    let wearable = Wearable::start(&air(dir.path()), 1, 0);
    let daemon = Daemon::start_on(dir.path(), line.port(), &[1], HASTE, "").await;
    until("it is connected", || daemon.board.now().uplink.connected).await;
    let sizes = |bridge: &Bridge| bridge.lock().batches.len();
    // Cut while the batch of this turn is on its way: nothing of it counts.
    for _ in 0..3 {
        let before = line.up();
        wearable.produce_waveforms(200);
        until("a batch is on its way", || line.up() > before + 4_000).await;
        line.cut();
        until("it is connected again", || daemon.board.now().uplink.connected).await;
    }
    let before = sizes(&bridge);
    line.rate(FAST);
    wearable.produce_waveforms(800);
    until("all is through", || all_there(&bridge, &wearable) && is_empty(&daemon.board.now())).await;
    assert!(sizes(&bridge) > before + 4, "{} batches: they are as big as ever", sizes(&bridge));
    assert_eq!(bridge.lock().doubles, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_does_not_take_for_its_size_is_left_out_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Silent;
    let wearable = Wearable::start(&air(dir.path()), 1, 0);
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], HASTE, "").await;
    wearable.produce_waveforms(200);
    until("a big batch is sealed", || wearable.is_drained() && daemon.board.now().buffer.batches > 0).await;
    broker.kill();
    broker.limit("", "max_packet_size 2000");
    bridge.lock().mood = Mood::Done;
    bridge.lock().states.clear();
    broker.start_again();
    until("it is told", || daemon.board.now().alerts.contains_key("broker_limit")).await;
    let before = bridge.lock().frames.len();
    wearable.produce(40);
    until("what is small goes on", || bridge.lock().frames.len() >= before + 40).await;
    until("so does state", || bridge.lock().states.iter().any(|state| state.online)).await;
    let now = daemon.board.now();
    assert!(now.uplink.connected && now.buffer.batches > 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_qos_0_that_retains_nothing_is_served_as_it_wants() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    broker.kill();
    let free = broker.limit("max_qos 0", "retain_available false");
    broker.start_again();
    let bridge = Bridge::start(free);
    let wearable = Wearable::start(&air(dir.path()), 1, 100);
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], HASTE, "").await;
    until("all is through", || all_there(&bridge, &wearable) && is_empty(&daemon.board.now())).await;
    until("state is told", || bridge.lock().states.iter().any(|state| state.online)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cloud_could_not_read_is_tried_again_after_a_restart_and_when_a_person_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Refuse;
    let wearable = Wearable::start(&air(dir.path()), 1, 30);
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], HASTE, "").await;
    until("it is parked", || wearable.is_drained() && daemon.board.now().buffer.parked > 0).await;
    let parked = daemon.desk.parked().await.unwrap();
    assert_eq!(parked[0].reason, "cannot read it");
    let by = Actor::Operator { name: "root".to_owned() };
    let payload = daemon.desk.parked_payload(&by, parked[0].name).await.unwrap().unwrap();
    assert_eq!(payload.len() as u64, parked[0].bytes);
    assert!(daemon.desk.retry_parked(&by).await.unwrap() > 0);
    until("it is refused and parked again", || daemon.board.now().buffer.parked > 0).await;
    bridge.lock().mood = Mood::Done;
    daemon.stop().await;
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], HASTE, "").await;
    until("the newer bridge reads it", || {
        let now = daemon.board.now();
        now.uplink.connected && now.buffer.parked == 0 && is_empty(&now) && all_there(&bridge, &wearable)
    })
    .await;
    daemon.stop().await;
}

/// What a bridge says when it has subscribed.
async fn subscribed(port: u16) {
    let (client, mut events) = AsyncClient::new(MqttOptions::new("newer", "127.0.0.1", port), 8);
    let resend =
        Command { version: ENVELOPE_VERSION, id: 0, command: Some(command::Command::Resend(Resend {})) };
    let topic = topic::of(GATEWAY, Leaf::Command);
    client.publish(topic, QoS::AtLeastOnce, false, envelope::seal(&resend)).await.unwrap();
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::PubAck(_))) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_bridge_gets_what_the_last_one_could_not_read_as_soon_as_it_has_subscribed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Refuse;
    let wearable = Wearable::start(&air(dir.path()), 1, 30);
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], HASTE, "").await;
    until("it is parked", || wearable.is_drained() && daemon.board.now().buffer.parked > 0).await;
    bridge.lock().mood = Mood::Done;
    subscribed(broker.port).await;
    until("it is read", || daemon.board.now().buffer.parked == 0 && is_empty(&daemon.board.now())).await;
    // One that is as old, and subscribes again and again, does not get it each time.
    bridge.lock().mood = Mood::Refuse;
    wearable.produce(20);
    until("it is parked", || wearable.is_drained() && daemon.board.now().buffer.parked > 0).await;
    subscribed(broker.port).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let published: u32 = bridge.lock().batches.values().sum();
    for _ in 0..3 {
        subscribed(broker.port).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bridge.lock().batches.values().sum::<u32>(), published);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_bridge_that_comes_soon_after_a_sending_gets_what_is_parked_when_the_pause_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Refuse;
    let wearable = Wearable::start(&air(dir.path()), 1, 30);
    let uplink = format!("{HASTE}parked_pause_s = 5\n");
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], &uplink, "").await;
    let is_parked = || daemon.board.now().buffer.parked > 0;
    until("it is parked", || wearable.is_drained() && is_parked()).await;
    subscribed(broker.port).await;
    let sent_again = || bridge.lock().batches.values().any(|times| *times > 1);
    until("it is sent again, refused, and parked again", || sent_again() && is_parked()).await;
    bridge.lock().mood = Mood::Done;
    subscribed(broker.port).await;
    until("it is read", || !is_parked() && is_empty(&daemon.board.now())).await;
    assert!(all_there(&bridge, &wearable));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_was_offline_when_a_newer_bridge_subscribed_sends_what_is_parked_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Refuse;
    let wearable = Wearable::start(&air(dir.path()), 1, 30);
    let daemon = Daemon::start_on(dir.path(), broker.port, &[1], HASTE, "").await;
    until("it is parked", || wearable.is_drained() && daemon.board.now().buffer.parked > 0).await;
    broker.kill();
    until("it is offline", || !daemon.board.now().uplink.connected).await;
    bridge.lock().mood = Mood::Done;
    broker.start_again();
    until("it is read", || daemon.board.now().buffer.parked == 0 && is_empty(&daemon.board.now())).await;
    daemon.stop().await;
}

/// Something at a broker's address: for each connection it hears the greeting and says this.
fn stand_in(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || say(stream, answer));
        }
    });
    port
}

fn say(mut stream: TcpStream, answer: &[u8]) {
    let mut heard = [0; 1_024];
    let _ = stream.read(&mut heard);
    let _ = stream.write_all(answer);
    if answer == SILENT {
        // It stays until the other side has gone.
        while stream.read(&mut heard).is_ok_and(|count| count > 0) {}
    }
}

const SILENT: &[u8] = b"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_else_answers_at_the_brokers_address_is_named_so_that_a_clinic_can_act() {
    let cases: [(&[u8], &[&str]); 8] = [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n",
            &["something else", "login page of the network"],
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", &["something else", "SSH"]),
        (&[0x20, 2, 0, 1], &["no MQTT 5 broker", "3.1.1"]),
        (&[0x20, 3, 0, 0x84, 0], &["no MQTT 5 broker"]),
        (&[0x20, 3, 0, 0x87, 0], &["refuses this gateway", "enrolled"]),
        (&[0x20, 3, 0, 0x97, 0], &["refuses this gateway", "limit"]),
        (
            &[
                0x20, 0x10, 0, 0x9d, 13, 0x1c, 0, 10, b'b', b'2', b'.', b'e', b'x', b'a', b'm', b'p', b'l',
                b'e',
            ],
            &["moved", "b2.example"],
        ),
        (SILENT, &["says nothing"]),
    ];
    for (answer, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start_on(dir.path(), stand_in(answer), &[], HASTE, "").await;
        until("it is told", || !daemon.board.now().uplink.trouble.is_empty()).await;
        let trouble = daemon.board.now().uplink.trouble;
        for word in words {
            assert!(trouble.contains(word), "{answer:?}: {trouble}");
        }
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_cannot_be_looked_up_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_at(dir.path(), "no-such-broker.invalid", 1, &[], HASTE, "").await;
    until("it is told", || !daemon.board.now().uplink.trouble.is_empty()).await;
    let trouble = daemon.board.now().uplink.trouble;
    assert!(trouble.contains("no-such-broker.invalid") && trouble.contains("looked up"), "{trouble}");
    daemon.stop().await;
}
