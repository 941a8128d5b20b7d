//! The dashboard's files, built into the program.
//!
//! Files whose names carry their digest (`assets/…`) may be kept for ever; the page itself is asked for again each time.
//! An address that is no file is a page of the dashboard's own router, so it gets the page.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use crate::problem::Problem;

#[derive(RustEmbed)]
#[folder = "$KINARA_DASHBOARD_DIST"]
struct Files;

const INDEX: &str = "index.html";

/// Answers every address that is no route.
pub(crate) async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path == "api" || path.starts_with("api/") {
        return Problem::not_found("address; see /openapi.json").into_response();
    }
    if path.trim_end_matches('/').eq_ignore_ascii_case("ingest") {
        let text = "address; readings go to POST /ingest, in small letters and without a slash behind it";
        return Problem::not_found(text).into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        let problem =
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Pages can only be read.");
        return ([(header::ALLOW, "GET,HEAD")], problem).into_response();
    }
    match Files::get(path) {
        Some(file) => answer(path, &file, &headers),
        // A file that is asked for by name and is not there is an error; anything else is the page's own address.
        None if path.starts_with("assets/")
            || path.rsplit('/').next().is_some_and(|name| name.contains('.')) =>
        {
            Problem::not_found("file").into_response()
        }
        None => match Files::get(INDEX) {
            Some(file) => answer(INDEX, &file, &headers),
            None => Problem::not_found("page").into_response(),
        },
    }
}

fn answer(path: &str, file: &rust_embed::EmbeddedFile, asked: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", hex::encode(&file.metadata.sha256_hash()[..16]));
    let caching =
        if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let kept = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    // A compressing layer or proxy weakens the tag.
    let same = kept.is_some_and(|kept| kept.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    let mut response = if same {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let body = match &file.data {
            std::borrow::Cow::Borrowed(bytes) => Body::from(*bytes),
            std::borrow::Cow::Owned(bytes) => Body::from(bytes.clone()),
        };
        let kind = match file.metadata.mimetype() {
            text if text.starts_with("text/") => format!("{text}; charset=utf-8"),
            other => other.to_owned(),
        };
        ([(header::CONTENT_TYPE, kind)], body).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}
