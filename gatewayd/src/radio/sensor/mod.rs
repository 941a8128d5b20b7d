//! A sensor of another maker: its measurements become frames here.
//!
//! Such a sensor keeps nothing and numbers nothing, so this gateway numbers for it: an epoch drawn at random for each
//! connection, seq from 0, ticks by our own clock since the connection. A frame is numbered before it is on our disk;
//! what was not received was never produced. From there on it is a frame like any other, through the same store.

mod lost;
mod measurement;
mod numbering;
mod stamped;
mod waiting;

use std::time::Duration;

use jiff::tz::TimeZone;
use kinara_protocol::frame::{Body, Epoch, FrameRef};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use measurement::{LeftOut, Measurement};
pub use numbering::Numbering;
use stamped::{Placed, SensorClock};
use waiting::{Dropped, Waiting};

use super::session::Context;
use super::{RadioError, SensorConnection, SensorEvent, SensorReport};
use crate::hardware::HardwareId;
use crate::status::Link as LinkState;
use crate::store::OwnSync;

/// A frame is closed after this, so that its values are live.
const FRAME_AGE: Duration = Duration::from_secs(1);
/// How well the time of a notification is that of its measurement: the connection interval, and what the sensor
/// averages over.
const UNCERTAINTY_US: u64 = 1_000_000;
/// A pulse counts as another measurement of the same heart while a heart rate service told its rate this recently.
const SAME_HEART: Duration = Duration::from_secs(5);
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
    let mut session = Session::begin(context, hardware);
    let mut close = tokio::time::interval(FRAME_AGE);
    let mut strength_asked = Instant::now();
    let result = loop {
        tokio::select! {
            () = cancel.cancelled() => break Ok(()),
            event = events.recv() => match event {
                Some(event) => session.take(&event),
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
    session.end().await;
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
    synced_us: i64,
    clock: SensorClock,
    heart_told: Option<Instant>,
    /// What is not on disk yet.
    waiting: Waiting,
}

impl<'a> Session<'a> {
    fn begin(context: &'a Context, hardware: HardwareId) -> Self {
        let epoch = Epoch(rand::rng().random());
        let began_us = context.clock.boottime_us();
        let sync = OwnSync { epoch, ticks: 0, boot_us: began_us, uncertainty_us: UNCERTAINTY_US };
        tracing::info!(%hardware, %epoch, "sensor connected");
        context.board.device(&hardware, |device| {
            device.link = LinkState::Live;
            device.trouble.clear();
        });
        Self {
            context,
            waiting: Waiting::new(hardware.clone(), sync),
            hardware,
            numbering: Numbering::new(epoch),
            began_us,
            synced_us: began_us,
            clock: SensorClock::new(TimeZone::system()),
            heart_told: None,
        }
    }

    fn ticks(&self) -> u64 {
        let since_us = self.context.clock.boottime_us() - self.began_us;
        u64::try_from(since_us / 1_000).unwrap_or(0)
    }

    fn take(&mut self, event: &SensorEvent) {
        let mut measurement = Measurement::read(event.report, &event.bytes);
        for why in std::mem::take(&mut measurement.left_out) {
            self.leave_out(why);
        }
        self.one_heart(event.report, &mut measurement);
        if measurement.is_empty() {
            return;
        }
        if measurement.stamp.is_none() {
            for _ in 0..self.numbering.take(self.ticks(), &measurement) {
                self.leave_out(LeftOut::TooMany);
            }
            return;
        }
        let now_us = self.context.clock.boottime_us();
        let offset = self.context.known.borrow().map(|known| known.utc_us(now_us) - now_us);
        let placed = self.clock.take(&self.hardware, event.report, measurement, (now_us, offset));
        for one in placed {
            self.keep(one);
        }
        for _ in 0..self.clock.in_the_future() {
            self.leave_out(LeftOut::Future);
        }
    }

    /// A device with a heart rate service and an oximeter tells one heart twice: its heart rate service's rate counts.
    fn one_heart(&mut self, report: SensorReport, measurement: &mut Measurement) {
        if report == SensorReport::HeartRate {
            self.heart_told = measurement.heart_rate.map(|_| Instant::now()).or(self.heart_told);
        } else if self.heart_told.is_some_and(|told| told.elapsed() < SAME_HEART) {
            measurement.heart_rate = None;
        }
    }

    /// Counts what was not taken and shows it on the device's line; the log tells the first and then each hundredth.
    fn leave_out(&self, why: LeftOut) {
        let mut before = 0;
        self.context.board.device(&self.hardware, |device| {
            before = device.left_out;
            device.left_out += 1;
            device.left_out_why = why.to_string();
        });
        if before.is_multiple_of(100) {
            tracing::warn!(hardware = %self.hardware, %why, before, "a sensor's value was left out");
        }
    }

    /// Puts a measurement of the sensor's own time with what is to be stored.
    fn keep(&mut self, placed: Placed) {
        let began_us = placed.sync.boot_us;
        self.waiting.place(placed.sync);
        for frame in placed.frames {
            if placed.is_new {
                self.show(&frame, began_us);
            }
            self.waiting.push(frame);
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        while let Some(dropped) = self.waiting.make_room() {
            self.is_dropped(dropped);
        }
    }

    /// Nobody else has what is dropped here, so it has a gap: where it is no number of this connection, in the place of
    /// the next one.
    fn is_dropped(&mut self, dropped: Dropped) {
        if dropped == Dropped::Stamped {
            let ticks = self.ticks();
            self.waiting.never_comes(self.numbering.skip(), ticks);
        }
        self.leave_out(LeftOut::Store);
    }

    /// The connection is over: what still waits for the sensor's clock to be known is left out, and what waits for the store
    /// goes on without this session. Where too many do so already it gives way, and has its gaps.
    async fn end(mut self) {
        for _ in 0..self.clock.unplaced() {
            self.leave_out(LeftOut::Clock);
        }
        if self.waiting.is_empty() {
            return;
        }
        if let Some(place) = waiting::place() {
            return self.waiting.outlive(place, self.context.store.clone(), self.context.sink.clone());
        }
        while let Some(dropped) = self.waiting.drop_oldest() {
            self.is_dropped(dropped);
        }
        // A full disk takes gaps; one that takes nothing is told of by the store.
        if let Err(error) = self.waiting.store(&self.context.store, &self.context.sink).await {
            tracing::error!(hardware = %self.hardware, %error, "lost, and without a gap: the store takes nothing");
        }
    }

    /// Says anew where the connection's ticks lie, as it is done with wearables: a row that was damaged costs a while then, and
    /// not the connection.
    fn synchronise(&mut self) {
        let since_us = self.context.clock.boottime_us() - self.synced_us;
        if since_us <= self.context.settings.resync.as_micros() as i64 {
            return;
        }
        let ticks = self.ticks();
        let boot_us = self.began_us + i64::try_from(ticks).unwrap_or(0) * 1_000;
        let epoch = self.waiting.epoch();
        self.waiting.place(OwnSync { epoch, ticks, boot_us, uncertainty_us: UNCERTAINTY_US });
        self.synced_us = boot_us;
    }

    /// Closes what is open and puts it onto the disk.
    async fn close(&mut self) {
        if !self.waiting.waits_to_be_placed() {
            self.synchronise();
        }
        for frame in self.numbering.close() {
            self.show(&frame, self.began_us);
            self.waiting.push(frame);
        }
        self.make_room();
        if let Err(error) = self.waiting.store(&self.context.store, &self.context.sink).await {
            tracing::warn!(hardware = %self.hardware, %error, "not stored; trying again");
        }
    }

    /// The newest values, for who watches now.
    fn show(&self, bytes: &[u8], began_us: i64) {
        let Ok(frame) = FrameRef::parse(bytes) else { return };
        let (header, now_us) = (frame.header(), self.context.clock.boottime_us());
        let offset = self.context.known.borrow().map(|known| known.utc_us(now_us) - now_us);
        if let (Ok(Body::Samples(samples)), Some(offset)) = (frame.body(), offset) {
            let stamp = |ticks: u64| began_us + offset + i64::try_from(ticks).unwrap_or(0) * 1_000;
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
