//! What a wearable is called on every side of the system.

pub use kinara_protocol::hardware::{BadHardwareId, HardwareId};
