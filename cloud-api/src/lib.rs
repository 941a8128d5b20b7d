//! The clinic's side of Kinara: the HTTP API, the live WebSocket, the dashboard's files, and the operator's commands.
//!
//! - [`routes`]: every route with who may use it; [`access`]: who may do what; [`auth`]: logging in.
//! - [`database`]: one tenant at a time. PostgreSQL keeps clinics apart, not this program.
//! - [`resources`]: what is shown. [`live`]: what is shown at once.
//! - [`admin`]: commands for what has no page yet.

pub mod access;
pub mod admin;
pub mod auth;
pub mod config;
mod dashboard;
pub mod database;
pub mod live;
pub mod metrics;
pub mod network;
pub mod operator;
pub mod problem;
pub mod resources;
pub mod routes;
pub mod server;
pub mod shares;
pub mod times;

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use kinara_clock::Clock;
use kinara_store::Work;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use auth::limit::LoginLimit;
use auth::password::Checker;
use auth::standing::Standings;
use auth::token::Tokens;
use config::Config;
use database::Database;
use live::hub::Hub;
use metrics::Metrics;
use resources::ingest::Places;
use shares::Turns;

/// Everything that handlers share.
#[derive(Debug, Clone)]
pub struct App(Arc<Shared>);

/// What [`App`] points to.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The database.
    pub database: Database,
    /// Access tokens.
    pub tokens: Tokens,
    /// Passwords.
    pub passwords: Checker,
    /// Requests with readings that are being read.
    pub ingest_places: Places,
    /// Whose word on where requests come from is believed.
    pub proxies: network::Proxies,
    /// Failed logins.
    pub login_limit: LoginLimit,
    /// Whether sessions stand.
    pub standings: Standings,
    /// Turns at the database.
    pub turns: Turns,
    /// Who listens.
    pub hub: Arc<Hub>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the program stops.
    pub stop: CancellationToken,
    route_names: Vec<&'static str>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The signing key.
    #[error(transparent)]
    Key(#[from] auth::token::KeyError),
    /// The database's settings.
    #[error(transparent)]
    Database(#[from] kinara_store::Error),
    /// The password hash.
    #[error(transparent)]
    Password(#[from] auth::password::PasswordError),
    /// The broker's settings.
    #[error(transparent)]
    Broker(#[from] live::broker::BrokerError),
    /// The address.
    #[error("cannot listen on {address}: {source}; change listen, or stop the program that has it")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The file for the address.
    #[error("cannot write addr_file {path}: {source}")]
    AddressFile {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl App {
    /// Sets everything up. Connects nowhere yet.
    pub fn new(config: Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let key = auth::token::read_or_make_key(&config.jwt_secret_file)?;
        let previous = config.jwt_previous_secret_file.as_deref().map(auth::token::read_key).transpose()?;
        let metrics = Arc::new(Metrics::default());
        Ok(Self(Arc::new(Shared {
            database: Database::new(&config.database)?,
            tokens: Tokens::new(&key, previous.as_deref(), config.login.access_s, clock.clone()),
            passwords: Checker::new(config.login.checks_at_once)?,
            standings: Standings::new(config.login.standing_s, clock.clone()),
            turns: Turns::new(
                database::of_members(&config.database),
                config.database.of_clinic,
                config.database.of_member,
                std::time::Duration::from_secs(config.database.acquire_timeout_s),
            ),
            login_limit: LoginLimit::new(&config.login, clock.clone()),
            ingest_places: Places::default(),
            proxies: network::Proxies::new(config.trusted_proxies.clone()),
            hub: Arc::new(Hub::new(config.live.clone(), clock.clone(), metrics.clone())),
            metrics,
            stop: CancellationToken::new(),
            route_names: routes::routes().iter().map(|route| route.path).collect(),
            clock,
            config,
        })))
    }
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    /// The address it listens on.
    pub address: SocketAddr,
    /// What its handlers share.
    pub app: App,
    tasks: JoinSet<()>,
}

impl Service {
    /// Starts to listen and to follow the broker and the database. A database or broker that is down now is waited for.
    pub fn start(config: Config, clock: Arc<dyn Clock>) -> Work<'static, Result<Self, StartError>> {
        Box::pin(Self::start_all(config, clock))
    }

    async fn start_all(config: Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let app = App::new(config, clock)?;
        let config = &app.config;
        let broker = config.broker.as_ref().map(live::broker::Broker::new).transpose()?;
        let notices = database::session(&config.database, "kinara-cloud-api notices")?;
        let failed = |source| StartError::Listen { address: config.listen, source };
        let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut tasks = JoinSet::new();
        if let Some(broker) = broker {
            tasks.spawn(broker.run(app.hub.clone(), app.metrics.clone(), app.stop.clone()));
        }
        tasks.spawn(live::notices::listen(
            notices,
            app.hub.clone(),
            app.metrics.clone(),
            app.clock.clone(),
            app.stop.clone(),
        ));
        tasks.spawn(live::notices::follow(app.database.clone(), app.hub.clone(), app.stop.clone()));
        tasks.spawn(server::serve(app.clone(), routes::router(&app), listener));
        if let Some(path) = &config.addr_file {
            server::write_address(path, address)
                .map_err(|source| StartError::AddressFile { path: path.clone(), source })?;
        }
        let database = app.database.clone();
        // Not one of the tasks: it looks once and ends.
        tokio::spawn(async move { database.check_schema().await });
        tracing::info!(%address, "listening");
        Ok(Self { address, app, tasks })
    }

    /// Waits until a part ends that goes on for as long as the service does: a service without it would be half of one.
    pub async fn ended(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Err(error)) => error.to_string(),
            Some(Ok(())) => "a task returned".to_owned(),
            None => std::future::pending().await,
        }
    }

    /// Stops: no new connections, open ones finish, WebSockets are closed.
    pub async fn stop(mut self) {
        self.app.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended(part: impl Future<Output = ()> + Send + 'static) -> String {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("jwt.key");
        let text =
            format!("jwt_secret_file = {key:?}\n[database]\nurl = \"postgres://api@localhost/kinara\"\n");
        let app = App::new(Config::parse(&text).unwrap(), Arc::new(kinara_clock::SystemClock)).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        tasks.spawn(part);
        let mut service = Service { address: ([127, 0, 0, 1], 0).into(), app, tasks };
        tokio::time::timeout(std::time::Duration::from_secs(10), service.ended()).await.unwrap()
    }

    #[tokio::test]
    async fn a_part_that_ends_or_panics_ends_the_service_however_many_others_go_on() {
        assert_eq!(ended(std::future::ready(())).await, "a task returned");
        assert!(ended(async { panic!("a part's own fault") }).await.contains("panicked"));
    }
}
