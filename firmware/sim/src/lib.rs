//! A simulated wearable: the firmware's application over a simulated body, on a virtual radio or a real Bluetooth stack.
//!
//! - [`body`], [`replay`], [`signals`], [`crystal`], [`battery`]: what there is to measure, and when. Seeded.
//! - [`wearable`]: the application on a flash image ([`flash_file`]), with the oracle's log ([`oracle`]) and
//!   the firmware that runs on it ([`firmware`]).
//! - [`station`], [`air`], [`link`], [`pairing`]: its virtual radio, and the faults that a test asks for.
//! - [`bluetooth`]: the firmware's own radio, on an HCI controller.
//! - [`program`], [`options`], [`commands`], [`socket`]: what the two programs have in common.

pub mod air;
pub mod battery;
pub mod bluetooth;
pub mod body;
pub mod commands;
pub mod crystal;
mod entropy;
pub mod firmware;
pub mod flash_file;
pub mod link;
pub mod noise;
pub mod options;
pub mod oracle;
pub mod pairing;
pub mod program;
pub mod replay;
pub mod signals;
pub mod socket;
pub mod station;
pub mod wearable;
