//! Erasing a person.
//!
//! The promise: once a tombstone stands, nothing of this person is written any more, and the job deletes what there is,
//! slice by slice, as often as it takes. The tombstone outlives it; after a backup from before was restored, the tombstones
//! kept elsewhere are put back ([`restore`]), and everything is deleted again.

use jiff::Timestamp;
use kinara_store::Pool;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;

/// Days of one wearer that are deleted in a transaction.
const DAYS: i32 = 2;

/// An erased person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The clinic.
    pub tenant: Uuid,
    /// Who they were.
    pub user: Uuid,
    /// Since when.
    pub erased_at: Timestamp,
}

/// Deletes what there is of a wearer who has a tombstone; gives how many rows that were.
pub async fn erase(pool: &Pool, tenant: Uuid, user: Uuid) -> Result<u64, Error> {
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT ts.erase($1, $2, $3)").await?;
    let mut total = 0;
    loop {
        let gone: i64 = client.query_one(&statement, &[&tenant, &user, &DAYS]).await?.get(0);
        if gone == 0 {
            return Ok(total);
        }
        total += gone.unsigned_abs();
    }
}

/// All tombstones there are: to be kept beside the backups, not only in them.
pub async fn tombstones(pool: &Pool) -> Result<Vec<Tombstone>, Error> {
    let client = pool.get().await?;
    let rows = client
        .query("SELECT tenant_id, user_id, erased_at FROM tombstones ORDER BY erased_at, user_id", &[])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Tombstone { tenant: row.get(0), user: row.get(1), erased_at: row.get(2) })
        .collect())
}

/// Puts tombstones back, those of clinics that are there; the database makes a job of each new one. Gives how many were
/// new.
pub async fn restore(pool: &Pool, tombstones: &[Tombstone]) -> Result<u64, Error> {
    let client = pool.get().await?;
    let mut new = 0;
    for stone in tombstones {
        new += client
            .execute(
                "INSERT INTO tombstones (tenant_id, user_id, erased_at)
                 SELECT id, $2, $3 FROM tenants WHERE id = $1 ON CONFLICT DO NOTHING",
                &[&stone.tenant, &stone.user, &stone.erased_at],
            )
            .await?;
    }
    Ok(new)
}

/// Erases everybody who has a tombstone again: what a restored backup brought back, or a slice that was cut short.
pub async fn erase_all(pool: &Pool) -> Result<u64, Error> {
    let mut total = 0;
    for stone in tombstones(pool).await? {
        total += erase(pool, stone.tenant, stone.user).await?;
    }
    Ok(total)
}
