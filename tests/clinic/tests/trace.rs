//! One batch is followed from the gateway's seal to the rows, by the spans that the real programs tell a collector.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use kinara_clinic::{Assignment, Clinic, GatewayPlan, Options, WearablePlan};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

const PATIENCE: Duration = Duration::from_mins(1);
const TOKEN: &str = "a collector's word";

/// A span, and the program that told it.
#[derive(Debug, Clone)]
struct Told {
    service: String,
    span: Span,
}

impl Told {
    fn number(&self, key: &str) -> Option<i64> {
        match self.span.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()? {
            Value::IntValue(number) => Some(*number),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.span.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }
}

/// Takes what is told over OTLP, from those who have the word.
struct Collector {
    told: Arc<Mutex<Vec<Told>>>,
    address: String,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let told = Arc::<Mutex<Vec<Told>>>::default();
        let into = told.clone();
        let take = move |headers: HeaderMap, body: Bytes| {
            let into = into.clone();
            async move {
                assert_eq!(headers["content-type"], "application/x-protobuf");
                assert_eq!(headers["x-collector-token"], TOKEN);
                let request = ExportTraceServiceRequest::decode(body).unwrap();
                for resource in request.resource_spans {
                    let about = resource.resource.unwrap();
                    let span = Span { attributes: about.attributes, ..Span::default() };
                    let service = Told { service: String::new(), span };
                    let service = service.text("service.name").unwrap().to_owned();
                    let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                    into.lock().unwrap().extend(spans.map(|span| Told { service: service.clone(), span }));
                }
            }
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/v1/traces", post(take));
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { told, address, _runtime: runtime }
    }

    fn settings(&self) -> String {
        format!(
            "[traces]\notlp = \"{}\"\nevery_s = 1\nheaders = {{ x-collector-token = \"{TOKEN}\" }}\n",
            self.address
        )
    }

    /// The spans of the first trace of a batch of this gateway that brought readings, once it is whole, by name.
    fn whole(&self, gateway: &str, names: &[&str]) -> BTreeMap<String, Told> {
        let began = Instant::now();
        loop {
            let mut traces: BTreeMap<Vec<u8>, BTreeMap<String, Told>> = BTreeMap::new();
            for told in self.told.lock().unwrap().iter() {
                let trace = traces.entry(told.span.trace_id.clone()).or_default();
                trace.insert(told.span.name.clone(), told.clone());
            }
            let found = traces.into_values().find(|trace| {
                names.iter().all(|name| trace.contains_key(*name))
                    && trace["receive"].text("kinara.gateway.id") == Some(gateway)
                    && trace["receive"].number("kinara.readings") > Some(0)
            });
            if let Some(found) = found {
                return found;
            }
            let seen: Vec<_> = self.told.lock().unwrap().iter().map(|told| told.span.name.clone()).collect();
            assert!(began.elapsed() < PATIENCE, "no whole trace of {gateway}; told were {seen:?}");
            kinara_clinic::process::pause(Duration::from_millis(200));
        }
    }
}

#[test]
fn a_batch_is_followed_from_the_seal_to_the_rows() {
    let collector = Collector::start();
    let mut clinic = Clinic::start(Options::for_test("trace")).unwrap();
    let tenant = clinic.add_tenant("Asha Women's Clinic", "asha", "Asia/Kolkata").unwrap();
    let wearer = clinic.add_wearer(&tenant, "W001", "Meera K.").unwrap();
    clinic.add_bridge_with(&collector.settings()).unwrap();
    // One box tells traces, the other has never heard of them.
    let teller = clinic.add_gateway(&tenant, GatewayPlan::named("A").with(&collector.settings())).unwrap();
    let silent = clinic.add_gateway(&tenant, GatewayPlan::named("B")).unwrap();
    for (gateway, number) in [(teller, 1), (silent, 2)] {
        let plan = WearablePlan::new(0x4b1a_0000_0000_0000 + number, format!("Kinara-0{number}"), number);
        let wearable = clinic.add_wearable(plan).unwrap();
        clinic.introduce(gateway, wearable).unwrap();
        let from = clinic.records.since(jiff::Timestamp::now()).unwrap();
        let hardware = clinic.wearables[wearable].hardware_id.clone();
        clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None }).unwrap();
        clinic.wearables[wearable].process().start().unwrap();
        clinic.gateways[gateway].process().start().unwrap();
    }

    let stages = ["enrich", "decide", "write", "account", "commit"];
    let bridge = ["receive", "queue", "decode", "gather", "transaction"];
    let mut names: Vec<&str> = vec!["batch", "publish"];
    names.extend(bridge);
    names.extend(stages);
    let trace = collector.whole(&clinic.gateways[teller].id.to_string(), &names);
    let span = |name: &str| &trace[name].span;
    let under = |child: &str, parent: &str| {
        let (child, parent) = (span(child), span(parent));
        assert_eq!(child.parent_span_id, parent.span_id, "{} under {}", child.name, parent.name);
        assert!(child.start_time_unix_nano <= child.end_time_unix_nano, "{child:?}");
    };
    assert!(span("batch").parent_span_id.is_empty());
    for (child, parent) in [("publish", "batch"), ("receive", "batch"), ("transaction", "receive")] {
        under(child, parent);
    }
    for child in ["queue", "decode", "gather"] {
        under(child, "receive");
    }
    for child in stages {
        under(child, "transaction");
    }
    // All on one machine, so one clock: what comes later begins later, and nothing ends after what it is a part of.
    let slack = 5_000_000;
    let order =
        ["batch", "publish", "receive", "decode", "transaction", "enrich", "decide", "write", "commit"];
    for pair in order.windows(2) {
        let (first, second) = (span(pair[0]), span(pair[1]));
        assert!(first.start_time_unix_nano <= second.start_time_unix_nano + slack, "{pair:?}");
    }
    assert!(span("commit").end_time_unix_nano <= span("receive").end_time_unix_nano + slack);
    assert!(span("receive").end_time_unix_nano <= span("batch").end_time_unix_nano + slack);
    for (name, service) in
        [("batch", "kinara-gatewayd"), ("publish", "kinara-gatewayd"), ("receive", "kinara-cloud-bridge")]
    {
        assert_eq!(trace[name].service, service, "{name}");
    }
    let received = &trace["receive"];
    assert_eq!(received.number("kinara.stored"), received.number("kinara.frames"));
    assert_eq!(received.text("kinara.batch"), trace["publish"].text("kinara.batch"));
    assert!(trace.values().all(|told| told.span.status.as_ref().is_none_or(|status| status.code != 2)));

    // Of the box that tells nothing the bridge tells the whole, from the seal that the batch states.
    let trace = collector.whole(&clinic.gateways[silent].id.to_string(), &["batch", "receive", "commit"]);
    assert_eq!(trace["batch"].service, "kinara-cloud-bridge");
    assert!(!trace.contains_key("publish"));
    assert!(trace["batch"].span.start_time_unix_nano < trace["receive"].span.start_time_unix_nano);
    assert_eq!(trace["receive"].span.parent_span_id, trace["batch"].span.span_id);
    clinic.stop(Duration::from_secs(10));
}
