//! bluetoothd, our helper, and who may talk to them.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;

use super::super::client::{CtlError, property};
use super::{Finding, LOOKING, fail, ok, skip, warn};
use crate::local::bus;

const BLUEZ: &str = "org.bluez";
/// The user that is nobody's; no policy of ours lets it through.
const NOBODY: u32 = 65_534;

/// Whether bluetoothd is there and its adapter on.
pub async fn bluetoothd(bus: &zbus::Connection) -> Vec<Finding> {
    if !has_owner(bus, BLUEZ).await {
        let advice = "systemctl restart bluetooth; if it does not stay: journalctl -u bluetooth";
        return vec![fail("bluetoothd", "bluetoothd is not on the bus", advice)];
    }
    let mut found = vec![ok("bluetoothd", "on the bus")];
    let powered = property(bus, BLUEZ, "/org/bluez/hci0", "org.bluez.Adapter1", "Powered");
    match powered.await.map(|powered| bool::try_from(powered).unwrap_or(false)) {
        Ok(true) => {}
        Ok(false) => {
            let advice = "kinara-gatewayd switches it on when it runs; else: bluetoothctl power on";
            found.push(warn("power", "hci0 is off", advice));
        }
        Err(CtlError::NotAllowed) => {
            found.push(skip(
                "power",
                "only root and kinara-gatewayd may ask bluetoothd; run as root to see more",
            ));
        }
        Err(_) => {
            let advice = "plug the adapter out and in; journalctl -u bluetooth";
            found.push(warn("power", "bluetoothd has no hci0", advice));
        }
    }
    found
}

/// Whether a stranger is kept out: tried as a user that no policy lets through, where we may become that.
pub async fn policy(bus: &zbus::Connection) -> Vec<Finding> {
    if !rustix::process::geteuid().is_root() {
        return vec![skip("policy", "whether strangers are kept out can only be tried as root")];
    }
    let mut found = Vec::new();
    for name in [BLUEZ, bus::NAME] {
        found.push(if has_owner(bus, name).await {
            stranger(name).await
        } else {
            skip("policy", format!("{name} is not on the bus"))
        });
    }
    found
}

async fn stranger(name: &str) -> Finding {
    let mut call = Command::new("busctl");
    call.args(["--system", "--timeout=5", "call", name, "/", "org.freedesktop.DBus.Peer", "Ping"])
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(LOOKING, call.output()).await {
        Ok(Ok(done)) if !done.status.success() => {
            let why = String::from_utf8_lossy(&done.stderr).to_lowercase();
            if why.contains("denied") || why.contains("rejected") {
                ok("policy", format!("a stranger may not call {name}"))
            } else {
                skip("policy", format!("trying {name} as a stranger ended otherwise: {}", why.trim()))
            }
        }
        Ok(Ok(_)) => {
            let advice = "install packaging/dbus into /etc/dbus-1/system.d, then: systemctl reload dbus";
            fail("policy", format!("every user may call {name}"), advice)
        }
        _ => skip("policy", "busctl is not there to try it with"),
    }
}

/// Whether the helper answers, and the kernel answers it.
pub async fn linkd(socket: &Path) -> Finding {
    let client = kinara_linkd::client::Client::new(socket);
    match client.status().await {
        Ok((version, adapters)) => {
            ok("linkd", format!("answers; management interface {version}, adapters: {}", adapters.join(", ")))
        }
        Err(error) => fail(
            "linkd",
            error.to_string(),
            "systemctl start kinara-linkd; without it no new bond can be proven, so none is made",
        ),
    }
}

async fn has_owner(bus: &zbus::Connection, name: &str) -> bool {
    let Ok(name) = BusName::try_from(name) else { return false };
    match DBusProxy::new(bus).await {
        Ok(proxy) => proxy.name_has_owner(name).await.unwrap_or(false),
        Err(_) => false,
    }
}
