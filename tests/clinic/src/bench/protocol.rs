//! The frame codec on the reference plan: how fast, how small.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kinara_protocol::frame::{Body, Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};
use serde_json::{Value, json};

use super::load::{Load, produce, push};
use super::{median, rounded};
use crate::clinic::programs;
use crate::{Result, clinic};

const WEARABLES: usize = 4;
const HOURS: &str = "1h";
const SEED: u64 = 1;
const REPEATS: usize = 5;
/// Each repeat takes at least this long.
const STRETCH: Duration = Duration::from_millis(400);
/// As long as a frame of a wearable out of range stays open: they close because they are full.
const FULL_MS: u64 = 60_000;
const LIVE_MS: u64 = 1_000;

/// `./kinara bench protocol`.
pub fn run() -> Result<Value> {
    let folder = clinic::root().join(".kinara/bench/protocol");
    let loads = produce(&programs().join("kinara-wearable-sim"), &folder, WEARABLES, HOURS, SEED)?;
    let samples: usize = loads.iter().map(|load| load.samples.len()).sum();
    eprintln!("{samples} samples of the reference plan, {WEARABLES} wearables, {HOURS} each");
    let full: Vec<_> =
        loads.iter().flat_map(|load| load.frames(FULL_MS)).filter(|(_, count)| *count > 0).collect();
    let live: Vec<_> =
        loads.iter().flat_map(|load| load.frames(LIVE_MS)).filter(|(_, count)| *count > 0).collect();
    let size = |frames: &[(Vec<u8>, usize)]| {
        let bytes: usize = frames.iter().map(|(bytes, _)| bytes.len()).sum();
        bytes as f64 / frames.iter().map(|(_, count)| count).sum::<usize>() as f64
    };
    let decode = rate(|| full.iter().map(|(bytes, _)| decode(bytes)).sum());
    eprintln!("decode: {decode:.1} Msamples/s");
    let encode = rate(|| loads.iter().map(encode).sum());
    eprintln!("encode: {encode:.1} Msamples/s");
    let decode_live = rate(|| live.iter().map(|(bytes, _)| self::decode(bytes)).sum());
    Ok(json!({
        "decode_msamples_per_s": rounded(decode),
        "encode_msamples_per_s": rounded(encode),
        "bytes_per_sample": rounded(size(&full)),
        "bytes_per_sample_live": rounded(size(&live)),
        "decode_live_msamples_per_s": rounded(decode_live),
        "samples": samples,
        "full_frames": full.len(),
        "live_frames": live.len(),
    }))
}

/// Millions of samples in a second, median of several stretches; `work` returns how many it did.
fn rate(work: impl Fn() -> usize) -> f64 {
    let runs = (0..REPEATS).map(|_| {
        let began = Instant::now();
        let mut done = 0;
        while began.elapsed() < STRETCH {
            done += work();
        }
        done as f64 / began.elapsed().as_secs_f64() / 1e6
    });
    median(runs.collect())
}

/// Everything a reader does: length, CRC, header, every tick and value.
fn decode(bytes: &[u8]) -> usize {
    let frame = FrameRef::parse(black_box(bytes)).expect("an encoded frame");
    let Ok(Body::Samples(samples)) = frame.body() else { return 0 };
    let mut count = 0;
    for block in samples.blocks() {
        for sample in block.samples() {
            black_box((sample.ticks, sample.value()));
            count += 1;
        }
    }
    count
}

fn encode(load: &Load) -> usize {
    let mut builder = FrameBuilder::new();
    let mut out = [0; MAX_FRAME];
    let mut seq = 0;
    let mut begin = true;
    for sample in &load.samples {
        if begin {
            builder.begin(Kind::Scalar, Epoch(load.epoch), Ticks(sample.ticks));
            begin = false;
        }
        if push(&mut builder, sample).is_err() {
            black_box(builder.finish(seq, &mut out));
            seq += 1;
            builder.begin(Kind::Scalar, Epoch(load.epoch), Ticks(sample.ticks));
            push(&mut builder, sample).expect("a sample fits into an empty frame");
        }
    }
    black_box(builder.finish(seq, &mut out));
    load.samples.len()
}
