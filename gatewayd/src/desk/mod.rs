//! What people do at the box, whichever way they come: by its page or by `kinaractl`.
//!
//! The promise: what a person decides here is on disk, signed, before the call returns, and goes to the cloud whenever
//! it can be reached; nothing is paired outside a window that a person opened, nor any other device than the one they
//! chose; and whatever does not work says why, and what to do.

mod cloud;
mod error;
mod given_up;
mod handover;
mod intervals;
mod new_log;
mod parked;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kinara_protocol::control::{Op, Outcome};
use kinara_protocol::label::LabelSecret;
use tokio::sync::watch;

use crate::decisions::{Decisions, What};
use crate::devices::{Devices, How};
use crate::hardware::HardwareId;
use crate::radio::links::Links;
use crate::radio::manager::Adapters;
use crate::radio::window::{PairingWindow, Passkey};
use crate::radio::{AdapterId, Offer, Radio};
use crate::roster::{Book, Roster};
use crate::status::Board;
use crate::store::Store;
use new_log::WearerLocks;

pub use crate::decisions::Actor;
pub use crate::radio::window::{Nearby, Why, Window};
pub use error::DeskError;
pub use handover::{ConsentGiven, Log, Wearer};
pub use intervals::Setting;
pub use view::DeviceView;

/// The longest that a pairing window stays open.
pub const LONGEST_WINDOW: Duration = Duration::from_mins(5);
/// How long a connected wearable may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Nobody connects to a forgotten device for this long, so that both sides have done.
const AFTER_FORGETTING: Duration = Duration::from_secs(3);

/// What a person shows that they hold the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// The code on the wearable's label.
    Label(LabelSecret),
    /// The device shows a number: [`Desk::type_passkey`] when the window asks for it.
    Display,
    /// Nothing: a sensor of another maker that can do no better, asked for by name.
    JustWorks,
}

/// What the desk works with.
pub struct Parts {
    /// The status board.
    pub board: Board,
    /// Frames, and the outbox.
    pub store: Store,
    /// Bonds and bindings.
    pub devices: Arc<Devices>,
    /// Wearables whose label came with the configuration.
    pub labelled: BTreeSet<HardwareId>,
    /// The roster.
    pub book: Arc<Book>,
    /// Where decisions are recorded.
    pub decisions: Decisions,
    /// The pairing window.
    pub window: PairingWindow,
    /// Who is connected.
    pub links: Links,
    /// The transport.
    pub radio: Arc<dyn Radio>,
    /// Its adapters.
    pub adapters: Arc<Adapters>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// The desk; cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    inner: Arc<Parts>,
    wearers: Arc<WearerLocks>,
    config: Arc<cloud::Followed>,
}

impl Desk {
    /// A desk over these parts.
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts), wearers: Arc::default(), config: Arc::default() }
    }

    /// Lets devices pair for a while. An open window lasts from now on again.
    pub fn open_window(&self, by: &Actor, lasts: Duration) -> Result<(), DeskError> {
        if lasts > LONGEST_WINDOW {
            return Err(DeskError::TooLong);
        }
        tracing::info!(by = by.name(), ?lasts, "the pairing window is opened");
        Ok(self.inner.window.open(lasts)?)
    }

    /// Ends it, and the pairing that is under way.
    pub fn close_window(&self, by: &Actor) {
        tracing::info!(by = by.name(), "the pairing window is closed");
        self.inner.window.close(None);
    }

    /// Where the window stands.
    pub fn window(&self) -> watch::Receiver<Window> {
        self.inner.window.watch()
    }

    /// Pairs the chosen device; returns when it is bonded and has said who it is. It goes on when the caller does not
    /// wait for it.
    pub async fn pair(&self, by: &Actor, key: &str, code: Code) -> Result<HardwareId, DeskError> {
        let window = &self.inner.window;
        let offer = window.offer(key)?.offer;
        let how = match (offer, &code) {
            (Some(Offer::Label { .. }), Code::Label(_)) => How::Label,
            (Some(Offer::Display | Offer::Sensor(_)), Code::Display) => How::Display,
            (Some(Offer::Sensor(_)), Code::JustWorks) => How::JustWorks,
            (Some(Offer::Label { .. }), _) => {
                return Err(DeskError::OtherCode("Type the code on its label."));
            }
            (Some(Offer::Display), _) => return Err(DeskError::OtherCode("It shows a number itself.")),
            (Some(Offer::Sensor(_)), _) => {
                return Err(DeskError::OtherCode("A sensor of another maker has no Kinara label."));
            }
            (Some(Offer::Introduction { .. }) | None, _) => {
                return Err(DeskError::OtherCode("It waits for a box that it has been told of."));
            }
        };
        tracing::info!(by = by.name(), key, how = how.as_str(), "pairing");
        let typed = window.clone();
        let answer = window.begin(key, how, move |sighting| match (code, &sighting.offer) {
            (Code::Label(secret), Some(Offer::Label { nonce })) => {
                Some(Passkey::Known(secret.passkey(nonce)))
            }
            (Code::JustWorks, _) => None,
            _ => Some(Passkey::Typed(typed)),
        })?;
        let (desk, by) = (self.clone(), by.clone());
        let pairing = tokio::spawn(async move {
            let paired = match answer.await {
                Ok(Ok(paired)) => Ok(paired),
                Ok(Err(error)) => Err(Why::from(&error)),
                Err(_) => Err(Why::Radio("the adapter has gone".to_owned())),
            };
            let shown = paired.as_ref().map(|(hardware, _)| hardware.clone()).map_err(Clone::clone);
            desk.inner.window.ended(&shown);
            let (hardware, adapter) = paired.map_err(DeskError::Pairing)?;
            desk.inner.book.tell();
            desk.record(&by, vec![What::Paired { hardware: hardware.clone(), how, adapter }]).await?;
            Ok(hardware)
        });
        pairing.await.map_err(|_| DeskError::Stopped)?
    }

    /// The number that the device shows.
    pub fn type_passkey(&self, by: &Actor, passkey: u32) -> Result<(), DeskError> {
        tracing::info!(by = by.name(), "the number of a display is typed");
        self.inner.window.type_passkey(passkey).then_some(()).ok_or(DeskError::NoPasskeyWanted)
    }

    /// Ends the bond with a device, on both sides where it is connected, and takes it from its wearer.
    pub async fn forget(&self, by: &Actor, hardware: &HardwareId) -> Result<(), DeskError> {
        let lock = self.wearers.of(hardware);
        let _changing = lock.lock().await;
        let device = self.known(hardware)?;
        let mut what = Vec::new();
        if device.worn_by.is_some() {
            what.push(What::Unassigned { hardware: hardware.clone(), to: self.boundary(hardware).await });
        }
        what.push(What::Forgotten { hardware: hardware.clone() });
        self.record(by, what).await?;
        if let Some(bonded) = &device.bonded {
            if let Some(bond) = bonded.adapter {
                self.revoke_here(hardware, bond).await;
            }
            self.inner.links.let_go(hardware, AFTER_FORGETTING);
            if let Some(adapter) = self.adapter_of(bonded.adapter)
                && let Err(error) = self.inner.radio.forget(&adapter, &bonded.bond).await
            {
                tracing::warn!(%hardware, %error, "the adapter keeps the bond");
            }
        }
        self.inner
            .devices
            .change(|contents| contents.devices.remove(hardware))
            .map_err(DeskError::not_kept)?;
        self.inner.book.tell();
        if !self.inner.labelled.contains(hardware) {
            self.inner.board.remove_device(hardware);
        }
        Ok(())
    }

    /// Has the wearable itself forget us, if it is connected; a wearable that cannot is asked to by its button.
    async fn revoke_here(&self, hardware: &HardwareId, bond: [u8; 6]) {
        if !self.inner.links.is_connected(hardware) {
            return;
        }
        match self.inner.links.ask(hardware, Op::Revoke { bond }, ANSWER).await {
            Ok(Outcome::Ok) => {}
            other => {
                tracing::info!(%hardware, ?other, "the wearable keeps the bond; a reset of it clears it");
            }
        }
    }

    /// Has a connected wearable show itself.
    pub async fn identify(&self, by: &Actor, hardware: &HardwareId) -> Result<(), DeskError> {
        tracing::info!(by = by.name(), %hardware, "identify");
        match self.inner.links.ask(hardware, Op::Identify, ANSWER).await {
            Ok(Outcome::Ok) => Ok(()),
            Ok(other) => Err(DeskError::Wearable(format!("{other:?}"))),
            Err(error) => Err(DeskError::of_the_device(hardware, &error)),
        }
    }

    /// Wearers, staff and consent texts.
    pub fn roster(&self) -> watch::Receiver<Roster> {
        self.inner.book.roster()
    }

    /// The status board.
    pub fn board(&self) -> &Board {
        &self.inner.board
    }

    fn known(&self, hardware: &HardwareId) -> Result<crate::devices::Device, DeskError> {
        self.inner.devices.get(hardware).ok_or_else(|| DeskError::UnknownDevice(hardware.clone()))
    }

    /// The adapter with this address; the only one, where a bond does not say.
    fn adapter_of(&self, address: Option<[u8; 6]>) -> Option<AdapterId> {
        self.inner.adapters.with_address(address)
    }

    async fn record(&self, by: &Actor, what: Vec<What>) -> Result<Vec<uuid::Uuid>, DeskError> {
        self.inner.decisions.record(by, what).await.map_err(DeskError::not_kept)
    }
}
