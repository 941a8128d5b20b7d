//! Gaps: what is missing of a wearer's readings, and why.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Items, known_user, period};
use crate::App;
use crate::access::Member;
use crate::problem::{Problem, Query};
use crate::times::UtcMs;

/// Most gaps of one answer.
const LIMIT: i64 = 1000;
/// Hours of a question that does not say from when.
const DEFAULT_HOURS: i64 = 24;

/// Gaps of a wearer ($1; null: of all) that touch a period ($2 to $3), so many ($4).
pub const WITHIN: &str =
    "SELECT id, user_id, device_id, reason, from_time, to_time, frames FROM gaps_within($1, $2, $3, $4)
     ORDER BY from_time DESC NULLS FIRST, id";

/// A gap.
#[derive(Debug, Serialize, ToSchema)]
pub struct Gap {
    /// Its id.
    pub id: Uuid,
    /// Whose readings.
    pub user_id: Uuid,
    /// Of which device.
    pub device_id: Uuid,
    /// `late` is open: somebody may still hold them. `reset`, `overflow`, `quota`, `gateway_lost`, `no_consent`, `erased`,
    /// `expired` are final, unless they come after all.
    pub reason: String,
    /// From when; null: not known.
    pub from_at: Option<UtcMs>,
    /// Until when; null: not known.
    pub to_at: Option<UtcMs>,
    /// How many frames; null: samples that were never in a frame.
    pub frames: Option<i64>,
}

/// Whose and when.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GapsQuery {
    /// The wearer; all if left out.
    user_id: Option<Uuid>,
    /// RFC 3339, or milliseconds since 1970; a day before `to` if left out.
    #[param(value_type = Option<String>)]
    from: Option<UtcMs>,
    /// RFC 3339, or milliseconds since 1970; now if left out.
    #[param(value_type = Option<String>)]
    to: Option<UtcMs>,
}

/// Gaps that touch the period, newest first.
#[utoipa::path(get, path = "/api/v1/gaps", tag = "gaps", params(GapsQuery),
    responses(
        (status = 200, body = Items<Gap>),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Query(query): Query<GapsQuery>,
) -> Result<Json<Items<Gap>>, Problem> {
    let (from, to) = period(&app, query.from, query.to, DEFAULT_HOURS)?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    if let Some(user) = query.user_id {
        known_user(&transaction, user).await?;
    }
    let rows = transaction.rows(WITHIN, &[&query.user_id, &from, &to, &LIMIT]).await?;
    let items = rows
        .iter()
        .map(|row| {
            let (from, to): (Option<jiff::Timestamp>, Option<jiff::Timestamp>) =
                (row.try_get(4)?, row.try_get(5)?);
            Ok(Gap {
                id: row.try_get(0)?,
                user_id: row.try_get(1)?,
                device_id: row.try_get(2)?,
                reason: row.try_get(3)?,
                from_at: from.map(UtcMs),
                to_at: to.map(UtcMs),
                frames: row.try_get(6)?,
            })
        })
        .collect::<Result<_, Problem>>()?;
    Ok(Json(Items { items }))
}
