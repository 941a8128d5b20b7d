//! Errors over HTTP: RFC 9457 problem details, in every answer that is not a success.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kinara_protocol::entry;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

/// A problem, as sent.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:kinara:problem:<name>`: what programs look at.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What happened and what to do, for people.
    detail: String,
    /// Seconds until another try makes sense.
    #[serde(skip)]
    retry_after: Option<u64>,
    /// By what a 401 asks the client to say who it is.
    #[serde(skip)]
    challenge: &'static str,
}

/// An access token.
const BEARER: &str = "Bearer";
/// A clinic's key, in its own header.
const API_KEY: &str = "ApiKey realm=\"kinara\", header=\"X-API-Key\"";

impl Problem {
    /// A problem of this status; `name` ends its type.
    pub fn new(status: StatusCode, name: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:kinara:problem:{name}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
            challenge: BEARER,
        }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// 401: nobody is logged in.
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// 401: a program's key is wanted.
    pub fn without_key(detail: impl Into<String>) -> Self {
        Self { challenge: API_KEY, ..Self::unauthenticated(detail) }
    }

    /// 403: logged in, but not allowed.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 404: not there, or another clinic's, which is the same to the caller.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("There is no such {what}."))
    }

    /// 409: something else is there.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", detail)
    }

    /// 422: understood, and wrong.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    /// 429: too often.
    pub fn too_many(detail: impl Into<String>, retry_after: u64) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail);
        Self { retry_after: Some(retry_after.max(1)), ..problem }
    }

    /// 503: not now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
        Self { retry_after: Some(5), ..problem }
    }

    /// 500: our fault. The cause goes to the log, not to the caller.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        let detail =
            "Something went wrong here; it has been logged. Try again, and tell the operator if it stays.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// What happened and what to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(self.challenge));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<tokio_postgres::Error> for Problem {
    fn from(error: tokio_postgres::Error) -> Self {
        use tokio_postgres::error::SqlState;
        match error.code() {
            Some(&SqlState::QUERY_CANCELED) => {
                tracing::warn!(%error, "a statement reached its time limit");
                Self::unavailable("The database took too long. Ask for a shorter period.")
            }
            Some(code) if code.code().starts_with("57P") || code.code().starts_with("53") => {
                tracing::warn!(%error, "the database is not available");
                Self::unavailable("The database is not available. Try again in a moment.")
            }
            None if error.is_closed()
                || std::error::Error::source(&error)
                    .is_some_and(<dyn std::error::Error>::is::<std::io::Error>) =>
            {
                tracing::warn!(%error, "the connection to the database was lost");
                Self::unavailable("The database is not available. Try again in a moment.")
            }
            _ => {
                let cause = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                Self::internal(&cause)
            }
        }
    }
}

impl From<deadpool_postgres::PoolError> for Problem {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        tracing::warn!(%error, "no connection to the database");
        Self::unavailable("The database is not available. Try again in a moment.")
    }
}

/// A NUL in what was sent: PostgreSQL keeps none, and no name or text has one.
fn nul() -> Problem {
    Problem::invalid("A text holds the character U+0000, which can be in none. Take it out.")
}

/// Whether a JSON text writes a NUL: `\u0000` behind a backslash that is not itself escaped.
fn writes_nul(body: &[u8]) -> bool {
    let mut rest = body;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        let escape = &rest[at + 1..];
        if escape.starts_with(b"u0000") {
            return true;
        }
        rest = escape.get(1..).unwrap_or_default();
    }
    false
}

/// What the framework and the reader say of a request, without their own names for things.
fn in_words(text: &str) -> String {
    const NAMES: [(&str, &str); 12] = [
        ("Failed to deserialize query string: ", ""),
        ("Failed to deserialize the JSON body into the target type: ", ""),
        ("Failed to parse the request body as JSON: ", "not JSON: "),
        ("UUID parsing failed: ", "not an id: "),
        ("invalid type: ", "not "),
        ("floating point", "the number"),
        ("expected i16", "but a whole number"),
        ("expected u32", "but a whole number, 0 or more"),
        ("expected f64", "but a number"),
        ("expected f32", "but a number"),
        ("expected a string", "but a text"),
        ("expected a boolean", "but true or false"),
    ];
    let words = NAMES.iter().fold(text.to_owned(), |words, (theirs, ours)| words.replace(theirs, ours));
    let words = words.rsplit_once(" at line ").map_or(words.as_str(), |(words, _)| words);
    let mut words: String = entry::without_controls(words).chars().take(500).collect();
    if !words.ends_with('.') {
        words.push('.');
    }
    words
}

/// A JSON body whose rejections are problems. A byte order mark in front of it is skipped.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "Send JSON, with Content-Type: application/json.",
            ));
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            let name =
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too-large" } else { "bad-request" };
            Problem::new(rejection.status(), name, rejection.body_text())
        })?;
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
        if writes_nul(body) {
            return Err(nul());
        }
        match Json::<T>::from_bytes(body) {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => {
                let status = rejection.status();
                let name = if status == StatusCode::UNPROCESSABLE_ENTITY { "invalid" } else { "bad-request" };
                Err(Problem::new(status, name, in_words(&rejection.body_text())))
            }
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Query parameters whose rejections are problems.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|query| query.contains("%00") || query.contains('\0')) {
            return Err(nul());
        }
        let query = <axum::extract::Query<T> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        match query {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let rejection: QueryRejection = rejection;
                Err(Problem::invalid(in_words(&rejection.body_text())))
            }
        }
    }
}

/// `true`, `1` and `yes` as they come in addresses, in any capitals; and their opposites.
pub(crate) fn yes_or_no<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    let text = <Option<String> as serde::Deserialize>::deserialize(deserializer)?;
    match text.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None => Ok(None),
        Some("true" | "1" | "yes") => Ok(Some(true)),
        Some("false" | "0" | "no") => Ok(Some(false)),
        Some(_) => Err(serde::de::Error::custom("true or false is needed")),
    }
}

/// A whole number, also one that its program writes with a fraction of nothing: `5.0`.
pub(crate) fn whole<'de, D, N>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: serde::Deserializer<'de>,
    N: TryFrom<i64>,
{
    let wanted = || serde::de::Error::custom("a whole number is needed");
    let Some(number) = <Option<serde_json::Number> as serde::Deserialize>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let float = || number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e15);
    let whole = number.as_i64().or_else(|| float().map(|float| float as i64)).ok_or_else(wanted)?;
    N::try_from(whole).map(Some).map_err(|_| wanted())
}

/// Parts of the path, whose rejections say that there is nothing.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        match path {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                let rejection: PathRejection = rejection;
                tracing::debug!(%rejection, "a path that names nothing");
                Err(Problem::not_found("thing"))
            }
        }
    }
}

/// The client's address, if the connection has one.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<std::net::SocketAddr>);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        type Info = axum::extract::ConnectInfo<std::net::SocketAddr>;
        let info: Option<Info> =
            <axum::Extension<Info> as OptionalFromRequestParts<S>>::from_request_parts(parts, state)
                .await
                .ok()
                .flatten()
                .map(|axum::Extension(info)| info);
        Ok(Self(info.map(|info| info.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_seen_where_it_is_written_and_nowhere_else() {
        for written in
            [r#"{"a":"x\u0000y"}"#, r#"{"a\u0000":1}"#, r#"{"a":"\\\u0000"}"#, r#"{"a":"\n\u0000"}"#]
        {
            assert!(writes_nul(written.as_bytes()), "{written}");
        }
        for not in [r#"{"a":"\\u0000"}"#, r#"{"a":"u0000"}"#, r#"{"a":"\u0001"}"#, "", "\\"] {
            assert!(!writes_nul(not.as_bytes()), "{not}");
        }
    }

    #[test]
    fn a_refusal_names_the_field_and_not_the_framework() {
        let words = in_words(
            "Failed to deserialize the JSON body into the target type: minutes: invalid type: floating point `5.5`, expected i16 at line 1 column 9",
        );
        assert_eq!(words, "minutes: not the number `5.5`, but a whole number.");
        let words =
            in_words("Failed to deserialize query string: user_id: UUID parsing failed: invalid length");
        assert_eq!(words, "user_id: not an id: invalid length.");
    }
}
