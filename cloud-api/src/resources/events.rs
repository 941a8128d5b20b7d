//! Events: what was derived from readings, and who has dealt with it.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Items, known_user, period};
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Body, Problem, Query};
use crate::times::UtcMs;

/// Events of a question that does not say how many.
const DEFAULT_LIMIT: u32 = 100;
/// Hours of a question that does not say from when.
const DEFAULT_HOURS: i64 = 24;

/// An event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Event {
    /// Its onset.
    pub time: UtcMs,
    /// Whose.
    pub user_id: Uuid,
    /// By which device.
    pub device_id: Uuid,
    /// For example `hot_flash`.
    pub event_type: String,
    /// How grave.
    pub severity: Option<String>,
    /// How sure, 0 to 1.
    pub confidence: Option<f32>,
    /// What made it.
    pub data: serde_json::Value,
    /// When somebody said it was dealt with.
    pub acknowledged_at: Option<UtcMs>,
}

const SELECT: &str =
    "SELECT time, user_id, device_id, event_type, severity, confidence, data, acknowledged_at
     FROM events";
/// The newest events of a clinic in a period ($1 to $2), so many ($3).
pub const OF_CLINIC: &str =
    "SELECT time, user_id, device_id, event_type, severity, confidence, data, acknowledged_at
     FROM newest_events($1, $2, $3) ORDER BY time DESC";

fn read(row: &tokio_postgres::Row) -> Result<Event, Problem> {
    let acknowledged: Option<jiff::Timestamp> = row.try_get(7)?;
    Ok(Event {
        time: UtcMs(row.try_get(0)?),
        user_id: row.try_get(1)?,
        device_id: row.try_get(2)?,
        event_type: row.try_get(3)?,
        severity: row.try_get(4)?,
        confidence: row.try_get(5)?,
        data: row.try_get(6)?,
        acknowledged_at: acknowledged.map(UtcMs),
    })
}

/// Whose, when and how many.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// The wearer; all if left out.
    user_id: Option<Uuid>,
    /// RFC 3339, or milliseconds since 1970; a day before `to` if left out.
    #[param(value_type = Option<String>)]
    from: Option<UtcMs>,
    /// RFC 3339, or milliseconds since 1970; now if left out.
    #[param(value_type = Option<String>)]
    to: Option<UtcMs>,
    /// Most events to answer; 100 if left out.
    #[param(minimum = 1)]
    limit: Option<u32>,
}

/// Events, newest first.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(EventsQuery),
    responses(
        (status = 200, body = Items<Event>),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Items<Event>>, Problem> {
    let (from, to) = period(&app, query.from, query.to, DEFAULT_HOURS)?;
    let most = app.config.limits.events;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT.min(most));
    if limit == 0 || limit > most {
        return Err(Problem::invalid(format!("limit must be 1 to {most}.")));
    }
    let limit = i64::from(limit);
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    if let Some(user) = query.user_id {
        known_user(&transaction, user).await?;
    }
    let rows = newest(&transaction, query.user_id, from, to, limit).await?;
    Ok(Json(Items { items: rows.iter().map(read).collect::<Result<_, _>>()? }))
}

/// The newest of a wearer or, without one, of the clinic, whose onset is in `[from, to]`.
async fn newest(
    transaction: &TenantTransaction<'_>,
    user: Option<Uuid>,
    from: jiff::Timestamp,
    to: jiff::Timestamp,
    limit: i64,
) -> Result<Vec<tokio_postgres::Row>, Problem> {
    let Some(user) = user else { return transaction.rows(OF_CLINIC, &[&from, &to, &limit]).await };
    let statement =
        format!("{SELECT} WHERE user_id = $1 AND time >= $2 AND time <= $3 ORDER BY time DESC LIMIT $4");
    transaction.rows(&statement, &[&user, &from, &to, &limit]).await
}

/// Events whose onset is in `[from, to]`, oldest first, the newest of them if there are too many: for the live view.
pub(crate) async fn between(
    transaction: &TenantTransaction<'_>,
    user: Option<Uuid>,
    from: jiff::Timestamp,
    to: jiff::Timestamp,
    limit: i64,
) -> Result<Vec<Event>, Problem> {
    newest(transaction, user, from, to, limit).await?.iter().rev().map(read).collect()
}

/// Which event was dealt with.
#[derive(Debug, Deserialize, ToSchema)]
pub struct AcknowledgeRequest {
    /// Its onset, as it was shown.
    pub time: UtcMs,
    /// Whose.
    pub user_id: Uuid,
    /// Which.
    pub event_type: String,
}

/// Say that an event was seen and dealt with. Saying it again changes nothing.
#[utoipa::path(post, path = "/api/v1/events/acknowledge", tag = "events", request_body = AcknowledgeRequest,
    responses(
        (status = 200, body = Event),
        (status = 403, description = "Needs the role clinician", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such event", body = Problem, content_type = "application/problem+json")))]
pub async fn acknowledge(
    State(app): State<App>,
    member: Member,
    Body(request): Body<AcknowledgeRequest>,
) -> Result<Json<Event>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    // The onset is stored in microseconds and shown in milliseconds.
    let whole = jiff::Timestamp::from_millisecond(request.time.ms()).map_err(|e| Problem::internal(&e))?;
    let next = whole + jiff::SignedDuration::from_millis(1);
    let now = jiff::Timestamp::from_microsecond(app.clock.utc_us()).map_err(|e| Problem::internal(&e))?;
    let changed = transaction
        .run(
            "UPDATE events SET acknowledged_at = $5
             WHERE user_id = $1 AND event_type = $2 AND time >= $3 AND time < $4 AND acknowledged_at IS NULL",
            &[&request.user_id, &request.event_type, &whole, &next, &now],
        )
        .await?;
    let statement = format!(
        "{SELECT} WHERE user_id = $1 AND event_type = $2 AND time >= $3 AND time < $4 ORDER BY time LIMIT 1"
    );
    let row = transaction.row(&statement, &[&request.user_id, &request.event_type, &whole, &next]).await?;
    let event = read(&row.ok_or_else(|| Problem::not_found("event"))?)?;
    if changed > 0 {
        // What is in the detail goes when they are erased; the target stays.
        let target = format!("event:{}", event.user_id);
        let detail = json!({ "user_id": event.user_id, "event_type": event.event_type, "time": event.time,
            "device_id": event.device_id, "severity": event.severity });
        transaction.audit(&member.actor(), "event.acknowledge", Some(&target), detail).await?;
        // The other people of the clinic see it at once.
        let notice = json!({ "tenant": member.tenant, "user": event.user_id, "device": event.device_id,
            "time": event.time.0.to_string() });
        transaction.run("SELECT pg_notify('kinara_event', $1)", &[&notice.to_string()]).await?;
    }
    transaction.commit().await?;
    Ok(Json(event))
}
