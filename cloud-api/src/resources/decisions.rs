//! The log of what people decided at the clinic's boxes, each line as a box signed it.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Items;
use crate::App;
use crate::access::Member;
use crate::problem::{Problem, Query};
use crate::times::UtcMs;

/// Lines of a question that does not say how many.
const DEFAULT_LIMIT: u32 = 100;
/// Lines at most.
const MOST: u32 = 1_000;

/// The newest decisions about a device ($1) and a wearer ($2; null: about any), so many ($3).
pub const NEWEST: &str =
    "SELECT id, gateway_id, kind, at, actor_kind, actor_name, member_id, hardware_id, user_id, detail, received_at, refused
     FROM decisions WHERE ($1::text IS NULL OR hardware_id = $1) AND ($2::uuid IS NULL OR user_id = $2)
     ORDER BY at DESC, id DESC LIMIT $3";

/// A decision.
#[derive(Debug, Serialize, ToSchema)]
pub struct Decision {
    /// Drawn by the box.
    pub id: Uuid,
    /// At which box.
    pub gateway_id: Uuid,
    /// `wearer_added`, `consent_recorded`, `consent_withdrawn`, `assigned`, `unassigned`, `paired`, `forgotten`.
    pub kind: String,
    /// When, by the box's clock.
    pub at: UtcMs,
    /// `staff` (the box's page), `operator` (its command line) or `gateway` (the box itself, as the cloud told it).
    pub actor_kind: String,
    /// Who, as the box knows them.
    pub actor_name: String,
    /// The member, where the box knows them by their PIN.
    pub member_id: Option<Uuid>,
    /// About which device.
    pub hardware_id: Option<String>,
    /// About which wearer.
    pub user_id: Option<Uuid>,
    /// What else was said.
    pub detail: serde_json::Value,
    /// When the cloud heard of it.
    pub received_at: UtcMs,
    /// Why it was not carried out; null: it was.
    pub refused: Option<String>,
}

/// About what, and how many.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DecisionsQuery {
    /// About this device alone.
    device_id: Option<Uuid>,
    /// About this wearer alone.
    user_id: Option<Uuid>,
    /// Most lines to answer; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// What was decided at the clinic's boxes, the newest first.
#[utoipa::path(get, path = "/api/v1/decisions", tag = "decisions", params(DecisionsQuery),
    responses(
        (status = 200, body = Items<Decision>),
        (status = 404, description = "No such device or wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Query(query): Query<DecisionsQuery>,
) -> Result<Json<Items<Decision>>, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MOST {
        return Err(Problem::invalid(format!("limit must be 1 to {MOST}.")));
    }
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    let mut hardware: Option<String> = None;
    if let Some(device) = query.device_id {
        let row = transaction.row("SELECT hardware_id FROM devices WHERE id = $1", &[&device]).await?;
        hardware = row.ok_or_else(|| Problem::not_found("device"))?.try_get(0)?;
    }
    if let Some(user) = query.user_id {
        super::known_user(&transaction, user).await?;
    }
    let rows = transaction.rows(NEWEST, &[&hardware, &query.user_id, &i64::from(limit)]).await?;
    let read = |row: &tokio_postgres::Row| {
        Ok(Decision {
            id: row.try_get(0)?,
            gateway_id: row.try_get(1)?,
            kind: row.try_get(2)?,
            at: UtcMs(row.try_get(3)?),
            actor_kind: row.try_get(4)?,
            actor_name: row.try_get(5)?,
            member_id: row.try_get(6)?,
            hardware_id: row.try_get(7)?,
            user_id: row.try_get(8)?,
            detail: row.try_get(9)?,
            received_at: UtcMs(row.try_get(10)?),
            refused: row.try_get(11)?,
        })
    };
    Ok(Json(Items { items: rows.iter().map(read).collect::<Result<_, Problem>>()? }))
}
