//! What happens to frames once they are safe: inference reads them, and what it finds goes out as events.
//!
//! The promise: a frame is offered here only after the SQLite transaction that holds it is on disk, at most once
//! for each time the daemon stores it, in the order of one device's deliveries. The channel is bounded and never
//! waits: a reader that cannot follow loses frames here (counted, said in the log), never in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

pub use kinara_protocol::envelope::Fit;

use crate::hardware::HardwareId;

/// All samples of one channel in a frame, in the order of their ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelSamples {
    /// The channel's number in `kinara_protocol::channel`.
    pub channel: u16,
    /// How many values a sample has (1, or 3 for acceleration).
    pub components: u8,
    /// The tick (ms since boot) of each sample.
    pub ticks: Vec<u64>,
    /// The values in units of the channel's step; `components` for each sample.
    pub values: Vec<i32>,
}

/// A frame that is on disk.
#[derive(Debug, Clone)]
pub struct StoredFrame {
    /// The wearable it came from.
    pub hardware: HardwareId,
    /// The wearable's epoch: log id in the upper, boot counter in the lower 32 bits.
    pub epoch: u64,
    /// The frame's number in its epoch.
    pub seq: u32,
    /// The tick in the frame's header.
    pub ticks: u64,
    /// Decoded samples; empty for anchors, device events and kinds this version does not know.
    pub samples: Vec<ChannelSamples>,
    /// `Some(true)` when the frame says the wearable was put on, `Some(false)` when it was taken off.
    pub worn: Option<bool>,
    /// How to stamp it, when this is known already.
    pub fit: Option<Fit>,
}

/// Where the sessions put stored frames.
#[derive(Debug, Clone)]
pub struct FrameSink {
    sender: mpsc::Sender<Arc<StoredFrame>>,
    missed: Arc<AtomicU64>,
}

impl FrameSink {
    /// A sink and the end to read from, with room for `capacity` frames.
    pub fn new(capacity: usize) -> (Self, mpsc::Receiver<Arc<StoredFrame>>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self { sender, missed: Arc::default() }, receiver)
    }

    /// Hands a frame on without waiting; counts it as missed when the reader is behind.
    pub fn offer(&self, frame: StoredFrame) {
        match self.sender.try_send(Arc::new(frame)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let missed = self.missed.fetch_add(1, Ordering::Relaxed);
                if missed.is_multiple_of(1000) {
                    tracing::warn!(
                        missed = missed + 1,
                        "inference cannot follow; frames are stored but not looked at"
                    );
                }
            }
        }
    }

    /// How many frames the reader has missed.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// What inference (or a rule) has found.
///
/// The key `(hardware, kind, producer, epoch, onset_ticks / grid_ticks)` is unique: putting the same event again
/// changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// The wearable.
    pub hardware: HardwareId,
    /// What happened, for example `hot_flash`; at most 50 characters.
    pub kind: String,
    /// Model name and version (`hot-flash-gru@1.2.0`) or rule (`rule:sternal@1`).
    pub producer: String,
    /// The epoch of the frames it was derived from.
    pub epoch: u64,
    /// The tick of the onset, on the producer's grid.
    pub onset_ticks: u64,
    /// The grid's spacing in ticks; not 0.
    pub grid_ticks: u64,
    /// The seq of the frame that holds the onset, by which the cloud knows whose event it is.
    pub seq: u32,
    /// How the epoch's ticks turn into UTC at the onset, when known. Unstamped events wait for the clock.
    pub fit: Option<Fit>,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// 0 to 1.
    pub confidence: f32,
    /// A JSON object with the evidence.
    pub data: serde_json::Value,
}
