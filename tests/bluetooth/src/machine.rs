//! A virtual machine: booted, asked by its [`Hand`], killed as by a power cut, booted again on the same data disk.

use crate::image::{Image, home};
use crate::{BedError, Hand, Result, file};
use kinara_clinic::process::pause;
use kinara_clinic::{Launch, Process};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a kernel may take to show that KVM runs it: a moment where it does, for ever where it hangs.
const KVM_PROBE: Duration = Duration::from_secs(12);
/// How long a boot may take to the first answer of the hand: seconds with KVM, more under emulation and load.
const BOOT: Duration = Duration::from_secs(100);
/// So often is a boot tried that never came so far. Under emulation a kernel dies now and then at its start.
const BOOTS: u32 = 3;
const LOOK: Duration = Duration::from_millis(100);
/// Serial ports to the host: the hand, and two controllers.
const PORTS: [&str; 3] = ["hand", "air", "air2"];

/// How machines are run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor: times mean something.
    Kvm,
    /// Emulated: times are recorded, not judged.
    Tcg,
}

impl Accelerator {
    /// What works here; found out once for each start of this computer.
    pub fn here(image: &Image) -> Result<Self> {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(*found);
        }
        qemu()?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let note = home().join(format!("kvm-{}", boot.trim()));
        let found = match std::fs::read_to_string(&note).as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            _ => {
                let works = Path::new("/dev/kvm").exists() && kvm_works(image)?;
                std::fs::write(&note, if works { "kvm" } else { "tcg" }).map_err(file(&note))?;
                if works { Self::Kvm } else { Self::Tcg }
            }
        };
        Ok(*FOUND.get_or_init(|| found))
    }
}

fn qemu() -> Result<&'static str> {
    const PROGRAM: &str = "qemu-system-x86_64";
    let there = Command::new(PROGRAM).arg("--version").output().is_ok_and(|done| done.status.success());
    if there {
        Ok(PROGRAM)
    } else {
        Err(BedError::NoMachine(format!("{PROGRAM} does not run; install qemu-system-x86")))
    }
}

/// Whether a kernel comes up and turns the machine off. Some machines have the device, and hang.
fn kvm_works(image: &Image) -> Result<bool> {
    let log = home().join("kvm-probe.log");
    let _ = std::fs::remove_file(&log);
    let mut launch = Launch::new("KVM probe", qemu()?, &log);
    launch.args = arguments(image, Accelerator::Kvm, "probe", 256);
    let mut probe = Process::new(launch);
    probe.spawn()?;
    let ended = probe.wait_end(KVM_PROBE);
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    Ok(ended && text.contains("bed: kernel is up"))
}

/// What every machine is started with.
fn arguments(image: &Image, accelerator: Accelerator, boot: &str, memory_mib: u32) -> Vec<String> {
    let (accelerate, processor, clock) = match accelerator {
        Accelerator::Kvm => ("kvm", "host", ""),
        // The emulated time-stamp counter of two threads does not keep time.
        Accelerator::Tcg => ("tcg,thread=multi", "max", " tsc=unstable clocksource=hpet"),
    };
    let append = format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on{clock} bed={boot}"
    );
    let mut arguments: Vec<String> =
        ["-accel", accelerate, "-cpu", processor, "-machine", "q35", "-smp", "2"]
            .into_iter()
            .chain(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .chain(["-serial", "stdio", "-monitor", "none", "-device", "virtio-rng-pci"])
            .map(str::to_owned)
            .collect();
    arguments.extend(["-m".to_owned(), memory_mib.to_string()]);
    arguments.extend(["-kernel".to_owned(), image.kernel.display().to_string()]);
    arguments.extend(["-initrd".to_owned(), image.initrd.display().to_string()]);
    arguments.extend(["-append".to_owned(), append]);
    arguments
}

/// With what a machine comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The least: a script as the first process. D-Bus and bluetoothd are started by the hand.
    Small,
    /// The distribution's systemd, with its units.
    Systemd,
}

/// A machine that runs, or was killed and can be booted again.
#[derive(Debug)]
pub struct Machine {
    name: String,
    boot: Boot,
    accelerator: Accelerator,
    /// Its sockets and its data disk.
    folder: PathBuf,
    process: Process,
    hand: Option<Hand>,
    boots: u32,
}

impl Machine {
    /// A machine with this name, whose things lie in `folder`; `programs` is the disk made by [`program_disk`].
    pub fn new(
        name: &str,
        boot: Boot,
        image: &Image,
        programs: &Path,
        folder: &Path,
        logs: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(file(folder))?;
        let data = folder.join("data.ext4");
        if !data.exists() {
            make_disk(&data, None, 256)?;
        }
        let accelerator = Accelerator::here(image)?;
        let memory_mib = if boot == Boot::Systemd { 640 } else { 512 };
        let mut launch =
            Launch::new(format!("machine {name}"), qemu()?, logs.join(format!("machine-{name}.log")));
        launch.args =
            arguments(image, accelerator, if boot == Boot::Small { "small" } else { "systemd" }, memory_mib);
        let mut add = |words: &[&str]| launch.args.extend(words.iter().map(|word| (*word).to_owned()));
        let drive = |path: &Path, how: &str| format!("file={},format=raw,if=virtio,{how}", path.display());
        add(&["-drive", &drive(&image.root, "snapshot=on")]);
        add(&["-drive", &drive(programs, "readonly=on")]);
        // As an SD card with a write-back cache: what was flushed is there after a cut, the rest may be.
        add(&["-drive", &drive(&data, "cache=writeback")]);
        // The card's boot ROM is in a package of its own, and nobody boots from it.
        add(&["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        add(&["-device", "virtio-serial-pci"]);
        for port in PORTS {
            let socket = folder.join(port);
            add(&["-chardev", &format!("socket,id={port},path={},server=on,wait=off", socket.display())]);
            add(&["-device", &format!("virtserialport,chardev={port},name=kinara.{port}")]);
        }
        Ok(Self {
            name: name.to_owned(),
            boot,
            accelerator,
            folder: folder.to_owned(),
            process: Process::new(launch),
            hand: None,
            boots: 0,
        })
    }

    /// Boots it and waits for its hand. A boot that does not come so far is tried again.
    pub fn start(&mut self) -> Result<&Hand> {
        let mut last = String::new();
        for _ in 0..BOOTS {
            match self.boot_once() {
                Ok(hand) => {
                    self.hand = Some(hand);
                    return self.hand();
                }
                Err(error) => {
                    eprintln!("machine {}: {error}", self.name);
                    last = error.to_string();
                    self.kill();
                }
            }
        }
        Err(BedError::Boot(format!("machine {} did not come up in {BOOTS} tries: {last}", self.name)))
    }

    fn boot_once(&mut self) -> Result<Hand> {
        let began = Instant::now();
        let socket = self.folder.join("hand");
        // Of an earlier boot.
        for port in PORTS {
            let _ = std::fs::remove_file(self.folder.join(port));
        }
        self.process.spawn()?;
        let mut hand = None;
        while began.elapsed() < BOOT {
            if let Some(status) = self.process.exit_status() {
                return Err(self.told(&format!("ended at once ({status})")));
            }
            if hand.is_none() {
                hand = UnixStream::connect(&socket).ok().and_then(|stream| Hand::on(stream).ok());
            }
            // What is sent before the hand is there waits for it in the port.
            if hand.as_ref().is_some_and(|hand| hand.is_up(Duration::from_secs(3))) {
                let hand = hand.expect("it has just answered");
                self.boots += 1;
                let took = began.elapsed().as_secs_f64();
                let off_us = hand.set_clock()?;
                eprintln!("machine {} is up after {took:.1} s, its clock within {off_us} µs", self.name);
                hand.shell(
                    "mkdir -p /data && (mountpoint -q /data || mount -t ext4 -o noatime /dev/vdc /data)",
                )?;
                return Ok(hand);
            }
            pause(LOOK);
        }
        Err(self.told(&format!("did not come up within {BOOT:?}")))
    }

    fn told(&self, what: &str) -> BedError {
        BedError::Boot(format!(
            "machine {} {what}; its console is {} and ends:\n{}",
            self.name,
            self.process.log().display(),
            self.process.last_log_lines(8)
        ))
    }

    /// Its hand, while it is up.
    pub fn hand(&self) -> Result<&Hand> {
        self.hand.as_ref().ok_or_else(|| BedError::Guest(format!("{} is not up", self.name)))
    }

    /// Cuts its power.
    pub fn kill(&mut self) {
        self.process.kill();
        self.hand = None;
    }

    /// Where the air finds its controller's port.
    pub fn air_socket(&self) -> PathBuf {
        self.folder.join("air")
    }

    /// Where it finds the port of a second controller.
    pub fn second_air_socket(&self) -> PathBuf {
        self.folder.join("air2")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// With what it boots.
    pub fn kind(&self) -> Boot {
        self.boot
    }

    /// How it is run.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// How often it came up.
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Its console's log.
    pub fn console(&self) -> &Path {
        self.process.log()
    }
}

/// Makes a disk with an ext4 file system, filled with what `from` holds.
pub fn make_disk(path: &Path, from: Option<&Path>, mib: u64) -> Result<()> {
    let disk = std::fs::File::create(path).map_err(file(path))?;
    disk.set_len(mib << 20).map_err(file(path))?;
    let mut command = Command::new("mke2fs");
    // It lies in /sbin, which an ordinary user may not have in the path.
    let way = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.env("PATH", way).args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0", "-m", "0"]);
    if let Some(from) = from {
        command.arg("-d").arg(from);
    }
    kinara_clinic::process::run(
        {
            command.arg(path);
            command
        },
        "mke2fs",
        None,
    )?;
    Ok(())
}

/// Makes the disk with our programs (stripped: what debuggers want is three quarters of them) and these files.
pub fn program_disk(path: &Path, programs: &[PathBuf], files: &[PathBuf]) -> Result<()> {
    let folder = path.with_extension("files");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).map_err(file(&folder))?;
    let mut bytes = 0;
    let target = |source: &Path| folder.join(source.file_name().unwrap_or_default());
    for program in programs {
        let into = target(program);
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&into).arg(program);
        kinara_clinic::process::run(strip, "strip", None)?;
        bytes += into.metadata().map_err(file(&into))?.len();
    }
    for source in files {
        let into = target(source);
        std::fs::copy(source, &into).map_err(file(source))?;
        bytes += into.metadata().map_err(file(&into))?.len();
    }
    make_disk(path, Some(&folder), (bytes >> 20) * 5 / 4 + 16)?;
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}
