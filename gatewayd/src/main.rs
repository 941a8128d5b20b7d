//! `kinara-gatewayd`: the appliance's daemon.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use kinara_gatewayd::config::Config;
use kinara_gatewayd::{daemon, service};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Keeps every reading that a wearable hands over until the cloud has it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, default_value = "/etc/kinara/gatewayd.toml")]
    config: PathBuf,
    /// Only check the configuration, and say what is wrong with it.
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::read(&arguments.config)?;
    if arguments.check {
        println!("{} is in order", arguments.config.display());
        return Ok(());
    }
    service::start_log();
    // Another part of the process may have installed the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let clock = kinara_clock::from_env().context("the clock")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let stopper = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stopper.cancel();
        });
        let attended = stop.clone();
        daemon::run(config, clock, stop, move |desk| {
            tokio::spawn(service::attend(desk.board().clone(), attended));
        })
        .await?;
        Ok(())
    })
}
