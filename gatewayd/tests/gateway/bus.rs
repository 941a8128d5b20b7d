//! The desk on a real bus, with the policies that are shipped, by the `kinaractl` that is shipped.
//!
//! The bus is a private dbus-daemon whose configuration is the system's in what counts (nobody owns or calls anything unless
//! a policy says so) and includes the files of `packaging/dbus`. This machine has no user `kinara`: in the
//! copies, the user that runs the test stands for it, and group `daemon` for `kinara-admin`. What another user may is tried by
//! becoming that user, which takes root; without root those tests say so and try the rest.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kinara_protocol::envelope;
use serde_json::Value;
use zbus::zvariant::OwnedValue;

use super::air::{SECRET, Wearable, air};
use super::bridge::{Bridge, Mood};
use super::broker::Broker;
use super::frames::{GATEWAY, frames_in};

const NOBODY: u32 = 65_534;
/// The user and group of that name on Debian: here it is in group `kinara-admin`, by its primary group.
const MEMBER: u32 = 1;

/// As the system's bus has it: nothing is allowed that no policy allows. Then BlueZ's own policy, which lets everybody
/// call it, then ours.
const CONFIG: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=DIR/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <policy user="SELF"><allow own="org.bluez"/></policy>
  <policy context="default"><allow send_destination="org.bluez"/></policy>
  <includedir>DIR/system.d</includedir>
</busconfig>
"#;

struct Bus {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Bus {
    /// A folder with the configuration; `kinara` is who stands for the user of that name.
    fn prepare(kinara: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let policies = dir.path().join("system.d");
        std::fs::create_dir(&policies).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/dbus");
        for file in ["org.kinara.Gateway1.conf", "kinara-bluez.conf"] {
            let text = std::fs::read_to_string(shipped.join(file)).unwrap();
            assert!(text.contains(r#"user="kinara""#), "{file}");
            let text = text
                .replace(r#"user="kinara""#, &format!(r#"user="{kinara}""#))
                .replace(r#"group="kinara-admin""#, r#"group="daemon""#);
            std::fs::write(policies.join(file), text).unwrap();
        }
        let text = CONFIG.replace("DIR", &dir.path().display().to_string()).replace("SELF", &own_name());
        std::fs::write(dir.path().join("bus.conf"), text).unwrap();
        // Somebody else can execute what lies here, wherever the build lies. Copied by a process of its own: a file that
        // this one has open for writing cannot be executed while any thread of it forks.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_kinaractl"))
            .arg(dir.path().join("kinaractl"))
            .status();
        assert!(copied.unwrap().success());
        Self { dir, daemon: None }
    }

    fn start(kinara: &str) -> Self {
        let mut bus = Self::prepare(kinara);
        bus.run();
        bus
    }

    fn run(&mut self) {
        let _ = std::fs::remove_file(self.dir.path().join("bus"));
        let daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", self.dir.path().join("bus.conf").display()))
            .args(["--nofork", "--nopidfile", "--nosyslog"])
            .spawn()
            .expect("dbus-daemon is there (package dbus)");
        self.daemon = Some(daemon);
        until("the bus", || self.dir.path().join("bus").exists());
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.dir.path().join("bus").display())
    }

    async fn connect(&self) -> zbus::Connection {
        zbus::connection::Builder::address(self.address().as_str()).unwrap().build().await.unwrap()
    }

    fn kinaractl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.dir.path().join("kinaractl"));
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.address()).args(arguments).stdin(Stdio::null());
        command
    }

    fn gatewayd(&self) -> Gatewayd {
        self.gatewayd_with(1, "")
    }

    /// With a broker on this port.
    fn gatewayd_with(&self, port: u16, more: &str) -> Gatewayd {
        let dir = self.dir.path();
        let text = format!(
            "gateway_id = \"{GATEWAY}\"\nname = \"A\"\ndata_dir = \"{data}\"\n\
             [uplink]\nhost = \"127.0.0.1\"\nport = {port}\ntls = false\nseal_after_s = 0.3\n\
             [clock]\ntrust_system = true\n[infer]\nenabled = false\n[local]\nlisten = \"127.0.0.1:0\"\n\
             [radio]\nair_dir = \"{air}\"\nrequest_timeout_s = 5\nscan_every_ms = 50\n{more}",
            data = dir.join("data").display(),
            air = air(dir).display(),
        );
        std::fs::write(dir.join("gatewayd.toml"), text).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kinara-gatewayd"))
            .arg("--config")
            .arg(dir.join("gatewayd.toml"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .spawn()
            .unwrap();
        Gatewayd(process)
    }

    /// Waits until the daemon answers.
    fn wait(&self) {
        until("kinaractl status", || {
            self.kinaractl(&["status", "--json"]).output().unwrap().status.success()
        });
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Gatewayd(Child);

impl Drop for Gatewayd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own_name() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid)).unwrap();
    line.split(':').next().unwrap().to_owned()
}

fn is_root() -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        eprintln!("not root: what other users may is not tried here");
    }
    root
}

#[allow(clippy::disallowed_methods, reason = "plain tests with processes")]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON in {output:?}"))
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wearable_is_paired_shown_and_forgotten_from_a_shell() {
    let bus = Bus::start(&own_name());
    let _gatewayd = bus.gatewayd();
    let _wearable = Wearable::start(&air(bus.dir.path()), 0xab, 20);
    let hardware = "kinara:00000000000000ab";
    tokio::task::block_in_place(|| {
        bus.wait();
        let status = json(&bus.kinaractl(&["status", "--json"]).output().unwrap());
        assert_eq!(status["gateway_id"], GATEWAY.to_string());
        assert_eq!(status["cloud_connected"], false);
        assert!(status["oldest_us"].is_null());
        // Nobody can know it in the first hour.
        assert_eq!(status["card"]["endurance_gb"], 10_000);
        assert!(status["card"]["years"].is_null() && status["card"]["watched_s"].is_u64(), "{status}");

        let near = json(&bus.kinaractl(&["scan", "--seconds", "3", "--json"]).output().unwrap());
        let near = near["nearby"].as_array().unwrap().clone();
        assert_eq!(near.len(), 1, "{near:?}");
        assert_eq!(near[0]["offer"], "label");
        let window = json(&bus.kinaractl(&["window", "--json"]).output().unwrap());
        assert_eq!(window["state"], "closed", "a scan closes the window that it opened");

        // Several devices have no name here; the key is what counts. A new window may give new keys.
        let opened = bus.kinaractl(&["window", "open"]).output().unwrap();
        assert_eq!(exit(&opened), 0);
        let key = {
            let mut key = String::new();
            until("the wearable is near", || {
                let near = json(&bus.kinaractl(&["scan", "--seconds", "3", "--json"]).output().unwrap());
                key = near["nearby"][0]["key"].as_str().unwrap_or_default().to_owned();
                !key.is_empty()
            });
            key
        };
        let wrong = bus.kinaractl(&["pair", &key, "--code", "AAAAAAAAAAAAAAAA", "--json"]).output().unwrap();
        assert_eq!((exit(&wrong), json(&wrong)["error"]["code"].as_str()), (1, Some("wrong_code")));
        let nonsense = bus.kinaractl(&["pair", &key, "--code", "A1", "--json"]).output().unwrap();
        assert_eq!(json(&nonsense)["error"]["code"], "bad_argument");
        let just_works = bus.kinaractl(&["pair", &key, "--just-works", "--json"]).output().unwrap();
        assert_eq!(json(&just_works)["error"]["code"], "other_code");

        // The code typed, as at a terminal.
        let mut right = bus
            .kinaractl(&["pair", &key, "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut right.stdin.take().unwrap(), format!("{SECRET}\n").as_bytes())
            .unwrap();
        let right = right.wait_with_output().unwrap();
        assert_eq!((exit(&right), json(&right)["hardware"].as_str()), (0, Some(hardware)));

        let mut devices = Value::Null;
        until("the link", || {
            devices = json(&bus.kinaractl(&["devices", "--json"]).output().unwrap());
            let device = &devices["devices"][0];
            (device["link"] == "live" || device["link"] == "draining") && !device["battery_percent"].is_null()
        });
        assert_eq!(devices["devices"][0]["battery_percent"], 77);
        assert!(devices["devices"][0]["wearer_id"].is_null());
        let shown = String::from_utf8(bus.kinaractl(&["devices"]).output().unwrap().stdout).unwrap();
        assert!(shown.contains(hardware) && shown.contains("77 %"), "{shown}");
        assert_eq!(exit(&bus.kinaractl(&["identify", hardware]).output().unwrap()), 0);

        let set = ["plan", hardware, "--channel", "eda", "--seconds", "10", "--json"];
        let set = json(&bus.kinaractl(&set).output().unwrap());
        assert_eq!(set["state"], "in_force");
        let shown = String::from_utf8(bus.kinaractl(&["plan", hardware]).output().unwrap().stdout).unwrap();
        assert!(shown.contains("eda") && shown.contains("10 s"), "{shown}");
        let fast = ["plan", hardware, "--channel", "spo2", "--seconds", "1", "--json"];
        let fast = bus.kinaractl(&fast).output().unwrap();
        assert_eq!((exit(&fast), json(&fast)["error"]["code"].as_str()), (1, Some("bad_interval")));
        let back = json(&bus.kinaractl(&["plan", hardware, "--reference", "--json"]).output().unwrap());
        assert!(back["channels"].as_array().unwrap().iter().all(|channel| channel["seconds"].is_null()));

        // Nobody has sent consent texts to this box.
        let bind = ["bind", hardware, "--new", "Asha", "--consent", "3", "--asked-by", "Ravi", "--json"];
        let bound = bus.kinaractl(&bind).output().unwrap();
        assert_eq!((exit(&bound), json(&bound)["error"]["code"].as_str()), (1, Some("other_consent_text")));

        assert_eq!(exit(&bus.kinaractl(&["forget", hardware]).output().unwrap()), 0);
        let unknown = bus.kinaractl(&["forget", "kinara:00000000000000ff", "--json"]).output().unwrap();
        assert_eq!(json(&unknown)["error"]["code"], "unknown_device");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn root_and_the_group_may_call_and_a_stranger_may_not() {
    let bus = Bus::start(&own_name());
    let _gatewayd = bus.gatewayd();
    tokio::task::block_in_place(|| {
        bus.wait();
        if !is_root() {
            return;
        }
        let as_user = |uid: u32| {
            let mut command = bus.kinaractl(&["status", "--json"]);
            command.uid(uid).gid(uid).output().unwrap()
        };
        assert_eq!(exit(&as_user(MEMBER)), 0);
        let refused = as_user(NOBODY);
        assert_eq!((exit(&refused), json(&refused)["error"]["code"].as_str()), (4, Some("not_allowed")));
        let text = json(&refused)["error"]["text"].as_str().unwrap().to_owned();
        assert!(text.contains("group kinara-admin"), "{text}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_is_not_reset_while_that_cannot_be_put_into_the_audit() {
    let bus = Bus::start(&own_name());
    let data = bus.dir.path().join("data");
    // Stands for a disk without room: the place of a file of the page is taken.
    std::fs::create_dir_all(data.join("page.secret/full")).unwrap();
    let _gatewayd = bus.gatewayd();
    tokio::task::block_in_place(|| {
        bus.wait();
        let reset = || bus.kinaractl(&["clock", "reset", "--json"]).output().unwrap();
        let refused = reset();
        assert_eq!((exit(&refused), json(&refused)["error"]["code"].as_str()), (1, Some("busy")));
        std::fs::remove_dir_all(data.join("page.secret")).unwrap();
        until("it is reset", || exit(&reset()) == 0);
        let audit = std::fs::read_to_string(data.join("audit.jsonl")).unwrap();
        assert_eq!(audit.matches("reset_clock").count(), 1, "{audit}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_daemons_user_may_own_the_name() {
    // Here `daemon` stands for kinara: the user of this test is somebody else, be it root.
    let bus = Bus::start("daemon");
    let connection = bus.connect().await;
    let refused = connection.request_name("org.kinara.Gateway1").await.unwrap_err();
    assert!(format!("{refused:?}").contains("AccessDenied"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cloud_could_not_read_is_listed_copied_out_for_its_owner_alone_and_sent_again_from_a_shell()
{
    let bus = Bus::start(&own_name());
    let broker = Broker::start(bus.dir.path());
    let bridge = Bridge::start(broker.port);
    bridge.lock().mood = Mood::Refuse;
    let _wearable = Wearable::start(&air(bus.dir.path()), 0xab, 20);
    let label =
        format!("[[wearable]]\nhardware_id = \"kinara:00000000000000ab\"\nlabel_secret = \"{SECRET}\"\n");
    let _gatewayd = bus.gatewayd_with(broker.port, &label);
    tokio::task::block_in_place(|| {
        bus.wait();
        let kinaractl = |arguments: &[&str]| {
            let output = bus.kinaractl(arguments).arg("--json").output().unwrap();
            assert_eq!(exit(&output), 0, "{output:?}");
            json(&output)
        };
        let parked = || kinaractl(&["parked"])["parked"].as_array().unwrap().clone();
        let batches = || parked().into_iter().filter(|one| one["kind"] == "batch").collect::<Vec<_>>();
        until("a batch is parked", || !batches().is_empty());
        assert_eq!(batches()[0]["reason"], "cannot read it");
        let shown = String::from_utf8(bus.kinaractl(&["parked"]).output().unwrap().stdout).unwrap();
        assert!(shown.contains("frames") && shown.contains("cannot read it"), "{shown}");

        let folder = bus.dir.path().join("support");
        let files = kinaractl(&["parked", "export", folder.to_str().unwrap()])["files"].clone();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        let (mut frames, expected) =
            (0, batches().iter().map(|one| one["frames"].as_u64().unwrap()).sum::<u64>());
        for file in files.as_array().unwrap().iter().map(|file| Path::new(file.as_str().unwrap())) {
            assert_eq!(mode(file), 0o600);
            if file.file_name().unwrap().to_str().unwrap().starts_with("batch-") {
                let batch = envelope::open::<envelope::Batch>(&std::fs::read(file).unwrap()).unwrap();
                frames += frames_in(&batch).len() as u64;
            }
        }
        assert_eq!(frames, expected, "what is copied is what would be published");

        bridge.lock().mood = Mood::Done;
        assert!(kinaractl(&["parked", "retry"])["again"].as_u64().unwrap() > 0);
        until("nothing is parked any more", || parked().is_empty());
        until("the bridge has read it", || !bridge.lock().frames.is_empty());
        let shown = String::from_utf8(bus.kinaractl(&["parked"]).output().unwrap().stdout).unwrap();
        assert!(shown.contains("could read everything"), "{shown}");
    });
}

struct Bluez {
    powered: bool,
}

#[zbus::interface(name = "org.bluez.Adapter1")]
impl Bluez {
    #[zbus(property)]
    fn powered(&self) -> bool {
        self.powered
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_and_the_daemon_may_call_bluez_whatever_its_own_policy_says() {
    let bus = Bus::start(&own_name());
    let bluez = bus.connect().await;
    bluez.object_server().at("/org/bluez/hci0", Bluez { powered: true }).await.unwrap();
    bluez.request_name("org.bluez").await.unwrap();
    let ours = bus.connect().await;
    let get = ("org.bluez.Adapter1", "Powered");
    let properties = Some("org.freedesktop.DBus.Properties");
    let reply =
        ours.call_method(Some("org.bluez"), "/org/bluez/hci0", properties, "Get", &get).await.unwrap();
    assert!(bool::try_from(reply.body().deserialize::<OwnedValue>().unwrap()).unwrap());
    if !is_root() {
        return;
    }
    tokio::task::block_in_place(|| {
        // Not even the group of those who may use kinaractl.
        for uid in [NOBODY, MEMBER] {
            let call = Command::new("dbus-send")
                .arg(format!("--bus={}", bus.address()))
                .args(["--print-reply", "--dest=org.bluez", "/org/bluez/hci0"])
                .args(["org.freedesktop.DBus.Properties.GetAll", "string:org.bluez.Adapter1"])
                .uid(uid)
                .gid(uid)
                .output()
                .unwrap();
            let why = String::from_utf8_lossy(&call.stderr).into_owned();
            assert!(!call.status.success() && why.contains("AccessDenied"), "{uid}: {why}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_says_of_itself_what_it_takes_and_gives() {
    let bus = Bus::start(&own_name());
    let _gatewayd = bus.gatewayd();
    tokio::task::block_in_place(|| bus.wait());
    let connection = bus.connect().await;
    let introspectable = Some("org.freedesktop.DBus.Introspectable");
    let reply = connection
        .call_method(Some("org.kinara.Gateway1"), "/org/kinara/Gateway", introspectable, "Introspect", &())
        .await
        .unwrap();
    let xml: String = reply.body().deserialize().unwrap();
    for part in [
        "<interface name=\"org.kinara.Gateway1\">",
        "<method name=\"Pair\">",
        "<method name=\"TypePasskey\">",
        "<signal name=\"WindowChanged\">",
        "type=\"(sauyasbasa(sss))\"",
    ] {
        assert!(xml.contains(part), "{part} in {xml}");
    }
    // Arguments are bounded, and the refusal is named.
    let long = "x".repeat(10_000);
    let refused = connection
        .call_method(
            Some("org.kinara.Gateway1"),
            "/org/kinara/Gateway",
            Some("org.kinara.Gateway1"),
            "Pair",
            &(long.as_str(), "display", ""),
        )
        .await
        .unwrap_err();
    let zbus::Error::MethodError(name, text, _) = refused else { panic!("{refused:?}") };
    assert_eq!(name.as_str(), "org.kinara.Gateway1.Error.BadArgument");
    assert!(text.unwrap().contains("at most"));
}

#[test]
fn a_bus_that_comes_late_or_goes_costs_nothing_but_kinaractl() {
    let mut bus = Bus::prepare(&own_name());
    let away = bus.kinaractl(&["status", "--json"]).output().unwrap();
    assert_eq!((exit(&away), json(&away)["error"]["code"].as_str()), (3, Some("no_bus")));
    let mut gatewayd = bus.gatewayd();
    until("the daemon works without a bus", || bus.dir.path().join("data/local.addr").exists());
    bus.run();
    bus.wait();
    bus.stop();
    assert_eq!(exit(&bus.kinaractl(&["status"]).output().unwrap()), 3);
    bus.run();
    bus.wait();
    assert!(gatewayd.0.try_wait().unwrap().is_none(), "the daemon has lived all the time");
    // And the other way round: the bus is there and the daemon is not.
    drop(gatewayd);
    let away = bus.kinaractl(&["status", "--json"]).output().unwrap();
    assert_eq!((exit(&away), json(&away)["error"]["code"].as_str()), (3, Some("not_running")));
}

#[test]
fn the_doctor_works_without_the_daemon_and_says_what_to_do() {
    let bus = Bus::start(&own_name());
    let config = bus.dir.path().join("gatewayd.toml");
    let config = config.to_str().unwrap();
    let doctor = || bus.kinaractl(&["doctor", "--config", config, "--json"]).output().unwrap();
    let state = |found: &Value, check: &str| -> (String, String) {
        let findings = found["findings"].as_array().unwrap();
        let one = findings.iter().find(|finding| finding["check"] == check).unwrap_or(&Value::Null);
        (
            one["state"].as_str().unwrap_or_default().to_owned(),
            one["advice"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let without = doctor();
    assert_eq!((exit(&without), json(&without)["ok"].as_bool()), (1, Some(false)));
    assert_eq!(state(&json(&without), "config").0, "fail");
    assert!(state(&json(&without), "gatewayd").1.contains("systemctl start kinara-gatewayd"));

    let gatewayd = bus.gatewayd();
    bus.wait();
    let found = json(&doctor());
    for (check, expected) in [
        ("config", "ok"),
        ("gatewayd", "ok"),
        ("loops", "ok"),
        ("clock", "ok"),
        ("disk", "ok"),
        // The virtual radio has no adapter, and nobody listens where the broker should be.
        ("adapter", "skip"),
        ("certificate", "skip"),
        ("broker", "fail"),
    ] {
        assert_eq!(state(&found, check).0, expected, "{check} in {found}");
    }
    let findings = found["findings"].as_array().unwrap();
    let silent = findings.iter().find(|one| one["state"] == "fail" && one["advice"] == "");
    assert_eq!(silent, None, "everything that is wrong says what to do");
    drop(gatewayd);
}
