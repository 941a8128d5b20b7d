//! The attributes: the Kinara service, and the standard ones Device Information, Battery, Heart Rate and Health
//! Thermometer, all behind an authenticated link.
//!
//! The table is built by hand: trouble-host's macros put values into statics that can be made once, and a radio starts
//! again when its controller does.

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use heapless::Vec;
use kinara_protocol::control::MAX_MESSAGE;
use kinara_protocol::frame::MAX_FRAME;
use kinara_protocol::gatt;
use kinara_protocol::status::STATUS_LEN;
use kinara_protocol::vitals::{MAX_HEART_RATE, TEMPERATURE_LEN};
use trouble_host::prelude::*;

/// The longest name, as trouble-host has it.
const MAX_NAME: usize = 22;
/// Attributes: 6 of GAP and GATT, 13 of Kinara, 7 of Device Information, 4 of Battery, 6 of Heart Rate, 6 of Health
/// Thermometer.
const ATTRIBUTES: usize = 42;
/// Body Sensor Location: wrist (Heart Rate Service 1.0, 3.2).
const WRIST: u8 = 2;
/// Temperature Type: body, general (Health Thermometer Service 1.0, 3.2).
const BODY: u8 = 2;
const MAKER: &str = "Kinara";

type Table<'d> = AttributeTable<'d, NoopRawMutex, ATTRIBUTES>;

/// A frame, as a notification carries it.
pub type FrameValue = Vec<u8, MAX_FRAME>;
/// A request or reply.
pub type MessageValue = Vec<u8, MAX_MESSAGE>;
/// A heart rate measurement.
pub type HeartRateValue = Vec<u8, MAX_HEART_RATE>;
/// A temperature measurement.
pub type TemperatureValue = [u8; TEMPERATURE_LEN];
/// An encoded status.
pub type StatusValue = [u8; STATUS_LEN];

/// What the attributes say of the wearable for its life.
#[derive(Debug, Clone, Copy)]
pub struct Nameplate<'a> {
    /// The name it shows in a window; the first bytes go on the air.
    pub name: &'a str,
    /// The serial number: the factory id in hexadecimal.
    pub serial: &'a str,
    /// The firmware's version.
    pub firmware: &'a str,
}

/// Room for the values that are kept in the table. Frames and messages pass through.
#[derive(Debug)]
pub struct Values {
    status: StatusValue,
    temperature: TemperatureValue,
}

impl Values {
    /// Before anything was read.
    pub const fn new() -> Self {
        Self { status: [0; STATUS_LEN], temperature: [0; TEMPERATURE_LEN] }
    }
}

impl Default for Values {
    fn default() -> Self {
        Self::new()
    }
}

/// The attribute server of the one link.
pub struct Server<'d> {
    /// It answers requests.
    pub attributes: AttributeServer<'d, NoopRawMutex, DefaultPacketPool, ATTRIBUTES, 1>,
    /// Frames as they close.
    pub stream: Characteristic<FrameValue>,
    /// Frames in the order of the log.
    pub backlog: Characteristic<FrameValue>,
    /// Requests and replies.
    pub control: Characteristic<MessageValue>,
    /// The wearable's account of itself.
    pub status: Characteristic<StatusValue>,
    /// Percent.
    pub battery: Characteristic<u8>,
    /// The standard one.
    pub heart_rate: Characteristic<HeartRateValue>,
    /// The standard one.
    pub temperature: Characteristic<TemperatureValue>,
}

impl<'d> Server<'d> {
    /// Builds the table. Not inlined, for the sake of the radio's stack.
    #[inline(never)]
    pub fn new(nameplate: &'d Nameplate<'d>, values: &'d mut Values) -> Self {
        use CharacteristicProp::{Indicate, Notify, Read, Write};
        let mut table = Table::new();
        // Before an attribute of ours can be read, a stranger has been turned away; the name is what a window shows.
        // Not `expect`: that brings what prints an error into the image, and nobody reads it there.
        let Ok(()) = GapConfig::default(cut(nameplate.name)).build(&mut table) else {
            panic!("the name is cut to what fits")
        };
        let mut kinara = table.add_service(Service::new(gatt::SERVICE));
        let uuid = gatt::Characteristic::uuid;
        let stream = guarded(kinara.add_characteristic(
            uuid(gatt::Characteristic::Stream),
            [Notify],
            FrameValue::new(),
            &mut [],
        ));
        let backlog = guarded(kinara.add_characteristic(
            uuid(gatt::Characteristic::Backlog),
            [Notify],
            FrameValue::new(),
            &mut [],
        ));
        let control = guarded(kinara.add_characteristic(
            uuid(gatt::Characteristic::Control),
            [Write, Indicate],
            MessageValue::new(),
            &mut [],
        ));
        let status = guarded(kinara.add_characteristic(
            uuid(gatt::Characteristic::Status),
            [Read, Notify],
            [0; STATUS_LEN],
            &mut values.status,
        ));
        kinara.build();
        let mut information = table.add_service(Service::new(service::DEVICE_INFORMATION));
        for (uuid, text) in [
            (characteristic::MANUFACTURER_NAME_STRING, MAKER),
            (characteristic::SERIAL_NUMBER_STRING, nameplate.serial),
            (characteristic::FIRMWARE_REVISION_STRING, nameplate.firmware),
        ] {
            information
                .add_characteristic_ro(uuid, text)
                .read_permission(PermissionLevel::AuthenticationRequired)
                .build();
        }
        information.build();
        let mut service = table.add_service(Service::new(service::BATTERY));
        let battery =
            guarded(service.add_characteristic_small(characteristic::BATTERY_LEVEL, [Read, Notify], 0u8));
        service.build();
        let mut service = table.add_service(Service::new(service::HEART_RATE));
        let heart_rate = guarded(service.add_characteristic(
            characteristic::HEART_RATE_MEASUREMENT,
            [Notify],
            HeartRateValue::new(),
            &mut [],
        ));
        service
            .add_characteristic_small(characteristic::BODY_SENSOR_LOCATION, [Read], WRIST)
            .read_permission(PermissionLevel::AuthenticationRequired)
            .build();
        service.build();
        let mut service = table.add_service(Service::new(service::HEALTH_THERMOMETER));
        let temperature = guarded(service.add_characteristic(
            characteristic::TEMPERATURE_MEASUREMENT,
            [Indicate],
            [0; TEMPERATURE_LEN],
            &mut values.temperature,
        ));
        service
            .add_characteristic_small(characteristic::TEMPERATURE_TYPE, [Read], BODY)
            .read_permission(PermissionLevel::AuthenticationRequired)
            .build();
        service.build();
        Self {
            attributes: AttributeServer::new(table),
            stream,
            backlog,
            control,
            status,
            battery,
            heart_rate,
            temperature,
        }
    }

    /// The characteristic whose notifications this descriptor switches.
    pub fn switched_by(&self, descriptor: u16) -> Option<gatt::Characteristic> {
        let all = gatt::Characteristic::ALL;
        all.into_iter().find(|&characteristic| self.switch_of(characteristic) == Some(descriptor))
    }

    fn switch_of(&self, characteristic: gatt::Characteristic) -> Option<u16> {
        match characteristic {
            gatt::Characteristic::Stream => self.stream.cccd_handle,
            gatt::Characteristic::Backlog => self.backlog.cccd_handle,
            gatt::Characteristic::Control => self.control.cccd_handle,
            gatt::Characteristic::Status => self.status.cccd_handle,
        }
    }
}

/// Nothing of what notifies without an authenticated link: reading, writing, switching its notifications on.
fn guarded<T: AsGatt>(
    builder: CharacteristicBuilder<'_, '_, T, NoopRawMutex, ATTRIBUTES>,
) -> Characteristic<T> {
    builder
        .read_permission(PermissionLevel::AuthenticationRequired)
        .write_permission(PermissionLevel::AuthenticationRequired)
        .cccd_permission(PermissionLevel::AuthenticationRequired)
        .build()
}

fn cut(text: &str) -> &str {
    let end = (0..=MAX_NAME.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}
