//! The simulated wearable over its sockets, held against its own oracle's log.

#[expect(clippy::unwrap_used, reason = "a test fails where it stands")]
mod gateway;

use std::time::Duration;

use gateway::{FACTORY_ID, Gateway, Wearable};
use kinara_protocol::control::{Op, Outcome};
use kinara_protocol::frame::{Body, Epoch, FrameRef, Ticks};
use kinara_virtual_radio::{Characteristic, FromWearable, ToWearable};

fn drain(wearable: &Wearable, bond: Option<[u8; 16]>) -> (Gateway, [u8; 16]) {
    let mut gateway = Gateway::open(&wearable.air());
    let bond = match bond {
        Some(bond) => {
            gateway.connect("A", bond).expect("the bond is known");
            bond
        }
        None => gateway.pair("A"),
    };
    gateway.subscribe(Characteristic::Backlog);
    assert_eq!(gateway.request(Op::StartBacklog { window: 32 }), Outcome::Ok);
    gateway.drain();
    (gateway, bond)
}

#[test]
fn a_gateway_that_drains_a_prefilled_wearable_has_exactly_what_was_produced() {
    let wearable = Wearable::start(&["--prefill", "2h", "--plan", "waveforms"]);
    let status = wearable.command(r#"{"do":"stop"}"#);
    let (gateway, _) = drain(&wearable, None);
    let produced = wearable.produced();
    assert!(produced.len() > 300_000, "{} samples", produced.len());
    assert_eq!(status["produced"], produced.len());
    assert!(gateway.samples() == produced, "what arrived is what was produced");
    assert_eq!(wearable.log_lines("F").len(), gateway.frames.len());
    assert_eq!(wearable.log_lines("B").len(), 1);
}

#[test]
fn a_killed_wearable_keeps_its_frames_and_bonds_and_loses_at_most_one_frame_age() {
    let wearable = Wearable::start(&["--prefill", "10m", "--speed", "20"]);
    let first = wearable.ready["epoch"].clone();
    let (gateway, bond) = drain(&wearable, None);
    gateway_sleep(Duration::from_millis(2_500));
    let wearable = wearable.killed_and_started(&[]);
    assert_ne!(wearable.ready["epoch"], first);
    wearable.command(r#"{"do":"stop"}"#);
    let mut again = Gateway::open(&wearable.air()).with_frames(gateway);
    again.connect("A", bond).expect("the bond has survived");
    again.subscribe(Characteristic::Backlog);
    assert_eq!(again.request(Op::StartBacklog { window: 8 }), Outcome::Ok);
    again.drain();
    let (arrived, produced) = (again.samples(), wearable.produced());
    assert!(arrived.is_subset(&produced), "nothing arrives that was not produced");
    let lost: Vec<_> = produced.difference(&arrived).collect();
    let (oldest, newest) = (lost.iter().map(|s| s.2).min(), lost.iter().map(|s| s.2).max());
    let span = newest.unwrap_or(0) - oldest.unwrap_or(0);
    assert!(
        lost.iter().all(|sample| Some(sample.0.as_str()) == first.as_str()) && span <= 60_000,
        "{span} ms"
    );
    for frame in wearable.log_lines("F") {
        let id = (u64::from_str_radix(&frame[0], 16).unwrap(), frame[1].parse().unwrap());
        assert!(again.frames.contains_key(&id), "{frame:?} was in flash");
    }
}

#[test]
fn a_wearable_that_is_ended_in_order_loses_nothing() {
    let wearable = Wearable::start(&["--speed", "20"]);
    gateway_sleep(Duration::from_millis(1_500));
    let wearable = wearable.ended_and_started(&[]);
    wearable.command(r#"{"do":"stop"}"#);
    let (gateway, _) = drain(&wearable, None);
    assert!(gateway.samples() == wearable.produced());
}

#[test]
fn what_the_air_loses_delays_and_reorders_arrives_all_the_same() {
    let wearable = Wearable::start(&["--prefill", "20m"]);
    for fault in [r#"{"do":"lose","notifications":7}"#, r#"{"do":"reorder","notifications":20}"#] {
        wearable.command(fault);
    }
    wearable.command(r#"{"do":"stall","seconds":0.5}"#);
    wearable.command(r#"{"do":"stop"}"#);
    let (gateway, bond) = drain(&wearable, None);
    assert!(gateway.samples() == wearable.produced());
    wearable.command(r#"{"do":"drop"}"#);
    let mut gateway = Gateway::open(&wearable.air());
    assert!(gateway.connect("A", bond).is_ok());
    wearable.command(r#"{"do":"hear","gateways":["B"]}"#);
    assert_eq!(gateway.hear(), None, "the link is lost");
    let mut gateway = Gateway::open(&wearable.air());
    gateway.say(&ToWearable::Scan { gateway: "A".into() });
    assert_eq!(gateway.hear(), None, "out of range");
    assert_eq!(Gateway::open(&wearable.air()).scan("B").factory_id, FACTORY_ID);
}

#[test]
fn live_frames_come_every_second_while_the_backlog_is_far_behind() {
    let wearable = Wearable::start(&["--prefill", "20m"]);
    let mut gateway = Gateway::open(&wearable.air());
    gateway.pair("A");
    gateway.subscribe(Characteristic::Stream);
    gateway.subscribe(Characteristic::Backlog);
    assert_eq!(gateway.request(Op::StreamOn), Outcome::Ok);
    assert_eq!(gateway.request(Op::StartBacklog { window: 4 }), Outcome::Ok);
    gateway.listen(Duration::from_millis(3_500));
    assert!((2..=6).contains(&gateway.on_stream.len()), "{:?}", gateway.on_stream);
    assert_eq!(gateway.on_backlog.len(), 4, "the window holds the backlog back");
    gateway.drain();
    let stream = gateway.on_stream.len();
    gateway.listen(Duration::from_millis(2_500));
    assert!(gateway.on_stream.len() <= stream + 1, "caught up, each frame comes once");
    assert!(gateway.on_backlog.len() > 60);
}

#[test]
fn time_syncs_become_anchors_and_a_reboot_says_where_the_epoch_before_ended() {
    let wearable = Wearable::start(&["--drift-ppm", "30"]);
    let mut gateway = Gateway::open(&wearable.air());
    let bond = gateway.pair("A");
    let Outcome::Time(ticks) = gateway.request(Op::TimeProbe) else { panic!("a probe gives the time") };
    let utc_us = 1_700_000_000_000_000;
    assert_eq!(gateway.request(Op::SetTime { ticks, utc_us, uncertainty_us: 900 }), Outcome::Ok);
    let future = Op::SetTime { ticks: Ticks(ticks.0 + 3_600_000), utc_us, uncertainty_us: 900 };
    assert!(matches!(gateway.request(future), Outcome::Refused(_)));
    assert_eq!(gateway.request(Op::CloseFrame), Outcome::Ok);
    let before = gateway.hello();
    wearable.command(r#"{"do":"reboot"}"#);
    wearable.command(r#"{"do":"stop"}"#);
    let (gateway, _) = drain(&wearable, Some(bond));
    let mut bodies =
        gateway.frames.values().rev().map(|bytes| FrameRef::parse(bytes).unwrap().body().unwrap());
    let newest =
        bodies.find_map(|body| if let Body::BootAnchor(anchor) = body { Some(anchor) } else { None });
    let previous = newest.unwrap().previous.expect("there was a boot before");
    assert_eq!((previous.epoch, previous.next_seq), (before.epoch, before.next_seq));
    assert_eq!(previous.last_sync.map(|sync| (sync.ticks, sync.utc_us)), Some((ticks, utc_us)));
    assert_eq!(wearable.log_lines("R").len(), 1);
    assert_eq!(wearable.log_lines("B").len(), 2);
}

#[test]
fn a_ring_that_overflows_names_what_it_dropped_and_delivers_the_rest() {
    let wearable = Wearable::start(&["--prefill", "2h", "--ring-kib", "64"]);
    wearable.command(r#"{"do":"stop"}"#);
    let (gateway, _) = drain(&wearable, None);
    let mut dropped = 0;
    for range in wearable.log_lines("O") {
        let epoch = u64::from_str_radix(&range[0], 16).unwrap();
        for seq in range[1].parse::<u32>().unwrap()..=range[2].parse().unwrap() {
            dropped += 1;
            assert!(!gateway.frames.contains_key(&(epoch, seq)));
        }
    }
    assert!(dropped > 50);
    assert_eq!(dropped + gateway.frames.len(), wearable.log_lines("F").len());
    assert!(gateway.samples().is_subset(&wearable.produced()));
}

#[test]
fn formatting_starts_a_new_log() {
    let wearable = Wearable::start(&["--prefill", "5m"]);
    let mut gateway = Gateway::open(&wearable.air());
    let bond = gateway.pair("A");
    let before = gateway.hello();
    assert_eq!(gateway.request(Op::Format), Outcome::Ok);
    assert_eq!(gateway.hear(), None, "it resets");
    let mut gateway = Gateway::open(&wearable.air());
    gateway.connect("A", bond).unwrap();
    let after = gateway.hello();
    assert_ne!(after.epoch.log_id(), before.epoch.log_id());
    assert!(after.stored_frames < 5);
    let ack = Op::Ack { epoch: Epoch(before.epoch.0), seq: 0 };
    assert!(
        matches!(gateway.request(ack), Outcome::Refused(_)),
        "an old frame is not acknowledged in a new log"
    );
}

#[test]
fn a_link_without_pairing_carries_nothing_and_a_second_one_is_refused() {
    let wearable = Wearable::start(&[]);
    let mut gateway = Gateway::open(&wearable.air());
    gateway.scan("A");
    gateway.say(&ToWearable::Connect { gateway: "A".into(), bond: None });
    assert!(matches!(gateway.hear(), Some(FromWearable::Connected { .. })));
    gateway.say(&ToWearable::ReadStatus);
    assert!(matches!(gateway.hear(), Some(FromWearable::Refused { .. })));
    let mut second = Gateway::open(&wearable.air());
    assert!(!second.scan("B").connectable);
    second.say(&ToWearable::Connect { gateway: "B".into(), bond: None });
    assert!(matches!(second.hear(), Some(FromWearable::Refused { .. })));
    assert!(second.connect("B", [3; 16]).is_err());
}

fn gateway_sleep(duration: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the test waits for another process")]
    std::thread::sleep(duration);
}
