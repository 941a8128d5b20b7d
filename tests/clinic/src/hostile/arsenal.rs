//! What one clinic's certificate and one API key can send.
//!
//! Everything begins as a good message of the attacker's own clinic, under its own names. Then it is turned into one of
//! the costly messages, is mutated, names what is somebody else's, or comes in floods.

use kinara_protocol::channel::ChannelId;
use kinara_protocol::columns;
use kinara_protocol::envelope::{
    Actor, Assigned, Batch, CommandResult, ConsentRecorded, Decision, Delivered, DeviceState, Event,
    EventBatch, Fit, FrameBoundary, Gap, Live, LiveDevice, LiveValue, Name, Paired, State, Unassigned,
    WearerAdded, decision::What,
};
use kinara_protocol::frame::{Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};
use kinara_protocol::topic::Leaf;
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::mutate::{Names, mutate, mutate_json, mutate_lines};
use super::shape;
use super::wire::{self, squeeze};
use super::{messages, wire::Wire};

/// Who attacks, and whom it has heard of.
#[derive(Debug, Clone)]
pub struct Party {
    /// Its gateway: the name in its certificate.
    pub gateway: Uuid,
    /// A device that its own clinic has assigned.
    pub hardware: String,
    /// A sensor of its own clinic whose readings come over HTTP.
    pub sensor: String,
    /// A wearer of its own.
    pub wearer: Uuid,
    /// Devices, gateways and wearers of others.
    pub others: Others,
}

/// What is somebody else's.
#[derive(Debug, Clone, Default)]
pub struct Others {
    /// Hardware ids.
    pub hardware: Vec<String>,
    /// Gateways.
    pub gateways: Vec<Uuid>,
    /// Wearers.
    pub wearers: Vec<Uuid>,
}

/// Which door a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The broker, this leaf of the attacker's own subtree.
    Broker(Leaf),
    /// The broker, another gateway's subtree.
    Foreign,
    /// `POST /ingest`.
    Ingest(Form),
}

impl Door {
    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker(leaf) => leaf.as_str(),
            Self::Foreign => "another gateway's topic",
            Self::Ingest(Form::Json) => "ingest JSON",
            Self::Ingest(Form::Lines) => "ingest NDJSON",
            Self::Ingest(Form::Protobuf) => "ingest Protobuf",
        }
    }
}

/// A form of `POST /ingest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `application/json`.
    Json,
    /// `application/x-ndjson`.
    Lines,
    /// `application/x-protobuf`.
    Protobuf,
}

impl Form {
    /// The content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Protobuf => "application/x-protobuf",
        }
    }
}

/// A message ready to be sent.
#[derive(Debug, Clone)]
pub struct Shot {
    /// Through which door.
    pub door: Door,
    /// What kind it is.
    pub what: &'static str,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Kept by the broker for whoever comes later.
    pub retain: bool,
    /// Over HTTP: compressed with zstd.
    pub zstd: bool,
}

impl Shot {
    fn broker(leaf: Leaf, what: &'static str, payload: Vec<u8>) -> Self {
        Self { door: Door::Broker(leaf), what, payload, retain: leaf == Leaf::State, zstd: false }
    }

    fn ingest(form: Form, what: &'static str, plain: Vec<u8>, zstd: bool) -> Self {
        let payload = if zstd { squeeze(&plain) } else { plain };
        Self { door: Door::Ingest(form), what, payload, retain: false, zstd }
    }
}

/// Makes messages. The same seed makes the same ones.
#[derive(Debug)]
pub struct Arsenal {
    party: Party,
    names: Names,
    key: Ed25519KeyPair,
    rng: StdRng,
    now_us: fn() -> i64,
    buffer: u64,
    sequence: u64,
    seq: u32,
}

/// What one frame of the attacker's own holds.
const SAMPLES: u64 = 8;

impl Arsenal {
    /// An arsenal of this party.
    ///
    /// # Panics
    /// Never: every 32 bytes are a key.
    pub fn new(party: Party, seed: u64, now_us: fn() -> i64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut names: Vec<Vec<u8>> =
            party.others.hardware.iter().map(|id| id.clone().into_bytes()).collect();
        names.extend(
            party.others.gateways.iter().chain(&party.others.wearers).map(|id| id.as_bytes().to_vec()),
        );
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes are a key");
        let buffer = rng.random();
        Self { party, names: Names(names), key, rng, now_us, buffer, sequence: 0, seq: 0 }
    }

    fn name(&mut self) -> wire::Name {
        self.sequence += 1;
        wire::Name { gateway: self.party.gateway, buffer: self.buffer, sequence: self.sequence }
    }

    fn now_us(&self) -> i64 {
        (self.now_us)()
    }

    /// The costly ones, each once; they are made beforehand, for making them costs, too.
    pub fn costly(&mut self) -> Vec<Shot> {
        let now = self.now_us();
        let own = self.party.hardware.clone();
        let batch = |what, plain: &Wire| Shot::broker(Leaf::Batch, what, squeeze(plain));
        let mut all = vec![
            batch("judge", &messages::judge(self.name(), 300_000, now)),
            batch("frames", &messages::frames(self.name(), "bt:00:00:00:00:0B:AD", 40_000, now)),
            batch("channels", &messages::channels(self.name(), now)),
            batch("amplified", &messages::amplified(self.name(), &own, 1_000_000, now)),
            batch("split", &messages::split(self.name(), &own, 3_000, now)),
        ];
        let state = |what, plain: &Wire| Shot::broker(Leaf::State, what, squeeze(plain));
        all.push(state("empty devices", &messages::state_of_empty_devices(2_000_000)));
        all.push(state("long note", &messages::state_with_a_long_note(3_000_000)));
        for number in 0..4 {
            let live = messages::live_of_a_long_name(number, 3_000_000);
            all.push(Shot::broker(Leaf::Live, "long name", squeeze(&live)));
        }
        let posted = |what, plain: Wire, zstd| Shot::ingest(Form::Protobuf, what, plain.into_bytes(), zstd);
        all.push(posted("judge", messages::judge(self.name(), 300_000, now), true));
        all.push(posted("channels", messages::channels(self.name(), now), false));
        all.push(posted("amplified", messages::amplified(self.name(), &own, 1_000_000, now), true));
        all.push(self.many_items());
        all
    }

    /// Any of the others.
    pub fn draw(&mut self) -> Shot {
        match self.rng.random_range(0..10) {
            0..=2 => self.batch(),
            3 | 4 => self.events(),
            5 => self.live(),
            6 => self.state(),
            7 => self.command_result(),
            _ => self.foreign(),
        }
    }

    /// Any request.
    pub fn next_request(&mut self) -> Shot {
        let items: Vec<Json> = (0..self.rng.random_range(1..20)).map(|_| self.item()).collect();
        let zstd = self.rng.random();
        match self.rng.random_range(0..3) {
            0 => {
                let text = mutate_json(&Json::from(items), &self.names, &mut self.rng);
                Shot::ingest(Form::Json, "mutated JSON", text, zstd)
            }
            1 => {
                let text = mutate_lines(&items, &self.names, &mut self.rng);
                Shot::ingest(Form::Lines, "mutated lines", text, zstd)
            }
            _ => {
                let plain = self.plain_batch();
                let plain = mutate(&plain, shape::BATCH, &self.names, &mut self.rng);
                Shot::ingest(Form::Protobuf, "mutated batch", plain, zstd)
            }
        }
    }

    fn batch(&mut self) -> Shot {
        let plain = self.plain_batch();
        let mutated = mutate(&plain, shape::BATCH, &self.names, &mut self.rng);
        let mut sealed = squeeze(mutated);
        // Not only what is inside can be wrong.
        if self.rng.random_ratio(1, 20) && !sealed.is_empty() {
            let place = self.rng.random_range(0..sealed.len());
            sealed[place] ^= 0x55;
        }
        Shot::broker(Leaf::Batch, "mutated batch", sealed)
    }

    /// A good batch: a frame of the attacker's own device, or, as if it were, of somebody else's.
    fn plain_batch(&mut self) -> Vec<u8> {
        let foreign = self.rng.random_ratio(1, 4);
        let hardware = match self.party.others.hardware.choose(&mut self.rng) {
            Some(other) if foreign => other.clone(),
            _ => self.party.hardware.clone(),
        };
        self.seq += 1;
        let epoch = Epoch(0xbad0_0000_0001);
        let ticks = u64::from(self.seq) * 1_000;
        let mut builder = FrameBuilder::new();
        builder.begin(Kind::Scalar, epoch, Ticks(ticks));
        for sample in 0..SAMPLES {
            let value = 700 + self.rng.random_range(-50..50);
            builder
                .push(ChannelId(1), Ticks(ticks + sample * 100), &[value])
                .expect("a few samples fit a frame");
        }
        let mut bytes = [0; MAX_FRAME];
        let len = builder.finish(self.seq, &mut bytes);
        let frame = FrameRef::parse(&bytes[..len]).expect("a frame that was just built");
        let mut columns = columns::encode(&hardware, epoch, vec![frame]).expect("one good frame");
        columns.fits = vec![Fit {
            ref_ticks: ticks,
            ref_utc_us: self.now_us(),
            uncertainty_us: 1_000,
            ..Fit::default()
        }];
        columns.fit_of = vec![0, 1];
        let sealed_at_us = self.now_us();
        let name = Some(self.proto_name());
        Batch { version: 1, name, sealed_at_us, devices: vec![columns] }.encode_to_vec()
    }

    fn proto_name(&mut self) -> Name {
        let wire::Name { gateway, buffer, sequence } = self.name();
        Name { gateway: gateway.as_bytes().to_vec(), buffer, sequence }
    }

    fn events(&mut self) -> Shot {
        let decisions = (0..3).map(|_| self.decision()).collect();
        let hardware = self.any_hardware();
        let event = Event {
            hardware_id: hardware.clone(),
            kind: "hot_flash".to_owned(),
            producer: "rule:sternal/1".to_owned(),
            epoch: 5,
            onset_ticks: 20_000,
            grid_ms: 30_000,
            onset_utc_us: self.now_us(),
            severity: "critical".to_owned(),
            confidence: 0.9,
            data_json: "{}".to_owned(),
            ..Event::default()
        };
        let gap = Gap {
            hardware_id: hardware,
            epoch: 5,
            seq_ranges: vec![0, 1_000_000],
            reason: "quota".to_owned(),
            ..Gap::default()
        };
        let batch = EventBatch {
            version: 1,
            name: Some(self.proto_name()),
            sealed_at_us: self.now_us(),
            events: vec![event],
            gaps: vec![gap],
            decisions,
        };
        let plain = batch.encode_to_vec();
        // Half of them as they are: every word in them is well-formed, and signed by the attacker's own box.
        if self.rng.random() {
            return Shot::broker(Leaf::Event, "decisions about others", squeeze(plain));
        }
        let mutated = mutate(&plain, shape::EVENT_BATCH, &self.names, &mut self.rng);
        Shot::broker(Leaf::Event, "mutated events", squeeze(mutated))
    }

    fn any_hardware(&mut self) -> String {
        match self.party.others.hardware.choose(&mut self.rng) {
            Some(other) if self.rng.random() => other.clone(),
            _ => self.party.hardware.clone(),
        }
    }

    fn any_wearer(&mut self) -> Vec<u8> {
        match self.party.others.wearers.choose(&mut self.rng) {
            Some(other) if self.rng.random() => other.as_bytes().to_vec(),
            _ => self.party.wearer.as_bytes().to_vec(),
        }
    }

    /// A new UUIDv7, by the harness's own chance.
    fn new_id(&mut self) -> Vec<u8> {
        let millis = self.now_us() as u64 / 1_000;
        uuid::Builder::from_unix_timestamp_millis(millis, &self.rng.random()).into_uuid().as_bytes().to_vec()
    }

    /// A decision that is well signed; whom it is about is another question.
    fn decision(&mut self) -> Decision {
        let hardware_id = self.any_hardware();
        let user_id = self.any_wearer();
        let boundary = Some(FrameBoundary { epoch: 5, seq: self.rng.random_range(0..100) });
        let what = match self.rng.random_range(0..5) {
            0 => What::WearerAdded(WearerAdded {
                user_id,
                display_name: "x".repeat(self.rng.random_range(0..5_000)),
            }),
            1 => What::ConsentRecorded(ConsentRecorded {
                consent_id: self.new_id(),
                user_id,
                version: "v1".to_owned(),
                language: "en".to_owned(),
                ..ConsentRecorded::default()
            }),
            2 => What::Assigned(Assigned { hardware_id, user_id, from: boundary, ..Assigned::default() }),
            3 => What::Unassigned(Unassigned { hardware_id, to: boundary }),
            _ => What::Paired(Paired { hardware_id, how: "label".to_owned(), bond: vec![1; 6] }),
        };
        let back_us = [0, 86_400_000_000, -86_400_000_000].choose(&mut self.rng).copied().unwrap_or(0);
        let mut decision = Decision {
            id: self.new_id(),
            at_utc_us: self.now_us() - back_us,
            actor: Some(Actor { kind: "operator".to_owned(), name: "nobody".to_owned(), ..Actor::default() }),
            what: Some(what),
            ..Decision::default()
        };
        decision.signature = self.key.sign(&decision.signed_bytes(self.party.gateway)).as_ref().to_vec();
        decision
    }

    fn live(&mut self) -> Shot {
        let value = LiveValue { channel: 1, value: vec![700], utc_us: self.now_us(), seq: 1, index: 0 };
        let hardware_id = self.any_hardware();
        let device = LiveDevice { hardware_id, epoch: 5, values: vec![value] };
        let plain = Live { version: 1, devices: vec![device] }.encode_to_vec();
        let mutated = mutate(&plain, shape::LIVE, &self.names, &mut self.rng);
        Shot::broker(Leaf::Live, "mutated live", squeeze(mutated))
    }

    fn state(&mut self) -> Shot {
        let hardware_id = self.any_hardware();
        let delivered = Some(Delivered { epoch: 5, seq_ranges: vec![0, 4_000_000_000] });
        let device = DeviceState { hardware_id, connected: true, delivered, ..DeviceState::default() };
        let state = State {
            version: 1,
            online: true,
            software: "0.1.0".to_owned(),
            buffer: self.buffer,
            clock_source: "trusted".to_owned(),
            devices: vec![device],
            sent_at_us: self.now_us(),
            level: "ok".to_owned(),
            notes: vec!["here".to_owned()],
            signing_key: self.key.public_key().as_ref().to_vec(),
            ..State::default()
        };
        let plain = state.encode_to_vec();
        // Once in a while as it is, so that the key is known by which decisions are signed.
        let plain = if self.rng.random_ratio(1, 3) {
            plain
        } else {
            mutate(&plain, shape::STATE, &self.names, &mut self.rng)
        };
        Shot::broker(Leaf::State, "mutated state", squeeze(plain))
    }

    fn command_result(&mut self) -> Shot {
        let result = CommandResult { version: 1, id: self.rng.random(), ok: false, detail: "no".to_owned() };
        let plain = mutate(&result.encode_to_vec(), shape::COMMAND_RESULT, &self.names, &mut self.rng);
        Shot::broker(Leaf::CommandResult, "mutated result", squeeze(plain))
    }

    fn foreign(&mut self) -> Shot {
        let payload = squeeze(self.plain_batch());
        Shot { door: Door::Foreign, what: "another gateway's topic", payload, retain: false, zstd: false }
    }

    /// A reading as a clinic's own program sends it.
    fn item(&mut self) -> Json {
        self.seq += 1;
        let foreign = self.rng.random_ratio(1, 4);
        let source = if foreign { self.any_hardware() } else { self.party.sensor.clone() };
        let time = jiff::Timestamp::from_microsecond(self.now_us()).unwrap_or_default().to_string();
        json!({"source": source, "epoch": "00000000000000aa", "seq": self.seq, "time": time, "type": "heart_rate",
            "value": 70 + self.rng.random_range(0..10)})
    }

    /// As many items as a request holds.
    fn many_items(&mut self) -> Shot {
        let items: Vec<Json> = (0..30_000).map(|_| self.item()).collect();
        Shot::ingest(Form::Json, "many items", Json::from(items).to_string().into_bytes(), true)
    }

    /// A name's parts as text: mostly the next one's, sometimes not even numbers.
    pub(super) fn names(&mut self) -> (String, String, String) {
        let name = self.name();
        let sequence = match self.rng.random_range(0..20) {
            0 => "x".repeat(1_000),
            1 => "-1".to_owned(),
            _ => name.sequence.to_string(),
        };
        (name.gateway.to_string(), name.buffer.to_string(), sequence)
    }

    /// Where a shot at another's subtree goes.
    pub fn somebody_else(&mut self) -> Uuid {
        self.party.others.gateways.choose(&mut self.rng).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_protocol::envelope::{MAX_SEALED, open};
    use std::collections::BTreeSet;

    fn party() -> Party {
        let others = Others {
            hardware: vec!["kinara:00000000000000aa".to_owned()],
            gateways: vec![Uuid::from_u128(1)],
            wearers: vec![Uuid::from_u128(2)],
        };
        Party {
            gateway: Uuid::from_u128(9),
            hardware: "kinara:00000000000000ee".to_owned(),
            sensor: "bt:C0:FF:EE:00:00:01".to_owned(),
            wearer: Uuid::from_u128(3),
            others,
        }
    }

    #[test]
    fn every_door_is_tried_and_what_is_too_large_for_the_broker_is_not_sent_in_vain() {
        let mut arsenal = Arsenal::new(party(), 1, || 1_795_900_000_000_000);
        let mut shots = arsenal.costly();
        shots.extend((0..300).map(|_| arsenal.draw()));
        shots.extend((0..60).map(|_| arsenal.next_request()));
        let doors: BTreeSet<_> = shots.iter().map(|shot| shot.door.name()).collect();
        let leaves = [Leaf::Batch, Leaf::Event, Leaf::Live, Leaf::State, Leaf::CommandResult];
        let mut wanted: BTreeSet<_> = leaves.into_iter().map(|leaf| Door::Broker(leaf).name()).collect();
        wanted.extend([Form::Json, Form::Lines, Form::Protobuf].map(|form| Door::Ingest(form).name()));
        wanted.insert(Door::Foreign.name());
        assert_eq!(doors, wanted);
        let to_broker = shots.iter().filter(|shot| matches!(shot.door, Door::Broker(_)));
        assert!(to_broker.filter(|shot| shot.payload.len() > MAX_SEALED).count() < 30);
    }

    #[test]
    fn a_good_batch_of_the_attacker_is_good_and_a_decision_is_well_signed() {
        use ring::signature::{ED25519, UnparsedPublicKey};
        let mut arsenal = Arsenal::new(party(), 1, || 1_795_900_000_000_000);
        let plain = arsenal.plain_batch();
        let batch: Batch = open(&squeeze(&plain)).unwrap();
        let decoded = columns::decode(&batch.devices[0]).unwrap();
        let mut out = [0; MAX_FRAME];
        assert!(decoded.rebuild(&decoded.frames()[0], &mut out).is_ok(), "its CRC is right");
        let decision = arsenal.decision();
        let public = UnparsedPublicKey::new(&ED25519, arsenal.key.public_key().as_ref().to_vec());
        public.verify(&decision.signed_bytes(Uuid::from_u128(9)), &decision.signature).unwrap();
    }
}
