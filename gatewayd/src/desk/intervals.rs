//! How often a wearable measures, as people set it at this box.
//!
//! The promise: what was set is on disk before the call returns, and goes to the wearable at once where it is connected, and
//! at each connection on which it measures otherwise: after a reset, or at another box. Since when it does, its own log
//! says, in whose order and time its readings are. A wearable that nobody set anything for is left as it is.

use std::collections::HashMap;

use kinara_protocol::channel::ChannelId;
use kinara_protocol::control::{Op, Outcome, Refusal};
use kinara_protocol::intervals::{Bounds, CHANGEABLE, Intervals, NotTaken};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Actor, Desk, DeskError};
use crate::hardware::HardwareId;
use crate::status::Measures;

/// What each wearable was asked about last.
pub(super) type Asked = HashMap<HardwareId, About>;

/// What a wearable is asked about, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    /// The connection.
    since: Instant,
    wanted: Intervals,
    worn_by: Option<Uuid>,
}

/// A channel's interval, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Which channel, and what can be set.
    pub bounds: Bounds,
    /// Seconds; none: the reference plan's.
    pub seconds: Option<u16>,
}

impl Desk {
    /// What is set for a wearable, of each channel that can be set, and whether it measures so.
    pub fn intervals(&self, hardware: &HardwareId) -> Result<(Vec<Setting>, Measures), DeskError> {
        let wanted = self.settable(hardware)?.unwrap_or_default();
        let setting = |bounds: Bounds| Setting { bounds, seconds: wanted.of(bounds.channel) };
        let measures = self.inner.board.now().devices.remove(hardware).map(|device| device.measures);
        Ok((CHANGEABLE.into_iter().map(setting).collect(), measures.unwrap_or_default()))
    }

    /// Sets intervals in seconds, 0 for the reference plan's; those of other channels stay as they are.
    pub async fn set_intervals(
        &self,
        by: &Actor,
        hardware: &HardwareId,
        changes: &[(ChannelId, u16)],
    ) -> Result<Measures, DeskError> {
        let mut wanted = self.settable(hardware)?.unwrap_or_default();
        for &(channel, seconds) in changes {
            // A channel that cannot be set is refused also where it is to be as it is.
            let least =
                CHANGEABLE.iter().find(|bounds| bounds.channel == channel).map(|bounds| bounds.least_s);
            let tried = if seconds == 0 { least.unwrap_or_default() } else { seconds };
            let one = Intervals::REFERENCE.with(channel, tried).ok_or(NotTaken::Channel(channel))?;
            one.check()?;
            wanted = match seconds {
                0 => wanted.without(channel),
                _ => wanted.with(channel, seconds).ok_or(NotTaken::Channel(channel))?,
            };
        }
        self.inner
            .devices
            .change(|contents| {
                if let Some(device) = contents.devices.get_mut(hardware) {
                    device.intervals = Some(wanted);
                }
            })
            .map_err(DeskError::not_kept)?;
        tracing::info!(by = by.name(), %hardware, ?changes, "intervals are set");
        self.measures(hardware, Measures::Waits);
        if self.inner.links.is_connected(hardware) {
            self.have_measured(hardware, wanted).await?;
        }
        Ok(self.intervals(hardware)?.1)
    }

    /// Has each connected wearable measure as was set here, once on each connection. Who was given one in the cloud is told of
    /// its intervals as who was given one here.
    pub(super) async fn follow_intervals(&self, asked: &mut Asked) {
        let devices = self.inner.devices.now().devices;
        asked.retain(|hardware, _| devices.contains_key(hardware));
        let set = devices.into_iter().filter_map(|(hardware, device)| Some((hardware, device.intervals?)));
        for (hardware, wanted) in set {
            let Some(since) = self.inner.links.connected_since(&hardware) else { continue };
            let about = About { since, wanted, worn_by: self.worn_by(&hardware) };
            let before = asked.get(&hardware).copied();
            if before == Some(about) {
                continue;
            }
            match self.have_measured(&hardware, wanted).await {
                Ok(true) => {}
                // It went away: it is asked when it is back.
                Ok(false) => continue,
                Err(error) => tracing::warn!(%hardware, %error, "it does not measure as it is to"),
            }
            if before.is_some_and(|before| before.worn_by != about.worn_by) && about.worn_by.is_some() {
                self.tell_intervals_again(&hardware).await;
            }
            asked.insert(hardware, about);
        }
    }

    /// A new wearer's time begins: intervals that the log told of before are told once more, so that they are known of that
    /// time too. Whatever goes wrong with that is no reason against the new wearer.
    pub(super) async fn tell_intervals_again(&self, hardware: &HardwareId) {
        if let Ok(Outcome::Intervals(now)) = self.ask(hardware, Op::TellIntervals).await
            && now != Intervals::REFERENCE
            && let Err(error) = self.ask(hardware, Op::SetIntervals(now)).await
        {
            tracing::info!(%hardware, %error, "its intervals are not told again");
        }
    }

    /// Asks a connected wearable how it measures, and tells it where that is something else. False: it has gone.
    async fn have_measured(&self, hardware: &HardwareId, wanted: Intervals) -> Result<bool, DeskError> {
        let done = match self.ask(hardware, Op::TellIntervals).await {
            Ok(Outcome::Intervals(now)) if now == wanted => Ok(Outcome::Ok),
            Ok(Outcome::Intervals(_)) => self.ask(hardware, Op::SetIntervals(wanted)).await,
            other => other,
        };
        let error = match done {
            Ok(Outcome::Ok) => {
                self.measures(hardware, Measures::SoSince(self.inner.decisions.now().0));
                return Ok(true);
            }
            Err(DeskError::NotConnected(_)) => return Ok(false),
            Ok(Outcome::Refused(Refusal::UnknownOperation)) => DeskError::OldFirmware(hardware.clone()),
            Ok(other) => DeskError::Wearable(format!("{other:?} to its intervals")),
            Err(error) => error,
        };
        self.measures(hardware, Measures::Not(error.to_string()));
        Err(error)
    }

    fn measures(&self, hardware: &HardwareId, measures: Measures) {
        self.inner.board.device(hardware, |device| device.measures = measures);
    }

    /// What is set for a wearable; an error of what is none.
    fn settable(&self, hardware: &HardwareId) -> Result<Option<Intervals>, DeskError> {
        let device = self.known(hardware)?;
        if hardware.factory_id().is_none() {
            return Err(DeskError::MeasuresItself(hardware.clone()));
        }
        Ok(device.intervals)
    }
}
