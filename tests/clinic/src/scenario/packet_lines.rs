//! Packets of a gateway's connection to the broker are lost, or long under way. None of it excuses a loss.

use std::time::Duration;

use rand::Rng;

use super::Stage;
use super::lines::{PACE, one_connection};
use super::sights::number;
use crate::oracle::witness::Witness;
use crate::packets::{self, PORT, PacketLine, THERE, Weather};
use crate::{ClinicError, Result};

/// Every fifth packet, each way.
const LOSSY: Weather = Weather { loss: 0.2, delay: Duration::from_millis(60) };
/// Each answer takes eight seconds.
const LATE: Weather = Weather { loss: 0.0, delay: Duration::from_secs(4) };
/// More are flapping. A greeting may well take longer on such a line than anybody waits.
const FEW: u64 = 3;
/// Losses that are no accident.
const MANY: u64 = 20;

/// A gateway behind such a line, as bad from its first packet on as it stays. Nothing where there can be none.
fn behind(stage: &mut Stage, name: &str, weather: Weather, prefill: &str) -> Result<Option<usize>> {
    let (seed, page) = (stage.rng.random(), crate::ports::free());
    let ports = (stage.clinic.broker.port(), page);
    let (line, arrived) = match PacketLine::lay(weather, seed, ports, stage.runtime().handle()) {
        Ok(laid) => laid,
        Err(error) if packets::must_work() => return Err(ClinicError::file("a line of packets")(error)),
        Err(error) => {
            stage.skip(&format!("a line of packets needs root, /dev/net/tun and `ip`: {error}"));
            return Ok(None);
        }
    };
    let listen = format!("[local]\nlisten = \"127.0.0.1:{page}\"\n");
    let gateway =
        stage.gateway(0, name, &format!("{listen}[uplink]\nhost = \"{THERE}\"\nport = {PORT}\n{PACE}"))?;
    stage.clinic.gateways[gateway].process().launch_mut().network = Some(line.network().path());
    stage.lines.insert(gateway, arrived);
    stage.packets.insert(gateway, line);
    stage.wearable(0, &[gateway], &["--prefill", prefill])?;
    stage.start_gateway_at(0.4, gateway);
    stage.afterwards("batches were acknowledged over that line", move |stage| {
        let metrics = stage.gateway_metrics(gateway);
        if number(&metrics, "kinara_gateway_acknowledged_batches_total").unwrap_or(0.0) > 0.0 {
            stage.saw(Witness::AcknowledgedMeanwhile);
        }
        Ok(())
    });
    Ok(Some(gateway))
}

/// A backlog, and what comes meanwhile, where every fifth packet is lost.
pub fn lossy(stage: &mut Stage) -> Result<()> {
    let Some(gateway) = behind(stage, "lossy", LOSSY, "30m")? else { return Ok(()) };
    stage.at(30.0, "every fifth packet has been lost", |_| Ok(()));
    stage.afterwards("packets were lost, and the broker heard of no flapping", move |stage| {
        if stage.packets.get(&gateway).is_some_and(|line| line.lost() >= MANY) {
            stage.saw(Witness::PacketsLost);
        }
        if (1..=FEW).contains(&stage.line(gateway).connections()) {
            stage.saw(Witness::FewConnections);
        }
        Ok(())
    });
    Ok(())
}

/// The same, where each packet is four seconds under way.
pub fn late(stage: &mut Stage) -> Result<()> {
    let Some(gateway) = behind(stage, "late", LATE, "30m")? else { return Ok(()) };
    // TCP, TLS, MQTT and the subscription each wait for an answer.
    stage.at(0.4 + 5.0 * LATE.delay.as_secs_f64(), "greetings are still under way", move |stage| {
        if stage.line(gateway).connections() == 1 && !stage.is_connected(gateway) {
            stage.saw(Witness::AnswerTookLong);
        }
        Ok(())
    });
    stage.at(50.0, "packets have been four seconds under way", |_| Ok(()));
    one_connection(stage, gateway);
    Ok(())
}
