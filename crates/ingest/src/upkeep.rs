//! What follows from decisions later, a bounded slice at a time: decisions that waited for something, frames that found
//! their wearer after all, readings that are stored under the wrong one, secrets that are of no use any more.
//!
//! The promise: whatever changed an assignment (a box's decision, an operator's command, a page), the frames that had been
//! refused for want of it go through the ordinary write again without anybody asking; the database marks the hardware in
//! the same transaction. A slice that is interrupted is done again. Nothing here holds up the writers for longer than one
//! page of frames or some days of one wearer's readings. That something has its turn is committed before the turn: whatever
//! ends it, the next ones have theirs.

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_protocol::envelope::{Decision, decision::What};
use kinara_store::Pool;
use prost::Message as _;
use uuid::Uuid;

use crate::decisions::{MAY_PASS, Verdict};
use crate::quarantine::{self, Which};
use crate::{Error, Work, Writer, timestamp};

/// How much is done at once.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Decisions that are tried again.
    pub decisions: i64,
    /// Pages of refused frames and events, 500 each.
    pub pages: u32,
    /// Moves of readings that are worked on.
    pub moves: i64,
    /// Days of readings that are moved in a transaction.
    pub days: i32,
    /// After a change, what had begun before it may still be written: so long things are looked at again, in seconds.
    pub settle_s: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { decisions: 100, pages: 4, moves: 4, days: 1, settle_s: 60 }
    }
}

/// What was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Decisions carried out after all.
    pub decisions: u64,
    /// Frames and events taken after all.
    pub taken: u64,
    /// Rows that moved to the right wearer.
    pub moved: u64,
    /// Introductions and revocations that ended by their time.
    pub expired: u64,
    /// Decisions, devices' frames and moves that failed, and are tried again.
    pub failed: u64,
}

/// Why frames and events are refused for want of an assignment.
const FOR_WANT_OF_ONE: [&str; 5] = ["no_assignment", "unsure", "straddle", "foreign_gateway", "order"];

/// Does a slice of what is due. Each step stands alone: one that fails is told at the end, and stops none behind it.
pub fn keep<'a>(
    writer: &'a Writer,
    pool: &'a Pool,
    clock: &'a dyn Clock,
    bounds: &'a Bounds,
) -> Work<'a, Result<Done, Error>> {
    Box::pin(all_steps(writer, pool, clock, bounds))
}

async fn all_steps(writer: &Writer, pool: &Pool, clock: &dyn Clock, bounds: &Bounds) -> Result<Done, Error> {
    let now = timestamp(clock.utc_us());
    let mut done = Done::default();
    let steps = [
        decisions(writer, pool, now, bounds, &mut done).await,
        frames(writer, pool, clock, bounds, &mut done).await,
        moves(pool, now, bounds, &mut done).await,
        expire(pool, now).await.map(|expired| done.expired = expired),
    ];
    steps.into_iter().collect::<Result<Vec<()>, Error>>().map(|_| done)
}

/// Ever more seldom: the longer one waits, the longer until it is tried again. Clinics take turns: a box that decides what can
/// never be carried out waits for itself.
const WAITING: &str = "
    SELECT q.id, q.gateway_id, q.payload, q.reason, q.received_at
    FROM (SELECT DISTINCT g.tenant_id FROM gateways g WHERE g.retired_at IS NULL) t
    CROSS JOIN LATERAL (
      SELECT w.*, row_number() OVER (ORDER BY w.tried_at NULLS FIRST, w.received_at) AS place FROM (
        SELECT q.id, q.gateway_id, q.payload, q.reason, q.received_at, q.tried_at FROM quarantine q
        WHERE q.tenant_id = t.tenant_id AND q.what = 'decision' AND q.replayed_at IS NULL AND q.reason = ANY($1)
          AND EXISTS (SELECT FROM gateways g WHERE g.id = q.gateway_id AND g.retired_at IS NULL)
          AND (q.tried_at IS NULL OR $2::timestamptz - q.tried_at >= (q.tried_at - q.received_at) / 4)
        ORDER BY q.tried_at NULLS FIRST, q.received_at LIMIT $3) w) q
    ORDER BY q.place, q.tried_at NULLS FIRST, q.received_at LIMIT $3";

struct Waiting<'a> {
    id: Uuid,
    gateway: Uuid,
    decision: Decision,
    why: &'a str,
    received: Timestamp,
}

/// As they are made where several are made at once: a wearer is added before they are given a device, and a device is
/// taken back before it is given on.
fn rank(decision: &Decision) -> u8 {
    match decision.what {
        Some(What::WearerAdded(_)) => 0,
        Some(What::ConsentRecorded(_) | What::ConsentWithdrawn(_)) => 1,
        Some(What::Unassigned(_)) => 2,
        Some(What::Assigned(_)) => 3,
        Some(What::Paired(_) | What::Forgotten(_)) | None => 4,
    }
}

/// Whether the database is away: then nothing else is tried.
fn is_away(error: &Error) -> bool {
    matches!(error, Error::Pool(_))
}

async fn decisions(
    writer: &Writer,
    pool: &Pool,
    now: Timestamp,
    bounds: &Bounds,
    done: &mut Done,
) -> Result<(), Error> {
    let client = pool.get().await?;
    let rows = client.query(WAITING, &[&MAY_PASS.as_slice(), &now, &bounds.decisions]).await?;
    drop(client);
    let mut waiting: Vec<Waiting<'_>> = rows
        .iter()
        .filter_map(|row| {
            let decision = Decision::decode(row.get::<_, &[u8]>(2)).ok()?;
            Some(Waiting {
                id: row.get(0),
                gateway: row.get(1),
                decision,
                why: row.get(3),
                received: row.get(4),
            })
        })
        .collect();
    waiting.sort_by_key(|one| (one.gateway, one.decision.at_utc_us, one.received, rank(&one.decision)));
    for one in &waiting {
        match try_again(writer, pool, now, one).await {
            Ok(carried_out) => done.decisions += u64::from(carried_out),
            Err(error) if is_away(&error) => return Err(error),
            Err(error) => {
                tracing::error!(gateway = %one.gateway, id = %one.id, %error, "a decision waits on; tried again");
                done.failed += 1;
            }
        }
    }
    Ok(())
}

/// Tries a decision again; whether it was carried out.
async fn try_again(writer: &Writer, pool: &Pool, now: Timestamp, one: &Waiting<'_>) -> Result<bool, Error> {
    let client = pool.get().await?;
    client.execute("UPDATE quarantine SET tried_at = $2 WHERE id = $1", &[&one.id, &now]).await?;
    // Deciding takes a connection of its own.
    drop(client);
    let verdict = writer.decide(one.gateway, &one.decision, true).await?;
    // Refused for another reason, it is in quarantine under that one now. A box that was retired meanwhile is not heard,
    // and what it said stays for a person to look at.
    let over = match &verdict {
        Verdict::Refused(refusal) => refusal.reason != one.why,
        Verdict::Stranger => false,
        Verdict::Applied | Verdict::Duplicate | Verdict::Erased => true,
    };
    let client = pool.get().await?;
    if verdict == Verdict::Erased {
        client.execute("DELETE FROM quarantine WHERE id = $1", &[&one.id]).await?;
    } else if over {
        client.execute("UPDATE quarantine SET replayed_at = $2 WHERE id = $1", &[&one.id, &now]).await?;
    }
    Ok(verdict == Verdict::Applied)
}

/// A device whose refused frames are to be taken again.
struct Mark<'a> {
    hardware: Uuid,
    hardware_id: &'a str,
    asked_at: Timestamp,
    upto: Uuid,
}

/// Clinics take turns, and so do the devices of each. One that nobody has looked at since it was marked comes first: marks stay
/// for a while after their device is done, and must not keep a later one waiting.
const MARKS: &str = "
    SELECT m.hardware, h.hardware_id, m.asked_at, m.upto
    FROM (
      SELECT r.*, row_number() OVER (
        PARTITION BY (SELECT a.tenant_id FROM device_assignments a WHERE a.hardware_id = r.hardware
          ORDER BY a.valid_from DESC LIMIT 1)
        ORDER BY coalesce(r.looked_at >= r.asked_at, false), r.looked_at NULLS FIRST, r.asked_at) AS place
      FROM replays r) m
    JOIN hardware h ON h.id = m.hardware
    ORDER BY m.place, coalesce(m.looked_at >= m.asked_at, false), m.looked_at NULLS FIRST, m.asked_at LIMIT $1";

async fn frames(
    writer: &Writer,
    pool: &Pool,
    clock: &dyn Clock,
    bounds: &Bounds,
    done: &mut Done,
) -> Result<(), Error> {
    let mut left = bounds.pages;
    let rows = pool.get().await?.query(MARKS, &[&i64::from(bounds.pages)]).await?;
    for row in &rows {
        if left == 0 {
            break;
        }
        let mark =
            Mark { hardware: row.get(0), hardware_id: row.get(1), asked_at: row.get(2), upto: row.get(3) };
        match take_again(writer, pool, clock, bounds, &mark, &mut left).await {
            Ok(taken) => done.taken += taken,
            Err(error) if is_away(&error) => return Err(error),
            Err(error) => {
                tracing::error!(device = mark.hardware_id, %error, "refused frames wait on; tried again");
                done.failed += 1;
            }
        }
    }
    Ok(())
}

/// The mark's own time is the database's, and so is all that it is compared with.
const LOOKED_AT: &str =
    "UPDATE replays SET looked_at = clock_timestamp() WHERE hardware = $1 AND asked_at = $2";
const REACHED: &str =
    "UPDATE replays SET upto = $3, looked_at = clock_timestamp() WHERE hardware = $1 AND asked_at = $2";
const OVER: &str = "
    DELETE FROM replays WHERE hardware = $1 AND asked_at = $2
      AND asked_at < clock_timestamp() - make_interval(secs => $3)";

/// Takes a device's refused frames again, as many pages as are left; gives how many frames were taken.
async fn take_again(
    writer: &Writer,
    pool: &Pool,
    clock: &dyn Clock,
    bounds: &Bounds,
    mark: &Mark<'_>,
    left: &mut u32,
) -> Result<u64, Error> {
    pool.get().await?.execute(LOOKED_AT, &[&mark.hardware, &mark.asked_at]).await?;
    let which = Which { hardware_id: Some(mark.hardware_id), reasons: &FOR_WANT_OF_ONE };
    let (mut upto, mut whole, mut taken) = (mark.upto, false, 0);
    while *left > 0 && !whole {
        // One that fails has had its page, too.
        *left -= 1;
        if let Some((next, replayed)) = quarantine::replay_page(writer, pool, clock, which, upto).await? {
            upto = next;
            taken += replayed.taken;
        } else {
            *left += 1;
            whole = true;
        }
    }
    let client = pool.get().await?;
    if whole {
        upto = Uuid::nil();
        client.execute(OVER, &[&mark.hardware, &mark.asked_at, &(bounds.settle_s as f64)]).await?;
    }
    client.execute(REACHED, &[&mark.hardware, &mark.asked_at, &upto]).await?;
    Ok(taken)
}

/// Moves that are tried at once: clinics take turns, and of each the longest untried comes first.
const DUE: &str = "
    UPDATE moves SET tried_at = $1, pass_at = CASE WHEN reached IS NULL THEN $1 ELSE coalesce(pass_at, $1) END
    WHERE id = ANY(ARRAY(
      SELECT m.id FROM moves m WHERE m.settled_at IS NULL AND m.id = ANY(ARRAY(
        SELECT o.id FROM (
          SELECT o.id, o.tried_at, o.asked_at,
            row_number() OVER (PARTITION BY o.tenant_id ORDER BY o.tried_at NULLS FIRST, o.asked_at, o.id) AS place
          FROM moves o WHERE o.settled_at IS NULL) o
        ORDER BY o.place, o.tried_at NULLS FIRST, o.asked_at, o.id LIMIT $2))
      FOR UPDATE SKIP LOCKED))
    RETURNING id, asked_at, tenant_id, pass_at";

/// A move is over when a pass found nothing more that began after all had come that a writer had begun before it, and when no
/// earlier move could bring any more what this one has to pass on.
const SETTLE: &str = "
    UPDATE moves m SET failed = NULL, settled_at = CASE WHEN $3 AND NOT EXISTS (
      SELECT FROM moves e WHERE (e.settled_at IS NULL OR e.settled_at > m.pass_at) AND (e.asked_at, e.id) < (m.asked_at, m.id)
        AND coalesce(e.to_tenant, e.tenant_id) = m.tenant_id AND e.to_user = m.from_user) THEN $2::timestamptz END
    WHERE id = $1";

async fn moves(pool: &Pool, now: Timestamp, bounds: &Bounds, done: &mut Done) -> Result<(), Error> {
    let client = pool.get().await?;
    let due = client.query(DUE, &[&now, &bounds.moves]).await?;
    let mut due: Vec<(Timestamp, Uuid, Uuid, Timestamp)> =
        due.iter().map(|row| (row.get(1), row.get(0), row.get(2), row.get(3))).collect();
    due.sort_unstable();
    // The statement that fails leaves its connection usable; one that was lost is noticed by the next.
    drop(client);
    for (asked_at, id, tenant, pass_at) in due {
        match move_slice(pool, id, bounds.days).await {
            Ok(moved) => {
                done.moved += u64::try_from(moved).unwrap_or_default();
                let over = moved == 0 && pass_at.duration_since(asked_at).as_secs() > bounds.settle_s;
                pool.get().await?.execute(SETTLE, &[&id, &now, &over]).await?;
            }
            Err(error) => {
                tracing::error!(move_id = %id, %tenant, %error, "readings stay with the wearer before; tried again");
                done.failed += 1;
                let client = pool.get().await?;
                client
                    .execute("UPDATE moves SET failed = $2 WHERE id = $1", &[&id, &error.to_string()])
                    .await?;
            }
        }
    }
    Ok(())
}

/// Rows that moved; -1: none, and there are days that were not looked through.
async fn move_slice(pool: &Pool, id: Uuid, days: i32) -> Result<i64, Error> {
    #[cfg(feature = "sabotage")]
    if crate::sabotage::is(crate::sabotage::Sabotage::MoveNothing) {
        return Ok(0);
    }
    let client = pool.get().await?;
    Ok(client.query_one("SELECT ts.move($1, $2)", &[&id, &days]).await?.get(0))
}

async fn expire(pool: &Pool, now: Timestamp) -> Result<u64, Error> {
    let client = pool.get().await?;
    let introductions = client
        .execute(
            "UPDATE introductions SET state = 'expired', secret = NULL, settled_at = $1
             WHERE state = 'open' AND expires_at <= $1",
            &[&now],
        )
        .await?;
    let revocations = client
        .execute(
            "UPDATE revocations SET settled_at = $1 WHERE settled_at IS NULL AND expires_at <= $1",
            &[&now],
        )
        .await?;
    Ok(introductions + revocations)
}

/// Takes note of a key that a gateway says it signs with. The first is trusted; `true`: this one waits for an operator.
pub async fn note_key(
    tx: &kinara_store::Transaction<'_>,
    gateway: Uuid,
    key: &[u8],
    now: Timestamp,
) -> Result<bool, Error> {
    // A box that draws a key at every start fills no table.
    const MOST: i64 = 8;
    let statement = tx
        .prepare_cached(
            "WITH own AS (SELECT key, trusted_at, ended_at FROM gateway_keys WHERE gateway_id = $1),
                  new AS (
               INSERT INTO gateway_keys (gateway_id, tenant_id, key, seen_at, trusted_at)
               SELECT g.id, g.tenant_id, $2, $3, CASE WHEN EXISTS (SELECT FROM own) THEN NULL ELSE $3::timestamptz END
               FROM gateways g WHERE g.id = $1 AND NOT EXISTS (SELECT FROM own WHERE key = $2)
                 AND (SELECT count(*) FROM own) < $4
               ON CONFLICT DO NOTHING RETURNING trusted_at)
             SELECT NOT EXISTS (SELECT FROM new WHERE trusted_at IS NOT NULL)
               AND NOT EXISTS (SELECT FROM own WHERE key = $2 AND trusted_at IS NOT NULL AND ended_at IS NULL)",
        )
        .await?;
    Ok(tx.query_one(&statement, &[&gateway, &key, &now, &MOST]).await?.get(0))
}
