//! One's own way in: the password, and the sessions that are open.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Items, now};
use crate::App;
use crate::access::Member;
use crate::auth::password;
use crate::database::TenantTransaction;
use crate::problem::{Body, Path, Peer, Problem};
use crate::times::UtcMs;

/// The password as it is, and as it is to be.
#[derive(Deserialize, ToSchema)]
pub struct PasswordRequest {
    /// As it is.
    pub current_password: String,
    /// As it is to be: 10 to 256 characters.
    pub new_password: String,
}

fn another() -> Problem {
    Problem::invalid("The present password is another.")
}

/// Change one's own password. All other sessions of the member are ended.
#[utoipa::path(put, path = "/api/v1/staff/me/password", tag = "staff", request_body = PasswordRequest,
    responses(
        (status = 200, description = "Changed; the sessions that are left", body = Items<OpenSession>),
        (status = 422, description = "The present password is another, or the new one is too short or long", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many failures", body = Problem, content_type = "application/problem+json")))]
pub async fn set_password(
    State(app): State<App>,
    member: Member,
    Peer(peer): Peer,
    headers: HeaderMap,
    Body(request): Body<PasswordRequest>,
) -> Result<Json<Items<OpenSession>>, Problem> {
    let (email, stored) = {
        let mut connection = app.database.connection().await?;
        let transaction = connection.tenant(member.tenant).await?;
        let statement = "SELECT email, password_hash FROM members WHERE id = $1";
        let row = transaction.row(statement, &[&member.id]).await?;
        let row = row.ok_or_else(|| Problem::not_found("member"))?;
        (row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)
    };
    // A stolen session guesses no better than a stranger.
    let from = app.proxies.client(peer, &headers);
    app.login_limit.attempt(from, &email).map_err(|seconds| {
        Problem::too_many(format!("Too many failures. Try again in {seconds} s."), seconds)
    })?;
    // What takes long holds neither a connection nor the member's row.
    let fits = app.passwords.check(request.current_password, Some(stored.clone())).await;
    // Nobody was refused: we could not look.
    let fits = fits.inspect_err(|_| app.login_limit.give_back(from, &email))?;
    if !fits {
        return Err(another());
    }
    app.login_limit.succeeded(from, &email);
    let hash = app.passwords.in_turn(move || password::hash(&request.new_password)).await?;
    let hash = hash.map_err(|error| Problem::invalid(format!("{error}.")))?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let statement = "SELECT 1 FROM members WHERE id = $1 AND password_hash = $2 FOR NO KEY UPDATE";
    // None: it was changed meanwhile, and what was looked at is not the present one.
    transaction.row(statement, &[&member.id, &stored]).await?.ok_or_else(another)?;
    transaction.run("UPDATE members SET password_hash = $2 WHERE id = $1", &[&member.id, &hash]).await?;
    transaction
        .run(
            "UPDATE sessions SET revoked_at = $3 WHERE member_id = $1 AND family <> $2 AND revoked_at IS NULL",
            &[&member.id, &member.session, &now(&app)?],
        )
        .await?;
    let target = format!("member:{}", member.id);
    transaction.audit(&member.actor(), "member.password", Some(&target), json!({})).await?;
    let left = open(&app, &transaction, &member).await?;
    transaction.commit().await?;
    app.standings.ask_again();
    Ok(Json(left))
}

/// A session that is open.
#[derive(Debug, Serialize, ToSchema)]
pub struct OpenSession {
    /// Its id.
    pub id: Uuid,
    /// When somebody logged in.
    pub began_at: UtcMs,
    /// When it was used last, to within the life of an access token.
    pub used_at: UtcMs,
    /// It is the one that asks.
    pub own: bool,
}

/// One's own sessions that are open, the one used last first.
#[utoipa::path(get, path = "/api/v1/staff/me/sessions", tag = "staff",
    responses((status = 200, body = Items<OpenSession>)))]
pub async fn sessions(State(app): State<App>, member: Member) -> Result<Json<Items<OpenSession>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    open(&app, &transaction, &member).await.map(Json)
}

async fn open(
    app: &App,
    transaction: &TenantTransaction<'_>,
    member: &Member,
) -> Result<Items<OpenSession>, Problem> {
    let rows = transaction
        .rows(
            "SELECT family, min(created_at), max(created_at) FROM sessions WHERE member_id = $1
             GROUP BY family HAVING bool_or(revoked_at IS NULL AND used_at IS NULL AND expires_at > $2)
             ORDER BY 3 DESC",
            &[&member.id, &now(app)?],
        )
        .await?;
    let read = |row: &tokio_postgres::Row| {
        let id: Uuid = row.try_get(0)?;
        Ok(OpenSession {
            id,
            began_at: UtcMs(row.try_get(1)?),
            used_at: UtcMs(row.try_get(2)?),
            own: id == member.session,
        })
    };
    Ok(Items { items: rows.iter().map(read).collect::<Result<_, Problem>>()? })
}

/// End one of one's own sessions. Ending it again changes nothing.
#[utoipa::path(delete, path = "/api/v1/staff/me/sessions/{id}", tag = "staff",
    params(("id" = Uuid, Path, description = "The session")),
    responses(
        (status = 200, description = "It is over; the sessions that are left", body = Items<OpenSession>),
        (status = 404, description = "No such session of this member", body = Problem, content_type = "application/problem+json")))]
pub async fn end_session(
    State(app): State<App>,
    member: Member,
    Path(id): Path<Uuid>,
) -> Result<Json<Items<OpenSession>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let own = "SELECT 1 FROM sessions WHERE family = $1 AND member_id = $2 LIMIT 1";
    transaction.row(own, &[&id, &member.id]).await?.ok_or_else(|| Problem::not_found("session"))?;
    let changed = transaction
        .run(
            "UPDATE sessions SET revoked_at = $3 WHERE family = $1 AND member_id = $2 AND revoked_at IS NULL",
            &[&id, &member.id, &now(&app)?],
        )
        .await?;
    if changed > 0 {
        transaction.audit(&member.actor(), "session.end", None, json!({ "session": id })).await?;
    }
    let left = open(&app, &transaction, &member).await?;
    transaction.commit().await?;
    app.standings.ended(id);
    Ok(Json(left))
}
