//! What an attack did to the other clinic, and whether that is within the bars.

use std::collections::BTreeMap;

use serde::Serialize;

/// From publication to commit, milliseconds.
pub const MOST_P99_MS: f64 = 1_000.0;
/// From question to answer, milliseconds.
pub const MOST_API_P99_MS: f64 = 500.0;
/// Memory of a bridge, MiB.
pub const MOST_RSS_MIB: f64 = 200.0;
/// A statement that still runs when the attack is over may have begun so long ago, seconds.
pub const MOST_STATEMENT_S: f64 = 5.0;
/// Whoever must have refused something: else the attack never met them.
const REFUSERS: [&str; 4] = ["broker", "bridge", "API", "quarantine"];

/// How the other clinic fared in one stretch.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Fared {
    /// 99 of 100 batches were committed within this.
    pub victim_p99_ms: f64,
    /// 99 of 100 questions were answered within this.
    pub victim_api_p99_ms: f64,
    /// The bridge's memory at its highest.
    pub bridge_rss_mib: f64,
    /// Batches that were published.
    pub batches: usize,
    /// Questions that were asked.
    pub questions: usize,
}

/// What is left when the attack is over.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Afterwards {
    /// How the clinic fared at the end of the stretch that was waited.
    #[serde(flatten)]
    pub fared: Fared,
    /// Messages that wait in the bridge.
    pub queue_length: f64,
    /// Their bytes.
    pub queue_bytes: f64,
    /// The longest that a statement has been running, seconds.
    pub longest_statement_s: f64,
    /// The attacker's last state, which nobody should read again, is still kept by the broker.
    pub refused_state_kept: bool,
    /// Seconds that were waited.
    pub after_s: u64,
}

/// All of a run; its JSON is the last line of `./kinara test hostile`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// During the attack.
    #[serde(flatten)]
    pub during: Fared,
    /// The same run before the attack.
    pub quiet: Fared,
    /// The same run after it.
    pub afterwards: Afterwards,
    /// Readings of the other clinic that are gone.
    pub lost: u64,
    /// What of one clinic is found in the other.
    pub crossed: u64,
    /// Messages and requests that the attacker sent.
    pub hostile_messages: u64,
    /// The same by door and kind.
    pub sent: BTreeMap<String, u64>,
    /// What was refused, by who refused and why.
    pub refused_by_reason: BTreeMap<String, u64>,
    /// How often the bridge or the API ended under it.
    pub ended: u64,
    /// How many of them did not answer any more when it was over.
    pub silent: u64,
    /// What the oracle finds beside lost readings.
    pub oracle: Vec<String>,
    /// How long the attack lasted.
    pub seconds: u64,
    /// What all randomness came from.
    pub seed: u64,
    /// What is not as it must be, in words.
    pub findings: Vec<String>,
}

impl Report {
    /// Compares with the bars.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let mut findings = Vec::new();
        let mut must = |holds: bool, text: String| {
            if !holds {
                findings.push(text);
            }
        };
        for (when, fared) in
            [("before", &self.quiet), ("during", &self.during), ("after", &self.afterwards.fared)]
        {
            within_the_bars(when, fared, &mut must);
        }
        must(self.lost == 0, format!("{} readings of the other clinic are lost", self.lost));
        must(self.crossed == 0, format!("{} things crossed from one clinic to the other", self.crossed));
        must(self.ended == 0, format!("a program of the cloud ended {} times", self.ended));
        must(self.silent == 0, format!("{} programs of the cloud do not answer any more", self.silent));
        must(self.oracle.is_empty(), format!("the oracle: {}", self.oracle.join("; ")));
        must(self.hostile_messages > 0, "nothing hostile was sent: the run proves nothing".to_owned());
        for who in REFUSERS {
            let refused = self.refused_by_reason.iter().any(|(reason, n)| reason.starts_with(who) && *n > 0);
            must(refused, format!("{who} refused nothing: the attack never met it"));
        }
        let after = &self.afterwards;
        must(
            after.queue_length == 0.0 && after.queue_bytes == 0.0,
            format!("{} s after the attack {} messages wait", after.after_s, after.queue_length),
        );
        must(
            after.longest_statement_s <= MOST_STATEMENT_S,
            format!("after the attack a statement has been running for {:.1} s", after.longest_statement_s),
        );
        must(!after.refused_state_kept, "the broker keeps a state that was refused".to_owned());
        self.findings = findings;
        self
    }

    /// Whether everything is within the bars.
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }
}

fn within_the_bars(when: &str, fared: &Fared, must: &mut impl FnMut(bool, String)) {
    let Fared { victim_p99_ms, victim_api_p99_ms, bridge_rss_mib, batches, questions } = *fared;
    must(batches > 0, format!("{when} the attack the other clinic published nothing"));
    must(questions > 0, format!("{when} the attack nobody of the other clinic asked anything"));
    must(
        victim_p99_ms <= MOST_P99_MS,
        format!(
            "{when} the attack a batch took {victim_p99_ms:.0} ms to its commit (at most {MOST_P99_MS:.0})"
        ),
    );
    must(
        victim_api_p99_ms <= MOST_API_P99_MS,
        format!("{when} the attack an answer took {victim_api_p99_ms:.0} ms (at most {MOST_API_P99_MS:.0})"),
    );
    must(
        bridge_rss_mib <= MOST_RSS_MIB,
        format!("{when} the attack the bridge took {bridge_rss_mib:.0} MiB (at most {MOST_RSS_MIB:.0})"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        let fared = Fared {
            victim_p99_ms: 120.0,
            victim_api_p99_ms: 40.0,
            bridge_rss_mib: 60.0,
            batches: 90,
            questions: 300,
        };
        Report {
            during: fared,
            quiet: fared,
            afterwards: Afterwards { fared, after_s: 30, ..Afterwards::default() },
            hostile_messages: 1_000,
            refused_by_reason: REFUSERS.iter().map(|who| (format!("{who}: why"), 3)).collect(),
            ..Report::default()
        }
    }

    fn only(report: Report, words: &str) {
        let report = report.judged();
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert!(report.findings[0].contains(words), "{:?}", report.findings);
    }

    #[test]
    fn an_attack_that_the_other_clinic_does_not_feel_passes() {
        assert!(good().judged().passed());
    }

    #[test]
    fn each_bar_is_a_bar() {
        let mut report = good();
        report.during.victim_p99_ms = MOST_P99_MS + 1.0;
        only(report, "to its commit");
        let mut report = good();
        report.during.victim_api_p99_ms = MOST_API_P99_MS + 1.0;
        only(report, "an answer took");
        let mut report = good();
        report.during.bridge_rss_mib = MOST_RSS_MIB + 1.0;
        only(report, "MiB");
        only(Report { lost: 1, ..good() }, "lost");
        only(Report { crossed: 1, ..good() }, "crossed");
        only(Report { ended: 1, ..good() }, "ended");
        only(Report { silent: 1, ..good() }, "do not answer");
        only(Report { oracle: vec!["Double: one".to_owned()], ..good() }, "Double");
    }

    #[test]
    fn what_lasts_after_the_attack_is_found() {
        let mut report = good();
        report.afterwards.queue_length = 2.0;
        only(report, "messages wait");
        let mut report = good();
        report.afterwards.longest_statement_s = 31.0;
        only(report, "statement");
        let mut report = good();
        report.afterwards.refused_state_kept = true;
        only(report, "keeps a state");
        let mut report = good();
        report.afterwards.fared.bridge_rss_mib = 900.0;
        only(report, "after the attack the bridge took");
    }

    #[test]
    fn an_attack_that_sent_or_met_nothing_proves_nothing() {
        only(Report { hostile_messages: 0, ..good() }, "proves nothing");
        let mut report = good();
        report.refused_by_reason.remove("bridge: why");
        only(report, "bridge refused nothing");
        let mut report = good();
        report.quiet.batches = 0;
        only(report, "published nothing");
    }
}
