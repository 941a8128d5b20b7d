//! How often a login may fail: per account and address, and per address.
//!
//! Each key has a bucket of failures that leak away one at a time. A full bucket refuses at once, before any password is
//! looked at. An account is not locked for everyone by one address that guesses. The number of buckets is bounded: the
//! emptiest go first.

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
    clock: Arc<dyn Clock>,
    per_account: f64,
    per_address: f64,
    forget_us: f64,
}

/// The part of an address that one person has: an IPv6 network is handed out whole.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

fn account(address: IpAddr, email: &str) -> Key {
    let digest = Sha256::digest(email.trim().to_lowercase());
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    Key::Account(address, short)
}

impl LoginLimit {
    /// With the limits of the configuration.
    pub fn new(config: &LoginConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            buckets: Mutex::new(HashMap::new()),
            clock,
            per_account: config.failures_per_account.into(),
            per_address: config.failures_per_address.into(),
            forget_us: config.forget_s as f64 * 1e6,
        }
    }

    fn keys(&self, address: Option<IpAddr>, email: &str) -> [(Key, f64); 2] {
        let address = network(address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)));
        [(account(address, email), self.per_account), (Key::Address(address), self.per_address)]
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
        for (key, most) in keys {
            let level = buckets.get(&key).map_or(0.0, |bucket| self.level(*bucket));
            if level + 1.0 > most {
                return Err(((level + 1.0 - most) * self.forget_us / 1e6).ceil() as u64);
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

    /// The password was right: the account's failures from this address are forgotten, and the address gets its place
    /// back.
    pub fn succeeded(&self, address: Option<IpAddr>, email: &str) {
        let [(account, _), (address, _)] = self.keys(address, email);
        let mut buckets = self.buckets.lock().expect("no panic while this lock is held");
        buckets.remove(&account);
        let now = self.clock.boottime_us();
        if let Some(level) = buckets.get(&address).map(|bucket| self.level(*bucket)) {
            buckets.insert(address, Bucket { level: (level - 1.0).max(0.0), at_us: now });
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
