//! The label secret: a wearable without a display carries 80 random bits on its label (QR, and 16 base32 characters).
//! In its pairing window it advertises a fresh nonce N and uses the passkey HMAC-SHA-256(S, N) mod 10^6.
//!
//! The introduction secret K takes its place between a wearable and a gateway that were introduced to each other: the
//! wearable also advertises the first 6 bytes of HMAC-SHA-256(K, N), by which the gateway knows it.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// 80 bits, known to the wearable and to who holds its label.
#[derive(Clone, PartialEq, Eq)]
pub struct LabelSecret([u8; 10]);

impl core::fmt::Debug for LabelSecret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("LabelSecret(…)")
    }
}

/// Not sixteen base32 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(thiserror::Error))]
#[cfg_attr(feature = "std", error("a label code has 16 characters of A-Z and 2-7"))]
pub struct BadLabel;

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

impl LabelSecret {
    /// The secret of these bytes.
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        Self(bytes)
    }

    /// The passkey for a nonce: 0 to 999,999.
    pub fn passkey(&self, nonce: &[u8]) -> u32 {
        passkey(&self.0, nonce)
    }

    /// The 16 characters (RFC 4648 base32).
    #[cfg(feature = "std")]
    pub fn to_base32(&self) -> String {
        let bits = self.0.iter().fold(0u128, |bits, &byte| bits << 8 | u128::from(byte));
        (0..16).map(|index| char::from(ALPHABET[(bits >> (75 - 5 * index)) as usize & 31])).collect()
    }
}

impl core::str::FromStr for LabelSecret {
    type Err = BadLabel;

    /// Reads the 16 characters; case, spaces and hyphens do not matter. With `std` they may be typed on any keyboard.
    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let mut bits = 0u128;
        let mut count = 0;
        for character in characters(text) {
            let value = ALPHABET.iter().position(|&known| char::from(known) == character).ok_or(BadLabel)?;
            bits = bits << 5 | value as u128;
            count += 1;
            if count > 16 {
                return Err(BadLabel);
            }
        }
        if count < 16 {
            return Err(BadLabel);
        }
        let tail = bits.to_be_bytes();
        Ok(Self(*tail.last_chunk().expect("16 bytes hold 10")))
    }
}

#[cfg(feature = "std")]
use crate::entry::code_characters as characters;

/// A wearable is given its label as it is printed.
#[cfg(not(feature = "std"))]
fn characters(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).map(|c| c.to_ascii_uppercase())
}

/// 128 bits that the cloud made for one wearable and one gateway. They serve once, and not for long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IntroductionSecret([u8; 16]);

impl core::fmt::Debug for IntroductionSecret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("IntroductionSecret(…)")
    }
}

impl IntroductionSecret {
    /// The secret of these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be handed over or kept.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// What the wearable advertises beside the nonce: the first 6 bytes of HMAC-SHA-256(K, nonce).
    pub fn tag(&self, nonce: &[u8]) -> [u8; 6] {
        let digest = hmac(&self.0, nonce);
        *digest.first_chunk().expect("32 bytes hold 6")
    }

    /// The passkey for a nonce: 0 to 999,999.
    ///
    /// It is the number of all 32 bytes of the HMAC whose first 6 are the tag. The tag says nothing about it: the other
    /// 26 bytes alone make it any of the million with the same chance.
    pub fn passkey(&self, nonce: &[u8]) -> u32 {
        passkey(&self.0, nonce)
    }
}

/// HMAC-SHA-256(secret, nonce) mod 10^6, the HMAC read as a big-endian number.
pub fn passkey(secret: &[u8], nonce: &[u8]) -> u32 {
    let digest = hmac(secret, nonce);
    digest.iter().fold(0u32, |rest, &byte| ((rest << 8) + u32::from(byte)) % 1_000_000)
}

fn hmac(secret: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_code_comes_back_however_it_is_typed() {
        let secret = LabelSecret::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 250]);
        let code = secret.to_base32();
        assert_eq!(code.parse(), Ok(secret.clone()));
        let typed = format!("{}-{} ", code[..8].to_lowercase(), &code[8..]);
        assert_eq!(typed.parse(), Ok(secret));
        assert_eq!("ABC".parse::<LabelSecret>(), Err(BadLabel));
        assert_eq!("AAAAAAAAAAAAAAA1".parse::<LabelSecret>(), Err(BadLabel));
    }

    #[cfg(feature = "std")]
    #[test]
    fn a_label_code_may_be_typed_on_any_keyboard() {
        let secret: LabelSecret = "ABCDEFGHIJKL2345".parse().unwrap();
        for typed in [
            "ABCD-EFGH-IJKL-२३४५",
            "ＡＢＣＤＥＦＧＨＩＪＫＬ２３４５",
            "ａｂｃｄ efgh ijkl ٢٣٤٥",
            "ABCDEFGH–IJKL২৩৪৫",
        ] {
            assert_eq!(typed.parse(), Ok(secret.clone()), "{typed}");
        }
        for wrong in ["ABCDEFGHIJKL२३४", "ABCDEFGHIJKL२३४५६", "ABCDEFGHIJKL१२३४", "ÀBCDEFGHIJKL2345"]
        {
            assert_eq!(wrong.parse::<LabelSecret>(), Err(BadLabel), "{wrong}");
        }
    }

    #[test]
    fn the_passkey_is_the_known_one_for_a_known_nonce() {
        let secret = LabelSecret::from_bytes(*b"0123456789");
        let passkey = secret.passkey(&[0; 8]);
        // python3: int.from_bytes(hmac.digest(b"0123456789", bytes(8), "sha256"), "big") % 10**6
        assert_eq!(passkey, KNOWN);
    }

    const KNOWN: u32 = 629578;

    #[test]
    fn an_introductions_tag_and_passkey_are_the_known_ones_for_a_known_nonce() {
        let secret = IntroductionSecret::from_bytes(*b"0123456789abcdef");
        // python3: digest = hmac.digest(b"0123456789abcdef", bytes(range(6)), "sha256"); digest[:6].hex();
        // int.from_bytes(digest, "big") % 10**6
        assert_eq!(secret.tag(&[0, 1, 2, 3, 4, 5]), KNOWN_TAG);
        assert_eq!(secret.passkey(&[0, 1, 2, 3, 4, 5]), KNOWN_INTRODUCTION);
    }

    const KNOWN_TAG: [u8; 6] = [0x81, 0x62, 0x02, 0x1a, 0xa0, 0xcb];
    const KNOWN_INTRODUCTION: u32 = 47781;
}
