//! The bridge on a real Mosquitto and a real PostgreSQL. One program: each further one costs the build half a minute.

#![allow(clippy::unwrap_used, clippy::wildcard_imports)]

mod delivered;
mod ground;
mod heap;
mod infer;
mod messages;
mod shares;
#[path = "../../../crates/ingest/tests/ingest/support/mod.rs"]
mod support;
mod together;
