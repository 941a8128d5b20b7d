//! From the broker to the database, and the answers back.
//!
//! ```text
//! broker ─▶ link ─┬─ batches, events ─▶ queue ─▶ work ─▶ kinara-ingest ─▶ database
//!                 ├─ states ─▶ newest ─▶ state ─▶ database   └─ answer ─▶ broker ─▶ gateway
//!                 └─ live ─▶ newest ─▶ live ─▶ broker (by clinic)
//! database ─▶ jobs (what came over HTTP, alerts, erasures, the night's work) ─▶ kinara-ingest ─▶ database
//! ```
//!
//! Any number of bridges share one subscription. None of them holds anything that matters: what a bridge had not
//! answered when it stopped comes again.

pub mod answer;
pub mod config;
pub mod heap;
pub mod http;
pub mod hush;
pub mod infer;
pub mod jobs;
pub mod link;
pub mod live;
pub mod looks;
pub mod metrics;
pub mod newest;
pub mod notices;
pub mod queue;
pub mod reading;
pub mod roster;
pub mod state;
pub mod tasks;
mod tenants;
pub mod trace;
pub mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_ingest::retention::Retention;
use kinara_ingest::sweep::{self, Policy};
use kinara_ingest::upkeep::{self, Bounds};
use kinara_ingest::{Limits, Name, Writer};
use kinara_ingest::{enrich, requests, rollup, timestamp};
use kinara_protocol::envelope::{self, Live, PROPERTY_BUFFER, PROPERTY_GATEWAY, PROPERTY_SEQUENCE, State};
use kinara_protocol::topic::{self, Leaf};
use kinara_store::{Pool, Work};
use kinara_traces::Traces;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::answer::{Addressee, Answer};
use crate::config::Config;
use crate::link::Publisher;
use crate::metrics::Metrics;
use crate::newest::Newest;
use crate::queue::{Item, Queue, WriterId};
use crate::state::{Message, Register};
use crate::tasks::Tasks;
use crate::tenants::Tenants;
use crate::trace::Tracer;
use crate::work::Workplace;

/// Bytes of states that may wait to be read, and to be written: the newest of each gateway.
const STATES: usize = 16 * 1024 * 1024;
/// Bytes of live messages that may wait, and how many of each gateway: newer ones follow in a second.
const LIVES: usize = 4 * 1024 * 1024;
const LIVES_EACH: usize = 8;
/// A state that waited longer than this is not answered with the time: it measures the way, and waiting is none.
const TIME_WAIT: Duration = Duration::from_secs(2);

/// Bytes of a command's result.
const COMMAND_RESULT: usize = 4096;
/// Bytes of a trace's name in a message's properties; W3C's has 55.
const TRACEPARENT: usize = 64;

/// How often it is looked whether the database has been migrated.
const SCHEMA_POLL: Duration = Duration::from_secs(5);

/// How old a connection to the database becomes, and how often it is looked.
const CONNECTION_AGE: Duration = Duration::from_mins(2);
const CONNECTION_LOOK: Duration = Duration::from_secs(30);

/// When steps beside a migration that failed are tried again.
const STEPS_AGAIN: Duration = Duration::from_mins(1);

/// How long after a change in what boxes are told it is published.
const BURST: Duration = Duration::from_millis(300);
/// A look reads what all clinics have: after one there is this often its time until the next, however much one of them changes.
const REST: u32 = 4;

/// Why a bridge does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database's configuration, or its migration.
    #[error(transparent)]
    Store(#[from] kinara_store::Error),
    /// The broker's configuration.
    #[error(transparent)]
    Link(#[from] link::LinkError),
    /// The port for metrics.
    #[error("cannot serve metrics on {address}: {source}; choose another [metrics] listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The configuration of traces.
    #[error(transparent)]
    Traces(#[from] kinara_traces::Error),
    /// The file for the address.
    #[error("cannot write [metrics] addr_file: {0}")]
    AddrFile(std::io::Error),
    /// A part of it ended that goes on as long as the bridge does.
    #[error("a task ended before the bridge was to stop: {0}")]
    Ended(String),
}

/// Runs a bridge until told to stop. Boxed so that all of it is compiled here, and not again in each program that runs one.
pub fn run(
    config: Config,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Work<'static, Result<(), Error>> {
    Box::pin(run_all(config, clock, stop))
}

async fn run_all(config: Config, clock: Arc<dyn Clock>, stop: CancellationToken) -> Result<(), Error> {
    if let Some(url) = &config.database.admin_url {
        let migrated = kinara_store::migrate::schema(url).await?;
        tracing::info!(version = migrated.version, applied = migrated.applied, "the database's schema");
    }
    let pool = kinara_store::connect(&config.database.url, "kinara-cloud-bridge", &config.database_limits())?;
    know_schema(&pool, &stop).await?;
    let transport = link::transport(&config.broker)?;
    let instance = config.broker.client_id.clone();
    let traces = Traces::open(&config.traces, "kinara-cloud-bridge", env!("CARGO_PKG_VERSION"), instance)?
        .map(Arc::new);
    let listener = TcpListener::bind(config.metrics.listen)
        .await
        .map_err(|source| Error::Listen { address: config.metrics.listen, source })?;
    let address =
        listener.local_addr().map_err(|source| Error::Listen { address: config.metrics.listen, source })?;
    let metrics = Arc::new(Metrics::default());
    let publisher = Publisher::new(metrics.clone());
    let writer = Arc::new(Writer::new(pool.clone(), clock.clone(), Limits::default()));
    let limits = &config.limits;
    let queue = Queue::new(limits.queue_bytes, limits.tenant_percent, limits.writers);

    // Told by whoever stops the bridge, or by a task that ended.
    let stop = stop.child_token();
    let mut tasks = Tasks::default();
    for number in 0..limits.writers {
        let workplace = Workplace {
            id: WriterId(number),
            writer: writer.clone(),
            queue: queue.clone(),
            publisher: publisher.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            limits: config.limits.clone(),
            tracer: Tracer::new(traces.clone(), clock.clone()),
            decode: kinara_ingest::decode_until,
        };
        tasks.spawn("a writer", workplace.work(stop.clone()));
    }
    let states = Newest::new(1, STATES);
    let readable = Newest::new(1, STATES);
    let reader = StateReader {
        states: states.clone(),
        readable: readable.clone(),
        publisher: publisher.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
    };
    tasks.spawn("the reader of states", until(stop.clone(), reader.read()));
    let register = Register::new(pool.clone(), clock.clone());
    tasks.spawn("the writer of states", until(stop.clone(), take_states(register, readable)));
    let lives = Newest::new(LIVES_EACH, LIVES);
    let gate = live::Gate::new(pool.clone(), clock.clone(), Duration::from_secs(config.limits.live_cache_s));
    let shown = take_lives(gate, lives.clone(), publisher.clone(), metrics.clone());
    tasks.spawn("live values", until(stop.clone(), shown));
    let (connected, changed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let session = kinara_store::Target::with_limits(
        &config.database.url,
        "kinara-cloud-bridge notices",
        &config.database_limits(),
    )?;
    tasks.spawn("notices", notices::listen(session, changed.clone(), stop.clone()));
    let tenants = Tenants::default();
    let configured = keep_configured(Jobs {
        pool: pool.clone(),
        clock: clock.clone(),
        publisher: publisher.clone(),
        metrics: metrics.clone(),
        tenants: tenants.clone(),
        connected: connected.clone(),
        changed,
        every: Duration::from_secs(config.jobs.config_s),
        stop: stop.clone(),
    });
    tasks.spawn("configurations", configured);
    let policy = Policy {
        late_grace: Duration::from_secs(config.jobs.late_grace_s),
        // The storage's task does it by the login that may.
        drops_partitions: config.database.admin_url.is_none(),
        ..Policy::default()
    };
    tasks.spawn(
        "the sweep",
        keep_swept(
            pool.clone(),
            clock.clone(),
            policy,
            Duration::from_secs(config.jobs.sweep_s),
            metrics.clone(),
            stop.clone(),
        ),
    );
    if let Some(url) = config.database.admin_url.clone() {
        tasks.spawn("the steps beside", until(stop.clone(), keep_migrated(url, metrics.clone())));
    }
    let patient = kinara_store::Limits { connections: 1, ..config.database_limits() };
    let patient = kinara_store::connect(&config.database.url, "kinara-cloud-bridge storage", &patient)?;
    let pools = [pool.clone(), patient.clone()];
    tasks.spawn("the connections", until(stop.clone(), keep_fresh(pools)));
    tasks.spawn("the storage", keep_stored(config.clone(), patient, metrics.clone(), stop.clone()));
    tasks.spawn(
        "the upkeep",
        keep_up(
            writer.clone(),
            pool.clone(),
            clock.clone(),
            Duration::from_secs(config.jobs.upkeep_s),
            metrics.clone(),
            stop.clone(),
        ),
    );
    tasks.spawn(
        "what is derived",
        // A slice that is cut short is done again.
        until(
            stop.clone(),
            keep_derived(
                pool.clone(),
                clock.clone(),
                Duration::from_secs(config.jobs.derive_s),
                metrics.clone(),
            ),
        ),
    );
    let shop = jobs::Workshop {
        writer: writer.clone(),
        pool: pool.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        patience: Duration::from_secs(config.jobs.reconcile_timeout_s),
        inference: infer::Inference::open(&config.infer),
        looks: looks::Looks::default(),
        retention: Retention {
            audit_days: config.jobs.audit_days.into(),
            derived_days: config.jobs.derived_days.into(),
            ..Retention::default()
        },
        database_memory: config.jobs.database_memory_mib.map(|mib| mib << 20),
    };
    tasks.spawn("jobs", jobs::work(config.clone(), shop, stop.clone()));
    let every = Duration::from_secs(config.jobs.sweep_s);
    let jobs_queue = jobs::Queue::new(&config)?;
    tasks.spawn(
        "the count of jobs",
        keep_counted(jobs_queue, pool.clone(), every, metrics.clone(), stop.clone()),
    );
    {
        let (metrics, queue, stop) = (metrics.clone(), queue.clone(), stop.clone());
        let writer = writer.clone();
        tasks.spawn("metrics", async move {
            if let Err(error) = http::serve(listener, metrics, queue, writer, stop).await {
                tracing::error!(%error, "metrics are not served any more");
            }
        });
    }
    if let Some(file) = &config.metrics.addr_file {
        http::write_address(file, address).map_err(Error::AddrFile)?;
    }
    tracing::info!(%address, "serving metrics");

    let reception = Reception {
        queue,
        states,
        lives,
        tenants,
        publisher: publisher.clone(),
        metrics: metrics.clone(),
        clock,
        retry_after_s: config.limits.retry_after_s,
    };
    // Stopped last: what the writers still finish is answered over it.
    let link_stop = CancellationToken::new();
    let link = link::keep(
        &config.broker,
        transport,
        &publisher,
        &metrics,
        &link_stop,
        || connected.notify_one(),
        |publish| reception.take(&publish),
    );
    let all_done = async {
        let ended = tasks.watch(&stop).await;
        if let Some(task) = &ended {
            tracing::error!(task, "a part of the bridge has ended: stopping");
        }
        stop.cancel();
        tracing::info!("stopping: finishing what was begun");
        if tokio::time::timeout(Duration::from_secs(20), tasks.finish()).await.is_err() {
            tracing::warn!("a transaction did not end in time; its batches will come again");
        }
        link_stop.cancel();
        ended
    };
    let ((), ended) = tokio::join!(link, all_done);
    tasks.shutdown().await;
    if let Some(traces) = traces {
        let patience = Duration::from_secs(config.traces.timeout_s);
        let _ = tokio::task::spawn_blocking(move || traces.close(patience)).await;
    }
    ended.map_or(Ok(()), |task| Err(Error::Ended(task)))
}

/// What goes on until the bridge stops, and holds nothing then that matters.
async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

/// Looks whether the database has this release's schema. One that is older is waited for: another program migrates it.
async fn know_schema(pool: &Pool, stop: &CancellationToken) -> Result<(), Error> {
    loop {
        match kinara_store::migrate::check(pool).await {
            Ok(()) => return Ok(()),
            Err(error @ kinara_store::Error::Newer { .. }) => return Err(error.into()),
            Err(error @ kinara_store::Error::Older { .. }) => {
                tracing::error!(%error, "nothing is done until it is");
            }
            Err(error) => {
                tracing::warn!(%error, "whether the database has this release's schema is not known");
                return Ok(());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(SCHEMA_POLL) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Lets the database's connections go after a while: each keeps room for the largest statement that it ever sent, which is as
/// large as somebody made it.
async fn keep_fresh(pools: [Pool; 2]) {
    loop {
        tokio::time::sleep(CONNECTION_LOOK).await;
        for pool in &pools {
            kinara_store::pool::let_go(pool, CONNECTION_AGE);
        }
    }
}

/// Does what a migration leaves to be done beside, until it is done: for an hour, where tables are large.
async fn keep_migrated(admin_url: String, metrics: Arc<Metrics>) {
    while let Err(error) = kinara_store::migrate::beside(&admin_url).await {
        Metrics::count(&metrics.housekeeping_failed_total);
        tracing::warn!(%error, "what a migration left to be done beside is not done yet; it is tried again");
        tokio::time::sleep(STEPS_AGAIN).await;
    }
    std::future::pending::<()>().await;
}

/// A payload by itself: as it came it holds on to its whole packet, properties and all.
fn alone(payload: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(payload)
}

/// A state as published.
#[derive(Debug)]
struct Stated {
    payload: bytes::Bytes,
    retained: bool,
    arrived: Instant,
}

/// Sorts what comes in. Nothing is unpacked here: whatever floods, sorting goes on.
struct Reception {
    queue: Queue,
    states: Newest<Stated>,
    lives: Newest<bytes::Bytes>,
    tenants: Tenants,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    retry_after_s: u32,
}

impl Reception {
    fn take(&self, publish: &Publish) {
        let Some((gateway, leaf)) = std::str::from_utf8(&publish.topic).ok().and_then(topic::parse) else {
            return;
        };
        let gateway = gateway.0;
        match leaf {
            Leaf::Batch | Leaf::Event => self.enqueue(gateway, publish, leaf == Leaf::Event),
            Leaf::State => self.take_state(gateway, publish),
            Leaf::Live => {
                self.keep(&self.lives, gateway, publish.payload.len(), alone(&publish.payload));
            }
            // No more than a few hundred bytes, and seldom.
            Leaf::CommandResult if publish.payload.len() > COMMAND_RESULT => {
                tracing::debug!(%gateway, "a command's result is too large");
            }
            Leaf::CommandResult => match envelope::open::<envelope::CommandResult>(&publish.payload) {
                Ok(result) => {
                    tracing::info!(%gateway, id = result.id, ok = result.ok, detail = result.detail, "a command's result");
                }
                Err(error) => tracing::debug!(%gateway, %error, "a command's result cannot be read"),
            },
            Leaf::Ack | Leaf::Config | Leaf::Command => {}
        }
    }

    fn enqueue(&self, gateway: Uuid, publish: &Publish, event: bool) {
        Metrics::count(if event { &self.metrics.event_batches_total } else { &self.metrics.batches_total });
        let item = Item {
            gateway,
            name: name(publish),
            event,
            payload: alone(&publish.payload),
            arrived: std::time::Instant::now(),
            traceparent: property(publish, kinara_traces::PROPERTY)
                .filter(|text| text.len() <= TRACEPARENT)
                .map(str::to_owned),
        };
        for item in self.queue.push(self.tenants.of(gateway), item) {
            let Some(to) = Addressee::by_properties(&item) else { continue };
            let answer = Answer::RetryAfter(self.retry_after_s, "the bridge has enough to do".to_owned());
            answer::send(&self.publisher, &self.metrics, self.clock.as_ref(), &to, answer);
        }
    }

    fn keep<T>(&self, newest: &Newest<T>, gateway: Uuid, bytes: usize, item: T) {
        if !newest.push(gateway, self.tenants.of(gateway).is_some(), bytes, item) {
            Metrics::count(&self.metrics.dropped_total);
        }
    }

    fn take_state(&self, gateway: Uuid, publish: &Publish) {
        // A state that was refused is emptied at the broker; that comes back here.
        if publish.payload.is_empty() {
            return;
        }
        Metrics::count(&self.metrics.states_total);
        let payload = alone(&publish.payload);
        let stated = Stated { payload, retained: publish.retain, arrived: Instant::now() };
        self.keep(&self.states, gateway, publish.payload.len(), stated);
    }
}

/// Reads states, and answers those that ask for the time.
struct StateReader {
    states: Newest<Stated>,
    readable: Newest<Message>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

impl StateReader {
    async fn read(self) {
        loop {
            let (gateway, stated) = self.states.next().await;
            match envelope::open::<State>(&stated.payload) {
                Ok(state) => self.pass(gateway, &stated, state),
                Err(error) => self.refuse(gateway, &error),
            }
            // Each takes some time on a thread that is everybody's.
            tokio::task::yield_now().await;
        }
    }

    fn pass(&self, gateway: Uuid, stated: &Stated, mut state: State) {
        let fresh = !stated.retained && stated.arrived.elapsed() < TIME_WAIT;
        if state.time_request != 0 && fresh {
            state::answer_time(&self.publisher, self.clock.as_ref(), gateway, state.time_request);
        }
        state::tidy(&mut state);
        let bytes = prost::Message::encoded_len(&state);
        let message = Message { gateway, retained: stated.retained, state };
        // Whether it is enrolled was asked when it came.
        if !self.readable.push(gateway, true, bytes, message) {
            Metrics::count(&self.metrics.dropped_total);
        }
    }

    /// The broker would give it to every bridge that subscribes, for ever: it is emptied there.
    fn refuse(&self, gateway: Uuid, error: &envelope::EnvelopeError) {
        tracing::warn!(%gateway, %error, "a state cannot be read and is emptied at the broker");
        Metrics::count(&self.metrics.states_refused_total);
        let topic = topic::of(topic::GatewayId(gateway), Leaf::State);
        self.publisher.publish(topic, rumqttc::v5::mqttbytes::QoS::AtLeastOnce, true, Vec::new(), None);
    }
}

/// A user property of a publish.
fn property<'a>(publish: &'a Publish, key: &str) -> Option<&'a str> {
    let properties = &publish.properties.as_ref()?.user_properties;
    properties.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// The name in a publish's user properties.
fn name(publish: &Publish) -> Option<Name> {
    let get = |key| property(publish, key);
    Some(Name {
        gateway: get(PROPERTY_GATEWAY)?.parse().ok()?,
        buffer: get(PROPERTY_BUFFER)?.parse().ok()?,
        sequence: get(PROPERTY_SEQUENCE)?.parse().ok()?,
    })
}

async fn take_states(register: Register, states: Newest<Message>) {
    loop {
        let (gateway, message) = states.next().await;
        if let Err(error) = register.note(&message).await {
            tracing::warn!(%error, %gateway, "a state was not written; the next one will be");
        }
    }
}

async fn take_lives(
    mut gate: live::Gate,
    lives: Newest<bytes::Bytes>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
) {
    loop {
        let (gateway, payload) = lives.next().await;
        let live = match envelope::open::<Live>(&payload) {
            Ok(live) => live,
            Err(error) => {
                Metrics::count(&metrics.live_refused_total);
                tracing::debug!(%gateway, %error, "a live message cannot be read");
                continue;
            }
        };
        if let Err(error) = gate.pass(gateway, live, &publisher, &metrics).await {
            Metrics::count(&metrics.dropped_total);
            tracing::debug!(%error, "live values could not be checked, and are not shown");
        }
    }
}

struct Jobs {
    pool: Pool,
    clock: Arc<dyn Clock>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    tenants: Tenants,
    connected: Arc<Notify>,
    /// What boxes are told has changed.
    changed: Arc<Notify>,
    every: Duration,
    stop: CancellationToken,
}

/// When a change is looked at.
fn after_change(now: Instant, last: (Instant, Duration), every: Duration) -> Instant {
    let (ended, took) = last;
    (now + BURST).max(ended + (took * REST).min(every))
}

async fn keep_configured(jobs: Jobs) {
    let mut desired = roster::Desired::default();
    let mut next = Instant::now() + jobs.every;
    // When the last look ended, and how long it took.
    let mut last = (Instant::now(), Duration::ZERO);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = jobs.connected.notified() => desired.connected(),
            () = jobs.changed.notified() => {
                // What people change comes in bursts.
                next = next.min(after_change(Instant::now(), last, jobs.every));
                continue;
            }
            () = jobs.stop.cancelled() => return,
        }
        let began = Instant::now();
        look(&jobs, &mut desired).await;
        last = (Instant::now(), began.elapsed());
        next = last.0 + jobs.every;
    }
}

/// Publishes what boxes are told, where it is another than before.
async fn look(jobs: &Jobs, desired: &mut roster::Desired) {
    if let Err(error) = jobs.tenants.refresh(&jobs.pool).await {
        jobs.metrics.database.store(false, Ordering::Relaxed);
        tracing::warn!(%error, "the gateways' clinics are not known");
        return;
    }
    jobs.metrics.database.store(true, Ordering::Relaxed);
    if jobs.metrics.subscribed.load(Ordering::Relaxed)
        && let Err(error) = desired.refresh(&jobs.pool, jobs.clock.as_ref(), &jobs.publisher).await
    {
        tracing::warn!(%error, "the gateways' configurations are not published");
    }
}

/// What follows from decisions, a slice at a time.
async fn keep_up(
    writer: Arc<Writer>,
    pool: Pool,
    clock: Arc<dyn Clock>,
    every: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let bounds = Bounds::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return,
        }
        match upkeep::keep(&writer, &pool, clock.as_ref(), &bounds).await {
            Ok(done) => {
                metrics.replayed_total.fetch_add(done.taken, Ordering::Relaxed);
                metrics.housekeeping_failed_total.fetch_add(done.failed, Ordering::Relaxed);
                if done != upkeep::Done::default() {
                    tracing::info!(
                        decisions = done.decisions,
                        taken = done.taken,
                        moved = done.moved,
                        expired = done.expired,
                        "what had waited for a decision"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "the upkeep failed; it will be tried again"),
        }
    }
}

/// Aggregates, and then what the intervals among them give. A round that left something is followed by the next one at once.
async fn keep_derived(pool: Pool, clock: Arc<dyn Clock>, every: Duration, metrics: Arc<Metrics>) {
    let slice = rollup::Slice::default();
    let mut pause = every;
    loop {
        tokio::time::sleep(pause).await;
        pause = every;
        let now = timestamp(clock.utc_us());
        match rollup::round(&pool, now, &slice).await {
            Ok(done) => {
                metrics.rolled_up_total.fetch_add(done.hours, Ordering::Relaxed);
                metrics.rollup_skipped.store(done.skipped.len() as u64, Ordering::Relaxed);
                metrics.unknown_time_zones.store(done.unknown_zones.len() as u64, Ordering::Relaxed);
                metrics.housekeeping_failed_total.fetch_add(done.failed, Ordering::Relaxed);
                if done.unfinished {
                    pause = Duration::ZERO;
                }
            }
            Err(error) => tracing::warn!(%error, "aggregates stay stale for now"),
        }
        match enrich::enrich(&pool, now, &slice).await {
            Ok(windows) => {
                metrics.hrv_windows_total.fetch_add(windows, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, "heart rate variability stays stale for now"),
        }
    }
}

/// How many jobs wait, and how many are dead; and which requests are nobody's any more.
async fn keep_counted(
    queue: jobs::Queue,
    pool: Pool,
    every: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return,
        }
        match queue.count().await {
            Ok((waiting, dead)) => {
                metrics.jobs_waiting.store(waiting, Ordering::Relaxed);
                if metrics.jobs_dead.swap(dead, Ordering::Relaxed) < dead {
                    tracing::error!(
                        dead,
                        "jobs were tried as often as they are; see kinara-cloud-bridge revive-jobs"
                    );
                }
            }
            Err(error) => tracing::debug!(%error, "jobs could not be counted"),
        }
        match queue.dead_requests().await {
            Ok(dead) => {
                if let Err(error) = requests::note_given_up(&pool, &dead).await {
                    tracing::warn!(%error, "requests that nobody takes any more still count as waiting");
                }
            }
            Err(error) => tracing::debug!(%error, "dead requests could not be looked for"),
        }
    }
}

/// Compresses closed chunks and lets go of partitions whose time is over: both may take long, and hold up nothing else.
async fn keep_stored(config: Config, pool: Pool, metrics: Arc<Metrics>, stop: CancellationToken) {
    let patience = Duration::from_secs(config.jobs.compress_timeout_s);
    let mut passed = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(config.jobs.derive_s)) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = sweep::compress(&pool, patience, &mut passed).await {
            Metrics::count(&metrics.housekeeping_failed_total);
            tracing::warn!(%error, "closed chunks stay as they are for now");
        }
        let Some(admin_url) = &config.database.admin_url else { continue };
        if let Err(error) = kinara_store::partitions::drop_expired(admin_url).await {
            Metrics::count(&metrics.housekeeping_failed_total);
            tracing::warn!(%error, "expired partitions stay for now");
        }
    }
}

async fn keep_swept(
    pool: Pool,
    clock: Arc<dyn Clock>,
    policy: Policy,
    every: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return,
        }
        match sweep::sweep(&pool, clock.as_ref(), &policy).await {
            Ok(swept) => {
                metrics.gaps_lost_total.fetch_add(swept.lost, Ordering::Relaxed);
                metrics.housekeeping_failed_total.fetch_add(swept.failed, Ordering::Relaxed);
                if swept.lost + swept.expired > 0 {
                    tracing::info!(
                        lost = swept.lost,
                        expired = swept.expired,
                        "gaps settled, quarantine thinned"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "the sweep failed; it will be tried again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clinic_that_changes_all_the_time_has_the_others_looked_at_for_a_part_of_the_time() {
        let (now, every) = (Instant::now(), Duration::from_secs(10));
        let ms = Duration::from_millis;
        assert_eq!(after_change(now, (now, ms(20)), every), now + BURST, "most looks are quick");
        assert_eq!(after_change(now, (now, ms(1_000)), every), now + ms(4_000));
        assert_eq!(after_change(now + ms(3_900), (now, ms(1_000)), every), now + ms(4_200));
        assert_eq!(
            after_change(now, (now, ms(30_000)), every),
            now + every,
            "no later than without a change"
        );
    }
}
