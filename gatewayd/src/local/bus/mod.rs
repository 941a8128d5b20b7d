//! The desk on D-Bus: `org.kinara.Gateway1`, for `kinaractl` and whatever else an operator writes.
//!
//! The promise: whoever the bus lets through is named by their Unix account in what they decide; every refusal is a named
//! D-Bus error that says what to do; a caller can make the daemon hold only so much; and a bus that is not there, or
//! goes, costs nothing but this service until it is back. Who is let through is the bus's policy
//! (`packaging/dbus/org.kinara.Gateway1.conf`).

mod account;
pub mod error;
mod interface;
pub mod plan;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kinara_clock::Clock;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zbus::fdo::DBusProxy;
use zbus::object_server::InterfaceRef;

use crate::align::source::Forget;
use crate::desk::Desk;
use crate::local::box_page::BoxPage;
use interface::Gateway;

pub use error::BusError;

/// The name that the daemon owns.
pub const NAME: &str = "org.kinara.Gateway1";
/// The one object.
pub const PATH: &str = "/org/kinara/Gateway";

/// How long the bus may take to let us in, and to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The first pause before the bus is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest pause.
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// Messages that wait in the connection; the bus holds back the rest.
const QUEUED: usize = 32;

/// What is done about the clock.
#[derive(Clone)]
pub struct Timekeeping {
    /// Has the last known time forgotten.
    pub forget: Forget,
    /// Holds the audit, once there is a page.
    pub page: watch::Receiver<Option<BoxPage>>,
}

/// Serves until `stop`, on whatever bus `DBUS_SYSTEM_BUS_ADDRESS` names, else the machine's own.
pub async fn run(desk: Desk, clock: Arc<dyn Clock>, times: Timekeeping, stop: CancellationToken) {
    let mut pause = AGAIN;
    let mut told = false;
    loop {
        let served = tokio::select! {
            () = stop.cancelled() => return,
            served = serve(&desk, &clock, &times, &stop) => served,
        };
        match served {
            Ok(()) if stop.is_cancelled() => return,
            Ok(()) => {
                tracing::warn!("the bus has gone; kinaractl does not reach this daemon until it is back");
                (pause, told) = (AGAIN, true);
            }
            Err(error) if !told => {
                tracing::warn!(%error, "not on the bus; kinaractl does not reach this daemon, the rest goes on");
                told = true;
            }
            Err(error) => tracing::debug!(%error, "still not on the bus"),
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered) => {}
        }
        pause = (pause * 2).min(AGAIN_MOST);
    }
}

/// Serves on one connection; ends with `Ok` when it ends or the name is lost.
async fn serve(
    desk: &Desk,
    clock: &Arc<dyn Clock>,
    times: &Timekeeping,
    stop: &CancellationToken,
) -> zbus::Result<()> {
    let build = zbus::connection::Builder::system()?
        .max_queued(QUEUED)
        .method_timeout(ANSWER)
        .serve_at(PATH, Gateway::new(desk.clone(), clock.clone(), times.clone()))?
        .name(NAME)?
        .build();
    let connection =
        timeout(ANSWER, build).await.map_err(|_| zbus::Error::Failure("no answer".to_owned()))??;
    let bus = DBusProxy::new(&connection).await?;
    let mut lost = bus.receive_name_lost_with_args(&[(0, NAME)]).await?;
    let service: InterfaceRef<Gateway> = connection.object_server().interface(PATH).await?;
    tracing::info!(name = NAME, "on the bus");
    let mut window = desk.window();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = window.changed() => {
                if changed.is_err() {
                    break;
                }
                let state = wire::Window::of(&window.borrow_and_update(), clock.as_ref()).state;
                // No names and no keys: the signal says that there is something to ask about.
                if let Err(error) = Gateway::window_changed(service.signal_emitter(), &state).await {
                    tracing::debug!(%error, "the signal was not sent");
                }
            }
            // Ends with the connection, too.
            _ = lost.next() => break,
        }
    }
    Ok(())
}
