//! The appliance's daemon: it keeps every reading that a wearable hands over until the cloud has it.
//!
//! `radio` brings frames, `store` makes them durable, `align` turns their ticks into UTC, `uplink` takes them to
//! the cloud, `infer` looks at them on the way, and `local` shows people how it goes.

pub mod hardware;
pub mod pipeline;
pub mod status;
