//! Connections with named limits: how many, how long one waits for one, how long a statement may run.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::{Config, NoTls};

use crate::Error;

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

/// The configuration of a connection with these limits, which the server itself enforces.
pub fn configuration(url: &str, program: &str, limits: &Limits) -> Result<Config, Error> {
    let mut config: Config = url.parse().map_err(Error::Url)?;
    config.application_name(program).connect_timeout(limits.connect).options(format!(
        "-c statement_timeout={} -c idle_in_transaction_session_timeout={} -c lock_timeout={} -c timezone=UTC",
        limits.statement.as_millis(),
        limits.idle_in_transaction.as_millis(),
        limits.lock.as_millis(),
    ));
    Ok(config)
}

/// A pool of connections. None is made yet: a database that is down shows when one is asked for.
///
/// Connections are not encrypted by this client: database and programs share a machine, or a network that is.
pub fn connect(url: &str, program: &str, limits: &Limits) -> Result<Pool, Error> {
    from_config(configuration(url, program, limits)?, limits)
}

pub(crate) fn from_config(config: Config, limits: &Limits) -> Result<Pool, Error> {
    let manager =
        Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Ok(Pool::builder(manager)
        .max_size(limits.connections)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.connect))
        .recycle_timeout(Some(limits.connect))
        .runtime(Runtime::Tokio1)
        .build()?)
}
