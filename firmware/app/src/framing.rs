//! Samples to frames: one open frame per priority class, so that a waveform is never in a frame with scalars.

use kinara_protocol::channel::{self, ChannelId, Shape};
use kinara_protocol::frame::{Epoch, FrameBuilder, Kind, MAX_FRAME, PushError, Seq, Ticks};

/// How old an open frame's first sample may get, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAge {
    /// While a gateway watches `stream`.
    pub live_ms: u32,
    /// Otherwise.
    pub stored_ms: u32,
}

impl Default for FrameAge {
    /// External flash. A board with the nRF52's own flash only takes 15 s and 60 s, or it would wear out in weeks.
    fn default() -> Self {
        Self { live_ms: 1_000, stored_ms: 60_000 }
    }
}

/// The classes that samples come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleClass {
    /// Scalar channels, and channels that the registry does not know.
    Scalar,
    /// Waveform channels.
    Waveform,
}

impl SampleClass {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Scalar, Self::Waveform];

    /// The class of a channel.
    pub fn of(channel: ChannelId) -> Self {
        match channel::by_id(channel).map(|known| known.shape) {
            Some(Shape::Waveform) => Self::Waveform,
            Some(Shape::Scalar) | None => Self::Scalar,
        }
    }

    /// The kind of its frames.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Scalar => Kind::Scalar,
            Self::Waveform => Kind::Waveform,
        }
    }
}

/// The open frames.
pub struct Framing {
    scalar: FrameBuilder,
    waveform: FrameBuilder,
}

/// A frame that was closed: its length, and the time of its first and last sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Bytes written.
    pub len: usize,
    /// First sample.
    pub first: Ticks,
    /// Last sample.
    pub last: Ticks,
}

impl Framing {
    /// No open frame.
    pub const fn new() -> Self {
        Self { scalar: FrameBuilder::new(), waveform: FrameBuilder::new() }
    }

    fn builder(&mut self, class: SampleClass) -> &mut FrameBuilder {
        match class {
            SampleClass::Scalar => &mut self.scalar,
            SampleClass::Waveform => &mut self.waveform,
        }
    }

    /// Adds a sample to its class's open frame, which begins with it if there is none. On an error that frame has to
    /// be closed first; then the sample fits.
    pub fn push(
        &mut self,
        epoch: Epoch,
        channel: ChannelId,
        ticks: Ticks,
        values: &[i32],
    ) -> Result<(), PushError> {
        let class = SampleClass::of(channel);
        let builder = self.builder(class);
        if builder.is_empty() {
            builder.begin(class.kind(), epoch, ticks);
        }
        builder.push(channel, ticks, values)
    }

    /// Whether a class has no open frame.
    pub fn is_empty(&mut self, class: SampleClass) -> bool {
        self.builder(class).is_empty()
    }

    /// Whether a class's open frame is as old as `age_ms`.
    pub fn is_due(&mut self, class: SampleClass, now: Ticks, age_ms: u32) -> bool {
        let builder = self.builder(class);
        !builder.is_empty() && now.0.saturating_sub(builder.first_ticks().0) >= u64::from(age_ms)
    }

    /// Closes a class's open frame, if there is one, as frame `seq`.
    pub fn close(&mut self, class: SampleClass, seq: Seq, out: &mut [u8; MAX_FRAME]) -> Option<Closed> {
        let builder = self.builder(class);
        if builder.is_empty() {
            return None;
        }
        let (first, last) = (builder.first_ticks(), builder.last_ticks());
        Some(Closed { len: builder.finish(seq, out), first, last })
    }
}

impl Default for Framing {
    fn default() -> Self {
        Self::new()
    }
}
