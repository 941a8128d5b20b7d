//! An update over the virtual air: taken, tried, confirmed, and taken back.

#[expect(clippy::unwrap_used, reason = "a test fails where it stands")]
#[expect(dead_code, reason = "shared with other tests")]
mod gateway;

use std::time::{Duration, Instant};

use ed25519_dalek::{Signer, SigningKey};
use gateway::{Gateway, Wearable};
use kinara_protocol::control::{Chunk, Op, Outcome, Refusal, UPDATE_CHUNK};
use kinara_protocol::image::{Board, Header};
use sha2::{Digest, Sha256};

fn maker() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn key() -> String {
    hex::encode(maker().verifying_key().to_bytes())
}

fn image(version: [u8; 3], payload: &[u8]) -> Vec<u8> {
    let mut header = Header::of(Board::SIMULATOR, version, payload).expect("a test's payload is small");
    header.signature = maker().sign(&header.signed()).to_bytes();
    [header.encode().as_slice(), payload].concat()
}

/// Sends so many bytes of an image at most; the last outcome.
fn send(gateway: &mut Gateway, image: &[u8], most: usize) -> Outcome {
    let number = *Sha256::digest(image).first_chunk().expect("32 bytes hold 16");
    let size = u32::try_from(image.len()).expect("a test's image is small");
    let mut outcome = gateway.request(Op::UpdateStart { size, image: number });
    let mut sent = 0;
    while let Outcome::UpdateAt(at) = outcome {
        let rest = &image[at as usize..];
        if rest.is_empty() {
            return gateway.request(Op::UpdateFinish);
        }
        if sent >= most {
            break;
        }
        let bytes = &rest[..rest.len().min(UPDATE_CHUNK)];
        sent += bytes.len();
        let bytes = Chunk::new(bytes).expect("no more than fit");
        outcome = gateway.request(Op::UpdateData { offset: at, bytes });
    }
    outcome
}

fn until_it_runs(wearable: &Wearable, version: &str) {
    let began = Instant::now();
    while wearable.command(r#"{"do":"status"}"#)["firmware"] != version {
        assert!(began.elapsed() < Duration::from_secs(20), "{version} does not run");
        pause(Duration::from_millis(20));
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread is the test's own")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn a_signed_image_is_tried_and_stays_once_it_has_proved_itself() {
    let wearable = Wearable::start(&["--maker", &key(), "--speed", "20", "--healthy-s", "10"]);
    let mut gateway = Gateway::open(&wearable.air());
    let bond = gateway.pair("A");
    let image = image([0, 2, 0], &vec![0x5a; 20_000]);
    // A link that ends in the middle: what is there need not come again.
    assert!(matches!(send(&mut gateway, &image, 9_000), Outcome::UpdateAt(9_016)));
    drop(gateway);
    let began = Instant::now();
    let mut gateway = loop {
        let mut gateway = Gateway::open(&wearable.air());
        match gateway.connect("A", bond) {
            Ok(()) => break gateway,
            // It has not seen the end of the last link yet.
            Err(reason) => assert!(began.elapsed() < Duration::from_secs(10), "{reason}"),
        }
        pause(Duration::from_millis(20));
    };
    assert_eq!(send(&mut gateway, &image, usize::MAX), Outcome::Ok);
    until_it_runs(&wearable, "0.2.0");
    // Ten of its seconds, half of ours.
    pause(Duration::from_secs(2));
    let wearable = wearable.killed_and_started(&["--maker", &key(), "--speed", "20"]);
    until_it_runs(&wearable, "0.2.0");
}

#[test]
fn an_image_that_restarts_before_it_has_proved_itself_goes_again() {
    let started = ["--maker", &key(), "--healthy-s", "3600"];
    let wearable = Wearable::start(&started);
    let mut gateway = Gateway::open(&wearable.air());
    gateway.pair("A");
    assert_eq!(send(&mut gateway, &image([0, 2, 0], &[1; 500]), usize::MAX), Outcome::Ok);
    until_it_runs(&wearable, "0.2.0");
    let wearable = wearable.killed_and_started(&started);
    until_it_runs(&wearable, "0.1.0");
}

/// Somebody with a clip writes an image into the flash chip, and that it was verified.
fn slip_in(wearable: &Wearable, image: &[u8]) {
    const PAGE: usize = 4096;
    let size = u32::try_from(image.len()).expect("a test's image is small");
    // The slot's record: the image's number, its size, that inverted; from byte 64 on a word for each page and one for all.
    let mut slot = vec![0xff; 129 * PAGE];
    slot[16..20].copy_from_slice(&size.to_le_bytes());
    slot[20..24].copy_from_slice(&(!size).to_le_bytes());
    slot[64..64 + 4 * (image.len().div_ceil(PAGE) + 1)].fill(0);
    slot[PAGE..PAGE + image.len()].copy_from_slice(image);
    // The file holds each byte inverted.
    for byte in &mut slot {
        *byte = !*byte;
    }
    std::fs::write(wearable.dir.path().join("state/update.img"), slot).expect("a state has its slot");
}

#[test]
fn an_unsigned_image_behind_a_verified_mark_is_refused_where_it_is_installed() {
    let started = ["--maker", &key()];
    let wearable = Wearable::start(&started);
    let signed = image([9, 9, 9], &[1; 500]);
    let mut unsigned = signed.clone();
    unsigned[44..108].fill(0);
    slip_in(&wearable, &unsigned);
    let wearable = wearable.killed_and_started(&started);
    assert_eq!(wearable.command(r#"{"do":"status"}"#)["firmware"], "0.1.0");
    // The same way in with a good one: it is the signature that counts.
    slip_in(&wearable, &signed);
    let wearable = wearable.killed_and_started(&started);
    assert_eq!(wearable.command(r#"{"do":"status"}"#)["firmware"], "9.9.9");
}

#[test]
fn an_image_that_hangs_is_taken_back_by_the_watchdog() {
    // The watchdog bites after 1.6 of our seconds: time to see the image run.
    let wearable = Wearable::start(&["--maker", &key(), "--speed", "5"]);
    let mut gateway = Gateway::open(&wearable.air());
    gateway.pair("A");
    assert_eq!(send(&mut gateway, &image([0, 2, 0], b"hangs"), usize::MAX), Outcome::Ok);
    until_it_runs(&wearable, "0.2.0");
    until_it_runs(&wearable, "0.1.0");
}

#[test]
fn a_strangers_image_and_an_old_one_are_refused() {
    let wearable = Wearable::start(&["--maker", &key()]);
    let mut gateway = Gateway::open(&wearable.air());
    gateway.pair("A");
    let old = image([0, 1, 0], &[1; 500]);
    assert_eq!(send(&mut gateway, &old, usize::MAX), Outcome::Refused(Refusal::NotNewer));
    let mut strange = image([0, 2, 0], &[1; 500]);
    strange[80] ^= 1;
    assert_eq!(send(&mut gateway, &strange, usize::MAX), Outcome::Refused(Refusal::BadImage));
    until_it_runs(&wearable, "0.1.0");
}
