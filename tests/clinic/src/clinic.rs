//! The clinic as a whole: its cloud (database, broker, bridges, API) and its rooms (gateways, wearables).

use crate::authority::{Authority, Identity};
use crate::database::Durability;
use crate::gateway::{Surroundings, path, table};
use crate::process::{self, Launch, Process, Ready, stop_together};
use crate::records::Records;
use crate::{
    Broker, ClinicError, Database, Gateway, GatewayPlan, Result, Wearable, WearablePlan, folders, ports,
};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use uuid::Uuid;

/// Whether a clinic's folder stays when the clinic is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It stays.
    Always,
    /// It goes, unless the test is failing (the thread panics) or [`Clinic::keep`] was called.
    OnFailure,
}

/// The library and the model that gateways run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// `libonnxruntime.so`.
    pub onnxruntime: PathBuf,
    /// The model package's folder.
    pub model: PathBuf,
}

/// How a clinic is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// All it keeps is here.
    pub folder: PathBuf,
    /// Whether the folder stays.
    pub keep: Keep,
    /// What a commit in the database is worth.
    pub durability: Durability,
    /// Where the API listens; port 0 lets it choose.
    pub listen: SocketAddr,
    /// `KINARA_CLOCK` for all programs: `origin_unix_us:rate`.
    pub clock: Option<String>,
    /// `KINARA_SABOTAGE` for the gateways and bridges (test builds only).
    pub sabotage: Option<String>,
    /// `RUST_LOG` for all programs.
    pub log_level: String,
    /// The folder with the built programs.
    pub programs: PathBuf,
    /// What gateways infer with; nothing: they do not infer.
    pub models: Option<Models>,
}

impl Options {
    /// A clinic in this folder with the defaults: kept only on failure, real commits, the API on a free port of
    /// 127.0.0.1, the programs that were built beside this one.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            keep: Keep::OnFailure,
            durability: Durability::Real,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            clock: None,
            sabotage: None,
            log_level: "info".to_owned(),
            programs: programs(),
            models: None,
        }
    }

    /// In a new folder below `.kinara/tests` of the checkout.
    pub fn for_test(name: &str) -> Self {
        let unique = Uuid::now_v7().simple().to_string();
        Self::in_folder(root().join(".kinara/tests").join(format!("{name}-{}", &unique[20..])))
    }
}

/// A tenant as the administration made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: Uuid,
    /// The short name that the commands take.
    pub slug: String,
}

/// Somebody who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Who.
    pub email: String,
    /// With which password.
    pub password: String,
}

/// A wearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wearer {
    /// The id of the user's row.
    pub id: Uuid,
    /// The tenant's short name.
    pub tenant: String,
    /// The clinic's own id for the wearer.
    pub external_id: String,
}

/// From when on a wearable is a wearer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The boundary as a time.
    pub from: jiff::Timestamp,
    /// The boundary as a frame, which then decides.
    pub at_frame: Option<(u64, u32)>,
}

/// A running clinic.
#[derive(Debug)]
pub struct Clinic {
    /// The gateways, in the order they were added.
    pub gateways: Vec<Gateway>,
    /// The wearables, in the order they were added.
    pub wearables: Vec<Wearable>,
    /// The bridges.
    pub bridges: Vec<Process>,
    /// The API, once started.
    pub api: Option<Process>,
    /// The broker.
    pub broker: Broker,
    /// The database.
    pub database: Database,
    /// The certificate authority.
    pub authority: Authority,
    /// Passwords and identities.
    pub records: Records,
    options: Options,
    logs: PathBuf,
    air: PathBuf,
    keep: Keep,
}

impl Clinic {
    /// Starts the ground: authority, database with the product's migrations and login roles, broker. Bridges, API,
    /// gateways and wearables are added by whoever needs them.
    pub fn start(options: Options) -> Result<Self> {
        folders::make(&options.folder, 0o755)?;
        let folder = std::fs::canonicalize(&options.folder).map_err(ClinicError::file(&options.folder))?;
        let options = Options { folder, ..options };
        let folder = options.folder.as_path();
        let logs = folder.join("logs");
        folders::make(&logs, 0o755)?;
        let air = folders::socket_folder(folder, "air")?;
        let mut records = Records::open(&folder.join("records.json"))?;
        let authority = Authority::open(&folder.join("certificates"))?;
        // The database takes the longest to come up, the broker next to no time: side by side.
        let (database, broker) = std::thread::scope(|scope| {
            let database = scope.spawn(|| Database::start(folder, ports::free(), options.durability));
            let broker = Broker::start(&folder.join("broker"), &logs, &authority, ports::free());
            (database.join().expect("starting a database does not panic"), broker)
        });
        let (database, broker) = (database?, broker?);
        let (bridge, api) =
            (records.password("database role bridge")?, records.password("database role api")?);
        let keep = options.keep;
        let clinic = Self {
            gateways: Vec::new(),
            wearables: Vec::new(),
            bridges: Vec::new(),
            api: None,
            broker,
            database,
            authority,
            records,
            options,
            logs,
            air,
            keep,
        };
        clinic.write_api_configuration(&api)?;
        clinic.run_api(&["migrate"], None)?;
        clinic.database.login_role("bridge", &bridge, "kinara_ingest")?;
        clinic.database.login_role("api", &api, "kinara_app")?;
        Ok(clinic)
    }

    /// The clinic's folder.
    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// The folder of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The folder that is the air between wearables and gateways.
    pub fn air(&self) -> &Path {
        &self.air
    }

    /// Keeps the folder whatever happens, and says where it is.
    pub fn keep(&mut self) -> &Path {
        self.keep = Keep::Always;
        &self.options.folder
    }

    /// Starts one more bridge and returns its place in [`Clinic::bridges`].
    pub fn add_bridge(&mut self) -> Result<usize> {
        self.add_bridge_with("")
    }

    /// Starts one more bridge with this TOML laid over its configuration.
    pub fn add_bridge_with(&mut self, extra: &str) -> Result<usize> {
        let number = self.bridges.len();
        let mut bridge = self.prepare_bridge(number, extra)?;
        bridge.start()?;
        self.bridges.push(bridge);
        Ok(number)
    }

    fn prepare_bridge(&mut self, number: usize, extra: &str) -> Result<Process> {
        let name = if number == 0 { "bridge".to_owned() } else { format!("bridge-{}", number + 1) };
        let folder = self.options.folder.join("cloud");
        folders::make(&folder, 0o755)?;
        let identity = self.authority.client("bridge", "bridge")?;
        let mut broker = self.broker.section(&identity);
        broker.insert("client_id".into(), name.clone().into());
        broker.insert("share_group".into(), self.records.password("bridges' share group")?.into());
        let addr_file = folder.join(format!("{name}.addr"));
        let url = self.database.url("bridge", &self.records.password("database role bridge")?);
        let mut whole = toml::Table::new();
        whole.insert("database".into(), table([("url", url.into())]));
        whole.insert("broker".into(), toml::Value::Table(broker));
        whole.insert(
            "metrics".into(),
            table([("listen", "127.0.0.1:0".into()), ("addr_file", path(&addr_file))]),
        );
        crate::gateway::merge(&mut whole, toml::from_str(extra).expect("a test's own TOML is valid"));
        let configuration = folder.join(format!("{name}.toml"));
        folders::write_secret(&configuration, &write_toml(&whole))?;
        let mut launch = Launch::new(
            name.clone(),
            self.program("kinara-cloud-bridge")?,
            self.logs.join(format!("{name}.log")),
        )
        .args(["--config".to_owned(), configuration.display().to_string()])
        .ready(Ready::HttpAt(addr_file));
        launch.env = self.environment(true);
        Ok(Process::new(launch))
    }

    /// Starts the API and returns where it listens.
    pub fn start_api(&mut self) -> Result<SocketAddr> {
        let mut launch = Launch::new("api", self.program("kinara-cloud-api")?, self.logs.join("api.log"))
            .args(["--config".to_owned(), self.api_configuration().display().to_string()])
            .ready(Ready::HttpAt(self.options.folder.join("cloud/api.addr")));
        launch.env = self.environment(false);
        let mut api = Process::new(launch);
        api.start()?;
        let address = api.address().ok_or_else(|| ClinicError::Answer {
            who: "api".to_owned(),
            what: "does not say where it listens".to_owned(),
        })?;
        self.api = Some(api);
        Ok(address)
    }

    /// Makes a tenant, or finds it.
    pub fn add_tenant(&mut self, name: &str, slug: &str, time_zone: &str) -> Result<Tenant> {
        let made =
            self.admin(&["tenant", "add", "--name", name, "--slug", slug, "--time-zone", time_zone], None)?;
        Ok(Tenant { id: id_of(&made)?, slug: slug.to_owned() })
    }

    /// Makes a member who may log in; the password is drawn once and remembered in the clinic's records.
    pub fn add_member(&mut self, tenant: &Tenant, email: &str, role: &str) -> Result<Login> {
        let password = self.records.password(email)?;
        let args =
            ["member", "add", "--tenant", &tenant.slug, "--email", email, "--role", role, "--password-stdin"];
        self.admin(&args, Some(&format!("{password}\n")))?;
        Ok(Login { email: email.to_owned(), password })
    }

    /// Makes a wearer who has consented.
    pub fn add_wearer(&self, tenant: &Tenant, external_id: &str, name: &str) -> Result<Wearer> {
        let args = [
            "wearer",
            "add",
            "--tenant",
            &tenant.slug,
            "--external-id",
            external_id,
            "--name",
            name,
            "--consent-version",
            "v1",
        ];
        let made = self.admin(&args, None)?;
        Ok(Wearer { id: id_of(&made)?, tenant: tenant.slug.clone(), external_id: external_id.to_owned() })
    }

    /// Enrols a gateway and writes its configuration; it is not started yet.
    pub fn add_gateway(&mut self, tenant: &Tenant, plan: GatewayPlan) -> Result<usize> {
        let (id, identity) = self.enrol(tenant, &plan.name)?;
        let around = Surroundings {
            folder: &self.options.folder,
            logs: &self.logs,
            air: &self.air,
            program: self.program("kinara-gatewayd")?,
            uplink: self.broker.section(&identity),
            models: self.options.models.as_ref(),
            env: self.environment(true),
        };
        self.gateways.push(Gateway::new(id, plan, around)?);
        Ok(self.gateways.len() - 1)
    }

    /// Makes a gateway known to the cloud, without a program: one that runs elsewhere.
    pub fn enrol(&mut self, tenant: &Tenant, name: &str) -> Result<(Uuid, Identity)> {
        let id = self.records.gateway_id(name)?;
        let args = ["gateway", "add", "--tenant", &tenant.slug, "--id", &id.to_string(), "--name", name];
        self.admin(&args, None)?;
        Ok((id, self.gateway_identity(name, id)?))
    }

    /// The certificate of a gateway.
    pub fn gateway_identity(&self, name: &str, id: Uuid) -> Result<Identity> {
        self.authority.client(&format!("gateway-{name}"), &id.to_string())
    }

    /// Makes a wearable; it is not started yet, and no gateway knows it.
    pub fn add_wearable(&mut self, plan: WearablePlan) -> Result<usize> {
        let program = self.program(plan.air.program())?;
        let env = self.environment(false);
        let wearable = Wearable::new(plan, &self.options.folder, &self.logs, &self.air, program, env)?;
        self.wearables.push(wearable);
        Ok(self.wearables.len() - 1)
    }

    /// Tells a gateway of a wearable, by their places. Counts from the gateway's next start on.
    pub fn introduce(&mut self, gateway: usize, wearable: usize) -> Result<()> {
        let wearable = &self.wearables[wearable];
        self.gateways[gateway].knows(&wearable.hardware_id, &wearable.label_secret)
    }

    /// Gives a wearable to a wearer from a boundary on; who had it before has it until there.
    pub fn assign(&self, hardware_id: &str, wearer: &Wearer, assignment: Assignment) -> Result<Value> {
        let from = assignment.from.to_string();
        let frame = assignment.at_frame.map(|(epoch, seq)| format!("{epoch:016x}:{seq}"));
        let mut args = vec![
            "assign",
            "--tenant",
            &wearer.tenant,
            "--hardware",
            hardware_id,
            "--wearer",
            &wearer.external_id,
            "--from",
            &from,
        ];
        if let Some(frame) = &frame {
            args.extend(["--at-frame", frame]);
        }
        self.admin(&args, None)
    }

    /// Runs `kinara-cloud-api admin …` and returns the line of JSON that it prints.
    pub fn admin(&self, args: &[&str], input: Option<&str>) -> Result<Value> {
        let printed = self.run_api(&[&["admin"], args].concat(), input)?;
        let line = printed.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(line).map_err(|error| ClinicError::Answer {
            who: format!("kinara-cloud-api admin {}", args.join(" ")),
            what: format!("printed {printed:?} in place of a line of JSON ({error})"),
        })
    }

    /// Stops everything in order, so that nobody loses what another still has to send: wearables, gateways, bridges
    /// and API, broker, database. Returns who had to be killed.
    pub fn stop(&mut self, patience: Duration) -> Vec<String> {
        let quarter = patience / 4;
        let mut killed = stop_together(self.wearables.iter_mut().map(Wearable::process), quarter);
        killed.extend(stop_together(self.gateways.iter_mut().map(Gateway::process), quarter));
        killed.extend(stop_together(self.bridges.iter_mut().chain(&mut self.api), quarter));
        killed.extend(stop_together([self.broker.process()], quarter));
        self.database.stop();
        killed
    }

    /// Where a built program is.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let file = self.options.programs.join(name);
        if file.is_file() {
            return Ok(file);
        }
        Err(ClinicError::Missing {
            program: file.display().to_string(),
            advice: "build it with ./kinara build".to_owned(),
        })
    }

    fn environment(&self, may_be_sabotaged: bool) -> Vec<(String, String)> {
        let mut env = vec![("RUST_LOG".to_owned(), self.options.log_level.clone())];
        if let Some(clock) = &self.options.clock {
            env.push(("KINARA_CLOCK".to_owned(), clock.clone()));
        }
        if let (true, Some(kind)) = (may_be_sabotaged, &self.options.sabotage) {
            env.push(("KINARA_SABOTAGE".to_owned(), kind.clone()));
        }
        env
    }

    fn api_configuration(&self) -> PathBuf {
        self.options.folder.join("cloud/api.toml")
    }

    fn write_api_configuration(&self, password: &str) -> Result<()> {
        let folder = self.options.folder.join("cloud");
        folders::make(&folder, 0o755)?;
        let secret = folder.join("jwt.secret");
        if !secret.exists() {
            let bytes: [u8; 32] = rand::random();
            folders::write_secret(&secret, &hex::encode(bytes))?;
        }
        let identity = self.authority.client("api", "api")?;
        let mut broker = self.broker.section(&identity);
        broker.insert("client_id".into(), "api".into());
        let mut whole = toml::Table::new();
        whole.insert("listen".into(), self.options.listen.to_string().into());
        whole.insert("addr_file".into(), path(&folder.join("api.addr")));
        whole.insert("jwt_secret_file".into(), path(&secret));
        whole.insert("database".into(), table([("url", self.database.url("api", password).into())]));
        whole.insert("broker".into(), toml::Value::Table(broker));
        folders::write_secret(&self.api_configuration(), &write_toml(&whole))
    }

    fn run_api(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = Command::new(self.program("kinara-cloud-api")?);
        command.arg("--config").arg(self.api_configuration()).args(args);
        command.envs(self.environment(false));
        // Not as an argument: anybody may read a command line.
        command.env("KINARA_ADMIN_URL", self.database.admin_url());
        process::run(command, &format!("kinara-cloud-api {}", args.join(" ")), input)
    }
}

impl Drop for Clinic {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(8));
        if std::thread::panicking() {
            eprintln!("the clinic's data and logs are kept in {}", self.options.folder.display());
        } else if self.keep == Keep::OnFailure {
            let _ = folders::forget(&self.options.folder);
        }
    }
}

/// The checkout: `KINARA_ROOT`, or where this crate was built.
pub fn root() -> PathBuf {
    std::env::var_os("KINARA_ROOT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).to_path_buf(),
        PathBuf::from,
    )
}

/// The built programs: `KINARA_PROGRAMS`, or the folder of this program (a test lies one deeper).
pub fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os("KINARA_PROGRAMS") {
        return PathBuf::from(named);
    }
    let this = std::env::current_exe().unwrap_or_default();
    let folder = this.parent().unwrap_or(Path::new("."));
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    folder.to_path_buf()
}

fn write_toml(table: &toml::Table) -> String {
    toml::to_string(table).expect("tables of strings, numbers and tables can be written")
}

fn id_of(made: &Value) -> Result<Uuid> {
    made.get("id").and_then(Value::as_str).and_then(|text| text.parse().ok()).ok_or_else(|| {
        ClinicError::Answer {
            who: "kinara-cloud-api admin".to_owned(),
            what: format!("printed no id: {made}"),
        }
    })
}
