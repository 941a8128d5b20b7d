use proptest::prelude::*;

use super::*;
use crate::channel::{ACCELERATION, ChannelId, EDA, HEART_RATE, RR_INTERVAL};
use crate::frame::{Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, SyncAnchor, Ticks, encode_sync_anchor};

const EPOCH: Epoch = Epoch::new(0xabcd, 3);

fn frame(seq: u32, ticks: u64, samples: &[(ChannelId, u64, Vec<i32>)]) -> Vec<u8> {
    let mut builder = FrameBuilder::new();
    builder.begin(Kind::Scalar, EPOCH, Ticks(ticks));
    for (channel, offset, values) in samples {
        let _ = builder.push(*channel, Ticks(ticks + offset), values);
    }
    let mut out = [0; MAX_FRAME];
    let len = builder.finish(seq, &mut out);
    out[..len].to_vec()
}

fn samples() -> impl Strategy<Value = Vec<(ChannelId, u64, Vec<i32>)>> {
    let channel = prop_oneof![
        Just(HEART_RATE),
        Just(RR_INTERVAL),
        Just(EDA),
        Just(ACCELERATION),
        any::<u16>().prop_map(ChannelId)
    ];
    let one = (channel, 0u64..5_000, proptest::collection::vec(any::<i32>(), 1..=4));
    proptest::collection::vec(one, 1..40).prop_map(|mut samples| {
        samples.sort_by_key(|(_, offset, _)| *offset);
        samples
    })
}

proptest! {
    #[test]
    fn every_frame_comes_back_byte_for_byte(
        contents in proptest::collection::vec((samples(), 1u32..5, 0u64..100_000), 1..20)
    ) {
        let (mut seq, mut ticks) = (0, 0);
        let mut frames = Vec::new();
        for (samples, skip, wait) in &contents {
            seq += skip;
            ticks += wait;
            frames.push(frame(seq, ticks, samples));
        }
        let refs: Vec<_> = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap()).collect();
        let columns = encode("kinara:1", EPOCH, refs).unwrap();
        prop_assert!(columns.other_frames.is_empty());
        let decoded = decode(&columns).unwrap();
        prop_assert_eq!(decoded.frames().len(), frames.len());
        for (decoded_frame, bytes) in decoded.frames().iter().zip(&frames) {
            let mut out = [0; MAX_FRAME];
            let len = decoded.rebuild(decoded_frame, &mut out).unwrap();
            prop_assert_eq!(&out[..len], bytes.as_slice());
        }
    }

    #[test]
    fn damaged_columns_never_panic(
        contents in proptest::collection::vec((samples(), 1u32..5, 0u64..100_000), 1..6),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        use prost::Message;
        let (mut seq, mut ticks) = (0, 0);
        let mut frames = Vec::new();
        for (samples, skip, wait) in &contents {
            seq += skip;
            ticks += wait;
            frames.push(frame(seq, ticks, samples));
        }
        let refs: Vec<_> = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap()).collect();
        let mut bytes = encode("kinara:1", EPOCH, refs).unwrap().encode_to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(columns) = crate::envelope::DeviceFrames::decode(bytes.as_slice())
            && let Ok(decoded) = decode(&columns)
        {
            for frame in decoded.frames() {
                let mut out = [0; MAX_FRAME];
                let _ = decoded.rebuild(frame, &mut out);
                prop_assert!(decoded.blocks(frame).flat_map(|block| block.samples()).count() < 1 << 22);
            }
        }
    }
}

#[test]
fn frames_that_are_not_samples_travel_as_they_are() {
    let mut out = [0; MAX_FRAME];
    let anchor = SyncAnchor { ticks: Ticks(500), utc_us: 1_700_000_000_000_000, uncertainty_us: 900 };
    let len = encode_sync_anchor(EPOCH, 1, &anchor, &mut out);
    let frames = [frame(0, 0, &[(EDA, 0, vec![2_500])]), out[..len].to_vec()];
    let refs = frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap());
    let columns = encode("kinara:1", EPOCH, refs).unwrap();
    let decoded = decode(&columns).unwrap();
    assert_eq!(decoded.frames().len(), 1);
    assert_eq!(decoded.others()[0].bytes, frames[1].as_slice());
}

#[test]
fn frames_out_of_order_or_of_another_epoch_are_refused() {
    let first = frame(5, 0, &[(EDA, 0, vec![1])]);
    let parsed = FrameRef::parse(&first).unwrap();
    assert_eq!(encode("x", EPOCH, [parsed, parsed]).unwrap_err(), EncodeError::Order(5));
    assert_eq!(encode("x", Epoch(9), [parsed]).unwrap_err(), EncodeError::Epoch(EPOCH));
}
