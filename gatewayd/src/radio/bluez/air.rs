//! Who is heard: BlueZ's signals about devices into sightings.
//!
//! A sighting is told only for what was heard just now (an RSSI came), of a bonded peer, of a wearable that offers
//! something, or of a sensor that is allowed. Bonded peers are known by their identity address: BlueZ resolves the
//! address of the day by the key. What is remembered of strangers is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bluer::Address;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use kinara_protocol::advert;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zbus::MessageStream;
use zbus::message::Message;
use zbus::zvariant::OwnedObjectPath;

use super::Inner;
use super::adapter::{self, State};
use super::bus::{ADAPTER, Bus, DEVICE, Objects, Properties, adapter_path};
use super::discovery::{Discovery, Wanted};
use super::objects::{DeviceNews, path_address};
use super::watchdog::Watchdog;
use crate::radio::{AdapterId, Offer, RadioError, SensorKind, Sighting};

/// Devices that are remembered; more than a crowded clinic has in half a minute.
const DEVICES: usize = 512;
/// Sightings that may wait for the manager; it only wants the newest of each.
const SIGHTINGS: usize = 64;
/// A peer is told of this often at most.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// An offer of a bonded peer counts for this long; BlueZ keeps it for ever.
const OFFER_FRESH: Duration = Duration::from_secs(20);
/// A peer that was heard or linked within this time is waited for eagerly.
const AWAITED: Duration = Duration::from_mins(10);
/// How often one looks after what is missing.
const TICK: Duration = Duration::from_secs(1);
/// A link that nobody holds for this long is an orphan; one of ours that is ending takes up to 3 s.
const ORPHAN_AFTER: Duration = Duration::from_secs(5);
/// How often a bond that BlueZ has no keys for is told of, so that somebody hears that it is stale.
const GHOST_EVERY: Duration = Duration::from_mins(1);

/// What is known of a device.
#[derive(Debug, Default)]
struct Known {
    address: Option<Address>,
    name: String,
    sensors: Vec<SensorKind>,
    offer: Option<(Offer, Instant)>,
    rssi: i16,
    paired: bool,
    connected: bool,
    heard: Option<Instant>,
    told: Option<Instant>,
    /// Connected, and nobody here holds the link, since then.
    orphan_since: Option<Instant>,
}

/// Begins to listen on an adapter.
pub async fn listen(
    radio: &Arc<Inner>,
    bus: &Arc<Bus>,
    id: &AdapterId,
) -> Result<mpsc::Receiver<Sighting>, RadioError> {
    let path = adapter_path(id);
    let signals = select_all([
        bus.changes(&path, DEVICE).await?,
        bus.changes(&path, ADAPTER).await?,
        bus.comings("InterfacesAdded").await?,
        bus.comings("InterfacesRemoved").await?,
    ]);
    let objects = bus.objects().await?;
    let state = radio.state(id);
    // Nobody pairs before somebody asks for it, whatever the last life of this program left behind.
    let open = *state.window.borrow();
    adapter::pairable(bus, id, open).await?;
    let (sender, receiver) = mpsc::channel(SIGHTINGS);
    let over = bus.gone.child_token();
    let (want, wanted) = watch::channel(Wanted { eager: true, resets: 0 });
    let discovery = Discovery {
        settings: radio.settings.clone(),
        bus: bus.clone(),
        adapter: id.clone(),
        state: state.clone(),
        wanted,
        over: over.clone(),
        linkd: radio.linkd.clone(),
    };
    tokio::spawn(discovery.run());
    let mut air = Air {
        radio: radio.clone(),
        id: id.clone(),
        state,
        devices: HashMap::new(),
        sender,
        want,
        watchdog: Watchdog::new(&radio.settings),
        ghosts_told: None,
    };
    air.begin(&objects);
    tokio::spawn(async move {
        air.run(signals, &over).await;
        over.cancel();
    });
    Ok(receiver)
}

struct Air {
    radio: Arc<Inner>,
    id: AdapterId,
    state: Arc<State>,
    devices: HashMap<Address, Known>,
    sender: mpsc::Sender<Sighting>,
    want: watch::Sender<Wanted>,
    watchdog: Watchdog,
    ghosts_told: Option<Instant>,
}

impl Air {
    async fn run(&mut self, mut signals: SelectAll<MessageStream>, over: &CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                () = self.sender.closed() => return,
                signal = signals.next() => match signal {
                    Some(Ok(message)) => if self.take(&message).is_none() { return },
                    Some(Err(error)) => tracing::debug!(adapter = %self.id, %error, "an unreadable signal"),
                    None => return,
                },
                _ = tick.tick() => self.look_after(),
            }
        }
    }

    /// Takes what BlueZ knows already; it says nothing about who is near.
    fn begin(&mut self, objects: &Objects) {
        for (path, interfaces) in objects {
            if let (Some(at), Some(properties)) =
                (path_address(path.as_str(), &self.id.0), interfaces.get(DEVICE))
            {
                let mut news = DeviceNews::of(properties);
                news.rssi = None;
                self.learn(at, news);
            }
        }
    }

    /// Takes a signal; `None` when the adapter has gone or was switched off.
    fn take(&mut self, message: &Message) -> Option<()> {
        let header = message.header();
        let body = message.body();
        match header.member().map(zbus::names::MemberName::as_str) {
            Some("PropertiesChanged") => {
                let Ok((interface, changed, _)) = body.deserialize::<(String, Properties, Vec<String>)>()
                else {
                    return Some(());
                };
                if interface == ADAPTER {
                    let off = super::objects::flag(&changed, "Powered") == Some(false);
                    if off && !self.watchdog.is_resetting() {
                        tracing::warn!(adapter = %self.id, "the adapter was switched off");
                        return None;
                    }
                } else if let Some(at) =
                    header.path().and_then(|path| path_address(path.as_str(), &self.id.0))
                {
                    self.learn(at, DeviceNews::of(&changed));
                }
            }
            Some("InterfacesAdded") => {
                type Added = (OwnedObjectPath, HashMap<String, Properties>);
                if let Ok((path, interfaces)) = body.deserialize::<Added>()
                    && let Some(at) = path_address(path.as_str(), &self.id.0)
                    && let Some(properties) = interfaces.get(DEVICE)
                {
                    self.learn(at, DeviceNews::of(properties));
                }
            }
            Some("InterfacesRemoved") => {
                let Ok((path, interfaces)) = body.deserialize::<(OwnedObjectPath, Vec<String>)>() else {
                    return Some(());
                };
                if path.as_str() == adapter_path(&self.id) && interfaces.iter().any(|one| one == ADAPTER) {
                    tracing::warn!(adapter = %self.id, "the adapter has gone");
                    return None;
                }
                if interfaces.iter().any(|one| one == DEVICE)
                    && let Some(at) = path_address(path.as_str(), &self.id.0)
                {
                    self.devices.remove(&at);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn learn(&mut self, at: Address, news: DeviceNews) {
        self.make_room(at);
        let now = Instant::now();
        let known = self.devices.entry(at).or_default();
        known.address = news.address.or(known.address);
        known.name = news.name.unwrap_or(std::mem::take(&mut known.name));
        if let Some(named) = news.services {
            known.sensors = named.sensors;
        }
        known.paired = news.paired.unwrap_or(known.paired);
        known.connected = news.connected.unwrap_or(known.connected);
        if let Some(data) = news.offer {
            known.offer = offered(&data).map(|offer| (offer, now));
        }
        if !known.connected {
            known.orphan_since = None;
        }
        if known.connected && known.paired {
            self.state.heard(known.address.unwrap_or(at));
        }
        let Some(rssi) = news.rssi else { return };
        known.rssi = rssi;
        known.heard = Some(now);
        self.watchdog.heard(now);
        if known.told.is_none_or(|told| now - told >= TOLD_EVERY) {
            self.tell(at, now);
        }
    }

    /// Keeps the memory of strangers bounded: who was heard longest ago goes.
    fn make_room(&mut self, at: Address) {
        if self.devices.len() < DEVICES || self.devices.contains_key(&at) {
            return;
        }
        let oldest =
            self.devices.iter().filter(|(_, known)| !known.paired).min_by_key(|(_, known)| known.heard);
        if let Some(oldest) = oldest.map(|(at, _)| *at) {
            self.devices.remove(&oldest);
        }
    }

    fn tell(&mut self, at: Address, now: Instant) {
        let Some(known) = self.devices.get_mut(&at) else { return };
        let peer = known.address.unwrap_or(at);
        let hardware = if known.paired { self.radio.hardware_of(peer) } else { None };
        let fresh = |(offer, since): &(Offer, Instant)| {
            (!known.paired || now - *since < OFFER_FRESH).then(|| offer.clone())
        };
        let offer = known.offer.as_ref().and_then(fresh).or_else(|| {
            // Of several, the first one that is allowed.
            let allowed = known.sensors.iter().find(|kind| self.radio.settings.sensors.contains(kind));
            allowed.copied().map(Offer::Sensor)
        });
        if hardware.is_none() && offer.is_none() {
            return;
        }
        if hardware.is_some() {
            self.state.heard(peer);
        }
        known.told = Some(now);
        let sighting = Sighting {
            address: at.to_string(),
            hardware,
            name: known.name.clone(),
            rssi_dbm: known.rssi,
            offer,
            connectable: !known.connected || known.orphan_since.is_some(),
        };
        // Full: the next one is as good.
        let _full = self.sender.try_send(sighting);
    }

    fn look_after(&mut self) {
        let now = Instant::now();
        let linked: Vec<Address> = self
            .devices
            .iter()
            .filter(|(_, known)| known.connected)
            .map(|(at, known)| known.address.unwrap_or(*at))
            .collect();
        let awaited = self.state.awaited(&linked, now, AWAITED);
        let near = self.state.awaited(&linked, now, self.radio.settings.near);
        let resting = *self.state.busy.borrow() > 0;
        let stuck = self.watchdog.is_stuck(now, self.state.unanswered());
        if stuck {
            self.state.answered(true);
        }
        let reset = stuck || self.watchdog.look(now, near, linked.len(), resting);
        self.want.send_if_modified(|want| {
            let before = *want;
            want.eager = awaited;
            want.resets += u32::from(reset);
            *want != before
        });
        self.tell_orphans(now);
        if self.ghosts_told.is_none_or(|told| now - told >= GHOST_EVERY) {
            self.ghosts_told = Some(now);
            self.tell_ghosts();
        }
    }

    /// Links of bonded peers that nobody here holds: a former life of this program was killed, and bluetoothd kept
    /// them. Who is linked does not advertise, so they are told of without being heard.
    fn tell_orphans(&mut self, now: Instant) {
        let orphans: Vec<Address> = self
            .devices
            .iter()
            .filter(|(at, known)| {
                let peer = known.address.unwrap_or(**at);
                known.connected && known.paired && !self.state.holds(peer)
            })
            .map(|(at, _)| *at)
            .collect();
        for at in orphans {
            if let Some(known) = self.devices.get_mut(&at) {
                known.orphan_since = known.orphan_since.or(Some(now));
                if known.orphan_since.is_some_and(|since| now - since >= ORPHAN_AFTER) {
                    self.tell(at, now);
                }
            }
        }
    }

    /// Bonds of this adapter that BlueZ holds no keys for: nobody will ever be heard by them, and connecting says
    /// that they are stale.
    fn tell_ghosts(&self) {
        for (hardware, peer) in self.radio.bonded_on(&self.id) {
            let held =
                self.devices.iter().any(|(at, known)| known.paired && known.address.unwrap_or(*at) == peer);
            if !held {
                let sighting = Sighting {
                    address: peer.to_string(),
                    hardware: Some(hardware),
                    name: String::new(),
                    rssi_dbm: i16::from(i8::MIN),
                    offer: None,
                    connectable: true,
                };
                let _full = self.sender.try_send(sighting);
            }
        }
    }
}

/// What the service data of the Kinara service offer.
fn offered(data: &[u8]) -> Option<Offer> {
    Some(match advert::Offer::decode(data).ok()? {
        advert::Offer::Label { nonce } => Offer::Label { nonce: nonce.to_vec() },
        advert::Offer::Introduction { nonce, tag } => Offer::Introduction { nonce: nonce.to_vec(), tag },
        advert::Offer::Display => Offer::Display,
    })
}
