//! Work that waits in the database's queue: what came over HTTP, erasures, clinics' alert rules, and what is done every
//! night.
//!
//! The promise: a job that was begun and not finished is tried again, by this bridge or another, ever more seldom (after
//! e^attempt seconds, at most six hours); after 25 attempts, the library's number, it stays where it is, dead, is counted in
//! `kinara_bridge_jobs_dead`, and is tried again when an operator says so. A job whose bridge died of it, or with it, was
//! an attempt like any other: what takes its process down is dead after as many. A clinic's jobs are done one after
//! another, and the more of its jobs wait the later each of them comes (`jobs.of_tenant`), so a clinic that brings a
//! thousand waits for itself. Its rules and models take one worker, for a turn ([`crate::looks`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use graphile_worker::{
    Crontab, FailureReason, IntoTaskHandlerResult, JobRecovery, JobRecoveryResult, TaskHandler,
    WorkerContext, WorkerOptions,
};
use kinara_clock::Clock;
use kinara_ingest::reconcile::{self, Span};
use kinara_ingest::retention::{self, Retention};
use kinara_ingest::{Limits, Writer, alerts, erase, requests, rollup, sweep, timestamp};
use kinara_protocol::frame::Epoch;
use kinara_store::{Pool, jobs};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::infer::{InferError, Inference};
use crate::looks::{Kind, Looks, TURN};
use crate::metrics::Metrics;

/// A worker that has not been heard of for so long is dead, and its jobs are another's.
const DEAD_AFTER: Duration = Duration::from_mins(2);
/// How long what is being done may go on when the bridge stops.
const GRACE: Duration = Duration::from_secs(15);
/// How long to wait for the database before the queue is asked again, and the part of it that is drawn by lot.
const AGAIN: Duration = Duration::from_secs(2);

const DAY_US: i64 = 86_400_000_000;
/// Keys of requests count so long.
const KEYS_DAYS: i64 = 30;
/// Whoever was erased so lately is erased again every night: a backup that is restored is younger.
const ERASED_AGAIN_DAYS: i64 = 30;
/// So many days are compared every night, whether or not they changed.
const COMPARED_DAYS: i64 = 8;

/// What jobs are done with.
#[derive(Clone)]
pub struct Workshop {
    /// Writes what came over HTTP.
    pub writer: Arc<Writer>,
    /// Connections for everything but the queue.
    pub pool: Pool,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Looks at what came over HTTP.
    pub inference: Inference,
    /// Whose changes are looked at just now.
    pub looks: Looks,
    /// How long a day's comparison may take.
    pub patience: Duration,
    /// How long what grows is kept.
    pub retention: Retention,
    /// Bytes of memory that the database has, where it does not say so itself.
    pub database_memory: Option<u64>,
}

impl std::fmt::Debug for Workshop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workshop").finish_non_exhaustive()
    }
}

impl Workshop {
    /// From here on readings are kept.
    fn raw_from(&self) -> jiff::Timestamp {
        timestamp(self.clock.utc_us() - Limits::default().retention_days * DAY_US)
    }

    /// A clinic's turn of this kind, and then of the other one, if that came meanwhile: it would have taken another worker.
    /// What is left has notes still, and is queued again with the next aggregates.
    async fn look(&self, clinic: Uuid, kind: Kind) -> Result<(), String> {
        let Some(looking) = self.looks.begin(clinic, kind) else { return Ok(()) };
        let done = self.look_at(clinic, kind).await;
        if let Some(next) = looking.next()
            && let Err(error) = self.look_at(clinic, next).await
        {
            tracing::warn!(tenant = %clinic, ?next, error, "what changed is looked at later");
        }
        done
    }

    async fn look_at(&self, clinic: Uuid, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Rules => self.by_rules(clinic).await.map_err(|error| error.to_string()),
            Kind::Models => self.by_models(clinic).await.map_err(|error| error.to_string()),
        }
    }

    async fn by_rules(&self, tenant: Uuid) -> Result<(), kinara_ingest::Error> {
        let done = alerts::evaluate(&self.pool, tenant, self.raw_from(), TURN).await?;
        Metrics::count(&self.metrics.evaluated_total);
        self.metrics.alerts_raised_total.fetch_add(done.raised, Ordering::Relaxed);
        if done != alerts::Evaluated::default() {
            tracing::info!(%tenant, raised = done.raised, stretched = done.stretched, withdrawn = done.withdrawn,
                "alerts by the clinic's rules");
        }
        Ok(())
    }

    async fn by_models(&self, tenant: Uuid) -> Result<(), InferError> {
        let raw_from = self.raw_from();
        let events =
            self.inference.look(&self.pool, &self.writer, &self.metrics, tenant, raw_from, TURN).await?;
        if events > 0 {
            tracing::info!(%tenant, events, "found in what came over HTTP");
        }
        Ok(())
    }
}

fn workshop(context: &WorkerContext) -> Workshop {
    context.get_ext::<Workshop>().expect("the worker is built with one").clone()
}

/// Writes a request that came over HTTP.
#[derive(Debug, Serialize, Deserialize)]
struct TakeRequest {
    id: Uuid,
}

impl TaskHandler for TakeRequest {
    const IDENTIFIER: &'static str = "take_request";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let shop = workshop(&context);
        let done = requests::take(&shop.writer, &shop.pool, shop.clock.as_ref(), self.id).await;
        done.map(|counts| {
            Metrics::count(&shop.metrics.requests_total);
            shop.metrics.outcome(&counts);
        })
        .map_err(|error| error.to_string())
    }
}

/// Deletes what there is of somebody who has a tombstone.
#[derive(Debug, Serialize, Deserialize)]
struct Erase {
    tenant: Uuid,
    id: Uuid,
}

impl TaskHandler for Erase {
    const IDENTIFIER: &'static str = "erase";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let shop = workshop(&context);
        let erased = erase::erase(&shop.pool, self.tenant, self.id).await;
        erased
            .map(|rows| {
                shop.metrics.erased_total.fetch_add(rows, Ordering::Relaxed);
                tracing::info!(tenant = %self.tenant, rows, "a wearer was erased");
            })
            .map_err(|error| error.to_string())
    }
}

/// Looks for events in a clinic's readings that no gateway looked at.
#[derive(Debug, Serialize, Deserialize)]
struct Infer {
    tenant: Uuid,
}

impl TaskHandler for Infer {
    const IDENTIFIER: &'static str = "infer";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        workshop(&context).look(self.tenant, Kind::Models).await
    }
}

/// Looks at what a clinic's rules say of what changed.
#[derive(Debug, Serialize, Deserialize)]
struct EvaluateAlerts {
    tenant: Uuid,
}

impl TaskHandler for EvaluateAlerts {
    const IDENTIFIER: &'static str = "evaluate_alerts";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        workshop(&context).look(self.tenant, Kind::Rules).await
    }
}

/// What is done every night: comparing, erasing again what a restored backup brought back, forgetting old keys.
/// The schedule's own payload is null, an operator's may be anything: nothing is asked of it.
#[derive(Debug, Serialize, Deserialize)]
struct Nightly(serde_json::Value);

impl TaskHandler for Nightly {
    const IDENTIFIER: &'static str = "nightly";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        nightly(&workshop(&context)).await.map_err(|error| error.to_string())
    }
}

/// When the night's work is done, of five fields as in a crontab; `None`: they are none. A night that was slept through is
/// made up for.
pub(crate) fn crontab(fields: &str) -> Option<Vec<Crontab>> {
    let line = format!("{fields} {} ?fill=12h&max=5", Nightly::IDENTIFIER);
    graphile_worker::parse_crontab(&line).ok().filter(|parsed| parsed.len() == 1)
}

/// The night's work. Each step stands alone: one that fails is told, stops none behind it, and has the job tried again.
pub async fn nightly(shop: &Workshop) -> Result<(), kinara_ingest::Error> {
    let steps = [
        // What is erased again is looked for on days that are noted.
        ("noting days of waveforms", note_days_of_waves(shop).await),
        ("erasing again", erase_again(shop).await),
        ("forgetting keys", requests::forget(&shop.pool, ago(shop, KEYS_DAYS)).await.map(|_| ())),
        ("forgetting what is over", forget(shop).await),
        ("the length of chunks", fit_chunks(shop).await),
        ("comparing", compare(shop).await),
    ];
    let mut failed = None;
    for (step, result) in steps {
        if let Err(error) = result {
            tracing::error!(step, %error, "a part of the night's work was not done");
            failed = Some(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn ago(shop: &Workshop, days: i64) -> jiff::Timestamp {
    timestamp(shop.clock.utc_us() - days * DAY_US)
}

async fn note_days_of_waves(shop: &Workshop) -> Result<(), kinara_ingest::Error> {
    rollup::note_days_of_waves(&shop.pool, timestamp(shop.clock.utc_us())).await.map(drop)
}

async fn erase_again(shop: &Workshop) -> Result<(), kinara_ingest::Error> {
    let now = timestamp(shop.clock.utc_us());
    let again = erase::erase_again(&shop.pool, ago(shop, ERASED_AGAIN_DAYS), now).await?;
    shop.metrics.erase_failures_total.fetch_add(again.failed, Ordering::Relaxed);
    if again.rows > 0 {
        shop.metrics.erased_total.fetch_add(again.rows, Ordering::Relaxed);
        tracing::warn!(rows = again.rows, "readings of erased wearers had come back, and are erased again");
    }
    Ok(())
}

async fn forget(shop: &Workshop) -> Result<(), kinara_ingest::Error> {
    let now = timestamp(shop.clock.utc_us());
    let (gone, failed) = retention::forget(&shop.pool, now, &shop.retention).await;
    shop.metrics.housekeeping_failed_total.fetch_add(failed, Ordering::Relaxed);
    if gone > 0 {
        tracing::info!(rows = gone, "forgotten, since their time is over");
    }
    Ok(())
}

async fn fit_chunks(shop: &Workshop) -> Result<(), kinara_ingest::Error> {
    if let Some(length) = sweep::fit_chunks(&shop.pool, shop.database_memory).await? {
        tracing::info!(length, "chunks of readings are of another length from here on");
    }
    Ok(())
}

async fn compare(shop: &Workshop) -> Result<(), kinara_ingest::Error> {
    let again_from = ago(shop, COMPARED_DAYS);
    let span = Span { raw_from: shop.raw_from(), again_from, patience: shop.patience };
    let found = reconcile::reconcile(&shop.pool, &span).await?;
    for one in &found.frames {
        tracing::error!(hardware = %one.hardware, epoch = %Epoch(one.epoch as u64), nowhere = one.nowhere,
            twice = one.twice, acknowledged = one.acknowledged, "the numbers of a wearable do not add up");
    }
    if found.hours > 0 {
        tracing::error!(
            hours = found.hours,
            "there are not as many readings as were written; see the table differences"
        );
    }
    shop.metrics.differing_epochs.store(found.frames.len() as u64, Ordering::Relaxed);
    shop.metrics.differing_hours.store(found.hours, Ordering::Relaxed);
    shop.metrics.reconciled_days_total.fetch_add(found.days, Ordering::Relaxed);
    tracing::info!(days = found.days, "what was written and what is there were compared");
    Ok(())
}

/// Works on the queue until told to stop. A database that is away is waited for.
pub async fn work(config: Config, shop: Workshop, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = session(&config, &shop, &stop).await {
            tracing::warn!(%error, "jobs have to wait");
        }
        let wait = AGAIN + AGAIN.mul_f64(rand::rng().random());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Why the queue is not worked on.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Store(#[from] kinara_store::Error),
    #[error("the queue: {0}")]
    Build(#[from] graphile_worker::WorkerBuildError),
    #[error("the queue: {0}")]
    Work(String),
}

async fn session(config: &Config, shop: &Workshop, stop: &CancellationToken) -> Result<(), SessionError> {
    let workers = config.jobs.workers;
    let limits = kinara_store::Limits { connections: workers + 2, ..config.database_limits() };
    let database = jobs::database(&config.database.url, "kinara-cloud-bridge jobs", &limits)?;
    let told = stop.clone();
    let worker = WorkerOptions::default()
        .database(database)
        .schema(jobs::SCHEMA)
        .concurrency(workers)
        .poll_interval(Duration::from_secs(config.jobs.poll_s))
        .heartbeat_interval(DEAD_AFTER / 4)
        .sweep_interval(DEAD_AFTER / 2)
        .sweep_threshold(DEAD_AFTER)
        .listen_os_shutdown_signals(false)
        .shutdown_signal(async move { told.cancelled().await })
        .shutdown_grace_period(GRACE)
        // The library would give a dead worker's job its attempt back; at a stop it may.
        .on(JobRecovery, |of| async move {
            match of.reason {
                FailureReason::WorkerCrashed => JobRecoveryResult::FailWithBackoff,
                _ => JobRecoveryResult::Default,
            }
        })
        .add_extension(shop.clone())
        .define_job::<TakeRequest>()
        .define_job::<Erase>()
        .define_job::<EvaluateAlerts>()
        .define_job::<Infer>()
        .define_job::<Nightly>()
        .with_crons(crontab(&config.jobs.nightly).unwrap_or_default())
        .init()
        .await?;
    worker.run().await.map_err(|error| SessionError::Work(error.to_string()))
}

/// The queue from outside.
#[derive(Debug)]
pub struct Queue(Pool);

impl Queue {
    /// A connection to it. None is made yet.
    pub fn new(config: &Config) -> Result<Self, kinara_store::Error> {
        let limits = kinara_store::Limits { connections: 1, ..config.database_limits() };
        Ok(Self(jobs::pool(&config.database.url, "kinara-cloud-bridge queue", &limits)?))
    }

    /// Jobs that wait, and jobs that are dead.
    pub async fn count(&self) -> Result<(u64, u64), kinara_store::Error> {
        let row = self
            .0
            .get()
            .await?
            .query_one(
                "SELECT count(*) FILTER (WHERE attempts < max_attempts),
                   count(*) FILTER (WHERE attempts >= max_attempts AND locked_at IS NULL) FROM jobs._private_jobs",
                &[],
            )
            .await?;
        Ok((row.get::<_, i64>(0).unsigned_abs(), row.get::<_, i64>(1).unsigned_abs()))
    }

    /// The requests whose jobs are dead.
    pub async fn dead_requests(&self) -> Result<Vec<Uuid>, kinara_store::Error> {
        let sql = "SELECT (j.payload ->> 'id')::uuid FROM jobs._private_jobs j JOIN jobs._private_tasks t ON t.id = j.task_id
                   WHERE t.identifier = $1 AND j.attempts >= j.max_attempts AND j.locked_at IS NULL";
        let rows = self.0.get().await?.query(sql, &[&TakeRequest::IDENTIFIER]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Gives dead jobs all their attempts again; how many that were.
    pub async fn revive(&self) -> Result<u64, kinara_store::Error> {
        let sql = "UPDATE jobs._private_jobs SET attempts = 0, run_at = now(), updated_at = now()
                   WHERE attempts >= max_attempts AND locked_at IS NULL";
        Ok(self.0.get().await?.execute(sql, &[]).await?)
    }
}
