//! A store that mends itself: a page, a cell, a sealed batch, a whole file, a disk that refuses.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinara_clock::{Clock, SystemClock};
use kinara_gatewayd::align::source::Known;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::{Admission, Board};
use kinara_gatewayd::store::{Haste, Kind, Outcome, Settings, Store, database};
use kinara_protocol::frame::{Epoch, Kind as FrameKind};
use rusqlite::Connection;
use tempfile::TempDir;

use super::frames::{board, drain, known, noise, open, scalar, sent, seqs_of, settings, synchronise};

const EPOCH: Epoch = Epoch::new(7, 1);
/// Frames in one row.
const ROW: u32 = 10;
const WAIT: Duration = Duration::from_millis(1_500);

pub fn hardware() -> HardwareId {
    HardwareId::kinara(0xa1)
}

pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_mins(1), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn fill(store: &Store, rows: std::ops::Range<u32>) {
    synchronise(store, &hardware(), EPOCH).await;
    for row in rows {
        let frames = (row * ROW..(row + 1) * ROW).map(|seq| scalar(EPOCH, seq)).collect();
        store.append(hardware(), frames).await.unwrap();
    }
}

/// A folder with a store of some rows of frames, stopped.
async fn filled(rows: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    // Online, what comes is not packed.
    store.set_online(true).await.unwrap();
    fill(&store, 0..rows).await;
    store.stop().await;
    dir
}

fn connect(dir: &Path) -> Connection {
    Connection::open(database(&settings(dir))).unwrap()
}

/// Puts a value of a wrong type into cells, which STRICT tables let nobody do: the schema looks away for a moment.
pub fn damage_cells(dir: &Path, sql: &str) {
    let schema = |from: &str, to: &str| {
        let db = connect(dir);
        db.pragma_update(None, "writable_schema", true).unwrap();
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, ?1, ?2) WHERE type = 'table'", [from, to])
            .unwrap();
    };
    schema(") STRICT", ") /*S*/");
    schema(") /*S*/, WITHOUT", ") WITHOUT /*S*/");
    assert!(connect(dir).execute(sql, []).unwrap() > 0, "{sql}");
    schema(") WITHOUT /*S*/", ") STRICT, WITHOUT");
    schema(") /*S*/", ") STRICT");
}

/// The pages of a table that hold rows.
pub fn pages(dir: &Path, table: &str) -> Vec<u64> {
    let db = connect(dir);
    let sql = "SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf' ORDER BY path";
    let mut select = db.prepare(sql).unwrap();
    let pages = select.query_map([table], |row| row.get::<_, i64>(0)).unwrap();
    pages.map(|page| page.unwrap() as u64).collect()
}

pub fn scribble(dir: &Path, page: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(database(&settings(dir))).unwrap();
    file.write_all_at(&[0xa5; 4096], (page - 1) * 4096).unwrap();
}

pub fn opened(dir: &Path) -> (Store, Board) {
    let board = board();
    (Store::open(settings(dir), Arc::new(SystemClock), board.clone()).unwrap(), board)
}

/// All rows of what was set aside that can be read are here again.
pub async fn all_back(dir: &Path) {
    until("rows of what was set aside do not come back", async || {
        let left = "SELECT count(*) FROM meta WHERE key GLOB 'left *'";
        connect(dir).query_row(left, [], |row| row.get::<_, i64>(0)).unwrap() == 0
    })
    .await;
}

/// Everything that is here, and everything that is told as lost by this gateway. Together they are `0..frames`.
pub async fn all_accounted_for(store: &Store, frames: u32) -> (Vec<u32>, Vec<u32>) {
    let here: Vec<u32> = drain(store).await.into_keys().map(|(_, _, seq)| seq).collect();
    store.set_online(true).await.unwrap();
    let mut lost = Vec::new();
    until("the frames that are not here are not all told", async || {
        for gap in sent(store, Duration::from_millis(100)).await.1 {
            assert_eq!(gap.reason, "gateway_lost");
            lost.extend(seqs_of(&gap));
        }
        here.len() + lost.len() >= frames as usize
    })
    .await;
    let mut all: Vec<u32> = here.iter().chain(&lost).copied().collect();
    all.sort_unstable();
    assert_eq!(all, (0..frames).collect::<Vec<_>>());
    (here, lost)
}

#[tokio::test]
async fn a_cell_of_a_wrong_type_costs_its_row_and_everything_else_goes_on() {
    for (sql, lost) in [
        ("UPDATE anchors SET utc_us = 'x'", false),
        ("UPDATE anchors SET ticks = 'x'", false),
        ("UPDATE anchors SET uncertainty_us = x'01'", false),
        ("UPDATE anchors SET boot_us = 'x'", false),
        ("UPDATE anchors SET boot_id = x'07'", false),
        ("UPDATE epochs SET last_ticks = 'x'", false),
        ("UPDATE epochs SET boot = 5", false),
        ("UPDATE epochs SET received = 'x'", false),
        ("UPDATE meta SET value = 'x' WHERE key = 'buffer'", false),
        ("UPDATE meta SET value = x'00' WHERE key = 'alive_boot_us'", false),
        ("UPDATE meta SET value = 7 WHERE key = 'boot_id'", false),
        ("UPDATE pieces SET frames = 'x' WHERE first_seq = 20", true),
        ("UPDATE pieces SET bytes = x'07' WHERE first_seq = 20", true),
        ("UPDATE pieces SET received_us = 'x' WHERE first_seq = 20", true),
        ("UPDATE pieces SET received_boot_us = 'x' WHERE first_seq = 20", true),
        ("UPDATE pieces SET class = 'x' WHERE first_seq = 20", true),
        ("UPDATE pieces SET form = 'x' WHERE first_seq = 20", true),
        ("UPDATE pieces SET body = 'x' WHERE first_seq = 20", true),
    ] {
        let dir = filled(6).await;
        damage_cells(dir.path(), sql);
        let (store, board) = opened(dir.path());
        fill(&store, 6..7).await;
        let (_, gone) = all_accounted_for(&store, 70).await;
        assert_eq!(gone, if lost { (20..30).collect() } else { Vec::new() }, "{sql}");
        until(sql, async || board.now().alerts.contains_key("damaged")).await;
        assert_eq!(board.now().buffer.damaged, 1, "{sql}");
        store.stop().await;
    }
}

#[tokio::test]
async fn a_damaged_cell_of_a_sealed_batch_costs_that_batch() {
    for column in ["sha256", "held", "payload", "oldest_us", "ordinal", "state"] {
        let dir = filled(3).await;
        let store = open(settings(dir.path()));
        store.clock_is(Some(known())).await.unwrap();
        store.seal_now().await.unwrap();
        fill(&store, 3..4).await;
        store.seal_now().await.unwrap();
        store.stop().await;
        damage_cells(dir.path(), &format!("UPDATE batches SET {column} = 'x' WHERE ordinal = 1"));
        let (store, _) = opened(dir.path());
        // What a batch held is known by its index, unless that is the very cell.
        if matches!(column, "held") {
            assert_eq!(drain(&store).await.len(), 10);
        } else if column == "oldest_us" {
            assert_eq!(drain(&store).await.len(), 40, "when it came is for people only");
        } else {
            let (_, lost) = all_accounted_for(&store, 40).await;
            assert_eq!(lost, (0..30).collect::<Vec<_>>(), "{column}");
        }
        store.stop().await;
    }
}

#[tokio::test]
async fn a_sealed_batch_that_is_not_what_its_digest_says_never_leaves_and_its_frames_may_come_again() {
    let dir = filled(3).await;
    let store = open(settings(dir.path()));
    store.clock_is(Some(known())).await.unwrap();
    store.seal_now().await.unwrap();
    store.stop().await;
    let flip =
        "UPDATE batches SET payload = CAST(substr(payload, 1, 20) || x'ff' || substr(payload, 22) AS BLOB)";
    assert_eq!(connect(dir.path()).execute(flip, []).unwrap(), 1);
    let (store, board) = opened(dir.path());
    assert!(store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap().is_empty());
    until("nobody is told", async || board.now().alerts.contains_key("damaged")).await;
    let (_, lost) = all_accounted_for(&store, 30).await;
    assert_eq!(lost.len(), 30);
    let wanted = store.wanted(hardware()).await.unwrap();
    assert_eq!(wanted.frames[&EPOCH].ranges(), [(0, 29)]);
    let again = store.append(hardware(), (0..30).map(|seq| scalar(EPOCH, seq)).collect()).await.unwrap();
    assert!(again.iter().all(|appended| appended.outcome == Outcome::Stored));
    assert!(
        store.wanted(hardware()).await.unwrap().frames.values().all(kinara_gatewayd::store::SeqSet::is_empty)
    );
    assert_eq!(drain(&store).await.len(), 30);
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_batch_of_a_wearable_without_a_name_has_its_gap_when_it_is_known_whose() {
    let dir = filled(3).await;
    let store = open(settings(dir.path()));
    store.clock_is(Some(known())).await.unwrap();
    store.seal_now().await.unwrap();
    store.stop().await;
    let flip =
        "UPDATE batches SET payload = CAST(substr(payload, 1, 20) || x'ff' || substr(payload, 22) AS BLOB)";
    assert_eq!(connect(dir.path()).execute(flip, []).unwrap(), 1);
    assert_eq!(connect(dir.path()).execute("UPDATE devices SET hardware = '?'", []).unwrap(), 1);
    let (store, _) = opened(dir.path());
    assert!(store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap().is_empty());
    store.stop().await;
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    store.clock_is(Some(known())).await.unwrap();
    let (_, lost) = all_accounted_for(&store, 30).await;
    assert_eq!(lost.len(), 30);
    assert_eq!(store.wanted(hardware()).await.unwrap().frames[&EPOCH].ranges(), [(0, 29)]);
    store.stop().await;
}

async fn until_an_event_is_sealed(store: &Store) {
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    until("no event is sealed", async || {
        !store.waiting(Kind::Event, Vec::new(), 16, 1 << 20).await.unwrap().is_empty()
    })
    .await;
}

/// A bit flips in a page that holds a row of an index's column: SQL alone would change the index as well.
fn scribble_into_the_batch_of_an_event(dir: &Path, buffer: i64) {
    let path = database(&settings(dir));
    let page = pages(dir, "events")[0] as usize;
    let mut bytes = std::fs::read(&path).unwrap();
    let row = &mut bytes[(page - 1) * 4096..page * 4096];
    let number = buffer.to_be_bytes();
    let at = row.windows(8).position(|window| window == number).unwrap();
    row[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_bit_in_an_events_batch_costs_no_database() {
    let dir = filled(1).await;
    let store = open(settings(dir.path()));
    store.put_event(super::frames::event(&hardware(), EPOCH, 10_000)).await.unwrap();
    until_an_event_is_sealed(&store).await;
    store.stop().await;
    let buffer = "SELECT buffer FROM events WHERE buffer IS NOT NULL";
    let buffer: i64 = connect(dir.path()).query_row(buffer, [], |row| row.get(0)).unwrap();
    scribble_into_the_batch_of_an_event(dir.path(), buffer);
    let (store, board) = opened(dir.path());
    until_an_event_is_sealed(&store).await;
    assert_eq!(drain(&store).await.len(), ROW as usize);
    assert!(!board.now().alerts.contains_key("store"), "{:?}", board.now().alerts);
    store.stop().await;
    let aside = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(aside.into_iter().all(|name| !name.to_string_lossy().contains("broken")));
}

/// A bit flips in what says that an event's key is a text.
fn scribble_into_the_type_of_an_events_key(dir: &Path) {
    let length: i64 = connect(dir).query_row("SELECT length(key) FROM events", [], |row| row.get(0)).unwrap();
    let path = database(&settings(dir));
    let page = pages(dir, "events")[0] as usize;
    let mut bytes = std::fs::read(&path).unwrap();
    let row = &mut bytes[(page - 1) * 4096..page * 4096];
    // A record's header: NULL for the row's own number, then 13 + 2 N for a text of N bytes, as a number of seven bits a byte.
    let kind = 13 + 2 * length;
    let header =
        if kind < 128 { vec![0, kind as u8] } else { vec![0, 0x80 | (kind >> 7) as u8, kind as u8 & 0x7f] };
    let at = row.windows(header.len()).rposition(|window| window == header).unwrap() + header.len() - 1;
    row[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_bit_in_the_type_of_an_events_key_keeps_no_event_waiting() {
    let dir = filled(1).await;
    let store = open(settings(dir.path()));
    store.put_event(super::frames::event(&hardware(), EPOCH, 10_000)).await.unwrap();
    store.stop().await;
    scribble_into_the_type_of_an_events_key(dir.path());
    let kind = "SELECT typeof(key) FROM events NOT INDEXED";
    let kind: String = connect(dir.path()).query_row(kind, [], |row| row.get(0)).unwrap();
    assert_eq!(kind, "blob");
    let (store, board) = opened(dir.path());
    until_an_event_is_sealed(&store).await;
    assert_eq!(drain(&store).await.len(), ROW as usize);
    assert!(!board.now().alerts.contains_key("store"), "{:?}", board.now().alerts);
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_batch_of_events_costs_nothing_for_they_are_sealed_again() {
    let dir = filled(1).await;
    let store = open(settings(dir.path()));
    store.put_event(super::frames::event(&hardware(), EPOCH, 10_000)).await.unwrap();
    until_an_event_is_sealed(&store).await;
    store.stop().await;
    let flip = "UPDATE batches SET payload = zeroblob(length(payload)) WHERE kind = 1";
    assert_eq!(connect(dir.path()).execute(flip, []).unwrap(), 1);
    let (store, _) = opened(dir.path());
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let (events, _) = super::frames::told(&store, 1).await;
    assert_eq!(events[0].onset_ticks, 10_000);
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_page_costs_its_rows_and_all_others_are_brought_over() {
    let rows = 300;
    let count = pages(filled(rows).await.path(), "pieces").len();
    assert!(count > 20, "{count} pages are too few to tell");
    for which in [0, count / 2, count - 1] {
        let dir = filled(rows).await;
        let page = pages(dir.path(), "pieces")[which];
        scribble(dir.path(), page);
        let (store, board) = opened(dir.path());
        all_back(dir.path()).await;
        let (here, lost) = all_accounted_for(&store, rows * ROW).await;
        assert!(!lost.is_empty() && lost.len() < 200, "page {which} of {count} cost {} frames", lost.len());
        assert!(here.len() > 2_800);
        until("nobody is told", async || board.now().alerts.contains_key("damaged")).await;
        let alert = board.now().alerts["damaged"].clone();
        assert!(alert.contains("set aside as store.broken-"), "{alert}");
        // Those that are lost are wanted, and no others.
        let wanted = store.wanted(hardware()).await.unwrap();
        assert!(!wanted.everything);
        assert_eq!(wanted.frames[&EPOCH].len(), lost.len() as u64);
        store.stop().await;
    }
}

#[tokio::test]
async fn a_damaged_page_of_any_table_costs_no_frame_that_lies_elsewhere() {
    for table in ["epochs", "anchors", "devices", "meta", "events", "pieces_by_identity", "batches_in_order"]
    {
        let dir = filled(100).await;
        let Some(page) = pages(dir.path(), table).first().copied() else { panic!("{table} has no page") };
        scribble(dir.path(), page);
        let (store, _) = opened(dir.path());
        // What was here is not known any more: it is asked for again.
        assert_eq!(store.wanted(hardware()).await.unwrap().everything, table == "epochs", "{table}");
        fill(&store, 100..110).await;
        all_back(dir.path()).await;
        assert_eq!(drain(&store).await.len(), 1_100, "{table}");
        store.stop().await;
    }
}

#[tokio::test]
async fn what_an_earlier_version_wrote_is_carried_over_row_by_row_and_a_damaged_cell_costs_its_row() {
    let dir = filled(12).await;
    let store = open(settings(dir.path()));
    store.clock_is(Some(known())).await.unwrap();
    store.seal_now().await.unwrap();
    fill(&store, 12..20).await;
    store.stop().await;
    let db = connect(dir.path());
    db.execute_batch(include_str!("version_3.sql")).unwrap();
    assert_eq!(db.execute("UPDATE pieces SET frames = 'x' WHERE first_seq = 140", []).unwrap(), 1);
    assert_eq!(db.execute("UPDATE anchors SET utc_us = 'x'", []).unwrap(), 1);
    drop(db);
    let (store, board) = opened(dir.path());
    until("nobody is told", async || board.now().buffer.damaged == 2).await;
    fill(&store, 20..21).await;
    let (_, lost) = all_accounted_for(&store, 210).await;
    assert_eq!(lost, (140..150).collect::<Vec<_>>());
    // What is in a batch of before is known as well.
    let again = store.append(hardware(), vec![scalar(EPOCH, 3)]).await.unwrap();
    assert_eq!(again[0].outcome, Outcome::Duplicate);
    store.stop().await;
    let old: i64 = connect(dir.path())
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'old_%'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(old, 0);
}

#[tokio::test]
async fn a_database_that_is_gone_is_asked_for_when_there_were_bonds_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = opened(dir.path());
    assert!(!store.wanted(hardware()).await.unwrap().everything, "a new box wants nothing");
    store.stop().await;
    std::fs::write(dir.path().join("devices.json"), "{}").unwrap();
    std::fs::remove_file(database(&settings(dir.path()))).unwrap();
    let (store, _) = opened(dir.path());
    assert!(store.wanted(hardware()).await.unwrap().everything);
    store.no_longer_wanted(hardware(), (EPOCH, 5)).await.unwrap();
    assert!(!store.wanted(hardware()).await.unwrap().everything);
    store.stop().await;
}

#[tokio::test]
async fn who_was_asked_after_one_loss_is_asked_again_after_the_next() {
    let dir = filled(3).await;
    for _ in 0..2 {
        let page = pages(dir.path(), "epochs")[0];
        scribble(dir.path(), page);
        let (store, _) = opened(dir.path());
        assert!(store.wanted(hardware()).await.unwrap().everything);
        store.no_longer_wanted(hardware(), (EPOCH, 5)).await.unwrap();
        assert!(!store.wanted(hardware()).await.unwrap().everything);
        fill(&store, 3..4).await;
        store.stop().await;
    }
}

/// The folder in which nothing can be made, as on a file system that was remounted: and undone with this.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn freeze(dir: &'a Path) -> Option<Self> {
        let done = Command::new("chattr").arg("+i").arg(dir).output();
        let frozen = Self(dir);
        (done.is_ok_and(|output| output.status.success()) && std::fs::write(dir.join("x"), "").is_err())
            .then_some(frozen)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_recovery_that_fails_is_seen_and_tried_again_until_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    store.set_online(true).await.unwrap();
    synchronise(&store, &hardware(), EPOCH).await;
    // More than SQLite keeps in memory.
    for first in (0..40_000).step_by(500) {
        let frames = (first..first + 500).map(|seq| noise(FrameKind::Scalar, EPOCH, seq)).collect();
        store.append(hardware(), frames).await.unwrap();
    }
    store.stop().await;
    let (store, board) = opened(dir.path());
    assert!(board.now().buffer.trouble.is_empty());
    let Some(frozen) = Frozen::freeze(dir.path()) else {
        eprintln!("SKIPPED: a folder cannot be frozen here (needs root and chattr)");
        return;
    };
    let pages = pages(dir.path(), "pieces");
    for page in &pages[pages.len() / 2..] {
        scribble(dir.path(), *page);
    }
    store.clock_is(Some(known())).await.unwrap();
    until("the damage is not found", async || {
        let _ = store.seal_now().await;
        !board.now().buffer.trouble.is_empty()
    })
    .await;
    assert!(board.now().alerts.contains_key("store"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!board.now().buffer.trouble.is_empty(), "it is said for as long as it lasts");
    assert!(store.append(hardware(), vec![scalar(EPOCH, 50_000)]).await.is_err());
    drop(frozen);
    until("it does not come back", async || board.now().buffer.trouble.is_empty()).await;
    assert!(!board.now().alerts.contains_key("store"));
    let fates = store.append(hardware(), vec![scalar(EPOCH, 50_000)]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Stored);
    all_back(dir.path()).await;
    let left = drain(&store).await.len();
    assert!((10_000..40_000).contains(&left), "{left} frames of 40000");
    store.stop().await;
}

#[tokio::test]
async fn a_gateway_that_starts_on_a_disk_that_cannot_be_written_waits_for_it() {
    let dir = filled(20).await;
    let Some(frozen) = Frozen::freeze(dir.path()) else {
        eprintln!("SKIPPED: a folder cannot be frozen here (needs root and chattr)");
        return;
    };
    let (store, board) = opened(dir.path());
    assert!(!board.now().buffer.trouble.is_empty() && board.now().alerts.contains_key("store"));
    assert!(store.append(hardware(), vec![scalar(EPOCH, 5_000)]).await.is_err());
    drop(frozen);
    until("it does not come back", async || board.now().buffer.trouble.is_empty()).await;
    assert_eq!(drain(&store).await.len(), 200);
    store.stop().await;
}

#[tokio::test]
async fn a_store_that_stays_broken_for_a_minute_no_longer_says_that_it_lives() {
    let dir = filled(1).await;
    let Some(frozen) = Frozen::freeze(dir.path()) else {
        eprintln!("SKIPPED: a folder cannot be frozen here (needs root and chattr)");
        return;
    };
    let (store, board) = opened(dir.path());
    let silent = || board.vitals().silent_for(Duration::from_secs(5)).contains(&"store".to_owned());
    let began = Instant::now();
    while !silent() {
        assert!(began.elapsed() < Duration::from_secs(90), "the watchdog would never hear of it");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(30), "a short trouble is none of the watchdog's");
    drop(frozen);
    until("it lives again", async || !silent()).await;
    store.stop().await;
}

/// A file system on a disk that is smaller than it says: writes that do not fit there fail as on a broken card.
struct FailingDisk {
    below: PathBuf,
    at: PathBuf,
}

impl FailingDisk {
    fn mount(dir: &Path) -> Option<Self> {
        let disk = Self { below: dir.join("below"), at: dir.join("disk") };
        std::fs::create_dir(&disk.below).ok()?;
        std::fs::create_dir(&disk.at).ok()?;
        let (below, at) = (disk.below.to_str()?, disk.at.to_str()?);
        let image = format!("{below}/image");
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let made = run("mount", &["-t", "tmpfs", "-o", "size=10m", "tmpfs", below])
            && run("truncate", &["-s", "256m", &image])
            && run("mkfs.ext2", &["-q", "-F", "-E", "nodiscard", "-e", "continue", &image])
            && run("mount", &["-o", "loop", &image, at]);
        made.then_some(disk)
    }

    fn mend(&self) {
        let done = Command::new("mount").args(["-o", "remount,size=300m"]).arg(&self.below).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = Command::new("umount").arg("-l").arg(&self.below).status();
    }
}

#[tokio::test]
async fn an_io_error_is_no_full_disk_and_what_was_acknowledged_is_there_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = FailingDisk::mount(dir.path()) else {
        eprintln!("SKIPPED: a file system cannot be mounted here (needs root)");
        return;
    };
    let board = board();
    let settings = Settings { reserve: 64 << 10, ..settings(&disk.at.join("data")) };
    let store = Store::open(settings, Arc::new(SystemClock), board.clone()).unwrap();
    synchronise(&store, &hardware(), EPOCH).await;
    let mut taken = BTreeMap::new();
    let mut next = 0;
    until("no write fails", async || {
        let frames: Vec<_> = (next..next + 500).map(|seq| noise(FrameKind::Scalar, EPOCH, seq)).collect();
        if let Ok(fates) = store.append(hardware(), frames.clone()).await {
            for (seq, (frame, fate)) in (next..).zip(frames.into_iter().zip(fates)) {
                assert!(fate.outcome.is_safe(), "an I/O error is not a full disk");
                taken.insert(seq, frame);
            }
            next += 500;
        }
        !board.now().buffer.trouble.is_empty()
    })
    .await;
    assert_ne!(*store.admission().borrow(), Admission::EventsOnly);
    assert!(!board.now().alerts.contains_key("disk"), "{:?}", board.now().alerts);
    disk.mend();
    until("it does not come back", async || board.now().buffer.trouble.is_empty()).await;
    let frames = drain(&store).await;
    let gone: Vec<u32> = taken
        .iter()
        .filter(|(seq, frame)| frames.get(&(hardware().to_string(), EPOCH.0, **seq)) != Some(&frame.to_vec()))
        .map(|(seq, _)| *seq)
        .collect();
    assert!(gone.is_empty(), "{} of {} acknowledged frames are gone", gone.len(), taken.len());
    store.stop().await;
}

#[tokio::test]
async fn frames_that_their_wearable_keeps_wait_together_and_what_has_no_second_copy_takes_them_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Settings { wearable_commit: Duration::from_secs(3), ..settings(dir.path()) });
    synchronise(&store, &hardware(), EPOCH).await;
    // Behind what every store does once after its start.
    tokio::time::sleep(WAIT).await;
    let began = Instant::now();
    let waiting: Vec<_> = (0..5)
        .map(|seq| {
            let store = store.clone();
            tokio::spawn(async move {
                store.append_with(Haste::MayWait, hardware(), vec![scalar(EPOCH, seq)]).await
            })
        })
        .collect();
    for append in waiting {
        append.await.unwrap().unwrap();
    }
    assert!(began.elapsed() > Duration::from_secs(2), "they did not wait");
    let rows: i64 =
        connect(dir.path()).query_row("SELECT count(*) FROM pieces", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1, "they are one row");
    // An event commits at once, and what waits with it.
    let began = Instant::now();
    let waits = {
        let store = store.clone();
        tokio::spawn(
            async move { store.append_with(Haste::MayWait, hardware(), vec![scalar(EPOCH, 5)]).await },
        )
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(store.put_event(super::frames::event(&hardware(), EPOCH, 10_000)).await.unwrap());
    waits.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_millis(2_500), "{:?}", began.elapsed());
    store.stop().await;
}

#[tokio::test]
async fn a_clock_that_goes_on_as_it_did_commits_nothing_of_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Settings { wearable_commit: Duration::from_secs(10), ..settings(dir.path()) });
    let clock = known();
    store.clock_is(Some(clock)).await.unwrap();
    // A second after its start the store looks through its epochs, and commits that.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let waits = {
        let store = store.clone();
        tokio::spawn(
            async move { store.append_with(Haste::MayWait, hardware(), vec![scalar(EPOCH, 0)]).await },
        )
    };
    let rows = || -> i64 {
        connect(dir.path()).query_row("SELECT count(*) FROM pieces", [], |row| row.get(0)).unwrap()
    };
    for turn in 0..8 {
        store.clock_is(Some(Known { uncertainty_us: 1_000 + turn, ..clock })).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(rows(), 0, "it was committed with the clock");
    // A jump is of weight: what it changes is on disk with the answer, and what waits goes along.
    store
        .clock_is(Some(Known { utc_minus_boot_us: clock.utc_minus_boot_us + 1_000_000, ..clock }))
        .await
        .unwrap();
    assert_eq!(rows(), 1);
    waits.await.unwrap().unwrap();
    store.stop().await;
}

#[tokio::test]
async fn a_frame_that_waits_for_its_time_makes_no_batches_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Settings { seal_after: Duration::from_millis(800), ..settings(dir.path()) });
    let stuck = HardwareId::kinara(0xb2);
    // Never synchronised: it waits.
    store.append(stuck.clone(), vec![scalar(EPOCH, 0)]).await.unwrap();
    synchronise(&store, &hardware(), EPOCH).await;
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    for seq in 0..40 {
        store.append(hardware(), vec![scalar(EPOCH, seq)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let most = began.elapsed().as_millis() / 700 + 1;
    let batches = store.waiting(Kind::Batch, Vec::new(), 1_000, usize::MAX).await.unwrap().len() as u128;
    assert!((1..=most).contains(&batches), "{batches} batches, at most {most}");
    store.stop().await;
}

/// Bytes that this process has read.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_large_backlog_costs_no_reads_while_nothing_happens() {
    let dir = filled(60).await;
    let db = connect(dir.path());
    for epoch in 1..200 {
        let copy = format!(
            "INSERT INTO pieces (device, epoch, class, form, first_seq, last_seq, frames, bytes, received_us,
                                 received_boot_us, body)
             SELECT device, {epoch}, class, 1, first_seq, last_seq, frames, bytes, received_us, received_boot_us,
                    CAST(body || zeroblob(4000) AS BLOB) FROM pieces WHERE epoch > 1000"
        );
        assert!(db.execute(&copy, []).unwrap() > 0);
    }
    drop(db);
    let (store, board) = opened(dir.path());
    until("it is not counted", async || board.now().buffer.frames > 100_000).await;
    // The count is the whole process's, so tests beside this one add to it: one quiet stretch is enough, and a store that
    // reads by itself has none.
    let mut per_second = u64::MAX;
    for _ in 0..12 {
        let before = bytes_read();
        tokio::time::sleep(Duration::from_secs(5)).await;
        per_second = per_second.min((bytes_read() - before) / 5);
        if per_second < 200_000 {
            break;
        }
    }
    assert!(per_second < 200_000, "{per_second} bytes a second of {} MB", board.now().buffer.bytes >> 20);
    store.stop().await;
}

#[tokio::test]
async fn epochs_that_nothing_refers_to_have_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let sensor = HardwareId::sensor([1, 2, 3, 4, 5, 6]);
    let store = open(settings(dir.path()));
    for number in 0..60 {
        let epoch = Epoch(0x1000 + number);
        synchronise(&store, &sensor, epoch).await;
        store.append(sensor.clone(), vec![scalar(epoch, 0)]).await.unwrap();
    }
    assert_eq!(drain(&store).await.len(), 60);
    store.stop().await;
    let (store, _) = opened(dir.path());
    tokio::time::sleep(WAIT).await;
    store.stop().await;
    let left: i64 =
        connect(dir.path()).query_row("SELECT count(*) FROM epochs", [], |row| row.get(0)).unwrap();
    assert!(left <= 16, "{left} epochs are remembered");
}

/// 2099-01-01, and a day.
const FAR_US: i64 = 4_070_908_800_000_000;
const DAY_US: i64 = 86_400_000_000;

#[tokio::test]
async fn frames_whose_wearable_lost_its_name_wait_for_ninety_days_from_when_it_was_missed() {
    let dir = filled(1).await;
    let db = connect(dir.path());
    // The box lay in a drawer, or its clock showed 1970.
    db.execute("UPDATE epochs SET seen_us = 0", []).unwrap();
    assert_eq!(db.execute("UPDATE devices SET hardware = '?'", []).unwrap(), 1);
    drop(db);
    let pruned = async || {
        let store = open(settings(dir.path()));
        store.clock_is(Some(known())).await.unwrap();
        tokio::time::sleep(WAIT).await;
        store.stop().await;
        connect(dir.path()).query_row("SELECT count(*) FROM epochs", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(pruned().await, 1);
    assert_eq!(pruned().await, 1);
    let since = |by_us: i64| {
        let sql = "UPDATE meta SET value = value + ?1 WHERE key GLOB 'unnamed *'";
        assert_eq!(connect(dir.path()).execute(sql, [by_us]).unwrap(), 1);
    };
    // Noted by a clock that was wrong, it is noted anew.
    since(FAR_US);
    assert_eq!(pruned().await, 1);
    since(-89 * DAY_US);
    assert_eq!(pruned().await, 1);
    since(-2 * DAY_US);
    assert_eq!(pruned().await, 0);
}

#[tokio::test]
async fn an_epoch_that_runs_is_remembered_though_others_grew_while_the_clock_was_in_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let sensor = HardwareId::sensor([1, 2, 3, 4, 5, 6]);
    let store = open(settings(dir.path()));
    for number in 0..17 {
        let epoch = Epoch(0x1000 + number);
        synchronise(&store, &sensor, epoch).await;
        store.append(sensor.clone(), vec![scalar(epoch, 0)]).await.unwrap();
    }
    assert_eq!(drain(&store).await.len(), 17);
    store.stop().await;
    let runs = 0x1010;
    connect(dir.path()).execute("UPDATE epochs SET seen_us = ?1 WHERE epoch < ?2", [FAR_US, runs]).unwrap();
    let (store, _) = opened(dir.path());
    store.clock_is(Some(known())).await.unwrap();
    tokio::time::sleep(WAIT).await;
    assert!(
        !store.received(sensor.clone(), Epoch(runs as u64)).await.unwrap().is_empty(),
        "it was forgotten"
    );
    store.stop().await;
    let (epochs, anchors): (i64, i64) = connect(dir.path())
        .query_row("SELECT (SELECT count(*) FROM epochs), (SELECT count(*) FROM anchors)", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!((epochs, anchors), (16, 16));
}

#[tokio::test]
async fn an_epoch_that_runs_is_remembered_though_the_clock_went_back_a_little() {
    let dir = tempfile::tempdir().unwrap();
    let sensor = HardwareId::sensor([1, 2, 3, 4, 5, 6]);
    let store = open(settings(dir.path()));
    for number in 0..17 {
        let epoch = Epoch(0x1000 + number);
        synchronise(&store, &sensor, epoch).await;
        store.append(sensor.clone(), vec![scalar(epoch, 0)]).await.unwrap();
    }
    assert_eq!(drain(&store).await.len(), 17);
    store.stop().await;
    let runs = 0x1010;
    connect(dir.path())
        .execute("UPDATE epochs SET seen_us = seen_us + 60000000 WHERE epoch = ?1", [runs])
        .unwrap();
    let (store, _) = opened(dir.path());
    store.clock_is(Some(known())).await.unwrap();
    tokio::time::sleep(WAIT).await;
    assert!(!store.received(sensor, Epoch(runs as u64)).await.unwrap().is_empty(), "it was forgotten");
    store.stop().await;
}

#[tokio::test]
async fn a_wearable_that_was_seen_in_2099_is_not_kept_until_then() {
    let dir = filled(1).await;
    connect(dir.path()).execute("UPDATE epochs SET seen_us = ?1", [FAR_US]).unwrap();
    let (store, _) = opened(dir.path());
    store.clock_is(Some(known())).await.unwrap();
    tokio::time::sleep(WAIT).await;
    store.stop().await;
    let seen_us: i64 =
        connect(dir.path()).query_row("SELECT seen_us FROM epochs", [], |row| row.get(0)).unwrap();
    assert!(seen_us < FAR_US, "it would never be forgotten");
}

#[tokio::test]
async fn what_was_found_to_be_damaged_by_a_clock_that_was_wrong_is_kept_as_long_as_anything_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    store.stop().await;
    let found = "INSERT INTO damaged (origin, identity, why, found_us) VALUES ('pieces', 'row 1', 'x', ?1)";
    for found_us in [FAR_US, 0] {
        connect(dir.path()).execute(found, [found_us]).unwrap();
    }
    let (store, _) = opened(dir.path());
    store.clock_is(Some(known())).await.unwrap();
    let now_us = SystemClock.utc_us();
    tokio::time::sleep(WAIT).await;
    store.stop().await;
    let (count, first, last): (i64, i64, i64) = connect(dir.path())
        .query_row("SELECT count(*), min(found_us), max(found_us) FROM damaged", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    assert_eq!(count, 2, "it was forgotten before anybody looked");
    assert!(first >= now_us && last < FAR_US, "{first} to {last}");
}

#[tokio::test]
async fn a_number_of_which_a_bit_flipped_costs_no_other_row_and_keeps_none_waiting_for_ever() {
    let far = 1i64 << 62;
    for (cell, value) in [
        ("UPDATE pieces SET received_boot_us = ?1", i64::MIN),
        ("UPDATE pieces SET received_boot_us = ?1", far),
        ("UPDATE pieces SET received_boot_us = ?1", -far),
        ("UPDATE meta SET value = ?1 WHERE key = 'alive_boot_us'", i64::MIN),
        ("UPDATE meta SET value = ?1 WHERE key = 'alive_boot_us'", far),
    ] {
        for reboots in [true, false] {
            let dir = filled(10).await;
            let store = open(settings(dir.path()));
            // Of an epoch without any time sync: it waits for one.
            store.append(hardware(), vec![scalar(Epoch::new(99, 1), 0)]).await.unwrap();
            store.stop().await;
            let db = connect(dir.path());
            assert!(db.execute(cell, [value]).unwrap() > 0, "{cell}");
            if reboots {
                db.execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'", []).unwrap();
            }
            drop(db);
            let (store, board) = opened(dir.path());
            tokio::time::sleep(Duration::from_millis(400)).await;
            let told = board.now().buffer;
            let what = format!("{cell} {value} {reboots}");
            assert_eq!((told.damaged, told.trouble), (0, String::new()), "{what}");
            // What cannot have begun to wait then waits no more; at a reboot it begins to.
            let waits = reboots || !cell.contains("pieces");
            assert_eq!(drain(&store).await.len(), if waits { 100 } else { 101 }, "{what}");
            store.stop().await;
        }
    }
}
