//! How often a PIN may be tried.
//!
//! The promise: nobody guesses a six-digit PIN, and nobody who tries locks the clinic out. Wrong PINs count
//! for one person and one client: after [`FREE_TRIES`] the next try has to wait, twice as long each time. A
//! browser in which the person has logged in before counts by itself, so whoever guesses from elsewhere never
//! stands in its way. Beyond that, all clients together that a person has never used get one try per
//! [`STRANGERS_PAUSE_US`] once [`STRANGERS_FREE`] have failed: at that pace a million PINs take months,
//! whoever many addresses the guesser has.
//!
//! A try counts as failed from its beginning, so that many at once gain nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use uuid::Uuid;

/// Wrong PINs of one person from one client before anything has to wait.
pub(super) const FREE_TRIES: u32 = 5;
/// The first wait, microseconds.
const FIRST_WAIT_US: i64 = 60_000_000;
/// The longest wait, microseconds.
const LONGEST_WAIT_US: i64 = 3_600_000_000;
/// Wrong tries are forgotten after this time without one, microseconds.
const FORGOTTEN_US: i64 = 24 * 3_600_000_000;
/// Wrong PINs of one person from all unknown clients before these have to wait for each other.
const STRANGERS_FREE: u32 = 30;
/// The pause between two tries of unknown clients then, microseconds.
const STRANGERS_PAUSE_US: i64 = 30_000_000;
/// Counters kept; one more displaces the oldest.
const MOST: usize = 4_096;

/// From where somebody tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// A browser in which this person has logged in before, by the number in its cookie.
    Known([u8; 16]),
    /// Any other, by its address.
    Stranger(IpAddr),
}

impl Client {
    /// A client that is known by its address only. Of an IPv6 address the network counts: the rest is its own
    /// choice.
    pub fn stranger(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                Self::Stranger(IpAddr::V6(network.into()))
            }
            v4 @ IpAddr::V4(_) => Self::Stranger(v4),
        }
    }
}

/// The next try has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Locked {
    /// For so long, seconds, at least 1.
    pub wait_s: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    failed: u32,
    last_us: i64,
}

impl Tries {
    fn fresh(self, now_us: i64) -> bool {
        now_us - self.last_us < FORGOTTEN_US
    }

    fn add(&mut self, now_us: i64) {
        if !self.fresh(now_us) {
            self.failed = 0;
        }
        self.failed = self.failed.saturating_add(1);
        self.last_us = now_us;
    }
}

/// All counters. Times are boot times in microseconds.
#[derive(Debug, Default)]
pub(super) struct Lockout {
    clients: HashMap<(Uuid, Client), Tries>,
    strangers: HashMap<Uuid, Tries>,
}

impl Lockout {
    /// Begins a try, which counts as failed until [`Lockout::succeeded`].
    pub fn begin(&mut self, person: Uuid, client: Client, now_us: i64) -> Result<(), Locked> {
        let until = self.open_at(person, client, now_us);
        if until > now_us {
            return Err(Locked { wait_s: ((until - now_us) as u64).div_ceil(1_000_000) });
        }
        make_room(&mut self.clients, now_us);
        self.clients.entry((person, client)).or_default().add(now_us);
        if matches!(client, Client::Stranger(_)) {
            make_room(&mut self.strangers, now_us);
            self.strangers.entry(person).or_default().add(now_us);
        }
        Ok(())
    }

    /// The try was right: this client starts anew. What other strangers have tried stays counted.
    pub fn succeeded(&mut self, person: Uuid, client: Client) {
        self.clients.remove(&(person, client));
        if matches!(client, Client::Stranger(_))
            && let Some(tries) = self.strangers.get_mut(&person)
        {
            tries.failed = tries.failed.saturating_sub(1);
        }
    }

    fn open_at(&self, person: Uuid, client: Client, now_us: i64) -> i64 {
        let own =
            self.clients.get(&(person, client)).filter(|tries| tries.fresh(now_us)).map_or(0, |tries| {
                match tries.failed.checked_sub(FREE_TRIES) {
                    None => 0,
                    Some(beyond) => tries.last_us + (FIRST_WAIT_US << beyond.min(10)).min(LONGEST_WAIT_US),
                }
            });
        let shared = match client {
            Client::Known(_) => 0,
            Client::Stranger(_) => self
                .strangers
                .get(&person)
                .filter(|tries| tries.fresh(now_us) && tries.failed >= STRANGERS_FREE)
                .map_or(0, |tries| tries.last_us + STRANGERS_PAUSE_US),
        };
        own.max(shared)
    }
}

fn make_room<K: Copy + Eq + std::hash::Hash>(counters: &mut HashMap<K, Tries>, now_us: i64) {
    if counters.len() < MOST {
        return;
    }
    counters.retain(|_, tries| tries.fresh(now_us));
    if counters.len() >= MOST
        && let Some(oldest) = counters.iter().min_by_key(|(_, tries)| tries.last_us).map(|(key, _)| *key)
    {
        counters.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NURSE: Uuid = Uuid::from_u128(1);
    const DOCTOR: Uuid = Uuid::from_u128(2);
    const SECOND: i64 = 1_000_000;

    fn at(last: u8) -> Client {
        Client::stranger(IpAddr::from([10, 0, 0, last]))
    }

    fn fail(lockout: &mut Lockout, person: Uuid, client: Client, times: u32) {
        for _ in 0..times {
            lockout.begin(person, client, 0).unwrap();
        }
    }

    #[test]
    fn five_wrong_pins_lock_one_person_on_one_client_and_nobody_else() {
        let mut lockout = Lockout::default();
        fail(&mut lockout, NURSE, at(1), FREE_TRIES);
        assert_eq!(lockout.begin(NURSE, at(1), SECOND), Err(Locked { wait_s: 59 }));
        assert_eq!(lockout.begin(DOCTOR, at(1), SECOND), Ok(()), "another person on the same client");
        assert_eq!(lockout.begin(NURSE, at(2), SECOND), Ok(()), "the same person on another client");
    }

    #[test]
    fn each_further_wrong_pin_waits_twice_as_long_up_to_an_hour() {
        let mut lockout = Lockout::default();
        fail(&mut lockout, NURSE, at(1), FREE_TRIES);
        let mut now = 0;
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(lockout.begin(NURSE, at(1), now + minutes * 60 * SECOND - 1).is_err(), "{minutes}");
            now += minutes * 60 * SECOND;
            assert_eq!(lockout.begin(NURSE, at(1), now), Ok(()), "{minutes}");
        }
    }

    #[test]
    fn the_right_pin_starts_the_count_anew() {
        let mut lockout = Lockout::default();
        for _ in 0..20 {
            fail(&mut lockout, NURSE, at(1), FREE_TRIES - 1);
            lockout.begin(NURSE, at(1), 0).unwrap();
            lockout.succeeded(NURSE, at(1));
            lockout.strangers.clear();
        }
    }

    #[test]
    fn a_guesser_with_many_addresses_is_slowed_down_and_does_not_stand_in_a_known_browsers_way() {
        let mut lockout = Lockout::default();
        for n in 0..STRANGERS_FREE {
            fail(&mut lockout, NURSE, at(n as u8), 1);
        }
        assert_eq!(lockout.begin(NURSE, at(200), SECOND), Err(Locked { wait_s: 29 }));
        assert_eq!(lockout.begin(NURSE, Client::Known([7; 16]), SECOND), Ok(()));
        assert_eq!(lockout.begin(NURSE, at(200), STRANGERS_PAUSE_US), Ok(()));
        assert!(lockout.begin(NURSE, at(201), STRANGERS_PAUSE_US + SECOND).is_err());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let of = |text: &str| Client::stranger(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), at(1));
    }

    #[test]
    fn wrong_pins_are_forgotten_after_a_day_and_the_table_stays_bounded() {
        let mut lockout = Lockout::default();
        fail(&mut lockout, NURSE, at(1), FREE_TRIES);
        assert_eq!(lockout.begin(NURSE, at(1), FORGOTTEN_US), Ok(()));
        for n in 0..2 * MOST as u128 {
            let _ = lockout.begin(Uuid::from_u128(n), at(3), FORGOTTEN_US + n as i64);
        }
        assert!(lockout.clients.len() <= MOST && lockout.strangers.len() <= MOST);
    }
}
