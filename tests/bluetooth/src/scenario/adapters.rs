//! Adapters that are switched off, added or left to themselves by the system.

use super::pairing::new_wearable;
use super::{Day, LINK};
use crate::Result;
use crate::bed::{until, wait_for_adapter};
use kinara_clinic::process::pause;
use serde_json::Value;
use std::time::Duration;

/// The second adapter's address, and its name on the air.
const SECOND: (&str, &str) = ("F0:F1:F2:00:00:E2", "a2");

fn adapter(day: &Day, name: &str) -> Result<Value> {
    let status = day.ward.ctl(day.gateway, &["status"])?;
    let adapters = status["adapters"].as_array().cloned().unwrap_or_default();
    Ok(adapters.into_iter().find(|adapter| adapter["name"] == name).unwrap_or_default())
}

pub fn the_radio_is_blocked(day: &mut Day) -> Result<()> {
    let hand = day.ward.hand(day.gateway)?;
    // What `rfkill` writes: block, and the type of Bluetooth.
    let block = |on: u8| format!("for soft in /sys/class/rfkill/rfkill*/soft; do echo {on} >$soft; done");
    hand.shell(&block(1))?;
    until("the daemon says that its radio is off", LINK, || Ok(adapter(day, "hci0")?["powered"] == false))
        .map_err(|error| day.ward.with_log(day.gateway, error))?;
    let doctor = day.ward.ctl(day.gateway, &["doctor"])?;
    day.must(doctor.to_string().contains("rfkill"), format!("the doctor does not say what to do: {doctor}"))?;
    hand.shell(&block(0))?;
    let known = day.known.clone();
    let took = day.all_flow(&known, LINK)?;
    day.note("back_after_rfkill_s", took.as_secs_f64().round());
    Ok(())
}

/// The kernel is told to stop scanning by somebody else, who also forgets to begin again.
pub fn discovery_is_stopped(day: &mut Day) -> Result<()> {
    let known = day.known.clone();
    let hand = day.ward.hand(day.gateway)?;
    for wearable in &known {
        day.ward.bed.air.range(day.ward.on_air(*wearable), "a", None)?;
    }
    pause(Duration::from_secs(2));
    // Set Scan Enable, off: bluetoothd and the daemon hear nothing of it.
    hand.shell("timeout 10 btmgmt --index 0 stop-find -l >/dev/null 2>&1; true")?;
    for wearable in &known {
        day.ward.bed.air.range(day.ward.on_air(*wearable), "a", Some(-60))?;
    }
    let took = day.all_flow(&known, LINK)?;
    day.note("back_after_stuck_discovery_s", took.as_secs_f64().round());
    Ok(())
}

/// How long systemd would wait for a service to stop (`TimeoutStopSec`), or less.
const STOP: Duration = Duration::from_secs(20);

pub fn the_bus_is_killed(day: &mut Day) -> Result<()> {
    let hand = day.ward.hand(day.gateway)?;
    hand.shell("kill -9 $(pidof dbus-daemon)")?;
    let gone = || Ok(hand.run(&["pidof", "bluetoothd"])?.status != 0);
    if until("bluetoothd goes with its bus", STOP, gone).is_err() {
        // 5.82 was seen to hang here. Its unit would kill it.
        eprintln!("      bluetoothd hangs without its bus, and is killed");
        hand.shell("kill -9 $(pidof bluetoothd)")?;
        until("bluetoothd is gone", STOP, gone)?;
    }
    hand.shell("rm -f /run/dbus/pid; dbus-daemon --system --fork --nopidfile")?;
    wait_for_adapter(hand, true)?;
    let known = day.known.clone();
    let took = day.all_flow(&known, LINK)?;
    day.note("back_after_bus_s", took.as_secs_f64().round());
    Ok(())
}

pub fn a_second_adapter_comes(day: &mut Day) -> Result<()> {
    day.ward.bed.second_controller(day.machine, SECOND.1, SECOND.0)?;
    until("the second adapter is there and on", LINK, || Ok(adapter(day, "hci1")?["powered"] == true))
        .map_err(|error| day.ward.with_log(day.gateway, error))?;
    // A wearable that only the new one can hear.
    let (wearable, shown) = new_wearable(day, &[])?;
    let name = day.ward.on_air(wearable).to_owned();
    day.ward.bed.air.range(&name, "a", None)?;
    let secret = day.ward.stage.clinic.wearables[wearable].label_secret.clone();
    let answer = day.ward.ctl(day.gateway, &["pair", &shown, "--code", &secret, "--wait", "60"])?;
    day.must(answer["hardware"].is_string(), format!("pairing over the second adapter answered {answer}"))?;
    let mut all = day.known.clone();
    all.push(wearable);
    day.all_flow(&all, LINK)?;
    // And gone again: what only it knew is out of reach, the rest goes on.
    day.ward.bed.air.plug(SECOND.1, false)?;
    let known = day.known.clone();
    day.all_flow(&known, LINK)?;
    day.ward.bed.air.plug(SECOND.1, true)?;
    day.all_flow(&[wearable], LINK).map(|_| ())
}
