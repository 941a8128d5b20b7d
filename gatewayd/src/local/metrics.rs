//! The status as Prometheus text.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::infer::Counts;
use crate::status::{Admission, Snapshot};

/// One family after the other, each with its help and type.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP kinara_gateway_{name} {help}\n# TYPE kinara_gateway_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "kinara_gateway_{name}");
        for (n, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if n == 0 { '{' } else { ',' }, escaped(text));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }
}

/// The whole answer of `/metrics`.
pub(super) fn render(now: &Snapshot, inference: &Counts, missed: u64) -> String {
    let mut text = Text::default();
    text.family("build_info", "gauge", "1, with the program's version.");
    text.sample("build_info", &[("version", &now.version)], 1);
    text.gauge("start_time_seconds", "When the daemon started, Unix time.", seconds(now.started_us));
    if let Some(bytes) = resident_bytes() {
        text.gauge("resident_memory_bytes", "Memory of the daemon in RAM.", bytes);
    }
    store(&mut text, now);
    way_to_the_cloud(&mut text, now);
    devices(&mut text, now);
    look(&mut text, inference, missed);
    text.0
}

fn store(text: &mut Text, now: &Snapshot) {
    let buffer = &now.buffer;
    text.gauge("unsealed_frames", "Frames on disk that are in no batch yet.", buffer.frames);
    text.gauge("waiting_batches", "Batches on disk that the cloud has not acknowledged.", buffer.batches);
    text.gauge("waiting_events", "Events on disk that the cloud has not acknowledged.", buffer.events);
    text.gauge("parked_batches", "Batches that the cloud refused to read.", buffer.parked);
    text.gauge("quarantined_frames", "Frames whose identity another content has.", buffer.quarantined);
    text.gauge("buffer_bytes", "What all of it takes on disk.", buffer.bytes);
    text.gauge("disk_free_bytes", "Free on the disk.", buffer.disk_free_bytes);
    text.gauge(
        "oldest_frame_time_seconds",
        "When the oldest of it came, Unix time; 0: none.",
        seconds(buffer.oldest_us),
    );
    let admission = match buffer.admission {
        Admission::Everything => 0,
        Admission::NoWaveforms => 1,
        Admission::EventsOnly => 2,
    };
    text.gauge("admission", "0: everything is taken, 1: no waveforms, 2: events only.", admission);
}

fn way_to_the_cloud(text: &mut Text, now: &Snapshot) {
    text.family("clock_known", "gauge", "1 when the time is known, with its source.");
    let known = u8::from(now.clock.unknown_since_us.is_none());
    text.sample("clock_known", &[("source", now.clock.source.as_str())], known);
    let uncertainty = now.clock.uncertainty_us as f64 / 1e6;
    text.gauge("clock_uncertainty_seconds", "Uncertainty of the time.", uncertainty);
    text.gauge("uplink_connected", "1 when connected to the broker.", u8::from(now.uplink.connected));
    let acknowledged = now.uplink.acknowledged_batches;
    text.counter("acknowledged_batches_total", "Batches the cloud has acknowledged.", acknowledged);
    text.counter("republished_batches_total", "Batches published again.", now.uplink.republished);
    text.gauge(
        "last_ack_time_seconds",
        "Last acknowledgement, Unix time; 0: none.",
        seconds(now.uplink.last_ack_us),
    );
    text.gauge("alerts", "Alerts on the status page.", now.alerts.len());
}

fn devices(text: &mut Text, now: &Snapshot) {
    type Value = fn(&crate::status::Device) -> Option<f64>;
    let families: [(&str, &str, &str, Value); 8] = [
        ("device_connected", "gauge", "1 when there is a link.", |d| {
            Some(f64::from(u8::from(d.link.connected())))
        }),
        ("device_battery_percent", "gauge", "Battery.", |d| d.battery_percent.map(f64::from)),
        ("device_worn", "gauge", "1 when worn.", |d| d.worn.map(|w| f64::from(u8::from(w)))),
        ("device_rssi_dbm", "gauge", "Signal strength.", |d| d.rssi_dbm.map(f64::from)),
        ("device_behind_frames", "gauge", "Frames still on the wearable.", |d| Some(d.behind_frames as f64)),
        ("device_buffered_frames", "gauge", "Frames on our disk, not in the cloud.", |d| {
            Some(d.buffered_frames as f64)
        }),
        ("device_received_frames_total", "counter", "Frames received, doubles included.", |d| {
            Some(d.received_frames as f64)
        }),
        ("device_last_frame_time_seconds", "gauge", "Last frame, Unix time; 0: none.", |d| {
            Some(d.last_frame_us as f64 / 1e6)
        }),
    ];
    for (name, kind, help, value) in families {
        text.family(name, kind, help);
        for (hardware, device) in &now.devices {
            if let Some(value) = value(device) {
                text.sample(name, &[("device", hardware.as_str())], value);
            }
        }
    }
}

fn look(text: &mut Text, counts: &Counts, missed: u64) {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    text.gauge("model_loaded", "1 when a model is loaded; 0: the rule alone runs.", of(&counts.model_loaded));
    text.counter("inference_frames_total", "Frames looked at.", of(&counts.frames));
    text.counter("inference_missed_frames_total", "Stored frames that were not looked at.", missed);
    text.counter(
        "inference_cold_frames_total",
        "Frames without a full window behind them.",
        of(&counts.cold_frames),
    );
    text.family("inference_windows_total", "counter", "Windows, by what became of them.");
    for (outcome, counter) in [
        ("judged", &counts.windows),
        ("gated", &counts.gated),
        ("scored", &counts.scored),
        ("not_enough_signal", &counts.unscored),
        ("failed", &counts.failures),
    ] {
        text.sample("inference_windows_total", &[("outcome", outcome)], of(counter));
    }
    text.family("inference_events_total", "counter", "Events, by who made them.");
    text.sample("inference_events_total", &[("producer", "rule")], of(&counts.rule_events));
    text.sample("inference_events_total", &[("producer", "model")], of(&counts.model_events));
}

fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
