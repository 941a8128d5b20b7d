//! Pairing: who may, who may not, and what is said about it.

use super::{Day, LINK};
use crate::air::Impostor;
use crate::bed::{until, until_some};
use crate::clock::monotonic;
use crate::{BedError, Result};
use kinara_protocol::label::LabelSecret;
use serde_json::{Value, json};
use std::time::Duration;

/// A code that is nobody's.
const WRONG: &str = "AAAAAAAAAAAAAAAA";
/// From the open window to the first value, where machines are not emulated.
const WIZARD: Duration = Duration::from_mins(1);

/// How long a phone waits for any of its steps. A temperature comes four times a minute.
const PHONE: Duration = Duration::from_secs(75);

/// A wearable that the gateway was not told of, and its name in the window.
pub(super) fn new_wearable(day: &mut Day, args: &[&str]) -> Result<(usize, String)> {
    let wearable = day.ward.add_wearable(args)?;
    day.ward.stage.clinic.wearables[wearable].process().wait_ready()?;
    let name = until_some("the wearable advertises a name", LINK, || {
        let status = day.ward.bed.air.status()?;
        let data = hex::decode(status[day.ward.on_air(wearable)]["data"].as_str().unwrap_or_default());
        Ok(data.ok().and_then(|data| name_in(&data)))
    })?;
    Ok((wearable, name))
}

/// The name in advertising data, shortened or whole.
fn name_in(mut data: &[u8]) -> Option<String> {
    while let [length, rest @ ..] = data {
        let structure = rest.get(..usize::from(*length))?;
        if let [8 | 9, name @ ..] = structure {
            return String::from_utf8(name.to_vec()).ok();
        }
        data = &rest[usize::from(*length)..];
    }
    None
}

/// What a wearable says in its scan response: it changes with each try. The response is set after the advertising
/// data, so that who knows the name may have to wait for it.
fn nonce(day: &Day, wearable: usize) -> Result<Vec<u8>> {
    nonce_of(day, day.ward.on_air(wearable))
}

/// The same, by its name on the air.
pub(super) fn nonce_of(day: &Day, name: &str) -> Result<Vec<u8>> {
    until_some("the wearable has a scan response", LINK, || {
        let status = day.ward.bed.air.status()?;
        let response = status[name]["response"].as_str().unwrap_or_default();
        let response = hex::decode(response).map_err(|error| BedError::Air(format!("told {error}")))?;
        Ok((!response.is_empty()).then_some(response))
    })
}

fn code_of(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_default()
}

pub fn the_label_pairs(day: &mut Day) -> Result<()> {
    let (wearable, name) = new_wearable(day, &[])?;
    let began = monotonic();
    pair_by_label(day, wearable, &name)?;
    let took = monotonic() - began;
    day.note("window_to_first_value_s", took.round());
    let kvm = day.ward.bed.machines[day.machine].accelerator() == crate::machine::Accelerator::Kvm;
    day.must(!kvm || took <= WIZARD.as_secs_f64(), format!("the first value took {took:.0} s"))?;
    let paired = day.ward.ctl(day.gateway, &["window"])?;
    day.must(paired["state"] != "open", "the window stayed open after the pairing")
}

pub fn wrong_codes_close_the_window(day: &mut Day) -> Result<()> {
    let (wearable, name) = new_wearable(day, &[])?;
    day.ward.ctl(day.gateway, &["window", "open", "--seconds", "300"])?;
    let mut nonces = vec![nonce(day, wearable)?];
    for tried in 1..=3 {
        let answer = day.ward.ctl(day.gateway, &["pair", &name, "--code", WRONG, "--wait", "60"])?;
        day.must(!code_of(&answer).is_empty(), format!("a wrong code paired: {answer}"))?;
        day.must(code_of(&answer) == "wrong_code", format!("a wrong code was answered with {answer}"))?;
        let window = day.ward.ctl(day.gateway, &["window"])?;
        // It tells of the failure first, and of what is near as soon as something is heard again.
        if tried < 3 {
            until("the window is still open", LINK, || {
                Ok(day.ward.ctl(day.gateway, &["window"])?["state"] == "open")
            })
            .map_err(|error| day.ward.with_log(day.gateway, error))?;
        } else {
            let why = window["why"]["code"].as_str().unwrap_or_default();
            day.must(
                why == "too_many_wrong_codes",
                format!("after the third wrong code the window is {window}"),
            )?;
        }
        // The wearable has to see the end of the try before it offers the next.
        let last = nonces.last().cloned().unwrap_or_default();
        let next = until_some("another nonce", LINK, || {
            let next = nonce(day, wearable)?;
            Ok((next != last).then_some(next))
        })?;
        day.must(!nonces.contains(&next), "a nonce came again")?;
        nonces.push(next);
    }
    day.must(day.ward.links(wearable)? == 0, "the wearable has a link after wrong codes")?;
    // The right code, in a new window, pairs it all the same.
    pair_by_label(day, wearable, &name)
}

/// Pairs a wearable by the code on its label, as a person does; it is one of the known ones then.
pub(super) fn pair_by_label(day: &mut Day, wearable: usize, name: &str) -> Result<()> {
    let secret = day.ward.stage.clinic.wearables[wearable].label_secret.clone();
    let hardware = day.ward.stage.clinic.wearables[wearable].hardware_id.clone();
    let answer = day.ward.ctl(day.gateway, &["pair", name, "--code", &secret, "--wait", "60"])?;
    day.must(
        answer["hardware"] == json!(hardware),
        format!("pairing with the right code answered {answer}"),
    )?;
    day.all_flow(&[wearable], LINK)?;
    if !day.known.contains(&wearable) {
        day.known.push(wearable);
    }
    Ok(())
}

/// One that proves nothing; one that proves it by a number that whoever takes part can find out; and one that says a
/// nonce of before.
pub fn impostors_are_refused(day: &mut Day) -> Result<()> {
    let (wearable, name) = new_wearable(day, &[])?;
    let secret = day.ward.stage.clinic.wearables[wearable].label_secret.clone();
    let label: LabelSecret =
        secret.parse().map_err(|_| BedError::Broken("the bed's own label cannot be read".to_owned()))?;
    let response = nonce(day, wearable)?;
    // Service Data of a 128-bit service: length, type, UUID, mode, nonce.
    let shown =
        response.get(19..27).ok_or_else(|| BedError::Broken(format!("an offer of {response:02x?}")))?;
    let passkey = label.passkey(shown);
    for (impostor, how) in [("impostor-jw", Impostor::JustWorks), ("impostor-4.0", Impostor::Legacy(passkey))]
    {
        let original = day.ward.on_air(wearable).to_owned();
        day.ward.bed.air.impostor(impostor, &original, how)?;
        day.ward.bed.air.range(&original, "a", None)?;
        let from = monotonic();
        let answer = day.ward.ctl(day.gateway, &["pair", &name, "--code", &secret, "--wait", "60"])?;
        day.must(answer["error"].is_object(), format!("{impostor} was paired: {answer}"))?;
        day.must(code_of(&answer) != "not_near", format!("{impostor} was not even tried: {answer}"))?;
        let events = day.ward.bed.air.events_since(from);
        let met = events.iter().any(|event| event.kind == "link" && event.device == impostor);
        day.must(met, format!("{impostor} was not even met"))?;
        // bluetoothctl tells of changes too, each on a line of another beginning.
        let bonded = day.ward.hand(day.gateway)?.shell("bluetoothctl devices Bonded 2>/dev/null || true")?;
        let kept = bonded.lines().any(|line| line.starts_with("Device C1:00:00"));
        day.must(!kept, format!("a bond with {impostor} was kept: {bonded}"))?;
        day.ward.bed.air.remove(impostor)?;
        day.ward.bed.air.range(&original, "a", Some(-55))?;
        let _ = day.ward.ctl(day.gateway, &["window", "close"])?;
    }
    // The box has told a passkey of that number to somebody: it tells none of it again, not to the right one either.
    let answer = day.ward.ctl(day.gateway, &["pair", &name, "--code", &secret, "--wait", "60"])?;
    day.must(
        code_of(&answer) == "nonce_spent",
        format!("a number that was used was answered with {answer}"),
    )?;
    day.ward.stage.tell(wearable, &json!({"do": "button"}))?;
    until("the button brings another nonce", LINK, || Ok(nonce(day, wearable)? != response))?;
    pair_by_label(day, wearable, &name)
}

/// Another stack, which knows the standard services only, by the passkey of label and nonce.
pub fn a_phone_reads_the_standard_services(day: &mut Day) -> Result<()> {
    /// Insufficient Authentication (Core, Vol 3, Part F, 3.4.1.1).
    const NOT_AUTHENTICATED: &str = "error 5";
    /// Connection Failed to be Established (Core, Vol 1, Part F, 2.59).
    const NOT_ESTABLISHED: u8 = 0x3e;
    let (wearable, name) = new_wearable(day, &[])?;
    let original = day.ward.on_air(wearable).to_owned();
    day.ward.bed.air.range(&original, "a", None)?;
    let label: LabelSecret = day.ward.stage.clinic.wearables[wearable]
        .label_secret
        .parse()
        .map_err(|_| BedError::Broken("the bed's own label cannot be read".to_owned()))?;
    let response = nonce(day, wearable)?;
    let shown =
        response.get(19..27).ok_or_else(|| BedError::Broken("an offer without a nonce".to_owned()))?;
    let from = monotonic();
    day.ward.bed.air.phone("phone", &original, label.passkey(shown), PHONE)?;
    let got = until_some("the phone has read", LINK, || {
        let mut events = day.ward.bed.air.events_since(from).into_iter();
        Ok(events.find(|event| event.kind == "phone").map(|event| event.told["got"].clone()))
    })?;
    day.must(
        got["before"]
            .as_object()
            .is_some_and(|before| before.values().all(|value| value == NOT_AUTHENTICATED)),
        format!("before it had paired the phone read {}", got["before"]),
    )?;
    let bytes = |key: &str| hex::decode(got[key].as_str().unwrap_or_default()).unwrap_or_default();
    let text = |key: &str| String::from_utf8_lossy(&bytes(key)).into_owned();
    let hardware = &day.ward.stage.clinic.wearables[wearable].hardware_id;
    day.must(text("manufacturer") == "Kinara", format!("its maker is {got}"))?;
    day.must(hardware.ends_with(&text("serial")), format!("its number is {got}"))?;
    day.must(text("firmware") == "0.1.0", format!("its firmware is {got}"))?;
    let beats = bytes("heart_rate").get(1).copied().unwrap_or_default();
    day.must((40..=180).contains(&beats), format!("its heart rate is {got}"))?;
    let celsius = match bytes("temperature")[..] {
        [4, low, middle, high, 0xfe, 2] => f64::from(u32::from_le_bytes([low, middle, high, 0])) / 100.0,
        _ => 0.0,
    };
    day.must((25.0..40.0).contains(&celsius), format!("its temperature is {got}"))?;
    day.must(
        bytes("battery").first().is_some_and(|percent| *percent <= 100),
        format!("its battery is {got}"),
    )?;
    // It listens to the phone alone now, until somebody presses the button: whoever else connects is not heard.
    until("the window is closed", LINK, || {
        let there = &day.ward.bed.air.status()?[&original];
        Ok(there["advertising"] == true && there["response"] == "")
    })?;
    let from = monotonic();
    day.ward.bed.air.stranger("stranger", &original, PHONE)?;
    let got = until_some("the stranger has tried", LINK, || {
        let mut events = day.ward.bed.air.events_since(from).into_iter();
        Ok(events.find(|event| event.kind == "stranger").map(|event| event.told["got"].clone()))
    })?;
    day.must(got == json!(NOT_ESTABLISHED), format!("the stranger's link ended with {got}"))?;
    let linked = day.ward.bed.air.events_since(from).into_iter();
    let heard: Vec<_> = linked.filter(|event| event.kind == "link" && event.device == original).collect();
    day.must(heard.is_empty(), format!("the wearable had links: {heard:?}"))?;
    // The box pairs with it all the same, in a window.
    day.ward.bed.air.range(&original, "a", Some(-55))?;
    day.ward.stage.tell(wearable, &json!({"do": "button"}))?;
    pair_by_label(day, wearable, &name)
}

pub fn a_stale_bond_is_told(day: &mut Day) -> Result<()> {
    let (wearable, name) = new_wearable(day, &[])?;
    pair_by_label(day, wearable, &name)?;
    let hardware = day.ward.stage.clinic.wearables[wearable].hardware_id.clone();
    let forget = json!({"do": "forget"});
    day.ward.stage.tell(wearable, &forget)?;
    let device = |day: &Day| -> Result<Value> {
        let devices = day.ward.ctl(day.gateway, &["devices"])?;
        let found = devices["devices"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["hardware"] == json!(hardware));
        Ok(found.cloned().unwrap_or_default())
    };
    until("the stale bond is told", LINK, || Ok(device(day)?["stale"] == true))
        .map_err(|error| day.ward.with_log(day.gateway, error))?;
    let bonds_now = day.ward.status(wearable)?["bonds"].as_array().map_or(0, Vec::len);
    day.must(bonds_now == 0, "the wearable was paired again though nobody asked for it")?;
    // What the box says is to be done, done.
    let forgotten = day.ward.ctl(day.gateway, &["forget", &hardware])?;
    day.must(forgotten["error"].is_null(), format!("forgetting answered {forgotten}"))?;
    pair_by_label(day, wearable, &name)
}

pub fn another_makers_sensor(day: &mut Day) -> Result<()> {
    const NAME: &str = "Pulse-1";
    day.ward.bed.air.heart_rate_sensor(NAME)?;
    let refused = day.ward.ctl(day.gateway, &["pair", NAME, "--wait", "60"])?;
    day.must(
        code_of(&refused) == "other_code",
        format!("a sensor without proof was answered with {refused}"),
    )?;
    // By its key, as where several have one name, or none.
    let key = until_some("the sensor is near", LINK, || {
        let near = day.ward.ctl(day.gateway, &["scan", "--seconds", "5"])?;
        let mut found =
            near["nearby"].as_array().into_iter().flatten().filter(|one| one["name"] == json!(NAME));
        Ok(found.next().and_then(|one| one["key"].as_str()).map(str::to_owned))
    })
    .map_err(|error| day.ward.with_log(day.gateway, error))?;
    let paired = day.ward.ctl(day.gateway, &["pair", &key, "--just-works", "--wait", "60"])?;
    let hardware = paired["hardware"].as_str().unwrap_or_default().to_owned();
    day.must(hardware.starts_with("bt:"), format!("pairing the sensor answered {paired}"))?;
    day.ward.stage.expect(&hardware);
    let ward = &day.ward;
    let gateway = day.gateway;
    until("the sensor is live", LINK, || {
        let devices = ward.ctl(gateway, &["devices"])?;
        Ok(devices["devices"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|one| one["hardware"] == json!(hardware) && one["link"] == "live"))
    })
    .map_err(|error| ward.with_log(gateway, error))?;
    let from = monotonic();
    until("it measures", LINK, || {
        Ok(ward.bed.air.events_since(from).iter().filter(|event| event.kind == "measured").count() >= 5)
    })
}
