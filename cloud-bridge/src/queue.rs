//! What waits to be written.
//!
//! The promise: memory is bounded (bytes in all, and a share of them for each clinic), clinics take turns whatever
//! each of them sends, and a gateway's events go before its batches. What finds no room is sent back for later: the
//! gateway is the store.

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

#[derive(Debug, Default)]
struct Inner {
    lanes: HashMap<Uuid, Lane>,
    turns: VecDeque<Uuid>,
    bytes: usize,
    length: usize,
}

#[derive(Debug, Default)]
struct Lane {
    events: VecDeque<Item>,
    batches: VecDeque<Item>,
    bytes: usize,
}

/// A queue with a lane for each clinic.
#[derive(Debug, Clone)]
pub struct Queue {
    inner: Arc<Mutex<Inner>>,
    filled: Arc<Notify>,
    most: usize,
    share: usize,
}

impl Queue {
    /// A queue of at most `most` bytes, of which a clinic gets `percent`.
    pub fn new(most: usize, percent: usize) -> Self {
        Self { inner: Arc::default(), filled: Arc::new(Notify::new()), most, share: most / 100 * percent }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an item into a clinic's lane, or gives it back.
    pub fn push(&self, tenant: Uuid, item: Item) -> Result<(), Item> {
        {
            let mut inner = self.lock();
            let len = item.payload.len();
            let held = inner.lanes.get(&tenant).map_or(0, |lane| lane.bytes);
            if inner.bytes + len > self.most || held + len > self.share {
                return Err(item);
            }
            inner.bytes += len;
            inner.length += 1;
            if !inner.lanes.contains_key(&tenant) {
                inner.turns.push_back(tenant);
            }
            let lane = inner.lanes.entry(tenant).or_default();
            lane.bytes += len;
            if item.event { lane.events.push_back(item) } else { lane.batches.push_back(item) }
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the next item, if there is one.
    pub fn pop(&self) -> Option<Item> {
        let mut inner = self.lock();
        let tenant = inner.turns.pop_front()?;
        let lane = inner.lanes.get_mut(&tenant)?;
        let item = lane.events.pop_front().or_else(|| lane.batches.pop_front())?;
        lane.bytes -= item.payload.len();
        if lane.events.is_empty() && lane.batches.is_empty() {
            inner.lanes.remove(&tenant);
        } else {
            inner.turns.push_back(tenant);
        }
        inner.bytes -= item.payload.len();
        inner.length -= 1;
        Some(item)
    }

    /// Waits for the next item.
    pub async fn next(&self) -> Item {
        loop {
            let filled = self.filled.notified();
            if let Some(item) = self.pop() {
                return item;
            }
            filled.await;
        }
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

    fn item(gateway: u128, event: bool, len: usize) -> Item {
        let (gateway, payload) = (Uuid::from_u128(gateway), Bytes::from(vec![0; len]));
        Item { gateway, name: None, event, payload, arrived: Instant::now(), traceparent: None }
    }

    #[test]
    fn clinics_take_turns_and_events_go_first() {
        let queue = Queue::new(1_000_000, 50);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for _ in 0..3 {
            queue.push(one, item(1, false, 10)).unwrap();
        }
        queue.push(two, item(2, false, 10)).unwrap();
        queue.push(one, item(1, true, 10)).unwrap();
        let order: Vec<(u128, bool)> =
            std::iter::from_fn(|| queue.pop()).map(|item| (item.gateway.as_u128(), item.event)).collect();
        assert_eq!(order, [(1, true), (2, false), (1, false), (1, false), (1, false)]);
        assert_eq!(queue.load(), (0, 0));
    }

    #[test]
    fn a_clinic_never_takes_more_than_its_share() {
        let queue = Queue::new(1_000, 50);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        queue.push(one, item(1, false, 400)).unwrap();
        queue.push(one, item(1, false, 200)).unwrap_err();
        queue.push(two, item(2, false, 500)).unwrap();
        queue.push(two, item(2, false, 1)).unwrap_err();
        assert_eq!(queue.load(), (900, 2));
    }
}
