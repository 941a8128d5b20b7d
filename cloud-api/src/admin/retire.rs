//! Taking a gateway out of service.
//!
//! The promise: from this commit on the bridge takes nothing of it (batches, signed decisions, states, live values), tells it
//! nothing, and empties the configuration that the broker kept for it. Its bonds are to be taken off the wearables by the
//! clinic's other boxes. What it brought before stays.

use serde_json::{Value, json};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{AdminError, audit, find_tenant, printed, refused};

pub(super) async fn gateway(
    transaction: &Transaction<'_>,
    slug: &str,
    id: Uuid,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let row = transaction
        .query_opt(
            // What it says it holds may be any number.
            "SELECT retired_at IS NOT NULL, id || '-' || (state ->> 'buffer'),
               least(coalesce((state ->> 'buffered_frames')::numeric, 0), 9223372036854775807)::int8
             FROM gateways WHERE id = $1 AND tenant_id = $2 FOR UPDATE",
            &[&id, &tenant],
        )
        .await?;
    let Some(row) = row else { return refused(format!("the clinic {slug} has no gateway {id}")) };
    let (was_retired, client_id, held): (bool, Option<String>, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if !was_retired {
        retire(transaction, id).await?;
        audit(transaction, tenant, "admin.gateway.retire", &format!("gateway:{id}"), json!({ "held": held }))
            .await?;
        if held > 0 {
            tracing::warn!(%id, frames = held, "the gateway said that it still holds frames; they are not taken");
        }
    }
    Ok(printed(id, tenant, !was_retired, json!({ "client_id": client_id, "held_frames": held })))
}

async fn retire(transaction: &Transaction<'_>, id: Uuid) -> Result<(), AdminError> {
    // Its keys end with it, whoever has them.
    for sql in [
        "UPDATE gateways SET retired_at = now() WHERE id = $1",
        "UPDATE gateway_keys SET ended_at = now() WHERE gateway_id = $1 AND ended_at IS NULL",
        "UPDATE introductions SET state = 'expired', secret = NULL, settled_at = now()
         WHERE state = 'open' AND (from_gateway = $1 OR to_gateway = $1)",
        "INSERT INTO revocations (id, tenant_id, bond_id, hardware_id, gateway_id, adapter, expires_at)
         SELECT gen_random_uuid(), tenant_id, id, hardware_id, gateway_id, adapter, now() + interval '30 days'
         FROM bonds WHERE gateway_id = $1 AND ended_at IS NULL ON CONFLICT DO NOTHING",
        // It has no link any more; another box may take the device.
        "UPDATE devices SET link = link || '{\"connected\": false}' WHERE link ->> 'gateway_id' = $1::uuid::text",
    ] {
        transaction.execute(sql, &[&id]).await?;
    }
    Ok(())
}
