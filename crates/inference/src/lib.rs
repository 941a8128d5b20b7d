//! What is made of a wearable's signals: by the gateway on the spot, by the cloud where no gateway looked.
//!
//! [`window`] cuts a device's stored samples into sliding windows on a grid of the device's own ticks; [`features`]
//! turns a window into numbers; [`sternal`] is the published rule for hot flashes; [`model`] is a package of an ONNX
//! file and its manifest, verified before it is used, and [`session`] runs it. [`detect`] has them all say what they
//! find in a window.
//!
//! Everything here is a function of frames that are already on disk. The same frames give the same windows, features
//! and onsets, on whichever gateway and however often, which is what makes an event's key the same each time.
//! Nothing here reads a clock, opens a socket or downloads anything.

pub mod detect;
pub mod features;
pub mod model;
pub mod refractory;
pub mod session;
pub mod signal;
pub mod sternal;
pub mod window;

pub use detect::{Asked, Detector, Finding};
pub use features::{Feature, Features};
pub use model::{Maker, ModelError, Package};
pub use refractory::Refractory;
pub use session::{Runtime, RuntimeError, Session};
pub use signal::{Sample, Signal};
pub use sternal::{Judgement, SternalRule};
pub use window::{DeviceWindows, FrameSamples, Window, WindowConfig};
