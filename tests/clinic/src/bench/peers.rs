//! What most people would write in place of the bridge: a Python subscriber that inserts, by executemany or by COPY.
//!
//! It gets the easier work: JSON that is rows already, one broker without TLS, no ledger, no assignment, no aggregates, one
//! table without partitions with the index that ours has. Batches are those of a gateway with ten wearables: five seconds.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kinara_protocol::channel::{self, ChannelId};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use uuid::Uuid;

use super::load::Load;
use super::rounded;
use crate::clinic::root;
use crate::{Clinic, ClinicError, Result};

const TOPIC: &str = "peer/readings";
const SLICE_MS: u64 = 5_000;
const TOGETHER: usize = 10;
/// Rows for each way: enough for ten seconds of the slower one.
const ROWS: usize = 200_000;
/// Versions of 2026-11; a newer one is as good.
const PACKAGES: [&str; 2] = ["paho-mqtt==2.1.0", "psycopg[binary]==3.2.13"];
const PATIENCE: Duration = Duration::from_mins(5);

/// Rows a second, by way; null where Python's packages cannot be had.
pub async fn rates(clinic: &Clinic, loads: &[Load]) -> Result<Value> {
    let packages = root().join(".kinara/bench/peers");
    if !packages.join("psycopg").exists() {
        let installed = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&packages)
            .args(PACKAGES)
            .status();
        if !installed.is_ok_and(|status| status.success()) {
            eprintln!("Python's packages cannot be installed: no peers");
            return Ok(Value::Null);
        }
    }
    let batches = batches(loads);
    let broker = Broker::start().await?;
    let mut out = serde_json::Map::new();
    for how in ["executemany", "copy"] {
        clinic.database.sql(
            "DROP TABLE IF EXISTS peer_readings;
             CREATE TABLE peer_readings (time timestamptz NOT NULL, tenant_id uuid NOT NULL, user_id uuid NOT NULL,
               device_id uuid NOT NULL, type int2 NOT NULL, idx int2 NOT NULL, epoch int8 NOT NULL, seq int8 NOT NULL,
               value float8 NOT NULL, quality real NOT NULL);
             CREATE INDEX ON peer_readings (tenant_id, user_id, type, time DESC); CHECKPOINT",
        )?;
        let rate = rate(&broker, &clinic.database.admin_url(), &packages, how, &batches).await?;
        eprintln!("Python with {how}: {rate:.0} rows/s");
        out.insert(how.to_owned(), json!(rounded(rate)));
    }
    clinic.database.sql("DROP TABLE peer_readings")?;
    Ok(Value::Object(out))
}

/// Messages of rows, and how many rows there are in all.
fn batches(loads: &[Load]) -> (Vec<String>, usize) {
    let (mut out, mut total) = (Vec::new(), 0);
    for together in loads.chunks(TOGETHER) {
        let mut slices: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for (place, load) in together.iter().enumerate() {
            let id = Uuid::from_u128(place as u128 + 1);
            for sample in &load.samples {
                let Some(channel) = channel::by_id(ChannelId(sample.channel)) else { continue };
                let us = load.booted_us + sample.ticks as i64 * 1_000;
                let time = jiff::Timestamp::from_microsecond(us).unwrap_or_default().to_string();
                let value = channel.value(sample.value.parts()[0]);
                slices.entry(sample.ticks / SLICE_MS).or_default().push(json!([
                    time,
                    id,
                    id,
                    id,
                    sample.channel,
                    0,
                    load.epoch as i64,
                    sample.ticks,
                    value,
                    1.0
                ]));
            }
        }
        for rows in slices.into_values() {
            if total >= ROWS {
                return (out, total);
            }
            total += rows.len();
            out.push(Value::Array(rows).to_string());
        }
    }
    (out, total)
}

struct Broker {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Broker {
    async fn start() -> Result<Self> {
        let file = |source| ClinicError::file("the peers' broker")(source);
        let folder = tempfile::tempdir().map_err(file)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .map_err(file)?
            .port();
        let settings = folder.path().join("mosquitto.conf");
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n");
        std::fs::write(&settings, text).map_err(file)?;
        let program = if std::path::Path::new("/usr/sbin/mosquitto").exists() {
            "/usr/sbin/mosquitto"
        } else {
            "mosquitto"
        };
        let child = Command::new(program)
            .arg("-c")
            .arg(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(file)?;
        let broker = Self { child, port, _folder: folder };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(broker);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(trouble("its broker does not listen"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn rate(
    broker: &Broker,
    url: &str,
    packages: &std::path::Path,
    how: &str,
    (batches, rows): &(Vec<String>, usize),
) -> Result<f64> {
    let mut consumer = Command::new("python3")
        .arg(root().join("tests/clinic/peers/consumer.py"))
        .args([&broker.port.to_string(), TOPIC, url, how, &rows.to_string()])
        .env("PYTHONPATH", packages)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(ClinicError::file("python3"))?;
    let mut said = BufReader::new(consumer.stdout.take().expect("its output is piped")).lines();
    let mut line = move || said.next().and_then(std::result::Result::ok).unwrap_or_default();
    if line() != "ready" {
        let _ = consumer.wait();
        return Err(trouble("it did not come up"));
    }
    let waited = tokio::task::spawn_blocking(line);
    publish(broker.port, batches).await?;
    let seconds = tokio::time::timeout(PATIENCE, waited).await;
    if seconds.is_err() {
        let _ = consumer.kill();
    }
    let _ = consumer.wait();
    let text = seconds.map_err(|_| trouble("it did not end"))?.unwrap_or_default();
    let seconds: f64 = text.trim().parse().map_err(|_| trouble("it ended early"))?;
    Ok(*rows as f64 / seconds)
}

async fn publish(port: u16, batches: &[String]) -> Result<()> {
    let mut options = MqttOptions::new("peer-publisher", "127.0.0.1", port);
    options.set_max_packet_size(Some(4 << 20));
    let (client, mut events) = AsyncClient::new(options, 16);
    let sent = async {
        for batch in batches {
            client
                .publish(TOPIC, QoS::AtLeastOnce, false, batch.clone())
                .await
                .map_err(|error| trouble(&error.to_string()))?;
        }
        Ok(())
    };
    let acknowledged = async {
        let mut left = batches.len();
        while left > 0 {
            if let Event::Incoming(Packet::PubAck(_)) =
                events.poll().await.map_err(|error| trouble(&error.to_string()))?
            {
                left -= 1;
            }
        }
        Ok(())
    };
    tokio::try_join!(sent, acknowledged).map(|_| ())
}

fn trouble(what: &str) -> ClinicError {
    ClinicError::Answer { who: "the Python consumer".to_owned(), what: what.to_owned() }
}
