//! What one connection teaches the next: how big batches should be, how patient the broker has to be with us, and
//! what it does not take.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;

/// Batches are not made smaller than this: below it they are mostly names and headers.
const SMALLEST: u64 = 8 * 1024;
/// A batch that left in less time than this may be followed by bigger ones.
const QUICK: Duration = Duration::from_secs(10);
/// One that took longer is followed by smaller ones: a line that is cut now and then gets them through.
const SLOW: Duration = Duration::from_secs(30);
/// How often parked batches are tried again though no bridge has come.
const PARKED_EVERY: Duration = Duration::from_hours(24);
/// How often the keep-alive doubles while connections bring nothing through.
const DOUBLINGS: u32 = 2;

/// What the broker takes. MQTT 5, 3.2.2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// QoS 1.
    pub qos_1: bool,
    /// Retained messages.
    pub retain: bool,
    /// The largest packet, bytes.
    pub packet: usize,
    /// Unanswered packets of QoS 1 at once.
    pub in_flight: usize,
    /// Its own idea of the keep-alive.
    pub keep_alive: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            qos_1: true,
            retain: true,
            packet: usize::MAX,
            in_flight: usize::from(u16::MAX),
            keep_alive: None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pace {
    /// What nobody else can know, the same for the daemon's life: our name at the broker has it.
    pub run_id: u64,
    /// What the broker is known to take.
    pub limits: Limits,
    /// When it was last looked whether parked batches are to be tried again.
    pub parked_tried: Option<Instant>,
    /// When parked batches were last sent again.
    pub parked_sent: Option<Instant>,
    /// A bridge has subscribed since then, or may have while there was no connection: it may be newer.
    pub bridge_came: bool,
    full: u64,
    smallest: u64,
    batch: u64,
    told: u64,
    barren: u32,
}

impl Pace {
    /// Nothing is known yet: batches may be this big.
    pub fn new(full_bytes: u64, seal_bytes: u64) -> Self {
        let smallest = SMALLEST.min(seal_bytes);
        Self {
            run_id: rand::random(),
            limits: Limits::default(),
            parked_tried: None,
            parked_sent: None,
            bridge_came: false,
            full: full_bytes,
            smallest,
            batch: full_bytes,
            told: u64::MAX,
            barren: 0,
        }
    }

    /// Frame bytes that may be packed into a batch.
    pub fn batch_bytes(&self) -> u64 {
        // A batch is smaller than its frames, but for a few of them its names and headers weigh as much.
        let fits = u64::try_from(self.limits.packet / 2).unwrap_or(u64::MAX);
        self.batch.min(fits.max(1024))
    }

    /// The same, if it is another than at the last call.
    pub fn news(&mut self) -> Option<u64> {
        let bytes = self.batch_bytes();
        (std::mem::replace(&mut self.told, bytes) != bytes).then_some(bytes)
    }

    /// The bridge has a batch that took so long to leave.
    pub fn arrived(&mut self, took: Duration) {
        self.barren = 0;
        if took < QUICK {
            self.batch = self.batch.saturating_mul(2).min(self.full);
        } else if took > SLOW {
            self.shrink();
        }
    }

    /// A connection has ended on which something was sent and nothing acknowledged.
    pub fn barren(&mut self) {
        self.barren = self.barren.saturating_add(1);
        self.shrink();
    }

    fn shrink(&mut self) {
        self.batch = (self.batch / 2).max(self.smallest);
    }

    /// Whether parked batches are to be tried again: first in each run of the daemon, once in a long while, and for a bridge
    /// that has come, when `pause` is over since they were last sent.
    pub fn parked_are_due(&self, pause: Duration) -> bool {
        let is_over =
            |since: Option<Instant>, pause: Duration| since.is_none_or(|since| since.elapsed() >= pause);
        is_over(self.parked_tried, PARKED_EVERY) || self.bridge_came && is_over(self.parked_sent, pause)
    }

    /// The keep-alive to tell the broker: it grows where nothing gets through, for a broker that counts whole packets
    /// would take the sender of one long batch for dead.
    pub fn keep_alive(&self, settings: &Settings) -> Duration {
        settings.keep_alive * (1 << self.barren.min(DOUBLINGS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_halve_after_a_connection_that_brought_nothing_through_and_grow_again() {
        let mut pace = Pace::new(262_144, 65_536);
        pace.barren();
        pace.barren();
        assert_eq!(pace.batch_bytes(), 65_536);
        (0..20).for_each(|_| pace.barren());
        assert_eq!(pace.batch_bytes(), 8 * 1024);
        pace.arrived(Duration::from_secs(1));
        pace.arrived(Duration::from_secs(15));
        assert_eq!(pace.batch_bytes(), 16 * 1024);
        (0..20).for_each(|_| pace.arrived(Duration::from_secs(1)));
        assert_eq!(pace.batch_bytes(), 262_144);
        pace.arrived(Duration::from_secs(128));
        assert_eq!(pace.batch_bytes(), 131_072);
    }

    #[test]
    fn a_broker_that_takes_only_small_packets_gets_small_batches() {
        let mut pace = Pace::new(262_144, 65_536);
        pace.limits.packet = 20_000;
        assert_eq!(pace.batch_bytes(), 10_000);
    }
}
