//! What the store keeps of time over restarts, and how it judges its own syncs.

use std::sync::Arc;

use kinara_clock::{Clock, ManualClock};
use kinara_gatewayd::align::floor::{Floor, STEP_US};
use kinara_gatewayd::align::source::{BUILD_DATE_US, Known};
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::ClockSource;
use kinara_gatewayd::store::{Kind, Outcome, OwnSync, Store, database};
use kinara_protocol::envelope::{self, Batch, Fit};
use kinara_protocol::frame::{Epoch, MAX_FRAME, SyncAnchor, Ticks, encode_sync_anchor};

use super::frames::{board, scalar, settings};

const EPOCH: Epoch = Epoch::new(7, 1);
const HOUR_US: i64 = 3_600_000_000;
const NOW: i64 = BUILD_DATE_US + 48 * HOUR_US;

fn hardware() -> HardwareId {
    HardwareId::kinara(0x71)
}

async fn put(store: &Store, seq: u32) {
    let fates = store.append(hardware(), vec![scalar(EPOCH, seq)]).await.unwrap();
    assert_eq!(fates[0].outcome, Outcome::Stored);
}

fn open(dir: &std::path::Path, clock: &Arc<ManualClock>) -> Store {
    Store::open(settings(dir), clock.clone(), board()).unwrap()
}

fn known(clock: &ManualClock, utc_us: i64, uncertainty_us: u64, source: ClockSource) -> Known {
    let at_boot_us = clock.boottime_us();
    Known { utc_minus_boot_us: utc_us - at_boot_us, uncertainty_us, source, at_boot_us }
}

async fn sync(store: &Store, clock: &ManualClock, ticks: u64) {
    let sync = OwnSync { epoch: EPOCH, ticks, boot_us: clock.boottime_us(), uncertainty_us: 500 };
    store.own_sync(hardware(), sync).await.unwrap();
}

/// The fits of all batches that wait, in their order.
async fn fits(store: &Store) -> Vec<Fit> {
    store.seal_now().await.unwrap();
    let waiting = store.waiting(Kind::Batch, Vec::new(), 100, usize::MAX).await.unwrap();
    let batches = waiting.iter().map(|sealed| envelope::open::<Batch>(&sealed.payload).unwrap());
    batches.flat_map(|batch| batch.devices.into_iter().flat_map(|device| device.fits)).collect()
}

#[tokio::test]
async fn the_floor_is_kept_over_restarts_and_its_ceiling_over_those_of_one_boot() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(NOW, 0));
    let store = open(dir.path(), &clock);
    let mut floor = store.floor().await.unwrap();
    assert_eq!(floor, Floor::new(0));
    assert!(floor.confirm(NOW, 1_000_000));
    store.keep_floor(floor).await.unwrap();
    store.stop().await;
    clock.advance_us(HOUR_US);
    let store = open(dir.path(), &clock);
    let kept = store.floor().await.unwrap();
    assert_eq!((kept.at_us, kept.former_us), (NOW, BUILD_DATE_US));
    assert_eq!(kept.ceiling_us(HOUR_US), BUILD_DATE_US + STEP_US + HOUR_US);
    store.stop().await;
    // Another boot begins at the floor.
    let db = rusqlite::Connection::open(database(&settings(dir.path()))).unwrap();
    db.execute("UPDATE meta SET value = 7 WHERE key = 'floor_boot'", []).unwrap();
    drop(db);
    let store = open(dir.path(), &clock);
    assert_eq!(store.floor().await.unwrap().ceiling_us(HOUR_US), NOW + STEP_US);
    store.stop().await;
}

#[tokio::test]
async fn a_box_that_an_older_version_left_in_2099_is_not_there_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(NOW, 5));
    open(dir.path(), &clock).stop().await;
    for (last_us, floor_us) in [(4_070_908_800_000_000_i64, BUILD_DATE_US), (NOW, NOW)] {
        let db = rusqlite::Connection::open(database(&settings(dir.path()))).unwrap();
        db.execute("INSERT OR REPLACE INTO meta VALUES ('last_utc_us', ?1)", [last_us]).unwrap();
        drop(db);
        let store = open(dir.path(), &clock);
        let floor = store.floor().await.unwrap();
        assert_eq!((floor.at_us, floor.former_us), (floor_us, BUILD_DATE_US));
        store.stop().await;
    }
}

#[tokio::test]
async fn syncs_that_a_wrong_clock_made_before_a_restart_of_the_daemon_are_judged_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(NOW, 60_000_000));
    let store = open(dir.path(), &clock);
    store.clock_is(Some(known(&clock, NOW + 40 * HOUR_US, 1_000, ClockSource::TrustSystem))).await.unwrap();
    sync(&store, &clock, 5_000).await;
    put(&store, 0).await;
    store.stop().await;
    clock.advance_us(10_000_000);
    let store = open(dir.path(), &clock);
    store.clock_is(Some(known(&clock, NOW + 10_000_000, 2_000, ClockSource::Timedate))).await.unwrap();
    let fit = fits(&store).await[0];
    assert!(fit.utc_us(5_000).abs_diff(NOW) < 100_000, "{fit:?}");
    store.stop().await;
}

/// A time sync out of the wearable's log, made by some gateway.
fn logged(seq: u32, ticks: u64, utc_us: i64) -> bytes::Bytes {
    let mut out = [0; MAX_FRAME];
    let anchor = SyncAnchor { ticks: Ticks(ticks), utc_us, uncertainty_us: 1_000 };
    let len = encode_sync_anchor(EPOCH, seq, &anchor, &mut out);
    bytes::Bytes::copy_from_slice(&out[..len])
}

#[tokio::test]
async fn a_sync_that_another_gateway_made_in_the_future_stamps_nothing() {
    for knows_first in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOW, 60_000_000));
        let store = open(dir.path(), &clock);
        let now = known(&clock, NOW, 2_000, ClockSource::Timedate);
        if knows_first {
            store.clock_is(Some(now)).await.unwrap();
        }
        store.append(hardware(), vec![logged(0, 4_000, NOW + 73 * 365 * 24 * HOUR_US)]).await.unwrap();
        put(&store, 1).await;
        store.clock_is(Some(now)).await.unwrap();
        assert_eq!(fits(&store).await, [], "there is no time yet that can be true");
        sync(&store, &clock, 5_000).await;
        let fits = fits(&store).await;
        assert!(
            fits.iter().all(|fit| fit.utc_us(5_000).abs_diff(NOW) < 10_000 && !fit.time_uncertain),
            "{fits:?}"
        );
        assert!(!fits.is_empty());
        store.stop().await;
    }
}

#[tokio::test]
async fn a_sync_that_seems_to_be_of_the_future_counts_again_when_it_was_our_clock_that_was_behind() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(NOW, 60_000_000));
    let store = open(dir.path(), &clock);
    store.clock_is(Some(known(&clock, NOW - 40 * HOUR_US, 2_000, ClockSource::Https))).await.unwrap();
    store.append(hardware(), vec![logged(0, 4_000, NOW)]).await.unwrap();
    put(&store, 1).await;
    assert_eq!(fits(&store).await, []);
    store.clock_is(Some(known(&clock, NOW, 2_000, ClockSource::Timedate))).await.unwrap();
    let fits = fits(&store).await;
    assert!(fits.iter().all(|fit| fit.utc_us(4_000).abs_diff(NOW) < 10_000), "{fits:?}");
    assert!(!fits.is_empty());
    store.stop().await;
}

#[tokio::test]
async fn a_worse_source_that_does_not_contradict_a_better_one_moves_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(NOW, 60_000_000));
    let store = open(dir.path(), &clock);
    store.clock_is(Some(known(&clock, NOW, 2_000, ClockSource::Timedate))).await.unwrap();
    sync(&store, &clock, 5_000).await;
    put(&store, 0).await;
    store.clock_is(Some(known(&clock, NOW + 700_000, 1_050_000, ClockSource::Bridge))).await.unwrap();
    let fit = fits(&store).await[0];
    assert!(fit.utc_us(5_000).abs_diff(NOW) < 10 && fit.uncertainty_us < 10_000, "{fit:?}");
    store.stop().await;
}

#[tokio::test]
async fn a_sync_that_waited_for_a_day_is_as_uncertain_as_a_clock_that_ran_free_for_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(0, 60_000_000));
    let store = open(dir.path(), &clock);
    sync(&store, &clock, 5_000).await;
    put(&store, 0).await;
    clock.advance_us(24 * HOUR_US);
    store.clock_is(Some(known(&clock, NOW, 2_000, ClockSource::Timedate))).await.unwrap();
    let fit = fits(&store).await[0];
    // 50 ppm of a day.
    assert!(fit.uncertainty_us >= 4_320_000, "{fit:?}");
    store.stop().await;
}

#[tokio::test]
async fn samples_of_an_epoch_stay_in_their_order_when_the_clock_is_set_back_between_two_seals_and_over_a_restart()
 {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(NOW, 60_000_000));
    let mut times = Vec::new();
    for (seq, off_us) in [(0u32, 800_000), (1, 0), (2, 0), (4, -900_000), (3, 500_000)] {
        let store = open(dir.path(), &clock);
        let now = clock.utc_us() + off_us;
        store.clock_is(Some(known(&clock, now, 1_000_000, ClockSource::Bridge))).await.unwrap();
        sync(&store, &clock, u64::from(seq) * 10_000).await;
        put(&store, seq).await;
        store.seal_now().await.unwrap();
        for sealed in store.waiting(Kind::Batch, Vec::new(), 100, usize::MAX).await.unwrap() {
            let batch: Batch = envelope::open(&sealed.payload).unwrap();
            let fit = batch.devices[0].fits[0];
            for ticks in (0..10).map(|index| u64::from(seq) * 10_000 + index * 1_000) {
                times.push((ticks, fit.utc_us(ticks)));
                let truth = NOW + ticks as i64 * 1_000;
                assert!(
                    fit.utc_us(ticks).abs_diff(truth) <= fit.uncertainty_at(ticks) + 1_000,
                    "{seq} {fit:?}"
                );
            }
            assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
        }
        store.stop().await;
        clock.advance_us(10_000_000);
    }
    times.sort_unstable_by_key(|(ticks, _)| *ticks);
    assert_eq!(times.len(), 50);
    assert!(times.is_sorted_by_key(|(_, utc_us)| *utc_us), "{times:?}");
}
