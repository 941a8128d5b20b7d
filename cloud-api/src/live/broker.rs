//! Live values from the broker.
//!
//! After every error a new client and event loop are built and the subscription is made again: an old client's memory
//! of packets is not to be trusted (and live values are worth nothing a second later).

use std::sync::Arc;
use std::time::Duration;

use kinara_protocol::channel::{self, ChannelId};
use kinara_protocol::envelope::{self, TenantLive};
use kinara_protocol::frame::Epoch;
use kinara_protocol::topic;
use rand::Rng as _;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::hub::Hub;
use super::message::LiveReading;
use crate::config::BrokerConfig;
use crate::metrics::Metrics;

/// Shortest and longest wait before the next try.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long a connection may take to be made.
const CONNECT_TIMEOUT_S: u64 = 10;
/// Requests of ours that may wait: a subscription, a ping.
const REQUESTS: usize = 10;

/// Why the broker cannot be spoken to at all.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A PEM file.
    #[error("broker.{field}: cannot read {path}: {text}")]
    Pem {
        /// Which field.
        field: &'static str,
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        text: String,
    },
    /// The files do not fit together.
    #[error("broker: certificate and key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// A field is missing.
    #[error("broker.{0} is missing; with broker.tls = true it names a PEM file")]
    Missing(&'static str),
}

/// How to reach the broker, made once.
pub struct Broker {
    config: BrokerConfig,
    transport: Transport,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Broker {
    /// Reads the certificates.
    pub fn new(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let transport = if config.tls { tls(config)? } else { Transport::tcp() };
        Ok(Self { config: config.clone(), transport })
    }

    fn options(&self) -> MqttOptions {
        let id = format!("{}-{:08x}", self.config.client_id, rand::rng().random::<u32>());
        let mut options = MqttOptions::new(id, &self.config.host, self.config.port);
        options
            .set_transport(self.transport.clone())
            .set_keep_alive(Duration::from_secs(self.config.keep_alive_s.max(5)))
            .set_clean_start(true)
            .set_session_expiry_interval(Some(0))
            .set_connection_timeout(CONNECT_TIMEOUT_S)
            .set_max_packet_size(Some(envelope::MAX_SEALED as u32 + 1024));
        options
    }

    /// Takes live values into the hub until told to stop.
    pub async fn run(self, hub: Arc<Hub>, metrics: Arc<Metrics>, stop: CancellationToken) {
        let mut wait = RETRY.0;
        loop {
            let session = self.session(&hub, &metrics, &mut wait);
            tokio::select! {
                () = stop.cancelled() => return,
                error = session => {
                    metrics.broker_up(false);
                    tracing::warn!(error, retry_in = ?wait, "the broker is not there; no live values");
                }
            }
            let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// One connection, until it ends.
    async fn session(&self, hub: &Hub, metrics: &Metrics, wait: &mut Duration) -> String {
        let (client, mut events) = AsyncClient::new(self.options(), REQUESTS);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    if let Err(error) = client.try_subscribe(topic::all_tenants_live(), QoS::AtMostOnce) {
                        return error.to_string();
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    use rumqttc::v5::mqttbytes::v5::SubscribeReasonCode::Success;
                    if !ack.return_codes.iter().all(|code| matches!(code, Success(_))) {
                        return format!(
                            "the broker refuses the subscription ({:?}): check its ACL",
                            ack.return_codes
                        );
                    }
                    *wait = RETRY.0;
                    metrics.broker_up(true);
                    tracing::info!("connected to the broker");
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => take(hub, metrics, &publish),
                Ok(Event::Incoming(Packet::Disconnect(disconnect))) => {
                    return format!("the broker ends the session: {:?}", disconnect.reason_code);
                }
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    }
}

fn tls(config: &BrokerConfig) -> Result<Transport, BrokerError> {
    fn file<'a>(
        field: &'static str,
        path: Option<&'a std::path::PathBuf>,
    ) -> Result<&'a std::path::PathBuf, BrokerError> {
        path.ok_or(BrokerError::Missing(field))
    }
    let certificates = |field, path: &std::path::PathBuf| {
        let wrong = |error: rustls::pki_types::pem::Error| BrokerError::Pem {
            field,
            path: path.clone(),
            text: error.to_string(),
        };
        CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<Vec<_>, _>>().map_err(wrong)
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("ca", file("ca", config.ca.as_ref())?)? {
        roots.add(certificate)?;
    }
    let chain = certificates("cert", file("cert", config.cert.as_ref())?)?;
    let path = file("key", config.key.as_ref())?;
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| BrokerError::Pem {
        field: "key",
        path: path.clone(),
        text: error.to_string(),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(client))))
}

fn take(hub: &Hub, metrics: &Metrics, publish: &Publish) {
    let tenant = std::str::from_utf8(&publish.topic).ok().and_then(topic::parse_tenant_live);
    let Some(tenant) = tenant else { return };
    match envelope::open::<TenantLive>(&publish.payload) {
        Ok(live) if live.version == envelope::ENVELOPE_VERSION => {
            metrics.live_messages(true);
            give(hub, tenant, live);
        }
        Ok(live) => {
            metrics.live_messages(false);
            tracing::warn!(
                version = live.version,
                "live values of an envelope version that is not read here"
            );
        }
        Err(error) => {
            metrics.live_messages(false);
            tracing::warn!(%error, "live values that cannot be read");
        }
    }
}

/// Puts checked values of a tenant into the hub. Several components (acceleration) are no value for a page, and one that is
/// impossible is none that the database would show as the newest.
pub(crate) fn give(hub: &Hub, tenant: Uuid, live: TenantLive) {
    for device in live.devices {
        let (Ok(id), Ok(user), Some(values)) =
            (Uuid::from_slice(&device.device_id), Uuid::from_slice(&device.user_id), device.live)
        else {
            continue;
        };
        let epoch = values.epoch;
        let readings = values
            .values
            .iter()
            .filter_map(|value| {
                let channel = channel::by_id(ChannelId(u16::try_from(value.channel).ok()?))?;
                let [count] = value.value[..] else { return None };
                let measured = Some(channel.value(count)).filter(|measured| channel.in_range(*measured))?;
                let reading = LiveReading {
                    reading_type: channel.name.to_owned(),
                    value: measured,
                    unit: (!channel.unit.is_empty()).then(|| channel.unit.to_owned()),
                    time_ms: value.utc_us.div_euclid(1000),
                    key: format!("{}:{}:{}", Epoch(epoch), value.seq, value.index),
                    stored: false,
                };
                Some((i64::from(value.seq), reading))
            })
            .collect();
        hub.live(tenant, user, id, epoch, readings);
    }
}

#[cfg(test)]
mod tests {
    use kinara_clock::ManualClock;
    use kinara_protocol::channel::{HEART_RATE, SPO2};
    use kinara_protocol::envelope::{ENVELOPE_VERSION, LiveDevice, LiveValue, TenantLiveDevice};

    use super::*;
    use crate::config::LiveConfig;

    #[test]
    fn an_impossible_value_is_not_shown_and_what_came_before_it_stays_the_newest() {
        const NOW_US: i64 = 1_780_000_000_000_000;
        let clinic = Uuid::from_u128(1);
        let clock = Arc::new(ManualClock::new(NOW_US, 0));
        let hub = Hub::new(LiveConfig::default(), clock, Arc::new(Metrics::default()));
        let show = |channel: ChannelId, count: i32, ms: i64| {
            let value = LiveValue {
                channel: channel.0.into(),
                value: vec![count],
                utc_us: NOW_US + ms * 1_000,
                seq: 5,
                index: 0,
            };
            let live = LiveDevice { epoch: 7, values: vec![value], ..LiveDevice::default() };
            let ids = Uuid::from_u128(2).as_bytes().to_vec();
            let device = TenantLiveDevice { device_id: ids.clone(), user_id: ids, live: Some(live) };
            give(&hub, clinic, TenantLive { version: ENVELOPE_VERSION, devices: vec![device] });
        };
        show(HEART_RATE, 700, 0);
        show(HEART_RATE, 9_000, 1_000);
        show(SPO2, -1, 1_000);
        let shown: Vec<(String, f64)> = (hub.newest(clinic).into_iter())
            .map(|newest| (newest.reading.reading_type, newest.reading.value))
            .collect();
        assert_eq!(shown, [("heart_rate".to_owned(), 70.0)]);
    }
}
