//! The load of all benches: what seeded simulators produce, and the frames that a wearable makes of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use kinara_protocol::channel::ChannelId;
use kinara_protocol::frame::{
    BootAnchor, Epoch, FrameBuilder, Kind, MAX_FRAME, PushError, ResetReason, SyncAnchor, Ticks,
    encode_boot_anchor, encode_sync_anchor,
};

use crate::oracle::log::{Sample, WearableLog};
use crate::process::{Launch, Process, Ready};
use crate::{ClinicError, Result, folders};

/// How many simulators work side by side.
const SIDE_BY_SIDE: usize = 2;

/// What one wearable produced.
#[derive(Debug, Clone)]
pub struct Load {
    /// Its hardware id.
    pub hardware: String,
    /// True time of tick 0.
    pub booted_us: i64,
    /// Its boot.
    pub epoch: u64,
    /// In the order of their ticks.
    pub samples: Vec<Sample>,
}

/// Lets `count` simulators of successive seeds fill their flash with `hours` (as `--prefill` takes it) of the reference
/// plan, and reads from their logs what they took.
pub fn produce(simulator: &Path, folder: &Path, count: usize, hours: &str, seed: u64) -> Result<Vec<Load>> {
    folders::make(folder, 0o755)?;
    // Socket paths are short.
    let air = tempfile::tempdir().map_err(ClinicError::file("a folder for sockets"))?;
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut made = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok::<_, ClinicError>(made);
            }
            made.push((number, one(simulator, folder, air.path(), number, hours, seed)?));
        }
    };
    let mut all: Vec<(usize, Load)> = Vec::with_capacity(count);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            all.extend(worker.join().expect("a worker does not panic")?);
        }
        Ok::<_, ClinicError>(())
    })?;
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, load)| load).collect())
}

fn one(simulator: &Path, folder: &Path, air: &Path, number: usize, hours: &str, seed: u64) -> Result<Load> {
    let id = format!("{:016x}", 0xbe00 + number);
    let own: PathBuf = folder.join(&id);
    folders::make(&own, 0o755)?;
    let log = own.join("produced.log");
    let socket = air.join(format!("{id}.ctl"));
    let launch = Launch::new(format!("simulator {number}"), simulator, own.join("output.log"))
        .args(["--factory-id", &id, "--name", &id, "--seed", &(seed + number as u64).to_string()])
        .args(["--air".to_owned(), air.display().to_string()])
        .args(["--state".to_owned(), own.display().to_string()])
        .args(["--label-secret", "AAAAAAAAAAAAAAAA", "--prefill", hours])
        .args(["--log".to_owned(), log.display().to_string()])
        .ready(Ready::Socket(socket.clone()));
    let mut process = Process::new(launch);
    process.launch_mut().start_timeout = std::time::Duration::from_mins(1);
    process.start()?;
    // Its sockets are there before its flash is filled; it answers after that.
    let mut control = UnixStream::connect(&socket).map_err(ClinicError::file(&socket))?;
    control.write_all(b"{\"do\":\"status\"}\n").map_err(ClinicError::file(&socket))?;
    BufReader::new(control).read_line(&mut String::new()).map_err(ClinicError::file(&socket))?;
    process.kill();
    let read = WearableLog::read(&log)
        .map_err(|error| ClinicError::Answer { who: id.clone(), what: error.to_string() })?;
    std::fs::remove_dir_all(&own).map_err(ClinicError::file(&own))?;
    let (epoch, booted_us) = read
        .boots
        .first()
        .copied()
        .ok_or_else(|| ClinicError::Answer { who: id.clone(), what: "its log has no boot".to_owned() })?;
    let mut samples = read.samples;
    samples.retain(|sample| sample.epoch == epoch);
    samples.sort_by_key(|sample| sample.ticks);
    Ok(Load { hardware: format!("kinara:{id}"), booted_us, epoch, samples })
}

impl Load {
    /// The frames that the wearable makes of its samples when it keeps one open for at most `age_ms`: after the boot
    /// and a time sync, so that a gateway can stamp them. Each with how many samples it holds.
    pub fn frames(&self, age_ms: u64) -> Vec<(Vec<u8>, usize)> {
        let epoch = Epoch(self.epoch);
        let mut out = [0; MAX_FRAME];
        let boot = BootAnchor { reason: ResetReason::PowerOn, previous: None };
        let len = encode_boot_anchor(epoch, 0, Ticks(0), &boot, &mut out);
        let mut frames = vec![(out[..len].to_vec(), 0)];
        let sync = SyncAnchor { ticks: Ticks(0), utc_us: self.booted_us, uncertainty_us: 1_000 };
        let len = encode_sync_anchor(epoch, 1, &sync, &mut out);
        frames.push((out[..len].to_vec(), 0));
        let mut builder = FrameBuilder::new();
        for sample in &self.samples {
            let old = !builder.is_empty() && sample.ticks >= builder.first_ticks().0 + age_ms;
            if old || builder.is_empty() {
                finish(&mut builder, &mut frames);
                builder.begin(Kind::Scalar, epoch, Ticks(sample.ticks));
            }
            if push(&mut builder, sample).is_err() {
                finish(&mut builder, &mut frames);
                builder.begin(Kind::Scalar, epoch, Ticks(sample.ticks));
                push(&mut builder, sample).expect("a sample fits into an empty frame");
            }
        }
        finish(&mut builder, &mut frames);
        frames
    }
}

/// Gives a sample to the frame.
pub fn push(builder: &mut FrameBuilder, sample: &Sample) -> std::result::Result<(), PushError> {
    builder.push(ChannelId(sample.channel), Ticks(sample.ticks), sample.value.parts())
}

fn finish(builder: &mut FrameBuilder, frames: &mut Vec<(Vec<u8>, usize)>) {
    if !builder.is_empty() {
        let samples = builder.len();
        let mut out = [0; MAX_FRAME];
        let len = builder.finish(frames.len() as u32, &mut out);
        frames.push((out[..len].to_vec(), samples));
    }
}
