//! What the producers say of one wearable's windows: the rule, and a model where there is one.
//!
//! The promise: the same windows give the same findings, on a box and in the cloud, and one episode gives one finding of
//! each producer. A model is asked only where the rule found enough signal, a body at rest and a good contact.

use serde_json::{Value, json};

use crate::features::Features;
use crate::refractory::Refractory;
use crate::session::{RuntimeError, Score, Session};
use crate::sternal::{Judgement, PRODUCER, SternalRule};
use crate::window::Window;

/// The kind of a hot flash's events.
pub const HOT_FLASH: &str = "hot_flash";

/// Ticks. Onsets that fall into the same minute of the device's ticks are the same event, whoever saw it and wherever
/// its windows began.
pub const EVENT_GRID: u64 = 60_000;

/// An event, as far as a window tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Of which kind.
    pub kind: String,
    /// Who found it.
    pub producer: String,
    /// The tick at which it began.
    pub onset: u64,
    /// How sure, 0 to 1.
    pub confidence: f32,
    /// What it was found by.
    pub data: Value,
}

/// What the model made of a window.
#[derive(Debug)]
pub enum Asked {
    /// It gave a probability.
    Scored,
    /// The window lacks what it requires.
    Unscored,
    /// It failed.
    Failed(RuntimeError),
}

/// What was said of a window.
#[derive(Debug)]
pub struct Said {
    /// What was found.
    pub findings: Vec<Finding>,
    /// Nothing can be said: motion, no contact, holes.
    pub gated: bool,
    /// What the model made of it; `None`: it was not asked.
    pub model: Option<Asked>,
}

/// One wearable's producers, and what each has found already.
#[derive(Debug)]
pub struct Detector {
    rule: SternalRule,
    by_rule: Refractory,
    by_model: Refractory,
}

impl Detector {
    /// Producers that found these before.
    pub fn new(by_rule: Refractory, by_model: Refractory) -> Self {
        Self { rule: SternalRule::default(), by_rule, by_model }
    }

    /// Looks at a window.
    pub fn look(&mut self, window: &Window<'_>, model: Option<&mut Session>) -> Said {
        let features = Features::of(window);
        let mut said = Said { findings: Vec::new(), gated: false, model: None };
        match self.rule.judge(window, &features) {
            Judgement::HotFlash(rise) if self.by_rule.admit(window.epoch, rise.from) => {
                said.findings.push(Finding {
                    kind: HOT_FLASH.to_owned(),
                    producer: PRODUCER.to_owned(),
                    onset: rise.from,
                    confidence: self.rule.confidence(rise.rise),
                    data: evidence(window, &features, json!({ "rise_us": rounded(rise.rise) })),
                });
            }
            Judgement::HotFlash(_) | Judgement::Quiet => {}
            Judgement::NotEnoughSignal | Judgement::Motion | Judgement::NoContact => {
                said.gated = true;
                return said;
            }
        }
        let Some(session) = model else { return said };
        said.model = Some(match session.score(&features) {
            Ok(Score::Probability(probability)) => {
                let manifest = session.package().manifest();
                let onset = self.rule.onset(window);
                if probability >= manifest.output.threshold && self.by_model.admit(window.epoch, onset) {
                    let detail = json!({ "probability": rounded(f64::from(probability)) });
                    said.findings.push(Finding {
                        kind: manifest.event.clone(),
                        producer: session.package().producer(),
                        onset,
                        confidence: probability,
                        data: evidence(window, &features, detail),
                    });
                }
                Asked::Scored
            }
            Ok(Score::NotEnoughSignal(_)) => Asked::Unscored,
            Err(error) => Asked::Failed(error),
        });
        said
    }
}

fn evidence(window: &Window<'_>, features: &Features, mut data: Value) -> Value {
    let named = features.present().map(|(f, v)| (f.name().to_owned(), json!(rounded(f64::from(v)))));
    data["features"] = Value::Object(named.collect());
    data["window_end_ticks"] = json!(window.end);
    data
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
