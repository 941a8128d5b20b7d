//! What a device tells of itself, and its callbacks.
#![allow(unsafe_code)]

use core::ffi::c_void;

use kinara_firmware_app::flash::{Flash, Nonce};
use kinara_protocol::gatt;

use crate::status::Status;

/// Flash: pages of 4096 bytes. An erased byte reads 0xff, a write clears bits, a page is erased as a whole.
///
/// The callbacks return 0 when it is done. A write is of whole 32-bit words at a word's address, and on return it has to
/// survive a loss of power. Addresses count from 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FlashPort {
    /// Given to each callback.
    pub context: *mut c_void,
    /// How many pages there are: at least `KINARA_MIN_FLASH_PAGES`.
    pub pages: u32,
    /// Reads `length` bytes from any address.
    pub read: Option<unsafe extern "C" fn(*mut c_void, address: u32, into: *mut u8, length: u32) -> i32>,
    /// Writes `length` bytes.
    pub write: Option<unsafe extern "C" fn(*mut c_void, address: u32, bytes: *const u8, length: u32) -> i32>,
    /// Erases one page.
    pub erase: Option<unsafe extern "C" fn(*mut c_void, page: u32) -> i32>,
    /// A key stream over bytes that go to flash or come from it, by a key of this device and a nonce of 12 bytes that
    /// is never given for two contents (AES-128 in counter mode, say). May be null where nobody can read the chip.
    pub encipher: Option<unsafe extern "C" fn(*mut c_void, nonce: *const u8, bytes: *mut u8, length: u32)>,
}

/// The Bluetooth stack, as far as Kinara needs it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Transport {
    /// Given to each callback.
    pub context: *mut c_void,
    /// Sends bytes on a characteristic: a notification, or an indication for control. 0: taken; anything else: not
    /// now, and they come again with the next step.
    pub send: Option<
        unsafe extern "C" fn(
            *mut c_void,
            characteristic: Characteristic,
            bytes: *const u8,
            length: u32,
        ) -> i32,
    >,
    /// The gateway asks for something that is the device's to do. May be null: then nothing is identified, and what
    /// is about bonds is refused.
    pub ask: Option<unsafe extern "C" fn(*mut c_void, asked: *const Asked)>,
}

/// A characteristic of the Kinara service.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Characteristic {
    /// Notify: frames as they close.
    Stream = 0,
    /// Notify: stored frames.
    Backlog = 1,
    /// Write and indicate: requests and replies.
    Control = 2,
    /// Read and notify.
    Status = 3,
}

impl From<gatt::Characteristic> for Characteristic {
    fn from(characteristic: gatt::Characteristic) -> Self {
        match characteristic {
            gatt::Characteristic::Stream => Self::Stream,
            gatt::Characteristic::Backlog => Self::Backlog,
            gatt::Characteristic::Control => Self::Control,
            gatt::Characteristic::Status => Self::Status,
        }
    }
}

/// What a gateway asks of the device. (Enumerations have a width of their own here: C compilers differ about theirs.)
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedKind {
    /// Show a person which device this is.
    Identify = 0,
    /// Send what is outgoing (with `kinara_step`), then restart.
    Reset = 1,
    /// Let another gateway pair by `secret` for `lives_s` seconds; then `kinara_bond_reply`.
    Admit = 2,
    /// Forget the bond with the gateway of the identity address `bond`; then `kinara_bond_reply`.
    Revoke = 3,
}

/// A request of the gateway; what it has beside its kind is zero where it is not of that kind.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// What.
    pub kind: AskedKind,
    /// The request, for `kinara_bond_reply`.
    pub request: u16,
    /// For how long an introduction lives, seconds.
    pub lives_s: u32,
    /// An introduction's secret.
    pub secret: [u8; 16],
    /// An identity address, most significant byte first.
    pub bond: [u8; 6],
}

/// Why the device starts.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// Power was applied.
    PowerOn = 0,
    /// A command or an update.
    Requested = 1,
    /// The watchdog bit.
    Watchdog = 2,
    /// The supply sagged.
    BrownOut = 3,
    /// The program failed.
    Fault = 4,
}

/// What a device tells of itself when it starts.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Its 64-bit factory id: no two devices have the same.
    pub factory_id: u64,
    /// Its clock now: milliseconds since it started.
    pub now_ms: u64,
    /// Two random numbers.
    pub entropy: [u32; 2],
    /// Its firmware's version: major, minor, patch.
    pub firmware: [u8; 3],
    /// Why it starts: a `kinara_reset_reason`.
    pub reset_reason: u8,
    /// Its flash.
    pub flash: FlashPort,
    /// Its radio.
    pub transport: Transport,
}

/// A callback failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFailed;

impl FlashPort {
    pub(crate) fn is_whole(&self) -> bool {
        self.read.is_some() && self.write.is_some() && self.erase.is_some()
    }
}

impl Flash for FlashPort {
    type Error = PortFailed;

    fn pages(&self) -> u32 {
        self.pages
    }

    fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), PortFailed> {
        let read = self.read.ok_or(PortFailed)?;
        // SAFETY: the callback keeps to its description; the buffer is as long as is said.
        done(unsafe { read(self.context, address, into.as_mut_ptr(), into.len() as u32) })
    }

    fn write(&mut self, address: u32, words: &[u8]) -> Result<(), PortFailed> {
        let write = self.write.ok_or(PortFailed)?;
        // SAFETY: as above.
        done(unsafe { write(self.context, address, words.as_ptr(), words.len() as u32) })
    }

    fn erase(&mut self, page: u32) -> Result<(), PortFailed> {
        let erase = self.erase.ok_or(PortFailed)?;
        // SAFETY: as above.
        done(unsafe { erase(self.context, page) })
    }

    fn encipher(&mut self, nonce: &Nonce, bytes: &mut [u8]) {
        if let Some(encipher) = self.encipher {
            // SAFETY: as above.
            unsafe { encipher(self.context, nonce.as_ptr(), bytes.as_mut_ptr(), bytes.len() as u32) };
        }
    }
}

fn done(code: i32) -> Result<(), PortFailed> {
    if code == 0 { Ok(()) } else { Err(PortFailed) }
}

impl Transport {
    pub(crate) fn send(&self, characteristic: Characteristic, bytes: &[u8]) -> Result<(), Status> {
        let send = self.send.ok_or(Status::Null)?;
        // SAFETY: the callback keeps to its description; the buffer is as long as is said.
        match unsafe { send(self.context, characteristic, bytes.as_ptr(), bytes.len() as u32) } {
            0 => Ok(()),
            _ => Err(Status::Busy),
        }
    }

    pub(crate) fn ask(&self, asked: &Asked) -> bool {
        let Some(ask) = self.ask else { return false };
        // SAFETY: the callback keeps to its description, and does not keep the pointer.
        unsafe { ask(self.context, asked) };
        true
    }
}
