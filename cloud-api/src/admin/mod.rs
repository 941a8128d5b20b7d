//! The operator's commands, for what has no page yet.
//!
//! The promise: each command may be run again. It says what is, whether it made it now or found it so, as one line of
//! JSON with the `id` of what it is about; it changes all or nothing, and what it changed is in the clinic's audit log.

mod assign;
mod commands;
mod retire;

use std::io::Read as _;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use kinara_protocol::entry;
use kinara_protocol::hardware::HardwareId;
use kinara_store::Work;
use serde_json::{Value, json};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::access::{Role, Scope};

/// Why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The database.
    #[error("database: {}", kinara_store::explain(.0))]
    Database(#[from] tokio_postgres::Error),
    /// The schema.
    #[error(transparent)]
    Store(#[from] kinara_store::Error),
    /// The password.
    #[error(transparent)]
    Password(#[from] crate::auth::password::PasswordError),
    /// Standard input.
    #[error("cannot read the password from standard input: {0}")]
    Input(#[from] std::io::Error),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
}

fn refused<T>(text: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::Refused(text.into()))
}

/// The longest that a key may be good: a hundred years.
const MOST_DAYS: i64 = 36_525;

fn a_name(text: &str) -> Result<String, String> {
    entry::name(text, entry::LONGEST_NAME).map_err(|bad| format!("the name {bad}"))
}

fn a_number(text: &str) -> Result<String, String> {
    entry::reference(text, entry::LONGEST_NAME).map_err(|bad| format!("the number {bad}"))
}

fn a_version(text: &str) -> Result<String, String> {
    entry::version(text).map_err(|bad| format!("the version {bad}"))
}

fn an_address(text: &str) -> Result<String, String> {
    entry::email(text).map_err(|bad| format!("{text:?} {bad}"))
}

/// `admin …`
#[derive(Debug, Args)]
pub struct Admin {
    /// postgres://USER:PASSWORD@HOST/DATABASE of a role that may become kinara_owner.
    #[arg(long, env = "KINARA_ADMIN_URL", hide_env_values = true)]
    pub admin_url: String,
    /// What.
    #[command(subcommand)]
    pub command: Command,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Clinics.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// People who log in.
    #[command(subcommand)]
    Member(MemberCommand),
    /// People who wear a device.
    #[command(subcommand)]
    Wearer(WearerCommand),
    /// The boxes on the shelf.
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// Keys by which a clinic's own programs send readings.
    #[command(subcommand)]
    ApiKey(KeyCommand),
    /// Gives a device to a wearer, from a boundary on; whoever had it has it until there.
    Assign(Assign),
}

/// `admin tenant …`
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Makes a clinic, or renames it.
    Add {
        /// Its name.
        #[arg(long, value_parser = a_name)]
        name: String,
        /// Its short name: small letters, digits, hyphens.
        #[arg(long)]
        slug: String,
        /// Its IANA time zone [default: UTC for a new one].
        #[arg(long)]
        time_zone: Option<String>,
    },
}

/// `admin member …`
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Makes somebody who may log in, or changes role or password (which ends their sessions).
    Add {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The address they log in with.
        #[arg(long, value_parser = an_address)]
        email: String,
        /// What they may.
        #[arg(long)]
        role: Role,
        /// Reads the password, one line, from standard input.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Ends somebody's sessions and lets them in no more, at the boxes neither, until they are enabled.
    Disable {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The address they log in with.
        #[arg(long)]
        email: String,
    },
    /// Lets somebody in again.
    Enable {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The address they log in with.
        #[arg(long)]
        email: String,
    },
}

/// `admin wearer …`
#[derive(Debug, Subcommand)]
pub enum WearerCommand {
    /// Makes a wearer, or renames them.
    Add {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The clinic's own number for them.
        #[arg(long, value_parser = a_number)]
        external_id: String,
        /// As shown.
        #[arg(long, value_parser = a_name)]
        name: String,
        /// Their IANA time zone [default: the clinic's for a new one].
        #[arg(long)]
        time_zone: Option<String>,
        /// They have agreed to this version of the terms. Without a consent, what their device measures is discarded.
        #[arg(long, value_parser = a_version)]
        consent_version: Option<String>,
    },
    /// Erases a wearer and all that was measured of them, for ever.
    Erase {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The clinic's own number for them.
        #[arg(long, value_parser = a_number)]
        external_id: String,
        /// Yes, I mean it.
        #[arg(long, required = true)]
        for_ever: bool,
    },
}

/// `admin api-key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Makes a key, and prints it: this once.
    Add {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// What it is for; the name of a key that has ended or was taken back may be used again.
        #[arg(long, value_parser = a_name)]
        name: String,
        /// What it may.
        #[arg(long, required = true)]
        scope: Vec<Scope>,
        /// It ends after so many days [default: never].
        #[arg(long, value_parser = clap::value_parser!(i32).range(1..=MOST_DAYS))]
        days: Option<i32>,
    },
    /// Takes a key back.
    Revoke {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// Its name.
        #[arg(long, value_parser = a_name)]
        name: String,
    },
}

/// `admin gateway …`
#[derive(Debug, Subcommand)]
pub enum GatewayCommand {
    /// Makes a gateway known, or renames it.
    Add {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The id in its certificate.
        #[arg(long)]
        id: Uuid,
        /// As shown.
        #[arg(long, value_parser = a_name)]
        name: String,
    },
    /// Takes a gateway out of service, for good: a box that was stolen, sold or broke. Nothing that it says is taken any more,
    /// its configuration is emptied, and its wearables are told to forget it. Then shut it out of the broker
    /// (packaging/mosquitto/shut-out.sh, with the client ID that is printed). What it still holds is lost: empty it first.
    Retire {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The id in its certificate.
        #[arg(long)]
        id: Uuid,
    },
    /// Trusts the new key by which a gateway signs, in place of the former one: it was set up anew, and is the same.
    TrustKey {
        /// The clinic's short name.
        #[arg(long)]
        tenant: String,
        /// The id in its certificate.
        #[arg(long)]
        id: Uuid,
        /// Which key, in hex, where several wait.
        #[arg(long)]
        key: Option<String>,
    },
}

/// `admin assign`
#[derive(Debug, Args)]
pub struct Assign {
    /// The clinic's short name.
    #[arg(long)]
    pub tenant: String,
    /// `kinara:` and 16 hex digits, or `bt:` and an address.
    #[arg(long, value_parser = HardwareId::parse)]
    pub hardware: HardwareId,
    /// The wearer's external id.
    #[arg(long, value_parser = a_number)]
    pub wearer: String,
    /// From when on (RFC 3339).
    #[arg(long)]
    pub from: Timestamp,
    /// From which frame on, which then decides: EPOCH:SEQ, the epoch as 16 hex digits.
    #[arg(long)]
    pub at_frame: Option<Frame>,
    /// What another clinic has stored of the device since then becomes this wearer's. Without this, such a boundary is
    /// refused.
    #[arg(long)]
    pub take_stored: bool,
}

/// A frame's name within its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its epoch.
    pub epoch: u64,
    /// Its seq.
    pub seq: u32,
}

impl std::str::FromStr for Frame {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once(':')
            .filter(|(epoch, _)| epoch.len() == 16)
            .and_then(|(epoch, seq)| {
                Some(Self { epoch: u64::from_str_radix(epoch, 16).ok()?, seq: seq.parse().ok()? })
            })
            .ok_or_else(|| format!("{text:?} is not EPOCH:SEQ, for example 5f3a9c1200000001:42"))
    }
}

/// Runs a command and gives the line of JSON to print.
pub fn run(admin: &Admin) -> Work<'_, Result<Value, AdminError>> {
    Box::pin(run_one(admin))
}

async fn run_one(admin: &Admin) -> Result<Value, AdminError> {
    let mut target = kinara_store::Target::of(&admin.admin_url, "kinara-cloud-api admin")?;
    target.config().connect_timeout(std::time::Duration::from_secs(10));
    let (mut client, connection) = target.connect().await?;
    let connection = tokio::spawn(connection);
    let result = command(&mut client, &admin.command).await;
    drop(client);
    let _ = connection.await;
    result
}

async fn command(client: &mut Client, command: &Command) -> Result<Value, AdminError> {
    client.batch_execute("SET statement_timeout = '30s'; SET timezone = 'UTC'").await?;
    // No more rights than the schema's owner has.
    if let Err(error) = client.batch_execute("SET ROLE kinara_owner").await {
        return refused(format!(
            "cannot become kinara_owner: {}; has the database been migrated (kinara-cloud-api migrate)?",
            kinara_store::explain(&error)
        ));
    }
    let transaction = client.transaction().await?;
    let printed = match command {
        Command::Tenant(TenantCommand::Add { name, slug, time_zone }) => {
            commands::tenant(&transaction, name, slug, time_zone.as_deref()).await?
        }
        Command::Member(MemberCommand::Add { tenant, email, role, password_stdin }) => {
            let password = password_stdin.then(read_password).transpose()?;
            commands::member(&transaction, tenant, email, *role, password.as_deref()).await?
        }
        Command::Member(MemberCommand::Disable { tenant, email }) => {
            commands::let_in(&transaction, tenant, email, false).await?
        }
        Command::Member(MemberCommand::Enable { tenant, email }) => {
            commands::let_in(&transaction, tenant, email, true).await?
        }
        Command::Wearer(WearerCommand::Add { tenant, external_id, name, time_zone, consent_version }) => {
            let wearer = commands::Wearer {
                external_id,
                name,
                time_zone: time_zone.as_deref(),
                consent_version: consent_version.as_deref(),
            };
            commands::wearer(&transaction, tenant, &wearer).await?
        }
        Command::Wearer(WearerCommand::Erase { tenant, external_id, for_ever: _ }) => {
            commands::erase(&transaction, tenant, external_id).await?
        }
        Command::ApiKey(KeyCommand::Add { tenant, name, scope, days }) => {
            commands::add_key(&transaction, tenant, name, scope, *days).await?
        }
        Command::ApiKey(KeyCommand::Revoke { tenant, name }) => {
            commands::revoke_key(&transaction, tenant, name).await?
        }
        Command::Gateway(GatewayCommand::Add { tenant, id, name }) => {
            commands::gateway(&transaction, tenant, *id, name).await?
        }
        Command::Gateway(GatewayCommand::Retire { tenant, id }) => {
            retire::gateway(&transaction, tenant, *id).await?
        }
        Command::Gateway(GatewayCommand::TrustKey { tenant, id, key }) => {
            commands::trust_key(&transaction, tenant, *id, key.as_deref()).await?
        }
        Command::Assign(assign) => assign::assign(&transaction, assign).await?,
    };
    transaction.commit().await?;
    Ok(printed)
}

fn read_password() -> Result<String, AdminError> {
    let mut text = String::new();
    std::io::stdin().lock().take(4096).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A clinic by its short name. The transaction is set to it, for policies and for the audit log.
async fn find_tenant(transaction: &Transaction<'_>, slug: &str) -> Result<Uuid, AdminError> {
    let row = transaction.query_opt("SELECT id FROM tenants WHERE slug = $1", &[&slug]).await?;
    let Some(row) = row else {
        return refused(format!(
            "there is no clinic {slug:?}; make it with: admin tenant add --slug {slug} --name …"
        ));
    };
    let id: Uuid = row.try_get(0)?;
    name_tenant(transaction, id).await?;
    Ok(id)
}

async fn name_tenant(transaction: &Transaction<'_>, id: Uuid) -> Result<(), AdminError> {
    transaction.execute("SELECT set_config('kinara.tenant', $1, true)", &[&id.to_string()]).await?;
    Ok(())
}

async fn audit(
    transaction: &Transaction<'_>,
    tenant: Uuid,
    action: &str,
    target: &str,
    detail: Value,
) -> Result<(), AdminError> {
    transaction
        .execute(
            "INSERT INTO audit_log (tenant_id, actor, action, target, detail) VALUES ($1, 'operator', $2, $3, $4)",
            &[&tenant, &action, &target, &detail],
        )
        .await?;
    Ok(())
}

async fn check_zone(transaction: &Transaction<'_>, zone: Option<&str>) -> Result<(), AdminError> {
    let Some(zone) = zone else { return Ok(()) };
    let known = transaction.query_opt("SELECT 1 FROM pg_timezone_names WHERE name = $1", &[&zone]).await?;
    if known.is_none() {
        return refused(format!("{zone:?} is not an IANA time zone, such as Asia/Kolkata"));
    }
    Ok(())
}

fn printed(id: Uuid, tenant: Uuid, changed: bool, more: Value) -> Value {
    let mut line = json!({ "id": id, "tenant_id": tenant, "changed": changed });
    if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
        line.extend(more);
    }
    line
}
