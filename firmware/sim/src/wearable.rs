//! The wearable: the application, its flash, its crystal and its sensors, moved by true time.

use std::io;
use std::path::Path;

use kinara_firmware_app::app::{App, DeviceIdentity, MAX_STARTS, Recovered, Settings};
use kinara_firmware_app::flash::PAGE;
use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_firmware_app::ring::{JOURNAL_PAGES, MIN_LOG_PAGES, RingError};
use kinara_firmware_app::update::Ask;
use kinara_protocol::control::{Outcome, Start};
use kinara_protocol::frame::{ResetReason, Ticks};

use crate::body::{Body, BodySettings};
use crate::crystal::Crystal;
use crate::entropy;
use crate::firmware::{Firmware, Updates};
use crate::flash_file::{FlashFile, ImageError};
use crate::oracle::Oracle;
use crate::replay::Recording;
use crate::signals::{Happening, Signals};

/// The application is stepped at least this often, in its own ms.
const STEP_MS: u64 = 250;
/// When behind, samples are made for so much time at once: large writes to the oracle's log.
const BATCH_MS: u64 = 60_000;

/// What can go wrong with a wearable.
#[derive(Debug, thiserror::Error)]
pub enum WearableError {
    /// The flash image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The application's log.
    #[error("the wearable's flash: {0}")]
    Ring(#[from] RingError<io::Error>),
    /// The oracle's log or the kernel's random numbers.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How a wearable is made.
#[derive(Debug)]
pub struct WearableSettings {
    /// Who it is.
    pub factory_id: u64,
    /// The person inside.
    pub body: BodySettings,
    /// The crystal's drift, if not the seed's.
    pub drift_ppm: Option<f64>,
    /// What it measures.
    pub plan: Plan,
    /// When frames close.
    pub frame_age: FrameAge,
    /// Size of its flash.
    pub ring_kib: u32,
    /// Signals to play instead of the body's.
    pub recording: Option<Recording>,
    /// How it takes new firmware.
    pub updates: Updates,
    /// How much of the past a wearable with blank flash has measured already.
    pub prefill_us: i64,
}

/// The smallest flash that works, in KiB.
pub const MIN_RING_KIB: u32 = (JOURNAL_PAGES + MIN_LOG_PAGES) * PAGE / 1024;

/// See the module's text.
pub struct Wearable {
    /// The application. `None` only while the wearable resets.
    app: Option<App<FlashFile>>,
    settings: Settings,
    firmware: Firmware,
    signals: Signals,
    crystal: Crystal,
    oracle: Oracle,
    done_until: Ticks,
    producing: bool,
    happenings: Vec<Happening>,
    /// The last one first.
    starts: Vec<Start>,
}

impl Wearable {
    /// Starts a wearable at a true time, and lets it live through its prefill.
    pub fn start(
        settings: WearableSettings,
        state: &Path,
        oracle: Oracle,
        now_us: i64,
    ) -> Result<Self, WearableError> {
        let (flash, blank) = FlashFile::open(&state.join("flash.img"), settings.ring_kib * 1024 / PAGE)?;
        let start_us = if blank { now_us - settings.prefill_us } else { now_us };
        let seed = settings.body.seed;
        let crystal = Crystal::new(seed, settings.drift_ppm, start_us);
        let firmware = Firmware::open(state, settings.updates)?;
        let player = settings.recording.map(|recording| recording.play(start_us));
        let signals = Signals::new(seed, Body::new(&settings.body, start_us), player);
        let mut wearable = Self {
            app: None,
            settings: Settings {
                identity: DeviceIdentity { factory_id: settings.factory_id, firmware: firmware.version() },
                plan: settings.plan,
                frame_age: settings.frame_age,
            },
            firmware,
            signals,
            crystal,
            oracle,
            done_until: Ticks(0),
            producing: true,
            happenings: Vec::new(),
            starts: Vec::new(),
        };
        wearable.boot(flash, ResetReason::PowerOn)?;
        wearable.run_to(now_us)?;
        Ok(wearable)
    }

    fn boot(&mut self, flash: FlashFile, reason: ResetReason) -> Result<(), WearableError> {
        let entropy = [entropy::word()?, entropy::word()?];
        let boot_us = self.crystal.boot_utc_us();
        let recovered = Recovered::boot(flash, self.settings, reason, entropy, Ticks(0), &mut self.oracle)?;
        let mut app = App::new(recovered);
        self.oracle.boot(app.epoch(), boot_us);
        self.starts.insert(0, Start { reason, place: None });
        self.starts.truncate(MAX_STARTS);
        app.remember_starts(self.starts.iter().copied());
        app.set_battery(self.signals.battery_percent(boot_us), Ticks(0), &mut self.oracle)?;
        self.oracle.flush()?;
        self.app = Some(app);
        self.done_until = Ticks(0);
        Ok(())
    }

    /// The application.
    pub fn app(&mut self) -> &mut App<FlashFile> {
        self.app.as_mut().expect("only reset() takes it, and puts it back")
    }

    /// The application, and who is to be told what it stores.
    pub fn app_and_oracle(&mut self) -> (&mut App<FlashFile>, &mut Oracle) {
        (self.app.as_mut().expect("only reset() takes it, and puts it back"), &mut self.oracle)
    }

    /// Who it is.
    pub fn factory_id(&self) -> u64 {
        self.settings.identity.factory_id
    }

    /// The firmware's version.
    pub fn firmware(&self) -> [u8; 3] {
        self.settings.identity.firmware
    }

    /// The body, for commands.
    pub fn body(&mut self) -> &mut Body {
        self.signals.body()
    }

    /// Samples produced.
    pub fn produced(&self) -> u64 {
        self.oracle.produced()
    }

    /// The wearable's own time at a true time. It never goes back.
    pub fn ticks(&self, utc_us: i64) -> Ticks {
        Ticks(self.crystal.ticks_at(utc_us).max(self.done_until.0.saturating_sub(1)))
    }

    /// The true time of the next step.
    pub fn next_step_us(&self) -> i64 {
        self.crystal.utc_us_of(self.done_until.0.next_multiple_of(STEP_MS) + 1)
    }

    /// Measures and stores up to a true time.
    pub fn run_to(&mut self, utc_us: i64) -> Result<(), WearableError> {
        let end = self.crystal.ticks_at(utc_us) + 1;
        while self.done_until.0 < end {
            let until = Ticks(end.min(self.done_until.0 + BATCH_MS));
            self.run_batch(until)?;
        }
        Ok(())
    }

    fn run_batch(&mut self, until: Ticks) -> Result<(), WearableError> {
        let app = self.app.as_mut().expect("only reset() takes it, and puts it back");
        self.happenings.clear();
        if self.producing {
            self.signals.produce(app.plan(), &self.crystal, self.done_until, until, &mut self.happenings);
        }
        self.oracle.produce(app.epoch(), &self.crystal, &self.happenings)?;
        let mut stepped = self.done_until.0;
        for happening in &self.happenings {
            while happening.ticks().0 >= stepped + STEP_MS {
                stepped += STEP_MS;
                app.step(Ticks(stepped), &mut self.oracle)?;
            }
            match *happening {
                Happening::Sample { channel, ticks, values, components } => {
                    app.sample(channel, ticks, &values[..usize::from(components)], &mut self.oracle)?;
                }
                Happening::Worn { ticks, on } => app.set_worn(on, ticks, &mut self.oracle)?,
            }
        }
        self.done_until = until;
        app.step(Ticks(until.0 - 1), &mut self.oracle)?;
        self.oracle.flush()?;
        Ok(())
    }

    /// Answers a gateway about an update; the flag asks for a reset once the answer has gone.
    pub fn update(&mut self, ask: &Ask) -> (Outcome, bool) {
        self.firmware.answer(ask)
    }

    /// Looks after firmware that is tried. A reason to reset, if there is one.
    pub fn prove_firmware(&mut self) -> Result<Option<ResetReason>, WearableError> {
        Ok(self.firmware.step(self.done_until)?)
    }

    /// Resets at a true time: what is not in flash is gone.
    pub fn reset(&mut self, utc_us: i64) -> Result<(), WearableError> {
        self.reset_for(utc_us, ResetReason::Requested)
    }

    /// As [`reset`](Self::reset), for another reason.
    pub fn reset_for(&mut self, utc_us: i64, reason: ResetReason) -> Result<(), WearableError> {
        let app = self.app.take().expect("only reset() takes it, and puts it back");
        self.oracle.reset(app.epoch(), utc_us);
        self.oracle.flush()?;
        self.crystal.reset(utc_us);
        self.signals.reset();
        self.firmware.restart()?;
        self.settings.identity.firmware = self.firmware.version();
        self.boot(app.into_flash(), reason)
    }

    /// Closes the open frames and measures nothing any more.
    pub fn stop(&mut self) -> Result<(), WearableError> {
        self.producing = false;
        self.shut_down()
    }

    /// Closes the open frames: the program is about to end.
    pub fn shut_down(&mut self) -> Result<(), WearableError> {
        let (app, oracle) = self.app_and_oracle();
        app.shut_down(oracle)?;
        Ok(self.oracle.flush()?)
    }

    /// Writes what the oracle's log still lacks.
    pub fn flush(&mut self) -> Result<(), WearableError> {
        Ok(self.oracle.flush()?)
    }
}
