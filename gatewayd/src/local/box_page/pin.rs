//! A person's PIN: six digits, kept as an argon2id verifier only.
//!
//! Six digits are few: what protects them is that guessing is slow ([`super::lockout`]) and that the
//! verifiers lie in a file which only the daemon reads. A PIN that is guessed first (`123456`, `111111`) is
//! refused.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use kinara_protocol::entry;
pub(super) use kinara_protocol::entry::BadPin;
use rand::RngCore;

/// Memory for one verification, KiB; with [`PASSES`] OWASP's first recommendation for argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// What a verifier from elsewhere may demand of the box, KiB.
const MOST_MEMORY_KIB: u32 = 64 * 1024;
const MOST_PASSES: u32 = 10;

/// Six digits.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pin(String);

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pin(…)")
    }
}

impl Pin {
    /// Reads what somebody typed; spaces do not matter, and digits of every script count.
    pub fn parse(typed: &str) -> Result<Self, BadPin> {
        entry::pin(typed).map(Self)
    }

    /// Reads a PIN that somebody chooses.
    pub fn choose(typed: &str) -> Result<Self, BadPin> {
        entry::chosen_pin(typed).map(Self)
    }

    /// The verifier to keep (PHC string).
    pub fn verifier(&self, random: &mut impl RngCore) -> Result<String, argon2::password_hash::Error> {
        let mut salt = [0; 16];
        random.fill_bytes(&mut salt);
        let salt = SaltString::encode_b64(&salt)?;
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        Ok(argon.hash_password(self.0.as_bytes(), &salt)?.to_string())
    }

    /// Whether it is the PIN of a verifier. Takes tens of milliseconds and 19 MiB: not for an async task.
    pub fn matches(&self, verifier: &str) -> bool {
        let Ok(hash) = PasswordHash::new(verifier) else { return false };
        let Ok(params) = Params::try_from(&hash) else { return false };
        hash.algorithm == argon2::ARGON2ID_IDENT
            && params.m_cost() <= MOST_MEMORY_KIB
            && params.t_cost() <= MOST_PASSES
            && params.p_cost() <= LANES
            && Argon2::default().verify_password(self.0.as_bytes(), &hash).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_matches_its_own_verifier_and_no_other() {
        let mut random = rand::rng();
        let pin = Pin::choose("274 913").unwrap();
        let verifier = pin.verifier(&mut random).unwrap();
        assert!(verifier.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{verifier}");
        assert!(!verifier.contains("274913"));
        assert!(pin.matches(&verifier) && Pin::parse("２７४९１３").unwrap().matches(&verifier));
        assert!(!Pin::parse("274914").unwrap().matches(&verifier));
        assert_ne!(verifier, pin.verifier(&mut random).unwrap(), "each has its own salt");
    }

    #[test]
    fn what_everybody_would_try_first_is_refused_when_chosen() {
        for easy in ["111111", "123456", "654321", "121212", "123123", "000000"] {
            assert_eq!(Pin::choose(easy), Err(BadPin::TooEasy), "{easy}");
        }
        for wrong in ["", "12345", "1234567", "12345a", "१२३४५"] {
            assert_eq!(Pin::choose(wrong), Err(BadPin::NotSixDigits), "{wrong}");
        }
        assert!(Pin::choose("135792").is_ok());
    }

    #[test]
    fn a_verifier_that_would_exhaust_the_box_is_not_tried() {
        let huge =
            "$argon2id$v=19$m=4194304,t=3,p=1$c2FsdHNhbHRzYWx0$6b4QzXQk0m1wJwqfWv6Y1lq8v0m3m3m3m3m3m3m3m3k";
        let begun = std::time::Instant::now();
        assert!(!Pin::parse("274913").unwrap().matches(huge));
        assert!(!Pin::parse("274913").unwrap().matches("no verifier"));
        assert!(begun.elapsed() < std::time::Duration::from_millis(500));
    }
}
