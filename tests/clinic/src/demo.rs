//! The demo's cast and course: who is in it, what is started when, and what is said meanwhile.

use crate::clinic::{Models, root};
use crate::process::{Process, pause};
use crate::{
    Assignment, Clinic, ClinicError, Gateway, GatewayPlan, Keep, Login, Options, Result, Wearable,
    WearablePlan, folders, ports,
};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Says a line to the person. Where nobody listens any more (a closed terminal, a pipe to `head`) the demo goes on until
/// it is stopped in order.
macro_rules! tell {
    ($($words:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

/// What a demo of some hours with the default cast may write.
const ROOM: u64 = 1 << 30;

/// How long a person waits for the first readings before the demo says that something is wrong.
const LIVE_WITHIN: Duration = Duration::from_mins(1);

/// What a new wearable has measured before the demo begins, so that charts begin with a line.
const BEFORE_THE_START: Duration = Duration::from_mins(20);

/// A program that ends this often within a minute is not started again.
const PATIENCE_WITH_ENDS: usize = 5;

/// What the person asked for.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Where everything is kept.
    pub folder: PathBuf,
    /// Where the page listens.
    pub listen: IpAddr,
    /// On which port.
    pub port: u16,
    /// How many wearables.
    pub wearables: u32,
    /// A recording for the replaying wearer.
    pub replay: Option<PathBuf>,
    /// How long the broker is to be cut, once the page is live.
    pub offline: Option<Duration>,
    /// Whether to begin anew.
    pub fresh: bool,
    /// When to stop by itself.
    pub stop_after: Option<Duration>,
}

/// Set by the first signal; looked at between any two steps.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Asks the demo to end.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Cast {
    name: &'static str,
    slug: &'static str,
    time_zone: &'static str,
    /// The same for the simulated bodies' day and night, in minutes.
    utc_offset: i32,
    email: &'static str,
    wearers: [&'static str; 4],
}

const CLINICS: [Cast; 2] = [
    Cast {
        name: "Asha Women's Clinic",
        slug: "asha",
        time_zone: "Asia/Kolkata",
        utc_offset: 330,
        email: "doctor@asha.example",
        wearers: ["Meera K.", "Lakshmi R.", "Divya S.", "Anjali P."],
    },
    Cast {
        name: "Praxis am Park",
        slug: "park",
        time_zone: "Europe/Berlin",
        utc_offset: 60,
        email: "doctor@park.example",
        wearers: ["Sabine W.", "Karin H.", "Ute M.", "Heike B."],
    },
];

/// A demo that is up.
struct Show {
    clinic: Clinic,
    page: SocketAddr,
    logins: Vec<Login>,
    began: Instant,
}

/// Runs the demo until it is asked to stop. Returns an error where it could not start, or could not go on.
pub fn run(wishes: &Wishes, stop: &Stop) -> Result<()> {
    let began = Instant::now();
    folders::make(&wishes.folder, 0o755)?;
    let _alone = only_one(&wishes.folder)?;
    ports::must_be_free(wishes.listen, wishes.port, "--port")?;
    enough_room(&wishes.folder)?;
    let folder = wishes.folder.join("demo");
    if wishes.fresh {
        say(began, "removing what earlier runs kept …");
        folders::forget(&folder)?;
    }
    let Some(mut show) = Show::begin(wishes, &folder, began, stop)? else {
        tell!("stopped before it was up");
        return Ok(());
    };
    let outcome = show.go_on(wishes, stop);
    let ending = Instant::now();
    say(began, "stopping …");
    let killed = show.clinic.stop(Duration::from_secs(8));
    for name in &killed {
        tell!("         {name} did not end in time and was killed");
    }
    let kept = folder.display();
    say(began, &format!("stopped in {:.1} s; the data are kept in {kept}", ending.elapsed().as_secs_f32()));
    outcome
}

impl Show {
    /// `None` where it was asked to stop on the way.
    fn begin(wishes: &Wishes, folder: &Path, began: Instant, stop: &Stop) -> Result<Option<Self>> {
        say(began, "starting database and broker …");
        let mut clinic = Clinic::start(Options {
            keep: Keep::Always,
            listen: SocketAddr::new(wishes.listen, wishes.port),
            models: Some(models()),
            ..Options::in_folder(folder)
        })?;
        if let Some(outside) = crate::database::lies_outside(clinic.folder()) {
            tell!(
                "         (the database's user cannot reach this folder; its files are in {})",
                outside.display()
            );
        }
        if stop.asked() {
            return Ok(None);
        }
        say(began, "starting bridge and API …");
        clinic.add_bridge()?;
        let page = clinic.start_api()?;
        if stop.asked() {
            return Ok(None);
        }
        say(began, &format!("enrolling 2 clinics, 2 gateways and {} wearables …", wishes.wearables));
        let logins = enrol(&mut clinic, wishes, stop)?;
        if stop.asked() {
            return Ok(None);
        }
        say(began, "starting wearables and gateways …");
        start_together(clinic.wearables.iter_mut().map(Wearable::process))?;
        start_together(clinic.gateways.iter_mut().map(Gateway::process))?;
        Ok(Some(Self { clinic, page, logins, began }))
    }

    fn go_on(&mut self, wishes: &Wishes, stop: &Stop) -> Result<()> {
        self.introduce_itself(wishes);
        let mut care = Care::default();
        let mut live = false;
        let mut offline = wishes.offline;
        let mut looked = Instant::now();
        while !stop.asked() && wishes.stop_after.is_none_or(|after| self.began.elapsed() < after) {
            care.look_after(&mut self.clinic, self.began)?;
            if !live && looked.elapsed() >= Duration::from_secs(1) {
                looked = Instant::now();
                live = self.look_for_readings(wishes.wearables)?;
            }
            if live && let Some(time) = offline.take() {
                self.cut_the_broker(time, stop)?;
            }
            pause(Duration::from_millis(200));
        }
        Ok(())
    }

    fn introduce_itself(&self, wishes: &Wishes) {
        say(self.began, "up.");
        tell!();
        tell!("  The page       http://{}/", reachable_as(self.page));
        for (cast, login) in CLINICS.iter().zip(&self.logins) {
            tell!("  {:<20} login {:<20} password {}", cast.name, login.email, login.password);
        }
        tell!();
        tell!("  What to look at");
        tell!(
            "  · live heart rate, skin temperature and EDA of each wearer; each device's battery and link; the gateway's buffer"
        );
        tell!(
            "  · log in as each clinic (two browser windows, one private): neither sees the other's wearers"
        );
        tell!(
            "  · {} has a hot flash every few minutes; it appears as an event, found by the gateway from the signals",
            CLINICS[0].wearers[0]
        );
        if wishes.wearables > 1 {
            tell!(
                "  · {} is a replayed recording of a real person (or yours, with --replay FILE)",
                CLINICS[1].wearers[0]
            );
        }
        for gateway in &self.clinic.gateways {
            if let Some(address) = gateway.local() {
                tell!("  · gateway {:<5} has a page of its own: http://{address}/", gateway.name);
            }
        }
        tell!("  · ./kinara demo --offline 30s cuts the broker, so that the buffer fills and drains");
        tell!("  Logs: {}   Stop: Ctrl-C", self.clinic.logs().display());
        tell!();
    }

    /// Looks whether every wearable's readings have come as far as the database. Says so, or complains after a while;
    /// either is said once, and then it returns true.
    fn look_for_readings(&self, wearables: u32) -> Result<bool> {
        let sql =
            "SELECT count(DISTINCT device_id) FROM ts.readings WHERE time > now() - interval '1 minute'";
        let devices: u32 = self.clinic.database.sql(sql)?.trim().parse().unwrap_or(0);
        if devices >= wearables {
            say(self.began, &format!("readings of all {wearables} wearables arrive and are stored."));
        } else if self.began.elapsed() > LIVE_WITHIN {
            let logs = self.clinic.logs().display();
            let seconds = LIVE_WITHIN.as_secs();
            tell!(
                "         only {devices} of {wearables} wearables have readings stored after {seconds} s; see the logs in {logs}"
            );
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn cut_the_broker(&mut self, time: Duration, stop: &Stop) -> Result<()> {
        let watch = |until: &mut dyn FnMut(u64, Duration) -> bool, gateways: &[Gateway]| {
            let from = Instant::now();
            let mut said = Instant::now();
            loop {
                let buffers: Vec<Option<u64>> = gateways.iter().map(buffered_frames).collect();
                let sum = buffers.iter().flatten().sum();
                if until(sum, from.elapsed()) || stop.asked() {
                    return from.elapsed();
                }
                if said.elapsed() >= Duration::from_secs(5) {
                    said = Instant::now();
                    tell!("         buffers: {}", describe(gateways, &buffers));
                }
                pause(Duration::from_millis(250));
            }
        };
        // The page should have been seen live before it is cut.
        let mut settle = |_: u64, elapsed: Duration| elapsed >= Duration::from_secs(5);
        watch(&mut settle, &self.clinic.gateways);
        if stop.asked() {
            return Ok(());
        }
        say(
            self.began,
            &format!("OFFLINE: the broker is cut for {} s; watch the buffers fill", time.as_secs()),
        );
        self.clinic.broker.stop();
        let mut fill = |_: u64, elapsed: Duration| elapsed >= time;
        watch(&mut fill, &self.clinic.gateways);
        let filled: Vec<Option<u64>> = self.clinic.gateways.iter().map(buffered_frames).collect();
        self.clinic.broker.start_again()?;
        say(
            self.began,
            &format!("ONLINE: the broker is back; buffers: {}", describe(&self.clinic.gateways, &filled)),
        );
        // Online, some seconds of frames are always on the way.
        let rest = self.clinic.wearables.len() as u64 * 10;
        let mut drain = |frames: u64, elapsed: Duration| frames <= rest || elapsed > Duration::from_mins(2);
        let took = watch(&mut drain, &self.clinic.gateways);
        say(self.began, &format!("the buffers are drained, after {:.0} s", took.as_secs_f32()));
        Ok(())
    }
}

/// Starts again what ends by itself or is killed, as systemd would on an appliance.
#[derive(Default)]
struct Care {
    ends: Vec<(String, Instant)>,
}

impl Care {
    fn look_after(&mut self, clinic: &mut Clinic, began: Instant) -> Result<()> {
        if !clinic.database.is_up() {
            say(began, "the database ended; starting it again");
            clinic.database.kill();
            clinic.database.start_again()?;
        }
        let programs = clinic.wearables.iter_mut().map(Wearable::process);
        let programs = programs.chain(clinic.gateways.iter_mut().map(Gateway::process));
        let programs =
            programs.chain(&mut clinic.bridges).chain(&mut clinic.api).chain([clinic.broker.process()]);
        for process in programs {
            if process.is_alive() {
                continue;
            }
            let status = process.exit_status().map_or("gone".to_owned(), |status| status.to_string());
            say(began, &format!("{} ended ({status}); starting it again", process.name()));
            self.ends.retain(|(_, when)| when.elapsed() < Duration::from_mins(1));
            self.ends.push((process.name().to_owned(), Instant::now()));
            let times = self.ends.iter().filter(|(name, _)| name == process.name()).count();
            if times >= PATIENCE_WITH_ENDS {
                return Err(ClinicError::Ended {
                    name: process.name().to_owned(),
                    status: format!("{status}, {times} times in a minute"),
                    log: process.log().to_path_buf(),
                    last_lines: process.last_log_lines(8),
                });
            }
            process.kill();
            process.start()?;
        }
        Ok(())
    }
}

/// Tenants, logins, gateways, wearers and assignments. All of it may be there from an earlier run.
fn enrol(clinic: &mut Clinic, wishes: &Wishes, stop: &Stop) -> Result<Vec<Login>> {
    // What the wearables' flash holds at first belongs to their wearers as well.
    let from = clinic.records.since(jiff::Timestamp::now())? - 2 * BEFORE_THE_START;
    let mut logins = Vec::new();
    let mut tenants = Vec::new();
    for (place, cast) in CLINICS.iter().enumerate() {
        let tenant = clinic.add_tenant(cast.name, cast.slug, cast.time_zone)?;
        logins.push(clinic.add_member(&tenant, cast.email, "admin")?);
        // The demo's hot flashes come closer together than a body's; each shall be an event.
        let plan = GatewayPlan::named(["A", "B"][place]).with("[infer]\nrefractory_min = 2\n");
        clinic.add_gateway(&tenant, plan)?;
        tenants.push(tenant);
    }
    for number in 0..wishes.wearables {
        if stop.asked() {
            break;
        }
        let (place, within) = (number as usize % 2, number as usize / 2);
        let cast = &CLINICS[place];
        let mut plan = WearablePlan::new(
            0x4b1a_0000_0000_0001 + u64::from(number),
            format!("Kinara-{:02}", number + 1),
            100 + u64::from(number),
        );
        plan = plan.args(["--prefill".to_owned(), format!("{}s", BEFORE_THE_START.as_secs())]);
        plan = plan.args(["--utc-offset-min".to_owned(), cast.utc_offset.to_string()]);
        match number {
            0 => plan = plan.args(["--hot-flash-every", "3m"]),
            1 => {
                let recording =
                    wishes.replay.clone().unwrap_or_else(|| root().join("tests/recordings/biosppy"));
                plan = plan.args(["--replay".to_owned(), recording.display().to_string()]);
            }
            _ => {}
        }
        let wearable = clinic.add_wearable(plan)?;
        clinic.introduce(place, wearable)?;
        let round = within / cast.wearers.len();
        let name = cast.wearers[within % cast.wearers.len()].to_owned();
        let name = if round == 0 { name } else { format!("{name} {}", round + 1) };
        let wearer = clinic.add_wearer(&tenants[place], &format!("W{:03}", within + 1), &name)?;
        let hardware = clinic.wearables[wearable].hardware_id.clone();
        clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None })?;
    }
    Ok(logins)
}

fn start_together<'a>(processes: impl IntoIterator<Item = &'a mut Process>) -> Result<()> {
    let mut all: Vec<&mut Process> = processes.into_iter().collect();
    for process in &mut all {
        process.spawn()?;
    }
    all.into_iter().try_for_each(Process::wait_ready)
}

/// The library and model where the launcher puts them, whatever folder the demo keeps its data in. A gateway that does
/// not find the library says so and runs its rule alone.
fn models() -> Models {
    Models {
        onnxruntime: root().join(".kinara/onnxruntime/libonnxruntime.so"),
        model: root().join("models/hot_flash"),
    }
}

/// Frames on the gateway's disk that the cloud has not acknowledged.
fn buffered_frames(gateway: &Gateway) -> Option<u64> {
    metric(&gateway.metrics().ok()?, "kinara_gateway_device_buffered_frames")
}

/// The sum of a metric over its labels.
fn metric(text: &str, name: &str) -> Option<u64> {
    let samples = text.lines().filter_map(|line| {
        line.strip_prefix(name)
            .filter(|rest| rest.starts_with([' ', '{']))?
            .split_whitespace()
            .last()?
            .parse::<f64>()
            .ok()
    });
    samples.reduce(|sum, value| sum + value).map(|sum| sum as u64)
}

fn describe(gateways: &[Gateway], buffers: &[Option<u64>]) -> String {
    let words = gateways.iter().zip(buffers).map(|(gateway, frames)| match frames {
        Some(frames) => format!("gateway {} {frames} frames", gateway.name),
        None => format!("gateway {} does not say", gateway.name),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn only_one(folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("demo.lock");
    let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(ClinicError::file(&path))?;
    lock.try_lock().map_err(|_| {
        ClinicError::Refused(format!(
            "another demo runs from {} already; stop it first (Ctrl-C there)",
            folder.display()
        ))
    })?;
    Ok(lock)
}

fn enough_room(folder: &Path) -> Result<()> {
    let places = [folder.to_path_buf(), PathBuf::from("/var/tmp")];
    for place in &places[..if folders::is_root() { 2 } else { 1 }] {
        let free = folders::free_bytes(place);
        if free < ROOM {
            return Err(ClinicError::Refused(format!(
                "{} MiB are free where {} lies; the demo needs {} MiB. Free some, or ./kinara clean",
                free >> 20,
                place.display(),
                ROOM >> 20
            )));
        }
    }
    Ok(())
}

/// An address that a browser on this machine can open.
fn reachable_as(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address }
}

fn say(began: Instant, what: &str) {
    tell!("{:6.1} s {what}", began.elapsed().as_secs_f32());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_found_by_its_whole_name() {
        let text = "# HELP frames x\nframes_total 9\nframes{device=\"a\"} 12\nframes{device=\"b\"} 3\n";
        assert_eq!(metric(text, "frames"), Some(15));
        assert_eq!(metric(text, "frame"), None);
    }

    #[test]
    fn a_second_demo_in_the_same_folder_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let _first = only_one(dir.path()).unwrap();
        let message = only_one(dir.path()).unwrap_err().to_string();
        assert!(message.contains("another demo") && !message.contains('\n'), "{message}");
    }
}
