//! A bridge on a real Mosquitto and a real PostgreSQL, and gateways that speak to it.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kinara_cloud_bridge::config::Config;
use kinara_protocol::envelope::{self, Ack, ack};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_test_postgres::Options;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::*;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Mutual TLS as in production: an authority, the broker's certificate, and one for each client.
pub struct Certificates {
    pub dir: tempfile::TempDir,
    pub ca: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { dir, ca: rcgen::Issuer::new(params, key) }
    }

    pub fn issue(&self, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub fn path(&self, file: &str) -> std::path::PathBuf {
        self.dir.path().join(file)
    }

    pub fn section(&self, name: &str, port: u16) -> String {
        let file = |file: &str| self.path(file).display().to_string();
        format!(
            "host = '127.0.0.1'\nport = {port}\nclient_id = '{name}'\nshare_group = 's3cret'\nca = '{}'\ncert = '{}'\nkey = '{}'\n",
            file("ca.pem"),
            file(&format!("{name}.pem")),
            file(&format!("{name}.key"))
        )
    }
}

pub struct Broker {
    pub child: Child,
    pub port: u16,
}

impl Broker {
    pub fn start(certificates: &Certificates) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = certificates.dir.path().display();
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\ncafile {dir}/ca.pem\ncertfile {dir}/broker.pem\n\
             keyfile {dir}/broker.key\nrequire_certificate true\ntls_version tlsv1.3\nmax_inflight_messages 100\n\
             max_queued_messages 20000\nuser root\n"
        );
        let file = certificates.path("mosquitto.conf");
        std::fs::write(&file, text).unwrap();
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"]
            .into_iter()
            .find(|program| Path::new(program).exists())
            .expect("mosquitto is installed");
        let child = Command::new(program)
            .arg("-c")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let broker = Self { child, port };
        // Whoever connects first must not be faster than it.
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "the broker does not listen");
            std::thread::yield_now();
        }
        broker
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Bridge {
    pub stop: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
}

impl Bridge {
    pub async fn start(world: &World, certificates: &Certificates, broker: &Broker, extra: &str) -> Self {
        Self::start_with(world, certificates, broker, "", extra).await
    }

    /// With more in its section on the database.
    pub async fn start_with(
        world: &World,
        certificates: &Certificates,
        broker: &Broker,
        database: &str,
        extra: &str,
    ) -> Self {
        certificates.issue("bridge");
        let address = certificates.path("bridge.addr");
        let text = format!(
            "[database]\nurl = '{}'\n{database}[broker]\n{}\n[metrics]\nlisten = '127.0.0.1:0'\naddr_file = '{}'\n{extra}",
            world.server.url("bridge", "bridge", "test_0"),
            certificates.section("bridge", broker.port),
            address.display(),
        );
        let config = Config::parse(&text, Path::new("bridge.toml")).unwrap();
        let stop = CancellationToken::new();
        let run = kinara_cloud_bridge::run(config, world.clock.clone(), stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        tokio::time::timeout(PATIENCE, async {
            while !health(&address).await.starts_with("HTTP/1.1 200") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap();
        Self { stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

pub async fn health(address: &Path) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(address) = std::fs::read_to_string(address) else { return String::new() };
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return String::new() };
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text).await;
    text
}

pub struct Gateway {
    pub id: Uuid,
    pub client: AsyncClient,
    pub events: EventLoop,
    pub kept: VecDeque<Publish>,
}

impl Gateway {
    pub async fn connect(certificates: &Certificates, broker: &Broker, id: Uuid, topics: &[String]) -> Self {
        let name = id.to_string();
        certificates.issue(&name);
        let section = certificates.section(&name, broker.port);
        let config =
            Config::parse(&format!("[database]\nurl = ''\n[broker]\n{section}"), Path::new("gateway.toml"))
                .unwrap();
        let transport: Transport = kinara_cloud_bridge::link::transport(&config.broker).unwrap();
        assert!(matches!(transport, Transport::Tls(TlsConfiguration::Rustls(_))));
        let mut options = MqttOptions::new(name, "127.0.0.1", broker.port);
        options.set_transport(transport);
        options.set_max_packet_size(Some(400_000));
        let (client, events) = AsyncClient::new(options, 64);
        let mut gateway = Self { id, client, events, kept: VecDeque::new() };
        let own = [Leaf::Ack, Leaf::Command, Leaf::Config].map(|leaf| topic::of(GatewayId(id), leaf));
        for topic in own.iter().chain(topics) {
            gateway.client.try_subscribe(topic, QoS::AtLeastOnce).unwrap();
        }
        let mut granted = 0;
        while granted < own.len() + topics.len() {
            match tokio::time::timeout(PATIENCE, gateway.events.poll()).await.unwrap().unwrap() {
                Event::Incoming(Packet::SubAck(_)) => granted += 1,
                Event::Incoming(Packet::Publish(publish)) => gateway.kept.push_back(publish),
                _ => {}
            }
        }
        gateway
    }

    pub fn publish(&self, leaf: Leaf, payload: Vec<u8>, name: Option<(u64, u64)>) {
        let user_properties = name.map_or_else(Vec::new, |(buffer, sequence)| {
            vec![
                ("gateway".to_owned(), self.id.to_string()),
                ("buffer".to_owned(), buffer.to_string()),
                ("sequence".to_owned(), sequence.to_string()),
            ]
        });
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        let topic = topic::of(GatewayId(self.id), leaf);
        self.client.try_publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).unwrap();
    }

    /// Waits until the broker has what was published: nothing goes out before somebody waits.
    pub async fn sent(&mut self) {
        let all = async {
            loop {
                match self.events.poll().await.unwrap() {
                    Event::Incoming(Packet::PubAck(_)) => return,
                    Event::Incoming(Packet::Publish(publish)) => self.kept.push_back(publish),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
    }

    pub async fn next(&mut self, wanted: &str) -> Publish {
        let all = async {
            loop {
                if let Some(at) = self.kept.iter().position(|publish| publish.topic == wanted.as_bytes()) {
                    return self.kept.remove(at).unwrap();
                }
                if let Event::Incoming(Packet::Publish(publish)) = self.events.poll().await.unwrap() {
                    self.kept.push_back(publish);
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("nothing came on {wanted}"))
    }

    pub async fn ack(&mut self) -> Ack {
        let topic = topic::of(GatewayId(self.id), Leaf::Ack);
        envelope::open(&self.next(&topic).await.payload).unwrap()
    }
}

pub fn payload(gateway: Uuid, sequence: u64, range: std::ops::Range<u32>) -> Vec<u8> {
    envelope::seal(&envelope_of(gateway, sequence, vec![columns_of(HARDWARE, &seconds(range))]))
}

pub fn done(ack: &Ack) -> (u64, u64) {
    match ack.outcome.as_ref().unwrap() {
        ack::Outcome::Done(done) => (done.stored, done.duplicate),
        other => panic!("{other:?}"),
    }
}

pub async fn ground(options: Options) -> (World, Certificates, Broker) {
    let world = world_on(options).await;
    let certificates = Certificates::new();
    certificates.issue("broker");
    let broker = Broker::start(&certificates);
    (world, certificates, broker)
}

pub async fn figures(certificates: &Certificates) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = std::fs::read_to_string(certificates.path("bridge.addr")).unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let all = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A request as the API takes it: `None` is a payload that nobody can read.
pub async fn request(world: &World, items: Option<&str>) -> Uuid {
    use kinara_ingest::items;
    let payload = items.map_or_else(
        || b"no request".to_vec(),
        |text| items::pack(&items::read(text.as_bytes(), items::Form::Json, None).unwrap().batches),
    );
    let row = world
        .admin
        .query_one(
            "INSERT INTO ingest_requests (tenant_id, digest, items, refused, told, payload)
             VALUES ($1, '', 1, 0, '[]', $2) RETURNING id",
            &[&TENANT, &payload],
        )
        .await
        .unwrap();
    row.get(0)
}
