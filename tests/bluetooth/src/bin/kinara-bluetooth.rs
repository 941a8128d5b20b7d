//! The Bluetooth bed by hand: `kinara-bluetooth image|run|list|test`.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kinara_bluetooth_bed::image::Image;
use kinara_bluetooth_bed::{Bed, Boot};

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

fn main() -> ExitCode {
    match run(Arguments::parse().what) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
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
