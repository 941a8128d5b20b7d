//! What the cloud could not read, for whoever looks after the box.

use super::{Actor, Desk};
use crate::store::{Name, Parked, StoreError};

impl Desk {
    /// The batches that the cloud could not read.
    pub async fn parked(&self) -> Result<Vec<Parked>, StoreError> {
        self.inner.store.parked().await
    }

    /// Has them all tried again. Gives how many.
    pub async fn retry_parked(&self, by: &Actor) -> Result<usize, StoreError> {
        let again = self.inner.store.retry_parked().await?;
        tracing::info!(by = by.name(), again, "parked batches are tried again");
        Ok(again)
    }

    /// A copy of one, as it is published; nothing when none is parked under this name.
    pub async fn parked_payload(&self, by: &Actor, name: Name) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.inner.store.parked_payload(name).await?;
        tracing::info!(
            by = by.name(),
            ?name,
            found = found.is_some(),
            "a copy of a parked batch is asked for"
        );
        Ok(found)
    }
}
