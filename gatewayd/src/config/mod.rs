//! The configuration file.
//!
//! TOML; every field but a few has a default, and `gatewayd/gatewayd.example.toml` shows them all. Wrong configuration
//! names the file, the line, the field, and what would be accepted.

mod check;
mod sections;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

pub use check::ConfigError;
pub use sections::{Clock, Infer, Live, Local, Radio, Sensor, StoreSection, Transport, Uplink, Wearable};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This gateway's id, as issued at enrolment. No default.
    pub gateway_id: Uuid,
    /// Its name, for people. On the virtual radio it decides who hears it. Default `gateway`.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where everything is kept: the database, devices, the roster, `local.addr`. No default.
    pub data_dir: PathBuf,
    /// The radio.
    #[serde(default)]
    pub radio: Radio,
    /// The wearables bound to this gateway by configuration; more come by the roster.
    #[serde(default, rename = "wearable")]
    pub wearables: Vec<Wearable>,
    /// The gateway's clock.
    #[serde(default)]
    pub clock: Clock,
    /// The store.
    #[serde(default)]
    pub store: StoreSection,
    /// The way to the cloud. No default for its host.
    #[serde(default)]
    pub uplink: Uplink,
    /// Live values.
    #[serde(default)]
    pub live: Live,
    /// Inference.
    #[serde(default)]
    pub infer: Infer,
    /// The local page.
    #[serde(default)]
    pub local: Local,
    /// Traces of batches, to a collector.
    #[serde(default)]
    pub traces: kinara_traces::Settings,
}

fn default_name() -> String {
    "gateway".to_owned()
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let text = check::text(path, &bytes)?;
        Self::parse(path, text)
    }

    /// Reads and checks a text; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| check::syntax(path, text, &error))?;
        check::check(path, text, &config)?;
        config.name = check::name(&config).unwrap_or(config.name);
        Ok(config)
    }
}
