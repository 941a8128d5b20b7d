//! `kinaractl plan`

use clap::Args;

use super::client::{CtlError, GatewayProxy};
use super::number;
use super::show::table;
use crate::align::source::shown;
use crate::local::bus::plan::{self, Interval};

/// `kinaractl plan`
#[derive(Debug, Args)]
pub struct Plan {
    /// `kinara:<16 hex digits>`.
    hardware: String,
    /// A channel to set, as `plan` shows it; may be given again.
    #[arg(long = "channel", value_name = "CHANNEL", requires = "seconds")]
    channels: Vec<String>,
    /// Its interval, one for each channel in their order; 0: the reference plan's.
    #[arg(long, value_name = "SECONDS", requires = "channels", value_parser = number::seconds)]
    seconds: Vec<u16>,
    /// Measure by the reference plan again.
    #[arg(long, conflicts_with_all = ["channels", "seconds"])]
    reference: bool,
}

/// Sets what was asked for, and gives how it is set.
pub async fn plan(gateway: &GatewayProxy<'_>, wanted: &Plan) -> Result<plan::Plan, CtlError> {
    let hardware = wanted.hardware.as_str();
    if wanted.channels.len() != wanted.seconds.len() {
        return Err(CtlError::Other("Give --seconds once for each --channel.".to_owned()));
    }
    let names = if wanted.reference {
        gateway.plan(hardware).await?.channels.into_iter().map(|channel| channel.channel).collect()
    } else {
        wanted.channels.clone()
    };
    if names.is_empty() {
        return Ok(gateway.plan(hardware).await?);
    }
    let seconds = wanted.seconds.iter().copied().chain(std::iter::repeat(0));
    let intervals: Vec<Interval> =
        names.into_iter().zip(seconds).map(|(channel, seconds)| Interval { channel, seconds }).collect();
    Ok(gateway.set_plan(hardware, &intervals).await?)
}

/// For people.
pub fn text(plan: &plan::Plan) -> String {
    let rows = plan.channels.iter().map(|channel| {
        let every = channel.seconds.map_or_else(|| "as the reference plan".to_owned(), |s| format!("{s} s"));
        vec![channel.channel.clone(), every, format!("{} to {} s", channel.least_s, channel.most_s)]
    });
    let state = match (plan.state.as_str(), plan.in_force_us) {
        ("in_force", Some(utc_us)) => {
            format!("{} said at {} that it measures so.", plan.hardware, shown(utc_us))
        }
        ("refused", _) => format!("! {}", plan.why),
        _ => format!("{} has not said yet that it measures so.", plan.hardware),
    };
    format!("{}\n{state}", table(&["CHANNEL", "EVERY", "CAN BE"], rows).trim_end())
}
