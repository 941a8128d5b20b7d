//! Which gateways know a device, getting another one to know it, and taking one off.
//!
//! Both are asked for here and done by boxes, which say so when it is done: an introduction is open until the new gateway
//! has paired or a day is over, a bond that is to be taken off is shown as such until its gateway has forgotten it.

use axum::Json;
use axum::extract::State;
use rand::TryRngCore as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::now;
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Body, Path, Problem};
use crate::times::UtcMs;

/// Hours for which a one-use secret is good.
const INTRODUCTION_H: i64 = 24;
/// Days for which boxes are told to take a gateway off.
const REVOCATION_DAYS: i64 = 30;
/// Bytes of a one-use secret.
const SECRET: usize = 16;

/// What is known of a device's bonds.
#[derive(Debug, Serialize, ToSchema)]
pub struct Bonds {
    /// The gateways that know it.
    pub bonds: Vec<Bond>,
    /// The introductions of the last days, the newest first.
    pub introductions: Vec<Introduction>,
}

/// A gateway that knows a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Bond {
    /// Its id.
    pub id: Uuid,
    /// Which gateway.
    pub gateway_id: Uuid,
    /// As shown.
    pub gateway_name: String,
    /// The address of its Bluetooth adapter.
    pub adapter: String,
    /// How they were paired: `label`, `display`, `introduction`, `just_works`.
    pub how: String,
    /// When.
    pub since_at: UtcMs,
    /// Since when it is to be taken off; null: it is not.
    pub revoked_at: Option<UtcMs>,
}

/// A gateway that is to get to know a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Introduction {
    /// Its id.
    pub id: Uuid,
    /// Which gateway introduces,
    pub from_gateway: Uuid,
    /// and which one.
    pub to_gateway: Uuid,
    /// `open`, `done` or `expired`.
    pub state: String,
    /// When it was asked for.
    pub asked_at: UtcMs,
    /// Until when it can be done.
    pub expires_at: UtcMs,
    /// When it was done, or over.
    pub settled_at: Option<UtcMs>,
}

const BONDS: &str = "SELECT b.id, b.gateway_id, g.name, encode(b.adapter, 'hex'), b.how, b.since,
        (SELECT r.asked_at FROM revocations r WHERE r.bond_id = b.id AND r.settled_at IS NULL)
     FROM bonds b JOIN gateways g ON g.id = b.gateway_id
     WHERE b.ended_at IS NULL AND g.retired_at IS NULL";
const INTRODUCTIONS: &str =
    "SELECT id, from_gateway, to_gateway, state, asked_at, expires_at, settled_at FROM introductions";

fn bond(row: &tokio_postgres::Row) -> Result<Bond, Problem> {
    let adapter: String = row.try_get(3)?;
    let pairs: Vec<&str> = (0..adapter.len() / 2).filter_map(|at| adapter.get(at * 2..at * 2 + 2)).collect();
    let revoked: Option<jiff::Timestamp> = row.try_get(6)?;
    Ok(Bond {
        id: row.try_get(0)?,
        gateway_id: row.try_get(1)?,
        gateway_name: row.try_get(2)?,
        adapter: pairs.join(":").to_uppercase(),
        how: row.try_get(4)?,
        since_at: UtcMs(row.try_get(5)?),
        revoked_at: revoked.map(UtcMs),
    })
}

fn introduction(row: &tokio_postgres::Row) -> Result<Introduction, Problem> {
    let settled: Option<jiff::Timestamp> = row.try_get(6)?;
    Ok(Introduction {
        id: row.try_get(0)?,
        from_gateway: row.try_get(1)?,
        to_gateway: row.try_get(2)?,
        state: row.try_get(3)?,
        asked_at: UtcMs(row.try_get(4)?),
        expires_at: UtcMs(row.try_get(5)?),
        settled_at: settled.map(UtcMs),
    })
}

async fn hardware_of(transaction: &TenantTransaction<'_>, device: Uuid) -> Result<String, Problem> {
    let row = transaction.row("SELECT hardware_id FROM devices WHERE id = $1", &[&device]).await?;
    let hardware: Option<String> = row.ok_or_else(|| Problem::not_found("device"))?.try_get(0)?;
    hardware.ok_or_else(|| Problem::not_found("device"))
}

/// The gateways that know a device.
#[utoipa::path(get, path = "/api/v1/devices/{id}/bonds", tag = "devices",
    params(("id" = Uuid, Path, description = "The device")),
    responses(
        (status = 200, body = Bonds),
        (status = 404, description = "No such device", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<Bonds>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    let hardware = hardware_of(&transaction, id).await?;
    let bonds =
        transaction.rows(&format!("{BONDS} AND b.hardware_id = $1 ORDER BY b.since"), &[&hardware]).await?;
    let statement = format!("{INTRODUCTIONS} WHERE hardware_id = $1 ORDER BY asked_at DESC LIMIT 10");
    let introductions = transaction.rows(&statement, &[&hardware]).await?;
    Ok(Json(Bonds {
        bonds: bonds.iter().map(bond).collect::<Result<_, _>>()?,
        introductions: introductions.iter().map(introduction).collect::<Result<_, _>>()?,
    }))
}

/// Whom to introduce a device to.
#[derive(Debug, Deserialize, ToSchema)]
pub struct IntroduceRequest {
    /// The gateway that is to get to know it.
    pub gateway_id: Uuid,
}

/// Ask for a device to be introduced to another gateway of the clinic. Asking again, while it is open, changes nothing.
#[utoipa::path(post, path = "/api/v1/devices/{id}/introductions", tag = "devices", request_body = IntroduceRequest,
    params(("id" = Uuid, Path, description = "The device")),
    responses(
        (status = 200, body = Introduction),
        (status = 404, description = "No such device or gateway", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Nobody can introduce it, or there is no need", body = Problem, content_type = "application/problem+json")))]
pub async fn introduce(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
    Body(request): Body<IntroduceRequest>,
) -> Result<Json<Introduction>, Problem> {
    let to = request.gateway_id;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let hardware = hardware_of(&transaction, id).await?;
    let known =
        transaction.row("SELECT 1 FROM gateways WHERE id = $1 AND retired_at IS NULL", &[&to]).await?;
    if known.is_none() {
        return Err(Problem::not_found("gateway"));
    }
    if !hardware.starts_with("kinara:") {
        return Err(Problem::invalid(
            "A third-party sensor is bound to one gateway. Pair it at the other box.",
        ));
    }
    let at = now(&app)?;
    let open = format!("{INTRODUCTIONS} WHERE hardware_id = $1 AND to_gateway = $2 AND state = 'open'");
    if let Some(row) = transaction.row(&open, &[&hardware, &to]).await? {
        return introduction(&row).map(Json);
    }
    let from = introducer(&transaction, id, &hardware, to).await?;
    let mut secret = [0u8; SECRET];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).map_err(|error| Problem::internal(&error))?;
    let expires = at.saturating_add(jiff::SignedDuration::from_hours(INTRODUCTION_H)).unwrap_or(at);
    transaction
        .run(
            "INSERT INTO introductions
               (id, tenant_id, hardware_id, from_gateway, to_gateway, secret, asked_by, asked_at, expires_at)
             VALUES ($1, (select current_tenant()), $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            &[&Uuid::now_v7(), &hardware, &from, &to, &secret.as_slice(), &member.id, &at, &expires],
        )
        .await?;
    let row = transaction.row(&open, &[&hardware, &to]).await?;
    let made = introduction(&row.ok_or_else(|| Problem::not_found("introduction"))?)?;
    let detail = json!({ "introduction": made.id, "from_gateway": from, "to_gateway": to });
    transaction.audit(&member.actor(), "device.introduce", Some(&format!("device:{id}")), detail).await?;
    transaction.commit().await?;
    Ok(Json(made))
}

/// The gateway that writes the secret: the one that has the link, else the one that was paired last.
async fn introducer(
    transaction: &TenantTransaction<'_>,
    device: Uuid,
    hardware: &str,
    to: Uuid,
) -> Result<Uuid, Problem> {
    let rows = transaction
        .rows(
            &format!(
                "SELECT k.gateway_id FROM ({BONDS} AND b.hardware_id = $1)
                   k(id, gateway_id, name, adapter, how, since, revoked_at)
                 WHERE k.revoked_at IS NULL
                 ORDER BY (SELECT d.link->>'gateway_id' = k.gateway_id::text AND (d.link->>'connected')::bool
                           FROM devices d WHERE d.id = $2) DESC NULLS LAST, k.since DESC"
            ),
            &[&hardware, &device],
        )
        .await?;
    let gateways: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if gateways.contains(&to) {
        return Err(Problem::invalid("This gateway knows the device already."));
    }
    gateways.first().copied().ok_or_else(|| {
        Problem::invalid(
            "No gateway of the clinic knows this device, so none can introduce it. Pair it at a box.",
        )
    })
}

/// Take a gateway off a device. Asking again changes nothing.
#[utoipa::path(post, path = "/api/v1/bonds/{id}/revoke", tag = "devices",
    params(("id" = Uuid, Path, description = "The bond")),
    responses(
        (status = 200, body = Bond),
        (status = 404, description = "No such bond", body = Problem, content_type = "application/problem+json")))]
pub async fn revoke(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<Bond>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let at = now(&app)?;
    let days = REVOCATION_DAYS * 24;
    let expires = at.saturating_add(jiff::SignedDuration::from_hours(days)).unwrap_or(at);
    let new = transaction
        .run(
            "INSERT INTO revocations
               (id, tenant_id, bond_id, hardware_id, gateway_id, adapter, asked_by, asked_at, expires_at)
             SELECT $2, b.tenant_id, b.id, b.hardware_id, b.gateway_id, b.adapter, $3, $4, $5 FROM bonds b
             WHERE b.id = $1 AND b.ended_at IS NULL ON CONFLICT DO NOTHING",
            &[&id, &Uuid::now_v7(), &member.id, &at, &expires],
        )
        .await?;
    let row = transaction.row(&format!("{BONDS} AND b.id = $1"), &[&id]).await?;
    let bond = bond(&row.ok_or_else(|| Problem::not_found("bond"))?)?;
    if new > 0 {
        let detail = json!({ "gateway_id": bond.gateway_id, "adapter": bond.adapter });
        transaction.audit(&member.actor(), "bond.revoke", Some(&format!("bond:{id}")), detail).await?;
    }
    transaction.commit().await?;
    Ok(Json(bond))
}
