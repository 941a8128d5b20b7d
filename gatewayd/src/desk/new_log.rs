//! A hand-over for which the wearable begins a new log.
//!
//! The promise: what a format separates is recorded before the format. First the former wearer's time ends, on disk and
//! signed, at the wearable's next frame; then the wearable is told; and what its new log holds is the new wearer's from
//! its first frame on. A wearable that goes away in between, or a box that starts again, finishes it at the next
//! connection. Until then its frames are nobody's: never the former wearer's.

use kinara_protocol::control::{Hello, Op, Outcome};
use kinara_protocol::frame::Epoch;
use tokio::time::{Duration, Instant};

use super::{Desk, DeskError};
use crate::decisions::{Boundary, What};
use crate::devices::{Binding, HandOver};
use crate::hardware::HardwareId;

/// How long somebody waits for a wearable to begin its new log and to connect; it is finished later all the same.
const FORMATTED: Duration = Duration::from_mins(1);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(100);
/// A wearable that was told to begin a new log and has not is told again after this.
const TOLD_AGAIN: Duration = Duration::from_secs(15);

impl Desk {
    /// Closes the former wearer's frames and gives up what is still on the wearable, with a gap. Gives the boundary, and
    /// the log that is to end.
    pub(super) async fn give_up_log(&self, hardware: &HardwareId) -> Result<(Boundary, u32), DeskError> {
        let (boundary, hello) = self.close_frame(hardware).await?;
        self.record_loss(hardware, &hello).await?;
        Ok((boundary, hello.epoch.log_id()))
    }

    async fn record_loss(&self, hardware: &HardwareId, hello: &Hello) -> Result<(), DeskError> {
        self.give_up_held(hardware, hello).await?;
        tracing::warn!(%hardware, frames = hello.stored_frames, "its log is formatted; a person accepted the loss");
        Ok(())
    }

    /// Waits until a hand-over is done that was recorded.
    pub(super) async fn wait_handed_over(&self, hardware: &HardwareId) -> Result<(), DeskError> {
        let deadline = Instant::now() + FORMATTED;
        let mut told = None;
        loop {
            let Some(pending) = self.pending(hardware) else { return Ok(()) };
            self.finish_hand_over(hardware, &pending, &mut told).await?;
            if Instant::now() > deadline {
                return Err(DeskError::HandOverPending(hardware.clone()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Finishes the hand-overs whose wearables are connected. `told`: when each was told last.
    pub(super) async fn finish_hand_overs(
        &self,
        told: &mut std::collections::HashMap<HardwareId, Option<Instant>>,
    ) {
        let devices = self.inner.devices.now().devices;
        let pending =
            devices.into_iter().filter_map(|(hardware, device)| Some((hardware, device.hand_over?)));
        for (hardware, pending) in pending {
            let told = told.entry(hardware.clone()).or_default();
            if let Err(error) = self.finish_hand_over(&hardware, &pending, told).await {
                tracing::warn!(%hardware, %error, "a hand-over waits");
            }
        }
    }

    fn pending(&self, hardware: &HardwareId) -> Option<HandOver> {
        self.inner.devices.get(hardware)?.hand_over
    }

    /// One step: a wearable with its old log is told to begin a new one, one with a new log is given to its wearer.
    async fn finish_hand_over(
        &self,
        hardware: &HardwareId,
        pending: &HandOver,
        told: &mut Option<Instant>,
    ) -> Result<(), DeskError> {
        if !self.inner.links.is_connected(hardware) {
            return Ok(());
        }
        // It may go while it is asked: then the next connection is the one.
        let Ok(hello) = self.hello(hardware).await else { return Ok(()) };
        if hello.epoch.log_id() != pending.old_log {
            return self.give_new_log(hardware, pending, hello.epoch).await;
        }
        if told.is_some_and(|told| told.elapsed() < TOLD_AGAIN) {
            return Ok(());
        }
        *told = Some(Instant::now());
        match self.ask(hardware, Op::Format).await {
            Ok(Outcome::Ok) | Err(DeskError::NotConnected(_)) => Ok(()),
            Ok(other) => Err(DeskError::Wearable(format!("{other:?} to formatting its log"))),
            Err(error) => Err(error),
        }
    }

    async fn give_new_log(
        &self,
        hardware: &HardwareId,
        pending: &HandOver,
        epoch: Epoch,
    ) -> Result<(), DeskError> {
        let device = self.known(hardware)?;
        // From the log's first boot on: it may have started more than once since.
        let from = Some((Epoch::new(epoch.log_id(), 0).0, 0));
        let (user, consent) = (pending.user, pending.consent);
        let assigned =
            What::Assigned { hardware: hardware.clone(), user, consent, from, device_name: device.name };
        // Another call may have finished it meanwhile.
        if self.pending(hardware).as_ref() != Some(pending) {
            return Ok(());
        }
        let ids = self.record(&pending.by, vec![assigned]).await?;
        let decision = ids.last().copied().expect("the assignment was recorded");
        let since_us = self.inner.decisions.now().0;
        let binding = Binding { user, consent, decision, since_us };
        tracing::info!(%hardware, %epoch, "its new log is its new wearer's");
        self.set_wearer(hardware, Some(binding), None)?;
        self.inner.book.tell();
        Ok(())
    }
}
