//! A real PostgreSQL server of one's own, for tests and for the demo.
//!
//! The promise: the server runs as an ordinary user even when its caller is root, listens on 127.0.0.1 only, behind a
//! random password, and does not outlive its caller, however the caller ends (a small guard process holds a pipe to
//! the caller and stops the server when it closes). A server started in a directory of its own ([`Postgres::temporary`])
//! removes it at the end, unless the test panicked: then data and log stay, and their place is printed.
//!
//! What every such server needs at its start (an initialised cluster; with [`Postgres::prepared`] a database with a schema in
//! it, too) is made once and kept, and each gets a copy of its own: see `mould.rs`. Its password is its own all the same.
//!
//! ```no_run
//! let server = kinara_test_postgres::Postgres::temporary()?;
//! let url = server.fresh_database()?; // a superuser's URL of an empty database
//! # Ok::<(), kinara_test_postgres::Error>(())
//! ```

mod mould;

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown,
};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to accept connections (crash recovery included).
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// So many ports are tried for a server that may have any.
const PORTS: u32 = 5;
/// How long a server may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// The superuser's name, whoever runs the server.
const SUPERUSER: &str = "postgres";
/// The database that [`Postgres::prepared`] brings along.
pub const PREPARED: &str = "test_0";

/// Why a server could not be started, used or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server programs on this machine.
    #[error(
        "no PostgreSQL server programs found: install `postgresql` (15 or later), or set KINARA_PG_BIN to their directory"
    )]
    NotInstalled,
    /// Root has no ordinary user to run the server as.
    #[error(
        "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` in /etc/passwd"
    )]
    NoUser,
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// What is there was not made by this program's user, or others may change it.
    #[error("{0} belongs to somebody else; remove it")]
    Foreign(PathBuf),
    /// A program failed.
    #[error("{} failed: {output}", program.display())]
    Program {
        /// Which.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
    /// The server did not come up.
    #[error("PostgreSQL in {dir} does not accept connections: {log}")]
    NotUp {
        /// Its directory.
        dir: PathBuf,
        /// The end of its log.
        log: String,
    },
    /// The caller's own preparation of a database failed.
    #[error("the database could not be prepared: {0}")]
    Prepare(Box<dyn std::error::Error + Send + Sync>),
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

/// How a server is to be started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    port: Option<u16>,
    settings: Vec<(String, String)>,
}

impl Options {
    /// Defaults: a free port, the server's own durable settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fast, not durable: whatever is killed may forget what it said last.
    pub fn fast() -> Self {
        Self::new()
            .setting("fsync", "off")
            .setting("synchronous_commit", "off")
            .setting("full_page_writes", "off")
            .setting("shared_buffers", "64MB")
    }

    /// A fixed port in place of a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A server setting, as in `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts a server whose data, log and password live in `dir`, which is made when it is not there and kept at the
    /// end. When the caller is root, `dir` is handed to the user `postgres`, who must be able to reach it.
    pub fn start(self, dir: &Path) -> Result<Postgres, Error> {
        Postgres::start_in(dir.to_owned(), None, self, None)
    }
}

/// A running (or stopped) server. Stops on drop.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    temporary: Option<tempfile::TempDir>,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    password: String,
    settings: Vec<(String, String)>,
    server: Option<(Child, Child)>,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts a server with durable settings in `dir`; see [`Options::start`].
    pub fn start(dir: &Path) -> Result<Self, Error> {
        Options::new().start(dir)
    }

    /// Starts a throw-away server: fast, not durable, its directory removed on drop unless the thread is panicking.
    pub fn temporary() -> Result<Self, Error> {
        Self::temporary_with(Options::fast())
    }

    /// Like [`Postgres::temporary`] with the caller's settings, durable unless they say otherwise.
    pub fn temporary_with(options: Options) -> Result<Self, Error> {
        let mould = match mould::find("empty")? {
            mould::Found::Whole(mould) => mould,
            mould::Found::Missing(making) => {
                // Settings count from a start on, and this one's end: the next one has its own.
                Options::fast().start(making.folder())?.stop();
                making.done()?
            }
        };
        Self::copy_of(&mould, options)
    }

    /// Like [`Postgres::temporary_with`], with a database [`PREPARED`] in which `prepare` has been: it is called, with the
    /// superuser's URL of the empty database, by the first who asks for this `key`. Whoever comes later gets a copy of what
    /// that left, so all that it does must follow from the key and the day.
    pub async fn prepared<E>(
        options: Options,
        key: &str,
        prepare: impl AsyncFnOnce(String) -> Result<(), E>,
    ) -> Result<Self, Error>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mould = match mould::find(key)? {
            mould::Found::Whole(mould) => mould,
            mould::Found::Missing(making) => {
                let mut server = Options::fast().start(making.folder())?;
                server.create_database(PREPARED)?;
                prepare(server.superuser_url(PREPARED))
                    .await
                    .map_err(|error| Error::Prepare(error.into()))?;
                server.stop();
                making.done()?
            }
        };
        let server = Self::copy_of(&mould, options)?;
        server.databases.store(1, Ordering::Relaxed);
        Ok(server)
    }

    fn copy_of(mould: &mould::Mould, options: Options) -> Result<Self, Error> {
        // Not the usual temporary directory: that is often one which only the caller can reach.
        let parent = Path::new("/var/tmp");
        let temporary = tempfile::Builder::new()
            .prefix("kinara-pg-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(file("cannot make a directory in", parent))?;
        Self::start_in(temporary.path().to_owned(), Some(temporary), options, Some(mould))
    }

    fn start_in(
        dir: PathBuf,
        temporary: Option<tempfile::TempDir>,
        options: Options,
        mould: Option<&mould::Mould>,
    ) -> Result<Self, Error> {
        let bin = programs()?;
        let user = if running_as_root()? { Some(ordinary_user()?) } else { None };
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(file("cannot make the directory", parent))?;
        }
        // The last one alone is private: its user must be able to walk through the others.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .map_err(file("cannot make the directory", &dir))?;
        let found = std::fs::symlink_metadata(&dir).map_err(file("cannot read", &dir))?;
        if !(found.is_dir() && is_own(&found, user)?) {
            return Err(Error::Foreign(dir));
        }
        if let Some((uid, gid)) = user {
            lchown(&dir, Some(uid), Some(gid)).map_err(file("cannot hand over", &dir))?;
        }
        let mut server = Self {
            port: options.port.unwrap_or(0),
            password: String::new(),
            settings: options.settings,
            server: None,
            databases: AtomicU32::new(0),
            dir,
            temporary,
            bin,
            user,
        };
        server.password = server.read_or_make_password()?;
        if let Some(mould) = mould {
            server.start_from(mould)?;
        } else {
            if !server.data().join("PG_VERSION").exists() {
                server.initialise()?;
            }
            server.begin("SELECT 1")?;
        }
        Ok(server)
    }

    /// Starts with a copy of what the mould holds. The copy knows the mould's password until this returns.
    fn start_from(&mut self, mould: &mould::Mould) -> Result<(), Error> {
        let theirs =
            self.read_password(&mould.password())?.ok_or_else(|| Error::Foreign(mould.password()))?;
        // By the server's own user: what it may read is all that can be copied.
        self.run(
            Path::new("cp"),
            &["-a", &mould.data().to_string_lossy(), &self.data().to_string_lossy()],
            "",
        )?;
        let own = std::mem::replace(&mut self.password, theirs);
        let change = format!("ALTER ROLE {SUPERUSER} PASSWORD '{own}'");
        self.begin(&change)?;
        self.password = own;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn read_or_make_password(&self) -> Result<String, Error> {
        let path = self.dir.join("superuser.password");
        if let Some(password) = self.read_password(&path)? {
            return Ok(password);
        }
        let random = Path::new("/dev/urandom");
        let mut bytes = [0u8; 16];
        std::fs::File::open(random)
            .and_then(|mut f| f.read_exact(&mut bytes))
            .map_err(file("cannot read", random))?;
        let password = bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let mut made = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(file("cannot write", &path))?;
        io::Write::write_all(&mut made, password.as_bytes()).map_err(file("cannot write", &path))?;
        if let Some((uid, gid)) = self.user {
            fchown(&made, Some(uid), Some(gid)).map_err(file("cannot hand over", &path))?;
        }
        Ok(password)
    }

    /// The password of an earlier start, if there is one. A link is not followed: the server's user may write here, and
    /// is not to choose what root reads.
    fn read_password(&self, path: &Path) -> Result<Option<String>, Error> {
        let found = match std::fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file("cannot read", path)(error)),
        };
        if !(found.is_file() && is_own(&found, self.user)?) {
            return Err(Error::Foreign(path.to_owned()));
        }
        let mut open = std::fs::File::open(path).map_err(file("cannot read", path))?;
        let opened = open.metadata().map_err(file("cannot read", path))?;
        if (opened.dev(), opened.ino()) != (found.dev(), found.ino()) {
            return Err(Error::Foreign(path.to_owned()));
        }
        let mut password = String::new();
        open.read_to_string(&mut password).map_err(file("cannot read", path))?;
        Ok(Some(password.trim().to_owned()))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // The server refuses a working directory it cannot enter.
        command
            .current_dir(&self.dir)
            .env_remove("PGDATA")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Passwords go by the environment and SQL by standard input: anybody may read a command line.
    fn run(&self, program: &Path, args: &[&str], input: &str) -> Result<String, Error> {
        let failed = || file("cannot run", program);
        let mut child = self
            .command(program)
            .args(args)
            .env("PGPASSWORD", &self.password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed())?;
        let pipe = child.stdin.take();
        // Beside the reading of what it prints, so that neither waits for the other.
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program that ends without reading its input says why by its exit status.
                pipe.map(|mut pipe| io::Write::write_all(&mut pipe, input.as_bytes()))
            });
            child.wait_with_output()
        });
        let output = output.map_err(failed())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Program { program: program.to_owned(), output })
    }

    fn initialise(&self) -> Result<(), Error> {
        let data = self.data();
        let password = self.dir.join("superuser.password");
        self.run(
            &self.bin.join("initdb"),
            &[
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
                "--auth=scram-sha-256",
                "--username",
                SUPERUSER,
                "--pwfile",
                &password.to_string_lossy(),
                "-D",
                &data.to_string_lossy(),
            ],
            "",
        )
        .map(|_| ())
    }

    /// Starts the server again after [`Postgres::stop`] or [`Postgres::kill`], on the same port with the same data.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.launch("SELECT 1")
    }

    /// Starts the server for the first time: on the port that was asked for, or on a free one. Somebody else may take that
    /// before the server does; then it is another one.
    fn begin(&mut self, first: &str) -> Result<(), Error> {
        if self.port == 0 { self.begin_on(first, free_port) } else { self.launch(first) }
    }

    fn begin_on(&mut self, first: &str, mut port: impl FnMut() -> Result<u16, Error>) -> Result<(), Error> {
        let mut tries = PORTS;
        loop {
            self.port = port()?;
            tries -= 1;
            match self.launch(first) {
                Err(Error::NotUp { log, .. }) if tries > 0 && log.contains("Address already in use") => {}
                done => return done,
            }
        }
    }

    /// Starts the server, and waits until it has done this.
    fn launch(&mut self, first: &str) -> Result<(), Error> {
        if self.server.is_some() {
            return Ok(());
        }
        let log = self.log();
        let out = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(file("cannot open", &log))?;
        let clone = out.try_clone().map_err(file("cannot open", &log))?;
        let mut command = self.command(&self.bin.join("postgres"));
        command.arg("-D").arg(self.data());
        for (name, value) in [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("port", &self.port.to_string()),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
        ] {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // TimescaleDB works only when it is loaded at start; where it is installed, tests and demo use it, unless they are
        // told to do without.
        if timescale(&self.bin).is_some() {
            command.args([
                "-c",
                "shared_preload_libraries=timescaledb",
                "-c",
                "timescaledb.telemetry_level=off",
            ]);
        }
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut server = command
            .stdout(clone)
            .stderr(out)
            .spawn()
            .map_err(file("cannot run", &self.bin.join("postgres")))?;
        let guard = self.guard(server.id());
        let guard = match guard {
            Ok(guard) => guard,
            Err(error) => {
                let _ = server.kill();
                let _ = server.wait();
                return Err(error);
            }
        };
        self.server = Some((server, guard));
        self.wait_until_up(first)
    }

    /// A process that lives as long as this one's end of its pipe is open, then stops the server.
    fn guard(&self, server: u32) -> Result<Child, Error> {
        let shell = Path::new("/bin/sh");
        let mut command = Command::new(shell);
        command
            .arg("-c")
            .arg(format!("cat >/dev/null; kill -INT {server}"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.spawn().map_err(file("cannot run", shell))
    }

    fn wait_until_up(&mut self, first: &str) -> Result<(), Error> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let ended = match &mut self.server {
                Some((server, _)) => !matches!(server.try_wait(), Ok(None)),
                None => true,
            };
            if ended || Instant::now() > deadline {
                self.halt("immediate");
                return Err(Error::NotUp { dir: self.dir.clone(), log: self.log_tail() });
            }
            // An open port is not yet a server that answers: it may be recovering.
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() && self.psql(SUPERUSER, first).is_ok() {
                return Ok(());
            }
            pause();
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn halt(&mut self, mode: &str) {
        let Some((mut server, mut guard)) = self.server.take() else { return };
        let _ = guard.kill();
        let _ = guard.wait();
        if matches!(server.try_wait(), Ok(None)) {
            let data = self.data();
            let args = ["stop", "--no-wait", "-m", mode, "-D", &data.to_string_lossy()];
            let _ = self.run(&self.bin.join("pg_ctl"), &args, "");
            let deadline = Instant::now() + STOP_TIMEOUT;
            while matches!(server.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = server.kill();
                    break;
                }
                pause();
            }
        }
        let _ = server.wait();
    }

    /// Stops the server in good order: sessions are ended, data are written.
    pub fn stop(&mut self) {
        self.halt("fast");
    }

    /// Ends the server as a crash would; the next start recovers from its log.
    pub fn kill(&mut self) {
        self.halt("immediate");
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|(server, _)| server.id())
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// A URL of `database` for a role with a password.
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// The superuser's URL of `database`.
    pub fn superuser_url(&self, database: &str) -> String {
        self.url(SUPERUSER, &self.password, database)
    }

    /// Runs SQL as the superuser, and gives what it printed: unaligned, no headers.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, Error> {
        let port = self.port.to_string();
        let place = ["-h", "127.0.0.1", "-p", &port, "-U", SUPERUSER, "-d", database, "-w"];
        let manner = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"];
        self.run(&self.bin.join("psql"), &[&place[..], &manner].concat(), sql)
    }

    /// Makes an empty database and gives the superuser's URL of it.
    pub fn fresh_database(&self) -> Result<String, Error> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.create_database(&name)?;
        Ok(self.superuser_url(&name))
    }

    /// Makes an empty database of that name.
    pub fn create_database(&self, name: &str) -> Result<(), Error> {
        self.psql(SUPERUSER, &format!("CREATE DATABASE \"{name}\" TEMPLATE template0")).map(|_| ())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Throw-away data need no last checkpoint.
        self.halt(if self.temporary.is_some() && !std::thread::panicking() { "immediate" } else { "fast" });
        if std::thread::panicking()
            && let Some(temporary) = self.temporary.take()
        {
            eprintln!("PostgreSQL's data and log are kept in {}", temporary.keep().display());
        }
    }
}

/// TimescaleDB's library beside these programs, unless nobody is to use it.
fn timescale(bin: &Path) -> Option<PathBuf> {
    let plain = std::env::var_os("KINARA_STORAGE").is_some_and(|storage| storage == "plain");
    let library = bin.join("../lib/timescaledb.so");
    (!plain && library.exists()).then_some(library)
}

/// Where `initdb`, `postgres`, `pg_ctl` and `psql` are: KINARA_PG_BIN, Debian's directories (newest first), the path.
fn programs() -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os("KINARA_PG_BIN") {
        return Ok(PathBuf::from(named));
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(version, bin)| *version >= 15 && bin.join("initdb").exists())
        .collect();
    versions.sort();
    if let Some((_, bin)) = versions.pop() {
        return Ok(bin);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|bin| ["initdb", "postgres", "pg_ctl", "psql"].iter().all(|program| bin.join(program).exists()))
        .ok_or(Error::NotInstalled)
}

/// Whether this program's user or the server's owns what was found, and nobody else may write to it.
fn is_own(found: &std::fs::Metadata, user: Option<(u32, u32)>) -> Result<bool, Error> {
    let owner = found.uid() == own_user()? || user.is_some_and(|(uid, _)| found.uid() == uid);
    Ok(owner && found.mode() & 0o022 == 0)
}

/// The number of the user that this program runs as.
fn own_user() -> Result<u32, Error> {
    let this = Path::new("/proc/self");
    Ok(std::fs::metadata(this).map_err(file("cannot read", this))?.uid())
}

fn running_as_root() -> Result<bool, Error> {
    Ok(own_user()? == 0)
}

fn ordinary_user() -> Result<(u32, u32), Error> {
    let path = Path::new("/etc/passwd");
    let passwd = std::fs::read_to_string(path).map_err(file("cannot read", path))?;
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    };
    find("postgres").or_else(|| find("nobody")).ok_or(Error::NoUser)
}

fn free_port() -> Result<u16, Error> {
    let listen = || TcpListener::bind(("127.0.0.1", 0))?.local_addr();
    listen().map(|address| address.port()).map_err(file("cannot find a free port on", Path::new("127.0.0.1")))
}

#[expect(clippy::disallowed_methods, reason = "a test's own thread, waiting for another process")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_a_link_or_that_others_may_write_to_is_refused() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let (real, link, open) =
            (place.path().join("real"), place.path().join("link"), place.path().join("open"));
        std::fs::create_dir(&real).unwrap();
        let before = std::fs::metadata(&real).unwrap().uid();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        for foreign in [link, open] {
            let error = Postgres::start(&foreign).unwrap_err().to_string();
            assert_eq!(error, format!("{} belongs to somebody else; remove it", foreign.display()));
        }
        assert_eq!(std::fs::metadata(&real).unwrap().uid(), before);
    }

    #[test]
    fn copies_of_one_mould_are_servers_of_their_own() {
        let (mut one, two) = (Postgres::temporary().unwrap(), Postgres::temporary().unwrap());
        one.fresh_database().unwrap();
        assert!(one.psql("test_0", "SELECT 1").is_ok());
        assert!(two.psql("test_0", "SELECT 1").is_err());
        let mould::Found::Whole(mould) = mould::find("empty").unwrap() else { panic!("it was just copied") };
        let moulds = std::fs::read_to_string(mould.password()).unwrap().trim().to_owned();
        for foreign in [two.password.clone(), moulds] {
            let own = std::mem::replace(&mut one.password, foreign);
            let error = one.psql(SUPERUSER, "SELECT 1").unwrap_err().to_string();
            assert!(error.contains("password authentication failed"), "{error}");
            one.password = own;
        }
        assert!(one.psql(SUPERUSER, "SELECT 1").is_ok());
    }

    #[test]
    fn a_free_port_that_somebody_else_takes_first_is_no_reason_to_fail() {
        let mut server = Postgres::temporary().unwrap();
        server.stop();
        let somebody = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let connection = TcpStream::connect(somebody.local_addr().unwrap()).unwrap();
        let port = connection.local_addr().unwrap().port();
        let mut first = Some(port);
        server.begin_on("SELECT 1", || first.take().map_or_else(free_port, Ok)).unwrap();
        assert!(first.is_none() && server.port() != port);
        assert!(server.psql(SUPERUSER, "SELECT 1").is_ok());
    }

    /// What a future gives that waits for nothing.
    fn at_once<T>(future: impl Future<Output = T>) -> T {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(value) => value,
            std::task::Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn what_was_prepared_once_is_in_each_copy_and_what_is_done_to_one_is_not_in_another() {
        let prepare = async |url: String| -> Result<(), io::Error> {
            let sql = "CREATE TABLE t (n int); INSERT INTO t VALUES (1)";
            let done = Command::new(programs().unwrap().join("psql")).args([&url, "-c", sql]).status()?;
            done.success().then_some(()).ok_or(io::ErrorKind::Other.into())
        };
        let copy = || at_once(Postgres::prepared(Options::fast(), "a table with a row", prepare)).unwrap();
        let (one, two) = (copy(), copy());
        one.psql(PREPARED, "INSERT INTO t VALUES (2)").unwrap();
        let rows = |server: &Postgres| server.psql(PREPARED, "SELECT count(*) FROM t").unwrap();
        assert_eq!((rows(&one).trim(), rows(&two).trim()), ("2", "1"));
        assert!(one.fresh_database().unwrap().ends_with("/test_1"));
    }

    #[test]
    fn a_preparation_that_fails_leaves_no_mould() {
        let fails = async |_: String| Err::<(), _>("no");
        for _ in 0..2 {
            let error = at_once(Postgres::prepared(Options::fast(), "nothing", fails)).unwrap_err();
            assert_eq!(error.to_string(), "the database could not be prepared: no");
        }
    }

    #[test]
    fn a_server_keeps_its_data_over_a_crash_and_is_gone_with_its_directory_at_the_end() {
        let dir;
        {
            let mut server = Postgres::temporary_with(Options::new()).unwrap();
            dir = server.dir.clone();
            server.fresh_database().unwrap();
            server.psql("test_0", "CREATE TABLE t AS SELECT 7 AS n").unwrap();
            server.kill();
            assert!(server.psql("test_0", "SELECT n FROM t").is_err());
            server.restart().unwrap();
            assert_eq!(server.psql("test_0", "SELECT n FROM t").unwrap().trim(), "7");
        }
        assert!(!dir.exists());
    }
}
