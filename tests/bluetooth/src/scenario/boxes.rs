//! Two boxes of one clinic: one introduces the other, wearables roam between them, one is taken off.

use super::pairing::new_wearable;
use super::{Day, LINK};
use crate::api::Api;
use crate::bed::until;
use crate::clock::monotonic;
use crate::{BedError, Result};
use serde_json::{Value, json};
use std::time::Duration;

/// How weak a link has to be for how long until it is given up, here.
const WEAK: &str = "[radio]\nweak_rssi_dbm = -88\nweak_after_s = 3\n";
/// At the end of a corridor, and beside the box.
const FAR: i8 = -95;
const NEAR: i8 = -50;

fn other(day: &Day) -> usize {
    day.other.expect("the session has two boxes")
}

fn api(day: &mut Day) -> Result<Api> {
    let tenant = day.ward.stage.tenant(0).clone();
    Api::open(&mut day.ward.stage.clinic, &tenant)
}

/// The cloud's row of a device, and its bonds.
fn device(api: &Api, hardware: &str) -> Result<String> {
    let listed = api.get("/api/v1/devices")?;
    let found = listed["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|device| device["hardware_id"] == json!(hardware));
    found
        .and_then(|device| device["id"].as_str())
        .map(str::to_owned)
        .ok_or_else(|| BedError::Broken(format!("the API does not list {hardware}: {listed}")))
}

fn bonds(api: &Api, device: &str) -> Result<Vec<Value>> {
    let told = api.get(&format!("/api/v1/devices/{device}/bonds"))?;
    Ok(told["bonds"].as_array().cloned().unwrap_or_default())
}

/// Which box has the wearable's link, by the air.
fn held_by(day: &Day, wearable: usize, machine: &str) -> Result<bool> {
    let status = day.ward.bed.air.status()?;
    let links = status[day.ward.on_air(wearable)]["links"].as_array().cloned().unwrap_or_default();
    Ok(links.iter().any(|link| link == machine))
}

/// Waits until the box `machine` holds the wearable and the cloud gets more of it.
fn flows_by(day: &Day, wearable: usize, machine: &str) -> Result<()> {
    let name = day.ward.on_air(wearable).to_owned();
    until(&format!("box {machine} has {name}"), LINK, || held_by(day, wearable, machine))
        .and_then(|()| {
            let before = day.ward.stored(wearable)?;
            until(&format!("{name} brings readings by {machine}"), LINK, || {
                Ok(day.ward.stored(wearable)? > before)
            })
        })
        .map_err(|error| day.ward.with_log(other(day), day.ward.with_log(day.gateway, error)))
}

pub fn one_introduces_the_other(day: &mut Day) -> Result<()> {
    for gateway in [day.gateway, other(day)] {
        day.ward.configure(gateway, WEAK);
        day.ward.start_gateway(gateway)?;
    }
    let (wearable, shown) = new_wearable(day, &["--prefill", "5m"])?;
    let secret = day.ward.stage.clinic.wearables[wearable].label_secret.clone();
    let hardware = day.ward.stage.clinic.wearables[wearable].hardware_id.clone();
    let answer = day.ward.ctl(day.gateway, &["pair", &shown, "--code", &secret, "--wait", "60"])?;
    day.must(answer["hardware"] == json!(hardware), format!("pairing answered {answer}"))?;
    flows_by(day, wearable, "a")?;
    day.known.push(wearable);

    let api = api(day)?;
    let device = device(&api, &hardware)?;
    until("the cloud knows the first bond", LINK, || Ok(bonds(&api, &device)?.len() == 1))?;
    let to = day.ward.gateway_id(other(day)).to_owned();
    let began = monotonic();
    api.post(&format!("/api/v1/devices/{device}/introductions"), &json!({"gateway_id": to}))?;
    until("the cloud knows both bonds", LINK, || Ok(bonds(&api, &device)?.len() == 2))
        .map_err(|error| day.ward.with_log(other(day), day.ward.with_log(day.gateway, error)))?;
    day.note("introduced_s", (monotonic() - began).round());
    let told = api.get(&format!("/api/v1/devices/{device}/bonds"))?;
    day.must(told["introductions"][0]["state"] == "done", format!("the introduction is {told}"))?;
    let how: Vec<&str> =
        told["bonds"].as_array().into_iter().flatten().filter_map(|bond| bond["how"].as_str()).collect();
    day.must(how.contains(&"introduction"), format!("the bonds came about by {how:?}"))?;
    day.must(
        day.ward.status(wearable)?["bonds"].as_array().is_some_and(|bonds| bonds.len() == 2),
        "the wearable has not two bonds",
    )
}

pub fn a_wearable_walks_from_one_to_the_other(day: &mut Day) -> Result<()> {
    let wearable = day.known[0];
    let name = day.ward.on_air(wearable).to_owned();
    for (left, reached) in [("a", "b"), ("b", "a"), ("a", "b")] {
        day.ward.bed.air.range(&name, left, Some(FAR))?;
        day.ward.bed.air.range(&name, reached, Some(NEAR))?;
        let began = monotonic();
        flows_by(day, wearable, reached)?;
        day.note(&format!("walked_to_{reached}_s"), (monotonic() - began).round());
    }
    // Out of the first one's range altogether, as behind a wall.
    day.ward.bed.air.range(&name, "a", None)?;
    flows_by(day, wearable, "b")?;
    day.ward.bed.air.range(&name, "a", Some(NEAR))
}

pub fn one_is_taken_off(day: &mut Day) -> Result<()> {
    let wearable = day.known[0];
    let hardware = day.ward.stage.clinic.wearables[wearable].hardware_id.clone();
    let api = api(day)?;
    let device = device(&api, &hardware)?;
    let of = day.ward.gateway_id(day.gateway).to_owned();
    let bond = bonds(&api, &device)?
        .into_iter()
        .find(|bond| bond["gateway_id"] == json!(of))
        .and_then(|bond| bond["id"].as_str().map(str::to_owned))
        .ok_or_else(|| BedError::Broken("the first box has no bond".to_owned()))?;
    api.post(&format!("/api/v1/bonds/{bond}/revoke"), &json!({}))?;
    until("the wearable and the cloud know one bond", LINK, || {
        let there = day.ward.status(wearable)?["bonds"].as_array().map_or(0, Vec::len);
        Ok(there == 1 && bonds(&api, &device)?.len() == 1)
    })
    .map_err(|error| day.ward.with_log(other(day), day.ward.with_log(day.gateway, error)))?;
    // Alone with the box that was taken off, it is left alone; with the other one it goes on.
    let name = day.ward.on_air(wearable).to_owned();
    day.ward.bed.air.range(&name, "b", None)?;
    kinara_clinic::process::pause(Duration::from_secs(8));
    day.must(!held_by(day, wearable, "a")?, "the box that was taken off still has a link")?;
    day.ward.bed.air.range(&name, "b", Some(NEAR))?;
    flows_by(day, wearable, "b")
}
