//! What a sensor's session has made and the store has not taken yet.
//!
//! The promise: it takes no more memory than [`MOST_BYTES`], however long the store fails and whatever the sensor sends;
//! what does not fit is dropped, oldest first, and has its gap; and it outlives the link that it came over.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use kinara_protocol::frame::{Epoch, FrameRef, Seq};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::lost::Lost;
use crate::hardware::HardwareId;
use crate::pipeline::FrameSink;
use crate::radio::session::stored;
use crate::store::{Outcome, OwnSync, Store, StoreError};

/// Bytes that may wait for a store that does not take them: half an hour of a strap's frames.
const MOST_BYTES: usize = 256 << 10;
/// What a frame or a sync costs beside its own bytes.
const OVERHEAD: usize = 64;
/// Sessions that have ended and whose frames still wait; those of one more have their gap at once.
const MOST_LEFT: usize = 8;
/// How often they are tried again.
const TRY_EVERY: Duration = Duration::from_secs(1);

static LEFT: Semaphore = Semaphore::const_new(MOST_LEFT);

/// The right to wait when the session has ended.
pub type Place = SemaphorePermit<'static>;

/// A place, while there is one.
pub fn place() -> Option<Place> {
    LEFT.try_acquire().ok()
}

/// See the module.
#[derive(Debug)]
pub struct Waiting {
    hardware: HardwareId,
    /// The epoch of the connection. Measurements with a time of their own have epochs of their own.
    epoch: Epoch,
    /// What places the frames, and is not on disk yet: it goes there before them.
    syncs: VecDeque<OwnSync>,
    /// Those that went there while their frames are not there yet. The store forgets a sync of which nothing ever came.
    ahead: VecDeque<OwnSync>,
    /// Those that went ahead of frames which are there now: they go there once more.
    again: VecDeque<OwnSync>,
    frames: VecDeque<Bytes>,
    frame_bytes: usize,
    lost: Lost,
}

/// A frame that had to give way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It is one of the connection's own numbers.
    Numbered,
    /// A measurement with a time of its own.
    Stamped,
}

impl Waiting {
    /// For a connection, which begins with a sync.
    pub fn new(hardware: HardwareId, sync: OwnSync) -> Self {
        Self {
            hardware,
            epoch: sync.epoch,
            syncs: VecDeque::from([sync]),
            ahead: VecDeque::new(),
            again: VecDeque::new(),
            frames: VecDeque::new(),
            frame_bytes: 0,
            lost: Lost::default(),
        }
    }

    /// Whether everything is on disk.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.lost.is_empty() && self.again.is_empty()
    }

    /// The epoch of the connection.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the connection has a sync here still, which is as good as another one.
    pub fn waits_to_be_placed(&self) -> bool {
        self.syncs.iter().chain(&self.ahead).any(|sync| sync.epoch == self.epoch)
    }

    /// A frame.
    pub fn push(&mut self, frame: Bytes) {
        self.frame_bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// What places frames of another epoch than the connection's.
    pub fn place(&mut self, sync: OwnSync) {
        self.syncs.push_back(sync);
    }

    /// A number of the connection that will never be a frame.
    pub fn never_comes(&mut self, seq: Seq, ticks: u64) {
        self.lost.add(seq, ticks);
    }

    /// Drops the oldest frame while there is too much; none when there is not.
    pub fn make_room(&mut self) -> Option<Dropped> {
        if self.bytes() > MOST_BYTES { self.drop_oldest() } else { None }
    }

    /// Drops the oldest frame; none when there is none.
    pub fn drop_oldest(&mut self) -> Option<Dropped> {
        let frame = self.frames.pop_front()?;
        self.frame_bytes -= frame.len();
        // They were made here.
        let header = FrameRef::parse(&frame).ok()?.header();
        if header.epoch == self.epoch {
            self.lost.add(header.seq, header.ticks.0);
            return Some(Dropped::Numbered);
        }
        // A measurement's frames lie side by side, and its sync before those of later ones.
        let next = self.frames.front().and_then(|bytes| FrameRef::parse(bytes).ok());
        if next.is_none_or(|frame| frame.header().epoch != header.epoch) {
            for syncs in [&mut self.syncs, &mut self.ahead] {
                if let Some(at) = syncs.iter().position(|sync| sync.epoch == header.epoch) {
                    syncs.remove(at);
                }
            }
        }
        Some(Dropped::Stamped)
    }

    fn bytes(&self) -> usize {
        let syncs = self.syncs.len() + self.ahead.len() + self.again.len();
        self.frame_bytes + (self.frames.len() + syncs) * OVERHEAD
    }

    /// Puts onto the disk what the store takes. The rest is tried again with the next call.
    pub async fn store(&mut self, store: &Store, sink: &FrameSink) -> Result<(), StoreError> {
        if self.is_empty() {
            return Ok(());
        }
        self.store_again(store).await?;
        let ahead = self.ahead.len();
        self.store_syncs(store).await?;
        self.give_up(store).await?;
        let frames: Vec<Bytes> = self.frames.drain(..).collect();
        self.frame_bytes = 0;
        if frames.is_empty() {
            return Ok(());
        }
        let fates = match store.append(self.hardware.clone(), frames.clone()).await {
            Ok(fates) => fates,
            Err(error) => {
                for frame in frames {
                    self.push(frame);
                }
                return Err(error);
            }
        };
        let mut safe = HashSet::new();
        for (bytes, fate) in frames.into_iter().zip(fates) {
            if !fate.outcome.is_safe() {
                self.push(bytes);
                continue;
            }
            let Ok(frame) = FrameRef::parse(&bytes) else { continue };
            safe.insert(frame.header().epoch);
            if fate.outcome == Outcome::Stored {
                sink.offer(stored(&self.hardware, &frame, fate.fit));
            }
        }
        self.are_placed(&safe, ahead);
        self.store_again(store).await
    }

    /// Frames of these epochs are on disk. The syncs of them that went there before this call, so many, may have been
    /// forgotten since.
    fn are_placed(&mut self, safe: &HashSet<Epoch>, before: usize) {
        for (at, sync) in std::mem::take(&mut self.ahead).into_iter().enumerate() {
            if !safe.contains(&sync.epoch) {
                self.ahead.push_back(sync);
            } else if at < before {
                self.again.push_back(sync);
            }
        }
    }

    async fn store_again(&mut self, store: &Store) -> Result<(), StoreError> {
        if !self.again.is_empty() {
            let syncs = self.again.iter().copied().collect();
            store.own_syncs(self.hardware.clone(), syncs).await?;
            self.again.clear();
        }
        Ok(())
    }

    /// Stores what places the frames: without it they would have no time.
    async fn store_syncs(&mut self, store: &Store) -> Result<(), StoreError> {
        if !self.syncs.is_empty() {
            let syncs = self.syncs.iter().copied().collect();
            store.own_syncs(self.hardware.clone(), syncs).await?;
            self.ahead.append(&mut self.syncs);
        }
        Ok(())
    }

    /// Records that frames which the store did not take will not come.
    async fn give_up(&mut self, store: &Store) -> Result<(), StoreError> {
        while let Some((first, next, ticks)) = self.lost.first() {
            store.give_up(self.hardware.clone(), self.epoch, (first, next), Some(ticks)).await?;
            self.lost.remove_first();
        }
        Ok(())
    }

    /// The connection is over: what still waits is tried again until the store takes it or ends.
    pub fn outlive(mut self, place: Place, store: Store, sink: FrameSink) {
        tokio::spawn(async move {
            let _place = place;
            while !self.is_empty() {
                tokio::time::sleep(TRY_EVERY).await;
                match self.store(&store, &sink).await {
                    Err(StoreError::Stopped) => return,
                    Err(error) => tracing::debug!(hardware = %self.hardware, %error, "still not stored"),
                    Ok(()) => {}
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::radio::sensor::{Measurement, Numbering};
    use crate::store::Settings;

    fn sync(epoch: u64) -> OwnSync {
        OwnSync { epoch: Epoch(epoch), ticks: 0, boot_us: 0, uncertainty_us: 1 }
    }

    fn frame(numbering: &mut Numbering, ticks: u64) -> Bytes {
        numbering.take(ticks, &Measurement { heart_rate: Some(72.0), ..Measurement::default() });
        numbering.close().pop().unwrap()
    }

    fn open(dir: &std::path::Path, hard_limit: u64) -> Store {
        let settings = Settings {
            dir: dir.to_owned(),
            gateway: kinara_protocol::topic::GatewayId(uuid::Uuid::from_u128(7)),
            group_commit: Duration::from_millis(10),
            group_frames: 100,
            wearable_commit: Duration::from_millis(100),
            queue: 64,
            soft_limit: 1 << 30,
            hard_limit,
            reserve: 1 << 20,
            seal_after: Duration::from_millis(200),
            seal_bytes: 65_536,
            full_bytes: 65_536,
            seal_ahead: 8,
            unstamped_wait: Duration::from_hours(1),
            check_below: 0,
        };
        let board = crate::status::Board::new(crate::status::Snapshot::default());
        Store::open(settings, std::sync::Arc::new(kinara_clock::SystemClock), board).unwrap()
    }

    #[tokio::test]
    async fn frames_that_a_full_disk_refused_have_their_syncs_when_there_is_room_though_those_were_forgotten()
    {
        let dir = tempfile::tempdir().unwrap();
        let sink = FrameSink::new(100).0;
        let mut waiting = Waiting::new(HardwareId::sensor([1; 6]), sync(7));
        waiting.push(frame(&mut Numbering::new(Epoch(7)), 5));
        waiting.place(sync(8));
        waiting.push(frame(&mut Numbering::new(Epoch(8)), 0));
        let database = || rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
        let full = open(dir.path(), 0);
        waiting.store(&full, &sink).await.unwrap();
        assert!(!waiting.is_empty());
        full.stop().await;
        // As is done with syncs of which nothing came for an hour.
        assert_eq!(database().execute("DELETE FROM anchors", []).unwrap(), 2);
        let roomy = open(dir.path(), 2 << 30);
        waiting.store(&roomy, &sink).await.unwrap();
        assert!(waiting.is_empty() && waiting.ahead.is_empty());
        roomy.flush().await.unwrap();
        let placed = |from: &str| -> i64 {
            let sql = format!("SELECT count(DISTINCT epoch) FROM {from}");
            database().query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!((placed("pieces"), placed("anchors")), (2, 2));
        roomy.stop().await;
    }

    #[test]
    fn whatever_a_sensor_sends_while_the_store_fails_takes_so_much_memory_and_no_more() {
        let mut waiting = Waiting::new(HardwareId::sensor([1; 6]), sync(7));
        let mut numbering = Numbering::new(Epoch(7));
        let (mut numbered, mut stamped) = (0, 0);
        for number in 0..100_000u64 {
            if number % 3 == 0 {
                waiting.push(frame(&mut numbering, number));
            } else {
                // A measurement with a time of its own has a sync of its own.
                waiting.place(sync(1_000 + number));
                waiting.push(frame(&mut Numbering::new(Epoch(1_000 + number)), 0));
            }
            while let Some(dropped) = waiting.make_room() {
                match dropped {
                    Dropped::Numbered => numbered += 1,
                    Dropped::Stamped => {
                        stamped += 1;
                        waiting.never_comes(numbering.skip(), number);
                    }
                }
            }
            assert!(waiting.bytes() <= MOST_BYTES);
            assert!(waiting.syncs.len() <= waiting.frames.len() + 1);
        }
        let kept = |of_connection: bool| {
            let epochs = waiting.frames.iter().map(|frame| FrameRef::parse(frame).unwrap().header().epoch);
            epochs.filter(|epoch| (*epoch == Epoch(7)) == of_connection).count()
        };
        assert_eq!((numbered + kept(true), stamped + kept(false)), (33_334, 66_666));
        // Each that was dropped has its number in a gap, and the gaps are few.
        assert_eq!(waiting.lost.count(), numbered + stamped);
        assert!(waiting.lost.runs() <= waiting.frames.len() + 1, "{}", waiting.lost.runs());
    }
}
