//! One attempt: pair if need be, connect, ask who it is, and serve it.

use std::time::Duration;

use rand::Rng;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::links::Claim;
use super::manager::Manager;
use super::refetch;
use super::sensor;
use super::session::{self, Greeted};
use super::turns::Ended;
use super::window::{Chosen, Passkey};
use super::{AdapterId, Agreement, Connection, Offer, PasskeyProvider, RadioError, Sighting};
use crate::decisions::{Actor, What};
use crate::devices::{Bond, Bonded, How};
use crate::hardware::HardwareId;
use crate::roster::Introduction;
use crate::status::Link as LinkState;

/// Devices that one link is planned to serve in turn. Beyond it a wearable would wait too long for its turn.
const DEVICES_PER_SLOT: usize = 8;
/// How long a pairing waits for a link that another wearable has to give up.
const ROOM: Duration = Duration::from_secs(10);
/// Tries to connect after a pairing: the wearable has to advertise again first.
const FIRST_CONNECTIONS: u32 = 4;
/// Pause between them.
const FIRST_CONNECTION_PAUSE: Duration = Duration::from_secs(1);
/// How long a link that was lost is made again at once. Nobody else is heard meanwhile; one who left does not answer.
const AT_ONCE: Duration = Duration::from_secs(3);
/// Wrong codes after which an introduction is given up: each one tells a listener something about the passkey.
const INTRODUCTION_FAILURES: u32 = 5;

impl Manager {
    /// Serves a device that is due; `lost`: its link was lost a moment ago, and it was not heard since.
    pub(super) async fn attempt(
        &self,
        adapter: &AdapterId,
        mut claim: Claim,
        sighting: &Sighting,
        lost: bool,
        connecting: &Semaphore,
    ) -> Result<(), RadioError> {
        let hardware = claim.hardware().clone();
        if hardware.factory_id().is_none() {
            return self.attend_sensor(adapter, &claim, sighting, connecting).await;
        }
        let connection = {
            let Ok(_permit) = connecting.acquire().await else { return Ok(()) };
            if claim.cancel.is_cancelled() {
                return Ok(());
            }
            let bond = match self.devices.bonded(&hardware) {
                Some(bonded) => bonded.bond,
                None => self.pair_by_itself(adapter, &hardware, sighting).await?,
            };
            self.context.board.device(&hardware, |device| device.link = LinkState::Connecting);
            let connecting = self.radio.connect(adapter, sighting, &bond);
            let connected = if lost {
                let connected = tokio::time::timeout(AT_ONCE, connecting).await;
                connected.unwrap_or(Err(RadioError::TooFar))
            } else {
                connecting.await
            };
            match connected {
                Ok(connection) => connection,
                Err(RadioError::StaleBond) if self.pairs_anew(&hardware, sighting) => {
                    self.pair_anew(adapter, &hardware, sighting, &bond).await?
                }
                Err(error) => return Err(self.not_connected(adapter, &hardware, &bond, error).await),
            }
        };
        let greeted = session::greet(&self.context, connection).await?;
        if greeted.hardware() != hardware {
            // The bond is another wearable's, which showed this one's name.
            self.drop_bond(adapter, &hardware).await;
        } else if self.devices.bonded(&hardware).is_some_and(|bonded| bonded.stale) {
            self.mark_stale(&hardware, false);
        }
        session::run(&self.context, greeted, &mut claim).await
    }

    /// Serves a sensor of another maker.
    async fn attend_sensor(
        &self,
        adapter: &AdapterId,
        claim: &Claim,
        sighting: &Sighting,
        connecting: &Semaphore,
    ) -> Result<(), RadioError> {
        let hardware = claim.hardware();
        let connection = {
            let Ok(_permit) = connecting.acquire().await else { return Ok(()) };
            let Some(bonded) = self.devices.bonded(hardware) else { return Err(RadioError::WindowClosed) };
            if claim.cancel.is_cancelled() {
                return Ok(());
            }
            self.context.board.device(hardware, |device| device.link = LinkState::Connecting);
            match self.radio.connect_sensor(adapter, sighting, &bonded.bond).await {
                Ok(connection) => connection,
                Err(error) => {
                    return Err(self.not_connected(adapter, hardware, &bonded.bond, error).await);
                }
            }
        };
        sensor::run(&self.context, hardware.clone(), connection, &claim.cancel).await
    }

    /// What follows of a connection that did not come about.
    async fn not_connected(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        bond: &Bond,
        error: RadioError,
    ) -> RadioError {
        match &error {
            RadioError::StaleBond => {
                tracing::warn!(%hardware, "the wearable does not know us any more; a person has to forget it and pair again");
                self.mark_stale(hardware, true);
            }
            RadioError::NotAuthenticated(_) => {
                tracing::warn!(%hardware, %error, "a bond that proves nothing is dropped");
                if self.devices.bonded(hardware).is_some_and(|bonded| bonded.bond == *bond) {
                    self.drop_bond(adapter, hardware).await;
                }
            }
            _ => {}
        }
        error
    }

    /// Whether it can be paired again without a person: somebody opened its window, and its label is known.
    fn pairs_anew(&self, hardware: &HardwareId, sighting: &Sighting) -> bool {
        matches!(sighting.offer, Some(Offer::Label { .. })) && self.labels.contains_key(hardware)
    }

    /// It seems to have been reset. That it does not know us is no more than what was heard on the air, and its window may be
    /// open for another box: the bond stays until its successor stands.
    async fn pair_anew(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        sighting: &Sighting,
        former: &Bond,
    ) -> Result<Connection, RadioError> {
        tracing::info!(%hardware, "the wearable does not know us any more; it is paired again");
        self.mark_stale(hardware, true);
        let bond = match self.pair_by_itself(adapter, hardware, sighting).await {
            Err(RadioError::StaleBond) => return Err(self.make_way(adapter, sighting, former).await),
            paired => paired?,
        };
        if bond != *former {
            self.forget_in_radio(adapter, former).await;
        }
        self.radio.connect(adapter, sighting, &bond).await
    }

    /// The radio keeps its keys itself, and pairs with nobody whose keys it has. They go only where the wearable is near: at the
    /// edge of what is heard links break off by themselves. The next advertisement is answered with the pairing.
    async fn make_way(&self, adapter: &AdapterId, sighting: &Sighting, former: &Bond) -> RadioError {
        if sighting.rssi_dbm <= self.context.settings.weak_rssi_dbm {
            return RadioError::TooFar;
        }
        self.forget_in_radio(adapter, former).await;
        RadioError::Refused(
            "its window is open, and its former keys made way; it is paired at once".to_owned(),
        )
    }

    /// Pairs without a person: with a label of the configuration, or by introduction.
    async fn pair_by_itself(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        sighting: &Sighting,
    ) -> Result<Bond, RadioError> {
        let (passkey, how, introduction) = match (&sighting.offer, self.introduction(sighting)) {
            (Some(Offer::Introduction { nonce, .. }), Some(introduction)) => {
                (introduction.secret.passkey(nonce), How::Introduction, Some(introduction))
            }
            (Some(Offer::Label { nonce }), _) => {
                let secret = self.labels.get(hardware).ok_or(RadioError::WindowClosed)?;
                if self.nonces.pauses(hardware, self.context.clock.boottime_us()) {
                    return Err(RadioError::Pausing);
                }
                (secret.passkey(nonce), How::Label, None)
            }
            _ => return Err(RadioError::WindowClosed),
        };
        let provider = self.once(sighting, Passkey::Known(passkey))?;
        self.can_keep()?;
        self.context.board.device(hardware, |device| device.link = LinkState::Pairing);
        let open_for_it = !self.window.is_open();
        if open_for_it {
            self.radio.pairable(adapter, true).await?;
        }
        let paired = self.radio.pair(adapter, sighting, Agreement::Passkey(provider)).await;
        if open_for_it && !self.window.is_open() {
            self.radio.pairable(adapter, false).await?;
        }
        let bond = match (paired, &introduction) {
            (Ok(bond), _) => bond,
            (Err(error), Some(introduction)) => {
                self.introduction_failed(introduction, &error);
                return Err(error);
            }
            (Err(error), None) => {
                if error == RadioError::WrongCode {
                    let now_us = self.context.clock.boottime_us();
                    self.nonces.wrong_code(hardware, now_us, rand::rng().random());
                }
                return Err(error);
            }
        };
        self.nonces.paired(hardware);
        tracing::info!(%hardware, how = how.as_str(), "paired");
        let introduction = introduction.map(|introduction| introduction.id);
        self.keep_or_forget(adapter, hardware, sighting, (&bond, how), introduction).await?;
        if let Some(id) = introduction {
            self.tell_introduced(adapter, hardware, id).await?;
        }
        refetch::is_new(&self.context.store, hardware).await;
        Ok(bond)
    }

    /// Tells the cloud of a bond that is kept. What it could never hear of is undone, and the introduction may serve again.
    async fn tell_introduced(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        introduction: Uuid,
    ) -> Result<(), RadioError> {
        let how = How::Introduction;
        let paired = What::Paired { hardware: hardware.clone(), how, adapter: self.address(adapter) };
        let Err(error) = self.decisions.record(&Actor::Box, vec![paired]).await else { return Ok(()) };
        self.drop_bond(adapter, hardware).await;
        if let Err(error) = self.devices.change(|contents| contents.introduced.remove(&introduction)) {
            tracing::warn!(%hardware, %error, "that the introduction may serve again is not kept");
        }
        Err(RadioError::NotKept(error.to_string()))
    }

    /// Before a pairing: where its bond could not be kept none is made, for the wearable would go on keeping it.
    fn can_keep(&self) -> Result<(), RadioError> {
        self.devices.can_be_kept().map_err(|error| RadioError::NotKept(error.to_string()))
    }

    /// Keeps a new bond, or forgets it in the radio as well.
    async fn keep_or_forget(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        sighting: &Sighting,
        (bond, how): (&Bond, How),
        introduction: Option<Uuid>,
    ) -> Result<(), RadioError> {
        let kept = self.keep(adapter, hardware, &sighting.name, bond, how, introduction);
        if kept.is_err() {
            self.forget_in_radio(adapter, bond).await;
        }
        kept
    }

    fn introduction_failed(&self, introduction: &Introduction, error: &RadioError) {
        let failures = introduction.failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        tracing::warn!(hardware = %introduction.hardware, %error, failures, "an introduction did not lead to a bond");
        if *error == RadioError::WrongCode && failures >= INTRODUCTION_FAILURES {
            tracing::error!(hardware = %introduction.hardware, "the introduction is given up; introduce the box again");
            let id = introduction.id;
            if let Err(error) = self.devices.change(|contents| contents.introduced.insert(id)) {
                tracing::warn!(%error, "that it was given up is not kept");
            }
        }
    }

    /// Pairs what a person chose, and serves it.
    pub(super) async fn pair_chosen(
        &self,
        adapter: &AdapterId,
        chosen: Chosen,
        parent: &CancellationToken,
    ) -> Ended {
        let began = Instant::now();
        let Chosen { sighting, how, passkey, cancel, reply } = chosen;
        let (hardware, greeted) = match self.bond_chosen(adapter, &sighting, how, passkey, &cancel).await {
            Ok(bonded) => bonded,
            Err(error) => {
                tracing::info!(name = sighting.name, %error, "not paired");
                // The person may have gone.
                drop(reply.send(Err(error.clone())));
                return Ended { hardware: None, result: Err(error), lasted: began.elapsed() };
            }
        };
        tracing::info!(%hardware, how = how.as_str(), "paired");
        let claim = self.links.claim(&hardware, adapter, parent);
        drop(reply.send(Ok((hardware.clone(), self.address(adapter)))));
        let result = match (claim, greeted) {
            (Some(mut claim), Some(greeted)) => session::run(&self.context, greeted, &mut claim).await,
            // It is served like any other from its next advertisement on.
            _ => Ok(()),
        };
        Ended { hardware: Some(hardware), result, lasted: began.elapsed() }
    }

    async fn bond_chosen(
        &self,
        adapter: &AdapterId,
        sighting: &Sighting,
        how: How,
        passkey: Option<Passkey>,
        cancel: &CancellationToken,
    ) -> Result<(HardwareId, Option<Greeted>), RadioError> {
        self.can_keep()?;
        self.make_room(adapter).await?;
        let agreement = match passkey {
            None => Agreement::JustWorks,
            Some(passkey) => Agreement::Passkey(self.once(sighting, passkey)?),
        };
        let bond = tokio::select! {
            () = cancel.cancelled() => return Err(RadioError::WindowClosed),
            bond = self.radio.pair(adapter, sighting, agreement) => bond?,
        };
        if matches!(sighting.offer, Some(Offer::Sensor(_))) {
            let identity =
                bond.identity().ok_or_else(|| RadioError::Nonsense("a bond without address".to_owned()))?;
            let hardware = HardwareId::sensor(identity);
            self.refuse_worn(adapter, &hardware, &bond).await?;
            self.keep_or_forget(adapter, &hardware, sighting, (&bond, how), None).await?;
            return Ok((hardware, None));
        }
        // Closed while it is asked who it is, the window leaves nothing: nobody knows yet whose the bond is.
        let greeted = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RadioError::WindowClosed),
            greeted = self.first_greeting(adapter, sighting, &bond) => greeted,
        };
        match greeted {
            Ok(greeted) => {
                let hardware = greeted.hardware();
                self.refuse_worn(adapter, &hardware, &bond).await?;
                self.keep_or_forget(adapter, &hardware, sighting, (&bond, how), None).await?;
                refetch::is_new(&self.context.store, &hardware).await;
                Ok((hardware, Some(greeted)))
            }
            Err(error) => {
                self.forget_in_radio(adapter, &bond).await;
                Err(error)
            }
        }
    }

    /// Drops a bond that is none any more where the radio keeps its keys.
    async fn forget_in_radio(&self, adapter: &AdapterId, bond: &Bond) {
        if let Err(error) = self.radio.forget(adapter, bond).await {
            tracing::warn!(%error, "a bond that is of no use was not dropped");
        }
    }

    /// Refuses what says that it is a device which somebody wears, or is about to, whatever became of the bond with that one.
    /// Who it is says the device itself: whoever claims the identity of one that is worn would bring readings for its
    /// wearer and lock the real one out, so a person has to take that one back from its wearer first.
    async fn refuse_worn(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        bond: &Bond,
    ) -> Result<(), RadioError> {
        if self.devices.get(hardware).is_none_or(|device| device.wearer().is_none()) {
            return Ok(());
        }
        self.forget_in_radio(adapter, bond).await;
        Err(RadioError::Replaces(hardware.clone()))
    }

    /// The passkey for one attempt, of a nonce that has served none of this secret before.
    fn once(&self, sighting: &Sighting, passkey: Passkey) -> Result<PasskeyProvider, RadioError> {
        let Passkey::Known(known) = passkey else { return Ok(passkey.provider()) };
        let provider = passkey.provider();
        let Some(Offer::Label { nonce } | Offer::Introduction { nonce, .. }) = &sighting.offer else {
            return Ok(provider);
        };
        // Two secrets may meet the same nonce; neither learns anything of the other.
        let spent = [nonce.as_slice(), &known.to_be_bytes()].concat();
        if self.nonces.is_spent(&spent) {
            tracing::warn!(name = sighting.name, "a pairing number that was used before is offered again");
            return Err(RadioError::NonceSpent);
        }
        let nonces = self.nonces.clone();
        Ok(Box::new(move || {
            nonces.spend(&spent);
            provider()
        }))
    }

    /// Asks a wearable that was just paired who it is.
    async fn first_greeting(
        &self,
        adapter: &AdapterId,
        sighting: &Sighting,
        bond: &Bond,
    ) -> Result<Greeted, RadioError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let greeted = match self.radio.connect(adapter, sighting, bond).await {
                Ok(connection) => session::greet(&self.context, connection).await,
                Err(error) => Err(error),
            };
            match greeted {
                Err(error) if tries < FIRST_CONNECTIONS && error != RadioError::StaleBond => {
                    tracing::debug!(%error, tries, "not connected after the pairing");
                    tokio::time::sleep(FIRST_CONNECTION_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Frees a link for a pairing, by ending the longest turn; refuses where one more device would be one too many.
    async fn make_room(&self, adapter: &AdapterId) -> Result<(), RadioError> {
        let slots = self.slots(adapter);
        let planned = slots * DEVICES_PER_SLOT;
        let address = self.address(adapter);
        let bonded = self.devices.now().devices.into_values().filter_map(|device| device.bonded);
        let bonded = bonded.filter(|bonded| bonded.adapter.is_none_or(|made_by| made_by == address)).count();
        if bonded >= planned {
            return Err(RadioError::OutOfSlots(format!("{bonded} devices share {slots} links already")));
        }
        let deadline = Instant::now() + ROOM;
        loop {
            let held = self.links.of(adapter);
            if held.len() < slots {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(RadioError::OutOfSlots(format!("all {slots} links are in use")));
            }
            if !held.iter().any(|link| link.cancel.is_cancelled())
                && let Some(longest) = held.iter().min_by_key(|link| link.since)
            {
                longest.cancel.cancel();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Keeps a bond; the introduction that it came of has served.
    fn keep(
        &self,
        adapter: &AdapterId,
        hardware: &HardwareId,
        name: &str,
        bond: &Bond,
        how: How,
        introduction: Option<Uuid>,
    ) -> Result<(), RadioError> {
        let made_by = self.adapters.get(adapter).map(|adapter| adapter.address);
        self.devices
            .change(|contents| {
                let device = contents.devices.entry(hardware.clone()).or_default();
                name.clone_into(&mut device.name);
                device.bonded = Some(Bonded { bond: bond.clone(), adapter: made_by, how, stale: false });
                contents.introduced.extend(introduction);
            })
            .map_err(|error| RadioError::NotKept(error.to_string()))
    }

    async fn drop_bond(&self, adapter: &AdapterId, hardware: &HardwareId) {
        let Some(bonded) = self.devices.bonded(hardware) else { return };
        if let Err(error) = self.radio.forget(adapter, &bonded.bond).await {
            tracing::warn!(%hardware, %error, "the adapter keeps the bond");
        }
        let dropped = self.devices.change(|contents| {
            if let Some(device) = contents.devices.get_mut(hardware) {
                device.bonded = None;
            }
        });
        if let Err(error) = dropped {
            tracing::warn!(%hardware, %error, "the bond stays in the file");
        }
    }

    fn mark_stale(&self, hardware: &HardwareId, stale: bool) {
        let marked = self.devices.change(|contents| {
            if let Some(bonded) = contents.devices.get_mut(hardware).and_then(|device| device.bonded.as_mut())
            {
                bonded.stale = stale;
            }
        });
        if let Err(error) = marked {
            tracing::warn!(%hardware, %error, "whether the bond is stale is not kept");
        }
    }

    fn address(&self, adapter: &AdapterId) -> [u8; 6] {
        self.adapters.get(adapter).map(|adapter| adapter.address).unwrap_or_default()
    }

    /// The introduction that this sighting answers, if it is still of use.
    pub(super) fn introduction(&self, sighting: &Sighting) -> Option<Introduction> {
        let Some(Offer::Introduction { nonce, tag }) = &sighting.offer else { return None };
        let now_us = self.decisions.now().0;
        let used = self.devices.now().introduced;
        let introductions = self.introductions.borrow();
        let mut fitting = introductions.iter().filter(|introduction| {
            !introduction.admits
                && introduction.expires_us > now_us
                && !used.contains(&introduction.id)
                && introduction.secret.tag(nonce) == *tag
        });
        fitting.next().cloned()
    }
}
