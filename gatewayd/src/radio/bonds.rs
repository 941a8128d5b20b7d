//! What a transport may know of this box's devices: whom it has a bond with, and which.

use std::sync::Arc;

use crate::devices::Devices;
use crate::hardware::HardwareId;

pub use crate::devices::Bond;

/// The bonds of this box.
#[derive(Debug, Clone)]
pub struct Bonds {
    devices: Arc<Devices>,
}

impl Bonds {
    /// Those of these devices.
    pub fn new(devices: Arc<Devices>) -> Self {
        Self { devices }
    }

    /// The bond with a device.
    pub fn get(&self, hardware: &HardwareId) -> Option<Bond> {
        self.devices.bonded(hardware).map(|bonded| bonded.bond)
    }

    /// All of them.
    pub fn all(&self) -> Vec<(HardwareId, Bond)> {
        let devices = self.devices.now().devices.into_iter();
        devices.filter_map(|(hardware, device)| Some((hardware, device.bonded?.bond))).collect()
    }
}
