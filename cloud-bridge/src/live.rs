//! Live values: never stored, but never shown to the wrong people either.
//!
//! The promise: a value is let through only to the clinic whose wearer has the device right now, from that clinic's own
//! gateway, with consent. What was looked up is believed for a few seconds at most.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_ingest::assign::{Consent, Moment, Whose, whose};
use kinara_ingest::directory::Directory;
use kinara_ingest::{Sender, identify, timestamp};
use kinara_protocol::envelope::{self, ENVELOPE_VERSION, Live, TenantLive, TenantLiveDevice};
use kinara_protocol::frame::Epoch;
use kinara_protocol::topic;
use kinara_store::Pool;
use lru::LruCache;
use rumqttc::v5::mqttbytes::QoS;
use tokio::time::Instant;
use uuid::Uuid;

use crate::link::Publisher;
use crate::metrics::Metrics;

/// Seconds for which a live value is worth delivering.
const EXPIRY_S: u32 = 5;
/// Devices remembered; beyond that whoever was not asked about for longest is looked up anew.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(20_000).expect("20,000 is not 0");

/// How long a device is remembered that nobody shows.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Checks live values and passes them on.
#[derive(Debug)]
pub struct Gate {
    pool: Pool,
    clock: Arc<dyn Clock>,
    believed_for: Duration,
    known: LruCache<(Uuid, String), (Instant, Option<Holder>)>,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    tenant: Uuid,
    user: Uuid,
    device: Uuid,
}

impl Gate {
    /// A gate that believes what it looked up for so long.
    pub fn new(pool: Pool, clock: Arc<dyn Clock>, believed_for: Duration) -> Self {
        Self { pool, clock, believed_for, known: LruCache::new(REMEMBERED) }
    }

    /// Checks what a gateway shows, and publishes what may be shown.
    pub async fn pass(
        &mut self,
        gateway: Uuid,
        mut live: Live,
        publisher: &Publisher,
        metrics: &Metrics,
    ) -> Result<(), kinara_ingest::Error> {
        live.devices.retain_mut(|device| identify(&mut device.hardware_id));
        self.look_up(gateway, &live).await?;
        let mut by_tenant: HashMap<Uuid, Vec<TenantLiveDevice>> = HashMap::new();
        for device in live.devices {
            let key = (gateway, device.hardware_id.clone());
            match self.known.get(&key) {
                Some((_, Some(holder))) => {
                    Metrics::count(&metrics.live_passed_total);
                    by_tenant.entry(holder.tenant).or_default().push(TenantLiveDevice {
                        device_id: holder.device.as_bytes().to_vec(),
                        user_id: holder.user.as_bytes().to_vec(),
                        live: Some(device),
                    });
                }
                _ => Metrics::count(&metrics.live_stopped_total),
            }
        }
        for (tenant, devices) in by_tenant {
            let message = TenantLive { version: ENVELOPE_VERSION, devices };
            let payload = envelope::seal(&message);
            publisher.publish(topic::tenant_live(tenant), QoS::AtMostOnce, false, payload, Some(EXPIRY_S));
        }
        Ok(())
    }

    /// Lets go of whoever was not shown for a while: of them nothing is believed any more.
    fn forget(&mut self, now: Instant) {
        let is_old = |since: Instant| now - since > self.believed_for.max(FORGOTTEN_AFTER);
        while self.known.peek_lru().is_some_and(|(_, (since, _))| is_old(*since)) {
            self.known.pop_lru();
        }
    }

    async fn look_up(&mut self, gateway: Uuid, live: &Live) -> Result<(), kinara_ingest::Error> {
        let now = Instant::now();
        let stale: Vec<&str> = live
            .devices
            .iter()
            .map(|device| device.hardware_id.as_str())
            .filter(|hardware| {
                let known = self.known.peek(&(gateway, (*hardware).to_owned()));
                known.is_none_or(|(since, _)| now - *since > self.believed_for)
            })
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        self.forget(now);
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let utc_us = self.clock.utc_us();
        let directory = Directory::at(&tx, gateway, &stale, timestamp(utc_us)).await?;
        tx.commit().await?;
        // An epoch that no boundary names: the time alone decides who has the device now.
        let moment = Moment { epoch: Epoch(0), seq: 0, first_us: utc_us, last_us: utc_us, uncertainty_us: 0 };
        for hardware in stale {
            let holder = directory.hardware(hardware).and_then(|device| {
                let Whose::Of(assignment) = whose(&device.assignments, &moment) else { return None };
                let consented = match assignment.consent {
                    Consent::Missing => false,
                    Consent::Given => true,
                    Consent::Withdrawn(at) => utc_us < at,
                };
                let ours = directory.tenant_of(Sender::Gateway(gateway)) == Some(assignment.tenant);
                (consented && ours && !assignment.erased).then_some(Holder {
                    tenant: assignment.tenant,
                    user: assignment.user,
                    device: assignment.device,
                })
            });
            self.known.put((gateway, hardware.to_owned()), (now, holder));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kinara_clock::ManualClock;

    use super::*;

    #[tokio::test]
    async fn devices_that_nobody_shows_any_more_are_forgotten_and_the_others_are_not() {
        let pool = kinara_store::connect(
            "postgres://nobody@localhost/none",
            "test",
            &kinara_store::Limits::default(),
        );
        let mut gate = Gate::new(pool.unwrap(), Arc::new(ManualClock::new(0, 0)), Duration::from_secs(3));
        let (began, later) = (Instant::now(), Instant::now() + FORGOTTEN_AFTER + Duration::from_secs(1));
        for device in 0..5_000 {
            gate.known.put((Uuid::nil(), device.to_string()), (began, None));
        }
        gate.known.put((Uuid::nil(), "shown".to_owned()), (later, None));
        gate.forget(began + FORGOTTEN_AFTER);
        assert_eq!(gate.known.len(), 5_001);
        gate.forget(later);
        assert_eq!(gate.known.len(), 1);
    }
}
