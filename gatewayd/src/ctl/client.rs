//! The daemon, as `kinaractl` reaches it.

use std::time::Duration;

use tokio::time::timeout;
use zbus::zvariant::OwnedValue;

use crate::local::bus::error::{PREFIX, snake};
use crate::local::bus::plan::{Interval, Plan};
use crate::local::bus::wire;

/// How long the bus and the daemon may take over anything but a pairing.
pub const ANSWER: Duration = Duration::from_secs(15);
/// How long a pairing may take, a typed number included.
pub const PAIRING: Duration = Duration::from_secs(150);

/// org.kinara.Gateway1, as a client sees it.
#[zbus::proxy(
    interface = "org.kinara.Gateway1",
    default_service = "org.kinara.Gateway1",
    default_path = "/org/kinara/Gateway",
    gen_blocking = false
)]
pub trait Gateway {
    /// See the interface.
    fn status(&self) -> zbus::Result<wire::Status>;
    /// See the interface.
    fn devices(&self) -> zbus::Result<Vec<wire::Device>>;
    /// See the interface.
    fn wearers(&self) -> zbus::Result<Vec<wire::Wearer>>;
    /// See the interface.
    fn consent_texts(&self) -> zbus::Result<Vec<wire::ConsentText>>;
    /// See the interface.
    fn window(&self) -> zbus::Result<wire::Window>;
    /// See the interface.
    fn nearby(&self) -> zbus::Result<Vec<wire::Nearby>>;
    /// See the interface.
    fn open_window(&self, seconds: u32) -> zbus::Result<()>;
    /// See the interface.
    fn close_window(&self) -> zbus::Result<()>;
    /// See the interface.
    fn pair(&self, key: &str, method: &str, code: &str) -> zbus::Result<String>;
    /// See the interface.
    fn type_passkey(&self, passkey: u32) -> zbus::Result<()>;
    /// See the interface.
    #[allow(clippy::too_many_arguments, reason = "the signature on the bus")]
    fn bind(
        &self,
        hardware: &str,
        wearer: &str,
        new_name: &str,
        consent_version: &str,
        consent_language: &str,
        asked_by: &str,
        accept_loss: bool,
    ) -> zbus::Result<String>;
    /// See the interface.
    fn unbind(&self, hardware: &str) -> zbus::Result<()>;
    /// See the interface.
    fn forget(&self, hardware: &str) -> zbus::Result<()>;
    /// See the interface.
    fn identify(&self, hardware: &str) -> zbus::Result<()>;
    /// See the interface.
    fn plan(&self, hardware: &str) -> zbus::Result<Plan>;
    /// See the interface.
    fn set_plan(&self, hardware: &str, intervals: &[Interval]) -> zbus::Result<Plan>;
    /// See the interface.
    fn clock(&self) -> zbus::Result<wire::Clock>;
    /// See the interface.
    fn reset_clock(&self) -> zbus::Result<()>;
    /// See the interface.
    fn parked(&self) -> zbus::Result<Vec<wire::Parked>>;
    /// See the interface.
    fn retry_parked(&self) -> zbus::Result<u32>;
    /// See the interface.
    fn parked_payload(&self, kind: &str, buffer: u64, sequence: u64) -> zbus::Result<Vec<u8>>;
    /// See the interface.
    fn checks(&self) -> zbus::Result<Vec<wire::Finding>>;
}

/// Why a command did not do it. [`CtlError::exit`] is the program's exit status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CtlError {
    /// The daemon said no.
    #[error("{text}")]
    Refused {
        /// For programs: `wrong_code`, `not_open`, …
        code: String,
        /// For people.
        text: String,
    },
    /// There is no daemon on the bus.
    #[error(
        "kinara-gatewayd is not running. Start it: systemctl start kinara-gatewayd; then look: kinaractl doctor"
    )]
    NotRunning,
    /// There is no bus.
    #[error(
        "The system's D-Bus cannot be reached ({0}). Start it: systemctl start dbus; then look: kinaractl doctor"
    )]
    NoBus(String),
    /// The bus does not let this user call.
    #[error(
        "This user may not talk to kinara-gatewayd. Run kinaractl as root, or add the user to group \
         kinara-admin (adduser NAME kinara-admin) and log in again"
    )]
    NotAllowed,
    /// No answer in time.
    #[error("kinara-gatewayd does not answer. Look: kinaractl doctor")]
    Silent,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CtlError {
    /// The program's exit status. 2 is clap's, for a wrong command line.
    pub fn exit(&self) -> u8 {
        match self {
            Self::Refused { .. } | Self::Other(_) => 1,
            Self::NotRunning | Self::NoBus(_) | Self::Silent => 3,
            Self::NotAllowed => 4,
        }
    }

    /// A word for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::NotRunning => "not_running",
            Self::NoBus(_) => "no_bus",
            Self::NotAllowed => "not_allowed",
            Self::Silent => "silent",
            Self::Other(_) => "other",
        }
    }
}

impl From<zbus::Error> for CtlError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, text, _) => {
                let text = text.unwrap_or_default();
                if let Some(code) = name.strip_prefix(PREFIX) {
                    return Self::Refused { code: snake(code), text };
                }
                match name.strip_prefix("org.freedesktop.DBus.Error.") {
                    Some("AccessDenied") => Self::NotAllowed,
                    Some("ServiceUnknown" | "NameHasNoOwner") => Self::NotRunning,
                    Some("NoReply" | "Timeout" | "TimedOut") => Self::Silent,
                    _ => Self::Other(format!("{name}: {text}")),
                }
            }
            zbus::Error::InputOutput(error) if error.kind() == std::io::ErrorKind::TimedOut => Self::Silent,
            other => Self::Other(other.to_string()),
        }
    }
}

/// A connection to the machine's bus, whether the daemon is on it or not. No call on it takes longer than `limit`.
pub async fn bus(limit: Duration) -> Result<zbus::Connection, CtlError> {
    let no_bus = |error: zbus::Error| CtlError::NoBus(error.to_string());
    let build = zbus::connection::Builder::system().map_err(no_bus)?.method_timeout(limit).build();
    let connected =
        timeout(ANSWER, build).await.map_err(|_| CtlError::NoBus("it does not answer".to_owned()))?;
    connected.map_err(no_bus)
}

/// The daemon.
pub async fn gateway(limit: Duration) -> Result<GatewayProxy<'static>, CtlError> {
    let connection = bus(limit).await?;
    // No properties, so nothing to cache.
    let proxy = GatewayProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No);
    Ok(proxy.build().await?)
}

/// A property of any object on the bus.
pub async fn property(
    bus: &zbus::Connection,
    service: &str,
    path: &str,
    interface: &str,
    name: &str,
) -> Result<OwnedValue, CtlError> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let reply = bus.call_method(Some(service), path, properties, "Get", &(interface, name)).await?;
    Ok(reply.body().deserialize()?)
}
