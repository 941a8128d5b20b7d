//! What waits for one client.
//!
//! The promise: it is bounded, however slowly the client reads. Of a series the newest value waits, of a device or
//! gateway the newest state, of stored marks the highest; events wait in a short queue that loses its oldest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;

use kinara_protocol::frame::Epoch;
use tokio::sync::Notify;
use uuid::Uuid;

use super::message::{LiveReading, Message};
use crate::resources::devices::Device;
use crate::resources::events::Event;
use crate::resources::gateways::Gateway;

/// Stored marks that wait for a client that reads slowly: beyond that the first epoch's of the device that has most goes. Its values
/// are shown as not yet stored until they are overtaken.
const MAX_STORED: usize = 4_096;

#[derive(Debug, Default)]
struct Waiting {
    live: BTreeMap<(Uuid, Uuid), BTreeMap<String, LiveReading>>,
    stored: Marks,
    events: VecDeque<Event>,
    devices: HashMap<Uuid, Device>,
    gateways: HashMap<Uuid, Gateway>,
    alerts: bool,
}

/// Stored marks by device and epoch.
#[derive(Debug, Default)]
struct Marks {
    of: BTreeMap<Uuid, BTreeMap<u64, i64>>,
    count: usize,
}

impl Marks {
    fn put(&mut self, device: Uuid, epoch: u64, seq: i64) {
        if let Some(mark) = self.of.get_mut(&device).and_then(|marks| marks.get_mut(&epoch)) {
            *mark = seq.max(*mark);
            return;
        }
        if self.count >= MAX_STORED {
            self.forget_one();
        }
        self.of.entry(device).or_default().insert(epoch, seq);
        self.count += 1;
    }

    /// However many one device has, the others keep theirs.
    fn forget_one(&mut self) {
        let Some((device, marks)) = self.of.iter_mut().max_by_key(|(_, marks)| marks.len()) else { return };
        let device = *device;
        marks.pop_first();
        self.count -= 1;
        if marks.is_empty() {
            self.of.remove(&device);
        }
    }
}

#[derive(Debug, Default)]
struct Told {
    devices: HashMap<Uuid, Device>,
    gateways: HashMap<Uuid, Gateway>,
}

/// The queue of one client.
#[derive(Debug)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    /// What this client was last told, so that only changes go out.
    told: Mutex<Told>,
    notify: Notify,
    events_queued: usize,
}

impl Outbox {
    /// With room for so many events.
    pub fn new(events_queued: usize) -> Self {
        Self { waiting: Mutex::default(), told: Mutex::default(), notify: Notify::new(), events_queued }
    }

    fn put(&self, put: impl FnOnce(&mut Waiting)) {
        put(&mut self.waiting.lock().expect("no panic while this lock is held"));
        self.notify.notify_one();
    }

    /// Newest values of a device. True if one was overtaken before it was sent.
    pub fn live(&self, user: Uuid, device: Uuid, readings: &[LiveReading]) -> bool {
        let mut overtaken = false;
        self.put(|waiting| {
            let values = waiting.live.entry((user, device)).or_default();
            for reading in readings {
                overtaken |= values.insert(reading.reading_type.clone(), reading.clone()).is_some();
            }
        });
        overtaken
    }

    /// A stored mark.
    pub fn stored(&self, device: Uuid, epoch: u64, seq: i64) {
        self.put(|waiting| waiting.stored.put(device, epoch, seq));
    }

    /// An event. True if the oldest had to go.
    pub fn event(&self, event: Event) -> bool {
        let mut lost = false;
        self.put(|waiting| {
            if waiting.events.len() >= self.events_queued {
                waiting.events.pop_front();
                lost = true;
            }
            waiting.events.push_back(event);
        });
        lost
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("no panic while this lock is held")
    }

    /// A device's state, if it is news.
    pub fn device(&self, device: Device) {
        if self.told().devices.insert(device.id, device.clone()).as_ref() != Some(&device) {
            self.put(|waiting| {
                waiting.devices.insert(device.id, device);
            });
        }
    }

    /// A gateway's state, if it is news.
    pub fn gateway(&self, gateway: Gateway) {
        if self.told().gateways.insert(gateway.id, gateway.clone()).as_ref() != Some(&gateway) {
            self.put(|waiting| {
                waiting.gateways.insert(gateway.id, gateway);
            });
        }
    }

    /// That there are other alerts than before.
    pub fn alerts(&self) {
        self.put(|waiting| waiting.alerts = true);
    }

    /// Waits until there is something.
    pub async fn filled(&self) {
        self.notify.notified().await;
    }

    /// Takes all that waits. Values before the marks that say they are stored.
    pub fn take(&self) -> Vec<Message> {
        let waiting = std::mem::take(&mut *self.waiting.lock().expect("no panic while this lock is held"));
        let live = waiting.live.into_iter().map(|((user_id, device_id), values)| Message::Live {
            user_id,
            device_id,
            readings: values.into_values().collect(),
        });
        let of_device = |(device_id, marks): (Uuid, BTreeMap<u64, i64>)| {
            marks.into_iter().map(move |(epoch, seq)| Message::Stored {
                device_id,
                epoch: Epoch(epoch).to_string(),
                seq,
            })
        };
        let stored = waiting.stored.of.into_iter().flat_map(of_device);
        live.chain(stored)
            .chain(waiting.events.into_iter().map(Message::Event))
            .chain(waiting.gateways.into_values().map(Message::Gateway))
            .chain(waiting.devices.into_values().map(Message::Device))
            .chain(waiting.alerts.then_some(Message::Alerts))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::times::UtcMs;

    fn reading(value: f64) -> LiveReading {
        LiveReading {
            reading_type: "heart_rate".into(),
            value,
            unit: None,
            time_ms: 0,
            key: String::new(),
            stored: false,
        }
    }

    #[test]
    fn a_slow_client_finds_the_newest_value_and_not_every_value() {
        let outbox = Outbox::new(2);
        for n in 0..1000 {
            assert_eq!(outbox.live(Uuid::nil(), Uuid::nil(), &[reading(f64::from(n))]), n > 0);
            outbox.stored(Uuid::nil(), 7, i64::from(n));
        }
        outbox.stored(Uuid::nil(), 7, 3);
        let taken = outbox.take();
        assert_eq!(taken.len(), 2);
        assert!(
            matches!(&taken[0], Message::Live { readings, .. } if (readings[0].value - 999.0).abs() < 0.1)
        );
        assert!(matches!(&taken[1], Message::Stored { epoch, seq: 999, .. } if epoch == "0000000000000007"));
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn however_many_epochs_are_told_of_a_slow_client_has_so_many_marks_waiting() {
        let outbox = Outbox::new(2);
        for epoch in 0..100_000 {
            outbox.stored(Uuid::nil(), epoch, 5);
        }
        let taken = outbox.take();
        assert_eq!(taken.len(), MAX_STORED);
        assert!(
            matches!(taken.last(), Some(Message::Stored { epoch, .. }) if *epoch == Epoch(99_999).to_string())
        );
    }

    #[test]
    fn however_many_epochs_one_device_has_the_marks_of_the_others_wait_on() {
        let outbox = Outbox::new(2);
        // On both sides of it, in the order of their ids.
        let (before, crowded, behind) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        for device in [before, behind] {
            (0..3).for_each(|epoch| outbox.stored(device, epoch, 5));
        }
        (0..100_000).for_each(|epoch| outbox.stored(crowded, epoch, 5));
        let taken = outbox.take();
        let of = |device: Uuid| {
            let is_its = |message: &&Message| matches!(message, Message::Stored { device_id, .. } if *device_id == device);
            taken.iter().filter(is_its).count()
        };
        assert_eq!([before, crowded, behind].map(of), [3, MAX_STORED - 6, 3]);
    }

    #[test]
    fn a_slow_client_keeps_the_newest_events() {
        let outbox = Outbox::new(2);
        let event = |ms| Event {
            time: UtcMs(jiff::Timestamp::from_millisecond(ms).unwrap()),
            user_id: Uuid::nil(),
            device_id: Uuid::nil(),
            event_type: "hot_flash".into(),
            severity: None,
            confidence: None,
            data: serde_json::Value::Null,
            acknowledged_at: None,
        };
        assert_eq!([1, 2, 3].map(|ms| outbox.event(event(ms))), [false, false, true]);
        let times: Vec<i64> = outbox
            .take()
            .iter()
            .map(|message| match message {
                Message::Event(event) => event.time.ms(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(times, [2, 3]);
    }
}
