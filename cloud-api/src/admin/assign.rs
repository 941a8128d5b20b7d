//! Giving a device to a wearer.
//!
//! The boundary ends the running assignment and begins the new one: same time, same frame ([`kinara_ingest::boundary`]). It may
//! lie in the past: what is stored after it moves within the clinic; of another clinic's it needs an explicit word. Who has the device
//! may have had it for longer than was said, where nobody had it in between.

use jiff::Timestamp;
use kinara_ingest::boundary::{self, Edge, Gift, Given, Held, Stop, Word};
use kinara_protocol::frame::Epoch;
use serde_json::{Value, json};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{AdminError, Assign, audit, commands::living_wearer, find_tenant, name_tenant, printed, refused};

pub(super) async fn assign(transaction: &Transaction<'_>, order: &Assign) -> Result<Value, AdminError> {
    let hardware_id = order.hardware.as_str();
    let tenant = find_tenant(transaction, &order.tenant).await?;
    let user = living_wearer(transaction, tenant, &order.tenant, &order.wearer).await?;
    // Until the end: two operators, or an operator and a box, who give one device away take turns.
    let hardware = boundary::turn(transaction, hardware_id).await?;
    let kinara = order.hardware.factory_id().is_some();
    let kind = if kinara { "kinara" } else { "bluetooth" };
    let name = format!("{} {}", if kinara { "Kinara" } else { "Sensor" }, short(hardware_id));
    let device: Uuid = transaction
        .query_one(
            "INSERT INTO devices AS d (id, tenant_id, device_type, hardware_id, name) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (tenant_id, hardware_id) DO UPDATE SET name = coalesce(d.name, excluded.name) RETURNING id",
            &[&Uuid::now_v7(), &tenant, &kind, &hardware_id, &name],
        )
        .await?
        .try_get(0)?;
    let consent: Option<Uuid> = transaction
        .query_opt(
            "SELECT id FROM consents WHERE tenant_id = $1 AND user_id = $2 AND withdrawn_at IS NULL
             ORDER BY given_at DESC LIMIT 1",
            &[&tenant, &user],
        )
        .await?
        .map(|row| row.try_get(0))
        .transpose()?;
    let held = boundary::held(transaction, hardware).await?;
    let result = |id: Uuid, changed: bool, ended: Option<Uuid>, moved: bool| {
        let more = json!({ "device_id": device, "user_id": user, "hardware": hardware, "consent_id": consent,
            "ended": ended, "taken_from_another_clinic": moved });
        printed(id, tenant, changed, more)
    };
    // The same order, carried out before, perhaps ended since; or theirs already.
    let theirs = |held: &&Held| (held.tenant, held.user) == (tenant, user);
    if let Some(same) = held.iter().filter(theirs).find(|held| held.from.at == order.from) {
        return Ok(result(same.id, false, None, false));
    }
    // One that begins later than is ordered now is begun earlier below.
    let runs = |held: &&Held| held.to.is_none() && held.from.at <= order.from;
    if let Some(running) = held.iter().filter(theirs).find(runs) {
        keep(transaction, running, consent).await?;
        return Ok(result(running.id, false, None, false));
    }
    name_tenant(transaction, tenant).await?;
    let now: Timestamp = transaction.query_one("SELECT now()", &[]).await?.try_get(0)?;
    let gift = Gift {
        hardware_id,
        hardware,
        tenant,
        user,
        device,
        consent,
        from: Edge { at: order.from, frame: order.at_frame.map(|frame| (Epoch(frame.epoch), frame.seq)) },
        word: Word::Operator { take_stored: order.take_stored },
    };
    let given = match boundary::give(transaction, &gift, now).await {
        Ok(Some(given)) => given,
        Ok(None) => return refused(format!("{} is {}'s already", order.hardware, order.wearer)),
        Err(Stop::Refused(refusal)) => return refused(refusal.detail),
        Err(Stop::Failed(error)) => return Err(error.into()),
    };
    tell(transaction, &gift, &given).await?;
    if consent.is_none() {
        tracing::warn!(wearer = order.wearer, "no consent: what the device measures will be discarded");
    }
    let ended = given.ended.map(|(id, _)| id);
    Ok(result(given.assignment, true, ended, !given.taken_from.is_empty()))
}

/// A consent that has come since counts from the beginning.
async fn keep(
    transaction: &Transaction<'_>,
    running: &Held,
    consent: Option<Uuid>,
) -> Result<(), AdminError> {
    transaction
        .execute(
            "UPDATE device_assignments SET consent_id = $2 WHERE id = $1 AND consent_id IS NULL",
            &[&running.id, &consent],
        )
        .await?;
    transaction
        .execute("UPDATE devices SET user_id = $2 WHERE id = $1", &[&running.device, &running.user])
        .await?;
    Ok(())
}

/// Into the audit log of each clinic that it concerns.
async fn tell(transaction: &Transaction<'_>, gift: &Gift<'_>, given: &Given) -> Result<(), AdminError> {
    if let Some((ended, clinic)) = given.ended {
        let detail = json!({ "assignment": ended, "at": gift.from.at });
        audit(transaction, clinic, "admin.assign.end", gift.hardware_id, detail).await?;
    }
    for clinic in &given.taken_from {
        let detail = json!({ "device": gift.hardware_id, "since": gift.from.at });
        audit(transaction, *clinic, "admin.assign.stored_given_away", gift.hardware_id, detail).await?;
    }
    let detail = json!({ "user_id": gift.user, "device_id": gift.device, "from": gift.from.at,
        "stored_taken_over": !given.taken_from.is_empty(),
        "at_frame": gift.from.frame.map(|(epoch, seq)| format!("{epoch}:{seq}")) });
    audit(transaction, gift.tenant, "admin.assign", gift.hardware_id, detail).await
}

fn short(hardware: &str) -> &str {
    hardware.get(hardware.len().saturating_sub(4)..).unwrap_or(hardware)
}
