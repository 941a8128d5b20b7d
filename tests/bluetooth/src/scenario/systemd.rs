//! The box as it will be installed: its units under the distribution's systemd.

use super::{Day, LINK};
use crate::bed::until;
use crate::{Hand, Result};
use std::time::Duration;

/// How long a service may take to come up.
const START: Duration = Duration::from_mins(2);
/// The watchdog's time here, in place of the unit's minute; and how long it may take to strike and be back.
const WATCHDOG_S: u32 = 10;
const STRIKES: Duration = Duration::from_mins(2);

fn property(hand: &Hand, name: &str) -> Result<String> {
    Ok(hand.shell(&format!("systemctl show kinara-gatewayd -p {name} --value"))?.trim().to_owned())
}

pub fn ready(day: &mut Day) -> Result<()> {
    let wearable = day.ward.add_wearable(&[])?;
    day.ward.introduce(day.gateway, wearable);
    day.known.push(wearable);
    day.ward.configure(day.gateway, "[clock]\ntrust_system = false\n");
    day.ward.write_configuration(day.gateway)?;
    let hand = day.ward.hand(day.gateway)?;
    // Only the watchdog's time is another than on a shelf.
    hand.write(
        "/etc/systemd/system/kinara-gatewayd.service.d/bed.conf",
        &format!("[Service]\nWatchdogSec={WATCHDOG_S}\nEnvironment=RUST_LOG=info\n"),
        0o644,
    )?;
    hand.shell("systemctl daemon-reload; systemctl start kinara-linkd.socket kinara-linkd")?;
    hand.run_within(START, &["systemctl", "start", "kinara-gatewayd"])?.good()?;
    // A unit of Type=notify is active once READY was heard.
    day.must(property(hand, "ActiveState")? == "active", "the unit is not active after its start")?;
    day.must(property(hand, "Type")? == "notify", "the unit does not wait for READY")?;
    day.ward.wait_for_gateway(day.gateway)?;
    let hardware = &day.ward.stage.clinic.wearables[wearable].hardware_id;
    until("the journal can be asked for what concerns the wearable", LINK, || {
        let told = hand
            .shell(&format!("journalctl -u kinara-gatewayd HARDWARE={hardware} -o json -n 50 --no-pager"))?;
        let mut entries =
            told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(entries.any(|entry| entry["HARDWARE"] == *hardware && entry["PRIORITY"].is_string()))
    })
    .map_err(|error| day.ward.with_log(day.gateway, error))
}

pub fn strangers_are_refused(day: &mut Day) -> Result<()> {
    let hand = day.ward.hand(day.gateway)?;
    let call = |user: &str, what: &str| -> Result<i32> {
        let line = format!(
            "setpriv --reuid={user} --regid={user} --clear-groups dbus-send --system --print-reply --dest={what} \
             org.freedesktop.DBus.Introspectable.Introspect"
        );
        Ok(hand.run(&["sh", "-c", &line])?.status)
    };
    for what in ["org.bluez /org/bluez", "org.kinara.Gateway1 /org/kinara/Gateway"] {
        day.must(call("nobody", what).is_ok_and(|status| status != 0), format!("nobody may call {what}"))?;
        day.must(hand.run(&["sh", "-c", &format!("dbus-send --system --print-reply --dest={what} org.freedesktop.DBus.Introspectable.Introspect")])?.status == 0, format!("root may not call {what}"))?;
        day.must(call("kinara", what)? == 0, format!("the daemon's user may not call {what}"))?;
    }
    // The helper with the capability, and whoever may use kinaractl, have no right to what the daemon reads.
    for group in ["kinara-linkd", "kinara-admin"] {
        let line =
            format!("setpriv --reuid=nobody --regid={group} --clear-groups cat /etc/kinara/gatewayd.toml");
        let read = hand.run(&["sh", "-c", &line])?;
        day.must(read.status != 0, format!("group {group} may read the configuration"))?;
    }
    let stranger = hand.run(&[
        "sh",
        "-c",
        "setpriv --reuid=nobody --regid=nogroup --clear-groups kinaractl --json status",
    ])?;
    day.must(stranger.status != 0, format!("nobody may ask kinaractl: {}", stranger.out))
}

pub fn the_clock_is_timedate1(day: &mut Day) -> Result<()> {
    // timedate1 asks the kernel, which believes nobody until somebody disciplines it: that is its word.
    let hand = day.ward.hand(day.gateway)?;
    let synced = hand.shell("timedatectl show -p NTPSynchronized --value")?;
    day.must(synced.trim() == "no", format!("timedate1 says {synced}"))?;
    let status = day.ward.ctl(day.gateway, &["status"])?;
    eprintln!("      clock: {} ± {} µs", status["clock_source"], status["clock_uncertainty_us"]);
    // What adjtimex hands to the kernel is what timedate1 tells from then on.
    hand.shell(
        "python3 -c \"import ctypes,struct
buffer=ctypes.create_string_buffer(208)
# ADJ_STATUS | ADJ_MAXERROR: STA_PLL without STA_UNSYNC, and an error of a millisecond.
struct.pack_into('I',buffer,0,0x0010|0x0004)
struct.pack_into('q',buffer,24,1000)
struct.pack_into('i',buffer,40,1)
assert ctypes.CDLL(None,use_errno=True).adjtimex(buffer)>=0\"",
    )?;
    until("timedate1 tells of it, and the daemon takes its word", START, || {
        let synced = hand.shell("timedatectl show -p NTPSynchronized --value")?;
        let status = day.ward.ctl(day.gateway, &["status"])?;
        Ok(synced.trim() == "yes" && status["clock_source"] == "timedate1")
    })
    .map_err(|error| {
        let status = day.ward.ctl(day.gateway, &["status"]).unwrap_or_default();
        crate::BedError::Broken(format!("{error}; status: {status}"))
    })
}

pub fn a_stalled_loop_is_killed(day: &mut Day) -> Result<()> {
    let hand = day.ward.hand(day.gateway)?;
    let (was, restarts) = (property(hand, "MainPID")?, property(hand, "NRestarts")?);
    hand.shell(&format!("kill -STOP {was}"))?;
    until("the watchdog has killed it and it is back", STRIKES, || {
        let now = property(hand, "MainPID")?;
        Ok(now != was
            && now != "0"
            && property(hand, "ActiveState")? == "active"
            && property(hand, "NRestarts")? != restarts)
    })?;
    let journal = hand.shell("journalctl -u kinara-gatewayd --no-pager -n 60")?;
    day.must(journal.contains("atchdog timeout"), format!("the journal tells no watchdog:\n{journal}"))?;
    day.ward.wait_for_gateway(day.gateway)
}
