//! What the file of devices looks like, and that of an older version.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;

use kinara_protocol::channel::ChannelId;
use kinara_protocol::intervals::Intervals;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Binding, Bond, Bonded, Contents, Device, HandOver, How, address_text, parse_address};
use crate::files::set_aside;
use crate::hardware::HardwareId;

/// The version this program writes.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    devices: BTreeMap<String, DeviceOnDisk>,
    #[serde(default)]
    introduced: BTreeSet<Uuid>,
    #[serde(default)]
    revoked: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceOnDisk {
    #[serde(default)]
    name: String,
    bond: Option<BondOnDisk>,
    worn_by: Option<Binding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hand_over: Option<HandOver>,
    /// Seconds by channel number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    intervals: Option<BTreeMap<u16, u16>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BondOnDisk {
    key: String,
    adapter: Option<String>,
    how: How,
    #[serde(default)]
    stale: bool,
}

/// Why a file is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum NotOurs {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("it is of version {0}, newer than this program")]
    Newer(u32),
    #[error("{0:?} is no device of this kind")]
    Device(String),
}

pub fn decode(bytes: &[u8]) -> Result<Contents, NotOurs> {
    let file: OnDisk = serde_json::from_slice(bytes)?;
    if file.version > VERSION {
        return Err(NotOurs::Newer(file.version));
    }
    let mut contents =
        Contents { devices: BTreeMap::new(), introduced: file.introduced, revoked: file.revoked };
    for (text, device) in file.devices {
        let bad = || NotOurs::Device(text.clone());
        let hardware = HardwareId::parse(&text).map_err(|_| bad())?;
        let bonded = match device.bond {
            None => None,
            Some(bond) => Some(Bonded {
                bond: Bond(hex::decode(&bond.key).map_err(|_| bad())?),
                adapter: match &bond.adapter {
                    None => None,
                    Some(address) => Some(parse_address(address).ok_or_else(bad)?),
                },
                how: bond.how,
                stale: bond.stale,
            }),
        };
        let device = Device {
            name: device.name,
            bonded,
            worn_by: device.worn_by,
            hand_over: device.hand_over,
            intervals: match &device.intervals {
                None => None,
                Some(kept) => Some(intervals(kept).ok_or_else(bad)?),
            },
        };
        contents.devices.insert(hardware, device);
    }
    Ok(contents)
}

/// `None`: more than a wearable takes.
fn intervals(kept: &BTreeMap<u16, u16>) -> Option<Intervals> {
    let mut pairs = kept.iter().map(|(channel, seconds)| (ChannelId(*channel), *seconds));
    pairs.try_fold(Intervals::REFERENCE, |all, (channel, seconds)| all.with(channel, seconds))
}

pub fn encode(contents: &Contents) -> io::Result<Vec<u8>> {
    let devices = contents.devices.iter().map(|(hardware, device)| {
        let bond = device.bonded.as_ref().map(|bonded| BondOnDisk {
            key: hex::encode(&bonded.bond.0),
            adapter: bonded.adapter.map(address_text),
            how: bonded.how,
            stale: bonded.stale,
        });
        let intervals = device
            .intervals
            .map(|intervals| intervals.iter().map(|(channel, seconds)| (channel.0, seconds)).collect());
        let device = DeviceOnDisk {
            name: device.name.clone(),
            bond,
            worn_by: device.worn_by,
            hand_over: device.hand_over.clone(),
            intervals,
        };
        (hardware.to_string(), device)
    });
    let file = OnDisk {
        version: VERSION,
        devices: devices.collect(),
        introduced: contents.introduced.clone(),
        revoked: contents.revoked.clone(),
    };
    Ok(serde_json::to_vec_pretty(&file)?)
}

/// The bonds of an older version as devices. A file that cannot be read is set aside.
pub fn bonds_of_an_older_version(old: &Path) -> Option<Contents> {
    let read = match std::fs::read(old) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        read => read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)),
    };
    let bonds: BTreeMap<String, String> = match read {
        Ok(bonds) => bonds,
        Err(error) => {
            if let Err(why) = set_aside(old, &error) {
                tracing::error!(%error, %why, file = %old.display(), "a file cannot be read, nor be set aside");
            }
            return None;
        }
    };
    let mut contents = Contents::default();
    for (hardware, key) in &bonds {
        let (Ok(hardware), Ok(key)) = (HardwareId::parse(hardware), hex::decode(key)) else { continue };
        let bonded = Bonded { bond: Bond(key), adapter: None, how: How::Label, stale: false };
        contents.devices.entry(hardware).or_default().bonded = Some(bonded);
    }
    tracing::info!(bonds = bonds.len(), "the bonds of an older version are taken over");
    Some(contents)
}
