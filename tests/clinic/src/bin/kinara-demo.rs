//! `kinara-demo`: a whole clinic on this machine, for a person to look at. `./kinara demo` builds and runs it.

use clap::Parser;
use kinara_clinic::demo::{self, Stop, Wishes};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Shows a whole clinic on this machine: wearables, gateways, broker, bridge, database, API and page.
#[derive(Debug, Parser)]
#[command(name = "./kinara demo", version)]
struct Arguments {
    /// The address that the page listens on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// The port that the page listens on.
    #[arg(long, default_value_t = 8090)]
    port: u16,
    /// How many simulated wearables, spread over the two clinics.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=500))]
    wearables: u32,
    /// A recording in place of the one that comes with Kinara.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Cuts the broker for this time (as 30s or 2m), once the page is live.
    #[arg(long, value_name = "TIME", value_parser = time)]
    offline: Option<Duration>,
    /// Starts anew: forgets what earlier runs kept.
    #[arg(long)]
    fresh: bool,
    /// Stops by itself after this time (as 60s or 5m).
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    stop_after: Option<Duration>,
    /// Where everything is kept.
    #[arg(long, value_name = "FOLDER", hide = true)]
    folder: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stop = Arc::new(Stop::default());
    if let Err(error) = listen_for_signals(Arc::clone(&stop)) {
        eprintln!("kinara demo: signals cannot be received: {error}");
        return ExitCode::FAILURE;
    }
    if let Some(recording) = &arguments.replay
        && !recording.exists()
    {
        eprintln!("kinara demo: {} is not there", recording.display());
        return ExitCode::FAILURE;
    }
    let wishes = Wishes {
        folder: arguments.folder.unwrap_or_else(|| kinara_clinic::clinic::root().join(".kinara")),
        listen: arguments.listen,
        port: arguments.port,
        wearables: arguments.wearables,
        replay: arguments.replay.map(|path| std::path::absolute(&path).unwrap_or(path)),
        offline: arguments.offline,
        fresh: arguments.fresh,
        stop_after: arguments.stop_after,
    };
    match demo::run(&wishes, &stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kinara demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C, SIGTERM and a closed terminal all end the demo in order. A second Ctrl-C changes nothing: ending takes
/// seconds, and cutting it short would leave the database to recover.
fn listen_for_signals(stop: Arc<Stop>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ))
    })?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                stop.ask();
            }
        });
    });
    Ok(())
}

/// `30s`, `2m`, `1h`, or plain seconds.
fn time(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} is not a time; write it as 30s, 2m or 1h")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a time; write it as 30s, 2m or 1h"))?;
    Ok(Duration::from_secs(number * factor))
}
