//! A batch's trace ID and root span ID, out of its name.

use opentelemetry::trace::{SpanId, TraceId};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::Parent;

/// Separates this use of the digest from every other.
const DOMAIN: &[u8] = b"kinara batch trace 1";
/// W3C Trace Context, version 00, sampled.
const VERSION: &str = "00";
const SAMPLED: &str = "01";

/// A batch, as its trace knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchId {
    trace: [u8; 16],
    root: [u8; 8],
}

impl BatchId {
    /// Of the batch (or event batch) of this name. SHA-256 makes the IDs as good as random, which W3C Trace Context asks
    /// for, and none of them zero in practice.
    pub fn of(gateway: Uuid, buffer: u64, sequence: u64, event: bool) -> Self {
        let digest = Sha256::new()
            .chain_update(DOMAIN)
            .chain_update([u8::from(event)])
            .chain_update(gateway.as_bytes())
            .chain_update(buffer.to_be_bytes())
            .chain_update(sequence.to_be_bytes())
            .finalize();
        let (mut trace, mut root) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&digest[..16]);
        root.copy_from_slice(&digest[16..24]);
        Self { trace, root }
    }

    pub(crate) fn trace(&self) -> TraceId {
        TraceId::from_bytes(self.trace)
    }

    pub(crate) fn root(&self) -> SpanId {
        SpanId::from_bytes(self.root)
    }

    /// What everything about this batch stands under.
    pub fn parent(&self) -> Parent {
        Parent { trace: self.trace(), span: self.root(), remote: true }
    }

    /// Whether this batch is among this part of all, as `TraceIdRatioBased` of the OpenTelemetry specification has it.
    pub(crate) fn is_within(&self, ratio: f64) -> bool {
        let mut low = [0; 8];
        low.copy_from_slice(&self.trace[8..]);
        // 63 bits; the comparison is exact enough for a part of batches.
        ((u64::from_be_bytes(low) >> 1) as f64) < ratio * (1u64 << 63) as f64
    }

    /// The value of the user property by which a gateway says that it tells this batch's root span.
    pub fn traceparent(&self) -> String {
        format!("{VERSION}-{}-{}-{SAMPLED}", self.trace(), self.root())
    }

    /// Whether this is that value. Any other is nothing to us: nobody from outside chooses what is followed.
    pub fn is_told_by(&self, traceparent: &str) -> bool {
        traceparent == self.traceparent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> BatchId {
        BatchId::of(Uuid::from_u128(7), 9, sequence, false)
    }

    #[test]
    fn a_name_gives_one_trace_for_ever_and_no_two_names_the_same() {
        // Fixed here: gateways and bridges of different versions must agree.
        assert_eq!(id(0).traceparent(), "00-e3cf4b9a85abd3657ff64df0bd29c60c-f13411c4c7b1b22d-01");
        assert_ne!(id(0), id(1));
        assert_ne!(id(0), BatchId::of(Uuid::from_u128(7), 9, 0, true));
        assert!(id(0).is_told_by(&id(0).traceparent()));
        assert!(!id(0).is_told_by(&id(1).traceparent()));
        assert!(!id(0).is_told_by("00-1-2-01"));
    }

    #[test]
    fn a_part_of_batches_is_followed_and_a_larger_part_holds_the_smaller() {
        let within = |ratio: f64| (0..10_000).filter(|n| id(*n).is_within(ratio)).collect::<Vec<_>>();
        assert_eq!(within(0.0).len(), 0);
        assert_eq!(within(1.0).len(), 10_000);
        let (tenth, half) = (within(0.1), within(0.5));
        assert!((900..1_100).contains(&tenth.len()) && (4_800..5_200).contains(&half.len()));
        assert!(tenth.iter().all(|n| half.contains(n)));
    }
}
