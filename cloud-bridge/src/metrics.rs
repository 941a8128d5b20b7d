//! What the bridge does, in numbers.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kinara_ingest::Counts;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:literal,)+) => {
        /// Counters and gauges.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: AtomicU64,)+
            /// Whether the broker has accepted the subscriptions.
            pub subscribed: AtomicBool,
            /// Whether the last transaction reached the database.
            pub database: AtomicBool,
        }

        impl Metrics {
            /// The numbers in Prometheus' text format.
            pub fn text(&self) -> String {
                let mut out = String::new();
                $(
                    let name = concat!("kinara_bridge_", stringify!($name));
                    let help = concat!($($help),+);
                    let value = self.$name.load(Ordering::Relaxed);
                    let _ = write!(out, "# HELP {name}{help}\n# TYPE {name} {}\n{name} {value}\n", $kind);
                )+
                for (name, help, value) in [
                    ("kinara_bridge_broker_up", "Whether the broker has accepted the subscriptions.", &self.subscribed),
                    ("kinara_bridge_database_up", "Whether the last transaction reached the database.", &self.database),
                ] {
                    let value = u8::from(value.load(Ordering::Relaxed));
                    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
                }
                out
            }
        }
    };
}

metrics! {
    /// Batches received.
    batches_total: "counter",
    /// Event batches received.
    event_batches_total: "counter",
    /// Readings in the batches of committed transactions, duplicates included.
    readings_total: "counter",
    /// Transactions committed.
    transactions_total: "counter",
    /// Transactions that found no database.
    transactions_failed_total: "counter",
    /// Frames and events written.
    stored_total: "counter",
    /// Frames and events that were in already.
    duplicate_total: "counter",
    /// Frames and events put aside.
    quarantined_total: "counter",
    /// Frames and events not kept for want of consent.
    discarded_total: "counter",
    /// Frames and events not kept for their age.
    expired_total: "counter",
    /// Frames written though another clinic has their numbers: somebody used them before.
    numbers_taken_total: "counter",
    /// Batches that could not be read at all.
    refused_total: "counter",
    /// Batches sent back for later.
    retry_after_total: "counter",
    /// Acknowledgements published.
    acks_total: "counter",
    /// Messages that could not be handed to the broker's client.
    publish_failed_total: "counter",
    /// Live values let through.
    live_passed_total: "counter",
    /// Live values stopped by the check.
    live_stopped_total: "counter",
    /// Messages dropped because their queue was full (live values and states).
    dropped_total: "counter",
    /// States received.
    states_total: "counter",
    /// States that could not be read, and were emptied at the broker.
    states_refused_total: "counter",
    /// Live messages that could not be read.
    live_refused_total: "counter",
    /// Connections made to the broker.
    connections_total: "counter",
    /// Bytes of payloads that wait.
    queue_bytes: "gauge",
    /// Payloads that wait.
    queue_length: "gauge",
    /// Gaps settled as lost.
    gaps_lost_total: "counter",
    /// Quarantined frames and events that found their wearer after all.
    replayed_total: "counter",
    /// Hours of a wearer and type whose aggregates were recomputed.
    rolled_up_total: "counter",
    /// Clinics whose aggregates the last round left out, since their smallest slice failed.
    rollup_skipped: "gauge",
    /// Names of time zones that the database does not know, as of the last round; days are made by UTC for them.
    unknown_time_zones: "gauge",
    /// Steps of housekeeping that failed and are tried again.
    housekeeping_failed_total: "counter",
    /// Windows of heart rate variability that were computed.
    hrv_windows_total: "counter",
    /// Requests that came over HTTP and are written.
    requests_total: "counter",
    /// Rows of erased wearers that were deleted.
    erased_total: "counter",
    /// Erased wearers of whom something may be left, since erasing them again failed.
    erase_failures_total: "counter",
    /// Windows of what came over HTTP that were looked at.
    inference_windows_total: "counter",
    /// Times that the model failed at one of them.
    inference_failures_total: "counter",
    /// Events that were found in them.
    inference_events_total: "counter",
    /// Times that a clinic's alert rules were looked at.
    evaluated_total: "counter",
    /// Alerts that a clinic's rules raised.
    alerts_raised_total: "counter",
    /// Days whose rows were compared with what was written.
    reconciled_days_total: "counter",
    /// Epochs whose numbers do not add up, as of the last comparison.
    differing_epochs: "gauge",
    /// Hours of a clinic whose rows are not what was written, as of the last comparison.
    differing_hours: "gauge",
    /// Jobs that wait, of all bridges.
    jobs_waiting: "gauge",
    /// Jobs that were tried as often as they are, and wait for an operator.
    jobs_dead: "gauge",
}

impl Metrics {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what became of a batch.
    pub fn outcome(&self, counts: &Counts) {
        for (counter, n) in [
            (&self.stored_total, counts.stored),
            (&self.duplicate_total, counts.duplicate),
            (&self.quarantined_total, counts.quarantined),
            (&self.discarded_total, counts.discarded),
            (&self.expired_total, counts.expired),
        ] {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }
}
