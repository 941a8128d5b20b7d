//! One connection to the broker, from CONNECT to the first error.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use kinara_protocol::envelope::{self, Ack, Command, CommandResult, Config, ENVELOPE_VERSION, ack, command};
use kinara_protocol::topic::{self, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Connect, ConnectProperties, ConnectReturnCode, Filter, LastWill, Packet, Publish, PublishProperties,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::flight::Window;
use super::line::{self, INCOMING, Incoming, Line, LineError, Patience};
use super::messages::{self, Identity};
use super::pace::Pace;
use super::queue::Item;
use super::trace::{self, Follower};
use super::{Context, UplinkError, dial, network};
use crate::align::source::ToldTime;
use crate::hardware::HardwareId;
use crate::sabotage;
use crate::status::{ClockSource, Snapshot};
use crate::store::{Kind, Name, Sealed, StoreError};
use crate::vitals::Pulse;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Seconds after which the broker drops a live message that it could not deliver.
const LIVE_EXPIRY: u32 = 5;
/// How often the bridge is asked for the time while it is the only source.
const ASK_TIME: Duration = Duration::from_secs(15);
/// How often it is asked to confirm a time that is known from elsewhere.
const CONFIRM_TIME: Duration = Duration::from_hours(1);
/// Messages of QoS 1 that the broker may send us before we have answered one.
const RECEIVE_MOST: u16 = 64;
/// Of a line that was measured, `state` takes no more than one part in so many.
const STATE_SHARE: f64 = 10.0;
/// So long a store that does not work is left alone.
const STORE_REST: Duration = Duration::from_secs(2);
/// The name under which the store keeps the version of the configuration.
const CONFIG_VERSION: &str = "config_version";
/// The alert about what the broker does not take.
const TOO_BIG: &str = "broker_limit";

/// A connection that is subscribed.
pub struct Connection<'a> {
    context: &'a Context,
    pace: &'a mut Pace,
    line: Line,
    /// What came before the subscription was confirmed.
    early: Vec<Publish>,
    identity: Identity,
    window: Window,
    follower: Follower,
    /// Acknowledgements on their way into the store.
    deleting: JoinSet<Result<(), StoreError>>,
    /// The store does not work, and is left alone until then.
    store_rests: Option<Instant>,
    /// We ended it ourselves.
    stopped: bool,
    live_until: Option<Instant>,
    live_by_config: bool,
    config_version: u64,
    time_request: (u64, i64, Instant),
    time_told: Option<Instant>,
    state_bytes: usize,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        if self.window.is_barren() && !self.stopped {
            self.pace.barren();
            tell(self.context, self.pace);
        }
    }
}

impl<'a> Connection<'a> {
    /// Connects and subscribes.
    pub async fn open(context: &'a Context, pace: &'a mut Pace) -> Result<Self, UplinkError> {
        let settings = &context.settings;
        let identity = context.store.identity().await?;
        let stream = dial::dial(settings, &context.judge).await?;
        let hello = hello(context, pace);
        let greeted = match line::greet(stream, hello, settings.connect_timeout).await {
            Ok(greeted) => greeted,
            Err(error) => {
                learn(pace, &error);
                return Err(error.into());
            }
        };
        pace.limits = greeted.limits;
        tell(context, pace);
        context.board.alert(TOO_BIG, None);
        let patience = Patience { silence: settings.silence, keep_alive: pace.keep_alive(settings) };
        let mut line = Line::start(greeted, patience);
        let subscribed = timeout(settings.connect_timeout, subscribe(context, &mut line)).await;
        let early = subscribed.unwrap_or(Err(UplinkError::Timeout))?;
        Ok(Self {
            early,
            context,
            pace,
            line,
            identity,
            window: Window::new(settings),
            follower: Follower::new(
                context.traces.clone(),
                settings.gateway,
                context.clock.clone(),
                context.known.clone(),
            ),
            deleting: JoinSet::new(),
            // It may not be open: what it knows is asked with the first work, and again until it answers.
            store_rests: Some(Instant::now()),
            stopped: false,
            live_until: None,
            live_by_config: false,
            config_version: 0,
            time_request: (0, 0, Instant::now()),
            time_told: None,
            state_bytes: 0,
        })
    }

    /// Serves until an error, or `Ok` when `cancel` says so.
    pub async fn serve(mut self, cancel: &CancellationToken, pulse: &Pulse) -> Result<(), UplinkError> {
        let settings = &self.context.settings;
        let mut board = self.context.board.watch();
        let mut outbox = self.context.store.outbox_changed();
        let mut tick = tokio::time::interval(TICK);
        let mut live = tokio::time::interval(settings.live_every);
        live.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut moved = pin!(network::changed());
        let mut state_due = Instant::now();
        let mut state_sent = Instant::now();
        // One that subscribed meanwhile told nobody who was not there.
        self.pace.bridge_came = true;
        self.context.store.set_online(true).await?;
        self.serve_store().await?;
        for publish in std::mem::take(&mut self.early) {
            self.take(&publish).await?;
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.stopped = true;
                    self.say_goodbye().await;
                    return Ok(());
                }
                message = self.line.incoming.recv() => match message {
                    Some(Incoming::Message(publish)) => self.take(&publish).await?,
                    Some(Incoming::Left(name, took)) => self.window.left(name, took, Instant::now()),
                    Some(Incoming::Accepted(name)) => self.accepted(name),
                    Some(Incoming::Ended(error)) => return Err(error.into()),
                    Some(Incoming::Subscribed(_)) => {}
                    None => return Err(LineError::Closed.into()),
                },
                changed = outbox.changed() => {
                    changed.map_err(|_| StoreError::Stopped)?;
                    self.serve_store().await?;
                }
                Some(deleted) = self.deleting.join_next() => {
                    if let Ok(result) = deleted {
                        self.bear(result.map_err(UplinkError::from))?;
                    }
                    self.serve_store().await?;
                }
                changed = board.changed() => {
                    if changed.is_err() {
                        return Err(StoreError::Stopped.into());
                    }
                    board.borrow_and_update();
                    state_due = state_due.min(state_sent + self.state_rest());
                }
                () = &mut moved => {
                    moved.set(network::changed());
                    self.line.network_has_changed();
                }
                _ = live.tick() => self.publish_live(),
                _ = tick.tick() => {
                    pulse.beat();
                    let late = self.window.expire(Instant::now());
                    if late > 0 {
                        tracing::info!(late, "no acknowledgement in time; publishing again");
                    }
                    self.serve_store().await?;
                    if Instant::now() >= state_due && self.line.wants_state() {
                        self.publish_state();
                        state_sent = Instant::now();
                        state_due = state_sent + settings.state_every.max(self.state_rest());
                    }
                }
            }
        }
    }

    /// Does what the store is needed for, unless it rests.
    async fn serve_store(&mut self) -> Result<(), UplinkError> {
        if self.store_rests.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let outcome = self.work_with_store().await;
        self.bear(outcome)
    }

    async fn work_with_store(&mut self) -> Result<(), UplinkError> {
        // One that was opened again has another name, which `state` tells.
        if self.store_rests.is_some() {
            self.identity = self.context.store.identity().await?;
            let kept = self.context.store.note(CONFIG_VERSION).await?.unwrap_or(0) as u64;
            self.config_version = self.config_version.max(kept);
        }
        self.retry_parked().await?;
        self.fill().await?;
        self.store_rests = None;
        Ok(())
    }

    /// A store that does not work now is no reason to leave: over this very line the cloud hears of it, and what it has
    /// not taken is tried again when it works.
    fn bear(&mut self, outcome: Result<(), UplinkError>) -> Result<(), UplinkError> {
        let why = match outcome {
            Err(UplinkError::Store(StoreError::NotCommitted(why))) => why,
            other => return other,
        };
        if self.store_rests.is_none() {
            tracing::warn!(%why, "the store does not work; the connection stays");
        }
        self.store_rests = Some(Instant::now() + STORE_REST);
        Ok(())
    }

    /// The broker has a batch.
    fn accepted(&mut self, name: Name) {
        self.window.accepted(name, Instant::now());
        if let Some(goodput) = self.window.goodput() {
            self.line.rate_is(goodput as u64);
        }
    }

    /// Between two tellings of a `state` that changes: on a slow line it must leave room for readings.
    fn state_rest(&self) -> Duration {
        let goodput = self.window.goodput().unwrap_or(f64::INFINITY).max(1.0);
        let rest = Duration::from_secs_f64(self.state_bytes as f64 * STATE_SHARE / goodput);
        rest.max(self.context.settings.state_pause)
    }

    /// Publishes what waits, events first, as far as the window allows.
    async fn fill(&mut self) -> Result<(), UplinkError> {
        for kind in [Kind::Event, Kind::Batch] {
            let (count, bytes) = self.window.room(kind, Instant::now());
            if count == 0 {
                continue;
            }
            for sealed in self.context.store.waiting(kind, self.window.names(), count, bytes).await? {
                self.send(sealed).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, sealed: Sealed) -> Result<(), UplinkError> {
        let name = sealed.name;
        let bytes = sealed.payload.len();
        let mut properties = messages::properties(&self.context.settings.gateway.to_string(), &name);
        properties.user_properties.extend(self.follower.published(&sealed));
        let leaf = if name.kind == Kind::Event { Leaf::Event } else { Leaf::Batch };
        let publish = self.message(leaf, self.line.qos(), false, sealed.payload, properties);
        let item = match name.kind {
            Kind::Event => Item::Event(name, publish),
            Kind::Batch => Item::Batch(name, publish),
        };
        if !self.line.publish(item) {
            self.leave_out(name, bytes).await?;
        } else if self.window.published(name, sealed.sha256, bytes, Instant::now()) {
            self.context.board.update(|snapshot| {
                snapshot.uplink.republished += 1;
                true
            });
        }
        Ok(())
    }

    /// A batch is larger than what the broker takes: it stays here, and the rest goes on.
    async fn leave_out(&mut self, name: Name, bytes: usize) -> Result<(), UplinkError> {
        let most = self.line.limits().packet;
        tracing::error!(
            ?name,
            bytes,
            most,
            "the broker takes no packets of this size; the batch is left out"
        );
        self.window.too_big(name);
        self.context.board.alert(
            TOO_BIG,
            Some(format!(
                "The broker takes packets of at most {most} bytes; {} batches are larger and stay here. \
                 Its maximum packet size has to be raised.",
                self.window.left_out()
            )),
        );
        Ok(self.context.store.leave_out(name).await?)
    }

    fn message(
        &self,
        leaf: Leaf,
        qos: QoS,
        retain: bool,
        payload: Vec<u8>,
        properties: PublishProperties,
    ) -> Publish {
        let topic = topic::of(self.context.settings.gateway, leaf);
        let mut publish = Publish::new(topic, qos, Bytes::from(payload), Some(properties));
        publish.retain = retain && self.line.limits().retain;
        publish
    }

    async fn take(&mut self, publish: &Publish) -> Result<(), UplinkError> {
        let topic = String::from_utf8_lossy(&publish.topic);
        let Some((gateway, leaf)) = topic::parse(&topic) else { return Ok(()) };
        if gateway != self.context.settings.gateway {
            return Ok(());
        }
        match leaf {
            Leaf::Ack => match envelope::open::<Ack>(&publish.payload) {
                Ok(ack) => self.take_ack(&ack),
                Err(error) => tracing::warn!(%error, "an acknowledgement that cannot be read"),
            },
            Leaf::Command => match envelope::open::<Command>(&publish.payload) {
                Ok(command) => self.take_command(&command).await?,
                Err(error) => tracing::warn!(%error, "a command that cannot be read"),
            },
            Leaf::Config => match envelope::open::<Config>(&publish.payload) {
                Ok(config) => self.take_config(&config).await?,
                Err(error) => tracing::warn!(%error, "a configuration that cannot be read"),
            },
            Leaf::Batch | Leaf::Event | Leaf::Live | Leaf::State | Leaf::CommandResult => {}
        }
        Ok(())
    }

    fn take_ack(&mut self, ack: &Ack) {
        let Some((name, sha256)) = messages::name_of(ack, self.context.settings.gateway.0) else {
            tracing::warn!("an acknowledgement without one of our names");
            return;
        };
        match &ack.outcome {
            Some(ack::Outcome::Done(_)) => {
                let Some(took) = self.window.answered(name, &sha256, Instant::now()) else {
                    tracing::warn!(?name, "an answer for another content than was sent; ignored");
                    return;
                };
                self.arrived(name, took);
                self.follower.answered(name, &trace::Answer::Done);
                let (store, board, clock) =
                    (self.context.store.clone(), self.context.board.clone(), self.context.clock.clone());
                self.deleting.spawn(async move {
                    if store.acknowledged(name, sha256).await? {
                        board.update(|snapshot| {
                            snapshot.uplink.acknowledged_batches += 1;
                            snapshot.uplink.last_ack_us = clock.utc_us();
                            true
                        });
                    }
                    Ok(())
                });
            }
            Some(ack::Outcome::Refused(refused)) => {
                if self.window.answered(name, &sha256, Instant::now()).is_none() {
                    tracing::warn!(?name, "an answer for another content than was sent; ignored");
                    return;
                }
                self.follower.answered(name, &trace::Answer::Refused(&refused.reason));
                self.park(name, sha256, refused.reason.clone());
            }
            Some(ack::Outcome::RetryAfter(retry)) => {
                tracing::info!(seconds = retry.seconds, reason = retry.reason, "the bridge asks for a pause");
                self.follower.answered(name, &trace::Answer::Later(&retry.reason));
                let pause = Duration::from_secs(u64::from(retry.seconds.clamp(1, 600)));
                self.window.pause(name, pause, Instant::now());
            }
            None => tracing::warn!(?name, "an answer of a newer kind; ignored"),
        }
    }

    /// What the line brought through tells how big the next batches may be.
    fn arrived(&mut self, name: Name, took: Duration) {
        if name.kind == Kind::Batch {
            self.pace.arrived(took);
            tell(self.context, self.pace);
        }
    }

    /// Tries again what the cloud could not read, when it is time to.
    async fn retry_parked(&mut self) -> Result<(), UplinkError> {
        if !self.pace.parked_are_due(self.context.settings.parked_pause)
            || sabotage::is(sabotage::Kind::ForgetParked)
        {
            return Ok(());
        }
        // Should the store not work, they are looked at when it does.
        self.pace.parked_tried = None;
        let again = self.context.store.retry_parked().await?;
        self.pace.parked_tried = Some(Instant::now());
        self.pace.bridge_came = false;
        if again > 0 {
            self.pace.parked_sent = Some(Instant::now());
            tracing::info!(again, "batches that the cloud could not read are tried again");
        }
        Ok(())
    }

    fn park(&mut self, name: Name, sha256: [u8; 32], reason: String) {
        tracing::error!(?name, reason, "the cloud cannot read this batch; it is parked here");
        let store = self.context.store.clone();
        self.deleting.spawn(async move { store.park(name, sha256, reason).await.map(|_| ()) });
    }

    async fn take_command(&mut self, command: &Command) -> Result<(), UplinkError> {
        let (ok, detail) = match &command.command {
            Some(command::Command::Time(time)) => {
                let (nonce, asked_boot_us, _) = self.time_request;
                if nonce == 0 || time.nonce != nonce {
                    return Ok(());
                }
                self.time_request.0 = 0;
                self.time_told = Some(Instant::now());
                let answered_boot_us = self.context.clock.boottime_us();
                let proof = self.context.settings.tls.as_ref().and_then(|_| self.context.judge.met());
                let told = ToldTime { asked_boot_us, answered_boot_us, utc_us: time.utc_us, proof };
                self.context.bridge_time.send_replace(Some(told));
                return Ok(());
            }
            Some(command::Command::Live(lease)) => {
                let seconds = u64::from(lease.seconds.min(3600));
                self.live_until = Some(Instant::now() + Duration::from_secs(seconds));
                (true, String::new())
            }
            Some(command::Command::Identify(wanted)) => self.identify(&wanted.hardware_id),
            Some(command::Command::Resend(_)) => {
                let again = self.window.resend(Instant::now());
                tracing::info!(again, "a bridge has subscribed; publishing again what it may have missed");
                self.pace.bridge_came = true;
                return self.serve_store().await;
            }
            None => (false, "a command that this version does not know".to_owned()),
        };
        let result = CommandResult { version: ENVELOPE_VERSION, id: command.id, ok, detail };
        let sealed = envelope::seal(&result);
        let answer =
            self.message(Leaf::CommandResult, self.line.qos(), false, sealed, PublishProperties::default());
        self.line.publish(Item::Answer(answer));
        Ok(())
    }

    fn identify(&self, hardware: &str) -> (bool, String) {
        let snapshot = self.context.board.now();
        let connected = HardwareId::parse(hardware)
            .ok()
            .filter(|hardware| snapshot.devices.get(hardware).is_some_and(|device| device.link.connected()));
        match connected {
            Some(hardware) => (self.context.identify.send(hardware).is_ok(), String::new()),
            None => (false, "the wearable is not connected to this gateway".to_owned()),
        }
    }

    async fn take_config(&mut self, config: &Config) -> Result<(), UplinkError> {
        if config.config_version < self.config_version {
            tracing::warn!(
                version = config.config_version,
                have = self.config_version,
                "an older configuration; ignored"
            );
            return Ok(());
        }
        match self.context.desk.take_config(config).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // It is retained, and comes again with the next connection.
                tracing::warn!(%error, version = config.config_version, "the configuration was not kept");
                return Ok(());
            }
        }
        self.live_by_config = config.live_always;
        self.config_version = config.config_version;
        if let Err(error) = self.context.store.set_note(CONFIG_VERSION, config.config_version as i64).await {
            // The configuration itself is kept; told once more it changes nothing.
            tracing::warn!(%error, "the version of the configuration was not kept");
        }
        Ok(())
    }

    fn publish_live(&mut self) {
        let watched = self.live_until.is_some_and(|until| until > Instant::now());
        let wanted = self.context.settings.live_always || self.live_by_config || watched;
        self.context.board.update(|snapshot| std::mem::replace(&mut snapshot.uplink.live, wanted) != wanted);
        if !wanted || !self.line.wants_live() {
            return;
        }
        let Some(live) = self.context.newest.collect() else { return };
        let properties =
            PublishProperties { message_expiry_interval: Some(LIVE_EXPIRY), ..PublishProperties::default() };
        let message = self.message(Leaf::Live, QoS::AtMostOnce, false, envelope::seal(&live), properties);
        // What does not fit the broker is old in a second anyway.
        self.line.publish(Item::Live(message));
    }

    fn publish_state(&mut self) {
        let snapshot = self.context.board.now();
        let needs = matches!(snapshot.clock.source, ClockSource::Unknown | ClockSource::Bridge);
        // A time that is known is confirmed by the bridge now and then: only so does the floor rise.
        let asks = needs || self.time_told.is_none_or(|told| told.elapsed() > CONFIRM_TIME);
        if asks && (self.time_request.0 == 0 || self.time_request.2.elapsed() > ASK_TIME) {
            self.time_request = (rand::random::<u64>() | 1, self.context.clock.boottime_us(), Instant::now());
        }
        let nonce = if asks { self.time_request.0 } else { 0 };
        self.publish_snapshot(&snapshot, nonce, true);
    }

    /// Tells `state`; where it is larger than the broker takes, as much of it as fits.
    fn publish_snapshot(&mut self, snapshot: &Snapshot, nonce: u64, online: bool) {
        let mut state = messages::state(self.context, snapshot, self.identity, nonce, self.config_version);
        state.online = online;
        for shorten in messages::SHORTER {
            shorten(&mut state);
            let sealed = envelope::seal(&state);
            self.state_bytes = sealed.len();
            let message =
                self.message(Leaf::State, self.line.qos(), true, sealed, PublishProperties::default());
            if self.line.publish(Item::State(message)) {
                return;
            }
        }
        tracing::warn!(most = self.line.limits().packet, "the broker takes no packet as large as our state");
    }

    async fn say_goodbye(&mut self) {
        self.publish_snapshot(&self.context.board.now(), 0, false);
        self.line.close();
        let ended = async {
            while let Some(message) = self.line.incoming.recv().await {
                if matches!(message, Incoming::Ended(_)) {
                    break;
                }
            }
        };
        if timeout(Duration::from_secs(2), ended).await.is_err() {
            tracing::debug!("the broker did not hear the goodbye; it has the last will");
        }
    }
}

/// Lets batches be as big as the line carries.
fn tell(context: &Context, pace: &mut Pace) {
    if let Some(bytes) = pace.news() {
        tracing::debug!(bytes, "frame bytes in a batch, as the line carries them");
        context.store.pack_at_most(bytes);
    }
}

/// What a refusal says about the broker: the next greeting asks for less.
fn learn(pace: &mut Pace, error: &LineError) {
    match error {
        LineError::Refused { code: ConnectReturnCode::QoSNotSupported, .. } => pace.limits.qos_1 = false,
        LineError::Refused { code: ConnectReturnCode::RetainNotSupported, .. } => pace.limits.retain = false,
        _ => {}
    }
}

/// Subscribes and waits until that is confirmed: an acknowledgement must not pass us by.
async fn subscribe(context: &Context, line: &mut Line) -> Result<Vec<Publish>, UplinkError> {
    let filters = [Leaf::Ack, Leaf::Command, Leaf::Config]
        .map(|leaf| Filter::new(topic::of(context.settings.gateway, leaf), QoS::AtLeastOnce));
    line.subscribe(filters.into());
    let mut early = Vec::new();
    loop {
        match line.incoming.recv().await {
            Some(Incoming::Subscribed(true)) => return Ok(early),
            Some(Incoming::Subscribed(false)) => return Err(UplinkError::Subscription),
            // A retained configuration may come before the confirmation.
            Some(Incoming::Message(publish)) if early.len() < INCOMING => early.push(publish),
            Some(Incoming::Ended(error)) => return Err(error.into()),
            Some(_) => {}
            None => return Err(LineError::Closed.into()),
        }
    }
}

fn hello(context: &Context, pace: &Pace) -> Packet {
    let settings = &context.settings;
    // Nobody else can know it (the broker closes the older of two connections with one client id, whoever opens the
    // other), and it is the same for the daemon's life, so that a half-open connection is closed, and its will sent,
    // before the next one says that we are there.
    let client_id = format!("{}-{:016x}", settings.gateway, pace.run_id);
    let will = LastWill::new(
        topic::of(settings.gateway, Leaf::State),
        messages::last_will(),
        if pace.limits.qos_1 { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        pace.limits.retain,
        None,
    );
    let properties = ConnectProperties {
        session_expiry_interval: Some(0),
        receive_maximum: Some(RECEIVE_MOST),
        max_packet_size: Some((envelope::MAX_SEALED + 64 * 1024) as u32),
        ..ConnectProperties::new()
    };
    let connect = Connect {
        keep_alive: u16::try_from(pace.keep_alive(settings).as_secs()).unwrap_or(u16::MAX),
        client_id,
        clean_start: true,
        properties: Some(properties),
    };
    Packet::Connect(connect, Some(will), None)
}
