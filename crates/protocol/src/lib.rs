//! What wearables, gateways and the cloud say to each other.
//!
//! Without features this crate is `no_std` and allocates nothing: it is what runs on the wearable.
//!
//! - [`channel`]: the registry of what can be measured, with units, steps, physical ranges and intervals. [`event`]: the
//!   kinds of events.
//! - [`frame`]: frame codec v1, the unit of storage and acknowledgement.
//! - [`advert`]: what a wearable advertises, and how it offers to pair.
//! - [`gatt`], [`control`], [`status`]: what goes over the Bluetooth link beside frames.
//! - [`intervals`]: how often channels are measured, where a gateway may say so.
//! - [`image`]: a firmware image's header, and what is signed of a model package. [`vitals`]: values as the standard services have them.
//!
//! With `pairing`, still `no_std`:
//! - [`label`]: the passkeys that a label's or an introduction's secret gives.
//!
//! With `std`, which includes `pairing`:
//! - [`topic`]: MQTT topics, parsed into types.
//! - [`envelope`]: the Protobuf messages (the `.proto` files are the reference) and their sealed form.
//! - [`limits`]: how much one message may hold; [`scan`] sees to it before a message is decoded.
//! - [`columns`]: frames by columns, for the gateway's database and for batches.
//! - [`hardware`]: what a device is called. [`entry`]: what people type: digits, names, numbers, times.

#![cfg_attr(not(any(feature = "std", test)), no_std)]

pub mod advert;
pub mod channel;
pub mod control;
pub mod event;
pub mod frame;
pub mod gatt;
pub mod image;
pub mod intervals;
pub mod status;
pub mod vitals;
mod wire;

#[cfg(feature = "std")]
pub mod columns;
#[cfg(feature = "std")]
pub mod entry;
#[cfg(feature = "std")]
pub mod envelope;
#[cfg(feature = "std")]
pub mod hardware;
#[cfg(feature = "pairing")]
pub mod label;
#[cfg(feature = "std")]
pub mod limits;
#[cfg(feature = "std")]
pub mod scan;
#[cfg(feature = "std")]
pub mod topic;
