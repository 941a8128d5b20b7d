//! Round trips of the frame codec, and what damaged frames get.
#![allow(clippy::unwrap_used)]

use kinara_protocol::channel::{ACCELERATION, ChannelId, EDA, HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE};
use kinara_protocol::control::{Chunk, Hello, MAX_MESSAGE, Op, Outcome, Refusal, Reply, Request};
use kinara_protocol::frame::{
    Body, BootAnchor, Class, DeviceEvent, DeviceEventKind, Epoch, FrameBuilder, FrameError, FrameRef, Kind,
    MAX_FRAME, PreviousBoot, PushError, ResetReason, SyncAnchor, Ticks, encode_boot_anchor,
    encode_device_event, encode_sync_anchor,
};
use proptest::prelude::*;
use std::fmt::Write as _;

const EPOCH: Epoch = Epoch::new(0xdead_beef, 7);

fn any_samples() -> impl Strategy<Value = Vec<(ChannelId, u64, Vec<i32>)>> {
    let channel =
        prop_oneof![Just(HEART_RATE), Just(RR_INTERVAL), Just(EDA), any::<u16>().prop_map(ChannelId)];
    let value = prop_oneof![any::<i32>(), -100..100i32];
    let one = (channel, 0u64..100_000, proptest::collection::vec(value, 1..=4));
    proptest::collection::vec(one, 1..300).prop_map(|mut samples| {
        samples.sort_by_key(|(_, offset, _)| *offset);
        samples
    })
}

proptest! {
    #[test]
    fn what_was_pushed_comes_back_and_the_frame_never_outgrows_a_notification(
        base in 0u64..1 << 47, seq: u32, samples in any_samples()
    ) {
        let mut builder = FrameBuilder::new();
        builder.begin(Kind::Scalar, EPOCH, Ticks(base));
        let mut taken = Vec::new();
        for (channel, offset, values) in &samples {
            match builder.push(*channel, Ticks(base + offset), values) {
                Ok(()) => taken.push((*channel, base + offset, values.clone())),
                Err(error) => prop_assert_eq!(error, PushError::Full),
            }
        }
        prop_assert_eq!(builder.len(), taken.len());
        let mut out = [0; MAX_FRAME];
        let len = builder.finish(seq, &mut out);
        let frame = FrameRef::parse(&out[..len]).unwrap();
        prop_assert_eq!((frame.header().epoch, frame.header().seq, frame.header().ticks), (EPOCH, seq, Ticks(base)));
        let Body::Samples(decoded) = frame.body().unwrap() else { panic!("a frame of samples") };
        let mut got: Vec<_> = decoded
            .blocks()
            .flat_map(|block| block.samples().map(move |s| (block.channel(), s.ticks.0, s.values().to_vec())))
            .collect();
        // The frame groups by channel: compare as multisets.
        got.sort();
        taken.sort();
        prop_assert_eq!(got, taken);
    }

    #[test]
    fn any_bytes_are_refused_or_decoded_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = FrameRef::parse(&bytes) {
            let _ = frame.body();
        }
    }

    #[test]
    fn a_body_with_a_good_crc_and_any_content_never_panics(
        kind: u8, body in proptest::collection::vec(any::<u8>(), 0..218)
    ) {
        let mut bytes = vec![1, kind];
        bytes.extend(((26 + body.len()) as u16).to_le_bytes());
        bytes.extend([0; 18]);
        bytes.extend(&body);
        bytes.extend(kinara_protocol::frame::checksum(&bytes).to_le_bytes());
        let frame = FrameRef::parse(&bytes).unwrap();
        match frame.body() {
            Ok(Body::Samples(samples)) => {
                for block in samples.blocks() {
                    prop_assert_eq!(block.samples().count(), block.count() as usize);
                }
            }
            Ok(Body::DeviceEvents(events)) => prop_assert!(events.iter().count() <= body.len()),
            Ok(_) | Err(FrameError::Body) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    #[test]
    fn one_flipped_bit_is_always_noticed(bit in 0usize..8 * 60) {
        let mut bytes = sample_frame();
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(FrameRef::parse(&bytes).is_err());
    }

    #[test]
    fn requests_come_back(id: u16, epoch: u64, seq: u32, ticks in 0u64..1 << 48, utc_us: i64, small: u8, yes: bool,
                         secret: [u8; 16], bond: [u8; 6]) {
        let (epoch, ticks) = (Epoch(epoch), Ticks(ticks));
        for op in [
            Op::Hello, Op::TimeProbe, Op::SetTime { ticks, utc_us, uncertainty_us: seq }, Op::Ack { epoch, seq },
            Op::ResendFrom { epoch, seq }, Op::StartBacklog { window: small }, Op::StreamOn, Op::StreamOff,
            Op::Identify, Op::CloseFrame, Op::Format, Op::SetPlan { ppg: yes, acceleration: !yes },
            Op::Admit { secret, lives_s: seq }, Op::Revoke { bond }, Op::UpdateStart { size: seq, image: secret },
            Op::UpdateData { offset: seq, bytes: Chunk::new(&secret).unwrap() }, Op::UpdateFinish,
            Op::OldestHeld, Op::HandOver,
        ] {
            let request = Request { id, op };
            prop_assert_eq!(Request::decode(request.encode(&mut [0; MAX_MESSAGE])), Ok(Ok(request)));
        }
        let hello = Hello {
            protocol: small, factory_id: epoch.0, firmware: [small; 3], epoch, ticks, oldest: (epoch, seq),
            next_seq: seq, stored_frames: seq,
        };
        for outcome in [
            Outcome::Ok, Outcome::Refused(Refusal::NotInLog), Outcome::Refused(Refusal::OutOfSlots),
            Outcome::Hello(hello), Outcome::Time(ticks), Outcome::UpdateAt(seq),
            Outcome::OldestHeld { epoch, seq }, Outcome::Boundary { epoch, next_seq: seq },
        ] {
            let reply = Reply { id, outcome };
            prop_assert_eq!(Reply::decode(reply.encode(&mut [0; MAX_MESSAGE])), Ok(reply));
        }
    }

    #[test]
    fn control_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..70)) {
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
        let _ = kinara_protocol::status::Status::decode(&bytes);
    }
}

#[test]
fn a_value_is_written_as_the_decimal_that_was_measured() {
    for channel in kinara_protocol::channel::REGISTRY {
        let decimals = (1.0 / channel.step).log10().round() as usize;
        for count in -10_000..10_000 {
            let value = channel.value(count);
            let written: f64 = format!("{value:.decimals$}").parse().unwrap();
            assert_eq!(value.to_string(), written.to_string(), "{} of {}", count, channel.name);
        }
    }
}

fn sample_frame() -> Vec<u8> {
    let mut builder = FrameBuilder::new();
    builder.begin(Kind::Scalar, EPOCH, Ticks(1_000));
    for second in 0..3 {
        let ticks = 1_000 + second * 1_000;
        builder.push(HEART_RATE, Ticks(ticks), &[720 + second as i32]).unwrap();
        builder.push(RR_INTERVAL, Ticks(ticks + 311), &[833]).unwrap();
        builder.push(SKIN_TEMPERATURE, Ticks(ticks), &[3_412]).unwrap();
        for quarter in 0..4 {
            builder.push(EDA, Ticks(ticks + quarter * 250), &[2_500 + quarter as i32]).unwrap();
        }
    }
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(42, &mut out);
    out[..len].to_vec()
}

/// The golden vectors of version 1. They never change: a later version adds its own beside them.
#[test]
fn the_golden_vectors_of_version_1_are_what_this_codec_writes_and_reads() {
    let mut out = [0; MAX_FRAME];
    let mut golden: Vec<(&str, Vec<u8>)> = vec![("samples", sample_frame())];
    let mut waveform = FrameBuilder::new();
    waveform.begin(Kind::Waveform, EPOCH, Ticks(77));
    for index in 0..10 {
        waveform
            .push(ACCELERATION, Ticks(77 + 20 * index), &[index as i32, -1_000, 500 - index as i32])
            .unwrap();
    }
    let len = waveform.finish(43, &mut out);
    golden.push(("waveform", out[..len].to_vec()));
    let sync = SyncAnchor { ticks: Ticks(5_000), utc_us: 1_764_000_000_123_456, uncertainty_us: 812 };
    let len = encode_sync_anchor(EPOCH, 1, &sync, &mut out);
    golden.push(("sync_anchor", out[..len].to_vec()));
    let boot = BootAnchor {
        reason: ResetReason::Watchdog,
        previous: Some(PreviousBoot {
            epoch: Epoch::new(0xdead_beef, 6),
            next_seq: 99,
            last_ticks: Ticks(123_456_789),
            last_sync: Some(sync),
        }),
    };
    let len = encode_boot_anchor(EPOCH, 0, Ticks(3), &boot, &mut out);
    golden.push(("boot_anchor", out[..len].to_vec()));
    let event = DeviceEvent {
        ticks: Ticks(60_000),
        kind: DeviceEventKind::Overflow { epoch: EPOCH, first_seq: 3, last_seq: 17 },
    };
    let len = encode_device_event(EPOCH, 44, &event, &mut out);
    golden.push(("device_event", out[..len].to_vec()));
    let kind = DeviceEventKind::Interval { channel: HEART_RATE, every_ms: 60_000 };
    let len = encode_device_event(EPOCH, 45, &DeviceEvent { ticks: Ticks(60_000), kind }, &mut out);
    golden.push(("interval_event", out[..len].to_vec()));

    for (name, bytes) in golden {
        let path = format!("{}/golden/v1/{name}.hex", env!("CARGO_MANIFEST_DIR"));
        let mut hex = String::new();
        for byte in &bytes {
            write!(hex, "{byte:02x}").unwrap();
        }
        if std::env::var_os("KINARA_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{hex}\n")).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), hex, "{name}");
        let frame = FrameRef::parse(&bytes).unwrap();
        match (name, frame.body().unwrap()) {
            ("samples" | "waveform", Body::Samples(samples)) => {
                assert!(samples.blocks().next().is_some());
            }
            ("sync_anchor", Body::SyncAnchor(decoded)) => assert_eq!(decoded, sync),
            ("boot_anchor", Body::BootAnchor(decoded)) => assert_eq!(decoded, boot),
            ("device_event", Body::DeviceEvents(events)) => {
                assert_eq!(events.iter().collect::<Vec<_>>(), [event]);
            }
            ("interval_event", Body::DeviceEvents(events)) => {
                assert_eq!(events.iter().collect::<Vec<_>>(), [DeviceEvent { ticks: Ticks(60_000), kind }]);
            }
            (name, body) => panic!("{name} decoded as {body:?}"),
        }
    }
}

#[test]
fn a_frame_of_a_later_kind_keeps_its_identity_and_class() {
    let mut bytes = sample_frame();
    bytes[1] = 0x85;
    let end = bytes.len() - 4;
    let crc = kinara_protocol::frame::checksum(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    let frame = FrameRef::parse(&bytes).unwrap();
    assert_eq!((frame.header().seq, frame.header().kind.class()), (42, Class::Waveform));
    assert!(matches!(frame.body(), Ok(Body::Unknown(_))));
}

#[test]
fn a_sample_older_than_the_frame_is_refused_and_the_frame_stays_as_it_was() {
    let mut builder = FrameBuilder::new();
    builder.begin(Kind::Scalar, EPOCH, Ticks(1_000));
    builder.push(EDA, Ticks(1_250), &[1]).unwrap();
    assert_eq!(builder.push(EDA, Ticks(1_249), &[2]), Err(PushError::Order));
    assert_eq!(builder.push(HEART_RATE, Ticks(999), &[2]), Err(PushError::Order));
    assert_eq!(builder.push(HEART_RATE, Ticks(1_300), &[]), Err(PushError::Components));
    assert_eq!((builder.len(), builder.last_ticks()), (1, Ticks(1_250)));
}
