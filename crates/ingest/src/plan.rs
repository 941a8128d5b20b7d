//! What becomes of each frame, before the ledger is asked: it is somebody's, or it is refused, and why.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kinara_protocol::frame::{DeviceEventKind, Epoch};
use uuid::Uuid;

use crate::assign::{Assignment, Consent, Moment, Whose, may_be_erased, may_be_of, told, whose};
use crate::batch::{Batch, Content, DeviceBatch, Frame};
use crate::directory::{Directory, Hardware};
use crate::ledger::is_name;
use crate::seqs::SeqSet;
use crate::write::DAY_US;

/// An epoch of a device: a row of the ledger. The order of these keys is the order of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The device.
    pub hardware: Uuid,
    /// As the database keeps it.
    pub epoch: i64,
}

/// What frames a transaction may still take, and until when back in time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Older is acknowledged, not kept.
    pub oldest_us: i64,
    /// Newer is not believed.
    pub newest_us: i64,
}

/// No wearable of ours is older than this: a time before it is a clock that was not set.
pub const NOT_BEFORE_US: i64 = 1_577_836_800_000_000;

/// A frame is some seconds of samples. One that claims more than a day has ticks that are not to be believed, and days
/// between its ends that nobody made room for.
pub(crate) const LONGEST_FRAME_US: i64 = DAY_US;

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy)]
pub enum Fate<'a> {
    /// Written, if the ledger does not have it yet.
    Write(&'a Assignment),
    /// Not kept; a gap says so.
    Discard(&'static str),
    /// Kept aside with the reason; one in doubt with the word for it that the sender is told. `ours`: the clinic whose gateway brought it is the frame's own.
    Quarantine {
        /// Why.
        reason: &'static str,
        /// More for a person.
        detail: &'a str,
        /// Whether its number is believed.
        ours: bool,
    },
}

/// Decides about one frame.
pub(crate) fn fate<'a>(
    frame: &'a Frame,
    epoch: Epoch,
    sender_tenant: Uuid,
    assignments: &'a [Assignment],
    window: Window,
) -> Fate<'a> {
    let aside = |reason| Fate::Quarantine { reason, detail: "", ours: false };
    if let Content::Refused(reason @ ("damaged" | "no_time"), detail) = &frame.content {
        return Fate::Quarantine { reason, detail, ours: false };
    }
    if frame.first_us < NOT_BEFORE_US
        || frame.last_us > window.newest_us
        || frame.last_us.saturating_sub(frame.first_us) > LONGEST_FRAME_US
    {
        return aside("timestamp");
    }
    let moment = Moment {
        epoch,
        seq: frame.seq,
        first_us: frame.first_us,
        last_us: frame.last_us,
        uncertainty_us: frame.uncertainty_us,
    };
    let found = whose(assignments, &moment);
    let assignment = match found {
        Whose::Of(assignment) => assignment,
        Whose::Nobody => return aside(found.word()),
        Whose::Unsure | Whose::Straddles | Whose::Contradicts
            if !may_be_of(assignments, &moment, sender_tenant) =>
        {
            return aside("foreign_gateway");
        }
        Whose::Unsure | Whose::Straddles | Whose::Contradicts
            if may_be_erased(assignments, &moment, sender_tenant) =>
        {
            return Fate::Discard("erased");
        }
        Whose::Unsure | Whose::Straddles | Whose::Contradicts => {
            let told = told(assignments, &moment, sender_tenant);
            return Fate::Quarantine { reason: found.word(), detail: told, ours: false };
        }
    };
    #[cfg(feature = "sabotage")]
    if crate::sabotage::takes(assignment, sender_tenant) {
        return Fate::Write(assignment);
    }
    if assignment.tenant != sender_tenant {
        return aside("foreign_gateway");
    }
    if assignment.erased {
        return Fate::Discard("erased");
    }
    let consented = match assignment.consent {
        Consent::Missing => false,
        Consent::Given => true,
        Consent::Withdrawn(at) => frame.last_us < at,
    };
    if !consented {
        return Fate::Discard("no_consent");
    }
    if frame.first_us < window.oldest_us {
        return Fate::Discard("expired");
    }
    match &frame.content {
        Content::Refused(reason, detail) => Fate::Quarantine { reason, detail, ours: true },
        _ => Fate::Write(assignment),
    }
}

/// A frame that a transaction writes.
#[derive(Debug, Clone, Copy)]
pub struct Taken<'a> {
    /// Its batch among the transaction's.
    pub batch: usize,
    pub(crate) device: &'a DeviceBatch,
    pub(crate) frame: &'a Frame,
    /// Whose it is.
    pub assignment: &'a Assignment,
    /// Its epoch.
    pub key: Key,
    /// The ledger's row that has it: its epoch's, but where another clinic has its number.
    pub row: Key,
    /// Nobody knows when it was, or its time contradicts what is stored.
    pub time_uncertain: bool,
}

/// A frame that a transaction puts aside.
#[derive(Debug)]
pub struct Aside<'a> {
    /// Its batch among the transaction's.
    pub batch: usize,
    pub(crate) device: &'a DeviceBatch,
    pub(crate) frame: &'a Frame,
    /// Why.
    pub reason: &'static str,
    /// More for a person.
    pub detail: &'a str,
}

/// Frames that are not kept.
#[derive(Debug, Default)]
pub struct Discarded {
    /// Which.
    pub seqs: SeqSet,
    /// From when.
    pub from_us: i64,
    /// Until when.
    pub to_us: i64,
}

/// What a transaction hears of an epoch beside what it takes.
#[derive(Debug, Default)]
pub struct Heard {
    /// Which numbers.
    pub seqs: SeqSet,
    /// One of its numbers is a name, and no count.
    pub named: bool,
}

/// What a transaction is to do, but for what only the ledger knows.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// To be written where the ledger does not have them.
    pub take: Vec<Taken<'a>>,
    /// To be quarantined.
    pub aside: Vec<Aside<'a>>,
    /// Not kept, by epoch and reason.
    pub discarded: BTreeMap<(Key, &'static str), Discarded>,
    /// How many were discarded and how many expired, by batch.
    pub counts: HashMap<usize, (u64, u64)>,
    /// Every ledger row that the transaction touches, with what was heard of in it beside what is taken.
    pub keys: BTreeMap<Key, Heard>,
    /// Those of them whose device more than one clinic has had.
    pub shared: BTreeSet<Key>,
}

/// Plans the frames of a device in a batch.
pub fn plan<'a>(plan: &mut Plan<'a>, batches: &'a [Batch], directory: &'a Directory, window: Window) {
    for (index, batch) in batches.iter().enumerate() {
        let Some(tenant) = directory.tenant_of(batch.sender) else { continue };
        for device in &batch.devices {
            let hardware = directory.hardware(&device.hardware_id);
            let assignments = hardware.map_or(&[][..], |hardware| hardware.assignments.as_slice());
            let key = hardware.map(|hardware| Key { hardware: hardware.id, epoch: device.epoch.0 as i64 });
            plan.shared.extend(key.filter(|_| hardware.is_some_and(Hardware::is_shared)));
            for frame in &device.frames {
                match (fate(frame, device.epoch, tenant, assignments, window), key) {
                    (Fate::Write(assignment), Some(key)) => {
                        plan.hears_of(key, device, frame);
                        for other in named_epochs(frame) {
                            plan.keys.entry(Key { epoch: other.0 as i64, ..key }).or_default();
                        }
                        let time_uncertain = device.fit(frame).is_some_and(|fit| fit.time_uncertain);
                        plan.take.push(Taken {
                            batch: index,
                            device,
                            frame,
                            assignment,
                            key,
                            row: key,
                            time_uncertain,
                        });
                    }
                    (Fate::Discard(reason), Some(key)) => {
                        plan.hears_of(key, device, frame).seqs.insert(u64::from(frame.seq));
                        plan.discard(index, key, reason, frame);
                    }
                    (Fate::Quarantine { reason, detail, ours }, _) => {
                        if let (true, Some(key)) = (ours, key) {
                            plan.hears_of(key, device, frame).seqs.insert(u64::from(frame.seq));
                        }
                        plan.aside.push(Aside { batch: index, device, frame, reason, detail });
                    }
                    // Assignments come with a hardware row.
                    (Fate::Write(_) | Fate::Discard(_), None) => {}
                }
            }
        }
    }
}

impl Plan<'_> {
    /// A frame tells of its epoch, whatever becomes of it.
    fn hears_of(&mut self, key: Key, device: &DeviceBatch, frame: &Frame) -> &mut Heard {
        let heard = self.keys.entry(key).or_default();
        heard.named |= device.fit(frame).is_some_and(is_name);
        heard
    }

    /// The numbers of which it matters whether they are in: those of frames, and those that a wearable says it overwrote.
    pub(crate) fn numbers(&self) -> BTreeMap<Key, SeqSet> {
        let mut frames: BTreeMap<Key, Vec<u64>> = BTreeMap::new();
        for taken in &self.take {
            frames.entry(taken.key).or_default().push(u64::from(taken.frame.seq));
        }
        let mut out: BTreeMap<Key, SeqSet> = BTreeMap::new();
        for (key, mut seqs) in frames {
            // In order, each is put at the end of the set.
            seqs.sort_unstable();
            out.insert(key, seqs.into_iter().collect());
        }
        for (key, heard) in &self.keys {
            out.entry(*key).or_default().add(&heard.seqs);
        }
        for taken in &self.take {
            for (epoch, seqs) in overwritten(taken.frame) {
                out.entry(Key { epoch: epoch.0 as i64, ..taken.key }).or_default().add(&seqs);
            }
        }
        out
    }

    fn discard(&mut self, batch: usize, key: Key, reason: &'static str, frame: &Frame) {
        let gap = self.discarded.entry((key, reason)).or_insert_with(|| Discarded {
            seqs: SeqSet::new(),
            from_us: i64::MAX,
            to_us: i64::MIN,
        });
        gap.seqs.insert(u64::from(frame.seq));
        gap.from_us = gap.from_us.min(frame.first_us);
        gap.to_us = gap.to_us.max(frame.last_us);
        let counts = self.counts.entry(batch).or_default();
        if reason == "expired" { counts.1 += 1 } else { counts.0 += 1 }
    }
}

/// Epochs beside its own that a frame says something about.
pub(crate) fn named_epochs(frame: &Frame) -> Vec<Epoch> {
    match &frame.content {
        Content::Boot(anchor) => anchor.previous.iter().map(|previous| previous.epoch).collect(),
        _ => overwritten(frame).into_iter().map(|(epoch, _)| epoch).collect(),
    }
}

/// Frames that a wearable's ring overwrote, as this one says.
fn overwritten(frame: &Frame) -> Vec<(Epoch, SeqSet)> {
    let Content::Events(events) = &frame.content else { return Vec::new() };
    let overwritten = events.iter().filter_map(|event| match event.kind {
        DeviceEventKind::Overflow { epoch, first_seq, last_seq } => {
            Some((epoch, SeqSet::range(u64::from(first_seq), u64::from(last_seq) + 1)))
        }
        _ => None,
    });
    overwritten.collect()
}
