//! Transactions of one clinic.
//!
//! The promise: inside a transaction from [`with_tenant`] a program that connects as `kinara_app` sees and changes that
//! tenant's rows and no other's, whatever its SQL says. The tenant is set for the transaction alone: a connection that
//! goes back to the pool carries nothing over, and one without a tenant sees nothing.

use deadpool_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::Error;

/// Opens a transaction that is scoped to `tenant`.
pub async fn with_tenant(client: &mut Client, tenant: Uuid) -> Result<Transaction<'_>, Error> {
    let transaction = client.transaction().await?;
    let statement = transaction.prepare_cached("SELECT set_config('kinara.tenant', $1, true)").await?;
    transaction.execute(&statement, &[&tenant.to_string()]).await?;
    Ok(transaction)
}
