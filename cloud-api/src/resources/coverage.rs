//! The ledger of a wearer's seconds: of each channel, what became of every second.
//!
//! A second is, of what is true of it the first in this list: `received`; `worn_off` (the wearable said it was not worn);
//! `lost`, with the reason; `late` (somebody may still hold it); `out_of_range` (nobody heard the sensor, or it had nothing
//! to say). A reading covers the interval that was in force, up to its own time.

use axum::Json;
use axum::extract::State;
use kinara_ingest::intervals::{InForce, Span};
use kinara_protocol::channel;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{known_user, period};
use crate::App;
use crate::access::Member;
use crate::database::TenantTransaction;
use crate::problem::{Problem, Query};
use crate::times::UtcMs;

/// Hours of a question that does not say from when.
const DEFAULT_HOURS: i64 = 1;
/// Longest period of one question, seconds: a day.
const LONGEST_S: i64 = 86_400;

/// Seconds of one kind, one after another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Run {
    /// The first of them: milliseconds since 1970, UTC.
    pub from_ms: i64,
    /// Behind the last of them.
    pub to_ms: i64,
    /// `received`, `worn_off`, `lost`, `late` or `out_of_range`.
    pub state: &'static str,
    /// Why they are lost.
    pub reason: Option<String>,
}

/// What became of a period.
#[derive(Debug, Serialize, ToSchema)]
pub struct Coverage {
    /// Seconds that one reading of this type covers, at the end of the period.
    pub interval_s: i64,
    /// Of all seconds, those that were received, 0 to 1.
    pub received: f64,
    /// Without a hole, in order.
    pub runs: Vec<Run>,
}

/// Whose, what and when.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CoverageQuery {
    /// The wearer.
    user_id: Uuid,
    /// `heart_rate`, ….
    reading_type: String,
    /// RFC 3339, or milliseconds since 1970; an hour before `to` if left out.
    #[param(value_type = Option<String>)]
    from: Option<UtcMs>,
    /// RFC 3339, or milliseconds since 1970; now if left out.
    #[param(value_type = Option<String>)]
    to: Option<UtcMs>,
}

/// However many gaps there are of a reason: where they lie, from whole seconds on. What has no time is of all times.
pub const GAPS: &str = "
    SELECT lower(s.times), upper(s.times), s.reason
    FROM (
      SELECT g.reason, unnest(range_agg(tstzrange(
        date_trunc('second', greatest(least(coalesce(g.from_time, $2), coalesce(g.to_time, $3)), $2)),
        least(greatest(coalesce(g.from_time, $2), coalesce(g.to_time, $3)), $3), '[]'))) AS times
      FROM gaps_within($1, $2, $3, NULL) g
      WHERE (g.from_time IS NULL OR g.from_time < $3) AND (g.to_time IS NULL OR g.to_time > $2)
      GROUP BY g.reason) s
    ORDER BY s.reason <> 'late', s.reason";
/// Of each second the last word.
const WEAR: &str = "
    (SELECT at, worn FROM wearer_wear WHERE user_id = $1 AND at < $2 ORDER BY at DESC LIMIT 1)
    UNION ALL (
      SELECT DISTINCT ON (date_trunc('second', at)) at, worn FROM wearer_wear WHERE user_id = $1 AND at >= $2 AND at < $3
      ORDER BY date_trunc('second', at), at DESC)
    ORDER BY at";
/// Words about an interval that are gone through: one a second.
const MOST_SPANS: i64 = LONGEST_S;

/// Something that lasts: from, to (seconds since 1970), and its state: a place in the list of states.
struct Stretch {
    from: i64,
    to: i64,
    state: usize,
}

/// What became of every second of a day at most.
#[utoipa::path(get, path = "/api/v1/coverage", tag = "gaps", params(CoverageQuery),
    responses(
        (status = 200, body = Coverage),
        (status = 404, description = "No such wearer", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "More than a day, or no such type", body = Problem, content_type = "application/problem+json")))]
pub async fn show(
    State(app): State<App>,
    member: Member,
    Query(query): Query<CoverageQuery>,
) -> Result<Json<Coverage>, Problem> {
    let (from, to) = period(&app, query.from, query.to, DEFAULT_HOURS)?;
    let (first, behind) = (from.as_second(), to.as_second());
    if behind - first > LONGEST_S {
        return Err(Problem::invalid("Ask for a day at most."));
    }
    let channel = channel::by_name(&query.reading_type)
        .ok_or_else(|| Problem::invalid(format!("There is no type {:?}.", query.reading_type)))?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(member.tenant).await?;
    known_user(&transaction, query.user_id).await?;
    // From the least to the most telling: what comes later covers what came before.
    let mut states: Vec<(&'static str, Option<String>)> = vec![("out_of_range", None), ("late", None)];
    let mut stretches = Vec::new();
    let gaps = transaction.rows(GAPS, &[&query.user_id, &from, &to]).await?;
    for gap in &gaps {
        let (begins, ends): (Option<jiff::Timestamp>, Option<jiff::Timestamp>) =
            (gap.try_get(0)?, gap.try_get(1)?);
        let reason: String = gap.try_get(2)?;
        let state = if reason == "late" {
            1
        } else {
            let lost = ("lost", Some(reason));
            states.iter().position(|state| *state == lost).unwrap_or_else(|| {
                states.push(lost);
                states.len() - 1
            })
        };
        // Frames that hold a part of a second leave it to what was received.
        let from = begins.map_or(first, jiff::Timestamp::as_second);
        stretches.push(Stretch { from, to: ends.map_or(behind, ceiling), state });
    }
    let worn_off = states.len();
    states.push(("worn_off", None));
    let wear = transaction.rows(WEAR, &[&query.user_id, &from, &to]).await?;
    let mut said = Vec::with_capacity(wear.len());
    for row in &wear {
        said.push((row.try_get::<_, jiff::Timestamp>(0)?.as_second(), row.try_get::<_, bool>(1)?));
    }
    for (place, (at, worn)) in said.iter().enumerate() {
        if !worn {
            let to = said.get(place + 1).map_or(behind, |next| next.0);
            stretches.push(Stretch { from: *at, to, state: worn_off });
        }
    }
    let received = states.len();
    states.push(("received", None));
    let in_force = in_force(&transaction, query.user_id, channel, (from, to)).await?;
    let until = to.checked_add(in_force.longest()).unwrap_or(to);
    let seconds = transaction
        .rows(
            "SELECT DISTINCT floor(extract(epoch FROM time))::int8 FROM readings
             WHERE user_id = $1 AND reading_type = $2 AND time >= $3 AND time < $4 AND quality > 0",
            &[&query.user_id, &query.reading_type, &from, &until],
        )
        .await?;
    for row in &seconds {
        let at: i64 = row.try_get(0)?;
        let covered = jiff::Timestamp::from_second(at).map_or(1, |at| seconds_of(in_force.covered(at)));
        stretches.push(Stretch { from: at + 1 - covered, to: at + 1, state: received });
    }
    let of = paint(first, behind, &stretches);
    let share = of.iter().filter(|state| **state == received).count() as f64 / of.len().max(1) as f64;
    Ok(Json(Coverage {
        interval_s: seconds_of(in_force.at(to)),
        received: share,
        runs: runs(first, &of, &states),
    }))
}

/// The intervals of a wearer's devices in a period, and for as long after it as a reading may cover.
async fn in_force(
    transaction: &TenantTransaction<'_>,
    user: Uuid,
    channel: &channel::Channel,
    (from, to): (jiff::Timestamp, jiff::Timestamp),
) -> Result<InForce, Problem> {
    const SPANS: &str = "
        SELECT from_time, to_time, interval_ms
        FROM wearer_interval_spans($1, $2, $3::timestamptz - interval '1 day', $4::timestamptz + interval '1 day')
        ORDER BY from_time DESC LIMIT $5";
    let channel_number = channel.id.0 as i16;
    let rows = transaction.rows(SPANS, &[&user, &channel_number, &from, &to, &MOST_SPANS]).await?;
    let mut spans = Vec::with_capacity(rows.len());
    for row in &rows {
        spans.push(Span::read(row, 0)?);
    }
    Ok(InForce::new(channel.id, &spans))
}

/// Whole seconds: what comes more often covers one.
fn seconds_of(interval: std::time::Duration) -> i64 {
    interval.as_secs_f64().ceil() as i64
}

fn ceiling(time: jiff::Timestamp) -> i64 {
    time.as_second() + i64::from(time.subsec_nanosecond() > 0)
}

/// The state of every second, later stretches over earlier ones. From the last to the first, and each second once: what it costs is
/// the number of seconds and that of stretches, however long each of these is.
fn paint(first: i64, behind: i64, stretches: &[Stretch]) -> Vec<usize> {
    let mut of = vec![0; usize::try_from(behind - first).unwrap_or(0)];
    // Of each second the next one that has no state yet, or one before that.
    let mut free: Vec<usize> = (0..=of.len()).collect();
    for stretch in stretches.iter().rev() {
        let place = |second: i64| usize::try_from(second.clamp(first, behind) - first).unwrap_or(0);
        let to = place(stretch.to);
        let mut at = next_free(&mut free, place(stretch.from));
        while at < to {
            of[at] = stretch.state;
            free[at] = at + 1;
            at = next_free(&mut free, at + 1);
        }
    }
    of
}

/// The next second that has no state yet; the way there is shorter for whoever comes after.
fn next_free(free: &mut [usize], mut at: usize) -> usize {
    while free[at] != at {
        free[at] = free[free[at]];
        at = free[at];
    }
    at
}

fn runs(first: i64, of: &[usize], states: &[(&'static str, Option<String>)]) -> Vec<Run> {
    let mut at = first;
    of.chunk_by(|a, b| a == b)
        .map(|run| {
            let from = at;
            at += run.len() as i64;
            let (state, reason) = states[run[0]].clone();
            Run { from_ms: from * 1_000, to_ms: at * 1_000, state, reason }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_telling_covers_what_is_less_and_every_second_has_one_state() {
        let states =
            [("out_of_range", None), ("late", None), ("lost", Some("reset".to_owned())), ("received", None)];
        let stretch = |from, to, state| Stretch { from, to, state };
        let of = paint(
            100,
            112,
            &[stretch(90, 106, 1), stretch(103, 105, 2), stretch(104, 105, 3), stretch(110, 500, 3)],
        );
        let told: Vec<(i64, i64, &str)> = runs(100, &of, &states)
            .iter()
            .map(|run| (run.from_ms / 1_000, run.to_ms / 1_000, run.state))
            .collect();
        assert_eq!(
            told,
            [
                (100, 103, "late"),
                (103, 104, "lost"),
                (104, 105, "received"),
                (105, 106, "late"),
                (106, 110, "out_of_range"),
                (110, 112, "received")
            ]
        );
    }

    #[test]
    fn a_day_of_readings_that_each_cover_a_day_and_a_million_gaps_are_painted_at_once() {
        let day = LONGEST_S;
        let gaps = (0..1_000_000).map(|_| Stretch { from: 0, to: day, state: 1 });
        let readings = (0..2 * day).map(|at| Stretch { from: at + 1 - day, to: at + 1, state: 2 });
        let began = std::time::Instant::now();
        let of = paint(0, day, &gaps.chain(readings).collect::<Vec<_>>());
        assert!(of.iter().all(|state| *state == 2));
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(paint(5, 5, &[Stretch { from: 0, to: 9, state: 1 }]).is_empty());
    }
}
