//! Looks for events in what came over HTTP: no gateway did.
//!
//! The promise: what a box would have said of these signals is said here, by the same producers (`kinara_inference`), once
//! for an episode however late or often its readings come, and under the same check of whose they are and of consent. The
//! database notes which hours changed; a note goes only after the events of its hour are in.
//!
//! What came over HTTP has ticks of UTC, so windows lie on the grid of UTC, and an onset's tick is its time. A window needs
//! no unbroken row of frames, as on a box: who sends readings one by one does not number them without holes. The rule itself
//! says nothing where its signal has one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kinara_inference::detect::EVENT_GRID;
use kinara_inference::sternal::PRODUCER;
use kinara_inference::{Asked, Detector, Maker, Refractory, Sample, Session, Signal, Window, WindowConfig};
use kinara_ingest::events::Events;
use kinara_ingest::{Outcome, Writer};
use kinara_protocol::envelope::Event;
use kinara_store::{Client, Pool};
use serde::Deserialize;
use uuid::Uuid;

use crate::metrics::Metrics;

/// Hours that are looked at in a transaction: of each the signals are in memory.
const HOURS: i32 = 24;
/// So many times fewer, where they were not looked at in time.
const FEWER: i32 = 4;
const HOUR_MS: u64 = 3_600_000;
/// How far a clinic's clock may be off where nobody knows better, µs.
const UNCERTAINTY_US: u64 = 1_000_000;

/// `[infer]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The ONNX Runtime library; without it the rule runs alone.
    pub onnxruntime: Option<PathBuf>,
    /// The folder of the model package; without it the rule runs alone.
    pub model: Option<PathBuf>,
    /// The key that the package is to be signed with; without it the signature is not looked at.
    pub maker: Option<Maker>,
    /// No second hot flash of one producer within this time, minutes.
    pub refractory_min: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { onnxruntime: None, model: None, maker: None, refractory_min: 20 }
    }
}

/// Why an hour is not looked at yet.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The database.
    #[error(transparent)]
    Database(#[from] kinara_ingest::Error),
    /// Another time.
    #[error("events have to wait: {0}")]
    Later(String),
}

impl From<kinara_store::PoolError> for InferError {
    fn from(error: kinara_store::PoolError) -> Self {
        Self::Database(error.into())
    }
}

impl From<tokio_postgres::Error> for InferError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// The producers.
#[derive(Debug, Clone)]
pub struct Inference {
    /// One at a time, a job's hours long: a model takes microseconds a window.
    model: Arc<Mutex<Option<Session>>>,
    windows: WindowConfig,
    refractory_ms: u64,
}

impl Inference {
    /// Opens the model that is configured. What cannot be opened is said, and the rule runs alone.
    pub fn open(settings: &Settings) -> Self {
        let model = match (&settings.onnxruntime, &settings.model) {
            (Some(library), Some(package)) => match Session::open(library, package, settings.maker) {
                Ok(session) => {
                    tracing::info!(model = session.package().producer(), "model loaded");
                    if settings.maker.is_none() {
                        tracing::warn!("nobody vouches for the model: infer.maker is not configured");
                    }
                    Some(session)
                }
                Err(error) => {
                    tracing::warn!(%error, "no model: the rule alone looks at what comes over HTTP");
                    None
                }
            },
            _ => None,
        };
        let windows = model.as_ref().map_or_else(WindowConfig::default, Session::windows);
        let refractory_ms = u64::from(settings.refractory_min) * 60_000;
        Self { model: Arc::new(Mutex::new(model)), windows, refractory_ms }
    }

    /// Looks at what was noted of a clinic until all of it was, or for a turn, but at least once; gives how many events are new.
    /// What is left then has notes still. Readings from before `raw_from` are kept no more and say nothing.
    pub async fn look(
        &self,
        pool: &Pool,
        writer: &Writer,
        metrics: &Metrics,
        tenant: Uuid,
        raw_from: Timestamp,
        turn: Duration,
    ) -> Result<u64, InferError> {
        let began = Instant::now();
        let mut client = pool.get().await?;
        let (mut new, mut hours) = (0, HOURS);
        loop {
            match self.look_at_some(&mut client, writer, metrics, (tenant, raw_from), hours).await {
                Ok((found, left)) => {
                    new += found;
                    if !left || began.elapsed() >= turn {
                        return Ok(new);
                    }
                }
                Err(InferError::Database(error)) if error.is_timeout() && hours > 1 => {
                    tracing::info!(%tenant, hours, %error, "hours were not looked at in time; fewer are");
                    hours = (hours / FEWER).max(1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One transaction: gives how many events are new, and whether there is more to look at.
    async fn look_at_some(
        &self,
        client: &mut Client,
        writer: &Writer,
        metrics: &Metrics,
        (tenant, raw_from): (Uuid, Timestamp),
        hours: i32,
    ) -> Result<(u64, bool), InferError> {
        const TAKE: &str = "SELECT * FROM ts.take_inference_notes($1, $2, $3, make_interval(secs => $4), make_interval(secs => $5))";
        let margin = seconds(self.windows.length);
        let around = seconds(self.windows.length + self.refractory_ms);
        let tx = client.transaction().await?;
        let take = tx.prepare_cached(TAKE).await?;
        let rows = tx.query(&take, &[&tenant, &hours, &raw_from, &margin, &around]).await?;
        let hours: Vec<Hour> = rows.iter().map(Hour::read).collect();
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || this.events(hours))
            .await
            .expect("arithmetic does not panic, and is not aborted");
        metrics.inference_windows_total.fetch_add(looked.windows, Ordering::Relaxed);
        if looked.failures > 0 {
            metrics.inference_failures_total.fetch_add(looked.failures, Ordering::Relaxed);
            tracing::warn!(failures = looked.failures, "the model failed; the rule went on");
        }
        let mut new = 0;
        if !looked.events.is_empty() {
            match writer.write_events(&Events::found(tenant, looked.events)).await? {
                Outcome::Done(counts) => {
                    new = counts.stored;
                    metrics.outcome(&counts);
                }
                Outcome::RetryAfter { reason, .. } => return Err(InferError::Later(reason)),
            }
        }
        let left: bool = tx.query_one("SELECT ts.inference_notes_left($1)", &[&tenant]).await?.get(0);
        tx.commit().await?;
        metrics.inference_events_total.fetch_add(new, Ordering::Relaxed);
        Ok((new, left))
    }

    /// What there is in some hours.
    fn events(&self, hours: Vec<Hour>) -> Looked {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Looked::default();
        // By device, then in order: what one hour reports is known to the next.
        for device in hours.chunk_by(|a, b| a.device == b.device) {
            let mut found: Vec<(String, u64)> = Vec::new();
            for hour in device {
                self.hour(hour, model.as_mut(), &mut found, &mut out);
            }
        }
        out
    }

    fn hour(
        &self,
        hour: &Hour,
        mut model: Option<&mut Session>,
        found: &mut Vec<(String, u64)>,
        out: &mut Looked,
    ) {
        let WindowConfig { length, step, .. } = self.windows;
        let reach = length + self.refractory_ms;
        let near = hour.from_ms.saturating_sub(reach)..hour.from_ms + HOUR_MS + reach;
        let known = |producer: &str| {
            let mut refractory = Refractory::new(self.refractory_ms, length);
            let all = hour.reported.iter().chain(found.iter());
            for (_, onset) in all.filter(|(who, onset)| who == producer && near.contains(onset)) {
                refractory.remember(0, *onset);
            }
            refractory
        };
        let by_model = model.as_ref().map_or_else(String::new, |model| model.package().producer());
        let mut detector = Detector::new(known(PRODUCER), known(&by_model));
        let newest = hour.series[Signal::Eda.index()].last().map_or(0, |sample| sample.ticks);
        // What begins before the hour was changed by it as well; what ends after the newest sample is not whole yet.
        let last = (hour.from_ms + HOUR_MS + length).min(newest + step);
        let frames = VecDeque::new();
        let mut end = (hour.from_ms / step + 1) * step;
        while end <= last {
            let window = Window::over(end - length, end, 0, &hour.series, &frames);
            let said = detector.look(&window, model.as_deref_mut());
            out.windows += 1;
            if let Some(Asked::Failed(error)) = said.model {
                out.failures += 1;
                tracing::debug!(%error, "the model failed");
            }
            for finding in said.findings {
                found.push((finding.producer.clone(), finding.onset));
                out.events.push(Event {
                    hardware_id: hour.device.clone(),
                    kind: finding.kind,
                    producer: finding.producer,
                    epoch: 0,
                    onset_ticks: finding.onset,
                    grid_ms: EVENT_GRID as u32,
                    onset_utc_us: finding.onset as i64 * 1_000,
                    uncertainty_us: UNCERTAINTY_US,
                    severity: "info".to_owned(),
                    confidence: finding.confidence,
                    data_json: finding.data.to_string(),
                    onset_seq: 0,
                });
            }
            end += step;
        }
    }
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// What was found in some hours.
#[derive(Debug, Default)]
struct Looked {
    events: Vec<Event>,
    windows: u64,
    failures: u64,
}

/// An hour of a device, with what is beside it.
#[derive(Debug)]
struct Hour {
    device: String,
    from_ms: u64,
    series: [Vec<Sample>; 5],
    /// By which producer, and when: ms since 1970.
    reported: Vec<(String, u64)>,
}

impl Hour {
    fn read(row: &tokio_postgres::Row) -> Self {
        let ms = |time: Timestamp| time.as_duration().as_millis().max(0) as u64;
        let (types, times): (Vec<i16>, Vec<Timestamp>) = (row.get("types"), row.get("times"));
        let values: Vec<f64> = row.get("vals");
        let mut series: [Vec<Sample>; 5] = Default::default();
        for ((kind, time), value) in types.into_iter().zip(times).zip(values) {
            if let Some(signal) = Signal::of_channel(kind as u16) {
                series[signal.index()].push(Sample { ticks: ms(time), value: value as f32 });
            }
        }
        let (producers, onsets): (Vec<String>, Vec<Timestamp>) = (row.get("producers"), row.get("onsets"));
        Self {
            device: row.get("device"),
            from_ms: ms(row.get("hour")),
            series,
            reported: producers.into_iter().zip(onsets.into_iter().map(ms)).collect(),
        }
    }
}
