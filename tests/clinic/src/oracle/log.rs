//! A simulated wearable's log: what it produced, line by line.
//!
//! `P epoch channel ticks value utc_us` a sample, before the application sees it · `B epoch utc_us` a boot and the
//! true time of its tick 0 · `R epoch utc_us` a reboot by command · `F epoch seq first last` a frame is in flash ·
//! `O epoch first last` the ring dropped frames nobody had acknowledged · `A epoch ticks` that frame was a time
//! sync. Epochs are 16 hex digits. Lines of other kinds are passed over: only `P` carries the promise.

use std::collections::HashMap;
use std::path::Path;

/// The most components that a sample has.
pub const MAX_COMPONENTS: usize = 4;

/// A sample's value in units of its channel's step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value {
    len: u8,
    parts: [i32; MAX_COMPONENTS],
}

impl Value {
    /// A value of these components; `None` when there are none, or too many.
    pub fn new(parts: &[i32]) -> Option<Self> {
        let mut all = [0; MAX_COMPONENTS];
        if parts.is_empty() {
            return None;
        }
        all.get_mut(..parts.len())?.copy_from_slice(parts);
        Some(Self { len: parts.len() as u8, parts: all })
    }

    /// The components.
    pub fn parts(&self) -> &[i32] {
        &self.parts[..usize::from(self.len)]
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self { len: 1, parts: [value, 0, 0, 0] }
    }
}

/// One produced sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Boot in which it was taken.
    pub epoch: u64,
    /// Channel number.
    pub channel: u16,
    /// The wearable's own time, ms since boot.
    pub ticks: u64,
    /// The quantised value.
    pub value: Value,
    /// The true time.
    pub utc_us: i64,
}

/// A time sync that the wearable keeps in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// Boot in which it was taken.
    pub epoch: u64,
    /// At this tick.
    pub ticks: u64,
}

/// All that one wearable's log says.
#[derive(Debug, Clone, Default)]
pub struct WearableLog {
    /// Samples, in the order in which they were produced.
    pub samples: Vec<Sample>,
    /// Boots in order: epoch, true time of its tick 0.
    pub boots: Vec<(u64, i64)>,
    /// Frames known to be in flash: (epoch, seq) → first and last tick.
    pub frames: HashMap<(u64, u32), (u64, u64)>,
    /// Frames that the ring dropped: epoch, first, last.
    pub dropped: Vec<(u64, u32, u32)>,
    /// Time syncs.
    pub anchors: Vec<Anchor>,
}

/// A log that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file is not there, or not readable.
    #[error("the simulator's log {path} cannot be read: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what the simulator writes.
    #[error("line {line} of a simulator's log is {text:?}, not a line of the log's format")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What it says.
        text: String,
    },
}

impl WearableLog {
    /// Reads a log file.
    pub fn read(path: &Path) -> Result<Self, LogError> {
        let bytes = std::fs::read(path)
            .map_err(|source| LogError::Io { path: path.display().to_string(), source })?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// Reads a log's text. A last line without its end was cut by a kill in the middle of the write: the application
    /// never saw those samples, so they were never produced.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let mut log = Self::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (index, line) in whole.lines().enumerate() {
            log.line(line)
                .ok_or_else(|| LogError::Line { line: index + 1, text: line.chars().take(120).collect() })?;
        }
        Ok(log)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_ascii_whitespace();
        let Some(kind) = words.next() else { return Some(()) };
        match kind {
            "P" => {
                let epoch = epoch(words.next()?)?;
                let channel = words.next()?.parse().ok()?;
                let ticks = words.next()?.parse().ok()?;
                let value = value(words.next()?)?;
                let utc_us = words.next()?.parse().ok()?;
                self.samples.push(Sample { epoch, channel, ticks, value, utc_us });
            }
            "B" => self.boots.push((epoch(words.next()?)?, words.next()?.parse().ok()?)),
            "F" => {
                let name = (epoch(words.next()?)?, words.next()?.parse().ok()?);
                self.frames.insert(name, (words.next()?.parse().ok()?, words.next()?.parse().ok()?));
            }
            "O" => {
                let epoch = epoch(words.next()?)?;
                self.dropped.push((epoch, words.next()?.parse().ok()?, words.next()?.parse().ok()?));
            }
            "A" => {
                let epoch = epoch(words.next()?)?;
                self.anchors.push(Anchor { epoch, ticks: words.next()?.parse().ok()? });
            }
            _ => {}
        }
        Some(())
    }

    /// Samples of boots that are over which no frame in flash holds.
    pub fn lost_with_memory(&self) -> usize {
        let mut newest: HashMap<u64, u64> = HashMap::new();
        for ((epoch, _), (_, last)) in &self.frames {
            let newest = newest.entry(*epoch).or_default();
            *newest = (*newest).max(*last);
        }
        let running = self.boots.last().map(|(epoch, _)| *epoch);
        let over = self.samples.iter().filter(|sample| Some(sample.epoch) != running);
        over.filter(|sample| newest.get(&sample.epoch).is_none_or(|last| sample.ticks > *last)).count()
    }

    /// Where an epoch stands in the order of this wearable's boots.
    pub fn rank(&self, epoch: u64) -> Option<usize> {
        self.boots.iter().position(|(known, _)| *known == epoch)
    }
}

fn epoch(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

fn value(word: &str) -> Option<Value> {
    let mut parts = [0; MAX_COMPONENTS];
    let mut count = 0;
    for part in word.split(',') {
        *parts.get_mut(count)? = part.parse().ok()?;
        count += 1;
    }
    Value::new(&parts[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_line_by_line() {
        let log = WearableLog::parse(
            "B 0000000700000001 1000\nP 0000000700000001 1 20 723 21000\nP 0000000700000001 65 20 1,-2,3 21000\n\
             F 0000000700000001 1 20 20\nA 0000000700000001 25\nO 0000000700000001 0 4\nR 0000000700000001 9\n",
        )
        .expect("a good log");
        assert_eq!(log.samples.len(), 2);
        assert_eq!(log.samples[0].value, Value::from(723));
        assert_eq!(log.samples[1].value.parts(), [1, -2, 3]);
        assert_eq!(log.frames[&(0x7_0000_0001, 1)], (20, 20));
        assert_eq!(log.anchors[0].ticks, 25);
        assert_eq!(log.dropped, [(0x7_0000_0001, 0, 4)]);
        assert_eq!(log.rank(0x7_0000_0001), Some(0));
    }

    #[test]
    fn what_was_in_no_frame_when_a_boot_ended_went_with_the_memory() {
        let log = WearableLog::parse(
            "B 1 0\nP 1 1 20 7 20\nF 1 1 20 20\nP 1 1 30 7 30\nB 2 40\nP 2 1 5 7 45\nP 2 1 6 7 46\n",
        )
        .expect("a good log");
        assert_eq!(log.lost_with_memory(), 1);
    }

    #[test]
    fn a_line_cut_by_a_kill_was_not_produced() {
        let log = WearableLog::parse("P 1 1 20 723 21000\nP 1 1 30 72").expect("a good log");
        assert_eq!(log.samples.len(), 1);
    }

    #[test]
    fn a_line_that_is_not_the_format_is_an_error_and_not_a_missing_sample() {
        assert!(matches!(WearableLog::parse("P 1 1 20\n"), Err(LogError::Line { line: 1, .. })));
        assert!(WearableLog::parse("P 1 1 20 1,2,3,4,5 7\n").is_err());
        assert!(WearableLog::parse("P 1 1 20 72P 1 1 30 723 22000\n").is_err());
    }
}
