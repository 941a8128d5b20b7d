//! `./kinara bench bluetooth`: kinara-gatewayd beside a Python client with bleak, on one machine, one wearable, one
//! load.
//!
//! The load is a backlog in the wearable's flash, drained with a window of 100. What goes over the air is counted by
//! the air; what arrives, by the receiver: gatewayd's own database (its broker is out of reach, so that nothing leaves
//! it), the client's list. `reconnect_s_median` is from the cut of a link, with the wearable advertising again at
//! once, to the first subscription, as the air sees both.

use crate::bed::until;
use crate::scenario::{LINK, reconnects};
use crate::{BedError, Boot, Result, Ward, image};
use kinara_clinic::bench::{median, rounded};
use kinara_clinic::process::pause;
use serde_json::{Value, json};
use std::time::Duration;

/// What is in the wearable's flash: at a frame every 5 s, 720 an hour.
const LOAD: &str = "90m";
const DRAIN: Duration = Duration::from_mins(6);
/// So often is the link cut.
const CUTS: usize = 7;

/// Runs it.
pub fn run(seed: u64) -> Result<Value> {
    let peer = image::scripts().join("bench/peer.py");
    let mut ward = Ward::open("bluetooth-bench", seed, &[peer])?;
    ward.stage.enter("bench", &[]);
    let machine = ward.bed.add_machine("a", Boot::Small)?;
    ward.bed.boot_with_bluetooth(machine)?;
    // Nobody listens there.
    let gateway = ward.add_gateway(machine, "bench", "[uplink]\nport = 9\n")?;
    let wearable = ward.add_wearable(&["--prefill", LOAD])?;
    ward.introduce(gateway, wearable);
    let ours = measure_ours(&ward, gateway, wearable)?;
    let hand = ward.hand(gateway)?;
    hand.signal("gatewayd", "TERM")?;
    hand.end("gatewayd", Duration::from_secs(40))?;
    renew_load(&mut ward, wearable)?;
    let theirs = measure_bleak(&ward, gateway, wearable)?;
    let mut result = ours;
    result["bleak"] = theirs;
    result["accelerator"] = format!("{:?}", ward.bed.machines[machine].accelerator()).to_lowercase().into();
    result["versions"] = ward.bed.versions().lines().collect::<Vec<_>>().into();
    Ok(result)
}

/// The same wearable with the same bond, and its flash as it was.
fn renew_load(ward: &mut Ward, wearable: usize) -> Result<()> {
    let wearable = &mut ward.stage.clinic.wearables[wearable];
    wearable.process().kill();
    for entry in std::fs::read_dir(&wearable.state).map_err(crate::file(&wearable.state))?.flatten() {
        if entry.file_name() != "bonds.img" {
            std::fs::remove_file(entry.path()).map_err(crate::file(entry.path()))?;
        }
    }
    wearable.process().start()?;
    Ok(())
}

/// CPU seconds and resident MiB of a process in the machine.
fn cost(ward: &Ward, gateway: usize, id: i64) -> Result<(f64, f64)> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let hand = ward.hand(gateway)?;
    let stat = hand.read(&format!("/proc/{id}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let status = hand.read(&format!("/proc/{id}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_ascii_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0);
    Ok(((ticks(11) + ticks(12)) / TICKS_PER_SECOND, kib / 1024.0))
}

/// Waits until the wearable has sent its backlog. The notifications, and over how many seconds they came.
fn drained(ward: &Ward, wearable: usize) -> Result<(usize, f64)> {
    let mut sent = Vec::new();
    let mut quiet = 0;
    until("the wearable has sent its backlog", DRAIN, || {
        let more = ward.bed.air.notified(ward.on_air(wearable))?;
        // Live it sends a few each second.
        quiet = if more.len() > 4 || sent.len() < 500 { 0 } else { quiet + 1 };
        sent.extend(more);
        pause(Duration::from_millis(350));
        Ok(quiet >= 6)
    })?;
    // The drain is the stretch in which notifications follow each other closely.
    let times: Vec<f64> = sent.iter().map(|notified| notified.0).collect();
    let end = times.windows(2).position(|pair| pair[1] - pair[0] > 2.0).unwrap_or(times.len() - 1);
    Ok((end + 1, times[end] - times[0]))
}

/// What gatewayd's database holds of the backlog (seqs below the argument), and in which order it came. What is measured
/// meanwhile comes on `stream` too, ahead of the backlog.
const STORED: &str = "import sqlite3,json,glob,sys
db=sqlite3.connect('file:'+glob.glob('/var/lib/kinara-gatewayd/*.db')[0]+'?mode=ro',uri=True)
before=int(sys.argv[1])
rows=list(db.execute('select epoch,first_seq,last_seq,frames from pieces where first_seq<? order by id',(before,)))
whole=[r for r in rows if r[2]-r[1]+1==r[3]]
print(json.dumps({'frames':len({(r[0],s) for r in rows for s in range(r[1],min(r[2]+1,before))}),
'reordered':sum(1 for a,b in zip(whole,whole[1:]) if a[0]==b[0] and b[1]<a[2])}))";

fn measure_ours(ward: &Ward, gateway: usize, wearable: usize) -> Result<Value> {
    let before = ward.status(wearable)?["next_seq"].as_u64().unwrap_or(0);
    ward.start_gateway(gateway)?;
    let id: i64 = ward
        .hand(gateway)?
        .shell("pidof kinara-gatewayd")?
        .trim()
        .parse()
        .map_err(|error| BedError::Guest(format!("told no process id ({error})")))?;
    until("the wearable has a link", LINK, || Ok(ward.links(wearable)? > 0))
        .map_err(|error| ward.with_log(gateway, error))?;
    let (cpu_before, _) = cost(ward, gateway, id)?;
    let began = crate::clock::monotonic();
    let (sent, seconds) = drained(ward, wearable)?;
    let (cpu, rss) = cost(ward, gateway, id)?;
    let took = crate::clock::monotonic() - began;
    let said = ward.hand(gateway)?.run(&["python3", "-c", STORED, &before.to_string()])?.good()?;
    let stored: Value = serde_json::from_str(said.trim())
        .map_err(|error| BedError::Guest(format!("said {said} ({error})")))?;
    let took_again = reconnects(&ward.bed.air, ward.on_air(wearable), CUTS)?;
    Ok(json!({
        "notifications": sent,
        "notifications_per_s": rounded(sent as f64 / seconds),
        "lost": before.saturating_sub(stored["frames"].as_u64().unwrap_or(0)),
        "reordered": stored["reordered"],
        "reconnect_s_median": rounded(median(took_again)),
        "cpu_percent": rounded(100.0 * (cpu - cpu_before) / took),
        "rss_mib": rounded(rss),
    }))
}

fn measure_bleak(ward: &Ward, gateway: usize, wearable: usize) -> Result<Value> {
    let hand = ward.hand(gateway)?;
    let bonded = hand.shell("bluetoothctl devices Bonded")?;
    let address = bonded
        .lines()
        .find_map(|line| line.strip_prefix("Device ")?.split_ascii_whitespace().next())
        .ok_or_else(|| BedError::Guest(format!("has no bond for bleak to use: {bonded}")))?
        .to_owned();
    let name = ward.on_air(wearable);
    let _ = ward.bed.air.notified(name)?;
    let said = hand.run_within(DRAIN, &["python3", "/bed/peer.py", &address, "drain"])?.good()?;
    let told: Value = serde_json::from_str(said.trim())
        .map_err(|error| BedError::Guest(format!("said {said} ({error})")))?;
    let sent = ward.bed.air.notified(name)?;
    let times = || sent.iter().map(|notified| notified.0);
    let seconds = times().fold(f64::MIN, f64::max) - times().fold(f64::MAX, f64::min);
    let digests: std::collections::HashSet<u32> = sent.iter().map(|notified| notified.2).collect();
    let from = crate::clock::monotonic();
    hand.start("bleak", &["python3", "/bed/peer.py", &address, "hold"], &[])?;
    until("bleak is subscribed", LINK, || {
        let events = ward.bed.air.events_since(from);
        Ok(events.iter().any(|event| event.kind == "subscribed" && event.device == name))
    })?;
    pause(Duration::from_secs(3));
    let took_again = reconnects(&ward.bed.air, name, CUTS)?;
    Ok(json!({
        "notifications": sent.len(),
        "notifications_per_s": rounded(sent.len() as f64 / seconds),
        "lost": (digests.len() as u64).saturating_sub(told["received"].as_u64().unwrap_or(0)),
        "reordered": told["reordered"],
        "reconnect_s_median": rounded(median(took_again)),
        "cpu_percent": rounded(told["cpu_percent"].as_f64().unwrap_or(f64::NAN)),
        "rss_mib": rounded(told["rss_mib"].as_f64().unwrap_or(f64::NAN)),
    }))
}
