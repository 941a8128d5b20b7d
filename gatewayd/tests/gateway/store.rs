//! What the store promises, on real files.

use std::time::Duration;

use bytes::Bytes;
use kinara_clock::SystemClock;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::pipeline::NewEvent;
use kinara_gatewayd::status::Admission;
use kinara_gatewayd::store::{Kind, Outcome, Settings, Store, StoreError};
use kinara_protocol::channel::HEART_RATE;
use kinara_protocol::envelope::{self, Batch, EventBatch};
use kinara_protocol::frame::{
    BootAnchor, Epoch, Kind as FrameKind, MAX_FRAME, ResetReason, Ticks, encode_boot_anchor,
};

use super::frames::{board, drain, event, frame_of, known, open, scalar, settings, synchronise, waveform};

const EPOCH: Epoch = Epoch::new(7, 1);

fn hardware() -> HardwareId {
    HardwareId::kinara(0xa1)
}

async fn put(store: &Store, frames: Vec<Bytes>) -> Vec<Outcome> {
    store.append(hardware(), frames).await.unwrap().iter().map(|appended| appended.outcome).collect()
}

#[tokio::test]
async fn a_frame_that_comes_twice_is_stored_once_and_a_different_one_under_its_name_never() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    let other = frame_of(FrameKind::Scalar, HEART_RATE, EPOCH, 3, 1_234);
    let first = put(&store, (0..5).map(|seq| scalar(EPOCH, seq)).collect()).await;
    assert_eq!(first, vec![Outcome::Stored; 5]);
    assert_eq!(
        put(&store, vec![scalar(EPOCH, 3), other.clone()]).await,
        [Outcome::Duplicate, Outcome::Collision]
    );
    store.stop().await;
    // The same after a restart, when the copies at hand are on disk only.
    let store = open(settings(dir.path()));
    assert_eq!(put(&store, vec![scalar(EPOCH, 3), other]).await, [Outcome::Duplicate, Outcome::Collision]);
    let frames = drain(&store).await;
    assert_eq!(frames.len(), 5);
    assert_eq!(frames[&(hardware().to_string(), EPOCH.0, 3)], scalar(EPOCH, 3));
    // And after the batch has gone: it is known what was received.
    assert_eq!(put(&store, vec![scalar(EPOCH, 3)]).await, [Outcome::Duplicate]);
    store.stop().await;
}

#[tokio::test]
async fn frames_come_out_of_batches_byte_for_byte_however_they_were_packed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    let mut boot = [0; MAX_FRAME];
    let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
    let len = encode_boot_anchor(EPOCH, 0, Ticks(0), &anchor, &mut boot);
    let mut sent = vec![Bytes::copy_from_slice(&boot[..len])];
    sent.extend((1..1_000).map(|seq| scalar(EPOCH, seq)));
    sent.extend((1_000..1_300).map(|seq| waveform(EPOCH, seq)));
    // A kind of a later version travels as it is.
    let mut strange = scalar(EPOCH, 1_300).to_vec();
    strange[1] = 0x55;
    let end = strange.len() - 4;
    let crc = kinara_protocol::frame::checksum(&strange[..end]);
    strange[end..].copy_from_slice(&crc.to_le_bytes());
    sent.push(strange.into());
    // Few at a time, so that the store packs them; and many at once.
    for chunk in sent[..600].chunks(7) {
        put(&store, chunk.to_vec()).await;
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    for chunk in sent[600..].chunks(90) {
        put(&store, chunk.to_vec()).await;
    }
    let frames = drain(&store).await;
    assert_eq!(frames.values().cloned().collect::<Vec<_>>(), sent);
    store.stop().await;
}

#[tokio::test]
async fn a_batch_is_deleted_only_for_its_name_and_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    put(&store, vec![scalar(EPOCH, 0)]).await;
    store.clock_is(Some(known())).await.unwrap();
    assert_eq!(store.seal_now().await.unwrap(), 1);
    let sealed = store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap().remove(0);
    assert!(!store.acknowledged(sealed.name, [9; 32]).await.unwrap());
    let mut other = sealed.name;
    other.buffer += 1;
    assert!(!store.acknowledged(other, sealed.sha256).await.unwrap());
    // The next run keeps the batch under its name, seals under another, and knows the one before.
    let (buffer, _, id) = store.identity().await.unwrap();
    store.stop().await;
    let store = open(settings(dir.path()));
    let (next, previous, same_id) = store.identity().await.unwrap();
    assert!(next != buffer && previous == buffer && same_id == id);
    let again = store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap().remove(0);
    assert_eq!((again.name, again.sha256), (sealed.name, sealed.sha256));
    assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
    assert!(!store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
    store.stop().await;
}

#[tokio::test]
async fn delivered_is_what_the_bridge_has_acknowledged_and_nothing_that_still_waits() {
    let dir = tempfile::tempdir().unwrap();
    let board = board();
    board.device(&hardware(), |device| device.name = "worn".to_owned());
    // It seals when it is told to.
    let settings = Settings { seal_after: Duration::from_hours(1), ..settings(dir.path()) };
    let store = Store::open(settings, std::sync::Arc::new(SystemClock), board.clone()).unwrap();
    synchronise(&store, &hardware(), EPOCH).await;
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let tells = async |expected: Option<&[u32]>| {
        let told = || {
            let delivered = board.now().devices.get(&hardware()).and_then(|device| device.delivered.clone());
            delivered.map(|(epoch, seqs)| (epoch, seqs.distances()))
        };
        let expected = expected.map(|distances| (EPOCH, distances.to_vec()));
        for _ in 0..100 {
            if told() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?} and not {expected:?}", told());
    };
    put(&store, (0..5).map(|seq| scalar(EPOCH, seq)).collect()).await;
    tells(Some(&[])).await;
    store.seal_now().await.unwrap();
    // Which of the numbers are in the batch is not looked up: nothing is told meanwhile.
    tells(None).await;
    let sealed = store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap().remove(0);
    assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
    tells(Some(&[0, 5])).await;
    put(&store, (7..9).map(|seq| scalar(EPOCH, seq)).collect()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    tells(Some(&[0, 5])).await;
    store.stop().await;
}

#[tokio::test]
async fn a_parked_batch_stays_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    store.clock_is(Some(known())).await.unwrap();
    for seq in 0..2 {
        put(&store, vec![scalar(EPOCH, seq)]).await;
        store.seal_now().await.unwrap();
    }
    let waiting = store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap();
    assert!(store.park(waiting[0].name, waiting[0].sha256, "unreadable".to_owned()).await.unwrap());
    let left = store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap();
    assert_eq!(left.iter().map(|sealed| sealed.name).collect::<Vec<_>>(), [waiting[1].name]);
    store.stop().await;
}

#[tokio::test]
async fn nothing_is_sealed_before_the_clock_is_known_and_then_what_came_earlier_is_stamped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    store.set_online(true).await.unwrap();
    synchronise(&store, &hardware(), EPOCH).await;
    put(&store, vec![scalar(EPOCH, 0)]).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap().is_empty());
    let known = known();
    store.clock_is(Some(known)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let sealed = store.waiting(Kind::Batch, Vec::new(), 16, 1 << 20).await.unwrap();
    let batch: Batch = envelope::open(&sealed[0].payload).unwrap();
    let fit = batch.devices[0].fits[0];
    let truth = known.utc_us(kinara_clock::Clock::boottime_us(&kinara_clock::SystemClock));
    assert!(fit.utc_us(5_000).abs_diff(truth) < 5_000_000 && !fit.time_uncertain);
    store.stop().await;
}

#[tokio::test]
async fn at_the_soft_limit_waveforms_give_way_with_a_gap_and_at_the_hard_limit_only_events_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = settings(dir.path());
    full.soft_limit = 400 << 10;
    full.hard_limit = 600 << 10;
    let store = open(full);
    synchronise(&store, &hardware(), EPOCH).await;
    store.clock_is(Some(known())).await.unwrap();
    let mut admission = store.admission();
    // Scalars that were taken stay, whatever happens.
    let mut taken = Vec::new();
    let mut waveforms = 0;
    let mut seq = 0;
    while *admission.borrow_and_update() == Admission::Everything {
        let frames: Vec<Bytes> = (seq..seq + 40).map(|seq| waveform(EPOCH, seq)).collect();
        waveforms += put(&store, frames).await.iter().filter(|fate| **fate == Outcome::Stored).count();
        put(&store, vec![scalar(EPOCH, seq + 40)]).await;
        taken.push(seq + 40);
        seq += 41;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(seq < 100_000);
    }
    assert_eq!(put(&store, vec![waveform(EPOCH, seq)]).await, [Outcome::Dropped]);
    assert_eq!(put(&store, vec![waveform(EPOCH, seq)]).await, [Outcome::Duplicate]);
    assert_eq!(put(&store, vec![scalar(EPOCH, seq + 1)]).await, [Outcome::Stored]);
    taken.push(seq + 1);
    waveforms += 1;
    tokio::time::sleep(Duration::from_millis(800)).await;
    store.set_online(true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let events = store.waiting(Kind::Event, Vec::new(), 16, 1 << 20).await.unwrap();
    let gaps: Vec<envelope::Gap> = events
        .iter()
        .flat_map(|sealed| envelope::open::<EventBatch>(&sealed.payload).unwrap().gaps)
        .collect();
    let dropped: u32 = gaps.iter().flat_map(|gap| gap.seq_ranges.chunks(2)).map(|range| range[1]).sum();
    assert!(gaps.iter().all(|gap| gap.reason == "quota") && dropped > 0);
    let frames = drain(&store).await;
    for seq in &taken {
        assert!(frames.contains_key(&(hardware().to_string(), EPOCH.0, *seq)), "scalar {seq} is gone");
    }
    assert_eq!(frames.len() - taken.len(), waveforms - dropped as usize);
    store.stop().await;

    let mut full = settings(dir.path());
    (full.soft_limit, full.hard_limit) = (1 << 10, 2 << 10);
    let store = open(full);
    assert_eq!(put(&store, vec![scalar(EPOCH, 90_000)]).await, [Outcome::Refused]);
    let mut boot = [0; MAX_FRAME];
    let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
    let len = encode_boot_anchor(Epoch::new(7, 2), 0, Ticks(0), &anchor, &mut boot);
    assert_eq!(put(&store, vec![Bytes::copy_from_slice(&boot[..len])]).await, [Outcome::Stored]);
    store.stop().await;
}

#[tokio::test]
async fn an_event_goes_out_once_however_often_it_is_found_and_even_after_it_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    synchronise(&store, &hardware(), EPOCH).await;
    put(&store, vec![scalar(EPOCH, 0)]).await;
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let event = event(&hardware(), EPOCH, 30_500);
    assert!(store.put_event(event.clone()).await.unwrap());
    let near = NewEvent { onset_ticks: 30_999, ..event.clone() };
    assert!(!store.put_event(near).await.unwrap());
    tokio::time::sleep(Duration::from_millis(600)).await;
    let sealed = store.waiting(Kind::Event, Vec::new(), 16, 1 << 20).await.unwrap().remove(0);
    let batch: EventBatch = envelope::open(&sealed.payload).unwrap();
    assert_eq!(batch.events.len(), 1);
    assert!(batch.events[0].onset_utc_us > 1_700_000_000_000_000);
    assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
    assert!(!store.put_event(event).await.unwrap());
    store.stop().await;
}

#[tokio::test]
async fn two_daemons_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    let second = Store::open(
        settings(dir.path()),
        std::sync::Arc::new(kinara_clock::SystemClock),
        super::frames::board(),
    );
    assert!(matches!(second.err(), Some(StoreError::Taken(_))));
    store.stop().await;
}

#[tokio::test]
async fn syncs_that_waited_for_the_clock_have_their_time_though_the_transaction_that_gave_it_to_them_failed()
{
    let dir = tempfile::tempdir().unwrap();
    // So long that what is told first still waits for its commit when the other comes, on any machine.
    let group_commit = Duration::from_secs(2);
    let store = open(Settings { group_commit, ..settings(dir.path()) });
    synchronise(&store, &hardware(), EPOCH).await;
    let decision = || vec![(uuid::Uuid::from_u128(7), vec![1])];
    store.put_decisions(decision()).await.unwrap();
    // What cannot be, until it comes into the transaction in which the clock was told.
    let told = tokio::spawn({
        let store = store.clone();
        async move { store.clock_is(Some(known())).await }
    });
    while !told.is_finished() {
        assert!(store.put_decisions(decision()).await.is_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(told.await.unwrap().is_err());
    store.clock_is(Some(known())).await.unwrap();
    let fates = store.append(hardware(), vec![scalar(EPOCH, 0)]).await.unwrap();
    assert!(fates[0].fit.is_some_and(|fit| !fit.time_uncertain), "{fates:?}");
    store.stop().await;
}

#[tokio::test]
async fn batches_that_the_broker_does_not_take_do_not_keep_others_from_being_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Settings { seal_ahead: 2, ..settings(dir.path()) });
    synchronise(&store, &hardware(), EPOCH).await;
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let mut left_out = Vec::new();
    for seq in 0..5 {
        put(&store, vec![scalar(EPOCH, seq)]).await;
        let start = std::time::Instant::now();
        let sealed = loop {
            let sealed = store.waiting(Kind::Batch, left_out.clone(), 16, 1 << 20).await.unwrap();
            if !sealed.is_empty() {
                break sealed;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "batch {seq} is not sealed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for sealed in sealed {
            store.leave_out(sealed.name).await.unwrap();
            left_out.push(sealed.name);
        }
    }
    store.stop().await;
}
