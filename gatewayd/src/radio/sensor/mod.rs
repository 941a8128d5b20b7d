//! A sensor of another maker: its measurements become frames here.
//!
//! Such a sensor keeps nothing and numbers nothing, so this gateway numbers for it: an epoch drawn at random for each
//! connection, seq from 0, ticks by our own clock since the connection. A frame is numbered before it is on our disk;
//! what was not received was never produced. From there on it is a frame like any other, through the same store.

mod measurement;
mod numbering;

use std::time::Duration;

use bytes::Bytes;
use kinara_protocol::frame::{Body, Epoch, FrameRef};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use measurement::{BadMeasurement, Measurement};
pub use numbering::Numbering;

use super::session::{Context, stored};
use super::{RadioError, SensorConnection};
use crate::hardware::HardwareId;
use crate::status::Link as LinkState;
use crate::store::{Outcome, OwnSync};

/// A frame is closed after this, so that its values are live.
const FRAME_AGE: Duration = Duration::from_secs(1);
/// Frames that wait for a store that does not take them; then the oldest are lost, for nobody else has them.
const MOST_PENDING: usize = 600;
/// How well the time of a notification is that of its measurement: the connection interval, and what the sensor
/// averages over.
const UNCERTAINTY_US: u64 = 1_000_000;
/// How often the signal strength is asked for.
const STRENGTH_EVERY: Duration = Duration::from_secs(10);

/// Serves a connected sensor until the link ends or `cancel` says so.
pub async fn run(
    context: &Context,
    hardware: HardwareId,
    connection: SensorConnection,
    cancel: &CancellationToken,
) -> Result<(), RadioError> {
    let SensorConnection { mut events, mut link } = connection;
    let mut session = Session::begin(context, hardware).await;
    let mut close = tokio::time::interval(FRAME_AGE);
    let mut strength_asked = Instant::now();
    let result = loop {
        tokio::select! {
            () = cancel.cancelled() => break Ok(()),
            event = events.recv() => match event {
                Some(event) => session.take(event.kind, &event.bytes),
                None => break Err(RadioError::Gone("the link was lost".to_owned())),
            },
            _ = close.tick() => {
                session.close().await;
                if strength_asked.elapsed() > STRENGTH_EVERY {
                    strength_asked = Instant::now();
                    if let Some(rssi_dbm) = link.rssi_dbm().await {
                        context.board.device(&session.hardware, |device| device.rssi_dbm = Some(rssi_dbm));
                    }
                }
            }
        }
    };
    session.close().await;
    if result.is_ok() {
        link.disconnect().await;
    }
    result
}

struct Session<'a> {
    context: &'a Context,
    hardware: HardwareId,
    numbering: Numbering,
    began_us: i64,
    pending: Vec<Bytes>,
}

impl<'a> Session<'a> {
    async fn begin(context: &'a Context, hardware: HardwareId) -> Self {
        let epoch = Epoch(rand::rng().random());
        let began_us = context.clock.boottime_us();
        let sync = OwnSync { epoch, ticks: 0, boot_us: began_us, uncertainty_us: UNCERTAINTY_US };
        if let Err(error) = context.store.own_sync(hardware.clone(), sync).await {
            tracing::warn!(%hardware, %error, "the time of this connection was not stored");
        }
        tracing::info!(%hardware, %epoch, "sensor connected");
        context.board.device(&hardware, |device| {
            device.link = LinkState::Live;
            device.trouble.clear();
        });
        Self { context, hardware, numbering: Numbering::new(epoch), began_us, pending: Vec::new() }
    }

    fn ticks(&self) -> u64 {
        let since_us = self.context.clock.boottime_us() - self.began_us;
        u64::try_from(since_us / 1_000).unwrap_or(0)
    }

    fn take(&mut self, kind: super::SensorKind, bytes: &[u8]) {
        match Measurement::read(kind, bytes) {
            Ok(measurement) => self.numbering.take(self.ticks(), &measurement),
            Err(error) => tracing::debug!(hardware = %self.hardware, ?kind, %error, "not a measurement"),
        }
    }

    /// Closes what is open and puts it onto the disk.
    async fn close(&mut self) {
        let closed = self.numbering.close();
        for frame in &closed {
            self.show(frame);
        }
        self.pending.extend(closed);
        if let Some(many) = self.pending.len().checked_sub(MOST_PENDING).filter(|many| *many > 0) {
            tracing::error!(hardware = %self.hardware, frames = many, "lost: the store does not take them");
            self.pending.drain(..many);
        }
        if self.pending.is_empty() {
            return;
        }
        let frames = std::mem::take(&mut self.pending);
        match self.context.store.append(self.hardware.clone(), frames.clone()).await {
            Ok(fates) => {
                for (bytes, fate) in frames.into_iter().zip(fates) {
                    if !fate.outcome.is_safe() {
                        self.pending.push(bytes);
                    } else if fate.outcome == Outcome::Stored
                        && let Ok(frame) = FrameRef::parse(&bytes)
                    {
                        self.context.sink.offer(stored(&self.hardware, &frame, fate.fit));
                    }
                }
            }
            Err(error) => {
                tracing::warn!(hardware = %self.hardware, %error, "not stored; trying again");
                self.pending = frames;
            }
        }
    }

    /// The newest values, for who watches now.
    fn show(&self, bytes: &[u8]) {
        let Ok(frame) = FrameRef::parse(bytes) else { return };
        let (header, now_us) = (frame.header(), self.context.clock.boottime_us());
        let offset = self.context.known.borrow().map(|known| known.utc_us(now_us) - now_us);
        if let (Ok(Body::Samples(samples)), Some(offset)) = (frame.body(), offset) {
            let stamp = |ticks: u64| self.began_us + offset + i64::try_from(ticks).unwrap_or(0) * 1_000;
            self.context.newest.take(
                &self.hardware,
                (header.epoch, header.seq),
                &samples,
                now_us + offset,
                stamp,
            );
        }
        let latest = self.context.newest.values(&self.hardware);
        self.context.board.device(&self.hardware, |device| {
            device.received_frames += 1;
            device.last_frame_us = now_us + offset.unwrap_or(0);
            device.latest = latest;
        });
    }
}
