//! What a device is called on every side of the system.
//!
//! The promise: one device has one name, however it was typed. Every door (the operator's commands, the box's page,
//! kinaractl, readings over HTTP, configuration files, what gateways send) reads it here.

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

/// Characters of a wrong id that its refusal repeats.
const REPEATED: usize = 64;

impl HardwareId {
    /// The id of a Kinara wearable with this factory id.
    pub fn kinara(factory_id: u64) -> Self {
        Self(format!("kinara:{factory_id:016x}").into())
    }

    /// The id of another maker's sensor with this identity address, most significant byte first.
    pub fn sensor(address: [u8; 6]) -> Self {
        Self(format!("bt:{}", address.map(|byte| format!("{byte:02X}")).join(":")).into())
    }

    /// Reads either form, in capitals or not: a factory id comes out in small letters, an address in capitals.
    pub fn parse(text: &str) -> Result<Self, BadHardwareId> {
        let read = text.trim_ascii().split_once(':').and_then(|(kind, rest)| match kind {
            kind if kind.eq_ignore_ascii_case("kinara") => factory_id(rest).map(Self::kinara),
            kind if kind.eq_ignore_ascii_case("bt") => address(rest).map(Self::sensor),
            _ => None,
        });
        read.ok_or_else(|| BadHardwareId(text.chars().take(REPEATED).collect()))
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

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn factory_id(text: &str) -> Option<u64> {
    is_hex(text, 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// An address as six pairs of hex digits, the most significant first.
fn address(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':');
    let mut address = [0; 6];
    for byte in &mut address {
        *byte = u8::from_str_radix(parts.next().filter(|part| is_hex(part, 2))?, 16).ok()?;
    }
    parts.next().is_none().then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_hardware_id_are_read_and_anything_else_is_refused() {
        for (typed, name) in [
            ("kinara:00000000000000AB", "kinara:00000000000000ab"),
            ("Kinara:00000000000000ab", "kinara:00000000000000ab"),
            ("bt:c0:ff:ee:00:00:aa", "bt:C0:FF:EE:00:00:AA"),
            ("BT:C0:FF:EE:00:00:AA", "bt:C0:FF:EE:00:00:AA"),
            (" bt:c0:Ff:ee:00:00:0a\n", "bt:C0:FF:EE:00:00:0A"),
        ] {
            assert_eq!(HardwareId::parse(typed).unwrap().as_str(), name);
            assert_eq!(HardwareId::parse(name).unwrap().as_str(), name);
        }
        for text in [
            "",
            "x",
            "bt:",
            "kinara:12",
            "kinara:+000000000000000",
            "kinara:00000000000000ab0",
            "bt:1:2",
            "bt:C0-FF-EE-00-00-AA",
            "bt:C0FFEE0000AA",
            "bt:hello world",
            "bt:C0:FF:EE:00:00:AA:00",
            "bt:C0:FF:EE:00:00",
            "bt:C0:FF:EE:00:00:+A",
            "C0:FF:EE:00:00:AA",
            "bt:C0:FF:EE:00:00:\u{ff21}\u{ff21}",
        ] {
            let refused = HardwareId::parse(text).unwrap_err();
            assert!(refused.to_string().contains("AA:BB:CC:DD:EE:FF"), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_one_door_reads_every_other_reads_as_the_same(text in "\\PC{0,40}", address: [u8; 6], id: u64) {
            if let Ok(hardware) = HardwareId::parse(&text) {
                proptest::prop_assert_eq!(HardwareId::parse(hardware.as_str()), Ok(hardware));
            }
            let sensor = HardwareId::sensor(address);
            proptest::prop_assert_eq!(HardwareId::parse(&sensor.as_str().to_lowercase()), Ok(sensor));
            let kinara = HardwareId::kinara(id);
            proptest::prop_assert_eq!(HardwareId::parse(&kinara.as_str().to_uppercase()), Ok(kinara));
        }
    }
}
