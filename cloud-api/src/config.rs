//! The configuration file.
//!
//! Every field is listed here with its default; a field that is not known is an error that names the line. The
//! smallest file has `[database] url` and `jwt_secret_file`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::network::Network;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; give its path with --config")]
    Read {
        /// Which file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// The file is not what is expected. The text names line, field and accepted values.
    #[error("the configuration {path} is wrong: {text}")]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        text: String,
    },
}

/// All of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where HTTP listens. Default `127.0.0.1:8080`; port 0 takes a free one (see `addr_file`).
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// A file into which the bound address is written once the program listens. Default: none.
    #[serde(default)]
    pub addr_file: Option<PathBuf>,
    /// The file with the key that signs access tokens; made, readable by this user only, if it is not there.
    pub jwt_secret_file: PathBuf,
    /// The file with another key whose access tokens are taken as well, never made: the one before, until its last token has
    /// ended, or with several hosts the next one, on those that sign with the present one still. Default: none.
    #[serde(default)]
    pub jwt_previous_secret_file: Option<PathBuf>,
    /// The address people use, when a proxy with TLS stands in front: `https://kinara.example`. With `https` the
    /// refresh cookie is `Secure` and browsers are told to stay with TLS. Default: none (plain HTTP on `listen`).
    #[serde(default)]
    pub public_url: Option<String>,
    /// Addresses and networks (`10.1.0.0/16`) of proxies whose `X-Forwarded-For` is believed. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
    /// Who may read `/metrics`: `loopback`, `anyone`, or a list of addresses and networks. Default `loopback`.
    #[serde(default)]
    pub metrics_for: MetricsFor,
    /// The database.
    pub database: DatabaseConfig,
    /// The broker that live values come from. Default: none, and then there are no live values.
    #[serde(default)]
    pub broker: Option<BrokerConfig>,
    /// Readings over HTTP.
    #[serde(default)]
    pub ingest: IngestConfig,
    /// Limits on requests.
    #[serde(default)]
    pub limits: Limits,
    /// Logging in and staying logged in.
    #[serde(default)]
    pub login: LoginConfig,
    /// The live WebSocket.
    #[serde(default)]
    pub live: LiveConfig,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

/// Who may read the metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Readers")]
pub enum MetricsFor {
    /// Programs on this machine that do not come through a proxy.
    #[default]
    Loopback,
    /// Everyone who reaches the port.
    Anyone,
    /// These, if they do not come through a proxy, and programs on this machine.
    Networks(Vec<Network>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Readers {
    Word(String),
    Networks(Vec<String>),
}

impl TryFrom<Readers> for MetricsFor {
    type Error = String;

    fn try_from(readers: Readers) -> Result<Self, String> {
        match readers {
            Readers::Word(word) if word == "loopback" => Ok(Self::Loopback),
            Readers::Word(word) if word == "anyone" => Ok(Self::Anyone),
            Readers::Word(word) => {
                Err(format!("{word:?} is not loopback, anyone or a list such as [\"10.1.0.0/16\"]"))
            }
            Readers::Networks(list) => {
                list.iter().map(|one| one.parse()).collect::<Result<_, _>>().map(Self::Networks)
            }
        }
    }
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://USER:PASSWORD@HOST/DATABASE` of a login role that is in `kinara_app`. With
    /// `?sslmode=verify-full&sslrootcert=/path/ca.pem` it is encrypted and the server known; `disable`, `prefer` (the
    /// default), `require` and `verify-ca` mean what they mean to libpq.
    pub url: String,
    /// Most connections at once. Default 16.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
    /// Of these, for requests of one clinic at the same time; more wait. Default 5.
    #[serde(default = "default_of_clinic")]
    pub of_clinic: usize,
    /// Of a clinic's, for requests of one member. Default 3.
    #[serde(default = "default_of_member")]
    pub of_member: usize,
    /// How long a request waits for a free connection, and a connection for its server. Default 3.
    #[serde(default = "default_acquire")]
    pub acquire_timeout_s: u64,
    /// How long one statement may run. Default 10.
    #[serde(default = "default_statement")]
    pub statement_timeout_s: u64,
}

fn default_pool_size() -> usize {
    16
}
fn default_of_clinic() -> usize {
    5
}
fn default_of_member() -> usize {
    3
}
fn default_acquire() -> u64 {
    3
}
fn default_statement() -> u64 {
    10
}

/// `[broker]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// Name or address.
    pub host: String,
    /// Default 8883.
    #[serde(default = "default_broker_port")]
    pub port: u16,
    /// TLS 1.3 with a client certificate. `false` is for tests on one machine. Default true.
    #[serde(default = "yes")]
    pub tls: bool,
    /// The certificate authority of the broker, PEM. Needed with TLS.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// This program's certificate, PEM. Needed with TLS.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Its key, PEM. Needed with TLS.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The MQTT client id; a random ending is added, so that two of this program do not push each other out.
    /// Default `kinara-cloud-api`.
    #[serde(default = "default_client_id")]
    pub client_id: String,
    /// Keep-alive: a broker that says nothing for about twice as long is given up. Default 10.
    #[serde(default = "default_keep_alive")]
    pub keep_alive_s: u64,
}

fn default_broker_port() -> u16 {
    8883
}
fn yes() -> bool {
    true
}
fn default_client_id() -> String {
    "kinara-cloud-api".into()
}
fn default_keep_alive() -> u64 {
    10
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body. Default 65536.
    pub body_bytes: usize,
    /// How long one request may take in all. Default 20.
    pub request_timeout_s: u64,
    /// How long a client may take to send a request's head. Default 10.
    pub header_timeout_s: u64,
    /// A client that takes nothing of an answer for so long is cut off. Default 30.
    pub write_timeout_s: u64,
    /// Most connections at once, WebSockets included. Default 1024.
    pub connections: usize,
    /// Of these, from one address (of IPv6, one network) that is no trusted proxy. Default 256.
    pub connections_per_address: usize,
    /// Readings that one answer is drawn from at most; of more, the kept means of minutes. Default 400000.
    pub raw_readings: i64,
    /// Most points of one answer of readings. Default 10000.
    pub points: u32,
    /// Longest period of one question for readings, in days. Default 8.
    pub readings_days: u32,
    /// Most events of one answer. Default 1000.
    pub events: u32,
    /// How long requests under way may take once the program was told to stop. Default 5.
    pub stop_timeout_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 65_536,
            request_timeout_s: 20,
            header_timeout_s: 10,
            write_timeout_s: 30,
            connections: 1024,
            connections_per_address: 256,
            raw_readings: 400_000,
            points: 10_000,
            readings_days: 8,
            events: 1000,
            stop_timeout_s: 5,
        }
    }
}

/// `[ingest]`: readings over HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// Largest body as it is sent. Default 5000000.
    pub body_bytes: usize,
    /// Largest body once it is unpacked. Default 5000000.
    pub unpacked_bytes: usize,
    /// Requests that are read at once. Default 16.
    pub at_once: usize,
    /// Of these, of one clinic. Default 2.
    pub at_once_of_clinic: usize,
    /// Requests of one clinic that may wait to be written. Default 256.
    pub waiting_requests: i64,
    /// Bytes of one clinic that may wait to be written, packed. Default 67108864.
    pub waiting_bytes: i64,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            body_bytes: 5_000_000,
            unpacked_bytes: 5_000_000,
            at_once: 16,
            at_once_of_clinic: 2,
            waiting_requests: 256,
            waiting_bytes: 64 * 1024 * 1024,
        }
    }
}

/// `[login]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginConfig {
    /// How long an access token is good. Default 900.
    pub access_s: u64,
    /// A session that is not refreshed for so long is over. Default 43200 (12 h).
    pub idle_s: u64,
    /// A session is over after so long in any case. Default 604800 (7 days).
    pub session_s: u64,
    /// Failed logins for one account from one address before the next must wait. Default 5.
    pub failures_per_account: u32,
    /// Failed logins for one account from all addresses together; one from which its member has logged in lately is not
    /// counted among them. Default 50.
    pub failures_per_account_anywhere: u32,
    /// Failed logins from one address, whatever the account. Default 30.
    pub failures_per_address: u32,
    /// After so long one failure is forgotten. Default 30.
    pub forget_s: u64,
    /// For how long it is believed that a session stands, that its member is not disabled, and their role. Default 5.
    pub standing_s: u64,
    /// Passwords checked at the same time; each takes 19 MiB. Default 2.
    pub checks_at_once: usize,
}

impl Default for LoginConfig {
    fn default() -> Self {
        Self {
            access_s: 900,
            idle_s: 43_200,
            session_s: 604_800,
            failures_per_account: 5,
            failures_per_account_anywhere: 50,
            failures_per_address: 30,
            forget_s: 30,
            standing_s: 5,
            checks_at_once: 2,
        }
    }
}

/// `[live]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LiveConfig {
    /// How long a client has to send its token. Default 5.
    pub token_timeout_s: u64,
    /// A ping goes out this often. Default 15.
    pub ping_s: u64,
    /// A client that answers nothing, or takes nothing, for so long is cut off. Default 40.
    pub silence_s: u64,
    /// Most clients of one tenant. Default 200.
    pub clients_per_tenant: usize,
    /// Events kept for a client that reads slowly. Default 100.
    pub events_queued: usize,
    /// Live values older than this are not shown to a client that has just come. Default 60.
    pub newest_s: u64,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            token_timeout_s: 5,
            ping_s: 15,
            silence_s: 40,
            clients_per_tenant: 200,
            events_queued: 100,
            newest_s: 60,
        }
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|text| ConfigError::Wrong { path: path.to_owned(), text })
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(url) = &self.public_url
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            return Err(format!("public_url is {url:?}; it must start with https:// or http://"));
        }
        if let Err(error) = kinara_store::Target::of(&self.database.url, "check") {
            return Err(format!("database.url is not postgres://USER:PASSWORD@HOST/DATABASE: {error}"));
        }
        if let Some(broker) = &self.broker
            && broker.tls
        {
            for (field, file) in [("ca", &broker.ca), ("cert", &broker.cert), ("key", &broker.key)] {
                if file.is_none() {
                    return Err(format!(
                        "broker.{field} is missing; with broker.tls = true it names a PEM file"
                    ));
                }
            }
        }
        for (field, value, least) in [
            ("database.pool_size", self.database.pool_size as u64, 1),
            ("database.of_clinic", self.database.of_clinic as u64, 1),
            ("database.of_member", self.database.of_member as u64, 1),
            ("database.acquire_timeout_s", self.database.acquire_timeout_s, 1),
            ("database.statement_timeout_s", self.database.statement_timeout_s, 1),
            ("limits.body_bytes", self.limits.body_bytes as u64, 1024),
            ("ingest.body_bytes", self.ingest.body_bytes as u64, 1024),
            ("ingest.unpacked_bytes", self.ingest.unpacked_bytes as u64, 1024),
            ("ingest.at_once", self.ingest.at_once as u64, 1),
            ("ingest.at_once_of_clinic", self.ingest.at_once_of_clinic as u64, 1),
            ("ingest.waiting_requests", self.ingest.waiting_requests.max(0).unsigned_abs(), 1),
            ("ingest.waiting_bytes", self.ingest.waiting_bytes.max(0).unsigned_abs(), 1),
            ("limits.request_timeout_s", self.limits.request_timeout_s, 1),
            ("limits.header_timeout_s", self.limits.header_timeout_s, 1),
            ("limits.write_timeout_s", self.limits.write_timeout_s, 1),
            ("limits.connections", self.limits.connections as u64, 1),
            ("limits.connections_per_address", self.limits.connections_per_address as u64, 1),
            ("limits.raw_readings", self.limits.raw_readings.max(0).unsigned_abs(), 1),
            ("limits.points", self.limits.points.into(), 10),
            ("limits.events", self.limits.events.into(), 1),
            ("limits.readings_days", self.limits.readings_days.into(), 1),
            ("login.access_s", self.login.access_s, 1),
            ("login.idle_s", self.login.idle_s, 1),
            ("login.failures_per_account", self.login.failures_per_account.into(), 1),
            ("login.failures_per_account_anywhere", self.login.failures_per_account_anywhere.into(), 1),
            ("login.failures_per_address", self.login.failures_per_address.into(), 1),
            ("login.forget_s", self.login.forget_s, 1),
            ("login.checks_at_once", self.login.checks_at_once as u64, 1),
            ("live.token_timeout_s", self.live.token_timeout_s, 1),
            ("live.ping_s", self.live.ping_s, 1),
            ("live.silence_s", self.live.silence_s, self.live.ping_s + 1),
            ("live.clients_per_tenant", self.live.clients_per_tenant as u64, 1),
            ("live.events_queued", self.live.events_queued as u64, 1),
        ] {
            if value < least {
                return Err(format!("{field} is {value}; it must be at least {least}"));
            }
        }
        Ok(())
    }

    /// Whether people reach this program through TLS.
    pub fn behind_tls(&self) -> bool {
        self.public_url.as_deref().is_some_and(|url| url.starts_with("https://"))
    }
}

impl Limits {
    /// How long one request may take in all.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "jwt_secret_file = \"k\"\n[database]\nurl = \"postgres://api@localhost/kinara\"\n";

    #[test]
    fn the_smallest_file_is_enough() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!(config.listen.port(), 8080);
        assert!(!config.behind_tls());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        let error = Config::parse(&format!("{SMALLEST}pool = 3\n")).unwrap_err();
        assert!(error.contains("line 4") && error.contains("pool_size"), "{error}");
        let error = Config::parse(&format!("metrics_for = \"x\"\n{SMALLEST}")).unwrap_err();
        assert!(error.contains("line 1") && error.contains("loopback"), "{error}");
        let error = Config::parse(&format!("{SMALLEST}[broker]\nhost = \"b\"\n")).unwrap_err();
        assert!(error.contains("broker.ca"), "{error}");
    }
}
