//! What operators and programs ask: health, figures, the description of the API.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::config::MetricsFor;
use crate::problem::{Peer, Problem};
use crate::resources::{
    alerts, bonds, consent_texts, coverage, days, decisions, devices, events, gaps, gateways, hrv, ingest,
    own_login, provisional, reading_types, readings, staff, users,
};
use crate::{App, auth, live};

/// The description of all routes, from the handlers' own.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "Kinara", description = "Wearers' readings for their clinic. Times are UTC."),
    paths(
        auth::login, auth::refresh, auth::logout, users::list, users::one, devices::list, devices::firmware, gateways::list,
        readings::series, readings::latest, reading_types::list, hrv::list, days::list, coverage::show, events::list, events::acknowledge, alerts::list, alerts::acknowledge, alerts::rules, alerts::add_rule, alerts::end_rule, gaps::list, live::socket::open,
        provisional::confirm, provisional::merge, bonds::list, bonds::introduce, bonds::revoke, decisions::list,
        staff::list, staff::me, staff::set_pin, staff::remove_pin, own_login::set_password, own_login::sessions, own_login::end_session, consent_texts::list, consent_texts::add,
        ingest::take, ingest::receipt, openapi, healthz, metrics
    ),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
pub struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let scheme =
            SecurityScheme::Http(Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build());
        components.add_security_scheme("bearer", scheme);
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        components.add_security_scheme("api_key", key);
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operator",
    responses((status = 200, description = "OpenAPI 3.1")), security(()))]
pub async fn openapi() -> Response {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let text = TEXT.get_or_init(|| serde_json::to_string(&Description::openapi()).unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// Whether the program can do its work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`; `degraded`: no live values; `down`: no database.
    pub status: &'static str,
    /// `up` or `down`.
    pub database: &'static str,
    /// `up`, `down` or `none` (not configured).
    pub broker: &'static str,
    /// Whether notices from the database are heard: `up` or `down`.
    pub notices: &'static str,
}

/// Whether the program can do its work.
#[utoipa::path(get, path = "/healthz", tag = "operator",
    responses(
        (status = 200, description = "It serves, perhaps without live values", body = Health),
        (status = 503, description = "The database is down", body = Health)),
    security(()))]
pub async fn healthz(State(app): State<App>) -> Response {
    let word = |up| if up { "up" } else { "down" };
    let database = app.database.answers().await;
    let broker = if app.config.broker.is_some() { word(app.metrics.is_broker_up()) } else { "none" };
    let notices = app.metrics.is_listening();
    let status = match (database, broker != "down" && notices) {
        (false, _) => "down",
        (true, false) => "degraded",
        (true, true) => "ok",
    };
    let code = if database { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let health = Health { status, database: word(database), broker, notices: word(notices) };
    let mut response = (code, Json(health)).into_response();
    // Its body is an answer, not a problem.
    response.headers_mut().insert(header::ETAG, header::HeaderValue::from_static("\"health\""));
    response
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operator",
    responses(
        (status = 200, description = "Prometheus text format"),
        (status = 403, description = "Only for programs on this machine", body = Problem, content_type = "application/problem+json")),
    security(()))]
pub async fn metrics(
    State(app): State<App>,
    Peer(peer): Peer,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let direct = !headers.contains_key("x-forwarded-for") && !headers.contains_key("forwarded");
    let from = peer.filter(|_| direct).map(|peer| peer.ip().to_canonical());
    let allowed = match &app.config.metrics_for {
        MetricsFor::Anyone => true,
        MetricsFor::Loopback => from.is_some_and(|from| from.is_loopback()),
        MetricsFor::Networks(networks) => from
            .is_some_and(|from| from.is_loopback() || networks.iter().any(|network| network.contains(from))),
    };
    if !allowed {
        return Err(Problem::forbidden(
            "Figures are for programs on this machine; the operator can change metrics_for.",
        ));
    }
    let text = app.metrics.text(app.database.connections());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
