//! What will not come, or has not come yet.
//!
//! The promise: a gap and a stored frame never overlap, and every frame known to exist that is not in the database is
//! in a gap or in quarantine. Both hold at every commit, because both are kept under the ledger's lock: a frame that
//! arrives is taken out of every gap; a number that is skipped (a later frame came, or a later boot said where its
//! epoch ended) becomes a gap `late` at once, which later findings turn into `overflow`, `quota` or `gateway_lost`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kinara_protocol::frame::{BootAnchor, DeviceEvent, DeviceEventKind};
use kinara_store::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::ledger::{self, Ended, Entry};
use crate::parts;
use crate::plan::{Heard, Key, Plan, Taken};
use crate::seqs::SeqSet;
use crate::{Error, timestamp};

pub(crate) const LATE: &str = "late";
/// Numbers that an epoch has.
const NUMBERS: u64 = 1 << 32;

/// Numbers that are missing, and why.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub key: Key,
    pub reason: &'static str,
    pub seqs: SeqSet,
    pub from_us: Option<i64>,
    pub to_us: Option<i64>,
    pub gateway: Option<Uuid>,
}

/// Samples that were never in a frame: from the last tick in flash to the next boot.
#[derive(Debug)]
pub(crate) struct Reset {
    key: Key,
    from_ticks: i64,
    from_us: Option<i64>,
    to_us: i64,
}

/// What a transaction found out.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub candidates: Vec<Candidate>,
    pub resets: Vec<Reset>,
}

impl Findings {
    /// A boot tells how the epoch before it ended.
    pub fn booted(&mut self, taken: &Taken<'_>, anchor: &BootAnchor, entries: &mut BTreeMap<Key, Entry>) {
        let Some(previous) = anchor.previous else { return };
        let key = Key { epoch: previous.epoch.0 as i64, ..taken.key };
        let boot_us = taken.frame.first_us;
        if let Some(entry) = entries.get_mut(&key) {
            entry.ended = Some(Ended {
                end_seq: previous.next_seq,
                end_ticks: previous.last_ticks.0 as i64,
                next_epoch: taken.key.epoch,
                boot_us,
            });
        }
        let from_us = previous.last_sync.map(|sync| {
            sync.utc_us
                .saturating_add((previous.last_ticks.0 as i64).saturating_sub(sync.ticks.0 as i64) * 1_000)
        });
        self.resets.push(Reset {
            key,
            from_ticks: previous.last_ticks.0 as i64,
            from_us: from_us.map(|from| from.min(boot_us)),
            to_us: boot_us,
        });
    }

    /// A wearable's ring overwrote what nobody had taken.
    pub fn happened(
        &mut self,
        taken: &Taken<'_>,
        events: &[DeviceEvent],
        entries: &mut BTreeMap<Key, Entry>,
    ) {
        for event in events {
            let DeviceEventKind::Overflow { epoch, first_seq, last_seq } = event.kind else { continue };
            let key = Key { epoch: epoch.0 as i64, ..taken.key };
            let seqs = SeqSet::range(u64::from(first_seq), u64::from(last_seq) + 1);
            if let Some(entry) = entries.get_mut(&key) {
                entry.heard.add(&seqs);
            }
            self.candidates.push(Candidate {
                key,
                reason: "overflow",
                seqs,
                from_us: entries.get(&key).and_then(|entry| entry.highest_us),
                to_us: Some(taken.frame.first_us),
                gateway: None,
            });
        }
    }

    /// What was not kept.
    pub fn discarded(&mut self, plan: &Plan<'_>) {
        for ((key, reason), gap) in &plan.discarded {
            self.candidates.push(Candidate {
                key: *key,
                reason,
                seqs: gap.seqs.clone(),
                from_us: Some(gap.from_us),
                to_us: Some(gap.to_us),
                gateway: None,
            });
        }
    }

    /// Numbers that this transaction's frames leave behind.
    pub fn skipped(&mut self, entries: &BTreeMap<Key, Entry>) {
        for (key, entry) in entries.iter().filter(|(_, entry)| entry.is_counted()) {
            let end = entry.highest_now() + 1;
            let mut holes = SeqSet::range((entry.highest + 1).max(0) as u64, end.max(0) as u64);
            holes = holes.minus(&entry.new).minus(&entry.heard).minus(&entry.seqs);
            for &(from, to) in holes.ranges() {
                let before = from.checked_sub(1).and_then(|seq| entry.frames.get(&(seq as u32)));
                let from_us = before.map(|frame| frame.last_us).or(entry.highest_us);
                let after = entry.frames.get(&(to as u32)).map(|frame| frame.first_us);
                self.candidates.push(Candidate {
                    key: *key,
                    reason: LATE,
                    seqs: SeqSet::range(from, to),
                    from_us,
                    to_us: after.or(entry.ended.map(|ended| ended.boot_us)),
                    gateway: None,
                });
            }
        }
    }
}

/// Frames that are let go: a gap for each epoch says so.
#[derive(Debug)]
pub(crate) struct LetGo {
    reason: &'static str,
    gaps: BTreeMap<Key, Candidate>,
    named: BTreeSet<Key>,
}

impl LetGo {
    pub const fn new(reason: &'static str) -> Self {
        Self { reason, gaps: BTreeMap::new(), named: BTreeSet::new() }
    }

    /// One frame, of this time. `named`: its number is a name, and no count.
    pub fn add(&mut self, key: Key, seq: u64, (from_us, to_us): (i64, i64), named: bool) {
        let gap = self.gaps.entry(key).or_insert_with(|| Candidate {
            key,
            reason: self.reason,
            seqs: SeqSet::default(),
            from_us: Some(from_us),
            to_us: Some(to_us),
            gateway: None,
        });
        gap.seqs.insert(seq);
        gap.from_us = gap.from_us.min(Some(from_us));
        gap.to_us = gap.to_us.max(Some(to_us));
        if named {
            self.named.insert(key);
        }
    }

    /// Writes the gaps.
    pub async fn tell(self, tx: &Transaction<'_>, now: Timestamp) -> Result<(), Error> {
        tell(tx, self.gaps.into_values().collect(), &self.named, now).await
    }
}

/// Numbers that are told of, and were not in a batch. They count as heard of, so that such a frame that comes after all is
/// taken out of its gap, and so that a number below them which was never seen is `late`. `named`: epochs whose numbers are
/// names.
pub(crate) async fn tell(
    tx: &Transaction<'_>,
    told: Vec<Candidate>,
    named: &BTreeSet<Key>,
    now: Timestamp,
) -> Result<(), Error> {
    let keys: BTreeSet<Key> = told.iter().map(|gap| gap.key).collect();
    let mut entries = ledger::lock(tx, keys.into_iter()).await?;
    parts::look_up(tx, &mut entries, || {
        let mut asked: BTreeMap<Key, SeqSet> = BTreeMap::new();
        for gap in &told {
            asked.entry(gap.key).or_default().add(&gap.seqs);
        }
        asked
    })
    .await?;
    for gap in &told {
        let heard = Heard { seqs: gap.seqs.clone(), named: named.contains(&gap.key) };
        entries.entry(gap.key).or_default().hear(&heard);
    }
    ledger::update(tx, &entries, now).await?;
    let mut findings = Findings { candidates: told, ..Findings::default() };
    findings.skipped(&entries);
    record(tx, findings, &entries, now).await
}

// Key by key: a join was planned as a scan of all of it when statistics were of before.
const OPEN: &str = "
    SELECT k.hardware, k.epoch, g.reason, g.seqs::text
    FROM (SELECT DISTINCT * FROM unnest($1::uuid[], $2::int8[])) k(hardware, epoch)
    CROSS JOIN LATERAL (
      SELECT g.reason, g.seqs FROM gaps g WHERE g.hardware = k.hardware AND g.epoch = k.epoch
        AND g.withdrawn_at IS NULL AND g.seqs IS NOT NULL OFFSET 0) g";
const ASIDE: &str = "
    SELECT k.hardware, k.epoch, q.seq
    FROM (SELECT DISTINCT * FROM unnest($1::uuid[], $2::int8[])) k(hardware, epoch)
    CROSS JOIN LATERAL (
      SELECT q.seq FROM quarantine q WHERE q.hardware_id = (SELECT h.hardware_id FROM hardware h WHERE h.id = k.hardware)
        AND q.epoch = k.epoch AND q.what = 'frame' AND q.seq IS NOT NULL AND q.reason <> 'foreign_gateway' OFFSET 0) q";
const INSERT: &str = "
    INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, gateway_id, created_at, updated_at)
    SELECT hardware, epoch, seqs::int8multirange, reason, from_time, to_time, gateway, $8, $8
    FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::uuid[])
      n(hardware, epoch, seqs, reason, from_time, to_time, gateway)";
const RESET: &str = "
    INSERT INTO gaps (hardware, epoch, reason, from_ticks, from_time, to_time, created_at, updated_at)
    VALUES ($1, $2, 'reset', $3, $4, $5, $6, $6) ON CONFLICT DO NOTHING";
const TAKE_OUT: &str = "
    UPDATE gaps g SET seqs = g.seqs - n.seqs::int8multirange, updated_at = $5,
      withdrawn_at = CASE WHEN isempty(g.seqs - n.seqs::int8multirange) THEN $5::timestamptz END
    FROM unnest($1::uuid[], $2::int8[], $3::text[]) n(hardware, epoch, seqs)
    WHERE g.hardware = n.hardware AND g.epoch = n.epoch AND g.withdrawn_at IS NULL
      AND g.seqs && n.seqs::int8multirange AND ($4 OR g.reason = 'late')";

/// Takes numbers out of gaps: out of every gap (they arrived), or out of those that are only late (they are accounted
/// for otherwise).
async fn take_out(
    tx: &Transaction<'_>,
    numbers: &BTreeMap<Key, SeqSet>,
    of_all: bool,
    now: Timestamp,
) -> Result<(), Error> {
    if numbers.is_empty() {
        return Ok(());
    }
    let hardware: Vec<Uuid> = numbers.keys().map(|key| key.hardware).collect();
    let epochs: Vec<i64> = numbers.keys().map(|key| key.epoch).collect();
    let seqs: Vec<String> = numbers.values().map(SeqSet::to_string).collect();
    let statement = tx.prepare_cached(TAKE_OUT).await?;
    tx.execute(&statement, &[&hardware, &epochs, &seqs, &of_all, &now]).await?;
    Ok(())
}

/// Takes what this transaction writes out of all gaps, and what it refuses out of those that are only late: of an epoch
/// whose numbers turn out to be names, everything.
///
/// A frame above every number heard of before is in no gap: the common case costs nothing.
pub(crate) async fn withdraw(
    tx: &Transaction<'_>,
    entries: &BTreeMap<Key, Entry>,
    now: Timestamp,
) -> Result<(), Error> {
    let known = |set: &SeqSet, entry: &Entry| set.minus(&SeqSet::range((entry.highest + 1) as u64, u64::MAX));
    let (mut arrived, mut accounted) = (BTreeMap::new(), BTreeMap::new());
    for (key, entry) in entries {
        for (out, set) in [(&mut arrived, &entry.new), (&mut accounted, &entry.heard)] {
            let below = known(set, entry);
            if !below.is_empty() {
                out.insert(*key, below);
            }
        }
        if entry.is_newly_named() && entry.highest >= 0 {
            // What seemed to be missing was never used.
            accounted.insert(*key, SeqSet::range(0, NUMBERS));
        }
    }
    take_out(tx, &arrived, true, now).await?;
    take_out(tx, &accounted, false, now).await
}

/// Writes what was found out, less what is stored and what other gaps say already.
pub(crate) async fn record(
    tx: &Transaction<'_>,
    findings: Findings,
    entries: &BTreeMap<Key, Entry>,
    now: Timestamp,
) -> Result<(), Error> {
    if !findings.resets.is_empty() {
        let statement = tx.prepare_cached(RESET).await?;
        for gap in &findings.resets {
            let from = timestamp(gap.from_us.unwrap_or(gap.to_us));
            let values: [&(dyn ToSql + Sync); 6] =
                [&gap.key.hardware, &gap.key.epoch, &gap.from_ticks, &from, &timestamp(gap.to_us), &now];
            tx.execute(&statement, &values).await?;
        }
    }
    let mut candidates = findings.candidates;
    candidates.retain(|candidate| !candidate.seqs.is_empty());
    if candidates.is_empty() {
        return Ok(());
    }
    let hardware: Vec<Uuid> = candidates.iter().map(|candidate| candidate.key.hardware).collect();
    let epochs: Vec<i64> = candidates.iter().map(|candidate| candidate.key.epoch).collect();
    let (open, aside, insert) =
        (tx.prepare_cached(OPEN).await?, tx.prepare_cached(ASIDE).await?, tx.prepare_cached(INSERT).await?);
    let keys: [&(dyn ToSql + Sync); 2] = [&hardware, &epochs];
    let (open, aside) = futures_util::try_join!(tx.query(&open, &keys), tx.query(&aside, &keys))?;
    // Numbers that are in a gap of any reason, and in one that is not merely late.
    let (mut named, mut explained) = (BTreeMap::<Key, SeqSet>::new(), BTreeMap::<Key, SeqSet>::new());
    for row in open {
        let key = Key { hardware: row.get(0), epoch: row.get(1) };
        let text: &str = row.get(3);
        let seqs = SeqSet::parse(text).ok_or_else(|| Error::Foreign(format!("the seqs {text} of a gap")))?;
        named.entry(key).or_default().add(&seqs);
        if row.get::<_, &str>(2) != LATE {
            explained.entry(key).or_default().add(&seqs);
        }
    }
    for row in aside {
        let key = Key { hardware: row.get(0), epoch: row.get(1) };
        named.entry(key).or_default().insert(row.get::<_, i64>(2) as u64);
    }
    // Reasons first: what they explain is not late.
    candidates.sort_by_key(|candidate| candidate.reason == LATE);
    let mut carved = BTreeMap::<Key, SeqSet>::new();
    // In one statement: a thousand wearables that come back together leave a thousand holes.
    let mut new: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let key = candidate.key;
        let late = candidate.reason == LATE;
        let mut seqs = candidate.seqs.clone();
        if let Some(entry) = entries.get(&key) {
            seqs = seqs.minus(&entry.seqs).minus(&entry.new);
        }
        if let Some(others) = if late { named.get(&key) } else { explained.get(&key) } {
            seqs = seqs.minus(others);
        }
        if seqs.is_empty() {
            continue;
        }
        for set in [&mut named, &mut explained] {
            set.entry(key).or_default().add(&seqs);
        }
        if !late {
            carved.entry(key).or_default().add(&seqs);
        }
        new.push(Candidate { seqs, ..candidate });
    }
    if !new.is_empty() {
        let times = |of: fn(&Candidate) -> Option<i64>| {
            new.iter().map(|gap| of(gap).map(timestamp)).collect::<Vec<Option<Timestamp>>>()
        };
        let hardware: Vec<Uuid> = new.iter().map(|gap| gap.key.hardware).collect();
        let epochs: Vec<i64> = new.iter().map(|gap| gap.key.epoch).collect();
        let seqs: Vec<String> = new.iter().map(|gap| gap.seqs.to_string()).collect();
        let reasons: Vec<&str> = new.iter().map(|gap| gap.reason).collect();
        let gateways: Vec<Option<Uuid>> = new.iter().map(|gap| gap.gateway).collect();
        let (from, to) = (times(|gap| gap.from_us), times(|gap| gap.to_us));
        tx.execute(&insert, &[&hardware, &epochs, &seqs, &reasons, &from, &to, &gateways, &now]).await?;
    }
    take_out(tx, &carved, false, now).await
}
