//! The firmware on QEMU's Cortex-M4F, application and radio, against another stack.

use super::pairing::nonce_of;
use super::{Day, LINK};
use crate::bed::{until, until_some};
use crate::clock::monotonic;
use crate::{BedError, Result, file};
use kinara_clinic::clinic::programs;
use kinara_protocol::channel::HEART_RATE;
use kinara_protocol::control::{Outcome, Reply};
use kinara_protocol::frame::{Body, FrameRef};
use kinara_protocol::label::LabelSecret;
use std::collections::BTreeMap;
use std::time::Duration;

const FACTORY_ID: u64 = 0x4d34_4600_0000_0001;
const SECRET: [u8; 10] = *b"cortex-m4f";
/// The emulated processor takes its time over elliptic curves.
const PATIENCE: Duration = Duration::from_mins(1);
const COLLECTS: Duration = Duration::from_secs(20);
/// Bytes of stack, a tenth above what was measured: the board leaves so much (`firmware/nrf52840/check`).
const STACK: u64 = 20_480;

/// A sample: epoch, channel, ticks.
type Key = (u64, u16, u64);

pub fn another_stack_takes_its_frames(day: &mut Day) -> Result<()> {
    let kernel = programs().join("../thumbv7em-none-eabihf/chip/kinara-emulated-wearable");
    day.must(kernel.is_file(), format!("{} is not built", kernel.display()))?;
    let label = LabelSecret::from_bytes(SECRET);
    let words = format!("arg=kinara,arg={FACTORY_ID:016x},arg={}", label.to_base32());
    let args = [
        "-M",
        "mps2-an386",
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "tcp:127.0.0.1:{port}",
        "-semihosting-config",
        &format!("enable=on,target=native,{words}"),
        "-kernel",
        &kernel.display().to_string(),
    ]
    .map(str::to_owned);
    let place = day.ward.bed.add_wearable("qemu-system-arm".as_ref(), &args)?;
    let name = day.ward.bed.wearables[place].name().to_owned();
    let log = day.ward.bed.wearables[place].process().log().to_owned();
    day.ward.bed.air.range(&name, "a", None)?;
    let told = || -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&log).map_err(file(&log))?).into_owned())
    };
    until("it measures a heart rate", LINK, || {
        Ok(told()?.lines().filter_map(sample).any(|((_, channel, _), _)| channel == HEART_RATE.0))
    })?;
    let offer = nonce_of(day, &name)?;
    let nonce = offer.get(19..27).ok_or_else(|| BedError::Broken("an offer without a nonce".to_owned()))?;
    let from = monotonic();
    day.ward.bed.air.collector("collector", &name, label.passkey(nonce), PATIENCE, COLLECTS)?;
    let got = until_some("the frames are there", 2 * PATIENCE, || {
        let mut events = day.ward.bed.air.events_since(from).into_iter();
        Ok(events.find(|event| event.kind == "collector").map(|event| event.told["got"].clone()))
    })?;
    day.ward.bed.wearables[place].process().kill();
    let bytes = |of: &str| -> Vec<Vec<u8>> {
        let texts = got[of].as_array().into_iter().flatten();
        texts.filter_map(|text| hex::decode(text.as_str()?).ok()).collect()
    };
    let hello = bytes("replies").iter().filter_map(|reply| Reply::decode(reply).ok()).find_map(|reply| {
        match reply.outcome {
            Outcome::Hello(hello) => Some(hello),
            _ => None,
        }
    });
    day.must(
        hello.is_some_and(|hello| hello.factory_id == FACTORY_ID),
        format!("it answered {}", got["replies"]),
    )?;
    let told = told()?;
    let measured: BTreeMap<Key, i32> = told.lines().filter_map(sample).collect();
    let mut brought: BTreeMap<Key, i32> = BTreeMap::new();
    let mut seqs = Vec::new();
    for bytes in bytes("frames") {
        let broken = |error: &dyn std::fmt::Display| BedError::Broken(format!("a frame: {error}"));
        let frame = FrameRef::parse(&bytes).map_err(|error| broken(&error))?;
        let header = frame.header();
        seqs.push(header.seq);
        let Body::Samples(blocks) = frame.body().map_err(|error| broken(&error))? else { continue };
        for block in blocks.blocks() {
            for sample in block.samples() {
                let key = (header.epoch.0, block.channel().0, sample.ticks.0);
                day.must(brought.insert(key, sample.values()[0]).is_none(), format!("{key:?} came twice"))?;
            }
        }
    }
    day.must(seqs.iter().copied().eq(0..seqs.len() as u32), format!("frames {seqs:?} came"))?;
    // Of each channel all up to the last frame that was closed.
    let mut ends: BTreeMap<u16, u64> = BTreeMap::new();
    for (_, channel, ticks) in brought.keys() {
        let end = ends.entry(*channel).or_default();
        *end = (*end).max(*ticks);
    }
    let expected: BTreeMap<Key, i32> = measured
        .into_iter()
        .filter(|((_, channel, ticks), _)| ends.get(channel).is_some_and(|end| ticks <= end))
        .collect();
    day.must(
        brought == expected,
        format!("{} samples were measured, {} came", expected.len(), brought.len()),
    )?;
    day.must(
        brought.len() >= 100 && ends.contains_key(&HEART_RATE.0),
        format!("{} samples came", brought.len()),
    )?;
    let stack = told.lines().filter_map(|line| line.strip_prefix("stack ")?.parse::<u64>().ok()).max();
    let stack = stack.unwrap_or(u64::MAX);
    day.note("cortex_m4f_samples", brought.len());
    day.note("cortex_m4f_stack_bytes", stack);
    day.must(stack <= STACK, format!("its stack grew to {stack} bytes"))
}

/// A line `P <epoch> <channel> <ticks> <value>`.
fn sample(line: &str) -> Option<(Key, i32)> {
    let mut words = line.strip_prefix("P ")?.split(' ');
    let epoch = u64::from_str_radix(words.next()?, 16).ok()?;
    let key = (epoch, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((key, words.next()?.parse().ok()?))
}
