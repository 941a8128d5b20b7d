//! `kinara-cloud-bridge`: see the library.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kinara_cloud_bridge::config::Config;
use kinara_ingest::quarantine::{self, Which};
use kinara_ingest::{Limits, Writer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Takes batches from the broker, writes them to the database, and acknowledges them.
#[derive(Debug, Parser)]
#[command(name = "kinara-cloud-bridge", version)]
struct Arguments {
    /// The configuration (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Read and check the configuration, and do nothing else.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Send quarantined frames through the ordinary write again; prints what came of it as JSON.
    ReplayQuarantine {
        /// Only those refused for this reason.
        #[arg(long)]
        reason: Option<String>,
    },
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let config = Config::read(&arguments.config)?;
    if arguments.check {
        kinara_cloud_bridge::link::transport(&config.broker)?;
        return Ok(());
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let clock = kinara_clock::from_env()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(Task::ReplayQuarantine { reason }) = arguments.command {
            let limits = config.database_limits();
            let pool = kinara_store::connect(&config.database.url, "kinara-replay-quarantine", &limits)?;
            let writer = Writer::new(pool.clone(), Arc::clone(&clock), Limits::default());
            let reasons: Vec<&str> = reason.iter().map(String::as_str).collect();
            let which = Which { hardware_id: None, reasons: &reasons };
            let replayed = quarantine::replay(&writer, &pool, clock.as_ref(), which).await?;
            println!("{}", serde_json::json!({ "taken": replayed.taken, "refused": replayed.refused }));
            return Ok(());
        }
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let told = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        });
        kinara_cloud_bridge::run(config, clock, stop).await?;
        Ok(())
    })
}
