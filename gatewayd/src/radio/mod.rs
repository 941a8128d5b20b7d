//! The radio: who is in range, pairing, links, and a session for each wearable.
//!
//! [`Radio`] and [`Link`] are the port: what a Bluetooth LE central does with the Kinara service, shaped after BlueZ
//! (adapters as a list, a stream of advertisements, pairing with a passkey that is asked for, connection by bond).
//! [`virtual_radio`] is the transport over Unix sockets, [`bluez`] the real one. [`manager`] decides whom to serve, [`session`] serves one.
//! [`update`] brings wearables new firmware. What a third-party sensor offers goes by [`SensorConnection`].
//!
//! A wearable that hangs holds up nobody: each has a task of its own, and everything that waits for a wearable has a
//! limit in time.

mod attempt;
pub mod bluez;
mod bonds;
mod cursor;
pub mod links;
pub mod manager;
mod nonces;
mod refetch;
mod requests;
pub mod sensor;
pub mod session;
mod turns;
pub mod update;
pub mod virtual_radio;
pub mod window;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kinara_protocol::gatt::Characteristic;
use tokio::sync::mpsc;

use crate::hardware::HardwareId;

pub use bonds::{Bond, Bonds};

/// A radio adapter's name on this machine (`hci0`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub String);

impl std::fmt::Display for AdapterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A radio adapter of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// What it is called here. Another one may be called so after it has gone.
    pub id: AdapterId,
    /// Its identity address, most significant byte first: what wearables know this gateway by.
    pub address: [u8; 6],
    /// Whether it can be used now.
    pub powered: bool,
    /// Links that it holds at once, as far as learnt.
    pub slots: usize,
}

/// An advertisement of a wearable or sensor.
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
    /// What it offers to those who have no bond with it; nothing outside a pairing window.
    pub offer: Option<Offer>,
    /// Whether it takes a connection now.
    pub connectable: bool,
}

/// What somebody without a bond can do with what advertises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// A wearable without a display, in its pairing window: the passkey comes of its label's secret and this nonce.
    Label {
        /// Fresh for each attempt.
        nonce: Vec<u8>,
    },
    /// A wearable that waits for a gateway which it has been told of.
    Introduction {
        /// Fresh for each attempt.
        nonce: Vec<u8>,
        /// The first bytes of HMAC-SHA-256(K, nonce): who holds K knows by it that it is meant.
        tag: [u8; 6],
    },
    /// A wearable that shows a random passkey once pairing has begun.
    Display,
    /// A sensor of another maker.
    Sensor(SensorKind),
}

/// The services of other makers' sensors that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SensorKind {
    /// 0x180D.
    HeartRate,
    /// 0x1809.
    HealthThermometer,
    /// 0x1822.
    PulseOximeter,
}

/// Asked when the transport wants the passkey; `None` when the person gave up. A display's number is typed after the
/// pairing has begun, so the answer may take its time.
pub type PasskeyProvider = Box<dyn FnOnce() -> BoxFuture<'static, Option<u32>> + Send>;

/// How the two sides make sure of each other.
pub enum Agreement {
    /// LE Secure Connections with an authenticated key.
    Passkey(PasskeyProvider),
    /// Nobody proves anything: only for a sensor that can do no better, asked for by name.
    JustWorks,
}

/// Why the radio did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RadioError {
    /// The other side said no.
    #[error("the wearable refused: {0}")]
    Refused(String),
    /// It is linked to somebody else, or still to a connection of ours that is ending.
    #[error("the wearable is busy: {0}")]
    Busy(String),
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
    /// The passkey of one side was not that of the other.
    #[error("the code is not this wearable's")]
    WrongCode,
    /// It was not heard when it was to be reached.
    #[error("the wearable is too far away")]
    TooFar,
    /// The link stayed weak and was given up, so that a nearer gateway gets the wearable.
    #[error("the link stays weak; bring the wearable nearer")]
    Weak,
    /// The adapter holds as many links as it can.
    #[error("no link is free: {0}")]
    OutOfSlots(String),
    /// The wearable takes no pairing (any more).
    #[error("the wearable's pairing window is closed; press its button")]
    WindowClosed,
    /// The key that came about proves nothing; the bond has been removed.
    #[error("it did not prove that it is what it says: {0}; the bond was removed")]
    NotAuthenticated(String),
    /// It offers a nonce from which a passkey was computed before.
    #[error("it offers a pairing number that was used before; press its button again")]
    NonceSpent,
    /// After wrong codes the box waits before it pairs by itself again.
    #[error("the label in the configuration is not this wearable's; the box tries again later")]
    Pausing,
    /// What was paired says that it is a device that somebody wears.
    #[error(
        "it says that it is {0}, which is worn; take that one back from its wearer first, if this replaces it"
    )]
    Replaces(HardwareId),
    /// The box cannot keep a bond, so it makes none: the wearable would go on keeping it.
    #[error("a bond cannot be kept here: {0}; look at the disk")]
    NotKept(String),
    /// One side has forgotten the bond.
    #[error("the wearable does not know this gateway any more; forget it and pair it again")]
    StaleBond,
}

/// A Bluetooth LE central.
pub trait Radio: Send + Sync {
    /// The adapters there are now.
    fn adapters(&self) -> BoxFuture<'_, Result<Vec<Adapter>, RadioError>>;

    /// Advertisements, until the receiver is dropped. Ends when the adapter goes or what serves it does.
    fn scan<'a>(
        &'a self,
        adapter: &'a AdapterId,
    ) -> BoxFuture<'a, Result<mpsc::Receiver<Sighting>, RadioError>>;

    /// Whether the adapter takes part in pairings at all: while a person has a window open.
    fn pairable<'a>(&'a self, adapter: &'a AdapterId, on: bool) -> BoxFuture<'a, Result<(), RadioError>>;

    /// Pairs; the bond is for later connections. Leaves no link behind. Dropped before its end, it is called off. A transport
    /// that keeps the keys itself and has some of this device answers that the bond is stale; they have to be forgotten first.
    fn pair<'a>(
        &'a self,
        adapter: &'a AdapterId,
        sighting: &'a Sighting,
        agreement: Agreement,
    ) -> BoxFuture<'a, Result<Bond, RadioError>>;

    /// Connects to a wearable by a bond, encrypted and authenticated.
    fn connect<'a>(
        &'a self,
        adapter: &'a AdapterId,
        sighting: &'a Sighting,
        bond: &'a Bond,
    ) -> BoxFuture<'a, Result<Connection, RadioError>>;

    /// Connects to another maker's sensor by a bond.
    fn connect_sensor<'a>(
        &'a self,
        adapter: &'a AdapterId,
        sighting: &'a Sighting,
        bond: &'a Bond,
    ) -> BoxFuture<'a, Result<SensorConnection, RadioError>>;

    /// Drops a bond, and the link that stands on it.
    fn forget<'a>(&'a self, adapter: &'a AdapterId, bond: &'a Bond) -> BoxFuture<'a, Result<(), RadioError>>;
}

/// A link to a sensor and what arrives on it.
pub struct SensorConnection {
    /// Its measurements. Ends when the link does. Bounded.
    pub events: mpsc::Receiver<SensorEvent>,
    /// For asking.
    pub link: Box<dyn SensorLink>,
}

/// The forms in which sensors tell what they measured, each a characteristic of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SensorReport {
    /// 0x2A37.
    HeartRate,
    /// 0x2A1C.
    Temperature,
    /// 0x2A5F.
    OximetryContinuous,
    /// 0x2A5E.
    OximetrySpotCheck,
}

/// A measurement as the sensor sent it: the value of its service's measurement characteristic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorEvent {
    /// In which form.
    pub report: SensorReport,
    /// What.
    pub bytes: Bytes,
}

/// One connected sensor.
pub trait SensorLink: Send {
    /// Signal strength, where the transport knows it.
    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>>;

    /// Closes in order.
    fn disconnect(&mut self) -> BoxFuture<'_, ()>;
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
