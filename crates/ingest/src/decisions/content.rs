//! A decision, read: every id an id, every text within what the database has room for.

use kinara_protocol::entry;
use kinara_protocol::envelope::{self, Decision, decision};
use kinara_protocol::frame::Epoch;
use kinara_protocol::hardware::HardwareId;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Refusal, reason};
use crate::plan::{NOT_BEFORE_US, Window};

/// A decision that can be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub id: Uuid,
    /// When, in microseconds since 1970, by the box's clock,
    pub at_us: i64,
    /// and how far that may be off, in microseconds.
    pub uncertainty_us: i64,
    pub actor: Actor,
    pub what: What,
}

/// Who decided, as the box says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Actor {
    pub kind: String,
    pub name: String,
    pub member: Option<Uuid>,
}

/// The first frame on the later side of a boundary.
pub(super) type Frame = (Epoch, u32);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    WearerAdded { user: Uuid, name: String },
    ConsentRecorded(Consent),
    ConsentWithdrawn { user: Uuid },
    Assigned(Order),
    Unassigned { hardware: String, to: Option<Frame> },
    Paired { hardware: String, how: String, adapter: [u8; 6] },
    Forgotten { hardware: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Consent {
    pub id: Uuid,
    pub user: Uuid,
    pub version: String,
    pub language: String,
    pub text_sha256: String,
    pub asked_by: String,
}

/// A device is given to a wearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub hardware: String,
    pub user: Uuid,
    pub consent: Option<Uuid>,
    pub from: Option<Frame>,
    pub name: Option<String>,
}

impl What {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::WearerAdded { .. } => "wearer_added",
            Self::ConsentRecorded(_) => "consent_recorded",
            Self::ConsentWithdrawn { .. } => "consent_withdrawn",
            Self::Assigned(_) => "assigned",
            Self::Unassigned { .. } => "unassigned",
            Self::Paired { .. } => "paired",
            Self::Forgotten { .. } => "forgotten",
        }
    }

    pub fn hardware(&self) -> Option<&str> {
        match self {
            Self::Assigned(Order { hardware, .. })
            | Self::Unassigned { hardware, .. }
            | Self::Paired { hardware, .. }
            | Self::Forgotten { hardware } => Some(hardware),
            Self::WearerAdded { .. } | Self::ConsentRecorded(_) | Self::ConsentWithdrawn { .. } => None,
        }
    }

    pub fn user(&self) -> Option<Uuid> {
        match self {
            Self::WearerAdded { user, .. } | Self::ConsentWithdrawn { user } => Some(*user),
            Self::ConsentRecorded(consent) => Some(consent.user),
            Self::Assigned(order) => Some(order.user),
            Self::Unassigned { .. } | Self::Paired { .. } | Self::Forgotten { .. } => None,
        }
    }

    /// What a page shows of it beside the columns of the log.
    pub fn detail(&self) -> Value {
        let frame = |frame: &Option<Frame>| frame.map(|(epoch, seq)| format!("{epoch}:{seq}"));
        match self {
            Self::WearerAdded { name, .. } => json!({ "display_name": name }),
            Self::ConsentRecorded(consent) => json!({
                "consent_id": consent.id, "version": consent.version, "language": consent.language,
                "text_sha256": consent.text_sha256, "asked_by": consent.asked_by,
            }),
            Self::Assigned(order) => json!({ "consent_id": order.consent, "from_frame": frame(&order.from) }),
            Self::Unassigned { to, .. } => json!({ "to_frame": frame(to) }),
            Self::Paired { how, adapter, .. } => json!({ "how": how, "adapter": hex(adapter) }),
            Self::ConsentWithdrawn { .. } | Self::Forgotten { .. } => json!({}),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The device that a decision names, whether or not the rest of it can be understood.
pub(super) fn named_hardware(decision: &Decision) -> &str {
    match &decision.what {
        Some(decision::What::Assigned(what)) => &what.hardware_id,
        Some(decision::What::Unassigned(what)) => &what.hardware_id,
        Some(decision::What::Paired(what)) => &what.hardware_id,
        Some(decision::What::Forgotten(what)) => &what.hardware_id,
        _ => "",
    }
}

/// The wearer that a decision names, whether or not the rest of it can be understood.
pub(super) fn named_user(decision: &Decision) -> Option<Uuid> {
    let bytes = match decision.what.as_ref()? {
        decision::What::WearerAdded(what) => &what.user_id,
        decision::What::ConsentRecorded(what) => &what.user_id,
        decision::What::ConsentWithdrawn(what) => &what.user_id,
        decision::What::Assigned(what) => &what.user_id,
        _ => return None,
    };
    Uuid::from_slice(bytes).ok()
}

/// Reads a decision whose signature is good.
pub(super) fn read(decision: &Decision, window: Window) -> Result<Content, Refusal> {
    let actor = decision.actor.as_ref().ok_or_else(|| malformed("nobody is named who decided"))?;
    let content = Content {
        id: id(&decision.id, "its own id")?,
        at_us: decision.at_utc_us,
        uncertainty_us: i64::try_from(decision.uncertainty_us).unwrap_or(i64::MAX),
        actor: Actor {
            kind: text(&actor.kind, 20, "the actor's kind")?,
            name: text(&actor.name, 255, "the actor's name")?,
            member: optional(&actor.member_id, "the member")?,
        },
        what: what(decision)?,
    };
    if content.at_us < NOT_BEFORE_US || content.at_us > window.newest_us {
        return Err(Refusal::new(
            reason::TIMESTAMP,
            "decided at a time that cannot be; is the box's clock right?",
        ));
    }
    Ok(content)
}

fn what(decision: &Decision) -> Result<What, Refusal> {
    use decision::What as Said;
    let said = decision.what.as_ref().ok_or_else(|| malformed("a decision of a newer box, or none"))?;
    Ok(match said {
        Said::WearerAdded(added) => What::WearerAdded {
            user: id(&added.user_id, "the wearer")?,
            name: entry::name(&added.display_name, entry::LONGEST_NAME)
                .map_err(|_| malformed("the wearer's name"))?,
        },
        Said::ConsentRecorded(consent) => What::ConsentRecorded(Consent {
            id: id(&consent.consent_id, "the consent")?,
            user: id(&consent.user_id, "the wearer")?,
            version: some(&consent.version, 50, "the consent's version")?,
            language: text(&consent.language, 10, "the language")?,
            text_sha256: if consent.text_sha256.len() == 32 {
                hex(&consent.text_sha256)
            } else {
                return Err(malformed("the digest of the text that was shown"));
            },
            asked_by: text(&consent.asked_by, 255, "who asked")?,
        }),
        Said::ConsentWithdrawn(withdrawn) => {
            What::ConsentWithdrawn { user: id(&withdrawn.user_id, "the wearer")? }
        }
        Said::Assigned(order) => What::Assigned(Order {
            hardware: hardware(&order.hardware_id)?,
            user: id(&order.user_id, "the wearer")?,
            consent: optional(&order.consent_id, "the consent")?,
            from: order.from.as_ref().map(frame),
            name: (!order.device_name.is_empty())
                .then(|| text(&order.device_name, 255, "the device's name"))
                .transpose()?,
        }),
        Said::Unassigned(ended) => {
            What::Unassigned { hardware: hardware(&ended.hardware_id)?, to: ended.to.as_ref().map(frame) }
        }
        Said::Paired(paired) => What::Paired {
            hardware: hardware(&paired.hardware_id)?,
            how: some(&paired.how, 20, "how they were paired")?,
            adapter: paired.bond.as_slice().try_into().map_err(|_| malformed("the adapter's address"))?,
        },
        Said::Forgotten(forgotten) => What::Forgotten { hardware: hardware(&forgotten.hardware_id)? },
    })
}

fn frame(boundary: &envelope::FrameBoundary) -> Frame {
    (Epoch(boundary.epoch), boundary.seq)
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(reason::MALFORMED, format!("cannot be understood: {what}"))
}

fn id(bytes: &[u8], what: &str) -> Result<Uuid, Refusal> {
    Uuid::from_slice(bytes).ok().filter(|id| !id.is_nil()).ok_or_else(|| malformed(what))
}

fn optional(bytes: &[u8], what: &str) -> Result<Option<Uuid>, Refusal> {
    if bytes.is_empty() { Ok(None) } else { id(bytes, what).map(Some) }
}

fn text(text: &str, most: usize, what: &str) -> Result<String, Refusal> {
    if text.chars().count() > most || text.contains('\0') {
        return Err(malformed(what));
    }
    Ok(text.to_owned())
}

fn some(said: &str, most: usize, what: &str) -> Result<String, Refusal> {
    if said.trim().is_empty() { Err(malformed(what)) } else { text(said, most, what) }
}

fn hardware(id: &str) -> Result<String, Refusal> {
    HardwareId::parse(id).map(|hardware| hardware.to_string()).map_err(|_| malformed("the device"))
}
