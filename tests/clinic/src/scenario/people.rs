//! What people do late or for good: an assignment that comes after the readings, a wearer who is erased.

use std::time::Duration;

use super::Stage;
use super::stage::{AWAY_FRAME_AGE_S, utc_us};
use crate::Result;
use crate::oracle::evidence::{Allowance, Boundary};
use crate::oracle::witness::Witness;

const FOR_THE_FIRST: Duration = Duration::from_secs(30);

/// Two wearables whose assignment is made after their readings came. One is nobody's at first: what it brings is put aside,
/// and taken once somebody has had it all along. The other one was given to somebody else while it was switched off, and it
/// is said only when readings from after that are stored under the wearer before.
pub fn late_assignment(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let unassigned = stage.unassigned_wearable(0, &[north], &["--prefill", "3m"])?;
    stage.at(10.0, "somebody has had it all along", move |stage| {
        stage.await_sight_for(FOR_THE_FIRST, Witness::PutAsideUnassigned, &mut |stage| {
            stage.put_aside(unassigned).unwrap_or(0) > 0
        });
        stage.assign_since_ever(unassigned, 0)
    });

    let wearable = stage.wearable(0, &[north], &["--prefill", "3m"])?;
    let next = stage.wearer(0)?;
    let former = stage.wearer_of(wearable);
    stage.at(12.0, "switched off", move |stage| {
        stage.clinic.wearables[wearable].process().kill();
        stage.allow_reset(wearable, AWAY_FRAME_AGE_S);
        Ok(())
    });
    stage.at(14.0, "changes wearers, and nobody says so", move |stage| {
        let boundary_us = utc_us();
        stage.at(24.0, "now it is said", move |stage| {
            stage.await_sight_for(FOR_THE_FIRST, Witness::StoredUnderTheFormer, &mut |stage| {
                stage.stored_since(former, boundary_us).unwrap_or(0) > 0
            });
            stage.hand_over(wearable, &next, 0, Boundary::Time(boundary_us))
        });
        Ok(())
    });
    stage.at(16.0, "switched on", move |stage| stage.clinic.wearables[wearable].process().spawn());
    Ok(())
}

/// Somebody is erased while frames of theirs are still on the wearable, which somebody else wears by then. All that was
/// theirs goes and nothing of it comes after; of the next wearer nothing is missing.
pub fn erasure(stage: &mut Stage) -> Result<()> {
    let north = stage.usual_gateway(0)?;
    let wearable = stage.wearable(0, &[north], &["--prefill", "5m"])?;
    let next = stage.wearer(0)?;
    let erased = stage.wearer_of(wearable);
    stage.at(8.0, "out of range: a backlog of the first wearer", move |stage| stage.hears(wearable, &[]));
    let at = stage.moment(14.0, 18.0);
    stage.at(at, "changes wearers", move |stage| {
        let (epoch, seq) = stage.next_frame(wearable)?;
        stage.hand_over(wearable, &next, 0, Boundary::Frame { epoch, seq: seq + 1 })
    });
    stage.at(at + 1.0, "the first wearer is erased", move |stage| {
        stage.await_sight_for(FOR_THE_FIRST, Witness::ErasedWasStored, &mut |stage| {
            stage.stored_since(erased, 0).unwrap_or(0) > 0
        });
        stage.allow(wearable, Allowance::Erased { user: erased });
        stage.erase(wearable)
    });
    let back = at + AWAY_FRAME_AGE_S as f64 + stage.moment(2.0, 5.0);
    stage.at(back, "in range again", move |stage| stage.hears(wearable, &[north]));
    Ok(())
}
