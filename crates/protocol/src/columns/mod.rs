//! Frames of one device and epoch by columns ([`DeviceFrames`](crate::envelope::DeviceFrames)): what the gateway's
//! database keeps and what a batch carries.
//!
//! The promise: nothing is lost. [`decode`] of what [`encode`] made gives every frame back, and
//! [`Decoded::rebuild`] its very bytes, which its CRC proves. Frames that are not samples, and frames that this program
//! cannot decode, travel as they are. A decoder of columns allocates in proportion to the columns at hand, never by
//! what a number in them claims, and looks at every frame before anybody works on its samples: what could not have been
//! a frame on a wearable has a [`Fault`], and no blocks.

mod decode;
mod encode;

pub use decode::{BlockView, Decoded, DecodedFrame, Fault, OtherFrame, decode};
pub use encode::{EncodeError, encode, run_lengths};

/// Columns that contradict themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ColumnsError {
    /// A run, range or count does not match the columns beside it.
    #[error("the column {0} does not match the others")]
    Mismatch(&'static str),
    /// A frame that cannot be built again.
    #[error("frame {0}: {1}")]
    Frame(u32, Fault),
}

/// Reads run lengths (`value, count` in turns), which must cover exactly `total` items.
fn expand_runs(runs: &[u32], total: usize, column: &'static str) -> Result<Vec<u32>, ColumnsError> {
    let mut out = Vec::with_capacity(total);
    for pair in runs.chunks(2) {
        let &[value, count] = pair else { return Err(ColumnsError::Mismatch(column)) };
        let count = count as usize;
        if count > total - out.len() {
            return Err(ColumnsError::Mismatch(column));
        }
        out.extend(std::iter::repeat_n(value, count));
    }
    if out.len() == total { Ok(out) } else { Err(ColumnsError::Mismatch(column)) }
}

#[cfg(test)]
mod tests;
