//! What the programs have in common: arguments, signals, the clock, the wearable's start.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::Parser;
use clap::error::ErrorKind;
use kinara_clock::{Clock, ScaledClock, SystemClock};
use kinara_firmware_app::framing::FrameAge;

use crate::body::BodySettings;
use crate::firmware::Updates;
use crate::options::WearableOptions;
use crate::oracle::Oracle;
use crate::replay::Recording;
use crate::wearable::{Wearable, WearableSettings};

/// Reads the arguments and runs; what goes wrong is one line on standard error.
pub fn main<O: Parser>(name: &str, run: impl FnOnce(O) -> Result<()>) -> ExitCode {
    let options = match O::try_parse_from(std::env::args_os().collect::<Vec<OsString>>()) {
        Ok(options) => options,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Nobody may be there to read it.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.to_string();
            let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            let line: Vec<&str> = message.split_whitespace().collect();
            eprintln!("{name}: {} (--help says more)", line.join(" "));
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that SIGTERM and SIGINT set.
pub fn ended() -> Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("signals")?;
    }
    Ok(ended)
}

/// The body's clock.
pub fn clock(options: &WearableOptions) -> Result<Arc<dyn Clock>> {
    match options.speed {
        None => Ok(kinara_clock::from_env()?),
        Some(_) if std::env::var_os("KINARA_CLOCK").is_some() => {
            bail!("--speed and KINARA_CLOCK both scale the time: give one of them")
        }
        Some(speed) => Ok(Arc::new(ScaledClock::new(SystemClock.utc_us(), speed))),
    }
}

/// Starts the wearable. Its radio's sockets are open before: a second one of this id must not touch the first one's
/// flash.
pub fn start(options: &WearableOptions, now_us: i64) -> Result<Wearable> {
    let recording = options.replay.as_deref().map(Recording::open).transpose()?;
    let oracle = match &options.log {
        Some(path) => Oracle::open(path).with_context(|| path.display().to_string())?,
        None => Oracle::default(),
    };
    let settings = WearableSettings {
        factory_id: options.factory_id,
        body: BodySettings {
            seed: options.seed,
            utc_offset_min: options.utc_offset_min,
            hot_flash_every_us: options.hot_flash_every,
            watched_from_us: now_us,
        },
        drift_ppm: options.drift_ppm,
        plan: options.plan.plan(),
        frame_age: FrameAge { stored_ms: options.frame_age_offline_s * 1_000, ..FrameAge::default() },
        ring_kib: options.ring_kib,
        recording,
        updates: Updates { maker: options.maker, healthy_ms: u64::from(options.healthy_s) * 1_000 },
        prefill_us: options.prefill,
    };
    Ok(Wearable::start(settings, &options.state, oracle, now_us)?)
}
