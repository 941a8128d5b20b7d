//! Programs of a clinic, known by a key.
//!
//! The promise: a key is shown once, when it is made; what is kept is its SHA-256, which is enough for a secret of 256 bits
//! that was drawn and not thought of. A key may do what its scopes say, in its own clinic, until it ends.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::App;
use crate::access::Scope;
use crate::problem::Problem;

/// What every key begins with, so that one that got lost is known for what it is.
const PREFIX: &str = "kinara_";

/// A new key.
pub fn draw() -> String {
    let secret: [u8; 32] = rand::random();
    format!("{PREFIX}{}", hex::encode(secret))
}

/// What is kept of a key.
pub fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key.as_bytes()))
}

/// A program that has shown its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiClient {
    /// The key's row.
    pub key: Uuid,
    /// Its clinic.
    pub tenant: Uuid,
}

impl<S: Send + Sync> FromRequestParts<S> for ApiClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().copied().ok_or_else(missing)
    }
}

fn missing() -> Problem {
    Problem::without_key("Send your clinic's key as X-API-Key; the operator makes one.")
}

/// What a route wants of a key.
#[derive(Debug, Clone)]
pub(crate) struct KeyGuard {
    pub app: App,
    pub scope: Scope,
}

pub(crate) async fn guard(State(guard): State<KeyGuard>, mut request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key").and_then(|key| key.to_str().ok()).map(hash);
    match known(&guard, key).await {
        Ok(client) => {
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn known(guard: &KeyGuard, hash: Option<String>) -> Result<ApiClient, Problem> {
    let hash = hash.ok_or_else(missing)?;
    let connection = guard.app.database.stranger().await?;
    let Some(row) = connection.api_key_lookup(&hash).await? else {
        return Err(Problem::without_key("This key is none, has ended, or was taken back."));
    };
    if !row.scopes.iter().any(|scope| scope == guard.scope.as_str()) {
        return Err(Problem::forbidden(format!("This key has not the scope {}.", guard.scope.as_str())));
    }
    Ok(ApiClient { key: row.key, tenant: row.tenant })
}
