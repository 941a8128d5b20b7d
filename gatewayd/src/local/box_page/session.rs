//! Who is logged in, in which browser.
//!
//! The promise: a login ends by itself when nobody does anything, at the latest after a working day, at once
//! when the person logs out, is taken off the staff or gets another PIN, and with the daemon (logins live in
//! memory only). The box keeps a digest of what the browser's cookie holds, so reading its memory or files
//! gives nobody a login.

use std::collections::HashMap;

use rand::RngCore;
use sha2::{Digest, Sha256};

use super::staff::Person;

/// Logins kept at once; one more ends the one that was used longest ago.
const MOST: usize = 64;
/// A login ends after this time in any case, microseconds.
const LONGEST_US: i64 = 12 * 3_600_000_000;

/// What a browser's cookie holds: 32 random bytes as hexadecimal digits. Every visitor has one; a login
/// always has a new one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A new one.
    pub fn draw(random: &mut impl RngCore) -> Self {
        let mut bytes = [0; 32];
        random.fill_bytes(&mut bytes);
        Self(hex::encode(bytes))
    }

    /// Reads a cookie's value.
    pub fn parse(text: &str) -> Option<Self> {
        let good = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned()))
    }

    /// The cookie's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

#[derive(Debug, Clone)]
struct Login {
    person: Person,
    since_us: i64,
    used_us: i64,
}

/// All logins. Times are boot times in microseconds.
#[derive(Debug)]
pub(super) struct Sessions {
    logins: HashMap<[u8; 32], Login>,
    idle_us: i64,
}

impl Sessions {
    /// None yet; each ends after `idle_us` without use.
    pub fn new(idle_us: i64) -> Self {
        Self { logins: HashMap::new(), idle_us }
    }

    /// Somebody has shown their PIN.
    pub fn log_in(&mut self, token: &Token, person: Person, now_us: i64) {
        self.expire(now_us);
        if self.logins.len() >= MOST
            && let Some(oldest) =
                self.logins.iter().min_by_key(|(_, login)| login.used_us).map(|(key, _)| *key)
        {
            self.logins.remove(&oldest);
        }
        self.logins.insert(token.digest(), Login { person, since_us: now_us, used_us: now_us });
    }

    /// Whose login this is. `by_person`: somebody did something; a page that renews itself is no use. `still`
    /// says whether the person is on the staff, with the PIN that was shown.
    pub fn who(
        &mut self,
        token: &Token,
        now_us: i64,
        by_person: bool,
        still: impl FnOnce(&Person) -> bool,
    ) -> Option<Person> {
        self.expire(now_us);
        let key = token.digest();
        let login = self.logins.get_mut(&key)?;
        if !still(&login.person) {
            self.logins.remove(&key);
            return None;
        }
        if by_person {
            login.used_us = now_us;
        }
        Some(login.person.clone())
    }

    /// The person goes.
    pub fn log_out(&mut self, token: &Token) {
        self.logins.remove(&token.digest());
    }

    fn expire(&mut self, now_us: i64) {
        let idle_us = self.idle_us;
        self.logins.retain(|_, l| now_us - l.used_us < idle_us && now_us - l.since_us < LONGEST_US);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MINUTE: i64 = 60_000_000;

    fn person(n: u128) -> Person {
        Person { id: Uuid::from_u128(n), name: format!("P{n}"), member: None, verifier: "v".to_owned() }
    }

    fn token() -> Token {
        Token::draw(&mut rand::rng())
    }

    #[test]
    fn a_login_ends_after_ten_minutes_in_which_nobody_does_anything() {
        let mut sessions = Sessions::new(10 * MINUTE);
        let token = token();
        sessions.log_in(&token, person(1), 0);
        assert!(sessions.who(&token, 9 * MINUTE, true, |_| true).is_some());
        assert!(sessions.who(&token, 18 * MINUTE, false, |_| true).is_some());
        assert_eq!(sessions.who(&token, 19 * MINUTE, true, |_| true), None, "a renewed page is no use");
    }

    #[test]
    fn a_login_ends_after_a_working_day_however_much_it_is_used() {
        let mut sessions = Sessions::new(10 * MINUTE);
        let token = token();
        sessions.log_in(&token, person(1), 0);
        let last =
            (1..1_000).find(|n| sessions.who(&token, n * 5 * MINUTE, true, |_| true).is_none()).unwrap();
        assert_eq!(last * 5 * MINUTE, LONGEST_US);
    }

    #[test]
    fn a_login_ends_when_its_person_leaves_the_staff_and_does_not_come_back_with_them() {
        let mut sessions = Sessions::new(10 * MINUTE);
        let token = token();
        sessions.log_in(&token, person(1), 0);
        assert_eq!(sessions.who(&token, 1, true, |_| false), None);
        assert_eq!(sessions.who(&token, 2, true, |_| true), None);
    }

    #[test]
    fn logging_out_ends_this_login_and_no_other() {
        let mut sessions = Sessions::new(10 * MINUTE);
        let (one, other) = (token(), token());
        sessions.log_in(&one, person(1), 0);
        sessions.log_in(&other, person(1), 0);
        sessions.log_out(&one);
        assert_eq!(sessions.who(&one, 1, true, |_| true), None);
        assert_eq!(sessions.who(&other, 1, true, |_| true), Some(person(1)));
        assert_eq!(sessions.who(&token(), 1, true, |_| true), None, "a token that was never a login");
    }

    #[test]
    fn there_are_never_more_logins_than_the_box_keeps() {
        let mut sessions = Sessions::new(10 * MINUTE);
        for n in 0..200 {
            sessions.log_in(&token(), person(n), n as i64);
        }
        assert_eq!(sessions.logins.len(), MOST);
    }

    #[test]
    fn only_sixty_four_lower_case_hexadecimal_digits_are_a_token() {
        assert_eq!(Token::parse(token().as_str()).map(|t| t.0.len()), Some(64));
        for text in ["", "ab", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }
}
