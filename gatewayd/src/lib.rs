//! The appliance's daemon: it keeps every reading that a wearable hands over until the cloud has it.
//!
//! `radio` brings frames, `store` makes them durable, `align` turns their ticks into UTC, `uplink` takes them to
//! the cloud, `infer` looks at them on the way, and `local` shows people how it goes.

pub mod align;
pub mod card;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod decisions;
pub mod desk;
pub mod devices;
pub mod files;
pub mod hardware;
pub mod infer;
pub mod live;
pub mod local;
pub mod pipeline;
pub mod radio;
pub mod roster;
pub mod sabotage;
pub mod service;
pub mod status;
pub mod store;
pub mod uplink;
pub mod vitals;
