//! `kinara-wearable-sim`: one simulated wearable.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::Parser;
use clap::error::ErrorKind;
use kinara_clock::{Clock, ScaledClock, SystemClock};
use kinara_firmware_app::framing::FrameAge;
use kinara_sim::body::BodySettings;
use kinara_sim::options::Options;
use kinara_sim::oracle::Oracle;
use kinara_sim::pairing::Pairing;
use kinara_sim::replay::Recording;
use kinara_sim::station::Station;
use kinara_sim::wearable::{Wearable, WearableSettings};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
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
            eprintln!("kinara-wearable-sim: {} (--help says more)", line.join(" "));
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kinara-wearable-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clock(options: &Options) -> Result<Arc<dyn Clock>> {
    match options.speed {
        None => Ok(kinara_clock::from_env()?),
        Some(_) if std::env::var_os("KINARA_CLOCK").is_some() => {
            bail!("--speed and KINARA_CLOCK both scale the time: give one of them")
        }
        Some(speed) => Ok(Arc::new(ScaledClock::new(SystemClock.utc_us(), speed))),
    }
}

fn run(options: Options) -> Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("signals")?;
    }
    let clock = clock(&options)?;
    let recording = options.replay.as_deref().map(Recording::open).transpose()?;
    for dir in [&options.air, &options.state] {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let oracle = match &options.log {
        Some(path) => Oracle::open(path).with_context(|| path.display().to_string())?,
        None => Oracle::default(),
    };
    // The sockets first: a second wearable of this id must not touch the first one's flash.
    let radio = kinara_virtual_radio::socket_path(&options.air, options.factory_id);
    let control = radio.with_extension("ctl");
    let events = kinara_sim::air::open(&radio, &control)?;
    let now_us = clock.utc_us();
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
        prefill_us: options.prefill,
    };
    let wearable = Wearable::start(settings, &options.state, oracle, now_us)?;
    let pairing = Pairing::open(options.label_secret, options.button, &options.state)
        .with_context(|| options.state.display().to_string())?;
    let mut station = Station::new(options.factory_id, options.name, clock, wearable, pairing);
    let ready = serde_json::json!({
        "ready": true,
        "factory_id": format!("{:016x}", options.factory_id),
        "epoch": station.wearable().app().epoch().to_string(),
        "produced": station.wearable().produced(),
    });
    println!("{ready}");
    station.run(&events, &ended)?;
    for socket in [radio, control] {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}
