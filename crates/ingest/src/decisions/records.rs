//! Decisions that write a row: wearers, consents, bonds.

use kinara_store::Transaction;
use serde_json::json;
use uuid::Uuid;

use super::content::{Consent, Content};
use super::{Refusal, Speaker, Stop, reason};
use crate::{boundary, timestamp};

/// Wearers that boxes may add to a clinic and nobody has confirmed or merged yet: every box is told of wearers, and a page shows all.
const MOST_WEARERS: i64 = 5_000;
/// Devices that a clinic may have before boxes can bring no others.
const MOST_DEVICES: i64 = 20_000;
const WAITING_WEARERS: &str = "
    SELECT count(*) FROM (
      SELECT FROM users u WHERE u.tenant_id = $1 AND u.provisional AND u.merged_into IS NULL LIMIT $2) those";
const DEVICES: &str = "SELECT count(*) FROM (SELECT FROM devices d WHERE d.tenant_id = $1 LIMIT $2) those";

/// Whether a clinic has fewer of something than boxes may give it.
async fn has_room(
    tx: &Transaction<'_>,
    count: &str,
    tenant: Uuid,
    most: i64,
    what: &str,
) -> Result<(), Stop> {
    let statement = tx.prepare_cached(count).await?;
    let there: i64 = tx.query_one(&statement, &[&tenant, &most]).await?.get(0);
    if there < most {
        return Ok(());
    }
    let detail = format!("the clinic has {there} {what}, and boxes add no more");
    Err(Refusal::new(reason::TOO_MANY, detail).into())
}

/// The wearer that an id names in the clinic: one that was merged is whom they were merged into.
pub(super) async fn wearer(tx: &Transaction<'_>, tenant: Uuid, user: Uuid) -> Result<Uuid, Stop> {
    let statement = tx
        .prepare_cached(
            "SELECT coalesce(u.merged_into, u.id) FROM users u WHERE u.id = $1 AND u.tenant_id = $2
             AND NOT EXISTS (SELECT FROM tombstones t WHERE t.tenant_id = $2
                             AND t.user_id = coalesce(u.merged_into, u.id))",
        )
        .await?;
    match tx.query_opt(&statement, &[&user, &tenant]).await? {
        Some(row) => Ok(row.get(0)),
        None => Err(Refusal::new(reason::UNKNOWN_WEARER, format!("the clinic has no wearer {user}")).into()),
    }
}

pub(super) async fn wearer_added(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    user: Uuid,
    name: &str,
) -> Result<(), Stop> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO users (id, tenant_id, display_name, time_zone, provisional, added_by_gateway, created_at)
             SELECT $1, t.id, $3, t.time_zone, true, $4, $5 FROM tenants t WHERE t.id = $2 ON CONFLICT DO NOTHING",
        )
        .await?;
    let at = timestamp(content.at_us);
    let known = tx.prepare_cached("SELECT 1 FROM users WHERE id = $1").await?;
    if tx.query_opt(&known, &[&user]).await?.is_none() {
        has_room(tx, WAITING_WEARERS, speaker.tenant, MOST_WEARERS, "wearers whom nobody has confirmed")
            .await?;
    }
    tx.execute(&statement, &[&user, &speaker.tenant, &name, &speaker.gateway, &at]).await?;
    // There already: theirs, or an id that another clinic has, which is nobody here.
    wearer(tx, speaker.tenant, user).await.map(|_| ())
}

pub(super) async fn consent_recorded(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    consent: &Consent,
) -> Result<(), Stop> {
    let user = wearer(tx, speaker.tenant, consent.user).await?;
    let detail = json!({
        "by": "box", "gateway_id": speaker.gateway, "decision_id": content.id, "language": consent.language,
        "text_sha256": consent.text_sha256, "asked_by": consent.asked_by,
    });
    let statement = tx
        .prepare_cached(
            "INSERT INTO consents (id, tenant_id, user_id, version, given_at, detail)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .await?;
    let at = timestamp(content.at_us);
    let new = tx
        .execute(&statement, &[&consent.id, &speaker.tenant, &user, &consent.version, &at, &detail])
        .await?;
    if new == 0 {
        known_consent(tx, speaker.tenant, user, consent.id).await?;
    }
    Ok(())
}

/// That a wearer gave this consent.
pub(super) async fn known_consent(
    tx: &Transaction<'_>,
    tenant: Uuid,
    user: Uuid,
    consent: Uuid,
) -> Result<(), Stop> {
    let statement =
        tx.prepare_cached("SELECT 1 FROM consents WHERE id = $1 AND tenant_id = $2 AND user_id = $3").await?;
    if tx.query_opt(&statement, &[&consent, &tenant, &user]).await?.is_none() {
        let detail = format!("the wearer has given no consent {consent}");
        return Err(Refusal::new(reason::UNKNOWN_CONSENT, detail).into());
    }
    Ok(())
}

/// All that the wearer had agreed to by then is withdrawn from then on.
pub(super) async fn consent_withdrawn(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    user: Uuid,
) -> Result<(), Stop> {
    let user = wearer(tx, speaker.tenant, user).await?;
    let statement = tx
        .prepare_cached(
            "UPDATE consents SET withdrawn_at = $3 WHERE tenant_id = $1 AND user_id = $2 AND given_at <= $3
               AND (withdrawn_at IS NULL OR withdrawn_at > $3)",
        )
        .await?;
    tx.execute(&statement, &[&speaker.tenant, &user, &timestamp(content.at_us)]).await?;
    Ok(())
}

/// The clinic's own row of a device, made where it has none.
pub(super) async fn device(
    tx: &Transaction<'_>,
    tenant: Uuid,
    hardware: &str,
    name: Option<&str>,
) -> Result<Uuid, Stop> {
    let known = tx.prepare_cached("SELECT 1 FROM devices WHERE tenant_id = $1 AND hardware_id = $2").await?;
    if tx.query_opt(&known, &[&tenant, &hardware]).await?.is_none() {
        has_room(tx, DEVICES, tenant, MOST_DEVICES, "devices").await?;
    }
    let kinara = hardware.starts_with("kinara:");
    let short = hardware.get(hardware.len().saturating_sub(4)..).unwrap_or(hardware);
    let usual = format!("{} {short}", if kinara { "Kinara" } else { "Sensor" });
    let statement = tx
        .prepare_cached(
            "INSERT INTO devices AS d (id, tenant_id, device_type, hardware_id, name)
             VALUES ($1, $2, $3, $4, coalesce($5, $6))
             ON CONFLICT (tenant_id, hardware_id) DO UPDATE SET name = coalesce($5, d.name, $6) RETURNING id",
        )
        .await?;
    let kind = if kinara { "kinara" } else { "bluetooth" };
    let row = tx.query_one(&statement, &[&Uuid::now_v7(), &tenant, &kind, &hardware, &name, &usual]).await?;
    Ok(row.get(0))
}

pub(super) async fn paired(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    hardware: &str,
    how: &str,
    adapter: &[u8; 6],
) -> Result<(), Stop> {
    let at = timestamp(content.at_us);
    device(tx, speaker.tenant, hardware, None).await?;
    // A pairing that comes late says nothing of a bond that was made after it.
    let newer = tx
        .query_opt(
            "SELECT 1 FROM bonds WHERE hardware_id = $1 AND gateway_id = $2 AND ended_at IS NULL AND since > $3",
            &[&hardware, &speaker.gateway, &at],
        )
        .await?;
    if newer.is_none() {
        end_bond(tx, speaker, hardware, at).await?;
        let unwanted = is_unwanted(tx, speaker, hardware, at).await?;
        // A bond that is made anew is wanted: nobody is to take it off for what was asked of the one before.
        tx.execute(
            "UPDATE revocations SET settled_at = $3 WHERE hardware_id = $1 AND gateway_id = $2 AND settled_at IS NULL
               AND (adapter = $4 OR NOT $5)",
            &[&hardware, &speaker.gateway, &speaker.now, &adapter.as_slice(), &unwanted],
        )
        .await?;
        let bond = Uuid::now_v7();
        tx.execute(
            "INSERT INTO bonds (id, tenant_id, gateway_id, hardware_id, adapter, how, since)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &[&bond, &speaker.tenant, &speaker.gateway, &hardware, &adapter.as_slice(), &how, &at],
        )
        .await?;
        if unwanted {
            boundary::revoke(tx, boundary::Bonds::One(bond), hardware, speaker.now).await?;
        }
    }
    tx.execute(
        "UPDATE introductions SET state = 'done', secret = NULL, settled_at = $3
         WHERE hardware_id = $1 AND to_gateway = $2 AND state = 'open' AND asked_at <= $4::timestamptz + interval '1 hour'",
        &[&hardware, &speaker.gateway, &speaker.now, &at],
    )
    .await?;
    Ok(())
}

/// Whether a bond that was made at that time is to end, which is known only now: somebody asked later that the box be taken off, or
/// the device is another clinic's. One that another clinic made before it got the device is as good as one made after.
async fn is_unwanted(
    tx: &Transaction<'_>,
    speaker: Speaker,
    hardware: &str,
    at: jiff::Timestamp,
) -> Result<bool, Stop> {
    let statement = tx
        .prepare_cached(
            "WITH of_device AS (SELECT a.* FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id
               WHERE h.hardware_id = $1)
             SELECT EXISTS (SELECT FROM revocations r WHERE r.hardware_id = $1 AND r.gateway_id = $2
                 AND r.settled_at IS NULL AND r.asked_at > $4)
               OR EXISTS (SELECT FROM of_device o WHERE o.tenant_id <> $3 AND (o.valid_to IS NULL OR o.valid_to > $4)
                   AND (o.valid_from > $4 OR EXISTS (SELECT FROM of_device w WHERE w.tenant_id = $3)))
                 AND NOT EXISTS (SELECT FROM of_device w WHERE w.tenant_id = $3 AND w.valid_to IS NULL)",
        )
        .await?;
    Ok(tx.query_one(&statement, &[&hardware, &speaker.gateway, &speaker.tenant, &at]).await?.get(0))
}

pub(super) async fn forgotten(
    tx: &Transaction<'_>,
    speaker: Speaker,
    content: &Content,
    hardware: &str,
) -> Result<(), Stop> {
    end_bond(tx, speaker, hardware, timestamp(content.at_us)).await?;
    // The box has forgotten it; the wearable may not have, and another box that knows it has still to tell it.
    tx.execute(
        "UPDATE revocations r SET settled_at = $3
         WHERE r.hardware_id = $1 AND r.gateway_id = $2 AND r.settled_at IS NULL
           AND NOT EXISTS (SELECT FROM bonds b WHERE b.hardware_id = $1 AND b.ended_at IS NULL)",
        &[&hardware, &speaker.gateway, &speaker.now],
    )
    .await?;
    Ok(())
}

/// Ends the bond that the gateway had by then.
async fn end_bond(
    tx: &Transaction<'_>,
    speaker: Speaker,
    hardware: &str,
    at: jiff::Timestamp,
) -> Result<(), Stop> {
    tx.execute(
        "UPDATE bonds SET ended_at = $3
         WHERE hardware_id = $1 AND gateway_id = $2 AND ended_at IS NULL AND since <= $3",
        &[&hardware, &speaker.gateway, &at],
    )
    .await?;
    Ok(())
}
