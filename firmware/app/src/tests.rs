//! The application as a whole, with flash in memory and a gateway that is a few lines long.

use std::collections::{BTreeMap, BTreeSet};
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use kinara_protocol::channel::{BATTERY, ChannelId, EDA, HEART_RATE, PPG, RR_INTERVAL};
use kinara_protocol::control::{
    MAX_ADMISSION_S, MAX_MESSAGE, Op, Outcome, Place, Refusal, Reply, Request, Start,
};
use kinara_protocol::frame::{
    Body, DeviceEventKind, FrameRef, Kind, MAX_FRAME, ResetReason, SyncAnchor, Ticks,
};
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::intervals::Intervals;
use kinara_protocol::status::Status;
use proptest::prelude::*;

use crate::app::{App, DeviceIdentity, Effect, Recovered, Settings};
use crate::framing::FrameAge;
use crate::plan::Plan;
use crate::ring::Identity;
use crate::testing::RamFlash;

const SETTINGS: Settings = Settings {
    identity: DeviceIdentity { factory_id: 0x5eed, firmware: [0, 1, 0] },
    plan: Plan::REFERENCE,
    frame_age: FrameAge { live_ms: 1_000, stored_ms: 60_000 },
};

fn boot(flash: RamFlash) -> App<RamFlash> {
    App::new(Recovered::boot(flash, SETTINGS, ResetReason::PowerOn, [11, 12], Ticks(0), &mut ()).unwrap())
}

fn fresh() -> App<RamFlash> {
    boot(RamFlash::new(64))
}

fn ask(app: &mut App<RamFlash>, op: Op, now: u64) -> Outcome {
    let mut bytes = [0; MAX_MESSAGE];
    let request = Request { id: 77, op };
    app.write(request.encode(&mut bytes), Ticks(now), &mut ());
    let mut out = [0; MAX_FRAME];
    let (characteristic, len) = app.outgoing(Ticks(now), &mut out, &mut ()).unwrap().expect("a reply");
    assert_eq!(characteristic, Characteristic::Control);
    let reply = Reply::decode(&out[..len]).unwrap();
    assert_eq!(reply.id, 77);
    reply.outcome
}

/// Everything that is sent now.
fn sent(app: &mut App<RamFlash>, now: u64) -> Vec<(Characteristic, Vec<u8>)> {
    let mut out = [0; MAX_FRAME];
    let mut all = Vec::new();
    while let Some((characteristic, len)) = app.outgoing(Ticks(now), &mut out, &mut ()).unwrap() {
        all.push((characteristic, out[..len].to_vec()));
    }
    all
}

fn link(app: &mut App<RamFlash>, window: u8) {
    app.connected();
    app.subscribe(Characteristic::Backlog, true);
    assert_eq!(ask(app, Op::StartBacklog { window }, 0), Outcome::Ok);
}

fn id_of(frame: &[u8]) -> Identity {
    let header = FrameRef::parse(frame).unwrap().header();
    Identity { epoch: header.epoch, seq: header.seq }
}

fn ack(app: &mut App<RamFlash>, id: Identity) {
    assert_eq!(ask(app, Op::Ack { epoch: id.epoch, seq: id.seq }, 0), Outcome::Ok);
}

/// Drains and acknowledges everything.
fn drain(app: &mut App<RamFlash>) -> Vec<Vec<u8>> {
    link(app, 8);
    let mut frames = Vec::new();
    loop {
        let got = sent(app, 0);
        let Some((_, newest)) = got.last() else { return frames };
        let newest = id_of(newest);
        frames.extend(got.into_iter().map(|(_, frame)| frame));
        ack(app, newest);
    }
}

#[test]
fn a_frame_closes_after_a_minute_or_after_a_second_while_somebody_watches() {
    let mut app = fresh();
    let first = app.next_seq();
    app.sample(EDA, Ticks(100), &[5_000], &mut ()).unwrap();
    app.step(Ticks(60_099), &mut ()).unwrap();
    assert_eq!(app.next_seq(), first);
    app.step(Ticks(60_100), &mut ()).unwrap();
    assert_eq!(app.next_seq(), first + 1);
    app.connected();
    app.subscribe(Characteristic::Stream, true);
    app.sample(EDA, Ticks(61_000), &[5_000], &mut ()).unwrap();
    app.step(Ticks(62_000), &mut ()).unwrap();
    assert_eq!(app.next_seq(), first + 2);
    assert_eq!(sent(&mut app, 62_000).len(), 1, "it goes out at once");
    assert_eq!(ask(&mut app, Op::StreamOff, 62_000), Outcome::Ok);
    app.sample(EDA, Ticks(63_000), &[5_000], &mut ()).unwrap();
    app.step(Ticks(70_000), &mut ()).unwrap();
    assert_eq!(app.next_seq(), first + 2);
}

#[test]
fn a_hand_over_closes_what_is_open_and_tells_the_next_frame_in_one_answer() {
    let mut app = fresh();
    app.connected();
    app.sample(EDA, Ticks(100), &[5_000], &mut ()).unwrap();
    app.sample(PPG, Ticks(100), &[60_000], &mut ()).unwrap();
    let open = app.next_seq();
    let told = ask(&mut app, Op::HandOver, 200);
    assert_eq!(told, Outcome::Boundary { epoch: app.epoch(), next_seq: open + 2 });
    app.sample(EDA, Ticks(300), &[5_000], &mut ()).unwrap();
    app.close_frames(&mut ()).unwrap();
    let later = drain(&mut app).last().map(|frame| id_of(frame).seq);
    assert_eq!(later, Some(open + 2), "what comes then is on the later side");
}

#[test]
fn a_waveform_is_never_in_a_frame_with_scalars() {
    let mut app = fresh();
    for tick in 0..2_000u64 {
        app.sample(PPG, Ticks(tick * 40), &[60_000 + tick as i32], &mut ()).unwrap();
        app.sample(EDA, Ticks(tick * 40), &[5_000], &mut ()).unwrap();
    }
    app.close_frames(&mut ()).unwrap();
    for frame in drain(&mut app) {
        let frame = FrameRef::parse(&frame).unwrap();
        if let Body::Samples(samples) = frame.body().unwrap() {
            let expected = if frame.header().kind == Kind::Waveform { PPG } else { EDA };
            assert!(samples.blocks().all(|block| block.channel() == expected));
        }
    }
}

#[test]
fn the_window_bounds_what_is_sent_and_not_acknowledged() {
    let mut app = fresh();
    for tick in 0..20u64 {
        app.sample(HEART_RATE, Ticks(tick * 1_000), &[700], &mut ()).unwrap();
        app.close_frames(&mut ()).unwrap();
    }
    link(&mut app, 4);
    let first = sent(&mut app, 0);
    assert_eq!(first.len(), 4);
    ack(&mut app, id_of(&first[1].1));
    assert_eq!(sent(&mut app, 0).len(), 2);
    assert!(sent(&mut app, 0).is_empty());
    let again = id_of(&first[2].1);
    assert_eq!(ask(&mut app, Op::ResendFrom { epoch: again.epoch, seq: again.seq }, 0), Outcome::Ok);
    let repeated = sent(&mut app, 0);
    assert_eq!(repeated.len(), 4);
    assert_eq!(repeated[0].1, first[2].1);
    // A frame that was acknowledged long ago is still there for a gateway that lost it.
    let oldest = id_of(&first[0].1);
    assert_eq!(ask(&mut app, Op::ResendFrom { epoch: oldest.epoch, seq: oldest.seq }, 0), Outcome::Ok);
    assert_eq!(sent(&mut app, 0)[0].1, first[0].1);
}

#[test]
fn an_acknowledgement_of_what_the_link_has_not_sent_moves_on_behind_it() {
    let mut app = fresh();
    for tick in 0..20u64 {
        app.sample(HEART_RATE, Ticks(tick * 1_000), &[700], &mut ()).unwrap();
        app.close_frames(&mut ()).unwrap();
    }
    link(&mut app, 4);
    let epoch = app.epoch();
    ack(&mut app, Identity { epoch, seq: 9 });
    assert_eq!(id_of(&sent(&mut app, 0)[0].1).seq, 10);
    let beyond = Op::Ack { epoch, seq: app.next_seq() };
    assert_eq!(ask(&mut app, beyond, 0), Outcome::Refused(Refusal::NotInLog));
}

#[test]
fn frames_that_overflow_while_they_are_in_flight_do_not_hold_the_link_up() {
    let mut app = boot(RamFlash::new(8));
    link(&mut app, 4);
    assert!(!sent(&mut app, 0).is_empty());
    for tick in 0..400u64 {
        app.sample(HEART_RATE, Ticks(tick * 1_000), &[700], &mut ()).unwrap();
        app.close_frames(&mut ()).unwrap();
    }
    let first = sent(&mut app, 0);
    assert_eq!(first.len(), 4, "the window is free again");
    let oldest = app.oldest().unwrap();
    assert!(oldest.seq > 4 && id_of(&first[0].1) == oldest, "and begins at the oldest frame there is");
}

#[test]
fn when_the_ring_turns_over_many_times_what_is_left_tells_of_all_that_is_lost() {
    let mut app = boot(RamFlash::new(8));
    for tick in 0..4_000u64 {
        app.sample(HEART_RATE, Ticks(tick * 1_000), &[700], &mut ()).unwrap();
        app.close_frames(&mut ()).unwrap();
    }
    let frames = drain(&mut app);
    let oldest = id_of(&frames[0]).seq;
    let told: BTreeSet<_> = frames
        .iter()
        .filter_map(|frame| match FrameRef::parse(frame).unwrap().body().unwrap() {
            Body::DeviceEvents(events) => Some(events.iter().collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .filter_map(|event| match event.kind {
            DeviceEventKind::Overflow { first_seq, last_seq, .. } => Some(first_seq..=last_seq),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(oldest > 1_000 && (0..oldest).all(|seq| told.contains(&seq)), "{oldest}");
}

#[test]
fn a_caught_up_link_gets_each_new_frame_once() {
    let mut app = fresh();
    link(&mut app, 8);
    app.subscribe(Characteristic::Stream, true);
    for second in 1..50u64 {
        for (_, frame) in sent(&mut app, second * 1_000) {
            ack(&mut app, id_of(&frame));
        }
        app.sample(HEART_RATE, Ticks(second * 1_000), &[700], &mut ()).unwrap();
        app.step(Ticks(second * 1_000 + 1_000), &mut ()).unwrap();
        let frames = sent(&mut app, second * 1_000 + 1_000);
        assert!(frames.iter().all(|(characteristic, _)| *characteristic == Characteristic::Backlog));
        let ids: BTreeSet<_> = frames.iter().map(|(_, frame)| id_of(frame)).collect();
        assert_eq!(ids.len(), frames.len());
        for (_, frame) in frames {
            ack(&mut app, id_of(&frame));
        }
    }
    assert_eq!(app.unacknowledged(), 0);
}

#[test]
fn wear_and_a_low_battery_are_told_once_as_events_and_in_the_status() {
    let mut app = fresh();
    app.set_worn(true, Ticks(1), &mut ()).unwrap();
    app.set_worn(true, Ticks(2), &mut ()).unwrap();
    for (tick, percent) in (3u64..).zip([16, 14, 13, 16, 14, 25, 12]) {
        app.sample(BATTERY, Ticks(tick), &[percent], &mut ()).unwrap();
    }
    app.set_worn(false, Ticks(20), &mut ()).unwrap();
    app.connected();
    app.subscribe(Characteristic::Status, true);
    let (characteristic, bytes) = sent(&mut app, 30).remove(0);
    let status = Status::decode(&bytes).unwrap();
    assert_eq!(characteristic, Characteristic::Status);
    assert_eq!((status.battery_percent, status.worn), (Some(12), Some(false)));
    assert!(sent(&mut app, 31).is_empty(), "nothing has changed");
    let mut events = Vec::new();
    for frame in drain(&mut app) {
        if let Body::DeviceEvents(list) = FrameRef::parse(&frame).unwrap().body().unwrap() {
            events.extend(list.iter().map(|event| (event.ticks.0, event.kind)));
        }
    }
    let low = DeviceEventKind::BatteryLow;
    assert_eq!(
        events,
        vec![(1, DeviceEventKind::Worn), (4, low(14)), (9, low(12)), (20, DeviceEventKind::NotWorn)]
    );
}

#[test]
fn the_boot_anchor_tells_of_the_boot_before() {
    let mut app = fresh();
    app.connected();
    let sync = Op::SetTime { ticks: Ticks(4_000), utc_us: 1_700_000_000_000_000, uncertainty_us: 800 };
    assert_eq!(ask(&mut app, sync, 5_000), Outcome::Ok);
    app.sample(RR_INTERVAL, Ticks(6_000), &[812], &mut ()).unwrap();
    app.sample(RR_INTERVAL, Ticks(6_790), &[790], &mut ()).unwrap();
    app.close_frames(&mut ()).unwrap();
    app.sample(RR_INTERVAL, Ticks(7_600), &[810], &mut ()).unwrap();
    let (epoch, next_seq) = (app.epoch(), app.next_seq());
    let mut app = boot(app.into_flash());
    assert_eq!((app.epoch().log_id(), app.epoch().boot()), (epoch.log_id(), epoch.boot() + 1));
    let frames = drain(&mut app);
    let frame = FrameRef::parse(frames.last().unwrap()).unwrap();
    assert_eq!((frame.header().epoch, frame.header().seq), (app.epoch(), 0));
    let Body::BootAnchor(anchor) = frame.body().unwrap() else {
        panic!("the first frame is the boot anchor")
    };
    let previous = anchor.previous.unwrap();
    assert_eq!((previous.epoch, previous.next_seq, previous.last_ticks), (epoch, next_seq, Ticks(6_790)));
    let told = SyncAnchor { ticks: Ticks(4_000), utc_us: 1_700_000_000_000_000, uncertainty_us: 800 };
    assert_eq!(previous.last_sync, Some(told));
}

#[test]
fn an_anchor_is_not_taken_for_the_end_of_the_samples() {
    let mut app = fresh();
    app.connected();
    app.sample(RR_INTERVAL, Ticks(6_000), &[812], &mut ()).unwrap();
    app.close_frames(&mut ()).unwrap();
    app.sample(RR_INTERVAL, Ticks(6_790), &[790], &mut ()).unwrap();
    // In flash at once, while the beat before it is in memory: that one is lost with the reset.
    let sync = Op::SetTime { ticks: Ticks(6_795), utc_us: 1_700_000_000_000_000, uncertainty_us: 800 };
    assert_eq!(ask(&mut app, sync, 6_795), Outcome::Ok);
    let mut app = boot(app.into_flash());
    let frames = drain(&mut app);
    let Body::BootAnchor(anchor) = FrameRef::parse(frames.last().unwrap()).unwrap().body().unwrap() else {
        panic!("the first frame is the boot anchor")
    };
    assert_eq!(anchor.previous.unwrap().last_ticks, Ticks(6_000));
}

#[test]
fn the_application_fits_into_sixteen_kilobytes_beside_its_flash() {
    assert!(size_of::<App<RamFlash>>() <= 16 * 1024, "{}", size_of::<App<RamFlash>>());
}

#[test]
fn every_request_gets_its_reply() {
    let mut app = fresh();
    app.connected();
    let Outcome::Hello(hello) = ask(&mut app, Op::Hello, 123) else { panic!("hello") };
    assert_eq!((hello.factory_id, hello.ticks, hello.epoch), (0x5eed, Ticks(123), app.epoch()));
    assert_eq!((hello.oldest, hello.next_seq, hello.stored_frames), ((app.epoch(), 0), 1, 1));
    assert_eq!(ask(&mut app, Op::TimeProbe, 456), Outcome::Time(Ticks(456)));
    let bad = Outcome::Refused(Refusal::BadField);
    assert_eq!(ask(&mut app, Op::StartBacklog { window: 0 }, 0), bad);
    assert_eq!(ask(&mut app, Op::StartBacklog { window: 101 }, 0), bad);
    let future = Op::SetTime { ticks: Ticks(501), utc_us: 1, uncertainty_us: 1 };
    assert_eq!(ask(&mut app, future, 500), bad);
    assert_eq!(ask(&mut app, Op::SetPlan { ppg: true, acceleration: false }, 0), Outcome::Ok);
    assert!(app.plan().ppg && !app.plan().acceleration);
    assert_eq!(ask(&mut app, Op::Identify, 0), Outcome::Ok);
    assert_eq!(app.take_effect(), Some(Effect::Identify));
    app.write(&[9, 0, 200], Ticks(0), &mut ());
    let unknown = Reply::decode(&sent(&mut app, 0)[0].1).unwrap();
    assert_eq!((unknown.id, unknown.outcome), (9, Outcome::Refused(Refusal::UnknownOperation)));
    app.write(&[1], Ticks(0), &mut ());
    assert!(sent(&mut app, 0).is_empty(), "what is no request has no reply");
    assert_eq!(ask(&mut app, Op::Format, 0), Outcome::Ok);
    assert_eq!(app.take_effect(), Some(Effect::Reset));
}

/// What the log says of intervals: channel and milliseconds, in its order; and the ticks of a channel's samples.
fn intervals_and_samples(frames: &[Vec<u8>], of: ChannelId) -> (Vec<(ChannelId, u32)>, Vec<u64>) {
    let (mut said, mut ticks) = (Vec::new(), Vec::new());
    for frame in frames {
        match FrameRef::parse(frame).unwrap().body().unwrap() {
            Body::DeviceEvents(events) => said.extend(events.iter().filter_map(|event| match event.kind {
                DeviceEventKind::Interval { channel, every_ms } => Some((channel, every_ms)),
                _ => None,
            })),
            Body::Samples(samples) => {
                let blocks = samples.blocks().filter(|block| block.channel() == of);
                ticks.extend(
                    blocks.flat_map(|block| block.samples().map(|sample| sample.ticks.0).collect::<Vec<_>>()),
                );
            }
            _ => {}
        }
    }
    (said, ticks)
}

#[test]
fn another_interval_is_kept_from_then_on_and_the_log_says_so() {
    let mut app = fresh();
    app.connected();
    let minute = Intervals::REFERENCE.with(HEART_RATE, 60).unwrap();
    for second in 0..400 {
        match second {
            100 => assert_eq!(ask(&mut app, Op::SetIntervals(minute), second * 1_000), Outcome::Ok),
            320 => {
                assert_eq!(ask(&mut app, Op::TellIntervals, second * 1_000), Outcome::Intervals(minute));
                let reference = Op::SetIntervals(Intervals::REFERENCE);
                assert_eq!(ask(&mut app, reference, second * 1_000), Outcome::Ok);
            }
            _ => {}
        }
        app.sample(HEART_RATE, Ticks(second * 1_000), &[700], &mut ()).unwrap();
    }
    app.close_frames(&mut ()).unwrap();
    let (said, ticks) = intervals_and_samples(&drain(&mut app), HEART_RATE);
    assert_eq!(said, [(HEART_RATE, 60_000), (HEART_RATE, 1_000)]);
    let seconds: Vec<u64> = (0..=100).chain([120, 180, 240, 300]).chain(320..400).collect();
    assert_eq!(ticks, seconds.iter().map(|second| second * 1_000).collect::<Vec<_>>());
}

#[test]
fn intervals_that_cannot_be_are_refused_as_a_whole_and_a_reset_brings_the_reference_plan_back() {
    let mut app = fresh();
    app.connected();
    let good = Intervals::REFERENCE.with(EDA, 10).unwrap();
    assert_eq!(ask(&mut app, Op::SetIntervals(good), 1), Outcome::Ok);
    let next = app.next_seq();
    let long = good.with(HEART_RATE, 301).unwrap();
    assert_eq!(ask(&mut app, Op::SetIntervals(long), 2), Outcome::Refused(Refusal::BadField));
    // The waveform of light, each second.
    let mut out = [0; MAX_MESSAGE];
    let request = Request { id: 7, op: Op::SetIntervals(good) }.encode(&mut out);
    app.write(&[request, &PPG.0.to_le_bytes(), &1u16.to_le_bytes()].concat(), Ticks(0), &mut ());
    let reply = Reply::decode(&sent(&mut app, 0)[0].1).unwrap();
    assert_eq!(reply.outcome, Outcome::Refused(Refusal::UnknownOperation));
    assert_eq!((app.plan().intervals, app.next_seq()), (good, next));
    assert_eq!(boot(app.into_flash()).plan(), Plan::REFERENCE);
}

#[test]
fn requests_about_bonds_are_answered_by_the_platform() {
    let mut app = fresh();
    app.connected();
    let mut out = [0; MAX_MESSAGE];
    let secret = [7; 16];
    let mut write = |app: &mut App<RamFlash>, id, op| {
        app.write(Request { id, op }.encode(&mut out), Ticks(0), &mut ());
    };
    write(&mut app, 1, Op::Admit { secret, lives_s: 60 });
    write(&mut app, 2, Op::Revoke { bond: [1, 2, 3, 4, 5, 6] });
    assert!(sent(&mut app, 0).is_empty(), "not before the platform has done it");
    assert_eq!(app.take_effect(), Some(Effect::Admit { request: 1, secret, lives_s: 60 }));
    assert_eq!(app.take_effect(), Some(Effect::Revoke { request: 2, bond: [1, 2, 3, 4, 5, 6] }));
    app.reply(1, Outcome::Refused(Refusal::OutOfSlots));
    let reply = Reply::decode(&sent(&mut app, 0)[0].1).unwrap();
    assert_eq!((reply.id, reply.outcome), (1, Outcome::Refused(Refusal::OutOfSlots)));

    let bad = Outcome::Refused(Refusal::BadField);
    assert_eq!(ask(&mut app, Op::Admit { secret, lives_s: 0 }, 0), bad);
    assert_eq!(ask(&mut app, Op::Admit { secret, lives_s: MAX_ADMISSION_S + 1 }, 0), bad);
    for id in 0..5 {
        write(&mut app, id, Op::Revoke { bond: [0; 6] });
    }
    let reply = Reply::decode(&sent(&mut app, 0)[0].1).unwrap();
    assert_eq!((reply.id, reply.outcome), (4, Outcome::Refused(Refusal::Storage)), "four wait already");
}

#[test]
fn a_frame_that_flash_has_not_kept_is_named_and_passed_over() {
    let mut app = fresh();
    for tick in 0..10u64 {
        app.sample(HEART_RATE, Ticks(tick * 1_000), &[700], &mut ()).unwrap();
        app.close_frames(&mut ()).unwrap();
    }
    let epoch = app.epoch();
    let mut flash = app.into_flash();
    let frame = frame_at(&flash.bytes, epoch.0, 4);
    flash.bytes[frame + 24] ^= 0x10;
    let mut app = boot(flash);
    let frames = drain(&mut app);
    assert!(!frames.iter().any(|frame| id_of(frame) == Identity { epoch, seq: 4 }));
    let named = frames.iter().any(|frame| match FrameRef::parse(frame).unwrap().body().unwrap() {
        Body::DeviceEvents(events) => events
            .iter()
            .any(|event| event.kind == DeviceEventKind::Overflow { epoch, first_seq: 4, last_seq: 4 }),
        _ => false,
    });
    assert!(named);
}

#[test]
fn damaged_frames_are_each_named_once_however_often_the_log_is_asked_for_again() {
    let mut app = fresh();
    for tick in 0..10u64 {
        app.sample(HEART_RATE, Ticks(tick * 1_000), &[700], &mut ()).unwrap();
        app.close_frames(&mut ()).unwrap();
    }
    let epoch = app.epoch();
    let mut flash = app.into_flash();
    for seq in [4, 5] {
        let frame = frame_at(&flash.bytes, epoch.0, seq);
        flash.bytes[frame + 24] ^= 0x10;
    }
    let mut app = boot(flash);
    link(&mut app, 100);
    let mut named = BTreeMap::<u32, BTreeSet<Identity>>::new();
    for _ in 0..3 {
        for (_, frame) in sent(&mut app, 0) {
            let Body::DeviceEvents(events) = FrameRef::parse(&frame).unwrap().body().unwrap() else {
                continue;
            };
            for event in events.iter() {
                if let DeviceEventKind::Overflow { first_seq, .. } = event.kind {
                    named.entry(first_seq).or_default().insert(id_of(&frame));
                }
            }
        }
        let oldest = app.oldest().unwrap();
        assert_eq!(ask(&mut app, Op::ResendFrom { epoch: oldest.epoch, seq: oldest.seq }, 0), Outcome::Ok);
    }
    assert_eq!(named.keys().copied().collect::<Vec<_>>(), [4, 5]);
    assert!(named.values().all(|frames| frames.len() == 1), "{named:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_link_and_power_do_a_gateway_ends_up_with_every_stored_sample_once(
        acts in proptest::collection::vec((0u8..10, 1u8..40), 1..120),
    ) {
        let mut app = fresh();
        let mut stored = BTreeSet::new();
        let mut open = Vec::new();
        let mut got: BTreeMap<Identity, Vec<u8>> = BTreeMap::new();
        let mut now = 0u64;
        for (act, much) in acts {
            match act {
                0..=4 => for _ in 0..much {
                    now += 250;
                    app.sample(EDA, Ticks(now), &[now as i32], &mut ()).unwrap();
                    open.push((app.epoch().0, now));
                },
                5 => {
                    app.close_frames(&mut ()).unwrap();
                    stored.extend(open.drain(..));
                }
                6 => link(&mut app, much),
                7 => {
                    // Some arrive; an acknowledgement covers what has arrived without a hole from the oldest on.
                    for (_, frame) in sent(&mut app, now).into_iter().take(usize::from(much)) {
                        got.insert(id_of(&frame), frame);
                    }
                    let mut next = app.oldest().unwrap();
                    let mut last = None;
                    while got.contains_key(&next) {
                        last = Some(next);
                        next.seq += 1;
                    }
                    if let Some(last) = last {
                        app.connected();
                        ack(&mut app, last);
                    }
                }
                8 => app.disconnected().unwrap(),
                _ => {
                    app = boot(app.into_flash());
                    // What was in an open frame is gone, unless frames had filled up meanwhile.
                    open.clear();
                    now = 0;
                }
            }
        }
        app.close_frames(&mut ()).unwrap();
        stored.extend(open);
        for frame in drain(&mut app) {
            got.insert(id_of(&frame), frame);
        }
        let mut samples = BTreeSet::new();
        for (id, frame) in &got {
            if let Body::Samples(body) = FrameRef::parse(frame).unwrap().body().unwrap() {
                for sample in body.blocks().flat_map(|block| block.samples()) {
                    prop_assert!(samples.insert((id.epoch.0, sample.ticks.0)), "twice");
                    prop_assert_eq!(sample.value() as u64, sample.ticks.0);
                }
            }
        }
        prop_assert!(stored.is_subset(&samples));
    }
}

/// Where frame 4 of an epoch lies in flash.
fn frame_at(flash: &[u8], epoch: u64, seq: u32) -> usize {
    let mut identity = epoch.to_le_bytes().to_vec();
    identity.extend(seq.to_le_bytes());
    flash.windows(identity.len()).position(|window| window == identity).expect("it is stored") - 4
}

#[test]
fn the_last_starts_are_told_and_what_is_not_known_is_refused() {
    let mut app = fresh();
    let fault = Start {
        reason: ResetReason::Fault,
        place: Some(Place::new(b"/a/long/way/to/firmware/app/src/ring/mod.rs", 417)),
    };
    let power = Start { reason: ResetReason::PowerOn, place: None };
    app.remember_starts([fault, power]);
    app.connected();
    for (back, expected) in
        [(0, Outcome::Started(fault)), (1, Outcome::Started(power)), (2, Outcome::Refused(Refusal::NotInLog))]
    {
        assert_eq!(ask(&mut app, Op::WhyStarted { back }, 0), expected);
    }
    assert!(fault.place.unwrap().to_string().ends_with("firmware/app/src/ring/mod.rs:417"));
}
