//! Connections with named limits: how many, how long one waits for one, how long a statement may run.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::{Config, Connection, Socket};

use crate::Error;
use crate::tls::{self, Tls};

/// Every limit on a program's use of the database.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at most.
    pub connections: usize,
    /// How long to wait for a free connection.
    pub wait: Duration,
    /// How long making a connection may take.
    pub connect: Duration,
    /// How long one statement may run before the server cancels it.
    pub statement: Duration,
    /// How long a transaction may sit idle before the server ends its session.
    pub idle_in_transaction: Duration,
    /// How long a statement may wait for a lock.
    pub lock: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8,
            wait: Duration::from_secs(5),
            connect: Duration::from_secs(5),
            statement: Duration::from_secs(30),
            idle_in_transaction: Duration::from_secs(30),
            lock: Duration::from_secs(10),
        }
    }
}

/// Where and how to connect: what a URL says, with the program's name and limits.
#[derive(Debug, Clone)]
pub struct Target {
    config: Config,
    tls: Tls,
}

/// The half of a connection that somebody has to drive.
pub type Link = Connection<Socket, tls::Stream<Socket>>;

impl Target {
    /// A URL as it stands.
    pub fn of(url: &str, program: &str) -> Result<Self, Error> {
        let (url, tls) = Tls::of(url)?;
        let mut config: Config = url.parse().map_err(Error::Url)?;
        config.application_name(program);
        Ok(Self { config, tls })
    }

    /// With these limits, which the server itself enforces.
    pub fn with_limits(url: &str, program: &str, limits: &Limits) -> Result<Self, Error> {
        let mut target = Self::of(url, program)?;
        target.config.connect_timeout(limits.connect).options(format!(
            "-c statement_timeout={} -c idle_in_transaction_session_timeout={} -c lock_timeout={} -c timezone=UTC",
            limits.statement.as_millis(),
            limits.idle_in_transaction.as_millis(),
            limits.lock.as_millis(),
        ));
        Ok(target)
    }

    /// The driver's own settings, for what only this program wants.
    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Adds to what the server sets for each session.
    #[must_use]
    pub fn with_options(mut self, more: &str) -> Self {
        let options = self.config.get_options().unwrap_or_default().to_owned();
        self.config.options(format!("{options} {more}").trim());
        self
    }

    /// Whether the URL wants every connection encrypted.
    pub fn is_tls_required(&self) -> bool {
        self.tls.is_required()
    }

    /// Connects.
    pub async fn connect(&self) -> Result<(tokio_postgres::Client, Link), tokio_postgres::Error> {
        self.config.connect(self.tls.clone()).await
    }

    /// What makes a pool's connections.
    pub fn manager(&self) -> Manager {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Manager::from_config(self.config.clone(), self.tls.clone(), recycling)
    }

    pub(crate) fn driver(&self) -> Config {
        self.config.clone()
    }
}

/// A pool of connections. None is made yet: a database that is down shows when one is asked for.
pub fn connect(url: &str, program: &str, limits: &Limits) -> Result<Pool, Error> {
    pool_of(&Target::with_limits(url, program, limits)?, limits)
}

/// Lets connections go that are older than this and not in use; gives how many. The next one that is needed is made anew: each
/// keeps room for the largest statement that it ever sent.
pub fn let_go(pool: &Pool, older_than: Duration) -> usize {
    pool.retain(|_, metrics| metrics.age() <= older_than).removed.len()
}

pub(crate) fn pool_of(target: &Target, limits: &Limits) -> Result<Pool, Error> {
    Ok(Pool::builder(target.manager())
        .max_size(limits.connections)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.connect))
        .recycle_timeout(Some(limits.connect))
        .runtime(Runtime::Tokio1)
        .build()?)
}
