//! Rows that cannot be read any more.
//!
//! The promise: such a row costs what it held and nothing else, whether a cell is of a wrong type, its content is no
//! content, or the page that it lay on is gone. It is kept in the table `damaged` for whoever wants to look at it, its
//! frames become a gap `gateway_lost` (a frame that comes after all is taken out of it by the cloud) and leave what was
//! received, so that a wearable that still has them is asked for them. The log, an alert and `kinaractl status` say so,
//! and everything else goes on.

use kinara_protocol::frame::Epoch;
use rusqlite::types::{FromSql, Value};
use rusqlite::{OptionalExtension, Row, params, params_from_iter};

use super::engine::Engine;
use super::events::DECISIONS;
use super::held::Held;
use super::outbox::{Kind, Name};
use super::quota::Extent;
use super::ranges::SeqSet;
use super::salvage::note_lost;
use super::{StoreError, piece};
use crate::align::source::FIRST_DATE_US;

/// Damaged rows are kept so long, microseconds (90 days),
const KEPT_US: i64 = 90 * 86_400_000_000;
/// and so many of them.
const MOST: i64 = 1_000;
/// The origin of a whole file that was set aside.
pub(super) const WHOLE: &str = "database";

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damage(pub String);

/// Rows of one table, by id, and what is wrong with each.
pub type Broken = Vec<(i64, Damage)>;

/// A row of any table, by its keys as they are, and what is wrong with it.
#[derive(Debug)]
pub(super) struct BrokenRow {
    pub table: &'static str,
    pub keys: Vec<(&'static str, Value)>,
    pub damage: Damage,
    /// The column that is worth keeping.
    pub kept: &'static str,
}

/// A row of a table by these columns of a result, which come first in it.
pub(super) fn broken_row(
    table: &'static str,
    keys: &[&'static str],
    kept: &'static str,
    row: &Row<'_>,
    damage: Damage,
) -> Result<BrokenRow, StoreError> {
    let keys = keys.iter().enumerate().map(|(at, key)| Ok((*key, row.get(at)?)));
    Ok(BrokenRow { table, keys: keys.collect::<Result<_, StoreError>>()?, damage, kept })
}

/// A row of `anchors`, by a result that begins with its keys.
pub(super) fn broken_anchor(row: &Row<'_>, damage: Damage) -> Result<BrokenRow, StoreError> {
    broken_row("anchors", &["device", "epoch", "ticks"], "utc_us", row, damage)
}

/// One cell. Of a wrong type, it is damage of its row.
pub(super) fn cell<T: FromSql>(row: &Row<'_>, column: usize) -> Result<T, Damage> {
    row.get(column).map_err(|error| Damage(error.to_string()))
}

/// A cell that counts something.
pub(super) fn count(row: &Row<'_>, column: usize) -> Result<u64, Damage> {
    let number: i64 = cell(row, column)?;
    u64::try_from(number).map_err(|_| Damage(format!("{number} in column {column} counts something")))
}

/// A cell of bytes.
pub(super) fn blob<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a [u8], Damage> {
    let value = row.get_ref(column).map_err(|error| Damage(error.to_string()))?;
    value.as_blob().map_err(|error| Damage(error.to_string()))
}

impl Engine {
    /// Sets rows of frames aside, in the running transaction.
    pub(super) fn set_pieces_aside(&mut self, broken: Broken) -> Result<(), StoreError> {
        if broken.is_empty() {
            return Ok(());
        }
        // What waits for its row has its numbers among those received already.
        self.write_staged()?;
        for (id, damage) in broken {
            self.set_piece_aside(id, &damage)?;
        }
        self.recount()
    }

    fn set_piece_aside(&mut self, id: i64, damage: &Damage) -> Result<(), StoreError> {
        let found = self.identity_of_piece(id)?;
        let identity = match found {
            Some((device, epoch, first, last)) => {
                format!("{}/{}/{first}-{last}", self.name_of(device), Epoch(epoch as u64))
            }
            None => format!("row {id}"),
        };
        tracing::error!(
            id, identity, %damage, "a row of stored frames is damaged and was set aside; what it held is lost"
        );
        self.keep_damaged("pieces", &identity, damage, id)?;
        if let Some((device, epoch, first, last)) = found {
            self.range_is_lost(device, epoch as u64, (first, last))?;
        }
        Ok(())
    }

    /// Of these frames, those are lost that were received and lie in no other row.
    pub(super) fn range_is_lost(
        &mut self,
        device: i64,
        epoch: u64,
        bounds: (i64, i64),
    ) -> Result<(), StoreError> {
        if self.is_unnamed(device) {
            // There is a gap when it is known whose.
            return note_lost(&self.db, (device, epoch as i64, bounds.0, bounds.1));
        }
        let here = self.here(device, epoch, bounds)?;
        self.frames_are_lost(device, epoch, |received| received.within(bounds.0, bounds.1).minus(&here))
    }

    /// Which frames a row holds, as its index has it: a row of which a cell is damaged is whole there.
    fn identity_of_piece(&self, id: i64) -> Result<Option<(i64, i64, i64, i64)>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT device, epoch, first_seq, last_seq FROM pieces INDEXED BY pieces_by_identity WHERE +id = ?1",
        )?;
        let mut rows = select.query([id])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let read = || Ok::<_, Damage>((cell(row, 0)?, cell(row, 1)?, cell(row, 2)?, cell(row, 3)?));
        Ok(read().ok())
    }

    fn name_of(&self, device: i64) -> String {
        self.hardware.get(&device).map_or_else(|| "an unknown wearable".to_owned(), ToString::to_string)
    }

    /// Writes the gap of frames that were received and are lost here. Whoever still has them may bring them again.
    pub(super) fn frames_are_lost(
        &mut self,
        device: i64,
        epoch: u64,
        which: impl FnOnce(&SeqSet) -> SeqSet,
    ) -> Result<(), StoreError> {
        let Some(hardware) = self.hardware.get(&device).cloned() else { return Ok(()) };
        let state = self.device(&hardware)?.epochs.entry(epoch).or_default();
        let seqs = which(&state.received);
        state.received = state.received.minus(&seqs);
        self.dirty.insert((device, epoch));
        self.want(&hardware, epoch, &seqs)?;
        self.recent
            .retain(|(of, in_epoch, seq), _| (*of, *in_epoch) != (device, epoch) || !seqs.contains(*seq));
        self.put_gap(&hardware, epoch, &Extent { seqs, ticks: None }, "gateway_lost")
    }

    /// Sets a sealed batch aside, in the running transaction: its payload is not what was sealed, or a cell is damaged.
    /// Events and gaps of it are sealed again, frames become a gap.
    pub(super) fn set_batch_aside(&mut self, rowid: i64, damage: &Damage) -> Result<(), StoreError> {
        let (name, held) = self.identity_of_batch(rowid)?;
        let identity = name.map_or_else(|| format!("row {rowid}"), |name| format!("{name:?}"));
        tracing::error!(identity, %damage, "a sealed batch is damaged and was set aside; what it held is lost");
        self.keep_damaged("batches", &identity, damage, rowid)?;
        for ((device, epoch), seqs) in held.map(|held| held.0).unwrap_or_default() {
            if self.is_unnamed(device) {
                for (first, last) in seqs.ranges() {
                    note_lost(&self.db, (device, epoch as i64, (*first).into(), (*last).into()))?;
                }
            } else {
                self.frames_are_lost(device, epoch, |_| seqs)?;
            }
        }
        self.unseal_orphans()?;
        self.recount()
    }

    /// A batch's name and frames, each as far as it can be read.
    fn identity_of_batch(&self, rowid: i64) -> Result<(Option<Name>, Option<Held>), StoreError> {
        let mut select =
            self.db.prepare_cached("SELECT kind, buffer, sequence FROM batches WHERE rowid = ?1")?;
        let mut rows = select.query([rowid])?;
        let name = match rows.next()? {
            Some(row) => name_in(row).ok(),
            None => None,
        };
        let mut select = self
            .db
            .prepare_cached("SELECT held FROM batches INDEXED BY batches_in_order WHERE +rowid = ?1")?;
        let mut rows = select.query([rowid])?;
        let held = match rows.next()? {
            Some(row) => blob(row, 0).and_then(Held::from_bytes).ok(),
            None => None,
        };
        Ok((name, held))
    }

    /// Events and gaps whose batch is gone wait for another one.
    pub(super) fn unseal_orphans(&mut self) -> Result<(), StoreError> {
        let freed = self.change_for_good(
            "events",
            "UPDATE events SET buffer = NULL, sequence = NULL
             WHERE body IS NOT NULL AND buffer IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM batches WHERE kind = 1 AND batches.buffer = events.buffer
                                        AND batches.sequence = events.sequence)",
            &[],
        )?;
        if freed > 0 {
            tracing::warn!(freed, "events whose batch is gone are sealed again");
            self.events_looked_at = 0;
        }
        Ok(())
    }

    /// Sets an event, gap or decision aside, in the running transaction. An event or gap that is found again is told again;
    /// of a decision people are told.
    pub(super) fn set_event_aside(&mut self, id: i64, damage: &Damage) -> Result<(), StoreError> {
        let key: Option<String> =
            self.db.query_row("SELECT key FROM events WHERE id = ?1", [id], |row| Ok(row.get(0).ok()))?;
        let key = key.unwrap_or_else(|| format!("row {id}"));
        tracing::error!(id, key, %damage, "an event that waited for the cloud is damaged and was set aside");
        self.keep_damaged("events", &key, damage, id)
    }

    fn keep_damaged(
        &mut self,
        origin: &str,
        identity: &str,
        damage: &Damage,
        rowid: i64,
    ) -> Result<(), StoreError> {
        let now = self.utc_us();
        let body = if origin == "batches" { "payload" } else { "body" };
        self.db.execute(
            &format!(
                "INSERT INTO damaged (origin, identity, why, found_us, body)
                 SELECT ?1, ?2, ?3, ?4, CASE typeof({body}) WHEN 'null' THEN NULL ELSE CAST({body} AS BLOB) END
                 FROM {origin} WHERE rowid = ?5"
            ),
            params![origin, identity, damage.to_string(), now, rowid],
        )?;
        self.figures.damaged += 1;
        self.urgent = true;
        self.delete_for_good(origin, "rowid = ?1", &[Value::Integer(rowid)])
    }

    /// Deletes a damaged row, whatever an index holds of it.
    fn delete_for_good(&self, table: &str, which: &str, values: &[Value]) -> Result<(), StoreError> {
        self.change_for_good(table, &format!("DELETE FROM {table} WHERE {which}"), values)?;
        Ok(())
    }

    /// Changes rows of a table; gives how many.
    pub(super) fn change_for_good(
        &self,
        table: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<usize, StoreError> {
        match self.db.execute(sql, params_from_iter(values)).map_err(StoreError::from) {
            // A cell that an index holds as it was: the index is made anew first.
            Err(error) if error.is_corrupt() => {
                self.db.execute_batch(&format!("REINDEX {table}"))?;
                Ok(self.db.execute(sql, params_from_iter(values))?)
            }
            other => other,
        }
    }

    /// Sets rows of small tables aside, in the running transaction.
    pub(super) fn set_rows_aside(&mut self, broken: &[BrokenRow]) -> Result<(), StoreError> {
        for BrokenRow { table, keys, damage, kept } in broken {
            let identity: Vec<String> =
                keys.iter().map(|(key, value)| format!("{key} {}", short(value))).collect();
            let identity = identity.join(", ");
            tracing::error!(table, identity, %damage, "a row is damaged and was set aside");
            let given = |from: usize| {
                let terms: Vec<String> = keys
                    .iter()
                    .enumerate()
                    .map(|(at, (key, _))| format!("{key} IS ?{}", at + from))
                    .collect();
                terms.join(" AND ")
            };
            let values = || keys.iter().map(|(_, value)| value.clone());
            let noted: Vec<Value> = [
                Value::Text((*table).to_owned()),
                Value::Text(identity),
                Value::Text(damage.to_string()),
                Value::Integer(self.utc_us()),
            ]
            .into_iter()
            .chain(values())
            .collect();
            self.db.execute(
                &format!(
                    "INSERT INTO damaged (origin, identity, why, found_us, body)
                     SELECT ?1, ?2, ?3, ?4, CASE typeof({kept}) WHEN 'null' THEN NULL ELSE CAST({kept} AS BLOB) END
                     FROM {table} WHERE {}",
                    given(5)
                ),
                params_from_iter(noted),
            )?;
            self.delete_for_good(table, &given(1), &values().collect::<Vec<_>>())?;
            self.figures.damaged += 1;
        }
        Ok(())
    }

    /// The numbers of an epoch's frames from `first` to `last` that are here, as far as they can be read.
    pub(super) fn here(
        &self,
        device: i64,
        epoch: u64,
        (first, last): (i64, i64),
    ) -> Result<SeqSet, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT form, body FROM pieces
             WHERE device = ?1 AND epoch = ?2 AND first_seq <= ?4 AND last_seq >= ?3",
        )?;
        let mut rows = select.query(params![device, epoch as i64, first, last])?;
        let mut seqs = SeqSet::default();
        while let Some(row) = rows.next()? {
            let read = cell(row, 0).and_then(|form| piece::decode(form, blob(row, 1)?));
            let Ok(bytes) = read else { continue };
            for frame in piece::frames(&bytes).unwrap_or_default() {
                seqs.insert(frame.header().seq);
            }
        }
        let mut select = self.db.prepare_cached("SELECT held FROM batches WHERE kind = 0")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let held = blob(row, 0).and_then(Held::from_bytes).unwrap_or_default();
            seqs.join(held.0.get(&(device, epoch)).unwrap_or(&SeqSet::default()));
        }
        Ok(seqs)
    }

    /// Writes the gaps of what was lost with rows that a salvage did not find, in the running transaction.
    pub(super) fn tell_lost(&mut self) -> Result<(), StoreError> {
        let mut select = self.db.prepare("SELECT device, epoch, first_seq, last_seq FROM lost")?;
        let mut rows = select.query([])?;
        let mut lost = Vec::new();
        while let Some(row) = rows.next()? {
            let read =
                || Ok::<_, Damage>((cell(row, 0)?, cell::<i64>(row, 1)?, cell(row, 2)?, cell(row, 3)?));
            lost.extend(read().ok());
        }
        drop(rows);
        drop(select);
        self.db.execute("DELETE FROM lost", [])?;
        for (device, epoch, first, last) in joined(lost) {
            self.range_is_lost(device, epoch as u64, (first, last))?;
        }
        Ok(())
    }

    /// The last whole file that was set aside, in words, while its note is kept.
    pub(super) fn file_set_aside(&self) -> Result<Option<(String, String)>, StoreError> {
        let mut select = self
            .db
            .prepare_cached("SELECT identity, why FROM damaged WHERE origin = ?1 ORDER BY id DESC LIMIT 1")?;
        // The note itself may be damaged.
        let text = |row: &Row<'_>, column| cell(row, column).unwrap_or_else(|_| "?".to_owned());
        Ok(select.query_row([WHOLE], |row| Ok((text(row, 0), text(row, 1)))).optional()?)
    }

    /// How many decisions were set aside.
    pub(super) fn damaged_decisions(&self) -> Result<u64, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT count(*) FROM damaged WHERE origin = 'events' AND identity GLOB ?1 || '*'",
        )?;
        let rows: i64 = select.query_row([DECISIONS], |row| row.get(0))?;
        Ok(rows.unsigned_abs())
    }

    /// Forgets damaged rows that nobody wanted to look at.
    pub(super) fn prune_damaged(&mut self) -> Result<(), StoreError> {
        if let Some(now_us) = self.known_us() {
            // Found by a clock that was ahead, they would stand until it is as late as that; by one that was not set, they
            // would be forgotten before anybody has looked. (Not by the build's date: each new version would keep them anew.)
            self.db.execute(
                "UPDATE damaged SET found_us = ?1 WHERE found_us > ?1 OR found_us < ?2",
                [now_us, FIRST_DATE_US],
            )?;
            self.db.execute("DELETE FROM damaged WHERE found_us < ?1", [now_us - KEPT_US])?;
        }
        self.db.execute("DELETE FROM damaged WHERE id <= (SELECT max(id) FROM damaged) - ?1", [MOST])?;
        self.figures.damaged = self.count_rows("damaged")?;
        Ok(())
    }

    pub(super) fn count_rows(&self, table: &str) -> Result<u64, StoreError> {
        let rows: i64 = self.db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
        Ok(rows.unsigned_abs())
    }
}

fn name_in(row: &Row<'_>) -> Result<Name, Damage> {
    let kind = if cell::<i64>(row, 0)? == Kind::Event.number() { Kind::Event } else { Kind::Batch };
    Ok(Name { kind, buffer: cell::<i64>(row, 1)? as u64, sequence: cell::<i64>(row, 2)? as u64 })
}

/// A value for people.
fn short(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text.chars().take(60).collect(),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

/// Ranges of frames that touch, as one: what a range costs to look at is what is stored around it.
fn joined(mut lost: Vec<(i64, i64, i64, i64)>) -> Vec<(i64, i64, i64, i64)> {
    lost.sort_unstable();
    let mut out: Vec<(i64, i64, i64, i64)> = Vec::new();
    for (device, epoch, first, last) in lost {
        match out.last_mut() {
            Some(before)
                if (before.0, before.1) == (device, epoch) && first <= before.3.saturating_add(1) =>
            {
                before.3 = before.3.max(last);
            }
            _ => out.push((device, epoch, first, last)),
        }
    }
    out
}
