//! Alerts, and the rules by which a clinic has them raised.
//!
//! A rule is made and ended, never changed: an alert names its rule, which must still say what it asked for.

use axum::Json;
use axum::extract::State;
use kinara_protocol::{channel, entry, event};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Items, known_user, not_being_erased, now};
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Body, Path, Problem, Query, whole, yes_or_no};
use crate::times::UtcMs;

/// Alerts of a question that does not say how many.
const DEFAULT_LIMIT: u32 = 100;
/// The longest name of a rule, in characters.
const LONGEST_NAME: usize = 100;
/// Rules that a clinic has at most.
const MAX_RULES: i64 = 200;

/// Something that somebody has to look at.
#[derive(Debug, Serialize, ToSchema)]
pub struct Alert {
    /// Its id.
    pub id: Uuid,
    /// `event` and `reading`: by a rule; `rows` and `frames`: the nightly comparison found that something is missing.
    pub kind: String,
    /// By which rule; null: by none, or by one that is no more.
    pub rule_id: Option<Uuid>,
    /// About whom; null: about nobody in particular.
    pub user_id: Option<Uuid>,
    /// In words.
    pub title: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// The first time at which it held.
    pub from_at: UtcMs,
    /// The last.
    pub to_at: UtcMs,
    /// What the rule asks for, or what was found.
    pub data: serde_json::Value,
    /// When it was raised: later than it held, where readings came late.
    pub raised_at: UtcMs,
    /// When somebody said it was dealt with.
    pub acknowledged_at: Option<UtcMs>,
    /// Which member.
    pub acknowledged_by: Option<Uuid>,
}

macro_rules! select {
    ($more:literal) => {
        concat!(
            "SELECT id, kind, rule_id, user_id, title, severity, from_time, to_time, data, raised_at, acknowledged_at,
               acknowledged_by FROM alerts WHERE withdrawn_at IS NULL ",
            $more
        )
    };
}

const SELECT: &str = select!("");
/// The newest alerts about a wearer ($1; null: all of the clinic's), those that nobody has dealt with alone ($2), so many ($3).
pub const NEWEST: &str = select!(
    "AND ($1::uuid IS NULL OR user_id = $1) AND (NOT $2 OR acknowledged_at IS NULL) ORDER BY raised_at DESC, id LIMIT $3"
);

fn read(row: &tokio_postgres::Row) -> Result<Alert, Problem> {
    let acknowledged: Option<jiff::Timestamp> = row.try_get(10)?;
    Ok(Alert {
        id: row.try_get(0)?,
        kind: row.try_get(1)?,
        rule_id: row.try_get(2)?,
        user_id: row.try_get(3)?,
        title: row.try_get(4)?,
        severity: row.try_get(5)?,
        from_at: UtcMs(row.try_get(6)?),
        to_at: UtcMs(row.try_get(7)?),
        data: row.try_get(8)?,
        raised_at: UtcMs(row.try_get(9)?),
        acknowledged_at: acknowledged.map(UtcMs),
        acknowledged_by: row.try_get(11)?,
    })
}

/// Which alerts.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AlertsQuery {
    /// About this wearer alone.
    user_id: Option<Uuid>,
    /// `true`: those that nobody has dealt with.
    #[serde(default, deserialize_with = "yes_or_no")]
    open: Option<bool>,
    /// Most alerts to answer; 100 if left out.
    #[param(minimum = 1)]
    limit: Option<u32>,
}

/// Alerts, the newest first. One that does not hold any more (its readings are another wearer's) is not among them.
#[utoipa::path(get, path = "/api/v1/alerts", tag = "alerts", params(AlertsQuery),
    responses(
        (status = 200, body = Items<Alert>),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    member: Member,
    Query(query): Query<AlertsQuery>,
) -> Result<Json<Items<Alert>>, Problem> {
    let most = app.config.limits.events;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT.min(most));
    if limit == 0 || limit > most {
        return Err(Problem::invalid(format!("limit must be 1 to {most}.")));
    }
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    if let Some(user) = query.user_id {
        known_user(&transaction, user).await?;
    }
    let open = query.open.unwrap_or(false);
    let rows = transaction.rows(NEWEST, &[&query.user_id, &open, &i64::from(limit)]).await?;
    Ok(Json(Items { items: rows.iter().map(read).collect::<Result<_, _>>()? }))
}

/// Say that an alert was seen and dealt with. Saying it again changes nothing.
#[utoipa::path(post, path = "/api/v1/alerts/{id}/acknowledge", tag = "alerts",
    params(("id" = Uuid, Path, description = "The alert")),
    responses(
        (status = 200, body = Alert),
        (status = 403, description = "Needs the role clinician", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such alert", body = Problem, content_type = "application/problem+json")))]
pub async fn acknowledge(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<Alert>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let changed = transaction
        .run(
            "UPDATE alerts SET acknowledged_at = $2, acknowledged_by = $3
             WHERE id = $1 AND acknowledged_at IS NULL AND withdrawn_at IS NULL",
            &[&id, &now(&app)?, &member.id],
        )
        .await?;
    let row = transaction.row(&format!("{SELECT} AND id = $1"), &[&id]).await?;
    let alert = read(&row.ok_or_else(|| Problem::not_found("alert"))?)?;
    if changed > 0 {
        let detail = json!({ "title": alert.title, "severity": alert.severity, "user_id": alert.user_id });
        transaction.audit(&member.actor(), "alert.acknowledge", Some(&format!("alert:{id}")), detail).await?;
        alerts_changed(&transaction, member.tenant).await?;
    }
    transaction.commit().await?;
    Ok(Json(alert))
}

async fn alerts_changed(transaction: &TenantTransaction<'_>, tenant: Uuid) -> Result<(), Problem> {
    let notice = json!({ "tenant": tenant }).to_string();
    transaction.run("SELECT pg_notify('kinara_alert', $1)", &[&notice]).await.map(|_| ())
}

/// When an alert is raised: for an event of a kind, or when the means of so many minutes one after another are above or
/// below a bound.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleRequest {
    /// What its alerts are called.
    pub name: String,
    /// How grave they are: `info`, `warning` or `critical`.
    pub severity: String,
    /// About this wearer alone; all if left out.
    #[serde(default)]
    pub user_id: Option<Uuid>,
    /// Of an event: its kind.
    #[schema(examples("hot_flash"))]
    #[serde(default)]
    pub event_type: Option<String>,
    /// Of an event: how sure it must be, 0 to 1.
    #[serde(default)]
    pub least_confidence: Option<f32>,
    /// Of a reading: its type.
    #[schema(examples("heart_rate"))]
    #[serde(default)]
    pub reading_type: Option<String>,
    /// Of a reading: above this,
    #[serde(default)]
    pub above: Option<f64>,
    /// or below this.
    #[serde(default)]
    pub below: Option<f64>,
    /// Of a reading: for so many minutes, 1 to 720.
    #[serde(default, deserialize_with = "whole")]
    pub minutes: Option<i16>,
}

/// A rule.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rule {
    /// Its id.
    pub id: Uuid,
    /// What it asks for.
    #[serde(flatten)]
    pub rule: RuleRequest,
    /// Since when. What was before is not looked at.
    pub created_at: UtcMs,
    /// Since when it holds no more.
    pub ended_at: Option<UtcMs>,
}

/// A rule of somebody who was merged is one of whoever they turned out to be.
const RULES: &str =
    "SELECT r.id, r.name, r.severity, coalesce(u.merged_into, r.user_id), r.event_type, r.least_confidence, c.name,
        r.above, r.below, r.minutes, r.created_at, r.ended_at FROM alert_rules r LEFT JOIN channels c ON c.type = r.type
        LEFT JOIN users u ON u.id = r.user_id";

fn read_rule(row: &tokio_postgres::Row) -> Result<Rule, Problem> {
    let ended: Option<jiff::Timestamp> = row.try_get(11)?;
    Ok(Rule {
        id: row.try_get(0)?,
        rule: RuleRequest {
            name: row.try_get(1)?,
            severity: row.try_get(2)?,
            user_id: row.try_get(3)?,
            event_type: row.try_get(4)?,
            least_confidence: row.try_get(5)?,
            reading_type: row.try_get(6)?,
            above: row.try_get(7)?,
            below: row.try_get(8)?,
            minutes: row.try_get(9)?,
        },
        created_at: UtcMs(row.try_get(10)?),
        ended_at: ended.map(UtcMs),
    })
}

/// The clinic's rules that hold, by name.
#[utoipa::path(get, path = "/api/v1/alert-rules", tag = "alerts", responses((status = 200, body = Items<Rule>)))]
pub async fn rules(State(app): State<App>, member: Member) -> Result<Json<Items<Rule>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    let rows =
        transaction.rows(&format!("{RULES} WHERE r.ended_at IS NULL ORDER BY r.name, r.id"), &[]).await?;
    Ok(Json(Items { items: rows.iter().map(read_rule).collect::<Result<_, _>>()? }))
}

/// Refuses what is no rule, and a rule that could never raise an alert.
fn check(rule: &RuleRequest) -> Result<(), Problem> {
    let name = entry::name(&rule.name, LONGEST_NAME);
    match &name {
        Ok(name) if *name == rule.name => {}
        Ok(_) => {
            return Err(Problem::invalid("A rule's name has no space around it, and single ones in it."));
        }
        Err(bad) => return Err(Problem::invalid(format!("The name {bad}."))),
    }
    if !["info", "warning", "critical"].contains(&rule.severity.as_str()) {
        return Err(Problem::invalid("severity must be info, warning or critical."));
    }
    let of_event = rule.event_type.is_some() || rule.least_confidence.is_some();
    let of_reading =
        rule.reading_type.is_some() || rule.above.is_some() || rule.below.is_some() || rule.minutes.is_some();
    match (of_event, of_reading) {
        (true, false) => check_event(rule),
        (false, true) => check_reading(rule),
        _ => Err(Problem::invalid(
            "A rule is either of an event (event_type) or of a reading (reading_type, above or below, minutes).",
        )),
    }
}

fn check_event(rule: &RuleRequest) -> Result<(), Problem> {
    let kind = rule.event_type.as_deref().and_then(event::by_name).ok_or_else(|| {
        let kinds: Vec<&str> = event::REGISTRY.iter().map(|kind| kind.name).collect();
        Problem::invalid(format!("event_type must be one of {}.", kinds.join(", ")))
    })?;
    match rule.least_confidence {
        Some(_) if !kind.has_confidence => Err(Problem::invalid(format!(
            "{} comes without a confidence; leave least_confidence out.",
            kind.name
        ))),
        Some(least) if !(0.0..=1.0).contains(&least) => {
            Err(Problem::invalid("least_confidence must be 0 to 1."))
        }
        _ => Ok(()),
    }
}

fn check_reading(rule: &RuleRequest) -> Result<(), Problem> {
    let channel = rule.reading_type.as_deref().and_then(channel::by_name);
    let channel = channel.filter(|channel| channel.has_minute_means()).ok_or_else(|| {
        let with_means = channel::REGISTRY.iter().filter(|channel| channel.has_minute_means());
        let names: Vec<&str> = with_means.map(|channel| channel.name).collect();
        Problem::invalid(format!(
            "reading_type must be one of those of which means of minutes are kept: {}.",
            names.join(", ")
        ))
    })?;
    let (low, high) = channel.range;
    // A mean is within the range, both ends included: above the highest and below the lowest there is none.
    let (side, bound, can_be) = match (rule.above, rule.below) {
        (Some(bound), None) => ("above", bound, low <= bound && bound < high),
        (None, Some(bound)) => ("below", bound, low < bound && bound <= high),
        _ => return Err(Problem::invalid("Give either above or below.")),
    };
    if !can_be {
        return Err(Problem::invalid(format!(
            "{side} {bound} {unit} would never raise an alert, or always: {name} is {low} to {high} {unit}.",
            unit = channel.unit,
            name = channel.name
        )));
    }
    if !rule.minutes.is_some_and(|minutes| (1..=720).contains(&minutes)) {
        return Err(Problem::invalid("minutes must be 1 to 720."));
    }
    Ok(())
}

/// Refuses a rule about somebody of whom nothing will be stored any more.
async fn may_have_a_rule(transaction: &TenantTransaction<'_>, user: Uuid) -> Result<(), Problem> {
    let row = transaction.row("SELECT merged_into FROM users WHERE id = $1 FOR KEY SHARE", &[&user]).await?;
    let row = row.ok_or_else(|| Problem::not_found("wearer"))?;
    if row.try_get::<_, Option<Uuid>>(0)?.is_some() {
        return Err(Problem::invalid("This wearer was merged into another one; make the rule for that one."));
    }
    not_being_erased(transaction, user).await
}

/// Make a rule. It holds from now on, also for readings that come late.
#[utoipa::path(post, path = "/api/v1/alert-rules", tag = "alerts", request_body = RuleRequest,
    responses(
        (status = 200, body = Rule),
        (status = 403, description = "Needs the role clinician", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "They are being erased", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Not a good rule, or a wearer who was merged", body = Problem, content_type = "application/problem+json")))]
pub async fn add_rule(
    State(app): State<App>,
    member: Member,
    Body(request): Body<RuleRequest>,
) -> Result<Json<Rule>, Problem> {
    check(&request)?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    if let Some(user) = request.user_id {
        may_have_a_rule(&transaction, user).await?;
    }
    let there: i64 = transaction
        .row("SELECT count(*) FROM alert_rules WHERE ended_at IS NULL", &[])
        .await?
        .map_or(Ok(0), |row| row.try_get(0))?;
    if there >= MAX_RULES {
        return Err(Problem::invalid(format!("A clinic has at most {MAX_RULES} rules. End one first.")));
    }
    let channel: Option<i16> = match &request.reading_type {
        None => None,
        Some(name) => {
            let row = transaction.row("SELECT type FROM channels WHERE name = $1", &[name]).await?;
            let row = row.ok_or_else(|| {
                Problem::invalid("reading_type must name a type of reading, such as heart_rate.")
            })?;
            Some(row.try_get(0)?)
        }
    };
    let id = Uuid::now_v7();
    transaction
        .run(
            "INSERT INTO alert_rules (id, tenant_id, name, severity, user_id, event_type, least_confidence, type, above,
               below, minutes, created_at)
             VALUES ($1, (select current_tenant()), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &[
                &id,
                &request.name,
                &request.severity,
                &request.user_id,
                &request.event_type,
                &request.least_confidence,
                &channel,
                &request.above,
                &request.below,
                &request.minutes,
                &now(&app)?,
            ],
        )
        .await?;
    let row = transaction.row(&format!("{RULES} WHERE r.id = $1"), &[&id]).await?;
    let rule = read_rule(&row.ok_or_else(|| Problem::internal(&"a rule that was just made is not there"))?)?;
    let detail = serde_json::to_value(&rule.rule).map_err(|error| Problem::internal(&error))?;
    transaction.audit(&member.actor(), "alert_rule.add", Some(&format!("alert_rule:{id}")), detail).await?;
    transaction.commit().await?;
    Ok(Json(rule))
}

/// End a rule. The alerts that it raised stay. Ending it again changes nothing.
#[utoipa::path(delete, path = "/api/v1/alert-rules/{id}", tag = "alerts",
    params(("id" = Uuid, Path, description = "The rule")),
    responses(
        (status = 200, body = Rule),
        (status = 403, description = "Needs the role clinician", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such rule", body = Problem, content_type = "application/problem+json")))]
pub async fn end_rule(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<Rule>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let changed = transaction
        .run("UPDATE alert_rules SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL", &[&id, &now(&app)?])
        .await?;
    let row = transaction.row(&format!("{RULES} WHERE r.id = $1"), &[&id]).await?;
    let rule = read_rule(&row.ok_or_else(|| Problem::not_found("rule"))?)?;
    if changed > 0 {
        let detail = json!({ "name": rule.rule.name });
        transaction
            .audit(&member.actor(), "alert_rule.end", Some(&format!("alert_rule:{id}")), detail)
            .await?;
    }
    transaction.commit().await?;
    Ok(Json(rule))
}
