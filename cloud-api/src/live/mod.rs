//! Live values, events and states for pages that are open.

pub mod broker;
pub mod hub;
pub mod message;
pub mod notices;
pub mod outbox;
pub mod socket;
