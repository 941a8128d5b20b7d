//! Under systemd: READY, STATUS and WATCHDOG, and the journal as the log. Elsewhere none of it does anything.
//!
//! The watchdog tells the truth: WATCHDOG=1 goes out only while every loop that the gateway cannot do without has turned
//! lately ([`crate::vitals`]). A daemon whose store hangs is not alive because some other task still answers.

mod journal;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::status::{Board, Snapshot};

/// How often the status line is renewed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Logs to the journal when systemd has connected us with it, else to standard error. `RUST_LOG` filters.
pub fn start_log() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rumqttc=warn,zbus=warn"));
    let log = if std::env::var_os("JOURNAL_STREAM").is_some() {
        journal::Journal::of_systemd().boxed()
    } else {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .boxed()
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}

/// Says READY, then keeps STATUS and WATCHDOG going until `stop`.
pub async fn attend(board: Board, stop: CancellationToken) {
    notify(&[("READY", "1")]);
    let watchdog =
        systemd::daemon::watchdog_enabled(false).ok().filter(|us| *us > 0).map(Duration::from_micros);
    let every = watchdog.map_or(STATUS_EVERY, |limit| (limit / 4).min(STATUS_EVERY));
    let mut hung = false;
    loop {
        // Half of systemd's patience for the loops, the other half for this one.
        let silent = watchdog.map(|limit| board.vitals().silent_for(limit / 2)).unwrap_or_default();
        if silent.is_empty() {
            notify(&[("STATUS", &status_line(&board.now())), ("WATCHDOG", "1")]);
        } else {
            let names = silent.join(", ");
            if !hung {
                tracing::error!(loops = names, "a loop does not turn any more; systemd will start us anew");
            }
            notify(&[("STATUS", &format!("hung: {names}"))]);
        }
        hung = !silent.is_empty();
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(every) => {}
        }
    }
    notify(&[("STOPPING", "1")]);
}

fn status_line(now: &Snapshot) -> String {
    let connected = now.devices.values().filter(|device| device.link.connected()).count();
    format!(
        "{connected} of {} wearables connected, {} frames and {} batches kept, cloud {}",
        now.devices.len(),
        now.buffer.frames,
        now.buffer.batches,
        if now.uplink.connected { "reached" } else { "not reached" },
    )
}

fn notify(state: &[(&str, &str)]) {
    if let Err(error) = systemd::daemon::notify(false, state.iter()) {
        tracing::debug!(%error, "systemd does not listen");
    }
}
