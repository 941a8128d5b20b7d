//! The connection to the broker.
//!
//! The promise: every connection is a fresh client with a clean session that subscribes anew; nothing is expected of a
//! connection that broke. What it had taken and not answered is published again by the gateways, which are the store.
//! PUBACKs are sent at once and mean nothing; the acknowledgement that counts is published after the commit. Nothing
//! here waits for a full client: what cannot be handed over is dropped, and the gateways ask again.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kinara_protocol::envelope::MAX_SEALED;
use kinara_protocol::topic::{self, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::config::Broker;
use crate::metrics::Metrics;

/// Messages that may wait in the client to be sent.
const OUTGOING: usize = 4096;
/// Batches that the broker may send ahead of our PUBACKs.
const RECEIVE_MAXIMUM: u16 = 100;
/// Between two attempts to connect, growing from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Why there can be no connection, ever, with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A PEM file.
    #[error("cannot read {field} {path}: {reason}")]
    Pem {
        /// The field of `[broker]`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// What is in them.
    #[error("the certificates in [broker] do not fit together: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Hands messages to whichever client is connected.
#[derive(Debug, Clone)]
pub struct Publisher {
    client: Arc<Mutex<Option<AsyncClient>>>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// A publisher without a client yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { client: Arc::default(), metrics }
    }

    fn set(&self, client: Option<AsyncClient>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Publishes, if there is a connection with room. Says whether it was handed over.
    pub fn publish(
        &self,
        topic: String,
        qos: QoS,
        retain: bool,
        payload: Vec<u8>,
        expiry_s: Option<u32>,
    ) -> bool {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let properties =
            PublishProperties { message_expiry_interval: expiry_s, ..PublishProperties::default() };
        let handed = client.is_some_and(|client| {
            client.try_publish_with_properties(topic, qos, retain, payload, properties).is_ok()
        });
        if !handed {
            Metrics::count(&self.metrics.publish_failed_total);
        }
        handed
    }
}

/// Reads the certificates.
pub fn transport(broker: &Broker) -> Result<Transport, LinkError> {
    let (Some(ca), Some(cert), Some(key), true) = (&broker.ca, &broker.cert, &broker.key, broker.tls) else {
        return Ok(Transport::tcp());
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("ca", ca)? {
        roots.add(certificate)?;
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| pem("key", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("cert", cert)?, private)?;
    Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))))
}

fn pem(field: &'static str, path: &Path, error: &dyn std::fmt::Display) -> LinkError {
    LinkError::Pem { field, path: path.to_owned(), reason: error.to_string() }
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let file = File::open(path).map_err(|error| pem(field, path, &error))?;
    let all: Vec<CertificateDer<'static>> = CertificateDer::pem_reader_iter(BufReader::new(file))
        .collect::<Result<_, _>>()
        .map_err(|error| pem(field, path, &error))?;
    if all.is_empty() { Err(pem(field, path, &"no certificate in it")) } else { Ok(all) }
}

fn options(broker: &Broker, transport: &Transport, client_id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(client_id, broker.host.clone(), broker.port);
    options.set_transport(transport.clone());
    options.set_keep_alive(Duration::from_secs(broker.keep_alive_s.max(5)));
    options.set_connection_timeout(broker.connect_timeout_s.max(1));
    options.set_clean_start(true);
    options.set_session_expiry_interval(Some(0));
    options.set_receive_maximum(Some(RECEIVE_MAXIMUM));
    options.set_max_packet_size(Some(MAX_SEALED as u32 + 64 * 1024));
    options.set_outgoing_inflight_upper_limit(20);
    options
}

/// Keeps a connection until told to stop, and gives every message that comes in to `take`.
pub async fn keep(
    broker: &Broker,
    transport: Transport,
    publisher: &Publisher,
    metrics: &Metrics,
    stop: &CancellationToken,
    mut connected: impl FnMut(),
    mut take: impl FnMut(Publish),
) {
    let mut pause = PAUSE.0;
    // Nobody else can know it: a broker closes the older of two connections with one client id, whoever opens the other.
    let client_id = format!("{}-{}", broker.client_id, uuid::Uuid::new_v4().simple());
    while !stop.is_cancelled() {
        let (client, mut events) = AsyncClient::new(options(broker, &transport, &client_id), OUTGOING);
        loop {
            let event = tokio::select! {
                event = events.poll() => event,
                () = stop.cancelled() => {
                    farewell(&client, &mut events).await;
                    break;
                }
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    Metrics::count(&metrics.connections_total);
                    if let Err(error) = subscribe(&client, &broker.share_group) {
                        tracing::error!(%error, "cannot ask for the subscriptions");
                        break;
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    if ack.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_))) {
                        tracing::info!(host = %broker.host, port = broker.port, "subscribed");
                        metrics.subscribed.store(true, Ordering::Relaxed);
                        publisher.set(Some(client.clone()));
                        pause = PAUSE.0;
                        connected();
                    } else {
                        tracing::error!(codes = ?ack.return_codes, "the broker refuses a subscription: check its access list");
                        break;
                    }
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => take(publish),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, host = %broker.host, port = broker.port, "no connection to the broker");
                    break;
                }
            }
        }
        metrics.subscribed.store(false, Ordering::Relaxed);
        publisher.set(None);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn subscribe(client: &AsyncClient, group: &str) -> Result<(), Box<rumqttc::v5::ClientError>> {
    use rumqttc::v5::mqttbytes::v5::Filter;
    // States are retained, and retained messages do not reach shared subscriptions: every bridge takes all states.
    let filters = [
        Filter::new(topic::shared(group, Leaf::Event), QoS::AtLeastOnce),
        Filter::new(topic::shared(group, Leaf::Batch), QoS::AtLeastOnce),
        Filter::new(topic::shared(group, Leaf::CommandResult), QoS::AtLeastOnce),
        Filter::new(topic::shared(group, Leaf::Live), QoS::AtMostOnce),
        Filter::new(topic::all(Leaf::State), QoS::AtLeastOnce),
    ];
    client.try_subscribe_many(filters).map_err(Box::new)
}

/// Lets what is queued go out, then says goodbye.
async fn farewell(client: &AsyncClient, events: &mut rumqttc::v5::EventLoop) {
    if client.try_disconnect().is_err() {
        return;
    }
    let drain = async { while events.poll().await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), drain).await;
}
