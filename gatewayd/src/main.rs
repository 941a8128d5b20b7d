//! The gateway's daemon.
fn main() {}
