//! PostgreSQL's binary COPY format, written by hand.
//!
//! A row of readings is 130 bytes of which most repeat: it is kept as a template, and only what differs is put in.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

/// Microseconds from 1970 to PostgreSQL's own beginning of time, 2000.
const PG_EPOCH_US: i64 = 946_684_800_000_000;
/// What is handed to the connection at once.
const CHUNK: usize = 256 * 1024;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();

const READING_LEN: usize = 2 + 10 * 4 + 8 + 3 * 16 + 2 + 2 + 8 + 8 + 8 + 4;

/// Microseconds since 1970 as PostgreSQL counts them.
pub fn pg_time(utc_us: i64) -> i64 {
    utc_us.saturating_sub(PG_EPOCH_US)
}

/// Rows being written, in chunks ready to send.
pub struct Rows {
    chunks: Vec<Bytes>,
    buffer: BytesMut,
    count: u64,
}

impl Default for Rows {
    fn default() -> Self {
        Self::new()
    }
}

impl Rows {
    /// No rows.
    pub fn new() -> Self {
        let mut buffer = BytesMut::with_capacity(CHUNK + 4096);
        buffer.put_slice(HEADER);
        Self { chunks: Vec::new(), buffer, count: 0 }
    }

    /// How many rows.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn row_ended(&mut self) {
        self.count += 1;
        if self.buffer.len() >= CHUNK {
            let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(CHUNK + 4096));
            self.chunks.push(full.freeze());
        }
    }

    /// All chunks, the trailer included.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.buffer.put_slice(&TRAILER);
        self.chunks.push(self.buffer.freeze());
        self.chunks
    }

    /// Begins a row of any table.
    pub fn begin(&mut self, fields: i16) {
        self.buffer.put_i16(fields);
    }

    /// A field of the row.
    pub fn field(&mut self, bytes: &[u8]) {
        self.buffer.put_i32(bytes.len() as i32);
        self.buffer.put_slice(bytes);
    }

    /// A NULL field.
    pub fn null(&mut self) {
        self.buffer.put_i32(-1);
    }

    /// A field that is an array of int8.
    pub fn int8_array(&mut self, values: &[i64]) {
        const INT8_OID: i32 = 20;
        self.buffer.put_i32(20 + 12 * values.len() as i32);
        for head in [1, 0, INT8_OID, values.len() as i32, 1] {
            self.buffer.put_i32(head);
        }
        for value in values {
            self.buffer.put_i32(8);
            self.buffer.put_i64(*value);
        }
    }

    /// Ends a row begun with [`Rows::begin`].
    pub fn end(&mut self) {
        self.row_ended();
    }

    /// A row of readings.
    #[inline]
    pub fn reading(
        &mut self,
        template: &mut ReadingTemplate,
        utc_us: i64,
        kind: i16,
        index: i16,
        value: f64,
        quality: f32,
    ) {
        let row = &mut template.0;
        row[TIME..TIME + 8].copy_from_slice(&pg_time(utc_us).to_be_bytes());
        row[KIND..KIND + 2].copy_from_slice(&kind.to_be_bytes());
        row[INDEX..INDEX + 2].copy_from_slice(&index.to_be_bytes());
        row[VALUE..VALUE + 8].copy_from_slice(&value.to_be_bytes());
        row[QUALITY..QUALITY + 4].copy_from_slice(&quality.to_be_bytes());
        self.buffer.put_slice(row);
        self.row_ended();
    }
}

const TIME: usize = 2 + 4;
const TENANT: usize = TIME + 8 + 4;
const USER: usize = TENANT + 16 + 4;
const DEVICE: usize = USER + 16 + 4;
const KIND: usize = DEVICE + 16 + 4;
const INDEX: usize = KIND + 2 + 4;
const EPOCH: usize = INDEX + 2 + 4;
const SEQ: usize = EPOCH + 8 + 4;
const VALUE: usize = SEQ + 8 + 4;
const QUALITY: usize = VALUE + 8 + 4;

/// A row of `ts.readings` (time, tenant, user, device, type, idx, epoch, seq, value, quality) with what a frame's rows
/// have in common.
pub struct ReadingTemplate([u8; READING_LEN]);

impl ReadingTemplate {
    /// For rows of one wearer, device and epoch.
    pub fn new(tenant: Uuid, user: Uuid, device: Uuid, epoch: u64) -> Self {
        let mut row = [0; READING_LEN];
        row[..2].copy_from_slice(&10i16.to_be_bytes());
        for (at, len) in [
            (TIME, 8i32),
            (TENANT, 16),
            (USER, 16),
            (DEVICE, 16),
            (KIND, 2),
            (INDEX, 2),
            (EPOCH, 8),
            (SEQ, 8),
            (VALUE, 8),
            (QUALITY, 4),
        ] {
            row[at - 4..at].copy_from_slice(&len.to_be_bytes());
        }
        row[TENANT..TENANT + 16].copy_from_slice(tenant.as_bytes());
        row[USER..USER + 16].copy_from_slice(user.as_bytes());
        row[DEVICE..DEVICE + 16].copy_from_slice(device.as_bytes());
        row[EPOCH..EPOCH + 8].copy_from_slice(&epoch.to_be_bytes());
        Self(row)
    }

    /// For the rows of one frame.
    pub fn set_seq(&mut self, seq: u32) {
        self.0[SEQ..SEQ + 8].copy_from_slice(&i64::from(seq).to_be_bytes());
    }

    /// For another wearer.
    #[cfg(feature = "sabotage")]
    pub fn set_user(&mut self, user: Uuid) {
        self.0[USER..USER + 16].copy_from_slice(user.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_no_byte_unaccounted_for() {
        assert_eq!(QUALITY + 4, READING_LEN);
        let mut rows = Rows::new();
        let mut template =
            ReadingTemplate::new(Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3), u64::MAX);
        template.set_seq(5);
        for _ in 0..3_000 {
            rows.reading(&mut template, 946_684_800_000_001, 1, 2, 0.5, 1.0);
        }
        let chunks = rows.finish();
        assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), 19 + 3_000 * READING_LEN + 2);
        assert_eq!(chunks[0][19 + TIME..19 + TIME + 8], 1i64.to_be_bytes());
    }
}
