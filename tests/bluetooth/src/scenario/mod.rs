//! What the bed shows. Each scenario is a sentence that must be true; those of one [`Session`] share its machines,
//! since a boot costs more than most of them, and run in this order.

mod adapters;
mod boxes;
mod crowd;
mod emulated;
mod links;
mod pairing;
mod power;
mod systemd;
mod update;

pub use links::reconnects;

use crate::bed::until;
use crate::{BedError, Boot, Result, Ward};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take that needs a link: an emulated machine under load.
pub const LINK: Duration = Duration::from_mins(3);

/// What is set for every gateway here: turns that end within a scenario.
const RADIO: &str = "[radio]\nsensors = [\"heart_rate\"]\nturn_s = 8\n";

/// A sentence that must be true.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What the command line calls it.
    pub name: &'static str,
    /// The sentence.
    pub about: &'static str,
    run: fn(&mut Day) -> Result<()>,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn scenario(name: &'static str, about: &'static str, run: fn(&mut Day) -> Result<()>) -> Scenario {
    Scenario { name, about, run }
}

/// Scenarios that share their machines.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    /// Its name, and its clinic's folder's.
    pub name: &'static str,
    boot: Boot,
    /// So many boxes, each in a machine of its own.
    boxes: usize,
    /// In their order.
    pub scenarios: &'static [Scenario],
}

/// All there are.
pub const SESSIONS: &[Session] = &[
    Session {
        name: "ward",
        boot: Boot::Small,
        boxes: 1,
        scenarios: &[
            scenario(
                "drain",
                "four wearables pair by their labels, bring thousands of notifications at once, and tell their time",
                links::four_wearables_bring_what_they_hold,
            ),
            scenario(
                "right-code",
                "a person with the label pairs a wearable in an open window, and its live value shows within a minute",
                pairing::the_label_pairs,
            ),
            scenario(
                "wrong-code",
                "a wrong code does not pair, each try has a new nonce, and the third closes the window",
                pairing::wrong_codes_close_the_window,
            ),
            scenario(
                "impostors",
                "who shows a wearable's name and nonce without its secret is refused, whichever way it pairs",
                pairing::impostors_are_refused,
            ),
            scenario(
                "phone",
                "another stack reads the standard services once it has paired, and nothing before",
                pairing::a_phone_reads_the_standard_services,
            ),
            scenario(
                "cortex-m4f",
                "the firmware on an emulated processor pairs with another stack, and brings what it measured to the bit",
                emulated::another_stack_takes_its_frames,
            ),
            scenario(
                "rotation",
                "a wearable that comes back at another address is known",
                links::addresses_rotate,
            ),
            scenario("wearable-reset", "a bond survives the wearable's reset", links::a_wearable_is_reset),
            scenario("daemon-killed", "a bond survives the death of gatewayd", links::gatewayd_is_killed),
            scenario(
                "burst",
                "what gets lost on the way while the daemon hangs comes again by the backlog",
                links::a_hanging_daemon_catches_up,
            ),
            scenario(
                "bluetoothd-killed",
                "bluetoothd is killed in the middle and all is as before",
                links::bluetoothd_is_killed,
            ),
            scenario(
                "controller-removed",
                "the controller is pulled out and put back, and all is as before",
                links::the_controller_is_pulled_out,
            ),
            scenario(
                "rfkill",
                "the radio is switched off by rfkill, said so, and all is as before",
                adapters::the_radio_is_blocked,
            ),
            scenario(
                "discovery-stuck",
                "somebody else stops discovery behind our back, and wearables are found all the same",
                adapters::discovery_is_stopped,
            ),
            scenario(
                "bus-gone",
                "D-Bus and bluetoothd die together and all is as before",
                adapters::the_bus_is_killed,
            ),
            scenario(
                "second-adapter",
                "a second adapter is found and used, and the first goes on",
                adapters::a_second_adapter_comes,
            ),
            scenario(
                "stale-bond",
                "a wearable that forgot its bond is told as such, never paired again by itself",
                pairing::a_stale_bond_is_told,
            ),
            scenario(
                "update",
                "a wearable gets new firmware over the air, across a lost link; what fails goes back, what is not signed is refused",
                update::new_firmware_comes_over_the_air,
            ),
            scenario(
                "heart-rate",
                "another maker's heart-rate sensor is paired by name and brings its beats",
                pairing::another_makers_sensor,
            ),
            scenario(
                "crowd",
                "twelve wearables share four slots, and none is left out",
                crowd::twelve_share_four_slots,
            ),
            scenario(
                "power-cuts",
                "the machine is cut from power again and again while wearables stream",
                power::the_machine_is_cut_from_power,
            ),
            scenario(
                "conservation",
                "nothing was lost and nothing counted twice",
                power::nothing_is_lost_or_double,
            ),
        ],
    },
    Session {
        name: "boxes",
        boot: Boot::Small,
        boxes: 2,
        scenarios: &[
            scenario(
                "introduced",
                "a box that knows a wearable introduces another one, which pairs without anybody's hand",
                boxes::one_introduces_the_other,
            ),
            scenario(
                "roaming",
                "a link that stays weak is given up and the nearer box takes the wearable",
                boxes::a_wearable_walks_from_one_to_the_other,
            ),
            scenario(
                "revoked",
                "a box that is taken off a wearable meets it no more, and the other one does",
                boxes::one_is_taken_off,
            ),
            scenario(
                "conservation-boxes",
                "over two boxes nothing was lost and nothing counted twice",
                power::nothing_is_lost_or_double,
            ),
        ],
    },
    Session {
        name: "box",
        boot: Boot::Systemd,
        boxes: 1,
        scenarios: &[
            scenario(
                "ready",
                "systemd hears that the daemon is ready, and its journal has the fields",
                systemd::ready,
            ),
            scenario("bus-policy", "strangers on the bus are refused", systemd::strangers_are_refused),
            scenario("timedate", "the clock's source is timedate1", systemd::the_clock_is_timedate1),
            scenario(
                "watchdog",
                "a stalled main loop is killed by the watchdog and back",
                systemd::a_stalled_loop_is_killed,
            ),
        ],
    },
];

/// What runs share.
#[derive(Debug)]
pub struct Day {
    /// Machines, wearables, cloud.
    pub ward: Ward,
    /// The machine of the session, in the ward.
    pub machine: usize,
    /// Its gateway.
    pub gateway: usize,
    /// The gateway of the second box, where the session has one.
    pub other: Option<usize>,
    /// The wearables that the gateway knows by configuration.
    pub known: Vec<usize>,
    /// Whether the long forms run.
    pub long: bool,
    /// What was measured, for the last line.
    pub figures: Map<String, Value>,
}

impl Day {
    fn open(session: &Session, seed: u64, long: bool) -> Result<Self> {
        let files: Vec<PathBuf> = Vec::new();
        let mut ward = Ward::open(&format!("bluetooth-{}", session.name), seed, &files)?;
        let mut boxes = Vec::new();
        for name in ["a", "b"].into_iter().take(session.boxes) {
            let machine = ward.bed.add_machine(name, session.boot)?;
            ward.bed.boot_with_bluetooth(machine)?;
            boxes.push((machine, ward.add_gateway(machine, &format!("box {name}"), RADIO)?));
        }
        let (machine, gateway) = boxes[0];
        let other = boxes.get(1).map(|(_, gateway)| *gateway);
        Ok(Self { ward, machine, gateway, other, known: Vec::new(), long, figures: Map::new() })
    }

    /// Notes something that was measured.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        eprintln!("      {name}: {value}");
        self.figures.insert(name.to_owned(), value);
    }

    /// Waits until each of these wearables has a link and the cloud has got more of it; the time that this took.
    pub fn all_flow(&self, wearables: &[usize], within: Duration) -> Result<Duration> {
        let began = Instant::now();
        let before: Vec<u64> =
            wearables.iter().map(|wearable| self.ward.stored(*wearable)).collect::<Result<_>>()?;
        for (wearable, before) in wearables.iter().zip(before) {
            let name = self.ward.on_air(*wearable);
            until(&format!("{name} has a link and brings readings"), within, || {
                Ok(self.ward.links(*wearable)? > 0 && self.ward.stored(*wearable)? > before)
            })
            .map_err(|error| self.ward.with_log(self.gateway, error))?;
        }
        Ok(began.elapsed())
    }

    /// An error unless it is so.
    pub fn must(&self, so: bool, what: impl Into<String>) -> Result<()> {
        if so { Ok(()) } else { Err(self.ward.with_log(self.gateway, BedError::Broken(what.into()))) }
    }
}

/// So much of a reason is in the last line: it is all that may be left of a run elsewhere.
const WHY: usize = 300;

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Scenario and, where it is broken, why.
    pub outcomes: Vec<(&'static str, Option<String>, Duration)>,
    /// What was measured.
    pub figures: Map<String, Value>,
}

impl Report {
    /// Whether every sentence was true.
    pub fn passed(&self) -> bool {
        self.outcomes.iter().all(|(_, broken, _)| broken.is_none())
    }

    /// The last line: one JSON object.
    pub fn line(&self) -> Value {
        let broken: Map<String, Value> = self
            .outcomes
            .iter()
            .filter_map(|(name, broken, _)| {
                let why = broken.as_ref()?.lines().next().unwrap_or_default();
                Some(((*name).to_owned(), why.chars().take(WHY).collect::<String>().into()))
            })
            .collect();
        json!({ "passed": self.outcomes.len() - broken.len(), "failed": broken.len(), "broken": broken, "figures": self.figures })
    }
}

/// Runs the scenarios of these names (all, by none), with everything before them in their session that they need.
pub fn run(names: &[String], seed: u64, long: bool) -> Result<Report> {
    let mut report = Report::default();
    for session in SESSIONS {
        let wanted =
            |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| name == scenario.name);
        let chosen: Vec<&Scenario> = session.scenarios.iter().filter(wanted).collect();
        if chosen.is_empty() {
            continue;
        }
        let mut day = Day::open(session, seed, long)?;
        for scenario in chosen {
            eprintln!("{}: {}", scenario.name, scenario.about);
            let began = Instant::now();
            day.ward.stage.enter(scenario.name, &[]);
            let broken = (scenario.run)(&mut day).err().map(|error| error.to_string());
            let took = began.elapsed();
            match &broken {
                None => eprintln!("  ok after {:.1} s", took.as_secs_f64()),
                Some(why) => eprintln!("  BROKEN after {:.1} s: {why}", took.as_secs_f64()),
            }
            report.outcomes.push((scenario.name, broken, took));
        }
        if report.outcomes.iter().any(|(_, broken, _)| broken.is_some()) {
            eprintln!("data and logs are kept in {}", day.ward.stage.clinic.keep().display());
        }
        report.figures.extend(day.figures);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own() {
        let mut names: Vec<_> =
            SESSIONS.iter().flat_map(|session| session.scenarios).map(|scenario| scenario.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
