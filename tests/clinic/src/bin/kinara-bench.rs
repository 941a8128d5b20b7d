//! `./kinara bench NAME`: measures the real parts on this machine. The last line is one JSON object.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kinara_clinic::bench;
use kinara_clinic::clinic::{Models, root};

/// What the product does on this machine.
#[derive(Parser)]
#[command(name = "kinara-bench", version)]
struct Arguments {
    #[command(subcommand)]
    name: Name,
    /// The result as one line of JSON (else it is spread over several, for people).
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Name {
    /// From the sample to the page in a real browser.
    Live {
        /// How long the page is watched.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// From publish to committed rows, beside a bare COPY.
    Ingest {
        /// How many rows the table has where its growth is measured.
        #[arg(long, default_value_t = 10_000_000)]
        rows: i64,
    },
    /// Twenty wearables' frames to disk, and what the daemon costs.
    Gateway,
    /// The frame codec.
    Protocol,
    /// Questions about a day and a month, and what a reading takes on the disk.
    Query,
}

fn main() -> ExitCode {
    // Once in a program; a second time would be another library's wish, and as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bench could not be run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let result = match arguments.name {
        Name::Live { seconds } => bench::live::run(seconds, models())?,
        Name::Ingest { rows } => bench::ingest::run(rows)?,
        Name::Gateway => bench::gateway::run(models())?,
        Name::Protocol => bench::protocol::run()?,
        Name::Query => bench::query::run()?,
    };
    if !arguments.json {
        println!("{result:#}");
    }
    println!("{result}");
    Ok(())
}

/// The runtime that the launcher fetched and the model that the repository carries.
fn models() -> Option<Models> {
    let onnxruntime = root().join(".kinara/onnxruntime/libonnxruntime.so");
    let model = root().join("models/hot_flash");
    (onnxruntime.exists() && model.exists()).then_some(Models { onnxruntime, model })
}
