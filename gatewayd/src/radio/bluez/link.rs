//! A link to a wearable: connecting by a bond, the four characteristics, and what arrives on them.
//!
//! The promise: whoever holds a link hears when it ends; a link that is dropped is disconnected, so that no slot of
//! the controller is held by nobody; and what the wearable sends is read as long as there is room, so that the socket
//! of `AcquireNotify` does not overrun.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bluer::gatt::WriteOp;
use bluer::gatt::remote::{Characteristic as Remote, CharacteristicWriteRequest};
use bluer::{Address, Device};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use kinara_protocol::frame::MAX_FRAME;
use kinara_protocol::gatt::{self, Characteristic};
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zbus::MessageStream;
use zbus::zvariant::OwnedObjectPath;

use super::Inner;
use super::adapter::{Identity, State};
use super::bus::{Bus, CHARACTERISTIC, DEVICE, Objects, Properties, SERVICE};
use super::objects::{flag, path_address, text};
use super::proof::Linkd;
use super::slots::Slot;
use super::traps::{Meaning, Trouble};
use crate::radio::{AdapterId, Bond, Connection, Link, LinkEvent, RadioError};

/// Notifications that may wait for the session; far more than a wearable's window.
const EVENTS: usize = 1024;
/// Bytes of ATT in front of a notified value.
const ATT_HEADER: usize = 3;
/// How often the objects of the services are looked for (#1489).
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Links that broke off in a row, quickly and while the wearable was heard, until its bond is taken for stale.
const STALE_AFTER: u32 = 4;

/// A link that stands, before anybody knows what is served on it.
pub struct Linked {
    /// The device.
    pub device: Device,
    /// What ends when the link does.
    pub lost: CancellationToken,
    /// What keeps it: dropped, the link is closed.
    pub hold: Hold,
}

/// Keeps a link; dropped, it is disconnected and its slot given back.
pub struct Hold {
    device: Device,
    limit: Duration,
    slot: Option<Slot>,
    lost: CancellationToken,
    state: Arc<State>,
    peer: Address,
}

impl Hold {
    /// Disconnects and waits for it.
    pub async fn close(&mut self) {
        let slot = self.slot.take();
        if slot.is_some() && !self.lost.is_cancelled() {
            if let Err(trouble) = disconnect(&self.device, self.limit).await {
                tracing::debug!(device = %self.device.address(), %trouble, "it had gone already");
            }
            self.lost.cancel();
        }
        self.state.release(self.peer);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else {
            self.state.release(self.peer);
            return;
        };
        let (device, limit, lost) = (self.device.clone(), self.limit, self.lost.clone());
        let (state, peer) = (self.state.clone(), self.peer);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if !lost.is_cancelled() && disconnect(&device, limit).await.is_err() {
                    tracing::debug!(device = %device.address(), "a link nobody holds was not closed");
                }
                lost.cancel();
                state.release(peer);
                drop(slot);
            });
        }
    }
}

/// Closes a link; 2 to 2.7 s is usual.
pub async fn disconnect(device: &Device, limit: Duration) -> Result<(), Trouble> {
    match tokio::time::timeout(limit, device.disconnect()).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Trouble::Slow("disconnecting")),
    }
}

/// The path of a device at the address that it was paired at.
pub fn device_path(adapter: impl Display, address: Address) -> String {
    format!("/org/bluez/{adapter}/dev_{}", address.to_string().replace(':', "_"))
}

/// Where BlueZ keeps a peer: the address in its path, and its properties.
pub fn find<'a>(
    objects: &'a Objects,
    adapter: &AdapterId,
    peer: Address,
) -> Option<(Address, &'a Properties)> {
    objects.iter().find_map(|(path, interfaces)| {
        let properties = interfaces.get(DEVICE)?;
        let address = path_address(path.as_str(), &adapter.0)?;
        let known: Address = text(properties, "Address")?.parse().ok()?;
        (known == peer).then_some((address, properties))
    })
}

/// Connects by a bond: found by identity, tried a few times, encrypted with the bond's key.
pub async fn open(radio: &Inner, bus: &Arc<Bus>, id: &AdapterId, bond: &Bond) -> Result<Linked, RadioError> {
    let identity = Identity::of(bond).ok_or(RadioError::StaleBond)?;
    let state = radio.state(id);
    let Some(slot) = state.slots.take(Instant::now()) else {
        return Err(RadioError::OutOfSlots(format!(
            "all {} links are in use",
            state.slots.limit(Instant::now())
        )));
    };
    let quiet = state.quiet();
    let objects = bus.objects().await?;
    let Some((address, properties)) = find(&objects, id, identity.peer) else {
        return Err(RadioError::StaleBond);
    };
    if flag(properties, "Paired") != Some(true) {
        return Err(RadioError::StaleBond);
    }
    let device =
        bus.session.adapter(&id.0).and_then(|adapter| adapter.device(address)).map_err(Trouble::from)?;
    let path = device_path(id, address);
    let changes = bus.changes(&path, DEVICE).await?;
    let lost = bus.gone.child_token();
    state.hold(identity.peer);
    let mut hold = Hold {
        device: device.clone(),
        limit: radio.settings.disconnect,
        slot: Some(slot),
        lost: lost.clone(),
        state: state.clone(),
        peer: identity.peer,
    };
    quiet.fallen().await;
    let connected = connect(radio, bus, &device).await;
    state.answered(!matches!(connected, Err(Trouble::Slow(_))));
    if let Err(trouble) = connected {
        tracing::debug!(adapter = %id, peer = %identity.peer, %trouble, "not connected");
        return Err(judge(&state, identity.peer, &trouble, &mut hold));
    }
    drop(quiet);
    tokio::spawn(watch(changes, lost.clone()));
    if !bus.limited("a property", device.is_connected()).await? {
        let trouble =
            Trouble::Said { name: "Failed".to_owned(), text: "le-connection-abort-by-local".to_owned() };
        return Err(judge(&state, identity.peer, &trouble, &mut hold));
    }
    Ok(Linked { device, lost, hold })
}

async fn connect(radio: &Inner, bus: &Bus, device: &Device) -> Result<(), Trouble> {
    let settings = &radio.settings;
    let mut tries = 0;
    loop {
        tries += 1;
        let result = tokio::select! {
            result = tokio::time::timeout(settings.connect, device.connect()) => match result {
                Ok(result) => result.map_err(Trouble::from),
                Err(_) => Err(Trouble::Slow("connecting")),
            },
            () = bus.gone.cancelled() => return Err(Trouble::Bus("bluetoothd has gone".to_owned())),
        };
        let Err(trouble) = result else { return Ok(()) };
        match trouble.meaning() {
            Meaning::Already => return Ok(()),
            Meaning::BrokeOff | Meaning::Busy if tries < settings.tries => {
                let pause = settings.retry.mul_f64(rand::rng().random_range(0.5..1.5));
                tracing::debug!(device = %device.address(), %trouble, ?pause, "connecting again");
                tokio::time::sleep(pause).await;
            }
            meaning => {
                if matches!(meaning, Meaning::Busy | Meaning::TooFar) {
                    // The kernel goes on trying otherwise, and refuses the next one as InProgress.
                    let _ended = disconnect(device, settings.disconnect).await;
                }
                return Err(trouble);
            }
        }
    }
}

/// What a connection that did not come about means.
fn judge(state: &State, peer: Address, trouble: &Trouble, hold: &mut Hold) -> RadioError {
    match trouble.meaning() {
        Meaning::BrokeOff if state.broke_off(peer) >= STALE_AFTER => RadioError::StaleBond,
        Meaning::NoSlot => {
            let limit = hold.slot.take().map(|slot| slot.refused(Instant::now()));
            tracing::warn!(%peer, ?limit, "the controller takes no more links");
            RadioError::OutOfSlots("the controller takes no more links".to_owned())
        }
        _ => trouble.clone().into(),
    }
}

/// Cancels `lost` when the device says that it is not connected any more.
async fn watch(mut changes: MessageStream, lost: CancellationToken) {
    let ended = async {
        while let Some(Ok(message)) = changes.next().await {
            let Ok((_, changed, _)) = message.body().deserialize::<(String, Properties, Vec<String>)>()
            else {
                continue;
            };
            if flag(&changed, "Connected") == Some(false) {
                return;
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = lost.cancelled() => {}
    }
    lost.cancel();
}

/// What has to be there of a service before it is worked with: its objects may come after it is said that they are there.
#[derive(Debug, Clone, Copy)]
pub enum Need<'a> {
    /// All of these.
    All(&'a [Uuid]),
    /// One of these; what there is, where there are none.
    OneOf(&'a [Uuid]),
}

impl Need<'_> {
    fn is_met<T>(self, found: &HashMap<Uuid, T>) -> bool {
        let is_there = |uuid: &Uuid| found.contains_key(uuid);
        match self {
            Self::All(uuids) => uuids.iter().all(is_there),
            Self::OneOf(uuids) => uuids.is_empty() || uuids.iter().any(is_there),
        }
    }

    fn count(self) -> usize {
        match self {
            Self::All(uuids) => uuids.len(),
            Self::OneOf(_) => 1,
        }
    }
}

/// The characteristics of a service, once those that are needed are there.
pub async fn characteristics(
    bus: &Bus,
    linked: &Linked,
    limit: Duration,
    service: Uuid,
    need: Need<'_>,
) -> Result<HashMap<Uuid, Remote>, RadioError> {
    let deadline = Instant::now() + limit;
    loop {
        let looked = tokio::select! {
            looked = tokio::time::timeout_at(deadline, look(bus, &linked.device, service)) => looked,
            () = linked.lost.cancelled() => {
                return Err(RadioError::Gone("it went while its services were read".to_owned()));
            }
        };
        match looked {
            Err(_) => return Err(RadioError::Timeout("services")),
            Ok(Ok(found)) if need.is_met(&found) => return Ok(found),
            Ok(Ok(found)) if Instant::now() + LOOK_AGAIN >= deadline => {
                return Err(RadioError::Nonsense(format!(
                    "of {} characteristics it has {}",
                    need.count(),
                    found.len()
                )));
            }
            Ok(Ok(_)) => {}
            Ok(Err(trouble)) => {
                tracing::debug!(device = %linked.device.address(), %trouble, "its services are not there yet");
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What bluetoothd knows of a service, by one question: each more would be waited for before every first reading.
async fn look(bus: &Bus, device: &Device, service: Uuid) -> Result<HashMap<Uuid, Remote>, Trouble> {
    let objects = bus.objects().await?;
    let below = format!("{}/service", device_path(device.adapter_name(), device.address()));
    let uuid = |properties: &Properties| text(properties, "UUID").and_then(|uuid| uuid.parse::<Uuid>().ok());
    let mut found = HashMap::new();
    for (path, interfaces) in &objects {
        let Some((of, id)) = path.strip_prefix(&below).and_then(|ids| ids.split_once("/char")) else {
            continue;
        };
        let Some(known) = interfaces.get(CHARACTERISTIC).and_then(uuid) else { continue };
        let its_service = OwnedObjectPath::try_from(format!("{below}{of}")).map_err(zbus::Error::from)?;
        let is_it = objects.get(&its_service).and_then(|it| it.get(SERVICE)).and_then(uuid) == Some(service);
        if let (true, Ok(of), Ok(id)) = (is_it, u16::from_str_radix(of, 16), u16::from_str_radix(id, 16)) {
            found.insert(known, device.service(of).await?.characteristic(id).await?);
        }
    }
    Ok(found)
}

/// Connects to a wearable.
pub async fn wearable(
    radio: &Inner,
    bus: &Arc<Bus>,
    id: &AdapterId,
    bond: &Bond,
) -> Result<Connection, RadioError> {
    let linked = open(radio, bus, id, bond).await?;
    let wanted: Vec<Uuid> = Characteristic::ALL.iter().map(|one| Uuid::from_u128(one.uuid())).collect();
    let service = Uuid::from_u128(gatt::SERVICE);
    let remotes = characteristics(bus, &linked, radio.settings.resolve, service, Need::All(&wanted)).await?;
    let identity = Identity::of(bond).ok_or(RadioError::StaleBond)?;
    radio.state(id).whole(identity.peer);
    let (sender, events) = mpsc::channel(EVENTS);
    let weak = sender.downgrade();
    let lost = linked.lost.clone();
    tokio::spawn(async move {
        // The channel stays open while the link stands, and ends with it.
        tokio::select! {
            () = lost.cancelled() => {}
            () = sender.closed() => {}
        }
        drop(sender);
    });
    let link = WearableLink {
        bus: bus.clone(),
        adapter: id.clone(),
        identity,
        linkd: radio.linkd.clone(),
        remotes,
        events: weak,
        linked,
    };
    Ok(Connection { link: Box::new(link), events })
}

struct WearableLink {
    bus: Arc<Bus>,
    adapter: AdapterId,
    identity: Identity,
    linkd: Linkd,
    remotes: HashMap<Uuid, Remote>,
    events: mpsc::WeakSender<LinkEvent>,
    linked: Linked,
}

impl WearableLink {
    fn remote(&self, characteristic: Characteristic) -> Result<&Remote, RadioError> {
        self.remotes
            .get(&Uuid::from_u128(characteristic.uuid()))
            .ok_or_else(|| RadioError::Nonsense(format!("it has no {characteristic:?}")))
    }

    async fn limited<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, bluer::Error>>,
    ) -> Result<T, RadioError> {
        tokio::select! {
            result = self.bus.limited(what, work) => result.map_err(|trouble| match trouble {
                Trouble::Slow(what) => RadioError::Timeout(what),
                other => RadioError::Gone(other.to_string()),
            }),
            () = self.linked.lost.cancelled() => Err(RadioError::Gone("the link was lost".to_owned())),
        }
    }

    async fn begin(&self, characteristic: Characteristic) -> Result<(), RadioError> {
        let remote = self.remote(characteristic)?;
        let Some(events) = self.events.upgrade() else {
            return Err(RadioError::Gone("the link was lost".to_owned()));
        };
        let lost = self.linked.lost.clone();
        match characteristic {
            Characteristic::Stream | Characteristic::Backlog => {
                let reader = self.limited("subscribing", remote.notify_io()).await?;
                if reader.mtu() < MAX_FRAME + ATT_HEADER && reader.mtu() < MAX_FRAME {
                    return Err(RadioError::Nonsense(format!(
                        "an ATT MTU of {}; set [GATT] ExchangeMTU = 517 in /etc/bluetooth/main.conf",
                        reader.mtu()
                    )));
                }
                let values = futures_util::stream::unfold(reader, |reader| async move {
                    let value = reader.recv().await.ok().filter(|value| !value.is_empty())?;
                    Some((value, reader))
                });
                tokio::spawn(forward(characteristic, Box::pin(values), events, lost, true));
            }
            Characteristic::Control | Characteristic::Status => {
                let values = self.limited("subscribing", remote.notify()).await?;
                tokio::spawn(forward(characteristic, Box::pin(values), events, lost, false));
            }
        }
        Ok(())
    }
}

/// Hands on what arrives, until the link is lost. A socket that ends is the end of the link too.
async fn forward(
    characteristic: Characteristic,
    mut values: impl Stream<Item = Vec<u8>> + Unpin,
    events: mpsc::Sender<LinkEvent>,
    lost: CancellationToken,
    socket: bool,
) {
    loop {
        tokio::select! {
            value = values.next() => {
                let Some(value) = value else { break };
                let event = LinkEvent { characteristic, bytes: Bytes::from(value) };
                tokio::select! {
                    sent = events.send(event) => if sent.is_err() { return },
                    () = lost.cancelled() => return,
                }
            }
            () = lost.cancelled() => return,
        }
    }
    if socket {
        tracing::debug!(?characteristic, "its socket ended");
        lost.cancel();
    }
}

impl Link for WearableLink {
    fn write_control<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<(), RadioError>> {
        Box::pin(async move {
            let remote = self.remote(Characteristic::Control)?;
            let request = CharacteristicWriteRequest {
                op_type: WriteOp::Request,
                ..CharacteristicWriteRequest::default()
            };
            self.limited("write", remote.write_ext(bytes, &request)).await
        })
    }

    fn subscribe(&mut self, characteristic: Characteristic) -> BoxFuture<'_, Result<(), RadioError>> {
        Box::pin(self.begin(characteristic))
    }

    fn read_status(&mut self) -> BoxFuture<'_, Result<Bytes, RadioError>> {
        Box::pin(async move {
            let remote = self.remote(Characteristic::Status)?;
            self.limited("read", remote.read()).await.map(Bytes::from)
        })
    }

    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>> {
        Box::pin(async move { self.linkd.rssi_dbm(&self.adapter, &self.identity).await })
    }

    fn disconnect(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.linked.hold.close())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_waited_for_and_what_is_not_is_taken_as_it_is_there() {
        let [rate, continuous, spot] = [1, 2, 3].map(Uuid::from_u128);
        let found = |uuids: &[Uuid]| uuids.iter().map(|uuid| (*uuid, 1)).collect::<HashMap<_, _>>();
        assert!(!Need::All(&[rate, spot]).is_met(&found(&[rate])));
        assert!(Need::All(&[rate, spot]).is_met(&found(&[rate, spot])));
        assert!(!Need::OneOf(&[continuous, spot]).is_met(&found(&[])));
        assert!(!Need::OneOf(&[continuous, spot]).is_met(&found(&[rate])));
        assert!(Need::OneOf(&[continuous, spot]).is_met(&found(&[spot])));
        assert!(Need::OneOf(&[]).is_met(&found(&[])));
    }
}
