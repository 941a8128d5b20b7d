//! Where one wearer's time with a device ends and another's begins: the one way in which an assignment is made or ended,
//! whoever says so (a box, an operator), however late, within a clinic or between two.
//!
//! The promise: intervals of one device never overlap, and what is stored follows them. Within a clinic a boundary may lie in
//! the past: what is stored beyond it moves to whom it belongs, or to [`NOBODY`] where nobody had the device
//! ([`crate::upkeep`]). Between two clinics a boundary before the last stored frame is refused: readings of one clinic become
//! another's by an operator's explicit word alone. A device that another clinic has now is taken off the former one's boxes.
//!
//! Where an interval goes is decided by `place`, which knows no database; the rows are locked from reading them to the
//! commit, and the exclusion constraint stands behind it all.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use kinara_protocol::frame::Epoch;
use tokio_postgres::Transaction;
use uuid::Uuid;

use crate::assign::order_of_names;

/// Whose readings are that a wearer's device made after it was taken back: they stay in the clinic and are shown to nobody.
pub const NOBODY: Uuid = Uuid::nil();

/// The first word of the advisory lock by which boundaries of one device take turns.
const LOCK: i64 = 0x6b69_6e61_7261_0002;

/// A former clinic's box is told for so long that it is to be taken off a wearable.
const TOLD_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Assignments of one device that boxes may make: a new wearer every day for three years. All of them are looked at for each
/// frame. An operator may make more.
const MOST: usize = 1_000;

/// The words for reasons.
pub mod reason {
    /// Nobody has the device at that time.
    pub const NOT_ASSIGNED: &str = "not_assigned";
    /// The device is another clinic's at that time.
    pub const ELSEWHERE: &str = "assigned_elsewhere";
    /// Frames from after the boundary are stored for another clinic.
    pub const STORED: &str = "stored_elsewhere";
    /// The frame that is named does not fit between those that other boundaries name.
    pub const ORDER: &str = "order";
    /// A device comes from another clinic, and the first frame is not named though it could be.
    pub const BOUNDARY: &str = "boundary";
    /// Somebody has the device at or after that time.
    pub const TAKEN: &str = "taken";
    /// The device has been assigned as often as boxes may.
    pub const TOO_MANY: &str = "too_many";
}

/// Why something that was decided is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In a word.
    pub reason: &'static str,
    /// For a person: what is in the way, and what to do.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Why a boundary was not made.
#[derive(Debug)]
pub enum Stop {
    /// It cannot be.
    Refused(Refusal),
    /// The database.
    Failed(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The first frame on the later side of a boundary.
pub type Frame = (Epoch, u32);

/// An end of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// When.
    pub at: Timestamp,
    /// At which frame, which then decides.
    pub frame: Option<Frame>,
}

impl Edge {
    /// Whether this edge's frame is known to come before another's.
    fn is_named_before(&self, other: &Self) -> bool {
        let (Some(own), Some(other)) = (self.frame, other.frame) else { return false };
        order_of_names(own, other) == Some(Ordering::Less)
    }

    fn columns(self) -> (Timestamp, Option<i64>, Option<i64>) {
        (self.at, self.frame.map(|(epoch, _)| epoch.0 as i64), self.frame.map(|(_, seq)| i64::from(seq)))
    }
}

/// An assignment as it stands.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its row.
    pub id: Uuid,
    /// The wearer's clinic.
    pub tenant: Uuid,
    /// The wearer.
    pub user: Uuid,
    /// The clinic's own row for the device.
    pub device: Uuid,
    /// What the wearer agreed to.
    pub consent: Option<Uuid>,
    /// Where it begins.
    pub from: Edge,
    /// Where it ends, if it does.
    pub to: Option<Edge>,
}

/// Whose word makes a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// A box's, whose clinic has a link to the device or not: it ends nothing of another clinic.
    Box {
        /// It could have named a frame.
        connected: bool,
    },
    /// An operator's, who stands above clinics. It comes after all that there is.
    Operator {
        /// What another clinic has stored beyond the boundary goes along.
        take_stored: bool,
    },
}

/// A device is to be a wearer's.
#[derive(Debug, Clone, Copy)]
pub struct Gift<'a> {
    /// The device.
    pub hardware_id: &'a str,
    /// Its row, as [`turn`] gave it.
    pub hardware: Uuid,
    /// The wearer's clinic.
    pub tenant: Uuid,
    /// The wearer.
    pub user: Uuid,
    /// The clinic's own row for the device.
    pub device: Uuid,
    /// What the wearer agreed to.
    pub consent: Option<Uuid>,
    /// From where on.
    pub from: Edge,
    /// Who says so.
    pub word: Word,
}

/// What was made of a gift.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The new assignment.
    pub assignment: Uuid,
    /// The one that ends where it begins, and its clinic.
    pub ended: Option<(Uuid, Uuid)>,
    /// Clinics that what they had stored beyond the boundary is taken from.
    pub taken_from: Vec<Uuid>,
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
    },
    /// The interval that runs is theirs, and begins earlier than was known.
    Earlier(Uuid),
}

fn order(hardware: &str) -> Refusal {
    Refusal::new(
        reason::ORDER,
        format!(
            "the frame that is named for {hardware} is on the wrong side of one that another boundary names"
        ),
    )
}

fn covering(held: &[Held], at: Timestamp) -> Option<&Held> {
    held.iter().rev().find(|held| held.from.at <= at && held.to.is_none_or(|to| to.at > at))
}

/// Where a new interval goes among those there are, which are in order of time.
fn place(held: &[Held], gift: &Gift<'_>) -> Result<Change, Refusal> {
    let change = match covering(held, gift.from.at) {
        Some(covering) => within(covering, gift)?,
        None => between(held, gift)?,
    };
    match (gift.word, &change) {
        (Word::Operator { .. }, Change::Begin { end, until }) => {
            if let Some(running) = earlier(held, gift, until.as_ref()) {
                return Ok(Change::Earlier(running));
            }
            let begins_there = covering(held, gift.from.at).is_some_and(|held| held.from.at == gift.from.at);
            if until.is_some() || (end.is_some() && begins_there) {
                return Err(Refusal::new(
                    reason::TAKEN,
                    format!(
                        "{} is or was somebody's at or after {}; a new assignment must begin after the last one's \
                         beginning and end",
                        gift.hardware_id, gift.from.at
                    ),
                ));
            }
            Ok(change)
        }
        _ => Ok(change),
    }
}

/// The assignment that runs, where it is the same wearer's and nobody is between the gift and its beginning.
fn earlier(held: &[Held], gift: &Gift<'_>, until: Option<&Edge>) -> Option<Uuid> {
    let same = |held: &&Held| (held.tenant, held.user) == (gift.tenant, gift.user) && held.to.is_none();
    let running = held.iter().find(same)?;
    let alone = covering(held, gift.from.at).is_none();
    (alone && until == Some(&running.from)).then_some(running.id)
}

/// Whether a device with so many assignments may have one more.
fn has_room(held: usize, gift: &Gift<'_>) -> Result<(), Refusal> {
    if held < MOST || matches!(gift.word, Word::Operator { .. }) {
        return Ok(());
    }
    let detail = format!(
        "{} has been assigned {held} times, and boxes make no more of it: an operator may, admin assign",
        gift.hardware_id
    );
    Err(Refusal::new(reason::TOO_MANY, detail))
}

/// Into an assignment that runs at that time.
fn within(covering: &Held, gift: &Gift<'_>) -> Result<Change, Refusal> {
    if covering.tenant != gift.tenant && matches!(gift.word, Word::Box { .. }) {
        return Err(Refusal::new(
            reason::ELSEWHERE,
            format!("{} is another clinic's at this time; that clinic has to end it first", gift.hardware_id),
        ));
    }
    let same = (covering.tenant, covering.user) == (gift.tenant, gift.user);
    // That they have it at this time too is a boundary of its own: what is told later of before it ends there.
    let at_its_beginning = covering.from.at == gift.from.at;
    if same && at_its_beginning && (gift.consent.is_none() || covering.consent == gift.consent) {
        return Ok(Change::Nothing);
    }
    if gift.from.is_named_before(&covering.from)
        || covering.to.is_some_and(|to| to.is_named_before(&gift.from))
    {
        return Err(order(gift.hardware_id));
    }
    Ok(Change::Begin { end: Some(covering.id), until: covering.to })
}

/// At a time at which nobody has the device.
fn between(held: &[Held], gift: &Gift<'_>) -> Result<Change, Refusal> {
    let previous = held.iter().rev().find(|held| held.to.is_some_and(|to| to.at <= gift.from.at));
    let next = held.iter().find(|held| held.from.at > gift.from.at);
    let before = previous.and_then(|held| held.to).is_some_and(|to| gift.from.is_named_before(&to));
    if before || next.is_some_and(|next| next.from.is_named_before(&gift.from)) {
        return Err(order(gift.hardware_id));
    }
    let came_from_elsewhere = previous.is_some_and(|held| held.tenant != gift.tenant);
    if came_from_elsewhere && gift.word == (Word::Box { connected: true }) && gift.from.frame.is_none() {
        // By time alone a box of the clinic before could go on to name frames that are this clinic's.
        return Err(Refusal::new(
            reason::BOUNDARY,
            format!(
                "{} comes from another clinic and is connected here: its first frame must be named. Assign it again \
                 at the box",
                gift.hardware_id
            ),
        ));
    }
    Ok(Change::Begin { end: None, until: next.map(|next| next.from) })
}

const HELD: &str = "
    SELECT id, tenant_id, user_id, device_id, consent_id, valid_from, from_epoch, from_seq, valid_to, to_epoch, to_seq
    FROM device_assignments WHERE hardware_id = $1 ORDER BY id FOR UPDATE";

/// Takes the device's turn until the end of the transaction, and gives its row, which is made where there is none.
pub async fn turn(tx: &Transaction<'_>, hardware_id: &str) -> Result<Uuid, tokio_postgres::Error> {
    tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, $2))", &[&hardware_id, &LOCK]).await?;
    tx.execute(
        "INSERT INTO hardware (id, hardware_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        &[&Uuid::now_v7(), &hardware_id],
    )
    .await?;
    let row = tx.query_one("SELECT id FROM hardware WHERE hardware_id = $1", &[&hardware_id]).await?;
    row.try_get(0)
}

/// All assignments of a device, in order of time; locked.
pub async fn held(tx: &Transaction<'_>, hardware: Uuid) -> Result<Vec<Held>, tokio_postgres::Error> {
    let edge = |at: Timestamp, epoch: Option<i64>, seq: Option<i64>| Edge {
        at,
        frame: epoch.zip(seq).map(|(epoch, seq)| (Epoch(epoch as u64), seq as u32)),
    };
    let mut held: Vec<Held> = tx
        .query(HELD, &[&hardware])
        .await?
        .iter()
        .map(|row| Held {
            id: row.get(0),
            tenant: row.get(1),
            user: row.get(2),
            device: row.get(3),
            consent: row.get(4),
            from: edge(row.get(5), row.get(6), row.get(7)),
            to: row.get::<_, Option<Timestamp>>(8).map(|at| edge(at, row.get(9), row.get(10))),
        })
        .collect();
    held.sort_by_key(|held| (held.from.at, held.to.map(|to| to.at)));
    Ok(held)
}

/// Gives a device to a wearer. `None`: they have it already.
pub async fn give(tx: &Transaction<'_>, gift: &Gift<'_>, now: Timestamp) -> Result<Option<Given>, Stop> {
    let held = held(tx, gift.hardware).await?;
    let (covering, until) = match place(&held, gift)? {
        Change::Nothing => return Ok(None),
        Change::Earlier(running) => return begin_earlier(tx, gift, &held, running, now).await.map(Some),
        Change::Begin { end, until } => (end, until),
    };
    has_room(held.len(), gift)?;
    let taken_from = take_stored(tx, gift, &held, until, now).await?;
    let covering = covering.and_then(|id| held.iter().find(|held| held.id == id));
    if let Some(covering) = covering {
        end(tx, covering.id, gift.from).await?;
        if covering.to.is_none() {
            wear(tx, covering.device, None).await?;
        }
    }
    let same = covering.filter(|held| (held.tenant, held.user) == (gift.tenant, gift.user));
    let gift = &Gift { consent: gift.consent.or(same.and_then(|held| held.consent)), ..*gift };
    let assignment = begin(tx, gift, until).await?;
    if until.is_none() {
        wear(tx, gift.device, Some(gift.user)).await?;
    }
    if held.iter().any(|held| held.tenant != gift.tenant) {
        revoke(tx, Bonds::NotOf(gift.tenant), gift.hardware_id, now).await?;
    }
    Ok(Some(Given { assignment, ended: covering.map(|held| (held.id, held.tenant)), taken_from }))
}

/// The wearer who has the device has had it for longer. Frames that named the beginning so far still are behind it.
async fn begin_earlier(
    tx: &Transaction<'_>,
    gift: &Gift<'_>,
    held: &[Held],
    running: Uuid,
    now: Timestamp,
) -> Result<Given, Stop> {
    let until = held.iter().find(|held| held.id == running).map(|held| held.from);
    let taken_from = take_stored(tx, gift, held, until, now).await?;
    let (at, epoch, seq) = gift.from.columns();
    tx.execute(
        "UPDATE device_assignments SET valid_from = $2, from_epoch = $3, from_seq = $4,
           first_epoch = CASE WHEN $3::int8 IS NULL THEN coalesce(first_epoch, from_epoch) END,
           first_seq = CASE WHEN $3::int8 IS NULL THEN coalesce(first_seq, from_seq) END,
           consent_id = coalesce(consent_id, $5) WHERE id = $1",
        &[&running, &at, &epoch, &seq, &gift.consent],
    )
    .await?;
    wear(tx, gift.device, Some(gift.user)).await?;
    Ok(Given { assignment: running, ended: None, taken_from })
}

/// Ends the assignment that runs at a time. What is stored beyond is nobody's, until somebody is said to have had the device.
pub async fn take_back(
    tx: &Transaction<'_>,
    tenant: Uuid,
    hardware_id: &str,
    at: Edge,
    now: Timestamp,
) -> Result<(), Stop> {
    let hardware = turn(tx, hardware_id).await?;
    let held = held(tx, hardware).await?;
    let Some(covering) = covering(&held, at.at) else {
        let detail = format!("nobody has {hardware_id} at this time");
        return Err(Refusal::new(reason::NOT_ASSIGNED, detail).into());
    };
    if covering.tenant != tenant {
        let detail = format!("{hardware_id} is another clinic's at this time");
        return Err(Refusal::new(reason::ELSEWHERE, detail).into());
    }
    if at.is_named_before(&covering.from) || covering.to.is_some_and(|end| end.is_named_before(&at)) {
        return Err(order(hardware_id).into());
    }
    end(tx, covering.id, at).await?;
    if covering.to.is_none() {
        wear(tx, covering.device, None).await?;
    }
    let beyond = Move { of: covering, wearer: covering.user, since: at, until: covering.to };
    beyond.ask(tx, None, NOBODY, now).await?;
    Ok(())
}

/// Frames between two boundaries that may be stored under a wearer.
struct Move<'a> {
    of: &'a Held,
    wearer: Uuid,
    since: Edge,
    until: Option<Edge>,
}

impl Move<'_> {
    /// Has them moved, to another clinic where one is named: what is stored, and what writers that are at it still bring.
    async fn ask(
        &self,
        tx: &Transaction<'_>,
        elsewhere: Option<(Uuid, Uuid)>,
        to: Uuid,
        now: Timestamp,
    ) -> Result<(), tokio_postgres::Error> {
        let (from_time, from_epoch, from_seq) = self.since.columns();
        let until = self.until.map(Edge::columns);
        tx.execute(
            "INSERT INTO moves (id, tenant_id, from_user, to_user, device_id, from_time, from_epoch, from_seq, to_time,
               to_epoch, to_seq, asked_at, to_tenant, to_device)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            &[
                &Uuid::now_v7(),
                &self.of.tenant,
                &self.wearer,
                &to,
                &self.of.device,
                &from_time,
                &from_epoch,
                &from_seq,
                &until.map(|until| until.0),
                &until.and_then(|until| until.1),
                &until.and_then(|until| until.2),
                &now,
                &elsewhere.map(|(tenant, _)| tenant),
                &elsewhere.map(|(_, device)| device),
            ],
        )
        .await?;
        Ok(())
    }

    /// The newest that is stored of them.
    async fn stored(&self, tx: &Transaction<'_>) -> Result<Option<Timestamp>, tokio_postgres::Error> {
        let (since, epoch, seq) = self.since.columns();
        let until = self.until.map(Edge::columns);
        let row = tx
            .query_one(
                "SELECT ts.stored_within($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    &self.of.tenant,
                    &self.wearer,
                    &self.of.device,
                    &since,
                    &epoch,
                    &seq,
                    &until.map(|until| until.0),
                    &until.and_then(|until| until.1),
                    &until.and_then(|until| until.2),
                ],
            )
            .await?;
        row.try_get(0)
    }
}

/// What of the new interval may be stored under somebody else is to be the new wearer's: what lies in an assignment that ends
/// here, or was written under the clinic's last one before, or was nobody's. Gives the other clinics that something is
/// taken from.
async fn take_stored(
    tx: &Transaction<'_>,
    gift: &Gift<'_>,
    held: &[Held],
    until: Option<Edge>,
    now: Timestamp,
) -> Result<Vec<Uuid>, Stop> {
    let before = |held: &&Held| held.from.at <= gift.from.at;
    let ours = held.iter().filter(before).rfind(|held| held.tenant == gift.tenant);
    if let Some(ours) = ours {
        Move { of: ours, wearer: NOBODY, since: gift.from, until }.ask(tx, None, gift.user, now).await?;
        if ours.user != gift.user {
            Move { of: ours, wearer: ours.user, since: gift.from, until }
                .ask(tx, None, gift.user, now)
                .await?;
        }
    }
    let mut taken_from = Vec::new();
    let mut seen: Vec<(Uuid, Uuid)> = Vec::new();
    // Of another clinic: nothing, but by an explicit word.
    let runs_on = |held: &&Held| held.to.is_none_or(|to| to.at > gift.from.at);
    for other in held.iter().filter(|held| held.tenant != gift.tenant).filter(before) {
        for wearer in [other.user, NOBODY] {
            if seen.contains(&(other.tenant, wearer)) {
                continue;
            }
            seen.push((other.tenant, wearer));
            let beyond = Move { of: other, wearer, since: gift.from, until };
            let Some(newest) = beyond.stored(tx).await? else { continue };
            if gift.word != (Word::Operator { take_stored: true }) {
                return Err(stored(gift, newest).into());
            }
            beyond.ask(tx, Some((gift.tenant, gift.device)), gift.user, now).await?;
            taken_from.push(other.tenant);
        }
        // What a writer had begun before this commits may still come under the former wearer: it stays in its clinic.
        if runs_on(&other) && !taken_from.contains(&other.tenant) {
            let beyond = Move { of: other, wearer: other.user, since: gift.from, until };
            beyond.ask(tx, None, NOBODY, now).await?;
        }
    }
    taken_from.dedup();
    Ok(taken_from)
}

fn stored(gift: &Gift<'_>, newest: Timestamp) -> Refusal {
    let way_out = match gift.word {
        Word::Box { .. } => "an operator has to say what becomes of them: admin assign --take-stored",
        Word::Operator { .. } => "begin after that, or say that they are the new wearer's: --take-stored",
    };
    Refusal::new(
        reason::STORED,
        format!(
            "readings of {} up to {newest} are stored for another clinic, after the boundary at {}; {way_out}",
            gift.hardware_id, gift.from.at
        ),
    )
}

async fn end(tx: &Transaction<'_>, assignment: Uuid, edge: Edge) -> Result<(), tokio_postgres::Error> {
    let (at, epoch, seq) = edge.columns();
    tx.execute(
        "UPDATE device_assignments SET valid_to = $2, to_epoch = $3, to_seq = $4 WHERE id = $1",
        &[&assignment, &at, &epoch, &seq],
    )
    .await?;
    Ok(())
}

async fn begin(
    tx: &Transaction<'_>,
    gift: &Gift<'_>,
    until: Option<Edge>,
) -> Result<Uuid, tokio_postgres::Error> {
    let id = Uuid::now_v7();
    let (valid_from, from_epoch, from_seq) = gift.from.columns();
    let until = until.map(Edge::columns);
    tx.execute(
        "INSERT INTO device_assignments (id, hardware_id, tenant_id, user_id, device_id, consent_id, valid_from,
           from_epoch, from_seq, valid_to, to_epoch, to_seq)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        &[
            &id,
            &gift.hardware,
            &gift.tenant,
            &gift.user,
            &gift.device,
            &gift.consent,
            &valid_from,
            &from_epoch,
            &from_seq,
            &until.map(|until| until.0),
            &until.and_then(|until| until.1),
            &until.and_then(|until| until.2),
        ],
    )
    .await?;
    Ok(id)
}

async fn wear(tx: &Transaction<'_>, device: Uuid, user: Option<Uuid>) -> Result<(), tokio_postgres::Error> {
    tx.execute("UPDATE devices SET user_id = $2 WHERE id = $1", &[&device, &user]).await?;
    Ok(())
}

/// Bonds that boxes are taken off.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bonds {
    /// This one.
    One(Uuid),
    /// Those of clinics other than this one.
    NotOf(Uuid),
}

/// Boxes are taken off a device. The clinic that has it now, whose boxes have it at hand, is told so, too.
pub(crate) async fn revoke(
    tx: &Transaction<'_>,
    bonds: Bonds,
    hardware_id: &str,
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let (one, not_of) = match bonds {
        Bonds::One(bond) => (Some(bond), None),
        Bonds::NotOf(tenant) => (None, Some(tenant)),
    };
    let expires = now.saturating_add(TOLD_FOR).unwrap_or(now);
    tx.execute(
        "INSERT INTO revocations (id, tenant_id, bond_id, hardware_id, gateway_id, adapter, asked_at, expires_at)
         SELECT gen_random_uuid(), b.tenant_id, b.id, b.hardware_id, b.gateway_id, b.adapter, $4, $5
         FROM bonds b WHERE b.hardware_id = $1 AND (b.id = $2 OR b.tenant_id <> $3) AND b.ended_at IS NULL ORDER BY b.id
         ON CONFLICT DO NOTHING",
        &[&hardware_id, &one, &not_of, &now, &expires],
    )
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);
    const THEIRS: Uuid = Uuid::from_u128(2);
    const OPERATOR: Word = Word::Operator { take_stored: false };

    fn edge(second: i64, seq: Option<u32>) -> Edge {
        Edge { at: Timestamp::from_second(second).unwrap(), frame: seq.map(|seq| (Epoch::new(7, 1), seq)) }
    }

    fn held(tenant: Uuid, user: u128, from: Edge, to: Option<Edge>) -> Held {
        let id = Uuid::from_u128(user);
        Held { id, tenant, user: id, device: Uuid::nil(), consent: None, from, to }
    }

    fn gift(user: u128, from: Edge) -> Gift<'static> {
        Gift {
            hardware_id: "d",
            hardware: Uuid::nil(),
            tenant: OURS,
            user: Uuid::from_u128(user),
            device: Uuid::nil(),
            consent: None,
            from,
            word: Word::Box { connected: true },
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
        let change = place(&there, &gift(3, edge(150, None))).unwrap();
        assert_eq!(change, Change::Begin { end: Some(Uuid::from_u128(1)), until: Some(edge(200, None)) });
        // Between both, until the second begins.
        let change = place(&there, &gift(3, edge(250, None))).unwrap();
        assert_eq!(change, Change::Begin { end: None, until: Some(edge(300, Some(9))) });
        assert_eq!(place(&there, &gift(2, edge(300, Some(9)))).unwrap(), Change::Nothing);
        // What is known already is a boundary all the same.
        let change = place(&there, &gift(2, edge(400, None))).unwrap();
        assert_eq!(change, Change::Begin { end: Some(Uuid::from_u128(2)), until: None });
    }

    #[test]
    fn a_device_is_not_taken_from_another_clinic() {
        let there = [held(THEIRS, 1, edge(100, None), Some(edge(200, None)))];
        assert_eq!(reason_of(place(&there, &gift(3, edge(150, None)))), reason::ELSEWHERE);
        assert_eq!(reason_of(place(&there, &gift(3, edge(250, None)))), reason::BOUNDARY);
        assert!(place(&there, &gift(3, edge(250, Some(5)))).is_ok());
        let away = Gift { word: Word::Box { connected: false }, ..gift(3, edge(250, None)) };
        assert!(place(&there, &away).is_ok());
    }

    #[test]
    fn a_named_frame_must_fit_between_the_others() {
        let there = [held(OURS, 1, edge(100, Some(10)), Some(edge(200, Some(20))))];
        assert_eq!(reason_of(place(&there, &gift(3, edge(150, Some(9))))), reason::ORDER);
        assert_eq!(reason_of(place(&there, &gift(3, edge(150, Some(21))))), reason::ORDER);
        assert_eq!(reason_of(place(&there, &gift(3, edge(250, Some(19))))), reason::ORDER);
        assert!(place(&there, &gift(3, edge(150, Some(15)))).is_ok());
    }

    #[test]
    fn a_box_assigns_a_device_so_often_and_an_operator_more_often() {
        let box_says = gift(3, edge(150, None));
        assert!(has_room(MOST - 1, &box_says).is_ok());
        assert_eq!(has_room(MOST, &box_says).unwrap_err().reason, reason::TOO_MANY);
        assert!(has_room(MOST, &Gift { word: OPERATOR, ..box_says }).is_ok());
    }

    #[test]
    fn an_operator_ends_what_runs_in_any_clinic_and_goes_into_nothing_that_is_over() {
        let there =
            [held(THEIRS, 1, edge(100, None), Some(edge(200, None))), held(THEIRS, 2, edge(300, None), None)];
        let say = |second| place(&there, &Gift { word: OPERATOR, ..gift(3, edge(second, None)) });
        assert_eq!(say(400).unwrap(), Change::Begin { end: Some(Uuid::from_u128(2)), until: None });
        for second in [50, 150, 250, 300] {
            assert_eq!(reason_of(say(second)), reason::TAKEN, "{second}");
        }
    }

    #[test]
    fn who_has_a_device_has_had_it_for_longer_where_nobody_is_in_between() {
        let there = [
            held(THEIRS, 1, edge(100, None), Some(edge(200, Some(20)))),
            held(OURS, 2, edge(300, Some(30)), None),
        ];
        let say = |user, edge| place(&there, &Gift { word: OPERATOR, ..gift(user, edge) });
        assert_eq!(say(2, edge(250, None)).unwrap(), Change::Earlier(Uuid::from_u128(2)));
        assert_eq!(say(2, edge(200, Some(25))).unwrap(), Change::Earlier(Uuid::from_u128(2)));
        // Into what was somebody's, before it, and between frames that other boundaries name.
        assert_eq!(reason_of(say(2, edge(150, None))), reason::TAKEN);
        assert_eq!(reason_of(say(2, edge(50, None))), reason::TAKEN);
        assert_eq!(reason_of(say(2, edge(250, Some(31)))), reason::ORDER);
        assert_eq!(reason_of(say(2, edge(250, Some(19)))), reason::ORDER);
        // Somebody else, and a box, whose word is a boundary of its own.
        assert_eq!(reason_of(say(3, edge(250, None))), reason::TAKEN);
        let box_says = place(&there, &gift(2, edge(250, Some(25)))).unwrap();
        assert_eq!(box_says, Change::Begin { end: None, until: Some(edge(300, Some(30))) });
    }
}
