//! What a wearable says of itself and people may want to be alerted of: that its battery is low.
//!
//! The promise: such a word is an event like those that are derived from readings. It is the wearer's whose the frame
//! is, written in the frame's own transaction, once.

use kinara_protocol::event::BATTERY_LOW;
use kinara_protocol::frame::{DeviceEventKind, Epoch};
use kinara_store::Transaction;

use crate::batch::Content;
use crate::events::{EVENT, KEY, NOTIFY};
use crate::plan::Taken;
use crate::{Error, timestamp};

/// Who says so.
const PRODUCER: &str = "device";
/// How grave it is: somebody has to charge it today.
const SEVERITY: &str = "warning";

/// A wearable's word.
struct Said<'a> {
    taken: &'a Taken<'a>,
    ticks: u64,
    percent: u8,
}

/// Writes the events of frames that are written now.
pub(crate) async fn write(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let mut said: Vec<Said<'_>> = new.iter().flat_map(said).collect();
    // In the order of keys, so that two bridges do not wait for each other in a circle.
    said.sort_by_key(|one| (one.taken.key, one.ticks));
    for one in said {
        write_one(tx, &one).await?;
    }
    Ok(())
}

fn said<'a>(taken: &'a Taken<'a>) -> Vec<Said<'a>> {
    let Content::Events(events) = &taken.frame.content else { return Vec::new() };
    let low = events.iter().filter_map(|event| match event.kind {
        DeviceEventKind::BatteryLow(percent) => Some(Said { taken, ticks: event.ticks.0, percent }),
        _ => None,
    });
    low.collect()
}

async fn write_one(tx: &Transaction<'_>, said: &Said<'_>) -> Result<(), Error> {
    let (taken, of) = (said.taken, said.taken.assignment);
    let (kind, grid) = (BATTERY_LOW.name, said.ticks as i64);
    // The frame's time is its event's.
    let time = timestamp(taken.frame.first_us);
    let (hardware, epoch) = (taken.key.hardware, taken.key.epoch);
    let key = tx.prepare_cached(KEY).await?;
    let new = tx
        .execute(&key, &[&hardware, &kind, &PRODUCER, &epoch, &grid, &of.tenant, &of.user, &of.device, &time])
        .await?;
    if new == 0 {
        return Ok(());
    }
    let data = serde_json::json!({ "producer": PRODUCER, "percent": said.percent });
    let bytes = format!("{kind}/{PRODUCER}/{}/{grid}", Epoch(epoch as u64)).into_bytes();
    let sure: Option<f32> = None;
    let event = tx.prepare_cached(EVENT).await?;
    tx.execute(&event, &[&time, &of.tenant, &of.user, &of.device, &kind, &SEVERITY, &sure, &data, &bytes])
        .await?;
    let notice = serde_json::json!({
        "tenant": of.tenant, "user": of.user, "device": of.device, "time": time.to_string(), "event_type": kind,
    });
    let notify = tx.prepare_cached(NOTIFY).await?;
    tx.query(&notify, &[&notice.to_string()]).await?;
    Ok(())
}
