//! Protobuf envelopes in their sealed form: zstd over Protobuf, within limits that are checked before anything is
//! allocated for what a sender claims.

use prost::Message;
use sha2::{Digest, Sha256};

pub use crate::limits::{MAX_OPENED, MAX_SEALED};
use crate::scan::{Shaped, scan};

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/kinara.v1.rs"));
}

pub use generated::*;

/// The envelope version this crate writes.
pub const ENVELOPE_VERSION: u32 = 1;
/// The compression level: the usual one; higher levels gained under 3 % on batches.
const LEVEL: i32 = 3;

/// MQTT user property that names the gateway of a batch.
pub const PROPERTY_GATEWAY: &str = "gateway";
/// MQTT user property that names the buffer of a batch, decimal.
pub const PROPERTY_BUFFER: &str = "buffer";
/// MQTT user property that names the sequence of a batch, decimal.
pub const PROPERTY_SEQUENCE: &str = "sequence";

/// Why bytes are not a sealed message.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// More than [`MAX_SEALED`] or [`MAX_OPENED`].
    #[error("the message is larger than allowed ({0} bytes)")]
    TooLarge(usize),
    /// Not zstd.
    #[error("the message cannot be decompressed")]
    Zstd(#[source] std::io::Error),
    /// Not Protobuf of this type.
    #[error("the message is not well-formed")]
    Protobuf(#[source] prost::DecodeError),
    /// More of something than the [limits](crate::limits) allow.
    #[error("the message is larger than allowed in {field} (at most {most})")]
    Limit {
        /// What there is too much of.
        field: &'static str,
        /// How much there may be.
        most: usize,
    },
    /// Not Protobuf by its tags, or a message twice that may be there once.
    #[error("the message is not well-formed in its tags")]
    Tags,
    /// A version that this program does not read.
    #[error("envelope version {0} is not read here")]
    Version(u32),
}

/// Encodes and compresses.
///
/// # Panics
/// Never: compression into memory does not fail.
pub fn seal(message: &impl Message) -> Vec<u8> {
    zstd::bulk::compress(&message.encode_to_vec(), LEVEL).expect("zstd into memory does not fail")
}

/// Decompresses and decodes.
pub fn open<M: Message + Default + Shaped>(bytes: &[u8]) -> Result<M, EnvelopeError> {
    decode(&decompress(bytes, M::OPENED)?)
}

/// Decodes a plain message, once it is known to be within the limits of its type.
pub fn decode<M: Message + Default + Shaped>(plain: &[u8]) -> Result<M, EnvelopeError> {
    scan(M::SHAPE, plain)?;
    M::decode(plain).map_err(EnvelopeError::Protobuf)
}

/// Whether a message that is about to be sent will be opened at the other end: as sealed, and as it is.
pub fn is_within_limits<M: Message + Shaped>(message: &M, sealed: &[u8]) -> bool {
    sealed.len() <= MAX_SEALED
        && message.encoded_len() <= M::OPENED
        && scan(M::SHAPE, &message.encode_to_vec()).is_ok()
}

/// Decompresses within a limit. What the sender claims about the size is only believed below it.
pub fn decompress(bytes: &[u8], most: usize) -> Result<Vec<u8>, EnvelopeError> {
    if bytes.len() > MAX_SEALED {
        return Err(EnvelopeError::TooLarge(bytes.len()));
    }
    let capacity = match zstd::zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(size)) if size > most as u64 => return Err(EnvelopeError::TooLarge(size as usize)),
        Ok(Some(size)) => size as usize,
        // No size in the header: grow as far as the limit.
        Ok(None) | Err(_) => most,
    };
    zstd::bulk::decompress(bytes, capacity).map_err(EnvelopeError::Zstd)
}

/// The digest that an acknowledgement repeats: of the payload as published.
pub fn digest(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

/// What comes before a decision in what its box signs: a signature under this name says nothing under another.
const DECISION_CONTEXT: &[u8] = b"kinara decision 1\0";

impl Decision {
    /// The bytes that a box signs, and that the cloud checks: context, gateway, and the decision without its signature.
    pub fn signed_bytes(&self, gateway: uuid::Uuid) -> Vec<u8> {
        let unsigned = Self { signature: Vec::new(), ..self.clone() };
        let mut out = Vec::with_capacity(DECISION_CONTEXT.len() + 16 + unsigned.encoded_len());
        out.extend_from_slice(DECISION_CONTEXT);
        out.extend_from_slice(gateway.as_bytes());
        out.extend_from_slice(&unsigned.encode_to_vec());
        out
    }
}

impl Fit {
    /// UTC of a tick, in microseconds since 1970.
    pub fn utc_us(&self, ticks: u64) -> i64 {
        let elapsed_us = (i128::from(ticks) - i128::from(self.ref_ticks)) * 1_000;
        let drift_us = elapsed_us * i128::from(self.rate_ppb) / 1_000_000_000;
        self.ref_utc_us.saturating_add((elapsed_us + drift_us) as i64)
    }

    /// How far from the truth [`utc_us`](Self::utc_us) may be, in microseconds.
    pub fn uncertainty_at(&self, ticks: u64) -> u64 {
        let elapsed_us = u128::from(ticks.abs_diff(self.ref_ticks)) * 1_000;
        let growth = elapsed_us * u128::from(self.growth_ppb) / 1_000_000_000;
        self.uncertainty_us.saturating_add(u64::try_from(growth).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_from_its_sealed_form() {
        let result = CommandResult { version: 1, id: 7, ok: true, detail: "done".into() };
        assert_eq!(open::<CommandResult>(&seal(&result)).unwrap(), result);
    }

    #[test]
    fn what_is_signed_names_its_box_and_does_not_depend_on_the_signature() {
        let (one, two) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
        let decision = Decision { id: vec![7; 16], at_utc_us: 5, ..Decision::default() };
        let signed = Decision { signature: vec![9; 64], ..decision.clone() };
        assert_eq!(decision.signed_bytes(one), signed.signed_bytes(one));
        assert_ne!(decision.signed_bytes(one), decision.signed_bytes(two));
        assert!(decision.signed_bytes(one).starts_with(b"kinara decision 1\0"));
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; MAX_OPENED + 1], 3).unwrap();
        assert!(bomb.len() < 4096);
        assert!(matches!(decompress(&bomb, MAX_OPENED), Err(EnvelopeError::TooLarge(_))));
        assert!(matches!(decompress(&vec![0; MAX_SEALED + 1], MAX_OPENED), Err(EnvelopeError::TooLarge(_))));
        assert!(matches!(decompress(b"not zstd at all", MAX_OPENED), Err(EnvelopeError::Zstd(_))));
    }

    #[test]
    fn a_fit_with_drift_stamps_both_sides_of_its_reference() {
        let fit = Fit {
            ref_ticks: 1_000,
            ref_utc_us: 5_000_000,
            rate_ppb: 40_000,
            uncertainty_us: 10,
            growth_ppb: 45_000,
            time_uncertain: false,
        };
        assert_eq!(fit.utc_us(1_001_000), 5_000_000 + 1_000_000_000 + 40_000);
        assert_eq!(fit.utc_us(0), 5_000_000 - 1_000_000 - 40);
        assert_eq!(fit.uncertainty_at(1_001_000), 10 + 45_000);
    }
}
