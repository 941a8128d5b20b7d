//! The machine: its adapter, its clock, its disk.

use std::path::Path;

use kinara_clock::Clock;
use rustix::fs::statvfs;

use super::{Finding, LOOKING, fail, ok, warn};
use crate::align::source::{BUILD_DATE_US, kernel, timedate};
use crate::config::Config;

const MIB: u64 = 1 << 20;
/// Less than this is left: the store's reserve and what the system itself writes.
const LITTLE_MIB: u64 = 64;

/// Whether the kernel has an adapter that may be switched on. `class` is `/sys/class/bluetooth`.
pub fn adapter(class: &Path) -> Finding {
    let Ok(entries) = std::fs::read_dir(class) else {
        let advice = "plug in an adapter; if there is one: modprobe bluetooth, and look at dmesg";
        return fail("adapter", "the kernel knows of no Bluetooth", advice);
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        // hci0 is an adapter, hci0:64 a link of it.
        .filter(|name| name.starts_with("hci") && !name.contains(':'))
        .collect();
    names.sort();
    if names.is_empty() {
        return fail("adapter", "there is no Bluetooth adapter", "plug one in; if it is in, look at dmesg");
    }
    for name in &names {
        match blocked(&class.join(name)) {
            Some("hard") => {
                return fail(
                    "adapter",
                    format!("{name} is switched off by a switch"),
                    "find the switch on the case",
                );
            }
            Some(_) => {
                let advice = "run: rfkill unblock bluetooth";
                return fail("adapter", format!("{name} is switched off by rfkill"), advice);
            }
            None => {}
        }
    }
    ok("adapter", names.join(", "))
}

/// By what an adapter is switched off.
fn blocked(adapter: &Path) -> Option<&'static str> {
    let entries = std::fs::read_dir(adapter).ok()?;
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("rfkill") {
            continue;
        }
        for kind in ["hard", "soft"] {
            if std::fs::read_to_string(entry.path().join(kind)).is_ok_and(|word| word.trim() == "1") {
                return Some(kind);
            }
        }
    }
    None
}

/// Whether the machine's clock is in step.
pub async fn clock(bus: Option<&zbus::Connection>, clock: &dyn Clock, trusted: bool) -> Finding {
    let advice = "connect the box to the network and look at: timedatectl timesync-status";
    if clock.utc_us() < BUILD_DATE_US {
        return fail("clock", "the machine's clock shows a time before this program was built", advice);
    }
    if trusted {
        return ok("clock", "trusted, as the configuration says (clock.trust_system)");
    }
    let told = match bus {
        Some(bus) => timedate(bus, LOOKING).await,
        None => None,
    };
    match (told, kernel()) {
        (Some(true), _) => ok("clock", "in step, by timedate1"),
        (_, Some(error_us)) => ok("clock", format!("in step, by the kernel (± {} ms)", error_us / 1_000)),
        (Some(false), None) => {
            warn("clock", "not in step; the bridge's time is used when it is reached", advice)
        }
        (None, None) => warn("clock", "nobody says that it is in step; the bridge's time is used", advice),
    }
}

/// Whether there is room to keep readings.
pub fn disk(config: &Config) -> Finding {
    let dir = &config.data_dir;
    let Ok(stat) = statvfs(dir) else {
        let advice = "start the daemon once, or create the folder: owner kinara, mode 0700";
        return fail("disk", format!("{} is not there or not readable", dir.display()), advice);
    };
    let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) / MIB;
    let text = format!("{free_mib} MiB free under {}", dir.display());
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return fail(
            "disk",
            format!("{} is mounted read-only", dir.display()),
            "look at dmesg: the card may be dying",
        );
    }
    if free_mib < config.store.reserve_mib + LITTLE_MIB {
        let advice =
            "connect the box to the cloud, so that it can hand over what it keeps, or free some space";
        return fail("disk", text, advice);
    }
    if free_mib < config.store.soft_limit_mib / 4 {
        return warn("disk", text, "less than a quarter of what the store may fill; free some space");
    }
    if stat.f_favail == 0 && stat.f_files > 0 {
        return fail("disk", "no file can be made any more", "remove files that are not needed");
    }
    ok("disk", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_is_switched_off_is_told_from_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(adapter(&dir.path().join("none")).state, "fail");
        assert!(adapter(dir.path()).text.contains("no Bluetooth adapter"));
        let rfkill = dir.path().join("hci0").join("rfkill3");
        std::fs::create_dir_all(&rfkill).unwrap();
        std::fs::create_dir_all(dir.path().join("hci0:64")).unwrap();
        for (soft, hard, state) in [("0", "0", "ok"), ("1", "0", "fail"), ("0", "1", "fail")] {
            std::fs::write(rfkill.join("soft"), soft).unwrap();
            std::fs::write(rfkill.join("hard"), hard).unwrap();
            let found = adapter(dir.path());
            assert_eq!(found.state, state);
            assert_eq!(found.advice.is_empty(), state == "ok");
        }
        assert!(adapter(dir.path()).advice.contains("switch on the case"));
    }
}
