//! Figures about this program, in the Prometheus text format. Nothing in them names a clinic or a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the request histogram, in seconds.
const BOUNDS: [f64; 9] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 20.0];

#[derive(Debug, Default, Clone)]
struct Requests {
    count: u64,
    seconds: f64,
    buckets: [u64; BOUNDS.len()],
}

/// The counters.
#[derive(Debug, Default)]
pub struct Metrics {
    // Keys are the route table's own texts and statuses, so their number is bounded.
    requests: Mutex<BTreeMap<(String, &'static str, u16), Requests>>,
    logins: Mutex<BTreeMap<&'static str, u64>>,
    clients: AtomicI64,
    connections: AtomicI64,
    live_read: AtomicU64,
    live_refused: AtomicU64,
    overtaken: AtomicU64,
    broker_up: AtomicBool,
    listening: AtomicBool,
}

impl Metrics {
    /// A request was answered.
    pub fn request(&self, method: &axum::http::Method, route: &'static str, status: u16, took: Duration) {
        let method = match method.as_str() {
            known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS") => known.to_owned(),
            _ => "other".to_owned(),
        };
        let mut requests = self.requests.lock().expect("no panic while this lock is held");
        let entry = requests.entry((method, route, status)).or_default();
        entry.count += 1;
        entry.seconds += took.as_secs_f64();
        for (bucket, bound) in entry.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// A login was `accepted`, `refused`, `limited`, or a refresh token `reused`.
    pub fn logins(&self, outcome: &'static str) {
        *self.logins.lock().expect("no panic while this lock is held").entry(outcome).or_default() += 1;
    }

    /// Clients came or went.
    pub fn clients(&self, difference: i64) {
        self.clients.fetch_add(difference, Ordering::Relaxed);
    }

    /// Connections came or went.
    pub fn connections(&self, difference: i64) {
        self.connections.fetch_add(difference, Ordering::Relaxed);
    }

    /// A message of live values came, and was read or not.
    pub fn live_messages(&self, read: bool) {
        let counter = if read { &self.live_read } else { &self.live_refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Values were overtaken by newer ones before a slow client took them.
    pub fn overtaken(&self, count: u64) {
        self.overtaken.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether the broker is there.
    pub fn broker_up(&self, up: bool) {
        self.broker_up.store(up, Ordering::Relaxed);
    }

    /// Whether the broker is there.
    pub fn is_broker_up(&self) -> bool {
        self.broker_up.load(Ordering::Relaxed)
    }

    /// Whether notices from the database are heard. Gives what was said before.
    pub fn listening(&self, up: bool) -> bool {
        self.listening.swap(up, Ordering::Relaxed)
    }

    /// Whether notices from the database are heard.
    pub fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// All of it as text. `pool`: connections to the database, open and idle.
    pub fn text(&self, pool: (usize, usize)) -> String {
        let mut out = String::new();
        describe(
            &mut out,
            "kinara_api_request_seconds",
            "histogram",
            "Time to answer a request, by route and status.",
        );
        for ((method, route, status), r) in &*self.requests.lock().expect("no panic while this lock is held")
        {
            let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
            for (count, bound) in r.buckets.iter().zip(BOUNDS) {
                let _ = writeln!(out, "kinara_api_request_seconds_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "kinara_api_request_seconds_bucket{{{labels},le=\"+Inf\"}} {}", r.count);
            let _ = writeln!(out, "kinara_api_request_seconds_sum{{{labels}}} {}", r.seconds);
            let _ = writeln!(out, "kinara_api_request_seconds_count{{{labels}}} {}", r.count);
        }
        describe(&mut out, "kinara_api_logins_total", "counter", "Logins, by what came of them.");
        for (outcome, count) in &*self.logins.lock().expect("no panic while this lock is held") {
            let _ = writeln!(out, "kinara_api_logins_total{{outcome=\"{outcome}\"}} {count}");
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let gauge = |value: &AtomicI64| value.load(Ordering::Relaxed).to_string();
        let flag = |is: bool| u8::from(is).to_string();
        for (name, kind, help, value) in [
            ("kinara_api_live_clients", "gauge", "Pages that listen to live values.", gauge(&self.clients)),
            (
                "kinara_api_connections",
                "gauge",
                "Open connections, WebSockets included.",
                gauge(&self.connections),
            ),
            (
                "kinara_api_live_messages_total",
                "counter",
                "Messages of live values that were read.",
                load(&self.live_read),
            ),
            (
                "kinara_api_live_messages_refused_total",
                "counter",
                "Messages of live values that could not be read.",
                load(&self.live_refused),
            ),
            (
                "kinara_api_live_values_overtaken_total",
                "counter",
                "Live values that a slow page never saw.",
                load(&self.overtaken),
            ),
            ("kinara_api_broker_up", "gauge", "Whether the broker is there.", flag(self.is_broker_up())),
            (
                "kinara_api_database_listening",
                "gauge",
                "Whether notices from the database are heard.",
                flag(self.is_listening()),
            ),
            ("kinara_api_database_connections", "gauge", "Connections to the database.", pool.0.to_string()),
            ("kinara_api_database_connections_idle", "gauge", "Of these, idle.", pool.1.to_string()),
        ] {
            describe(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}

fn describe(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_says_what_it_is() {
        let metrics = Metrics::default();
        metrics.request(&axum::http::Method::GET, "/x", 200, Duration::ZERO);
        metrics.logins("accepted");
        let text = metrics.text((2, 1));
        let names = |word: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(word));
            lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
        };
        assert_eq!(names("# HELP "), names("# TYPE "));
        assert!(
            text.lines().filter(|line| line.starts_with("# HELP ")).all(|line| line.split(' ').count() > 4)
        );
    }
}
