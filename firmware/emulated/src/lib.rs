//! The wearable on an emulated processor, a Cortex-M4F as the nRF52840 has one.
//!
//! - [`day`]: a hundred seconds of its life, for `kinara-emulated`, which runs on a PC as well.
//! - `machine`: the way out of the emulator, for both programs.
//!
//! `kinara-emulated-wearable` (feature `radio`) lives on: it measures a recorded pulse, and whoever has its label can pair
//! with it. Its HCI controller is at the other end of a serial line.

#![no_std]

pub mod day;
#[cfg(target_os = "none")]
pub mod machine;
