//! Whom to serve: every device that this box has a bond with, or whose label came with its configuration; each adapter
//! with as many links as it can hold, and everybody in turn when there are more devices than links.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_protocol::label::LabelSecret;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::links::Links;
pub use super::nonces::Nonces;
use super::session::Context;
use super::window::PairingWindow;
use super::{Adapter, AdapterId, Radio};
use crate::decisions::Decisions;
use crate::devices::{Devices, address_text};
use crate::hardware::HardwareId;
use crate::roster::Introduction;
use crate::status;

/// How links are given out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Links that an adapter holds at once; fewer when the adapter says so.
    pub slots: usize,
    /// Connections that an adapter makes at once.
    pub connecting: usize,
    /// How long a wearable keeps its link while others wait for one.
    pub turn: Duration,
    /// The first pause after a failure.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_most: Duration,
    /// How often the adapters are listed.
    pub adapters_every: Duration,
}

/// Serves devices on all adapters.
pub struct Manager {
    /// The transport.
    pub radio: Arc<dyn Radio>,
    /// Bonds.
    pub devices: Arc<Devices>,
    /// Labels that came with the configuration: these wearables pair by themselves.
    pub labels: HashMap<HardwareId, LabelSecret>,
    /// Wearables that this box has been told of by the cloud.
    pub introductions: watch::Receiver<Vec<Introduction>>,
    /// For what pairs by introduction.
    pub decisions: Decisions,
    /// What a person pairs.
    pub window: PairingWindow,
    /// Who holds which wearable.
    pub links: Links,
    /// What sessions need.
    pub context: Context,
    /// How links are given out.
    pub settings: Settings,
    /// The adapters as they were listed last.
    pub adapters: Arc<Adapters>,
    /// What passkeys were computed from.
    pub nonces: Arc<Nonces>,
}

/// The adapters as they were listed last.
#[derive(Debug, Default)]
pub struct Adapters {
    known: Mutex<HashMap<AdapterId, Adapter>>,
}

impl Adapters {
    /// One of them.
    pub fn get(&self, adapter: &AdapterId) -> Option<Adapter> {
        self.lock().get(adapter).cloned()
    }

    /// The one with this address; the only one, where none is given.
    pub fn with_address(&self, address: Option<[u8; 6]>) -> Option<AdapterId> {
        let known = self.lock();
        let mut fitting =
            known.values().filter(|adapter| address.is_none_or(|asked| adapter.address == asked));
        let first = fitting.next()?;
        (address.is_some() || fitting.next().is_none()).then(|| first.id.clone())
    }

    fn set(&self, found: &[Adapter]) {
        *self.lock() = found.iter().map(|adapter| (adapter.id.clone(), adapter.clone())).collect();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AdapterId, Adapter>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager {
    /// Runs until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let manager = Arc::new(self);
        for hardware in manager.labels.keys().chain(manager.devices.now().devices.keys()) {
            manager.context.board.device(hardware, |_| {});
        }
        let mut serving: JoinSet<AdapterId> = JoinSet::new();
        let mut running: HashSet<AdapterId> = HashSet::new();
        let pulse = manager.context.board.vitals().pulse("radio");
        loop {
            pulse.beat();
            manager.list_adapters(&mut running, &mut serving, &cancel).await;
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(manager.settings.adapters_every) => {}
                Some(ended) = serving.join_next() => {
                    match ended {
                        Ok(adapter) => running.remove(&adapter),
                        // Nobody would serve this adapter again: whoever watches over us starts all anew.
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    };
                    tokio::time::sleep(manager.settings.backoff).await;
                }
            }
        }
        while serving.join_next().await.is_some() {}
    }

    /// Serves on every adapter that is new.
    async fn list_adapters(
        self: &Arc<Self>,
        running: &mut HashSet<AdapterId>,
        serving: &mut JoinSet<AdapterId>,
        cancel: &CancellationToken,
    ) {
        let found = match self.radio.adapters().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the adapters cannot be listed");
                self.context.board.alert("radio", Some(error.to_string()));
                return;
            }
        };
        let none = found.iter().all(|adapter| !adapter.powered) && running.is_empty();
        let what = if found.is_empty() {
            "There is no Bluetooth adapter; plug one in."
        } else {
            "The Bluetooth adapter is off; run `rfkill unblock bluetooth`, or unplug it and plug it in again."
        };
        self.context.board.alert("radio", none.then(|| what.to_owned()));
        self.adapters.set(&found);
        self.show_adapters(&found);
        for adapter in found.into_iter().filter(|adapter| adapter.powered).map(|adapter| adapter.id) {
            if running.insert(adapter.clone()) {
                let (manager, cancel) = (self.clone(), cancel.clone());
                serving.spawn(async move {
                    manager.serve(&adapter, &cancel).await;
                    adapter
                });
            }
        }
    }

    fn show_adapters(&self, found: &[Adapter]) {
        let shown: BTreeMap<String, status::Adapter> = found
            .iter()
            .map(|adapter| {
                let state = status::Adapter {
                    address: address_text(adapter.address),
                    powered: adapter.powered,
                    slots: adapter.slots.min(self.settings.slots),
                    links: self.links.of(&adapter.id).len(),
                };
                (adapter.id.0.clone(), state)
            })
            .collect();
        self.context.board.update(|snapshot| {
            let changed = snapshot.adapters != shown;
            snapshot.adapters = shown;
            changed
        });
    }
}
