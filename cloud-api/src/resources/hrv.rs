//! Heart rate variability of five-minute windows.

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

/// Most windows of one answer: a week.
const LIMIT: i64 = 2016;
/// Hours of a question that does not say from when.
const DEFAULT_HOURS: i64 = 24;

/// A window. Names and definitions are the Task Force's (1996); artefacts are corrected by Lipponen and Tarvainen (2019).
#[derive(Debug, Serialize, ToSchema)]
pub struct Window {
    /// When it begins: milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// Intervals in it.
    pub intervals: i32,
    /// Beats that were corrected.
    pub corrected: i32,
    /// How much of it is covered by intervals, ms of 300,000.
    pub covered_ms: f64,
    /// Mean interval, ms.
    pub mean_nn_ms: f64,
    /// Standard deviation, ms.
    pub sdnn_ms: f64,
    /// Root mean square of successive differences, ms.
    pub rmssd_ms: f64,
    /// Percent of differences above 50 ms.
    pub pnn50: f64,
    /// Power from 0.04 to 0.15 Hz, ms²; null: no stretch of two minutes without a hole.
    pub lf_ms2: Option<f64>,
    /// Power from 0.15 to 0.4 Hz, ms²; null likewise.
    pub hf_ms2: Option<f64>,
}

/// Whose and when.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HrvQuery {
    /// The wearer.
    user_id: Uuid,
    /// RFC 3339, or milliseconds since 1970; a day before `to` if left out.
    #[param(value_type = Option<String>)]
    from: Option<UtcMs>,
    /// RFC 3339, or milliseconds since 1970; now if left out.
    #[param(value_type = Option<String>)]
    to: Option<UtcMs>,
}

/// A wearer's windows, oldest first.
#[utoipa::path(get, path = "/api/v1/hrv", tag = "readings", params(HrvQuery),
    responses(
        (status = 200, body = Items<Window>),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Query(query): Query<HrvQuery>,
) -> Result<Json<Items<Window>>, Problem> {
    let (from, to) = period(&app, query.from, query.to, DEFAULT_HOURS)?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    known_user(&transaction, query.user_id).await?;
    let rows = transaction
        .rows(
            "SELECT bucket, intervals, corrected, covered_ms, mean_nn_ms, sdnn_ms, rmssd_ms, pnn50, lf_ms2, hf_ms2
             FROM hrv WHERE user_id = $1 AND bucket >= $2 AND bucket < $3 ORDER BY bucket LIMIT $4",
            &[&query.user_id, &from, &to, &LIMIT],
        )
        .await?;
    let items = rows
        .iter()
        .map(|row| {
            let bucket: jiff::Timestamp = row.try_get(0)?;
            Ok(Window {
                time_ms: bucket.as_millisecond(),
                intervals: row.try_get(1)?,
                corrected: row.try_get(2)?,
                covered_ms: row.try_get(3)?,
                mean_nn_ms: row.try_get(4)?,
                sdnn_ms: row.try_get(5)?,
                rmssd_ms: row.try_get(6)?,
                pnn50: row.try_get(7)?,
                lf_ms2: row.try_get(8)?,
                hf_ms2: row.try_get(9)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()?;
    Ok(Json(Items { items }))
}
