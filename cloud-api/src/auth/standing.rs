//! Whether a session still stands, beyond what its access token says.
//!
//! The promise: a session that was ended, a member who was disabled or has another role, is held to it within seconds and
//! not when the token ends. What the database said is believed for as long as the configuration says; a session that this
//! program ended itself is forgotten at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kinara_clock::Clock;
use uuid::Uuid;

use crate::access::{Member, Role};
use crate::database::Database;
use crate::problem::Problem;

/// Sessions remembered at most.
const MOST: usize = 20_000;

#[derive(Debug, Clone, Copy)]
struct Said {
    role: Option<Role>,
    at_us: i64,
}

/// What the database said of sessions, lately.
#[derive(Debug)]
pub struct Standings {
    said: Mutex<HashMap<Uuid, Said>>,
    clock: Arc<dyn Clock>,
    believed_us: i64,
}

impl Standings {
    /// Believes for so many seconds.
    pub fn new(believed_s: u64, clock: Arc<dyn Clock>) -> Self {
        Self { said: Mutex::default(), clock, believed_us: believed_s as i64 * 1_000_000 }
    }

    /// The member as they are now; a problem if their session stands no more.
    pub async fn of(&self, database: &Database, member: Member) -> Result<Member, Problem> {
        let role = match self.lately(member.session) {
            Some(said) => said.role,
            None => self.ask(database, &member).await?,
        };
        match role {
            Some(role) => Ok(Member { role, ..member }),
            None => Err(Problem::unauthenticated("The session is over. Log in again.")),
        }
    }

    /// A session was ended here.
    pub fn ended(&self, session: Uuid) {
        self.lock().remove(&session);
    }

    /// All that was believed of anybody is asked again: a member's sessions were ended.
    pub fn ask_again(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lately(&self, session: Uuid) -> Option<Said> {
        let now = self.clock.boottime_us();
        self.lock().get(&session).copied().filter(|said| now - said.at_us < self.believed_us)
    }

    async fn ask(&self, database: &Database, member: &Member) -> Result<Option<Role>, Problem> {
        let at_us = self.clock.boottime_us();
        let role = database.holder().await?.session_standing(member.id, member.session).await?;
        let role = role.as_deref().and_then(Role::parse);
        let mut said = self.lock();
        if said.len() >= MOST {
            said.retain(|_, said| at_us - said.at_us < self.believed_us);
        }
        if said.len() < MOST {
            said.insert(member.session, Said { role, at_us });
        }
        Ok(role)
    }
}
