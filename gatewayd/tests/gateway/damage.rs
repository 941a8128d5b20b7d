//! Damage to single rows of the store: what it costs, and that it costs no more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::store::{Kind, Outcome, Settings, Store, database};
use kinara_protocol::envelope::{self, Decision, EventBatch, Gap};
use kinara_protocol::frame::Epoch;
use prost::Message;
use tempfile::TempDir;
use uuid::Uuid;

use super::frames::{
    board, drain, event, known, open, scalar, sent, seqs_of, settings, synchronise, waveform,
};
use super::mends::{damage_cells, pages};

const EPOCH: Epoch = Epoch::new(7, 1);
/// One row in the database.
const ROW: u32 = 10;
const WAIT: Duration = Duration::from_millis(1_500);

fn hardware() -> HardwareId {
    HardwareId::kinara(0xa1)
}

/// A folder with a store of some rows of frames, stopped.
async fn filled(rows: u32, frame: impl Fn(Epoch, u32) -> Bytes) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    for row in 0..rows {
        let frames = (row * ROW..(row + 1) * ROW).map(|seq| frame(EPOCH, seq)).collect();
        store.append(hardware(), frames).await.unwrap();
    }
    store.stop().await;
    dir
}

/// Does something to the database that no program does; gives how many rows it touched.
fn damage(dir: &Path, sql: &str) -> usize {
    rusqlite::Connection::open(database(&settings(dir))).unwrap().execute(sql, []).unwrap()
}

const THIRD_ROW: &str = "UPDATE pieces SET body = zeroblob(length(body)) WHERE first_seq = 20";

/// What was set aside lies in its table, somebody is told, and the database is still the same.
async fn is_set_aside_alone(dir: &Path, origin: &str) {
    let board = board();
    let store = Store::open(settings(dir), Arc::new(SystemClock), board.clone()).unwrap();
    tokio::time::sleep(WAIT).await;
    assert!(board.now().alerts.contains_key("damaged"));
    store.stop().await;
    let db = rusqlite::Connection::open(database(&settings(dir))).unwrap();
    let kept: Vec<String> = db
        .prepare("SELECT origin FROM damaged")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(kept, [origin]);
    let names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("broken"))
        .collect();
    assert_eq!(names, [""; 0]);
}

async fn gaps(store: &Store) -> Vec<Gap> {
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    sent(store, WAIT).await.1
}

/// Of a hundred (or more) frames all came out but the third row's, which are in a gap.
async fn all_but_the_third_row(store: &Store, frames: usize) {
    let there = drain(store).await;
    assert_eq!(there.len(), frames - ROW as usize);
    let gaps = gaps(store).await;
    let [gap] = gaps.as_slice() else { panic!("{gaps:?}") };
    assert_eq!((gap.reason.as_str(), seqs_of(gap)), ("gateway_lost", (20..30).collect()));
    assert_eq!((gap.from_utc_us, gap.to_utc_us), (0, 0));
}

#[tokio::test]
async fn a_row_of_frames_that_cannot_be_read_costs_its_frames_and_leaves_a_gap() {
    let dir = filled(10, scalar).await;
    assert_eq!(damage(dir.path(), THIRD_ROW), 1);
    let store = open(settings(dir.path()));
    all_but_the_third_row(&store, 100).await;
    store.stop().await;
    is_set_aside_alone(dir.path(), "pieces").await;
}

#[tokio::test]
async fn a_damaged_row_is_left_out_when_the_others_are_packed() {
    // Just too few to be packed; with the next ones they are.
    let dir = filled(19, scalar).await;
    assert_eq!(damage(dir.path(), THIRD_ROW), 1);
    let store = open(settings(dir.path()));
    store.append(hardware(), (190..200).map(|seq| scalar(EPOCH, seq)).collect()).await.unwrap();
    tokio::time::sleep(WAIT).await;
    store.stop().await;
    let rows = damage(dir.path(), "UPDATE pieces SET id = id WHERE form = 1");
    assert!(rows > 0, "nothing was packed");
    let store = open(settings(dir.path()));
    all_but_the_third_row(&store, 200).await;
    store.stop().await;
    is_set_aside_alone(dir.path(), "pieces").await;
}

#[tokio::test]
async fn a_frame_that_comes_again_takes_the_place_of_its_damaged_copy() {
    let dir = filled(10, scalar).await;
    assert_eq!(damage(dir.path(), THIRD_ROW), 1);
    let store = open(settings(dir.path()));
    let again = (15..30).map(|seq| scalar(EPOCH, seq)).collect();
    let fates: Vec<Outcome> =
        store.append(hardware(), again).await.unwrap().iter().map(|appended| appended.outcome).collect();
    assert_eq!(fates[..5], [Outcome::Duplicate; 5]);
    assert_eq!(fates[5..], [Outcome::Stored; 10]);
    assert_eq!(drain(&store).await.len(), 100);
    store.stop().await;
    is_set_aside_alone(dir.path(), "pieces").await;
}

#[tokio::test]
async fn damaged_waveforms_do_not_keep_the_others_from_giving_way() {
    let dir = filled(6, waveform).await;
    assert_eq!(damage(dir.path(), THIRD_ROW), 1);
    let store = open(Settings { soft_limit: 1, ..settings(dir.path()) });
    tokio::time::sleep(WAIT).await;
    let mut gaps = gaps(&store).await;
    gaps.sort_by_key(|gap| gap.reason.clone());
    assert_eq!((gaps[0].reason.as_str(), seqs_of(&gaps[0])), ("gateway_lost", (20..30).collect()));
    let dropped: usize = gaps[1..].iter().map(|gap| seqs_of(gap).len()).sum();
    assert!(gaps[1..].iter().all(|gap| gap.reason == "quota") && dropped == 50);
    store.stop().await;
    is_set_aside_alone(dir.path(), "pieces").await;
}

#[tokio::test]
async fn a_damaged_event_does_not_keep_the_others_back() {
    let dir = filled(1, scalar).await;
    let store = open(settings(dir.path()));
    for onset in [10_000, 20_000, 30_000] {
        store.put_event(event(&hardware(), EPOCH, onset)).await.unwrap();
    }
    store.stop().await;
    assert_eq!(damage(dir.path(), "UPDATE events SET body = x'ffffffff' WHERE id = 2"), 1);
    let store = open(settings(dir.path()));
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let (events, _) = sent(&store, WAIT).await;
    assert_eq!(events.iter().map(|event| event.onset_ticks).collect::<Vec<_>>(), [10_000, 30_000]);
    // What was found again is told again.
    assert!(store.put_event(event(&hardware(), EPOCH, 20_000)).await.unwrap());
    store.stop().await;
    is_set_aside_alone(dir.path(), "events").await;
}

#[tokio::test]
async fn a_damaged_note_of_what_was_received_begins_anew_with_what_is_stored() {
    let dir = filled(3, scalar).await;
    assert_eq!(damage(dir.path(), "UPDATE epochs SET received = x'01'"), 1);
    let store = open(settings(dir.path()));
    let again = (29..32).map(|seq| scalar(EPOCH, seq)).collect();
    let fates: Vec<Outcome> =
        store.append(hardware(), again).await.unwrap().iter().map(|appended| appended.outcome).collect();
    assert_eq!(fates, [Outcome::Duplicate, Outcome::Stored, Outcome::Stored]);
    assert_eq!(drain(&store).await.len(), 32);
    store.stop().await;
    is_set_aside_alone(dir.path(), "epochs").await;
}

#[tokio::test]
async fn a_wearable_whose_name_is_damaged_does_not_keep_the_others_back() {
    let dir = filled(1, scalar).await;
    let store = open(settings(dir.path()));
    let other = HardwareId::kinara(0xb2);
    synchronise(&store, &other, EPOCH).await;
    store.append(other.clone(), vec![scalar(EPOCH, 0)]).await.unwrap();
    store.stop().await;
    assert_eq!(damage(dir.path(), "UPDATE devices SET hardware = '?' WHERE id = 1"), 1);
    let store = open(settings(dir.path()));
    let frames = drain(&store).await;
    assert_eq!(frames.into_keys().collect::<Vec<_>>(), [(other.to_string(), EPOCH.0, 0)]);
    store.stop().await;
}

#[tokio::test]
async fn a_wearable_whose_name_is_damaged_is_known_by_its_log_and_its_number_is_nobody_elses() {
    let dir = filled(1, scalar).await;
    assert_eq!(damage(dir.path(), "UPDATE devices SET hardware = '?'"), 1);
    let store = open(settings(dir.path()));
    let other = HardwareId::kinara(0xb2);
    synchronise(&store, &other, Epoch::new(9, 1)).await;
    store.append(other.clone(), vec![scalar(Epoch::new(9, 1), 0)]).await.unwrap();
    let there: Vec<_> = drain(&store).await.into_keys().collect();
    assert_eq!(there, [(other.to_string(), Epoch::new(9, 1).0, 0)]);
    store.stop().await;
    // Whatever is restarted meanwhile, they wait.
    let store = open(settings(dir.path()));
    let next_boot = Epoch::new(EPOCH.log_id(), 2);
    synchronise(&store, &hardware(), next_boot).await;
    assert!(store.received(hardware(), EPOCH).await.unwrap().contains(9));
    store.append(hardware(), vec![scalar(next_boot, 0)]).await.unwrap();
    let there: Vec<_> = drain(&store).await.into_keys().collect();
    let name = hardware().to_string();
    let mut all: Vec<_> = (0..10).map(|seq| (name.clone(), EPOCH.0, seq)).collect();
    all.push((name, next_boot.0, 0));
    assert_eq!(there, all);
    store.stop().await;
}

/// Puts a sign into the name of the wearable, in its row alone.
fn scribble_into_the_name(dir: &Path) {
    let path = database(&settings(dir));
    let page = pages(dir, "devices")[0] as usize;
    let mut bytes = std::fs::read(&path).unwrap();
    let name = hardware().to_string();
    let row = &mut bytes[(page - 1) * 4096..page * 4096];
    let at = row.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    row[at + name.len() - 1] = b'?';
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_wearable_whose_name_is_damaged_has_it_again_from_the_index() {
    let dir = filled(1, scalar).await;
    scribble_into_the_name(dir.path());
    let store = open(settings(dir.path()));
    assert_eq!(drain(&store).await.len(), 10);
    store.stop().await;
    is_set_aside_alone(dir.path(), "devices").await;
    let store = open(settings(dir.path()));
    assert!(store.received(hardware(), EPOCH).await.unwrap().contains(9));
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_row_of_a_wearable_without_a_name_has_its_gap_when_it_is_known_whose() {
    let dir = filled(10, scalar).await;
    assert_eq!(damage(dir.path(), "UPDATE devices SET hardware = '?'"), 1);
    damage_cells(dir.path(), "UPDATE pieces SET frames = 'x' WHERE first_seq = 20");
    open(settings(dir.path())).stop().await;
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    all_but_the_third_row(&store, 100).await;
    store.stop().await;
}

/// Decisions that have gone out after a while.
async fn decided(store: &Store) -> Vec<i64> {
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    tokio::time::sleep(WAIT).await;
    let waiting = store.waiting(Kind::Event, Vec::new(), 100, usize::MAX).await.unwrap();
    let batches = waiting.iter().map(|sealed| envelope::open::<EventBatch>(&sealed.payload).unwrap());
    batches.flat_map(|batch| batch.decisions).map(|decision| decision.at_utc_us).collect()
}

/// A folder with one decision that waits for the cloud.
async fn with_a_decision() -> TempDir {
    let dir = filled(1, scalar).await;
    let store = open(settings(dir.path()));
    let decision = Decision { id: vec![5; 16], at_utc_us: 7, ..Decision::default() };
    store.put_decisions(vec![(Uuid::from_u128(5), decision.encode_to_vec())]).await.unwrap();
    store.stop().await;
    dir
}

#[tokio::test]
async fn a_decision_whose_body_is_whole_goes_to_the_cloud_whatever_cell_beside_it_is_damaged() {
    for cell in ["put_boot_us = 'x'", "gap = 'x'", "gap = 0", "buffer = 'x'", "sequence = 'x', buffer = 5"] {
        for reboots in [false, true] {
            let dir = with_a_decision().await;
            damage_cells(dir.path(), &format!("UPDATE events SET {cell}"));
            if reboots {
                damage(dir.path(), ANOTHER_BOOT);
            }
            let store = open(settings(dir.path()));
            assert_eq!(decided(&store).await, [7], "{cell}, {reboots}");
            store.stop().await;
        }
    }
}

const ANOTHER_BOOT: &str = "UPDATE meta SET value = 'another' WHERE key = 'boot_id'";

#[tokio::test]
async fn a_cell_of_a_wrong_type_costs_its_row_and_no_database_at_a_reboot() {
    let dir = filled(10, scalar).await;
    damage_cells(dir.path(), "UPDATE pieces SET frames = 'x' WHERE first_seq = 20");
    assert_eq!(damage(dir.path(), ANOTHER_BOOT), 1);
    let store = open(settings(dir.path()));
    all_but_the_third_row(&store, 100).await;
    store.stop().await;
    is_set_aside_alone(dir.path(), "pieces").await;
}

#[tokio::test]
async fn people_are_told_of_a_decision_that_is_lost() {
    let dir = with_a_decision().await;
    assert_eq!(damage(dir.path(), "UPDATE events SET body = x'ffffffff'"), 1);
    let board = board();
    let store = Store::open(settings(dir.path()), Arc::new(SystemClock), board.clone()).unwrap();
    assert!(decided(&store).await.is_empty());
    assert!(board.now().alerts.contains_key("decision-damaged"));
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_cell_that_is_only_told_of_keeps_no_reading_out() {
    for cell in [
        "UPDATE pieces SET first_seq = 'x'",
        "UPDATE damaged SET identity = x'00'",
        "UPDATE damaged SET why = x'00'",
    ] {
        let dir = filled(2, scalar).await;
        damage(
            dir.path(),
            "INSERT INTO damaged (origin, identity, why, found_us) VALUES ('database', 'a', 'b', 0)",
        );
        damage_cells(dir.path(), cell);
        let board = board();
        let store = Store::open(settings(dir.path()), Arc::new(SystemClock), board.clone()).unwrap();
        store.set_online(true).await.unwrap();
        tokio::time::sleep(WAIT).await;
        let told = board.now().buffer;
        assert_eq!((told.trouble, told.frames, told.damaged), (String::new(), 20, 1), "{cell}");
        store.stop().await;
    }
}
