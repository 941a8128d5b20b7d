//! What leaves the quarantine untaken: for its age, or since its clinic has too much there.
//!
//! The promise: a frame that goes leaves a gap `expired` at the time at which it was measured, and in the time of the clinic
//! whose frame it is: when it came, its device may have been another clinic's. What another clinic's gateway brought tells
//! nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kinara_store::{Client, Pool};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::assign::Assignment;
use crate::batch::Content;
use crate::directory::{self, Directory};
use crate::gaps::{self, Asked, LetGo, Within};
use crate::plan::{Key, LONGEST_FRAME_US, NOT_BEFORE_US};
use crate::sweep::Policy;
use crate::write::DAY_US;
use crate::{Error, quarantine};

/// Quarantined things that expire in a transaction.
const SLICE: i64 = 5_000;
/// What leaves, and what is needed to say whose its number may be.
const LEAVES: &str = "
    q.id, (SELECT id FROM hardware h WHERE h.hardware_id = q.hardware_id), q.epoch, q.received_at,
      CASE WHEN q.what = 'frame' AND q.replayed_at IS NULL AND q.reason <> 'foreign_gateway' THEN q.seq END,
      q.fit, q.tenant_id";
/// And what is needed to say when it was: of frames, which are small.
const FRAME: &str = "q.hardware_id, CASE WHEN q.what = 'frame' THEN q.payload END";

/// What goes of one clinic: `$2` things or `$3` bytes too many, the oldest first. What another clinic's gateway brought tells
/// nothing: that one's word is not believed.
fn excessive(of_a_clinic: bool) -> String {
    let whose = if of_a_clinic { "tenant_id = $1" } else { "tenant_id IS NULL AND $1::uuid IS NOT NULL" };
    format!(
        "SELECT {LEAVES}
         FROM (
           SELECT id FROM (
             SELECT id, row_number() OVER w AS place, sum(octet_length(payload)) OVER w - octet_length(payload) AS before
             FROM (SELECT id, received_at, payload FROM quarantine WHERE {whose} ORDER BY received_at LIMIT {SLICE}) oldest
             WINDOW w AS (ORDER BY received_at, id)) ranked
           WHERE place <= $2 OR before < $3) old
         JOIN quarantine q ON q.id = old.id"
    )
}

/// What goes for its age.
fn old() -> String {
    format!(
        "SELECT {LEAVES} FROM (SELECT id FROM quarantine WHERE received_at < $1 ORDER BY received_at LIMIT {SLICE}) old
         JOIN quarantine q ON q.id = old.id"
    )
}

/// How much more a clinic has in quarantine than it may.
pub(crate) struct Excess {
    clinic: Uuid,
    items: i64,
    bytes: i64,
}

/// Which clinics have too much there.
pub(crate) async fn excess(pool: &Pool, policy: &Policy) -> Result<Vec<Excess>, Error> {
    let limits: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&policy.quarantine_rows, &policy.quarantine_bytes];
    let rows = pool
        .get()
        .await?
        .query("SELECT clinic, items, bytes FROM ts.quarantine_excess($1, $2)", &limits)
        .await?;
    Ok(rows.iter().map(|row| Excess { clinic: row.get(0), items: row.get(1), bytes: row.get(2) }).collect())
}

/// Takes out what a clinic has too much; gives how many things.
pub(crate) async fn of_clinic(pool: &Pool, excess: &Excess, now: Timestamp) -> Result<u64, Error> {
    let mut client = pool.get().await?;
    let sql = excessive(!excess.clinic.is_nil());
    let rows = client.query(&sql, &[&excess.clinic, &excess.items, &excess.bytes]).await?;
    expire(&mut client, &rows, now).await
}

/// Takes out what came before a time; gives how many things.
pub(crate) async fn aged(pool: &Pool, before: Timestamp, now: Timestamp) -> Result<u64, Error> {
    let mut client = pool.get().await?;
    let rows = client.query(&old(), &[&before]).await?;
    expire(&mut client, &rows, now).await
}

/// A frame that left the quarantine.
struct Gone {
    key: Key,
    seq: u64,
    received: Timestamp,
    named: bool,
    clinic: Uuid,
}

/// One whose name is believed as far as its clinic can speak of it.
fn gone(row: &Row) -> Option<Gone> {
    Some(Gone {
        key: Key { hardware: row.get::<_, Option<Uuid>>(1)?, epoch: row.get::<_, Option<i64>>(2)? },
        seq: row.get::<_, Option<i64>>(4)?.unsigned_abs(),
        received: row.get(3),
        named: quarantine::is_named(row.get(5)),
        clinic: row.get::<_, Option<Uuid>>(6)?,
    })
}

/// Takes things out of the quarantine; gives how many. Those whose epochs are too wide to be read at once go in parts.
async fn expire(client: &mut Client, rows: &[Row], now: Timestamp) -> Result<u64, Error> {
    let (mut left, mut gone) = (vec![rows], 0);
    while let Some(some) = left.pop() {
        match expire_at_once(client, some, now).await {
            Err(error) if error.is_too_wide() && some.len() > 1 => {
                let (first, second) = some.split_at(some.len() / 2);
                left.extend([second, first]);
            }
            done => gone += done?,
        }
    }
    Ok(gone)
}

/// Takes them out in one transaction. Frames leave a gap `expired`. Which numbers are a clinic's is asked here: a
/// frame that was refused for its time was never asked whose it is, and any clinic may have any frame refused. It is asked
/// before, so many epochs at a time: however many there are and however often their device was given on, no statement takes long.
async fn expire_at_once(client: &mut Client, rows: &[Row], now: Timestamp) -> Result<u64, Error> {
    let mut asked = Asked::new();
    for one in rows.iter().filter_map(gone) {
        gaps::ask(&mut asked, (one.key, one.clinic), one.received);
    }
    let asked: Vec<_> = asked.iter().collect();
    let mut its = BTreeMap::new();
    for part in asked.chunks(gaps::ASKED) {
        let tx = client.transaction().await?;
        its.extend(gaps::may_be_its(&tx, part.iter().copied()).await?);
        tx.commit().await?;
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let tx = client.transaction().await?;
    let left = tx
        .query(&format!("DELETE FROM quarantine q WHERE q.id = ANY($1) RETURNING {LEAVES}, {FRAME}"), &[&ids])
        .await?;
    let mut told = LetGo::new("expired");
    let mut by_device: BTreeMap<Option<&str>, Vec<(&Row, Gone)>> = BTreeMap::new();
    for (row, one) in left.iter().filter_map(|row| Some((row, gone(row)?))) {
        if its.get(&(one.key, one.clinic)).is_some_and(|seqs| seqs.contains(one.seq)) {
            by_device.entry(row.get(7)).or_default().push((row, one));
        }
    }
    let devices: Vec<_> = by_device.into_iter().collect();
    for some in devices.chunks(directory::SOME) {
        let names: Vec<&str> = some.iter().filter_map(|(name, _)| *name).collect();
        let directory = Directory::load(&tx, &[], &names, directory::ALL).await?;
        for (name, frames) in some {
            let hardware = name.and_then(|name| directory.hardware(name));
            let assignments = hardware.map_or(&[][..], |hardware| hardware.assignments.as_slice());
            for (row, one) in frames {
                let times = when(row, one, assignments);
                told.add_within(within(assignments, times), one.key, one.seq, times, one.named);
            }
        }
    }
    told.tell(&tx, now).await?;
    tx.commit().await?;
    Ok(left.len() as u64)
}

/// When a frame was: as it says itself, unless that is another clinic's time or none that is believed. Then it was when it came, or
/// as near to it as its clinic had the device.
fn when(row: &Row, one: &Gone, assignments: &[Assignment]) -> (i64, i64) {
    let received_us = one.received.as_microsecond();
    let is_its = |times: &(i64, i64)| {
        let mut over = assignments.iter().filter(|assignment| overlap(assignment, *times)).peekable();
        over.peek().is_none() || over.any(|assignment| assignment.tenant == one.clinic)
    };
    said(row, received_us).filter(is_its).unwrap_or_else(|| {
        let at_us = nearest(assignments, one.clinic, received_us);
        (at_us, at_us)
    })
}

/// What a frame says of its time, where that can be.
fn said(row: &Row, received_us: i64) -> Option<(i64, i64)> {
    let batch = quarantine::batch_of(row.get(7), row.get::<_, Option<&[u8]>>(8)?, row.get(5))?;
    let frame = batch.devices.first()?.frames.first()?;
    let (first_us, last_us) = (frame.first_us, frame.last_us);
    let is_known =
        frame.fit.is_some() && !matches!(frame.content, Content::Refused("damaged" | "no_time", _));
    let is_believed = first_us >= NOT_BEFORE_US
        && last_us <= received_us.saturating_add(DAY_US)
        && last_us.saturating_sub(first_us) <= LONGEST_FRAME_US;
    (is_known && is_believed).then_some((first_us, last_us))
}

fn end_us(assignment: &Assignment) -> i64 {
    assignment.to.map_or(i64::MAX, |to| to.time_us)
}

fn overlap(assignment: &Assignment, (first_us, last_us): (i64, i64)) -> bool {
    assignment.from.time_us <= last_us && first_us < end_us(assignment)
}

/// The moment of a clinic's time with a device that is nearest to another moment; that one itself, where it never had it.
fn nearest(assignments: &[Assignment], clinic: Uuid, at_us: i64) -> i64 {
    assignments
        .iter()
        .filter(|assignment| assignment.tenant == clinic)
        .map(|assignment| at_us.min(end_us(assignment).saturating_sub(1)).max(assignment.from.time_us))
        .min_by_key(|own_us| own_us.abs_diff(at_us))
        .unwrap_or(at_us)
}

/// In which assignments a time begins and ends.
fn within(assignments: &[Assignment], (first_us, last_us): (i64, i64)) -> Within {
    let at = |at_us| assignments.iter().find(|one| overlap(one, (at_us, at_us))).map(|one| one.id);
    (at(first_us), at(last_us))
}
