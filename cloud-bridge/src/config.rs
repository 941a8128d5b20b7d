//! The configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be; the parser's message names line and field.
    #[error("{path}: {source}")]
    Toml {
        /// Which file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
    /// What `[traces]` says makes no sense.
    #[error("{path}: {source}")]
    Traces {
        /// Which file.
        path: PathBuf,
        /// What, and what may be.
        source: kinara_traces::Error,
    },
    /// A value makes no sense.
    #[error("{path}: {field} is {value}; {accepted}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        accepted: &'static str,
    },
}

/// The whole file. Unknown fields are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where readings go.
    pub database: Database,
    /// Where batches come from.
    pub broker: Broker,
    /// Where the bridge shows what it does.
    #[serde(default)]
    pub metrics: Metrics,
    /// Bounds on what it takes on.
    #[serde(default)]
    pub limits: Limits,
    /// Background jobs.
    #[serde(default)]
    pub jobs: Jobs,
    /// What looks at readings that came over HTTP.
    #[serde(default)]
    pub infer: crate::infer::Settings,
    /// Traces of batches, to a collector.
    #[serde(default)]
    pub traces: kinara_traces::Settings,
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://ROLE:PASSWORD@HOST:PORT/DATABASE` of a login in the role `kinara_ingest`.
    pub url: String,
    /// When set, migrations are run with it at the start.
    #[serde(default)]
    pub admin_url: Option<String>,
    /// Seconds that one statement may take.
    #[serde(default = "statement_timeout_s")]
    pub statement_timeout_s: u64,
    /// Seconds to wait for a connection.
    #[serde(default = "connect_timeout_s")]
    pub connect_timeout_s: u64,
}

fn statement_timeout_s() -> u64 {
    30
}

fn connect_timeout_s() -> u64 {
    5
}

/// The shared subscription's name where there is no TLS and so nothing to protect.
const DEFAULT_GROUP: &str = "bridge";

/// `[broker]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// The broker's name, as in its certificate.
    pub host: String,
    /// Its port.
    #[serde(default = "broker_port")]
    pub port: u16,
    /// PEM: the authority that signed the broker's certificate.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// PEM: this bridge's certificate.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// PEM: its key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// `false`: no TLS, for benches on one machine only.
    #[serde(default = "yes")]
    pub tls: bool,
    /// How the broker's log names this bridge; a random suffix makes it unique.
    #[serde(default = "client_id")]
    pub client_id: String,
    /// The name of the bridges' shared subscription: a random word, the same for all bridges and a secret from everybody
    /// else (who knows it can swallow messages). Needed with TLS.
    #[serde(default = "share_group")]
    pub share_group: String,
    /// Seconds between pings.
    #[serde(default = "keep_alive_s")]
    pub keep_alive_s: u64,
    /// Seconds after which a connection attempt is given up.
    #[serde(default = "connect_timeout_s")]
    pub connect_timeout_s: u64,
}

fn broker_port() -> u16 {
    8883
}

fn yes() -> bool {
    true
}

fn client_id() -> String {
    "bridge".to_owned()
}

fn share_group() -> String {
    DEFAULT_GROUP.to_owned()
}

fn keep_alive_s() -> u64 {
    20
}

/// `[metrics]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `/metrics` and `/healthz` are served; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The address is written here once it is bound.
    pub addr_file: Option<PathBuf>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9471)), addr_file: None }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections that write side by side.
    pub writers: usize,
    /// Readings in one transaction, at most (one batch may be larger).
    pub readings_per_transaction: usize,
    /// Milliseconds spent on gathering batches for one transaction, at most.
    pub gather_ms: u64,
    /// Seconds that reading one batch may take; what takes longer is to come again later.
    pub decode_s: u64,
    /// Bytes of payloads that wait, at most; what comes beyond is to come again later.
    pub queue_bytes: usize,
    /// The part of that one clinic may take at most, in percent; the more clinics wait, the less.
    pub tenant_percent: usize,
    /// Seconds after which a batch that found no room is to come again.
    pub retry_after_s: u32,
    /// Seconds for which an assignment and consent are believed for live values.
    pub live_cache_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            writers: 2,
            readings_per_transaction: 20_000,
            gather_ms: 50,
            decode_s: 10,
            queue_bytes: 32 * 1024 * 1024,
            tenant_percent: 50,
            retry_after_s: 5,
            live_cache_s: 3,
        }
    }
}

/// `[jobs]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// Seconds between looks at gaps, partitions and the quarantine's limits.
    pub sweep_s: u64,
    /// Seconds between looks at what gateways should be.
    pub config_s: u64,
    /// Seconds between slices of what follows from decisions: replays, moves.
    pub upkeep_s: u64,
    /// Seconds between looks at what is derived of readings and stale: aggregates, heart rate variability.
    pub derive_s: u64,
    /// Seconds that a gap stands still before it is settled.
    pub late_grace_s: u64,
    /// Jobs of the database's queue that are done side by side.
    pub workers: usize,
    /// Seconds between looks at the queue where no notice comes.
    pub poll_s: u64,
    /// When the night's work is done, UTC: minute, hour, day, month, day of the week, as in a crontab.
    pub nightly: String,
    /// Seconds that the comparison of one day's readings may take.
    pub reconcile_timeout_s: u64,
    /// Seconds that compressing one chunk may take.
    pub compress_timeout_s: u64,
    /// Days that lines of the audit log are kept, at least 365.
    pub audit_days: u32,
    /// Days that gaps and alerts are kept.
    pub derived_days: u32,
    /// Memory of the database's machine, MiB: what is not compressed is kept below a quarter of it. Default: what the
    /// database says it has for its cache (`effective_cache_size`).
    pub database_memory_mib: Option<u64>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            sweep_s: 5,
            config_s: 10,
            upkeep_s: 5,
            derive_s: 60,
            late_grace_s: 60,
            workers: 2,
            poll_s: 5,
            nightly: "17 2 * * *".to_owned(),
            reconcile_timeout_s: 900,
            compress_timeout_s: 900,
            audit_days: 3_653,
            derived_days: 1_827,
            database_memory_mib: None,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a file's text.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) })?;
        let wrong = |field, value: String, accepted| {
            Err(ConfigError::Value { path: path.to_owned(), field, value, accepted })
        };
        let limits = &config.limits;
        if !(1..=16).contains(&limits.writers) {
            return wrong("limits.writers", limits.writers.to_string(), "1 to 16");
        }
        if !(1..=100).contains(&limits.tenant_percent) {
            return wrong("limits.tenant_percent", limits.tenant_percent.to_string(), "1 to 100");
        }
        if !(1..=1_000_000).contains(&limits.readings_per_transaction) {
            let value = limits.readings_per_transaction.to_string();
            return wrong("limits.readings_per_transaction", value, "1 to 1000000");
        }
        if limits.queue_bytes < 1024 * 1024 {
            return wrong("limits.queue_bytes", limits.queue_bytes.to_string(), "at least 1048576");
        }
        if limits.live_cache_s > 5 {
            return wrong("limits.live_cache_s", limits.live_cache_s.to_string(), "0 to 5");
        }
        for (field, value) in [
            ("limits.decode_s", config.limits.decode_s),
            ("jobs.sweep_s", config.jobs.sweep_s),
            ("jobs.config_s", config.jobs.config_s),
            ("jobs.upkeep_s", config.jobs.upkeep_s),
            ("jobs.derive_s", config.jobs.derive_s),
            ("jobs.poll_s", config.jobs.poll_s),
            ("jobs.reconcile_timeout_s", config.jobs.reconcile_timeout_s),
            ("jobs.compress_timeout_s", config.jobs.compress_timeout_s),
        ] {
            if value == 0 {
                return wrong(field, "0".to_owned(), "at least 1");
            }
        }
        if config.jobs.audit_days < 365 {
            return wrong("jobs.audit_days", config.jobs.audit_days.to_string(), "at least 365");
        }
        if !(1..=16).contains(&config.jobs.workers) {
            return wrong("jobs.workers", config.jobs.workers.to_string(), "1 to 16");
        }
        if crate::jobs::crontab(&config.jobs.nightly).is_none() {
            let accepted = "minute, hour, day, month and day of the week, as in a crontab";
            return wrong("jobs.nightly", config.jobs.nightly.clone(), accepted);
        }
        if let Err(source) = config.traces.check() {
            return Err(ConfigError::Traces { path: path.to_owned(), source });
        }
        let group = &config.broker.share_group;
        if group.is_empty() || !group.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return wrong("broker.share_group", group.clone(), "letters and digits");
        }
        if config.broker.tls {
            if group == DEFAULT_GROUP {
                return wrong(
                    "broker.share_group",
                    group.clone(),
                    "a random word, the same for all bridges, when broker.tls = true",
                );
            }
            let broker = &config.broker;
            for (field, file) in
                [("broker.ca", &broker.ca), ("broker.cert", &broker.cert), ("broker.key", &broker.key)]
            {
                if file.is_none() {
                    return wrong(
                        field,
                        "missing".to_owned(),
                        "a PEM file is needed unless broker.tls = false",
                    );
                }
            }
        }
        Ok(config)
    }

    /// The writers' own limits on the database.
    pub fn database_limits(&self) -> kinara_store::Limits {
        kinara_store::Limits {
            // Writers, the events' writer, states, live checks, jobs, the upkeep and its writing, what is derived; of each
            // job of the queue its own, and the one it writes with.
            connections: self.limits.writers + 8 + 2 * self.jobs.workers,
            wait: Duration::from_secs(self.database.connect_timeout_s),
            connect: Duration::from_secs(self.database.connect_timeout_s),
            statement: Duration::from_secs(self.database.statement_timeout_s),
            ..kinara_store::Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[database]\nurl='postgres://b@h/d'\n[broker]\nhost='h'\nca='c'\ncert='d'\nkey='e'\nshare_group='x7'\n";

    #[test]
    fn a_minimal_file_is_enough() {
        let config = Config::parse(MINIMAL, Path::new("b.toml")).unwrap();
        assert_eq!(config.broker.port, 8883);
    }

    #[test]
    fn with_tls_the_share_group_is_a_word_of_ones_own() {
        let text = MINIMAL.replace("share_group='x7'\n", "");
        let error = Config::parse(&text, Path::new("b.toml")).unwrap_err().to_string();
        assert!(error.contains("broker.share_group"), "{error}");
    }

    #[test]
    fn a_wrong_field_is_named_with_its_file_and_line() {
        let text = format!("{MINIMAL}[limits]\nwriter=3\n");
        let error = Config::parse(&text, Path::new("b.toml")).unwrap_err().to_string();
        assert!(
            error.contains("b.toml") && error.contains("line 10") && error.contains("`writers`"),
            "{error}"
        );
        let text = format!("{MINIMAL}[limits]\nwriters=99\n");
        let error = Config::parse(&text, Path::new("b.toml")).unwrap_err().to_string();
        assert_eq!(error, "b.toml: limits.writers is 99; 1 to 16");
        let text = format!("{MINIMAL}[traces]\notlp='collector:4318'\n");
        let error = Config::parse(&text, Path::new("b.toml")).unwrap_err().to_string();
        assert!(error.contains("b.toml: [traces] otlp") && error.contains("http://HOST:PORT"), "{error}");
        for nightly in ["", "tonight", "61 2 * * *", "17 2 * *"] {
            let text = format!("{MINIMAL}[jobs]\nnightly='{nightly}'\n");
            let error = Config::parse(&text, Path::new("b.toml")).unwrap_err().to_string();
            assert!(error.contains("jobs.nightly"), "{error}");
        }
    }
}
