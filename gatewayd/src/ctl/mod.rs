//! `kinaractl`: what the box does and how it does, for whoever has a shell on it.
//!
//! The promise: every command answers within its time, with words that say what to do or, with `--json`, with one JSON
//! object whose fields stay (`docs/guide-kinaractl.md`); and its exit status tells a script which way it went: 0 done, 1
//! refused or failed (`doctor`: something has to be done), 2 a wrong command line, 3 the daemon or the bus is not
//! there, 4 this user may not.

mod client;
mod doctor;
mod logs;
mod number;
mod pair;
mod parked;
mod plan;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use client::{ANSWER, CtlError, PAIRING, gateway};
use plan::Plan;

/// Talks to kinara-gatewayd on this box.
#[derive(Debug, Parser)]
#[command(name = "kinaractl", version)]
pub struct Arguments {
    /// Print one JSON object, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How the box does.
    Status,
    /// The devices of this box.
    Devices,
    /// Wearers and consent texts, as `bind` takes them.
    Wearers,
    /// Listen for devices that can be paired. Opens the pairing window for as long, unless it is open.
    Scan {
        /// How long to listen, 3 to 120 seconds.
        #[arg(long, default_value_t = 10, value_parser = number::within(3..=120))]
        seconds: u32,
    },
    /// The pairing window: without a word, how it stands.
    Window {
        #[command(subcommand)]
        act: Option<WindowAct>,
    },
    /// Pair a device.
    Pair(Pair),
    /// Give a paired device to a wearer who agreed to a consent text.
    Bind(Bind),
    /// Take a device from its wearer.
    Unbind {
        /// `kinara:<16 hex digits>` or `bt:<address>`.
        hardware: String,
    },
    /// End the bond with a device, and take it from its wearer.
    Forget {
        /// `kinara:<16 hex digits>` or `bt:<address>`.
        hardware: String,
    },
    /// Have a connected wearable show itself.
    Identify {
        /// `kinara:<16 hex digits>` or `bt:<address>`.
        hardware: String,
    },
    /// How often a wearable measures: without a channel, how it is set.
    Plan(Plan),
    /// What time it is, who says so, and what this box was sure of last.
    Clock {
        #[command(subcommand)]
        act: Option<ClockAct>,
    },
    /// Batches that the cloud could not read: without a word, which.
    Parked {
        #[command(subcommand)]
        act: Option<ParkedAct>,
    },
    /// What the daemon and its helper logged.
    Logs(Logs),
    /// Look for what is wrong and say what to do. Works without the daemon.
    Doctor(Doctor),
}

#[derive(Debug, Subcommand)]
enum ClockAct {
    /// Forget the last time that this box was sure of: it was wrong, and nothing earlier is believed. In the audit.
    Reset,
}

#[derive(Debug, Subcommand)]
enum WindowAct {
    /// Let devices pair for a while.
    Open {
        /// For how long, 10 to 300 seconds.
        #[arg(long, default_value_t = 120, value_parser = number::within(10..=300))]
        seconds: u32,
    },
    /// End that.
    Close,
}

#[derive(Debug, Subcommand)]
enum ParkedAct {
    /// Send them once more.
    Retry,
    /// Copy them into a folder, for support. They hold readings of people.
    Export {
        /// The folder; made if it is not there.
        folder: PathBuf,
    },
}

/// `kinaractl pair`
#[derive(Debug, Args)]
pub struct Pair {
    /// The device's name or key, as `scan` shows them.
    device: String,
    /// The 16 characters on its label. Without it they are asked for; other users of the machine cannot see them then.
    #[arg(long)]
    code: Option<String>,
    /// Accept a sensor of another maker that proves nothing. It has to be named in full.
    #[arg(long, conflicts_with = "code")]
    just_works: bool,
    /// How long to wait until the device is heard, 5 to 120 seconds.
    #[arg(long, default_value_t = 30, value_parser = number::within(5..=120))]
    wait: u32,
}

#[derive(Debug, Args)]
struct Bind {
    /// `kinara:<16 hex digits>` or `bt:<address>`.
    hardware: String,
    /// The wearer's id, as `wearers` shows it.
    #[arg(long, required_unless_present = "new", conflicts_with = "new")]
    wearer: Option<String>,
    /// Somebody new, by the name that the clinic uses.
    #[arg(long)]
    new: Option<String>,
    /// The version of the consent text that they agreed to.
    #[arg(long)]
    consent: String,
    /// The language of that text.
    #[arg(long, default_value = "en")]
    language: String,
    /// Who asked them.
    #[arg(long)]
    asked_by: String,
    /// Give up the former wearer's readings that are still on the device.
    #[arg(long)]
    accept_loss: bool,
}

/// `kinaractl logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// Only of this device.
    #[arg(long)]
    hardware: Option<String>,
    /// Only of this adapter (`hci0`).
    #[arg(long)]
    adapter: Option<String>,
    /// How many lines, at most 10000.
    #[arg(long, short = 'n', default_value_t = 200, value_parser = number::within(1..=10_000))]
    lines: u32,
    /// Since when, as journalctl has it: "1 hour ago", "2026-11-23".
    #[arg(long)]
    since: Option<String>,
    /// Only warnings and errors.
    #[arg(long)]
    warnings: bool,
}

/// `kinaractl doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// The daemon's configuration.
    #[arg(long, default_value = "/etc/kinara/gatewayd.toml")]
    config: PathBuf,
}

/// Does what the command line says.
pub fn run(arguments: Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let json = arguments.json;
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(act(arguments));
            // Somebody may still be asked something on standard input, which nobody will answer.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(CtlError::Other(format!("cannot start: {error}"))),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            if json {
                println!("{}", json!({ "error": { "code": error.code(), "text": error.to_string() } }));
            } else {
                eprintln!("kinaractl: {error}");
            }
            ExitCode::from(error.exit())
        }
    }
}

async fn act(arguments: Arguments) -> Result<ExitCode, CtlError> {
    let json = arguments.json;
    match arguments.command {
        Command::Status => {
            let status = gateway(ANSWER).await?.status().await?;
            show::result(json, &status, show::status);
        }
        Command::Devices => {
            let devices = gateway(ANSWER).await?.devices().await?;
            show::result(json, &json!({ "devices": devices }), |_| show::devices(&devices));
        }
        Command::Wearers => {
            let gateway = gateway(ANSWER).await?;
            let (wearers, texts) = (gateway.wearers().await?, gateway.consent_texts().await?);
            let both = json!({ "wearers": wearers, "consent_texts": texts });
            show::result(json, &both, |_| show::wearers(&wearers, &texts));
        }
        Command::Scan { seconds } => {
            let nearby = pair::scan(&gateway(ANSWER).await?, seconds).await?;
            show::result(json, &json!({ "nearby": nearby }), |_| show::nearby(&nearby));
        }
        Command::Window { act } => {
            let gateway = gateway(ANSWER).await?;
            match act {
                Some(WindowAct::Open { seconds }) => gateway.open_window(seconds).await?,
                Some(WindowAct::Close) => gateway.close_window().await?,
                None => {}
            }
            show::result(json, &gateway.window().await?, show::window);
        }
        Command::Pair(wanted) => {
            let hardware = pair::pair(&gateway(PAIRING).await?, &wanted).await?;
            show::result(json, &json!({ "hardware": hardware }), |_| {
                format!(
                    "Paired: {hardware}\nGive it to a wearer: kinaractl bind {hardware} --wearer … --consent … --asked-by …"
                )
            });
        }
        Command::Bind(bind) => {
            let gateway = gateway(ANSWER).await?;
            let (wearer, new) = (bind.wearer.unwrap_or_default(), bind.new.unwrap_or_default());
            let user = gateway
                .bind(
                    &bind.hardware,
                    &wearer,
                    &new,
                    &bind.consent,
                    &bind.language,
                    &bind.asked_by,
                    bind.accept_loss,
                )
                .await?;
            show::result(json, &json!({ "hardware": bind.hardware, "user": user }), |_| {
                format!("{} is worn by {user} from now on.", bind.hardware)
            });
        }
        Command::Unbind { hardware } => {
            gateway(ANSWER).await?.unbind(&hardware).await?;
            show::result(json, &json!({ "hardware": hardware }), |_| format!("Nobody wears {hardware} now."));
        }
        Command::Forget { hardware } => {
            gateway(ANSWER).await?.forget(&hardware).await?;
            show::result(json, &json!({ "hardware": hardware }), |_| {
                format!("This box has forgotten {hardware}.")
            });
        }
        Command::Identify { hardware } => {
            gateway(ANSWER).await?.identify(&hardware).await?;
            show::result(json, &json!({ "hardware": hardware }), |_| {
                "It shows itself for some seconds.".to_owned()
            });
        }
        Command::Plan(wanted) => {
            let plan = plan::plan(&gateway(ANSWER).await?, &wanted).await?;
            show::result(json, &plan, plan::text);
        }
        Command::Clock { act } => {
            let gateway = gateway(ANSWER).await?;
            if act.is_some() {
                gateway.reset_clock().await?;
            }
            let clock = gateway.clock().await?;
            show::result(json, &clock, |_| match act {
                Some(ClockAct::Reset) => {
                    "The last known time is forgotten. Look again: kinaractl clock".to_owned()
                }
                None => show::clock(&clock),
            });
        }
        Command::Parked { act } => parked(json, act).await?,
        Command::Logs(wanted) => return logs::run(&wanted, json).await,
        Command::Doctor(wanted) => return Ok(doctor::run(&wanted.config, json).await),
    }
    Ok(ExitCode::SUCCESS)
}

async fn parked(json: bool, act: Option<ParkedAct>) -> Result<(), CtlError> {
    let gateway = gateway(ANSWER).await?;
    match act {
        None => {
            let parked = gateway.parked().await?;
            show::result(json, &json!({ "parked": parked }), |_| show::parked(&parked));
        }
        Some(ParkedAct::Retry) => {
            let again = gateway.retry_parked().await?;
            show::result(json, &json!({ "again": again }), |_| {
                format!("{again} batches go out once more. Look again in a minute: kinaractl parked")
            });
        }
        Some(ParkedAct::Export { folder }) => {
            let files = parked::export(&gateway, &gateway.parked().await?, &folder).await?;
            show::result(json, &json!({ "files": files }), |_| {
                format!("{} files in {}. They hold readings of people.", files.len(), folder.display())
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_a_window_of_ten_minutes_is_refused_at_once() {
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["kinaractl", "window", "open", "--seconds", "600"]).is_err());
        assert!(
            Arguments::try_parse_from(["kinaractl", "bind", "kinara:0", "--consent", "1", "--asked-by", "A"])
                .is_err()
        );
        assert!(
            Arguments::try_parse_from(["kinaractl", "pair", "K-1", "--code", "A", "--just-works"]).is_err()
        );
        assert!(Arguments::try_parse_from(["kinaractl", "clock"]).is_ok());
        assert!(Arguments::try_parse_from(["kinaractl", "plan", "kinara:0", "--channel", "eda"]).is_err());
        assert!(
            Arguments::try_parse_from(["kinaractl", "plan", "kinara:0", "--reference", "--seconds", "9"])
                .is_err()
        );
        assert!(Arguments::try_parse_from(["kinaractl", "clock", "reset"]).is_ok());
        assert!(Arguments::try_parse_from(["kinaractl", "logs", "-n", "1000000"]).is_err());
    }
}
