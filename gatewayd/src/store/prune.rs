//! The end of epochs and wearables that nothing refers to any more.
//!
//! A sensor of another maker begins an epoch with every connection, and a wearable with every start. What is known of an
//! old one is of use while its frames are here or may come again; after that it would only make the store larger.

use std::collections::HashSet;

use kinara_protocol::frame::Epoch;
use rusqlite::params;

use super::StoreError;
use super::damage::cell;
use super::engine::Engine;

/// Epochs of each wearable that are remembered though nothing of them is here, the ones that grew last.
const EPOCHS: usize = 16;
/// A wearable that was last heard of so long ago and is not bound here is forgotten, microseconds (90 days).
pub(super) const FORGOTTEN_US: i64 = 90 * 86_400_000_000;
/// A sync of an epoch of which nothing came is kept so long, microseconds (an hour).
const IDLE_US: i64 = 3_600_000_000;

impl Engine {
    /// Forgets old epochs, and wearables of which nothing is left, in the running transaction. A frame of such an epoch
    /// that comes all the same goes to the cloud again, and is a double there.
    pub(super) fn prune_epochs(&mut self) -> Result<(), StoreError> {
        self.write_staged()?;
        let here = self.epochs_here()?;
        let latest_us = self.latest_us().unwrap_or(i64::MAX);
        // What says that it grew long after now was noted by a clock that was wrong: it says nothing. (A little after: ours
        // went back a little since.)
        let seen = |seen_us: i64| if seen_us > latest_us { 0 } else { seen_us };
        let mut old = Vec::new();
        for device in self.devices.values() {
            let mut epochs: Vec<(i64, u64)> =
                device.epochs.iter().map(|(epoch, state)| (seen(state.seen_us), *epoch)).collect();
            epochs.sort_unstable_by(|a, b| b.cmp(a));
            let beyond = epochs.into_iter().skip(EPOCHS).map(|(_, epoch)| (device.id, epoch));
            old.extend(beyond.filter(|key| !here.contains(key) && !self.dirty.contains(key)));
        }
        for (device, epoch) in old {
            for table in ["epochs", "anchors", "wanted", "sealed_lines"] {
                let sql = format!("DELETE FROM {table} WHERE device = ?1 AND epoch = ?2");
                self.db.prepare_cached(&sql)?.execute([device, epoch as i64])?;
            }
            let Some(hardware) = self.hardware.get(&device) else { continue };
            if let Some(device) = self.devices.get_mut(hardware) {
                device.epochs.remove(&epoch);
                device.timeline.forget(Epoch(epoch));
            }
        }
        self.see_now_what_was_seen_in_the_future();
        self.prune_idle_anchors()?;
        self.prune_unnamed()?;
        self.prune_devices(&here)
    }

    /// An epoch that grew by a clock that was wrong grew now: else its wearable would be kept until it is as late as that.
    /// With the commit it is noted.
    fn see_now_what_was_seen_in_the_future(&mut self) {
        let latest_us = self.latest_us().unwrap_or(i64::MAX);
        for device in self.devices.values() {
            let ahead = device.epochs.iter().filter(|(_, state)| state.seen_us > latest_us);
            self.dirty.extend(ahead.map(|(epoch, _)| (device.id, *epoch)));
        }
    }

    /// Wearables and epochs with frames that the cloud has not confirmed.
    fn epochs_here(&self) -> Result<HashSet<(i64, u64)>, StoreError> {
        let mut here: HashSet<(i64, u64)> = self.figures.groups.keys().copied().collect();
        let mut select = self.db.prepare("SELECT held FROM batches WHERE kind = 0")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let held = super::damage::blob(row, 0).and_then(super::held::Held::from_bytes);
            here.extend(held.unwrap_or_default().0.into_keys());
        }
        Ok(here)
    }

    /// Syncs of epochs of which nothing ever came.
    fn prune_idle_anchors(&mut self) -> Result<(), StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT DISTINCT device, epoch FROM anchors
             WHERE (boot_id IS NOT ?1 OR boot_us < ?2)
               AND NOT EXISTS (SELECT 1 FROM epochs WHERE epochs.device = anchors.device
                                                      AND epochs.epoch = anchors.epoch)",
        )?;
        let old = self.clock.boottime_us() - IDLE_US;
        let idle: Vec<(i64, i64)> = select
            .query_map(params![self.boot_id(), old], |row| Ok((cell(row, 0), cell(row, 1))))?
            .filter_map(|row| row.map(|(device, epoch)| device.ok().zip(epoch.ok())).transpose())
            .collect::<Result<_, _>>()?;
        drop(select);
        for (device, epoch) in idle {
            let sql = "DELETE FROM anchors WHERE device = ?1 AND epoch = ?2";
            self.db.prepare_cached(sql)?.execute([device, epoch])?;
            let hardware = self.hardware.get(&device);
            if let Some(device) = hardware.and_then(|hardware| self.devices.get_mut(hardware)) {
                device.timeline.forget(Epoch(epoch as u64));
            }
        }
        Ok(())
    }

    /// A wearable that is bound to this box no more, and of which nothing has come for long or is in quarantine.
    fn prune_devices(&mut self, here: &HashSet<(i64, u64)>) -> Result<(), StoreError> {
        // A machine that does not know the time does not know what is long ago.
        let Some(now_us) = self.known_us() else { return Ok(()) };
        let (bound, age) = (self.board.now().devices, now_us - FORGOTTEN_US);
        let gone: Vec<i64> = self
            .devices
            .iter()
            .filter(|(hardware, device)| {
                !bound.contains_key(hardware)
                    && !device.epochs.is_empty()
                    && device.epochs.values().all(|epoch| epoch.seen_us < age)
                    && !here.iter().any(|(of, _)| *of == device.id)
            })
            .map(|(_, device)| device.id)
            .collect();
        for device in gone {
            let sql = "DELETE FROM devices WHERE id = ?1
                       AND NOT EXISTS (SELECT 1 FROM quarantine WHERE device = ?1)";
            if self.db.prepare_cached(sql)?.execute([device])? == 0 {
                continue;
            }
            for table in ["epochs", "anchors", "wanted", "sealed_lines", "sensors"] {
                self.db
                    .prepare_cached(&format!("DELETE FROM {table} WHERE device = ?1"))?
                    .execute([device])?;
            }
            if let Some(hardware) = self.hardware.remove(&device) {
                self.devices.remove(&hardware);
            }
        }
        Ok(())
    }
}
