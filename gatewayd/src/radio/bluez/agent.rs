//! Our agent: who may pair, and with which number.
//!
//! The promise: it answers `RequestPasskey` for the one device that a person is pairing, once, and refuses every
//! other request of every device: no PIN, no confirmation, no authorization. Whether it was asked is kept, for a bond
//! that came about without asking proves nothing.

use std::sync::{Arc, Mutex};

use bluer::Address;
use bluer::agent::{ReqError, RequestPasskey};
use futures_util::future::BoxFuture;

use super::super::PasskeyProvider;

/// The agent. Clones are the same one.
#[derive(Clone, Default)]
pub struct Agent {
    expected: Arc<Mutex<Option<Expected>>>,
}

struct Expected {
    adapter: String,
    device: Address,
    passkey: Option<PasskeyProvider>,
    outcome: Asked,
}

/// How far a pairing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// BlueZ did not ask for a passkey.
    Never,
    /// It asked, and no answer was given yet.
    Pending,
    /// It got a number.
    Answered,
    /// It asked, and the person gave up.
    GaveUp,
}

/// A pairing that the agent answers for; it ends with this.
pub struct Question<'a> {
    agent: &'a Agent,
}

impl Agent {
    /// Expects one pairing, with this number; `None` expects one that asks for nothing.
    pub fn expect(&self, adapter: &str, device: Address, passkey: Option<PasskeyProvider>) -> Question<'_> {
        let expected = Expected { adapter: adapter.to_owned(), device, passkey, outcome: Asked::Never };
        *self.lock() = Some(expected);
        Question { agent: self }
    }

    /// As `bluer` registers it. What it has no function for, it refuses; with a passkey alone its capability is
    /// `KeyboardOnly`, so that a wearable without a keyboard must show or know its number.
    pub fn to_bluer(&self) -> bluer::agent::Agent {
        let agent = self.clone();
        bluer::agent::Agent {
            request_default: true,
            request_passkey: Some(Box::new(move |request| agent.answer(&request))),
            ..bluer::agent::Agent::default()
        }
    }

    fn answer(&self, request: &RequestPasskey) -> BoxFuture<'static, Result<u32, ReqError>> {
        let provider = {
            let mut expected = self.lock();
            expected
                .as_mut()
                .filter(|expected| expected.adapter == request.adapter && expected.device == request.device)
                .and_then(|expected| {
                    let provider = expected.passkey.take()?;
                    expected.outcome = Asked::Pending;
                    Some(provider)
                })
        };
        let Some(provider) = provider else {
            tracing::warn!(
                adapter = request.adapter, device = %request.device,
                "a device that nobody is pairing asked for a passkey; refused"
            );
            return Box::pin(std::future::ready(Err(ReqError::Rejected)));
        };
        let agent = self.clone();
        Box::pin(async move {
            let passkey = provider().await;
            if let Some(expected) = agent.lock().as_mut() {
                expected.outcome = if passkey.is_some() { Asked::Answered } else { Asked::GaveUp };
            }
            passkey.ok_or(ReqError::Rejected)
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Expected>> {
        self.expected.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Question<'_> {
    /// How far it came.
    pub fn asked(&self) -> Asked {
        self.agent.lock().as_ref().map_or(Asked::Never, |expected| expected.outcome)
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        *self.agent.lock() = None;
    }
}
