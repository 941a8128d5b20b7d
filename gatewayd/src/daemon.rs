//! The whole daemon: its parts, put together from a configuration, and stopped in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::topic::GatewayId;
use kinara_traces::Traces;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::align::{https, source};
use crate::config::Config;
use crate::decisions::{Decisions, KeyError, SigningKey};
use crate::desk::{self, Desk};
use crate::devices::Devices;
use crate::hardware::HardwareId;
use crate::infer;
use crate::live::Newest;
use crate::local;
use crate::local::box_page::{self, BoxPage};
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
const MIB: u64 = 1 << 20;

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
    /// The local page.
    #[error(transparent)]
    Local(#[from] local::LocalError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] uplink::tls::TlsError),
    /// The web server that is to tell the time.
    #[error(transparent)]
    WebTime(#[from] https::HttpsError),
}

/// The store's settings from a configuration.
pub fn store_settings(config: &Config) -> store::Settings {
    let (section, pace) = (&config.store, &config.uplink);
    store::Settings {
        dir: config.data_dir.clone(),
        gateway: GatewayId(config.gateway_id),
        group_commit: Duration::from_millis(section.group_commit_ms),
        group_frames: section.group_commit_frames,
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
        ack_timeout: Duration::from_secs_f64(section.ack_timeout_s),
        ack_timeout_most: Duration::from_secs_f64(section.ack_timeout_max_s),
        window_batches: section.window_batches,
        window_bytes: section.window_kib * 1024,
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

/// Runs until `stop`; calls `ready` when the store is open and the local page answers.
pub async fn run(
    config: Config,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    ready: impl FnOnce(Desk),
) -> Result<(), DaemonError> {
    let board = Board::new(Snapshot {
        gateway_id: config.gateway_id.to_string(),
        gateway_name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_us: clock.utc_us(),
        ..Snapshot::default()
    });
    let store = Store::open(store_settings(&config), clock.clone(), board.clone())?;
    let last_saved_us = store.last_saved_us().await?;
    let uplink_settings = uplink_settings(&config);
    if let Some(files) = &uplink_settings.tls {
        // Better now than at every attempt to connect.
        uplink::tls::client(files, clock.clone(), last_saved_us)?;
    }
    let devices = Arc::new(Devices::open(&config.data_dir).map_err(DaemonError::Files)?);
    let book = Arc::new(Book::open(&config.data_dir, devices.clone()).map_err(DaemonError::Files)?);
    let signing = SigningKey::open(&config.data_dir)?;
    let page = local::Server::bind(config.local.listen, &config.data_dir).await?;
    let (sink, frames) = FrameSink::new(config.infer.queue);
    let counts = Arc::new(infer::Counts::default());
    let newest = Newest::default();
    let (known, knows) = watch::channel(None);
    let (bridge_time, told) = watch::channel(None);
    let (identify, _) = broadcast::channel(16);
    let uplinking = CancellationToken::new();
    let mut parts = JoinSet::new();
    let mut last = JoinSet::new();

    let web = web_server(&config, &clock, last_saved_us)?.map(|server| {
        let (web_time, told) = watch::channel(None);
        parts.spawn(server.run(web_time));
        told
    });
    parts.spawn(source::run(
        clock.clone(),
        clock_watch(&config, clock.as_ref()),
        last_saved_us,
        (Some(told), web),
        known,
        board.clone(),
    ));
    parts.spawn(tell_store(store.clone(), knows.clone()));
    if config.infer.enabled {
        let settings = infer::Settings {
            onnxruntime: config.infer.onnxruntime.clone(),
            model: config.infer.model.clone(),
            refractory: Duration::from_secs_f64(config.infer.refractory_min * 60.0),
            ..infer::Settings::in_folder(&config.data_dir)
        };
        parts.spawn(infer::run(settings, frames, store.clone(), board.clone(), counts.clone(), stop.clone()));
    } else {
        drop(frames);
    }
    let gateway = GatewayId(config.gateway_id);
    let decisions =
        Decisions::new(store.clone(), signing, gateway, clock.clone(), knows.clone(), last_saved_us);
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
    parts.spawn(desk.clone().run(stop.clone()));
    parts.spawn(local::bus::run(desk.clone(), clock.clone(), stop.clone()));
    let sources = local::Sources {
        board: board.clone(),
        inference: counts,
        frames: sink.clone(),
        clock: clock.clone(),
    };
    let page_stop = stop.clone();
    parts.spawn(async move {
        if let Err(error) = page.run(sources, page_stop).await {
            tracing::error!(%error, "the local page has ended; the rest goes on");
        }
    });
    match BoxPage::open(box_page_settings(&config), desk.clone(), clock.clone()) {
        Ok(page) => {
            parts.spawn(page.run(stop.clone()));
        }
        Err(error) => {
            tracing::error!(%error, "there is no box page; the rest goes on");
            board.alert("page", Some(error.to_string()));
        }
    }
    let context = session::Context {
        store: store.clone(),
        clock: clock.clone(),
        known: knows.clone(),
        board: board.clone(),
        sink,
        newest: newest.clone(),
        identify: identify.clone(),
        settings: session_settings(&config),
    };
    parts.spawn(update::run(config.data_dir.clone(), board.clone(), links.clone(), stop.clone()));
    let manager = Manager {
        radio,
        devices,
        labels,
        introductions: book.introductions(),
        decisions: decisions.clone(),
        window,
        links,
        context,
        settings: manager_settings(&config),
        adapters,
    };
    let mut radios = JoinSet::new();
    radios.spawn(manager.run(stop.clone()));
    let traces = traces(&config);
    let uplink = uplink::Context {
        settings: uplink_settings,
        store: store.clone(),
        clock,
        known: knows,
        board: board.clone(),
        newest,
        bridge_time: Arc::new(bridge_time),
        identify,
        desk: desk.clone(),
        signing_key: decisions.signing_key(),
        floor_us: last_saved_us,
        traces: traces.clone(),
    };
    last.spawn(uplink::run(uplink, uplinking.clone()));
    ready(desk);

    stop.cancelled().await;
    tracing::info!("stopping");
    // Wearables first, then the cloud, then the disk: what arrives on the way down is still stored.
    let finished = tokio::time::timeout(STOPPING, async {
        while radios.join_next().await.is_some() {}
        uplinking.cancel();
        while last.join_next().await.is_some() {}
    });
    if finished.await.is_err() {
        tracing::warn!("some parts did not stop in time; nothing on disk depends on them");
    }
    parts.shutdown().await;
    store.stop().await;
    if let Some(traces) = traces {
        // Nothing depends on it: within what systemd allows for the stop, and no longer.
        let _ = tokio::task::spawn_blocking(move || traces.close(TELLING)).await;
    }
    Ok(())
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
fn web_server(
    config: &Config,
    clock: &Arc<dyn Clock>,
    floor_us: i64,
) -> Result<Option<https::Server>, https::HttpsError> {
    let section = &config.clock;
    let Some(url) = section.https_url.as_ref().and_then(|url| url.parse().ok()) else { return Ok(None) };
    let settings = https::Settings {
        url,
        ca: section.https_ca.clone(),
        every: Duration::from_secs_f64(section.https_every_min * 60.0),
        retry: Duration::from_secs_f64(section.https_retry_s),
        timeout: Duration::from_secs_f64(section.https_timeout_s),
    };
    https::Server::new(settings, clock.clone(), floor_us).map(Some)
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
        if let Err(error) = store.clock_is(now).await {
            tracing::warn!(%error, "the store did not hear what time it is");
            if matches!(error, StoreError::Stopped) {
                return;
            }
        }
        if known.changed().await.is_err() {
            return;
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
