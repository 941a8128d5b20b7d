//! One session with one wearable, over a store that is full or a log that is damaged.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::live::Newest;
use kinara_gatewayd::pipeline::FrameSink;
use kinara_gatewayd::radio::AdapterId;
use kinara_gatewayd::radio::links::Links;
use kinara_gatewayd::radio::session::{self, Context};
use kinara_gatewayd::status::Admission;
use kinara_gatewayd::store::{SeqSet, Settings, Store, database};
use kinara_protocol::frame::{Epoch, FrameRef, Kind as FrameKind};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::air::{Wearable, air};
use super::crash::copy_of_folder;
use super::frames::{board, drain, known, noise, open, sent, seqs_of, settings, synchronise};
use super::mends::damage_cells;

const WEARABLE: u64 = 0xa1;
const EPOCH: Epoch = Epoch::new(WEARABLE as u32, 1);

struct Session {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Session {
    fn start(store: &Store, wearable: &Wearable) -> Self {
        Self::with_window(store, wearable, 100)
    }

    fn with_window(store: &Store, wearable: &Wearable, window: u8) -> Self {
        let settings = session::Settings {
            request_timeout: Duration::from_secs(10),
            probes: 2,
            resync: Duration::from_mins(10),
            resend_after: Duration::from_millis(100),
            silence: Duration::from_secs(10),
            window,
            store_retry: Duration::from_millis(100),
            weak_rssi_dbm: -127,
            weak_after: Duration::from_mins(10),
        };
        let (knows, known) = watch::channel(Some(known()));
        let context = Context {
            store: store.clone(),
            clock: Arc::new(SystemClock),
            known,
            board: board(),
            sink: FrameSink::new(10_000).0,
            newest: Newest::default(),
            identify: broadcast::channel(1).0,
            settings,
        };
        let stop = CancellationToken::new();
        let connection = wearable.link();
        let adapter = AdapterId("test0".to_owned());
        let claim = Links::default().claim(&HardwareId::kinara(WEARABLE), &adapter, &stop);
        let mut claim = claim.expect("nobody else has it");
        let task = tokio::spawn(async move {
            let greeted = session::greet(&context, connection).await.unwrap();
            session::run(&context, greeted, &mut claim).await.unwrap();
            // Gone before, it would have ended the session.
            drop(knows);
        });
        Self { task, stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn drained(wearable: &Wearable) {
    let start = Instant::now();
    while !wearable.is_drained() {
        assert!(start.elapsed() < Duration::from_secs(30), "it may not forget its log");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn wearable(dir: &Path, frames: u32) -> Wearable {
    Wearable::start(&air(dir), WEARABLE, frames)
}

#[tokio::test]
async fn scalars_behind_a_waveform_come_although_the_disk_is_nearly_full() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Settings { soft_limit: 1, ..settings(&dir.path().join("data")) });
    let wearable = wearable(dir.path(), 0);
    wearable.produce_waveforms(200);
    let session = Session::start(&store, &wearable);
    drained(&wearable).await;
    session.stop().await;
    let log = wearable.log();
    let seqs = |kind: FrameKind| {
        let headers = log.iter().map(|frame| FrameRef::parse(frame).unwrap().header());
        headers.filter(|header| header.kind == kind).map(|header| header.seq).collect::<Vec<_>>()
    };
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let (_, gaps) = sent(&store, Duration::from_secs(1)).await;
    assert!(gaps.iter().all(|gap| gap.reason == "quota" && gap.from_utc_us > 0), "{gaps:?}");
    let mut dropped: Vec<u32> = gaps.iter().flat_map(seqs_of).collect();
    dropped.sort_unstable();
    assert_eq!(dropped, seqs(FrameKind::Waveform));
    let frames = drain(&store).await;
    for seq in seqs(FrameKind::Scalar) {
        assert!(frames.contains_key(&(HardwareId::kinara(WEARABLE).to_string(), EPOCH.0, seq)), "{seq}");
    }
    store.stop().await;
}

#[tokio::test]
async fn what_a_full_disk_refused_is_asked_for_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        open(Settings { soft_limit: 300 << 10, hard_limit: 400 << 10, ..settings(&dir.path().join("data")) });
    let other = HardwareId::kinara(0xb2);
    synchronise(&store, &other, EPOCH).await;
    let admission = store.admission();
    let mut seq = 0;
    while *admission.borrow() != Admission::EventsOnly {
        let frames = (seq..seq + 50).map(|seq| noise(FrameKind::Scalar, EPOCH, seq)).collect();
        store.append(other.clone(), frames).await.unwrap();
        seq += 50;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wearable = wearable(dir.path(), 300);
    let session = Session::start(&store, &wearable);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!wearable.is_drained() && *admission.borrow() == Admission::EventsOnly);
    let mut frames = drain(&store).await;
    drained(&wearable).await;
    session.stop().await;
    frames.extend(drain(&store).await);
    let mine = frames.keys().filter(|(hardware, ..)| *hardware != other.to_string()).count();
    assert_eq!(mine, wearable.log().len());
    store.stop().await;
}

#[tokio::test]
async fn a_frame_that_the_wearable_has_lost_keeps_nothing_behind_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(&dir.path().join("data")));
    let wearable = wearable(dir.path(), 50);
    wearable.lock().damaged.insert(20);
    let session = Session::start(&store, &wearable);
    drained(&wearable).await;
    wearable.produce(10);
    drained(&wearable).await;
    session.stop().await;
    let frames = drain(&store).await;
    assert_eq!(frames.len(), wearable.log().len() - 1);
    assert!(!frames.contains_key(&(HardwareId::kinara(WEARABLE).to_string(), EPOCH.0, 20)));
    store.stop().await;
}

#[tokio::test]
async fn frames_that_a_wearable_does_not_know_that_it_lost_keep_nothing_back_and_have_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(&dir.path().join("data")));
    // More frames behind them than its window, so that it waits for an acknowledgement.
    let wearable = wearable(dir.path(), 400);
    let lost: Vec<u32> = (150..190).chain([230]).collect();
    wearable.lock().unreadable.extend(lost.iter().map(|seq| *seq as usize));
    let session = Session::start(&store, &wearable);
    drained(&wearable).await;
    session.stop().await;
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let (mut named, start) = (Vec::new(), Instant::now());
    while named.len() < lost.len() && start.elapsed() < Duration::from_secs(30) {
        let (_, gaps) = sent(&store, Duration::from_millis(200)).await;
        assert!(gaps.iter().all(|gap| gap.reason == "overflow"), "{gaps:?}");
        named.extend(gaps.iter().flat_map(seqs_of));
    }
    named.sort_unstable();
    assert_eq!(named, lost);
    assert_eq!(missing(&store, &wearable).await, lost);
    store.stop().await;
}

#[tokio::test]
async fn a_number_that_no_frame_of_a_wearable_has_is_not_taken_for_its_oldest_one() {
    let far = [
        (EPOCH, 50 + (1 << 30)),
        (Epoch::new(EPOCH.log_id() ^ 4, 1), 50),
        (Epoch::new(EPOCH.log_id(), 9), 0),
    ];
    for claimed in far {
        let dir = tempfile::tempdir().unwrap();
        let store = open(settings(&dir.path().join("data")));
        let wearable = wearable(dir.path(), 400);
        wearable.lock().claims_oldest = Some(claimed);
        let session = Session::start(&store, &wearable);
        drained(&wearable).await;
        session.stop().await;
        assert!(missing(&store, &wearable).await.is_empty(), "{claimed:?}");
        store.stop().await;
    }
}

/// Nothing that was lost here is wanted any more.
async fn fetched_again(store: &Store) {
    let start = Instant::now();
    loop {
        let wanted = store.wanted(HardwareId::kinara(WEARABLE)).await.unwrap();
        if !wanted.everything && wanted.frames.values().all(SeqSet::is_empty) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "it is never done");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The frames of its log that no batch brings.
async fn missing(store: &Store, wearable: &Wearable) -> Vec<u32> {
    let frames = drain(store).await;
    let name = HardwareId::kinara(WEARABLE).to_string();
    let all = 0..wearable.log().len() as u32;
    all.filter(|seq| !frames.contains_key(&(name.clone(), EPOCH.0, *seq))).collect()
}

#[tokio::test]
async fn a_frame_that_the_wearable_refuses_costs_itself_alone_though_it_is_the_first_that_was_lost_here() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let wearable = wearable(dir.path(), 5_000);
    let store = open(settings(&data));
    let session = Session::start(&store, &wearable);
    drained(&wearable).await;
    session.stop().await;
    store.stop().await;
    // Two rows far apart: the second one is asked for when the first is back.
    damage_cells(
        &data,
        "UPDATE pieces SET frames = 'x' WHERE id IN ((SELECT id FROM pieces ORDER BY first_seq LIMIT 1 OFFSET 1),
                                                     (SELECT id FROM pieces ORDER BY first_seq DESC LIMIT 1 OFFSET 1))",
    );
    let store = open(settings(&data));
    let wanted = store.wanted(HardwareId::kinara(WEARABLE)).await.unwrap().frames[&EPOCH].clone();
    assert_eq!(wanted.ranges().len(), 2, "{wanted:?}");
    let mut refused = Vec::new();
    for (first, last) in wanted.ranges() {
        // More in a row than are passed at once.
        refused.extend(*first..(first + 40).min(*last));
    }
    wearable.lock().unreadable.extend(refused.iter().map(|seq| *seq as usize));
    let session = Session::start(&store, &wearable);
    fetched_again(&store).await;
    drained(&wearable).await;
    session.stop().await;
    assert_eq!(missing(&store, &wearable).await, refused);
    store.stop().await;
}

/// A wearable's log is here, then some of it is lost; the wearable sends it again, and has not kept all of it either.
async fn lost_here_and_in_part_on_the_wearable(lose: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // More than it sends before a hole is asked for again, so that what names the lost frame comes last.
    let wearable = wearable(dir.path(), 5_000);
    let store = open(settings(&data));
    let session = Session::start(&store, &wearable);
    drained(&wearable).await;
    session.stop().await;
    store.stop().await;
    lose(&data);
    wearable.lock().damaged.insert(20);
    wearable.lock().unreadable.insert(22);
    let store = open(settings(&data));
    let session = Session::start(&store, &wearable);
    fetched_again(&store).await;
    drained(&wearable).await;
    session.stop().await;
    assert_eq!(missing(&store, &wearable).await, [20, 22]);
    store.stop().await;
}

#[tokio::test]
async fn a_box_that_lost_everything_gets_all_that_the_wearable_kept_of_a_log_that_is_damaged_too() {
    lost_here_and_in_part_on_the_wearable(|data| {
        std::fs::write(data.join("devices.json"), "{}").unwrap();
        std::fs::remove_file(database(&settings(data))).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_box_that_lost_some_frames_gets_all_of_them_that_the_wearable_kept() {
    lost_here_and_in_part_on_the_wearable(|data| {
        damage_cells(data, "UPDATE pieces SET frames = 'x' WHERE first_seq <= 22 AND last_seq >= 20");
    })
    .await;
}

/// A box is killed, and what is done to its write-ahead log takes what it has acknowledged.
async fn killed_with_a_log_that_is_damaged(damage: impl FnOnce(&mut Vec<u8>)) {
    let dir = tempfile::tempdir().unwrap();
    let (data, left) = (dir.path().join("data"), dir.path().join("left"));
    let wearable = wearable(dir.path(), 100);
    let store = open(settings(&data));
    let session = Session::start(&store, &wearable);
    drained(&wearable).await;
    session.stop().await;
    store.stop().await;
    let store = open(settings(&data));
    let session = Session::start(&store, &wearable);
    for _ in 0..3 {
        wearable.produce(100);
        drained(&wearable).await;
    }
    session.stop().await;
    copy_of_folder(&data, &left);
    store.stop().await;
    let mut wal = std::fs::read(left.join("store.db-wal")).unwrap();
    damage(&mut wal);
    std::fs::write(left.join("store.db-wal"), wal).unwrap();
    std::fs::remove_file(left.join("store.db-shm")).unwrap();
    let store = open(settings(&left));
    let hardware = HardwareId::kinara(WEARABLE);
    let received = store.received(hardware.clone(), EPOCH).await.unwrap();
    assert!(
        !received.contains(wearable.log().len() as u32 - 1),
        "SQLite has given up some of it: {received:?}"
    );
    let session = Session::start(&store, &wearable);
    let start = Instant::now();
    while store.wanted(hardware.clone()).await.unwrap().behind.is_some() {
        assert!(start.elapsed() < Duration::from_secs(30), "it is never done");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drained(&wearable).await;
    session.stop().await;
    assert!(missing(&store, &wearable).await.is_empty());
    store.stop().await;
}

#[tokio::test]
async fn what_a_damaged_write_ahead_log_held_is_fetched_again_after_a_kill() {
    killed_with_a_log_that_is_damaged(|wal| {
        let middle = wal.len() / 2;
        wal[middle] ^= 1;
    })
    .await;
}

#[tokio::test]
async fn what_a_write_ahead_log_held_that_was_cut_or_emptied_is_fetched_again_after_a_kill() {
    killed_with_a_log_that_is_damaged(|wal| wal.truncate(wal.len() / 2)).await;
    killed_with_a_log_that_is_damaged(Vec::clear).await;
}

#[tokio::test]
async fn after_a_clean_stop_nothing_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let wearable = wearable(dir.path(), 100);
    for _ in 0..2 {
        let store = open(settings(&data));
        assert_eq!(store.wanted(HardwareId::kinara(WEARABLE)).await.unwrap().behind, None);
        let session = Session::start(&store, &wearable);
        drained(&wearable).await;
        session.stop().await;
        store.stop().await;
    }
}

#[tokio::test]
async fn a_wearable_that_is_caught_up_is_not_held_to_a_window_for_each_commit_that_may_wait() {
    let dir = tempfile::tempdir().unwrap();
    let patient = Settings { wearable_commit: Duration::from_secs(5), ..settings(&dir.path().join("data")) };
    let store = open(patient);
    let wearable = wearable(dir.path(), 10);
    let session = Session::with_window(&store, &wearable, 10);
    drained(&wearable).await;
    // A link that has just begun makes no frame wait.
    tokio::time::sleep(Duration::from_secs(11)).await;
    for _ in 0..60 {
        wearable.produce(1);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let behind = wearable.held().len();
    assert!(behind <= 20, "{behind} frames wait behind a closed window");
    session.stop().await;
    store.stop().await;
}
