//! How full the disk is, and what gives way.
//!
//! Below the soft limit everything is taken. From the soft limit on waveforms are dropped, those that come and those
//! that are stored and unsealed, oldest first, each drop leaving a gap `quota`. From the hard limit on only events are
//! taken. A reserve file keeps room for them; it is given up when the disk itself is full, whoever filled it.

use kinara_protocol::frame::FrameRef;
use rusqlite::Row;

use super::damage::{Damage, blob, cell, count};
use super::engine::Engine;
use super::figures::Figures;
use super::outbox::Kind;
use super::ranges::SeqSet;
use super::{Fullness, Settings, StoreError, piece};
use crate::align::fit::MOST_ANCHORS;
use crate::status::{Admission, Buffer};

/// How often figures are told and the disk is asked, in ticks of the store.
const SLOW_EVERY: u64 = 5;
/// How often what nothing refers to any more is forgotten, in ticks of the store.
const PRUNE_EVERY: u64 = 3_000;
/// With less than this free, an I/O error of a write is taken for a full disk.
const CLOSE_TO_NOTHING: u64 = 1 << 20;
/// Waveform rows dropped at once.
const DROP_ROWS: i64 = 8;
/// Copies in quarantine, at most.
const QUARANTINE: i64 = 10_000;
/// Keys of acknowledged events kept, at most.
const EVENT_KEYS: i64 = 100_000;

impl Engine {
    /// What the store does for itself, several times a second. What is sealed waits for the commit.
    pub(super) fn look_after(&mut self) -> Result<(), StoreError> {
        self.figures.ticks += 1;
        let slow = self.figures.ticks.is_multiple_of(SLOW_EVERY);
        self.measure()?;
        self.seal_events()?;
        self.seal_due()?;
        if !self.online || self.is_far_ahead(Kind::Batch) {
            self.pack()?;
        }
        if *self.admission.borrow() >= Admission::NoWaveforms {
            self.drop_waveforms()?;
        }
        self.bring_back(slow)?;
        if slow {
            self.tell()?;
            self.note_alive_alone()?;
        }
        if self.figures.ticks % PRUNE_EVERY == SLOW_EVERY {
            self.prune()?;
        }
        Ok(())
    }

    /// Sees how full it is, and sets what is admitted.
    pub(super) fn measure(&mut self) -> Result<(), StoreError> {
        self.see_room()?;
        if self.figures.ticks.is_multiple_of(SLOW_EVERY) {
            self.keep_reserve();
            if self.figures.disk_free < self.settings.reserve.saturating_mul(3) {
                self.forget_aside(true)?;
            }
        }
        let before = *self.admission.borrow();
        self.admit_only(admission(before, &self.figures, &self.settings));
        Ok(())
    }

    /// Sees how full database and disk are.
    pub(super) fn see_room(&mut self) -> Result<(), StoreError> {
        let pages: i64 = self.db.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let free: i64 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        self.figures.used_bytes = (pages - free) as u64 * 4096;
        self.figures.free_bytes = free as u64 * 4096;
        match rustix::fs::statvfs(&self.settings.dir) {
            Ok(stat) => self.figures.disk_free = stat.f_bavail * stat.f_frsize,
            Err(error) => tracing::debug!(%error, "the disk does not say how full it is"),
        }
        Ok(())
    }

    /// Sets what is taken, and says so where a person sees it.
    fn admit_only(&self, admission: Admission) {
        let changed =
            self.admission.send_if_modified(|current| std::mem::replace(current, admission) != admission);
        if !changed {
            return;
        }
        tracing::warn!(?admission, used = self.figures.used_bytes, "what the store takes has changed");
        // A sensor of another maker keeps nothing: of wearables alone it is true that no reading is lost.
        let has_sensors = self
            .board
            .now()
            .devices
            .keys()
            .chain(self.devices.keys())
            .any(|device| device.factory_id().is_none());
        let text = match admission {
            Admission::Everything => None,
            Admission::NoWaveforms => Some("The disk is nearly full: waveforms are not kept."),
            Admission::EventsOnly if has_sensors => Some(
                "The disk is full: readings stay on the wearables, and those of other sensors are lost. Bring the \
                 gateway online, or make room.",
            ),
            Admission::EventsOnly => Some(
                "The disk is full: readings stay on the wearables. Bring the gateway online, or make room.",
            ),
        };
        self.board.alert("disk", text.map(str::to_owned));
    }

    /// Whether a failure means that the disk is full. An I/O error may mean that, or a broken disk; the file system knows.
    pub(super) fn is_disk_full(&self, error: &StoreError) -> bool {
        let enough = match error.fullness() {
            Fullness::Said => self.settings.reserve.max(CLOSE_TO_NOTHING),
            Fullness::Maybe => CLOSE_TO_NOTHING,
            Fullness::Not => return false,
        };
        match rustix::fs::statvfs(&self.settings.dir) {
            Ok(stat) => stat.f_bavail * stat.f_frsize < enough || stat.f_files > 0 && stat.f_favail == 0,
            Err(_) => false,
        }
    }

    /// Notes that a write found the disk full.
    pub(super) fn disk_is_full(&mut self) {
        self.figures.disk_full = true;
        // Room for events, gaps and SQLite itself.
        if let Err(error) = std::fs::remove_file(self.settings.dir.join("reserve")) {
            tracing::debug!(%error, "there was no reserve left");
        }
        self.admit_only(Admission::EventsOnly);
    }

    /// Holds the reserve on disk as a file, as long as there is room for it; where the room is inside the database, it
    /// is the reserve.
    fn keep_reserve(&mut self) {
        let path = self.settings.dir.join("reserve");
        let (reserve, room) = (self.settings.reserve, self.figures.room());
        let held = std::fs::metadata(&path).map_or(0, |meta| meta.len()) >= reserve;
        if !held && self.figures.disk_free >= 3 * reserve {
            let flags = rustix::fs::FallocateFlags::empty();
            let held = std::fs::File::create(&path)
                .and_then(|file| Ok(rustix::fs::fallocate(&file, flags, 0, reserve)?));
            if let Err(error) = held {
                tracing::debug!(%error, "the reserve cannot be held here");
            }
        }
        if held || room >= 3 * reserve {
            self.figures.disk_full = false;
        } else if room < 2 * reserve {
            self.figures.disk_full = true;
        }
    }

    /// Drops the oldest stored, unsealed waveforms, each with a gap record.
    fn drop_waveforms(&mut self) -> Result<(), StoreError> {
        // Of class 2, by an index of its own: there may be few of them among many.
        let mut select = self.db.prepare_cached(
            "SELECT id, device, epoch, form, frames, bytes, body FROM pieces WHERE class = 2 ORDER BY id LIMIT ?1",
        )?;
        let mut rows = select.query([DROP_ROWS])?;
        let (mut dropped, mut broken) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            match Dropped::read(row) {
                Ok(row) => dropped.push(row),
                Err(damage) => broken.push((row.get::<_, i64>(0)?, damage)),
            }
        }
        drop(rows);
        drop(select);
        if dropped.is_empty() && broken.is_empty() {
            return Ok(());
        }
        self.begin()?;
        self.set_pieces_aside(broken)?;
        for Dropped { id, device, epoch, frames, bytes, extent } in dropped {
            self.db.prepare_cached("DELETE FROM pieces WHERE id = ?1")?.execute([id])?;
            self.figures.take((device, epoch), frames, bytes);
            let Some(hardware) = self.hardware.get(&device).cloned() else {
                for (first, last) in extent.seqs.ranges() {
                    self.range_is_lost(device, epoch, (i64::from(*first), i64::from(*last)))?;
                }
                continue;
            };
            if let Some(device) = self.devices.get_mut(&hardware) {
                device.buffered = device.buffered.saturating_sub(frames);
            }
            self.put_gap(&hardware, epoch, &extent, "quota")?;
        }
        self.commit()
    }

    /// Tells the board.
    fn tell(&mut self) -> Result<(), StoreError> {
        let events: i64 = self.db.query_row(
            "SELECT count(*) FROM events INDEXED BY events_sealed WHERE body IS NOT NULL",
            [],
            |row| row.get(0),
        )?;
        let (buffer, _, store) = self.identity();
        let told = Buffer {
            store_id: format!("{store:016x}"),
            buffer_id: format!("{buffer:016x}"),
            frames: self.figures.unsealed_frames,
            batches: self.figures.batches,
            events: events as u64,
            parked: self.figures.parked,
            quarantined: self.figures.quarantined,
            damaged: self.figures.damaged,
            bytes: self.figures.used_bytes,
            disk_free_bytes: self.figures.disk_free,
            oldest_us: self.oldest_us()?.unwrap_or(0),
            admission: *self.admission.borrow(),
            // Whoever fails does not get here.
            trouble: String::new(),
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
        self.board.alert("damaged", self.damage_in_words()?);
        self.board.alert("decision-damaged", self.lost_decisions_in_words()?);
        self.tell_silent_sensors();
        Ok(())
    }

    fn damage_in_words(&self) -> Result<Option<String>, StoreError> {
        let damaged = self.figures.damaged;
        if damaged == 0 {
            return Ok(None);
        }
        if let Some((file, why)) = self.file_set_aside()? {
            if !self.lies_aside(&file) {
                return Ok(Some(format!(
                    "The database is gone ({why}). Readings may be lost. Check the disk, and tell support."
                )));
            }
            return Ok(Some(format!(
                "The database was damaged ({why}) and was set aside as {file}; what can be read comes over. Readings \
                 may be lost. Check the disk, and tell support."
            )));
        }
        Ok(Some(format!(
            "{damaged} stored records could not be read any more and were set aside; readings may be lost. Check the \
             disk, and tell support."
        )))
    }

    /// A decision that is lost is not found again by itself, as an event is: somebody has to decide again.
    fn lost_decisions_in_words(&self) -> Result<Option<String>, StoreError> {
        let lost = if self.figures.damaged == 0 { 0 } else { self.damaged_decisions()? };
        Ok((lost > 0).then(|| {
            format!(
                "{lost} decisions made at this box were damaged before the cloud had them, and it does not know of them. \
                 Look who wears which device, and decide it again."
            )
        }))
    }

    /// When the oldest of what is here came. Rows lie in the order in which they came, so nothing is searched.
    fn oldest_us(&self) -> Result<Option<i64>, StoreError> {
        let mut oldest: Option<i64> = None;
        for sql in [
            "SELECT received_us FROM pieces ORDER BY id LIMIT 1",
            "SELECT oldest_us FROM batches WHERE kind = 0 AND state = 0 ORDER BY ordinal LIMIT 1",
            "SELECT oldest_us FROM batches WHERE kind = 0 AND state = 1 ORDER BY ordinal LIMIT 1",
        ] {
            let mut select = self.db.prepare_cached(sql)?;
            let mut rows = select.query([])?;
            if let Some(row) = rows.next()? {
                oldest = cell::<i64>(row, 0).ok().into_iter().chain(oldest).min();
            }
        }
        Ok(oldest)
    }

    /// Forgets what nothing refers to any more.
    fn prune(&mut self) -> Result<(), StoreError> {
        self.begin()?;
        self.db.execute(
            "DELETE FROM events WHERE body IS NULL AND id <= (SELECT max(id) FROM events) - ?1",
            [EVENT_KEYS],
        )?;
        self.prune_damaged()?;
        self.forget_aside(false)?;
        // Of an epoch of which nothing is here more may come back.
        if !self.left_aside {
            self.prune_epochs()?;
        }
        self.db.execute(
            "DELETE FROM quarantine WHERE (SELECT count(*) FROM quarantine) > ?1
             AND received_us < (SELECT received_us FROM quarantine ORDER BY received_us DESC LIMIT 1 OFFSET ?1)",
            [QUARANTINE],
        )?;
        self.figures.quarantined = self.count_rows("quarantine")?;
        self.db.execute(
            "DELETE FROM anchors WHERE (device, epoch, ticks) IN (
                SELECT device, epoch, ticks FROM (
                    SELECT device, epoch, ticks,
                           row_number() OVER (PARTITION BY device, epoch ORDER BY ticks DESC) AS place
                    FROM anchors) WHERE place > ?1)",
            [MOST_ANCHORS as i64],
        )?;
        self.db.execute(
            "DELETE FROM sealed_lines WHERE (device, epoch) NOT IN (SELECT device, epoch FROM epochs)",
            [],
        )?;
        self.commit()
    }
}

/// What is taken, by what was taken before: a limit that was reached is left again somewhat below it, so that the gateway
/// does not waver.
fn admission(before: Admission, figures: &Figures, settings: &Settings) -> Admission {
    let limit = |bytes: u64, level| if before >= level { bytes - bytes / 16 } else { bytes };
    let wanted = match before {
        Admission::Everything => settings.reserve,
        _ => settings.reserve + settings.reserve / 2,
    };
    let used = figures.used_bytes;
    if figures.disk_full || used >= limit(settings.hard_limit, Admission::EventsOnly) {
        Admission::EventsOnly
    } else if used >= limit(settings.soft_limit, Admission::NoWaveforms) || figures.room() < wanted {
        Admission::NoWaveforms
    } else {
        Admission::Everything
    }
}

/// A row of waveforms that gives way.
struct Dropped {
    id: i64,
    device: i64,
    epoch: u64,
    frames: u64,
    bytes: u64,
    extent: Extent,
}

impl Dropped {
    fn read(row: &Row<'_>) -> Result<Self, Damage> {
        Ok(Self {
            id: cell(row, 0)?,
            device: cell(row, 1)?,
            epoch: cell::<i64>(row, 2)? as u64,
            frames: count(row, 4)?,
            bytes: count(row, 5)?,
            extent: Extent::of(&piece::decode(cell(row, 3)?, blob(row, 6)?)?)?,
        })
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use kinara_protocol::topic::GatewayId;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn settings() -> Settings {
        Settings {
            dir: PathBuf::new(),
            gateway: GatewayId(uuid::Uuid::nil()),
            group_commit: Duration::ZERO,
            group_frames: 1,
            wearable_commit: Duration::ZERO,
            queue: 1,
            soft_limit: 800 * MIB,
            hard_limit: 1_000 * MIB,
            reserve: 16 * MIB,
            seal_after: Duration::ZERO,
            seal_bytes: 1,
            full_bytes: 1,
            seal_ahead: 1,
            unstamped_wait: Duration::ZERO,
            check_below: 0,
        }
    }

    /// How often what is taken changes, over these figures.
    fn changes(figures: impl Iterator<Item = Figures>) -> usize {
        let (settings, mut now, mut changes) = (settings(), Admission::Everything, 0);
        for figures in figures {
            let next = admission(now, &figures, &settings);
            changes += usize::from(next != now);
            now = next;
        }
        changes
    }

    #[test]
    fn a_disk_that_wavers_around_its_reserve_changes_what_is_taken_once() {
        // Each waveform that is dropped makes room for one that is taken.
        let wavers = (0..1_000).map(|turn| Figures {
            disk_free: 16 * MIB + if turn % 2 == 0 { MIB } else { 0 } - MIB / 2,
            ..Figures::default()
        });
        assert_eq!(changes(wavers), 1);
        // With room to spare it is left again.
        let emptied =
            [15, 20, 23, 24, 23].map(|free| Figures { disk_free: free * MIB, ..Figures::default() });
        assert_eq!(changes(emptied.into_iter()), 2);
    }

    #[test]
    fn a_store_that_wavers_around_a_limit_changes_what_is_taken_once() {
        for limit in [800, 1_000] {
            let filled = |used| Figures { used_bytes: used * MIB, disk_free: 1 << 40, ..Figures::default() };
            let (below, above) = (filled(limit - 10), filled(limit + 10));
            let first = admission(Admission::Everything, &above, &settings());
            assert_eq!(admission(first, &below, &settings()), first, "{limit} MiB");
            assert!(admission(first, &filled(limit - 100), &settings()) < first, "{limit} MiB");
        }
    }
}
