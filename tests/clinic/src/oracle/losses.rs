//! Which losses the harness's own fault log allows, and whether each has its gap.
//!
//! The product's gap table never excuses a loss: it is only checked against the losses that the fault log allows.

use std::collections::HashMap;

use super::evidence::{Allowance, Evidence, Gap, Wearable};
use super::log::Sample;
use super::verdict::{Allowed, Kind, Verdict};

/// Channels from here on are waveforms.
pub const FIRST_WAVEFORM: u16 = 64;

/// The name of an allowed loss, as gaps spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Reset,
    Overflow,
    Quota,
    GatewayLost,
    Erased,
}

impl Cause {
    fn reason(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Overflow => "overflow",
            Self::Quota => "quota",
            Self::GatewayLost => "gateway_lost",
            Self::Erased => "erased",
        }
    }

    fn counted(self, gaps: &mut Allowed) -> &mut u64 {
        match self {
            Self::Reset => &mut gaps.reset,
            Self::Overflow => &mut gaps.overflow,
            Self::Quota => &mut gaps.quota,
            Self::GatewayLost => &mut gaps.gateway_lost,
            Self::Erased => &mut gaps.erased,
        }
    }
}

/// One wearable's missing samples, ready to be judged.
struct Losses<'a> {
    wearable: &'a Wearable,
    /// (epoch, channel) → newest tick that is stored.
    newest_stored: HashMap<(u64, u16), u64>,
    /// For each overflow allowance, the position in the log from which on nothing may be missing.
    kept_from: Vec<usize>,
    /// Frames by epoch: first tick, last tick, seq.
    frames: HashMap<u64, Vec<(u64, u64, u32)>>,
    gaps: Vec<&'a Gap>,
}

/// Judges each sample of `wearable` that is not `stored`.
pub fn judge(evidence: &Evidence, index: usize, stored: &[bool], verdict: &mut Verdict) {
    let wearable = &evidence.wearables[index];
    let losses = Losses::new(wearable, stored, evidence.gaps.iter().filter(|gap| gap.wearable == index));
    for (position, sample) in wearable.log.samples.iter().enumerate() {
        if !stored[position] {
            losses.judge(position, sample, verdict);
        }
    }
}

impl<'a> Losses<'a> {
    fn new(wearable: &'a Wearable, stored: &[bool], gaps: impl Iterator<Item = &'a Gap>) -> Self {
        let samples = &wearable.log.samples;
        let mut newest_stored = HashMap::new();
        for (sample, _) in samples.iter().zip(stored).filter(|(_, stored)| **stored) {
            let newest = newest_stored.entry((sample.epoch, sample.channel)).or_insert(sample.ticks);
            *newest = (*newest).max(sample.ticks);
        }
        let kept_from = wearable.allowances.iter().map(|allowance| kept_from(samples, allowance)).collect();
        let mut frames: HashMap<u64, Vec<_>> = HashMap::new();
        for ((epoch, seq), (first, last)) in &wearable.log.frames {
            frames.entry(*epoch).or_default().push((*first, *last, *seq));
        }
        Self { wearable, newest_stored, kept_from, frames, gaps: gaps.collect() }
    }

    fn judge(&self, position: usize, sample: &Sample, verdict: &mut Verdict) {
        let causes: Vec<Cause> = self
            .wearable
            .allowances
            .iter()
            .zip(&self.kept_from)
            .filter_map(|(allowance, kept_from)| self.allows(allowance, *kept_from, position, sample))
            .collect();
        let hardware = &self.wearable.hardware;
        let Some(first) = causes.first() else {
            verdict.find(Kind::Lost, || {
                let reasons: Vec<_> = self.telling(sample).map(|gap| gap.reason.as_str()).collect();
                format!("{hardware} {} (the product's gaps say: {reasons:?})", told(sample))
            });
            return;
        };
        let gaps: Vec<_> = self.telling(sample).collect();
        let with_gap = causes.iter().find(|cause| gaps.iter().any(|gap| gap.reason == cause.reason()));
        *with_gap.unwrap_or(first).counted(&mut verdict.gaps) += 1;
        // Of what was erased after it was stored, no gap tells: that there was something is nobody's business any more.
        if with_gap.is_none() && *first != Cause::Erased {
            verdict.find(Kind::LossWithoutGap, || {
                let reasons: Vec<_> = gaps.iter().map(|gap| gap.reason.as_str()).collect();
                format!("{hardware} {} lost by {first:?}; gaps there say {reasons:?}", told(sample))
            });
        }
    }

    /// The frames that can hold this sample: one, or two where waveforms and scalars go side by side.
    fn holding(&self, sample: &Sample) -> impl Iterator<Item = u32> {
        let ticks = sample.ticks;
        let frames = self.frames.get(&sample.epoch).map_or(&[][..], Vec::as_slice);
        frames
            .iter()
            .filter(move |(first, last, _)| (*first..=*last).contains(&ticks))
            .map(|(_, _, seq)| *seq)
    }

    fn telling(&self, sample: &Sample) -> impl Iterator<Item = &&'a Gap> {
        let seqs: Vec<u32> = self.holding(sample).collect();
        let ticks = sample.ticks;
        self.gaps.iter().filter(move |gap| gap.epoch == sample.epoch && gap.tells_of(&seqs, ticks))
    }

    fn allows(
        &self,
        allowance: &Allowance,
        kept_from: usize,
        position: usize,
        sample: &Sample,
    ) -> Option<Cause> {
        let at = sample.utc_us;
        match *allowance {
            Allowance::Reset { at_us, frame_age_us } => {
                // What goes is the end of a boot: nothing of the channel that is younger may have arrived.
                let newest = self.newest_stored.get(&(sample.epoch, sample.channel));
                let is_the_end = newest.is_none_or(|newest| sample.ticks > *newest);
                (is_the_end && at <= at_us && at >= at_us - frame_age_us).then_some(Cause::Reset)
            }
            Allowance::Overflow { from_us, to_us, .. } => {
                ((from_us..=to_us).contains(&at) && position < kept_from).then_some(Cause::Overflow)
            }
            Allowance::Quota { from_us, to_us } => {
                let waveform = sample.channel >= FIRST_WAVEFORM;
                (waveform && (from_us..=to_us).contains(&at)).then_some(Cause::Quota)
            }
            Allowance::Erased { user } => {
                let theirs = |seq| {
                    let wearer = self.wearable.wearer_at(sample.utc_us, (sample.epoch, seq));
                    wearer.is_some_and(|assignment| assignment.user == user)
                };
                self.holding(sample).any(theirs).then_some(Cause::Erased)
            }
            Allowance::GatewayLost { from_us, to_us, epoch, seq } => {
                let log = &self.wearable.log;
                let earlier = log.rank(sample.epoch) < log.rank(epoch);
                let acknowledged =
                    earlier || (sample.epoch == epoch && self.holding(sample).any(|holding| holding < seq));
                (acknowledged && (from_us..=to_us).contains(&at)).then_some(Cause::GatewayLost)
            }
        }
    }
}

/// The position from which on an overflow may not have cost anything: `keeps` samples before the stretch's end.
fn kept_from(samples: &[Sample], allowance: &Allowance) -> usize {
    let Allowance::Overflow { from_us, to_us, keeps } = *allowance else { return 0 };
    let inside: Vec<usize> = samples
        .iter()
        .enumerate()
        .filter(|(_, sample)| (from_us..=to_us).contains(&sample.utc_us))
        .map(|(position, _)| position)
        .collect();
    inside.len().checked_sub(keeps.max(1)).map_or(0, |index| inside[index])
}

fn told(sample: &Sample) -> String {
    let Sample { epoch, channel, ticks, value, utc_us } = sample;
    format!("epoch {epoch:016x} channel {channel} ticks {ticks} value {:?} utc {utc_us}", value.parts())
}
