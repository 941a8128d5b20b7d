//! What wearers are asked to agree to. A text is never changed or taken away, for consents name its version; the newest
//! of each language is the one that boxes show.

use axum::Json;
use axum::extract::State;
use kinara_protocol::entry;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Items, now};
use crate::App;
use crate::access::Member;
use crate::problem::{Body, Problem};
use crate::times::UtcMs;

/// The longest text, in bytes. Boxes are told the newest of each language in one message.
const MAX_TEXT: usize = 20_000;
/// Languages at most, for the same reason.
const MAX_LANGUAGES: i64 = 8;

/// A text.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsentText {
    /// What consents call it.
    pub version: String,
    /// Its language: `en`, `hi`.
    pub language: String,
    /// What is read.
    pub text: String,
    /// SHA-256 of the text, in hex: what a consent given at a box repeats.
    pub sha256: String,
    /// Since when.
    pub created_at: UtcMs,
    /// By which member.
    pub created_by: Option<Uuid>,
    /// Whether it is the one that boxes show.
    pub current: bool,
}

const SELECT: &str = "SELECT version, language, text, encode(sha256, 'hex'), created_at, created_by,
        row_number() OVER (PARTITION BY language ORDER BY created_at DESC, version DESC) = 1
     FROM consent_texts";

fn read(row: &tokio_postgres::Row) -> Result<ConsentText, Problem> {
    Ok(ConsentText {
        version: row.try_get(0)?,
        language: row.try_get(1)?,
        text: row.try_get(2)?,
        sha256: row.try_get(3)?,
        created_at: UtcMs(row.try_get(4)?),
        created_by: row.try_get(5)?,
        current: row.try_get(6)?,
    })
}

/// All texts of the clinic, the newest first.
#[utoipa::path(get, path = "/api/v1/consent-texts", tag = "consent texts",
    responses((status = 200, body = Items<ConsentText>)))]
pub async fn list(State(app): State<App>, member: Member) -> Result<Json<Items<ConsentText>>, Problem> {
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    let rows =
        transaction.rows(&format!("{SELECT} ORDER BY created_at DESC, version, language"), &[]).await?;
    Ok(Json(Items { items: rows.iter().map(read).collect::<Result<_, _>>()? }))
}

/// A new text.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ConsentTextRequest {
    /// What consents call it.
    #[schema(examples("2026-1"))]
    pub version: String,
    /// Its language: two or three small letters, perhaps with a region.
    #[schema(examples("hi"))]
    pub language: String,
    /// What is read.
    pub text: String,
}

/// The request as it is kept: its version as a consent names it, whoever types it.
fn checked(mut request: ConsentTextRequest) -> Result<ConsentTextRequest, Problem> {
    request.version =
        entry::version(&request.version).map_err(|bad| Problem::invalid(format!("The version {bad}.")))?;
    let mut parts = request.language.splitn(2, '-');
    let letters = |part: &str| part.chars().all(|c| c.is_ascii_alphabetic());
    let main = parts.next().unwrap_or_default();
    let good = (2..=3).contains(&main.len())
        && main.chars().all(|c| c.is_ascii_lowercase())
        && parts.next().is_none_or(|region| (2..=4).contains(&region.len()) && letters(region));
    if !good {
        return Err(Problem::invalid("A language is a code such as en, hi or pt-BR."));
    }
    if request.text.trim().is_empty() || request.text.len() > MAX_TEXT || request.text.contains('\0') {
        return Err(Problem::invalid(format!("A text has 1 to {MAX_TEXT} bytes.")));
    }
    Ok(request)
}

/// Add a text. The same again changes nothing; another text under the same version and language is refused.
#[utoipa::path(post, path = "/api/v1/consent-texts", tag = "consent texts", request_body = ConsentTextRequest,
    responses(
        (status = 200, body = ConsentText),
        (status = 409, description = "This version has another text", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Not a good text", body = Problem, content_type = "application/problem+json")))]
pub async fn add(
    State(app): State<App>,
    member: Member,
    Body(request): Body<ConsentTextRequest>,
) -> Result<Json<ConsentText>, Problem> {
    let request = checked(request)?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(member.tenant).await?;
    let languages: i64 = transaction
        .row("SELECT count(DISTINCT language) FROM consent_texts WHERE language <> $1", &[&request.language])
        .await?
        .map_or(Ok(0), |row| row.try_get(0))?;
    if languages >= MAX_LANGUAGES {
        return Err(Problem::invalid(format!("A clinic has texts in at most {MAX_LANGUAGES} languages.")));
    }
    let digest = Sha256::digest(request.text.as_bytes());
    let new = transaction
        .run(
            "INSERT INTO consent_texts (tenant_id, version, language, text, sha256, created_at, created_by)
             VALUES ((select current_tenant()), $1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            &[
                &request.version,
                &request.language,
                &request.text,
                &digest.as_slice(),
                &now(&app)?,
                &member.id,
            ],
        )
        .await?;
    let statement = format!("SELECT * FROM ({SELECT}) t WHERE version = $1 AND language = $2");
    let row = transaction.row(&statement, &[&request.version, &request.language]).await?;
    let text = read(&row.ok_or_else(|| Problem::not_found("consent text"))?)?;
    if text.text != request.text {
        return Err(Problem::conflict(
            "This version has another text already, and people may have agreed to it. Choose a new version.",
        ));
    }
    if new > 0 {
        let target = format!("consent-text:{}:{}", text.version, text.language);
        let detail = json!({ "sha256": text.sha256 });
        transaction.audit(&member.actor(), "consent-text.add", Some(&target), detail).await?;
    }
    transaction.commit().await?;
    Ok(Json(text))
}
