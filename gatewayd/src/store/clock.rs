//! What the store knows of time: syncs of our own, and the moment our clock becomes known or jumps.

use kinara_protocol::frame::Epoch;
use rusqlite::params;

use super::engine::Engine;
use super::{OwnSync, StoreError, piece};
use crate::align::source::Known;
use crate::hardware::HardwareId;

/// A change of our clock that makes us judge our own syncs of this boot anew.
const JUMP_US: i64 = 100_000;
/// How often the last time we were sure of is saved, microseconds.
const SAVE_EVERY_US: i64 = 30_000_000;

impl Engine {
    /// Keeps a sync; without a known clock it waits for one, by boot time.
    pub(super) fn own_sync(&mut self, hardware: &HardwareId, sync: OwnSync) -> Result<(), StoreError> {
        let known = self.known;
        let boot_id = self.boot_id().to_owned();
        let device = self.device(hardware)?;
        let anchor = known.map(|known| sync.anchor(&known));
        if let Some(anchor) = anchor {
            device.timeline.sync(sync.epoch, anchor);
        }
        let id = device.id;
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO anchors (device, epoch, ticks, utc_us, uncertainty_us, boot_us, boot_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                id,
                piece::epoch_to_sql(sync.epoch),
                sync.ticks as i64,
                anchor.map(|anchor| anchor.utc_us),
                anchor.map_or(sync.uncertainty_us, |anchor| anchor.uncertainty_us) as i64,
                sync.boot_us,
                boot_id
            ])?;
        Ok(())
    }

    /// Our clock became known, changed, or is not known any more.
    pub(super) fn clock_is(&mut self, known: Option<Known>) -> Result<(), StoreError> {
        let before = std::mem::replace(&mut self.known, known);
        let Some(now) = known else { return Ok(()) };
        let jumped =
            before.is_some_and(|before| (before.utc_minus_boot_us - now.utc_minus_boot_us).abs() > JUMP_US);
        if before.is_none() || jumped {
            self.resolve(&now, jumped)?;
        }
        let utc = now.utc_us(self.clock.boottime_us());
        if utc - self.meta("last_utc_us")?.unwrap_or(0) > SAVE_EVERY_US {
            self.set_meta("last_utc_us", utc)?;
        }
        Ok(())
    }

    /// Gives UTC to the syncs of this boot that wait for it; after a jump to all of this boot: the clock has been set
    /// right since they were made.
    fn resolve(&mut self, known: &Known, all: bool) -> Result<(), StoreError> {
        let boot_id = self.boot_id().to_owned();
        // The uncertainty of a waiting sync does not hold the clock's yet.
        let waiting = self.db.execute(
            "UPDATE anchors SET utc_us = boot_us + ?1, uncertainty_us = uncertainty_us + ?2
             WHERE boot_id = ?3 AND utc_us IS NULL",
            params![known.utc_minus_boot_us, known.uncertainty_us as i64, boot_id],
        )?;
        let moved = if all {
            self.db.execute(
                "UPDATE anchors SET utc_us = boot_us + ?1 WHERE boot_id = ?2 AND utc_us <> boot_us + ?1",
                params![known.utc_minus_boot_us, boot_id],
            )?
        } else {
            0
        };
        if waiting + moved == 0 {
            return Ok(());
        }
        tracing::info!(waiting, moved, "time syncs made before the clock was right have their time now");
        let mut select = self.db.prepare(
            "SELECT device, epoch, ticks, utc_us, uncertainty_us FROM anchors WHERE boot_id = ?1 AND utc_us IS NOT NULL",
        )?;
        let mut rows = select.query([&boot_id])?;
        let mut anchors = Vec::new();
        while let Some(row) = rows.next()? {
            let anchor = crate::align::fit::Anchor {
                ticks: row.get::<_, i64>(2)? as u64,
                utc_us: row.get(3)?,
                uncertainty_us: row.get::<_, i64>(4)? as u64,
            };
            anchors.push((row.get::<_, i64>(0)?, Epoch(row.get::<_, i64>(1)? as u64), anchor));
        }
        drop(rows);
        drop(select);
        for (device, epoch, anchor) in anchors {
            let device = self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware));
            if let Some(device) = device {
                device.timeline.correct(epoch, anchor);
            }
        }
        Ok(())
    }

    pub(super) fn last_saved_us(&self) -> i64 {
        self.meta("last_utc_us").ok().flatten().unwrap_or(0)
    }
}
