//! Real BlueZ in virtual machines, wearables of our firmware's own radio code, and everything that can go wrong
//! between them.
//!
//! What stands where:
//!
//! * **On the host:** the air ([`air`], one Bumble process), the wearables ([`wearable`]), the cloud
//!   (`kinara-clinic`). A machine can be killed hard while they live on.
//! * **In a machine** ([`machine`]): a distribution's kernel, D-Bus and bluetoothd, our programs, and the bed's
//!   [`hand`] that does what the host asks for.
//! * **Between them:** Bluetooth packets by H4 ([`h4`]), over a serial port of the machine to the air.
//!
//! What this crate promises: nothing is left behind (all processes are `kinara-clinic`'s), a machine that never came
//! up is started again but what happened in one that did is never retried, and every failure names the log to read.

pub mod air;
pub mod api;
pub mod bed;
pub mod bench;
pub mod clock;
pub mod h4;
pub mod hand;
pub mod image;
pub mod machine;
pub mod package;
pub mod scenario;
pub mod ward;
pub mod wearable;

pub use air::Air;
pub use bed::Bed;
pub use hand::Hand;
pub use machine::{Boot, Machine};
pub use ward::Ward;
pub use wearable::Wearable;

use kinara_clinic::ClinicError;

/// Why the bed, or a part of it, could not be made, started or asked.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// A process, file or program of the host.
    #[error(transparent)]
    Clinic(#[from] ClinicError),
    /// The image could not be made.
    #[error("{0}")]
    Image(String),
    /// No virtual machine can run here.
    #[error("no virtual machine can run here: {0}")]
    NoMachine(String),
    /// A machine never came up.
    #[error("{0}")]
    Boot(String),
    /// A machine, or a program in it, did not do what it was asked.
    #[error("the machine {0}")]
    Guest(String),
    /// The air did not do what it was asked.
    #[error("the air {0}")]
    Air(String),
    /// Something did not come about in time.
    #[error("after {seconds:.0} s still not so: {what}{last}")]
    NotSo {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: f64,
        /// What was there instead.
        last: String,
    },
    /// A scenario saw what must not be.
    #[error("{0}")]
    Broken(String),
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, BedError>;

/// An I/O error with the file it happened to.
pub(crate) fn file(path: impl Into<std::path::PathBuf>) -> impl FnOnce(std::io::Error) -> BedError {
    let at = ClinicError::file(path);
    move |error| BedError::Clinic(at(error))
}
