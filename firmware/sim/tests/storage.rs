//! What the wearable's flash holds: for how long, and over a thousand resets.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_protocol::control::{MAX_MESSAGE, Op, Outcome, Reply, Request};
use kinara_protocol::frame::{Body, FrameRef, MAX_FRAME};
use kinara_protocol::gatt::Characteristic;
use kinara_sim::body::BodySettings;
use kinara_sim::firmware::Updates;
use kinara_sim::oracle::Oracle;
use kinara_sim::wearable::{Wearable, WearableSettings};

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;
/// Some day at noon; the body sleeps and wakes by it.
const START_US: i64 = 1_790_000_000_000_000;
/// Away from a gateway a frame stays open for so long.
const AWAY_MS: u32 = 60_000;

fn wearable(state: &Path, oracle: Oracle, seed: u64, ring_kib: u32) -> Wearable {
    let settings = WearableSettings {
        factory_id: seed,
        body: BodySettings {
            seed,
            utc_offset_min: 330,
            hot_flash_every_us: Some(3 * HOUR_US),
            watched_from_us: START_US,
        },
        drift_ppm: None,
        plan: Plan::default(),
        frame_age: FrameAge { live_ms: 1_000, stored_ms: AWAY_MS },
        ring_kib,
        recording: None,
        updates: Updates { maker: None, healthy_ms: 60_000 },
        prefill_us: 0,
    };
    Wearable::start(settings, state, oracle, START_US).unwrap()
}

/// How long the reference plan fits into a flash of this size, minutes: from the start to the first frame that is
/// overwritten. Time in which the wearable is not worn takes no room, so the least of several bodies counts.
fn holds_minutes(ring_kib: u32, seed: u64, step_us: i64, most_us: i64) -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let mut wearable = wearable(dir.path(), Oracle::default(), seed, ring_kib);
    let first = wearable.app().oldest().unwrap();
    let mut now = START_US;
    while now < START_US + most_us {
        now += step_us;
        wearable.run_to(now).unwrap();
        if wearable.app().oldest().unwrap() != first {
            return (now - step_us - START_US) / MINUTE_US;
        }
    }
    most_us / MINUTE_US
}

#[test]
fn internal_flash_alone_holds_ten_minutes_of_the_reference_plan() {
    // `LOG` in the memory map of the nRF52832, which has the least.
    let least = (1..=5).map(|seed| holds_minutes(180, seed, MINUTE_US, 12 * HOUR_US)).min().unwrap();
    println!("internal_minutes: {least}");
    assert!(least >= 10, "{least} minutes");
}

#[test]
fn eight_megabytes_hold_three_days_of_the_reference_plan() {
    // Without the pages of the radio's memory and of an update.
    let minutes = holds_minutes(8 * 1024 - 123 * 4, 1, 6 * HOUR_US, 400 * HOUR_US);
    println!("qspi_hours: {}", minutes / 60);
    assert!(minutes >= 72 * 60, "{} hours", minutes / 60);
}

/// Everything in flash, read as a gateway does.
fn samples_in_flash(wearable: &mut Wearable) -> BTreeMap<(u64, u16), BTreeSet<u64>> {
    let (app, oracle) = wearable.app_and_oracle();
    let mut out = [0; MAX_FRAME];
    let now = kinara_protocol::frame::Ticks(u64::from(u32::MAX));
    app.connected();
    app.subscribe(Characteristic::Backlog, true);
    let mut samples: BTreeMap<(u64, u16), BTreeSet<u64>> = BTreeMap::new();
    let mut ask = Op::StartBacklog { window: 100 };
    loop {
        let mut bytes = [0; MAX_MESSAGE];
        app.write(Request { id: 1, op: ask }.encode(&mut bytes), now, oracle);
        let mut newest = None;
        while let Some((characteristic, len)) = app.outgoing(now, &mut out, oracle).unwrap() {
            if characteristic == Characteristic::Control {
                assert_eq!(Reply::decode(&out[..len]).unwrap().outcome, Outcome::Ok);
                continue;
            }
            let frame = FrameRef::parse(&out[..len]).unwrap();
            let header = frame.header();
            newest = Some(Op::Ack { epoch: header.epoch, seq: header.seq });
            if let Body::Samples(blocks) = frame.body().unwrap() {
                for block in blocks.blocks() {
                    for sample in block.samples() {
                        let key = (header.epoch.0, block.channel().0);
                        assert!(samples.entry(key).or_default().insert(sample.ticks.0), "{key:?} twice");
                    }
                }
            }
        }
        let Some(ack) = newest else { return samples };
        ask = ack;
    }
}

#[test]
fn a_thousand_random_resets_lose_the_open_frame_each_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("produced.log");
    let mut wearable = wearable(dir.path(), Oracle::open(&log).unwrap(), 3, 8 * 1024);
    let (mut now, mut random) = (START_US, 0x2545_f491_4f6c_dd1d_u64);
    for _ in 0..1_000 {
        // Xorshift: from no time at all to two minutes, at any moment within a frame.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        now += (random % 120_000_000) as i64;
        wearable.run_to(now).unwrap();
        wearable.reset(now).unwrap();
    }
    wearable.run_to(now + MINUTE_US).unwrap();
    wearable.stop().unwrap();
    let kept = samples_in_flash(&mut wearable);
    let text = std::fs::read_to_string(&log).unwrap();
    let mut produced: BTreeMap<(u64, u16), BTreeSet<u64>> = BTreeMap::new();
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("P ")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let epoch = u64::from_str_radix(fields[1], 16).unwrap();
        let ticks: u64 = fields[3].parse().unwrap();
        produced.entry((epoch, fields[2].parse().unwrap())).or_default().insert(ticks);
        let end = ends.entry(epoch).or_default();
        *end = (*end).max(ticks);
    }
    let (mut all, mut lost) = (0, 0);
    for (key, wanted) in &produced {
        let none = BTreeSet::new();
        let there = kept.get(key).unwrap_or(&none);
        assert!(there.is_subset(wanted), "{key:?} has samples that nobody produced");
        let end = ends[&key.0];
        for ticks in wanted.difference(there) {
            lost += 1;
            assert!(end - ticks <= u64::from(AWAY_MS), "{key:?}: {ticks} of {end} is lost");
            assert!(
                there.range(ticks..).next().is_none(),
                "{key:?}: {ticks} is lost, and a later one is there"
            );
        }
        all += wanted.len();
    }
    println!("{all} samples, {lost} lost with the open frames of 1,000 resets");
    assert!(lost > 0, "a reset loses what is in memory");
    assert!(ends.len() > 900, "{} boots with samples", ends.len());
}
