//! Every decoder of this crate as a function of arbitrary bytes: what fuzzing feeds, on nightly by libFuzzer
//! (`fuzz/`), on stable by `tests/mutations.rs`. A decoder refuses or decodes; what it decodes must be consistent.

pub mod heap;

use kinara_protocol::advert::{MAX_OFFER, Offer};
use kinara_protocol::columns;
use kinara_protocol::control::{MAX_MESSAGE, Reply, Request};
use kinara_protocol::envelope::{self, Ack, Batch, Command, Config, DeviceFrames, EventBatch, Live, State};
use kinara_protocol::frame::{Body, CRC_LEN, FrameRef, HEADER_LEN, MAX_FRAME, checksum};
use kinara_protocol::status::Status;
use kinara_protocol::topic;
use prost::Message;

/// A decoder by name.
pub type Target = (&'static str, fn(&[u8]));

/// One target for each decoder.
pub const TARGETS: [Target; 9] = [
    ("frame", frame),
    ("frame_body", frame_body),
    ("control", control),
    ("status", status),
    ("offer", offer),
    ("columns", decode_columns),
    ("envelope", open_envelope),
    ("plain", decode_plain),
    ("topic", parse_topic),
];

/// Frames as they come over the air.
pub fn frame(bytes: &[u8]) {
    let Ok(frame) = FrameRef::parse(bytes) else { return };
    assert_eq!(frame.bytes(), bytes);
    match frame.body() {
        Ok(Body::Samples(samples)) => {
            let mut values = 0;
            for block in samples.blocks() {
                let mut count = 0;
                let mut last = block.first_ticks();
                for sample in block.samples() {
                    assert!(sample.ticks >= last && sample.values().len() == usize::from(block.components()));
                    last = sample.ticks;
                    values += sample.values().len();
                    count += 1;
                }
                assert_eq!(count, block.count());
            }
            // Every value takes at least one byte.
            assert!(values <= bytes.len());
        }
        Ok(Body::DeviceEvents(events)) => assert!(events.iter().count() <= bytes.len()),
        Ok(_) | Err(_) => {}
    }
}

/// The same behind a good CRC, which chance does not find: the first byte is the kind, the rest the body.
pub fn frame_body(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let body = &body[..body.len().min(MAX_FRAME - HEADER_LEN - CRC_LEN)];
    let mut whole = vec![1, *kind];
    whole.extend(((HEADER_LEN + body.len() + CRC_LEN) as u16).to_le_bytes());
    whole.extend([7; HEADER_LEN - 4]);
    whole.extend(body);
    let crc = checksum(&whole);
    whole.extend(crc.to_le_bytes());
    frame(&whole);
}

/// Requests and replies.
pub fn control(bytes: &[u8]) {
    let mut out = [0; MAX_MESSAGE];
    if let Ok(Ok(request)) = Request::decode(bytes) {
        assert_eq!(Request::decode(request.encode(&mut out)), Ok(Ok(request)));
    }
    if let Ok(reply) = Reply::decode(bytes) {
        assert_eq!(Reply::decode(reply.encode(&mut out)), Ok(reply));
    }
}

/// What the status characteristic says.
pub fn status(bytes: &[u8]) {
    if let Ok(status) = Status::decode(bytes) {
        assert_eq!(Status::decode(&status.encode()), Ok(status));
    }
}

/// What a wearable advertises in a window.
pub fn offer(bytes: &[u8]) {
    if let Ok(offer) = Offer::decode(bytes) {
        assert_eq!(offer.encode(&mut [0; MAX_OFFER]), bytes);
    }
}

/// Frames by columns; what can be rebuilt must be frames.
pub fn decode_columns(bytes: &[u8]) {
    let Ok(message) = DeviceFrames::decode(bytes) else { return };
    let Ok(decoded) = columns::decode(&message) else { return };
    let mut out = [0; MAX_FRAME];
    for one in decoded.frames() {
        for block in decoded.blocks(one) {
            assert_eq!(block.samples().count(), block.count());
        }
        if let Ok(len) = decoded.rebuild(one, &mut out) {
            let rebuilt = FrameRef::parse(&out[..len]).expect("a rebuilt frame is a frame");
            assert_eq!(rebuilt.header().seq, one.seq);
        }
    }
}

/// Sealed messages of every type; the limits hold before anything is allocated.
pub fn open_envelope(bytes: &[u8]) {
    if let Ok(plain) = envelope::decompress(bytes, envelope::MAX_OPENED) {
        assert!(plain.len() <= envelope::MAX_OPENED);
    }
    // A message that cannot be read is an error, whatever it pretends to be.
    let _ = envelope::open::<Batch>(bytes);
    let _ = envelope::open::<EventBatch>(bytes);
    let _ = envelope::open::<Ack>(bytes);
    let _ = envelope::open::<Live>(bytes);
    let _ = envelope::open::<State>(bytes);
    let _ = envelope::open::<Command>(bytes);
    let _ = envelope::open::<Config>(bytes);
}

/// Plain messages, the first byte says which: what the limits let through takes no more memory than they say.
pub fn decode_plain(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let most = match which % 4 {
        0 => envelope::decode::<Batch>(bytes).map(|batch| (heap::batch(&batch), heap::MOST_OF_BATCH)),
        1 => envelope::decode::<EventBatch>(bytes).map(|batch| (heap::events(&batch), heap::MOST_OF_EVENTS)),
        2 => envelope::decode::<State>(bytes).map(|state| (heap::state(&state), heap::MOST_OF_STATE)),
        _ => envelope::decode::<Live>(bytes).map(|live| (heap::live(&live), heap::MOST_OF_LIVE)),
    };
    if let Ok((taken, most)) = most {
        assert!(taken <= most, "{taken} bytes, at most {most}");
    }
}

/// Topics.
pub fn parse_topic(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some((gateway, leaf)) = topic::parse(text) {
        assert_eq!(topic::parse(&topic::of(gateway, leaf)), Some((gateway, leaf)));
    }
    let _ = topic::parse_tenant_live(text);
}
