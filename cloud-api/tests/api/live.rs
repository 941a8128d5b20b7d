//! The live WebSocket, from a real Mosquitto and a real PostgreSQL to a real client.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Cloud, PASSWORD, Tenant, log_in, now};
use futures_util::{SinkExt as _, StreamExt as _};
use kinara_clock::SystemClock;
use kinara_cloud_api::{Service, routes};
use kinara_protocol::envelope::{LiveDevice, LiveValue, TenantLive, TenantLiveDevice, seal};
use kinara_protocol::topic;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const PATIENCE: Duration = Duration::from_secs(15);

struct Mosquitto {
    child: Child,
    config: PathBuf,
    port: u16,
}

impl Mosquitto {
    fn start(folder: &std::path::Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.join("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
        let child = Self::run(&config);
        Self { child, config, port }
    }

    fn run(config: &std::path::Path) -> Child {
        Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.child = Self::run(&self.config);
    }

    async fn publish(&self, topic: String, payload: Vec<u8>) {
        let options = MqttOptions::new("test", "127.0.0.1", self.port);
        let (client, mut events) = AsyncClient::new(options, 10);
        client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        tokio::time::timeout(PATIENCE, async {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::PubAck(_))) => break,
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await
        .unwrap();
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(service: &Service) -> Self {
        let url = format!("ws://{}/api/v1/live", service.address);
        Self(tokio_tungstenite::connect_async(url).await.unwrap().0)
    }

    async fn with_token(service: &Service, token: &str) -> Self {
        let mut client = Self::connect(service).await;
        client.send(&json!({ "token": token })).await;
        assert_eq!(client.next().await["type"], "ready");
        client
    }

    async fn send(&mut self, value: &Value) {
        self.0.send(Message::Text(value.to_string().into())).await.unwrap();
    }

    /// The next message, or how the server closed.
    async fn next_or_close(&mut self) -> Result<Value, u16> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("nothing came in time");
            match frame {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(0, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return Err(0),
            }
        }
    }

    async fn next(&mut self) -> Value {
        self.next_or_close().await.unwrap()
    }

    /// The next message of this kind.
    async fn wait_for(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
        }
    }
}

fn live(tenant: &Tenant, seq: u32, count: i32) -> Vec<u8> {
    let value = LiveValue { channel: 1, value: vec![count], utc_us: now().as_microsecond(), seq, index: 3 };
    seal(&TenantLive {
        version: 1,
        devices: vec![TenantLiveDevice {
            device_id: tenant.device.as_bytes().to_vec(),
            user_id: tenant.wearer.as_bytes().to_vec(),
            live: Some(LiveDevice { hardware_id: String::new(), epoch: 0xab, values: vec![value] }),
        }],
    })
}

async fn serve(cloud: &Cloud, more: &str) -> Service {
    Service::start(cloud.config(more), Arc::new(SystemClock)).await.unwrap()
}

async fn token(service: &Service, slug: &str) -> String {
    let email = format!("viewer@{slug}.example");
    let answer = log_in(&routes::router(&service.app), &email, PASSWORD).await;
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what} did not come in time"));
}

#[tokio::test]
async fn live_values_reach_their_clinics_pages_and_no_others_and_are_marked_when_stored() {
    let mut cloud = Cloud::start().await;
    let mut broker = Mosquitto::start(cloud.folder.path());
    let section = format!("[broker]\nhost = \"127.0.0.1\"\nport = {}\ntls = false\n", broker.port);
    let service = serve(&cloud, &section).await;
    let metrics = service.app.metrics.clone();
    until("the broker", || metrics.is_broker_up()).await;
    until("the notices", || metrics.is_listening()).await;
    cloud.readings(&cloud.here, 5, now() - jiff::SignedDuration::from_secs(60), &[(0, 1.5), (1, 2.5)]);
    let (here, there) = (token(&service, "here").await, token(&service, "there").await);
    let mut mine = Client::with_token(&service, &here).await;
    let mut theirs = Client::with_token(&service, &there).await;

    // At once: what is stored, the gateway, the device.
    let stored = mine.next().await;
    assert_eq!((&stored["type"], &stored["user_id"]), (&json!("live"), &json!(cloud.here.wearer)));
    assert_eq!(stored["readings"][0]["value"], 2.5);
    assert_eq!(stored["readings"][0]["stored"], true);
    assert_eq!(mine.wait_for("gateway").await["id"], json!(cloud.here.gateway));
    assert_eq!(mine.wait_for("device").await["id"], json!(cloud.here.device));
    assert_eq!(theirs.wait_for("gateway").await["id"], json!(cloud.there.gateway));
    assert_eq!(theirs.wait_for("device").await["id"], json!(cloud.there.device));

    broker.publish(topic::tenant_live(cloud.here.id), live(&cloud.here, 4, 723)).await;
    let value = mine.wait_for("live").await;
    assert_eq!(value["device_id"], json!(cloud.here.device));
    let reading = &value["readings"][0];
    assert_eq!((&reading["reading_type"], &reading["value"]), (&json!("heart_rate"), &json!(72.3)));
    assert_eq!((&reading["key"], &reading["stored"]), (&json!("00000000000000ab:4:3"), &json!(false)));
    assert_eq!(reading["unit"], "bpm");

    let notify = |channel: &str, payload: Value| {
        cloud.sql(&format!("SELECT pg_notify('{channel}', '{payload}')"));
    };
    let (tenant, device) = (cloud.here.id, cloud.here.device);
    notify(
        "kinara_stored",
        json!({ "tenant": tenant, "device": device, "epoch": "00000000000000ab", "seq": 4 }),
    );
    let mark = mine.wait_for("stored").await;
    assert_eq!(mark, json!({ "type": "stored", "device_id": device, "epoch": "00000000000000ab", "seq": 4 }));

    // Who comes now gets the newest value, and that it is stored.
    let mut late = Client::with_token(&service, &here).await;
    let snapshot = late.next().await;
    let heart = snapshot["readings"].as_array().unwrap().iter().find(|r| r["reading_type"] == "heart_rate");
    assert_eq!((&heart.unwrap()["value"], &heart.unwrap()["stored"]), (&json!(72.3), &json!(true)));

    let time = now();
    cloud.event(&cloud.here, time);
    notify(
        "kinara_event",
        json!({ "tenant": tenant, "user": cloud.here.wearer, "device": device, "time": time }),
    );
    let event = mine.wait_for("event").await;
    assert_eq!((&event["event_type"], &event["user_id"]), (&json!("hot_flash"), &json!(cloud.here.wearer)));

    cloud.sql(&format!("UPDATE devices SET battery_percent = 55 WHERE id = '{device}'"));
    notify("kinara_state", json!({ "tenant": tenant, "gateway": cloud.here.gateway }));
    assert_eq!(mine.wait_for("device").await["battery_percent"], 55);

    // The broker dies, the database's connection breaks: both come back by themselves, and what was missed is read.
    broker.kill();
    until("the broker's end", || !metrics.is_broker_up()).await;
    broker.restart();
    cloud.postgres.kill();
    until("the end of notices", || !metrics.is_listening()).await;
    cloud.postgres.restart().unwrap();
    cloud.sql(&format!("UPDATE devices SET battery_percent = 54 WHERE id = '{device}'"));
    assert_eq!(mine.wait_for("device").await["battery_percent"], 54);
    until("the broker again", || metrics.is_broker_up()).await;
    broker.publish(topic::tenant_live(cloud.here.id), live(&cloud.here, 5, 730)).await;
    loop {
        let value = mine.wait_for("live").await;
        if value["readings"][0]["value"] == 73.0 {
            break;
        }
    }

    // Through all of this nothing came to the other clinic.
    broker.publish(topic::tenant_live(cloud.there.id), live(&cloud.there, 9, 600)).await;
    loop {
        let value = theirs.next().await;
        assert!(!value.to_string().contains(&device.to_string()), "{value}");
        if value["type"] == "live" {
            assert_eq!(value["device_id"], json!(cloud.there.device));
            break;
        }
    }
    let (address, figures) = (service.address, metrics.text((0, 0)));
    assert!(figures.contains("kinara_api_live_clients 3"), "{figures}");
    service.stop().await;
    assert_eq!(mine.next_or_close().await, Err(1001));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_page_is_cut_off_without_a_token_in_time_and_at_its_tokens_end_unless_it_brings_the_next() {
    let cloud = Cloud::start().await;
    let settings = "[login]\naccess_s = 3\n[live]\ntoken_timeout_s = 1\nclients_per_tenant = 2\n";
    let service = serve(&cloud, settings).await;
    let mut silent = Client::connect(&service).await;
    assert_eq!(silent.next_or_close().await, Err(4408));
    for wrong in [json!({ "token": "x" }), json!({ "hello": 1 }), json!("x")] {
        let mut client = Client::connect(&service).await;
        client.send(&wrong).await;
        assert_eq!(client.next_or_close().await, Err(4401));
    }
    let mut large = Client::connect(&service).await;
    large.send(&json!({ "token": "x".repeat(20_000) })).await;
    assert!(large.next_or_close().await.is_err());

    let mut ending = Client::with_token(&service, &token(&service, "here").await).await;
    let mut renewing = Client::with_token(&service, &token(&service, "here").await).await;
    // Logging in takes a while on a busy machine, and a page has a second to say its token.
    let mine = json!({ "token": token(&service, "here").await });
    let mut third = Client::connect(&service).await;
    third.send(&mine).await;
    assert_eq!(third.next_or_close().await, Err(4429));

    tokio::time::sleep(Duration::from_millis(1500)).await;
    renewing.send(&json!({ "token": token(&service, "here").await })).await;
    let end = loop {
        if let Err(code) = ending.next_or_close().await {
            break code;
        }
    };
    assert_eq!(end, 4401);
    // Still there: what it sends is read, and another clinic's token ends it.
    renewing.send(&json!({ "token": token(&service, "there").await })).await;
    let end = loop {
        if let Err(code) = renewing.next_or_close().await {
            break code;
        }
    };
    assert_eq!(end, 4401);
    service.stop().await;
}

#[tokio::test]
async fn a_page_that_listens_holds_one_of_the_connections_that_may_be_open() {
    let cloud = Cloud::start().await;
    let service = serve(&cloud, "[limits]\nconnections = 2\n").await;
    let mut first = Client::connect(&service).await;
    let _second = Client::connect(&service).await;
    let mut third = Box::pin(Client::connect(&service));
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut third).await.is_err());
    first.0.close(None).await.unwrap();
    while first.next_or_close().await.is_ok() {}
    drop(first);
    tokio::time::timeout(PATIENCE, third).await.expect("a place that was left is taken");
    service.stop().await;
}

#[tokio::test]
async fn a_page_of_a_member_who_was_disabled_is_cut_off_long_before_its_token_ends() {
    let cloud = Cloud::start().await;
    let service = serve(&cloud, "[login]\nstanding_s = 1\n[live]\nping_s = 1\n").await;
    let mut page = Client::with_token(&service, &token(&service, "here").await).await;
    let mut other = Client::with_token(&service, &token(&service, "there").await).await;
    cloud.admin(&["member", "disable", "--tenant", "here", "--email", "viewer@here.example"]).await.unwrap();
    let end = loop {
        if let Err(code) = page.next_or_close().await {
            break code;
        }
    };
    assert_eq!(end, 4401);
    other.send(&json!({ "token": token(&service, "there").await })).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    service.stop().await;
    let end = loop {
        if let Err(code) = other.next_or_close().await {
            break code;
        }
    };
    assert_eq!(end, 1001, "another clinic's page stayed");
}

/// From here on whatever a clinic asks takes so long.
fn slow_down(cloud: &Cloud, tenant: &Tenant, seconds: f64) {
    cloud.sql(&format!(
        "CREATE OR REPLACE FUNCTION current_tenant() RETURNS uuid LANGUAGE plpgsql STABLE AS $$
         DECLARE asks uuid := nullif(current_setting('kinara.tenant', true), '')::uuid;
         BEGIN IF asks = '{}' THEN PERFORM pg_sleep({seconds}); END IF; RETURN asks; END $$",
        tenant.id
    ));
}

#[tokio::test]
async fn a_clinic_of_whose_many_events_each_is_read_in_time_keeps_no_other_clinics_pages_waiting() {
    let cloud = Cloud::start().await;
    let service = serve(&cloud, "").await;
    let metrics = service.app.metrics.clone();
    until("the notices", || metrics.is_listening()).await;
    let (here, there) = (token(&service, "here").await, token(&service, "there").await);
    let (mut page, mut slow) =
        (Client::with_token(&service, &here).await, Client::with_token(&service, &there).await);
    page.wait_for("device").await;
    slow.wait_for("device").await;
    let first = now();
    cloud.event(&cloud.there, first);
    slow_down(&cloud, &cloud.there, 0.5);
    // Half a minute of questions, none of which takes long.
    let times = (0..60).map(|n| first + jiff::SignedDuration::from_millis(n));
    let notices: Vec<String> = times
        .map(|time| json!({ "tenant": cloud.there.id, "user": cloud.there.wearer, "time": time }))
        .map(|notice| format!("SELECT pg_notify('kinara_event', '{notice}')"))
        .collect();
    cloud.sql(&notices.join(";"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    cloud.sql(&format!(
        "UPDATE gateways SET state = '{{\"online\": true, \"software\": \"7\"}}' WHERE tenant_id = '{0}';
         SELECT pg_notify('kinara_state', '{{\"tenant\": \"{0}\"}}')",
        cloud.here.id
    ));
    let began = std::time::Instant::now();
    assert_eq!(page.wait_for("gateway").await["version"], "7");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Its own event comes all the same, by a question about all of them.
    assert_eq!(slow.wait_for("event").await["user_id"], json!(cloud.there.wearer));
    service.stop().await;
}

#[tokio::test]
async fn a_clinic_whose_state_takes_long_to_read_keeps_no_other_clinics_pages_waiting() {
    let cloud = Cloud::start().await;
    let service = serve(&cloud, "").await;
    let metrics = service.app.metrics.clone();
    until("the notices", || metrics.is_listening()).await;
    let (here, there) = (token(&service, "here").await, token(&service, "there").await);
    let (mut page, mut slow) =
        (Client::with_token(&service, &here).await, Client::with_token(&service, &there).await);
    page.wait_for("device").await;
    slow.wait_for("device").await;
    slow_down(&cloud, &cloud.there, 60.0);
    let notify = |tenant: &Tenant| {
        let notice = json!({ "tenant": tenant.id });
        cloud.sql(&format!("SELECT pg_notify('kinara_state', '{notice}')"));
    };
    for version in 0..3 {
        notify(&cloud.there);
        tokio::time::sleep(Duration::from_millis(400)).await;
        let state = json!({ "online": true, "software": version.to_string() });
        cloud.sql(&format!("UPDATE gateways SET state = '{state}' WHERE tenant_id = '{}'", cloud.here.id));
        notify(&cloud.here);
        let began = std::time::Instant::now();
        assert_eq!(page.wait_for("gateway").await["version"], json!(version.to_string()));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
