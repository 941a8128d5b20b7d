//! How often a device measured: the interval in force at a time, the registry's where nothing else was said.
//!
//! The promise: what a wearable's log says of its intervals is recorded in the transaction that takes the frame, once, at the
//! frame's own time; a boot ends it. Whoever counts readings asks for the interval by device and time. What a clinic's frame says
//! holds in that clinic's time alone.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use kinara_protocol::channel::{self, ChannelId};
use kinara_protocol::frame::DeviceEventKind;
use kinara_store::Transaction;
use uuid::Uuid;

use crate::batch::Content;
use crate::plan::Taken;
use crate::{Error, timestamp};

/// In place of a channel's number, of a boot: all of them.
const ALL: i16 = 0;
/// The longest interval that is believed: a day.
const LONGEST_MS: u32 = 86_400_000;

const INSERT: &str = "
    INSERT INTO device_intervals (hardware, channel, from_time, interval_ms)
    SELECT * FROM unnest($1::uuid[], $2::int2[], $3::timestamptz[], $4::int4[]) ON CONFLICT DO NOTHING
    RETURNING hardware, channel, from_time, interval_ms";

/// Records what the frames that are written now say, and has rules look again at the time that it changes: such a word may
/// come after the readings that it is about.
pub(crate) async fn hear(tx: &Transaction<'_>, new: &[Taken<'_>]) -> Result<(), Error> {
    let (mut hardware, mut channels, mut times, mut intervals) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // A word of which nobody knows when it was changes nothing at a time that is known.
    for taken in new.iter().filter(|taken| !taken.time_uncertain) {
        for (channel, interval_ms) in said(&taken.frame.content) {
            hardware.push(taken.key.hardware);
            channels.push(channel);
            times.push(timestamp(said_at(taken)));
            intervals.push(interval_ms);
        }
    }
    if hardware.is_empty() {
        return Ok(());
    }
    let statement = tx.prepare_cached(INSERT).await?;
    let new = tx.query(&statement, &[&hardware, &channels, &times, &intervals]).await?;
    if new.is_empty() {
        return Ok(());
    }
    let hardware: Vec<Uuid> = new.iter().map(|row| row.get(0)).collect();
    let channels: Vec<i16> = new.iter().map(|row| row.get(1)).collect();
    let times: Vec<Timestamp> = new.iter().map(|row| row.get(2)).collect();
    let intervals: Vec<i32> = new.iter().map(|row| row.get(3)).collect();
    let note = tx.prepare_cached("SELECT ts.note_intervals($1, $2, $3, $4)").await?;
    tx.query(&note, &[&hardware, &channels, &times, &intervals]).await?;
    Ok(())
}

/// The frame's time is its event's. A boundary that names a frame gives frames away by their numbers: one whose time is
/// of the wearer before or after says nothing of that one's time.
fn said_at(taken: &Taken<'_>) -> i64 {
    let assignment = taken.assignment;
    let last_us = assignment.to.map_or(i64::MAX, |to| to.time_us.saturating_sub(1));
    taken.frame.first_us.min(last_us).max(assignment.from.time_us)
}

fn said(content: &Content) -> Vec<(i16, i32)> {
    match content {
        Content::Boot(_) => vec![(ALL, 0)],
        Content::Events(events) => events
            .iter()
            .filter_map(|event| match event.kind {
                DeviceEventKind::Interval { channel, every_ms: every_ms @ 1..=LONGEST_MS } => {
                    // Of a channel that nobody here counts by it says nothing.
                    let channel = channel::by_id(channel)?.id;
                    Some((i16::try_from(channel.0).ok()?, i32::try_from(every_ms).ok()?))
                }
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// A time in which a channel had an interval of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From here on.
    pub from: Timestamp,
    /// Up to here; none: until now.
    pub to: Option<Timestamp>,
    /// The interval.
    pub interval: Duration,
}

impl Span {
    /// Of a row: from, to, milliseconds.
    pub fn read(row: &tokio_postgres::Row, first: usize) -> Result<Self, tokio_postgres::Error> {
        let interval_ms: i32 = row.try_get(first + 2)?;
        let interval = Duration::from_millis(interval_ms.unsigned_abs().into());
        Ok(Self { from: row.try_get(first)?, to: row.try_get(first + 1)?, interval })
    }
}

/// What holds from when on. Whoever looks up many times looks among these, however many spans there are.
fn steps(spans: &[Span]) -> Vec<(Timestamp, Option<Duration>)> {
    let begin = spans.iter().filter(|span| span.to.is_none_or(|to| span.from < to));
    let mut edges: Vec<(Timestamp, bool, Duration)> =
        begin.clone().map(|span| (span.from, true, span.interval)).collect();
    edges.extend(begin.filter_map(|span| Some((span.to?, false, span.interval))));
    edges.sort_unstable();
    let mut open: BTreeMap<Duration, usize> = BTreeMap::new();
    let mut out: Vec<(Timestamp, Option<Duration>)> = Vec::with_capacity(edges.len());
    for (at, begins, interval) in edges {
        let count = open.entry(interval).or_default();
        // An end may stand before the beginning of the span behind it, never before its own.
        if begins {
            *count += 1;
        } else {
            *count -= 1;
        }
        if *count == 0 {
            open.remove(&interval);
        }
        let longest = open.last_key_value().map(|(interval, _)| *interval);
        match out.last_mut() {
            Some(last) if last.0 == at => last.1 = longest,
            _ => out.push((at, longest)),
        }
    }
    out
}

/// The intervals of one channel of one wearer's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    usual: Duration,
    /// From each time on, until the next one's: the longest interval of devices that measured side by side, where one had an
    /// interval of its own. In the order of time.
    steps: Vec<(Timestamp, Option<Duration>)>,
}

impl InForce {
    /// The registry's interval of a channel (a second, of one that it does not know), and when it was another one.
    pub fn new(channel: ChannelId, spans: &[Span]) -> Self {
        let usual = channel::by_id(channel).map_or(1, |known| known.interval_s);
        Self { usual: Duration::from_secs(usual.into()), steps: steps(spans) }
    }

    /// The interval in force at a time: the longest, of devices that measured side by side.
    pub fn at(&self, at: Timestamp) -> Duration {
        let behind = self.steps.partition_point(|(from, _)| *from <= at);
        let step = behind.checked_sub(1).and_then(|place| self.steps.get(place));
        step.and_then(|(_, interval)| *interval).unwrap_or(self.usual)
    }

    /// The longest of all, the registry's among them.
    pub fn longest(&self) -> Duration {
        self.steps
            .iter()
            .filter_map(|(_, interval)| *interval)
            .chain([self.usual])
            .max()
            .unwrap_or(self.usual)
    }

    /// How long a reading of this time stands for: the interval then; that of before, where it changed since the reading
    /// before may have been taken. The last one at a longer interval is as long ago as that.
    pub fn covered(&self, at: Timestamp) -> Duration {
        let interval = self.at(at);
        let before = at.checked_sub(interval + Duration::from_secs(1)).unwrap_or(at);
        interval.max(self.at(before))
    }

    /// How far apart the minutes of two successive readings begin at most, the later of which is of this time.
    pub fn minutes_apart(&self, earlier: Timestamp, later: Timestamp) -> Duration {
        let interval = self.at(earlier).max(self.at(later));
        let seconds = u32::try_from(interval.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX);
        Duration::from_secs(channel::minutes_apart_s(seconds).into())
    }
}

/// A rule and a wearer that are looked at, and the time that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub rule: Uuid,
    pub wearer: Uuid,
    pub from: Timestamp,
    pub to: Timestamp,
}

/// The intervals of the channel of each rule that was looked at, by rule and wearer.
pub(crate) async fn of_rules(
    tx: &Transaction<'_>,
    tenant: Uuid,
    asked: &[Asked],
) -> Result<HashMap<(Uuid, Uuid), Vec<Span>>, Error> {
    const SPANS: &str = "
        SELECT r.id, l.wearer, greatest(a.valid_from, s.from_time), least(a.valid_to, s.to_time), s.interval_ms
        FROM unnest($2::uuid[], $3::uuid[], $4::timestamptz[], $5::timestamptz[]) l(rule, wearer, since, until)
        JOIN alert_rules r ON r.id = l.rule AND r.tenant_id = $1 AND r.type IS NOT NULL
        CROSS JOIN LATERAL (
          SELECT a.hardware_id, a.valid_from, a.valid_to FROM device_assignments a
          WHERE a.tenant_id = $1 AND a.user_id = l.wearer
            AND a.valid_from < l.until AND (a.valid_to IS NULL OR a.valid_to > l.since) OFFSET 0) a
        CROSS JOIN LATERAL interval_spans(a.hardware_id, $1, r.type, greatest(a.valid_from, l.since),
          least(a.valid_to, l.until)) s";
    let rules: Vec<Uuid> = asked.iter().map(|one| one.rule).collect();
    let wearers: Vec<Uuid> = asked.iter().map(|one| one.wearer).collect();
    let since: Vec<Timestamp> = asked.iter().map(|one| one.from).collect();
    let until: Vec<Timestamp> = asked.iter().map(|one| one.to).collect();
    let statement = tx.prepare_cached(SPANS).await?;
    let rows = tx.query(&statement, &[&tenant, &rules, &wearers, &since, &until]).await?;
    let mut out: HashMap<(Uuid, Uuid), Vec<Span>> = HashMap::new();
    for row in &rows {
        out.entry((row.get(0), row.get(1))).or_default().push(Span::read(row, 2)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_protocol::channel::HEART_RATE;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + second).unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_interval_holds_from_when_it_was_said_to_the_next_word_and_the_registrys_around_it() {
        let span = Span { from: at(1_000), to: Some(at(2_000)), interval: seconds(120) };
        let force = InForce::new(HEART_RATE, &[span]);
        let told: Vec<u64> = [999, 1_000, 1_999, 2_000].map(|second| force.at(at(second)).as_secs()).to_vec();
        assert_eq!(told, [1, 120, 120, 1]);
        assert_eq!(force.longest(), seconds(120));
        // The first one of each second after it: the one before was up to two minutes ago.
        assert_eq!(force.covered(at(2_000)), seconds(120));
        assert_eq!(force.covered(at(2_005)), seconds(1));
        assert_eq!(force.minutes_apart(at(1_990), at(2_001)), seconds(180));
        assert_eq!(force.minutes_apart(at(2_001), at(2_002)), seconds(60));
    }

    #[test]
    fn of_devices_side_by_side_the_longest_interval_is_in_force_and_a_million_changes_are_looked_up_at_once()
    {
        let span =
            |from, to, interval| Span { from: at(from), to: Some(at(to)), interval: seconds(interval) };
        let force = InForce::new(HEART_RATE, &[span(10, 40, 60), span(20, 30, 300), span(30, 50, 60)]);
        let told = [9, 10, 20, 29, 30, 39, 40, 49, 50].map(|second| force.at(at(second)).as_secs());
        assert_eq!(told, [1, 60, 300, 300, 60, 60, 60, 60, 1]);
        let many: Vec<Span> =
            (0..1_000_000).map(|second| span(second, second + 1, 2 + second as u64 % 2)).collect();
        let (force, began) = (InForce::new(HEART_RATE, &many), std::time::Instant::now());
        assert!((0..86_400).all(|second| force.at(at(second)).as_secs() == 2 + second as u64 % 2));
        assert!(began.elapsed() < seconds(5), "a day's look-ups took {:?}", began.elapsed());
    }
}
