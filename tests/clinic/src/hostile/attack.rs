//! The attack itself: one certificate at the broker, one key at the API, from when it is started until it is stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kinara_protocol::envelope::{
    self, Ack, PROPERTY_BUFFER, PROPERTY_GATEWAY, PROPERTY_SEQUENCE, ack::Outcome,
};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use serde_json::Value as Json;

use super::arsenal::{Arsenal, Door, Party, Shot};
use super::http::Caller;
use crate::authority::Identity;
use crate::process::pause;
use crate::scenario::mqtt::connect;
use crate::{ClinicError, Result};

/// Messages a second to the broker, beside the floods.
const BROKER_PAUSE: Duration = Duration::from_millis(25);
/// Between two requests of one of the callers.
const REQUEST_PAUSE: Duration = Duration::from_millis(100);
/// A costly message comes so often.
const COSTLY_EVERY: u32 = 40;
/// A flood comes so often, and has so many messages.
const FLOOD_EVERY: Duration = Duration::from_secs(5);
const FLOOD: usize = 400;
/// Half-open connections at a time.
const HALF_OPEN: usize = 150;
const CALLERS: u64 = 2;
/// More the broker does not take.
const BROKER_TAKES: usize = 299_000;
const RECONNECT: Duration = Duration::from_millis(400);
/// 127.0.0.`this` and the ones after it.
const ADDRESS: u8 = 66;

/// What was sent, and what was said to it.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Messages, by door and kind.
    pub sent: BTreeMap<String, u64>,
    /// Refusals, by who refused and why.
    pub refused: BTreeMap<String, u64>,
}

impl Tally {
    /// All messages.
    pub fn messages(&self) -> u64 {
        self.sent.values().sum()
    }
}

type Shared = Arc<Mutex<Tally>>;

fn open(tally: &Shared) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sent(tally: &Shared, door: &str, what: &str) {
    *open(tally).sent.entry(format!("{door}: {what}")).or_default() += 1;
}

fn refused(tally: &Shared, who: &str, reason: &str) {
    *open(tally).refused.entry(format!("{who}: {}", without_numbers(reason))).or_default() += 1;
}

/// A reason without what differs from case to case.
fn without_numbers(reason: &str) -> String {
    const LONGEST: usize = 80;
    let mut out = String::new();
    for letter in reason.chars().take(LONGEST) {
        match (letter.is_ascii_digit(), out.ends_with('#')) {
            (true, true) => {}
            (true, false) => out.push('#'),
            (false, _) => out.push(letter),
        }
    }
    out
}

/// Where the attack is led to, and with what.
#[derive(Debug, Clone)]
pub struct Target {
    /// The broker's port.
    pub broker: u16,
    /// The certificate of the attacker's gateway.
    pub identity: Identity,
    /// The API.
    pub api: SocketAddr,
    /// The attacker's key for `/ingest`.
    pub key: String,
}

/// An attack under way. It ends when it is dropped.
#[derive(Debug)]
pub struct Attack {
    stop: Arc<AtomicBool>,
    tally: Shared,
    threads: Vec<JoinHandle<()>>,
}

impl Attack {
    /// Begins. All chance comes from the seed.
    pub fn start(party: &Party, target: &Target, seed: u64, now_us: fn() -> i64) -> Result<Self> {
        let (stop, tally) = (Arc::<AtomicBool>::default(), Shared::default());
        let mut threads = Vec::new();
        let (client, events) = connect(&party.gateway.to_string(), target.broker, &target.identity)?;
        let broker = AtBroker {
            client,
            tally: Arc::clone(&tally),
            stop: Arc::clone(&stop),
            gateway: GatewayId(party.gateway),
        };
        let arsenal = Arsenal::new(party.clone(), seed, now_us);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClinicError::file("the attack's runtime"))?;
        threads.push(std::thread::spawn(move || runtime.block_on(broker.run(events, arsenal))));
        for number in 0..CALLERS {
            let caller = Caller::new(ADDRESS + number as u8, target.api)
                .map_err(ClinicError::file("the attack's runtime"))?;
            let api =
                AtApi { caller, key: target.key.clone(), tally: Arc::clone(&tally), stop: Arc::clone(&stop) };
            let arsenal = Arsenal::new(party.clone(), seed ^ (number + 1), now_us);
            threads.push(std::thread::spawn(move || api.run(arsenal)));
        }
        Ok(Self { stop, tally, threads })
    }

    /// What was sent and said so far.
    pub fn tally(&self) -> Tally {
        open(&self.tally).clone()
    }

    /// Ends it, and returns what was sent and said. What is under way may be answered later.
    pub fn end(mut self) -> Tally {
        self.join();
        self.tally()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.join();
    }
}

struct AtBroker {
    client: AsyncClient,
    tally: Shared,
    stop: Arc<AtomicBool>,
    gateway: GatewayId,
}

impl AtBroker {
    async fn run(self, events: EventLoop, arsenal: Arsenal) {
        let listening = listen(self.client.clone(), events, self.gateway, Arc::clone(&self.tally));
        tokio::select! {
            () = listening => {}
            () = self.fire(arsenal) => {}
        }
    }

    async fn fire(&self, mut arsenal: Arsenal) {
        let costly: Vec<Shot> =
            arsenal.costly().into_iter().filter(|shot| !matches!(shot.door, Door::Ingest(_))).collect();
        let mut costly = costly.iter().cycle();
        let mut flooded = Instant::now();
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            if number % COSTLY_EVERY == 1
                && let Some(shot) = costly.next()
            {
                self.send(shot.clone(), &mut arsenal).await;
            }
            let shot = arsenal.draw();
            self.send(shot, &mut arsenal).await;
            if flooded.elapsed() >= FLOOD_EVERY {
                flooded = Instant::now();
                self.flood(&mut arsenal).await;
            }
            tokio::time::sleep(BROKER_PAUSE).await;
        }
    }

    /// As many as it takes of one kind, without a pause.
    async fn flood(&self, arsenal: &mut Arsenal) {
        let mut shot = arsenal.draw();
        while matches!(shot.door, Door::Foreign) {
            shot = arsenal.draw();
        }
        for _ in 0..FLOOD {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.send(Shot { what: "flood", ..shot.clone() }, arsenal).await;
        }
    }

    async fn send(&self, shot: Shot, arsenal: &mut Arsenal) {
        if shot.payload.len() > BROKER_TAKES {
            return;
        }
        let (topic, named) = match shot.door {
            Door::Broker(leaf) => (topic::of(self.gateway, leaf), matches!(leaf, Leaf::Batch | Leaf::Event)),
            Door::Foreign => (topic::of(GatewayId(arsenal.somebody_else()), Leaf::Batch), true),
            Door::Ingest(_) => return,
        };
        let qos = if shot.door == Door::Broker(Leaf::Live) { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let properties = PublishProperties {
            user_properties: if named { arsenal.properties() } else { Vec::new() },
            ..PublishProperties::default()
        };
        let (door, what) = (shot.door.name(), shot.what);
        let published =
            self.client.publish_with_properties(topic, qos, shot.retain, shot.payload, properties).await;
        if published.is_ok() {
            sent(&self.tally, door, what);
        }
    }
}

/// Hears what is said to the attacker, for as long as it lasts.
async fn listen(client: AsyncClient, mut events: EventLoop, gateway: GatewayId, tally: Shared) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // Not awaited: the loop that would send it is this one.
                let _ = client.try_subscribe(topic::of(gateway, Leaf::Ack), QoS::AtMostOnce);
            }
            Ok(Event::Incoming(Packet::PubAck(answer))) => {
                if !matches!(answer.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
                    refused(&tally, "broker", &format!("{:?}", answer.reason));
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => hear(&publish.payload, &tally),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}

fn hear(payload: &[u8], tally: &Shared) {
    match envelope::open::<Ack>(payload).ok().and_then(|ack| ack.outcome) {
        Some(Outcome::Refused(why)) => refused(tally, "bridge", &why.reason),
        Some(Outcome::RetryAfter(later)) => refused(tally, "bridge, for now", &later.reason),
        _ => {}
    }
}

struct AtApi {
    caller: Caller,
    key: String,
    tally: Shared,
    stop: Arc<AtomicBool>,
}

impl AtApi {
    fn run(self, mut arsenal: Arsenal) {
        let costly: Vec<Shot> =
            arsenal.costly().into_iter().filter(|shot| matches!(shot.door, Door::Ingest(_))).collect();
        let mut costly = costly.iter().cycle();
        let mut flooded = Instant::now();
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            if number % COSTLY_EVERY == 1
                && let Some(shot) = costly.next()
            {
                self.send(shot, number);
            }
            self.send(&arsenal.next_request(), number);
            if flooded.elapsed() >= FLOOD_EVERY {
                flooded = Instant::now();
                self.flood();
            }
            pause(REQUEST_PAUSE);
        }
    }

    fn send(&self, shot: &Shot, number: u32) {
        let Door::Ingest(form) = shot.door else { return };
        let own_key = format!("hostile-{number}");
        let mut headers = vec![("x-api-key", self.key.as_str()), ("content-type", form.content_type())];
        if shot.zstd {
            headers.push(("content-encoding", "zstd"));
        }
        if number.is_multiple_of(2) {
            headers.push(("idempotency-key", &own_key));
        }
        let Ok((status, body)) = self.caller.ask("POST", "/ingest", &headers, &shot.payload) else { return };
        sent(&self.tally, shot.door.name(), shot.what);
        if status >= 400 {
            refused(&self.tally, "API", &format!("status {}, {}", word(status), problem(&body)));
        } else if refused_items(&body) > 0 {
            refused(&self.tally, "API", "single items");
        }
    }

    /// Connections that say half a request, and requests without a key.
    fn flood(&self) {
        let open: Vec<_> = (0..HALF_OPEN).filter_map(|_| self.caller.half_open().ok()).collect();
        for _ in 0..open.len() {
            sent(&self.tally, "API", "half a request");
        }
        for _ in 0..HALF_OPEN {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Ok((status, body)) = self.caller.ask("GET", "/api/v1/readings/latest", &[], &[]) {
                sent(&self.tally, "API", "without a login");
                refused(&self.tally, "API", &format!("status {}, {}", word(status), problem(&body)));
            }
        }
    }
}

/// A status in letters, for numbers are taken out of reasons.
fn word(status: u16) -> &'static str {
    match status {
        400 => "bad request",
        401 => "unauthorized",
        403 => "forbidden",
        408 => "request timeout",
        413 => "payload too large",
        415 => "unsupported media type",
        422 => "unprocessable",
        429 => "too many requests",
        500 => "internal server error",
        503 => "service unavailable",
        _ => "another",
    }
}

fn problem(body: &[u8]) -> String {
    let json: Json = serde_json::from_slice(body).unwrap_or_default();
    json["type"].as_str().and_then(|name| name.rsplit(':').next()).unwrap_or("no problem document").to_owned()
}

fn refused_items(body: &[u8]) -> u64 {
    let json: Json = serde_json::from_slice(body).unwrap_or_default();
    json["refused"].as_u64().unwrap_or(0)
}

impl Arsenal {
    /// The properties that name a batch for whoever cannot read it.
    fn properties(&mut self) -> Vec<(String, String)> {
        let (gateway, buffer, sequence) = self.names();
        vec![
            (PROPERTY_GATEWAY.to_owned(), gateway),
            (PROPERTY_BUFFER.to_owned(), buffer),
            (PROPERTY_SEQUENCE.to_owned(), sequence),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_by_kind_and_not_by_their_numbers() {
        assert_eq!(without_numbers("version 17 of 4294967295"), "version # of #");
        let tally = Shared::default();
        refused(&tally, "bridge", "has 3 bytes");
        refused(&tally, "bridge", "has 45 bytes");
        assert_eq!(open(&tally).refused["bridge: has # bytes"], 2);
    }

    #[test]
    fn a_problem_is_named_by_its_type() {
        assert_eq!(problem(br#"{"type":"urn:kinara:problem:too-large"}"#), "too-large");
        assert_eq!(problem(b"<html>"), "no problem document");
        assert_eq!(refused_items(br#"{"refused":3}"#), 3);
    }
}
