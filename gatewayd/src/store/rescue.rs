//! Rows that come back from a database that was set aside, while its successor is at work.
//!
//! The promise: however large it was, the store takes readings again at once, and so long as the file lies there each of
//! its rows that can be read comes over once: it is noted with the rows how far they are, so that neither a power cut nor
//! a full disk makes it begin anew. Where there is little room a few come at a time, and the next ones when those have
//! gone to the cloud. What lay in a row that is gone is told by the indexes, which lie on other pages: its frames become
//! a gap.
//!
//! A file of which nothing more is to come is kept for support while the disk has room, and the last few of them only: what
//! is broken never keeps readings out. That all has come over that can be read is noted, and only a file with this note is
//! ever removed: one that an earlier version set aside, or that could not be opened when it was, may be all that is left
//! of its readings.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::time::Instant;

use super::damage::WHOLE;
use super::engine::Engine;
use super::held::Held;
use super::salvage::{
    Bringing, CHUNK, columns_of, each_row, exists, note_lost, read_rows, source, step_over,
};
use super::{StoreError, piece, salvage, schema};
use crate::status::Admission;

/// The tables that take room. Batches come before the events that are in them.
pub(super) const LARGE: [&str; 3] = ["batches", "events", "pieces"];

/// How long a file that cannot be opened, though it is there, is left alone.
const ASIDE_PAUSE: Duration = Duration::from_mins(1);
/// What it costs a turn of the store's thread.
const SLICE: Duration = Duration::from_millis(100);
/// Of batches, which are large, so many come at once.
const BATCHES: usize = 4;
/// Where there is little room no more comes while this is unsealed, bytes,
const LITTLE: u64 = 1 << 20;
/// or so many batches wait.
const FEW: u64 = 4;
/// Frames of the smallest kind that fit into one row: how far a row of an earlier version may reach.
const MOST_FRAMES: i64 = (piece::MAX_BYTES / 24) as i64;
/// So many files of which all has come over are kept, the newest.
const KEPT_ASIDE: usize = 2;
/// Names in `meta` that begin so are of what is left: the table's place in [`LARGE`], the table there, and the file. The
/// number is the row that came last.
const LEFT: &str = "left";
/// Names that begin so are of files of which nothing is to come any more. The number is their place among each other: what
/// the clock was when they were set aside says nothing.
const OVER: &str = "over";
/// Names in `meta` that begin so are of files with a table that gave nothing out: they are never removed.
const UNREAD: &str = "unread";

/// Wearable, epoch, and first and last number of frames.
type Line = (i64, i64, i64, i64);

/// Wearables that are new here get numbers behind all that may stand in rows that are still to come, also of wearables
/// whose own row is gone: a number is given once.
const NUMBERS_BEHIND: &str = "
    INSERT OR REPLACE INTO meta (key, value) SELECT 'devices_behind', ?1 + max(
      coalesce((SELECT value FROM meta WHERE key = 'devices_behind'), 0),
      coalesce((SELECT max(id) FROM devices), 0), coalesce((SELECT max(device) FROM epochs), 0))";
/// More than there will ever be wearables at a box.
const NUMBERS_APART: i64 = 1_000_000;

/// A database with the notes of a damaged one.
fn make_successor(new: &Path, damaged: &Path, aside: (&str, &str), now_us: i64) -> Result<(), StoreError> {
    schema::remove(new)?;
    let mut db = schema::open(new, 0)?;
    salvage::salvage(&mut db, damaged, aside, now_us)?;
    db.execute(NUMBERS_BEHIND, [NUMBERS_APART])?;
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(db.close().map_err(|(_, error)| error)?)
}

/// A table on its way.
#[derive(Debug)]
pub(super) struct Rescue {
    /// Its note in `meta`.
    note: String,
    source: Connection,
    from: String,
    select: String,
    /// Rows at once.
    chunk: usize,
    bringing: Bringing<'static>,
    /// Where in a row it says since when it waits.
    waits: Option<usize>,
    last: i64,
    /// Rows behind the last that an index knows, and their frames; the next one at the end.
    known: Vec<(i64, Line)>,
}

/// A file of this name is set aside anew: what was noted of a former one is not of this.
pub(super) fn forget_former(db: &Connection, aside: &str) -> Result<(), StoreError> {
    for what in [OVER, UNREAD] {
        db.execute("DELETE FROM meta WHERE key = ?1", [format!("{what} {aside}")])?;
    }
    Ok(())
}

/// Notes that a table of the database set aside is still to come.
pub(super) fn note_left(
    db: &Connection,
    source: &Connection,
    from: &str,
    table: &str,
    aside: &str,
) -> Result<(), StoreError> {
    match exists(source, from) {
        Ok(false) => return Ok(()),
        Err(StoreError::Unreadable(error)) => tracing::warn!(from, error, "it may be there"),
        Err(error) => return Err(error),
        Ok(true) => {}
    }
    let place = LARGE.iter().position(|large| *large == table).unwrap_or_default();
    let note = format!("{LEFT} {place} {from} {aside}");
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", params![note, i64::MIN])?;
    Ok(())
}

impl Engine {
    /// Makes a new database with the notes of the damaged one, which is then set aside; its rows of frames, batches and
    /// events come back afterwards. The new one comes into its place when it is whole.
    pub(super) fn replace(&mut self, error: &StoreError, new: &Path) -> Result<(), StoreError> {
        // SQLite lets go of the files first.
        self.db = Connection::open_in_memory()?;
        let now = self.clock.utc_us();
        let aside = schema::aside_name(&self.path, now / 1_000_000);
        let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.rescues_failed += 1;
        if let Err(error) = make_successor(new, &self.path, (&name, &error.to_string()), now) {
            // Half of one is of no use, and takes the room that the next attempt needs.
            schema::remove(new)?;
            return Err(error);
        }
        schema::set_aside(&self.path, &aside)?;
        std::fs::rename(new, &self.path)?;
        File::open(&self.settings.dir)?.sync_all()?;
        self.rescues_failed = 0;
        tracing::error!(
            %error, aside = %aside.display(),
            "the database is damaged and was set aside; what can be read comes over into a new one. Keep the file for \
             support"
        );
        Ok(())
    }

    /// Removes files that were set aside and of which nothing more is to come: all of them where the disk needs the room,
    /// else all but the last.
    pub(super) fn forget_aside(&mut self, needs_room: bool) -> Result<(), StoreError> {
        let (here, mut gone): (Vec<_>, Vec<_>) =
            self.names_over()?.into_iter().partition(|name| self.lies_aside(name));
        let kept = if needs_room { 0 } else { KEPT_ASIDE };
        for name in here.into_iter().rev().skip(kept) {
            let path = self.settings.dir.join(&name);
            tracing::warn!(
                file = %path.display(), needs_room,
                "a database that was set aside is removed: what could be read of it is here"
            );
            match schema::remove(&path) {
                Ok(()) => gone.push(name),
                Err(error) => tracing::warn!(%error, file = %path.display(), "it stays"),
            }
        }
        for name in &gone {
            self.forget_file(name)?;
        }
        Ok(())
    }

    /// The files of which nothing more is to come, in the order in which they came over.
    fn names_over(&self) -> Result<Vec<String>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT substr(key, ?2) FROM meta WHERE key GLOB ?1 || ' *' ORDER BY value, key",
        )?;
        let names = select.query_map(params![OVER, OVER.len() as i64 + 2], |row| row.get::<_, String>(0))?;
        let mut names = names.collect::<Result<Vec<_>, _>>()?;
        // A bit that flipped in a note must cost no other file.
        names.retain(|name| schema::is_aside(&self.path, name));
        Ok(names)
    }

    /// Whether a file is still there, as far as the folder says.
    pub(super) fn lies_aside(&self, name: &str) -> bool {
        self.settings.dir.join(name).try_exists().unwrap_or(true)
    }

    /// People are told of it no more, for there is nothing to look at.
    fn forget_file(&mut self, name: &str) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM meta WHERE key = ?1", [format!("{OVER} {name}")])?;
        self.db.execute("DELETE FROM damaged WHERE origin = ?1 AND identity = ?2", [WHOLE, name])?;
        self.figures.damaged = self.count_rows("damaged")?;
        Ok(())
    }

    /// Notes that nothing more of a file is to come, unless some of it is, or some could not be read.
    fn note_over(&mut self, name: &str) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO meta (key, value)
             SELECT ?1, 1 + coalesce((SELECT max(value) FROM meta WHERE key GLOB ?2 || ' *'), 0)
             WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key GLOB ?3 || ' *' AND substr(key, -length(?4)) = ?4)
               AND NOT EXISTS (SELECT 1 FROM meta WHERE key = ?5)",
            params![format!("{OVER} {name}"), OVER, LEFT, format!(" {name}"), format!("{UNREAD} {name}")],
        )?;
        Ok(())
    }

    /// Looks whether something is still to come.
    pub(super) fn see_what_is_aside(&mut self) -> Result<(), StoreError> {
        self.rescue = None;
        self.left_aside = self.next_left()?.is_some();
        Ok(())
    }

    pub(super) fn next_left(&self) -> Result<Option<(String, i64)>, StoreError> {
        let mut select =
            self.db.prepare_cached("SELECT key, value FROM meta WHERE key GLOB ?1 ORDER BY key LIMIT 1")?;
        let first = select.query_row([format!("{LEFT} *")], |row| Ok((row.get(0)?, row.get(1)?)));
        Ok(first.optional()?)
    }

    /// Brings over the next rows of what was set aside, as far as there is room: as many as a turn has time for, or,
    /// where there is little room, a few each second.
    pub(super) fn bring_back(&mut self, each_second: bool) -> Result<(), StoreError> {
        let began = Instant::now();
        while self.left_aside
            && self.aside_rests_until.is_none_or(|until| until <= began)
            && began.elapsed() < SLICE
        {
            self.see_room()?;
            let much = self.has_much_room();
            let little = self.figures.unsealed_bytes < LITTLE && self.figures.batches < FEW;
            if !(much || each_second && little) {
                return Ok(());
            }
            self.bring_some_back()?;
            if !much {
                return Ok(());
            }
        }
        Ok(())
    }

    /// So much that what comes back makes nothing else give way.
    fn has_much_room(&self) -> bool {
        *self.admission.borrow() == Admission::Everything
            && self.figures.room() >= 2 * self.settings.reserve
            && self.figures.used_bytes < self.settings.soft_limit - self.settings.soft_limit / 8
    }

    fn bring_some_back(&mut self) -> Result<(), StoreError> {
        let mut rescue = match self.rescue.take() {
            Some(rescue) => rescue,
            None => match self.open_next()? {
                Some(rescue) => rescue,
                None => return Ok(()),
            },
        };
        self.begin()?;
        self.write_staged()?;
        let behind = (self.last_row("pieces")?, self.last_row("batches")?);
        let more = rescue.step(&self.db, self.clock.boottime_us())?;
        self.set_meta(&rescue.note, rescue.last)?;
        let broken = self.count_behind(behind)?;
        self.set_uncounted_aside(broken)?;
        self.figures.damaged = self.count_rows("damaged")?;
        (self.outbox_grew, self.events_looked_at) = (true, 0);
        if more {
            self.rescue = Some(rescue);
        } else {
            let outcome = &rescue.bringing.outcome;
            let (brought, lost) = (outcome.brought, outcome.lost);
            tracing::warn!(
                table = rescue.from,
                brought,
                lost,
                "what could be read of a damaged table is back"
            );
            self.unseal_orphans()?;
            self.nothing_left(&rescue.note, brought > 0 || lost == 0)?;
        }
        self.commit()
    }

    fn last_row(&self, table: &str) -> Result<i64, StoreError> {
        let sql = format!("SELECT max(rowid) FROM {table}");
        Ok(self.db.query_row(&sql, [], |row| row.get::<_, Option<i64>>(0))?.unwrap_or(i64::MIN))
    }

    /// The next table; one that cannot be read is told of and passed over.
    fn open_next(&mut self) -> Result<Option<Rescue>, StoreError> {
        let Some((note, last)) = self.next_left()? else {
            self.left_aside = false;
            return Ok(None);
        };
        match self.open_left(&note, last) {
            Ok(rescue) => Ok(Some(rescue)),
            Err(StoreError::Unreadable(error)) => {
                tracing::error!(what = note, error, "nothing more of it can be brought over");
                self.begin()?;
                self.nothing_left(&note, false)?;
                self.commit()?;
                Ok(None)
            }
            // What goes on here does not depend on that file: it is looked at again later.
            Err(error) => {
                tracing::warn!(what = note, %error, "it cannot be brought over yet; tried again");
                self.aside_rests_until = Some(Instant::now() + ASIDE_PAUSE);
                Ok(None)
            }
        }
    }

    /// With the last of them it is known what did not come: rows lie between each other, so that none says before what is
    /// in no other one. Of a table that `gave` nothing its file may be all that is left.
    fn nothing_left(&mut self, note: &str, gave: bool) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM meta WHERE key = ?1", [note])?;
        if let Some(name) = note.splitn(4, ' ').nth(3) {
            if !gave && self.lies_aside(name) {
                self.set_meta(&format!("{UNREAD} {name}"), 1)?;
            }
            self.note_over(name)?;
        }
        if self.next_left()?.is_none() { self.tell_lost() } else { Ok(()) }
    }

    fn open_left(&self, note: &str, last: i64) -> Result<Rescue, StoreError> {
        let mut words = note.splitn(4, ' ').skip(1);
        let place = words.next().and_then(|place| place.parse::<usize>().ok());
        let (Some(table), Some(from), Some(aside)) =
            (place.and_then(|place| LARGE.get(place).copied()), words.next(), words.next())
        else {
            return Err(StoreError::Unreadable("a note that says nothing".to_owned()));
        };
        let path = self.settings.dir.join(aside);
        if !path.try_exists()? {
            return Err(StoreError::Unreadable("the file has been taken away".to_owned()));
        }
        let source = source(&path)?;
        let into = columns_of(&self.db, table)?;
        let mut columns = columns_of(&source, from)?;
        // Rows that have come meanwhile may have its number.
        columns.retain(|column| column != "id" && into.contains(column));
        let chunk = if table == "batches" { BATCHES } else { CHUNK };
        let waits = columns.iter().position(|name| name == "received_boot_us" || name == "put_boot_us");
        let select = format!(
            "SELECT rowid, {} FROM {from} WHERE rowid > ?1 ORDER BY rowid LIMIT {chunk}",
            columns.join(", ")
        );
        let mut known = match table {
            "pieces" => known_pieces(&source, from, last),
            "batches" => known_batches(&source, from, last),
            _ => Vec::new(),
        };
        known.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
        let bringing = Bringing::new(&self.db, table, columns, &into)?;
        let (note, from) = (note.to_owned(), from.to_owned());
        Ok(Rescue { note, source, from, select, chunk, bringing, waits, last, known })
    }
}

impl Rescue {
    /// Brings over the next rows, in the running transaction of `db`, and notes the frames of those that are gone; false
    /// when there are no more.
    fn step(&mut self, db: &Connection, boot_us: i64) -> Result<bool, StoreError> {
        let (rows, whole) = read_rows(&self.source, &self.select, self.last);
        let full = rows.len() == self.chunk;
        for mut row in rows {
            let Value::Integer(id) = row.remove(0) else { continue };
            // It may have waited in another boot: here it waits anew.
            if let Some(since) = self.waits.and_then(|at| row.get_mut(at)) {
                *since = Value::Integer(boot_us);
            }
            self.bringing.insert(db, Some(id), row)?;
            self.last = id;
        }
        let next = if whole {
            full.then_some(self.last)
        } else {
            self.bringing.outcome.lost += 1;
            step_over(&self.source, &self.from, self.last)
        };
        while let Some((id, line)) = self.known.pop_if(|(id, _)| next.is_none_or(|next| *id <= next)) {
            if !self.bringing.is_here(id) {
                note_lost(db, line)?;
            }
        }
        self.last = next.unwrap_or(self.last);
        Ok(next.is_some())
    }
}

/// The rows of frames behind `last` that the index knows.
fn known_pieces(source: &Connection, from: &str, last: i64) -> Vec<(i64, Line)> {
    // That of the first versions did not say where a row ends.
    let sql = "SELECT count(*) FROM pragma_index_info('pieces_by_identity') WHERE name = 'last_seq'";
    let ends = source.query_row(sql, [], |row| row.get::<_, i64>(0)).is_ok_and(|columns| columns > 0);
    let end = if ends { "last_seq".to_owned() } else { format!("first_seq + {MOST_FRAMES}") };
    let mut known = Vec::new();
    // From both ends: what lies between two broken pages is not known.
    for order in ["ASC", "DESC"] {
        let sql = format!(
            "SELECT id, device, epoch, first_seq, {end} FROM {from} INDEXED BY pieces_by_identity
             WHERE ?1 < id ORDER BY device {order}, epoch {order}, first_seq {order}"
        );
        let whole = each_row(source, &sql, last, |row| {
            known.push((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)));
            Ok(())
        });
        if whole {
            break;
        }
    }
    known
}

/// The same of batches; one holds several lines.
fn known_batches(source: &Connection, from: &str, last: i64) -> Vec<(i64, Line)> {
    let sql = format!(
        "SELECT rowid, held FROM {from} INDEXED BY batches_in_order WHERE ?1 < rowid ORDER BY kind, state, ordinal"
    );
    let mut known = Vec::new();
    each_row(source, &sql, last, |row| {
        let (id, held): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let lines = Held::from_bytes(&held).unwrap_or_default().lines();
        known.extend(lines.into_iter().map(|line| (id, line)));
        Ok(())
    });
    known
}
