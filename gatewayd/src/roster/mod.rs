//! Who the clinic's people are, as far as this box knows: wearers, staff, and what wearers are asked to agree to.
//!
//! It comes from the cloud and is kept on disk, so that the box works without it. Wearers added at the box stand beside
//! them until the cloud's roster holds them.

mod book;
mod texts;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use kinara_protocol::label::IntroductionSecret;
use uuid::Uuid;

use crate::hardware::HardwareId;

pub use book::{Book, ConsentHere, People};
pub use texts::BUILT_IN_VERSION;

/// The roster as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    /// Version of the cloud's configuration; 0 before the first.
    pub version: u64,
    /// The clinic's name; empty when not known.
    pub clinic_name: String,
    /// Those who wear, by name.
    pub wearers: Vec<WearerEntry>,
    /// Those who may use the box's page, besides those whom the box alone knows.
    pub staff: Vec<StaffEntry>,
    /// What wearers are asked to agree to: the newest text of each language.
    pub consent_texts: Vec<ConsentText>,
}

/// A wearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WearerEntry {
    /// The cloud's user, or drawn here for a provisional one.
    pub user: Uuid,
    /// As the clinic calls them.
    pub display_name: String,
    /// The clinic's own number; may be empty.
    pub external_id: String,
    /// Added here, not yet confirmed by the cloud.
    pub provisional: bool,
    /// What they wear, by this box or the cloud.
    pub hardware: Vec<HardwareId>,
    /// The version of the consent in force; none when it was never given, or withdrawn.
    pub consent_version: Option<String>,
}

impl WearerEntry {
    /// As people are to read of them.
    pub fn called(&self) -> String {
        called(&self.display_name, &self.external_id)
    }
}

/// A wearer as people are to read of them, wherever they do: two may have one name, so the clinic's number stands beside it.
pub fn called(display_name: &str, external_id: &str) -> String {
    if external_id.is_empty() { display_name.to_owned() } else { format!("{display_name} ({external_id})") }
}

/// Somebody who may use the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaffEntry {
    /// The cloud's member.
    pub member: Uuid,
    /// Name.
    pub name: String,
    /// Verifier of the PIN: PHC string, argon2id.
    pub pin_verifier: String,
}

/// A text to agree to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsentText {
    /// Version.
    pub version: String,
    /// `en`, `hi`.
    pub language: String,
    /// The text.
    pub text: String,
}

impl ConsentText {
    /// SHA-256 of the text, as a decision names it.
    pub fn sha256(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.text.as_bytes()).into()
    }
}

/// Another box of the clinic is to get to know a wearable without a person.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The cloud's.
    pub id: Uuid,
    /// The wearable.
    pub hardware: HardwareId,
    /// For one use.
    pub secret: IntroductionSecret,
    /// UTC until which it counts, microseconds.
    pub expires_us: i64,
    /// This box has a bond and lets the other one in; otherwise it is the other one.
    pub admits: bool,
    /// Attempts that failed since the daemon started.
    pub failures: Arc<AtomicU32>,
}

impl PartialEq for Introduction {
    fn eq(&self, other: &Self) -> bool {
        (self.id, &self.hardware, self.expires_us, self.admits)
            == (other.id, &other.hardware, other.expires_us, other.admits)
            && self.secret == other.secret
    }
}

/// A gateway is to be taken off a wearable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The wearable.
    pub hardware: HardwareId,
    /// The adapter's address by which the wearable knows that gateway.
    pub adapter: [u8; 6],
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two wearers of one name.
    pub(crate) fn namesakes() -> [WearerEntry; 2] {
        [1, 2].map(|number| WearerEntry {
            user: Uuid::from_u128(number),
            display_name: "Anjali Verma".to_owned(),
            external_id: format!("V{number}"),
            provisional: false,
            hardware: Vec::new(),
            consent_version: None,
        })
    }

    #[test]
    fn a_wearer_whom_the_clinic_has_given_no_number_is_called_by_name() {
        let [mut one, _] = namesakes();
        assert_eq!(one.called(), "Anjali Verma (V1)");
        one.external_id.clear();
        assert_eq!(one.called(), "Anjali Verma");
    }
}
