//! Whether the gateway itself knows what time it is, and from whom.
//!
//! The promise: a time before the [floor](super::floor) is never believed, whoever tells it, and one beyond its ceiling
//! only when it is confirmed. Sources are asked in a fixed order: systemd's timedate1 over D-Bus, the kernel, and, where
//! the configuration says so, the machine's clock unproven; then the bridge's time as it comes with MQTT or a web
//! server's where one is configured (whichever is the surer). A time is confirmed by two kinds of source that agree
//! (machine, bridge, web), or by a bridge that proved who it is and names a time at which its certificate counts.
//! Monotonic time is `CLOCK_BOOTTIME`; the time is kept as an offset to it.

use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use tokio::sync::{mpsc, watch};

use super::certificates;
use super::floor::Floor;
use super::validity::Validity;
use crate::status::{Board, ClockSource, ClockState, Word};

/// This program has never run before this moment: [`FIRST_DATE_US`], or the build's `SOURCE_DATE_EPOCH`.
pub const BUILD_DATE_US: i64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => match i64::from_str_radix(text, 10) {
        Ok(seconds) => seconds * 1_000_000,
        Err(_) => FIRST_DATE_US,
    },
    None => FIRST_DATE_US,
};
/// No Kinara gateway has ever run before this moment: 2026-11-01T00:00:00Z.
pub const FIRST_DATE_US: i64 = 1_793_491_200_000_000;

/// The machine's clock when NTP keeps it: what systemd-timesyncd holds on an ordinary network.
const NTP_UNCERTAINTY_US: u64 = 2_000;
/// What the machine's clock is taken for when the configuration says to trust it.
const TRUSTED_UNCERTAINTY_US: u64 = 1_000;
/// On top of half the round trip of a time that was told.
const TOLD_UNCERTAINTY_US: u64 = 1_000_000;
/// The error of a clock that runs free, per second: 50 ppm.
const FREE_RUN_PPM: u64 = 50;
/// A jump of the machine's clock that is worth telling.
const JUMP_US: i64 = 100_000;
/// Two kinds of source that differ by no more than their uncertainty and this agree.
const AGREEMENT_US: u64 = 1_000_000;
/// A difference between two kinds of source that a person is told of, and for which the unproven machine gives way.
const CONTRADICTION_US: u64 = 60_000_000;
/// How long the time may be unknown, with no source at all, before a person is told that the box's clock is behind.
const BEHIND_US: i64 = 120_000_000;

/// UTC as this gateway knows it: the machine's boot time plus an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// UTC minus `CLOCK_BOOTTIME`, microseconds.
    pub utc_minus_boot_us: i64,
    /// How far off it may be.
    pub uncertainty_us: u64,
    /// Who said so.
    pub source: ClockSource,
    /// `CLOCK_BOOTTIME` when it was said.
    pub at_boot_us: i64,
}

impl Known {
    /// UTC at a boot time.
    pub fn utc_us(&self, boottime_us: i64) -> i64 {
        boottime_us + self.utc_minus_boot_us
    }

    /// Uncertainty at a boot time: a free-running clock drifts away from what was said.
    pub fn uncertainty_us_at(&self, boottime_us: i64) -> u64 {
        self.uncertainty_us + (boottime_us - self.at_boot_us).unsigned_abs() / 1_000_000 * FREE_RUN_PPM
    }
}

/// What somebody else answered to the question for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToldTime {
    /// `CLOCK_BOOTTIME` when the request was sent.
    pub asked_boot_us: i64,
    /// `CLOCK_BOOTTIME` when the answer came.
    pub answered_boot_us: i64,
    /// The other's UTC.
    pub utc_us: i64,
    /// When the certificate counts by which the other proved who it is; `None` if it did not.
    pub proof: Option<Validity>,
}

/// What one source says, whether it is believed or not.
#[derive(Debug, Clone, Copy)]
struct Said {
    known: Known,
    /// It proved who it is, by a certificate that counts at the time that it says.
    proved: bool,
}

/// What timedate1 and the kernel say; `None` when they cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Words {
    /// `org.freedesktop.timedate1`'s `NTPSynchronized`.
    pub timedate: Option<bool>,
    /// The kernel's status: the greatest error it admits in microseconds, when it says it is in step.
    pub kernel: Option<u64>,
}

/// What came of asking all sources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The time, if it is known.
    pub known: Option<Known>,
    /// Whether two kinds of source, or a bridge that proved who it is, say so.
    pub confirmed: bool,
    /// Each source's word.
    pub words: Vec<Word>,
    /// What a person should know: a source that is not believed, or two that differ. Empty when all is well.
    pub trouble: String,
}

/// Judges what the sources say.
#[derive(Debug)]
pub struct Judge {
    clock: Arc<dyn Clock>,
    floor: Floor,
    trust_system: bool,
    bridge: Option<Said>,
    https: Option<Said>,
}

impl Judge {
    /// A judge that believes nothing before the floor.
    pub fn new(clock: Arc<dyn Clock>, floor: Floor, trust_system: bool) -> Self {
        Self { clock, floor, trust_system, bridge: None, https: None }
    }

    /// The floor as it is now.
    pub fn floor(&self) -> Floor {
        self.floor
    }

    /// Forgets every time that this box was ever sure of, and what others said.
    pub fn forget(&mut self) {
        (self.floor, self.bridge, self.https) = (Floor::new(self.clock.boottime_us()), None, None);
    }

    /// Takes the bridge's word.
    pub fn bridge_said(&mut self, time: ToldTime) {
        self.bridge = Some(told(ClockSource::Bridge, time));
    }

    /// Takes a web server's word.
    pub fn https_said(&mut self, time: ToldTime) {
        self.https = Some(told(ClockSource::Https, time));
    }

    /// The time, by the first source in order that may be believed. What is confirmed moves the floor.
    pub fn decide(&mut self, words: Words) -> Verdict {
        let boot_us = self.clock.boottime_us();
        let said = self.said(words, boot_us);
        let confirmed = confirmed(&said, boot_us);
        if let Some(known) = confirmed {
            self.move_floor(&known, boot_us);
        }
        let known = said.iter().find(|word| self.believes(word, &said, boot_us)).map(|word| word.known);
        let words: Vec<Word> = said
            .iter()
            .map(|word| Word {
                source: word.known.source,
                utc_us: word.known.utc_us(boot_us),
                uncertainty_us: word.known.uncertainty_us_at(boot_us),
                believed: self.believes(word, &said, boot_us),
            })
            .collect();
        let trouble = self.trouble(known.as_ref(), &words, boot_us);
        let confirmed =
            known.is_some_and(|known| confirmed.is_some_and(|sure| agree(&sure, &known, boot_us)));
        Verdict { known, confirmed, words, trouble }
    }

    /// What each source says, in the order in which they are believed.
    fn said(&self, words: Words, boot_us: i64) -> Vec<Said> {
        let utc_us = self.clock.utc_us();
        let machine = |source, uncertainty_us| Said {
            known: Known { utc_minus_boot_us: utc_us - boot_us, uncertainty_us, source, at_boot_us: boot_us },
            proved: false,
        };
        let in_step = if words.timedate == Some(true) {
            Some(machine(ClockSource::Timedate, NTP_UNCERTAINTY_US))
        } else {
            words.kernel.map(|most| machine(ClockSource::Kernel, most.max(NTP_UNCERTAINTY_US)))
        };
        let trusted = self.trust_system.then(|| machine(ClockSource::TrustSystem, TRUSTED_UNCERTAINTY_US));
        let mut told: Vec<Said> = self.bridge.into_iter().chain(self.https).collect();
        told.sort_by_key(|word| word.known.uncertainty_us_at(boot_us));
        in_step.or(trusted).into_iter().chain(told).collect()
    }

    fn believes(&self, word: &Said, all: &[Said], boot_us: i64) -> bool {
        let utc_us = word.known.utc_us(boot_us);
        if utc_us + (word.known.uncertainty_us_at(boot_us) as i64) < self.floor.at_us {
            return false;
        }
        let agreed = all.iter().any(|other| {
            other.known.source != word.known.source && agree(&other.known, &word.known, boot_us)
        });
        let proved_by = all.iter().find(|other| other.proved && other.known.source == ClockSource::Bridge);
        if word.known.source == ClockSource::TrustSystem
            && !agreed
            && proved_by.is_some_and(|sure| difference_us(&sure.known, &word.known) > CONTRADICTION_US)
        {
            return false;
        }
        let by_itself = word.proved && word.known.source == ClockSource::Bridge;
        utc_us <= self.floor.ceiling_us(boot_us) || agreed || by_itself
    }

    fn move_floor(&mut self, sure: &Known, boot_us: i64) {
        let (utc_us, doubt_us) = (sure.utc_us(boot_us), sure.uncertainty_us_at(boot_us) as i64);
        let floor_us = self.floor.at_us;
        if utc_us + doubt_us < floor_us && utc_us >= BUILD_DATE_US {
            self.floor.lower(utc_us - doubt_us, boot_us);
            tracing::warn!(
                was = shown(floor_us),
                is = shown(self.floor.at_us),
                source = sure.source.as_str(),
                "the last time that this box was sure of was wrong; it is put back"
            );
        } else {
            self.floor.confirm(utc_us - doubt_us, boot_us);
        }
    }

    /// What a person should know of the sources.
    fn trouble(&self, known: Option<&Known>, words: &[Word], boot_us: i64) -> String {
        let Some(known) = known else { return self.why_unknown(words, boot_us) };
        let now_us = known.utc_us(boot_us);
        let other = words.iter().find(|word| {
            (word.utc_us - now_us).unsigned_abs()
                > word.uncertainty_us + known.uncertainty_us + CONTRADICTION_US
        });
        other.map_or_else(String::new, |other| {
            format!(
                "Two clocks differ: {} says that it is {}, {} that it is {}; the first is believed.",
                name(known.source),
                shown(now_us),
                name(other.source),
                shown(other.utc_us),
            )
        })
    }

    fn why_unknown(&self, words: &[Word], boot_us: i64) -> String {
        let floor_us = self.floor.at_us;
        let Some(word) = words.first() else { return String::new() };
        let (who, what) = (name(word.source), shown(word.utc_us));
        if word.utc_us > self.floor.ceiling_us(boot_us) {
            format!(
                "The time is not known: {who} says that it is {what}, more than a year after {}, the last time that \
                 this box was sure of. It is believed when a second source says the same.",
                shown(floor_us),
            )
        } else if word.utc_us < BUILD_DATE_US {
            format!(
                "The box's clock is behind: {who} says that it is {what}, before this program was made. Give the box a \
                 network with NTP.",
            )
        } else {
            format!(
                "The time is not known: {who} says that it is {what}, but this box was sure once that it is after {}. \
                 The cloud puts this right when it is reached; if it is not: kinaractl clock reset",
                shown(floor_us),
            )
        }
    }
}

fn told(source: ClockSource, time: ToldTime) -> Said {
    let round_trip = (time.answered_boot_us - time.asked_boot_us).max(0);
    let middle = time.asked_boot_us + round_trip / 2;
    let known = Known {
        utc_minus_boot_us: time.utc_us - middle,
        uncertainty_us: round_trip as u64 / 2 + TOLD_UNCERTAINTY_US,
        source,
        at_boot_us: middle,
    };
    let counts =
        |proof: Validity| (proof.from.as_microsecond()..=proof.until.as_microsecond()).contains(&time.utc_us);
    Said { known, proved: time.proof.is_some_and(counts) }
}

/// The time that two kinds of source agree on, else that of a bridge that proved who it is.
fn confirmed(said: &[Said], boot_us: i64) -> Option<Known> {
    let pair = said
        .iter()
        .enumerate()
        .find(|(at, word)| said[at + 1..].iter().any(|other| agree(&word.known, &other.known, boot_us)));
    pair.map(|(_, word)| word.known).or_else(|| {
        said.iter()
            .find(|word| word.proved && word.known.source == ClockSource::Bridge)
            .map(|word| word.known)
    })
}

fn difference_us(one: &Known, other: &Known) -> u64 {
    one.utc_minus_boot_us.abs_diff(other.utc_minus_boot_us)
}

fn agree(one: &Known, other: &Known, boot_us: i64) -> bool {
    let doubt_us = one.uncertainty_us_at(boot_us) + other.uncertainty_us_at(boot_us) + AGREEMENT_US;
    difference_us(one, other) <= doubt_us
}

fn name(source: ClockSource) -> &'static str {
    match source {
        ClockSource::Unknown => "nobody",
        ClockSource::Timedate | ClockSource::Kernel => "the machine's clock, which NTP keeps,",
        ClockSource::Bridge => "the cloud",
        ClockSource::Https => "the web server",
        ClockSource::TrustSystem => "the machine's clock",
    }
}

/// A moment as people read it, to the second.
pub fn shown(utc_us: i64) -> String {
    jiff::Timestamp::from_second(utc_us.div_euclid(1_000_000))
        .map_or_else(|_| format!("{utc_us} µs"), |at| at.to_string())
}

/// Asks timedate1 on a D-Bus connection whether NTP is in step.
pub async fn timedate(connection: &zbus::Connection, timeout: Duration) -> Option<bool> {
    let ask = async {
        let proxy = zbus::Proxy::new(
            connection,
            "org.freedesktop.timedate1",
            "/org/freedesktop/timedate1",
            "org.freedesktop.timedate1",
        )
        .await?;
        // Uncached: the service leaves the bus when idle, and its cache with it.
        let value = proxy
            .connection()
            .call_method(
                Some("org.freedesktop.timedate1"),
                "/org/freedesktop/timedate1",
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &("org.freedesktop.timedate1", "NTPSynchronized"),
            )
            .await?;
        let value: zbus::zvariant::OwnedValue = value.body().deserialize()?;
        Ok::<bool, zbus::Error>(bool::try_from(value)?)
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(Ok(word)) => Some(word),
        Ok(Err(error)) => {
            tracing::debug!(%error, "timedate1 cannot be asked");
            None
        }
        Err(_) => {
            tracing::debug!(?timeout, "timedate1 does not answer");
            None
        }
    }
}

/// What the kernel says of its own clock.
pub fn kernel() -> Option<u64> {
    const STA_UNSYNC: i32 = 0x40;
    const TIME_ERROR: i32 = 5;
    let mut timex = rtime_clock::adjtime::Timex::new();
    let state = rtime_clock::adjtime::adjtimex(&mut timex).ok()?;
    let in_step = state != TIME_ERROR && timex.0.status & STA_UNSYNC == 0;
    in_step.then(|| u64::try_from(timex.0.maxerror).unwrap_or(u64::MAX))
}

/// How the clock is watched.
#[derive(Debug, Clone)]
pub struct Watch {
    /// How often the sources are asked.
    pub every: Duration,
    /// How long timedate1 may take.
    pub timeout: Duration,
    /// Whether the machine's clock stands for itself.
    pub trust_system: bool,
    /// Ask timedate1 and the kernel at all; a scaled clock is nobody's NTP.
    pub ask_machine: bool,
    /// How long the clock may be unknown before a person is told.
    pub alert_after: Duration,
}

/// Somebody who tells the time; for ever silent once he has gone.
type Teller = Option<watch::Receiver<Option<ToldTime>>>;

async fn next(teller: &mut Teller) -> Option<ToldTime> {
    if let Some(told) = teller {
        if told.changed().await.is_ok() {
            return *told.borrow_and_update();
        }
        *teller = None;
    }
    std::future::pending().await
}

/// By which a person has the floor forgotten.
pub type Forget = mpsc::Sender<()>;

/// Who tells the time, and who may have it forgotten.
#[derive(Debug)]
pub struct Inputs {
    /// The bridge.
    pub bridge: Option<watch::Receiver<Option<ToldTime>>>,
    /// A web server.
    pub https: Option<watch::Receiver<Option<ToldTime>>>,
    /// The other end of [`Forget`].
    pub forget: mpsc::Receiver<()>,
}

/// Where the time goes.
#[derive(Debug)]
pub struct Outputs {
    /// The time.
    pub known: watch::Sender<Option<Known>>,
    /// The floor, which the store keeps.
    pub floor: watch::Sender<Floor>,
    /// What people see.
    pub board: Board,
}

/// Watches the sources for as long as the daemon runs, and tells everybody when the time becomes known or jumps.
pub async fn run(clock: Arc<dyn Clock>, watch: Watch, mut inputs: Inputs, outputs: Outputs) {
    let pulse = outputs.board.vitals().pulse("clock");
    let mut judge = Judge::new(clock.clone(), *outputs.floor.borrow(), watch.trust_system);
    let bus = if watch.ask_machine {
        tokio::time::timeout(watch.timeout, zbus::Connection::system()).await.ok().and_then(Result::ok)
    } else {
        None
    };
    let unknown_since = clock.boottime_us();
    loop {
        pulse.beat();
        let verdict = judge.decide(ask(&watch, bus.as_ref()).await);
        report(*outputs.known.borrow(), verdict.known, judge.floor().at_us);
        let unknown_us = verdict.known.is_none().then(|| clock.boottime_us() - unknown_since);
        show(&outputs.board, &verdict, &judge, &clock, unknown_us.map(|_| unknown_since));
        let rate = clock.rate();
        let patience_us = (watch.alert_after.as_secs_f64() * rate * 1e6) as i64;
        outputs.board.alert("clock", alert(&verdict, clock.utc_us(), unknown_us, patience_us));
        outputs.known.send_replace(verdict.known);
        let floor = judge.floor();
        outputs.floor.send_if_modified(|kept| std::mem::replace(kept, floor) != floor);
        tokio::select! {
            () = tokio::time::sleep(watch.every) => {}
            Some(time) = next(&mut inputs.bridge) => judge.bridge_said(time),
            Some(time) = next(&mut inputs.https) => judge.https_said(time),
            Some(()) = inputs.forget.recv() => {
                tracing::warn!(floor = shown(judge.floor().at_us), "the last time known is forgotten");
                judge.forget();
            }
        }
    }
}

async fn ask(watch: &Watch, bus: Option<&zbus::Connection>) -> Words {
    if !watch.ask_machine {
        return Words::default();
    }
    let timedate = match bus {
        Some(bus) => timedate(bus, watch.timeout).await,
        None => None,
    };
    Words { timedate, kernel: kernel() }
}

/// Puts on the board what is known; watchers wake only for what changes what they do.
fn show(board: &Board, verdict: &Verdict, judge: &Judge, clock: &Arc<dyn Clock>, unknown_since: Option<i64>) {
    let floor = judge.floor();
    let state = ClockState {
        source: verdict.known.map_or(ClockSource::Unknown, |known| known.source),
        uncertainty_us: verdict.known.map_or(0, |known| known.uncertainty_us),
        unknown_since_us: unknown_since,
        confirmed: verdict.confirmed,
        trouble: verdict.trouble.clone(),
        floor_us: floor.at_us,
        former_floor_us: floor.former_us,
        ceiling_us: floor.ceiling_us(clock.boottime_us()),
        machine_us: clock.utc_us(),
        words: verdict.words.clone(),
    };
    let sure = verdict.known.is_some_and(|known| known.source != ClockSource::TrustSystem);
    if sure || verdict.confirmed {
        board.alert(certificates::ALERT, None);
    }
    board.update(|snapshot| {
        let before = std::mem::replace(&mut snapshot.clock, state);
        !before.is_like(&snapshot.clock)
    });
}

/// What a person is told of the clock.
fn alert(verdict: &Verdict, machine_us: i64, unknown_us: Option<i64>, patience_us: i64) -> Option<String> {
    if !verdict.trouble.is_empty() {
        return Some(verdict.trouble.clone());
    }
    let unknown_us = unknown_us?;
    if machine_us < BUILD_DATE_US && unknown_us > BEHIND_US {
        return Some(format!(
            "The box's clock is behind: it shows {}, and nobody tells the time; readings wait without one. Give the box a \
             network with NTP, or a way to the cloud.",
            shown(machine_us),
        ));
    }
    (unknown_us > patience_us).then(|| {
        "The time is not known; readings wait without one. Give the gateway a network with NTP.".to_owned()
    })
}

fn report(before: Option<Known>, now: Option<Known>, floor_us: i64) {
    match (before, now) {
        (None, Some(known)) => {
            tracing::info!(
                source = known.source.as_str(),
                uncertainty_us = known.uncertainty_us,
                "the time is known"
            );
        }
        (Some(_), None) => {
            tracing::warn!(floor_us, "the time is not known any more; frames wait unstamped");
        }
        (Some(before), Some(known)) => {
            let jump = known.utc_minus_boot_us - before.utc_minus_boot_us;
            if jump.abs() > JUMP_US {
                tracing::warn!(jump_us = jump, source = known.source.as_str(), "the clock jumped");
            }
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_clock::ManualClock;

    const NOW: i64 = BUILD_DATE_US + 86_400_000_000;

    const DAY: i64 = 86_400_000_000;

    fn judge(clock: &Arc<ManualClock>, floor_us: i64, trust_system: bool) -> Judge {
        let floor = Floor::kept([floor_us, floor_us, 0], None, clock.boottime_us());
        Judge::new(clock.clone(), floor, trust_system)
    }

    /// A certificate that counts from 30 days before `NOW` to a year after it.
    fn proof() -> Validity {
        let at = |us| jiff::Timestamp::from_microsecond(us).unwrap();
        Validity { from: at(NOW - 30 * DAY), until: at(NOW + 365 * DAY) }
    }

    fn told_at(boot_us: i64, utc_us: i64, proof: Option<Validity>) -> ToldTime {
        ToldTime { asked_boot_us: boot_us, answered_boot_us: boot_us, utc_us, proof }
    }

    fn source(judge: &mut Judge, words: Words) -> Option<ClockSource> {
        judge.decide(words).known.map(|known| known.source)
    }

    const IN_STEP: Words = Words { timedate: Some(true), kernel: Some(10) };
    /// 2099-01-01.
    const FAR: i64 = 4_070_908_800_000_000;

    #[test]
    fn a_time_before_the_build_date_or_the_last_one_saved_is_believed_from_nobody() {
        let clock = Arc::new(ManualClock::new(1_000, 77));
        assert_eq!(source(&mut judge(&clock, 0, true), IN_STEP), None);
        clock.jump_utc_to(NOW);
        assert_eq!(source(&mut judge(&clock, NOW + DAY, true), IN_STEP), None);
        assert!(source(&mut judge(&clock, NOW, true), IN_STEP).is_some());
        let mut judge = judge(&clock, NOW + DAY, false);
        judge.bridge_said(told_at(0, NOW, None));
        let verdict = judge.decide(Words::default());
        assert!(verdict.known.is_none() && verdict.trouble.contains("kinaractl clock reset"), "{verdict:?}");
    }

    #[test]
    fn a_time_beyond_the_ceiling_is_not_believed_and_does_not_move_the_floor() {
        for (words, trust) in
            [(IN_STEP, false), (Words { timedate: None, kernel: Some(9) }, false), (Words::default(), true)]
        {
            let clock = Arc::new(ManualClock::new(FAR, 0));
            let mut judge = judge(&clock, NOW, trust);
            let verdict = judge.decide(words);
            assert!(verdict.known.is_none() && verdict.trouble.contains("2099-01-01"), "{verdict:?}");
            assert_eq!(judge.floor().at_us, NOW);
            clock.jump_utc_to(NOW + DAY);
            assert!(source(&mut judge, words).is_some(), "the clock was set right");
        }
        let clock = Arc::new(ManualClock::new(0, 0));
        let mut judge = judge(&clock, NOW, false);
        // The bridge's own certificate does not count in 2099: it contradicts itself.
        judge.bridge_said(told_at(0, FAR, Some(proof())));
        judge.https_said(told_at(0, FAR + 3_600_000_000, Some(proof())));
        assert_eq!(source(&mut judge, Words::default()), None);
        assert_eq!(judge.floor().at_us, NOW);
    }

    #[test]
    fn one_source_alone_does_not_raise_the_floor_and_two_kinds_or_a_proved_bridge_do() {
        let clock = Arc::new(ManualClock::new(NOW + 100 * DAY, 0));
        let mut judge = judge(&clock, NOW, false);
        let verdict = judge.decide(IN_STEP);
        assert!(verdict.known.is_some() && !verdict.confirmed);
        judge.https_said(told_at(0, NOW + 40 * DAY, Some(proof())));
        assert!(judge.decide(IN_STEP).trouble.starts_with("Two clocks differ"));
        assert_eq!(judge.floor().at_us, NOW);
        judge.https_said(told_at(0, NOW + 100 * DAY, Some(proof())));
        assert!(judge.decide(IN_STEP).confirmed);
        assert!((NOW + 100 * DAY - judge.floor().at_us) < 1_000_000, "two kinds");
        let mut judge = super::tests::judge(&clock, NOW, false);
        judge.bridge_said(told_at(0, NOW + 7 * DAY, None));
        assert!(source(&mut judge, Words::default()).is_some());
        assert_eq!(judge.floor().at_us, NOW, "a bridge that proved nothing");
        judge.bridge_said(told_at(0, NOW + 7 * DAY, Some(proof())));
        assert!(judge.decide(Words::default()).confirmed);
        assert!((NOW + 7 * DAY - judge.floor().at_us).abs() < 2_000_000);
    }

    #[test]
    fn a_floor_that_was_wrong_is_put_back_by_a_bridge_that_proved_who_it_is_and_by_no_other_alone() {
        let clock = Arc::new(ManualClock::new(NOW, 0));
        let mut judge = judge(&clock, NOW + 200 * DAY, false);
        assert_eq!(source(&mut judge, IN_STEP), None);
        judge.bridge_said(told_at(0, NOW, None));
        judge.bridge_said(told_at(0, NOW - 40 * DAY, Some(proof())));
        assert_eq!(source(&mut judge, IN_STEP), None, "its certificate did not count yet");
        judge.bridge_said(told_at(0, NOW, Some(proof())));
        assert_eq!(source(&mut judge, IN_STEP), Some(ClockSource::Timedate));
        assert!((judge.floor().at_us - NOW).abs() < 2_000_000);
        assert!(judge.floor().former_us <= judge.floor().at_us);
    }

    #[test]
    fn a_box_that_lay_in_a_drawer_for_years_knows_the_time_when_two_kinds_agree_or_the_bridge_proves_itself()
    {
        let later = NOW + 3 * 365 * DAY;
        let at = |us| jiff::Timestamp::from_microsecond(us).unwrap();
        let proof = Some(Validity { from: at(later - DAY), until: at(later + DAY) });
        let clock = Arc::new(ManualClock::new(later, 0));
        let mut first = judge(&clock, NOW, false);
        assert_eq!(source(&mut first, IN_STEP), None);
        first.https_said(told_at(0, later, proof));
        assert_eq!(source(&mut first, IN_STEP), Some(ClockSource::Timedate));
        let mut second = judge(&clock, NOW, false);
        second.bridge_said(told_at(0, later, proof));
        assert_eq!(source(&mut second, Words::default()), Some(ClockSource::Bridge));
        assert!(second.floor().at_us <= NOW + super::super::floor::STEP_US, "one step a boot");
        second.forget();
        assert_eq!(second.floor().at_us, BUILD_DATE_US);
    }

    #[test]
    fn the_unproven_machine_gives_way_to_a_bridge_that_proved_who_it_is() {
        let clock = Arc::new(ManualClock::new(NOW + 90 * DAY, 0));
        let mut judge = judge(&clock, NOW, true);
        assert_eq!(source(&mut judge, Words::default()), Some(ClockSource::TrustSystem));
        judge.bridge_said(told_at(0, NOW, Some(proof())));
        assert_eq!(source(&mut judge, Words::default()), Some(ClockSource::Bridge));
        judge.bridge_said(told_at(0, NOW + 90 * DAY, Some(proof())));
        assert_eq!(source(&mut judge, Words::default()), Some(ClockSource::TrustSystem));
    }

    #[test]
    fn sources_are_believed_in_their_order() {
        let clock = Arc::new(ManualClock::new(NOW, 50));
        let mut asked = judge(&clock, 0, false);
        assert_eq!(source(&mut asked, Words { timedate: Some(false), kernel: None }), None);
        let told =
            |from, to, utc_us| ToldTime { asked_boot_us: from, answered_boot_us: to, utc_us, proof: None };
        asked.bridge_said(told(0, 40, NOW));
        assert_eq!(source(&mut asked, Words::default()), Some(ClockSource::Bridge));
        // Of two that were told the surer one, and an old word is less sure than a new one.
        asked.https_said(told(10, 40, NOW));
        assert_eq!(source(&mut asked, Words::default()), Some(ClockSource::Https));
        clock.advance_us(DAY);
        let at = clock.boottime_us();
        asked.bridge_said(told(at - 99, at, NOW + DAY));
        assert_eq!(source(&mut asked, Words::default()), Some(ClockSource::Bridge));
        assert_eq!(source(&mut asked, Words { timedate: None, kernel: Some(9) }), Some(ClockSource::Kernel));
        assert_eq!(source(&mut asked, IN_STEP), Some(ClockSource::Timedate));
        assert_eq!(source(&mut judge(&clock, 0, true), Words::default()), Some(ClockSource::TrustSystem));
    }

    #[test]
    fn the_time_of_the_bridge_is_uncertain_by_half_the_round_trip_and_a_second() {
        let clock = Arc::new(ManualClock::new(0, 2_000_000));
        let mut judge = judge(&clock, 0, false);
        judge.bridge_said(ToldTime {
            asked_boot_us: 1_000_000,
            answered_boot_us: 1_200_000,
            utc_us: NOW,
            proof: None,
        });
        let known = judge.decide(Words::default()).known.unwrap();
        assert_eq!(known.uncertainty_us, 1_100_000);
        assert_eq!(known.utc_us(1_100_000), NOW);
        assert!(known.uncertainty_us_at(1_001_100_000) >= 1_150_000);
    }

    #[test]
    fn a_person_is_told_that_the_clock_is_behind_or_that_a_source_is_not_believed() {
        let unknown = Verdict::default();
        assert_eq!(alert(&unknown, 0, Some(BEHIND_US), i64::MAX), None);
        assert!(alert(&unknown, 0, Some(BEHIND_US + 1), i64::MAX).unwrap().contains("clock is behind"));
        assert_eq!(alert(&unknown, NOW, Some(BEHIND_US + 1), i64::MAX), None);
        assert!(alert(&unknown, NOW, Some(DAY + 1), DAY).unwrap().contains("not known"));
        let refused = Verdict { trouble: "so".to_owned(), ..Verdict::default() };
        assert_eq!(alert(&refused, NOW, Some(0), DAY), Some("so".to_owned()));
    }
}
