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
use crate::words::Believed;
use crate::{Error, timestamp};

pub(crate) const LATE: &str = "late";
/// Numbers that an epoch has.
pub(crate) const NUMBERS: u64 = 1 << 32;

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
    pub fn booted(
        &mut self,
        taken: &Taken<'_>,
        anchor: &BootAnchor,
        entries: &mut BTreeMap<Key, Entry>,
        believed: &Believed,
    ) {
        let Some(previous) = anchor.previous else { return };
        let key = Key { epoch: previous.epoch.0 as i64, ..taken.key };
        let boot_us = taken.frame.first_us;
        let is_end = |highest| believed.is_end(key, taken.assignment.tenant, highest, previous.next_seq);
        if let Some(entry) = entries.get_mut(&key).filter(|entry| is_end(entry.highest_now())) {
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
            from_us: from_us.map(|from| believed.time(taken.assignment, from).min(boot_us)),
            to_us: boot_us,
        });
    }

    /// A wearable's ring overwrote what nobody had taken.
    pub fn happened(
        &mut self,
        taken: &Taken<'_>,
        events: &[DeviceEvent],
        entries: &mut BTreeMap<Key, Entry>,
        believed: &Believed,
    ) {
        for event in events {
            let DeviceEventKind::Overflow { epoch, first_seq, last_seq } = event.kind else { continue };
            let key = Key { epoch: epoch.0 as i64, ..taken.key };
            let seqs = SeqSet::range(u64::from(first_seq), u64::from(last_seq) + 1);
            let seqs = believed.numbers(key, taken.assignment.tenant, seqs);
            if let Some(entry) = entries.get_mut(&key) {
                entry.heard.add(&seqs);
            }
            let highest_us = entries.get(&key).and_then(|entry| entry.highest_us);
            self.candidates.push(Candidate {
                key,
                reason: "overflow",
                seqs,
                from_us: highest_us.map(|from| believed.time(taken.assignment, from)),
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
                let before = before.filter(|frame| !frame.contradicted);
                let from_us = before.map(|frame| frame.last_us).or(entry.highest_us);
                let after = entry.frames.get(&(to as u32)).filter(|frame| !frame.contradicted);
                self.candidates.push(Candidate {
                    key: *key,
                    reason: LATE,
                    seqs: SeqSet::range(from, to),
                    from_us,
                    to_us: after.map(|frame| frame.first_us).or(entry.ended.map(|ended| ended.boot_us)),
                    gateway: None,
                });
            }
        }
    }
}

/// In whose time a frame begins and ends: those of one epoch that differ in it have gaps of their own, since a gap that reaches into
/// another's time counts for neither.
pub(crate) type Within = (Option<Uuid>, Option<Uuid>);

/// Frames that are let go: a gap for each epoch, and for whoever had the device, says so.
#[derive(Debug)]
pub(crate) struct LetGo {
    reason: &'static str,
    gaps: BTreeMap<(Key, Within), Candidate>,
    named: BTreeSet<Key>,
}

impl LetGo {
    pub const fn new(reason: &'static str) -> Self {
        Self { reason, gaps: BTreeMap::new(), named: BTreeSet::new() }
    }

    /// One frame, of this time. `named`: its number is a name, and no count.
    pub fn add(&mut self, key: Key, seq: u64, times: (i64, i64), named: bool) {
        self.add_within((None, None), key, seq, times, named);
    }

    /// The same of a frame that lies within these assignments.
    pub fn add_within(
        &mut self,
        within: Within,
        key: Key,
        seq: u64,
        (from_us, to_us): (i64, i64),
        named: bool,
    ) {
        let gap = self.gaps.entry((key, within)).or_insert_with(|| Candidate {
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
    withdraw(tx, &entries, now).await?;
    let mut findings = Findings { candidates: told, ..Findings::default() };
    findings.skipped(&entries);
    record(tx, findings, &entries, now).await
}

// Key by key: a join was planned as a scan of all of it when statistics were of before. Of each epoch only what lies between the
// lowest and the highest number that is asked about.
const OPEN: &str = "
    SELECT k.hardware, k.epoch, g.reason, (g.seqs * int8multirange(int8range(k.low, k.high)))::text
    FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::int8[]) k(hardware, epoch, low, high)
    CROSS JOIN LATERAL (
      SELECT g.reason, g.seqs FROM gaps g WHERE g.hardware = k.hardware AND g.epoch = k.epoch
        AND g.withdrawn_at IS NULL AND g.seqs && int8range(k.low, k.high) OFFSET 0) g";
const ASIDE: &str = "
    SELECT k.hardware, k.epoch, q.seq, q.tenant_id, q.received_at
    FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::int8[]) k(hardware, epoch, low, high)
    CROSS JOIN LATERAL (
      SELECT q.seq, q.tenant_id, q.received_at FROM quarantine q WHERE q.hardware_id = (SELECT h.hardware_id FROM hardware h WHERE h.id = k.hardware)
        AND q.epoch = k.epoch AND q.seq >= k.low AND q.seq < k.high AND q.what = 'frame'
        AND q.reason <> 'foreign_gateway' OFFSET 0) q";
const MAY_BE_ITS: &str = "
    SELECT k.hardware, k.epoch, k.clinic, (CASE
        WHEN NOT k.shared THEN '{[0,4294967296)}'::int8multirange
        WHEN k.place <= $5
          THEN coalesce((SELECT c.possible FROM ts.numbers_of(k.hardware, k.epoch, k.told_at) c WHERE c.clinic = k.clinic), '{}')
        ELSE '{}'
      END)::text
    FROM (
      SELECT n.*, d.shared, row_number() OVER (PARTITION BY n.clinic, d.shared ORDER BY n.hardware, n.epoch) AS place
      FROM unnest($1::uuid[], $2::int8[], $3::uuid[], $4::timestamptz[]) n(hardware, epoch, clinic, told_at)
      JOIN (
        SELECT u.hardware, u.clinic, EXISTS (SELECT FROM device_assignments a
          WHERE a.hardware_id = u.hardware AND a.tenant_id <> u.clinic) AS shared
        FROM (SELECT DISTINCT hardware, clinic FROM unnest($1::uuid[], $3::uuid[]) u(hardware, clinic)) u) d
      ON d.hardware = n.hardware AND d.clinic = n.clinic) k";
const INSERT: &str = "
    INSERT INTO gaps (hardware, epoch, seqs, reason, from_time, to_time, gateway_id, created_at, updated_at)
    SELECT hardware, epoch, seqs::int8multirange, reason, from_time, to_time, gateway, $8, $8
    FROM unnest($1::uuid[], $2::int8[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::uuid[])
      n(hardware, epoch, seqs, reason, from_time, to_time, gateway)";
const RESET: &str = "
    INSERT INTO gaps (hardware, epoch, reason, from_ticks, from_time, to_time, created_at, updated_at)
    SELECT hardware, epoch, 'reset', ticks, from_time, to_time, $6, $6
    FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::timestamptz[], $5::timestamptz[])
      n(hardware, epoch, ticks, from_time, to_time)
    ON CONFLICT DO NOTHING";
const TAKE_OUT: &str = "
    UPDATE gaps g SET seqs = g.seqs - n.seqs::int8multirange, updated_at = $5,
      withdrawn_at = CASE WHEN isempty(g.seqs - n.seqs::int8multirange) THEN $5::timestamptz END
    FROM unnest($1::uuid[], $2::int8[], $3::text[]) n(hardware, epoch, seqs)
    WHERE g.hardware = n.hardware AND g.epoch = n.epoch AND g.withdrawn_at IS NULL
      AND g.seqs && n.seqs::int8multirange AND ($4 OR g.reason = 'late')";

/// A frame of a clinic's gateway that was refused.
struct RefusedFrame {
    key: Key,
    clinic: Uuid,
    seq: u64,
    at: Timestamp,
}

fn refused_by(row: &tokio_postgres::Row) -> Option<RefusedFrame> {
    Some(RefusedFrame {
        key: Key { hardware: row.get(0), epoch: row.get(1) },
        clinic: row.get::<_, Option<Uuid>>(3)?,
        seq: row.get::<_, i64>(2) as u64,
        at: row.get(4),
    })
}

/// Epochs of a clinic that are asked about at once, of devices that other clinics had too: for each of them all assignments of its
/// device are looked at.
pub(crate) const ASKED: usize = 64;

/// Epochs of which a clinic had frames refused, and when the last one came: that tells whose an epoch is of which nothing is
/// stored.
pub(crate) type Asked = BTreeMap<(Key, Uuid), Timestamp>;

/// Adds a frame that was refused.
pub(crate) fn ask(asked: &mut Asked, (key, clinic): (Key, Uuid), at: Timestamp) {
    let last = asked.entry((key, clinic)).or_insert(at);
    *last = at.max(*last);
}

/// Which numbers of an epoch may be a clinic's, whose gateway had frames of them refused: any clinic may have any frame refused,
/// and that says nothing of frames that are another's. All of them, where no other clinic ever had the device; else none of
/// what is more than [`ASKED`] epochs of a clinic.
pub(crate) async fn may_be_its<'a>(
    tx: &Transaction<'_>,
    asked: impl Iterator<Item = (&'a (Key, Uuid), &'a Timestamp)>,
) -> Result<BTreeMap<(Key, Uuid), SeqSet>, Error> {
    let (mut hardware, mut epochs) = (Vec::new(), Vec::new());
    let (mut clinics, mut told): (Vec<Uuid>, Vec<Timestamp>) = (Vec::new(), Vec::new());
    for ((key, clinic), at) in asked {
        hardware.push(key.hardware);
        epochs.push(key.epoch);
        clinics.push(*clinic);
        told.push(*at);
    }
    if hardware.is_empty() {
        return Ok(BTreeMap::new());
    }
    let statement = tx.prepare_cached(MAY_BE_ITS).await?;
    let mut its = BTreeMap::new();
    for row in tx.query(&statement, &[&hardware, &epochs, &clinics, &told, &(ASKED as i64)]).await? {
        let text: &str = row.get(3);
        let seqs = SeqSet::parse(text).ok_or_else(|| Error::Foreign(format!("the numbers {text}")))?;
        its.insert((Key { hardware: row.get(0), epoch: row.get(1) }, row.get(2)), seqs);
    }
    Ok(its)
}

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
    let (mut arrived, mut accounted) = (BTreeMap::<Key, SeqSet>::new(), BTreeMap::<Key, SeqSet>::new());
    for (key, entry) in entries {
        for (out, set) in [(&mut arrived, &entry.new), (&mut accounted, &entry.heard)] {
            let below = known(set, entry);
            if !below.is_empty() {
                out.insert(*key, below);
            }
        }
        if !entry.is_counted() && !entry.beside.is_empty() {
            // What lies beside an epoch of names was not kept at first, perhaps.
            arrived.entry(*key).or_default().add(&entry.beside);
        }
        if entry.is_newly_named() && entry.highest >= 0 {
            // What seemed to be missing was never used.
            accounted.insert(*key, SeqSet::range(0, NUMBERS));
        }
    }
    take_out(tx, &arrived, true, now).await?;
    take_out(tx, &accounted, false, now).await
}

async fn write_resets(tx: &Transaction<'_>, resets: &[Reset], now: Timestamp) -> Result<(), Error> {
    if resets.is_empty() {
        return Ok(());
    }
    let hardware: Vec<Uuid> = resets.iter().map(|gap| gap.key.hardware).collect();
    let epochs: Vec<i64> = resets.iter().map(|gap| gap.key.epoch).collect();
    let ticks: Vec<i64> = resets.iter().map(|gap| gap.from_ticks).collect();
    let from: Vec<Timestamp> = resets.iter().map(|gap| timestamp(gap.from_us.unwrap_or(gap.to_us))).collect();
    let to: Vec<Timestamp> = resets.iter().map(|gap| timestamp(gap.to_us)).collect();
    let statement = tx.prepare_cached(RESET).await?;
    tx.execute(&statement, &[&hardware, &epochs, &ticks, &from, &to, &now]).await?;
    Ok(())
}

/// From the lowest number that is asked about to behind the highest, by epoch.
fn spans(candidates: &[Candidate]) -> BTreeMap<Key, (i64, i64)> {
    let mut spans: BTreeMap<Key, (i64, i64)> = BTreeMap::new();
    for candidate in candidates {
        let (Some(first), Some(last)) = (candidate.seqs.first(), candidate.seqs.last()) else { continue };
        let span = spans.entry(candidate.key).or_insert((i64::MAX, 0));
        *span = (span.0.min(first as i64), span.1.max(last as i64 + 1));
    }
    spans
}

/// Ranges of numbers, in any order.
type Ranges = BTreeMap<Key, Vec<(u64, u64)>>;

fn sets(ranges: Ranges) -> BTreeMap<Key, SeqSet> {
    ranges.into_iter().map(|(key, ranges)| (key, ranges.into_iter().collect())).collect()
}

/// What of the candidates is news, and the numbers that it gives a reason for. `named` are in some gap or in quarantine,
/// `explained` in a gap with a reason.
///
/// In the order of their numbers: a thousand wearables that come back together leave a thousand holes, and what a message may
/// hold leaves many more. What each of them costs does not grow with how many there are.
fn less_what_is_told(
    mut candidates: Vec<Candidate>,
    entries: &BTreeMap<Key, Entry>,
    named: &BTreeMap<Key, SeqSet>,
    explained: &BTreeMap<Key, SeqSet>,
) -> (Vec<Candidate>, BTreeMap<Key, SeqSet>) {
    // Reasons first: what they explain is not late.
    candidates.sort_by_key(|candidate| (candidate.reason == LATE, candidate.key, candidate.seqs.first()));
    let (mut carved, mut late) = (BTreeMap::<Key, SeqSet>::new(), BTreeMap::<Key, SeqSet>::new());
    let mut new = Vec::new();
    for candidate in candidates {
        let key = candidate.key;
        let is_late = candidate.reason == LATE;
        let entry = entries.get(&key);
        // What lies beside a counted row are names of others: they have none of its numbers.
        let beside = entry.filter(|entry| !entry.is_counted()).map(|entry| &entry.beside);
        let stored = entry.into_iter().flat_map(|entry| [&entry.seqs, &entry.new]).chain(beside);
        let told = if is_late { named.get(&key) } else { explained.get(&key) };
        let others = [told, carved.get(&key), late.get(&key).filter(|_| is_late)];
        let seqs = stored
            .chain(others.into_iter().flatten())
            .fold(candidate.seqs.clone(), |seqs, others| seqs.minus(others));
        if seqs.is_empty() {
            continue;
        }
        let mine = if is_late { &mut late } else { &mut carved };
        mine.entry(key).or_default().add(&seqs);
        new.push(Candidate { seqs, ..candidate });
    }
    (new, carved)
}

/// Numbers in quarantine that may be of the clinics whose gateways had them refused.
async fn refused_of_its_own(
    tx: &Transaction<'_>,
    aside: &[tokio_postgres::Row],
) -> Result<Vec<(Key, u64)>, Error> {
    let aside: Vec<RefusedFrame> = aside.iter().filter_map(refused_by).collect();
    let mut asked = Asked::new();
    for one in &aside {
        ask(&mut asked, (one.key, one.clinic), one.at);
    }
    let its = may_be_its(tx, asked.iter()).await?;
    let may =
        |one: &&RefusedFrame| its.get(&(one.key, one.clinic)).is_some_and(|seqs| seqs.contains(one.seq));
    Ok(aside.iter().filter(may).map(|one| (one.key, one.seq)).collect())
}

/// Writes what was found out, less what is stored and what other gaps say already.
pub(crate) async fn record(
    tx: &Transaction<'_>,
    findings: Findings,
    entries: &BTreeMap<Key, Entry>,
    now: Timestamp,
) -> Result<(), Error> {
    write_resets(tx, &findings.resets, now).await?;
    let mut candidates = findings.candidates;
    candidates.retain(|candidate| !candidate.seqs.is_empty());
    if candidates.is_empty() {
        return Ok(());
    }
    let (open, aside, insert) =
        (tx.prepare_cached(OPEN).await?, tx.prepare_cached(ASIDE).await?, tx.prepare_cached(INSERT).await?);
    let spans = spans(&candidates);
    let hardware: Vec<Uuid> = spans.keys().map(|key| key.hardware).collect();
    let epochs: Vec<i64> = spans.keys().map(|key| key.epoch).collect();
    let lows: Vec<i64> = spans.values().map(|span| span.0).collect();
    let highs: Vec<i64> = spans.values().map(|span| span.1).collect();
    let keys: [&(dyn ToSql + Sync); 4] = [&hardware, &epochs, &lows, &highs];
    let (open, aside) = futures_util::try_join!(tx.query(&open, &keys), tx.query(&aside, &keys))?;
    // Numbers that are in a gap of any reason, and in one that is not merely late.
    let (mut named, mut explained) = (Ranges::new(), Ranges::new());
    for row in open {
        let key = Key { hardware: row.get(0), epoch: row.get(1) };
        let text: &str = row.get(3);
        let seqs = SeqSet::parse(text).ok_or_else(|| Error::Foreign(format!("the seqs {text} of a gap")))?;
        named.entry(key).or_default().extend(seqs.ranges());
        if row.get::<_, &str>(2) != LATE {
            explained.entry(key).or_default().extend(seqs.ranges());
        }
    }
    // What is not asked about is late: it is known to be missing all the same.
    for (key, seq) in refused_of_its_own(tx, &aside).await? {
        named.entry(key).or_default().push((seq, seq + 1));
    }
    let (new, carved) = less_what_is_told(candidates, entries, &sets(named), &sets(explained));
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const KEY: Key = Key { hardware: Uuid::nil(), epoch: 1 };

    fn candidate(reason: &'static str, seqs: std::ops::Range<u64>) -> Candidate {
        let seqs = SeqSet::range(seqs.start, seqs.end);
        Candidate { key: KEY, reason, seqs, from_us: None, to_us: None, gateway: None }
    }

    fn set(ranges: impl Iterator<Item = (u64, u64)>) -> SeqSet {
        ranges.collect()
    }

    #[test]
    fn a_hole_costs_the_same_however_many_there_are_and_in_whatever_order_they_come() {
        const MANY: u64 = 20_000;
        // Numbers that are in, in other gaps, and new: of each a hundred thousand ranges, and holes between them.
        let entry = Entry { seqs: set((0..5 * MANY).map(|n| (8 * n, 8 * n + 1))), ..Entry::default() };
        let entries = BTreeMap::from([(KEY, entry)]);
        let told = BTreeMap::from([(KEY, set((0..5 * MANY).rev().map(|n| (8 * n + 2, 8 * n + 3))))]);
        let reasons = (0..MANY).rev().map(|n| candidate("overflow", 8 * n..8 * n + 2));
        let late = (0..MANY).rev().map(|n| candidate(LATE, 8 * n..8 * n + 5));
        let began = Instant::now();
        let (new, carved) =
            less_what_is_told(late.chain(reasons).collect(), &entries, &told, &BTreeMap::new());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(new.len() as u64, 2 * MANY);
        assert_eq!(carved[&KEY], set((0..MANY).map(|n| (8 * n + 1, 8 * n + 2))));
        let late = new.iter().filter(|gap| gap.reason == LATE);
        assert!(late.zip(0..).all(|(gap, n)| gap.seqs == SeqSet::range(8 * n + 3, 8 * n + 5)));
    }
}
