//! The way to the cloud.
//!
//! The promise: a batch leaves the store when the bridge, and nobody else, has acknowledged it with its name and
//! digest. Until then it is published again and again: at once on every new connection, and on a standing one when no
//! answer has come in time. The broker keeps nothing for us (clean start, no session), and its PUBACK counts for
//! nothing. After any error there is a new connection, subscribed anew.
//!
//! It is made for bad lines: what is on the way is bounded by what the line carries (`flight`), a line that moves is
//! alive (`line`), batches shrink where nothing gets through (`pace`), and no pause is longer than the network's
//! absence (`network`). A line under which the network has changed has to show that it lives (`moved`).

mod connection;
pub mod dial;
mod flight;
pub mod line;
mod messages;
pub mod meter;
mod moved;
mod network;
pub mod pace;
mod queue;
pub mod tls;
mod trace;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::topic::GatewayId;
use kinara_traces::Traces;
use rand::Rng;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::align::certificates::Judge;
use crate::align::source::{Known, ToldTime};
use crate::decisions::Decisions;
use crate::desk::Desk;
use crate::hardware::HardwareId;
use crate::live::Newest;
use crate::status::Board;
use crate::store::Store;
use crate::vitals::Pulse;

use connection::Connection;
use pace::Pace;

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
    /// How long each step to the broker may wait for its answer: TCP, TLS, greeting, subscription.
    pub connect_timeout: Duration,
    /// The longest first pauses after a failure.
    pub backoff: Duration,
    /// The longest pause while network or broker are away.
    pub backoff_most: Duration,
    /// The longest pause while the broker refuses this gateway.
    pub refused_most: Duration,
    /// Nothing may move on a connection for so long, beyond what bytes on the way need.
    pub silence: Duration,
    /// The bridge has this long to acknowledge, at first.
    pub ack_timeout: Duration,
    /// And at most this long.
    pub ack_timeout_most: Duration,
    /// Batches on the way at once.
    pub window_batches: usize,
    /// Bytes on the way at once.
    pub window_bytes: usize,
    /// Frame bytes in a batch, at most.
    pub full_bytes: u64,
    /// Frame bytes of a batch while all is well.
    pub seal_bytes: u64,
    /// The least time between two tries of what a bridge could not read because another one has subscribed.
    pub parked_pause: Duration,
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
    /// Who has the key that decisions are signed with.
    pub decisions: Decisions,
    /// By whom the broker's certificate is judged.
    pub judge: Judge,
    /// Where traces of batches go.
    pub traces: Option<Arc<Traces>>,
}

/// Connects and serves, again and again, until `cancel`.
pub async fn run(context: Context, cancel: CancellationToken) {
    let pulse = context.board.vitals().pulse("uplink");
    let mut failures = 0u32;
    let mut pace = Pace::new(context.settings.full_bytes, context.settings.seal_bytes);
    let mut attempts = Attempts::default();
    while !cancel.is_cancelled() {
        let began = Instant::now();
        let mut tried = Duration::ZERO;
        let ended = match open(&context, &mut pace, &mut attempts, &pulse, &cancel).await {
            Ok(Some(connection)) => {
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
            Ok(None) => continue,
            Err(error) => {
                tried = began.elapsed();
                Err(error)
            }
        };
        // A store that cannot be opened hears this as well: only one that has ended says no.
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
        // An attempt that waited for an answer in vain was a pause already.
        let pause =
            pause(&context.settings, failures, error.is_refusal()).saturating_sub(tried).max(breath());
        tracing::warn!(%error, retry_in = ?pause, "no way to the broker; readings are kept here");
        failures = failures.saturating_add(1);
        if !rest(pause, &pulse, &cancel).await {
            return;
        }
    }
}

/// A connection, or nothing when the network changed on the way to it: what was tried on the old one may still wait
/// for answers that cannot come.
async fn open<'a>(
    context: &'a Context,
    pace: &'a mut Pace,
    attempts: &mut Attempts,
    pulse: &Pulse,
    cancel: &CancellationToken,
) -> Result<Option<Connection<'a>>, UplinkError> {
    let attempt = attempts.next(Connection::open(context, pace), async {
        network::changed().await;
        tokio::time::sleep(after_change()).await;
    });
    tokio::select! {
        opened = attempt => opened.transpose(),
        never = beat(pulse) => match never {},
        () = cancel.cancelled() => Ok(None),
    }
}

/// Attempts to connect, of two in a row at most one is cut short: on a slow line beside an interface that comes and goes
/// there would never be a connection otherwise.
#[derive(Debug, Default)]
struct Attempts {
    cut_short: bool,
}

impl Attempts {
    /// What comes of the next one; nothing when the network changed.
    async fn next<T>(
        &mut self,
        attempt: impl Future<Output = T>,
        changed: impl Future<Output = ()>,
    ) -> Option<T> {
        let to_the_end = std::mem::take(&mut self.cut_short);
        tokio::select! {
            outcome = attempt => Some(outcome),
            () = changed, if !to_the_end => {
                self.cut_short = true;
                None
            }
        }
    }
}

/// What is wrong with this box's own files; they are read again with each attempt.
fn certificate_trouble(error: &UplinkError) -> Option<String> {
    matches!(error, UplinkError::Dial(dial::DialError::Tls(_))).then(|| error.to_string())
}

/// Pauses, and goes on being alive; false when it is told to end. A change of the network ends the pause.
async fn rest(pause: Duration, pulse: &Pulse, cancel: &CancellationToken) -> bool {
    tokio::select! {
        () = cancel.cancelled() => return false,
        () = tokio::time::sleep(pause) => {}
        never = beat(pulse) => match never {},
        () = network::changed() => {
            tracing::info!("the network has changed; trying the broker");
            tokio::time::sleep(after_change()).await;
        }
    }
    true
}

/// Shows that this loop turns while it waits.
async fn beat(pulse: &Pulse) -> Infallible {
    loop {
        pulse.beat();
        tokio::time::sleep(BEAT).await;
    }
}

/// While network or broker are away the pauses stay short: the drain is to begin within seconds of their return. Who
/// is refused does not knock as often. All are jittered, so that a clinic's gateways do not come back in step.
fn pause(settings: &Settings, failures: u32, refused: bool) -> Duration {
    let most = if refused { settings.refused_most } else { settings.backoff_most };
    let longest =
        settings.backoff.saturating_mul(1 << failures.min(10)).min(most.max(Duration::from_millis(1)));
    longest.mul_f64(rand::rng().random_range(0.25..1.0))
}

/// The shortest pause.
fn breath() -> Duration {
    Duration::from_millis(rand::rng().random_range(100..500))
}

/// One switch that comes back is seen by all who hang on it.
fn after_change() -> Duration {
    Duration::from_millis(rand::rng().random_range(0..1_000))
}

/// Why there is no connection any more.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// There is no way there.
    #[error(transparent)]
    Dial(#[from] dial::DialError),
    /// There is no MQTT there, or no more.
    #[error(transparent)]
    Line(#[from] line::LineError),
    /// The broker does not confirm the subscription.
    #[error("the broker does not answer (subscribe)")]
    Timeout,
    /// The broker refused a subscription.
    #[error("the broker refused the subscription; is this gateway enrolled there?")]
    Subscription,
    /// The store ended.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

impl UplinkError {
    /// Whether somebody said no, and not merely nothing: then asking again soon changes nothing.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_refusal(),
            Self::Line(error) => {
                matches!(error, line::LineError::Refused { .. } | line::LineError::Old { .. })
            }
            Self::Subscription => true,
            Self::Timeout | Self::Store(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            gateway: GatewayId(uuid::Uuid::nil()),
            host: String::new(),
            port: 0,
            tls: None,
            keep_alive: Duration::from_mins(1),
            connect_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(2),
            backoff_most: Duration::from_secs(6),
            refused_most: Duration::from_mins(1),
            silence: Duration::from_secs(30),
            ack_timeout: Duration::from_secs(30),
            ack_timeout_most: Duration::from_mins(10),
            window_batches: 16,
            window_bytes: 4 << 20,
            full_bytes: 262_144,
            seal_bytes: 65_536,
            parked_pause: Duration::from_mins(10),
            state_every: Duration::from_secs(15),
            state_pause: Duration::from_secs(2),
            live_always: false,
            live_every: Duration::from_secs(1),
        }
    }

    #[test]
    fn however_long_an_outage_was_the_next_attempt_is_near_and_who_is_refused_waits_longer() {
        let settings = settings();
        for failures in 0..500 {
            assert!(pause(&settings, failures, false) <= Duration::from_secs(6));
            assert!(pause(&settings, failures, true) <= Duration::from_mins(1));
        }
        assert!((0..50).any(|_| pause(&settings, 400, true) > Duration::from_secs(30)));
        assert!(pause(&settings, 0, false) <= Duration::from_secs(2));
    }

    #[tokio::test]
    async fn an_interface_that_comes_and_goes_keeps_a_slow_line_from_connecting_only_once() {
        let mut attempts = Attempts::default();
        let mut made = Vec::new();
        for _ in 0..4 {
            let attempt = tokio::time::sleep(Duration::from_millis(60));
            let changed = tokio::time::sleep(Duration::from_millis(10));
            made.push(attempts.next(attempt, changed).await.is_some());
        }
        assert_eq!(made, [false, true, false, true]);
        // What was cut short elsewhere does not count for the next change.
        let quick = attempts.next(std::future::ready(()), std::future::pending()).await;
        assert!(quick.is_some() && !attempts.cut_short);
    }

    #[test]
    fn a_handshake_that_merely_ends_is_no_refusal_and_one_that_fails_by_certificate_is() {
        let handshake = |kind: std::io::ErrorKind| {
            let (at, source) = ("b:8883".to_owned(), kind.into());
            UplinkError::from(dial::DialError::Handshake { at, source }).is_refusal()
        };
        assert!(!handshake(std::io::ErrorKind::UnexpectedEof));
        assert!(!handshake(std::io::ErrorKind::ConnectionReset));
        assert!(handshake(std::io::ErrorKind::InvalidData));
    }

    #[test]
    fn pauses_are_jittered_over_three_quarters_of_their_length() {
        let all: Vec<_> = (0..200).map(|_| pause(&settings(), 9, false).as_millis()).collect();
        let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(most - least > 3_000, "{least} to {most} ms");
    }
}
