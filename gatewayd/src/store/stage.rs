//! Frames that are taken over and wait in memory for the commit, by wearable, epoch and class: what comes one by one is
//! written as one row.

use std::collections::BTreeMap;

use bytes::Bytes;
use kinara_protocol::frame::{Epoch, FrameRef};
use rusqlite::params;

use super::engine::Engine;
use super::figures::Key;
use super::{StoreError, piece};

/// Beyond so many frames a commit is due whatever they may wait.
const MOST: usize = 4_096;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Staged {
    groups: BTreeMap<(i64, u64, i64), Group>,
    frames: usize,
}

#[derive(Debug)]
struct Group {
    frames: Vec<Bytes>,
    received_us: i64,
    received_boot_us: i64,
}

impl Staged {
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether it is time to commit whatever the frames may wait.
    pub fn is_full(&self) -> bool {
        self.frames >= MOST
    }

    /// How many frames of a wearable wait, and the lowest number among those of an epoch.
    pub fn of(&self, device: i64, epoch: u64) -> (u64, Option<i64>) {
        let (mut count, mut first) = (0, None);
        for ((_, of, _), group) in
            self.groups.range((device, u64::MIN, i64::MIN)..=(device, u64::MAX, i64::MAX))
        {
            count += group.frames.len() as u64;
            if *of == epoch {
                let seqs = group.frames.iter().filter_map(|bytes| FrameRef::parse(bytes).ok());
                first = seqs.map(|frame| i64::from(frame.header().seq)).chain(first).min();
            }
        }
        (count, first)
    }
}

impl Engine {
    /// Takes a frame over, to be written with the next commit.
    pub(super) fn stage(&mut self, device: i64, frame: &FrameRef<'_>) {
        let header = frame.header();
        let class = piece::class_number(header.kind.class());
        let (received_us, received_boot_us) = (self.utc_us(), self.clock.boottime_us());
        let group = self.staged.groups.entry((device, header.epoch.0, class)).or_insert_with(|| Group {
            frames: Vec::new(),
            received_us,
            received_boot_us,
        });
        group.frames.push(Bytes::copy_from_slice(frame.bytes()));
        self.staged.frames += 1;
        self.figures.add((device, header.epoch.0), 1, frame.bytes().len() as u64, received_boot_us);
    }

    /// Writes what waits, in the running transaction.
    pub(super) fn write_staged(&mut self) -> Result<(), StoreError> {
        for (key, group) in std::mem::take(&mut self.staged).groups {
            self.write_group(key, &group)?;
        }
        Ok(())
    }

    fn write_group(&mut self, key: Key, group: &Group) -> Result<(), StoreError> {
        let mut frames: Vec<FrameRef<'_>> = group
            .frames
            .iter()
            .map(|bytes| FrameRef::parse(bytes).expect("it was staged as a frame"))
            .collect();
        frames.sort_by_key(|frame| frame.header().seq);
        let mut rest = frames.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest
                .iter()
                .take_while(|frame| {
                    bytes += frame.bytes().len();
                    bytes <= piece::MAX_BYTES
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(fits);
            self.insert_piece(key, group, now)?;
            rest = later;
        }
        Ok(())
    }

    fn insert_piece(&mut self, key: Key, group: &Group, frames: &[FrameRef<'_>]) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let (form, body) = piece::encode(frames);
        let bytes: usize = frames.iter().map(|frame| frame.bytes().len()).sum();
        let (device, epoch, class) = key;
        self.db
            .prepare_cached(
                "INSERT INTO pieces (device, epoch, class, form, first_seq, last_seq, frames, bytes,
                                     received_us, received_boot_us, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                device,
                piece::epoch_to_sql(Epoch(epoch)),
                class,
                form,
                first.header().seq,
                last.header().seq,
                frames.len() as i64,
                bytes as i64,
                group.received_us,
                group.received_boot_us,
                body
            ])?;
        if form == piece::FORM_RAW {
            *self.figures.loose.entry(key).or_default() += frames.len() as u64;
        }
        Ok(())
    }
}
