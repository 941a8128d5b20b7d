//! A clinic's gateway: `kinara-gatewayd` with its data folder, certificate and configuration.

use crate::process::{Launch, Process, Ready};
use crate::{ClinicError, Result, folders};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What a gateway is to be.
#[derive(Clone, Debug, Default)]
pub struct GatewayPlan {
    /// Its name: what wearables hear, and the name of its folder.
    pub name: String,
    /// Added to its configuration, over what the clinic writes (a table in a table is merged).
    pub extra: toml::Table,
    /// Added to its environment.
    pub env: Vec<(String, String)>,
}

impl GatewayPlan {
    /// A gateway with this name and the defaults.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// With this TOML laid over its configuration.
    #[must_use]
    pub fn with(mut self, extra: &str) -> Self {
        merge(&mut self.extra, toml::from_str(extra).expect("a test's own TOML is valid"));
        self
    }
}

/// A gateway of the clinic.
#[derive(Debug)]
pub struct Gateway {
    /// Its identity, as enrolled, and the common name of its certificate.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its data: the database of frames, `local.addr`.
    pub data: PathBuf,
    configuration: PathBuf,
    base: toml::Table,
    wearables: Vec<(String, String)>,
    process: Process,
}

pub(crate) struct Surroundings<'a> {
    pub folder: &'a Path,
    pub logs: &'a Path,
    pub air: &'a Path,
    pub program: PathBuf,
    pub uplink: toml::Table,
    pub models: Option<&'a crate::clinic::Models>,
    pub env: Vec<(String, String)>,
}

impl Gateway {
    pub(crate) fn new(id: Uuid, plan: GatewayPlan, around: Surroundings<'_>) -> Result<Self> {
        let folder = around.folder.join("gateways").join(&plan.name);
        let data = folder.join("data");
        folders::make(&folder, 0o755)?;
        folders::make(&data, 0o700)?;
        let mut base = toml::Table::new();
        base.insert("gateway_id".into(), id.to_string().into());
        base.insert("name".into(), plan.name.clone().into());
        base.insert("data_dir".into(), path(&data));
        base.insert("radio".into(), table([("transport", "virtual".into()), ("air_dir", path(around.air))]));
        base.insert("clock".into(), table([("trust_system", true.into())]));
        base.insert("uplink".into(), toml::Value::Table(around.uplink));
        base.insert("live".into(), table([("always", true.into())]));
        base.insert(
            "local".into(),
            table([("listen", "127.0.0.1:0".into()), ("page_listen", "127.0.0.1:0".into())]),
        );
        let infer = match around.models {
            Some(models) => table([
                ("enabled", true.into()),
                ("onnxruntime", path(&models.onnxruntime)),
                ("model", path(&models.model)),
            ]),
            None => table([("enabled", false.into())]),
        };
        base.insert("infer".into(), infer);
        merge(&mut base, plan.extra);
        let configuration = folder.join("gatewayd.toml");
        let mut launch = Launch::new(
            format!("gateway {}", plan.name),
            around.program,
            around.logs.join(format!("gateway-{}.log", plan.name)),
        )
        .args(["--config".to_owned(), configuration.display().to_string()])
        .ready(Ready::HttpAt(data.join("local.addr")));
        launch.env = around.env;
        launch.env.extend(plan.env);
        let process = Process::new(launch);
        let gateway = Self { id, name: plan.name, data, configuration, base, wearables: Vec::new(), process };
        gateway.write_configuration()?;
        Ok(gateway)
    }

    /// Tells it of a wearable: counts from its next start on.
    pub fn knows(&mut self, hardware_id: &str, label_secret: &str) -> Result<()> {
        if !self.wearables.iter().any(|(known, _)| known == hardware_id) {
            self.wearables.push((hardware_id.to_owned(), label_secret.to_owned()));
        }
        self.write_configuration()
    }

    /// Takes a wearable from it: counts from its next start on.
    pub fn forgets(&mut self, hardware_id: &str) -> Result<()> {
        self.wearables.retain(|(known, _)| known != hardware_id);
        self.write_configuration()
    }

    /// Lays this TOML over its configuration: counts from its next start on.
    pub fn configure(&mut self, extra: &str) -> Result<()> {
        merge(&mut self.base, toml::from_str(extra).expect("a test's own TOML is valid"));
        self.write_configuration()
    }

    /// The file with its certificate.
    pub fn certificate(&self) -> Result<PathBuf> {
        let uplink = self.base.get("uplink").and_then(toml::Value::as_table);
        let cert = uplink.and_then(|uplink| uplink.get("cert")).and_then(toml::Value::as_str);
        cert.map(PathBuf::from).ok_or_else(|| ClinicError::Answer {
            who: format!("gateway {}", self.name),
            what: "has no certificate".to_owned(),
        })
    }

    /// The process: to start, kill, stop and hang it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where its status page, `/metrics` and `/healthz` are, while it runs.
    pub fn local(&self) -> Option<SocketAddr> {
        self.process.address()
    }

    /// The text of its `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let missing = |what: String| ClinicError::Answer { who: format!("gateway {}", self.name), what };
        let address = self.local().ok_or_else(|| missing("has not said where it listens".to_owned()))?;
        crate::process::http_get(address, "/metrics")
            .map(|(_, body)| body)
            .map_err(|error| missing(format!("/metrics: {error}")))
    }

    /// Has its data lie in this folder, which must be empty: before its first start.
    pub fn lies_at(&mut self, folder: &Path) -> Result<()> {
        std::fs::remove_dir(&self.data).map_err(ClinicError::file(&self.data))?;
        std::os::unix::fs::symlink(folder, &self.data).map_err(ClinicError::file(&self.data))
    }

    /// Copies its data folder, as a backup program would while it is stopped.
    pub fn copy_data(&self, to: &Path) -> Result<()> {
        copy_folder(&self.data, to)
    }

    /// Puts a copy in the place of its data, or nothing (a new disk) when there is none to put. Stop it first.
    pub fn replace_data(&mut self, copy: Option<&Path>) -> Result<()> {
        std::fs::remove_dir_all(&self.data).map_err(ClinicError::file(&self.data))?;
        match copy {
            Some(copy) => copy_folder(copy, &self.data),
            None => folders::make(&self.data, 0o700),
        }
    }

    fn write_configuration(&self) -> Result<()> {
        let mut whole = self.base.clone();
        let wearables: Vec<toml::Value> = self
            .wearables
            .iter()
            .map(|(hardware, secret)| {
                table([("hardware_id", hardware.clone().into()), ("label_secret", secret.clone().into())])
            })
            .collect();
        whole.insert("wearable".into(), wearables.into());
        let text = toml::to_string(&whole).expect("tables of strings, numbers and tables can be written");
        folders::write_secret(&self.configuration, &text)
    }
}

pub(crate) fn path(path: &Path) -> toml::Value {
    path.display().to_string().into()
}

pub(crate) fn table<const N: usize>(fields: [(&str, toml::Value); N]) -> toml::Value {
    toml::Value::Table(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Lays `over` over `base`; tables are merged, everything else is replaced.
pub(crate) fn merge(base: &mut toml::Table, over: toml::Table) {
    for (name, value) in over {
        match (base.get_mut(&name), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(name, value);
            }
        }
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    folders::make(to, 0o700)?;
    for entry in std::fs::read_dir(from).map_err(ClinicError::file(from))? {
        let entry = entry.map_err(ClinicError::file(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).map_err(ClinicError::file(&source))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_adds_is_merged_into_the_sections_that_are_there() {
        let mut base: toml::Table = toml::from_str("[store]\nsoft = 1\nhard = 2\n").unwrap();
        merge(&mut base, toml::from_str("[store]\nsoft = 5\n[more]\nx = 1\n").unwrap());
        let expected: toml::Table = toml::from_str("[store]\nsoft = 5\nhard = 2\n[more]\nx = 1\n").unwrap();
        assert_eq!(base, expected);
    }
}
