//! One wearable: its windows, and what each producer has said of it.

use std::collections::VecDeque;

use kinara_inference::detect::EVENT_GRID;
use kinara_inference::sternal::PRODUCER;
use kinara_inference::window::Taken;
use kinara_inference::{
    Asked, Detector, DeviceWindows, Finding, FrameSamples, Refractory, Sample, Session, Signal, WindowConfig,
};
use kinara_protocol::channel;

use super::memory::Memory;
use super::{Counts, Settings};
use crate::hardware::HardwareId;
use crate::pipeline::{Fit, NewEvent, StoredFrame};

/// Epochs whose time is remembered: a wearable that drains a backlog is in two or three at once.
const EPOCHS: usize = 8;

/// What is known of one wearable.
pub(super) struct Device {
    hardware: HardwareId,
    windows: DeviceWindows,
    detector: Detector,
    fits: VecDeque<(u64, Fit)>,
}

impl Device {
    /// Nothing seen yet but what was reported before a restart.
    pub fn new(hardware: HardwareId, settings: &Settings, model: Option<&Session>, memory: &Memory) -> Self {
        let config = model.map_or_else(WindowConfig::default, Session::windows);
        let refractory = |producer: &str| {
            let mut refractory = Refractory::new(settings.refractory.as_millis() as u64, config.length);
            for (epoch, onset) in memory.onsets(&hardware, producer) {
                refractory.remember(epoch, onset);
            }
            refractory
        };
        Self {
            windows: DeviceWindows::new(config),
            detector: Detector::new(
                refractory(PRODUCER),
                model.map_or_else(|| refractory(""), |m| refractory(&m.package().producer())),
            ),
            fits: VecDeque::new(),
            hardware,
        }
    }

    /// Looks at a frame; events go to `found`.
    pub fn look(
        &mut self,
        frame: &StoredFrame,
        mut model: Option<&mut Session>,
        counts: &Counts,
        found: &mut Vec<NewEvent>,
    ) {
        Counts::add(&counts.frames);
        if let Some(fit) = frame.fit {
            self.fits.retain(|(epoch, _)| *epoch != frame.epoch);
            if self.fits.len() == EPOCHS {
                self.fits.pop_front();
            }
            self.fits.push_back((frame.epoch, fit));
        }
        let Self { hardware, windows, detector, fits } = self;
        let taken = windows.offer(&signals(frame), |window| {
            Counts::add(&counts.windows);
            let said = detector.look(window, model.as_deref_mut());
            if said.gated {
                Counts::add(&counts.gated);
            }
            match said.model {
                None => {}
                Some(Asked::Scored) => Counts::add(&counts.scored),
                Some(Asked::Unscored) => Counts::add(&counts.unscored),
                Some(Asked::Failed(error)) => {
                    // Said once, then by every power of two, so that a broken model does not fill the journal.
                    Counts::add(&counts.failures);
                    let failures = counts.failures.load(std::sync::atomic::Ordering::Relaxed);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "the model failed; the rule goes on");
                    }
                }
            }
            for Finding { kind, producer, onset, confidence, data } in said.findings {
                let of_rule = producer == PRODUCER;
                Counts::add(if of_rule { &counts.rule_events } else { &counts.model_events });
                found.push(NewEvent {
                    hardware: hardware.clone(),
                    kind,
                    producer,
                    epoch: window.epoch,
                    onset_ticks: onset,
                    grid_ticks: EVENT_GRID,
                    seq: window.seq_at(onset).unwrap_or(frame.seq),
                    fit: fits.iter().find(|(epoch, _)| *epoch == window.epoch).map(|(_, fit)| *fit),
                    severity: "info".to_owned(),
                    confidence,
                    data,
                });
            }
        });
        if taken == Taken::Cold {
            Counts::add(&counts.cold_frames);
        }
    }
}

/// The signals of a frame, in their units.
fn signals(frame: &StoredFrame) -> FrameSamples {
    let mut samples = Vec::with_capacity(frame.samples.iter().map(|s| s.ticks.len()).sum());
    for series in &frame.samples {
        let Some(signal) = Signal::of_channel(series.channel) else { continue };
        let Some(channel) = channel::by_id(channel::ChannelId(series.channel)) else { continue };
        if series.components != 1 {
            continue;
        }
        for (&ticks, &steps) in series.ticks.iter().zip(&series.values) {
            let value = channel.value(steps);
            if channel.in_range(value) {
                samples.push((signal, Sample { ticks, value: value as f32 }));
            }
        }
    }
    FrameSamples { epoch: frame.epoch, seq: frame.seq, ticks: frame.ticks, samples, worn: frame.worn }
}
