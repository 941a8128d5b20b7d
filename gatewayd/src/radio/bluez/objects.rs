//! BlueZ's dictionaries into types: bounded, and wrong types are absent values.

use bluer::Address;
use kinara_protocol::gatt;
use uuid::Uuid;

use super::super::SensorKind;
use super::bus::Properties;

/// Characters of a name that are shown.
const NAME: usize = 32;
/// Service UUIDs of a device that are looked at.
const SERVICES: usize = 64;
/// Bytes of service data; extended advertising could bring more, an offer never does.
const SERVICE_DATA: usize = 32;

/// The services that a device names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Those that are understood: a device may be several sensors.
    pub sensors: Vec<SensorKind>,
}

/// What a signal or a listing says of a device; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceNews {
    /// The identity address once it is known, else the address of the day.
    pub address: Option<Address>,
    /// Whether that is of the random kind.
    pub random: Option<bool>,
    /// The advertised name.
    pub name: Option<String>,
    /// The services it names.
    pub services: Option<Named>,
    /// The service data of the Kinara service.
    pub offer: Option<Vec<u8>>,
    /// Signal strength: only while it is heard.
    pub rssi: Option<i16>,
    /// Whether there are keys.
    pub paired: Option<bool>,
    /// Whether there is a link.
    pub connected: Option<bool>,
}

impl DeviceNews {
    /// Reads a dictionary of `org.bluez.Device1`.
    pub fn of(properties: &Properties) -> Self {
        Self {
            address: text(properties, "Address").and_then(|address| address.parse().ok()),
            random: text(properties, "AddressType").map(|kind| kind == "random"),
            name: text(properties, "Name").map(shown),
            services: services(properties).map(|services| Named { sensors: sensors_of(&services) }),
            offer: service_data(properties),
            rssi: properties.get("RSSI").and_then(|value| i16::try_from(value).ok()),
            paired: flag(properties, "Paired"),
            connected: flag(properties, "Connected"),
        }
    }
}

/// A boolean property.
pub fn flag(properties: &Properties, name: &str) -> Option<bool> {
    properties.get(name).and_then(|value| bool::try_from(value).ok())
}

/// A text property.
pub fn text<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    properties.get(name).and_then(|value| <&str>::try_from(value).ok())
}

/// The device that a path is of, as the address in it: `/org/bluez/hci0/dev_C1_…`.
pub fn path_address(path: &str, adapter: &str) -> Option<Address> {
    let rest = path.strip_prefix("/org/bluez/")?.strip_prefix(adapter)?.strip_prefix("/dev_")?;
    rest.replace('_', ":").parse().ok()
}

fn services(properties: &Properties) -> Option<Vec<Uuid>> {
    let list = Vec::<String>::try_from(properties.get("UUIDs")?.try_clone().ok()?).ok()?;
    Some(list.iter().take(SERVICES).filter_map(|text| text.parse().ok()).collect())
}

fn service_data(properties: &Properties) -> Option<Vec<u8>> {
    let value = properties.get("ServiceData")?.try_clone().ok()?;
    let mut data = Properties::try_from(value).ok()?;
    let ours = data.remove(&Uuid::from_u128(gatt::SERVICE).to_string())?;
    Vec::<u8>::try_from(ours).ok().filter(|bytes| bytes.len() <= SERVICE_DATA)
}

/// A UUID of the Bluetooth SIG from its 16 bits.
pub const fn short_uuid(number: u16) -> Uuid {
    Uuid::from_u128(((number as u128) << 96) | 0x0000_0000_0000_1000_8000_0080_5f9b_34fb)
}

fn sensors_of(services: &[Uuid]) -> Vec<SensorKind> {
    let kinds = [SensorKind::HeartRate, SensorKind::HealthThermometer, SensorKind::PulseOximeter];
    kinds.into_iter().filter(|kind| services.contains(&short_uuid(service_number(*kind)))).collect()
}

/// The 16-bit number of a sensor's service.
pub const fn service_number(kind: SensorKind) -> u16 {
    match kind {
        SensorKind::HeartRate => 0x180d,
        SensorKind::HealthThermometer => 0x1809,
        SensorKind::PulseOximeter => 0x1822,
    }
}

fn shown(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(NAME).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use zbus::zvariant::{OwnedValue, Value};

    use super::*;

    fn owned(value: impl Into<Value<'static>>) -> OwnedValue {
        OwnedValue::try_from(value.into()).unwrap()
    }

    fn with_service_data(bytes: Vec<u8>) -> Properties {
        let uuid = Uuid::from_u128(gatt::SERVICE).to_string();
        let data: HashMap<String, Value<'static>> = HashMap::from([(uuid, Value::from(bytes))]);
        HashMap::from([("ServiceData".to_owned(), owned(data))])
    }

    #[test]
    fn a_device_is_read_from_its_dictionary() {
        let mut properties = with_service_data(vec![3]);
        properties.insert("Address".to_owned(), owned("C1:22:33:44:55:66"));
        properties.insert("AddressType".to_owned(), owned("random"));
        properties.insert("Name".to_owned(), owned("K-\u{7}3F2A"));
        properties.insert(
            "UUIDs".to_owned(),
            owned(vec![
                "0000180d-0000-1000-8000-00805f9b34fb".to_owned(),
                "00001822-0000-1000-8000-00805f9b34fb".to_owned(),
            ]),
        );
        properties.insert("RSSI".to_owned(), owned(-61_i16));
        properties.insert("Paired".to_owned(), owned(true));
        let news = DeviceNews::of(&properties);
        assert_eq!(news.address, Some("C1:22:33:44:55:66".parse().unwrap()));
        assert_eq!(news.random, Some(true));
        assert_eq!(news.name.as_deref(), Some("K-3F2A"));
        assert_eq!(
            news.services,
            Some(Named { sensors: vec![SensorKind::HeartRate, SensorKind::PulseOximeter] })
        );
        assert_eq!(news.offer, Some(vec![3]));
        assert_eq!((news.rssi, news.paired, news.connected), (Some(-61), Some(true), None));
    }

    #[test]
    fn what_has_another_type_or_is_too_long_is_absent() {
        let properties = HashMap::from([
            ("Address".to_owned(), owned(7_u32)),
            ("RSSI".to_owned(), owned("loud")),
            ("UUIDs".to_owned(), owned("one")),
            ("ServiceData".to_owned(), owned(vec![1_u8])),
        ]);
        assert_eq!(DeviceNews::of(&properties), DeviceNews::default());
        assert_eq!(DeviceNews::of(&with_service_data(vec![1; 300])).offer, None);
    }

    #[test]
    fn the_address_in_a_path_is_that_of_the_named_adapter_only() {
        let path = "/org/bluez/hci0/dev_C1_22_33_44_55_66";
        assert_eq!(path_address(path, "hci0"), Some("C1:22:33:44:55:66".parse().unwrap()));
        assert_eq!(path_address(path, "hci1"), None);
        assert_eq!(path_address(&format!("{path}/service0001"), "hci0"), None);
    }

    proptest! {
        #[test]
        fn no_name_and_no_service_data_breaks_the_reading(name in ".*", bytes in any::<Vec<u8>>()) {
            let mut properties = with_service_data(bytes.clone());
            properties.insert("Name".to_owned(), owned(name));
            let news = DeviceNews::of(&properties);
            prop_assert!(news.name.unwrap().chars().count() <= NAME);
            prop_assert_eq!(news.offer.is_some(), bytes.len() <= SERVICE_DATA);
        }
    }
}
