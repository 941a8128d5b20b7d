//! The body of a frame of samples: blocks, each of one channel.

use super::{FrameError, MAX_COMPONENTS, TICKS_END, Ticks};
use crate::channel::ChannelId;
use crate::wire::{Malformed, Reader};

pub(crate) const FLAG_OWN_TICKS: u8 = 0b01;
pub(crate) const FLAG_COMPONENTS: u8 = 0b10;

/// A validated body of blocks.
#[derive(Debug, Clone, Copy)]
pub struct Samples<'a> {
    body: &'a [u8],
    base: Ticks,
}

impl<'a> Samples<'a> {
    pub(super) fn validate(body: &'a [u8], base: Ticks) -> Result<Self, FrameError> {
        let mut reader = Reader::new(body);
        if reader.is_empty() {
            return Err(FrameError::Body);
        }
        while !reader.is_empty() {
            Block::read(&mut reader, base)?;
        }
        Ok(Self { body, base })
    }

    /// The blocks in the frame's order.
    pub fn blocks(&self) -> Blocks<'a> {
        Blocks { reader: Reader::new(self.body), base: self.base }
    }
}

/// Iterator over the blocks of a frame.
pub struct Blocks<'a> {
    reader: Reader<'a>,
    base: Ticks,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        if self.reader.is_empty() {
            return None;
        }
        Some(Block::read(&mut self.reader, self.base).expect("validate() read every block"))
    }
}

/// Samples of one channel in one frame.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    channel: ChannelId,
    flags: u8,
    components: u8,
    count: u32,
    first: Ticks,
    interval: u32,
    values: &'a [u8],
}

/// One sample: when, and its values in units of the channel's step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When it was taken.
    pub ticks: Ticks,
    values: [i32; MAX_COMPONENTS],
    components: u8,
}

impl Sample {
    /// All components.
    pub fn values(&self) -> &[i32] {
        &self.values[..usize::from(self.components)]
    }

    /// The first component: the value of a scalar.
    pub fn value(&self) -> i32 {
        self.values[0]
    }
}

impl<'a> Block<'a> {
    fn read(reader: &mut Reader<'a>, base: Ticks) -> Result<Self, Malformed> {
        let channel = ChannelId(u16::try_from(reader.varint()?).map_err(|_| Malformed)?);
        let flags = reader.u8()?;
        if flags & !(FLAG_OWN_TICKS | FLAG_COMPONENTS) != 0 {
            return Err(Malformed);
        }
        let components = if flags & FLAG_COMPONENTS == 0 { 1 } else { reader.u8()? };
        if flags & FLAG_COMPONENTS != 0 && !(2..=MAX_COMPONENTS as u8).contains(&components) {
            return Err(Malformed);
        }
        let count = reader.varint()?;
        if count == 0 {
            return Err(Malformed);
        }
        let first = Ticks(base.0 + u64::from(reader.varint()?));
        let regular = flags & FLAG_OWN_TICKS == 0;
        let interval = if regular && count > 1 { reader.varint()? } else { 0 };
        let mut block = Self { channel, flags, components, count, first, interval, values: reader.rest() };
        let mut cursor = Cursor::new(&block);
        // A count that the bytes cannot hold fails at the first missing byte: the loop is bounded by the frame.
        let mut last = first;
        for _ in 0..count {
            last = cursor.step()?.ticks;
        }
        if last.0 >= TICKS_END {
            return Err(Malformed);
        }
        let used = block.values.len() - cursor.reader.rest().len();
        block.values = reader.take(used)?;
        Ok(block)
    }

    /// The channel's number.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Values in a sample.
    pub fn components(&self) -> u8 {
        self.components
    }

    /// Samples in this block.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Ticks of the first sample.
    pub fn first_ticks(&self) -> Ticks {
        self.first
    }

    /// Milliseconds between samples of regular timing; 0 for a single sample or samples with ticks of their own.
    pub fn interval(&self) -> u32 {
        self.interval
    }

    /// Whether each sample has its own ticks.
    pub fn own_ticks(&self) -> bool {
        self.flags & FLAG_OWN_TICKS != 0
    }

    /// The flag byte.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// The samples in order.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = Sample> + use<'a> {
        let mut cursor = Cursor::new(self);
        (0..self.count as usize).map(move |_| cursor.step().expect("read() walked every sample"))
    }
}

struct Cursor<'a> {
    reader: Reader<'a>,
    own_ticks: bool,
    interval: u32,
    started: bool,
    sample: Sample,
}

impl<'a> Cursor<'a> {
    fn new(block: &Block<'a>) -> Self {
        Self {
            reader: Reader::new(block.values),
            own_ticks: block.own_ticks(),
            interval: block.interval,
            started: false,
            sample: Sample { ticks: block.first, values: [0; MAX_COMPONENTS], components: block.components },
        }
    }

    #[inline]
    fn step(&mut self) -> Result<Sample, Malformed> {
        if self.started {
            let delta = if self.own_ticks { self.reader.varint()? } else { self.interval };
            self.sample.ticks.0 += u64::from(delta);
        }
        self.started = true;
        for value in &mut self.sample.values[..usize::from(self.sample.components)] {
            *value = value.checked_add(self.reader.zigzag()?).ok_or(Malformed)?;
        }
        Ok(self.sample)
    }
}
