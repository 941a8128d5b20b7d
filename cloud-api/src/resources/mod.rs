//! What the API shows and lets people change. Each module reads its own tables and views.

pub mod alerts;
pub mod bonds;
pub mod consent_texts;
pub mod coverage;
pub mod days;
pub mod decisions;
pub mod devices;
pub mod events;
pub mod gaps;
pub mod gateways;
pub mod hrv;
pub mod ingest;
pub mod own_login;
pub mod provisional;
pub mod reading_types;
pub mod readings;
pub mod staff;
pub mod users;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::App;
use crate::database::TenantTransaction;
use crate::problem::Problem;
use crate::times::UtcMs;

/// A list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Items<T> {
    /// What is in it.
    pub items: Vec<T>,
}

/// From and to of a question; `to` defaults to now, `from` to `hours` before it.
pub(crate) fn period(
    app: &App,
    from: Option<UtcMs>,
    to: Option<UtcMs>,
    hours: i64,
) -> Result<(jiff::Timestamp, jiff::Timestamp), Problem> {
    let now =
        UtcMs::from_us(app.clock.utc_us()).ok_or_else(|| Problem::internal(&"the clock shows no time"))?;
    let to = to.unwrap_or(now).0;
    let from = match from {
        Some(from) => from.0,
        None => to
            .checked_sub(jiff::SignedDuration::from_hours(hours))
            .map_err(|_| Problem::invalid("from and to are not times of this world."))?,
    };
    if from >= to {
        return Err(Problem::invalid("from must be before to."));
    }
    Ok((from, to))
}

/// The time of a change.
pub(crate) fn now(app: &App) -> Result<jiff::Timestamp, Problem> {
    jiff::Timestamp::from_microsecond(app.clock.utc_us()).map_err(|error| Problem::internal(&error))
}

/// Pages that show the clinic's devices look again.
pub(crate) async fn state_changed(transaction: &TenantTransaction<'_>, tenant: Uuid) -> Result<(), Problem> {
    let notice = serde_json::json!({ "tenant": tenant }).to_string();
    transaction.run("SELECT pg_notify('kinara_state', $1)", &[&notice]).await.map(|_| ())
}

/// 404 unless this tenant has this wearer.
pub(crate) async fn known_user(transaction: &TenantTransaction<'_>, user: Uuid) -> Result<(), Problem> {
    match transaction.row("SELECT 1 FROM users WHERE id = $1", &[&user]).await? {
        Some(_) => Ok(()),
        None => Err(Problem::not_found("wearer")),
    }
}

/// Refuses a wearer of whom nothing new may be said: one who is being erased, with whom it would go.
pub(crate) async fn not_being_erased(transaction: &TenantTransaction<'_>, user: Uuid) -> Result<(), Problem> {
    match transaction.row("SELECT 1 FROM tombstones WHERE user_id = $1", &[&user]).await? {
        None => Ok(()),
        Some(_) => Err(Problem::conflict("This wearer is being erased.")),
    }
}
