//! One program under the clinic's care.
//!
//! The promise: a [`Process`] never outlives the program that started it. Three things keep it: the
//! child gets a parent-death signal (`setpriv --pdeathsig KILL`, from util-linux), it leads a process group
//! of its own that is killed as a whole, and dropping the [`Process`] kills and reaps it.
//!
//! A parent-death signal fires when the *thread* that started the child ends, not only the program.
//! Therefore all children are started by one thread that lives as long as the program.

use crate::folders::User;
use crate::{ClinicError, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// How often a condition is looked at again while waiting for it.
const POLL: Duration = Duration::from_millis(15);

/// How to tell that a program has come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It needs no waiting.
    AtOnce,
    /// Something accepts connections at this address.
    Port(SocketAddr),
    /// The program writes the address it listens on into this file, and answers HTTP there.
    HttpAt(PathBuf),
    /// This Unix socket accepts connections.
    Socket(PathBuf),
}

/// What to start, and how.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The process's name in messages, for instance `gateway A`.
    pub name: String,
    /// The file to run.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory (the caller's when not given).
    pub dir: Option<PathBuf>,
    /// Where its standard output and error go (appended).
    pub log: PathBuf,
    /// The user it runs as, when that is not the caller.
    pub user: Option<User>,
    /// The network it runs in, when that is not the caller's: a [`Network`](crate::network::Network)'s path.
    pub network: Option<PathBuf>,
    /// How to tell that it is up.
    pub ready: Ready,
    /// How long it may take to come up.
    pub start_timeout: Duration,
    /// The signal that asks it to end in order.
    pub stop_signal: Signal,
}

impl Launch {
    /// A launch with the defaults: no arguments, the caller's user, ready at once, 20 s to start, SIGTERM to end.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            log: log.into(),
            user: None,
            network: None,
            ready: Ready::AtOnce,
            start_timeout: Duration::from_secs(20),
            stop_signal: Signal::TERM,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Says how to tell that it is up.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> Self {
        self.ready = ready;
        self
    }

    fn command(&self) -> Result<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(ClinicError::file(&self.log))?;
        let log_again = log.try_clone().map_err(ClinicError::file(&self.log))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user {
            command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
            command.arg("--clear-groups");
        }
        command.arg("--");
        if let Some(network) = &self.network {
            command.arg("nsenter").arg(format!("--net={}", network.display())).arg("--");
        }
        command.arg(&self.program).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(log_again).process_group(0);
        Ok(command)
    }
}

/// A program that is, was, or can be running.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Option<Child>,
    started: u32,
}

impl Process {
    /// A process that is not started yet.
    pub fn new(launch: Launch) -> Self {
        Self { launch, child: None, started: 0 }
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it without waiting. Does nothing when it is running.
    pub fn spawn(&mut self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        if let Ready::HttpAt(file) = &self.launch.ready {
            // An address of an earlier life would be believed.
            remove_if_there(file)?;
        }
        let command = self.launch.command()?;
        let child = spawn_from_lasting_thread(command).map_err(|source| ClinicError::Spawn {
            name: self.launch.name.clone(),
            program: self.launch.program.clone(),
            source,
        })?;
        self.child = Some(child);
        self.started += 1;
        Ok(())
    }

    /// Waits until it is ready, at most its start timeout.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.launch.start_timeout;
        loop {
            if let Some(status) = self.exit_status() {
                return Err(ClinicError::Ended {
                    name: self.launch.name.clone(),
                    status: status.to_string(),
                    log: self.launch.log.clone(),
                    last_lines: self.last_log_lines(12),
                });
            }
            if self.answers() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ClinicError::NotReady {
                    name: self.launch.name.clone(),
                    seconds: self.launch.start_timeout.as_secs(),
                    waited_for: format!("{:?}", self.launch.ready),
                    log: self.launch.log.clone(),
                    last_lines: self.last_log_lines(12),
                });
            }
            pause(POLL);
        }
    }

    fn answers(&self) -> bool {
        match &self.launch.ready {
            Ready::AtOnce => true,
            Ready::Port(address) => TcpStream::connect_timeout(address, Duration::from_millis(500)).is_ok(),
            Ready::Socket(path) => UnixStream::connect(path).is_ok(),
            Ready::HttpAt(file) => {
                read_address(file).is_some_and(|address| http_get(address, "/healthz").is_ok())
            }
        }
    }

    /// The address it said it listens on (only for [`Ready::HttpAt`] and [`Ready::Port`]).
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.launch.ready {
            Ready::Port(address) => Some(*address),
            Ready::HttpAt(file) => read_address(file),
            _ => None,
        }
    }

    /// Pulls the plug: SIGKILL to the whole group, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal_group(&child, Signal::KILL);
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end, without waiting. See [`Process::wait_end`].
    pub fn ask_to_end(&mut self) {
        if let Some(child) = &self.child
            && let Some(pid) = Pid::from_raw(child.id() as i32)
        {
            // Gone already is as good.
            let _ = kill_process(pid, self.launch.stop_signal);
        }
    }

    /// Waits for its end; kills it when that takes longer than `patience`. Says whether it ended by itself.
    pub fn wait_end(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.exit_status().is_some() || self.child.is_none() {
                self.kill();
                return true;
            }
            pause(POLL);
        }
        self.kill();
        false
    }

    /// Ends it in order: asks, waits, kills after 8 s. Says whether it ended by itself.
    pub fn stop(&mut self) -> bool {
        self.ask_to_end();
        self.wait_end(Duration::from_secs(8))
    }

    /// Sends any signal to it (SIGSTOP and SIGCONT make a program hang and go on).
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child
            && let Some(pid) = Pid::from_raw(child.id() as i32)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.is_some() && self.exit_status().is_none()
    }

    /// Its exit status, once it has ended by itself.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.started
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// What it is started with. Changes count from the next start on.
    pub fn launch_mut(&mut self) -> &mut Launch {
        &mut self.launch
    }

    /// The last lines of its log.
    pub fn last_log_lines(&self, lines: usize) -> String {
        last_lines(&self.launch.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends several processes in order: all are asked first, then all are waited for, with one patience for all.
/// Returns the names of those that had to be killed.
pub fn stop_together<'a>(
    processes: impl IntoIterator<Item = &'a mut Process>,
    patience: Duration,
) -> Vec<String> {
    let mut asked: Vec<&mut Process> = processes.into_iter().collect();
    for process in &mut asked {
        process.ask_to_end();
    }
    let deadline = Instant::now() + patience;
    let mut killed = Vec::new();
    for process in asked {
        if !process.wait_end(deadline.saturating_duration_since(Instant::now())) {
            killed.push(process.name().to_owned());
        }
    }
    killed
}

/// Runs a command that does one thing and ends; its standard output is returned.
pub fn run(mut command: Command, what: &str, input: Option<&str>) -> Result<String> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = PathBuf::from(command.get_program());
    let spawn_error = |source| ClinicError::Spawn { name: what.to_owned(), program: program.clone(), source };
    let mut child = command.spawn().map_err(spawn_error)?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // A program that ends without reading its input says why by its exit status.
        let _ = pipe.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(spawn_error)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(ClinicError::Command {
        what: what.to_owned(),
        status: output.status.to_string(),
        output: format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)),
    })
}

/// One HTTP GET, answered by the status and the body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.set_write_timeout(Some(Duration::from_secs(3)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(4 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other("not an HTTP answer"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// Waits a moment. The threads here are the harness's own; no worker is blocked.
#[allow(clippy::disallowed_methods)]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Waits until `condition` holds, at most `patience`; says whether it came to hold.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        pause(POLL);
    }
}

fn read_address(file: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn remove_if_there(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ClinicError::file(file)(error)),
        _ => Ok(()),
    }
}

fn signal_group(child: &Child, signal: Signal) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        let _ = kill_process_group(pid, signal);
    }
}

fn last_lines(path: &Path, lines: usize) -> String {
    const TAIL: u64 = 16 * 1024;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        file.take(TAIL).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(no log: {error})"));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

type SpawnJob = (Command, mpsc::Sender<std::io::Result<Child>>);

fn spawn_from_lasting_thread(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnJob>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<SpawnJob>();
        std::thread::spawn(move || {
            while let Ok((mut command, answer)) = jobs.recv() {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, answered) = mpsc::channel();
    spawner.send((command, answer)).map_err(std::io::Error::other)?;
    answered.recv().map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Launch {
        Launch::new("a shell", "/bin/sh", dir.join("log")).args(["-c", script])
    }

    #[test]
    fn a_program_that_ends_early_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let launch = shell("echo no such luck; exit 3", dir.path());
        let mut process = Process::new(launch.ready(Ready::Socket(dir.path().join("never"))));
        let error = process.start().unwrap_err().to_string();
        assert!(error.contains("no such luck") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn killing_takes_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::new(shell("sleep 1000 & echo $!; wait", dir.path()));
        process.start().unwrap();
        assert!(wait_until(Duration::from_secs(5), || !process.last_log_lines(1).is_empty()));
        let grandchild = process.last_log_lines(1);
        let there = |pid: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        assert!(there(&grandchild));
        process.kill();
        assert!(wait_until(Duration::from_secs(5), || !there(&grandchild)));
    }

    #[test]
    fn a_program_that_ignores_the_request_to_end_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::new(shell("trap '' TERM; echo up; while :; do sleep 1; done", dir.path()));
        process.start().unwrap();
        assert!(wait_until(Duration::from_secs(5), || !process.last_log_lines(1).is_empty()));
        process.ask_to_end();
        assert!(!process.wait_end(Duration::from_millis(200)));
        assert!(!process.is_alive());
    }
}
