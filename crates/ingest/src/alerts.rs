//! Alerts by a clinic's rules: an event of a kind, or a reading above or below a bound for so many minutes.
//!
//! The promise: an episode is one alert, however many producers report it, and however often its data come. Which alerts
//! there are is a function of what is stored, not of the order in which it came: late minutes make one alert of two,
//! and what moved to another wearer takes its alert along. An alert that somebody acknowledged stays acknowledged.
//!
//! Nothing here holds up a write: whoever changed something noted the hour, and a job looks at it ([`evaluate`]). What
//! becomes of it is decided by [`changes`], which knows times alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kinara_protocol::channel::ChannelId;
use kinara_store::{Client, Pool, Transaction};
use uuid::Uuid;

use crate::intervals::{self, Asked, InForce};
use crate::{Error, Work};

/// What is no farther apart is one alert: a rule and a model may put one hot flash minutes apart, and what swings about a
/// bound is not ten alerts. The pages fold events by the same time.
pub const JOIN: Duration = Duration::from_mins(10);

/// Notes that are looked at in a transaction, and looks: each note is one for each rule of readings, with its minutes in memory.
const NOTES: i32 = 500;
const LOOKS: i32 = 5_000;
/// Notes that are looked at first; twice as many each time, as long as it goes well. An alert that a note touches is looked at
/// whole, and may have lasted for months.
const FIRST: i32 = 16;
/// Times at which conditions held, in a transaction, beyond which the next one has less,
const HELD: usize = 200_000;
/// and how much less; also where one did not come to its end in time.
const LESS: i32 = 4;

/// From the first to the last time at which a condition held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first.
    pub from: Timestamp,
    /// The last; of minutes, the last one's end.
    pub to: Timestamp,
}

impl Span {
    fn within(self, other: Self) -> bool {
        self.from >= other.from && self.to <= other.to
    }

    fn apart(self, other: Self) -> SignedDuration {
        self.from.duration_since(other.to).max(other.from.duration_since(self.to))
    }

    fn and(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

/// How far apart two times may be with no break between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apart {
    /// Always the same.
    By(Duration),
    /// Minutes of readings: by the interval in force then.
    Minutes(InForce),
}

impl Apart {
    fn between(&self, earlier: Timestamp, later: Timestamp) -> Duration {
        match self {
            Self::By(apart) => *apart,
            Self::Minutes(in_force) => in_force.minutes_apart(earlier, later),
        }
    }
}

/// What was looked at of one rule and wearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// How long a time in `held` stands for: a minute, or nothing.
    pub lasts: Duration,
    /// How far apart two times in `held` may be with no break between them: what comes seldom is not a break.
    pub apart: Apart,
    /// How long it has to hold without a break.
    pub least: Duration,
    /// The spans that were looked at, apart and in order.
    pub looked: Vec<Span>,
    /// When the condition held within them, in order.
    pub held: Vec<Timestamp>,
    /// The alerts that there are in or near them, by their beginning.
    pub known: Vec<(Uuid, Span)>,
}

/// What has to be done so that the alerts are what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A new one.
    Raise(Span),
    /// One that is longer or shorter than it was.
    Stretch(Uuid, Span),
    /// One that is not.
    Withdraw(Uuid),
}

/// Compares what was found with the alerts that there are.
pub fn changes(look: &Look, join: Duration) -> Vec<Change> {
    let join = SignedDuration::try_from(join).unwrap_or(SignedDuration::MAX);
    // An alert whose whole span was looked at is what was found there and nothing else; of one that reaches farther, the
    // part that was not looked at still stands.
    let (whole, partly): (Vec<_>, Vec<_>) = look
        .known
        .iter()
        .copied()
        .partition(|(_, span)| look.looked.iter().any(|looked| span.within(*looked)));
    let found = runs(look);
    let mut spans: Vec<(Span, Option<Uuid>)> = found.iter().map(|span| (*span, None)).collect();
    spans.extend(partly.iter().map(|(id, span)| (*span, Some(*id))));
    spans.sort_unstable();
    let mut episodes: Vec<(Span, Vec<Uuid>)> = Vec::new();
    for (span, id) in spans {
        match episodes.last_mut() {
            Some((last, ids)) if last.apart(span) <= join => {
                *last = last.and(span);
                ids.extend(id);
            }
            _ => episodes.push((span, id.into_iter().collect())),
        }
    }
    let mut out = Vec::new();
    for (id, span) in &whole {
        let run = found.iter().find(|run| run.apart(*span) <= join);
        let of = run.and_then(|run| episodes.iter_mut().find(|(episode, _)| run.within(*episode)));
        match of {
            Some((_, ids)) => ids.push(*id),
            None => out.push(Change::Withdraw(*id)),
        }
    }
    for (span, ids) in episodes {
        // The one that was there first stays, and with it who acknowledged it.
        let first = look.known.iter().find(|(id, _)| ids.contains(id));
        match first {
            None => out.push(Change::Raise(span)),
            Some((id, before)) => {
                if *before != span {
                    out.push(Change::Stretch(*id, span));
                }
                out.extend(ids.iter().filter(|other| *other != id).map(|other| Change::Withdraw(*other)));
            }
        }
    }
    out
}

/// Where the condition held for long enough without a break.
fn runs(look: &Look) -> Vec<Span> {
    let lasts = SignedDuration::try_from(look.lasts).unwrap_or(SignedDuration::MAX);
    let least = SignedDuration::try_from(look.least).unwrap_or(SignedDuration::MAX);
    let apart = |a, b| SignedDuration::try_from(look.apart.between(a, b)).unwrap_or(SignedDuration::MAX);
    look.held
        .chunk_by(|a, b| b.duration_since(*a) <= apart(*a, *b))
        .filter_map(|run| {
            let span = Span { from: *run.first()?, to: run.last()?.saturating_add(lasts).ok()? };
            (span.to.duration_since(span.from) >= least).then_some(span)
        })
        .collect()
}

/// What an evaluation did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Evaluated {
    /// New alerts.
    pub raised: u64,
    /// Alerts that are longer or shorter than they were.
    pub stretched: u64,
    /// Alerts that are not, or are part of another.
    pub withdrawn: u64,
}

impl Evaluated {
    const fn and(self, other: Self) -> Self {
        Self {
            raised: self.raised + other.raised,
            stretched: self.stretched + other.stretched,
            withdrawn: self.withdrawn + other.withdrawn,
        }
    }
}

const WITHDRAW: &str = "UPDATE alerts SET withdrawn_at = clock_timestamp() WHERE id = $1";

/// Looks at what was noted of a clinic until all of it was, or for a turn, but at least once: what is left then has notes still.
/// Readings from before `raw_from` are kept no more and say nothing.
pub fn evaluate(
    pool: &Pool,
    tenant: Uuid,
    raw_from: Timestamp,
    turn: Duration,
) -> Work<'_, Result<Evaluated, Error>> {
    Box::pin(evaluate_in_turn(pool, tenant, raw_from, turn))
}

async fn evaluate_in_turn(
    pool: &Pool,
    tenant: Uuid,
    raw_from: Timestamp,
    turn: Duration,
) -> Result<Evaluated, Error> {
    let began = Instant::now();
    let mut client = pool.get().await?;
    let mut out = Evaluated::default();
    let types = types(&client, tenant).await?;
    let rules = i32::try_from(types.len()).unwrap_or(i32::MAX).max(1);
    let mut most = (LOOKS / rules).clamp(1, NOTES);
    let mut notes = FIRST.min(most);
    loop {
        match evaluate_some(&mut client, (tenant, &types), notes, raw_from).await {
            Ok(some) => {
                out = out.and(some.done);
                if !some.left || began.elapsed() >= turn {
                    return Ok(out);
                }
                notes = if some.held > HELD { notes / LESS } else { notes.saturating_mul(2) }.clamp(1, most);
            }
            Err(error) if error.is_timeout() && notes > 1 => {
                most = (notes / LESS).max(1);
                tracing::info!(%tenant, notes, %error, "what changed was not looked at in time; less of it is");
                notes = most;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a transaction did.
struct Part {
    done: Evaluated,
    /// Times at which conditions held: what was in memory.
    held: usize,
    left: bool,
}

async fn evaluate_some(
    client: &mut Client,
    (tenant, types): (Uuid, &HashMap<Uuid, ChannelId>),
    notes: i32,
    raw_from: Timestamp,
) -> Result<Part, Error> {
    let tx = client.transaction().await?;
    let take = tx.prepare_cached("SELECT * FROM ts.take_alert_notes($1, $2, $3, $4)").await?;
    let rows = tx.query(&take, &[&tenant, &notes, &raw_from, &JOIN.as_secs_f64()]).await?;
    let asked: Vec<Asked> = rows.iter().filter_map(asked).collect();
    let spans = intervals::of_rules(&tx, tenant, &asked).await?;
    let (mut done, mut held) = (Evaluated::default(), 0);
    for row in &rows {
        let of: (Uuid, Uuid) = (row.get("rule"), row.get("wearer"));
        let apart = types.get(&of.0).map(|channel| {
            Apart::Minutes(InForce::new(*channel, spans.get(&of).map_or(&[][..], Vec::as_slice)))
        });
        let look = look(row, apart);
        held += look.held.len();
        for change in changes(&look, JOIN) {
            done = done.and(carry_out(&tx, of, change).await?);
        }
    }
    if done != Evaluated::default() {
        let notice = serde_json::json!({ "tenant": tenant }).to_string();
        tx.execute("SELECT pg_notify('kinara_alert', $1)", &[&notice]).await?;
    }
    let left: bool = tx.query_one("SELECT ts.alert_notes_left($1)", &[&tenant]).await?.get(0);
    tx.commit().await?;
    Ok(Part { done, held, left })
}

async fn carry_out(
    tx: &Transaction<'_>,
    (rule, wearer): (Uuid, Uuid),
    change: Change,
) -> Result<Evaluated, Error> {
    let mut done = Evaluated::default();
    let (alert, span) = match change {
        Change::Withdraw(id) => {
            done.withdrawn = tx.execute(WITHDRAW, &[&id]).await?;
            return Ok(done);
        }
        Change::Raise(span) => {
            done.raised = 1;
            (None, span)
        }
        Change::Stretch(id, span) => {
            done.stretched = 1;
            (Some(id), span)
        }
    };
    let put = tx.prepare_cached("SELECT ts.put_alert($1, $2, $3, $4, $5)").await?;
    tx.execute(&put, &[&alert, &rule, &wearer, &span.from, &span.to]).await?;
    Ok(done)
}

/// The channel of each of a clinic's rules of readings.
async fn types(client: &Client, tenant: Uuid) -> Result<HashMap<Uuid, ChannelId>, Error> {
    const TYPES: &str = "SELECT id, type FROM alert_rules WHERE tenant_id = $1 AND type IS NOT NULL";
    let statement = client.prepare_cached(TYPES).await?;
    let rows = client.query(&statement, &[&tenant]).await?;
    Ok(rows.iter().map(|row| (row.get(0), ChannelId(row.get::<_, i16>(1) as u16))).collect())
}

/// Whose intervals of which time a look needs.
fn asked(row: &tokio_postgres::Row) -> Option<Asked> {
    let (from, to): (Vec<Timestamp>, Vec<Timestamp>) = (row.get("looked_from"), row.get("looked_to"));
    let (from, to) = (from.into_iter().min()?, to.into_iter().max()?);
    Some(Asked { rule: row.get("rule"), wearer: row.get("wearer"), from, to })
}

/// `apart`: of a rule of readings.
fn look(row: &tokio_postgres::Row, apart: Option<Apart>) -> Look {
    let seconds = |name: &str| Duration::from_secs_f64(row.get::<_, f64>(name).max(0.0));
    let spans = |from: &str, to: &str| -> Vec<Span> {
        let (from, to): (Vec<Timestamp>, Vec<Timestamp>) = (row.get(from), row.get(to));
        from.into_iter().zip(to).map(|(from, to)| Span { from, to }).collect()
    };
    let lasts = seconds("lasts_s");
    Look {
        lasts,
        apart: apart.unwrap_or(Apart::By(lasts)),
        least: seconds("least_s"),
        looked: spans("looked_from", "looked_to"),
        held: row.get("held"),
        known: row.get::<_, Vec<Uuid>>("known").into_iter().zip(spans("known_from", "known_to")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use kinara_protocol::channel::BATTERY;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_020 + minute * 60).unwrap()
    }

    fn span(from: i64, to: i64) -> Span {
        Span { from: at(from), to: at(to) }
    }

    /// Minutes of which at least three one after another make an alert.
    fn look(looked: &[Span], held: &[i64], known: &[(Uuid, Span)]) -> Look {
        let inside = |minute: &&i64| looked.iter().any(|s| s.from <= at(**minute) && at(**minute) < s.to);
        Look {
            lasts: MINUTE,
            apart: Apart::By(MINUTE),
            least: 3 * MINUTE,
            looked: looked.to_vec(),
            held: held.iter().filter(inside).map(|minute| at(*minute)).collect(),
            known: known.to_vec(),
        }
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn an_alert_needs_its_minutes_one_after_another() {
        let all = [span(0, 200)];
        assert_eq!(changes(&look(&all, &[1, 2, 4, 5], &[]), JOIN), []);
        assert_eq!(changes(&look(&all, &[1, 2, 3], &[]), JOIN), [Change::Raise(span(1, 4))]);
    }

    #[test]
    fn what_comes_every_five_minutes_holds_without_a_break() {
        let apart = Apart::Minutes(InForce::new(BATTERY, &[]));
        let look = |held: &[i64]| Look {
            apart: apart.clone(),
            least: 5 * MINUTE,
            ..look(&[span(0, 200)], held, &[])
        };
        // A reading falls anywhere in its minute: now and then six minutes lie between.
        assert_eq!(changes(&look(&[1, 6, 12]), JOIN), [Change::Raise(span(1, 13))]);
        assert_eq!(changes(&look(&[1]), JOIN), []);
        assert_eq!(changes(&look(&[1, 11]), JOIN), [], "one was not below");
    }

    #[test]
    fn what_swings_about_the_bound_is_one_alert_and_what_is_farther_apart_is_two() {
        let all = [span(0, 200)];
        let held = [1, 2, 3, 14, 15, 16, 30, 31, 32];
        let expected = [Change::Raise(span(1, 17)), Change::Raise(span(30, 33))];
        assert_eq!(changes(&look(&all, &held, &[]), JOIN), expected);
    }

    #[test]
    fn events_of_two_producers_within_the_time_are_one_episode() {
        let look = Look {
            lasts: Duration::ZERO,
            apart: Apart::By(Duration::ZERO),
            least: Duration::ZERO,
            looked: vec![span(0, 200)],
            held: vec![at(5), at(9), at(60)],
            known: vec![],
        };
        let expected = [Change::Raise(span(5, 9)), Change::Raise(span(60, 60))];
        assert_eq!(changes(&look, JOIN), expected);
    }

    #[test]
    fn an_alert_that_is_what_was_found_is_left_alone() {
        let known = [(id(1), span(1, 4))];
        assert_eq!(changes(&look(&[span(0, 200)], &[1, 2, 3], &known), JOIN), []);
    }

    #[test]
    fn a_late_minute_between_two_alerts_makes_them_the_first() {
        let known = [(id(1), span(1, 4)), (id(2), span(20, 24))];
        let held = [1, 2, 3, 10, 11, 12, 13, 14, 20, 21, 22, 23];
        assert_eq!(
            changes(&look(&[span(0, 200)], &held, &known), JOIN),
            [Change::Stretch(id(1), span(1, 24)), Change::Withdraw(id(2))]
        );
    }

    #[test]
    fn an_alert_whose_readings_are_another_wearers_is_withdrawn() {
        let known = [(id(1), span(1, 4))];
        assert_eq!(changes(&look(&[span(0, 200)], &[], &known), JOIN), [Change::Withdraw(id(1))]);
    }

    #[test]
    fn what_was_not_looked_at_still_stands_and_is_continued() {
        let known = [(id(1), span(1, 70))];
        let held = [65, 66, 67, 68, 69, 70, 71];
        let expected = [Change::Stretch(id(1), span(1, 72))];
        assert_eq!(changes(&look(&[span(60, 130)], &held, &known), JOIN), expected);
        assert_eq!(changes(&look(&[span(60, 130)], &[], &known), JOIN), []);
    }

    /// Reveals the hours of a day in some order, looks at each as the database does, and gives the alerts at the end.
    fn alerts_in_order(held: &[i64], hours: &[i64]) -> Vec<Span> {
        let reach = 3 + 10;
        let mut seen: Vec<i64> = Vec::new();
        let mut alerts: Vec<(Uuid, Span)> = Vec::new();
        for (n, hour) in hours.iter().enumerate() {
            seen.extend(held.iter().filter(|minute| **minute / 60 == *hour));
            seen.sort_unstable();
            let looked = span(hour * 60 - reach, hour * 60 + 60 + reach);
            let known: Vec<_> = alerts
                .iter()
                .copied()
                .filter(|(_, span)| span.apart(looked) <= SignedDuration::from_mins(10))
                .collect();
            for (k, change) in changes(&look(&[looked], &seen, &known), JOIN).into_iter().enumerate() {
                match change {
                    Change::Raise(span) => alerts.push((id((n * 1000 + k + 1) as u128), span)),
                    Change::Stretch(which, span) => {
                        alerts.iter_mut().find(|(id, _)| *id == which).unwrap().1 = span;
                    }
                    Change::Withdraw(which) => alerts.retain(|(id, _)| *id != which),
                }
            }
            alerts.sort_by_key(|(_, span)| *span);
        }
        alerts.into_iter().map(|(_, span)| span).collect()
    }

    proptest::proptest! {
        #[test]
        fn the_alerts_do_not_depend_on_the_order_in_which_the_hours_came(
            stretches in proptest::collection::vec((0i64..480, 1i64..70), 0..12),
            order in proptest::strategy::Strategy::prop_shuffle(proptest::strategy::Just((0i64..8).collect::<Vec<_>>())),
        ) {
            let minutes = stretches.iter().flat_map(|(from, many)| *from..(from + many).min(480));
            let held: Vec<i64> = minutes.collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            let at_once: Vec<Span> = changes(&look(&[span(-100, 700)], &held, &[]), JOIN)
                .into_iter()
                .map(|change| match change {
                    Change::Raise(span) => span,
                    other => panic!("{other:?} of nothing"),
                })
                .collect();
            // Twice, as a replay would.
            let hours: Vec<i64> = order.iter().copied().chain(0..8).collect();
            proptest::prop_assert_eq!(alerts_in_order(&held, &hours), at_once);
        }
    }
}
