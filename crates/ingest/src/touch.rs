//! What readings say about their devices: when they were heard of, their battery, whether they are worn.
//!
//! Best effort, after the commit, and at most every so often for each device: the status is a convenience for people, and
//! must neither delay readings nor fail them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use kinara_protocol::channel;
use kinara_protocol::frame::DeviceEventKind;
use uuid::Uuid;

use crate::batch::Content;
use crate::plan::Taken;
use crate::write::lock;
use crate::{Error, timestamp};

/// What a device's readings say about the device itself.
#[derive(Debug, Clone, Copy)]
struct Status {
    seen_us: i64,
    battery: Option<(i64, i16)>,
    worn: Option<(i64, bool)>,
}

/// Devices that are remembered: beyond these all are forgotten, and each row is touched once more than it had to be.
const REMEMBERED: usize = 20_000;

/// When each device's row was last touched, by the samples' own time.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    last: Mutex<HashMap<Uuid, i64>>,
}

impl Touched {
    /// Writes what these frames say, where it is due.
    pub async fn update(
        &self,
        client: &kinara_store::Client,
        new: &[Taken<'_>],
        wait: Duration,
        now: Timestamp,
    ) -> Result<(), Error> {
        let due = self.due(statuses(new), wait, now);
        if due.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = due.iter().map(|(id, _)| *id).collect();
        let seen: Vec<Timestamp> = due.iter().map(|(_, s)| timestamp(s.seen_us).min(now)).collect();
        let battery: Vec<Option<i16>> =
            due.iter().map(|(_, s)| s.battery.map(|(_, percent)| percent)).collect();
        let worn: Vec<Option<bool>> = due.iter().map(|(_, s)| s.worn.map(|(_, worn)| worn)).collect();
        let statement = client
            .prepare_cached(
                "UPDATE devices d SET last_seen_at = greatest(d.last_seen_at, n.seen),
                   battery_percent = CASE WHEN d.last_seen_at > n.seen THEN d.battery_percent
                     ELSE coalesce(n.battery, d.battery_percent) END,
                   worn = CASE WHEN d.last_seen_at > n.seen THEN d.worn ELSE coalesce(n.worn, d.worn) END
                 FROM unnest($1::uuid[], $2::timestamptz[], $3::int2[], $4::bool[]) n(id, seen, battery, worn)
                 WHERE d.id = n.id",
            )
            .await?;
        client.execute(&statement, &[&ids, &seen, &battery, &worn]).await?;
        Ok(())
    }
}

impl Touched {
    /// Of which devices the row is to be touched now.
    fn due(&self, statuses: BTreeMap<Uuid, Status>, wait: Duration, now: Timestamp) -> Vec<(Uuid, Status)> {
        let mut touched = lock(&self.last);
        if touched.len() >= REMEMBERED {
            *touched = HashMap::new();
        }
        let (wait, now_us) = (wait.as_micros() as i64, now.as_microsecond());
        statuses
            .into_iter()
            // One sample from ahead would have the device untouched until it was then.
            .map(|(device, status)| (device, Status { seen_us: status.seen_us.min(now_us), ..status }))
            .filter(|(device, status)| {
                let due = status.worn.is_some()
                    || status.battery.is_some()
                    || touched.get(device).is_none_or(|last| status.seen_us >= last.saturating_add(wait));
                if due {
                    let last = touched.entry(*device).or_insert(status.seen_us);
                    *last = status.seen_us.max(*last);
                }
                due
            })
            .collect()
    }
}

fn statuses(new: &[Taken<'_>]) -> BTreeMap<Uuid, Status> {
    let mut out = BTreeMap::new();
    // What was said at a time that nobody knows is not the newest.
    for taken in new.iter().filter(|taken| !taken.time_uncertain) {
        let frame = taken.frame;
        let status = out.entry(taken.assignment.device).or_insert(Status {
            seen_us: frame.last_us,
            battery: None,
            worn: None,
        });
        status.seen_us = status.seen_us.max(frame.last_us);
        if let Content::Events(events) = &frame.content {
            for event in events {
                let worn = match event.kind {
                    DeviceEventKind::Worn => true,
                    DeviceEventKind::NotWorn => false,
                    _ => continue,
                };
                if status.worn.is_none_or(|(at, _)| at <= frame.first_us) {
                    status.worn = Some((frame.first_us, worn));
                }
            }
        }
        let samples = &taken.device.samples[frame.samples.start as usize..frame.samples.end as usize];
        for sample in samples.iter().filter(|sample| sample.kind == channel::BATTERY.0 as i16) {
            if status.battery.is_none_or(|(at, _)| at <= sample.utc_us) {
                status.battery = Some((sample.utc_us, sample.value.clamp(0.0, 100.0) as i16));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_devices_there_are_what_is_remembered_of_them_is_bounded() {
        let (touched, now) = (Touched::default(), timestamp(1_800_000_000_000_000));
        let status = Status { seen_us: now.as_microsecond(), battery: None, worn: None };
        let due = |device: u128| {
            let one = BTreeMap::from([(Uuid::from_u128(device), status)]);
            !touched.due(one, Duration::from_secs(10), now).is_empty()
        };
        let last = 3 * REMEMBERED as u128 - 100;
        for device in 0..=last {
            assert!(due(device));
            assert!(lock(&touched.last).len() <= REMEMBERED);
        }
        assert!(!due(last), "not again at once");
    }
}
