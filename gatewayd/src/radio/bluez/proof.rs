//! What only the helper with CAP_NET_ADMIN knows: what kind of key a pairing made, how strong a link is.
//!
//! Without the helper nothing is guessed: strength is unknown, and a key counts for nothing (unless the
//! configuration says that no proof is asked for).

use std::time::Duration;

use kinara_linkd::client::{Client, KeyWatch};
use kinara_linkd::packet::AddressKind;

use super::adapter::Identity;
use crate::radio::{AdapterId, RadioError};

/// The helper.
#[derive(Debug, Clone)]
pub struct Linkd(Client);

/// The keys that are made from now on.
pub struct Witness(KeyWatch);

impl Linkd {
    /// At this socket.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// The signal strength of a link.
    pub async fn rssi_dbm(&self, adapter: &AdapterId, identity: &Identity) -> Option<i16> {
        let kind = if identity.random { AddressKind::Random } else { AddressKind::Public };
        match self.0.rssi(&adapter.0, &identity.peer.to_string(), kind).await {
            Ok(rssi) => rssi.map(i16::from),
            Err(error) => {
                tracing::debug!(%adapter, peer = %identity.peer, %error, "the signal strength is unknown");
                None
            }
        }
    }

    /// Resets an adapter; false when the helper could not.
    pub async fn reset(&self, adapter: &AdapterId) -> bool {
        match self.0.reset(&adapter.0).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%adapter, %error, "the helper did not reset it");
                false
            }
        }
    }

    /// Watches for keys; begun before a pairing, so that none is missed.
    pub async fn watch_keys(&self) -> Result<Witness, RadioError> {
        let watch = self.0.watch_keys().await;
        watch
            .map(Witness)
            .map_err(|error| RadioError::Adapter(format!("the kind of a new key cannot be proven: {error}")))
    }
}

impl Witness {
    /// Whether the key just made with this peer is an authenticated one of LE Secure Connections. Waits `limit` for
    /// the word of the kernel.
    pub async fn judge(
        &mut self,
        adapter: &AdapterId,
        peer: bluer::Address,
        limit: Duration,
    ) -> Result<(), RadioError> {
        let key = self
            .0
            .key_of(&adapter.0, &peer.to_string(), limit)
            .await
            .map_err(|error| RadioError::NotAuthenticated(error.to_string()))?;
        let why = if key.is_good() {
            return Ok(());
        } else if !key.secure_connections {
            "its key is of the old pairing, not of LE Secure Connections".to_owned()
        } else if !key.authenticated {
            "its key was made without a passkey".to_owned()
        } else {
            format!("its key has {} bytes, not 16", key.key_bytes)
        };
        Err(RadioError::NotAuthenticated(why))
    }
}
