//! Why the desk did not do it: for people a sentence with an advice, for programs a word.

use kinara_protocol::channel;
use kinara_protocol::intervals::{CHANGEABLE, NotTaken};
use uuid::Uuid;

use crate::hardware::HardwareId;
use crate::radio::RadioError;
use crate::radio::window::{NotBegun, Why};

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
    #[error("A name has 1 to {} characters, on one line.", kinara_protocol::entry::LONGEST_NAME)]
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
    /// It is recorded, and waits for the wearable.
    #[error(
        "It is recorded. {0} is away: when it comes back it begins a new log, and that is the new wearer's. Bring it near."
    )]
    HandOverPending(HardwareId),
    /// An interval that cannot be.
    #[error("{}", interval_text(*.0))]
    Interval(#[from] NotTaken),
    /// A sensor of another maker.
    #[error(
        "{0} is a sensor of another maker. How often it measures is its own; only Kinara wearables can be set."
    )]
    MeasuresItself(HardwareId),
    /// It does not know the question.
    #[error(
        "It is kept, but the software of {0} is too old to be set. Update it; then it measures so at its next connection."
    )]
    OldFirmware(HardwareId),
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
            Self::HandOverPending(_) => "hand_over_pending",
            Self::Interval(_) => "bad_interval",
            Self::MeasuresItself(_) => "measures_itself",
            Self::OldFirmware(_) => "old_firmware",
            Self::Wearable(_) => "wearable",
            Self::NotKept(_) => "not_kept",
            Self::Stopped => "stopped",
        }
    }
}

/// The channels that can be set, with their bounds.
fn settable_text() -> String {
    let one = |bounds: &kinara_protocol::intervals::Bounds| {
        let name = channel::by_id(bounds.channel).map_or("?", |channel| channel.name);
        format!("{name} ({} to {} s)", bounds.least_s, bounds.most_s)
    };
    CHANGEABLE.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn interval_text(why: NotTaken) -> String {
    let name = |id: channel::ChannelId| match channel::by_id(id) {
        Some(channel) => channel.name.to_owned(),
        None => format!("channel {}", id.0),
    };
    match why {
        NotTaken::Channel(id) => {
            format!("How often {} comes cannot be changed. These can: {}.", name(id), settable_text())
        }
        NotTaken::Seconds(bounds) => format!(
            "The interval of {} is {} to {} seconds.",
            name(bounds.channel),
            bounds.least_s,
            bounds.most_s
        ),
    }
}

impl From<NotBegun> for DeskError {
    fn from(why: NotBegun) -> Self {
        match why {
            NotBegun::NotOpen => Self::NotOpen,
            NotBegun::Busy => Self::Busy,
            NotBegun::NotNear => Self::NotNear,
        }
    }
}

impl DeskError {
    /// What could not be kept on disk.
    pub(super) fn not_kept(error: impl std::fmt::Display) -> Self {
        Self::NotKept(error.to_string())
    }

    /// What a connected device answered, or that it is not connected any more.
    pub(super) fn of_the_device(hardware: &HardwareId, error: &RadioError) -> Self {
        match error {
            RadioError::Gone(_) | RadioError::Timeout(_) => Self::NotConnected(hardware.clone()),
            other => Self::Wearable(other.to_string()),
        }
    }
}
