use super::{ColumnsError, expand_runs};
use crate::channel::ChannelId;
use crate::envelope::{DeviceFrames, Series};
use crate::frame::{
    CRC_LEN, Epoch, FLAG_COMPONENTS, FLAG_OWN_TICKS, HEADER_LEN, Header, Kind, MAX_BODY, MAX_COMPONENTS,
    MAX_FRAME, Seq, TICKS_END, Ticks, VERSION,
};
use crate::wire::Writer;

/// Room for a body of at most [`MAX_BODY`] values, however badly they are coded: each with its ticks in five bytes each, in
/// a block of its own.
const SCRATCH: usize = HEADER_LEN + MAX_BODY * 32;

/// Why what columns hold was no frame on a wearable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It has no sample.
    #[error("a frame of samples without any")]
    Empty,
    /// Its kind is not one of samples.
    #[error("samples in a frame of kind {0:#04x}")]
    Kind(u8),
    /// It does not fit into a frame.
    #[error("more than fits into a frame")]
    Length,
    /// Its bytes have another CRC than the one that was received.
    #[error("the frame does not match its CRC")]
    Crc,
}

/// Columns made readable frame by frame.
#[derive(Debug)]
pub struct Decoded<'a> {
    columns: &'a DeviceFrames,
    frames: Vec<DecodedFrame>,
    blocks: Vec<BlockAt>,
    /// Values of each series, no longer as differences.
    values: Vec<Vec<i32>>,
    others: Vec<OtherFrame<'a>>,
}

/// A frame of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodedFrame {
    /// Its number.
    pub seq: Seq,
    /// Scalar or waveform.
    pub kind: Kind,
    /// Its header's ticks.
    pub ticks: Ticks,
    /// Its CRC as received.
    pub crc: u32,
    /// Index into the columns' fits; none before sealing.
    pub fit: Option<u32>,
    /// Why it cannot have been a frame. Nothing is done with its samples then.
    pub fault: Option<Fault>,
    first_block: u32,
    block_count: u32,
}

/// A frame that travels as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherFrame<'a> {
    /// The whole frame.
    pub bytes: &'a [u8],
    /// Index into the columns' fits; none before sealing.
    pub fit: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct BlockAt {
    series: u32,
    first_sample: u32,
    first_delta: u32,
    count: u32,
    offset: u32,
    interval: u32,
}

/// A block of a decoded frame.
#[derive(Debug, Clone, Copy)]
pub struct BlockView<'a> {
    /// The channel's number.
    pub channel: ChannelId,
    /// Values in a sample.
    pub components: u8,
    /// Milliseconds between samples of regular timing; 0 for a single sample or samples with ticks of their own.
    pub interval: u32,
    /// Ticks of the first sample.
    pub first_ticks: Ticks,
    /// Whether each sample has its own ticks.
    pub own_ticks: bool,
    /// The values, sample by sample, in units of the channel's step.
    pub values: &'a [i32],
    deltas: &'a [u32],
    flags: u8,
}

impl<'a> BlockView<'a> {
    /// Samples in this block.
    pub fn count(&self) -> usize {
        self.values.len() / usize::from(self.components)
    }

    /// Each sample's ticks and values.
    pub fn samples(&self) -> impl Iterator<Item = (Ticks, &'a [i32])> + use<'a> {
        let view = *self;
        let mut ticks = self.first_ticks.0;
        self.values.chunks_exact(usize::from(self.components)).enumerate().map(move |(index, values)| {
            if index > 0 {
                ticks += u64::from(if view.own_ticks { view.deltas[index - 1] } else { view.interval });
            }
            (Ticks(ticks), values)
        })
    }
}

/// Checks the columns against each other and makes them readable.
pub fn decode(columns: &DeviceFrames) -> Result<Decoded<'_>, ColumnsError> {
    let total = columns.ticks.len();
    let seqs = seqs(&columns.seq_ranges, total)?;
    let kinds = expand_runs(&columns.kinds, total, "kinds")?;
    if columns.crcs.len() != total {
        return Err(ColumnsError::Mismatch("crcs"));
    }
    let fits = fits(columns, total)?;
    let mut series = columns.series.iter().map(SeriesCursor::new).collect::<Result<Vec<_>, _>>()?;
    if series.iter().any(|cursor| cursor.series.counts.len() != total) {
        return Err(ColumnsError::Mismatch("counts"));
    }

    let mut frames = Vec::with_capacity(total);
    let mut blocks: Vec<BlockAt> = Vec::new();
    let mut order: &[u32] = &[];
    let mut order_rest = columns.block_order.as_slice();
    let (mut ticks, mut step) = (0i64, 0i64);
    for index in 0..total {
        step = step.wrapping_add(columns.ticks[index]);
        ticks = ticks.wrapping_add(step);
        if !(0..TICKS_END as i64).contains(&ticks) {
            return Err(ColumnsError::Mismatch("ticks"));
        }
        let kind = u8::try_from(kinds[index]).map_err(|_| ColumnsError::Mismatch("kinds"))?;
        let (&count, rest) = order_rest.split_first().ok_or(ColumnsError::Mismatch("block_order"))?;
        order_rest = rest;
        if count > 0 {
            (order, order_rest) =
                rest.split_at_checked(count as usize).ok_or(ColumnsError::Mismatch("block_order"))?;
        }
        let first_block = blocks.len() as u32;
        for &at in order {
            let cursor = series.get_mut(at as usize).ok_or(ColumnsError::Mismatch("block_order"))?;
            blocks.push(cursor.next_block(at, index, ticks as u64)?);
        }
        frames.push(DecodedFrame {
            seq: seqs[index],
            kind: Kind::from_byte(kind),
            ticks: Ticks(ticks as u64),
            crc: columns.crcs[index],
            fit: fits.as_ref().map(|fits| fits[index]),
            fault: None,
            first_block,
            block_count: order.len() as u32,
        });
    }
    if !order_rest.is_empty() || series.iter().any(|cursor| !cursor.is_used_up()) {
        return Err(ColumnsError::Mismatch("block_order"));
    }
    let others = columns
        .other_frames
        .iter()
        .enumerate()
        .map(|(index, bytes)| OtherFrame { bytes, fit: fits.as_ref().map(|fits| fits[total + index]) });
    let mut decoded = Decoded {
        columns,
        frames,
        blocks,
        values: series.into_iter().map(|cursor| cursor.values).collect(),
        others: others.collect(),
    };
    decoded.find_faults();
    Ok(decoded)
}

fn seqs(ranges: &[u32], total: usize) -> Result<Vec<Seq>, ColumnsError> {
    const COLUMN: ColumnsError = ColumnsError::Mismatch("seq_ranges");
    let mut out = Vec::with_capacity(total);
    let mut end = 0u64;
    for pair in ranges.chunks(2) {
        let &[distance, len] = pair else { return Err(COLUMN) };
        let start = end + u64::from(distance);
        end = start + u64::from(len);
        if len == 0 || end > 1 << 32 || len as usize > total - out.len() {
            return Err(COLUMN);
        }
        out.extend((start..end).map(|seq| seq as Seq));
    }
    if out.len() == total { Ok(out) } else { Err(COLUMN) }
}

fn fits(columns: &DeviceFrames, total: usize) -> Result<Option<Vec<u32>>, ColumnsError> {
    if columns.fits.is_empty() && columns.fit_of.is_empty() {
        return Ok(None);
    }
    let fits = expand_runs(&columns.fit_of, total + columns.other_frames.len(), "fit_of")?;
    if fits.iter().any(|&fit| fit as usize >= columns.fits.len()) {
        return Err(ColumnsError::Mismatch("fit_of"));
    }
    Ok(Some(fits))
}

struct SeriesCursor<'a> {
    series: &'a Series,
    values: Vec<i32>,
    intervals: Vec<u32>,
    components: usize,
    blocks: usize,
    samples: usize,
    deltas: usize,
    intervals_used: usize,
    last_frame: Option<usize>,
}

impl<'a> SeriesCursor<'a> {
    fn new(series: &'a Series) -> Result<Self, ColumnsError> {
        const COLUMN: ColumnsError = ColumnsError::Mismatch("series");
        let components = series.components as usize;
        let flags = u8::try_from(series.block_flags).map_err(|_| COLUMN)?;
        if flags & !(FLAG_OWN_TICKS | FLAG_COMPONENTS) != 0
            || !(1..=MAX_COMPONENTS).contains(&components)
            || (flags & FLAG_COMPONENTS != 0) != (components > 1)
            || series.channel > u32::from(u16::MAX)
        {
            return Err(COLUMN);
        }
        let regular = flags & FLAG_OWN_TICKS == 0;
        let long = series.counts.iter().filter(|&&count| count > 1).count();
        let intervals = expand_runs(&series.intervals, if regular { long } else { 0 }, "intervals")?;
        let mut values = Vec::with_capacity(series.values.len());
        let mut last = [0i32; MAX_COMPONENTS];
        for sample in series.values.chunks(components) {
            for (last, difference) in last.iter_mut().zip(sample) {
                *last = last.wrapping_add(*difference);
                values.push(*last);
            }
        }
        Ok(Self {
            series,
            values,
            intervals,
            components,
            blocks: 0,
            samples: 0,
            deltas: 0,
            intervals_used: 0,
            last_frame: None,
        })
    }

    fn own_ticks(&self) -> bool {
        self.series.block_flags & u32::from(FLAG_OWN_TICKS) != 0
    }

    fn next_block(&mut self, at: u32, frame: usize, frame_ticks: u64) -> Result<BlockAt, ColumnsError> {
        let count = self.series.counts[frame];
        if count == 0 || self.last_frame.replace(frame) == Some(frame) {
            return Err(ColumnsError::Mismatch("counts"));
        }
        let offset = *self.series.offsets.get(self.blocks).ok_or(ColumnsError::Mismatch("offsets"))?;
        let (first_sample, first_delta) = (self.samples, self.deltas);
        self.blocks += 1;
        self.samples += count as usize;
        if self.samples * self.components > self.values.len() {
            return Err(ColumnsError::Mismatch("values"));
        }
        let mut interval = 0;
        let mut span = 0u64;
        if self.own_ticks() {
            self.deltas += count as usize - 1;
            let deltas = self
                .series
                .tick_deltas
                .get(first_delta..self.deltas)
                .ok_or(ColumnsError::Mismatch("tick_deltas"))?;
            span = deltas.iter().map(|&delta| u64::from(delta)).sum();
        } else if count > 1 {
            interval = self.intervals[self.intervals_used];
            self.intervals_used += 1;
            span = u64::from(interval) * u64::from(count - 1);
        }
        if frame_ticks + u64::from(offset) + span >= TICKS_END {
            return Err(ColumnsError::Mismatch("ticks"));
        }
        Ok(BlockAt {
            series: at,
            first_sample: first_sample as u32,
            first_delta: first_delta as u32,
            count,
            offset,
            interval,
        })
    }

    fn is_used_up(&self) -> bool {
        self.samples * self.components == self.values.len()
            && self.blocks == self.series.offsets.len()
            && self.deltas == self.series.tick_deltas.len()
            && self.intervals_used == self.intervals.len()
    }
}

impl<'a> Decoded<'a> {
    /// The columns.
    pub fn columns(&self) -> &'a DeviceFrames {
        self.columns
    }

    /// The epoch of all frames.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.columns.epoch)
    }

    /// The frames of samples, by seq.
    pub fn frames(&self) -> &[DecodedFrame] {
        &self.frames
    }

    /// The frames that travel as they were received.
    pub fn others(&self) -> &[OtherFrame<'a>] {
        &self.others
    }

    /// The blocks of a frame in its own order.
    pub fn blocks(&self, frame: &DecodedFrame) -> impl Iterator<Item = BlockView<'_>> {
        let first = frame.first_block as usize;
        self.blocks[first..first + frame.block_count as usize].iter().map(move |at| {
            let series = &self.columns.series[at.series as usize];
            let components = series.components as usize;
            let from = at.first_sample as usize * components;
            let own_ticks = series.block_flags & u32::from(FLAG_OWN_TICKS) != 0;
            let deltas = if own_ticks { at.count as usize - 1 } else { 0 };
            BlockView {
                channel: ChannelId(series.channel as u16),
                components: components as u8,
                interval: at.interval,
                first_ticks: Ticks(frame.ticks.0 + u64::from(at.offset)),
                own_ticks,
                values: &self.values[at.series as usize][from..from + at.count as usize * components],
                deltas: &series.tick_deltas[at.first_delta as usize..at.first_delta as usize + deltas],
                flags: series.block_flags as u8,
            }
        })
    }

    /// The frame's header.
    pub fn header(&self, frame: &DecodedFrame) -> Header {
        Header { version: VERSION, kind: frame.kind, epoch: self.epoch(), seq: frame.seq, ticks: frame.ticks }
    }

    /// Builds a frame's bytes again; gives its length. One with a fault cannot be.
    pub fn rebuild(&self, frame: &DecodedFrame, out: &mut [u8; MAX_FRAME]) -> Result<usize, ColumnsError> {
        let mut scratch = [0; SCRATCH];
        match frame.fault {
            Some(fault @ (Fault::Length | Fault::Crc)) => Err(ColumnsError::Frame(frame.seq, fault)),
            Some(Fault::Empty | Fault::Kind(_)) | None => {
                let end = self.write(frame, &mut scratch);
                out[..end].copy_from_slice(&scratch[..end]);
                Ok(crate::frame::seal(out, end))
            }
        }
    }

    /// A frame by itself, in columns of its own: what is kept of one that cannot be built again.
    pub fn alone(&self, frame: &DecodedFrame) -> DeviceFrames {
        let fit = frame.fit.map(|index| self.columns.fits[index as usize]);
        let blocks = frame.block_count;
        DeviceFrames {
            hardware_id: self.columns.hardware_id.clone(),
            epoch: self.columns.epoch,
            seq_ranges: vec![frame.seq, 1],
            kinds: vec![u32::from(frame.kind.to_byte()), 1],
            ticks: vec![frame.ticks.0 as i64],
            crcs: vec![frame.crc],
            series: self.blocks(frame).map(|block| block.alone(frame.ticks)).collect(),
            block_order: if blocks == 0 {
                vec![0]
            } else {
                std::iter::once(blocks).chain(0..blocks).collect()
            },
            other_frames: Vec::new(),
            fits: fit.into_iter().collect(),
            fit_of: if fit.is_some() { vec![0, 1] } else { Vec::new() },
        }
    }

    fn find_faults(&mut self) {
        let mut scratch = [0; SCRATCH];
        for index in 0..self.frames.len() {
            self.frames[index].fault = self.fault(&self.frames[index], &mut scratch);
        }
    }

    /// Looks at a frame as a whole: the lengths first, then each byte once.
    fn fault(&self, frame: &DecodedFrame, scratch: &mut [u8; SCRATCH]) -> Option<Fault> {
        let first = frame.first_block as usize;
        let blocks = &self.blocks[first..first + frame.block_count as usize];
        let values =
            |at: &BlockAt| at.count as usize * self.columns.series[at.series as usize].components as usize;
        if blocks.iter().map(values).sum::<usize>() > MAX_BODY {
            return Some(Fault::Length);
        }
        let end = self.write(frame, scratch);
        if end > HEADER_LEN + MAX_BODY {
            return Some(Fault::Length);
        }
        scratch[2..4].copy_from_slice(&((end + CRC_LEN) as u16).to_le_bytes());
        if crate::frame::checksum(&scratch[..end]) != frame.crc {
            return Some(Fault::Crc);
        }
        match frame.kind {
            Kind::Scalar | Kind::Waveform if blocks.is_empty() => Some(Fault::Empty),
            Kind::Scalar | Kind::Waveform => None,
            other => Some(Fault::Kind(other.to_byte())),
        }
    }

    /// Header and body; gives where the body ends. Of at most [`MAX_BODY`] values.
    fn write(&self, frame: &DecodedFrame, scratch: &mut [u8; SCRATCH]) -> usize {
        let mut writer = Writer::new(scratch);
        crate::frame::write_header(&mut writer, frame.kind, self.epoch(), frame.seq, frame.ticks);
        for block in self.blocks(frame) {
            block.write(frame.ticks, &mut writer);
        }
        writer.len()
    }
}

impl BlockView<'_> {
    /// As a series of this block alone.
    fn alone(&self, base: Ticks) -> Series {
        let components = usize::from(self.components);
        let before = |at: usize| at.checked_sub(components).map_or(0, |before| self.values[before]);
        Series {
            channel: u32::from(self.channel.0),
            components: u32::from(self.components),
            block_flags: u32::from(self.flags),
            counts: vec![self.count() as u32],
            offsets: vec![(self.first_ticks.0 - base.0) as u32],
            intervals: if !self.own_ticks && self.count() > 1 { vec![self.interval, 1] } else { Vec::new() },
            tick_deltas: self.deltas.to_vec(),
            values: self.values.iter().enumerate().map(|(at, v)| v.wrapping_sub(before(at))).collect(),
        }
    }

    fn write(&self, base: Ticks, writer: &mut Writer<'_>) {
        writer.varint(u32::from(self.channel.0));
        writer.u8(self.flags);
        if self.flags & FLAG_COMPONENTS != 0 {
            writer.u8(self.components);
        }
        writer.varint(self.count() as u32);
        writer.varint((self.first_ticks.0 - base.0) as u32);
        if !self.own_ticks && self.count() > 1 {
            writer.varint(self.interval);
        }
        let mut last = [0i32; MAX_COMPONENTS];
        for (index, sample) in self.values.chunks_exact(usize::from(self.components)).enumerate() {
            if index > 0 && self.own_ticks {
                writer.varint(self.deltas[index - 1]);
            }
            for (last, &value) in last.iter_mut().zip(sample) {
                writer.zigzag(value.wrapping_sub(*last));
                *last = value;
            }
        }
    }
}
