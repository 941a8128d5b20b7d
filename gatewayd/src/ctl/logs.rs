//! `journalctl`, with the fields that the daemon logs and a bound.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::Logs;
use super::client::CtlError;
use crate::hardware::HardwareId;

/// How long journalctl may take on a slow card.
const READING: Duration = Duration::from_mins(1);
const UNITS: [&str; 2] = ["kinara-gatewayd", "kinara-linkd"];

/// Prints what was logged. With `--json`, one JSON object a line, as journald exports them.
pub async fn run(wanted: &Logs, json: bool) -> Result<ExitCode, CtlError> {
    let mut journalctl = Command::new("journalctl");
    journalctl.args(arguments(wanted, json)?).stdin(Stdio::null()).kill_on_drop(true);
    let mut child = journalctl.spawn().map_err(|error| {
        CtlError::Other(format!("cannot run journalctl: {error}; this machine may keep its log elsewhere"))
    })?;
    match timeout(READING, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(Ok(_)) => Err(CtlError::Other(
            "journalctl failed; run as root, or add the user to group systemd-journal".to_owned(),
        )),
        Ok(Err(error)) => Err(CtlError::Other(format!("journalctl: {error}"))),
        Err(_) => {
            Err(CtlError::Other("journalctl takes too long; ask for fewer lines, or --since".to_owned()))
        }
    }
}

fn arguments(wanted: &Logs, json: bool) -> Result<Vec<String>, CtlError> {
    let mut arguments: Vec<String> = ["--no-pager", "--quiet"].map(str::to_owned).to_vec();
    arguments.push(format!("--lines={}", wanted.lines));
    arguments.push(format!("--output={}", if json { "json" } else { "short-iso" }));
    arguments.extend(UNITS.map(|unit| format!("--unit={unit}")));
    if let Some(since) = &wanted.since {
        arguments.push(format!("--since={since}"));
    }
    if wanted.warnings {
        arguments.push("--priority=warning".to_owned());
    }
    if let Some(hardware) = &wanted.hardware {
        let hardware = HardwareId::parse(hardware).map_err(|bad| CtlError::Other(bad.to_string()))?;
        arguments.push(format!("HARDWARE={hardware}"));
    }
    if let Some(adapter) = &wanted.adapter {
        if adapter.is_empty() || !adapter.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(CtlError::Other(
                "an adapter is called hci and a number, for example hci0".to_owned(),
            ));
        }
        arguments.push(format!("ADAPTER={adapter}"));
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_becomes_a_field_of_the_journal_and_nothing_else_gets_through() {
        let wanted = |hardware: &str| Logs {
            hardware: Some(hardware.to_owned()),
            adapter: Some("hci0".to_owned()),
            lines: 50,
            since: None,
            warnings: true,
        };
        let given = arguments(&wanted("kinara:00000000000000AB"), true).unwrap();
        for argument in ["--lines=50", "--output=json", "HARDWARE=kinara:00000000000000ab", "ADAPTER=hci0"] {
            assert!(given.iter().any(|given| given == argument), "{argument} in {given:?}");
        }
        assert!(arguments(&wanted("--rotate"), false).is_err());
    }
}
