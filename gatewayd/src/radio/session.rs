//! One connected wearable: hello, time sync, its log in order onto our disk, acknowledgement.
//!
//! The promise: the wearable is told that it may forget a frame only when this frame and all that it offered before
//! it are on disk (or are known never to come). Holes are asked for again; a wearable that does not answer in time
//! loses the link, not its data.

mod holes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use kinara_clock::Clock;
use kinara_protocol::control::{Hello, Op, Outcome, PROTOCOL_VERSION};
use kinara_protocol::frame::{Body, BootAnchor, DeviceEventKind, Epoch, FrameRef, ResetReason};
use kinara_protocol::gatt::Characteristic;
use kinara_protocol::status::Status;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::cursor::Cursor;
use super::links::{Claim, Order};
use super::refetch::{self, Refetch};
use super::requests::Requests;
use super::{Connection, LinkEvent, RadioError};
use crate::align::source::Known;
use crate::hardware::HardwareId;
use crate::live::Newest;
use crate::pipeline::{ChannelSamples, Fit, FrameSink, StoredFrame};
use crate::sabotage;
use crate::status::{Admission, Board, Link as LinkState};
use crate::store::{Appended, Haste, Outcome as Fate, OwnSync, Store, StoreError};

/// How often a session looks after itself.
const TICK: Duration = Duration::from_millis(250);
/// Frames that wait for the store before no more are read from the link.
const MOST_PENDING: usize = 512;
/// A change of our clock by this much calls for a new sync, microseconds.
const CLOCK_MOVED_US: i64 = 20_000;
/// How often the signal strength is asked for.
const STRENGTH_EVERY: Duration = Duration::from_secs(5);
/// A frame younger than this says that the log has been drained, microseconds.
const CAUGHT_UP_US: i64 = 10_000_000;

/// What all sessions share.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where frames go.
    pub store: Store,
    /// The machine's clock.
    pub clock: Arc<dyn Clock>,
    /// UTC, when it is known.
    pub known: watch::Receiver<Option<Known>>,
    /// The status board.
    pub board: Board,
    /// Where stored frames are offered.
    pub sink: FrameSink,
    /// Live values.
    pub newest: Newest,
    /// Wearables that should show themselves.
    pub identify: broadcast::Sender<HardwareId>,
    /// Times and sizes.
    pub settings: Settings,
}

/// Times and sizes of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long any request may take.
    pub request_timeout: Duration,
    /// Probes of a time sync.
    pub probes: u32,
    /// Time between syncs, by the gateway's clock.
    pub resync: Duration,
    /// How long a hole may stand before it is asked for.
    pub resend_after: Duration,
    /// Without anything for this long, the wearable is asked whether it lives.
    pub silence: Duration,
    /// Frames on the way at most, 1 to 100.
    pub window: u8,
    /// Pause before frames that could not be stored are tried again.
    pub store_retry: Duration,
    /// A link weaker than this for `weak_after` is given up.
    pub weak_rssi_dbm: i16,
    /// Zero: never.
    pub weak_after: Duration,
}

/// Before a link has stood for so long nothing on it waits: it may be one of many short turns.
const SETTLED: Duration = Duration::from_secs(10);
/// Appends of one wearable that may wait for the store side by side.
const MOST_APPENDING: usize = 32;

type Appending = BoxFuture<'static, (Haste, Vec<Bytes>, Result<Vec<Appended>, StoreError>)>;

struct Session<'a> {
    context: &'a Context,
    hardware: HardwareId,
    requests: Requests,
    hello: Hello,
    /// Where our boot time and the wearable's ticks met, and the clock's offset then.
    sync: Option<(OwnSync, Option<i64>)>,
    synced_at_us: i64,
    /// What has come.
    seen: Cursor,
    /// What is on disk.
    safe: Cursor,
    acknowledged: Option<(Epoch, u32)>,
    pending: Vec<Bytes>,
    /// Frames that the store has been given and has not answered for.
    unanswered: usize,
    /// The store has been given some that do not wait.
    hurries: bool,
    began: Instant,
    refetching: Option<Refetch>,
    /// The store did not take something: it has to be sent again once no more than this is shut out.
    refused: Option<Admission>,
    hole_since: Option<Instant>,
    /// The furthest frame that came in the log's order: what lies before it and did not come is a hole.
    walked: Option<(Epoch, u32)>,
    heard: Instant,
    strength_asked: Instant,
    weak_since: Option<Instant>,
    live: bool,
}

/// A wearable that has said who it is.
pub struct Greeted {
    requests: Requests,
    hello: Hello,
}

impl Greeted {
    /// Which it is.
    pub fn hardware(&self) -> HardwareId {
        HardwareId::kinara(self.hello.factory_id)
    }
}

/// Asks a connected wearable who it is.
pub async fn greet(context: &Context, connection: Connection) -> Result<Greeted, RadioError> {
    let mut requests = Requests::new(connection, context.settings.request_timeout);
    for characteristic in
        [Characteristic::Control, Characteristic::Status, Characteristic::Stream, Characteristic::Backlog]
    {
        requests.link().subscribe(characteristic).await?;
    }
    let Outcome::Hello(hello) = requests.ask(Op::Hello).await? else {
        return Err(RadioError::Nonsense("no hello".to_owned()));
    };
    if hello.protocol != PROTOCOL_VERSION {
        return Err(RadioError::Nonsense(format!(
            "protocol {} of a newer firmware; upgrade the gateway",
            hello.protocol
        )));
    }
    Ok(Greeted { requests, hello })
}

/// Serves a wearable until the link ends or the claim is cancelled.
pub async fn run(context: &Context, greeted: Greeted, claim: &mut Claim) -> Result<(), RadioError> {
    let hardware = greeted.hardware();
    if hardware != *claim.hardware() {
        return Err(RadioError::Nonsense(format!("it is {hardware}, not {}", claim.hardware())));
    }
    let Greeted { requests, hello } = greeted;
    let mut session = Session {
        context,
        hardware,
        requests,
        hello,
        sync: None,
        synced_at_us: 0,
        seen: Cursor::new(hello.oldest),
        safe: Cursor::new(hello.oldest),
        acknowledged: None,
        pending: Vec::new(),
        unanswered: 0,
        hurries: false,
        began: Instant::now(),
        refetching: None,
        refused: None,
        hole_since: None,
        walked: None,
        heard: Instant::now(),
        strength_asked: Instant::now(),
        weak_since: None,
        live: false,
    };
    session.greet();
    let result = session.serve(claim).await;
    if result.is_ok() {
        session.requests.link().disconnect().await;
    }
    result
}

impl Session<'_> {
    fn greet(&self) {
        let [major, minor, patch] = self.hello.firmware;
        tracing::info!(
            hardware = %self.hardware, epoch = %self.hello.epoch, stored = self.hello.stored_frames, "connected"
        );
        self.context.board.device(&self.hardware, |device| {
            device.link = LinkState::Draining;
            device.firmware = format!("{major}.{minor}.{patch}");
            device.epoch = Some(self.hello.epoch);
            device.behind_frames = u64::from(self.hello.stored_frames);
            device.trouble.clear();
        });
    }

    async fn serve(&mut self, claim: &mut Claim) -> Result<(), RadioError> {
        self.synchronise().await?;
        let status = self.requests.link().read_status().await?;
        self.take_status(&status);
        let window = self.context.settings.window;
        self.expect_ok(Op::StreamOn).await?;
        self.expect_ok(Op::StartBacklog { window }).await?;
        self.ask_for_what_was_lost().await?;
        claim.greeted();
        self.ask_why_it_started().await?;
        let mut known = self.context.known.clone();
        let mut admission = self.context.store.admission();
        let mut identify = self.context.identify.subscribe();
        let mut tick = tokio::time::interval(TICK);
        let mut appending: FuturesOrdered<Appending> = FuturesOrdered::new();
        let mut retry_at: Option<Instant> = None;
        loop {
            if self.may_append(appending.len()) && retry_at.is_none_or(|at| at <= Instant::now()) {
                retry_at = None;
                appending.push_back(self.append());
            }
            tokio::select! {
                () = claim.cancel.cancelled() => return self.finish(appending).await,
                Some(order) = claim.orders.recv() => self.obey(order).await?,
                event = self.requests.next(), if self.pending.len() < MOST_PENDING => {
                    let event = event.ok_or_else(|| RadioError::Gone("the link was lost".to_owned()))?;
                    self.take_event(&event);
                    while self.pending.len() < MOST_PENDING && let Some(event) = self.requests.next_now() {
                        self.take_event(&event);
                    }
                }
                Some((haste, frames, result)) = appending.next() => {
                    self.unanswered -= frames.len();
                    self.hurries &= haste != Haste::Prompt;
                    match result {
                        Ok(fates) => self.appended(&frames, &fates).await?,
                        Err(error) => {
                            tracing::warn!(hardware = %self.hardware, %error, "not stored; trying again");
                            // In whatever order: what may be acknowledged is known by the numbers.
                            self.pending.extend(frames);
                            retry_at = Some(Instant::now() + self.context.settings.store_retry);
                        }
                    }
                }
                changed = known.changed() => {
                    changed.map_err(|_| RadioError::Gone("the daemon stops".to_owned()))?;
                    let offset = known.borrow_and_update().map(|known| known.utc_minus_boot_us);
                    if self.clock_moved(offset) {
                        self.synchronise().await?;
                    }
                }
                changed = admission.changed() => {
                    changed.map_err(|_| RadioError::Gone("the daemon stops".to_owned()))?;
                    admission.mark_unchanged();
                    self.retry_refused().await?;
                }
                Ok(wanted) = identify.recv() => {
                    if wanted == self.hardware {
                        self.requests.tell(Op::Identify).await?;
                    }
                }
                _ = tick.tick() => self.look_after().await?,
            }
        }
    }

    /// A start that nobody asked for is told once. Firmware that does not know the question is none the worse.
    async fn ask_why_it_started(&mut self) -> Result<(), RadioError> {
        let epoch = self.hello.epoch;
        let board = &self.context.board;
        if board.now().devices.get(&self.hardware).and_then(|device| device.started) == Some(epoch) {
            return Ok(());
        }
        if let Outcome::Started(start) = self.requests.ask(Op::WhyStarted { back: 0 }).await?
            && let ResetReason::Watchdog | ResetReason::BrownOut | ResetReason::Fault = start.reason
        {
            let place = start.place.map_or_else(|| "not known".to_owned(), |place| place.to_string());
            tracing::warn!(hardware = %self.hardware, %epoch, reason = ?start.reason, place, "the wearable restarted by itself");
        }
        board.device(&self.hardware, |device| device.started = Some(epoch));
        Ok(())
    }

    /// Asks the wearable for somebody else, who may have gone meanwhile.
    async fn obey(&mut self, order: Order) -> Result<(), RadioError> {
        let answer = self.requests.ask(order.op).await;
        let failed = answer.as_ref().err().cloned();
        drop(order.reply.send(answer));
        failed.map_or(Ok(()), Err)
    }

    async fn expect_ok(&mut self, op: Op) -> Result<(), RadioError> {
        match self.requests.ask(op).await? {
            Outcome::Ok => Ok(()),
            other => Err(RadioError::Nonsense(format!("{other:?} to {op:?}"))),
        }
    }

    fn clock_moved(&self, offset: Option<i64>) -> bool {
        match (self.sync.and_then(|(_, offset)| offset), offset) {
            (Some(then), Some(now)) => (now - then).abs() > CLOCK_MOVED_US,
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }

    /// Several probes; the one with the shortest round trip counts, halved.
    async fn synchronise(&mut self) -> Result<(), RadioError> {
        let clock = &self.context.clock;
        let mut best: Option<(i64, OwnSync)> = None;
        for _ in 0..self.context.settings.probes {
            let sent = clock.boottime_us();
            let Outcome::Time(ticks) = self.requests.ask(Op::TimeProbe).await? else {
                return Err(RadioError::Nonsense("no time to a probe".to_owned()));
            };
            let round_trip = clock.boottime_us() - sent;
            if best.is_none_or(|(shortest, _)| round_trip < shortest) {
                let sync = OwnSync {
                    epoch: self.hello.epoch,
                    ticks: ticks.0,
                    boot_us: sent + round_trip / 2,
                    // A tick is a whole millisecond, cut off.
                    uncertainty_us: round_trip.unsigned_abs().div_ceil(2) + 1_000,
                };
                best = Some((round_trip, sync));
            }
        }
        let Some((round_trip, sync)) = best else { return Ok(()) };
        self.synced_at_us = clock.boottime_us();
        let known = *self.context.known.borrow();
        self.sync = Some((sync, known.map(|known| known.utc_minus_boot_us)));
        if let Err(error) = self.context.store.own_sync(self.hardware.clone(), sync).await {
            tracing::warn!(hardware = %self.hardware, %error, "the time sync was not stored");
        }
        tracing::debug!(hardware = %self.hardware, round_trip, known = known.is_some(), "synchronised");
        let Some(known) = known else { return Ok(()) };
        let anchor = sync.anchor(&known);
        let op = Op::SetTime {
            ticks: kinara_protocol::frame::Ticks(anchor.ticks),
            utc_us: anchor.utc_us,
            uncertainty_us: u32::try_from(anchor.uncertainty_us).unwrap_or(u32::MAX),
        };
        match self.requests.ask(op).await? {
            Outcome::Ok => {}
            other => tracing::warn!(hardware = %self.hardware, ?other, "the wearable did not take the time"),
        }
        Ok(())
    }

    fn take_event(&mut self, event: &LinkEvent) {
        self.heard = Instant::now();
        match event.characteristic {
            Characteristic::Control => {
                self.requests.reply(&event.bytes);
            }
            Characteristic::Status => self.take_status(&event.bytes),
            Characteristic::Stream => self.take_frame(&event.bytes, false),
            Characteristic::Backlog => self.take_frame(&event.bytes, true),
        }
    }

    fn take_status(&mut self, bytes: &[u8]) {
        let Ok(status) = Status::decode(bytes) else { return };
        self.context.board.device(&self.hardware, |device| {
            device.battery_percent = status.battery_percent.or(device.battery_percent);
            device.worn = status.worn.or(device.worn);
            device.behind_frames = u64::from(status.stored_frames);
        });
    }

    fn take_frame(&mut self, bytes: &Bytes, in_order: bool) {
        let frame = match FrameRef::parse(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                // It will be missed, and asked for again.
                tracing::warn!(hardware = %self.hardware, %error, "a damaged frame");
                return;
            }
        };
        let header = frame.header();
        let body = frame.body();
        if in_order {
            self.walk((header.epoch, header.seq));
        }
        self.seen.take(header.epoch, header.seq, boot_of(body.as_ref().ok()));
        note_losses(&mut self.seen, body.as_ref().ok());
        if in_order && let Some(refetch) = &mut self.refetching {
            refetch.came((header.epoch, header.seq));
        }
        if in_order {
            let whole = self.seen.covers(header.epoch, header.seq);
            self.hole_since = if whole { None } else { self.hole_since.or_else(|| Some(Instant::now())) };
        }
        self.pending.push(bytes.clone());
        let now_us = self.utc_us();
        if header.epoch == self.hello.epoch
            && let (Ok(Body::Samples(samples)), Some((sync, Some(offset)))) = (&body, self.sync)
        {
            let stamp = |ticks: u64| {
                sync.boot_us + offset + (i128::from(ticks) - i128::from(sync.ticks)) as i64 * 1000
            };
            self.context.newest.take(&self.hardware, (header.epoch, header.seq), samples, now_us, stamp);
            let caught_up = now_us - stamp(header.ticks.0) < CAUGHT_UP_US;
            if in_order {
                self.live = caught_up;
            }
        }
        let latest = self.context.newest.values(&self.hardware);
        let state = if self.live { LinkState::Live } else { LinkState::Draining };
        self.context.board.device(&self.hardware, |device| {
            device.received_frames += 1;
            device.last_frame_us = now_us;
            device.link = state;
            device.latest = latest;
        });
    }

    fn utc_us(&self) -> i64 {
        let known = *self.context.known.borrow();
        let clock = &self.context.clock;
        known.map_or_else(|| clock.utc_us(), |known| known.utc_us(clock.boottime_us()))
    }

    /// Whether the store can be given what has come: so many appends are out. Caught up, frames come one by one and wait
    /// together. Those that hurry take them along; then the next ones gather meanwhile.
    fn may_append(&self, out: usize) -> bool {
        let may = if self.haste() == Haste::MayWait { out < MOST_APPENDING } else { !self.hurries };
        may && !self.pending.is_empty()
    }

    fn append(&mut self) -> Appending {
        let haste = self.haste();
        let frames = std::mem::take(&mut self.pending);
        self.unanswered += frames.len();
        self.hurries |= haste == Haste::Prompt;
        let (store, hardware) = (self.context.store.clone(), self.hardware.clone());
        Box::pin(async move {
            let result = store.append_with(haste, hardware, frames.clone()).await;
            (haste, frames, result)
        })
    }

    /// What the store has been given is acknowledged before the link is let go of: else it all comes again.
    async fn finish(&mut self, mut appending: FuturesOrdered<Appending>) -> Result<(), RadioError> {
        if appending.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + self.context.settings.request_timeout;
        let store = self.context.store.clone();
        let flushed = tokio::time::timeout_at(deadline, store.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            return Ok(());
        }
        while let Ok(Some((_, frames, result))) = tokio::time::timeout_at(deadline, appending.next()).await {
            if let Ok(fates) = result {
                self.appended(&frames, &fates).await?;
            }
        }
        Ok(())
    }

    /// A wearable that is caught up has its frames until they are acknowledged, and does not wait for that before it sends
    /// the next ones, unless its window closes.
    fn haste(&self) -> Haste {
        let settled = self.live && self.began.elapsed() > SETTLED;
        let held = self.unanswered + self.pending.len();
        if settled && held < usize::from(self.context.settings.window) / 2 {
            Haste::MayWait
        } else {
            Haste::Prompt
        }
    }

    /// What was lost here and is still on the wearable comes first.
    async fn ask_for_what_was_lost(&mut self) -> Result<(), RadioError> {
        if sabotage::is(sabotage::Kind::NeverAskAgain) || !self.begins_in_its_log() {
            return Ok(());
        }
        let (store, oldest) = (&self.context.store, self.hello.oldest);
        let begun = refetch::begin(store, &self.hardware, &mut self.requests, oldest).await?;
        if let Some((refetch, cursor)) = begun {
            (self.seen, self.safe) = (cursor.clone(), cursor);
            self.refetching = Some(refetch);
        }
        Ok(())
    }

    /// Goes on behind what is here, and ends when all has come.
    async fn go_on_refetching(&mut self) -> Result<(), RadioError> {
        let Some(refetch) = &mut self.refetching else { return Ok(()) };
        let (leaps, follows) = (refetch.leaps_to(self.seen.next()), refetch.follows);
        if std::mem::take(&mut refetch.asks) || leaps {
            self.resend().await?;
        }
        if self.safe.next() >= self.hello.oldest {
            self.refetching = None;
            if follows {
                refetch::followed(&self.context.store, &self.hardware).await;
            } else {
                refetch::forget(&self.context.store, &self.hardware, self.hello.oldest).await;
            }
        }
        Ok(())
    }

    /// Frames have met their fate: acknowledge what is safe, hand on what is new.
    async fn appended(&mut self, frames: &[Bytes], fates: &[Appended]) -> Result<(), RadioError> {
        for (bytes, appended) in frames.iter().zip(fates) {
            let Ok(frame) = FrameRef::parse(bytes) else { continue };
            let header = frame.header();
            let body = frame.body();
            if !appended.outcome.is_safe() {
                // Only at the hard limit is anything refused: below it waveforms are dropped, which is safe.
                self.refused = Some(Admission::NoWaveforms);
                continue;
            }
            self.safe.take(header.epoch, header.seq, boot_of(body.as_ref().ok()));
            note_losses(&mut self.safe, body.as_ref().ok());
            if appended.outcome == Fate::Stored {
                self.context.sink.offer(stored(&self.hardware, &frame, appended.fit));
            }
        }
        let safe = fates.iter().filter(|appended| appended.outcome.is_safe()).count() as u64;
        self.context.board.device(&self.hardware, |device| {
            // Until the wearable's own word comes with its next status.
            device.behind_frames = device.behind_frames.saturating_sub(safe);
        });
        self.acknowledge().await
    }

    async fn acknowledge(&mut self) -> Result<(), RadioError> {
        if let Some((epoch, seq)) = self.safe.last()
            && self.acknowledged != Some((epoch, seq))
        {
            self.requests.tell(Op::Ack { epoch, seq }).await?;
            self.acknowledged = Some((epoch, seq));
        }
        Ok(())
    }

    async fn look_after(&mut self) -> Result<(), RadioError> {
        let settings = &self.context.settings;
        if self.requests.is_overdue() {
            return Err(RadioError::Timeout("reply"));
        }
        if self.heard.elapsed() > settings.silence {
            // Its reply counts as heard; without one the request becomes overdue.
            self.heard = Instant::now();
            self.requests.tell(Op::TimeProbe).await?;
        }
        self.go_on_refetching().await?;
        let settings = &self.context.settings;
        let patience = settings.resend_after;
        if self.refused.is_none() && self.hole_since.is_some_and(|since| since.elapsed() > patience) {
            self.fill_hole().await?;
        }
        // The change of what is taken may have come before the refusal did.
        self.retry_refused().await?;
        let settings = &self.context.settings;
        let since_sync_us = self.context.clock.boottime_us() - self.synced_at_us;
        if since_sync_us > settings.resync.as_micros() as i64 {
            self.synchronise().await?;
        }
        if self.strength_asked.elapsed() > STRENGTH_EVERY {
            self.strength_asked = Instant::now();
            self.judge_strength().await?;
        }
        Ok(())
    }

    /// A link that stays weak is given up, so that a nearer gateway gets the wearable.
    async fn judge_strength(&mut self) -> Result<(), RadioError> {
        let Some(rssi_dbm) = self.requests.link().rssi_dbm().await else {
            self.weak_since = None;
            return Ok(());
        };
        self.context.board.device(&self.hardware, |device| device.rssi_dbm = Some(rssi_dbm));
        let settings = &self.context.settings;
        if rssi_dbm >= settings.weak_rssi_dbm || settings.weak_after.is_zero() {
            self.weak_since = None;
            return Ok(());
        }
        let since = *self.weak_since.get_or_insert_with(Instant::now);
        if since.elapsed() < settings.weak_after {
            return Ok(());
        }
        tracing::info!(hardware = %self.hardware, rssi_dbm, "the link stays weak; letting go of it");
        self.requests.link().disconnect().await;
        Err(RadioError::Weak)
    }

    /// Asks again for what the store refused, once it takes it.
    async fn retry_refused(&mut self) -> Result<(), RadioError> {
        let now = *self.context.store.admission().borrow();
        if self.refused.is_some_and(|enough| now <= enough) {
            self.refused = None;
            self.seen = self.safe.clone();
            self.resend().await?;
        }
        Ok(())
    }
}

fn boot_of<'a>(body: Option<&'a Body<'_>>) -> Option<&'a BootAnchor> {
    match body {
        Some(Body::BootAnchor(boot)) => Some(boot),
        _ => None,
    }
}

/// Marks what the wearable says it has lost as never to come.
fn note_losses(cursor: &mut Cursor, body: Option<&Body<'_>>) {
    let Some(Body::DeviceEvents(events)) = body else { return };
    for event in events.iter() {
        if let DeviceEventKind::Overflow { epoch, first_seq, last_seq } = event.kind {
            cursor.lost(epoch, first_seq, last_seq);
        }
    }
}

/// A stored frame as inference wants it.
pub(super) fn stored(hardware: &HardwareId, frame: &FrameRef<'_>, fit: Option<Fit>) -> StoredFrame {
    let header = frame.header();
    let mut samples: Vec<ChannelSamples> = Vec::new();
    let mut worn = None;
    match frame.body() {
        Ok(Body::Samples(body)) => {
            for block in body.blocks() {
                let (channel, components) = (block.channel().0, block.components());
                let at = samples
                    .iter()
                    .position(|known| known.channel == channel && known.components == components)
                    .unwrap_or_else(|| {
                        samples.push(ChannelSamples {
                            channel,
                            components,
                            ticks: Vec::new(),
                            values: Vec::new(),
                        });
                        samples.len() - 1
                    });
                for sample in block.samples() {
                    samples[at].ticks.push(sample.ticks.0);
                    samples[at].values.extend_from_slice(sample.values());
                }
            }
        }
        Ok(Body::DeviceEvents(events)) => {
            for event in events.iter() {
                match event.kind {
                    DeviceEventKind::Worn => worn = Some(true),
                    DeviceEventKind::NotWorn => worn = Some(false),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    StoredFrame {
        hardware: hardware.clone(),
        epoch: header.epoch.0,
        seq: header.seq,
        ticks: header.ticks.0,
        samples,
        worn,
        fit,
    }
}
