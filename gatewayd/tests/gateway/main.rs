//! The gateway's promises, held against real files, a real broker, and a process that is really killed.

mod air;
mod bridge;
mod broker;
mod clock;
mod crash;
mod frames;
mod line;
mod store;
