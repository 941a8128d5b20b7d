//! `kinara-cloud-bridge`: see the library.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kinara_clock::Clock;
use kinara_cloud_bridge::config::Config;
use kinara_cloud_bridge::hush::Hush;
use kinara_cloud_bridge::jobs::Queue;
use kinara_ingest::quarantine::{self, Which};
use kinara_ingest::{Limits, Writer, erase};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

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
    /// Gives jobs that were tried as often as they are all their attempts again; prints how many as JSON.
    ReviveJobs,
    /// Prints who was erased, a line of JSON each: to be kept beside the backups.
    Tombstones,
    /// Reads from standard input what `tombstones` printed, and erases these wearers again: after a restore.
    RestoreTombstones,
}

fn main() -> anyhow::Result<()> {
    kinara_cloud_bridge::heap::settle();
    let hush = Hush::default();
    log(hush.clone());
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
    let last = hush.clone();
    let ended = runtime.block_on(async {
        tokio::spawn(hush.keep_telling());
        if let Some(task) = arguments.command {
            return run_task(task, &config, clock).await;
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
    });
    last.tell();
    ended
}

/// What is said goes to the standard error, in bounded numbers.
fn log(hush: Hush) {
    let wanted = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(wanted).with(lines).with(hush).init();
}

async fn run_task(task: Task, config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let pool =
        kinara_store::connect(&config.database.url, "kinara-cloud-bridge task", &config.database_limits())?;
    match task {
        Task::ReplayQuarantine { reason } => {
            let writer = Writer::new(pool.clone(), Arc::clone(&clock), Limits::default());
            let reasons: Vec<&str> = reason.iter().map(String::as_str).collect();
            let which = Which { hardware_id: None, reasons: &reasons };
            let replayed = quarantine::replay(&writer, &pool, clock.as_ref(), which).await?;
            println!("{}", serde_json::json!({ "taken": replayed.taken, "refused": replayed.refused }));
        }
        Task::ReviveJobs => {
            println!("{}", serde_json::json!({ "revived": Queue::new(config)?.revive().await? }));
        }
        Task::Tombstones => {
            for stone in erase::tombstones(&pool).await? {
                println!("{}", serde_json::to_string(&stone)?);
            }
        }
        Task::RestoreTombstones => {
            let stones = std::io::stdin()
                .lines()
                .map(|line| Ok(serde_json::from_str(&line?)?))
                .collect::<anyhow::Result<Vec<erase::Tombstone>>>()?;
            println!("{}", serde_json::json!({ "restored": erase::restore(&pool, &stones).await? }));
        }
    }
    Ok(())
}
