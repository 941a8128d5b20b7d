//! Who may use the boxes' own pages, with a PIN of six digits.
//!
//! A PIN is the member's own: nobody sets or sees another's, an admin can take one back. The boxes get its argon2id
//! verifier with their configuration, and nothing reads it back here. Six digits are few: what protects them is that a
//! box locks out who guesses, and that the verifier is for the clinic's boxes alone.

use axum::Json;
use axum::extract::State;
use kinara_protocol::entry;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Items, now};
use crate::App;
use crate::access::{Member, Role};
use crate::auth::password;
use crate::database::TenantTransaction;
use crate::problem::{Body, Path, Problem};
use crate::times::UtcMs;

/// The longest name that a box shows.
const MAX_NAME: usize = 100;

/// A member, and whether they may use the boxes' pages.
#[derive(Debug, Serialize, ToSchema)]
pub struct StaffMember {
    /// Their id.
    pub id: Uuid,
    /// The address they log in with.
    pub email: String,
    /// What they may. A viewer may do nothing at a box.
    pub role: Role,
    /// The name that boxes show.
    pub box_name: Option<String>,
    /// Since when they have this PIN; null: none.
    pub pin_set_at: Option<UtcMs>,
}

const SELECT: &str = "SELECT m.id, m.email, m.role, p.name, p.set_at
     FROM members m LEFT JOIN staff_pins p ON p.member_id = m.id WHERE m.disabled_at IS NULL";

fn read(row: &tokio_postgres::Row) -> Result<StaffMember, Problem> {
    let role: String = row.try_get(2)?;
    let set: Option<jiff::Timestamp> = row.try_get(4)?;
    Ok(StaffMember {
        id: row.try_get(0)?,
        email: row.try_get(1)?,
        role: Role::parse(&role)
            .ok_or_else(|| Problem::internal(&format!("a member has the role {role:?}")))?,
        box_name: row.try_get(3)?,
        pin_set_at: set.map(UtcMs),
    })
}

async fn find(transaction: &TenantTransaction<'_>, id: Uuid) -> Result<StaffMember, Problem> {
    let row = transaction.row(&format!("{SELECT} AND m.id = $1"), &[&id]).await?;
    read(&row.ok_or_else(|| Problem::not_found("member"))?)
}

/// All members of the clinic.
#[utoipa::path(get, path = "/api/v1/staff", tag = "staff", responses((status = 200, body = Items<StaffMember>)))]
pub async fn list(State(app): State<App>, member: Member) -> Result<Json<Items<StaffMember>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    let rows = transaction.rows(&format!("{SELECT} ORDER BY m.email"), &[]).await?;
    Ok(Json(Items { items: rows.iter().map(read).collect::<Result<_, _>>()? }))
}

/// The member who asks.
#[utoipa::path(get, path = "/api/v1/staff/me", tag = "staff", responses((status = 200, body = StaffMember)))]
pub async fn me(State(app): State<App>, member: Member) -> Result<Json<StaffMember>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    find(&transaction, member.id).await.map(Json)
}

/// A new PIN.
#[derive(Deserialize, ToSchema)]
pub struct PinRequest {
    /// Six digits, not all the same and not in a row.
    #[schema(examples("407193"))]
    pub pin: String,
    /// The name that boxes show; the name or address of the member if left out.
    pub box_name: Option<String>,
}

/// Set one's own PIN for the boxes' pages.
#[utoipa::path(put, path = "/api/v1/staff/me/pin", tag = "staff", request_body = PinRequest,
    responses(
        (status = 200, body = StaffMember),
        (status = 422, description = "Not a good PIN", body = Problem, content_type = "application/problem+json")))]
pub async fn set_pin(
    State(app): State<App>,
    member: Member,
    Body(request): Body<PinRequest>,
) -> Result<Json<StaffMember>, Problem> {
    let pin = entry::chosen_pin(&request.pin).map_err(|bad| Problem::invalid(bad.to_string()))?;
    let name = match request.box_name.as_deref().map(|name| entry::name(name, MAX_NAME)) {
        None | Some(Err(entry::BadName::Blank)) => None,
        Some(name) => Some(name.map_err(|bad| Problem::invalid(format!("The name {bad}.")))?),
    };
    let verifier = app.passwords.hash_pin(pin).await?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    // Not `excluded.verifier`: reading even that needs a right to read verifiers.
    transaction
        .run(
            "INSERT INTO staff_pins (member_id, tenant_id, name, verifier, set_at)
             SELECT m.id, m.tenant_id, left(coalesce($2, m.name, m.email), 100), $3, $4 FROM members m WHERE m.id = $1
             ON CONFLICT (member_id) DO UPDATE
               SET name = coalesce($2, staff_pins.name), verifier = $3, set_at = $4",
            &[&member.id, &name, &verifier, &now(&app)?],
        )
        .await?;
    let target = format!("member:{}", member.id);
    transaction.audit(&member.actor(), "staff.pin", Some(&target), json!({})).await?;
    let staff = find(&transaction, member.id).await?;
    transaction.commit().await?;
    Ok(Json(staff))
}

/// Take a member's PIN back: the boxes forget it as soon as they hear of it.
#[utoipa::path(delete, path = "/api/v1/staff/{id}/pin", tag = "staff",
    params(("id" = Uuid, Path, description = "The member")),
    responses(
        (status = 200, body = StaffMember),
        (status = 404, description = "No such member", body = Problem, content_type = "application/problem+json")))]
pub async fn remove_pin(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<StaffMember>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let changed = transaction
        .run(
            "UPDATE staff_pins SET verifier = NULL, set_at = NULL WHERE member_id = $1 AND set_at IS NOT NULL",
            &[&id],
        )
        .await?;
    if changed > 0 {
        let target = format!("member:{id}");
        transaction.audit(&member.actor(), "staff.pin.remove", Some(&target), json!({})).await?;
    }
    let staff = find(&transaction, id).await?;
    transaction.commit().await?;
    Ok(Json(staff))
}

impl password::Checker {
    /// The verifier of a PIN, made off the event loop like a password's.
    async fn hash_pin(&self, pin: String) -> Result<String, Problem> {
        self.in_turn(move || password::hash_pin(&pin)).await?.map_err(|error| Problem::internal(&error))
    }
}
