//! Rows carried over one by one: from the tables of an earlier version, and from a database that was set aside.
//!
//! The promise: a row that SQLite still gives out and that fits its new table is brought over, wherever it lies among
//! others that are not. Of a database that was set aside the notes come first, here; what takes room and time comes
//! while the new one is at work, see the module `rescue`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Statement, params, params_from_iter};

use super::damage::WHOLE;
use super::events::kind_of;
use super::held::Held;
use super::schema::TABLES;
use super::wanted::EVERYTHING;
use super::{StoreError, rescue};

/// Rows brought over in one transaction.
pub(super) const CHUNK: usize = 64;

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Rows that are here now.
    pub brought: u64,
    /// Rows that are known to be lost.
    pub lost: u64,
}

/// Goes on carrying over what lies in tables of an earlier version, until none is left.
pub fn carry_over(db: &mut Connection) -> Result<(), StoreError> {
    for table in TABLES {
        let old = format!("old_{table}");
        if !exists(db, &old)? {
            continue;
        }
        let outcome = bring(db, None, &old, table)?;
        db.execute_batch(&format!("DROP TABLE {old}"))?;
        if outcome.brought + outcome.lost > 0 {
            tracing::info!(
                table,
                brought = outcome.brought,
                lost = outcome.lost,
                "carried over to the new schema"
            );
        }
    }
    Ok(())
}

/// Brings over the notes that can be read in a damaged database, and notes what of it is still to come, and how and why
/// it is set aside.
pub fn salvage(
    db: &mut Connection,
    damaged: &Path,
    (aside, why): (&str, &str),
    now_us: i64,
) -> Result<(), StoreError> {
    // Of no bytes SQLite would make a database, and remove the log that lies beside it.
    let is_empty = std::fs::metadata(damaged).map_or(true, |meta| meta.len() == 0);
    let opened = if is_empty { Err(StoreError::Unreadable(why.to_owned())) } else { source(damaged) };
    match opened {
        Ok(source) => {
            for table in TABLES {
                for name in [format!("old_{table}"), (*table).to_owned()] {
                    if rescue::LARGE.contains(table) {
                        rescue::note_left(db, &source, &name, table, aside)?;
                        continue;
                    }
                    let outcome = bring_if_there(db, &source, &name, table)?;
                    if outcome.lost > 0 && matches!(*table, "epochs" | "devices") {
                        db.execute_batch(EVERYTHING)?;
                    }
                }
            }
        }
        Err(error) if error.is_outside() => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "the database set aside cannot be opened; nothing is brought over");
            db.execute_batch(EVERYTHING)?;
        }
    }
    rescue::forget_former(db, aside)?;
    // A new store, for the cloud as well: it may have to be told again what it was told.
    db.execute("DELETE FROM meta WHERE key = 'store_id'", [])?;
    db.execute(
        "INSERT INTO damaged (origin, identity, why, found_us) VALUES (?1, ?2, ?3, ?4)",
        params![WHOLE, aside, why, now_us],
    )?;
    Ok(())
}

/// A database to read from; its journal may have to be played back.
pub(super) fn source(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(path, flags)?)
}

/// Of a table that gives out nothing the others are brought over all the same; an error of the new database ends it,
/// to be tried again.
fn bring_if_there(
    db: &mut Connection,
    source: &Connection,
    from: &str,
    table: &str,
) -> Result<Outcome, StoreError> {
    let brought = match exists(source, from) {
        Ok(true) => bring(db, Some(source), from, table),
        Ok(false) => return Ok(Outcome::default()),
        Err(error) => Err(error),
    };
    match brought {
        Err(StoreError::Unreadable(error)) => {
            tracing::warn!(table, error, "nothing can be brought over");
            Ok(Outcome { brought: 0, lost: 1 })
        }
        other => other,
    }
}

pub(super) fn exists(db: &Connection, table: &str) -> Result<bool, StoreError> {
    let mut select =
        db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1").map_err(unreadable)?;
    select.exists([table]).map_err(unreadable)
}

/// That a disk has no room for the journal says nothing about the table.
fn unreadable(error: rusqlite::Error) -> StoreError {
    match StoreError::from(error) {
        error if error.is_outside() => error,
        error => StoreError::Unreadable(error.to_string()),
    }
}

/// One table on its way.
#[derive(Debug)]
pub(super) struct Bringing<'a> {
    /// In the new database.
    table: &'a str,
    /// What both have, in the order of the values of a row.
    columns: Vec<String>,
    insert: String,
    /// The store's number of each wearable, for batches whose frames have to be looked up.
    numbers: BTreeMap<String, i64>,
    pub outcome: Outcome,
    /// Row ids that are here now.
    here: HashSet<i64>,
}

/// Brings over the rows of one table; without a `source` from the same database, where they are then removed.
fn bring(
    db: &mut Connection,
    source: Option<&Connection>,
    from: &str,
    table: &str,
) -> Result<Outcome, StoreError> {
    let mut columns = columns_of(source.unwrap_or(&*db), from)?;
    let into = columns_of(db, table)?;
    columns.retain(|column| into.contains(column));
    let with_rowid = source.unwrap_or(&*db).prepare(&format!("SELECT rowid FROM {from} LIMIT 0")).is_ok();
    let mut bringing = Bringing::new(db, table, columns, &into)?;
    if with_rowid {
        bringing.by_rowid(db, source, from)?;
        bringing.by_index(db, source, from)?;
    } else {
        bringing.by_key(db, source, from)?;
    }
    Ok(bringing.outcome)
}

pub(super) fn columns_of(db: &Connection, table: &str) -> Result<Vec<String>, StoreError> {
    let mut select = db.prepare("SELECT name FROM pragma_table_info(?1)").map_err(unreadable)?;
    names(&mut select, table)
}

fn names(select: &mut Statement<'_>, table: &str) -> Result<Vec<String>, StoreError> {
    let names = select.query_map([table], |row| row.get(0)).map_err(unreadable)?;
    names.collect::<Result<_, _>>().map_err(unreadable)
}

impl<'a> Bringing<'a> {
    pub fn new(
        db: &Connection,
        table: &'a str,
        columns: Vec<String>,
        into: &[String],
    ) -> Result<Self, StoreError> {
        let looked_up =
            into.iter().any(|column| column == "held") && !columns.iter().any(|column| column == "held");
        let mut numbers = BTreeMap::new();
        let mut names = columns.clone();
        if looked_up {
            names.push("held".to_owned());
            let mut select = db.prepare("SELECT hardware, id FROM devices")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                numbers.insert(row.get(0)?, row.get(1)?);
            }
        }
        let places: Vec<String> = (1..=names.len()).map(|place| format!("?{place}")).collect();
        let insert = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), places.join(", "));
        Ok(Self { table, columns, insert, numbers, outcome: Outcome::default(), here: HashSet::new() })
    }

    /// Walks by row id, and steps over pages and rows that cannot be read.
    fn by_rowid(
        &mut self,
        db: &mut Connection,
        source: Option<&Connection>,
        from: &str,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT rowid, {} FROM {from} WHERE rowid > ?1 ORDER BY rowid LIMIT {CHUNK}",
            self.columns.join(", ")
        );
        let mut last = i64::MIN;
        loop {
            let (rows, whole) = read_rows(source.unwrap_or(&*db), &sql, last);
            let count = rows.len();
            let transaction = db.transaction()?;
            for mut row in rows {
                let Value::Integer(id) = row.remove(0) else { continue };
                self.insert(&transaction, Some(id), row)?;
                last = id;
            }
            if source.is_none() {
                transaction.execute(&format!("DELETE FROM {from} WHERE rowid <= ?1"), [last])?;
            }
            transaction.commit()?;
            if whole && count < CHUNK {
                return Ok(());
            }
            if !whole {
                self.outcome.lost += 1;
                match step_over(source.unwrap_or(&*db), from, last) {
                    Some(next) => last = next,
                    None => return Ok(()),
                }
            }
        }
    }

    /// An index that has all of a row stands in for it: that of the wearables' names.
    fn by_index(
        &mut self,
        db: &mut Connection,
        source: Option<&Connection>,
        from: &str,
    ) -> Result<(), StoreError> {
        if self.table != "devices" || self.outcome.lost == 0 {
            return Ok(());
        }
        let sql = format!(
            "SELECT rowid, {} FROM {from} INDEXED BY sqlite_autoindex_devices_1 WHERE ?1 IS NOT NULL ORDER BY hardware",
            self.columns.join(", ")
        );
        let (rows, whole) = read_rows(source.unwrap_or(&*db), &sql, 0);
        let transaction = db.transaction()?;
        for mut row in rows {
            let Value::Integer(id) = row.remove(0) else { continue };
            if !self.here.contains(&id) {
                self.insert(&transaction, Some(id), row)?;
            }
        }
        transaction.commit()?;
        if whole {
            self.outcome.lost = 0;
        }
        Ok(())
    }

    /// Walks a table without row ids from both of its ends: what lies between two broken pages is lost.
    fn by_key(
        &mut self,
        db: &mut Connection,
        source: Option<&Connection>,
        from: &str,
    ) -> Result<(), StoreError> {
        let keys: Vec<String> = {
            let db = source.unwrap_or(&*db);
            let sql = "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk";
            names(&mut db.prepare(sql).map_err(unreadable)?, from)?
        };
        for order in ["ASC", "DESC"] {
            let by: Vec<String> = keys.iter().map(|key| format!("{key} {order}")).collect();
            let sql = format!(
                "SELECT 0, {} FROM {from} WHERE ?1 IS NOT NULL ORDER BY {}",
                self.columns.join(", "),
                by.join(", ")
            );
            let (rows, whole) = read_rows(source.unwrap_or(&*db), &sql, 0);
            let transaction = db.transaction()?;
            for mut row in rows {
                row.remove(0);
                self.insert(&transaction, None, row)?;
            }
            transaction.commit()?;
            if whole {
                return Ok(());
            }
            self.outcome.lost += 1;
        }
        Ok(())
    }

    /// Puts a row into its table, or, where it does not fit, among the damaged ones.
    pub fn insert(
        &mut self,
        db: &Connection,
        id: Option<i64>,
        mut row: Vec<Value>,
    ) -> Result<(), StoreError> {
        if self.columns.len() == row.len() && self.insert.contains("held") && !self.has("held") {
            row.push(Value::Blob(self.look_up(&row).to_bytes()));
        }
        if self.table == "events" {
            self.mend_event(&mut row);
        }
        let inserted = db.prepare_cached(&self.insert)?.execute(params_from_iter(row.iter()));
        match inserted {
            Ok(_) => {
                self.outcome.brought += 1;
                self.here.extend(id);
            }
            Err(rusqlite::Error::SqliteFailure(error, why))
                if error.code == ErrorCode::ConstraintViolation =>
            {
                use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
                // Seen from the other end already, or found and told again since.
                let seen = id.is_none() && error.extended_code == SQLITE_CONSTRAINT_PRIMARYKEY;
                if seen || self.table == "events" && error.extended_code == SQLITE_CONSTRAINT_UNIQUE {
                    return Ok(());
                }
                self.outcome.lost += 1;
                let why = why.unwrap_or_else(|| error.to_string());
                self.keep_damaged(db, id, &row, &why)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// What an event says of itself beside its body may be damaged: the body is what counts, above all a decision's.
    fn mend_event(&self, row: &mut [Value]) {
        let place = |name: &str| self.columns.iter().position(|column| column == name);
        if let Some(key) = place("key").and_then(|at| row.get_mut(at))
            && let Value::Blob(bytes) = key
        {
            *key = Value::Text(String::from_utf8_lossy(bytes).into_owned());
        }
        let key = place("key").and_then(|at| row.get(at)).and_then(|value| match value {
            Value::Text(key) => Some(key.clone()),
            _ => None,
        });
        for (name, instead) in [
            ("gap", kind_of(key.as_deref(), None).map_or(Value::Null, Value::Integer)),
            ("put_boot_us", Value::Integer(0)),
            ("buffer", Value::Null),
            ("sequence", Value::Null),
        ] {
            let Some(cell) = place(name).and_then(|at| row.get_mut(at)) else { continue };
            if !matches!(cell, Value::Integer(_) | Value::Null) {
                *cell = instead;
            }
        }
    }

    pub fn is_here(&self, id: i64) -> bool {
        self.here.contains(&id)
    }

    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    fn at<'v>(&self, row: &'v [Value], column: &str) -> Option<&'v Value> {
        row.get(self.columns.iter().position(|name| name == column)?)
    }

    /// The frames of a batch of a version that did not note them.
    fn look_up(&self, row: &[Value]) -> Held {
        let (Some(Value::Integer(0)), Some(Value::Blob(payload))) =
            (self.at(row, "kind"), self.at(row, "payload"))
        else {
            return Held::default();
        };
        let held = Held::of_payload(payload, |hardware| self.numbers.get(hardware).copied());
        held.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a batch of an earlier version holds is not known");
            Held::default()
        })
    }

    fn keep_damaged(
        &self,
        db: &Connection,
        id: Option<i64>,
        row: &[Value],
        why: &str,
    ) -> Result<(), StoreError> {
        let body =
            ["body", "payload", "received", "frame"].iter().find_map(|name| match self.at(row, name)? {
                Value::Blob(bytes) => Some(bytes.clone()),
                _ => None,
            });
        let identity = match (self.at(row, "key"), id) {
            (Some(Value::Text(key)), _) if self.table == "events" => key.clone(),
            (_, Some(id)) => format!("row {id}"),
            (_, None) => "a row without a number".to_owned(),
        };
        tracing::error!(table = self.table, identity, why, "a row is damaged and was set aside");
        self.note_lost(db, row)?;
        db.execute(
            "INSERT INTO damaged (origin, identity, why, found_us, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![self.table, identity, why, kinara_clock::Clock::utc_us(&kinara_clock::SystemClock), body],
        )?;
        Ok(())
    }

    /// Notes the frames of a row that does not fit, as far as its cells say which they were.
    fn note_lost(&self, db: &Connection, row: &[Value]) -> Result<(), StoreError> {
        let number = |column| match self.at(row, column) {
            Some(Value::Integer(number)) => Some(*number),
            _ => None,
        };
        let mut lost = Vec::new();
        if self.table == "pieces" {
            let read =
                || Some((number("device")?, number("epoch")?, number("first_seq")?, number("last_seq")?));
            lost.extend(read());
        }
        if self.table == "batches" {
            let held = match self.at(row, "held") {
                Some(Value::Blob(bytes)) => Held::from_bytes(bytes).unwrap_or_default(),
                _ => self.look_up(row),
            };
            lost.extend(held.lines());
        }
        for line in lost {
            note_lost(db, line)?;
        }
        Ok(())
    }
}

/// Notes frames that lay in a row that is gone, until they have their gap.
pub(super) fn note_lost(
    db: &Connection,
    (device, epoch, first, last): (i64, i64, i64, i64),
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO lost (device, epoch, first_seq, last_seq) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![device, epoch, first, last])?;
    Ok(())
}

/// Rows that a statement gives for a number, up to the first error; and whether there was none.
pub(super) fn read_rows(db: &Connection, sql: &str, from: i64) -> (Vec<Vec<Value>>, bool) {
    let mut out = Vec::new();
    let whole = each_row(db, sql, from, |row| {
        let width = row.as_ref().column_count();
        out.push((0..width).map(|at| row.get(at)).collect::<Result<Vec<Value>, _>>()?);
        Ok(())
    });
    (out, whole)
}

/// Takes them one by one.
pub(super) fn each_row(
    db: &Connection,
    sql: &str,
    from: i64,
    mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> bool {
    let mut read = || {
        let mut select = db.prepare_cached(sql)?;
        let mut rows = select.query([from])?;
        while let Some(row) = rows.next()? {
            take(row)?;
        }
        Ok::<_, rusqlite::Error>(())
    };
    read().map_err(|error| tracing::warn!(%error, sql, "what cannot be read here is stepped over")).is_ok()
}

/// The row id after which reading goes on when what follows `last` cannot be read; `None` at the end of the table.
pub(super) fn step_over(db: &Connection, table: &str, last: i64) -> Option<i64> {
    let sql = format!("SELECT rowid FROM {table} WHERE rowid >= ?1 ORDER BY rowid LIMIT 1");
    let probe = |from: i64| {
        let mut select = db.prepare_cached(&sql).ok()?;
        let mut rows = select.query([from]).ok()?;
        match rows.next() {
            Ok(Some(row)) => Some(row.get::<_, i64>(0).ok()),
            Ok(None) => Some(None),
            Err(_) => None,
        }
    };
    let first = last.checked_add(1)?.max(0);
    if let Some(found) = probe(first) {
        // The row itself cannot be read, its number can.
        return found;
    }
    let (mut bad, mut step) = (first, 1i64);
    let mut good = loop {
        let next = first.checked_add(step)?;
        if probe(next).is_some() {
            break next;
        }
        (bad, step) = (next, step.checked_mul(2)?);
    };
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if probe(middle).is_some() { good = middle } else { bad = middle }
    }
    Some(good - 1)
}
