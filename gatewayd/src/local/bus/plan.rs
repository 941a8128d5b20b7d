//! How often a wearable measures, as it goes over the bus and as `kinaractl plan --json` prints it.

use kinara_protocol::channel;
use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

use super::error::BusError;
use crate::desk::Setting;
use crate::hardware::HardwareId;
use crate::status::Measures;

/// What is set for a wearable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Plan {
    /// `kinara:…`.
    pub hardware: String,
    /// `in_force`, `waits` (it has not been told yet), `refused`.
    pub state: String,
    /// Why it does not measure so; empty when nothing is wrong.
    pub why: String,
    /// UTC at which it said that it does, microseconds.
    pub in_force_us: Option<i64>,
    /// Each channel that can be set.
    pub channels: Vec<Channel>,
}

/// A channel that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Channel {
    /// Its name.
    pub channel: String,
    /// Its interval in seconds, where it is not the reference plan's.
    pub seconds: Option<u16>,
    /// The shortest.
    pub least_s: u16,
    /// The longest.
    pub most_s: u16,
}

/// An interval to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Interval {
    /// Of which channel, by its name.
    pub channel: String,
    /// Seconds; 0: the reference plan's.
    pub seconds: u16,
}

impl Plan {
    pub(super) fn of(hardware: &HardwareId, (settings, measures): (Vec<Setting>, Measures)) -> Self {
        let state = measures.as_str().to_owned();
        let (why, in_force_us) = match measures {
            Measures::Waits => (String::new(), None),
            Measures::SoSince(utc_us) => (String::new(), Some(utc_us)),
            Measures::Not(why) => (why, None),
        };
        let channels = settings.into_iter().map(|Setting { bounds, seconds }| Channel {
            channel: channel::by_id(bounds.channel).map_or_else(String::new, |known| known.name.to_owned()),
            seconds,
            least_s: bounds.least_s,
            most_s: bounds.most_s,
        });
        Self { hardware: hardware.to_string(), state, why, in_force_us, channels: channels.collect() }
    }
}

impl Interval {
    pub(super) fn read(&self) -> Result<(channel::ChannelId, u16), BusError> {
        let known = channel::by_name(&self.channel)
            .ok_or_else(|| BusError::argument("There is no such channel. Look: kinaractl plan DEVICE"))?;
        Ok((known.id, self.seconds))
    }
}
