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

/// Five good frames by columns.
fn five() -> crate::envelope::DeviceFrames {
    let frames: Vec<_> = (0..5)
        .map(|n| {
            frame(n, u64::from(n) * 1_000, &[(HEART_RATE, 0, vec![700 + n as i32]), (EDA, 10, vec![2_000])])
        })
        .collect();
    encode("kinara:1", EPOCH, frames.iter().map(|bytes| FrameRef::parse(bytes).unwrap())).unwrap()
}

fn faults(columns: &crate::envelope::DeviceFrames) -> Vec<Option<Fault>> {
    decode(columns).unwrap().frames().iter().map(|frame| frame.fault).collect()
}

#[test]
fn a_frame_with_another_crc_has_a_fault_and_its_neighbours_have_none() {
    let mut columns = five();
    columns.crcs[2] ^= 1;
    assert_eq!(faults(&columns), [None, None, Some(Fault::Crc), None, None]);
    let decoded = decode(&columns).unwrap();
    let error = decoded.rebuild(&decoded.frames()[2], &mut [0; MAX_FRAME]).unwrap_err();
    assert_eq!(error, ColumnsError::Frame(2, Fault::Crc));
}

#[test]
fn more_samples_than_fit_into_a_frame_are_a_fault_however_well_they_compress() {
    let mut columns = five();
    let series = &mut columns.series[0];
    series.counts[4] = 100_000;
    series.intervals = vec![0, 1];
    series.values.extend(vec![0; 99_999]);
    assert_eq!(faults(&columns), [None, None, None, None, Some(Fault::Length)]);
}

#[test]
fn samples_in_a_frame_of_another_kind_and_frames_without_samples_are_faults() {
    let crc = |kind: Kind, seq, ticks| {
        let mut out = [0; MAX_FRAME];
        let mut writer = crate::wire::Writer::new(&mut out);
        crate::frame::write_header(&mut writer, kind, EPOCH, seq, Ticks(ticks));
        let end = writer.len();
        crate::frame::seal(&mut out, end);
        u32::from_le_bytes(*out[..end + crate::frame::CRC_LEN].last_chunk().unwrap())
    };
    let empty = crate::envelope::DeviceFrames {
        epoch: EPOCH.0,
        seq_ranges: vec![0, 1],
        kinds: vec![0x40, 1],
        ticks: vec![5],
        crcs: vec![crc(Kind::Scalar, 0, 5)],
        block_order: vec![0],
        ..Default::default()
    };
    assert_eq!(faults(&empty), [Some(Fault::Empty)]);
    // With a CRC that is right for it.
    let mut columns = five();
    columns.kinds = vec![0x40, 4, 0x01, 1];
    let decoded = decode(&columns).unwrap();
    let mut bytes = [0; MAX_FRAME];
    assert_eq!(decoded.frames()[4].fault, Some(Fault::Crc));
    let whole = five();
    let whole = decode(&whole).unwrap();
    let len = whole.rebuild(&whole.frames()[4], &mut bytes).unwrap();
    bytes[1] = 0x01;
    columns.crcs[4] = crate::frame::checksum(&bytes[..len - crate::frame::CRC_LEN]);
    assert_eq!(faults(&columns)[4], Some(Fault::Kind(0x01)));
}

#[test]
fn a_frame_that_cannot_be_built_again_is_kept_whole_in_columns_of_its_own() {
    let mut columns = five();
    columns.crcs[3] ^= 1;
    columns.fits = vec![crate::envelope::Fit::default(); 2];
    columns.fit_of = vec![0, 3, 1, 2];
    let decoded = decode(&columns).unwrap();
    let alone = decoded.alone(&decoded.frames()[3]);
    let again = decode(&alone).unwrap();
    let (was, is) = (decoded.frames()[3], again.frames()[0]);
    assert_eq!((was.seq, was.ticks, was.crc, was.fault), (is.seq, is.ticks, is.crc, is.fault));
    let content = |decoded: &Decoded<'_>, frame: &DecodedFrame| -> Vec<(ChannelId, Vec<i32>)> {
        decoded.blocks(frame).map(|block| (block.channel, block.values.to_vec())).collect()
    };
    assert_eq!(content(&decoded, &was), content(&again, &is));
}

#[test]
fn frames_out_of_order_or_of_another_epoch_are_refused() {
    let first = frame(5, 0, &[(EDA, 0, vec![1])]);
    let parsed = FrameRef::parse(&first).unwrap();
    assert_eq!(encode("x", EPOCH, [parsed, parsed]).unwrap_err(), EncodeError::Order(5));
    assert_eq!(encode("x", Epoch(9), [parsed]).unwrap_err(), EncodeError::Epoch(EPOCH));
}
