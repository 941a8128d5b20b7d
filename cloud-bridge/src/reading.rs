//! Payloads of batches are read some at once: on a busy machine each change of threads waits for a processor.
//!
//! The promise: each of them is read by itself and within a time of its own. One at which the reader panics, or that takes too
//! long, costs no other its answer nor its place. What is large is read alone; and once what was read makes a transaction, nothing
//! more is, however few bytes it has: a few hundred may hold thousands of readings.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kinara_ingest::{Batch, Unreadable};
use tokio::time::Instant;

use crate::queue::Item;
use crate::trace::Way;

/// Batches that are read at once, and the bytes that their payloads have together.
const TOGETHER: usize = 16;
const TOGETHER_BYTES: usize = 64 * 1024;

/// Reads a payload until a moment.
pub type Decode = fn(&[u8], std::time::Instant) -> Result<Batch, Unreadable>;

/// A payload that was read, or why not; `None`: the reader panicked, which is the payload's doing.
pub(crate) struct Read {
    pub item: Item,
    pub way: Option<Way>,
    pub batch: Option<Result<Batch, Unreadable>>,
}

impl Read {
    /// Reads a payload until a moment, whatever its reader does.
    pub(crate) fn of(item: Item, way: Option<Way>, decode: Decode, limit: std::time::Instant) -> Self {
        let batch = catch_unwind(AssertUnwindSafe(|| decode(&item.payload, limit))).ok();
        Self { item, way, batch }
    }

    /// Work that it makes for a transaction, in readings.
    pub(crate) fn work(&self) -> usize {
        let Some(Ok(batch)) = &self.batch else { return 0 };
        batch.readings().max(batch.weight() / 2)
    }
}

/// A batch, and small ones behind it that are read along with it; and what was taken and does not go with them.
pub(crate) fn together(
    first: Item,
    mut next: impl FnMut() -> Option<Item>,
) -> (VecDeque<Item>, Option<Item>) {
    let mut bytes = first.payload.len();
    let mut items = VecDeque::from([first]);
    while items.len() < TOGETHER && bytes < TOGETHER_BYTES {
        let Some(item) = next() else { break };
        bytes += item.payload.len();
        if item.event || bytes > TOGETHER_BYTES {
            return (items, Some(item));
        }
        items.push_back(item);
    }
    (items, None)
}

/// Reads one, and the others until the time is over or there is no room for more work; gives also what is left.
pub(crate) fn read_some<T>(
    mut items: VecDeque<Item>,
    until: Instant,
    room: usize,
    read: impl Fn(Item) -> T,
    work: impl Fn(&T) -> usize,
) -> (Vec<T>, VecDeque<Item>) {
    let (mut done, mut worked) = (Vec::with_capacity(items.len()), 0);
    while done.is_empty() || (worked < room && Instant::now() < until) {
        let Some(item) = items.pop_front() else { break };
        done.push(read(item));
        worked += done.last().map_or(0, &work);
    }
    (done, items)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    /// An item that is known by its gateway, of so many bytes.
    fn item(number: usize, len: usize) -> Item {
        Item {
            gateway: Uuid::from_u128(number as u128),
            name: None,
            event: false,
            payload: Bytes::from(vec![0; len]),
            arrived: std::time::Instant::now(),
            traceparent: None,
        }
    }

    fn numbers<'a>(items: impl IntoIterator<Item = &'a Item>) -> Vec<usize> {
        items.into_iter().map(|item| item.gateway.as_u128() as usize).collect()
    }

    /// Turn by turn, what is read at once of items that wait.
    fn turns(items: Vec<Item>) -> Vec<Vec<Item>> {
        let mut waiting = VecDeque::from(items);
        let mut turns = Vec::new();
        while let Some(first) = waiting.pop_front() {
            let (turn, other) = together(first, || waiting.pop_front());
            if let Some(other) = other {
                waiting.push_front(other);
            }
            turns.push(turn.into());
        }
        turns
    }

    fn sizes(turns: &[Vec<Item>]) -> Vec<Vec<usize>> {
        turns.iter().map(|turn| turn.iter().map(|item| item.payload.len()).collect()).collect()
    }

    #[test]
    fn what_makes_a_transaction_is_read_and_no_more_and_the_first_in_any_case() {
        let until = Instant::now() + std::time::Duration::from_hours(1);
        for (room, read) in [(25, 3), (30, 3), (31, 4), (0, 1), (1_000, 16)] {
            let items = (0..16).map(|number| item(number, 10)).collect();
            let (done, left) = read_some(items, until, room, |item| item, |_| 10);
            assert_eq!(numbers(&done), (0..read).collect::<Vec<_>>());
            assert_eq!(numbers(&left), (read..16).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_more_than_sixteen_are_read_at_once() {
        let turns = turns((0..40).map(|number| item(number, 100)).collect());
        assert_eq!(turns.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16, 8]);
        assert_eq!(numbers(turns.iter().flatten()), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_read_at_once_has_no_more_bytes_than_are_allowed_and_a_large_one_is_read_alone() {
        const HALF: usize = TOGETHER_BYTES / 2;
        let lens =
            [10, HALF, HALF - 10, 1, HALF, HALF, 20, TOGETHER_BYTES, 30, 40, 9 * TOGETHER_BYTES, 50, 0];
        let items = lens.iter().enumerate().map(|(number, len)| item(number, *len)).collect();
        let expected: [&[usize]; 7] = [
            &[10, HALF, HALF - 10],
            &[1, HALF],
            &[HALF, 20],
            &[TOGETHER_BYTES],
            &[30, 40],
            &[9 * TOGETHER_BYTES],
            &[50, 0],
        ];
        assert_eq!(sizes(&turns(items)), expected);
    }

    #[test]
    fn whatever_waits_is_taken_in_its_order_within_the_bounds_and_an_event_is_never_read_with_batches() {
        // Sizes as they come: small, middling, large; every seventh is an event.
        let items: Vec<Item> = (0..2_000usize)
            .map(|number| {
                let size = number.wrapping_mul(7_919) % 97;
                let len = if size < 60 { size * 50 } else { size * size * 20 };
                Item { event: number % 7 == 6, ..item(number, len) }
            })
            .collect();
        let turns = turns(items);
        assert_eq!(numbers(turns.iter().flatten()), (0..2_000).collect::<Vec<_>>());
        for turn in turns.iter().filter(|turn| turn.len() > 1) {
            assert!(turn.len() <= TOGETHER);
            assert!(turn.iter().map(|item| item.payload.len()).sum::<usize>() <= TOGETHER_BYTES);
            assert!(turn.iter().skip(1).all(|item| !item.event));
        }
    }
}
