//! Samples of one epoch stay in their order, whichever gateways stamped them.
//!
//! The promise: of two samples of an epoch and class (scalars, waveforms: frames of one class follow each other) whose times
//! are certain, the one with the later number never has the earlier time, in whatever order their frames come. A gateway keeps
//! the order of what it sealed itself; here its word meets other gateways', and those of its own former lives. What is stored
//! is not changed. A frame that contradicts it is stored all the same; its time is marked as uncertain, by as much as it
//! contradicts, so that it stays out of all that is derived.
//!
//! Bounded: beside the ledger's row lie the ends of the stretches that are in without a hole, [`STRETCHES`] of them a class.
//! Beyond that the oldest two become one, and what comes into the hole between them after all is held against the ends alone.

use std::collections::BTreeMap;
use std::ops::Bound;

use kinara_protocol::envelope::Fit;

use crate::seqs::SeqSet;

/// Stretches of a class that are remembered.
const STRETCHES: usize = 32;
/// What rounding makes of a time, µs. Ticks are a thousand of these apart.
const ROUNDING_US: i64 = 10;
/// A rate from which on time would stand still, or run back.
const STANDS_STILL_PPB: i32 = -1_000_000_000;
/// A stretch in the database: its class and first number, and the fields in their order.
const ROW: usize = 1 + 2 * 4 + 2 * 8 + 2 * 8;

/// The class of a frame of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Scalar,
    Waveform,
}

/// A frame of samples, as its box stamped it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamped<'a> {
    pub class: Class,
    pub seq: u32,
    /// Of its first and of its last sample.
    pub ticks: (u64, u64),
    pub fit: &'a Fit,
}

/// Frames that are in with certain times, none between them missing: their numbers begin with the key of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    last_seq: u32,
    first_ticks: u64,
    last_ticks: u64,
    first_us: i64,
    last_us: i64,
}

/// The stretches of an epoch, by class and first number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Order(BTreeMap<(Class, u32), Stretch>);

impl Order {
    /// Takes a frame in, or says by how many µs its time contradicts what is in.
    pub fn take(&mut self, frame: &Stamped<'_>) -> Result<(), u64> {
        if frame.fit.rate_ppb <= STANDS_STILL_PPB {
            return Err((frame.ticks.1 - frame.ticks.0).saturating_mul(1_000));
        }
        let by_us = self.contradiction(frame);
        if by_us > ROUNDING_US {
            return Err(by_us.unsigned_abs());
        }
        self.insert(frame);
        Ok(())
    }

    fn contradiction(&self, frame: &Stamped<'_>) -> i64 {
        let (first, last) = frame.ticks;
        let utc_us = |ticks: u64| frame.fit.utc_us(ticks);
        let before = self.before(frame.class, frame.seq).map(|(_, stretch)| match stretch {
            // In a hole that was closed for want of room.
            around if frame.seq <= around.last_seq => {
                let early = around.first_us.saturating_sub(utc_us(first));
                early.max(utc_us(last).saturating_sub(around.last_us))
            }
            before => before.last_us.saturating_sub(utc_us(first.max(before.last_ticks))),
        });
        let after = self
            .after(frame.class, frame.seq)
            .map(|(_, after)| utc_us(last.min(after.first_ticks)).saturating_sub(after.first_us));
        before.into_iter().chain(after).max().unwrap_or(0)
    }

    fn before(&self, class: Class, seq: u32) -> Option<(u32, Stretch)> {
        let (key, stretch) = self.0.range((class, 0)..=(class, seq)).next_back()?;
        Some((key.1, *stretch))
    }

    fn after(&self, class: Class, seq: u32) -> Option<(u32, Stretch)> {
        let range = (Bound::Excluded((class, seq)), Bound::Included((class, u32::MAX)));
        let (key, stretch) = self.0.range(range).next()?;
        Some((key.1, *stretch))
    }

    fn insert(&mut self, frame: &Stamped<'_>) {
        let (class, seq, (first_ticks, last_ticks)) = (frame.class, frame.seq, frame.ticks);
        let (first_us, last_us) = (frame.fit.utc_us(first_ticks), frame.fit.utc_us(last_ticks));
        let (mut key, mut stretch) =
            (seq, Stretch { last_seq: seq, first_ticks, last_ticks, first_us, last_us });
        if let Some((from, before)) = self.before(class, seq) {
            if seq <= before.last_seq {
                return;
            }
            if before.last_seq + 1 == seq {
                (key, stretch) = (from, before.joined(stretch));
            }
        }
        if let Some((from, after)) = self.after(class, seq).filter(|(from, _)| *from == seq + 1) {
            self.0.remove(&(class, from));
            stretch = stretch.joined(after);
        }
        self.0.insert((class, key), stretch);
    }

    /// Joins stretches between which everything is in, and the oldest where there are too many.
    pub fn settle(&mut self, is_in: &SeqSet) {
        for class in [Class::Scalar, Class::Waveform] {
            let mut joined: Vec<(u32, Stretch)> = Vec::new();
            for ((_, from), stretch) in self.0.range((class, 0)..=(class, u32::MAX)) {
                match joined.last_mut() {
                    Some((_, last)) if has_all(is_in, last.last_seq, *from) => *last = last.joined(*stretch),
                    _ => joined.push((*from, *stretch)),
                }
            }
            let too_many = joined.len().saturating_sub(STRETCHES);
            if let Some((_, newest)) = joined.get(too_many).copied() {
                joined[0].1 = joined[0].1.joined(newest);
                joined.drain(1..=too_many);
            }
            self.0.retain(|(of, _), _| *of != class);
            self.0.extend(joined.into_iter().map(|(from, stretch)| ((class, from), stretch)));
        }
    }

    /// For the ledger.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * ROW);
        for ((class, from), stretch) in &self.0 {
            bytes.push(u8::from(*class == Class::Waveform));
            bytes.extend(from.to_be_bytes());
            bytes.extend(stretch.last_seq.to_be_bytes());
            bytes.extend(stretch.first_ticks.to_be_bytes());
            bytes.extend(stretch.last_ticks.to_be_bytes());
            bytes.extend(stretch.first_us.to_be_bytes());
            bytes.extend(stretch.last_us.to_be_bytes());
        }
        bytes
    }

    /// From the ledger; `None` if that is not what lies there.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (rows, rest) = bytes.as_chunks::<ROW>();
        let short = |row: &[u8; ROW], at: usize| row[at..at + 4].try_into().map(u32::from_be_bytes).ok();
        let long = |row: &[u8; ROW], at: usize| row[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let stretch = |row: &[u8; ROW]| {
            let class = if row[0] == 0 { Class::Scalar } else { Class::Waveform };
            let stretch = Stretch {
                last_seq: short(row, 5)?,
                first_ticks: long(row, 9)?,
                last_ticks: long(row, 17)?,
                first_us: long(row, 25)?.cast_signed(),
                last_us: long(row, 33)?.cast_signed(),
            };
            Some(((class, short(row, 1)?), stretch))
        };
        rest.is_empty().then(|| rows.iter().map(stretch).collect::<Option<_>>().map(Self))?
    }
}

impl Stretch {
    /// Up to the end of a later one.
    fn joined(self, later: Self) -> Self {
        Self { last_seq: later.last_seq, last_ticks: later.last_ticks, last_us: later.last_us, ..self }
    }
}

/// Whether all numbers between two are in.
fn has_all(is_in: &SeqSet, after: u32, before: u32) -> bool {
    let (start, end) = (u64::from(after) + 1, u64::from(before));
    start >= end || is_in.range_of(start).is_some_and(|range| range.1 >= end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: i64 = 1_800_000_000_000_000;

    fn off(off_us: i64) -> Fit {
        Fit { ref_utc_us: START + off_us, uncertainty_us: 1_000, ..Fit::default() }
    }

    fn scalars(seq: u32, ticks: (u64, u64), fit: &Fit) -> Stamped<'_> {
        Stamped { class: Class::Scalar, seq, ticks, fit }
    }

    #[test]
    fn a_frame_before_the_time_of_one_that_is_numbered_before_it_contradicts_by_as_much() {
        let (right, late) = (off(0), off(-2_000_000));
        let mut order = Order::default();
        assert_eq!(order.take(&scalars(5, (5_000, 5_750), &right)), Ok(()));
        assert_eq!(order.take(&scalars(6, (6_000, 6_750), &late)), Err(1_750_000));
        assert_eq!(
            order.take(&scalars(9, (9_000, 9_750), &late)),
            Ok(()),
            "by then it is later all the same"
        );
        // Between the two: the time of the first may be no later than what follows it.
        assert_eq!(order.take(&scalars(8, (8_000, 8_750), &right)), Err(1_750_000));
        assert_eq!(order.take(&scalars(7, (7_000, 7_000), &right)), Ok(()));
        // Waveforms have an order of their own.
        let wave = Stamped { class: Class::Waveform, ..scalars(4, (9_000, 9_750), &right) };
        assert_eq!(order.take(&wave), Ok(()));
        // Time does not run back within a frame, either.
        let back = Fit { rate_ppb: -2_000_000_000, ..right };
        assert_eq!(order.take(&scalars(20, (20_000, 20_750), &back)), Err(750_000));
    }

    #[test]
    fn whatever_comes_into_however_many_holes_the_rows_beside_the_ledger_stay_few() {
        let right = off(0);
        let mut order = Order::default();
        let mut is_in = SeqSet::new();
        for seq in (0..2_000u32).rev().step_by(2) {
            let ticks = u64::from(seq) * 1_000;
            assert_eq!(order.take(&scalars(seq, (ticks, ticks + 500), &right)), Ok(()));
            is_in.insert(u64::from(seq));
            order.settle(&is_in);
        }
        assert_eq!(order.0.len(), STRETCHES);
        assert_eq!(order.to_bytes().len(), STRETCHES * ROW);
        // What fits into a closed hole is taken, what lies beyond its ends is not.
        assert_eq!(order.take(&scalars(100, (100_000, 100_500), &right)), Ok(()));
        assert!(order.take(&scalars(102, (102_000, 102_500), &off(-7_200_000_000))).is_err());
        // With the other class between them they are one.
        for seq in (0..2_000u32).step_by(2) {
            is_in.insert(u64::from(seq));
        }
        order.settle(&is_in);
        assert_eq!(order.0.len(), 1);
    }

    proptest! {
        #[test]
        fn certain_times_of_an_epoch_are_never_reordered_in_whatever_order_frames_come(
            lengths in prop::collection::vec((0u64..5_000, 1u64..3_000, any::<bool>()), 2..STRETCHES),
            shuffle in prop::collection::vec(any::<u32>(), STRETCHES),
            offs in prop::collection::vec(prop_oneof![-4_000_000i64..4_000_000, -10_000_000_000i64..10_000_000_000], STRETCHES),
        ) {
            let mut frames = Vec::new();
            let mut ticks = 0;
            for (length, pause, wave) in lengths {
                frames.push((if wave { Class::Waveform } else { Class::Scalar }, (ticks, ticks + length)));
                ticks += length + pause;
            }
            let mut by_chance: Vec<usize> = (0..frames.len()).collect();
            by_chance.sort_by_key(|at| shuffle[*at]);
            let mut order = Order::default();
            let (mut is_in, mut certain, mut refused) = (SeqSet::new(), Vec::new(), 0);
            for (at, off_us) in by_chance.into_iter().zip(offs) {
                let ((class, ticks), fit) = (frames[at], off(off_us));
                if order.take(&Stamped { class, seq: at as u32, ticks, fit: &fit }).is_ok() {
                    certain.extend([(class, ticks.0, fit.utc_us(ticks.0)), (class, ticks.1, fit.utc_us(ticks.1))]);
                } else {
                    refused += 1;
                }
                is_in.insert(at as u64);
                order.settle(&is_in);
                let bytes = order.to_bytes();
                order = Order::from_bytes(&bytes).unwrap();
                prop_assert_eq!(order.to_bytes(), bytes);
            }
            certain.sort_unstable();
            for pair in certain.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                prop_assert!(pair[0].2 <= pair[1].2 + ROUNDING_US, "{pair:?}");
            }
            prop_assert!(refused < frames.len(), "the first to come is taken");
        }
    }
}
