//! How full the disk is, and what gives way.
//!
//! Below the soft limit everything is taken. From the soft limit on waveforms are dropped, those that come and those
//! that are stored and unsealed, oldest first, each drop leaving a gap `quota`. From the hard limit on only events are
//! taken. A reserve file keeps room for them; it is given up when the disk itself is full, whoever filled it.

use std::collections::HashMap;

use kinara_protocol::frame::{Class, FrameRef};
use rusqlite::params;

use super::damage::Damage;
use super::engine::Engine;
use super::ranges::SeqSet;
use super::{StoreError, outbox, piece};
use crate::status::{Admission, Buffer};

/// How often figures are told and the disk is asked, in ticks of the store.
const SLOW_EVERY: u64 = 5;
/// Anchors kept for each epoch.
const ANCHORS: usize = 512;
/// Waveform rows dropped at once.
const DROP_ROWS: i64 = 8;
/// Copies in quarantine, at most.
const QUARANTINE: i64 = 10_000;
/// Keys of acknowledged events kept, at most.
const EVENT_KEYS: i64 = 100_000;

/// Numbers kept along with the tables.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub unsealed_frames: u64,
    pub unsealed_bytes: u64,
    pub oldest_boot_us: Option<i64>,
    pub batches: u64,
    pub event_batches: u64,
    pub parked: u64,
    /// Frames in small rows, by device, epoch and class.
    pub loose: HashMap<(i64, u64, i64), u64>,
    used_bytes: u64,
    /// In the database, of which SQLite can make use without the disk.
    free_bytes: u64,
    disk_free: u64,
    /// SQLite or the file system said that the disk is full; until there is room again.
    disk_full: bool,
    ticks: u64,
}

impl Engine {
    /// Counts from the tables.
    pub(super) fn recount(&mut self) -> Result<(), StoreError> {
        let count = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(|count| count as u64);
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
            ..Figures::default()
        };
        let figures = &mut self.figures;
        self.db.query_row(
            "SELECT coalesce(sum(frames), 0), coalesce(sum(bytes), 0), min(received_boot_us) FROM pieces",
            [],
            |row| {
                figures.unsealed_frames = count(row, 0)?;
                figures.unsealed_bytes = count(row, 1)?;
                figures.oldest_boot_us = row.get(2)?;
                Ok(())
            },
        )?;
        self.db.query_row(
            "SELECT coalesce(sum(kind = 0 AND state = 0), 0), coalesce(sum(kind = 1 AND state = 0), 0),
                    coalesce(sum(state = 1), 0) FROM batches",
            [],
            |row| {
                figures.batches = count(row, 0)?;
                figures.event_batches = count(row, 1)?;
                figures.parked = count(row, 2)?;
                Ok(())
            },
        )?;
        let mut select = self.db.prepare(
            "SELECT device, epoch, class, sum(frames), sum(CASE form WHEN 0 THEN frames ELSE 0 END)
             FROM pieces GROUP BY device, epoch, class",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let device: i64 = row.get(0)?;
            let loose = count(row, 4)?;
            self.figures.loose.insert((device, row.get::<_, i64>(1)? as u64, row.get(2)?), loose);
            if let Some(device) =
                self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware))
            {
                device.buffered += count(row, 3)?;
            }
        }
        drop(rows);
        drop(select);
        let mut select = self.db.prepare("SELECT frames FROM batches WHERE kind = 0")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            for (hardware, count) in outbox::counts(&row.get::<_, String>(0)?) {
                if let Ok(hardware) = crate::hardware::HardwareId::parse(&hardware)
                    && let Some(device) = self.devices.get_mut(&hardware)
                {
                    device.buffered += count;
                }
            }
        }
        Ok(())
    }

    /// What the store does for itself, several times a second.
    pub(super) fn look_after(&mut self) -> Result<(), StoreError> {
        self.figures.ticks += 1;
        let slow = self.figures.ticks.is_multiple_of(SLOW_EVERY);
        self.measure()?;
        self.seal_events()?;
        self.seal_due()?;
        if !self.online || self.figures.batches >= self.settings.seal_ahead {
            self.pack()?;
        }
        if *self.admission.borrow() >= Admission::NoWaveforms {
            self.drop_waveforms()?;
        }
        if slow {
            self.tell()?;
            self.note_alive()?;
        }
        if self.figures.ticks.is_multiple_of(3_000) {
            self.prune()?;
        }
        Ok(())
    }

    /// Sees how full it is, and sets what is admitted.
    pub(super) fn measure(&mut self) -> Result<(), StoreError> {
        let pages: i64 = self.db.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let free: i64 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        self.figures.used_bytes = (pages - free) as u64 * 4096;
        self.figures.free_bytes = free as u64 * 4096;
        if self.figures.ticks.is_multiple_of(SLOW_EVERY) {
            let stat = rustix::fs::statvfs(&self.settings.dir).map_err(std::io::Error::from)?;
            self.figures.disk_free = stat.f_bavail * stat.f_frsize;
            self.keep_reserve()?;
        }
        let used = self.figures.used_bytes;
        // A limit that was reached is left again somewhat below it, so that the gateway does not waver.
        let now = *self.admission.borrow();
        let limit = |bytes: u64, level| if now >= level { bytes - bytes / 16 } else { bytes };
        let admission =
            if self.figures.disk_full || used >= limit(self.settings.hard_limit, Admission::EventsOnly) {
                Admission::EventsOnly
            } else if used >= limit(self.settings.soft_limit, Admission::NoWaveforms)
                || self.room() < self.settings.reserve
            {
                Admission::NoWaveforms
            } else {
                Admission::Everything
            };
        let changed =
            self.admission.send_if_modified(|current| std::mem::replace(current, admission) != admission);
        if changed {
            tracing::warn!(?admission, used, "what the store takes has changed");
            let text = match admission {
                Admission::Everything => None,
                Admission::NoWaveforms => Some("The disk is nearly full: waveforms are not kept."),
                Admission::EventsOnly => Some(
                    "The disk is full: readings stay on the wearables. Bring the gateway online, or make room.",
                ),
            };
            self.board.alert("disk", text.map(str::to_owned));
        }
        Ok(())
    }

    /// Notes that a write found the disk full.
    pub(super) fn disk_is_full(&mut self) {
        self.figures.disk_full = true;
        // Room for events, gaps and SQLite itself.
        if let Err(error) = std::fs::remove_file(self.settings.dir.join("reserve")) {
            tracing::debug!(%error, "there was no reserve left");
        }
        self.admission.send_replace(Admission::EventsOnly);
    }

    /// Where the next rows can go. The file of a database never shrinks: what was full is emptied within it.
    fn room(&self) -> u64 {
        self.figures.disk_free + self.figures.free_bytes
    }

    /// Holds the reserve on disk as a file, as long as there is room for it; where the room is inside the database, it
    /// is the reserve.
    fn keep_reserve(&mut self) -> Result<(), StoreError> {
        let path = self.settings.dir.join("reserve");
        let (reserve, room) = (self.settings.reserve, self.room());
        let held = std::fs::metadata(&path).map_or(0, |meta| meta.len()) >= reserve;
        if !held && self.figures.disk_free >= 3 * reserve {
            let file = std::fs::File::create(&path)?;
            let flags = rustix::fs::FallocateFlags::empty();
            if let Err(error) = rustix::fs::fallocate(&file, flags, 0, reserve) {
                tracing::debug!(%error, "the reserve cannot be held here");
            }
        }
        if held || room >= 3 * reserve {
            self.figures.disk_full = false;
        } else if room < 2 * reserve {
            self.figures.disk_full = true;
        }
        Ok(())
    }

    /// Drops the oldest stored, unsealed waveforms, each with a gap record.
    fn drop_waveforms(&mut self) -> Result<(), StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT id, device, epoch, form, frames, bytes, body FROM pieces WHERE class = ?1 ORDER BY id LIMIT ?2",
        )?;
        let mut rows = select.query(params![piece::class_number(Class::Waveform), DROP_ROWS])?;
        let (mut dropped, mut broken) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let read = piece::decode(row.get(3)?, row.get_ref(6)?.as_blob().unwrap_or_default());
            let extent = match read.and_then(|bytes| Extent::of(&bytes)) {
                Ok(extent) => extent,
                Err(damage) => {
                    broken.push((row.get::<_, i64>(0)?, damage));
                    continue;
                }
            };
            dropped.push((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, i64>(2)? as u64,
                row.get::<_, i64>(4)? as u64,
                row.get::<_, i64>(5)? as u64,
                extent,
            ));
        }
        drop(rows);
        drop(select);
        if dropped.is_empty() && broken.is_empty() {
            return Ok(());
        }
        self.begin()?;
        for (id, damage) in broken {
            self.set_piece_aside(id, &damage)?;
        }
        for (id, device, epoch, frames, bytes, extent) in dropped {
            self.db.prepare_cached("DELETE FROM pieces WHERE id = ?1")?.execute([id])?;
            self.figures.unsealed_frames = self.figures.unsealed_frames.saturating_sub(frames);
            self.figures.unsealed_bytes = self.figures.unsealed_bytes.saturating_sub(bytes);
            let Some(hardware) = self.hardware.get(&device).cloned() else { continue };
            if let Some(device) = self.devices.get_mut(&hardware) {
                device.buffered = device.buffered.saturating_sub(frames);
            }
            self.put_gap(&hardware, epoch, &extent, "quota")?;
        }
        self.commit()
    }

    /// Tells the board.
    fn tell(&mut self) -> Result<(), StoreError> {
        let oldest: Option<i64> = self.db.query_row(
            "SELECT min(oldest) FROM (SELECT min(received_us) AS oldest FROM pieces
             UNION ALL SELECT min(oldest_us) FROM batches WHERE kind = 0)",
            [],
            |row| row.get(0),
        )?;
        let events: i64 =
            self.db.query_row("SELECT count(*) FROM events WHERE body IS NOT NULL", [], |row| row.get(0))?;
        let quarantined: i64 = self.db.query_row("SELECT count(*) FROM quarantine", [], |row| row.get(0))?;
        let (buffer, _, store) = self.identity();
        let told = Buffer {
            store_id: format!("{store:016x}"),
            buffer_id: format!("{buffer:016x}"),
            frames: self.figures.unsealed_frames,
            batches: self.figures.batches,
            events: events as u64,
            parked: self.figures.parked,
            quarantined: quarantined as u64,
            bytes: self.figures.used_bytes,
            disk_free_bytes: self.figures.disk_free,
            oldest_us: oldest.unwrap_or(0),
            admission: *self.admission.borrow(),
        };
        let buffered: Vec<_> =
            self.devices.iter().map(|(name, device)| (name.clone(), device.buffered)).collect();
        let delivered = self.delivered()?;
        let parked = self.figures.parked;
        self.board.update(|snapshot| {
            let mut changed = std::mem::replace(&mut snapshot.buffer, told.clone()) != told;
            for (hardware, frames) in buffered {
                if let Some(device) = snapshot.devices.get_mut(&hardware) {
                    changed |= std::mem::replace(&mut device.buffered_frames, frames) != frames;
                }
            }
            // No reason to wake anybody: it goes along with the next state.
            for (hardware, told) in delivered {
                if let Some(device) = snapshot.devices.get_mut(&hardware) {
                    device.delivered = told;
                }
            }
            changed
        });
        self.board.alert(
            "parked",
            (parked > 0).then(|| {
                format!("The cloud could not read {parked} batches; they are kept here. Tell support.")
            }),
        );
        let damaged = self.damaged_rows()?;
        self.board.alert(
            "damaged",
            (damaged > 0).then(|| {
                format!(
                    "{damaged} stored records could not be read any more and were set aside; readings may be \
                     lost. Check the disk, and tell support."
                )
            }),
        );
        Ok(())
    }

    /// Forgets what nothing refers to any more.
    fn prune(&mut self) -> Result<(), StoreError> {
        self.begin()?;
        self.db.execute(
            "DELETE FROM events WHERE body IS NULL AND id <= (SELECT max(id) FROM events) - ?1",
            [EVENT_KEYS],
        )?;
        self.prune_damaged()?;
        self.db.execute(
            "DELETE FROM quarantine WHERE (SELECT count(*) FROM quarantine) > ?1
             AND received_us < (SELECT received_us FROM quarantine ORDER BY received_us DESC LIMIT 1 OFFSET ?1)",
            [QUARANTINE],
        )?;
        self.db.execute(
            "DELETE FROM anchors WHERE (device, epoch, ticks) IN (
                SELECT device, epoch, ticks FROM (
                    SELECT device, epoch, ticks,
                           row_number() OVER (PARTITION BY device, epoch ORDER BY ticks DESC) AS place
                    FROM anchors) WHERE place > ?1)",
            [ANCHORS as i64],
        )?;
        self.db.execute(
            "DELETE FROM sealed_lines WHERE (device, epoch) NOT IN (SELECT device, epoch FROM epochs)",
            [],
        )?;
        self.commit()?;
        for device in self.devices.values_mut() {
            device.timeline.forget_old_anchors(ANCHORS);
        }
        Ok(())
    }
}

/// Which frames will not come.
#[derive(Debug, Default)]
pub(super) struct Extent {
    /// Their numbers.
    pub seqs: SeqSet,
    /// From the first of their samples to the last, where it is known.
    pub ticks: Option<(u64, u64)>,
}

impl Extent {
    /// Of the frames in a row.
    fn of(bytes: &[u8]) -> Result<Self, Damage> {
        let mut extent = Self::default();
        for frame in piece::frames(bytes)? {
            extent.take(&frame);
        }
        Ok(extent)
    }

    /// This one, too.
    pub fn take(&mut self, frame: &FrameRef<'_>) {
        self.seqs.insert(frame.header().seq);
        self.widen((frame.header().ticks.0, piece::last_ticks(frame)));
    }

    /// Those of another one, too.
    pub fn join(&mut self, other: &Self) {
        for (first, last) in other.seqs.ranges() {
            self.seqs.insert_range(*first, *last);
        }
        if let Some(ticks) = other.ticks {
            self.widen(ticks);
        }
    }

    fn widen(&mut self, (first, last): (u64, u64)) {
        let (from, to) = self.ticks.unwrap_or((first, last));
        self.ticks = Some((from.min(first), to.max(last)));
    }
}
