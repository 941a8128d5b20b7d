//! Wearables, as their clinic sees them.

use axum::Json;
use axum::extract::State;
use kinara_protocol::frame::Epoch;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Items;
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Path, Problem};
use crate::times::UtcMs;

/// A wearable.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Device {
    /// Its id in this clinic.
    pub id: Uuid,
    /// Its id in the world.
    pub hardware_id: Option<String>,
    /// As shown.
    pub name: Option<String>,
    /// What it is.
    pub device_type: String,
    /// Who wears it now.
    pub user_id: Option<Uuid>,
    /// Its firmware.
    pub firmware_version: Option<String>,
    /// When a gateway last heard it.
    pub last_seen_at: Option<UtcMs>,
    /// Its battery.
    pub battery_percent: Option<i16>,
    /// Whether it is worn.
    pub worn: Option<bool>,
    /// Its link, as the gateway that last spoke of it says.
    pub link: Option<Link>,
}

/// A wearable's link to a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// Which gateway.
    #[serde(default)]
    pub gateway_id: Option<Uuid>,
    /// How strong it is heard.
    #[serde(default)]
    pub rssi_dbm: Option<i32>,
    /// Whether there is a connection.
    #[serde(default)]
    pub connected: bool,
    /// Frames of this device on the gateway that the cloud has not acknowledged.
    #[serde(default)]
    pub buffered_frames: Option<u64>,
    /// Frames still on the wearable, as far as known.
    #[serde(default)]
    pub backlog_frames: Option<u64>,
    /// Why there is no link, and what to do.
    #[serde(default)]
    pub problem: Option<String>,
}

/// What a device ran in one epoch, from a start to the next one.
#[derive(Debug, Serialize, ToSchema)]
pub struct Firmware {
    /// The epoch, 16 hexadecimal digits.
    pub epoch: String,
    /// Its version.
    pub firmware_version: String,
    /// When a gateway first told so.
    pub told_at: UtcMs,
}

/// Most epochs of one answer, the newest.
const EPOCHS: i64 = 1_000;

/// All devices of the transaction's tenant.
pub(crate) async fn all(transaction: &TenantTransaction<'_>) -> Result<Vec<Device>, Problem> {
    let rows = transaction
        .rows(
            "SELECT id, hardware_id, name, device_type, user_id, firmware_version, last_seen_at, battery_percent,
                    worn, link
             FROM devices ORDER BY name, id",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let link: Option<serde_json::Value> = row.try_get(9)?;
            let seen: Option<jiff::Timestamp> = row.try_get(6)?;
            Ok(Device {
                id: row.try_get(0)?,
                hardware_id: row.try_get(1)?,
                name: row.try_get(2)?,
                device_type: row.try_get(3)?,
                user_id: row.try_get(4)?,
                firmware_version: row.try_get(5)?,
                last_seen_at: seen.map(UtcMs),
                battery_percent: row.try_get(7)?,
                worn: row.try_get(8)?,
                // Written by the bridge; what this release cannot read shows as no link, not as an error.
                link: link.and_then(|link| serde_json::from_value(link).ok()),
            })
        })
        .collect()
}

/// All devices of the clinic.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices",
    responses((status = 200, body = Items<Device>)))]
pub async fn list(State(app): State<App>, member: Member) -> Result<Json<Items<Device>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    Ok(Json(Items { items: all(&transaction).await? }))
}

/// Which firmware a device ran, epoch by epoch, the newest first.
#[utoipa::path(get, path = "/api/v1/devices/{id}/firmware", tag = "devices",
    params(("id" = Uuid, Path, description = "The device")),
    responses(
        (status = 200, body = Items<Firmware>),
        (status = 404, description = "No such device", body = Problem, content_type = "application/problem+json")))]
pub async fn firmware(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<Items<Firmware>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    transaction
        .row("SELECT FROM devices WHERE id = $1", &[&id])
        .await?
        .ok_or_else(|| Problem::not_found("device"))?;
    let rows = transaction
        .rows(
            "SELECT epoch, firmware, told_at FROM device_firmware WHERE device_id = $1
             ORDER BY told_at DESC, epoch DESC LIMIT $2",
            &[&id, &EPOCHS],
        )
        .await?;
    let items = rows
        .iter()
        .map(|row| {
            let epoch: i64 = row.try_get(0)?;
            Ok(Firmware {
                epoch: Epoch(epoch as u64).to_string(),
                firmware_version: row.try_get(1)?,
                told_at: UtcMs(row.try_get(2)?),
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()?;
    Ok(Json(Items { items }))
}
