//! A hand-over for which the wearable begins a new log.
//!
//! The promise: what a format separates is recorded before the format. First the former wearer's time ends, on disk and
//! signed, at the wearable's next frame; then the wearable is told; and what its new log holds is the new wearer's from
//! its first frame on. A wearable that goes away in between, or a box that starts again, finishes it at the next
//! connection. Until then its frames are nobody's: never the former wearer's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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

/// The log that a wearable was told to end, and when.
type Told = Option<(u32, Instant)>;

/// A lock for each device: one at a time changes its wearer. So a hand-over is finished once, and whoever takes the device
/// back meanwhile finds either the hand-over or the new wearer.
#[derive(Debug, Default)]
pub(super) struct WearerLocks {
    of: Mutex<HashMap<HardwareId, Arc<tokio::sync::Mutex<Told>>>>,
}

impl WearerLocks {
    /// The lock of a device.
    pub(super) fn of(&self, hardware: &HardwareId) -> Arc<tokio::sync::Mutex<Told>> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(of.entry(hardware.clone()).or_default())
    }
}

impl Desk {
    /// Closes the former wearer's frames and gives up what is still on the wearable, with a gap. Gives the boundary, and
    /// the log that is to end.
    pub(super) async fn give_up_log(&self, hardware: &HardwareId) -> Result<(Boundary, u32), DeskError> {
        let boundary = self.close_frames(hardware).await?;
        let hello = self.hello(hardware).await?;
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
        while self.pending(hardware).is_some() {
            self.finish_hand_over(hardware).await?;
            if Instant::now() > deadline {
                return Err(DeskError::HandOverPending(hardware.clone()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Finishes the hand-overs whose wearables are connected.
    pub(super) async fn finish_hand_overs(&self) {
        let devices = self.inner.devices.now().devices;
        for (hardware, _) in devices.into_iter().filter(|(_, device)| device.hand_over.is_some()) {
            if let Err(error) = self.finish_hand_over(&hardware).await {
                tracing::warn!(%hardware, %error, "a hand-over waits");
            }
        }
    }

    fn pending(&self, hardware: &HardwareId) -> Option<HandOver> {
        self.inner.devices.get(hardware)?.hand_over
    }

    /// One step: a wearable with its old log is told to begin a new one, one with a new log is given to its wearer.
    async fn finish_hand_over(&self, hardware: &HardwareId) -> Result<(), DeskError> {
        // Who changes it now finishes it, or leaves it for the next look.
        let lock = self.wearers.of(hardware);
        let Ok(mut told) = lock.try_lock() else { return Ok(()) };
        let Some(pending) = self.pending(hardware) else { return Ok(()) };
        if !self.inner.links.is_connected(hardware) {
            return Ok(());
        }
        // It may go while it is asked: then the next connection is the one.
        let Ok(hello) = self.hello(hardware).await else { return Ok(()) };
        if hello.epoch.log_id() != pending.old_log {
            return self.give_new_log(hardware, &pending, hello.epoch).await;
        }
        if told.is_some_and(|(log, at)| log == pending.old_log && at.elapsed() < TOLD_AGAIN) {
            return Ok(());
        }
        *told = Some((pending.old_log, Instant::now()));
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
        let ids = self.record(&pending.by, vec![assigned]).await?;
        let decision = ids.last().copied().expect("the assignment was recorded");
        let since_us = self.inner.decisions.now().0;
        let config = self.inner.book.version();
        let binding = Binding { user, consent, decision, since_us, config };
        self.inner
            .devices
            .change(|contents| {
                if let Some(device) = contents.devices.get_mut(hardware)
                    && device.hand_over.as_ref() == Some(pending)
                {
                    (device.worn_by, device.hand_over) = (Some(binding), None);
                    tracing::info!(%hardware, %epoch, "its new log is its new wearer's");
                }
            })
            .map_err(DeskError::not_kept)?;
        self.inner.book.tell();
        Ok(())
    }
}
