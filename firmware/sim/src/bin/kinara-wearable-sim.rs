//! `kinara-wearable-sim`: one simulated wearable on the virtual radio.

use std::process::ExitCode;

use anyhow::{Context, Result};
use kinara_sim::options::VirtualOptions;
use kinara_sim::pairing::Pairing;
use kinara_sim::program;
use kinara_sim::station::Station;

fn main() -> ExitCode {
    program::main("kinara-wearable-sim", run)
}

fn run(VirtualOptions { wearable: options, air, button }: VirtualOptions) -> Result<()> {
    let ended = program::ended()?;
    let clock = program::clock(&options)?;
    for dir in [&air, &options.state] {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let radio = kinara_virtual_radio::socket_path(&air, options.factory_id);
    let control = radio.with_extension("ctl");
    let events = kinara_sim::air::open(&radio, &control)?;
    let mut wearable = program::start(&options, clock.utc_us())?;
    let ready = serde_json::json!({
        "ready": true,
        "factory_id": format!("{:016x}", options.factory_id),
        "epoch": wearable.app().epoch().to_string(),
        "produced": wearable.produced(),
    });
    let pairing = Pairing::open(options.label_secret, button, &options.state)
        .with_context(|| options.state.display().to_string())?;
    let mut station = Station::new(options.name, clock, wearable, pairing);
    println!("{ready}");
    station.run(&events, &ended)?;
    for socket in [radio, control] {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}
