//! The event outbox: what has no time yet does not stand in the way, and does not wait for ever.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::{Clock, ManualClock};
use kinara_gatewayd::align::source::Known;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::ClockSource;
use kinara_gatewayd::store::{Kind, Settings, Store, database};
use kinara_protocol::frame::Epoch;

use super::frames::{board, event, known, open, scalar, sent, settings, synchronise, told, waveform};

const EPOCH: Epoch = Epoch::new(7, 1);
/// Nobody has made a time sync in it, and its follower is not known.
const TIMELESS: Epoch = Epoch::new(8, 1);
const HOUR_US: i64 = 3_600_000_000;

fn hardware() -> HardwareId {
    HardwareId::kinara(0xa1)
}

async fn online(settings: Settings) -> Store {
    let store = open(settings);
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    store
}

#[tokio::test]
async fn events_that_have_no_time_yet_do_not_stand_in_the_way_of_those_that_have() {
    let dir = tempfile::tempdir().unwrap();
    let store = online(settings(dir.path())).await;
    synchronise(&store, &hardware(), EPOCH).await;
    for onset in 0..300 {
        store.put_event(event(&hardware(), TIMELESS, onset * 1_000)).await.unwrap();
    }
    store.put_event(event(&hardware(), EPOCH, 30_000)).await.unwrap();
    let (events, _) = told(&store, 1).await;
    assert_eq!(events.iter().map(|event| event.epoch).collect::<Vec<_>>(), [EPOCH.0]);
    // With an anchor the others have a time as well.
    synchronise(&store, &hardware(), TIMELESS).await;
    let (events, _) = told(&store, 300).await;
    assert!(events.iter().all(|event| event.epoch == TIMELESS.0));
    store.stop().await;
}

#[tokio::test]
async fn an_event_that_will_never_have_a_time_goes_with_what_is_known_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let impatient = Settings { unstamped_wait: Duration::from_millis(500), ..settings(dir.path()) };
    let store = online(impatient).await;
    store.append(hardware(), vec![scalar(TIMELESS, 0)]).await.unwrap();
    store.put_event(event(&hardware(), TIMELESS, 2_000)).await.unwrap();
    // Of a wearable that this store has never heard of nothing is known.
    store.put_event(event(&HardwareId::kinara(0xb2), TIMELESS, 2_000)).await.unwrap();
    let (events, _) = told(&store, 2).await;
    let [known, unknown] = events.as_slice() else { panic!("{events:?}") };
    assert!(known.onset_utc_us > 0 && known.uncertainty_us > 1_000_000);
    assert_eq!((unknown.onset_utc_us, unknown.uncertainty_us), (0, 0));
    store.stop().await;
}

#[tokio::test]
async fn a_gap_among_frames_that_never_had_a_time_goes_out_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    store.append(hardware(), vec![waveform(TIMELESS, 4), waveform(TIMELESS, 5)]).await.unwrap();
    store.stop().await;
    // The disk is nearly full now, and they are dropped.
    let wait = Duration::from_millis(500);
    let store = online(Settings { soft_limit: 1, unstamped_wait: wait, ..settings(dir.path()) }).await;
    let (_, gaps) = told(&store, 1).await;
    let [gap] = gaps.as_slice() else { panic!("{gaps:?}") };
    assert_eq!((gap.reason.as_str(), gap.seq_ranges.as_slice()), ("quota", [4, 2].as_slice()));
    store.stop().await;
}

fn known_by(clock: &ManualClock) -> Known {
    Known {
        utc_minus_boot_us: clock.utc_us() - clock.boottime_us(),
        uncertainty_us: 1_000,
        source: ClockSource::TrustSystem,
        at_boot_us: clock.boottime_us(),
    }
}

/// The next start finds itself in another boot of the machine.
fn reboot(dir: &Path) {
    let db = rusqlite::Connection::open(database(&settings(dir))).unwrap();
    db.execute("UPDATE meta SET value = 'the boot before' WHERE key = 'boot_id'", []).unwrap();
}

#[tokio::test]
async fn a_box_that_is_rebooted_often_does_not_keep_frames_and_events_waiting_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let now = known().utc_us(0);
    let mut ready = Vec::new();
    // Up for half an hour each time; the patience is an hour.
    for boot in 0..3 {
        let clock = Arc::new(ManualClock::new(now + boot * HOUR_US, 60_000_000));
        let store = Store::open(settings(dir.path()), clock.clone(), board()).unwrap();
        store.clock_is(Some(known_by(&clock))).await.unwrap();
        if boot == 0 {
            store.append(hardware(), vec![scalar(TIMELESS, 0)]).await.unwrap();
            store.put_event(event(&hardware(), TIMELESS, 2_000)).await.unwrap();
        }
        store.set_online(true).await.unwrap();
        clock.advance_us(HOUR_US / 2);
        let (events, _) = sent(&store, Duration::from_millis(1_500)).await;
        let batches = store.waiting(Kind::Batch, Vec::new(), 10, usize::MAX).await.unwrap();
        ready.push((events.len(), batches.len()));
        store.stop().await;
        reboot(dir.path());
    }
    assert_eq!(ready, [(0, 0), (1, 1), (0, 1)]);
}

#[tokio::test]
async fn a_later_loss_that_begins_at_the_same_frame_and_is_larger_is_told_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let store = online(settings(dir.path())).await;
    synchronise(&store, &hardware(), EPOCH).await;
    for (next, told_ranges) in [(8, [5, 3]), (12, [5, 7])] {
        store.give_up(hardware(), EPOCH, (5, next), Some(9_000)).await.unwrap();
        let (_, gaps) = told(&store, 1).await;
        assert_eq!(gaps[0].seq_ranges, told_ranges);
    }
    // The same once more is no news.
    store.give_up(hardware(), EPOCH, (5, 12), Some(9_000)).await.unwrap();
    assert!(sent(&store, Duration::from_millis(800)).await.1.is_empty());
    store.stop().await;
}
