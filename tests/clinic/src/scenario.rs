//! The faults that the conservation oracle judges the product under.
//!
//! A [`Scenario`] adds gateways and wearables to a [`Stage`] and writes what is to happen, and when, into its agenda.
//! Several scenarios can share one clinic: losses are allowed wearable by wearable, in the scenario that causes them
//! and by the fault log written at that moment, so that no scenario excuses another's loss. Faults of what all
//! share (broker, database, bridge) excuse nothing at all.
//!
//! Randomness comes from the seed alone; it is printed with every failure, and the same seed gives the same agenda.

mod cloud;
mod deliveries;
mod gateways;
mod handover;
pub mod mqtt;
mod postbox;
mod reboots;
pub mod sabotage;
mod settle;
mod stage;

pub use settle::Patience;
pub use stage::{AWAY_FRAME_AGE_S, LIVE_FRAME_AGE_S, Stage};

use crate::Result;
use crate::clinic::Options;
use crate::oracle::verdict::Verdict;

/// One kind of fault.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What `--scenario` calls it.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// Scenarios of one group share a clinic when all are run.
    group: u8,
    prepare: fn(&mut Stage) -> Result<()>,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn scenario(
    name: &'static str,
    group: u8,
    about: &'static str,
    prepare: fn(&mut Stage) -> Result<()>,
) -> Scenario {
    Scenario { name, about, group, prepare }
}

/// All there are.
pub const ALL: &[Scenario] = &[
    scenario("backlog", 0, "hours of readings are drained by two clinics' gateways", cloud::backlog),
    scenario("kill-gateway", 0, "kill -9 of gatewayd at random moments", cloud::kill_gateway),
    scenario("kill-bridge", 0, "kill -9 of the bridge at random moments", cloud::kill_bridge),
    scenario("kill-api", 0, "kill -9 of the API at random moments", cloud::kill_api),
    scenario("kill-broker", 0, "kill -9 of the broker at random moments", cloud::kill_broker),
    scenario("kill-database", 0, "kill -9 of PostgreSQL at random moments", cloud::kill_database),
    scenario("broker-down", 0, "the broker is stopped for a while", cloud::broker_down),
    scenario("database-down", 0, "the database is stopped for a while", cloud::database_down),
    scenario("three-bridges", 0, "three bridges on one subscription, killed at random", cloud::three_bridges),
    scenario("deliveries", 0, "frames and batches come again and out of order", deliveries::prepare),
    scenario(
        "kill-wearable",
        1,
        "kill -9 of a wearable: its memory is lost, its flash is kept",
        reboots::kill,
    ),
    scenario("reboot-connected", 1, "a wearable reboots while connected", reboots::connected),
    scenario("reboot-away", 1, "a wearable reboots out of range", reboots::away),
    scenario("reboot-twice-away", 1, "a wearable reboots twice out of range", reboots::twice_away),
    scenario("roaming", 1, "a wearable goes to and fro between two gateways", handover::roaming),
    scenario(
        "crowd",
        2,
        "forty wearables, some with hours in their flash, share eight slots of one gateway",
        handover::crowd,
    ),
    scenario(
        "hand-over-frame",
        1,
        "a wearable with a backlog changes wearers at a frame",
        handover::at_frame,
    ),
    scenario("hand-over-time", 1, "a wearable with a backlog changes wearers at a time", handover::at_time),
    scenario("overflow", 1, "a small ring overflows while nobody listens", reboots::overflow),
    scenario("full-disk", 1, "a gateway reaches its limits while the cloud is away", gateways::full_disk),
    scenario("gateway-deleted", 1, "a gateway's database is deleted under way", gateways::deleted),
    scenario("gateway-restored", 1, "a gateway's database is replaced by an older copy", gateways::restored),
    scenario(
        "clock-1970",
        1,
        "a gateway's clock starts in 1970 and jumps when it is set",
        gateways::clock_1970,
    ),
    scenario("large-table", LONG, "days of readings, millions of rows (only by name)", cloud::large_table),
];

/// Scenarios that take too long to be run by default.
const LONG: u8 = u8::MAX;

/// Finds scenarios by name.
pub fn named(name: &str) -> Option<Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name == name)
}

/// The default set, one list for each clinic.
pub fn groups() -> Vec<Vec<Scenario>> {
    let mut groups: std::collections::BTreeMap<u8, Vec<Scenario>> = std::collections::BTreeMap::new();
    for scenario in ALL.iter().copied().filter(|scenario| scenario.group != LONG) {
        groups.entry(scenario.group).or_default().push(scenario);
    }
    groups.into_values().collect()
}

/// Runs these scenarios in one clinic and judges it.
pub fn run(options: Options, scenarios: &[Scenario], seed: u64, patience: Patience) -> Result<Verdict> {
    let mut stage = Stage::open(options, seed)?;
    let is_long = scenarios.iter().any(|scenario| scenario.group == LONG);
    let patience = if is_long { patience.times(8) } else { patience };
    let outcome = (|| {
        for scenario in scenarios {
            stage.enter(scenario.name);
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
    fn every_scenario_has_a_name_of_its_own_and_runs_by_default_unless_it_is_long() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        let by_default = groups().iter().map(Vec::len).sum::<usize>();
        assert_eq!(by_default, ALL.iter().filter(|scenario| scenario.group != LONG).count());
        assert!(named("roaming").is_some() && named("no such thing").is_none());
    }
}
