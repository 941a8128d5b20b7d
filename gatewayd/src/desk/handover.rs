//! Who wears what: a device gets a wearer who agreed, gets another one, or none.
//!
//! Where the device is connected, the boundary between two wearers is a frame: the open ones are closed, and the next
//! one is the first on the later side. A new wearer starts when the log of the one before has been fetched, or was
//! formatted by a person who accepted that loss, which is recorded as a gap ([`super::new_log`]).

use std::time::Duration;

use kinara_protocol::control::{Hello, Op, Outcome, Refusal};
use kinara_protocol::entry;
use tokio::time::Instant;
use uuid::Uuid;

use super::{ANSWER, Actor, Desk, DeskError};
use crate::decisions::{Boundary, What};
use crate::devices::{Binding, HandOver};
use crate::hardware::HardwareId;
use crate::roster::ConsentHere;

/// How long a device that was just paired may take until it is connected.
const CONNECTED: Duration = Duration::from_secs(20);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Who is to wear it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wearer {
    /// Somebody of the roster.
    Known(Uuid),
    /// Somebody new, until the cloud confirms.
    Provisional {
        /// As the clinic calls them.
        display_name: String,
    },
}

/// What the wearer agreed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsentGiven {
    /// Version of the text.
    pub version: String,
    /// Language of the text that was shown.
    pub language: String,
    /// SHA-256 of the text that was shown.
    pub text_sha256: [u8; 32],
    /// Who asked.
    pub asked_by: String,
}

/// What becomes of the former wearer's readings that are still on the wearable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Log {
    /// They are fetched first; until then the device cannot be given to another.
    #[default]
    Drain,
    /// A person accepted that they are lost.
    Format,
}

impl Desk {
    /// Gives a paired device to a wearer who agreed; gives who that is.
    pub async fn bind(
        &self,
        by: &Actor,
        hardware: &HardwareId,
        wearer: Wearer,
        consent: ConsentGiven,
        log: Log,
    ) -> Result<Uuid, DeskError> {
        let device = self.known(hardware)?;
        if device.bonded.is_none() {
            return Err(DeskError::UnknownDevice(hardware.clone()));
        }
        self.check_consent(&consent)?;
        let asked_by = name(&consent.asked_by)?;
        let (user, added) = self.check_wearer(wearer)?;
        let lock = self.wearers.of(hardware);
        let changing = lock.lock().await;
        let former = self.worn_by(hardware);
        let another = former.is_some_and(|former| former != user);
        let (from, old_log) = self.boundary_of_hand_over(hardware, another, log).await?;

        let consent_id = self.inner.decisions.new_id();
        let mut what = Vec::new();
        if let Some(display_name) = &added {
            what.push(What::WearerAdded { user, display_name: display_name.clone() });
        }
        what.push(What::ConsentRecorded {
            consent: consent_id,
            user,
            version: consent.version.clone(),
            language: consent.language,
            text_sha256: consent.text_sha256,
            asked_by,
        });
        if another || (old_log.is_some() && former.is_some()) {
            what.push(What::Unassigned { hardware: hardware.clone(), to: from });
        }
        if old_log.is_none() {
            what.push(What::Assigned {
                hardware: hardware.clone(),
                user,
                consent: consent_id,
                from,
                device_name: device.name,
            });
        }
        let ids = self.record(by, what).await?;
        let decision = ids.last().copied().expect("at least the consent was recorded");
        let since_us = self.inner.decisions.now().0;
        match old_log {
            None => {
                let config = self.inner.book.version();
                let binding = Binding { user, consent: consent_id, decision, since_us, config };
                self.set_wearer(hardware, Some(binding), None)?;
            }
            Some(old_log) => {
                let pending = HandOver { user, consent: consent_id, old_log, by: by.clone() };
                self.set_wearer(hardware, None, Some(pending))?;
            }
        }
        let given = ConsentHere { id: consent_id, version: consent.version };
        self.inner
            .book
            .decide(|people| {
                people.added.extend(added.map(|name| (user, name)));
                people.consents.insert(user, given);
                people.withdrawn.remove(&user);
            })
            .map_err(DeskError::not_kept)?;
        drop(changing);
        if old_log.is_some() {
            self.wait_handed_over(hardware).await?;
        } else if hardware.factory_id().is_some() {
            self.tell_intervals_again(hardware).await;
        }
        Ok(user)
    }

    /// Takes a device from its wearer.
    pub async fn unbind(&self, by: &Actor, hardware: &HardwareId) -> Result<(), DeskError> {
        let lock = self.wearers.of(hardware);
        let _changing = lock.lock().await;
        self.known(hardware)?;
        if self.inner.devices.get(hardware).is_some_and(|device| device.hand_over.is_some()) {
            // The one who was to wear it never did.
            self.set_wearer(hardware, None, None)?;
        } else if self.worn_by(hardware).is_some() {
            let to = self.boundary(hardware).await;
            self.record(by, vec![What::Unassigned { hardware: hardware.clone(), to }]).await?;
            self.set_wearer(hardware, None, None)?;
        }
        self.inner.book.tell();
        Ok(())
    }

    /// A wearer does not agree any more: from now on nothing of them is kept.
    pub async fn withdraw_consent(&self, by: &Actor, user: Uuid) -> Result<(), DeskError> {
        if !self.roster().borrow().wearers.iter().any(|wearer| wearer.user == user) {
            return Err(DeskError::UnknownWearer(user));
        }
        self.record(by, vec![What::ConsentWithdrawn { user }]).await?;
        self.inner
            .book
            .decide(|people| {
                people.consents.remove(&user);
                people.withdrawn.insert(user);
            })
            .map_err(DeskError::not_kept)
    }

    fn check_consent(&self, consent: &ConsentGiven) -> Result<(), DeskError> {
        let roster = self.roster();
        let offered = roster.borrow().consent_texts.iter().any(|text| {
            text.version == consent.version
                && text.language == consent.language
                && text.sha256() == consent.text_sha256
        });
        offered.then_some(()).ok_or(DeskError::OtherConsentText)
    }

    /// The wearer's id, and the name of a new one.
    fn check_wearer(&self, wearer: Wearer) -> Result<(Uuid, Option<String>), DeskError> {
        match wearer {
            Wearer::Known(user) => {
                let roster = self.roster();
                let known = roster.borrow().wearers.iter().any(|wearer| wearer.user == user);
                known.then_some((user, None)).ok_or(DeskError::UnknownWearer(user))
            }
            Wearer::Provisional { display_name } => {
                let name = name(&display_name)?;
                Ok((self.inner.decisions.new_id(), Some(name)))
            }
        }
    }

    pub(super) fn worn_by(&self, hardware: &HardwareId) -> Option<Uuid> {
        let roster = self.roster();
        let roster = roster.borrow();
        let mut wearers = roster.wearers.iter();
        wearers.find(|wearer| wearer.hardware.contains(hardware)).map(|wearer| wearer.user)
    }

    pub(super) fn set_wearer(
        &self,
        hardware: &HardwareId,
        worn_by: Option<Binding>,
        hand_over: Option<HandOver>,
    ) -> Result<(), DeskError> {
        self.inner
            .devices
            .change(|contents| {
                if let Some(device) = contents.devices.get_mut(hardware) {
                    device.worn_by = worn_by;
                    device.hand_over = hand_over;
                }
            })
            .map_err(DeskError::not_kept)
    }

    /// The boundary for a new wearer, and the log that has to end first. A sensor of another maker has no log and no frames of
    /// its own: the time decides.
    async fn boundary_of_hand_over(
        &self,
        hardware: &HardwareId,
        another: bool,
        log: Log,
    ) -> Result<(Option<Boundary>, Option<u32>), DeskError> {
        if hardware.factory_id().is_none() {
            return Ok((None, None));
        }
        self.wait_connected(hardware, CONNECTED).await?;
        if log == Log::Format {
            let (boundary, old_log) = self.give_up_log(hardware).await?;
            return Ok((Some(boundary), Some(old_log)));
        }
        let boundary = self.close_frames(hardware).await?;
        // What was in the open frames may still be on its way.
        if another {
            self.wait_drained(hardware, boundary).await?;
        }
        Ok((Some(boundary), None))
    }

    /// The boundary where the device is connected; else the time decides.
    pub(super) async fn boundary(&self, hardware: &HardwareId) -> Option<Boundary> {
        if hardware.factory_id().is_none() || !self.inner.links.is_connected(hardware) {
            return None;
        }
        match self.close_frames(hardware).await {
            Ok(boundary) => Some(boundary),
            Err(error) => {
                tracing::info!(%hardware, %error, "the time alone decides at this hand-over");
                None
            }
        }
    }

    /// Closes the open frames; gives the first frame of the later side.
    pub(super) async fn close_frames(&self, hardware: &HardwareId) -> Result<Boundary, DeskError> {
        match self.ask(hardware, Op::HandOver).await? {
            Outcome::Boundary { epoch, next_seq } => return Ok((epoch.0, next_seq)),
            Outcome::Refused(Refusal::UnknownOperation) => {}
            other => return Err(DeskError::Wearable(format!("{other:?} to a hand-over"))),
        }
        // Firmware of before that question is asked two. A frame that closes between them counts as the former wearer's.
        match self.ask(hardware, Op::CloseFrame).await? {
            Outcome::Ok => {}
            other => return Err(DeskError::Wearable(format!("{other:?} to closing its frames"))),
        }
        let hello = self.hello(hardware).await?;
        Ok((hello.epoch.0, hello.next_seq))
    }

    pub(super) async fn hello(&self, hardware: &HardwareId) -> Result<Hello, DeskError> {
        match self.ask(hardware, Op::Hello).await? {
            Outcome::Hello(hello) => Ok(hello),
            other => Err(DeskError::Wearable(format!("{other:?} to a hello"))),
        }
    }

    pub(super) async fn ask(&self, hardware: &HardwareId, op: Op) -> Result<Outcome, DeskError> {
        let answer = self.inner.links.ask(hardware, op, ANSWER).await;
        answer.map_err(|error| DeskError::of_the_device(hardware, &error))
    }

    async fn wait_connected(&self, hardware: &HardwareId, limit: Duration) -> Result<(), DeskError> {
        let deadline = Instant::now() + limit;
        while !self.inner.links.is_connected(hardware) {
            if Instant::now() > deadline {
                return Err(DeskError::NotConnected(hardware.clone()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits a little until everything before the boundary has been fetched; otherwise tells how much has not. A link that is
    /// lost meanwhile says nothing about what was fetched.
    async fn wait_drained(&self, hardware: &HardwareId, boundary: Boundary) -> Result<(), DeskError> {
        let deadline = Instant::now() + ANSWER;
        loop {
            let hello = self.hello(hardware).await?;
            let (epoch, seq) = hello.oldest;
            let passed = (epoch.0, seq) >= boundary;
            if passed || hello.stored_frames == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(DeskError::NotDrained { frames: u64::from(hello.stored_frames) });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// A person's name as the cloud takes it, whichever door it came by: what it refuses later it refuses for good.
fn name(text: &str) -> Result<String, DeskError> {
    entry::name(text, entry::LONGEST_NAME).map_err(|_| DeskError::BadName)
}
