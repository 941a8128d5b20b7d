//! Links: made, lost in every way there is, and made again by the bond.

use super::{Day, LINK};
use crate::bed::{kill_bluetoothd, until, until_some, wait_for_adapter};
use crate::clock::monotonic;
use crate::{Air, Result};
use kinara_clinic::process::pause;
use std::time::Duration;

/// So many notifications at least (`long`: LONG_NOTIFICATIONS).
const NOTIFICATIONS: usize = 3_000;
const LONG_NOTIFICATIONS: usize = 10_000;
/// How long the four may take to bring what they hold.
const DRAIN: Duration = Duration::from_mins(8);

pub fn four_wearables_bring_what_they_hold(day: &mut Day) -> Result<()> {
    // A frame is closed every 5 s while nobody listens.
    let hours = if day.long { "4h" } else { "70m" };
    for _ in 0..4 {
        let wearable = day.ward.add_wearable(&["--prefill", hours])?;
        day.ward.introduce(day.gateway, wearable);
        day.known.push(wearable);
    }
    day.ward.start_gateway(day.gateway)?;
    let known = day.known.clone();
    day.all_flow(&known, LINK)?;
    let wanted = if day.long { LONG_NOTIFICATIONS } else { NOTIFICATIONS };
    let mut sent = Vec::new();
    let (ward, gateway) = (&day.ward, day.gateway);
    until(&format!("{wanted} notifications, and each wearable has handed over all"), DRAIN, || {
        for wearable in &known {
            sent.extend(ward.bed.air.notified(ward.on_air(*wearable))?);
        }
        let mut kept = 0;
        for wearable in &known {
            kept += ward.status(*wearable)?["unacknowledged"].as_u64().unwrap_or(u64::MAX);
        }
        // A live wearable keeps a few frames on the way.
        Ok(sent.len() >= wanted && kept < 40)
    })
    .map_err(|error| ward.with_log(gateway, error))?;
    let times = || sent.iter().map(|notified| notified.0);
    let took = times().fold(f64::MIN, f64::max) - times().fold(f64::MAX, f64::min);
    let count = sent.len();
    day.note("notifications", count);
    day.note("notifications_per_s", (count as f64 / took).round());
    Ok(())
}

/// Out of everybody's range, another address, back.
pub fn addresses_rotate(day: &mut Day) -> Result<()> {
    let known = day.known.clone();
    let address = |day: &Day, wearable: usize| -> Result<String> {
        let status = day.ward.bed.air.status()?;
        Ok(status[day.ward.on_air(wearable)]["address"].as_str().unwrap_or_default().to_owned())
    };
    let before: Vec<String> = known.iter().map(|wearable| address(day, *wearable)).collect::<Result<_>>()?;
    for wearable in &known {
        let name = day.ward.on_air(*wearable);
        day.ward.bed.air.range(name, "a", None)?;
        day.ward.bed.air.rotate(name)?;
    }
    pause(Duration::from_secs(2));
    for (wearable, before) in known.iter().zip(before) {
        let after = address(day, *wearable)?;
        day.must(after != before, format!("{} kept its address {before}", day.ward.on_air(*wearable)))?;
        day.ward.bed.air.range(day.ward.on_air(*wearable), "a", Some(-60))?;
    }
    let took = day.all_flow(&known, LINK)?;
    day.note("back_at_new_addresses_s", took.as_secs_f64().round());
    Ok(())
}

pub fn a_wearable_is_reset(day: &mut Day) -> Result<()> {
    let wearable = day.known[0];
    let bonds = day.ward.status(wearable)?["bonds"].clone();
    day.ward.reset_wearable(wearable)?;
    let took = day.all_flow(&[wearable], LINK)?;
    day.must(day.ward.status(wearable)?["bonds"] == bonds, "the wearable has other bonds after its reset")?;
    day.note("back_after_reset_s", took.as_secs_f64().round());
    Ok(())
}

pub fn gatewayd_is_killed(day: &mut Day) -> Result<()> {
    let hand = day.ward.hand(day.gateway)?;
    hand.signal("gatewayd", "KILL")?;
    hand.end("gatewayd", Duration::from_secs(10))?;
    pause(Duration::from_secs(2));
    day.ward.start_gateway(day.gateway)?;
    let known = day.known.clone();
    let took = day.all_flow(&known, LINK)?;
    day.note("back_after_gatewayd_s", took.as_secs_f64().round());
    Ok(())
}

/// bluetoothd goes on taking notifications for a daemon that takes none: its buffers fill, and some get lost.
pub fn a_hanging_daemon_catches_up(day: &mut Day) -> Result<()> {
    let known = day.known.clone();
    let hand = day.ward.hand(day.gateway)?;
    hand.signal("gatewayd", "STOP")?;
    pause(Duration::from_secs(12));
    hand.signal("gatewayd", "CONT")?;
    day.all_flow(&known, LINK)?;
    let ward = &day.ward;
    until("the wearables have handed over what they held", LINK, || {
        let mut kept = 0;
        for wearable in &known {
            kept += ward.status(*wearable)?["unacknowledged"].as_u64().unwrap_or(u64::MAX);
        }
        Ok(kept < 40)
    })
}

pub fn bluetoothd_is_killed(day: &mut Day) -> Result<()> {
    kill_bluetoothd(day.ward.hand(day.gateway)?)?;
    let known = day.known.clone();
    let took = day.all_flow(&known, LINK)?;
    day.note("back_after_bluetoothd_s", took.as_secs_f64().round());
    Ok(())
}

pub fn the_controller_is_pulled_out(day: &mut Day) -> Result<()> {
    day.ward.bed.air.plug("a", false)?;
    let gone = wait_for_adapter(day.ward.hand(day.gateway)?, false);
    pause(Duration::from_secs(2));
    // In any case, or all that follows fails with this.
    day.ward.bed.air.plug("a", true)?;
    gone?;
    wait_for_adapter(day.ward.hand(day.gateway)?, true)?;
    let known = day.known.clone();
    let took = day.all_flow(&known, LINK)?;
    day.note("back_after_controller_s", took.as_secs_f64().round());
    Ok(())
}

/// How long it takes from the cut of a device's link, with the device free to be met again at once, to the first
/// subscription: by the air, seconds.
pub fn reconnects(air: &Air, device: &str, times: usize) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for _ in 0..times {
        let from = monotonic();
        air.cut(device)?;
        let at = until_some(&format!("{device} is subscribed to again"), LINK, || {
            let events = air.events_since(from);
            Ok(events
                .iter()
                .find(|event| event.kind == "subscribed" && event.device == device)
                .map(|event| event.at))
        })?;
        took.push(at - from);
        pause(Duration::from_secs(3));
    }
    Ok(took)
}
