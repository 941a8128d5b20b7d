//! A wearable for tests: a log of frames behind the virtual radio, and the faults of a link on request.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kinara_gatewayd::radio::{Connection, Link, LinkEvent, RadioError};
use kinara_protocol::channel::HEART_RATE;
use kinara_protocol::control::{Hello, MAX_MESSAGE, Op, Outcome, PROTOCOL_VERSION, Refusal, Reply, Request};
use kinara_protocol::frame::{
    BootAnchor, DeviceEvent, DeviceEventKind, Epoch, FrameRef, MAX_FRAME, PreviousBoot, ResetReason, Seq,
    SyncAnchor, Ticks, encode_boot_anchor, encode_device_event, encode_sync_anchor,
};
use kinara_protocol::gatt;
use kinara_protocol::intervals::Intervals;
use kinara_protocol::label::LabelSecret;
use kinara_protocol::status::Status;
use kinara_virtual_radio::{
    Advertisement, Characteristic, Decoder, FromWearable, Message, ToWearable, socket_path,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::frames::{scalar, scalar_every, waveform};

pub const SECRET: &str = "ABCDEFGHIJKLMNOP";

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "what tests ask a wearable for, side by side")]
pub struct State {
    pub factory_id: u64,
    log: Vec<Bytes>,
    acknowledged: usize,
    sent: usize,
    epoch: Epoch,
    next_seq: Seq,
    started: Instant,
    pub nonce: u8,
    bonds: HashSet<[u8; 16]>,
    linked: bool,
    /// Requests are not answered.
    pub hangs: bool,
    /// Every so many notifications one is lost.
    pub loses_every: usize,
    /// Notifications leave in another order.
    pub shuffles: bool,
    /// The link drops after so many notifications.
    pub drops_after: usize,
    /// Flash has not kept these frames: they are never sent, and each is named as lost once.
    pub damaged: HashSet<usize>,
    /// Nor these, and not even which frames they were: they cannot be asked for.
    pub unreadable: HashSet<usize>,
    /// What it says that its log begins with, whatever it holds.
    pub claims_oldest: Option<(Epoch, Seq)>,
    named: HashSet<usize>,
    notified: usize,
    pub links: usize,
    /// A person has pressed its button.
    pub window_open: bool,
    /// Nothing of its log leaves it.
    pub holds_back: bool,
    /// It obeys a format and is away from then on.
    pub goes_at_format: bool,
    /// It offers one nonce for ever, as no wearable does.
    pub repeats_nonce: bool,
    /// Who it says that it is.
    pub claims: u64,
    /// No link by a bond comes about, as at the edge of what is heard.
    pub is_far: bool,
    /// Nor does a pairing.
    pub pairs_with_nobody: bool,
    /// Its firmware does not say which is the oldest frame that it holds, nor where a hand-over is.
    pub is_old: bool,
    /// Another frame closes right after it was asked for a boundary.
    pub closes_at_once: bool,
    /// How it measures.
    pub intervals: Intervals,
    /// Frames sent, doubles included.
    pub sent_in_all: usize,
    /// It starts again: the link drops.
    resets: bool,
}

/// A wearable; dropping it takes it off the air.
#[derive(Debug, Clone)]
pub struct Wearable {
    state: Arc<Mutex<State>>,
}

impl Wearable {
    /// On the air with this much in its log: a boot anchor and frames.
    pub fn start(air: &Path, factory_id: u64, frames: u32) -> Self {
        let state = State {
            factory_id,
            log: Vec::new(),
            acknowledged: 0,
            sent: 0,
            epoch: Epoch::new(factory_id as u32, 0),
            next_seq: 0,
            // Its samples lie in the past: that much has happened since it started.
            started: Instant::now().checked_sub(Duration::from_secs(u64::from(frames) * 10)).unwrap(),
            nonce: 0,
            bonds: HashSet::new(),
            linked: false,
            hangs: false,
            loses_every: 0,
            shuffles: false,
            drops_after: 0,
            damaged: HashSet::new(),
            unreadable: HashSet::new(),
            claims_oldest: None,
            named: HashSet::new(),
            notified: 0,
            links: 0,
            window_open: true,
            holds_back: false,
            goes_at_format: false,
            repeats_nonce: false,
            claims: factory_id,
            is_far: false,
            pairs_with_nobody: false,
            is_old: false,
            closes_at_once: false,
            intervals: Intervals::REFERENCE,
            sent_in_all: 0,
            resets: false,
        };
        let wearable = Self { state: Arc::new(Mutex::new(state)) };
        wearable.boot();
        wearable.produce(frames);
        let listener = UnixListener::bind(socket_path(air, factory_id)).unwrap();
        let state = wearable.state.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let state = state.clone();
                tokio::spawn(async move {
                    serve(&state, socket).await;
                });
            }
        });
        wearable
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A reset: a new epoch that begins with its boot anchor.
    pub fn boot(&self) {
        let mut state = self.lock();
        let previous = (state.next_seq > 0).then(|| PreviousBoot {
            epoch: state.epoch,
            next_seq: state.next_seq,
            last_ticks: Ticks(u64::from(state.next_seq) * 10_000),
            last_sync: None,
        });
        state.epoch = Epoch::new(state.epoch.log_id(), state.epoch.boot() + 1);
        state.next_seq = 0;
        state.intervals = Intervals::REFERENCE;
        let mut out = [0; MAX_FRAME];
        let anchor = BootAnchor { reason: ResetReason::PowerOn, previous };
        let len = encode_boot_anchor(state.epoch, 0, Ticks(0), &anchor, &mut out);
        state.push(Bytes::copy_from_slice(&out[..len]));
    }

    /// Its link falls with the next thing that it is asked.
    pub fn lets_go(&self) {
        self.lock().resets = true;
    }

    /// More frames of samples.
    pub fn produce(&self, frames: u32) {
        self.lock().produce(frames);
    }

    /// More frames, every other one a waveform.
    pub fn produce_waveforms(&self, frames: u32) {
        let mut state = self.lock();
        for _ in 0..frames {
            let (epoch, seq) = (state.epoch, state.next_seq);
            let frame = if seq.is_multiple_of(2) { waveform(epoch, seq) } else { scalar(epoch, seq) };
            state.push(frame);
        }
    }

    /// A link to it without any air between.
    pub fn link(&self) -> Connection {
        let (events, arriving) = mpsc::channel(64);
        let window = Arc::new(AtomicUsize::new(0));
        let (state, open, notify) = (self.state.clone(), window.clone(), events.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if notify.is_closed() {
                    return;
                }
                let frames = match open.load(Ordering::SeqCst) {
                    0 => Some(Vec::new()),
                    window => state.lock().unwrap().notifications(window),
                };
                let Some(frames) = frames else { return };
                for bytes in frames {
                    let event = LinkEvent { characteristic: gatt::Characteristic::Backlog, bytes };
                    if notify.send(event).await.is_err() {
                        return;
                    }
                }
            }
        });
        let link = Direct { state: self.state.clone(), events, window };
        Connection { link: Box::new(link), events: arriving }
    }

    /// Everything it ever logged.
    pub fn log(&self) -> Vec<Bytes> {
        self.lock().log.clone()
    }

    /// The frames that nobody has acknowledged.
    pub fn held(&self) -> std::collections::BTreeSet<(u64, Seq)> {
        let state = self.lock();
        state.log[state.acknowledged..].iter().map(identity).map(|(epoch, seq)| (epoch.0, seq)).collect()
    }

    /// It knows no gateway any more.
    pub fn forgets(&self) {
        self.lock().bonds.clear();
    }

    /// Whether it knows no gateway.
    pub fn has_no_bonds(&self) -> bool {
        self.lock().bonds.is_empty()
    }

    /// Whether it may forget all of it.
    pub fn is_drained(&self) -> bool {
        let state = self.lock();
        state.acknowledged == state.log.len()
    }
}

impl State {
    fn produce(&mut self, frames: u32) {
        for _ in 0..frames {
            let seconds = self.intervals.of(HEART_RATE).unwrap_or(1);
            let frame = scalar_every(seconds, self.epoch, self.next_seq);
            self.push(frame);
        }
    }

    fn push(&mut self, frame: Bytes) {
        self.log.push(frame);
        self.next_seq += 1;
    }

    fn oldest(&self) -> (Epoch, Seq) {
        if let Some(claimed) = self.claims_oldest {
            return claimed;
        }
        match self.log.get(self.acknowledged) {
            Some(frame) => identity(frame),
            None => (self.epoch, self.next_seq),
        }
    }

    /// The nonce of the next pairing; no two wearables have the same one.
    fn pairing_number(&self) -> [u8; 8] {
        (self.factory_id ^ u64::from(self.nonce) << 56).to_be_bytes()
    }

    fn ticks(&self) -> Ticks {
        Ticks(self.started.elapsed().as_millis() as u64)
    }

    fn place(&self, epoch: Epoch, seq: Seq) -> Option<usize> {
        self.log.iter().position(|frame| identity(frame) == (epoch, seq))
    }

    fn answer(&mut self, op: Op) -> Outcome {
        match op {
            Op::Hello => Outcome::Hello(Hello {
                protocol: PROTOCOL_VERSION,
                factory_id: self.claims,
                firmware: [1, 2, 3],
                epoch: self.epoch,
                ticks: self.ticks(),
                oldest: self.oldest(),
                next_seq: self.next_seq,
                stored_frames: (self.log.len() - self.acknowledged) as u32,
            }),
            Op::TimeProbe => Outcome::Time(self.ticks()),
            Op::SetTime { ticks, utc_us, uncertainty_us } => {
                let mut out = [0; MAX_FRAME];
                let anchor = SyncAnchor { ticks, utc_us, uncertainty_us };
                let len = encode_sync_anchor(self.epoch, self.next_seq, &anchor, &mut out);
                self.push(Bytes::copy_from_slice(&out[..len]));
                Outcome::Ok
            }
            Op::Ack { epoch, seq } => match self.place(epoch, seq) {
                Some(place) => {
                    self.acknowledged = self.acknowledged.max(place + 1);
                    Outcome::Ok
                }
                None => Outcome::Refused(Refusal::NotInLog),
            },
            Op::ResendFrom { epoch, seq } => match self.place(epoch, seq) {
                Some(place) if !self.unreadable.contains(&place) => {
                    self.sent = place;
                    Outcome::Ok
                }
                _ => Outcome::Refused(Refusal::NotInLog),
            },
            Op::StartBacklog { .. } => {
                self.sent = self.acknowledged;
                Outcome::Ok
            }
            Op::Format => {
                (self.log, self.acknowledged, self.sent) = (Vec::new(), 0, 0);
                self.epoch = Epoch::new(self.epoch.log_id() + 1, 0);
                self.next_seq = 0;
                let mut out = [0; MAX_FRAME];
                let anchor = BootAnchor { reason: ResetReason::PowerOn, previous: None };
                let len = encode_boot_anchor(self.epoch, 0, Ticks(0), &anchor, &mut out);
                self.push(Bytes::copy_from_slice(&out[..len]));
                (self.resets, self.holds_back) = (true, false);
                self.hangs = self.goes_at_format;
                Outcome::Ok
            }
            Op::Revoke { .. } => {
                self.bonds.clear();
                Outcome::Ok
            }
            Op::OldestHeld | Op::HandOver if self.is_old => Outcome::Refused(Refusal::UnknownOperation),
            Op::HandOver | Op::CloseFrame => {
                let (epoch, next_seq) = (self.epoch, self.next_seq);
                self.produce(u32::from(self.closes_at_once));
                if op == Op::HandOver { Outcome::Boundary { epoch, next_seq } } else { Outcome::Ok }
            }
            Op::OldestHeld => {
                let (epoch, seq) = self.log.first().map_or((self.epoch, self.next_seq), identity);
                Outcome::OldestHeld { epoch, seq }
            }
            Op::SetIntervals(_) | Op::TellIntervals if self.is_old => {
                Outcome::Refused(Refusal::UnknownOperation)
            }
            Op::SetIntervals(intervals) => {
                self.intervals = intervals;
                for (channel, seconds) in intervals.iter() {
                    let kind = DeviceEventKind::Interval { channel, every_ms: u32::from(seconds) * 1_000 };
                    self.happens(kind);
                }
                Outcome::Ok
            }
            Op::TellIntervals => Outcome::Intervals(self.intervals),
            _ => Outcome::Ok,
        }
    }

    fn happens(&mut self, kind: DeviceEventKind) {
        let mut out = [0; MAX_FRAME];
        let event = DeviceEvent { ticks: self.ticks(), kind };
        let len = encode_device_event(self.epoch, self.next_seq, &event, &mut out);
        self.push(Bytes::copy_from_slice(&out[..len]));
    }

    fn name_damaged(&mut self) {
        if !self.named.insert(self.sent) {
            return;
        }
        let (epoch, seq) = identity(&self.log[self.sent]);
        self.happens(DeviceEventKind::Overflow { epoch, first_seq: seq, last_seq: seq });
    }

    fn status(&self) -> Status {
        Status {
            battery_percent: Some(77),
            worn: Some(true),
            epoch: self.epoch,
            ticks: self.ticks(),
            oldest: self.oldest(),
            next_seq: self.next_seq,
            stored_frames: (self.log.len() - self.acknowledged) as u32,
        }
    }

    /// The next notifications; `None` when the link is to drop.
    fn notifications(&mut self, window: usize) -> Option<Vec<Bytes>> {
        let end = if self.holds_back { 0 } else { self.log.len().min(self.acknowledged + window) };
        let mut out = Vec::new();
        while self.sent < end && out.len() < 30 {
            self.notified += 1;
            if self.drops_after > 0 && self.notified.is_multiple_of(self.drops_after) {
                return None;
            }
            if self.damaged.contains(&self.sent) {
                self.name_damaged();
            } else if !self.unreadable.contains(&self.sent)
                && (self.loses_every == 0 || !self.notified.is_multiple_of(self.loses_every))
            {
                out.push(self.log[self.sent].clone());
            }
            self.sent += 1;
        }
        if self.shuffles {
            out.reverse();
        }
        self.sent_in_all += out.len();
        Some(out)
    }
}

fn identity(frame: &Bytes) -> (Epoch, Seq) {
    let header = FrameRef::parse(frame).unwrap().header();
    (header.epoch, header.seq)
}

/// The gateway's end of [`Wearable::link`].
struct Direct {
    state: Arc<Mutex<State>>,
    events: mpsc::Sender<LinkEvent>,
    window: Arc<AtomicUsize>,
}

impl Link for Direct {
    fn write_control<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<(), RadioError>> {
        let request = Request::decode(bytes).unwrap().unwrap();
        if let Op::StartBacklog { window } = request.op {
            self.window.store(usize::from(window), Ordering::SeqCst);
        }
        let outcome = self.state.lock().unwrap().answer(request.op);
        let mut reply = [0; MAX_MESSAGE];
        let bytes = Bytes::copy_from_slice(Reply { id: request.id, outcome }.encode(&mut reply));
        let event = LinkEvent { characteristic: gatt::Characteristic::Control, bytes };
        let events = self.events.clone();
        Box::pin(async move {
            // Nobody waits for the reply while this waits for room.
            tokio::spawn(async move { events.send(event).await });
            Ok(())
        })
    }

    fn subscribe(&mut self, _: gatt::Characteristic) -> BoxFuture<'_, Result<(), RadioError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn read_status(&mut self) -> BoxFuture<'_, Result<Bytes, RadioError>> {
        let status = self.state.lock().unwrap().status().encode();
        Box::pin(std::future::ready(Ok(Bytes::copy_from_slice(&status))))
    }

    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>> {
        Box::pin(std::future::ready(None))
    }

    fn disconnect(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

async fn serve(state: &Mutex<State>, mut socket: UnixStream) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    let mut linked = false;
    let mut window = 0;
    loop {
        let read = tokio::time::timeout(Duration::from_millis(20), socket.read(&mut buffer)).await;
        match read {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(count)) => decoder.feed(&buffer[..count]),
            Err(_) => {}
        }
        let (mut out, mut resets) = (Vec::new(), false);
        while let Some(message) = decoder.next::<ToWearable>().unwrap() {
            let mut state = state.lock().unwrap();
            match message {
                ToWearable::Scan { .. } => FromWearable::Advertisement(Advertisement {
                    factory_id: state.factory_id,
                    name: "test".to_owned(),
                    rssi_dbm: -50,
                    window_open: state.window_open,
                    nonce: state.pairing_number(),
                    connectable: !state.linked,
                })
                .encode(&mut out),
                ToWearable::Connect { bond, .. } => {
                    let refusal = if state.linked {
                        Some("linked")
                    } else if bond.is_some_and(|bond| state.is_far || !state.bonds.contains(&bond)) {
                        Some("this bond is not known here; pair again")
                    } else {
                        None
                    };
                    if let Some(reason) = refusal {
                        FromWearable::Refused { reason: reason.to_owned() }.encode(&mut out);
                    } else {
                        (state.linked, linked) = (true, true);
                        state.links += 1;
                        FromWearable::Connected { mtu: 247 }.encode(&mut out);
                    }
                }
                ToWearable::Pair { passkey } => {
                    let secret: LabelSecret = SECRET.parse().unwrap();
                    if state.pairs_with_nobody {
                        let reason = "the pairing window is closed".to_owned();
                        FromWearable::Refused { reason }.encode(&mut out);
                    } else if passkey == secret.passkey(&state.pairing_number()) {
                        let bond = [state.nonce + 1; 16];
                        state.bonds.insert(bond);
                        FromWearable::Paired { bond }.encode(&mut out);
                    } else {
                        let reason = "the passkey is wrong, or the pairing window is closed".to_owned();
                        FromWearable::Refused { reason }.encode(&mut out);
                    }
                    state.nonce += u8::from(!state.repeats_nonce);
                }
                ToWearable::Write { bytes, .. } => {
                    FromWearable::WriteDone.encode(&mut out);
                    let request = Request::decode(&bytes).unwrap().unwrap();
                    if state.hangs {
                        continue;
                    }
                    if let Op::StartBacklog { window: asked } = request.op {
                        window = usize::from(asked);
                    }
                    let outcome = state.answer(request.op);
                    let mut reply = [0; MAX_MESSAGE];
                    let bytes = Reply { id: request.id, outcome }.encode(&mut reply).to_vec();
                    FromWearable::Indicate { characteristic: Characteristic::Control, bytes }
                        .encode(&mut out);
                }
                ToWearable::Subscribe { .. } => FromWearable::Subscribed.encode(&mut out),
                ToWearable::ReadStatus => {
                    FromWearable::Status { bytes: state.status().encode().to_vec() }.encode(&mut out);
                }
                ToWearable::Disconnect => {
                    if linked {
                        state.linked = false;
                    }
                    return;
                }
            }
        }
        if window > 0 {
            let mut state = state.lock().unwrap();
            if state.hangs {
                continue;
            }
            resets = std::mem::take(&mut state.resets);
            let Some(frames) = state.notifications(window) else { break };
            for bytes in frames {
                let bytes = bytes.to_vec();
                FromWearable::Notify { characteristic: Characteristic::Backlog, bytes }.encode(&mut out);
            }
        }
        if socket.write_all(&out).await.is_err() || resets {
            break;
        }
    }
    if linked {
        state.lock().unwrap().linked = false;
    }
}

/// The air of a test: a folder.
pub fn air(dir: &Path) -> PathBuf {
    let air = dir.join("air");
    std::fs::create_dir_all(&air).unwrap();
    air
}
