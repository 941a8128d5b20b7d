//! A clinic, what is to happen in it and when, and the harness's own record of what it did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

use super::disk::SmallDisk;
use super::postbox::Postbox;
use crate::clinic::Options;
use crate::hostile::attack::Attack;
use crate::oracle::check::check;
use crate::oracle::database::{Eye, Judged};
use crate::oracle::evidence::{self, Allowance, Boundary};
use crate::oracle::log::WearableLog;
use crate::oracle::verdict::{Kind, Verdict};
use crate::oracle::witness::{self, Witness, Witnessed};
use crate::packets::PacketLine;
use crate::process::pause;
use crate::proxy::Proxy;
use crate::wearable::Air;
use crate::{Assignment, Clinic, ClinicError, GatewayPlan, Result, Tenant, WearablePlan, Wearer};

/// How uncertain a time sync may be on the virtual radio.
const SYNC_BOUND_US: u64 = 20_000;
/// The bridge's word is good to a second and half the round trip, which is short unless the bridge hangs.
const BRIDGE_CLOCK_US: u64 = 1_000_000 + 250_000;
/// How long a wearable out of range keeps a frame open, in all scenarios: short, so that resets cost little and
/// the bound on what they cost is sharp.
pub const AWAY_FRAME_AGE_S: i64 = 5;
/// How long a wearable in range keeps a frame open.
pub const LIVE_FRAME_AGE_S: i64 = 1;
/// Between the moment a fault is noted and the moment it strikes; and a step of the simulator.
const NOTING_US: i64 = 600_000;
/// Assignments begin this long before the run: before any sample in a prefilled flash.
const PAST: Duration = Duration::from_hours(72);

/// Pauses and timeouts of a gateway, shorter than by default: scenarios then last as long as their faults.
const HASTE: &str = "
[uplink]
ack_timeout_s = 4
ack_timeout_max_s = 8
backoff_max_s = 2
seal_after_s = 1
state_every_s = 2
[radio]
backoff_max_s = 2
";

/// Gaps become final sooner than by default, for the same reason.
pub const BRIDGE: &str = "[jobs]\nsweep_s = 2\nlate_grace_s = 4\n";

type Action = Box<dyn FnOnce(&mut Stage) -> Result<()>>;

/// Something that is to happen, or to be tried, and whose it is.
struct Entry {
    scenario: &'static str,
    what: String,
    action: Action,
}

/// What the harness knows about a wearable beside what the clinic does.
#[derive(Debug)]
struct Member {
    plan: Vec<evidence::Assignment>,
    allowances: Vec<Allowance>,
    told_by_the_bridge: bool,
    sync_bound_us: u64,
    scenario: &'static str,
    fresh_from_us: Option<i64>,
}

/// See the module.
pub struct Stage {
    /// The programs.
    pub clinic: Clinic,
    /// The only source of chance.
    pub rng: StdRng,
    /// Where batches are listened to, once somebody asked for it.
    pub postbox: Option<Postbox>,
    /// Lines of gateways that do not reach the broker directly.
    pub lines: BTreeMap<usize, Proxy>,
    /// What is between such a gateway and its line's end, where packets are lost.
    pub packets: BTreeMap<usize, PacketLine>,
    /// What is being done to the clinic, while it is.
    pub attack: Option<Attack>,
    /// File systems of gateways.
    pub disks: Vec<SmallDisk>,
    runtime: tokio::runtime::Runtime,
    members: Vec<Member>,
    tenants: Vec<Tenant>,
    wearers: u32,
    people: Vec<Wearer>,
    usual: [Option<usize>; 2],
    agenda: BTreeMap<(Duration, u64), Entry>,
    probes: Vec<Entry>,
    entries: u64,
    started: Option<Instant>,
    scenario: &'static str,
    seed: u64,
    /// How long the bridges hung in all.
    stalled_us: u64,
    /// Devices that are no wearables of this stage, and may have readings.
    expected: Vec<String>,
    /// Clinics whose own readings nobody judges.
    ignored: Vec<Uuid>,
    witnessed: Witnessed,
    demands: Vec<(&'static str, Witness)>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("clinic", &self.clinic)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl Stage {
    /// A clinic with two tenants and one bridge, and an empty agenda.
    pub fn open(options: Options, seed: u64) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(ClinicError::file("the harness's runtime"))?;
        let mut clinic = Clinic::start(options)?;
        let tenants = vec![
            clinic.add_tenant("North Clinic", "north", "Asia/Kolkata")?,
            clinic.add_tenant("South Clinic", "south", "Europe/Berlin")?,
        ];
        clinic.add_bridge_with(BRIDGE)?;
        Ok(Self {
            clinic,
            rng: StdRng::seed_from_u64(seed),
            postbox: None,
            lines: BTreeMap::new(),
            packets: BTreeMap::new(),
            attack: None,
            disks: Vec::new(),
            runtime,
            members: Vec::new(),
            tenants,
            wearers: 0,
            people: Vec::new(),
            usual: [None; 2],
            agenda: BTreeMap::new(),
            probes: Vec::new(),
            entries: 0,
            started: None,
            scenario: "",
            seed,
            stalled_us: 0,
            expected: Vec::new(),
            ignored: Vec::new(),
            witnessed: Witnessed::default(),
            demands: Vec::new(),
        })
    }

    /// Whose entries the following ones are, and what that scenario must see.
    pub fn enter(&mut self, scenario: &'static str, must_see: &[Witness]) {
        self.scenario = scenario;
        self.demands.extend(must_see.iter().map(|witness| (scenario, *witness)));
    }

    /// The scenario in force cannot be played here: nothing is demanded of it.
    pub fn skip(&mut self, why: &str) {
        eprintln!("SKIPPED: {}: {why}", self.scenario);
        let skipped = self.scenario;
        self.demands.retain(|(scenario, _)| *scenario != skipped);
    }

    /// Notes that the scenario in force saw this.
    pub fn saw(&mut self, witness: Witness) {
        eprintln!("          {}: seen: {}", self.scenario, witness.sentence());
        self.witnessed.saw(self.scenario, witness);
    }

    /// Whether the scenario in force has seen this.
    pub fn has_seen(&self, witness: Witness) -> bool {
        self.witnessed.times(self.scenario, witness) > 0
    }

    /// Writes into the agenda: this happens so many seconds after the start.
    pub fn at(
        &mut self,
        seconds: f64,
        what: impl Into<String>,
        action: impl FnOnce(&mut Self) -> Result<()> + 'static,
    ) {
        self.entries += 1;
        let entry = Entry { scenario: self.scenario, what: what.into(), action: Box::new(action) };
        self.agenda.insert((Duration::from_secs_f64(seconds), self.entries), entry);
    }

    /// After all faults, when everything is quiet, this must work.
    pub fn afterwards(
        &mut self,
        what: impl Into<String>,
        probe: impl FnOnce(&mut Self) -> Result<()> + 'static,
    ) {
        self.probes.push(Entry { scenario: self.scenario, what: what.into(), action: Box::new(probe) });
    }

    /// A random moment between two.
    pub fn moment(&mut self, from: f64, to: f64) -> f64 {
        self.rng.random_range(from..to)
    }

    /// Lets everything in the agenda happen.
    pub fn play(&mut self) -> Result<()> {
        let started = *self.started.insert(Instant::now());
        while let Some(((at, _), Entry { scenario, what, action })) = self.agenda.pop_first() {
            pause(at.saturating_sub(started.elapsed()));
            eprintln!("{:6.1} s  {scenario}: {what}", started.elapsed().as_secs_f64());
            self.scenario = scenario;
            action(self)?;
        }
        Ok(())
    }

    /// Starts a gateway of this tenant. Frames are re-sent soon, so that scenarios do not last longer than needed.
    pub fn gateway(&mut self, tenant: usize, name: &str, extra: &str) -> Result<usize> {
        self.gateway_in(tenant, name, extra, &[])
    }

    /// Starts a gateway with something in its environment.
    pub fn gateway_in(
        &mut self,
        tenant: usize,
        name: &str,
        extra: &str,
        env: &[(&str, String)],
    ) -> Result<usize> {
        let mut plan = GatewayPlan::named(name).with(HASTE).with(extra);
        plan.env = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let tenant = self.tenants[tenant].clone();
        self.clinic.add_gateway(&tenant, plan)
    }

    /// The clinic in this place.
    pub fn tenant(&self, tenant: usize) -> &Tenant {
        &self.tenants[tenant]
    }

    /// The gateway that serves a tenant's wearables in scenarios that do not care which.
    pub fn usual_gateway(&mut self, tenant: usize) -> Result<usize> {
        if let Some(gateway) = self.usual[tenant] {
            return Ok(gateway);
        }
        let gateway = self.gateway(tenant, ["usual-north", "usual-south"][tenant], "")?;
        self.usual[tenant] = Some(gateway);
        self.start_gateway_at(0.3, gateway);
        Ok(gateway)
    }

    /// Starts a gateway at this moment (it knows who was introduced by then).
    pub fn start_gateway_at(&mut self, seconds: f64, gateway: usize) {
        let name = self.clinic.gateways[gateway].name.clone();
        self.at(seconds, format!("gateway {name} starts"), move |stage| {
            stage.clinic.gateways[gateway].process().spawn()
        });
    }

    /// A wearer of this tenant.
    pub fn wearer(&mut self, tenant: usize) -> Result<Wearer> {
        self.wearers += 1;
        let id = format!("W-{}", self.wearers);
        let name = format!("Wearer {}", self.wearers);
        let wearer = self.clinic.add_wearer(&self.tenants[tenant], &id, &name)?;
        self.people.push(wearer.clone());
        Ok(wearer)
    }

    /// The first wearer of a wearable.
    pub fn wearer_of(&self, wearable: usize) -> Uuid {
        self.members[wearable].plan[0].user
    }

    /// Frames of a wearable that are put aside.
    pub fn put_aside(&self, wearable: usize) -> Result<i64> {
        let hardware = self.clinic.wearables[wearable].hardware_id.clone();
        self.look(|eye| async move { eye.put_aside(&hardware).await })
    }

    /// Readings that are stored for somebody from a time on.
    pub fn stored_since(&self, user: Uuid, utc_us: i64) -> Result<i64> {
        self.look(|eye| async move { eye.stored_since(user, utc_us).await })
    }

    /// Erases the first wearer of a wearable.
    pub fn erase(&mut self, wearable: usize) -> Result<()> {
        let user = self.wearer_of(wearable);
        let Some(wearer) = self.people.iter().find(|wearer| wearer.id == user) else { return Ok(()) };
        let args = [
            "wearer",
            "erase",
            "--tenant",
            &wearer.tenant,
            "--external-id",
            &wearer.external_id,
            "--for-ever",
        ];
        self.clinic.admin(&args, None).map(|_| ())
    }

    /// A wearable of this tenant, assigned to a new wearer since long ago, known to these gateways, and started at once.
    pub fn wearable(&mut self, tenant: usize, gateways: &[usize], args: &[&str]) -> Result<usize> {
        let wearable = self.new_wearable(tenant, gateways, args)?;
        self.clinic.wearables[wearable].process().spawn()?;
        Ok(wearable)
    }

    /// The same, not started.
    pub fn new_wearable(&mut self, tenant: usize, gateways: &[usize], args: &[&str]) -> Result<usize> {
        self.wearable_on(Air::Virtual, tenant, gateways, args)
    }

    /// A started wearable that these gateways know and nobody wears; by the plan its wearer has had it all along, who has to
    /// be told to the product later: [`assign_since_ever`](Self::assign_since_ever).
    pub fn unassigned_wearable(&mut self, tenant: usize, gateways: &[usize], args: &[&str]) -> Result<usize> {
        let wearable = self.made(Air::Virtual, tenant, gateways, args)?;
        self.clinic.wearables[wearable].process().spawn()?;
        Ok(wearable)
    }

    /// Tells the product that a wearable was its first wearer's from before the run on.
    pub fn assign_since_ever(&mut self, wearable: usize, tenant: usize) -> Result<()> {
        let user = self.wearer_of(wearable);
        let wearer = self.people.iter().find(|wearer| wearer.id == user).cloned();
        let wearer =
            wearer.ok_or_else(|| ClinicError::Refused(format!("clinic {tenant} has no such wearer")))?;
        let from = jiff::Timestamp::now() - PAST;
        let hardware = self.clinic.wearables[wearable].hardware_id.clone();
        self.clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None }).map(|_| ())
    }

    /// The same on another air.
    pub fn wearable_on(
        &mut self,
        air: Air,
        tenant: usize,
        gateways: &[usize],
        args: &[&str],
    ) -> Result<usize> {
        let wearable = self.made(air, tenant, gateways, args)?;
        self.assign_since_ever(wearable, tenant)?;
        Ok(wearable)
    }

    /// Makes a wearable, and a wearer who has it by the harness's plan.
    fn made(&mut self, air: Air, tenant: usize, gateways: &[usize], args: &[&str]) -> Result<usize> {
        let number = self.clinic.wearables.len() as u64 + 1;
        let factory_id = (self.seed & 0xffff) << 16 | number;
        let seed = self.rng.random_range(1..1_000_000);
        let age = AWAY_FRAME_AGE_S.to_string();
        let name = match air {
            Air::Virtual => format!("{}-{number}", self.scenario),
            // As makers name them: what a box with the label in its configuration looks for.
            Air::Bluetooth { .. } => format!("K-{:04X}", factory_id & 0xffff),
        };
        let plan = WearablePlan::new(factory_id, name, seed)
            .on(air)
            .args(["--frame-age-offline-s", age.as_str()])
            .args(args.iter().copied());
        let wearable = self.clinic.add_wearable(plan)?;
        let wearer = self.wearer(tenant)?;
        for gateway in gateways {
            self.clinic.introduce(*gateway, wearable)?;
        }
        self.members.push(Member {
            plan: vec![evidence::Assignment {
                from: Boundary::Start,
                tenant: self.tenants[tenant].id,
                user: wearer.id,
            }],
            allowances: Vec::new(),
            told_by_the_bridge: false,
            sync_bound_us: SYNC_BOUND_US,
            scenario: self.scenario,
            fresh_from_us: None,
        });
        Ok(wearable)
    }

    /// This wearable's gateway has its time from the bridge.
    pub fn told_by_the_bridge(&mut self, wearable: usize) {
        self.members[wearable].told_by_the_bridge = true;
    }

    /// A time sync with this wearable may be this uncertain.
    pub fn sync_bound(&mut self, wearable: usize, bound: Duration) {
        self.members[wearable].sync_bound_us = bound.as_micros() as u64;
    }

    /// Something of what this wearable produces from now on must be stored in the end.
    pub fn fresh_from(&mut self, wearable: usize, utc_us: i64) {
        self.members[wearable].fresh_from_us = Some(utc_us);
    }

    /// Readings of this device are no surprise, and are not judged: a sensor of another maker.
    pub fn expect(&mut self, hardware: &str) {
        self.expected.push(hardware.to_owned());
    }

    /// What devices that are not of this stage have in this clinic is its own business.
    pub fn ignore_clinic(&mut self, tenant: usize) {
        self.ignored.push(self.tenants[tenant].id);
    }

    /// What the oracle judges here.
    pub(super) fn judged(&self) -> Judged {
        let own = self.clinic.wearables.iter().map(|wearable| wearable.hardware_id.clone()).collect();
        Judged { own, ignored: self.ignored.clone() }
    }

    /// Who wears this clinic's wearables, in their order.
    pub fn wearers_of(&self, tenant: usize) -> Vec<Uuid> {
        let tenant = self.tenants[tenant].id;
        let plans = self.members.iter().flat_map(|member| &member.plan);
        plans.filter(|assignment| assignment.tenant == tenant).map(|assignment| assignment.user).collect()
    }

    /// The bridges hang for so many seconds: whoever asks them for the time then waits as long.
    pub fn note_stall(&mut self, seconds: f64) {
        self.stalled_us += (seconds * 1e6) as u64;
    }

    /// The wearables that the scenario in force has brought.
    pub fn own_wearables(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|wearable| self.members[*wearable].scenario == self.scenario).collect()
    }

    /// Writes an assignment into the plan and tells the product.
    pub fn hand_over(&mut self, wearable: usize, to: &Wearer, tenant: usize, from: Boundary) -> Result<()> {
        let (at, at_frame) = match from {
            Boundary::Time(utc_us) => {
                (jiff::Timestamp::from_microsecond(utc_us).expect("a time of today"), None)
            }
            Boundary::Frame { epoch, seq } => (jiff::Timestamp::now(), Some((epoch, seq))),
            Boundary::Start => unreachable!("a hand-over has a boundary"),
        };
        let hardware = self.clinic.wearables[wearable].hardware_id.clone();
        self.clinic.assign(&hardware, to, Assignment { from: at, at_frame })?;
        let tenant = self.tenants[tenant].id;
        self.members[wearable].plan.push(evidence::Assignment { from, tenant, user: to.id });
        Ok(())
    }

    /// Writes into the fault log what the harness does to this wearable.
    pub fn allow(&mut self, wearable: usize, allowance: Allowance) {
        self.members[wearable].allowances.push(allowance);
    }

    /// Writes a reset into the fault log: it has just happened.
    pub fn allow_reset(&mut self, wearable: usize, frame_age_s: i64) {
        let allowance =
            Allowance::Reset { at_us: utc_us(), frame_age_us: frame_age_s * 1_000_000 + NOTING_US };
        self.allow(wearable, allowance);
    }

    /// Says something to a wearable.
    pub fn tell(&mut self, wearable: usize, command: &Value) -> Result<Value> {
        self.clinic.wearables[wearable].control(command)
    }

    /// Only these gateways are in range of the wearable from now on.
    pub fn hears(&mut self, wearable: usize, gateways: &[usize]) -> Result<()> {
        let names: Vec<String> =
            gateways.iter().map(|gateway| self.clinic.gateways[*gateway].name.clone()).collect();
        self.tell(wearable, &json!({"do": "hear", "gateways": names})).map(|_| ())
    }

    /// The oldest frame that a wearable keeps.
    pub fn oldest(&mut self, wearable: usize) -> Result<(u64, u32)> {
        let status = self.clinic.wearables[wearable].status()?;
        frame(&status["oldest"]).ok_or_else(|| unclear(&status))
    }

    /// The boot a wearable is in and the frame it will close next.
    pub fn next_frame(&mut self, wearable: usize) -> Result<(u64, u32)> {
        let status = self.clinic.wearables[wearable].status()?;
        let epoch = status["epoch"].as_str().and_then(|text| u64::from_str_radix(text, 16).ok());
        let seq = status["next_seq"].as_u64();
        epoch.zip(seq.map(|seq| seq as u32)).ok_or_else(|| unclear(&status))
    }

    /// Looks at the database.
    pub fn look<T, F>(&self, query: impl FnOnce(Eye) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    {
        self.runtime
            .block_on(async { query(Eye::open(&self.clinic.database.admin_url()).await?).await })
            .map_err(|error| ClinicError::Database(told(&error)))
    }

    /// Runs something on the harness's own runtime.
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Reads the logs and the database, and judges.
    pub fn judge(&mut self) -> Result<Verdict> {
        let stuck = self.probe();
        let evidence = self.evidence()?;
        let mut verdict = check(&evidence);
        for text in stuck {
            verdict.find(Kind::Stuck, || text);
        }
        self.witnessed.join(witness::of_evidence(&evidence));
        witness::judge(std::mem::take(&mut self.witnessed), &self.demands, &mut verdict);
        if !verdict.passed() {
            let quarantine = self.look(|eye| async move { eye.quarantine().await })?;
            eprintln!("quarantined frames by reason: {quarantine:?}");
        }
        Ok(verdict)
    }

    /// Tries what must work after the faults; returns what does not.
    fn probe(&mut self) -> Vec<String> {
        let mut stuck = Vec::new();
        for Entry { scenario, what, action } in std::mem::take(&mut self.probes) {
            self.scenario = scenario;
            if let Err(error) = action(self) {
                stuck.push(format!("{scenario}: {what}: {error}"));
            }
        }
        stuck
    }

    fn evidence(&mut self) -> Result<evidence::Evidence> {
        let mut wearables = Vec::new();
        for (wearable, member) in self.clinic.wearables.iter_mut().zip(&self.members) {
            // Nothing may be written to its log while it is read.
            wearable.process().kill();
            let log = WearableLog::read(&wearable.produced).map_err(|error| ClinicError::Answer {
                who: format!("wearable {}", wearable.plan.name),
                what: error.to_string(),
            })?;
            wearables.push(evidence::Wearable {
                hardware: wearable.hardware_id.clone(),
                log,
                plan: member.plan.clone(),
                allowances: member.allowances.clone(),
                sync_bound_us: if member.told_by_the_bridge {
                    member.sync_bound_us + BRIDGE_CLOCK_US + self.stalled_us / 2
                } else {
                    member.sync_bound_us
                },
                scenario: member.scenario.to_owned(),
                fresh_from_us: member.fresh_from_us,
            });
        }
        let mut evidence = self.look(|eye| async move { eye.evidence(wearables).await })?;
        evidence.strangers.retain(|(hardware, tenant), _| {
            !self.expected.contains(hardware) && !self.ignored.contains(tenant)
        });
        Ok(evidence)
    }
}

/// True time, microseconds.
pub fn utc_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

fn frame(value: &Value) -> Option<(u64, u32)> {
    let epoch = u64::from_str_radix(value["epoch"].as_str()?, 16).ok()?;
    Some((epoch, value["seq"].as_u64()? as u32))
}

fn unclear(status: &Value) -> ClinicError {
    ClinicError::Answer { who: "a wearable".to_owned(), what: format!("has this status: {status}") }
}

/// An error with what the server said.
fn told(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |db| format!("{}: {}", db.code().code(), db.message()))
}
