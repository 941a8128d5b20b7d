//! Sealed batches on their way to the bridge. The only thing that deletes one is the bridge's own word, with the
//! name and the digest of what was published.

use rusqlite::{Row, params};

use super::StoreError;
use super::damage::{Broken, Damage, blob, cell};
use super::engine::Engine;
use super::held::Held;

/// The two outboxes; each has sequences of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Frames.
    Batch,
    /// Events and gaps; first in line.
    Event,
}

impl Kind {
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Batch => 0,
            Self::Event => 1,
        }
    }
}

/// The name of a batch on this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Which outbox.
    pub kind: Kind,
    /// The run of the daemon that sealed it.
    pub buffer: u64,
    /// Its number in that run.
    pub sequence: u64,
}

/// A sealed batch.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Its name.
    pub name: Name,
    /// SHA-256 of the payload.
    pub sha256: [u8; 32],
    /// What is published.
    pub payload: Vec<u8>,
}

impl Engine {
    pub(super) fn insert_batch(
        &mut self,
        name: Name,
        held: &Held,
        oldest_us: i64,
        payload: &[u8],
    ) -> Result<(), StoreError> {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        self.db
            .prepare_cached(
                "INSERT INTO batches (kind, buffer, sequence, ordinal, sha256, held, oldest_us, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                name.kind.number(),
                name.buffer as i64,
                name.sequence as i64,
                ordinal,
                kinara_protocol::envelope::digest(payload),
                held.to_bytes(),
                oldest_us,
                payload
            ])?;
        (self.outbox_grew, self.urgent) = (true, true);
        match name.kind {
            Kind::Batch => self.figures.batches += 1,
            Kind::Event => self.figures.event_batches += 1,
        }
        Ok(())
    }

    pub(super) fn waiting(
        &mut self,
        kind: Kind,
        except: &[Name],
        count: usize,
        bytes: usize,
    ) -> Result<Vec<Sealed>, StoreError> {
        let (waiting, broken) = self.read_waiting(kind, except, count, bytes)?;
        if !broken.is_empty() {
            self.begin()?;
            for (rowid, damage) in broken {
                self.set_batch_aside(rowid, &damage)?;
            }
        }
        Ok(waiting)
    }

    /// What waits and is what was sealed; and the rows that are not.
    fn read_waiting(
        &self,
        kind: Kind,
        except: &[Name],
        count: usize,
        bytes: usize,
    ) -> Result<(Vec<Sealed>, Broken), StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT rowid, buffer, sequence, sha256, payload FROM batches
             WHERE kind = ?1 AND state = 0 ORDER BY ordinal",
        )?;
        let mut rows = select.query([kind.number()])?;
        let (mut out, mut broken): (Vec<Sealed>, _) = (Vec::new(), Vec::new());
        let mut total = 0;
        while out.len() < count
            && let Some(row) = rows.next()?
        {
            let sealed = match sealed_in(kind, except, row) {
                Ok(Some(sealed)) => sealed,
                Ok(None) => continue,
                Err(damage) => {
                    broken.push((row.get(0)?, damage));
                    continue;
                }
            };
            total += sealed.payload.len();
            if !out.is_empty() && total > bytes {
                break;
            }
            out.push(sealed);
        }
        Ok((out, broken))
    }

    /// What a waiting or parked batch with this name and digest holds.
    fn held_by(&self, name: Name, sha256: &[u8; 32]) -> Result<Option<Held>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT sha256, held FROM batches WHERE kind = ?1 AND buffer = ?2 AND sequence = ?3",
        )?;
        let mut rows = select.query(params![name.kind.number(), name.buffer as i64, name.sequence as i64])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        if !blob(row, 0).is_ok_and(|stored| stored == sha256) {
            tracing::warn!(?name, "an acknowledgement names this batch with another digest; ignored");
            return Ok(None);
        }
        Ok(Some(blob(row, 1).and_then(Held::from_bytes).unwrap_or_else(|damage| {
            tracing::warn!(?name, %damage, "the batch itself is whole");
            Held::default()
        })))
    }

    pub(super) fn acknowledged(&mut self, name: Name, sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let Some(held) = self.held_by(name, sha256)? else { return Ok(false) };
        self.left_out.remove(&name);
        let key = params![name.kind.number(), name.buffer as i64, name.sequence as i64];
        self.db
            .prepare_cached("DELETE FROM batches WHERE kind = ?1 AND buffer = ?2 AND sequence = ?3")?
            .execute(key)?;
        if name.kind == Kind::Event {
            self.db
                .prepare_cached("UPDATE events SET body = NULL WHERE buffer = ?1 AND sequence = ?2")?
                .execute(params![name.buffer as i64, name.sequence as i64])?;
        }
        for (device, count) in held.counts() {
            let device = self.hardware.get(&device).and_then(|hardware| self.devices.get_mut(hardware));
            if let Some(device) = device {
                device.buffered = device.buffered.saturating_sub(count);
            }
        }
        match name.kind {
            Kind::Batch => self.figures.batches = self.figures.batches.saturating_sub(1),
            Kind::Event => self.figures.event_batches = self.figures.event_batches.saturating_sub(1),
        }
        // There may be room for the next one now.
        self.outbox_grew = true;
        Ok(true)
    }

    pub(super) fn park(&mut self, name: Name, sha256: &[u8; 32], reason: &str) -> Result<bool, StoreError> {
        if self.held_by(name, sha256)?.is_none() {
            return Ok(false);
        }
        let parked = self
            .db
            .prepare_cached(
                "UPDATE batches SET state = 1, reason = ?4
                 WHERE kind = ?1 AND buffer = ?2 AND sequence = ?3 AND state = 0",
            )?
            .execute(params![name.kind.number(), name.buffer as i64, name.sequence as i64, reason])?;
        if parked == 1 {
            self.left_out.remove(&name);
            self.figures.parked += 1;
            match name.kind {
                Kind::Batch => self.figures.batches = self.figures.batches.saturating_sub(1),
                Kind::Event => self.figures.event_batches = self.figures.event_batches.saturating_sub(1),
            }
        }
        self.outbox_grew = true;
        Ok(parked == 1)
    }
}

/// A waiting batch, unless it is one of those left out; damage when it is not what was sealed.
fn sealed_in(kind: Kind, except: &[Name], row: &Row<'_>) -> Result<Option<Sealed>, Damage> {
    let (buffer, sequence): (i64, i64) = (cell(row, 1)?, cell(row, 2)?);
    let name = Name { kind, buffer: buffer as u64, sequence: sequence as u64 };
    if except.contains(&name) {
        return Ok(None);
    }
    let (sha256, payload): ([u8; 32], Vec<u8>) = (cell(row, 3)?, cell(row, 4)?);
    if kinara_protocol::envelope::digest(&payload) != sha256 {
        return Err(Damage("its payload is not what its digest says".to_owned()));
    }
    Ok(Some(Sealed { name, sha256, payload }))
}
