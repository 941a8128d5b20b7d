//! The newest value of each wearable and channel, for whoever watches now. Never stored; a page shows them as "not yet
//! stored" until the reading with the same key arrives from the database.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kinara_protocol::channel::{self, Shape};
use kinara_protocol::envelope::{ENVELOPE_VERSION, Live, LiveDevice, LiveValue};
use kinara_protocol::frame::{Epoch, Samples, Seq};

use crate::hardware::HardwareId;

/// A value older than this is not "live", microseconds.
const FRESH_US: i64 = 60_000_000;

/// The newest values; shared by sessions and uplink.
#[derive(Debug, Clone, Default)]
pub struct Newest {
    devices: Arc<Mutex<BTreeMap<HardwareId, Newer>>>,
}

#[derive(Debug, Default)]
struct Newer {
    epoch: u64,
    values: BTreeMap<u16, (LiveValue, bool)>,
}

impl Newest {
    /// Takes a frame of the running epoch. `utc_us` stamps a tick.
    pub fn take(
        &self,
        hardware: &HardwareId,
        (epoch, seq): (Epoch, Seq),
        samples: &Samples<'_>,
        now_us: i64,
        utc_us: impl Fn(u64) -> i64,
    ) {
        let mut index = 0;
        let mut devices = self.lock();
        let device = devices.entry(hardware.clone()).or_default();
        if device.epoch != epoch.0 {
            *device = Newer { epoch: epoch.0, values: BTreeMap::new() };
        }
        for block in samples.blocks() {
            let count = block.count();
            index += count;
            let scalar = channel::by_id(block.channel()).is_none_or(|channel| channel.shape == Shape::Scalar);
            let Some(sample) = block.samples().last().filter(|_| scalar) else { continue };
            let utc_us = utc_us(sample.ticks.0);
            let newer = device.values.get(&block.channel().0).is_none_or(|(known, _)| known.utc_us < utc_us);
            if newer && now_us - utc_us < FRESH_US {
                let value = LiveValue {
                    channel: u32::from(block.channel().0),
                    value: sample.values().to_vec(),
                    utc_us,
                    seq,
                    index: index - 1,
                };
                device.values.insert(block.channel().0, (value, true));
            }
        }
    }

    /// What is new since the last call; `None` when nothing is.
    pub fn collect(&self) -> Option<Live> {
        let mut devices = Vec::new();
        for (hardware, device) in self.lock().iter_mut() {
            let values: Vec<LiveValue> = device
                .values
                .values_mut()
                .filter_map(|(value, fresh)| std::mem::take(fresh).then(|| value.clone()))
                .collect();
            if !values.is_empty() {
                devices.push(LiveDevice { hardware_id: hardware.to_string(), epoch: device.epoch, values });
            }
        }
        (!devices.is_empty()).then_some(Live { version: ENVELOPE_VERSION, devices })
    }

    /// The newest value by channel of a wearable, for the local page.
    pub fn values(&self, hardware: &HardwareId) -> BTreeMap<u16, i32> {
        let devices = self.lock();
        let values = devices.get(hardware).map(|device| &device.values);
        values
            .into_iter()
            .flatten()
            .filter_map(|(channel, (value, _))| Some((*channel, *value.value.first()?)))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<HardwareId, Newer>> {
        self.devices.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
