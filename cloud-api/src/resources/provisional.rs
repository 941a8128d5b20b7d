//! Wearers that somebody added at a box: a person of the clinic says who they are, a new wearer or one known already.
//!
//! A merge is felt at once by what comes from then on (assignments and consents change hands in this transaction); what is
//! stored already moves in the minutes after it, by the bridge's upkeep.

use axum::Json;
use axum::extract::State;
use kinara_protocol::entry::{self, BadName};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::users::{self, User};
use super::{not_being_erased, now, state_changed};
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Body, Path, Problem};

/// Who a provisional wearer is, where the box did not know it better.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ConfirmRequest {
    /// As shown; left as the box said if left out.
    pub display_name: Option<String>,
    /// The clinic's own name for them.
    pub external_id: Option<String>,
}

/// Who a provisional wearer turned out to be.
#[derive(Debug, Deserialize, ToSchema)]
pub struct MergeRequest {
    /// The wearer that they are.
    pub into: Uuid,
}

struct Found {
    provisional: bool,
    merged_into: Option<Uuid>,
}

async fn find(transaction: &TenantTransaction<'_>, id: Uuid) -> Result<Found, Problem> {
    let row = transaction
        .row("SELECT provisional, merged_into FROM users WHERE id = $1 FOR UPDATE", &[&id])
        .await?
        .ok_or_else(|| Problem::not_found("wearer"))?;
    Ok(Found { provisional: row.try_get(0)?, merged_into: row.try_get(1)? })
}

/// What was typed into a field that may be left empty.
fn typed(
    text: Option<&str>,
    what: &str,
    read: impl Fn(&str, usize) -> Result<String, BadName>,
) -> Result<Option<String>, Problem> {
    match text.map(|text| read(text, entry::LONGEST_NAME)) {
        None | Some(Err(BadName::Blank)) => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(bad)) => Err(Problem::invalid(format!("{what} {bad}."))),
    }
}

/// Say that a wearer whom a box added is a new one. Saying it again changes nothing.
#[utoipa::path(post, path = "/api/v1/users/{id}/confirm", tag = "users", request_body = ConfirmRequest,
    params(("id" = Uuid, Path, description = "The provisional wearer")),
    responses(
        (status = 200, body = User),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The external id is another wearer's, or they are being erased", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "They were merged", body = Problem, content_type = "application/problem+json")))]
pub async fn confirm(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
    Body(request): Body<ConfirmRequest>,
) -> Result<Json<User>, Problem> {
    let display_name = typed(request.display_name.as_deref(), "The name", entry::name)?;
    let external_id = typed(request.external_id.as_deref(), "The number", entry::reference)?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let found = find(&transaction, id).await?;
    if found.merged_into.is_some() {
        return Err(Problem::invalid("This wearer was merged into another one; confirm that one."));
    }
    if found.provisional {
        not_being_erased(&transaction, id).await?;
        if let Some(external_id) = &external_id {
            let taken = transaction
                .row("SELECT 1 FROM users WHERE external_id = $1 AND id <> $2", &[&external_id, &id])
                .await?;
            if taken.is_some() {
                return Err(Problem::conflict(
                    "Another wearer has this external id. If it is the same person, merge them.",
                ));
            }
        }
        let at = now(&app)?;
        transaction
            .run(
                "UPDATE users SET provisional = false, confirmed_at = $2, updated_at = $2,
                   display_name = coalesce($3, display_name), external_id = coalesce($4, external_id) WHERE id = $1",
                &[&id, &at, &display_name, &external_id],
            )
            .await?;
        let detail = json!({ "external_id": external_id });
        transaction.audit(&member.actor(), "wearer.confirm", Some(&format!("user:{id}")), detail).await?;
    }
    let user = users::find(&transaction, id).await?;
    transaction.commit().await?;
    Ok(Json(user))
}

/// Say that a wearer whom a box added is one known already. Saying it again changes nothing.
#[utoipa::path(post, path = "/api/v1/users/{id}/merge", tag = "users", request_body = MergeRequest,
    params(("id" = Uuid, Path, description = "The provisional wearer")),
    responses(
        (status = 200, description = "Whom they were merged into", body = User),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Not these two", body = Problem, content_type = "application/problem+json")))]
pub async fn merge(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
    Body(MergeRequest { into }): Body<MergeRequest>,
) -> Result<Json<User>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    // In the order of their ids: two people who merge at once take turns.
    let (low, high) = (id.min(into), id.max(into));
    let (first, second) = (find(&transaction, low).await?, find(&transaction, high).await?);
    let (found, target) = if id < into { (first, second) } else { (second, first) };
    if found.merged_into != Some(into) {
        if id == into {
            return Err(Problem::invalid("A wearer cannot be merged into themselves."));
        }
        if found.merged_into.is_some() || target.merged_into.is_some() {
            return Err(Problem::invalid("One of these wearers was merged already. Load the page again."));
        }
        if !found.provisional {
            return Err(Problem::invalid("Only a provisional wearer, added at a box, can be merged."));
        }
        carry_out(&transaction, id, into, now(&app)?).await?;
        let detail = json!({ "into": into });
        transaction.audit(&member.actor(), "wearer.merge", Some(&format!("user:{id}")), detail).await?;
        state_changed(&transaction, member.tenant).await?;
    }
    let user = users::find(&transaction, into).await?;
    transaction.commit().await?;
    Ok(Json(user))
}

async fn carry_out(
    transaction: &TenantTransaction<'_>,
    id: Uuid,
    into: Uuid,
    at: jiff::Timestamp,
) -> Result<(), Problem> {
    transaction
        .run(
            "UPDATE users SET merged_into = $2, merged_at = $3, updated_at = $3 WHERE id = $1 OR merged_into = $1",
            &[&id, &into, &at],
        )
        .await?;
    for table in ["device_assignments", "consents", "devices"] {
        transaction
            .run(&format!("UPDATE {table} SET user_id = $2 WHERE user_id = $1"), &[&id, &into])
            .await?;
    }
    transaction
        .run(
            "INSERT INTO moves (id, tenant_id, from_user, to_user, asked_at)
             VALUES ($1, (select current_tenant()), $2, $3, $4)",
            &[&Uuid::now_v7(), &id, &into, &at],
        )
        .await?;
    Ok(())
}
