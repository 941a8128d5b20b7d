use crate::envelope::{DeviceFrames, Series};
use crate::frame::{Body, Epoch, FrameRef, Samples};

/// Frames that do not belong in one set of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A frame of another epoch.
    #[error("a frame of epoch {0} among others")]
    Epoch(Epoch),
    /// Seqs not strictly increasing among the frames of samples.
    #[error("frame {0} is out of order or twice")]
    Order(u32),
}

/// `value, count` in turns.
pub fn run_lengths(values: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut runs: Vec<u32> = Vec::new();
    for value in values {
        match runs.as_mut_slice() {
            [.., last, count] if *last == value => *count += 1,
            _ => runs.extend([value, 1]),
        }
    }
    runs
}

/// Puts frames of one epoch, in the order of their seqs, into columns. Fits are left empty.
pub fn encode<'a>(
    hardware_id: &str,
    epoch: Epoch,
    frames: impl IntoIterator<Item = FrameRef<'a>>,
) -> Result<DeviceFrames, EncodeError> {
    let mut columns = Columns::default();
    hardware_id.clone_into(&mut columns.out.hardware_id);
    columns.out.epoch = epoch.0;
    for frame in frames {
        let header = frame.header();
        if header.epoch != epoch {
            return Err(EncodeError::Epoch(header.epoch));
        }
        match frame.body() {
            Ok(Body::Samples(samples)) => columns.push(&frame, &samples)?,
            _ => columns.out.other_frames.push(frame.bytes().to_vec()),
        }
    }
    Ok(columns.finish())
}

#[derive(Default)]
struct Columns {
    out: DeviceFrames,
    frames: usize,
    next_seq: Option<u64>,
    last_ticks: i64,
    last_step: i64,
    kinds: Vec<u32>,
    series: Vec<OpenSeries>,
    order: Vec<u32>,
    order_before: Vec<u32>,
}

#[derive(Default)]
struct OpenSeries {
    key: SeriesKey,
    out: Series,
    intervals: Vec<u32>,
    last_values: [i32; crate::frame::MAX_COMPONENTS],
}

/// Channel, components, flags, and which block of this shape in its frame.
#[derive(Default, PartialEq, Eq, Clone, Copy)]
struct SeriesKey(u16, u8, u8, usize);

impl Columns {
    fn push(&mut self, frame: &FrameRef<'_>, samples: &Samples<'_>) -> Result<(), EncodeError> {
        let header = frame.header();
        let seq = u64::from(header.seq);
        let end = self.next_seq.unwrap_or(0);
        if self.next_seq.is_some() && seq < end {
            return Err(EncodeError::Order(header.seq));
        }
        match self.out.seq_ranges.last_mut() {
            Some(len) if seq == end => *len += 1,
            _ => self.out.seq_ranges.extend([(seq - end) as u32, 1]),
        }
        self.next_seq = Some(seq + 1);
        let ticks = header.ticks.0 as i64;
        let step = ticks - self.last_ticks;
        self.out.ticks.push(step - self.last_step);
        self.last_ticks = ticks;
        self.last_step = step;
        self.kinds.push(u32::from(header.kind.to_byte()));
        self.out.crcs.push(frame.crc());

        self.order.clear();
        for block in samples.blocks() {
            let mut key = SeriesKey(block.channel().0, block.components(), block.flags(), 0);
            key.3 = self
                .order
                .iter()
                .filter(|&&index| {
                    let other = &self.series[index as usize].key;
                    (other.0, other.1, other.2) == (key.0, key.1, key.2)
                })
                .count();
            let index = self.series.iter().position(|series| series.key == key).unwrap_or_else(|| {
                self.series.push(OpenSeries {
                    key,
                    out: Series {
                        channel: u32::from(key.0),
                        components: u32::from(key.1),
                        block_flags: u32::from(key.2),
                        ..Series::default()
                    },
                    ..OpenSeries::default()
                });
                self.series.len() - 1
            });
            self.order.push(index as u32);
            let series = &mut self.series[index];
            series.out.counts.resize(self.frames, 0);
            series.out.counts.push(block.count());
            series.out.offsets.push((block.first_ticks().0 - header.ticks.0) as u32);
            if !block.own_ticks() && block.count() > 1 {
                series.intervals.push(block.interval());
            }
            let mut before = None;
            for sample in block.samples() {
                if let Some(last) = before.replace(sample.ticks.0)
                    && block.own_ticks()
                {
                    series.out.tick_deltas.push((sample.ticks.0 - last) as u32);
                }
                for (last, &value) in series.last_values.iter_mut().zip(sample.values()) {
                    series.out.values.push(value.wrapping_sub(*last));
                    *last = value;
                }
            }
        }
        if self.order == self.order_before {
            self.out.block_order.push(0);
        } else {
            self.out.block_order.push(self.order.len() as u32);
            self.out.block_order.extend_from_slice(&self.order);
            self.order_before.clone_from(&self.order);
        }
        self.frames += 1;
        Ok(())
    }

    fn finish(mut self) -> DeviceFrames {
        self.out.kinds = run_lengths(self.kinds);
        for mut series in self.series {
            series.out.counts.resize(self.frames, 0);
            series.out.intervals = run_lengths(series.intervals);
            self.out.series.push(series.out);
        }
        self.out
    }
}
