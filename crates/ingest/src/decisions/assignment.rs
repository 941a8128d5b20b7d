//! Giving a device to a wearer, and taking it back, at the decision's own time.
//!
//! Where an interval goes is decided by [`place`], which knows no database; the rows are locked from reading them to the
//! commit, and the exclusion constraint stands behind it all.

use std::cmp::Ordering;

use jiff::Timestamp;
use kinara_protocol::frame::Epoch;
use kinara_store::Transaction;
use uuid::Uuid;

use super::content::{Content, Frame, Order};
use super::{Refusal, Speaker, Stop, reason, records};
use crate::assign::order_of_names;
use crate::timestamp;

/// The first word of the advisory lock by which decisions about one device take turns.
const LOCK: i64 = 0x6b69_6e61_7261_0002;

/// An assignment as it stands.
#[derive(Debug, Clone)]
struct Held {
    id: Uuid,
    tenant: Uuid,
    user: Uuid,
    consent: Option<Uuid>,
    from: Edge,
    to: Option<Edge>,
}

/// An end of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    at: Timestamp,
    frame: Option<Frame>,
}

impl Edge {
    /// Whether this edge's frame is known to come before another's.
    fn is_named_before(&self, other: &Self) -> bool {
        let (Some(own), Some(other)) = (self.frame, other.frame) else { return false };
        order_of_names(own, other) == Some(Ordering::Less)
    }
}

/// What is asked for.
struct Wish<'a> {
    tenant: Uuid,
    user: Uuid,
    consent: Option<Uuid>,
    from: Edge,
    /// The device is connected to a gateway of the clinic, which could have named a frame.
    connected: bool,
    hardware: &'a str,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// It is so already.
    Nothing,
    /// A new interval, until the next one if there is one.
    Begin {
        /// Ends here: it would cover the new one.
        end: Option<Uuid>,
        until: Option<Edge>,
        /// Under whom frames of the new interval may have been stored already.
        stored_under: Option<Uuid>,
    },
}

fn order(hardware: &str) -> Refusal {
    Refusal::new(
        reason::ORDER,
        format!(
            "the frame that is named for {hardware} is on the wrong side of one that another boundary names"
        ),
    )
}

/// Where a new interval goes among those there are, which are in order of time.
fn place(held: &[Held], wish: &Wish<'_>) -> Result<Change, Refusal> {
    let at = wish.from.at;
    let covering = held.iter().rev().find(|held| held.from.at <= at && held.to.is_none_or(|to| to.at > at));
    if let Some(held) = covering {
        if held.tenant != wish.tenant {
            return Err(Refusal::new(
                reason::ELSEWHERE,
                format!(
                    "{} is another clinic's at this time; that clinic has to end it first",
                    wish.hardware
                ),
            ));
        }
        if held.user == wish.user && (wish.consent.is_none() || held.consent == wish.consent) {
            return Ok(Change::Nothing);
        }
        if wish.from.is_named_before(&held.from) || held.to.is_some_and(|to| to.is_named_before(&wish.from)) {
            return Err(order(wish.hardware));
        }
        let stored_under = (held.user != wish.user).then_some(held.user);
        return Ok(Change::Begin { end: Some(held.id), until: held.to, stored_under });
    }
    let previous = held.iter().rev().find(|held| held.to.is_some_and(|to| to.at <= at));
    let next = held.iter().find(|held| held.from.at > at);
    let before = previous.and_then(|held| held.to).is_some_and(|to| wish.from.is_named_before(&to));
    if before || next.is_some_and(|next| next.from.is_named_before(&wish.from)) {
        return Err(order(wish.hardware));
    }
    let came_from_elsewhere = previous.is_some_and(|held| held.tenant != wish.tenant);
    if came_from_elsewhere && wish.connected && wish.from.frame.is_none() {
        // By time alone a box of the clinic before could go on to name frames that are this clinic's.
        return Err(Refusal::new(
            reason::BOUNDARY,
            format!(
                "{} comes from another clinic and is connected here: its first frame must be named. Assign it again \
                 at the box",
                wish.hardware
            ),
        ));
    }
    let stored_under =
        previous.filter(|held| held.tenant == wish.tenant && held.user != wish.user).map(|held| held.user);
    Ok(Change::Begin { end: None, until: next.map(|next| next.from), stored_under })
}

const HELD: &str = "
    SELECT id, tenant_id, user_id, consent_id, valid_from, from_epoch, from_seq, valid_to, to_epoch, to_seq
    FROM device_assignments WHERE hardware_id = $1 ORDER BY id FOR UPDATE";

async fn hardware_row(tx: &Transaction<'_>, hardware: &str) -> Result<Uuid, Stop> {
    let turn = tx.prepare_cached("SELECT pg_advisory_xact_lock(hashtextextended($1, $2))").await?;
    tx.execute(&turn, &[&hardware, &LOCK]).await?;
    let make = tx
        .prepare_cached("INSERT INTO hardware (id, hardware_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .await?;
    tx.execute(&make, &[&Uuid::now_v7(), &hardware]).await?;
    let find = tx.prepare_cached("SELECT id FROM hardware WHERE hardware_id = $1").await?;
    Ok(tx.query_one(&find, &[&hardware]).await?.get(0))
}

async fn held(tx: &Transaction<'_>, hardware: Uuid) -> Result<Vec<Held>, Stop> {
    let statement = tx.prepare_cached(HELD).await?;
    let edge = |at: Timestamp, epoch: Option<i64>, seq: Option<i64>| Edge {
        at,
        frame: epoch.zip(seq).map(|(epoch, seq)| (Epoch(epoch as u64), seq as u32)),
    };
    let mut held: Vec<Held> = tx
        .query(&statement, &[&hardware])
        .await?
        .iter()
        .map(|row| Held {
            id: row.get(0),
            tenant: row.get(1),
            user: row.get(2),
            consent: row.get(3),
            from: edge(row.get(4), row.get(5), row.get(6)),
            to: row.get::<_, Option<Timestamp>>(7).map(|at| edge(at, row.get(8), row.get(9))),
        })
        .collect();
    held.sort_by_key(|held| (held.from.at, held.to.map(|to| to.at)));
    Ok(held)
}

/// Whether one of the clinic's gateways said lately that it has a link to the device.
async fn is_connected(tx: &Transaction<'_>, tenant: Uuid, hardware: &str) -> Result<bool, Stop> {
    let statement = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT FROM gateways g CROSS JOIN LATERAL jsonb_array_elements(g.state->'devices') d
             WHERE g.tenant_id = $1 AND (g.state->>'online')::bool AND d->>'hardware_id' = $2
               AND (d->>'connected')::bool)",
        )
        .await?;
    Ok(tx.query_one(&statement, &[&tenant, &hardware]).await?.get(0))
}

fn columns(frame: Option<Frame>) -> (Option<i64>, Option<i64>) {
    (frame.map(|(epoch, _)| epoch.0 as i64), frame.map(|(_, seq)| i64::from(seq)))
}

async fn end(tx: &Transaction<'_>, assignment: Uuid, at: Edge) -> Result<(), Stop> {
    let (epoch, seq) = columns(at.frame);
    let statement = tx
        .prepare_cached(
            "UPDATE device_assignments SET valid_to = $2, to_epoch = $3, to_seq = $4 WHERE id = $1",
        )
        .await?;
    tx.execute(&statement, &[&assignment, &at.at, &epoch, &seq]).await?;
    Ok(())
}

pub(super) async fn assigned(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    order: &Order,
) -> Result<(), Stop> {
    let user = records::wearer(tx, speaker.tenant, order.user).await?;
    if let Some(consent) = order.consent {
        records::known_consent(tx, speaker.tenant, user, consent).await?;
    }
    let hardware = hardware_row(tx, &order.hardware).await?;
    let held = held(tx, hardware).await?;
    let from = Edge { at: timestamp(content.at_us), frame: order.from };
    let wish = Wish {
        tenant: speaker.tenant,
        user,
        consent: order.consent,
        from,
        connected: is_connected(tx, speaker.tenant, &order.hardware).await?,
        hardware: &order.hardware,
    };
    let change = place(&held, &wish)?;
    let device = records::device(tx, speaker.tenant, &order.hardware, order.name.as_deref()).await?;
    let Change::Begin { end: covering, until, stored_under } = change else { return Ok(()) };
    if let Some(covering) = covering {
        end(tx, covering, from).await?;
    }
    let ((from_epoch, from_seq), (to_epoch, to_seq)) =
        (columns(from.frame), columns(until.and_then(|until| until.frame)));
    let valid_to = until.map(|until| until.at);
    let statement = tx
        .prepare_cached(
            "INSERT INTO device_assignments (id, hardware_id, tenant_id, user_id, device_id, consent_id, valid_from,
               from_epoch, from_seq, valid_to, to_epoch, to_seq)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .await?;
    tx.execute(
        &statement,
        &[
            &Uuid::now_v7(),
            &hardware,
            &speaker.tenant,
            &user,
            &device,
            &order.consent,
            &from.at,
            &from_epoch,
            &from_seq,
            &valid_to,
            &to_epoch,
            &to_seq,
        ],
    )
    .await?;
    if until.is_none() {
        tx.execute("UPDATE devices SET user_id = $2 WHERE id = $1", &[&device, &user]).await?;
    }
    if let Some(before) = stored_under {
        // Another gateway may have brought frames from after the boundary, before this was known.
        tx.execute(
            "INSERT INTO moves (id, tenant_id, from_user, to_user, device_id, from_time, from_epoch, from_seq, to_time,
               to_epoch, to_seq, asked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            &[
                &Uuid::now_v7(),
                &speaker.tenant,
                &before,
                &user,
                &device,
                &from.at,
                &from_epoch,
                &from_seq,
                &valid_to,
                &to_epoch,
                &to_seq,
                &speaker.now,
            ],
        )
        .await?;
    }
    Ok(())
}

pub(super) async fn unassigned(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    hardware_id: &str,
    frame: Option<Frame>,
) -> Result<(), Stop> {
    let hardware = hardware_row(tx, hardware_id).await?;
    let to = Edge { at: timestamp(content.at_us), frame };
    let held = held(tx, hardware).await?;
    let covering =
        held.iter().rev().find(|held| held.from.at <= to.at && held.to.is_none_or(|end| end.at > to.at));
    let Some(covering) = covering else {
        let detail = format!("nobody has {hardware_id} at this time");
        return Err(Refusal::new(reason::NOT_ASSIGNED, detail).into());
    };
    if covering.tenant != speaker.tenant {
        let detail = format!("{hardware_id} is another clinic's at this time");
        return Err(Refusal::new(reason::ELSEWHERE, detail).into());
    }
    if to.is_named_before(&covering.from) || covering.to.is_some_and(|end| end.is_named_before(&to)) {
        return Err(order(hardware_id).into());
    }
    end(tx, covering.id, to).await?;
    if covering.to.is_none() {
        tx.execute(
            "UPDATE devices SET user_id = NULL WHERE tenant_id = $1 AND hardware_id = $2",
            &[&speaker.tenant, &hardware_id],
        )
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);
    const THEIRS: Uuid = Uuid::from_u128(2);

    fn edge(second: i64, seq: Option<u32>) -> Edge {
        Edge { at: Timestamp::from_second(second).unwrap(), frame: seq.map(|seq| (Epoch::new(7, 1), seq)) }
    }

    fn held(tenant: Uuid, user: u128, from: Edge, to: Option<Edge>) -> Held {
        Held { id: Uuid::from_u128(user), tenant, user: Uuid::from_u128(user), consent: None, from, to }
    }

    fn wish(user: u128, from: Edge) -> Wish<'static> {
        Wish {
            tenant: OURS,
            user: Uuid::from_u128(user),
            consent: None,
            from,
            connected: true,
            hardware: "d",
        }
    }

    fn reason_of(result: Result<Change, Refusal>) -> &'static str {
        result.unwrap_err().reason
    }

    #[test]
    fn an_assignment_that_comes_late_goes_into_its_own_place() {
        let there =
            [held(OURS, 1, edge(100, None), Some(edge(200, None))), held(OURS, 2, edge(300, Some(9)), None)];
        // Into the first, which ends here; the second stays.
        let change = place(&there, &wish(3, edge(150, None))).unwrap();
        let until = Some(edge(200, None));
        let (end, under) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(1)));
        assert_eq!(change, Change::Begin { end, until, stored_under: under });
        // Between both, until the second begins.
        let change = place(&there, &wish(3, edge(250, None))).unwrap();
        assert_eq!(change, Change::Begin { end: None, until: Some(edge(300, Some(9))), stored_under: under });
        assert_eq!(place(&there, &wish(2, edge(400, None))).unwrap(), Change::Nothing);
    }

    #[test]
    fn a_device_is_not_taken_from_another_clinic() {
        let there = [held(THEIRS, 1, edge(100, None), Some(edge(200, None)))];
        assert_eq!(reason_of(place(&there, &wish(3, edge(150, None)))), reason::ELSEWHERE);
        assert_eq!(reason_of(place(&there, &wish(3, edge(250, None)))), reason::BOUNDARY);
        assert!(place(&there, &wish(3, edge(250, Some(5)))).is_ok());
        let away = Wish { connected: false, ..wish(3, edge(250, None)) };
        assert!(place(&there, &away).is_ok());
    }

    #[test]
    fn a_named_frame_must_fit_between_the_others() {
        let there = [held(OURS, 1, edge(100, Some(10)), Some(edge(200, Some(20))))];
        assert_eq!(reason_of(place(&there, &wish(3, edge(150, Some(9))))), reason::ORDER);
        assert_eq!(reason_of(place(&there, &wish(3, edge(150, Some(21))))), reason::ORDER);
        assert_eq!(reason_of(place(&there, &wish(3, edge(250, Some(19))))), reason::ORDER);
        assert!(place(&there, &wish(3, edge(150, Some(15)))).is_ok());
    }
}
