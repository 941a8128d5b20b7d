//! The appliance's own page, for whoever stands before the box with a laptop, and for a monitoring system.
//!
//! The promise: it shows how the gateway does and nothing of how a wearer does: no reading, no event, no name but
//! those of devices. It listens on loopback unless the configuration says otherwise, changes nothing, loads nothing
//! from elsewhere (`Content-Security-Policy`), and answers only to names of this machine, so that no web page can
//! read it through a visitor's browser.
//!
//! `/` the page, `/metrics` Prometheus text, `/healthz` 200 or 503 with the reasons as JSON.

pub mod box_page;
pub mod bus;
mod health;
mod metrics;
mod page;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kinara_clock::Clock;
use kinara_protocol::entry;
use rand::Rng as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use box_page::server;

use crate::infer::Counts;
use crate::pipeline::FrameSink;
use crate::status::Board;

/// A whole number as people write it, in the digits of any script. Spaces and what cannot be seen do not matter.
pub fn number(text: &str) -> Option<u32> {
    let seen = text.chars().filter(|c| !entry::is_blank(*c));
    let digits = seen.map(entry::digit).collect::<Option<Vec<u8>>>()?;
    let first = digits.first().copied().map(u32::from)?;
    digits[1..].iter().try_fold(first, |number, digit| number.checked_mul(10)?.checked_add(u32::from(*digit)))
}

/// The subject of what is wrong with the page.
const ALERT: &str = "local_page";
/// How soon a port that was taken is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The file in the data folder that holds the bound address.
pub const ADDRESS_FILE: &str = "local.addr";

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The address cannot be had.
    #[error(
        "local.listen: cannot listen on {address}: {source}; choose another port, or 127.0.0.1:0 for any"
    )]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// What the page reads.
#[derive(Clone)]
pub struct Sources {
    /// The daemon's status.
    pub board: Board,
    /// What inference has done.
    pub inference: Arc<Counts>,
    /// Where frames pass on their way to inference.
    pub frames: FrameSink,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// Answers until `stop`. A port that is taken is an alert and is tried again: readings do not wait for the page.
pub async fn run(address: SocketAddr, data_dir: PathBuf, sources: Sources, stop: CancellationToken) {
    let mut told = false;
    while !stop.is_cancelled() {
        let error = match Server::bind(address, &data_dir).await {
            Ok(server) => {
                sources.board.alert(ALERT, None);
                return server.run(sources, stop).await;
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::error!(%error, "there is no local page; it is tried again, the rest goes on");
        }
        sources.board.alert(ALERT, Some(error.to_string()));
        let pause = AGAIN.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// A bound server that does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds the address and writes the bound one to `data_dir/local.addr`, where the disk takes it: a full one is what the
    /// page has to tell of.
    pub async fn bind(address: SocketAddr, data_dir: &Path) -> Result<Self, LocalError> {
        let fail = |source| LocalError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let path = data_dir.join(ADDRESS_FILE);
        let next = data_dir.join("local.addr.next");
        // Whoever waits for the file must find the whole address in it.
        let written =
            std::fs::write(&next, format!("{address}\n")).and_then(|()| std::fs::rename(&next, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "where the page listens could not be written down");
        }
        Ok(Self { listener, address })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is called. Whoever connects can hold on to so much and no more: what is open here is not there for
    /// the radio and the store.
    pub async fn run(self, sources: Sources, stop: CancellationToken) {
        server::serve(self.listener, None, router(sources), stop).await;
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/", get(show_page))
        .route("/style.css", get(style))
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(show_health))
        .fallback(|| async { (StatusCode::NOT_FOUND, "There is /, /metrics and /healthz.\n") })
        .layer(middleware::from_fn(guard))
        .with_state(sources)
}

async fn show_page(State(sources): State<Sources>) -> Response {
    let now = sources.clock.utc_us();
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page::render(&sources.board.now(), now))
        .into_response()
}

async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::STYLE).into_response()
}

async fn show_metrics(State(sources): State<Sources>) -> Response {
    let text = metrics::render(&sources.board.now(), &sources.inference, sources.frames.missed());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn show_health(State(sources): State<Sources>) -> Response {
    let silent = sources.board.vitals().silent_for(health::SILENT);
    let health = health::judge(&sources.board.now(), sources.clock.boottime_us(), &silent);
    let status = if health.reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(health)).into_response()
}

/// Refuses names that are not this machine's (a web page elsewhere may point its own name at 127.0.0.1 and read what
/// is there), and sends what keeps a browser from loading or embedding anything.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let mut response = if host.is_none_or(is_ours) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "Use the gateway's IP address, localhost, or a name in .local.\n")
            .into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn is_ours(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let last = name.rsplit('.').next();
    name.parse::<IpAddr>().is_ok() || matches!(last, Some("localhost" | "local"))
}

#[cfg(test)]
mod tests;
