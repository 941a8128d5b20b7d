//! The control messages and offers as they stand on the wire. These bytes never change: a later version adds its own.
#![allow(clippy::unwrap_used)]

use kinara_protocol::advert::{AdvertisingData, MAX_OFFER, Offer};
use kinara_protocol::channel::{EDA, HEART_RATE};
use kinara_protocol::control::{
    Chunk, ControlError, Hello, MAX_MESSAGE, Op, Outcome, Refusal, Reply, Request, UPDATE_CHUNK,
};
use kinara_protocol::frame::{Epoch, Ticks};
use kinara_protocol::intervals::Intervals;

const EPOCH: Epoch = Epoch::new(0xdead_beef, 7);

/// Of heart rate a minute, of EDA ten seconds.
fn intervals() -> Intervals {
    Intervals::REFERENCE.with(EDA, 10).unwrap().with(HEART_RATE, 60).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn requests_are_on_the_wire_as_published() {
    let set_time = Op::SetTime { ticks: Ticks(5), utc_us: 1_764_000_000_123_456, uncertainty_us: 812 };
    let admit = Op::Admit { secret: *b"0123456789abcdef", lives_s: 86_400 };
    for (op, wire) in [
        (Op::Hello, "070001"),
        (Op::TimeProbe, "070002"),
        (set_time, "07000305000000000040226441594406002c030000"),
        (Op::Ack { epoch: EPOCH, seq: 43 }, "07000407000000efbeadde2b000000"),
        (Op::ResendFrom { epoch: EPOCH, seq: 43 }, "07000507000000efbeadde2b000000"),
        (Op::StartBacklog { window: 100 }, "07000664"),
        (Op::StreamOn, "070007"),
        (Op::StreamOff, "070008"),
        (Op::Identify, "070009"),
        (Op::CloseFrame, "07000a"),
        (Op::Format, "07000b"),
        (Op::SetPlan { ppg: false, acceleration: true }, "07000c02"),
        (admit, "07000d3031323334353637383961626364656680510100"),
        (Op::Revoke { bond: [0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5] }, "07000ef0f1f2f3f4f5"),
        (
            Op::UpdateStart { size: 70_000, image: *b"0123456789abcdef" },
            "07000f7011010030313233343536373839616263646566",
        ),
        (Op::UpdateFinish, "070011"),
        (Op::OldestHeld, "070013"),
        (Op::HandOver, "070014"),
        (Op::SetIntervals(Intervals::REFERENCE), "070015"),
        (Op::SetIntervals(intervals()), "07001501003c0005000a00"),
        (Op::TellIntervals, "070016"),
    ] {
        let request = Request { id: 7, op };
        let mut out = [0; MAX_MESSAGE];
        let bytes = request.encode(&mut out);
        assert_eq!(hex(bytes), wire, "{op:?}");
        assert_eq!(Request::decode(bytes), Ok(Ok(request)));
        // A message ends where its fields do.
        assert_eq!(Request::decode(&[bytes, &[0]].concat()), Err(ControlError));
        assert_eq!(Request::decode(&bytes[..bytes.len() - 1]), Err(ControlError));
    }
}

#[test]
fn bytes_of_an_image_are_on_the_wire_as_published() {
    let op = Op::UpdateData { offset: 184, bytes: Chunk::new(b"kinara").unwrap() };
    let mut out = [0; MAX_MESSAGE];
    let request = Request { id: 7, op };
    assert_eq!(hex(request.encode(&mut out)), "070010b80000006b696e617261");
    assert_eq!(Request::decode(request.encode(&mut [0; MAX_MESSAGE])), Ok(Ok(request)));
    // At least one byte, and no more than fit.
    assert_eq!(Request::decode(&[7, 0, 16, 0, 0, 0, 0]), Err(ControlError));
    assert_eq!(
        Request::decode(&[&[7, 0, 16, 0, 0, 0, 0], [1; UPDATE_CHUNK + 1].as_slice()].concat()),
        Err(ControlError)
    );
    assert_eq!((Chunk::new(&[]), Chunk::new(&[0; UPDATE_CHUNK + 1])), (None, None));
}

#[test]
fn intervals_out_of_order_or_twice_are_no_request_and_those_of_another_channel_an_unknown_one() {
    let of = |pairs: &[[u8; 4]]| [&[7, 0, 21], pairs.concat().as_slice()].concat();
    assert!(Request::decode(&of(&[[1, 0, 60, 0], [5, 0, 10, 0]])).unwrap().is_ok());
    for bad in [[[5, 0, 10, 0], [1, 0, 60, 0]], [[1, 0, 60, 0], [1, 0, 60, 0]], [[1, 0, 60, 0], [5, 0, 0, 0]]]
    {
        assert_eq!(Request::decode(&of(&bad)), Err(ControlError));
    }
    // Beats have no other interval.
    assert_eq!(Request::decode(&of(&[[1, 0, 60, 0], [2, 0, 10, 0]])), Ok(Err(7)));
}

#[test]
fn replies_are_on_the_wire_as_published() {
    let hello = Hello {
        protocol: 1,
        factory_id: 0xa1,
        firmware: [0, 1, 0],
        epoch: EPOCH,
        ticks: Ticks(5),
        oldest: (EPOCH, 3),
        next_seq: 44,
        stored_frames: 41,
    };
    for (outcome, wire) in [
        (Outcome::Ok, "070000"),
        (Outcome::Refused(Refusal::UnknownOperation), "07000101"),
        (Outcome::Refused(Refusal::BadField), "07000102"),
        (Outcome::Refused(Refusal::NotInLog), "07000103"),
        (Outcome::Refused(Refusal::Storage), "07000104"),
        (Outcome::Refused(Refusal::OutOfSlots), "07000105"),
        (Outcome::Refused(Refusal::NotNewer), "07000106"),
        (Outcome::Refused(Refusal::BadImage), "07000107"),
        (Outcome::UpdateAt(552), "07000428020000"),
        (Outcome::Intervals(intervals()), "07000801003c0005000a00"),
        (Outcome::OldestHeld { epoch: EPOCH, seq: 3 }, "07000607000000efbeadde03000000"),
        (Outcome::Boundary { epoch: EPOCH, next_seq: 44 }, "07000707000000efbeadde2c000000"),
        (
            Outcome::Hello(hello),
            "07000201a10000000000000000010007000000efbeadde05000000000007000000efbeadde030000002c00000029000000",
        ),
        (Outcome::Time(Ticks(5)), "070003050000000000"),
    ] {
        let reply = Reply { id: 7, outcome };
        let mut out = [0; MAX_MESSAGE];
        let bytes = reply.encode(&mut out);
        assert_eq!(hex(bytes), wire, "{outcome:?}");
        assert_eq!(Reply::decode(bytes), Ok(reply));
    }
}

#[test]
fn a_window_is_on_the_air_as_published() {
    let service = "2e4fd5091c7a018b6152614e0100696b";
    assert_eq!(
        hex(AdvertisingData::in_window("K-3F2A").as_bytes()),
        format!("0201061107{service}07084b2d33463241")
    );
    for (offer, wire) in [
        (Offer::Label { nonce: *b"nonce--8" }, "016e6f6e63652d2d38"),
        (Offer::Introduction { nonce: *b"nonce6", tag: *b"tag--6" }, "026e6f6e6365367461672d2d36"),
        (Offer::Display, "03"),
    ] {
        let mut out = [0; MAX_OFFER];
        assert_eq!(hex(offer.encode(&mut out)), wire);
        let length = 17 + wire.len() / 2;
        let response = AdvertisingData::scan_response(&offer);
        assert_eq!(hex(response.as_bytes()), format!("{length:02x}21{service}{wire}"));
    }
}
