//! Partitions whose time is over, on plain storage.
//!
//! The promise: nobody waits for a partition to go. It is detached concurrently, which waits for whoever reads it and lets
//! everybody else pass, and dropped when nobody knows it any more. What was cut short between the two is finished the
//! next time. `DETACH … CONCURRENTLY` runs in no transaction and no function, and wants the table's owner: that is the
//! login that migrates. Without one, `ts.drop_expired()` drops what nobody uses at that moment.

use std::time::Duration;

use crate::Error;
use crate::pool::{Limits, Target};

/// How long a detachment may take: readers of the whole table are waited for, behind everybody's back.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long each older statement is waited for where a detachment that was cut short is finished: meanwhile nobody makes a
/// partition, and a writer that wants one waits ten seconds for it.
const FINISH: &str = "5s";
/// How long a partition may be waited for in front of others; it is tried again.
const DROP: &str = "200ms";

/// Drops the partitions whose time is over; gives how many went. `admin_url`: the login that migrates.
pub async fn drop_expired(admin_url: &str) -> Result<u64, Error> {
    let limits = Limits { statement: PATIENCE, ..Limits::default() };
    let (client, connection) =
        Target::with_limits(admin_url, "kinara-partitions", &limits)?.connect().await?;
    let connection = tokio::spawn(connection);
    let result = drop_with(&client).await;
    drop(client);
    connection.abort();
    result
}

async fn drop_with(client: &tokio_postgres::Client) -> Result<u64, Error> {
    client.batch_execute("SET ROLE kinara_owner").await?;
    if client.query_opt("SELECT 1 FROM ts.storage WHERE kind = 'plain'", &[]).await?.is_none() {
        let mut dropped = 0;
        while client.query_one("SELECT ts.drop_expired()", &[]).await?.get::<_, i32>(0) > 0 {
            dropped += 1;
        }
        return Ok(dropped);
    }
    let mut dropped = 0;
    for row in client.query("SELECT base, part, pending FROM ts.expired_partitions()", &[]).await? {
        let (base, part, pending): (&str, &str, Option<bool>) = (row.get(0), row.get(1), row.get(2));
        match retire(client, base, part, pending).await {
            Ok(()) => dropped += 1,
            Err(error) if is_busy(&error) => {
                tracing::info!(part, "somebody still reads a partition whose time is over; it goes later");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(dropped)
}

async fn retire(
    client: &tokio_postgres::Client,
    base: &str,
    part: &str,
    pending: Option<bool>,
) -> Result<(), tokio_postgres::Error> {
    let detach = |how: &str| format!("ALTER TABLE ts.{base} DETACH PARTITION ts.{part} {how}");
    match pending {
        // Detached, and not dropped when somebody was killed.
        None => {}
        Some(true) => within(client, FINISH, &detach("FINALIZE")).await?,
        Some(false) => within(client, "0", &detach("CONCURRENTLY")).await?,
    }
    within(client, DROP, &format!("DROP TABLE IF EXISTS ts.{part}")).await
}

/// Runs a statement that waits so long for each lock; "0": as long as a statement may take.
async fn within(client: &tokio_postgres::Client, lock: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SET lock_timeout = '{lock}'")).await?;
    client.batch_execute(sql).await
}

/// A lock or the statement's time was not had, or another program is at it.
fn is_busy(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| ["55P03", "57014", "55000", "40P01"].contains(&code.code()))
}
