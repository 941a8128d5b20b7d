//! Erasing a person.
//!
//! The promise: once a tombstone stands, nothing of this person is written any more, and the job deletes what there is,
//! slice by slice, as often as it takes: of whoever was merged into them, too, and in whichever order people merge, correct
//! and erase. What others measured stays: readings that a boundary gives to somebody else are given to them first. The
//! tombstone outlives it; after a backup from before was restored, the tombstones kept elsewhere are put back ([`restore`]),
//! and everything is deleted again. What stays of a person is in [`KEPT`].

mod waiting;

use jiff::Timestamp;
use kinara_protocol::envelope::Event;
use kinara_protocol::frame::Epoch;
use kinara_store::{Client, Pool, Transaction};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::assign::{Moment, possible};
use crate::batch::Content;
use crate::directory::{self, Directory, Hardware};
use crate::gaps::LetGo;
use crate::plan::Key;
use crate::{Error, Work, events, quarantine};

/// Days of one wearer that are deleted in a transaction.
const DAYS: i32 = 1;

/// Refused things that are looked at in a transaction.
const PAGE: i64 = 500;

/// Where a person's number stays, and nothing else of them: table, column, why.
pub const KEPT: [(&str, &str, &str); 9] = [
    ("public.tombstones", "user_id", "by it what comes late is known, and is not taken"),
    ("public.device_assignments", "user_id", "by it late frames are known as theirs"),
    ("public.audit_log", "target", "who did what when; the person is a number that names nobody any more"),
    ("public.audit_log", "detail", "as target"),
    (
        "ts.days",
        "user_id",
        "until the second night: a writer that had begun before may still bring something of such a day",
    ),
    ("public.moves", "from_user", "until it is settled: a writer may still bring what is another's"),
    ("public.moves", "to_user", "until it is settled: a writer may still bring what is theirs, to be erased"),
    ("jobs._private_jobs", "payload", "the job that erases them, until it is done"),
    ("jobs._private_jobs", "key", "as payload"),
];

/// An erased person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The clinic.
    pub tenant: Uuid,
    /// Who they were.
    pub user: Uuid,
    /// Since when.
    pub erased_at: Timestamp,
}

/// Deletes what there is of a wearer who has a tombstone; gives how many rows that were.
pub fn erase(pool: &Pool, tenant: Uuid, user: Uuid) -> Work<'_, Result<u64, Error>> {
    Box::pin(erase_one(pool, tenant, user))
}

async fn erase_one(pool: &Pool, tenant: Uuid, user: Uuid) -> Result<u64, Error> {
    give_others_theirs(pool, tenant, user).await?;
    let mut total = refused(pool, tenant, user).await?;
    total += waiting::take_out(pool, tenant, user).await?;
    #[cfg(feature = "sabotage")]
    if crate::sabotage::is(crate::sabotage::Sabotage::EraseNothing) {
        return Ok(total);
    }
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT ts.erase($1, $2, $3)").await?;
    loop {
        let gone: i64 = client.query_one(&statement, &[&tenant, &user, &DAYS]).await?.get(0);
        if gone == 0 {
            return Ok(total);
        }
        total += gone.unsigned_abs();
    }
}

/// Moves from them and to them, the first first.
const MOVES: &str = "
    SELECT m.id FROM moves m JOIN tombstones t ON t.tenant_id = $1 AND t.user_id = $2
    WHERE m.settled_at IS NULL AND $1 IN (m.tenant_id, m.to_tenant) AND $2 IN (m.from_user, m.to_user)
    ORDER BY m.asked_at, m.id";

/// Carries out the moves that are open: what is another's is theirs before this person's readings go, and what is this
/// person's goes with them. Each is looked through from its beginning, slice by slice: what went on before may have passed by
/// what a writer brought since.
async fn give_others_theirs(pool: &Pool, tenant: Uuid, user: Uuid) -> Result<(), Error> {
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT ts.move($1, $2)").await?;
    loop {
        let mut moved = false;
        for row in client.query(MOVES, &[&tenant, &user]).await? {
            let id: Uuid = row.get(0);
            client.execute("UPDATE moves SET reached = NULL WHERE id = $1", &[&id]).await?;
            loop {
                // -1: none in this slice, and there are more.
                match client.query_one(&statement, &[&id, &DAYS]).await?.get::<_, i64>(0) {
                    0 => break,
                    rows => moved |= rows > 0,
                }
            }
        }
        if !moved {
            return Ok(());
        }
    }
}

/// What was refused of the devices that they had, whichever clinic's gateway brought it.
const REFUSED: &str = "
    SELECT q.id, q.what, q.hardware_id, q.epoch, q.seq, q.payload, q.fit, q.received_at,
      q.replayed_at IS NULL AND q.reason <> 'foreign_gateway' AND q.tenant_id = $1 AS believed,
      (SELECT min(f.ref_utc_us) FROM frame_times f WHERE f.hardware = h.id AND f.ref_utc_us > 0 AND f.epoch IN (
         SELECT q.epoch UNION ALL
         SELECT c.alias FROM ledger_claims c WHERE c.hardware = h.id AND c.epoch = q.epoch AND c.alias IS NOT NULL)),
      (SELECT max(l.highest_time) FROM ledger l WHERE l.hardware = h.id AND l.epoch IN (
         SELECT q.epoch UNION ALL
         SELECT c.alias FROM ledger_claims c WHERE c.hardware = h.id AND c.epoch = q.epoch AND c.alias IS NOT NULL))
    FROM hardware h JOIN quarantine q ON q.hardware_id = h.hardware_id AND q.what <> 'decision'
    WHERE h.id IN (SELECT a.hardware_id FROM device_assignments a JOIN tombstones t USING (tenant_id, user_id)
                   WHERE a.tenant_id = $1 AND a.user_id = $2) AND q.id > $3
    ORDER BY q.id LIMIT $4";

/// Deletes what was refused and is theirs, or may be, by the rule by which frames are given to wearers; a gap says so.
async fn refused(pool: &Pool, tenant: Uuid, user: Uuid) -> Result<u64, Error> {
    let (mut after, mut total, mut page) = (Uuid::nil(), 0, PAGE);
    let mut client = pool.get().await?;
    loop {
        match refused_page(&mut client, (tenant, user), after, page).await {
            Ok(None) => return Ok(total),
            Ok(Some((last, gone))) => (after, total) = (last, total + gone),
            Err(error) if error.is_too_wide() && page > 1 => page /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// One page of it, in one transaction: the last one that was looked at, and how many went. `None`: none is left.
async fn refused_page(
    client: &mut Client,
    (tenant, user): (Uuid, Uuid),
    after: Uuid,
    page: i64,
) -> Result<Option<(Uuid, u64)>, Error> {
    let tx = client.transaction().await?;
    let rows = tx.query(REFUSED, &[&tenant, &user, &after, &page]).await?;
    let Some(last) = rows.last().map(|row| row.get::<_, Uuid>(0)) else { return Ok(None) };
    let mut hardware: Vec<&str> = rows.iter().map(|row| row.get(2)).collect();
    hardware.sort_unstable();
    hardware.dedup();
    let mut theirs: Vec<Theirs> = Vec::new();
    for some in hardware.chunks(directory::SOME) {
        let directory = Directory::load(&tx, &[], some, directory::ALL).await?;
        let known = rows.iter().filter_map(|row| Some((row, directory.hardware(row.get(2))?)));
        theirs.extend(known.filter_map(|(row, hardware)| Theirs::of(row, hardware, tenant, user)));
    }
    let ids: Vec<Uuid> = theirs.iter().map(|one| one.id).collect();
    let gone = tx.execute("DELETE FROM quarantine WHERE id = ANY($1)", &[&ids]).await?;
    tell(&tx, theirs.into_iter().map(|one| one.what).collect()).await?;
    tx.commit().await?;
    Ok(Some((last, gone)))
}

/// Something that goes before it was written.
struct Gone {
    /// The frame, where its number is believed.
    frame: Option<(Key, u64)>,
    /// Its number is a name, and no count.
    named: bool,
    moment: Moment,
}

/// Something refused that goes.
struct Theirs {
    id: Uuid,
    what: Gone,
}

impl Theirs {
    fn of(row: &Row, hardware: &Hardware, tenant: Uuid, user: Uuid) -> Option<Self> {
        let moment = moment(row);
        let is_theirs = possible(&hardware.assignments, &moment)
            .iter()
            .any(|one| one.erased && (one.tenant, one.user) == (tenant, user));
        let seq = row.get::<_, Option<i64>>(4).filter(|_| row.get::<_, &str>(1) == "frame" && row.get(8));
        let key = Key { hardware: hardware.id, epoch: moment.epoch.0 as i64 };
        let frame = seq.map(|seq| (key, seq.unsigned_abs()));
        is_theirs.then(|| Self {
            id: row.get(0),
            what: Gone { frame, named: quarantine::is_named(row.get(6)), moment },
        })
    }
}

/// What is known of something refused: what it says itself, or, where it cannot be read, when its epoch was, or when it
/// came.
fn moment(row: &Row) -> Moment {
    let read = match row.get(1) {
        "event" => Event::decode(row.get::<_, &[u8]>(5)).ok().map(|event| events::moment(&event)),
        "frame" => of_frame(row),
        _ => None,
    };
    read.unwrap_or_else(|| {
        // Without a number its name tells nothing.
        let seq = row.get::<_, Option<i64>>(4).and_then(|seq| u32::try_from(seq).ok());
        let epoch = row.get::<_, Option<i64>>(3).filter(|_| seq.is_some());
        let (epoch, seq) = (Epoch(epoch.unwrap_or_default() as u64), seq.unwrap_or_default());
        let received_us = row.get::<_, Timestamp>(7).as_microsecond();
        let known_us = row.get::<_, Option<Timestamp>>(10).map(Timestamp::as_microsecond);
        let first_us = row.get::<_, Option<i64>>(9).or(known_us).unwrap_or(received_us);
        Moment {
            epoch,
            seq,
            first_us,
            last_us: known_us.unwrap_or(first_us).max(first_us),
            uncertainty_us: 0,
        }
    })
}

fn of_frame(row: &Row) -> Option<Moment> {
    let batch = quarantine::batch_of(row.get(2), row.get(5), row.get(6))?;
    let device = batch.devices.first()?;
    let frame = device.frames.first()?;
    let is_known =
        frame.fit.is_some() && !matches!(frame.content, Content::Refused("damaged" | "no_time", _));
    is_known.then_some(Moment {
        epoch: device.epoch,
        seq: frame.seq,
        first_us: frame.first_us,
        last_us: frame.last_us,
        uncertainty_us: frame.uncertainty_us,
    })
}

/// Frames that are not kept leave a gap `erased`, as those do that come late.
async fn tell(tx: &Transaction<'_>, told: Vec<Gone>) -> Result<(), Error> {
    let mut gone = LetGo::new("erased");
    for one in told {
        let Some((key, seq)) = one.frame else { continue };
        gone.add(key, seq, (one.moment.first_us, one.moment.last_us), one.named);
    }
    let now: Timestamp = tx.query_one("SELECT now()", &[]).await?.get(0);
    gone.tell(tx, now).await
}

/// All tombstones there are: to be kept beside the backups, not only in them.
pub async fn tombstones(pool: &Pool) -> Result<Vec<Tombstone>, Error> {
    let client = pool.get().await?;
    let rows = client
        .query("SELECT tenant_id, user_id, erased_at FROM tombstones ORDER BY erased_at, user_id", &[])
        .await?;
    Ok(rows.iter().map(tombstone).collect())
}

fn tombstone(row: &Row) -> Tombstone {
    Tombstone { tenant: row.get(0), user: row.get(1), erased_at: row.get(2) }
}

/// Puts tombstones back, those of clinics that are there; the database makes a job of each new one, and the next night looks
/// for what a backup brought back of the others. Gives how many are to be erased again.
pub async fn restore(pool: &Pool, tombstones: &[Tombstone]) -> Result<u64, Error> {
    let client = pool.get().await?;
    let mut again = 0;
    for stone in tombstones {
        again += client
            .execute(
                "INSERT INTO tombstones AS t (tenant_id, user_id, erased_at)
                 SELECT id, $2, $3 FROM tenants WHERE id = $1
                 ON CONFLICT (tenant_id, user_id) DO UPDATE SET settled_at = NULL WHERE t.settled_at IS NOT NULL",
                &[&stone.tenant, &stone.user, &stone.erased_at],
            )
            .await?;
    }
    Ok(again)
}

/// What erasing again did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Rows that had come back.
    pub rows: u64,
    /// Persons of whom something may be left.
    pub failed: u64,
}

/// Erases again whoever was erased since `young_from`, was not yet found to be gone, or has a day's row in `ts.days`: what a
/// restored backup brought back, or a slice that was cut short. One that fails is told, is tried the next night, and stops no other.
pub async fn erase_again(pool: &Pool, young_from: Timestamp, now: Timestamp) -> Result<Again, Error> {
    let due = pool
        .get()
        .await?
        .query(
            "SELECT t.tenant_id, t.user_id, t.erased_at FROM tombstones t
             WHERE t.settled_at IS NULL OR t.erased_at >= $1 OR (t.tenant_id, t.user_id) IN (
               SELECT d.tenant_id, d.user_id FROM ts.erased_with_days() d)
             ORDER BY t.settled_at NULLS FIRST, t.erased_at, t.user_id",
            &[&young_from],
        )
        .await?;
    let mut out = Again::default();
    for stone in due.iter().map(tombstone) {
        match settle(pool, &stone, now).await {
            Ok(rows) => out.rows += rows,
            Err(error) => {
                tracing::error!(tenant = %stone.tenant, user = %stone.user, %error, "an erased wearer may not be gone");
                out.failed += 1;
            }
        }
    }
    Ok(out)
}

async fn settle(pool: &Pool, stone: &Tombstone, now: Timestamp) -> Result<u64, Error> {
    let rows = erase(pool, stone.tenant, stone.user).await?;
    let client = pool.get().await?;
    let sql = "UPDATE tombstones SET settled_at = $3 WHERE tenant_id = $1 AND user_id = $2";
    client.execute(sql, &[&stone.tenant, &stone.user, &now]).await?;
    Ok(rows)
}
