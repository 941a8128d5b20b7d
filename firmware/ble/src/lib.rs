//! The wearable's radio: the Kinara service over trouble-host.
//!
//! **Promise.** Nothing of a wearer is readable without an encrypted, authenticated link (LE Secure Connections with a
//! passkey), and outside its windows a wearable tells the air nothing by which it could be known again.
//!
//! The same code runs on the chip and on a PC: controller, storage, entropy and time come in as parameters, nothing is
//! allocated. A platform implements [`Wearable`] and [`memory::Storage`], and calls [`radio::run`] with an HCI
//! controller; it presses the button through [`controls::Controls`].
//!
//! - [`pairing`]: the windows, nonces and passkeys, introductions, bonds. Pure: time is an argument.
//! - [`memory`]: what of it survives a reset.
//! - [`radio`]: advertises, accepts one link at a time.
//! - [`link`]: one link from connection to disconnection.
//! - [`service`]: the attributes.
//! - [`startup`]: knows when the host has ended its start-up.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod controls;
pub mod link;
pub mod memory;
pub mod pairing;
pub mod radio;
pub mod service;
pub mod startup;
mod wearable;

pub use wearable::{BondRequest, Happening, Wearable};
