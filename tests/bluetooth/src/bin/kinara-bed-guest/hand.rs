//! Does what the host asks for: runs commands, starts and ends programs, reads and writes files, sets the clock.
//!
//! A request is one line of JSON with an `id`, which the answer repeats; answers come in any order.

use kinara_bluetooth_bed::clock::utc_us;
use kinara_bluetooth_bed::hand::{Answer, Ask, Done, Request};
use rustix::time::{ClockId, Timespec, clock_settime};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How long is waited while nobody is on the other side.
const ALONE: Duration = Duration::from_millis(50);
/// The most that a command may say; the rest is dropped.
const SAID: usize = 8 << 20;

/// Programs that were started and not ended, by name.
type Started = Arc<Mutex<HashMap<String, Child>>>;

/// Serves the host until the machine ends.
pub fn run(port: File) {
    network();
    let writer = Arc::new(Mutex::new(port.try_clone().expect("a port that is open can be shared")));
    let started = Started::default();
    answer(&writer, &Answer { id: 0, done: Ok(Done::Text(uptime())) });
    let mut port = port;
    let mut line = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = match port.read(&mut buffer) {
            Ok(0) | Err(_) => {
                line.clear();
                kinara_clinic::process::pause(ALONE);
                continue;
            }
            Ok(length) => length,
        };
        for byte in &buffer[..length] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            match serde_json::from_slice::<Request>(&std::mem::take(&mut line)) {
                Ok(request) => serve(request, Arc::clone(&writer), Arc::clone(&started)),
                Err(error) => eprintln!("hand: a request that makes no sense: {error}"),
            }
        }
    }
}

/// QEMU's user network: the host is 10.0.2.2 there.
fn network() {
    const COMMANDS: &str = "ip link set lo up; for i in $(ls /sys/class/net | grep -v lo); do ip link set $i up; \
        ip addr add 10.0.2.15/24 dev $i; ip route add default via 10.0.2.2; done";
    let _ = Command::new("/bin/sh").args(["-c", COMMANDS]).env("PATH", PATH).status();
}

const PATH: &str = "/bed:/usr/sbin:/usr/bin:/sbin:/bin";

fn uptime() -> String {
    std::fs::read_to_string("/proc/uptime").unwrap_or_default().trim().to_owned()
}

fn serve(request: Request, writer: Arc<Mutex<File>>, started: Started) {
    std::thread::spawn(move || {
        let done = act(request.ask, &started).map_err(|error| error.to_string());
        answer(&writer, &Answer { id: request.id, done });
    });
}

fn answer(writer: &Mutex<File>, answer: &Answer) {
    let mut line = serde_json::to_vec(answer).expect("an answer is plain data");
    line.push(b'\n');
    let _ = writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
}

fn act(ask: Ask, started: &Started) -> std::io::Result<Done> {
    let lock = || started.lock().unwrap_or_else(PoisonError::into_inner);
    match ask {
        Ask::Run { command, env, within_s } => {
            run_to_the_end(&command, &env, Duration::from_secs_f64(within_s))
        }
        Ask::Start { name, command, env, log } => {
            let log = OpenOptions::new().create(true).append(true).open(log)?;
            let mut program = prepared(&command, &env)?;
            let child = program.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
            let id = child.id();
            if let Some(mut former) = lock().insert(name, child) {
                let _ = former.kill();
                let _ = former.wait();
            }
            Ok(Done::Number(i64::from(id)))
        }
        Ask::Signal { name, signal } => {
            let id = lock().get(&name).map(Child::id).ok_or_else(|| missing(&name))?;
            run_to_the_end(
                // The shell's own: the machine has no program of that name.
                &["sh".into(), "-c".into(), format!("kill -{signal} {id}")],
                &[],
                Duration::from_secs(5),
            )
        }
        Ask::End { name, within_s } => {
            let mut child = lock().remove(&name).ok_or_else(|| missing(&name))?;
            let deadline = Instant::now() + Duration::from_secs_f64(within_s);
            loop {
                if let Some(status) = child.try_wait()? {
                    return Ok(Done::Number(i64::from(status.code().unwrap_or(-1))));
                }
                if Instant::now() >= deadline {
                    child.kill()?;
                    child.wait()?;
                    return Err(std::io::Error::other(format!("{name} did not end and was killed")));
                }
                kinara_clinic::process::pause(POLL);
            }
        }
        Ask::Alive { name } => {
            let mut programs = lock();
            let child = programs.get_mut(&name).ok_or_else(|| missing(&name))?;
            Ok(Done::Flag(child.try_wait()?.is_none()))
        }
        Ask::Read { path } => Ok(Done::Text(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())),
        Ask::Write { path, text, mode } => {
            let path = std::path::PathBuf::from(path);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&path)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            Ok(Done::Flag(true))
        }
        Ask::Shift { by_us } => {
            let to_us = utc_us() + by_us;
            let time =
                Timespec { tv_sec: to_us.div_euclid(1_000_000), tv_nsec: to_us.rem_euclid(1_000_000) * 1000 };
            clock_settime(ClockId::Realtime, time)?;
            Ok(Done::Flag(true))
        }
        Ask::Now => Ok(Done::Number(utc_us())),
    }
}

fn missing(name: &str) -> std::io::Error {
    std::io::Error::other(format!("{name} was not started"))
}

fn prepared(command: &[String], env: &[(String, String)]) -> std::io::Result<Command> {
    let (program, args) = command.split_first().ok_or_else(|| std::io::Error::other("an empty command"))?;
    // Command looks for the program along this process's own PATH, which under systemd is not the bed's.
    let file =
        PATH.split(':').map(|folder| std::path::Path::new(folder).join(program)).find(|file| file.is_file());
    let mut prepared = Command::new(file.unwrap_or_else(|| program.into()));
    prepared.args(args).env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", "/root");
    prepared.envs(env.iter().map(|(name, value)| (name, value)));
    Ok(prepared)
}

fn run_to_the_end(command: &[String], env: &[(String, String)], within: Duration) -> std::io::Result<Done> {
    let mut child =
        prepared(command, env)?.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code().unwrap_or(-1);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::other(format!("{command:?} took longer than {within:?}")));
        }
        kinara_clinic::process::pause(POLL);
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Ok(Done::Ended { status, out: text(out), err: text(err) })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(stream) = stream {
            let _ = stream.take(SAID as u64).read_to_end(&mut said);
        }
        said
    })
}
