//! Whether the gateway itself knows what time it is, and from whom.
//!
//! The promise: a time before the program was built, or before the last one this gateway was sure of, is never
//! believed, whoever tells it. Sources are asked in a fixed order: systemd's timedate1 over D-Bus, the kernel,
//! the bridge's time as it comes with MQTT or a web server's where one is configured (whichever is the surer), and,
//! where the configuration says so, the machine's clock unproven.
//! Monotonic time is `CLOCK_BOOTTIME`; the time is kept as an offset to it.

use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use tokio::sync::watch;

use crate::status::{Board, ClockSource, ClockState};

/// No Kinara gateway has ever run before this moment: 2026-11-01T00:00:00Z, or the build's `SOURCE_DATE_EPOCH`.
pub const BUILD_DATE_US: i64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => match i64::from_str_radix(text, 10) {
        Ok(seconds) => seconds * 1_000_000,
        Err(_) => FALLBACK_BUILD_DATE_US,
    },
    None => FALLBACK_BUILD_DATE_US,
};
const FALLBACK_BUILD_DATE_US: i64 = 1_793_491_200_000_000;

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
}

/// Judges what the sources say.
#[derive(Debug)]
pub struct Judge {
    clock: Arc<dyn Clock>,
    floor_us: i64,
    trust_system: bool,
    bridge: Option<Known>,
    https: Option<Known>,
}

/// What timedate1 and the kernel say; `None` when they cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Words {
    /// `org.freedesktop.timedate1`'s `NTPSynchronized`.
    pub timedate: Option<bool>,
    /// The kernel's status: the greatest error it admits in microseconds, when it says it is in step.
    pub kernel: Option<u64>,
}

impl Judge {
    /// A judge that believes nothing before `last_saved_us` or the build date.
    pub fn new(clock: Arc<dyn Clock>, last_saved_us: i64, trust_system: bool) -> Self {
        Self { clock, floor_us: last_saved_us.max(BUILD_DATE_US), trust_system, bridge: None, https: None }
    }

    /// The time before which nothing is believed.
    pub fn floor_us(&self) -> i64 {
        self.floor_us
    }

    /// Takes the bridge's word.
    pub fn bridge_said(&mut self, time: ToldTime) {
        self.bridge = self.told(ClockSource::Bridge, time).or(self.bridge);
    }

    /// Takes a web server's word.
    pub fn https_said(&mut self, time: ToldTime) {
        self.https = self.told(ClockSource::Https, time).or(self.https);
    }

    fn told(&self, source: ClockSource, time: ToldTime) -> Option<Known> {
        let round_trip = (time.answered_boot_us - time.asked_boot_us).max(0);
        let middle = time.asked_boot_us + round_trip / 2;
        if time.utc_us < self.floor_us {
            tracing::warn!(
                utc_us = time.utc_us,
                source = source.as_str(),
                "a time was told that is before the last one known; not believed"
            );
            return None;
        }
        Some(Known {
            utc_minus_boot_us: time.utc_us - middle,
            uncertainty_us: round_trip as u64 / 2 + TOLD_UNCERTAINTY_US,
            source,
            at_boot_us: middle,
        })
    }

    /// The time, by the first source in order that may be believed.
    pub fn decide(&self, words: Words) -> Option<Known> {
        let boot = self.clock.boottime_us();
        let utc = self.clock.utc_us();
        let machine = |source, uncertainty_us| Known {
            utc_minus_boot_us: utc - boot,
            uncertainty_us,
            source,
            at_boot_us: boot,
        };
        let plausible = utc >= self.floor_us;
        if plausible && words.timedate == Some(true) {
            return Some(machine(ClockSource::Timedate, NTP_UNCERTAINTY_US));
        }
        if plausible && let Some(max_error_us) = words.kernel {
            return Some(machine(ClockSource::Kernel, max_error_us.max(NTP_UNCERTAINTY_US)));
        }
        let told = self.bridge.into_iter().chain(self.https);
        if let Some(known) = told.min_by_key(|known| known.uncertainty_us_at(boot))
            && !(self.trust_system && plausible)
        {
            return Some(known);
        }
        (self.trust_system && plausible).then(|| machine(ClockSource::TrustSystem, TRUSTED_UNCERTAINTY_US))
    }
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

/// Watches the sources for as long as the daemon runs, and tells everybody when the time becomes known or jumps.
pub async fn run(
    clock: Arc<dyn Clock>,
    watch: Watch,
    last_saved_us: i64,
    (mut bridge, mut https): (Teller, Teller),
    known: watch::Sender<Option<Known>>,
    board: Board,
) {
    let mut judge = Judge::new(clock.clone(), last_saved_us, watch.trust_system);
    let bus = if watch.ask_machine {
        tokio::time::timeout(watch.timeout, zbus::Connection::system()).await.ok().and_then(Result::ok)
    } else {
        None
    };
    let unknown_since = clock.boottime_us();
    let rate = clock.rate();
    loop {
        let words = if watch.ask_machine {
            Words {
                timedate: match &bus {
                    Some(bus) => timedate(bus, watch.timeout).await,
                    None => None,
                },
                kernel: kernel(),
            }
        } else {
            Words::default()
        };
        let decision = judge.decide(words);
        let before = *known.borrow();
        report(before, decision, judge.floor_us());
        let state = ClockState {
            source: decision.map_or(ClockSource::Unknown, |known| known.source),
            uncertainty_us: decision.map_or(0, |known| known.uncertainty_us),
            unknown_since_us: decision.is_none().then_some(unknown_since),
        };
        board.update(|snapshot| std::mem::replace(&mut snapshot.clock, state) != state);
        let too_long = decision.is_none()
            && clock.boottime_us() - unknown_since > (watch.alert_after.as_secs_f64() * rate * 1e6) as i64;
        board.alert(
            "clock",
            too_long.then(|| {
                "The time is not known; readings wait without one. Give the gateway a network with NTP."
                    .to_owned()
            }),
        );
        known.send_replace(decision);
        tokio::select! {
            () = tokio::time::sleep(watch.every) => {}
            Some(time) = next(&mut bridge) => judge.bridge_said(time),
            Some(time) = next(&mut https) => judge.https_said(time),
        }
    }
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

    #[test]
    fn a_time_before_the_build_date_or_the_last_one_saved_is_believed_from_nobody() {
        let clock = Arc::new(ManualClock::new(1_000, 77));
        let words = Words { timedate: Some(true), kernel: Some(10) };
        assert_eq!(Judge::new(clock.clone(), 0, true).decide(words), None);
        clock.jump_utc_to(NOW);
        assert_eq!(Judge::new(clock.clone(), NOW + 1, true).decide(words), None);
        assert!(Judge::new(clock.clone(), NOW, true).decide(words).is_some());
        let mut judge = Judge::new(clock, NOW + 1, false);
        judge.bridge_said(ToldTime { asked_boot_us: 0, answered_boot_us: 10, utc_us: NOW });
        assert_eq!(judge.decide(Words::default()), None);
    }

    #[test]
    fn sources_are_believed_in_their_order() {
        let clock = Arc::new(ManualClock::new(NOW, 50));
        let source = |judge: &Judge, words| judge.decide(words).map(|known| known.source);
        let mut judge = Judge::new(clock.clone(), 0, false);
        assert_eq!(source(&judge, Words { timedate: Some(false), kernel: None }), None);
        judge.bridge_said(ToldTime { asked_boot_us: 0, answered_boot_us: 40, utc_us: NOW });
        assert_eq!(source(&judge, Words::default()), Some(ClockSource::Bridge));
        // Of two that were told the surer one, and an old word is less sure than a new one.
        judge.https_said(ToldTime { asked_boot_us: 10, answered_boot_us: 40, utc_us: NOW });
        assert_eq!(source(&judge, Words::default()), Some(ClockSource::Https));
        let day = 86_400_000_000;
        clock.advance_us(day);
        let at = clock.boottime_us();
        judge.bridge_said(ToldTime { asked_boot_us: at - 99, answered_boot_us: at, utc_us: NOW + day });
        assert_eq!(source(&judge, Words::default()), Some(ClockSource::Bridge));
        assert_eq!(source(&judge, Words { timedate: None, kernel: Some(9) }), Some(ClockSource::Kernel));
        let both = Words { timedate: Some(true), kernel: Some(9) };
        assert_eq!(source(&judge, both), Some(ClockSource::Timedate));
        let trusting = Judge::new(clock, 0, true);
        assert_eq!(source(&trusting, Words::default()), Some(ClockSource::TrustSystem));
    }

    #[test]
    fn the_time_of_the_bridge_is_uncertain_by_half_the_round_trip_and_a_second() {
        let clock = Arc::new(ManualClock::new(0, 2_000_000));
        let mut judge = Judge::new(clock, 0, false);
        judge.bridge_said(ToldTime { asked_boot_us: 1_000_000, answered_boot_us: 1_200_000, utc_us: NOW });
        let known = judge.decide(Words::default()).unwrap();
        assert_eq!(known.uncertainty_us, 1_100_000);
        assert_eq!(known.utc_us(1_100_000), NOW);
        assert!(known.uncertainty_us_at(1_001_100_000) >= 1_150_000);
    }
}
