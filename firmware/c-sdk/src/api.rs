//! The functions, in the order in which they are used. Times are milliseconds of the device's own clock since it
//! started; values are whole steps of their channel.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::mem::{align_of, size_of};

use kinara_firmware_app::signal::hot_flash::Judgement;
use kinara_protocol::control::MAX_MESSAGE;
use kinara_protocol::frame::Ticks;
use kinara_protocol::label::LabelSecret;
use kinara_protocol::status::STATUS_LEN;

use crate::config::Config;
use crate::device::{self, Device};
use crate::status::{Checked, Status};

/// The most sensors of a device.
pub const KINARA_MAX_SENSORS: usize = 16;
/// The fewest pages of flash.
pub const KINARA_MIN_FLASH_PAGES: u32 = 7;
/// The longest request of a gateway, bytes.
pub const KINARA_MAX_REQUEST: usize = 200;
/// The longest value on any characteristic, bytes: the ATT MTU has to be 247 or more.
pub const KINARA_MAX_VALUE: usize = 244;
/// Bytes of the value of the status characteristic.
pub const KINARA_STATUS_BYTES: usize = 37;
/// Bytes of memory for one device, on every target.
pub const KINARA_MEMORY_BYTES: usize = 24 * 1024;
/// How that memory has to be aligned, bytes.
pub const KINARA_MEMORY_ALIGN: usize = 8;

/// Heart rate, 0.1 beats per minute.
pub const KINARA_HEART_RATE: u16 = 1;
/// Interval between two successive beats, 1 ms.
pub const KINARA_RR_INTERVAL: u16 = 2;
/// Skin temperature, 0.01 °C.
pub const KINARA_SKIN_TEMPERATURE: u16 = 3;
/// Ambient temperature beside the skin, 0.01 °C.
pub const KINARA_AMBIENT_TEMPERATURE: u16 = 4;
/// Electrodermal activity (skin conductance), 0.001 µS.
pub const KINARA_EDA: u16 = 5;
/// Peripheral oxygen saturation, 0.1 %.
pub const KINARA_SPO2: u16 = 6;
/// Activity counts in the last 30 s.
pub const KINARA_ACTIVITY_COUNTS: u16 = 7;
/// Steps since the count before.
pub const KINARA_STEPS: u16 = 8;
/// Battery, 1 %.
pub const KINARA_BATTERY: u16 = 9;
/// Photoplethysmogram, raw counts.
pub const KINARA_PPG: u16 = 64;
/// Acceleration x, y, z, 0.001 g.
pub const KINARA_ACCELERATION: u16 = 65;

/// What the memory holds once it is initialised.
const MAGIC: u32 = u32::from_le_bytes(*b"KSDK");

/// A device. Only pointers to it are passed around.
#[repr(C, align(8))]
pub struct Kinara {
    magic: u32,
    device: Device,
}

const _: () = {
    assert!(size_of::<Kinara>() <= KINARA_MEMORY_BYTES && align_of::<Kinara>() <= KINARA_MEMORY_ALIGN);
    assert!(KINARA_MAX_SENSORS == device::MAX_SENSORS && KINARA_MAX_REQUEST == MAX_MESSAGE);
    assert!(KINARA_STATUS_BYTES == STATUS_LEN && KINARA_MAX_VALUE == kinara_protocol::frame::MAX_FRAME);
};

/// What the sternal rule says of the last minute.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too little skin conductance: fewer than 48 of 60 seconds, or a hole of more than 5.
    NotEnoughSignal = 0,
    /// The wearer moves: 2,020 activity counts a minute or more.
    Motion = 1,
    /// No contact, or an artefact.
    NoContact = 2,
    /// No hot flash.
    Quiet = 3,
    /// Skin conductance rose by 2 µS or more within 30 s.
    HotFlash = 4,
}

/// What `kinara_predict` tells.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Prediction {
    /// When the rise began, for a hot flash.
    pub onset_ms: u64,
    /// How much it is, 0.001 µS.
    pub rise_nanosiemens: u32,
    /// What it is.
    pub verdict: Verdict,
    /// Whether it is the first word on this hot flash; others follow until it is over, and are the same one.
    pub new_onset: bool,
}

/// Starts a device in `memory` (`KINARA_MEMORY_BYTES` or more, aligned to `KINARA_MEMORY_ALIGN`, the device's for as long
/// as the handle is used) and recovers what its flash holds. Takes about 48 KiB of stack, once.
///
/// `KINARA_STATUS_NULL`, `_TOO_SMALL` (memory), `_BAD_ARGUMENT` (reset reason), `_STORAGE`.
///
/// # Safety
/// The pointers are null or point to what they say; `memory` is nobody else's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_init(
    memory: *mut c_void,
    memory_bytes: usize,
    config: *const Config,
    handle: *mut *mut Kinara,
) -> Status {
    let place = memory.cast::<Kinara>();
    if place.is_null() || !place.is_aligned() || handle.is_null() || !handle.is_aligned() {
        return Status::Null;
    }
    // SAFETY: not null, aligned, and the caller's word for the rest.
    let Some(config) = (unsafe { checked(config) }) else { return Status::Null };
    if memory_bytes < KINARA_MEMORY_BYTES {
        return Status::TooSmall;
    }
    match Device::start(config) {
        Ok(device) => {
            // SAFETY: `memory` has the size and alignment, and is ours now; `handle` points to a pointer.
            unsafe {
                place.write(Kinara { magic: MAGIC, device });
                handle.write(place);
            }
            Status::Ok
        }
        Err(status) => status,
    }
}

/// Registers a sensor for a channel (`KINARA_HEART_RATE`…); `sensor` gets its number.
///
/// `KINARA_STATUS_NULL`, `_NOT_READY`, `_UNKNOWN_CHANNEL`, `_TAKEN`, `_FULL`.
///
/// # Safety
/// The pointers are null, or the handle's and the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_sensor_register(
    handle: *mut Kinara,
    channel: u16,
    sensor: *mut u32,
) -> Status {
    if sensor.is_null() || !sensor.is_aligned() {
        return Status::Null;
    }
    on(handle, |device| {
        let number = device.register(channel)?;
        // SAFETY: not null, aligned, the caller's.
        unsafe { sensor.write(number) };
        Ok(())
    })
}

/// Takes a reading: `count` values (3 for acceleration, else 1) that were measured at `ticks_ms`, which no later
/// reading may precede. It is in flash within a minute (a second while the gateway watches), or at the end of its frame.
/// A value outside of what is physically possible is taken as it is; the cloud marks it.
///
/// `KINARA_STATUS_NULL`, `_NOT_READY`, `_BAD_ARGUMENT` (no such sensor), `_WRONG_COUNT`, `_TIME_WENT_BACK`, `_STORAGE`.
///
/// # Safety
/// The pointers are null, or the handle's and `count` values'.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_reading_push(
    handle: *mut Kinara,
    sensor: u32,
    ticks_ms: u64,
    values: *const i32,
    count: usize,
) -> Status {
    /// More than any channel has.
    const MOST: usize = 4;
    if values.is_null() || !values.is_aligned() {
        return Status::Null;
    }
    if count > MOST {
        return Status::WrongCount;
    }
    // SAFETY: not null, aligned, the caller's word for the count, which is small.
    let values = unsafe { core::slice::from_raw_parts(values, count) };
    on(handle, |device| device.push(sensor, Ticks(ticks_ms), values))
}

/// Somebody put the device on, or took it off. `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`, `_STORAGE`.
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_worn(handle: *mut Kinara, now_ms: u64, worn: bool) -> Status {
    on(handle, |device| device.worn(Ticks(now_ms), worn))
}

/// Does what is due and sends what the radio takes: call it some times a second, and when the radio has room again.
/// `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`, `_STORAGE`.
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_step(handle: *mut Kinara, now_ms: u64) -> Status {
    on(handle, |device| device.step(Ticks(now_ms)))
}

/// Judges the last minute of skin conductance and activity by the sternal rule (a rise of 2 µS within 30 s; no second
/// onset within 20 minutes). For an electrode on the sternum only; it is no diagnosis.
/// `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`.
///
/// # Safety
/// The pointers are null, or the handle's and the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_predict(
    handle: *mut Kinara,
    now_ms: u64,
    prediction: *mut Prediction,
) -> Status {
    if prediction.is_null() || !prediction.is_aligned() {
        return Status::Null;
    }
    on(handle, |device| {
        let told = told(device.predict(Ticks(now_ms))?);
        // SAFETY: not null, aligned, the caller's.
        unsafe { prediction.write(told) };
        Ok(())
    })
}

fn told(judgement: Judgement) -> Prediction {
    let nothing = Prediction { onset_ms: 0, rise_nanosiemens: 0, verdict: Verdict::Quiet, new_onset: false };
    match judgement {
        Judgement::NotEnoughSignal => Prediction { verdict: Verdict::NotEnoughSignal, ..nothing },
        Judgement::Motion => Prediction { verdict: Verdict::Motion, ..nothing },
        Judgement::NoContact => Prediction { verdict: Verdict::NoContact, ..nothing },
        Judgement::Quiet => nothing,
        Judgement::HotFlash { onset, rise_ns, new } => Prediction {
            onset_ms: onset.0,
            rise_nanosiemens: rise_ns,
            verdict: Verdict::HotFlash,
            new_onset: new,
        },
    }
}

/// A bonded gateway has a link that is encrypted and authenticated. `KINARA_STATUS_NULL`, `_NOT_READY`.
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_link_up(handle: *mut Kinara) -> Status {
    on(handle, |device| {
        device.link_up();
        Ok(())
    })
}

/// That link is gone. `KINARA_STATUS_NULL`, `_NOT_READY`, `_STORAGE`.
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_link_down(handle: *mut Kinara) -> Status {
    on(handle, Device::link_down)
}

/// The gateway switched notifications or indications of a characteristic (a `kinara_characteristic`).
/// `KINARA_STATUS_NULL`, `_NOT_READY` (also without a link), `_BAD_ARGUMENT`.
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_subscribe(handle: *mut Kinara, characteristic: u32, enabled: bool) -> Status {
    on(handle, |device| device.subscribe(characteristic, enabled))
}

/// The gateway wrote to the control characteristic. `KINARA_STATUS_NULL`, `_NOT_READY` (also without a link),
/// `_TIME_WENT_BACK`, `_OVERFLOW`, `_BUSY`.
///
/// # Safety
/// The pointers are null, or the handle's and `length` bytes'.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_request(
    handle: *mut Kinara,
    now_ms: u64,
    bytes: *const u8,
    length: usize,
) -> Status {
    if bytes.is_null() {
        return Status::Null;
    }
    if length > KINARA_MAX_REQUEST {
        return Status::Overflow;
    }
    // SAFETY: not null, the caller's word for the length, which is small.
    let bytes = unsafe { core::slice::from_raw_parts(bytes, length) };
    on(handle, |device| device.request(Ticks(now_ms), bytes))
}

/// What the status characteristic says when it is read, into `KINARA_STATUS_BYTES` of `value`.
/// `KINARA_STATUS_NULL`, `_NOT_READY`, `_TIME_WENT_BACK`, `_STORAGE`.
///
/// # Safety
/// The pointers are null, or the handle's and the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_status_value(handle: *mut Kinara, now_ms: u64, value: *mut u8) -> Status {
    if value.is_null() {
        return Status::Null;
    }
    on(handle, |device| {
        let encoded = device.status(Ticks(now_ms))?;
        // SAFETY: not null; the caller's word for the length.
        unsafe { value.cast::<[u8; STATUS_LEN]>().write(encoded) };
        Ok(())
    })
}

/// How a request about bonds ended that came by the `ask` callback. `KINARA_STATUS_NULL`, `_NOT_READY` (also without a
/// link).
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_bond_reply(handle: *mut Kinara, request: u16, done: bool) -> Status {
    on(handle, |device| device.bond_reply(request, done))
}

/// Closes the open frames into flash and makes everything known survive: the device is about to be switched off. The
/// handle is of no use after it. `KINARA_STATUS_NULL`, `_NOT_READY`, `_STORAGE` (the handle stays).
///
/// # Safety
/// The pointer is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_shut_down(handle: *mut Kinara) -> Status {
    let done = on(handle, Device::shut_down);
    if done == Status::Ok {
        // SAFETY: `on` has just checked it.
        unsafe { (*handle).magic = 0 };
    }
    done
}

/// The passkey of a device without a display in its pairing window: of the 16 characters on its label and the nonce
/// that it advertises. `KINARA_STATUS_NULL`, `_BAD_ARGUMENT` (not a label's characters; a nonce of other than 8 bytes).
///
/// # Safety
/// The pointers are null, or point to `label_length` and `nonce_length` bytes and a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kinara_label_passkey(
    label: *const u8,
    label_length: usize,
    nonce: *const u8,
    nonce_length: usize,
    passkey: *mut u32,
) -> Status {
    /// Sixteen characters, and whatever spaces and hyphens stand between them.
    const LONGEST_LABEL: usize = 32;
    const NONCE: usize = 8;
    if label.is_null() || nonce.is_null() || passkey.is_null() || !passkey.is_aligned() {
        return Status::Null;
    }
    if label_length > LONGEST_LABEL || nonce_length != NONCE {
        return Status::BadArgument;
    }
    // SAFETY: not null; the caller's word for the lengths, which are small.
    let (label, nonce) = unsafe {
        (core::slice::from_raw_parts(label, label_length), core::slice::from_raw_parts(nonce, nonce_length))
    };
    let Some(secret) = core::str::from_utf8(label).ok().and_then(|text| text.parse::<LabelSecret>().ok())
    else {
        return Status::BadArgument;
    };
    // SAFETY: not null, aligned, the caller's.
    unsafe { passkey.write(secret.passkey(nonce)) };
    Status::Ok
}

/// Does something with a device, if the handle is one.
fn on(handle: *mut Kinara, act: impl FnOnce(&mut Device) -> Checked<()>) -> Status {
    if handle.is_null() || !handle.is_aligned() {
        return Status::Null;
    }
    // SAFETY: not null, aligned; by the contract of every caller it is a handle or memory of a handle's size, and
    // nobody else uses it meanwhile. Its first word says whether it is initialised.
    unsafe {
        if (&raw const (*handle).magic).read() != MAGIC {
            return Status::NotReady;
        }
        act(&mut (*handle).device).into()
    }
}

/// What is behind a pointer, unless it is null or not aligned.
unsafe fn checked<'a, T>(pointer: *const T) -> Option<&'a T> {
    if pointer.is_aligned() {
        // SAFETY: aligned, and by the caller's word it is null or points to a T.
        unsafe { pointer.as_ref() }
    } else {
        None
    }
}
