//! The radio: who is in range, pairing, links, and a session for each wearable.
//!
//! [`Radio`] and [`Link`] are the port: what a Bluetooth LE central does with the Kinara service, shaped after BlueZ
//! (adapters as a list, a stream of advertisements, pairing with a passkey that is asked for, connection by bond).
//! [`virtual_radio`] is the transport over Unix sockets. [`manager`] decides whom to serve, [`session`] serves one.
//!
//! A wearable that hangs holds up nobody: each has a task of its own, and everything that waits for a wearable has a
//! limit in time.

mod bonds;
mod cursor;
pub mod manager;
mod requests;
pub mod session;
pub mod virtual_radio;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kinara_protocol::gatt::Characteristic;
use tokio::sync::mpsc;

use crate::hardware::HardwareId;

pub use bonds::{Bond, Bonds};

/// A radio adapter of this machine (`hci0`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AdapterId(pub String);

/// An advertisement of a wearable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Where to connect to: the transport's own address, which may be private and change.
    pub address: String,
    /// Who it is, where the transport knows: it resolved the address by a bond, or the air is virtual.
    pub hardware: Option<HardwareId>,
    /// A name for people, if advertised.
    pub name: String,
    /// Signal strength.
    pub rssi_dbm: i16,
    /// The nonce of the pairing window, while it is open.
    pub window: Option<Vec<u8>>,
    /// Whether it takes a connection now.
    pub connectable: bool,
}

/// Answers when the transport asks for the passkey: with the number that belongs to the nonce seen.
pub type PasskeyProvider = Box<dyn FnOnce() -> u32 + Send>;

/// Why the radio did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RadioError {
    /// The other side said no.
    #[error("the wearable refused: {0}")]
    Refused(String),
    /// It did not answer in time.
    #[error("the wearable does not answer ({0})")]
    Timeout(&'static str),
    /// There is no link (any more).
    #[error("the link is gone: {0}")]
    Gone(String),
    /// The adapter or the system below it.
    #[error("the radio: {0}")]
    Adapter(String),
    /// It answered with something else than asked for.
    #[error("the wearable answered with nonsense: {0}")]
    Nonsense(String),
}

/// A Bluetooth LE central.
pub trait Radio: Send + Sync {
    /// The adapters there are now.
    fn adapters(&self) -> BoxFuture<'_, Result<Vec<AdapterId>, RadioError>>;

    /// Advertisements, until the receiver is dropped.
    fn scan<'a>(
        &'a self,
        adapter: &'a AdapterId,
    ) -> BoxFuture<'a, Result<mpsc::Receiver<Sighting>, RadioError>>;

    /// Pairs with an authenticated key; the bond is for later connections.
    fn pair<'a>(
        &'a self,
        adapter: &'a AdapterId,
        sighting: &'a Sighting,
        passkey: PasskeyProvider,
    ) -> BoxFuture<'a, Result<Bond, RadioError>>;

    /// Connects by a bond, encrypted and authenticated.
    fn connect<'a>(
        &'a self,
        adapter: &'a AdapterId,
        sighting: &'a Sighting,
        bond: &'a Bond,
    ) -> BoxFuture<'a, Result<Connection, RadioError>>;
}

/// A link and what arrives on it.
pub struct Connection {
    /// For asking.
    pub link: Box<dyn Link>,
    /// What comes by itself. Ends when the link does. Bounded: who does not read, slows the wearable down.
    pub events: mpsc::Receiver<LinkEvent>,
}

/// What arrives on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEvent {
    /// Where.
    pub characteristic: Characteristic,
    /// What.
    pub bytes: Bytes,
}

/// One connected wearable.
pub trait Link: Send {
    /// Writes to `control`.
    fn write_control<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<(), RadioError>>;

    /// Turns notifications or indications on.
    fn subscribe(&mut self, characteristic: Characteristic) -> BoxFuture<'_, Result<(), RadioError>>;

    /// Reads `status`.
    fn read_status(&mut self) -> BoxFuture<'_, Result<Bytes, RadioError>>;

    /// Signal strength, where the transport knows it.
    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>>;

    /// Closes in order.
    fn disconnect(&mut self) -> BoxFuture<'_, ()>;
}
