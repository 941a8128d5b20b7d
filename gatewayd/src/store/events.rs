//! The event outbox: what inference found, and what the store had to drop. First in line, once each.

use kinara_protocol::envelope::{self, ENVELOPE_VERSION, EventBatch};
use kinara_protocol::frame::Epoch;
use prost::Message;
use rusqlite::params;

use super::StoreError;
use super::engine::Engine;
use super::outbox::{Kind, Name};
use super::ranges::SeqSet;
use crate::align::timeline::Stamp;
use crate::hardware::HardwareId;
use crate::pipeline::{Fit, NewEvent};
use crate::sabotage;

/// Events and gaps in one batch.
const MOST: i64 = 200;

impl Engine {
    /// Puts an event into the outbox; false when its key is known.
    pub(super) fn put_event(&mut self, event: &NewEvent) -> Result<bool, StoreError> {
        let grid = event.grid_ticks.max(1);
        let key = format!(
            "{}/{}/{}/{:016x}/{}",
            event.hardware,
            event.kind,
            event.producer,
            event.epoch,
            event.onset_ticks / grid
        );
        let wire = envelope::Event {
            hardware_id: event.hardware.to_string(),
            kind: event.kind.clone(),
            producer: event.producer.clone(),
            epoch: event.epoch,
            onset_ticks: event.onset_ticks,
            grid_ms: grid as u32,
            onset_utc_us: event.fit.map_or(0, |fit| fit.utc_us(event.onset_ticks)),
            uncertainty_us: event.fit.map_or(0, |fit| fit.uncertainty_us_at(event.onset_ticks)),
            severity: event.severity.clone(),
            confidence: event.confidence,
            data_json: event.data.to_string(),
            onset_seq: event.seq,
        };
        let inserted = self
            .db
            .prepare_cached("INSERT OR IGNORE INTO events (key, gap, body) VALUES (?1, 0, ?2)")?
            .execute(params![key, wire.encode_to_vec()])?;
        Ok(inserted == 1)
    }

    /// Records that frames will not come, in the running transaction.
    pub(super) fn put_gap(
        &mut self,
        hardware: &HardwareId,
        epoch: u64,
        seqs: &SeqSet,
        ticks: (u64, u64),
        reason: &str,
    ) -> Result<(), StoreError> {
        let first = seqs.ranges().first().map_or(0, |range| range.0);
        let mut seq_ranges = Vec::new();
        let mut end = 0;
        for (from, to) in seqs.ranges() {
            seq_ranges.extend([from - end, to - from + 1]);
            end = to + 1;
        }
        let gap = envelope::Gap {
            hardware_id: hardware.to_string(),
            epoch,
            seq_ranges,
            reason: reason.to_owned(),
            // Ticks until it is sealed; see `seal_events`.
            from_utc_us: ticks.0 as i64,
            to_utc_us: ticks.1 as i64,
        };
        let key = format!("gap/{hardware}/{epoch:016x}/{first}/{reason}");
        self.db
            .prepare_cached("INSERT OR IGNORE INTO events (key, gap, body) VALUES (?1, 1, ?2)")?
            .execute(params![key, gap.encode_to_vec()])?;
        Ok(())
    }

    /// Seals the events that have a time. Runs in a transaction of its own.
    pub(super) fn seal_events(&mut self) -> Result<(), StoreError> {
        if !self.online || self.known.is_none() || self.figures.event_batches >= self.settings.seal_ahead {
            return Ok(());
        }
        let mut select = self.db.prepare_cached(
            "SELECT id, gap, body FROM events WHERE body IS NOT NULL AND buffer IS NULL ORDER BY id LIMIT ?1",
        )?;
        let mut rows = select.query([MOST])?;
        let mut ids = Vec::new();
        let mut batch = EventBatch { version: ENVELOPE_VERSION, ..EventBatch::default() };
        while let Some(row) = rows.next()? {
            let body = row.get_ref(2)?.as_blob().unwrap_or_default();
            let broken = |error: prost::DecodeError| StoreError::Corrupt(format!("an event: {error}"));
            if row.get::<_, i64>(1)? == 0 {
                let Some(event) = self.stamped(envelope::Event::decode(body).map_err(broken)?) else {
                    continue;
                };
                batch.events.push(event);
            } else {
                let mut gap = envelope::Gap::decode(body).map_err(broken)?;
                let at = |ticks: i64| self.time_of(&gap.hardware_id, gap.epoch, ticks as u64);
                let (Some(from), Some(to)) = (at(gap.from_utc_us), at(gap.to_utc_us)) else { continue };
                (gap.from_utc_us, gap.to_utc_us) = (from.0, to.0);
                batch.gaps.push(gap);
            }
            ids.push(row.get::<_, i64>(0)?);
        }
        drop(rows);
        drop(select);
        if ids.is_empty() {
            return Ok(());
        }
        self.begin()?;
        let name = Name { kind: Kind::Event, buffer: self.buffer, sequence: self.name_sequence(Kind::Event) };
        batch.name = Some(self.wire_name(name));
        batch.sealed_at_us = self.utc_us();
        for id in ids {
            self.db
                .prepare_cached("UPDATE events SET buffer = ?2, sequence = ?3 WHERE id = ?1")?
                .execute(params![id, name.buffer as i64, name.sequence as i64])?;
        }
        self.insert_batch(
            name,
            &std::collections::BTreeMap::new(),
            batch.sealed_at_us,
            &envelope::seal(&batch),
        )?;
        self.commit()?;
        self.committed();
        Ok(())
    }

    fn stamped(&self, mut event: envelope::Event) -> Option<envelope::Event> {
        let (utc, uncertainty) = self.time_of(&event.hardware_id, event.epoch, event.onset_ticks)?;
        event.onset_utc_us = utc;
        event.uncertainty_us = uncertainty;
        Some(event)
    }

    fn time_of(&self, hardware: &str, epoch: u64, ticks: u64) -> Option<(i64, u64)> {
        let device = self.devices.get(&HardwareId::parse(hardware).ok()?)?;
        match device.timeline.stamp(Epoch(epoch), ticks, ticks, self.utc_us(), true) {
            Stamp::Known(fit) => {
                let shift = if sabotage::is(sabotage::Kind::ShiftClock) { 1_000_000 } else { 0 };
                let fit = Fit { ref_utc_us: fit.ref_utc_us + shift, ..fit };
                Some((fit.utc_us(ticks), fit.uncertainty_us_at(ticks)))
            }
            Stamp::Wait => None,
        }
    }
}
