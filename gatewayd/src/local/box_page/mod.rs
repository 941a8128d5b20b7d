//! The box's own page: where the people of a clinic pair wearables and see how they do, with or without the
//! internet.
//!
//! The promise: whoever does something here is known. Nothing is shown of a wearer, and nothing is changed,
//! without a person's own PIN; there is no default password; every action is in the audit by person; what a
//! form changes comes from this page and no other (cookies that no other site can use, a proof in every form,
//! the sender's origin, the name the box was called by). Everything works without a script and without
//! anything from elsewhere.
//!
//! `tls` the box's key, `server` the listener and its limits, `setup` the first person, `staff`,
//! `pin` and `lockout` who they are, `session` and `secret` that it is still them, `visit` the
//! request so far, `pages` what they see, `words` in which language. It acts through the [`Desk`] alone.

mod audit;
mod form;
mod keep;
mod lockout;
mod pages;
mod photo;
mod pin;
mod secret;
pub(super) mod server;
mod session;
mod setup;
mod staff;
mod tls;
mod visit;
mod words;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use audit::{Action, Audit, Entry, Failures};
use lockout::{Client, Locked, Lockout};
use pages::pairing::Attempt;
use pin::Pin;
use secret::Secret;
use session::Sessions;
use setup::Setup;
use staff::{Person, Staff};
use tls::Identity;
use visit::Visit;

use crate::desk::Desk;
use crate::files;

/// The file in the data folder that holds the bound address.
pub const PAGE_ADDRESS_FILE: &str = "page.addr";
/// The pause before a port that is taken, or a file that cannot be used, is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// The alert that there is no set-up code.
const SETUP_ALERT: &str = "setup";
/// How long a login waits for others' PINs to be checked.
const QUEUE_FOR_PIN: Duration = Duration::from_secs(10);

/// Why there is no box page.
#[derive(Debug, thiserror::Error)]
pub enum BoxPageError {
    /// Its key.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Its files.
    #[error("the box's page cannot use {path}: {source}; check that data_dir may be written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How the page behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// A login ends after this time without use.
    pub idle_logout: Duration,
    /// The box's name.
    pub name: String,
    /// Where its files are.
    pub data_dir: PathBuf,
}

/// Everything the pages use.
struct Front {
    settings: Settings,
    desk: Desk,
    clock: Arc<dyn Clock>,
    identity: Identity,
    secret: Secret,
    audit: Audit,
    staff: Mutex<Staff>,
    setup: Mutex<Setup>,
    sessions: Mutex<Sessions>,
    lockout: Mutex<Lockout>,
    /// Wrong PINs that wait for their line in the audit.
    failures: Mutex<Failures>,
    /// The pairing that each person has begun last.
    attempts: Mutex<HashMap<Uuid, Attempt>>,
    /// One PIN is checked at a time (19 MiB each).
    one_pin: Semaphore,
    /// One photo is looked at a time (up to 140 MiB each).
    one_photo: Arc<Semaphore>,
}

/// The page, ready to run. Cheap to clone.
#[derive(Clone)]
pub struct BoxPage(Arc<Front>);

/// Why a PIN was not accepted.
enum PinRefused {
    Wrong,
    Locked { wait_s: u64 },
    Busy,
}

impl BoxPage {
    /// Reads what is kept, and makes what is not there yet.
    fn open(settings: Settings, desk: Desk, clock: Arc<dyn Clock>) -> Result<Self, BoxPageError> {
        let dir = settings.data_dir.clone();
        let file = |name: &str| {
            let path = dir.join(name);
            move |source| BoxPageError::File { path, source }
        };
        let idle_us = i64::try_from(settings.idle_logout.as_micros()).unwrap_or(i64::MAX);
        let front = Front {
            identity: Identity::open(&dir, &settings.name)?,
            secret: Secret::open(&dir, &mut rand::rng()).map_err(file("page.secret"))?,
            audit: Audit::open(&dir).map_err(file("audit.jsonl"))?,
            staff: Mutex::new(Staff::open(&dir).map_err(file("staff.json"))?),
            setup: Mutex::new(Setup::open(&dir)),
            sessions: Mutex::new(Sessions::new(idle_us)),
            lockout: Mutex::default(),
            failures: Mutex::default(),
            attempts: Mutex::default(),
            one_pin: Semaphore::new(1),
            one_photo: Arc::new(Semaphore::new(1)),
            settings,
            desk,
            clock,
        };
        Ok(Self(Arc::new(front)))
    }

    /// Writes into the audit that an operator had the last known time forgotten.
    pub async fn clock_was_reset(&self, by: &str) {
        let entry = Entry {
            utc_us: self.0.clock.utc_us(),
            who: by.to_owned(),
            from: "kinaractl".to_owned(),
            action: Action::ResetClock,
            subject: String::new(),
            failure: String::new(),
        };
        self.0.audit.record(entry).await;
    }

    /// Answers until `stop`. A port that is taken is said and tried again: readings do not wait for the page.
    async fn run(self, stop: CancellationToken) {
        let front = self.0;
        let listener = tokio::select! {
            () = stop.cancelled() => return,
            listener = front.bind() => listener,
        };
        front.announce(&listener);
        let router = pages::router(front.clone());
        let serve = server::serve(listener, Some(front.identity.config.clone()), router, stop.clone());
        tokio::join!(stop.run_until_cancelled(front.offer_code()), serve);
    }
}

/// Opens the page and answers until `stop`. Files that cannot be used, as on a full disk, are an alert and are tried again.
pub async fn run(
    settings: Settings,
    desk: Desk,
    clock: Arc<dyn Clock>,
    opened: watch::Sender<Option<BoxPage>>,
    stop: CancellationToken,
) {
    let mut told = false;
    loop {
        let error = match BoxPage::open(settings.clone(), desk.clone(), clock.clone()) {
            Ok(page) => {
                desk.board().alert("page", None);
                files::tell_broken(&settings.data_dir, desk.board());
                opened.send_replace(Some(page.clone()));
                return page.run(stop).await;
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::error!(%error, "there is no box page; it is tried again, the rest goes on");
        }
        desk.board().alert("page", Some(error.to_string()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

impl Front {
    async fn bind(&self) -> TcpListener {
        let address = self.settings.listen;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    // A full disk is no reason not to answer: here people see that it is full.
                    if let Err(error) = write_address(&self.settings.data_dir, &listener) {
                        tracing::warn!(%error, "where the box's page listens could not be written down");
                    }
                    self.desk.board().alert("page", None);
                    return listener;
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "the box's page cannot listen; it is tried again");
                    let text = format!("The box's page cannot listen on {address}: {error}. Free the port.");
                    self.desk.board().alert("page", Some(text));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Says where the page is.
    fn announce(&self, listener: &TcpListener) {
        let at = listener.local_addr().map_or_else(|error| error.to_string(), |at| at.to_string());
        let fingerprint = &self.identity.fingerprint;
        tracing::info!(page = format!("https://{at}"), fingerprint, "the box's page answers");
    }

    /// Says, while nobody can log in, with which code the box is set up. A disk that does not take it is asked again.
    async fn offer_code(&self) {
        while !self.set_up() {
            let made = lock(&self.setup).code(&mut rand::rng());
            let Err(error) = made.map(|code| self.say_code(&code)) else {
                return self.desk.board().alert(SETUP_ALERT, None);
            };
            tracing::error!(%error, "no set-up code could be made; it is tried again");
            let text =
                format!("This box cannot be set up: its code cannot be written ({error}). Look at the disk.");
            self.desk.board().alert(SETUP_ALERT, Some(text));
            tokio::time::sleep(AGAIN).await;
        }
        self.desk.board().alert(SETUP_ALERT, None);
    }

    fn say_code(&self, code: &str) {
        tracing::info!(
            code,
            fingerprint = self.identity.fingerprint,
            "first set-up: open the box's page, compare the certificate's fingerprint, type this code"
        );
    }

    /// Whether somebody can log in.
    fn set_up(&self) -> bool {
        !self.people().is_empty()
    }

    fn people(&self) -> Vec<Person> {
        lock(&self.staff).all(&self.desk.roster().borrow())
    }

    fn person(&self, id: Uuid) -> Option<Person> {
        lock(&self.staff).find(&self.desk.roster().borrow(), id)
    }

    /// Checks a PIN, as often as the lockout lets it be tried. Somebody who does not exist is answered like a wrong PIN,
    /// and nothing is counted or written for them: whoever asks could invent any number of them.
    async fn check_pin(&self, id: Uuid, typed: &str, client: Client) -> Result<(), PinRefused> {
        let locked = |locked: Locked| PinRefused::Locked { wait_s: locked.wait_s };
        let Some(person) = self.person(id) else { return Err(PinRefused::Wrong) };
        // Before anything that costs: who has to wait costs nothing.
        lock(&self.lockout).may_try(id, client, self.clock.boottime_us()).map_err(locked)?;
        let waiting = tokio::time::timeout(QUEUE_FOR_PIN, self.one_pin.acquire()).await;
        let Ok(Ok(_one)) = waiting else { return Err(PinRefused::Busy) };
        lock(&self.lockout).begin(id, client, self.clock.boottime_us()).map_err(locked)?;
        let Ok(pin) = Pin::parse(typed) else { return Err(PinRefused::Wrong) };
        let checked = tokio::task::spawn_blocking(move || pin.matches(&person.verifier)).await;
        if !checked.unwrap_or(false) {
            return Err(PinRefused::Wrong);
        }
        lock(&self.lockout).succeeded(id, client);
        Ok(())
    }

    /// Writes that somebody tried in vain: at most a line a minute for each person and deed, with how many it stands for.
    /// So nobody without a PIN can push what was done out of the audit.
    async fn failed(&self, who: &str, visit: &Visit, action: Action, why: &str) {
        let Some(before) = lock(&self.failures).take((who, action), self.clock.boottime_us()) else { return };
        let failure =
            if before == 0 { why.to_owned() } else { format!("{why}; {before} more since the last line") };
        self.did(who, visit, action, "", &failure).await;
    }

    /// Writes what a person did, or tried.
    async fn did(&self, who: &str, visit: &Visit, action: Action, subject: &str, failure: &str) {
        let entry = Entry {
            utc_us: self.clock.utc_us(),
            who: who.to_owned(),
            from: visit.peer.to_string(),
            action,
            subject: subject.to_owned(),
            failure: failure.to_owned(),
        };
        self.audit.record(entry).await;
    }
}

/// What one of the page's own tables holds stays whole even when a task that held it has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_address(data_dir: &Path, listener: &TcpListener) -> io::Result<()> {
    let address = listener.local_addr()?;
    keep::private(&data_dir.join(PAGE_ADDRESS_FILE), format!("{address}\n").as_bytes())
}
