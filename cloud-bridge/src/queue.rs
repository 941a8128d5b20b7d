//! What waits to be written.
//!
//! The promise: memory is bounded (bytes in all, and a share of them for each clinic), clinics take turns whatever
//! each of them sends, and so do a clinic's gateways; a gateway's events go before its batches. What finds no room is sent
//! back for later: the gateway is the store.
//!
//! Writers share the queue. A gateway's batches touch the same rows of the ledger, so it is one writer's while that writer
//! has a batch of it in hand, and writers do not wait for each other's locks. Nobody holds more than an equal part of the
//! gateways that have something to be written: whoever comes first leaves work for the others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use kinara_ingest::Name;
use tokio::sync::Notify;
use uuid::Uuid;

/// A payload as published.
#[derive(Debug, Clone)]
pub struct Item {
    /// Who published it, by its topic.
    pub gateway: Uuid,
    /// What its user properties call it.
    pub name: Option<Name>,
    /// An event batch.
    pub event: bool,
    /// The payload.
    pub payload: Bytes,
    /// When it came.
    pub arrived: Instant,
    /// What its user properties say of its trace.
    pub traceparent: Option<String>,
}

/// A writer, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterId(pub usize);

#[derive(Debug, Default)]
struct Inner {
    clinics: HashMap<Uuid, Clinic>,
    /// Clinics with something that waits, in their order.
    turns: VecDeque<Uuid>,
    /// Gateways that a writer has in hand.
    held: HashMap<Uuid, WriterId>,
    bytes: usize,
    length: usize,
}

#[derive(Debug, Default)]
struct Clinic {
    gateways: HashMap<Uuid, Lane>,
    /// Gateways with something that waits, in their order.
    turns: VecDeque<Uuid>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    events: VecDeque<Item>,
    batches: VecDeque<Item>,
}

impl Inner {
    /// Takes what this writer may take next, of the first clinic in turn that has such.
    fn take(&mut self, writer: WriterId, writers: usize) -> Option<Item> {
        let waiting = self.clinics.values().flat_map(|clinic| clinic.gateways.keys());
        let unheld = waiting.filter(|gateway| !self.held.contains_key(gateway)).count();
        let most = (unheld + self.held.len()).div_ceil(writers);
        let has_room = self.held.values().filter(|holder| **holder == writer).count() < most;
        let held = &self.held;
        let may = |gateway: &Uuid| held.get(gateway).map_or(has_room, |holder| *holder == writer);
        let is_mine = |gateway: &Uuid| held.contains_key(gateway);
        let (place, tenant, gateway) = self.turns.iter().enumerate().find_map(|(place, tenant)| {
            let turns = &self.clinics.get(tenant)?.turns;
            // What it has in hand first: the fewer gateways it holds, the more are left to others.
            let mine = turns.iter().find(|gateway| is_mine(gateway) && may(gateway));
            let gateway = mine.or_else(|| turns.iter().find(|gateway| may(gateway)))?;
            Some((place, *tenant, *gateway))
        })?;
        self.turns.remove(place);
        let clinic = self.clinics.get_mut(&tenant)?;
        clinic.turns.retain(|other| *other != gateway);
        let lane = clinic.gateways.get_mut(&gateway)?;
        let item = lane.events.pop_front().or_else(|| lane.batches.pop_front())?;
        let rest = !lane.events.is_empty() || !lane.batches.is_empty();
        if rest {
            clinic.turns.push_back(gateway);
        } else {
            clinic.gateways.remove(&gateway);
        }
        clinic.bytes -= item.payload.len();
        if clinic.gateways.is_empty() {
            self.clinics.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        self.held.insert(gateway, writer);
        self.bytes -= item.payload.len();
        self.length -= 1;
        Some(item)
    }
}

/// A queue with a lane for each gateway of each clinic.
#[derive(Debug, Clone)]
pub struct Queue {
    inner: Arc<Mutex<Inner>>,
    filled: Arc<Notify>,
    most: usize,
    share: usize,
    writers: usize,
}

impl Queue {
    /// A queue of at most `most` bytes, of which a clinic gets `percent`, for so many writers.
    pub fn new(most: usize, percent: usize, writers: usize) -> Self {
        let filled = Arc::new(Notify::new());
        Self { inner: Arc::default(), filled, most, share: most / 100 * percent, writers: writers.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an item into its gateway's lane, or gives it back.
    pub fn push(&self, tenant: Uuid, item: Item) -> Result<(), Box<Item>> {
        {
            let mut inner = self.lock();
            let len = item.payload.len();
            let held = inner.clinics.get(&tenant).map_or(0, |clinic| clinic.bytes);
            if inner.bytes + len > self.most || held + len > self.share {
                return Err(Box::new(item));
            }
            inner.bytes += len;
            inner.length += 1;
            if !inner.clinics.contains_key(&tenant) {
                inner.turns.push_back(tenant);
            }
            let clinic = inner.clinics.entry(tenant).or_default();
            clinic.bytes += len;
            if !clinic.gateways.contains_key(&item.gateway) {
                clinic.turns.push_back(item.gateway);
            }
            let lane = clinic.gateways.entry(item.gateway).or_default();
            if item.event { lane.events.push_back(item) } else { lane.batches.push_back(item) }
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the next item that this writer may have, if there is one. Its gateway is the writer's until
    /// [`Queue::release`].
    pub fn pop(&self, writer: WriterId) -> Option<Item> {
        self.lock().take(writer, self.writers)
    }

    /// Waits for the next item that this writer may have.
    pub async fn next(&self, writer: WriterId) -> Item {
        loop {
            let filled = self.filled.notified();
            if let Some(item) = self.pop(writer) {
                return item;
            }
            filled.await;
        }
    }

    /// The writer has nothing in hand any more.
    pub fn release(&self, writer: WriterId) {
        self.lock().held.retain(|_, holder| *holder != writer);
        self.filled.notify_waiters();
    }

    /// Bytes and items that wait.
    pub fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.bytes, inner.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WriterId = WriterId(0);
    const TWO: WriterId = WriterId(1);

    fn item(gateway: u128, event: bool, len: usize) -> Item {
        let (gateway, payload) = (Uuid::from_u128(gateway), Bytes::from(vec![0; len]));
        Item { gateway, name: None, event, payload, arrived: Instant::now(), traceparent: None }
    }

    fn gateways(queue: &Queue, writer: WriterId, most: usize) -> Vec<u128> {
        let items = std::iter::from_fn(|| queue.pop(writer)).take(most);
        items.map(|item| item.gateway.as_u128()).collect()
    }

    #[test]
    fn clinics_take_turns_and_events_go_first() {
        let queue = Queue::new(1_000_000, 50, 1);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for _ in 0..3 {
            queue.push(one, item(1, false, 10)).unwrap();
        }
        queue.push(two, item(2, false, 10)).unwrap();
        queue.push(one, item(1, true, 10)).unwrap();
        let order: Vec<(u128, bool)> =
            std::iter::from_fn(|| queue.pop(ONE)).map(|item| (item.gateway.as_u128(), item.event)).collect();
        assert_eq!(order, [(1, true), (2, false), (1, false), (1, false), (1, false)]);
        assert_eq!(queue.load(), (0, 0));
    }

    #[test]
    fn a_clinic_never_takes_more_than_its_share() {
        let queue = Queue::new(1_000, 50, 1);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        queue.push(one, item(1, false, 400)).unwrap();
        queue.push(one, item(1, false, 200)).unwrap_err();
        queue.push(two, item(2, false, 500)).unwrap();
        queue.push(two, item(2, false, 1)).unwrap_err();
        assert_eq!(queue.load(), (900, 2));
    }

    #[test]
    fn a_gateway_is_one_writers_until_that_one_has_written() {
        let queue = Queue::new(1_000_000, 100, 2);
        let clinic = Uuid::from_u128(1);
        for _ in 0..2 {
            queue.push(clinic, item(1, false, 10)).unwrap();
        }
        assert_eq!(gateways(&queue, ONE, 1), [1]);
        assert_eq!(gateways(&queue, TWO, 1), []);
        queue.release(ONE);
        assert_eq!(gateways(&queue, TWO, 1), [1]);
        queue.push(clinic, item(1, false, 10)).unwrap();
        assert_eq!(gateways(&queue, ONE, 1), []);
    }

    #[test]
    fn whoever_comes_first_leaves_an_equal_part_whether_of_one_clinic_or_of_many() {
        for clinics in [1, 20] {
            let queue = Queue::new(1_000_000, 100, 2);
            for round in 0..40u128 {
                let gateway = round % 20;
                queue.push(Uuid::from_u128(gateway % clinics), item(gateway, false, 10)).unwrap();
            }
            let first = gateways(&queue, ONE, 100);
            let second = gateways(&queue, TWO, 100);
            assert_eq!((first.len(), second.len()), (20, 20), "{clinics} clinics");
            assert!(first.iter().all(|gateway| !second.contains(gateway)));
            assert_eq!(queue.load(), (0, 0));
        }
    }

    #[tokio::test]
    async fn a_writer_that_waits_hears_when_another_one_is_done() {
        let queue = Queue::new(1_000_000, 100, 2);
        for _ in 0..2 {
            queue.push(Uuid::from_u128(1), item(1, false, 10)).unwrap();
        }
        queue.next(ONE).await;
        let waiting = queue.clone();
        let second = tokio::spawn(async move { waiting.next(TWO).await.gateway });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        queue.release(ONE);
        let got = tokio::time::timeout(std::time::Duration::from_secs(5), second).await.unwrap().unwrap();
        assert_eq!(got, Uuid::from_u128(1));
    }
}
