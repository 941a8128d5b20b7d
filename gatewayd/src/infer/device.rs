//! One wearable: its windows, and what each producer has said of it.

use std::collections::VecDeque;

use kinara_inference::session::Score;
use kinara_inference::sternal::PRODUCER;
use kinara_inference::window::Taken;
use kinara_inference::{
    DeviceWindows, Features, FrameSamples, Judgement, Refractory, Sample, Session, Signal, SternalRule,
    Window, WindowConfig,
};
use kinara_protocol::channel;
use serde_json::json;

use super::memory::Memory;
use super::{Counts, Settings};
use crate::hardware::HardwareId;
use crate::pipeline::{Fit, NewEvent, StoredFrame};

/// The kind of a hot flash's events.
pub const HOT_FLASH: &str = "hot_flash";

/// Onsets that fall into the same minute of the device's ticks are the same event, whichever gateway saw it and
/// wherever its windows began.
const EVENT_GRID: u64 = 60_000;

/// Epochs whose time is remembered: a wearable that drains a backlog is in two or three at once.
const EPOCHS: usize = 8;

/// What is known of one wearable.
pub(super) struct Device {
    hardware: HardwareId,
    windows: DeviceWindows,
    rule: SternalRule,
    by_rule: Refractory,
    by_model: Refractory,
    fits: VecDeque<(u64, Fit)>,
}

impl Device {
    /// Nothing seen yet but what was reported before a restart.
    pub fn new(hardware: HardwareId, settings: &Settings, model: Option<&Session>, memory: &Memory) -> Self {
        let grid = model.map(|m| m.package().manifest().window);
        let config = grid.map_or_else(WindowConfig::default, |grid| WindowConfig {
            length: grid.length_ms,
            step: grid.step_ms,
            ..WindowConfig::default()
        });
        let refractory = |producer: &str| {
            let mut refractory = Refractory::new(settings.refractory.as_millis() as u64, config.length);
            for (epoch, onset) in memory.onsets(&hardware, producer) {
                refractory.remember(epoch, onset);
            }
            refractory
        };
        Self {
            windows: DeviceWindows::new(config),
            rule: SternalRule::default(),
            by_rule: refractory(PRODUCER),
            by_model: model.map_or_else(|| refractory(""), |m| refractory(&m.package().producer())),
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
        let Self { hardware, windows, rule, by_rule, by_model, fits } = self;
        let taken = windows.offer(&signals(frame), |window| {
            Counts::add(&counts.windows);
            let features = Features::of(window);
            let event = |producer: String, onset: u64, confidence: f32, data: serde_json::Value| NewEvent {
                hardware: hardware.clone(),
                kind: HOT_FLASH.to_owned(),
                producer,
                epoch: window.epoch,
                onset_ticks: onset,
                grid_ticks: EVENT_GRID,
                seq: window.seq_at(onset).unwrap_or(frame.seq),
                fit: fits.iter().find(|(epoch, _)| *epoch == window.epoch).map(|(_, fit)| *fit),
                severity: "info".to_owned(),
                confidence,
                data,
            };
            let judgement = rule.judge(window, &features);
            match judgement {
                Judgement::HotFlash(rise) if by_rule.admit(window.epoch, rise.from) => {
                    Counts::add(&counts.rule_events);
                    let data = evidence(window, &features, json!({ "rise_us": rounded(rise.rise) }));
                    found.push(event(PRODUCER.to_owned(), rise.from, rule.confidence(rise.rise), data));
                }
                Judgement::HotFlash(_) | Judgement::Quiet => {}
                Judgement::NotEnoughSignal | Judgement::Motion | Judgement::NoContact => {
                    Counts::add(&counts.gated);
                    return;
                }
            }
            let Some(session) = model.as_deref_mut() else { return };
            match session.score(&features) {
                Ok(Score::Probability(probability)) => {
                    Counts::add(&counts.scored);
                    let manifest = session.package().manifest();
                    let onset = rule.onset(window);
                    if probability >= manifest.output.threshold && by_model.admit(window.epoch, onset) {
                        Counts::add(&counts.model_events);
                        let detail = json!({ "probability": rounded(f64::from(probability)) });
                        let data = evidence(window, &features, detail);
                        let mut event = event(session.package().producer(), onset, probability, data);
                        event.kind.clone_from(&manifest.event);
                        found.push(event);
                    }
                }
                Ok(Score::NotEnoughSignal(_)) => Counts::add(&counts.unscored),
                Err(error) => {
                    // Said once, then by every power of two, so that a broken model does not fill the journal.
                    Counts::add(&counts.failures);
                    let failures = counts.failures.load(std::sync::atomic::Ordering::Relaxed);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "the model failed; the rule goes on");
                    }
                }
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
        let Some(signal) = signal_of(series.channel) else { continue };
        let Some(channel) = channel::by_id(channel::ChannelId(series.channel)) else { continue };
        if series.components != 1 {
            continue;
        }
        for (&ticks, &steps) in series.ticks.iter().zip(&series.values) {
            let value = f64::from(steps) * channel.step;
            if channel.in_range(value) {
                samples.push((signal, Sample { ticks, value: value as f32 }));
            }
        }
    }
    FrameSamples { epoch: frame.epoch, seq: frame.seq, ticks: frame.ticks, samples, worn: frame.worn }
}

fn signal_of(number: u16) -> Option<Signal> {
    match channel::ChannelId(number) {
        channel::EDA => Some(Signal::Eda),
        channel::HEART_RATE => Some(Signal::HeartRate),
        channel::RR_INTERVAL => Some(Signal::RrInterval),
        channel::SKIN_TEMPERATURE => Some(Signal::SkinTemperature),
        channel::ACTIVITY_COUNTS => Some(Signal::Activity),
        _ => None,
    }
}

fn evidence(window: &Window<'_>, features: &Features, mut data: serde_json::Value) -> serde_json::Value {
    let named = features.present().map(|(f, v)| (f.name().to_owned(), json!(rounded(f64::from(v)))));
    data["features"] = serde_json::Value::Object(named.collect());
    data["window_end_ticks"] = json!(window.end);
    data
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
