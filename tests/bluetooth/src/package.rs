//! The box's packaging in a machine, put where `packaging/README.md` says: what is tested is what will be installed.

use crate::bed::start_bluetoothd;
use crate::{Boot, Hand, Result, file};
use std::path::Path;
use std::time::Duration;

/// Files of `packaging/` and the folders in a box that they go to.
const FILES: [(&str, &str); 9] = [
    ("sysusers/kinara.conf", "/usr/lib/sysusers.d"),
    ("tmpfiles/kinara.conf", "/usr/lib/tmpfiles.d"),
    ("systemd/kinara-gatewayd.service", "/usr/lib/systemd/system"),
    ("systemd/kinara-linkd.service", "/usr/lib/systemd/system"),
    ("systemd/kinara-linkd.socket", "/usr/lib/systemd/system"),
    ("systemd/bluetooth.service.d/kinara.conf", "/etc/systemd/system/bluetooth.service.d"),
    ("bluetooth/main.conf", "/etc/kinara-bluetooth"),
    ("dbus/org.kinara.Gateway1.conf", "/etc/dbus-1/system.d"),
    ("dbus/kinara-bluez.conf", "/etc/dbus-1/system.d"),
];
/// What outlives a power cut: the gateway's data and bluetoothd's bonds, on the data disk.
const KEPT: &str = "for kept in gatewayd:/var/lib/kinara-gatewayd bluetooth:/var/lib/bluetooth; do
    from=/data/${kept%%:*}; to=${kept#*:}
    mkdir -p -m 700 $from $to; mountpoint -q $to || mount --bind $from $to
done
chown kinara:kinara /var/lib/kinara-gatewayd";
/// Where `kinara-gatewayd` reads its configuration.
pub const CONFIGURATION: &str = "/etc/kinara/gatewayd.toml";
/// Where it keeps its data.
pub const DATA: &str = "/var/lib/kinara-gatewayd";
const SYSTEMD_PATIENCE: Duration = Duration::from_mins(2);

/// Puts everything in its place; D-Bus and bluetoothd run with it afterwards.
pub fn install(hand: &Hand, boot: Boot) -> Result<()> {
    let packaging = kinara_clinic::clinic::root().join("packaging");
    for (from, folder) in FILES {
        let path = packaging.join(from);
        let text = std::fs::read_to_string(&path).map_err(file(&path))?;
        let name = Path::new(from).file_name().unwrap_or_default().to_string_lossy();
        hand.write(&format!("{folder}/{name}"), &text, 0o644)?;
    }
    hand.shell("ln -sf /bed/kinara-gatewayd /bed/kinara-linkd /bed/kinaractl /usr/bin/")?;
    hand.shell("systemd-sysusers 2>&1; systemd-tmpfiles --create kinara.conf 2>&1")?;
    hand.shell(KEPT)?;
    match boot {
        Boot::Small => {
            // Without socket activation linkd makes its socket itself.
            hand.shell("chmod 770 /run/kinara")?;
            hand.shell(
                "pidof dbus-daemon || { mkdir -p /run/dbus && dbus-daemon --system --fork --nopidfile; }",
            )?;
            start_bluetoothd(hand)
        }
        Boot::Systemd => {
            const RELOAD: &str =
                "systemctl daemon-reload && systemctl reload dbus && systemctl restart bluetooth";
            hand.run_within(SYSTEMD_PATIENCE, &["sh", "-c", RELOAD])?.good().map(|_| ())
        }
    }
}

/// The command of `kinara-gatewayd` as its user, where no systemd starts it.
pub const GATEWAYD: [&str; 7] = [
    "setpriv",
    "--reuid=kinara",
    "--regid=kinara",
    "--init-groups",
    "/usr/bin/kinara-gatewayd",
    "--config",
    CONFIGURATION,
];
/// The command of `kinara-linkd` as its user with its one capability.
pub const LINKD: [&str; 7] = [
    "setpriv",
    "--reuid=kinara-linkd",
    "--regid=kinara-linkd",
    "--init-groups",
    "--inh-caps=+net_admin",
    "--ambient-caps=+net_admin",
    "/usr/bin/kinara-linkd",
];
