//! The gateway: how fast frames of twenty wearables become durable, what they take on disk, and what the daemon
//! costs at real time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kinara_clock::SystemClock;
use kinara_gatewayd::config::Config;
use kinara_gatewayd::hardware::HardwareId;
use kinara_gatewayd::status::{Board, Snapshot};
use kinara_gatewayd::store::{Settings, Store, StoreError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::card::{self, Card, Wear};
use super::load::{Load, produce};
use super::machine::{self, Meter};
use super::rounded;
use crate::clinic::{self, Models, Options, programs};
use crate::process::pause;
use crate::{Assignment, Clinic, ClinicError, GatewayPlan, Result, WearablePlan, folders};

const WEARABLES: usize = 20;
const HOURS: &str = "2h";
const SEED: u64 = 100;
/// Frames in flight from one wearable: it waits for the acknowledgement of these before it sends on.
const WINDOW: usize = 32;
/// Before CPU is counted: connecting and pairing are not real time.
const SETTLING: Duration = Duration::from_secs(15);
const WATCHED: Duration = Duration::from_secs(40);
/// For so long the broker's port refuses connections before the drain is timed.
const REFUSED: Duration = Duration::from_mins(1);
/// How long the drain may take to begin at all.
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(50);
/// How long the card is watched: several checkpoints.
const WORN: Duration = Duration::from_mins(10);

/// The store as the daemon configures it by default.
pub fn settings(dir: &Path, gateway: Uuid) -> Settings {
    let text = format!(
        "gateway_id = \"{gateway}\"\ndata_dir = \"{}\"\n[uplink]\nhost = \"localhost\"\ntls = false\n",
        dir.display()
    );
    let config =
        Config::parse(Path::new("gatewayd.toml"), &text).expect("a configuration of defaults is valid");
    kinara_gatewayd::daemon::store_settings(&config)
}

/// `./kinara bench gateway`.
pub fn run(models: Option<Models>) -> Result<Value> {
    let folder = clinic::root().join(".kinara/bench/gateway");
    folders::make(&folder, 0o755)?;
    let loads = produce(&programs().join("kinara-wearable-sim"), &folder, WEARABLES, HOURS, SEED)?;
    let full = durable(&loads, 60_000, &folder.join("full"))?;
    eprintln!("full frames: {:.0} readings/s, {:.2} bytes each", full.readings_per_s, full.bytes_per_reading);
    let live = durable(&loads, 1_000, &folder.join("live"))?;
    eprintln!(
        "one-second frames: {:.0} readings/s, {:.2} bytes each",
        live.readings_per_s, live.bytes_per_reading
    );
    let idle_read_mb_s = card::idle_read_mb_s(&loads, &folder.join("idle"))?;
    eprintln!("1 GiB of backlog: {idle_read_mb_s:.2} MB/s read while idle");
    let plain = daemon(None, WORN)?;
    match plain.wear {
        Some(wear) => eprintln!(
            "the card: {:.0} bytes written a reading, {:.1} flushes a second",
            wear.bytes_per_reading, wear.fsyncs_per_s
        ),
        None => eprintln!("the card: a file system cannot be mounted here (needs root)"),
    }
    eprintln!("without a model: {:.1} % CPU, {:.1} MiB", plain.cpu_percent, plain.peak_rss_mib);
    let with_model = match models {
        Some(models) => Some(daemon(Some(models), Duration::ZERO)?),
        None => None,
    };
    let drain_start_s = drain_start()?;
    eprintln!("after a refused minute the drain begins within {drain_start_s:.1} s");
    let modelled = |pick: fn(&Daemon) -> f64| with_model.as_ref().map(pick).map(rounded);
    Ok(json!({
        "readings_per_s": rounded(live.readings_per_s),
        "bytes_per_reading": rounded(live.bytes_per_reading),
        "cpu_percent_at_real_time": rounded(plain.cpu_percent),
        "peak_rss_mib": rounded(plain.peak_rss_mib),
        "readings_per_s_full_frames": rounded(full.readings_per_s),
        "bytes_per_reading_full_frames": rounded(full.bytes_per_reading),
        "cpu_percent_at_real_time_with_model": modelled(|daemon| daemon.cpu_percent),
        "peak_rss_mib_with_model": modelled(|daemon| daemon.peak_rss_mib),
        "drain_start_s": rounded(drain_start_s),
        "bytes_written_per_reading": plain.wear.map(|wear| rounded(wear.bytes_per_reading)),
        "fsyncs_per_s": plain.wear.map(|wear| rounded(wear.fsyncs_per_s)),
        "idle_read_mb_s": rounded(idle_read_mb_s),
        "readings": full.readings,
        "wearables": WEARABLES,
    }))
}

struct Durable {
    readings: usize,
    readings_per_s: f64,
    bytes_per_reading: f64,
}

/// All wearables deliver their frames side by side, each a window at a time, to the daemon's own store, with the
/// cloud away. The clock stops when the last frame is on disk; the size is the database's after its checkpoint.
fn durable(loads: &[Load], age_ms: u64, folder: &Path) -> Result<Durable> {
    let frames: Vec<(HardwareId, Vec<Bytes>)> = loads
        .iter()
        .map(|load| {
            let hardware = HardwareId::parse(&load.hardware).expect("the harness's own hardware id");
            (hardware, load.frames(age_ms).into_iter().map(|(bytes, _)| Bytes::from(bytes)).collect())
        })
        .collect();
    let readings = loads.iter().map(|load| load.samples.len()).sum();
    folders::make(folder, 0o700)?;
    let board = Board::new(Snapshot::default());
    let runtime = tokio::runtime::Runtime::new().map_err(ClinicError::file("the harness's runtime"))?;
    let seconds = runtime.block_on(async {
        let store = Store::open(settings(folder, Uuid::now_v7()), Arc::new(SystemClock), board)?;
        let began = Instant::now();
        let deliveries: Vec<_> = frames
            .into_iter()
            .map(|(hardware, frames)| {
                let store = store.clone();
                tokio::spawn(async move {
                    for window in frames.chunks(WINDOW) {
                        store.append(hardware.clone(), window.to_vec()).await?;
                    }
                    Ok::<_, StoreError>(())
                })
            })
            .collect();
        for delivery in deliveries {
            delivery.await.expect("a delivery does not panic")?;
        }
        let seconds = began.elapsed().as_secs_f64();
        // What waits long enough is packed.
        tokio::time::sleep(Duration::from_secs(2)).await;
        store.stop().await;
        Ok::<_, StoreError>(seconds)
    });
    let seconds =
        seconds.map_err(|error| ClinicError::Answer { who: "store".to_owned(), what: error.to_string() })?;
    let file = folder.join("store.db");
    let bytes = std::fs::metadata(&file).map_err(ClinicError::file(&file))?.len();
    std::fs::remove_dir_all(folder).map_err(ClinicError::file(folder))?;
    Ok(Durable {
        readings,
        readings_per_s: readings as f64 / seconds,
        bytes_per_reading: bytes as f64 / readings as f64,
    })
}

/// How long the drain takes to begin after a minute in which the broker's port refused connections.
fn drain_start() -> Result<f64> {
    let mut clinic = Clinic::start(Options::for_test("bench-drain"))?;
    let tenant = clinic.add_tenant("Bench", "bench", "Europe/Berlin")?;
    clinic.add_bridge()?;
    let gateway = clinic.add_gateway(&tenant, GatewayPlan::named("drain"))?;
    let wearer = clinic.add_wearer(&tenant, "W-1", "Wearer 1")?;
    let wearable =
        clinic.add_wearable(WearablePlan::new(0xbd01, "drain-1".to_owned(), 1).args(["--prefill", "30m"]))?;
    let hardware = clinic.wearables[wearable].hardware_id.clone();
    let from = jiff::Timestamp::now() - Duration::from_hours(2);
    clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None })?;
    clinic.introduce(gateway, wearable)?;
    clinic.broker.stop();
    clinic.wearables[wearable].process().spawn()?;
    clinic.gateways[gateway].process().start()?;
    pause(REFUSED);
    clinic.broker.start_again()?;
    let began = Instant::now();
    loop {
        let metrics = clinic.gateways[gateway].metrics()?;
        let acknowledged = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kinara_gateway_acknowledged_batches_total "))
            .and_then(|count| count.parse::<f64>().ok());
        if acknowledged.is_some_and(|count| count > 0.0) {
            return Ok(began.elapsed().as_secs_f64());
        }
        if began.elapsed() > PATIENCE {
            let what = format!("has not begun to drain {PATIENCE:?} after the broker's return");
            return Err(ClinicError::Answer { who: "gateway".to_owned(), what });
        }
        pause(LOOK);
    }
}

struct Daemon {
    cpu_percent: f64,
    peak_rss_mib: f64,
    wear: Option<Wear>,
}

/// The real daemon with twenty simulated wearables, broker, bridge and database, at real time. Its card is watched for so
/// long, where one can be mounted.
fn daemon(models: Option<Models>, worn: Duration) -> Result<Daemon> {
    let mut clinic = Clinic::start(Options { models, ..Options::for_test("bench-gateway") })?;
    let tenant = clinic.add_tenant("Bench", "bench", "Europe/Berlin")?;
    clinic.add_bridge()?;
    let gateway = clinic.add_gateway(&tenant, GatewayPlan::named("bench"))?;
    let wearer = clinic.add_wearer(&tenant, "W-1", "Wearer 1")?;
    for number in 1..=WEARABLES as u64 {
        let wearable =
            clinic.add_wearable(WearablePlan::new(0xbe00 + number, format!("bench-{number}"), number))?;
        let hardware = clinic.wearables[wearable].hardware_id.clone();
        let from = jiff::Timestamp::now() - Duration::from_hours(1);
        clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None })?;
        clinic.introduce(gateway, wearable)?;
        clinic.wearables[wearable].process().spawn()?;
    }
    let card = if worn.is_zero() { None } else { Card::mount(&clinic.gateways[gateway].data) };
    clinic.gateways[gateway].process().start()?;
    pause(SETTLING);
    let gone = || ClinicError::Answer { who: "gateway".to_owned(), what: "ended".to_owned() };
    let pid = clinic.gateways[gateway].process().pid().ok_or_else(gone)?;
    let meter = Meter::start(pid).ok_or_else(gone)?;
    pause(WATCHED);
    let connected = clinic.gateways[gateway].metrics()?;
    let linked = connected
        .lines()
        .filter(|line| line.starts_with("kinara_gateway_device_connected{") && line.ends_with(" 1"))
        .count();
    if linked != WEARABLES {
        return Err(ClinicError::Answer {
            who: "gateway".to_owned(),
            what: format!("has a link to {linked} of {WEARABLES} wearables"),
        });
    }
    let cpu_percent = meter.percent().ok_or_else(gone)?;
    let logs: Vec<PathBuf> = clinic.wearables.iter().map(|wearable| wearable.produced.clone()).collect();
    let wear = card.as_ref().and_then(|card| card::wear(card, &logs, worn));
    Ok(Daemon { wear, cpu_percent, peak_rss_mib: machine::peak_rss_mib(pid).ok_or_else(gone)? })
}
