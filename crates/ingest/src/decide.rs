//! Which frames are new: what the ledger's rows say of those that a transaction may take.
//!
//! Pure: the rows are locked, and what of them is another clinic's has been looked at ([`crate::claims`]).

use std::collections::BTreeMap;

use crate::claims::{Verdict, Verdicts};
use crate::ledger::{Entry, FitKey, NewFrame, is_name};
use crate::order::Stamped;
use crate::plan::{Aside, Key, Plan, Taken};
use crate::write::Counts;

/// Which frames are new? One that would scatter an epoch's numbers further than is counted is put aside. Two copies within this transaction whose CRCs differ are a collision: the first is taken, the other put
/// aside.
pub(crate) fn decide<'a>(
    plan: &mut Plan<'a>,
    entries: &mut BTreeMap<Key, Entry>,
    verdicts: &Verdicts,
    counts: &mut [Counts],
) -> Vec<Taken<'a>> {
    let mut new = Vec::with_capacity(plan.take.len());
    for (index, taken) in plan.take.iter().enumerate() {
        let row = match verdicts.get(&index) {
            Some(Verdict::Same) => {
                counts[taken.batch].duplicate += 1;
                continue;
            }
            Some(Verdict::Apart(row)) => *row,
            None => taken.key,
        };
        let Some(entry) = entries.get_mut(&row) else { continue };
        let (frame, seq) = (taken.frame, u64::from(taken.frame.seq));
        if entry.seqs.contains(seq) {
            counts[taken.batch].duplicate += 1;
            continue;
        }
        if let Some(other) = entry.frames.get(&frame.seq) {
            if other.crc == frame.crc {
                counts[taken.batch].duplicate += 1;
            } else {
                plan.aside.push(Aside {
                    batch: taken.batch,
                    device: taken.device,
                    frame,
                    reason: "collision",
                    detail: "another frame of this name came in the same transaction",
                });
            }
            continue;
        }
        if entry.is_full_for(seq) {
            // As one that is refused: its number is heard of.
            entry.heard.insert(seq);
            plan.aside.push(Aside {
                batch: taken.batch,
                device: taken.device,
                frame,
                reason: "scattered",
                detail: "so many numbers of its epoch are missing that no other may stand alone",
            });
            continue;
        }
        entry.take_possession(taken.assignment.tenant, !plan.shared.contains(&taken.key));
        entry.new.insert(seq);
        if let Some(claim) = entry.claim_of(taken.assignment.tenant) {
            claim.new.insert(seq);
        }
        let (placed, contradicted) = in_order(Taken { row, ..*taken }, entry);
        let (first_us, last_us) = (frame.first_us, frame.last_us);
        entry.frames.insert(frame.seq, NewFrame { crc: frame.crc, first_us, last_us, contradicted });
        counts[taken.batch].stored += 1;
        new.push(placed);
        if let Some(entry) = entries.get_mut(&taken.key).filter(|_| row != taken.key) {
            entry.beside.insert(seq);
        }
    }
    for entry in entries.values_mut().filter(|entry| !entry.new.is_empty()) {
        let mut is_in = entry.seqs.clone();
        is_in.add(&entry.new);
        entry.order.settle(&is_in);
        for claim in entry.claims.values_mut() {
            claim.settle();
        }
    }
    for (batch, (discarded, expired)) in &plan.counts {
        counts[*batch].discarded += discarded;
        counts[*batch].expired += expired;
    }
    new
}

/// Notes how a frame's time came about, and marks it where it contradicts what is stored; whether it does. Of two clinics each has
/// an order of its own: the clocks of one are no trouble of the other.
fn in_order<'a>(taken: Taken<'a>, entry: &mut Entry) -> (Taken<'a>, bool) {
    let Some(fit) = taken.device.fit(taken.frame) else { return (taken, false) };
    let mut key = FitKey::from(fit);
    let seq = taken.frame.seq;
    // Numbers of what comes over HTTP are names, and have no order.
    let class = taken.frame.class.filter(|_| !taken.time_uncertain && !is_name(fit));
    let contradicted = class.map_or(Ok(()), |class| {
        entry.order_of(taken.assignment.tenant).take(&Stamped { class, seq, ticks: taken.frame.ticks, fit })
    });
    if let Err(by_us) = contradicted {
        tracing::debug!(hardware = taken.device.hardware_id, seq, by_us, "a time contradicts what is stored");
        key = key.contradicted(by_us);
    }
    entry.fits.entry(key).or_default().insert(u64::from(seq));
    let time_uncertain = taken.time_uncertain || contradicted.is_err();
    (Taken { time_uncertain, ..taken }, contradicted.is_err())
}
