//! Under systemd: READY, STATUS and WATCHDOG, and the journal as the log. Elsewhere none of it does anything.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::status::Board;

/// How often the status line is renewed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Logs to the journal when systemd has connected us with it, else to standard error. `RUST_LOG` filters.
pub fn start_log() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rumqttc=warn,zbus=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().with_level(false).with_ansi(false).with_writer(Journal).init();
    } else {
        builder.with_ansi(false).with_writer(std::io::stderr).init();
    }
}

/// Writes each event as one entry with its priority.
#[derive(Debug, Clone, Copy)]
struct Journal;

struct Entry {
    priority: u32,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Entry;

    fn make_writer(&'a self) -> Entry {
        Entry { priority: 6, text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Entry {
        let priority = match *meta.level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            _ => 7,
        };
        Entry { priority, text: Vec::new() }
    }
}

impl std::io::Write for Entry {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        // A journal that does not take it: there is nobody left to tell.
        let _ = systemd::journal::print(self.priority, text.trim_end());
    }
}

/// Says READY, then keeps STATUS and WATCHDOG going until `stop`.
pub async fn attend(board: Board, stop: CancellationToken) {
    notify(&[("READY", "1")]);
    let watchdog =
        systemd::daemon::watchdog_enabled(false).ok().filter(|us| *us > 0).map(Duration::from_micros);
    let every = watchdog.map_or(STATUS_EVERY, |limit| (limit / 3).min(STATUS_EVERY));
    loop {
        let now = board.now();
        let connected = now.devices.values().filter(|device| device.link.connected()).count();
        let status = format!(
            "{connected} of {} wearables connected, {} frames and {} batches kept, cloud {}",
            now.devices.len(),
            now.buffer.frames,
            now.buffer.batches,
            if now.uplink.connected { "reached" } else { "not reached" },
        );
        notify(&[("STATUS", &status), ("WATCHDOG", "1")]);
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(every) => {}
        }
    }
    notify(&[("STOPPING", "1")]);
}

fn notify(state: &[(&str, &str)]) {
    if let Err(error) = systemd::daemon::notify(false, state.iter()) {
        tracing::debug!(%error, "systemd does not listen");
    }
}
