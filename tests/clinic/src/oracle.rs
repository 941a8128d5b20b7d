//! The conservation oracle.
//!
//! The promise it tests: *a reading that the wearable has stored is never lost and never counted twice*. What was
//! produced is read from the simulators' own logs, written before the application under test sees a sample. What
//! is stored is read from the database by SQL of the oracle's own. The two must be the same set: every sample once,
//! with its value (after quantisation), channel, device, wearer, tenant and time. No code of the product takes part,
//! so that a mistake there cannot excuse itself here.
//!
//! - [`log`] reads a simulator's log.
//! - [`evidence`] is what the judgement rests on: logs, the harness's own assignment plan and fault log, the rows.
//! - [`database`] reads the rows.
//! - [`check`] judges; [`timing`] judges times; [`losses`] decides which losses the fault log allows.
//! - [`witness`] asks whether the faults struck at all.
//! - [`verdict`] is what comes out.

pub mod check;
pub mod database;
pub mod evidence;
pub mod log;
pub mod losses;
pub mod timing;
pub mod verdict;
pub mod witness;

#[cfg(test)]
mod planted;
