//! The wearable on its board: an nRF52840 with a MAX30102, two TMP117, an LSM6DSO, electrodes and 8 MB of flash.
//!
//! What it does is `kinara-firmware-app`'s and `kinara-firmware-ble`'s, which are tested elsewhere; here they get pins.
//! **It has been compiled and linked, and has run on no board**: there was none where it was written.
//!
//! - [`board`]: which pin is what.
//! - [`flash`]: the external flash, enciphered: frames, and what the radio remembers.
//! - [`install`]: an image that came over the air.
//! - [`key`]: this device's key, and the random numbers.
//! - [`sensors`]: raw readings.
//! - [`unit`]: the application and the radio's view of it.
//! - [`controller`]: the Bluetooth controller.
//! - [`fault`]: why it started.
//!
//! **Why `unsafe`.** Memory that outlives a reset has no safe wrapper; each use, in `fault`, says why it is sound.

#![no_std]
#![no_main]

mod board;
mod controller;
mod fault;
mod flash;
mod install;
mod key;
mod sensors;
mod unit;

use embassy_executor::Spawner;

#[embassy_executor::main]
async fn main(spawner: Spawner) {
    unit::run(board::Board::take(), spawner).await
}
