//! What each gateway should be: `config`, retained and versioned, from the database.

use std::collections::{BTreeMap, HashMap};

use kinara_clock::Clock;
use kinara_protocol::envelope::{self, Command, Config, ENVELOPE_VERSION, Resend, RosterEntry, command};
use kinara_protocol::topic::{self, GatewayId, Leaf};
use kinara_store::Pool;
use rumqttc::v5::mqttbytes::QoS;
use uuid::Uuid;

use crate::link::Publisher;

const ROSTER: &str = "
    SELECT g.id, a.user_id, coalesce(u.display_name, ''), h.hardware_id, coalesce(c.version, ''),
      c.id IS NOT NULL AND (c.withdrawn_at IS NULL OR c.withdrawn_at > $1)
    FROM gateways g
      LEFT JOIN device_assignments a ON a.tenant_id = g.tenant_id AND a.valid_from <= $1
        AND (a.valid_to IS NULL OR a.valid_to > $1)
      LEFT JOIN users u ON u.id = a.user_id
      LEFT JOIN hardware h ON h.id = a.hardware_id
      LEFT JOIN consents c ON c.id = a.consent_id
    WHERE g.retired_at IS NULL
    ORDER BY g.id, h.hardware_id";

/// Seconds after which a gateway that was away need not hear it any more: it publishes everything on its own.
const RESEND_EXPIRY_S: u32 = 10;

/// Knows what was published, and publishes what changed.
#[derive(Debug, Default)]
pub struct Desired {
    published: HashMap<Uuid, Config>,
    /// Whom to tell that a bridge has subscribed: everybody, once after each connection.
    announce: bool,
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
        let client = pool.get().await?;
        let rows = client.query(ROSTER, &[&kinara_ingest::timestamp(utc_us)]).await?;
        let mut rosters: BTreeMap<Uuid, Vec<RosterEntry>> = BTreeMap::new();
        for row in rows {
            let roster = rosters.entry(row.get(0)).or_default();
            let Some(user) = row.get::<_, Option<Uuid>>(1) else { continue };
            roster.push(RosterEntry {
                user_id: user.as_bytes().to_vec(),
                display_name: row.get(2),
                hardware_id: row.get(3),
                consent_version: row.get(4),
                consent_given: row.get(5),
                ..RosterEntry::default()
            });
        }
        let announce = std::mem::take(&mut self.announce);
        for (gateway, roster) in rosters {
            if announce {
                let resend = Command {
                    version: ENVELOPE_VERSION,
                    id: 0,
                    command: Some(command::Command::Resend(Resend {})),
                };
                let topic = topic::of(GatewayId(gateway), Leaf::Command);
                publisher.publish(
                    topic,
                    QoS::AtLeastOnce,
                    false,
                    envelope::seal(&resend),
                    Some(RESEND_EXPIRY_S),
                );
            }
            let before = self.published.get(&gateway);
            if before.is_some_and(|config| config.roster == roster) {
                continue;
            }
            // Two bridges, or one that restarts, may give one content two versions; the later is the greater.
            let version = before.map_or(0, |config| config.config_version + 1).max(utc_us.unsigned_abs());
            let config = Config {
                version: ENVELOPE_VERSION,
                config_version: version,
                live_always: true,
                roster,
                ..Config::default()
            };
            let topic = topic::of(GatewayId(gateway), Leaf::Config);
            if publisher.publish(topic, QoS::AtLeastOnce, true, envelope::seal(&config), None) {
                self.published.insert(gateway, config);
            }
        }
        Ok(())
    }
}
