//! The database, one tenant at a time.
//!
//! The promise: every question about a clinic's data is asked inside a transaction that has named its tenant
//! ([`Connection::tenant`]), as a role that PostgreSQL holds to that tenant. The name ends with the transaction, so a
//! connection that goes back to the pool carries nobody's name. A question asked without one sees nothing. Only three
//! functions are called before the tenant is known: who has this address, and whose is this refresh
//! token or key.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Pool, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::config::DatabaseConfig;
use crate::problem::Problem;

/// A pool of connections of the application role.
#[derive(Debug, Clone)]
pub struct Database {
    pool: Pool,
    strangers: Arc<Semaphore>,
    holders: Arc<Semaphore>,
    patience: Duration,
}

/// One connection of so many is for those who are not known yet, and one for those whose token is asked about.
const PART: usize = 4;

/// Connections for those who are in: a part of the pool is left to those who are not known yet.
pub(crate) fn of_members(config: &DatabaseConfig) -> usize {
    config.pool_size.saturating_sub(part(config)).max(1)
}

fn part(config: &DatabaseConfig) -> usize {
    (config.pool_size / PART).max(1)
}

/// The settings of a connection to the database, with the limits that every session gets.
pub(crate) fn session(
    config: &DatabaseConfig,
    name: &str,
) -> Result<kinara_store::Target, kinara_store::Error> {
    let statement = Duration::from_secs(config.statement_timeout_s);
    let limits = kinara_store::Limits {
        connect: Duration::from_secs(config.acquire_timeout_s),
        statement,
        idle_in_transaction: statement * 2,
        lock: statement,
        ..kinara_store::Limits::default()
    };
    let mut session = kinara_store::Target::with_limits(&config.url, name, &limits)?;
    session
        .config()
        .keepalives_idle(Duration::from_secs(15))
        .tcp_user_timeout(statement + Duration::from_secs(5));
    // A plan made for any period at all does not know how few partitions this one needs.
    Ok(session.with_options("-c plan_cache_mode=force_custom_plan -c jit=off"))
}

impl Database {
    /// Makes the pool. Connects nowhere yet.
    pub fn new(config: &DatabaseConfig) -> Result<Self, kinara_store::Error> {
        let session = session(config, "kinara-cloud-api")?;
        let wait = Some(Duration::from_secs(config.acquire_timeout_s));
        let pool = Pool::builder(session.manager())
            .max_size(config.pool_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(wait)
            .create_timeout(wait)
            .recycle_timeout(wait)
            .build()?;
        let part = || Arc::new(Semaphore::new(part(config)));
        let patience = Duration::from_secs(config.acquire_timeout_s);
        Ok(Self { pool, strangers: part(), holders: part(), patience })
    }

    /// Takes a connection for somebody who is not known yet: of all of those together a part of the pool, so that who
    /// knocks keeps nobody out who is in.
    pub async fn stranger(&self) -> Result<Connection, Problem> {
        self.in_turn(&self.strangers).await
    }

    /// Takes a connection to ask about somebody whose token we signed: however many strangers knock, a member does not stand
    /// behind them.
    pub async fn holder(&self) -> Result<Connection, Problem> {
        self.in_turn(&self.holders).await
    }

    async fn in_turn(&self, turns: &Arc<Semaphore>) -> Result<Connection, Problem> {
        let turn = tokio::time::timeout(self.patience, turns.clone().acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or_else(|| {
            Problem::unavailable("Many are asking to be let in just now. Try again in a few seconds.")
        })?;
        Ok(Connection { session: self.pool.get().await?, _turn: Some(turn) })
    }

    /// Takes a connection from the pool.
    pub async fn connection(&self) -> Result<Connection, Problem> {
        Ok(Connection { session: self.pool.get().await?, _turn: None })
    }

    /// Looks whether the database has this release's schema, and says so where it has not.
    pub async fn check_schema(&self) {
        match kinara_store::migrate::check(&self.pool).await {
            Ok(()) => {}
            Err(error @ (kinara_store::Error::Older { .. } | kinara_store::Error::Newer { .. })) => {
                tracing::error!(%error, "what is asked of the database will fail");
            }
            Err(error) => {
                tracing::warn!(%error, "whether the database has this release's schema is not known");
            }
        }
    }

    /// Whether the database answers.
    pub async fn answers(&self) -> bool {
        match self.pool.get().await {
            Ok(connection) => connection.simple_query("SELECT 1").await.is_ok(),
            Err(_) => false,
        }
    }

    /// Connections open, and of these idle.
    pub fn connections(&self) -> (usize, usize) {
        let status = self.pool.status();
        (status.size, status.available)
    }
}

/// One connection, held for one request.
#[derive(Debug)]
pub struct Connection {
    session: deadpool_postgres::Object,
    _turn: Option<OwnedSemaphorePermit>,
}

/// Who has an address, before there is a tenant.
#[derive(Debug)]
pub struct LoginRow {
    /// The member.
    pub member: Uuid,
    /// Their clinic.
    pub tenant: Uuid,
    /// The argon2id hash.
    pub password_hash: String,
}

/// Whose a key is, before there is a tenant.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// The key's row.
    pub key: Uuid,
    /// The clinic.
    pub tenant: Uuid,
    /// What it may.
    pub scopes: Vec<String>,
}

/// Whose a refresh token is, before there is a tenant.
#[derive(Debug, Clone, Copy)]
pub struct SessionRow {
    /// The token's row.
    pub session: Uuid,
    /// The clinic.
    pub tenant: Uuid,
    /// The member.
    pub member: Uuid,
}

impl Connection {
    /// A transaction that reads, for one tenant.
    pub async fn tenant(&mut self, tenant: Uuid) -> Result<TenantTransaction<'_>, Problem> {
        self.begin(tenant, true).await
    }

    /// A transaction that writes, for one tenant.
    pub async fn tenant_write(&mut self, tenant: Uuid) -> Result<TenantTransaction<'_>, Problem> {
        self.begin(tenant, false).await
    }

    async fn begin(&mut self, tenant: Uuid, read_only: bool) -> Result<TenantTransaction<'_>, Problem> {
        let transaction = self.session.build_transaction().read_only(read_only).start().await?;
        let name = transaction.prepare_cached("SELECT set_config('kinara.tenant', $1, true)").await?;
        transaction.execute(&name, &[&tenant.to_string()]).await?;
        Ok(TenantTransaction(transaction))
    }

    /// Who logs in with this address.
    pub async fn login_lookup(&self, email: &str) -> Result<Option<LoginRow>, Problem> {
        let statement = self
            .session
            .prepare_cached("SELECT member_id, tenant_id, password_hash FROM login_lookup($1)")
            .await?;
        let row = self.session.query_opt(&statement, &[&email]).await?;
        row.map(|row| {
            Ok(LoginRow { member: row.try_get(0)?, tenant: row.try_get(1)?, password_hash: row.try_get(2)? })
        })
        .transpose()
    }

    /// Whose key has this hash, and what it may. Notes that it was used.
    pub async fn api_key_lookup(&self, hash: &str) -> Result<Option<KeyRow>, Problem> {
        let statement = self
            .session
            .prepare_cached("SELECT api_key_id, tenant_id, scopes FROM api_key_lookup($1)")
            .await?;
        let Some(row) = self.session.query_opt(&statement, &[&hash]).await? else { return Ok(None) };
        let key = KeyRow { key: row.try_get(0)?, tenant: row.try_get(1)?, scopes: row.try_get(2)? };
        let used = self.session.prepare_cached("SELECT api_key_used($1)").await?;
        self.session.execute(&used, &[&key.key]).await?;
        Ok(Some(key))
    }

    /// The role of a member whose session stands; none when it was ended or the member disabled.
    pub async fn session_standing(&self, member: Uuid, family: Uuid) -> Result<Option<String>, Problem> {
        let statement = self.session.prepare_cached("SELECT session_standing($1, $2)").await?;
        let row = self.session.query_one(&statement, &[&member, &family]).await?;
        Ok(row.try_get(0)?)
    }

    /// Whose refresh token has this hash.
    pub async fn session_lookup(&self, hash: &[u8]) -> Result<Option<SessionRow>, Problem> {
        let statement = self
            .session
            .prepare_cached("SELECT session_id, tenant_id, member_id FROM session_lookup($1)")
            .await?;
        let row = self.session.query_opt(&statement, &[&hash]).await?;
        row.map(|row| {
            Ok(SessionRow { session: row.try_get(0)?, tenant: row.try_get(1)?, member: row.try_get(2)? })
        })
        .transpose()
    }
}

/// A transaction that has named its tenant.
#[derive(Debug)]
pub struct TenantTransaction<'a>(deadpool_postgres::Transaction<'a>);

impl<'a> Deref for TenantTransaction<'a> {
    type Target = deadpool_postgres::Transaction<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl TenantTransaction<'_> {
    /// Keeps what was written.
    pub async fn commit(self) -> Result<(), Problem> {
        Ok(self.0.commit().await?)
    }

    /// Rows of a statement, prepared once a connection.
    pub async fn rows(
        &self,
        statement: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, Problem> {
        let statement = self.0.prepare_cached(statement).await?;
        Ok(self.0.query(&statement, parameters).await?)
    }

    /// At most one row of a statement.
    pub async fn row(
        &self,
        statement: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Option<tokio_postgres::Row>, Problem> {
        let statement = self.0.prepare_cached(statement).await?;
        Ok(self.0.query_opt(&statement, parameters).await?)
    }

    /// Runs a statement that gives no rows.
    pub async fn run(
        &self,
        statement: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<u64, Problem> {
        let statement = self.0.prepare_cached(statement).await?;
        Ok(self.0.execute(&statement, parameters).await?)
    }

    /// Writes a line of the audit log: who did what to what.
    pub async fn audit(
        &self,
        actor: &str,
        action: &str,
        target: Option<&str>,
        detail: serde_json::Value,
    ) -> Result<(), Problem> {
        self.run(
            "INSERT INTO audit_log (tenant_id, actor, action, target, detail)
             VALUES ((select current_tenant()), $1, $2, $3, $4)",
            &[&actor, &action, &target, &detail],
        )
        .await
        .map(|_| ())
    }
}
