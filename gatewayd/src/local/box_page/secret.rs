//! What the box signs for browsers: the proof that a form came from its own page, and that a browser is
//! known.
//!
//! A form's proof is an HMAC of the visitor's token, which is in a cookie that no other site can read or set
//! (`__Host-`, `SameSite=Strict`), so a page elsewhere can neither know nor plant it. A known browser's
//! cookie names the person who logged in there; it lets nobody in, it only keeps others' wrong PINs from
//! counting there.

use std::io;
use std::path::Path;

use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::Sha256;
use uuid::Uuid;

use super::keep;
use super::lockout::Client;
use super::session::Token;

const FILE: &str = "page.secret";

/// 32 random bytes, kept over restarts.
#[derive(Clone)]
pub(super) struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Reads it, or draws it at the first start.
    pub fn open(data_dir: &Path, random: &mut impl RngCore) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        if let Ok(bytes) = std::fs::read(&path)
            && let Ok(bytes) = bytes.try_into()
        {
            return Ok(Self(bytes));
        }
        let mut bytes = [0; 32];
        random.fill_bytes(&mut bytes);
        keep::private(&path, &bytes)?;
        Ok(Self(bytes))
    }

    /// What a form of this visitor carries.
    pub fn form_proof(&self, token: &Token) -> String {
        hex::encode(self.mac(&[b"form", token.as_str().as_bytes()]).finalize().into_bytes())
    }

    /// Whether a form's proof is this visitor's.
    pub fn proves(&self, token: &Token, proof: &str) -> bool {
        let mac = self.mac(&[b"form", token.as_str().as_bytes()]);
        hex::decode(proof).is_ok_and(|proof| mac.verify_slice(&proof).is_ok())
    }

    /// The cookie of a browser in which this person has logged in.
    pub fn known_browser(&self, person: Uuid, number: [u8; 16]) -> String {
        let proof = self.mac(&[b"browser", person.as_bytes(), &number]).finalize().into_bytes();
        format!("{}.{}", hex::encode(number), hex::encode(proof))
    }

    /// The client of this cookie, if this person has logged in there.
    pub fn browser(&self, person: Uuid, cookie: &str) -> Option<Client> {
        let (number, proof) = cookie.split_once('.')?;
        let number: [u8; 16] = hex::decode(number).ok()?.try_into().ok()?;
        let mac = self.mac(&[b"browser", person.as_bytes(), &number]);
        mac.verify_slice(&hex::decode(proof).ok()?).ok()?;
        Some(Client::Known(number))
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        Secret([7; 32])
    }

    #[test]
    fn a_form_is_proven_by_its_own_visitors_token_only() {
        let mut random = rand::rng();
        let (one, other) = (Token::draw(&mut random), Token::draw(&mut random));
        let proof = secret().form_proof(&one);
        assert!(secret().proves(&one, &proof));
        assert!(!secret().proves(&other, &proof));
        for wrong in ["", "00", "zz", &proof[2..], &proof.to_uppercase()[1..]] {
            assert!(!secret().proves(&one, wrong), "{wrong}");
        }
    }

    #[test]
    fn a_browser_is_known_for_the_person_who_logged_in_there_and_no_other() {
        let cookie = secret().known_browser(Uuid::from_u128(1), [9; 16]);
        assert_eq!(secret().browser(Uuid::from_u128(1), &cookie), Some(Client::Known([9; 16])));
        assert_eq!(secret().browser(Uuid::from_u128(2), &cookie), None);
        assert_eq!(secret().browser(Uuid::from_u128(1), &cookie.replace("09", "08")), None);
        assert_eq!(secret().browser(Uuid::from_u128(1), "nonsense"), None);
    }

    #[test]
    fn the_secret_stays_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Secret::open(dir.path(), &mut rand::rng()).unwrap();
        assert_eq!(Secret::open(dir.path(), &mut rand::rng()).unwrap().0, first.0);
    }
}
