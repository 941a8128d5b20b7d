//! Worn or not: a wearable says when it is put on and taken off, and what it measures on skin in between means nothing.
//!
//! The promise: a sample is judged by the last word of its wearable before it, in the same epoch, from whichever batch
//! that word came. Frames come in the order of their numbers, so a word is there before what follows it; where it is
//! not, the wearable is taken to be worn. A word of which nobody knows when it was said says nothing.

use std::collections::BTreeMap;

use kinara_protocol::frame::DeviceEventKind;
use kinara_store::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::batch::{Content, Sample};
use crate::plan::{Key, NOT_BEFORE_US, Taken};
use crate::{Error, quality, timestamp};

/// What wearables said, by epoch, in the order of time.
#[derive(Debug, Default)]
pub(crate) struct Wear(BTreeMap<Key, Vec<(i64, bool)>>);

/// Words between an epoch's first and last frame of a transaction that are read. A wearable says it some times a day; of one that
/// says it without end the newest count.
const WORDS: usize = 4_096;
/// How far clocks may be apart beyond what they say.
const CLOCKS_US: i64 = 60_000_000;

const AROUND: &str = "
    SELECT k.hardware, k.epoch, w.at, w.worn
    FROM (SELECT * FROM unnest($1::uuid[], $2::int8[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[]))
      k(hardware, epoch, first, last, since)
    CROSS JOIN LATERAL (
      (SELECT at, worn FROM wear w WHERE w.hardware = k.hardware AND w.epoch = k.epoch
       AND w.at <= k.first AND w.at >= k.since ORDER BY at DESC LIMIT 1)
      UNION ALL
      (SELECT at, worn FROM wear w WHERE w.hardware = k.hardware AND w.epoch = k.epoch
       AND w.at > k.first AND w.at <= k.last AND w.at >= k.since ORDER BY at DESC LIMIT $6)) w";
const INSERT: &str = "
    INSERT INTO wear (hardware, epoch, at, worn)
    SELECT * FROM unnest($1::uuid[], $2::int8[], $3::timestamptz[], $4::bool[]) ON CONFLICT DO NOTHING";

impl Wear {
    /// What was said before these frames and between them, for some of them may have come before. What was said before their
    /// wearable booted is no word of it: a clinic that had it before may have made that up.
    pub async fn around(tx: &Transaction<'_>, frames: &[Taken<'_>]) -> Result<Self, Error> {
        let mut spans: BTreeMap<Key, Span> = BTreeMap::new();
        for taken in frames {
            spans.entry(taken.key).or_default().take_in(taken);
        }
        let mut out = Self::default();
        if spans.is_empty() {
            return Ok(out);
        }
        let hardware: Vec<Uuid> = spans.keys().map(|key| key.hardware).collect();
        let epochs: Vec<i64> = spans.keys().map(|key| key.epoch).collect();
        let times = |of: fn(&Span) -> i64| spans.values().map(of).map(timestamp).collect::<Vec<_>>();
        let (firsts, lasts, boots) = (
            times(|span| span.first_us),
            times(|span| span.last_us.max(span.first_us)),
            times(|span| span.not_booted),
        );
        let statement = tx.prepare_cached(AROUND).await?;
        let most = WORDS as i64;
        let values: [&(dyn ToSql + Sync); 6] = [&hardware, &epochs, &firsts, &lasts, &boots, &most];
        for row in tx.query(&statement, &values).await? {
            let key = Key { hardware: row.get(0), epoch: row.get(1) };
            let at: jiff::Timestamp = row.get(2);
            out.0.entry(key).or_default().push((at.as_microsecond(), row.get(3)));
        }
        for said in out.0.values_mut() {
            said.sort_unstable();
            // The one from before them would hold over words that were not read.
            if said.len() > WORDS {
                said.remove(0);
            }
        }
        Ok(out)
    }

    /// Takes note of what the frames that are written now say themselves.
    pub async fn hear(&mut self, tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
        let (mut hardware, mut epochs, mut times, mut worn) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for taken in new {
            let Content::Events(events) = &taken.frame.content else { continue };
            // Nobody knows from when on it holds: for hours that were received it would say that nothing was.
            if taken.time_uncertain {
                continue;
            }
            for event in events {
                let is_worn = match event.kind {
                    DeviceEventKind::Worn => true,
                    DeviceEventKind::NotWorn => false,
                    _ => continue,
                };
                // The frame's time is its event's.
                self.0.entry(taken.key).or_default().push((taken.frame.first_us, is_worn));
                hardware.push(taken.key.hardware);
                epochs.push(taken.key.epoch);
                times.push(timestamp(taken.frame.first_us));
                worn.push(is_worn);
            }
        }
        if hardware.is_empty() {
            return Ok(());
        }
        for said in self.0.values_mut() {
            said.sort_unstable();
        }
        let statement = tx.prepare_cached(INSERT).await?;
        tx.execute(&statement, &[&hardware, &epochs, &times, &worn]).await?;
        Ok(())
    }

    /// What was said of a frame's epoch since its wearable booted; mostly nothing.
    pub fn said(&self, taken: &Taken<'_>) -> &[(i64, bool)] {
        let Some(said) = self.0.get(&taken.key) else { return &[] };
        let boot_us = boot_us(taken);
        &said[said.partition_point(|(at_us, _)| *at_us < boot_us)..]
    }
}

/// What a transaction has of an epoch: its frames' first and last moment, and one at which its wearable had not booted yet;
/// microseconds.
struct Span {
    first_us: i64,
    last_us: i64,
    not_booted: i64,
}

impl Default for Span {
    fn default() -> Self {
        Self { first_us: i64::MAX, last_us: i64::MIN, not_booted: i64::MAX }
    }
}

impl Span {
    fn take_in(&mut self, taken: &Taken<'_>) {
        self.first_us = self.first_us.min(taken.frame.first_us);
        self.last_us = self.last_us.max(taken.frame.last_us);
        self.not_booted = self.not_booted.min(boot_us(taken));
    }
}

/// When a frame's wearable had not booted yet, by any clock that keeps to what it says, and a minute.
fn boot_us(taken: &Taken<'_>) -> i64 {
    let boot_us = taken.device.fit(taken.frame).map_or(i64::MIN, |fit| {
        let uncertain = i64::try_from(fit.uncertainty_at(0)).unwrap_or(i64::MAX);
        fit.utc_us(0).saturating_sub(uncertain).saturating_sub(CLOCKS_US)
    });
    boot_us.max(NOT_BEFORE_US)
}

/// A sample's quality under what its wearable said.
#[inline]
pub(crate) fn quality(said: &[(i64, bool)], sample: &Sample) -> f32 {
    if said.is_empty() || !quality::is_on_skin(sample.kind) {
        return sample.quality;
    }
    let before = said.partition_point(|(at_us, _)| *at_us <= sample.utc_us);
    match before.checked_sub(1).map(|last| said[last].1) {
        Some(false) => 0.0,
        Some(true) | None => sample.quality,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_protocol::channel::{AMBIENT_TEMPERATURE, ChannelId, HEART_RATE};

    #[test]
    fn what_is_measured_on_skin_counts_from_the_word_that_it_is_worn() {
        let said = [(1_000, false), (2_000, true)];
        let of = |kind: ChannelId, utc_us| {
            quality(&said, &Sample { utc_us, value: 1.0, quality: 0.8, kind: kind.0 as i16, index: 0 })
        };
        let same = |a: f32, b: f32| (a - b).abs() < f32::EPSILON;
        for (us, expected) in [(999, 0.8), (1_000, 0.0), (1_999, 0.0), (2_000, 0.8)] {
            assert!(same(of(HEART_RATE, us), expected), "{us}");
        }
        assert!(same(of(AMBIENT_TEMPERATURE, 1_500), 0.8));
    }
}
