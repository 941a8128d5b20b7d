//! How the other clinic fares: from a batch's publication to its acknowledgement, and how long its people wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kinara_protocol::envelope::{self, Ack, Batch, ack::Outcome};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::http::{Caller, PATIENCE};
use crate::process::pause;
use crate::scenario::mqtt::connect;
use crate::{Clinic, ClinicError, Login, Result};

const RECONNECT: Duration = Duration::from_millis(200);
/// Between two questions of the clinic's people.
const QUESTION_PAUSE: Duration = Duration::from_millis(100);
/// A login is renewed before it ends.
const LOGIN_LASTS: Duration = Duration::from_mins(8);
const ADDRESS: u8 = 1;

/// When something began, and how long it took; nothing: it is not over.
#[derive(Debug, Clone, Copy)]
struct Wait {
    began: Instant,
    took: Option<Duration>,
}

/// Waits of one kind.
#[derive(Debug, Clone, Default)]
pub struct Waits(Arc<Mutex<HashMap<Key, Wait>>>);

/// A batch by gateway, buffer and sequence.
type Key = (Uuid, u64, u64);

impl Waits {
    fn begins(&self, name: (Uuid, u64, u64)) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.entry(name).or_insert_with(|| Wait { began: Instant::now(), took: None });
    }

    fn ends(&self, name: (Uuid, u64, u64)) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = waits.get_mut(&name) {
            wait.took.get_or_insert_with(|| wait.began.elapsed());
        }
    }

    /// Milliseconds of all that began in this stretch, in order. What is not over counts as long as it has lasted.
    pub fn within(&self, from: Instant, to: Instant) -> Vec<f64> {
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = waits.values().filter(|wait| (from..to).contains(&wait.began));
        let mut all: Vec<f64> = inside
            .map(|wait| wait.took.unwrap_or_else(|| wait.began.elapsed()).as_secs_f64() * 1e3)
            .collect();
        all.sort_by(f64::total_cmp);
        all
    }
}

/// The value below which 99 of 100 lie; `waits` is in order.
pub fn p99(waits: &[f64]) -> Option<f64> {
    waits.get((waits.len() * 99 / 100).min(waits.len().saturating_sub(1))).copied()
}

/// Listens at the broker, outside of the bridges' subscription, when batches are published and acknowledged.
#[derive(Debug)]
pub struct Ear {
    /// From publication to acknowledgement, which follows the commit.
    pub batches: Waits,
    _runtime: tokio::runtime::Runtime,
}

impl Ear {
    /// Listens to these gateways.
    pub fn open(clinic: &Clinic, gateways: &[usize]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(ClinicError::file("the ear's runtime"))?;
        let batches = Waits::default();
        let port = clinic.broker.port();
        let bridge = clinic.authority.client("bridge", "bridge")?;
        let topics =
            gateways.iter().map(|place| topic::of(GatewayId(clinic.gateways[*place].id), Leaf::Batch));
        let (client, events) = connect("hostile-ear", port, &bridge)?;
        runtime.spawn(listen(client, events, topics.collect(), batches.clone(), published));
        for place in gateways {
            let gateway = &clinic.gateways[*place];
            let identity = clinic.gateway_identity(&gateway.name, gateway.id)?;
            let (client, events) = connect(&format!("hostile-ear-{}", gateway.name), port, &identity)?;
            let acks = vec![topic::of(GatewayId(gateway.id), Leaf::Ack)];
            runtime.spawn(listen(client, events, acks, batches.clone(), acknowledged));
        }
        Ok(Self { batches, _runtime: runtime })
    }
}

async fn listen(
    client: AsyncClient,
    mut events: EventLoop,
    topics: Vec<String>,
    waits: Waits,
    heard: fn(&[u8], &Waits),
) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                for topic in &topics {
                    // Not awaited: the loop that would send it is this one.
                    let _ = client.try_subscribe(topic.clone(), QoS::AtMostOnce);
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => heard(&publish.payload, &waits),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}

fn published(payload: &[u8], waits: &Waits) {
    let batch = envelope::open::<Batch>(payload).ok();
    if let Some(name) = batch.and_then(|batch| batch.name).as_ref().and_then(key) {
        waits.begins(name);
    }
}

fn acknowledged(payload: &[u8], waits: &Waits) {
    let Ok(Ack { event: false, outcome: Some(Outcome::Done(_)), name, .. }) = envelope::open(payload) else {
        return;
    };
    if let Some(name) = name.as_ref().and_then(key) {
        waits.ends(name);
    }
}

fn key(name: &envelope::Name) -> Option<(Uuid, u64, u64)> {
    Some((Uuid::from_slice(&name.gateway).ok()?, name.buffer, name.sequence))
}

/// Somebody of the clinic who looks at its pages all the time.
#[derive(Debug)]
pub struct Clinician {
    /// From question to answer; one that was refused counts as the longest patience.
    pub questions: Waits,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Clinician {
    /// Logs in and begins to look.
    pub fn start(api: std::net::SocketAddr, login: Login, wearer: Uuid) -> Result<Self> {
        let caller = Caller::new(ADDRESS, api).map_err(ClinicError::file("the clinician's runtime"))?;
        let (questions, stop) = (Waits::default(), Arc::<AtomicBool>::default());
        let (waits, ends) = (questions.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || look(&caller, &login, wearer, &waits, &ends));
        Ok(Self { questions, stop, thread: Some(thread) })
    }
}

impl Drop for Clinician {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn look(caller: &Caller, login: &Login, wearer: Uuid, waits: &Waits, ends: &AtomicBool) {
    let paths = [
        "/api/v1/readings/latest".to_owned(),
        "/api/v1/users".to_owned(),
        "/api/v1/devices".to_owned(),
        "/api/v1/gateways".to_owned(),
        format!("/api/v1/readings?user_id={wearer}&reading_type=heart_rate"),
    ];
    let (mut token, mut since) = (None, Instant::now());
    let mut number = 0;
    while !ends.load(Ordering::Relaxed) {
        number += 1;
        let name = (Uuid::nil(), 0, number);
        waits.begins(name);
        if token.is_none() || since.elapsed() >= LOGIN_LASTS {
            (token, since) = (log_in(caller, login), Instant::now());
        }
        let path = &paths[number as usize % paths.len()];
        match token.as_deref().map(|token| get(caller, path, token)) {
            Some(Ok(200)) => waits.ends(name),
            other => {
                eprintln!("          {path} was not answered: {other:?}");
                refused(waits, name);
                token = None;
            }
        }
        pause(QUESTION_PAUSE);
    }
}

fn refused(waits: &Waits, name: (Uuid, u64, u64)) {
    let mut waits = waits.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(wait) = waits.get_mut(&name) {
        wait.took = Some(PATIENCE);
    }
}

fn log_in(caller: &Caller, login: &Login) -> Option<String> {
    let body = json!({"email": login.email, "password": login.password}).to_string();
    let headers = [("content-type", "application/json")];
    let (_, answer) = caller.ask("POST", "/api/v1/auth/login", &headers, body.as_bytes()).ok()?;
    let answer: Json = serde_json::from_slice(&answer).ok()?;
    answer["access_token"].as_str().map(str::to_owned)
}

fn get(caller: &Caller, path: &str, token: &str) -> std::io::Result<u16> {
    let bearer = format!("Bearer {token}");
    caller.ask("GET", path, &[("authorization", &bearer)], &[]).map(|(status, _)| status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_never_acknowledged_counts_as_long_as_it_has_lasted() {
        let waits = Waits::default();
        let from = Instant::now();
        waits.begins((Uuid::nil(), 1, 1));
        waits.begins((Uuid::nil(), 1, 2));
        waits.ends((Uuid::nil(), 1, 1));
        pause(Duration::from_millis(30));
        let all = waits.within(from, Instant::now());
        assert_eq!(all.len(), 2);
        assert!(all[0] < 20.0 && all[1] >= 30.0, "{all:?}");
        assert!(waits.within(Instant::now(), Instant::now() + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn a_batch_that_comes_again_waits_since_it_first_came() {
        let waits = Waits::default();
        let from = Instant::now();
        waits.begins((Uuid::nil(), 1, 1));
        pause(Duration::from_millis(30));
        waits.begins((Uuid::nil(), 1, 1));
        waits.ends((Uuid::nil(), 1, 1));
        waits.ends((Uuid::nil(), 1, 9));
        let all = waits.within(from, Instant::now());
        assert_eq!(all.len(), 1);
        assert!(all[0] >= 30.0, "{all:?}");
    }

    #[test]
    fn the_99th_percentile_of_a_hundred_is_the_worst_but_one() {
        let waits: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(p99(&waits), Some(100.0));
        assert_eq!(p99(&[5.0]), Some(5.0));
        assert_eq!(p99(&[]), None);
    }
}
