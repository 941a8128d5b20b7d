//! Frames that are not samples: time syncs, boots, and what happened to the wearable.

use super::{Epoch, FrameError, Kind, MAX_FRAME, Seq, TICKS_END, Ticks, seal, write_header};
use crate::channel::ChannelId;
use crate::wire::{Malformed, Reader, Writer};

/// A time sync: at `ticks` of this frame's epoch it was `utc_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncAnchor {
    /// The wearable's own time.
    pub ticks: Ticks,
    /// UTC in microseconds since 1970.
    pub utc_us: i64,
    /// Half the round trip plus the gateway's own uncertainty.
    pub uncertainty_us: u32,
}

/// Why the wearable started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// Power was applied.
    PowerOn,
    /// A command or an update.
    Requested,
    /// The watchdog bit.
    Watchdog,
    /// The supply sagged.
    BrownOut,
    /// The program failed.
    Fault,
    /// A code of a later version.
    Other(u8),
}

impl ResetReason {
    /// Its code.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::PowerOn => 0,
            Self::Requested => 1,
            Self::Watchdog => 2,
            Self::BrownOut => 3,
            Self::Fault => 4,
            Self::Other(byte) => byte,
        }
    }

    /// The reason of a code.
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::PowerOn,
            1 => Self::Requested,
            2 => Self::Watchdog,
            3 => Self::BrownOut,
            4 => Self::Fault,
            other => Self::Other(other),
        }
    }
}

/// The boot before this one, as far as the flash remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviousBoot {
    /// Its epoch.
    pub epoch: Epoch,
    /// One more than the seq of its last frame in flash.
    pub next_seq: Seq,
    /// The last tick of the samples in its frames in flash. What was sampled later is the `reset` gap.
    pub last_ticks: Ticks,
    /// Its last time sync, so that a gateway that never saw that epoch knows when this one began at the earliest.
    pub last_sync: Option<SyncAnchor>,
}

/// Always the first frame (seq 0) of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootAnchor {
    /// Why the wearable started.
    pub reason: ResetReason,
    /// The boot before; none after formatting.
    pub previous: Option<PreviousBoot>,
}

/// What happened to the wearable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEventKind {
    /// Put on.
    Worn,
    /// Taken off.
    NotWorn,
    /// The battery fell to this many percent.
    BatteryLow(u8),
    /// Frames that no gateway had acknowledged were overwritten.
    Overflow {
        /// Their epoch.
        epoch: Epoch,
        /// The first that is gone.
        first_seq: Seq,
        /// The last that is gone.
        last_seq: Seq,
    },
    /// The log was formatted; a person accepted the loss.
    LogFormatted,
    /// A sensor does not answer any more, or never has: what it measures is missing.
    SensorSilent(Sensor),
    /// It answers again.
    SensorAnswers(Sensor),
    /// A channel is measured at this interval from now on.
    Interval {
        /// Which.
        channel: ChannelId,
        /// Milliseconds from one sample to the next.
        every_ms: u32,
    },
    /// A code of a later version.
    Unknown(u8),
}

/// A sensor of a wearable, by its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sensor(pub u8);

impl Sensor {
    /// The light that a pulse is seen in.
    pub const LIGHT: Self = Self(1);
    /// Acceleration.
    pub const MOTION: Self = Self(2);
    /// Skin and ambient temperature.
    pub const TEMPERATURE: Self = Self(3);
}

/// Something that happened, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceEvent {
    /// When.
    pub ticks: Ticks,
    /// What.
    pub kind: DeviceEventKind,
}

const WORN: u8 = 1;
const NOT_WORN: u8 = 2;
const BATTERY_LOW: u8 = 3;
const OVERFLOW: u8 = 4;
const LOG_FORMATTED: u8 = 5;
const SENSOR_SILENT: u8 = 6;
const SENSOR_ANSWERS: u8 = 7;
const INTERVAL: u8 = 8;

fn read_sync(reader: &mut Reader<'_>) -> Result<SyncAnchor, Malformed> {
    Ok(SyncAnchor { ticks: Ticks(reader.u48()?), utc_us: reader.i64()?, uncertainty_us: reader.u32()? })
}

fn write_sync(writer: &mut Writer<'_>, anchor: &SyncAnchor) {
    writer.u48(anchor.ticks.0);
    writer.i64(anchor.utc_us);
    writer.u32(anchor.uncertainty_us);
}

fn ended<T>(reader: &Reader<'_>, value: T) -> Result<T, FrameError> {
    if reader.is_empty() { Ok(value) } else { Err(FrameError::Body) }
}

impl SyncAnchor {
    pub(super) fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(body);
        let anchor = read_sync(&mut reader)?;
        ended(&reader, anchor)
    }
}

impl BootAnchor {
    pub(super) fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(body);
        let reason = ResetReason::from_byte(reader.u8()?);
        let previous = match reader.u8()? {
            0 => None,
            flags @ (1 | 3) => Some(PreviousBoot {
                epoch: Epoch(reader.u64()?),
                next_seq: reader.u32()?,
                last_ticks: Ticks(reader.u48()?),
                last_sync: if flags & 2 == 0 { None } else { Some(read_sync(&mut reader)?) },
            }),
            _ => return Err(FrameError::Body),
        };
        ended(&reader, Self { reason, previous })
    }
}

/// A validated body of device events.
#[derive(Debug, Clone, Copy)]
pub struct DeviceEvents<'a> {
    body: &'a [u8],
    base: Ticks,
}

impl<'a> DeviceEvents<'a> {
    pub(super) fn validate(body: &'a [u8], base: Ticks) -> Result<Self, FrameError> {
        let mut reader = Reader::new(body);
        while !reader.is_empty() {
            read_event(&mut reader, base)?;
        }
        Ok(Self { body, base })
    }

    /// The events in order.
    pub fn iter(&self) -> impl Iterator<Item = DeviceEvent> + use<'a> {
        let mut reader = Reader::new(self.body);
        let base = self.base;
        core::iter::from_fn(move || {
            (!reader.is_empty()).then(|| read_event(&mut reader, base).expect("validate() read every event"))
        })
    }
}

fn read_event(reader: &mut Reader<'_>, base: Ticks) -> Result<DeviceEvent, Malformed> {
    let ticks = Ticks(base.0 + u64::from(reader.varint()?));
    if ticks.0 >= TICKS_END {
        return Err(Malformed);
    }
    let code = reader.u8()?;
    let len = usize::from(reader.u8()?);
    let mut payload = Reader::new(reader.take(len)?);
    let kind = match code {
        WORN => DeviceEventKind::Worn,
        NOT_WORN => DeviceEventKind::NotWorn,
        BATTERY_LOW => DeviceEventKind::BatteryLow(payload.u8()?),
        OVERFLOW => DeviceEventKind::Overflow {
            epoch: Epoch(payload.u64()?),
            first_seq: payload.u32()?,
            last_seq: payload.u32()?,
        },
        LOG_FORMATTED => DeviceEventKind::LogFormatted,
        SENSOR_SILENT => DeviceEventKind::SensorSilent(Sensor(payload.u8()?)),
        SENSOR_ANSWERS => DeviceEventKind::SensorAnswers(Sensor(payload.u8()?)),
        INTERVAL => {
            DeviceEventKind::Interval { channel: ChannelId(payload.u16()?), every_ms: payload.u32()? }
        }
        other => return Ok(DeviceEvent { ticks, kind: DeviceEventKind::Unknown(other) }),
    };
    if payload.is_empty() { Ok(DeviceEvent { ticks, kind }) } else { Err(Malformed) }
}

/// A frame that holds a time sync; gives its length.
pub fn encode_sync_anchor(epoch: Epoch, seq: Seq, anchor: &SyncAnchor, out: &mut [u8; MAX_FRAME]) -> usize {
    let mut writer = Writer::new(out);
    write_header(&mut writer, Kind::SyncAnchor, epoch, seq, anchor.ticks);
    write_sync(&mut writer, anchor);
    let end = writer.len();
    seal(out, end)
}

/// A frame that holds a boot; gives its length.
pub fn encode_boot_anchor(
    epoch: Epoch,
    seq: Seq,
    ticks: Ticks,
    anchor: &BootAnchor,
    out: &mut [u8; MAX_FRAME],
) -> usize {
    let mut writer = Writer::new(out);
    write_header(&mut writer, Kind::BootAnchor, epoch, seq, ticks);
    writer.u8(anchor.reason.to_byte());
    match &anchor.previous {
        None => writer.u8(0),
        Some(previous) => {
            writer.u8(if previous.last_sync.is_some() { 3 } else { 1 });
            writer.u64(previous.epoch.0);
            writer.u32(previous.next_seq);
            writer.u48(previous.last_ticks.0);
            if let Some(sync) = &previous.last_sync {
                write_sync(&mut writer, sync);
            }
        }
    }
    let end = writer.len();
    seal(out, end)
}

/// A frame that holds one device event; gives its length.
pub fn encode_device_event(epoch: Epoch, seq: Seq, event: &DeviceEvent, out: &mut [u8; MAX_FRAME]) -> usize {
    let mut writer = Writer::new(out);
    write_header(&mut writer, Kind::DeviceEvents, epoch, seq, event.ticks);
    writer.varint(0);
    match event.kind {
        DeviceEventKind::Worn => writer.bytes(&[WORN, 0]),
        DeviceEventKind::NotWorn => writer.bytes(&[NOT_WORN, 0]),
        DeviceEventKind::BatteryLow(percent) => writer.bytes(&[BATTERY_LOW, 1, percent]),
        DeviceEventKind::Overflow { epoch, first_seq, last_seq } => {
            writer.bytes(&[OVERFLOW, 16]);
            writer.u64(epoch.0);
            writer.u32(first_seq);
            writer.u32(last_seq);
        }
        DeviceEventKind::LogFormatted => writer.bytes(&[LOG_FORMATTED, 0]),
        DeviceEventKind::SensorSilent(Sensor(code)) => writer.bytes(&[SENSOR_SILENT, 1, code]),
        DeviceEventKind::SensorAnswers(Sensor(code)) => writer.bytes(&[SENSOR_ANSWERS, 1, code]),
        DeviceEventKind::Interval { channel, every_ms } => {
            writer.bytes(&[INTERVAL, 6]);
            writer.u16(channel.0);
            writer.u32(every_ms);
        }
        DeviceEventKind::Unknown(code) => writer.bytes(&[code, 0]),
    }
    let end = writer.len();
    seal(out, end)
}
