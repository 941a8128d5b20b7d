//! Ticks into UTC.
//!
//! The promise: the time of a frame is never off by more than the uncertainty it carries, and a frame whose epoch
//! nobody synchronised says so instead of guessing. Nothing is stamped before the gateway itself knows the time.
//!
//! [`fit`] turns anchors into fits, [`timeline`] orders a wearable's epochs and bounds those without an anchor, [`order`] keeps
//! the samples of an epoch in their order,
//! [`source`] decides when the gateway's own clock may be believed, [`floor`] bounds what it may believe, [`https`] is one
//! that it may hear, and [`certificates`] says by which time those of servers are judged ([`validity`] reads their dates).

pub mod certificates;
pub mod fit;
pub mod floor;
pub mod https;
pub mod order;
pub mod source;
pub mod timeline;
pub mod validity;
