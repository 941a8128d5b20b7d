//! A wearable's word that a sensor of it is silent reaches people.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::Board;
use kinara_gatewayd::store::{Outcome, Store};
use kinara_protocol::frame::{
    BootAnchor, DeviceEvent, DeviceEventKind, Epoch, MAX_FRAME, ResetReason, Sensor, Seq, Ticks,
    encode_boot_anchor, encode_device_event,
};

use super::frames::{board, settings};
use super::mends::until;

const FIRST: Epoch = Epoch::new(9, 1);
const SECOND: Epoch = Epoch::new(9, 2);

fn hardware(number: u64) -> HardwareId {
    HardwareId::kinara(number)
}

fn says(epoch: Epoch, seq: Seq, kind: DeviceEventKind) -> Bytes {
    let mut out = [0; MAX_FRAME];
    let event = DeviceEvent { ticks: Ticks(u64::from(seq) * 1_000), kind };
    let len = encode_device_event(epoch, seq, &event, &mut out);
    Bytes::copy_from_slice(&out[..len])
}

fn silent(epoch: Epoch, seq: Seq, sensor: Sensor) -> Bytes {
    says(epoch, seq, DeviceEventKind::SensorSilent(sensor))
}

fn answers(epoch: Epoch, seq: Seq, sensor: Sensor) -> Bytes {
    says(epoch, seq, DeviceEventKind::SensorAnswers(sensor))
}

fn boots(epoch: Epoch) -> Bytes {
    let mut out = [0; MAX_FRAME];
    let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
    let len = encode_boot_anchor(epoch, 0, Ticks(0), &anchor, &mut out);
    Bytes::copy_from_slice(&out[..len])
}

fn open(dir: &Path) -> (Store, Board) {
    let board = board();
    for number in 1..=40 {
        board.device(&hardware(number), |device| device.name = format!("K-{number:04}"));
    }
    (Store::open(settings(dir), Arc::new(SystemClock), board.clone()).unwrap(), board)
}

async fn put(store: &Store, number: u64, frame: Bytes) {
    let fates = store.append(hardware(number), vec![frame]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Stored);
}

fn told(board: &Board) -> Option<String> {
    board.now().alerts.get("sensors").cloned()
}

async fn until_told(board: &Board, what: &[&str]) {
    until(&format!("{what:?} is not told"), async || {
        told(board).is_some_and(|text| what.iter().all(|word| text.contains(word)))
    })
    .await;
}

async fn until_nothing_is_told(board: &Board) {
    until("it is still told", async || told(board).is_none()).await;
}

#[tokio::test]
async fn a_silent_sensor_is_an_alert_until_it_answers_and_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, board) = open(dir.path());
    put(&store, 1, silent(FIRST, 5, Sensor::MOTION)).await;
    put(&store, 1, silent(FIRST, 6, Sensor(77))).await;
    until_told(&board, &["K-0001", "the motion sensor", "sensor 77"]).await;
    store.stop().await;
    let (store, board) = open(dir.path());
    until_told(&board, &["K-0001", "the motion sensor"]).await;
    put(&store, 1, answers(FIRST, 9, Sensor::MOTION)).await;
    put(&store, 1, answers(FIRST, 10, Sensor(77))).await;
    until_nothing_is_told(&board).await;
    // Live frames come before those of the log behind them.
    put(&store, 1, silent(FIRST, 7, Sensor::MOTION)).await;
    put(&store, 2, silent(FIRST, 1, Sensor::LIGHT)).await;
    until_told(&board, &["K-0002"]).await;
    assert!(!told(&board).unwrap().contains("K-0001"));
    store.stop().await;
}

#[tokio::test]
async fn a_boot_ends_what_was_said_of_the_sensors_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, board) = open(dir.path());
    put(&store, 1, silent(FIRST, 5, Sensor::LIGHT)).await;
    until_told(&board, &["the pulse sensor"]).await;
    put(&store, 1, boots(SECOND)).await;
    until_nothing_is_told(&board).await;
    // Out of the log of the boot before: it says nothing of this one.
    put(&store, 1, silent(FIRST, 6, Sensor::MOTION)).await;
    put(&store, 1, silent(SECOND, 3, Sensor::TEMPERATURE)).await;
    until_told(&board, &["the temperature sensors"]).await;
    assert!(!told(&board).unwrap().contains("motion"));
    // After a format the log has another id.
    put(&store, 1, boots(Epoch::new(3, 1))).await;
    until_nothing_is_told(&board).await;
    store.stop().await;
}

#[tokio::test]
async fn however_many_sensors_are_silent_what_is_told_of_them_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let (store, board) = open(dir.path());
    for number in 1..=40 {
        let frames = (0..=255).map(|code| silent(FIRST, u32::from(code), Sensor(code))).collect();
        store.append(hardware(number), frames).await.unwrap();
    }
    until_told(&board, &["32 more wearables"]).await;
    let text = told(&board).unwrap();
    assert!(text.len() < 4_096, "{}", text.len());
    store.stop().await;
}
