//! The routes, one table; and what every answer goes through.
//!
//! The promise: a route cannot be added without saying who may use it ([`Access`]), and what it says is enforced before
//! its handler runs. Every answer that is not a success is a problem (RFC 9457), every answer carries the security
//! headers, every request ends within its time.

use std::time::Duration;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Router, routing};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;

use crate::access::{Access, Action, Guard, Resource, Scope, guard};
use crate::auth::key::{self, KeyGuard};
use crate::problem::Problem;
use crate::resources::{
    alerts, bonds, consent_texts, coverage, days, decisions, devices, events, gaps, gateways, hrv, ingest,
    own_login, provisional, reading_types, readings, staff, users,
};
use crate::{App, auth, dashboard, live, operator};

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with `{names}`.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    handler: MethodRouter<App>,
}

impl Route {
    fn new<T: 'static>(
        method: Method,
        path: &'static str,
        access: Access,
        handler: impl Handler<T, App>,
    ) -> Self {
        let filter = routing::MethodFilter::try_from(method.clone()).expect("the table has usual methods");
        Self { method, path, access, handler: routing::on(filter, handler) }
    }
}

/// All routes but the dashboard's files.
pub fn routes() -> Vec<Route> {
    use Access::{FirstMessage, Member, Public};
    use Action::{Acknowledge, Change, Read};
    let get = Method::GET;
    let post = Method::POST;
    let mut routes = desk();
    routes.extend([
        Route::new(post.clone(), "/ingest", Access::Key(Scope::Ingest), ingest::take),
        Route::new(get.clone(), "/ingest/{id}", Access::Key(Scope::Ingest), ingest::receipt),
    ]);
    routes.extend(vec![
        Route::new(post.clone(), "/api/v1/auth/login", Public, auth::login),
        Route::new(post.clone(), "/api/v1/auth/refresh", Public, auth::refresh),
        Route::new(post.clone(), "/api/v1/auth/logout", Public, auth::logout),
        Route::new(get.clone(), "/api/v1/users", Member(Read, Resource::Users), users::list),
        Route::new(get.clone(), "/api/v1/users/{id}", Member(Read, Resource::Users), users::one),
        Route::new(get.clone(), "/api/v1/devices", Member(Read, Resource::Devices), devices::list),
        Route::new(
            get.clone(),
            "/api/v1/devices/{id}/firmware",
            Member(Read, Resource::Devices),
            devices::firmware,
        ),
        Route::new(get.clone(), "/api/v1/gateways", Member(Read, Resource::Gateways), gateways::list),
        Route::new(get.clone(), "/api/v1/readings", Member(Read, Resource::Readings), readings::series),
        Route::new(
            get.clone(),
            "/api/v1/readings/latest",
            Member(Read, Resource::Readings),
            readings::latest,
        ),
        Route::new(
            get.clone(),
            "/api/v1/reading-types",
            Member(Read, Resource::Readings),
            reading_types::list,
        ),
        Route::new(get.clone(), "/api/v1/days", Member(Read, Resource::Readings), days::list),
        Route::new(get.clone(), "/api/v1/coverage", Member(Read, Resource::Gaps), coverage::show),
        Route::new(get.clone(), "/api/v1/hrv", Member(Read, Resource::Readings), hrv::list),
        Route::new(get.clone(), "/api/v1/events", Member(Read, Resource::Events), events::list),
        Route::new(
            post.clone(),
            "/api/v1/events/acknowledge",
            Member(Acknowledge, Resource::Events),
            events::acknowledge,
        ),
        Route::new(get.clone(), "/api/v1/alerts", Member(Read, Resource::Alerts), alerts::list),
        Route::new(
            post.clone(),
            "/api/v1/alerts/{id}/acknowledge",
            Member(Acknowledge, Resource::Alerts),
            alerts::acknowledge,
        ),
        Route::new(get.clone(), "/api/v1/alert-rules", Member(Read, Resource::AlertRules), alerts::rules),
        Route::new(
            post.clone(),
            "/api/v1/alert-rules",
            Member(Change, Resource::AlertRules),
            alerts::add_rule,
        ),
        Route::new(
            Method::DELETE,
            "/api/v1/alert-rules/{id}",
            Member(Change, Resource::AlertRules),
            alerts::end_rule,
        ),
        Route::new(get.clone(), "/api/v1/gaps", Member(Read, Resource::Gaps), gaps::list),
        Route::new(get.clone(), "/api/v1/live", FirstMessage(Read, Resource::Readings), live::socket::open),
        Route::new(get.clone(), "/openapi.json", Public, operator::openapi),
        Route::new(get.clone(), "/healthz", Public, operator::healthz),
        Route::new(get, "/metrics", Public, operator::metrics),
    ]);
    routes
}

/// What concerns the boxes and what people decide at them.
fn desk() -> Vec<Route> {
    use Access::Member;
    use Action::{Change, Read};
    use Resource::{Bonds, ConsentTexts, Decisions, OwnLogin, OwnPin, Staff, Users};
    let (get, post) = (Method::GET, Method::POST);
    vec![
        Route::new(post.clone(), "/api/v1/users/{id}/confirm", Member(Change, Users), provisional::confirm),
        Route::new(post.clone(), "/api/v1/users/{id}/merge", Member(Change, Users), provisional::merge),
        Route::new(get.clone(), "/api/v1/devices/{id}/bonds", Member(Read, Bonds), bonds::list),
        Route::new(
            post.clone(),
            "/api/v1/devices/{id}/introductions",
            Member(Change, Bonds),
            bonds::introduce,
        ),
        Route::new(post.clone(), "/api/v1/bonds/{id}/revoke", Member(Change, Bonds), bonds::revoke),
        Route::new(get.clone(), "/api/v1/decisions", Member(Read, Decisions), decisions::list),
        Route::new(get.clone(), "/api/v1/staff", Member(Read, Staff), staff::list),
        Route::new(get.clone(), "/api/v1/staff/me", Member(Read, OwnPin), staff::me),
        Route::new(Method::PUT, "/api/v1/staff/me/pin", Member(Change, OwnPin), staff::set_pin),
        Route::new(
            Method::PUT,
            "/api/v1/staff/me/password",
            Member(Change, OwnLogin),
            own_login::set_password,
        ),
        Route::new(get.clone(), "/api/v1/staff/me/sessions", Member(Read, OwnLogin), own_login::sessions),
        Route::new(
            Method::DELETE,
            "/api/v1/staff/me/sessions/{id}",
            Member(Change, OwnLogin),
            own_login::end_session,
        ),
        Route::new(Method::DELETE, "/api/v1/staff/{id}/pin", Member(Change, Staff), staff::remove_pin),
        Route::new(get, "/api/v1/consent-texts", Member(Read, ConsentTexts), consent_texts::list),
        Route::new(post, "/api/v1/consent-texts", Member(Change, ConsentTexts), consent_texts::add),
    ]
}

/// The whole service.
pub fn router(app: &App) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let handler = match route.access {
            Access::Public | Access::FirstMessage(..) => route.handler,
            Access::Key(scope) => {
                let guarded = KeyGuard { app: app.clone(), scope };
                // Known first, and only then unpacked.
                route
                    .handler
                    .route_layer(ingest::unpacking())
                    .route_layer(DefaultBodyLimit::disable())
                    .route_layer(RequestBodyLimitLayer::new(app.config.ingest.body_bytes))
                    .route_layer(middleware::from_fn_with_state(guarded, key::guard))
            }
            Access::Member(action, resource) => {
                let guarded = Guard { app: app.clone(), action, resource };
                route.handler.route_layer(middleware::from_fn_with_state(guarded, guard))
            }
        };
        // Two routes of one path and different methods become one.
        router = router.route(route.path, handler);
    }
    router
        .fallback(dashboard::serve)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(app.config.limits.body_bytes))
        .layer(middleware::from_fn_with_state(app.config.limits.request_timeout(), in_time))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), every_answer))
        .layer(CompressionLayer::new())
        .with_state(app.clone())
}

async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "This address exists, but not with this method; see the Allow header and /openapi.json.",
    )
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer wants")]
fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    Problem::internal(&text).into_response()
}

async fn in_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable("This took too long and was given up. Ask for less, or try again.")
            .into_response(),
    }
}

/// Nothing from elsewhere, nothing inline, nobody's frame. A page may speak to this server alone.
const POLICY: &str = "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

async fn every_answer(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = std::time::Instant::now();
    let method = request.method().clone();
    let api = ["/api/", "/ingest"].iter().any(|prefix| request.uri().path().starts_with(prefix));
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route
        .and_then(|path| app.route_names.iter().find(|name| **name == path).copied())
        .unwrap_or("dashboard");
    let mut response = as_problem(next.run(request).await).await;
    app.metrics.request(&method, route, response.status().as_u16(), began.elapsed());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if api {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if app.config.behind_tls() {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    response
}

/// Refusals that come from below us (the framework's own) become problems as well.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    let page = response.headers().contains_key(header::ETAG);
    if !(status.is_client_error() || status.is_server_error()) || is_problem || page {
        return response;
    }
    let name = if status == StatusCode::PAYLOAD_TOO_LARGE { "too-large" } else { "refused" };
    let allow = response.headers().get(header::ALLOW).cloned();
    let text = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    let mut detail = String::from_utf8_lossy(&text).into_owned();
    if detail.is_empty() {
        detail = format!("{}; see /openapi.json.", status.canonical_reason().unwrap_or("Refused"));
    }
    let mut problem = Problem::new(status, name, detail).into_response();
    if let Some(allow) = allow {
        problem.headers_mut().insert(header::ALLOW, allow);
    }
    problem
}
