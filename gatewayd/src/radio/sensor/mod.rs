//! A sensor of another maker: its measurements become frames here.
//!
//! Such a sensor keeps nothing and numbers nothing, so this gateway numbers for it: an epoch drawn at random for each
//! connection, seq from 0, ticks by our own clock since the connection. A frame is numbered before it is on our disk;
//! what was not received was never produced. From there on it is a frame like any other, through the same store.

mod measurement;
mod numbering;
mod stamped;

use std::time::Duration;

use bytes::Bytes;
use jiff::tz::TimeZone;
use kinara_protocol::frame::{Body, Epoch, FrameRef, Seq};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use measurement::{LeftOut, Measurement};
pub use numbering::Numbering;
use stamped::{Placed, SensorClock};

use super::session::{Context, stored};
use super::{RadioError, SensorConnection, SensorEvent, SensorReport};
use crate::hardware::HardwareId;
use crate::status::Link as LinkState;
use crate::store::{Outcome, OwnSync, StoreError};

/// A frame is closed after this, so that its values are live.
const FRAME_AGE: Duration = Duration::from_secs(1);
/// Frames that wait for a store that does not take them; then the oldest are lost, for nobody else has them.
const MOST_PENDING: usize = 600;
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
    session.end();
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
    clock: SensorClock,
    heart_told: Option<Instant>,
    /// What places the frames, and is not on disk yet: it goes there before them.
    syncs: Vec<OwnSync>,
    pending: Vec<Bytes>,
    /// Frames that were given up and have no gap yet: epoch, seq, ticks.
    lost: Vec<(Epoch, Seq, u64)>,
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
            hardware,
            numbering: Numbering::new(epoch),
            began_us,
            clock: SensorClock::new(TimeZone::system()),
            heart_told: None,
            syncs: vec![sync],
            pending: Vec::new(),
            lost: Vec::new(),
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
            self.numbering.take(self.ticks(), &measurement);
            return;
        }
        let now_us = self.context.clock.boottime_us();
        let offset = self.context.known.borrow().map(|known| known.utc_us(now_us) - now_us);
        let placed = self.clock.take(&self.hardware, event.report, measurement, (now_us, offset));
        for one in placed {
            self.keep(one);
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
        self.syncs.push(placed.sync);
        for frame in &placed.frames {
            if placed.is_new {
                self.show(frame, began_us);
            }
        }
        self.pending.extend(placed.frames);
    }

    /// The connection is over: what still waits for the sensor's clock to be known is left out.
    fn end(&mut self) {
        for _ in 0..self.clock.unplaced() {
            self.leave_out(LeftOut::Clock);
        }
    }

    /// Closes what is open and puts it onto the disk.
    async fn close(&mut self) {
        let closed = self.numbering.close();
        for frame in &closed {
            self.show(frame, self.began_us);
        }
        self.pending.extend(closed);
        if let Some(many) = self.pending.len().checked_sub(MOST_PENDING).filter(|many| *many > 0) {
            tracing::error!(hardware = %self.hardware, frames = many, "lost: the store does not take them");
            let lost: Vec<Bytes> = self.pending.drain(..many).collect();
            self.lost.extend(lost.iter().filter_map(|bytes| FrameRef::parse(bytes).ok()).map(|frame| {
                let header = frame.header();
                (header.epoch, header.seq, header.ticks.0)
            }));
        }
        if self.pending.is_empty() && self.lost.is_empty() {
            return;
        }
        if let Err(error) = self.place().await {
            tracing::warn!(hardware = %self.hardware, %error, "what places the frames was not stored; trying again");
            return;
        }
        self.give_up().await;
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

    /// Stores what places the frames: without it they would have no time.
    async fn place(&mut self) -> Result<(), StoreError> {
        if !self.syncs.is_empty() {
            self.context.store.own_syncs(self.hardware.clone(), self.syncs.clone()).await?;
            self.syncs.clear();
        }
        Ok(())
    }

    /// Records that frames which the store did not take will not come, as soon as it takes that.
    async fn give_up(&mut self) {
        while let Some((epoch, (first, next), ticks)) = first_run(&self.lost) {
            let told =
                self.context.store.give_up(self.hardware.clone(), epoch, (first, next), Some(ticks)).await;
            if let Err(error) = told {
                tracing::warn!(hardware = %self.hardware, %error, "a loss was not recorded; trying again");
                return;
            }
            self.lost.drain(..(next - first) as usize);
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

/// The frames at the beginning that follow each other in one epoch: the first, the one after the last, and the last ticks.
fn first_run(lost: &[(Epoch, Seq, u64)]) -> Option<(Epoch, (Seq, Seq), u64)> {
    let &(epoch, first, _) = lost.first()?;
    let run = lost.iter().zip(first..).take_while(|((at, seq, _), next)| *at == epoch && seq == next);
    let ((.., ticks), last) = run.last()?;
    Some((epoch, (first, last.saturating_add(1)), *ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_a_sensor_lost_are_given_up_run_by_run() {
        let (one, two) = (Epoch(7), Epoch(9));
        let mut lost = vec![(one, 3, 30), (one, 4, 40), (one, 6, 60), (two, 7, 5)];
        let mut runs = Vec::new();
        while let Some((epoch, (first, next), ticks)) = first_run(&lost) {
            lost.drain(..(next - first) as usize);
            runs.push((epoch, first, next, ticks));
        }
        assert_eq!(runs, [(one, 3, 5, 40), (one, 6, 7, 60), (two, 7, 8, 5)]);
    }
}
