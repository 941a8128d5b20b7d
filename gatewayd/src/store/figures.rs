//! Numbers kept along with the tables, so that nothing has to be counted while the gateway works.

use std::collections::HashMap;

use rusqlite::Row;

use super::damage::{Broken, Damage, blob, cell, count};
use super::engine::Engine;
use super::held::Held;
use super::outbox::Kind;
use super::{StoreError, piece};

/// Wearable, epoch and class.
pub(super) type Key = (i64, u64, i64);

/// Frames of one epoch that are not sealed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Group {
    pub frames: u64,
    pub bytes: u64,
    pub oldest_boot_us: i64,
}

/// The numbers.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub unsealed_frames: u64,
    pub unsealed_bytes: u64,
    /// By wearable and epoch.
    pub groups: HashMap<(i64, u64), Group>,
    pub batches: u64,
    pub event_batches: u64,
    pub parked: u64,
    pub quarantined: u64,
    pub damaged: u64,
    /// Frames in small rows.
    pub loose: HashMap<Key, u64>,
    pub used_bytes: u64,
    /// In the database, of which SQLite can make use without the disk.
    pub free_bytes: u64,
    pub disk_free: u64,
    /// SQLite or the file system said that the disk is full; until there is room again.
    pub disk_full: bool,
    pub ticks: u64,
}

impl Figures {
    /// Frames have come to an epoch.
    pub fn add(&mut self, key: (i64, u64), frames: u64, bytes: u64, boot_us: i64) {
        self.unsealed_frames += frames;
        self.unsealed_bytes += bytes;
        let group = self.groups.entry(key).or_insert(Group { oldest_boot_us: boot_us, ..Group::default() });
        group.frames += frames;
        group.bytes += bytes;
        group.oldest_boot_us = group.oldest_boot_us.min(boot_us);
    }

    /// Where the next rows can go. The file of a database never shrinks: what was full is emptied within it.
    pub fn room(&self) -> u64 {
        self.disk_free + self.free_bytes
    }

    /// Frames of an epoch have gone.
    pub fn take(&mut self, key: (i64, u64), frames: u64, bytes: u64) {
        self.unsealed_frames = self.unsealed_frames.saturating_sub(frames);
        self.unsealed_bytes = self.unsealed_bytes.saturating_sub(bytes);
        if let Some(group) = self.groups.get_mut(&key) {
            group.frames = group.frames.saturating_sub(frames);
            group.bytes = group.bytes.saturating_sub(bytes);
            if group.frames == 0 {
                self.groups.remove(&key);
            }
        }
    }
}

impl Engine {
    /// Counts from the tables, and sets aside what cannot be counted, in the running transaction.
    pub(super) fn recount(&mut self) -> Result<(), StoreError> {
        self.write_staged()?;
        let broken = self.count_all()?;
        self.set_uncounted_aside(broken)
    }

    /// Sets aside what could not be counted, in the running transaction. Each of them counts again.
    pub(super) fn set_uncounted_aside(
        &mut self,
        (pieces, batches): (Broken, Broken),
    ) -> Result<(), StoreError> {
        self.set_pieces_aside(pieces)?;
        for (rowid, damage) in batches {
            self.set_batch_aside(rowid, &damage)?;
        }
        Ok(())
    }

    fn count_all(&mut self) -> Result<(Broken, Broken), StoreError> {
        let kept = std::mem::take(&mut self.figures);
        for device in self.devices.values_mut() {
            device.buffered = 0;
        }
        self.figures = Figures {
            used_bytes: kept.used_bytes,
            free_bytes: kept.free_bytes,
            disk_free: kept.disk_free,
            disk_full: kept.disk_full,
            ticks: kept.ticks,
            quarantined: self.count_rows("quarantine")?,
            damaged: self.count_rows("damaged")?,
            ..Figures::default()
        };
        self.next_ordinal = 1;
        self.count_behind((i64::MIN, i64::MIN))
    }

    /// Counts the rows of frames and of batches behind these.
    pub(super) fn count_behind(
        &mut self,
        (piece, batch): (i64, i64),
    ) -> Result<(Broken, Broken), StoreError> {
        Ok((self.count_pieces(piece)?, self.count_batches(batch)?))
    }

    fn count_pieces(&mut self, behind: i64) -> Result<Broken, StoreError> {
        let mut broken = Vec::new();
        let mut select = self.db.prepare(
            "SELECT id, device, epoch, class, form, frames, bytes, received_boot_us, received_us FROM pieces
             WHERE id > ?1",
        )?;
        let mut rows = select.query([behind])?;
        while let Some(row) = rows.next()? {
            match counted(row) {
                Ok((key, form, group)) => {
                    self.figures.add((key.0, key.1), group.frames, group.bytes, group.oldest_boot_us);
                    let loose = if form == piece::FORM_RAW { group.frames } else { 0 };
                    *self.figures.loose.entry(key).or_default() += loose;
                    let device =
                        self.hardware.get(&key.0).and_then(|hardware| self.devices.get_mut(hardware));
                    if let Some(device) = device {
                        device.buffered += group.frames;
                    }
                }
                Err(damage) => broken.push((row.get(0)?, damage)),
            }
        }
        Ok(broken)
    }

    fn count_batches(&mut self, behind: i64) -> Result<Broken, StoreError> {
        let mut broken = Vec::new();
        let mut select = self.db.prepare(
            "SELECT rowid, kind, state, ordinal, held, buffer, sequence FROM batches WHERE rowid > ?1",
        )?;
        let mut rows = select.query([behind])?;
        while let Some(row) = rows.next()? {
            match counted_batch(row) {
                Ok((kind, state, ordinal, held)) => {
                    self.next_ordinal = self.next_ordinal.max(ordinal.saturating_add(1));
                    match (kind, state) {
                        (_, 1) => self.figures.parked += 1,
                        (Kind::Batch, _) => self.figures.batches += 1,
                        (Kind::Event, _) => self.figures.event_batches += 1,
                    }
                    for (device, frames) in held.counts() {
                        let device =
                            self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware));
                        if let Some(device) = device {
                            device.buffered += frames;
                        }
                    }
                }
                Err(damage) => broken.push((row.get(0)?, damage)),
            }
        }
        Ok(broken)
    }
}

fn counted(row: &Row<'_>) -> Result<(Key, i64, Group), Damage> {
    let (device, epoch, class): (i64, i64, i64) = (cell(row, 1)?, cell(row, 2)?, cell(row, 3)?);
    cell::<i64>(row, 8)?;
    let group = Group { frames: count(row, 5)?, bytes: count(row, 6)?, oldest_boot_us: cell(row, 7)? };
    Ok(((device, epoch as u64, class), cell(row, 4)?, group))
}

fn counted_batch(row: &Row<'_>) -> Result<(Kind, i64, i64, Held), Damage> {
    let kind = match cell::<i64>(row, 1)? {
        0 => Kind::Batch,
        1 => Kind::Event,
        other => return Err(Damage(format!("a batch of the kind {other}"))),
    };
    let (state, ordinal) = (cell(row, 2)?, cell(row, 3)?);
    let _: (i64, i64) = (cell(row, 5)?, cell(row, 6)?);
    Ok((kind, state, ordinal, Held::from_bytes(blob(row, 4)?)?))
}
