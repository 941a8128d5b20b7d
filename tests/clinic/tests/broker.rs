//! The product's broker configuration and access list, on a real Mosquitto.
//!
//! Mosquitto's own command-line clients speak to it, so that none of Kinara's code judges itself.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use kinara_clinic::authority::Identity;
use kinara_clinic::{Authority, Broker, ports};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const A: &str = "0192f0c1-0000-7000-8000-00000000000a";
const B: &str = "0192f0c1-0000-7000-8000-00000000000b";

struct Bench {
    dir: tempfile::TempDir,
    broker: Broker,
    authority: Authority,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("certificates")).unwrap();
        let broker =
            Broker::start(&dir.path().join("broker"), dir.path(), &authority, ports::free()).unwrap();
        Self { dir, broker, authority }
    }

    fn client(&self, program: &str, who: &Identity) -> Command {
        let mut command = Command::new(program);
        command.args(["-V", "5", "-h", "127.0.0.1", "-p", &self.broker.port().to_string()]);
        command.arg("--cafile").arg(&who.ca).arg("--cert").arg(&who.cert).arg("--key").arg(&who.key);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn publish(&self, who: &str, topic: &str) -> Output {
        let identity = self.authority.client(who, who).unwrap();
        let mut command = self.client("mosquitto_pub", &identity);
        command.args(["-q", "1", "-t", topic, "-m", topic]).output().unwrap()
    }

    fn listen(&self, who: &str, topics: &[&str], seconds: u32) -> Child {
        let identity = self.authority.client(who, who).unwrap();
        let mut command = self.client("mosquitto_sub", &identity);
        command.args(["-W", &seconds.to_string(), "-q", "1"]);
        for topic in topics {
            command.args(["-t", topic]);
        }
        let child = command.spawn().unwrap();
        // Its subscription must be there before anything is published.
        kinara_clinic::process::pause(Duration::from_millis(700));
        child
    }
}

fn heard(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn topic(gateway: &str, leaf: &str) -> String {
    format!("kinara/v1/gw/{gateway}/{leaf}")
}

#[test]
fn a_gateway_writes_its_own_subtree_and_no_other() {
    let bench = Bench::new();
    let bridge = bench.listen("bridge", &["kinara/v1/gw/+/#"], 3);
    let own = ["batch", "event", "live", "state", "cmd/result"].map(|leaf| topic(A, leaf));
    let foreign = ["batch", "event", "live", "state", "cmd/result"].map(|leaf| topic(B, leaf));
    let downward = ["ack", "cmd", "config"].map(|leaf| topic(A, leaf));
    for topic in own.iter().chain(&foreign).chain(&downward) {
        bench.publish(A, topic);
    }
    bench.publish(A, "kinara/v1/tenant/x/live");
    assert_eq!(heard(bridge), own);
}

#[test]
fn a_gateway_reads_its_own_acknowledgements_and_commands_and_no_others() {
    let bench = Bench::new();
    let gateway = bench.listen(A, &["#"], 3);
    let own = ["ack", "cmd", "config"].map(|leaf| topic(A, leaf));
    let foreign = ["ack", "cmd", "config"].map(|leaf| topic(B, leaf));
    for topic in own.iter().chain(&foreign) {
        bench.publish("bridge", topic);
    }
    bench.publish(B, &topic(B, "batch"));
    bench.publish("bridge", "kinara/v1/tenant/x/live");
    assert_eq!(heard(gateway), own);
}

#[test]
fn the_bridge_may_empty_a_state_and_say_nothing_else_for_a_gateway() {
    let bench = Bench::new();
    let bridge = bench.listen("bridge", &["kinara/v1/gw/+/#"], 3);
    for leaf in ["batch", "event", "live", "state", "cmd/result"] {
        bench.publish("bridge", &topic(A, leaf));
    }
    assert_eq!(heard(bridge), [topic(A, "state")]);
}

#[test]
fn the_api_reads_checked_live_values_and_writes_nothing() {
    let bench = Bench::new();
    let api = bench.listen("api", &["#"], 3);
    let bridge = bench.listen("bridge", &["kinara/v1/gw/+/#"], 2);
    bench.publish("bridge", "kinara/v1/tenant/x/live");
    bench.publish(A, &topic(A, "live"));
    bench.publish("api", &topic(A, "batch"));
    bench.publish("api", &topic(A, "ack"));
    assert_eq!(heard(bridge), [topic(A, "live")]);
    assert_eq!(heard(api), ["kinara/v1/tenant/x/live"]);
}

#[test]
fn two_bridges_share_the_batches() {
    let bench = Bench::new();
    let filter = "$share/bridge/kinara/v1/gw/+/batch";
    let bridges = [bench.listen("bridge", &[filter], 3), bench.listen("bridge", &[filter], 3)];
    for _ in 0..6 {
        bench.publish(A, &topic(A, "batch"));
    }
    let counts = bridges.map(|bridge| heard(bridge).len());
    assert_eq!(counts.iter().sum::<usize>(), 6, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn a_gateway_in_a_share_group_of_its_own_takes_nothing_from_the_bridges() {
    let bench = Bench::new();
    let thief = bench.listen(A, &["$share/bridge/kinara/v1/gw/+/batch"], 3);
    let bridge = bench.listen("bridge", &["$share/s3cret/kinara/v1/gw/+/batch"], 3);
    for _ in 0..6 {
        bench.publish(B, &topic(B, "batch"));
    }
    assert_eq!(heard(bridge).len(), 6, "the group's name is a secret, so nobody takes a bridge's turn");
    assert!(heard(thief).is_empty());
}

#[test]
fn who_has_no_certificate_of_the_authority_is_not_let_in() {
    let bench = Bench::new();
    let stranger_dir = tempfile::tempdir().unwrap();
    let stranger = Authority::open(stranger_dir.path()).unwrap().client("bridge", "bridge").unwrap();
    let ours = bench.authority.folder().join("ca.pem");
    let refused = bench
        .client("mosquitto_pub", &Identity { ca: ours.clone(), ..stranger })
        .args(["-t", "x", "-m", "x"])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let bare = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &bench.broker.port().to_string(), "-t", "x", "-m", "x", "--cafile"])
        .arg(&ours)
        .output()
        .unwrap();
    assert!(!bare.status.success());
}

#[test]
fn tls_older_than_1_3_is_refused() {
    let bench = Bench::new();
    let identity = bench.authority.client("bridge", "bridge").unwrap();
    let handshake = |version: &str| {
        Command::new("openssl")
            .args(["s_client", version, "-connect", &format!("127.0.0.1:{}", bench.broker.port())])
            .args(files(&identity))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let new = text(&handshake("-tls1_3"));
    assert!(new.contains("TLSv1.3") && new.contains("Verify return code: 0"), "{new}");
    assert!(!handshake("-tls1_2").status.success());
}

fn files(identity: &Identity) -> [PathBuf; 6] {
    let named = |option: &str| Path::new(option).to_path_buf();
    [
        named("-CAfile"),
        identity.ca.clone(),
        named("-cert"),
        identity.cert.clone(),
        named("-key"),
        identity.key.clone(),
    ]
}

/// A certificate's serial number, as OpenSSL reads it.
fn serial(identity: &Identity) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(&identity.cert)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    hex::decode(text.trim().trim_start_matches("serial=").to_lowercase()).unwrap()
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/mosquitto")
}

impl Bench {
    fn install(&mut self, list: &Path) -> Output {
        let folder = self.authority.folder().to_path_buf();
        Command::new(scripts().join("install-crl.sh"))
            .arg(list)
            .arg(folder.join("crl.pem"))
            .arg(folder.join("ca.pem"))
            .arg(self.broker.process().pid().unwrap().to_string())
            .output()
            .unwrap()
    }
}

#[test]
fn a_list_of_revoked_certificates_that_is_broken_foreign_older_or_over_is_not_installed() {
    let mut bench = Bench::new();
    let revoked = serial(&bench.authority.client(A, A).unwrap());
    let installed = bench.authority.folder().join("crl.pem");
    let second = bench.authority.revocations("second", 2, &[&revoked], 2044).unwrap();
    let output = bench.install(&second);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    kinara_clinic::process::pause(Duration::from_secs(2));
    assert!(!bench.publish(A, &format!("kinara/v1/gw/{A}/live")).status.success());
    assert!(bench.publish(B, &format!("kinara/v1/gw/{B}/live")).status.success());
    let before = std::fs::read(&installed).unwrap();

    let foreign = Authority::open(&bench.dir.path().join("foreign")).unwrap();
    let broken = bench.dir.path().join("broken.pem");
    std::fs::write(&broken, "garbage").unwrap();
    let lists = [
        (broken, "not signed"),
        (bench.dir.path().join("missing.pem"), "not signed"),
        (foreign.revocations("crl", 9, &[], 2044).unwrap(), "not signed"),
        (bench.authority.revocations("older", 1, &[], 2044).unwrap(), "not newer"),
        (bench.authority.revocations("over", 3, &[], 2021).unwrap(), "ends within a day"),
    ];
    for (list, why) in lists {
        let output = bench.install(&list);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{list:?}: {said}");
    }
    assert_eq!(std::fs::read(&installed).unwrap(), before);
    assert!(!bench.publish(A, &format!("kinara/v1/gw/{A}/live")).status.success());
}

#[test]
fn a_box_that_is_shut_out_hears_and_says_nothing_any_more_and_is_thrown_out() {
    let mut bench = Bench::new();
    let stolen = bench.authority.client(A, A).unwrap();
    let command_topic = format!("kinara/v1/gw/{A}/cmd");
    let mut session = bench.client("mosquitto_sub", &stolen);
    session.args(["-i", "the-stolen-box", "-q", "1", "-t", &command_topic]);
    let mut session = session.spawn().unwrap();
    let other = bench.listen(B, &[&format!("kinara/v1/gw/{B}/cmd")], 12);
    assert!(bench.publish("bridge", &command_topic).status.success());

    let list = bench.authority.revocations("next", 2, &[&serial(&stolen)], 2044).unwrap();
    let folder = bench.authority.folder().to_path_buf();
    let operator = bench.authority.client("bridge", "bridge").unwrap();
    let output = Command::new(scripts().join("shut-out.sh"))
        .arg(A)
        .args([
            &bench.dir.path().join("broker/kinara.acl"),
            &list,
            &folder.join("crl.pem"),
            &folder.join("ca.pem"),
        ])
        .arg(bench.broker.process().pid().unwrap().to_string())
        .args(["-h", "127.0.0.1", "-p", &bench.broker.port().to_string(), "-i", "the-stolen-box"])
        .arg("--cafile")
        .arg(&operator.ca)
        .arg("--cert")
        .arg(&operator.cert)
        .arg("--key")
        .arg(&operator.key)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Its client tries again, and is not let in.
    kinara_clinic::process::pause(Duration::from_secs(3));
    bench.publish("bridge", &command_topic);
    bench.publish("bridge", &format!("kinara/v1/gw/{B}/cmd"));
    assert!(!bench.publish(A, &format!("kinara/v1/gw/{A}/live")).status.success());
    kinara_clinic::process::pause(Duration::from_secs(1));
    let _ = session.kill();
    assert_eq!(heard(session), [command_topic], "nothing after it was shut out");
    assert_eq!(heard(other), [format!("kinara/v1/gw/{B}/cmd")]);
}
