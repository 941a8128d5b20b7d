//! `/metrics` and `/healthz`.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use kinara_ingest::Writer;
use kinara_ingest::stages::Stage;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::queue::Queue;

#[derive(Clone)]
struct Seen {
    metrics: Arc<Metrics>,
    queue: Queue,
    writer: Arc<Writer>,
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    queue: Queue,
    writer: Arc<Writer>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(numbers))
        .route("/healthz", get(health))
        .with_state(Seen { metrics, queue, writer });
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Writes the address for those who let the system choose the port; whole or not at all.
pub fn write_address(path: &Path, address: std::net::SocketAddr) -> std::io::Result<()> {
    let aside = path.with_extension("tmp");
    std::fs::write(&aside, address.to_string())?;
    std::fs::rename(aside, path)
}

async fn numbers(State(seen): State<Seen>) -> impl IntoResponse {
    let (bytes, length) = seen.queue.load();
    seen.metrics.queue_bytes.store(bytes as u64, Ordering::Relaxed);
    seen.metrics.queue_length.store(length as u64, Ordering::Relaxed);
    let mut text = seen.metrics.text();
    text.push_str("# HELP kinara_bridge_stage_seconds_total Time spent in each stage of the pipeline.\n");
    text.push_str("# TYPE kinara_bridge_stage_seconds_total counter\n");
    for stage in Stage::ALL {
        let (name, seconds) = (stage.name(), seen.writer.stages.seconds(stage));
        let _ = writeln!(text, "kinara_bridge_stage_seconds_total{{stage=\"{name}\"}} {seconds}");
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// Healthy: batches can come in. The database may be away; the bridge says so and has the gateways wait.
async fn health(State(seen): State<Seen>) -> impl IntoResponse {
    let broker = seen.metrics.subscribed.load(Ordering::Relaxed);
    let database = seen.metrics.database.load(Ordering::Relaxed);
    let status = if broker { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = |up| if up { "up" } else { "down" };
    let body = serde_json::json!({ "broker": word(broker), "database": word(database) });
    (status, axum::Json(body))
}
