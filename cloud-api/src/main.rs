//! `kinara-cloud-api`: serves a cloud's clinics, migrates its database, and carries out the operator's commands.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kinara_cloud_api::Service;
use kinara_cloud_api::admin::{self, Admin};
use kinara_cloud_api::config::Config;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(name = "kinara-cloud-api", version, about = "Kinara's API and dashboard")]
struct Cli {
    /// The configuration file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Without one: serves.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings the database to this program's schema.
    Migrate {
        /// postgres://USER:PASSWORD@HOST/DATABASE of a superuser or the database's owner.
        #[arg(long, env = "KINARA_ADMIN_URL", hide_env_values = true)]
        admin_url: String,
    },
    /// Clinics, members, wearers, gateways, devices. Each prints one line of JSON.
    Admin(Admin),
    /// Reads the configuration and says whether it is right.
    Check,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // Standard output is for what commands print.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::read(&cli.config)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        match cli.command {
            None => serve(config).await,
            Some(Command::Check) => {
                println!("{} is right", cli.config.display());
                Ok(())
            }
            Some(Command::Migrate { admin_url }) => {
                let migrated = kinara_store::migrate(&admin_url).await?;
                println!(
                    "{}",
                    serde_json::json!({ "version": migrated.version, "applied": migrated.applied })
                );
                Ok(())
            }
            Some(Command::Admin(command)) => {
                println!("{}", admin::run(&command).await?);
                Ok(())
            }
        }
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let clock = kinara_clock::from_env()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut service = Service::start(config, clock).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = service.ended() => Some(ended),
    };
    tracing::info!("stopping");
    service.stop().await;
    // Whoever runs the program starts it again.
    ended.map_or(Ok(()), |task| {
        Err(anyhow::anyhow!("a part of the service ended before it was to stop: {task}"))
    })
}
