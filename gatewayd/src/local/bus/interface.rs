//! The interface: each method checks what it was given, names who asks, and hands on to the desk.

use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::entry;
use kinara_protocol::label::LabelSecret;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;
use zbus::fdo::DBusProxy;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, interface};

use super::account;
use super::error::BusError;
use super::plan::{Interval, Plan};
use super::{Timekeeping, wire};
use crate::desk::{Actor, Code, ConsentGiven, Desk, Log, Wearer};
use crate::hardware::HardwareId;
use crate::radio::window::Window;
use crate::store::{Name, StoreError};

/// Calls that are waited for at once.
const MOST_CALLS: usize = 16;
/// The longest text that any argument may be, bytes.
const LONGEST: usize = 1_024;
/// Intervals in one call.
const MOST_INTERVALS: usize = 64;
/// A loop that has not turned for this long is told of.
const SILENT: Duration = Duration::from_secs(30);

/// The object at [`super::PATH`].
pub struct Gateway {
    desk: Desk,
    clock: Arc<dyn Clock>,
    times: Timekeeping,
    calls: Semaphore,
}

impl Gateway {
    pub(super) fn new(desk: Desk, clock: Arc<dyn Clock>, times: Timekeeping) -> Self {
        Self { desk, clock, times, calls: Semaphore::new(MOST_CALLS) }
    }

    fn admit(&self) -> Result<SemaphorePermit<'_>, BusError> {
        self.calls
            .try_acquire()
            .map_err(|_| BusError::new("busy", "The daemon works on as many calls as it takes. Try again."))
    }

    fn window_now(&self) -> Window {
        self.desk.window().borrow().clone()
    }
}

/// Org.kinara.Gateway1: what people do at the box.
#[interface(name = "org.kinara.Gateway1")]
impl Gateway {
    /// How the box does.
    fn status(&self) -> wire::Status {
        let roster = self.desk.roster().borrow().clone();
        wire::Status::of(&self.desk.board().now(), &roster, &self.window_now(), self.clock.as_ref())
    }

    /// The devices of this box.
    fn devices(&self) -> Vec<wire::Device> {
        self.desk.devices().into_iter().map(Into::into).collect()
    }

    /// Those who wear, or may.
    fn wearers(&self) -> Vec<wire::Wearer> {
        self.desk.roster().borrow().wearers.iter().map(Into::into).collect()
    }

    /// The texts that wearers are asked to agree to.
    fn consent_texts(&self) -> Vec<wire::ConsentText> {
        self.desk.roster().borrow().consent_texts.iter().map(Into::into).collect()
    }

    /// Where the pairing window stands.
    fn window(&self) -> wire::Window {
        wire::Window::of(&self.window_now(), self.clock.as_ref())
    }

    /// What is near and can be paired; nothing while the window is closed.
    fn nearby(&self) -> Vec<wire::Nearby> {
        match self.window_now() {
            Window::Open { nearby, .. } => nearby.iter().map(Into::into).collect(),
            _ => Vec::new(),
        }
    }

    /// Lets devices pair for some seconds.
    async fn open_window(
        &self,
        seconds: u32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        let by = actor(connection, &header).await?;
        Ok(self.desk.open_window(&by, Duration::from_secs(seconds.into()))?)
    }

    /// Ends that, and a pairing that is under way.
    async fn close_window(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        let by = actor(connection, &header).await?;
        self.desk.close_window(&by);
        Ok(())
    }

    /// Pairs one of those near. `method` is `label` (with the code on the label), `display` (the number that the device
    /// shows is asked for later, see `TypePasskey`) or `just_works` (a sensor of another maker, which proves nothing).
    /// Answers when the device is bonded and has said who it is.
    #[zbus(out_args("hardware"))]
    async fn pair(
        &self,
        key: &str,
        method: &str,
        code: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, BusError> {
        let _call = self.admit()?;
        let code = match method {
            "label" => Code::Label(label(code)?),
            "display" => Code::Display,
            "just_works" => Code::JustWorks,
            _ => return Err(BusError::argument("The method is label, display or just_works.")),
        };
        let key = bounded(key, "the device's key")?;
        let by = actor(connection, &header).await?;
        Ok(self.desk.pair(&by, key, code).await?.to_string())
    }

    /// The six digits that the device shows.
    async fn type_passkey(
        &self,
        passkey: u32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        if passkey > 999_999 {
            return Err(BusError::argument("The number has six digits."));
        }
        let by = actor(connection, &header).await?;
        Ok(self.desk.type_passkey(&by, passkey)?)
    }

    /// Gives a paired device to a wearer who agreed to a consent text of the roster. `wearer` is the id of somebody on the
    /// roster, or empty for somebody new, who is then called `new_name`. With `accept_loss` the former wearer's readings
    /// that are still on the device are given up. Answers with the wearer's id.
    #[zbus(out_args("user"))]
    #[allow(clippy::too_many_arguments, reason = "the signature on the bus")]
    async fn bind(
        &self,
        hardware: &str,
        wearer: &str,
        new_name: &str,
        consent_version: &str,
        consent_language: &str,
        asked_by: &str,
        accept_loss: bool,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, BusError> {
        let _call = self.admit()?;
        let hardware = device(hardware)?;
        let who = if wearer.is_empty() {
            Wearer::Provisional { display_name: bounded(new_name, "the wearer's name")?.to_owned() }
        } else {
            let id = Uuid::try_parse(wearer).map_err(|_| BusError::argument("The wearer's id is a UUID."))?;
            Wearer::Known(id)
        };
        let consent = self.consent(consent_version, consent_language, bounded(asked_by, "who asked")?)?;
        let by = actor(connection, &header).await?;
        let log = if accept_loss { Log::Format } else { Log::Drain };
        Ok(self.desk.bind(&by, &hardware, who, consent, log).await?.to_string())
    }

    /// Takes a device from its wearer.
    async fn unbind(
        &self,
        hardware: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        let hardware = device(hardware)?;
        let by = actor(connection, &header).await?;
        Ok(self.desk.unbind(&by, &hardware).await?)
    }

    /// Ends the bond with a device and takes it from its wearer.
    async fn forget(
        &self,
        hardware: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        let hardware = device(hardware)?;
        let by = actor(connection, &header).await?;
        Ok(self.desk.forget(&by, &hardware).await?)
    }

    /// Has a connected device show itself.
    async fn identify(
        &self,
        hardware: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        let hardware = device(hardware)?;
        let by = actor(connection, &header).await?;
        Ok(self.desk.identify(&by, &hardware).await?)
    }

    /// How often a wearable is to measure, and whether it does.
    fn plan(&self, hardware: &str) -> Result<Plan, BusError> {
        let hardware = device(hardware)?;
        Ok(Plan::of(&hardware, self.desk.intervals(&hardware)?))
    }

    /// Sets the intervals of some of its channels, 0 seconds for the reference plan's. A wearable that is away is told when it
    /// is back.
    async fn set_plan(
        &self,
        hardware: &str,
        intervals: Vec<Interval>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Plan, BusError> {
        let _call = self.admit()?;
        let hardware = device(hardware)?;
        if intervals.len() > MOST_INTERVALS {
            return Err(BusError::argument(format!("Set {MOST_INTERVALS} intervals at most.")));
        }
        let changes = intervals.iter().map(Interval::read).collect::<Result<Vec<_>, _>>()?;
        let by = actor(connection, &header).await?;
        self.desk.set_intervals(&by, &hardware, &changes).await?;
        Ok(Plan::of(&hardware, self.desk.intervals(&hardware)?))
    }

    /// What time it is, who says so, and what this box was sure of last.
    fn clock(&self) -> wire::Clock {
        wire::Clock::of(&self.desk.board().now().clock)
    }

    /// Has the last time that this box was sure of forgotten, for one that was wrong. It is in the audit, and is not
    /// done while there is none.
    async fn reset_clock(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let _call = self.admit()?;
        let by = actor(connection, &header).await?;
        // Nothing is done of which the audit would not know.
        let page = self.times.page.borrow().clone().ok_or_else(|| {
            let text = "The audit cannot be written yet. Try again; if this stays, look: kinaractl doctor";
            BusError::new("busy", text)
        })?;
        tracing::warn!(by = by.name(), "the last known time is to be forgotten");
        page.clock_was_reset(by.name()).await;
        let gone = |_| BusError::new("busy", "The daemon is stopping. Try again.");
        self.times.forget.send(()).await.map_err(gone)
    }

    /// The batches that the cloud could not read.
    async fn parked(&self) -> Result<Vec<wire::Parked>, BusError> {
        let _call = self.admit()?;
        Ok(self.desk.parked().await.map_err(not_read)?.into_iter().map(Into::into).collect())
    }

    /// Has them all tried again; how many there were.
    async fn retry_parked(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u32, BusError> {
        let _call = self.admit()?;
        let by = actor(connection, &header).await?;
        Ok(u32::try_from(self.desk.retry_parked(&by).await.map_err(not_read)?).unwrap_or(u32::MAX))
    }

    /// A copy of one of them, as it is published.
    async fn parked_payload(
        &self,
        kind: &str,
        buffer: u64,
        sequence: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<u8>, BusError> {
        let _call = self.admit()?;
        let by = actor(connection, &header).await?;
        let kind = wire::kind_of(kind).ok_or_else(|| BusError::argument("The kind is batch or event."))?;
        let found = self.desk.parked_payload(&by, Name { kind, buffer, sequence }).await.map_err(not_read)?;
        found.ok_or_else(|| BusError::new("not_parked", "No such batch is parked. See: kinaractl parked"))
    }

    /// What only the daemon can see of its health, for `kinaractl doctor`.
    fn checks(&self) -> Vec<wire::Finding> {
        let board = self.desk.board();
        let finding = |check: &str, state: &str, text: String, advice: &str| wire::Finding {
            check: check.to_owned(),
            state: state.to_owned(),
            text,
            advice: advice.to_owned(),
        };
        let silent = board.vitals().silent_for(SILENT);
        let mut found = vec![if silent.is_empty() {
            finding("loops", "ok", "all loops of the daemon turn".to_owned(), "")
        } else {
            let text = format!("these loops of the daemon do not turn: {}", silent.join(", "));
            finding("loops", "fail", text, "systemd's watchdog starts it anew; if it stays, restart the box")
        }];
        let now = board.now();
        found.push(wire::Clock::of(&now.clock).finding());
        for (subject, text) in now.alerts.into_iter().filter(|(subject, _)| subject != "clock") {
            found.push(finding(&subject, "warn", text, ""));
        }
        found
    }

    /// The pairing window changed: `closed`, `open`, `pairing`, `paired` or `failed`. Ask `Window` for the rest.
    #[zbus(signal)]
    pub(super) async fn window_changed(emitter: &SignalEmitter<'_>, state: &str) -> zbus::Result<()>;
}

impl Gateway {
    fn consent(&self, version: &str, language: &str, asked_by: &str) -> Result<ConsentGiven, BusError> {
        let roster = self.desk.roster();
        let roster = roster.borrow();
        let wanted = (as_shown(version), as_shown(language));
        let mut texts = roster.consent_texts.iter();
        let text = texts.find(|text| (as_shown(&text.version), as_shown(&text.language)) == wanted);
        let text = text.ok_or_else(|| {
            let there: Vec<String> = roster
                .consent_texts
                .iter()
                .map(|text| format!("{} {}", text.version, text.language))
                .collect();
            let there = if there.is_empty() { "none yet".to_owned() } else { there.join(", ") };
            BusError::new("other_consent_text", format!("There is no such consent text; there is: {there}."))
        })?;
        Ok(ConsentGiven {
            version: text.version.clone(),
            language: text.language.clone(),
            text_sha256: text.sha256(),
            asked_by: asked_by.to_owned(),
        })
    }
}

/// A version or a language as people compare it: in whatever digits, and without what cannot be seen.
fn as_shown(text: &str) -> String {
    entry::version(text).unwrap_or_else(|_| text.to_owned())
}

/// Who calls, by the bus's own word.
async fn actor(connection: &Connection, header: &Header<'_>) -> Result<Actor, BusError> {
    let unknown = || BusError::new("unknown_caller", "The bus does not say who is calling. Try again.");
    let sender = header.sender().ok_or_else(unknown)?.to_owned();
    let bus = DBusProxy::new(connection).await.map_err(|_| unknown())?;
    let uid = bus.get_connection_unix_user(sender.into()).await.map_err(|_| unknown())?;
    Ok(Actor::Operator { name: account::name(uid) })
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn not_read(error: StoreError) -> BusError {
    BusError::new("not_read", format!("The box's store: {error}. Look: kinaractl doctor"))
}

fn bounded<'a>(text: &'a str, what: &str) -> Result<&'a str, BusError> {
    if text.trim().is_empty() || text.len() > LONGEST {
        return Err(BusError::argument(format!("Please give {what}, of at most {LONGEST} bytes.")));
    }
    Ok(text)
}

fn device(text: &str) -> Result<HardwareId, BusError> {
    HardwareId::parse(bounded(text, "the device")?).map_err(|bad| BusError::argument(bad.to_string()))
}

fn label(code: &str) -> Result<LabelSecret, BusError> {
    bounded(code, "the code on the label")?.parse().map_err(|_| {
        BusError::argument(
            "The code on the label has 16 characters (A to Z, 2 to 7). Compare it and try again.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::as_shown;

    #[test]
    fn a_version_of_a_consent_text_is_found_in_whatever_digits_it_is_written() {
        assert_eq!(as_shown("\u{968}\u{966}\u{968}\u{96c}-1"), as_shown(" 2026-1\u{200B}"));
        assert_ne!(as_shown("2026-1"), as_shown("2026-2"));
    }
}
