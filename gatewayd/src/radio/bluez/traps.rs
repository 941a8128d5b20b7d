//! What BlueZ is known to do, and what its errors mean to a person.
//!
//! Each trap names where it is known from: `#n` is an issue of github.com/bluez/bluez, "seen" is bluetoothd 5.82 on
//! kernel 6.12.
//!
//! | trap | what is done |
//! |---|---|
//! | `ServicesResolved` may come before the objects of the services (#1489) | the objects are looked for until they are there, within `resolve_timeout_s`; of a sensor those of each service that it tells of |
//! | `Paired` stays true when the other side forgot the bond (#433) | a bond is stale when encryption fails, see [`Trouble::meaning`] |
//! | bluetoothd that died stays dead with the packaged unit (#970) | every life of it is a [`Bus`](super::bus::Bus); what stood on one ends with it |
//! | `Value` of `WriteValue` goes as a *command* by default in `bluer` | the type is always given: a request, which is answered |
//! | An open-loop burst overruns the socket of `AcquireNotify` (seen: 37 of 1000 lost) | at most 100 frames are on the way; holes are asked for |
//! | `AcquireNotify` refuses what only indicates (seen) | `control` goes by `StartNotify` |
//! | a device keeps the path of the address that it was paired at (seen) | devices are found by their `Address`, never by path |
//! | `ServiceData` of a device stays after it stopped advertising them (seen) | an offer counts while it is fresh |
//! | a filter by service hides bonded wearables, which advertise flags only (seen) | the only filter is the transport |
//! | discovery pauses for 5 s after each 10.24 s (seen) | it is begun anew before that |
//! | connecting beside discovery ends in le-connection-abort-by-local (seen) | discovery rests meanwhile |
//! | `Connect` goes on in the kernel after the caller gave up, then `InProgress` (seen) | `Disconnect` follows each one that took too long |
//! | `Disconnect` takes 2 to 2.7 s (seen) | it has a time limit of its own |
//! | an absent controller makes a call hang for ever (seen) | every call has a limit |

use std::str::FromStr;

use bluer::ErrorKind;

use super::super::RadioError;

/// Why BlueZ did not do it, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The call's time was up.
    #[error("bluetoothd does not answer ({0})")]
    Slow(&'static str),
    /// It answered with an error.
    #[error("{name}: {text}")]
    Said {
        /// The name without `org.bluez.Error.`.
        name: String,
        /// The text, for LE connections a word such as `le-connection-abort-by-local`.
        text: String,
    },
    /// There is no bus, or bluetoothd is not on it.
    #[error("{0}")]
    Bus(String),
}

/// What a [`Trouble`] says about the state of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Something else is under way: again in a moment.
    Busy,
    /// It is so already.
    Already,
    /// The link broke off while it was made. Once: interference. Every time, with a bond: the other side forgot it.
    BrokeOff,
    /// The other side has no key for this bond.
    KeyMissing,
    /// The controller holds no more links.
    NoSlot,
    /// Not heard.
    TooFar,
    /// The keys were not made: the codes differ, or it refused.
    PairingFailed,
    /// The pairing was called off.
    PairingCanceled,
    /// The adapter is off.
    Off,
    /// No such object: the device or the adapter has gone.
    Absent,
    /// Anything else.
    Other,
}

impl Trouble {
    /// What it means.
    pub fn meaning(&self) -> Meaning {
        let Self::Said { name, text } = self else {
            return match self {
                Self::Slow("connecting") => Meaning::TooFar,
                _ => Meaning::Other,
            };
        };
        // The two bearers have words of their own for the same, and 5.82 answers with either for LE.
        let word = text.strip_prefix("le-connection-").or_else(|| text.strip_prefix("br-connection-"));
        match (name.as_str(), word) {
            (_, Some("abort-by-local" | "aborted-by-local" | "abort-by-remote" | "canceled" | "refused")) => {
                Meaning::BrokeOff
            }
            (_, Some("key-missing")) => Meaning::KeyMissing,
            (_, Some("concurrent-connection-limit" | "memory-allocation")) => Meaning::NoSlot,
            (_, Some("timeout" | "page-timeout")) => Meaning::TooFar,
            (_, Some("busy")) => Meaning::Busy,
            (_, Some("adapter-not-powered")) => Meaning::Off,
            ("AuthenticationFailed" | "AuthenticationRejected", _) => Meaning::PairingFailed,
            ("AuthenticationCanceled", _) => Meaning::PairingCanceled,
            ("AuthenticationTimeout" | "ConnectionAttemptFailed", _) => Meaning::TooFar,
            ("InProgress" | "Busy", _) => Meaning::Busy,
            (_, Some("already-connected")) | ("AlreadyConnected" | "AlreadyExists", _) => Meaning::Already,
            ("NotReady" | "Blocked", _) => Meaning::Off,
            ("NotFound" | "DoesNotExist", _) => Meaning::Absent,
            ("Failed", _) if text == "Operation already in progress" => Meaning::Busy,
            _ => Meaning::Other,
        }
    }
}

impl From<bluer::Error> for Trouble {
    fn from(error: bluer::Error) -> Self {
        match error.kind {
            ErrorKind::Internal(kind) => Self::Bus(format!("{kind} {}", error.message)),
            kind => Self::Said { name: format!("{kind:?}"), text: error.message },
        }
    }
}

impl From<zbus::Error> for Trouble {
    fn from(error: zbus::Error) -> Self {
        let zbus::Error::MethodError(name, text, _) = &error else {
            return Self::Bus(error.to_string());
        };
        let text = text.clone().unwrap_or_default();
        match name.as_str() {
            "org.freedesktop.DBus.Error.UnknownObject" => Self::Said { name: "NotFound".to_owned(), text },
            other => match other.strip_prefix("org.bluez.Error.") {
                Some(short)
                    if ErrorKind::from_str(short).is_ok() || short == "Busy" || short == "Blocked" =>
                {
                    Self::Said { name: short.to_owned(), text }
                }
                _ => Self::Bus(format!("{other}: {text}")),
            },
        }
    }
}

impl From<Trouble> for RadioError {
    fn from(trouble: Trouble) -> Self {
        match trouble.meaning() {
            Meaning::KeyMissing => Self::StaleBond,
            Meaning::NoSlot => Self::OutOfSlots("the controller holds no more; it is tried again".to_owned()),
            Meaning::TooFar => Self::TooFar,
            Meaning::Off => {
                Self::Adapter("the adapter is switched off; run `rfkill unblock bluetooth`".to_owned())
            }
            Meaning::BrokeOff => Self::Gone(format!("it broke off while it was made ({trouble})")),
            Meaning::Absent => Self::Gone("BlueZ does not see it any more".to_owned()),
            _ => Self::Adapter(trouble.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, text: &str) -> Trouble {
        Trouble::Said { name: name.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn the_words_of_bluetoothd_5_82_mean_what_they_were_seen_to_mean() {
        for (name, text, meaning) in [
            ("Failed", "le-connection-abort-by-local", Meaning::BrokeOff),
            ("Failed", "br-connection-canceled", Meaning::BrokeOff),
            ("Failed", "le-connection-key-missing", Meaning::KeyMissing),
            ("Failed", "le-connection-concurrent-connection-limit", Meaning::NoSlot),
            ("Failed", "le-connection-memory-allocation", Meaning::NoSlot),
            ("Failed", "le-connection-timeout", Meaning::TooFar),
            ("InProgress", "br-connection-busy", Meaning::Busy),
            ("InProgress", "", Meaning::Busy),
            ("AuthenticationFailed", "Authentication Failed", Meaning::PairingFailed),
            ("AuthenticationCanceled", "", Meaning::PairingCanceled),
            ("NotReady", "Resource Not Ready", Meaning::Off),
            ("NotFound", "", Meaning::Absent),
            ("Failed", "Something new", Meaning::Other),
        ] {
            assert_eq!(said(name, text).meaning(), meaning, "{name} {text}");
        }
        assert_eq!(Trouble::Slow("connecting").meaning(), Meaning::TooFar);
    }

    #[test]
    fn both_libraries_errors_come_to_the_same_words() {
        let error = bluer::Error { kind: ErrorKind::Failed, message: "le-connection-timeout".to_owned() };
        assert_eq!(Trouble::from(error), said("Failed", "le-connection-timeout"));
    }

    #[test]
    fn what_a_person_can_do_something_about_keeps_its_own_error() {
        assert_eq!(RadioError::from(said("Failed", "le-connection-key-missing")), RadioError::StaleBond);
        assert_eq!(RadioError::from(Trouble::Slow("connecting")), RadioError::TooFar);
        assert!(
            matches!(RadioError::from(said("Blocked", "")), RadioError::Adapter(text) if text.contains("rfkill"))
        );
    }
}
