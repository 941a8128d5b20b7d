//! How far a clinic's word about a device's other epochs is believed: a boot says how the epoch before it ended, a full ring what it
//! overwrote.
//!
//! The promise: a clinic cannot make a loss of, or hide one in, what another clinic has of the device. Of a device that one clinic has
//! had alone, everything is believed, and nothing is asked.

use std::collections::{BTreeMap, HashMap};

use kinara_store::Transaction;
use uuid::Uuid;

use crate::assign::Assignment;
use crate::directory::Directory;
use crate::gaps::{self, Asked};
use crate::ledger::Entry;
use crate::plan::{self, Key, Plan, Taken};
use crate::seqs::SeqSet;
use crate::{Error, timestamp};

/// What is believed of a transaction's words.
#[derive(Debug, Default)]
pub(crate) struct Believed {
    /// Which numbers of an epoch may be a clinic's, of devices that others had, too.
    its: BTreeMap<(Key, Uuid), SeqSet>,
    /// Since when the clinic has had the device, by assignment; not of whom nobody of another clinic came before.
    since: HashMap<Uuid, i64>,
}

impl Believed {
    /// Asks about what these frames say.
    pub async fn ask(
        tx: &Transaction<'_>,
        plan: &Plan<'_>,
        directory: &Directory,
        new: &[Taken<'_>],
        entries: &BTreeMap<Key, Entry>,
    ) -> Result<Self, Error> {
        let (mut out, mut asked) = (Self::default(), Asked::new());
        for taken in new.iter().filter(|taken| plan.shared.contains(&taken.key)) {
            for epoch in plan::named_epochs(taken.frame) {
                let of = Key { epoch: epoch.0 as i64, ..taken.key };
                gaps::ask(&mut asked, (of, taken.assignment.tenant), timestamp(taken.frame.first_us));
                let all = directory.hardware(&taken.device.hardware_id);
                let since = all.and_then(|all| got(&all.assignments, taken.assignment));
                out.since.extend(since.map(|since| (taken.assignment.id, since)));
            }
        }
        out.its = gaps::may_be_its(tx, asked.iter()).await?;
        out.add_new(new, entries);
        Ok(out)
    }

    /// What comes after a frame that this transaction writes may be its clinic's, as after one that is stored.
    fn add_new(&mut self, new: &[Taken<'_>], entries: &BTreeMap<Key, Entry>) {
        let is_sure = |taken: &&Taken<'_>| {
            let frame = entries.get(&taken.key).and_then(|entry| entry.frames.get(&taken.frame.seq));
            taken.row == taken.key && frame.is_some_and(|frame| !frame.contradicted)
        };
        if self.its.is_empty() {
            return;
        }
        for taken in new.iter().filter(is_sure) {
            if let Some(its) = self.its.get_mut(&(taken.key, taken.assignment.tenant)) {
                its.insert_range(u64::from(taken.frame.seq), gaps::NUMBERS);
            }
        }
    }

    /// Those of these numbers that may be the clinic's.
    pub fn numbers(&self, of: Key, clinic: Uuid, seqs: SeqSet) -> SeqSet {
        match self.its.get(&(of, clinic)) {
            Some(its) => seqs.minus(&seqs.minus(its)),
            None => seqs,
        }
    }

    /// Whether an epoch ended where a clinic says: it names no number that nobody has heard of, or the last one may be its own. What is
    /// missing before that is missing, whose ever it is.
    pub fn is_end(&self, of: Key, clinic: Uuid, highest: i64, next_seq: u32) -> bool {
        let last = i64::from(next_seq) - 1;
        last <= highest || self.its.get(&(of, clinic)).is_none_or(|its| its.contains(last as u64))
    }

    /// A time at or after the one at which the clinic got the device.
    pub fn time(&self, assignment: &Assignment, us: i64) -> i64 {
        self.since.get(&assignment.id).map_or(us, |since| us.max(*since))
    }
}

/// When a clinic got the device from another one, before an assignment of its own.
fn got(all: &[Assignment], own: &Assignment) -> Option<i64> {
    let others = all.iter().filter(|other| other.tenant != own.tenant);
    others.filter_map(|other| other.to.map(|to| to.time_us)).filter(|to| *to <= own.from.time_us).max()
}
