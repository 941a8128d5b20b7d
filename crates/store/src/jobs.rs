//! The queue of jobs: graphile_worker's tables, in a schema of their own under a role of its own.
//!
//! Whoever works on jobs does so in sessions that are that role and nothing else: a job's own work is done over the
//! ordinary connections.

use std::time::Duration;

use graphile_worker_database::Database;
use graphile_worker_database::tokio_postgres::TokioPostgresDatabase;

use crate::pool::{Limits, Target, pool_of};
use crate::{Error, Pool};

/// The schema of the queue's tables.
pub const SCHEMA: &str = "jobs";
const ROLE: &str = "kinara_jobs";

fn session(url: &str, program: &str, limits: &Limits) -> Result<Target, Error> {
    Ok(Target::with_limits(url, program, limits)?.with_options(&format!("-c role={ROLE}")))
}

/// A pool of sessions that are the queue's role.
pub fn pool(url: &str, program: &str, limits: &Limits) -> Result<Pool, Error> {
    pool_of(&session(url, program, limits)?, limits)
}

/// The same, for the library. Its own connections know no TLS: where the URL wants it the library gets ours, and looks for
/// new jobs by its interval, since it then has no connection to be notified over.
pub fn database(url: &str, program: &str, limits: &Limits) -> Result<Database, Error> {
    let target = session(url, program, limits)?;
    if target.is_tls_required() {
        return Ok(TokioPostgresDatabase::new(pool_of(&target, limits)?).into());
    }
    let database = TokioPostgresDatabase::from_config(target.driver(), limits.connections)
        .map_err(|error| Error::Jobs(error.to_string()))?;
    Ok(database.into())
}

/// Brings the queue's tables to what the library wants. Called with the migrations' lock held.
pub(crate) async fn migrate(admin_url: &str) -> Result<(), Error> {
    let patient = Duration::from_mins(5);
    let limits = Limits { connections: 2, statement: patient, lock: patient, ..Limits::default() };
    let database = database(admin_url, "kinara-migrate-jobs", &limits)?;
    graphile_worker_migrations::migrate(database, SCHEMA)
        .await
        .map_err(|error| Error::Jobs(error.to_string()))
}
