//! The log: the ring with numbering, anchors and device events.
//!
//! **Promise.** Frames of an epoch are numbered from 0 without a hole, in the order they are stored; number 0 is the
//! boot anchor, which says where the epoch before ended. When a full ring has to give up frames that nobody
//! acknowledged, a device event names them before they are erased. Boots that store nothing leave at most one frame between
//! them: a wearable that restarts for ever does not push its readings out.

use kinara_protocol::frame::{
    BootAnchor, DeviceEvent, DeviceEventKind, Epoch, Kind, MAX_FRAME, ResetReason, Seq, SyncAnchor, Ticks,
    encode_boot_anchor, encode_device_event, encode_sync_anchor,
};

use crate::boot;
use crate::flash::Flash;
use crate::framing::{Framing, SampleClass};
use crate::queue::Queue;
use crate::ring::{Identity, NeverStored, Position, Ring, RingError};

/// A page holds fewer ranges than this, because each epoch begins with an anchor of its own.
const MAX_LOSSES: usize = 96;
/// Newly stored frames that delivery has not looked at. More are found in the backlog.
const MAX_FRESH: usize = 16;

/// A frame that is in flash now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredFrame {
    /// Which.
    pub id: Identity,
    /// What its body is.
    pub kind: Kind,
    /// Its first sample, or its event's time.
    pub first: Ticks,
    /// Its last sample.
    pub last: Ticks,
}

/// Is told what happens to frames. The simulator's oracle log listens; a wearable gives `()`.
pub trait Witness {
    /// A frame is in flash.
    fn stored(&mut self, frame: &StoredFrame) {
        let _ = frame;
    }

    /// Frames that nobody acknowledged are about to be erased.
    fn lost(&mut self, epoch: Epoch, first: Seq, last: Seq) {
        let _ = (epoch, first, last);
    }
}

impl Witness for () {}

#[derive(Debug, Clone, Copy)]
struct Loss {
    epoch: Epoch,
    first: Seq,
    last: Seq,
}

/// See the module's text.
#[derive(Debug)]
pub struct Log<F> {
    ring: Ring<F>,
    next_seq: Seq,
    losses: Queue<Loss, MAX_LOSSES>,
    losses_noted: bool,
    /// Where the frames begin that were lost since the last acknowledgement: epoch, first seq. When the ring turns over
    /// more than once, the frames that tell of the first losses are lost too; every later one tells of all.
    lost_from: Option<(Epoch, Seq)>,
    reclaimed: u32,
    fresh: Queue<Position, MAX_FRESH>,
    formatted: bool,
    /// When and why this boot began: its first frame says so.
    began: (Ticks, ResetReason),
}

impl<F: Flash> Log<F> {
    /// Recovers the log and writes this boot's anchor. Where the boot before has stored nothing but its own, this one's is
    /// written with the first frame after it.
    pub fn boot(
        flash: F,
        new_log_id: u32,
        reason: ResetReason,
        now: Ticks,
        witness: &mut impl Witness,
    ) -> Result<Self, RingError<F::Error>> {
        let (ring, first_start) = Ring::open(flash, new_log_id)?;
        let stored = ring.last().is_none_or(|last| last.seq > 0);
        let by_command = !first_start && ring.epoch().boot() == 1;
        let mut log = Self {
            ring,
            next_seq: 0,
            losses: Queue::new(),
            losses_noted: false,
            lost_from: None,
            reclaimed: 0,
            fresh: Queue::new(),
            formatted: false,
            began: (now, reason),
        };
        if stored {
            log.write_anchor(witness)?;
        }
        if by_command {
            log.event(DeviceEvent { ticks: now, kind: DeviceEventKind::LogFormatted }, witness)?;
        }
        Ok(log)
    }

    /// This boot's epoch.
    pub fn epoch(&self) -> Epoch {
        self.ring.epoch()
    }

    /// The number of the next frame.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Frames stored and not acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.ring.unacknowledged()
    }

    /// How many pages the ring has taken back since boot.
    pub fn reclaimed(&self) -> u32 {
        self.reclaimed
    }

    /// The oldest frame that is not acknowledged; the next one when there is none.
    pub fn oldest(&mut self) -> Result<Identity, RingError<F::Error>> {
        let next = Identity { epoch: self.epoch(), seq: self.next_seq };
        Ok(self.ring.first_unacknowledged()?.map_or(next, |entry| entry.id))
    }

    /// The oldest frame that is still in flash, acknowledged or not; the next one when there is none.
    pub fn oldest_held(&mut self) -> Result<Identity, RingError<F::Error>> {
        let (next, oldest) = (Identity { epoch: self.epoch(), seq: self.next_seq }, self.ring.oldest());
        Ok(self.ring.entry_at(oldest)?.map_or(next, |entry| entry.id))
    }

    /// The ring, for reading and acknowledging.
    pub fn ring(&mut self) -> &mut Ring<F> {
        &mut self.ring
    }

    /// The next newly stored frame that nobody has looked at.
    pub fn take_fresh(&mut self) -> Option<Position> {
        self.fresh.pop()
    }

    /// Stores a class's open frame, if there is one.
    pub fn close(
        &mut self,
        framing: &mut Framing,
        class: SampleClass,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        if framing.is_empty(class) {
            return Ok(());
        }
        self.write_anchor(witness)?;
        let mut frame = [0; MAX_FRAME];
        match framing.close(class, self.next_seq, &mut frame) {
            Some(closed) => {
                self.store(&frame[..closed.len], class.kind(), closed.first, closed.last, witness)
            }
            None => Ok(()),
        }
    }

    /// Stores a time sync, and remembers it for the next boot's anchor.
    pub fn sync(&mut self, sync: &SyncAnchor, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        self.write_anchor(witness)?;
        let mut frame = [0; MAX_FRAME];
        let len = encode_sync_anchor(self.epoch(), self.next_seq, sync, &mut frame);
        self.store(&frame[..len], Kind::SyncAnchor, sync.ticks, sync.ticks, witness)?;
        if self.formatted { Ok(()) } else { self.ring.remember_sync(*sync) }
    }

    /// Stores a device event.
    pub fn event(
        &mut self,
        event: DeviceEvent,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        self.write_anchor(witness)?;
        let mut frame = [0; MAX_FRAME];
        let len = encode_device_event(self.epoch(), self.next_seq, &event, &mut frame);
        self.store(&frame[..len], Kind::DeviceEvents, event.ticks, event.ticks, witness)
    }

    /// Takes an acknowledgement of everything up to `id`.
    pub fn acknowledge(
        &mut self,
        id: Identity,
        passed: impl FnMut(Position),
    ) -> Result<Result<(), NeverStored>, RingError<F::Error>> {
        // Somebody listens again: what was lost before is in the log that he is reading.
        self.lost_from = None;
        self.ring.acknowledge(id, passed)
    }

    /// Forgets all frames. Nothing is stored any more until the wearable resets.
    pub fn format(&mut self, new_log_id: u32) -> Result<(), RingError<F::Error>> {
        self.formatted = true;
        self.ring.format(new_log_id)
    }

    /// Erases the next page that an earlier log has left; tells whether it did.
    pub fn scrub(&mut self) -> Result<bool, RingError<F::Error>> {
        // Between formatting and the reset the pages are still in use.
        if self.formatted { Ok(false) } else { self.ring.scrub() }
    }

    /// Gives the flash back.
    pub fn into_flash(self) -> F {
        self.ring.into_flash()
    }

    /// Before this boot's first frame of another kind. Not inlined where frames are stored: it happens once.
    #[inline(never)]
    fn write_anchor(&mut self, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        if self.next_seq > 0 {
            return Ok(());
        }
        let (at, reason) = self.began;
        let anchor = BootAnchor { reason, previous: boot::previous(&mut self.ring)? };
        let mut frame = [0; MAX_FRAME];
        let len = encode_boot_anchor(self.epoch(), 0, at, &anchor, &mut frame);
        self.store(&frame[..len], Kind::BootAnchor, at, at, witness)
    }

    fn store(
        &mut self,
        frame: &[u8],
        kind: Kind,
        first: Ticks,
        last: Ticks,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        if self.formatted {
            return Ok(());
        }
        self.put(frame, kind, first, last, witness)?;
        loop {
            self.note_losses(witness)?;
            let Some(loss) = self.losses.pop() else { break };
            let kind =
                DeviceEventKind::Overflow { epoch: loss.epoch, first_seq: loss.first, last_seq: loss.last };
            let mut frame = [0; MAX_FRAME];
            let event = DeviceEvent { ticks: last, kind };
            let len = encode_device_event(self.epoch(), self.next_seq, &event, &mut frame);
            self.put(&frame[..len], Kind::DeviceEvents, last, last, witness)?;
        }
        self.reclaim()
    }

    fn put(
        &mut self,
        frame: &[u8],
        kind: Kind,
        first: Ticks,
        last: Ticks,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        if self.ring.must_turn(frame.len()) && !self.ring.spare_ready() {
            // Only after power failed while the story was being written: it is told after the erasure, then.
            self.note_losses(witness)?;
            self.reclaim()?;
        }
        let id = Identity { epoch: self.epoch(), seq: self.next_seq };
        let at = self.ring.append(id, frame)?;
        self.next_seq += 1;
        if self.fresh.is_full() {
            self.fresh.pop();
        }
        self.fresh.push(at).expect("a place was made");
        witness.stored(&StoredFrame { id, kind, first, last });
        Ok(())
    }

    fn note_losses(&mut self, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        if self.losses_noted || self.ring.spare_ready() {
            return Ok(());
        }
        self.losses_noted = true;
        let (losses, lost_from) = (&mut self.losses, &mut self.lost_from);
        self.ring.for_each_lost(|epoch, first, last| {
            witness.lost(epoch, first, last);
            let first = match *lost_from {
                Some((same, from)) if same == epoch => from.min(first),
                _ => first,
            };
            *lost_from = Some((epoch, first));
            // A range too many is not told as an event; the jump of the oldest frame's number still shows it.
            let _ = losses.push(Loss { epoch, first, last });
        })
    }

    fn reclaim(&mut self) -> Result<(), RingError<F::Error>> {
        if self.ring.spare_ready() {
            return Ok(());
        }
        self.ring.reclaim()?;
        self.losses_noted = false;
        self.reclaimed += 1;
        Ok(())
    }
}
