//! One connection to the broker, from CONNECT to the first error.

use std::time::Duration;

use kinara_protocol::envelope::{self, Ack, Command, CommandResult, Config, ENVELOPE_VERSION, ack, command};
use kinara_protocol::topic::{self, Leaf};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, Packet, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::flight::Window;
use super::messages::{self, Identity};
use super::trace::{self, Follower};
use super::{Context, UplinkError, tls};
use crate::align::source::ToldTime;
use crate::hardware::HardwareId;
use crate::status::{ClockSource, Snapshot};
use crate::store::{Kind, Name, StoreError};
use crate::vitals::Pulse;

/// Requests that may wait in the client.
const REQUESTS: usize = 64;
/// Messages that may wait for us.
const INCOMING: usize = 256;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Seconds after which the broker drops a live message that it could not deliver.
const LIVE_EXPIRY: u32 = 5;
/// How often the bridge is asked for the time while it is the only source.
const ASK_TIME: Duration = Duration::from_secs(15);
/// How often it is asked to confirm a time that is known from elsewhere.
const CONFIRM_TIME: Duration = Duration::from_hours(1);
/// The name under which the store keeps the version of the configuration.
const CONFIG_VERSION: &str = "config_version";

enum Incoming {
    Connected,
    Subscribed(bool),
    Message(Publish),
    Ended(UplinkError),
}

/// A connection that is subscribed.
pub struct Connection<'a> {
    context: &'a Context,
    client: AsyncClient,
    incoming: mpsc::Receiver<Incoming>,
    /// What came before the subscription was confirmed.
    early: Vec<Publish>,
    poller: AbortHandle,
    identity: Identity,
    window: Window,
    follower: Follower,
    /// Acknowledgements on their way into the store.
    deleting: JoinSet<Result<(), StoreError>>,
    live_until: Option<Instant>,
    live_by_config: bool,
    config_version: u64,
    time_request: (u64, i64, Instant),
    time_told: Option<Instant>,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

impl<'a> Connection<'a> {
    /// Connects and subscribes.
    pub async fn open(context: &'a Context) -> Result<Self, UplinkError> {
        let settings = &context.settings;
        let identity = context.store.identity().await?;
        let config_version = context.store.note(CONFIG_VERSION).await?.unwrap_or(0) as u64;
        let (client, mut events) = AsyncClient::new(options(context, &identity)?, REQUESTS);
        let (sender, mut incoming) = mpsc::channel(INCOMING);
        let poller = tokio::spawn(async move {
            loop {
                let message = match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => Incoming::Connected,
                    Ok(Event::Incoming(Packet::SubAck(subscribed))) => Incoming::Subscribed(
                        subscribed
                            .return_codes
                            .iter()
                            .all(|code| matches!(code, SubscribeReasonCode::Success(_))),
                    ),
                    Ok(Event::Incoming(Packet::Publish(publish))) => Incoming::Message(publish),
                    Ok(_) => continue,
                    Err(error) => Incoming::Ended(Box::new(error).into()),
                };
                let ended = matches!(message, Incoming::Ended(_));
                if sender.send(message).await.is_err() || ended {
                    return;
                }
            }
        })
        .abort_handle();
        let opened = timeout(settings.connect_timeout, subscribe(context, &client, &mut incoming)).await;
        let early = match opened.unwrap_or(Err(UplinkError::Timeout("connect"))) {
            Ok(early) => early,
            Err(error) => {
                poller.abort();
                return Err(error);
            }
        };
        Ok(Self {
            early,
            context,
            client,
            incoming,
            poller,
            identity,
            window: Window::new(settings),
            follower: Follower::new(
                context.traces.clone(),
                settings.gateway,
                context.clock.clone(),
                context.known.clone(),
            ),
            deleting: JoinSet::new(),
            live_until: None,
            live_by_config: false,
            config_version,
            time_request: (0, 0, Instant::now()),
            time_told: None,
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
        let mut state_due = Instant::now();
        let mut state_sent = Instant::now();
        self.context.store.set_online(true).await?;
        self.fill().await?;
        for publish in std::mem::take(&mut self.early) {
            self.take(&publish).await?;
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.say_goodbye().await;
                    return Ok(());
                }
                message = self.incoming.recv() => match message {
                    Some(Incoming::Message(publish)) => self.take(&publish).await?,
                    Some(Incoming::Ended(error)) => return Err(error),
                    Some(Incoming::Connected | Incoming::Subscribed(_)) => {}
                    None => return Err(UplinkError::Closed),
                },
                changed = outbox.changed() => {
                    changed.map_err(|_| StoreError::Stopped)?;
                    self.fill().await?;
                }
                Some(deleted) = self.deleting.join_next() => {
                    if let Ok(result) = deleted {
                        result?;
                    }
                    self.fill().await?;
                }
                changed = board.changed() => {
                    if changed.is_err() {
                        return Err(UplinkError::Closed);
                    }
                    board.borrow_and_update();
                    state_due = state_due.min(state_sent + settings.state_pause);
                }
                _ = live.tick() => self.publish_live().await?,
                _ = tick.tick() => {
                    pulse.beat();
                    let late = self.window.expire(Instant::now());
                    if late > 0 {
                        tracing::info!(late, "no acknowledgement in time; publishing again");
                    }
                    self.fill().await?;
                    if Instant::now() >= state_due {
                        self.publish_state().await?;
                        state_sent = Instant::now();
                        state_due = state_sent + settings.state_every;
                    }
                }
            }
        }
    }

    /// Publishes what waits, events first, as far as the window allows.
    async fn fill(&mut self) -> Result<(), UplinkError> {
        for kind in [Kind::Event, Kind::Batch] {
            let (count, bytes) = self.window.room(kind, Instant::now());
            if count == 0 {
                continue;
            }
            let waiting = self.context.store.waiting(kind, self.window.names(), count, bytes).await?;
            let leaf = if kind == Kind::Event { Leaf::Event } else { Leaf::Batch };
            for sealed in waiting {
                let again =
                    self.window.published(sealed.name, sealed.sha256, sealed.payload.len(), Instant::now());
                if again {
                    self.context.board.update(|snapshot| {
                        snapshot.uplink.republished += 1;
                        true
                    });
                }
                let mut properties =
                    messages::properties(&self.context.settings.gateway.to_string(), &sealed.name);
                properties.user_properties.extend(self.follower.published(&sealed));
                self.publish(leaf, QoS::AtLeastOnce, false, sealed.payload, properties).await?;
            }
        }
        Ok(())
    }

    async fn publish(
        &self,
        leaf: Leaf,
        qos: QoS,
        retain: bool,
        payload: Vec<u8>,
        properties: PublishProperties,
    ) -> Result<(), UplinkError> {
        let topic = topic::of(self.context.settings.gateway, leaf);
        let publish = self.client.publish_with_properties(topic, qos, retain, payload, properties);
        timeout(self.context.settings.connect_timeout, publish)
            .await
            .map_err(|_| UplinkError::Timeout("publish"))?
            .map_err(|_| UplinkError::Closed)
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
            Some(ack::Outcome::Done(_)) if self.window.answered(name, &sha256) => {
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
            Some(ack::Outcome::Refused(refused)) if self.window.answered(name, &sha256) => {
                self.follower.answered(name, &trace::Answer::Refused(&refused.reason));
                self.park(name, sha256, refused.reason.clone());
            }
            Some(ack::Outcome::RetryAfter(retry)) => {
                tracing::info!(seconds = retry.seconds, reason = retry.reason, "the bridge asks for a pause");
                self.follower.answered(name, &trace::Answer::Later(&retry.reason));
                let pause = Duration::from_secs(u64::from(retry.seconds.clamp(1, 600)));
                self.window.pause(name, pause, Instant::now());
            }
            Some(_) => tracing::warn!(?name, "an answer for another content than was sent; ignored"),
            None => tracing::warn!(?name, "an answer of a newer kind; ignored"),
        }
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
                return self.fill().await;
            }
            None => (false, "a command that this version does not know".to_owned()),
        };
        let result = CommandResult { version: ENVELOPE_VERSION, id: command.id, ok, detail };
        self.publish(
            Leaf::CommandResult,
            QoS::AtLeastOnce,
            false,
            envelope::seal(&result),
            PublishProperties::default(),
        )
        .await
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
        self.context.store.set_note(CONFIG_VERSION, config.config_version as i64).await?;
        Ok(())
    }

    async fn publish_live(&mut self) -> Result<(), UplinkError> {
        let watched = self.live_until.is_some_and(|until| until > Instant::now());
        let wanted = self.context.settings.live_always || self.live_by_config || watched;
        self.context.board.update(|snapshot| std::mem::replace(&mut snapshot.uplink.live, wanted) != wanted);
        if !wanted {
            return Ok(());
        }
        let Some(live) = self.context.newest.collect() else { return Ok(()) };
        let properties =
            PublishProperties { message_expiry_interval: Some(LIVE_EXPIRY), ..PublishProperties::default() };
        self.publish(Leaf::Live, QoS::AtMostOnce, false, envelope::seal(&live), properties).await
    }

    async fn publish_state(&mut self) -> Result<(), UplinkError> {
        let snapshot = self.context.board.now();
        let needs = matches!(snapshot.clock.source, ClockSource::Unknown | ClockSource::Bridge);
        // A time that is known is confirmed by the bridge now and then: only so does the floor rise.
        let asks = needs || self.time_told.is_none_or(|told| told.elapsed() > CONFIRM_TIME);
        if asks && (self.time_request.0 == 0 || self.time_request.2.elapsed() > ASK_TIME) {
            self.time_request = (rand::random::<u64>() | 1, self.context.clock.boottime_us(), Instant::now());
        }
        let nonce = if asks { self.time_request.0 } else { 0 };
        self.publish_snapshot(&snapshot, nonce, true).await
    }

    async fn publish_snapshot(
        &self,
        snapshot: &Snapshot,
        nonce: u64,
        online: bool,
    ) -> Result<(), UplinkError> {
        let mut state = messages::state(self.context, snapshot, self.identity, nonce, self.config_version);
        state.online = online;
        let payload = envelope::seal(&state);
        self.publish(Leaf::State, QoS::AtLeastOnce, true, payload, PublishProperties::default()).await
    }

    async fn say_goodbye(&mut self) {
        let goodbye = async {
            self.publish_snapshot(&self.context.board.now(), 0, false).await?;
            self.client.disconnect().await.map_err(|_| UplinkError::Closed)?;
            while let Some(message) = self.incoming.recv().await {
                if matches!(message, Incoming::Ended(_)) {
                    break;
                }
            }
            Ok::<(), UplinkError>(())
        };
        if !matches!(timeout(Duration::from_secs(2), goodbye).await, Ok(Ok(()))) {
            tracing::debug!("the broker did not hear the goodbye; it has the last will");
        }
    }
}

/// Waits for the connection, subscribes, and waits until that is confirmed: an acknowledgement must not pass us by.
async fn subscribe(
    context: &Context,
    client: &AsyncClient,
    incoming: &mut mpsc::Receiver<Incoming>,
) -> Result<Vec<Publish>, UplinkError> {
    let mut early = Vec::new();
    loop {
        match incoming.recv().await {
            Some(Incoming::Connected) => {
                let filters = [Leaf::Ack, Leaf::Command, Leaf::Config]
                    .map(|leaf| Filter::new(topic::of(context.settings.gateway, leaf), QoS::AtLeastOnce));
                client.subscribe_many(filters).await.map_err(|_| UplinkError::Closed)?;
            }
            Some(Incoming::Subscribed(true)) => return Ok(early),
            Some(Incoming::Subscribed(false)) => return Err(UplinkError::Subscription),
            // A retained configuration may come before the confirmation.
            Some(Incoming::Message(publish)) => {
                if early.len() < INCOMING {
                    early.push(publish);
                }
            }
            Some(Incoming::Ended(error)) => return Err(error),
            None => return Err(UplinkError::Closed),
        }
    }
}

fn options(context: &Context, identity: &Identity) -> Result<MqttOptions, UplinkError> {
    let settings = &context.settings;
    // Nobody else can know it (the broker closes the older of two connections with one client id, whoever opens the
    // other), and it is the same for the daemon's life, so that a half-open connection is closed, and its will sent,
    // before the next one says that we are there.
    let client_id = format!("{}-{:016x}", settings.gateway, identity.0);
    let mut options = MqttOptions::new(client_id, settings.host.clone(), settings.port);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_start(true);
    options.set_session_expiry_interval(Some(0));
    options.set_connection_timeout(settings.connect_timeout.as_secs().max(1));
    options.set_max_packet_size(Some((envelope::MAX_SEALED + 64 * 1024) as u32));
    options.set_receive_maximum(Some(64));
    // Below the receive maximum of any broker in use: Mosquitto's default is 20.
    options.set_outgoing_inflight_upper_limit(20);
    let will = LastWill::new(
        topic::of(settings.gateway, Leaf::State),
        messages::last_will(),
        QoS::AtLeastOnce,
        true,
        None,
    );
    options.set_last_will(will);
    if let Some(files) = &settings.tls {
        let config = tls::client(files, &context.judge)?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config.into())));
    }
    Ok(options)
}
