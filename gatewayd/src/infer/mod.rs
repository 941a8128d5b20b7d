//! Looks at stored frames and says what they mean, as events.
//!
//! The promise: an event is a function of frames that are on disk. The same frames give the same key, on every
//! gateway and after every restart, so an event is in the outbox once; events come from nowhere else. An event is in
//! the outbox, on disk, before it counts as reported. What was reported is remembered over a restart
//! (`memory`), so one episode is not reported again by a daemon that was killed in its midst. After a start, a gap
//! or a roam the windows are cold: nothing is said until a window is full.
//!
//! A library or model that is absent, broken or not what its manifest says never stops the daemon: the rule goes on
//! alone, the log says so once, and so does the status until a restart finds them. Memory is bounded for each device
//! by the windows' own bounds. A model is run on this task, between two frames: it must answer within milliseconds.

mod device;
mod library;
mod memory;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kinara_inference::{Maker, Session};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::hardware::HardwareId;
use crate::pipeline::{NewEvent, StoredFrame};
use crate::status::Board;
use crate::store::{Store, StoreError};

use device::Device;
use memory::Memory;

pub use library::LibraryDigest;

/// How inference works. Built from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The ONNX Runtime library; without it the rule runs alone.
    pub onnxruntime: Option<PathBuf>,
    /// What the library has to be; without it that is not looked at.
    pub library_digest: Option<LibraryDigest>,
    /// The model package's directory; without it the rule runs alone.
    pub model: Option<PathBuf>,
    /// The key that the package is to be signed with; without it the signature is not looked at.
    pub maker: Option<Maker>,
    /// No second hot flash within this time after an onset, of the same producer.
    pub refractory: Duration,
    /// How long to wait before an event that the outbox did not take is put again.
    pub retry: Duration,
    /// The folder for what was reported (`infer.json` in it).
    pub data_dir: PathBuf,
}

impl Settings {
    /// The published lock-out of 20 minutes, and no model.
    pub fn in_folder(data_dir: &Path) -> Self {
        Self {
            onnxruntime: None,
            library_digest: None,
            model: None,
            maker: None,
            refractory: Duration::from_mins(20),
            retry: Duration::from_secs(5),
            data_dir: data_dir.to_owned(),
        }
    }
}

/// What inference has done since the start; read by the local page.
#[derive(Debug, Default)]
pub struct Counts {
    /// Frames looked at.
    pub frames: AtomicU64,
    /// Frames that began or continued a stretch too short for a window.
    pub cold_frames: AtomicU64,
    /// Windows judged by the rule.
    pub windows: AtomicU64,
    /// Windows of which the rule could say nothing: motion, no contact, holes.
    pub gated: AtomicU64,
    /// Windows the model was asked about.
    pub scored: AtomicU64,
    /// Windows without what the model requires.
    pub unscored: AtomicU64,
    /// Times the model failed.
    pub failures: AtomicU64,
    /// Events of the rule.
    pub rule_events: AtomicU64,
    /// Events of the model.
    pub model_events: AtomicU64,
    /// 1 while a model is loaded.
    pub model_loaded: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where events go.
pub trait Outbox: Send + Sync {
    /// Makes the event durable; `false` when its key was there already.
    fn put(&self, event: NewEvent) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

impl Outbox for Store {
    async fn put(&self, event: NewEvent) -> Result<bool, StoreError> {
        self.put_event(event).await
    }
}

/// Reads frames until the channel closes or `stop` is called.
pub async fn run<O: Outbox>(
    settings: Settings,
    mut frames: mpsc::Receiver<Arc<StoredFrame>>,
    outbox: O,
    board: Board,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    let mut model = open_model(&settings, &board);
    counts.model_loaded.store(u64::from(model.is_some()), Ordering::Relaxed);
    let mut memory = Memory::open(&settings.data_dir);
    let mut devices: HashMap<HardwareId, Device> = HashMap::new();
    let mut found = Vec::new();
    loop {
        let frame = tokio::select! {
            () = stop.cancelled() => return,
            frame = frames.recv() => frame,
        };
        let Some(frame) = frame else { return };
        let device = devices
            .entry(frame.hardware.clone())
            .or_insert_with(|| Device::new(frame.hardware.clone(), &settings, model.as_ref(), &memory));
        device.look(&frame, model.as_mut(), &counts, &mut found);
        for event in found.drain(..) {
            if !report(&settings, &outbox, &mut memory, event, &stop).await {
                return;
            }
        }
    }
}

/// Puts one event into the outbox, as often as it takes. Meanwhile frames wait in their channel and, when that is
/// full, pass unseen: an event found is worth more than the next look. `false`: the daemon stops.
async fn report<O: Outbox>(
    settings: &Settings,
    outbox: &O,
    memory: &mut Memory,
    event: NewEvent,
    stop: &CancellationToken,
) -> bool {
    loop {
        match outbox.put(event.clone()).await {
            Ok(new) => {
                tracing::info!(device = %event.hardware, producer = event.producer, new, "{}", event.kind);
                memory.reported(&event);
                return true;
            }
            Err(StoreError::Stopped) => return false,
            Err(error) => {
                tracing::warn!(%error, "an event waits for the outbox");
                tokio::select! {
                    () = stop.cancelled() => return false,
                    () = tokio::time::sleep(settings.retry) => {}
                }
            }
        }
    }
}

/// The model, or the reason there is none on the board and in the log.
fn open_model(settings: &Settings, board: &Board) -> Option<Session> {
    let opened = match (&settings.onnxruntime, &settings.model) {
        (Some(library), Some(package)) => {
            let is_meant = settings.library_digest.map_or(Ok(()), |digest| digest.check(library));
            is_meant.and_then(|()| {
                Session::open(library, package, settings.maker).map_err(|error| error.to_string())
            })
        }
        (None, _) => Err("infer.onnxruntime is not configured".to_owned()),
        (_, None) => Err("infer.model is not configured".to_owned()),
    };
    match opened {
        Ok(session) => {
            tracing::info!(model = session.package().producer(), "model loaded");
            if settings.maker.is_none() {
                tracing::warn!("nobody vouches for the model: infer.maker is not configured");
            }
            board.alert("inference", None);
            Some(session)
        }
        Err(reason) => {
            tracing::warn!(%reason, "no model: the rule alone runs");
            board.alert("inference", Some(format!("no model: the rule alone runs; {reason}")));
            None
        }
    }
}

#[cfg(test)]
mod tests;
