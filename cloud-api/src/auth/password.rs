//! Passwords: argon2id, few at a time, and as long for an address that nobody has as for one that somebody has.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use crate::problem::Problem;

/// The longest password that is looked at.
pub const MAX_PASSWORD: usize = 256;
/// The shortest that is accepted for a new one.
pub const MIN_PASSWORD: usize = 10;
/// How long a login waits for its turn.
const TURN: Duration = Duration::from_secs(5);

/// Why a password cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Its length.
    #[error("a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters; this one has {0}")]
    Length(usize),
    /// The hash function.
    #[error("the password cannot be hashed: {0}")]
    Hash(argon2::password_hash::Error),
}

/// 19 MiB, two passes, one lane: the first of the settings that OWASP recommends for argon2id.
fn hasher() -> Argon2<'static> {
    let params = Params::new(19_456, 2, 1, None).expect("these parameters are within argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The hash to store.
pub fn hash(password: &str) -> Result<String, PasswordError> {
    let length = password.chars().count();
    if !(MIN_PASSWORD..=MAX_PASSWORD).contains(&length) {
        return Err(PasswordError::Length(length));
    }
    let salt = SaltString::generate(&mut OsRng);
    hasher()
        .hash_password(password.as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(PasswordError::Hash)
}

/// The verifier of a PIN: the same function, for something short that is checked at a box.
pub fn hash_pin(pin: &str) -> Result<String, PasswordError> {
    let salt = SaltString::generate(&mut OsRng);
    hasher().hash_password(pin.as_bytes(), &salt).map(|hash| hash.to_string()).map_err(PasswordError::Hash)
}

/// Whether a password has this hash. A hash that cannot be read is nobody's.
pub fn verify(password: &str, stored: &str) -> bool {
    PasswordHash::new(stored)
        .is_ok_and(|stored| hasher().verify_password(password.as_bytes(), &stored).is_ok())
}

/// Checks passwords off the event loop, a bounded number at the same time.
#[derive(Debug, Clone)]
pub struct Checker {
    turns: Arc<Semaphore>,
    /// What an unknown address is checked against: costs the same, and never fits.
    nobody: Arc<str>,
}

impl Checker {
    /// At most `at_once` at the same time.
    pub fn new(at_once: usize) -> Result<Self, PasswordError> {
        let nobody = hash(&uuid::Uuid::new_v4().to_string())?;
        Ok(Self { turns: Arc::new(Semaphore::new(at_once)), nobody: nobody.into() })
    }

    /// Whether the password fits. `stored`: none when nobody has the address.
    pub async fn check(&self, password: String, stored: Option<String>) -> Result<bool, Problem> {
        let nobody = self.nobody.clone();
        self.in_turn(move || {
            let known = stored.is_some();
            let fits = verify(&password, stored.as_deref().unwrap_or(&nobody));
            fits && known
        })
        .await
    }

    /// Does what takes long off the event loop, when it is its turn.
    pub(crate) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let busy = || Problem::unavailable("Many people log in just now. Try again in a few seconds.");
        let turn = tokio::time::timeout(TURN, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        })
        .await
        .map_err(|error| Problem::internal(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_fits_its_hash_and_no_other() {
        let stored = hash("correct horse battery").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(verify("correct horse battery", &stored));
        assert!(!verify("correct horse batterx", &stored));
        assert!(!verify("anything", "not a hash"));
        assert!(matches!(hash("short"), Err(PasswordError::Length(5))));
    }
}
