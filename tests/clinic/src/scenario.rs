//! The faults that the conservation oracle judges the product under.
//!
//! A [`Scenario`] adds gateways and wearables to a [`Stage`] and writes what is to happen, and when, into its agenda.
//! Several scenarios can share one clinic: losses are allowed wearable by wearable, in the scenario that causes them
//! and by the fault log written at that moment, so that no scenario excuses another's loss. Faults of what all
//! share (broker, database, bridge) excuse nothing at all.
//!
//! A scenario also says what must have been seen of its fault ([`Witness`]): one that never struck fails, as does a clinic
//! through which nothing fresh comes after all faults. `docs/testing.md` says how a scenario is added.
//!
//! Randomness comes from the seed alone; it is printed with every failure, and the same seed gives the same agenda.

mod attack;
mod cloud;
mod deliveries;
mod disk;
mod gateways;
mod handover;
mod lines;
pub mod mqtt;
mod packet_lines;
mod parked;
mod people;
mod postbox;
mod reboots;
pub mod sabotage;
mod settle;
pub mod sights;
mod stage;
mod store_damage;

pub use settle::Patience;
pub use stage::{AWAY_FRAME_AGE_S, LIVE_FRAME_AGE_S, Stage, utc_us};

use crate::Result;
use crate::clinic::Options;
use crate::oracle::verdict::Verdict;
use crate::oracle::witness::Witness;

/// Scenarios of one group share a clinic when all are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// The cloud fails: programs, broker, database.
    Cloud,
    /// Wearables and gateways fail.
    Edge,
    /// Many wearables at one gateway, and what nobody else may be disturbed by.
    Crowd,
    /// The line between a gateway and the broker is bad.
    Lines,
    /// One clinic attacks another.
    Hostile,
    /// Takes too long to be run by default: only by name, alone.
    Long,
}

impl Group {
    /// Whether its scenarios run when none is named.
    fn is_usual(self) -> bool {
        self != Self::Long
    }
}

/// One kind of fault.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What `--scenario` calls it.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// What must have been seen of it.
    pub must_see: &'static [Witness],
    group: Group,
    prepare: fn(&mut Stage) -> Result<()>,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn scenario(
    name: &'static str,
    group: Group,
    about: &'static str,
    must_see: &'static [Witness],
    prepare: fn(&mut Stage) -> Result<()>,
) -> Scenario {
    Scenario { name, about, must_see, group, prepare }
}

/// All there are.
pub const ALL: &[Scenario] = &[
    scenario(
        "backlog",
        Group::Cloud,
        "hours of readings are drained by two clinics' gateways",
        &[Witness::BacklogHeld],
        cloud::backlog,
    ),
    scenario(
        "kill-gateway",
        Group::Cloud,
        "kill -9 of gatewayd at random moments",
        &[Witness::GatewayKilledHolding],
        cloud::kill_gateway,
    ),
    scenario(
        "kill-waiting",
        Group::Edge,
        "kill -9 of gatewayd while frames wait in its memory for their commit",
        &[Witness::KilledInWait],
        gateways::kill_waiting,
    ),
    scenario(
        "kill-bridge",
        Group::Cloud,
        "kill -9 of the bridge at random moments",
        &[Witness::BridgeKilledInFlight],
        cloud::kill_bridge,
    ),
    scenario(
        "kill-api",
        Group::Cloud,
        "kill -9 of the API at random moments",
        &[Witness::ApiKilledInRequest],
        cloud::kill_api,
    ),
    scenario(
        "kill-broker",
        Group::Cloud,
        "kill -9 of the broker at random moments",
        &[Witness::BrokerKilledInFlight],
        cloud::kill_broker,
    ),
    scenario(
        "kill-database",
        Group::Cloud,
        "kill -9 of PostgreSQL at random moments",
        &[Witness::DatabaseKilledInFlight],
        cloud::kill_database,
    ),
    scenario(
        "broker-down",
        Group::Cloud,
        "the broker is stopped for a while",
        &[Witness::GatheredWithoutBroker],
        cloud::broker_down,
    ),
    scenario(
        "database-down",
        Group::Cloud,
        "the database is stopped for a while",
        &[Witness::GatheredWithoutDatabase],
        cloud::database_down,
    ),
    scenario(
        "three-bridges",
        Group::Cloud,
        "three bridges on one subscription, killed at random",
        &[Witness::BridgesShared, Witness::BridgeKilledInFlight],
        cloud::three_bridges,
    ),
    scenario(
        "deliveries",
        Group::Cloud,
        "frames and batches come again and out of order",
        &[Witness::DuplicateDelivered, Witness::LinkDisturbed, Witness::LinkDropped],
        deliveries::prepare,
    ),
    scenario(
        "kill-wearable",
        Group::Edge,
        "kill -9 of a wearable: its memory is lost, its flash is kept",
        &[Witness::ResetLinked],
        reboots::kill,
    ),
    scenario(
        "reboot-connected",
        Group::Edge,
        "a wearable reboots while connected",
        &[Witness::ResetLinked],
        reboots::connected,
    ),
    scenario(
        "reboot-away",
        Group::Edge,
        "a wearable reboots out of range",
        &[Witness::ResetAway],
        reboots::away,
    ),
    scenario(
        "reboot-twice-away",
        Group::Edge,
        "a wearable reboots twice out of range",
        &[Witness::ResetAway, Witness::ResetAgainAway],
        reboots::twice_away,
    ),
    scenario(
        "roaming",
        Group::Edge,
        "a wearable goes to and fro between two gateways",
        &[Witness::BothGatewaysBrought],
        handover::roaming,
    ),
    scenario(
        "crowd",
        Group::Crowd,
        "forty wearables, some with hours in their flash, share eight slots of one gateway",
        &[Witness::LinksTaken],
        handover::crowd,
    ),
    scenario(
        "parked",
        Group::Crowd,
        "a bridge cannot read a gateway's batches, and a newer one takes its place",
        &[Witness::BatchParked],
        parked::parked,
    ),
    scenario(
        "hand-over-frame",
        Group::Edge,
        "a wearable with a backlog changes wearers at a frame",
        &[Witness::BothWearersStored],
        handover::at_frame,
    ),
    scenario(
        "hand-over-time",
        Group::Edge,
        "a wearable with a backlog changes wearers at a time",
        &[Witness::BothWearersStored],
        handover::at_time,
    ),
    scenario(
        "overflow",
        Group::Edge,
        "a small ring overflows while nobody listens",
        &[Witness::RingOverflowed],
        reboots::overflow,
    ),
    scenario(
        "full-disk",
        Group::Edge,
        "a gateway reaches its limits while the cloud is away",
        &[Witness::LimitReached],
        gateways::full_disk,
    ),
    scenario(
        "gateway-deleted",
        Group::Edge,
        "a gateway's database is deleted under way",
        &[Witness::StoreLostHolding],
        gateways::deleted,
    ),
    scenario(
        "page-damaged",
        Group::Edge,
        "a page of a gateway's store is overwritten while it holds what the cloud has not",
        &[Witness::StoreDamagedHolding],
        store_damage::page,
    ),
    scenario(
        "cell-damaged",
        Group::Edge,
        "a number in a gateway's store becomes text while it holds what the cloud has not",
        &[Witness::StoreDamagedHolding],
        store_damage::cell,
    ),
    scenario(
        "batch-damaged",
        Group::Edge,
        "a bit of a sealed batch flips before the bridge has it",
        &[Witness::StoreDamagedHolding],
        store_damage::batch,
    ),
    scenario(
        "gateway-restored",
        Group::Edge,
        "a gateway's database is replaced by an older copy",
        &[Witness::StoreLostHolding],
        gateways::restored,
    ),
    scenario(
        "clock-1970",
        Group::Edge,
        "a gateway's clock starts in 1970 and jumps when it is set",
        &[Witness::TimeFromBridge],
        gateways::clock_1970,
    ),
    scenario(
        "clock-2099",
        Group::Edge,
        "a gateway's clock shows 2099, twice, and is set each time",
        &[Witness::TimeFromBridge, Witness::DisbeliefTold],
        gateways::clock_2099,
    ),
    scenario(
        "certificate-missing",
        Group::Edge,
        "half a certificate at a gateway's start, whole again later",
        &[Witness::GatheredWithoutCertificate],
        gateways::certificate_missing,
    ),
    scenario(
        "slow-uplink",
        Group::Lines,
        "a backlog over a line of 2 kB/s",
        &[Witness::LineFull, Witness::OneConnection],
        lines::slow,
    ),
    scenario(
        "far-uplink",
        Group::Lines,
        "a backlog over a line on which every answer takes 8 s",
        &[Witness::AnswerTookLong, Witness::OneConnection],
        lines::far,
    ),
    scenario(
        "lossy-uplink",
        Group::Lines,
        "a backlog over a line that loses every fifth packet",
        &[Witness::PacketsLost, Witness::AcknowledgedMeanwhile, Witness::FewConnections],
        packet_lines::lossy,
    ),
    scenario(
        "late-uplink",
        Group::Lines,
        "a backlog over a line on which each packet is 4 s under way, each way",
        &[Witness::AnswerTookLong, Witness::AcknowledgedMeanwhile, Witness::OneConnection],
        packet_lines::late,
    ),
    scenario(
        "silent-broker",
        Group::Lines,
        "connections are taken and nothing passes",
        &[Witness::SilenceMet, Witness::DrainBeganSoon],
        lines::silent_broker,
    ),
    scenario(
        "half-open",
        Group::Lines,
        "a connection falls silent under a batch, and neither end is told",
        &[Witness::SilentUnderBatch, Witness::SilenceNoticed, Witness::DrainBeganSoon],
        lines::half_open,
    ),
    scenario(
        "boot-during-outage",
        Group::Lines,
        "a gateway comes up twice while there is no way to the cloud",
        &[Witness::GatheredOffline, Witness::DrainBeganSoon],
        lines::boot_during_outage,
    ),
    scenario(
        "late-assignment",
        Group::Edge,
        "whose a wearable is, or was since some time, is said when its readings have come",
        &[Witness::PutAsideUnassigned, Witness::StoredUnderTheFormer, Witness::BothWearersStored],
        people::late_assignment,
    ),
    scenario(
        "erasure",
        Group::Edge,
        "a wearer is erased, with frames of hers still to come and a next wearer on the same wearable",
        &[Witness::ErasedWasStored, Witness::ErasedCameLate],
        people::erasure,
    ),
    scenario(
        "hard-limit",
        Group::Edge,
        "a gateway's file system has no room left while the cloud is away",
        &[Witness::DiskFull],
        disk::hard_limit,
    ),
    scenario(
        "hostile-clinic",
        Group::Hostile,
        "another clinic attacks with its certificate and its key",
        &[Witness::HostileSent, Witness::HostileRefused],
        attack::hostile_clinic,
    ),
    scenario(
        "large-table",
        Group::Long,
        "days of readings, millions of rows (only by name)",
        &[Witness::BacklogHeld, Witness::BridgeKilledInFlight],
        cloud::large_table,
    ),
];

/// Finds scenarios by name.
pub fn named(name: &str) -> Option<Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name == name)
}

/// The default set, one list for each clinic.
pub fn groups() -> Vec<Vec<Scenario>> {
    let mut groups: std::collections::BTreeMap<Group, Vec<Scenario>> = std::collections::BTreeMap::new();
    for scenario in ALL.iter().copied().filter(|scenario| scenario.group.is_usual()) {
        groups.entry(scenario.group).or_default().push(scenario);
    }
    groups.into_values().collect()
}

/// Runs these scenarios in one clinic and judges it.
pub fn run(options: Options, scenarios: &[Scenario], seed: u64, patience: Patience) -> Result<Verdict> {
    let mut stage = Stage::open(options, seed)?;
    let is_long = scenarios.iter().any(|scenario| scenario.group == Group::Long);
    let patience = if is_long { patience.times(8) } else { patience };
    let outcome = (|| {
        for scenario in scenarios {
            stage.enter(scenario.name, scenario.must_see);
            (scenario.prepare)(&mut stage)?;
        }
        stage.play()?;
        stage.settle(patience)?;
        stage.judge()
    })();
    match &outcome {
        Ok(verdict) if verdict.passed() => {}
        _ => eprintln!("data and logs are kept in {}", stage.clinic.keep().display()),
    }
    let mut verdict = outcome?;
    verdict.seed = seed;
    verdict.scenarios = scenarios.iter().map(|scenario| scenario.name.to_owned()).collect();
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_runs_by_default_unless_it_takes_long() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        let by_default = groups().iter().map(Vec::len).sum::<usize>();
        let long: Vec<_> =
            ALL.iter().filter(|scenario| !scenario.group.is_usual()).map(|one| one.name).collect();
        assert_eq!((by_default + long.len(), long.as_slice()), (ALL.len(), &["large-table"][..]));
        assert!(
            ALL.iter().all(|scenario| !scenario.must_see.is_empty()),
            "a fault that nobody sees proves nothing"
        );
        assert!(named("roaming").is_some() && named("no such thing").is_none());
    }
}
