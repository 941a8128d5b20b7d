//! The connection to the broker.
//!
//! The promise: every connection is a fresh client with a clean session that subscribes anew; nothing is expected of a
//! connection that broke. What it had taken and not answered is published again by the gateways, which are the store.
//! PUBACKs are sent at once and mean nothing; the acknowledgement that counts is published after the commit. Nothing
//! here waits for a full client: what cannot be handed over is dropped, and the gateways ask again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_protocol::envelope::MAX_SEALED;
use kinara_protocol::topic::{self, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::config::Broker;
use crate::metrics::Metrics;

/// Messages that may wait in the client to be sent, and their bytes together: a live message of a clinic is as large as its
/// gateways make it.
const OUTGOING: usize = 4096;
const OUTGOING_BYTES: usize = 16 * 1024 * 1024;
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
    outbox: Arc<Mutex<Option<Outbox>>>,
    metrics: Arc<Metrics>,
}

/// A client, and the sizes of the messages that wait in it, in their order.
#[derive(Debug)]
struct Outbox {
    client: AsyncClient,
    waiting: VecDeque<usize>,
    bytes: usize,
}

impl Outbox {
    fn new(client: AsyncClient) -> Self {
        Self { client, waiting: VecDeque::new(), bytes: 0 }
    }

    fn publish(
        &mut self,
        topic: String,
        qos: QoS,
        retain: bool,
        payload: Vec<u8>,
        properties: PublishProperties,
    ) -> bool {
        let len = topic.len() + payload.len();
        if self.bytes + len > OUTGOING_BYTES
            || self.client.try_publish_with_properties(topic, qos, retain, payload, properties).is_err()
        {
            return false;
        }
        self.waiting.push_back(len);
        self.bytes += len;
        true
    }

    /// The oldest message is on its way.
    fn sent(&mut self) {
        self.bytes -= self.waiting.pop_front().unwrap_or(0);
    }
}

impl Publisher {
    /// A publisher without a client yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { outbox: Arc::default(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outbox>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, client: Option<AsyncClient>) {
        *self.lock() = client.map(Outbox::new);
    }

    /// A message has left the client, in the order in which they were handed to it.
    fn sent(&self) {
        if let Some(outbox) = &mut *self.lock() {
            outbox.sent();
        }
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
        let properties =
            PublishProperties { message_expiry_interval: expiry_s, ..PublishProperties::default() };
        let handed = (self.lock().as_mut())
            .is_some_and(|outbox| outbox.publish(topic, qos, retain, payload, properties));
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
                Ok(Event::Outgoing(Outgoing::Publish(_))) => publisher.sent(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(publisher: &Publisher, bytes: usize) -> bool {
        publisher.publish("t".to_owned(), QoS::AtMostOnce, false, vec![0; bytes], None)
    }

    #[test]
    fn what_waits_to_be_sent_is_bounded_in_bytes_and_there_is_room_again_when_it_was() {
        const MIB: usize = 1024 * 1024;
        let metrics = Arc::new(Metrics::default());
        let publisher = Publisher::new(metrics.clone());
        assert!(!publish(&publisher, 1), "there is no client");
        // Nobody sends what is handed to it.
        let (client, _events) = AsyncClient::new(MqttOptions::new("test", "localhost", 1), OUTGOING);
        publisher.set(Some(client.clone()));
        let handed = (0..100).filter(|_| publish(&publisher, MIB - 1)).count();
        assert_eq!(handed, OUTGOING_BYTES / MIB);
        assert_eq!(metrics.publish_failed_total.load(Ordering::Relaxed), 101 - handed as u64);
        publisher.sent();
        assert!(publish(&publisher, MIB / 2) && publish(&publisher, MIB / 4) && !publish(&publisher, MIB));
        // Another connection begins with nothing.
        publisher.set(Some(client));
        assert!(publish(&publisher, MIB));
        for _ in 0..3 {
            publisher.sent();
        }
        assert!(publish(&publisher, OUTGOING_BYTES - 1));
    }
}
