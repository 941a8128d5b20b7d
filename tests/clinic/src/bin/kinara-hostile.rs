//! `./kinara test hostile`: one clinic attacks with its certificate and its API key, another one works and is watched.
//!
//! The last line is one JSON object. The exit status is 0 when everything was within the bars, 1 when something was not, 2
//! when it could not be judged.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use kinara_clinic::clinic::Options;
use kinara_clinic::hostile;

/// What one clinic can do to another.
#[derive(Parser)]
#[command(name = "kinara-hostile", version)]
struct Arguments {
    /// How long the attack lasts.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where all randomness comes from.
    #[arg(long, default_value_t = 20_261_129)]
    seed: u64,
    /// Keeps everything but the JSON line from standard output.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    // Once in a program; a second time would be another library's wish, and as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("it could not be judged: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let attack = Duration::from_secs(arguments.seconds);
    let report = hostile::run(Options::for_test("hostile"), arguments.seed, attack)?;
    for finding in &report.findings {
        eprintln!("  {finding}");
    }
    if !arguments.json {
        println!("{}", if report.passed() { "the other clinic felt nothing" } else { "THE ATTACK WAS FELT" });
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(report.passed())
}
