//! Logging in, staying logged in, logging out.
//!
//! The promise: an access token is good for 15 minutes, and for some seconds once its session was ended ([`standing`]); it is
//! never stored here. The refresh token is random, kept as a
//! hash, and works once: its use makes the next. Whoever uses one a second time (the thief or the robbed, nobody can
//! tell) ends the whole session. It travels in a cookie that scripts cannot read and other sites cannot send.

pub mod key;
pub mod limit;
pub mod password;
pub mod standing;
pub mod token;

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use kinara_protocol::entry;
use rand::TryRngCore as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::App;
use crate::access::Role;
use crate::database::{SessionRow, TenantTransaction};
use crate::problem::{Body, Peer, Problem};

const COOKIE: &str = "kinara_refresh";
const COOKIE_PATH: &str = "/api/v1/auth";
/// Random bytes of a refresh token.
const REFRESH_BYTES: usize = 32;
/// The longest address that is looked at.
const MAX_EMAIL: usize = 255;

/// Address and password.
#[derive(Deserialize, ToSchema)]
pub struct LoginRequest {
    /// The address a member was added with.
    #[schema(examples("doctor@clinic.example"))]
    pub email: String,
    /// Their password.
    pub password: String,
}

/// Who is logged in, and the token that says so.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoginAnswer {
    /// To be sent as `Authorization: Bearer …`.
    pub access_token: String,
    /// Seconds until it ends.
    pub expires_in: i64,
    /// Who.
    pub member: MemberAnswer,
    /// Of which clinic.
    pub tenant: TenantAnswer,
}

/// A member.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberAnswer {
    /// Their id.
    pub id: Uuid,
    /// Their address.
    pub email: String,
    /// What they may.
    pub role: Role,
}

/// A clinic.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantAnswer {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its short name.
    pub slug: String,
    /// Its IANA time zone.
    pub time_zone: String,
}

/// Other sites' pages may not log anybody in, out or on.
fn same_site(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(Problem::forbidden("This can only be asked by Kinara's own page.")),
    }
}

fn cookie(app: &App, value: &str, seconds: u64) -> Result<HeaderValue, Problem> {
    let secure = if app.config.behind_tls() { "; Secure" } else { "" };
    let text =
        format!("{COOKIE}={value}; Path={COOKIE_PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).map_err(|error| Problem::internal(&error))
}

fn refresh_token(headers: &HeaderMap) -> Option<Vec<u8>> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .and_then(|(_, value)| hex::decode(value).ok())
        .filter(|token| token.len() == REFRESH_BYTES)
}

fn now(app: &App) -> Result<Timestamp, Problem> {
    Timestamp::from_microsecond(app.clock.utc_us()).map_err(|error| Problem::internal(&error))
}

fn later(from: Timestamp, seconds: u64) -> Timestamp {
    from.saturating_add(jiff::SignedDuration::from_secs(seconds as i64)).unwrap_or(Timestamp::MAX)
}

/// Writes a new refresh token into the transaction.
async fn new_refresh(
    app: &App,
    transaction: &TenantTransaction<'_>,
    member: Uuid,
    family: Uuid,
    ends: Timestamp,
) -> Result<String, Problem> {
    let mut token = [0u8; REFRESH_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut token).map_err(|error| Problem::internal(&error))?;
    let created = now(app)?;
    let expires = later(created, app.config.login.idle_s).min(ends);
    transaction
        .run(
            "INSERT INTO sessions (id, tenant_id, member_id, family, token_hash, created_at, expires_at)
             VALUES ($1, (select current_tenant()), $2, $3, $4, $5, $6)",
            &[&Uuid::now_v7(), &member, &family, &Sha256::digest(token).as_slice(), &created, &expires],
        )
        .await?;
    Ok(hex::encode(token))
}

/// The answer for a member who is still one.
async fn answer(
    app: &App,
    transaction: &TenantTransaction<'_>,
    member: Uuid,
    family: Uuid,
) -> Result<Option<LoginAnswer>, Problem> {
    let row = transaction
        .row(
            "SELECT m.email, m.role, t.id, t.name, t.slug, t.time_zone
             FROM members m JOIN tenants t ON t.id = m.tenant_id WHERE m.id = $1 AND m.disabled_at IS NULL",
            &[&member],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let role: String = row.try_get(1)?;
    let role =
        Role::parse(&role).ok_or_else(|| Problem::internal(&format!("a member has the role {role:?}")))?;
    let tenant: Uuid = row.try_get(2)?;
    let (access_token, expires_in) = app.tokens.issue(member, tenant, role, family)?;
    Ok(Some(LoginAnswer {
        access_token,
        expires_in,
        member: MemberAnswer { id: member, email: row.try_get(0)?, role },
        tenant: TenantAnswer {
            id: tenant,
            name: row.try_get(3)?,
            slug: row.try_get(4)?,
            time_zone: row.try_get(5)?,
        },
    }))
}

fn with_cookie(app: &App, answer: LoginAnswer, refresh: &str) -> Result<Response, Problem> {
    let mut response = Json(answer).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie(app, refresh, app.config.login.idle_s)?);
    Ok(response)
}

/// The refusal of a refresh token, which also takes the cookie away.
fn over(app: &App) -> Response {
    let mut response = Problem::unauthenticated("The session is over. Log in again.").into_response();
    if let Ok(gone) = cookie(app, "", 0) {
        response.headers_mut().insert(header::SET_COOKIE, gone);
    }
    response
}

/// Log in.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "auth", request_body = LoginRequest,
    responses(
        (status = 200, description = "Logged in; the refresh token is in a cookie", body = LoginAnswer),
        (status = 401, description = "Address or password is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many failures", body = Problem, content_type = "application/problem+json")),
    security(()))]
pub async fn login(
    State(app): State<App>,
    Peer(peer): Peer,
    headers: HeaderMap,
    Body(request): Body<LoginRequest>,
) -> Result<Response, Problem> {
    same_site(&headers)?;
    // What is no address is looked for as it was typed: nobody has it, or a release before took it.
    let typed = request.email.trim();
    let email = entry::email(typed).unwrap_or_else(|_| typed.to_owned());
    if email.len() > MAX_EMAIL || request.password.len() > password::MAX_PASSWORD * 4 || email.contains('\0')
    {
        return Err(Problem::invalid("Address or password is longer than any can be."));
    }
    let from = app.proxies.client(peer, &headers);
    app.login_limit.attempt(from, &email).map_err(|seconds| {
        app.metrics.logins("limited");
        Problem::too_many(format!("Too many failed logins. Try again in {seconds} s."), seconds)
    })?;
    let outcome = try_login(&app, from, (&email, typed), request.password).await;
    if outcome.as_ref().is_err_and(|problem| problem.status().is_server_error()) {
        // Nobody was refused: we could not look.
        app.login_limit.give_back(from, &email);
    }
    outcome
}

async fn try_login(
    app: &App,
    from: Option<IpAddr>,
    (email, typed): (&str, &str),
    password: String,
) -> Result<Response, Problem> {
    let stranger = app.database.stranger().await?;
    let mut found = stranger.login_lookup(email).await?;
    // A release before took addresses with what cannot be seen in them.
    if found.is_none() && typed != email && typed.len() <= MAX_EMAIL && !typed.contains('\0') {
        found = stranger.login_lookup(typed).await?;
    }
    drop(stranger);
    let stored = found.as_ref().map(|row| row.password_hash.clone());
    let fits = app.passwords.check(password, stored).await?;
    let address = from.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
    let refused = || Problem::unauthenticated("Address or password is wrong.");
    let row = match found {
        Some(row) if fits => row,
        known => {
            app.metrics.logins("refused");
            if let Some(row) = known {
                // Not waited for: the answer takes as long as for an address that nobody has.
                tokio::spawn(audit_refusal(app.clone(), row.tenant, row.member, address));
            }
            return Err(refused());
        }
    };
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(row.tenant).await?;
    let family = Uuid::now_v7();
    let Some(answer) = answer(app, &transaction, row.member, family).await? else {
        return Err(refused());
    };
    let ends = later(now(app)?, app.config.login.session_s);
    let refresh = new_refresh(app, &transaction, row.member, family, ends).await?;
    transaction
        .run("UPDATE members SET last_login_at = $2 WHERE id = $1", &[&row.member, &now(app)?])
        .await?;
    // Tokens of sessions that are over in any case. Younger ones stay, so that their reuse is still seen.
    let oldest = now(app)?
        .saturating_sub(jiff::SignedDuration::from_secs(app.config.login.session_s as i64))
        .unwrap_or(Timestamp::MIN);
    transaction
        .run("DELETE FROM sessions WHERE member_id = $1 AND created_at < $2", &[&row.member, &oldest])
        .await?;
    let actor = format!("member:{}", row.member);
    transaction.audit(&actor, "login", None, json!({ "address": address, "session": family })).await?;
    transaction.commit().await?;
    app.login_limit.succeeded(from, email);
    app.metrics.logins("accepted");
    with_cookie(app, answer, &refresh)
}

async fn audit_refusal(app: App, tenant: Uuid, member: Uuid, address: String) {
    let written = async {
        let mut connection = app.database.connection().await?;
        let transaction = connection.tenant_write(tenant).await?;
        let target = format!("member:{member}");
        transaction.audit("anonymous", "login.refused", Some(&target), json!({ "address": address })).await?;
        transaction.commit().await
    };
    if let Err(problem) = written.await {
        tracing::warn!(?problem, "a refused login was not written to the audit log");
    }
}

/// Whose a refresh token is. Who is known by it waits among their own clinic's from here on, and holds none of the
/// connections of those who are not known yet.
async fn holder_of(app: &App, token: &[u8]) -> Result<Option<SessionRow>, Problem> {
    app.database.stranger().await?.session_lookup(&Sha256::digest(token)).await
}

/// Take the next access token.
#[utoipa::path(post, path = "/api/v1/auth/refresh", tag = "auth",
    responses(
        (status = 200, description = "A new access token; the cookie was replaced", body = LoginAnswer),
        (status = 401, description = "The session is over", body = Problem, content_type = "application/problem+json")),
    security(()))]
pub async fn refresh(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    same_site(&headers)?;
    let Some(token) = refresh_token(&headers) else { return Ok(over(&app)) };
    let Some(SessionRow { session, tenant, member }) = holder_of(&app, &token).await? else {
        return Ok(over(&app));
    };
    let _turn = app.turns.take(tenant, Some(member)).await?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(tenant).await?;
    take_turn(&transaction, member).await?;
    let row = transaction
        .row(
            "SELECT s.family, s.expires_at, s.used_at IS NOT NULL, s.revoked_at IS NOT NULL,
                    (SELECT min(f.created_at) FROM sessions f WHERE f.family = s.family)
             FROM sessions s WHERE s.id = $1 FOR UPDATE",
            &[&session],
        )
        .await?;
    let Some(row) = row else { return Ok(over(&app)) };
    let (family, expires): (Uuid, Timestamp) = (row.try_get(0)?, row.try_get(1)?);
    let (used, revoked): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    let began: Timestamp = row.try_get(4)?;
    let at = now(&app)?;
    if revoked || expires <= at {
        return Ok(over(&app));
    }
    if used {
        revoke(&transaction, family, at).await?;
        let actor = format!("member:{member}");
        transaction.audit(&actor, "session.reuse", None, json!({ "session": family })).await?;
        transaction.commit().await?;
        app.standings.ended(family);
        tracing::warn!(%member, session = %family, "a refresh token was used twice; the session is ended");
        app.metrics.logins("reused");
        return Ok(over(&app));
    }
    let Some(answer) = answer(&app, &transaction, member, family).await? else {
        revoke(&transaction, family, at).await?;
        transaction.commit().await?;
        return Ok(over(&app));
    };
    transaction.run("UPDATE sessions SET used_at = $2 WHERE id = $1", &[&session, &at]).await?;
    let ends = later(began, app.config.login.session_s);
    let next = new_refresh(&app, &transaction, member, family, ends).await?;
    transaction.commit().await?;
    with_cookie(&app, answer, &next)
}

/// Waits until no other request changes this member's sessions, until the transaction's end. Without it a session that
/// is being ended could miss the token that a refresh is just writing, and live on in that one.
async fn take_turn(transaction: &TenantTransaction<'_>, member: Uuid) -> Result<(), Problem> {
    transaction.row("SELECT 1 FROM members WHERE id = $1 FOR NO KEY UPDATE", &[&member]).await.map(|_| ())
}

async fn revoke(transaction: &TenantTransaction<'_>, family: Uuid, at: Timestamp) -> Result<(), Problem> {
    let statement = "UPDATE sessions SET revoked_at = $2 WHERE family = $1 AND revoked_at IS NULL";
    transaction.run(statement, &[&family, &at]).await.map(|_| ())
}

/// Log out: ends the session of the cookie, if there is one.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "auth",
    responses((status = 204, description = "Logged out")), security(()))]
pub async fn logout(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    same_site(&headers)?;
    if let Some(token) = refresh_token(&headers)
        && let Some(SessionRow { session, tenant, member }) = holder_of(&app, &token).await?
    {
        let _turn = app.turns.take(tenant, Some(member)).await?;
        let mut connection = app.database.connection().await?;
        let transaction = connection.tenant_write(tenant).await?;
        take_turn(&transaction, member).await?;
        let row = transaction.row("SELECT family FROM sessions WHERE id = $1", &[&session]).await?;
        if let Some(row) = row {
            let family: Uuid = row.try_get(0)?;
            revoke(&transaction, family, now(&app)?).await?;
            let actor = format!("member:{member}");
            transaction.audit(&actor, "logout", None, json!({ "session": family })).await?;
            transaction.commit().await?;
            app.standings.ended(family);
        }
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie(&app, "", 0)?);
    Ok(response)
}
