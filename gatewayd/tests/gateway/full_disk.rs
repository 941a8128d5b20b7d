//! A disk that is really full: a small file system of its own, filled to the last block.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::Admission;
use kinara_gatewayd::store::{Kind, Outcome, Settings, Store};
use kinara_protocol::envelope::{self, Batch};
use kinara_protocol::frame::{
    BootAnchor, Epoch, Kind as FrameKind, MAX_FRAME, ResetReason, Ticks, encode_boot_anchor,
};

use super::frames::{event, frames_in, known, noise, open, settings, synchronise, told};

const EPOCH: Epoch = Epoch::new(7, 1);

fn hardware() -> HardwareId {
    HardwareId::kinara(0xa1)
}

/// A file system in memory; gone with this.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    pub fn mount(at: &Path) -> Option<Self> {
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]).arg(at).output();
        done.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    /// Whether anything can be written, from now on.
    pub fn writable(&self, writable: bool) {
        let how = if writable { "remount,rw" } else { "remount,ro" };
        assert!(Command::new("mount").args(["-o", how]).arg(&self.0).status().unwrap().success());
    }

    /// Somebody else takes all of the room but this, bytes.
    pub fn fill_but(&self, left: u64) {
        let mut file = std::fs::File::create(self.0.join("others")).unwrap();
        while rustix::fs::statvfs(&self.0).unwrap().f_bavail * 4096 > left {
            std::io::Write::write_all(&mut file, &[7; 4096]).unwrap();
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn put(store: &Store, seqs: std::ops::Range<u32>) -> Vec<u32> {
    let frames = seqs.clone().map(|seq| noise(FrameKind::Scalar, EPOCH, seq)).collect();
    // Not committed: nothing of it counts, and the wearable offers it again.
    let Ok(fates) = store.append(hardware(), frames).await else { return Vec::new() };
    let taken = seqs.zip(fates).filter(|(_, appended)| appended.outcome == Outcome::Stored);
    taken.map(|(seq, _)| seq).collect()
}

/// All of these go to the bridge, a batch at a time, as they do on a full disk.
async fn delivered(store: &Store, seqs: &[u32]) {
    let mut left: BTreeSet<u32> = seqs.iter().copied().collect();
    let start = Instant::now();
    while !left.is_empty() {
        assert!(
            start.elapsed() < Duration::from_mins(2),
            "{} acknowledged frames are not delivered",
            left.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        for sealed in store.waiting(Kind::Batch, Vec::new(), 16, usize::MAX).await.unwrap() {
            let batch: Batch = envelope::open(&sealed.payload).unwrap();
            for ((_, epoch, seq), _) in frames_in(&batch) {
                assert!(
                    epoch != EPOCH.0 || left.remove(&seq),
                    "{seq} is delivered twice, or was not acknowledged"
                );
            }
            assert!(store.acknowledged(sealed.name, sealed.sha256).await.unwrap());
        }
    }
}

#[tokio::test]
async fn on_a_disk_without_a_free_block_events_are_taken_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        eprintln!("SKIPPED: a file system cannot be mounted here (needs root)");
        return;
    };
    let store = open(Settings { reserve: 4 << 20, ..settings(&disk.0.join("data")) });
    synchronise(&store, &hardware(), EPOCH).await;
    let admission = store.admission();
    let mut taken = Vec::new();
    let mut next = 0;
    while *admission.borrow() != Admission::EventsOnly {
        let stored = put(&store, next..next + 200).await;
        next += if stored.is_empty() { 0 } else { 200 };
        taken.extend(stored);
        assert!(next < 400_000, "the disk does not fill");
    }
    // A write met the last block: the reserve was given up for what follows.
    assert!(!disk.0.join("data/reserve").exists());
    assert!(put(&store, next..next + 1).await.is_empty());

    // Events and boots are taken all the same, several times over.
    for boot in 2..40 {
        let mut out = [0; MAX_FRAME];
        let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
        let len = encode_boot_anchor(Epoch::new(7, boot), 0, Ticks(0), &anchor, &mut out);
        let bytes = bytes::Bytes::copy_from_slice(&out[..len]);
        let onset = u64::from(boot) * 1_000;
        store.append(hardware(), vec![bytes]).await.unwrap();
        assert!(store.put_event(event(&hardware(), EPOCH, onset)).await.unwrap());
    }
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    let (events, _) = told(&store, 38).await;
    assert_eq!(events.len(), 38);
    delivered(&store, &taken).await;

    // What has gone to the cloud makes room, although no file shrinks.
    until("frames are taken again", || *admission.borrow() < Admission::EventsOnly).await;
    let again = put(&store, next..next + 100).await;
    assert_eq!(again.len(), 100);
    delivered(&store, &again).await;
    store.stop().await;
}

#[tokio::test]
async fn on_a_disk_that_is_full_before_the_start_the_reserve_is_given_up_and_events_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        eprintln!("SKIPPED: a file system cannot be mounted here (needs root)");
        return;
    };
    let settings = Settings { reserve: 4 << 20, ..settings(&disk.0.join("data")) };
    let store = open(settings.clone());
    synchronise(&store, &hardware(), EPOCH).await;
    let taken = put(&store, 0..200).await;
    store.stop().await;
    assert!(disk.0.join("data/reserve").exists());
    disk.fill_but(0);
    let store = open(settings);
    let start = Instant::now();
    while store.put_event(event(&hardware(), EPOCH, 10_000)).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "no event is taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!disk.0.join("data/reserve").exists());
    store.clock_is(Some(known())).await.unwrap();
    store.set_online(true).await.unwrap();
    delivered(&store, &taken).await;
    store.stop().await;
}
