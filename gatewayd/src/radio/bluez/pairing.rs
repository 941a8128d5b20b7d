//! Pairing: the promises of "Pairing and bonds".
//!
//! A bond counts only if our agent answered `RequestPasskey` in this very pairing, and the kernel says that the key
//! is an authenticated one of LE Secure Connections. Otherwise the device is removed and [`RadioError::NotAuthenticated`]
//! says so. A device that BlueZ has keys of already is never paired again in silence.

use std::sync::Arc;

use bluer::Address;
use zbus::zvariant::Value;

use super::Inner;
use super::adapter::{self, Identity, State};
use super::agent::{Asked, Question};
use super::bus::{Bus, DEVICE};
use super::objects::{flag, text};
use super::proof::Witness;
use super::traps::{Meaning, Trouble};
use crate::radio::{AdapterId, Agreement, Bond, RadioError, Sighting};

/// Pairs with what was seen.
pub async fn pair(
    radio: &Inner,
    bus: &Arc<Bus>,
    id: &AdapterId,
    sighting: &Sighting,
    agreement: Agreement,
) -> Result<Bond, RadioError> {
    let state = radio.state(id);
    // The agent answers for one pairing at a time.
    let _alone = radio.pairing.lock().await;
    let quiet = state.quiet();
    quiet.fallen().await;
    let address: Address = sighting
        .address
        .parse()
        .map_err(|_| RadioError::Nonsense(format!("{:?} is no address", sighting.address)))?;
    let wants_passkey = matches!(agreement, Agreement::Passkey(_));
    let witness = match (wants_passkey, radio.settings.require_key_proof) {
        (true, true) => Some(radio.linkd.watch_keys().await?),
        _ => None,
    };
    let passkey = match agreement {
        Agreement::Passkey(provider) => Some(provider),
        Agreement::JustWorks => None,
    };
    let pairing = Pairing { radio, bus, id, address, device: device(bus, id, address)? };
    if flag(&pairing.properties().await?, "Paired") == Some(true) {
        return Err(pairing.paired_already().await);
    }
    let question = bus.agent.expect(&id.0, address, passkey);
    adapter::pairable(bus, id, true).await?;
    let result = pairing.run(&question, wants_passkey, witness).await;
    pairing.close(&state, &result).await;
    result
}

struct Pairing<'a> {
    radio: &'a Inner,
    bus: &'a Arc<Bus>,
    id: &'a AdapterId,
    address: Address,
    device: bluer::Device,
}

impl Pairing<'_> {
    async fn run(
        &self,
        question: &Question<'_>,
        wants_passkey: bool,
        witness: Option<Witness>,
    ) -> Result<Bond, RadioError> {
        let paired = tokio::select! {
            result = tokio::time::timeout(self.radio.settings.pair, self.device.pair()) => match result {
                Ok(result) => result.map_err(Trouble::from),
                Err(_) => Err(Trouble::Slow("pairing")),
            },
            () = self.bus.gone.cancelled() => Err(Trouble::Bus("bluetoothd has gone".to_owned())),
        };
        if let Err(trouble) = paired {
            tracing::info!(adapter = %self.id, %trouble, asked = ?question.asked(), "not paired");
            return Err(failure(&trouble, question.asked()));
        }
        if wants_passkey && question.asked() != Asked::Answered {
            return Err(RadioError::NotAuthenticated("it took no code".to_owned()));
        }
        self.judge(witness).await
    }

    /// Whether what came about is a bond that counts.
    async fn judge(&self, witness: Option<Witness>) -> Result<Bond, RadioError> {
        let properties = self.properties().await?;
        let identity = Identity {
            adapter: self.radio.address(self.bus, self.id).await?,
            peer: text(&properties, "Address").and_then(|text| text.parse().ok()).unwrap_or(self.address),
            random: text(&properties, "AddressType") == Some("random"),
        };
        let no_bond = flag(&properties, "Bonded") == Some(false) || flag(&properties, "Paired") != Some(true);
        if no_bond {
            return Err(RadioError::NotAuthenticated("it kept no bond".to_owned()));
        }
        if let Some(mut witness) = witness {
            witness.judge(self.id, identity.peer, self.radio.settings.key_wait).await?;
        }
        Ok(identity.bond())
    }

    /// Leaves no link behind, and nothing at all of a pairing that failed.
    async fn close(&self, state: &State, result: &Result<Bond, RadioError>) {
        let open = *state.window.borrow();
        if !open && let Err(trouble) = adapter::pairable(self.bus, self.id, false).await {
            tracing::warn!(adapter = %self.id, %trouble, "the adapter stays pairable");
        }
        let ended = match result {
            Ok(_) => {
                let path = super::link::device_path(self.id, self.address);
                if let Err(trouble) = self.bus.set(&path, DEVICE, "Trusted", Value::from(true)).await {
                    tracing::warn!(adapter = %self.id, %trouble, "the new bond is not marked as trusted");
                }
                super::link::disconnect(&self.device, self.radio.settings.disconnect).await
            }
            Err(_) => self.remove().await,
        };
        if let Err(trouble) = ended {
            tracing::debug!(adapter = %self.id, %trouble, "after a pairing");
        }
    }

    /// BlueZ holds keys of it. If this gateway does too, one of the two sides is stale; else they are of nobody.
    async fn paired_already(&self) -> RadioError {
        let peer = self.device.remote_address().await.unwrap_or(self.address);
        if self.radio.hardware_of(peer).is_some() {
            return RadioError::StaleBond;
        }
        match self.remove().await {
            Ok(()) => RadioError::Refused(
                "this machine held an old bond with it, which is removed now; try again".to_owned(),
            ),
            Err(trouble) => trouble.into(),
        }
    }

    async fn remove(&self) -> Result<(), Trouble> {
        let adapter = self.bus.session.adapter(&self.id.0)?;
        match self.bus.limited("removing", adapter.remove_device(self.address)).await {
            Err(trouble) if trouble.meaning() == Meaning::Absent => Ok(()),
            other => other,
        }
    }

    async fn properties(&self) -> Result<super::bus::Properties, RadioError> {
        let path = super::link::device_path(self.id, self.address);
        match self.bus.properties(&path, DEVICE).await {
            Ok(properties) => Ok(properties),
            Err(Trouble::Bus(_)) if !self.bus.gone.is_cancelled() => Err(RadioError::TooFar),
            Err(trouble) => Err(trouble.into()),
        }
    }
}

fn device(bus: &Bus, id: &AdapterId, address: Address) -> Result<bluer::Device, RadioError> {
    let device = bus.session.adapter(&id.0).and_then(|adapter| adapter.device(address));
    device.map_err(|error| Trouble::from(error).into())
}

/// What a failed pairing means to the person.
fn failure(trouble: &Trouble, asked: Asked) -> RadioError {
    match (trouble.meaning(), asked) {
        (_, Asked::GaveUp) => RadioError::Refused("no code was typed".to_owned()),
        (Meaning::PairingFailed | Meaning::PairingCanceled | Meaning::BrokeOff, Asked::Answered) => {
            RadioError::WrongCode
        }
        // It would not even talk about codes.
        (Meaning::PairingFailed, Asked::Never) => RadioError::WindowClosed,
        (_, Asked::Pending) => RadioError::Timeout("no code was typed in time"),
        (Meaning::BrokeOff | Meaning::Absent | Meaning::PairingCanceled, Asked::Never) => RadioError::TooFar,
        _ if *trouble == Trouble::Slow("pairing") => RadioError::Timeout("pairing"),
        _ => trouble.clone().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str) -> Trouble {
        Trouble::Said { name: name.to_owned(), text: String::new() }
    }

    #[test]
    fn a_failed_pairing_says_what_a_person_can_do_about_it() {
        for (trouble, asked, error) in [
            (said("AuthenticationFailed"), Asked::Answered, RadioError::WrongCode),
            (said("AuthenticationFailed"), Asked::Never, RadioError::WindowClosed),
            (said("ConnectionAttemptFailed"), Asked::Never, RadioError::TooFar),
            (said("NotFound"), Asked::Never, RadioError::TooFar),
            (
                said("AuthenticationRejected"),
                Asked::GaveUp,
                RadioError::Refused("no code was typed".to_owned()),
            ),
            (Trouble::Slow("pairing"), Asked::Never, RadioError::Timeout("pairing")),
        ] {
            assert_eq!(failure(&trouble, asked), error, "{trouble} {asked:?}");
        }
    }
}
