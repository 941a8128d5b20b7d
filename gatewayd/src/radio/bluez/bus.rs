//! One life of bluetoothd on the bus.
//!
//! The promise: whatever is asked is answered within a limit, and when bluetoothd or the bus goes, everything that
//! stood on this life hears of it ([`Bus::gone`]) and ends; nothing is carried into the next one, which knows none of
//! our discovery sessions, agents or sockets.
//!
//! Two connections: `bluer` for what it covers (agent, pairing, GATT), `zbus` for the rest: properties as they come
//! in signals, discovery with its own timing, and who owns `org.bluez`.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use zbus::fdo::DBusProxy;
use zbus::message::Message;
use zbus::names::BusName;
use zbus::zvariant::{DynamicType, ObjectPath, OwnedObjectPath, OwnedValue, Value};
use zbus::{MatchRule, MessageStream};

use super::agent::Agent;
use super::traps::Trouble;

/// Who serves Bluetooth.
pub const BLUEZ: &str = "org.bluez";
/// The interface of adapters.
pub const ADAPTER: &str = "org.bluez.Adapter1";
/// The interface of devices.
pub const DEVICE: &str = "org.bluez.Device1";
/// The interface of a device's services.
pub const SERVICE: &str = "org.bluez.GattService1";
/// The interface of their characteristics.
pub const CHARACTERISTIC: &str = "org.bluez.GattCharacteristic1";
/// Signals that may wait for us; whoever holds a stream has a task that does nothing but read it.
const QUEUE: usize = 1024;

/// The properties of an interface.
pub type Properties = HashMap<String, OwnedValue>;
/// All objects of bluetoothd.
pub type Objects = HashMap<OwnedObjectPath, HashMap<String, Properties>>;

/// One life of bluetoothd.
pub struct Bus {
    /// Ends with it.
    pub gone: CancellationToken,
    /// For what `bluer` covers.
    pub session: bluer::Session,
    /// Our agent, registered and the default one.
    pub agent: Agent,
    connection: zbus::Connection,
    call: Duration,
    _registered: bluer::agent::AgentHandle,
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

impl Bus {
    /// Meets bluetoothd and registers the agent. No call takes longer than `call`.
    pub async fn open(call: Duration) -> Result<Self, Trouble> {
        let connection = limited(call, "the bus", async {
            zbus::connection::Builder::system()?.method_timeout(call).build().await
        })
        .await
        .map_err(|error| {
            Trouble::Bus(format!("the system bus cannot be reached ({error}); is dbus running?"))
        })?;
        let gone = CancellationToken::new();
        limited(call, "the bus", watch_owner(&connection, gone.clone())).await?;
        let dbus = DBusProxy::new(&connection).await?;
        let name = BusName::try_from(BLUEZ).map_err(|error| Trouble::Bus(error.to_string()))?;
        if !dbus.name_has_owner(name).await.map_err(zbus::Error::from)? {
            return Err(Trouble::Bus(
                "bluetoothd is not running; start it with `systemctl start bluetooth`".to_owned(),
            ));
        }
        let session = limited(call, "a session", bluer::Session::new()).await?;
        let agent = Agent::default();
        let registered = limited(call, "the agent", session.register_agent(agent.to_bluer())).await?;
        Ok(Self { gone, session, agent, connection, call, _registered: registered })
    }

    /// Runs what `bluer` does, within the limit of a call.
    pub async fn limited<T, E: Into<Trouble>>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Trouble> {
        tokio::select! {
            result = limited(self.call, what, work) => result,
            () = self.gone.cancelled() => Err(Trouble::Bus("bluetoothd has gone".to_owned())),
        }
    }

    /// Calls a method.
    pub async fn method<B: serde::Serialize + DynamicType>(
        &self,
        path: &str,
        interface: &'static str,
        method: &'static str,
        body: &B,
    ) -> Result<Message, Trouble> {
        self.limited(method, self.connection.call_method(Some(BLUEZ), path, Some(interface), method, body))
            .await
    }

    /// Sets a property.
    pub async fn set(
        &self,
        path: &str,
        interface: &'static str,
        property: &'static str,
        value: Value<'_>,
    ) -> Result<(), Trouble> {
        let body = (interface, property, value);
        self.method(path, "org.freedesktop.DBus.Properties", "Set", &body).await.map(drop)
    }

    /// All properties of an object's interface.
    pub async fn properties(&self, path: &str, interface: &'static str) -> Result<Properties, Trouble> {
        let answer = self.method(path, "org.freedesktop.DBus.Properties", "GetAll", &(interface,)).await?;
        Ok(answer.body().deserialize()?)
    }

    /// All objects there are.
    pub async fn objects(&self) -> Result<Objects, Trouble> {
        let answer = self.method("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &()).await?;
        Ok(answer.body().deserialize()?)
    }

    /// Changes of one interface's properties at and below a path.
    pub async fn changes(&self, below: &str, interface: &'static str) -> Result<MessageStream, Trouble> {
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(BLUEZ)?
            .interface("org.freedesktop.DBus.Properties")?
            .member("PropertiesChanged")?
            .path_namespace(ObjectPath::try_from(below).map_err(zbus::Error::from)?)?
            .arg(0, interface)?
            .build();
        self.limited("a match rule", MessageStream::for_match_rule(rule, &self.connection, Some(QUEUE))).await
    }

    /// Objects that come (`InterfacesAdded`) or go (`InterfacesRemoved`).
    pub async fn comings(&self, member: &'static str) -> Result<MessageStream, Trouble> {
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(BLUEZ)?
            .interface("org.freedesktop.DBus.ObjectManager")?
            .member(member)?
            .build();
        self.limited("a match rule", MessageStream::for_match_rule(rule, &self.connection, Some(QUEUE))).await
    }
}

/// Cancels `gone` when the owner of `org.bluez` changes, or the bus ends.
async fn watch_owner(connection: &zbus::Connection, gone: CancellationToken) -> Result<(), zbus::Error> {
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.DBus")?
        .interface("org.freedesktop.DBus")?
        .member("NameOwnerChanged")?
        .arg(0, BLUEZ)?
        .build();
    let mut changes = MessageStream::for_match_rule(rule, connection, Some(QUEUE)).await?;
    tokio::spawn(async move {
        tokio::select! {
            // The first change is the end: also a new owner knows nothing of us.
            change = changes.next() => {
                let why = if matches!(change, Some(Ok(_))) { "bluetoothd has gone" } else { "the bus has gone" };
                tracing::warn!("{why}; its links end and are made again when it is back");
            }
            () = gone.cancelled() => {}
        }
        gone.cancel();
    });
    Ok(())
}

async fn limited<T, E: Into<Trouble>>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Trouble::Slow(what)),
    }
}

/// The path of an adapter.
pub fn adapter_path(adapter: impl Display) -> String {
    format!("/org/bluez/{adapter}")
}
