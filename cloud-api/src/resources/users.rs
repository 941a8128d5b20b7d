//! Wearers: the people who wear a device. (Those who log in are members.)

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Items;
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Path, Problem};

/// A wearer.
#[derive(Debug, Serialize, ToSchema)]
pub struct User {
    /// Their id.
    pub id: Uuid,
    /// The clinic's own name for them.
    pub external_id: Option<String>,
    /// As shown.
    pub display_name: Option<String>,
    /// Their IANA time zone.
    pub time_zone: String,
    /// The devices they wear now.
    pub devices: Vec<Uuid>,
    /// They were added at a box, and nobody has said yet who they are.
    pub provisional: bool,
    /// At which box they were added.
    pub added_by_gateway: Option<Uuid>,
    /// Whom they turned out to be.
    pub merged_into: Option<Uuid>,
}

const SELECT: &str = "SELECT u.id, u.external_id, u.display_name, u.time_zone,
        ARRAY(SELECT d.id FROM devices d WHERE d.user_id = u.id ORDER BY d.id), u.provisional, u.added_by_gateway,
        u.merged_into
     FROM users u";

fn read(row: &tokio_postgres::Row) -> Result<User, Problem> {
    Ok(User {
        id: row.try_get(0)?,
        external_id: row.try_get(1)?,
        display_name: row.try_get(2)?,
        time_zone: row.try_get(3)?,
        devices: row.try_get(4)?,
        provisional: row.try_get(5)?,
        added_by_gateway: row.try_get(6)?,
        merged_into: row.try_get(7)?,
    })
}

/// One wearer, in a transaction that is under way.
pub(crate) async fn find(transaction: &TenantTransaction<'_>, id: Uuid) -> Result<User, Problem> {
    let row = transaction.row(&format!("{SELECT} WHERE u.id = $1"), &[&id]).await?;
    read(&row.ok_or_else(|| Problem::not_found("wearer"))?)
}

/// All wearers of the clinic, without those that were merged into others.
#[utoipa::path(get, path = "/api/v1/users", tag = "users",
    responses((status = 200, body = Items<User>)))]
pub async fn list(State(app): State<App>, member: Member) -> Result<Json<Items<User>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    let rows = transaction
        .rows(&format!("{SELECT} WHERE u.merged_into IS NULL ORDER BY u.display_name, u.id"), &[])
        .await?;
    Ok(Json(Items { items: rows.iter().map(read).collect::<Result<_, _>>()? }))
}

/// One wearer.
#[utoipa::path(get, path = "/api/v1/users/{id}", tag = "users", params(("id" = Uuid, Path, description = "The wearer")),
    responses(
        (status = 200, body = User),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json")))]
pub async fn one(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<User>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    find(&transaction, id).await.map(Json)
}
