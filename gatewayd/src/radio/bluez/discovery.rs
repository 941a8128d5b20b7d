//! Discovery on and off: continuously while somebody is waited for, else with a duty cycle, never beside a
//! connection that is being made, and begun anew where it sticks.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zbus::zvariant::Value;

use super::Settings;
use super::adapter::{self, State};
use super::bus::{ADAPTER, Bus, adapter_path};
use super::objects::flag;
use super::proof::Linkd;
use super::traps::{Meaning, Trouble};
use crate::radio::AdapterId;

/// Failures in a row after which the adapter is reset.
const RESET_AFTER: u32 = 3;
/// Failures in a row after which this scan ends and the adapters are listed anew.
const END_AFTER: u32 = 6;
/// How soon `Discovering` must be true.
const BEGINS_WITHIN: Duration = Duration::from_secs(3);

/// What the one who listens tells the one who steers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Somebody is waited for: no pauses.
    pub eager: bool,
    /// The adapter hears nothing although it should: counted up for each reset that is asked for.
    pub resets: u32,
}

/// Keeps one adapter's discovery as wanted until `over`.
pub struct Discovery {
    pub settings: Arc<Settings>,
    pub bus: Arc<Bus>,
    pub adapter: AdapterId,
    pub state: Arc<State>,
    pub wanted: watch::Receiver<Wanted>,
    pub over: CancellationToken,
    pub linkd: Linkd,
}

impl Discovery {
    /// Runs until `over`, which it cancels itself when the adapter cannot be brought to discover.
    pub async fn run(mut self) {
        let over = self.over.clone();
        let gone = self.bus.gone.clone();
        tokio::select! {
            () = over.cancelled() => {
                // On our own accord: what was begun is ended.
                if let Err(trouble) = self.stop().await {
                    tracing::debug!(adapter = %self.adapter, %trouble, "discovery was not stopped");
                }
            }
            () = gone.cancelled() => {}
            () = self.cycle() => {}
        }
        self.state.scanning.send_replace(false);
        over.cancel();
    }

    async fn cycle(&mut self) {
        let mut busy = self.state.busy.subscribe();
        let mut window = self.state.window.subscribe();
        let mut failures = 0;
        let mut resets = self.wanted.borrow().resets;
        loop {
            if *busy.borrow_and_update() > 0 {
                if busy.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let wanted = *self.wanted.borrow_and_update();
            if wanted.resets != resets {
                resets = wanted.resets;
                self.reset().await;
            }
            let open = *window.borrow_and_update();
            self.state.scanning.send_replace(true);
            let started = self.start(open).await;
            self.state.scanning.send_replace(started.is_ok());
            match started {
                Ok(()) => failures = 0,
                Err(trouble) => {
                    failures += 1;
                    tracing::warn!(adapter = %self.adapter, %trouble, failures, "discovery does not begin");
                    match failures {
                        RESET_AFTER => self.reset().await,
                        END_AFTER.. => return,
                        _ => {}
                    }
                    let pause = self.settings.retry.mul_f64(rand::rng().random_range(0.5..1.5));
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            let until = Instant::now() + self.settings.scan_on;
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = busy.wait_for(|busy| *busy > 0) => {}
                _ = window.changed() => {}
                _ = self.wanted.wait_for(|now| now.resets != resets) => {}
            }
            if let Err(trouble) = self.stop().await {
                tracing::debug!(adapter = %self.adapter, %trouble, "discovery had ended");
            }
            self.state.scanning.send_replace(false);
            let idle = !wanted.eager && !*window.borrow() && Instant::now() >= until;
            if idle {
                tokio::select! {
                    () = tokio::time::sleep(self.settings.scan_off) => {}
                    _ = window.changed() => {}
                    _ = self.wanted.wait_for(|now| now.eager || now.resets != resets) => {}
                }
            }
        }
    }

    async fn start(&self, open: bool) -> Result<(), Trouble> {
        let path = adapter_path(&self.adapter);
        let mut filter = std::collections::HashMap::from([("Transport", Value::from("le"))]);
        if open {
            // In a window each offer counts, also one like the last.
            filter.insert("DuplicateData", Value::from(true));
        }
        self.bus.method(&path, ADAPTER, "SetDiscoveryFilter", &(filter,)).await?;
        match self.bus.method(&path, ADAPTER, "StartDiscovery", &()).await {
            Err(trouble) if trouble.meaning() == Meaning::Busy => {
                // Stuck in an earlier one of ours.
                self.stop().await?;
                self.bus.method(&path, ADAPTER, "StartDiscovery", &()).await?;
            }
            other => drop(other?),
        }
        let began = Instant::now();
        while began.elapsed() < BEGINS_WITHIN {
            let properties = self.bus.properties(&path, ADAPTER).await?;
            if flag(&properties, "Discovering") == Some(true) {
                return Ok(());
            }
            if flag(&properties, "Powered") == Some(false) {
                return Err(Trouble::Said { name: "NotReady".to_owned(), text: "it is off".to_owned() });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Trouble::Slow("discovery"))
    }

    async fn stop(&self) -> Result<(), Trouble> {
        self.bus.method(&adapter_path(&self.adapter), ADAPTER, "StopDiscovery", &()).await.map(drop)
    }

    /// Off and on again: by the helper, which can do so below bluetoothd, else by bluetoothd.
    async fn reset(&self) {
        tracing::warn!(adapter = %self.adapter, "the adapter is reset");
        if self.linkd.reset(&self.adapter).await {
            return;
        }
        for on in [false, true] {
            if let Err(trouble) = adapter::power(&self.bus, &self.adapter, on).await {
                tracing::warn!(adapter = %self.adapter, %trouble, on, "its power could not be switched");
            }
        }
    }
}
