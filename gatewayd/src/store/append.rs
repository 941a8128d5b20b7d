//! Taking frames over.

use std::collections::BTreeMap;

use bytes::Bytes;
use kinara_protocol::frame::{Body, Class, Epoch, FrameRef};
use rusqlite::params;

use super::damage::{Damage, blob, cell};
use super::engine::Engine;
use super::piece;
use super::quota::Extent;
use super::{Appended, Outcome, StoreError};
use crate::align::fit::Anchor;
use crate::align::timeline::Stamp;
use crate::hardware::HardwareId;
use crate::sabotage;
use crate::status::Admission;

/// What is here of a frame that was received before.
enum Held {
    /// It lies here unsealed, with this CRC.
    Whole(u32),
    /// It has gone into a batch.
    Sealed,
    /// It lay here, and cannot be read any more.
    Damaged,
}

impl Engine {
    /// Stores what is new of these frames, in the running transaction.
    pub(super) fn append(
        &mut self,
        hardware: &HardwareId,
        frames: &[Bytes],
    ) -> Result<Vec<Appended>, StoreError> {
        if let Some(frame) = frames.iter().find_map(|bytes| FrameRef::parse(bytes).ok()) {
            self.meet(hardware, frame.header().epoch)?;
        }
        let device = self.device(hardware)?.id;
        let mut outcomes = Vec::with_capacity(frames.len());
        let mut dropped: BTreeMap<u64, Extent> = BTreeMap::new();
        for bytes in frames {
            let Ok(frame) = FrameRef::parse(bytes) else {
                outcomes.push(Outcome::Refused);
                continue;
            };
            let outcome = self.admit(hardware, device, &frame)?;
            if outcome == Outcome::Stored {
                self.counter += 1;
                if !(sabotage::is(sabotage::Kind::LoseFrame) && self.counter.is_multiple_of(50)) {
                    self.stage(device, &frame);
                }
                self.observe(hardware, device, &frame)?;
                self.hear_of_sensors(hardware, &frame)?;
            } else if outcome == Outcome::Dropped {
                dropped.entry(frame.header().epoch.0).or_default().take(&frame);
            }
            outcomes.push(outcome);
        }
        for (epoch, extent) in dropped {
            self.put_gap(hardware, epoch, &extent, "quota")?;
        }
        let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count() as u64;
        self.device(hardware)?.buffered += stored;
        Ok(outcomes
            .into_iter()
            .zip(frames)
            .map(|(outcome, bytes)| Appended { outcome, fit: self.stamp_if_known(hardware, outcome, bytes) })
            .collect())
    }

    /// Decides what happens to a frame, and marks it as received if it is taken.
    fn admit(
        &mut self,
        hardware: &HardwareId,
        device: i64,
        frame: &FrameRef<'_>,
    ) -> Result<Outcome, StoreError> {
        let header = frame.header();
        let state = self.device(hardware)?.epochs.entry(header.epoch.0).or_default();
        let key = (device, header.epoch.0, header.seq);
        if state.received.contains(header.seq)
            && let Some(outcome) = self.double_or_collision(key, frame)?
        {
            return Ok(outcome);
        }
        let outcome = match (*self.admission.borrow(), header.kind.class()) {
            (Admission::EventsOnly, Class::Scalar | Class::Waveform) => return Ok(Outcome::Refused),
            // Refused, it would keep the scalars behind it on the wearable.
            (Admission::NoWaveforms, Class::Waveform) => Outcome::Dropped,
            _ => Outcome::Stored,
        };
        let state = self.device(hardware)?.epochs.entry(header.epoch.0).or_default();
        state.received.insert(header.seq);
        self.dirty.insert((device, header.epoch.0));
        self.has_come(hardware, header.epoch.0, header.seq);
        if outcome == Outcome::Stored {
            self.remember_crc(key, frame.crc());
        }
        Ok(outcome)
    }

    /// A frame whose identity is known: the same again, or another content under the same name. `None` when the copy
    /// stored here was damaged, and this one can take its place.
    fn double_or_collision(
        &mut self,
        key: (i64, u64, u32),
        frame: &FrameRef<'_>,
    ) -> Result<Option<Outcome>, StoreError> {
        let at_hand = match self.recent.get(&key) {
            Some(crc) => Held::Whole(*crc),
            None => self.stored_copy(key)?,
        };
        match at_hand {
            Held::Whole(crc) if crc != frame.crc() => {}
            Held::Whole(_) | Held::Sealed => return Ok(Some(Outcome::Duplicate)),
            Held::Damaged => return Ok(None),
        }
        let (device, epoch, seq) = key;
        tracing::error!(
            hardware = %self.hardware[&device], epoch = %Epoch(epoch), seq,
            "two different frames under one identity; the later one is in quarantine"
        );
        let received = self.utc_us();
        self.db
            .prepare_cached(
                "INSERT OR IGNORE INTO quarantine (device, epoch, seq, crc, reason, received_us, frame)
                 VALUES (?1, ?2, ?3, ?4, 'collision', ?5, ?6)",
            )?
            .execute(params![device, epoch as i64, seq, frame.crc(), received, frame.bytes()])
            .map(|rows| self.figures.quarantined += rows as u64)?;
        Ok(Some(Outcome::Collision))
    }

    /// What there is of a frame that was received before.
    fn stored_copy(&mut self, (device, epoch, seq): (i64, u64, u32)) -> Result<Held, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT form, body, id FROM pieces WHERE device = ?1 AND epoch = ?2 AND first_seq <= ?3 AND last_seq >= ?3",
        )?;
        let mut rows = select.query(params![device, epoch as i64, seq])?;
        // What is in no row here may still be in the file set aside, and nobody knows yet whether it can be read there.
        let mut found = if self.left_aside { Held::Damaged } else { Held::Sealed };
        let (mut seen, mut broken) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let bytes = cell(row, 0).and_then(|form| piece::decode(form, blob(row, 1)?));
            match bytes.as_deref().map_err(Damage::clone).and_then(piece::frames) {
                Ok(frames) => {
                    seen.extend(frames.iter().map(|frame| (frame.header().seq, frame.crc())));
                }
                Err(damage) => broken.push((row.get(2)?, damage)),
            }
        }
        drop(rows);
        drop(select);
        if !broken.is_empty() {
            self.set_pieces_aside(broken)?;
            found = Held::Damaged;
        }
        for (other, crc) in seen {
            if other == seq {
                found = Held::Whole(crc);
            }
            self.remember_crc((device, epoch, other), crc);
        }
        Ok(found)
    }

    /// Learns from a frame what it says about time.
    fn observe(&mut self, hardware: &HardwareId, id: i64, frame: &FrameRef<'_>) -> Result<(), StoreError> {
        let header = frame.header();
        let last = piece::last_ticks(frame);
        let body = frame.body();
        let device = self.device(hardware)?;
        device.timeline.reached(header.epoch, last);
        let state = device.epochs.entry(header.epoch.0).or_default();
        state.last_ticks = state.last_ticks.max(last);
        let anchor = match body {
            Ok(Body::SyncAnchor(sync)) => Some((header.epoch, sync)),
            Ok(Body::BootAnchor(boot)) => {
                state.boot = Some(frame.bytes().to_vec());
                device.timeline.boot(header.epoch, boot);
                boot.previous.and_then(|previous| Some((previous.epoch, previous.last_sync?)))
            }
            _ => None,
        };
        if let Some((epoch, sync)) = anchor {
            let anchor = Anchor {
                ticks: sync.ticks.0,
                utc_us: sync.utc_us,
                uncertainty_us: u64::from(sync.uncertainty_us),
            };
            self.db
                .prepare_cached(
                    "INSERT OR IGNORE INTO anchors (device, epoch, ticks, utc_us, uncertainty_us)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    id,
                    piece::epoch_to_sql(epoch),
                    anchor.ticks as i64,
                    anchor.utc_us,
                    anchor.uncertainty_us as i64
                ])?;
            let latest_us = self.latest_us().filter(|latest_us| anchor.utc_us > *latest_us);
            let timeline = &mut self.device(hardware)?.timeline;
            timeline.sync(epoch, anchor);
            if let Some(latest_us) = latest_us {
                // A log may hold any number of them.
                timeline.forget_after(latest_us);
                tracing::debug!(%hardware, %epoch, "a time sync of the future is not believed");
            }
        }
        Ok(())
    }

    fn stamp_if_known(
        &self,
        hardware: &HardwareId,
        outcome: Outcome,
        bytes: &[u8],
    ) -> Option<crate::pipeline::Fit> {
        if outcome != Outcome::Stored {
            return None;
        }
        self.known?;
        let frame = FrameRef::parse(bytes).ok()?;
        let header = frame.header();
        let timeline = &self.devices.get(hardware)?.timeline;
        match timeline.stamp(header.epoch, header.ticks.0, header.ticks.0, self.utc_us(), true) {
            Stamp::Known(fit) => Some(fit),
            Stamp::Wait => None,
        }
    }
}
