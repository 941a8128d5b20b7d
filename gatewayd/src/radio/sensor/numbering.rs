//! Measurements into numbered frames: the same builder and the same bytes as a wearable's own.

use bytes::Bytes;
use kinara_protocol::channel::{self, ChannelId};
use kinara_protocol::frame::{Epoch, FrameBuilder, Kind, MAX_FRAME, Seq, Ticks};

use super::Measurement;

/// Samples that wait for their frame; a second of any sensor is far less.
const MOST_SAMPLES: usize = 1024;

/// The frames of one connection.
pub struct Numbering {
    epoch: Epoch,
    next: Seq,
    samples: Vec<Sample>,
    /// The newest tick of an RR interval: they are placed backwards, and never before one already placed.
    last_beat: u64,
    builder: FrameBuilder,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    channel: ChannelId,
    ticks: u64,
    value: i32,
}

impl Numbering {
    /// An epoch of its own, from seq 0.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, next: 0, samples: Vec::new(), last_beat: 0, builder: FrameBuilder::new() }
    }

    /// Takes a measurement that arrived at `ticks`. Gives how many of its values there was no room for.
    pub fn take(&mut self, ticks: u64, measurement: &Measurement) -> usize {
        let mut left_out = 0;
        for (channel, value) in [
            (channel::HEART_RATE, measurement.heart_rate),
            (channel::SKIN_TEMPERATURE, measurement.temperature),
            (channel::SPO2, measurement.spo2),
        ] {
            left_out += usize::from(!self.push(channel, ticks, value));
        }
        // The last interval ended about now, those before it as much earlier as the later ones are long.
        let mut before = measurement.rr_intervals.iter().map(|interval| interval.ms).sum::<f64>();
        for interval in &measurement.rr_intervals {
            before -= interval.ms;
            let at = ticks.saturating_sub(before.round() as u64).max(self.last_beat);
            self.last_beat = at;
            left_out +=
                usize::from(!self.push(channel::RR_INTERVAL, at, interval.taken.then_some(interval.ms)));
        }
        left_out
    }

    /// False when there is no room for a value that there is.
    fn push(&mut self, id: ChannelId, ticks: u64, value: Option<f64>) -> bool {
        let (Some(value), Some(channel)) = (value, channel::by_id(id)) else { return true };
        let has_room = self.samples.len() < MOST_SAMPLES;
        if has_room {
            self.samples.push(Sample { channel: id, ticks, value: channel.quantise(value) });
        }
        has_room
    }

    /// Takes a number that will never be a frame.
    pub fn skip(&mut self) -> Seq {
        self.next += 1;
        self.next - 1
    }

    /// Closes: every sample taken is in one of the frames, which follow each other without a hole.
    pub fn close(&mut self) -> Vec<Bytes> {
        let mut samples = std::mem::take(&mut self.samples);
        samples.sort_by_key(|sample| sample.ticks);
        let mut frames = Vec::new();
        for sample in samples {
            if self.builder.is_empty() {
                self.begin(sample.ticks);
            }
            if self.add(sample).is_err() {
                frames.push(self.finish());
                self.begin(sample.ticks);
                if let Err(error) = self.add(sample) {
                    tracing::warn!(?sample, %error, "a sample that fits no frame");
                }
            }
        }
        if !self.builder.is_empty() {
            frames.push(self.finish());
        }
        frames
    }

    fn begin(&mut self, ticks: u64) {
        self.builder.begin(Kind::Scalar, self.epoch, Ticks(ticks));
    }

    fn add(&mut self, sample: Sample) -> Result<(), kinara_protocol::frame::PushError> {
        self.builder.push(sample.channel, Ticks(sample.ticks), &[sample.value])
    }

    fn finish(&mut self) -> Bytes {
        let mut out = [0; MAX_FRAME];
        let len = self.builder.finish(self.next, &mut out);
        self.next += 1;
        Bytes::copy_from_slice(&out[..len])
    }
}

#[cfg(test)]
mod tests {
    use kinara_protocol::frame::{Body, FrameRef};
    use proptest::prelude::*;

    use super::*;
    use crate::radio::sensor::measurement::RrInterval;

    fn taken(ms: f64) -> RrInterval {
        RrInterval { ms, taken: true }
    }

    #[test]
    fn an_interval_that_is_left_out_still_places_those_before_it() {
        let mut numbering = Numbering::new(Epoch(7));
        let rr_intervals = vec![taken(800.0), RrInterval { ms: 5_200.0, taken: false }];
        numbering.take(9_000, &Measurement { rr_intervals, ..Measurement::default() });
        assert_eq!(samples(&numbering.close()[0]), [(2, 3_800, 800)]);
    }

    fn samples(frame: &[u8]) -> Vec<(u16, u64, i32)> {
        let frame = FrameRef::parse(frame).unwrap();
        let Ok(Body::Samples(body)) = frame.body() else { panic!("not samples") };
        let of = |block: kinara_protocol::frame::Block<'_>| {
            block.samples().map(|s| (block.channel().0, s.ticks.0, s.value())).collect::<Vec<_>>()
        };
        body.blocks().flat_map(of).collect()
    }

    #[test]
    fn a_measurement_becomes_a_frame_with_its_beats_placed_backwards() {
        let mut numbering = Numbering::new(Epoch(7));
        numbering.take(
            5_000,
            &Measurement {
                heart_rate: Some(72.0),
                rr_intervals: vec![taken(800.0), taken(820.0)],
                ..Measurement::default()
            },
        );
        let frames = numbering.close();
        assert_eq!(frames.len(), 1);
        let header = FrameRef::parse(&frames[0]).unwrap().header();
        assert_eq!((header.epoch, header.seq, header.ticks.0), (Epoch(7), 0, 4_180));
        let mut found = samples(&frames[0]);
        found.sort_unstable();
        assert_eq!(found, [(1, 5_000, 720), (2, 4_180, 800), (2, 5_000, 820)]);
        assert!(numbering.close().is_empty(), "nothing measured, no frame");
    }

    #[test]
    fn more_values_than_fit_a_second_are_counted() {
        let mut numbering = Numbering::new(Epoch(7));
        let rate = Measurement { heart_rate: Some(72.0), ..Measurement::default() };
        let left_out: usize = (0..MOST_SAMPLES + 9).map(|_| numbering.take(1, &rate)).sum();
        assert_eq!(left_out, 9);
        let frames = numbering.close();
        assert_eq!(frames.iter().map(|frame| samples(frame).len()).sum::<usize>(), MOST_SAMPLES);
        assert_eq!(numbering.take(2, &rate), 0);
    }

    proptest! {
        #[test]
        fn every_sample_is_in_exactly_one_frame_and_seqs_follow_from_0(
            rates in proptest::collection::vec((0_u64..400, 30_u16..200, proptest::collection::vec(205.0_f64..4_000.0, 0..9)), 1..60),
        ) {
            let mut numbering = Numbering::new(Epoch(1));
            let (mut frames, mut now, mut taken) = (Vec::new(), 0, 0);
            for (index, (after, rate, intervals)) in rates.iter().enumerate() {
                now += after;
                taken += 1 + intervals.len();
                numbering.take(now, &Measurement {
                    heart_rate: Some(f64::from(*rate)), rr_intervals: intervals.iter().copied().map(self::taken).collect(), ..Measurement::default()
                });
                if index % 7 == 0 { frames.extend(numbering.close()); }
            }
            frames.extend(numbering.close());
            let seqs: Vec<u32> = frames.iter().map(|f| FrameRef::parse(f).unwrap().header().seq).collect();
            prop_assert_eq!(seqs, (0..frames.len() as u32).collect::<Vec<_>>());
            prop_assert_eq!(frames.iter().map(|frame| samples(frame).len()).sum::<usize>(), taken);
        }
    }
}
