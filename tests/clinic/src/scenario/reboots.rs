//! Wearables that lose their memory, or whose ring is too small for their absence.

use serde_json::json;

use super::Stage;
use super::stage::{AWAY_FRAME_AGE_S, LIVE_FRAME_AGE_S, utc_us};
use crate::Result;
use crate::oracle::evidence::Allowance;
use crate::oracle::witness::Witness;

/// `kill -9` of the simulator: memory is lost, flash is kept. The wearable may be draining or live; what it loses is
/// bounded by the longer frame age only where it was out of range.
pub fn kill(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &["--prefill", "5m"])?;
    for (from, to) in [(8.0, 14.0), (18.0, 26.0)] {
        let down = stage.moment(from, to);
        stage.at(down, "kill -9 of the wearable", move |stage| {
            stage.await_sight(Witness::ResetLinked, |stage| stage.linked(wearable).is_some());
            stage.clinic.wearables[wearable].process().kill();
            stage.allow_reset(wearable, LIVE_FRAME_AGE_S);
            Ok(())
        });
        let up = down + stage.moment(0.1, 2.0);
        stage.at(up, "the wearable again", move |stage| stage.clinic.wearables[wearable].process().spawn());
    }
    Ok(())
}

fn reboot_at(
    stage: &mut Stage,
    wearable: usize,
    seconds: f64,
    frame_age_s: i64,
    (witness, linked): (Witness, bool),
) {
    stage.at(seconds, "reboot", move |stage| {
        stage.await_sight(witness, |stage| stage.linked(wearable).is_some() == linked);
        stage.tell(wearable, &json!({"do": "reboot"}))?;
        stage.allow_reset(wearable, frame_age_s);
        Ok(())
    });
}

fn away_between(stage: &mut Stage, wearable: usize, from: f64, to: f64, gateway: usize) {
    stage.at(from, "out of range", move |stage| stage.hears(wearable, &[]));
    stage.at(to, "in range again", move |stage| stage.hears(wearable, &[gateway]));
}

pub fn connected(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &[])?;
    let at = stage.moment(10.0, 20.0);
    reboot_at(stage, wearable, at, LIVE_FRAME_AGE_S, (Witness::ResetLinked, true));
    Ok(())
}

pub fn away(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &[])?;
    away_between(stage, wearable, 9.0, 27.0, north);
    let at = stage.moment(14.0, 22.0);
    reboot_at(stage, wearable, at, AWAY_FRAME_AGE_S, (Witness::ResetAway, false));
    Ok(())
}

/// The boot in the middle never meets a gateway: its frames' times are intervals.
pub fn twice_away(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &[])?;
    away_between(stage, wearable, 9.0, 35.0, north);
    let first = stage.moment(11.0, 15.0);
    reboot_at(stage, wearable, first, AWAY_FRAME_AGE_S, (Witness::ResetAway, false));
    let second = stage.moment(25.0, 30.0);
    reboot_at(stage, wearable, second, AWAY_FRAME_AGE_S, (Witness::ResetAgainAway, false));
    Ok(())
}

/// Hours of readings go through a ring of 64 KiB before anybody listens.
pub fn overflow(stage: &mut Stage) -> Result<()> {
    const RING_KIB: usize = 64;
    // Seven pages of 4 KiB are the journal, the head, a spare and the one being erased.
    const PAGES_OF_FRAMES: usize = RING_KIB / 4 - 7;
    // No frame of the reference plan takes more than this for a sample.
    const BYTES_PER_SAMPLE: usize = 5;
    let from_us = utc_us() - 3 * 3_600_000_000;
    let north = stage.usual_gateway(0)?;
    let ring = RING_KIB.to_string();
    let wearable = stage.wearable(0, &[north], &["--prefill", "2h", "--ring-kib", ring.as_str()])?;
    stage.allow(
        wearable,
        Allowance::Overflow { from_us, to_us: utc_us(), keeps: PAGES_OF_FRAMES * 4096 / BYTES_PER_SAMPLE },
    );
    Ok(())
}
