//! What a scenario must have seen, so that its passing proves something.
//!
//! A fault that never struck and a run in which nothing happened look like a promise that was kept. Therefore each
//! scenario names its witnesses: things that the harness saw from outside, at the moment they were true. One that was
//! never seen is a finding, told in its own sentence.

use std::collections::BTreeMap;

use serde::Serialize;

use super::evidence::{Evidence, Gap};
use super::verdict::{Kind, Verdict};

macro_rules! witnesses {
    ($($(#[doc = $doc:literal])+ $name:ident = $sentence:literal,)+) => {
        /// Something that can be seen of a fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Witness {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Witness {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What was seen, in a sentence.
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)+
                }
            }
        }
    };
}

witnesses! {
    /// Readings from before the run wait in a wearable's flash.
    BacklogHeld = "a wearable held a backlog before its gateway came",
    /// A gateway dies with frames, batches or events on its disk that the cloud has not acknowledged.
    GatewayKilledHolding = "a gateway was killed while it held what the cloud had not acknowledged",
    /// A gateway dies with frames in its memory alone: the wearable still has them.
    KilledInWait = "a gateway was killed while frames that it had received waited for their commit",
    /// A bridge dies between a batch's publication and its acknowledgement.
    BridgeKilledInFlight = "a bridge was killed while a batch was on its way",
    /// The same of the broker.
    BrokerKilledInFlight = "the broker was killed while a batch was on its way",
    /// The same of the database.
    DatabaseKilledInFlight = "the database was killed while a batch was on its way",
    /// The API dies with half a request in its hand.
    ApiKilledInRequest = "the API was killed while a request was open",
    /// Readings gather on a gateway's disk for want of a broker.
    GatheredWithoutBroker = "a gateway gathered readings while the broker was away",
    /// Readings gather on a gateway's disk for want of a database.
    GatheredWithoutDatabase = "a gateway gathered readings while the database was away",
    /// The shared subscription really was shared.
    BridgesShared = "two bridges or more wrote batches of one subscription",
    /// A bridge says that it had what it was sent.
    DuplicateDelivered = "a frame that was in already was delivered again, and answered as a duplicate",
    /// Notifications of a standing link are lost, held or reordered.
    LinkDisturbed = "notifications of a standing link were lost, held or reordered",
    /// A standing link falls.
    LinkDropped = "a wearable's link was cut while it stood",
    /// A wearable loses its memory in a gateway's reach.
    ResetLinked = "a wearable was reset while it was linked",
    /// A wearable loses its memory out of everybody's reach.
    ResetAway = "a wearable was reset with no gateway in reach",
    /// And once more before anybody has seen it.
    ResetAgainAway = "a wearable was reset again before a gateway saw it",
    /// Samples were in memory alone when that was lost.
    MemoryLost = "samples that were not yet in flash went with a reset",
    /// The ring wrapped over frames that nobody had acknowledged.
    RingOverflowed = "a ring dropped frames that nobody had acknowledged",
    /// Both gateways of a wearable that walks brought frames of it.
    BothGatewaysBrought = "frames of one wearable came by two gateways",
    /// A bridge cannot read what a gateway sends.
    BatchParked = "a gateway parked a batch that its bridge could not read",
    /// More wearables than links.
    LinksTaken = "a wearable with frames to bring had to wait, for all links were taken",
    /// A hand-over has readings on both sides.
    BothWearersStored = "readings of one wearable were stored from before and after it changed wearers",
    /// A gateway refuses waveforms or all but events.
    LimitReached = "a gateway reached its limit and did not take everything",
    /// A gateway's database is damaged with something in it that the cloud does not have.
    StoreDamagedHolding = "a gateway's store was damaged while it held what the cloud had not acknowledged",
    /// A gateway's database goes with something in it that the cloud does not have.
    StoreLostHolding = "a gateway's database went while it held what the cloud had not acknowledged",
    /// Readings of a wearable that nobody has.
    PutAsideUnassigned = "readings of a wearable that nobody wore were put aside",
    /// A boundary is told after readings from its far side came.
    StoredUnderTheFormer = "readings from after a change of wearers were stored under the former one",
    /// There is something to erase.
    ErasedWasStored = "a wearer had readings stored when she was erased",
    /// Frames of somebody erased come afterwards.
    ErasedCameLate = "frames of an erased wearer came after her erasure, and were not taken",
    /// A write found no room in the file system.
    DiskFull = "a gateway's file system had no room left",
    /// An attack that happened.
    HostileSent = "a clinic sent hostile messages",
    /// And was met.
    HostileRefused = "hostile messages were refused",
    /// A gateway that knows no time of its own has it from the bridge.
    TimeFromBridge = "a gateway whose own clock was wrong had its time from the bridge",
    /// A gateway names the time that its clock shows and does not believe it.
    DisbeliefTold = "a gateway said which time its clock showed, and did not believe it",
    /// Readings gather on a gateway's disk while it cannot prove who it is.
    GatheredWithoutCertificate = "a gateway gathered readings, and said so, while its certificate was cut in half",
    /// A slow line carries what it can for longer than a ping's answer is waited for.
    LineFull = "a batch was on a line that carried all it could, for longer than any ping is waited for",
    /// The box did not lose patience, and the broker was told of no flapping.
    OneConnection = "all of it came on one connection",
    /// The way to the broker is long.
    AnswerTookLong = "greetings took as long as the way is, and nobody lost patience",
    /// The line takes packets and does not bring them.
    PacketsLost = "packets of the connection to the broker were lost on their way",
    /// And still carries.
    AcknowledgedMeanwhile = "batches were acknowledged over a line that was as bad all the time",
    /// The box did not lose patience with it.
    FewConnections = "no more than three connections were made for all of it",
    /// A broker takes connections and says nothing.
    SilenceMet = "a gateway with readings found nobody behind connections that were taken",
    /// A line dies without a word while it is used.
    SilentUnderBatch = "a line fell silent while a batch was on it",
    /// And that is found out.
    SilenceNoticed = "a connection on which nothing moved was given up",
    /// A gateway has nothing but itself.
    GatheredOffline = "a gateway that never had a line gathered readings",
    /// What waits goes at once.
    DrainBeganSoon = "the drain began within ten seconds of the line's return",
}

/// What was seen, scenario by scenario, and how often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Witnessed(BTreeMap<String, BTreeMap<Witness, u64>>);

impl Witnessed {
    /// Notes that a scenario saw something.
    pub fn saw(&mut self, scenario: &str, witness: Witness) {
        *self.entry(scenario, witness) += 1;
    }

    /// How often a scenario saw it.
    pub fn times(&self, scenario: &str, witness: Witness) -> u64 {
        self.0.get(scenario).and_then(|seen| seen.get(&witness)).copied().unwrap_or(0)
    }

    /// Takes in what another clinic's scenarios saw.
    pub fn join(&mut self, other: Self) {
        for (scenario, seen) in other.0 {
            for (witness, times) in seen {
                *self.entry(&scenario, witness) += times;
            }
        }
    }

    fn entry(&mut self, scenario: &str, witness: Witness) -> &mut u64 {
        self.0.entry(scenario.to_owned()).or_default().entry(witness).or_default()
    }
}

/// What can be seen in the logs and the rows afterwards.
pub fn of_evidence(evidence: &Evidence) -> Witnessed {
    let mut seen = Witnessed::default();
    for (index, wearable) in evidence.wearables.iter().enumerate() {
        let log = &wearable.log;
        if !log.dropped.is_empty() {
            seen.saw(&wearable.scenario, Witness::RingOverflowed);
        }
        if log.lost_with_memory() > 0 {
            seen.saw(&wearable.scenario, Witness::MemoryLost);
        }
        let full = |gap: &Gap| gap.wearable == index && gap.reason == "quota";
        if wearable.may_meet_a_limit() && evidence.gaps.iter().any(full) {
            seen.saw(&wearable.scenario, Witness::LimitReached);
        }
        let late = |gap: &Gap| gap.wearable == index && gap.reason == "erased";
        if wearable.erased().is_some() && evidence.gaps.iter().any(late) {
            seen.saw(&wearable.scenario, Witness::ErasedCameLate);
        }
        let readings = || evidence.readings.iter().filter(|row| row.wearable == index);
        let stored_for = |user| readings().any(|row| row.user == user);
        if wearable.plan.len() > 1 && wearable.plan.iter().all(|assignment| stored_for(assignment.user)) {
            seen.saw(&wearable.scenario, Witness::BothWearersStored);
        }
    }
    seen
}

/// What scenarios must have seen: name, witness.
pub type Demands = [(&'static str, Witness)];

/// Takes what was seen into the verdict; what was demanded and not seen is a finding.
pub fn judge(mut seen: Witnessed, demands: &Demands, verdict: &mut Verdict) {
    for (scenario, witness) in demands {
        if *seen.entry(scenario, *witness) == 0 {
            verdict.find(Kind::Unwitnessed, || {
                format!("{scenario}: its fault never bit; not once was this seen: {}", witness.sentence())
            });
        }
    }
    verdict.witnessed.join(seen);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMANDS: &Demands = &[
        ("kill-bridge", Witness::BridgeKilledInFlight),
        ("deliveries", Witness::DuplicateDelivered),
        ("deliveries", Witness::LinkDropped),
    ];

    fn seen(all: &[(&'static str, Witness)]) -> Witnessed {
        let mut seen = Witnessed::default();
        for (scenario, witness) in all {
            seen.saw(scenario, *witness);
        }
        seen
    }

    #[test]
    fn a_scenario_whose_fault_never_bit_fails_and_the_finding_names_what_was_not_seen() {
        let mut verdict = Verdict::default();
        judge(seen(&[DEMANDS[0], DEMANDS[2]]), DEMANDS, &mut verdict);
        assert!(!verdict.passed());
        assert_eq!(verdict.of(Kind::Unwitnessed), 1);
        let told = &verdict.findings[&Kind::Unwitnessed][0];
        assert!(told.contains("deliveries") && told.contains(DEMANDS[1].1.sentence()), "{told}");
    }

    #[test]
    fn what_another_scenario_saw_is_no_witness() {
        let mut verdict = Verdict::default();
        judge(seen(&[("kill-api", DEMANDS[0].1)]), &DEMANDS[..1], &mut verdict);
        assert_eq!(verdict.of(Kind::Unwitnessed), 1);
    }

    #[test]
    fn the_report_counts_what_was_seen_and_what_was_not() {
        let mut verdict = Verdict::default();
        judge(seen(&[DEMANDS[0], DEMANDS[0], DEMANDS[2]]), DEMANDS, &mut verdict);
        let told = serde_json::to_value(&verdict).unwrap();
        assert_eq!(told["witnessed"]["kill-bridge"]["bridge_killed_in_flight"], 2);
        assert_eq!(told["witnessed"]["deliveries"]["duplicate_delivered"], 0);
        assert_eq!(told["unwitnessed"], 1);
        let mut round = Verdict::default();
        judge(seen(DEMANDS), DEMANDS, &mut round);
        assert!(round.passed());
        round.join(verdict);
        assert_eq!(round.witnessed.times("kill-bridge", Witness::BridgeKilledInFlight), 3);
        assert!(!round.passed(), "a later round does not make up for one that saw nothing");
    }

    #[test]
    fn every_witness_has_a_sentence_of_its_own() {
        let sentences: std::collections::BTreeSet<_> =
            Witness::ALL.iter().map(|witness| witness.sentence()).collect();
        assert_eq!(sentences.len(), Witness::ALL.len());
    }
}
