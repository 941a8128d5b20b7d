//! A small bridge: it takes batches, remembers every frame, and acknowledges as it is told to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kinara_protocol::envelope::{
    self, Ack, Batch, Decision, Done, ENVELOPE_VERSION, EventBatch, Gap, PROPERTY_BUFFER, PROPERTY_SEQUENCE,
    Refused, RetryAfter, State, ack,
};
use kinara_protocol::topic::{self, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};

use super::frames::{GATEWAY, frames_in};

/// What the bridge answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    #[default]
    Done,
    Silent,
    WrongDigest,
    Refuse,
    RetryAfterOneSecond,
}

/// Marks the sequence of an event batch: they have a sequence of their own.
const EVENTS: u64 = 1 << 63;

#[derive(Debug, Default)]
pub struct Seen {
    pub mood: Mood,
    /// Each frame, and how often it came in different batches.
    pub frames: BTreeMap<(String, u64, u32), Vec<u8>>,
    pub doubles: usize,
    /// How often each batch was published, by name.
    pub batches: HashMap<(u64, u64), u32>,
    pub events: usize,
    pub gaps: Vec<Gap>,
    pub decisions: Vec<Decision>,
    pub live: usize,
    pub states: Vec<State>,
}

#[derive(Debug, Clone)]
pub struct Bridge {
    seen: Arc<Mutex<Seen>>,
}

impl Bridge {
    /// Connects, and again whenever the broker went away.
    pub fn start(port: u16) -> Self {
        let bridge = Self { seen: Arc::default() };
        let seen = bridge.seen.clone();
        tokio::spawn(async move {
            loop {
                serve(port, &seen).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        bridge
    }

    pub fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

async fn serve(port: u16, seen: &Mutex<Seen>) {
    let mut options = MqttOptions::new("bridge", "127.0.0.1", port);
    options.set_max_packet_size(Some(1 << 20));
    let (client, mut events) = AsyncClient::new(options, 64);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                for leaf in [Leaf::Batch, Leaf::Event, Leaf::State, Leaf::Live] {
                    client.subscribe(topic::of(GATEWAY, leaf), QoS::AtLeastOnce).await.unwrap();
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let answer = take(seen, &publish);
                if let Some(answer) = answer {
                    let topic = topic::of(GATEWAY, Leaf::Ack);
                    client.try_publish(topic, QoS::AtLeastOnce, false, envelope::seal(&answer)).unwrap();
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn take(seen: &Mutex<Seen>, publish: &Publish) -> Option<Ack> {
    let (_, leaf) = topic::parse(std::str::from_utf8(&publish.topic).unwrap()).unwrap();
    let mut seen = seen.lock().unwrap();
    let name = match leaf {
        Leaf::Batch => {
            let batch: Batch = envelope::open(&publish.payload).unwrap();
            let name = batch.name.clone().unwrap();
            let properties = publish.properties.clone().unwrap().user_properties;
            for (key, value) in [(PROPERTY_BUFFER, name.buffer), (PROPERTY_SEQUENCE, name.sequence)] {
                assert!(properties.contains(&(key.to_owned(), value.to_string())));
            }
            let times = seen.batches.entry((name.buffer, name.sequence)).or_default();
            *times += 1;
            if *times == 1 {
                for (key, bytes) in frames_in(&batch) {
                    if seen.frames.insert(key, bytes).is_some() {
                        seen.doubles += 1;
                    }
                }
            }
            name
        }
        Leaf::Event => {
            let batch: EventBatch = envelope::open(&publish.payload).unwrap();
            seen.events += batch.events.len();
            let name = batch.name.unwrap();
            let times = seen.batches.entry((name.buffer, name.sequence | EVENTS)).or_default();
            *times += 1;
            if *times == 1 {
                seen.gaps.extend(batch.gaps);
                seen.decisions.extend(batch.decisions);
            }
            name
        }
        Leaf::State => {
            seen.states.push(envelope::open(&publish.payload).unwrap());
            return None;
        }
        Leaf::Live => {
            seen.live += 1;
            return None;
        }
        _ => return None,
    };
    let mut sha256 = envelope::digest(&publish.payload).to_vec();
    let outcome = match seen.mood {
        Mood::Silent => return None,
        Mood::Done => ack::Outcome::Done(Done::default()),
        Mood::WrongDigest => {
            sha256[0] ^= 1;
            ack::Outcome::Done(Done::default())
        }
        Mood::Refuse => ack::Outcome::Refused(Refused { reason: "cannot read it".to_owned() }),
        Mood::RetryAfterOneSecond => {
            ack::Outcome::RetryAfter(RetryAfter { seconds: 1, reason: "database".to_owned() })
        }
    };
    Some(Ack {
        version: ENVELOPE_VERSION,
        name: Some(name),
        sha256,
        event: leaf == Leaf::Event,
        outcome: Some(outcome),
        bridge_utc_us: 0,
    })
}
