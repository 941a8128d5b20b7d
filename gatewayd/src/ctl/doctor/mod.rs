//! `kinaractl doctor`: what can be wrong with a box, looked at from outside the daemon, and what to do about it.
//!
//! The promise: it changes nothing, works without the daemon, ends within half a minute, and each thing that it finds
//! wrong says what to do. Exit status 1 when something has to be done (`fail`), else 0.

mod bluetooth;
mod machine;
mod network;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::SystemClock;
use serde_json::json;

use super::client::{self, CtlError, GatewayProxy};
use super::show;
use crate::config::{Config, Transport};
use crate::local::bus::wire::Finding;

/// How long any one thing may take to be looked at.
const LOOKING: Duration = Duration::from_secs(8);

/// What is so, and whether it is well.
pub(super) fn ok(check: &str, text: impl Into<String>) -> Finding {
    finding(check, "ok", text.into(), "")
}

/// Works, but somebody should look.
pub(super) fn warn(check: &str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, "warn", text.into(), advice)
}

/// Does not work.
pub(super) fn fail(check: &str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, "fail", text.into(), advice)
}

/// Could not be looked at, or does not apply.
pub(super) fn skip(check: &str, text: impl Into<String>) -> Finding {
    finding(check, "skip", text.into(), "")
}

fn finding(check: &str, state: &str, text: String, advice: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), state: state.to_owned(), text, advice: advice.into() }
}

/// Looks at everything and prints what it found.
pub async fn run(path: &Path, json: bool) -> ExitCode {
    let findings = examine(path).await;
    let well = findings.iter().all(|found| found.state != "fail");
    show::result(json, &json!({ "ok": well, "findings": findings }), |_| show::findings(&findings));
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn examine(path: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let config = match Config::read(path) {
        Ok(config) => {
            found.push(ok("config", format!("{} is in order", path.display())));
            Some(config)
        }
        Err(error) => {
            let advice = "correct it, or run kinaractl as root if it cannot be read";
            found.push(fail("config", error.to_string(), advice));
            None
        }
    };
    let bus = match client::bus(LOOKING).await {
        Ok(bus) => Some(bus),
        Err(error) => {
            found.push(fail("bus", error.to_string(), "systemctl start dbus"));
            None
        }
    };
    found.extend(daemon(bus.is_some()).await);
    if config.as_ref().is_none_or(|config| config.radio.transport != Transport::Virtual) {
        found.push(machine::adapter(Path::new("/sys/class/bluetooth")));
        if let Some(bus) = &bus {
            found.extend(bluetooth::bluetoothd(bus).await);
            found.extend(bluetooth::policy(bus).await);
        }
        let socket = config.as_ref().map(|config| config.radio.linkd_socket.clone());
        let socket = socket.unwrap_or_else(|| kinara_linkd::client::SOCKET.into());
        found.push(bluetooth::linkd(&socket).await);
    } else {
        found.push(skip("adapter", "the configuration has the virtual radio"));
    }
    let trusted = config.as_ref().is_some_and(|config| config.clock.trust_system);
    found.push(machine::clock(bus.as_ref(), &SystemClock, trusted).await);
    if let Some(config) = &config {
        found.push(machine::disk(config));
        found.extend(network::certificates(config, &SystemClock));
        found.push(network::broker(config, Arc::new(SystemClock)).await);
    }
    found
}

/// The daemon's own word, and what it alone can see.
async fn daemon(bus: bool) -> Vec<Finding> {
    if !bus {
        return vec![skip("gatewayd", "cannot be asked without the bus")];
    }
    let asked = async {
        let gateway: GatewayProxy<'_> = client::gateway(LOOKING).await?;
        Ok::<_, CtlError>((gateway.status().await?, gateway.checks().await?))
    };
    match asked.await {
        Ok((status, checks)) => {
            let text = format!(
                "version {} runs, {} of {} devices connected, cloud {}",
                status.version,
                status.connected,
                status.devices,
                if status.cloud_connected { "reached" } else { "not reached" }
            );
            [vec![ok("gatewayd", text)], checks].concat()
        }
        Err(error) => {
            let advice = match &error {
                CtlError::NotRunning => {
                    "systemctl start kinara-gatewayd; if it does not stay, kinaractl logs --warnings"
                }
                CtlError::NotAllowed => "run kinaractl doctor as root",
                _ => "kinaractl logs --warnings",
            };
            vec![fail("gatewayd", error.to_string(), advice)]
        }
    }
}
