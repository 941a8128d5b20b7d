//! Bringing a database to this program's schema.
//!
//! The promise: [`schema`] and [`beside`] may be called by any number of programs at once, at every start. One at a time
//! works at each (an advisory lock); each migration is applied whole or not at all, once, in order; one that was applied is
//! never applied again or changed (its checksum is kept); a database that is newer than the program is left alone. There is
//! no way back: a mistake is corrected by the next migration. What would hold up writers for as long as a table is large
//! follows in steps beside (`online.rs`), each of which may be cut short and is resumed: programs work meanwhile.
//!
//! Which storage a database has is decided at the migration that makes the time-series tables, and stays.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;

use crate::pool::Target;
use crate::{Error, Pool, Work, explain, jobs, online};

/// The key of the advisory lock that migrating programs take turns by.
const LOCK: i64 = 0x6b69_6e61_7261_0001;
/// The same for the steps beside.
const BESIDE: i64 = 0x6b69_6e61_7261_0002;
/// How long one may wait for another that migrates.
const TURN_TIMEOUT: Duration = Duration::from_mins(5);
/// How often one looks whether it is its turn.
const TURN_POLL: Duration = Duration::from_millis(50);
/// The first server that has all this schema needs.
const OLDEST_SERVER: i32 = 150_000;

/// What holds the time series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Native range partitions.
    Plain,
    /// TimescaleDB hypertables, community licence.
    Timescale,
}

/// What a migration did.
#[derive(Debug, Clone)]
pub struct Migrated {
    /// The schema's version now.
    pub version: i32,
    /// Migrations applied by this call.
    pub applied: usize,
    /// The database's storage.
    pub storage: Storage,
}

struct Migration {
    version: i32,
    name: &'static str,
    plain: &'static str,
    timescale: &'static str,
}

macro_rules! migration {
    ($version:literal, $name:literal) => {
        migration!($version, $name, $name, $name)
    };
    ($version:literal, $name:literal, $plain:literal, $timescale:literal) => {
        Migration {
            version: $version,
            name: $name,
            plain: include_str!(concat!("../migrations/", $plain, ".sql")),
            timescale: include_str!(concat!("../migrations/", $timescale, ".sql")),
        }
    };
}

const MIGRATIONS: &[Migration] = &[
    migration!(1, "0001_tenancy"),
    migration!(2, "0002_fleet"),
    migration!(3, "0003_ledger"),
    migration!(4, "0004_series"),
    migration!(5, "0005_storage", "0005_storage.plain", "0005_storage.timescale"),
    migration!(6, "0006_isolation"),
    migration!(7, "0007_latest"),
    migration!(8, "0008_gaps"),
    migration!(9, "0009_desk"),
    migration!(10, "0010_pins"),
    migration!(11, "0011_rollups"),
    migration!(12, "0012_hrv"),
    migration!(13, "0013_jobs"),
    migration!(14, "0014_erasure"),
    migration!(15, "0015_chunks_and_firmware"),
    migration!(16, "0016_alerts"),
    migration!(17, "0017_inference"),
    migration!(18, "0018_erase_again"),
    migration!(19, "0019_boundaries"),
    migration!(20, "0020_one_identity"),
    migration!(21, "0021_rules_and_sessions"),
    migration!(22, "0022_rollup_by_hour"),
    migration!(23, "0023_fair_housekeeping"),
    migration!(24, "0024_bounds"),
    migration!(25, "0025_erased_whole"),
    migration!(26, "0026_told_to_its_clinic"),
    migration!(27, "0027_replays_in_turn"),
    migration!(28, "0028_intervals"),
    migration!(29, "0029_order"),
    migration!(30, "0030_named_in_parts"),
    migration!(31, "0031_shares"),
    migration!(32, "0032_claims"),
    migration!(33, "0033_days"),
    migration!(34, "0034_rules_follow"),
];

/// The migration that decides the storage.
const STORAGE_VERSION: i32 = 5;

/// The version this program's schema has.
pub const SCHEMA_VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// What all that [`migrate`] does follows from, as one word: databases that were empty and had the same done to them on the
/// same day are alike.
pub fn digest() -> String {
    let mut sha256 = Sha256::new();
    for migration in MIGRATIONS {
        for text in [migration.name, migration.plain, migration.timescale] {
            sha256.update(checksum(text));
        }
    }
    sha256.update(online::described());
    hex::encode(sha256.finalize())
}

/// Migrates the database at `admin_url`, and does what follows beside.
pub fn migrate(admin_url: &str) -> Work<'_, Result<Migrated, Error>> {
    Box::pin(async move {
        let migrated = schema(admin_url).await?;
        beside(admin_url).await?;
        Ok(migrated)
    })
}

/// Does what is left to do beside the programs: it may take as long as the tables are large, and as whoever reads them since
/// before. Gives how many steps were done.
pub fn beside(admin_url: &str) -> Work<'_, Result<usize, Error>> {
    Box::pin(async move {
        let (client, connection) = open(admin_url).await?;
        let result = beside_with(&client).await;
        drop(client);
        connection.abort();
        result
    })
}

async fn beside_with(client: &Client) -> Result<usize, Error> {
    // Nobody stands behind an index that is made concurrently: it waits for the longest dump.
    client.batch_execute("SET client_min_messages = warning; SET lock_timeout = 0").await?;
    take_turn(client, BESIDE).await?;
    let result = online::run(client).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&BESIDE]).await?;
    result
}

/// Migrates the database at `admin_url`, whose role owns the database and may create roles (the first time), or is a
/// superuser (where TimescaleDB's extension is to be made).
pub fn schema(admin_url: &str) -> Work<'_, Result<Migrated, Error>> {
    Box::pin(async move {
        let (mut client, connection) = open(admin_url).await?;
        let result = with_turn(&mut client, admin_url).await;
        drop(client);
        connection.abort();
        result
    })
}

async fn open(url: &str) -> Result<(Client, tokio::task::JoinHandle<()>), Error> {
    let mut target = Target::of(url, "kinara-migrate")?;
    target.config().connect_timeout(Duration::from_secs(10));
    let (client, connection) = target.connect().await?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(error = %explain(&error), "the migrating connection broke");
        }
    });
    Ok((client, task))
}

async fn with_turn(client: &mut Client, url: &str) -> Result<Migrated, Error> {
    let version: i32 =
        client.query_one("SELECT current_setting('server_version_num')::int", &[]).await?.get(0);
    if version < OLDEST_SERVER {
        return Err(Error::ServerTooOld(format!("{}.{}", version / 10_000, version % 10_000)));
    }
    client.batch_execute(&format!("SET lock_timeout = {}", TURN_TIMEOUT.as_millis())).await?;
    take_turn(client, LOCK).await?;
    let result = apply(client, url).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
    result
}

/// Asked again and again: a statement that waited for the lock would be an old transaction, for which whoever makes an
/// index concurrently waits.
async fn take_turn(client: &Client, of: i64) -> Result<(), Error> {
    let began = std::time::Instant::now();
    while !client.query_one("SELECT pg_try_advisory_lock($1)", &[&of]).await?.get::<_, bool>(0) {
        if began.elapsed() > TURN_TIMEOUT {
            return Err(Error::Turn(TURN_TIMEOUT));
        }
        tokio::time::sleep(TURN_POLL).await;
    }
    Ok(())
}

/// Looks whether the database has this program's schema: programs do at their start, so that a wrong one is told of once,
/// and not by everything that fails.
pub async fn check(pool: &Pool) -> Result<(), Error> {
    let client = pool.get().await?;
    let found: Option<i32> = match client.query_one("SELECT max(version) FROM kinara.migrations", &[]).await {
        Ok(row) => row.get(0),
        // Neither schema nor table, or none that this role may see.
        Err(error) if error.code().is_some_and(|code| ["42P01", "3F000", "42501"].contains(&code.code())) => {
            None
        }
        Err(error) => return Err(error.into()),
    };
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) if found > SCHEMA_VERSION => Err(Error::Newer { found, known: SCHEMA_VERSION }),
        found => Err(Error::Older { found: found.unwrap_or(0), known: SCHEMA_VERSION }),
    }
}

async fn apply(client: &mut Client, url: &str) -> Result<Migrated, Error> {
    client
        .batch_execute(
            "SET client_min_messages = warning;
             CREATE SCHEMA IF NOT EXISTS kinara;
             CREATE TABLE IF NOT EXISTS kinara.migrations (
               version int PRIMARY KEY, name text NOT NULL, storage text NOT NULL, checksum text NOT NULL,
               applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await?;
    let done = client
        .query("SELECT version, name, storage, checksum FROM kinara.migrations ORDER BY 1", &[])
        .await?;
    let mut storage = None;
    for row in &done {
        let version: i32 = row.get(0);
        let kind = if row.get::<_, &str>(2) == "timescale" { Storage::Timescale } else { Storage::Plain };
        if version == STORAGE_VERSION {
            storage = Some(kind);
        }
        let Some(known) = MIGRATIONS.iter().find(|m| m.version == version) else {
            return Err(Error::Newer { found: version, known: SCHEMA_VERSION });
        };
        if checksum(known.sql(kind)) != row.get::<_, &str>(3) {
            return Err(Error::Changed(row.get(1)));
        }
    }
    let storage = match storage {
        Some(storage) => storage,
        None => detect(url).await?,
    };
    let mut applied = 0;
    if done.len() < MIGRATIONS.len() {
        // What a former release does beside has its end first. This session's end is the end of the turn.
        take_turn(client, BESIDE).await?;
    }
    for migration in &MIGRATIONS[done.len()..] {
        let failed = |source| Error::Migration { name: migration.name.to_owned(), source };
        let sql = migration.sql(storage);
        let kind = if storage == Storage::Timescale { "timescale" } else { "plain" };
        let transaction = client.transaction().await?;
        transaction.batch_execute(sql).await.map_err(failed)?;
        transaction
            .execute(
                "INSERT INTO kinara.migrations (version, name, storage, checksum) VALUES ($1, $2, $3, $4)",
                &[&migration.version, &migration.name, &kind, &checksum(sql)],
            )
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        tracing::info!(migration = migration.name, storage = kind, "applied");
        applied += 1;
    }
    jobs::migrate(url).await?;
    Ok(Migrated { version: SCHEMA_VERSION, applied, storage })
}

impl Migration {
    fn sql(&self, storage: Storage) -> &'static str {
        match storage {
            Storage::Plain => self.plain,
            Storage::Timescale => self.timescale,
        }
    }
}

fn checksum(sql: &str) -> String {
    hex::encode(Sha256::digest(sql.as_bytes()))
}

/// Finds out which storage this database can have, and says why. Makes the extension where it is wanted.
///
/// In a session of its own: the extension's library is loaded by making it, and its licence is known only then.
async fn detect(url: &str) -> Result<Storage, Error> {
    let (mut client, connection) = open(url).await?;
    let verdict = try_timescale(&mut client).await;
    drop(client);
    connection.abort();
    match verdict {
        Ok(Ok(())) => {
            tracing::info!("time series: TimescaleDB hypertables");
            Ok(Storage::Timescale)
        }
        Ok(Err(reason)) => {
            tracing::info!(reason, "time series: native partitions");
            Ok(Storage::Plain)
        }
        Err(error) => {
            tracing::info!(reason = %explain(&error), "time series: native partitions");
            Ok(Storage::Plain)
        }
    }
}

async fn try_timescale(client: &mut Client) -> Result<Result<(), &'static str>, tokio_postgres::Error> {
    let available =
        client.query_opt("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'", &[]).await?;
    if available.is_none() {
        return Ok(Err("TimescaleDB is not installed on this server"));
    }
    let libraries: String =
        client.query_one("SELECT current_setting('shared_preload_libraries')", &[]).await?.get(0);
    if !libraries.contains("timescaledb") {
        return Ok(Err("TimescaleDB is installed, but not in shared_preload_libraries"));
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("CREATE EXTENSION IF NOT EXISTS timescaledb").await?;
    let licence: Option<String> =
        transaction.query_one("SELECT current_setting('timescaledb.license', true)", &[]).await?.get(0);
    if licence.as_deref() == Some("timescale") {
        transaction.commit().await?;
        return Ok(Ok(()));
    }
    // Leave no extension behind that nobody uses.
    transaction.rollback().await?;
    Ok(Err("this TimescaleDB is the Apache-licensed part alone, without compression and policies"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_changes_no_two_of_the_tables_that_writers_lock_one_after_another() {
        // Those before are in databases.
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > 18) {
            let changed = ["ledger", "gaps", "quarantine"].map(|table| {
                migration.plain.lines().any(|line| {
                    line.starts_with(&format!("ALTER TABLE {table} "))
                        || (line.starts_with("CREATE ") && line.contains(&format!(" ON {table} ")))
                })
            });
            let many = changed.iter().filter(|changed| **changed).count();
            assert!(many < 2, "{}: {changed:?}", migration.name);
        }
    }
}
