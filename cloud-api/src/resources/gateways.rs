//! The boxes on the shelf, as they last described themselves.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Items;
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::Problem;
use crate::times::UtcMs;

/// A gateway.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Gateway {
    /// Its id.
    pub id: Uuid,
    /// As shown.
    pub name: String,
    /// When it last reported.
    pub last_seen_at: Option<UtcMs>,
    /// Whether the broker has it.
    pub online: bool,
    /// What it holds that the cloud has not acknowledged.
    pub buffer: Option<Buffer>,
    /// Its clock.
    pub clock: Option<ClockState>,
    /// Its software.
    pub version: Option<String>,
    /// `ok`, `soft_limit` or `hard_limit`: how full its disk is.
    pub level: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Its Bluetooth adapters.
    pub adapters: Vec<Adapter>,
}

/// A gateway's Bluetooth adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Adapter {
    /// The box's name for it.
    pub name: String,
    /// What wearables know the gateway by.
    pub address: String,
    /// Links it can hold, as far as learnt.
    pub slots: u32,
    /// Links it holds.
    pub links: u32,
}

/// A gateway's buffer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Buffer {
    /// Frames.
    pub frames: u64,
    /// Sealed batches.
    pub batches: u64,
    /// Bytes on its disk.
    pub bytes: u64,
    /// The oldest frame.
    pub oldest_at: Option<UtcMs>,
}

/// A gateway's clock.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ClockState {
    /// Where its time comes from.
    pub source: String,
    /// How far off it may be.
    pub uncertainty_ms: f64,
}

/// The last state as published; names as in the `.proto` file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Published {
    online: bool,
    software: Option<String>,
    buffered_frames: u64,
    buffered_batches: u64,
    buffered_bytes: u64,
    oldest_utc_us: i64,
    clock_source: Option<String>,
    clock_uncertainty_us: u64,
    level: Option<String>,
    notes: Vec<String>,
    adapters: Vec<Adapter>,
}

/// What a person should know of a box that signs with a key that nobody has trusted.
const NEW_KEY: &str = "This box signs with a new key, so what is decided at it waits. If it was set up anew on purpose, \
     ask your operator to trust its key; if not, somebody else may have its certificate.";

fn describe(id: Uuid, name: String, seen: Option<jiff::Timestamp>, state: serde_json::Value) -> Gateway {
    // `{}`: never reported. What this release cannot read shows as never reported, too.
    let reported = state.as_object().is_some_and(|state| !state.is_empty());
    let state: Option<Published> = reported.then(|| serde_json::from_value(state).ok()).flatten();
    let state = state.unwrap_or_default();
    let known = state.software.is_some();
    Gateway {
        id,
        name,
        last_seen_at: seen.map(UtcMs),
        online: state.online,
        buffer: known.then(|| Buffer {
            frames: state.buffered_frames,
            batches: state.buffered_batches,
            bytes: state.buffered_bytes,
            oldest_at: (state.oldest_utc_us != 0).then(|| UtcMs::from_us(state.oldest_utc_us)).flatten(),
        }),
        clock: state
            .clock_source
            .filter(|source| !source.is_empty())
            .map(|source| ClockState { source, uncertainty_ms: state.clock_uncertainty_us as f64 / 1000.0 }),
        version: state.software.filter(|version| !version.is_empty()),
        level: state.level.filter(|level| !level.is_empty()),
        notes: state.notes,
        adapters: state.adapters,
    }
}

/// All gateways of the transaction's tenant that are in service.
pub(crate) async fn all(transaction: &TenantTransaction<'_>) -> Result<Vec<Gateway>, Problem> {
    let rows = transaction
        .rows(
            "SELECT g.id, g.name, g.last_seen_at, g.state, EXISTS (SELECT FROM gateway_keys k
               WHERE k.gateway_id = g.id AND k.trusted_at IS NULL AND k.ended_at IS NULL)
             FROM gateways g WHERE g.retired_at IS NULL ORDER BY g.name, g.id",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let mut gateway = describe(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            if row.try_get(4)? {
                gateway.notes.insert(0, NEW_KEY.to_owned());
            }
            Ok(gateway)
        })
        .collect()
}

/// All gateways of the clinic.
#[utoipa::path(get, path = "/api/v1/gateways", tag = "gateways",
    responses((status = 200, body = Items<Gateway>)))]
pub async fn list(State(app): State<App>, member: Member) -> Result<Json<Items<Gateway>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    Ok(Json(Items { items: all(&transaction).await? }))
}
