//! The firmware that runs on the simulated wearable: its version, the slot that an update comes into, and what a bootloader
//! does with it.
//!
//! The slot, its rules and what is verified again at the installation are the wearable's own
//! (`kinara_firmware_app::update`). The bootloader is simulated: an installed image is tried once; healthy for long enough it is confirmed, and a restart before that brings the one before back. An
//! image whose payload begins with `hangs` does nothing, so that its watchdog bites.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use kinara_firmware_app::flash::PAGE;
use kinara_firmware_app::update::install::{Installed, Target};
use kinara_firmware_app::update::{Accepts, Ask, Failure, Updater};
use kinara_protocol::control::Outcome;
use kinara_protocol::frame::{ResetReason, Ticks};
use kinara_protocol::image::Board;
use serde_json::{Value, json};

use crate::flash_file::{FlashFile, ImageError};

/// The version that it leaves the factory with.
pub const FACTORY: [u8; 3] = [0, 1, 0];
/// What the slot holds: 512 KiB, and its record.
const SLOT_PAGES: u32 = 129;
/// A tried image that hangs is restarted after so long.
const WATCHDOG_MS: u64 = 8_000;
const HANGS: &[u8] = b"hangs";

/// How updates are taken.
#[derive(Debug, Clone, Copy)]
pub struct Updates {
    /// Whose images; none without.
    pub maker: Option<[u8; 32]>,
    /// How long a tried image has to be healthy.
    pub healthy_ms: u64,
}

/// A version that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    before: [u8; 3],
    hangs: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Firmware {
    path: PathBuf,
    updates: Updates,
    version: [u8; 3],
    trial: Option<Trial>,
    updater: Updater<FlashFile>,
}

/// Where an image is started from.
#[derive(Debug, Default)]
struct Place(Vec<u8>);

impl Target for Place {
    type Error = Infallible;

    fn write(&mut self, at: u32, page: &[u8; PAGE as usize]) -> Result<(), Infallible> {
        self.0.resize(at as usize, 0);
        self.0.extend(page);
        Ok(())
    }

    fn read(&mut self, at: u32, into: &mut [u8]) -> Result<(), Infallible> {
        into.copy_from_slice(&self.0[at as usize..][..into.len()]);
        Ok(())
    }
}

impl Firmware {
    /// What the state's folder holds, or a wearable from the factory; a start of the program is a restart.
    pub fn open(state: &Path, updates: Updates) -> Result<Self, ImageError> {
        let path = state.join("firmware.json");
        let (version, trial) = std::fs::read(&path)
            .ok()
            .and_then(|text| read(&serde_json::from_slice(&text).ok()?))
            .unwrap_or((FACTORY, None));
        let mut firmware = Self { updater: updater(state, updates, version)?, path, updates, version, trial };
        firmware.restart().map_err(|source| ImageError::Open { path: firmware.path.clone(), source })?;
        Ok(firmware)
    }

    /// The version that runs.
    pub fn version(&self) -> [u8; 3] {
        self.version
    }

    /// Answers a gateway; the flag asks for a restart once the answer has gone.
    pub fn answer(&mut self, ask: &Ask) -> (Outcome, bool) {
        self.updater.answer(ask)
    }

    /// A restart, as the bootloader has it: a verified image is tried, one that was tried and not confirmed goes.
    pub fn restart(&mut self) -> io::Result<()> {
        if let Some(trial) = self.trial.take() {
            eprintln!("firmware {:?} did not prove itself; back to {:?}", self.version, trial.before);
            self.version = trial.before;
            self.save()?;
        }
        self.updater.runs(self.version);
        let mut place = Place::default();
        match self.updater.install(&mut place).map_err(flash)? {
            Installed::None => {}
            Installed::Ready(header) => {
                self.updater.clear().map_err(flash)?;
                self.trial = Some(Trial { before: self.version, hangs: place.0.starts_with(HANGS) });
                self.version = header.version;
                self.updater.runs(self.version);
                eprintln!("firmware {:?} is tried", self.version);
                self.save()?;
            }
            other => eprintln!("what is in the slot is not installed: {other:?}"),
        }
        Ok(())
    }

    /// Time passes. A reason to restart, if there is one.
    pub fn step(&mut self, now: Ticks) -> io::Result<Option<ResetReason>> {
        match self.trial {
            Some(Trial { hangs: true, .. }) if now.0 >= WATCHDOG_MS => Ok(Some(ResetReason::Watchdog)),
            Some(Trial { hangs: false, .. }) if now.0 >= self.updates.healthy_ms => {
                self.trial = None;
                eprintln!("firmware {:?} is confirmed", self.version);
                self.save()?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn save(&self) -> io::Result<()> {
        let trial = self.trial.map(|trial| json!({"before": trial.before, "hangs": trial.hangs}));
        let new = self.path.with_extension("new");
        std::fs::write(&new, json!({"version": self.version, "trial": trial}).to_string())?;
        std::fs::rename(new, &self.path)
    }
}

fn read(kept: &Value) -> Option<([u8; 3], Option<Trial>)> {
    let version = |value: &Value| -> Option<[u8; 3]> {
        let parts: Vec<u8> =
            value.as_array()?.iter().filter_map(|part| part.as_u64()?.try_into().ok()).collect();
        parts.try_into().ok()
    };
    let trial = kept.get("trial").and_then(|trial| {
        Some(Trial { before: version(&trial["before"])?, hangs: trial["hangs"].as_bool()? })
    });
    Some((version(&kept["version"])?, trial))
}

fn updater(state: &Path, updates: Updates, version: [u8; 3]) -> Result<Updater<FlashFile>, ImageError> {
    let (slot, _) = FlashFile::open(&state.join("update.img"), SLOT_PAGES)?;
    // Nobody has signed by a key of zeros.
    let maker = updates.maker.unwrap_or([0; 32]);
    Ok(Updater::new(slot, Accepts { board: Board::SIMULATOR, version, maker }))
}

fn flash(failure: Failure<io::Error>) -> io::Error {
    match failure {
        Failure::Flash(error) => error,
        Failure::Refused(refusal) => io::Error::other(format!("the slot: {refusal:?}")),
    }
}
