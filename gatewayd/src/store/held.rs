//! Which frames a sealed batch holds. It is kept beside the payload and once more in an index, so that a payload that
//! cannot be read any more leaves a gap with its very numbers.

use std::collections::BTreeMap;

use kinara_protocol::columns;
use kinara_protocol::envelope::{self, Batch};
use kinara_protocol::frame::FrameRef;
use prost::Message;

use super::damage::Damage;
use super::ranges::SeqSet;

/// Frames by the store's number of their wearable, and their epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(pub BTreeMap<(i64, u64), SeqSet>);

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(message, repeated, tag = "1")]
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(sint64, tag = "1")]
    device: i64,
    #[prost(fixed64, tag = "2")]
    epoch: u64,
    #[prost(uint32, repeated, tag = "3")]
    distances: Vec<u32>,
}

impl Held {
    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let part = |(&(device, epoch), seqs): (&(i64, u64), &SeqSet)| Part {
            device,
            epoch,
            distances: seqs.distances(),
        };
        Wire { parts: self.0.iter().map(part).collect() }.encode_to_vec()
    }

    /// Reads [`to_bytes`](Self::to_bytes) back.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damage> {
        let wire = Wire::decode(bytes).map_err(|error| Damage(format!("what a batch holds: {error}")))?;
        let mut held = Self::default();
        for part in wire.parts {
            let seqs = SeqSet::from_distances(&part.distances);
            let seqs = seqs.ok_or_else(|| Damage("what a batch holds: no numbers".to_owned()))?;
            held.0.insert((part.device, part.epoch), seqs);
        }
        Ok(held)
    }

    /// Looks into a batch; `number` gives the store's number of a wearable.
    pub fn of_payload(payload: &[u8], number: impl Fn(&str) -> Option<i64>) -> Result<Self, Damage> {
        let damage = |error: &dyn std::fmt::Display| Damage(format!("a sealed batch: {error}"));
        let batch: Batch = envelope::open(payload).map_err(|error| damage(&error))?;
        let mut held = Self::default();
        for device in &batch.devices {
            let Some(number) = number(&device.hardware_id) else { continue };
            let decoded = columns::decode(device).map_err(|error| damage(&error))?;
            let seqs = held.0.entry((number, device.epoch)).or_default();
            for frame in decoded.frames() {
                seqs.insert(frame.seq);
            }
            for other in decoded.others() {
                if let Ok(frame) = FrameRef::parse(other.bytes) {
                    seqs.insert(frame.header().seq);
                }
            }
        }
        Ok(held)
    }

    /// Wearable, epoch, first and last number of each range, as the database has them.
    pub fn lines(&self) -> Vec<(i64, i64, i64, i64)> {
        let lines = self.0.iter().flat_map(|((device, epoch), seqs)| {
            let ranges = seqs.ranges().iter();
            ranges.map(|(first, last)| (*device, *epoch as i64, i64::from(*first), i64::from(*last)))
        });
        lines.collect()
    }

    /// How many frames of each wearable.
    pub fn counts(&self) -> BTreeMap<i64, u64> {
        let mut counts = BTreeMap::new();
        for ((device, _), seqs) in &self.0 {
            *counts.entry(*device).or_default() += seqs.len();
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_a_batch_holds_is_read_back_as_it_was(
            parts in prop::collection::btree_map(
                (any::<i64>(), any::<u64>()), prop::collection::vec((0u32..1_000, 0u32..9), 0..9), 0..6,
            ),
        ) {
            let mut held = Held::default();
            for (key, ranges) in parts {
                let seqs = held.0.entry(key).or_default();
                for (first, more) in ranges {
                    seqs.insert_range(first, first + more);
                }
            }
            prop_assert_eq!(Held::from_bytes(&held.to_bytes()), Ok(held));
        }
    }
}
