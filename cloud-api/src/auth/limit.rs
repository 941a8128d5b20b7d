//! How often a login may fail: per account and address, per address, and per account from everywhere.
//!
//! Each key has a bucket of failures that leak away one at a time. A full bucket refuses at once, before any password is
//! looked at. An account is not locked for everyone by one address that guesses; where many guess at one account, its
//! member still gets in from an address that it logged in from lately. The number of buckets is bounded: the emptiest go
//! first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use kinara_clock::Clock;
use sha2::{Digest as _, Sha256};

use crate::config::LoginConfig;

/// Most buckets kept.
const MAX_BUCKETS: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    // By digest: a long address costs no memory, and the table holds nobody's address.
    Account(IpAddr, [u8; 16]),
    Everywhere([u8; 16]),
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at_us: i64,
}

/// The buckets.
#[derive(Debug)]
pub struct LoginLimit {
    buckets: Mutex<HashMap<Key, Bucket>>,
    /// From where accounts were logged in to, and when: there the many failures of others do not count.
    familiar: Mutex<HashMap<(IpAddr, [u8; 16]), i64>>,
    clock: Arc<dyn Clock>,
    per_account: f64,
    per_address: f64,
    everywhere: f64,
    forget_us: f64,
}

/// The part of an address that one person has: an IPv6 network is handed out whole.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

fn account(email: &str) -> [u8; 16] {
    let digest = Sha256::digest(email.trim().to_lowercase());
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

impl LoginLimit {
    /// With the limits of the configuration.
    pub fn new(config: &LoginConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            buckets: Mutex::new(HashMap::new()),
            familiar: Mutex::new(HashMap::new()),
            clock,
            per_account: config.failures_per_account.into(),
            per_address: config.failures_per_address.into(),
            everywhere: config.failures_per_account_anywhere.into(),
            forget_us: config.forget_s as f64 * 1e6,
        }
    }

    fn keys(&self, address: Option<IpAddr>, email: &str) -> Vec<(Key, f64)> {
        let address = network(address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)));
        let account = account(email);
        let mut keys = vec![
            (Key::Account(address, account), self.per_account),
            (Key::Address(address), self.per_address),
        ];
        let familiar = self.familiar.lock().expect("no panic while this lock is held");
        if !familiar.contains_key(&(address, account)) {
            keys.push((Key::Everywhere(account), self.everywhere));
        }
        keys
    }

    fn level(&self, bucket: Bucket) -> f64 {
        let passed = (self.clock.boottime_us() - bucket.at_us).max(0) as f64;
        (bucket.level - passed / self.forget_us).max(0.0)
    }

    /// Takes a place before the password is looked at, as if it failed; [`LoginLimit::succeeded`] gives it back.
    /// So logins under way at the same time count. Refused: seconds until the next try.
    pub fn attempt(&self, address: Option<IpAddr>, email: &str) -> Result<(), u64> {
        let keys = self.keys(address, email);
        let mut buckets = self.buckets.lock().expect("no panic while this lock is held");
        for (key, most) in &keys {
            let level = buckets.get(key).map_or(0.0, |bucket| self.level(*bucket));
            if level + 1.0 > *most {
                return Err(((level + 1.0 - *most) * self.forget_us / 1e6).ceil() as u64);
            }
        }
        if buckets.len() + keys.len() > MAX_BUCKETS {
            let mut levels: Vec<f64> = buckets.values().map(|bucket| self.level(*bucket)).collect();
            levels.sort_by(f64::total_cmp);
            let middle = levels.get(levels.len() / 2).copied().unwrap_or_default();
            buckets.retain(|_, bucket| self.level(*bucket) > middle);
        }
        let now = self.clock.boottime_us();
        for (key, _) in keys {
            let level = buckets.get(&key).map_or(0.0, |bucket| self.level(*bucket));
            buckets.insert(key, Bucket { level: level + 1.0, at_us: now });
        }
        Ok(())
    }

    /// The password was right: the account's failures from this address are forgotten, the address and the account get
    /// their place back, and the address is known.
    pub fn succeeded(&self, address: Option<IpAddr>, email: &str) {
        let keys = self.keys(address, email);
        self.give_places(&keys);
        for (key, _) in keys {
            let Key::Account(address, account) = key else { continue };
            self.buckets.lock().expect("no panic while this lock is held").remove(&key);
            self.is_familiar((address, account));
        }
    }

    /// An account was logged in to from here. The number of those is bounded: the oldest go first.
    fn is_familiar(&self, pair: (IpAddr, [u8; 16])) {
        let mut familiar = self.familiar.lock().expect("no panic while this lock is held");
        if familiar.len() >= MAX_BUCKETS {
            let mut times: Vec<i64> = familiar.values().copied().collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            familiar.retain(|_, at| *at > middle);
        }
        familiar.insert(pair, self.clock.boottime_us());
    }

    /// Nobody could look at the password: it was no failure.
    pub fn give_back(&self, address: Option<IpAddr>, email: &str) {
        self.give_places(&self.keys(address, email));
    }

    fn give_places(&self, keys: &[(Key, f64)]) {
        let now = self.clock.boottime_us();
        let mut buckets = self.buckets.lock().expect("no panic while this lock is held");
        for (key, _) in keys {
            if let Some(level) = buckets.get(key).map(|bucket| self.level(*bucket)) {
                buckets.insert(*key, Bucket { level: (level - 1.0).max(0.0), at_us: now });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_clock::ManualClock;

    fn limit(clock: &Arc<ManualClock>) -> LoginLimit {
        LoginLimit::new(&LoginConfig::default(), clock.clone())
    }

    #[test]
    fn failures_are_limited_for_an_account_from_one_address_and_forgotten_in_time() {
        let clock = Arc::new(ManualClock::default());
        let limit = limit(&clock);
        let here = Some("192.0.2.1".parse().unwrap());
        for _ in 0..5 {
            assert_eq!(limit.attempt(here, "a@x"), Ok(()));
        }
        assert_eq!(limit.attempt(here, " A@X "), Err(30));
        assert_eq!(limit.attempt(Some("192.0.2.2".parse().unwrap()), "a@x"), Ok(()));
        assert_eq!(limit.attempt(here, "b@x"), Ok(()));
        clock.advance_us(30_000_000);
        assert_eq!(limit.attempt(here, "a@x"), Ok(()));
        assert!(limit.attempt(here, "a@x").is_err());
        limit.succeeded(here, "a@x");
        assert_eq!(limit.attempt(here, "a@x"), Ok(()));
    }

    #[test]
    fn one_address_cannot_go_through_many_accounts_and_a_network_is_one_address() {
        let clock = Arc::new(ManualClock::default());
        let limit = limit(&clock);
        for n in 0..30 {
            let here = Some(format!("2001:db8::{n:x}").parse().unwrap());
            assert_eq!(limit.attempt(here, &format!("{n}@x")), Ok(()));
        }
        assert!(limit.attempt(Some("2001:db8::ffff".parse().unwrap()), "new@x").is_err());
    }

    #[test]
    fn many_addresses_together_guess_no_more_often_and_its_member_still_gets_in() {
        let clock = Arc::new(ManualClock::default());
        let limit = limit(&clock);
        let home = Some("192.0.2.200".parse().unwrap());
        assert_eq!(limit.attempt(home, "a@x"), Ok(()));
        limit.succeeded(home, "a@x");
        let from = |n: u32| Some(IpAddr::V4((0x0a00_0000 + n).into()));
        let guesses = (0..10_000).filter(|n| limit.attempt(from(*n), "a@x").is_ok()).count();
        assert_eq!(guesses, 50);
        assert!(limit.attempt(from(20_000), "a@x").is_err());
        assert_eq!(limit.attempt(from(20_000), "b@x"), Ok(()));
        assert_eq!(limit.attempt(home, "a@x"), Ok(()));
    }

    #[test]
    fn a_place_that_nobody_could_judge_is_given_back() {
        let clock = Arc::new(ManualClock::default());
        let limit = limit(&clock);
        let here = Some("192.0.2.1".parse().unwrap());
        for _ in 0..100 {
            assert_eq!(limit.attempt(here, "a@x"), Ok(()));
            limit.give_back(here, "a@x");
        }
    }

    #[test]
    fn the_table_of_failures_is_bounded() {
        let clock = Arc::new(ManualClock::default());
        let limit = limit(&clock);
        for n in 0..30_000u32 {
            let here = Some(IpAddr::V4((0x0a00_0000 + n).into()));
            let _ = limit.attempt(here, "a@x");
        }
        assert!(limit.buckets.lock().unwrap().len() <= MAX_BUCKETS);
    }
}
