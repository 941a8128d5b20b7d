//! Notices from the database: a pointer to what was stored, an event, a state. And the reader that follows the
//! pointers.
//!
//! Notices arrive on a connection of their own, which is made again when it breaks. While it was down notices were
//! lost; so after each new connection everything that clients look at is read again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use kinara_clock::Clock;
use serde::Deserialize;
use tokio_postgres::AsyncMessage;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::hub::{Dirty, Hub};
use crate::database::Database;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::resources::{devices, events, gateways};

/// Shortest and longest wait before the next try.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// The connection is asked for a sign of life this often, and has so long to give it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// States are read at most this often for one tenant.
const READ_EVERY: Duration = Duration::from_millis(250);
/// How far before a break events are looked up again.
const BEFORE_BREAK_US: i64 = 600 * 1_000_000;
/// Most events given to clients after a break.
const EVENTS_AGAIN: i64 = 100;
/// After every event; PostgreSQL does not hold jiff's own end of time.
const END_OF_TIME: jiff::Timestamp = jiff::Timestamp::constant(7_258_118_400, 0);
const LISTEN: &str = "LISTEN kinara_stored; LISTEN kinara_event; LISTEN kinara_state; LISTEN kinara_alert";

#[derive(Deserialize)]
struct StoredNotice {
    tenant: Uuid,
    device: Uuid,
    epoch: String,
    seq: i64,
}

#[derive(Deserialize)]
struct EventNotice {
    tenant: Uuid,
    user: Uuid,
    time: crate::times::UtcMs,
}

#[derive(Deserialize)]
struct StateNotice {
    tenant: Uuid,
}

/// Gives a notice to the hub. False: it cannot be read.
fn take(hub: &Hub, channel: &str, payload: &str) -> bool {
    match channel {
        "kinara_stored" => serde_json::from_str::<StoredNotice>(payload)
            .ok()
            .and_then(|notice| Some((u64::from_str_radix(&notice.epoch, 16).ok()?, notice)))
            .map(|(epoch, notice)| hub.stored(notice.tenant, notice.device, epoch, notice.seq)),
        "kinara_event" => serde_json::from_str::<EventNotice>(payload)
            .ok()
            .map(|notice| hub.event_changed(notice.tenant, notice.user, notice.time.0)),
        "kinara_state" => {
            serde_json::from_str::<StateNotice>(payload).ok().map(|notice| hub.state_changed(notice.tenant))
        }
        "kinara_alert" => {
            serde_json::from_str::<StateNotice>(payload).ok().map(|notice| hub.alerts_changed(notice.tenant))
        }
        _ => Some(()),
    }
    .is_some()
}

/// Listens until told to stop.
pub async fn listen(
    session: kinara_store::Target,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let mut wait = RETRY.0;
    let mut since_us = clock.utc_us();
    loop {
        let connected = one_connection(&session, &hub, &metrics, since_us, &mut wait);
        tokio::select! {
            () = stop.cancelled() => return,
            error = connected => {
                if metrics.listening(false) {
                    since_us = clock.utc_us();
                }
                tracing::warn!(error, retry_in = ?wait, "no notices from the database");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(RETRY.1);
    }
}

async fn one_connection(
    session: &kinara_store::Target,
    hub: &Hub,
    metrics: &Metrics,
    since_us: i64,
    wait: &mut Duration,
) -> String {
    let (client, mut connection) = match session.connect().await {
        Ok(both) => both,
        Err(error) => return kinara_store::explain(&error),
    };
    let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
    let receive = async {
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(notice)) => {
                    if !take(hub, notice.channel(), notice.payload()) {
                        tracing::warn!(channel = notice.channel(), "a notice that cannot be read");
                    }
                }
                Ok(_) => {}
                Err(error) => return kinara_store::explain(&error),
            }
        }
        "the connection was closed".to_owned()
    };
    let live = async {
        if let Err(error) = client.batch_execute(LISTEN).await {
            return kinara_store::explain(&error);
        }
        *wait = RETRY.0;
        metrics.listening(true);
        tracing::info!("listening for notices from the database");
        if let Ok(since) = jiff::Timestamp::from_microsecond(since_us - BEFORE_BREAK_US) {
            hub.missed(since);
        }
        loop {
            tokio::time::sleep(SIGN_OF_LIFE).await;
            match tokio::time::timeout(SIGN_OF_LIFE, client.batch_execute("")).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return kinara_store::explain(&error),
                Err(_) => return "the connection gives no sign of life".to_owned(),
            }
        }
    };
    tokio::select! {
        error = receive => error,
        error = live => error,
    }
}

/// Clinics whose state is read at the same time.
const AT_ONCE: usize = 3;
/// How long reading one clinic's may take in all, and each statement of it: others wait for their turns. It ends between two
/// statements.
const READ_WITHIN: Duration = Duration::from_secs(3);
/// How long after that it is tried again.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Follows the pointers until told to stop. A clinic whose state cannot be read, or not in time, waits by itself.
pub async fn follow(database: Database, hub: Arc<Hub>, stop: CancellationToken) {
    loop {
        let dirty = tokio::select! {
            () = stop.cancelled() => return,
            dirty = hub.dirty() => dirty,
        };
        let read = futures_util::stream::iter(dirty).for_each_concurrent(AT_ONCE, |(tenant, mut what)| {
            let (database, hub) = (&database, &hub);
            async move {
                let Err(problem) = read(database, hub, tenant, &mut what).await else { return };
                tracing::warn!(%tenant, ?problem, "the newest state could not be read");
                tokio::spawn(mark_again(hub.clone(), tenant, what));
            }
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = read => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(READ_EVERY) => {}
        }
    }
}

/// Has it read again later: the database is down, or the clinic has very much.
async fn mark_again(hub: Arc<Hub>, tenant: Uuid, what: Dirty) {
    tokio::time::sleep(READ_AGAIN).await;
    if what.state {
        hub.state_changed(tenant);
    }
    if what.alerts {
        hub.alerts_changed(tenant);
    }
    if let Some(since) = what.events.iter().map(|(_, time)| *time).chain(what.events_since).min() {
        hub.events_since(tenant, since);
    }
}

/// Reads what has to be read again, and gives it to who listens. What was given is not asked for any more, also where the rest fails.
async fn read(database: &Database, hub: &Hub, tenant: Uuid, dirty: &mut Dirty) -> Result<(), Problem> {
    let mut connection = database.connection().await?;
    let transaction = connection.tenant(tenant).await?;
    let timeout = format!("SET LOCAL statement_timeout = {}", READ_WITHIN.as_millis());
    transaction.batch_execute(&timeout).await?;
    let until = Instant::now() + READ_WITHIN;
    let in_time = || {
        let over = || Problem::unavailable("There is more to read than a clinic's turn is long.");
        (Instant::now() < until).then_some(()).ok_or_else(over)
    };
    let mut found = Vec::new();
    for (user, time) in &dirty.events {
        in_time()?;
        // The notice may be rounded to milliseconds.
        let whole = jiff::Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(*time);
        let next = whole.saturating_add(jiff::SignedDuration::from_millis(1)).unwrap_or(whole);
        found.extend(events::between(&transaction, Some(*user), whole, next, EVENTS_AGAIN).await?);
    }
    if let Some(since) = dirty.events_since {
        in_time()?;
        found.extend(events::between(&transaction, None, since, END_OF_TIME, EVENTS_AGAIN).await?);
    }
    for event in found {
        hub.each(tenant, |outbox| {
            outbox.event(event.clone());
        });
    }
    (dirty.events, dirty.events_since) = (Vec::new(), None);
    if std::mem::take(&mut dirty.alerts) {
        hub.each(tenant, super::outbox::Outbox::alerts);
    }
    if dirty.state {
        in_time()?;
        let gateways = gateways::all(&transaction).await?;
        hub.each(tenant, |outbox| gateways.iter().for_each(|gateway| outbox.gateway(gateway.clone())));
        in_time()?;
        let devices = devices::all(&transaction).await?;
        hub.each(tenant, |outbox| devices.iter().for_each(|device| outbox.device(device.clone())));
        dirty.state = false;
    }
    Ok(())
}
