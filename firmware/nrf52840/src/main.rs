//! The wearable on its board: an nRF52840 with a MAX30102, two TMP117, an LSM6DSO, electrodes and 8 MB of flash.
//!
//! Built for an nRF52832, or without the feature `external`, it keeps its frames in the processor's own flash, is the only
//! image there, and takes no update over the air: it refuses one as an operation that it does not know.
//!
//! What it does is `kinara-firmware-app`'s and `kinara-firmware-ble`'s, which are tested elsewhere; here they get pins.
//! **It has been compiled and linked, and has run on no board**: there was none where it was written.
//!
//! - [`board`]: which pin is what.
//! - [`flash`]: frames, and what the radio remembers, enciphered.
//! - `install`: an image that came over the air.
//! - [`key`]: this device's key, and the random numbers. `vault`: what a factory reset erases.
//! - [`sensors`]: raw readings.
//! - [`unit`]: the application and the radio's view of it.
//! - [`controller`]: the Bluetooth controller.
//! - [`fault`]: why it started.
//! - [`version`]: which firmware this is.
//!
//! **Why `unsafe`.** Memory that outlives a reset has no safe wrapper, nor has the layer below the controller while it is
//! waited for; each use, in `fault` and in `flash::internal`, says why it is sound.

#![no_std]
#![no_main]

mod board;
mod controller;
mod fault;
mod flash;
#[cfg(feature = "external")]
mod install;
mod key;
mod sensors;
mod unit;
mod vault;
mod version;

use embassy_executor::Spawner;

#[embassy_executor::main]
async fn main(spawner: Spawner) {
    unit::run(board::Board::take(), spawner).await;
}
