use kinara_clock::ManualClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::hardware::HardwareId;
use crate::status::{Admission, Device, Link, Snapshot};

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        gateway_id: "0197-gw".to_owned(),
        gateway_name: "Ward <3>".to_owned(),
        version: "0.1.0".to_owned(),
        started_us: 1_000_000,
        ..Snapshot::default()
    };
    let device = Device {
        link: Link::Live,
        name: "Kin \"one\"".to_owned(),
        battery_percent: Some(81),
        last_frame_us: 58_000_000,
        latest: [(5, 4_321), (1, 777)].into(),
        ..Device::default()
    };
    snapshot.devices.insert(HardwareId::kinara(0xabc), device);
    snapshot.alerts.insert("inference".to_owned(), "no model: the rule alone runs".to_owned());
    snapshot
}

async fn serve(snapshot: Snapshot) -> (SocketAddr, Board, CancellationToken, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(address, dir.path()).await.unwrap();
    let address = server.address();
    let written = std::fs::read_to_string(dir.path().join(ADDRESS_FILE)).unwrap();
    assert_eq!(written.trim(), address.to_string());
    let board = Board::new(snapshot);
    let stop = CancellationToken::new();
    let sources = Sources {
        board: board.clone(),
        inference: Arc::default(),
        frames: FrameSink::new(1).0,
        clock: Arc::new(ManualClock::new(60_000_000, 60_000_000)),
    };
    tokio::spawn(server.run(sources, stop.clone()));
    (address, board, stop, dir)
}

async fn ask(address: SocketAddr, path: &str, host: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_page_shows_devices_and_troubles_without_any_reading_or_foreign_resource() {
    let (address, _board, stop, _dir) = serve(snapshot()).await;
    let page = ask(address, "/", &address.to_string()).await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for text in
        ["Ward &lt;3&gt;", "Kin &quot;one&quot;", "kinara:0000000000000abc", "81 %", "live", "2 s ago"]
    {
        assert!(page.contains(text), "{text} is missing in {page}");
    }
    assert!(page.contains("no model: the rule alone runs"));
    assert!(page.contains("content-security-policy: default-src 'none'"));
    for never in ["4321", "4.321", "777", "77.7", "<script", "http://", "https://", "<3>"] {
        assert!(!page.contains(never), "{never} is in {page}");
    }
    let style = ask(address, "/style.css", "localhost").await;
    assert!(style.contains("text/css") && !style.contains("url("));
    stop.cancel();
}

#[tokio::test]
async fn metrics_are_prometheus_text_with_a_help_and_a_type_for_each_family() {
    let (address, _board, stop, _dir) = serve(snapshot()).await;
    let answer = ask(address, "/metrics", "localhost").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"));
    assert!(body.contains("kinara_gateway_device_battery_percent{device=\"kinara:0000000000000abc\"} 81\n"));
    assert!(body.contains("kinara_gateway_model_loaded 0\n"));
    let mut known = std::collections::BTreeSet::new();
    let mut told = "";
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && help.len() > 5, "{line} says nothing");
            told = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert_eq!(rest.split(' ').next(), Some(told), "{line} has no help before it");
            assert!(known.insert(rest.split(' ').next().unwrap().to_owned()), "{line} comes twice");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(known.contains(name), "{line} has no type");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    stop.cancel();
}

#[tokio::test]
async fn health_fails_when_readings_are_not_taken_over_and_not_for_being_offline() {
    let (address, board, stop, _dir) = serve(snapshot()).await;
    let answer = ask(address, "/healthz", "127.0.0.1").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("no way to the cloud") && answer.contains("\"reasons\":[]"), "{answer}");
    board.update(|s| {
        s.buffer.admission = Admission::EventsOnly;
        true
    });
    let answer = ask(address, "/healthz", "127.0.0.1").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the store is full"), "{answer}");
    stop.cancel();
}

#[tokio::test]
async fn health_fails_when_the_store_is_broken_a_clock_is_not_believed_batches_are_parked_or_a_loop_does_not_turn()
 {
    let (address, board, stop, _dir) = serve(snapshot()).await;
    let failing = async |what: &str| {
        let answer = ask(address, "/healthz", "127.0.0.1").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(what), "{answer}");
    };
    let set = |change: fn(&mut Snapshot)| {
        board.update(|s| {
            change(s);
            true
        });
    };
    set(|s| s.buffer.trouble = "attempt to write a readonly database".to_owned());
    failing("the store keeps nothing: attempt to write").await;
    set(|s| s.buffer.trouble.clear());
    set(|s| s.clock.unknown_since_us = Some(50_000_000));
    assert!(ask(address, "/healthz", "127.0.0.1").await.starts_with("HTTP/1.1 200"), "it has just started");
    set(|s| s.clock.trouble = "The machine's clock says that it is 2099.".to_owned());
    failing("2099").await;
    set(|s| {
        s.clock = crate::status::ClockState { unknown_since_us: Some(-3_600_000_000), ..Default::default() }
    });
    failing("unknown for 1 h").await;
    set(|s| {
        s.clock.unknown_since_us = None;
        s.buffer.parked = 3;
    });
    failing("3 batches were refused").await;
    set(|s| s.buffer.parked = 0);
    assert!(ask(address, "/healthz", "127.0.0.1").await.starts_with("HTTP/1.1 200"));
    let silent = ["uplink".to_owned()];
    assert_eq!(health::judge(&board.now(), 0, &silent).status, "failing");
    stop.cancel();
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_alert_and_is_tried_again_until_it_is_free() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let (_, board, first, dir) = serve(snapshot()).await;
    first.cancel();
    let stop = CancellationToken::new();
    let sources = Sources {
        board: board.clone(),
        inference: Arc::default(),
        frames: FrameSink::new(1).0,
        clock: Arc::new(ManualClock::new(60_000_000, 60_000_000)),
    };
    tokio::spawn(run(address, dir.path().to_owned(), sources, stop.clone()));
    let mut watch = board.watch();
    watch.wait_for(|now| now.alerts.contains_key(ALERT)).await.unwrap();
    drop(taken);
    watch.wait_for(|now| !now.alerts.contains_key(ALERT)).await.unwrap();
    assert!(ask(address, "/healthz", "127.0.0.1").await.starts_with("HTTP/1.1 200"));
    stop.cancel();
}

#[tokio::test]
async fn a_web_page_that_points_its_name_at_this_machine_reads_nothing() {
    let (address, _board, stop, _dir) = serve(snapshot()).await;
    for host in ["evil.example", "localhost.evil.example:80", "127.0.0.1.nip.example"] {
        let answer = ask(address, "/metrics", host).await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{host}: {answer}");
    }
    for host in ["[::1]:8080", "box.local", "LOCALHOST:1", "10.0.0.7"] {
        assert!(ask(address, "/", host).await.starts_with("HTTP/1.1 200"), "{host}");
    }
    stop.cancel();
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_clear_line() {
    let (address, _board, stop, dir) = serve(snapshot()).await;
    let error = Server::bind(address, dir.path()).await.unwrap_err().to_string();
    assert!(error.contains("local.listen") && error.contains(&address.to_string()), "{error}");
    stop.cancel();
}

#[tokio::test]
async fn whoever_connects_to_the_page_and_says_nothing_holds_on_to_a_few_connections_only() {
    let (address, _board, stop, _dir) = serve(snapshot()).await;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let mut byte = [0];
    let closed = held.iter_mut().filter(|stream| matches!(stream.try_read(&mut byte), Ok(0))).count();
    assert!(closed >= 40, "{closed} of 60 were closed");
    drop(held);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let answer = ask(address, "/healthz", "127.0.0.1").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stop.cancel();
}

#[tokio::test]
async fn a_disk_that_takes_no_file_keeps_nobody_from_seeing_that_it_is_full() {
    let dir = tempfile::tempdir().unwrap();
    // The place of the file is taken by a folder.
    std::fs::create_dir(dir.path().join("local.addr.next")).unwrap();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), dir.path()).await.unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let sources = Sources {
        board: Board::new(snapshot()),
        inference: Arc::default(),
        frames: FrameSink::new(1).0,
        clock: Arc::new(ManualClock::new(60_000_000, 60_000_000)),
    };
    tokio::spawn(server.run(sources, stop.clone()));
    assert!(ask(address, "/healthz", "127.0.0.1").await.starts_with("HTTP/1.1 200"));
    stop.cancel();
}
