//! Who listens, by clinic; and the newest values, for who comes next.
//!
//! The promise: what is put in for one tenant reaches the clients of that tenant and nobody else. Values come from the
//! broker (the bridge has checked whose they are); everything else is a pointer from the database, read again inside a
//! transaction of the tenant it names.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kinara_clock::Clock;
use kinara_protocol::frame::Epoch;
use tokio::sync::Notify;
use uuid::Uuid;

use super::message::LiveReading;
use super::outbox::Outbox;
use crate::config::LiveConfig;
use crate::metrics::Metrics;

/// Series remembered for one tenant.
const MAX_NEWEST: usize = 20_000;
/// Stored marks remembered for one tenant.
const MAX_STORED: usize = 4_096;
/// How far a value's time may be ahead of ours, milliseconds: one that is farther would hide all that come after it.
const AHEAD_MS: i64 = 60_000;
/// Events looked up one by one; more are looked up as a period.
const MAX_EVENTS: usize = 64;

/// A newest value, and when it came (on the clock that never jumps).
#[derive(Debug, Clone)]
pub(crate) struct Newest {
    pub(crate) user: Uuid,
    pub(crate) device: Uuid,
    pub(crate) reading: LiveReading,
    at_us: i64,
}

#[derive(Debug, Default)]
struct Room {
    clients: HashMap<u64, Arc<Outbox>>,
    /// In the order of devices: one is found among however many.
    newest: BTreeMap<(Uuid, String), Newest>,
    stored: HashMap<(Uuid, u64), i64>,
}

/// What has to be read from the database again for a tenant's clients.
#[derive(Debug, Default, Clone)]
pub(crate) struct Dirty {
    /// Gateways and devices.
    pub(crate) state: bool,
    /// Alerts.
    pub(crate) alerts: bool,
    /// Events: whose, and onset.
    pub(crate) events: Vec<(Uuid, jiff::Timestamp)>,
    /// All events from here on.
    pub(crate) events_since: Option<jiff::Timestamp>,
}

/// The rooms.
#[derive(Debug)]
pub struct Hub {
    rooms: Mutex<HashMap<Uuid, Room>>,
    dirty: Mutex<HashMap<Uuid, Dirty>>,
    changed: Notify,
    next: AtomicU64,
    config: LiveConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// A place in a room, given up when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    hub: Arc<Hub>,
    tenant: Uuid,
    id: u64,
    pub(crate) outbox: Arc<Outbox>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(room) = self.hub.rooms().get_mut(&self.tenant) {
            room.clients.remove(&self.id);
        }
        self.hub.metrics.clients(-1);
    }
}

impl Hub {
    /// With nobody in it.
    pub fn new(config: LiveConfig, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self {
            rooms: Mutex::default(),
            dirty: Mutex::default(),
            changed: Notify::new(),
            next: AtomicU64::new(0),
            config,
            clock,
            metrics,
        }
    }

    fn rooms(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Room>> {
        self.rooms.lock().expect("no panic while this lock is held")
    }

    /// A seat for a client, if the clinic has one left.
    pub(crate) fn enter(self: &Arc<Self>, tenant: Uuid) -> Option<Seat> {
        let mut rooms = self.rooms();
        let room = rooms.entry(tenant).or_default();
        if room.clients.len() >= self.config.clients_per_tenant {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let outbox = Arc::new(Outbox::new(self.config.events_queued));
        room.clients.insert(id, outbox.clone());
        self.metrics.clients(1);
        Some(Seat { hub: self.clone(), tenant, id, outbox })
    }

    fn outboxes(&self, tenant: Uuid) -> Vec<Arc<Outbox>> {
        self.rooms().get(&tenant).map(|room| room.clients.values().cloned().collect()).unwrap_or_default()
    }

    /// Tenants with clients.
    pub(crate) fn watched(&self) -> Vec<Uuid> {
        self.rooms().iter().filter(|(_, room)| !room.clients.is_empty()).map(|(tenant, _)| *tenant).collect()
    }

    /// Newest values of a device. Each says epoch and seq beside what is sent.
    pub(crate) fn live(
        &self,
        tenant: Uuid,
        user: Uuid,
        device: Uuid,
        epoch: u64,
        readings: Vec<(i64, LiveReading)>,
    ) {
        let at_us = self.clock.boottime_us();
        let mut overtaken = 0;
        let mut rooms = self.rooms();
        let room = rooms.entry(tenant).or_default();
        let mark = room.stored.get(&(device, epoch)).copied();
        let latest_ms = self.clock.utc_us() / 1_000 + AHEAD_MS;
        let readings: Vec<LiveReading> = readings
            .into_iter()
            .filter(|(_, reading)| reading.time_ms <= latest_ms)
            .map(|(seq, reading)| LiveReading { stored: mark.is_some_and(|mark| seq <= mark), ..reading })
            .collect();
        if room.newest.len() > MAX_NEWEST {
            let oldest = at_us - self.config.newest_s as i64 * 1_000_000;
            room.newest.retain(|_, newest| newest.at_us > oldest);
        }
        if room.newest.len() <= MAX_NEWEST {
            for reading in &readings {
                let key = (device, reading.reading_type.clone());
                // A device that drains its log to one gateway and is live through another: the later sample is newer.
                let older = room.newest.get(&key).is_some_and(|old| old.reading.time_ms > reading.time_ms);
                if !older {
                    room.newest.insert(key, Newest { user, device, reading: reading.clone(), at_us });
                }
            }
        }
        for outbox in room.clients.values() {
            overtaken += u64::from(outbox.live(user, device, &readings));
        }
        drop(rooms);
        self.metrics.overtaken(overtaken);
    }

    /// Frames of a device are stored, up to this seq of this epoch.
    pub(crate) fn stored(&self, tenant: Uuid, device: Uuid, epoch: u64, seq: i64) {
        let mut rooms = self.rooms();
        let room = rooms.entry(tenant).or_default();
        if room.stored.len() > MAX_STORED {
            room.stored.clear();
        }
        let mark = room.stored.entry((device, epoch)).or_insert(seq);
        *mark = seq.max(*mark);
        let prefix = format!("{}:", Epoch(epoch));
        let of_device = room.newest.range_mut((device, String::new())..);
        for (_, newest) in of_device.take_while(|((of, _), _)| *of == device) {
            let key = newest.reading.key.strip_prefix(&prefix).and_then(|rest| rest.split_once(':'));
            if key.and_then(|(seq, _)| seq.parse().ok()).is_some_and(|of: i64| of <= seq) {
                newest.reading.stored = true;
            }
        }
        for outbox in room.clients.values() {
            outbox.stored(device, epoch, seq);
        }
    }

    /// The newest values that are still new.
    pub(crate) fn newest(&self, tenant: Uuid) -> Vec<Newest> {
        let oldest = self.clock.boottime_us() - self.config.newest_s as i64 * 1_000_000;
        self.rooms()
            .get(&tenant)
            .map(|room| room.newest.values().filter(|newest| newest.at_us > oldest).cloned().collect())
            .unwrap_or_default()
    }

    fn mark(&self, tenant: Uuid, mark: impl FnOnce(&mut Dirty)) {
        // Nobody looks: whoever comes reads all of it then.
        if self.rooms().get(&tenant).is_none_or(|room| room.clients.is_empty()) {
            return;
        }
        mark(self.dirty.lock().expect("no panic while this lock is held").entry(tenant).or_default());
        self.changed.notify_one();
    }

    /// A gateway's or device's state has changed.
    pub(crate) fn state_changed(&self, tenant: Uuid) {
        self.mark(tenant, |dirty| dirty.state = true);
    }

    /// There are other alerts than before.
    pub(crate) fn alerts_changed(&self, tenant: Uuid) {
        self.mark(tenant, |dirty| dirty.alerts = true);
    }

    /// There is an event.
    pub(crate) fn event_changed(&self, tenant: Uuid, user: Uuid, time: jiff::Timestamp) {
        self.mark(tenant, |dirty| {
            if dirty.events.len() < MAX_EVENTS {
                dirty.events.push((user, time));
            } else {
                dirty.events_since = Some(dirty.events_since.map_or(time, |since| since.min(time)));
            }
        });
    }

    /// Events of a tenant have to be read again from there on.
    pub(crate) fn events_since(&self, tenant: Uuid, time: jiff::Timestamp) {
        self.mark(tenant, |dirty| {
            dirty.events_since = Some(dirty.events_since.map_or(time, |since| since.min(time)));
        });
    }

    /// Something may have been missed since then: read all of it again for everyone who looks.
    pub(crate) fn missed(&self, since: jiff::Timestamp) {
        for tenant in self.watched() {
            self.mark(tenant, |dirty| {
                dirty.state = true;
                dirty.alerts = true;
                dirty.events_since = Some(dirty.events_since.map_or(since, |old| old.min(since)));
            });
        }
    }

    /// Waits until something has to be read again, and takes it.
    pub(crate) async fn dirty(&self) -> HashMap<Uuid, Dirty> {
        loop {
            let dirty = std::mem::take(&mut *self.dirty.lock().expect("no panic while this lock is held"));
            if !dirty.is_empty() {
                return dirty;
            }
            self.changed.notified().await;
        }
    }

    /// Gives something to every client of a tenant.
    pub(crate) fn each(&self, tenant: Uuid, mut give: impl FnMut(&Outbox)) {
        for outbox in self.outboxes(tenant) {
            give(&outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use kinara_clock::ManualClock;

    use super::*;

    const CLINIC: Uuid = Uuid::from_u128(1);
    const NOW_MS: i64 = 1_780_000_000_000;

    fn hub() -> Hub {
        let clock = Arc::new(ManualClock::new(NOW_MS * 1_000, 0));
        Hub::new(LiveConfig::default(), clock, Arc::new(Metrics::default()))
    }

    fn reading(kind: u64, time_ms: i64) -> (i64, LiveReading) {
        let reading = LiveReading {
            reading_type: format!("kind_{kind}"),
            value: 1.0,
            unit: None,
            time_ms,
            key: format!("{}:5:0", Epoch(7)),
            stored: false,
        };
        (5, reading)
    }

    #[test]
    fn that_frames_of_one_device_are_stored_costs_nothing_for_the_thousands_of_others() {
        let hub = hub();
        for device in 0..2_000 {
            let readings = (0..9).map(|kind| reading(kind, NOW_MS)).collect();
            hub.live(CLINIC, Uuid::nil(), Uuid::from_u128(device), 7, readings);
        }
        let began = Instant::now();
        for seq in 0..50_000 {
            hub.stored(CLINIC, Uuid::from_u128(1_234), 7, seq);
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let stored = hub.newest(CLINIC).into_iter().filter(|newest| newest.reading.stored);
        assert_eq!(stored.map(|newest| newest.device).collect::<Vec<_>>(), [Uuid::from_u128(1_234); 9]);
    }

    #[test]
    fn a_value_from_the_future_hides_none_that_come_after_it() {
        let hub = hub();
        let device = Uuid::from_u128(5);
        hub.live(CLINIC, Uuid::nil(), device, 7, vec![reading(0, i64::MAX / 1_000)]);
        hub.live(CLINIC, Uuid::nil(), device, 7, vec![reading(0, NOW_MS)]);
        assert_eq!(
            hub.newest(CLINIC).iter().map(|newest| newest.reading.time_ms).collect::<Vec<_>>(),
            [NOW_MS]
        );
    }
}
