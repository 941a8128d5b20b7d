//! Frames for tests, and a store to put them in.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kinara_clock::{Clock, SystemClock};
use kinara_gatewayd::align::source::Known;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::pipeline::NewEvent;
use kinara_gatewayd::status::{Board, ClockSource, Snapshot};
use kinara_gatewayd::store::{Kind, OwnSync, Sealed, Settings, Store};
use kinara_protocol::channel::{ChannelId, HEART_RATE, PPG};
use kinara_protocol::columns;
use kinara_protocol::envelope::{self, Batch, Event, EventBatch, Gap};
use kinara_protocol::frame::{Epoch, FrameBuilder, FrameRef, Kind as FrameKind, MAX_FRAME, Seq, Ticks};
use kinara_protocol::topic::GatewayId;
use uuid::Uuid;

pub const GATEWAY: GatewayId = GatewayId(Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0001));

/// A frame of ten samples, a second apart, whose values tell its seq.
pub fn frame_of(kind: FrameKind, channel: ChannelId, epoch: Epoch, seq: Seq, value: i32) -> Bytes {
    frame_every(1, kind, channel, epoch, seq, value)
}

/// The same, with a sample every so many seconds.
pub fn frame_every(
    seconds: u16,
    kind: FrameKind,
    channel: ChannelId,
    epoch: Epoch,
    seq: Seq,
    value: i32,
) -> Bytes {
    let start = u64::from(seq) * 10_000;
    let mut builder = FrameBuilder::new();
    builder.begin(kind, epoch, Ticks(start));
    for index in (0..10).step_by(usize::from(seconds)) {
        let sample = value.wrapping_add(index as i32 * 7 % 5);
        builder.push(channel, Ticks(start + index * 1_000), &[sample]).unwrap();
    }
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(seq, &mut out);
    Bytes::copy_from_slice(&out[..len])
}

pub fn scalar(epoch: Epoch, seq: Seq) -> Bytes {
    scalar_every(1, epoch, seq)
}

pub fn scalar_every(seconds: u16, epoch: Epoch, seq: Seq) -> Bytes {
    frame_every(seconds, FrameKind::Scalar, HEART_RATE, epoch, seq, 600 + seq as i32 % 90)
}

pub fn waveform(epoch: Epoch, seq: Seq) -> Bytes {
    noise(FrameKind::Waveform, epoch, seq)
}

/// A frame that no compression makes small.
pub fn noise(kind: FrameKind, epoch: Epoch, seq: Seq) -> Bytes {
    let mut builder = FrameBuilder::new();
    builder.begin(kind, epoch, Ticks(u64::from(seq) * 1_000));
    for index in 0..60u32 {
        let mut noise = (seq.wrapping_mul(60) + index + 1).wrapping_mul(2_654_435_761);
        noise ^= noise >> 16;
        noise = noise.wrapping_mul(2_246_822_519);
        noise ^= noise >> 13;
        let noise = noise >> 15;
        builder.push(PPG, Ticks(u64::from(seq) * 1_000 + u64::from(index) * 10), &[noise as i32]).unwrap();
    }
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(seq, &mut out);
    Bytes::copy_from_slice(&out[..len])
}

pub fn settings(dir: &Path) -> Settings {
    Settings {
        dir: dir.to_owned(),
        gateway: GATEWAY,
        group_commit: Duration::from_millis(10),
        group_frames: 100,
        wearable_commit: Duration::from_millis(300),
        queue: 64,
        soft_limit: 1 << 30,
        hard_limit: 2 << 30,
        reserve: 1 << 20,
        seal_after: Duration::from_millis(200),
        seal_bytes: 65_536,
        full_bytes: 262_144,
        seal_ahead: 16,
        unstamped_wait: Duration::from_hours(1),
        check_below: 1 << 30,
    }
}

pub fn board() -> Board {
    Board::new(Snapshot::default())
}

pub fn open(settings: Settings) -> Store {
    Store::open(settings, Arc::new(SystemClock), board()).unwrap()
}

pub fn known() -> Known {
    let clock = SystemClock;
    Known {
        utc_minus_boot_us: clock.utc_us() - clock.boottime_us(),
        uncertainty_us: 1_000,
        source: ClockSource::TrustSystem,
        at_boot_us: clock.boottime_us(),
    }
}

/// What inference would find at a tick of an epoch.
pub fn event(hardware: &HardwareId, epoch: Epoch, onset_ticks: u64) -> NewEvent {
    NewEvent {
        hardware: hardware.clone(),
        kind: "hot_flash".to_owned(),
        producer: "rule:sternal/1".to_owned(),
        epoch: epoch.0,
        onset_ticks,
        grid_ticks: 1_000,
        seq: 3,
        fit: None,
        severity: "warning".to_owned(),
        confidence: 0.8,
        data: serde_json::json!({"rise": 2.4}),
    }
}

pub async fn synchronise(store: &Store, hardware: &HardwareId, epoch: Epoch) {
    let sync = OwnSync { epoch, ticks: 5_000, boot_us: SystemClock.boottime_us(), uncertainty_us: 500 };
    store.own_sync(hardware.clone(), sync).await.unwrap();
}

/// Identity and bytes of every frame in a batch.
pub fn frames_in(batch: &Batch) -> Vec<((String, u64, u32), Vec<u8>)> {
    let mut out = Vec::new();
    for device in &batch.devices {
        let decoded = columns::decode(device).unwrap();
        let mut buffer = [0; MAX_FRAME];
        for frame in decoded.frames() {
            assert!(frame.fit.is_some(), "a frame without a time");
            let len = decoded.rebuild(frame, &mut buffer).unwrap();
            out.push(((device.hardware_id.clone(), device.epoch, frame.seq), buffer[..len].to_vec()));
        }
        for other in decoded.others() {
            let seq = FrameRef::parse(other.bytes).unwrap().header().seq;
            out.push(((device.hardware_id.clone(), device.epoch, seq), other.bytes.to_vec()));
        }
    }
    out
}

/// Seals and takes everything out of the store, as a bridge that acknowledges all would. Each frame once.
pub async fn drain(store: &Store) -> BTreeMap<(String, u64, u32), Vec<u8>> {
    store.clock_is(Some(known())).await.unwrap();
    let mut out = BTreeMap::new();
    loop {
        let made = store.seal_now().await.unwrap();
        let waiting: Vec<Sealed> = store.waiting(Kind::Batch, Vec::new(), 1_000, usize::MAX).await.unwrap();
        if made == 0 && waiting.is_empty() {
            return out;
        }
        for sealed in waiting {
            assert_eq!(envelope::digest(&sealed.payload), sealed.sha256);
            assert!(sealed.payload.len() <= envelope::MAX_SEALED);
            let batch: Batch = envelope::open(&sealed.payload).unwrap();
            for (key, bytes) in frames_in(&batch) {
                assert!(out.insert(key.clone(), bytes).is_none(), "{key:?} is in two batches");
            }
            assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
        }
    }
}

/// Events and gaps that have gone out after a while; the bridge acknowledges each batch.
pub async fn sent(store: &Store, wait: Duration) -> (Vec<Event>, Vec<Gap>) {
    tokio::time::sleep(wait).await;
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    for sealed in store.waiting(Kind::Event, Vec::new(), 100, usize::MAX).await.unwrap() {
        let batch: EventBatch = envelope::open(&sealed.payload).unwrap();
        events.extend(batch.events);
        gaps.extend(batch.gaps);
        assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
    }
    (events, gaps)
}

/// The next events and gaps to go out, so many of them in all.
pub async fn told(store: &Store, count: usize) -> (Vec<Event>, Vec<Gap>) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while events.len() + gaps.len() < count {
        assert!(start.elapsed() < Duration::from_secs(30), "only {events:?} and {gaps:?} are told");
        let (more_events, more_gaps) = sent(store, Duration::from_millis(50)).await;
        events.extend(more_events);
        gaps.extend(more_gaps);
    }
    (events, gaps)
}

/// The numbers of a gap.
pub fn seqs_of(gap: &Gap) -> Vec<Seq> {
    let mut seqs = Vec::new();
    let mut end = 0;
    for range in gap.seq_ranges.chunks(2) {
        let first = end + range[0];
        end = first + range[1];
        seqs.extend(first..end);
    }
    seqs
}
