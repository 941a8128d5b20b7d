//! The state behind the store's thread: the database, and what of it is kept in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::frame::Epoch;
use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use super::damage::{Damage, broken_row};
use super::figures::Figures;
use super::lock::Lock;
use super::outbox::{Kind, Name};
use super::piece;
use super::quota::Extent;
use super::ranges::SeqSet;
use super::rescue::Rescue;
use super::sensors::Words;
use super::stage::Staged;
use super::unnamed::Unnamed;
use super::{Settings, StoreError, schema, thread, wanted};
use crate::align::source::Known;
use crate::align::timeline::Timeline;
use crate::hardware::HardwareId;
use crate::status::{Admission, Board};

/// CRCs of the frames stored last, to tell a double from a collision without opening rows.
const RECENT_CRCS: usize = 16_384;
/// How often it is saved how long this boot has lasted: what a reboot takes from the patience of what waits.
const ALIVE_EVERY: Duration = Duration::from_mins(1);

/// No boot lasts longer, microseconds (a hundred years).
const LONGEST_BOOT_US: i64 = 100 * 365 * 86_400_000_000;

/// Of a row with a cell of a wrong type no cell can be written. Whoever reads it finds it.
const WHOLE_PIECES: &str = "(typeof(device), typeof(epoch), typeof(class), typeof(form), typeof(first_seq),
    typeof(last_seq), typeof(frames), typeof(bytes), typeof(received_us), typeof(body)) = ('integer', 'integer',
    'integer', 'integer', 'integer', 'integer', 'integer', 'integer', 'integer', 'blob')";
const WHOLE_EVENTS: &str = "typeof(key) = 'text' AND typeof(body) IN ('blob', 'null')";

/// One wearable in memory.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub id: i64,
    pub epochs: HashMap<u64, EpochState>,
    pub timeline: Timeline,
    /// Frames here that the bridge has not acknowledged.
    pub buffered: u64,
    /// Frames that were here and are lost, by epoch.
    pub wanted: BTreeMap<u64, SeqSet>,
    /// What it said last of its sensors.
    pub sensors: Words,
}

/// One epoch in memory.
#[derive(Debug, Default)]
pub(super) struct EpochState {
    pub received: SeqSet,
    pub last_ticks: u64,
    pub boot: Option<Vec<u8>>,
    /// When it last grew, by our clock.
    pub seen_us: i64,
}

/// The state of the store; used on its thread only.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own; none excludes another")]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) board: Board,
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    lock: Lock,
    /// The run before this one did not end by itself. What it had committed may be gone: SQLite gives up a write-ahead log
    /// from the first frame on that is damaged, and says nothing.
    pub(super) was_killed: bool,
    boot_id: String,
    pub(super) devices: HashMap<HardwareId, Device>,
    pub(super) hardware: HashMap<i64, HardwareId>,
    /// Logs of wearables whose name is lost.
    pub(super) unnamed: Unnamed,
    /// Epochs that have changed since the last commit.
    pub(super) dirty: BTreeSet<(i64, u64)>,
    /// Frames that wait for the commit in memory.
    pub(super) staged: Staged,
    pub(super) buffer: u64,
    previous: u64,
    store_id: u64,
    pub(super) next_sequence: [u64; 2],
    pub(super) next_ordinal: i64,
    pub(super) known: Option<Known>,
    pub(super) online: bool,
    /// Sealed batches that this connection's broker does not take.
    pub(super) left_out: HashSet<Name>,
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
    pub(super) in_transaction: bool,
    /// Whether frames are, or were, wanted: then what is noted of it has to be kept right.
    pub(super) wants: bool,
    /// Something was written that should not wait for its commit.
    pub(super) urgent: bool,
    /// Whether what is in memory agrees with the tables; not while there is no database to read.
    pub(super) is_open: bool,
    /// How often in a row a damaged database could not be replaced.
    pub(super) rescues_failed: u32,
    /// Whether rows of a database that was set aside may still have to come back, and those that are coming.
    pub(super) left_aside: bool,
    /// It could not be opened: until then it is left alone.
    pub(super) aside_rests_until: Option<tokio::time::Instant>,
    pub(super) rescue: Option<Rescue>,
}

impl Engine {
    /// Opens the folder. A database that cannot be opened now is tried again later, see [`reopen`](Self::reopen).
    pub(super) fn open(settings: Settings, clock: Arc<dyn Clock>, board: Board) -> Result<Self, StoreError> {
        // What people's bodies did is nobody else's business on this machine.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.dir)?;
        let (lock, was_killed) = Lock::take(&settings.dir)?;
        let path = thread::database(&settings);
        Ok(Self {
            settings,
            clock,
            board,
            db: Connection::open_in_memory()?,
            path,
            lock,
            was_killed,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim().to_owned())
                .unwrap_or_default(),
            devices: HashMap::new(),
            hardware: HashMap::new(),
            unnamed: Unnamed::new(),
            dirty: BTreeSet::new(),
            staged: Staged::default(),
            buffer: 0,
            previous: 0,
            store_id: 0,
            next_sequence: [0; 2],
            next_ordinal: 0,
            known: None,
            online: false,
            left_out: HashSet::new(),
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
            wants: false,
            urgent: false,
            is_open: false,
            rescues_failed: 0,
            left_aside: false,
            aside_rests_until: None,
            rescue: None,
        })
    }

    /// Opens the database and begins a run. What SQLite itself cannot read is set aside, and what can be read of it comes
    /// over into a new one; so is a database that fails twice in a way that no full or failing disk explains.
    pub(super) fn reopen(&mut self) -> Result<(), StoreError> {
        self.is_open = false;
        self.in_transaction = false;
        let new = schema::with_suffix(&self.path, "-new");
        // The last one was set aside, and its successor was on its way here: whole, for it was closed. A half-made one is made anew.
        if !self.path.exists() && new.exists() && !schema::with_suffix(&new, "-wal").exists() {
            std::fs::rename(&new, &self.path)?;
        }
        if let Some(error) = self.is_gone() {
            self.replace(&error, &new)?;
        }
        let opened = match self.open_and_begin() {
            Err(error) if !error.is_corrupt() && !error.is_outside() => self.open_and_begin(),
            other => other,
        };
        match opened {
            Ok(()) => {}
            Err(error) if error.is_outside() => return Err(error),
            Err(error) => {
                self.replace(&error, &new)?;
                self.open_and_begin()?;
            }
        }
        self.is_open = true;
        Ok(())
    }

    fn open_and_begin(&mut self) -> Result<(), StoreError> {
        self.in_transaction = false;
        self.db = schema::open(&self.path, self.settings.check_below)?;
        self.begin_run()
    }

    /// Bonds of before, and no database: it was here and is gone. One of no bytes is none: SQLite would take it for a new
    /// one, and remove its write-ahead log.
    fn is_gone(&self) -> Option<StoreError> {
        let is_there = match std::fs::metadata(&self.path) {
            Ok(meta) => meta.len() > 0,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        let wal = std::fs::metadata(schema::with_suffix(&self.path, "-wal"));
        let had_one =
            self.settings.dir.join(crate::devices::FILE).exists() || wal.is_ok_and(|wal| wal.len() > 0);
        (had_one && !is_there).then(|| StoreError::Corrupt("nothing is left of it".to_owned()))
    }

    /// A new buffer for this run, and what the tables hold.
    fn begin_run(&mut self) -> Result<(), StoreError> {
        self.begin()?;
        self.mend_events()?;
        self.check_meta()?;
        let previous = self.meta("buffer")?.unwrap_or(0) as u64;
        let buffer = random_id();
        let store_id = match self.meta("store_id")? {
            Some(id) => id as u64,
            None => random_id(),
        };
        if self.was_killed {
            self.db.execute_batch(wanted::WHAT_FOLLOWS)?;
        }
        self.set_meta("buffer", buffer as i64)?;
        self.set_meta("previous_buffer", previous as i64)?;
        self.set_meta("store_id", store_id as i64)?;
        if self.noted::<String>("boot_id")?.as_deref() != Some(&self.boot_id) {
            self.carry_waiting_over()?;
        }
        self.commit()?;
        self.was_killed = false;
        // Not before: the cloud is never told of a run that the next one does not remember.
        (self.buffer, self.previous, self.store_id) = (buffer, previous, store_id);
        self.reload()?;
        self.measure()
    }

    /// Sets aside what is noted under a name and is not what belongs there.
    fn check_meta(&mut self) -> Result<(), StoreError> {
        let mut broken = Vec::new();
        let mut select = self.db.prepare("SELECT key, value FROM meta")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let is_text = matches!(row.get_ref(0)?, ValueRef::Text(b"boot_id"));
            let fits = match row.get_ref(1)? {
                ValueRef::Integer(_) => !is_text,
                ValueRef::Text(_) => is_text,
                _ => false,
            };
            if !fits {
                let damage = Damage("not what is kept under this name".to_owned());
                broken.push(broken_row("meta", &["key"], "value", row, damage)?);
            }
        }
        drop(rows);
        drop(select);
        self.set_rows_aside(&broken)
    }

    /// Times of another boot are not comparable with this one's: what has waited so far is kept, the time between the
    /// boots does not count.
    fn carry_waiting_over(&mut self) -> Result<(), StoreError> {
        let now = self.clock.boottime_us();
        // A bit that flipped makes a number of any size: one that no boot time is counts from now.
        let alive = self.meta("alive_boot_us")?.filter(|alive| is_boot_time(*alive)).unwrap_or(now);
        let moved = now - alive;
        for (table, column, whole) in
            [("pieces", "received_boot_us", WHOLE_PIECES), ("events", "put_boot_us", WHOLE_EVENTS)]
        {
            let sql = format!(
                "UPDATE {table} SET {column} =
                 CASE WHEN {column} BETWEEN ?3 AND ?4 THEN min({column} + ?1, ?2) ELSE ?2 END WHERE {whole}"
            );
            self.db.execute(&sql, [moved, now, -LONGEST_BOOT_US, LONGEST_BOOT_US])?;
        }
        self.set_meta("alive_boot_us", now)?;
        self.db.execute(
            "INSERT INTO meta (key, value) VALUES ('boot_id', ?1) ON CONFLICT DO UPDATE SET value = ?1",
            [&self.boot_id],
        )?;
        Ok(())
    }

    /// Saves now and then how long this boot has lasted, in the running transaction.
    fn note_alive(&mut self, every: Duration) -> Result<(), StoreError> {
        let now = self.clock.boottime_us();
        if now - self.alive_boot_us >= (every.as_secs_f64() * self.clock.rate() * 1e6) as i64 {
            self.set_meta("alive_boot_us", now)?;
            self.alive_boot_us = now;
        }
        Ok(())
    }

    /// The same when nothing else has been written for long.
    pub(super) fn note_alive_alone(&mut self) -> Result<(), StoreError> {
        let idle = (2.0 * ALIVE_EVERY.as_secs_f64() * self.clock.rate() * 1e6) as i64;
        if self.clock.boottime_us() - self.alive_boot_us < idle {
            return Ok(());
        }
        self.begin()?;
        self.commit()
    }

    /// Whether something that began to wait for its time at `since_boot_us` may be kept waiting.
    pub(super) fn is_patient(&self, since_boot_us: i64) -> bool {
        let patience_us = (self.settings.unstamped_wait.as_secs_f64() * self.clock.rate() * 1e6) as i64;
        let waited_us = self.clock.boottime_us().saturating_sub(since_boot_us);
        // What began to wait later than now never did: a bit has flipped.
        (0..patience_us).contains(&waited_us)
    }

    /// The in-memory state of a wearable, made on first sight.
    pub(super) fn device(&mut self, hardware: &HardwareId) -> Result<&mut Device, StoreError> {
        if !self.devices.contains_key(hardware) {
            let id = self.free_number()?;
            self.db.execute(
                "INSERT INTO devices (id, hardware) VALUES (?1, ?2)",
                params![id, hardware.as_str()],
            )?;
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

    /// Writes what changed in memory, and commits: on return it is on disk, and so is all that waited for it.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        self.write_staged()?;
        self.note_alive(ALIVE_EVERY)?;
        let now = self.utc_us();
        for (device, epoch) in std::mem::take(&mut self.dirty) {
            self.write_wanted(device, epoch)?;
            let hardware = self.hardware.get(&device);
            let device_state = hardware.and_then(|hardware| self.devices.get_mut(hardware));
            let Some(state) = device_state.and_then(|state| state.epochs.get_mut(&epoch)) else { continue };
            state.seen_us = now;
            self.db
                .prepare_cached(
                    "INSERT INTO epochs (device, epoch, received, last_ticks, boot, seen_us)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT DO UPDATE SET received = ?3, last_ticks = ?4, boot = ?5, seen_us = ?6",
                )?
                .execute(params![
                    device,
                    piece::epoch_to_sql(Epoch(epoch)),
                    state.received.to_bytes(),
                    state.last_ticks as i64,
                    state.boot,
                    now
                ])?;
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
        if self.is_disk_full(error) {
            self.disk_is_full();
        }
        if self.in_transaction {
            self.in_transaction = false;
            if let Err(error) = self.db.execute_batch("ROLLBACK") {
                // SQLite may have rolled back by itself, which is as good.
                tracing::debug!(%error, "rollback");
            }
        }
        self.is_open = false;
        if !error.is_corrupt() && self.reload().and_then(|()| self.resolve_again()).is_ok() {
            self.is_open = true;
            return Ok(());
        }
        self.in_transaction = false;
        if let Err(error) = self.db.execute_batch("ROLLBACK") {
            tracing::debug!(%error, "rollback");
        }
        if error.is_corrupt() {
            let new = schema::with_suffix(&self.path, "-new");
            self.replace(error, &new)?;
        }
        self.reopen()?;
        self.resolve_again()
    }

    /// After a database was opened again under way, or a transaction was undone: the clock was told before.
    pub(super) fn resolve_again(&mut self) -> Result<(), StoreError> {
        let Some(known) = self.known else { return Ok(()) };
        self.begin()?;
        self.resolve(&known)?;
        self.commit()
    }

    /// Writes a number, to see whether anything can be written.
    pub(super) fn write_something(&mut self) -> Result<(), StoreError> {
        self.begin()?;
        self.set_meta("tried_boot_us", self.clock.boottime_us())?;
        self.commit()
    }

    /// Tells the board that the store works, or why it does not.
    pub(super) fn in_order(&self, trouble: Option<&str>) {
        self.board.update(|snapshot| {
            let now = trouble.unwrap_or_default();
            let changed = snapshot.buffer.trouble != now;
            now.clone_into(&mut snapshot.buffer.trouble);
            changed
        });
        let text = trouble.map(|why| {
            format!("The box cannot keep readings now ({why}); wearables keep theirs. It goes on trying.")
        });
        self.board.alert("store", text);
    }

    /// Commits and folds the log into the database.
    pub(super) fn close(&mut self) {
        if let Err(error) = self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the write-ahead log stays; it is read at the next start");
            return;
        }
        if self.is_open {
            self.lock.ends();
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
        // The next broker may take them.
        self.left_out.clear();
    }

    /// Once told, it need not be told again on this connection.
    pub(super) fn leave_out(&mut self, name: Name) {
        self.left_out.insert(name);
    }

    /// Whether so many batches wait for the bridge that no more are sealed; of those that the broker does not take there
    /// may be any number.
    pub(super) fn is_far_ahead(&self, kind: Kind) -> bool {
        let waiting = match kind {
            Kind::Batch => self.figures.batches,
            Kind::Event => self.figures.event_batches,
        };
        let left_out = self.left_out.iter().filter(|name| name.kind == kind).count() as u64;
        waiting >= self.settings.seal_ahead + left_out
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

    /// UTC now, where it is known.
    pub(super) fn known_us(&self) -> Option<i64> {
        self.known.map(|known| known.utc_us(self.clock.boottime_us()))
    }

    pub(super) fn name_sequence(&mut self, kind: Kind) -> u64 {
        let next = &mut self.next_sequence[kind.number() as usize];
        *next += 1;
        *next - 1
    }

    pub(super) fn meta(&self, key: &str) -> Result<Option<i64>, StoreError> {
        self.noted(key)
    }

    /// A value of another type is none; it is set aside when the database is next opened.
    fn noted<T: FromSql>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let mut select = self.db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        Ok(select.query_row([key], |row| Ok(row.get(0).ok())).optional()?.flatten())
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

/// Whether a time is one since a boot, or before one as far as rows are moved back there.
fn is_boot_time(us: i64) -> bool {
    (-LONGEST_BOOT_US..=LONGEST_BOOT_US).contains(&us)
}

/// A random id that is not 0, and that fits SQLite's and TOML's signed integers.
fn random_id() -> u64 {
    rand::random::<u64>() >> 1 | 1
}
