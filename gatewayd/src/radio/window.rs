//! The pairing window as people see it: what is near, what is being paired, and why it did not work.

use crate::hardware::HardwareId;
use crate::radio::{AdapterId, Offer, RadioError};

/// Something near that can be paired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nearby {
    /// By which it is chosen, while the window is open.
    pub key: String,
    /// The name it advertises.
    pub name: String,
    /// Signal strength.
    pub rssi_dbm: i16,
    /// How it can be paired.
    pub offer: Offer,
    /// Milliseconds since it was last heard.
    pub seen_ms_ago: u64,
    /// The adapter that hears it best.
    pub adapter: AdapterId,
}

/// Where the pairing window stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Window {
    /// Nothing can be paired.
    Closed {
        /// Why it closed, when no person closed it.
        why: Option<Why>,
    },
    /// Somebody looks for a device.
    Open {
        /// Boot time at which it closes, microseconds.
        until_boot_us: i64,
        /// What is near, nearest first.
        nearby: Vec<Nearby>,
        /// Codes that were not right; the third one closes the window.
        wrong_codes: u8,
    },
    /// A device is being paired.
    Pairing {
        /// Which.
        key: String,
        /// It shows a number that has to be typed now.
        wants_passkey: bool,
    },
    /// It is paired; the window has closed.
    Paired {
        /// Which it is.
        hardware: HardwareId,
    },
    /// The last attempt failed; the window stays open until its time, unless `why` closed it.
    Failed {
        /// Why.
        why: Why,
    },
}

/// Why a pairing did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It could not be reached.
    TooFar,
    /// The code is another wearable's, or has a typing error.
    WrongCode,
    /// Three wrong codes closed the window.
    TooManyWrongCodes,
    /// The adapter holds as many links as it can.
    OutOfSlots,
    /// The wearable's window, or ours, is closed.
    WindowClosed,
    /// One side has forgotten the bond.
    StaleBond,
    /// It did not prove what it is.
    NotAuthenticated,
    /// Somebody took too long.
    Timeout,
    /// Nobody typed the number, or a person went back.
    GivenUp,
    /// Anything else of the radio.
    Radio(String),
}

impl Why {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooFar => "too_far",
            Self::WrongCode => "wrong_code",
            Self::TooManyWrongCodes => "too_many_wrong_codes",
            Self::OutOfSlots => "out_of_slots",
            Self::WindowClosed => "window_closed",
            Self::StaleBond => "stale_bond",
            Self::NotAuthenticated => "not_authenticated",
            Self::Timeout => "timeout",
            Self::GivenUp => "given_up",
            Self::Radio(_) => "radio",
        }
    }

    /// What happened, in a sentence.
    pub fn text(&self) -> String {
        match self {
            Self::TooFar => "The wearable is too far away.",
            Self::WrongCode => "The code is not this wearable's.",
            Self::TooManyWrongCodes => "Three wrong codes have closed the pairing window.",
            Self::OutOfSlots => "This box holds as many wearables at once as it can.",
            Self::WindowClosed => "The pairing window is closed.",
            Self::StaleBond => "The wearable and this box no longer know each other.",
            Self::NotAuthenticated => "The device did not prove that it is the wearable it says it is.",
            Self::Timeout => "The wearable did not answer in time.",
            Self::GivenUp => "Nobody typed the number that the wearable shows.",
            Self::Radio(text) => return format!("Bluetooth failed: {text}."),
        }
        .to_owned()
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::TooFar => "Bring it within two metres of the box and try again.",
            Self::WrongCode => "Compare the 16 characters on its label and choose the device again.",
            Self::TooManyWrongCodes => {
                "Check that the label belongs to this wearable, then open the window again."
            }
            Self::OutOfSlots => "Forget a wearable that is no longer used, or put up another box.",
            Self::WindowClosed => "Press the wearable's button, open the window here, and try again.",
            Self::StaleBond => "Choose \"forget\" for this wearable, then pair it again.",
            Self::NotAuthenticated => {
                "It was not paired. If it is really yours, bring only this one near and try again; \
                 otherwise tell the clinic's administrator."
            }
            Self::Timeout => "Bring it nearer, press its button again, and try again.",
            Self::GivenUp => "Start again and type the six digits within half a minute.",
            Self::Radio(_) => "Try again; if it stays, run `kinaractl doctor` on the box.",
        }
    }
}

impl From<&RadioError> for Why {
    fn from(error: &RadioError) -> Self {
        match error {
            RadioError::WrongCode => Self::WrongCode,
            RadioError::TooFar | RadioError::Gone(_) => Self::TooFar,
            RadioError::OutOfSlots(_) => Self::OutOfSlots,
            RadioError::WindowClosed => Self::WindowClosed,
            RadioError::NotAuthenticated(_) => Self::NotAuthenticated,
            RadioError::StaleBond => Self::StaleBond,
            RadioError::Timeout(_) => Self::Timeout,
            RadioError::Refused(_) | RadioError::Adapter(_) | RadioError::Nonsense(_) => {
                Self::Radio(error.to_string())
            }
        }
    }
}
