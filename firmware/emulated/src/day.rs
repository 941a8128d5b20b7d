//! A hundred seconds of a wearable's life: a recorded pulse, warm skin, an arm that moves for a while, frames to flash,
//! and a gateway that takes them all.

use kinara_firmware_app::acquisition::Acquisition;
use kinara_firmware_app::app::{App, DeviceIdentity, Recovered, Settings};
use kinara_firmware_app::flash::{Flash, Nonce, PAGE};
use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_firmware_app::signal::motion::ONE_G;
use kinara_protocol::channel::{ChannelId, HEART_RATE, RR_INTERVAL};
use kinara_protocol::control::{MAX_MESSAGE, Op, Request};
use kinara_protocol::frame::{FrameRef, MAX_FRAME, ResetReason, Ticks, checksum};
use kinara_protocol::gatt::Characteristic;

/// HeartPy's recording of a finger, at almost a hundred samples a second (tests/recordings/heartpy).
pub const PULSE: &str = include_str!("../../../tests/recordings/heartpy/ppg.txt");
/// How long it lasts, ms.
const LASTS_MS: u64 = 100_000;
const PAGES: u32 = 12;

/// Counts what something costs; a PC counts nothing.
pub trait Meter {
    /// Instructions until now.
    fn instructions(&self) -> u64;
}

/// What one kind of call costs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Calls.
    pub calls: u64,
    /// Instructions of all of them.
    pub total: u64,
    /// And of the dearest.
    pub most: u64,
}

impl Cost {
    fn of<T>(&mut self, meter: &impl Meter, act: impl FnOnce() -> T) -> T {
        let before = meter.instructions();
        let done = act();
        let took = meter.instructions() - before;
        self.calls += 1;
        self.total += took;
        self.most = self.most.max(took);
        done
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Samples that were stored.
    pub samples: u32,
    /// Frames that the gateway got.
    pub frames: u32,
    /// Over every byte of them: the same on every processor.
    pub sum: u32,
    /// The last heart rate, tenths of beats a minute.
    pub heart_rate: i32,
    /// Intervals between beats.
    pub intervals: u32,
    /// A sample of light.
    pub light: Cost,
    /// A sample of acceleration.
    pub acceleration: Cost,
    /// A sample into its frame, with the frame to flash where it is full.
    pub store: Cost,
    /// A step of the application.
    pub step: Cost,
    /// A frame out of flash, to the gateway.
    pub send: Cost,
}

/// Flash in memory.
pub struct Memory<'a>(pub &'a mut [u8]);

impl Flash for Memory<'_> {
    type Error = core::convert::Infallible;

    fn pages(&self) -> u32 {
        PAGES
    }

    fn read(&mut self, address: u32, into: &mut [u8]) -> Result<(), Self::Error> {
        into.copy_from_slice(&self.0[address as usize..][..into.len()]);
        Ok(())
    }

    fn write(&mut self, address: u32, words: &[u8]) -> Result<(), Self::Error> {
        self.0[address as usize..][..words.len()].copy_from_slice(words);
        Ok(())
    }

    fn erase(&mut self, page: u32) -> Result<(), Self::Error> {
        self.0[(page * PAGE) as usize..][..PAGE as usize].fill(0xff);
        Ok(())
    }

    /// The key stream of the board is a library's; here it is the processor that is looked at.
    fn encipher(&mut self, _: &Nonce, _: &mut [u8]) {}
}

/// Bytes of flash that [`live`] needs.
pub const FLASH: usize = (PAGES * PAGE) as usize;

/// Lives them.
pub fn live(flash: &mut [u8], meter: &impl Meter) -> Outcome {
    flash.fill(0xff);
    let settings = Settings {
        identity: DeviceIdentity { factory_id: 7, firmware: [0, 1, 0] },
        plan: Plan::default(),
        frame_age: FrameAge { live_ms: 1_000, stored_ms: 15_000 },
    };
    let booted = Recovered::boot(Memory(flash), settings, ResetReason::PowerOn, [1, 2], Ticks(0), &mut ());
    let Ok(mut app) = booted.map(App::new) else { return Outcome::default() };
    let mut acquisition = Acquisition::new();
    let mut outcome = Outcome::default();
    let mut pulse = PULSE.lines().skip(1).filter_map(|line| line.parse::<u32>().ok());
    for ms in 0..LASTS_MS {
        let at = Ticks(ms);
        if ms.is_multiple_of(10)
            && let Some(counts) = pulse.next()
        {
            outcome.light.of(meter, || acquisition.light(at, 150_000 - 16 * counts));
        }
        if ms.is_multiple_of(38) {
            // Still, but for ten seconds of shaking.
            let shake =
                if (60_000..70_000).contains(&ms) && (ms / 190).is_multiple_of(2) { 5_000 } else { 0 };
            outcome.acceleration.of(meter, || acquisition.acceleration(at, [shake, 0, ONE_G as i16]));
        }
        if ms.is_multiple_of(250) {
            acquisition.conductance(at, (1_200 + ms / 200) as u16);
        }
        if ms.is_multiple_of(1_000) {
            acquisition.temperatures(at, 33 * 128 + (ms / 1_000) as i16, 24 * 128);
            let worn = acquisition.second(at);
            let Ok(()) = app.set_worn(worn, at, &mut ()) else { return outcome };
        }
        if ms.is_multiple_of(250) {
            acquisition.due(at, |channel, at, value| {
                outcome.notice(channel, value);
                outcome.store.of(meter, || {
                    let _ = app.sample(channel, at, &[value], &mut ());
                });
            });
            outcome.step.of(meter, || {
                let _ = app.step(at, &mut ());
            });
        }
    }
    let _ = app.shut_down(&mut ());
    hand_over(&mut app, &mut outcome, meter);
    outcome
}

impl Outcome {
    fn notice(&mut self, channel: ChannelId, value: i32) {
        self.samples += 1;
        match channel {
            HEART_RATE => self.heart_rate = value,
            RR_INTERVAL => self.intervals += 1,
            _ => {}
        }
    }
}

/// A gateway takes all frames, and acknowledges each.
fn hand_over(app: &mut App<Memory<'_>>, outcome: &mut Outcome, meter: &impl Meter) {
    let now = Ticks(LASTS_MS);
    let ask = |app: &mut App<Memory<'_>>, id, op| {
        let mut message = [0; MAX_MESSAGE];
        app.write(Request { id, op }.encode(&mut message), now, &mut ());
    };
    app.connected();
    app.subscribe(Characteristic::Backlog, true);
    ask(app, 1, Op::StartBacklog { window: 8 });
    let mut bytes = [0; MAX_FRAME];
    while let Ok(Some((characteristic, length))) =
        outcome.send.of(meter, || app.outgoing(now, &mut bytes, &mut ()))
    {
        if characteristic != Characteristic::Backlog {
            continue;
        }
        let Ok(frame) = FrameRef::parse(&bytes[..length]) else { return };
        outcome.frames += 1;
        outcome.sum = outcome.sum.rotate_left(5) ^ checksum(&bytes[..length]);
        let (epoch, seq) = (frame.header().epoch, frame.header().seq);
        ask(app, 2, Op::Ack { epoch, seq });
    }
}
