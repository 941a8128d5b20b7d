//! The devices of this box, put together for people.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Desk;
use crate::devices::Device;
use crate::hardware::HardwareId;
use crate::status::{self, Link};

/// A device, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceView {
    /// Which.
    pub hardware: HardwareId,
    /// The name it advertised.
    pub name: String,
    /// The link.
    pub link: Link,
    /// Whether this box has a bond with it.
    pub bonded: bool,
    /// One side has forgotten the bond: forget it and pair it again.
    pub stale: bool,
    /// Its label came with the configuration file.
    pub configured: bool,
    /// Who wears it, by this box, and what people are to read of them.
    pub wearer: Option<(Uuid, String)>,
    /// Battery in percent.
    pub battery_percent: Option<u8>,
    /// Whether it is worn.
    pub worn: Option<bool>,
    /// Signal strength.
    pub rssi_dbm: Option<i16>,
    /// Firmware.
    pub firmware: String,
    /// Frames still on the wearable.
    pub behind_frames: u64,
    /// Frames on this box that the cloud has not confirmed.
    pub buffered_frames: u64,
    /// UTC of the last frame, microseconds; 0 for never.
    pub last_frame_us: i64,
    /// Why there is no link, and what to do; empty when all is well.
    pub trouble: String,
}

impl Desk {
    /// The devices of this box: paired ones, and those whose label came with the configuration.
    pub fn devices(&self) -> Vec<DeviceView> {
        let kept = self.inner.devices.now().devices;
        let snapshot = self.inner.board.now();
        let roster = self.inner.book.roster().borrow().clone();
        let labels = &self.inner.labelled;
        let all: BTreeSet<&HardwareId> = kept.keys().chain(labels).collect();
        let view = |hardware: &HardwareId| {
            let device = kept.get(hardware).cloned().unwrap_or_default();
            let seen = snapshot.devices.get(hardware).cloned().unwrap_or_default();
            let wearer = roster.wearers.iter().find(|wearer| wearer.hardware.contains(hardware));
            DeviceView {
                hardware: hardware.clone(),
                trouble: trouble(&device, &seen),
                name: if seen.name.is_empty() { device.name } else { seen.name },
                link: seen.link,
                bonded: device.bonded.is_some(),
                stale: device.bonded.is_some_and(|bonded| bonded.stale),
                configured: labels.contains(hardware),
                wearer: wearer.map(|wearer| (wearer.user, wearer.called())),
                battery_percent: seen.battery_percent,
                worn: seen.worn,
                rssi_dbm: seen.rssi_dbm,
                firmware: seen.firmware,
                behind_frames: seen.behind_frames,
                buffered_frames: seen.buffered_frames,
                last_frame_us: seen.last_frame_us,
            }
        };
        all.into_iter().map(view).collect()
    }
}

fn trouble(device: &Device, seen: &status::Device) -> String {
    if device.hand_over.is_some() {
        return "It has to begin a new log for its new wearer; bring it near the box.".to_owned();
    }
    seen.problem()
}
