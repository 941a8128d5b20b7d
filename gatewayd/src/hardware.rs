//! What a wearable is called on every side of the system.

use std::fmt;
use std::sync::Arc;

/// The identity of a piece of hardware: `kinara:<16 hex factory id>`, or `bt:<identity address>` for a sensor of
/// another maker. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HardwareId(Arc<str>);

/// The text is not a hardware id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware id; write kinara:<16 hex digits> or bt:<AA:BB:CC:DD:EE:FF>")]
pub struct BadHardwareId(pub String);

impl HardwareId {
    /// The id of a Kinara wearable with this factory id.
    pub fn kinara(factory_id: u64) -> Self {
        Self(format!("kinara:{factory_id:016x}").into())
    }

    /// The id of another maker's sensor with this identity address, most significant byte first.
    pub fn sensor(address: [u8; 6]) -> Self {
        Self(format!("bt:{}", crate::devices::address_text(address)).into())
    }

    /// Reads either form. Hexadecimal digits of a factory id are brought to lower case.
    pub fn parse(text: &str) -> Result<Self, BadHardwareId> {
        let bad = || BadHardwareId(text.to_owned());
        if let Some(hex) = text.strip_prefix("kinara:") {
            if hex.len() != 16 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            return Ok(Self::kinara(u64::from_str_radix(hex, 16).map_err(|_| bad())?));
        }
        if let Some(address) = text.strip_prefix("bt:") {
            let parts: Vec<&str> = address.split(':').collect();
            let two_digits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            if parts.len() == 6 && parts.iter().all(two_digits) {
                return Ok(Self(format!("bt:{}", address.to_ascii_uppercase()).into()));
            }
        }
        Err(bad())
    }

    /// The factory id, for a Kinara wearable.
    pub fn factory_id(&self) -> Option<u64> {
        u64::from_str_radix(self.0.strip_prefix("kinara:")?, 16).ok()
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HardwareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_hardware_id_are_read_and_anything_else_is_refused() {
        assert_eq!(HardwareId::parse("kinara:00000000000000AB").unwrap(), HardwareId::kinara(0xab));
        assert_eq!(HardwareId::parse("bt:aa:bb:cc:dd:ee:ff").unwrap().as_str(), "bt:AA:BB:CC:DD:EE:FF");
        for text in ["", "kinara:12", "kinara:+000000000000000", "bt:1:2", "x"] {
            assert!(HardwareId::parse(text).is_err(), "{text}");
        }
    }
}
