//! The line between a gateway and the broker is slow, far, silent, or not there. None of it excuses a loss.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Stage;
use super::sights::number;
use crate::oracle::witness::Witness;
use crate::proxy::{FAST, Proxy};
use crate::{ClinicError, Result};

/// A bad line of today, bytes a second.
const SLOW: u64 = 2_000;
/// A long way, each way.
const FAR: Duration = Duration::from_secs(4);
/// So long must a slow line have been full, for the pings of a client that counts them to have run out.
const FULL: Duration = Duration::from_secs(35);
/// How long a drain may take to begin once the line is there.
const SOON: Duration = Duration::from_secs(10);
/// How long a line that fell silent may pass for one that lives, with a `silence_s` of 4.
const NOTICED: f64 = 40.0;
/// As the daemon is by default: with the stage's haste a slow line would look like one that loses.
pub(super) const PACE: &str =
    "keep_alive_s = 60\nack_timeout_s = 30\nack_timeout_max_s = 600\nstate_every_s = 15\n";

/// A gateway behind a line of its own, which is not there yet, with a wearable that has some hours in its flash.
fn behind(stage: &mut Stage, name: &str, uplink: &str, prefill: &str) -> Result<usize> {
    let line = Proxy::start(stage.clinic.broker.port()).map_err(ClinicError::file("a proxy's port"))?;
    line.shut(true);
    let uplink = format!("[uplink]\nport = {}\n{uplink}", line.port());
    let gateway = stage.gateway(0, name, &uplink)?;
    stage.lines.insert(gateway, line);
    stage.wearable(0, &[gateway], &["--prefill", prefill])?;
    stage.start_gateway_at(0.4, gateway);
    Ok(gateway)
}

impl Stage {
    /// The line of a gateway that was put behind one.
    pub(super) fn line(&self, gateway: usize) -> &Proxy {
        self.lines.get(&gateway).expect("the scenario has put it behind a line")
    }

    pub(super) fn is_connected(&self, gateway: usize) -> bool {
        number(&self.gateway_metrics(gateway), "kinara_gateway_uplink_connected") == Some(1.0)
    }

    /// Whether a batch waits for its acknowledgement over a standing connection.
    fn has_batch_on_line(&self, gateway: usize) -> bool {
        let metrics = self.gateway_metrics(gateway);
        let of = |name: &str| number(&metrics, &format!("kinara_gateway_{name}")).unwrap_or(0.0);
        of("uplink_connected") > 0.0 && of("waiting_batches") > 0.0
    }

    /// The line is back: something must be acknowledged soon. How many bytes that takes depends on what there is.
    fn must_drain_soon(&mut self, gateway: usize) {
        let from = Instant::now();
        let before = self.acknowledged(gateway);
        let began = self.await_sight_for(SOON, Witness::DrainBeganSoon, &mut |stage| {
            stage.acknowledged(gateway) > before
        });
        eprintln!(
            "          {} after {:.1} s; connected: {}, held: {}",
            if began { "it drains" } else { "no drain" },
            from.elapsed().as_secs_f64(),
            self.is_connected(gateway),
            self.holds(gateway),
        );
    }

    /// Batches of which a gateway knows since its start that the cloud has them.
    fn acknowledged(&self, gateway: usize) -> f64 {
        number(&self.gateway_metrics(gateway), "kinara_gateway_acknowledged_batches_total").unwrap_or(0.0)
    }
}

/// What hours away have left is brought over a line of 2 kB/s that never gets better, on one connection.
pub fn slow(stage: &mut Stage) -> Result<()> {
    let gateway = behind(stage, "slow", PACE, "3h")?;
    let carried = Rc::new(Cell::new(0));
    stage.at(9.0, "a line of 2 kB/s is there", move |stage| {
        let line = stage.line(gateway);
        line.rate(SLOW);
        line.shut(false);
        Ok(())
    });
    let before = Rc::clone(&carried);
    stage.at(12.0, "it is measured from here on", move |stage| {
        before.set(stage.line(gateway).up());
        Ok(())
    });
    stage.at(12.0 + FULL.as_secs_f64(), "was it full?", move |stage| {
        let most = SLOW as f64 * FULL.as_secs_f64();
        if (stage.line(gateway).up() - carried.get()) as f64 > 0.7 * most && stage.has_batch_on_line(gateway)
        {
            stage.saw(Witness::LineFull);
        }
        Ok(())
    });
    one_connection(stage, gateway);
    Ok(())
}

/// The same, where every answer takes eight seconds.
pub fn far(stage: &mut Stage) -> Result<()> {
    let gateway = behind(stage, "far", PACE, "30m")?;
    stage.at(9.0, "a line is there on which an answer takes 8 s", move |stage| {
        let line = stage.line(gateway);
        line.latency(FAR);
        line.rate(4 * SLOW);
        line.shut(false);
        Ok(())
    });
    // TLS, MQTT and the subscription each wait for an answer.
    stage.at(9.0 + 5.0 * FAR.as_secs_f64(), "greetings are still under way", move |stage| {
        if stage.line(gateway).connections() == 1 && !stage.is_connected(gateway) {
            stage.saw(Witness::AnswerTookLong);
        }
        Ok(())
    });
    one_connection(stage, gateway);
    Ok(())
}

/// One that stands for all of a scenario.
pub(super) fn one_connection(stage: &mut Stage, gateway: usize) {
    stage.afterwards("it was one connection, and the broker heard of no end", move |stage| {
        if stage.line(gateway).connections() == 1 {
            stage.saw(Witness::OneConnection);
        }
        Ok(())
    });
}

/// Connections are taken and nothing passes.
pub fn silent_broker(stage: &mut Stage) -> Result<()> {
    let gateway = behind(stage, "silent", "connect_timeout_s = 3\nsilence_s = 4\n", "30m")?;
    let end = 22.0 + stage.moment(0.0, 4.0);
    stage.at(4.0, "connections are taken, and nothing passes", move |stage| {
        let line = stage.line(gateway);
        line.silent(true);
        line.shut(false);
        stage.await_sight_for(Duration::from_secs(16), Witness::SilenceMet, &mut |stage| {
            stage.line(gateway).connections() >= 2 && !stage.is_connected(gateway) && stage.holds(gateway) > 0
        });
        Ok(())
    });
    stage.at(end, "they pass again", move |stage| {
        stage.line(gateway).silent(false);
        stage.must_drain_soon(gateway);
        Ok(())
    });
    Ok(())
}

/// A connection stands, a batch is on it, and from then on neither end hears of the other.
pub fn half_open(stage: &mut Stage) -> Result<()> {
    let gateway =
        behind(stage, "half-open", "connect_timeout_s = 3\nsilence_s = 4\nkeep_alive_s = 6\n", "1h")?;
    stage.at(9.0, "a slow line is there", move |stage| {
        let line = stage.line(gateway);
        line.rate(SLOW);
        line.shut(false);
        Ok(())
    });
    let at = 11.0 + stage.moment(0.0, 3.0);
    stage.at(at, "the line falls silent under a batch", move |stage| {
        let began = stage.line(gateway).up();
        stage.await_sight(Witness::SilentUnderBatch, |stage| {
            stage.has_batch_on_line(gateway) && stage.line(gateway).up() > began + 2 * SLOW
        });
        stage.line(gateway).silent(true);
        Ok(())
    });
    stage.at(at + NOTICED, "there is a line again", move |stage| {
        stage.await_sight(Witness::SilenceNoticed, |stage| !stage.is_connected(gateway));
        let line = stage.line(gateway);
        line.rate(FAST);
        line.silent(false);
        stage.must_drain_soon(gateway);
        Ok(())
    });
    Ok(())
}

/// A gateway comes up while there is no way to the cloud, is killed, and comes up once more.
pub fn boot_during_outage(stage: &mut Stage) -> Result<()> {
    let gateway = behind(stage, "outage", "", "30m")?;
    let down = 5.0 + stage.moment(0.0, 2.0);
    stage.at(down, "it is killed with what it gathered", move |stage| {
        stage.await_sight(Witness::GatheredOffline, |stage| stage.holds(gateway) > 0);
        stage.clinic.gateways[gateway].process().kill();
        Ok(())
    });
    stage.at(down + 1.0, "it boots again, still without a line", move |stage| {
        stage.clinic.gateways[gateway].process().spawn()
    });
    // Long enough for pauses that double to have grown.
    stage.at(40.0, "the line is back", move |stage| {
        stage.line(gateway).shut(false);
        stage.must_drain_soon(gateway);
        Ok(())
    });
    Ok(())
}
