//! The clinic's PostgreSQL: started, stopped, pulled out and started again, with its login roles.
//!
//! The server itself is [`kinara_test_postgres`]'s; here is what a clinic adds: where its files lie, the
//! roles of the bridge and the API, and the ways in which it can be cut.

use crate::folders::{self, database_folder, database_user};
use crate::{ClinicError, Result, ports};
use kinara_test_postgres::{Options, Postgres};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The database's name.
pub const NAME: &str = "kinara";

/// How much a write is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As in production: a commit is on disk. For the demo, the oracle and the benches.
    Real,
    /// For tests that never pull the plug of the machine.
    Fast,
}

/// A PostgreSQL server with the clinic's database.
#[derive(Debug)]
pub struct Database {
    server: Postgres,
    folder: PathBuf,
}

impl Database {
    /// Starts the server whose data belong to this clinic's folder, and makes the database when it is not there.
    pub fn start(folder: &Path, port: u16, durability: Durability) -> Result<Self> {
        let place = database_folder(folder, database_user().as_ref())?;
        let mut options = Options::new()
            .port(port)
            .setting("max_connections", "80")
            .setting("shared_buffers", "128MB")
            .setting("max_wal_size", "2GB")
            .setting("log_checkpoints", "off");
        if durability == Durability::Fast {
            options = options
                .setting("fsync", "off")
                .setting("full_page_writes", "off")
                .setting("synchronous_commit", "off");
        }
        let server = options.start(&place).map_err(database)?;
        let there = server
            .psql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{NAME}'"))
            .map_err(database)?;
        if there.trim().is_empty() {
            server.create_database(NAME).map_err(database)?;
        }
        Ok(Self { server, folder: place })
    }

    /// A superuser's URL: migrations, administration, and the oracle's own look at the tables.
    pub fn admin_url(&self) -> String {
        self.server.superuser_url(NAME)
    }

    /// The URL for a login role.
    pub fn url(&self, role: &str, password: &str) -> String {
        self.server.url(role, password, NAME)
    }

    /// Makes (or updates) a login role in a group role that the migrations made.
    pub fn login_role(&self, role: &str, password: &str, group: &str) -> Result<()> {
        self.sql(&format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$; \
             ALTER ROLE {role} LOGIN PASSWORD '{password}'; GRANT {group} TO {role}"
        ))
        .map(|_| ())
    }

    /// Runs SQL as the superuser and returns what `psql` prints: a row a line, columns with `|`.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.server.psql(NAME, sql).map_err(database)
    }

    /// Stops the server in good order; sessions are cut.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Ends the server at once, without a checkpoint; the next start recovers from the write-ahead log.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// `kill -9` of the postmaster. Its children notice and end by themselves.
    pub fn kill_hard(&mut self) {
        if let Some(pid) = self.server.pid().and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.server.kill();
    }

    /// Starts it again on the same port with the same data.
    pub fn start_again(&mut self) -> Result<()> {
        // After `kill -9`, orphans may hold the shared memory for a moment.
        const TRIES: u32 = 10;
        for _ in 1..TRIES {
            if self.server.restart().is_ok() {
                return Ok(());
            }
            crate::process::pause(Duration::from_millis(300));
        }
        self.server.restart().map_err(database)
    }

    /// Whether anybody listens on its port.
    pub fn is_up(&self) -> bool {
        !ports::is_free(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.server.log()
    }

    /// Where its files lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes on disk.
    pub fn size(&self) -> Result<u64> {
        let answer = self.sql("SELECT pg_database_size(current_database())")?;
        answer.trim().parse().map_err(|_| ClinicError::Database(format!("a size of {answer:?}")))
    }
}

fn database(error: kinara_test_postgres::Error) -> ClinicError {
    ClinicError::Database(error.to_string())
}

/// Whether the database of a clinic in this folder would lie outside of it.
pub fn lies_outside(folder: &Path) -> Option<PathBuf> {
    let outside = folders::outside(folder).join("database");
    outside.is_dir().then_some(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_is_there_after_kill_9_and_roles_can_be_made_twice() {
        let dir = tempfile::tempdir().unwrap();
        let port = ports::free();
        let mut database = Database::start(dir.path(), port, Durability::Real).unwrap();
        database.sql("CREATE ROLE some_group; CREATE TABLE t AS SELECT 7 AS n").unwrap();
        database.login_role("bridge", "first", "some_group").unwrap();
        database.login_role("bridge", "second", "some_group").unwrap();
        database.kill_hard();
        assert!(database.sql("SELECT n FROM t").is_err());
        database.start_again().unwrap();
        assert_eq!(database.sql("SELECT n FROM t").unwrap().trim(), "7");
        assert_eq!(database.port(), port);
        let outside = lies_outside(dir.path());
        drop(database);
        folders::forget(dir.path()).unwrap();
        assert!(outside.is_none_or(|place| !place.exists()));
    }
}
