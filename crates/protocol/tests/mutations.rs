//! Fuzzing on a stable compiler: the seeds of the corpus, mutated for `KINARA_FUZZ_S` seconds for each decoder (a second
//! without it). With a nightly compiler and cargo-fuzz the same decoders are run by libFuzzer, see `fuzz/`.
//!
//! The seeds are made from the golden vectors; `KINARA_WRITE_CORPUS=1` writes them to `fuzz/corpus`.
#![cfg(feature = "std")]
#![allow(clippy::unwrap_used)]

mod decoders;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use decoders::TARGETS;
use kinara_protocol::advert::{MAX_OFFER, Offer};
use kinara_protocol::columns;
use kinara_protocol::control::{Chunk, MAX_MESSAGE, Op, Outcome, Reply, Request};
use kinara_protocol::envelope::{
    self, Batch, Delivered, DeviceState, EventBatch, Gap, Live, LiveDevice, LiveValue, Name, State,
};
use kinara_protocol::frame::{CRC_LEN, Epoch, FrameRef, HEADER_LEN, Ticks};
use kinara_protocol::status::Status;
use kinara_protocol::topic::{self, GatewayId, Leaf};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use prost::Message;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The golden vectors of every released version: name, frame.
fn golden() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for version in std::fs::read_dir(here("golden")).unwrap() {
        for file in std::fs::read_dir(version.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let digits = text.trim().as_bytes();
            let bytes = digits
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            all.push((path.file_stem().unwrap().to_string_lossy().into_owned(), bytes));
        }
    }
    all.sort();
    all
}

/// The seeds of a decoder, made from the golden vectors.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let golden = golden();
    let epoch = FrameRef::parse(&golden[0].1).unwrap().header().epoch;
    let series = |frames: &[(String, Vec<u8>)]| {
        columns::encode(
            "kinara:00000000000000a1",
            epoch,
            frames.iter().map(|(_, bytes)| FrameRef::parse(bytes).unwrap()),
        )
        .unwrap()
    };
    let mut by_seq = golden.clone();
    by_seq.sort_by_key(|(_, bytes)| FrameRef::parse(bytes).unwrap().header().seq);
    match target {
        "frame" => golden,
        "frame_body" => golden
            .into_iter()
            .map(|(name, bytes)| {
                let mut body = vec![bytes[1]];
                body.extend(&bytes[HEADER_LEN..bytes.len() - CRC_LEN]);
                (name, body)
            })
            .collect(),
        "control" => {
            let mut out = [0; MAX_MESSAGE];
            let mut all = Vec::new();
            for (name, op) in [
                ("hello", Op::Hello),
                ("why_started", Op::WhyStarted { back: 1 }),
                (
                    "set_time",
                    Op::SetTime { ticks: Ticks(5), utc_us: 1_764_000_000_123_456, uncertainty_us: 812 },
                ),
                ("ack", Op::Ack { epoch, seq: 43 }),
                ("resend", Op::ResendFrom { epoch, seq: 3 }),
                ("admit", Op::Admit { secret: *b"0123456789abcdef", lives_s: 86_400 }),
                ("update_start", Op::UpdateStart { size: 70_000, image: *b"0123456789abcdef" }),
                (
                    "update_data",
                    Op::UpdateData { offset: 184, bytes: Chunk::new(b"kinara").expect("six bytes fit") },
                ),
                ("revoke", Op::Revoke { bond: [0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5] }),
            ] {
                all.push((name.to_owned(), Request { id: 7, op }.encode(&mut out).to_vec()));
            }
            let reply = Reply { id: 7, outcome: Outcome::Time(Ticks(5)) };
            all.push(("time".to_owned(), reply.encode(&mut out).to_vec()));
            all
        }
        "status" => {
            let status = Status {
                battery_percent: Some(80),
                worn: Some(true),
                epoch,
                ticks: Ticks(77),
                oldest: (Epoch(epoch.0 - 1), 3),
                next_seq: 44,
                stored_frames: 12,
            };
            vec![("status".to_owned(), status.encode().to_vec())]
        }
        "offer" => {
            let (nonce, tag) = (*b"nonce6", *b"tag--6");
            [
                ("label", Offer::Label { nonce: *b"nonce--8" }),
                ("introduction", Offer::Introduction { nonce, tag }),
                ("display", Offer::Display),
            ]
            .map(|(name, offer)| (name.to_owned(), offer.encode(&mut [0; MAX_OFFER]).to_vec()))
            .to_vec()
        }
        "columns" => {
            let mut all: Vec<_> = golden
                .iter()
                .map(|one| (one.0.clone(), series(std::slice::from_ref(one)).encode_to_vec()))
                .collect();
            all.push(("together".to_owned(), series(&by_seq).encode_to_vec()));
            all
        }
        "envelope" => {
            let name = Name { gateway: vec![7; 16], buffer: 9, sequence: 3 };
            let batch =
                Batch { version: 1, name: Some(name), sealed_at_us: 5, devices: vec![series(&by_seq)] };
            vec![("batch".to_owned(), envelope::seal(&batch))]
        }
        "plain" => {
            let name = || Some(Name { gateway: vec![7; 16], buffer: 9, sequence: 3 });
            let hardware_id = || "kinara:00000000000000a1".to_owned();
            let batch = Batch { version: 1, name: name(), sealed_at_us: 5, devices: vec![series(&by_seq)] };
            let gap = Gap { hardware_id: hardware_id(), seq_ranges: vec![3, 2], ..Gap::default() };
            let events = EventBatch { version: 1, name: name(), gaps: vec![gap], ..EventBatch::default() };
            let delivered = Some(Delivered { epoch: 5, seq_ranges: vec![0, 7] });
            let device = DeviceState { hardware_id: hardware_id(), delivered, ..DeviceState::default() };
            let state = State { devices: vec![device], notes: vec!["full".to_owned()], ..State::default() };
            let values = vec![LiveValue { channel: 1, value: vec![700], ..LiveValue::default() }];
            let device = LiveDevice { hardware_id: hardware_id(), epoch: 5, values };
            let live = Live { version: 1, devices: vec![device] };
            [
                ("batch", 0, batch.encode_to_vec()),
                ("events", 1, events.encode_to_vec()),
                ("state", 2, state.encode_to_vec()),
                ("live", 3, live.encode_to_vec()),
            ]
            .map(|(name, which, plain)| (name.to_owned(), [vec![which], plain].concat()))
            .to_vec()
        }
        "topic" => {
            let gateway = GatewayId(uuid::Uuid::from_u128(7));
            let text = |leaf: Leaf| (leaf.as_str().replace('/', "_"), topic::of(gateway, leaf).into_bytes());
            Leaf::ALL.into_iter().map(text).collect()
        }
        other => panic!("{other} has no seeds"),
    }
}

#[test]
fn the_corpus_is_made_from_the_golden_vectors() {
    let writing = std::env::var_os("KINARA_WRITE_CORPUS").is_some();
    for (target, decode) in TARGETS {
        for (name, bytes) in seeds(target) {
            decode(&bytes);
            let file = here(&format!("fuzz/corpus/{target}/{name}"));
            if writing {
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(&file, &bytes).unwrap();
            }
            assert!(std::fs::read(&file).is_ok_and(|kept| kept == bytes), "{}", file.display());
        }
        assert!(here(&format!("fuzz/fuzz_targets/{target}.rs")).exists(), "{target} has no fuzz target");
    }
}

/// One way to damage a message.
#[derive(Debug, Clone)]
enum Damage {
    Flip(usize, u8),
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
    Cut(usize),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let place = any::<prop::sample::Index>().prop_map(|index| index.index(4096));
    let telling = prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    prop_oneof![
        (place.clone(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        (place.clone(), telling.clone()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (place.clone(), prop::collection::vec(telling, 1..12))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (place.clone(), 1..24usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (place.clone(), 1..64usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
        place.prop_map(Damage::Cut),
    ]
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for one in damage {
        let len = bytes.len().max(1);
        match one {
            Damage::Flip(at, mask) => bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte ^= mask),
            Damage::Set(at, to) => bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte = *to),
            Damage::Insert(at, more) => {
                let at = (at % len).min(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = (at % len).min(bytes.len());
                bytes.drain(at..bytes.len().min(at + count));
            }
            Damage::Repeat(at, count) => {
                let at = (at % len).min(bytes.len());
                let some = bytes[at..bytes.len().min(at + count)].to_vec();
                bytes.splice(at..at, some);
            }
            Damage::Cut(at) => bytes.truncate(at % len),
        }
    }
    bytes
}

fn mutate(target: &str, decode: fn(&[u8])) {
    let seconds = std::env::var("KINARA_FUZZ_S").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let seeds = seeds(target);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let strategy = (prop::sample::select(seeds), prop::collection::vec(any_damage(), 0..8))
        .prop_map(|((_, bytes), damage)| damaged(bytes, &damage));
    let mut rounds = 0u8;
    let mut cases = 0u64;
    while Instant::now() < until {
        // The same rounds in every run: a failure comes again.
        let mut seed = [rounds; 32];
        seed[..target.len()].copy_from_slice(target.as_bytes());
        let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
        let outcome = runner.run(&strategy, |bytes| {
            decode(&bytes);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{target}: {error}");
        }
        rounds = rounds.wrapping_add(1);
        cases += 2_000;
    }
    eprintln!("{target}: {cases} mutations");
}

macro_rules! mutations {
    ($($test:ident: $target:literal),* $(,)?) => {$(
        #[test]
        fn $test() {
            let (name, decode) = TARGETS.into_iter().find(|(name, _)| *name == $target).unwrap();
            mutate(name, decode);
        }
    )*};
}

mutations! {
    damaged_frames_are_refused_or_consistent: "frame",
    damaged_bodies_behind_a_good_crc_are_refused_or_consistent: "frame_body",
    damaged_control_messages_are_refused_or_consistent: "control",
    a_damaged_status_is_refused_or_consistent: "status",
    damaged_offers_are_refused_or_consistent: "offer",
    damaged_columns_are_refused_or_consistent: "columns",
    damaged_envelopes_are_refused_or_opened_within_the_limits: "envelope",
    damaged_plain_messages_are_refused_or_take_no_more_memory_than_the_limits_say: "plain",
    damaged_topics_are_refused_or_consistent: "topic",
}
