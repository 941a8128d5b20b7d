//! What the oracle found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::witness::Witnessed;

/// How many findings of one kind are told in full; the rest are counted.
const TOLD: usize = 8;

/// A kind of violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Produced, not stored, and nothing the harness did excuses it.
    Lost,
    /// Stored more than once, by key or by (device, epoch, channel, tick).
    Double,
    /// Stored for somebody else.
    WrongWearer,
    /// Stored in another clinic.
    WrongTenant,
    /// Stored at a time that its stated uncertainty does not cover, or with an uncertainty beyond the bound.
    WrongTime,
    /// Stored with another value.
    WrongValue,
    /// Stored, never produced.
    Invented,
    /// A gap in force covers what is stored.
    GapOverStored,
    /// An allowed loss that no gap tells of.
    LossWithoutGap,
    /// Stored for somebody who was erased.
    NotErased,
    /// The simulator's log contradicts itself: nothing can be judged by it.
    BadLog,
    /// A wearable that produced nothing, or a clinic that stored nothing: the run proves nothing.
    Nothing,
    /// A scenario did not see its own fault: it proves nothing.
    Unwitnessed,
    /// After the faults, nothing fresh came through.
    Stuck,
}

/// Losses that the harness's fault log allows, each only in its own scenario.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// Not yet in flash at a reset.
    pub reset: u64,
    /// The ring was full.
    pub overflow: u64,
    /// Waveforms on a full gateway.
    pub quota: u64,
    /// Held by a gateway's database alone when that was destroyed.
    pub gateway_lost: u64,
    /// Of somebody who was erased.
    pub erased: u64,
}

/// The oracle's judgement; its JSON is the last line of `./kinara test oracle`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// Samples that the simulators produced.
    pub produced: u64,
    /// Of these, in the database.
    pub stored: u64,
    /// Of these, missing with leave.
    pub gaps: Allowed,
    /// Of these, missing without.
    pub lost: u64,
    /// Rows too many.
    pub double: u64,
    /// Readings under the wrong wearer.
    pub wrong_wearer: u64,
    /// Readings in the wrong clinic.
    pub wrong_tenant: u64,
    /// Frames with a wrong time.
    pub wrong_time: u64,
    /// Readings with a wrong value.
    pub wrong_value: u64,
    /// Rows that nobody produced.
    pub invented: u64,
    /// Stored readings that a gap in force covers.
    pub gap_over_stored: u64,
    /// Allowed losses without a gap.
    pub loss_without_gap: u64,
    /// Readings of somebody who was erased.
    pub not_erased: u64,
    /// Contradictions in a simulator's log.
    pub bad_log: u64,
    /// Wearables that produced nothing, clinics that stored nothing.
    pub nothing: u64,
    /// What scenarios should have seen of their faults, and did not.
    pub unwitnessed: u64,
    /// Wearables and programs through which nothing fresh came after the faults.
    pub stuck: u64,
    /// Frames whose time was judged.
    pub frames: u64,
    /// Frames outside their stated uncertainty (up to 0.1 % are within the promise).
    pub frames_outside: u64,
    /// The scenarios that ran.
    pub scenarios: Vec<String>,
    /// What their randomness came from.
    pub seed: u64,
    /// What the scenarios saw of their faults, and how often.
    pub witnessed: Witnessed,
    /// Examples, by kind.
    #[serde(skip)]
    pub findings: BTreeMap<Kind, Vec<String>>,
}

impl Verdict {
    /// Counts one violation and keeps it as an example while there are few.
    pub fn find(&mut self, kind: Kind, text: impl FnOnce() -> String) {
        *self.count(kind) += 1;
        let told = self.findings.entry(kind).or_default();
        if told.len() < TOLD {
            told.push(text());
        }
    }

    fn count(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Lost => &mut self.lost,
            Kind::Double => &mut self.double,
            Kind::WrongWearer => &mut self.wrong_wearer,
            Kind::WrongTenant => &mut self.wrong_tenant,
            Kind::WrongTime => &mut self.wrong_time,
            Kind::WrongValue => &mut self.wrong_value,
            Kind::Invented => &mut self.invented,
            Kind::GapOverStored => &mut self.gap_over_stored,
            Kind::LossWithoutGap => &mut self.loss_without_gap,
            Kind::NotErased => &mut self.not_erased,
            Kind::BadLog => &mut self.bad_log,
            Kind::Nothing => &mut self.nothing,
            Kind::Unwitnessed => &mut self.unwitnessed,
            Kind::Stuck => &mut self.stuck,
        }
    }

    /// How many violations of this kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.clone().count(kind).to_owned()
    }

    /// Whether the promise held.
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }

    /// Takes another clinic's judgement into this one.
    pub fn join(&mut self, other: Self) {
        for (into, from) in [
            (&mut self.produced, other.produced),
            (&mut self.stored, other.stored),
            (&mut self.gaps.reset, other.gaps.reset),
            (&mut self.gaps.overflow, other.gaps.overflow),
            (&mut self.gaps.quota, other.gaps.quota),
            (&mut self.gaps.gateway_lost, other.gaps.gateway_lost),
            (&mut self.lost, other.lost),
            (&mut self.double, other.double),
            (&mut self.wrong_wearer, other.wrong_wearer),
            (&mut self.wrong_tenant, other.wrong_tenant),
            (&mut self.wrong_time, other.wrong_time),
            (&mut self.wrong_value, other.wrong_value),
            (&mut self.invented, other.invented),
            (&mut self.gap_over_stored, other.gap_over_stored),
            (&mut self.loss_without_gap, other.loss_without_gap),
            (&mut self.gaps.erased, other.gaps.erased),
            (&mut self.not_erased, other.not_erased),
            (&mut self.bad_log, other.bad_log),
            (&mut self.nothing, other.nothing),
            (&mut self.unwitnessed, other.unwitnessed),
            (&mut self.stuck, other.stuck),
            (&mut self.frames, other.frames),
            (&mut self.frames_outside, other.frames_outside),
        ] {
            *into += from;
        }
        self.scenarios.extend(other.scenarios);
        self.witnessed.join(other.witnessed);
        for (kind, texts) in other.findings {
            let told = self.findings.entry(kind).or_default();
            let room = TOLD.saturating_sub(told.len());
            told.extend(texts.into_iter().take(room));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} produced, {} stored", self.produced, self.stored)?;
        let Allowed { reset, overflow, quota, gateway_lost, erased } = self.gaps;
        write!(f, "; gaps: reset {reset}, overflow {overflow}, quota {quota}, gateway lost {gateway_lost}")?;
        write!(f, "; erased {erased}")?;
        for (kind, texts) in &self.findings {
            write!(f, "\n  {kind:?}: {}", self.of(*kind))?;
            for text in texts {
                write!(f, "\n    {text}")?;
            }
        }
        Ok(())
    }
}
