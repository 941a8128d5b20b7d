//! The application: samples in, frames to flash, bytes to and from the gateway.

use kinara_protocol::channel::{BATTERY, ChannelId, HEART_RATE, RR_INTERVAL, SKIN_TEMPERATURE};
use kinara_protocol::control::{MAX_MESSAGE, Outcome, Refusal, Reply, Start};
use kinara_protocol::frame::{
    DeviceEvent, DeviceEventKind, Epoch, MAX_FRAME, ResetReason, Sensor, Seq, Ticks,
};
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::intervals::Intervals;
use kinara_protocol::status::Status;
use kinara_protocol::vitals::Vitals;

use crate::acquisition::Level;
use crate::delivery::{Delivery, Next};
use crate::flash::Flash;
use crate::framing::{FrameAge, Framing, SampleClass};
use crate::log::{Log, Witness};
use crate::plan::{Plan, Thinning};
use crate::presence::News;
use crate::queue::Queue;
use crate::ring::{Identity, RingError};
use crate::update::Ask;

/// Replies that wait for the link. The gateway waits for one before it sends many more requests.
const MAX_REPLIES: usize = 8;
/// Damaged frames that are remembered as named. One more, and the oldest may be named twice.
const MAX_NAMED: usize = 32;
/// From these down the battery is low, too low for more than summaries, and empty: each becomes an event once.
const BATTERY_STEPS: [i32; 3] = [14, Level::SUMMARIES_PERCENT, Level::STOP_PERCENT];
/// From here on it is not low any more, so that a flickering reading gives one event a step.
const BATTERY_FINE_PERCENT: i32 = 20;
/// How long an acknowledgement may wait for its journal record. A reset before that offers frames again.
const ACK_PERSIST_MS: u64 = 5_000;
/// A boot with so few numbers left ends: the next boot numbers from 0.
const SEQ_RESERVE: Seq = 4_096;

/// Who this wearable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// The 64-bit factory id.
    pub factory_id: u64,
    /// Firmware version: major, minor, patch.
    pub firmware: [u8; 3],
}

/// An erased page takes up to a quarter of a second, in which nothing else is done; so long there is none after it, ms.
const SCRUB_PAUSE_MS: u64 = 1_000;
/// Starts that are remembered.
pub const MAX_STARTS: usize = 4;

/// How it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Who it is.
    pub identity: DeviceIdentity,
    /// What it measures.
    pub plan: Plan,
    /// When frames close.
    pub frame_age: FrameAge,
}

/// What the application asks of its platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Show a person which wearable this is.
    Identify,
    /// Send what is outgoing, then reset.
    Reset,
    /// Let another gateway pair by this introduction, and [`reply`](App::reply).
    Admit {
        /// The request's id.
        request: u16,
        /// An introduction's secret.
        secret: [u8; 16],
        /// Seconds for which it lives, from now.
        lives_s: u32,
    },
    /// Forget a gateway, and [`reply`](App::reply); if it is the one that has the link, end that after the reply.
    Revoke {
        /// The request's id.
        request: u16,
        /// Its identity address, most significant byte first.
        bond: [u8; 6],
    },
    /// Answer this about an update, by [`Updater::answer`](crate::update::Updater::answer), and [`reply`](App::reply).
    Update {
        /// The request's id.
        request: u16,
        /// What is asked.
        ask: Ask,
    },
}

/// Whether `status` has something to tell that the gateway wants to hear.
#[derive(Debug, Clone, Copy, Default)]
struct StatusNotice {
    subscribed: bool,
    changed: bool,
}

/// The application. About 16 KiB; it lives in a `static` on a wearable.
pub struct App<F> {
    pub(crate) identity: DeviceIdentity,
    pub(crate) plan: Plan,
    pub(crate) log: Log<F>,
    pub(crate) delivery: Delivery,
    pub(crate) next_log_id: u32,
    frame_age: FrameAge,
    framing: Framing,
    thinning: Thinning,
    linked: bool,
    status: StatusNotice,
    replies: Queue<Reply, MAX_REPLIES>,
    effects: Queue<Effect, 4>,
    battery: Option<i32>,
    /// How many of the steps down it has told.
    battery_steps: usize,
    worn: Option<bool>,
    vitals: Vitals,
    acknowledged_since: Option<Ticks>,
    /// Damaged frames that were named in this boot.
    named: Queue<Identity, MAX_NAMED>,
    /// When the next page of an earlier log may be erased.
    scrub_after: Ticks,
    /// The last start first.
    pub(crate) starts: heapless::Vec<Start, MAX_STARTS>,
}

/// The log of this boot, and all else that an [`App`] is made of. That cannot fail any more: an application can be made in
/// its place, where a stack has no room for it.
pub struct Recovered<F> {
    log: Log<F>,
    settings: Settings,
    next_log_id: u32,
}

impl<F: Flash> Recovered<F> {
    /// Recovers the log and writes the boot anchor (see [`Log::boot`]). `entropy` are two random numbers: the log id should the flash be
    /// blank, and the one for a later formatting.
    pub fn boot(
        flash: F,
        settings: Settings,
        reason: ResetReason,
        entropy: [u32; 2],
        now: Ticks,
        witness: &mut impl Witness,
    ) -> Result<Self, RingError<F::Error>> {
        let log = Log::boot(flash, entropy[0], reason, now, witness)?;
        Ok(Self { log, settings, next_log_id: entropy[1] })
    }
}

impl<F: Flash> App<F> {
    /// The application over its log.
    pub fn new(recovered: Recovered<F>) -> Self {
        let Recovered { log, settings, next_log_id } = recovered;
        Self {
            identity: settings.identity,
            plan: settings.plan,
            log,
            delivery: Delivery::default(),
            next_log_id,
            frame_age: settings.frame_age,
            framing: Framing::new(),
            thinning: Thinning::default(),
            linked: false,
            status: StatusNotice::default(),
            replies: Queue::new(),
            effects: Queue::new(),
            battery: None,
            battery_steps: 0,
            worn: None,
            vitals: Vitals::default(),
            acknowledged_since: None,
            named: Queue::new(),
            scrub_after: Ticks(0),
            starts: heapless::Vec::new(),
        }
    }

    /// Knows the last starts, the last one first, for whoever asks; more than [`MAX_STARTS`] are not kept.
    pub fn remember_starts(&mut self, starts: impl IntoIterator<Item = Start>) {
        self.starts.clear();
        self.starts.extend(starts.into_iter().take(MAX_STARTS));
    }

    /// What is measured now; a gateway may change it.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// This boot's epoch.
    pub fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    /// The number of the next frame.
    pub fn next_seq(&self) -> Seq {
        self.log.next_seq()
    }

    /// Frames stored and not acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.log.unacknowledged()
    }

    /// The oldest frame that is not acknowledged; the next one when there is none.
    pub fn oldest(&mut self) -> Result<Identity, RingError<F::Error>> {
        self.log.oldest()
    }

    /// Takes one sample. Samples come in the order of their ticks. Of a channel that was given a longer interval than the
    /// sensor's, the first one in each interval is kept.
    pub fn sample(
        &mut self,
        channel: ChannelId,
        ticks: Ticks,
        values: &[i32],
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        let taken = self.thinning.takes(&self.plan, channel, ticks);
        if taken && self.framing.push(self.log.epoch(), channel, ticks, values).is_err() {
            self.log.close(&mut self.framing, SampleClass::of(channel), witness)?;
            let pushed = self.framing.push(self.log.epoch(), channel, ticks, values);
            debug_assert!(pushed.is_ok(), "an empty frame takes any sample of one to four values");
        }
        match (channel, values) {
            (BATTERY, &[percent, ..]) => self.set_battery(percent, ticks, witness)?,
            (HEART_RATE, &[tenths, ..]) => self.vitals.heart_rate = Some(tenths),
            (RR_INTERVAL, &[ms, ..]) => self.vitals.interval(ms.clamp(0, i32::from(u16::MAX)) as u16),
            (SKIN_TEMPERATURE, &[centidegrees, ..]) => self.vitals.skin = Some(centidegrees),
            _ => {}
        }
        Ok(())
    }

    /// Knows the battery's level, for `status` and the event, without a sample.
    pub fn set_battery(
        &mut self,
        percent: i32,
        ticks: Ticks,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        self.status.changed |= self.battery != Some(percent);
        self.battery = Some(percent);
        let steps = BATTERY_STEPS.iter().filter(|step| percent <= **step).count();
        if percent >= BATTERY_FINE_PERCENT {
            self.battery_steps = 0;
        } else if steps > self.battery_steps {
            self.battery_steps = steps;
            let kind = DeviceEventKind::BatteryLow(percent.clamp(0, 100) as u8);
            self.log.event(DeviceEvent { ticks, kind }, witness)?;
        }
        Ok(())
    }

    /// Somebody put the wearable on or took it off. A change closes the open frames and becomes a device event.
    pub fn set_worn(
        &mut self,
        worn: bool,
        ticks: Ticks,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        if self.worn == Some(worn) {
            return Ok(());
        }
        self.worn = Some(worn);
        self.vitals = Vitals::default();
        self.status.changed = true;
        self.close_frames(witness)?;
        let kind = if worn { DeviceEventKind::Worn } else { DeviceEventKind::NotWorn };
        self.log.event(DeviceEvent { ticks, kind }, witness)
    }

    /// There is something to tell of a sensor.
    pub fn tell_of(
        &mut self,
        sensor: Sensor,
        news: News,
        ticks: Ticks,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        let kind = match news {
            News::Silent => DeviceEventKind::SensorSilent(sensor),
            News::Answers => DeviceEventKind::SensorAnswers(sensor),
        };
        self.log.event(DeviceEvent { ticks, kind }, witness)
    }

    /// Measures by these intervals from now on. What was measured before is in frames before; then the log says, of each
    /// channel that is or was not the reference plan's, its interval from now on: also when it is none other, for
    /// somebody who asks again may not have what was said before.
    pub(crate) fn set_intervals(
        &mut self,
        intervals: Intervals,
        now: Ticks,
        witness: &mut impl Witness,
    ) -> Result<Outcome, RingError<F::Error>> {
        if intervals.check().is_err() {
            return Ok(Outcome::Refused(Refusal::BadField));
        }
        self.close_frames(witness)?;
        let before = core::mem::replace(&mut self.plan.intervals, intervals);
        self.thinning = Thinning::default();
        let plan = self.plan;
        let told = |channel| before.of(channel).is_some() || intervals.of(channel).is_some();
        for entry in plan.regular().filter(|entry| told(entry.channel)) {
            let kind = DeviceEventKind::Interval { channel: entry.channel, every_ms: entry.every_ms };
            self.log.event(DeviceEvent { ticks: now, kind }, witness)?;
        }
        Ok(Outcome::Ok)
    }

    /// Does what is due: call it a few times a second.
    pub fn step(&mut self, now: Ticks, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        let age = if self.delivery.is_live() { self.frame_age.live_ms } else { self.frame_age.stored_ms };
        for class in SampleClass::ALL {
            if self.framing.is_due(class, now, age) {
                self.log.close(&mut self.framing, class, witness)?;
            }
        }
        if self.acknowledged_since.is_some_and(|since| now.0.saturating_sub(since.0) >= ACK_PERSIST_MS) {
            self.persist_acknowledged()?;
        }
        if self.log.next_seq() >= Seq::MAX - SEQ_RESERVE {
            self.effect(Effect::Reset);
        }
        if now >= self.scrub_after && self.log.scrub()? {
            self.scrub_after = Ticks(now.0 + SCRUB_PAUSE_MS);
        }
        self.delivery.notice_stored(&mut self.log);
        Ok(())
    }

    /// Closes the open frames into flash.
    pub fn close_frames(&mut self, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        for class in SampleClass::ALL {
            self.log.close(&mut self.framing, class, witness)?;
        }
        Ok(())
    }

    /// Closes the open frames and makes everything known survive: the wearable is about to be switched off.
    pub fn shut_down(&mut self, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        self.close_frames(witness)?;
        self.persist_acknowledged()
    }

    /// A gateway has the link; it is encrypted and bonded.
    pub fn connected(&mut self) {
        self.end_link();
        self.linked = true;
    }

    /// The link is gone.
    pub fn disconnected(&mut self) -> Result<(), RingError<F::Error>> {
        self.end_link();
        self.persist_acknowledged()
    }

    /// The gateway switches notifications of a characteristic.
    pub fn subscribe(&mut self, characteristic: Characteristic, on: bool) {
        self.delivery.subscribe(characteristic, on);
        if characteristic == Characteristic::Status {
            self.status = StatusNotice { subscribed: on, changed: on };
        }
    }

    /// Whether a request would find room for its reply. If not, send what is outgoing first.
    pub fn takes_requests(&self) -> bool {
        !self.replies.is_full()
    }

    /// The gateway writes to `control`.
    pub fn write(&mut self, bytes: &[u8], now: Ticks, witness: &mut impl Witness) {
        if let Some(reply) = self.answer(bytes, now, witness) {
            // The platform asked takes_requests(); a gateway that floods loses replies, and asks again.
            let _ = self.replies.push(reply);
        }
        if self.acknowledged_since.is_none() {
            self.acknowledged_since = Some(now);
        }
        self.delivery.notice_stored(&mut self.log);
    }

    /// Answers a request that the platform performs: bonds are its own, not the application's.
    pub fn reply(&mut self, request: u16, outcome: Outcome) {
        // As in write(): a gateway that floods loses replies.
        let _ = self.replies.push(Reply { id: request, outcome });
    }

    /// The next bytes to send and on which characteristic. Call it only while the link takes them.
    pub fn outgoing(
        &mut self,
        now: Ticks,
        into: &mut [u8; MAX_FRAME],
        witness: &mut impl Witness,
    ) -> Result<Option<(Characteristic, usize)>, RingError<F::Error>> {
        if !self.linked {
            return Ok(None);
        }
        if let Some(reply) = self.replies.pop() {
            let mut message = [0; MAX_MESSAGE];
            let bytes = reply.encode(&mut message);
            into[..bytes.len()].copy_from_slice(bytes);
            return Ok(Some((Characteristic::Control, bytes.len())));
        }
        if self.status.subscribed && self.status.changed {
            self.status.changed = false;
            let bytes = self.status(now)?.encode();
            into[..bytes.len()].copy_from_slice(&bytes);
            return Ok(Some((Characteristic::Status, bytes.len())));
        }
        loop {
            match self.delivery.next(&mut self.log, into)? {
                Next::Send(characteristic, len) => return Ok(Some((characteristic, len))),
                Next::Damaged(id) => self.name_damaged(id, now, witness)?,
                Next::Nothing => return Ok(None),
            }
        }
    }

    /// Bits that flash has lost are a loss like any other: named, so that nobody waits for the frame. Once is enough,
    /// however often the gateway asks for the log again: what names it is in the log.
    fn name_damaged(
        &mut self,
        id: Identity,
        now: Ticks,
        witness: &mut impl Witness,
    ) -> Result<(), RingError<F::Error>> {
        if self.named.iter().any(|named| *named == id) {
            return Ok(());
        }
        if self.named.is_full() {
            self.named.pop();
        }
        self.named.push(id).expect("a place was made");
        let Identity { epoch, seq } = id;
        witness.lost(epoch, seq, seq);
        let kind = DeviceEventKind::Overflow { epoch, first_seq: seq, last_seq: seq };
        self.log.event(DeviceEvent { ticks: now, kind }, witness)?;
        self.delivery.notice_stored(&mut self.log);
        Ok(())
    }

    /// The newest values; of the intervals, those since the last call.
    pub fn take_vitals(&mut self) -> Vitals {
        let taken = self.vitals;
        self.vitals.count = 0;
        taken
    }

    /// What `status` says when read.
    pub fn status(&mut self, now: Ticks) -> Result<Status, RingError<F::Error>> {
        let oldest = self.log.oldest()?;
        Ok(Status {
            battery_percent: self.battery.map(|percent| percent.clamp(0, 100) as u8),
            worn: self.worn,
            epoch: self.log.epoch(),
            ticks: now,
            oldest: (oldest.epoch, oldest.seq),
            next_seq: self.log.next_seq(),
            stored_frames: self.log.unacknowledged(),
        })
    }

    /// What the platform should do.
    pub fn take_effect(&mut self) -> Option<Effect> {
        self.effects.pop()
    }

    /// Gives the flash back: what is not in it is gone, as at a reset.
    pub fn into_flash(self) -> F {
        self.log.into_flash()
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        // More than four at once say nothing that four do not.
        let _ = self.effects.push(effect);
    }

    /// Leaves a request to the platform, which answers it; or the answer when it has not taken the ones before yet.
    pub(crate) fn delegate(&mut self, effect: Effect) -> Option<Outcome> {
        self.effects.push(effect).err().map(|_| Outcome::Refused(Refusal::Storage))
    }

    fn end_link(&mut self) {
        self.linked = false;
        self.status.subscribed = false;
        self.delivery.reset();
        self.replies.clear();
    }

    fn persist_acknowledged(&mut self) -> Result<(), RingError<F::Error>> {
        self.acknowledged_since = None;
        self.log.ring().persist_acknowledged()
    }
}
