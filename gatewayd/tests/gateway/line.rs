//! The whole line: wearables on the air, the daemon, a real broker, and a bridge that acknowledges.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinara_clock::SystemClock;
use kinara_gatewayd::config::Config;
use kinara_gatewayd::daemon;
use kinara_gatewayd::desk::Desk;
use kinara_gatewayd::status::Board;
use kinara_protocol::envelope::State;
use kinara_protocol::frame::FrameRef;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::air::{SECRET, Wearable, air};
use super::bridge::{Bridge, Mood};
use super::broker::Broker;
use super::frames::GATEWAY;
use super::full_disk::SmallDisk;

pub struct Daemon {
    stop: CancellationToken,
    task: JoinHandle<()>,
    pub board: Board,
    pub desk: Desk,
}

impl Daemon {
    pub async fn start(dir: &Path, port: u16, wearables: &[u64], extra: &str) -> Self {
        let pace = "ack_timeout_s = 0.5\nack_timeout_max_s = 2\nseal_after_s = 0.3\nbackoff_ms = 300\n";
        Self::start_on(dir, port, wearables, pace, extra).await
    }

    /// With an uplink like this.
    pub async fn start_on(dir: &Path, port: u16, wearables: &[u64], uplink: &str, extra: &str) -> Self {
        Self::start_at(dir, "127.0.0.1", port, wearables, uplink, extra).await
    }

    /// With a broker elsewhere.
    pub async fn start_at(
        dir: &Path,
        host: &str,
        port: u16,
        wearables: &[u64],
        uplink: &str,
        extra: &str,
    ) -> Self {
        let mut bound = String::new();
        for id in wearables {
            let section = format!("hardware_id = \"kinara:{id:016x}\"\nlabel_secret = \"{SECRET}\"\n");
            bound.push_str("[[wearable]]\n");
            bound.push_str(&section);
        }
        let text = format!(
            "gateway_id = \"{GATEWAY}\"\nname = \"A\"\ndata_dir = \"{data}\"\n\
             [uplink]\nhost = \"{host}\"\nport = {port}\ntls = false\n{uplink}\n\
             [clock]\ntrust_system = true\n[infer]\nenabled = false\n[local]\nlisten = \"127.0.0.1:0\"\n\
             page_listen = \"127.0.0.1:0\"\n\
             [radio]\nair_dir = \"{air}\"\nrequest_timeout_s = 1\nresend_after_ms = 100\nscan_every_ms = 50\n\
             {extra}\n{bound}",
            data = dir.join("data").display(),
            air = air(dir).display(),
        );
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        let stop = CancellationToken::new();
        let (ready, desk) = oneshot::channel();
        let stopper = stop.clone();
        let task = tokio::spawn(async move {
            daemon::run(config, Arc::new(SystemClock), stopper, |desk| {
                ready.send(desk).unwrap();
            })
            .await
            .unwrap();
        });
        let desk = desk.await.unwrap();
        Self { stop, task, board: desk.board().clone(), desk }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The bridge has exactly what the wearable logged, byte for byte.
pub fn all_there(bridge: &Bridge, wearable: &Wearable) -> bool {
    let seen = bridge.lock();
    let hardware = format!("kinara:{:016x}", wearable.lock().factory_id);
    wearable.log().iter().all(|frame| {
        let header = FrameRef::parse(frame).unwrap().header();
        seen.frames.get(&(hardware.clone(), header.epoch.0, header.seq)).is_some_and(|bytes| bytes == frame)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wearables_log_goes_through_to_the_bridge_once_and_may_then_be_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa1, 500);
    wearable.boot();
    wearable.produce(40);
    let daemon =
        Daemon::start(dir.path(), broker.port, &[0xa1], "[live]\nalways = true\nevery_ms = 200\n").await;
    until("the log is drained", || wearable.is_drained()).await;
    until("the bridge has it", || all_there(&bridge, &wearable)).await;
    wearable.produce(3);
    until("new frames follow", || all_there(&bridge, &wearable) && wearable.is_drained()).await;
    until("nothing is kept any more", || {
        let buffer = daemon.board.now().buffer;
        (buffer.frames, buffer.batches) == (0, 0)
    })
    .await;
    let device = daemon.board.now().devices.into_values().next().unwrap();
    assert_eq!((device.battery_percent, device.worn, device.buffered_frames), (Some(77), Some(true), 0));
    daemon.stop().await;
    until("it says goodbye", || bridge.lock().states.last().is_some_and(|state| !state.online)).await;
    let seen = bridge.lock();
    assert_eq!(seen.doubles, 0);
    assert!(seen.batches.values().all(|times| *times == 1));
    assert!(seen.states.iter().any(|state| state.online && state.clock_source == "trusted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_lose_shuffle_and_drop_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearables: Vec<Wearable> = (1..=3).map(|id| Wearable::start(&air(dir.path()), id, 600)).collect();
    wearables[0].lock().loses_every = 37;
    wearables[1].lock().shuffles = true;
    wearables[2].lock().drops_after = 150;
    let daemon = Daemon::start(dir.path(), broker.port, &[1, 2, 3], "").await;
    for wearable in &wearables {
        until("the log is drained", || wearable.is_drained()).await;
        until("the bridge has it", || all_there(&bridge, wearable)).await;
    }
    assert!(wearables[2].lock().links > 3);
    assert_eq!(bridge.lock().doubles, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wearable_that_hangs_holds_up_nobody_and_is_served_when_it_wakes() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let hanging = Wearable::start(&air(dir.path()), 1, 50);
    hanging.lock().hangs = true;
    let other = Wearable::start(&air(dir.path()), 2, 50);
    // One link at a time, one connection at a time: the hanging one must give way.
    let daemon =
        Daemon::start(dir.path(), broker.port, &[1, 2], "slots = 1\nconnecting = 1\nturn_s = 1\n").await;
    until("the other one is served", || other.is_drained() && all_there(&bridge, &other)).await;
    assert!(!hanging.is_drained());
    hanging.lock().hangs = false;
    until("it is served too", || hanging.is_drained() && all_there(&bridge, &hanging)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_broker_killed_readings_are_kept_and_drain_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 9, 100);
    let daemon = Daemon::start(dir.path(), broker.port, &[9], "").await;
    until("the first part is through", || all_there(&bridge, &wearable)).await;
    broker.kill();
    until("it is noticed", || !daemon.board.now().uplink.connected).await;
    wearable.produce(700);
    until("the wearable may forget", || wearable.is_drained()).await;
    until("it is kept here", || daemon.board.now().buffer.frames >= 700).await;
    broker.start_again();
    until("the rest is through", || all_there(&bridge, &wearable)).await;
    until("nothing is kept any more", || {
        let buffer = daemon.board.now().buffer;
        (buffer.frames, buffer.batches) == (0, 0)
    })
    .await;
    assert_eq!(bridge.lock().doubles, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_bridges_own_word_for_the_very_payload_deletes_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Silent;
    let wearable = Wearable::start(&air(dir.path()), 5, 30);
    let daemon = Daemon::start(dir.path(), broker.port, &[5], "").await;
    let published_again = |times: u32| bridge.lock().batches.values().any(|count| *count >= times);
    until("it is published again without an answer", || published_again(2)).await;
    until("it is kept", || daemon.board.now().buffer.batches > 0).await;
    bridge.lock().mood = Mood::WrongDigest;
    until("it is published again after a wrong digest", || published_again(4)).await;
    assert!(daemon.board.now().buffer.batches > 0);
    bridge.lock().mood = Mood::RetryAfterOneSecond;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(daemon.board.now().buffer.batches > 0);
    bridge.lock().mood = Mood::Done;
    until("the answer deletes it", || {
        let buffer = daemon.board.now().buffer;
        (buffer.frames, buffer.batches) == (0, 0)
    })
    .await;
    bridge.lock().mood = Mood::Refuse;
    wearable.produce(1);
    until("a refused batch is parked and told", || {
        let now = daemon.board.now();
        now.buffer.parked == 1 && now.alerts.contains_key("parked")
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_whose_card_cannot_be_written_at_its_start_stays_up_says_so_and_heals_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let Some(card) = SmallDisk::mount(&data) else {
        eprintln!("SKIPPED: a file system cannot be mounted here (needs root)");
        return;
    };
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa1, 20);
    let small = "[store]\nreserve_mib = 1\n";
    let daemon = Daemon::start(dir.path(), broker.port, &[0xa1], small).await;
    until("the first part is through", || all_there(&bridge, &wearable)).await;
    daemon.stop().await;
    card.writable(false);
    let daemon = Daemon::start(dir.path(), broker.port, &[0xa1], small).await;
    wearable.produce(20);
    until("somebody is told", || daemon.board.now().alerts.contains_key("store")).await;
    // Several attempts of store and uplink.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!daemon.task.is_finished(), "the daemon has ended");
    assert!(!daemon.board.now().buffer.trouble.is_empty());
    // Which store, and which life of it, nobody knows yet.
    let says = |note: &String| note.starts_with("The box cannot keep readings now");
    let is_told = |state: &State| state.online && state.buffer == 0 && state.notes.iter().any(says);
    until("the cloud is told", || bridge.lock().states.last().is_some_and(is_told)).await;
    card.writable(true);
    until("it heals", || daemon.board.now().buffer.trouble.is_empty()).await;
    until("the rest is through", || all_there(&bridge, &wearable) && wearable.is_drained()).await;
    until("the cloud knows the store again", || {
        bridge.lock().states.last().is_some_and(|state| state.buffer != 0 && state.store_id != 0)
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_page_whose_files_the_disk_does_not_take_comes_when_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Stands for a disk without room: the place of the file is taken.
    std::fs::create_dir_all(data.join("page.secret/full")).unwrap();
    std::fs::create_dir_all(data.join("setup-code/full")).unwrap();
    let daemon = Daemon::start(dir.path(), 1, &[], "").await;
    until("people are told", || daemon.board.now().alerts.contains_key("page")).await;
    std::fs::remove_dir_all(data.join("page.secret")).unwrap();
    until("the page comes", || {
        data.join("page.addr").exists() && !daemon.board.now().alerts.contains_key("page")
    })
    .await;
    until("people are told that it cannot be set up", || daemon.board.now().alerts.contains_key("setup"))
        .await;
    std::fs::remove_dir_all(data.join("setup-code")).unwrap();
    until("it can be set up", || {
        data.join("setup-code").is_file() && !daemon.board.now().alerts.contains_key("setup")
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_work_for_a_while_costs_no_connection_and_the_cloud_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let bridge = Bridge::start(broker.port);
    let wearable = Wearable::start(&air(dir.path()), 0xa1, 20);
    let daemon = Daemon::start(dir.path(), broker.port, &[0xa1], "").await;
    until("the first part is through", || all_there(&bridge, &wearable) && wearable.is_drained()).await;
    // Whoever holds the database, nothing can be written or read until it lets go.
    let other = rusqlite::Connection::open(dir.path().join("data/store.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    wearable.produce(20);
    let connected = || assert!(daemon.board.now().uplink.connected, "{}", daemon.board.now().uplink.trouble);
    until("people here are told", || {
        connected();
        daemon.board.now().alerts.contains_key("store")
    })
    .await;
    until("the cloud is told", || {
        connected();
        let seen = bridge.lock();
        let says = |note: &String| note.starts_with("The box cannot keep readings now");
        seen.states.last().is_some_and(|state| state.online && state.notes.iter().any(says))
    })
    .await;
    other.execute_batch("ROLLBACK").unwrap();
    until("the rest is through", || {
        connected();
        all_there(&bridge, &wearable) && wearable.is_drained()
    })
    .await;
    daemon.stop().await;
}
