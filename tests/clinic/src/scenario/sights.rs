//! What the harness can see from outside at the moment that a fault strikes: programs' metrics, wearables' own words.
//!
//! A fault waits a moment for what it is to strike, so that it bites; it strikes in any case, and only what was
//! really seen is noted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Stage;
use crate::oracle::witness::Witness;
use crate::process::{http_get, pause};
use crate::{ClinicError, Result};

/// How long a fault waits for something to strike.
pub const FOR_A_VICTIM: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(50);

/// What a gateway's metrics count as not yet acknowledged.
const HELD: [&str; 4] = ["unsealed_frames", "waiting_batches", "waiting_events", "parked_batches"];

/// Frames, batches and events that a gateway still holds.
pub fn buffered(metrics: &str) -> Result<u64> {
    let mut sum = 0.0;
    for name in HELD {
        sum += number(metrics, &format!("kinara_gateway_{name}")).ok_or_else(|| ClinicError::Answer {
            who: "/metrics".to_owned(),
            what: format!("does not tell kinara_gateway_{name}"),
        })?;
    }
    Ok(sum as u64)
}

/// The value of a series in Prometheus' text, labels included in its name.
pub fn number(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The text of `/metrics` at this address; nothing while the program is away.
pub fn metrics_at(address: Option<SocketAddr>) -> String {
    address.and_then(|address| http_get(address, "/metrics").ok()).map_or_else(String::new, |(_, text)| text)
}

impl Stage {
    /// Waits until `seen` holds, at most [`FOR_A_VICTIM`], and notes it if it came to hold.
    pub fn await_sight(&mut self, witness: Witness, mut seen: impl FnMut(&mut Self) -> bool) -> bool {
        self.await_sight_for(FOR_A_VICTIM, witness, &mut seen)
    }

    /// The same with a patience of one's own.
    pub fn await_sight_for(
        &mut self,
        patience: Duration,
        witness: Witness,
        seen: &mut dyn FnMut(&mut Self) -> bool,
    ) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if seen(self) {
                self.saw(witness);
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            pause(LOOK);
        }
    }

    /// A gateway's `/metrics`; nothing while it is away.
    pub fn gateway_metrics(&self, gateway: usize) -> String {
        metrics_at(self.clinic.gateways[gateway].local())
    }

    /// What a gateway holds that the cloud has not acknowledged.
    pub fn holds(&self, gateway: usize) -> u64 {
        buffered(&self.gateway_metrics(gateway)).unwrap_or(0)
    }

    /// Whether any gateway is connected and waits for the acknowledgement of a batch.
    pub fn batch_in_flight(&self) -> bool {
        self.clinic.gateways.iter().any(|gateway| {
            let metrics = metrics_at(gateway.local());
            let of = |name: &str| number(&metrics, &format!("kinara_gateway_{name}")).unwrap_or(0.0);
            of("uplink_connected") > 0.0 && of("waiting_batches") > 0.0
        })
    }

    /// Whether any gateway holds something.
    pub fn anybody_holds(&self) -> bool {
        (0..self.clinic.gateways.len()).any(|gateway| self.holds(gateway) > 0)
    }

    /// The gateway that a wearable is linked to, by its own word.
    pub fn linked(&self, wearable: usize) -> Option<String> {
        self.clinic.wearables[wearable].status().ok()?["linked"].as_str().map(str::to_owned)
    }

    /// Frames that a wearable keeps until they are acknowledged.
    pub fn unacknowledged(&self, wearable: usize) -> u64 {
        let status = self.clinic.wearables[wearable].status().unwrap_or_default();
        status["unacknowledged"].as_u64().unwrap_or(0)
    }

    /// Frames of a wearable that a gateway has received since it was started.
    pub fn received(&self, gateway: usize, wearable: usize) -> f64 {
        let hardware = &self.clinic.wearables[wearable].hardware_id;
        let series = format!("kinara_gateway_device_received_frames_total{{device=\"{hardware}\"}}");
        number(&self.gateway_metrics(gateway), &series).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gateway_holds_is_the_sum_of_its_queues() {
        let text = "kinara_gateway_unsealed_frames 3\nkinara_gateway_waiting_batches 2\n\
                    kinara_gateway_waiting_events 0\nkinara_gateway_parked_batches 0\n";
        assert_eq!(buffered(text).unwrap(), 5);
        assert!(buffered("kinara_gateway_unsealed_frames 3\n").is_err());
    }

    #[test]
    fn a_series_is_found_by_its_whole_name() {
        let text = "kinara_a_total 3\nkinara_a{device=\"x\"} 7\nkinara_a 1\n";
        assert_eq!(number(text, "kinara_a"), Some(1.0));
        assert_eq!(number(text, "kinara_a{device=\"x\"}"), Some(7.0));
        assert_eq!(number(text, "kinara_b"), None);
    }
}
