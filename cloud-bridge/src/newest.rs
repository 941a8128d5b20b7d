//! What gateways say of themselves and show: only the newest is of interest.
//!
//! The promise: memory is bounded in bytes, whatever comes; each gateway has places of its own, where what is new pushes
//! out what is old; gateways take turns. So nobody who floods has others' states dropped. Gateways that are not enrolled
//! share a small part.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

/// What a message takes beside its bytes, about.
const ITEM: usize = 512;
/// Gateways that are not enrolled share this part of all bytes.
const STRANGERS_PART: usize = 32;

/// Waiting messages, each with its size, by gateway.
#[derive(Debug)]
pub struct Newest<T> {
    inner: Arc<Mutex<Inner<T>>>,
    filled: Arc<Notify>,
    places: usize,
    most: usize,
}

impl<T> Clone for Newest<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            filled: Arc::clone(&self.filled),
            places: self.places,
            most: self.most,
        }
    }
}

#[derive(Debug)]
struct Inner<T> {
    lanes: HashMap<Uuid, Lane<T>>,
    /// Gateways with something that waits, in their order.
    turns: VecDeque<Uuid>,
    bytes: usize,
    /// Of these, of gateways that are not enrolled.
    strange: usize,
}

#[derive(Debug)]
struct Lane<T> {
    is_enrolled: bool,
    items: VecDeque<(usize, T)>,
}

impl<T> Newest<T> {
    /// So many places for each gateway, and so many bytes in all.
    pub fn new(places: usize, most: usize) -> Self {
        let inner = Inner { lanes: HashMap::new(), turns: VecDeque::new(), bytes: 0, strange: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), filled: Arc::default(), places: places.max(1), most }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message of so many bytes into its gateway's places. False: it was dropped, there is no room for it.
    pub fn push(&self, gateway: Uuid, is_enrolled: bool, bytes: usize, item: T) -> bool {
        let sized = (bytes + ITEM, item);
        let taken = self.lock().put(gateway, is_enrolled, sized, self.places, self.most);
        self.filled.notify_one();
        taken
    }

    /// The oldest message of the gateway whose turn it is.
    pub async fn next(&self) -> (Uuid, T) {
        loop {
            let filled = self.filled.notified();
            if let Some(found) = self.lock().take() {
                return found;
            }
            filled.await;
        }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

impl<T> Inner<T> {
    fn put(
        &mut self,
        gateway: Uuid,
        is_enrolled: bool,
        (bytes, item): (usize, T),
        places: usize,
        most: usize,
    ) -> bool {
        while self.lanes.get(&gateway).is_some_and(|lane| lane.items.len() >= places) {
            self.drop_oldest(gateway);
        }
        let room = if is_enrolled {
            most - self.bytes.min(most)
        } else {
            (most / STRANGERS_PART).saturating_sub(self.strange)
        };
        if bytes > room || self.bytes + bytes > most {
            return false;
        }
        if !self.lanes.contains_key(&gateway) {
            self.turns.push_back(gateway);
            self.lanes.insert(gateway, Lane { is_enrolled, items: VecDeque::new() });
        }
        let Some(lane) = self.lanes.get_mut(&gateway) else { return false };
        lane.items.push_back((bytes, item));
        self.bytes += bytes;
        if !lane.is_enrolled {
            self.strange += bytes;
        }
        true
    }

    fn drop_oldest(&mut self, gateway: Uuid) -> Option<T> {
        let lane = self.lanes.get_mut(&gateway)?;
        let is_enrolled = lane.is_enrolled;
        let found = lane.items.pop_front();
        if lane.items.is_empty() {
            self.lanes.remove(&gateway);
            self.turns.retain(|other| *other != gateway);
        }
        let (bytes, item) = found?;
        self.bytes -= bytes;
        if !is_enrolled {
            self.strange -= bytes;
        }
        Some(item)
    }

    fn take(&mut self) -> Option<(Uuid, T)> {
        let gateway = self.turns.pop_front()?;
        self.turns.push_back(gateway);
        Some((gateway, self.drop_oldest(gateway)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: Uuid = Uuid::from_u128(1);
    const QUIET: Uuid = Uuid::from_u128(2);

    fn all(newest: &Newest<u32>) -> Vec<(u128, u32)> {
        std::iter::from_fn(|| newest.lock().take()).map(|(gateway, item)| (gateway.as_u128(), item)).collect()
    }

    #[test]
    fn a_flood_pushes_out_its_own_and_leaves_the_others_theirs() {
        let newest = Newest::new(1, 3 * ITEM);
        assert!(newest.push(QUIET, true, 10, 7));
        for n in 0..10_000 {
            newest.push(NOISY, true, 100, n);
            assert!(newest.bytes() <= 110 + 2 * ITEM);
        }
        assert_eq!(all(&newest), [(2, 7), (1, 9_999)]);
        assert_eq!(newest.bytes(), 0);
    }

    #[test]
    fn gateways_take_turns_and_each_ones_come_in_their_order() {
        let newest = Newest::new(3, 10 * ITEM);
        for n in 0..5 {
            newest.push(NOISY, true, 10, n);
        }
        newest.push(QUIET, true, 10, 7);
        assert_eq!(all(&newest), [(1, 2), (2, 7), (1, 3), (1, 4)]);
    }

    #[test]
    fn bytes_are_bounded_and_strangers_have_a_small_part_of_them() {
        let newest = Newest::new(1, 320 * ITEM);
        let strange = (100..200).filter(|n| newest.push(Uuid::from_u128(*n), false, 0, 0)).count();
        assert_eq!(strange, 10);
        let enrolled = (200..900).filter(|n| newest.push(Uuid::from_u128(*n), true, 0, 0)).count();
        assert_eq!((enrolled, newest.bytes()), (310, 320 * ITEM));
    }
}
