//! A gateway's store is damaged while the cloud does not have what it holds: a page, a cell, a sealed batch.
//!
//! Nothing is excused: the wearable still holds what it was told it may forget, and is asked for it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::Connection;
use rustix::process::Signal;

use super::Stage;
use crate::oracle::witness::Witness;
use crate::{ClinicError, Result};

/// Bytes of a page.
const PAGE: u64 = 4_096;

fn sqlite(error: &rusqlite::Error) -> ClinicError {
    ClinicError::Answer { who: "a gateway's store".to_owned(), what: error.to_string() }
}

/// Overwrites a page of the table that holds unsealed frames.
fn harm_page(database: &Path) -> Result<bool> {
    let db = Connection::open(database).map_err(|error| sqlite(&error))?;
    let sql = "SELECT pageno FROM dbstat WHERE name = 'pieces' AND pagetype = 'leaf' ORDER BY path LIMIT 1";
    let page: i64 = db.query_row(sql, [], |row| row.get(0)).map_err(|error| sqlite(&error))?;
    db.close().map_err(|(_, error)| sqlite(&error))?;
    let file = std::fs::OpenOptions::new().write(true).open(database).map_err(ClinicError::file(database))?;
    let at = (page as u64 - 1) * PAGE;
    file.write_all_at(&[0xa5; PAGE as usize], at).map_err(ClinicError::file(database))?;
    Ok(true)
}

/// Puts text where a number belongs; STRICT tables look away for a moment.
fn harm_cell(database: &Path) -> Result<bool> {
    let schema = |from: &str, to: &str| {
        let db = Connection::open(database)?;
        db.pragma_update(None, "writable_schema", true)?;
        let sql = "UPDATE sqlite_schema SET sql = replace(sql, ?1, ?2) WHERE name = 'pieces'";
        db.execute(sql, [from, to])
    };
    let harm = || {
        schema(") STRICT", ") /*S*/")?;
        let changed = Connection::open(database)?
            .execute("UPDATE pieces SET frames = 'x' WHERE id = (SELECT min(id) FROM pieces)", [])?;
        schema(") /*S*/", ") STRICT")?;
        Ok(changed > 0)
    };
    harm().map_err(|error: rusqlite::Error| sqlite(&error))
}

/// Flips a bit of a sealed batch.
fn harm_batch(database: &Path) -> Result<bool> {
    let sql =
        "UPDATE batches SET payload = CAST(substr(payload, 1, 20) || x'ff' || substr(payload, 22) AS BLOB)
               WHERE kind = 0";
    let changed = Connection::open(database).and_then(|db| db.execute(sql, []));
    Ok(changed.map_err(|error| sqlite(&error))? > 0)
}

/// The gateway dies, its store is harmed, and it starts again.
fn harm(stage: &mut Stage, gateway: usize, how: fn(&Path) -> Result<bool>) -> Result<()> {
    let holds = stage.holds(gateway) > 0;
    let database = stage.clinic.gateways[gateway].data.join("store.db");
    stage.clinic.gateways[gateway].process().kill();
    if how(&database)? && holds {
        stage.saw(Witness::StoreDamagedHolding);
    }
    stage.clinic.gateways[gateway].process().spawn()
}

fn gathered(stage: &mut Stage, name: &str, how: fn(&Path) -> Result<bool>) -> Result<()> {
    let nowhere = crate::ports::free();
    let right = stage.clinic.broker.port();
    let gateway = stage.gateway(0, name, &format!("[uplink]\nport = {nowhere}\n"))?;
    stage.wearable(0, &[gateway], &["--prefill", "30m"])?;
    stage.start_gateway_at(0.4, gateway);
    let at = stage.moment(14.0, 17.0);
    stage.at(at, "the gateway's store is damaged", move |stage| {
        stage.clinic.gateways[gateway].configure(&format!("[uplink]\nport = {right}\n"))?;
        harm(stage, gateway, how)
    });
    Ok(())
}

/// A page of unsealed frames.
pub fn page(stage: &mut Stage) -> Result<()> {
    gathered(stage, "page", harm_page)
}

/// A number of a row of unsealed frames.
pub fn cell(stage: &mut Stage) -> Result<()> {
    gathered(stage, "cell", harm_cell)
}

/// A batch that was sealed and that the bridges have not acknowledged.
pub fn batch(stage: &mut Stage) -> Result<()> {
    let gateway = stage.gateway(0, "batch", "")?;
    stage.wearable(0, &[gateway], &["--prefill", "10m"])?;
    stage.start_gateway_at(0.5, gateway);
    let at = stage.moment(14.0, 17.0);
    let until = at + 3.0;
    stage.note_stall(until - (at - 7.0));
    for (at, signal, what) in
        [(at - 7.0, Signal::STOP, "bridges hang"), (until, Signal::CONT, "bridges go on")]
    {
        stage.at(at, what, move |stage| {
            stage.clinic.bridges.iter().for_each(|bridge| bridge.signal(signal));
            Ok(())
        });
    }
    stage.at(at, "a sealed batch is damaged", move |stage| harm(stage, gateway, harm_batch));
    Ok(())
}
