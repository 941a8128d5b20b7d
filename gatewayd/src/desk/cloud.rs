//! What the cloud's configuration asks of this box: to introduce wearables to another box, and to take boxes off them.
//!
//! Each is done once, when the wearable is connected, and that it was done is kept beside the bonds. An introduction
//! that this box is the newcomer of waits in the radio for the wearable's advertisement.

use std::time::Duration;

use kinara_protocol::control::{MAX_ADMISSION_S, Op, Outcome};
use kinara_protocol::envelope::Config;
use tokio_util::sync::CancellationToken;

use super::{ANSWER, Actor, Desk, DeskError};
use crate::devices::address_text;
use crate::roster::{Introduction, Revocation};

/// How often it is looked at what can be done now.
const LOOK: Duration = Duration::from_secs(2);
/// For how long this box stays away from a wearable that it has introduced, so that the other one can reach it.
const STEP_BACK: Duration = Duration::from_secs(20);
/// How often it steps back again while the other one has not come.
const STEP_BACK_EVERY: Duration = Duration::from_mins(10);

impl Desk {
    /// Takes a configuration of the cloud; on return it is on disk. False for an older one than that in force.
    pub async fn take_config(&self, config: &Config) -> Result<bool, DeskError> {
        let newer = config.config_version > self.inner.book.version();
        let taken = self.inner.book.take(config).map_err(DeskError::not_kept)?;
        if newer {
            self.follow_assignments().await?;
            self.forget_done(config)?;
        }
        Ok(taken)
    }

    /// Where the cloud has heard of what was decided here and has put another wearer in its place, it is right.
    async fn follow_assignments(&self) -> Result<(), DeskError> {
        for (hardware, device) in self.inner.devices.now().devices {
            let Some(binding) = device.worn_by else { continue };
            let another = self.inner.book.cloud_says(&hardware).is_some_and(|user| user != binding.user);
            if !another
                || self.inner.decisions.is_waiting(binding.decision).await.map_err(DeskError::not_kept)?
            {
                continue;
            }
            tracing::info!(%hardware, "the cloud says who wears it");
            self.inner
                .devices
                .change(|contents| {
                    // It may have got another wearer here meanwhile.
                    if let Some(device) = contents.devices.get_mut(&hardware)
                        && device.worn_by == Some(binding)
                    {
                        device.worn_by = None;
                    }
                })
                .map_err(DeskError::not_kept)?;
        }
        self.inner.book.tell();
        Ok(())
    }

    /// What the cloud does not ask for any more need not be remembered as done.
    fn forget_done(&self, config: &Config) -> Result<(), DeskError> {
        let asked = |id: &uuid::Uuid| config.introductions.iter().any(|asked| asked.id == id.as_bytes());
        let revocations: Vec<String> = self.inner.book.revocations().iter().map(revocation_key).collect();
        self.inner
            .devices
            .change(|contents| {
                contents.introduced.retain(asked);
                contents.revoked.retain(|done| revocations.contains(done));
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
