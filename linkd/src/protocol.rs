//! What is spoken on the Unix socket: one JSON object a line, at most [`LONGEST_LINE`] bytes.
//!
//! | asked | answered |
//! |---|---|
//! | `{"ask":"rssi","adapter":"hci0","address":"C1:…","type":"random"}` | `{"rssi":-61}`, or `{"rssi":null}` when the controller cannot tell |
//! | `{"ask":"reset","adapter":"hci0"}` | `{"reset":"hci0"}` once the adapter is on again |
//! | `{"ask":"status"}` | `{"version":"1.23","adapters":["hci0"]}` |
//! | `{"ask":"watch_keys"}` | `{"watching":true}`, then a line `{"key":{…}}` for each new key, until either side ends |
//!
//! Anything may be answered by `{"error":"<a word for programs>","text":"<what happened and what to do>"}`.

use serde::{Deserialize, Serialize};

use crate::packet::AddressKind;

/// The longest line either side accepts, the line feed included.
pub const LONGEST_LINE: usize = 1024;

/// A line from the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Signal strength of a link.
    Rssi {
        /// `hci0`.
        adapter: String,
        /// The peer's address, as the kernel knows the link: the identity address for a bonded peer.
        address: String,
        /// Its kind.
        #[serde(rename = "type")]
        kind: AddressKind,
    },
    /// Power an adapter off and on.
    Reset {
        /// `hci0`.
        adapter: String,
    },
    /// Tell of every new key from now on.
    WatchKeys,
    /// Whether the kernel answers, and which adapters it has.
    Status,
}

/// A line to the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// It could not be done.
    Error {
        /// For programs.
        error: Problem,
        /// For people: what happened and what to do.
        text: String,
    },
    /// To [`Ask::Rssi`].
    Rssi {
        /// dBm. Required, though it may be null: else any line would read as this one.
        #[serde(deserialize_with = "Option::deserialize")]
        rssi: Option<i8>,
    },
    /// To [`Ask::Reset`].
    Reset {
        /// The adapter.
        reset: String,
    },
    /// To [`Ask::Status`].
    Status {
        /// Of the kernel's management interface.
        version: String,
        /// `hci0` and so on.
        adapters: Vec<String>,
    },
    /// To [`Ask::WatchKeys`]: keys made from now on will be told.
    Watching {
        /// Always true.
        watching: bool,
    },
    /// A new key.
    Key {
        /// What is known of it.
        key: NewKey,
    },
}

/// A key that a pairing has just made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    /// `hci0`.
    pub adapter: String,
    /// The peer's identity address.
    pub address: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: AddressKind,
    /// A passkey or a comparison of numbers took part, and the key is no debug key.
    pub authenticated: bool,
    /// Made by LE Secure Connections, and no debug key.
    pub secure_connections: bool,
    /// Bytes of the key that are random: 16, unless the two agreed on less.
    pub key_bytes: u8,
    /// When, microseconds of `CLOCK_BOOTTIME`.
    pub at_boot_us: i64,
}

impl NewKey {
    /// Whether Kinara keeps a bond with this key.
    pub fn is_good(&self) -> bool {
        self.authenticated && self.secure_connections && self.key_bytes == 16
    }
}

/// Why something was not done, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// The line could not be read.
    BadRequest,
    /// The caller is not in the socket's group.
    NotAllowed,
    /// No such adapter.
    NoAdapter,
    /// No link to that address.
    NotConnected,
    /// The adapter is switched off by rfkill.
    Rfkill,
    /// The kernel has something else to do first, or too much was asked at once.
    Busy,
    /// The kernel did not answer in time.
    Timeout,
    /// There is no management interface: no Bluetooth in this kernel, or no `CAP_NET_ADMIN`.
    Unavailable,
    /// The kernel refused for another reason.
    Refused,
    /// Keys may have been missed: watch again.
    Interrupted,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(answer: &Answer) -> Answer {
        serde_json::from_str(&serde_json::to_string(answer).unwrap()).unwrap()
    }

    #[test]
    fn the_lines_are_those_of_the_table() {
        let ask = r#"{"ask":"rssi","adapter":"hci0","address":"C1:22:33:44:55:66","type":"random"}"#;
        let read: Ask = serde_json::from_str(ask).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), ask);
        assert_eq!(serde_json::from_str::<Ask>(r#"{"ask":"watch_keys"}"#).unwrap(), Ask::WatchKeys);
        assert_eq!(serde_json::to_string(&Answer::Rssi { rssi: Some(-61) }).unwrap(), r#"{"rssi":-61}"#);
        assert_eq!(serde_json::to_string(&Answer::Rssi { rssi: None }).unwrap(), r#"{"rssi":null}"#);
    }

    #[test]
    fn every_answer_is_read_back_as_what_it_was() {
        let key = NewKey {
            adapter: "hci0".into(),
            address: "C1:22:33:44:55:66".into(),
            kind: AddressKind::Random,
            authenticated: true,
            secure_connections: true,
            key_bytes: 16,
            at_boot_us: 1,
        };
        assert!(key.is_good());
        assert!(!NewKey { key_bytes: 7, ..key.clone() }.is_good());
        for answer in [
            Answer::Error { error: Problem::NoAdapter, text: "x".into() },
            Answer::Rssi { rssi: Some(-1) },
            Answer::Reset { reset: "hci0".into() },
            Answer::Status { version: "1.23".into(), adapters: vec!["hci0".into()] },
            Answer::Watching { watching: true },
            Answer::Key { key },
        ] {
            assert_eq!(back(&answer), answer);
        }
    }

    #[test]
    fn what_is_not_asked_for_in_full_is_refused() {
        for line in [
            r#"{"ask":"rssi"}"#,
            r#"{"ask":"format"}"#,
            "[]",
            "",
            r#"{"ask":"reset","adapter":"hci0","x":1}"#,
        ] {
            assert!(serde_json::from_str::<Ask>(line).is_err(), "{line}");
        }
    }
}
