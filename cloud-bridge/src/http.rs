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
use kinara_ingest::stages::{Stage, Stages};
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
    let taken = seen.writer.apart.load(Ordering::Relaxed);
    seen.metrics.numbers_taken_total.store(taken, Ordering::Relaxed);
    let text = seen.metrics.text() + &stages(&seen.writer.stages);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

fn stages(stages: &Stages) -> String {
    let mut text = "# HELP kinara_bridge_stage_seconds_total Time spent in each stage of the pipeline.\n\
                    # TYPE kinara_bridge_stage_seconds_total counter\n"
        .to_owned();
    for stage in Stage::ALL {
        let (name, seconds) = (stage.name(), stages.seconds(stage));
        let _ = writeln!(text, "kinara_bridge_stage_seconds_total{{stage=\"{name}\"}} {seconds}");
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_help_and_a_type_before_it() {
        let text = Metrics::default().text() + &stages(&Stages::default());
        let (mut told, mut typed) = ("", "");
        let mut families = 0;
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(help.ends_with('.') && help.len() > 5, "{line} says nothing");
                (told, families) = (name, families + 1);
            } else if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            {
                assert!(name == told && ["counter", "gauge"].contains(&kind), "{line} has no help before it");
                // What Prometheus' own checker wants of names.
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                typed = name;
            } else {
                assert_eq!(line.split(['{', ' ']).next(), Some(typed), "{line} has no type before it");
            }
        }
        assert!(families > 40, "{families}");
    }
}
