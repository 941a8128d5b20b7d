//! Readings: drawn down on the server to as many points as a picture has, and the newest of each kind.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use kinara_protocol::frame::Epoch;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Items, known_user, period};
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Problem, Query};
use crate::times::UtcMs;

/// Points of a question that does not say how many.
const DEFAULT_POINTS: u32 = 2000;
/// Hours of a question that does not say from when.
const DEFAULT_HOURS: i64 = 1;

/// Whose, which, when and how fine.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadingsQuery {
    /// The wearer.
    user_id: Uuid,
    /// For example `heart_rate`.
    reading_type: String,
    /// RFC 3339, or milliseconds since 1970; an hour before `to` if left out.
    #[param(value_type = Option<String>)]
    from: Option<UtcMs>,
    /// RFC 3339, or milliseconds since 1970; now if left out.
    #[param(value_type = Option<String>)]
    to: Option<UtcMs>,
    /// Most points to answer; 2000 if left out.
    #[param(minimum = 1)]
    points: Option<u32>,
    /// What the points are drawn from: `raw` readings (the default), or kept aggregates by `minute`, `15min`, `hour` or
    /// the wearer's local `day`. Coarser than raw, longer periods may be asked for.
    resolution: Option<Resolution>,
}

/// Raw readings, or the aggregates that are kept of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub enum Resolution {
    /// Readings.
    #[default]
    #[serde(rename = "raw")]
    Raw,
    /// Minutes.
    #[serde(rename = "minute")]
    Minute,
    /// Quarters of an hour.
    #[serde(rename = "15min")]
    Quarter,
    /// Hours.
    #[serde(rename = "hour")]
    Hour,
    /// The wearer's local days.
    #[serde(rename = "day")]
    Day,
}

impl Resolution {
    /// The kept aggregates' view, and how many times as long a period as of raw readings may be asked for.
    const fn kept(self) -> Option<(&'static str, i64)> {
        match self {
            Self::Raw => None,
            Self::Minute => Some(("readings_minute", 12)),
            Self::Quarter => Some(("readings_15min", 52)),
            Self::Hour => Some(("readings_hourly", 92)),
            Self::Day => Some(("readings_daily", 230)),
        }
    }
}

/// A series.
#[derive(Debug, Serialize, ToSchema)]
pub struct Series {
    /// Which.
    pub reading_type: String,
    /// In which unit.
    pub unit: Option<String>,
    /// `raw`: drawn from readings; `kept`: from means that are kept of them, as was asked for or because there are too many.
    pub resolution: &'static str,
    /// Time of the first reading in it (milliseconds since 1970, UTC), mean, minimum, maximum.
    pub points: Vec<(i64, f64, f64, f64)>,
}

/// The newest stored reading of one wearer and type that a body can have and that is not from the future.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Latest {
    /// Whose.
    pub user_id: Uuid,
    /// By which device.
    pub device_id: Uuid,
    /// Which.
    pub reading_type: String,
    /// How much.
    pub value: f64,
    /// In which unit.
    pub unit: Option<String>,
    /// When: milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// How much it is worth: above 0, up to 1.
    pub quality: f32,
    /// `epoch:seq:index`, as live values carry it.
    pub key: String,
}

/// Readings whose value is outside what a body can have are kept, with quality 0; they would spoil a mean.
/// The buckets are counted from `from`, all of one width, and the index gives their rows.
pub const SERIES: &str = "SELECT min(time), avg(value), min(value), max(value)
     FROM readings
     WHERE user_id = $1 AND reading_type = $2 AND time >= $3 AND time < $4 AND quality > 0
     GROUP BY date_bin(make_interval(secs => $5), time, $3) ORDER BY 1";

/// The same from kept aggregates: means weigh as much as they have readings.
pub fn series_of(view: &str) -> String {
    format!(
        "SELECT min(bucket), sum(avg_value * count) / sum(count), min(min_value), max(max_value)
         FROM {view}
         WHERE user_id = $1 AND reading_type = $2 AND bucket >= $3 AND bucket < $4
         GROUP BY date_bin(make_interval(secs => $5), bucket, $3) ORDER BY 1"
    )
}

/// A wearer's readings of one type.
#[utoipa::path(get, path = "/api/v1/readings", tag = "readings", params(ReadingsQuery),
    responses(
        (status = 200, body = Series),
        (status = 404, description = "No such wearer, or no such type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Wrong or too long a period", body = Problem, content_type = "application/problem+json")))]
pub async fn series(
    State(app): State<App>,
    member: Member,
    Query(query): Query<ReadingsQuery>,
) -> Result<Json<Series>, Problem> {
    let (from, to) = period(&app, query.from, query.to, DEFAULT_HOURS)?;
    let limits = &app.config.limits;
    let seconds = to.duration_since(from).as_secs_f64();
    let kept = query.resolution.unwrap_or_default().kept();
    let days = i64::from(limits.readings_days) * kept.map_or(1, |(_, longer)| longer);
    if seconds > days as f64 * 86_400.0 {
        return Err(Problem::invalid(format!("Ask for at most {days} days at once of this resolution.")));
    }
    let points = query.points.unwrap_or(DEFAULT_POINTS);
    if points == 0 || points > limits.points {
        return Err(Problem::invalid(format!("points must be 1 to {}.", limits.points)));
    }
    // Whole microseconds, upwards: never one bucket more than asked for.
    let width = (seconds * 1e6 / f64::from(points)).ceil().max(1.0) / 1e6;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    known_user(&transaction, query.user_id).await?;
    let channel = transaction
        .row("SELECT name, unit FROM channels WHERE name = $1", &[&query.reading_type])
        .await?
        .ok_or_else(|| Problem::not_found("reading type"))?;
    // Of very many readings the kept minutes are as good: nobody draws that many points.
    let kept = match kept {
        None if many(&transaction, &query, from, to).await? > limits.raw_readings => {
            Resolution::Minute.kept()
        }
        kept => kept,
    };
    let sql = kept.map_or(Cow::Borrowed(SERIES), |(view, _)| Cow::Owned(series_of(view)));
    let rows = transaction.rows(&sql, &[&query.user_id, &query.reading_type, &from, &to, &width]).await?;
    let points = rows
        .iter()
        .map(|row| {
            let first: jiff::Timestamp = row.try_get(0)?;
            Ok((first.as_millisecond(), row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
        })
        .collect::<Result<_, tokio_postgres::Error>>()?;
    let resolution = if kept.is_none() { "raw" } else { "kept" };
    Ok(Json(Series { reading_type: channel.try_get(0)?, unit: channel.try_get(1)?, resolution, points }))
}

/// How many readings there are in a period, as the minutes that are kept of them know it.
async fn many(
    transaction: &TenantTransaction<'_>,
    query: &ReadingsQuery,
    from: jiff::Timestamp,
    to: jiff::Timestamp,
) -> Result<i64, Problem> {
    let row = transaction
        .row(
            "SELECT coalesce(sum(count), 0)::int8 FROM readings_minute
             WHERE user_id = $1 AND reading_type = $2 AND bucket >= $3 AND bucket < $4",
            &[&query.user_id, &query.reading_type, &from, &to],
        )
        .await?;
    row.map_or(Ok(0), |row| Ok(row.try_get(0)?))
}

/// Of one wearer, or of all.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LatestQuery {
    /// The wearer; all if left out.
    user_id: Option<Uuid>,
}

/// The newest stored readings of the transaction's tenant.
pub(crate) async fn newest(
    transaction: &TenantTransaction<'_>,
    user: Option<Uuid>,
) -> Result<Vec<Latest>, Problem> {
    const SELECT: &str =
        "SELECT user_id, device_id, reading_type, value, unit, time, epoch, seq, idx, quality FROM latest_of($1)
         ORDER BY user_id, reading_type";
    let rows = transaction.rows(SELECT, &[&user]).await?;
    rows.iter()
        .map(|row| {
            let time: jiff::Timestamp = row.try_get(5)?;
            let (epoch, seq, index): (i64, i64, i16) = (row.try_get(6)?, row.try_get(7)?, row.try_get(8)?);
            Ok(Latest {
                user_id: row.try_get(0)?,
                device_id: row.try_get(1)?,
                reading_type: row.try_get(2)?,
                value: row.try_get(3)?,
                unit: row.try_get(4)?,
                time_ms: time.as_millisecond(),
                quality: row.try_get(9)?,
                key: format!("{}:{seq}:{index}", Epoch(epoch as u64)),
            })
        })
        .collect()
}

/// The newest stored reading of each wearer and type, of the last seven days.
#[utoipa::path(get, path = "/api/v1/readings/latest", tag = "readings", params(LatestQuery),
    responses(
        (status = 200, body = Items<Latest>),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn latest(
    State(app): State<App>,
    member: Member,
    Query(query): Query<LatestQuery>,
) -> Result<Json<Items<Latest>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    if let Some(user) = query.user_id {
        known_user(&transaction, user).await?;
    }
    Ok(Json(Items { items: newest(&transaction, query.user_id).await? }))
}
