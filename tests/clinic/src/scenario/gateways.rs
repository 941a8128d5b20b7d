//! Gateways that run full, lose their database, or do not know what time it is, or find
//! half a certificate.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Stage;
use super::sights::number;
use super::stage::utc_us;
use crate::oracle::evidence::Allowance;
use crate::oracle::witness::Witness;
use crate::{ClinicError, Result};

/// A gateway whose cloud is away gathers waveforms until it takes no more of them, and drops those it has, oldest
/// first; scalars it keeps, and the wearable's flash is the next buffer.
pub fn full_disk(stage: &mut Stage) -> Result<()> {
    let from_us = utc_us() - 4 * 3_600_000_000;
    let nowhere = crate::ports::free();
    let right = stage.clinic.broker.port();
    let gateway = stage.gateway(
        0,
        "full",
        &format!(
            "[uplink]\nport = {nowhere}\n[store]\nsoft_limit_mib = 1\nhard_limit_mib = 2\nreserve_mib = 1\n"
        ),
    )?;
    let wearable = stage.wearable(0, &[gateway], &["--plan", "waveforms", "--prefill", "3h"])?;
    stage.start_gateway_at(0.4, gateway);
    stage.at(28.0, "the cloud is back", move |stage| {
        stage.allow(wearable, Allowance::Quota { from_us, to_us: utc_us() });
        let gateway = &mut stage.clinic.gateways[gateway];
        gateway.process().stop();
        gateway.configure(&format!("[uplink]\nport = {right}\n"))?;
        gateway.process().spawn()
    });
    Ok(())
}

/// When a link has stood long enough for its frames' commit to wait, and how long one may wait for frames that do.
const SETTLED_S: f64 = 16.0;
const FOR_FRAMES: Duration = Duration::from_secs(15);
const SEVERAL: f64 = 2.0;
/// An acknowledgement is no longer on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// A gateway dies while frames of a wearable that has caught up are in its memory alone. Nothing of them is on its disk, and
/// nothing is excused: the wearable brings them again.
pub fn kill_waiting(stage: &mut Stage) -> Result<()> {
    // As by default: what is sealed takes along what waits.
    let gateway = stage.gateway(0, "waiting", "[uplink]\nseal_after_s = 5\n")?;
    let wearable = stage.wearable(0, &[gateway], &[])?;
    stage.start_gateway_at(0.4, gateway);
    let mut at = 0.4;
    for _ in 0..2 {
        at += SETTLED_S + stage.moment(0.0, 3.0);
        stage.at(at, "kill -9 of the gateway while frames wait", move |stage| {
            let mut waiting = Waiting { gateway, wearable, none_at: None, since: None };
            stage.await_sight_for(FOR_FRAMES, Witness::KilledInWait, &mut |stage| waiting.is_seen(stage));
            stage.clinic.gateways[gateway].process().kill();
            stage.clinic.gateways[gateway].process().spawn()
        });
    }
    stage.at(at + 4.0, "it is back", |_| Ok(()));
    Ok(())
}

/// Looks for frames of a linked wearable that a gateway has received and not acknowledged, by both their words.
struct Waiting {
    gateway: usize,
    wearable: usize,
    /// Frames received, and frames acknowledged, when none waited: from there it is counted.
    none_at: Option<(f64, f64)>,
    /// Since when several wait.
    since: Option<Instant>,
}

impl Waiting {
    /// Whether several wait, for longer than an acknowledgement is on its way.
    fn is_seen(&mut self, stage: &Stage) -> bool {
        // In this order: what comes between the two looks makes it fewer.
        let received = stage.received(self.gateway, self.wearable);
        let status = stage.clinic.wearables[self.wearable].status().unwrap_or_default();
        let (Some(kept), Some(next)) = (status["unacknowledged"].as_f64(), status["next_seq"].as_f64())
        else {
            return false;
        };
        let acknowledged = next - kept;
        if kept == 0.0 && status["linked"].is_string() {
            self.none_at = Some((stage.received(self.gateway, self.wearable), acknowledged));
        }
        let (before, told) = self.none_at.unwrap_or((received, acknowledged));
        if (received - before) - (acknowledged - told) < SEVERAL {
            self.since = None;
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() > ON_ITS_WAY
    }
}

/// Stalls the bridges: what they were sent they will write and acknowledge later.
fn stall_bridges(stage: &mut Stage, from: f64, to: f64) {
    stage.note_stall(to - from);
    for (at, signal, what) in [(from, Signal::STOP, "bridges hang"), (to, Signal::CONT, "bridges go on")] {
        stage.at(at, what, move |stage| {
            stage.clinic.bridges.iter().for_each(|bridge| bridge.signal(signal));
            Ok(())
        });
    }
}

/// Writes into the fault log what a gateway's database alone may have held of a wearable: it is gone now.
fn allow_lost(stage: &mut Stage, wearable: usize, from_us: i64) -> Result<()> {
    let (epoch, seq) = stage.oldest(wearable)?;
    stage.allow(wearable, Allowance::GatewayLost { from_us, to_us: utc_us(), epoch, seq });
    Ok(())
}

/// The database goes while the bridge still holds batches of it: its acknowledgements reach a gateway that has
/// never heard of them.
pub fn deleted(stage: &mut Stage) -> Result<()> {
    let from_us = utc_us() - 4 * 3_600_000_000;
    let gateway = stage.gateway(0, "deleted", "")?;
    let wearable = stage.wearable(0, &[gateway], &["--prefill", "10m"])?;
    stage.start_gateway_at(0.5, gateway);
    let at = stage.moment(14.0, 17.0);
    stall_bridges(stage, at - 4.0, at + 3.0);
    stage.at(at, "the gateway's database is deleted", move |stage| {
        stage.await_sight(Witness::StoreLostHolding, |stage| stage.holds(gateway) > 0);
        stage.clinic.gateways[gateway].process().kill();
        allow_lost(stage, wearable, from_us)?;
        stage.clinic.gateways[gateway].replace_data(None)?;
        stage.clinic.gateways[gateway].process().spawn()
    });
    Ok(())
}

/// The same with an older copy in the place of the database.
pub fn restored(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway(0, "restored", "")?;
    let wearable = stage.wearable(0, &[gateway], &["--prefill", "10m"])?;
    stage.start_gateway_at(0.5, gateway);
    let copy = stage.clinic.folder().join("gateways/restored/copy");
    let to = copy.clone();
    let copied = stage.moment(6.0, 8.0);
    stage.at(copied, "the gateway's database is copied", move |stage| {
        let gateway = &mut stage.clinic.gateways[gateway];
        gateway.process().stop();
        gateway.copy_data(&to)?;
        gateway.process().spawn()
    });
    let at = stage.moment(14.0, 17.0);
    stall_bridges(stage, at - 4.0, at + 3.0);
    stage.at(at, "the older copy takes its place", move |stage| {
        stage.await_sight(Witness::StoreLostHolding, |stage| stage.holds(gateway) > 0);
        stage.clinic.gateways[gateway].process().kill();
        // The copy had all there was by then, but not yet sent; what came later it never saw.
        allow_lost(stage, wearable, 0)?;
        stage.clinic.gateways[gateway].replace_data(Some(&copy))?;
        stage.clinic.gateways[gateway].process().spawn()
    });
    Ok(())
}

/// The gateway's clock shows 1970 and is set after a while; until then, and whatever it shows, time comes from the
/// bridge, whose word is good to half the round trip and a second.
pub fn clock_1970(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway_in(
        0,
        "clock",
        "[clock]\ntrust_system = false\n",
        &[("KINARA_CLOCK", "unset:0:14".to_owned())],
    )?;
    let wearable = stage.wearable(0, &[gateway], &["--prefill", "2m"])?;
    stage.told_by_the_bridge(wearable);
    stage.start_gateway_at(0.6, gateway);
    stage.at(8.0, "it has asked for the time", move |stage| {
        stage.await_sight(Witness::TimeFromBridge, |stage| {
            number(&stage.gateway_metrics(gateway), "kinara_gateway_clock_known{source=\"bridge\"}")
                == Some(1.0)
        });
        Ok(())
    });
    stage.at(24.0, "the clock was set ten seconds ago", |_| Ok(()));
    Ok(())
}

/// Whether a gateway has its time from this source.
fn knows_by(stage: &Stage, gateway: usize, source: &str) -> bool {
    let series = format!("kinara_gateway_clock_known{{source=\"{source}\"}}");
    number(&stage.gateway_metrics(gateway), &series) == Some(1.0)
}

/// Whether a gateway's health says this.
fn health_says(stage: &Stage, gateway: usize, word: &str) -> bool {
    let address = stage.clinic.gateways[gateway].local();
    let health = address.and_then(|address| crate::process::http_get(address, "/healthz").ok());
    health.is_some_and(|(_, said)| said.contains(word))
}

/// The gateway's clock shows 2099, which the configuration says to trust, and is set after a while; then the gateway dies and
/// starts in 2099 again. No reading may be stamped by it, and no start is locked out.
pub fn clock_2099(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway_in(
        0,
        "clock-2099",
        "[clock]\npoll_ms = 500\n",
        &[("KINARA_CLOCK", "unset:4070908800000000:14".to_owned())],
    )?;
    let wearable = stage.wearable(0, &[gateway], &["--prefill", "2m"])?;
    stage.told_by_the_bridge(wearable);
    stage.start_gateway_at(0.6, gateway);
    let look = move |stage: &mut Stage| {
        stage.await_sight(Witness::TimeFromBridge, |stage| knows_by(stage, gateway, "bridge"));
        stage.await_sight(Witness::DisbeliefTold, |stage| health_says(stage, gateway, "2099-01-01"));
        Ok(())
    };
    stage.at(7.0, "its clock shows 2099", look);
    stage.at(18.0, "the clock was set; the gateway is killed and starts in 2099 again", move |stage| {
        stage.clinic.gateways[gateway].process().kill();
        stage.clinic.gateways[gateway].process().spawn()
    });
    stage.at(25.0, "its clock shows 2099 once more", look);
    Ok(())
}

/// Half a certificate at the gateway's start, as a renewal leaves it for which the disk had no room. Readings are taken over
/// and kept; when the file is whole again they go up, without a restart.
pub fn certificate_missing(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway(0, "certificate", "")?;
    stage.wearable(0, &[gateway], &["--prefill", "2m"])?;
    let path = stage.clinic.gateways[gateway].certificate()?;
    let whole = std::fs::read(&path).map_err(ClinicError::file(&path))?;
    let (cut, half) = (path.clone(), whole[..whole.len() / 2].to_vec());
    stage.at(0.2, "the gateway's certificate is cut in half", move |_| {
        std::fs::write(&cut, &half).map_err(ClinicError::file(&cut))
    });
    stage.start_gateway_at(0.4, gateway);
    stage.at(10.0, "it cannot connect", move |stage| {
        stage.await_sight(Witness::GatheredWithoutCertificate, |stage| {
            stage.holds(gateway) > 0 && health_says(stage, gateway, "[uplink] cert")
        });
        Ok(())
    });
    stage.at(15.0, "the certificate is whole again", move |_| {
        std::fs::write(&path, &whole).map_err(ClinicError::file(&path))
    });
    Ok(())
}
