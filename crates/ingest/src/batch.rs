//! Decode, validate and normalise: from a payload as published to frames of readings in their units and in UTC.
//!
//! Pure: nothing here knows the database. Every frame of a batch comes out with what is to be written, or with the
//! reason for which it is to be refused; what cannot be read at all is an error for the whole payload.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use kinara_protocol::channel::{self, ChannelId, Shape};
use kinara_protocol::columns::{self, BlockView, Decoded};
use kinara_protocol::envelope::{self, DeviceFrames, ENVELOPE_VERSION, EnvelopeError, Fit};
use kinara_protocol::frame::{
    Body, BootAnchor, DeviceEvent, Epoch, FrameError, FrameRef, Header, Kind, MAX_FRAME, Ticks,
};
use kinara_protocol::hardware::HardwareId;
use uuid::Uuid;

use crate::order::Class;
use crate::quality;

/// The name of a batch or event batch, unique for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// Who sealed it.
    pub gateway: Uuid,
    /// Drawn at the daemon's start.
    pub buffer: u64,
    /// From 0 in each buffer.
    pub sequence: u64,
}

/// Why a payload cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// No name, or not the sender's.
    #[error("the batch has no name of 16 bytes")]
    Name,
    /// Reading it took longer than it may. Nothing is known of what it holds.
    #[error("the batch takes too long to read")]
    TooLong,
}

impl From<Name> for envelope::Name {
    fn from(name: Name) -> Self {
        Self { gateway: name.gateway.as_bytes().to_vec(), buffer: name.buffer, sequence: name.sequence }
    }
}

/// Reads an envelope's name.
pub fn name(name: Option<&envelope::Name>) -> Result<Name, Unreadable> {
    let name = name.ok_or(Unreadable::Name)?;
    let gateway = Uuid::from_slice(&name.gateway).map_err(|_| Unreadable::Name)?;
    Ok(Name { gateway, buffer: name.buffer, sequence: name.sequence })
}

/// Who brought a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A gateway: whose it is says the database.
    Gateway(Uuid),
    /// A clinic itself, over HTTP, known by its key.
    Clinic(Uuid),
}

impl Sender {
    /// The gateway, where one brought it.
    pub fn gateway(self) -> Option<Uuid> {
        match self {
            Self::Gateway(gateway) => Some(gateway),
            Self::Clinic(_) => None,
        }
    }
}

/// A decoded batch.
#[derive(Debug)]
pub struct Batch {
    /// Its name.
    pub name: Name,
    /// Who brought it.
    pub sender: Sender,
    /// When it was sealed, by the gateway's clock, UTC microseconds; 0 where nobody says.
    pub sealed_at_us: i64,
    pub(crate) devices: Vec<DeviceBatch>,
    /// Parts whose columns contradict each other.
    pub(crate) unreadable: Vec<UnreadablePart>,
    readings: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct UnreadablePart {
    pub hardware_id: String,
    pub epoch: u64,
    pub frames: u64,
    pub detail: String,
    pub payload: Vec<u8>,
}

/// Frames of one device and epoch.
#[derive(Debug)]
pub(crate) struct DeviceBatch {
    pub hardware_id: String,
    pub epoch: Epoch,
    pub frames: Vec<Frame>,
    pub samples: Vec<Sample>,
    pub waves: Vec<Wave>,
    /// Whether there may be channels beyond the registry among its samples.
    pub foreign_channels: bool,
    /// What it was decoded from: a frame that is refused is built again from it.
    pub columns: Arc<DeviceFrames>,
}

#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub seq: u32,
    pub crc: u32,
    /// Index into the columns' fits.
    pub fit: Option<u32>,
    /// Of samples: what they follow in order.
    pub class: Option<Class>,
    /// Of its first and of its last sample.
    pub ticks: (u64, u64),
    pub first_us: i64,
    pub last_us: i64,
    pub uncertainty_us: u64,
    pub samples: Range<u32>,
    pub waves: Range<u32>,
    pub content: Content,
    pub at: At,
}

/// Where a frame is in its columns.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    Samples(u32),
    Other(u32),
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Samples,
    Sync,
    Boot(BootAnchor),
    Events(Vec<DeviceEvent>),
    /// Not to be taken, and why.
    Refused(&'static str, String),
}

/// A reading, in its channel's unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub utc_us: i64,
    pub value: f64,
    pub quality: f32,
    pub kind: i16,
    pub index: i16,
}

/// A block of waveform samples, kept as integers.
#[derive(Debug, Clone)]
pub(crate) struct Wave {
    pub utc_us: i64,
    pub kind: i16,
    pub index: i16,
    pub interval_ms: Option<f64>,
    pub ticks: Option<Vec<i64>>,
    pub scale: f64,
    pub components: i16,
    pub data: Vec<u8>,
    pub quality: f32,
}

/// Reads a payload as published.
pub fn decode(payload: &[u8]) -> Result<Batch, Unreadable> {
    read(envelope::open(payload)?, None)
}

/// [`decode`], given up at a point in time.
pub fn decode_until(payload: &[u8], until: Instant) -> Result<Batch, Unreadable> {
    read(envelope::open(payload)?, Some(until))
}

/// Reads an opened envelope.
pub fn from_envelope(batch: envelope::Batch) -> Result<Batch, Unreadable> {
    read(batch, None)
}

fn read(batch: envelope::Batch, until: Option<Instant>) -> Result<Batch, Unreadable> {
    if batch.version == 0 || batch.version > ENVELOPE_VERSION {
        return Err(EnvelopeError::Version(batch.version).into());
    }
    let name = name(batch.name.as_ref())?;
    let mut out = Batch {
        name,
        sender: Sender::Gateway(name.gateway),
        sealed_at_us: batch.sealed_at_us,
        devices: Vec::with_capacity(batch.devices.len()),
        unreadable: Vec::new(),
        readings: 0,
    };
    for columns in batch.devices {
        if until.is_some_and(|until| Instant::now() > until) {
            return Err(Unreadable::TooLong);
        }
        match device(columns) {
            Ok(device) => {
                out.readings += device.samples.len() + device.waves.len();
                out.devices.push(device);
            }
            Err(part) => out.unreadable.push(*part),
        }
    }
    Ok(out)
}

impl Batch {
    /// The same, brought by a clinic itself.
    #[must_use]
    pub fn of_clinic(self, tenant: Uuid) -> Self {
        Self { sender: Sender::Clinic(tenant), ..self }
    }

    /// Readings in it (a block of a waveform counts as one here).
    pub fn readings(&self) -> usize {
        self.readings
    }

    /// Frames in it.
    pub fn frames(&self) -> u64 {
        self.devices.iter().map(|device| device.frames.len() as u64).sum::<u64>()
            + self.unreadable.iter().map(|part| part.frames).sum::<u64>()
    }

    /// This batch without its frames: the parts that could not be read.
    pub(crate) fn unreadable_alone(&self) -> Self {
        let unreadable = self.unreadable.clone();
        let (devices, readings) = (Vec::new(), 0);
        Self { devices, unreadable, readings, ..*self }
    }

    /// Frames that were read, all devices' one after another.
    pub(crate) fn len(&self) -> usize {
        self.devices.iter().map(|device| device.frames.len()).sum()
    }

    /// This batch with some of its [frames](Self::len) alone, and without the parts that could not be read.
    pub(crate) fn part(&self, frames: Range<usize>) -> Self {
        let mut devices = Vec::new();
        let mut before = 0;
        for device in &self.devices {
            let within = |at: usize| at.saturating_sub(before).min(device.frames.len());
            let range = within(frames.start)..within(frames.end);
            if !range.is_empty() {
                devices.push(device.part(range));
            }
            before += device.frames.len();
        }
        let readings = devices.iter().map(|device| device.samples.len() + device.waves.len()).sum();
        Self { devices, unreadable: Vec::new(), readings, ..*self }
    }

    /// Work that it makes: frames, and what each of them holds.
    pub fn weight(&self) -> usize {
        self.devices.iter().flat_map(|device| &device.frames).map(Frame::weight).sum()
    }

    /// This batch in parts of about so much [work](Self::weight), and of no more than so many devices (each epoch of one
    /// counted), each to be written by itself. Almost every batch is one.
    pub fn pieces(self, most: usize, devices: usize) -> Pieces {
        let is_small = self.weight() <= most && self.devices.len() <= devices;
        let open = if is_small { std::iter::once(0..self.len()).collect() } else { self.cuts(most, devices) };
        Pieces { is_cut: open.len() > 1, whole: Some(self), open }
    }

    fn cuts(&self, most: usize, devices: usize) -> VecDeque<Range<usize>> {
        let frames = self
            .devices
            .iter()
            .enumerate()
            .flat_map(|(of, device)| device.frames.iter().map(move |one| (of, one)));
        let mut ends = Vec::new();
        let (mut weight, mut first) = (0, 0);
        for (at, (device, frame)) in frames.enumerate() {
            let more = frame.weight();
            if weight > 0 && (weight + more > most || device - first >= devices) {
                ends.push(at);
                weight = 0;
            }
            if weight == 0 {
                first = device;
            }
            weight += more;
        }
        ends.push(self.len());
        let starts = std::iter::once(0).chain(ends.clone());
        starts.zip(ends).map(|(start, end)| start..end).collect()
    }
}

/// A batch in parts. Each is made when it is its turn, so that what a sender makes large is in memory once, and a part of it
/// beside.
#[derive(Debug)]
pub struct Pieces {
    whole: Option<Batch>,
    is_cut: bool,
    open: VecDeque<Range<usize>>,
}

impl Iterator for Pieces {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let range = self.open.pop_front()?;
        if !self.is_cut {
            return self.whole.take();
        }
        let whole = self.whole.as_mut()?;
        let piece = Batch { unreadable: std::mem::take(&mut whole.unreadable), ..whole.part(range) };
        if self.open.is_empty() {
            self.whole = None;
        }
        Some(piece)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.open.len(), Some(self.open.len()))
    }
}

impl ExactSizeIterator for Pieces {}

impl Frame {
    /// Whether its number is known: not of bytes that are no frame.
    pub fn is_named(&self) -> bool {
        matches!(self.at, At::Samples(_)) || !matches!(self.content, Content::Refused("damaged", _))
    }

    /// Work that it makes: itself and what it holds.
    fn weight(&self) -> usize {
        let events = if let Content::Events(events) = &self.content { events.len() } else { 0 };
        1 + self.samples.len() + self.waves.len() + events
    }
}

/// What is kept of a frame that is put aside.
#[derive(Debug)]
pub(crate) struct Kept {
    /// `frame`, or `payload` where only its columns are left.
    pub what: &'static str,
    pub bytes: Vec<u8>,
}

impl DeviceBatch {
    fn part(&self, frames: Range<usize>) -> Self {
        let chosen = &self.frames[frames];
        let (first, last) = (&chosen[0], &chosen[chosen.len() - 1]);
        let (samples, waves) = (first.samples.start..last.samples.end, first.waves.start..last.waves.end);
        let shifted = |range: &Range<u32>, by: u32| range.start - by..range.end - by;
        let frames = chosen.iter().map(|frame| Frame {
            samples: shifted(&frame.samples, samples.start),
            waves: shifted(&frame.waves, waves.start),
            ..frame.clone()
        });
        Self {
            hardware_id: self.hardware_id.clone(),
            epoch: self.epoch,
            frames: frames.collect(),
            samples: self.samples[samples.start as usize..samples.end as usize].to_vec(),
            waves: self.waves[waves.start as usize..waves.end as usize].to_vec(),
            foreign_channels: self.foreign_channels,
            columns: Arc::clone(&self.columns),
        }
    }

    /// What is kept of some frames: each as the gateway received it, or its columns where it cannot be built again.
    pub fn kept<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> Vec<Kept> {
        use prost::Message as _;
        let decoded = columns::decode(&self.columns).expect("these columns were decoded before");
        let mut out = [0; MAX_FRAME];
        let keep = |frame: &'a Frame| match frame.at {
            At::Other(index) => {
                Kept { what: "frame", bytes: self.columns.other_frames[index as usize].clone() }
            }
            At::Samples(index) => {
                let frame = &decoded.frames()[index as usize];
                match decoded.rebuild(frame, &mut out) {
                    Ok(len) => Kept { what: "frame", bytes: out[..len].to_vec() },
                    Err(_) => Kept { what: "payload", bytes: decoded.alone(frame).encode_to_vec() },
                }
            }
        };
        frames.map(keep).collect()
    }

    /// The columns of some frames alone, without those of samples that cannot be built again.
    pub fn columns_of<'a>(&self, frames: impl Iterator<Item = &'a Frame> + Clone) -> DeviceFrames {
        let mut rebuilt = Vec::new();
        let mut others = Vec::new();
        for (frame, kept) in frames.clone().zip(self.kept(frames)) {
            match frame.at {
                At::Samples(_) if kept.what == "frame" => rebuilt.push((frame.fit, kept.bytes)),
                At::Samples(_) => {}
                At::Other(_) => others.push((frame.fit, kept.bytes)),
            }
        }
        let parsed = rebuilt.iter().filter_map(|(_, bytes)| FrameRef::parse(bytes).ok());
        let mut columns = columns::encode(&self.hardware_id, self.epoch, parsed)
            .expect("frames of one epoch in their order, as they were read");
        columns.fits.clone_from(&self.columns.fits);
        columns.fit_of = columns::run_lengths(rebuilt.iter().chain(&others).filter_map(|(fit, _)| *fit));
        columns.other_frames = others.into_iter().map(|(_, bytes)| bytes).collect();
        columns
    }

    /// The channels beyond the registry among a frame's samples.
    pub fn foreign_channels<'a>(&'a self, frame: &Frame) -> impl Iterator<Item = i16> + use<'a> {
        let range = |range: &Range<u32>| range.start as usize..range.end as usize;
        let (samples, waves) = (range(&frame.samples), range(&frame.waves));
        let (samples, waves) = if self.foreign_channels {
            (&self.samples[samples], &self.waves[waves])
        } else {
            (&[][..], &[][..])
        };
        let kinds = samples.iter().map(|sample| sample.kind).chain(waves.iter().map(|wave| wave.kind));
        kinds.filter(|kind| is_foreign(*kind as u16))
    }

    /// How the gateway stamped a frame.
    pub fn fit(&self, frame: &Frame) -> Option<&Fit> {
        frame.fit.map(|index| &self.columns.fits[index as usize])
    }
}

/// Whether a channel is none of the registry's.
fn is_foreign(channel: u16) -> bool {
    channel::by_id(ChannelId(channel)).is_none()
}

/// The longest hardware id that the database has room for.
const HARDWARE_ID_MAX: usize = 255;

/// Whether this can be a device's name: a text that the database refuses would stop all that is written with it.
pub(crate) fn is_hardware_id(id: &str) -> bool {
    (1..=HARDWARE_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A device's name as everybody writes it. One that cannot be read stays: nobody has such a device, and what it measured
/// is kept aside for a person to look at.
pub(crate) fn canonical(id: &mut String) {
    if let Ok(hardware) = HardwareId::parse(id) {
        hardware.as_str().clone_into(id);
    }
}

/// Reads a device's name as everybody writes it, at the doors that keep nothing aside; whether it can be one.
pub fn identify(id: &mut String) -> bool {
    canonical(id);
    is_hardware_id(id)
}

/// What of a device's name can be kept, for a person who looks for what was refused.
pub(crate) fn cleaned(id: &str) -> String {
    id.chars().filter(char::is_ascii_graphic).take(HARDWARE_ID_MAX).collect()
}

/// Reads the frames of one device and epoch.
pub(crate) fn device(mut columns: DeviceFrames) -> Result<DeviceBatch, Box<UnreadablePart>> {
    canonical(&mut columns.hardware_id);
    let unreadable = |columns: &DeviceFrames, detail: String| {
        use prost::Message as _;
        Box::new(UnreadablePart {
            hardware_id: cleaned(&columns.hardware_id),
            epoch: columns.epoch,
            frames: (columns.ticks.len() + columns.other_frames.len()) as u64,
            detail,
            payload: columns.encode_to_vec(),
        })
    };
    if !is_hardware_id(&columns.hardware_id) {
        let detail = "a hardware id of 1 to 255 printable ASCII characters is needed";
        return Err(unreadable(&columns, detail.to_owned()));
    }
    let decoded = match columns::decode(&columns) {
        Ok(decoded) => decoded,
        Err(error) => return Err(unreadable(&columns, error.to_string())),
    };
    let total: usize = columns.series.iter().map(|series| series.values.len()).sum();
    let mut out = Normalised {
        items: Vec::with_capacity(decoded.frames().len() + decoded.others().len()),
        samples: Vec::with_capacity(total),
        waves: Vec::new(),
    };
    out.take_samples(&decoded);
    out.take_others(&decoded);
    let Normalised { items: frames, mut samples, waves } = out;
    drop(decoded);
    quality::judge(&mut samples);
    Ok(DeviceBatch {
        hardware_id: columns.hardware_id.clone(),
        epoch: Epoch(columns.epoch),
        frames,
        samples,
        waves,
        foreign_channels: columns.series.iter().any(|series| is_foreign(series.channel as u16)),
        columns: Arc::new(columns),
    })
}

struct Normalised {
    items: Vec<Frame>,
    samples: Vec<Sample>,
    waves: Vec<Wave>,
}

/// A fit made quick: UTC at one tick, and the rate from there. Within a frame the distances are small.
struct Stamp {
    at: u64,
    utc_us: i64,
    rate_ppb: i64,
}

impl Stamp {
    fn new(fit: &Fit, at: Ticks) -> Self {
        Self { at: at.0, utc_us: fit.utc_us(at.0), rate_ppb: i64::from(fit.rate_ppb) }
    }

    #[inline]
    fn utc_us(&self, ticks: Ticks) -> i64 {
        let elapsed_us = (ticks.0 - self.at) as i64 * 1_000;
        // A frame may claim a span of weeks; the product must not overflow then.
        let drift_us = match elapsed_us.checked_mul(self.rate_ppb) {
            Some(product) => product / 1_000_000_000,
            None => elapsed_us / 1_000_000_000 * self.rate_ppb,
        };
        self.utc_us.saturating_add(elapsed_us + drift_us)
    }
}

impl Normalised {
    fn take_samples(&mut self, decoded: &Decoded<'_>) {
        let fits = &decoded.columns().fits;
        for (at, frame) in decoded.frames().iter().enumerate() {
            let (samples, waves) = (self.samples.len() as u32, self.waves.len() as u32);
            let mut out = Frame {
                seq: frame.seq,
                crc: frame.crc,
                fit: frame.fit,
                class: class(frame.kind),
                ticks: (frame.ticks.0, frame.ticks.0),
                first_us: 0,
                last_us: 0,
                uncertainty_us: 0,
                samples: samples..samples,
                waves: waves..waves,
                content: Content::Samples,
                at: At::Samples(at as u32),
            };
            match (frame.fault, frame.fit) {
                (Some(fault), index) => {
                    out.content = Content::Refused("damaged", fault.to_string());
                    if let Some(index) = index {
                        out.first_us = fits[index as usize].utc_us(frame.ticks.0);
                        out.last_us = out.first_us;
                    }
                }
                (None, None) => out.content = no_time(),
                (None, Some(index)) => {
                    let fit = &fits[index as usize];
                    let stamp = Stamp::new(fit, frame.ticks);
                    (out.first_us, out.last_us) = (i64::MAX, i64::MIN);
                    let mut index = 0u32;
                    let mut last_ticks = frame.ticks;
                    for block in decoded.blocks(frame) {
                        index = self.take_block(&block, frame.kind, &stamp, index, &mut out, &mut last_ticks);
                    }
                    out.ticks.1 = last_ticks.0;
                    out.uncertainty_us =
                        fit.uncertainty_at(frame.ticks.0).max(fit.uncertainty_at(last_ticks.0));
                    out.samples.end = self.samples.len() as u32;
                    out.waves.end = self.waves.len() as u32;
                }
            }
            self.items.push(out);
        }
    }

    fn take_block(
        &mut self,
        block: &BlockView<'_>,
        frame_kind: Kind,
        stamp: &Stamp,
        mut index: u32,
        frame: &mut Frame,
        last_ticks: &mut Ticks,
    ) -> u32 {
        let known = channel::by_id(block.channel);
        let kind = block.channel.0 as i16;
        let step = known.map_or(1.0, |channel| channel.step);
        // All steps are 1, a tenth, a hundredth, …: dividing gives the decimal itself, 21.24 and not 21.240000000000002.
        let per_unit = (1.0 / step).round();
        let quality = quality::of_range(known);
        let wave = match known {
            Some(channel) => channel.shape == Shape::Waveform,
            None => frame_kind == Kind::Waveform,
        } || block.components > 1;
        if wave {
            let first_us = stamp.utc_us(block.first_ticks);
            let ticks: Vec<i64> = block.samples().map(|(ticks, _)| ticks.0 as i64).collect();
            let last = Ticks(*ticks.last().unwrap_or(&0) as u64);
            frame.first_us = frame.first_us.min(first_us);
            frame.last_us = frame.last_us.max(stamp.utc_us(last));
            *last_ticks = (*last_ticks).max(last);
            self.waves.push(Wave {
                utc_us: first_us,
                kind,
                index: index as i16,
                interval_ms: (!block.own_ticks && block.count() > 1).then_some(f64::from(block.interval)),
                ticks: block.own_ticks.then_some(ticks),
                scale: step,
                components: i16::from(block.components),
                data: block.values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                quality: block.values.iter().map(|&v| quality(f64::from(v) / per_unit)).fold(1.0, f32::min),
            });
            return index + block.count() as u32;
        }
        for (ticks, values) in block.samples() {
            let utc_us = stamp.utc_us(ticks);
            let value = f64::from(values[0]) / per_unit;
            self.samples.push(Sample { utc_us, value, quality: quality(value), kind, index: index as i16 });
            index += 1;
            frame.first_us = frame.first_us.min(utc_us);
            frame.last_us = frame.last_us.max(utc_us);
            *last_ticks = (*last_ticks).max(ticks);
        }
        index
    }

    fn take_others(&mut self, decoded: &Decoded<'_>) {
        let (samples, waves) = (self.samples.len() as u32, self.waves.len() as u32);
        for (at, other) in decoded.others().iter().enumerate() {
            let (header, crc, content) = read_other(other.bytes, decoded.epoch());
            let mut out = Frame {
                seq: header.seq,
                crc,
                fit: other.fit,
                class: None,
                ticks: (header.ticks.0, header.ticks.0),
                first_us: 0,
                last_us: 0,
                uncertainty_us: 0,
                samples: samples..samples,
                waves: waves..waves,
                content,
                at: At::Other(at as u32),
            };
            match other.fit {
                None if !matches!(out.content, Content::Refused(..)) => out.content = no_time(),
                None => {}
                Some(index) => {
                    let fit = &decoded.columns().fits[index as usize];
                    out.first_us = fit.utc_us(header.ticks.0);
                    out.last_us = out.first_us;
                    out.uncertainty_us = fit.uncertainty_at(header.ticks.0);
                }
            }
            self.items.push(out);
        }
    }
}

fn class(kind: Kind) -> Option<Class> {
    match kind {
        Kind::Scalar => Some(Class::Scalar),
        Kind::Waveform => Some(Class::Waveform),
        _ => None,
    }
}

fn no_time() -> Content {
    Content::Refused("no_time", "the batch does not say when this frame was made".to_owned())
}

fn read_other(bytes: &[u8], epoch: Epoch) -> (Header, u32, Content) {
    let nameless = Header { version: 0, kind: Kind::Unknown(0), epoch, seq: 0, ticks: Ticks(0) };
    let frame = match FrameRef::parse(bytes) {
        Ok(frame) => frame,
        Err(error) => return (nameless, 0, Content::Refused("damaged", error.to_string())),
    };
    let header = frame.header();
    if header.epoch != epoch {
        let detail = format!("a frame of epoch {} among those of {epoch}", header.epoch);
        return (header, frame.crc(), Content::Refused("damaged", detail));
    }
    let content = match frame.body() {
        Ok(Body::SyncAnchor(_)) => Content::Sync,
        Ok(Body::BootAnchor(anchor)) => Content::Boot(anchor),
        Ok(Body::DeviceEvents(events)) => Content::Events(events.iter().collect()),
        // Samples travel in columns; as they are only from a gateway that could not decode them.
        Ok(Body::Samples(_)) => Content::Refused("undecodable", "samples outside the columns".to_owned()),
        Ok(Body::Unknown(_)) => {
            Content::Refused("undecodable", format!("kind {:#04x}", header.kind.to_byte()))
        }
        Err(error @ (FrameError::Version(_) | FrameError::Body | FrameError::Length | FrameError::Crc)) => {
            Content::Refused("undecodable", error.to_string())
        }
    };
    (header, frame.crc(), content)
}

/// Puts one frame, as received, into a batch of its own: the way back from quarantine, through the ordinary write.
pub fn batch_of_frame(
    sender: Sender,
    hardware_id: &str,
    bytes: &[u8],
    fit: Option<Fit>,
) -> Result<Batch, Unreadable> {
    let mut columns = match FrameRef::parse(bytes) {
        Ok(frame) => columns::encode(hardware_id, frame.header().epoch, [frame]).unwrap_or_default(),
        Err(_) => DeviceFrames { other_frames: vec![bytes.to_vec()], ..DeviceFrames::default() },
    };
    hardware_id.clone_into(&mut columns.hardware_id);
    if let Some(fit) = fit {
        columns.fits = vec![fit];
        columns.fit_of = vec![0, 1];
    }
    let gateway = sender.gateway().unwrap_or_default();
    let batch = from_envelope(envelope::Batch {
        version: ENVELOPE_VERSION,
        name: Some(Name { gateway, buffer: 0, sequence: 0 }.into()),
        sealed_at_us: 0,
        devices: vec![columns],
    })?;
    Ok(Batch { sender, ..batch })
}
