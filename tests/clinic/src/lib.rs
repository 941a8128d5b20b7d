//! A whole clinic on one machine, made of the real programs.
//!
//! What this crate promises to whoever starts a [`Clinic`]:
//!
//! * **Nothing is left behind.** Every program is started with a parent-death signal and in a process
//!   group of its own; dropping the [`Clinic`] stops all of them, and so does `kill -9` of the program
//!   that holds it.
//! * **Nothing outside the given folder is changed**, but for the database's files where PostgreSQL has
//!   to run as another user who cannot reach that folder (see [`folders`]).
//! * **Every failure names the program, what it last said, and where its log is.** Data and logs are kept
//!   when a test fails ([`Options::keep`]).
//!
//! It is used by the demo (`kinara-demo`), the conservation oracle, the benches and the end-to-end tests.
//! None of the product's programs depends on it.

pub mod authority;
pub mod bench;
pub mod broker;
pub mod clinic;
pub mod database;
pub mod demo;
pub mod folders;
pub mod gateway;
pub mod hostile;
pub mod network;
pub mod oracle;
pub mod packets;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod recordings;
pub mod records;
pub mod scenario;
pub mod wearable;

pub use authority::Authority;
pub use broker::Broker;
pub use clinic::{Assignment, Clinic, Keep, Login, Options, Tenant, Wearer};
pub use database::Database;
pub use gateway::{Gateway, GatewayPlan};
pub use process::{Launch, Process, Ready};
pub use wearable::{Wearable, WearablePlan};

use std::path::PathBuf;

/// Why a clinic, or a part of it, could not be started, reached or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClinicError {
    /// A file or folder could not be made, read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder at a place that can be guessed was not made by us, or others may write to it.
    #[error("{0} belongs to somebody else; remove it")]
    Foreign(PathBuf),
    /// A program of ours or of the system's is not there.
    #[error("{program} is missing: {advice}")]
    Missing {
        /// What was looked for.
        program: String,
        /// What to do about it.
        advice: String,
    },
    /// A program could not be started at all.
    #[error("{name} could not be started ({program}): {source}")]
    Spawn {
        /// The process's name in this clinic.
        name: String,
        /// The file that was to be run.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program ended before it was ready.
    #[error("{name} ended ({status}) before it was ready; its log is {log}, and ends:\n{last_lines}")]
    Ended {
        /// The process's name in this clinic.
        name: String,
        /// Its exit status.
        status: String,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of it.
        last_lines: String,
    },
    /// A program did not become ready in time.
    #[error(
        "{name} was not ready after {seconds} s ({waited_for}); its log is {log}, and ends:\n{last_lines}"
    )]
    NotReady {
        /// The process's name in this clinic.
        name: String,
        /// How long was waited.
        seconds: u64,
        /// What was waited for.
        waited_for: String,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of it.
        last_lines: String,
    },
    /// A command that should do one thing and end failed.
    #[error("{what} failed ({status}):\n{output}")]
    Command {
        /// What was run.
        what: String,
        /// Its exit status.
        status: String,
        /// What it printed.
        output: String,
    },
    /// A part answered something that makes no sense here.
    #[error("{who}: {what}")]
    Answer {
        /// Which part.
        who: String,
        /// What is wrong about the answer.
        what: String,
    },
    /// The database refused.
    #[error("database: {0}")]
    Database(String),
    /// Certificates could not be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// It cannot be done here and now; the text says why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// The port that was asked for cannot be had.
    #[error("port {port} on {address} {why}; choose another one with {option}")]
    Port {
        /// The port.
        port: u16,
        /// The address.
        address: std::net::IpAddr,
        /// Why not.
        why: String,
        /// The option by which to choose another.
        option: &'static str,
    },
}

impl ClinicError {
    /// An I/O error with the file it happened to.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, ClinicError>;
