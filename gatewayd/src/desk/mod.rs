//! What people do at the box, whichever way they come: by its page or by `kinaractl`.

use std::time::Duration;

use kinara_protocol::label::LabelSecret;
use tokio::sync::watch;
use uuid::Uuid;

use crate::hardware::HardwareId;
use crate::roster::Roster;
use crate::status::{Board, Link};

pub use crate::radio::window::{Nearby, Why, Window};

/// The longest that a pairing window stays open.
pub const LONGEST_WINDOW: Duration = Duration::from_mins(5);

/// Who does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// Somebody at the box's page.
    Staff {
        /// Name.
        name: String,
        /// The cloud's member; none when the box alone knows the person.
        member: Option<Uuid>,
    },
    /// Somebody with a shell.
    Operator {
        /// Their account.
        name: String,
    },
}

/// What a person shows that they hold the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// The code on the wearable's label.
    Label(LabelSecret),
    /// The wearable shows a number: [`Desk::type_passkey`] when the window asks for it.
    Display,
    /// Nothing: a sensor of another maker that can do no better, asked for by name.
    JustWorks,
}

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

/// A device, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceView {
    /// Which.
    pub hardware: HardwareId,
    /// The name it advertised.
    pub name: String,
    /// The link.
    pub link: Link,
    /// Whether this box has a bond with it.
    pub bonded: bool,
    /// One side has forgotten the bond: forget it and pair it again.
    pub stale: bool,
    /// Its label came with the configuration file.
    pub configured: bool,
    /// Who wears it, by this box.
    pub wearer: Option<(Uuid, String)>,
    /// Battery in percent.
    pub battery_percent: Option<u8>,
    /// Whether it is worn.
    pub worn: Option<bool>,
    /// Signal strength.
    pub rssi_dbm: Option<i16>,
    /// Firmware.
    pub firmware: String,
    /// Frames still on the wearable.
    pub behind_frames: u64,
    /// Frames on this box that the cloud has not confirmed.
    pub buffered_frames: u64,
    /// UTC of the last frame, microseconds; 0 for never.
    pub last_frame_us: i64,
    /// Why there is no link, and what to do; empty when all is well.
    pub trouble: String,
}

/// Why the desk did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// Pairing failed.
    #[error("{} {}", .0.text(), .0.advice())]
    Pairing(Why),
    /// No window is open.
    #[error("The pairing window is closed. Open it first.")]
    NotOpen,
    /// Another pairing is under way.
    #[error("A device is being paired already. Wait for it to end, or close the window.")]
    Busy,
    /// It has not been heard lately.
    #[error("This device is not near any more. Press its button and wait until it is shown again.")]
    NotNear,
    /// The code does not go with the device.
    #[error("This device cannot be paired in that way. {0}")]
    OtherCode(&'static str),
    /// Nothing waits for a number.
    #[error("No wearable waits for its number. Start the pairing first.")]
    NoPasskeyWanted,
    /// Too long.
    #[error("A pairing window lasts at most 5 minutes.")]
    TooLong,
    /// The box does not know this device.
    #[error("This box does not know {0}. Pair it first.")]
    UnknownDevice(HardwareId),
    /// The roster does not hold this person.
    #[error("The roster holds nobody with this id. Choose a wearer from the list.")]
    UnknownWearer(Uuid),
    /// The name cannot be used.
    #[error("A name has 1 to 100 characters.")]
    BadName,
    /// The text that was shown is not one of those offered.
    #[error("This is not the consent text in force. Show the present one and ask again.")]
    OtherConsentText,
    /// The device holds readings of its former wearer.
    #[error(
        "The wearable still holds {frames} frames of its former wearer. \
         Keep it near until they have been fetched, or accept that they are lost."
    )]
    NotDrained {
        /// How many.
        frames: u64,
    },
    /// The link is needed.
    #[error("{0} is not connected. Bring it near the box and wait until it is shown as connected.")]
    NotConnected(HardwareId),
    /// The wearable said no.
    #[error("The wearable did not do it: {0}. Try again; if it stays, restart the wearable.")]
    Wearable(String),
    /// Nothing could be kept.
    #[error("The box could not keep this: {0}. Check its disk with `kinaractl doctor`.")]
    NotKept(String),
    /// The daemon is stopping.
    #[error("The box is stopping. Try again in a minute.")]
    Stopped,
}

impl DeskError {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Pairing(why) => why.code(),
            Self::NotOpen => "not_open",
            Self::Busy => "busy",
            Self::NotNear => "not_near",
            Self::OtherCode(_) => "other_code",
            Self::NoPasskeyWanted => "no_passkey_wanted",
            Self::TooLong => "too_long",
            Self::UnknownDevice(_) => "unknown_device",
            Self::UnknownWearer(_) => "unknown_wearer",
            Self::BadName => "bad_name",
            Self::OtherConsentText => "other_consent_text",
            Self::NotDrained { .. } => "not_drained",
            Self::NotConnected(_) => "not_connected",
            Self::Wearable(_) => "wearable",
            Self::NotKept(_) => "not_kept",
            Self::Stopped => "stopped",
        }
    }
}

/// The desk; cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    board: Board,
    window: watch::Receiver<Window>,
    roster: watch::Receiver<Roster>,
}

#[allow(clippy::unused_async, clippy::unused_self, reason = "their work lands next")]
impl Desk {
    /// Lets devices pair for a while. An open window lasts from now on again.
    pub async fn open_window(&self, _by: &Actor, _lasts: Duration) -> Result<(), DeskError> {
        Err(DeskError::Stopped)
    }

    /// Ends it, and the pairing that is under way.
    pub async fn close_window(&self, _by: &Actor) {}

    /// Where the window stands.
    pub fn window(&self) -> watch::Receiver<Window> {
        self.window.clone()
    }

    /// Pairs the chosen device; returns when it is bonded and has said who it is.
    pub async fn pair(&self, _by: &Actor, _key: &str, _code: Code) -> Result<HardwareId, DeskError> {
        Err(DeskError::Stopped)
    }

    /// The number that the wearable shows.
    pub async fn type_passkey(&self, _by: &Actor, _passkey: u32) -> Result<(), DeskError> {
        Err(DeskError::Stopped)
    }

    /// Gives a paired device to a wearer who agreed; gives who that is.
    pub async fn bind(
        &self,
        _by: &Actor,
        _hardware: &HardwareId,
        _wearer: Wearer,
        _consent: ConsentGiven,
        _log: Log,
    ) -> Result<Uuid, DeskError> {
        Err(DeskError::Stopped)
    }

    /// Takes a device from its wearer.
    pub async fn unbind(&self, _by: &Actor, _hardware: &HardwareId) -> Result<(), DeskError> {
        Err(DeskError::Stopped)
    }

    /// A wearer does not agree any more: from now on nothing of them is kept.
    pub async fn withdraw_consent(&self, _by: &Actor, _user: Uuid) -> Result<(), DeskError> {
        Err(DeskError::Stopped)
    }

    /// Ends the bond with a device, on both sides where it is connected, and takes it from its wearer.
    pub async fn forget(&self, _by: &Actor, _hardware: &HardwareId) -> Result<(), DeskError> {
        Err(DeskError::Stopped)
    }

    /// Has a connected wearable show itself.
    pub async fn identify(&self, _by: &Actor, _hardware: &HardwareId) -> Result<(), DeskError> {
        Err(DeskError::Stopped)
    }

    /// Wearers, staff and consent texts.
    pub fn roster(&self) -> watch::Receiver<Roster> {
        self.roster.clone()
    }

    /// The status board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The devices of this box.
    pub fn devices(&self) -> Vec<DeviceView> {
        Vec::new()
    }
}
