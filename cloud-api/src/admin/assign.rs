//! Giving a device to a wearer.
//!
//! Intervals of one piece of hardware never overlap, in the whole system; the database refuses what would. The boundary
//! ends the running assignment and begins the new one: same time, same frame.

use jiff::Timestamp;
use kinara_protocol::frame::Epoch;
use serde_json::{Value, json};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{AdminError, Assign, audit, commands::find_wearer, find_tenant, name_tenant, printed, refused};

struct Running {
    id: Uuid,
    tenant: Uuid,
    user: Uuid,
    device: Uuid,
    from: Timestamp,
}

fn check_hardware(id: &str) -> Result<(), AdminError> {
    let kinara = id.strip_prefix("kinara:").is_some_and(|factory| {
        factory.len() == 16 && factory.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    });
    let other = id.strip_prefix("bt:").is_some_and(|address| !address.is_empty() && id.len() <= 255);
    if kinara || other {
        return Ok(());
    }
    refused(format!("{id:?} is not kinara:<16 small hex digits> and not bt:<address>"))
}

pub(super) async fn assign(transaction: &Transaction<'_>, order: &Assign) -> Result<Value, AdminError> {
    check_hardware(&order.hardware)?;
    let tenant = find_tenant(transaction, &order.tenant).await?;
    let user = find_wearer(transaction, tenant, &order.tenant, &order.wearer).await?;
    // The row is locked until the end: two operators who give one device away take turns.
    let hardware: Uuid = transaction
        .query_one(
            "INSERT INTO hardware (id, hardware_id) VALUES ($1, $2)
             ON CONFLICT (hardware_id) DO UPDATE SET hardware_id = excluded.hardware_id RETURNING id",
            &[&Uuid::now_v7(), &order.hardware],
        )
        .await?
        .try_get(0)?;
    let kind = if order.hardware.starts_with("kinara:") { "kinara" } else { "bluetooth" };
    let name = format!("{} {}", if kind == "kinara" { "Kinara" } else { "Sensor" }, short(&order.hardware));
    let device: Uuid = transaction
        .query_one(
            "INSERT INTO devices AS d (id, tenant_id, device_type, hardware_id, name) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (tenant_id, hardware_id) DO UPDATE SET name = coalesce(d.name, excluded.name) RETURNING id",
            &[&Uuid::now_v7(), &tenant, &kind, &order.hardware, &name],
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
    let running = running(transaction, hardware).await?;
    let result = |id: Uuid, changed: bool, ended: Option<Uuid>| {
        let more = json!({ "device_id": device, "user_id": user, "hardware": hardware, "consent_id": consent,
            "ended": ended });
        printed(id, tenant, changed, more)
    };
    if let Some(same) = earlier(transaction, hardware, tenant, user, order).await? {
        return Ok(result(same, false, None));
    }
    if let Some(running) = &running {
        if running.tenant == tenant && running.user == user {
            // Theirs already. A consent that has come since counts from the beginning.
            transaction
                .execute(
                    "UPDATE device_assignments SET consent_id = $2 WHERE id = $1 AND consent_id IS NULL",
                    &[&running.id, &consent],
                )
                .await?;
            wear(transaction, running.device, Some(user)).await?;
            return Ok(result(running.id, false, None));
        }
        if order.from <= running.from {
            return refused(format!(
                "{} is somebody's from {} on; a new assignment must begin after that, not at {}",
                order.hardware, running.from, order.from
            ));
        }
        end(transaction, running, order).await?;
    }
    name_tenant(transaction, tenant).await?;
    let (epoch, seq) = frame(order);
    let id = Uuid::now_v7();
    transaction
        .execute(
            "INSERT INTO device_assignments
               (id, hardware_id, tenant_id, user_id, device_id, consent_id, valid_from, from_epoch, from_seq)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[&id, &hardware, &tenant, &user, &device, &consent, &order.from, &epoch, &seq],
        )
        .await
        .map_err(|error| overlap(error, order))?;
    wear(transaction, device, Some(user)).await?;
    let detail = json!({ "user_id": user, "device_id": device, "from": order.from,
        "at_frame": order.at_frame.map(|frame| format!("{}:{}", Epoch(frame.epoch), frame.seq)) });
    audit(transaction, tenant, "admin.assign", &order.hardware, detail).await?;
    if consent.is_none() {
        tracing::warn!(wearer = order.wearer, "no consent: what the device measures will be discarded");
    }
    Ok(result(id, true, running.map(|running| running.id)))
}

fn short(hardware: &str) -> &str {
    hardware.get(hardware.len().saturating_sub(4)..).unwrap_or(hardware)
}

fn frame(order: &Assign) -> (Option<i64>, Option<i64>) {
    (order.at_frame.map(|frame| frame.epoch as i64), order.at_frame.map(|frame| i64::from(frame.seq)))
}

fn overlap(error: tokio_postgres::Error, order: &Assign) -> AdminError {
    if error.code() == Some(&tokio_postgres::error::SqlState::EXCLUSION_VIOLATION) {
        return AdminError::Refused(format!(
            "{} was somebody's at or after {}; a new assignment must begin after the last one's end",
            order.hardware, order.from
        ));
    }
    error.into()
}

async fn running(transaction: &Transaction<'_>, hardware: Uuid) -> Result<Option<Running>, AdminError> {
    let row = transaction
        .query_opt(
            "SELECT id, tenant_id, user_id, device_id, valid_from FROM device_assignments
             WHERE hardware_id = $1 AND valid_to IS NULL FOR UPDATE",
            &[&hardware],
        )
        .await?;
    row.map(|row| {
        Ok(Running {
            id: row.try_get(0)?,
            tenant: row.try_get(1)?,
            user: row.try_get(2)?,
            device: row.try_get(3)?,
            from: row.try_get(4)?,
        })
    })
    .transpose()
}

/// The same order, carried out before, perhaps ended since.
async fn earlier(
    transaction: &Transaction<'_>,
    hardware: Uuid,
    tenant: Uuid,
    user: Uuid,
    order: &Assign,
) -> Result<Option<Uuid>, AdminError> {
    let row = transaction
        .query_opt(
            "SELECT id FROM device_assignments
             WHERE hardware_id = $1 AND tenant_id = $2 AND user_id = $3 AND valid_from = $4",
            &[&hardware, &tenant, &user, &order.from],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

async fn end(transaction: &Transaction<'_>, running: &Running, order: &Assign) -> Result<(), AdminError> {
    name_tenant(transaction, running.tenant).await?;
    let (epoch, seq) = frame(order);
    transaction
        .execute(
            "UPDATE device_assignments SET valid_to = $2, to_epoch = $3, to_seq = $4 WHERE id = $1",
            &[&running.id, &order.from, &epoch, &seq],
        )
        .await?;
    wear(transaction, running.device, None).await?;
    let detail = json!({ "assignment": running.id, "at": order.from });
    audit(transaction, running.tenant, "admin.assign.end", &order.hardware, detail).await
}

async fn wear(transaction: &Transaction<'_>, device: Uuid, user: Option<Uuid>) -> Result<(), AdminError> {
    transaction.execute("UPDATE devices SET user_id = $2 WHERE id = $1", &[&device, &user]).await?;
    Ok(())
}
