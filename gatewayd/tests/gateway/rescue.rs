//! A large database that is damaged: its rows come back while its successor is at work.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::store::{Kind, Outcome, Settings, Store, database};
use kinara_protocol::envelope::{self, Batch, EventBatch};
use kinara_protocol::frame::{Epoch, Kind as FrameKind};

use super::frames::{board, frames_in, known, noise, open, scalar, seqs_of, settings, synchronise};
use super::full_disk::SmallDisk;
use super::mends::{all_accounted_for, all_back, hardware, opened, pages, scribble, until};

const EPOCH: Epoch = Epoch::new(7, 1);

/// A folder with a store of many rows that no compression makes small.
async fn large(dir: &Path, frames: u32) {
    let store = open(settings(dir));
    store.set_online(true).await.unwrap();
    synchronise(&store, &hardware(), EPOCH).await;
    for first in (0..frames).step_by(100) {
        let frames = (first..first + 100).map(|seq| noise(FrameKind::Scalar, EPOCH, seq)).collect();
        store.append(hardware(), frames).await.unwrap();
    }
    store.stop().await;
}

#[tokio::test]
async fn a_large_database_that_is_damaged_comes_back_while_readings_are_taken_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    large(dir.path(), 40_000).await;
    let pages = pages(dir.path(), "pieces");
    scribble(dir.path(), pages[pages.len() / 2]);
    // A box that is killed under way goes on where it was.
    let (store, board) = opened(dir.path());
    assert!(board.now().buffer.trouble.is_empty());
    let fates = store.append(hardware(), vec![scalar(EPOCH, 40_000)]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Stored);
    until("nothing comes back", async || board.now().buffer.frames > 1_000).await;
    store.stop().await;
    let (store, board) = opened(dir.path());
    let mut silent = Vec::new();
    until("the rest does not come back", async || {
        silent.extend(board.vitals().silent_for(Duration::from_secs(5)));
        board.now().buffer.frames > 39_000
    })
    .await;
    assert!(silent.is_empty(), "{silent:?}");
    all_back(dir.path()).await;
    let (_, lost) = all_accounted_for(&store, 40_001).await;
    assert!(!lost.is_empty() && lost.len() < 1_000, "{} frames are lost", lost.len());
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_database_for_which_there_is_no_room_beside_comes_back_as_the_cloud_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        eprintln!("SKIPPED: a file system cannot be mounted here (needs root)");
        return;
    };
    let frames = 60_000;
    large(dir.path(), frames).await;
    let size = std::fs::metadata(database(&settings(dir.path()))).unwrap().len();
    let pages = pages(dir.path(), "pieces");
    scribble(dir.path(), pages[pages.len() / 2]);
    disk.fill_but(10 << 20);
    assert!(size > 8 << 20, "it is too small to tell: {size}");
    let board = board();
    let settings = Settings { reserve: 4 << 20, ..settings(dir.path()) };
    let store = Store::open(settings, Arc::new(SystemClock), board.clone()).unwrap();
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let (mut here, mut lost) = (BTreeSet::new(), BTreeSet::new());
    until("not everything is here or told as lost", async || {
        for sealed in store.waiting(Kind::Batch, Vec::new(), 100, usize::MAX).await.unwrap_or_default() {
            let batch: Batch = envelope::open(&sealed.payload).unwrap();
            here.extend(frames_in(&batch).into_iter().map(|((_, _, seq), _)| seq));
            let _ = store.acknowledged(sealed.name, sealed.sha256).await;
        }
        for sealed in store.waiting(Kind::Event, Vec::new(), 100, usize::MAX).await.unwrap_or_default() {
            let batch: EventBatch = envelope::open(&sealed.payload).unwrap();
            lost.extend(batch.gaps.iter().flat_map(seqs_of));
            let _ = store.acknowledged(sealed.name, sealed.sha256).await;
        }
        here.union(&lost).count() == frames as usize
    })
    .await;
    assert!(lost.len() < 1_000, "{} frames are lost", lost.len());
    assert!(board.now().buffer.trouble.is_empty());
    store.stop().await;
}

#[tokio::test]
async fn a_wearable_that_is_new_gets_no_number_of_one_whose_rows_are_still_to_come() {
    let dir = tempfile::tempdir().unwrap();
    large(dir.path(), 2_000).await;
    // The row of the wearable and what would find it.
    for table in ["devices", "sqlite_autoindex_devices_1"] {
        for page in pages(dir.path(), table) {
            scribble(dir.path(), page);
        }
    }
    let (store, _) = opened(dir.path());
    store.clock_is(Some(known())).await.unwrap();
    let other = HardwareId::kinara(0xb2);
    let later = Epoch::new(9, 1);
    synchronise(&store, &other, later).await;
    let fates = store.append(other.clone(), vec![scalar(later, 0)]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Stored);
    store.set_online(true).await.unwrap();
    all_back(dir.path()).await;
    let mut named = BTreeSet::new();
    until("its frame is not sealed", async || {
        for sealed in store.waiting(Kind::Batch, Vec::new(), 100, usize::MAX).await.unwrap() {
            let batch: Batch = envelope::open(&sealed.payload).unwrap();
            named.extend(frames_in(&batch).into_iter().map(|((hardware, epoch, _), _)| (hardware, epoch)));
            store.acknowledged(sealed.name, sealed.sha256).await.unwrap();
        }
        named.contains(&(other.to_string(), later.0))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!named.contains(&(other.to_string(), EPOCH.0)), "{named:?}");
    store.stop().await;
}

#[tokio::test]
async fn what_a_wearable_offers_again_is_stored_again_while_nobody_knows_whether_it_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    large(dir.path(), 40_000).await;
    let pages = pages(dir.path(), "pieces");
    scribble(dir.path(), pages[pages.len() / 2]);
    let (store, _) = opened(dir.path());
    // Its row comes last, and is not here yet.
    let again = noise(FrameKind::Scalar, EPOCH, 39_999);
    let fates = store.append(hardware(), vec![again.clone()]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Stored);
    all_back(dir.path()).await;
    let fates = store.append(hardware(), vec![again]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Duplicate);
    store.stop().await;
}

/// Files of these names, the oldest first, and what is left of them a while after a start.
async fn left_aside(reserve: u64, names: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { reserve, ..settings(dir.path()) };
    open(settings.clone()).stop().await;
    for name in names {
        std::fs::write(dir.path().join(name), "what was in it is here").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let store = open(settings);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    store.stop().await;
    let mut left: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("broken"))
        .collect();
    left.sort();
    left
}

#[tokio::test]
async fn of_databases_that_were_set_aside_and_have_come_over_the_last_two_are_kept() {
    let names = [
        "store.broken-9",
        "store.broken-5",
        "store.broken-5-wal",
        "store.broken-7",
        "store.broken-7-1",
        "devices.broken",
    ];
    assert_eq!(left_aside(1 << 20, &names).await, ["devices.broken", "store.broken-7", "store.broken-7-1"]);
}

#[tokio::test]
async fn what_is_broken_gives_way_where_the_disk_has_no_room() {
    // More than any disk has.
    assert_eq!(left_aside(1 << 50, &["store.broken-9", "devices.broken"]).await, ["devices.broken"]);
}
