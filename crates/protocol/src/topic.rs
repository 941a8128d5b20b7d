//! MQTT topics, parsed into types.

use uuid::Uuid;

/// A gateway: the UUID issued at enrolment, and the common name of its client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub Uuid);

impl std::fmt::Display for GatewayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The last part of a gateway's topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// Up, QoS 1: sealed batches.
    Batch,
    /// Up, QoS 1, first in line: events and gaps.
    Event,
    /// Up, QoS 0: newest values.
    Live,
    /// Up, retained, with a last will.
    State,
    /// Up: what became of a command.
    CommandResult,
    /// Down: the bridge's acknowledgements.
    Ack,
    /// Down, retained, versioned.
    Config,
    /// Down, with message expiry.
    Command,
}

impl Leaf {
    /// All leaves.
    pub const ALL: [Self; 8] = [
        Self::Batch,
        Self::Event,
        Self::Live,
        Self::State,
        Self::CommandResult,
        Self::Ack,
        Self::Config,
        Self::Command,
    ];

    /// Its text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Event => "event",
            Self::Live => "live",
            Self::State => "state",
            Self::CommandResult => "cmd/result",
            Self::Ack => "ack",
            Self::Config => "config",
            Self::Command => "cmd",
        }
    }
}

const GATEWAYS: &str = "kinara/v1/gw/";
const TENANTS: &str = "kinara/v1/tenant/";

/// A gateway's topic.
pub fn of(gateway: GatewayId, leaf: Leaf) -> String {
    format!("{GATEWAYS}{gateway}/{}", leaf.as_str())
}

/// Reads a gateway's topic.
pub fn parse(topic: &str) -> Option<(GatewayId, Leaf)> {
    let (gateway, leaf) = topic.strip_prefix(GATEWAYS)?.split_once('/')?;
    let gateway = GatewayId(gateway.parse().ok()?);
    let leaf = Leaf::ALL.into_iter().find(|known| known.as_str() == leaf)?;
    Some((gateway, leaf))
}

/// One leaf of all gateways.
pub fn all(leaf: Leaf) -> String {
    format!("{GATEWAYS}+/{}", leaf.as_str())
}

/// The bridges' subscription to one leaf of all gateways, shared among the bridges of one `group`.
///
/// The group's name is a secret: Mosquitto checks who may read only after it has chosen a member of the group, and drops
/// the message when that one may not. Whoever knew the name could swallow everybody's messages without reading one.
pub fn shared(group: &str, leaf: Leaf) -> String {
    format!("$share/{group}/{}", all(leaf))
}

/// Live values of one tenant, checked by the bridge.
pub fn tenant_live(tenant: Uuid) -> String {
    format!("{TENANTS}{tenant}/live")
}

/// Subscription to the live values of all tenants.
pub fn all_tenants_live() -> String {
    format!("{TENANTS}+/live")
}

/// Reads a tenant's live topic.
pub fn parse_tenant_live(topic: &str) -> Option<Uuid> {
    topic.strip_prefix(TENANTS)?.strip_suffix("/live")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_is_read_back_and_others_are_not() {
        let gateway = GatewayId(Uuid::from_u128(7));
        for leaf in Leaf::ALL {
            assert_eq!(parse(&of(gateway, leaf)), Some((gateway, leaf)));
        }
        assert_eq!(parse("kinara/v1/gw/x/batch"), None);
        assert_eq!(parse(&format!("kinara/v1/gw/{gateway}/nonsense")), None);
        assert_eq!(parse_tenant_live(&tenant_live(gateway.0)), Some(gateway.0));
    }
}
