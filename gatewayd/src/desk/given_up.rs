//! What goes with a wearable's log when a person accepts its loss: a gap for every epoch that it still holds frames of.
//!
//! A wearable tells its oldest frame and how many it holds, not how they are spread over its epochs. Whether it
//! holds a frame is what every firmware can say (`ResendFrom` of one that it does not hold is refused), so the last
//! frame of each epoch between is found by halving.

use kinara_protocol::control::{Hello, Op, Outcome};
use kinara_protocol::frame::{Epoch, Seq};

use super::{Desk, DeskError};
use crate::hardware::HardwareId;

/// A wearable that was reset more often than this since it was drained is not asked about each of its epochs.
const MOST_EPOCHS: usize = 256;

/// Frames of an epoch that are held: the first, and the one after the last.
type Held = (Epoch, Seq, Seq);

impl Desk {
    /// Records that what the wearable holds, and this box does not have, will not come.
    pub(super) async fn give_up_held(&self, hardware: &HardwareId, hello: &Hello) -> Result<(), DeskError> {
        for (epoch, from, to) in self.held(hardware, hello).await? {
            // How far an epoch before this one went, nobody knows who has not its frames.
            let ticks = (epoch == hello.epoch).then_some(hello.ticks.0);
            self.inner
                .store
                .give_up(hardware.clone(), epoch, (from, to), ticks)
                .await
                .map_err(DeskError::not_kept)?;
        }
        Ok(())
    }

    /// The frames that it holds and that nobody has acknowledged, by epoch.
    async fn held(&self, hardware: &HardwareId, hello: &Hello) -> Result<Vec<Held>, DeskError> {
        let (oldest_epoch, oldest_seq) = hello.oldest;
        if oldest_epoch == hello.epoch {
            return Ok(vec![(hello.epoch, oldest_seq, hello.next_seq)]);
        }
        let mut held = vec![(hello.epoch, 0, hello.next_seq)];
        let mut left = hello.stored_frames.saturating_sub(hello.next_seq);
        let (mut epoch, mut first) = (oldest_epoch, oldest_seq);
        while left > 0 && epoch < hello.epoch && epoch.log_id() == hello.epoch.log_id() {
            if held.len() > MOST_EPOCHS {
                tracing::error!(%hardware, frames = left, "lost without a gap: too many epochs to ask about");
                break;
            }
            let next = Epoch(epoch.0 + 1);
            // What is left lies in the last one before the running epoch.
            let count =
                if next == hello.epoch { left } else { self.count(hardware, epoch, first, left).await? };
            held.push((epoch, first, first.saturating_add(count)));
            left -= count;
            (epoch, first) = (next, 0);
        }
        Ok(held)
    }

    /// How many frames of an epoch it holds, from `first` on and at most `most`.
    async fn count(
        &self,
        hardware: &HardwareId,
        epoch: Epoch,
        first: Seq,
        most: u32,
    ) -> Result<u32, DeskError> {
        let (mut least, mut most) = (0, most);
        while least < most {
            let middle = least + (most - least).div_ceil(2);
            let seq = first.saturating_add(middle - 1);
            match self.ask(hardware, Op::ResendFrom { epoch, seq }).await? {
                Outcome::Ok => least = middle,
                Outcome::Refused(_) => most = middle - 1,
                other => return Err(DeskError::Wearable(format!("{other:?} to what it holds"))),
            }
        }
        Ok(least)
    }
}
