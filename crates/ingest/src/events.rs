//! Event batches: what gateways derived from stored frames, and what they had to let go.
//!
//! The promise: an event is in once, by its key, whichever gateway or model run repeats it; it goes to the wearer whose
//! device it was at its onset, under the same rules as a frame; a gap that a gateway reports is recorded less what is
//! stored after all. What people decided at the box comes first (`decisions`): the events beside it may be of
//! the wearer whom it names.

use std::collections::BTreeSet;
use std::ops::Range;

use kinara_protocol::envelope::{self, Decision, ENVELOPE_VERSION, EnvelopeError, Event, EventBatch};
use kinara_protocol::frame::Epoch;
use kinara_store::Transaction;
use prost::Message as _;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::assign::{Assignment, Consent, Moment, Whose, all_of, may_be_erased, may_be_of, whose};
use crate::batch::{Name, Sender, Unreadable, canonical, is_hardware_id, name};
use crate::directory::{self, Directory, Hardware};
use crate::error::Remedy;
use crate::gaps::{self, Candidate};
use crate::plan::{Key, NOT_BEFORE_US, Window};
use crate::quarantine::{self, Refused};
use crate::seqs::SeqSet;
use crate::told::{self, Word};
use crate::write::{Counts, Outcome, Writer};
use crate::{Error, Work, timestamp};

/// A decoded event batch.
#[derive(Debug)]
pub struct Events {
    /// Its name; of what a clinic sent or the cloud found, one that nobody asks for.
    pub name: Name,
    sender: Sender,
    derived: Vec<Event>,
    gaps: Vec<envelope::Gap>,
    decisions: Vec<Decision>,
}

impl Events {
    /// One event by itself: the way back from quarantine, through the ordinary write.
    pub(crate) fn of_one(sender: Sender, event: Event) -> Self {
        let name = Name { gateway: sender.gateway().unwrap_or_default(), buffer: 0, sequence: 0 };
        Self { name, sender, derived: vec![event], gaps: Vec::new(), decisions: Vec::new() }
    }

    /// Events and gaps, one after another.
    fn len(&self) -> usize {
        self.derived.len() + self.gaps.len()
    }

    /// Some of the events and gaps, without the decisions.
    fn part(&self, range: &Range<usize>) -> Self {
        let (derived, gaps) = (self.derived.len(), self.gaps.len());
        let of_gaps = |at: usize| at.saturating_sub(derived).min(gaps);
        Self {
            name: self.name,
            sender: self.sender,
            derived: self.derived[range.start.min(derived)..range.end.min(derived)].to_vec(),
            gaps: self.gaps[of_gaps(range.start)..of_gaps(range.end)].to_vec(),
            decisions: Vec::new(),
        }
    }

    /// Parts of so many decisions at most, in order; the events and gaps come with the last, and, where they are many, after it.
    pub fn pieces(mut self, decisions: usize) -> Vec<Self> {
        let mut last =
            self.decisions.split_off(self.decisions.len().saturating_sub(1) / decisions * decisions);
        let mut pieces: Vec<Self> = self
            .decisions
            .chunks(decisions)
            .map(|some| Self {
                name: self.name,
                sender: self.sender,
                derived: Vec::new(),
                gaps: Vec::new(),
                decisions: some.to_vec(),
            })
            .collect();
        loop {
            pieces.push(Self {
                derived: front(&mut self.derived),
                gaps: front(&mut self.gaps),
                decisions: std::mem::take(&mut last),
                ..self
            });
            if self.len() == 0 {
                return pieces;
            }
        }
    }

    /// What the cloud itself found in a clinic's readings.
    pub fn found(tenant: Uuid, derived: Vec<Event>) -> Self {
        let name = Name { gateway: Uuid::nil(), buffer: 0, sequence: 0 };
        Self { name, sender: Sender::Clinic(tenant), derived, gaps: Vec::new(), decisions: Vec::new() }
    }
}

/// Events and gaps of each kind in one transaction: each may be of another device, of which all is looked up.
const AT_ONCE: usize = 64;

/// Takes the first of them.
fn front<T>(all: &mut Vec<T>) -> Vec<T> {
    let rest = all.split_off(all.len().min(AT_ONCE));
    std::mem::replace(all, rest)
}

/// Reads a payload as published.
pub fn decode(payload: &[u8]) -> Result<Events, Unreadable> {
    let mut batch: EventBatch = envelope::open(payload)?;
    if batch.version == 0 || batch.version > ENVELOPE_VERSION {
        return Err(EnvelopeError::Version(batch.version).into());
    }
    let name = name(batch.name.as_ref())?;
    batch.events.iter_mut().for_each(|event| canonical(&mut event.hardware_id));
    batch.gaps.iter_mut().for_each(|gap| canonical(&mut gap.hardware_id));
    Ok(Events {
        name,
        sender: Sender::Gateway(name.gateway),
        derived: batch.events,
        gaps: batch.gaps,
        decisions: batch.decisions,
    })
}

enum Fate {
    Write { tenant: Uuid, user: Uuid, device: Uuid, hardware: Uuid },
    Discard,
    Expired,
    Aside(&'static str),
}

/// Whether the database has room for all that an event says.
fn is_well_formed(event: &Event) -> bool {
    let fits = |text: &str, max: usize| text.len() <= max && !text.contains('\0');
    is_hardware_id(&event.hardware_id)
        && !event.kind.is_empty()
        && fits(&event.kind, 50)
        && fits(&event.producer, 100)
        && fits(&event.severity, 20)
        && (event.data_json.is_empty()
            || serde_json::from_str::<serde_json::Value>(&event.data_json).is_ok_and(|data| data.is_object()))
}

/// What is known of an event's onset.
pub(crate) fn moment(event: &Event) -> Moment {
    Moment {
        epoch: Epoch(event.epoch),
        seq: event.onset_seq,
        first_us: event.onset_utc_us,
        last_us: event.onset_utc_us,
        uncertainty_us: event.uncertainty_us,
    }
}

fn fate(event: &Event, tenant: Uuid, hardware: Option<&Hardware>, window: Window) -> Fate {
    if event.onset_utc_us < NOT_BEFORE_US || event.onset_utc_us > window.newest_us {
        return Fate::Aside("timestamp");
    }
    if !is_well_formed(event) {
        return Fate::Aside("malformed");
    }
    let Some(hardware) = hardware else { return Fate::Aside("no_assignment") };
    let moment = moment(event);
    let found = whose(&hardware.assignments, &moment);
    let assignment = match found {
        Whose::Of(assignment) => assignment,
        Whose::Unsure | Whose::Straddles | Whose::Contradicts
            if !may_be_of(&hardware.assignments, &moment, tenant) =>
        {
            return Fate::Aside("foreign_gateway");
        }
        Whose::Unsure | Whose::Straddles | Whose::Contradicts
            if may_be_erased(&hardware.assignments, &moment, tenant) =>
        {
            return Fate::Discard;
        }
        Whose::Nobody | Whose::Unsure | Whose::Straddles | Whose::Contradicts => {
            return Fate::Aside(found.word());
        }
    };
    if assignment.tenant != tenant {
        return Fate::Aside("foreign_gateway");
    }
    let consented = match assignment.consent {
        Consent::Missing => false,
        Consent::Given => true,
        Consent::Withdrawn(at) => event.onset_utc_us < at,
    };
    if assignment.erased || !consented {
        return Fate::Discard;
    }
    if event.onset_utc_us < window.oldest_us {
        return Fate::Expired;
    }
    Fate::Write { tenant, user: assignment.user, device: assignment.device, hardware: hardware.id }
}

const KEY: &str = "
    INSERT INTO event_keys (hardware, kind, producer, epoch, grid, tenant_id, user_id, device_id, time)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
const EVENT: &str = "
    INSERT INTO ts.events (time, tenant_id, user_id, device_id, event_type, severity, confidence, data, key)
    VALUES ($1, $2, $3, $4, $5, nullif($6, ''), $7, $8, $9)";
const NOTIFY: &str = "SELECT pg_notify('kinara_event', $1)";

impl Writer {
    /// Writes an event batch. An error means that nothing was written and that the database is not there.
    pub fn write_events<'a>(&'a self, events: &'a Events) -> Work<'a, Result<Outcome, Error>> {
        Box::pin(self.write_all_events(events))
    }

    async fn write_all_events(&self, events: &Events) -> Result<Outcome, Error> {
        let mut total = Counts::default();
        if let Some(outcome) =
            self.write_decisions(events.name.gateway, &events.decisions, &mut total).await?
        {
            return Ok(outcome);
        }
        if events.len() == 0 && !events.decisions.is_empty() {
            return Ok(Outcome::Done(total));
        }
        match self.write_derived(events).await? {
            Outcome::Done(counts) => total.add(counts),
            retry @ Outcome::RetryAfter { .. } => return Ok(retry),
        }
        Ok(Outcome::Done(total))
    }

    /// Events and gaps: all in one transaction, or, where the database refuses one of them, by halves, until that one
    /// stands alone and is put aside.
    async fn write_derived(&self, events: &Events) -> Result<Outcome, Error> {
        let mut total = Counts::default();
        let mut open: Vec<Range<usize>> = std::iter::once(0..events.len()).collect();
        let mut left = self.limits.halvings;
        while let Some(range) = open.pop() {
            let part = events.part(&range);
            match self.events_tries(&part).await {
                Ok(Outcome::Done(counts)) => total.add(counts),
                Ok(retry @ Outcome::RetryAfter { .. }) => return Ok(retry),
                Err(error) if error.is_worth_halving(range.len(), &mut left) => {
                    let middle = range.start + range.len() / 2;
                    open.extend([middle..range.end, range.start..middle]);
                }
                Err(error) if error.last_remedy() == Remedy::Split => {
                    total.quarantined += self.refuse_events(&part, &error).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Done(total))
    }

    async fn events_tries(&self, events: &Events) -> Result<Outcome, Error> {
        let mut left = self.limits.tries;
        loop {
            match self.event_transaction(events).await {
                Err(error) if error.remedy() == Remedy::Again && left > 1 => left -= 1,
                other => return other,
            }
        }
    }

    async fn refuse_events(&self, events: &Events, error: &Error) -> Result<u64, Error> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let directory = Directory::load(&tx, &[events.name.gateway], &[], directory::ALL).await?;
        let tenant = directory.tenant_of(events.sender);
        let gateway = events.sender.gateway();
        let derived =
            events.derived.iter().map(|event| aside(event, tenant, gateway, "database", error.to_string()));
        let gaps = events.gaps.iter().map(|gap| gap_aside(gap, tenant, gateway, error.to_string()));
        let refused: Vec<Refused<'_>> = derived.chain(gaps).collect();
        quarantine::keep(&tx, &refused, timestamp(self.clock.utc_us())).await?;
        tx.commit().await?;
        Ok(refused.len() as u64)
    }

    async fn event_transaction(&self, events: &Events) -> Result<Outcome, Error> {
        let window = self.window();
        let now = timestamp(self.clock.utc_us());
        let mut client = self.pool.get().await?;
        self.make_room(&client, events.derived.iter().map(|event| event.onset_utc_us), window).await?;
        let tx = client.transaction().await?;
        let mut hardware: Vec<&str> = events
            .derived
            .iter()
            .map(|event| event.hardware_id.as_str())
            .chain(events.gaps.iter().map(|gap| gap.hardware_id.as_str()))
            .filter(|id| is_hardware_id(id))
            .collect();
        hardware.sort_unstable();
        hardware.dedup();
        let gateways = [events.name.gateway];
        let directory = Directory::load(&tx, &gateways, &hardware, self.limits.assignments).await?;
        let Some(tenant) = directory.tenant_of(events.sender) else {
            return Ok(Outcome::RetryAfter {
                seconds: self.limits.unknown_gateway_s,
                reason: "this gateway is not enrolled".to_owned(),
            });
        };
        let mut counts = Counts::default();
        let mut refused = Vec::new();
        let mut write = Vec::new();
        for event in &events.derived {
            match fate(event, tenant, directory.hardware(&event.hardware_id), window) {
                Fate::Write { tenant, user, device, hardware } => {
                    write.push((event, tenant, user, device, hardware));
                }
                Fate::Discard => counts.discarded += 1,
                Fate::Expired => counts.expired += 1,
                Fate::Aside(reason) => {
                    counts.quarantined += 1;
                    refused.push(aside(event, Some(tenant), events.sender.gateway(), reason, String::new()));
                }
            }
        }
        record_gaps(&tx, events, tenant, &directory, now).await?;
        // In the order of keys, so that two bridges with the same events do not wait for each other in a circle.
        write.sort_by(|a, b| key(a.0, a.4).cmp(&key(b.0, b.4)));
        let (insert_key, insert) = (tx.prepare_cached(KEY).await?, tx.prepare_cached(EVENT).await?);
        let notify = tx.prepare_cached(NOTIFY).await?;
        for (event, tenant, user, device, hardware) in write {
            let time = timestamp(event.onset_utc_us);
            let (_, kind, producer, epoch, grid) = key(event, hardware);
            let (time_us, uncertainty_us) = (event.onset_utc_us, event.uncertainty_us);
            let word =
                Word { hardware, kind, producer, epoch, grid, clinic: tenant, time_us, uncertainty_us };
            let is_shared = directory.hardware(&event.hardware_id).is_some_and(Hardware::is_shared);
            let mut under = Some(epoch);
            let mut new = 0;
            while let Some(epoch) = under.take() {
                let key: [&(dyn ToSql + Sync); 9] =
                    [&hardware, &kind, &producer, &epoch, &grid, &tenant, &user, &device, &time];
                new = tx.execute(&insert_key, &key).await?;
                if new == 0 && is_shared && epoch == word.epoch {
                    under = told::beside(&tx, &word).await?;
                }
            }
            if new == 0 {
                counts.duplicate += 1;
                continue;
            }
            // What is no object was put aside; only what was empty is none.
            let mut data = serde_json::from_str(&event.data_json).unwrap_or_else(|_| serde_json::json!({}));
            data["producer"] = event.producer.clone().into();
            data["uncertainty_us"] = event.uncertainty_us.into();
            let bytes = format!("{kind}/{producer}/{}/{grid}", Epoch(event.epoch)).into_bytes();
            let confidence = event.confidence.is_finite().then_some(event.confidence);
            tx.execute(
                &insert,
                &[&time, &tenant, &user, &device, &event.kind, &event.severity, &confidence, &data, &bytes],
            )
            .await?;
            let payload = serde_json::json!({
                "tenant": tenant, "user": user, "device": device, "time": time.to_string(), "event_type": event.kind,
            });
            tx.query(&notify, &[&payload.to_string()]).await?;
            counts.stored += 1;
        }
        quarantine::keep(&tx, &refused, now).await?;
        tx.commit().await?;
        Ok(Outcome::Done(counts))
    }
}

fn key(event: &Event, hardware: Uuid) -> (Uuid, &str, &str, i64, i64) {
    let grid = event.onset_ticks / u64::from(event.grid_ms.max(1));
    (hardware, &event.kind, &event.producer, event.epoch as i64, grid as i64)
}

fn aside<'a>(
    event: &'a Event,
    tenant: Option<Uuid>,
    gateway: Option<Uuid>,
    reason: &'static str,
    detail: String,
) -> Refused<'a> {
    Refused {
        what: "event",
        tenant,
        gateway,
        hardware_id: &event.hardware_id,
        epoch: event.epoch,
        seq: Some(event.onset_seq),
        reason,
        detail,
        payload: event.encode_to_vec(),
        fit: None,
    }
}

/// A gap that the database refuses, kept as it came.
fn gap_aside(
    gap: &envelope::Gap,
    tenant: Option<Uuid>,
    gateway: Option<Uuid>,
    detail: String,
) -> Refused<'_> {
    Refused {
        what: "payload",
        tenant,
        gateway,
        hardware_id: &gap.hardware_id,
        epoch: gap.epoch,
        seq: None,
        reason: "gap",
        detail,
        payload: gap.encode_to_vec(),
        fit: None,
    }
}

/// Whether frames that a gateway says are gone were its own clinic's: told without times, they are of the assignment
/// that runs.
fn is_ours(gap: &envelope::Gap, seqs: &SeqSet, tenant: Uuid, assignments: &[Assignment]) -> bool {
    let (Some(first), Some(last)) = (seqs.first(), seqs.last()) else { return false };
    let times = [gap.from_utc_us, gap.to_utc_us].into_iter().filter(|&time| time != 0);
    let (Some(first_us), Some(last_us)) = (times.clone().min(), times.max()) else {
        return assignments.iter().any(|assignment| assignment.to.is_none() && assignment.tenant == tenant);
    };
    let moment = |seq: u64| Moment {
        epoch: Epoch(gap.epoch),
        seq: u32::try_from(seq).unwrap_or(u32::MAX),
        first_us,
        last_us,
        uncertainty_us: 0,
    };
    all_of(assignments, tenant, &moment(first), &moment(last))
}

/// Gaps that a gateway reports: believed where the frames were its own clinic's.
async fn record_gaps(
    tx: &Transaction<'_>,
    events: &Events,
    tenant: Uuid,
    directory: &Directory,
    now: jiff::Timestamp,
) -> Result<(), Error> {
    let mut told = Vec::new();
    for gap in &events.gaps {
        let reason = match gap.reason.as_str() {
            "quota" => "quota",
            "overflow" => "overflow",
            "gateway_lost" => "gateway_lost",
            other => {
                tracing::warn!(reason = other, gateway = %events.name.gateway, "a gap of a reason not known here");
                continue;
            }
        };
        let Some(hardware) = directory.hardware(&gap.hardware_id) else { continue };
        let Some(seqs) = SeqSet::from_distances(&gap.seq_ranges) else { continue };
        if !is_ours(gap, &seqs, tenant, &hardware.assignments) {
            tracing::warn!(gateway = %events.name.gateway, "a gap among frames of another clinic is not believed");
            continue;
        }
        let key = Key { hardware: hardware.id, epoch: gap.epoch as i64 };
        told.push(Candidate {
            key,
            reason,
            seqs,
            from_us: (gap.from_utc_us != 0).then_some(gap.from_utc_us),
            to_us: (gap.to_utc_us != 0).then_some(gap.to_utc_us),
            gateway: Some(events.name.gateway),
        });
    }
    if told.is_empty() { Ok(()) } else { gaps::tell(tx, told, &BTreeSet::new(), now).await }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_come_in_parts_in_their_order_and_what_is_beside_them_comes_last() {
        let decision = |n: usize| Decision { at_utc_us: n as i64, ..Decision::default() };
        for (count, sizes) in
            [(0, vec![0]), (1, vec![1]), (16, vec![16]), (17, vec![16, 1]), (32, vec![16, 16])]
        {
            let mut events = Events::found(Uuid::nil(), vec![Event::default()]);
            events.decisions = (0..count).map(decision).collect();
            let pieces = events.pieces(16);
            let found: Vec<usize> = pieces.iter().map(|piece| piece.decisions.len()).collect();
            assert_eq!(found, sizes);
            let order = pieces.iter().flat_map(|piece| &piece.decisions).map(|one| one.at_utc_us as usize);
            assert!(order.eq(0..count));
            let beside: Vec<usize> = pieces.iter().map(|piece| piece.derived.len()).collect();
            assert_eq!((beside.last(), beside.iter().sum::<usize>()), (Some(&1), 1));
        }
    }

    #[test]
    fn events_and_gaps_come_some_at_a_time_in_their_order_and_all_of_them() {
        let mut events = Events::found(Uuid::nil(), Vec::new());
        events.decisions = vec![Decision::default(); 20];
        events.derived = (0..150).map(|n| Event { onset_seq: n, ..Event::default() }).collect();
        events.gaps = (0..200).map(|n| envelope::Gap { epoch: n, ..envelope::Gap::default() }).collect();
        let pieces = events.pieces(16);
        let sizes: Vec<(usize, usize, usize)> = pieces
            .iter()
            .map(|piece| (piece.decisions.len(), piece.derived.len(), piece.gaps.len()))
            .collect();
        assert_eq!(sizes, [(16, 0, 0), (4, 64, 64), (0, 64, 64), (0, 22, 64), (0, 0, 8)]);
        assert!(pieces.iter().flat_map(|piece| &piece.derived).map(|event| event.onset_seq).eq(0..150));
        assert!(pieces.iter().flat_map(|piece| &piece.gaps).map(|gap| gap.epoch).eq(0..200));
    }
}
