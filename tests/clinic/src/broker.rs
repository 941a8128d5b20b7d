//! The clinic's broker: Mosquitto with the product's own configuration and access list.

use crate::authority::{Authority, Identity};
use crate::process::{Launch, Process, Ready};
use crate::{ClinicError, Result, folders};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

const CONFIGURATION: &str = include_str!("../../../packaging/mosquitto/kinara.conf.in");
const ACCESS: &str = include_str!("../../../packaging/mosquitto/kinara.acl");

/// The names of its certificate: this machine's, and the one that QEMU's user network gives it in a virtual machine.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "10.0.2.2"];

/// The year with which the list of revoked certificates ends: a development authority renews none.
const LIST_ENDS: i32 = 2044;

/// A Mosquitto that only speaks TLS 1.3 to whom the clinic's authority knows.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    port: u16,
}

impl Broker {
    /// Starts it in this folder on this port of 127.0.0.1.
    pub fn start(folder: &Path, logs: &Path, authority: &Authority, port: u16) -> Result<Self> {
        let program = program()?;
        folders::make(folder, 0o755)?;
        authority.server("broker", &NAMES)?;
        if !authority.folder().join("crl.pem").exists() {
            authority.revocations("crl", 1, &[], LIST_ENDS)?;
        }
        let access = folder.join("kinara.acl");
        folders::write(&access, ACCESS)?;
        let kept = folder.join("kept");
        folders::make(&kept, 0o700)?;
        let mut text = CONFIGURATION
            .replace("@LISTEN@", "127.0.0.1")
            .replace("@PORT@", &port.to_string())
            .replace("@CERTIFICATES@", &authority.folder().display().to_string())
            .replace("@ACL@", &access.display().to_string());
        text.push_str("\n# The demo's and the tests' own.\nlog_dest stderr\nlog_timestamp_format %Y-%m-%dT%H:%M:%S\npersistence true\n");
        let _ = writeln!(text, "persistence_location {}/", kept.display());
        if folders::is_root() {
            // Else it changes to a user who may not reach this folder.
            text.push_str("user root\n");
        }
        let configuration = folder.join("mosquitto.conf");
        folders::write(&configuration, &text)?;
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let launch = Launch::new("broker", program, logs.join("broker.log"))
            .args(["-c".to_owned(), configuration.display().to_string()])
            .ready(Ready::Port(address));
        let mut broker = Self { process: Process::new(launch), port };
        broker.process.start()?;
        Ok(broker)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process: to stop it, kill it, hang it (SIGSTOP) and start it again.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Cuts everybody off in good order; the broker writes what it keeps.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Pulls its plug: all that is queued in it is lost.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.start()
    }

    /// What a program's `[broker]` or `[uplink]` section says to come here as `identity`.
    pub fn section(&self, identity: &Identity) -> toml::Table {
        let mut table = toml::Table::new();
        table.insert("host".into(), "127.0.0.1".into());
        table.insert("port".into(), i64::from(self.port).into());
        for (name, path) in [("ca", &identity.ca), ("cert", &identity.cert), ("key", &identity.key)] {
            table.insert(name.into(), path.display().to_string().into());
        }
        table
    }
}

fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|folder| folder.join("mosquitto"))
        .find(|file| file.is_file())
        .ok_or_else(|| ClinicError::Missing {
            program: "mosquitto".to_owned(),
            advice: "install the package `mosquitto` (./kinara demo does it)".to_owned(),
        })
}
