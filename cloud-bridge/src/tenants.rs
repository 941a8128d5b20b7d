//! Whose gateway is it, for the fairness of queues.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kinara_store::Pool;
use uuid::Uuid;

/// A gateway that is retired is nobody's: what is sent in its name takes nothing of its former clinic's share.
const ENROLLED: &str = "SELECT id, tenant_id FROM gateways WHERE retired_at IS NULL";

/// The clinics of gateways.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants(Arc<Mutex<HashMap<Uuid, Uuid>>>);

impl Tenants {
    /// A gateway's clinic, where it is known.
    pub fn of(&self, gateway: Uuid) -> Option<Uuid> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&gateway).copied()
    }

    /// Asks the database anew.
    pub async fn refresh(&self, pool: &Pool) -> Result<(), kinara_ingest::Error> {
        let client = pool.get().await?;
        let rows = client.query(ENROLLED, &[]).await?;
        let all = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kinara_store::{connect, migrate};
    use kinara_test_postgres::{Options, PREPARED, Postgres};

    use super::*;

    const CLINIC: Uuid = Uuid::from_u128(1);
    const STOLEN: Uuid = Uuid::from_u128(2);
    const OTHER: Uuid = Uuid::from_u128(3);

    #[tokio::test]
    async fn a_gateway_that_is_retired_is_no_clinics_any_more() {
        let migrated = async |url: String| migrate(&url).await.map(drop);
        let server = Postgres::prepared(Options::fast(), &migrate::digest(), migrated).await.unwrap();
        let pool =
            connect(&server.superuser_url(PREPARED), "test", &kinara_store::Limits::default()).unwrap();
        let client = pool.get().await.unwrap();
        client
            .batch_execute(&format!(
                "INSERT INTO tenants (id, name, slug) VALUES ('{CLINIC}', 'One', 'one');
                 INSERT INTO gateways (id, tenant_id, name) VALUES ('{STOLEN}', '{CLINIC}', 'A'), ('{OTHER}', '{CLINIC}', 'B')"
            ))
            .await
            .unwrap();
        let tenants = Tenants::default();
        tenants.refresh(&pool).await.unwrap();
        assert_eq!([tenants.of(STOLEN), tenants.of(OTHER)], [Some(CLINIC); 2]);
        client
            .batch_execute(&format!("UPDATE gateways SET retired_at = now() WHERE id = '{STOLEN}'"))
            .await
            .unwrap();
        tenants.refresh(&pool).await.unwrap();
        assert_eq!([tenants.of(STOLEN), tenants.of(OTHER)], [None, Some(CLINIC)]);
    }
}
