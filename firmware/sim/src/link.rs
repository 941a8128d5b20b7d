//! The link: who has it, what goes over it, and the faults that a test asks for.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use kinara_virtual_radio::{Characteristic, FromWearable, ToWearable};

use crate::air::Outbox;

/// Messages held during a stall; one more loses the link, as a supervision timeout does.
const MAX_HELD: usize = 256;
/// How long notifications wait for others to be shuffled with.
const SHUFFLE_PATIENCE: Duration = Duration::from_secs(1);

/// The one link.
#[derive(Debug)]
pub struct Link {
    /// Its connection.
    pub connection: u64,
    /// The gateway's name.
    pub gateway: String,
    /// Paired, or connected with a bond.
    pub authenticated: bool,
    outbox: Outbox,
    held: VecDeque<ToWearable>,
}

impl Link {
    /// A link that has just been opened.
    pub fn new(connection: u64, gateway: String, authenticated: bool, outbox: Outbox) -> Self {
        Self { connection, gateway, authenticated, outbox, held: VecDeque::new() }
    }

    /// Keeps a message for later. `false`: too many.
    pub fn hold(&mut self, message: ToWearable) -> bool {
        self.held.push_back(message);
        self.held.len() <= MAX_HELD
    }

    /// The oldest kept message.
    pub fn take_held(&mut self) -> Option<ToWearable> {
        self.held.pop_front()
    }

    /// Whether messages are kept.
    pub fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// The way to the gateway.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

/// Faults of the air.
#[derive(Debug, Default)]
pub struct Faults {
    hears: Option<HashSet<String>>,
    stalled_until: Option<Instant>,
    lose: u64,
    reorder: usize,
    shuffling: Vec<FromWearable>,
    shuffling_since: Option<Instant>,
}

impl Faults {
    /// Only these gateways are in range; `None`: all.
    pub fn hear(&mut self, gateways: Option<HashSet<String>>) {
        self.hears = gateways;
    }

    /// Whether a gateway is in range.
    pub fn hears(&self, gateway: &str) -> bool {
        self.hears.as_ref().is_none_or(|names| names.contains(gateway))
    }

    /// Nothing goes either way until then.
    pub fn stall(&mut self, until: Instant) {
        self.stalled_until = Some(until);
    }

    /// Whether the link stands still.
    pub fn is_stalled(&self, now: Instant) -> bool {
        self.stalled_until.is_some_and(|until| now < until)
    }

    /// The next notifications are lost.
    pub fn lose(&mut self, notifications: u64) {
        self.lose = notifications;
    }

    /// The next notifications arrive in another order.
    pub fn reorder(&mut self, notifications: usize) {
        self.reorder = notifications;
    }

    /// The next moment at which something has to be done.
    pub fn deadline(&self) -> Option<Instant> {
        let shuffled = self.shuffling_since.map(|since| since + SHUFFLE_PATIENCE);
        [shuffled, self.stalled_until].into_iter().flatten().min()
    }

    /// The link is gone, with what was being shuffled.
    pub fn link_lost(&mut self) {
        self.shuffling.clear();
        self.shuffling_since = None;
    }

    /// Sends a message, as well as the faults let it.
    pub fn send(&mut self, link: &Link, message: FromWearable, now: Instant) {
        let is_frame = matches!(
            message,
            FromWearable::Notify { characteristic: Characteristic::Stream | Characteristic::Backlog, .. }
        );
        if is_frame && self.lose > 0 {
            self.lose -= 1;
        } else if is_frame && self.reorder > 0 {
            self.reorder -= 1;
            self.shuffling.push(message);
            self.shuffling_since.get_or_insert(now);
            if self.reorder == 0 {
                self.deliver_shuffled(link);
            }
        } else {
            link.outbox().send(&message);
        }
    }

    /// Lets go what has waited long enough for others to be shuffled with.
    pub fn step(&mut self, link: &Link, now: Instant) {
        if self.shuffling_since.is_some_and(|since| now >= since + SHUFFLE_PATIENCE) {
            self.deliver_shuffled(link);
        }
        if self.stalled_until.is_some_and(|until| now >= until) {
            self.stalled_until = None;
        }
    }

    fn deliver_shuffled(&mut self, link: &Link) {
        self.shuffling_since = None;
        // Backwards is the worst order there is, and the same in every run.
        for message in self.shuffling.drain(..).rev() {
            link.outbox().send(&message);
        }
    }
}
