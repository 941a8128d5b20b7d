//! The event outbox: what inference found, what the store had to drop, and what people decided. First in line, once
//! each. A damaged row is set aside and holds up nobody.
//!
//! What has no time yet waits for an anchor as long as a frame does, and stands in nobody's way meanwhile. After that
//! it goes with the interval that is known of its epoch, or without a time: what to think of it is the cloud's.

use kinara_protocol::envelope::{self, ENVELOPE_VERSION, EventBatch};
use kinara_protocol::frame::{Epoch, Seq};
use prost::Message;
use rusqlite::types::Value;
use rusqlite::{Row, params};
use uuid::Uuid;

use super::StoreError;
use super::damage::{Damage, blob, cell};
use super::engine::Engine;
use super::held::Held;
use super::outbox::{Kind, Name};
use super::quota::Extent;
use super::ranges::SeqSet;
use crate::align::timeline::Stamp;
use crate::hardware::HardwareId;
use crate::pipeline::{Fit, NewEvent};
use crate::sabotage;

/// Events and gaps in one batch.
const MOST: usize = 200;
/// Rows looked at each time. What waits for its time may be more than this; the next look goes on behind them.
const LOOKED_AT: i64 = 1_000;
/// Ranges in one gap record; the next loss begins another.
const GAP_RANGES: usize = 256;
/// In place of a gap's ticks where they are not known.
const NO_TICKS: i64 = -1;

// What a row is: its column `gap`.
const EVENT: i64 = 0;
const GAP: i64 = 1;
const DECISION: i64 = 2;

// How its key begins.
pub(super) const DECISIONS: &str = "decision/";
const GAPS: &str = "gap/";

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
            uncertainty_us: event.fit.map_or(0, |fit| fit.uncertainty_at(event.onset_ticks)),
            severity: event.severity.clone(),
            confidence: event.confidence,
            data_json: event.data.to_string(),
            onset_seq: event.seq,
        };
        let inserted = self
            .db
            .prepare_cached(
                "INSERT OR IGNORE INTO events (key, gap, body, put_boot_us) VALUES (?1, 0, ?2, ?3)",
            )?
            .execute(params![key, wire.encode_to_vec(), self.clock.boottime_us()])?;
        Ok(inserted == 1)
    }

    /// Records that frames will not come, in the running transaction. Losses of one epoch that wait for the cloud with
    /// each other are one gap.
    pub(super) fn put_gap(
        &mut self,
        hardware: &HardwareId,
        epoch: u64,
        lost: &Extent,
        reason: &'static str,
    ) -> Result<(), StoreError> {
        let (Some((first, _)), Some((_, last))) = (lost.seqs.ranges().first(), lost.seqs.ranges().last())
        else {
            return Ok(());
        };
        self.urgent = true;
        let key = (hardware.clone(), epoch, reason);
        if let Some((id, mut extent)) = self.open_gaps.remove(&key)
            && extent.seqs.ranges().len() < GAP_RANGES
            && extent.ticks.is_some() == lost.ticks.is_some()
        {
            extent.join(lost);
            let joined = self
                .db
                .prepare_cached(
                    "UPDATE events SET body = ?2 WHERE id = ?1 AND buffer IS NULL AND body IS NOT NULL",
                )?
                .execute(params![id, gap(hardware, epoch, &extent, reason)])?;
            if joined == 1 {
                self.open_gaps.insert(key, (id, extent));
                return Ok(());
            }
        }
        // A later loss may begin at the same frame and hold others: it is another gap.
        let count = lost.seqs.len();
        let name = format!("{GAPS}{hardware}/{epoch:016x}/{first}-{last}-{count}/{reason}");
        let inserted = self
            .db
            .prepare_cached(
                "INSERT OR IGNORE INTO events (key, gap, body, put_boot_us) VALUES (?1, 1, ?2, ?3)",
            )?
            .execute(params![name, gap(hardware, epoch, lost, reason), self.clock.boottime_us()])?;
        if inserted == 1 {
            let mut extent = Extent::default();
            extent.join(lost);
            self.open_gaps.insert(key, (self.db.last_insert_rowid(), extent));
        }
        Ok(())
    }

    /// Puts decisions into the outbox, in their order; they are signed already.
    pub(super) fn put_decisions(&mut self, decisions: &[(Uuid, Vec<u8>)]) -> Result<(), StoreError> {
        for (id, body) in decisions {
            self.db
                .prepare_cached("INSERT INTO events (key, gap, body, put_boot_us) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![decision_key(*id), DECISION, body, self.clock.boottime_us()])?;
        }
        Ok(())
    }

    /// Makes cells good that say what a row is and since when it waits: with one of a wrong type no cell of the row could be
    /// written, and what it holds would never go. In the running transaction.
    pub(super) fn mend_events(&mut self) -> Result<(), StoreError> {
        let text = |prefix: &str| Value::Text(prefix.to_owned());
        let values = [text(DECISIONS), DECISION.into(), text(GAPS), GAP.into(), EVENT.into()];
        let mended = self.change_for_good(
            "events",
            // The same event may have been put again since under the key that could not be found.
            "UPDATE OR REPLACE events SET
                key = coalesce(CAST(key AS TEXT), 'row ' || id),
                gap = CASE WHEN typeof(gap) = 'integer' THEN gap WHEN CAST(key AS TEXT) GLOB ?1 || '*' THEN ?2
                           WHEN CAST(key AS TEXT) GLOB ?3 || '*' THEN ?4 ELSE ?5 END,
                put_boot_us = CASE typeof(put_boot_us) WHEN 'integer' THEN put_boot_us ELSE 0 END,
                buffer = CASE typeof(buffer) WHEN 'integer' THEN buffer END,
                sequence = CASE typeof(sequence) WHEN 'integer' THEN sequence END
             WHERE typeof(body) IN ('blob', 'null')
               AND (typeof(key) IS NOT 'text' OR typeof(gap) IS NOT 'integer' OR typeof(put_boot_us) IS NOT 'integer'
                    OR typeof(buffer) NOT IN ('integer', 'null') OR typeof(sequence) NOT IN ('integer', 'null'))",
            &values,
        )?;
        if mended > 0 {
            tracing::error!(
                mended,
                "cells beside events that wait for the cloud were damaged; the events are whole"
            );
        }
        Ok(())
    }

    /// Whether a decision has not been acknowledged yet, as far as is known: it may be in a file set aside.
    pub(super) fn decision_waits(&self, id: Uuid) -> Result<bool, StoreError> {
        if self.left_aside {
            return Ok(true);
        }
        let mut select =
            self.db.prepare_cached("SELECT 1 FROM events WHERE key = ?1 AND body IS NOT NULL")?;
        Ok(select.exists([decision_key(id)])?)
    }

    /// Records that what the wearable still holds of an epoch will not come: from `oldest` on, below `next`. A person
    /// accepted it.
    pub(super) fn give_up(
        &mut self,
        hardware: &HardwareId,
        epoch: Epoch,
        oldest: Seq,
        next: Seq,
        ticks: Option<u64>,
    ) -> Result<(), StoreError> {
        let device = self.devices.get(hardware).and_then(|device| device.epochs.get(&epoch.0));
        let (received, last_ticks) =
            device.map(|state| (state.received.clone(), state.last_ticks)).unwrap_or_default();
        let mut held = SeqSet::default();
        if oldest < next {
            held.insert_range(oldest, next - 1);
        }
        let lost = received
            .ranges()
            .iter()
            .fold(held, |lost, (from, to)| lost.without(i64::from(*from), i64::from(*to)));
        // To the cloud it is what a log does that nobody drains: it is overwritten.
        let lost = Extent { seqs: lost, ticks: ticks.map(|ticks| (last_ticks.min(ticks), ticks)) };
        self.put_gap(hardware, epoch.0, &lost, "overflow")
    }

    /// Seals the events and gaps that have a time, or have waited for one long enough, in the running transaction.
    pub(super) fn seal_events(&mut self) -> Result<(), StoreError> {
        if !self.online || self.known.is_none() || self.is_far_ahead(Kind::Event) {
            return Ok(());
        }
        let mut select = self.db.prepare_cached(
            "SELECT id, gap, body, put_boot_us, key FROM events
             WHERE body IS NOT NULL AND buffer IS NULL AND id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let mut rows = select.query([self.events_looked_at, LOOKED_AT])?;
        let (mut looked_at, mut last) = (0, self.events_looked_at);
        let (mut ids, mut broken) = (Vec::new(), Vec::new());
        let mut batch = EventBatch { version: ENVELOPE_VERSION, ..EventBatch::default() };
        while ids.len() < MOST
            && let Some(row) = rows.next()?
        {
            (looked_at, last) = (looked_at + 1, row.get(0)?);
            match self.take_event(row, &mut batch) {
                Ok(true) => ids.push(last),
                Ok(false) => {}
                Err(damage) => broken.push((last, damage)),
            }
        }
        drop(rows);
        drop(select);
        let more = ids.len() == MOST || looked_at == LOOKED_AT;
        self.events_looked_at = if more { last } else { 0 };
        if ids.is_empty() && broken.is_empty() {
            return Ok(());
        }
        self.begin()?;
        for (id, damage) in broken {
            self.set_event_aside(id, &damage)?;
        }
        if ids.is_empty() {
            return Ok(());
        }
        let name = Name { kind: Kind::Event, buffer: self.buffer, sequence: self.name_sequence(Kind::Event) };
        batch.name = Some(self.wire_name(name));
        batch.sealed_at_us = self.utc_us();
        for id in ids {
            self.db
                .prepare_cached("UPDATE events SET buffer = ?2, sequence = ?3 WHERE id = ?1")?
                .execute(params![id, name.buffer as i64, name.sequence as i64])?;
        }
        self.insert_batch(name, &Held::default(), batch.sealed_at_us, &envelope::seal(&batch))
    }

    /// Puts what a row holds into a batch; false while it waits for its time.
    fn take_event(&self, row: &Row<'_>, batch: &mut EventBatch) -> Result<bool, Damage> {
        let damage = |error: prost::DecodeError| Damage(error.to_string());
        let body = blob(row, 2)?;
        let kind = kind_of(cell::<String>(row, 4).ok().as_deref(), cell(row, 1).ok());
        // What does not say since when it waits has waited long enough: the rest of it is whole.
        let patient = cell(row, 3).is_ok_and(|since| self.is_patient(since));
        Ok(match kind.ok_or_else(|| Damage("nothing says what it is".to_owned()))? {
            EVENT => {
                let event = self.stamped_event(envelope::Event::decode(body).map_err(damage)?, patient);
                event.map(|event| batch.events.push(event)).is_some()
            }
            GAP => {
                let gap = self.stamped_gap(envelope::Gap::decode(body).map_err(damage)?, patient);
                gap.map(|gap| batch.gaps.push(gap)).is_some()
            }
            _ => {
                batch.decisions.push(envelope::Decision::decode(body).map_err(damage)?);
                true
            }
        })
    }

    /// The event with its time; `None` while it has none and may still get one.
    fn stamped_event(&self, mut event: envelope::Event, patient: bool) -> Option<envelope::Event> {
        if let Some(time) = self.time_of(&event.hardware_id, event.epoch, event.onset_ticks, patient) {
            (event.onset_utc_us, event.uncertainty_us) = time;
        } else if patient && event.onset_utc_us == 0 {
            return None;
        }
        Some(event)
    }

    /// The gap with times in place of ticks, 0 for times that will not be known; `None` while they may be.
    fn stamped_gap(&self, mut gap: envelope::Gap, patient: bool) -> Option<envelope::Gap> {
        let at = |ticks: i64| self.time_of(&gap.hardware_id, gap.epoch, ticks as u64, patient);
        let has_ticks = gap.from_utc_us != NO_TICKS;
        let times = has_ticks.then(|| at(gap.from_utc_us).zip(at(gap.to_utc_us))).flatten();
        (gap.from_utc_us, gap.to_utc_us) = match times {
            Some((from, to)) => (from.0, to.0),
            None if has_ticks && patient => return None,
            None => (0, 0),
        };
        Some(gap)
    }

    fn time_of(&self, hardware: &str, epoch: u64, ticks: u64, patient: bool) -> Option<(i64, u64)> {
        let device = self.devices.get(&HardwareId::parse(hardware).ok()?)?;
        match device.timeline.stamp(Epoch(epoch), ticks, ticks, self.utc_us(), patient) {
            Stamp::Known(fit) => {
                let shift = if sabotage::is(sabotage::Kind::ShiftClock) { 1_000_000 } else { 0 };
                let fit = Fit { ref_utc_us: fit.ref_utc_us + shift, ..fit };
                Some((fit.utc_us(ticks), fit.uncertainty_at(ticks)))
            }
            Stamp::Wait => None,
        }
    }
}

/// A gap as it waits: with ticks in place of times; see `stamped_gap`.
fn gap(hardware: &HardwareId, epoch: u64, lost: &Extent, reason: &str) -> Vec<u8> {
    envelope::Gap {
        hardware_id: hardware.to_string(),
        epoch,
        seq_ranges: lost.seqs.distances(),
        reason: reason.to_owned(),
        from_utc_us: lost.ticks.map_or(NO_TICKS, |ticks| ticks.0 as i64),
        to_utc_us: lost.ticks.map_or(NO_TICKS, |ticks| ticks.1 as i64),
    }
    .encode_to_vec()
}

fn decision_key(id: Uuid) -> String {
    format!("{DECISIONS}{id}")
}

/// What a row is, by its key and its column `gap`: of either the other one may be damaged.
pub(super) fn kind_of(key: Option<&str>, gap: Option<i64>) -> Option<i64> {
    match key {
        Some(key) if key.starts_with(DECISIONS) => Some(DECISION),
        Some(key) if key.starts_with(GAPS) => Some(GAP),
        _ => gap.filter(|gap| (EVENT..=DECISION).contains(gap)).or(key.map(|_| EVENT)),
    }
}
