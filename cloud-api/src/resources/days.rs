//! A wearer's days: what is told of a whole day.

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

/// Most days of one answer: a year.
const LIMIT: i64 = 366;
/// Hours of a question that does not say from when: a month.
const DEFAULT_HOURS: i64 = 24 * 31;

/// A wearer's ($1) days that begin in a period ($2 to $3), so many ($4). By dates first, which are in the wearer's own key: a day begins
/// within fourteen hours of its date in UTC.
pub const WITHIN: &str = "
    SELECT day::text, bucket, resting_heart_rate, worn_minutes FROM wearer_days
    WHERE user_id = $1 AND day >= ($2::timestamptz AT TIME ZONE 'UTC')::date - 1
      AND day <= ($3::timestamptz AT TIME ZONE 'UTC')::date + 1 AND bucket >= $2 AND bucket < $3
    ORDER BY bucket LIMIT $4";

/// A day, by the wearer's own clock.
#[derive(Debug, Serialize, ToSchema)]
pub struct Day {
    /// Its date.
    pub day: String,
    /// When it began: milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// The lowest mean of a quarter of an hour with at least 300 values, bpm; null: there is none.
    pub resting_heart_rate: Option<f64>,
    /// Minutes in which a heart rate was measured, on skin.
    pub worn_minutes: i64,
}

/// Whose and when.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DaysQuery {
    /// The wearer.
    user_id: Uuid,
    /// RFC 3339, or milliseconds since 1970; a month before `to` if left out.
    #[param(value_type = Option<String>)]
    from: Option<UtcMs>,
    /// RFC 3339, or milliseconds since 1970; now if left out.
    #[param(value_type = Option<String>)]
    to: Option<UtcMs>,
}

/// A wearer's days that begin in the period, oldest first.
#[utoipa::path(get, path = "/api/v1/days", tag = "readings", params(DaysQuery),
    responses(
        (status = 200, body = Items<Day>),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Query(query): Query<DaysQuery>,
) -> Result<Json<Items<Day>>, Problem> {
    let (from, to) = period(&app, query.from, query.to, DEFAULT_HOURS)?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    known_user(&transaction, query.user_id).await?;
    let rows = transaction.rows(WITHIN, &[&query.user_id, &from, &to, &LIMIT]).await?;
    let items = rows
        .iter()
        .map(|row| {
            let begins: jiff::Timestamp = row.try_get(1)?;
            Ok(Day {
                day: row.try_get(0)?,
                time_ms: begins.as_millisecond(),
                resting_heart_rate: row.try_get(2)?,
                worn_minutes: row.try_get(3)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()?;
    Ok(Json(Items { items }))
}
