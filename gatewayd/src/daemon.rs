//! The whole daemon: its parts, put together from a configuration, and stopped in order.
//!
//! The promise: the store and the radio start first, and nothing that they do not need keeps them from it: a certificate that
//! cannot be read or a port that is taken is an alert, and is tried again. A part that ends unasked or panics ends
//! the daemon, in order and with an error, and systemd starts it anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kinara_clock::Clock;
use kinara_protocol::topic::GatewayId;
use kinara_traces::Traces;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::align::floor::Floor;
use crate::align::{certificates, https, source};
use crate::card;
use crate::config::Config;
use crate::decisions::{Decisions, KEEP_EVERY, KeyError, SigningKey};
use crate::desk::{self, Desk};
use crate::devices::Devices;
use crate::files;
use crate::hardware::HardwareId;
use crate::infer;
use crate::live::Newest;
use crate::local;
use crate::local::box_page;
use crate::pipeline::FrameSink;
use crate::radio::bluez::{self, BluezRadio};
use crate::radio::links::Links;
use crate::radio::manager::{self, Adapters, Manager};
use crate::radio::session;
use crate::radio::update;
use crate::radio::virtual_radio::VirtualRadio;
use crate::radio::window::PairingWindow;
use crate::radio::{Bonds, Radio};
use crate::roster::Book;
use crate::status::{Board, Snapshot};
use crate::store::{self, Store, StoreError};
use crate::uplink;

/// How long the parts may take to stop.
const STOPPING: Duration = Duration::from_secs(10);
/// How long telling the last spans may take on the way down.
const TELLING: Duration = Duration::from_secs(3);
/// How long until the store is told the time again, after it did not take it.
const TELL_AGAIN: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
const GB: u64 = 1_000_000_000;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The files with devices and people.
    #[error("what this box knows of devices and people cannot be read: {0}; check the data folder")]
    Files(std::io::Error),
    /// The box's own key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A part that should go on for as long as the daemon does.
    #[error(
        "{0} ended; the daemon is started anew. If this comes again, send its log: kinaractl logs --warnings"
    )]
    Ended(&'static str),
}

/// Tasks that go on until the daemon stops, by name.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<tokio::task::Id, &'static str>,
}

impl Parts {
    fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(part);
        self.names.insert(task.id(), name);
    }

    /// Returns when one of them has ended, with its name; never while all go on.
    async fn one_ended(&mut self) -> &'static str {
        let (id, panicked) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, false),
            Some(Err(error)) => (error.id(), error.is_panic()),
            None => std::future::pending().await,
        };
        let name = self.names.get(&id).copied().unwrap_or("a part");
        tracing::error!(part = name, panicked, "a part of the daemon has ended");
        name
    }

    /// Waits until all have ended.
    async fn all_ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The store's settings from a configuration.
pub fn store_settings(config: &Config) -> store::Settings {
    let (section, pace) = (&config.store, &config.uplink);
    store::Settings {
        dir: config.data_dir.clone(),
        gateway: GatewayId(config.gateway_id),
        group_commit: Duration::from_millis(section.group_commit_ms),
        group_frames: section.group_commit_frames,
        wearable_commit: Duration::from_secs_f64(section.wearable_commit_s),
        queue: 256,
        soft_limit: section.soft_limit_mib * MIB,
        hard_limit: section.hard_limit_mib * MIB,
        reserve: section.reserve_mib * MIB,
        seal_after: Duration::from_secs_f64(pace.seal_after_s),
        seal_bytes: pace.seal_bytes,
        full_bytes: pace.full_bytes,
        seal_ahead: pace.window_batches as u64,
        unstamped_wait: Duration::from_secs_f64(config.clock.unstamped_wait_s),
        check_below: section.check_below_mib * MIB,
    }
}

/// The uplink's settings from a configuration.
pub fn uplink_settings(config: &Config) -> uplink::Settings {
    let section = &config.uplink;
    let tls = match (&section.ca, &section.cert, &section.key) {
        (Some(ca), Some(cert), Some(key)) if section.tls => {
            Some(uplink::TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
        }
        _ => None,
    };
    uplink::Settings {
        gateway: GatewayId(config.gateway_id),
        host: section.host.clone(),
        port: section.port,
        tls,
        keep_alive: Duration::from_secs(section.keep_alive_s),
        connect_timeout: Duration::from_secs_f64(section.connect_timeout_s),
        backoff: Duration::from_millis(section.backoff_ms),
        backoff_most: Duration::from_secs_f64(section.backoff_max_s),
        refused_most: Duration::from_secs_f64(section.refused_max_s),
        silence: Duration::from_secs_f64(section.silence_s),
        ack_timeout: Duration::from_secs_f64(section.ack_timeout_s),
        ack_timeout_most: Duration::from_secs_f64(section.ack_timeout_max_s),
        window_batches: section.window_batches,
        window_bytes: section.window_kib * 1024,
        full_bytes: section.full_bytes,
        seal_bytes: section.seal_bytes,
        parked_pause: Duration::from_secs_f64(section.parked_pause_s),
        state_every: Duration::from_secs_f64(section.state_every_s),
        state_pause: Duration::from_secs(2),
        live_always: config.live.always,
        live_every: Duration::from_millis(config.live.every_ms),
    }
}

fn box_page_settings(config: &Config) -> box_page::Settings {
    box_page::Settings {
        listen: config.local.page_listen,
        idle_logout: Duration::from_secs_f64(config.local.idle_logout_min * 60.0),
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
    }
}

fn session_settings(config: &Config) -> session::Settings {
    let radio = &config.radio;
    session::Settings {
        request_timeout: Duration::from_secs_f64(radio.request_timeout_s),
        probes: radio.sync_probes,
        resync: Duration::from_secs_f64(radio.resync_min * 60.0),
        resend_after: Duration::from_millis(radio.resend_after_ms),
        silence: Duration::from_secs_f64(radio.silence_s),
        window: radio.window,
        weak_rssi_dbm: radio.weak_rssi_dbm,
        weak_after: Duration::from_secs_f64(radio.weak_after_s),
        store_retry: Duration::from_secs(1),
    }
}

fn manager_settings(config: &Config) -> manager::Settings {
    let radio = &config.radio;
    manager::Settings {
        slots: radio.slots,
        connecting: radio.connecting,
        turn: Duration::from_secs_f64(radio.turn_s),
        backoff: Duration::from_millis(radio.backoff_ms),
        backoff_most: Duration::from_secs_f64(radio.backoff_max_s),
        adapters_every: Duration::from_secs(5),
    }
}

fn radio(config: &Config, bonds: &Arc<Bonds>) -> Arc<dyn Radio> {
    let section = &config.radio;
    match section.transport {
        crate::config::Transport::Virtual => Arc::new(VirtualRadio {
            air_dir: section.air_dir.clone(),
            name: config.name.clone(),
            slots: section.slots,
            scan_every: Duration::from_millis(section.scan_every_ms),
            scan_timeout: Duration::from_millis(section.scan_timeout_ms),
            timeout: Duration::from_secs_f64(section.request_timeout_s),
        }),
        crate::config::Transport::Bluez => {
            Arc::new(BluezRadio::new(bluez::Settings::from(section), bonds.clone()))
        }
    }
}

/// Runs until `stop`; calls `ready` when the store is open and the radio has been started. Boxed so that all of it is
/// compiled here, and not again in each program that runs one.
pub fn run(
    config: Config,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    ready: impl FnOnce(Desk) + Send + 'static,
) -> BoxFuture<'static, Result<(), DaemonError>> {
    boxed(config, clock, stop, Box::new(ready))
}

type Ready = Box<dyn FnOnce(Desk) + Send>;

fn boxed(
    config: Config,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    ready: Ready,
) -> BoxFuture<'static, Result<(), DaemonError>> {
    Box::pin(run_all(config, clock, stop, ready))
}

async fn run_all(
    config: Config,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    ready: Ready,
) -> Result<(), DaemonError> {
    let endurance_bytes = config.store.card_endurance_gb.saturating_mul(GB);
    let board = Board::new(Snapshot {
        gateway_id: config.gateway_id.to_string(),
        gateway_name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_us: clock.utc_us(),
        card: card::Card { endurance_bytes, ..card::Card::default() },
        ..Snapshot::default()
    });
    let store = Store::open(store_settings(&config), clock.clone(), board.clone())?;
    // Of a store that cannot be opened yet nothing is known.
    let kept_floor = store.floor().await.unwrap_or_else(|_| Floor::new(clock.boottime_us()));
    let devices = Arc::new(Devices::open(&config.data_dir).map_err(DaemonError::Files)?);
    let book = Arc::new(Book::open(&config.data_dir, devices.clone()).map_err(DaemonError::Files)?);
    let signing = SigningKey::open(&config.data_dir)?;
    let (sink, frames) = FrameSink::new(config.infer.queue);
    let counts = Arc::new(infer::Counts::default());
    let newest = Newest::default();
    let (known, knows) = watch::channel(None);
    let (floor, floors) = watch::channel(kept_floor);
    let (bridge_time, told) = watch::channel(None);
    let (identify, _) = broadcast::channel(16);
    let judge = certificates::Judge::new(clock.clone(), knows.clone(), floors.clone(), board.clone());
    let uplinking = CancellationToken::new();
    let (mut radios, mut uplinks, mut parts) = (Parts::default(), Parts::default(), Parts::default());

    let gateway = GatewayId(config.gateway_id);
    let decisions =
        Decisions::new(store.clone(), signing, gateway, clock.clone(), knows.clone(), kept_floor.at_us);
    parts.spawn("the box's key", decisions.clone().keep_key(KEEP_EVERY, board.clone()));
    let labels = wearables(&config);
    let radio = radio(&config, &Arc::new(Bonds::new(devices.clone())));
    let (window, links) = (PairingWindow::new(clock.clone()), Links::default());
    let adapters = Arc::new(Adapters::default());
    let desk = Desk::new(desk::Parts {
        board: board.clone(),
        store: store.clone(),
        devices: devices.clone(),
        labelled: labels.keys().cloned().collect(),
        book: book.clone(),
        decisions: decisions.clone(),
        window: window.clone(),
        links: links.clone(),
        radio: radio.clone(),
        adapters: adapters.clone(),
    });
    let context = session::Context {
        store: store.clone(),
        clock: clock.clone(),
        known: knows.clone(),
        board: board.clone(),
        sink: sink.clone(),
        newest: newest.clone(),
        identify: identify.clone(),
        settings: session_settings(&config),
    };
    let manager = Manager {
        radio,
        devices,
        labels,
        introductions: book.introductions(),
        decisions: decisions.clone(),
        window,
        links: links.clone(),
        context,
        settings: manager_settings(&config),
        nonces: Arc::default(),
        adapters,
    };
    radios.spawn("the radio", manager.run(stop.clone()));

    let (forget, forgets) = mpsc::channel(1);
    let web = web_server(&config).map(|settings| {
        let (web_time, told) = watch::channel(None);
        // A judge of its own: what it remembers of the server that was met is this one's.
        let judge = certificates::Judge::new(clock.clone(), knows.clone(), floors.clone(), board.clone());
        parts.spawn("the web's time", https::run(settings, clock.clone(), judge, board.clone(), web_time));
        told
    });
    parts.spawn(
        "the clock",
        source::run(
            clock.clone(),
            clock_watch(&config, clock.as_ref()),
            source::Inputs { bridge: Some(told), https: web, forget: forgets },
            source::Outputs { known, floor, board: board.clone() },
        ),
    );
    parts.spawn("the store's clock", tell_store(store.clone(), knows.clone()));
    parts.spawn("the floor of the clock", keep_floor(store.clone(), floors));
    if config.infer.enabled {
        let settings = infer::Settings {
            onnxruntime: config.infer.onnxruntime.clone(),
            library_digest: config.infer.onnxruntime_sha256,
            model: config.infer.model.clone(),
            maker: config.infer.maker,
            refractory: Duration::from_secs_f64(config.infer.refractory_min * 60.0),
            ..infer::Settings::in_folder(&config.data_dir)
        };
        let inference =
            infer::run(settings, frames, store.clone(), board.clone(), counts.clone(), stop.clone());
        parts.spawn("inference", inference);
    } else {
        drop(frames);
    }
    parts.spawn("the card", card::run(config.data_dir.clone(), endurance_bytes, board.clone(), stop.clone()));
    parts.spawn("the desk", desk.clone().run(stop.clone()));
    let (page, opened) = watch::channel(None);
    parts.spawn(
        "the box's page",
        box_page::run(box_page_settings(&config), desk.clone(), clock.clone(), page, stop.clone()),
    );
    files::tell_broken(&config.data_dir, &board);
    let times = local::bus::Timekeeping { forget, page: opened };
    parts.spawn("the bus", local::bus::run(desk.clone(), clock.clone(), times, stop.clone()));
    let sources =
        local::Sources { board: board.clone(), inference: counts, frames: sink, clock: clock.clone() };
    parts.spawn(
        "the local page",
        local::run(config.local.listen, config.data_dir.clone(), sources, stop.clone()),
    );
    parts.spawn("firmware updates", update::run(config.data_dir.clone(), board.clone(), links, stop.clone()));
    let traces = traces(&config);
    let uplink = uplink::Context {
        settings: uplink_settings(&config),
        store: store.clone(),
        clock,
        known: knows,
        board: board.clone(),
        newest,
        bridge_time: Arc::new(bridge_time),
        identify,
        desk: desk.clone(),
        decisions: decisions.clone(),
        judge,
        traces: traces.clone(),
    };
    uplinks.spawn("the uplink", uplink::run(uplink, uplinking.clone()));
    ready(desk);

    let ended = tokio::select! {
        // In this order: at an ordinary stop parts end as well, and that is no error.
        biased;
        () = stop.cancelled() => None,
        name = radios.one_ended() => Some(name),
        name = uplinks.one_ended() => Some(name),
        name = parts.one_ended() => Some(name),
    }
    // A part that was told to stop may be seen to end first.
    .filter(|_| !stop.is_cancelled());
    tracing::info!("stopping");
    stop.cancel();
    // Wearables first, then the cloud, then the disk: what arrives on the way down is still stored.
    let finished = tokio::time::timeout(STOPPING, async {
        radios.all_ended().await;
        uplinking.cancel();
        uplinks.all_ended().await;
    });
    if finished.await.is_err() {
        tracing::warn!("some parts did not stop in time; nothing on disk depends on them");
    }
    parts.tasks.shutdown().await;
    store.stop().await;
    if let Some(traces) = traces {
        // Nothing depends on it: within what systemd allows for the stop, and no longer.
        let _ = tokio::task::spawn_blocking(move || traces.close(TELLING)).await;
    }
    ended.map_or(Ok(()), |name| Err(DaemonError::Ended(name)))
}

/// Traces, if a collector is configured. That none can be told is no reason to take no readings.
fn traces(config: &Config) -> Option<Arc<Traces>> {
    let id = config.gateway_id.to_string();
    match Traces::open(&config.traces, "kinara-gatewayd", env!("CARGO_PKG_VERSION"), id) {
        Ok(traces) => traces.map(Arc::new),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%error, source, "batches are not traced");
            None
        }
    }
}

/// The web server that tells the time, if one is configured.
fn web_server(config: &Config) -> Option<https::Settings> {
    let section = &config.clock;
    Some(https::Settings {
        url: section.https_url.as_ref()?.parse().ok()?,
        ca: section.https_ca.clone(),
        every: Duration::from_secs_f64(section.https_every_min * 60.0),
        retry: Duration::from_secs_f64(section.https_retry_s),
        timeout: Duration::from_secs_f64(section.https_timeout_s),
    })
}

fn clock_watch(config: &Config, clock: &dyn Clock) -> source::Watch {
    let section = &config.clock;
    source::Watch {
        every: Duration::from_millis(section.poll_ms),
        timeout: Duration::from_millis(section.timedate_timeout_ms),
        trust_system: section.trust_system,
        // NTP keeps the machine's clock, not a scaled one, nor one that a test has set wrong.
        ask_machine: (clock.rate() - 1.0).abs() < f64::EPSILON && std::env::var_os("KINARA_CLOCK").is_none(),
        alert_after: Duration::from_secs_f64(section.alert_after_h * 3600.0),
    }
}

/// Tells the store what the clock is, whenever that changes.
async fn tell_store(store: Store, mut known: watch::Receiver<Option<source::Known>>) {
    loop {
        let now = *known.borrow_and_update();
        match store.clock_is(now).await {
            Ok(()) => {}
            Err(StoreError::Stopped) => return,
            Err(error) => {
                tracing::warn!(%error, "the store did not hear what time it is; trying again");
                tokio::time::sleep(TELL_AGAIN).await;
                continue;
            }
        }
        if known.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps the floor, whenever it moves.
async fn keep_floor(store: Store, mut floor: watch::Receiver<Floor>) {
    while floor.changed().await.is_ok() {
        let now = *floor.borrow_and_update();
        if let Err(error) = store.keep_floor(now).await {
            tracing::warn!(%error, "the last time known was not kept; it is kept with the next");
        }
    }
}

fn wearables(config: &Config) -> HashMap<HardwareId, kinara_protocol::label::LabelSecret> {
    config
        .wearables
        .iter()
        .filter_map(|wearable| {
            Some((HardwareId::parse(&wearable.hardware_id).ok()?, wearable.label_secret.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_or_ends_is_named_and_those_that_go_on_are_not() {
        let mut parts = Parts::default();
        parts.spawn("what goes on", std::future::pending());
        parts.spawn("what panics", async { panic!("as planned") });
        assert_eq!(parts.one_ended().await, "what panics");
        parts.spawn("what ends", std::future::ready(()));
        assert_eq!(parts.one_ended().await, "what ends");
        let still = tokio::time::timeout(Duration::from_millis(50), parts.one_ended()).await;
        assert!(still.is_err(), "nobody else has ended");
        let mut none = Parts::default();
        assert!(tokio::time::timeout(Duration::from_millis(50), none.one_ended()).await.is_err());
    }
}
