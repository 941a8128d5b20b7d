//! What of an epoch is whose: a clinic cannot occupy numbers of a device's frames for the clinic after it.
//!
//! The promise: the ledger's names (device, epoch, number) are one for all clinics, and a clinic that has a device may use any
//! number. A frame whose number another clinic has is a duplicate only where it is the same frame: its samples are stored, at the
//! time that this number's fit gives them ([`crate::same`]). Otherwise it is a reading of its own and is stored, once: the ledger has
//! it in a row of its clinic's own beside the epoch's, under an epoch that nobody can know (`alias`), whose numbers are names.
//! Its readings have the epoch that it came with.
//!
//! Who wrote first is kept and never changed. Where readings move to another clinic, a frame that comes again is found where they
//! are: it is looked for under whoever had the device. So nothing here has to follow a move, nor a writer that is at it.
//!
//! What is here is read and written under the lock of the epoch's row; a row of an alias is locked after it, and reached through it
//! alone. A device that one clinic has had alone costs nothing of this.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kinara_store::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::batch::Content;
use crate::directory::Directory;
use crate::ledger::{self, Entry, Owner, is_name};
use crate::order::Order;
use crate::plan::{Heard, Key, Plan, Taken, Window};
use crate::same::{self, Found};
use crate::seqs::SeqSet;
use crate::{Error, parts};

/// Questions of one transaction about frames whose numbers another clinic has. Each goes through the days of some frames of an epoch
/// and a clinic, in a few milliseconds.
const LOOKS: usize = 128;

/// What one clinic has in an epoch that began with another's frames.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    /// Which of the row's frames are its own.
    pub seqs: SeqSet,
    /// The ends of them, in time.
    pub order: Order,
    /// The epoch of the row beside.
    pub alias: Option<i64>,
    /// Its frames that this transaction writes.
    pub new: SeqSet,
}

impl Claim {
    /// Joins stretches between which everything is in.
    pub fn settle(&mut self) {
        if !self.new.is_empty() {
            let mut is_in = self.seqs.clone();
            is_in.add(&self.new);
            self.order.settle(&is_in);
        }
    }
}

impl Entry {
    /// Whose a frame of this row is, where that is known.
    fn whose(&self, seq: u64) -> Option<Uuid> {
        let Owner::Clinic(owner) = self.owner else { return None };
        let claims = self.claims.iter().find(|(_, claim)| claim.seqs.contains(seq));
        Some(claims.map_or(owner, |(clinic, _)| *clinic))
    }

    /// Where a clinic's frames of this row are noted, if the row is another clinic's.
    pub fn claim_of(&mut self, clinic: Uuid) -> Option<&mut Claim> {
        let is_anothers = matches!(self.owner, Owner::Clinic(owner) if owner != clinic);
        is_anothers.then(|| self.claims.entry(clinic).or_default())
    }

    /// The order in time of a clinic's frames.
    pub fn order_of(&mut self, clinic: Uuid) -> &mut Order {
        match self.owner {
            Owner::Clinic(owner) if owner != clinic => &mut self.claims.entry(clinic).or_default().order,
            _ => &mut self.order,
        }
    }
}

/// What becomes of a frame whose number another clinic has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the frame that this clinic has.
    Same,
    /// It is another one; the ledger has it in this row.
    Apart(Key),
}

/// Verdicts by the frames' places in the plan; of the others only the ledger decides.
pub(crate) type Verdicts = HashMap<usize, Verdict>;

/// A frame whose number another clinic has.
#[derive(Debug, Clone)]
pub(crate) struct Doubt<'a> {
    pub index: usize,
    pub taken: Taken<'a>,
    /// The rows in which another clinic has it.
    pub rows: Vec<Key>,
}

impl Doubt<'_> {
    pub fn seq(&self) -> u64 {
        u64::from(self.taken.frame.seq)
    }
}

/// An epoch and a clinic.
pub(crate) type Part = (Key, Uuid);

const CLAIMS: &str = "
    SELECT c.hardware, c.epoch, c.tenant_id, c.seqs::text, c.stretches, c.alias
    FROM unnest($1::uuid[], $2::int8[]) k(hardware, epoch)
    CROSS JOIN LATERAL (
      SELECT * FROM ledger_claims c WHERE c.hardware = k.hardware AND c.epoch = k.epoch OFFSET 0) c";
const WRITE: &str = "
    INSERT INTO ledger_claims AS c (hardware, epoch, tenant_id, seqs, stretches)
    SELECT hardware, epoch, tenant, seqs::int8multirange, stretches
    FROM unnest($1::uuid[], $2::int8[], $3::uuid[], $4::text[], $5::bytea[]) n(hardware, epoch, tenant, seqs, stretches)
    ON CONFLICT (hardware, epoch, tenant_id) DO UPDATE SET seqs = c.seqs + excluded.seqs, stretches = excluded.stretches";
const KNOWN: &str = "
    SELECT c.hardware, c.epoch, c.tenant_id, c.alias
    FROM unnest($1::uuid[], $2::int8[], $3::uuid[]) k(hardware, epoch, tenant)
    CROSS JOIN LATERAL (
      SELECT * FROM ledger_claims c WHERE c.hardware = k.hardware AND c.epoch = k.epoch AND c.tenant_id = k.tenant
        AND c.alias IS NOT NULL OFFSET 0) c";
const NAME: &str = "
    INSERT INTO ledger_claims AS c (hardware, epoch, tenant_id, alias)
    SELECT * FROM unnest($1::uuid[], $2::int8[], $3::uuid[], $4::int8[]) n(hardware, epoch, tenant, alias)
    ON CONFLICT (hardware, epoch, tenant_id) DO UPDATE SET alias = coalesce(c.alias, excluded.alias)
    RETURNING hardware, epoch, tenant_id, alias";

/// Finds what is another clinic's of the numbers that frames have which a transaction may take, and whether they are the same
/// frames. The rows of those that are not are among the entries then.
pub(crate) async fn sort_out(
    tx: &Transaction<'_>,
    plan: &Plan<'_>,
    directory: &Directory,
    entries: &mut BTreeMap<Key, Entry>,
    window: Window,
) -> Result<Verdicts, Error> {
    let keys = shared(plan, entries);
    let mut verdicts = Verdicts::new();
    if keys.is_empty() {
        return Ok(verdicts);
    }
    read(tx, &keys, entries).await?;
    let mut beside = look_up_beside(tx, plan, &keys, entries).await?;
    for key in &keys {
        let Some(entry) = entries.get_mut(key) else { continue };
        let rows = entry.claims.values().filter_map(|claim| beside.get(&Key { epoch: claim.alias?, ..*key }));
        entry.beside = rows.flat_map(|row| row.seqs.ranges()).copied().collect();
    }
    let Split { mut apart, doubts, same } = split(plan, &keys, entries, &beside);
    verdicts.extend(same.into_iter().map(|index| (index, Verdict::Same)));
    // Each is a question of its own, and other clinics' batches wait meanwhile.
    if doubts.values().map(|doubts| same::slices(doubts).len()).sum::<usize>() > LOOKS {
        return Err(Error::TooWide);
    }
    let mut columns = same::Columns::new();
    for ((key, clinic), doubts) in doubts {
        for (index, is_same) in look(tx, directory, window, doubts, &mut columns).await? {
            if is_same {
                verdicts.insert(index, Verdict::Same);
            } else {
                apart.entry((key, clinic)).or_default().push(index);
            }
        }
    }
    name(tx, plan, &apart, entries, &mut beside).await?;
    for ((key, clinic), indices) in apart {
        let alias = entries.get(&key).and_then(|entry| entry.claims.get(&clinic)?.alias);
        let row = Key { epoch: alias.unwrap_or(key.epoch), ..key };
        verdicts.extend(indices.into_iter().map(|index| (index, Verdict::Apart(row))));
    }
    entries.append(&mut beside);
    Ok(verdicts)
}

/// The epochs that more than one clinic may have frames of.
fn shared(plan: &Plan<'_>, entries: &BTreeMap<Key, Entry>) -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> =
        plan.shared.iter().copied().filter(|key| entries.contains_key(key)).collect();
    // Where one clinic is left of two, frames of one device come one after another and are all its.
    for frames in plan.take.chunk_by(|one, next| one.key == next.key) {
        let owner = entries.get(&frames[0].key).map(|entry| entry.owner);
        if matches!(owner, Some(Owner::Clinic(owner)) if owner != frames[0].assignment.tenant) {
            keys.insert(frames[0].key);
        }
    }
    keys
}

async fn read(
    tx: &Transaction<'_>,
    keys: &BTreeSet<Key>,
    entries: &mut BTreeMap<Key, Entry>,
) -> Result<(), Error> {
    let (hardware, epochs): (Vec<Uuid>, Vec<i64>) = keys.iter().map(|key| (key.hardware, key.epoch)).unzip();
    let statement = tx.prepare_cached(CLAIMS).await?;
    for row in tx.query(&statement, &[&hardware, &epochs]).await? {
        let text: &str = row.get(3);
        let foreign = || Error::Foreign(format!("the claims {text} in the ledger"));
        let claim = Claim {
            seqs: SeqSet::parse(text).ok_or_else(foreign)?,
            order: Order::from_bytes(row.get(4)).ok_or_else(foreign)?,
            alias: row.get(5),
            ..Claim::default()
        };
        let key = Key { hardware: row.get(0), epoch: row.get(1) };
        if let Some(entry) = entries.get_mut(&key) {
            entry.claims.insert(row.get(2), claim);
        }
    }
    Ok(())
}

/// The rows beside these epochs', with what is in of the numbers asked about.
async fn look_up_beside(
    tx: &Transaction<'_>,
    plan: &Plan<'_>,
    keys: &BTreeSet<Key>,
    entries: &BTreeMap<Key, Entry>,
) -> Result<BTreeMap<Key, Entry>, Error> {
    let of = |key: &Key| {
        let claims = entries.get(key).into_iter().flat_map(|entry| entry.claims.values());
        claims.filter_map(|claim| claim.alias).map(|epoch| (Key { epoch, ..*key }, *key)).collect::<Vec<_>>()
    };
    let aliases: BTreeMap<Key, Key> = keys.iter().flat_map(of).collect();
    let mut rows = ledger::lock(tx, aliases.keys().copied()).await?;
    parts::look_up(tx, &mut rows, || {
        let asked = plan.numbers();
        aliases.iter().filter_map(|(alias, key)| Some((*alias, asked.get(key)?.clone()))).collect()
    })
    .await?;
    Ok(rows)
}

/// The frames of a plan whose numbers another clinic has, or may not share with it.
#[derive(Default)]
struct Split<'a> {
    /// Another frame for certain.
    apart: BTreeMap<Part, Vec<usize>>,
    /// To be looked at.
    doubts: BTreeMap<Part, Vec<Doubt<'a>>>,
    /// Nothing is lost if they are the same.
    same: Vec<usize>,
}

fn split<'a>(
    plan: &Plan<'a>,
    keys: &BTreeSet<Key>,
    entries: &mut BTreeMap<Key, Entry>,
    beside: &BTreeMap<Key, Entry>,
) -> Split<'a> {
    let mut out = Split::default();
    // The first frame of each number that comes in this transaction.
    let mut first: HashMap<(Key, u32), (Uuid, u32)> = HashMap::new();
    for (index, taken) in plan.take.iter().enumerate().filter(|(_, taken)| keys.contains(&taken.key)) {
        let Some(entry) = entries.get_mut(&taken.key) else { continue };
        let (clinic, frame, seq) = (taken.assignment.tenant, taken.frame, u64::from(taken.frame.seq));
        if !entry.seqs.contains(seq) {
            entry.take_possession(clinic, !plan.shared.contains(&taken.key));
        }
        let Owner::Clinic(owner) = entry.owner else { continue };
        let part = (taken.key, clinic);
        let row = |alias: i64| Key { epoch: alias, ..taken.key };
        let is_in = |claim: &Claim| {
            claim.alias.map(row).filter(|row| beside.get(row).is_some_and(|entry| entry.seqs.contains(seq)))
        };
        if entry.claims.get(&clinic).and_then(is_in).is_some() {
            out.apart.entry(part).or_default().push(index);
            continue;
        }
        let whose = entry.whose(seq).filter(|_| entry.seqs.contains(seq));
        if whose == Some(clinic) {
            continue;
        }
        let is_named = taken.device.fit(frame).is_some_and(is_name);
        let others =
            entry.claims.iter().filter(|(other, _)| **other != clinic).filter_map(|(_, claim)| is_in(claim));
        // What lies beside a counted row and not in it are names. A frame that was counted is none of them, and has its number.
        let others = others.filter(|_| whose.is_some() || is_named || !entry.is_counted());
        let rows: Vec<Key> = whose.map(|_| taken.key).into_iter().chain(others).collect();
        if !rows.is_empty() {
            if matches!(frame.content, Content::Sync) {
                out.same.push(index);
            } else {
                out.doubts.entry(part).or_default().push(Doubt { index, taken: *taken, rows });
            }
        } else if owner != clinic && (is_named || !entry.is_counted()) {
            // Numbers of names are no count: nothing is missing between two clinics' own.
            out.apart.entry(part).or_default().push(index);
        } else if first.entry((taken.key, frame.seq)).or_insert((clinic, frame.crc)).0 != clinic
            && first.get(&(taken.key, frame.seq)).is_some_and(|(_, crc)| *crc != frame.crc)
        {
            out.apart.entry(part).or_default().push(index);
        }
    }
    out
}

/// Looks at one clinic's frames of an epoch: whether each is the frame that another clinic has.
async fn look<'a>(
    tx: &Transaction<'_>,
    directory: &Directory,
    window: Window,
    mut doubts: Vec<Doubt<'a>>,
    columns: &mut same::Columns<'a>,
) -> Result<Vec<(usize, bool)>, Error> {
    doubts.sort_by_key(Doubt::seq);
    let mut out = Vec::with_capacity(doubts.len());
    for part in same::slices(&doubts) {
        let found = same::look(tx, directory, window, part, columns).await?;
        out.extend(part.iter().zip(found).map(|(doubt, found)| (doubt.index, found == Found::Same)));
    }
    Ok(out)
}

/// Gives each clinic that needs one its row beside an epoch's.
async fn name(
    tx: &Transaction<'_>,
    plan: &Plan<'_>,
    apart: &BTreeMap<Part, Vec<usize>>,
    entries: &mut BTreeMap<Key, Entry>,
    beside: &mut BTreeMap<Key, Entry>,
) -> Result<(), Error> {
    let nameless = |(key, clinic): &&Part| {
        entries
            .get(key)
            .is_some_and(|entry| entry.claims.get(clinic).is_none_or(|claim| claim.alias.is_none()))
    };
    let nameless: BTreeSet<Part> = apart.keys().filter(nameless).copied().collect();
    if !nameless.is_empty() {
        let named = self::beside(tx, &nameless).await?;
        for ((key, clinic), alias) in &named {
            let Some(entry) = entries.get_mut(key) else { continue };
            let mut frames =
                apart.get(&(*key, *clinic)).into_iter().flatten().filter_map(|index| plan.take.get(*index));
            // At an honest boundary both boxes may have the same word of the wearable; samples they never have both.
            if let Some(taken) = frames.find(|taken| matches!(taken.frame.content, Content::Samples)) {
                tracing::warn!(device = taken.device.hardware_id,
                    epoch = %kinara_protocol::frame::Epoch(key.epoch.cast_unsigned()), %clinic, owner = ?entry.owner,
                    "frames have numbers that another clinic has; they are kept beside");
            }
            entry.claims.entry(*clinic).or_default().alias = Some(*alias);
        }
        let keys = named.into_iter().map(|((key, _), epoch)| Key { epoch, ..key }).collect::<BTreeSet<Key>>();
        beside.append(&mut ledger::lock(tx, keys.into_iter()).await?);
    }
    for (key, clinic) in apart.keys() {
        let alias = entries.get(key).and_then(|entry| entry.claims.get(clinic)?.alias);
        if let Some(row) = alias.and_then(|epoch| beside.get_mut(&Key { epoch, ..*key })) {
            // Holes in it are no gaps.
            row.hear(&Heard { seqs: SeqSet::new(), named: true });
        }
    }
    Ok(())
}

/// The epochs under which what these clinics have is kept whose numbers, or keys, another clinic has; drawn where there is none, so
/// that nobody can know them and send frames of them.
pub(crate) async fn beside(
    tx: &Transaction<'_>,
    parts: &BTreeSet<Part>,
) -> Result<BTreeMap<Part, i64>, Error> {
    let (known, name) = (tx.prepare_cached(KNOWN).await?, tx.prepare_cached(NAME).await?);
    let columns = |parts: &BTreeSet<Part>| -> (Vec<Uuid>, Vec<i64>, Vec<Uuid>) {
        (
            parts.iter().map(|(key, _)| key.hardware).collect(),
            parts.iter().map(|(key, _)| key.epoch).collect(),
            parts.iter().map(|(_, clinic)| *clinic).collect(),
        )
    };
    let part = |row: &tokio_postgres::Row| (Key { hardware: row.get(0), epoch: row.get(1) }, row.get(2));
    // One that is known never changes, and is not locked: events come to these in an order of their own.
    let (hardware, epochs, clinics) = columns(parts);
    let rows = tx.query(&known, &[&hardware, &epochs, &clinics]).await?;
    let mut out: BTreeMap<Part, i64> = rows.iter().map(|row| (part(row), row.get(3))).collect();
    let nameless: BTreeSet<Part> = parts.iter().filter(|part| !out.contains_key(part)).copied().collect();
    if !nameless.is_empty() {
        let (hardware, epochs, clinics) = columns(&nameless);
        let drawn: Vec<i64> = nameless.iter().map(|_| draw()).collect();
        let rows = tx.query(&name, &[&hardware, &epochs, &clinics, &drawn]).await?;
        out.extend(rows.iter().map(|row| (part(row), row.get(3))));
    }
    Ok(out)
}

/// 64 bits that nobody can guess: of a random id's two halves, each has bits that say what it is.
fn draw() -> i64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    (high ^ low).cast_signed()
}

/// Writes what the transaction added.
pub(crate) async fn write(tx: &Transaction<'_>, entries: &BTreeMap<Key, Entry>) -> Result<(), Error> {
    let changed: Vec<(&Key, &Uuid, &Claim)> = entries
        .iter()
        .flat_map(|(key, entry)| entry.claims.iter().map(move |(clinic, claim)| (key, clinic, claim)))
        .filter(|(_, _, claim)| !claim.new.is_empty())
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let hardware: Vec<Uuid> = changed.iter().map(|(key, ..)| key.hardware).collect();
    let epochs: Vec<i64> = changed.iter().map(|(key, ..)| key.epoch).collect();
    let clinics: Vec<Uuid> = changed.iter().map(|(_, clinic, _)| **clinic).collect();
    let seqs: Vec<String> = changed.iter().map(|(.., claim)| claim.new.to_string()).collect();
    let stretches: Vec<Vec<u8>> = changed.iter().map(|(.., claim)| claim.order.to_bytes()).collect();
    let statement = tx.prepare_cached(WRITE).await?;
    let values: [&(dyn ToSql + Sync); 5] = [&hardware, &epochs, &clinics, &seqs, &stretches];
    tx.execute(&statement, &values).await?;
    Ok(())
}
