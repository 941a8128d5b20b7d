//! Sliding windows on a grid of the device's ticks.
//!
//! The promise: a window is handed out only when every frame of its span was seen, one after the other by seq, in
//! one epoch; it ends on a multiple of the grid's step, whatever tick the frames begin at; it holds at least one
//! sample; it is handed out once. A
//! stretch that begins after a gap, a reboot, a roam or a change of wear is *cold*: until it is as long as a window,
//! there is none. Frames may come in any order: live ones before the backlog, or shuffled by the link. Stretches
//! that meet are joined, and the windows across the seam are handed out then. Memory is bounded for each device
//! ([`WindowConfig::max_runs`], [`WindowConfig::max_samples`]); what does not fit is forgotten, oldest stretch first,
//! and its place is cold.

use std::collections::VecDeque;

use crate::signal::{Sample, Signal};

/// The shape of the grid and the bounds on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowConfig {
    /// Length of a window in ticks (ms).
    pub length: u64,
    /// Windows end at multiples of this many ticks.
    pub step: u64,
    /// How many separate stretches of frames are remembered for one device.
    pub max_runs: usize,
    /// How many samples (and frames' numbers) are remembered for one device, over all its stretches.
    pub max_samples: usize,
}

impl Default for WindowConfig {
    fn default() -> Self {
        Self { length: 60_000, step: 5_000, max_runs: 24, max_samples: 6_144 }
    }
}

/// One stored frame, as far as windows care. Every frame is offered, also one without a sample of interest:
/// its number is what shows that nothing is missing.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameSamples {
    /// The device's epoch.
    pub epoch: u64,
    /// The frame's number in the epoch.
    pub seq: u32,
    /// The tick in the frame's header: no sample of a later frame is older.
    pub ticks: u64,
    /// Samples, each signal in the order of its ticks.
    pub samples: Vec<(Signal, Sample)>,
    /// The frame says that the device was put on (`true`) or taken off: what came before belongs to something else,
    /// and what a device says of nobody's skin is not looked at.
    pub worn: Option<bool>,
}

/// One window: the samples with `start <= ticks < end`.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// First tick.
    pub start: u64,
    /// The tick after the last one; a multiple of the grid's step.
    pub end: u64,
    /// The epoch.
    pub epoch: u64,
    series: [&'a [Sample]; 5],
    frames: &'a VecDeque<(u64, u32)>,
}

impl<'a> Window<'a> {
    /// A window over given samples (by [`Signal::index`], sorted by tick) and the header tick and seq of their frames.
    pub fn over(
        start: u64,
        end: u64,
        epoch: u64,
        series: &'a [Vec<Sample>; 5],
        frames: &'a VecDeque<(u64, u32)>,
    ) -> Self {
        let series = series.each_ref().map(|all| {
            let from = all.partition_point(|s| s.ticks < start);
            let to = all.partition_point(|s| s.ticks < end);
            &all[from..to]
        });
        Self { start, end, epoch, series, frames }
    }

    /// The samples of one signal, in the order of their ticks.
    pub fn samples(&self, signal: Signal) -> &'a [Sample] {
        self.series[signal.index()]
    }

    /// The seq of the frame that holds `ticks`: the last one whose header is not after it.
    pub fn seq_at(&self, ticks: u64) -> Option<u32> {
        let at = self.frames.partition_point(|(first, _)| *first <= ticks);
        self.frames.get(at.saturating_sub(1)).map(|(_, seq)| *seq)
    }
}

/// What became of an offered frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It continues a stretch that is long enough: windows come out.
    Warm,
    /// It begins or continues a stretch shorter than a window: not enough signal yet.
    Cold,
    /// It was here before.
    Double,
}

/// A stretch of frames with consecutive seqs.
#[derive(Debug)]
struct Run {
    epoch: u64,
    first_seq: u32,
    next_seq: u32,
    /// The tick of the first frame.
    origin: u64,
    /// From where samples count: the origin, or the last change of wear.
    start: u64,
    /// What the stretch itself has said about it.
    worn: Option<bool>,
    /// No later frame has a sample before this tick.
    watermark: u64,
    /// The first window end that was not handed out yet.
    next_end: u64,
    /// The frames of the first window and step, kept to be joined to a stretch that ends where this one starts.
    head: Vec<FrameSamples>,
    head_open: bool,
    series: [Vec<Sample>; 5],
    /// Header tick and seq of the frames in the current window.
    frames: VecDeque<(u64, u32)>,
    touched: u64,
}

impl Run {
    fn begin(frame: &FrameSamples, config: &WindowConfig) -> Self {
        Self {
            epoch: frame.epoch,
            first_seq: frame.seq,
            next_seq: frame.seq,
            origin: frame.ticks,
            start: frame.ticks,
            worn: None,
            watermark: frame.ticks,
            next_end: first_end(frame.ticks, config),
            head: Vec::new(),
            head_open: true,
            series: Default::default(),
            frames: VecDeque::new(),
            touched: 0,
        }
    }

    /// What it holds: samples, and frames that are remembered by number.
    fn weight(&self) -> usize {
        self.series.iter().map(Vec::len).sum::<usize>()
            + self.head.iter().map(|f| f.samples.len() + 1).sum::<usize>()
            + self.frames.len()
    }

    /// Adds the next frame and hands out the windows it completes, up to those that end at `until`.
    fn take(
        &mut self,
        frame: &FrameSamples,
        config: &WindowConfig,
        until: u64,
        out: &mut dyn FnMut(&Window<'_>),
    ) {
        self.next_seq = frame.seq.saturating_add(1);
        self.frames.push_back((frame.ticks, frame.seq));
        self.watermark = self.watermark.max(frame.ticks);
        self.hand_out(config, until, out);
        if let Some(worn) = frame.worn {
            self.worn = Some(worn);
            self.series.iter_mut().for_each(Vec::clear);
            self.start = frame.ticks;
            self.next_end = self.next_end.max(first_end(frame.ticks, config));
        }
        if self.worn != Some(false) {
            for (signal, sample) in frame.samples.iter().filter(|(_, s)| s.ticks >= self.start) {
                insert_sorted(&mut self.series[signal.index()], *sample);
            }
        }
        if self.head_open {
            self.head.push(frame.clone());
            self.head_open = frame.ticks < self.origin.saturating_add(config.length + config.step);
        }
    }

    fn hand_out(&mut self, config: &WindowConfig, until: u64, out: &mut dyn FnMut(&Window<'_>)) {
        while self.next_end <= self.watermark {
            let begin = self.next_end.saturating_sub(config.length);
            let next_sample = self
                .series
                .iter()
                .filter_map(|s| s.get(s.partition_point(|x| x.ticks < begin)).map(|x| x.ticks))
                .min();
            match next_sample {
                // Nothing in this window: pass over all that are as empty, however far the ticks jump.
                None => self.next_end = next_multiple(self.watermark.saturating_add(1), config.step),
                Some(ticks) if ticks >= self.next_end => {
                    self.next_end = next_multiple(ticks.saturating_add(1), config.step);
                }
                Some(_) => {
                    if self.next_end <= until {
                        out(&Window::over(begin, self.next_end, self.epoch, &self.series, &self.frames));
                    }
                    self.next_end = self.next_end.saturating_add(config.step);
                }
            }
        }
        let keep_from = self.next_end.saturating_sub(config.length);
        for series in &mut self.series {
            let dead = series.partition_point(|s| s.ticks < keep_from);
            // In blocks: a move of the rest for each frame would cost more than the few samples kept too long.
            if dead > 64 || dead == series.len() {
                series.drain(..dead);
            }
        }
        while self.frames.len() > 1 && self.frames[1].0 <= keep_from {
            self.frames.pop_front();
        }
    }

    /// Goes on with a stretch that begins where this one ends.
    fn join(mut self, later: Self, config: &WindowConfig, out: &mut dyn FnMut(&Window<'_>)) -> Self {
        // While its head is open the later stretch has handed out at most what lies in it, and its head is all of it.
        // Either way it has handed out its windows from `first_end` on; the ones before are owed.
        let until = first_end(later.origin, config).saturating_sub(1);
        for frame in &later.head {
            self.take(frame, config, until, out);
        }
        let touched = self.touched.max(later.touched);
        if later.head_open {
            return Self { touched, ..self };
        }
        Self {
            first_seq: self.first_seq,
            origin: self.origin,
            head: self.head,
            head_open: false,
            touched,
            ..later
        }
    }
}

fn first_end(start: u64, config: &WindowConfig) -> u64 {
    next_multiple(start.saturating_add(config.length), config.step)
}

/// The windows of one device: its stretches of frames, over all epochs.
#[derive(Debug)]
pub struct DeviceWindows {
    config: WindowConfig,
    runs: Vec<Run>,
    offered: u64,
    forgotten: u64,
}

impl DeviceWindows {
    /// No frame seen yet.
    pub fn new(config: WindowConfig) -> Self {
        assert!(config.step > 0 && config.length >= config.step, "a grid has a step, a window at least one");
        Self { config, runs: Vec::new(), offered: 0, forgotten: 0 }
    }

    /// Offers a stored frame; `out` gets each window that it completes, in the order of their ends.
    pub fn offer(&mut self, frame: &FrameSamples, mut out: impl FnMut(&Window<'_>)) -> Taken {
        self.offered += 1;
        let same = |r: &Run| r.epoch == frame.epoch;
        if self.runs.iter().any(|r| same(r) && r.first_seq <= frame.seq && frame.seq < r.next_seq) {
            return Taken::Double;
        }
        let mut run = match self.runs.iter().position(|r| same(r) && r.next_seq == frame.seq) {
            Some(at) => self.runs.swap_remove(at),
            None => Run::begin(frame, &self.config),
        };
        run.touched = self.offered;
        run.take(frame, &self.config, u64::MAX, &mut out);
        if let Some(at) = self.runs.iter().position(|r| same(r) && r.first_seq == run.next_seq) {
            let later = self.runs.swap_remove(at);
            run = run.join(later, &self.config, &mut out);
        }
        let warm = run.watermark >= run.start.saturating_add(self.config.length);
        self.runs.push(run);
        self.forget_what_does_not_fit();
        if warm { Taken::Warm } else { Taken::Cold }
    }

    /// How many stretches had to be forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// How many samples (and numbers of frames) are held now.
    pub fn held(&self) -> usize {
        self.runs.iter().map(Run::weight).sum()
    }

    fn forget_what_does_not_fit(&mut self) {
        while self.runs.len() > self.config.max_runs || self.held() > self.config.max_samples {
            let Some((oldest, _)) = self.runs.iter().enumerate().min_by_key(|(_, r)| r.touched) else {
                return;
            };
            self.runs.swap_remove(oldest);
            self.forgotten += 1;
        }
    }
}

fn next_multiple(value: u64, step: u64) -> u64 {
    value.div_ceil(step).saturating_mul(step)
}

fn insert_sorted(series: &mut Vec<Sample>, sample: Sample) {
    if series.last().is_none_or(|last| last.ticks <= sample.ticks) {
        series.push(sample);
    } else {
        let at = series.partition_point(|s| s.ticks <= sample.ticks);
        series.insert(at, sample);
    }
}
