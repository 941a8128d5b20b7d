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

/// Has so many databases of a folder damaged, set aside and brought over one after the other; gives the files' names.
async fn come_over(dir: &Path, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        large(dir, 1_000).await;
        let before = aside(dir);
        scribble(dir, pages(dir, "pieces")[1]);
        let (store, _) = opened(dir);
        all_back(dir).await;
        store.stop().await;
        names.extend(aside(dir).into_iter().filter(|name| !before.contains(name)));
    }
    assert_eq!(names.len(), count);
    names
}

/// The files that are set aside in a folder.
fn aside(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.contains("broken") && !name.ends_with("-wal") && !name.ends_with("-shm"))
        .collect();
    names.sort();
    names
}

/// What people are told of damage a while after a start.
async fn told_after_a_start(settings: Settings) -> Option<String> {
    let board = board();
    let store = Store::open(settings, Arc::new(SystemClock), board.clone()).unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    store.stop().await;
    board.now().alerts.get("damaged").cloned()
}

#[tokio::test]
async fn of_databases_that_were_set_aside_and_have_come_over_the_last_two_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let names = come_over(dir.path(), 3).await;
    // The last was set aside by a box that took itself to be in 1970.
    let last = std::fs::File::options().write(true).open(dir.path().join(&names[2])).unwrap();
    last.set_modified(std::time::UNIX_EPOCH).unwrap();
    told_after_a_start(settings(dir.path())).await;
    let mut kept = names[1..].to_vec();
    kept.sort();
    assert_eq!(aside(dir.path()), kept);
}

#[tokio::test]
async fn a_file_of_which_nobody_noted_that_it_came_over_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    // As a version before this one set them aside, and another file.
    let never = ["devices.broken", "store.broken-5", "store.broken-7-1"];
    for name in never {
        std::fs::write(dir.path().join(name), "all that is left of a week").unwrap();
    }
    let names = come_over(dir.path(), 1).await;
    told_after_a_start(settings(dir.path())).await;
    assert_eq!(aside(dir.path()).len(), 4);
    // More than any disk has.
    let told = told_after_a_start(Settings { reserve: 1 << 50, ..settings(dir.path()) }).await;
    assert_eq!(aside(dir.path()), never);
    assert!(told.is_none_or(|text| !text.contains(&names[0])), "people are sent to a file that is gone");
}

#[tokio::test]
async fn what_is_still_to_come_stays_where_the_disk_has_no_room() {
    let dir = tempfile::tempdir().unwrap();
    large(dir.path(), 40_000).await;
    let pages = pages(dir.path(), "pieces");
    scribble(dir.path(), pages[pages.len() / 2]);
    let told = told_after_a_start(Settings { reserve: 1 << 50, ..settings(dir.path()) }).await;
    let left = aside(dir.path());
    assert!(left.len() == 1 && told.is_some_and(|text| text.contains(&left[0])), "{left:?}");
}
