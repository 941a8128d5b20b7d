//! A link to another maker's sensor: the measurements of the services that are understood.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::Inner;
use super::adapter::Identity;
use super::bus::Bus;
use super::link::{self, Hold, Need};
use super::objects::{service_number, short_uuid};
use super::proof::Linkd;
use crate::radio::{
    AdapterId, Bond, RadioError, SensorConnection, SensorEvent, SensorKind, SensorLink, SensorReport,
};

/// Measurements that may wait; a sensor sends one a second.
const EVENTS: usize = 64;

/// Connects to a sensor and turns on what it measures.
pub async fn open(
    radio: &Inner,
    bus: &Arc<Bus>,
    id: &AdapterId,
    bond: &Bond,
) -> Result<SensorConnection, RadioError> {
    let identity = Identity::of(bond).ok_or(RadioError::StaleBond)?;
    let linked = link::open(radio, bus, id, bond).await?;
    let (sender, events) = mpsc::channel(EVENTS);
    let services = bus.limited("its services", linked.device.uuids()).await?.unwrap_or_default();
    let mut measured = 0;
    for kind in &radio.settings.sensors {
        let service = short_uuid(service_number(*kind));
        let needed = needed(*kind, &services);
        let looked =
            link::characteristics(bus, &linked, radio.settings.resolve, service, Need::OneOf(&needed)).await;
        let mut found = match looked {
            Err(error @ RadioError::Gone(_)) => return Err(error),
            Err(error) => {
                // One service that does not come takes nothing from the others.
                tracing::warn!(device = %linked.device.address(), ?kind, %error, "it tells of a service that is not there");
                continue;
            }
            Ok(found) => found,
        };
        for (uuid, report) in reports(*kind) {
            let Some(remote) = found.remove(uuid) else { continue };
            let report = *report;
            let values = bus.limited("subscribing", remote.notify()).await?;
            measured += 1;
            let (sender, lost) = (sender.clone(), linked.lost.clone());
            tokio::spawn(async move {
                let mut values = Box::pin(values);
                loop {
                    tokio::select! {
                        value = values.next() => {
                            let Some(value) = value else { return };
                            if sender.send(SensorEvent { report, bytes: Bytes::from(value) }).await.is_err() {
                                return;
                            }
                        }
                        () = lost.cancelled() => return,
                    }
                }
            });
        }
    }
    if measured == 0 {
        return Err(RadioError::Nonsense("it measures nothing that is understood".to_owned()));
    }
    radio.state(id).whole(identity.peer);
    let link = Sensor { adapter: id.clone(), identity, linkd: radio.linkd.clone(), hold: linked.hold };
    Ok(SensorConnection { events, link: Box::new(link) })
}

/// One of which has to be there before it is known what a service of a device measures: none where the device has no such
/// service. Without it a service that is exported a moment after the others would not be heard on the whole link.
fn needed(kind: SensorKind, services: &HashSet<uuid::Uuid>) -> Vec<uuid::Uuid> {
    if !services.contains(&short_uuid(service_number(kind))) {
        return Vec::new();
    }
    reports(kind).iter().map(|(uuid, _)| *uuid).collect()
}

/// The characteristics that carry a service's measurements.
fn reports(kind: SensorKind) -> &'static [(uuid::Uuid, SensorReport)] {
    match kind {
        SensorKind::HeartRate => const { &[(short_uuid(0x2a37), SensorReport::HeartRate)] },
        SensorKind::HealthThermometer => const { &[(short_uuid(0x2a1c), SensorReport::Temperature)] },
        SensorKind::PulseOximeter => {
            const {
                &[
                    (short_uuid(0x2a5f), SensorReport::OximetryContinuous),
                    (short_uuid(0x2a5e), SensorReport::OximetrySpotCheck),
                ]
            }
        }
    }
}

struct Sensor {
    adapter: AdapterId,
    identity: Identity,
    linkd: Linkd,
    hold: Hold,
}

impl SensorLink for Sensor {
    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>> {
        Box::pin(async move { self.linkd.rssi_dbm(&self.adapter, &self.identity).await })
    }

    fn disconnect(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.hold.close())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_that_a_device_tells_of_is_waited_for_and_no_other() {
        let services = HashSet::from([0x180d, 0x1822, 0x180a].map(short_uuid));
        assert_eq!(needed(SensorKind::HeartRate, &services), [short_uuid(0x2a37)]);
        assert_eq!(needed(SensorKind::PulseOximeter, &services), [0x2a5f, 0x2a5e].map(short_uuid));
        assert!(needed(SensorKind::HealthThermometer, &services).is_empty());
    }
}
