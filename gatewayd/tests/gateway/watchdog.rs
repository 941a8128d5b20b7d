//! What systemd hears of the daemon: a test's socket stands where systemd's would.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::air::air;
use super::frames::GATEWAY;

/// Half of it is the patience with a loop; the radio's turns every five seconds.
const WATCHDOG: Duration = Duration::from_secs(16);

struct Gatewayd {
    process: Child,
    systemd: UnixDatagram,
}

impl Gatewayd {
    fn start(dir: &Path) -> Self {
        let text = format!(
            "gateway_id = \"{GATEWAY}\"\nname = \"A\"\ndata_dir = \"{data}\"\n\
             [uplink]\nhost = \"127.0.0.1\"\nport = 1\ntls = false\n\
             [clock]\ntrust_system = true\n[infer]\nenabled = false\n[local]\nlisten = \"127.0.0.1:0\"\n\
             [radio]\nair_dir = \"{air}\"\n",
            data = dir.join("data").display(),
            air = air(dir).display(),
        );
        std::fs::write(dir.join("gatewayd.toml"), text).unwrap();
        let systemd = UnixDatagram::bind(dir.join("notify")).unwrap();
        systemd.set_read_timeout(Some(WATCHDOG * 2)).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kinara-gatewayd"))
            .arg("--config")
            .arg(dir.join("gatewayd.toml"))
            .env("NOTIFY_SOCKET", dir.join("notify"))
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", dir.join("no-bus").display()))
            .env("KINARA_SABOTAGE", "stall-main")
            .env("KINARA_STALL_FILE", dir.join("stall"))
            .env_remove("JOURNAL_STREAM")
            .env_remove("WATCHDOG_PID")
            .spawn()
            .unwrap();
        Self { process, systemd }
    }

    /// The next thing that the daemon says.
    fn says(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.systemd.recv(&mut buffer).expect("the daemon says something");
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    }
}

impl Drop for Gatewayd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_daemon_whose_loops_turn_says_that_it_is_ready_and_then_that_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let gatewayd = Gatewayd::start(dir.path());
    assert_eq!(gatewayd.says(), "READY=1");
    let start = Instant::now();
    while start.elapsed() < WATCHDOG {
        let said = gatewayd.says();
        assert!(said.contains("WATCHDOG=1") && said.contains("0 of 0 wearables"), "{said}");
    }
}

/// Needs a loop that hangs: `cargo test --features sabotage`.
#[cfg(feature = "sabotage")]
#[test]
fn a_loop_that_hangs_keeps_the_daemon_from_saying_that_it_lives() {
    for hung in ["store", "radio"] {
        let dir = tempfile::tempdir().unwrap();
        let gatewayd = Gatewayd::start(dir.path());
        while !gatewayd.says().contains("WATCHDOG=1") {}
        std::fs::write(dir.path().join("stall"), hung).unwrap();
        let start = Instant::now();
        let mut lived = None;
        loop {
            let said = gatewayd.says();
            if said.contains(&format!("hung: {hung}")) {
                break;
            }
            lived = Some(Instant::now());
            assert!(start.elapsed() < WATCHDOG * 2, "{hung} hangs and nobody notices");
        }
        // From here on systemd's patience runs out.
        let since = Instant::now();
        while since.elapsed() < WATCHDOG {
            let said = gatewayd.says();
            assert!(!said.contains("WATCHDOG"), "{hung} hangs, yet: {said}");
        }
        assert!(lived.is_some());
        assert!(!dir.path().join("stall").exists(), "the next life does not stall");
    }
}
