//! Sealing: frames become an immutable, named batch, each with its time.
//!
//! A batch is made in one transaction with the deletion of the frames it holds, so that a frame is always either
//! unsealed or in exactly one batch.

use std::collections::BTreeMap;

use kinara_protocol::columns::{self, run_lengths};
use kinara_protocol::envelope::{self, Batch, DeviceFrames, ENVELOPE_VERSION};
use kinara_protocol::frame::{Body, Epoch, FrameRef};

use super::damage::{Broken, Damage};
use super::engine::Engine;
use super::outbox::{Kind, Name};
use super::{StoreError, piece};
use crate::align::timeline::Stamp;
use crate::pipeline::Fit;
use crate::sabotage;

/// Rows looked at for one batch; more than a full batch ever takes.
const ROWS: i64 = 20_000;

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
    /// Seals what is due. Runs in a transaction of its own.
    pub(super) fn seal_due(&mut self) -> Result<(), StoreError> {
        if !self.online || self.known.is_none() {
            return Ok(());
        }
        loop {
            let waiting = self.figures.unsealed_bytes;
            if self.figures.batches >= self.settings.seal_ahead || waiting == 0 {
                return Ok(());
            }
            let now = self.clock.boottime_us();
            let age = (self.settings.seal_after.as_secs_f64() * self.clock.rate() * 1e6) as i64;
            let old = self.figures.oldest_boot_us.is_some_and(|oldest| now - oldest >= age);
            if !old && waiting < self.settings.seal_bytes {
                return Ok(());
            }
            // After an outage there is more than the online limit: pack it well.
            let backlog = waiting > 4 * self.settings.seal_bytes;
            let limit = if backlog { self.settings.full_bytes } else { self.settings.seal_bytes };
            let limit = limit.min(self.pack_at_most);
            self.begin()?;
            let sealed = self.seal_batch(limit)?;
            self.commit()?;
            self.committed();
            if !sealed {
                return Ok(());
            }
        }
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
        loop {
            let (mut picked, broken) = self.pick(limit)?;
            for (id, damage) in broken {
                self.set_piece_aside(id, &damage)?;
            }
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
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for row in picked {
            *counts.entry(self.hardware[&row.device].to_string()).or_default() += row.count;
            self.db.prepare_cached("DELETE FROM pieces WHERE id = ?1")?.execute([row.id])?;
            self.figures.unsealed_frames = self.figures.unsealed_frames.saturating_sub(row.count);
            self.figures.unsealed_bytes = self.figures.unsealed_bytes.saturating_sub(row.bytes);
        }
        let oldest = picked.iter().map(|row| row.received_us).min().unwrap_or(0);
        self.insert_batch(name, &counts, oldest, payload)?;
        if self.figures.unsealed_frames == 0 {
            self.figures.loose.clear();
        }
        self.figures.oldest_boot_us =
            self.db.query_row("SELECT min(received_boot_us) FROM pieces", [], |row| row.get(0))?;
        Ok(())
    }

    /// The oldest rows whose frames can all be stamped, up to `limit` frame bytes; and the damaged ones.
    fn pick(&self, limit: u64) -> Result<(Vec<Picked>, Broken), StoreError> {
        let now_us = self.utc_us();
        let mut select = self.db.prepare_cached(
            "SELECT id, device, epoch, form, frames, bytes, received_us, received_boot_us, body
             FROM pieces ORDER BY id LIMIT ?1",
        )?;
        let mut rows = select.query([ROWS])?;
        let mut picked: Vec<Picked> = Vec::new();
        let mut broken = Vec::new();
        let mut total = 0u64;
        while let Some(row) = rows.next()? {
            let bytes = row.get::<_, i64>(5)? as u64;
            if !picked.is_empty() && total + bytes > limit {
                break;
            }
            let body = row.get_ref(8)?.as_blob().unwrap_or_default();
            let (device, epoch): (i64, _) = (row.get(1)?, Epoch(row.get::<_, i64>(2)? as u64));
            let patient = self.is_patient(row.get(7)?);
            let read = piece::decode(row.get(3)?, body)
                .and_then(|frames| Ok((self.stamps((device, epoch), &frames, now_us, patient)?, frames)));
            let (fits, frames) = match read {
                Ok((Some(fits), frames)) => (fits, frames),
                Ok((None, _)) => continue,
                Err(damage) => {
                    broken.push((row.get(0)?, damage));
                    continue;
                }
            };
            total += bytes;
            picked.push(Picked {
                id: row.get(0)?,
                device,
                epoch,
                frames,
                count: row.get::<_, i64>(4)? as u64,
                bytes,
                received_us: row.get(6)?,
                fits,
            });
            if total >= limit {
                break;
            }
        }
        Ok((picked, broken))
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
