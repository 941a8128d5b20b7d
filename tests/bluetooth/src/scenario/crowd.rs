//! More wearables than a controller holds links.

use super::{Day, LINK};
use crate::Result;
use crate::bed::until;
use std::time::Duration;

/// In all, and so many slots.
const WEARABLES: usize = 12;
const SLOTS: usize = 4;

pub fn twelve_share_four_slots(day: &mut Day) -> Result<()> {
    day.ward.bed.air.slots("a", SLOTS)?;
    let mut crowd = day.known.clone();
    while crowd.len() < WEARABLES {
        let wearable = day.ward.add_wearable(&["--prefill", "5m"])?;
        day.ward.introduce(day.gateway, wearable);
        crowd.push(wearable);
    }
    day.known.clone_from(&crowd);
    // It reads who is bound to it when it starts.
    let hand = day.ward.hand(day.gateway)?;
    hand.signal("gatewayd", "TERM")?;
    hand.end("gatewayd", Duration::from_secs(40))?;
    day.ward.configure(day.gateway, &format!("[radio]\nslots = {SLOTS}\n"));
    day.ward.start_gateway(day.gateway)?;
    let ward = &day.ward;
    let mut served = vec![false; crowd.len()];
    let before: Vec<u64> = crowd.iter().map(|wearable| ward.stored(*wearable)).collect::<Result<_>>()?;
    let mut most = 0;
    until("each of the twelve has been served", LINK * 3, || {
        let status = ward.bed.air.status()?;
        most = most.max(status["a"]["links"].as_array().map_or(0, Vec::len));
        for (place, wearable) in crowd.iter().enumerate() {
            served[place] |= ward.stored(*wearable)? > before[place];
        }
        Ok(served.iter().all(|served| *served))
    })
    .map_err(|error| ward.with_log(day.gateway, error))?;
    day.must(most <= SLOTS, format!("{most} links at once on {SLOTS} slots"))?;
    day.ward.bed.air.slots("a", 16)?;
    day.ward.configure(day.gateway, "[radio]\nslots = 16\n");
    Ok(())
}
