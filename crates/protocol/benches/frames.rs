//! What a frame costs, on five minutes of the reference plan as the seeded simulator took them.
//!
//! `benches/reference-plan.log` is the simulator's own log (`P epoch channel ticks value utc_us`):
//! `kinara-wearable-sim --seed 1 --prefill 5m --log …`.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kinara_protocol::channel::ChannelId;
use kinara_protocol::frame::{Body, Epoch, FrameBuilder, FrameRef, Kind, MAX_FRAME, Ticks};

const LOG: &str = include_str!("reference-plan.log");

type Sample = (ChannelId, Ticks, i32);

fn samples() -> Vec<Sample> {
    let mut all: Vec<Sample> = LOG
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("P ")?.split(' ').skip(1);
            let mut number = || words.next()?.parse::<i64>().ok();
            Some((ChannelId(number()? as u16), Ticks(number()? as u64), number()? as i32))
        })
        .collect();
    all.sort_by_key(|(_, ticks, _)| *ticks);
    all
}

fn encode(samples: &[Sample], mut finished: impl FnMut(&[u8])) {
    let mut builder = FrameBuilder::new();
    let mut out = [0; MAX_FRAME];
    let mut seq = 0;
    builder.begin(Kind::Scalar, Epoch::new(7, 1), samples[0].1);
    for (channel, ticks, value) in samples {
        if builder.push(*channel, *ticks, &[*value]).is_err() {
            let len = builder.finish(seq, &mut out);
            finished(&out[..len]);
            seq += 1;
            builder.begin(Kind::Scalar, Epoch::new(7, 1), *ticks);
            builder.push(*channel, *ticks, &[*value]).expect("a sample fits into an empty frame");
        }
    }
    let len = builder.finish(seq, &mut out);
    finished(&out[..len]);
}

fn decode(frame: &[u8]) {
    let frame = FrameRef::parse(frame).expect("an encoded frame");
    let Ok(Body::Samples(samples)) = frame.body() else { return };
    for block in samples.blocks() {
        for sample in block.samples() {
            black_box((sample.ticks, sample.value()));
        }
    }
}

fn frames(criterion: &mut Criterion) {
    let samples = samples();
    let mut frames = Vec::new();
    encode(&samples, |frame| frames.push(frame.to_vec()));
    let mut group = criterion.benchmark_group("full frames");
    group.throughput(Throughput::Elements(samples.len() as u64));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            encode(black_box(&samples), |frame| {
                black_box(frame);
            });
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| black_box(&frames).iter().for_each(|frame| decode(frame)));
    });
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
