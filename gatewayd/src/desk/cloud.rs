//! What the cloud's configuration asks of this box: to introduce wearables to another box, and to take boxes off them.
//!
//! Each is done once, when the wearable is connected, and that it was done is kept beside the bonds. An introduction
//! that this box is the newcomer of waits in the radio for the wearable's advertisement.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_protocol::control::{MAX_ADMISSION_S, Op, Outcome};
use kinara_protocol::envelope::Config;
use tokio_util::sync::CancellationToken;

use super::{ANSWER, Actor, Desk, DeskError};
use crate::devices::{Binding, address_text};
use crate::roster::{Introduction, Revocation};

/// How often it is looked at what can be done now.
const LOOK: Duration = Duration::from_secs(2);
/// For how long this box stays away from a wearable that it has introduced, so that the other one can reach it.
const STEP_BACK: Duration = Duration::from_secs(20);
/// How often it steps back again while the other one has not come.
const STEP_BACK_EVERY: Duration = Duration::from_mins(10);
/// The alert while a configuration cannot be kept or followed.
const ALERT: &str = "config";

/// What has become of the cloud's configuration.
#[derive(Debug, Default)]
pub(super) struct Followed(Mutex<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// One that could not be kept or followed when it came.
    unkept: Option<Config>,
    /// The version that nothing more is to be done for, in this run.
    settled: Option<u64>,
}

impl Followed {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// Takes a configuration of the cloud; on return it is on disk. False for an older one than that in force. One that
    /// cannot be kept or followed now is tried again.
    pub async fn take_config(&self, config: &Config) -> Result<bool, DeskError> {
        let taken = self.take_and_follow(config).await;
        if taken.is_err() {
            self.config.lock().unkept = Some(config.clone());
        }
        self.tell_trouble(&taken);
        taken
    }

    async fn take_and_follow(&self, config: &Config) -> Result<bool, DeskError> {
        let taken = self.inner.book.take(config).map_err(DeskError::not_kept)?;
        self.settle().await?;
        Ok(taken)
    }

    /// Does what the configuration in force asks. It may have been kept and no more, before the power went or the disk was
    /// full: that it was done is noted only then.
    async fn settle(&self) -> Result<(), DeskError> {
        let version = self.inner.book.version();
        if self.config.lock().settled == Some(version) {
            return Ok(());
        }
        self.inner.book.settle().map_err(DeskError::not_kept)?;
        self.follow_assignments(version).await?;
        self.forget_done()?;
        self.config.lock().settled = Some(version);
        Ok(())
    }

    /// Tries again what could not be done when a configuration came.
    async fn settle_again(&self) {
        let unkept = self.config.lock().unkept.take();
        if let Some(config) = unkept {
            if let Err(error) = self.take_config(&config).await {
                tracing::debug!(%error, "a configuration still cannot be kept");
            }
            return;
        }
        let settled = self.settle().await.map(|()| true);
        self.tell_trouble(&settled);
    }

    fn tell_trouble(&self, done: &Result<bool, DeskError>) {
        let text = done.as_ref().err().map(|error| {
            format!(
                "What the clinic says of wearers and boxes cannot be kept here. {error} Until then this box may show who \
                 wore a device before; it goes on trying."
            )
        });
        self.inner.board.alert(ALERT, text);
    }

    /// Where the cloud has heard of what was decided here and has put another wearer in its place, it is right.
    async fn follow_assignments(&self, version: u64) -> Result<(), DeskError> {
        for (hardware, device) in self.inner.devices.now().devices {
            let Some(binding) = device.worn_by.filter(|binding| binding.config < version) else { continue };
            if self.inner.book.cloud_says(&hardware).is_none_or(|user| user == binding.user) {
                continue;
            }
            let waits = self.inner.decisions.is_waiting(binding.decision).await;
            let now = if waits.map_err(DeskError::not_kept)? {
                // That configuration never counts against it, also when the cloud has heard of it since.
                Some(Binding { config: version, ..binding })
            } else {
                tracing::info!(%hardware, "the cloud says who wears it");
                None
            };
            self.inner
                .devices
                .change(|contents| {
                    // It may have got another wearer here meanwhile.
                    if let Some(device) = contents.devices.get_mut(&hardware)
                        && device.worn_by == Some(binding)
                    {
                        device.worn_by = now;
                    }
                })
                .map_err(DeskError::not_kept)?;
        }
        self.inner.book.tell();
        Ok(())
    }

    /// What the cloud does not ask for any more need not be remembered as done.
    fn forget_done(&self) -> Result<(), DeskError> {
        let introductions = self.inner.book.introductions().borrow().clone();
        let asked = |id: &uuid::Uuid| introductions.iter().any(|asked| asked.id == *id);
        let revocations: Vec<String> = self.inner.book.revocations().iter().map(revocation_key).collect();
        let is_asked = |done: &String| revocations.contains(done);
        let now = self.inner.devices.now();
        if now.introduced.iter().all(asked) && now.revoked.iter().all(is_asked) {
            return Ok(());
        }
        self.inner
            .devices
            .change(|contents| {
                contents.introduced.retain(asked);
                contents.revoked.retain(is_asked);
            })
            .map_err(DeskError::not_kept)
    }

    /// Carries out what the cloud's configuration and people here ask, as wearables come within reach, until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK);
        let mut stepped_back = std::collections::HashMap::new();
        let mut asked = super::intervals::Asked::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            self.settle_again().await;
            let now_us = self.inner.decisions.now().0;
            let introductions = self.inner.book.introductions().borrow().clone();
            stepped_back.retain(|id, _| introductions.iter().any(|introduction| introduction.id == *id));
            for introduction in introductions.iter().filter(|it| it.admits && it.expires_us > now_us) {
                self.admit(introduction, now_us, &mut stepped_back).await;
            }
            for revocation in self.inner.book.revocations() {
                self.revoke(&revocation).await;
            }
            self.finish_hand_overs().await;
            self.follow_intervals(&mut asked).await;
        }
    }

    /// Tells a connected wearable of another box, and steps back for it.
    async fn admit(
        &self,
        introduction: &Introduction,
        now_us: i64,
        stepped_back: &mut std::collections::HashMap<uuid::Uuid, tokio::time::Instant>,
    ) {
        let Introduction { id, hardware, secret, expires_us, .. } = introduction;
        let links = &self.inner.links;
        if !links.is_connected(hardware) {
            return;
        }
        if !self.inner.devices.now().introduced.contains(id) {
            let lives_s = u32::try_from((expires_us - now_us) / 1_000_000).unwrap_or(u32::MAX);
            let lives_s = lives_s.clamp(1, MAX_ADMISSION_S);
            let op = Op::Admit { secret: secret.to_bytes(), lives_s };
            match links.ask(hardware, op, ANSWER).await {
                Ok(Outcome::Ok) => tracing::info!(%hardware, lives_s, "told of another box"),
                other => {
                    tracing::warn!(%hardware, ?other, "the wearable was not told of the other box; trying again");
                    return;
                }
            }
            if let Err(error) = self.inner.devices.change(|contents| contents.introduced.insert(*id)) {
                tracing::warn!(%error, "that it was told is not kept; it is told again");
                return;
            }
        }
        let due = stepped_back.get(id).is_none_or(|at: &tokio::time::Instant| at.elapsed() > STEP_BACK_EVERY);
        if due {
            stepped_back.insert(*id, tokio::time::Instant::now());
            links.let_go(hardware, STEP_BACK);
        }
    }

    /// Takes a box off a wearable: another one by asking the wearable, this one by forgetting it.
    async fn revoke(&self, revocation: &Revocation) {
        let Revocation { hardware, adapter } = revocation;
        let contents = self.inner.devices.now();
        let key = revocation_key(revocation);
        if contents.revoked.contains(&key) {
            return;
        }
        let bonded = contents.devices.get(hardware).and_then(|device| device.bonded.as_ref());
        let ours = self.inner.adapters.with_address(Some(*adapter)).is_some();
        let done = if ours {
            match bonded.filter(|bonded| bonded.adapter.is_none_or(|by| by == *adapter)) {
                Some(_) => self.forget(&Actor::Box, hardware).await.map_err(|error| error.to_string()),
                None => Ok(()),
            }
        } else if self.inner.links.is_connected(hardware) {
            match self.inner.links.ask(hardware, Op::Revoke { bond: *adapter }, ANSWER).await {
                Ok(Outcome::Ok) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        } else {
            return;
        };
        match done {
            Ok(()) => tracing::info!(%hardware, adapter = address_text(*adapter), "a box is taken off"),
            Err(error) => {
                tracing::warn!(%hardware, error, "a box was not taken off; trying again");
                return;
            }
        }
        if let Err(error) = self.inner.devices.change(|contents| contents.revoked.insert(key)) {
            tracing::warn!(%error, "that a box was taken off is not kept; it is done again");
        }
    }
}

fn revocation_key(revocation: &Revocation) -> String {
    format!("{}/{}", revocation.hardware, address_text(revocation.adapter))
}
