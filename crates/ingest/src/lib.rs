//! From a sealed batch to committed rows: the one pipeline that the broker's bridge and the HTTP interface feed.
//!
//! The promise: every frame of a batch that is answered `done` is, in the database's own commit, exactly one of
//! written (once in the whole system, however many gateways, bridges and repetitions brought it), already there,
//! quarantined with its reason, or discarded with a gap record that says why. What is written belongs to the wearer
//! whose device it was when the frame was made, at a clinic whose gateway brought it, with consent. A gap and a stored
//! frame never overlap: the transaction that writes a frame takes it out of every gap that named it.
//!
//! Stages: [`batch`] decodes, validates and normalises, with [`units`] and `quality` (pure; [`items`] is the same for what
//! comes over HTTP); [`directory`] and [`assign`] say whose a frame is;
//! [`plan`] decides what becomes of it; [`Writer`] writes many batches in one transaction, and when one of them fails on
//! its data, each alone, then by halves, so that one bad frame stops nobody.

pub mod alerts;
pub mod assign;
pub mod batch;
pub mod boundary;
mod claims;
pub mod copy;
mod decide;
mod decisions;
mod device_events;
pub mod directory;
pub mod enrich;
pub mod erase;
mod error;
pub mod events;
mod expire;
mod gaps;
pub mod intervals;
pub mod items;
mod ledger;
mod order;
mod parts;
pub mod plan;
mod quality;
pub mod quarantine;
pub mod reconcile;
pub mod requests;
pub mod retention;
pub mod rollup;
#[cfg(feature = "sabotage")]
pub mod sabotage;
mod same;
pub mod seqs;
pub mod stages;
pub mod sweep;
mod told;
mod touch;
pub mod units;
pub mod upkeep;
mod wear;
mod words;
mod write;

pub use batch::{Batch, Name, Pieces, Sender, Unreadable, decode, decode_until, identify};
pub use error::{Error, Remedy};
pub use kinara_store::Work;
pub use write::{Counts, Limits, Outcome, Writer};

/// Microseconds since 1970 as a timestamp; a nonsensical number becomes the nearest that can be told.
pub fn timestamp(utc_us: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(utc_us).unwrap_or(if utc_us < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}
