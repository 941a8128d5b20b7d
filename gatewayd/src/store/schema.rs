//! The database file: opening it, its tables, and what happens when it is broken.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

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
"];

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
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(StoreError::Corrupt(verdict));
        }
    }
    migrate(&mut db)?;
    Ok(db)
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

/// Moves a broken database out of the way, with its journal; gives where it is now.
pub fn set_aside(path: &Path, stamp: i64) -> std::io::Result<PathBuf> {
    let mut aside = path.with_extension(format!("broken-{stamp}"));
    for number in 1.. {
        if !aside.exists() {
            break;
        }
        aside = path.with_extension(format!("broken-{stamp}-{number}"));
    }
    for suffix in ["", "-wal", "-shm"] {
        let from = with_suffix(path, suffix);
        match std::fs::rename(&from, with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

/// `store.db` and `-wal` to `store.db-wal`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
