//! Giving a device to a wearer, and taking it back, at the decision's own time ([`crate::boundary`]).

use kinara_store::Transaction;
use uuid::Uuid;

use super::content::{Content, Frame, Order};
use super::{Speaker, Stop, records};
use crate::boundary::{self, Edge, Gift, Word};
use crate::timestamp;

/// Whether one of the clinic's gateways said lately that it has a link to the device.
async fn is_connected(tx: &Transaction<'_>, tenant: Uuid, hardware: &str) -> Result<bool, Stop> {
    let statement = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT FROM gateways g CROSS JOIN LATERAL jsonb_array_elements(g.state->'devices') d
             WHERE g.tenant_id = $1 AND (g.state->>'online')::bool AND d->>'hardware_id' = $2
               AND (d->>'connected')::bool)",
        )
        .await?;
    Ok(tx.query_one(&statement, &[&tenant, &hardware]).await?.get(0))
}

pub(super) async fn assigned(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    order: &Order,
) -> Result<(), Stop> {
    let user = records::wearer(tx, speaker.tenant, order.user).await?;
    if let Some(consent) = order.consent {
        records::known_consent(tx, speaker.tenant, user, consent).await?;
    }
    let hardware = boundary::turn(tx, &order.hardware).await?;
    let device = records::device(tx, speaker.tenant, &order.hardware, order.name.as_deref()).await?;
    let gift = Gift {
        hardware_id: &order.hardware,
        hardware,
        tenant: speaker.tenant,
        user,
        device,
        consent: order.consent,
        from: Edge { at: timestamp(content.at_us), frame: order.from },
        word: Word::Box { connected: is_connected(tx, speaker.tenant, &order.hardware).await? },
    };
    boundary::give(tx, &gift, speaker.now).await?;
    Ok(())
}

pub(super) async fn unassigned(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    hardware_id: &str,
    frame: Option<Frame>,
) -> Result<(), Stop> {
    let at = Edge { at: timestamp(content.at_us), frame };
    Ok(boundary::take_back(tx, speaker.tenant, hardware_id, at, speaker.now).await?)
}
