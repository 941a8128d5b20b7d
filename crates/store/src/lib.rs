//! The cloud's database: its schema, and how a program reaches it.
//!
//! - [`migrate()`] brings a database, PostgreSQL 15 or later with or without TimescaleDB, to this program's schema.
//! - [`migrate::check`] says whether a program and its database know the same schema.
//! - [`partitions`] lets go of days whose time is over without anybody's waiting.
//! - [`jobs`] is the queue of what is done later.
//! - [`pool`] makes connections with named limits.
//! - [`tenant`] scopes a transaction to one clinic: the database itself then shows nothing of any other.
//! - [`Storage`] says which of the two storages a database has. Programs do not need to know; logs and tests do.

pub mod jobs;
pub mod migrate;
mod online;
pub mod partitions;
pub mod pool;
pub mod tenant;
pub mod tls;

pub use deadpool_postgres::{Client, Pool, PoolError, Transaction};
pub use migrate::{Migrated, Storage, migrate};
pub use pool::{Limits, Link, Target, connect};
pub use tenant::with_tenant;

use std::fmt::Write as _;
use std::pin::Pin;

/// What large entries return, here and in the crates above. They are boxed so that their work is compiled once, in their own
/// crate: that of an `async fn` is compiled again in each program, and each test, that waits for it.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What can go wrong between a program and its database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection URL cannot be read.
    #[error("the database URL cannot be read ({0}): expected postgres://ROLE:PASSWORD@HOST:PORT/DATABASE")]
    Url(tokio_postgres::Error),
    /// The URL's words on TLS.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The database refused or the connection broke.
    #[error("database: {}", explain(.0))]
    Database(#[from] tokio_postgres::Error),
    /// No connection in time.
    #[error("no database connection: {}", explain_pool(.0))]
    Pool(#[from] deadpool_postgres::PoolError),
    /// The pool's own configuration is wrong.
    #[error("database pool: {0}")]
    Build(#[from] deadpool_postgres::BuildError),
    /// Too old a server.
    #[error("PostgreSQL {0} is too old: 15 or later is needed")]
    ServerTooOld(String),
    /// A migration differs from the one that was applied.
    #[error(
        "migration {0} was applied to this database in another form; install the release that made it, or restore a backup"
    )]
    Changed(String),
    /// The database has been migrated by a newer release.
    #[error("the database is at schema {found}, this program knows {known}: install the newer release")]
    Newer {
        /// The database's version.
        found: i32,
        /// This program's.
        known: i32,
    },
    /// The database has not been migrated to this release.
    #[error(
        "the database is at schema {found}, this program needs {known}: run the migration (database.admin_url)"
    )]
    Older {
        /// The database's version; 0: none.
        found: i32,
        /// This program's.
        known: i32,
    },
    /// Another program migrates, and does not come to an end.
    #[error("another program has been migrating this database for more than {0:?}")]
    Turn(std::time::Duration),
    /// The queue of jobs.
    #[error("the queue of jobs: {0}")]
    Jobs(String),
    /// A migration failed; nothing of it remains.
    #[error("migration {name} failed: {}", explain(.source))]
    Migration {
        /// Which.
        name: String,
        /// Why.
        source: tokio_postgres::Error,
    },
}

/// A database error with what the server said: the error alone prints "db error".
pub fn explain(error: &tokio_postgres::Error) -> String {
    let mut text = String::new();
    if let Some(db) = error.as_db_error() {
        let _ = write!(text, "{} ({})", db.message(), db.code().code());
        for more in [db.detail(), db.hint(), db.where_()].into_iter().flatten() {
            let _ = write!(text, "; {}", more.lines().next().unwrap_or_default());
        }
    } else {
        let _ = write!(text, "{error}");
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let _ = write!(text, ": {inner}");
            source = inner.source();
        }
    }
    text
}

fn explain_pool(error: &deadpool_postgres::PoolError) -> String {
    match error {
        deadpool_postgres::PoolError::Backend(error) => explain(error),
        deadpool_postgres::PoolError::Timeout(_) => "none became free in time".to_owned(),
        other => other.to_string(),
    }
}
