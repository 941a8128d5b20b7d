//! A firmware image: a header, then the payload as it goes to flash.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `KFW1` |
//! | 1 | board |
//! | 3 | version: major, minor, patch |
//! | 4 | bytes of the payload, little-endian |
//! | 32 | SHA-256 of the payload |
//! | 64 | Ed25519 signature over the 44 bytes before |

/// A maker's signature over a model package is one over this and the manifest's bytes, which hold the digest of the model. No
/// image begins so: a signature over one is none over the other.
pub const MODEL_PREFIX: &[u8] = b"kinara model package\n";
/// The file of a package that holds it, in 128 hexadecimal digits.
pub const MODEL_SIGNATURE: &str = "manifest.sig";
/// Bytes of the header.
pub const HEADER_LEN: usize = SIGNED_LEN + 64;
/// Bytes of it that are signed.
pub const SIGNED_LEN: usize = 44;
const MAGIC: [u8; 4] = *b"KFW1";

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board(pub u8);

impl Board {
    /// The simulated wearable.
    pub const SIMULATOR: Self = Self(0);
    /// The nRF52840 of `firmware/nrf52840`.
    pub const NRF52840: Self = Self(1);
}

/// An image's header. That it can be read says nothing about who made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is for.
    pub board: Board,
    /// Major, minor, patch.
    pub version: [u8; 3],
    /// Bytes of the payload.
    pub payload: u32,
    /// Its SHA-256.
    pub digest: [u8; 32],
    /// The maker's signature over [`signed`](Self::signed).
    pub signature: [u8; 64],
}

impl Header {
    /// The header of a payload, not signed yet; none for one that is too large.
    #[cfg(feature = "pairing")]
    pub fn of(board: Board, version: [u8; 3], payload: &[u8]) -> Option<Self> {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(payload).into();
        Some(Self { board, version, payload: payload.len().try_into().ok()?, digest, signature: [0; 64] })
    }

    /// What the signature is over.
    pub fn signed(&self) -> [u8; SIGNED_LEN] {
        let mut signed = [0; SIGNED_LEN];
        signed[..4].copy_from_slice(&MAGIC);
        signed[4] = self.board.0;
        signed[5..8].copy_from_slice(&self.version);
        signed[8..12].copy_from_slice(&self.payload.to_le_bytes());
        signed[12..].copy_from_slice(&self.digest);
        signed
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..SIGNED_LEN].copy_from_slice(&self.signed());
        bytes[SIGNED_LEN..].copy_from_slice(&self.signature);
        bytes
    }

    /// The header at the beginning of these bytes; none if they begin with something else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let (signed, signature) = bytes.split_at(SIGNED_LEN);
        if signed[..4] != MAGIC {
            return None;
        }
        Some(Self {
            board: Board(signed[4]),
            version: [signed[5], signed[6], signed[7]],
            payload: u32::from_le_bytes(*signed[8..].first_chunk()?),
            digest: *signed[12..].first_chunk()?,
            signature: *signature.first_chunk()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_comes_back_whole(
            board: u8, version: [u8; 3], payload: u32, digest: [u8; 32], low: [u8; 32], high: [u8; 32],
        ) {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&low);
            signature[32..].copy_from_slice(&high);
            let header = Header { board: Board(board), version, payload, digest, signature };
            let bytes = header.encode();
            prop_assert_eq!(Header::decode(&bytes), Some(header));
            prop_assert_eq!(Header::decode(&bytes[1..]), None);
            prop_assert_eq!(Header::decode(&bytes[..HEADER_LEN - 1]), None);
        }
    }
}
