//! What waits to be written.
//!
//! The promise: memory is bounded (bytes in all, and a share of them for each clinic), clinics take turns whatever
//! each of them sends, and so do a clinic's gateways; a gateway's events go before its batches. What finds no room is sent
//! back for later: the gateway is the store.
//!
//! Whoever waits with less than an equal part (of what there is, divided by the clinics that wait and one more) finds
//! room: the newest of whoever has most is sent back for it. So there is always room for one more clinic, however many
//! of them send whatever they have. A clinic's gateways divide its part in the same way. Gateways that are not enrolled
//! are one clinic, with a small part.
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

/// What an item takes beside its payload, about: without it an empty one would take no room.
const ITEM: usize = 512;

impl Item {
    fn weight(&self) -> usize {
        self.payload.len() + ITEM
    }
}

/// The clinic of gateways that are not enrolled.
const STRANGERS: Uuid = Uuid::nil();
/// They share this part of all that may wait.
const STRANGERS_PART: usize = 32;

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
    bytes: usize,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.batches.is_empty()
    }
}

impl Clinic {
    /// Of its gateways, the one with most.
    fn fullest(&self) -> Option<(Uuid, usize)> {
        let most = self.gateways.iter().max_by_key(|(gateway, lane)| (lane.bytes, **gateway))?;
        Some((*most.0, most.1.bytes))
    }
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
        self.turns.push_back(tenant);
        let turns = &mut self.clinics.get_mut(&tenant)?.turns;
        turns.retain(|other| *other != gateway);
        turns.push_back(gateway);
        let item = self
            .remove(tenant, gateway, |lane| lane.events.pop_front().or_else(|| lane.batches.pop_front()))?;
        self.held.insert(gateway, writer);
        Some(item)
    }

    fn put(&mut self, tenant: Uuid, item: Item) {
        let len = item.weight();
        self.bytes += len;
        self.length += 1;
        if !self.clinics.contains_key(&tenant) {
            self.turns.push_back(tenant);
        }
        let clinic = self.clinics.entry(tenant).or_default();
        clinic.bytes += len;
        if !clinic.gateways.contains_key(&item.gateway) {
            clinic.turns.push_back(item.gateway);
        }
        let lane = clinic.gateways.entry(item.gateway).or_default();
        lane.bytes += len;
        if item.event { lane.events.push_back(item) } else { lane.batches.push_back(item) }
    }

    /// Takes one item of a gateway out.
    fn remove(
        &mut self,
        tenant: Uuid,
        gateway: Uuid,
        which: impl FnOnce(&mut Lane) -> Option<Item>,
    ) -> Option<Item> {
        let clinic = self.clinics.get_mut(&tenant)?;
        let lane = clinic.gateways.get_mut(&gateway)?;
        let item = which(lane)?;
        let len = item.weight();
        lane.bytes -= len;
        clinic.bytes -= len;
        self.bytes -= len;
        self.length -= 1;
        if lane.is_empty() {
            clinic.gateways.remove(&gateway);
            clinic.turns.retain(|other| *other != gateway);
        }
        if clinic.gateways.is_empty() {
            self.clinics.remove(&tenant);
            self.turns.retain(|other| *other != tenant);
        }
        Some(item)
    }

    /// Takes a clinic's newest out, of its gateway that has most.
    fn newest(&mut self, tenant: Uuid) -> Option<Item> {
        let (gateway, _) = self.clinics.get(&tenant)?.fullest()?;
        self.remove(tenant, gateway, |lane| lane.batches.pop_back().or_else(|| lane.events.pop_back()))
    }

    /// Of the clinics, the one with most.
    fn fullest(&self) -> Option<Uuid> {
        let most = self.clinics.iter().max_by_key(|(tenant, clinic)| (clinic.bytes, **tenant))?;
        Some(*most.0)
    }

    /// How many clinics wait, this one counted.
    fn waiting_with(&self, tenant: Uuid) -> usize {
        self.clinics.len() + usize::from(!self.clinics.contains_key(&tenant))
    }

    /// Makes room for so many bytes of a gateway; gives what is sent back for it, or in vain.
    fn make_room(
        &mut self,
        (tenant, gateway): (Uuid, Uuid),
        len: usize,
        part: usize,
        most: usize,
    ) -> Result<Vec<Item>, Vec<Item>> {
        let mut back = Vec::new();
        if let Some(clinic) = self.clinics.get(&tenant) {
            let waiting = clinic.gateways.len() + usize::from(!clinic.gateways.contains_key(&gateway));
            let own = clinic.gateways.get(&gateway).map_or(0, |lane| lane.bytes);
            // One item may always wait: a part may be smaller than that.
            if own > 0 && own + len > part / (waiting + 1) {
                return Err(back);
            }
            while let Some(clinic) = self.clinics.get(&tenant)
                && clinic.bytes + len > part
                && clinic.fullest().is_some_and(|(_, bytes)| bytes > own)
            {
                back.extend(self.newest(tenant));
            }
            if self.clinics.get(&tenant).is_some_and(|clinic| clinic.bytes > 0 && clinic.bytes + len > part) {
                return Err(back);
            }
        }
        while self.bytes + len > most {
            match self.fullest() {
                Some(fullest) if fullest != tenant => back.extend(self.newest(fullest)),
                _ => return Err(back),
            }
        }
        Ok(back)
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

    /// Puts an item into its gateway's lane; gives back what has to come again later for it, or itself. No clinic: the
    /// gateway is not enrolled.
    pub fn push(&self, tenant: Option<Uuid>, item: Item) -> Vec<Item> {
        let back = {
            let mut inner = self.lock();
            let key = tenant.unwrap_or(STRANGERS);
            let part = match tenant {
                Some(_) => self.share.min(self.most / (inner.waiting_with(key) + 1)),
                None => self.most / STRANGERS_PART,
            };
            let len = item.weight();
            match inner.make_room((key, item.gateway), len, part, self.most) {
                Err(mut back) => {
                    back.push(item);
                    return back;
                }
                Ok(back) => {
                    inner.put(key, item);
                    back
                }
            }
        };
        self.filled.notify_one();
        back
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

    /// The writer has nothing in hand any more but of some gateways.
    pub fn release(&self, writer: WriterId, but: impl Fn(&Uuid) -> bool) {
        self.lock().held.retain(|gateway, holder| *holder != writer || but(gateway));
        self.filled.notify_waiters();
    }

    /// What a writer has in hand is given back when this is dropped, however the writer ends.
    pub fn hold(&self, writer: WriterId) -> Hold {
        Hold { queue: self.clone(), writer }
    }

    /// Bytes and items that wait.
    pub fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.bytes, inner.length)
    }
}

/// See [`Queue::hold`].
#[derive(Debug)]
pub struct Hold {
    queue: Queue,
    writer: WriterId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.queue.release(self.writer, |_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WriterId = WriterId(0);
    const TWO: WriterId = WriterId(1);

    /// Sizes here are in items without a payload.
    fn queue(most: usize, percent: usize, writers: usize) -> Queue {
        Queue::new(most * ITEM, percent, writers)
    }

    fn item(gateway: u128, event: bool, len: usize) -> Item {
        let (gateway, payload) = (Uuid::from_u128(gateway), Bytes::from(vec![0; len * ITEM - ITEM]));
        Item { gateway, name: None, event, payload, arrived: Instant::now(), traceparent: None }
    }

    fn gateways(queue: &Queue, writer: WriterId, most: usize) -> Vec<u128> {
        let items = std::iter::from_fn(|| queue.pop(writer)).take(most);
        items.map(|item| item.gateway.as_u128()).collect()
    }

    #[test]
    fn clinics_take_turns_and_events_go_first() {
        let queue = queue(1_000, 50, 1);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for _ in 0..3 {
            assert!(queue.push(Some(one), item(1, false, 10)).is_empty());
        }
        assert!(queue.push(Some(two), item(2, false, 10)).is_empty());
        assert!(queue.push(Some(one), item(1, true, 10)).is_empty());
        let order: Vec<(u128, bool)> =
            std::iter::from_fn(|| queue.pop(ONE)).map(|item| (item.gateway.as_u128(), item.event)).collect();
        assert_eq!(order, [(1, true), (2, false), (1, false), (1, false), (1, false)]);
        assert_eq!(queue.load(), (0, 0));
    }

    /// Sends until it is told to come later; gives the bytes that then wait of it.
    fn flood(queue: &Queue, clinic: Option<u128>, gateway: u128, len: usize) -> usize {
        let clinic = clinic.map(Uuid::from_u128);
        for _ in 0..10_000 {
            let back = queue.push(clinic, item(gateway, false, len));
            if back.iter().any(|item| item.gateway.as_u128() == gateway) {
                break;
            }
        }
        let inner = queue.lock();
        inner.clinics.get(&clinic.unwrap_or(STRANGERS)).map_or(0, |clinic| clinic.bytes / ITEM)
    }

    #[test]
    fn however_many_clinics_flood_one_more_finds_its_part() {
        let queue = queue(1_000, 50, 2);
        for clinic in 1..=40u128 {
            assert!(flood(&queue, Some(clinic), clinic, 1) > 0, "{clinic}");
            assert!(queue.load().0 <= 1_000 * ITEM);
        }
        let late = Some(Uuid::from_u128(99));
        for _ in 0..5 {
            let back = queue.push(late, item(99, false, 1));
            assert!(back.iter().all(|item| item.gateway.as_u128() != 99));
        }
        assert!(queue.load().0 <= 1_000 * ITEM);
    }

    #[test]
    fn what_is_sent_back_for_others_is_the_newest_of_whoever_has_most() {
        let queue = queue(1_000, 50, 1);
        for len in [80, 81, 82] {
            assert!(queue.push(Some(Uuid::from_u128(1)), item(1, false, len)).is_empty());
        }
        assert!(queue.push(Some(Uuid::from_u128(2)), item(2, false, 300)).is_empty());
        assert!(queue.push(Some(Uuid::from_u128(3)), item(3, false, 250)).is_empty());
        let lens = |items: Vec<Item>| items.iter().map(|item| item.weight() / ITEM).collect::<Vec<_>>();
        assert_eq!(lens(queue.push(Some(Uuid::from_u128(4)), item(4, false, 190))), Vec::<usize>::new());
        for (clinic, back) in [(5, 300), (6, 250), (7, 82)] {
            assert_eq!(lens(queue.push(Some(Uuid::from_u128(clinic)), item(clinic, false, 190))), [back]);
        }
    }

    #[test]
    fn an_item_that_is_larger_than_a_part_waits_where_nothing_else_of_its_clinic_does() {
        let queue = queue(1_000, 50, 1);
        for clinic in 1..=20u128 {
            queue.push(Some(Uuid::from_u128(clinic)), item(clinic, false, 40));
        }
        let back = queue.push(Some(Uuid::from_u128(99)), item(99, false, 300));
        assert!(!back.is_empty() && back.iter().all(|item| item.gateway.as_u128() != 99));
        assert!(queue.load().0 <= 1_000 * ITEM);
    }

    #[test]
    fn gateways_that_are_not_enrolled_share_a_small_part_among_them_all() {
        let queue = queue(3_200, 50, 1);
        for stranger in 1..=20u128 {
            assert!(flood(&queue, None, 100 + stranger, 10) <= 100);
        }
        assert!(queue.load().0 <= 100 * ITEM);
        assert!(flood(&queue, Some(1), 1, 10) >= 500);
    }

    #[test]
    fn a_clinics_noisy_gateway_leaves_its_neighbour_a_part() {
        let queue = queue(1_000, 50, 1);
        let noisy = flood(&queue, Some(1), 1, 1);
        assert!((200..=250).contains(&noisy), "{noisy}");
        let other = (0..100).filter(|_| queue.push(Some(Uuid::from_u128(1)), item(2, false, 1)).is_empty());
        assert_eq!(other.count(), 100);
    }

    #[test]
    fn a_writer_that_ends_in_whatever_way_gives_its_gateways_back() {
        let queue = queue(1_000, 100, 2);
        for _ in 0..2 {
            queue.push(Some(Uuid::from_u128(1)), item(1, false, 10));
        }
        let hold = queue.hold(ONE);
        assert_eq!(gateways(&queue, ONE, 1), [1]);
        assert_eq!(gateways(&queue, TWO, 1), []);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _hold = hold;
            panic!("a writer's fault");
        }));
        assert!(panicked.is_err());
        assert_eq!(gateways(&queue, TWO, 1), [1]);
    }

    #[test]
    fn a_gateway_is_one_writers_until_that_one_has_written() {
        let queue = queue(1_000_000, 100, 2);
        let clinic = Uuid::from_u128(1);
        for _ in 0..2 {
            queue.push(Some(clinic), item(1, false, 10));
        }
        assert_eq!(gateways(&queue, ONE, 1), [1]);
        assert_eq!(gateways(&queue, TWO, 1), []);
        queue.release(ONE, |_| false);
        assert_eq!(gateways(&queue, TWO, 1), [1]);
        queue.push(Some(clinic), item(1, false, 10));
        assert_eq!(gateways(&queue, ONE, 1), []);
    }

    #[test]
    fn whoever_comes_first_leaves_an_equal_part_whether_of_one_clinic_or_of_many() {
        for clinics in [1, 20] {
            let queue = queue(1_000_000, 100, 2);
            for round in 0..40u128 {
                let gateway = round % 20;
                queue.push(Some(Uuid::from_u128(1 + gateway % clinics)), item(gateway, false, 10));
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
        let queue = queue(1_000_000, 100, 2);
        for _ in 0..2 {
            queue.push(Some(Uuid::from_u128(1)), item(1, false, 10));
        }
        queue.next(ONE).await;
        let waiting = queue.clone();
        let second = tokio::spawn(async move { waiting.next(TWO).await.gateway });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        queue.release(ONE, |_| false);
        let got = tokio::time::timeout(std::time::Duration::from_secs(5), second).await.unwrap().unwrap();
        assert_eq!(got, Uuid::from_u128(1));
    }
}
