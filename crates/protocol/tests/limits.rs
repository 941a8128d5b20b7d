//! What a sender claims is bounded before it is decoded: a message of a few hundred bytes takes no more than its limits say.
#![cfg(feature = "std")]
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod decoders;

use kinara_protocol::envelope::{
    self, Batch, DeviceFrames, DeviceState, EnvelopeError, Event, EventBatch, Gap, Live, LiveDevice,
    LiveValue, Series, State,
};
use kinara_protocol::limits;
use kinara_protocol::scan::Shaped;
use proptest::prelude::*;
use prost::Message;

/// What a message is refused for, as published.
fn refused<M: Message + Default + Shaped>(message: &M) -> Option<&'static str> {
    match envelope::open::<M>(&envelope::seal(message)) {
        Ok(_) => None,
        Err(EnvelopeError::Limit { field, .. }) => Some(field),
        Err(other) => panic!("{other}"),
    }
}

fn device(series: Vec<Series>) -> Batch {
    Batch { devices: vec![DeviceFrames { series, ..DeviceFrames::default() }], ..Batch::default() }
}

#[test]
fn two_million_devices_in_a_state_of_a_few_hundred_bytes_are_refused_before_they_are_decoded() {
    let mut plain = State { version: 1, online: true, ..State::default() }.encode_to_vec();
    plain.extend([0x72, 0x00].repeat(500_000));
    let sealed = zstd::bulk::compress(&plain, 3).unwrap();
    assert!(sealed.len() < 400, "{}", sealed.len());
    assert!(matches!(envelope::open::<State>(&sealed), Err(EnvelopeError::Limit { field: "devices", .. })));
}

#[test]
fn what_is_repeated_is_taken_up_to_its_limit_and_not_beyond() {
    let devices = |n| Batch { devices: vec![DeviceFrames::default(); n], ..Batch::default() };
    assert_eq!(refused(&devices(limits::DEVICES)), None);
    assert_eq!(refused(&devices(limits::DEVICES + 1)), Some("devices"));
    assert_eq!(refused(&device(vec![Series::default(); limits::SERIES])), None);
    assert_eq!(refused(&device(vec![Series::default(); limits::SERIES + 1])), Some("series"));
    let values = |n| device(vec![Series { values: vec![0; n], ..Series::default() }]);
    assert_eq!(refused(&values(limits::VALUES)), None);
    assert_eq!(refused(&values(limits::VALUES + 1)), Some("values"));
    let blocks = |n| device(vec![Series { offsets: vec![0; n], ..Series::default() }]);
    assert_eq!(
        (refused(&blocks(limits::BLOCKS)), refused(&blocks(limits::BLOCKS + 1))),
        (None, Some("offsets"))
    );
    let state = |n| State { devices: vec![DeviceState::default(); n], ..State::default() };
    assert_eq!(refused(&state(limits::STATE_DEVICES)), None);
    assert_eq!(refused(&state(limits::STATE_DEVICES + 1)), Some("devices"));
    let notes = |n| State { notes: vec![String::new(); n], ..State::default() };
    assert_eq!((refused(&notes(limits::NOTES)), refused(&notes(limits::NOTES + 1))), (None, Some("notes")));
    let events = |n| EventBatch { events: vec![Event::default(); n], ..EventBatch::default() };
    assert_eq!(
        (refused(&events(limits::EVENTS)), refused(&events(limits::EVENTS + 1))),
        (None, Some("events"))
    );
}

#[test]
fn what_is_spread_over_devices_and_series_counts_together() {
    let half = DeviceFrames { ticks: vec![0; limits::FRAMES / 2 + 1], ..DeviceFrames::default() };
    assert_eq!(refused(&Batch { devices: vec![half.clone()], ..Batch::default() }), None);
    assert_eq!(refused(&Batch { devices: vec![half.clone(), half], ..Batch::default() }), Some("frames"));
    let one = DeviceFrames { series: vec![Series::default(); limits::SERIES], ..DeviceFrames::default() };
    let many = Batch { devices: vec![one; limits::ALL_SERIES / limits::SERIES + 1], ..Batch::default() };
    assert_eq!(refused(&many), Some("series"));
    let gap = Gap { seq_ranges: vec![1; limits::GAP_NUMBERS], ..Gap::default() };
    let gaps = EventBatch {
        gaps: vec![gap; limits::RANGE_NUMBERS / limits::GAP_NUMBERS + 1],
        ..EventBatch::default()
    };
    assert_eq!(refused(&gaps), Some("seq_ranges"));
}

#[test]
fn a_text_of_megabytes_is_refused_wherever_it_stands() {
    let long = || "x".repeat(limits::TEXT + 1);
    let live_device = LiveDevice { hardware_id: long(), ..LiveDevice::default() };
    assert_eq!(refused(&Live { devices: vec![live_device], ..Live::default() }), Some("hardware_id"));
    assert_eq!(refused(&State { notes: vec![long()], ..State::default() }), Some("notes"));
    assert_eq!(refused(&State { software: long(), ..State::default() }), Some("software"));
    let device = DeviceState { problem: long(), ..DeviceState::default() };
    assert_eq!(refused(&State { devices: vec![device], ..State::default() }), Some("problem"));
    let event = Event { data_json: "x".repeat(limits::EVENT_DATA + 1), ..Event::default() };
    assert_eq!(refused(&EventBatch { events: vec![event], ..EventBatch::default() }), Some("data_json"));
    let frame = DeviceFrames { other_frames: vec![vec![0; limits::FRAME + 1]], ..DeviceFrames::default() };
    assert_eq!(refused(&Batch { devices: vec![frame], ..Batch::default() }), Some("other_frames"));
}

#[test]
fn a_message_that_may_be_there_once_is_refused_twice_for_the_decoder_would_join_the_two() {
    let value = LiveValue { value: vec![1; 4], ..LiveValue::default() };
    let live =
        LiveDevice { values: vec![value; limits::LIVE_VALUES], ..LiveDevice::default() }.encode_to_vec();
    let mut device = Vec::new();
    for _ in 0..2 {
        prost::encoding::encode_key(3, prost::encoding::WireType::LengthDelimited, &mut device);
        prost::encoding::encode_varint(live.len() as u64, &mut device);
        device.extend(&live);
    }
    let mut plain = Vec::new();
    prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut plain);
    prost::encoding::encode_varint(device.len() as u64, &mut plain);
    plain.extend(device);
    let refused = envelope::decode::<envelope::TenantLive>(&plain);
    assert!(matches!(refused, Err(EnvelopeError::Limit { field: "live", .. })), "{refused:?}");
}

#[test]
fn what_a_small_message_may_unpack_to_is_smaller() {
    let filler = State { notes: vec!["x".repeat(limits::TEXT); 200], ..State::default() }.encode_to_vec();
    let sealed = zstd::bulk::compress(&filler.repeat(6), 3).unwrap();
    assert!(matches!(envelope::open::<State>(&sealed), Err(EnvelopeError::TooLarge(_))));
}

/// Fields of any number and wire type, some of them many times over, some with fields inside.
fn fields(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let body = if depth == 0 {
        prop::collection::vec(any::<u8>(), 0..12).boxed()
    } else {
        prop_oneof![prop::collection::vec(any::<u8>(), 0..12), fields(depth - 1)].boxed()
    };
    let many = prop_oneof![3 => 1usize..4, 1 => 1_000usize..30_000];
    let one = (1u32..=22, prop_oneof![Just(0u8), Just(2), Just(2), Just(2), Just(5)], body, many).prop_map(
        |(number, wire, body, many)| {
            let mut out = Vec::new();
            prost::encoding::encode_varint(u64::from(number << 3 | u32::from(wire)), &mut out);
            match wire {
                0 => out.push(1),
                5 => out.extend([0; 4]),
                _ => {
                    prost::encoding::encode_varint(body.len() as u64, &mut out);
                    out.extend(body);
                }
            }
            let many = many.min(limits::MAX_OPENED_SMALL / 4 / out.len().max(1)).max(1);
            out.repeat(many)
        },
    );
    prop::collection::vec(one, 0..6).prop_map(|all| all.concat()).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_let_through_takes_no_more_memory_than_the_limits_say(which in 0u8..4, plain in fields(2)) {
        decoders::decode_plain(&[vec![which], plain].concat());
    }
}
