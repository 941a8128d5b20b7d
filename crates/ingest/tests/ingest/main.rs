//! The pipeline from a batch to rows, roll-ups, alerts and erasure, against a real PostgreSQL. One program: each
//! further one costs the build half a minute.

#![allow(clippy::unwrap_used, clippy::wildcard_imports)]

mod alerts;
mod boundaries;
mod bounds;
mod chunks;
mod claims;
mod days;
mod decisions;
mod enrich;
mod erased;
mod erasure;
mod fairness;
mod hostile;
mod housekeeping;
mod names;
mod not_kept;
mod parts;
mod pipeline;
mod requests;
mod rollup;
mod support;
mod uncertain;
mod wide;
mod words;
