//! One clinic attacks, another one works.
//!
//! The attacker has what a clinic has: a gateway's certificate and an API key. It sends what once cost others much, mutates
//! every envelope and request, and floods ([`arsenal`], [`attack`]). The other clinic's real gateways and people are
//! watched from outside ([`victim`]), before, during and after, and the oracle judges its readings ([`report`]).

pub mod arsenal;
pub mod attack;
pub mod http;
pub mod messages;
pub mod mutate;
pub mod report;
pub mod shape;
pub mod victim;
pub mod wire;

use std::time::{Duration, Instant};

use kinara_protocol::topic::{self, GatewayId, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Event, Incoming};
use uuid::Uuid;

use crate::bench::machine;
use crate::clinic::Options;
use crate::oracle::verdict::{Kind, Verdict};
use crate::process::{http_get, pause, wait_until};
use crate::scenario::mqtt::connect;
use crate::scenario::sights::{metrics_at, number};
use crate::scenario::{Patience, Stage, utc_us};
use crate::{Assignment, ClinicError, Result, Tenant, Wearer};
use arsenal::{Others, Party};
use attack::{Attack, Tally, Target};
use report::{Afterwards, Fared, Report};
use victim::{Clinician, Ear, Waits, p99};

/// Places of the two clinics on the stage.
const VICTIM: usize = 0;
const ATTACKER: usize = 1;
/// The other clinic's gateways, with a wearable each.
const GATEWAYS: usize = 3;
/// What the attacker's own devices are called.
const OWN_WEARABLE: &str = "kinara:00000000000bad01";
const OWN_SENSOR: &str = "bt:C0:FF:EE:00:00:01";
/// An attack of at least this is a long one: what is left of it is looked at later.
const LONG: Duration = Duration::from_mins(10);

/// How long each stretch is.
#[derive(Debug, Clone, Copy)]
struct Stretches {
    quiet: Duration,
    attack: Duration,
    rest: Duration,
}

impl Stretches {
    fn of(attack: Duration) -> Self {
        let quiet = (attack / 4).clamp(Duration::from_secs(15), Duration::from_mins(2));
        let rest = if attack >= LONG { Duration::from_mins(5) } else { Duration::from_secs(30) };
        Self { quiet, attack, rest }
    }
}

/// What the attacker has of its own, and has heard of others.
pub fn prepare(stage: &mut Stage) -> Result<(Party, Target)> {
    let tenant = stage.tenant(ATTACKER).clone();
    let (gateway, identity) = stage.clinic.enrol(&tenant, "hostile")?;
    let wearer = stage.wearer(ATTACKER)?;
    for hardware in [OWN_WEARABLE, OWN_SENSOR] {
        own(stage, hardware, &wearer)?;
    }
    let made = stage.clinic.admin(
        &["api-key", "add", "--tenant", &tenant.slug, "--name", "hostile", "--scope", "ingest"],
        None,
    )?;
    let key = made["key"].as_str().unwrap_or_default().to_owned();
    let api = match stage.clinic.api.as_ref().and_then(crate::Process::address) {
        Some(address) => address,
        None => stage.clinic.start_api()?,
    };
    stage.ignore_clinic(ATTACKER);
    let others = Others {
        hardware: stage.clinic.wearables.iter().map(|wearable| wearable.hardware_id.clone()).collect(),
        gateways: stage.clinic.gateways.iter().map(|gateway| gateway.id).collect(),
        wearers: stage.wearers_of(VICTIM),
    };
    let party = Party {
        gateway,
        hardware: OWN_WEARABLE.to_owned(),
        sensor: OWN_SENSOR.to_owned(),
        wearer: wearer.id,
        others,
    };
    Ok((party, Target { broker: stage.clinic.broker.port(), identity, api, key }))
}

fn own(stage: &Stage, hardware: &str, wearer: &Wearer) -> Result<()> {
    let from = jiff::Timestamp::now() - Duration::from_hours(72);
    stage.clinic.assign(hardware, wearer, Assignment { from, at_frame: None }).map(|_| ())
}

/// `./kinara test hostile`: an attack of so many seconds.
pub fn run(options: Options, seed: u64, attack: Duration) -> Result<Report> {
    let mut stage = Stage::open(options, seed)?;
    let outcome = on_stage(&mut stage, seed, Stretches::of(attack));
    if !outcome.as_ref().is_ok_and(Report::passed) {
        eprintln!("data and logs are kept in {}", stage.clinic.keep().display());
    }
    outcome
}

fn on_stage(stage: &mut Stage, seed: u64, stretches: Stretches) -> Result<Report> {
    stage.enter("hostile", &[]);
    let victim = Victim::start(stage)?;
    let (party, target) = prepare(stage)?;
    let ear = Ear::open(&stage.clinic, &victim.gateways)?;
    let clinician = Clinician::start(target.api, victim.login.clone(), victim.wearer)?;
    let watch = Watch { batches: ear.batches.clone(), questions: clinician.questions.clone() };
    let mut report = Report { seed, seconds: stretches.attack.as_secs(), ..Report::default() };

    eprintln!("quiet for {:?}", stretches.quiet);
    report.quiet = watch.fared(stage, stretches.quiet, &mut report.ended)?;
    eprintln!("under attack for {:?}", stretches.attack);
    let attack = Attack::start(&party, &target, seed, utc_us)?;
    report.during = watch.fared(stage, stretches.attack, &mut report.ended)?;
    let tally = attack.end();
    leave_a_costly_state(stage, &party, &target)?;
    eprintln!("{} hostile messages; at rest for {:?}", tally.messages(), stretches.rest);
    report.afterwards = watch.afterwards(stage, stretches.rest, &party, &mut report.ended)?;
    drop((clinician, ear));

    (report.hostile_messages, report.sent) = (tally.messages(), tally.sent.clone());
    report.refused_by_reason = refused(stage, tally)?;
    report.silent = wake_the_silent(stage);
    // A cloud that does not come back is the attack's doing, and no reason not to judge.
    match judge(stage, &party) {
        Ok((verdict, crossed)) => {
            (report.lost, report.crossed, report.oracle) = (verdict.lost, crossed, findings(&verdict));
        }
        Err(error) => report.oracle.push(format!("the clinic cannot be judged after the attack: {error}")),
    }
    Ok(report.judged())
}

/// Programs of the cloud that do not answer any more. They are killed, as a watchdog would; [`judge`] has them started.
fn wake_the_silent(stage: &mut Stage) -> u64 {
    let clinic = &mut stage.clinic;
    let mut silent = 0;
    for program in clinic.bridges.iter_mut().chain(clinic.api.iter_mut()) {
        let answers = program.address().is_some_and(|address| http_get(address, "/healthz").is_ok());
        if !answers {
            eprintln!("{} does not answer; it is killed", program.name());
            silent += 1;
            program.kill();
        }
    }
    silent
}

/// The oracle's word on the other clinic, and what crossed from one to the other.
fn judge(stage: &mut Stage, party: &Party) -> Result<(Verdict, u64)> {
    stage.settle(Patience::default())?;
    let verdict = stage.judge()?;
    eprintln!("{verdict}");
    let crossed = crossed(stage, &verdict, party)?;
    Ok((verdict, crossed))
}

/// The clinic that works.
struct Victim {
    gateways: Vec<usize>,
    login: crate::Login,
    wearer: Uuid,
}

impl Victim {
    /// Real gateways with real backlogs and live readings, and a member who may look at them.
    fn start(stage: &mut Stage) -> Result<Self> {
        let mut gateways = Vec::new();
        for number in 0..GATEWAYS {
            let gateway = stage.gateway(VICTIM, &format!("victim-{number}"), "")?;
            stage.wearable(VICTIM, &[gateway], &["--prefill", "10m"])?;
            stage.clinic.gateways[gateway].process().start()?;
            gateways.push(gateway);
        }
        let tenant: Tenant = stage.tenant(VICTIM).clone();
        let login = stage.clinic.add_member(&tenant, "victim@example.test", "clinician")?;
        let drained =
            wait_until(Duration::from_mins(1), || gateways.iter().all(|place| stage.holds(*place) < 20));
        if !drained {
            eprintln!("the other clinic's backlog has not drained within a minute");
        }
        let wearer = stage.wearers_of(VICTIM).first().copied().unwrap_or_default();
        Ok(Self { gateways, login, wearer })
    }
}

struct Watch {
    batches: Waits,
    questions: Waits,
}

impl Watch {
    /// Watches for so long. A program that ends is counted and started again, as systemd would.
    fn fared(&self, stage: &mut Stage, stretch: Duration, ended: &mut u64) -> Result<Fared> {
        const LOOK: Duration = Duration::from_millis(250);
        let from = Instant::now();
        let mut rss: f64 = 0.0;
        while from.elapsed() < stretch {
            pause(LOOK);
            let clinic = &mut stage.clinic;
            for program in clinic.bridges.iter_mut().chain(clinic.api.iter_mut()) {
                if !program.is_alive() {
                    let status = program.exit_status();
                    eprintln!("          {} ended: {status:?}", program.name());
                    *ended += 1;
                    program.kill();
                    program.spawn()?;
                }
            }
            let now = clinic.bridges.iter().filter_map(|bridge| machine::rss_mib(bridge.pid()?));
            rss = now.fold(rss, f64::max);
        }
        let to = Instant::now();
        let (batches, questions) = (self.batches.within(from, to), self.questions.within(from, to));
        Ok(Fared {
            victim_p99_ms: p99(&batches).unwrap_or(0.0),
            victim_api_p99_ms: p99(&questions).unwrap_or(0.0),
            bridge_rss_mib: rss,
            batches: batches.len(),
            questions: questions.len(),
        })
    }

    /// Lets everything rest, watches the last third of it, and looks at what is left.
    fn afterwards(
        &self,
        stage: &mut Stage,
        rest: Duration,
        party: &Party,
        ended: &mut u64,
    ) -> Result<Afterwards> {
        self.fared(stage, rest * 2 / 3, ended)?;
        let fared = self.fared(stage, rest / 3, ended)?;
        let metrics: Vec<String> =
            stage.clinic.bridges.iter().map(|bridge| metrics_at(bridge.address())).collect();
        let sum = |name: &str| metrics.iter().map(|text| number(text, name).unwrap_or(f64::INFINITY)).sum();
        Ok(Afterwards {
            fared,
            queue_length: sum("kinara_bridge_queue_length"),
            queue_bytes: sum("kinara_bridge_queue_bytes"),
            longest_statement_s: stage.look(|eye| async move { eye.longest_statement_s().await })?,
            refused_state_kept: state_is_kept(stage, party)?,
            after_s: rest.as_secs(),
        })
    }
}

/// The attack's last word is a state that no bridge should take, and the broker keeps it for whoever comes.
fn leave_a_costly_state(stage: &Stage, party: &Party, target: &Target) -> Result<()> {
    let payload = wire::squeeze(messages::state_of_empty_devices(2_000_000));
    let (client, mut events) = connect(&party.gateway.to_string(), target.broker, &target.identity)?;
    let topic = topic::of(GatewayId(party.gateway), Leaf::State);
    client.try_publish(topic, QoS::AtLeastOnce, true, payload).map_err(|error| trouble(&error))?;
    let said = async {
        loop {
            if let Ok(Event::Incoming(Incoming::PubAck(_))) = events.poll().await {
                return;
            }
        }
    };
    let said = stage.runtime().block_on(async { tokio::time::timeout(Duration::from_secs(20), said).await });
    said.map_err(|error| trouble(&error))
}

/// Whether somebody who subscribes now is given that state.
fn state_is_kept(stage: &Stage, party: &Party) -> Result<bool> {
    let bridge = stage.clinic.authority.client("bridge", "bridge")?;
    let (client, mut events) = connect("hostile-heir", stage.clinic.broker.port(), &bridge)?;
    let topic = topic::of(GatewayId(party.gateway), Leaf::State);
    client.try_subscribe(topic, QoS::AtMostOnce).map_err(|error| trouble(&error))?;
    let kept = async {
        loop {
            if let Ok(Event::Incoming(Packet::Publish(publish))) = events.poll().await {
                return !publish.payload.is_empty();
            }
        }
    };
    let waited = stage.runtime().block_on(async { tokio::time::timeout(Duration::from_secs(4), kept).await });
    Ok(waited.unwrap_or(false))
}

/// What of one clinic is in the other: by the oracle, and in what it does not look at.
fn crossed(stage: &Stage, verdict: &Verdict, party: &Party) -> Result<u64> {
    let by_the_oracle = [Kind::WrongTenant, Kind::WrongWearer, Kind::Invented, Kind::GapOverStored];
    let rows: u64 = by_the_oracle.iter().map(|kind| verdict.of(*kind)).sum();
    let (tenant, own) = (stage.tenant(VICTIM).id, party.others.hardware.clone());
    let beside = stage.look(|eye| async move { eye.crossed(tenant, &own).await })?;
    for (what, count) in beside.iter().filter(|(_, count)| *count > 0) {
        eprintln!("crossed: {count} {what}");
    }
    Ok(rows + beside.iter().map(|(_, count)| *count as u64).sum::<u64>())
}

fn findings(verdict: &Verdict) -> Vec<String> {
    let beside = verdict.findings.iter().filter(|(kind, _)| **kind != Kind::Lost);
    beside.map(|(kind, texts)| format!("{kind:?}: {}", texts.first().map_or("", String::as_str))).collect()
}

/// What was said to the attacker, what was put aside, and what was stopped without a word.
fn refused(stage: &Stage, tally: Tally) -> Result<std::collections::BTreeMap<String, u64>> {
    let mut refused = tally.refused;
    for (reason, count) in stage.look(|eye| async move { eye.quarantine().await })? {
        *refused.entry(format!("quarantine: {reason}")).or_default() += count as u64;
    }
    for bridge in &stage.clinic.bridges {
        let metrics = metrics_at(bridge.address());
        for (name, reason) in [
            ("kinara_bridge_live_stopped_total", "bridge: live values of nobody's"),
            ("kinara_bridge_dropped_total", "bridge: live values and states too many"),
        ] {
            let count = number(&metrics, name).unwrap_or(0.0) as u64;
            if count > 0 {
                *refused.entry(reason.to_owned()).or_default() += count;
            }
        }
    }
    Ok(refused)
}

fn trouble(error: &impl ToString) -> ClinicError {
    ClinicError::Answer { who: "the attacker".to_owned(), what: error.to_string() }
}
