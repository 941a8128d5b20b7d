//! The database file: opening it, its tables, and what happens when it is broken.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, salvage};

/// Raised whenever the tables change; each step is applied in order, in one transaction.
const STEPS: &[&str] = &["
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE devices (id INTEGER PRIMARY KEY, hardware TEXT NOT NULL UNIQUE);
    -- What of an epoch was ever received (eight bytes a range), and how it began.
    CREATE TABLE epochs (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, received BLOB NOT NULL,
        last_ticks INTEGER NOT NULL, boot BLOB,
        PRIMARY KEY (device, epoch)
    ) WITHOUT ROWID;
    -- Time syncs: of the wearable's log, and our own. Without utc_us: made while our clock was unknown.
    CREATE TABLE anchors (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, ticks INTEGER NOT NULL,
        utc_us INTEGER, uncertainty_us INTEGER NOT NULL, boot_us INTEGER, boot_id TEXT,
        PRIMARY KEY (device, epoch, ticks)
    ) WITHOUT ROWID;
    -- Frames not yet sealed: those of one device, epoch and class that came together.
    -- form 0: frames one after the other; 1: columns, compressed.
    CREATE TABLE pieces (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, class INTEGER NOT NULL, form INTEGER NOT NULL,
        first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, frames INTEGER NOT NULL, bytes INTEGER NOT NULL,
        received_us INTEGER NOT NULL, received_boot_us INTEGER NOT NULL, body BLOB NOT NULL
    );
    CREATE INDEX pieces_by_identity ON pieces (device, epoch, first_seq);
    -- Sealed, immutable. kind 0: batch, 1: events. state 0: waits for the bridge, 1: parked.
    CREATE TABLE batches (
        kind INTEGER NOT NULL, buffer INTEGER NOT NULL, sequence INTEGER NOT NULL,
        ordinal INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, reason TEXT,
        sha256 BLOB NOT NULL, frames TEXT NOT NULL, oldest_us INTEGER NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (kind, buffer, sequence)
    );
    CREATE INDEX batches_in_order ON batches (kind, state, ordinal);
    -- Events and gaps. Key and digest stay when the body has been acknowledged, so that nothing is told twice.
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, gap INTEGER NOT NULL,
        body BLOB, buffer INTEGER, sequence INTEGER
    );
    CREATE INDEX events_unsealed ON events (id) WHERE body IS NOT NULL AND buffer IS NULL;
    CREATE INDEX events_sealed ON events (buffer, sequence) WHERE body IS NOT NULL;
    CREATE TABLE quarantine (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, crc INTEGER NOT NULL,
        reason TEXT NOT NULL, received_us INTEGER NOT NULL, frame BLOB NOT NULL,
        PRIMARY KEY (device, epoch, seq, crc)
    ) WITHOUT ROWID;
", "
    -- Our boot time when it was put there, moved at each reboot as that of the pieces is.
    ALTER TABLE events ADD COLUMN put_boot_us INTEGER NOT NULL DEFAULT 0;
", "
    -- Rows that could not be read, as they were, for inspection. origin: the table they lay in.
    CREATE TABLE damaged (
        id INTEGER PRIMARY KEY AUTOINCREMENT, origin TEXT NOT NULL, identity TEXT NOT NULL, why TEXT NOT NULL,
        found_us INTEGER NOT NULL, body BLOB
    );
", "
    -- By which lines an epoch's samples were sealed, so that later ones are not put before them. class 0: scalars, 1: waveforms.
    CREATE TABLE sealed_lines (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, class INTEGER NOT NULL, lines BLOB NOT NULL,
        PRIMARY KEY (device, epoch, class)
    ) STRICT, WITHOUT ROWID;
", "
    -- Every table anew, STRICT: a value of a wrong type cannot be written any more. The rows are carried over one by one
    -- afterwards, see the module salvage.
    DROP INDEX pieces_by_identity; DROP INDEX batches_in_order; DROP INDEX events_unsealed; DROP INDEX events_sealed;
    ALTER TABLE meta RENAME TO old_meta; ALTER TABLE devices RENAME TO old_devices;
    ALTER TABLE epochs RENAME TO old_epochs; ALTER TABLE anchors RENAME TO old_anchors;
    ALTER TABLE pieces RENAME TO old_pieces; ALTER TABLE batches RENAME TO old_batches;
    ALTER TABLE events RENAME TO old_events; ALTER TABLE quarantine RENAME TO old_quarantine;
    ALTER TABLE damaged RENAME TO old_damaged;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE devices (id INTEGER PRIMARY KEY, hardware TEXT NOT NULL UNIQUE) STRICT;
    -- seen_us: when it last grew, by our clock.
    CREATE TABLE epochs (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, received BLOB NOT NULL,
        last_ticks INTEGER NOT NULL, boot BLOB, seen_us INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (device, epoch)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE anchors (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, ticks INTEGER NOT NULL,
        utc_us INTEGER, uncertainty_us INTEGER NOT NULL, boot_us INTEGER, boot_id TEXT,
        PRIMARY KEY (device, epoch, ticks)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pieces (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, class INTEGER NOT NULL, form INTEGER NOT NULL,
        first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, frames INTEGER NOT NULL, bytes INTEGER NOT NULL,
        received_us INTEGER NOT NULL, received_boot_us INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    -- With all that says which frames a row holds: it lies on other pages than the row.
    CREATE INDEX pieces_by_identity ON pieces (device, epoch, first_seq, last_seq);
    CREATE INDEX pieces_of_waveforms ON pieces (id) WHERE class = 2;
    -- held: the numbers of a batch's frames.
    CREATE TABLE batches (
        kind INTEGER NOT NULL, buffer INTEGER NOT NULL, sequence INTEGER NOT NULL,
        ordinal INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, reason TEXT,
        sha256 BLOB NOT NULL, held BLOB NOT NULL, oldest_us INTEGER NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (kind, buffer, sequence)
    ) STRICT;
    -- With the frames' numbers, for the same reason.
    CREATE INDEX batches_in_order ON batches (kind, state, ordinal, held);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, gap INTEGER NOT NULL,
        body BLOB, buffer INTEGER, sequence INTEGER, put_boot_us INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX events_unsealed ON events (id) WHERE body IS NOT NULL AND buffer IS NULL;
    CREATE INDEX events_sealed ON events (buffer, sequence) WHERE body IS NOT NULL;
    CREATE TABLE quarantine (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, crc INTEGER NOT NULL,
        reason TEXT NOT NULL, received_us INTEGER NOT NULL, frame BLOB NOT NULL,
        PRIMARY KEY (device, epoch, seq, crc)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE damaged (
        id INTEGER PRIMARY KEY AUTOINCREMENT, origin TEXT NOT NULL, identity TEXT NOT NULL, why TEXT NOT NULL,
        found_us INTEGER NOT NULL, body BLOB
    ) STRICT;
    -- Frames that lay in rows that are gone, until they have their gap.
    CREATE TABLE lost (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL
    ) STRICT;
    -- Frames that have their gap, until the wearable has sent them again or has them no more.
    CREATE TABLE wanted (
        device INTEGER NOT NULL, epoch INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL
    ) STRICT;
", "
    -- What a wearable said last of each of its sensors, and where in its log.
    CREATE TABLE sensors (
        device INTEGER NOT NULL, sensor INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        silent INTEGER NOT NULL, PRIMARY KEY (device, sensor)
    ) STRICT, WITHOUT ROWID;
"];

/// All tables with rows that matter, in the order in which they are carried over.
pub const TABLES: &[&str] = &[
    "meta",
    "devices",
    "epochs",
    "anchors",
    "pieces",
    "batches",
    "events",
    "quarantine",
    "damaged",
    "lost",
    "wanted",
    "sealed_lines",
    "sensors",
];

/// What may be wrong in a database that is told of a check; beyond it nobody counts.
const VERDICTS: i64 = 1_000;

/// Opens or makes the database, and checks it.
pub fn open(path: &Path, check_below_bytes: u64) -> Result<Connection, StoreError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "page_size", 4096)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    // What is acknowledged to a wearable has to survive a power cut; WAL with NORMAL may roll back.
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "wal_autocheckpoint", 1000)?;
    db.pragma_update(None, "journal_size_limit", 8 * 1024 * 1024)?;
    db.pragma_update(None, "temp_store", "memory")?;
    db.pragma_update(None, "cache_size", -4096)?;
    db.set_prepared_statement_cache_capacity(64);
    let small = std::fs::metadata(path).map_or(0, |meta| meta.len()) <= check_below_bytes;
    if small {
        check(&db)?;
    }
    migrate(&mut db)?;
    salvage::carry_over(&mut db)?;
    Ok(db)
}

/// Has SQLite look at every page. A value of a wrong type is no reason to give up a database: whoever reads the row
/// finds it, and it costs that row.
fn check(db: &Connection) -> Result<(), StoreError> {
    let mut select = db.prepare(&format!("PRAGMA quick_check({VERDICTS})"))?;
    let verdicts: Vec<String> = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    match verdicts.iter().find(|verdict| *verdict != "ok" && !verdict.contains(" value in ")) {
        Some(verdict) => Err(StoreError::Corrupt(verdict.clone())),
        None => Ok(()),
    }
}

fn migrate(db: &mut Connection) -> Result<(), StoreError> {
    let version: usize = db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? as usize;
    if version > STEPS.len() {
        return Err(StoreError::Newer(version));
    }
    for (index, step) in STEPS.iter().enumerate().skip(version) {
        let transaction = db.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// What a broken database is called once it is out of the way.
pub fn aside_name(path: &Path, stamp: i64) -> PathBuf {
    let mut aside = path.with_extension(format!("broken-{stamp}"));
    for number in 1.. {
        if !aside.exists() {
            break;
        }
        aside = path.with_extension(format!("broken-{stamp}-{number}"));
    }
    aside
}

/// Whether this is what a broken database beside this one is called.
pub fn is_aside(path: &Path, name: &str) -> bool {
    let begins = path.with_extension("broken-");
    let begins = begins.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(&*begins).is_some_and(|stamp| stamp.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
}

/// Moves a broken database out of the way. Its journal goes first: it must never be taken for a successor's.
pub fn set_aside(path: &Path, aside: &Path) -> std::io::Result<()> {
    for suffix in ["-shm", "-wal", ""] {
        match std::fs::rename(with_suffix(path, suffix), with_suffix(aside, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a database that was never finished.
pub fn remove(path: &Path) -> std::io::Result<()> {
    for suffix in ["-shm", "-wal", ""] {
        match std::fs::remove_file(with_suffix(path, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// `store.db` and `-wal` to `store.db-wal`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
