//! What of an epoch this box has had and has no more.
//!
//! The promise: a number told here was acknowledged by the bridge, or a gap told the bridge about it. The cloud holds that
//! against what it has, every night: a frame that only this list knows of is one that the cloud has lost.
//!
//! So nothing is told of a wearable while a sealed batch of its frames waits (a batch's numbers are in its payload) or a
//! gap does, and nothing from the first frame on that is not sealed yet.

use kinara_protocol::frame::Epoch;
use rusqlite::params;

use super::StoreError;
use super::damage::cell;
use super::engine::Engine;
use super::ranges::SeqSet;
use crate::hardware::HardwareId;

/// A wearable, and what is told of one of its epochs; nothing while that cannot be said for sure.
pub(super) type Told = (HardwareId, Option<(Epoch, SeqSet)>);

/// Ranges that are told. Of an epoch with more holes the newest are.
const RANGES: usize = 256;

impl Engine {
    /// For each wearable, what is delivered of one of its epochs, drawn by lot: over time all of them are told. Offline,
    /// or while batches wait, there is nothing to tell and much to count.
    pub(super) fn delivered(&self) -> Result<Vec<Told>, StoreError> {
        let silent = !self.online
            || self.figures.batches > 0
            || self
                .db
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM events INDEXED BY events_sealed WHERE gap = 1 AND body IS NOT NULL)")?
                .query_row([], |row| row.get::<_, bool>(0))?;
        let mut out = Vec::with_capacity(self.devices.len());
        for (hardware, device) in &self.devices {
            let lot = rand::random_range(0..device.epochs.len().max(1));
            let mut told = None;
            if let Some((&epoch, state)) = device.epochs.iter().nth(lot)
                && !silent
            {
                // A number that cannot be read says nothing for sure.
                let (unsealed, first) = self
                    .db
                    .prepare_cached(
                        "SELECT coalesce(sum(frames), 0), min(CASE WHEN epoch IS NOT ?2 THEN NULL
                            WHEN typeof(first_seq) = 'integer' THEN first_seq ELSE -1 END)
                         FROM pieces WHERE device = ?1",
                    )?
                    .query_row(params![device.id, epoch as i64], |row| {
                        Ok((cell::<i64>(row, 0).ok(), cell::<Option<i64>>(row, 1).ok()))
                    })?;
                let (staged, first_staged) = self.staged.of(device.id, epoch);
                if let (Some(unsealed), Some(first)) = (unsealed, first)
                    && unsealed.unsigned_abs() + staged == device.buffered
                {
                    let first = first.into_iter().chain(first_staged).min();
                    let before = first.map_or(i64::MAX, |first| first - 1);
                    told = Some((Epoch(epoch), state.received.within(0, before).newest(RANGES)));
                }
            }
            out.push((hardware.clone(), told));
        }
        Ok(out)
    }
}
