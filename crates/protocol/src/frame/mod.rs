//! Frame codec v1.
//!
//! A frame is the unit that a wearable stores, sends and forgets. Its identity is `(device, epoch, seq)`. It fits
//! one notification at ATT_MTU 247. The layout, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version (1) |
//! | 1 | kind; its two high bits are the priority class |
//! | 2 | length of the whole frame |
//! | 8 | epoch: random log id (high 32 bits), boot counter (low 32 bits) |
//! | 4 | seq |
//! | 6 | ticks: ms since boot, of the first sample |
//! | n | body, by kind |
//! | 4 | CRC-32C of all bytes before |
//!
//! The header and the CRC are the same in every version, so that a gateway can store, acknowledge and upload a frame
//! that it cannot decode. The body of a frame of samples is a sequence of blocks, one after another:
//!
//! | | field |
//! |---|---|
//! | varint | channel |
//! | 1 | flags: bit 0 each sample has its own ticks; bit 1 a components byte follows; the others are 0 |
//! | (1) | components, 2 to 4 |
//! | varint | count, at least 1 |
//! | varint | offset: ticks of the first sample minus the frame's ticks |
//! | (varint) | interval in ms, where the timing is regular and the count above 1 |
//! | … | the first sample's values as zigzag varints, then for each further sample (its ticks minus those of the sample before it, as a varint, where flag bit 0 is set, and) each value minus the value before it |
//!
//! Varints are LEB128 of at most 32 bits in their shortest form; anything else is refused, so one content has one
//! encoding. The decoder never panics and never allocates.

mod anchor;
mod builder;
mod samples;

pub use anchor::{
    BootAnchor, DeviceEvent, DeviceEventKind, DeviceEvents, PreviousBoot, ResetReason, Sensor, SyncAnchor,
    encode_boot_anchor, encode_device_event, encode_sync_anchor,
};
pub use builder::{FrameBuilder, PushError};
pub use samples::{Block, Blocks, Sample, Samples};
#[cfg(feature = "std")]
pub(crate) use samples::{FLAG_COMPONENTS, FLAG_OWN_TICKS};

use crate::wire::{Malformed, Reader, Writer};

/// The version this crate writes and decodes.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER_LEN: usize = 22;
/// Bytes after the body.
pub const CRC_LEN: usize = 4;
/// The longest frame: ATT_MTU 247 less the notification's three bytes.
pub const MAX_FRAME: usize = 244;
/// The longest body.
pub const MAX_BODY: usize = MAX_FRAME - HEADER_LEN - CRC_LEN;
/// The most values in one sample.
pub const MAX_COMPONENTS: usize = 4;
/// One more than the largest ticks: 48 bits.
pub const TICKS_END: u64 = 1 << 48;

/// One life of a wearable's log between two boots: a random log id, drawn when the log is formatted, and the number
/// of the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a boot.
    pub const fn new(log_id: u32, boot: u32) -> Self {
        Self((log_id as u64) << 32 | boot as u64)
    }

    /// The random id of the log's formatting.
    pub const fn log_id(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The boot counter.
    pub const fn boot(self) -> u32 {
        self.0 as u32
    }
}

impl core::fmt::Display for Epoch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A frame's number in its epoch, from 0. It never wraps: a full epoch is followed by a new one.
pub type Seq = u32;

/// Milliseconds since the wearable's boot, 48 bits, by its own crystal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticks(pub u64);

/// What gives way first when room is short. In a frame's kind, so that it can be read without decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Anchors and device events: never dropped.
    Event,
    /// Scalar samples: never dropped once acknowledged.
    Scalar,
    /// Waveforms: dropped first.
    Waveform,
}

/// What a frame's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Things that happened to the wearable.
    DeviceEvents,
    /// A time sync.
    SyncAnchor,
    /// A boot.
    BootAnchor,
    /// Samples of scalar channels.
    Scalar,
    /// Samples of waveform channels.
    Waveform,
    /// A kind of a later version.
    Unknown(u8),
}

impl Kind {
    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::DeviceEvents => 0x01,
            Self::SyncAnchor => 0x02,
            Self::BootAnchor => 0x03,
            Self::Scalar => 0x40,
            Self::Waveform => 0x80,
            Self::Unknown(byte) => byte,
        }
    }

    /// The kind of a byte.
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0x01 => Self::DeviceEvents,
            0x02 => Self::SyncAnchor,
            0x03 => Self::BootAnchor,
            0x40 => Self::Scalar,
            0x80 => Self::Waveform,
            other => Self::Unknown(other),
        }
    }

    /// The priority class, known for kinds of later versions too. The reserved class is treated as scalar: kept.
    pub const fn class(self) -> Class {
        match self.to_byte() >> 6 {
            0 => Class::Event,
            2 => Class::Waveform,
            _ => Class::Scalar,
        }
    }
}

/// The fixed first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Codec version.
    pub version: u8,
    /// What the body is.
    pub kind: Kind,
    /// The boot that made it.
    pub epoch: Epoch,
    /// Its number in the epoch.
    pub seq: Seq,
    /// The first sample's time.
    pub ticks: Ticks,
}

/// Why bytes are not a frame, or a body is not what its kind says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(thiserror::Error))]
pub enum FrameError {
    /// Shorter than a header and a CRC, longer than a notification, or not as long as it says.
    #[cfg_attr(feature = "std", error("the frame's length is wrong"))]
    Length,
    /// The CRC does not match: the bytes were damaged on the way.
    #[cfg_attr(feature = "std", error("the frame's CRC-32C does not match its bytes"))]
    Crc,
    /// The CRC is right but the version is one that this program does not decode.
    #[cfg_attr(feature = "std", error("frame version {0} is not known here"))]
    Version(u8),
    /// The CRC is right but the body is not well-formed for its kind.
    #[cfg_attr(feature = "std", error("the frame's body is not well-formed"))]
    Body,
}

impl From<Malformed> for FrameError {
    fn from(_: Malformed) -> Self {
        Self::Body
    }
}

/// Bytes that are a whole frame with a good CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    bytes: &'a [u8],
}

/// The decoded body of a frame.
#[derive(Debug, Clone)]
pub enum Body<'a> {
    /// Samples, scalar or waveform.
    Samples(Samples<'a>),
    /// A time sync.
    SyncAnchor(SyncAnchor),
    /// A boot.
    BootAnchor(BootAnchor),
    /// Things that happened to the wearable.
    DeviceEvents(DeviceEvents<'a>),
    /// A kind of a later version.
    Unknown(&'a [u8]),
}

impl<'a> FrameRef<'a> {
    /// Checks length and CRC; the body is not looked at.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if bytes.len() < HEADER_LEN + CRC_LEN || bytes.len() > MAX_FRAME {
            return Err(FrameError::Length);
        }
        if usize::from(u16::from_le_bytes([bytes[2], bytes[3]])) != bytes.len() {
            return Err(FrameError::Length);
        }
        let frame = Self { bytes };
        if checksum(&bytes[..bytes.len() - CRC_LEN]) == frame.crc() {
            Ok(frame)
        } else {
            Err(FrameError::Crc)
        }
    }

    /// The whole frame.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The fixed first bytes.
    pub fn header(&self) -> Header {
        let mut reader = Reader::new(self.bytes);
        let mut read = || -> Result<Header, Malformed> {
            let version = reader.u8()?;
            let kind = Kind::from_byte(reader.u8()?);
            reader.u16()?;
            let epoch = Epoch(reader.u64()?);
            let seq = reader.u32()?;
            Ok(Header { version, kind, epoch, seq, ticks: Ticks(reader.u48()?) })
        };
        read().expect("parse() saw that a header fits")
    }

    /// The trailing CRC-32C.
    pub fn crc(&self) -> u32 {
        let tail = self.bytes.last_chunk::<CRC_LEN>().expect("parse() saw that a CRC fits");
        u32::from_le_bytes(*tail)
    }

    /// Decodes the body. An `Ok` is valid to its last byte: iterating over it cannot fail any more.
    pub fn body(&self) -> Result<Body<'a>, FrameError> {
        let header = self.header();
        if header.version != VERSION {
            return Err(FrameError::Version(header.version));
        }
        let body = &self.bytes[HEADER_LEN..self.bytes.len() - CRC_LEN];
        Ok(match header.kind {
            Kind::Scalar | Kind::Waveform => Body::Samples(Samples::validate(body, header.ticks)?),
            Kind::SyncAnchor => Body::SyncAnchor(SyncAnchor::decode(body)?),
            Kind::BootAnchor => Body::BootAnchor(BootAnchor::decode(body)?),
            Kind::DeviceEvents => Body::DeviceEvents(DeviceEvents::validate(body, header.ticks)?),
            Kind::Unknown(_) => Body::Unknown(body),
        })
    }
}

/// CRC-32C (Castagnoli), as in RFC 3720 appendix B.4.
#[cfg(feature = "std")]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// CRC-32C (Castagnoli), as in RFC 3720 appendix B.4.
#[cfg(not(feature = "std"))]
pub fn checksum(bytes: &[u8]) -> u32 {
    const CASTAGNOLI: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    CASTAGNOLI.checksum(bytes)
}

pub(crate) fn write_header(writer: &mut Writer<'_>, kind: Kind, epoch: Epoch, seq: Seq, ticks: Ticks) {
    writer.u8(VERSION);
    writer.u8(kind.to_byte());
    writer.u16(0);
    writer.u64(epoch.0);
    writer.u32(seq);
    writer.u48(ticks.0);
}

/// Fills in length and CRC once the body stands; gives the frame's length.
pub(crate) fn seal(out: &mut [u8; MAX_FRAME], body_end: usize) -> usize {
    let len = body_end + CRC_LEN;
    out[2..4].copy_from_slice(&(len as u16).to_le_bytes());
    let crc = checksum(&out[..body_end]);
    out[body_end..len].copy_from_slice(&crc.to_le_bytes());
    len
}
