//! Building a frame of samples: samples come in as they are taken, channel after channel; the frame groups them into
//! blocks. The builder counts the encoded size exactly, so that a sample either fits or is refused.

use super::samples::{FLAG_COMPONENTS, FLAG_OWN_TICKS};
use super::{
    Epoch, HEADER_LEN, Kind, MAX_BODY, MAX_COMPONENTS, MAX_FRAME, Seq, TICKS_END, Ticks, seal, write_header,
};
use crate::channel::{self, ChannelId, Timing};
use crate::wire::{Writer, varint_len, zigzag};

const MAX_BLOCKS: usize = 24;
/// Every value takes at least one byte of body.
const MAX_VALUES: usize = MAX_BODY;

/// Why a sample was not taken. The frame is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(thiserror::Error))]
pub enum PushError {
    /// It does not fit: finish this frame and begin another.
    #[cfg_attr(feature = "std", error("the frame is full"))]
    Full,
    /// It is older than the frame's first ticks, or older than its channel's last sample.
    #[cfg_attr(feature = "std", error("the sample is older than what the frame holds"))]
    Order,
    /// No value, or more than four.
    #[cfg_attr(feature = "std", error("a sample has one to four values"))]
    Components,
}

#[derive(Clone, Copy)]
struct OpenBlock {
    channel: ChannelId,
    flags: u8,
    components: u8,
    count: u32,
    first: u32,
    last: u32,
    interval: u32,
    last_values: [i32; MAX_COMPONENTS],
    content_len: usize,
}

impl OpenBlock {
    fn own_ticks(&self) -> bool {
        self.flags & FLAG_OWN_TICKS != 0
    }

    fn encoded_len(&self) -> usize {
        let interval = if !self.own_ticks() && self.count > 1 { varint_len(self.interval) } else { 0 };
        varint_len(u32::from(self.channel.0))
            + 1
            + usize::from(self.flags & FLAG_COMPONENTS != 0)
            + varint_len(self.count)
            + varint_len(self.first)
            + interval
            + self.content_len
    }

    /// Whether a sample at `offset` continues this block's timing.
    fn continues_at(&self, offset: u32) -> bool {
        self.own_ticks() || self.count == 1 || offset - self.last == self.interval
    }
}

#[derive(Clone, Copy, Default)]
struct Staged {
    block: u8,
    offset: u32,
    values_at: u8,
}

/// Collects samples for one frame. About 4 KiB, no allocation.
pub struct FrameBuilder {
    kind: Kind,
    epoch: Epoch,
    base: Ticks,
    body_len: usize,
    blocks: [OpenBlock; MAX_BLOCKS],
    block_count: usize,
    staged: [Staged; MAX_VALUES],
    staged_count: usize,
    values: [i32; MAX_VALUES],
    value_count: usize,
    last: u32,
}

impl FrameBuilder {
    /// An empty builder; [`begin`](Self::begin) says what it builds.
    pub const fn new() -> Self {
        const NO_BLOCK: OpenBlock = OpenBlock {
            channel: ChannelId(0),
            flags: 0,
            components: 1,
            count: 0,
            first: 0,
            last: 0,
            interval: 0,
            last_values: [0; MAX_COMPONENTS],
            content_len: 0,
        };
        Self {
            kind: Kind::Scalar,
            epoch: Epoch(0),
            base: Ticks(0),
            body_len: 0,
            blocks: [NO_BLOCK; MAX_BLOCKS],
            block_count: 0,
            staged: [Staged { block: 0, offset: 0, values_at: 0 }; MAX_VALUES],
            staged_count: 0,
            values: [0; MAX_VALUES],
            value_count: 0,
            last: 0,
        }
    }

    /// Starts a frame whose first sample is taken at `ticks`. What was not finished is gone.
    pub fn begin(&mut self, kind: Kind, epoch: Epoch, ticks: Ticks) {
        self.kind = kind;
        self.epoch = epoch;
        self.base = ticks;
        self.body_len = 0;
        self.block_count = 0;
        self.staged_count = 0;
        self.value_count = 0;
        self.last = 0;
    }

    /// Whether it holds no sample.
    pub fn is_empty(&self) -> bool {
        self.staged_count == 0
    }

    /// Samples it holds.
    pub fn len(&self) -> usize {
        self.staged_count
    }

    /// The ticks given to [`begin`](Self::begin).
    pub fn first_ticks(&self) -> Ticks {
        self.base
    }

    /// The newest sample's ticks, or the first ticks while empty.
    pub fn last_ticks(&self) -> Ticks {
        Ticks(self.base.0 + u64::from(self.last))
    }

    /// Adds a sample. Samples of one channel come in the order of their ticks.
    pub fn push(&mut self, channel: ChannelId, ticks: Ticks, values: &[i32]) -> Result<(), PushError> {
        if values.is_empty() || values.len() > MAX_COMPONENTS {
            return Err(PushError::Components);
        }
        let offset = ticks.0.checked_sub(self.base.0).ok_or(PushError::Order)?;
        let offset = u32::try_from(offset).map_err(|_| PushError::Full)?;
        if ticks.0 >= TICKS_END {
            return Err(PushError::Full);
        }
        if self.value_count + values.len() > MAX_VALUES {
            return Err(PushError::Full);
        }
        let open = self.blocks[..self.block_count]
            .iter()
            .rposition(|block| block.channel == channel && usize::from(block.components) == values.len());
        if open.is_some_and(|index| offset < self.blocks[index].last) {
            return Err(PushError::Order);
        }
        match open.filter(|&index| self.blocks[index].continues_at(offset)) {
            Some(index) => self.extend(index, offset, values),
            None => self.open(channel, offset, values),
        }
    }

    fn extend(&mut self, index: usize, offset: u32, values: &[i32]) -> Result<(), PushError> {
        let mut block = self.blocks[index];
        let before = block.encoded_len();
        let delta = offset - block.last;
        if block.own_ticks() {
            block.content_len += varint_len(delta);
        } else {
            block.interval = delta;
        }
        for (last, &value) in block.last_values.iter_mut().zip(values) {
            // A jump too large for a difference of 32 bits starts a new block.
            let Some(difference) = value.checked_sub(*last) else {
                return self.open(block.channel, offset, values);
            };
            block.content_len += varint_len(zigzag(difference));
            *last = value;
        }
        block.count += 1;
        block.last = offset;
        let body_len = self.body_len - before + block.encoded_len();
        if body_len > MAX_BODY {
            return Err(PushError::Full);
        }
        self.blocks[index] = block;
        self.stage(index, offset, values, body_len);
        Ok(())
    }

    fn open(&mut self, channel: ChannelId, offset: u32, values: &[i32]) -> Result<(), PushError> {
        if self.block_count == MAX_BLOCKS {
            return Err(PushError::Full);
        }
        let per_beat = channel::by_id(channel).is_some_and(|known| known.timing == Timing::PerBeat);
        let mut flags = if per_beat { FLAG_OWN_TICKS } else { 0 };
        if values.len() > 1 {
            flags |= FLAG_COMPONENTS;
        }
        let mut last_values = [0; MAX_COMPONENTS];
        last_values[..values.len()].copy_from_slice(values);
        let block = OpenBlock {
            channel,
            flags,
            components: values.len() as u8,
            count: 1,
            first: offset,
            last: offset,
            interval: 0,
            last_values,
            content_len: values.iter().map(|&value| varint_len(zigzag(value))).sum(),
        };
        let body_len = self.body_len + block.encoded_len();
        if body_len > MAX_BODY {
            return Err(PushError::Full);
        }
        self.blocks[self.block_count] = block;
        self.block_count += 1;
        self.stage(self.block_count - 1, offset, values, body_len);
        Ok(())
    }

    fn stage(&mut self, block: usize, offset: u32, values: &[i32], body_len: usize) {
        self.staged[self.staged_count] =
            Staged { block: block as u8, offset, values_at: self.value_count as u8 };
        self.staged_count += 1;
        self.values[self.value_count..self.value_count + values.len()].copy_from_slice(values);
        self.value_count += values.len();
        self.body_len = body_len;
        self.last = self.last.max(offset);
    }

    /// Encodes the frame into `out` and gives its length. The builder is empty afterwards and stays at the same
    /// first ticks; [`begin`](Self::begin) the next one.
    pub fn finish(&mut self, seq: Seq, out: &mut [u8; MAX_FRAME]) -> usize {
        let mut writer = Writer::new(out);
        write_header(&mut writer, self.kind, self.epoch, seq, self.base);
        for (index, block) in self.blocks[..self.block_count].iter().enumerate() {
            writer.varint(u32::from(block.channel.0));
            writer.u8(block.flags);
            if block.flags & FLAG_COMPONENTS != 0 {
                writer.u8(block.components);
            }
            writer.varint(block.count);
            writer.varint(block.first);
            if !block.own_ticks() && block.count > 1 {
                writer.varint(block.interval);
            }
            let mut last_values = [0i32; MAX_COMPONENTS];
            let mut last_offset = None;
            for staged in self.staged[..self.staged_count].iter().filter(|s| usize::from(s.block) == index) {
                if let Some(last) = last_offset.replace(staged.offset)
                    && block.own_ticks()
                {
                    writer.varint(staged.offset - last);
                }
                let at = usize::from(staged.values_at);
                let values = &self.values[at..at + usize::from(block.components)];
                for (last, &value) in last_values.iter_mut().zip(values) {
                    writer.zigzag(value.wrapping_sub(*last));
                    *last = value;
                }
            }
        }
        debug_assert_eq!(writer.len(), HEADER_LEN + self.body_len);
        let body_end = writer.len();
        self.begin(self.kind, self.epoch, self.base);
        seal(out, body_end)
    }
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self::new()
    }
}
