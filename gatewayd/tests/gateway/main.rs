//! The gateway's promises, held against real files, a real broker, and a process that is really killed.

#![allow(
    clippy::unwrap_used,
    reason = "all of this is test code; the lint's exception only knows `#[test]` functions"
)]

mod air;
mod bonds;
mod bridge;
mod broker;
mod bus;
mod clock;
mod crash;
mod damage;
mod desk;
mod events;
mod followed;
mod frames;
mod full_disk;
mod intervals;
mod introduced;
mod line;
mod mends;
mod package;
#[path = "../../../tests/clinic/src/proxy.rs"]
#[allow(dead_code, reason = "the oracle uses more of it")]
mod proxy;
mod rescue;
mod sensor;
mod session;
mod silent;
mod store;
mod time;
mod uplink;
mod watchdog;
