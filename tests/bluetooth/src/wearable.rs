//! A wearable over real Bluetooth that is no clinic's: `kinara-wearable-ble`, or any program that speaks H4.

use crate::{Result, file};
use kinara_clinic::{Launch, Process};
use std::path::{Path, PathBuf};

/// A program at a controller of the air.
#[derive(Debug)]
pub struct Wearable {
    name: String,
    process: Process,
    state: PathBuf,
}

impl Wearable {
    /// A program that is given these arguments, in which `{port}`, `{name}` and `{state}` stand for the TCP port of
    /// its controller, its name on the air and its own folder.
    pub fn new(
        name: &str,
        port: u16,
        program: &Path,
        args: &[String],
        folder: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let state = folder.join("wearables").join(name);
        std::fs::create_dir_all(&state).map_err(file(&state))?;
        let args = args.iter().map(|arg| {
            arg.replace("{port}", &port.to_string())
                .replace("{name}", name)
                .replace("{state}", &state.display().to_string())
        });
        let launch =
            Launch::new(format!("wearable {name}"), program, logs.join(format!("wearable-{name}.log")))
                .args(args);
        Ok(Self { name: name.to_owned(), process: Process::new(launch), state })
    }

    /// Its name on the air.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its program: killing it is a reset, its flash and its bonds stay.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its folder.
    pub fn state(&self) -> &Path {
        &self.state
    }
}
