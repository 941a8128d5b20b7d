//! The wearable on the air: answers gateways, carries the application's bytes, obeys commands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kinara_clock::Clock;
use kinara_firmware_app::app::Effect;
use kinara_protocol::control::{Outcome, Refusal};
use kinara_protocol::frame::{MAX_FRAME, ResetReason};
use kinara_protocol::gatt;
use kinara_virtual_radio::{ATT_MTU, Advertisement, Characteristic, FromWearable, ToWearable};
use serde_json::{Value, json};

use crate::air::{Event, Outbox};
use crate::commands;
use crate::link::{Faults, Link};
use crate::pairing::Pairing;
use crate::wearable::{Wearable, WearableError};

/// The longest sleep: signals are looked for at least so often.
const MAX_SLEEP: Duration = Duration::from_millis(250);
/// Events taken in one go before the wearable measures again.
const MAX_BURST: usize = 256;
const RSSI_DBM: i8 = -58;

/// See the module's text.
pub struct Station {
    name: String,
    clock: Arc<dyn Clock>,
    wearable: Wearable,
    pairing: Pairing,
    faults: Faults,
    link: Option<Link>,
    connections: HashMap<u64, Outbox>,
}

impl Station {
    /// A wearable that nobody is connected to.
    pub fn new(name: String, clock: Arc<dyn Clock>, wearable: Wearable, pairing: Pairing) -> Self {
        Self {
            name,
            clock,
            wearable,
            pairing,
            faults: Faults::default(),
            link: None,
            connections: HashMap::new(),
        }
    }

    /// Lives until `ended` is set.
    pub fn run(&mut self, events: &Receiver<Event>, ended: &AtomicBool) -> Result<(), WearableError> {
        while !ended.load(Ordering::SeqCst) {
            match events.recv_timeout(self.sleep()) {
                Ok(event) => {
                    self.take(event)?;
                    for event in events.try_iter().take(MAX_BURST) {
                        self.take(event)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.step()?;
        }
        self.drop_link()?;
        self.wearable.shut_down()
    }

    fn sleep(&self) -> Duration {
        let behind_us = self.wearable.next_step_us() - self.clock.utc_us();
        let real_us = (behind_us.max(0) as f64 / self.clock.rate()) as u64;
        let mut sleep = Duration::from_micros(real_us + 50).min(MAX_SLEEP);
        if let Some(deadline) = self.faults.deadline() {
            sleep = sleep.min(deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        }
        sleep
    }

    fn step(&mut self) -> Result<(), WearableError> {
        let utc_us = self.clock.utc_us();
        if utc_us >= self.wearable.next_step_us() {
            self.wearable.run_to(utc_us)?;
        }
        let now = Instant::now();
        if let Some(link) = &self.link {
            self.faults.step(link, now);
        }
        self.release_held(now)?;
        self.pump(now)?;
        while let Some(effect) = self.wearable.app().take_effect() {
            match effect {
                Effect::Identify => eprintln!("{}: blinks", self.name),
                Effect::Reset => self.reset()?,
                // The virtual air has neither introductions nor addresses: its bonds are the names of gateways.
                Effect::Admit { request, .. } | Effect::Revoke { request, .. } => {
                    let refused = Outcome::Refused(Refusal::UnknownOperation);
                    self.wearable.app().reply(request, refused);
                    self.pump(now)?;
                }
                Effect::Update { request, ask } => {
                    let (outcome, installs) = self.wearable.update(&ask);
                    self.wearable.app().reply(request, outcome);
                    self.pump(now)?;
                    if installs {
                        self.wearable.shut_down()?;
                        self.reset()?;
                    }
                }
            }
        }
        if let Some(reason) = self.wearable.prove_firmware()? {
            self.reset_for(reason)?;
        }
        self.wearable.flush()
    }

    fn reset(&mut self) -> Result<(), WearableError> {
        self.reset_for(ResetReason::Requested)
    }

    fn reset_for(&mut self, reason: ResetReason) -> Result<(), WearableError> {
        // The reply to the command that asks for it goes out first.
        self.pump(Instant::now())?;
        if let Some(link) = &self.link {
            link.outbox().finish();
        }
        self.link = None;
        self.faults.link_lost();
        let utc_us = self.clock.utc_us();
        self.wearable.reset_for(utc_us, reason)?;
        eprintln!("{}: reset; epoch {}", self.name, self.wearable.app().epoch());
        Ok(())
    }

    fn drop_link(&mut self) -> Result<(), WearableError> {
        if let Some(link) = self.link.take() {
            link.outbox().cut();
            self.faults.link_lost();
            if link.authenticated {
                self.wearable.app().disconnected()?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), WearableError> {
        match event {
            Event::Opened(connection, outbox) => {
                self.connections.insert(connection, outbox);
            }
            Event::Closed(connection) => {
                self.connections.remove(&connection);
                if self.link.as_ref().is_some_and(|link| link.connection == connection) {
                    self.drop_link()?;
                }
            }
            Event::Room => {}
            Event::Message(connection, message) => self.message(connection, message)?,
            Event::Command(command, answers) => {
                let answer = self.command(&command)?;
                // The harness may have gone away; that is its business.
                let _ = answers.send(answer);
            }
        }
        Ok(())
    }

    fn message(&mut self, connection: u64, message: ToWearable) -> Result<(), WearableError> {
        let now = Instant::now();
        if let Some(link) = self.link.as_mut().filter(|link| link.connection == connection) {
            let must_wait =
                self.faults.is_stalled(now) || link.has_held() || !self.wearable.app().takes_requests();
            if !must_wait {
                return self.on_link(message, now);
            }
            if !link.hold(message) {
                eprintln!("{}: the link to {} stood still for too long", self.name, link.gateway);
                return self.drop_link();
            }
            return Ok(());
        }
        let Some(outbox) = self.connections.get(&connection).cloned() else { return Ok(()) };
        match message {
            ToWearable::Scan { gateway } => self.scanned(&gateway, &outbox, now),
            ToWearable::Connect { gateway, bond } => {
                if !self.faults.hears(&gateway) {
                    outbox.finish();
                } else if let Some(link) = &self.link {
                    refuse(&outbox, &format!("linked to {}", link.gateway));
                } else if bond.is_some_and(|bond| !self.pairing.knows(&bond)) {
                    refuse(&outbox, "this bond is not known here; pair again");
                } else if bond.is_none() && !self.pairing.is_open(now) {
                    refuse(&outbox, "the pairing window is closed");
                } else {
                    if bond.is_some() {
                        self.wearable.app().connected();
                    }
                    outbox.send(&FromWearable::Connected { mtu: ATT_MTU });
                    self.link = Some(Link::new(connection, gateway, bond.is_some(), outbox));
                }
            }
            ToWearable::Disconnect => outbox.finish(),
            ToWearable::Pair { .. }
            | ToWearable::Write { .. }
            | ToWearable::Subscribe { .. }
            | ToWearable::ReadStatus => refuse(&outbox, "not connected"),
        }
        Ok(())
    }

    fn scanned(&mut self, gateway: &str, outbox: &Outbox, now: Instant) {
        if !self.faults.hears(gateway) {
            outbox.finish();
            return;
        }
        let (window_open, nonce) = self.pairing.scanned(gateway, now);
        outbox.send(&FromWearable::Advertisement(Advertisement {
            factory_id: self.wearable.factory_id(),
            name: if window_open { self.name.clone() } else { String::new() },
            rssi_dbm: RSSI_DBM,
            window_open,
            nonce,
            connectable: self.link.is_none(),
        }));
    }

    /// A message on the link that is held by its sender.
    fn on_link(&mut self, message: ToWearable, now: Instant) -> Result<(), WearableError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let outbox = link.outbox().clone();
        match message {
            ToWearable::Scan { gateway } => self.scanned(&gateway, &outbox, now),
            ToWearable::Disconnect => {
                outbox.finish();
                return self.drop_link_in_order();
            }
            ToWearable::Connect { .. } => refuse(&outbox, "already connected"),
            ToWearable::Pair { .. } if link.authenticated => refuse(&outbox, "already paired"),
            ToWearable::Pair { passkey } => {
                let Some(bond) = self.pairing.attempt(&link.gateway, passkey, now)? else {
                    refuse(&outbox, "the passkey is wrong, or the pairing window is closed");
                    outbox.finish();
                    return self.drop_link_in_order();
                };
                link.authenticated = true;
                self.wearable.app().connected();
                outbox.send(&FromWearable::Paired { bond });
            }
            _ if !link.authenticated => refuse(&outbox, "the link is not authenticated; pair first"),
            ToWearable::Write { characteristic: Characteristic::Control, bytes } => {
                outbox.send(&FromWearable::WriteDone);
                let ticks = self.wearable.ticks(self.clock.utc_us());
                let (app, oracle) = self.wearable.app_and_oracle();
                app.write(&bytes, ticks, oracle);
                self.pump(now)?;
            }
            ToWearable::Write { .. } => refuse(&outbox, "this characteristic cannot be written"),
            ToWearable::Subscribe { characteristic, on } => {
                self.wearable.app().subscribe(to_gatt(characteristic), on);
                outbox.send(&FromWearable::Subscribed);
            }
            ToWearable::ReadStatus => {
                let ticks = self.wearable.ticks(self.clock.utc_us());
                let status = self.wearable.app().status(ticks)?;
                outbox.send(&FromWearable::Status { bytes: status.encode().to_vec() });
            }
        }
        Ok(())
    }

    fn drop_link_in_order(&mut self) -> Result<(), WearableError> {
        self.faults.link_lost();
        if self.link.take().is_some_and(|link| link.authenticated) {
            self.wearable.app().disconnected()?;
        }
        Ok(())
    }

    fn release_held(&mut self, now: Instant) -> Result<(), WearableError> {
        while !self.faults.is_stalled(now) && self.wearable.app().takes_requests() {
            let Some(message) = self.link.as_mut().and_then(Link::take_held) else { break };
            self.on_link(message, now)?;
        }
        Ok(())
    }

    /// Sends what the application has, for as long as the link takes it.
    fn pump(&mut self, now: Instant) -> Result<(), WearableError> {
        let Some(link) = &self.link else { return Ok(()) };
        if self.faults.is_stalled(now) {
            return Ok(());
        }
        let ticks = self.wearable.ticks(self.clock.utc_us());
        let mut bytes = [0; MAX_FRAME];
        while link.outbox().has_room() {
            let (app, oracle) = self.wearable.app_and_oracle();
            let Some((characteristic, len)) = app.outgoing(ticks, &mut bytes, oracle)? else { break };
            let characteristic = from_gatt(characteristic);
            let bytes = bytes[..len].to_vec();
            let message = if characteristic == Characteristic::Control {
                FromWearable::Indicate { characteristic, bytes }
            } else {
                FromWearable::Notify { characteristic, bytes }
            };
            self.faults.send(link, message, now);
        }
        Ok(())
    }

    fn command(&mut self, command: &Value) -> Result<Value, WearableError> {
        let now = Instant::now();
        let number = |key| commands::number(command, key);
        if let Some(answer) = commands::obey_about_body(&mut self.wearable, command, self.clock.utc_us())? {
            return Ok(answer);
        }
        let answer = match command.get("do").and_then(Value::as_str) {
            Some("status") => return self.report(),
            Some("drop") => {
                self.drop_link()?;
                json!({"ok": true})
            }
            Some("stall") => {
                self.faults.stall(now + Duration::from_secs_f64(commands::seconds(command)));
                json!({"ok": true})
            }
            Some("reorder") => {
                self.faults.reorder(number("notifications").min(10_000) as usize);
                json!({"ok": true})
            }
            Some("lose") => {
                self.faults.lose(number("notifications"));
                json!({"ok": true})
            }
            Some("hear") => {
                let names = command.get("gateways").and_then(Value::as_array);
                let names: Option<HashSet<String>> =
                    names.map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect());
                self.faults.hear(names);
                if self.link.as_ref().is_some_and(|link| !self.faults.hears(&link.gateway)) {
                    self.drop_link()?;
                }
                json!({"ok": true})
            }
            Some("reboot") => {
                self.drop_link()?;
                self.reset()?;
                json!({"ok": true, "epoch": self.wearable.app().epoch().to_string()})
            }
            Some("button") => {
                self.pairing.press_button(now);
                json!({"ok": true})
            }
            _ => {
                json!({"ok": false, "error": "\"do\" is one of drop, stall, reorder, lose, hear, reboot, status, \
                 stop, hot_flash, wear, button"})
            }
        };
        Ok(answer)
    }

    fn report(&mut self) -> Result<Value, WearableError> {
        let mut report = commands::report(&mut self.wearable, self.clock.utc_us())?;
        report["linked"] = self.link.as_ref().map(|link| link.gateway.clone()).into();
        Ok(report)
    }
}

fn refuse(outbox: &Outbox, reason: &str) {
    outbox.send(&FromWearable::Refused { reason: reason.to_owned() });
}

fn to_gatt(characteristic: Characteristic) -> gatt::Characteristic {
    match characteristic {
        Characteristic::Stream => gatt::Characteristic::Stream,
        Characteristic::Backlog => gatt::Characteristic::Backlog,
        Characteristic::Control => gatt::Characteristic::Control,
        Characteristic::Status => gatt::Characteristic::Status,
    }
}

fn from_gatt(characteristic: gatt::Characteristic) -> Characteristic {
    match characteristic {
        gatt::Characteristic::Stream => Characteristic::Stream,
        gatt::Characteristic::Backlog => Characteristic::Backlog,
        gatt::Characteristic::Control => Characteristic::Control,
        gatt::Characteristic::Status => Characteristic::Status,
    }
}
