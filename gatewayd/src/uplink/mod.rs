//! The way to the cloud.
//!
//! The promise: a batch leaves the store when the bridge, and nobody else, has acknowledged it with its name and
//! digest. Until then it is published again and again: at once on every new connection, and on a standing one when no
//! answer has come in time. The broker keeps nothing for us (clean start, no session), and its PUBACK counts for
//! nothing. After any error there is a new client and a new event loop, subscribed anew.

mod connection;
mod flight;
mod messages;
pub mod tls;
mod trace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::topic::GatewayId;
use kinara_traces::Traces;
use rand::Rng;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::align::certificates::Judge;
use crate::align::source::{Known, ToldTime};
use crate::desk::Desk;
use crate::hardware::HardwareId;
use crate::live::Newest;
use crate::status::Board;
use crate::store::Store;
use crate::vitals::Pulse;

use connection::Connection;

/// A pause is cut into pieces of this length, so that the watchdog sees the loop turn.
const BEAT: Duration = Duration::from_secs(1);
/// The subject of what is wrong with the certificates in `[uplink]`.
const CERTIFICATE_ALERT: &str = "certificate";

/// How the uplink works. Built from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who we are.
    pub gateway: GatewayId,
    /// The broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Certificates; `None` for an open connection, which only benches use.
    pub tls: Option<TlsFiles>,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
    /// How long a connection, and a subscription on it, may take.
    pub connect_timeout: Duration,
    /// The longest first pauses after a failure.
    pub backoff: Duration,
    /// The longest pause after many failures.
    pub backoff_most: Duration,
    /// The bridge has this long to acknowledge, at first.
    pub ack_timeout: Duration,
    /// And at most this long.
    pub ack_timeout_most: Duration,
    /// Batches on the way at once.
    pub window_batches: usize,
    /// Bytes on the way at once.
    pub window_bytes: usize,
    /// How often `state` is told when nothing changes.
    pub state_every: Duration,
    /// Between two tellings of a `state` that changes.
    pub state_pause: Duration,
    /// Live values are published whether somebody watches or not.
    pub live_always: bool,
    /// Between two live messages.
    pub live_every: Duration,
}

/// Certificate files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority that the broker's certificate must come from.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What the uplink works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// How it works.
    pub settings: Settings,
    /// The outboxes.
    pub store: Store,
    /// The machine's clock.
    pub clock: Arc<dyn Clock>,
    /// UTC, when it is known.
    pub known: watch::Receiver<Option<Known>>,
    /// The status board.
    pub board: Board,
    /// Live values.
    pub newest: Newest,
    /// Where the bridge's time goes.
    pub bridge_time: Arc<watch::Sender<Option<ToldTime>>>,
    /// Wearables that should show themselves.
    pub identify: broadcast::Sender<HardwareId>,
    /// Who takes configurations.
    pub desk: Desk,
    /// The public half of the key that decisions are signed with.
    pub signing_key: [u8; 32],
    /// By whom the broker's certificate is judged.
    pub judge: Judge,
    /// Where traces of batches go.
    pub traces: Option<Arc<Traces>>,
}

/// Connects and serves, again and again, until `cancel`.
pub async fn run(context: Context, cancel: CancellationToken) {
    let pulse = context.board.vitals().pulse("uplink");
    let mut failures = 0u32;
    while !cancel.is_cancelled() {
        let ended = match Connection::open(&context).await {
            Ok(connection) => {
                failures = 0;
                context.board.alert(CERTIFICATE_ALERT, None);
                context.board.update(|snapshot| {
                    snapshot.uplink.connected = true;
                    snapshot.uplink.trouble.clear();
                    true
                });
                tracing::info!(host = context.settings.host, "connected to the broker");
                connection.serve(&cancel, &pulse).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = context.store.set_online(false).await {
            tracing::error!(%error, "the store has gone");
            return;
        }
        let Err(error) = ended else { return };
        context.board.alert(CERTIFICATE_ALERT, certificate_trouble(&error));
        context.board.update(|snapshot| {
            snapshot.uplink.connected = false;
            snapshot.uplink.trouble = error.to_string();
            true
        });
        let pause = pause(&context.settings, failures);
        tracing::warn!(%error, retry_in = ?pause, "no way to the broker; readings are kept here");
        failures = failures.saturating_add(1);
        if !rest(pause, &pulse, &cancel).await {
            return;
        }
    }
}

/// Pauses, and goes on being alive; false when it is told to end.
async fn rest(pause: Duration, pulse: &Pulse, cancel: &CancellationToken) -> bool {
    let until = tokio::time::Instant::now() + pause;
    loop {
        pulse.beat();
        let now = tokio::time::Instant::now();
        if now >= until {
            return true;
        }
        tokio::select! {
            () = cancel.cancelled() => return false,
            () = tokio::time::sleep((until - now).min(BEAT)) => {}
        }
    }
}

/// What is wrong with this box's own files; they are read again with each attempt.
fn certificate_trouble(error: &UplinkError) -> Option<String> {
    matches!(error, UplinkError::Tls(_)).then(|| error.to_string())
}

/// The first dozen tries follow each other quickly, then the pauses double; all are jittered, so that a clinic's
/// gateways do not come back in step.
fn pause(settings: &Settings, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(20).min(10);
    let most = settings.backoff.saturating_mul(1 << doublings).min(settings.backoff_most);
    most.mul_f64(rand::rng().random_range(0.25..1.0))
}

/// Why there is no connection any more.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The MQTT library says so.
    #[error("{0}")]
    Mqtt(#[from] Box<rumqttc::v5::ConnectionError>),
    /// A request found the client closed.
    #[error("the connection closed")]
    Closed,
    /// Something took too long.
    #[error("the broker does not answer ({0})")]
    Timeout(&'static str),
    /// The broker refused a subscription.
    #[error("the broker refused the subscription; is this gateway enrolled there?")]
    Subscription,
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The store ended.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}
