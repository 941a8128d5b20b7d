//! Clinics, members, wearers, gateways.

use kinara_protocol::entry;
use serde_json::{Value, json};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{AdminError, audit, check_zone, find_tenant, name_tenant, printed, refused};
use crate::access::{Role, Scope};
use crate::auth::{key, password};

pub(super) async fn tenant(
    transaction: &Transaction<'_>,
    name: &str,
    slug: &str,
    zone: Option<&str>,
) -> Result<Value, AdminError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if slug.is_empty() || slug.len() > 100 || !slug.chars().all(good) {
        return refused(format!("the slug {slug:?} must be small letters, digits and hyphens"));
    }
    check_zone(transaction, zone).await?;
    let new = Uuid::now_v7();
    let row = transaction
        .query_opt(
            "INSERT INTO tenants AS t (id, name, slug, time_zone) VALUES ($1, $2, $3, coalesce($4, 'UTC'))
             ON CONFLICT (slug) DO UPDATE SET name = excluded.name, time_zone = coalesce($4, t.time_zone),
                 updated_at = now()
               WHERE (t.name, t.time_zone) IS DISTINCT FROM (excluded.name, coalesce($4, t.time_zone))
             RETURNING t.id",
            &[&new, &name, &slug, &zone],
        )
        .await?;
    let (id, changed) = match row {
        Some(row) => (row.try_get(0)?, true),
        None => (find_tenant(transaction, slug).await?, false),
    };
    if changed {
        name_tenant(transaction, id).await?;
        audit(transaction, id, "admin.tenant", slug, json!({ "name": name, "time_zone": zone })).await?;
    }
    Ok(printed(id, id, changed, json!({ "slug": slug, "created": id == new })))
}

pub(super) async fn member(
    transaction: &Transaction<'_>,
    slug: &str,
    email: &str,
    role: Role,
    password: Option<&str>,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let found = transaction
        .query_opt(
            "SELECT id, tenant_id, role, password_hash FROM members WHERE lower(email) = lower($1) FOR UPDATE",
            &[&email],
        )
        .await?;
    let (id, changed) = if let Some(row) = found {
        let id: Uuid = row.try_get(0)?;
        if row.try_get::<_, Uuid>(1)? != tenant {
            return refused(format!("{email} is a member of another clinic; one address is one login"));
        }
        let old_role: String = row.try_get(2)?;
        let old_hash: String = row.try_get(3)?;
        let new_hash = match password {
            Some(password) if !password::verify(password, &old_hash) => Some(password::hash(password)?),
            _ => None,
        };
        let changed = new_hash.is_some() || old_role != role.as_str();
        if changed {
            transaction
                .execute(
                    "UPDATE members SET role = $2, password_hash = coalesce($3, password_hash) WHERE id = $1",
                    &[&id, &role.as_str(), &new_hash],
                )
                .await?;
            transaction
                .execute(
                    "UPDATE sessions SET revoked_at = now() WHERE member_id = $1 AND revoked_at IS NULL",
                    &[&id],
                )
                .await?;
        }
        (id, changed)
    } else {
        let Some(password) = password else {
            return refused(
                "a new member needs a password: give --password-stdin and one line on standard input",
            );
        };
        let id = Uuid::now_v7();
        transaction
            .execute(
                "INSERT INTO members (id, tenant_id, email, role, password_hash) VALUES ($1, $2, $3, $4, $5)",
                &[&id, &tenant, &email, &role.as_str(), &password::hash(password)?],
            )
            .await?;
        (id, true)
    };
    if changed {
        let detail = json!({ "role": role, "password": password.is_some() });
        audit(transaction, tenant, "admin.member", &format!("member:{id}"), detail).await?;
    }
    Ok(printed(id, tenant, changed, json!({ "email": email, "role": role })))
}

/// Whether a member may log in.
pub(super) async fn let_in(
    transaction: &Transaction<'_>,
    slug: &str,
    email: &str,
    may: bool,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    // A release before took what is no address, and what cannot be seen in one: whoever has such can be shut out all the same.
    let typed = email.trim();
    let email = &entry::email(typed).unwrap_or_else(|_| typed.to_owned());
    let row = transaction
        .query_opt(
            "SELECT id FROM members WHERE tenant_id = $1 AND lower(email) IN (lower($2), lower($3))
             ORDER BY lower(email) = lower($2) DESC LIMIT 1 FOR UPDATE",
            &[&tenant, &email, &typed],
        )
        .await?;
    let Some(row) = row else { return refused(format!("the clinic {slug} has no member {email:?}")) };
    let id: Uuid = row.try_get(0)?;
    let changed = transaction
        .execute(
            "UPDATE members SET disabled_at = CASE WHEN $2 THEN NULL ELSE now() END
             WHERE id = $1 AND (disabled_at IS NULL) <> $2",
            &[&id, &may],
        )
        .await?;
    if !may {
        transaction
            .execute(
                "UPDATE sessions SET revoked_at = now() WHERE member_id = $1 AND revoked_at IS NULL",
                &[&id],
            )
            .await?;
    }
    if changed > 0 {
        let action = if may { "admin.member.enable" } else { "admin.member.disable" };
        audit(transaction, tenant, action, &format!("member:{id}"), json!({})).await?;
    }
    Ok(printed(id, tenant, changed > 0, json!({ "email": email, "disabled": !may })))
}

pub(super) struct Wearer<'a> {
    pub(super) external_id: &'a str,
    pub(super) name: &'a str,
    pub(super) time_zone: Option<&'a str>,
    pub(super) consent_version: Option<&'a str>,
}

pub(super) async fn wearer(
    transaction: &Transaction<'_>,
    slug: &str,
    wearer: &Wearer<'_>,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    check_zone(transaction, wearer.time_zone).await?;
    let row = transaction
        .query_opt(
            "INSERT INTO users AS u (id, tenant_id, external_id, display_name, time_zone)
             VALUES ($1, $2, $3, $4, coalesce($5, (SELECT time_zone FROM tenants WHERE id = $2)))
             ON CONFLICT (tenant_id, external_id) DO UPDATE
               SET display_name = excluded.display_name, time_zone = coalesce($5, u.time_zone), updated_at = now()
               WHERE (u.display_name, u.time_zone)
                 IS DISTINCT FROM (excluded.display_name, coalesce($5, u.time_zone))
             RETURNING u.id",
            &[&Uuid::now_v7(), &tenant, &wearer.external_id, &wearer.name, &wearer.time_zone],
        )
        .await?;
    let (id, mut changed): (Uuid, bool) = match row {
        Some(row) => (row.try_get(0)?, true),
        None => (find_wearer(transaction, tenant, slug, wearer.external_id).await?, false),
    };
    not_being_erased(transaction, tenant, id, wearer.external_id).await?;
    let mut consent: Option<Uuid> = None;
    if let Some(version) = wearer.consent_version {
        let running = transaction
            .query_opt(
                "SELECT id FROM consents WHERE user_id = $1 AND version = $2 AND withdrawn_at IS NULL
                 ORDER BY given_at DESC LIMIT 1",
                &[&id, &version],
            )
            .await?;
        consent = Some(if let Some(row) = running {
            row.try_get(0)?
        } else {
            let new = Uuid::now_v7();
            transaction
                .execute(
                    "INSERT INTO consents (id, tenant_id, user_id, version, detail)
                     VALUES ($1, $2, $3, $4, '{\"by\": \"operator\"}')",
                    &[&new, &tenant, &id, &version],
                )
                .await?;
            changed = true;
            new
        });
    }
    if changed {
        let detail = json!({ "external_id": wearer.external_id, "consent_version": wearer.consent_version });
        audit(transaction, tenant, "admin.wearer", &format!("user:{id}"), detail).await?;
    }
    let more = json!({ "external_id": wearer.external_id, "consent_id": consent });
    Ok(printed(id, tenant, changed, more))
}

/// A wearer of the clinic, who may be told something.
pub(super) async fn living_wearer(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    slug: &str,
    external_id: &str,
) -> Result<Uuid, AdminError> {
    let id = find_wearer(transaction, tenant, slug, external_id).await?;
    not_being_erased(transaction, tenant, id, external_id).await?;
    Ok(id)
}

/// Refuses a wearer whose row is there and will go: what is added to them would go, too. A statement after the one that locked the
/// row sees the tombstone of whoever had the lock before.
async fn not_being_erased(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    user: Uuid,
    external_id: &str,
) -> Result<(), AdminError> {
    let stone = transaction
        .query_opt("SELECT FROM tombstones WHERE tenant_id = $1 AND user_id = $2", &[&tenant, &user])
        .await?;
    if stone.is_some() {
        return refused(format!("{external_id} is being erased; again when that is done"));
    }
    Ok(())
}

/// A wearer of the clinic, whoever it is; locked, so that whoever erases them and whoever tells them something take turns.
async fn find_wearer(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    slug: &str,
    external_id: &str,
) -> Result<Uuid, AdminError> {
    let row = transaction
        .query_opt(
            "SELECT id FROM users WHERE tenant_id = $1 AND external_id = $2 FOR NO KEY UPDATE",
            &[&tenant, &external_id],
        )
        .await?;
    match row {
        Some(row) => Ok(row.try_get(0)?),
        None => refused(format!(
            "the clinic {slug} has no wearer {external_id:?}; make them with: admin wearer add"
        )),
    }
}

pub(super) async fn gateway(
    transaction: &Transaction<'_>,
    slug: &str,
    id: Uuid,
    name: &str,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let found = transaction
        .query_opt(
            "SELECT tenant_id, name, retired_at IS NOT NULL FROM gateways WHERE id = $1 FOR UPDATE",
            &[&id],
        )
        .await?;
    let changed = if let Some(row) = found {
        if row.try_get::<_, Uuid>(0)? != tenant {
            return refused(format!("the gateway {id} is another clinic's; a box that moves gets a new id"));
        }
        if row.try_get(2)? {
            return refused(format!("the gateway {id} was retired; a box that comes back gets a new id"));
        }
        let old: String = row.try_get(1)?;
        transaction.execute("UPDATE gateways SET name = $2 WHERE id = $1", &[&id, &name]).await?;
        old != name
    } else {
        transaction
            .execute("INSERT INTO gateways (id, tenant_id, name) VALUES ($1, $2, $3)", &[&id, &tenant, &name])
            .await?;
        true
    };
    if changed {
        audit(transaction, tenant, "admin.gateway", &format!("gateway:{id}"), json!({ "name": name }))
            .await?;
    }
    Ok(printed(id, tenant, changed, json!({ "name": name })))
}

pub(super) async fn trust_key(
    transaction: &Transaction<'_>,
    slug: &str,
    id: Uuid,
    key: Option<&str>,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let known = transaction
        .query_opt("SELECT 1 FROM gateways WHERE id = $1 AND tenant_id = $2 FOR UPDATE", &[&id, &tenant])
        .await?;
    if known.is_none() {
        return refused(format!("the clinic {slug} has no gateway {id}"));
    }
    let rows = transaction
        .query(
            "SELECT encode(key, 'hex'), trusted_at IS NOT NULL FROM gateway_keys
             WHERE gateway_id = $1 AND ended_at IS NULL ORDER BY seen_at",
            &[&id],
        )
        .await?;
    let keys: Vec<(String, bool)> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, AdminError>>()?;
    let trusted = keys.iter().find(|(_, trusted)| *trusted).map(|(key, _)| key.as_str());
    let waiting: Vec<&str> =
        keys.iter().filter(|(_, trusted)| !trusted).map(|(key, _)| key.as_str()).collect();
    let chosen = match (key, waiting.as_slice()) {
        (Some(key), _) if Some(key) == trusted => None,
        (Some(key), _) if waiting.contains(&key) => Some(key),
        (Some(key), _) => return refused(format!("the gateway {id} has not said the key {key}")),
        (None, []) if trusted.is_some() => None,
        (None, []) => return refused(format!("the gateway {id} has not said a key yet")),
        (None, [one]) => Some(*one),
        (None, several) => {
            return refused(format!("several keys wait; say which with --key: {}", several.join(", ")));
        }
    };
    if let Some(chosen) = chosen {
        transaction
            .execute(
                "UPDATE gateway_keys SET ended_at = now() WHERE gateway_id = $1 AND trusted_at IS NOT NULL
                   AND ended_at IS NULL",
                &[&id],
            )
            .await?;
        transaction
            .execute(
                "UPDATE gateway_keys SET trusted_at = now() WHERE gateway_id = $1 AND encode(key, 'hex') = $2",
                &[&id, &chosen],
            )
            .await?;
        audit(transaction, tenant, "admin.gateway.key", &format!("gateway:{id}"), json!({ "key": chosen }))
            .await?;
    }
    Ok(printed(id, tenant, chosen.is_some(), json!({ "key": chosen.or(trusted) })))
}

/// The tombstone is set here; the bridge's job deletes what there is, and what comes later is not taken.
pub(super) async fn erase(
    transaction: &Transaction<'_>,
    slug: &str,
    external_id: &str,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let id = find_wearer(transaction, tenant, slug, external_id).await?;
    let new = transaction
        .execute(
            "INSERT INTO tombstones (tenant_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &[&tenant, &id],
        )
        .await?;
    if new > 0 {
        audit(transaction, tenant, "admin.erase", &format!("user:{id}"), json!({})).await?;
    }
    Ok(printed(id, tenant, new > 0, json!({})))
}

pub(super) async fn add_key(
    transaction: &Transaction<'_>,
    slug: &str,
    name: &str,
    scopes: &[Scope],
    days: Option<i32>,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    // Two operators who make a key of one name take turns.
    transaction.execute("SELECT FROM tenants WHERE id = $1 FOR NO KEY UPDATE", &[&tenant]).await?;
    let found = transaction
        .query_opt(
            "SELECT id FROM api_keys WHERE tenant_id = $1 AND name = $2 AND (expires_at IS NULL OR expires_at > now())",
            &[&tenant, &name],
        )
        .await?;
    if let Some(row) = found {
        return Ok(printed(row.try_get(0)?, tenant, false, json!({ "name": name })));
    }
    let (id, secret) = (Uuid::now_v7(), key::draw());
    transaction
        .execute(
            "INSERT INTO api_keys (id, tenant_id, key_hash, name, scopes, expires_at)
             VALUES ($1, $2, $3, $4, $5, now() + make_interval(days => $6))",
            &[&id, &tenant, &key::hash(&secret), &name, &scopes, &days],
        )
        .await?;
    let detail = json!({ "name": name, "scopes": scopes, "days": days });
    audit(transaction, tenant, "admin.api_key", &format!("api_key:{id}"), detail).await?;
    Ok(printed(id, tenant, true, json!({ "name": name, "key": secret })))
}

pub(super) async fn revoke_key(
    transaction: &Transaction<'_>,
    slug: &str,
    name: &str,
) -> Result<Value, AdminError> {
    let tenant = find_tenant(transaction, slug).await?;
    let row = transaction
        .query_opt(
            "UPDATE api_keys SET expires_at = now() WHERE tenant_id = $1 AND name = $2
               AND (expires_at IS NULL OR expires_at > now()) RETURNING id",
            &[&tenant, &name],
        )
        .await?;
    if let Some(row) = row {
        let id: Uuid = row.try_get(0)?;
        audit(transaction, tenant, "admin.api_key_revoked", &format!("api_key:{id}"), json!({})).await?;
        return Ok(printed(id, tenant, true, json!({ "name": name })));
    }
    let row = transaction
        .query_opt(
            "SELECT id FROM api_keys WHERE tenant_id = $1 AND name = $2 ORDER BY created_at DESC LIMIT 1",
            &[&tenant, &name],
        )
        .await?;
    match row {
        Some(row) => Ok(printed(row.try_get(0)?, tenant, false, json!({ "name": name }))),
        None => refused(format!("the clinic {slug:?} has no key {name:?}")),
    }
}
