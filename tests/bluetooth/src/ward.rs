//! A clinic whose gateways run in machines and whose wearables speak Bluetooth; the conservation oracle judges it.
//!
//! The cloud (database, broker, bridge) is `kinara-clinic`'s and runs on the host. A gateway's configuration,
//! certificate, data and bluetoothd's bonds lie on its machine's data disk, so that a power cut leaves just them.

use crate::bed::until;
use crate::package::{CONFIGURATION, DATA, GATEWAYD, LINKD};
use crate::{Bed, BedError, Hand, Result};
use kinara_clinic::clinic::Options;
use kinara_clinic::oracle::database::Counts;
use kinara_clinic::oracle::evidence::Allowance;
use kinara_clinic::oracle::verdict::Verdict;
use kinara_clinic::process::pause;
use kinara_clinic::scenario::Stage;
use kinara_clinic::wearable;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The host, as QEMU's user network calls it.
const HOST: &str = "10.0.2.2";
/// How uncertain a time sync over Bluetooth may be where the machine is emulated: half of a slow round trip.
const SYNC_BOUND: Duration = Duration::from_secs(2);
/// Pauses of a gateway, shorter than by default: scenarios then last as long as their faults.
const HASTE: &str = "
[uplink]
ack_timeout_s = 6
ack_timeout_max_s = 12
backoff_max_s = 3
seal_after_s = 1
state_every_s = 2
[radio]
backoff_max_s = 4
";
const LOOK: Duration = Duration::from_millis(500);
/// So long must nothing have changed before all counts as settled.
const QUIET: Duration = Duration::from_secs(4);

/// A gateway in a machine.
#[derive(Debug)]
pub struct Gateway {
    name: String,
    machine: usize,
    configuration: toml::Table,
    /// Certificates: where they go, and their text.
    files: Vec<(String, String)>,
}

/// See the module.
#[derive(Debug)]
pub struct Ward {
    /// Air and machines.
    pub bed: Bed,
    /// The cloud, the wearables, and the record of what was done to them.
    pub stage: Stage,
    gateways: Vec<Gateway>,
    names: Vec<String>,
}

impl Ward {
    /// A clinic with nobody in it yet. `files` are put into `/bed` of each machine.
    pub fn open(name: &str, seed: u64, files: &[std::path::PathBuf]) -> Result<Self> {
        let stage = Stage::open(Options::for_test(name), seed)?;
        let bed = Bed::open(&stage.clinic.folder().join("bed"), files)?;
        Ok(Self { bed, stage, gateways: Vec::new(), names: Vec::new() })
    }

    /// A gateway of the first clinic in this machine, which is up; `extra` is TOML over its configuration. It is not
    /// started yet. Returns its place.
    pub fn add_gateway(&mut self, machine: usize, name: &str, extra: &str) -> Result<usize> {
        let tenant = self.stage.tenant(0).clone();
        let (id, identity) = self.stage.clinic.enrol(&tenant, name)?;
        let mut uplink = self.stage.clinic.broker.section(&identity);
        uplink.insert("host".into(), HOST.into());
        let mut files = Vec::new();
        for (key, from) in [("ca", &identity.ca), ("cert", &identity.cert), ("key", &identity.key)] {
            let text = std::fs::read_to_string(from).map_err(crate::file(from))?;
            let there = format!("/etc/kinara/{key}.pem");
            uplink.insert(key.into(), there.clone().into());
            files.push((there, text));
        }
        let mut configuration: toml::Table = toml::from_str(&format!(
            "gateway_id = \"{id}\"
             name = \"{name}\"
             data_dir = \"{DATA}\"
             [radio]
             transport = \"bluez\"
             [clock]
             trust_system = true
             [live]
             always = true
             [infer]
             enabled = false
             [local]
             listen = \"127.0.0.1:0\""
        ))
        .expect("the bed's own TOML is valid");
        configuration.insert("uplink".into(), toml::Value::Table(uplink));
        for over in [HASTE, extra] {
            merge(&mut configuration, toml::from_str(over).expect("a test's own TOML is valid"));
        }
        self.gateways.push(Gateway { name: name.to_owned(), machine, configuration, files });
        Ok(self.gateways.len() - 1)
    }

    /// A gateway's id in the cloud.
    pub fn gateway_id(&self, gateway: usize) -> &str {
        self.gateways[gateway].configuration["gateway_id"].as_str().unwrap_or_default()
    }

    /// Lays TOML over a gateway's configuration: counts from its next start on.
    pub fn configure(&mut self, gateway: usize, extra: &str) {
        let configuration = &mut self.gateways[gateway].configuration;
        merge(configuration, toml::from_str(extra).expect("a test's own TOML is valid"));
    }

    /// Puts a gateway's configuration and certificates into its machine.
    pub fn write_configuration(&self, gateway: usize) -> Result<()> {
        let hand = self.hand(gateway)?;
        let gateway = &self.gateways[gateway];
        let text = toml::to_string(&gateway.configuration).expect("tables can be written");
        for (path, text) in gateway.files.iter().chain([&(CONFIGURATION.to_owned(), text)]) {
            hand.write(path, text, 0o640)?;
        }
        hand.shell("chgrp -R kinara /etc/kinara").map(|_| ())
    }

    /// Tells a gateway the label of a wearable, which it then pairs with by itself: counts from its next start on.
    pub fn introduce(&mut self, gateway: usize, wearable: usize) {
        let wearable = &self.stage.clinic.wearables[wearable];
        let mut entry = toml::Table::new();
        entry.insert("hardware_id".into(), wearable.hardware_id.clone().into());
        entry.insert("label_secret".into(), wearable.label_secret.clone().into());
        let known =
            self.gateways[gateway].configuration.entry("wearable").or_insert(toml::Value::Array(Vec::new()));
        if let toml::Value::Array(known) = known {
            known.push(toml::Value::Table(entry));
        }
    }

    /// Starts a gateway's programs under a bare init and waits until it answers.
    pub fn start_gateway(&self, gateway: usize) -> Result<()> {
        self.write_configuration(gateway)?;
        let hand = self.hand(gateway)?;
        hand.shell(&format!("rm -f {DATA}/local.addr"))?;
        let log = [("RUST_LOG", "info,kinara_gatewayd::radio=debug")];
        if !hand.alive("linkd").unwrap_or(false) {
            hand.start("linkd", &LINKD, &log)?;
        }
        hand.start("gatewayd", &GATEWAYD, &log)?;
        self.wait_for_gateway(gateway)
    }

    /// Waits until a gateway's programs answer.
    pub fn wait_for_gateway(&self, gateway: usize) -> Result<()> {
        until("gatewayd answers", Duration::from_mins(1), || self.metrics(gateway).map(|_| true))
            .map_err(|error| self.with_log(gateway, error))
    }

    /// An error with what the gateway's machine has to say: its programs' logs end so, its adapter is so.
    pub fn with_log(&self, gateway: usize, error: BedError) -> BedError {
        const LOOK: &str = "for log in gatewayd linkd bluetoothd; do echo \"--- $log\"; \
            tail -n 25 /run/bed-$log.log 2>/dev/null; done; echo '--- adapter'; timeout 5 bluetoothctl show; \
            timeout 5 bluetoothctl devices";
        let told =
            self.hand(gateway).and_then(|hand| Ok(hand.run(&["sh", "-c", LOOK])?.out)).unwrap_or_default();
        BedError::Broken(format!("{error}\n{told}"))
    }

    /// The hand in a gateway's machine.
    pub fn hand(&self, gateway: usize) -> Result<&Hand> {
        self.bed.machines[self.gateways[gateway].machine].hand()
    }

    /// The text of a gateway's `/metrics`.
    pub fn metrics(&self, gateway: usize) -> Result<String> {
        const ASK: &str = "import ssl,sys,urllib.request as r
address=open(sys.argv[1]).read().strip()
for scheme in 'http','https':
    try:
        print(r.urlopen(f'{scheme}://{address}/metrics',timeout=5,context=ssl._create_unverified_context()).read().decode())
        break
    except OSError as error: last=error
else: sys.exit(str(last))";
        self.hand(gateway)?.run(&["python3", "-c", ASK, &format!("{DATA}/local.addr")])?.good()
    }

    /// One number of a gateway's `/metrics`.
    pub fn metric(&self, gateway: usize, name: &str) -> Result<f64> {
        let text = self.metrics(gateway)?;
        text.lines()
            .find_map(|line| line.strip_prefix("kinara_gateway_")?.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| BedError::Guest(format!("does not tell kinara_gateway_{name}")))
    }

    /// What `kinaractl` answers, as JSON.
    pub fn ctl(&self, gateway: usize, args: &[&str]) -> Result<Value> {
        let mut command = vec!["kinaractl", "--json"];
        command.extend(args);
        let said = self.hand(gateway)?.run_within(Duration::from_mins(2), &command)?;
        serde_json::from_str(said.out.trim()).map_err(|error| {
            BedError::Guest(format!(
                "answered `{}` with {} ({error}) {}",
                command.join(" "),
                said.out,
                said.err
            ))
        })
    }

    /// A wearable of the first clinic over Bluetooth, worn by somebody since long ago, and started.
    pub fn add_wearable(&mut self, args: &[&str]) -> Result<usize> {
        let name = format!("w{}", self.stage.clinic.wearables.len());
        let port = self.bed.air.wearable(&name)?;
        let wearable = self.stage.wearable_on(wearable::Air::Bluetooth { port }, 0, &[], args)?;
        self.stage.sync_bound(wearable, SYNC_BOUND);
        self.names.push(name);
        self.stage.clinic.wearables[wearable].process().start()?;
        Ok(wearable)
    }

    /// A wearable's name on the air.
    pub fn on_air(&self, wearable: usize) -> &str {
        &self.names[wearable]
    }

    /// Whether a wearable says that somebody is connected to it.
    pub fn status(&self, wearable: usize) -> Result<Value> {
        Ok(self.stage.clinic.wearables[wearable].status()?)
    }

    /// With how many machines a wearable has a link, by the air.
    pub fn links(&self, wearable: usize) -> Result<usize> {
        let status = self.bed.air.status()?;
        Ok(status[self.on_air(wearable)]["links"].as_array().map_or(0, Vec::len))
    }

    /// Frames of a wearable that the cloud has.
    pub fn stored(&self, wearable: usize) -> Result<u64> {
        let hardware = self.stage.clinic.wearables[wearable].hardware_id.clone();
        let ledger = self.stage.look(|eye| async move { eye.ledger(&hardware).await })?;
        Ok(ledger.values().flatten().map(|(first, last)| u64::from(last - first) + 1).sum())
    }

    /// Cuts a machine's power. What its wearables had not been told is stored stays with them.
    pub fn cut_power(&mut self, machine: usize) {
        self.bed.machines[machine].kill();
    }

    /// Writes a wearable's reset into the record, and pulls its plug.
    pub fn reset_wearable(&mut self, wearable: usize) -> Result<()> {
        self.stage.clinic.wearables[wearable].process().kill();
        self.stage.allow_reset(wearable, kinara_clinic::scenario::AWAY_FRAME_AGE_S);
        self.stage.clinic.wearables[wearable].process().start()?;
        Ok(())
    }

    /// Writes into the record what the harness does to a wearable.
    pub fn allow(&mut self, wearable: usize, allowance: Allowance) {
        self.stage.allow(wearable, allowance);
    }

    /// Brings everything back that a scenario left down or out of range.
    pub fn bring_back(&mut self) -> Result<()> {
        for (wearable, name) in self.stage.clinic.wearables.iter_mut().zip(&self.names) {
            wearable.process().start()?;
            for machine in &self.bed.machines {
                self.bed.air.range(name, machine.name(), Some(-55))?;
            }
        }
        Ok(())
    }

    /// Lets the wearables close their last frame and stop producing, and waits until everything has arrived. What
    /// has not by the deadline is told, and then judged as lost.
    pub fn settle(&mut self, deadline: Duration) -> Result<()> {
        for wearable in &self.stage.clinic.wearables {
            wearable.control(&json!({"do": "stop"}))?;
        }
        let began = Instant::now();
        let (mut seen, mut changed) = (Counts::default(), Instant::now());
        loop {
            let counts = self.stage.counts()?;
            if counts != seen {
                (seen, changed) = (counts, Instant::now());
            }
            let mut missing = self.missing();
            if counts.open_gaps > 0 {
                missing.push(format!("{} gaps are open", counts.open_gaps));
            }
            if missing.is_empty() && changed.elapsed() >= QUIET {
                eprintln!("quiet after {:.1} s: {counts:?}", began.elapsed().as_secs_f64());
                return Ok(());
            }
            if began.elapsed() >= deadline {
                eprintln!("not quiet after {deadline:?} ({counts:?}):\n  {}", missing.join("\n  "));
                return Ok(());
            }
            pause(LOOK);
        }
    }

    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for wearable in &self.stage.clinic.wearables {
            match wearable.status() {
                Ok(status) if status["unacknowledged"].as_u64() == Some(0) => {}
                Ok(status) => missing.push(format!("{} still keeps frames: {status}", wearable.plan.name)),
                Err(error) => missing.push(error.to_string()),
            }
        }
        if !missing.is_empty() {
            return missing;
        }
        for (place, gateway) in self.gateways.iter().enumerate() {
            for held in ["unsealed_frames", "waiting_batches", "waiting_events", "parked_batches"] {
                match self.metric(place, held) {
                    Ok(0.0) => {}
                    Ok(count) => missing.push(format!("gateway {} has {count} {held}", gateway.name)),
                    Err(error) => missing.push(format!("gateway {}: {error}", gateway.name)),
                }
            }
        }
        missing
    }

    /// Judges by what was produced and what is stored.
    pub fn judge(&mut self) -> Result<Verdict> {
        let verdict = self.stage.judge()?;
        eprintln!("{verdict}");
        Ok(verdict)
    }
}

/// Lays `over` over `base`; tables are merged, everything else is replaced.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (name, value) in over {
        match (base.get_mut(&name), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(name, value);
            }
        }
    }
}
