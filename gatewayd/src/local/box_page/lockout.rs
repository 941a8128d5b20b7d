//! How often a PIN may be tried.
//!
//! The promise: nobody guesses a six-digit PIN, and nobody who tries locks the clinic out. Wrong PINs count
//! for one person and one client: after [`FREE_TRIES`] the next try has to wait, twice as long each time. A
//! browser in which the person has logged in before counts by itself, so whoever guesses from elsewhere never
//! stands in its way. Beyond that, all clients together that a person has never used get one try per
//! [`STRANGERS_PAUSE_US`] once [`STRANGERS_FREE`] have failed, and once [`EVERYBODY_FREE`] have failed for all
//! persons together, the same pause is between any two of them: at that pace a million PINs take months, however
//! many addresses the guesser has and however many persons there are.
//!
//! What locks is never forgotten to make room. A guesser who fills a table makes strangers wait, and nobody else:
//! browsers that are known have a table of their own, which only their cookies can fill. The caller counts tries
//! for persons that exist, and for nobody else.
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
/// Wrong PINs of all persons from all unknown clients before these have to wait for each other.
const EVERYBODY_FREE: u32 = 60;
/// Counters kept in a table; one more displaces the oldest that locks nothing.
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
    known: HashMap<(Uuid, [u8; 16]), Tries>,
    addresses: HashMap<(Uuid, IpAddr), Tries>,
    strangers: HashMap<Uuid, Tries>,
    everybody: Tries,
}

impl Lockout {
    /// Whether this client may try now.
    pub fn may_try(&self, person: Uuid, client: Client, now_us: i64) -> Result<(), Locked> {
        let until = self.open_at(person, client, now_us);
        if until <= now_us {
            return Ok(());
        }
        Err(Locked { wait_s: ((until - now_us) as u64).div_ceil(1_000_000) })
    }

    /// Begins a try, which counts as failed until [`Lockout::succeeded`].
    pub fn begin(&mut self, person: Uuid, client: Client, now_us: i64) -> Result<(), Locked> {
        self.may_try(person, client, now_us)?;
        match client {
            Client::Known(number) => count(&mut self.known, (person, number), now_us, own_until)?,
            Client::Stranger(address) => {
                count(&mut self.addresses, (person, address), now_us, own_until)?;
                count(&mut self.strangers, person, now_us, |tries| paused_until(tries, STRANGERS_FREE))?;
                self.everybody.add(now_us);
            }
        }
        Ok(())
    }

    /// The try was right: this client starts anew. What other strangers have tried stays counted.
    pub fn succeeded(&mut self, person: Uuid, client: Client) {
        match client {
            Client::Known(number) => {
                self.known.remove(&(person, number));
            }
            Client::Stranger(address) => {
                self.addresses.remove(&(person, address));
                self.everybody.failed = self.everybody.failed.saturating_sub(1);
                if let Some(tries) = self.strangers.get_mut(&person) {
                    tries.failed = tries.failed.saturating_sub(1);
                }
            }
        }
    }

    fn open_at(&self, person: Uuid, client: Client, now_us: i64) -> i64 {
        let until = |tries: Option<&Tries>, rule: fn(&Tries) -> i64| {
            tries.filter(|tries| tries.fresh(now_us)).map_or(0, rule)
        };
        match client {
            Client::Known(number) => until(self.known.get(&(person, number)), own_until),
            Client::Stranger(address) => {
                let own = until(self.addresses.get(&(person, address)), own_until);
                let of_person =
                    until(self.strangers.get(&person), |tries| paused_until(tries, STRANGERS_FREE));
                let of_all = until(Some(&self.everybody), |tries| paused_until(tries, EVERYBODY_FREE));
                own.max(of_person).max(of_all)
            }
        }
    }
}

/// Until when one client of one person has to wait.
fn own_until(tries: &Tries) -> i64 {
    match tries.failed.checked_sub(FREE_TRIES) {
        None => 0,
        Some(beyond) => tries.last_us + (FIRST_WAIT_US << beyond.min(10)).min(LONGEST_WAIT_US),
    }
}

/// Until when unknown clients have to wait for each other, once so many have failed.
fn paused_until(tries: &Tries, free: u32) -> i64 {
    if tries.failed >= free { tries.last_us + STRANGERS_PAUSE_US } else { 0 }
}

/// Counts a try. Where the table is full of counters that lock, it is refused: what locks stays.
fn count<K: Copy + Eq + std::hash::Hash>(
    counters: &mut HashMap<K, Tries>,
    key: K,
    now_us: i64,
    locks_until: impl Fn(&Tries) -> i64,
) -> Result<(), Locked> {
    if counters.len() >= MOST && !counters.contains_key(&key) {
        counters.retain(|_, tries| tries.fresh(now_us));
        let displaced = counters
            .iter()
            .filter(|(_, tries)| locks_until(tries) <= now_us)
            .min_by_key(|(_, tries)| tries.last_us)
            .map(|(key, _)| *key);
        match displaced {
            Some(displaced) => drop(counters.remove(&displaced)),
            None if counters.len() >= MOST => {
                return Err(Locked { wait_s: STRANGERS_PAUSE_US as u64 / 1_000_000 });
            }
            None => {}
        }
    }
    counters.entry(key).or_default().add(now_us);
    Ok(())
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
            lockout.everybody = Tries::default();
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
    fn wrong_pins_are_forgotten_after_a_day() {
        let mut lockout = Lockout::default();
        fail(&mut lockout, NURSE, at(1), FREE_TRIES);
        assert_eq!(lockout.begin(NURSE, at(1), FORGOTTEN_US), Ok(()));
    }

    #[test]
    fn a_flood_of_other_tries_never_opens_what_is_locked() {
        let mut lockout = Lockout::default();
        fail(&mut lockout, NURSE, at(1), FREE_TRIES);
        for n in 0..3 * MOST as u128 {
            // A pace at which the pauses of strangers let every one of them through.
            let now = n as i64 * 2 * STRANGERS_PAUSE_US;
            let network = IpAddr::V6((n << 64).into());
            let _ = lockout.begin(Uuid::from_u128(7 + n), Client::stranger(network), now % SECOND);
        }
        assert!(lockout.begin(NURSE, at(1), SECOND).is_err(), "still locked");
        assert!(lockout.addresses.len() <= MOST && lockout.strangers.len() <= MOST);
    }

    #[test]
    fn a_table_full_of_what_locks_makes_strangers_wait_and_no_known_browser() {
        let mut counters = HashMap::new();
        for n in 0..MOST {
            for _ in 0..FREE_TRIES {
                count(&mut counters, n, 0, own_until).unwrap();
            }
        }
        assert!(count(&mut counters, MOST, SECOND, own_until).is_err());
        assert_eq!(counters.len(), MOST);
        assert_eq!(count(&mut counters, MOST, FIRST_WAIT_US, own_until), Ok(()), "the first wait is over");
        let mut lockout = Lockout::default();
        fail(&mut lockout, NURSE, at(1), 1);
        assert_eq!(lockout.begin(DOCTOR, Client::Known([1; 16]), 0), Ok(()));
        assert!(lockout.known.len() == 1 && lockout.addresses.len() == 1, "each in its own table");
    }

    #[test]
    fn all_persons_together_are_guessed_at_no_faster_than_one() {
        let mut lockout = Lockout::default();
        for n in 0..EVERYBODY_FREE {
            fail(&mut lockout, Uuid::from_u128(u128::from(n % 20)), at(n as u8), 1);
        }
        let mut judged = 0;
        for second in 1..=3_600 {
            let (person, from) = (Uuid::from_u128(second % 20), at(100 + (second % 100) as u8));
            judged += u32::from(lockout.begin(person, from, second as i64 * SECOND).is_ok());
        }
        assert!((100..=120).contains(&judged), "{judged} in an hour");
        assert_eq!(lockout.begin(NURSE, Client::Known([7; 16]), 3_600 * SECOND), Ok(()));
    }
}
