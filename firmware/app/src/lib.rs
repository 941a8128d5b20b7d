//! What a Kinara wearable does, without the hardware it does it on.
//!
//! The same code runs on the nRF52 and in the simulator: time, flash and the radio come in as parameters
//! ([`flash::Flash`], ticks, bytes), nothing is allocated and nothing blocks. A platform calls
//! [`app::App::sample`] for each sample, [`app::App::step`] a few times a second, [`app::App::write`] for what the
//! gateway writes, and sends what [`app::App::outgoing`] gives for as long as the link takes it.
//!
//! - [`plan`]: what is measured how often. [`acquisition`]: how much, and what the raw readings give.
//! - [`presence`]: whether a sensor answers. [`restarts`]: faults in a row. [`factory`]: the key, and factory reset.
//! - [`framing`]: samples to frames.
//! - [`ring`]: frames in flash, with the promise that everything else stands on.
//! - [`log`]: the ring with numbering, anchors and device events.
//! - [`delivery`]: what is sent on `stream` and `backlog`, and when.
//! - [`signal`]: raw counts of the sensors to samples.
//! - [`update`]: firmware over the air.
//! - [`app`]: all of it together, and the `control` requests.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod acquisition;
pub mod app;
mod boot;
mod control;
pub mod delivery;
pub mod factory;
pub mod flash;
pub mod framing;
pub mod log;
pub mod plan;
pub mod presence;
pub mod queue;
pub mod restarts;
pub mod ring;
pub mod signal;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod update;
