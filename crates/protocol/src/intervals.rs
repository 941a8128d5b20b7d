//! Which channels' intervals a gateway may change, and to what.
//!
//! Intervals are whole seconds. A channel that is not named is measured at the reference plan's interval. What counts within a
//! period (activity, steps) and what comes with each beat has no interval that could be another one.

use crate::channel::{AMBIENT_TEMPERATURE, BATTERY, ChannelId, EDA, HEART_RATE, SKIN_TEMPERATURE, SPO2};
use crate::wire::{Malformed, Reader, Writer};

/// A channel whose interval may be changed, and its bounds in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Which.
    pub channel: ChannelId,
    /// The shortest.
    pub least_s: u16,
    /// The longest. Alerts join what is ten minutes apart: two samples and the minutes that they fall into stay within that.
    pub most_s: u16,
}

const fn bounds(channel: ChannelId, least_s: u16) -> Bounds {
    Bounds { channel, least_s, most_s: 300 }
}

/// Every channel whose interval may be changed, in the order of their numbers.
pub const CHANGEABLE: [Bounds; 6] = [
    bounds(HEART_RATE, 1),
    bounds(SKIN_TEMPERATURE, 1),
    bounds(AMBIENT_TEMPERATURE, 1),
    bounds(EDA, 1),
    bounds(SPO2, 10),
    bounds(BATTERY, 10),
];

/// Why an interval is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(thiserror::Error))]
pub enum NotTaken {
    /// The channel's interval cannot be changed.
    #[cfg_attr(feature = "std", error("the interval of channel {} cannot be changed", .0.0))]
    Channel(ChannelId),
    /// Too short or too long.
    #[cfg_attr(feature = "std", error("the interval of channel {} is {} to {} s", .0.channel.0, .0.least_s, .0.most_s))]
    Seconds(Bounds),
}

/// Intervals by channel. As they came: [`check`](Self::check) says whether they can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Intervals {
    /// By the place in [`CHANGEABLE`]; 0 is the reference plan's.
    seconds: [u16; CHANGEABLE.len()],
}

/// Where a channel stands in [`CHANGEABLE`].
fn place(channel: ChannelId) -> Option<usize> {
    CHANGEABLE.iter().position(|bounds| bounds.channel == channel)
}

impl Intervals {
    /// The reference plan's.
    pub const REFERENCE: Self = Self { seconds: [0; CHANGEABLE.len()] };

    /// These, and another one; `None` where the channel's interval cannot be changed. 0 seconds is the reference plan's.
    #[must_use]
    pub fn with(mut self, channel: ChannelId, seconds: u16) -> Option<Self> {
        *self.seconds.get_mut(place(channel)?)? = seconds;
        Some(self)
    }

    /// These, without that of a channel.
    #[must_use]
    pub fn without(self, channel: ChannelId) -> Self {
        self.with(channel, 0).unwrap_or(self)
    }

    /// A channel's interval in seconds, where it is not the reference plan's.
    pub fn of(&self, channel: ChannelId) -> Option<u16> {
        self.seconds.get(place(channel)?).copied().filter(|seconds| *seconds != 0)
    }

    /// All of them, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (ChannelId, u16)> + '_ {
        let all = CHANGEABLE.iter().zip(self.seconds);
        all.filter(|(_, seconds)| *seconds != 0).map(|(bounds, seconds)| (bounds.channel, seconds))
    }

    /// Whether a wearable can measure so.
    pub fn check(&self) -> Result<(), NotTaken> {
        for (bounds, seconds) in CHANGEABLE.iter().zip(self.seconds) {
            if seconds != 0 && !(bounds.least_s..=bounds.most_s).contains(&seconds) {
                return Err(NotTaken::Seconds(*bounds));
            }
        }
        Ok(())
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        for (channel, seconds) in self.iter() {
            writer.u16(channel.0);
            writer.u16(seconds);
        }
    }

    /// All that is left of a message. `None`: a channel whose interval cannot be changed, by this version.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, Malformed> {
        let (mut out, mut last) = (Some(Self::REFERENCE), 0);
        while !reader.is_empty() {
            let (channel, seconds) = (reader.u16()?, reader.u16()?);
            // One content has one encoding.
            if channel <= last || seconds == 0 {
                return Err(Malformed);
            }
            last = channel;
            out = out.and_then(|all| all.with(ChannelId(channel), seconds));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{RR_INTERVAL, by_id};

    #[test]
    fn intervals_stand_in_the_order_of_their_channels_and_the_last_word_counts() {
        let set = |to: Intervals, channel, seconds| to.with(channel, seconds).unwrap();
        let some = set(set(set(Intervals::REFERENCE, EDA, 5), HEART_RATE, 60), EDA, 10);
        assert_eq!(some.iter().collect::<Vec<_>>(), [(HEART_RATE, 60), (EDA, 10)]);
        assert_eq!((some.of(EDA), some.of(SPO2)), (Some(10), None));
        assert_eq!(some.without(HEART_RATE), set(Intervals::REFERENCE, EDA, 10));
        assert_eq!(some.without(HEART_RATE).without(EDA).without(SPO2), Intervals::REFERENCE);
    }

    #[test]
    fn what_a_wearable_cannot_measure_so_is_refused_with_its_bounds() {
        let one = |channel, seconds| Intervals::REFERENCE.with(channel, seconds).unwrap().check();
        assert_eq!(Intervals::REFERENCE.with(RR_INTERVAL, 10), None);
        assert_eq!(one(HEART_RATE, 300), Ok(()));
        assert_eq!(one(SPO2, 9), Err(NotTaken::Seconds(bounds(SPO2, 10))));
        assert_eq!(one(EDA, 301), Err(NotTaken::Seconds(bounds(EDA, 1))));
    }

    #[test]
    fn every_channel_that_can_be_changed_is_in_the_registry_and_its_own_interval_is_within_the_bounds() {
        for bounds in CHANGEABLE {
            let channel = by_id(bounds.channel).unwrap();
            assert!((bounds.least_s..=bounds.most_s).contains(&channel.interval_s), "{}", channel.name);
        }
    }
}
