//! What the server says over the live WebSocket.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::resources::devices::Device;
use crate::resources::events::Event;
use crate::resources::gateways::Gateway;

/// A message to a client.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Message {
    /// The token is good; for so many seconds.
    Ready {
        /// Seconds until the token ends.
        expires_in: i64,
    },
    /// Newest values of one wearer's device.
    Live {
        /// Whose.
        user_id: Uuid,
        /// By which device.
        device_id: Uuid,
        /// The values.
        readings: Vec<LiveReading>,
    },
    /// All keys of the device with this epoch and no higher seq are stored.
    Stored {
        /// Which device.
        device_id: Uuid,
        /// Its epoch, 16 hex digits.
        epoch: String,
        /// The highest seq.
        seq: i64,
    },
    /// An event, new or changed.
    Event(Event),
    /// A gateway, new or changed.
    Gateway(Gateway),
    /// A device, new or changed.
    Device(Device),
    /// There are other alerts than before; they have to be asked for.
    Alerts,
}

/// One value.
#[derive(Debug, Clone, Serialize)]
pub struct LiveReading {
    /// Which.
    pub reading_type: String,
    /// How much.
    pub value: f64,
    /// In which unit.
    pub unit: Option<String>,
    /// When: milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// `epoch:seq:index`.
    pub key: String,
    /// Whether the database has it.
    pub stored: bool,
}

/// What a client says: its token, at first and before each token's end.
#[derive(Deserialize)]
pub struct Hello {
    /// The access token.
    pub token: String,
}
