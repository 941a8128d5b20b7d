//! The Bluetooth bed by hand: `kinara-bluetooth image|run|list|test`.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kinara_bluetooth_bed::image::Image;
use kinara_bluetooth_bed::{Bed, BedError, Boot, scenario};

/// Real BlueZ in a virtual machine, wearables on its air.
#[derive(Parser)]
#[command(name = "kinara-bluetooth", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Makes the machine's image, where it is not there yet.
    Image,
    /// Runs what must hold: these scenarios, or all.
    Test {
        /// The long forms: more notifications, fifty power cuts.
        #[arg(long)]
        long: bool,
        /// Where all chance comes from.
        #[arg(long, default_value_t = SEED)]
        seed: u64,
        /// Names the scenarios.
        #[arg(long)]
        list: bool,
        /// Which.
        name: Vec<String>,
    },
    /// Measures gatewayd beside a client with bleak. The last line is one JSON object.
    Bench {
        /// The result as one line of JSON (else it is spread over several, for people).
        #[arg(long)]
        json: bool,
    },
    /// Boots a machine with bluetoothd and wearables, and runs lines of shell in it: those given, else those typed.
    Run {
        /// With systemd in place of a bare init.
        #[arg(long)]
        systemd: bool,
        /// Where everything lies; the data disk in it stays.
        #[arg(long, default_value = "/var/tmp/kinara-bluetooth")]
        folder: PathBuf,
        /// So many wearables.
        #[arg(long, default_value_t = 1)]
        wearables: usize,
        /// Their program, of the built ones unless a path.
        #[arg(long, default_value = "kinara-wearable-ble")]
        wearable: PathBuf,
        /// An argument for it (may be given more than once): {port} {name} {state} are put in.
        #[arg(long = "wearable-arg", allow_hyphen_values = true)]
        wearable_args: Vec<String>,
        /// A file to put into /bed of the machine (may be given more than once).
        #[arg(long)]
        file: Vec<PathBuf>,
        /// Lines of shell to run in the machine.
        line: Vec<String>,
    },
}

/// Where all chance comes from unless told otherwise.
const SEED: u64 = 20_261_123;
/// The exit status that says that it cannot run here.
const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    // Once in a program; a second time would be another library's wish, and as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Arguments::parse().what) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The launcher tells a test that cannot run here from one that failed.
        Err(error) if matches!(error.downcast_ref(), Some(BedError::NoMachine(_))) => {
            println!("skipped: {error:#}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            eprintln!("the bed: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(what: What) -> Result<bool> {
    match what {
        What::Image => {
            let image = Image::ready()?;
            print!("{}", image.versions);
            Ok(true)
        }
        What::Test { list: true, .. } => {
            for scenario in scenario::SESSIONS.iter().flat_map(|session| session.scenarios) {
                println!("{:<20} {}", scenario.name, scenario.about);
            }
            Ok(true)
        }
        What::Test { long, seed, name, .. } => {
            let report = scenario::run(&name, seed, long)?;
            for (name, broken, took) in &report.outcomes {
                let how = broken.as_ref().map_or("ok    ", |_| "BROKEN");
                println!("{how} {name:<20} {:5.0} s", took.as_secs_f64());
            }
            println!("{}", report.line());
            Ok(report.passed())
        }
        What::Bench { json } => {
            let result = kinara_bluetooth_bed::bench::run(SEED)?;
            if !json {
                println!("{result:#}");
            }
            println!("{result}");
            Ok(true)
        }
        What::Run { systemd, folder, wearables, wearable, wearable_args, file, line } => {
            let mut bed = Bed::open(&folder, &file)?;
            let program = kinara_clinic::clinic::programs().join(wearable);
            for _ in 0..wearables {
                bed.add_wearable(&program, &wearable_args)?;
            }
            let machine = bed.add_machine("a", if systemd { Boot::Systemd } else { Boot::Small })?;
            bed.boot_with_bluetooth(machine)?;
            eprintln!("bluetoothd is up; logs are in {}", bed.logs().display());
            if line.is_empty() {
                shell(&bed, machine, std::io::stdin().lock().lines())
            } else {
                shell(&bed, machine, line.into_iter().map(Ok))
            }
        }
    }
}

/// Runs lines in the machine, each to its end; whether all ended well.
fn shell(bed: &Bed, machine: usize, lines: impl Iterator<Item = std::io::Result<String>>) -> Result<bool> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_mins(30);
    let hand = bed.machines[machine].hand()?;
    let mut good = true;
    for line in lines {
        let said = hand.run_within(PATIENCE, &["sh", "-c", &line.context("standard input")?])?;
        print!("{}", said.out);
        eprint!("{}", said.err);
        good &= said.status == 0;
    }
    Ok(good)
}
