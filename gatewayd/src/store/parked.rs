//! Batches that the bridge could not read: kept here, out of the way, until they are tried again or somebody takes a copy
//! of them away. What one version of the bridge cannot read a newer one may.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::StoreError;
use super::damage::{blob, cell};
use super::engine::Engine;
use super::held::Held;
use super::outbox::{Kind, Name};

/// A batch that is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Its name.
    pub name: Name,
    /// How many frames of each wearable it holds.
    pub frames: BTreeMap<String, u64>,
    /// Its size.
    pub bytes: u64,
    /// What the bridge said.
    pub reason: String,
}

impl Engine {
    /// Those there are, oldest first.
    pub(super) fn parked(&self) -> Result<Vec<Parked>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT kind, buffer, sequence, held, length(payload), reason
             FROM batches WHERE state = 1 ORDER BY ordinal",
        )?;
        let rows = select.query_map([], |row| {
            let kind = if row.get::<_, i64>(0)? == Kind::Event.number() { Kind::Event } else { Kind::Batch };
            Ok(Parked {
                name: Name {
                    kind,
                    buffer: row.get::<_, i64>(1)? as u64,
                    sequence: row.get::<_, i64>(2)? as u64,
                },
                frames: blob(row, 3)
                    .and_then(Held::from_bytes)
                    .unwrap_or_default()
                    .counts()
                    .into_iter()
                    .filter_map(|(device, frames)| Some((self.hardware.get(&device)?.to_string(), frames)))
                    .collect(),
                bytes: row.get::<_, i64>(4)? as u64,
                reason: cell::<Option<String>>(row, 5).ok().flatten().unwrap_or_default(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What would be published of one.
    pub(super) fn parked_payload(&self, name: Name) -> Result<Option<Vec<u8>>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT payload FROM batches WHERE state = 1 AND kind = ?1 AND buffer = ?2 AND sequence = ?3",
        )?;
        let key = params![name.kind.number(), name.buffer as i64, name.sequence as i64];
        Ok(select.query_row(key, |row| Ok(blob(row, 0).map(<[u8]>::to_vec).ok())).optional()?.flatten())
    }

    /// Puts them all back into the outbox. Gives how many.
    pub(super) fn retry_parked(&mut self) -> Result<usize, StoreError> {
        let mut all = 0;
        for kind in [Kind::Event, Kind::Batch] {
            let again = self
                .db
                .prepare_cached("UPDATE batches SET state = 0 WHERE state = 1 AND kind = ?1")?
                .execute([kind.number()])?;
            match kind {
                Kind::Batch => self.figures.batches += again as u64,
                Kind::Event => self.figures.event_batches += again as u64,
            }
            all += again;
        }
        self.figures.parked = self.figures.parked.saturating_sub(all as u64);
        self.outbox_grew |= all > 0;
        Ok(all)
    }
}
