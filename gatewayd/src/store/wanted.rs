//! Frames that were here and are lost: the wearable may still hold them, and is asked for them.
//!
//! Only what this box had is wanted. A frame that another gateway has taken over is none of its business, so what was never
//! received here is not; unless this box does not know any more what it had. After a run that did not end by itself it
//! may not know of the last of it: then each wearable is asked once for what is missing before the oldest frame that nobody
//! has acknowledged. Mostly there is nothing. A wearable that is paired afterwards is not asked: it had nothing from this box.

use std::collections::BTreeMap;

use kinara_protocol::frame::{Epoch, Seq};
use rusqlite::params;

use super::StoreError;
use super::damage::{Damage, cell};
use super::engine::Engine;
use super::ranges::SeqSet;
use crate::hardware::HardwareId;

/// Notes that this box does not know any more what it had. Who was asked before is asked again: it was another loss.
pub(super) const EVERYTHING: &str = "DELETE FROM meta WHERE key GLOB 'asked *';
    INSERT INTO meta (key, value) VALUES ('knows_nothing', 1) ON CONFLICT DO UPDATE SET value = 1";

/// Notes that the last of what this box had may be gone.
pub(super) const WHAT_FOLLOWS: &str = "DELETE FROM meta WHERE key GLOB 'followed *';
    INSERT INTO meta (key, value) VALUES ('was_killed', 1) ON CONFLICT DO UPDATE SET value = 1";

/// What is wanted of a wearable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// All that it holds: what was here is not known.
    pub everything: bool,
    /// These.
    pub frames: BTreeMap<Epoch, SeqSet>,
    /// And what follows these, the frames of each epoch that came here; none where that is not in doubt.
    pub behind: Option<BTreeMap<Epoch, SeqSet>>,
}

impl Engine {
    pub(super) fn wanted(&self, hardware: &HardwareId) -> Result<Wanted, StoreError> {
        let everything = self.meta("knows_nothing")?.is_some() && self.meta(&asked(hardware))?.is_none();
        let wanted = self.devices.get(hardware).map(|device| device.wanted.iter());
        let frames = wanted.into_iter().flatten().map(|(epoch, seqs)| (Epoch(*epoch), seqs.clone()));
        let frames = frames.collect();
        Ok(Wanted { everything, frames, behind: self.in_doubt(hardware)? })
    }

    fn in_doubt(&self, hardware: &HardwareId) -> Result<Option<BTreeMap<Epoch, SeqSet>>, StoreError> {
        if self.meta("was_killed")?.is_none() || self.meta(&followed(hardware))?.is_some() {
            return Ok(None);
        }
        let epochs = self.devices.get(hardware).map(|device| device.epochs.iter());
        let received =
            epochs.into_iter().flatten().map(|(epoch, state)| (Epoch(*epoch), state.received.clone()));
        Ok(Some(received.filter(|(_, seqs)| !seqs.is_empty()).collect()))
    }

    pub(super) fn no_longer_wanted(
        &mut self,
        hardware: &HardwareId,
        (epoch, seq): (Epoch, Seq),
    ) -> Result<(), StoreError> {
        if self.meta("knows_nothing")?.is_some() {
            self.set_meta(&asked(hardware), 1)?;
        }
        self.meet(hardware, epoch)?;
        let device = self.device(hardware)?;
        let id = device.id;
        let mut changed = Vec::new();
        for (of, seqs) in &mut device.wanted {
            let before = Epoch(*of);
            // A log with another id has been formatted since.
            if before < epoch || before.log_id() != epoch.log_id() {
                *seqs = SeqSet::default();
                changed.push((id, *of));
            } else if before == epoch {
                *seqs = seqs.without(0, i64::from(seq) - 1);
                changed.push((id, *of));
            }
        }
        device.wanted.retain(|_, seqs| !seqs.is_empty());
        for (device, epoch) in changed {
            self.write_wanted(device, epoch)?;
        }
        Ok(())
    }

    /// What may have come at the end of a run that was killed is here.
    pub(super) fn followed(&mut self, hardware: &HardwareId) -> Result<(), StoreError> {
        if self.meta("was_killed")?.is_some() { self.set_meta(&followed(hardware), 1) } else { Ok(()) }
    }

    /// These have been lost.
    pub(super) fn want(
        &mut self,
        hardware: &HardwareId,
        epoch: u64,
        seqs: &SeqSet,
    ) -> Result<(), StoreError> {
        self.device(hardware)?.wanted.entry(epoch).or_default().join(seqs);
        Ok(())
    }

    /// A frame has come.
    pub(super) fn has_come(&mut self, hardware: &HardwareId, epoch: u64, seq: Seq) {
        if let Some(device) = self.devices.get_mut(hardware)
            && let Some(seqs) = device.wanted.get_mut(&epoch)
        {
            *seqs = seqs.without(i64::from(seq), i64::from(seq));
        }
    }

    /// Writes what is wanted of an epoch, in the running transaction.
    pub(super) fn write_wanted(&mut self, device: i64, epoch: u64) -> Result<(), StoreError> {
        let Some(hardware) = self.hardware.get(&device) else { return Ok(()) };
        let Some(state) = self.devices.get_mut(hardware) else { return Ok(()) };
        if state.wanted.is_empty() && !self.wants {
            return Ok(());
        }
        self.wants = true;
        self.db
            .prepare_cached("DELETE FROM wanted WHERE device = ?1 AND epoch = ?2")?
            .execute(params![device, epoch as i64])?;
        for (first, last) in state.wanted.get(&epoch).map(SeqSet::ranges).unwrap_or_default() {
            self.db
                .prepare_cached(
                    "INSERT INTO wanted (device, epoch, first_seq, last_seq) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![device, epoch as i64, first, last])?;
        }
        if state.wanted.get(&epoch).is_some_and(SeqSet::is_empty) {
            state.wanted.remove(&epoch);
        }
        Ok(())
    }

    /// Reads what is wanted. Rows that cannot be read are nothing anybody can be asked for.
    pub(super) fn read_wanted(&mut self) -> Result<(), StoreError> {
        let mut select = self.db.prepare("SELECT device, epoch, first_seq, last_seq FROM wanted")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            self.wants = true;
            let read = || {
                Ok::<_, Damage>((cell::<i64>(row, 0)?, cell::<i64>(row, 1)?, cell(row, 2)?, cell(row, 3)?))
            };
            let Ok((device, epoch, first, last)) = read() else { continue };
            let device = self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware));
            if let Some(device) = device {
                device.wanted.entry(epoch as u64).or_default().insert_range(first, last);
            }
        }
        Ok(())
    }
}

fn asked(hardware: &HardwareId) -> String {
    format!("asked {hardware}")
}

fn followed(hardware: &HardwareId) -> String {
    format!("followed {hardware}")
}
