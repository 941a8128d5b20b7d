//! Protobuf written by hand: what a sender can say who does not use our code.
//!
//! Nothing is checked here. A list may be as long and a length as wrong as the attack wants it.

use uuid::Uuid;

/// A message, or a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wire(Vec<u8>);

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

impl Wire {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What there is.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Adds a tag, and what it promises or not.
    #[must_use]
    pub fn raw(mut self, field: u32, wire_type: u32, bytes: &[u8]) -> Self {
        put_varint(&mut self.0, u64::from(field << 3 | wire_type));
        self.0.extend_from_slice(bytes);
        self
    }

    /// An unsigned number.
    #[must_use]
    pub fn uint(self, field: u32, number: u64) -> Self {
        self.raw(field, VARINT, &varint(number))
    }

    /// A signed number, folded.
    #[must_use]
    pub fn sint(self, field: u32, number: i64) -> Self {
        self.uint(field, fold(number))
    }

    /// Eight bytes.
    #[must_use]
    pub fn fixed64(self, field: u32, number: u64) -> Self {
        self.raw(field, FIXED64, &number.to_le_bytes())
    }

    /// Bytes, text or a message.
    #[must_use]
    pub fn bytes(self, field: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let mut body = varint(bytes.len() as u64);
        body.extend_from_slice(bytes);
        self.raw(field, BYTES, &body)
    }

    /// A message inside.
    #[must_use]
    pub fn message(self, field: u32, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// The same field so many times over.
    #[must_use]
    pub fn repeated(mut self, field: &Self, times: usize) -> Self {
        self.0.reserve(field.0.len() * times);
        (0..times).for_each(|_| self.0.extend_from_slice(&field.0));
        self
    }

    /// A packed list of unsigned numbers.
    #[must_use]
    pub fn packed(self, field: u32, numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut body = Vec::new();
        numbers.into_iter().for_each(|number| put_varint(&mut body, number));
        self.bytes(field, body)
    }

    /// A packed list of signed numbers.
    #[must_use]
    pub fn packed_sint(self, field: u32, numbers: impl IntoIterator<Item = i64>) -> Self {
        self.packed(field, numbers.into_iter().map(fold))
    }

    /// So many zeros of four bytes each.
    #[must_use]
    pub fn packed_zero32(self, field: u32, count: usize) -> Self {
        self.bytes(field, vec![0; count * 4])
    }
}

impl AsRef<[u8]> for Wire {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Compresses, within no limit but memory.
///
/// # Panics
/// Never: compression into memory does not fail.
pub fn squeeze(plain: impl AsRef<[u8]>) -> Vec<u8> {
    const LEVEL: i32 = 3;
    zstd::bulk::compress(plain.as_ref(), LEVEL).expect("zstd into memory does not fail")
}

/// A number as Protobuf writes it.
pub fn varint(number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(2);
    put_varint(&mut out, number);
    out
}

/// Appends a number as Protobuf writes it.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn fold(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

/// The name of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Whose.
    pub gateway: Uuid,
    /// Of which run.
    pub buffer: u64,
    /// Which.
    pub sequence: u64,
}

impl Name {
    /// As a message.
    pub fn wire(self) -> Wire {
        Wire::new().bytes(1, self.gateway.as_bytes()).fixed64(2, self.buffer).uint(3, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_protocol::envelope::{Batch, Fit, open};
    use prost::Message as _;

    #[test]
    fn what_is_written_by_hand_is_what_the_product_reads() {
        let name = Name { gateway: Uuid::from_u128(7), buffer: 9, sequence: 300 };
        let plain = Wire::new().uint(1, 1).message(2, &name.wire()).sint(3, -5);
        let batch: Batch = open(&squeeze(&plain)).unwrap();
        let read = batch.name.unwrap();
        assert_eq!((read.buffer, read.sequence, batch.sealed_at_us), (9, 300, -5));
        assert_eq!(read.gateway, Uuid::from_u128(7).as_bytes());
        let fit = Fit::decode(Wire::new().uint(1, 1000).sint(2, -77).as_ref()).unwrap();
        assert_eq!((fit.ref_ticks, fit.ref_utc_us), (1000, -77));
    }
}
