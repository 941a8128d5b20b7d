//! Whether the gateway does what it is there for: taking readings over and keeping them.

use std::time::Duration;

use serde::Serialize;

use crate::status::{Admission, Snapshot};

/// A clock that is unknown for longer is a reason, not a note.
const CLOCK_PATIENCE_US: i64 = 3600 * 1_000_000;
/// A loop that has not turned for longer is a reason.
pub(super) const SILENT: Duration = Duration::from_mins(1);

/// The answer of `/healthz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Health {
    /// `ok`, or `failing`.
    pub status: &'static str,
    /// Why it fails: readings are not taken over, cannot be stamped, or are refused by the cloud.
    pub reasons: Vec<String>,
    /// What a person may want to know though it does not fail: the cloud away, no model.
    pub notes: Vec<String>,
}

/// Judges a snapshot. Being offline is no failure: to bridge that is what a gateway is for.
pub(super) fn judge(now: &Snapshot, boottime_us: i64, silent: &[String]) -> Health {
    let mut reasons = Vec::new();
    let mut notes = Vec::new();
    if !now.buffer.trouble.is_empty() {
        reasons.push(format!("the store keeps nothing: {}", now.buffer.trouble));
    }
    match now.buffer.admission {
        Admission::Everything => {}
        Admission::NoWaveforms => notes.push("the store is nearly full: waveforms are not taken".to_owned()),
        Admission::EventsOnly => reasons.push("the store is full: only events are taken".to_owned()),
    }
    if let Some(since) = now.clock.unknown_since_us {
        let unknown = boottime_us.saturating_sub(since);
        if !now.clock.trouble.is_empty() {
            reasons.push(format!("frames wait unstamped. {}", now.clock.trouble));
        } else if unknown > CLOCK_PATIENCE_US {
            reasons.push(format!(
                "the time has been unknown for {} h: frames wait unstamped",
                unknown / 3_600_000_000
            ));
        } else {
            notes.push("the time is not known yet: frames wait unstamped".to_owned());
        }
    }
    if !now.uplink.connected {
        let why = if now.uplink.trouble.is_empty() { "not connected" } else { &now.uplink.trouble };
        notes.push(format!("no way to the cloud: {why}"));
    }
    if now.buffer.parked > 0 {
        reasons.push(format!("{} batches were refused by the cloud and are kept", now.buffer.parked));
    }
    if !silent.is_empty() {
        reasons.push(format!("these loops do not turn: {}", silent.join(", ")));
    }
    notes.extend(now.alerts.iter().map(|(subject, text)| format!("{subject}: {text}")));
    Health { status: if reasons.is_empty() { "ok" } else { "failing" }, reasons, notes }
}
