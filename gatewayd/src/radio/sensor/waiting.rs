//! What a sensor's session has made and the store has not taken yet.
//!
//! The promise: it takes no more memory than [`MOST_BYTES`], however long the store fails and whatever the sensor sends;
//! what does not fit is dropped, oldest first, and has its gap; and it outlives the link that it came over.

use std::collections::VecDeque;
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
            frames: VecDeque::new(),
            frame_bytes: 0,
            lost: Lost::default(),
        }
    }

    /// Whether everything is on disk.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.lost.is_empty()
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
        if next.is_none_or(|frame| frame.header().epoch != header.epoch)
            && let Some(at) = self.syncs.iter().position(|sync| sync.epoch == header.epoch)
        {
            self.syncs.remove(at);
        }
        Some(Dropped::Stamped)
    }

    fn bytes(&self) -> usize {
        self.frame_bytes + (self.frames.len() + self.syncs.len()) * OVERHEAD
    }

    /// Puts onto the disk what the store takes. The rest is tried again with the next call.
    pub async fn store(&mut self, store: &Store, sink: &FrameSink) -> Result<(), StoreError> {
        if self.is_empty() {
            return Ok(());
        }
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
        for (bytes, fate) in frames.into_iter().zip(fates) {
            if !fate.outcome.is_safe() {
                self.push(bytes);
            } else if fate.outcome == Outcome::Stored
                && let Ok(frame) = FrameRef::parse(&bytes)
            {
                sink.offer(stored(&self.hardware, &frame, fate.fit));
            }
        }
        Ok(())
    }

    /// Stores what places the frames: without it they would have no time.
    async fn store_syncs(&mut self, store: &Store) -> Result<(), StoreError> {
        if !self.syncs.is_empty() {
            let syncs = self.syncs.iter().copied().collect();
            store.own_syncs(self.hardware.clone(), syncs).await?;
            self.syncs.clear();
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

    fn sync(epoch: u64) -> OwnSync {
        OwnSync { epoch: Epoch(epoch), ticks: 0, boot_us: 0, uncertainty_us: 1 }
    }

    fn frame(numbering: &mut Numbering, ticks: u64) -> Bytes {
        numbering.take(ticks, &Measurement { heart_rate: Some(72.0), ..Measurement::default() });
        numbering.close().pop().unwrap()
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
