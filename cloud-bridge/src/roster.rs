//! What each gateway should be, and know of its clinic: `config`, retained and versioned, from the database.
//!
//! The promise: a box that has its configuration can do a day's work with no cloud at hand: it knows the clinic's wearers
//! and their consents, who may use its page, what a wearer is asked to agree to, whom it is to get to know and whom to
//! take off. The version changes with the content and with nothing else, whichever bridge publishes it: it is kept in the
//! database beside the content's digest. A secret is in it for as long as it is of use and no longer; a
//! gateway that is retired has none any more.
//!
//! A look reads what all clinics have and hashes it once a clinic, on a thread of its own; only for gateways of which
//! something changed is a configuration made, encoded and compressed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use kinara_clock::Clock;
use kinara_protocol::envelope::{
    self, Command, Config, ConsentText, ENVELOPE_VERSION, Introduction, MAX_SEALED, Resend, Revocation,
    RosterEntry, Staff, command,
};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_store::{Client, Pool};
use rumqttc::v5::mqttbytes::QoS;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::link::Publisher;

/// Wearers that a box is told of at most: those who wear a device first, then the newest.
const MOST_WEARERS: i64 = 3_000;
/// Seconds after which a gateway that was away need not hear it any more: it publishes everything on its own.
const RESEND_EXPIRY_S: u32 = 10;

const GATEWAYS: &str = "
    SELECT g.id, g.tenant_id, t.name FROM gateways g JOIN tenants t ON t.id = g.tenant_id
    WHERE g.retired_at IS NULL ORDER BY g.id";
const RETIRED: &str = "SELECT id FROM gateways WHERE retired_at IS NOT NULL ORDER BY id";
/// Every wearer, once for each device they wear. The consent is the assignment's; of one who wears none, the last given.
const WEARERS: &str = "
    SELECT * FROM (
      SELECT u.tenant_id, u.id, coalesce(u.display_name, ''), coalesce(h.hardware_id, ''), u.provisional,
        coalesce(u.external_id, ''), c.id, coalesce(c.version, ''),
        c.id IS NOT NULL AND (c.withdrawn_at IS NULL OR c.withdrawn_at > $1),
        row_number() OVER (PARTITION BY u.tenant_id ORDER BY h.hardware_id NULLS LAST, u.id DESC) AS place
      FROM users u
        LEFT JOIN device_assignments a ON a.tenant_id = u.tenant_id AND a.user_id = u.id AND a.valid_from <= $1
          AND (a.valid_to IS NULL OR a.valid_to > $1)
        LEFT JOIN hardware h ON h.id = a.hardware_id
        LEFT JOIN LATERAL (
          SELECT k.id, k.version, k.withdrawn_at FROM consents k
          WHERE k.tenant_id = u.tenant_id AND k.user_id = u.id AND (a.id IS NULL OR k.id = a.consent_id)
          ORDER BY k.given_at DESC, k.id LIMIT 1) c ON true
      WHERE u.merged_into IS NULL
        AND NOT EXISTS (SELECT FROM tombstones t WHERE t.tenant_id = u.tenant_id AND t.user_id = u.id)
        AND EXISTS (SELECT FROM gateways g WHERE g.tenant_id = u.tenant_id AND g.retired_at IS NULL)) w
    WHERE place <= $2 ORDER BY tenant_id, place";
const STAFF: &str =
    "SELECT tenant_id, member_id, name, verifier FROM box_staff ORDER BY tenant_id, member_id";
const TEXTS: &str = "
    SELECT DISTINCT ON (tenant_id, language) tenant_id, version, language, text FROM consent_texts
    ORDER BY tenant_id, language, created_at DESC, version DESC";
const INTRODUCTIONS: &str = "
    SELECT g.id, i.id, i.hardware_id, i.secret, i.expires_at, g.id = i.from_gateway
    FROM introductions i JOIN gateways g ON g.id IN (i.from_gateway, i.to_gateway)
    WHERE i.state = 'open' AND i.expires_at > $1 ORDER BY i.id";
/// Told to the gateway that is to be taken off, and to those that can do it: of its own clinic, and of the one that has the
/// wearable now.
const REVOCATIONS: &str = "
    SELECT DISTINCT g.id, r.id, r.hardware_id, r.adapter
    FROM revocations r JOIN gateways g ON g.id = r.gateway_id
      OR (EXISTS (SELECT FROM bonds b WHERE b.gateway_id = g.id AND b.hardware_id = r.hardware_id AND b.ended_at IS NULL)
        AND (g.tenant_id = r.tenant_id
          OR EXISTS (SELECT FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id
                     WHERE h.hardware_id = r.hardware_id AND a.tenant_id = g.tenant_id AND a.valid_from <= $1
                       AND (a.valid_to IS NULL OR a.valid_to > $1))))
    WHERE r.settled_at IS NULL AND r.expires_at > $1 ORDER BY r.id";
const VERSION: &str = "
    INSERT INTO gateway_configs AS c (gateway_id, tenant_id, version, digest, changed_at)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (gateway_id) DO UPDATE SET digest = excluded.digest,
      version = CASE WHEN c.digest = excluded.digest THEN c.version
        ELSE greatest(c.version + 1, excluded.version) END,
      changed_at = CASE WHEN c.digest = excluded.digest THEN c.changed_at ELSE excluded.changed_at END
    RETURNING version";

/// Knows what was published, and publishes what changed.
#[derive(Debug, Default)]
pub struct Desired {
    /// The [mark](Told::mark) of what each gateway was told last.
    published: HashMap<Uuid, [u8; 32]>,
    /// Whom to tell that a bridge has subscribed: everybody, once after each connection.
    announce: bool,
}

/// What all gateways of a clinic are told.
#[derive(Debug, Default)]
struct Clinic {
    wearers: Vec<RosterEntry>,
    staff: Vec<Staff>,
    texts: Vec<ConsentText>,
}

impl Clinic {
    fn mark(&self) -> [u8; 32] {
        let config = Config {
            roster: self.wearers.clone(),
            staff: self.staff.clone(),
            consent_texts: self.texts.clone(),
            ..Config::default()
        };
        envelope::digest(&prost::Message::encode_to_vec(&config))
    }
}

/// What one gateway is told.
struct Told {
    gateway: Uuid,
    tenant: Uuid,
    clinic: Arc<Clinic>,
    /// What it alone is told: name of the clinic, introductions, revocations.
    own: Config,
    /// Changes when anything of this does.
    mark: [u8; 32],
}

impl Told {
    /// The configuration, and the digest of its content.
    fn config(&self) -> (Config, [u8; 32]) {
        let config = within_limits(Config {
            version: ENVELOPE_VERSION,
            config_version: 0,
            live_always: true,
            roster: self.clinic.wearers.clone(),
            staff: self.clinic.staff.clone(),
            consent_texts: self.clinic.texts.clone(),
            ..self.own.clone()
        });
        let digest = envelope::digest(&prost::Message::encode_to_vec(&config));
        (config, digest)
    }
}

/// Marks what gateways are told; each clinic's part once.
fn marked(gateways: Vec<(Uuid, Uuid, Config)>, clinics: BTreeMap<Uuid, Clinic>) -> Vec<Told> {
    let clinics: BTreeMap<Uuid, (Arc<Clinic>, [u8; 32])> = clinics
        .into_iter()
        .map(|(tenant, clinic)| {
            let mark = clinic.mark();
            (tenant, (Arc::new(clinic), mark))
        })
        .collect();
    let nothing = (Arc::new(Clinic::default()), Clinic::default().mark());
    let tell = |(gateway, tenant, own): (Uuid, Uuid, Config)| {
        let (clinic, part) = clinics.get(&tenant).unwrap_or(&nothing);
        let mut all = prost::Message::encode_to_vec(&own);
        all.extend(part);
        Told { gateway, tenant, clinic: Arc::clone(clinic), mark: envelope::digest(&all), own }
    };
    gateways.into_iter().map(tell).collect()
}

impl Desired {
    /// A new connection: its broker may have forgotten what was published, and what gateways published while nobody
    /// was subscribed has reached nobody.
    pub fn connected(&mut self) {
        self.published.clear();
        self.announce = true;
    }

    /// Publishes the configurations that are not what was published last.
    pub async fn refresh(
        &mut self,
        pool: &Pool,
        clock: &dyn Clock,
        publisher: &Publisher,
    ) -> Result<(), kinara_ingest::Error> {
        let utc_us = clock.utc_us();
        let now = kinara_ingest::timestamp(utc_us);
        let client = pool.get().await?;
        let clinics = clinics(&client, now).await?;
        let (mut introductions, mut revocations) =
            (introductions(&client, now).await?, revocations(&client, now).await?);
        self.empty_retired(&client, publisher).await?;
        let rows = client.query(GATEWAYS, &[]).await?;
        let announce = std::mem::take(&mut self.announce);
        let mut gateways = Vec::with_capacity(rows.len());
        for row in rows {
            let (gateway, tenant): (Uuid, Uuid) = (row.get(0), row.get(1));
            if announce {
                announce_to(gateway, publisher);
            }
            let own = Config {
                introductions: introductions.remove(&gateway).unwrap_or_default(),
                revocations: revocations.remove(&gateway).unwrap_or_default(),
                clinic_name: row.get(2),
                ..Config::default()
            };
            gateways.push((gateway, tenant, own));
        }
        let told = off_thread(move || marked(gateways, clinics)).await?;
        for told in told {
            if self.published.get(&told.gateway) == Some(&told.mark) {
                continue;
            }
            let (gateway, tenant, mark) = (told.gateway, told.tenant, told.mark);
            let (mut config, digest) = off_thread(move || told.config()).await?;
            let version: i64 = client
                .query_one(VERSION, &[&gateway, &tenant, &utc_us, &digest.as_slice(), &now])
                .await?
                .get(0);
            config.config_version = version.unsigned_abs();
            let topic = topic::of(GatewayId(gateway), Leaf::Config);
            let sealed = off_thread(move || envelope::seal(&config)).await?;
            if publisher.publish(topic, QoS::AtLeastOnce, true, sealed, None) {
                self.published.insert(gateway, mark);
            }
        }
        Ok(())
    }
}

/// Encodes and compresses on a thread that nobody waits for.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, kinara_ingest::Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        kinara_ingest::Error::Foreign(format!("a configuration that cannot be made: {error}"))
    })
}

impl Desired {
    /// What the broker kept for a retired gateway goes: it names every wearer, and has everybody's PIN verifier. So does what
    /// the gateway itself said last: every bridge would be given it for ever.
    async fn empty_retired(
        &mut self,
        client: &Client,
        publisher: &Publisher,
    ) -> Result<(), kinara_ingest::Error> {
        let nothing = envelope::digest(&[]);
        for row in client.query(RETIRED, &[]).await? {
            let gateway: Uuid = row.get(0);
            if self.published.get(&gateway) == Some(&nothing) {
                continue;
            }
            let empty = |leaf| {
                let topic = topic::of(GatewayId(gateway), leaf);
                publisher.publish(topic, QoS::AtLeastOnce, true, Vec::new(), None)
            };
            if empty(Leaf::State) && empty(Leaf::Config) {
                self.published.insert(gateway, nothing);
            }
        }
        Ok(())
    }
}

fn announce_to(gateway: Uuid, publisher: &Publisher) {
    let resend =
        Command { version: ENVELOPE_VERSION, id: 0, command: Some(command::Command::Resend(Resend {})) };
    let topic = topic::of(GatewayId(gateway), Leaf::Command);
    publisher.publish(topic, QoS::AtLeastOnce, false, envelope::seal(&resend), Some(RESEND_EXPIRY_S));
}

/// A configuration that fits a message. Who wears nothing now is left out first.
fn within_limits(mut config: Config) -> Config {
    while envelope::seal(&config).len() > MAX_SEALED && !config.roster.is_empty() {
        let fewer = config.roster.len() / 2;
        tracing::warn!(clinic = config.clinic_name, fewer, "more wearers than a box can be told of");
        config.roster.truncate(fewer);
    }
    config
}

async fn clinics(client: &Client, now: Timestamp) -> Result<BTreeMap<Uuid, Clinic>, kinara_ingest::Error> {
    let mut clinics: BTreeMap<Uuid, Clinic> = BTreeMap::new();
    let (wearers, staff, texts) = (
        client.prepare_cached(WEARERS).await?,
        client.prepare_cached(STAFF).await?,
        client.prepare_cached(TEXTS).await?,
    );
    for row in client.query(&wearers, &[&now, &MOST_WEARERS]).await? {
        clinics.entry(row.get(0)).or_default().wearers.push(wearer(&row));
    }
    for row in client.query(&staff, &[]).await? {
        clinics.entry(row.get(0)).or_default().staff.push(Staff {
            member_id: bytes(row.get(1)),
            name: row.get(2),
            pin_verifier: row.get(3),
        });
    }
    for row in client.query(&texts, &[]).await? {
        clinics.entry(row.get(0)).or_default().texts.push(ConsentText {
            version: row.get(1),
            language: row.get(2),
            text: row.get(3),
        });
    }
    Ok(clinics)
}

fn wearer(row: &Row) -> RosterEntry {
    RosterEntry {
        user_id: bytes(row.get(1)),
        display_name: row.get(2),
        hardware_id: row.get(3),
        provisional: row.get(4),
        external_id: row.get(5),
        consent_id: row.get::<_, Option<Uuid>>(6).map(bytes).unwrap_or_default(),
        consent_version: row.get(7),
        consent_given: row.get(8),
    }
}

fn bytes(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

async fn introductions(
    client: &Client,
    now: Timestamp,
) -> Result<HashMap<Uuid, Vec<Introduction>>, kinara_ingest::Error> {
    let mut by_gateway: HashMap<Uuid, Vec<Introduction>> = HashMap::new();
    for row in client.query(INTRODUCTIONS, &[&now]).await? {
        by_gateway.entry(row.get(0)).or_default().push(Introduction {
            id: bytes(row.get(1)),
            hardware_id: row.get(2),
            secret: row.get(3),
            expires_utc_us: row.get::<_, Timestamp>(4).as_microsecond(),
            admits: row.get(5),
        });
    }
    Ok(by_gateway)
}

async fn revocations(
    client: &Client,
    now: Timestamp,
) -> Result<HashMap<Uuid, Vec<Revocation>>, kinara_ingest::Error> {
    let mut by_gateway: HashMap<Uuid, Vec<Revocation>> = HashMap::new();
    for row in client.query(REVOCATIONS, &[&now]).await? {
        by_gateway
            .entry(row.get(0))
            .or_default()
            .push(Revocation { hardware_id: row.get(2), bond: row.get(3) });
    }
    Ok(by_gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clinic(wearers: u128) -> Clinic {
        let wearer = |n| RosterEntry { user_id: bytes(Uuid::from_u128(n)), ..RosterEntry::default() };
        Clinic { wearers: (0..wearers).map(wearer).collect(), ..Clinic::default() }
    }

    fn marks(clinics: [u128; 2], name: &str) -> Vec<[u8; 32]> {
        let id = Uuid::from_u128;
        let own = |name: &str| Config { clinic_name: name.to_owned(), ..Config::default() };
        let gateways =
            vec![(id(11), id(1), own("One")), (id(12), id(1), own(name)), (id(21), id(2), own("Two"))];
        let clinics = [(id(1), clinic(clinics[0])), (id(2), clinic(clinics[1]))].into();
        marked(gateways, clinics).iter().map(|told| told.mark).collect()
    }

    #[test]
    fn a_clinic_that_changes_changes_what_its_own_gateways_are_told_and_no_others() {
        let before = marks([3, 5], "One");
        assert_eq!(before, marks([3, 5], "One"));
        let changed = |after: &[[u8; 32]]| -> Vec<bool> {
            before.iter().zip(after).map(|(before, after)| before != after).collect()
        };
        assert_eq!(changed(&marks([4, 5], "One")), [true, true, false]);
        assert_eq!(changed(&marks([3, 4], "One")), [false, false, true]);
        assert_eq!(changed(&marks([3, 5], "Another")), [false, true, false]);
    }
}
