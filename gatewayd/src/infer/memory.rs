//! What was reported, kept over a restart.
//!
//! A small file, replaced as a whole when an event was put into the outbox. It is written after the outbox: a daemon
//! killed between the two puts the same key again, which changes nothing. A file that cannot be read is set aside:
//! the worst that follows is a second event for an episode that is going on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::hardware::HardwareId;
use crate::pipeline::NewEvent;

/// Onsets remembered for each device and producer.
const REMEMBERED: usize = 4;

/// Device, then producer, then (epoch, onset tick), oldest first.
type Onsets = BTreeMap<String, BTreeMap<String, Vec<Onset>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Onset {
    epoch: u64,
    ticks: u64,
}

/// The file and what is in it.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    onsets: Onsets,
}

impl Memory {
    /// Reads the file in `data_dir`, if there is one.
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("infer.json");
        let onsets = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %path.display(), "what was reported cannot be read; starting without");
                let _ = std::fs::rename(&path, path.with_extension("json.broken"));
                Onsets::new()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %path.display(), "what was reported cannot be read");
                }
                Onsets::new()
            }
        };
        Self { path, onsets }
    }

    /// What a producer has reported of a device, as (epoch, onset tick).
    pub fn onsets(&self, hardware: &HardwareId, producer: &str) -> impl Iterator<Item = (u64, u64)> + '_ {
        let of_device = self.onsets.get(hardware.as_str());
        of_device.and_then(|d| d.get(producer)).into_iter().flatten().map(|o| (o.epoch, o.ticks))
    }

    /// Remembers an event that is in the outbox.
    pub fn reported(&mut self, event: &NewEvent) {
        let of_device = self.onsets.entry(event.hardware.as_str().to_owned()).or_default();
        let onsets = of_device.entry(event.producer.clone()).or_default();
        onsets.push(Onset { epoch: event.epoch, ticks: event.onset_ticks });
        if onsets.len() > REMEMBERED {
            onsets.remove(0);
        }
        let written = serde_json::to_vec(&self.onsets)
            .map_err(std::io::Error::from)
            .and_then(|bytes| files::write_uncopied(&self.path, &bytes));
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.path.display(), "what was reported is not remembered over a restart");
        }
    }
}
