//! Requests that the gateway writes to `control`, and the replies that the wearable indicates.
//!
//! Every request has an id and gets one reply with the same id; an ATT confirmation means nothing. A request is the
//! id (u16), an operation byte and its fields; a reply is the id (u16), a result byte and its fields; all
//! little-endian. Every message that names a seq names its epoch.

use crate::frame::{Epoch, ResetReason, Seq, Ticks};
use crate::intervals::Intervals;
use crate::wire::{Malformed, Reader, Writer};

/// The longest request or reply.
pub const MAX_MESSAGE: usize = 200;
/// Bytes of an image in one [`Op::UpdateData`] at most.
pub const UPDATE_CHUNK: usize = 184;

/// The version of these messages.
pub const PROTOCOL_VERSION: u8 = 1;

/// A message on `control` that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(thiserror::Error))]
#[cfg_attr(feature = "std", error("the control message is not well-formed"))]
pub struct ControlError;

impl From<Malformed> for ControlError {
    fn from(_: Malformed) -> Self {
        Self
    }
}

/// What the gateway asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Repeated in the reply.
    pub id: u16,
    /// What is asked.
    pub op: Op,
}

/// The operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Who are you, and what do you hold? Reply: [`Outcome::Hello`].
    Hello,
    /// What are your ticks now? Reply: [`Outcome::Time`], sent at once.
    TimeProbe,
    /// At `ticks` it was `utc_us`: the wearable writes an anchor frame.
    SetTime {
        /// The wearable's ticks.
        ticks: Ticks,
        /// UTC in microseconds since 1970.
        utc_us: i64,
        /// Half the round trip plus the gateway's own uncertainty.
        uncertainty_us: u32,
    },
    /// Everything up to and with this frame, in the order of the log, is on the gateway's disk.
    Ack {
        /// The frame's epoch.
        epoch: Epoch,
        /// The frame's seq.
        seq: Seq,
    },
    /// Something is missing: send the backlog again from this frame on.
    ResendFrom {
        /// The frame's epoch.
        epoch: Epoch,
        /// The frame's seq.
        seq: Seq,
    },
    /// Send the log on `backlog`, from the oldest frame that is not acknowledged, with at most `window` frames
    /// sent and not acknowledged.
    StartBacklog {
        /// 1 to 100.
        window: u8,
    },
    /// Also send frames on `stream` as they close, and close them every second.
    StreamOn,
    /// No more `stream`.
    StreamOff,
    /// Show a person which one you are.
    Identify,
    /// Close the open frames now. The reply comes when they are in flash. What firmware that does not know
    /// [`Op::HandOver`] is asked at a hand-over.
    CloseFrame,
    /// Forget the log, start a new one. A person accepted the loss.
    Format,
    /// Which waveforms to record.
    SetPlan {
        /// Photoplethysmogram.
        ppg: bool,
        /// Acceleration.
        acceleration: bool,
    },
    /// Let another gateway pair by this introduction. It takes the place of one that lives already.
    Admit {
        /// An `IntroductionSecret`.
        secret: [u8; 16],
        /// Seconds for which it lives, from now; 1 to [`MAX_ADMISSION_S`].
        lives_s: u32,
    },
    /// Forget a gateway. That of the asking gateway itself may be named: its link ends after the reply. Forgetting one
    /// that is not known is no error: a revocation may come twice.
    Revoke {
        /// The gateway's identity address, most significant byte first, as it is written for people.
        bond: [u8; 6],
    },
    /// Take a firmware image of so many bytes, or go on with it. Reply: [`Outcome::UpdateAt`].
    UpdateStart {
        /// Bytes of the whole image, its header among them.
        size: u32,
        /// The first 16 bytes of its SHA-256: another number begins anew.
        image: [u8; 16],
    },
    /// Bytes of the image, in ascending order. Reply: [`Outcome::UpdateAt`], where to go on.
    UpdateData {
        /// Where in the image they are; a multiple of 4.
        offset: u32,
        /// The bytes; a multiple of 4 but for the last.
        bytes: Chunk,
    },
    /// The image is whole: verify it, and start it. The reply comes before the restart.
    UpdateFinish,
    /// Why did you start? Reply: [`Outcome::Started`], or [`Refusal::NotInLog`] where that is not known any more.
    WhyStarted {
        /// The start that is meant: 0 is the last one, 1 the one before it.
        back: u8,
    },
    /// Which is the oldest frame that you still hold, acknowledged or not? Reply: [`Outcome::OldestHeld`]. A gateway that
    /// has lost its copy asks for it with [`Op::ResendFrom`]. Not a part of [`Hello`]: a gateway of an earlier version
    /// refuses a Hello that is longer than its own.
    OldestHeld,
    /// Close the open frames now, and say which frame is the next: the boundary between two wearers. Reply, when they are
    /// in flash: [`Outcome::Boundary`]. One question, because a frame may close between two. Not a longer reply to
    /// [`Op::CloseFrame`]: a gateway of an earlier version refuses that.
    HandOver,
    /// Measure by these intervals from now on, and by the reference plan's whatever is not among them. All of them are taken
    /// or none ([`Refusal::BadField`]; [`Refusal::UnknownOperation`] where one is of a channel that firmware cannot set). The log says from when on; a reset brings the reference plan back.
    SetIntervals(Intervals),
    /// By which intervals do you measure? Reply: [`Outcome::Intervals`].
    TellIntervals,
}

/// A start, for a log of resets and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Why.
    pub reason: ResetReason,
    /// Where the program failed; none where it did not, or nothing is known.
    pub place: Option<Place>,
}

/// A place in a program's text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u32,
    length: u8,
    file: [u8; PLACE_FILE],
}

/// Bytes of a file's name in a [`Place`]: its end, which says more than its beginning.
pub const PLACE_FILE: usize = 40;

impl Place {
    /// A line of a file.
    pub fn new(file: &[u8], line: u32) -> Self {
        let end = &file[file.len().saturating_sub(PLACE_FILE)..];
        let mut place = Self { line, length: end.len() as u8, file: [0; PLACE_FILE] };
        place.file[..end.len()].copy_from_slice(end);
        place
    }

    /// The end of the file's name. Not necessarily whole characters.
    pub fn file(&self) -> &[u8] {
        &self.file[..usize::from(self.length)]
    }
}

impl core::fmt::Debug for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for byte in self.file() {
            let shown = if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
            core::fmt::Write::write_char(f, shown)?;
        }
        write!(f, ":{}", self.line)
    }
}

/// Some bytes of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    length: u8,
    bytes: [u8; UPDATE_CHUNK],
}

impl Chunk {
    /// Of these bytes; none if they are too many, or none.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut chunk = Self { length: bytes.len() as u8, bytes: [0; UPDATE_CHUNK] };
        chunk.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (!bytes.is_empty()).then_some(chunk)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl core::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Chunk({} bytes)", self.length)
    }
}

/// The longest life of an introduction: a day.
pub const MAX_ADMISSION_S: u32 = 24 * 60 * 60;

/// What the wearable answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The request's.
    pub id: u16,
    /// The answer.
    pub outcome: Outcome,
}

/// The kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not done.
    Refused(Refusal),
    /// To [`Op::Hello`].
    Hello(Hello),
    /// To [`Op::TimeProbe`].
    Time(Ticks),
    /// To [`Op::UpdateStart`] and [`Op::UpdateData`]: the image is there up to here.
    UpdateAt(u32),
    /// To [`Op::WhyStarted`].
    Started(Start),
    /// To [`Op::OldestHeld`]: the running epoch and its next seq when there is none.
    OldestHeld {
        /// The frame's epoch.
        epoch: Epoch,
        /// The frame's seq.
        seq: Seq,
    },
    /// To [`Op::HandOver`]: the first frame after the boundary.
    Boundary {
        /// The running epoch.
        epoch: Epoch,
        /// The seq of its next frame.
        next_seq: Seq,
    },
    /// To [`Op::TellIntervals`]: those that are not the reference plan's.
    Intervals(Intervals),
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The operation is not known to this firmware.
    UnknownOperation,
    /// A field is out of its range.
    BadField,
    /// The log does not hold this frame (any more).
    NotInLog,
    /// Flash failed or is full.
    Storage,
    /// No place for one more.
    OutOfSlots,
    /// The image's version is not above the one that runs.
    NotNewer,
    /// The image is not whole, not for this board, or not signed by its maker.
    BadImage,
    /// A reason of a later version.
    Other(u8),
}

impl Refusal {
    const fn to_byte(self) -> u8 {
        match self {
            Self::UnknownOperation => 1,
            Self::BadField => 2,
            Self::NotInLog => 3,
            Self::Storage => 4,
            Self::OutOfSlots => 5,
            Self::NotNewer => 6,
            Self::BadImage => 7,
            Self::Other(byte) => byte,
        }
    }

    const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::UnknownOperation,
            2 => Self::BadField,
            3 => Self::NotInLog,
            4 => Self::Storage,
            5 => Self::OutOfSlots,
            6 => Self::NotNewer,
            7 => Self::BadImage,
            other => Self::Other(other),
        }
    }
}

/// Who the wearable is and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Version of the control messages.
    pub protocol: u8,
    /// The 64-bit factory id: `kinara:<16 hex>`.
    pub factory_id: u64,
    /// Firmware version: major, minor, patch.
    pub firmware: [u8; 3],
    /// The running epoch.
    pub epoch: Epoch,
    /// The ticks now.
    pub ticks: Ticks,
    /// The oldest frame that is not acknowledged; the running epoch and `next_seq` when there is none.
    pub oldest: (Epoch, Seq),
    /// The seq of the next frame of the running epoch.
    pub next_seq: Seq,
    /// Frames stored and not acknowledged.
    pub stored_frames: u32,
}

impl Request {
    /// Encodes into `out`; gives the written bytes.
    pub fn encode<'a>(&self, out: &'a mut [u8; MAX_MESSAGE]) -> &'a [u8] {
        let mut writer = Writer::new(out);
        writer.u16(self.id);
        match self.op {
            Op::Hello => writer.u8(1),
            Op::TimeProbe => writer.u8(2),
            Op::SetTime { ticks, utc_us, uncertainty_us } => {
                writer.u8(3);
                writer.u48(ticks.0);
                writer.i64(utc_us);
                writer.u32(uncertainty_us);
            }
            Op::Ack { epoch, seq } => write_frame_op(&mut writer, 4, epoch, seq),
            Op::ResendFrom { epoch, seq } => write_frame_op(&mut writer, 5, epoch, seq),
            Op::StartBacklog { window } => writer.bytes(&[6, window]),
            Op::StreamOn => writer.u8(7),
            Op::StreamOff => writer.u8(8),
            Op::Identify => writer.u8(9),
            Op::CloseFrame => writer.u8(10),
            Op::Format => writer.u8(11),
            Op::SetPlan { ppg, acceleration } => {
                writer.bytes(&[12, u8::from(ppg) | u8::from(acceleration) << 1]);
            }
            Op::Admit { secret, lives_s } => {
                writer.u8(13);
                writer.bytes(&secret);
                writer.u32(lives_s);
            }
            Op::Revoke { bond } => {
                writer.u8(14);
                writer.bytes(&bond);
            }
            Op::UpdateStart { size, image } => {
                writer.u8(15);
                writer.u32(size);
                writer.bytes(&image);
            }
            Op::UpdateData { offset, bytes } => {
                writer.u8(16);
                writer.u32(offset);
                writer.bytes(bytes.as_bytes());
            }
            Op::UpdateFinish => writer.u8(17),
            Op::WhyStarted { back } => writer.bytes(&[18, back]),
            Op::OldestHeld => writer.u8(19),
            Op::HandOver => writer.u8(20),
            Op::SetIntervals(intervals) => {
                writer.u8(21);
                intervals.write(&mut writer);
            }
            Op::TellIntervals => writer.u8(22),
        }
        writer.written()
    }

    /// Decodes. An operation that is not known gives the id, so that it can be refused by it.
    pub fn decode(bytes: &[u8]) -> Result<Result<Self, u16>, ControlError> {
        let mut reader = Reader::new(bytes);
        let id = reader.u16()?;
        let op = match reader.u8()? {
            1 => Op::Hello,
            2 => Op::TimeProbe,
            3 => Op::SetTime {
                ticks: Ticks(reader.u48()?),
                utc_us: reader.i64()?,
                uncertainty_us: reader.u32()?,
            },
            4 => Op::Ack { epoch: Epoch(reader.u64()?), seq: reader.u32()? },
            5 => Op::ResendFrom { epoch: Epoch(reader.u64()?), seq: reader.u32()? },
            6 => Op::StartBacklog { window: reader.u8()? },
            7 => Op::StreamOn,
            8 => Op::StreamOff,
            9 => Op::Identify,
            10 => Op::CloseFrame,
            11 => Op::Format,
            12 => {
                let bits = reader.u8()?;
                Op::SetPlan { ppg: bits & 1 != 0, acceleration: bits & 2 != 0 }
            }
            13 => Op::Admit { secret: reader.array()?, lives_s: reader.u32()? },
            14 => Op::Revoke { bond: reader.array()? },
            15 => Op::UpdateStart { size: reader.u32()?, image: reader.array()? },
            16 => {
                let offset = reader.u32()?;
                let bytes = Chunk::new(reader.rest()).ok_or(ControlError)?;
                return Ok(Ok(Self { id, op: Op::UpdateData { offset, bytes } }));
            }
            17 => Op::UpdateFinish,
            18 => Op::WhyStarted { back: reader.u8()? },
            19 => Op::OldestHeld,
            20 => Op::HandOver,
            21 => match Intervals::read(&mut reader)? {
                Some(intervals) => Op::SetIntervals(intervals),
                None => return Ok(Err(id)),
            },
            22 => Op::TellIntervals,
            _ => return Ok(Err(id)),
        };
        if reader.is_empty() { Ok(Ok(Self { id, op })) } else { Err(ControlError) }
    }
}

fn write_frame_op(writer: &mut Writer<'_>, code: u8, epoch: Epoch, seq: Seq) {
    writer.u8(code);
    writer.u64(epoch.0);
    writer.u32(seq);
}

impl Reply {
    /// Encodes into `out`; gives the written bytes.
    pub fn encode<'a>(&self, out: &'a mut [u8; MAX_MESSAGE]) -> &'a [u8] {
        let mut writer = Writer::new(out);
        writer.u16(self.id);
        match self.outcome {
            Outcome::Ok => writer.u8(0),
            Outcome::Refused(refusal) => writer.bytes(&[1, refusal.to_byte()]),
            Outcome::Hello(hello) => {
                writer.bytes(&[2, hello.protocol]);
                writer.u64(hello.factory_id);
                writer.bytes(&hello.firmware);
                writer.u64(hello.epoch.0);
                writer.u48(hello.ticks.0);
                writer.u64(hello.oldest.0.0);
                writer.u32(hello.oldest.1);
                writer.u32(hello.next_seq);
                writer.u32(hello.stored_frames);
            }
            Outcome::Time(ticks) => {
                writer.u8(3);
                writer.u48(ticks.0);
            }
            Outcome::UpdateAt(offset) => {
                writer.u8(4);
                writer.u32(offset);
            }
            Outcome::OldestHeld { epoch, seq } => write_frame_op(&mut writer, 6, epoch, seq),
            Outcome::Boundary { epoch, next_seq } => write_frame_op(&mut writer, 7, epoch, next_seq),
            Outcome::Intervals(intervals) => {
                writer.u8(8);
                intervals.write(&mut writer);
            }
            Outcome::Started(Start { reason, place }) => {
                writer.bytes(&[5, reason.to_byte()]);
                if let Some(place) = place {
                    writer.u32(place.line);
                    writer.bytes(place.file());
                }
            }
        }
        writer.written()
    }

    /// Decodes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        let mut reader = Reader::new(bytes);
        let id = reader.u16()?;
        let outcome = match reader.u8()? {
            0 => Outcome::Ok,
            1 => Outcome::Refused(Refusal::from_byte(reader.u8()?)),
            2 => Outcome::Hello(Hello {
                protocol: reader.u8()?,
                factory_id: reader.u64()?,
                firmware: [reader.u8()?, reader.u8()?, reader.u8()?],
                epoch: Epoch(reader.u64()?),
                ticks: Ticks(reader.u48()?),
                oldest: (Epoch(reader.u64()?), reader.u32()?),
                next_seq: reader.u32()?,
                stored_frames: reader.u32()?,
            }),
            3 => Outcome::Time(Ticks(reader.u48()?)),
            4 => Outcome::UpdateAt(reader.u32()?),
            5 => {
                let reason = ResetReason::from_byte(reader.u8()?);
                let place = if reader.is_empty() {
                    None
                } else {
                    let line = reader.u32()?;
                    let file = reader.rest();
                    if file.len() > PLACE_FILE {
                        return Err(ControlError);
                    }
                    Some(Place::new(file, line))
                };
                return Ok(Self { id, outcome: Outcome::Started(Start { reason, place }) });
            }
            6 => Outcome::OldestHeld { epoch: Epoch(reader.u64()?), seq: reader.u32()? },
            7 => Outcome::Boundary { epoch: Epoch(reader.u64()?), next_seq: reader.u32()? },
            8 => Outcome::Intervals(Intervals::read(&mut reader)?.ok_or(ControlError)?),
            _ => return Err(ControlError),
        };
        if reader.is_empty() { Ok(Self { id, outcome }) } else { Err(ControlError) }
    }
}
