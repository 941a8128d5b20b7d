//! How long each stage of the write took in all: what a graph is made of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Decoding, validating, normalising.
    Decode,
    /// Looking up whose the frames are.
    Enrich,
    /// Locking the ledger, and deciding what is new.
    Decide,
    /// Readings into the database.
    Write,
    /// Ledger, gaps, quarantine and notes.
    Account,
    /// The commit.
    Commit,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Decode, Self::Enrich, Self::Decide, Self::Write, Self::Account, Self::Commit];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Enrich => "enrich",
            Self::Decide => "decide",
            Self::Write => "write",
            Self::Account => "account",
            Self::Commit => "commit",
        }
    }
}

/// When one transaction passed its stages: from and to, in their order. Of a transaction that was tried again it is the
/// last try's.
#[derive(Debug, Default, Clone)]
pub struct Passage(pub Vec<(Stage, Instant, Instant)>);

/// Time spent in each, by all that write here.
#[derive(Debug, Default)]
pub struct Stages([AtomicU64; Stage::ALL.len()]);

impl Stages {
    /// Adds what went by since `from`, and gives now.
    pub fn passed(&self, stage: Stage, from: Instant) -> Instant {
        let now = Instant::now();
        self.0[stage as usize].fetch_add(now.duration_since(from).as_micros() as u64, Ordering::Relaxed);
        now
    }

    /// Seconds in all.
    pub fn seconds(&self, stage: Stage) -> f64 {
        self.0[stage as usize].load(Ordering::Relaxed) as f64 / 1e6
    }
}
