//! Sealed batches on their way to the bridge. The only thing that deletes one is the bridge's own word, with the
//! name and the digest of what was published.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::StoreError;
use super::engine::Engine;
use crate::hardware::HardwareId;

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

/// How many frames of each wearable a batch holds. These are figures for people: damaged, they are none.
pub(super) fn counts(text: &str) -> BTreeMap<String, u64> {
    serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::warn!(%error, "what a batch holds is not known any more; the batch itself is whole");
        BTreeMap::new()
    })
}

impl Engine {
    pub(super) fn insert_batch(
        &mut self,
        name: Name,
        frames: &BTreeMap<String, u64>,
        oldest_us: i64,
        payload: &[u8],
    ) -> Result<(), StoreError> {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        let frames = serde_json::to_string(frames).expect("numbers by name are JSON");
        self.db
            .prepare_cached(
                "INSERT INTO batches (kind, buffer, sequence, ordinal, sha256, frames, oldest_us, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                name.kind.number(),
                name.buffer as i64,
                name.sequence as i64,
                ordinal,
                kinara_protocol::envelope::digest(payload),
                frames,
                oldest_us,
                payload
            ])?;
        self.outbox_grew = true;
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
        let mut select = self.db.prepare_cached(
            "SELECT buffer, sequence, sha256, payload FROM batches WHERE kind = ?1 AND state = 0 ORDER BY ordinal",
        )?;
        let mut rows = select.query([kind.number()])?;
        let mut out: Vec<Sealed> = Vec::new();
        let mut total = 0;
        while let Some(row) = rows.next()? {
            let name =
                Name { kind, buffer: row.get::<_, i64>(0)? as u64, sequence: row.get::<_, i64>(1)? as u64 };
            if except.contains(&name) {
                continue;
            }
            let payload: Vec<u8> = row.get(3)?;
            total += payload.len();
            if out.len() >= count || (!out.is_empty() && total > bytes) {
                break;
            }
            out.push(Sealed { name, sha256: row.get(2)?, payload });
        }
        Ok(out)
    }

    /// The frames by wearable of a waiting or parked batch with this name and digest.
    fn frames_of(&self, name: Name, sha256: &[u8; 32]) -> Result<Option<BTreeMap<String, u64>>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT sha256, frames FROM batches WHERE kind = ?1 AND buffer = ?2 AND sequence = ?3",
        )?;
        let found: Option<([u8; 32], String)> = select
            .query_row(params![name.kind.number(), name.buffer as i64, name.sequence as i64], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((stored, frames)) = found else { return Ok(None) };
        if stored != *sha256 {
            tracing::warn!(?name, "an acknowledgement names this batch with another digest; ignored");
            return Ok(None);
        }
        Ok(Some(counts(&frames)))
    }

    pub(super) fn acknowledged(&mut self, name: Name, sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let Some(frames) = self.frames_of(name, sha256)? else { return Ok(false) };
        let key = params![name.kind.number(), name.buffer as i64, name.sequence as i64];
        self.db
            .prepare_cached("DELETE FROM batches WHERE kind = ?1 AND buffer = ?2 AND sequence = ?3")?
            .execute(key)?;
        if name.kind == Kind::Event {
            self.db
                .prepare_cached("UPDATE events SET body = NULL WHERE buffer = ?1 AND sequence = ?2")?
                .execute(params![name.buffer as i64, name.sequence as i64])?;
        }
        for (hardware, count) in frames {
            if let Ok(hardware) = HardwareId::parse(&hardware)
                && let Some(device) = self.devices.get_mut(&hardware)
            {
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
        if self.frames_of(name, sha256)?.is_none() {
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
