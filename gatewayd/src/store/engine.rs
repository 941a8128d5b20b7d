//! The state behind the store's thread: the database, and what of it is kept in memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::frame::{Body, Epoch, FrameRef};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use super::damage::Damage;
use super::outbox::Kind;
use super::piece;
use super::quota::{Extent, Figures};
use super::ranges::SeqSet;
use super::{Settings, StoreError, schema, thread};
use crate::align::fit::Anchor;
use crate::align::source::Known;
use crate::align::timeline::Timeline;
use crate::hardware::HardwareId;
use crate::status::{Admission, Board};

/// CRCs of the frames stored last, to tell a double from a collision without opening rows.
const RECENT_CRCS: usize = 16_384;
/// How often it is saved how long this boot has lasted: what a reboot takes from the patience of what waits.
const ALIVE_EVERY: Duration = Duration::from_mins(1);

/// One wearable in memory.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub id: i64,
    pub epochs: HashMap<u64, EpochState>,
    pub timeline: Timeline,
    /// Frames here that the bridge has not acknowledged.
    pub buffered: u64,
}

/// One epoch in memory.
#[derive(Debug, Default)]
pub(super) struct EpochState {
    pub received: SeqSet,
    pub last_ticks: u64,
    pub boot: Option<Vec<u8>>,
    pub dirty: bool,
}

/// The state of the store; used on its thread only.
#[derive(Debug)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) board: Board,
    pub(super) db: Connection,
    path: PathBuf,
    _lock: File,
    boot_id: String,
    pub(super) devices: HashMap<HardwareId, Device>,
    pub(super) hardware: HashMap<i64, HardwareId>,
    pub(super) buffer: u64,
    previous: u64,
    store_id: u64,
    pub(super) next_sequence: [u64; 2],
    pub(super) next_ordinal: i64,
    pub(super) known: Option<Known>,
    pub(super) online: bool,
    /// Frame bytes in a batch, as the line carries them.
    pub(super) pack_at_most: u64,
    pub(super) figures: Figures,
    pub(super) admission: watch::Sender<Admission>,
    pub(super) outbox: watch::Sender<u64>,
    pub(super) outbox_grew: bool,
    pub(super) recent: HashMap<(i64, u64, u32), u32>,
    pub(super) recent_order: std::collections::VecDeque<(i64, u64, u32)>,
    pub(super) counter: u64,
    /// The row of events that was looked at last for one that can go out.
    pub(super) events_looked_at: i64,
    /// Gaps that wait for the cloud and may still grow, with their rows: by wearable, epoch and reason.
    pub(super) open_gaps: HashMap<(HardwareId, u64, &'static str), (i64, Extent)>,
    alive_boot_us: i64,
    in_transaction: bool,
}

impl Engine {
    /// Opens the folder, setting a damaged database aside.
    pub(super) fn open(settings: Settings, clock: Arc<dyn Clock>, board: Board) -> Result<Self, StoreError> {
        // What people's bodies did is nobody else's business on this machine.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.dir)?;
        let lock = lock(&settings)?;
        let path = thread::database(&settings);
        let load = |lock| {
            let mut engine = Self::load(&settings, &clock, &board, &path, lock)?;
            engine.begin_run()?;
            Ok::<_, StoreError>(engine)
        };
        match load(lock.try_clone()?) {
            Err(error) if error.is_corrupt() => {
                Self::set_aside(&path, &clock, &error)?;
                load(lock)
            }
            other => other,
        }
    }

    fn set_aside(
        path: &std::path::Path,
        clock: &Arc<dyn Clock>,
        error: &StoreError,
    ) -> Result<(), StoreError> {
        let aside = schema::set_aside(path, clock.utc_us() / 1_000_000)?;
        tracing::error!(
            %error, aside = %aside.display(),
            "the database is damaged and was set aside; a new one is begun. What it held and the cloud has not \
             confirmed may be lost: keep the file for support"
        );
        Ok(())
    }

    fn load(
        settings: &Settings,
        clock: &Arc<dyn Clock>,
        board: &Board,
        path: &std::path::Path,
        lock: File,
    ) -> Result<Self, StoreError> {
        let db = schema::open(path, settings.check_below)?;
        Ok(Self {
            settings: settings.clone(),
            clock: clock.clone(),
            board: board.clone(),
            db,
            path: path.to_owned(),
            _lock: lock,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim().to_owned())
                .unwrap_or_default(),
            devices: HashMap::new(),
            hardware: HashMap::new(),
            buffer: 0,
            previous: 0,
            store_id: 0,
            next_sequence: [0; 2],
            next_ordinal: 0,
            known: None,
            online: false,
            pack_at_most: u64::MAX,
            figures: Figures::default(),
            admission: watch::channel(Admission::Everything).0,
            outbox: watch::channel(0).0,
            outbox_grew: false,
            recent: HashMap::new(),
            recent_order: std::collections::VecDeque::new(),
            counter: 0,
            events_looked_at: 0,
            open_gaps: HashMap::new(),
            alive_boot_us: 0,
            in_transaction: false,
        })
    }

    /// A new buffer for this run, and what the tables hold.
    fn begin_run(&mut self) -> Result<(), StoreError> {
        self.begin()?;
        self.previous = self.meta("buffer")?.unwrap_or(0) as u64;
        self.buffer = random_id();
        self.store_id = match self.meta("store_id")? {
            Some(id) => id as u64,
            None => random_id(),
        };
        self.set_meta("buffer", self.buffer as i64)?;
        self.set_meta("previous_buffer", self.previous as i64)?;
        self.set_meta("store_id", self.store_id as i64)?;
        if self.text("boot_id")?.as_deref() != Some(&self.boot_id) {
            self.carry_waiting_over()?;
        }
        self.commit()?;
        self.reload()?;
        self.measure()
    }

    /// Times of another boot are not comparable with this one's: what has waited so far is kept, the time between the
    /// boots does not count.
    fn carry_waiting_over(&mut self) -> Result<(), StoreError> {
        let now = self.clock.boottime_us();
        let moved = now - self.meta("alive_boot_us")?.unwrap_or(now);
        self.db
            .execute("UPDATE pieces SET received_boot_us = min(received_boot_us + ?1, ?2)", [moved, now])?;
        self.db.execute("UPDATE events SET put_boot_us = min(put_boot_us + ?1, ?2)", [moved, now])?;
        self.set_meta("alive_boot_us", now)?;
        self.db.execute(
            "INSERT INTO meta (key, value) VALUES ('boot_id', ?1) ON CONFLICT DO UPDATE SET value = ?1",
            [&self.boot_id],
        )?;
        Ok(())
    }

    /// Saves now and then how long this boot has lasted.
    pub(super) fn note_alive(&mut self) -> Result<(), StoreError> {
        let now = self.clock.boottime_us();
        if now - self.alive_boot_us < (ALIVE_EVERY.as_secs_f64() * self.clock.rate() * 1e6) as i64 {
            return Ok(());
        }
        self.begin()?;
        self.set_meta("alive_boot_us", now)?;
        self.commit()?;
        self.alive_boot_us = now;
        Ok(())
    }

    /// Whether something that began to wait for its time at `since_boot_us` may be kept waiting.
    pub(super) fn is_patient(&self, since_boot_us: i64) -> bool {
        let patience_us = (self.settings.unstamped_wait.as_secs_f64() * self.clock.rate() * 1e6) as i64;
        self.clock.boottime_us() - since_boot_us < patience_us
    }

    /// Reads into memory what is kept there.
    pub(super) fn reload(&mut self) -> Result<(), StoreError> {
        self.devices.clear();
        self.hardware.clear();
        self.recent.clear();
        self.recent_order.clear();
        self.events_looked_at = 0;
        self.open_gaps.clear();
        let mut broken = Vec::new();
        let mut select = self.db.prepare("SELECT id, hardware FROM devices")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            match HardwareId::parse(&String::from_utf8_lossy(row.get_ref(1)?.as_bytes().unwrap_or_default()))
            {
                Ok(hardware) => {
                    self.hardware.insert(id, hardware.clone());
                    self.devices.insert(hardware, Device { id, ..Device::default() });
                }
                Err(error) => broken.push((id, Damage(error.to_string()))),
            }
        }
        drop(rows);
        drop(select);
        let mut devices = std::mem::take(&mut self.devices);
        let result = self.reload_epochs(&mut devices);
        self.devices = devices;
        let broken_epochs = result?;
        self.set_devices_aside(&broken)?;
        self.set_epochs_aside(&broken_epochs)?;
        self.next_ordinal =
            self.db.query_row("SELECT coalesce(max(ordinal), 0) + 1 FROM batches", [], |row| row.get(0))?;
        self.recount()
    }

    /// Reads what is noted of epochs; gives those of which it cannot be read what was received.
    fn reload_epochs(
        &self,
        devices: &mut HashMap<HardwareId, Device>,
    ) -> Result<Vec<(HardwareId, Epoch, Damage)>, StoreError> {
        let mut broken = Vec::new();
        let mut by_id: HashMap<i64, &mut Device> =
            devices.values_mut().map(|device| (device.id, device)).collect();
        let mut select = self.db.prepare(
            "SELECT device, epoch, ticks, utc_us, uncertainty_us FROM anchors WHERE utc_us IS NOT NULL",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(device) = by_id.get_mut(&row.get(0)?) {
                let anchor = Anchor {
                    ticks: row.get::<_, i64>(2)? as u64,
                    utc_us: row.get(3)?,
                    uncertainty_us: row.get::<_, i64>(4)? as u64,
                };
                device.timeline.sync(Epoch(row.get::<_, i64>(1)? as u64), anchor);
            }
        }
        drop(rows);
        let mut select = self.db.prepare("SELECT device, epoch, received, last_ticks, boot FROM epochs")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let Some(device) = by_id.get_mut(&id) else { continue };
            let epoch = Epoch(row.get::<_, i64>(1)? as u64);
            let received = SeqSet::from_bytes(row.get_ref(2)?.as_blob().unwrap_or_default());
            if received.is_none()
                && let Some(hardware) = self.hardware.get(&id)
            {
                let damage = Damage("no ranges of received frames".to_owned());
                broken.push((hardware.clone(), epoch, damage));
            }
            let state = EpochState {
                received: received.unwrap_or_default(),
                last_ticks: row.get::<_, i64>(3)? as u64,
                boot: row.get(4)?,
                dirty: false,
            };
            device.timeline.reached(epoch, state.last_ticks);
            if let Some(bytes) = &state.boot
                && let Ok(frame) = FrameRef::parse(bytes)
                && let Ok(Body::BootAnchor(boot)) = frame.body()
            {
                device.timeline.boot(epoch, boot);
            }
            device.epochs.insert(epoch.0, state);
        }
        Ok(broken)
    }

    /// The in-memory state of a wearable, made on first sight.
    pub(super) fn device(&mut self, hardware: &HardwareId) -> Result<&mut Device, StoreError> {
        if !self.devices.contains_key(hardware) {
            self.db.execute("INSERT INTO devices (hardware) VALUES (?1)", [hardware.as_str()])?;
            let id = self.db.last_insert_rowid();
            self.hardware.insert(id, hardware.clone());
            self.devices.insert(hardware.clone(), Device { id, ..Device::default() });
        }
        Ok(self.devices.get_mut(hardware).expect("it was there or was just put there"))
    }

    /// Begins a transaction, unless one is running.
    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        if !self.in_transaction {
            self.db.execute_batch("BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Writes what changed in memory, and commits: on return it is on disk.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        for device in self.devices.values_mut() {
            for (epoch, state) in device.epochs.iter_mut().filter(|(_, state)| state.dirty) {
                self.db
                    .prepare_cached(
                        "INSERT INTO epochs (device, epoch, received, last_ticks, boot) VALUES (?1, ?2, ?3, ?4, ?5)
                         ON CONFLICT DO UPDATE SET received = ?3, last_ticks = ?4, boot = ?5",
                    )?
                    .execute(params![
                        device.id,
                        piece::epoch_to_sql(Epoch(*epoch)),
                        state.received.to_bytes(),
                        state.last_ticks as i64,
                        state.boot
                    ])?;
                state.dirty = false;
            }
        }
        self.db.execute_batch("COMMIT")?;
        self.in_transaction = false;
        Ok(())
    }

    /// Tells the others what the commit brought.
    pub(super) fn committed(&mut self) {
        if std::mem::take(&mut self.outbox_grew) {
            self.outbox.send_modify(|count| *count += 1);
        }
    }

    /// After a failure: undoes the transaction and reads the state again, from a new database if this one is broken.
    pub(super) fn recover(&mut self, error: &StoreError) -> Result<(), StoreError> {
        if error.is_full() {
            self.disk_is_full();
        }
        if self.in_transaction {
            self.in_transaction = false;
            if let Err(error) = self.db.execute_batch("ROLLBACK") {
                // SQLite may have rolled back by itself, which is as good.
                tracing::debug!(%error, "rollback");
            }
        }
        let reloaded =
            if error.is_corrupt() { Err(StoreError::Corrupt(error.to_string())) } else { self.reload() };
        match reloaded {
            Err(error) if error.is_corrupt() => {
                self.db = Connection::open_in_memory()?;
                Self::set_aside(&self.path, &self.clock, &error)?;
                self.db = schema::open(&self.path, self.settings.check_below)?;
                self.begin_run()
            }
            other => other,
        }
    }

    /// Commits and folds the log into the database.
    pub(super) fn close(&mut self) {
        if let Err(error) = self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the write-ahead log stays; it is read at the next start");
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn watches(&self) -> (watch::Receiver<Admission>, watch::Receiver<u64>) {
        (self.admission.subscribe(), self.outbox.subscribe())
    }

    pub(super) fn set_online(&mut self, online: bool) {
        self.online = online;
    }

    pub(super) fn received(&self, hardware: &HardwareId, epoch: Epoch) -> SeqSet {
        let device = self.devices.get(hardware);
        device
            .and_then(|device| device.epochs.get(&epoch.0))
            .map(|state| state.received.clone())
            .unwrap_or_default()
    }

    pub(super) fn identity(&self) -> (u64, u64, u64) {
        (self.buffer, self.previous, self.store_id)
    }

    pub(super) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// UTC now, as far as the machine knows; for records that need some time, not for stamps.
    pub(super) fn utc_us(&self) -> i64 {
        self.known.map_or_else(|| self.clock.utc_us(), |known| known.utc_us(self.clock.boottime_us()))
    }

    pub(super) fn name_sequence(&mut self, kind: Kind) -> u64 {
        let next = &mut self.next_sequence[kind.number() as usize];
        *next += 1;
        *next - 1
    }

    pub(super) fn meta(&self, key: &str) -> Result<Option<i64>, StoreError> {
        let mut select = self.db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        Ok(select.query_row([key], |row| row.get(0)).optional()?)
    }

    fn text(&self, key: &str) -> Result<Option<String>, StoreError> {
        let mut select = self.db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        Ok(select.query_row([key], |row| row.get(0)).optional()?)
    }

    pub(super) fn set_meta(&mut self, key: &str, value: i64) -> Result<(), StoreError> {
        self.db
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
            )?
            .execute(params![key, value])?;
        Ok(())
    }

    /// Remembers a stored frame's CRC for a while.
    pub(super) fn remember_crc(&mut self, key: (i64, u64, u32), crc: u32) {
        if self.recent.insert(key, crc).is_none() {
            self.recent_order.push_back(key);
        }
        if self.recent_order.len() > RECENT_CRCS
            && let Some(old) = self.recent_order.pop_front()
        {
            self.recent.remove(&old);
        }
    }
}

fn lock(settings: &Settings) -> Result<File, StoreError> {
    let file = File::create(settings.dir.join("lock"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StoreError::Taken(settings.dir.clone()))?;
    Ok(file)
}

/// A random id that is not 0, and that fits SQLite's and TOML's signed integers.
fn random_id() -> u64 {
    rand::random::<u64>() >> 1 | 1
}
