//! Damage to single rows of the store: what it costs, and that it costs no more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::store::{Outcome, Settings, Store, database};
use kinara_protocol::envelope::Gap;
use kinara_protocol::frame::Epoch;
use tempfile::TempDir;

use super::frames::{
    board, drain, event, known, open, scalar, sent, seqs_of, settings, synchronise, waveform,
};

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
