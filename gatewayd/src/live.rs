//! The newest value of each wearable and channel, for whoever watches now. Never stored; a page shows them as "not yet
//! stored" until the reading with the same key arrives from the database.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kinara_protocol::channel::{self, Shape};
use kinara_protocol::envelope::{ENVELOPE_VERSION, Live, LiveDevice, LiveValue};
use kinara_protocol::frame::{Epoch, Samples, Seq};

use crate::hardware::HardwareId;

/// A value older than this is not "live", microseconds.
const FRESH_US: u64 = 60_000_000;

/// The newest values; shared by sessions and uplink.
#[derive(Debug, Clone, Default)]
pub struct Newest {
    devices: Arc<Mutex<BTreeMap<HardwareId, Newer>>>,
}

#[derive(Debug, Default)]
struct Newer {
    epoch: u64,
    values: BTreeMap<u16, Value>,
}

/// The newest value of a channel. Which of two is newer their ticks tell: the box's clock may be set back between them.
#[derive(Debug)]
struct Value {
    ticks: u64,
    live: LiveValue,
    /// Nobody has collected it.
    fresh: bool,
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
            let newer =
                device.values.get(&block.channel().0).is_none_or(|known| known.ticks < sample.ticks.0);
            if newer && now_us.abs_diff(utc_us) < FRESH_US {
                let live = LiveValue {
                    channel: u32::from(block.channel().0),
                    value: sample.values().to_vec(),
                    utc_us,
                    seq,
                    index: index - 1,
                };
                let value = Value { ticks: sample.ticks.0, live, fresh: true };
                device.values.insert(block.channel().0, value);
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
                .filter_map(|value| std::mem::take(&mut value.fresh).then(|| value.live.clone()))
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
            .filter_map(|(channel, value)| Some((*channel, *value.live.value.first()?)))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<HardwareId, Newer>> {
        self.devices.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kinara_protocol::channel::HEART_RATE;
    use kinara_protocol::frame::{Body, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};

    use super::*;

    const NOW: i64 = 1_795_939_200_000_000;
    const YEARS: i64 = 73 * 365 * 86_400_000_000;

    /// Takes a value of a tick, by a clock that is `off_us` from the true one.
    fn take(newest: &Newest, ticks: u64, value: i32, off_us: i64) {
        let mut builder = FrameBuilder::new();
        builder.begin(Kind::Scalar, Epoch(7), Ticks(ticks));
        builder.push(HEART_RATE, Ticks(ticks), &[value]).unwrap();
        let mut out = [0; MAX_FRAME];
        let len = builder.finish(1, &mut out);
        let frame = FrameRef::parse(&out[..len]).unwrap();
        let Ok(Body::Samples(samples)) = frame.body() else { panic!("not samples") };
        let utc_us = |ticks: u64| NOW + ticks as i64 * 1_000 + off_us;
        newest.take(&HardwareId::kinara(1), (Epoch(7), 1), &samples, utc_us(ticks), utc_us);
    }

    fn value(newest: &Newest) -> Option<i32> {
        newest.values(&HardwareId::kinara(1)).get(&HEART_RATE.0).copied()
    }

    #[test]
    fn live_values_go_on_after_the_clock_was_in_the_future_for_a_moment() {
        let newest = Newest::default();
        take(&newest, 1_000, 600, 0);
        take(&newest, 2_000, 610, YEARS);
        take(&newest, 3_000, 620, 0);
        assert_eq!(value(&newest), Some(620));
        assert!(newest.collect().is_some_and(|live| live.devices[0].values[0].utc_us == NOW + 3_000_000));
        // What comes late is no newer.
        take(&newest, 2_500, 615, 0);
        assert_eq!((value(&newest), newest.collect()), (Some(620), None));
    }
}
