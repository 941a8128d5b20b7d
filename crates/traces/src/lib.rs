//! Where a batch's time went: its trace, from the gateway's seal to the bridge's commit and the answer, told to an
//! OpenTelemetry collector over OTLP (HTTP, Protobuf).
//!
//! The promise: telling never holds a batch up and never changes what becomes of it. Spans wait in a queue with a bound;
//! what finds no room is dropped, and so is what a collector does not take in time. Without a collector configured nothing
//! is kept, and asking costs one look at an `Option`.
//!
//! A trace's ID comes from the batch's name (gateway, buffer, sequence), see [`BatchId`]. Whoever knows the name knows the trace: a
//! log line, a gateway that publishes the batch for the tenth time after a restart, a bridge that was sent no header. By the
//! same ID it is decided whether a batch is followed at all, so that gateway and bridge decide alike.
//!
//! ```text
//! batch                gateway: from the seal to the acknowledgement        (the bridge's, where the gateway tells nothing)
//! ├─ publish           gateway: from a publish to its answer, or to giving up on it
//! └─ receive           bridge: from the arrival to the answer
//!    ├─ queue          waiting for a writer
//!    ├─ decode
//!    ├─ gather         waiting for what is written with it
//!    └─ transaction    with a span for each stage; a group's batches all carry their group's
//! ```

mod export;
mod id;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use id::BatchId;
pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{SpanContext, SpanId, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, trace::TraceId};
pub use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _,
};
use serde::Deserialize;

/// The MQTT user property that carries W3C Trace Context, by the name it has as a header.
pub const PROPERTY: &str = "traceparent";

/// The part of a collector's address that OTLP over HTTP names for traces.
const PATH: &str = "/v1/traces";

/// `[traces]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The collector's base address, such as `http://127.0.0.1:4318`. None: nothing is traced.
    pub otlp: Option<String>,
    /// The part of batches that is followed, 0 to 1; the same everywhere, or traces have holes.
    pub ratio: f64,
    /// What the collector wants to see in each request: credentials.
    pub headers: BTreeMap<String, String>,
    /// PEM: the authorities by which an `https` collector is known.
    pub ca: PathBuf,
    /// Seconds that a request may take, tries included.
    pub timeout_s: u64,
    /// Seconds between two requests.
    pub every_s: u64,
    /// Spans that wait at most.
    pub queue: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            otlp: None,
            ratio: 1.0,
            headers: BTreeMap::new(),
            ca: PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
            timeout_s: 10,
            every_s: 2,
            queue: 4096,
        }
    }
}

/// Why nothing can be told with these settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address.
    #[error("[traces] otlp is {0:?}; accepted: http://HOST:PORT or https://HOST:PORT")]
    Address(String),
    /// Not a part.
    #[error("[traces] ratio is {0}; accepted: 0 to 1")]
    Ratio(f64),
    /// Nothing could ever wait.
    #[error("[traces] {0} is 0; accepted: 1 or more")]
    Zero(&'static str),
    /// The authorities' file.
    #[error("cannot read [traces] ca {path}")]
    Ca {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The exporter.
    #[error("the exporter of traces cannot be made")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

impl Settings {
    /// Checks what can be checked without a collector.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(address) = &self.otlp
            && !["http://", "https://"].iter().any(|scheme| {
                address.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
            })
        {
            return Err(Error::Address(address.clone()));
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(Error::Ratio(self.ratio));
        }
        for (name, value) in
            [("timeout_s", self.timeout_s), ("every_s", self.every_s), ("queue", self.queue as u64)]
        {
            if value == 0 {
                return Err(Error::Zero(name));
            }
        }
        Ok(())
    }
}

/// A stretch of a batch's way.
#[derive(Debug)]
pub struct Span {
    /// What was done.
    pub name: &'static str,
    /// What it is to others, as OpenTelemetry has it.
    pub kind: SpanKind,
    /// When it began, UTC microseconds.
    pub from_us: i64,
    /// When it ended.
    pub to_us: i64,
    /// Beside the time: names by OpenTelemetry's conventions for messaging, `kinara.…` beyond them.
    pub attributes: Vec<KeyValue>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Span {
    /// One inside a program, without anything to say about it.
    pub fn inside(name: &'static str, from_us: i64, to_us: i64) -> Self {
        Self { name, kind: SpanKind::Internal, from_us, to_us, attributes: Vec::new(), error: None }
    }
}

/// Under what a span stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    trace: TraceId,
    span: SpanId,
    remote: bool,
}

/// Tells spans to a collector. Cheap to share behind an `Arc`; ends with [`Traces::close`].
#[derive(Debug)]
pub struct Traces {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    ratio: f64,
}

impl Traces {
    /// Begins to tell, as the program `service` of this `instance` (a gateway's id, a bridge's name). None where no
    /// collector is configured.
    pub fn open(
        settings: &Settings,
        service: &'static str,
        version: &'static str,
        instance: String,
    ) -> Result<Option<Self>, Error> {
        settings.check()?;
        let Some(address) = &settings.otlp else { return Ok(None) };
        let timeout = Duration::from_secs(settings.timeout_s);
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}{PATH}", address.trim_end_matches('/')))
            .with_timeout(timeout)
            .with_headers(settings.headers.clone().into_iter().collect())
            .with_http_client(export::Client::new(
                timeout,
                address.starts_with("https:").then_some(&settings.ca),
            )?)
            .build()?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.namespace", "kinara"),
                KeyValue::new("service.name", service),
                KeyValue::new("service.version", version),
                KeyValue::new("service.instance.id", instance),
            ])
            .build();
        opentelemetry_sdk::trace::SpanExporter::set_resource(&mut exporter, &resource);
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue)
            .with_max_export_batch_size(settings.queue.min(512))
            .with_scheduled_delay(Duration::from_secs(settings.every_s))
            .build();
        let processor = BatchSpanProcessor::new(exporter, config);
        let scope = InstrumentationScope::builder(service).with_version(version).build();
        tracing::info!(collector = address, ratio = settings.ratio, "batches are traced");
        Ok(Some(Self { processor, scope, ratio: settings.ratio }))
    }

    /// Whether this batch is followed.
    pub fn follows(&self, batch: &BatchId) -> bool {
        batch.is_within(self.ratio)
    }

    /// Tells the span that everything about a batch stands under.
    pub fn batch(&self, batch: &BatchId, span: Span) {
        self.told(batch.trace(), batch.root(), None, span);
    }

    /// Tells a span, and gives what may stand under it.
    pub fn span(&self, parent: Parent, span: Span) -> Parent {
        let id = SpanId::from_bytes(rand::random());
        self.told(parent.trace, id, Some(parent), span);
        Parent { trace: parent.trace, span: id, remote: false }
    }

    fn told(&self, trace: TraceId, id: SpanId, parent: Option<Parent>, span: Span) {
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent.map_or(SpanId::INVALID, |parent| parent.span),
            parent_span_is_remote: parent.is_some_and(|parent| parent.remote),
            span_kind: span.kind,
            name: span.name.into(),
            start_time: system_time(span.from_us),
            end_time: system_time(span.to_us.max(span.from_us)),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Tells what waits, for as long as a request may take, and ends. Blocks.
    pub fn close(&self, within: Duration) {
        if let Err(error) = self.processor.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last spans were not told");
        }
    }
}

fn system_time(utc_us: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(utc_us).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused_with_what_would() {
        let with = |otlp: &str| Settings { otlp: Some(otlp.to_owned()), ..Settings::default() };
        for good in ["http://127.0.0.1:4318", "https://collector.example/otlp"] {
            with(good).check().unwrap();
        }
        for bad in ["127.0.0.1:4318", "http://", "http:///v1", "grpc://x"] {
            assert!(with(bad).check().unwrap_err().to_string().contains("accepted"), "{bad}");
        }
        let ratio = Settings { ratio: 1.5, ..Settings::default() };
        assert!(matches!(ratio.check(), Err(Error::Ratio(_))));
        let queue = Settings { queue: 0, ..Settings::default() };
        assert!(matches!(queue.check(), Err(Error::Zero("queue"))));
    }

    #[test]
    fn without_a_collector_nothing_is_traced() {
        assert!(Traces::open(&Settings::default(), "t", "0", String::new()).unwrap().is_none());
    }
}
