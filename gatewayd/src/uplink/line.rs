//! MQTT 5 on one stream: the greeting, then packets both ways, and the judgement whether anybody is there.
//!
//! The promise: a line that moves is alive, however slowly, and one that does not is found dead in bounded time. What
//! counts is bytes: any that came in, and any that the kernel took, which it does only as the line drains. A client
//! that waits for the answer to a ping measures the queue in front of the ping instead.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter, Packet, PingReq, PubAck,
    PubAckReason, Publish, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::dial::{Duplex, Stream};
use super::meter::{Meter, foreigner};
use super::moved::Moved;
use super::pace::Limits;
use super::queue::{Item, Queue};
use crate::store::Name;

/// Bytes that are handed to the socket at once.
const CHUNK: usize = 8 * 1024;
/// Messages that may wait for us.
pub const INCOMING: usize = 256;
/// The most that the broker may send at once.
const LARGEST: u32 = 1 << 20;
/// How often the line is judged.
const LOOK: Duration = Duration::from_millis(500);
/// Who has said nothing for so long is asked.
const ASK_AFTER: Duration = Duration::from_secs(15);
/// The slowest line that is still waited for, bytes a second.
const SLOWEST: u64 = 1_000;
/// Bytes that may lie unseen in buffers between here and the broker.
const UNSEEN: u64 = 64 * 1024;

/// How long so many bytes on the way take at this measured rate, at most.
pub(super) fn on_the_way(unconfirmed: u64, rate: Option<u64>) -> Duration {
    Duration::from_secs(unconfirmed.min(UNSEEN) / rate.unwrap_or(SLOWEST).max(SLOWEST))
}

/// What comes from a line.
#[derive(Debug)]
pub enum Incoming {
    /// A message.
    Message(Publish),
    /// The subscription is made, or not.
    Subscribed(bool),
    /// A batch has left; it took so long.
    Left(Name, Duration),
    /// The broker has a batch.
    Accepted(Name),
    /// The line has ended.
    Ended(LineError),
}

/// Why there is no line any more, or never was.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It took the connection and does not answer.
    #[error(
        "{at} takes the connection and then says nothing; is it the broker, and does a firewall let MQTT through?"
    )]
    Silent {
        /// Who.
        at: String,
    },
    /// It closed the connection in place of an answer.
    #[error(
        "{at} closes the connection when it is greeted: it is no MQTT 5 broker, or does not let this gateway in"
    )]
    TurnedAway {
        /// Who.
        at: String,
    },
    /// An older broker.
    #[error("{at} is no MQTT 5 broker: it speaks an older version (3.1.1) only; this gateway needs MQTT 5")]
    Old {
        /// Who.
        at: String,
    },
    /// Something that is no broker answers.
    #[error("something else answers at {at}: {what}")]
    Foreign {
        /// Where.
        at: String,
        /// What it looks like.
        what: &'static str,
    },
    /// The broker says no.
    #[error("{at} refuses this gateway: {words} ({code:?})")]
    Refused {
        /// Who.
        at: String,
        /// In words.
        words: String,
        /// As MQTT has it.
        code: ConnectReturnCode,
    },
    /// Nothing moves.
    #[error("nothing has gone out or come in for {} s", .0.as_secs())]
    Dead(Duration),
    /// The network has changed under it.
    #[error("the network has changed, and nothing comes over the old connection")]
    Moved,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The broker ended it without a word.
    #[error("the broker closed the connection")]
    Closed,
    /// The broker ended it and said why.
    #[error("the broker ended the connection: {0:?}")]
    Dismissed(DisconnectReasonCode),
    /// What came is no MQTT.
    #[error("the broker sent what is no MQTT: {0}")]
    Nonsense(mqttbytes::Error),
}

/// How the answer to CONNECT begins before MQTT 5: two bytes, where MQTT 5 has three or more.
const OLD: [u8; 2] = [0x20, 2];
const NO_BROKER: &str = "something that does not speak MQTT";

/// How patient a line is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Nothing may move for so long, beyond what bytes on the way need.
    pub silence: Duration,
    /// The keep-alive that the broker was told.
    pub keep_alive: Duration,
}

impl Patience {
    fn ask_after(&self, limits: &Limits) -> Duration {
        let keep_alive = limits.keep_alive.unwrap_or(self.keep_alive).min(self.keep_alive);
        ASK_AFTER.min(keep_alive / 3)
    }

    /// How long nothing may move, with so many bytes on the way at this measured rate.
    fn lasts(&self, unconfirmed: u64, rate: Option<u64>) -> Duration {
        self.silence + on_the_way(unconfirmed, rate)
    }
}

/// A stream on which the broker has said welcome.
#[derive(Debug)]
pub struct Greeted {
    at: String,
    from: Option<IpAddr>,
    meter: Meter,
    reader: ReadHalf<Box<dyn Duplex>>,
    writer: WriteHalf<Box<dyn Duplex>>,
    buffer: BytesMut,
    /// What the broker takes.
    pub limits: Limits,
}

impl Greeted {
    /// Says goodbye at once. Gives who was visited.
    pub async fn leave(mut self) -> String {
        farewell(&mut self.writer).await;
        self.at
    }
}

async fn farewell(writer: &mut WriteHalf<Box<dyn Duplex>>) {
    let goodbye = Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection));
    // The broker may be gone as well by now; then there is nobody to say it to.
    let _ = send(writer, &goodbye).await;
    let _ = writer.shutdown().await;
}

/// Says CONNECT and waits for the answer.
pub async fn greet(stream: Stream, hello: Packet, within: Duration) -> Result<Greeted, LineError> {
    let Stream { duplex, meter, at, from } = stream;
    let (mut reader, mut writer) = tokio::io::split(duplex);
    let mut buffer = BytesMut::new();
    let exchange = async {
        send(&mut writer, &hello).await?;
        while buffer.len() < OLD.len() {
            more(&mut reader, &mut buffer).await?;
        }
        Ok::<_, LineError>(())
    };
    let answered = timeout(within, exchange).await.map_err(|_| LineError::Silent { at: at.clone() })?;
    if let Some(what) = foreigner(&buffer) {
        return Err(LineError::Foreign { at, what });
    }
    if buffer.starts_with(&OLD) {
        return Err(LineError::Old { at });
    }
    answered.map_err(|error| unfit(error, &at))?;
    let welcome = timeout(within, receive(&mut reader, &mut buffer)).await;
    let welcome = welcome.map_err(|_| LineError::Silent { at: at.clone() })?;
    let Packet::ConnAck(welcome) = welcome.map_err(|error| unfit(error, &at))? else {
        return Err(LineError::Foreign { at, what: NO_BROKER });
    };
    let limits = judge(&welcome, &at)?;
    Ok(Greeted { at, from, meter, reader, writer, buffer, limits })
}

/// What an answer that is no welcome means.
fn unfit(error: LineError, at: &str) -> LineError {
    let at = at.to_owned();
    match error {
        LineError::Nonsense(_) => LineError::Foreign { at, what: NO_BROKER },
        LineError::Closed | LineError::Broken(_) => LineError::TurnedAway { at },
        other => other,
    }
}

fn judge(welcome: &ConnAck, at: &str) -> Result<Limits, LineError> {
    use ConnectReturnCode as Code;
    let properties = welcome.properties.as_ref();
    let mut words = match welcome.code {
        Code::Success => {
            return Ok(properties.map_or_else(Limits::default, |properties| Limits {
                qos_1: properties.max_qos != Some(0),
                retain: properties.retain_available != Some(0),
                packet: properties.max_packet_size.map_or(usize::MAX, |most| most as usize),
                in_flight: properties.receive_max.map_or(usize::from(u16::MAX), usize::from).max(1),
                keep_alive: properties
                    .server_keep_alive
                    .map(|seconds| Duration::from_secs(u64::from(seconds))),
            }));
        }
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => {
            return Err(LineError::Old { at: at.to_owned() });
        }
        Code::NotAuthorized | Code::BadUserNamePassword => "is it enrolled there, and with this certificate?",
        Code::Banned => "it is banned there",
        Code::QuotaExceeded | Code::ConnectionRateExceeded => "the broker has a limit that is reached",
        Code::ServerBusy | Code::ServerUnavailable => "the broker is busy or not ready",
        Code::UseAnotherServer | Code::ServerMoved => "the broker has moved; correct [uplink] host",
        Code::RetainNotSupported => "it keeps no retained messages",
        Code::QoSNotSupported => "it takes messages of QoS 0 only",
        Code::PacketTooLarge => "it takes smaller packets only",
        _ => "see the broker's log",
    }
    .to_owned();
    if let Some(server) = properties.and_then(|properties| properties.server_reference.as_ref()) {
        words = format!("{words} (to {server})");
    }
    Err(LineError::Refused { at: at.to_owned(), words, code: welcome.code })
}

async fn send(writer: &mut WriteHalf<Box<dyn Duplex>>, packet: &Packet) -> Result<(), LineError> {
    let mut bytes = BytesMut::with_capacity(packet.size() + 8);
    packet.write(&mut bytes, None).map_err(LineError::Nonsense)?;
    for chunk in bytes.chunks(CHUNK) {
        writer.write_all(chunk).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn receive(reader: &mut ReadHalf<Box<dyn Duplex>>, buffer: &mut BytesMut) -> Result<Packet, LineError> {
    loop {
        let held = buffer.len();
        match Packet::read(buffer, Some(LARGEST)) {
            Ok(packet) => return Ok(packet),
            // A packet that is whole and whose parts want more than it has is taken from the buffer and gone.
            Err(mqttbytes::Error::InsufficientBytes(_)) if buffer.len() == held => {
                more(reader, buffer).await?;
            }
            Err(error) => return Err(LineError::Nonsense(error)),
        }
    }
}

async fn more(reader: &mut ReadHalf<Box<dyn Duplex>>, buffer: &mut BytesMut) -> Result<(), LineError> {
    if reader.read_buf(buffer).await? == 0 { Err(LineError::Closed) } else { Ok(()) }
}

/// What the two directions and the judge share.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
    meter: Meter,
    limits: Limits,
    patience: Patience,
    asked: Mutex<Asked>,
    /// This machine's address at this end.
    from: Option<IpAddr>,
}

#[derive(Debug, Default)]
struct Asked {
    /// When the last ping was put into the queue.
    at: Option<Instant>,
    /// How much had gone out then.
    position: u64,
    waits: bool,
    /// We are not done with the last message ourselves.
    handing: bool,
    /// Bytes a second that the broker has confirmed.
    rate: Option<u64>,
    /// The network has changed, and nobody has answered since.
    moved: Option<Moved>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line on which packets go both ways until it ends or is dropped.
#[derive(Debug)]
pub struct Line {
    shared: Arc<Shared>,
    /// What comes.
    pub incoming: mpsc::Receiver<Incoming>,
    task: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// Lets packets flow.
    pub fn start(greeted: Greeted, patience: Patience) -> Self {
        let Greeted { from, meter, reader, writer, buffer, limits, .. } = greeted;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Notify::new(),
            meter,
            limits,
            patience,
            asked: Mutex::default(),
            from,
        });
        let (sender, incoming) = mpsc::channel(INCOMING);
        let task = tokio::spawn(run(shared.clone(), reader, writer, buffer, sender)).abort_handle();
        Self { shared, incoming, task }
    }

    /// What the broker takes.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Puts a message into the queue; false (and nothing happens) when it is larger than the broker takes.
    pub fn publish(&self, item: Item) -> bool {
        let (Item::Answer(publish)
        | Item::Event(_, publish)
        | Item::State(publish)
        | Item::Live(publish)
        | Item::Batch(_, publish)) = &item;
        if publish.size() > self.shared.limits.packet {
            return false;
        }
        lock(&self.shared.queue).push(item);
        self.shared.wake.notify_one();
        true
    }

    /// QoS 1, where the broker takes that.
    pub fn qos(&self) -> QoS {
        if self.shared.limits.qos_1 { QoS::AtLeastOnce } else { QoS::AtMostOnce }
    }

    /// Subscribes to these.
    pub fn subscribe(&self, filters: Vec<Filter>) {
        let mut queue = lock(&self.shared.queue);
        let mut subscribe = Subscribe::new_many(filters, None);
        subscribe.pkid = queue.subscription_id();
        queue.control(Packet::Subscribe(subscribe));
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Whether the last live message has gone.
    pub fn wants_live(&self) -> bool {
        lock(&self.shared.queue).wants_live()
    }

    /// Whether the last `state` has gone.
    pub fn wants_state(&self) -> bool {
        lock(&self.shared.queue).wants_state()
    }

    /// How fast the broker takes bytes, as it is known.
    pub fn rate_is(&self, bytes_per_s: u64) {
        lock(&self.shared.asked).rate = Some(bytes_per_s);
    }

    /// The machine's network has changed: the broker is asked at once whether this line still leads to it.
    pub fn network_has_changed(&self) {
        lock(&self.shared.asked).moved.get_or_insert_with(|| Moved::new(Instant::now()));
    }

    /// Says the last `state` and goodbye; then the line ends.
    pub fn close(&self) {
        lock(&self.shared.queue).close();
        self.shared.wake.notify_one();
    }
}

async fn run(
    shared: Arc<Shared>,
    reader: ReadHalf<Box<dyn Duplex>>,
    writer: WriteHalf<Box<dyn Duplex>>,
    buffer: BytesMut,
    sender: mpsc::Sender<Incoming>,
) {
    let ended = tokio::select! {
        ended = write_side(&shared, writer, &sender) => ended,
        ended = read_side(&shared, reader, buffer, &sender) => ended,
        ended = judge_side(&shared) => ended,
    };
    // Who listens no more need not hear that it is over.
    let _ = sender.send(Incoming::Ended(ended)).await;
}

async fn write_side(
    shared: &Shared,
    mut writer: WriteHalf<Box<dyn Duplex>>,
    sender: &mpsc::Sender<Incoming>,
) -> LineError {
    loop {
        let turn = {
            let mut queue = lock(&shared.queue);
            let turn = queue.next(shared.limits.in_flight, Instant::now());
            if turn.is_none() && queue.is_done() {
                break;
            }
            turn
        };
        let Some(turn) = turn else {
            shared.wake.notified().await;
            continue;
        };
        let began = Instant::now();
        if let Err(error) = send(&mut writer, &turn.packet).await {
            return error;
        }
        let Packet::Publish(publish) = &turn.packet else { continue };
        lock(&shared.queue).left(publish.pkid, shared.meter.sent());
        let Some(name) = turn.name else { continue };
        if sender.send(Incoming::Left(name, began.elapsed())).await.is_err() {
            return LineError::Closed;
        }
        if publish.qos == QoS::AtMostOnce && sender.send(Incoming::Accepted(name)).await.is_err() {
            return LineError::Closed;
        }
    }
    farewell(&mut writer).await;
    LineError::Closed
}

async fn read_side(
    shared: &Shared,
    mut reader: ReadHalf<Box<dyn Duplex>>,
    mut buffer: BytesMut,
    sender: &mpsc::Sender<Incoming>,
) -> LineError {
    loop {
        let packet = match receive(&mut reader, &mut buffer).await {
            Ok(packet) => packet,
            Err(error) => return error,
        };
        let message = match packet {
            Packet::Publish(publish) => {
                if publish.qos != QoS::AtMostOnce {
                    lock(&shared.queue).control(Packet::PubAck(PubAck::new(publish.pkid, None)));
                }
                Some(Incoming::Message(publish))
            }
            Packet::PubAck(answer) => accepted(shared, &answer).map(Incoming::Accepted),
            Packet::PingResp(_) => {
                let mut asked = lock(&shared.asked);
                asked.waits = false;
                lock(&shared.queue).heard(asked.position);
                None
            }
            Packet::SubAck(made) => Some(Incoming::Subscribed(
                made.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_))),
            )),
            Packet::Disconnect(Disconnect { reason_code, .. }) => return LineError::Dismissed(reason_code),
            _ => None,
        };
        shared.wake.notify_one();
        let Some(message) = message else { continue };
        lock(&shared.asked).handing = true;
        if sender.send(message).await.is_err() {
            return LineError::Closed;
        }
        lock(&shared.asked).handing = false;
    }
}

fn accepted(shared: &Shared, answer: &PubAck) -> Option<Name> {
    if !matches!(answer.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
        tracing::warn!(reason = ?answer.reason, "the broker did not take a message");
    }
    lock(&shared.queue).answered(answer.pkid)
}

async fn judge_side(shared: &Shared) -> LineError {
    let ask_after = shared.patience.ask_after(&shared.limits);
    let mut look = tokio::time::interval(LOOK.min(ask_after));
    loop {
        look.tick().await;
        let now = Instant::now();
        let mut asked = lock(&shared.asked);
        if asked.handing {
            continue;
        }
        let lately = asked.at.is_some_and(|at| now.saturating_duration_since(at) < ask_after);
        let idle = shared.meter.unheard(now).max(shared.meter.unsent(now)) >= ask_after;
        let heard = now.checked_sub(shared.meter.unheard(now));
        let asked_at = asked.at;
        asked.moved = asked.moved.take().filter(|moved| !moved.is_answered(asked_at, heard));
        // Where the network changed one question is judged: another one would give it its time anew.
        let moved_asks = asked.moved.as_ref().map(|moved| moved.asks(asked_at));
        if moved_asks.unwrap_or(idle && !lately) {
            asked.at = Some(now);
            asked.position = shared.meter.sent();
            asked.waits = true;
            lock(&shared.queue).control(Packet::PingReq(PingReq));
            shared.wake.notify_one();
        }
        let unconfirmed = lock(&shared.queue).unconfirmed(shared.meter.sent());
        let quiet = shared.meter.quiet(now);
        if asked.waits && quiet > shared.patience.lasts(unconfirmed, asked.rate) {
            return LineError::Dead(quiet);
        }
        let times = (now, asked.at);
        if asked
            .moved
            .as_ref()
            .is_some_and(|moved| moved.is_over(times, shared.from, unconfirmed, asked.rate))
        {
            return LineError::Moved;
        }
    }
}
