//! What the tables hold, read into memory. Every row that cannot be read is set aside on the way, alone.

use std::collections::HashMap;

use kinara_protocol::frame::{Body, Epoch, FrameRef};
use rusqlite::Row;
use rusqlite::types::Value;

use super::StoreError;
use super::damage::{BrokenRow, Damage, blob, broken_anchor, broken_row, cell};
use super::engine::{Device, Engine, EpochState};
use super::ranges::SeqSet;
use crate::align::fit::Anchor;
use crate::hardware::HardwareId;

impl Engine {
    /// Reads into memory what is kept on disk. What waited for its commit is forgotten.
    pub(super) fn reload(&mut self) -> Result<(), StoreError> {
        self.devices.clear();
        self.hardware.clear();
        self.recent.clear();
        self.recent_order.clear();
        self.staged.clear();
        self.dirty.clear();
        self.events_looked_at = 0;
        self.open_gaps.clear();
        self.see_what_is_aside()?;
        let mut broken = Vec::new();
        let named = self.read_devices(&mut broken)?;
        let mut devices = std::mem::take(&mut self.devices);
        let anew = self
            .read_anchors(&mut devices, &mut broken)
            .and_then(|()| self.read_epochs(&mut devices, &mut broken));
        self.devices = devices;
        let anew = anew?;
        self.read_wanted()?;
        self.read_sensors()?;
        self.begin()?;
        self.mend_events()?;
        self.set_rows_aside(&broken)?;
        self.name_again(named)?;
        self.see_unnamed()?;
        for (hardware, epoch) in anew {
            self.begin_epoch_anew(&hardware, epoch)?;
        }
        self.recount()?;
        // Before that more may come, of which it is not lost.
        if self.next_left()?.is_none() {
            self.tell_lost()?;
        }
        self.unseal_orphans()?;
        self.commit()
    }

    /// Reads the wearables; gives those whose name is damaged in its row and whole in its index.
    fn read_devices(&mut self, broken: &mut Vec<BrokenRow>) -> Result<Vec<(i64, HardwareId)>, StoreError> {
        self.read_named(broken)?;
        let mut named = Vec::new();
        for row in &*broken {
            let Some((_, Value::Integer(id))) = row.keys.first() else { continue };
            let Some(hardware) = self.name_by_index(*id) else { continue };
            if !self.devices.contains_key(&hardware) {
                self.hardware.insert(*id, hardware.clone());
                self.devices.insert(hardware.clone(), Device { id: *id, ..Device::default() });
                named.push((*id, hardware));
            }
        }
        Ok(named)
    }

    fn read_named(&mut self, broken: &mut Vec<BrokenRow>) -> Result<(), StoreError> {
        let mut select = self.db.prepare("SELECT id, hardware FROM devices")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            match device_in(row) {
                Ok((id, hardware)) => {
                    self.hardware.insert(id, hardware.clone());
                    self.devices.insert(hardware, Device { id, ..Device::default() });
                }
                Err(damage) => broken.push(broken_row("devices", &["id"], "hardware", row, damage)?),
            }
        }
        Ok(())
    }

    fn read_anchors(
        &self,
        devices: &mut HashMap<HardwareId, Device>,
        broken: &mut Vec<BrokenRow>,
    ) -> Result<(), StoreError> {
        let mut select = self
            .db
            .prepare("SELECT device, epoch, ticks, utc_us, uncertainty_us, boot_us, boot_id FROM anchors")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            match anchor_in(row) {
                Ok((device, epoch, anchor)) => {
                    let device = self.hardware.get(&device).and_then(|hardware| devices.get_mut(hardware));
                    if let (Some(device), Some(anchor)) = (device, anchor) {
                        device.timeline.sync(epoch, anchor);
                    }
                }
                Err(damage) => broken.push(broken_anchor(row, damage)?),
            }
        }
        Ok(())
    }

    /// Reads them under way; what cannot be read is left to the next start.
    pub(super) fn read_anchors_again(&mut self) -> Result<(), StoreError> {
        let mut devices = std::mem::take(&mut self.devices);
        let read = self.read_anchors(&mut devices, &mut Vec::new());
        self.devices = devices;
        read
    }

    /// Reads what is noted of epochs; gives those whose note is damaged, and has to begin anew.
    pub(super) fn read_epochs(
        &self,
        devices: &mut HashMap<HardwareId, Device>,
        broken: &mut Vec<BrokenRow>,
    ) -> Result<Vec<(HardwareId, u64)>, StoreError> {
        let mut anew = Vec::new();
        let mut select =
            self.db.prepare("SELECT device, epoch, received, last_ticks, boot, seen_us FROM epochs")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let key = cell::<i64>(row, 0).and_then(|device| Ok((device, cell::<i64>(row, 1)? as u64)));
            let hardware = key.as_ref().ok().and_then(|(device, _)| self.hardware.get(device));
            match (key.as_ref().map_err(Damage::clone).and_then(|_| epoch_in(row)), hardware) {
                (Ok(state), Some(hardware)) => {
                    let epoch = key.expect("it was read").1;
                    let Some(device) = devices.get_mut(hardware) else { continue };
                    device.timeline.reached(Epoch(epoch), state.last_ticks);
                    if let Some(bytes) = &state.boot
                        && let Ok(frame) = FrameRef::parse(bytes)
                        && let Ok(Body::BootAnchor(boot)) = frame.body()
                    {
                        device.timeline.boot(Epoch(epoch), boot);
                    }
                    device.epochs.insert(epoch, state);
                }
                // Its wearable may come and say who it is.
                (Ok(_), None) => {}
                (Err(damage), hardware) => {
                    broken.push(broken_row("epochs", &["device", "epoch"], "received", row, damage)?);
                    anew.extend(hardware.cloned().zip(key.ok().map(|(_, epoch)| epoch)));
                }
            }
        }
        Ok(anew)
    }

    /// What lies here is known to have been received; a frame that went to the cloud before and comes again goes there
    /// again, and is a double.
    fn begin_epoch_anew(&mut self, hardware: &HardwareId, epoch: u64) -> Result<(), StoreError> {
        tracing::error!(
            %hardware, epoch = %Epoch(epoch),
            "the note of what was received is damaged; it begins anew with what waits here"
        );
        let id = self.device(hardware)?.id;
        let received = self.here(id, epoch, (i64::MIN, i64::MAX))?;
        self.device(hardware)?.epochs.entry(epoch).or_default().received = received;
        self.dirty.insert((id, epoch));
        Ok(())
    }
}

fn device_in(row: &Row<'_>) -> Result<(i64, HardwareId), Damage> {
    let (id, name): (i64, String) = (cell(row, 0)?, cell(row, 1)?);
    Ok((id, HardwareId::parse(&name).map_err(|error| Damage(error.to_string()))?))
}

fn anchor_in(row: &Row<'_>) -> Result<(i64, Epoch, Option<Anchor>), Damage> {
    // Whoever looks for the syncs of this boot reads these.
    let _: (Option<i64>, Option<String>) = (cell(row, 5)?, cell(row, 6)?);
    let ticks = cell::<i64>(row, 2)? as u64;
    let (utc_us, uncertainty_us): (Option<i64>, i64) = (cell(row, 3)?, cell(row, 4)?);
    let anchor = utc_us.map(|utc_us| Anchor { ticks, utc_us, uncertainty_us: uncertainty_us as u64 });
    Ok((cell(row, 0)?, Epoch(cell::<i64>(row, 1)? as u64), anchor))
}

fn epoch_in(row: &Row<'_>) -> Result<EpochState, Damage> {
    let received = SeqSet::from_bytes(blob(row, 2)?);
    Ok(EpochState {
        received: received.ok_or_else(|| Damage("no ranges of received frames".to_owned()))?,
        last_ticks: cell::<i64>(row, 3)? as u64,
        boot: cell(row, 4)?,
        seen_us: cell(row, 5)?,
    })
}
