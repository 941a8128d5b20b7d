//! The ring's promise, with the power cut between any two flash operations.

use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use kinara_protocol::frame::{Body, Epoch, FrameRef, Kind, MAX_FRAME, ResetReason, Ticks};
use proptest::prelude::*;

use super::{Identity, JOURNAL_PAGES, Ring, RingError};
use crate::flash::{Flash, Nonce, PAGE};
use crate::framing::{Framing, SampleClass};
use crate::log::{Log, StoredFrame, Witness};
use crate::testing::{PowerLost, RamFlash};

const PAGES: u32 = JOURNAL_PAGES + 4;
const PAGE_HEADER_BITS: u32 = super::PAGE_HEADER * 8;

/// What the world outside knows: frames reported as stored, named as lost, acknowledged.
#[derive(Debug, Clone, Default)]
struct Ledger {
    stored: BTreeSet<Identity>,
    lost: BTreeSet<Identity>,
    acknowledged: Option<Identity>,
}

impl Witness for Ledger {
    fn stored(&mut self, frame: &StoredFrame) {
        assert!(self.stored.insert(frame.id), "{:?} was given twice", frame.id);
    }

    fn lost(&mut self, epoch: Epoch, first: u32, last: u32) {
        self.lost.extend((first..=last).map(|seq| Identity { epoch, seq }));
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A frame of about so many samples.
    Frame(u8),
    /// Everything but the newest so many frames.
    Acknowledge(u8),
    Persist,
}

fn run<F: Flash<Error = PowerLost>>(
    log: &mut Log<F>,
    steps: &[Step],
    ledger: &mut Ledger,
) -> Result<(), RingError<PowerLost>> {
    let mut framing = Framing::new();
    for (tick, step) in (1u64..).zip(steps) {
        match *step {
            Step::Frame(samples) => {
                for sample in 0..u64::from(samples) {
                    let channel = kinara_protocol::channel::EDA;
                    let pushed = framing.push(log.epoch(), channel, Ticks(tick * 1000 + sample), &[70_000]);
                    assert!(pushed.is_ok());
                }
                log.close(&mut framing, SampleClass::Scalar, ledger)?;
            }
            Step::Acknowledge(behind) => {
                let newest = ledger.stored.iter().rev().nth(usize::from(behind)).copied();
                if let Some(id) = newest {
                    assert_eq!(log.acknowledge(id, |_| {})?, Ok(()));
                    ledger.acknowledged = ledger.acknowledged.max(Some(id));
                }
            }
            Step::Persist => log.ring().persist_acknowledged()?,
        }
    }
    Ok(())
}

fn boot(flash: RamFlash, ledger: &mut Ledger) -> Result<Log<RamFlash>, RingError<PowerLost>> {
    Log::boot(flash, 7, ResetReason::PowerOn, Ticks(0), ledger)
}

fn frames_in(ring: &mut Ring<RamFlash>) -> Vec<Identity> {
    let mut found = Vec::new();
    let mut at = ring.oldest();
    let mut bytes = [0; MAX_FRAME];
    while let Some(entry) = ring.entry_at(at).unwrap() {
        let frame = FrameRef::parse(ring.read(&entry, &mut bytes).unwrap()).expect("a stored frame is whole");
        assert_eq!((frame.header().epoch, frame.header().seq), (entry.id.epoch, entry.id.seq));
        assert!(entry.id.seq != 0 || frame.header().kind == Kind::BootAnchor);
        found.push(entry.id);
        at = entry.end;
    }
    found
}

/// Boots on what a cut has left and compares it with what was promised.
fn check(mut flash: RamFlash, ledger: &mut Ledger) -> RamFlash {
    flash.left = u64::MAX;
    let mut log = boot(flash, ledger).expect("the power is back");
    let found = frames_in(log.ring());
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "the log is in order");
    let there: BTreeSet<_> = found.iter().copied().collect();
    for id in &ledger.stored {
        let excused = ledger.lost.contains(id) || Some(*id) <= ledger.acknowledged;
        assert!(excused || there.contains(id), "{id:?} was stored and is gone");
    }
    let oldest = log.oldest().unwrap();
    let first_owed = ledger.stored.iter().find(|id| Some(**id) > ledger.acknowledged && there.contains(id));
    assert!(first_owed.is_none_or(|owed| oldest <= *owed), "an acknowledgement was invented");
    // And it goes on: the next frames fit in.
    run(&mut log, &[Step::Frame(20); 3], ledger).expect("the power is back");
    log.into_flash()
}

#[test]
fn wherever_the_power_is_cut_every_stored_frame_survives_and_no_identity_repeats() {
    // Enough for the ring to go round more than twice, acknowledged in part, so that it also overflows.
    let mut steps = Vec::new();
    for round in 0..110u8 {
        steps.push(Step::Frame(60 + round % 140));
        if (20..50).contains(&round) && round % 4 == 0 {
            steps.push(Step::Acknowledge(2));
        }
        if round % 10 == 9 {
            steps.push(Step::Persist);
        }
    }
    // The flash is half used by an earlier boot, so that recovery has something to lose.
    let mut before = Ledger::default();
    let mut log = boot(RamFlash::new(PAGES), &mut before).unwrap();
    run(&mut log, &[Step::Frame(200); 40], &mut before).unwrap();
    let mut start = log.into_flash();
    start.done = 0;

    let mut whole = before.clone();
    let mut log = boot(start.clone(), &mut whole).unwrap();
    run(&mut log, &steps, &mut whole).unwrap();
    let operations = log.into_flash().done;
    assert!(!whole.lost.is_empty() && operations > 3_000, "the workload goes round: {operations}");

    for cut in 0..operations {
        let mut ledger = before.clone();
        let flash = cut_after(start.clone(), cut, &steps, &mut ledger);
        check(flash, &mut ledger);
    }
}

/// Boots and runs `steps` until the power fails after `cut` operations; gives the flash as it is then.
fn cut_after(mut flash: RamFlash, cut: u64, steps: &[Step], ledger: &mut Ledger) -> RamFlash {
    flash.left = cut;
    let shared = SharedFlash::new(flash);
    let booted = Log::boot(shared.clone(), 7, ResetReason::PowerOn, Ticks(0), ledger);
    if let Ok(mut log) = booted {
        let _ = run(&mut log, steps, ledger);
    }
    shared.take()
}

/// A flash that can be looked at after the log that held it has failed.
#[derive(Debug, Clone)]
struct SharedFlash(std::rc::Rc<std::cell::RefCell<RamFlash>>);

impl SharedFlash {
    fn new(flash: RamFlash) -> Self {
        Self(std::rc::Rc::new(std::cell::RefCell::new(flash)))
    }

    fn take(&self) -> RamFlash {
        self.0.borrow().clone()
    }
}

impl Flash for SharedFlash {
    type Error = PowerLost;

    fn pages(&self) -> u32 {
        self.0.borrow().pages()
    }

    fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), PowerLost> {
        self.0.borrow_mut().read(address, into)
    }

    fn write(&mut self, address: u32, words: &[u8]) -> Result<(), PowerLost> {
        self.0.borrow_mut().write(address, words)
    }

    fn erase(&mut self, page: u32) -> Result<(), PowerLost> {
        self.0.borrow_mut().erase(page)
    }

    fn encipher(&mut self, nonce: &Nonce, bytes: &mut [u8]) {
        self.0.borrow_mut().encipher(nonce, bytes);
    }
}

#[test]
fn nothing_of_a_reading_is_in_flash_as_it_was_taken() {
    let mut ledger = Ledger::default();
    let mut log = boot(RamFlash::new(8), &mut ledger).unwrap();
    run(&mut log, &[Step::Frame(20)], &mut ledger).unwrap();
    let mut bytes = [0; MAX_FRAME];
    let at = log.ring().oldest();
    let mut entry = log.ring().entry_at(at).unwrap().unwrap();
    while let Some(next) = log.ring().entry_at(entry.end).unwrap() {
        entry = next;
    }
    let frame = log.ring().read(&entry, &mut bytes).unwrap().to_vec();
    assert!(FrameRef::parse(&frame).is_ok());
    let flash = log.into_flash();
    let holds = |part: &[u8]| flash.bytes.windows(part.len()).any(|window| window == part);
    assert!(holds(&frame[..16]), "its identity is there");
    // A channel's number, how many samples, the first of them: 70,000 nS.
    assert!(!holds(&frame[22..30]), "and its samples are not");
}

#[test]
fn a_word_that_was_cut_while_it_was_written_does_not_come_back_as_a_frame() {
    let mut ledger = Ledger::default();
    let mut log = boot(RamFlash::new(PAGES), &mut ledger).unwrap();
    run(&mut log, &[Step::Frame(50); 2], &mut ledger).unwrap();
    let head = log.ring().head();
    let mut flash = log.into_flash();
    // Half of the length word's bits made it.
    let at = ((JOURNAL_PAGES + head.serial) * PAGE + head.offset) as usize;
    flash.bytes[at..at + 4].copy_from_slice(&[0x60, 0x00, 0xff, 0xff]);
    check(flash, &mut ledger);
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u8..200).prop_map(Step::Frame),
        2 => (0u8..10).prop_map(Step::Acknowledge),
        1 => Just(Step::Persist),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn many_cuts_in_a_row_lose_nothing_either(
        lives in proptest::collection::vec((proptest::collection::vec(any_step(), 0..60), 0u64..4_000), 1..8),
    ) {
        let mut ledger = Ledger::default();
        let mut flash = RamFlash::new(PAGES);
        for (steps, cut) in lives {
            flash = cut_after(flash, cut, &steps, &mut ledger);
            flash = check(flash, &mut ledger);
        }
    }

    #[test]
    fn a_log_that_boots_again_and_again_keeps_its_frames_and_its_numbers(boots in 1usize..200) {
        let mut ledger = Ledger::default();
        let mut flash = RamFlash::new(PAGES);
        for _ in 0..boots {
            flash = boot(flash, &mut ledger).unwrap().into_flash();
        }
        check(flash, &mut ledger);
    }
}

#[test]
fn a_damaged_page_header_hides_no_frame_of_any_page() {
    // The first page alone, and several.
    for (frames, least) in [(3, 0), (80, 3)] {
        let mut ledger = Ledger::default();
        let mut log = boot(RamFlash::new(PAGES + 4), &mut ledger).unwrap();
        run(&mut log, &vec![Step::Frame(150); frames], &mut ledger).unwrap();
        let pages = log.ring().head().serial - log.ring().oldest().serial;
        assert!(pages >= least && ledger.lost.is_empty(), "{pages} pages, and nothing overwritten");
        assert!(damage_each_header(&mut log).is_empty(), "nothing has to make room");
    }
}

#[test]
fn a_damaged_page_header_in_a_log_that_has_gone_round_hides_no_frame_of_any_page() {
    // Each way in which the newest page may be filled.
    for frames in 0..7 {
        let mut ledger = Ledger::default();
        let mut log = boot(RamFlash::new(PAGES), &mut ledger).unwrap();
        run(&mut log, &vec![Step::Frame(150); 80 + frames], &mut ledger).unwrap();
        assert!(!ledger.lost.is_empty(), "it has gone round");
        damage_each_header(&mut log);
    }
}

/// Flips each bit of each page's header, boots, and looks for every frame; gives those that were named as lost.
fn damage_each_header(log: &mut Log<RamFlash>) -> BTreeSet<Identity> {
    let (first, last) = (log.ring().oldest().serial, log.ring().head().serial);
    let before: BTreeSet<Identity> = frames_in(log.ring()).into_iter().collect();
    let newest = *before.last().unwrap();
    let flash = log.ring().flash.clone();
    let log_pages = flash.pages() - JOURNAL_PAGES;
    let mut lost = BTreeSet::new();
    for serial in first..=last {
        for bit in 0..PAGE_HEADER_BITS {
            let mut damaged = flash.clone();
            let at = ((JOURNAL_PAGES + serial % log_pages) * PAGE + bit / 8) as usize;
            damaged.bytes[at] ^= 1 << (bit % 8);
            let mut named = Ledger::default();
            let mut again = boot(damaged, &mut named).unwrap();
            let is_whole = |ring: &mut Ring<RamFlash>, when: &str| {
                let found: BTreeSet<Identity> = frames_in(ring).into_iter().collect();
                let missing = before.difference(&found).filter(|id| !named.lost.contains(id)).count();
                assert_eq!(missing, 0, "page {serial} of {first} to {last}, bit {bit}: {when}");
            };
            is_whole(again.ring(), "found");
            assert_eq!(
                previous_in(&mut again),
                Some((newest.epoch, newest.seq + 1)),
                "page {serial}, bit {bit}"
            );
            for _ in 0..log_pages {
                again.scrub().unwrap();
            }
            is_whole(again.ring(), "scrubbed");
            // And what comes after it hides nothing of it either.
            let mut later = boot(again.into_flash(), &mut Ledger::default()).unwrap();
            is_whole(later.ring(), "found by another boot");
            lost.extend(named.lost);
        }
    }
    lost
}

/// Where the epoch before ended, as this boot's anchor says.
fn previous_in(log: &mut Log<RamFlash>) -> Option<(Epoch, u32)> {
    let mut bytes = [0; MAX_FRAME];
    let id = Identity { epoch: log.epoch(), seq: 0 };
    let at = log.ring().seek(id).unwrap();
    let entry = log.ring().entry_at(at).unwrap().filter(|entry| entry.id == id)?;
    let Ok(Body::BootAnchor(anchor)) =
        FrameRef::parse(log.ring().read(&entry, &mut bytes).unwrap()).unwrap().body()
    else {
        return None;
    };
    anchor.previous.map(|previous| (previous.epoch, previous.next_seq))
}

#[test]
fn a_page_that_holds_nothing_any_more_costs_itself_and_no_older_one() {
    let mut ledger = Ledger::default();
    let mut log = boot(RamFlash::new(PAGES + 4), &mut ledger).unwrap();
    run(&mut log, &[Step::Frame(150); 80], &mut ledger).unwrap();
    let (first, last) = (log.ring().oldest().serial, log.ring().head().serial);
    let pages: Vec<BTreeSet<Identity>> =
        (first..=last).map(|serial| frames_of_page(log.ring(), serial)).collect();
    let mut flash = log.into_flash();
    let middle = first + 2;
    let from = ((JOURNAL_PAGES + middle) * PAGE) as usize;
    flash.bytes[from..from + PAGE as usize].fill(0xa5);
    let mut again = boot(flash, &mut Ledger::default()).unwrap();
    let found: BTreeSet<Identity> = frames_in(again.ring()).into_iter().collect();
    for (serial, page) in (first..=last).zip(&pages) {
        assert_eq!(found.is_superset(page), serial != middle, "page {serial}");
    }
}

fn frames_of_page(ring: &mut Ring<RamFlash>, serial: u32) -> BTreeSet<Identity> {
    let mut found = BTreeSet::new();
    let mut at = ring.oldest();
    while let Some(entry) = ring.entry_at(at).unwrap() {
        if entry.at.serial == serial {
            found.insert(entry.id);
        }
        at = entry.end;
    }
    found
}

/// Whether anything of this log is left in the log's pages.
fn is_left(flash: &RamFlash, log_id: u32) -> bool {
    flash.bytes[(JOURNAL_PAGES * PAGE) as usize..].windows(4).any(|bytes| bytes == log_id.to_le_bytes())
}

#[test]
fn of_a_formatted_log_nothing_is_left_wherever_the_power_is_cut_while_it_is_erased() {
    let mut log =
        Log::boot(RamFlash::new(PAGES), 0x5eed_0001, ResetReason::PowerOn, Ticks(0), &mut ()).unwrap();
    run(&mut log, &[Step::Frame(150); 40], &mut Ledger::default()).unwrap();
    log.format(0x5eed_0002).unwrap();
    let old = log.into_flash();
    assert!(is_left(&old, 0x5eed_0001), "all of it is there still");
    let scrubbed = |mut flash: RamFlash, cut: u64| {
        flash.left = cut;
        let shared = SharedFlash::new(flash);
        let erased =
            Log::boot(shared.clone(), 9, ResetReason::Requested, Ticks(0), &mut ()).and_then(|mut log| {
                for _ in 0..PAGES {
                    log.scrub()?;
                }
                Ok(())
            });
        (shared.take(), erased.is_ok())
    };
    for cut in 0.. {
        let (flash, whole) = scrubbed(old.clone(), cut);
        let (flash, again) = scrubbed(flash, u64::MAX);
        assert!(again && !is_left(&flash, 0x5eed_0001), "cut after {cut} operations");
        // And the new log is whole.
        check(flash, &mut Ledger::default());
        if whole {
            break;
        }
    }
}

#[test]
fn formatting_gives_the_log_a_new_id_and_no_old_frame_comes_back() {
    let mut ledger = Ledger::default();
    let mut log = boot(RamFlash::new(PAGES), &mut ledger).unwrap();
    run(&mut log, &[Step::Frame(100); 30], &mut ledger).unwrap();
    let old = log.epoch();
    log.format(7).unwrap();
    let mut again = Log::boot(log.into_flash(), 7, ResetReason::Requested, Ticks(0), &mut ()).unwrap();
    assert_ne!(again.epoch().log_id(), old.log_id());
    // The boot anchor and the event that says that it was formatted.
    assert_eq!(frames_in(again.ring()).len(), 2);
    assert_eq!(again.unacknowledged(), 2);
}
