//! Real Bluetooth: [`Radio`] over BlueZ.
//!
//! The promises:
//!
//! * nothing here waits for bluetoothd, a controller or a wearable without a limit in time, each limit named in
//!   [`Settings`];
//! * bluetoothd, the bus or an adapter may go at any moment: what stood on them ends with an error, and the next call
//!   finds what is there then (`bus`);
//! * nobody pairs but whom a person chose, and a bond counts only when its key is proven (`pairing`, `agent`);
//! * a bond that one side forgot is said to be stale, never renewed in silence.
//!
//! `traps` lists what BlueZ is known to do and what is done about it.

mod adapter;
mod agent;
mod air;
mod bus;
mod discovery;
mod link;
mod objects;
mod pairing;
mod proof;
mod sensors;
mod slots;
mod traps;
mod watchdog;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bluer::Address;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use self::adapter::{Identity, State};
use self::bus::Bus;
use self::proof::Linkd;
use self::traps::Meaning;
use super::{
    Adapter, AdapterId, Agreement, Bond, Bonds, Connection, Radio, RadioError, SensorConnection, SensorKind,
    Sighting,
};
use crate::config;
use crate::hardware::HardwareId;

/// Times and sizes of the BlueZ radio.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Links that an adapter holds, until it refuses one.
    pub slots: usize,
    /// After a refusal, one more link is tried this much later.
    pub slots_relearn: Duration,
    /// How long any call of D-Bus may take that has no limit of its own.
    pub call: Duration,
    /// How long one attempt to connect may take.
    pub connect: Duration,
    /// Attempts to connect before the manager is told.
    pub tries: u32,
    /// The pause between attempts, jittered.
    pub retry: Duration,
    /// How long the services of a connected device may take to appear.
    pub resolve: Duration,
    /// How long disconnecting may take.
    pub disconnect: Duration,
    /// How long a pairing may take, with the typing of a code.
    pub pair: Duration,
    /// How long the kernel's word about a new key may take.
    pub key_wait: Duration,
    /// How long discovery runs at a time.
    pub scan_on: Duration,
    /// How long it rests when nobody is waited for.
    pub scan_off: Duration,
    /// A bonded wearable that was heard within this time must be near.
    pub near: Duration,
    /// Silence after which an adapter is taken for deaf.
    pub deaf: Duration,
    /// Between two resets of a deaf adapter.
    pub reset_pause: Duration,
    /// Sensors of other makers that may be paired.
    pub sensors: Vec<SensorKind>,
    /// The helper's socket.
    pub linkd_socket: PathBuf,
    /// Whether a bond needs the helper's word that its key is an authenticated one.
    pub require_key_proof: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(&config::Radio::default())
    }
}

impl From<&config::Radio> for Settings {
    fn from(section: &config::Radio) -> Self {
        let seconds = Duration::from_secs_f64;
        let kind = |sensor: &config::Sensor| match sensor {
            config::Sensor::HeartRate => SensorKind::HeartRate,
            config::Sensor::HealthThermometer => SensorKind::HealthThermometer,
            config::Sensor::PulseOximeter => SensorKind::PulseOximeter,
        };
        Self {
            slots: section.slots,
            slots_relearn: seconds(section.slots_relearn_min * 60.0),
            call: seconds(section.dbus_timeout_s),
            connect: seconds(section.connect_timeout_s),
            tries: section.connect_tries,
            retry: Duration::from_millis(section.connect_retry_ms),
            resolve: seconds(section.resolve_timeout_s),
            disconnect: seconds(section.disconnect_timeout_s),
            pair: seconds(section.pair_timeout_s),
            key_wait: seconds(section.key_timeout_s),
            scan_on: seconds(section.scan_on_s),
            scan_off: seconds(section.scan_off_s),
            near: seconds(section.near_s),
            deaf: seconds(section.deaf_s),
            reset_pause: seconds(section.reset_pause_s),
            sensors: section.sensors.iter().map(kind).collect(),
            linkd_socket: section.linkd_socket.clone(),
            require_key_proof: section.require_key_proof,
        }
    }
}

/// The radio over BlueZ. Clones are the same one.
#[derive(Clone)]
pub struct BluezRadio(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    bonds: Arc<Bonds>,
    linkd: Linkd,
    /// The life of bluetoothd that we are on.
    bus: tokio::sync::Mutex<Option<Arc<Bus>>>,
    states: Mutex<HashMap<AdapterId, Arc<State>>>,
    /// The addresses of the adapters, as they were listed last.
    addresses: Mutex<HashMap<AdapterId, Address>>,
    /// One pairing at a time: the agent answers for one.
    pairing: tokio::sync::Mutex<()>,
}

impl BluezRadio {
    /// A radio whose bonded wearables are known by `bonds`. Nothing is opened before something is asked.
    pub fn new(settings: Settings, bonds: Arc<Bonds>) -> Self {
        let linkd = Linkd::new(kinara_linkd::client::Client::new(&settings.linkd_socket));
        Self(Arc::new(Inner {
            settings: Arc::new(settings),
            bonds,
            linkd,
            bus: tokio::sync::Mutex::default(),
            states: Mutex::default(),
            addresses: Mutex::default(),
            pairing: tokio::sync::Mutex::default(),
        }))
    }
}

impl Inner {
    /// The life of bluetoothd that is there now.
    async fn bus(&self) -> Result<Arc<Bus>, RadioError> {
        let mut kept = self.bus.lock().await;
        if let Some(bus) = kept.as_ref().filter(|bus| !bus.gone.is_cancelled()) {
            return Ok(bus.clone());
        }
        *kept = None;
        let bus = Arc::new(Bus::open(self.settings.call).await?);
        tracing::info!("connected to bluetoothd");
        *kept = Some(bus.clone());
        Ok(bus)
    }

    fn state(&self, adapter: &AdapterId) -> Arc<State> {
        let mut states = lock(&self.states);
        states.entry(adapter.clone()).or_insert_with(|| Arc::new(State::new(&self.settings))).clone()
    }

    /// The adapter's own address.
    async fn address(&self, bus: &Bus, adapter: &AdapterId) -> Result<Address, RadioError> {
        if let Some(address) = lock(&self.addresses).get(adapter) {
            return Ok(*address);
        }
        let listed = self.list(bus).await?;
        let found = listed.into_iter().find(|one| one.id == *adapter).map(|one| one.address);
        found.ok_or_else(|| RadioError::Adapter(format!("{adapter} has gone; plug it in again")))
    }

    async fn list(&self, bus: &Bus) -> Result<Vec<adapter::Listed>, RadioError> {
        let listed = adapter::listed(&bus.objects().await?);
        *lock(&self.addresses) = listed.iter().map(|one| (one.id.clone(), one.address)).collect();
        Ok(listed)
    }

    /// Which hardware a bonded peer is.
    fn hardware_of(&self, peer: Address) -> Option<HardwareId> {
        self.bonds
            .all()
            .into_iter()
            .find(|(_, bond)| Identity::of(bond).is_some_and(|identity| identity.peer == peer))
            .map(|(hardware, _)| hardware)
    }

    /// The bonds that this adapter made.
    fn bonded_on(&self, adapter: &AdapterId) -> Vec<(HardwareId, Address)> {
        let Some(own) = lock(&self.addresses).get(adapter).copied() else { return Vec::new() };
        let all = self.bonds.all().into_iter();
        all.filter_map(|(hardware, bond)| {
            let identity = Identity::of(&bond).filter(|identity| identity.adapter == own)?;
            Some((hardware, identity.peer))
        })
        .collect()
    }

    async fn adapters(&self) -> Result<Vec<Adapter>, RadioError> {
        let bus = self.bus().await?;
        let mut adapters = Vec::new();
        for mut one in self.list(&bus).await? {
            if !one.powered {
                one.powered = self.switch_on(&bus, &one).await;
            }
            adapters.push(Adapter {
                address: one.address.0,
                powered: one.powered,
                slots: self.state(&one.id).slots.limit(tokio::time::Instant::now()),
                id: one.id,
            });
        }
        Ok(adapters)
    }

    async fn switch_on(&self, bus: &Bus, one: &adapter::Listed) -> bool {
        match adapter::power(bus, &one.id, true).await {
            Ok(()) => true,
            Err(trouble) => {
                let advice = match (one.blocked, trouble.meaning()) {
                    (true, _) | (_, Meaning::Off) => "run `rfkill unblock bluetooth`",
                    _ => "unplug it and plug it in again",
                };
                tracing::warn!(adapter = %one.id, %trouble, advice, "the adapter is off and cannot be switched on");
                false
            }
        }
    }

    async fn pairable(&self, id: &AdapterId, on: bool) -> Result<(), RadioError> {
        self.state(id).window.send_replace(on);
        let bus = self.bus().await?;
        adapter::pairable(&bus, id, on).await.map_err(Into::into)
    }

    async fn forget(&self, id: &AdapterId, bond: &Bond) -> Result<(), RadioError> {
        let Some(identity) = Identity::of(bond) else { return Ok(()) };
        self.state(id).forget(identity.peer);
        let bus = self.bus().await?;
        let objects = bus.objects().await?;
        let Some((address, _)) = link::find(&objects, id, identity.peer) else { return Ok(()) };
        let adapter = bus.session.adapter(&id.0).map_err(traps::Trouble::from)?;
        match bus.limited("removing", adapter.remove_device(address)).await {
            Err(trouble) if trouble.meaning() != Meaning::Absent => Err(trouble.into()),
            _ => Ok(()),
        }
    }
}

impl Radio for BluezRadio {
    fn adapters(&self) -> BoxFuture<'_, Result<Vec<Adapter>, RadioError>> {
        Box::pin(self.0.adapters())
    }

    fn scan<'a>(
        &'a self,
        adapter: &'a AdapterId,
    ) -> BoxFuture<'a, Result<mpsc::Receiver<Sighting>, RadioError>> {
        Box::pin(async move {
            let bus = self.0.bus().await?;
            air::listen(&self.0, &bus, adapter).await
        })
    }

    fn pairable<'a>(&'a self, adapter: &'a AdapterId, on: bool) -> BoxFuture<'a, Result<(), RadioError>> {
        Box::pin(self.0.pairable(adapter, on))
    }

    fn pair<'a>(
        &'a self,
        adapter: &'a AdapterId,
        sighting: &'a Sighting,
        agreement: Agreement,
    ) -> BoxFuture<'a, Result<Bond, RadioError>> {
        Box::pin(async move {
            let bus = self.0.bus().await?;
            pairing::pair(&self.0, &bus, adapter, sighting, agreement).await
        })
    }

    fn connect<'a>(
        &'a self,
        adapter: &'a AdapterId,
        _: &'a Sighting,
        bond: &'a Bond,
    ) -> BoxFuture<'a, Result<Connection, RadioError>> {
        Box::pin(async move {
            let bus = self.0.bus().await?;
            link::wearable(&self.0, &bus, adapter, bond).await
        })
    }

    fn connect_sensor<'a>(
        &'a self,
        adapter: &'a AdapterId,
        _: &'a Sighting,
        bond: &'a Bond,
    ) -> BoxFuture<'a, Result<SensorConnection, RadioError>> {
        Box::pin(async move {
            let bus = self.0.bus().await?;
            sensors::open(&self.0, &bus, adapter, bond).await
        })
    }

    fn forget<'a>(&'a self, adapter: &'a AdapterId, bond: &'a Bond) -> BoxFuture<'a, Result<(), RadioError>> {
        Box::pin(self.0.forget(adapter, bond))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
