//! A simulated wearable: `kinara-wearable-sim` with its flash image, its log of what it produced, and its
//! control socket.

use crate::process::{Launch, Process, Ready};
use crate::{ClinicError, Result, folders};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a wearable may take to answer on its control socket.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

/// What carries a wearable's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Air {
    /// The clinic's folder of sockets: `kinara-wearable-sim`.
    Virtual,
    /// A Bluetooth controller that speaks H4 on this TCP port of 127.0.0.1: `kinara-wearable-ble`.
    Bluetooth {
        /// The port.
        port: u16,
    },
}

impl Air {
    /// The program of a wearable on this air.
    pub fn program(self) -> &'static str {
        match self {
            Self::Virtual => "kinara-wearable-sim",
            Self::Bluetooth { .. } => "kinara-wearable-ble",
        }
    }

    fn arguments(self, folder: &Path, control: &Path) -> Vec<String> {
        match self {
            Self::Virtual => vec!["--air".to_owned(), folder.display().to_string()],
            Self::Bluetooth { port } => vec![
                "--h4".to_owned(),
                format!("127.0.0.1:{port}"),
                "--control".to_owned(),
                control.display().to_string(),
            ],
        }
    }
}

/// What a wearable is to be.
#[derive(Clone, Debug)]
pub struct WearablePlan {
    /// Its factory id, from which its hardware id follows.
    pub factory_id: u64,
    /// Its name over the air.
    pub name: String,
    /// The seed of its body, noise and crystal.
    pub seed: u64,
    /// What carries its words.
    pub air: Air,
    /// Further arguments of the simulator, for instance `["--prefill", "4h"]`.
    pub args: Vec<String>,
    /// Added to its environment.
    pub env: Vec<(String, String)>,
}

impl WearablePlan {
    /// A wearable of the reference plan.
    pub fn new(factory_id: u64, name: impl Into<String>, seed: u64) -> Self {
        Self { factory_id, name: name.into(), seed, air: Air::Virtual, args: Vec::new(), env: Vec::new() }
    }

    /// On this air.
    #[must_use]
    pub fn on(mut self, air: Air) -> Self {
        self.air = air;
        self
    }

    /// With further arguments of the simulator.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
}

/// A wearable of the clinic.
#[derive(Debug)]
pub struct Wearable {
    /// What it was made from.
    pub plan: WearablePlan,
    /// `kinara:` and the factory id in 16 hexadecimal digits.
    pub hardware_id: String,
    /// The 80-bit secret of its label, in base32.
    pub label_secret: String,
    /// Its own log of what it produced, written before its application sees a sample.
    pub produced: PathBuf,
    /// The folder with its flash image.
    pub state: PathBuf,
    control: PathBuf,
    process: Process,
}

impl Wearable {
    pub(crate) fn new(
        plan: WearablePlan,
        folder: &Path,
        logs: &Path,
        air: &Path,
        program: PathBuf,
        env: Vec<(String, String)>,
    ) -> Result<Self> {
        let id = format!("{:016x}", plan.factory_id);
        let own = folder.join("wearables").join(&id);
        let state = own.join("state");
        folders::make(&own, 0o755)?;
        folders::make(&state, 0o700)?;
        let produced = own.join("produced.log");
        let control = air.join(format!("{id}.ctl"));
        let label_secret = label_secret(plan.factory_id);
        let mut launch =
            Launch::new(format!("wearable {}", plan.name), program, logs.join(format!("wearable-{id}.log")))
                .args(["--factory-id", &id, "--name", &plan.name, "--seed", &plan.seed.to_string()])
                .args(plan.air.arguments(air, &control))
                .args(["--state".to_owned(), state.display().to_string()])
                .args(["--label-secret", &label_secret])
                .args(["--log".to_owned(), produced.display().to_string()])
                .args(plan.args.iter())
                .ready(Ready::Socket(control.clone()));
        launch.env = env;
        launch.env.extend(plan.env.iter().cloned());
        // Filling hours into its flash takes a moment.
        launch.start_timeout = Duration::from_mins(1);
        let hardware_id = format!("kinara:{id}");
        Ok(Self { plan, hardware_id, label_secret, produced, state, control, process: Process::new(launch) })
    }

    /// The process: killing it is a reset of the wearable, its flash stays.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Says something to its control socket, for instance `{"do":"drop"}`, and returns the answer.
    pub fn control(&self, command: &Value) -> Result<Value> {
        let failed = |error: std::io::Error| ClinicError::Answer {
            who: format!("wearable {}", self.plan.name),
            what: format!("no answer to {command}: {error}"),
        };
        let mut stream = UnixStream::connect(&self.control).map_err(failed)?;
        stream.set_read_timeout(Some(CONTROL_TIMEOUT)).map_err(failed)?;
        stream.write_all(format!("{command}\n").as_bytes()).map_err(failed)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(failed)?;
        serde_json::from_str(&line).map_err(|error| failed(std::io::Error::other(error)))
    }

    /// `{"do":"status"}`.
    pub fn status(&self) -> Result<Value> {
        self.control(&serde_json::json!({"do": "status"}))
    }
}

/// The secret on a simulated wearable's label: follows from its factory id, so that it needs no memory.
fn label_secret(factory_id: u64) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest =
        Sha256::new().chain_update(b"simulated label").chain_update(factory_id.to_be_bytes()).finalize();
    let bits = digest[..10].iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..16).rev().map(|place| char::from(ALPHABET[(bits >> (place * 5) & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_80_bits_in_16_characters() {
        let secret = label_secret(0x0123_4567_89ab_cdef);
        assert_eq!(secret.len(), 16);
        assert!(secret.chars().all(|c| c.is_ascii_uppercase() || ('2'..='7').contains(&c)));
        assert_ne!(secret, label_secret(1));
    }
}
