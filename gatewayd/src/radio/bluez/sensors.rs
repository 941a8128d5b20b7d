//! A link to another maker's sensor: the measurements of the services that are understood.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::Inner;
use super::adapter::Identity;
use super::bus::Bus;
use super::link::{self, Hold};
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
    let mut measured = 0;
    for kind in &radio.settings.sensors {
        let service = short_uuid(service_number(*kind));
        let mut found = link::characteristics(bus, &linked, radio.settings.resolve, service, &[]).await?;
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
