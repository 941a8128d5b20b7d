//! The air: the one process in which boxes, wearables and other peers meet, and what can be done to them.

use crate::image::{air_packages, scripts};
use crate::{BedError, Result, file};
use kinara_clinic::{Launch, Process, Ready};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the air may take to answer: it is one thread, and may be busy carrying.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many events are kept.
const EVENTS: usize = 100_000;

/// Something that happened on the air.
#[derive(Debug, Clone)]
pub struct Event {
    /// When, seconds of the host's CLOCK_MONOTONIC.
    pub at: f64,
    /// To whom.
    pub device: String,
    /// `link`, `box`, `address`, `subscribed`, `paired`, `not_paired`, `measured`, `phone`, `stranger` or `collector`.
    pub kind: String,
    /// All that was said about it.
    pub told: Value,
}

/// A notification, as it went over the air.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
pub struct Notified(
    /// When, seconds of the host's CLOCK_MONOTONIC.
    pub f64,
    /// Of which attribute.
    pub u16,
    /// CRC-32 of what.
    pub u32,
);

/// How an impostor pretends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impostor {
    /// It has neither keys nor display, and asks for a pairing without any proof.
    JustWorks,
    /// It asks for the pairing of Bluetooth 4.0, with this number.
    Legacy(u32),
}

/// See the module.
#[derive(Debug)]
pub struct Air {
    process: Process,
    commands: Mutex<(UnixStream, Receiver<Value>)>,
    events: Arc<Mutex<VecDeque<Event>>>,
}

impl Air {
    /// Starts it; its socket lies in `folder`.
    pub fn start(folder: &Path, logs: &Path) -> Result<Self> {
        let socket = folder.join("air.sock");
        let _ = std::fs::remove_file(&socket);
        let launch = Launch::new("air", "python3", logs.join("air.log"))
            .args([scripts().join("air/air.py").display().to_string(), socket.display().to_string()])
            .env("PYTHONPATH", air_packages()?.display().to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .ready(Ready::Socket(socket.clone()));
        let mut process = Process::new(launch);
        process.start()?;
        let stream = UnixStream::connect(&socket).map_err(file(&socket))?;
        let reader = BufReader::new(stream.try_clone().map_err(file(&socket))?);
        let events = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, answers) = channel();
        let kept = Arc::clone(&events);
        std::thread::Builder::new()
            .name("air".to_owned())
            .spawn(move || {
                for line in reader.lines().map_while(std::io::Result::ok) {
                    let Ok(told) = serde_json::from_str::<Value>(&line) else { continue };
                    let Some(kind) = told["event"].as_str() else {
                        if sender.send(told).is_err() {
                            return;
                        }
                        continue;
                    };
                    let event = Event {
                        at: told["at"].as_f64().unwrap_or_default(),
                        device: told["device"].as_str().unwrap_or_default().to_owned(),
                        kind: kind.to_owned(),
                        told,
                    };
                    let mut events = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    if events.len() == EVENTS {
                        events.pop_front();
                    }
                    events.push_back(event);
                }
            })
            .map_err(file("a thread"))?;
        Ok(Self { process, commands: Mutex::new((stream, answers)), events })
    }

    fn tell(&self, command: &Value) -> Result<Value> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, answers) = &mut *commands;
        let failed = |what: String| {
            BedError::Air(format!("{what} to {command}; its log is {}", self.process.log().display()))
        };
        stream
            .write_all(format!("{command}\n").as_bytes())
            .map_err(|error| failed(format!("could not be reached ({error})")))?;
        let answer =
            answers.recv_timeout(PATIENCE).map_err(|error| failed(format!("did not answer ({error})")))?;
        match answer.get("ok") {
            Some(ok) => Ok(ok.clone()),
            None => Err(failed(format!("answered {}", answer["error"]))),
        }
    }

    /// Plugs a controller into a machine, also in the place of an earlier machine of this name.
    pub fn give_controller(&self, machine: &str, address: &str, socket: &Path) -> Result<()> {
        self.tell(&json!({"do": "box", "name": machine, "address": address, "socket": socket.display().to_string()}))
            .map(|_| ())
    }

    /// Pulls a machine's controller out, or plugs it in again.
    pub fn plug(&self, machine: &str, on: bool) -> Result<()> {
        self.tell(&json!({"do": "plug", "name": machine, "on": on})).map(|_| ())
    }

    /// How many links a machine's controller holds before it refuses.
    pub fn slots(&self, machine: &str, slots: usize) -> Result<()> {
        self.tell(&json!({"do": "slots", "name": machine, "slots": slots})).map(|_| ())
    }

    /// A controller for a wearable; the TCP port on which it speaks H4.
    pub fn wearable(&self, name: &str) -> Result<u16> {
        let answer = self.tell(&json!({"do": "wearable", "name": name}))?;
        answer["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .ok_or_else(|| BedError::Air(format!("answered {answer}")))
    }

    /// How well a device and a machine hear each other, dBm; not at all by `None`, which cuts their link.
    pub fn range(&self, device: &str, machine: &str, rssi: Option<i8>) -> Result<()> {
        self.tell(&json!({"do": "range", "device": device, "box": machine, "rssi": rssi})).map(|_| ())
    }

    /// Cuts all links of a device or a machine once; who is in range may connect again.
    pub fn cut(&self, device: &str) -> Result<()> {
        self.tell(&json!({"do": "cut", "device": device})).map(|_| ())
    }

    /// Gives a wearable a new private address now.
    pub fn rotate(&self, device: &str) -> Result<()> {
        self.tell(&json!({"do": "rotate", "device": device})).map(|_| ())
    }

    /// A heart-rate sensor of another maker.
    pub fn heart_rate_sensor(&self, name: &str) -> Result<()> {
        self.tell(&json!({"do": "heart_rate", "name": name})).map(|_| ())
    }

    /// Somebody who advertises just what `copied` advertises now.
    pub fn impostor(&self, name: &str, copied: &str, how: Impostor) -> Result<()> {
        let (kind, passkey) = match how {
            Impostor::JustWorks => ("just_works", 0),
            Impostor::Legacy(passkey) => ("legacy", passkey),
        };
        self.tell(
            &json!({"do": "impostor", "name": name, "copies": copied, "kind": kind, "passkey": passkey}),
        )
        .map(|_| ())
    }

    /// Somebody's phone pairs with a device by this passkey and reads its standard services. What it got comes as an
    /// event `phone`: hexadecimal under `got`, and under `before` in it what it got before it had paired.
    pub fn phone(&self, name: &str, visits: &str, passkey: u32, patience: Duration) -> Result<()> {
        self.tell(&json!({
            "do": "phone", "name": name, "visits": visits, "passkey": passkey, "patience": patience.as_secs_f64(),
        }))
        .map(|_| ())
    }

    /// Somebody connects to a device and waits for the link's end. The reason comes as an event `stranger`, under `got`.
    pub fn stranger(&self, name: &str, visits: &str, patience: Duration) -> Result<()> {
        self.tell(
            &json!({"do": "stranger", "name": name, "visits": visits, "patience": patience.as_secs_f64()}),
        )
        .map(|_| ())
    }

    /// Somebody with another stack pairs with a wearable and takes its frames for so long. They come as an event
    /// `collector`: hexadecimal under `frames` in `got`, and the replies to their requests under `replies`.
    pub fn collector(
        &self,
        name: &str,
        visits: &str,
        passkey: u32,
        patience: Duration,
        lasts: Duration,
    ) -> Result<()> {
        self.tell(&json!({
            "do": "collector", "name": name, "visits": visits, "passkey": passkey,
            "patience": patience.as_secs_f64(), "seconds": lasts.as_secs_f64(),
        }))
        .map(|_| ())
    }

    /// Takes a sensor or an impostor away.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.tell(&json!({"do": "remove", "name": name})).map(|_| ())
    }

    /// The notifications that a device sent since this was asked last.
    pub fn notified(&self, device: &str) -> Result<Vec<Notified>> {
        let mut answer = self.tell(&json!({"do": "notified", "device": device}))?;
        serde_json::from_value(answer["notified"].take())
            .map_err(|error| BedError::Air(format!("answered {error}")))
    }

    /// Everybody by name: `links` (with whom), `advertising`, `address`, `scanning`, `data` and `response` (hex).
    pub fn status(&self) -> Result<Value> {
        self.tell(&json!({"do": "status"}))
    }

    /// What has happened so far, or since a moment of this air's clock.
    pub fn events_since(&self, at: f64) -> Vec<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| event.at >= at).cloned().collect()
    }

    /// The air's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
