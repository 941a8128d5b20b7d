//! Wearables between two gateways, between two wearers, and among too many others.

use std::time::Duration;

use super::Stage;
use super::stage::{AWAY_FRAME_AGE_S, utc_us};
use crate::Result;
use crate::oracle::evidence::Boundary;
use crate::oracle::witness::Witness;

/// To and fro between two gateways, with stretches out of range of both and one in range of both. Each brings what
/// the other has not seen; what both bring is stored once.
pub fn roaming(stage: &mut Stage) -> Result<()> {
    let first = stage.gateway(0, "roam-a", "")?;
    let second = stage.gateway(0, "roam-b", "")?;
    let wearable = stage.wearable(0, &[first, second], &["--prefill", "20m"])?;
    stage.start_gateway_at(0.3, first);
    stage.start_gateway_at(0.4, second);
    let mut at = stage.moment(3.0, 6.0);
    for hears in [vec![first], vec![second], vec![], vec![first, second], vec![first], vec![second]] {
        let what = format!("in range of {} gateways", hears.len());
        stage.at(at, what, move |stage| stage.hears(wearable, &hears));
        at += stage.moment(3.5, 6.5);
    }
    stage.at(at, "both have had it", move |stage| {
        stage.await_sight(Witness::BothGatewaysBrought, |stage| {
            [first, second].iter().all(|gateway| stage.received(*gateway, wearable) > 0.0)
        });
        Ok(())
    });
    Ok(())
}

const SLOTS: usize = 8;
const A_CROWDS_PATIENCE: Duration = Duration::from_secs(30);

/// Whether every link has its wearable, and somebody without one has frames to bring.
fn links_taken(stage: &Stage, crowd: &[usize]) -> bool {
    let (linked, alone): (Vec<usize>, Vec<usize>) =
        crowd.iter().partition(|wearable| stage.linked(**wearable).is_some());
    linked.len() >= SLOTS && alone.iter().any(|wearable| stage.unacknowledged(*wearable) > 0)
}

/// More wearables than the gateway holds links; every fifth has hours in its flash. All get their turns, and must have
/// brought what they had before the gateway came.
pub fn crowd(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway(0, "crowded", &format!("[radio]\nslots = {SLOTS}\nturn_s = 2\n"))?;
    let mut crowd = Vec::new();
    for place in 0..40 {
        let held = if place % 5 == 0 { "2h" } else { "3m" };
        crowd.push(stage.wearable(0, &[gateway], &["--prefill", held])?);
    }
    stage.start_gateway_at(0.5, gateway);
    stage.at(1.0, "all links are taken", move |stage| {
        stage
            .await_sight_for(A_CROWDS_PATIENCE, Witness::LinksTaken, &mut |stage| links_taken(stage, &crowd));
        Ok(())
    });
    Ok(())
}

/// The boundary is a frame: the one after the frame that is open at this moment.
pub fn at_frame(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &["--prefill", "10m"])?;
    let next = stage.wearer(0)?;
    stage.at(9.0, "out of range: a backlog of the first wearer", move |stage| stage.hears(wearable, &[]));
    let at = stage.moment(16.0, 22.0);
    stage.at(at, "changes wearers", move |stage| {
        let (epoch, seq) = stage.next_frame(wearable)?;
        stage.hand_over(wearable, &next, 0, Boundary::Frame { epoch, seq: seq + 1 })
    });
    let back = at + AWAY_FRAME_AGE_S as f64 + stage.moment(1.0, 4.0);
    stage.at(back, "in range again", move |stage| stage.hears(wearable, &[north]));
    Ok(())
}

/// The boundary is a time in which the wearable was switched off, so that no frame straddles it.
pub fn at_time(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &["--prefill", "10m"])?;
    let next = stage.wearer(0)?;
    stage.at(9.0, "out of range: a backlog of the first wearer", move |stage| stage.hears(wearable, &[]));
    let off = stage.moment(16.0, 20.0);
    stage.at(off, "switched off", move |stage| {
        stage.clinic.wearables[wearable].process().kill();
        stage.allow_reset(wearable, AWAY_FRAME_AGE_S);
        Ok(())
    });
    stage.at(off + 2.0, "changes wearers", move |stage| {
        stage.hand_over(wearable, &next, 0, Boundary::Time(utc_us()))
    });
    stage.at(off + 4.0, "switched on, in range", move |stage| {
        stage.clinic.wearables[wearable].process().spawn()
    });
    Ok(())
}
