//! A bounded first-in first-out queue in place, because there is no allocator here.

/// At most `N` entries; [`push`](Self::push) says when one more does not fit.
#[derive(Debug)]
pub struct Queue<T, const N: usize> {
    slots: [Option<T>; N],
    first: usize,
    len: usize,
}

impl<T, const N: usize> Queue<T, N> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { slots: [const { None }; N], first: 0, len: 0 }
    }

    /// Entries in it.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether one more would not fit.
    pub const fn is_full(&self) -> bool {
        self.len == N
    }

    /// Appends, or gives the entry back when the queue is full.
    pub fn push(&mut self, entry: T) -> Result<(), T> {
        if self.is_full() {
            return Err(entry);
        }
        self.slots[(self.first + self.len) % N] = Some(entry);
        self.len += 1;
        Ok(())
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let entry = self.slots[self.first].take();
        self.first = (self.first + 1) % N;
        self.len -= 1;
        entry
    }

    /// The entries, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len).filter_map(|place| self.slots[(self.first + place) % N].as_ref())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        while self.pop().is_some() {}
    }
}

impl<T, const N: usize> Default for Queue<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;

    #[test]
    fn entries_leave_in_the_order_they_came_and_one_too_many_is_given_back() {
        let mut queue = Queue::<u8, 3>::new();
        for round in 0..5 {
            assert_eq!([queue.push(round), queue.push(round + 1), queue.push(round + 2)], [Ok(()); 3]);
            assert_eq!(queue.push(9), Err(9));
            assert!(queue.iter().eq(&[round, round + 1, round + 2]));
            assert_eq!(
                [queue.pop(), queue.pop(), queue.pop()],
                [Some(round), Some(round + 1), Some(round + 2)]
            );
            assert_eq!(queue.pop(), None);
        }
    }
}
