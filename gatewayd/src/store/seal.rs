//! Sealing: frames become an immutable, named batch, each with its time.
//!
//! A batch is made in one transaction with the deletion of the frames it holds, so that a frame is always either
//! unsealed or in exactly one batch.

use std::collections::BTreeMap;
use std::time::Duration;

use kinara_protocol::columns::{self, run_lengths};
use kinara_protocol::envelope::{self, Batch, DeviceFrames, ENVELOPE_VERSION};
use kinara_protocol::frame::{Body, Epoch, FrameRef};
use rusqlite::Row;

use super::damage::{Broken, Damage, blob, cell, count};
use super::engine::Engine;
use super::held::Held;
use super::outbox::{Kind, Name};
use super::{StoreError, piece};
use crate::align::timeline::Stamp;
use crate::pipeline::Fit;
use crate::sabotage;

/// A batch may be sealed so much before it is due.
const NEARLY: Duration = Duration::from_millis(250);

/// An epoch with frames that can go.
struct Ready {
    device: i64,
    epoch: u64,
    oldest_boot_us: i64,
    bytes: u64,
}

/// A row of frames picked for a batch.
pub(super) struct Picked {
    id: i64,
    pub device: i64,
    pub epoch: Epoch,
    pub frames: Vec<u8>,
    count: u64,
    bytes: u64,
    received_us: i64,
    /// Of each frame, in their order.
    pub fits: Vec<(u32, Fit)>,
}

impl Engine {
    /// Seals what is due, in the running transaction. What waits for its time makes nothing due.
    pub(super) fn seal_due(&mut self) -> Result<(), StoreError> {
        if !self.online || self.known.is_none() {
            return Ok(());
        }
        // What is due in a moment goes with the commit that is being made.
        let after = self.settings.seal_after.saturating_sub(NEARLY.min(self.settings.seal_after / 10));
        let age = (after.as_secs_f64() * self.clock.rate() * 1e6) as i64;
        while !self.is_far_ahead(Kind::Batch) {
            let ready = self.ready();
            let waiting: u64 = ready.iter().map(|ready| ready.bytes).sum();
            let oldest = ready.first().map(|ready| ready.oldest_boot_us);
            let old = oldest.is_some_and(|oldest| self.clock.boottime_us().saturating_sub(oldest) >= age);
            if waiting == 0 || (!old && waiting < self.settings.seal_bytes) {
                return Ok(());
            }
            // After an outage there is more than the online limit: pack it well.
            let backlog = waiting > 4 * self.settings.seal_bytes;
            let limit = if backlog { self.settings.full_bytes } else { self.settings.seal_bytes };
            let limit = limit.min(self.pack_at_most);
            self.begin()?;
            if !self.seal_batch(limit)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The epochs whose frames can be stamped now, or have waited for it long enough; those with the oldest frames first.
    fn ready(&self) -> Vec<Ready> {
        let now_us = self.utc_us();
        let mut ready: Vec<Ready> = self
            .figures
            .groups
            .iter()
            .filter(|((number, epoch), group)| {
                let patient = self.is_patient(group.oldest_boot_us);
                let device = self.hardware.get(number).and_then(|hardware| self.devices.get(hardware));
                // Those of a wearable that is not known, and may not come, are found to be damaged when they are read.
                let Some(device) = device else { return !self.is_unnamed(*number) };
                let last = device.epochs.get(epoch).map_or(0, |state| state.last_ticks);
                matches!(device.timeline.stamp(Epoch(*epoch), last, last, now_us, patient), Stamp::Known(_))
            })
            .map(|((device, epoch), group)| Ready {
                device: *device,
                epoch: *epoch,
                oldest_boot_us: group.oldest_boot_us,
                bytes: group.bytes,
            })
            .collect();
        ready.sort_by_key(|ready| (ready.oldest_boot_us, ready.device, ready.epoch));
        ready
    }

    /// Seals everything that can be stamped, in the running transaction.
    pub(super) fn seal_everything(&mut self) -> Result<usize, StoreError> {
        let mut count = 0;
        while self.figures.unsealed_bytes > 0 && self.seal_batch(self.settings.full_bytes)? {
            count += 1;
        }
        Ok(count)
    }

    /// Makes one batch of at most about `limit` frame bytes from the oldest frames that have a time. False when none
    /// has.
    fn seal_batch(&mut self, limit: u64) -> Result<bool, StoreError> {
        let mut limit = limit.max(1);
        self.write_staged()?;
        loop {
            let (mut picked, broken) = self.pick(limit)?;
            self.set_pieces_aside(broken)?;
            if picked.is_empty() {
                return Ok(false);
            }
            let orders = self.put_in_order(&mut picked)?;
            let name = Name {
                kind: Kind::Batch,
                buffer: self.buffer,
                sequence: self.next_sequence[Kind::Batch.number() as usize],
            };
            let batch = Batch {
                version: ENVELOPE_VERSION,
                name: Some(self.wire_name(name)),
                sealed_at_us: self.utc_us(),
                devices: device_frames(&picked, |device| self.hardware[&device].to_string()),
            };
            let payload = envelope::seal(&batch);
            if !envelope::is_within_limits(&batch, &payload) && picked.len() > 1 {
                limit /= 2;
                continue;
            }
            self.name_sequence(Kind::Batch);
            self.write_batch(name, &picked, &payload)?;
            self.keep_orders(&orders)?;
            return Ok(true);
        }
    }

    fn write_batch(&mut self, name: Name, picked: &[Picked], payload: &[u8]) -> Result<(), StoreError> {
        let mut held = Held::default();
        for row in picked {
            let seqs = held.0.entry((row.device, row.epoch.0)).or_default();
            for (seq, _) in &row.fits {
                seqs.insert(*seq);
            }
            self.db.prepare_cached("DELETE FROM pieces WHERE id = ?1")?.execute([row.id])?;
            self.figures.take((row.device, row.epoch.0), row.count, row.bytes);
        }
        let oldest = picked.iter().map(|row| row.received_us).min().unwrap_or(0);
        self.insert_batch(name, &held, oldest, payload)?;
        if self.figures.unsealed_frames == 0 {
            self.figures.loose.clear();
        }
        for (device, epoch) in held.0.into_keys() {
            self.see_oldest(device, epoch)?;
        }
        Ok(())
    }

    /// Looks up how old what is left of an epoch is.
    fn see_oldest(&mut self, device: i64, epoch: u64) -> Result<(), StoreError> {
        let Some(group) = self.figures.groups.get_mut(&(device, epoch)) else { return Ok(()) };
        // Rows lie in the order in which they came, but for what was asked for again.
        let mut select = self.db.prepare_cached(
            "SELECT received_boot_us FROM pieces WHERE device = ?1 AND epoch = ?2 ORDER BY first_seq LIMIT 1",
        )?;
        let mut rows = select.query(rusqlite::params![device, epoch as i64])?;
        if let Some(row) = rows.next()?
            && let Ok(oldest) = cell(row, 0)
        {
            group.oldest_boot_us = oldest;
        }
        Ok(())
    }

    /// The oldest rows of the epochs that are ready, as far as their frames can be stamped, up to `limit` frame bytes; and
    /// the damaged ones.
    fn pick(&self, limit: u64) -> Result<(Vec<Picked>, Broken), StoreError> {
        let (mut picked, mut broken, mut total) = (Vec::new(), Vec::new(), 0);
        for Ready { device, epoch, .. } in self.ready() {
            if total >= limit {
                break;
            }
            self.pick_of((device, Epoch(epoch)), limit, (&mut picked, &mut broken, &mut total))?;
        }
        Ok((picked, broken))
    }

    fn pick_of(
        &self,
        (device, epoch): (i64, Epoch),
        limit: u64,
        (picked, broken, total): (&mut Vec<Picked>, &mut Broken, &mut u64),
    ) -> Result<(), StoreError> {
        let now_us = self.utc_us();
        let mut select = self.db.prepare_cached(
            "SELECT id, form, frames, bytes, received_us, received_boot_us, body
             FROM pieces WHERE device = ?1 AND epoch = ?2 ORDER BY first_seq",
        )?;
        let mut rows = select.query(rusqlite::params![device, piece::epoch_to_sql(epoch)])?;
        while *total < limit
            && let Some(row) = rows.next()?
        {
            match self.picked((device, epoch), row, now_us) {
                Ok(Some(row)) if !picked.is_empty() && *total + row.bytes > limit => {
                    *total = limit;
                }
                Ok(Some(row)) => {
                    *total += row.bytes;
                    picked.push(row);
                }
                Ok(None) => {}
                Err(damage) => broken.push((row.get(0)?, damage)),
            }
        }
        Ok(())
    }

    /// A row for a batch; `None` while one of its frames has to wait for its time.
    fn picked(
        &self,
        (device, epoch): (i64, Epoch),
        row: &Row<'_>,
        now_us: i64,
    ) -> Result<Option<Picked>, Damage> {
        let patient = self.is_patient(cell(row, 5)?);
        let frames = piece::decode(cell(row, 1)?, blob(row, 6)?)?;
        let Some(fits) = self.stamps((device, epoch), &frames, now_us, patient)? else { return Ok(None) };
        Ok(Some(Picked {
            id: cell(row, 0)?,
            device,
            epoch,
            frames,
            count: count(row, 2)?,
            bytes: count(row, 3)?,
            received_us: cell(row, 4)?,
            fits,
        }))
    }

    /// The fit of each frame, or `None` when one of them has to wait.
    fn stamps(
        &self,
        (device, epoch): (i64, Epoch),
        bytes: &[u8],
        now_us: i64,
        patient: bool,
    ) -> Result<Option<Vec<(u32, Fit)>>, Damage> {
        let device = self.hardware.get(&device).and_then(|hardware| self.devices.get(hardware));
        let device = device.ok_or_else(|| Damage("of a wearable that is not known".to_owned()))?;
        let mut fits = Vec::new();
        for frame in piece::frames(bytes)? {
            let header = frame.header();
            if header.epoch != epoch {
                return Err(Damage(format!("a frame of epoch {}", header.epoch)));
            }
            let (first, last) = (header.ticks.0, piece::last_ticks(&frame));
            match device.timeline.stamp(header.epoch, first, last, now_us, patient) {
                Stamp::Known(mut fit) => {
                    if sabotage::is(sabotage::Kind::ShiftClock) {
                        fit.ref_utc_us += 1_000_000;
                    }
                    fits.push((header.seq, fit));
                }
                Stamp::Wait => return Ok(None),
            }
        }
        Ok(Some(fits))
    }

    pub(super) fn wire_name(&self, name: Name) -> envelope::Name {
        envelope::Name {
            gateway: self.settings.gateway.0.as_bytes().to_vec(),
            buffer: name.buffer,
            sequence: name.sequence,
        }
    }
}

/// Columns for each device and epoch of the picked rows, with their fits.
fn device_frames(picked: &[Picked], name: impl Fn(i64) -> String) -> Vec<DeviceFrames> {
    let mut groups: BTreeMap<(i64, u64), BTreeMap<u32, (FrameRef<'_>, Fit)>> = BTreeMap::new();
    for row in picked {
        let group = groups.entry((row.device, row.epoch.0)).or_default();
        let fits: BTreeMap<u32, Fit> = row.fits.iter().copied().collect();
        for frame in piece::frames(&row.frames).expect("it was read when it was picked") {
            let seq = frame.header().seq;
            // Twice only where a note of what was received has been lost; the first copy counts.
            group.entry(seq).or_insert((frame, fits[&seq]));
        }
    }
    groups
        .into_iter()
        .map(|((device, epoch), frames)| {
            let in_order = frames.values().map(|(frame, _)| *frame);
            let mut columns = columns::encode(&name(device), Epoch(epoch), in_order)
                .expect("frames of one epoch, each number once");
            attach_fits(&mut columns, frames.values());
            columns
        })
        .collect()
}

/// Fits in the order that the envelope wants: of frames with samples, then of the others.
fn attach_fits<'a>(columns: &mut DeviceFrames, frames: impl Iterator<Item = &'a (FrameRef<'a>, Fit)>) {
    let mut samples = Vec::new();
    let mut others = Vec::new();
    for (frame, fit) in frames {
        let at = columns.fits.iter().rposition(|known| known == fit).unwrap_or_else(|| {
            columns.fits.push(*fit);
            columns.fits.len() - 1
        });
        match frame.body() {
            Ok(Body::Samples(_)) => samples.push(at as u32),
            _ => others.push(at as u32),
        }
    }
    columns.fit_of = run_lengths(samples.into_iter().chain(others));
}
