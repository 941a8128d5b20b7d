//! One session with a sensor of another maker, over a store that fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::live::Newest;
use kinara_gatewayd::pipeline::FrameSink;
use kinara_gatewayd::radio::sensor;
use kinara_gatewayd::radio::session::{Context, Settings as Times};
use kinara_gatewayd::radio::{SensorConnection, SensorEvent, SensorLink, SensorReport};
use kinara_gatewayd::store::{Settings, Store, database};
use rusqlite::Connection;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::frames::{board, drain, known, open, settings};

struct NoLink;

impl SensorLink for NoLink {
    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>> {
        Box::pin(std::future::ready(None))
    }

    fn disconnect(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

pub fn context(store: &Store) -> Context {
    Context {
        store: store.clone(),
        clock: Arc::new(SystemClock),
        known: watch::channel(Some(known())).1,
        board: board(),
        sink: FrameSink::new(10_000).0,
        newest: Newest::default(),
        identify: broadcast::channel(1).0,
        settings: Times {
            request_timeout: Duration::from_secs(10),
            probes: 2,
            resync: Duration::from_mins(10),
            resend_after: Duration::from_millis(100),
            silence: Duration::from_secs(10),
            window: 100,
            store_retry: Duration::from_millis(100),
            weak_rssi_dbm: -127,
            weak_after: Duration::from_mins(10),
        },
    }
}

#[tokio::test]
async fn a_sensors_frames_have_their_time_although_the_store_failed_when_it_connected() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    // Somebody else writes, for longer than the store waits for them.
    let other = Connection::open(database(&settings(dir.path()))).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (send, events) = mpsc::channel(16);
    let connection = SensorConnection { events, link: Box::new(NoLink) };
    let (context, hardware, stop) =
        (context(&store), HardwareId::sensor([1, 2, 3, 4, 5, 6]), CancellationToken::new());
    let stopped = stop.clone();
    let session = tokio::spawn(async move { sensor::run(&context, hardware, connection, &stopped).await });
    let measure = async || {
        let bytes = Bytes::from_static(&[0, 72]);
        send.send(SensorEvent { report: SensorReport::HeartRate, bytes }).await.unwrap();
    };
    measure().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    other.execute_batch("ROLLBACK").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    measure().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.cancel();
    session.await.unwrap().unwrap();
    // Without a sync they would wait here for one.
    assert_eq!(drain(&store).await.len(), 2);
    store.stop().await;
}

#[tokio::test]
async fn a_sensors_connection_is_synchronised_again_while_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    let (send, events) = mpsc::channel(16);
    let connection = SensorConnection { events, link: Box::new(NoLink) };
    let mut context = context(&store);
    context.settings.resync = Duration::from_secs(1);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let hardware = HardwareId::sensor([1, 2, 3, 4, 5, 6]);
    let session = tokio::spawn(async move { sensor::run(&context, hardware, connection, &stopped).await });
    for _ in 0..4 {
        let bytes = Bytes::from_static(&[0, 72]);
        send.send(SensorEvent { report: SensorReport::HeartRate, bytes }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    stop.cancel();
    session.await.unwrap().unwrap();
    store.flush().await.unwrap();
    let db = Connection::open(database(&settings(dir.path()))).unwrap();
    let syncs: i64 = db.query_row("SELECT count(*) FROM anchors", [], |row| row.get(0)).unwrap();
    assert!(syncs > 1, "{syncs}");
    store.stop().await;
}

#[tokio::test]
async fn what_a_sensor_told_before_its_link_fell_is_stored_when_the_store_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    let (send, events) = mpsc::channel(16);
    let connection = SensorConnection { events, link: Box::new(NoLink) };
    let (context, hardware) = (context(&store), HardwareId::sensor([1, 2, 3, 4, 5, 6]));
    let session = tokio::spawn(async move {
        let stop = CancellationToken::new();
        sensor::run(&context, hardware, connection, &stop).await
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let other = Connection::open(database(&settings(dir.path()))).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let bytes = Bytes::from_static(&[0, 72]);
    send.send(SensorEvent { report: SensorReport::HeartRate, bytes }).await.unwrap();
    drop(send);
    // The link is gone, and the session gives up what it has after the store has refused it.
    session.await.unwrap().unwrap_err();
    other.execute_batch("ROLLBACK").unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(drain(&store).await.len(), 1);
    store.stop().await;
}

#[tokio::test]
async fn what_the_ninth_sensor_told_before_its_link_fell_on_a_full_disk_has_its_gap_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing but events is taken.
    let store = open(Settings { hard_limit: 0, ..settings(dir.path()) });
    let gaps = || -> i64 {
        let db = Connection::open(database(&settings(dir.path()))).unwrap();
        db.query_row("SELECT count(*) FROM events WHERE gap = 1", [], |row| row.get(0)).unwrap()
    };
    for number in 1..=9 {
        let (send, events) = mpsc::channel(16);
        let connection = SensorConnection { events, link: Box::new(NoLink) };
        let (context, hardware) = (context(&store), HardwareId::sensor([1, 2, 3, 4, 5, number]));
        let bytes = Bytes::from_static(&[0, 72]);
        send.send(SensorEvent { report: SensorReport::HeartRate, bytes }).await.unwrap();
        drop(send);
        let stop = CancellationToken::new();
        sensor::run(&context, hardware.clone(), connection, &stop).await.unwrap_err();
        // Eight wait for a disk that takes them; one more does not, and nobody else has what it told.
        let is_one_more = number == 9;
        assert_eq!(gaps(), i64::from(is_one_more), "link {number}");
        let left_out = context.board.now().devices[&hardware].left_out;
        assert_eq!(left_out, u64::from(is_one_more), "link {number}");
    }
    store.stop().await;
}
