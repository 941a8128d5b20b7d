//! A wearable that pairs by introduction, at a box that cannot keep what comes of it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kinara_clock::SystemClock;
use kinara_gatewayd::decisions::{Decisions, SigningKey};
use kinara_gatewayd::devices::{Bond, Devices};
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::radio::links::Links;
use kinara_gatewayd::radio::manager::{Manager, Settings};
use kinara_gatewayd::radio::window::PairingWindow;
use kinara_gatewayd::radio::{
    Adapter, AdapterId, Agreement, Connection, Offer, Radio, RadioError, SensorConnection, Sighting,
};
use kinara_gatewayd::roster::Introduction;
use kinara_gatewayd::store::{Store, database};
use kinara_protocol::label::IntroductionSecret;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::frames::{GATEWAY, known, open, settings};
use super::mends::until;
use super::sensor::context;

const NONCE: &[u8] = b"anything";
const SECRET: IntroductionSecret = IntroductionSecret::from_bytes(*b"0123456789abcdef");
const ID: Uuid = Uuid::from_u128(7);

fn hardware() -> HardwareId {
    HardwareId::kinara(0xa1)
}

type Then = Box<dyn Fn() + Send + Sync>;

/// An adapter that hears one wearable, and while it pairs with it does this.
struct Pairing {
    then: Then,
    forgotten: AtomicU32,
}

impl Radio for Pairing {
    fn adapters(&self) -> BoxFuture<'_, Result<Vec<Adapter>, RadioError>> {
        let id = AdapterId("hci0".to_owned());
        Box::pin(async { Ok(vec![Adapter { id, address: [1; 6], powered: true, slots: 4 }]) })
    }

    fn scan<'a>(&'a self, _: &'a AdapterId) -> BoxFuture<'a, Result<mpsc::Receiver<Sighting>, RadioError>> {
        let (seen, sightings) = mpsc::channel(1);
        tokio::spawn(async move {
            let sighting = Sighting {
                address: "a".to_owned(),
                hardware: None,
                name: "Kinara".to_owned(),
                rssi_dbm: -50,
                offer: Some(Offer::Introduction { nonce: NONCE.to_vec(), tag: SECRET.tag(NONCE) }),
                connectable: true,
            };
            while seen.send(sighting.clone()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Box::pin(async { Ok(sightings) })
    }

    fn pairable<'a>(&'a self, _: &'a AdapterId, _: bool) -> BoxFuture<'a, Result<(), RadioError>> {
        Box::pin(async { Ok(()) })
    }

    fn pair<'a>(
        &'a self,
        _: &'a AdapterId,
        _: &'a Sighting,
        _: Agreement,
    ) -> BoxFuture<'a, Result<Bond, RadioError>> {
        (self.then)();
        Box::pin(async { Ok(Bond(b"bond".to_vec())) })
    }

    fn connect<'a>(
        &'a self,
        _: &'a AdapterId,
        _: &'a Sighting,
        _: &'a Bond,
    ) -> BoxFuture<'a, Result<Connection, RadioError>> {
        Box::pin(async { Err(RadioError::TooFar) })
    }

    fn connect_sensor<'a>(
        &'a self,
        _: &'a AdapterId,
        _: &'a Sighting,
        _: &'a Bond,
    ) -> BoxFuture<'a, Result<SensorConnection, RadioError>> {
        Box::pin(async { Err(RadioError::TooFar) })
    }

    fn forget<'a>(&'a self, _: &'a AdapterId, _: &'a Bond) -> BoxFuture<'a, Result<(), RadioError>> {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

/// Serves until the radio has forgotten the bond that was made and could not be kept.
async fn served_until_forgotten(dir: &Path, store: &Store, devices: &Arc<Devices>, then: Then) {
    let radio = Arc::new(Pairing { then, forgotten: AtomicU32::new(0) });
    let introduction = Introduction {
        id: ID,
        hardware: hardware(),
        secret: SECRET,
        expires_us: i64::MAX,
        admits: false,
        failures: Arc::new(AtomicU32::new(0)),
    };
    let clock = Arc::new(SystemClock);
    let (knows, key) = (watch::channel(Some(known())).1, SigningKey::open(dir).unwrap());
    let manager = Manager {
        radio: radio.clone(),
        devices: devices.clone(),
        labels: HashMap::new(),
        introductions: watch::channel(vec![introduction.clone()]).1,
        decisions: Decisions::new(store.clone(), key, GATEWAY, clock.clone(), knows, 0),
        window: PairingWindow::new(clock),
        links: Links::default(),
        context: context(store),
        settings: Settings {
            slots: 4,
            connecting: 1,
            turn: Duration::from_mins(1),
            backoff: Duration::from_millis(100),
            backoff_most: Duration::from_secs(1),
            adapters_every: Duration::from_secs(1),
        },
        adapters: Arc::default(),
        nonces: Arc::default(),
    };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(manager.run(stop.clone()));
    until("it is not undone", async || radio.forgotten.load(Ordering::Relaxed) > 0).await;
    stop.cancel();
    serving.await.unwrap();
    assert_eq!(introduction.failures.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_cloud_is_not_told_of_a_bond_that_could_not_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    let devices = Arc::new(Devices::open(dir.path()).unwrap());
    // Stands for a disk that becomes full while it pairs.
    let place = dir.path().join("devices.new");
    let full = Box::new(move || drop(std::fs::create_dir(&place)));
    served_until_forgotten(dir.path(), &store, &devices, full).await;
    store.stop().await;
    let db = rusqlite::Connection::open(database(&settings(dir.path()))).unwrap();
    let told: i64 = db.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
    assert_eq!(told, 0);
    assert!(devices.bonded(&hardware()).is_none() && devices.now().introduced.is_empty());
}

#[tokio::test]
async fn a_bond_of_which_the_cloud_would_never_hear_is_undone_and_the_introduction_may_serve_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(settings(dir.path()));
    let devices = Arc::new(Devices::open(dir.path()).unwrap());
    // It takes nothing while somebody else writes.
    let other = Mutex::new(rusqlite::Connection::open(database(&settings(dir.path()))).unwrap());
    let refuses =
        Box::new(move || other.lock().unwrap().execute_batch("BEGIN IMMEDIATE").unwrap_or_default());
    served_until_forgotten(dir.path(), &store, &devices, refuses).await;
    assert!(devices.bonded(&hardware()).is_none() && devices.now().introduced.is_empty());
    store.stop().await;
}
