//! Steps of a migration that run beside the programs: what would hold up writers for as long as a table is large.
//!
//! The promise: a step may be cut short anywhere, by anybody, and is resumed by the next [`crate::migrate::beside`]; one that
//! is done is not done again. Each runs in statements of its own, never in a transaction with another: an index is made
//! concurrently (one that was left half-made is dropped first), rows are changed a slice at a time. Writers and readers go on.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::Error;

/// How often a lock is asked for, a second each time, until the step is left for another time.
const TRIES: u32 = 60;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum What {
    /// An index: its schema, and what follows `CREATE INDEX CONCURRENTLY <the step's name>`.
    Index(&'static str, &'static str),
    /// The same of an index that lets nothing be there twice.
    UniqueIndex(&'static str, &'static str),
    /// An index of a table of time series, whose rows lie in parts: the table, and its columns.
    PartsIndex(&'static str, &'static str),
    /// A query that changes a slice of rows and gives how many of something it did; 0: nothing is left.
    Slices(&'static str),
    /// An index that another one took the place of: its schema and name.
    NoIndex(&'static str),
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    what: What,
}

const fn index(name: &'static str, schema: &'static str, on: &'static str) -> Step {
    Step { name, what: What::Index(schema, on) }
}

const STEPS: &[Step] = &[
    // First: what looks at readings over HTTP knows them by it.
    Step { name: "epochs_noted", what: What::Slices("SELECT ts.note_epochs()") },
    // By identity: two frames that were put aside may have the same bytes left, and are two.
    Step {
        name: "quarantine_each",
        what: What::UniqueIndex(
            "public",
            "ON quarantine (reason, digest, (coalesce(hardware_id, '')), (coalesce(epoch, 0)), (coalesce(seq, -1)),
             (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'::uuid)))",
        ),
    },
    Step { name: "quarantine_once", what: What::NoIndex("public.quarantine_once") },
    Step { name: "quarantine_counted", what: What::Slices("SELECT ts.count_quarantine()") },
    index("ledger_named", "public", "ON ledger (hardware) WHERE named"),
    Step { name: "frame_times_of_utc", what: What::NoIndex("public.frame_times_of_utc") },
    index("readings_minute_bucket", "ts", "ON ts.readings_minute (bucket)"),
    index("readings_15min_bucket", "ts", "ON ts.readings_15min (bucket)"),
    index("readings_hourly_bucket", "ts", "ON ts.readings_hourly (bucket)"),
    index("readings_daily_bucket", "ts", "ON ts.readings_daily (bucket)"),
    index("hrv_bucket", "ts", "ON ts.hrv (bucket)"),
    Step { name: "readings_minute_age", what: What::NoIndex("ts.readings_minute_age") },
    Step { name: "readings_15min_age", what: What::NoIndex("ts.readings_15min_age") },
    Step { name: "readings_hourly_age", what: What::NoIndex("ts.readings_hourly_age") },
    Step { name: "hrv_age", what: What::NoIndex("ts.hrv_age") },
    index("written_hours_hour", "ts", "ON ts.written_hours (hour)"),
    index(
        "gaps_to_look_at",
        "public",
        "ON gaps (looked_at NULLS FIRST) WHERE reason = 'late' AND withdrawn_at IS NULL",
    ),
    index(
        "gaps_of_wearables",
        "public",
        "ON gaps (hardware, (coalesce(looked_at, created_at))) WHERE reason = 'late' AND withdrawn_at IS NULL",
    ),
    // Which gaps reach into some numbers, however many their epoch has. It serves whoever asks for an epoch's, too.
    index(
        "gaps_numbers",
        "public",
        "ON gaps USING gist (hardware, epoch, seqs) WHERE withdrawn_at IS NULL",
    ),
    Step { name: "gaps_hardware", what: What::NoIndex("public.gaps_hardware") },
    // Of an epoch, each boot's word about its end: whoever had the device before may have spoken of it first (decision 38).
    Step {
        name: "gaps_of_boots",
        what: What::UniqueIndex(
            "public",
            "ON gaps (hardware, epoch, reason, from_ticks, to_time) WHERE seqs IS NULL",
        ),
    },
    Step { name: "gaps_once", what: What::NoIndex("public.gaps_once") },
    index("gaps_withdrawn", "public", "ON gaps (withdrawn_at) WHERE withdrawn_at IS NOT NULL"),
    index("gaps_age", "public", "ON gaps (updated_at) WHERE withdrawn_at IS NULL"),
    index("quarantine_age", "public", "ON quarantine (received_at)"),
    index("audit_log_age", "public", "ON audit_log (at)"),
    // Where an erased person is named.
    index("audit_log_target", "public", "ON audit_log (tenant_id, target)"),
    index("audit_log_wearer", "public", "ON audit_log (tenant_id, (detail ->> 'user_id'))"),
    // By time, too: a move takes them along day by day.
    index("event_keys_of_wearer", "public", "ON event_keys (tenant_id, user_id, time)"),
    Step { name: "event_keys_wearer_gone", what: What::NoIndex("public.event_keys_wearer") },
    index("moves_from", "public", "ON moves (from_user)"),
    index("moves_to", "public", "ON moves (to_user)"),
    // The newest about a wearer, too: by the clinic's order all others' would be gone through.
    index(
        "decisions_of_wearer",
        "public",
        "ON decisions (user_id, at DESC, id DESC) WHERE user_id IS NOT NULL",
    ),
    Step { name: "decisions_wearer_gone", what: What::NoIndex("public.decisions_wearer") },
    index("decisions_newest", "public", "ON decisions (tenant_id, at DESC, id DESC)"),
    Step { name: "decisions_tenant", what: What::NoIndex("public.decisions_tenant") },
    index("quarantine_decisions", "public", "ON quarantine (received_at) WHERE what = 'decision'"),
    index(
        "quarantine_decisions_waiting",
        "public",
        "ON quarantine (tenant_id, tried_at NULLS FIRST, received_at) WHERE what = 'decision' AND replayed_at IS NULL",
    ),
    index("device_intervals_age", "public", "ON device_intervals (from_time, hardware)"),
    index("alerts_age", "public", "ON alerts (raised_at)"),
    index("event_keys_age", "public", "ON event_keys (time)"),
    index("moves_settled", "public", "ON moves (settled_at) WHERE settled_at IS NOT NULL"),
    // Whether a frame is there is asked of whoever had its device, of what is being moved and of whom she was merged with.
    index("moves_of_devices", "public", "ON moves (device_id) WHERE settled_at IS NULL"),
    index("users_merged", "public", "ON users (tenant_id) WHERE merged_into IS NOT NULL"),
    index("introductions_settled", "public", "ON introductions (settled_at) WHERE settled_at IS NOT NULL"),
    index("revocations_settled", "public", "ON revocations (settled_at) WHERE settled_at IS NOT NULL"),
    // Which gaps of a device touch a time (gaps_within, which says the same). Before days_filled, and not only by chance: made
    // concurrently, it waits for all snapshots that are older, so whoever writes without the triggers of 0033 is done by then.
    index(
        "gaps_times",
        "public",
        "ON gaps USING gist (hardware, tstzrange(CASE WHEN from_time > to_time THEN to_time ELSE from_time END,
           CASE WHEN from_time > to_time THEN from_time ELSE to_time END, '[]')) WHERE withdrawn_at IS NULL",
    ),
    // Not named as the index: a step of that name made it.
    Step { name: "gaps_ends_gone", what: What::NoIndex("public.gaps_ends") },
    // The newest of a clinic, whoever's.
    Step { name: "events_clinic", what: What::PartsIndex("events", "(tenant_id, time DESC)") },
    index("alerts_in_force", "public", "ON alerts (tenant_id, raised_at DESC, id) WHERE withdrawn_at IS NULL"),
    index(
        "alerts_open",
        "public",
        "ON alerts (tenant_id, raised_at DESC, id) WHERE withdrawn_at IS NULL AND acknowledged_at IS NULL",
    ),
    Step { name: "uncertain_readings", what: What::Slices("SELECT ts.mark_uncertain()") },
    Step { name: "days_filled", what: What::Slices("SELECT ts.fill_days()") },
    // Last: what is above looks for frames' times where older releases wrote them.
    Step { name: "named_in_parts", what: What::Slices("SELECT ts.part_named()") },
];

/// All steps, in words.
pub(crate) fn described() -> String {
    format!("{STEPS:?}")
}

/// Does what is left to do, in order. Called with the steps' turn; gives how many were done.
pub(crate) async fn run(client: &Client) -> Result<usize, Error> {
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS kinara.online_steps (
               name text PRIMARY KEY, done_at timestamptz NOT NULL DEFAULT now())",
        )
        .await?;
    let done: Vec<String> = client
        .query("SELECT name FROM kinara.online_steps", &[])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mut count = 0;
    for step in STEPS.iter().filter(|step| !done.iter().any(|name| name == step.name)) {
        let failed = |source| Error::Migration { name: step.name.to_owned(), source };
        step.run(client).await.map_err(failed)?;
        client
            .execute("INSERT INTO kinara.online_steps (name) VALUES ($1)", &[&step.name])
            .await
            .map_err(failed)?;
        tracing::debug!(step = step.name, "done beside");
        count += 1;
    }
    Ok(count)
}

impl Step {
    async fn run(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        // Not in one string: a string of statements is a transaction.
        client.batch_execute("SET ROLE kinara_owner").await?;
        let result = self.run_as_owner(client).await;
        client.batch_execute("RESET ROLE").await?;
        result
    }

    async fn run_as_owner(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let name = self.name;
        match self.what {
            What::Index(schema, on) => make_index(client, "INDEX", schema, name, on).await,
            What::UniqueIndex(schema, on) => make_index(client, "UNIQUE INDEX", schema, name, on).await,
            What::PartsIndex(table, columns) => make_parts_index(client, name, table, columns).await,
            What::NoIndex(index) => {
                client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS {index}")).await
            }
            What::Slices(sql) => {
                while client.query_one(sql, &[]).await?.get::<_, i64>(0) > 0 {}
                Ok(())
            }
        }
    }
}

/// Whether an index may be used; `None`: it is not there.
async fn validity(client: &Client, index: &str) -> Result<Option<bool>, tokio_postgres::Error> {
    let valid = "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass($1)";
    Ok(client.query_opt(valid, &[&index]).await?.map(|row| row.get(0)))
}

async fn make_index(
    client: &Client,
    kind: &str,
    schema: &str,
    name: &str,
    on: &str,
) -> Result<(), tokio_postgres::Error> {
    let index = format!("{schema}.{name}");
    match validity(client, &index).await? {
        Some(true) => return Ok(()),
        // A former attempt was cut short at it.
        Some(false) => client.batch_execute(&format!("DROP INDEX CONCURRENTLY {index}")).await?,
        None => {}
    }
    client.batch_execute(&format!("CREATE {kind} CONCURRENTLY {name} {on}")).await
}

/// Nothing makes an index of a table in parts concurrently. On plain storage it is made of no part first, which the parts to come
/// get theirs by; then each part's is made concurrently and added. TimescaleDB takes a transaction for each part.
async fn make_parts_index(
    client: &Client,
    name: &str,
    table: &str,
    columns: &str,
) -> Result<(), tokio_postgres::Error> {
    let plain = client.query_opt("SELECT FROM ts.storage WHERE kind = 'plain'", &[]).await?.is_some();
    if !plain {
        return make_chunks_index(client, name, table, columns).await;
    }
    let whole = format!("ts.{name}");
    if client.query_opt("SELECT FROM pg_index WHERE indexrelid = to_regclass($1)", &[&whole]).await?.is_none()
    {
        briefly(client, &format!("CREATE INDEX {name} ON ONLY ts.{table} {columns}")).await?;
    }
    let left = format!(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'ts.{table}'::regclass AND NOT i.inhdetachpending AND NOT EXISTS (
           SELECT FROM pg_index x JOIN pg_inherits p ON p.inhrelid = x.indexrelid
           WHERE x.indrelid = c.oid AND p.inhparent = 'ts.{name}'::regclass)
         ORDER BY 1 DESC LIMIT 1"
    );
    while let Some(row) = client.query_opt(&left, &[]).await? {
        let part: &str = row.get(0);
        let of_part = format!("{name}_{part}");
        make_index(client, "INDEX", "ts", &of_part, &format!("ON ts.{part} {columns}")).await?;
        briefly(client, &format!("ALTER INDEX ts.{name} ATTACH PARTITION ts.{of_part}")).await?;
    }
    Ok(())
}

/// The chunks are the extension's: whoever owns the table may make nothing in their schema. So a chunk's writers wait while its index is
/// made, and nobody waits behind a writer that does not come to an end. An index that was cut short is made anew.
async fn make_chunks_index(
    client: &Client,
    name: &str,
    table: &str,
    columns: &str,
) -> Result<(), tokio_postgres::Error> {
    let index = format!("ts.{name}");
    let make =
        format!("CREATE INDEX {name} ON ts.{table} {columns} WITH (timescaledb.transaction_per_chunk)");
    let mut left = TRIES;
    loop {
        left -= 1;
        if validity(client, &index).await? == Some(false) {
            briefly(client, &format!("DROP INDEX {index}")).await?;
        }
        if validity(client, &index).await?.is_some() {
            return Ok(());
        }
        match once_briefly(client, &make).await {
            Err(error) if left > 0 && is_locked(&error) => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
}

/// A statement before which others would stand while it waits for its lock: it waits a second, and lets them pass.
async fn briefly(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let mut left = TRIES;
    loop {
        left -= 1;
        match once_briefly(client, sql).await {
            Err(error) if left > 0 && is_locked(&error) => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
}

async fn once_briefly(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("SET lock_timeout = '1s'").await?;
    let result = client.batch_execute(sql).await;
    client.batch_execute("SET lock_timeout = 0").await?;
    result
}

fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}
