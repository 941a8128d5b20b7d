//! What a gateway writes to its card: sectors of the device below a file system of its own, so that the journal, the
//! write-ahead log, checkpoints, sealing and deletion are all counted.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinara_clock::SystemClock;
use kinara_gatewayd::status::{Board, Snapshot};
use kinara_gatewayd::store::{Store, StoreError};
use uuid::Uuid;

use super::gateway::settings;
use super::load::Load;
use crate::process::pause;
use crate::{ClinicError, Result, folders};

/// Bytes of the file system below the gateway's data.
const CARD: &str = "512m";
/// Bytes in a sector, as the kernel counts them.
const SECTOR: u64 = 512;
/// The backlog whose idle reads are counted, bytes.
const BACKLOG: u64 = 1 << 30;
const IDLE: Duration = Duration::from_secs(10);

/// A file system on a loop device; gone with this.
#[derive(Debug)]
pub struct Card {
    at: PathBuf,
}

impl Card {
    /// Mounted on this folder; `None` where that is not allowed. Made whole at once: what the kernel makes of it later is
    /// nobody's reading.
    pub fn mount(at: &Path) -> Option<Self> {
        let image = at.with_extension("card");
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let (file, folder) = (image.to_str()?, at.to_str()?);
        let mounted = run("truncate", &["-s", CARD, file])
            && run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file])
            && run("mount", &["-o", "loop,noatime", file, folder]);
        mounted.then(|| Self { at: at.to_owned() })
    }

    /// Bytes written to the device and flushes of it, so far.
    pub fn written(&self) -> Option<(u64, u64)> {
        let device = std::fs::metadata(&self.at).ok()?.st_dev();
        let (major, minor) = (device >> 8 & 0xfff, device & 0xff);
        let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
        let numbers: Vec<u64> = stat.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        Some((numbers.get(6)? * SECTOR, *numbers.get(15)?))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // A card that stays mounted is in nobody's way but its folder's.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Samples that wearables have produced so far, by their own logs.
pub fn produced(logs: &[PathBuf]) -> u64 {
    let lines = |log: &PathBuf| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("P ")).count() as u64
    };
    logs.iter().map(lines).sum()
}

/// Megabytes a second that a store with a gibibyte of backlog reads while nothing happens.
pub fn idle_read_mb_s(loads: &[Load], folder: &Path) -> Result<f64> {
    folders::make(folder, 0o700)?;
    let failed = |error: &dyn std::fmt::Display| ClinicError::Answer {
        who: "store".to_owned(),
        what: error.to_string(),
    };
    let runtime = tokio::runtime::Runtime::new().map_err(ClinicError::file("the harness's runtime"))?;
    let settings = settings(folder, Uuid::now_v7());
    let open = || Store::open(settings.clone(), Arc::new(SystemClock), Board::new(Snapshot::default()));
    runtime
        .block_on(async {
            let store = open()?;
            for load in loads.iter().take(1) {
                let hardware = kinara_gatewayd::hardware::HardwareId::parse(&load.hardware)
                    .expect("the harness's own hardware id");
                let frames: Vec<_> =
                    load.frames(60_000).into_iter().map(|(bytes, _)| bytes::Bytes::from(bytes)).collect();
                for window in frames.chunks(100) {
                    store.append(hardware.clone(), window.to_vec()).await?;
                }
            }
            // What waits long enough is packed.
            tokio::time::sleep(Duration::from_secs(2)).await;
            store.stop().await;
            Ok::<_, StoreError>(())
        })
        .map_err(|error| failed(&error))?;
    multiply(&kinara_gatewayd::store::database(&settings)).map_err(|error| failed(&error))?;
    let read = runtime
        .block_on(async {
            let store = open()?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let (before, since) = (read_so_far(), Instant::now());
            tokio::time::sleep(IDLE).await;
            let read = read_so_far().saturating_sub(before) as f64 / since.elapsed().as_secs_f64();
            store.stop().await;
            Ok::<_, StoreError>(read)
        })
        .map_err(|error| failed(&error))?;
    std::fs::remove_dir_all(folder).map_err(ClinicError::file(folder))?;
    Ok(read / 1e6)
}

/// Copies rows under epochs of their own until there are enough.
fn multiply(database: &Path) -> rusqlite::Result<()> {
    let db = rusqlite::Connection::open(database)?;
    let bytes: u64 =
        db.query_row("SELECT sum(length(body)) FROM pieces", [], |row| row.get::<_, i64>(0))? as u64;
    let last: i64 = db.query_row("SELECT max(id) FROM pieces", [], |row| row.get(0))?;
    for epoch in 1..=BACKLOG / bytes.max(1) {
        db.execute(
            "INSERT INTO pieces (device, epoch, class, form, first_seq, last_seq, frames, bytes, received_us,
                                 received_boot_us, body)
             SELECT device, ?1, class, 1, first_seq, last_seq, frames, bytes, received_us, received_boot_us, body
             FROM pieces WHERE id <= ?2",
            [epoch as i64, last],
        )?;
    }
    Ok(())
}

/// Bytes that this process has read, from files or otherwise.
fn read_so_far() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// What it costs a card to take a reading.
#[derive(Debug, Clone, Copy)]
pub struct Wear {
    /// Bytes written for each reading.
    pub bytes_per_reading: f64,
    /// Flushes of the device a second.
    pub fsyncs_per_s: f64,
}

/// Watches a card for a while.
pub fn wear(card: &Card, logs: &[PathBuf], watched: Duration) -> Option<Wear> {
    let (readings, (bytes, flushes), since) = (produced(logs), card.written()?, Instant::now());
    pause(watched);
    let (bytes_then, flushes_then) = card.written()?;
    let readings = produced(logs).saturating_sub(readings);
    Some(Wear {
        bytes_per_reading: (bytes_then - bytes) as f64 / readings.max(1) as f64,
        fsyncs_per_s: (flushes_then - flushes) as f64 / since.elapsed().as_secs_f64(),
    })
}
