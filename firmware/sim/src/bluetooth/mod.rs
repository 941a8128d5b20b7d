//! The wearable on a real Bluetooth stack: `firmware/ble`, as it runs on the chip, over an HCI controller elsewhere.
//!
//! One thread does everything that matters: the body's steps, the application, the radio. Threads wait at the
//! socket for commands. The radio goes down when the controller does, and up again when there is one; what it
//! remembers is in a file (`memory`).

mod controller;
mod host;
mod memory;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use embassy_time::Instant;
use kinara_clock::Clock;
use kinara_firmware_ble::controls::{Command, Controls};
use kinara_firmware_ble::memory::{Identity, MAX_IMAGE, Memory, Storage};
use kinara_firmware_ble::pairing::{OpenError, Pairing, Proof};
use kinara_firmware_ble::radio::{self, Radio, Resources, Settings};
use kinara_firmware_ble::service::Nameplate;
use kinara_firmware_ble::startup::Privacy;
use serde_json::{Value, json};
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc;

use crate::entropy::Kernel;
use crate::options::{BluetoothOptions, PrivacyName, WearableOptions};
use crate::pairing::Button;
use crate::wearable::WearableError;
use crate::{commands, program, socket};

use host::Host;
use memory::MemoryFile;

/// Commands that wait for the wearable.
const MAX_COMMANDS: usize = 64;
/// The longest sleep: signals and the button are looked for at least so often.
const MAX_SLEEP: Duration = Duration::from_millis(250);
/// Between two tries to reach the controller.
const CONTROLLER_PAUSE: Duration = Duration::from_millis(500);
/// How long a link may take to end in order when the program does.
const FAREWELL: Duration = Duration::from_secs(2);

type Asked = (Value, SyncSender<Value>);
type Windows = RefCell<Pairing<MemoryFile, Kernel>>;

/// `kinara-wearable-ble`, from its arguments on.
pub fn run(options: BluetoothOptions) -> Result<()> {
    let ended = program::ended()?;
    let clock = program::clock(&options.wearable)?;
    let state = &options.wearable.state;
    std::fs::create_dir_all(state).with_context(|| state.display().to_string())?;
    let listener = socket::listen(&options.control)?;
    let wearable = program::start(&options.wearable, clock.utc_us())?;
    let pairing = RefCell::new(open_pairing(&options)?);
    let controls = Controls::new();
    let host = Host::new(wearable, Arc::clone(&clock), &controls, options.display);

    let (ask, asked) = mpsc::channel(MAX_COMMANDS);
    commands::serve(listener, move |command, answers| ask.blocking_send((command, answers)).is_ok())?;
    let ready = json!({
        "ready": true,
        "factory_id": host.serial(),
        "epoch": host.epoch(),
        "produced": host.produced(),
        "address": host::written(pairing.borrow().identity().address),
    });
    println!("{ready}");

    let life = Life { options: &options, ended, clock, host: &host, pairing: &pairing, controls: &controls };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(steady(life.live(asked)))?;
    // Somebody may have tidied up already.
    let _ = std::fs::remove_file(&options.control);
    Ok(())
}

/// Polls with a clone's clone of the waker. The radio's parts keep clones and wake one that is not the same as the
/// next poll's; the runtime's own waker may differ from its clones in the address of its table alone, and they would
/// then wake each other for ever, with a core to themselves.
async fn steady<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        let waker = context.waker().clone().clone();
        future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
    })
    .await
}

fn open_pairing(options: &BluetoothOptions) -> Result<Pairing<MemoryFile, Kernel>> {
    let WearableOptions { state, label_secret, .. } = &options.wearable;
    let mut file = MemoryFile::in_state(state);
    let mut entropy = Kernel::open().context("/dev/urandom")?;
    let mut image = [0; MAX_IMAGE];
    if let Some(address) = options.address
        && file.load(&mut image).context("bonds")? == 0
    {
        let blank = Memory::blank(Identity { address, ..Identity::draw(&mut entropy) });
        file.save(blank.encode(&mut image)).context("bonds")?;
    }
    let proof = if options.display { Proof::Display } else { Proof::Label(label_secret.clone()) };
    Pairing::open(file, entropy, proof, Instant::now()).map_err(|error| match error {
        OpenError::Storage(error) => anyhow::Error::new(error).context(state.display().to_string()),
        OpenError::BadImage => {
            anyhow::anyhow!("{} holds no bonds of this version; remove it", state.join("bonds.img").display())
        }
    })
}

/// One run of the program.
struct Life<'a> {
    options: &'a BluetoothOptions,
    ended: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
    host: &'a Host<'a>,
    pairing: &'a Windows,
    controls: &'a Controls,
}

impl Life<'_> {
    async fn live(&self, mut asked: mpsc::Receiver<Asked>) -> Result<()> {
        let mut radio = std::pin::pin!(self.radio());
        while !self.ended.load(Ordering::SeqCst) {
            tokio::select! {
                () = &mut radio => unreachable!("the radio is looked after for ever"),
                Some(asked) = asked.recv() => self.obey(asked)?,
                () = tokio::time::sleep(self.sleep()) => {}
            }
            self.step()?;
        }
        self.controls.give(Command::DropLink);
        // In order if the controller is there, else without.
        let unlinked = async {
            while self.host.is_linked() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = &mut radio => {}
            () = unlinked => {}
            () = tokio::time::sleep(FAREWELL) => {}
        }
        Ok(self.host.shut_down()?)
    }

    fn sleep(&self) -> Duration {
        let behind_us = self.host.next_step_us() - self.clock.utc_us();
        let real_us = (behind_us.max(0) as f64 / self.clock.rate()) as u64;
        Duration::from_micros(real_us + 50).min(MAX_SLEEP)
    }

    fn step(&self) -> Result<(), WearableError> {
        self.host.step()?;
        if self.options.button == Button::Pressed
            && self.host.is_waiting()
            && !self.host.is_paused()
            && self.pairing.borrow().bonds().is_empty()
            && !self.pairing.borrow().label_window_is_open(Instant::now())
        {
            self.controls.give(Command::PressButton);
        }
        self.controls.ring();
        Ok(())
    }

    /// Keeps the radio up.
    async fn radio(&self) {
        let firmware = self.host.firmware();
        let serial = self.host.serial();
        let settings = Settings {
            nameplate: Nameplate { name: &self.options.wearable.name, serial: &serial, firmware: &firmware },
            privacy: match self.options.privacy {
                PrivacyName::Controller => Privacy::Controller,
                PrivacyName::Off => Privacy::Off,
            },
            address_life: embassy_time::Duration::from_secs(self.options.address_life_s.into()),
        };
        let parts = Radio {
            wearable: self.host,
            pairing: self.pairing,
            controls: self.controls,
            settings: &settings,
        };
        let mut told = false;
        loop {
            match controller::connect(&self.options.h4).await {
                Ok(controller) => {
                    told = false;
                    let mut resources = Box::new(Resources::new());
                    let Err(error) = radio::run(controller, &mut resources, &parts).await;
                    eprintln!("radio: the controller failed: {error:?}");
                    self.host.radio_lost();
                }
                Err(error) => {
                    if !told {
                        eprintln!("radio: no controller at {}: {error}; trying again", self.options.h4);
                    }
                    told = true;
                }
            }
            tokio::time::sleep(CONTROLLER_PAUSE).await;
        }
    }

    fn obey(&self, (command, answers): Asked) -> Result<()> {
        let answer = self.answer(&command)?;
        // The harness may have gone away; that is its business.
        let _ = answers.send(answer);
        Ok(())
    }

    fn answer(&self, command: &Value) -> Result<Value> {
        if let Some(answer) = self.host.obey_about_body(command)? {
            return Ok(answer);
        }
        Ok(match command.get("do").and_then(Value::as_str) {
            Some("status") => self.report()?,
            Some("drop") => {
                self.controls.give(Command::DropLink);
                json!({"ok": true})
            }
            Some("stall") => {
                self.host.stall(Duration::from_secs_f64(commands::seconds(command)));
                json!({"ok": true})
            }
            Some("reboot") => {
                self.controls.give(Command::DropLink);
                self.host.reset()?;
                *self.pairing.borrow_mut() = open_pairing(self.options)?;
                json!({"ok": true, "epoch": self.host.epoch()})
            }
            Some("forget") => {
                let held: Vec<_> =
                    self.pairing.borrow().bonds().iter().map(|bond| bond.peer.address).collect();
                for address in held {
                    self.pairing.borrow_mut().revoke(address, Instant::now())?;
                }
                self.controls.give(Command::DropLink);
                json!({"ok": true})
            }
            Some("button") => {
                self.controls.give(Command::PressButton);
                json!({"ok": true})
            }
            _ => {
                json!({"ok": false, "error": "\"do\" is one of status, drop, stall, reboot, stop, hot_flash, \
                 wear, forget, button"})
            }
        })
    }

    fn report(&self) -> Result<Value> {
        let mut report = self.host.report()?;
        let pairing = self.pairing.borrow();
        report["address"] = host::written(pairing.identity().address).into();
        report["bonds"] = pairing.bonds().iter().map(|bond| host::written(bond.peer.address)).collect();
        report["window"] = match pairing.offering(Instant::now()) {
            None => Value::Null,
            Some(_) if pairing.label_window_is_open(Instant::now()) => "label".into(),
            Some(_) => "introduction".into(),
        };
        Ok(report)
    }
}
