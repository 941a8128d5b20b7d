//! Who may do what.
//!
//! The promise: there is one function that decides, [`authorize`], and no handler is reached without it: the route
//! table ([`crate::routes`]) names action and resource of every route, and the middleware here asks before the
//! handler runs. Which clinic's rows an allowed question sees is not decided here, but by the database.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::App;
use crate::problem::Problem;
use crate::shares::Turn;

/// What a member may be. Each may do what the ones before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks on.
    Viewer,
    /// Acts on what is seen.
    Clinician,
    /// Runs the clinic's account.
    Admin,
}

impl Role {
    /// As in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Clinician => "clinician",
            Self::Admin => "admin",
        }
    }

    /// From the database.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Clinician, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Looking.
    Read,
    /// Saying that an event was seen and dealt with.
    Acknowledge,
    /// Changing how things are.
    Change,
}

/// To what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Wearers.
    Users,
    /// Wearables.
    Devices,
    /// The boxes on the shelf.
    Gateways,
    /// Measured values, stored and live.
    Readings,
    /// What was derived from them.
    Events,
    /// What somebody has to look at.
    Alerts,
    /// When an alert is raised.
    AlertRules,
    /// What is missing, and why.
    Gaps,
    /// The members, and who of them may use the boxes' pages.
    Staff,
    /// One's own PIN for the boxes' pages.
    OwnPin,
    /// What wearers are asked to agree to.
    ConsentTexts,
    /// Which gateways know which devices.
    Bonds,
    /// What people decided at boxes.
    Decisions,
    /// One's own password and sessions.
    OwnLogin,
}

impl Resource {
    /// Every one.
    pub const ALL: [Self; 14] = [
        Self::Users,
        Self::Devices,
        Self::Gateways,
        Self::Readings,
        Self::Events,
        Self::Alerts,
        Self::AlertRules,
        Self::Gaps,
        Self::Staff,
        Self::OwnPin,
        Self::ConsentTexts,
        Self::Bonds,
        Self::Decisions,
        Self::OwnLogin,
    ];
}

/// The lowest role that may do this. Every resource is named: a new one is open to nobody until it stands here.
pub fn lowest_role(action: Action, resource: Resource) -> Role {
    use Role::{Admin, Clinician, Viewer};
    let (read, acknowledge, change) = match resource {
        Resource::Users | Resource::Bonds | Resource::AlertRules => (Viewer, Admin, Clinician),
        Resource::Events | Resource::Alerts => (Viewer, Clinician, Admin),
        Resource::Devices
        | Resource::Gateways
        | Resource::Readings
        | Resource::Gaps
        | Resource::ConsentTexts => (Viewer, Admin, Admin),
        Resource::Staff => (Admin, Admin, Admin),
        // A viewer does nothing at a box, and need not know who did what there.
        Resource::OwnPin => (Clinician, Admin, Clinician),
        Resource::Decisions => (Clinician, Admin, Admin),
        Resource::OwnLogin => (Viewer, Admin, Viewer),
    };
    match action {
        Action::Read => read,
        Action::Acknowledge => acknowledge,
        Action::Change => change,
    }
}

/// Whether a member may do this.
pub fn authorize(member: &Member, action: Action, resource: Resource) -> Result<(), Problem> {
    let lowest = lowest_role(action, resource);
    if member.role >= lowest {
        return Ok(());
    }
    Err(Problem::forbidden(format!(
        "This needs the role {}, and yours is {}. Ask an admin of your clinic.",
        lowest.as_str(),
        member.role.as_str()
    )))
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Send readings, and ask what became of them.
    Ingest,
}

impl Scope {
    /// As in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
        }
    }
}

/// How a route is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Needs no login.
    Public,
    /// Needs a member who may do this.
    Member(Action, Resource),
    /// Needs a clinic's key that may do this.
    Key(Scope),
    /// The handler asks [`authorize`] itself, because the token comes in the first message (the WebSocket).
    FirstMessage(Action, Resource),
}

/// Who is logged in: what the access token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Their id.
    pub id: Uuid,
    /// Their clinic.
    pub tenant: Uuid,
    /// Their role.
    pub role: Role,
    /// The session (the family of refresh tokens) the access token came from.
    pub session: Uuid,
    /// When the access token ends, in microseconds since 1970.
    pub expires_us: i64,
}

impl Member {
    /// How the audit log names them.
    pub fn actor(&self) -> String {
        format!("member:{}", self.id)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Member {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            // A public route whose handler wants a member: a mistake in the route table, which the access test finds.
            Problem::unauthenticated("Log in first.")
        })
    }
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// What the middleware needs to know about its route.
#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) app: App,
    pub(crate) action: Action,
    pub(crate) resource: Resource,
}

/// Lets a request through when its token is good and its member may.
pub(crate) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let Some(token) = bearer(&request) else {
        return Problem::unauthenticated("Log in first: send Authorization: Bearer <access token>.")
            .into_response();
    };
    match admitted(&guard, token).await {
        Ok((member, _turn)) => {
            request.extensions_mut().insert(member);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// The member of a token, as they are now and if they may, and their turn at the database.
async fn admitted(guard: &Guard, token: &str) -> Result<(Member, Turn), Problem> {
    let app = &guard.app;
    let member = app.standings.of(&app.database, app.tokens.read(token)?).await?;
    authorize(&member, guard.action, guard.resource)?;
    let turn = app.turns.take(member.tenant, Some(member.id)).await?;
    Ok((member, turn))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each role may read, acknowledge and change, as the clinic was told.
    const TOLD: [(Resource, [&str; 3]); 14] = [
        (Resource::Users, ["viewer", "admin", "clinician"]),
        (Resource::Devices, ["viewer", "admin", "admin"]),
        (Resource::Gateways, ["viewer", "admin", "admin"]),
        (Resource::Readings, ["viewer", "admin", "admin"]),
        (Resource::Events, ["viewer", "clinician", "admin"]),
        (Resource::Alerts, ["viewer", "clinician", "admin"]),
        (Resource::AlertRules, ["viewer", "admin", "clinician"]),
        (Resource::Gaps, ["viewer", "admin", "admin"]),
        (Resource::Staff, ["admin", "admin", "admin"]),
        (Resource::OwnPin, ["clinician", "admin", "clinician"]),
        (Resource::ConsentTexts, ["viewer", "admin", "admin"]),
        (Resource::Bonds, ["viewer", "admin", "clinician"]),
        (Resource::Decisions, ["clinician", "admin", "admin"]),
        (Resource::OwnLogin, ["viewer", "admin", "viewer"]),
    ];

    #[test]
    fn every_resource_says_who_may_read_acknowledge_and_change_it() {
        assert_eq!(TOLD.map(|(resource, _)| resource), Resource::ALL);
        for (resource, roles) in TOLD {
            for (action, role) in [Action::Read, Action::Acknowledge, Action::Change].into_iter().zip(roles) {
                assert_eq!(lowest_role(action, resource).as_str(), role, "{action:?} {resource:?}");
            }
        }
    }

    #[test]
    fn a_role_may_what_the_lowest_may_and_no_lower_one_may() {
        let member =
            |role| Member { id: Uuid::nil(), tenant: Uuid::nil(), role, session: Uuid::nil(), expires_us: 0 };
        for resource in Resource::ALL {
            for action in [Action::Read, Action::Acknowledge, Action::Change] {
                for role in [Role::Viewer, Role::Clinician, Role::Admin] {
                    let may = authorize(&member(role), action, resource).is_ok();
                    assert_eq!(may, role >= lowest_role(action, resource));
                }
            }
        }
    }
}
