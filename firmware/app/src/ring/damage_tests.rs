//! What one flipped bit in a record costs.

use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use kinara_protocol::frame::{Epoch, FrameRef, MAX_FRAME, ResetReason, Ticks};

use super::{Entry, Identity, JOURNAL_PAGES, Ring};
use crate::flash::PAGE;
use crate::framing::{Framing, SampleClass};
use crate::log::{Log, StoredFrame, Witness};
use crate::testing::RamFlash;

const PAGES: u32 = JOURNAL_PAGES + 5;
/// The commit word; version, kind and length; epoch and seq; and the beginning of the body.
const BITS: u32 = (4 + 4 + 12 + 4) * 8;
/// The bits of the commit word and of the identity.
const HEALED: [core::ops::Range<u32>; 2] = [0..32, 64..160];

#[derive(Debug, Default)]
struct Named {
    stored: BTreeSet<Identity>,
    lost: BTreeSet<Identity>,
}

impl Witness for Named {
    fn stored(&mut self, frame: &StoredFrame) {
        self.stored.insert(frame.id);
    }

    fn lost(&mut self, epoch: Epoch, first: u32, last: u32) {
        assert!(last - first < 1_000, "{epoch}: {first} to {last} never were");
        self.lost.extend((first..=last).map(|seq| Identity { epoch, seq }));
    }
}

fn boot(flash: RamFlash, named: &mut Named) -> Log<RamFlash> {
    Log::boot(flash, 7, ResetReason::PowerOn, Ticks(0), named).unwrap()
}

fn fill(log: &mut Log<RamFlash>, frames: u64, named: &mut Named) {
    let mut framing = Framing::new();
    for tick in 1..=frames {
        for sample in 0..150 {
            let at = Ticks(tick * 1_000 + sample);
            framing.push(log.epoch(), kinara_protocol::channel::EDA, at, &[70_000]).unwrap();
        }
        log.close(&mut framing, SampleClass::Scalar, named).unwrap();
    }
}

/// Every record, and whether its frame is whole.
fn records(ring: &mut Ring<RamFlash>) -> Vec<(Entry, bool)> {
    let mut found = Vec::new();
    let mut at = ring.oldest();
    let mut bytes = [0; MAX_FRAME];
    while let Some(entry) = ring.entry_at(at).unwrap() {
        let whole = FrameRef::parse(ring.read(&entry, &mut bytes).unwrap()).is_ok();
        found.push((entry, whole));
        at = entry.end;
    }
    found
}

/// A log of three boots over several pages, of which nothing is acknowledged.
fn three_boots() -> (RamFlash, Vec<Entry>) {
    let mut named = Named::default();
    let mut flash = RamFlash::new(PAGES);
    for frames in [20, 3, 25] {
        let mut log = boot(flash, &mut named);
        fill(&mut log, frames, &mut named);
        flash = log.into_flash();
    }
    let mut log = boot(flash.clone(), &mut Named::default());
    let mut entries: Vec<Entry> = records(log.ring()).into_iter().map(|(entry, _)| entry).collect();
    // The anchor of the boot that looked.
    entries.pop();
    assert!(entries.last().unwrap().at.serial > 1, "more than one page");
    assert!(named.lost.is_empty() && entries.len() == named.stored.len());
    (flash, entries)
}

fn flipped(flash: &RamFlash, entry: &Entry, bit: u32) -> RamFlash {
    let mut flash = flash.clone();
    let at = (JOURNAL_PAGES + entry.at.serial) * PAGE + entry.at.offset + bit / 8;
    flash.bytes[at as usize] ^= 1 << (bit % 8);
    flash
}

#[test]
fn a_flipped_bit_in_a_record_hides_no_other_frame_and_never_changes_a_frames_name() {
    let (flash, entries) = three_boots();
    let ids: Vec<Identity> = entries.iter().map(|entry| entry.id).collect();
    for (index, entry) in entries.iter().enumerate() {
        for bit in 0..BITS {
            let mut log = boot(flipped(&flash, entry, bit), &mut Named::default());
            let mut found = records(log.ring());
            found.pop();
            let names: Vec<Identity> = found.iter().map(|(entry, _)| entry.id).collect();
            assert_eq!(names, ids, "record {index}, bit {bit}");
            let heals = HEALED.iter().any(|bits| bits.contains(&bit));
            let whole = |(other, (_, whole)): (usize, &(Entry, bool))| *whole || (other == index && !heals);
            assert!(found.iter().enumerate().all(whole), "record {index}, bit {bit}");
        }
    }
}

#[test]
fn a_flipped_bit_in_a_record_does_not_stop_the_acknowledgement_of_what_is_behind_it() {
    let (flash, entries) = three_boots();
    let newest = entries.last().unwrap().id;
    for entry in &entries {
        for bit in 0..BITS {
            let mut log = boot(flipped(&flash, entry, bit), &mut Named::default());
            assert_eq!(log.oldest().unwrap(), entries[0].id, "{:?}, bit {bit}", entry.id);
            assert_eq!(log.acknowledge(newest, |_| {}).unwrap(), Ok(()));
            assert_eq!((log.unacknowledged(), log.oldest().unwrap().epoch), (1, log.epoch()));
        }
    }
}

#[test]
fn what_a_ring_with_a_flipped_bit_gives_up_it_has_named() {
    let (flash, entries) = three_boots();
    for entry in &entries {
        for bit in (0..BITS).step_by(5) {
            let mut named = Named::default();
            let mut log = boot(flipped(&flash, entry, bit), &mut named);
            fill(&mut log, 60, &mut named);
            let there: BTreeSet<Identity> =
                records(log.ring()).into_iter().map(|(entry, _)| entry.id).collect();
            let stored = entries.iter().map(|entry| entry.id).chain(named.stored.iter().copied());
            let hidden: Vec<Identity> =
                stored.filter(|id| !there.contains(id) && !named.lost.contains(id)).collect();
            assert_eq!(hidden, vec![], "{:?}, bit {bit}", entry.id);
        }
    }
}

#[test]
fn a_record_of_which_nothing_is_left_costs_itself_and_the_loss_of_its_page_names_it() {
    let (flash, entries) = three_boots();
    let middle = &entries[4];
    let mut damaged = flash.clone();
    let from = ((JOURNAL_PAGES + middle.at.serial) * PAGE + middle.at.offset) as usize;
    damaged.bytes[from..from + 40].fill(0);
    let mut named = Named::default();
    let mut log = boot(damaged, &mut named);
    let mut found: Vec<Identity> = records(log.ring()).into_iter().map(|(entry, _)| entry.id).collect();
    found.pop();
    let others: Vec<Identity> = entries.iter().map(|entry| entry.id).filter(|id| *id != middle.id).collect();
    assert_eq!(found, others);
    fill(&mut log, 60, &mut named);
    assert!(named.lost.contains(&middle.id));
}
