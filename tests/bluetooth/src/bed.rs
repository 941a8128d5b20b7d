//! The bed as a whole: one air, some machines, some wearables, in a folder of their own.

use crate::image::Image;
use crate::machine::{Machine, program_disk};
use crate::wearable::Wearable;
use crate::{Air, BedError, Boot, Hand, Result, file, package};
use kinara_clinic::process::pause;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Our programs that a machine gets, where they are built.
const PROGRAMS: [&str; 4] = ["kinara-bed-guest", "kinara-gatewayd", "kinaractl", "kinara-linkd"];
/// How long bluetoothd may take until it shows its adapter.
pub const BLUETOOTHD: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(150);

/// See the module.
#[derive(Debug)]
pub struct Bed {
    /// The air.
    pub air: Air,
    /// The machines, in the order they were added.
    pub machines: Vec<Machine>,
    /// Wearables that are no clinic's, in the order they were added.
    pub wearables: Vec<Wearable>,
    image: Image,
    programs: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
}

impl Bed {
    /// An air with nobody in it. `files` are put beside our programs into `/bed` of each machine.
    pub fn open(folder: &Path, files: &[PathBuf]) -> Result<Self> {
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).map_err(file(&logs))?;
        let image = Image::ready()?;
        let built = kinara_clinic::clinic::programs();
        let programs: Vec<PathBuf> =
            PROGRAMS.iter().map(|name| built.join(name)).filter(|program| program.is_file()).collect();
        if !programs.iter().any(|program| program.ends_with(PROGRAMS[0])) {
            return Err(BedError::Image(format!(
                "{} is not built; ./kinara build does it",
                built.join(PROGRAMS[0]).display()
            )));
        }
        let disk = folder.join("programs.ext4");
        program_disk(&disk, &programs, files)?;
        let sockets = kinara_clinic::folders::socket_folder(folder, "air")?;
        let air = Air::start(&sockets, &logs)?;
        Ok(Self {
            air,
            machines: Vec::new(),
            wearables: Vec::new(),
            image,
            programs: disk,
            folder: folder.to_owned(),
            logs,
        })
    }

    /// A machine with a controller of its own; it is not started yet. Returns its place in [`Bed::machines`].
    pub fn add_machine(&mut self, name: &str, boot: Boot) -> Result<usize> {
        let folder = kinara_clinic::folders::socket_folder(&self.folder, &format!("machine-{name}"))?;
        self.machines.push(Machine::new(name, boot, &self.image, &self.programs, &folder, &self.logs)?);
        Ok(self.machines.len() - 1)
    }

    /// Starts a machine and plugs its controller in.
    pub fn boot(&mut self, machine: usize) -> Result<()> {
        let address = address_of(machine);
        let machine = &mut self.machines[machine];
        machine.start()?;
        self.air.give_controller(machine.name(), &address, &machine.air_socket())
    }

    /// Plugs a second controller of this name and address into a machine.
    pub fn second_controller(&self, machine: usize, name: &str, address: &str) -> Result<()> {
        self.air.give_controller(name, address, &self.machines[machine].second_air_socket())
    }

    /// Boots a machine with the box's packaging in it, and waits for bluetoothd's adapter.
    pub fn boot_with_bluetooth(&mut self, machine: usize) -> Result<()> {
        self.boot(machine)?;
        let hand = self.machines[machine].hand()?;
        package::install(hand, self.machines[machine].kind())?;
        wait_for_adapter(hand, true)
    }

    /// A wearable that is no clinic's, and starts it. Returns its place in [`Bed::wearables`].
    pub fn add_wearable(&mut self, program: &Path, args: &[String]) -> Result<usize> {
        let name = format!("other{}", self.wearables.len());
        let port = self.air.wearable(&name)?;
        let mut wearable = Wearable::new(&name, port, program, args, &self.folder, &self.logs)?;
        wearable.process().spawn()?;
        self.wearables.push(wearable);
        Ok(self.wearables.len() - 1)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Which versions of what the machines run.
    pub fn versions(&self) -> &str {
        &self.image.versions
    }
}

/// The public address of the controller of the machine in this place.
pub fn address_of(machine: usize) -> String {
    format!("F0:F1:F2:00:00:{:02X}", machine + 1)
}

/// Starts bluetoothd under a bare init, and again whenever it ends, as its unit does. (5.82 was seen to go without a
/// word while many links came at once.)
pub fn start_bluetoothd(hand: &Hand) -> Result<()> {
    const KEPT: &str = "while :; do /usr/libexec/bluetooth/bluetoothd -n -f /etc/kinara-bluetooth/main.conf; \
        echo \"bluetoothd ended with status $?\" >&2; sleep 2; done";
    hand.start("bluetoothd", &["sh", "-c", KEPT], &[]).map(|_| ())
}

/// Kills bluetoothd and waits until it is there again.
pub fn kill_bluetoothd(hand: &Hand) -> Result<()> {
    hand.shell("kill -9 $(pidof bluetoothd)")?;
    wait_for_adapter(hand, false)?;
    wait_for_adapter(hand, true)
}

/// Waits until bluetoothd shows an adapter, or shows none any more. Its name on the bus comes earlier.
pub fn wait_for_adapter(hand: &Hand, there: bool) -> Result<()> {
    const ASK: &str = "dbus-send --system --print-reply --dest=org.bluez /org/bluez/hci0 \
        org.freedesktop.DBus.Properties.Get string:org.bluez.Adapter1 string:Address";
    until("bluetoothd shows its adapter as it should", BLUETOOTHD, || {
        Ok((hand.run(&["sh", "-c", ASK])?.status == 0) == there)
    })
}

/// Waits until something is so.
pub fn until(what: &str, within: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    until_some(what, within, || so().map(|so| so.then_some(())))
}

/// Waits until something is there, and returns it. An error is taken for "not yet", and told at the end.
pub fn until_some<T>(
    what: &str,
    within: Duration,
    mut there: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    let mut last = String::new();
    loop {
        match there() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => last.clear(),
            Err(error) => last = format!("; at the end: {error}"),
        }
        if began.elapsed() >= within {
            return Err(BedError::NotSo { what: what.to_owned(), seconds: within.as_secs_f64(), last });
        }
        pause(LOOK);
    }
}
